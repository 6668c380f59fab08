"""Asking language models: one client for a server or a model in process, with a memo on disk.

Differs from the paper: Fine-Mem (arXiv 2601.08435) asks Qwen3-32B and GPT-4o-mini and says nothing
about calls that fail. Here a call that failed on the way is made again; a reply that arrived is
kept before the next step is taken, so no reply is paid for twice, not after an interruption
either; a reply that was refused or does not fit what was asked for is asked for once more and is
then `None`, never a wrong answer.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import hashlib
import json
import math
import os
import re
import sqlite3
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar
from urllib.parse import urlsplit

from finemem_lib.repro import generator, stable_seed
from finemem_lib.text import clean_text

if TYPE_CHECKING:
    from ssl import SSLContext

    from openai import AsyncOpenAI

Messages = Sequence[Mapping[str, str]]
"""One conversation: messages with "role" and "content"."""

ROUNDS = 2
"""How often a question is asked whose reply is refused or malformed."""

LONGEST_WAIT = 300.0
"""Seconds: a server that asks for a longer pause is not waited for."""

UNREACHED_ATTEMPTS, CONNECT_WAIT = 3, 3.0
"""Attempts at most, and seconds for each to connect, while no server has answered at all."""

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
        names = ("kind", "model", "temperature", "max_tokens", "seed", "chat_template_kwargs",
                 "schema")
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
            ": ".join(filter(None, (".".join(map(str, entry["loc"])),
                                    entry["msg"].removeprefix("Value error, "))))
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
class Reply:
    """A reply as it arrived, `cut` where it did not end before max_tokens; the counts are `None`
    where the server does not say."""

    text: str
    refused: bool = False
    tokens_in: int | None = None
    tokens_out: int | None = None
    cut: bool = False


@dataclass(frozen=True, slots=True)
class Call:
    """One reply to get: its key in the memo, the round it is asked in, what is sent."""

    key: str
    round: int
    messages: Messages
    structure: type | None


class Memo:
    """Replies on disk by key and round; several processes may share the file.

    Raises:
        ValueError: the file is there and is no memo.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        _ = self._file  # refuses to start without it

    @property
    def _file(self) -> sqlite3.Connection:
        """The file, opened again after `close`: a notebook's cells run in any order."""
        if self._connection is None:
            self._connection = self._opened()
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        if self.path is not None:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        try:
            # Autocommit: a reply is on disk when `put` returns. Replies arrive in another thread.
            file = sqlite3.connect(
                self.path or ":memory:", timeout=60, isolation_level=None, check_same_thread=False
            )
            file.execute("PRAGMA journal_mode=WAL")
            file.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT, round INTEGER, reply TEXT NOT NULL, "
                "PRIMARY KEY (key, round)) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"memo {self.path}: {error}; expected a memo of earlier replies or no file yet, "
                "choose another path"
            ) from error
        return file

    def get(self, key: str, round_: int) -> Reply | None:
        found = self._file.execute(
            "SELECT reply FROM replies WHERE key = ? AND round = ?", (key, round_)
        ).fetchone()
        return Reply(**json.loads(found[0])) if found else None

    def put(self, key: str, round_: int, reply: Reply) -> None:
        """Keep a reply; where another process was first, its reply stays."""
        self._file.execute(
            "INSERT OR IGNORE INTO replies VALUES (?, ?, ?)",
            (key, round_, json.dumps(dataclasses.asdict(reply))),
        )

    def copy_to(self, path: str | Path) -> None:
        """Write all replies to a new file, also while others add to this one."""
        with contextlib.closing(sqlite3.connect(path)) as copy:
            self._file.backup(copy)

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


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
                Call(key, round_, messages, structure) for key, messages in open_.items()
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
        asked = [self.settings.identity, [dict(one) for one in messages],
                 json_schema(structure) if structure else None]
        return hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()

    def _seed(self, call: Call) -> int | None:
        return None if self.settings.seed is None else self.settings.seed + call.round - 1


