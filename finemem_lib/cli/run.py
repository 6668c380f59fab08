"""Run and resume: notebooks through papermill, one folder and one manifest per run."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import secrets
import sys
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finemem_lib.cli.copying import check_extra, copied_files, copy_run
from finemem_lib.cli.execute import CHECKPOINTS, Executor, clear_scratch, execute_notebook
from finemem_lib.cli.init import version_note
from finemem_lib.cli.manifest import (
    ACTIVE,
    Manifest,
    NotebookEntry,
    ProcessId,
    Resumption,
    RunStatus,
    create_run_folder,
    data_hash,
    data_sources,
    new_manifest,
    read_manifest,
    source_hash,
    write_manifest,
)
from finemem_lib.cli.profiles import (
    cannot_load,
    check_reads,
    hub_offline,
    requested,
    resolve_parameters,
    typed_parameters,
    unusable_sources,
)
from finemem_lib.cli.schedule import Schedule, default_jobs
from finemem_lib.runs.notebooks import read_notebook
from finemem_lib.runs.parameters import ParameterError
from finemem_lib.runs.run import (
    RESUMABLE,
    changed_artefacts,
    format_metric,
    locate,
    now,
    peak_memory_mb,
    progress_line,
    read_record,
    recorded,
    run_folder,
)
from finemem_lib.util.console import (
    EXIT_CODES,
    StatusLine,
    UsageError,
    UsageErrors,
    check_output_folder,
    interruptible,
    plain,
    print_table,
)
from finemem_lib.util.files import exclusive_lock, write_json
from finemem_lib.util.provenance import code_root, cpu_threads, git_state, workbench_root

KERNEL_ENVIRONMENT = {
    "FINEMEM_EXPLORERS": "static",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",  # more threads do not help on small tensors
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
"""Environment variables of kernels in addition to the user's environment."""

REPORT_SHARE = 0.05
"""Maximum share of a run's time for intermediate reports."""


def run_command(options: argparse.Namespace, execute: Executor = execute_notebook) -> int:
    """Run notebooks in order until one fails, and return the exit code.

    Args:
        options: The command line.
        execute: Executes one notebook.

    Raises:
        UsageError: the options cannot be carried out; nothing was started or written.
    """
    _check_destinations(options)
    if note := version_note():
        print(plain(note), file=sys.stderr)
    profile, notebooks, given = requested(options)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run_id = options.run_id or f"{stamp}-{secrets.token_hex(2)}"
    with UsageErrors(ValueError):
        folder = run_folder(run_id)
        if options.reuse and not recorded(run_folder(options.reuse)):
            read_manifest(run_folder(options.reuse))  # says what is wrong with it
    resolved = resolve_parameters(notebooks, profile, given, run_id)
    check_reads(notebooks, resolved, options.reuse)
    _check_sources(data_sources(resolved.values()))
    manifest = new_manifest(
        run_id,
        options.command_line,
        options.profile,
        notebooks,
        given,
        resolved,
        str(notebooks[0].parent) if options.notebooks_dir else None,
        options.reuse,
    )
    with interruptible():
        create_run_folder(folder, manifest)
        return RunExecution(folder, notebooks, manifest, execute, options).carry_out()


def _check_destinations(options: argparse.Namespace) -> None:
    """Check that the folder of `--figures` is writable and the extra of `--copy-to` installed."""
    if options.figures:
        check_output_folder(Path(options.figures), "--figures")
    if options.copy_to:
        check_extra(options.copy_to)


def _check_sources(sources: Sequence[str]) -> None:
    for source in sources:
        with UsageErrors(ValueError, OSError):
            locate(source)


def resume_command(options: argparse.Namespace, execute: Executor = execute_notebook) -> int:
    """Run the unfinished notebooks of a run, in its folder and with its parameters.

    Notebooks that are ok are kept, and training goes on from its last checkpoint. Parameters of
    `RESUMABLE` may get other values.

    Args:
        options: The command line.
        execute: Executes one notebook.

    Returns:
        The exit code.

    Raises:
        UsageError: the run cannot be resumed; nothing was started or written.
    """
    _check_destinations(options)
    with UsageErrors(ValueError, OSError):
        folder = run_folder(options.run)
        read_manifest(folder)  # says what is wrong with it, before a lock lies there
        busy = (
            f"run {folder.name!r} is just being resumed by another process; `finemem list` "
            "shows its status"
        )
        with exclusive_lock(folder / "resume.lock", busy):
            notebooks, manifest = _resumed(folder, options)
    with interruptible():
        return RunExecution(folder, notebooks, manifest, execute, options).carry_out()


