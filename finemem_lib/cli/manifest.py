"""The manifest of a run: parameters, versions, commit, hashes, and the status of every notebook."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finemem_lib import __version__
from finemem_lib.runs.notebooks import read_json
from finemem_lib.runs.run import locate, now, read_record, recorded
from finemem_lib.util.console import UsageError
from finemem_lib.util.files import sha256, write_json
from finemem_lib.util.provenance import code_root, git_state, versions
from finemem_lib.util.validation import problems_in_words

MANIFEST_VERSION = 1

ACTIVE = ("starting", "running")
"""The statuses of a run that its process has not completed yet."""

_ENDS = {"failed": "failed", "timeout": "ran out of time", "interrupted": "was interrupted"}

RunStatus = Literal["starting", "running", "ok", "failed", "timeout", "interrupted"]
NotebookStatus = Literal["not run", "running", "ok", "failed", "timeout", "interrupted"]


class _Stored(BaseModel):
    """Base of the manifest's models; unknown fields of later versions are kept."""

    model_config = ConfigDict(extra="allow", strict=True)


class ProcessId(_Stored):
    """The process that carries out a run.

    Attributes:
        pid: Its id, which the system can reuse.
        created: Its start time in seconds since 1970, to distinguish it from a later process with
            the same id.
        host: The machine on which it runs.
        since_boot: Its start time in seconds since the boot of the machine, which does not depend
            on the clock, unlike `created`. `None` in manifests of earlier versions.
        boot: Identifier of the boot, if the system provides one.
    """

    pid: int
    created: float
    host: str
    since_boot: float | None = None
    boot: str | None = None

    @classmethod
    def current(cls) -> ProcessId:
        """Return the id of the current process."""
        import psutil

        created = psutil.Process().create_time()
        return cls(
            pid=os.getpid(),
            created=created,
            host=platform.node(),
            since_boot=created - psutil.boot_time(),
            boot=_boot_id(),
        )

    def elsewhere(self) -> bool:
        """Return whether the process is on another machine, where its state is unknown."""
        return self.host != platform.node()

    def may_be_alive(self) -> bool:
        """Return whether the process runs, or is on another machine."""
        import psutil

        if self.elsewhere():
            return True
        with contextlib.suppress(psutil.NoSuchProcess):
            found = psutil.Process(self.pid)
            created, began = found.create_time(), self.created
            if self.since_boot is not None and self.boot is not None:
                if self.boot != _boot_id():
                    return False
                created, began = created - psutil.boot_time(), self.since_boot
            same = abs(created - began) < 2  # seconds; ids are reused
            return bool(same) and found.status() != psutil.STATUS_ZOMBIE
        return False


