"""Run and resume: notebooks in order through papermill, one folder and one manifest per run."""

from __future__ import annotations

import argparse
import contextlib
import os
import resource
import secrets
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finemem_lib.cli.execute import CHECKPOINTS, _clear_scratch, _execute
from finemem_lib.cli.manifest import (
    _add_record,
    _data_hash,
    _new_manifest,
    _say_why_not_run,
    _source_hash,
    _this_process,
    read_manifest,
)
from finemem_lib.cli.profiles import (
    cannot_load,
    check_reads,
    coerce,
    hub_offline,
    requested,
    resolve_parameters,
    unusable_sources,
)
from finemem_lib.runs import run as run_module
from finemem_lib.runs.parameters import parameter_problems
from finemem_lib.training.checkpoints import MEMORY_ONLY
from finemem_lib.util.console import EXIT_CODES, UsageError, interruptible, plain, print_table
from finemem_lib.util.files import alone, write_json
from finemem_lib.util.provenance import git_state, repository_root

RESUMABLE = (*MEMORY_ONLY, "jobs", "report_to", "save_every")
"""The parameters that change nothing that is trained or found, so that `finemem resume` may be
given others. Under another batch_size the tests draw other completions."""

SECONDS_A_LINE = 60.0
"""How often a running notebook's progress is printed where there is no terminal."""

KERNEL_ENVIRONMENT = {
    "FINEMEM_EXPLORERS": "static",
    "HF_HUB_OFFLINE": "1",
    "PLOTLY_RENDERER": "plotly_mimetype",
    "PYTHONHASHSEED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "TQDM_DISABLE": "1",
}
"""What kernels see beside the user's environment."""


def run_command(options: argparse.Namespace) -> int:
    """Run notebooks in order until one fails; return the exit code."""
    profile, notebooks, given = requested(options)
    stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    run_id = options.run_id or f"{stamp}-{secrets.token_hex(2)}"
    try:
        folder = run_module.run_folder(run_id)
        if options.reuse and not run_module.recorded(run_module.run_folder(options.reuse)):
            read_manifest(run_module.run_folder(options.reuse))  # says what is wrong with it
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
        folder = run_module.run_folder(options.run)
        if not folder.is_dir():
            read_manifest(folder)  # says what is wrong with it
        busy = (
            f"run {folder.name!r} is just being resumed by another process; `finemem list` "
            "shows how it is"
        )
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
        raise UsageError(
            f"run {options.run!r} is running, as process {process['pid']} on "
            f"{process['host']}; wait for its end, or stop it"
        )
    left = [entry for entry in manifest["notebooks"] if entry["status"] != "ok"]
    if not left:
        raise UsageError(
            f"run {options.run!r} has nothing left to run; `finemem report "
            f"{options.run}` makes its report again"
        )
    problems = _set_anew(left, options.set)
    place = Path(manifest.get("notebooks_dir") or repository_root() / "notebooks")
    notebooks = [place / f"{entry['name']}.ipynb" for entry in manifest["notebooks"]]
    problems += [f"notebook {path} is gone" for path in notebooks if not path.is_file()]
    sources = dict.fromkeys(s for entry in left for s in entry["parameters"].get("data", ()))
    problems += [
        f"data {source} has changed since the run began; start a new run"
        for source in sources
        if _data_hash(source) != manifest["inputs"].get(source)
    ]
    problems += [what for entry in left for what in unusable_sources(entry["parameters"])]
    offline = hub_offline(entry["parameters"] for entry in manifest["notebooks"])
    problems += cannot_load({entry["name"]: entry["parameters"] for entry in left}, offline)
    if problems:
        raise UsageError(
            "\n  ".join([f"run {options.run!r} cannot be resumed:", *dict.fromkeys(problems)])
        )
    manifest["resumed"] = [
        *manifest.get("resumed", ()),
        {
            "at": run_module.now(),
            "process": _this_process(),
            "git": git_state(repository_root()),
            "after": {"status": manifest["status"], "error": manifest["error"], "process": process},
            "notebooks": [entry["name"] for entry in left],
            "set": options.set,
        },
    ]
    manifest |= {
        "status": "running",
        "exit_code": None,
        "error": None,
        "ended": None,
        "process": _this_process(),
    }
    hashes = dict(zip((path.stem for path in notebooks), map(_source_hash, notebooks), strict=True))
    for entry in left:
        entry |= {
            "status": "not run",
            "error": None,
            "seconds": None,
            "source_sha256": hashes[entry["name"]],
        }
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
        having = [
            entry["parameters"]
            for entry in left
            if number in ("", entry["name"][:2]) and name in entry["parameters"]
        ]
        if name not in RESUMABLE:
            problems.append(
                f"--set {setting}: a resumed run keeps its parameters but for "
                f"{', '.join(sorted(RESUMABLE))}; start a new run for others"
            )
        elif not having:
            problems.append(f"--set {setting}: no notebook that is left has this parameter")
        for parameters in having if name in RESUMABLE else ():
            kind = type(parameters[name]).__name__
            try:
                parameters[name] = coerce(text, kind)
            except ValueError:
                problems.append(f"--set {setting}: expected NAME=VALUE with a value of type {kind}")
            problems += parameter_problems({name: parameters[name]})
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
    print(
        f"run {manifest['run_id']}: profile {manifest['profile']}, {len(left)} notebooks",
        flush=True,
    )
    with interruptible():
        try:
            environment = _kernel_environment(folder, manifest)
            for path, entry in zip(notebooks, manifest["notebooks"], strict=True):
                if entry["status"] == "ok":
                    record = run_module.read_record(folder, entry["name"])
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
            "status": status,
            "error": error,
            "ended": run_module.now(),
            "seconds": round((manifest["seconds"] or 0) + time.monotonic() - begun, 1),
            "exit_code": EXIT_CODES[status],
            "peak_memory_mb": max(
                manifest["peak_memory_mb"] or 0, run_module.peak_memory_mb(resource.RUSAGE_CHILDREN)
            ),
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
    print_table(
        [("notebook", "metric", "value")]
        + [
            (name, metric, run_module.format_metric(value))
            for name, values in metrics.items()
            for metric, value in values.items()
        ]
    )
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
    path: Path,
    entry: dict[str, Any],
    manifest: dict[str, Any],
    folder: Path,
    environment: Mapping[str, str],
    deadline: float,
    metrics: dict[str, dict[str, Any]],
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
        if running and (progress := run_module.progress_line(folder, path.stem)):
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
    from finemem_lib.cli.report import build_report, save_figures

    path = build_report(folder, folder / "report.html")
    if figures is not None:
        import plotly.io

        target = Path(figures) if figures else repository_root() / "figures" / folder.name
        save_figures(
            {
                target / kept.stem: plotly.io.read_json(kept)
                for kept in sorted((folder / "figures").glob("*.json"))
            }
        )
        print(f"figures: {target}")
    return path
