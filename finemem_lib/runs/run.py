"""What one notebook hands to the next: artefacts by name, and a record of how they were made.

A run is a folder ``data/runs/<run_id>/``. Each notebook checks its parameters with `start_run`,
loads and saves artefacts by the names of `ARTEFACTS`, and keeps one record
``records/<notebook>.json``: parameters, seed, versions, hashes of what it read and wrote, metrics.
An artefact counts as there only once the record of its notebook lists it, and the record is written
last, so a notebook that was killed leaves nothing that a later one could take for whole.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import resource
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.question_store import split_source
from finemem_lib.managers.loading import checkpoint_folder
from finemem_lib.readers.memo import Memo
from finemem_lib.readers.roles import REPLIES, Models, load_roles, usage_line
from finemem_lib.runs.artefacts import READERS, WRITERS, find_artefact
from finemem_lib.runs.notebooks import RUNNING, Notebook, find_notebook, read_json, writers_of
from finemem_lib.runs.parameters import ParameterError, ParameterTable
from finemem_lib.training.checkpoints import MEMORY_ONLY
from finemem_lib.util.files import real_path, write_json, written_beside
from finemem_lib.util.provenance import cpu_threads, repository_root, versions

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from finemem_lib.managers.model import ModelManager

RECORD_VERSION = 1

RESUMABLE = (*MEMORY_ONLY, "jobs", "report_to", "save_every")
"""The parameters that change nothing that is trained or found, so that `finemem resume` may be
given others. Under another batch_size the tests draw other completions."""


def runs_folder() -> Path:
    """Return the folder of all runs: FINEMEM_RUNS_DIR, else ``data/runs`` of the repository."""
    return real_path(os.environ.get("FINEMEM_RUNS_DIR") or repository_root() / "data" / "runs")


def run_folder(run_id: str) -> Path:
    """Return the folder of a run.

    Args:
        run_id: The run's id.

    Raises:
        ValueError: the id could not be the name of a folder.
    """
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", run_id):
        raise ValueError(
            f"run id {run_id!r}: expected letters, digits, '.', '_' and '-', at most 100 of them"
        )
    return runs_folder() / run_id


def locate(source: str) -> Path | None:
    """Return the file a data source names, relative ones from the repository root; `None` for a
    name on the hub (owner/name or owner/name@REVISION, and no such file).

    Args:
        source: One entry of the parameter `data`.

    Raises:
        ValueError: it is neither an existing file with something in it nor the name of a data set.
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
        f"data file {path} {_what(path)}; expected a .jsonl, .json or .parquet file, or a data "
        "set on the hub as owner/name or owner/name@REVISION"
    )


def locate_models(source: str) -> Path | None:
    """Return the file of models that a parameter names, a relative one from the repository root,
    `None` where it names none.

    Args:
        source: The parameter `models`.
    """
    return _absolute(source) if source else None


