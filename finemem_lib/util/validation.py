"""Values from files: JSON read within a limit on its depth, types checked by pydantic."""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import TypeAdapter, ValidationError

MAX_DEPTH = 100
"""How many lists and objects of a file may lie within each other."""


def parse_json(text: str | bytes) -> Any:
    """Return the value of a JSON text.

    Args:
        text: One JSON value; bytes are UTF-8, with or without a byte order mark.

    Raises:
        ValueError: the text is no JSON in UTF-8, or nests deeper than `MAX_DEPTH`.
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
    """Refuse a value that no recursive function could walk through safely.

    Args:
        value: Lists, tuples and dicts within each other, and what they hold.

    Raises:
        ValueError: they nest deeper than `MAX_DEPTH`.
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
    """Return pydantic's validator of a type, built once per type.

    Args:
        record_type: A dataclass or any other type that pydantic knows.
    """
    return _built_adapter(record_type)


@functools.cache
def _built_adapter(record_type: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    return TypeAdapter(record_type)


def problems_in_words(error: ValidationError, limit: int = 3) -> str:
    """Return what a pydantic model refused, in one line.

    Args:
        error: Of a model's validation.
        limit: How many problems to name.
    """
    problems = error.errors(include_url=False, include_context=False, include_input=False)
    named = []
    for one in problems[:limit]:
        what = re.sub(r" or instance of \w+", "", one["msg"])  # a class of ours tells nobody
        named.append(f"{'.'.join(map(str, one['loc']))}: {what}" if one["loc"] else what)
    more = [f"and {len(problems) - limit} more"] if len(problems) > limit else []
    return "; ".join([*named, *more])