class ChatClient(Chat):
    """A language model behind an OpenAI-compatible server.

    At most `concurrency` calls are under way at a time. What fails on the way (no connection, a
    timeout, a body that is cut off or no completion, statuses 408, 409, 429 and 5xx) is tried again
    after the server's Retry-After, else after a doubling pause; an address where nobody has ever
    answered is given up after `UNREACHED_ATTEMPTS`. The calls run in an event loop of their own
    thread, so `ask` works where one is running already, as in Jupyter.

    Raises:
        ValueError: the key's variable is not set, or the memo cannot be used.
        ImportError: the openai package is not installed.
    """

    def __init__(self, settings: ChatSettings) -> None:
        check_usable(settings)
        super().__init__(settings)
        self._reached = False

    def _complete(self, calls: Sequence[Call], arrived: Callable[[Call, Reply], None]) -> None:
        from anyio.from_thread import start_blocking_portal

        # An interrupt here cancels what is under way before it goes on.
        with start_blocking_portal() as portal:
            failure = portal.call(self._complete_all, calls, arrived)
        if failure:  # raised here and not there: the original error holds the request's headers
            kept = f"; the replies so far are in {self.memo.path}" if self.memo.path else ""
            remedy = ("check server and settings" if self._reached else
                      "no server answers there: start it, or correct base_url")
            raise ModelError(
                f"{self.settings.model} at {self.settings.base_url}: {failure}; {remedy}, then run "
                f"again{kept}"
            )

    async def _complete_all(
        self, calls: Sequence[Call], arrived: Callable[[Call, Reply], None]
    ) -> str | None:
        """Make the calls; return in words why one failed for good, `None` if none did."""
        from httpx2 import Timeout
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        secret = self.settings.secret
        waiting, failures = deque(calls), []

        async def work() -> None:
            while waiting and not failures:
                call = waiting.popleft()
                try:
                    arrived(call, await self._send(server, secret, call))
                except (_CallFailed, sqlite3.Error) as error:
                    # Calls under way still end and are kept; no new one begins.
                    failures.append(str(error))

        async with AsyncOpenAI(
            api_key=secret or "none", base_url=self.settings.base_url, max_retries=0,
            timeout=Timeout(self.settings.timeout, connect=CONNECT_WAIT),
            http_client=DefaultAsyncHttpxClient(verify=_certificates()),
        ) as server, asyncio.TaskGroup() as group:
            for _ in range(min(self.settings.concurrency, len(calls))):
                group.create_task(work())
        return _without_key(failures[0], secret) if failures else None

    async def _send(self, server: AsyncOpenAI, secret: str | None, call: Call) -> Reply:
        from httpx2 import ConnectError, ConnectTimeout
        from openai import APIConnectionError, APIError

        settings = self.settings
        for attempt in range(1, settings.attempts + 1):
            try:
                # The package's own timeout is for each read: a trickle would pass it for ever.
                async with asyncio.timeout(settings.timeout):
                    completion = await server.chat.completions.create(**self._request(call))
                self._reached = True
                return _reply(completion)
            except TimeoutError:
                self._reached = True  # connecting has a shorter limit
                failed, asked_for, final = f"no reply in {settings.timeout:g} s", None, False
            except (_NoCompletion, APIConnectionError) as error:
                cause = f" ({error.__cause__!r})" if error.__cause__ else ""
                failed, asked_for, final = f"{error}{cause}", None, False
                self._reached |= not isinstance(error.__cause__, ConnectError | ConnectTimeout)
            except APIError as error:
                self._reached = True
                status = getattr(error, "status_code", 0)
                failed, asked_for = str(error), _retry_after(error)
                passing = status in (408, 409, 429) or status >= 500
                final = not passing or error.code == "insufficient_quota"
            except ValueError as error:
                failed, asked_for, final = f"a reply that is not JSON ({error})", None, False
            # Masked before it is cut: what a cut leaves of a key would not be found.
            failed = f"{_without_key(failed, secret):.300}"
            if asked_for is not None and asked_for > LONGEST_WAIT:
                final, failed = True, f"{failed} (asks to wait {asked_for:g} s)"
            attempts = min(settings.attempts, math.inf if self._reached else UNREACHED_ATTEMPTS)
            if final or attempt >= attempts:
                break
            self.usage.retries += 1
            pause = min(settings.backoff * 2.0 ** (attempt - 1), LONGEST_WAIT)
            pause *= generator(call.key, call.round, attempt).uniform(0.5, 1)
            await asyncio.sleep(max(pause, asked_for or 0.0))
        raise _CallFailed(f"attempt {attempt} of {attempts} failed: {failed}")

    def _request(self, call: Call) -> dict[str, Any]:
        settings = self.settings
        request: dict[str, Any] = {
            "model": settings.model,
            "messages": list(call.messages),
            "max_tokens": settings.max_tokens,
            "temperature": settings.temperature,
            "seed": self._seed(call),
        }
        if call.structure and settings.schema:
            request["response_format"] = {"type": "json_schema", "json_schema": {
                "name": call.structure.__name__, "strict": True,
                "schema": json_schema(call.structure),
            }}
        if settings.chat_template_kwargs is not None:
            request["extra_body"] = {"chat_template_kwargs": dict(settings.chat_template_kwargs)}
        return {name: value for name, value in request.items() if value is not None}


