"""Provenance of results: folder of the notebooks, package versions, hardware and git commit."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from finemem_lib.util.files import write_json, written_beside

RECORDED_PACKAGES = (
    "torch transformers trl peft accelerate datasets tokenizers safetensors numpy pandas pyarrow "
    "rank-bm25 rouge-score pydantic plotly jupyterlab ipywidgets papermill nbclient nbconvert "
    "openai unsloth"
).split()

FETCHED = "data/models/"
"""Folder of the models that `finemem fetch` writes, relative to `workbench_root`."""


FOLDER_MARK = ".finemem.json"
"""File that marks a folder made by `finemem init`; it holds the version of the library."""

ROOT_UID = 0
"""User id of root, which may write to every folder."""


class NoWorkbenchError(FileNotFoundError):
    """There is neither a checkout nor a folder of `finemem init` to read notebooks from."""


def workbench_root() -> Path:
    """Return the folder that notebooks, profiles and shipped data are read from.

    This is the nearest folder around the working directory that `finemem init` made or that is the
    checkout of this library, else that checkout. A folder of another account is not used, because
    its notebooks would be executed. Notebooks and the command line resolve relative paths against
    the returned folder.

    Raises:
        NoWorkbenchError: the library was installed without its repository, and the working
            directory is in no folder of `finemem init`.
    """
    here, root = Path.cwd(), code_root()
    checkout = root if (root / "notebooks" / "profiles").is_dir() else None
    for folder in (here, *here.parents):
        mark = folder / FOLDER_MARK
        if folder == checkout or mark.is_file() and mark.stat().st_uid in (os.getuid(), ROOT_UID):
            return folder
    if checkout:
        return checkout
    raise NoWorkbenchError(
        f"no notebooks found: {here} is in no folder that `finemem init` made for this account, "
        f"and {root} is no checkout; expected one of them; run `finemem init FOLDER`, then `cd "
        "FOLDER`"
    )


def code_root() -> Path:
    """Return the folder that holds this library: its checkout, or where it is installed."""
    return Path(__file__).resolve().parents[2]


def cpu_threads() -> int | None:
    """Return the number of CPU threads in OMP_NUM_THREADS, or `None` if it is not a number."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    return int(threads) if threads.isdecimal() and int(threads) else None


def versions(packages: Sequence[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Return the versions of Python and of the installed packages.

    Args:
        packages: Names of packages; packages that are not installed are left out.
    """
    found = {"python": sys.version.split()[0]}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def hardware() -> str:
    """Return a description of this machine: cores, architecture, system, memory in GB."""
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    return f"{os.cpu_count()} cores ({platform.machine()}, {platform.system()}), {memory:.0f} GB"


def git_state(root: Path) -> dict[str, str | bool | None]:
    """Return the commit of a checkout and whether its files differ from it; `None` without git.

    Args:
        root: Root of the checkout; a folder inside another repository counts as without git.
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


def write_measured(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    command: str,
    git: Mapping[str, str | bool | None],
    **more: Any,
) -> None:
    """Write measured rows, and next to them a card that records how they were made.

    Args:
        path: File of the rows, with suffix ".jsonl"; the card has the suffix ".json".
        rows: The rows, one JSON object each.
        command: The command that made the rows.
        git: `git_state` at the start of the command.
        more: Further fields of the card, such as "seed" and "seconds".
    """
    with written_beside(path) as beside:
        beside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    card = {"command": command, "hardware": hardware(), **more, "git": git, "versions": versions()}
    write_json(path.with_suffix(".json"), card)
