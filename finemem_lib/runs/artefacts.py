"""The artefacts of a run by name: their files and kinds, and how to write and read each kind."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from finemem_lib.trajectory import Instance, Trajectory, read_jsonl, write_jsonl

Kind = Literal["instances", "trajectories", "updates", "table", "folder"]


@dataclass(frozen=True, slots=True)
class Artefact:
    """A file or folder that one notebook saves and others load.

    Attributes:
        file: Name of the file or folder in the run's folder.
        kind: Kind of content, which selects writer and reader.
        version: Version of the layout; increment it when code for the old layout would misread it.
    """

    file: str
    kind: Kind
    version: int = 1


ARTEFACTS: dict[str, Artefact] = {
    "instances": Artefact("instances.jsonl", "instances"),
    "question_audit": Artefact("question_audit.parquet", "table"),
    "trajectories": Artefact("trajectories.jsonl", "trajectories"),
    "rewards": Artefact("rewards.parquet", "table"),
    "training": Artefact("training.parquet", "table"),
    "training_updates": Artefact("training_updates", "folder"),
    "training_rollouts": Artefact("training_rollouts.jsonl", "updates"),
    "trained_manager": Artefact("trained_manager", "folder"),
    "trained_trajectories": Artefact("trained_trajectories.jsonl", "trajectories"),
    "evidence": Artefact("evidence.parquet", "table"),
    "benchmark": Artefact("benchmark.parquet", "table"),
    "benchmark_answers": Artefact("benchmark_answers.parquet", "table"),
    "benchmark_trajectories": Artefact("benchmark_trajectories.jsonl", "trajectories"),
    "experiment": Artefact("experiment.parquet", "table"),
    "experiment_streams": Artefact("experiment_streams.parquet", "table"),
    "rule_credits": Artefact("rule_credits.parquet", "table"),
}
"""Every artefact by name. The metadata of a notebook name the artefacts that it writes."""


def _write_records(record_type: type, path: Path, records: Any) -> None:
    records = list(records)
    for record in records:
        if not isinstance(record, record_type):
            raise TypeError(f"got a {type(record).__name__}, expected {record_type.__name__} only")
    path.write_text(write_jsonl(records), encoding="utf-8")


def _write_updates(path: Path, updates: Mapping[int, Sequence[Sequence[Trajectory]]]) -> None:
    """Write trajectories by update, each with update and group in its metadata."""
    _write_records(
        Trajectory,
        path,
        [
            dataclasses.replace(one, metadata={**one.metadata, "update": update, "group": place})
            for update, groups in updates.items()
            for place, group in enumerate(groups)
            for one in group
        ],
    )


def _read_updates(path: Path) -> dict[int, list[list[Trajectory]]]:
    found: dict[int, dict[int, list[Trajectory]]] = {}
    for one in read_jsonl(Trajectory, path.read_text(encoding="utf-8")):
        groups = found.setdefault(one.metadata["update"], {})
        groups.setdefault(one.metadata["group"], []).append(one)
    return {update: list(groups.values()) for update, groups in found.items()}


def _write_table(path: Path, rows: Any) -> None:
    import pandas as pd

    pd.DataFrame(rows).to_parquet(path, index=False)


def _read_table(path: Path) -> Any:
    import pandas as pd

    return pd.read_parquet(path)


def _fill_folder(path: Path, fill: Callable[[Path], Any]) -> None:
    path.mkdir()
    fill(path)


WRITERS: dict[Kind, Callable[[Path, Any], None]] = {
    "instances": lambda path, value: _write_records(Instance, path, value),
    "trajectories": lambda path, value: _write_records(Trajectory, path, value),
    "updates": _write_updates,
    "table": _write_table,
    "folder": _fill_folder,
}

READERS: dict[Kind, Callable[[Path], Any]] = {
    "instances": lambda path: read_jsonl(Instance, path.read_text(encoding="utf-8")),
    "trajectories": lambda path: read_jsonl(Trajectory, path.read_text(encoding="utf-8")),
    "updates": _read_updates,
    "table": _read_table,
    "folder": lambda path: path,
}


def find_artefact(name: str) -> Artefact:
    """Return an artefact by name.

    Args:
        name: A name in `ARTEFACTS`.

    Raises:
        ValueError: there is no artefact of this name.
    """
    if name not in ARTEFACTS:
        raise ValueError(f"no artefact is called {name!r}; there are {', '.join(ARTEFACTS)}")
    return ARTEFACTS[name]
