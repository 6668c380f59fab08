"""`finemem init`: make a folder of notebooks, profiles and shipped data for the user to edit."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import finemem_lib
from finemem_lib.util.console import EXIT_CODES, UsageError, check_output_folder, interruptible
from finemem_lib.util.files import real_path, write_json, written_beside
from finemem_lib.util.provenance import FOLDER_MARK, workbench_root

PATTERNS = Path(__file__).with_name("workbench_files.txt")
"""File with the patterns, relative to the repository's root, of the files that a wheel contains and
`finemem init` copies."""

PACKAGE = Path(finemem_lib.__file__).parent
CARRIED = PACKAGE / "workbench"
"""Folder of a wheel into which the build copies the files in `PATTERNS`."""


def add_command(commands: Any) -> None:
    """Add `finemem init` to the command line."""
    command = commands.add_parser(
        "init",
        help="make a folder with notebooks, profiles and data to work in",
        description="Copies notebooks, profiles, designs, model roles, schedulers and shipped data "
        "into a new or empty folder. The copies are yours to edit; `finemem` uses them in that "
        "folder and below.",
    )
    command.set_defaults(command=_init_command, last_line=True)
    command.add_argument("folder", metavar="FOLDER", type=Path, help="a new or empty folder")


def _init_command(options: argparse.Namespace) -> int:
    """Create the folder, print the next commands, and return the exit code."""
    folder = real_path(options.folder)
    check_folder(folder)
    with interruptible():
        count = _make_folder(folder)
    print(f"{count} files in {folder}, yours to edit")
    print("next: change into it, then `finemem run`, or `jupyter lab notebooks`")
    options.result = {"folder": folder}
    return EXIT_CODES["ok"]


def check_folder(folder: Path) -> None:
    """Check that a folder can be created, or is empty and not the working directory.

    Args:
        folder: An absolute path without symbolic links.

    Raises:
        UsageError: the folder is not empty, is the working directory, or cannot be written.
    """
    if folder.is_dir():
        if found := sorted(path.name for path in folder.iterdir()):
            raise UsageError(
                f"init: {folder} is not empty ({len(found)} entries, such as {found[0]!r}), "
                "expected a new or an empty folder; name another one. Nothing was changed"
            )
        if folder == Path.cwd():  # replaced by the new one, it would be lost to the shell
            raise UsageError(
                f"init: {folder} is the folder you are in, expected another one; name a new "
                "folder, such as `finemem init workbench`. Nothing was changed"
            )
    for beside in (folder.with_name(f"{folder.name}{end}") for end in (".tmp", ".former")):
        if os.path.lexists(beside):  # `written_beside` uses these names
            raise UsageError(
                f"init: {beside} exists, and {folder.name} cannot be made without a temporary "
                "folder of that name; move it away, or name another folder. Nothing was changed"
            )
    check_output_folder(folder, "init")


def _make_folder(folder: Path) -> int:
    """Copy the files to a folder, which is created atomically; return their number."""
    source = CARRIED if CARRIED.is_dir() else PACKAGE.parent
    with written_beside(folder) as beside:
        count = 0
        for path in carried_files(source):
            target = beside / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)  # without the mode: an installed file may be read-only
            if path.stat().st_mode & 0o100:
                target.chmod(target.stat().st_mode | 0o111)
            count += 1
        write_json(beside / FOLDER_MARK, {"version": finemem_lib.__version__})
        if folder.is_dir():
            folder.rmdir()  # fails if it is no longer empty
    return count


def carried_files(root: Path) -> Iterator[Path]:
    """Yield the files that match `PATTERNS`, in order.

    Args:
        root: Root of the repository, or `CARRIED`.
    """
    for pattern in PATTERNS.read_text(encoding="utf-8").split():
        yield from sorted(path for path in root.glob(pattern) if path.is_file())


def version_note() -> str:
    """Return a warning if another version of the library made the folder in use, otherwise ""."""
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
        made_by = json.loads((workbench_root() / FOLDER_MARK).read_text("utf-8"))["version"]
        if made_by != finemem_lib.__version__:
            return (
                f"{workbench_root()} was made by version {made_by!s:.20}, this is "
                f"{finemem_lib.__version__}; if a notebook fails, make a new folder with "
                "`finemem init` and repeat your changes there"
            )
    return ""
