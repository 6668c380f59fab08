"""Train a trainable reader in the same loop as the manager.

Differs from the paper: Fine-Mem (arXiv 2601.08435) trains the manager against a frozen reasoning
agent and names training both as an open question. Here the reader trains on the global questions
of the manager's rollouts, after the rollouts were rewarded, so that the reader does not change
within an update.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

from finemem_lib.readers.trainable import TrainableReader, trainable_reader
from finemem_lib.reading import ReadingTask, ReasoningAgent, reading_task
from finemem_lib.scoring import score
from finemem_lib.trajectory import Trajectory

Learns = Literal["manager", "reader", "alternately", "jointly"]
"""Which model is trained: one of the two, both alternately for `PHASE` updates each, or both in
every update."""

PHASE = 4
"""Number of consecutive updates of the manager, then of the reader, in alternate training."""


def check_learns(learns: str, agent: ReasoningAgent) -> None:
    """Raise an error if the reader must be trained but is not trainable.

    Args:
        learns: Which model is trained, one of `Learns`.
        agent: The reader.

    Raises:
        ValueError: `learns` is unknown, or the reader must be trained and is not trainable.
    """
    if learns not in get_args(Learns):
        raise ValueError(
            f"train_manager: learns is {learns!r}, expected one of {', '.join(get_args(Learns))}"
        )
    if learns != "manager" and trainable_reader(agent) is None:
        raise ValueError(
            f"train_manager: learns is {learns!r} and the reader {agent.name!r} cannot learn, "
            "expected a TrainableReader; pass one as agent, or let the manager learn alone"
        )


def learners(learns: Learns, update: int) -> tuple[bool, bool]:
    """Return (whether the manager is trained, whether the reader is trained) in an update.

    Args:
        learns: Which model is trained, see `Learns`.
        update: Number of the update, from 1.

    >>> [learners("alternately", update) for update in (1, 4, 5, 9)]
    [(True, False), (True, False), (False, True), (True, False)]
    """
    if learns == "alternately":
        of_reader = (update - 1) // PHASE % 2 == 1
        return not of_reader, of_reader
    return learns in ("manager", "jointly"), learns in ("reader", "jointly")


def lessons(
    reader: TrainableReader, groups: Sequence[Sequence[Trajectory]]
) -> tuple[list[ReadingTask], list[list[float]]]:
    """Return reading tasks of the global questions, and the score of the answer from each item.

    Args:
        reader: The reader, which extracts the answers.
        groups: The rollouts of an update, per instance.

    Returns:
        Tasks and rewards for `TrainableReader.learn`, without questions that retrieved nothing or
        cannot be scored.
    """
    tasks, rewards = [], []
    for one in (one for group in groups for one in group):
        memory = {item.item_id: item for item in one.final_memory()}
        for answered in one.questions:
            question = answered.question
            task = reading_task(question, [memory[found.item_id] for found in answered.retrieved])
            scores = [
                score(answer, question.answers, question.data_source)
                for answer in reader.answers(task)
            ]
            known = [value for value in scores if value is not None]
            if known and len(known) == len(scores):
                tasks.append(task)
                rewards.append(known)
    return tasks, rewards


def teach_reader(
    agent: ReasoningAgent, groups: Sequence[Sequence[Trajectory]], learns: bool
) -> dict[str, float]:
    """Measure a trainable reader on an update's rollouts, and train it on them.

    Args:
        agent: The reader; a reader that is not trainable is ignored.
        groups: The rollouts of the update, per instance.
        learns: Whether to train the reader, or only measure it.

    Returns:
        Means, before training, over the questions that retrieved an item: "reader/picked", the
        score of the answer from the selected item, "reader/expected", the expected score under the
        softmax, and "reader/best", the highest score over the items; empty without a trainable
        reader or without such questions.
    """
    import torch

    reader = trainable_reader(agent)
    if reader is None:
        return {}
    tasks, rewards = lessons(reader, groups)
    if not tasks:
        return {}
    with torch.no_grad():
        scores = reader.scores(tasks)
    picked = [row[int(values.argmax())] for row, values in zip(rewards, scores, strict=True)]
    expected = [
        math.fsum(p * r for p, r in zip(values.softmax(dim=0).tolist(), row, strict=True))
        for row, values in zip(rewards, scores, strict=True)
    ]
    if learns:
        reader.learn(tasks, rewards)
    return {
        f"reader/{name}": math.fsum(values) / len(tasks)
        for name, values in (
            ("picked", picked),
            ("expected", expected),
            ("best", [max(row) for row in rewards]),
        )
    }
