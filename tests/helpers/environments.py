"""Virtual environments of their own, for packages that need other versions than the workbench."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.patience import LAST_RESORT


def environment_with(folder: Path, *packages: str) -> Path:
    """Make an environment with packages from the index, or skip the test where none answers."""
    subprocess.run([sys.executable, "-m", "venv", folder], check=True, timeout=LAST_RESORT)
    pip = [folder / "bin/python", "-m", "pip", "install", "--quiet", "--retries", "1"]
    done = subprocess.run([*pip, *packages], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:]
        pytest.skip(f"the package index gave no {' and no '.join(packages)}: {''.join(last)}")
    return folder
