"""What the commands share: exit codes, refusals, interrupts, tables, progress, plain text."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
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
"""How often a `StatusLine` is printed where there is no terminal."""


class UsageError(Exception):
    """The command cannot be carried out as given; nothing was started or written."""


def positive(text: str) -> int:
    """Return the whole number of at least 1 that a word of the command line stands for.

    Args:
        text: Decimal digits.

    Raises:
        argparse.ArgumentTypeError: it is no such number.
    """
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise argparse.ArgumentTypeError(
            f"{text!r:.40}, expected a whole number from 1 to 999,999,999"
        )
    return int(text)


def check_output_folder(folder: Path, option: str = "--output") -> None:
    """Refuse a folder that cannot be made or written to.

    Args:
        folder: Where files will be written.
        option: The option that names it.

    Raises:
        UsageError: it, or the folder it would be made in, is none that files can be written to.
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
    """Turn SIGTERM and a lost terminal into KeyboardInterrupt, so that a command can clean up.

    Args:
        once: Whether further signals are ignored after the first, so that they cannot cut the
            clean-up short.
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
            if handler is not signal.SIG_IGN:  # nohup, or started in the background
                signal.signal(number, interrupt)
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def terminal() -> Console:
    """Return a console that writes to standard output, in colour only where that is a terminal."""
    return Console(highlight=False, markup=False, emoji=False, force_jupyter=False)


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; long cells are folded on a terminal and whole elsewhere.

    Args:
        rows: The header, then the rows; a header alone is not printed. Cells are text of anyone:
            no markup is read in them, and `plain` makes them harmless.
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
    console.width = 1_000_000  # a script gets every row in one line
    console.width = console.measure(table).maximum
    with console.capture() as capture:
        console.print(table)
    print("\n".join(line.rstrip() for line in capture.get().splitlines()))


class StatusLine(contextlib.AbstractContextManager["StatusLine"]):
    """One line that says how far something has come.

    A terminal shows it in place, cut to its width, and keeps the last one. Elsewhere a line is
    printed every `SECONDS_A_LINE`, and the last one.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start the line.

        Args:
            clock: Seconds from any start.
        """
        self._console = terminal()
        self._clock = clock
        self._printed = clock()
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, auto_refresh=False, transient=True)
            self._live.start()

    def update(self, line: str) -> None:
        """Show the state.

        Args:
            line: Without control characters; text of others in it went through `plain`.
        """
        if self._live:
            text = Text(line, no_wrap=True, overflow="ellipsis")
            self._live.update(text, refresh=True)
        elif self._clock() - self._printed >= SECONDS_A_LINE:
            self._printed = self._clock()
            print(line, flush=True)

    def end(self, line: str) -> None:
        """Show the last state for good.

        Args:
            line: As in `update`.
        """
        self.close()
        print(line, flush=True)

    def close(self) -> None:
        """Give the terminal back."""
        if self._live:
            self._live.stop()
            self._live = None

    def __exit__(self, *_: object) -> None:
        self.close()


class StepLog(contextlib.AbstractContextManager["StepLog"]):
    """A line for every step that is done, and on a terminal a bar and the time left below them."""

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
        """Say that another step is done.

        Args:
            done: How many are done.
            total: How many there are.
            text: What was done, text of anyone.
        """
        line = f"{done:4}/{total} {time.monotonic() - self._begun:7.0f} s  {plain(text)}"
        print(line, flush=True)  # rich prints it above the bar
        self._bar.update(self._task, completed=done, total=total, visible=True)

    def __exit__(self, *_: object) -> None:
        self._bar.stop()


def plain(text: str) -> str:
    r"""Return text of others in one line, without the characters a terminal would obey.

    Args:
        text: May come from data, models or parameters.

    >>> plain("Mia\x1b[2J lives\nin Rome.")
    'Mia\ufffd[2J lives in Rome.'
    """
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
