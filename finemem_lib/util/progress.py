"""Progress and estimated time remaining."""

from __future__ import annotations

import time
from collections.abc import Callable


class Progress:
    """Words for how much is done and how long the rest will take.

    The pace is that since the first call, so what an earlier, stopped process did does not count
    as fast.

    >>> clock = iter([0.0, 20.0]).__next__
    >>> progress = Progress(75, "updates", clock)
    >>> progress(10)
    '10/75 updates'
    >>> progress(15)
    '15/75 updates, about 4 min left'
    """

    def __init__(self, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing done.

        Args:
            total: How many units there are.
            unit: Their name in the plural.
            clock: Seconds from any start.
        """
        self.total = total
        self.unit = unit
        self._clock = clock
        self._first: tuple[int, float] | None = None

    def __call__(self, done: int) -> str:
        """Return the line to show.

        Args:
            done: Units that are done, those of an earlier process included.
        """
        now = self._clock()
        begun, since = self._first = self._first or (done, now)
        line = f"{done}/{self.total} {self.unit}"
        if not begun < done < self.total:
            return line
        return f"{line}, {about((now - since) / (done - begun) * (self.total - done))} left"


def about(seconds: float) -> str:
    """Return a duration, rounded, in the unit that suits it.

    Args:
        seconds: The duration; less than one counts as one.

    >>> [about(seconds) for seconds in (0.2, 89, 100, 5000, 9000)]
    ['about 1 s', 'about 89 s', 'about 2 min', 'about 83 min', 'about 2.5 h']
    """
    if seconds < 90:
        return f"about {max(seconds, 1):.0f} s"
    return f"about {seconds / 60:.0f} min" if seconds < 5400 else f"about {seconds / 3600:.1f} h"
