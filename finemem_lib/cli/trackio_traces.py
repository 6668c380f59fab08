"""Convert rollouts to traces of Trackio, and log them.

Trackio may need other package versions than the workbench. So this file is also run as a script by
the Python that has Trackio; it imports modules of the workbench only in functions that need them.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finemem_lib.cli.conversations import Rollout
    from finemem_lib.trajectory import AnsweredQuestion, Step, Trajectory

Span = dict[str, Any]
"""An operation of a trace, with the names that Trackio documents."""


def trackio_run(project: str, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return the data that `write` logs as one run: trace and outcome of every rollout.

    Args:
        project: Name of the project.
        rollouts: The rollouts of one artefact and one manager.
    """
    from finemem_lib.cli.conversations import messages

    first = rollouts[0]
    return {
        "project": project,
        "name": f"{first.artefact} {first.trajectory.manager}",
        "rollouts": [
            {
                "outcome": one.about()["outcome"],
                "messages": [_message(message) for message in messages(one)],
                "metadata": one.about(),
                "spans": [*spans(one)],
            }
            for one in rollouts
        ],
    }


def _message(message: dict[str, Any]) -> dict[str, Any]:
    """Return a message with the arguments of its calls as JSON text, as in the OpenAI API."""
    if not (calls := message.get("tool_calls")):
        return {key: value for key, value in message.items() if key != "tool_calls"}
    functions = [
        {**call["function"], "arguments": json.dumps(call["function"]["arguments"])}
        for call in calls
    ]
    return message | {
        "tool_calls": [
            call | {"function": function} for call, function in zip(calls, functions, strict=True)
        ]
    }


def spans(rollout: Rollout) -> Iterator[Span]:
    """Yield every step with its operations and chunk questions, then the global questions.

    Args:
        rollout: The rollout.
    """
    from finemem_lib.cli.conversations import memory_change

    trajectory = rollout.trajectory
    for step, values in zip(trajectory.steps, rollout.steps, strict=True):
        total = values["reward"]["total"]
        yield {
            "id": f"step-{step.step}",
            "name": f"step {step.step}" + ("" if total is None else f", reward {total:.3f}"),
            "kind": "span",
            "input": step.chunk.text,
            "output": {"completion": step.completion, **memory_change(step)},
            "metadata": values,
        }
        yield from _operations(step)
        for number, answered in enumerate(step.chunk_questions, start=1):
            yield _question(
                answered, trajectory, f"step-{step.step}-question-{number}", f"step-{step.step}"
            )
    for number, answered in enumerate(trajectory.questions, start=1):
        yield _question(answered, trajectory, f"question-{number}", None)


def _operations(step: Step) -> Iterator[Span]:
    from finemem_lib.cli.conversations import operation_call, operation_result

    for place, outcome in enumerate(step.outcomes):
        call = operation_call(step, place)
        yield {  # without a status: "error" would mark the whole rollout
            "id": call["id"],
            "parent_id": f"step-{step.step}",
            "name": call["function"]["name"] + ("" if outcome.applied else ", not applied"),
            "kind": "tool",
            "input": call["function"]["arguments"],
            "output": operation_result(outcome),
        }


def _question(
    answered: AnsweredQuestion, trajectory: Trajectory, span_id: str, parent: str | None
) -> Span:
    from finemem_lib.cli.conversations import judgement, retrieved_texts

    score = "unscored" if answered.score is None else f"score {answered.score:.2f}"
    return {
        "id": span_id,
        "parent_id": parent,
        "name": f"question, {score}",
        "kind": "generation",
        "input": {
            "question": answered.question.text,
            "retrieved": retrieved_texts(answered, trajectory),
        },
        "output": answered.answer,
        "metadata": judgement(answered),
    }


def write(runs: Sequence[dict[str, Any]]) -> None:
    """Log runs to the folder in TRACKIO_DIR.

    Args:
        runs: The results of `trackio_run`.
    """
    import trackio

    for run in runs:
        trackio.init(
            project=run["project"],
            name=run["name"],
            embed=False,
            auto_log_cpu=False,
            auto_log_gpu=False,
        )
        for number, one in enumerate(run["rollouts"]):
            trace = trackio.Trace(one["messages"], metadata=one["metadata"], spans=one["spans"])
            measured = {} if one["outcome"] is None else {"outcome": one["outcome"]}
            trackio.log({"rollout": trace, **measured}, step=number)
        trackio.finish()


if __name__ == "__main__":
    write(json.load(sys.stdin))
