"""A client for OpenAI-compatible servers: retries, structured replies, usage."""

from __future__ import annotations

import asyncio
import functools
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finemem_lib.readers.chat import Call, Chat, ModelError
from finemem_lib.readers.memo import Reply
from finemem_lib.readers.settings import ChatSettings, check_usable
from finemem_lib.readers.structured import json_schema
from finemem_lib.seeds import generator
from finemem_lib.text import clean_text

if TYPE_CHECKING:
    from ssl import SSLContext

    from openai import AsyncOpenAI

LONGEST_WAIT = 300.0
"""Largest Retry-After to wait for, in seconds; a server that asks for more counts as failed."""

UNREACHED_ATTEMPTS, CONNECT_WAIT = 3, 3.0
"""Largest number of attempts, and seconds to connect, before the server first answered."""


class ChatClient(Chat):
    """A language model behind an OpenAI-compatible server.

    At most `concurrency` calls run at a time. A call with a transport error (no connection, a
    timeout, a truncated body or one without a completion, statuses 408, 409, 429 and 5xx) is
    retried after the server's Retry-After, or else with exponential backoff; a server that never
    answered gets only `UNREACHED_ATTEMPTS`. The retries of the openai package are switched off: it
    does not retry a body without a completion, does not limit the time of a whole call, and retries
    an unknown address as often as a known one. The calls run in an event loop in another thread, so
    `ask` also works inside a running event loop, as in Jupyter.

    Args:
        settings: Server, model and sampling settings.

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

        # An interrupt here cancels the running calls before it propagates.
        with start_blocking_portal() as portal:
            failure = portal.call(self._complete_all, calls, arrived)
        if failure:  # raised here and not there: the original error holds the request's headers
            kept = f"; the replies so far are in {self.memo.path}" if self.memo.path else ""
            remedy = (
                "check server and settings"
                if self._reached
                else "no server answers there: start it, or correct base_url"
            )
            raise ModelError(
                f"{self.settings.model} at {self.settings.base_url}: {failure}; {remedy}, then run "
                f"again{kept}"
            )

    async def _complete_all(
        self, calls: Sequence[Call], arrived: Callable[[Call, Reply], None]
    ) -> str | None:
        """Make all calls; return the message of a final failure, or `None`."""
        from httpx2 import Timeout
        from openai import AsyncOpenAI, DefaultAsyncHttpxClient

        secret = self.settings.secret
        waiting = deque(calls)
        failures: list[str] = []

        async def make_calls() -> None:
            while waiting and not failures:
                call = waiting.popleft()
                try:
                    arrived(call, await self._send(server, secret, call))
                except (_CallFailed, sqlite3.Error) as error:
                    # Running calls still finish and are stored; no new call starts.
                    failures.append(str(error))

        async with (
            AsyncOpenAI(
                api_key=secret or "none",
                base_url=self.settings.base_url,
                max_retries=0,
                timeout=Timeout(self.settings.timeout, connect=CONNECT_WAIT),
                http_client=DefaultAsyncHttpxClient(verify=_certificates()),
            ) as server,
            asyncio.TaskGroup() as group,
        ):
            for _ in range(min(self.settings.concurrency, len(calls))):
                group.create_task(make_calls())
        return _without_key(failures[0], secret) if failures else None

    async def _send(self, server: AsyncOpenAI, secret: str | None, call: Call) -> Reply:
        """Return the reply of a call, with as many attempts as the settings allow."""
        settings = self.settings
        for attempt in range(1, settings.attempts + 1):
            try:
                return await self._attempt(server, call)
            except _AttemptFailed as error:
                failure = error
            # Mask the key before truncation: a truncated key would not be recognised.
            failed = f"{_without_key(str(failure), secret):.300}"
            wait = failure.wait or 0.0
            if wait > LONGEST_WAIT:
                failed += f" (asks to wait {wait:g} s)"
            attempts = min(settings.attempts, math.inf if self._reached else UNREACHED_ATTEMPTS)
            if failure.final or wait > LONGEST_WAIT or attempt >= attempts:
                break
            self.usage.retries += 1
            pause = min(settings.backoff * 2.0 ** (attempt - 1), LONGEST_WAIT)
            pause *= generator(call.key, call.round, attempt).uniform(0.5, 1)
            await asyncio.sleep(max(pause, wait))
        raise _CallFailed(f"attempt {attempt} of {attempts} failed: {failed}")

    async def _attempt(self, server: AsyncOpenAI, call: Call) -> Reply:
        """Make one attempt at a call, and set `_reached` if the server was reached."""
        from httpx2 import ConnectError, ConnectTimeout
        from openai import APIConnectionError, APIError

        try:
            # The package's timeout applies to each read, so a slow stream would never time out.
            async with asyncio.timeout(self.settings.timeout):
                completion = await server.chat.completions.create(**self._request(call))
            self._reached = True
            return _reply(completion)
        except TimeoutError:
            self._reached = True  # connecting has a shorter limit
            raise _AttemptFailed(f"no reply in {self.settings.timeout:g} s") from None
        except APIConnectionError as error:
            cause = f" ({error.__cause__!r})" if error.__cause__ else ""
            self._reached |= not isinstance(error.__cause__, ConnectError | ConnectTimeout)
            raise _AttemptFailed(f"{error}{cause}") from None
        except APIError as error:
            self._reached = True
            status = getattr(error, "status_code", 0)
            passing = status in (408, 409, 429) or status >= 500
            final = not passing or error.code == "insufficient_quota"
            raise _AttemptFailed(str(error), _retry_after(error), final) from None
        except ValueError as error:
            raise _AttemptFailed(f"a reply that is not JSON ({error})") from None

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
            request["response_format"] = {
                "type": "json_schema",
                "json_schema": {
                    "name": call.structure.__name__,
                    "strict": True,
                    "schema": json_schema(call.structure),
                },
            }
        if settings.chat_template_kwargs is not None:
            request["extra_body"] = {"chat_template_kwargs": dict(settings.chat_template_kwargs)}
        return {name: value for name, value in request.items() if value is not None}


class _AttemptFailed(Exception):
    """One attempt at a call failed.

    `wait` is the server's Retry-After in seconds, `final` whether another attempt would fail, too.
    """

    def __init__(self, message: str, wait: float | None = None, final: bool = False) -> None:
        super().__init__(message)
        self.wait = wait
        self.final = final


class _CallFailed(Exception):
    """A call failed for good."""


def _without_key(text: str, secret: str | None) -> str:
    """Return a text with the key masked, because servers repeat keys in their error messages."""
    text = clean_text(text)
    return text.replace(secret, "***") if secret else text


def _reply(completion: Any) -> Reply:
    """Return the reply in a completion of the openai package, which does not validate it."""
    try:
        message, usage = completion.choices[0].message, completion.usage
        finish = completion.choices[0].finish_reason
        return Reply(
            clean_text(message.content or ""),
            refused=bool(message.refusal) or finish == "content_filter",
            tokens_in=None if usage is None else int(usage.prompt_tokens),
            tokens_out=None if usage is None else int(usage.completion_tokens),
            cut=finish == "length",
        )
    except (AttributeError, IndexError, TypeError, ValueError):
        raise _AttemptFailed("a reply that is no completion") from None


def _retry_after(error: Any) -> float | None:
    """Return the server's Retry-After, given as seconds or as a date, in seconds."""
    from datetime import UTC, datetime
    from email.utils import parsedate_to_datetime

    header = getattr(error, "response", None) and error.response.headers.get("retry-after")
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            date = parsedate_to_datetime(header)
        except ValueError:
            return None
        seconds = (date.astimezone(UTC) - datetime.now(UTC)).total_seconds()
    return max(seconds, 0.0) if math.isfinite(seconds) else None


@functools.cache
def _certificates() -> SSLContext:
    """Return the SSL context, cached because loading the certificates takes longer than a batch."""
    from httpx2 import create_ssl_context

    return create_ssl_context()
