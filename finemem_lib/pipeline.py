"""The command line: notebooks in order through papermill, one folder and one manifest per run.

Exit codes: 0 ok, 1 a notebook failed (or the report or a file of the run could not be written),
2 bad usage, found before any kernel starts, 3 timeout, 130 interrupted.

Each notebook runs in a worker process of its own, so that a timeout or an interrupt ends kernel and
all by killing its process tree. When the command itself is killed, the worker notices, kills the
kernel and ends the manifest; when both are killed, `read_manifest` sees that the recorded process
is gone. papermill alone cannot say whether a notebook is done (a killed kernel leaves cells marked
as completed), so `notebook_error` looks at the cells.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import multiprocessing.connection
import os
import platform
import resource
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib import __version__, plan, prepare, runs
from finemem_lib.checkpoints import MEMORY_ONLY
from finemem_lib.console import BAD_USAGE, EXIT_CODES, UsageError, interruptible, plain, print_table
from finemem_lib.files import alone, discard, write_json
from finemem_lib.profiles import (
    add_arguments,
    cannot_load,
    check_reads,
    coerce,
    hub_offline,
    requested,
    resolve_parameters,
    unusable_sources,
)
from finemem_lib.repro import git_state, repository_root, versions

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MANIFEST_VERSION = 1
CHECKPOINTS = "-checkpoints"
"""How the scratch folders end (`Run.scratch`) that a stopped run keeps."""

RESUMABLE = (*MEMORY_ONLY, "jobs", "report_to", "save_every")
"""The parameters that change nothing that is trained or found, so that `finemem resume` may be
given others. Under another batch_size the tests draw other completions."""

SECONDS_A_LINE = 60.0
"""How often a running notebook's progress is printed where there is no terminal."""

_ENDS = {"failed": "failed", "timeout": "ran out of time", "interrupted": "was interrupted"}

