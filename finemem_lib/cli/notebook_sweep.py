"""`finemem sweep NOTEBOOK`: a run for every grid point and seed, and a summary of their metrics.

Each cell is a `finemem run` in a separate process, with its run folder in the folder of the sweep.
Finished cells are kept, stopped ones are resumed.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finemem_lib.cli.grid import SweepCell, grid_points, sweep_cells
from finemem_lib.cli.manifest import ACTIVE, Manifest, read_manifest
from finemem_lib.cli.profiles import (
    Profile,
    load_profile,
    parameters_given,
    select_notebooks,
)
from finemem_lib.cli.report import read_metrics
from finemem_lib.evaluation.intervals import clustered_mean, interval_text
from finemem_lib.figures.sweeps import SweepRow, sweep_metrics
from finemem_lib.runs.run import run_folder
from finemem_lib.util.console import (
    EXIT_CODES,
    StepLog,
    UsageError,
    UsageErrors,
    check_output_folder,
    interruptible,
    print_table,
)
from finemem_lib.util.files import real_path, write_bytes, write_json
from finemem_lib.util.provenance import code_root, git_state, workbench_root, write_measured

BARE_PROFILE, PROFILE_FIELDS = "profile.yaml", ("description", "notebooks")
"""File in the sweep's folder with the profile of a notebook that has none, and its fields."""

POLL = 1.0
"""Seconds between checks of a cell that another process runs."""


