"""Observations, completions, and the protocol that all memory managers follow."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from finemem_lib.trajectory import Chunk, Instance, InvalidOperation, MemoryItem, Operation


@dataclass(frozen=True, slots=True)
class Observation:
    """The observation of a manager at one step.

    Attributes:
        instance: The instance; only scripted managers that use the planted truth read it.
        items: The memory M_{t-1}.
        chunk: The chunk c_t.
        step: Number of the step, t, from 1.
    """

    instance: Instance
    items: tuple[MemoryItem, ...]
    chunk: Chunk
    step: int


@dataclass(frozen=True, slots=True)
class Completion:
    """A manager's output at one step and the operations parsed from it.

    Attributes:
        text: The completion's text.
        operations: The operations, with ids of the memory.
        prompt: Text of the prompt; `None`, like the ids and logprobs, where no model was used.
        prompt_ids: Token ids of the prompt.
        completion_ids: Token ids of the completion, with its end token, if sampled.
        logprobs: Log-probabilities of the completion's tokens, in nats; `None` where unknown.
        truncated_tokens: Number of tokens cut from the chunk to fit the prompt.
        omitted_items: Number of items left out of the prompt.
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
        """Name of the manager in trajectories and tables."""
        ...

    @property
    def settings(self) -> Mapping[str, Any]:
        """Settings recorded in the manager's trajectories."""
        ...

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return one completion per observation; equal seeds give equal completions.

        Args:
            observations: The observations at this step, one per rollout.
            seed: Seed of every random choice.
        """
        ...
