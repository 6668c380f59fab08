"""A notebook's part in a run: load and save artefacts, and record how they were made.

A run is a folder ``data/runs/<run_id>/``. Each notebook checks its parameters with `start_run`,
loads and saves artefacts by their names in `ARTEFACTS`, and writes one record
``records/<notebook>.json``: parameters, seed, versions, hashes of the artefacts read and written,
metrics. An artefact exists only once the record of its notebook lists it. The record is written
last, so an interrupted notebook leaves no incomplete artefact that a later one could load.
"""

from __future__ import annotations

import math
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.question_store import split_source
from finemem_lib.managers.loading import checkpoint_folder
from finemem_lib.readers.memo import Memo
from finemem_lib.readers.roles import REPLIES, Models, load_roles, usage_line
from finemem_lib.runs.artefacts import READERS, WRITERS, find_artefact
from finemem_lib.runs.notebooks import RUNNING, Notebook, find_notebook, read_json, writers_of
from finemem_lib.runs.parameters import NotebookParameters, ParameterError, ParameterTable
from finemem_lib.runs.profile_file import ProfileFile, injected_profile
from finemem_lib.training.checkpoints import MEMORY_ONLY
from finemem_lib.util.files import real_path, sha256, write_bytes, write_json, written_beside
from finemem_lib.util.provenance import cpu_threads, versions, workbench_root

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from finemem_lib.managers.model import ModelManager

RECORD_VERSION = 1

RESUMABLE = (*MEMORY_ONLY, "jobs", "report_to", "save_every")
"""The parameters that `finemem resume` may change, because they do not change the training. With
another batch_size, the tests sample other completions."""


def runs_folder() -> Path:
    """Return the folder of all runs: FINEMEM_RUNS_DIR, else ``data/runs`` of the repository."""
    return real_path(os.environ.get("FINEMEM_RUNS_DIR") or workbench_root() / "data" / "runs")


