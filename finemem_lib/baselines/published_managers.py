"""Published memory managers: their weights, prompts and output formats.

- Memory-R2 (arXiv 2605.21768): weights `ahmedehabb/memory-r2-7b`, trained on LoCoMo. It writes a
  list of INSERT, UPDATE and DELETE for the facts of a session.
- Memory-R1 (arXiv 2508.19828): writes the events of `memory_r1.parse_memory_r1`. No published
  weights are known.

Mem-alpha is not listed here: its tools edit three stores, which a flat memory does not have.

Differs from the papers: Memory-R2 first extracts facts with the same weights and then edits the
memory; here the prompt contains the chunk instead of the facts. Its operations are read from JSON
lists, also inside a code fence, with either name of a field ("content" or "text", "id" or
"memory_id"). Neither the weights nor their output were available when this was written: read some
completions before you report results.
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
"""Operation of Memory-R2 -> operation of this library."""


def parse_memory_r2(reply: str) -> tuple[Operation | InvalidOperation, ...]:
    """Return the operations of a Memory-R2 reply.

    Args:
        reply: Reply of the manager, untrusted text.

    >>> reply = '[{"operation": "UPDATE", "memory_id": 3, "content": "Mia sails"}]'
    >>> [(one.kind, one.item_id, one.content) for one in parse_memory_r2(reply)]
    [('UPDATE', '3', 'Mia sails')]
    """
    return read_events(reply, MEMORY_R2)


@dataclass(frozen=True, slots=True)
class PublishedManager:
    """A memory manager whose output format was published.

    Attributes:
        model: Name of its weights on the Hugging Face hub; `None` if none are known.
        parse: Function from a reply to its operations.
        prompt: Name of its prompt file in `prompts/`, without suffix.
        download: Size of the download of its weights.
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
    """Return a published manager that runs on the given language model.

    Args:
        name: One of `PUBLISHED`.
        chat: Client of its weights, on a server or in this process.

    Raises:
        ValueError: there is no published manager of that name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"published manager is {name!r}, expected one of {', '.join(PUBLISHED)}")
    return PromptedManager(chat, name, PUBLISHED[name].prompt, PUBLISHED[name].parse)
