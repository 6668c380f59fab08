"""Convert rollouts to conversations with reward and credit of every step, for agent viewers."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.credit.rules import RULES
from finemem_lib.evaluation.rescoring import CreditRow, recredited
from finemem_lib.rewards import hybrid_reward, outcome_reward
from finemem_lib.runs.artefacts import ARTEFACTS
from finemem_lib.trajectory import (
    AnsweredQuestion,
    MemoryItem,
    OperationOutcome,
    Step,
    Trajectory,
)
from finemem_lib.util.files import sha256

Message = dict[str, Any]
"""A message with role, content, metadata and tool calls, with the names of the OpenAI API."""

REWARDS = ("total", "eara", "format", "chunk", "compression", "evidence")
"""The fields of `StepReward` that are exported."""


@dataclass(frozen=True, slots=True)
class Rollout:
    """A rollout with the reward and the credit of its steps.

    Attributes:
        artefact: Name of the artefact that contains it.
        trajectory: The trajectory.
        steps: Per step the values of "reward" and "credit", each by name; `None` for values that
            could not be measured.
    """

    artefact: str
    trajectory: Trajectory
    steps: tuple[dict[str, dict[str, float | None]], ...]

    def about(self) -> dict[str, Any]:
        """Return the identifiers and the outcome of the rollout."""
        one = self.trajectory
        return {
            "artefact": self.artefact,
            "manager": one.manager,
            "instance": one.instance_id,
            "data_source": one.data_source,
            "category": one.category,
            "rollout": one.rollout,
            "seed": one.seed,
            "outcome": outcome_reward(one),
        }


def credited_rollouts(
    artefact: str, trajectories: Sequence[Trajectory], kept: Sequence[CreditRow] = ()
) -> tuple[list[Rollout], dict[str, str]]:
    """Return rollouts with the reward of every step and its credit under every rule.

    Credit of rules with further reader calls is taken from the rows of `finemem recredit`, if any.

    Args:
        artefact: Name of the artefact.
        trajectories: The trajectories in it.
        kept: Rows of credit that was computed before.

    Returns:
        The rollouts, and for every rule without credit here the reason.

    >>> from finemem_lib.data.worked_example import worked_example
    >>> [one], _ = credited_rollouts("trajectories", [worked_example()])
    >>> one.steps[2]["credit"]["eara"], one.steps[2]["reward"]["format"]
    (0.34375, 0.5)
    """
    rows, without = [*kept], {}
    for rule in RULES:
        if "agent" in RULES[rule].required or any(row.rule == rule for row in kept):
            continue
        try:
            rows += recredited(trajectories, rule).rows
        except ValueError as error:
            without[rule] = str(error)
    credit: defaultdict[tuple[Any, ...], dict[str, float | None]] = defaultdict(dict)
    for row in rows:
        credit[row.manager, row.instance_id, row.rollout, row.step][row.rule] = row.credit
    return [
        Rollout(
            artefact,
            one,
            tuple(
                {
                    "reward": {name: getattr(reward, name) for name in REWARDS},
                    "credit": credit[one.manager, one.instance_id, one.rollout, reward.step],
                }
                for reward in hybrid_reward(one)
            ),
        )
        for one in trajectories
    ], without


def kept_credit(folder: Path, artefact: str) -> list[CreditRow]:
    """Return the credit that `finemem recredit` computed from the recorded scores of a run.

    Left out is credit of an artefact that was written again since.

    Args:
        folder: Folder of the run.
        artefact: Name of the artefact.
    """
    names = {field.name for field in dataclasses.fields(CreditRow)}
    rows = []
    for path in sorted((folder / "recredited").glob("[!.]*/credit.jsonl")):
        how = json.loads((path.parent / "how.json").read_text(encoding="utf-8"))
        read = how["read"].get(artefact)
        if how["scores"] is None and read == sha256(folder / ARTEFACTS[artefact].file):
            found = map(json.loads, path.read_text(encoding="utf-8").splitlines())
            rows += [
                CreditRow(**{name: row[name] for name in names})
                for row in found
                if row["artefact"] == artefact
            ]
    return rows


def messages(rollout: Rollout) -> Iterator[Message]:
    """Yield a rollout as messages: chunks, operations as tool calls, and questions with answers.

    Args:
        rollout: The rollout.

    >>> from finemem_lib.data.worked_example import worked_example
    >>> [one], _ = credited_rollouts("trajectories", [worked_example()])
    >>> [message["role"] for message in messages(one)][:5]
    ['user', 'assistant', 'tool', 'user', 'assistant']
    """
    trajectory = rollout.trajectory
    for step, values in zip(trajectory.steps, rollout.steps, strict=True):
        yield {"role": "user", "content": f"Step {step.step}, chunk\n\n{step.chunk.text}"}
        calls = [operation_call(step, place) for place in range(len(step.outcomes))]
        yield {
            "role": "assistant",
            "content": step.completion,
            "tool_calls": calls,
            "metadata": {"step": step.step, **values, **memory_change(step)},
        }
        for call, outcome in zip(calls, step.outcomes, strict=True):
            yield {
                "role": "tool",
                "tool_call_id": call["id"],
                "name": call["function"]["name"],
                "content": operation_result(outcome),
                "error": not outcome.applied,
            }
        for answered in step.chunk_questions:
            yield from _exchange(answered, trajectory, f"Step {step.step}, chunk question")
    for answered in trajectory.questions:
        yield from _exchange(answered, trajectory, "Question")


def _exchange(answered: AnsweredQuestion, trajectory: Trajectory, title: str) -> Iterator[Message]:
    items = "\n".join(f"- {one}" for one in retrieved_texts(answered, trajectory)) or "nothing"
    text = f"{title}\n\n{answered.question.text}\n\nRetrieved:\n\n{items}"
    yield {"role": "user", "content": text}
    yield {"role": "assistant", "content": answered.answer, "metadata": judgement(answered)}


def operation_call(step: Step, place: int) -> dict[str, Any]:
    """Return an operation as a tool call; its arguments are a mapping.

    Args:
        step: The step that emitted it.
        place: Its position among the step's outcomes.
    """
    outcome = step.outcomes[place]
    if (operation := outcome.operation) is None:
        name, arguments = "unreadable", {"text": outcome.raw or ""}
    else:
        fields = dataclasses.asdict(operation)
        name = fields.pop("kind")
        arguments = {key: value for key, value in fields.items() if value is not None}
    return {
        "id": f"step-{step.step}-operation-{place + 1}",
        "type": "function",
        "function": {"name": name, "arguments": arguments},
    }


def operation_result(outcome: OperationOutcome) -> str:
    """Return a text with the outcome of an operation.

    Args:
        outcome: The outcome.
    """
    if not outcome.applied:
        return f"not applied: {outcome.reason}"
    return f"applied, item {outcome.item_id}" if outcome.item_id else "applied"


def memory_change(step: Step) -> dict[str, Any]:
    """Return the size of the memory after a step, and the ids of the items that left it.

    Args:
        step: The step.
    """
    return {
        "memory_tokens": step.memory_tokens,
        "removed": [*step.delta.removed],
        "evicted": [*step.delta.evicted],
    }


def retrieved_texts(answered: AnsweredQuestion, trajectory: Trajectory) -> list[str]:
    """Return the items that a question retrieved, best first, with the steps that wrote them.

    Args:
        answered: The question.
        trajectory: The trajectory, which contains the memory at the time of the question.
    """
    memory: Mapping[str, MemoryItem] = {
        item.item_id: item for item in trajectory.memory_at(answered.asked_step)
    }
    return [
        f"{one.item_id} (steps {', '.join(map(str, one.steps))}): "
        + (memory[one.item_id].content if one.item_id in memory else "")
        for one in answered.retrieved
    ]


def judgement(answered: AnsweredQuestion) -> dict[str, Any]:
    """Return the score of an answer and the accepted answers.

    Args:
        answered: The question.
    """
    return {
        "question": answered.question.question_id,
        "score": answered.score,
        "accepted_answers": [*answered.question.answers],
        "used": None if answered.used is None else [*answered.used],
    }
