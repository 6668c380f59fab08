"""mypy finds no wrong type: strict in core and credit, clean everywhere."""

from __future__ import annotations

import subprocess
import sys

from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT


def test_types_are_right():
    done = subprocess.run(
        [sys.executable, "-m", "mypy"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