def locate_questions(source: str) -> str:
    """Return a store of chunk questions as `question_store.load_questions` takes it, a relative
    one from the repository root; "" where none is named.

    Args:
        source: The parameter `questions`.

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
    return real_path(repository_root() / os.path.expanduser(source))


def _what(path: Path) -> str:
    if path.is_dir():
        return "is a folder"
    return "has another ending" if path.exists() else "does not exist"


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and contents.

    Args:
        path: A file or a folder.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = [f"{file.relative_to(path).as_posix()} {sha256(file)}" for file in files]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def peak_memory_mb(who: int) -> float:
    """Return the largest resident size so far, in MB, as `resource.getrusage` counts it.

    Args:
        who: `resource.RUSAGE_SELF`, or `RUSAGE_CHILDREN` for processes that have ended.
    """
    unit = 1e6 if sys.platform == "darwin" else 1e3
    return round(resource.getrusage(who).ru_maxrss / unit, 1)


class Run:
    """One notebook's part in a run; `start_run` makes it.

    Attributes:
        folder: The run's folder.
        notebook: The name of the notebook, and of its record.
        parameters: The notebook's parameters, checked.
        data: The sources of the parameter `data`, files as absolute paths.
        questions: The source of the parameter `questions`, "" where there is none.
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
        """Open the record; `start_run` has checked everything."""
        self.folder = folder
        self.parameters = parameters
        self.models = models
        models.after_batch = self._keep_record  # a notebook that fails has said what it paid
        # replies that an earlier pass paid for stay in the sums
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
        """Return all parameters of the notebook with values, defaults and help, as a table."""
        return ParameterTable(self.parameters)

    def load(self, name: str) -> Any:
        """Return an artefact that an earlier notebook saved.

        An artefact of this run must have been made with this notebook's seed, and from what lies in
        the run now. One that this run lacks is taken from the run that ``--reuse`` names, where
        another seed is allowed: that run was chosen for what it holds.

        Args:
            name: One of `ARTEFACTS`.

        Returns:
            Records as a list, kept trajectories as groups by update, a table as a DataFrame, a
            folder as its path.

        Raises:
            ValueError: there is no artefact of this name, or it has another version, is broken, or
                was made with another seed or from an artefact that has been replaced since.
            FileNotFoundError: no notebook has written it; the message names those that do.
        """
        artefact = find_artefact(name)
        reused = os.environ.get("FINEMEM_REUSE_RUN")
        for folder in (self.folder, *([run_folder(reused)] if reused else [])):
            path = folder / artefact.file
            if written := written_entry(folder, name):
                break
        else:
            raise FileNotFoundError(self._who_writes(name))
        again = f"run notebook {written['notebook']} again"
        if written["version"] != artefact.version:
            raise ValueError(
                f"artefact {name!r} of run {folder.name!r} has version {written['version']}, "
                f"expected {artefact.version}; {again}"
            )
        self._check_origin(name, written, folder)
        try:
            value = READERS[artefact.kind](path)
        except (ValueError, OSError) as error:
            raise ValueError(f"artefact {path} cannot be read ({error}); {again}") from error
        self._record["reads"][name] = {"run_id": folder.name, "sha256": sha256(path)}
        self._keep_record()
        return value

    def _who_writes(self, name: str) -> str:
        writers = [one.stem for one in writers_of(name, self._source.path.parent)]
        return f"artefact {name!r} is not in run {self.folder.name!r}; " + (
            f"notebook {' or '.join(writers)} writes it: run that notebook first, or on the "
            "command line choose it too with --notebooks, or name a run that has it with --reuse"
            if writers
            else f"no notebook in {self._source.path.parent} writes it: name one in its metadata"
        )

    def _check_origin(self, name: str, written: Mapping[str, Any], folder: Path) -> None:
        """Refuse an artefact that another seed, or a replaced artefact, has gone into."""
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
        """Write an artefact, whole or not at all; one that is there already is replaced.

        Args:
            name: One of `ARTEFACTS` that the notebook's metadata name under "writes".
            value: A sequence of records, groups of trajectories by update, rows or a DataFrame, or,
                for a folder, a function that fills the empty folder it is given.

        Raises:
            ValueError: there is no artefact of this name, or the metadata do not name it.
            OSError: it could not be written; what was there before is unchanged.
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
        """Return a folder of the run for what only this notebook needs, such as checkpoints.

        What an earlier pass left there is removed unless `keep`. Checkpoints are never removed:
        they are moved to another folder, whose name is printed.

        Args:
            name: Last part of the folder's name.
            keep: Leave what an earlier pass wrote there, in order to go on from it.
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
        """Note which commit of the hub the parameter `checkpoint` was loaded from; the hash of a
        folder is noted already.

        Args:
            manager: The manager that was loaded.
        """
        self._record["checkpoint"]["commit"] = manager.commit
        self._keep_record()

    def progress(self, line: str) -> None:
        """Say how far this notebook has come; `finemem run` shows the line while it is running.

        Args:
            line: One line of text.
        """
        with written_beside(_progress_file(self.folder, self.notebook)) as beside:
            beside.write_text(line, encoding="utf-8")

    def metric(self, name: str, value: float | int | str | None) -> None:
        """Note a key figure of this notebook; `None` says that it could not be measured.

        Args:
            name: Key of the figure in the record.
            value: A finite number, a text, or `None`.

        Raises:
            ValueError: the value is NaN or infinite.
        """
        if value is not None and not isinstance(value, str):
            value = value.item() if hasattr(value, "item") else value  # numpy and torch scalars
            if not math.isfinite(value):
                raise ValueError(f"metric {name} is {value}, expected a finite number or None")
        self._record["metrics"][name] = value

    def figure(self, name: str, figure: go.Figure) -> None:
        """Keep a figure of this notebook as ``figures/<notebook>-<name>.json`` of the run.

        ``finemem report RUN --figures`` makes images of those that were kept.

        Args:
            name: Letters, digits and "_".
            figure: The figure to keep.

        Raises:
            ValueError: the name is not a plain word.
        """
        if not re.fullmatch(r"\w+", name):
            raise ValueError(f"figure name {name!r}: expected letters, digits and '_'")
        with written_beside(self.folder / "figures" / f"{self.notebook}-{name}.json") as beside:
            beside.write_text(figure.to_json(), encoding="utf-8")

    def model_usage(self) -> dict[str, float]:
        """Return what the language models did for all notebooks of this run so far.

        Returns:
            Sums of the fields of `readers.chat.Usage`; empty where none was asked. Passes of a
            notebook that ran again count each.
        """
        self._keep_record()
        total: dict[str, float] = {}
        for record in recorded(self.folder):
            for entry in record.get("models", ()):
                for name, value in entry["usage"].items():
                    total[name] = total.get(name, 0) + value
        return total

    def finish(self) -> None:
        """End this notebook's record, close the memo of replies, and print what was read, written
        and measured; the text is the same on every run with the same results, but for what
        language models were asked."""
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

    From then on torch computes on as many CPU threads as OMP_NUM_THREADS says, without it on one.

    Args:
        notebook: The name of the notebook's file without ``.ipynb``. Its metadata name the model of
            its parameters and its artefacts.
        variables: Values by name, `globals()` in a notebook. Only the names of parameters are read;
            one that is left out takes its default. A name that papermill injected and that is no
            parameter is refused: IPython's list of cells (`In`) holds the injected cell. A line
            with a misspelt name that a reader adds looks like any other code.

    Returns:
        The notebook's part in the run `run_id`; `parameters` holds the values.

    Raises:
        ValueError: parameters are refused (all are named at once), or other notebooks of the run
            have worked with what this one made under other parameters, or a data file is missing,
            or the file of models is not usable, or there is no such notebook.
        OSError: the run's folder cannot be written.
    """
    source = find_notebook(notebook)
    name = source.stem if RUNNING in os.environ else notebook
    model = source.model()
    given = {one: variables[one] for one in model.model_fields if one in variables}
    given |= {one: variables.get(one) for one in _injected(variables.get("In", ()))}
    try:
        parameters = model.read(given)
    except ParameterError as error:
        raise ValueError(
            f"{name}: {error}. Change it in the parameters cell, or with --set NAME=VALUE on the "
            "command line"
        ) from None
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
        _take_replies(folder)
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
        "models": earlier.get("models", []),
        # what an earlier pass wrote stays valid until it is replaced
        "writes": earlier.get("writes", {}),
    }
    return Run(folder, source, parameters, record, Models(roles), questions)


def _check_replaces_nothing_used(
    folder: Path, notebook: str, values: Mapping[str, Any], earlier: Mapping[str, Any]
) -> None:
    """Refuse parameters under which a notebook would replace what others have worked with.

    A notebook that resumes is asked to replace it, and may. `earlier` is its record so far.
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
                f"another run_id, or delete {files} in {folder} to give those up. Nothing was "
                "changed"
            )