def _resumed(folder: Path, options: argparse.Namespace) -> tuple[list[Path], Manifest]:
    """Return the notebooks of a run and its manifest, now with this process as its process."""
    manifest = read_manifest(folder, settle=True)
    if manifest.status in ACTIVE:
        raise UsageError(
            f"run {options.run!r} is {manifest.status}, as process {manifest.process.pid} on "
            f"{manifest.process.host}; wait for its end, or stop it"
        )
    if not (left := manifest.remaining()):
        raise UsageError(
            f"run {options.run!r} has nothing left to run; `finemem report "
            f"{options.run}` makes its report again"
        )
    place = Path(manifest.notebooks_dir or workbench_root() / "notebooks")
    notebooks = [place / f"{entry.name}.ipynb" for entry in manifest.notebooks]
    problems = _obstacles(manifest, notebooks)
    problems += changed_artefacts(folder, [e.name for e in manifest.notebooks if e.status == "ok"])
    problems += [] if problems else _change_parameters(place, left, options.set)
    if problems:
        raise UsageError(
            "\n  ".join([f"run {options.run!r} cannot be resumed:", *dict.fromkeys(problems)])
        )
    after = manifest.model_dump(mode="json", include={"status", "error", "process"})
    manifest.process = ProcessId.current()
    manifest.resumed.append(
        Resumption(
            at=now(),
            process=manifest.process,
            git=git_state(code_root()),
            after=after,
            notebooks=[entry.name for entry in left],
            set=options.set,
        )
    )
    manifest.status = "running" if manifest.versions else "starting"
    manifest.exit_code = manifest.error = manifest.ended = None
    for path, entry in zip(notebooks, manifest.notebooks, strict=True):
        if entry.status != "ok":
            entry.status, entry.error, entry.seconds = "not run", None, None
            entry.source_sha256 = source_hash(path)
    clear_scratch(folder)
    write_manifest(folder, manifest)
    return notebooks, manifest


def _obstacles(manifest: Manifest, notebooks: Sequence[Path]) -> list[str]:
    """Return the reasons why the remaining notebooks of a run cannot run now."""
    left = {entry.name: entry.parameters for entry in manifest.remaining()}
    problems = [f"notebook {path} is gone" for path in notebooks if not path.is_file()]
    problems += [
        f"data {source} has changed since the run began; start a new run"
        for source in data_sources(left.values())
        if source in manifest.inputs and data_hash(source) != manifest.inputs[source]
    ]
    problems += [what for parameters in left.values() for what in unusable_sources(parameters)]
    offline = hub_offline(entry.parameters for entry in manifest.notebooks)
    try:
        there = [path for path in notebooks if path.is_file()]
        problems += cannot_load(typed_parameters(there, left), offline)
    except ValueError as error:  # a notebook or its model has changed since the run started
        problems.append(str(error))
    return problems


def _change_parameters(
    folder: Path, left: Sequence[NotebookEntry], settings: Sequence[str]
) -> list[str]:
    """Set ``NAME=VALUE`` or ``NN.NAME=VALUE`` in the parameters of the remaining notebooks.

    Returns:
        One sentence for every setting that is not possible.
    """
    problems = []
    for setting in settings:
        full_name, equals, text = setting.partition("=")
        prefix, _, name = full_name.rpartition(".")
        if not equals:
            problems.append(f"--set {setting}: expected NAME=VALUE")
            continue
        if name not in RESUMABLE:
            problems.append(
                f"--set {setting}: a resumed run keeps its parameters but for "
                f"{', '.join(sorted(RESUMABLE))}; start a new run for others"
            )
            continue
        found = False
        for entry in left:
            notebook = read_notebook(folder / f"{entry.name}.ipynb")
            if not (notebook.answers_to(prefix) and name in entry.parameters):
                continue
            found = True
            try:
                changed = notebook.model().read(entry.parameters | {name: text}, texts=True)
                entry.parameters = changed.model_dump()
            except ParameterError as error:
                problems += [f"--set {setting}: {problem}" for problem in error.problems]
        if not found:
            problems.append(f"--set {setting}: no notebook that is left has this parameter")
    return problems


