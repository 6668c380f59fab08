"""A client for OpenAI-compatible servers: retries, structured replies, usage."""

from __future__ import annotations

import asyncio
import functools
import math
import sqlite3
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from finemem_lib.readers.chat import (
    Call,
    Chat,
    ChatSettings,
    ModelError,
    check_usable,
    json_schema,
)
from finemem_lib.readers.memo import Reply
from finemem_lib.seeds import generator
from finemem_lib.text import clean_text

if TYPE_CHECKING:
    from ssl import SSLContext

    from openai import AsyncOpenAI

LONGEST_WAIT = 300.0
"""Seconds: a server that asks for a longer pause is not waited for."""

UNREACHED_ATTEMPTS, CONNECT_WAIT = 3, 3.0
"""Attempts at most, and seconds for each to connect, while no server has answered at all."""


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
        counts = (
            (None, None)
            if usage is None
            else (int(usage.prompt_tokens), int(usage.completion_tokens))
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
