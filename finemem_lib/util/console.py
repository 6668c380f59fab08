"""Common parts of the commands: exit codes, argument checks, interrupts, tables, progress."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shlex
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

EXIT_CODES = {"ok": 0, "failed": 1, "timeout": 3, "interrupted": 130}
BAD_USAGE = 2

SECONDS_A_LINE = 60.0
"""Seconds between printed lines of a `StatusLine` without a terminal."""


class UsageError(Exception):
    """The arguments of a command are invalid; nothing was started or written."""


class UsageErrors(contextlib.AbstractContextManager[None]):
    """Turns errors of the given kinds in its block into a `UsageError` with the same text.

    Args:
        kinds: The classes of these errors.
    """

    def __init__(self, *kinds: type[Exception]) -> None:
        self._kinds = kinds

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self._kinds):
            raise UsageError(str(error)) from error


def positive(text: str) -> int:
    """Return a command-line argument as a whole number of at least 1.

    Args:
        text: Decimal digits.

    Raises:
        argparse.ArgumentTypeError: the text is not such a number.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(
            f"{text!r:.40}, expected a whole number from 1 to 999,999,999"
        )
    return int(text)


def rows_file(text: str) -> Path:
    """Return a command-line argument as the path of a file of rows.

    Args:
        text: A path that ends in ".jsonl"; the card of the rows has the suffix ".json".

    Raises:
        argparse.ArgumentTypeError: the path has another suffix, so that the card could replace the
            rows.
    """
    path = Path(text)
    if path.suffix != ".jsonl":
        raise argparse.ArgumentTypeError(
            f"{text!r:.200}, expected a file that ends in .jsonl; its card is written beside it, "
            "ending in .json"
        )
    return path


def check_output_folder(folder: Path, option: str = "--output") -> None:
    """Raise an error if a folder cannot be created or written to.

    Args:
        folder: The folder for output files.
        option: Name of the command-line option, for the message.

    Raises:
        UsageError: the folder, or its nearest existing parent, is not a writable folder.
    """
    places = (folder.absolute(), *folder.absolute().parents)
    there = next(place for place in places if os.path.lexists(place))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "cannot be written to" if there.is_dir() else "is no folder"
        raise UsageError(
            f"{option}: {there} {what}, expected a folder that files can be written to; choose "
            "another one"
        )


@contextlib.contextmanager
def interruptible(once: bool = True) -> Iterator[None]:
    """Turn SIGTERM and SIGHUP into KeyboardInterrupt within the block, so that it can clean up.

    Args:
        once: Whether signals after the first one are ignored, so that they cannot interrupt the
            clean-up.
    """
    former = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }

    def interrupt(number: int, frame: FrameType | None) -> None:
        for each in former if once else ():
            signal.signal(each, signal.SIG_IGN)
        raise KeyboardInterrupt

    try:
        for number, handler in former.items():
            if handler is not signal.SIG_IGN:  # ignored under nohup or in the background
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def terminal() -> Console:
    """Return a console on standard output, in colour only on a terminal."""
    return Console(highlight=False, markup=False, emoji=False, force_jupyter=False)


def result_line(code: int, **fields: object) -> str:
    """Return the last line of a command, for programs: ``NAME=VALUE`` as a shell would read it.

    Args:
        code: The exit code, which becomes the status.
        fields: Further results of the command, by name.

    >>> result_line(0, run="a", page="my folder/x.html")
    "status=ok run=a page='my folder/x.html'"
    """
    status = next(name for name, number in EXIT_CODES.items() if number == code)
    pairs = [f"{name}={shlex.quote(str(value))}" for name, value in fields.items()]
    return " ".join([f"status={status}", *pairs])


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; long cells are wrapped only on a terminal.

    Args:
        rows: The header, then the rows; a header without rows is not printed. Cells may be
            untrusted: markup is not interpreted, and `plain` removes control characters.
    """
    if len(rows) < 2:
        return
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for name in rows[0]:
        table.add_column(Text(plain(name)), overflow="fold")
    for row in rows[1:]:
        table.add_row(*(Text(plain(cell)) for cell in row))
    console = terminal()
    if console.is_terminal:
        console.print(table)
        return
    console.width = 1_000_000  # without a terminal, one line per row
    console.width = console.measure(table).maximum
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


class StatusLine(contextlib.AbstractContextManager["StatusLine"]):
    """Status lines of running tasks.

    A terminal updates the lines in place, truncated to its width, and keeps the last line of each
    task. Without a terminal they are printed every `SECONDS_A_LINE` seconds, and the last line of
    each task when it ends.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an empty display.

        Args:
            clock: Returns the time in seconds, from any start.
        """
        self._console = terminal()
        self._clock = clock
        self._printed = clock()
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def update(self, lines: Sequence[str]) -> None:
        """Show the current lines.

        Args:
            lines: Lines without control characters; untrusted text must go through `plain` first.
        """
        if self._live:
            text = Text("\n".join(lines), no_wrap=True, overflow="ellipsis")
            self._live.update(text, refresh=True)
        elif self._clock() - self._printed >= SECONDS_A_LINE:
            self._printed = self._clock()
            print("\n".join(lines), flush=True)

    def end(self, line: str) -> None:
        """Print the last line of a task permanently.

        Args:
            line: The line, as for `update`.
        """
        if self._live:
            self._live.update("")
            self._live.console.print(Text(line), soft_wrap=True)  # above the remaining lines
        else:
            print(line, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._live:
            self._live.stop()


class StepLog(contextlib.AbstractContextManager["StepLog"]):
    """Prints a line per finished step and, on a terminal, a progress bar with the time left."""

    def __init__(self) -> None:
        """Start the clock."""
        self._begun = time.monotonic()
        self._bar = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=terminal(),
            transient=True,
            disable=not terminal().is_terminal,
        )
        self._task = self._bar.add_task("", total=None, visible=False)

    def __enter__(self) -> StepLog:
        self._bar.start()
        return self

    def __call__(self, done: int, total: int, text: str) -> None:
        """Report a finished step.

        Args:
            done: Number of finished steps.
            total: Total number of steps.
            text: Description of the step; it may be untrusted.
        """
        line = f"{done:4}/{total} {time.monotonic() - self._begun:7.0f} s  {plain(text)}"
        print(line, flush=True)  # rich prints it above the bar
        self._bar.update(self._task, completed=done, total=total, visible=True)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def plain(text: str) -> str:
    r"""Return untrusted text in one line, with control characters replaced by U+FFFD.

    Args:
        text: Text from data, models or parameters.

    >>> plain("Mia\x1b[2J lives\nin Rome.")
    'Mia\ufffd[2J lives in Rome.'
    """
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
