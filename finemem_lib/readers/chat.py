"""Asking language models: one client for a server or a model in process, with a memo on disk.

Differs from the paper: Fine-Mem (arXiv 2601.08435) asks Qwen3-32B and GPT-4o-mini and says nothing
about calls that fail. Here a call that failed on the way is made again; a reply that arrived is
kept before the next step is taken, so no reply is paid for twice, not after an interruption
either; a reply that was refused or does not fit what was asked for is asked for once more and is
then `None`, never a wrong answer.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from finemem_lib.readers.memo import Memo, Reply
from finemem_lib.text import clean_text

Messages = Sequence[Mapping[str, str]]
"""One conversation: messages with "role" and "content"."""

ROUNDS = 2
"""How often a question is asked whose reply is refused or malformed."""

_Structure = TypeVar("_Structure")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


class ModelError(RuntimeError):
    """A language model could not be asked; what had been answered is in the memo."""


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """Which language model is asked, and how.

    kind: "server" (any OpenAI-compatible one, at `base_url`) or "local" (transformers, in process).
    model: its name on the server, or the name or folder transformers loads.
    key_env: name of the environment variable that holds the key, in capitals; `None`: no key.
    temperature, max_tokens, seed: sampling; `None` is not sent. A second round adds 1 to the seed.
    chat_template_kwargs: what the chat template is told; `None` for servers that refuse the field.
    schema: send the JSON schema of a structured answer; off for servers that refuse it.
    price_in, price_out: of a million tokens, in any one currency.
    memo: file that keeps every reply; `None` keeps them for the life of the client.
    concurrency, timeout (seconds for one call, from first to last byte), attempts (calls that fail
    on the way; fewer until the server is reached for the first time), backoff (seconds before the
    second attempt, doubled each time): servers only.
    batch_size: prompts per forward pass, local models only.

    Raises:
        ValueError: a setting is out of range, or a part that one kind needs is missing.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}

    model: str
    kind: Literal["server", "local"] = "server"
    base_url: str | None = None
    key_env: str | None = None
    temperature: float | None = 0.1
    max_tokens: int = 2048
    seed: int | None = 0
    chat_template_kwargs: Mapping[str, Any] | None = field(
        default_factory=lambda: {"enable_thinking": False}
    )
    schema: bool = True
    price_in: float = 0.0
    price_out: float = 0.0
    memo: str | None = None
    concurrency: int = 16
    timeout: float = 300.0
    attempts: int = 10
    backoff: float = 0.5
    batch_size: int = 8

    def __post_init__(self) -> None:
        for name in ("max_tokens", "concurrency", "attempts", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        for name in ("temperature", "price_in", "price_out", "backoff"):
            value = getattr(self, name)
            if value is not None and not 0 <= value < math.inf:
                raise ValueError(f"{name} is {value}, expected a finite number of at least 0")
        if not 0 < self.timeout < math.inf:
            raise ValueError(f"timeout is {self.timeout}, expected seconds, more than 0")
        if not self.model:
            raise ValueError("model is empty, expected the name of a language model")
        # What stands where a secret does not belong may be one: no message repeats it.
        if self.key_env is not None and not _VARIABLE.fullmatch(self.key_env):
            raise ValueError(
                "key_env is not the name of an environment variable, expected one in capitals, "
                "such as OPENAI_API_KEY; the key itself belongs in that variable and nowhere else"
            )
        if self.kind == "server":
            parts = urlsplit(self.base_url or "")
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError(
                    "base_url is missing or no address, expected such as http://127.0.0.1:8000/v1"
                )
            if parts.username or parts.password or parts.query:
                raise ValueError(
                    "base_url holds a user, password or query, expected a bare address; put the "
                    "key into an environment variable and its name into key_env"
                )

    @property
    def identity(self) -> str:
        """Everything the replies depend on beside the messages, as JSON. Where the model runs is
        left out, so that it may move: different weights need different names."""
        names = (
            "kind",
            "model",
            "temperature",
            "max_tokens",
            "seed",
            "chat_template_kwargs",
            "schema",
        )
        return json.dumps({name: getattr(self, name) for name in names}, sort_keys=True)

    @property
    def secret(self) -> str | None:
        """The key, read anew from its variable so that no object holds it.

        Raises:
            ValueError: the variable is not set, or holds what no key does.
        """
        if self.key_env is None:
            return None
        key = os.environ.get(self.key_env, "").strip()
        if not (key and key.isascii() and key.isprintable()):
            raise ValueError(
                f"the environment variable {self.key_env} is {'no key' if key else 'not set'}, "
                f"expected the key of {self.base_url}; set it, or leave key_env out for a server "
                "that needs none"
            )
        return key


def chat_settings(options: Mapping[str, Any]) -> ChatSettings:
    """Return validated settings from a mapping, such as a profile's.

    Raises:
        ValueError: a field is unknown, missing, of another type or out of range.

    >>> chat_settings({"model": "m", "base_url": "http://127.0.0.1:8000/v1"}).concurrency
    16
    >>> chat_settings({"model": "m", "api_key": "..."})
    Traceback (most recent call last):
    ValueError: language model settings: api_key: Unexpected keyword argument; the fields are ...
    """
    from pydantic import ValidationError

    try:
        return _adapter(ChatSettings).validate_python(dict(options))
    except ValidationError as error:
        # Values are not shown: one of them may be a key in the wrong place.
        found = "; ".join(
            ": ".join(
                filter(
                    None,
                    (".".join(map(str, entry["loc"])), entry["msg"].removeprefix("Value error, ")),
                )
            )
            for entry in error.errors(include_url=False, include_input=False)
        )
    names = ", ".join(one.name for one in dataclasses.fields(ChatSettings))
    raise ValueError(f"language model settings: {found}; the fields are {names}")


@dataclass(slots=True)
class Usage:
    """What a client did since it was made.

    calls: replies that arrived. retries: attempts made again because one failed on the way.
    unmetered: replies that came without token counts. cost: in the currency of the prices.
    memo_hits: questions that needed no call. refused, malformed (also a text that was cut off at
    max_tokens): replies that were, those from the memo too. unanswered: questions whose reply
    became `None`.
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
    """One reply to get: its key in the memo, the round it is asked in, what is sent."""

    key: str
    round: int
    messages: Messages
    structure: type | None


class Chat:
    """A language model that conversations are put to; a subclass gets the replies.

    `ask` answers from the memo what it holds, and equal conversations once. The key of a reply is
    the model, its settings, the messages and the structure asked for.

    Raises:
        ValueError: the memo cannot be used.
    """

    def __init__(self, settings: ChatSettings) -> None:
        self.settings = settings
        self.usage = Usage()
        self.memo = Memo(settings.memo)
        self.asked: Callable[[], None] = lambda: None
        """Called after each batch, also one that failed; what arrived of it is in `usage`."""

    @property
    def name(self) -> str:
        return self.settings.model

    def ask(
        self, conversations: Sequence[Messages], structure: type[_Structure] | None = None
    ) -> list[Any]:
        """Return one reply per conversation, in order: its text, or with a `structure` (a
        dataclass) the object that its JSON describes; `None` where both rounds were in vain.

        Raises:
            ModelError: the model could not be asked; every reply that arrived is in the memo.
        """
        try:
            return self._ask(conversations, structure)
        finally:
            self.asked()

    def _ask(
        self, conversations: Sequence[Messages], structure: type[_Structure] | None
    ) -> list[Any]:
        keys = [self._key(messages, structure) for messages in conversations]
        open_ = dict(zip(keys, conversations, strict=True))
        answers: dict[str, Any] = {}
        called: set[str] = set()
        for round_ in range(1, ROUNDS + 1):
            new = [
                Call(key, round_, messages, structure)
                for key, messages in open_.items()
                if self.memo.get(key, round_) is None
            ]
            if new:
                self._complete(new, self._arrived)
            called |= {call.key for call in new}
            for key in list(open_):
                answer = self._read(self.memo.get(key, round_), structure)
                if answer is not None:
                    answers[key] = answer
                    del open_[key]
        self.usage.memo_hits += len(keys) - len(called)
        self.usage.unanswered += len(open_)
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
        said = without_thinking(reply.text)
        # A JSON object shows by itself whether it is whole; half a text looks like an answer.
        answer = structured(said, structure) if structure else None if reply.cut else said or None
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


def check_usable(settings: ChatSettings) -> None:
    """Refuse a server that could not be asked from here, before anything is.

    Raises:
        ValueError: the key's variable is not set.
        ImportError: the openai package is not installed.
    """
    import importlib.util

    if settings.kind == "server" and importlib.util.find_spec("openai") is None:
        raise ImportError(
            "a language model on a server needs the openai package, which is not installed; "
            "install the workbench with it: pip install -e .[server]"
        )
    _ = settings.secret  # refuses to start without it


def without_thinking(text: str) -> str:
    """Return a reply without the reasoning some models put before it; "" if that never ends.

    >>> without_thinking("<think>Let me see.</think> Rome"), without_thinking("<think>Let me")
    ('Rome', '')
    """
    if "</think>" in text:
        return text.rpartition("</think>")[2].strip()
    return "" if text.lstrip().startswith("<think>") else text.strip()


def structured(text: str, structure: type[_Structure]) -> _Structure | None:
    """Return the object that the JSON in a reply describes, `None` where it does not fit; words or
    a code fence around the braces are passed over.

    >>> structured('Here: {"text": "Rome"}', Reply)
    Reply(text='Rome', refused=False, tokens_in=None, tokens_out=None, cut=False)
    >>> structured('{"text": 3}', Reply) is None
    True
    """
    try:
        found = text[text.index("{") : text.rindex("}") + 1]
        return _adapter(structure).validate_json(clean_text(found))
    except ValueError:  # pydantic's error is one too
        return None


def json_schema(structure: type) -> dict[str, Any]:
    """Return the JSON schema of a structured answer."""
    return _adapter(structure).json_schema()


@functools.cache
def _adapter(record_type: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(record_type)
