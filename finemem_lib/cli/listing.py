"""`finemem list`: list the runs, one line each or as JSON."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from finemem_lib.cli.manifest import read_manifest
from finemem_lib.runs.run import recorded, runs_folder
from finemem_lib.util.console import EXIT_CODES, print_table

COLUMNS = ("started", "run", "status", "profile", "notebooks", "seconds")


def add_command(commands: Any) -> None:
    """Add `finemem list` to the command line."""
    command = commands.add_parser("list", help="show the runs")
    command.set_defaults(command=_list_command)
    command.add_argument("--json", action="store_true", help="print JSON instead of a table")


def _list_command(options: argparse.Namespace) -> int:
    """Print the runs, the newest last."""
    found = described_runs()
    if options.json:
        print(json.dumps(found, indent=1))
        return EXIT_CODES["ok"]
    print_table([COLUMNS, *map(_row, found)])
    if not found:
        print(f"no runs in {runs_folder()}; start one with `finemem run`")
    return EXIT_CODES["ok"]


def described_runs() -> list[dict[str, Any]]:
    """Return the entries of all runs, the newest last, see `_describe_run`."""
    found = [one for folder in runs_folder().glob("[!.]*/") if (one := _describe_run(folder))]
    return sorted(found, key=lambda one: (one["started"], one["run"]))


def _row(run: dict[str, Any]) -> tuple[str, ...]:
    count = "" if run["notebooks"] is None else f"{run['ok']}/{run['notebooks']}"
    seconds = "" if run["seconds"] is None else f"{run['seconds']:.0f}"
    return (run["started"], run["run"], run["status"], run["profile"] or "", count, seconds)


def _describe_run(folder: Path) -> dict[str, Any] | None:
    """Return the entry of a run in `finemem list`, `None` for a folder that is not a run."""
    nothing = dict.fromkeys(("profile", "seed", "notebooks", "ok", "seconds", "error", "exit_code"))
    about = {"started": "", "run": folder.name, "status": "unreadable", **nothing}
    about["folder"] = str(folder)
    try:
        manifest = read_manifest(folder)
    except ValueError as error:
        if (folder / "manifest.json").exists():
            return about | {"error": str(error)}
        if not (records := recorded(folder)):
            return None
        return about | {
            "started": min(str(record.get("started", "")) for record in records),
            "status": "JupyterLab",
            "notebooks": len(records),
            "ok": sum(record.get("status") == "ok" for record in records),
        }
    known = {name: getattr(manifest, name) for name in about if hasattr(manifest, name)}
    return (
        about
        | known
        | {
            "notebooks": len(manifest.notebooks),
            "ok": len(manifest.notebooks) - len(manifest.remaining()),
        }
    )
