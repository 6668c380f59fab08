"""Convert rollouts to a JSON log of Inspect (`inspect log schema` prints the schema)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Any

from finemem_lib.cli.conversations import Message, Rollout, messages
from finemem_lib.credit.needs import mean_of_known

LOG_VERSION = 2


def log_name(log: dict[str, Any]) -> str:
    """Return the file name of a log in Inspect's format.

    Args:
        log: The log of `inspect_log`.
    """
    about = log["eval"]
    task = re.sub(r"[^\w-]", "-", about["task"])[:80]
    return f"{about['created'].replace(':', '-')}_{task}_{about['task_id']}.json"


def inspect_log(run: str, saved: str, rollouts: Sequence[Rollout]) -> dict[str, Any]:
    """Return a log with a sample for every rollout; rollouts of one instance are its epochs.

    Args:
        run: Id of the run.
        saved: Time at which the artefact was saved, in ISO 8601.
        rollouts: The rollouts of one artefact and one manager, at least one.
    """
    artefact, manager = rollouts[0].artefact, rollouts[0].trajectory.manager
    samples = [_sample(one) for one in rollouts]
    names = list(dict.fromkeys(one["id"] for one in samples))
    outcomes = [one.about()["outcome"] for one in rollouts]
    number = hashlib.sha256(f"{run}/{artefact}/{manager}".encode()).hexdigest()[:22]
    mean = mean_of_known(outcomes)
    metrics = {} if mean is None else {"mean": {"name": "mean", "value": mean}}
    return {
        "version": LOG_VERSION,
        "status": "success",
        "eval": {
            "created": saved,
            "eval_id": number,
            "run_id": run,
            "task_id": number,
            "task": f"{artefact} {manager}",
            "dataset": {"name": artefact, "samples": len(names), "sample_ids": names},
            "model": f"finemem/{manager}",
            "config": {"epochs": max(one["epoch"] for one in samples)},
        },
        "results": {
            "total_samples": len(samples),
            "completed_samples": len(samples),
            "scores": [
                {
                    "name": "outcome",
                    "scorer": "outcome",
                    "scored_samples": len(outcomes) - outcomes.count(None),
                    "unscored_samples": outcomes.count(None),
                    "metrics": metrics,
                }
            ],
        },
        "stats": {"started_at": saved, "completed_at": saved},
        "samples": samples,
    }


def _sample(rollout: Rollout) -> dict[str, Any]:
    one, about = rollout.trajectory, rollout.about()
    answers = "\n".join(f"{asked.question.text} {asked.answer}" for asked in one.questions)
    scores = {"outcome": {"value": about["outcome"], "answer": answers}}
    return {
        "id": one.instance_id,
        "epoch": one.rollout + 1,
        "input": f"{one.instance_id}: {one.num_steps} chunks, {len(one.questions)} questions",
        "target": [" or ".join(asked.question.answers) for asked in one.questions],
        "messages": [_message(message) for message in messages(rollout)],
        "output": {
            "model": f"finemem/{one.manager}",
            "choices": [
                {"message": {"role": "assistant", "content": answers}, "stop_reason": "stop"}
            ],
        },
        "scores": {} if about["outcome"] is None else scores,
        "metadata": {**about, "steps": by_step(rollout)},
    }


def by_step(rollout: Rollout) -> dict[str, dict[str, list[float | None]]]:
    """Return rewards and credit by name, each as one value per step.

    Args:
        rollout: The rollout.
    """
    return {
        kind: {name: [step[kind].get(name) for step in rollout.steps] for name in names}
        for kind in ("reward", "credit")
        for names in [dict.fromkeys(name for step in rollout.steps for name in step[kind])]
    }


def _message(message: Message) -> dict[str, Any]:
    """Return a message in Inspect's format: a call's function is a name, an error an object."""
    inspected = {name: message[name] for name in ("role", "content")}
    if "metadata" in message:
        inspected["metadata"] = _flat(message["metadata"])
    if calls := message.get("tool_calls"):
        inspected["tool_calls"] = [
            {
                "id": call["id"],
                "type": "function",
                "function": call["function"]["name"],
                "arguments": call["function"]["arguments"],
            }
            for call in calls
        ]
    if message["role"] == "tool":
        inspected["function"] = message["name"]
        inspected["tool_call_id"] = message["tool_call_id"]
        if message["error"]:
            inspected["error"] = {"type": "unknown", "message": message["content"]}
    return inspected


def _flat(metadata: dict[str, Any]) -> dict[str, Any]:
    """Return metadata without lists and mappings, which the viewer shows collapsed."""
    flat: dict[str, Any] = {}
    for name, value in metadata.items():
        if isinstance(value, dict):
            flat |= {f"{name} {inner}": one for inner, one in value.items()}
        else:
            flat[name] = ", ".join(map(str, value)) if isinstance(value, list) else value
    return flat
