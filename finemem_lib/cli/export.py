"""`finemem export`: export the rollouts of a run with credit per step, for agent viewers."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finemem_lib.cli import trackio_traces
from finemem_lib.cli.conversations import Rollout, credited_rollouts, kept_credit
from finemem_lib.cli.inspect_log import inspect_log, log_name
from finemem_lib.cli.rescore import (
    Found,
    add_run_and_artefact,
    existing_run,
    new_results,
    played,
    results_card,
)
from finemem_lib.runs.run import written_entry
from finemem_lib.util.console import EXIT_CODES, UsageError, plain
from finemem_lib.util.files import write_json, written_beside

PASSED_ON = ("HOME", "LANG", "PATH", "TMPDIR")
"""The environment variables passed to the Python of a viewer, without tokens and addresses."""

TRACKIO = "trackio>=0.43"
"""The versions of Trackio whose traces have spans."""


def add_command(commands: Any) -> None:
    """Add `finemem export` to the command line."""
    command = commands.add_parser(
        "export",
        help="write rollouts with step credits for the viewers of Trackio or Inspect",
        description="Writes the rollouts of a run into its new folder exported/NAME: chunks, "
        "operations, questions with retrieved items, answers and scores, and the reward and the "
        "credit of every step. The credit of rules with further reader calls is included if "
        "`finemem recredit` has computed it.",
    )
    command.set_defaults(command=_export_command, last_line=True)
    add_run_and_artefact(command)
    command.add_argument("--to", required=True, choices=("trackio", "inspect"), help="the viewer")
    command.add_argument("--name", metavar="NAME", help="of the new folder (default: the viewer's)")
    command.add_argument(
        "--python",
        default=sys.executable,
        metavar="PYTHON",
        help="the interpreter that has trackio (default: this one)",
    )


def _export_command(options: argparse.Namespace) -> int:
    """Write the rollouts of a run for a viewer, and print how to open it."""
    folder = existing_run(options.run)
    target = new_results(folder, "exported", options.name or options.to)
    if options.to == "trackio":
        _check_trackio(options.python)
    found = played(folder, options.artefact)
    groups, without = _by_manager(folder, found)
    card = results_card(options, folder, found) | {"without": without}
    with written_beside(target) as beside:
        beside.mkdir()
        if options.to == "inspect":
            _write_logs(beside / "logs", folder, groups)
        else:
            _write_traces(beside / "store", folder, groups, options.python)
        write_json(beside / "how.json", card)
    for artefact, rules in without.items():
        for rule, reason in rules.items():
            print(f"{artefact} without {rule}: {plain(reason)}", file=sys.stderr)
    rollouts = sum(map(len, groups))
    print(f"{rollouts} rollouts: {target}\nopen them with: {_viewer(options, target)}")
    options.result = {"run": folder.name, "rollouts": rollouts, "export": target}
    return EXIT_CODES["ok"]


def _by_manager(
    folder: Path, found: Found
) -> tuple[list[list[Rollout]], dict[str, dict[str, str]]]:
    """Return the rollouts of every artefact by manager, and the rules without credit for them."""
    groups: defaultdict[tuple[str, str], list[Rollout]] = defaultdict(list)
    without = {}
    for artefact, trajectories in found.items():
        rollouts, missing = credited_rollouts(artefact, trajectories, kept_credit(folder, artefact))
        for one in rollouts:
            groups[artefact, one.trajectory.manager].append(one)
        if missing:
            without[artefact] = missing
    return list(groups.values()), without


def _write_logs(logs: Path, folder: Path, groups: Sequence[Sequence[Rollout]]) -> None:
    logs.mkdir()
    for rollouts in groups:
        entry = written_entry(folder, rollouts[0].artefact)
        assert entry is not None  # it was read
        log = inspect_log(folder.name, entry["saved"], rollouts)
        write_json(logs / log_name(log), log)


def _check_trackio(python: str) -> None:
    """Raise UsageError if a Python lacks Trackio."""
    look = "import importlib.util as u; raise SystemExit(u.find_spec('trackio') is None)"
    try:
        if not subprocess.run([python, "-c", look], capture_output=True).returncode:
            return
    except OSError as error:
        raise UsageError(f"--python {python} cannot be started ({error.strerror})") from error
    raise UsageError(
        f"trackio is not installed for {python}. It needs an older pillow than the workbench, so "
        f"give it an environment of its own: `python3 -m venv viewer && viewer/bin/pip install "
        f"'{TRACKIO}'`, then --python viewer/bin/python"
    )


def _write_traces(
    store: Path, folder: Path, groups: Sequence[Sequence[Rollout]], python: str
) -> None:
    store.mkdir()
    runs = [trackio_traces.trackio_run(folder.name, rollouts) for rollouts in groups]
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    done = subprocess.run(
        [python, "-I", trackio_traces.__file__],  # without this folder among its modules
        input=json.dumps(runs),
        env=environment | {"TRACKIO_DIR": str(store), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["it said nothing"]
        raise UsageError(
            f"trackio of {python} could not write the traces ({plain(last[0])}); {TRACKIO} can"
        )


def _viewer(options: argparse.Namespace, target: Path) -> str:
    """Return the command that opens the exported files."""
    if options.to == "inspect":
        return f"inspect view --log-dir {shlex.quote(str(target / 'logs'))}"
    command = Path(options.python).with_name("trackio")
    store = shlex.quote(str(target / "store"))
    return f"TRACKIO_DIR={store} {shlex.quote(str(command))} show --project {options.run}"
