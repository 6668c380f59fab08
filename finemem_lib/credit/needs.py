"""What a rule needs of a trajectory, and the error that says what is missing."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from finemem_lib.reading import ReasoningAgent
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, Trajectory

Credit = list[float | None]


def _held(
    trajectory: Trajectory, held: Mapping[str, MemoryItem], answered: AnsweredQuestion
) -> dict[str, MemoryItem]:
    """Return the retrieved items by id, as the memory holds them, in the order of retrieval."""
    ids = [item.item_id for item in answered.retrieved]
    _need(
        held.keys() >= set(ids),
        trajectory,
        f"an item among {ids} in its memory",
        "the trajectory was cut or joined; play the instance again",
    )
    return {item_id: held[item_id] for item_id in ids}


def _mean(scores: Iterable[float | None]) -> float | None:
    known = [one for one in scores if one is not None]
    return math.fsum(known) / len(known) if known else None


def _need(there: object, trajectory: Trajectory, what: str, remedy: str) -> None:
    if not there:
        raise ValueError(
            f"credit of {trajectory.instance_id!r}, rollout {trajectory.rollout}: this rule needs "
            f"{what}, which the trajectory lacks; {remedy}"
        )


_FAILED = (
    "an answer to every question that is asked again",
    "the reasoning agent failed; apply the rule again when it answers",
)


def _check_agent(trajectory: Trajectory, agent: ReasoningAgent) -> None:
    answered_by = trajectory.metadata.get("agent_settings")
    _need(
        answered_by in (None, agent.settings),
        trajectory,
        f"answers by the agent given here ({agent.settings})",
        f"pass the reasoning agent that answered: {answered_by}",
    )
