"""Decoding that follows a JSON schema, for small local models that seldom write valid JSON."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from finemem_lib.readers.structured import json_schema


@dataclass(frozen=True, slots=True)
class JsonLimits:
    """The largest sizes of a JSON reply, so that it ends before `max_tokens`.

    Attributes:
        items: Largest number of items of every list, at least 1.
        characters: Largest number of characters of every string, at least 1.

    Raises:
        ValueError: a limit is less than 1.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    items: int
    characters: int

    def __post_init__(self) -> None:
        for name in ("items", "characters"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")


def limited_schema(structure: type, limits: JsonLimits) -> dict[str, Any]:
    """Return the JSON schema of a structured answer, with limits for its lists and strings.

    Args:
        structure: A dataclass.
        limits: The limits.

    >>> from finemem_lib.readers.model_reader import CitedAnswer
    >>> fields = limited_schema(CitedAnswer, JsonLimits(items=3, characters=80))["properties"]
    >>> fields["answer"]["maxLength"], fields["items"]["maxItems"]
    (80, 3)
    """
    schema = copy.deepcopy(json_schema(structure))

    def limit(part: Any) -> None:
        if isinstance(part, dict):
            if part.get("type") == "string" and "enum" not in part and "const" not in part:
                part.setdefault("maxLength", limits.characters)
            if part.get("type") == "array":
                part.setdefault("maxItems", limits.items)
        for one in part.values() if isinstance(part, dict) else part:
            if isinstance(one, (dict, list)):
                limit(one)

    limit(schema)
    return schema


class JsonDecoder:
    """Finds the tokens that may follow a prefix, so that the reply fits a JSON schema.

    It reads the whole vocabulary once, in a few seconds. A character that the tokenizer spells with
    several tokens, such as a rare letter or an emoji, cannot be written.

    Args:
        tokenizer: Tokenizer of the model.
        ends: Token ids that end a reply.
    """

    def __init__(self, tokenizer: Any, ends: Sequence[int]) -> None:
        from lmformatenforcer.tokenenforcer import TokenEnforcerTokenizerData

        special = set(tokenizer.all_special_ids)
        zero = tokenizer.encode("0", add_special_tokens=False)[-1]
        vocabulary = []
        for token in range(len(tokenizer)):
            # After another token a word keeps its space, which some tokenizers drop in front.
            inside = tokenizer.decode([zero, token])[1:]
            # JSON strings hold no control characters; a part of a character decodes to "\ufffd".
            if token not in special and inside.isprintable() and "\ufffd" not in inside:
                begins_word = len(inside) > len(tokenizer.decode([token]))
                vocabulary.append((token, inside, begins_word))
        self._data = TokenEnforcerTokenizerData(
            vocabulary,
            tokenizer.decode,
            [*ends],
            False,
            len(tokenizer),
        )

    def allowed(
        self, structure: type, limits: JsonLimits, rows: int
    ) -> Callable[[int, Any], list[int]]:
        """Return the `prefix_allowed_tokens_fn` of transformers' `generate` for one batch.

        Args:
            structure: The dataclass that every reply must fit.
            limits: Limits of its lists and strings.
            rows: Number of replies in the batch.
        """
        from lmformatenforcer import CharacterLevelParserConfig, JsonSchemaParser, TokenEnforcer

        config = CharacterLevelParserConfig(
            alphabet=self._data.tokenizer_alphabet,
            max_consecutive_whitespaces=1,  # outside of strings they only cost tokens
            force_json_field_order=True,
        )
        parser = JsonSchemaParser(limited_schema(structure, limits), config)
        enforcers = [TokenEnforcer(self._data, parser) for _ in range(rows)]
        parser.config = config  # which every enforcer has replaced

        def allowed_tokens(row: int, tokens: Any) -> list[int]:
            found: list[int] = enforcers[row].get_allowed_tokens(tokens.tolist()).allowed_tokens
            return found

        return allowed_tokens
