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
import ast
import contextlib
import hashlib
import json
import multiprocessing.connection
import os
import platform
import re
import resource
import secrets
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib import __version__, prepare, runs
from finemem_lib.console import BAD_USAGE, EXIT_CODES, UsageError, interruptible, print_table
from finemem_lib.files import discard, write_json
from finemem_lib.repro import git_state, repository_root, versions

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

MANIFEST_VERSION = 1
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

_SECRET = re.compile(r"(^|_)(key|token|secret|password|credentials?)$", re.IGNORECASE)


# ---- what to run ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Profile:
    """A named set of parameters: which notebooks run, parameters for all of them that declare the
    name, parameters for single notebooks by number, and parameters the user must give."""

    name: str
    description: str
    notebooks: list[str]
    parameters: dict[str, Any]
    notebook_parameters: dict[str, dict[str, Any]]
    requires: list[str]


def load_profile(folder: Path, name: str) -> Profile:
    """Read ``<name>.yaml`` of a folder of profiles.

    Raises:
        UsageError: there is no such profile, or a key of it is unknown or has the wrong type.
    """
    import yaml
    from pydantic import BaseModel, ConfigDict, ValidationError

    class File(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        description: str
        notebooks: list[str]
        parameters: dict[str, Any] = {}
        notebook_parameters: dict[str, dict[str, Any]] = {}
        requires: list[str] = []

    known = sorted(path.stem for path in folder.glob("*.yaml"))
    if name not in known:
        have = ", ".join(known) or "none"
        raise UsageError(f"no profile {name!r} in {folder}; there are: {have}")
    try:
        content = yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
        return Profile(name=name, **File.model_validate(content).model_dump())
    except (ValidationError, yaml.YAMLError, UnicodeError) as error:
        raise UsageError(f"profile {name}.yaml is not usable: {error}") from error


def select_notebooks(folder: Path, selection: Sequence[str]) -> list[Path]:
    """Return the notebooks ``NN_*.ipynb`` of a folder that a selection names, in their order.

    A selection is numbers and ranges, as in ``01,03-05``.

    Raises:
        UsageError: a part is no number or range, or names no notebook.
    """
    found = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    chosen: set[int] = set()
    for part in ",".join(selection).split(","):
        match = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not numbers or not {numbers[0], numbers[-1]} <= set(found):
            have = ", ".join(path.stem for path in found.values()) or "none"
            raise UsageError(
                f"notebooks {part!r}: expected numbers and ranges of notebooks as in 01,03-05; "
                f"{folder} has: {have}"
            )
        chosen.update(number for number in numbers if number in found)
    return [found[number] for number in sorted(chosen)]


def coerce(value: Any, annotation: str) -> Any:
    """Return a value in the type a parameters cell declares; text is read as that type.

    Raises:
        ValueError: the value does not fit, or the annotation is not bool, int, float, str or a
            list of these.

    >>> coerce("1e-5", "float"), coerce("007", "str"), coerce("true", "bool")
    (1e-05, '007', True)
    >>> coerce("0, 0.5", "list[float]"), coerce("a b", "list"), coerce(2, "float")
    ([0.0, 0.5], ['a b'], 2.0)
    """
    from pydantic import FiniteFloat, TypeAdapter

    if match := re.fullmatch(r"list(?:\[(\w+)\])?", annotation):
        if isinstance(value, str):
            import yaml

            try:
                value = yaml.safe_load(value if value.lstrip().startswith("[") else f"[{value}]")
            except yaml.YAMLError as error:
                raise ValueError("not a list") from error
        if not isinstance(value, list):
            raise ValueError("not a list")
        return [coerce(item, match[1]) for item in value] if match[1] else value
    kinds = {"bool": bool, "int": int, "float": FiniteFloat, "str": str}
    if annotation not in kinds:
        raise ValueError(f"declared as {annotation}, which cannot be given from outside")
    adapter = TypeAdapter(kinds[annotation])
    if isinstance(value, str):
        return adapter.validate_strings(value)
    return adapter.validate_python(value, strict=True)


def resolve_parameters(
    notebooks: Sequence[Path], profile: Profile, given: Mapping[str, Any], run_id: str
) -> dict[str, dict[str, Any]]:
    """Return every parameter of every notebook (by name): what the user gave, else the profile,
    else the notebook's own default. A name may carry a notebook's number, as in ``04.updates``.

    Raises:
        UsageError: a name is unknown, or a value has the wrong type or is refused by its check.
    """
    declared = {path.stem: _declared(path) for path in notebooks}
    of_profile = select_notebooks(notebooks[0].parent, profile.notebooks)
    known = {path.stem: declared.get(path.stem) or _declared(path) for path in of_profile}
    for_one = {f"{number}.{name}": value
               for number, parameters in profile.notebook_parameters.items()
               for name, value in parameters.items()}
    problems, resolved = [], {}
    for stem, parameters in declared.items():
        values = {name: default for name, (_, default) in parameters.items()}
        for layer in (profile.parameters, for_one, given):  # later ones win, and NN.NAME over NAME
            for full_name in sorted(layer, key=lambda name: "." in name):
                number, _, name = full_name.rpartition(".")
                if name in parameters and number in ("", stem[:2]):
                    annotation = parameters[name][0]
                    try:
                        values[name] = coerce(layer[full_name], annotation)
                    except ValueError:
                        problems.append(
                            f"{stem}: {name} is {layer[full_name]!r}, expected {annotation}"
                        )
        problems += [
            f"{stem}: {name} looks like a secret, and parameters are stored; give it as an "
            "environment variable" for name in values if _SECRET.search(name)
        ]
        checked = {name: value for name, value in values.items() if name in runs.CHECKS}
        problems += [f"{stem}: {problem}" for problem in runs.parameter_problems(checked)]
        resolved[stem] = values | {"run_id": run_id}
    problems += _unknown(given, declared)
    problems += _unknown([*profile.parameters, *for_one], known | declared)
    for name in profile.requires:
        if not any(values.get(name) for values in resolved.values()):
            option = "--data PATH" if name == "data" else f"--set {name}=VALUE"
            problems.append(f"profile {profile.name} needs {name}: give {option}")
    if problems:
        raise UsageError("\n  ".join(["parameters are refused:", *dict.fromkeys(problems)]))
    return resolved


def _declared(path: Path) -> dict[str, tuple[str, Any]]:
    """Return annotation and default of every parameter in a notebook's parameters cell."""
    import papermill

    try:
        found = {name: (entry["inferred_type_name"], ast.literal_eval(entry["default"]))
                 for name, entry in papermill.inspect_notebook(str(path)).items()}
    except Exception as error:  # nbformat, json, papermill and ast each raise their own
        raise UsageError(f"the parameters of {path} are not readable: {error}") from error
    if "run_id" not in found:
        raise UsageError(f"{path.name} has no parameter run_id in a cell tagged 'parameters'")
    return found


def _unknown(names: Iterable[str], declared: Mapping[str, Mapping[str, Any]]) -> list[str]:
    problems = []
    for full_name in names:
        number, _, name = full_name.rpartition(".")
        places = [parameters for stem, parameters in declared.items()
                  if number in ("", stem[:2])]
        if not places:
            problems.append(
                f"{full_name}: notebook {number} is not chosen, only "
                f"{', '.join(stem[:2] for stem in declared)}; choose it with --notebooks, or leave "
                "the parameter out"
            )
        elif not any(name in parameters for parameters in places):
            have = sorted({each for parameters in places for each in parameters} - {"run_id"})
            problems.append(
                f"unknown parameter {full_name}; there are: {', '.join(have) or 'none'}"
            )
    return problems


# ---- what a notebook reads -----------------------------------------------------------------------


def check_reads(
    notebooks: Sequence[Path], resolved: Mapping[str, Mapping[str, Any]], reuse: str | None
) -> None:
    """Check that what every notebook will load is written before it, or lies in the run `reuse`.

    Raises:
        UsageError: an artefact would be missing.
    """
    problems = []
    for place, path in enumerate(notebooks):
        before = {one.stem for one in notebooks[:place]}
        for name, because in sorted(_reads(path, resolved[path.stem]).items()):
            artefact = runs.ARTEFACTS.get(name)
            if artefact is None or artefact.notebook in before:
                continue  # a name that nobody writes is the notebook's mistake; it says so itself
            if reuse and runs.written_entry(runs.run_folder(reuse), name):
                continue
            number, writer = path.stem[:2], artefact.notebook[:2]
            other = "".join(
                f", or set {number}.{each} (it is {resolved[path.stem][each]!r}) to something else"
                for each in sorted(because)
            )
            where = f" and run {reuse!r} does not hold" if reuse else ""
            problems.append(
                f"{path.stem} reads {name}, which {artefact.notebook} writes{where}: choose it too "
                f"(--notebooks {writer},{number}), or take it from a run that has it (--reuse RUN; "
                f"`finemem list` shows the runs){other}"
            )
    if problems:
        raise UsageError("\n  ".join(["artefacts would be missing:", *problems]))


def _reads(path: Path, parameters: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the artefacts that a notebook's cells load by name, each with the parameters that an
    `if` around it asks for. Branches that these parameters rule out are left out."""
    found: dict[str, set[str]] = {}

    def look(nodes: Iterable[ast.AST], because: frozenset[str]) -> None:
        for node in nodes:
            match node:
                case ast.If(test=test, body=body, orelse=orelse):
                    asked = {each.id for each in ast.walk(test) if isinstance(each, ast.Name)}
                    if (answer := _answer(test, parameters)) is None:
                        look([test, *body, *orelse], because)
                    else:
                        look(body if answer else orelse, because | asked)
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="run"), attr="load"),
                    args=[ast.Constant(value=str(name))],
                ):
                    found.setdefault(name, set()).update(because)
                case _:
                    look(ast.iter_child_nodes(node), because)

    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.suppress(SyntaxError):  # a cell with IPython's own syntax
                look(ast.parse("".join(cell["source"])).body, frozenset())
    return found


def _answer(test: ast.expr, parameters: Mapping[str, Any]) -> bool | None:
    """Return what a test that is a parameter, or compares one with a value, comes to under these
    parameters, `None` for any other test."""
    match test:
        case ast.Name(id=name) if name in parameters:
            return bool(parameters[name])
        case ast.Compare(
            left=ast.Name(id=name), ops=[ast.Eq() | ast.NotEq() as equal],
            comparators=[ast.Constant(value=value)],
        ) if name in parameters:
            return (parameters[name] == value) == isinstance(equal, ast.Eq)
    return None


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
        read_manifest(folder, settle=True)
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


def _clear_scratch(folder: Path) -> None:
    """Remove what a run needs only while it is running, and what a killed kernel left beside."""
    shutil.rmtree(folder / "scratch", ignore_errors=True)
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
    import psutil

    seeds = {values.get("seed") for values in resolved.values()}
    sources = dict.fromkeys(str(s) for values in resolved.values() for s in values.get("data", ()))
    return {
        "schema_version": MANIFEST_VERSION, "run_id": run_id, "status": "running",
        "exit_code": None, "error": None, "started": runs.now(), "ended": None, "seconds": None,
        "command": ["finemem", *options.command_line], "profile": options.profile,
        "parameters_given": dict(given), "seed": seeds.pop() if len(seeds) == 1 else None,
        "reuse": options.reuse, "inputs": {source: _data_hash(source) for source in sources},
        "outputs": {}, "versions": {"finemem": __version__, **versions()},
        "git": git_state(repository_root()), "platform": platform.platform(),
        "cpus": os.cpu_count(), "peak_memory_mb": None,
        "process": {"pid": os.getpid(), "created": psutil.Process().create_time(),
                    "host": platform.node()},
        "notebooks": [
            {"name": path.stem, "source_sha256": _source_hash(path), "status": "not run",
             "seconds": None, "parameters": resolved[path.stem], "reads": [], "writes": [],
             "error": None}
            for path in notebooks
        ],
    }


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
    """Copy what a notebook read and wrote from its record into its entry; return the record."""
    record = runs.read_record(folder, entry["name"])
    entry |= {"reads": list(record.get("reads", ())), "writes": list(record.get("writes", ())),
              "peak_memory_mb": record.get("peak_memory_mb")}
    return record


# ---- commands ------------------------------------------------------------------------------------


def run_command(options: argparse.Namespace) -> int:
    """Run notebooks in order until one fails; return the exit code."""
    folder_of_notebooks = Path(options.notebooks_dir or repository_root() / "notebooks").resolve()
    profile = load_profile(folder_of_notebooks / "profiles", options.profile)
    notebooks = select_notebooks(folder_of_notebooks, options.notebooks or profile.notebooks)
    given: dict[str, Any] = {}
    for setting in options.set:
        name, equals, value = setting.partition("=")
        if not equals or not re.fullmatch(r"(\d\d\.)?[A-Za-z_]\w*", name):
            raise UsageError(f"--set {setting!r}: expected NAME=VALUE or NN.NAME=VALUE")
        if name.rpartition(".")[2] == "run_id":
            raise UsageError("--set run_id: give --run-id ID")
        given[name] = value
    if options.data:
        given["data"] = [str(Path(source).expanduser().resolve())
                         if Path(source).expanduser().exists() else source
                         for source in options.data]
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


def _run(
    folder: Path, notebooks: Sequence[Path], manifest: dict[str, Any], options: argparse.Namespace
) -> str:
    """Run the notebooks, end the manifest whatever happens, print results; return the status."""
    begun = time.monotonic()
    deadline = begun + options.timeout if options.timeout else float("inf")
    metrics: dict[str, dict[str, Any]] = {}
    status, error, report = "failed", None, None
    print(f"run {manifest['run_id']}: profile {options.profile}, {len(notebooks)} notebooks",
          flush=True)
    with interruptible():
        try:
            environment = _kernel_environment(folder, manifest, options)
            for path, entry in zip(notebooks, manifest["notebooks"], strict=True):
                _run_notebook(path, entry, manifest, folder, environment, deadline, metrics)
                status = entry["status"]
                if status != "ok":
                    error = f"{entry['name']}: {entry['error']}"
                    break
        except KeyboardInterrupt:
            status, error = "interrupted", "by a signal"
        except Exception as problem:  # a full disk, or an error of ours: the manifest must end
            status, error = "failed", f"{type(problem).__name__}: {problem}"
        _clear_scratch(folder)
        manifest |= {
            "status": status, "error": error, "ended": runs.now(),
            "seconds": round(time.monotonic() - begun, 1), "exit_code": EXIT_CODES[status],
            "peak_memory_mb": runs.peak_memory_mb(resource.RUSAGE_CHILDREN),
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
    if left := [entry for entry in manifest["notebooks"] if entry["status"] == "not run"]:
        for entry in left:
            print(f"{entry['name']}: {entry['error']}", file=sys.stderr)
        rest = ",".join(entry["name"][:2] for entry in manifest["notebooks"]
                        if entry["status"] != "ok")
        print(f"go on with: finemem run --notebooks {rest} --reuse {manifest['run_id']} (and the "
              "other options of this command)", file=sys.stderr)
    if report:
        print(f"report: {report}")
    print(f"status={status} run={manifest['run_id']} seconds={manifest['seconds']:.0f}")
    return status


def _run_notebook(
    path: Path, entry: dict[str, Any], manifest: dict[str, Any], folder: Path,
    environment: Mapping[str, str], deadline: float, metrics: dict[str, dict[str, Any]],
) -> None:
    """Execute one notebook and complete its entry of the manifest, also when it is cut short."""
    started = time.monotonic()
    live = sys.stdout.isatty()

    def say() -> None:
        seconds = time.monotonic() - started
        print(f"{entry['name']:<32} {entry['status']:<11} {seconds:7.1f} s",
              end="\r" if entry["status"] == "running" else "\n", flush=True)

    entry["status"] = "running"
    try:
        write_json(folder / "manifest.json", manifest)
        entry["status"], entry["error"] = _execute(
            path, entry["parameters"], folder, environment, deadline, say if live else lambda: None
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
            manifest["inputs"][checkpoint["source"]] = checkpoint["sha256"]


def _kernel_environment(
    folder: Path, manifest: Mapping[str, Any], options: argparse.Namespace
) -> dict[str, str]:
    """Return the variables of the kernels, and write a kernelspec for exactly this interpreter:
    a "python3" of the user's own may start another environment."""
    from ipykernel.kernelspec import write_kernel_spec

    scratch = folder / "scratch"
    write_kernel_spec(scratch / "kernels" / "python3")
    on_hub = None in manifest["inputs"].values()
    inherited = os.environ.get("JUPYTER_PATH")
    return KERNEL_ENVIRONMENT | {
        "FINEMEM_RUNS_DIR": str(folder.parent),
        "FINEMEM_REUSE_RUN": options.reuse or "",
        "HF_HUB_OFFLINE": "0" if on_hub else os.environ.get("HF_HUB_OFFLINE", "1"),
        "JUPYTER_PATH": os.pathsep.join(filter(None, (str(scratch), inherited))),
        "JUPYTER_RUNTIME_DIR": str(scratch / "runtime"),
    }


def _report(folder: Path, figures: str | None) -> Path:
    """Write the run's report, export the kept figures when asked to; return the report's path."""
    from finemem_lib.report import build_report, save_figure

    path = build_report(folder, folder / "report.html")
    if figures is not None:
        import plotly.io

        target = Path(figures) if figures else repository_root() / "figures" / folder.name
        for kept in sorted((folder / "figures").glob("*.json")):
            save_figure(plotly.io.read_json(kept), target / kept.stem)
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
    run.add_argument("--profile", default="default", help="a file of notebooks/profiles")
    run.add_argument("--set", action="append", default=[], metavar="NAME=VALUE",
                     help="a parameter of every notebook that has it; NN.NAME for one notebook")
    run.add_argument("--notebooks", action="append", metavar="01,03-05",
                     help="which notebooks (default: the profile's)")
    run.add_argument("--data", nargs="+", action="extend", metavar="PATH",
                     help="files of real instances, or data sets on the hub as owner/name")
    run.add_argument("--run-id", metavar="ID", help="name of the run (default: time and a number)")
    run.add_argument("--reuse", metavar="RUN",
                     help="take artefacts that the chosen notebooks do not write from this run")
    run.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="for the whole run")
    run.add_argument("--figures", **figures)
    run.add_argument("--notebooks-dir", metavar="FOLDER", help="default: notebooks/")

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