def run_folder(run_id: str) -> Path:
    """Return the folder of a run.

    Args:
        run_id: The run's id.

    Raises:
        ValueError: the id is not a valid folder name.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_id):
        raise ValueError(
            f"run id {run_id!r}: expected letters, digits, '.', '_' and '-', at most 100 of them"
        )
    return runs_folder() / run_id


def locate(source: str) -> Path | None:
    """Return the file of a data source, or `None` for a name on the hub.

    Relative paths start at the repository root. A name on the hub is owner/name or
    owner/name@REVISION for which no file exists.

    Args:
        source: One entry of the parameter `data`.

    Raises:
        ValueError: the source is neither an existing non-empty file nor the name of a data set.
    """
    path = _absolute(source)
    if path.is_file() and path.suffix in (".jsonl", ".json", ".parquet"):
        if path.stat().st_size == 0:
            raise ValueError(f"data file {path} is empty; fetch or write it again")
        return path
    name = r"[\w-][\w.-]*/[\w-][\w.-]*(?<!\.jsonl)(?<!\.json)(?<!\.parquet)(@[\w./-]+)?"
    if re.fullmatch(name, source):
        return None
    raise ValueError(
        f"data file {path} {_problem(path)}; expected a .jsonl, .json or .parquet file, or a data "
        "set on the hub as owner/name or owner/name@REVISION"
    )


def locate_models(source: str) -> Path | None:
    """Return the path of the file of models, or `None` if the parameter is empty.

    Args:
        source: The parameter `models`; a relative path starts at the repository root.
    """
    return _absolute(source) if source else None


def locate_questions(source: str) -> str:
    """Return the source of chunk questions for `question_store.load_questions`, or "".

    Args:
        source: The parameter `questions`; a relative path starts at the repository root.

    Raises:
        ValueError: there is no such folder.
    """
    if not source:
        return ""
    folder, _ = split_source(path := _absolute(source))
    if not folder.is_dir():
        raise ValueError(
            f"questions {folder}: is no folder, expected one that `finemem questions` wrote (or "
            "FOLDER@KEY); make it, or leave the parameter out"
        )
    return str(path)


def _absolute(source: str) -> Path:
    return real_path(workbench_root() / os.path.expanduser(source))


def _problem(path: Path) -> str:
    if path.is_dir():
        return "is a folder"
    return "has another ending" if path.exists() else "does not exist"


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_memory_mb(who: int) -> float:
    """Return the peak resident memory so far, in MB, from `resource.getrusage`.

    Args:
        who: `resource.RUSAGE_SELF`, or `RUSAGE_CHILDREN` for ended child processes.
    """
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return round(resource.getrusage(who).ru_maxrss / unit, 1)


class Run:
    """One notebook's part in a run, created by `start_run`.

    Attributes:
        folder: The run's folder.
        notebook: Name of the notebook and of its record.
        parameters: The validated parameters of the notebook.
        data: The sources of the parameter `data`, files as absolute paths.
        questions: The source of the parameter `questions`, or "".
        models: The language models of the parameter `models`; all notebooks of the run share their
            replies.
    """

    def __init__(
        self,
        folder: Path,
        source: Notebook,
        parameters: Any,
        record: dict[str, Any],
        models: Models,
        questions: str = "",
    ) -> None:
        """Open the record; `start_run` has checked the arguments."""
        self.folder = folder
        self.parameters = parameters
        self.models = models
        models.after_batch = self._keep_record  # record the cost even if the notebook fails later
        # the sums include replies that earlier executions paid for
        self._paid_before = [one for one in record["models"] if one["usage"]["calls"]]
        self.questions = questions
        self.notebook: str = record["notebook"]
        self.data = tuple(source["source"] for source in record["data"])
        self._source = source
        self._record = record
        self._begun = time.monotonic()
        self._written: list[str] = []
        self._keep_record()

    def show_parameters(self) -> ParameterTable:
        """Return a table of all parameters of the notebook with values, defaults and help."""
        return ParameterTable(self.parameters)

    def load(self, name: str) -> Any:
        """Return an artefact that an earlier notebook saved.

        An artefact of this run must have been made with this notebook's seed, and from the run's
        current artefacts. If this run lacks the artefact, it is loaded from the run given by
        ``--reuse``, which may have another seed.

        Args:
            name: A name in `ARTEFACTS`.

        Returns:
            Records as a list, trajectories of updates as groups by update, a table as a DataFrame,
            a folder as its path.

        Raises:
            ValueError: there is no artefact of this name, or it has another version, is broken, or
                was made with another seed or from an artefact that has been replaced since.
            FileNotFoundError: the artefact was not written; the message names the notebooks that
                write it.
        """
        artefact = find_artefact(name)
        reused = os.environ.get("FINEMEM_REUSE_RUN")
        for folder in (self.folder, *([run_folder(reused)] if reused else [])):
            path = folder / artefact.file
            if written := written_entry(folder, name):
                break
        else:
            raise FileNotFoundError(self._missing_message(name))
        again = f"run notebook {written['notebook']} again"
        if written["version"] != artefact.version:
            raise ValueError(
                f"artefact {name!r} of run {folder.name!r} has version {written['version']}, "
                f"expected {artefact.version}; {again}"
            )
        self._check_origin(name, written, folder)
        if (digest := sha256(path)) != written["sha256"]:
            raise ValueError(
                f"artefact {path} is not as {written['notebook']} wrote it: its SHA-256 begins "
                f"with {digest[:12]}, expected {written['sha256'][:12]}; {again}, or put back what "
                "was changed by hand"
            )
        try:
            value = READERS[artefact.kind](path)
        except (ValueError, OSError) as error:
            raise ValueError(f"artefact {path} cannot be read ({error}); {again}") from error
        self._record["reads"][name] = {"run_id": folder.name, "sha256": digest}
        self._keep_record()
        return value

    def _missing_message(self, name: str) -> str:
        writers = [one.stem for one in writers_of(name, self._source.path.parent)]
        return f"artefact {name!r} is not in run {self.folder.name!r}; " + (
            f"notebook {' or '.join(writers)} writes it: run that notebook first, or on the "
            "command line choose it too with --notebooks, or name a run that has it with --reuse"
            if writers
            else f"no notebook in {self._source.path.parent} writes it: name one in its metadata"
        )

    def _check_origin(self, name: str, written: Mapping[str, Any], folder: Path) -> None:
        """Raise an error for an artefact made with another seed or from a replaced artefact."""
        writer, seed = written["notebook"], self._record["seed"]
        made = f"artefact {name!r} of run {folder.name!r} was written by {writer}"
        if folder == self.folder and written.get("seed", seed) != seed:
            raise ValueError(
                f"{made} with seed {written['seed']}, and {self.notebook} runs with seed {seed}; "
                f"run {writer} with seed {seed} first, or give both another run_id. Nothing was "
                "changed"
            )
        if found := replaced_input(folder, name):
            replaced, user = found
            raise ValueError(
                f"{made}, and since then {replaced!r}, from which {user} made its artefacts, has "
                f"been replaced in this run; run {user} and the notebooks after it again, or give "
                f"another run_id to what {replaced!r} was made with. Nothing was changed"
            )

    def save(self, name: str, value: Any) -> None:
        """Write an artefact atomically; an existing one is replaced.

        Args:
            name: A name in `ARTEFACTS` that the notebook's metadata list under "writes".
            value: A sequence of records, groups of trajectories by update, rows or a DataFrame, or,
                for a folder, a function that receives the empty folder and fills it.

        Raises:
            ValueError: there is no artefact of this name, or the metadata do not list it.
            OSError: the artefact could not be written; an earlier version is unchanged.
        """
        artefact = find_artefact(name)
        if name not in self._source.writes:
            raise ValueError(
                f"artefact {name!r} is not one that {self.notebook} writes, according to its "
                f"metadata ({', '.join(self._source.writes) or 'none'}); name it there under "
                "finemem.writes"
            )
        path = self.folder / artefact.file
        with written_beside(path) as beside:
            WRITERS[artefact.kind](beside, value)
        self._record["writes"][name] = {
            "file": artefact.file,
            "version": artefact.version,
            "sha256": sha256(path),
            "saved": datetime.now(UTC).isoformat(),
            "seed": self._record["seed"],
            "parameters": self._record["parameters"],
            "reads": {
                read: entry["sha256"]
                for read, entry in self._record["reads"].items()
                if entry["run_id"] == self.folder.name
            },
        }
        self._written.append(name)
        self._keep_record()

    def scratch(self, name: str, *, keep: bool = False) -> Path:
        """Return a folder of the run for this notebook's internal files, such as checkpoints.

        Files of an earlier execution are removed unless `keep` is set. Checkpoints are never
        removed but moved to another folder, whose name is printed.

        Args:
            name: Last part of the folder's name.
            keep: Whether to keep the files of an earlier execution, in order to resume it.
        """
        folder = self.folder / "scratch" / f"{self.notebook}-{name}"
        if not keep and any(folder.glob("checkpoint-*")):
            stamp = datetime.now(UTC).strftime("%Y%m%d-%H%M%S-%f")
            aside = folder.rename(folder.with_name(f"{self.notebook}-until-{stamp}-{name}"))
            print(
                f"checkpoints of an earlier pass are now in scratch/{aside.name} of the run; to "
                f"go on from them, stop, call the folder {folder.name} again and set resume to "
                "True; else delete it"
            )
        elif not keep:
            shutil.rmtree(folder, ignore_errors=True)
        return folder

    def loaded(self, manager: ModelManager) -> None:
        """Record the hub commit of the parameter `checkpoint`; a folder's hash is already recorded.

        Args:
            manager: The loaded manager.
        """
        self._record["checkpoint"]["commit"] = manager.commit
        self._keep_record()

    def progress(self, line: str) -> None:
        """Report the notebook's progress; `finemem run` shows the line while the notebook runs.

        Args:
            line: One line of text.
        """
        with written_beside(_progress_file(self.folder, self.notebook)) as beside:
            beside.write_text(line, encoding="utf-8")

    def metric(
        self,
        name: str,
        value: float | int | str | None,
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        """Record a metric of this notebook.

        Args:
            name: Name of the metric in the record.
            value: A finite number, a text, or `None` if it could not be measured.
            low: Lower end of its interval, which `finemem diff` compares; `None` where it has none.
            high: Upper end, likewise.

        Raises:
            ValueError: a number is NaN or infinite, or only one end is given.
        """
        value, low, high = (_metric_number(name, one) for one in (value, low, high))
        if (low is None) != (high is None):
            raise ValueError(f"metric {name} has one end of an interval, expected both or none")
        self._record["metrics"][name] = value
        self._record["intervals"].pop(name, None)
        if low is not None:
            self._record["intervals"][name] = [low, high]

    def figure(self, name: str, figure: go.Figure) -> None:
        """Save a figure of this notebook as ``figures/<notebook>-<name>.json`` of the run.

        ``finemem report RUN --figures`` renders the saved figures as images.

        Args:
            name: Name of the figure: letters, digits and "_".
            figure: The figure to save.

        Raises:
            ValueError: the name has other characters.
        """
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"figure name {name!r}: expected letters, digits and '_'")
        path = kept_figure(self.folder, self.notebook, name)
        write_bytes(path, figure.to_json().encode())

    def finding(self, text: str, figure: str) -> None:
        """Record a finding of this notebook, which the run's report shows at the top.

        Args:
            text: One sentence with the computed number and its interval.
            figure: Name of the figure that shows it, saved by `figure` before.

        Raises:
            ValueError: no such figure was saved.
        """
        if not kept_figure(self.folder, self.notebook, figure).exists():
            raise ValueError(
                f"finding of {self.notebook}: figure {figure!r} was not kept, expected the name of "
                f"one that was; call run.figure({figure!r}, ...) before run.finding"
            )
        self._record["findings"].append({"text": text, "figure": figure})

    def model_usage(self) -> dict[str, float]:
        """Return the total usage of language models by all notebooks of this run so far.

        Returns:
            Sums of the fields of `readers.chat.Usage` over all executions; empty if no model was
            used.
        """
        self._keep_record()
        total: dict[str, float] = {}
        for record in recorded(self.folder):
            for entry in record.get("models", ()):
                for name, value in entry["usage"].items():
                    total[name] = total.get(name, 0) + value
        return total

    def finish(self) -> None:
        """Complete this notebook's record, close the memos of replies, and print a summary.

        The summary lists the artefacts read and written, the metrics and the usage of language
        models. Except for that usage it depends only on the results."""
        self._record |= {
            "status": "ok",
            "ended": now(),
            "seconds": round(time.monotonic() - self._begun, 3),
            "peak_memory_mb": peak_memory_mb(resource.RUSAGE_SELF),
        }
        self._keep_record()
        print(f"{self.notebook}, seed {self._record['seed']}")
        print("reads:", ", ".join(self._record["reads"]) or "nothing")
        print("writes:", ", ".join(dict.fromkeys(self._written)) or "nothing")
        for name, value in self._record["metrics"].items():
            print(f"{name}: {format_metric(value)}")
        for entry in self.models.record():
            print(usage_line(entry))
        self.models.close()

    def _keep_record(self) -> None:
        self._record["models"] = [*self._paid_before, *self.models.record()]
        write_json(_record_file(self.folder, self.notebook), self._record)


def start_run(notebook: str, variables: Mapping[str, Any]) -> Run:
    """Check a notebook's parameters and open its part of a run.

    It also sets the number of torch's CPU threads to OMP_NUM_THREADS, or 1.

    Args:
        notebook: The name of the notebook's file without ``.ipynb``. Its metadata name the model of
            its parameters and its artefacts.
        variables: Values by name, `globals()` in a notebook. Only the names of parameters are read;
            one that is left out takes its default. papermill may also inject a profile (its -f). A
            name that it injected and that is no parameter is refused: IPython's list of cells
            (`In`) holds the injected cell. A line with a misspelt name that a reader adds looks
            like any other code.

    Raises:
        ValueError: parameters are invalid (the message names all of them), or other notebooks of
            the run depend on artefacts that this notebook made with other parameters, or a data
            file is missing, or the file of models is not usable, or there is no such notebook.
        OSError: the run's folder cannot be written.
    """
    source = find_notebook(notebook)
    name = source.stem if RUNNING in os.environ else notebook
    fields = source.model().model_fields
    given = {one: variables[one] for one in fields if one in variables}
    injected = {one: variables.get(one) for one in _injected(variables.get("In", ()))}
    parameters = _checked_parameters(name, source, given, injected)
    _compute_on_one_thread()
    values = parameters.model_dump(exclude={"run_id"})
    folder = run_folder(parameters.run_id)
    earlier = read_record(folder, name)
    _check_replaces_nothing_used(folder, name, values, earlier)
    data = [_source_entry(one) for one in values.get("data", ())]
    checkpoint = values.get("checkpoint")
    questions = locate_questions(values.get("questions", ""))
    roles = None
    if path := locate_models(values.get("models", "")):
        roles = load_roles(path, folder)
        _copy_replies(folder)
    record = {
        "schema_version": RECORD_VERSION,
        "notebook": name,
        "run_id": parameters.run_id,
        "status": "running",
        "started": now(),
        "seed": parameters.seed,
        "parameters": values,
        "versions": versions(),
        "threads": cpu_threads(),
        "data": data,
        "checkpoint": _checkpoint_entry(checkpoint) if checkpoint else None,
        "reads": {},
        "metrics": {},
        "intervals": {},
        "findings": [],
        "models": earlier.get("models", []),
        # artefacts of an earlier execution remain valid until they are replaced
        "writes": earlier.get("writes", {}),
    }
    return Run(folder, source, parameters, record, Models(roles), questions)


def _checked_parameters(
    name: str, source: Notebook, given: dict[str, Any], injected: dict[str, Any]
) -> NotebookParameters:
    """Return a notebook's parameters from its variables and from those that papermill injected."""
    model = source.model()
    profile = injected_profile(injected)
    if profile is not None:  # papermill's -f; what -p gave wins
        given |= profile.values_for(source, model.model_fields)
        injected = {k: value for k, value in injected.items() if k not in ProfileFile.model_fields}
    try:
        parameters = model.read(given | injected, texts=profile is not None)
        _check_required(profile, parameters)
    except ParameterError as error:
        raise ValueError(
            f"{name}: {error}. Change it in the parameters cell, or with --set NAME=VALUE on the "
            "command line"
        ) from None
    return parameters


