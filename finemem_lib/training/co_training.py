"""Let a trainable reader learn in the loop in which the manager learns.

Differs from the paper: Fine-Mem (arXiv 2601.08435) trains the manager against a frozen reasoning
agent and names learning both as an open question. Here the reader learns from the global questions
of the rollouts that the manager learns from, after they were rewarded, so that one update is played
and credited with one reader.
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
"""Who learns during training: one of the two, `PHASE` updates each in turn, or both in every one"""

PHASE = 4
"""Updates in a row in which the manager, then the reader learns, where they learn alternately."""


def check_learns(learns: str, agent: ReasoningAgent) -> None:
    """Refuse a reader that is to learn and cannot.

    Args:
        learns: Who is to learn, one of `Learns`.
        agent: The reader.

    Raises:
        ValueError: `learns` is unknown, or the reader is none that learns.
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
    """Return whether the manager and whether the reader learns in an update.

    Args:
        learns: Who learns during training.
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
    """Return the global questions as tasks, and the score of the answer from each of their items.

    Args:
        reader: Extracts the answers.
        groups: What was played with it.

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
    """Measure a trainable reader on an update's rollouts, and let it learn from them.

    Args:
        agent: The reader; one that cannot learn is left alone.
        groups: What was played with it, per instance and rollout.
        learns: Whether it learns, or is measured only.

    Returns:
        Means over the questions that retrieved something, before it learns: "reader/picked", the
        score of the answer from the item that it picks, "reader/expected", the expected score under
        its softmax, and "reader/best", the highest score that any item would give; empty for a
        reader that cannot learn or without such questions.
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
