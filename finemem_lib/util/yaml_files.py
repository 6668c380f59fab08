"""Read YAML files of users within limits on size, depth and aliases."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import yaml

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
"""Largest depth of nested lists and mappings."""

MAX_NODES = 10_000
"""Largest number of values, keys, lists and mappings; the content of an alias counts each time."""


def read_yaml(path: Path) -> Any:
    """Return the content of a YAML file.

    Args:
        path: A file of at most `MAX_BYTES`; it may use aliases within the limits of `parse_yaml`.

    Raises:
        ValueError: the file cannot be read, is not YAML or exceeds a limit. The message names the
            file, the line and the limit, and quotes no content, which may include a key.
    """
    try:
        with path.open("rb") as file:  # not read_text: the file may be infinite
            content = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    if len(content) > MAX_BYTES:
        raise ValueError(
            f"{path}: the file is larger than {MAX_BYTES:,} bytes, the limit for YAML; check the "
            "path, or shorten it"
        )
    try:
        return parse_yaml(content.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"{path}: no YAML, it is not UTF-8; check the path") from None
    except ValueError as error:
        raise ValueError(f"{path}, {error}") from None


def parse_yaml(text: str) -> Any:
    """Return the value of a YAML text.

    Args:
        text: One YAML document.

    Raises:
        ValueError: the text is not YAML, is nested deeper than `MAX_DEPTH`, or holds more than
            `MAX_NODES` values. The message starts with the line and quotes no content.
    """
    import yaml

    try:
        _check_limits(text)
        return yaml.safe_load(text)
    except yaml.MarkedYAMLError as error:
        why = re.sub(r"'.*'", "'...'", error.problem or "")
        raise ValueError(f"line {_line(error.problem_mark)}: no YAML ({why}); correct it") from None
    except yaml.YAMLError:
        raise ValueError("line 1: no YAML (a character that YAML forbids); correct it") from None
    except _LimitExceeded as error:
        raise ValueError(str(error)) from None
    except (ValueError, OverflowError):  # a date such as 2024-02-30, a number of 5,000 digits
        raise ValueError("a date or a number in it is not possible; put it in quotes") from None


def _line(mark: Any) -> int:
    return mark.line + 1 if mark else 1


class _LimitExceeded(Exception):
    """A text exceeds a limit."""


def _check_limits(text: str) -> None:
    """Raise an error if a text exceeds the limits, from its parser events, before building values.

    The parser is iterative and yields one event at a time, so the check ends at the first event
    beyond the limits, whatever the depth of the text.
    """
    import yaml

    def refuse(event: yaml.Event, what: str, remedy: str) -> None:
        raise _LimitExceeded(f"line {_line(event.start_mark)}: {what}; {remedy}")

    sizes: dict[str, tuple[int, int]] = {}  # by anchor: number of nodes, depth
    opened: list[tuple[str | None, int]] = []  # open collections: anchor, number of nodes before
    deepest: list[int] = []  # open collections: largest depth of their content
    nodes = 0
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth = 0  # depth of this event below the open collections
        if isinstance(event, yaml.AliasEvent):
            if event.anchor in (anchor for anchor, _ in opened):
                refuse(event, "an alias lies within the value it stands for", "write it out")
            # loading raises an error for an unknown alias
            size, depth = sizes.get(event.anchor or "", (1, 0))
            nodes += size
        elif isinstance(event, yaml.ScalarEvent):
            nodes += 1
            if event.anchor:
                sizes[event.anchor] = 1, 0
        elif isinstance(event, yaml.CollectionStartEvent):
            opened.append((event.anchor, nodes))
            deepest.append(len(opened))
            nodes += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            anchor, before = opened.pop()
            reached = deepest.pop()
            if deepest:
                deepest[-1] = max(deepest[-1], reached)
            if anchor:
                sizes[anchor] = nodes - before, reached - len(opened)
            continue
        if deepest:
            deepest[-1] = max(deepest[-1], len(opened) + depth)
        if len(opened) + depth > MAX_DEPTH:
            refuse(event, f"nested deeper than {MAX_DEPTH} lists and mappings", "flatten it")
        if nodes > MAX_NODES:
            refuse(
                event, f"more than {MAX_NODES:,} values, those of aliases included", "shorten it"
            )