class RunExecution:
    """Executes the notebooks of a run, in parallel if they do not depend on each other.

    After a failure no further notebook starts; running ones continue to their end. The manifest is
    written at every change of status, and completed in every case.
    """

    def __init__(
        self,
        folder: Path,
        notebooks: Sequence[Path],
        manifest: Manifest,
        execute: Executor,
        options: argparse.Namespace,
    ) -> None:
        """Start the clock of ``--timeout``.

        Args:
            folder: Folder of the run, which contains the manifest.
            notebooks: One notebook for every entry of the manifest.
            manifest: Manifest with this process, "starting" or "running".
            execute: Function that executes one notebook.
            options: The options of `finemem run` or `resume`.
        """
        self.folder = folder
        self.notebooks = {path.stem: path for path in notebooks}
        self.manifest = manifest
        self.metrics: dict[str, dict[str, Any]] = {}
        self._entries = {entry.name: entry for entry in manifest.notebooks}
        parameters = {name: entry.parameters for name, entry in self._entries.items()}
        self._schedule = Schedule.of([read_notebook(path) for path in notebooks], parameters)
        self._jobs: int = options.jobs or default_jobs(parameters)
        self._execute = execute
        self._figures: str | None = options.figures
        self._copy_to: str | None = options.copy_to
        self._begun = time.monotonic()
        self._deadline = self._begun + options.timeout if options.timeout else float("inf")
        self._started: dict[str, float] = {}
        self._reported = self._begun
        self._report_seconds = 2.0  # a guess, before the first
        self._writing = threading.Lock()
        self._stopping = threading.Event()

    def carry_out(self) -> int:
        """Run the notebooks, make the report, print the results, and return the exit code."""
        manifest = self.manifest
        print(
            f"run {manifest.run_id}: profile {manifest.profile}, {len(manifest.remaining())} "
            f"notebooks, up to {self._jobs} side by side",
            flush=True,
        )
        status, error = self._run_notebooks()
        clear_scratch(self.folder, finished=status == "ok")
        report = self._end(status, error)
        # Signals are ignored by now, and a slow copy of an interrupted run could not be ended.
        missing = None if status == "interrupted" else self._copy()
        self._print_results(report, missing)
        ended = self.manifest.status
        return EXIT_CODES["failed" if ended == "ok" and missing else ended]

    def _run_notebooks(self) -> tuple[RunStatus, str | None]:
        """Run the remaining notebooks; return the status of the run, and its error."""
        manifest = self.manifest
        try:
            if manifest.status == "starting":
                manifest.record_origin(data_sources(e.parameters for e in manifest.notebooks))
                manifest.status = "running"
                write_manifest(self.folder, manifest)
            for entry in manifest.notebooks:
                if entry.status == "ok":
                    record = read_record(self.folder, entry.name)
                    self.metrics[entry.name] = record.get("metrics", {})
            self._run_side_by_side(_kernel_environment(self.folder, manifest))
            for entry in manifest.notebooks:
                if entry.status in ("failed", "timeout"):
                    return entry.status, f"{entry.name}: {entry.error}"
            return "ok", None
        except KeyboardInterrupt:
            return "interrupted", "by a signal"
        except Exception as problem:  # a full disk or a bug: the manifest must be completed
            return "failed", f"{type(problem).__name__}: {problem}"

    def _run_side_by_side(self, environment: Mapping[str, str]) -> None:
        """Run the remaining notebooks, up to ``--jobs`` at a time, until one fails."""
        running: dict[Future[None], NotebookEntry] = {}
        with ThreadPoolExecutor(self._jobs) as pool, StatusLine() as shown:
            try:
                while True:
                    while len(running) < self._jobs and (entry := self._next(running.values())):
                        self._started[entry.name] = time.monotonic()
                        begun = pool.submit(self._run_notebook, entry, environment)
                        running[begun] = entry
                    if not running:
                        return
                    ended, _ = wait(running, timeout=0.5, return_when=FIRST_COMPLETED)
                    shown.update([self._line(entry) for entry in running.values()])
                    for future in ended:
                        shown.end(self._line(running.pop(future)))
                        future.result()  # raises the error of the thread
                    if ended and running:
                        self._report_so_far(shown)
            finally:
                self._stopping.set()  # tells the threads to stop their notebooks

    def _next(self, running: Iterable[NotebookEntry]) -> NotebookEntry | None:
        """Return the notebook to start now, `None` if none can start or one has failed."""
        statuses = {name: entry.status for name, entry in self._entries.items()}
        if {"failed", "timeout"} & {*statuses.values()}:
            return None
        done = [name for name, status in statuses.items() if status == "ok"]
        name = self._schedule.next(done, [entry.name for entry in running])
        return None if name is None else self._entries[name]

    def _report_so_far(self, shown: StatusLine) -> None:
        """Write an intermediate report, unless that would delay the run (see `REPORT_SHARE`)."""
        began = time.monotonic()
        if began - self._reported < self._report_seconds / REPORT_SHARE:
            return
        try:
            with self._writing:
                report = write_report(self.folder, None)
        except Exception:  # nbconvert, jinja2 and plotly raise various errors; reported at the end
            return
        self._reported = time.monotonic()
        self._report_seconds = self._reported - began
        shown.end(f"report so far: {report}")

    def _line(self, entry: NotebookEntry) -> str:
        """Return a line with the status, time and progress of a notebook."""
        seconds = time.monotonic() - self._started[entry.name]
        state = f"{entry.name:<32} {entry.status:<11} {seconds:7.1f} s"
        progress = progress_line(self.folder, entry.name)
        return f"{state}  {plain(progress)}" if progress and entry.status == "running" else state

    def _run_notebook(self, entry: NotebookEntry, environment: Mapping[str, str]) -> None:
        """Execute one notebook and complete its entry, also if it is interrupted."""
        parameters = dict(entry.parameters)
        held = self.folder / "scratch" / f"{entry.name}{CHECKPOINTS}"
        if "resume" in parameters and any(held.glob("checkpoint-*")):  # from a stopped run
            parameters["resume"] = True
        try:
            with self._writing:
                entry.status = "running"
                write_manifest(self.folder, self.manifest)
            entry.status, entry.error = self._execute(
                self.notebooks[entry.name],
                parameters,
                self.folder,
                environment,
                self._deadline,
                self._raise_where_stopped,
            )
        except KeyboardInterrupt:
            entry.status, entry.error = "interrupted", "interrupted"
            raise
        finally:
            with self._writing:
                if entry.status == "running":
                    entry.status = "failed"
                entry.seconds = round(time.monotonic() - self._started[entry.name], 1)
                self._add_record(entry)

    def _raise_where_stopped(self) -> None:
        if self._stopping.is_set():
            raise KeyboardInterrupt

    def _add_record(self, entry: NotebookEntry) -> None:
        """Copy artefacts and metrics from a notebook's record."""
        record = entry.add_record(self.folder)
        self.metrics[entry.name] = record.get("metrics", {})
        self.manifest.outputs |= {name: record["writes"][name] for name in entry.writes}
        self.manifest.inputs |= {
            f"{read['run_id']}/{name}": read["sha256"]
            for name, read in record.get("reads", {}).items()
            if read["run_id"] != self.manifest.run_id
        }
        if checkpoint := record.get("checkpoint"):
            held = checkpoint["sha256"] or checkpoint.get("commit")
            self.manifest.inputs[checkpoint["source"]] = held

    def _end(self, status: RunStatus, error: str | None) -> Path | None:
        """Complete the manifest, write the last files, and return the path of the report."""
        manifest = self.manifest
        manifest.status, manifest.error, manifest.exit_code = status, error, EXIT_CODES[status]
        manifest.ended = now()
        manifest.seconds = round((manifest.seconds or 0) + time.monotonic() - self._begun, 1)
        manifest.peak_memory_mb = max(
            manifest.peak_memory_mb or 0, peak_memory_mb(resource.RUSAGE_CHILDREN)
        )
        if status != "ok":
            manifest.explain_not_run()
        try:
            write_json(self.folder / "metrics.json", self.metrics)
            write_manifest(self.folder, manifest)
            return write_report(self.folder, self._figures)
        except Exception as problem:  # nbconvert, jinja2 and plotly raise various errors
            print(f"the run's last files could not be written: {problem}", file=sys.stderr)
            if status == "ok":
                manifest.status, manifest.exit_code = "failed", EXIT_CODES["failed"]
                manifest.error = f"{type(problem).__name__}: {problem}"
                with contextlib.suppress(OSError):
                    write_manifest(self.folder, manifest)
        return None

    def _copy(self) -> list[str] | None:
        """Copy the run to the address of ``--copy-to``, and return the names of missing files."""
        if self._copy_to is None:
            return None
        return copy_run(self.folder, self._copy_to, copied_files(self.folder))

    def _print_results(self, report: Path | None, missing: list[str] | None) -> None:
        manifest = self.manifest
        print_table(
            [("notebook", "found")]
            + [(entry.name, found) for entry in manifest.notebooks for found in self._found(entry)]
        )
        if manifest.error:
            print(f"{manifest.status}: {manifest.error}", file=sys.stderr)
        for entry in manifest.notebooks:
            if entry.status == "not run":
                print(f"{entry.name}: {entry.error}", file=sys.stderr)
        if manifest.remaining():
            print(f"go on with: finemem resume {manifest.run_id}", file=sys.stderr)
        if report:
            print(f"report: {report}")
        copied = "" if missing is None else f" copied={'no' if missing else 'yes'}"
        seconds = f"{manifest.seconds:.0f}"
        status = "failed" if missing and manifest.status == "ok" else manifest.status
        print(f"status={status} run={manifest.run_id} seconds={seconds}{copied}")

    def _found(self, entry: NotebookEntry) -> list[str]:
        """Return the findings of a notebook, or its metrics if it has none."""
        findings = read_record(self.folder, entry.name).get("findings", ())
        metrics = self.metrics.get(entry.name, {}).items()
        return [one["text"] for one in findings] or [
            ", ".join(f"{metric} {format_metric(value)}" for metric, value in metrics)
        ] * bool(metrics)


