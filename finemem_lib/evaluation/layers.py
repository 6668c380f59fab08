"""Usage of the stores of a layered memory, and counts of known failures of layered managers.

`utilisation` counts, per store, operations, items, tokens, and items that no question retrieved.
`failure_signs` counts, per data source, the failures that users of Mem-alpha report: an empty core,
two events with the same timestamp, assistant turns whose content is not written, and malformed
calls by kind. A flat memory has one store, "flat"; failures of the core are not counted for it.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from finemem_lib.data.sentences import STOPWORDS
from finemem_lib.layers.memory import LAYERS, timestamp_of
from finemem_lib.operations import MALFORMED
from finemem_lib.text import count_tokens, words
from finemem_lib.trajectory import OPERATION_KINDS, Step, Store, Trajectory

if TYPE_CHECKING:
    import pandas as pd

STORES: tuple[Store, ...] = ("flat", *LAYERS)

_ASSISTANT = re.compile(r"^<(?:Assistant|System)>\s*(.*?)(?=^<\w|\Z)", re.MULTILINE | re.DOTALL)

MAX_ACKNOWLEDGEMENT_WORDS = 8
"""Assistant turns with at most this many content words are skipped as acknowledgements."""

MIN_WRITTEN_SHARE = 0.25
"""An assistant turn is lost if the step writes less than this share of its content words."""


@dataclass(frozen=True, slots=True)
class StoreUse:
    """Usage of one store over the trajectories of one method.

    Attributes:
        calls: Number of operations on the store by kind, applied or not.
        refused: Number of them that the memory did not apply.
        tokens: Mean tokens of its items in the final memory.
        items: Mean number of its items in the final memory.
        written: Number of items that were ever in the store.
        retrieved: Number of them that a question retrieved (the core is shown for every question).
    """

    method: str
    store: Store
    trajectories: int
    calls: Mapping[str, int]
    refused: int
    tokens: float
    items: float
    written: int
    retrieved: int

    @property
    def never_retrieved(self) -> float | None:
        """Share of its items that no question retrieved; `None` if the store never had an item."""
        return 1 - self.retrieved / self.written if self.written else None


def utilisation(methods: Mapping[str, Sequence[Trajectory]]) -> list[StoreUse]:
    """Return the usage of every store by every method.

    An operation without a store counts for the store of its item. One that names neither belongs to
    no store of a layered memory and is left out (see `failure_signs`).

    Args:
        methods: Trajectories of every method by its name.

    Returns:
        One row per method and store with an operation or an item, in the order of `STORES`.

    >>> from finemem_lib import worked_example
    >>> [row] = utilisation({"by hand": [worked_example()]})
    >>> row.store, row.calls["INSERT"], row.written, row.retrieved
    ('flat', 2, 2, 2)
    """
    rows = []
    for method, trajectories in methods.items():
        counted = [_counted(one) for one in trajectories]
        for store in STORES:
            found = [one[store] for one in counted if store in one]
            if not found:
                continue
            calls: Counter[str] = Counter()
            for one in found:
                calls.update(one.calls)
            rows.append(
                StoreUse(
                    method,
                    store,
                    len(trajectories),
                    {kind: calls[kind] for kind in OPERATION_KINDS if kind != "SKIP"},
                    sum(one.refused for one in found),
                    sum(one.tokens for one in found) / len(trajectories),
                    sum(one.items for one in found) / len(trajectories),
                    sum(len(one.written) for one in found),
                    sum(len(one.written & one.retrieved) for one in found),
                )
            )
    return rows


@dataclass
class _Count:
    """The counts of one store in one trajectory."""

    calls: Counter[str] = field(default_factory=Counter)
    refused: int = 0
    tokens: int = 0
    items: int = 0
    written: set[str] = field(default_factory=set)
    retrieved: set[str] = field(default_factory=set)


def _counted(trajectory: Trajectory) -> dict[Store, _Count]:
    """Return the counts of a trajectory by store."""
    counts: defaultdict[Store, _Count] = defaultdict(_Count)
    stores: dict[str, Store] = {}
    asked = list(trajectory.questions)
    for step in trajectory.steps:
        for item in step.delta.written:
            stores[item.item_id] = item.store
            counts[item.store].written.add(item.item_id)
        for outcome in step.outcomes:
            operation = outcome.operation
            if operation is None or operation.kind == "SKIP":
                continue
            named = stores.get(outcome.item_id or operation.item_id or "")
            store = operation.store or named or ("flat" if "flat" in stores.values() else None)
            if store is not None:
                counts[store].calls[operation.kind] += 1
                counts[store].refused += not outcome.applied
        asked += step.chunk_questions
    for item in trajectory.final_memory():
        counts[item.store].tokens += count_tokens(item.content)
        counts[item.store].items += 1
    for answered in asked:
        for found in answered.retrieved:
            counts[stores[found.item_id]].retrieved.add(found.item_id)
    return dict(counts)


@dataclass(frozen=True, slots=True)
class FailureSigns:
    """Counts of known failures over the trajectories of one data source.

    Attributes:
        layered: Number of them with a layered memory.
        empty_core: Number of layered trajectories without a core in the final memory.
        same_timestamp: Number of layered trajectories with two final episodic items of one
            timestamp.
        undated: Number of final episodic items that do not begin with a timestamp.
        episodic: Number of final episodic items.
        assistant_turns: Number of assistant turns, without acknowledgements.
        lost_turns: Number of them of whose content words their step writes too few.
        calls: Number of emitted operations, including malformed ones.
        malformed: Number of operations that could not be parsed, by reason
            (`operations.MALFORMED`).
        refused: Number of operations that the memory refused, by reason.
    """

    data_source: str
    trajectories: int
    layered: int
    empty_core: int
    same_timestamp: int
    undated: int
    episodic: int
    assistant_turns: int
    lost_turns: int
    calls: int
    malformed: Mapping[str, int]
    refused: Mapping[str, int]


def failure_signs(trajectories: Iterable[Trajectory]) -> list[FailureSigns]:
    """Return the counts of known failures per data source.

    Args:
        trajectories: Played trajectories with flat or layered memory.

    Returns:
        One row per data source, in the order of first appearance.
    """
    by_source: dict[str, list[Trajectory]] = {}
    for one in trajectories:
        by_source.setdefault(one.data_source, []).append(one)
    return [_signs(source, played) for source, played in by_source.items()]


def _signs(source: str, played: Sequence[Trajectory]) -> FailureSigns:
    layered = [one for one in played if is_layered(one)]
    ends = [one.final_memory() for one in layered]
    dates = [
        [timestamp_of(item.content) for item in end if item.store == "episodic"] for end in ends
    ]
    known = [[date for date in of_one if date is not None] for of_one in dates]
    turns = [lost for one in played for step in one.steps for lost in lost_turns(step)]
    outcomes = [outcome for one in played for step in one.steps for outcome in step.outcomes]
    reasons = Counter(outcome.reason for outcome in outcomes if outcome.reason is not None)
    return FailureSigns(
        source,
        len(played),
        len(layered),
        sum(all(item.store != "core" for item in end) for end in ends),
        sum(len({*of_one}) < len(of_one) for of_one in known),
        sum(date is None for of_one in dates for date in of_one),
        sum(map(len, dates)),
        len(turns),
        sum(turns),
        len(outcomes),
        {reason: reasons[reason] for reason in MALFORMED if reasons[reason]},
        {reason: n for reason, n in reasons.items() if reason not in MALFORMED},
    )


def is_layered(trajectory: Trajectory) -> bool:
    """Return whether a trajectory was played with a layered memory.

    Args:
        trajectory: A played trajectory.
    """
    said = trajectory.metadata.get("rollout", {}).get("memory")
    if said is not None:
        return bool(said == "layered")
    return any(item.store != "flat" for step in trajectory.steps for item in step.delta.written)


def lost_turns(step: Step) -> list[bool]:
    """Return, for each assistant turn of a chunk, whether its content is missing from the writes.

    Args:
        step: The step; turns with at most `MAX_ACKNOWLEDGEMENT_WORDS` content words are skipped.

    Returns:
        Per turn, whether the step writes less than the share `MIN_WRITTEN_SHARE` of its content
        words.

    >>> from finemem_lib.trajectory import Chunk, MemoryDelta
    >>> said = "The old mill near Porto grinds barley, wheat and rye every Sunday morning"
    >>> chunk = Chunk(f"<User>What mill?\\n<Assistant>{said}", 20)
    >>> lost_turns(Step(1, chunk, "", (), MemoryDelta(), 0))
    [True]
    """
    wrote = {
        word
        for outcome in step.outcomes
        if outcome.applied and outcome.operation and outcome.operation.content
        for word in words(outcome.operation.content)
    }
    found = []
    for turn in _ASSISTANT.findall(step.chunk.text):
        said = {*words(turn)} - STOPWORDS
        if len(said) > MAX_ACKNOWLEDGEMENT_WORDS:
            found.append(len(said & wrote) < MIN_WRITTEN_SHARE * len(said))
    return found


def use_frame(rows: Iterable[StoreUse]) -> pd.DataFrame:
    """Return a table with one row per method and store.

    Args:
        rows: Rows of `utilisation`.

    Returns:
        A pandas frame of text; "–" if a value is undefined.
    """
    import pandas as pd

    lines = [
        {
            "method": row.method,
            "store": row.store,
            **{kind: str(count) for kind, count in row.calls.items()},
            "refused": str(row.refused),
            "items": f"{row.items:.1f}",
            "tokens": f"{row.tokens:.1f}",
            "never retrieved": (
                "–" if row.never_retrieved is None else f"{row.never_retrieved:.0%}"
            ),
        }
        for row in rows
    ]
    return pd.DataFrame(lines).set_index(["method", "store"])


def signs_frame(methods: Mapping[str, Sequence[Trajectory]]) -> pd.DataFrame:
    """Return a table of known failures with one row per method and data source.

    Args:
        methods: Trajectories of every method by its name.

    Returns:
        A pandas frame of text, "count of total"; "–" if the total is 0.
    """
    import pandas as pd

    def among(count: int, total: int) -> str:
        return f"{count} of {total}" if total else "–"

    lines = [
        {
            "method": method,
            "data source": row.data_source,
            "empty core": among(row.empty_core, row.layered),
            "same timestamp twice": among(row.same_timestamp, row.layered),
            "undated events": among(row.undated, row.episodic),
            "lost assistant turns": among(row.lost_turns, row.assistant_turns),
            "malformed calls": among(sum(row.malformed.values()), row.calls),
            "by kind": ", ".join(f"{n} {reason}" for reason, n in row.malformed.items()) or "–",
        }
        for method, trajectories in methods.items()
        for row in failure_signs(trajectories)
    ]
    return pd.DataFrame(lines).set_index(["method", "data source"])
