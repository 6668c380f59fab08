"""Memory managers that prompt a language model: the untrained manager, and proxies of systems.

The model sees the memory and the chunk and replies with a JSON list of operations, which is read by
the same parser as the output of a trained manager. There is one call per step and prompt.

Differs from the paper: the prompts are this library's (`prompts/*.txt`, with name, version and hash
in every trajectory). Of a long memory the prompt shows the most recent items, up to
`MAX_SHOWN_TOKENS`; the number of omitted items is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from finemem_lib.managers.prompts import INSTRUCTION
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.operations import NO_OPERATIONS, parse_operations, refused
from finemem_lib.readers.chat import Chat, Messages
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import InvalidOperation, MemoryItem, Operation

Parse = Callable[[str], tuple[Operation | InvalidOperation, ...]]

MAX_SHOWN_TOKENS = 4000
"""Largest number of tokens of the items that a prompt shows."""


@dataclass(frozen=True, slots=True)
class Written:
    """A prompt and the reply of a language model.

    Attributes:
        prompt: The last message sent to the model.
        reply: Its reply; `None` if the model refused or was cut off twice.
    """

    prompt: str
    reply: str | None

    def operations(self, parse: Parse) -> tuple[Operation | InvalidOperation, ...]:
        """Return the operations in the reply; a missing reply counts as one that has none.

        Args:
            parse: Function from a reply to its operations.

        >>> [one.reason for one in Written("prompt", None).operations(parse_operations)]
        ['no operations found']
        """
        # Without this a writer that is cut off at every step reads like one that chose to skip.
        return (refused(NO_OPERATIONS, ""),) if self.reply is None else parse(self.reply)


def write(chat: Chat, conversations: Sequence[Messages]) -> list[Written]:
    """Send conversations to a language model and return prompts and replies in the same order.

    Args:
        chat: The language model.
        conversations: Any number of conversations; they are sent concurrently.

    Raises:
        ModelError: a call to the model failed.
    """
    replies = chat.ask(conversations)
    return [
        Written(conversation[-1]["content"], reply)
        for conversation, reply in zip(conversations, replies, strict=True)
    ]


def recent_items(items: Sequence[MemoryItem]) -> tuple[Sequence[MemoryItem], int]:
    """Return the most recent items, up to `MAX_SHOWN_TOKENS`, and the number of omitted items.

    Args:
        items: Items in order of creation.
    """
    room, first = MAX_SHOWN_TOKENS, len(items)
    while first and (room := room - count_tokens(items[first - 1].content)) >= 0:
        first -= 1
    return items[first:], first


def shown_items(items: Sequence[MemoryItem]) -> tuple[str, int]:
    """Return the recent items as lines "#id content", oldest first, and how many are omitted.

    Args:
        items: Items in order of creation.
    """
    recent, omitted = recent_items(items)
    lines = [f"#{item.item_id} {item.content}" for item in recent]
    return "\n".join(lines) or "(empty)", omitted


class PromptedManager:
    """Memory manager that prompts a language model for operations.

    Args:
        chat: The language model.
        name: Name of the manager in trajectories.
        prompt: Name of the prompt file in `prompts/`, without suffix.
        parse: Function from a reply to its operations.
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
        """Settings that are recorded in the manager's trajectories."""
        return {
            "writer": self.chat.name,
            "prompt": self._prompt.identity,
            "calls_per_step": 1,
        }

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return the model's operations for every observation.

        Args:
            observations: Observations of this step, one per rollout.
            seed: Not used: the model has its own seed, and equal prompts get equal replies.

        Raises:
            ModelError: a call to the model failed.
        """
        shown = [shown_items(one.items) for one in observations]
        conversations = [
            self._prompt.messages(instruction=INSTRUCTION, memory=memory, text=one.chunk.text)
            for one, (memory, _) in zip(observations, shown, strict=True)
        ]
        return [
            Completion(
                written.reply or "",
                tuple(map(without_mark, written.operations(self.parse))),
                prompt=written.prompt,
                omitted_items=omitted,
            )
            for written, (_, omitted) in zip(write(self.chat, conversations), shown, strict=True)
        ]


def without_mark(operation: Operation | InvalidOperation) -> Operation | InvalidOperation:
    """Return an operation without the "#" that prompts put before item ids.

    Args:
        operation: The operation, as parsed.

    >>> without_mark(Operation("DELETE", item_id="#3")).item_id
    '3'
    """
    if isinstance(operation, InvalidOperation) or operation.item_id is None:
        return operation
    return Operation(operation.kind, operation.content, operation.item_id.strip().lstrip("#"))
