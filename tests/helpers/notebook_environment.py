"""Pytest plugin for nbval: kernels see what the pipeline gives them, and runs go to a folder of
their own, so that a test never touches a user's runs."""

from __future__ import annotations

import os
import tempfile

from finemem_lib.cli.run import KERNEL_ENVIRONMENT

os.environ.update(KERNEL_ENVIRONMENT)
os.environ["FINEMEM_RUNS_DIR"] = tempfile.mkdtemp(prefix="finemem-nbval-")