KERNEL_ENVIRONMENT = {
    "FINEMEM_EXPLORERS": "static",
    "HF_HUB_OFFLINE": "1",
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
"""What kernels see beside the user's environment."""


# ---- one notebook --------------------------------------------------------------------------------


def notebook_error(path: Path) -> str | None:
    """Return what went wrong in an executed notebook, `None` when every cell ran without an error.

    Every code cell must have been executed; cells tagged ``skip-execution`` and empty ones need
    not. The text starts with the cell, counted as in the notebook before papermill added its own,
    and the error, and ends with the traceback's last lines.
    """
    import nbformat
    from papermill.exceptions import strip_color

    added = {"injected-parameters", "papermill-error-cell-tag"}
    cells = [cell for cell in nbformat.read(path, as_version=4).cells
             if not added & set(cell.metadata.get("tags", []))]
    for position, cell in enumerate(cells, start=1):
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                lines = strip_color("\n".join(output.traceback)).rstrip().splitlines()
                return "\n".join([
                    f"cell {position} (In [{cell.execution_count}]): {output.ename}: "
                    f"{strip_color(output.evalue)}", *lines[-12:],
                ])
    for position, cell in enumerate(cells, start=1):
        skipped = "skip-execution" in cell.metadata.get("tags", [])
        if cell.cell_type == "code" and cell.source.strip() and not skipped:
            if cell.execution_count is None:
                return f"cell {position} was not executed"
    return None


def _work(
    source: Path, executed: Path, parameters: dict[str, Any], folder: Path,
    environment: Mapping[str, str], answer: Connection,
) -> None:
    """Execute one notebook; runs in a process of its own. Sends what went wrong beside cells."""
    os.setsid()  # a Ctrl-C at the terminal is for the command, which then ends this process
    log = os.open(folder / "run.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.environ.update(environment)
    threading.Thread(target=_outlive_command, args=(folder,), daemon=True).start()
    import papermill

    try:
        papermill.execute_notebook(
            source, executed, parameters, kernel_name="python3", cwd=source.parent,
            progress_bar=False, start_timeout=120, store_widget_state=False,
        )
    except papermill.PapermillExecutionError:
        pass  # the cell holds it
    except Exception as error:
        answer.send(f"{type(error).__name__}: {error}")


def _outlive_command(folder: Path) -> None:
    """Wait for the command's process to end; then end the kernel and the manifest in its place."""
    multiprocessing.connection.wait([multiprocessing.parent_process().sentinel])
    try:
        _kill_tree(os.getpid(), including=False)
        if read_manifest(folder, settle=True)["status"] != "running":  # else it was resumed
            _clear_scratch(folder)
    finally:
        os._exit(1)


def _kill_tree(pid: int, including: bool = True) -> None:
    import psutil

    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        doomed = parent.children(recursive=True) + [parent] * including
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(doomed, timeout=10)


def _clear_scratch(folder: Path, finished: bool = False) -> None:
    """Remove what a run needs only while it is running, and what a killed kernel left beside; the
    checkpoints that `finemem resume` goes on from stay until the run is `finished`."""
    for path in (folder / "scratch").glob("*"):
        if finished or not path.name.endswith(CHECKPOINTS):
            discard(path)
    with contextlib.suppress(OSError):  # checkpoints are left, or there was none
        (folder / "scratch").rmdir()
    for path in folder.rglob("*.tmp"):
        discard(path)


def _execute(
    source: Path, parameters: dict[str, Any], folder: Path, environment: Mapping[str, str],
    deadline: float, say: Callable[[], None],
) -> tuple[str, str | None]:
    """Execute a notebook into ``notebooks/`` of the run; return its status and what went wrong."""
    executed = folder / "scratch" / source.name
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    worker = context.Process(
        target=_work, args=(source, executed, parameters, folder, environment, theirs)
    )
    try:
        worker.start()
        theirs.close()
        while worker.is_alive() and time.monotonic() < deadline:
            worker.join(min(1.0, max(0.0, deadline - time.monotonic())))
            say()
        if worker.is_alive():
            return "timeout", "stopped: the time given with --timeout is over"
        try:
            error = ours.recv()
        except EOFError:  # it had nothing to say
            error = None
        if worker.exitcode != 0:
            error = f"the process that executed the notebook ended with code {worker.exitcode}"
        if executed.exists():
            error = notebook_error(executed) if error is None else error
        elif error is None:
            error = "papermill left no executed notebook; see run.log"
        return ("failed" if error else "ok"), error
    finally:
        if worker.is_alive():
            _kill_tree(worker.pid)
            worker.join()
        with contextlib.suppress(OSError, ValueError):  # none, or cut off while it was written
            json.loads(executed.read_text(encoding="utf-8"))
            os.replace(executed, folder / "notebooks" / source.name)


# ---- the manifest --------------------------------------------------------------------------------


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
        if not path.exists() and runs.recorded(folder):
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
    manifest |= {"status": "failed", "exit_code": None, "ended": runs.now(),
                 "error": "the process of this run was killed"}
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
                f"not run: {stopped['name']} {_ENDS[stopped['status']]} before it" if stopped
                else f"not run: {manifest['error']}"
            )


def _new_manifest(
    options: argparse.Namespace, run_id: str, notebooks: Sequence[Path],
    given: Mapping[str, Any], resolved: Mapping[str, dict[str, Any]],
) -> dict[str, Any]:
    seeds = {values.get("seed") for values in resolved.values()}
    sources = dict.fromkeys(str(s) for values in resolved.values() for s in values.get("data", ()))
    return {
        "schema_version": MANIFEST_VERSION, "run_id": run_id, "status": "running",
        "exit_code": None, "error": None, "started": runs.now(), "ended": None, "seconds": None,
        "command": ["finemem", *options.command_line], "profile": options.profile,
        "notebooks_dir": str(notebooks[0].parent) if options.notebooks_dir else None,
        "parameters_given": dict(given), "seed": seeds.pop() if len(seeds) == 1 else None,
        "reuse": options.reuse, "inputs": {source: _data_hash(source) for source in sources},
        "outputs": {}, "versions": {"finemem": __version__, **versions()},
        "git": git_state(repository_root()), "platform": platform.platform(),
        "cpus": os.cpu_count(), "peak_memory_mb": None,
        "process": _this_process(), "resumed": [],
        "notebooks": [
            {"name": path.stem, "source_sha256": _source_hash(path), "status": "not run",
             "seconds": None, "parameters": resolved[path.stem], "reads": [], "writes": [],
             "error": None}
            for path in notebooks
        ],
    }


def _this_process() -> dict[str, Any]:
    import psutil

    return {"pid": os.getpid(), "created": psutil.Process().create_time(), "host": platform.node()}


def _data_hash(source: str) -> str | None:
    """Return the hash of a data file, `None` for a data set on the hub."""
    try:
        path = runs.locate(source)
        return None if path is None else runs.sha256(path)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def _source_hash(path: Path) -> str:
    """Hash what a notebook says, without its outputs and metadata."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    source = [[cell["cell_type"], "".join(cell["source"])] for cell in cells]
    return hashlib.sha256(json.dumps(source).encode()).hexdigest()


def _add_record(entry: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Copy what a notebook read, wrote and asked from its record into its entry; return it."""
    record = runs.read_record(folder, entry["name"])
    entry |= {"reads": list(record.get("reads", ())), "writes": list(record.get("writes", ())),
              "peak_memory_mb": record.get("peak_memory_mb"), "models": record.get("models", [])}
    return record


# ---- commands ------------------------------------------------------------------------------------


def run_command(options: argparse.Namespace) -> int:
    """Run notebooks in order until one fails; return the exit code."""
    profile, notebooks, given = requested(options)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run_id = options.run_id or f"{stamp}-{secrets.token_hex(2)}"
    try:
        folder = runs.run_folder(run_id)
        if options.reuse and not runs.recorded(runs.run_folder(options.reuse)):
            read_manifest(runs.run_folder(options.reuse))  # says what is wrong with it
    except ValueError as error:
        raise UsageError(str(error)) from error
    resolved = resolve_parameters(notebooks, profile, given, run_id)
    check_reads(notebooks, resolved, options.reuse)
    manifest = _new_manifest(options, run_id, notebooks, given, resolved)
    try:
        folder.mkdir(parents=True)
        write_json(folder / "manifest.json", manifest)
        (folder / "notebooks").mkdir()
    except FileExistsError as error:
        raise UsageError(
            f"run folder {folder} exists; give another --run-id, or move it away"
        ) from error
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        raise UsageError(
            f"run folder {folder} cannot be written ({error.strerror}); allow writing there, or "
            "set FINEMEM_RUNS_DIR to another folder"
        ) from error
    return EXIT_CODES[_run(folder, notebooks, manifest, options)]


def resume_command(options: argparse.Namespace) -> int:
    """Run again, in its folder and with its parameters, what a run has not finished; return the
    exit code. Notebooks that are ok are kept, and training goes on from its last checkpoint.
    Parameters of `RESUMABLE` may be set anew."""
    try:
        folder = runs.run_folder(options.run)
        if not folder.is_dir():
            read_manifest(folder)  # says what is wrong with it
        busy = (f"run {folder.name!r} is just being resumed by another process; `finemem list` "
                "shows how it is")
        with alone(folder / "resume.lock", busy):
            notebooks, manifest = _resumed(folder, options)
    except ValueError as error:
        raise UsageError(str(error)) from error
    return EXIT_CODES[_run(folder, notebooks, manifest, options)]


def _resumed(folder: Path, options: argparse.Namespace) -> tuple[list[Path], dict[str, Any]]:
    """Return the notebooks of a run and its manifest, which says from now on that it is running."""
    manifest = read_manifest(folder, settle=True)
    process = manifest["process"]
    if manifest["status"] == "running":
        raise UsageError(f"run {options.run!r} is running, as process {process['pid']} on "
                         f"{process['host']}; wait for its end, or stop it")
    left = [entry for entry in manifest["notebooks"] if entry["status"] != "ok"]
    if not left:
        raise UsageError(f"run {options.run!r} has nothing left to run; `finemem report "
                         f"{options.run}` makes its report again")
    problems = _set_anew(left, options.set)
    place = Path(manifest.get("notebooks_dir") or repository_root() / "notebooks")
    notebooks = [place / f"{entry['name']}.ipynb" for entry in manifest["notebooks"]]
    problems += [f"notebook {path} is gone" for path in notebooks if not path.is_file()]
    sources = dict.fromkeys(s for entry in left for s in entry["parameters"].get("data", ()))
    problems += [f"data {source} has changed since the run began; start a new run"
                 for source in sources if _data_hash(source) != manifest["inputs"].get(source)]
    problems += [what for entry in left for what in unusable_sources(entry["parameters"])]
    offline = hub_offline(entry["parameters"] for entry in manifest["notebooks"])
    problems += cannot_load({entry["name"]: entry["parameters"] for entry in left}, offline)
    if problems:
        raise UsageError("\n  ".join([
            f"run {options.run!r} cannot be resumed:", *dict.fromkeys(problems)
        ]))
    manifest["resumed"] = [*manifest.get("resumed", ()), {
        "at": runs.now(), "process": _this_process(), "git": git_state(repository_root()),
        "after": {"status": manifest["status"], "error": manifest["error"], "process": process},
        "notebooks": [entry["name"] for entry in left], "set": options.set,
    }]
    manifest |= {"status": "running", "exit_code": None, "error": None, "ended": None,
                 "process": _this_process()}
    hashes = dict(zip((path.stem for path in notebooks), map(_source_hash, notebooks), strict=True))
    for entry in left:
        entry |= {"status": "not run", "error": None, "seconds": None,
                  "source_sha256": hashes[entry["name"]]}
    _clear_scratch(folder)
    write_json(folder / "manifest.json", manifest)
    return notebooks, manifest


def _set_anew(left: Sequence[dict[str, Any]], settings: Sequence[str]) -> list[str]:
    """Put ``NAME=VALUE`` or ``NN.NAME=VALUE`` into the parameters of the notebooks that are left;
    return what cannot be."""
    problems = []
    for setting in settings:
        full_name, _, text = setting.partition("=")
        number, _, name = full_name.rpartition(".")
        having = [entry["parameters"] for entry in left
                  if number in ("", entry["name"][:2]) and name in entry["parameters"]]
        if name not in RESUMABLE:
            problems.append(f"--set {setting}: a resumed run keeps its parameters but for "
                            f"{', '.join(sorted(RESUMABLE))}; start a new run for others")
        elif not having:
            problems.append(f"--set {setting}: no notebook that is left has this parameter")
        for parameters in having if name in RESUMABLE else ():
            kind = type(parameters[name]).__name__
            try:
                parameters[name] = coerce(text, kind)
            except ValueError:
                problems.append(f"--set {setting}: expected NAME=VALUE with a value of type {kind}")
            problems += runs.parameter_problems({name: parameters[name]})
    return problems


def _run(
    folder: Path, notebooks: Sequence[Path], manifest: dict[str, Any], options: argparse.Namespace
) -> str:
    """Run the notebooks, end the manifest whatever happens, print results; return the status."""
    begun = time.monotonic()
    deadline = begun + options.timeout if options.timeout else float("inf")
    metrics: dict[str, dict[str, Any]] = {}
    status, error, report = "failed", None, None
    left = [entry["name"] for entry in manifest["notebooks"] if entry["status"] != "ok"]
    print(f"run {manifest['run_id']}: profile {manifest['profile']}, {len(left)} notebooks",
          flush=True)
    with interruptible():
        try:
            environment = _kernel_environment(folder, manifest)
            for path, entry in zip(notebooks, manifest["notebooks"], strict=True):
                if entry["status"] == "ok":
                    record = runs.read_record(folder, entry["name"])
                    metrics[entry["name"]] = record.get("metrics", {})
                    continue
                _run_notebook(path, entry, manifest, folder, environment, deadline, metrics)
                status = entry["status"]
                if status != "ok":
                    error = f"{entry['name']}: {entry['error']}"
                    break
        except KeyboardInterrupt:
            status, error = "interrupted", "by a signal"
        except Exception as problem:  # a full disk, or an error of ours: the manifest must end
            status, error = "failed", f"{type(problem).__name__}: {problem}"
        _clear_scratch(folder, finished=status == "ok")
        manifest |= {
            "status": status, "error": error, "ended": runs.now(),
            "seconds": round((manifest["seconds"] or 0) + time.monotonic() - begun, 1),
            "exit_code": EXIT_CODES[status],
            "peak_memory_mb": max(manifest["peak_memory_mb"] or 0,
                                  runs.peak_memory_mb(resource.RUSAGE_CHILDREN)),
        }
        if status != "ok":
            _say_why_not_run(manifest)
        try:
            write_json(folder / "metrics.json", metrics)
            write_json(folder / "manifest.json", manifest)
            report = _report(folder, options.figures)
        except Exception as problem:  # nbconvert, jinja2 and plotly each raise their own
            print(f"the run's last files could not be written: {problem}", file=sys.stderr)
            if status == "ok":
                status, error = "failed", f"{type(problem).__name__}: {problem}"
                manifest |= {"status": status, "error": error, "exit_code": EXIT_CODES[status]}
                with contextlib.suppress(OSError):
                    write_json(folder / "manifest.json", manifest)
    print_table([("notebook", "metric", "value")] + [
        (name, metric, runs.format_metric(value))
        for name, values in metrics.items() for metric, value in values.items()
    ])
    if error:
        print(f"{status}: {error}", file=sys.stderr)
    for entry in manifest["notebooks"]:
        if entry["status"] == "not run":
            print(f"{entry['name']}: {entry['error']}", file=sys.stderr)
    if any(entry["status"] != "ok" for entry in manifest["notebooks"]):
        print(f"go on with: finemem resume {manifest['run_id']}", file=sys.stderr)
    if report:
        print(f"report: {report}")
    print(f"status={status} run={manifest['run_id']} seconds={manifest['seconds']:.0f}")
    return status


def _run_notebook(
    path: Path, entry: dict[str, Any], manifest: dict[str, Any], folder: Path,
    environment: Mapping[str, str], deadline: float, metrics: dict[str, dict[str, Any]],
) -> None:
    """Execute one notebook and complete its entry of the manifest, also when it is cut short."""
    started = said = time.monotonic()
    live = sys.stdout.isatty()

    def say() -> None:
        nonlocal said
        running = entry["status"] == "running"
        if running and not live and time.monotonic() - said < SECONDS_A_LINE:
            return
        said = time.monotonic()
        line = f"{entry['name']:<32} {entry['status']:<11} {time.monotonic() - started:7.1f} s"
        if running and (progress := runs.progress_line(folder, path.stem)):
            line += f"  {plain(progress)}"
        if live:  # what was there before is overwritten
            width = shutil.get_terminal_size().columns - 1
            line = line[:width].ljust(width)
        print(line, end="\r" if running and live else "\n", flush=True)

    parameters = dict(entry["parameters"])
    held = folder / "scratch" / f"{path.stem}{CHECKPOINTS}"
    if "resume" in parameters and any(held.glob("checkpoint-*")):  # of a run that was stopped
        parameters["resume"] = True
    entry["status"] = "running"
    try:
        write_json(folder / "manifest.json", manifest)
        entry["status"], entry["error"] = _execute(
            path, parameters, folder, environment, deadline, say
        )
    except KeyboardInterrupt:
        entry["status"], entry["error"] = "interrupted", "interrupted"
        raise
    finally:
        if entry["status"] == "running":
            entry["status"] = "failed"
        entry["seconds"] = round(time.monotonic() - started, 1)
        say()
        record = _add_record(entry, folder)
        metrics[entry["name"]] = record.get("metrics", {})
        manifest["outputs"] |= {name: record["writes"][name] for name in entry["writes"]}
        manifest["inputs"] |= {
            f"{read['run_id']}/{name}": read["sha256"]
            for name, read in record.get("reads", {}).items()
            if read["run_id"] != manifest["run_id"]
        }
        if checkpoint := record.get("checkpoint"):
            held = checkpoint["sha256"] or checkpoint.get("commit")
            manifest["inputs"][checkpoint["source"]] = held


def _kernel_environment(folder: Path, manifest: Mapping[str, Any]) -> dict[str, str]:
    """Return the variables of the kernels, and write a kernelspec for exactly this interpreter:
    a "python3" of the user's own may start another environment."""
    from ipykernel.kernelspec import write_kernel_spec

    scratch = folder / "scratch"
    write_kernel_spec(scratch / "kernels" / "python3")
    offline = hub_offline(entry["parameters"] for entry in manifest["notebooks"])
    inherited = os.environ.get("JUPYTER_PATH")
    return KERNEL_ENVIRONMENT | {
        "FINEMEM_RUNS_DIR": str(folder.parent),
        "FINEMEM_REUSE_RUN": manifest["reuse"] or "",
        "TENSORBOARD_LOGGING_DIR": os.environ.get("TENSORBOARD_LOGGING_DIR")
        or str(folder / "tensorboard"),
        "WANDB_DIR": os.environ.get("WANDB_DIR") or str(folder),
        "HF_HUB_OFFLINE": str(int(offline)),
        "JUPYTER_PATH": os.pathsep.join(filter(None, (str(scratch), inherited))),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
    }


def _report(folder: Path, figures: str | None) -> Path:
    """Write the run's report, export the kept figures when asked to; return the report's path."""
    from finemem_lib.report import build_report, save_figures

    path = build_report(folder, folder / "report.html")
    if figures is not None:
        import plotly.io

        target = Path(figures) if figures else repository_root() / "figures" / folder.name
        save_figures({target / kept.stem: plotly.io.read_json(kept)
                      for kept in sorted((folder / "figures").glob("*.json"))})
        print(f"figures: {target}")
    return path


def list_command(options: argparse.Namespace) -> int:
    """Print one line per run, the newest last."""
    rows = []
    root = runs.runs_folder()
    for folder in root.glob("*/"):
        if not (folder / "manifest.json").exists():
            if records := runs.recorded(folder):  # made in JupyterLab, notebook by notebook
                done = sum(record["status"] == "ok" for record in records)
                rows.append((min(record["started"] for record in records), folder.name,
                             "JupyterLab", "", f"{done}/{len(records)}", ""))
            continue
        try:
            found = read_manifest(folder)
        except ValueError:
            rows.append(("", folder.name, "unreadable", "", "", ""))
            continue
        done = sum(entry["status"] == "ok" for entry in found["notebooks"])
        seconds = "" if found["seconds"] is None else f"{found['seconds']:.0f}"
        rows.append((found["started"], found["run_id"], found["status"], found["profile"],
                     f"{done}/{len(found['notebooks'])}", seconds))
    print_table([("started", "run", "status", "profile", "notebooks", "seconds"), *sorted(rows)])
    if not rows:
        print(f"no runs in {root}; start one with `finemem run`")
    return 0


def report_command(options: argparse.Namespace) -> int:
    """Make a run's report again and print its path."""
    try:
        folder = runs.run_folder(options.run)
        read_manifest(folder, settle=True)
    except ValueError as error:
        raise UsageError(str(error)) from error
    print(f"report: {_report(folder, options.figures)}")
    return 0


def sweep_command(options: argparse.Namespace) -> int:
    """Make the cells of a design that a folder lacks, print its table; return the exit code."""
    from finemem_lib import experiment, experiment_table

    try:
        design = experiment.load_design(Path(options.design))
    except ValueError as error:
        raise UsageError(str(error)) from error
    cells = design.cells
    print(f"{design.description}\n{len({cell.key for cell in cells})} cells", flush=True)
    started = time.monotonic()

    def say(done: int, total: int, cell: experiment.Cell, what: str) -> None:
        print(f"{done:4}/{total} {time.monotonic() - started:7.0f} s  {cell.regime}, "
              f"{cell.variant}, seed {cell.seed}: {what}", flush=True)

    folder = Path(options.output)
    try:
        # Not once: Python drops an interrupt that arrives while an object is being deleted.
        with interruptible(once=False):
            results, failures = experiment.run_cells(
                cells, folder, jobs=options.jobs, scheduler=options.scheduler, progress=say
            )
    except (ValueError, ModuleNotFoundError) as error:
        raise UsageError(str(error)) from error
    except KeyboardInterrupt:
        print(f"interrupted; finished cells are in {folder}, the same command goes on from them",
              file=sys.stderr)
        raise
    print_table([
        ("regime", "variant", "measure", "value", "difference", "seeds"),
        *((row.regime, row.variant, row.measure, experiment_table.format_interval(row),
           experiment_table.format_difference(row), str(row.seeds))
          for row in experiment_table.table(results, design.baseline)),
    ])
    name = Path(options.design).stem
    command = f"finemem sweep {Path(options.design).name} --output FOLDER " + (
        "--scheduler ADDRESS" if options.scheduler else f"--jobs {options.jobs}"
    )
    card = experiment.experiment_card(design, results, failures, command)
    experiment.write_rows(results, folder / f"{name}.jsonl", card)
    print(f"rows: {folder / f'{name}.jsonl'}")
    for failure in failures:
        print(f"failed: {failure.cell.regime}, {failure.cell.variant}, seed {failure.cell.seed}: "
              f"{failure.error}", file=sys.stderr)
    return EXIT_CODES["failed" if failures else "ok"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="finemem", description="The Fine-Mem workbench: notebooks in order, one run folder.",
        epilog="exit codes: 0 ok, 1 failed, 2 bad usage, 3 timeout, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True)
    figures = {"nargs": "?", "const": "", "metavar": "FOLDER",
               "help": "export the figures the notebooks kept (default: figures/RUN)"}

    run = commands.add_parser("run", help="run notebooks and make the report")
    run.set_defaults(command=run_command)
    add_arguments(run)
    run.add_argument("--run-id", metavar="ID", help="name of the run (default: time and a number)")
    run.add_argument("--reuse", metavar="RUN",
                     help="take artefacts that the chosen notebooks do not write from this run")
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="for the whole run")
    run.add_argument("--figures", **figures)

    resume = commands.add_parser("resume", help="go on with a run that was stopped or failed")
    resume.set_defaults(command=resume_command)
    resume.add_argument("run", metavar="RUN")
    resume.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                        help=f"a parameter that is not held: {', '.join(sorted(RESUMABLE))}")
    resume.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="for what is left")
    resume.add_argument("--figures", **figures)

    commands.add_parser("list", help="show the runs").set_defaults(command=list_command)

    sweep = commands.add_parser("sweep", help="run an experiment cell by cell, in parallel")
    sweep.set_defaults(command=sweep_command)
    sweep.add_argument("design", metavar="DESIGN", help="a file as in notebooks/designs")
    sweep.add_argument("--output", required=True, metavar="FOLDER",
                       help="one file per finished cell; those that are there are not run again")
    sweep.add_argument("--jobs", type=_jobs, default=2, metavar="N", help="processes (default: 2)")
    sweep.add_argument("--scheduler", metavar="ADDRESS",
                       help="of a Dask cluster that runs the cells (extra dask)")

    prepare.add_commands(commands)
    plan.add_command(commands)

    report = commands.add_parser("report", help="make the report of a run again")
    report.set_defaults(command=report_command)
    report.add_argument("run", metavar="RUN")
    report.add_argument("--figures", **figures)
    return parser


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 < seconds < float("inf"):
        raise ValueError
    return seconds


def _jobs(text: str) -> int:
    jobs = int(text)
    if jobs < 1:
        raise ValueError
    return jobs


def main(arguments: Sequence[str] | None = None) -> int:
    """Carry out a command line and return its exit code."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(arguments)
    options.command_line = arguments
    try:
        return options.command(options)
    except UsageError as error:
        print(f"finemem: {error}", file=sys.stderr)
        return BAD_USAGE
    except KeyboardInterrupt:
        return EXIT_CODES["interrupted"]


if __name__ == "__main__":
    sys.exit(main())