def _check_replaces_nothing_used(
    folder: Path, notebook: str, values: Mapping[str, Any], earlier: Mapping[str, Any]
) -> None:
    """Raise an error if changed parameters would replace artefacts that other notebooks used.

    A resumed notebook may replace them. `earlier` is the notebook's record so far.
    """
    if values.get("resume"):
        return
    others = [record for record in recorded(folder) if record["notebook"] != notebook]
    for artefact, entry in earlier.get("writes", {}).items():
        users = [
            record["notebook"]
            for record in others
            if any(
                written["reads"].get(artefact) == entry["sha256"]
                for written in record["writes"].values()
            )
        ]
        made_with = entry.get("parameters", {})
        changed = [
            f"{one} {made_with[one]!r} (now {value!r})"
            for one, value in values.items()
            if one in made_with and made_with[one] != value and one not in RESUMABLE
        ]
        if users and changed:
            files = " and ".join(f"records/{user}.json" for user in users)
            raise ValueError(
                f"{notebook} made artefact {artefact!r} of run {folder.name!r} with "
                f"{', '.join(changed)}, and {' and '.join(users)} made artefacts from it; give "
                f"another run_id, or delete {files} in {folder} to discard those artefacts. "
                "Nothing was changed"
            )


def _check_required(profile: ProfileFile | None, parameters: NotebookParameters) -> None:
    """Refuse parameters that a profile leaves to the user where the user gave none."""
    if missing := [
        f"the profile needs {name}: give it with -p or -y"
        for name in (profile.requires if profile else ())
        if name in type(parameters).model_fields and not getattr(parameters, name)
    ]:
        raise ParameterError(missing)


