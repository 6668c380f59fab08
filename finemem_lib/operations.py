"""Parse a completion into memory operations, and format operations as a completion.

The scan is one pass of one regular expression over the completion. An operation is a flat JSON
object (its `arguments`, in a tool call, are one level deeper), so the expression needs no nesting
and no backtracking: whatever is fed in, the work grows linearly with its length, and JSON itself
is only ever asked to read an object that is known to be shallow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from typing import Any

from finemem_lib.text import clean_text
from finemem_lib.trajectory import OPERATION_KINDS, InvalidOperation, Operation, OperationKind

NO_OPERATIONS = "no operations found"
NOT_JSON = "not a JSON object"
TRUNCATED = "truncated"
UNKNOWN_OPERATION = "unknown operation"
BAD_CONTENT = "content missing or not a string"
BAD_ID = "id missing or not a string"

MALFORMED = (NO_OPERATIONS, NOT_JSON, TRUNCATED, UNKNOWN_OPERATION, BAD_CONTENT, BAD_ID)
"""Every reason an `InvalidOperation` of `parse_operations` can carry."""

RAW_LIMIT = 200
"""Characters of the offending text that an `InvalidOperation` keeps."""

OPERATION_FIELDS: dict[OperationKind, tuple[str, ...]] = {
    "INSERT": ("content",),
    "UPDATE": ("id", "content"),
    "DELETE": ("id",),
    "SKIP": (),
}
"""The fields of every kind of operation, in the order they are written."""

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
    r"""Read the operations of a completion.

    Accepted are a JSON list, one object, and tool calls, Qwen's blocks as well as Llama's bare
    objects (`name` holds one of the four kinds as in ``memory_insert``, `arguments` or, in Llama's,
    `parameters` an object or its JSON text), each also inside a code fence, after prose or after a
    thinking block. Keys come in any order, unknown keys are ignored, integer ids become strings. A
    malformed or cut-off piece never spoils whole operations around it. Never raises, never
    evaluates, linear in the length of the completion.

    Args:
        completion: Text of the memory manager; nothing in it is trusted.

    Returns:
        The operations in the order they were written. A piece that asks for an operation without
        being one is an `InvalidOperation` whose reason is one of `MALFORMED`; the result is empty
        only for an empty completion or an empty list.

    >>> parse_operations('Sure: [{"op":"DELETE","id":3}, {"op":"INSERT","content":"Mia li')
    (Operation(kind='DELETE', content=None, item_id='3'),
     InvalidOperation(reason='truncated', raw='{"op":"INSERT","content":"Mia li'))
    >>> parse_operations("Nothing worth keeping."), parse_operations("[]")
    ((InvalidOperation(reason='no operations found', raw='Nothing worth keeping.'),), ())
    """
    text = _THINKING.sub("", clean_text(completion))
    found: list[Operation | InvalidOperation] = []
    last, end = "", 0  # the last token, and where it ended
    inside = broken = False

    def close_gap(token: str, start: int) -> None:
        """Judge the text between two tokens: prose is ignored, a spoilt operation is not."""
        gap = text[end:start].strip(_SEPARATORS)
        beside_object = inside and "object" in (last, token)
        if gap and (broken or beside_object or last == "<tool_call>" or token == "</tool_call>"):
            cut_off = token == "end" and (inside or "}" not in gap)
            reason = TRUNCATED if cut_off else NOT_JSON
            found.append(InvalidOperation(reason, _shortened(gap)))

    for match in _TOKEN.finditer(text):
        token = match.lastgroup or match.group()
        if token == "broken":
            broken = True
            continue
        # Brackets after a broken object are most likely its own.
        if not (broken and token in "[]"):
            close_gap(token, match.start())
            last, end, broken = token, match.end(), False
        if token == "object":
            found.append(_read(match.group()))
        else:
            inside = token in ("[", "<tool_call>")
    close_gap("end", len(text))
    if found or not text.strip() or _EMPTY_LIST.fullmatch(text):
        return tuple(found)
    return (InvalidOperation(NO_OPERATIONS, _shortened(text.strip())),)


def format_operations(operations: Iterable[Operation]) -> str:
    """Return the JSON list that `parse_operations` reads back as the same operations.

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
    """A JSON integer as it was written: of any length, and told apart from a JSON string."""


def _load(raw: str) -> Any:
    return json.loads(raw, strict=False, parse_int=_Integer)


def _read(raw: str) -> Operation | InvalidOperation:
    """Read one object that `_OBJECT` matched."""
    try:
        fields = _load(raw)
        kind = fields.get("op")
        if "op" not in fields and "name" in fields:
            kind = _tool_kind(fields["name"])
            fields = fields.get("arguments") or fields.get("parameters") or {}
            if isinstance(fields, str):
                fields = _load(fields) if _ARGUMENTS.fullmatch(fields.strip()) else None
    except ValueError:
        return InvalidOperation(NOT_JSON, _shortened(raw))
    if not isinstance(fields, dict):
        return InvalidOperation(NOT_JSON, _shortened(raw))
    kind = kind.strip().upper() if isinstance(kind, str) else None
    if kind not in OPERATION_KINDS:
        return InvalidOperation(UNKNOWN_OPERATION, _shortened(raw))
    content = item_id = None
    if "content" in OPERATION_FIELDS[kind]:
        if type(content := fields.get("content")) is not str:
            return InvalidOperation(BAD_CONTENT, _shortened(raw))
        content = clean_text(content)
    if "id" in OPERATION_FIELDS[kind]:
        if not isinstance(item_id := fields.get("id"), str):
            return InvalidOperation(BAD_ID, _shortened(raw))
        item_id = clean_text(str(item_id))
    return Operation(kind, content, item_id)


def _tool_kind(name: object) -> str | None:
    """Return the one kind that a tool's name holds, as in ``new_memory_insert``."""
    parts = re.split(r"\W|_", name.upper()) if isinstance(name, str) else ()
    kinds = [kind for kind in OPERATION_KINDS if kind in parts]
    return kinds[0] if len(kinds) == 1 else None


def _shortened(raw: str) -> str:
    return raw if len(raw) <= RAW_LIMIT else raw[: RAW_LIMIT - 1] + "…"
