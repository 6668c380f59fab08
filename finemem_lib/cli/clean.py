"""`finemem clean`: remove old runs, except the last successful one and those that are running."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from finemem_lib.cli.manifest import ACTIVE, Manifest, read_manifest
from finemem_lib.runs.run import runs_folder
from finemem_lib.util.console import EXIT_CODES, interruptible, positive, print_table
from finemem_lib.util.files import discard, exclusive_lock

REMOVED = ".removed"
"""Suffix of folders whose removal is not complete."""


def add_command(commands: Any) -> None:
    """Add `finemem clean` to the command line."""
    command = commands.add_parser(
        "clean",
        help="remove old runs",
        description="Removes all but the newest runs. These also stay: the last run that is ok, "
        "runs that are running, runs whose artefacts an unfinished run uses, runs made in "
        "JupyterLab, and folders that do not hold a readable run.",
    )
    command.set_defaults(command=clean_command, last_line=True)
    command.add_argument(
        "--keep", type=positive, required=True, metavar="N", help="number of newest runs that stay"
    )
    command.add_argument(
        "--dry-run", action="store_true", help="remove nothing, print what would be removed"
    )


def clean_command(options: argparse.Namespace) -> int:
    """Remove the runs without a reason to stay, print which, and return the exit code.

    Args:
        options: The command line.
    """
    root = runs_folder()
    runs = dict(_readable_runs(root))
    stays = reasons_to_stay(list(runs.values()), options.keep)
    removed = [folder for folder, run in runs.items() if run.run_id not in stays]
    sizes = {folder: _megabytes(folder) for folder in removed}
    print_table(
        [("started", "run", "status", "MB", "result")]
        + [
            (
                run.started,
                folder.name,
                run.status,
                f"{sizes[folder]:.1f}" if folder in sizes else "",
                stays.get(run.run_id, "would be removed" if options.dry_run else "removed"),
            )
            for folder, run in runs.items()
        ]
    )
    options.result = {"kept": len(stays), "removed": 0, "folder": root}
    if options.dry_run:
        options.result["would_remove"] = len(removed)
        return EXIT_CODES["ok"]
    problems = []
    with interruptible():
        for left in root.glob(f".*{REMOVED}"):
            discard(left)
        for folder in removed:
            if problem := _remove(folder):
                problems.append(f"{folder.name} stays: {problem}")
            else:
                options.result["removed"] += 1
    print("\n".join(problems), end="\n" * bool(problems), file=sys.stderr)
    return EXIT_CODES["failed" if problems else "ok"]


def _readable_runs(root: Path) -> Iterator[tuple[Path, Manifest]]:
    """Yield the runs of a folder that have a readable manifest, the newest first."""
    found = []
    for folder in root.glob("[!.]*/"):
        try:
            manifest = read_manifest(folder)
        except ValueError:
            continue
        if manifest.run_id == folder.name and not folder.is_symlink():
            found.append((manifest.started, folder, manifest))
    for _, folder, manifest in sorted(found, key=lambda one: one[:2], reverse=True):
        yield folder, manifest


def reasons_to_stay(runs: Sequence[Manifest], keep: int) -> dict[str, str]:
    """Return the reasons why runs are kept, by run id; the others may be removed.

    Args:
        runs: All runs, the newest first.
        keep: Number of the newest runs to keep.
    """
    stays = {run.run_id: f"stays: {run.status}" for run in runs if run.status in ACTIVE}
    if last_good := next((run.run_id for run in runs if run.status == "ok"), None):
        stays[last_good] = "stays: the last one that is ok"
    for place, run in enumerate(runs[:keep], start=1):
        stays.setdefault(run.run_id, f"stays: number {place} of the newest {keep}")
    known = {run.run_id: run for run in runs}
    needing = [known[run_id] for run_id in stays]
    while needing:
        run = needing.pop()
        if run.reuse in known and run.reuse not in stays and run.remaining():
            stays[run.reuse] = f"stays: {run.run_id}, which is not finished, reuses it"
            needing.append(known[run.reuse])
    return stays


def _megabytes(folder: Path) -> float:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6


def _remove(folder: Path) -> str | None:
    """Remove a run; return the reason if that fails, otherwise `None`.

    A rename takes the run off the list at once; its files are deleted afterwards.
    """
    aside = folder.with_name(f".{folder.name}{REMOVED}")
    try:
        busy = "another process is just resuming it"
        with exclusive_lock(folder / "resume.lock", busy):
            if read_manifest(folder).status in ACTIVE:
                return "it is running now"
            os.rename(folder, aside)
    except (OSError, ValueError) as error:
        return str(error)
    discard(aside)
    return f"some of its files could not be removed: {aside}" if aside.exists() else None
