"""What a memory manager sees, what it answers, and the protocol all managers follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finemem_lib.trajectory import Chunk, Instance, InvalidOperation, MemoryItem, Operation


@dataclass(frozen=True, slots=True)
class Observation:
    """What a manager sees at one step: the memory M_{t-1} and the chunk c_t.

    The instance is there for scripted managers that are told the planted truth; a model is shown
    the items and the chunk only.
    """

    instance: Instance
    items: tuple[MemoryItem, ...]
    chunk: Chunk
    step: int


@dataclass(frozen=True, slots=True)
class Completion:
    """What a manager emitted, and the operations read from it, with the items' real ids.

    The token fields are set only by a model: `logprobs` are natural logarithms, one per completion
    id. `truncated_tokens` counts the tokens of the chunk that the prompt could not hold, and
    `omitted_items` the items it did not show.
    """

    text: str
    operations: tuple[Operation | InvalidOperation, ...]
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    truncated_tokens: int = 0
    omitted_items: int = 0


class MemoryManager(Protocol):
    """A policy: one completion per observation, the same ones for the same seed. `settings` are
    what a record of its trajectories says about it, beside its name."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]: ...
