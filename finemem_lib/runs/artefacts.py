"""Artefacts by name: their files, their kinds, and the notebook that writes each."""

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
    """A thing notebooks hand over: its file, what is in it, the notebook that writes it, and the
    version of its layout (count it up when a reader of the old layout would be misled)."""

    file: str
    kind: Kind
    notebook: str
    version: int = 1


ARTEFACTS: dict[str, Artefact] = {
    "instances": Artefact("instances.jsonl", "instances", "01_question_generation"),
    "question_audit": Artefact("question_audit.parquet", "table", "01_question_generation"),
    "trajectories": Artefact("trajectories.jsonl", "trajectories", "02_memory_and_retrieval"),
    "rewards": Artefact("rewards.parquet", "table", "03_rewards_and_credit"),
    "training": Artefact("training.parquet", "table", "04_grpo_training"),
    "training_updates": Artefact("training_updates", "folder", "04_grpo_training"),
    "training_rollouts": Artefact("training_rollouts.jsonl", "updates", "04_grpo_training"),
    "trained_manager": Artefact("trained_manager", "folder", "04_grpo_training"),
    "trained_trajectories": Artefact(
        "trained_trajectories.jsonl", "trajectories", "04_grpo_training"
    ),
    "evidence": Artefact("evidence.parquet", "table", "05_evidence_tracing"),
    "benchmark": Artefact("benchmark.parquet", "table", "06_benchmark_evaluation"),
    "experiment": Artefact("experiment.parquet", "table", "07_ablations_and_robustness"),
    "experiment_streams": Artefact(
        "experiment_streams.parquet", "table", "07_ablations_and_robustness"
    ),
    "rule_credits": Artefact("rule_credits.parquet", "table", "08_rules_disagree"),
}


def _write_records(record_type: type, path: Path, records: Any) -> None:
    records = list(records)
    for record in records:
        if not isinstance(record, record_type):
            raise TypeError(f"got a {type(record).__name__}, expected {record_type.__name__} only")
    path.write_text(write_jsonl(records), encoding="utf-8")


def _write_updates(path: Path, updates: Mapping[int, Sequence[Sequence[Trajectory]]]) -> None:
    """Write kept trajectories, each with its update and group in its metadata."""
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


_WRITERS: dict[Kind, Callable[[Path, Any], None]] = {
    "instances": lambda path, value: _write_records(Instance, path, value),
    "trajectories": lambda path, value: _write_records(Trajectory, path, value),
    "updates": _write_updates,
    "table": _write_table,
    "folder": _fill_folder,
}

_READERS: dict[Kind, Callable[[Path], Any]] = {
    "instances": lambda path: read_jsonl(Instance, path.read_text(encoding="utf-8")),
    "trajectories": lambda path: read_jsonl(Trajectory, path.read_text(encoding="utf-8")),
    "updates": _read_updates,
    "table": _read_table,
    "folder": lambda path: path,
}


def _artefact(name: str) -> Artefact:
    if name not in ARTEFACTS:
        raise ValueError(f"no artefact is called {name!r}; there are {', '.join(ARTEFACTS)}")
    return ARTEFACTS[name]
