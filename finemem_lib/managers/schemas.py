"""Descriptions of the operations for a language model: a JSON schema, and tools."""

from __future__ import annotations

from typing import Any

from finemem_lib.operations import OPERATION_FIELDS
from finemem_lib.trajectory import OperationKind

OPERATION_SCHEMA: dict[str, Any] = {
    "type": "array",
    "items": {
        "anyOf": [
            {
                "type": "object",
                "properties": {
                    "op": {"const": kind},
                    **{field: {"type": "string"} for field in fields},
                },
                "required": ["op", *fields],
                "additionalProperties": False,
            }
            for kind, fields in OPERATION_FIELDS.items()
        ]
    },
}
"""JSON schema of the list of operations, shown in prompts."""

_DESCRIPTIONS: dict[OperationKind, str] = {
    "INSERT": "Store a new item: a full statement that can be understood alone, with names instead "
    "of pronouns, dates, numbers.",
    "UPDATE": "Replace the content of an item that the new piece changes.",
    "DELETE": "Remove an item that is no longer true.",
    "SKIP": "Do nothing, because nothing is worth storing.",
}

OPERATION_TOOLS: list[dict[str, Any]] = [
    {
        "type": "function",
        "function": {
            "name": f"memory_{kind.lower()}",
            "description": _DESCRIPTIONS[kind],
            "parameters": {
                "type": "object",
                "properties": {field: {"type": "string"} for field in fields},
                "required": list(fields),
            },
        },
    }
    for kind, fields in OPERATION_FIELDS.items()
]
"""The operations as functions, for the `tools` of a chat template."""
