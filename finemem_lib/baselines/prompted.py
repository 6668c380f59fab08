"""Managers that a prompted language model plays: the untrained manager, and proxies of systems.

The model sees the memory and the chunk and answers with a JSON list of operations, which goes
through the same parser as that of a trained manager. It is asked once per step and prompt.

Differs from the paper: prompts are this library's (`prompts/*.txt`, with name, version and hash in
every trajectory). A memory that the prompt cannot hold is shown from its most recent item on, up to
`SHOWN_TOKENS`, and what is left out is counted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finemem_lib.managers.prompts import INSTRUCTION
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.operations import parse_operations
from finemem_lib.readers.chat import Chat, Messages
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import InvalidOperation, MemoryItem, Operation

Parse = Callable[[str], tuple[Operation | InvalidOperation, ...]]

SHOWN_TOKENS = 4000
"""Most tokens of the items that a prompt shows."""


@dataclass(frozen=True, slots=True)
class Written:
    """A conversation with a language model and its reply.

    Attributes:
        prompt: The last message that the model was sent.
        reply: `None` where it refused or was cut off twice.
    """

    prompt: str
    reply: str | None


def write(chat: Chat, conversations: Sequence[Messages]) -> list[Written]:
    """Ask a language model and return what it was asked and replied, in order.

    Args:
        chat: The model.
        conversations: Any number; they are asked at the same time.

    Raises:
        ModelError: the model could not be asked.
    """
    replies = chat.ask(conversations)
    return [
        Written(conversation[-1]["content"], reply)
        for conversation, reply in zip(conversations, replies, strict=True)
    ]


def shown_items(items: Sequence[MemoryItem]) -> tuple[str, int]:
    """Return items as lines "#id content", oldest first, and how many had to be left out.

    Args:
        items: In order of creation; the last ones are shown, up to `SHOWN_TOKENS`.
    """
    room, first = SHOWN_TOKENS, len(items)
    while first and (room := room - count_tokens(items[first - 1].content)) >= 0:
        first -= 1
    lines = [f"#{item.item_id} {item.content}" for item in items[first:]]
    return "\n".join(lines) or "(empty)", first


class PromptedManager:
    """A language model whose prompt describes how to edit the memory.

    Args:
        chat: The model.
        name: Name in records.
        prompt: Name of the file in `prompts/` that says how.
        parse: Reads a reply as operations.
    """

    def __init__(
        self, chat: Chat, name: str, prompt: str = "manage", parse: Parse = parse_operations
    ) -> None:
        self.chat = chat
        self.name = name
        self.parse = parse
        self._prompt = load_prompt(prompt)

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that are recorded in its trajectories."""
        return {
            "writer": self.chat.name,
            "prompt": self._prompt.identity,
            "calls_per_step": 1,
        }

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return what the model wants done about every observation.

        Args:
            observations: What is seen at this step, one per rollout.
            seed: Is not used: the model has its own, and equal prompts get equal replies.

        Raises:
            ModelError: the model could not be asked.
        """
        shown = [shown_items(one.items) for one in observations]
        conversations = [
            self._prompt.messages(instruction=INSTRUCTION, memory=memory, text=one.chunk.text)
            for one, (memory, _) in zip(observations, shown, strict=True)
        ]
        return [
            Completion(
                written.reply or "",
                tuple(map(without_mark, self.parse(written.reply or ""))),
                prompt=written.prompt,
                omitted_items=omitted,
            )
            for written, (_, omitted) in zip(write(self.chat, conversations), shown, strict=True)
        ]


def without_mark(operation: Operation | InvalidOperation) -> Operation | InvalidOperation:
    """Return an operation whose id has lost the mark that prompts show it with.

    Args:
        operation: As it was read.

    >>> without_mark(Operation("DELETE", item_id="#3")).item_id
    '3'
    """
    if isinstance(operation, InvalidOperation) or operation.item_id is None:
        return operation
    return Operation(operation.kind, operation.content, operation.item_id.strip().lstrip("#"))
