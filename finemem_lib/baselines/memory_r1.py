"""Memory-R1: ADD, UPDATE, DELETE and NOOP, its format, and the same choice made by rules.

Differs from the paper: Memory-R1 (arXiv 2508.19828) trains manager and reader with PPO or GRPO on
the outcome alone (here the reward scheme "Memory-R1"), and hands the manager the items that
resemble each new fact; here the manager sees the whole memory. Its operations have other names and
are read as this library's: ADD as INSERT, NOOP (also NONE) as SKIP. `MemoryR1Rules` chooses among
the four without a model and stands in for an untrained manager of that kind.
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
"""Memory-R1's operations, and this library's for them."""

LIKE = 0.5
"""Share of words (Jaccard) from which two sentences about the same subject say the same thing."""

_OUTER = re.compile(r"[\[{].*[\]}]", re.DOTALL)
_ENDED = re.compile(r"\b(?:no longer|not any ?more|stopped|never again)\b", re.IGNORECASE)


def parse_memory_r1(reply: str) -> tuple[Operation | InvalidOperation, ...]:
    """Read the events of a Memory-R1 manager: an object with a list "memory", or the list alone.

    Args:
        reply: Text of the manager; nothing in it is trusted.

    Returns:
        One entry per event, in order; what is no event is an `InvalidOperation` with its reason.

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
    """Read operations that a manager lists in JSON under names of its own.

    The kind stands under "event", "operation" or "op", the content under "text" or "content", the
    item under "id" or "memory_id".

    Args:
        reply: Text of the manager; nothing in it is trusted.
        kinds: Its operations by name, in upper case, and this library's for them.
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
        events = events.get("memory", [events])
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
    return Operation(
        kind,
        clean_text(str(text)) if kind in ("INSERT", "UPDATE") else None,
        clean_text(str(item_id)) if kind in ("UPDATE", "DELETE") else None,
    )


class MemoryR1Rules(ScriptedManager):
    """Chooses ADD, UPDATE, DELETE or NOOP for every sentence by its likeness to the items.

    Of the items with the same first word (the subject), the one with the largest share of common
    words decides, the newest among equals: from `LIKE` on, a sentence that says that something
    ended deletes it and any other updates it; a sentence that the memory holds word for word is a
    NOOP; everything else is added. Labelled examples are added.
    """

    name = "memory-r1"
    settings = {"like": LIKE, "calls_per_step": 0}

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
            del items[item_id]  # each is edited once per step
            edits.append(
                Operation("DELETE", item_id=item_id)
                if _ENDED.search(sentence)
                else Operation("UPDATE", sentence, item_id)
            )
        return edits + inserts


def _most_like(sentence: str, items: Mapping[str, str]) -> str | None:
    """Return the id of the item that says the same of the same subject, `None` without one."""
    said = words(sentence)
    best: tuple[float, str] | None = None
    for item_id, content in items.items():  # oldest first, so that a later equal wins
        other = words(content)
        if not said or not other or said[0] != other[0] or said[0] in STOPWORDS:
            continue
        share = len({*said} & {*other}) / len({*said} | {*other})
        if share >= LIKE and (best is None or share >= best[0]):
            best = share, item_id
    return best[1] if best else None
