"""Map the tokens of a completion to its operations."""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from finemem_lib.layers.operations import parse_calls
from finemem_lib.operations import parse_operations
from finemem_lib.trajectory import InvalidOperation, Operation, Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@functools.lru_cache(maxsize=65536)
def token_texts(
    completion_ids: tuple[int, ...], tokenizer: PreTrainedTokenizerBase
) -> tuple[str, ...]:
    """Return the text of every token of a completion.

    If several tokens form one character, the last token has the character, the others are empty.

    Args:
        completion_ids: Token ids of the completion.
        tokenizer: The tokenizer that decodes them.
    """
    texts: list[str] = []
    waiting: list[int] = []
    for token in completion_ids:
        waiting.append(token)
        text = str(tokenizer.decode(waiting))
        if text.endswith("\ufffd") and len(waiting) < 8:
            texts.append("")
        else:
            texts.append(text)
            waiting = []
    return tuple(texts)


def operation_of_tokens(step: Step, texts: Sequence[str]) -> list[int | None]:
    """Return, for every token, the index of its operation among the step's outcomes, or `None`.

    The tokens of an operation extend from the end of the previous operation to its own last brace,
    so the token that decides whether another operation follows belongs to that operation. The end
    of the completion, prose, and pieces that could not be parsed belong to no operation.

    Args:
        step: The step, whose outcomes are in the order of the completion.
        texts: The text of every token.

    >>> from finemem_lib.trajectory import Chunk, MemoryDelta, OperationOutcome
    >>> ana, mia = Operation("INSERT", "Ana sails"), Operation("DELETE", None, "3")
    >>> outcomes = tuple(OperationOutcome(one, True) for one in (ana, mia))
    >>> step = Step(1, Chunk("", 0), "", outcomes, MemoryDelta(), 0)
    >>> texts = ['[{"op":"INSERT","content":"', "Ana", " sails", '"}', ',{"op":"DELETE","id":"']
    >>> operation_of_tokens(step, [*texts, "3", '"}', "]"])
    [0, 0, 0, 0, 1, 1, 1, None]
    """
    ends = _operation_ends("".join(texts), step)
    found: list[int | None] = []
    position = 0
    for text in texts:
        last = position + max(len(text), 1) - 1  # the token's last character
        position += len(text)
        found.append(next((place for end, place in ends if last < end), None))
    return found


def _operation_ends(text: str, step: Step) -> list[tuple[int, int]]:
    """Return (end in the text, index among the outcomes) of each operation of the step."""
    outcomes = [(n, one.operation) for n, one in enumerate(step.outcomes) if one.operation]
    decoder = json.JSONDecoder()
    ends: list[tuple[int, int]] = []
    start = text.find("{", max(text.rfind("</think>"), 0))
    while start >= 0 and len(ends) < len(outcomes):
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            start = text.find("{", start + 1)
            continue
        place, operation = outcomes[len(ends)]
        if _spells(text[start:end], value, operation):
            ends.append((end, place))
        start = text.find("{", end)
    return ends


def _spells(text: str, value: dict[str, Any], operation: Operation) -> bool:
    """Return whether a JSON object is an operation; if it quotes by number, compare kinds only."""
    if "quote" in value and "content" not in value:
        return str(value.get("op")).strip().upper() == operation.kind
    parse = parse_calls if "memory_type" in text else parse_operations
    return [*map(_words, parse(text)[:1])] == [_words(operation)]


def _words(found: Operation | InvalidOperation) -> list[str]:
    """Return kind and content of an operation as words, to compare operations.

    Spaces are ignored, because decoding tokens separately may add some; ids are ignored, because
    a prompt shows aliases instead of ids."""
    if isinstance(found, InvalidOperation):
        return []
    return [found.kind, *(found.content or "").split()]