def is_notebook(text: str) -> bool:
    """Return whether an argument of `finemem sweep` is the path or number of a notebook.

    Args:
        text: The first word after ``sweep``.
    """
    return text.endswith(".ipynb") or (text.isdecimal() and len(text) <= 2)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `finemem sweep` for notebooks.

    Args:
        parser: The parser of `finemem sweep`.
    """
    notebook = parser.add_argument_group("of a notebook")
    notebook.add_argument(
        "--grid",
        action="append",
        default=[],
        metavar="NAME=V1,V2",
        help="values of a parameter; several parameters are combined (may be given again)",
    )
    notebook.add_argument(
        "--cell",
        nargs="+",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="one point; with --grid, one combined with every point of it (may be given again)",
    )
    notebook.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="a parameter of all cells"
    )
    notebook.add_argument("--profile", default="default", help="a profile of `finemem run`")
    notebook.add_argument("--data", nargs="+", action="extend", metavar="PATH", help="real data")
    notebook.add_argument("--reuse", metavar="RUN", help="take artefacts from this run")


@contextlib.contextmanager
def step_log(folder: Path) -> Iterator[StepLog]:
    """Log the cells of a sweep, and state at an interrupt where the finished ones are.

    Args:
        folder: Folder of the finished cells.

    Raises:
        UsageError: the scheduler, a stored cell or the extra dask is not usable.
    """
    try:
        # Later interrupts count also: Python drops one that arrives while it deletes an object.
        with UsageErrors(ValueError, ModuleNotFoundError), interruptible(once=False):
            with StepLog() as log:
                yield log
    except KeyboardInterrupt:
        print(
            f"interrupted; finished cells are in {folder}, the same command goes on from them",
            file=sys.stderr,
        )
        raise


def sweep_notebook(options: argparse.Namespace) -> int:
    """Run the missing cells, print their table, write the page, and return the exit code.

    Args:
        options: The command line.

    Raises:
        UsageError: an option, file or cell is not usable; nothing was started.
    """
    notebook, folder = _notebook(options), real_path(options.output)
    check_output_folder(folder)
    profile = _profile(options.profile, notebook)
    cells = _cells(options, notebook, profile)
    folder.mkdir(parents=True, exist_ok=True)
    if profile.name == BARE_PROFILE:
        write_json(folder / BARE_PROFILE, {name: getattr(profile, name) for name in PROFILE_FIELDS})
        profile = dataclasses.replace(profile, name=str(folder / BARE_PROFILE))
    sweep = Sweep(folder, notebook, profile.name, tuple(_passed_on(options)), options.reuse)
    sweep.link_reused()
    print(f"{notebook.stem}: {len(cells)} cells, runs of {', '.join(cells[0].notebooks)}")
    if not options.collect:
        with step_log(folder) as log:
            _run(sweep, cells, options.jobs, options.scheduler, log)
    results = [sweep.result(cell) for cell in cells]
    rows = summarise(results)
    summary = _summary(rows)
    print_table([list(one) for one in summary[:1]] + [list(one.values()) for one in summary])
    page = _write(sweep, results, rows, options.command_line)
    bad = [one for one in results if one.status != "ok"]
    for one in bad:
        print(f"{one.status}: {one.cell.key}: {one.error}", file=sys.stderr)
    print(f"page: {page}")
    options.result = {"cells": len(cells), "ok": len(cells) - len(bad), "page": page}
    return EXIT_CODES["failed" if bad else "ok"]


def _notebook(options: argparse.Namespace) -> Path:
    text = options.design
    for name in ("regimes", "variants", "managers"):
        if getattr(options, name):
            raise UsageError(f"--{name} is for designs; a notebook takes --grid, --cell, --seeds")
    if not text.endswith(".ipynb"):
        return select_notebooks(workbench_root() / "notebooks", [text])[0]
    if not (notebook := real_path(text)).is_file():
        raise UsageError(f"notebook {notebook} does not exist; give its path or its number")
    return notebook


def _profile(name: str, notebook: Path) -> Profile:
    """Return the named profile, an empty one if the notebook has no folder of profiles."""
    folder = notebook.parent / "profiles"
    if name == "default" and not folder.is_dir():
        return Profile(BARE_PROFILE, "What the notebook declares.", [notebook.stem], {}, {}, [])
    return load_profile(folder, name)


def _cells(options: argparse.Namespace, notebook: Path, profile: Profile) -> list[SweepCell]:
    """Return the cells after a check of all."""
    if options.reuse:
        with UsageErrors(ValueError):
            read_manifest(run_folder(options.reuse))
    given = parameters_given(options.set, options.data)
    points = grid_points(options.grid, options.cell)
    return sweep_cells(notebook, profile, given, points, options.seeds or [], options.reuse)


def _passed_on(options: argparse.Namespace) -> Iterator[str]:
    """Yield the options of `finemem run` that all cells share."""
    for setting in options.set:
        yield from ("--set", setting)
    if options.data:
        yield from ("--data", *parameters_given([], options.data)["data"])


@dataclass(frozen=True, slots=True)
class CellRun:
    """The result of a cell's run.

    Attributes:
        cell: The cell.
        status: Status of the run, "not run" if there is none.
        error: Why the status is not ok.
        metrics: The metrics of the swept notebook.
        seconds: Wall-clock time of the run.
    """

    cell: SweepCell
    status: str
    error: str
    metrics: Mapping[str, Any]
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Sweep:
    """The properties that all cells share.

    Attributes:
        folder: Folder with the runs of the cells and the files of the sweep.
        notebook: The swept notebook.
        profile: Name or path of the profile.
        options: Further options of `finemem run`.
        reuse: A run whose artefacts all cells reuse.
    """

    folder: Path
    notebook: Path
    profile: str
    options: tuple[str, ...] = ()
    reuse: str | None = None

    def link_reused(self) -> None:
        """Link the reused run into the sweep's folder, where the cells look for runs."""
        if self.reuse and not os.path.lexists(self.folder / self.reuse):
            os.symlink(run_folder(self.reuse), self.folder / self.reuse)

    def manifest(self, cell: SweepCell) -> Manifest | None:
        """Return the manifest of a cell, `None` if it was not started.

        Args:
            cell: The cell.

        Raises:
            ValueError: it cannot be read.
        """
        folder = self.folder / cell.key
        return read_manifest(folder) if folder.exists() else None

    def result(self, cell: SweepCell) -> CellRun:
        """Return the current result of a cell.

        Args:
            cell: The cell.
        """
        try:
            manifest = self.manifest(cell)
            if manifest is None:
                return CellRun(cell, "not run", "the same command runs it", {}, None)
            metrics = read_metrics(self.folder / cell.key).get(self.notebook.stem, {})
        except ValueError as error:
            return CellRun(cell, "unreadable", str(error), {}, None)
        metrics = metrics if manifest.status == "ok" else {}
        return CellRun(cell, manifest.status, manifest.error or "", metrics, manifest.seconds)

    def command(self, cell: SweepCell, begun: bool) -> list[str]:
        """Return the command line that runs or resumes a cell.

        Args:
            cell: The cell.
            begun: Whether the cell has a run to resume.
        """
        finemem = [sys.executable, "-m", "finemem_lib"]
        if begun:
            return [*finemem, "resume", cell.key, "--jobs", "1"]
        reuse = ["--reuse", self.reuse] if self.reuse else []
        return [
            *(*finemem, "run", "--run-id", cell.key, "--profile", self.profile, "--jobs", "1"),
            *("--notebooks-dir", str(self.notebook.parent)),
            *("--notebooks", ",".join(cell.notebooks)),
            *(*reuse, *self.options, *cell.settings),
        ]


