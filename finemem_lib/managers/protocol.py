"""Observations, completions, and the protocol that all memory managers follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finemem_lib.trajectory import Chunk, Instance, InvalidOperation, MemoryItem, Operation


@dataclass(frozen=True, slots=True)
class Observation:
    """What a manager sees at one step.

    Attributes:
        instance: The instance; only scripted managers that know the planted truth read it.
        items: The memory M_{t-1}.
        chunk: The chunk c_t.
        step: t, from 1.
    """

    instance: Instance
    items: tuple[MemoryItem, ...]
    chunk: Chunk
    step: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A manager's output at one step and the operations read from it.

    Attributes:
        text: The completion's text.
        operations: The operations, with the items' real ids.
        prompt: Text of the prompt; `None`, like all that follows, where no model wrote it.
        prompt_ids: Token ids of the prompt.
        completion_ids: Token ids of the completion, with its end token where there is one.
        logprobs: Log-probabilities of the completion's tokens, in nats; `None` where unknown.
        truncated_tokens: Tokens of the chunk that the prompt could not hold.
        omitted_items: Items of the memory that the prompt did not show.
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
    """A policy that edits the memory."""

    @property
    def name(self) -> str:
        """Name in trajectories and tables."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings that are recorded in its trajectories."""
        ...

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return one completion per observation; the same seed gives the same ones.

        Args:
            observations: What is seen at this step, one per rollout.
            seed: Seed of every random choice.
        """
        ...
