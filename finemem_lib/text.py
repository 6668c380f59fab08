"""Words and tokens of a text.

Every function takes time linear in the length of its input, because texts from data sets and models
may be long, repetitive or malformed.
"""

from __future__ import annotations

import re

TOKENIZER = "words"
"""Name of the tokenizer of `count_tokens`, recorded with every trajectory."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_WORD = re.compile(r"\w+")
_WORD_OR_MARK = re.compile(r"\w+|[^\w\s]")


def clean_text(text: str) -> str:
    r"""Replace lone surrogates, which UTF-8 cannot encode, by U+FFFD.

    >>> clean_text("a\ud800b") == "a\ufffdb"
    True
    """
    return _SURROGATE.sub("\ufffd", text)


def words(text: str) -> list[str]:
    """Return the lower-cased words that retrieval indexes.

    >>> words("Mia lives in Rome, since 1999.")
    ['mia', 'lives', 'in', 'rome', 'since', '1999']
    """
    return _WORD.findall(text.lower())


def count_tokens(text: str) -> int:
    """Return the number of tokens, that is words and punctuation marks, in a text.

    >>> count_tokens("Mia lives in Rome.")
    5
    """
    return len(_WORD_OR_MARK.findall(text))


def truncate_tokens(text: str, limit: int) -> tuple[str, int]:
    """Return the first `limit` tokens of a text (the "head" rule), and the number of removed ones.

    Args:
        text: Any text.
        limit: Largest number of tokens to keep.

    >>> truncate_tokens("one two three four", 3)
    ('one two three', 1)
    """
    spans = [match.end() for match in _WORD_OR_MARK.finditer(text)]
    if len(spans) <= limit:
        return text, 0
    return text[: spans[limit - 1]] if limit > 0 else "", len(spans) - max(limit, 0)


def last_tokens(text: str, limit: int) -> str:
    """Return the last `limit` tokens of a text (the "tail" rule).

    Args:
        text: Any text.
        limit: Most tokens to keep.

    >>> last_tokens("one two three four", 3)
    'two three four'
    """
    starts = [match.start() for match in _WORD_OR_MARK.finditer(text)]
    return text[starts[-limit] :] if 0 < limit < len(starts) else text if limit > 0 else ""
