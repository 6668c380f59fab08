"""Asking language models: one client for a server or a model in process, with a memo on disk.

Differs from the paper: Fine-Mem (arXiv 2601.08435) asks Qwen3-32B and GPT-4o-mini and does not say
how it treats calls that fail. Here a call that fails on the way is repeated. A reply that arrives
is stored before the next step, so no reply is paid for twice, even after an interruption. A reply
that was refused or does not fit is asked for once more and is then `None`, never a wrong answer.
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
"""How often a question is asked whose reply is refused or malformed."""


class ModelError(RuntimeError):
    """A language model could not be asked; what had been answered is in the memo."""


@dataclass(slots=True)
class Usage:
    """What a client did since it was made.

    Attributes:
        calls: Replies that arrived.
        retries: Attempts that followed one which failed on the way.
        tokens_in, tokens_out: Tokens of prompts and replies, as far as the server counts them.
        unmetered: Replies that came without token counts.
        cost: In the currency of the prices.
        refused: Replies that refused, those from the memo included.
        malformed: Replies that did not fit or were cut off at max_tokens, likewise.
        unanswered: Questions whose reply became `None`.
        memo_hits: Questions that needed no call.
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
    """One reply to get.

    Attributes:
        key: Its key in the memo.
        round: 1, or 2 where the first reply was refused or malformed.
        messages: The conversation that is sent.
        structure: The dataclass that the reply must fit; `None` for plain text.
    """

    key: str
    round: int
    messages: Messages
    structure: type | None


class Chat:
    """A language model that answers conversations; a subclass gets the replies.

    The memo answers what it holds, and equal conversations are asked once. The key of a reply is
    the model, its settings, the messages and the structure asked for.

    Attributes:
        settings: Which model is asked, and how.
        usage: What was done so far.
        memo: The replies.
        after_batch: Called after each batch, also one that failed; what arrived of it is in
            `usage`.

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
            conversations: Any number; they are asked at the same time.
            structure: A dataclass that the reply must describe as JSON; `None` for plain text.

        Returns:
            Texts, or objects of the structure; `None` where no round gave a usable reply.

        Raises:
            ModelError: the model could not be asked; every reply that arrived is in the memo.
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
        """Get a reply for every call and hand each to `arrived` as soon as it is there."""
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
        """Return what a reply says, or count it as refused or malformed."""
        if reply.refused:
            self.usage.refused += 1
            return None
        text = without_thinking(reply.text)
        if structure:
            # A JSON object shows by itself whether it is whole; half a text looks like an answer.
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