@dataclass(slots=True)
class Running:
    """The processes of cells on this machine, which can be stopped together."""

    processes: set[subprocess.Popen[bytes]] = field(default_factory=set)
    stopped: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> int:
        """Run a command to its end and return its exit code; 130 if `stop` was called before.

        Args:
            command: The words of the command.
            environment: All of its environment variables.
            log: File for its output.
        """
        with self._lock:
            if self.stopped:
                return EXIT_CODES["interrupted"]
            with log.open("ab") as output:
                process = subprocess.Popen(
                    command,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,  # Ctrl-C at the terminal reaches only the sweep
                )
            self.processes.add(process)
        code = process.wait()
        with self._lock:
            self.processes.discard(process)
        return code

    def stop(self) -> None:
        """Interrupt all running processes, and start no more."""
        with self._lock:
            self.stopped = True
            for process in self.processes:
                process.send_signal(signal.SIGTERM)


def run_cell(sweep: Sweep, cell: SweepCell, running: Running | None = None) -> str:
    """Run or resume a cell, and return its status.

    Args:
        sweep: The sweep.
        cell: The cell.
        running: Registry for its process, so that it can be stopped.

    Raises:
        RuntimeError: the run failed; the message states why.
        ValueError: the manifest of an earlier run cannot be read.
    """
    running = running or Running()
    while (manifest := sweep.manifest(cell)) and manifest.status in ACTIVE:
        if manifest.process.elsewhere():
            raise RuntimeError(
                f"process {manifest.process.pid} on {manifest.process.host} runs it; wait for its "
                "end, or stop it and run the same command again"
            )
        time.sleep(POLL)  # a killed sweep or lost worker left it running
    if manifest and manifest.status == "ok":
        return "kept"
    logs = sweep.folder / "logs"
    logs.mkdir(exist_ok=True)
    log = logs / f"{cell.key}.log"
    environment = {**os.environ, "FINEMEM_RUNS_DIR": str(sweep.folder)}
    code = running.start(sweep.command(cell, manifest is not None), environment, log)
    found = sweep.result(cell)
    if code == 0 and found.status == "ok":
        return "ok"
    why = found.error.partition("\n")[0] if found.status not in ("not run", "ok") else ""
    raise RuntimeError(f"{found.status} (exit code {code}), see {log}" + (why and f": {why}"))


