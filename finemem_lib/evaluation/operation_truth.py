"""Operations judged against the planted truth of their stream."""

from __future__ import annotations

from collections import Counter

from finemem_lib.trajectory import Instance, Trajectory

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
    sentence of it) or, whatever it says, a duplicate of an item that is there, refused or not; an
    item that capacity pushed out in the same step still counts as there. A fact UPDATEs the right
    record (an earlier value of its slot), reuses one that is worth nothing (noise, inexact, or
    outdated), or is written over a live one (wrong). DELETE removes a stale, worthless or live
    record; a record is live while it holds the latest value of its slot, the chunk included. SKIP
    counts the sentences of the chunk that no write carries, said or not. "refused" is every other
    operation that the memory did not apply, what could not be parsed included.

    Raises:
        ValueError: the instance is not that of the trajectory, or its facts are not known.
    """
    facts_by_chunk = instance.metadata.get("facts")
    if facts_by_chunk is None or instance.instance_id != trajectory.instance_id:
        raise ValueError(
            f"operation truth of {trajectory.instance_id!r}: got instance "
            f"{instance.instance_id!r} {'without' if facts_by_chunk is None else 'with'} facts, "
            "expected the planted stream that was played"
        )
    counts = Counter(dict.fromkeys(OPERATION_TRUTHS, 0))
    slots: dict[str, tuple[str, str]] = {}  # of every fact sentence read so far
    latest: dict[tuple[str, str], str] = {}  # the values that are true now
    values: dict[str, str] = {}
    contents: dict[str, str] = {}
    for step, facts in zip(trajectory.steps, facts_by_chunk, strict=True):
        for fact in facts:
            slots[fact["sentence"]] = slot = fact["person"], fact["attribute"]
            values[fact["sentence"]] = latest[slot] = fact["value"]
        told = {fact["sentence"] for fact in facts}
        sentences = {part.strip() for part in step.chunk.text.split(".") if part.strip()}
        carried: set[str] = set()
        inserted = {o.item_id for o in step.outcomes if o.applied and o.operation.kind == "INSERT"}
        for outcome in step.outcomes:
            operation = outcome.operation
            if operation is None or operation.kind == "SKIP":
                counts["refused"] += operation is None
                continue
            content = (operation.content or "").strip().rstrip(".")
            writes = operation.kind in ("INSERT", "UPDATE")
            if writes and content in contents.values():
                what = "duplicate"
            elif not outcome.applied:
                counts["refused"] += 1
                continue
            elif writes and content not in told:
                what = "noise" if content in sentences else "inexact"
            elif operation.kind == "INSERT":
                what = "fact"
            else:
                old = contents[outcome.item_id]
                live = old in slots and latest[slots[old]] == values[old]
                if operation.kind == "DELETE":
                    what = "live" if live else "stale" if old in slots else "noise"
                elif old in slots and slots[old] == slots[content]:
                    what = "right"
                else:
                    what = "wrong" if live else "reuse"
            counts[f"{operation.kind} {what}"] += 1
            if writes:
                carried.add(content)
            if outcome.applied and writes:
                contents[outcome.item_id] = content
            elif outcome.applied:
                del contents[outcome.item_id]
        kept = {item.item_id for item in step.delta.written}
        for item_id in {*step.delta.evicted, *(inserted - kept)}:
            contents.pop(item_id, None)
        counts["SKIP noise"] += len(sentences - told - carried)
        counts["SKIP fact"] += len(told - carried)
    return dict(counts)
