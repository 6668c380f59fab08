"""Validate values from files: JSON with limited depth, types checked by pydantic."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

MAX_DEPTH = 100
"""Largest depth of nested lists and objects."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Args:
        text: One JSON value; bytes are UTF-8, with or without a byte order mark.

    Raises:
        ValueError: the text is not JSON in UTF-8, or is nested deeper than `MAX_DEPTH`.
    """
    try:
        value = json.loads(text.decode("utf-8-sig") if isinstance(text, bytes) else text)
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise ValueError(f"expected JSON in UTF-8, got {error}") from None
    check_depth(value)
    return value


def check_depth(value: Any) -> None:
    """Raise an error for a value that is nested too deeply for recursive functions.

    Args:
        value: Nested lists, tuples and dicts.

    Raises:
        ValueError: the value is nested deeper than `MAX_DEPTH`.
    """
    level = [value]
    for _ in range(MAX_DEPTH + 1):
        level = [one for one in level if isinstance(one, (list, tuple, dict))]
        if not level:
            return
        level = [
            inner
            for outer in level
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    raise _too_deep()


def _too_deep() -> ValueError:
    return ValueError(
        f"expected at most {MAX_DEPTH} lists and objects within each other, got more; flatten them"
    )


def type_adapter(record_type: Any) -> TypeAdapter[Any]:
    """Return pydantic's validator of a type, cached by type.

    Args:
        record_type: A dataclass or any other type that pydantic supports.
    """
    return _built_adapter(record_type)


@functools.cache
def _built_adapter(record_type: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(record_type)


def problems_in_words(error: ValidationError) -> str:
    """Return the problems that a validation found, at most three, as one line of text.

    Args:
        error: Error of pydantic."""
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    named = []
    for one in problems[:3]:
        what = re.sub(r" or instance of \w+", "", one["msg"])  # our class names do not help users
        named.append(f"{'.'.join(map(str, one['loc']))}: {what}" if one["loc"] else what)
    more = [f"and {len(problems) - 3} more"] if len(problems) > 3 else []
    return "; ".join([*named, *more])
