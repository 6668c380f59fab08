"""How tests wait: for a condition, and minutes before they give up, however busy the machine is."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LAST_RESORT = 600.0
"""Seconds after which a test gives up on a process, a kernel, a server or a page."""


def wait_until(condition: Callable[[], T], seconds: float = LAST_RESORT, pause: float = 0.1) -> T:
    """Return the first true result of a condition that is asked every `pause` seconds."""
    limit = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < limit, f"waited {seconds:.0f} s in vain"
        time.sleep(pause)
    return result


def eventually(check: Callable[[], None], seconds: float = LAST_RESORT) -> None:
    """Repeat a check until its assertions hold; at the end, its own error says which does not."""
    limit = time.monotonic() + seconds
    while True:
        try:
            return check()
        except AssertionError:
            if time.monotonic() > limit:
                raise
        time.sleep(0.1)


def execute(notebook: object) -> None:
    """Run a notebook in a kernel of its own, without a front end."""
    from nbclient import NotebookClient

    NotebookClient(notebook, timeout=int(LAST_RESORT), startup_timeout=int(LAST_RESORT)).execute()
