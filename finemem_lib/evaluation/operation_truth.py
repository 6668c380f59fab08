"""Classify operations by the planted truth of their stream."""

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
"""The classes that `operation_truth` counts."""

RIGHT_EDITS = ("INSERT fact", "UPDATE right", "UPDATE reuse", "DELETE stale", "DELETE noise")

WRONG_EDITS = tuple(
    name for name in OPERATION_TRUTHS if name not in (*RIGHT_EDITS, "SKIP noise", "SKIP fact")
)


def operation_truth(trajectory: Trajectory, instance: Instance) -> dict[str, int]:
    """Return the number of operations of each class in `OPERATION_TRUTHS` on a planted stream.

    INSERT and UPDATE are classified by the content that they write: "fact" (a fact sentence of the
    chunk), "noise" (another sentence of the chunk), "inexact" (no sentence of the chunk) or
    "duplicate" (equal to an item in the memory, applied or not; an item evicted in the same step
    still counts as in the memory). An UPDATE to a fact is "right" if it replaces an earlier value
    of the fact's slot, "reuse" if it replaces a noise, inexact or outdated record or is the first
    write of a core, and "wrong" if it overwrites a live record of another slot. DELETE removes a
    "stale" (outdated), "noise" (noise or inexact) or "live" record. A record is live while it holds
    the latest value of its slot, the current chunk included. SKIP counts the sentences of the chunk
    that no operation writes, whether or not a SKIP was emitted. "refused" is every other operation
    that the memory did not apply, including unparsed ones, and every DELETE of nothing that it
    accepts without effect (`LayerRules.unknown_delete`).

    Args:
        trajectory: one rollout of the stream.
        instance: the planted stream that was played, with its facts.

    Raises:
        ValueError: the instance is not that of the trajectory, or its facts are unknown.
    """
    counts = Counter(dict.fromkeys(OPERATION_TRUTHS, 0))
    for step in step_truth(trajectory, instance):
        counts.update(step)
    return dict(counts)


def step_truth(trajectory: Trajectory, instance: Instance) -> list[dict[str, int]]:
    """Return the counts of `operation_truth` for every step.

    Args:
        trajectory: one rollout of the stream.
        instance: the planted stream that was played, with its facts.

    Raises:
        ValueError: see `operation_truth`.
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
    """Facts and memory contents up to the current step, and the counts of this step."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.slots: dict[str, tuple[str, str]] = {}  # fact sentence -> slot, of all chunks so far
        self.values: dict[str, str] = {}
        self.latest: dict[tuple[str, str], str] = {}  # slot -> latest value
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
        """Count one operation, edit the memory, and return the content that it writes."""
        operation = outcome.operation
        if operation is None or operation.kind == "SKIP":
            self.counts["refused"] += operation is None
            return None
        content = (operation.content or "").strip().rstrip(".")
        writes = operation.kind in ("INSERT", "UPDATE")
        if writes and content in self.contents.values():
            what = "duplicate"
        elif not outcome.applied or not (writes or outcome.item_id in self.contents):
            self.counts["refused"] += 1
            return None
        elif writes and content not in stated:
            what = "noise" if content in sentences else "inexact"
        elif operation.kind == "INSERT":
            what = "fact"
        else:
            if operation.store == "core":
                self.contents.setdefault(outcome.item_id, "")  # its first write is an UPDATE
            what = self._edit(self.contents[outcome.item_id], content if writes else None)
        self.counts[f"{operation.kind} {what}"] += 1
        if not writes:
            del self.contents[outcome.item_id]
            return None
        if outcome.applied:
            self.contents[outcome.item_id] = content
        return content

    def _edit(self, old: str, fact: str | None) -> str:
        """Return the class of an UPDATE of record `old` to `fact`, or (`None`) of its DELETE."""
        live = old in self.slots and self.latest[self.slots[old]] == self.values[old]
        if fact is None:
            return "live" if live else "stale" if old in self.slots else "noise"
        if old in self.slots and self.slots[old] == self.slots[fact]:
            return "right"
        return "wrong" if live else "reuse"
