"""Progress and estimated time remaining."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """A text with the number of finished units and the estimated time remaining.

    The rate is measured from the first call on, so units finished by an earlier process do not
    count.

    >>> clock = iter([0.0, 20.0]).__next__
    >>> progress = Progress(75, "updates", clock)
    >>> progress(10)
    '10/75 updates'
    >>> progress(15)
    '15/75 updates, about 4 min left'
    """

    def __init__(self, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Create an estimate without finished units.

        Args:
            total: Total number of units.
            unit: Name of the units, in the plural.
            clock: Returns the time in seconds, from any start.
        """
        self.total = total
        self.unit = unit
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int) -> str:
        """Return the progress as one line of text.

        Args:
            done: Number of finished units, including those of an earlier process.
        """
        now = self._clock()
        begun, since = self._first = self._first or (done, now)
        line = f"{done}/{self.total} {self.unit}"
        if not begun < done < self.total:
            return line
        return f"{line}, {about((now - since) / (done - begun) * (self.total - done))} left"


def about(seconds: float) -> str:
    """Return a rounded duration as text, in seconds, minutes or hours.

    Args:
        seconds: The duration in seconds; less than 1 counts as 1.

    >>> [about(seconds) for seconds in (0.2, 89, 100, 5000, 9000)]
    ['about 1 s', 'about 89 s', 'about 2 min', 'about 83 min', 'about 2.5 h']
    """
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
