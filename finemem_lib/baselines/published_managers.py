"""Managers that others published: where their weights are, and how to read what they write.

- Memory-R2 (arXiv 2605.21768): `ahmedehabb/memory-r2-7b`, trained on LoCoMo. It writes a list of
  INSERT, UPDATE and DELETE for the facts of a session.
- Memory-R1 (arXiv 2508.19828): the events of `memory_r1.parse_memory_r1`. No weights are known.

Mem-alpha's tools edit three stores, which a flat memory does not have.

Differs from the papers: Memory-R2 extracts facts before it edits the memory, with shared weights;
here the chunk takes the place of the facts. Its operations are read from JSON lists, also inside a
code fence, and by either name of a field ("content" or "text", "id" or "memory_id"); neither the
weights nor an output of theirs was at hand when this was written, so read some of its completions
before a table is made of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from finemem_lib.baselines.memory_r1 import parse_memory_r1, read_events
from finemem_lib.baselines.prompted import Parse, PromptedManager
from finemem_lib.readers.chat import Chat
from finemem_lib.trajectory import InvalidOperation, Operation, OperationKind

MEMORY_R2: dict[str, OperationKind] = {
    "INSERT": "INSERT",
    "ADD": "INSERT",
    "UPDATE": "UPDATE",
    "DELETE": "DELETE",
    "NOOP": "SKIP",
    "NONE": "SKIP",
}
"""Memory-R2's operations, and this library's for them."""


def parse_memory_r2(reply: str) -> tuple[Operation | InvalidOperation, ...]:
    """Read the operations of a Memory-R2 manager.

    Args:
        reply: Text of the manager; nothing in it is trusted.

    >>> reply = '[{"operation": "UPDATE", "memory_id": 3, "content": "Mia sails"}]'
    >>> [(one.kind, one.item_id, one.content) for one in parse_memory_r2(reply)]
    [('UPDATE', '3', 'Mia sails')]
    """
    return read_events(reply, MEMORY_R2)


@dataclass(frozen=True, slots=True)
class PublishedManager:
    """A manager whose paper says how it writes.

    Attributes:
        model: Name of its weights on the hub, `None` where none are known.
        parse: Reads its completions.
        prompt: Name of the prompt in `prompts/` that asks for them.
        download: What is downloaded when it is named as a model.
    """

    model: str | None
    parse: Parse
    prompt: str
    download: str


PUBLISHED: dict[str, PublishedManager] = {
    "memory-r2": PublishedManager(
        "ahmedehabb/memory-r2-7b", parse_memory_r2, "memory_r2", "about 15 GB in 16 bits"
    ),
    "memory-r1": PublishedManager(None, parse_memory_r1, "memory_r1", "nothing"),
}
"""Published managers by name."""


def published_manager(name: str, chat: Chat) -> PromptedManager:
    """Return a published manager, played by the language model that is given.

    Args:
        name: One of `PUBLISHED`.
        chat: A client of its weights, on a server or in this process.

    Raises:
        ValueError: there is no published manager of that name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"published manager is {name!r}, expected one of {', '.join(PUBLISHED)}")
    return PromptedManager(chat, name, PUBLISHED[name].prompt, PUBLISHED[name].parse)
