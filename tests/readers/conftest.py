"""Tests of readers end in time or fail, and share a tiny language model."""

from __future__ import annotations

import signal

import pytest

from tests.helpers.chat_models import save_tiny_model
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


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """The folder of a tiny language model that chats."""
    folder = tmp_path_factory.mktemp("model")
    save_tiny_model(folder)
    return str(folder)