def _boot_id() -> str | None:
    """Return an identifier of the boot of the machine, `None` if the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return None


class NotebookEntry(_Stored):
    """The state of one notebook of a run.

    Attributes:
        name: Its file name without ``.ipynb``.
        source_sha256: SHA-256 of its cells, without outputs and metadata.
        status: "not run" until it starts.
        parameters: All parameters with their resolved values.
        seconds: Wall-clock time.
        reads: Names of the artefacts that it loaded.
        writes: Names of the artefacts that it saved.
        error: Why it failed or was not run.
        peak_memory_mb: Maximum resident memory of its kernel in MB.
        models: The calls of its language models.
    """

    name: str
    source_sha256: str
    status: NotebookStatus = "not run"
    seconds: float | None = None
    parameters: dict[str, Any]
    reads: list[str] = []
    writes: list[str] = []
    error: str | None = None
    peak_memory_mb: float | None = None
    models: list[dict[str, Any]] = []

    def add_record(self, folder: Path) -> dict[str, Any]:
        """Copy artefacts, model calls and memory from the notebook's record, and return the record.

        Args:
            folder: Folder of the run.
        """
        record = read_record(folder, self.name)
        self.reads = list(record.get("reads", ()))
        self.writes = list(record.get("writes", ()))
        self.peak_memory_mb = record.get("peak_memory_mb")
        self.models = record.get("models", [])
        return record


class Resumption(_Stored):
    """One `finemem resume` of a run.

    Attributes:
        at: Time in ISO 8601.
        process: The process that resumed the run.
        git: Commit at that time.
        after: Status, error and process of the run before.
        notebooks: Names of the remaining notebooks.
        set: Its ``--set`` options.
    """

    at: str
    process: ProcessId
    git: dict[str, Any]
    after: dict[str, Any]
    notebooks: list[str]
    set: list[str]


class Manifest(_Stored):
    """The data needed to repeat a run, and its progress.

    Attributes:
        schema_version: `MANIFEST_VERSION` of the library that wrote it.
        run_id: Name of the run and of its folder.
        status: "starting" until data, versions and commit are recorded.
        exit_code: Exit code of the command, `None` while it runs and if it was killed.
        error: The error that ended the run.
        started: Start time in ISO 8601; `ended` likewise.
        seconds: Wall-clock time, including all resumptions.
        command: The command line.
        profile: Name or path of the profile.
        notebooks_dir: Folder of the notebooks, `None` for those of the repository.
        parameters_given: The parameters of ``--set`` and ``--data``.
        seed: The seed of all notebooks, `None` if they differ.
        reuse: Run whose artefacts are reused.
        inputs: SHA-256 of every data file and artefact of another run, `None` for hub data.
        outputs: File, version and SHA-256 of every artefact by name.
        versions: Versions of Python and of the packages.
        git: Commit, and whether files differ from it.
        platform: Operating system.
        cpus: Number of processors.
        peak_memory_mb: Maximum resident memory of a process of the run in MB.
        process: The process that carries out the run.
        resumed: Every `finemem resume`.
        notebooks: The notebooks in the order in which they run.
    """

    schema_version: int = MANIFEST_VERSION
    run_id: str
    status: RunStatus
    exit_code: int | None
    error: str | None
    started: str
    ended: str | None
    seconds: float | None
    command: list[str]
    profile: str
    notebooks_dir: str | None = None
    parameters_given: dict[str, Any]
    seed: int | None
    reuse: str | None
    inputs: dict[str, str | None]
    outputs: dict[str, dict[str, Any]]
    versions: dict[str, str]
    git: dict[str, Any]
    platform: str | None
    cpus: int | None
    peak_memory_mb: float | None
    process: ProcessId
    resumed: list[Resumption] = []
    notebooks: list[NotebookEntry] = Field(min_length=1)

    def remaining(self) -> list[NotebookEntry]:
        """Return the notebooks that are not ok yet."""
        return [entry for entry in self.notebooks if entry.status != "ok"]

    def explain_not_run(self) -> None:
        """Set the error of every notebook that was not run to the reason."""
        stopped = next((e for e in self.notebooks if e.status not in ("ok", "not run")), None)
        for entry in self.notebooks:
            if entry.status == "not run":
                entry.error = (
                    f"not run: {stopped.name} {_ENDS[stopped.status]} before it"
                    if stopped
                    else f"not run: {self.error}"
                )

    def end_killed(self, folder: Path) -> None:
        """Mark a run whose process was killed as failed.

        Args:
            folder: Folder of the run.
        """
        self.error = "the process of this run was killed"
        if self.status == "starting":
            self.error += " before its first notebook"
        self.status, self.exit_code, self.ended = "failed", None, now()
        for entry in self.notebooks:
            if entry.status == "running":
                entry.status, entry.error = "failed", self.error
                entry.add_record(folder)
        self.explain_not_run()

    def record_origin(self, sources: Iterable[str]) -> None:
        """Record the hashes of data files, the versions and the commit, which takes seconds.

        Args:
            sources: Data files and names on the hub.

        Raises:
            UsageError: a data file is missing or cannot be read.
        """
        self.inputs |= {source: data_hash(source) for source in sources}
        self.versions = {"finemem": __version__, **versions()}
        self.git = git_state(code_root())
        self.platform = platform.platform()


def read_manifest(folder: Path, settle: bool = False) -> Manifest:
    """Read the manifest of a run; it is marked as failed if its process was killed.

    Args:
        folder: Folder of the run.
        settle: Whether to write the changed manifest if the process was killed.

    Raises:
        ValueError: the manifest is missing, cannot be read, or lacks fields.
    """
    path = folder / "manifest.json"
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise _unreadable(folder, problems_in_words(error)) from None
    except OSError as error:
        if not path.exists() and recorded(folder):
            raise ValueError(
                f"run {folder.name!r} was made in JupyterLab, where each notebook keeps its own "
                "outputs, so there are no executed copies to make a report of: `finemem run` makes "
                f"them and the report, `finemem run --notebooks 05 --reuse {folder.name}` those of "
                "some notebooks on this run's artefacts"
            ) from error
        raise _unreadable(folder, error.strerror or str(error)) from error
    if manifest.status in ACTIVE and not manifest.process.may_be_alive():
        manifest.end_killed(folder)
        if settle:
            write_manifest(folder, manifest)
    return manifest


def _unreadable(folder: Path, why: str) -> ValueError:
    return ValueError(
        f"run {folder.name!r} has no readable manifest.json ({why}); choose one of the runs that "
        "`finemem list` shows, or move this one away and start it again"
    )


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write the manifest to the folder of its run, replacing the old one atomically.

    Args:
        folder: Folder of the run.
        manifest: The new manifest.

    Raises:
        OSError: it could not be written; the old one is unchanged.
    """
    write_json(folder / "manifest.json", manifest.model_dump(mode="json"))


