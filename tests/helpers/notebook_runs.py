"""Runs of the notebooks through the command line, at small sizes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT

SMALL = [
    "max_instances=2",
    "num_chunks=4",
    "resamples=100",
    "04.updates=1",
    "04.held_out=4",
    "04.instances_per_update=2",
    "04.num_generations=3",
    "07.updates=1",
    "07.held_out=4",
    "07.instances_per_update=2",
    "07.num_generations=2",
    "07.num_seeds=1",
]

SMALL_LESSON = ["10.streams=2"]
"""Of a notebook that the default profile leaves out."""

SMALL_RUN = "small"


class SmallRun(NamedTuple):
    """A run of all notebooks at small sizes: its folder, and its metrics by notebook number."""

    folder: Path
    metrics: dict[str, dict[str, float]]


def make_small_run(runs: Path) -> SmallRun:
    """Run all notebooks at small sizes, as run `SMALL_RUN`."""
    values = settings([*SMALL, *SMALL_LESSON])
    metrics = finemem(runs, "--run-id", SMALL_RUN, "--notebooks", "01-12", *values)
    return SmallRun(runs / SMALL_RUN, metrics)


def finemem(folder: Path, *arguments: str) -> dict[str, dict[str, float]]:
    """Run the command and return the metrics of the run, by notebook number."""
    done = subprocess.run(
        [sys.executable, "-m", "finemem_lib", "run", *arguments],
        cwd=ROOT,
        env={**os.environ, "FINEMEM_RUNS_DIR": str(folder)},
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    run_id = arguments[arguments.index("--run-id") + 1]
    manifest = json.loads((folder / run_id / "manifest.json").read_text())
    assert manifest["status"] == "ok"
    assert (folder / run_id / "report.html").stat().st_size > 1_000_000
    metrics = json.loads((folder / run_id / "metrics.json").read_text())
    return {name[:2]: values for name, values in metrics.items()}


def settings(values: list[str]) -> list[str]:
    return [word for value in values for word in ("--set", value)]