def _compute_on_one_thread() -> None:
    """Set torch's CPU threads to 1, also in JupyterLab, unless OMP_NUM_THREADS is set."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if torch := sys.modules.get("torch"):  # torch reads the variable only at import
        torch.set_num_threads(cpu_threads() or torch.get_num_threads())


def _injected(cells: Sequence[str]) -> set[str]:
    """Return the names assigned in the cells that papermill injected."""
    return {
        name
        for cell in cells
        if cell.startswith("# Parameters\n")
        for name in re.findall(r"^(\w+) = ", cell, re.MULTILINE)
    }


def _source_entry(source: str) -> dict[str, Any]:
    path = locate(source)
    return {
        "source": source if path is None else str(path),
        "sha256": None if path is None else sha256(path),
    }


def _checkpoint_entry(checkpoint: str) -> dict[str, Any]:
    folder = checkpoint_folder(checkpoint)
    return {
        "source": checkpoint,
        "sha256": None if folder is None else sha256(folder),
        "commit": None,
    }


def _copy_replies(folder: Path) -> None:
    """Copy the memo of replies from the reused run, so that no reply is paid for twice."""
    reused, mine = os.environ.get("FINEMEM_REUSE_RUN"), folder / REPLIES
    if reused and not mine.exists() and (earlier := run_folder(reused) / REPLIES).exists():
        memo = Memo(earlier)
        with written_beside(mine) as beside:
            memo.copy_to(beside)
        memo.close()


def read_record(folder: Path, notebook: str) -> dict[str, Any]:
    """Return a notebook's record in a run, empty if it is missing or has another version.

    Args:
        folder: The run's folder.
        notebook: Name of the notebook's file without ``.ipynb``.
    """
    try:
        record = read_json(_record_file(folder, notebook))
    except ValueError:
        return {}
    known = isinstance(record, dict) and record.get("schema_version") == RECORD_VERSION
    return record if known else {}


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Return the records of all notebooks of a run, in the order of their names.

    Args:
        folder: The run's folder.
    """
    names = sorted(path.stem for path in (folder / "records").glob("*.json"))
    return [record for name in names if (record := read_record(folder, name))]


