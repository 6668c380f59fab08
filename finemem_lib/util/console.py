"""What the commands share: exit codes, refusals, interrupts, tables, text of others in a line."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator, Sequence
from typing import Any

EXIT_CODES = {"ok": 0, "failed": 1, "timeout": 3, "interrupted": 130}
BAD_USAGE = 2


class UsageError(Exception):
    """The command cannot be carried out as given; nothing was started or written."""


@contextlib.contextmanager
def interruptible(once: bool = True) -> Iterator[None]:
    """Turn SIGTERM and a lost terminal into KeyboardInterrupt, so that a command can end what it
    began; with `once`, further signals are ignored meanwhile."""
    former = {
        number: signal.getsignal(number)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }

    def interrupt(number: int, frame: Any) -> None:
        for each in former if once else ():  # a second one must not cut the end short
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


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns; the first is the header, and alone it is not printed."""
    if len(rows) > 1:
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
            print("  ".join(cells).rstrip())


def plain(text: str) -> str:
    r"""Return text of others in one line, without the characters a terminal would obey.

    >>> plain("Mia\x1b[2J lives\nin Rome.")
    'Mia\ufffd[2J lives in Rome.'
    """
    line = " ".join(text.split())
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in line)
