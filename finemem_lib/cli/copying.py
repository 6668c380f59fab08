"""Copy the notebooks, report and manifest of a run to S3 or Google Cloud Storage.

papermill's handlers write there, with credentials from the environment. This module does not read
or store credentials.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finemem_lib.cli.manifest import read_manifest
from finemem_lib.cli.rescore import existing_run
from finemem_lib.util.console import EXIT_CODES, UsageError, UsageErrors, plain

EXTRAS = {"s3": ("s3", "boto3"), "gs": ("gcs", "gcsfs")}
"""By URL scheme, the project's extra and the module that papermill's handler imports."""


def address(text: str) -> str:
    """Parse the address of a folder in object storage on the command line.

    Args:
        text: The address, s3://BUCKET/PREFIX or gs://BUCKET/PREFIX.

    Raises:
        argparse.ArgumentTypeError: it has another form, or may contain credentials; the message
            does not repeat it.

    >>> address("s3://results/nightly/")
    's3://results/nightly'
    """
    if not re.fullmatch(r"(s3|gs)://[a-z0-9][a-z0-9._-]+(/[\w.=+-]+)*/?", text):
        raise argparse.ArgumentTypeError(
            "expected s3://BUCKET/PREFIX or gs://BUCKET/PREFIX, of letters, digits and . _ = + -; "
            "give credentials in environment variables"
        )
    return text.rstrip("/")


def add_command(commands: Any) -> None:
    """Add `finemem copy` to the command line."""
    command = commands.add_parser(
        "copy",
        help="copy the notebooks, report and manifest of a run to S3 or Google Cloud Storage",
        description="Writes them below TO/RUN and replaces an earlier copy of the run there. "
        "Credentials come from the environment. Needs the extra s3 or gcs.",
    )
    command.set_defaults(command=_copy_command, last_line=True)
    command.add_argument("run", metavar="RUN")
    command.add_argument("to", type=address, metavar="TO", help="s3://BUCKET/PREFIX or gs://...")


def _copy_command(options: argparse.Namespace) -> int:
    """Copy a run and print the files that could not be copied."""
    folder = existing_run(options.run)
    with UsageErrors(ValueError):
        read_manifest(folder, settle=True)
    check_extra(options.to)
    files = copied_files(folder)
    missing = copy_run(folder, options.to, files)
    options.result = {"run": folder.name, "copied": len(files) - len(missing), "of": len(files)}
    return EXIT_CODES["failed" if missing else "ok"]


def check_extra(to: str) -> None:
    """Check that the extra for an address is installed.

    Args:
        to: The address.

    Raises:
        UsageError: the extra is missing.
    """
    extra, module = EXTRAS[to.partition("://")[0]]
    if importlib.util.find_spec(module) is None:
        raise UsageError(
            f"{to} needs the extra {extra}, which is not installed; in a checkout "
            f"`pip install --constraint constraints.txt '.[{extra}]'`, elsewhere `pip install "
            f"'fine-mem[{extra}]'`"
        )


def copied_files(folder: Path) -> list[Path]:
    """Return the files of a run to copy, the manifest last, which marks the copy as complete.

    Args:
        folder: Folder of the run.
    """
    named = [folder / name for name in ("metrics.json", "report.html", "manifest.json")]
    return [*sorted((folder / "notebooks").glob("*.ipynb")), *filter(Path.exists, named)]


def copy_run(folder: Path, to: str, files: Sequence[Path]) -> list[str]:
    """Copy files of a run, print which could not be copied, and return their names.

    Each object is written atomically. The manifest is not copied if another file is missing.

    Args:
        folder: Folder of the run.
        to: The address, to which the run's id is appended.
        files: The files of `copied_files`.
    """
    from papermill.iorw import papermill_io

    missing: list[str] = []
    for path in files:
        name = path.relative_to(folder).as_posix()
        if missing and path.name == "manifest.json":
            missing.append(name)
            continue
        try:
            text = path.read_text(encoding="utf-8")
            papermill_io.write(text, f"{to}/{folder.name}/{name}", [path.suffix])
        except Exception as error:  # botocore and gcsfs raise various errors
            missing.append(name)
            why = plain(f"{type(error).__name__}: {error}")
            print(f"not copied: {name} ({why})", file=sys.stderr)
    if missing:
        print(
            f"{len(missing)} of {len(files)} files are not at {to}/{folder.name}; when the cause "
            f"is gone: finemem copy {folder.name} {to}",
            file=sys.stderr,
        )
    else:
        print(f"copied: {len(files)} files to {to}/{folder.name}")
    return missing
