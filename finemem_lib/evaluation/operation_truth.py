"""Operations judged against the planted truth of their stream."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from finemem_lib.trajectory import Instance, OperationOutcome, Step, Trajectory

OPERATION_TRUTHS = (
    "INSERT fact",
    "INSERT noise",
    "INSERT inexact",
    "INSERT duplicate",
    "UPDATE right",
    "UPDATE reuse",
    "UPDATE wrong",
    "UPDATE noise",
    "UPDATE inexact",
    "UPDATE duplicate",
    "DELETE stale",
    "DELETE noise",
    "DELETE live",
    "SKIP noise",
    "SKIP fact",
    "refused",
)
"""What `operation_truth` counts."""

RIGHT_EDITS = ("INSERT fact", "UPDATE right", "UPDATE reuse", "DELETE stale", "DELETE noise")

WRONG_EDITS = tuple(
    name for name in OPERATION_TRUTHS if name not in (*RIGHT_EDITS, "SKIP noise", "SKIP fact")
)


def operation_truth(trajectory: Trajectory, instance: Instance) -> dict[str, int]:
    """Return how often each of `OPERATION_TRUTHS` happened on a planted stream.

    A written content is a fact sentence of the chunk, noise (another sentence of it), inexact (no
    sentence of it) or, whatever it says, a duplicate of an item in the memory, refused or not; an
    item evicted in the same step still counts as held. A fact UPDATEs the right record (an earlier
    value of its slot), reuses a worthless one (noise, inexact, or outdated), or overwrites a live
    one (wrong). DELETE removes a stale, worthless or live record; a record is live while it holds
    the latest value of its slot, the chunk included. SKIP counts the sentences of the chunk that no
    write carries, whether or not a SKIP was emitted. "refused" is every other operation that the
    memory did not apply, unparsed ones included.

    Args:
        trajectory: one rollout of the stream.
        instance: the planted stream that was played, with its facts.

    Raises:
        ValueError: the instance is not that of the trajectory, or its facts are not known.
    """
    counts = Counter(dict.fromkeys(OPERATION_TRUTHS, 0))
    for step in step_truth(trajectory, instance):
        counts.update(step)
    return dict(counts)


def step_truth(trajectory: Trajectory, instance: Instance) -> list[dict[str, int]]:
    """Return the counts of `operation_truth` of every step.

    Args:
        trajectory: one rollout of the stream.
        instance: the planted stream that was played, with its facts.

    Raises:
        ValueError: as `operation_truth`.
    """
    facts_by_chunk = instance.metadata.get("facts")
    if facts_by_chunk is None or instance.instance_id != trajectory.instance_id:
        raise ValueError(
            f"operation truth of {trajectory.instance_id!r}: got instance "
            f"{instance.instance_id!r} {'without' if facts_by_chunk is None else 'with'} facts, "
            "expected the planted stream that was played"
        )
    ledger = _Ledger()
    return [
        ledger.count_step(step, facts)
        for step, facts in zip(trajectory.steps, facts_by_chunk, strict=True)
    ]


class _Ledger:
    """What the stream has told and the memory holds so far, and the counts of one step."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.slots: dict[str, tuple[str, str]] = {}  # of every fact sentence read so far
        self.values: dict[str, str] = {}
        self.latest: dict[tuple[str, str], str] = {}  # the values that are true now
        self.contents: dict[str | None, str] = {}

    def count_step(self, step: Step, facts: Iterable[Mapping[str, Any]]) -> dict[str, int]:
        self.counts = Counter(dict.fromkeys(OPERATION_TRUTHS, 0))
        stated = set()
        for fact in facts:
            sentence, slot = fact["sentence"], (fact["person"], fact["attribute"])
            stated.add(sentence)
            self.slots[sentence] = slot
            self.values[sentence] = self.latest[slot] = fact["value"]
        sentences = {part.strip() for part in step.chunk.text.split(".") if part.strip()}
        carried = {self._count(outcome, stated, sentences) for outcome in step.outcomes}
        inserted = {
            outcome.item_id
            for outcome in step.outcomes
            if outcome.applied and outcome.operation and outcome.operation.kind == "INSERT"
        }
        kept = {item.item_id for item in step.delta.written}
        for item_id in {*step.delta.evicted, *(inserted - kept)}:
            self.contents.pop(item_id, None)
        self.counts["SKIP noise"] += len(sentences - stated - carried)
        self.counts["SKIP fact"] += len(stated - carried)
        return dict(self.counts)

    def _count(
        self, outcome: OperationOutcome, stated: set[str], sentences: set[str]
    ) -> str | None:
        """Count one operation, edit the memory, and return the content that it carries."""
        operation = outcome.operation
        if operation is None or operation.kind == "SKIP":
            self.counts["refused"] += operation is None
            return None
        content = (operation.content or "").strip().rstrip(".")
        writes = operation.kind in ("INSERT", "UPDATE")
        if writes and content in self.contents.values():
            what = "duplicate"
        elif not outcome.applied:
            self.counts["refused"] += 1
            return None
        elif writes and content not in stated:
            what = "noise" if content in sentences else "inexact"
        elif operation.kind == "INSERT":
            what = "fact"
        else:
            what = self._edit(self.contents[outcome.item_id], content if writes else None)
        self.counts[f"{operation.kind} {what}"] += 1
        if not writes:
            del self.contents[outcome.item_id]
            return None
        if outcome.applied:
            self.contents[outcome.item_id] = content
        return content

    def _edit(self, old: str, fact: str | None) -> str:
        """Judge an UPDATE of the record `old` by a fact, or (`None`) its DELETE."""
        live = old in self.slots and self.latest[self.slots[old]] == self.values[old]
        if fact is None:
            return "live" if live else "stale" if old in self.slots else "noise"
        if old in self.slots and self.slots[old] == self.slots[fact]:
            return "right"
        return "wrong" if live else "reuse"
