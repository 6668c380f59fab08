"""Prompts for reading, writing questions and judging: package data, each with a version.

Differs from the paper: Fine-Mem (arXiv 2601.08435) and Mem-alpha (arXiv 2509.25911) publish other
prompts. Ours are worded for a flat memory, and each warns the model that the included text is
untrusted. Every trajectory records name, version and hash of its prompts.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any

from finemem_lib.readers.chat import Chat, Messages
from finemem_lib.text import clean_text


@dataclass(frozen=True, slots=True)
class Prompt:
    """The contents of a prompt file.

    Attributes:
        name: Name of the file in `prompts/`, without suffix.
        user: The user message, with a $name for each value.
        digest: 12 hexadecimal digits of the file's SHA-256.
    """

    name: str
    version: int
    system: str
    user: str
    digest: str

    @property
    def identity(self) -> str:
        """Name, version and digest."""
        return f"{self.name} v{self.version} {self.digest}"

    def messages(self, **values: str) -> Messages:
        """Return the conversation with the values inserted; a $name inside a value is kept.

        Args:
            values: The text for each $name.

        Raises:
            KeyError: a $name has no value.
        """
        user = clean_text(Template(self.user).substitute(values))
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def load_prompt(name: str) -> Prompt:
    """Return a prompt of the library.

    Args:
        name: Name of the prompt's file in `prompts/`, without suffix.

    >>> load_prompt("teach").messages(number="5", text="Costs $items.")[1]["content"]
    'Write 5 questions about this text:\\n\\nCosts $items.'
    """
    text = files("finemem_lib").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    version, system, user = text.split("\n---\n")
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Prompt(name, int(version.removeprefix("version: ")), system, user.strip(), digest)


class Prompted:
    """Base class of the roles: a language model with one prompt.

    Args:
        chat: The model to ask.
        prompt: Name of the prompt, as for `load_prompt`.
        more: Further settings that the replies depend on.
    """

    def __init__(self, chat: Chat, prompt: str, **more: Any) -> None:
        self.chat = chat
        self._prompt = load_prompt(prompt)
        self._more = more

    @property
    def name(self) -> str:
        """Name of the model."""
        return self.chat.name

    @property
    def settings(self) -> str:
        """Everything the replies depend on, as JSON."""
        return json.dumps(
            {
                "chat": json.loads(self.chat.settings.identity),
                "prompts": [self._prompt.identity],
                **self._more,
            }
        )
