"""Conflict resolution: accuracy by number of revisions of a fact, and operations at revisions.

The managers that know the planted truth differ only in how they store a changed fact: "oracle"
updates its item, "oracle-replace" deletes it and inserts a new one, and "facts-only" inserts a
second item. For every manager, the shares of UPDATE, DELETE and INSERT among the operations at
steps that revise a fact are reported.

Differs from the papers, which report no accuracy by number of revisions.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from finemem_lib.baselines.systems import make_system
from finemem_lib.data.revised import KINDS, Kind, RevisionSettings, revised_stream
from finemem_lib.evaluation.comparison import budget_name
from finemem_lib.evaluation.intervals import clustered_mean, interval_text
from finemem_lib.evaluation.rows import MeasuredRow
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.seeds import stable_seed
from finemem_lib.text import words
from finemem_lib.trajectory import Instance, Trajectory

if TYPE_CHECKING:
    import pandas as pd

MANAGERS = (
    "oracle",
    "oracle-replace",
    "facts-only",
    "memory-r1",
    "insert-all",
    "keyword",
    "random",
    "raw-chunks",
    "tiny",
)
"""All rule-based managers, and the tiny model that is shipped with the library."""

STREAMS = 40
BUDGETS = (None, 60)
"""Token limits of the memory: none, and little more than the last values need."""

TOP_K = 3
"""Number of retrieved items, fewer than the values of a fact that was revised three times."""

ALL_REVISIONS = -1
"""Value of `RevisionRow.revisions` in rows over all numbers of revisions."""


@dataclass(frozen=True, slots=True)
class RevisionRow(MeasuredRow):
    """Results of one manager on the questions of one kind and number of revisions.

    Attributes:
        budget: Token limit of its memory; `None` for no limit.
        kind: Kind of question: "single", "pair" or "chain".
        revisions: Number of revisions of the facts; `ALL_REVISIONS` for all numbers together.
        accuracy, low, high: Mean score with its interval over streams.
        stale: Share of the answers that score 0 and name a former value.
        memory_tokens: Mean length of the final memory in tokens, over all kinds.
        updates, deletes, inserts: Shares of the applied operations at steps that revise a fact.
    """

    made_by: ClassVar[str] = "python benchmarks/systems.py --output FOLDER"

    manager: str
    budget: int | None
    kind: Kind
    revisions: int
    accuracy: float | None
    low: float | None
    high: float | None
    stale: float
    questions: int
    streams: int
    memory_tokens: float
    updates: float
    deletes: float
    inserts: float

    @property
    def method(self) -> str:
        """Name of the manager, with its budget if it has one."""
        return budget_name(self.manager, self.budget)


def revision_rows(
    managers: Sequence[str] = MANAGERS,
    streams: int = STREAMS,
    budgets: Sequence[int | None] = BUDGETS,
    seed: int = 0,
    settings: RevisionSettings | None = None,
) -> list[RevisionRow]:
    """Play streams of revised facts with every manager and return the rows.

    Args:
        managers: Names known to `make_system`.
        streams: Number of streams.
        budgets: Token limits of the memory; `None` for no limit.
        seed: Seed of streams and managers.
        settings: Settings of the streams.
    """
    instances = [
        revised_stream(stable_seed(seed, "revised", number), settings) for number in range(streams)
    ]
    agent = reader_for(instances)
    rollout = RolloutSettings(num_generations=1, top_k=TOP_K, ask_chunk_questions=False)
    rows: list[RevisionRow] = []
    for budget in budgets:
        for name in managers:
            player = make_system(name, rollout, budget=budget)
            played = play(instances, player.manager, player.settings, agent, seed)
            rows += rows_of(name, budget, instances, [group[0] for group in played])
    return rows


def rows_of(
    manager: str,
    budget: int | None,
    instances: Sequence[Instance],
    trajectories: Sequence[Trajectory],
) -> list[RevisionRow]:
    """Return the rows of one manager.

    Args:
        manager: Name of the manager.
        budget: Token limit of its memory; `None` for no limit.
        instances: Streams of revised facts.
        trajectories: One per instance, in order.
    """
    scores: defaultdict[tuple[Kind, int], dict[str, list[float | None]]] = defaultdict(dict)
    stale: defaultdict[tuple[Kind, int], list[bool]] = defaultdict(list)
    for instance, one in zip(instances, trajectories, strict=True):
        for answered in one.questions:
            about = instance.metadata["revisions"][answered.question.question_id]
            old = {value.lower() for value in about["former"]} & {*words(answered.answer)}
            for revisions in (about["revisions"], ALL_REVISIONS):
                key = about["kind"], revisions
                scores[key].setdefault(one.instance_id, []).append(answered.score)
                stale[key].append(bool(old) and not answered.score)
    done = _operations(instances, trajectories)
    total = max(1, sum(done.values()))
    size = sum(one.steps[-1].memory_tokens for one in trajectories) / len(trajectories)
    return [
        RevisionRow(
            manager,
            budget,
            kind,
            revisions,
            *clustered_mean(scores[kind, revisions], bounds=(0, 1)),
            stale=sum(stale[kind, revisions]) / len(stale[kind, revisions]),
            questions=len(stale[kind, revisions]),
            streams=len(scores[kind, revisions]),
            memory_tokens=size,
            updates=done["UPDATE"] / total,
            deletes=done["DELETE"] / total,
            inserts=done["INSERT"] / total,
        )
        for kind in KINDS
        for revisions in sorted(times for name, times in scores if name == kind)
    ]


def _operations(instances: Sequence[Instance], trajectories: Sequence[Trajectory]) -> Counter[str]:
    """Return the number of applied operations by kind, at steps whose chunk revises a fact."""
    found: Counter[str] = Counter()
    for instance, one in zip(instances, trajectories, strict=True):
        for step, facts in zip(one.steps, instance.metadata["facts"], strict=True):
            if any(fact["changed"] for fact in facts):
                found.update(
                    outcome.operation.kind
                    for outcome in step.outcomes
                    if outcome.applied and outcome.operation and outcome.operation.kind != "SKIP"
                )
    return found


def revisions_frame(rows: Iterable[RevisionRow]) -> pd.DataFrame:
    """Return a table of single facts: a row per method, a column per number of revisions.

    Args:
        rows: Rows of any kind; those of other kinds are left out.
    """
    import pandas as pd

    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        if row.kind != "single":
            continue
        line = lines.setdefault(row.method, {})
        name = "all" if row.revisions == ALL_REVISIONS else f"revised {row.revisions}×"
        line[name] = interval_text(row.accuracy, row.low, row.high, ".2f")
        if row.revisions == ALL_REVISIONS:
            line["stale"] = f"{row.stale:.0%}"
            line["UPDATE / DELETE / INSERT"] = " / ".join(
                f"{share:.0%}" for share in (row.updates, row.deletes, row.inserts)
            )
            line["memory"] = f"{row.memory_tokens:,.0f}"
    return pd.DataFrame.from_dict(lines, orient="index").fillna("–")
