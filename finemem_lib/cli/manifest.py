"""The manifest of a run: parameters, versions, commit, hashes, and the state of every notebook."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finemem_lib import __version__
from finemem_lib.runs import run as run_module
from finemem_lib.util.console import UsageError
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import git_state, repository_root, versions

MANIFEST_VERSION = 1
_ENDS = {"failed": "failed", "timeout": "ran out of time", "interrupted": "was interrupted"}


def read_manifest(folder: Path, settle: bool = False) -> dict[str, Any]:
    """Return the manifest of a run; one that says "running" though its process is gone is returned
    as failed, and with `settle` written so.

    Raises:
        ValueError: it is missing or not readable.
    """
    import psutil

    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        process = manifest["process"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        if not path.exists() and run_module.recorded(folder):
            raise ValueError(
                f"run {folder.name!r} was made in JupyterLab, where each notebook keeps its own "
                "outputs, so there are no executed copies to make a report of: `finemem run` makes "
                f"them and the report, `finemem run --notebooks 05 --reuse {folder.name}` those of "
                "some notebooks on this run's artefacts"
            ) from error
        raise ValueError(
            f"run {folder.name!r} has no readable manifest ({error}); `finemem list` shows the runs"
        ) from error
    if manifest["status"] != "running" or process["host"] != platform.node():
        return manifest
    with contextlib.suppress(psutil.NoSuchProcess):
        found = psutil.Process(process["pid"])
        same = abs(found.create_time() - process["created"]) < 2  # seconds; ids are used again
        if same and found.status() != psutil.STATUS_ZOMBIE:
            return manifest
    manifest |= {
        "status": "failed",
        "exit_code": None,
        "ended": run_module.now(),
        "error": "the process of this run was killed",
    }
    for entry in manifest["notebooks"]:
        if entry["status"] == "running":
            entry |= {"status": "failed", "error": manifest["error"]}
            _add_record(entry, folder)
    _say_why_not_run(manifest)
    if settle:
        write_json(path, manifest)
    return manifest


def _say_why_not_run(manifest: dict[str, Any]) -> None:
    """Give every notebook that an ended run did not come to the reason."""
    stopped = next((e for e in manifest["notebooks"] if e["status"] not in ("ok", "not run")), None)
    for entry in manifest["notebooks"]:
        if entry["status"] == "not run":
            entry["error"] = (
                f"not run: {stopped['name']} {_ENDS[stopped['status']]} before it"
                if stopped
                else f"not run: {manifest['error']}"
            )


def _new_manifest(
    options: argparse.Namespace,
    run_id: str,
    notebooks: Sequence[Path],
    given: Mapping[str, Any],
    resolved: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    seeds = {values.get("seed") for values in resolved.values()}
    sources = dict.fromkeys(str(s) for values in resolved.values() for s in values.get("data", ()))
    return {
        "schema_version": MANIFEST_VERSION,
        "run_id": run_id,
        "status": "running",
        "exit_code": None,
        "error": None,
        "started": run_module.now(),
        "ended": None,
        "seconds": None,
        "command": ["finemem", *options.command_line],
        "profile": options.profile,
        "notebooks_dir": str(notebooks[0].parent) if options.notebooks_dir else None,
        "parameters_given": dict(given),
        "seed": seeds.pop() if len(seeds) == 1 else None,
        "reuse": options.reuse,
        "inputs": {source: _data_hash(source) for source in sources},
        "outputs": {},
        "versions": {"finemem": __version__, **versions()},
        "git": git_state(repository_root()),
        "platform": platform.platform(),
        "cpus": os.cpu_count(),
        "peak_memory_mb": None,
        "process": _this_process(),
        "resumed": [],
        "notebooks": [
            {
                "name": path.stem,
                "source_sha256": _source_hash(path),
                "status": "not run",
                "seconds": None,
                "parameters": resolved[path.stem],
                "reads": [],
                "writes": [],
                "error": None,
            }
            for path in notebooks
        ],
    }


def _this_process() -> dict[str, Any]:
    import psutil

    return {"pid": os.getpid(), "created": psutil.Process().create_time(), "host": platform.node()}


def _data_hash(source: str) -> str | None:
    """Return the hash of a data file, `None` for a data set on the hub."""
    try:
        path = run_module.locate(source)
        return None if path is None else run_module.sha256(path)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def _source_hash(path: Path) -> str:
    """Hash what a notebook says, without its outputs and metadata."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]
    return hashlib.sha256(json.dumps(source).encode()).hexdigest()


def _add_record(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy what a notebook read, wrote and asked from its record into its entry; return it."""
    record = run_module.read_record(folder, entry["name"])
    entry |= {
        "reads": list(record.get("reads", ())),
        "writes": list(record.get("writes", ())),
        "peak_memory_mb": record.get("peak_memory_mb"),
        "models": record.get("models", []),
    }
    return record
