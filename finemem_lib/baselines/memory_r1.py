"""Memory-R1: parser of its operations ADD, UPDATE, DELETE and NOOP, and a rule-based manager.

Differs from the paper: Memory-R1 (arXiv 2508.19828) trains manager and reader with PPO or GRPO on
the outcome reward alone (here the reward scheme "Memory-R1"), and shows the manager only the items
similar to each new fact; here the manager sees the whole memory. Its operations are mapped to those
of this library: ADD to INSERT, NOOP and NONE to SKIP. `MemoryR1Rules` chooses among the four
operations without a model and replaces an untrained manager of this kind.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping
from typing import Any

from finemem_lib.data.sentences import STOPWORDS
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.scripted import ScriptedManager, chunk_units
from finemem_lib.operations import (
    BAD_CONTENT,
    BAD_ID,
    NO_OPERATIONS,
    NOT_JSON,
    RAW_LIMIT,
    UNKNOWN_OPERATION,
)
from finemem_lib.text import clean_text, words
from finemem_lib.trajectory import InvalidOperation, Operation, OperationKind
from finemem_lib.util.validation import parse_json

EVENTS: dict[str, OperationKind] = {
    "ADD": "INSERT",
    "UPDATE": "UPDATE",
    "DELETE": "DELETE",
    "NOOP": "SKIP",
    "NONE": "SKIP",
}
"""Operation of Memory-R1 -> operation of this library."""

MIN_SIMILARITY = 0.5
"""Smallest Jaccard index of words at which two sentences about one subject count as similar."""

_OUTER = re.compile(r"[\[{].*[\]}]", re.DOTALL)
_ENDED = re.compile(r"\b(?:no longer|not any ?more|stopped|never again)\b", re.IGNORECASE)


def parse_memory_r1(reply: str) -> tuple[Operation | InvalidOperation, ...]:
    """Return the operations of a Memory-R1 reply: a JSON object with a list "memory", or a list.

    Args:
        reply: Reply of the manager, untrusted text.

    Returns:
        One entry per event, in order; a malformed event is an `InvalidOperation` with its reason.

    >>> reply = '{"memory": [{"event": "ADD", "text": "Mia sails"}, {"event": "NOOP"}]}'
    >>> [(one.kind, one.content) for one in parse_memory_r1(reply)]
    [('INSERT', 'Mia sails'), ('SKIP', None)]
    >>> [one.reason for one in parse_memory_r1('[{"event": "MERGE"}, {"event": "DELETE"}]')]
    ['unknown operation', 'id missing or not a string']
    """
    return read_events(reply, EVENTS)


def read_events(
    reply: str, kinds: Mapping[str, OperationKind]
) -> tuple[Operation | InvalidOperation, ...]:
    """Return the operations of a reply that lists them in JSON under other names.

    The list stands alone or under "memory" or "operations". The key of the kind is "event",
    "operation" or "op", that of the content "text" or "content", and that of the item id "id" or
    "memory_id". An inserted content begins with its "speaker", if there is one.

    Args:
        reply: Reply of the manager, untrusted text.
        kinds: Name of an operation in the reply, in upper case -> operation of this library.

    Returns:
        One entry per event, in order; a malformed event is an `InvalidOperation` with its reason.
    """
    found = _OUTER.search(reply)
    if found is None:
        text = reply.strip()
        return (InvalidOperation(NO_OPERATIONS, text[:RAW_LIMIT]),) if text else ()
    try:
        events = parse_json(found[0])
    except ValueError:
        return (InvalidOperation(NOT_JSON, found[0][:RAW_LIMIT]),)
    if isinstance(events, Mapping):
        events = events.get("memory", events.get("operations", [events]))
    if not isinstance(events, list):
        return (InvalidOperation(NO_OPERATIONS, found[0][:RAW_LIMIT]),)
    return tuple(_operation(event, kinds) for event in events)


def _operation(event: Any, kinds: Mapping[str, OperationKind]) -> Operation | InvalidOperation:
    raw = str(event)[:RAW_LIMIT]
    if not isinstance(event, Mapping):
        return InvalidOperation(NOT_JSON, raw)

    def value(*names: str) -> Any:
        return next((event[name] for name in names if name in event), None)

    kind = kinds.get(str(value("event", "operation", "op")).strip().upper())
    if kind is None:
        return InvalidOperation(UNKNOWN_OPERATION, raw)
    text, item_id = value("text", "content"), value("id", "memory_id")
    if kind in ("INSERT", "UPDATE") and not isinstance(text, str):
        return InvalidOperation(BAD_CONTENT, raw)
    if kind in ("UPDATE", "DELETE") and (
        not isinstance(item_id, (str, int)) or isinstance(item_id, bool)
    ):
        return InvalidOperation(BAD_ID, raw)
    speaker = value("speaker")
    if kind == "INSERT" and isinstance(speaker, str) and speaker.strip():
        text = f"{speaker.strip()}: {text}"
    return Operation(
        kind,
        clean_text(str(text)) if kind in ("INSERT", "UPDATE") else None,
        clean_text(str(item_id)) if kind in ("UPDATE", "DELETE") else None,
    )


class MemoryR1Rules(ScriptedManager):
    """Manager that chooses ADD, UPDATE, DELETE or NOOP per sentence by word overlap with the items.

    Each sentence is compared with the items that have the same first word (the subject). The item
    with the largest Jaccard index of words is chosen, the newest one in a tie. If the index is at
    least `MIN_SIMILARITY`, a sentence that says that something ended deletes the item, and any
    other sentence updates it. A sentence that equals an item is a NOOP. All other sentences and all
    other labelled examples are added.
    """

    name = "memory-r1"
    settings = {"like": MIN_SIMILARITY, "calls_per_step": 0}

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        items = {item.item_id: item.content for item in observation.items}
        known = {*items.values()}
        edits, inserts = [], []
        for sentence in dict.fromkeys(chunk_units(observation.chunk)):
            if sentence in known:
                continue
            item_id = None if "\n" in sentence else _most_like(sentence, items)
            if item_id is None:
                inserts.append(Operation("INSERT", sentence))
                continue
            del items[item_id]  # an item is edited at most once per step
            edits.append(
                Operation("DELETE", item_id=item_id)
                if _ENDED.search(sentence)
                else Operation("UPDATE", sentence, item_id)
            )
        return edits + inserts


def _most_like(sentence: str, items: Mapping[str, str]) -> str | None:
    """Return the id of the most similar item with the same subject, `None` if none is similar."""
    said = words(sentence)
    best: tuple[float, str] | None = None
    for item_id, content in items.items():  # oldest first, so that the newest wins a tie
        other = words(content)
        if not said or not other or said[0] != other[0] or said[0] in STOPWORDS:
            continue
        share = len({*said} & {*other}) / len({*said} | {*other})
        if share >= MIN_SIMILARITY and (best is None or share >= best[0]):
            best = share, item_id
    return best[1] if best else None