def written_entry(folder: Path, name: str) -> dict[str, Any] | None:
    """Return the recorded entry of an artefact in a run.

    Args:
        folder: The run's folder.
        name: A name in `ARTEFACTS`.

    Returns:
        Notebook, file, version, sha256, seed and inputs, from the notebook that saved it last;
        `None` if no record lists the artefact or its file is missing.

    Raises:
        ValueError: there is no artefact of this name.
    """
    if not (folder / find_artefact(name).file).exists():
        return None
    entries = [
        {**record["writes"][name], "notebook": record["notebook"]}
        for record in recorded(folder)
        if name in record["writes"]
    ]
    return max(entries, key=lambda entry: entry.get("saved", ""), default=None)


def changed_artefacts(folder: Path, notebooks: Collection[str]) -> list[str]:
    """Return why artefacts of a run are not what its notebooks wrote, one sentence each.

    Args:
        folder: The run's folder.
        notebooks: The finished notebooks; a killed one may have replaced its recorded artefacts.
    """
    problems = []
    for record in recorded(folder):
        for name in record["writes"] if record["notebook"] in notebooks else ():
            path = folder / find_artefact(name).file
            if not path.exists() or sha256(path) != record["writes"][name]["sha256"]:
                what = "was changed" if path.exists() else "is gone"
                problems.append(
                    f"artefact {path} {what} after {record['notebook']} wrote it; put it back, or "
                    "start a new run"
                )
    return problems


