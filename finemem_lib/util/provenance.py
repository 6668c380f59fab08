"""Repository root, versions and the git commit: what makes a run repeatable."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

RECORDED_PACKAGES = (
    "torch transformers trl peft accelerate datasets tokenizers safetensors numpy pandas pyarrow "
    "rank-bm25 rouge-score pydantic plotly jupyterlab ipywidgets papermill nbclient nbconvert "
    "openai unsloth"
).split()

FETCHED = "data/models/"
"""Begins the paths, relative to the repository root, of models that `finemem fetch` writes."""


def repository_root() -> Path:
    """Return the checkout this library runs from.

    Notebooks and the command line resolve relative paths against it, whatever folder a kernel was
    started in.

    Raises:
        FileNotFoundError: the library was installed without its repository.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / "notebooks" / "profiles").is_dir():
        raise FileNotFoundError(
            f"no notebooks/profiles beside {root}: the workbench runs from a checkout; "
            "clone the repository and install it with `make setup` (pip install -e .)"
        )
    return root


def cpu_threads() -> int | None:
    """Return the CPU threads that OMP_NUM_THREADS asks for, `None` where it names no number."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdecimal() and int(threads) else None


def versions(packages: Sequence[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Return the version of Python and of every installed package that results depend on.

    Args:
        packages: Their names; those that are not installed are left out.
    """
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """Return in words what this process runs on."""
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), {memory:.0f} GB"


def git_state(root: Path) -> dict[str, str | bool | None]:
    """Return the commit of a checkout and whether its files differ from it, `None` without git.

    Args:
        root: The checkout; a folder within another repository counts as one without git.
    """

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments],
                capture_output=True,
                text=True,
                timeout=20,
                check=True,
                env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
            )
        except (OSError, subprocess.SubprocessError):
            return None
        return done.stdout.strip()

    top = git("rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != root.resolve():
        return {"commit": None, "dirty": None}
    status = git("status", "--porcelain")
    return {"commit": git("rev-parse", "HEAD"), "dirty": None if status is None else bool(status)}