def _run(
    sweep: Sweep, cells: Sequence[SweepCell], jobs: int, scheduler: str | None, log: StepLog
) -> None:
    """Run the cells and print the status of each."""
    by_key = {cell.key: cell for cell in cells}
    attempts = _on_dask(sweep, by_key, scheduler) if scheduler else _here(sweep, by_key, jobs)
    with contextlib.closing(attempts):  # at an interrupt, this stops the running cells
        for done, (key, end) in enumerate(attempts, start=1):
            cell = by_key[key]
            seed = "" if cell.seed is None else f", seed {cell.seed}"
            log(done, len(cells), f"{cell.name}{seed}: {end}")


def _here(
    sweep: Sweep, cells: Mapping[str, SweepCell], jobs: int
) -> Generator[tuple[str, str], None, None]:
    running = Running()
    with ThreadPoolExecutor(jobs) as pool:
        futures = {pool.submit(run_cell, sweep, cell, running): key for key, cell in cells.items()}
        try:
            for future in as_completed(futures):
                try:
                    yield futures[future], future.result()
                except (RuntimeError, ValueError, OSError) as error:
                    yield futures[future], str(error)
        except BaseException:
            running.stop()
            raise


def _on_dask(
    sweep: Sweep, cells: Mapping[str, SweepCell], scheduler: str
) -> Generator[tuple[str, str], None, None]:
    from finemem_lib.experiments.sweep import on_dask

    for attempt in on_dask(cells, scheduler, functools.partial(run_cell, sweep)):
        yield attempt.key, attempt.result or attempt.error


def summarise(results: Sequence[CellRun]) -> list[SweepRow]:
    """Return the mean of every metric over the seeds of every point, with its interval.

    Args:
        results: The results of the cells; those whose status is not ok are ignored.
    """
    points = dict.fromkeys(one.cell.name for one in results)
    metrics = dict.fromkeys(
        name
        for one in results
        for name, value in one.metrics.items()
        if value is None or isinstance(value, int | float)
    )
    rows = []
    for metric in metrics:
        for point in points:
            values = {
                one.cell.key: [one.metrics[metric]]
                for one in results
                if one.cell.name == point and one.metrics.get(metric) is not None
            }
            seeds = tuple(float(value) for [value] in values.values())
            rows.append(SweepRow(point, metric, *clustered_mean(values), seeds))
    return rows


def _summary(rows: Sequence[SweepRow]) -> list[dict[str, str]]:
    """Return the rows of the table in the terminal and on the page."""
    return [
        {
            "parameters": one.point,
            "metric": one.metric,
            "value [95 % interval]": interval_text(one.value, one.low, one.high, ".4g"),
            "seeds": str(len(one.seeds)),
        }
        for one in rows
    ]


def _write(
    sweep: Sweep, results: Sequence[CellRun], rows: Sequence[SweepRow], words: Sequence[str]
) -> Path:
    """Write the rows of the cells, their card and the page, and return the path of the page."""
    from markupsafe import Markup

    from finemem_lib.cli.page import PageFigures, render

    write_measured(
        sweep.folder / "sweep.jsonl",
        [
            {
                "run": one.cell.key,
                "parameters": dict(one.cell.point),
                "seed": one.cell.seed,
                "status": one.status,
                "seconds": one.seconds,
                "metrics": dict(one.metrics),
            }
            for one in results
        ],
        " ".join(["finemem", *words]),
        git_state(code_root()),
        notebook=sweep.notebook.stem,
        error={one.cell.key: one.error for one in results if one.status != "ok"},
    )
    names = list(dict.fromkeys(name for one in results for name, _ in one.cell.point))
    figures = PageFigures()
    spec = json.loads(sweep_metrics(rows, ", ".join(names) or "the notebook as it is").to_json())
    drawn = figures.draw(spec, "figure-1", {})
    page = render(
        "sweep.html.j2",
        figures,
        notebook=sweep.notebook.stem,
        results=results,
        figure=Markup(drawn),
        summary_rows=_summary(rows),
    )
    return write_bytes(sweep.folder / "sweep.html", page)
