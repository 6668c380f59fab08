"""What the layers of a memory are used for, and the signs by which a layered manager fails.

`utilisation` counts, per store, calls and items, tokens, and what no question retrieved.
`failure_signs` counts, per data source, the failures that users of Mem-alpha report: a core that
stays empty, two events with one timestamp, turns of the assistant that leave no trace, and calls
that are malformed, by kind. A flat memory has one store, "flat", and no core to be empty.
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

LEAST_SAID = 8
"""Content words from which a turn of the assistant says more than an acknowledgement."""

TRACE = 0.25
"""Share of a turn's content words that the step must write, at least, to leave a trace of it."""


@dataclass(frozen=True, slots=True)
class StoreUse:
    """What one store was used for, over trajectories of one method.

    Attributes:
        method: Name of the method.
        store: The store.
        trajectories: How many were played.
        calls: Operations that named it, carried out or not, by kind.
        refused: How many of them the memory refused.
        tokens: Mean length of its items at the end, in tokens.
        items: Mean number of its items at the end.
        written: Items that ever were in it.
        retrieved: How many of them a question retrieved (the core is shown to each).
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
        """The share of its items that no question retrieved; `None` where it had none."""
        return 1 - self.retrieved / self.written if self.written else None


def utilisation(methods: Mapping[str, Sequence[Trajectory]]) -> list[StoreUse]:
    """Return what each store was used for, per method.

    An operation without a store counts for the store of its item; one that named neither is left
    out, as it is no call of any store (see `failure_signs`).

    Args:
        methods: Trajectories of every method by its name.

    Returns:
        One row per method and store that was called or held an item, in the order of `STORES`.

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
    """Signs of failure over the trajectories of one data source.

    Attributes:
        data_source: The source.
        trajectories: How many were played.
        layered: How many of them had layers; the next two are counted among these.
        empty_core: Trajectories that end without a core.
        same_timestamp: Trajectories that end with two episodic items of one timestamp.
        undated: Episodic items at the end that begin with no timestamp, of `episodic` items.
        episodic: Episodic items at the end.
        assistant_turns: Turns of an assistant that say more than `LEAST_SAID` content words.
        lost_turns: How many of them the writes of their step hold less than `TRACE` of.
        calls: Operations that were emitted, malformed ones included.
        malformed: How many could not be read, by reason (`operations.MALFORMED`).
        refused: How many the memory refused, by reason.
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
    """Count the signs of failure per data source.

    Args:
        trajectories: What was played, flat or layered.

    Returns:
        One row per data source, in the order of their first trajectories.
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
        trajectory: What was played.
    """
    said = trajectory.metadata.get("rollout", {}).get("memory")
    if said is not None:
        return bool(said == "layered")
    return any(item.store != "flat" for step in trajectory.steps for item in step.delta.written)


def lost_turns(step: Step) -> list[bool]:
    """Return per turn of an assistant in a chunk whether the step's writes leave no trace of it.

    Args:
        step: The step; turns that say little are passed over.

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
        if len(said) > LEAST_SAID:
            found.append(len(said & wrote) < TRACE * len(said))
    return found


def use_frame(rows: Iterable[StoreUse]) -> pd.DataFrame:
    """Return a line per method and store.

    Args:
        rows: What `utilisation` returned.

    Returns:
        A pandas frame of texts; "–" where nothing was measured.
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
    """Return a line per method and data source with the signs of failure.

    Args:
        methods: Trajectories of every method by its name.

    Returns:
        A pandas frame of texts, counts with what they are counted among; "–" where that is nothing.
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
