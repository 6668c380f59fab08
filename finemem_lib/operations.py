"""Parse a completion into memory operations, and format operations as a completion.

One regular expression scans the completion in one pass. An operation is a flat JSON object (a tool
call nests its `arguments` one level deeper), so the expression needs no recursion and no
backtracking: its time is linear in the length of the completion, and the JSON parser only receives
objects that are known to be shallow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from typing import Any

from finemem_lib.text import clean_text
from finemem_lib.trajectory import OPERATION_KINDS, InvalidOperation, Operation, OperationKind

NO_OPERATIONS = "no operations found"
NOT_JSON = "not a JSON object"
TRUNCATED = "truncated"
UNKNOWN_OPERATION = "unknown operation"
BAD_CONTENT = "content missing or not a string"
BAD_ID = "id missing or not a string"

BAD_STORE = "memory_type missing or unknown"

MALFORMED = (NO_OPERATIONS, NOT_JSON, TRUNCATED, UNKNOWN_OPERATION, BAD_CONTENT, BAD_ID, BAD_STORE)
"""Every reason an `InvalidOperation` of a parser can carry; the last one is of layered memories."""

RAW_LIMIT = 200
"""Largest number of characters of invalid text that an `InvalidOperation` keeps."""

OPERATION_FIELDS: dict[OperationKind, tuple[str, ...]] = {
    "INSERT": ("content",),
    "UPDATE": ("id", "content"),
    "DELETE": ("id",),
    "SKIP": (),
}
"""The JSON fields of each kind of operation, in the order in which they are written."""

# Possessive quantifiers: a failed attempt is never retried with another split of the same text.
_STRING = r'"[^"\\]*+(?:\\.[^"\\]*+)*+"'

_SCALAR = rf"(?:{_STRING}|[-+.\w]++)"
_FLAT = rf"\{{\s*+(?:{_STRING}\s*+:\s*+{_SCALAR}\s*+,?+\s*+)*+\}}"
_OBJECT = rf"\{{\s*+(?:{_STRING}\s*+:\s*+(?:{_SCALAR}|{_FLAT})\s*+,?+\s*+)++\}}"

_TOKEN = re.compile(
    rf"(?P<object>{_OBJECT})|(?P<broken>\{{(?=\s*+\"))|[\[\]]|</?tool_call>", re.DOTALL
)

_ARGUMENTS = re.compile(_FLAT, re.DOTALL)
_EMPTY_LIST = re.compile(r"[^][{}]*+\[\s*+\][^][{}]*+")
_THINKING = re.compile(r"\A\s*+<think>.*?(?:</think>|\Z)", re.DOTALL)
_SEPARATORS = " \t\r\n,`"


def parse_operations(completion: str) -> tuple[Operation | InvalidOperation, ...]:
    r"""Parse the operations of a completion.

    Accepts a JSON list, a single object, and tool calls: Qwen's blocks and Llama's bare objects.
    In a tool call `name` contains one of the four kinds, as in ``memory_insert``; `arguments`
    (Llama: `parameters`) is an object or its JSON text. Each form may stand inside a code fence,
    after prose or after a thinking block. Keys may come in any order, unknown keys are ignored,
    integer ids become strings. A malformed or truncated piece does not affect the complete
    operations around it. Never raises and never evaluates code; takes linear time.

    Args:
        completion: Text of the memory manager; nothing in it is trusted.

    Returns:
        The operations in the order of the text. A piece that looks like an operation but cannot be
        parsed is an `InvalidOperation` with a reason from `MALFORMED`; the result is empty only
        for an empty completion or an empty list.

    >>> parse_operations('Sure: [{"op":"DELETE","id":3}, {"op":"INSERT","content":"Mia li')
    (Operation(kind='DELETE', content=None, item_id='3', store=None),
     InvalidOperation(reason='truncated', raw='{"op":"INSERT","content":"Mia li'))
    >>> parse_operations("Nothing worth keeping."), parse_operations("[]")
    ((InvalidOperation(reason='no operations found', raw='Nothing worth keeping.'),), ())
    """
    return scan(completion, _read)


def scan(
    completion: str, read: Callable[[str], Operation | InvalidOperation]
) -> tuple[Operation | InvalidOperation, ...]:
    """Return the operations of a completion, as `parse_operations`, from shallow JSON objects.

    Args:
        completion: Text of the memory manager; nothing in it is trusted.
        read: Reads one object, its arguments at most one level deeper; never raises.
    """
    text = _THINKING.sub("", clean_text(completion))
    found: list[Operation | InvalidOperation] = []
    last, end = "", 0  # the last token and its end position
    inside = broken = False

    def close_gap(token: str, start: int) -> None:
        """Record the text between two tokens as invalid if it is a malformed operation."""
        gap = text[end:start].strip(_SEPARATORS)
        beside_object = inside and "object" in (last, token)
        if gap and (broken or beside_object or last == "<tool_call>" or token == "</tool_call>"):
            cut_off = token == "end" and (inside or "}" not in gap)
            found.append(refused(TRUNCATED if cut_off else NOT_JSON, gap))

    for match in _TOKEN.finditer(text):
        token = match.lastgroup or match.group()
        if token == "broken":
            broken = True
            continue
        # Brackets after a broken object most likely belong to it.
        if not (broken and token in "[]"):
            close_gap(token, match.start())
            last, end, broken = token, match.end(), False
        if token == "object":
            found.append(read(match.group()))
        else:
            inside = token in ("[", "<tool_call>")
    close_gap("end", len(text))
    if found or not text.strip() or _EMPTY_LIST.fullmatch(text):
        return tuple(found)
    return (refused(NO_OPERATIONS, text.strip()),)


def format_operations(operations: Iterable[Operation]) -> str:
    """Return operations as a JSON list, from which `parse_operations` reads them back.

    >>> format_operations([Operation("UPDATE", "Mia lives in Oslo", "3"), Operation("SKIP")])
    '[{"op":"UPDATE","id":"3","content":"Mia lives in Oslo"},{"op":"SKIP"}]'
    """
    records = []
    for operation in operations:
        values = {"id": operation.item_id, "content": operation.content}
        fields = {field: values[field] for field in OPERATION_FIELDS[operation.kind]}
        records.append({"op": operation.kind, **fields})
    return json.dumps(records, ensure_ascii=False, separators=(",", ":"))


class _Integer(str):
    """The digits of a JSON integer of any length; the type distinguishes it from a JSON string."""


def _load(raw: str) -> Any:
    return json.loads(raw, strict=False, parse_int=_Integer)


def fields_of(raw: str) -> tuple[OperationKind, dict[str, Any]] | InvalidOperation:
    """Return the kind and the fields of one object, an operation or a call of a tool.

    Args:
        raw: An object that `scan` has found.
    """
    try:
        fields = _load(raw)
        kind = fields.get("op")
        if "op" not in fields and "name" in fields:
            kind = _tool_kind(fields["name"])
            fields = fields.get("arguments") or fields.get("parameters") or {}
            if isinstance(fields, str):
                fields = _load(fields) if _ARGUMENTS.fullmatch(fields.strip()) else None
    except ValueError:
        return refused(NOT_JSON, raw)
    if not isinstance(fields, dict):
        return refused(NOT_JSON, raw)
    kind = kind.strip().upper() if isinstance(kind, str) else None
    if kind not in OPERATION_KINDS:
        return refused(UNKNOWN_OPERATION, raw)
    return kind, fields


def _read(raw: str) -> Operation | InvalidOperation:
    """Read one object that `_OBJECT` matched."""
    found = fields_of(raw)
    if isinstance(found, InvalidOperation):
        return found
    kind, fields = found
    content = item_id = None
    if "content" in OPERATION_FIELDS[kind]:
        if type(content := fields.get("content")) is not str:
            return refused(BAD_CONTENT, raw)
        content = clean_text(content)
    if "id" in OPERATION_FIELDS[kind]:
        if not isinstance(item_id := fields.get("id"), str):
            return refused(BAD_ID, raw)
        item_id = clean_text(str(item_id))
    return Operation(kind, content, item_id)


def refused(reason: str, raw: str) -> InvalidOperation:
    """Return a piece of a completion that is not an operation, with the beginning of its text.

    Args:
        reason: Why it is not an operation.
        raw: Text of the piece.
    """
    return InvalidOperation(reason, raw if len(raw) <= RAW_LIMIT else raw[: RAW_LIMIT - 1] + "…")


def _tool_kind(name: object) -> str | None:
    """Return the only operation kind in a tool's name, as in ``new_memory_insert``, or `None`."""
    parts = re.split(r"\W|_", name.upper()) if isinstance(name, str) else ()
    kinds = [kind for kind in OPERATION_KINDS if kind in parts]
    return kinds[0] if len(kinds) == 1 else None
