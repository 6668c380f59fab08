"""Check that a trajectory has what a credit rule needs, and raise an error that names the gap."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

from finemem_lib.reading import ReasoningAgent
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, Trajectory

Credit = list[float | None]
"""One value per step, indexed by ``step - 1``; `None` where nothing could be measured."""

Known = TypeVar("Known")


class OperationCredit(list[float | None]):
    """The credit of every step and of every operation.

    Attributes:
        operations: Per step, one value per entry of its `outcomes`; their sum is the step's credit.
    """

    def __init__(self, operations: Sequence[Sequence[float | None]]) -> None:
        super().__init__(None if None in step else math.fsum(step) for step in operations)  # type: ignore[arg-type]
        self.operations = [[*step] for step in operations]


def need(there: object, trajectory: Trajectory, what: str, remedy: str) -> None:
    """Raise an error unless a trajectory has what a rule needs.

    Args:
        there: Anything; a false value means missing.
        trajectory: Named in the error.
        what: The missing thing, with its article.
        remedy: How to get it.

    Raises:
        ValueError: `there` is false.
    """
    if not there:
        raise missing(trajectory, what, remedy)


def missing(trajectory: Trajectory, what: str, remedy: str) -> ValueError:
    """Return the error that names what a trajectory lacks and how to get it.

    Args:
        trajectory: Named in the error.
        what: The missing thing, with its article.
        remedy: How to get it.
    """
    return ValueError(
        f"credit of {trajectory.instance_id!r}, rollout {trajectory.rollout}: this rule needs "
        f"{what}, which the trajectory lacks; {remedy}"
    )


def need_questions(trajectory: Trajectory) -> None:
    """Raise an error if a trajectory has no global question.

    Args:
        trajectory: Named in the error.

    Raises:
        ValueError: the trajectory has no global question.
    """
    need(trajectory.questions, trajectory, "a global question", "play it with questions")


def need_agent(trajectory: Trajectory, agent: ReasoningAgent) -> None:
    """Raise an error if another reasoning agent answered the trajectory's questions.

    Args:
        trajectory: Its metadata hold the settings of the agent that answered.
        agent: The agent to compare with it.

    Raises:
        ValueError: the recorded settings differ from those of `agent`.
    """
    answered_by = trajectory.metadata.get("agent_settings")
    need(
        answered_by in (None, agent.settings),
        trajectory,
        f"answers by the agent given here ({agent.settings})",
        f"pass the reasoning agent that answered: {answered_by}",
    )


def answered_again(value: Known | None, trajectory: Trajectory) -> Known:
    """Return the value of a repeated reading; raise an error if it is `None`.

    Args:
        value: Score or probability of the reading; `None` where the agent failed.
        trajectory: Named in the error.

    Raises:
        ValueError: the reasoning agent failed.
    """
    if value is None:
        raise missing(
            trajectory,
            "an answer to every question that is asked again",
            "the reasoning agent failed; apply the rule again when it answers",
        )
    return value


def retrieved_items(
    trajectory: Trajectory, held: Mapping[str, MemoryItem], answered: AnsweredQuestion
) -> dict[str, MemoryItem]:
    """Return the items retrieved for a question, by id, in the order of retrieval.

    Args:
        trajectory: Named in the error.
        held: The items, by id, of the memory that the question was asked on.
        answered: The question with its retrieved items.

    Raises:
        ValueError: the memory does not hold a retrieved item.
    """
    ids = [item.item_id for item in answered.retrieved]
    need(
        held.keys() >= set(ids),
        trajectory,
        f"an item among {ids} in its memory",
        "the trajectory was cut or joined; play the instance again",
    )
    return {item_id: held[item_id] for item_id in ids}


def mean_of_known(scores: Iterable[float | None]) -> float | None:
    """Return the mean of the scores that are not `None`, or `None` if all are.

    Args:
        scores: Scores in [0, 1]; `None` is left out.
    """
    known = [one for one in scores if one is not None]
    return math.fsum(known) / len(known) if known else None
