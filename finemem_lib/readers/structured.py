"""Parse a language model's reply: its text without the reasoning, or an object from JSON."""

from __future__ import annotations

from typing import Any, TypeVar

from finemem_lib.text import clean_text
from finemem_lib.util.validation import type_adapter

Structure = TypeVar("Structure")
"""A dataclass that describes a structured answer."""


def without_thinking(text: str) -> str:
    """Return a reply without the reasoning that some models write first.

    Args:
        text: The complete reply.

    Returns:
        The text after the reasoning, or "" if the reasoning does not end.

    >>> without_thinking("<think>Let me see.</think> Rome"), without_thinking("<think>Let me")
    ('Rome', '')
    """
    if "</think>" in text:
        return text.rpartition("</think>")[2].strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def structured(text: str, structure: type[Structure]) -> Structure | None:
    """Return the object that the JSON in a reply describes.

    Args:
        text: The reply; text or a code fence around the braces is ignored.
        structure: A dataclass; the JSON object must fit its fields.

    Returns:
        The object, or `None` where the reply does not fit.

    >>> from finemem_lib.readers.memo import Reply
    >>> structured('Here: {"text": "Rome"}', Reply)
    Reply(text='Rome', refused=False, tokens_in=None, tokens_out=None, cut=False)
    >>> structured('{"text": 3}', Reply) is None
    True
    """
    try:
        found = text[text.index("{") : text.rindex("}") + 1]
        answer: Structure = type_adapter(structure).validate_json(clean_text(found))
    except ValueError:  # pydantic's error is one too
        return None
    return answer


def json_schema(structure: type) -> dict[str, Any]:
    """Return the JSON schema of a structured answer.

    Args:
        structure: A dataclass.
    """
    return type_adapter(structure).json_schema()