def _kernel_environment(folder: Path, manifest: Manifest) -> dict[str, str]:
    """Write a kernelspec for this interpreter, and return the environment variables of kernels.

    A kernelspec "python3" of the user could start another environment.
    """
    from ipykernel.kernelspec import write_kernel_spec

    scratch = folder / "scratch"
    write_kernel_spec(scratch / "kernels" / "python3")
    offline = hub_offline(entry.parameters for entry in manifest.notebooks)
    inherited = os.environ.get("JUPYTER_PATH")
    return KERNEL_ENVIRONMENT | {
        "FINEMEM_RUNS_DIR": str(folder.parent),
        "FINEMEM_REUSE_RUN": manifest.reuse or "",
        "TENSORBOARD_LOGGING_DIR": os.environ.get("TENSORBOARD_LOGGING_DIR")
        or str(folder / "tensorboard"),
        "WANDB_DIR": os.environ.get("WANDB_DIR") or str(folder),
        "HF_HUB_OFFLINE": str(int(offline)),
        "OMP_NUM_THREADS": str(cpu_threads() or 1),
        "JUPYTER_PATH": os.pathsep.join(filter(None, (str(scratch), inherited))),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
    }


def write_report(folder: Path, figures: str | None) -> Path:
    """Write the report of a run, optionally export its figures, and return the report's path.

    Args:
        folder: Folder of the run.
        figures: Folder for the figures; `None` for no export, "" for ``figures/RUN`` of the
            repository.

    Raises:
        ValueError: the manifest is missing or cannot be read.
        OSError: a file could not be written.
    """
    from finemem_lib.cli.pictures import save_figures
    from finemem_lib.cli.report import build_report

    path = build_report(folder, folder / "report.html")
    if figures is not None:
        import plotly.io

        target = Path(figures) if figures else workbench_root() / "figures" / folder.name
        save_figures(
            {
                target / kept.stem: plotly.io.read_json(kept)
                for kept in sorted((folder / "figures").glob("*.json"))
            }
        )
        print(f"figures: {target}")
    return path
