"""Pytest plugin for nbval: kernels see what the pipeline gives them, runs go to a folder of their
own, so that a test never touches a user's runs, and a busy machine may take its time."""

from __future__ import annotations

import os
import tempfile

from finemem_lib.cli.run import KERNEL_ENVIRONMENT
from tests.helpers.patience import LAST_RESORT

os.environ.update(KERNEL_ENVIRONMENT)
os.environ["FINEMEM_RUNS_DIR"] = tempfile.mkdtemp(prefix="finemem-nbval-")


def pytest_collection_modifyitems(items: list) -> None:
    """Raise nbval's fixed five seconds between the outputs of a cell."""
    for item in items:
        if hasattr(item, "output_timeout"):
            item.output_timeout = LAST_RESORT
