"""The client interface of language models, on a server or in process, with a cache on disk.

Differs from the paper: Fine-Mem (arXiv 2601.08435) asks Qwen3-32B and GPT-4o-mini and does not
state how it treats failed calls. Here a call with a transport error is retried. Every reply is
stored on arrival, so no reply is paid for twice, even after an interruption. After a refusal or a
malformed reply the question is asked once more; if that fails, too, the reply is `None` and never
counts as a wrong answer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, overload

from finemem_lib.readers.memo import Memo, Reply
from finemem_lib.readers.settings import ChatSettings
from finemem_lib.readers.structured import (
    Structure,
    json_schema,
    structured,
    without_thinking,
)

Messages = Sequence[Mapping[str, str]]
"""One conversation: messages with "role" and "content"."""

ROUNDS = 2
"""Largest number of times that a question is asked while its reply is a refusal or malformed."""


class ModelError(RuntimeError):
    """A call to a language model failed for good; the replies until then are in the memo."""


@dataclass(slots=True)
class Usage:
    """Counts of a client's calls, tokens and failures since its creation.

    Attributes:
        calls: Number of replies received.
        retries: Number of attempts after a failed attempt.
        tokens_in, tokens_out: Tokens of prompts and replies, where the server reports them.
        unmetered: Number of replies without token counts.
        cost: Cost in the currency of the prices.
        refused: Number of refusals, including those in the memo.
        malformed: Number of replies that did not fit the structure or were cut off at max_tokens,
            including those in the memo.
        unanswered: Number of questions whose reply is `None`.
        memo_hits: Number of questions that needed no call.
    """

    calls: int = 0
    retries: int = 0
    tokens_in: int = 0
    tokens_out: int = 0
    unmetered: int = 0
    cost: float = 0.0
    refused: int = 0
    malformed: int = 0
    unanswered: int = 0
    memo_hits: int = 0


@dataclass(frozen=True, slots=True)
class Call:
    """One call to make.

    Attributes:
        key: Key of the reply in the memo.
        round: 1, or 2 after a refused or malformed first reply.
        messages: The conversation to send.
        structure: The dataclass that the reply must fit; `None` for plain text.
    """

    key: str
    round: int
    messages: Messages
    structure: type | None


class Chat:
    """A language model that answers conversations; subclasses implement the calls.

    Replies in the memo need no call, and equal conversations are asked once. The key of a reply
    consists of the model, its settings, the messages and the requested structure.

    Attributes:
        settings: The model and its sampling settings.
        usage: Counts of the calls so far.
        memo: Cache of the replies.
        after_batch: Called after each batch, also after a failed one, when `usage` includes the
            replies received.

    Raises:
        ValueError: the memo cannot be used.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        self.usage = Usage()
        self.memo = Memo(settings.memo)
        self.after_batch: Callable[[], None] = lambda: None

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.settings.model

    @overload
    def ask(
        self, conversations: Sequence[Messages], structure: None = None
    ) -> list[str | None]: ...

    @overload
    def ask(
        self, conversations: Sequence[Messages], structure: type[Structure]
    ) -> list[Structure | None]: ...

    def ask(self, conversations: Sequence[Messages], structure: type | None = None) -> list[Any]:
        """Return one reply per conversation, in order.

        Args:
            conversations: Any number of conversations, asked as one batch.
            structure: A dataclass that the reply must describe as JSON; `None` for plain text.

        Returns:
            Texts, or objects of the structure; `None` where no round gave a usable reply.

        Raises:
            ModelError: a call failed for good; every reply received is in the memo.
        """
        try:
            return self._ask(conversations, structure)
        finally:
            self.after_batch()

    def _ask(self, conversations: Sequence[Messages], structure: type | None) -> list[Any]:
        keys = [self._key(messages, structure) for messages in conversations]
        unanswered = dict(zip(keys, conversations, strict=True))
        answers: dict[str, Any] = {}
        called: set[str] = set()
        for round_ in range(1, ROUNDS + 1):
            new = [
                Call(key, round_, messages, structure)
                for key, messages in unanswered.items()
                if self.memo.get(key, round_) is None
            ]
            if new:
                self._complete(new, self._arrived)
            called |= {call.key for call in new}
            for key in list(unanswered):
                reply = self.memo.get(key, round_)
                answer = None if reply is None else self._read(reply, structure)
                if answer is not None:
                    answers[key] = answer
                    del unanswered[key]
        self.usage.memo_hits += len(keys) - len(called)
        self.usage.unanswered += len(unanswered)
        return [answers.get(key) for key in keys]

    def _complete(self, calls: Sequence[Call], arrived: Callable[[Call, Reply], None]) -> None:
        """Make every call and pass each reply to `arrived` on arrival."""
        raise NotImplementedError

    def _arrived(self, call: Call, reply: Reply) -> None:
        self.memo.put(call.key, call.round, reply)
        used, settings = self.usage, self.settings
        tokens_in, tokens_out = reply.tokens_in or 0, reply.tokens_out or 0
        used.calls += 1
        used.tokens_in += tokens_in
        used.tokens_out += tokens_out
        used.unmetered += reply.tokens_in is None or reply.tokens_out is None
        used.cost += (tokens_in * settings.price_in + tokens_out * settings.price_out) / 1e6

    def _read(self, reply: Reply, structure: type | None) -> Any:
        """Return the content of a reply, or count it as refused or malformed and return `None`."""
        if reply.refused:
            self.usage.refused += 1
            return None
        text = without_thinking(reply.text)
        if structure:
            # A truncated JSON object does not parse; a truncated text looks like an answer.
            answer = structured(text, structure)
        else:
            answer = None if reply.cut else text or None
        self.usage.malformed += answer is None
        return answer

    def _key(self, messages: Messages, structure: type | None) -> str:
        asked = [
            self.settings.identity,
            [dict(one) for one in messages],
            json_schema(structure) if structure else None,
        ]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _seed(self, call: Call) -> int | None:
        return None if self.settings.seed is None else self.settings.seed + call.round - 1
