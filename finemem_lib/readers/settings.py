"""Settings of a language model: where it runs, its sampling, and the limits of a call."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal
from urllib.parse import urlsplit

from finemem_lib.readers.constrained import JsonLimits
from finemem_lib.util.provenance import FETCHED, workbench_root
from finemem_lib.util.validation import type_adapter

_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*")


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """A language model, its sampling settings, and the limits of its calls.

    Attributes:
        model: Name of the model on the server, or the name or folder that transformers loads.
        kind: "server" (OpenAI-compatible, at `base_url`) or "local" (transformers, in this
            process).
        base_url: Address of the server, without user, password or query.
        key_env: Name of the environment variable that holds the key, in capitals; `None`: no key.
        temperature, max_tokens, seed: Sampling settings; `None` is not sent. The second round of a
            question adds 1 to the seed.
        chat_template_kwargs: Options of the chat template; `None` for servers that reject the
            field.
        schema: Whether to send the JSON schema of a structured answer; some servers reject it.
        price_in, price_out: Price of a million tokens, both in the same currency.
        memo: File that stores every reply; `None` keeps replies in memory.
        concurrency: Largest number of concurrent calls, at least 1 (servers only).
        timeout: Time limit of one call, in seconds, from first to last byte (servers only).
        attempts: Largest number of attempts at a call, at least 1; fewer before the server is
            first reached (servers only).
        backoff: Seconds before the second attempt, doubled for each further one (servers only).
        batch_size: Prompts per forward pass, at least 1 (local models only).
        json_limits: Limits of a structured answer, whose decoding then follows its JSON schema
            (local models only) and writes no character that takes several tokens; `None`: the
            model is only asked for JSON.

    Raises:
        ValueError: a setting is out of range, or missing for this kind.
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
    json_limits: JsonLimits | None = None

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
        # A wrong value may be a key in the wrong place, so no message repeats it.
        if self.key_env is not None and not _VARIABLE.fullmatch(self.key_env):
            raise ValueError(
                "key_env is not the name of an environment variable, expected one in capitals, "
                "such as OPENAI_API_KEY; the key itself belongs in that variable and nowhere else"
            )
        if self.kind == "server":
            if self.json_limits is not None:
                raise ValueError(
                    "json_limits is set for a model on a server, which decodes by itself; leave it "
                    "out, and let schema send the JSON schema"
                )
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
        """The settings that a reply depends on, as JSON.

        The address is left out, so that the model may move; different weights need different names.
        """
        names = (
            "kind",
            "model",
            "temperature",
            "max_tokens",
            "seed",
            "chat_template_kwargs",
            "schema",
        )
        asked = {name: getattr(self, name) for name in names}
        if self.json_limits is not None:  # without them the replies of earlier versions are kept
            asked["json_limits"] = dataclasses.asdict(self.json_limits)
        return json.dumps(asked, sort_keys=True)

    @property
    def source(self) -> str:
        """The folder of a local model (absolute, or relative to the working directory or the
        repository), or else its name on the hub."""
        folders = (Path(self.model), workbench_root() / self.model)
        return str(next((folder for folder in folders if folder.is_dir()), self.model))

    @property
    def secret(self) -> str | None:
        """The key, read from its variable at each use so that no object stores it.

        Raises:
            ValueError: the variable is not set, or its value cannot be a key.
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
    """Return validated settings from a mapping, such as a role in a file of models.

    Args:
        options: Names and values of `ChatSettings`.

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
        settings: ChatSettings = type_adapter(ChatSettings).validate_python(dict(options))
        return settings
    except ValidationError as error:
        # The message shows no values: a value may be a key in the wrong place.
        found = "; ".join(
            f"{'.'.join(map(str, entry['loc']))}: {entry['msg']}".removeprefix(": Value error, ")
            for entry in error.errors(include_url=False, include_input=False)
        )
    names = ", ".join(one.name for one in dataclasses.fields(ChatSettings))
    raise ValueError(f"language model settings: {found}; the fields are {names}")


def check_usable(settings: ChatSettings) -> None:
    """Raise an error if a model cannot be used from this process, before any call.

    Args:
        settings: Settings of the model.

    Raises:
        ValueError: the key's variable is not set, or a local model was not fetched.
        ImportError: the openai package, or what decodes JSON, is not installed.
    """
    import importlib.util

    fetched = settings.kind == "local" and settings.model.startswith(FETCHED)
    if fetched and not Path(settings.source).is_dir():
        raise ValueError(
            f"the local model {settings.model} is not there; get it once with `finemem fetch "
            f"{settings.model.removeprefix(FETCHED)}`"
        )
    if settings.kind == "server" and importlib.util.find_spec("openai") is None:
        raise ImportError(
            "a language model on a server needs the openai package, which is not installed; "
            "install the workbench with it: pip install -e .[server]"
        )
    if settings.json_limits and importlib.util.find_spec("lmformatenforcer") is None:
        raise ImportError(
            "a local model with json_limits needs lm-format-enforcer, which is not installed; "
            "install it with the workbench (pip install -e .[real]), or leave json_limits out"
        )
    _ = settings.secret  # raises if the key is missing
