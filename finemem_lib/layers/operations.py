"""Parse and format Mem-alpha's tool calls as memory operations (arXiv 2509.25911).

A completion is a JSON list of calls: ``memory_insert`` (memory_type, content), ``memory_update``
(memory_type, new_content, memory_id) and ``memory_delete`` (memory_type, memory_id). The core needs
no memory_id. An empty list is a step without operations.

Differs from the paper: calls are plain JSON; the published code marks calls by words and repairs
broken JSON. The names of the published code are read too (``new_memory_insert``,
``semantic_memory``), and so are "content" and "id", the names of the flat memory's format.
`layers.memory.LayerRules` decides which parsed operations a memory refuses.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from finemem_lib.operations import BAD_CONTENT, BAD_ID, BAD_STORE, fields_of, refused, scan
from finemem_lib.text import clean_text
from finemem_lib.trajectory import InvalidOperation, Operation, OperationKind, Store

MEMORY_TYPES: dict[str, Store] = {
    "core": "core",
    "semantic": "semantic",
    "episodic": "episodic",
    "core_memory": "core",
    "semantic_memory": "semantic",
    "episodic_memory": "episodic",
}
"""Value of memory_type in a call -> store."""

CALLS: dict[OperationKind, tuple[str, dict[str, str]]] = {
    "INSERT": ("memory_insert", {"content": "content"}),
    "UPDATE": ("memory_update", {"new_content": "content", "memory_id": "item_id"}),
    "DELETE": ("memory_delete", {"memory_id": "item_id"}),
}
"""Kind of operation -> name of the tool, and its arguments with their `Operation` fields."""

_CONTENT, _ID = ("new_content", "content"), ("memory_id", "id")


def parse_calls(completion: str) -> tuple[Operation | InvalidOperation, ...]:
    """Return the tool calls of a completion as operations on the stores of a layered memory.

    Args:
        completion: Completion of the memory manager, untrusted text.

    Returns:
        The operations in the order of their calls. A malformed call is an `InvalidOperation` whose
        reason is one of `operations.MALFORMED`.

    >>> call = '{"name":"memory_insert","arguments":{"memory_type":"episodic","content":"a"}}'
    >>> parse_calls(f"[{call}]")
    (Operation(kind='INSERT', content='a', item_id=None, store='episodic'),)
    >>> parse_calls(call.replace("episodic", "notes"))[0].reason
    'memory_type missing or unknown'
    """
    return scan(completion, _read_call)


def format_calls(operations: Iterable[Operation]) -> str:
    """Return operations as a JSON list of calls for `parse_calls`; a SKIP is no call.

    Args:
        operations: Operations that name their store.

    Raises:
        ValueError: an operation names no store.

    >>> format_calls([Operation("UPDATE", "Mia travels", store="core"), Operation("SKIP")])
    '[{"name":"memory_update","arguments":{"memory_type":"core","new_content":"Mia travels"}}]'
    """
    calls = []
    for operation in operations:
        if operation.kind == "SKIP":
            continue
        if operation.store not in MEMORY_TYPES:
            raise ValueError(
                f"format_calls: the store of {operation} is {operation.store!r}, expected core, "
                "semantic or episodic; name it in the operation"
            )
        name, arguments = CALLS[operation.kind]
        values = {argument: getattr(operation, field) for argument, field in arguments.items()}
        if operation.store == "core":
            values.pop("memory_id", None)
        calls.append({"name": name, "arguments": {"memory_type": operation.store, **values}})
    return json.dumps(calls, ensure_ascii=False, separators=(",", ":"))


def _read_call(raw: str) -> Operation | InvalidOperation:
    """Return one JSON object as an operation."""
    found = fields_of(raw)
    if isinstance(found, InvalidOperation):
        return found
    kind, fields = found
    if kind == "SKIP":
        return Operation("SKIP")
    named = fields.get("memory_type")
    store = MEMORY_TYPES.get(named.strip().lower()) if isinstance(named, str) else None
    if store is None:
        return refused(BAD_STORE, raw)
    content = item_id = None
    if kind != "DELETE":
        if type(content := _first(fields, _CONTENT)) is not str:
            return refused(BAD_CONTENT, raw)
        content = clean_text(content)
    if kind != "INSERT" and store != "core":
        if not isinstance(item_id := _first(fields, _ID), str):
            return refused(BAD_ID, raw)
        item_id = clean_text(str(item_id))
    return Operation(kind, content, item_id, store)


def _first(fields: dict[str, Any], names: Iterable[str]) -> Any:
    return next((fields[name] for name in names if name in fields), None)
