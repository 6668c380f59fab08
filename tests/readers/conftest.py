"""Tests of readers end in time or fail."""

from __future__ import annotations

import signal

import pytest

from tests.helpers.patience import LAST_RESORT


@pytest.fixture(autouse=True)
def nothing_hangs():
    """Every test ends in time or fails."""

    def too_long(*_):
        raise TimeoutError(f"the test took more than {LAST_RESORT:.0f} s")

    former = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(int(LAST_RESORT))
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, former)