def create_run_folder(folder: Path, manifest: Manifest) -> None:
    """Create the folder of a run with its manifest, both or neither.

    Args:
        folder: Folder of the run, which must not exist yet.
        manifest: Its first manifest.

    Raises:
        UsageError: the folder exists or cannot be written.
    """
    beside = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    try:
        if folder.exists():
            raise FileExistsError
        beside.mkdir(parents=True)
        (beside / "notebooks").mkdir()
        write_manifest(beside, manifest)
        os.rename(beside, folder)
    except OSError as error:
        if folder.exists():
            raise UsageError(
                f"run folder {folder} exists; give another --run-id, or move it away"
            ) from error
        raise UsageError(
            f"run folder {folder} cannot be written ({error.strerror}); allow writing there, or "
            "set FINEMEM_RUNS_DIR to another folder"
        ) from error
    finally:
        shutil.rmtree(beside, ignore_errors=True)


def new_manifest(
    run_id: str,
    command: Sequence[str],
    profile: str,
    notebooks: Sequence[Path],
    given: Mapping[str, Any],
    resolved: Mapping[str, dict[str, Any]],
    notebooks_dir: str | None = None,
    reuse: str | None = None,
) -> Manifest:
    """Return the manifest of a run that is starting.

    Args:
        run_id: Name of the run.
        command: The command line, without the program's name.
        profile: Name or path of the profile.
        notebooks: The notebooks in the order in which they will run.
        given: The parameters of ``--set`` and ``--data``.
        resolved: All parameters of every notebook by its name.
        notebooks_dir: Folder of the notebooks, `None` for that of the repository.
        reuse: Run whose artefacts are reused.
    """
    seeds = {values.get("seed") for values in resolved.values()}
    return Manifest(
        run_id=run_id,
        status="starting",
        exit_code=None,
        error=None,
        started=now(),
        ended=None,
        seconds=None,
        command=["finemem", *command],
        profile=profile,
        notebooks_dir=notebooks_dir,
        parameters_given=dict(given),
        seed=seeds.pop() if len(seeds) == 1 else None,
        reuse=reuse,
        inputs={},
        outputs={},
        versions={},
        git={},
        platform=None,
        cpus=os.cpu_count(),
        peak_memory_mb=None,
        process=ProcessId.current(),
        notebooks=[
            NotebookEntry(
                name=path.stem, source_sha256=source_hash(path), parameters=resolved[path.stem]
            )
            for path in notebooks
        ],
    )


def data_sources(parameters: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return the data files and hub names that notebooks read, without duplicates.

    Args:
        parameters: The parameters of every notebook.
    """
    sources = (str(source) for values in parameters for source in values.get("data", ()))
    return list(dict.fromkeys(sources))


def data_hash(source: str) -> str | None:
    """Return the SHA-256 of a data file, `None` for a data set on the hub.

    Args:
        source: A path, or a name on the hub.

    Raises:
        UsageError: the file is missing or cannot be read.
    """
    try:
        path = locate(source)
        return None if path is None else sha256(path)
    except (ValueError, OSError) as error:
        raise UsageError(str(error)) from error


def source_hash(path: Path) -> str:
    """Return the SHA-256 of a notebook's cells, without outputs and metadata.

    Args:
        path: The notebook.

    Raises:
        ValueError: it cannot be read, or has no cells.
    """
    content = read_json(path)
    try:
        source = [[cell["cell_type"], "".join(cell["source"])] for cell in content["cells"]]
    except (KeyError, TypeError):
        raise ValueError(f"notebook {path} has no readable cells; restore it") from None
    return hashlib.sha256(json.dumps(source).encode()).hexdigest()