def replaced_input(
    folder: Path, name: str, seen: frozenset[str] = frozenset()
) -> tuple[str, str] | None:
    """Return an input of an artefact that was replaced since, and the notebook that had read it.

    Args:
        folder: The run's folder.
        name: The artefact whose inputs are compared with the run's current artefacts.
        seen: Artefacts that have already been compared.
    """
    entry = written_entry(folder, name)
    if entry is None:
        return None
    seen |= {name}  # a notebook may replace what it has read
    for read, digest in entry.get("reads", {}).items():
        if read in seen:
            continue
        now_there = written_entry(folder, read)
        if now_there is not None and now_there["sha256"] != digest:
            return read, entry["notebook"]
        if found := replaced_input(folder, read, seen):
            return found
    return None


def _metric_number(name: str, value: Any) -> Any:
    """Return a metric's value or an end of its interval as plain Python, refused if not finite."""
    if value is None or isinstance(value, str):
        return value
    value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
    if not math.isfinite(value):
        raise ValueError(f"metric {name} is {value}, expected a finite number or None")
    return value


def format_metric(value: float | int | str | None) -> str:
    """Return a metric as text for display: floats with four decimals, a dash for `None`.

    Args:
        value: The metric.

    >>> [format_metric(value) for value in (0.25, -1e-17, 3, None)]
    ['0.2500', '0.0000', '3', '–']
    """
    if isinstance(value, float):
        return f"{round(value, 4) + 0.0:.4f}"  # + 0.0 avoids "-0.0000"
    return "–" if value is None else str(value)


def kept_figure(folder: Path, notebook: str, name: str) -> Path:
    """Return the path of a notebook's saved figure in a run.

    Args:
        folder: The run's folder.
        notebook: Name of the notebook's file without ``.ipynb``.
        name: Name of the figure.
    """
    return folder / "figures" / f"{notebook}-{name}.json"


def _record_file(folder: Path, notebook: str) -> Path:
    return folder / "records" / f"{notebook}.json"


def progress_line(folder: Path, notebook: str) -> str:
    """Return the last progress line of a running notebook, or "".

    Args:
        folder: The run's folder.
        notebook: Name of the notebook's file without ``.ipynb``.
    """
    try:
        return _progress_file(folder, notebook).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _progress_file(folder: Path, notebook: str) -> Path:
    return folder / "scratch" / f"{notebook}.progress"