class LocalChat(Chat):
    """A causal language model that transformers loads into this process, on a GPU if there is one.

    Prompts of like length share a forward pass, padded on the left. With a temperature above 0 the
    draws are seeded per pass and so depend on which prompts share it; the memo keeps them.

    Raises:
        ValueError: the model has no chat template, or the memo cannot be used.
        OSError: transformers cannot load the model.
    """

    def __init__(self, settings: ChatSettings) -> None:
        super().__init__(settings)
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer

        self._tokenizer = AutoTokenizer.from_pretrained(settings.model, padding_side="left")
        if not self._tokenizer.chat_template:
            raise ValueError(
                f"local model {settings.model!r} has no chat template, expected one that was "
                "trained for conversations; choose an instruction-tuned model"
            )
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        model = AutoModelForCausalLM.from_pretrained(settings.model, dtype="auto")
        self._model = model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def _complete(self, calls: Sequence[Call], arrived: Callable[[Call, Reply], None]) -> None:
        shortest_first = sorted(
            calls, key=lambda call: sum(len(one["content"]) for one in call.messages)
        )
        for start in range(0, len(calls), self.settings.batch_size):
            batch = shortest_first[start : start + self.settings.batch_size]
            for call, reply in zip(batch, self._generate(batch), strict=True):
                arrived(call, reply)

    def _generate(self, batch: Sequence[Call]) -> list[Reply]:
        import torch

        prompts = self._tokenizer.apply_chat_template(
            [[dict(one) for one in call.messages] for call in batch], add_generation_prompt=True,
            padding=True, return_dict=True, return_tensors="pt",
            **(self.settings.chat_template_kwargs or {}),
        ).to(self._model.device)
        sampling = {"do_sample": True, "temperature": self.settings.temperature}
        seed = self._seed(batch[0])
        # transformers takes no generator: seed torch's own, and leave it as it was.
        with torch.inference_mode(), torch.random.fork_rng(enabled=seed is not None):
            if seed is not None:
                torch.manual_seed(stable_seed(seed, *(call.key for call in batch)))
            tokens = self._model.generate(
                **prompts, max_new_tokens=self.settings.max_tokens,
                pad_token_id=self._tokenizer.pad_token_id,
                **(sampling if self.settings.temperature else {"do_sample": False}),
            )
        ends = self._model.generation_config.eos_token_id
        ends = set(ends if isinstance(ends, list) else [ends])
        replies = []
        for mask, row in zip(prompts["attention_mask"], tokens.tolist(), strict=True):
            written = row[len(mask) :]
            end = next((n for n, token in enumerate(written, 1) if token in ends), None)
            text = self._tokenizer.decode(written[:end], skip_special_tokens=True)
            used = end or len(written)
            replies.append(Reply(clean_text(text), False, int(mask.sum()), used, end is None))
        return replies


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


def make_chat(settings: ChatSettings) -> Chat:
    """Return the client that settings describe.

    Raises:
        ValueError, ImportError, OSError: as `ChatClient` and `LocalChat`.
    """
    return ChatClient(settings) if settings.kind == "server" else LocalChat(settings)


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


class _NoCompletion(Exception):
    """The server answered with something else than a completion."""


class _CallFailed(Exception):
    """A call failed for good."""


def _without_key(said: str, secret: str | None) -> str:
    """Return a text with the key masked, which servers repeat in what they refuse."""
    said = clean_text(said)
    return said.replace(secret, "***") if secret else said


def _reply(completion: Any) -> Reply:
    """Read a completion as the openai package hands it over, which does not validate it."""
    try:
        message, usage = completion.choices[0].message, completion.usage
        finish = completion.choices[0].finish_reason
        refused = bool(message.refusal) or finish == "content_filter"
        counts = (None, None) if usage is None else (
            int(usage.prompt_tokens), int(usage.completion_tokens)
        )
        return Reply(clean_text(message.content or ""), refused, *counts, finish == "length")
    except (AttributeError, IndexError, TypeError, ValueError):
        raise _NoCompletion("a reply that is no completion") from None


def _retry_after(error: Any) -> float | None:
    """Return the seconds a server asks to wait: Retry-After as seconds or as a date."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    said = getattr(error, "response", None) and error.response.headers.get("retry-after")
    if not said:
        return None
    try:
        seconds = float(said)
    except ValueError:
        try:
            date = parsedate_to_datetime(said)
        except ValueError:
            return None
        seconds = (date.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@functools.cache
def _certificates() -> SSLContext:
    """Return what connections are checked by; reading it anew takes longer than a small batch."""
    from httpx2 import create_ssl_context

    return create_ssl_context()


@functools.cache
def _adapter(record_type: type) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(record_type)