def _compute_on_one_thread() -> None:
    """Let torch compute on one CPU thread, in JupyterLab too, unless OMP_NUM_THREADS says more."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    if torch := sys.modules.get("torch"):  # which has read the variable already
        torch.set_num_threads(cpu_threads() or torch.get_num_threads())


def _injected(cells: Sequence[str]) -> set[str]:
    """Return the names in the cells of a kernel that papermill injected."""
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


def _take_replies(folder: Path) -> None:
    """Copy the replies of the reused run, so that no question is paid for again."""
    reused, mine = os.environ.get("FINEMEM_REUSE_RUN"), folder / REPLIES
    if reused and not mine.exists() and (earlier := run_folder(reused) / REPLIES).exists():
        memo = Memo(earlier)
        with written_beside(mine) as beside:
            memo.copy_to(beside)
        memo.close()


def read_record(folder: Path, notebook: str) -> dict[str, Any]:
    """Return a notebook's record in a run, empty where there is none or it has another version.

    Args:
        folder: The run's folder.
        notebook: Name of the notebook, without ending.
    """
    try:
        record = read_json(_record_file(folder, notebook))
    except ValueError:
        return {}
    known = isinstance(record, dict) and record.get("schema_version") == RECORD_VERSION
    return record if known else {}


def recorded(folder: Path) -> list[dict[str, Any]]:
    """Return the records of the notebooks that took part in a run, in the order of their names.

    Args:
        folder: The run's folder.
    """
    names = sorted(path.stem for path in (folder / "records").glob("*.json"))
    return [record for name in names if (record := read_record(folder, name))]


def written_entry(folder: Path, name: str) -> dict[str, Any] | None:
    """Return what the records of a run say of an artefact.

    Args:
        folder: The run's folder.
        name: One of `ARTEFACTS`.

    Returns:
        Notebook, file, version, sha256, seed and inputs, those of the notebook that saved it last;
        `None` where no record lists it or the file is gone.

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


def replaced_input(
    folder: Path, name: str, seen: frozenset[str] = frozenset()
) -> tuple[str, str] | None:
    """Return an artefact that went into another one and has been replaced since.

    Args:
        folder: The run's folder.
        name: The artefact whose inputs, and theirs, are compared with what lies in the run.
        seen: Artefacts that have been compared already.

    Returns:
        The replaced artefact and the notebook that had read it; `None` where there is none.
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


def format_metric(value: float | int | str | None) -> str:
    """Return a metric as it is shown everywhere: four decimals, a dash for `None`.

    Args:
        value: The metric.

    >>> [format_metric(value) for value in (0.25, -1e-17, 3, None)]
    ['0.2500', '0.0000', '3', '–']
    """
    if isinstance(value, float):
        return f"{round(value, 4) + 0.0:.4f}"  # never "-0.0000", which rounding noise decides
    return "–" if value is None else str(value)


def _record_file(folder: Path, notebook: str) -> Path:
    return folder / "records" / f"{notebook}.json"


def progress_line(folder: Path, notebook: str) -> str:
    """Return the last line of a running notebook on its progress, "" before the first.

    Args:
        folder: The run's folder.
        notebook: Name of the notebook, without ending.
    """
    try:
        return _progress_file(folder, notebook).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return ""


def _progress_file(folder: Path, notebook: str) -> Path:
    return folder / "scratch" / f"{notebook}.progress"
