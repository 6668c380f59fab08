"""One row per question and method: what was retrieved, answered, scored and spent, where it failed.

Everything is read from the trajectory; a row of a method that was played with a language model
counts its calls, one of a method by rule counts none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from finemem_lib.evaluation.failure_stages import STAGES, failure_stages
from finemem_lib.scoring import metric_for
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Trajectory


@dataclass(frozen=True, slots=True)
class AnswerRow:
    """One question under one method.

    Attributes:
        method: Name of the method.
        instance_id, category, data_source, rollout, question_id: Which question.
        question: Its text.
        retrieved: Ids of the items that were retrieved, best first, with spaces between them.
        answer: The reader's.
        gold: Accepted answers, with " | " between them.
        metric: What it was scored with.
        score: In [0, 1]; `None` where it could not be scored.
        read_tokens: Tokens of the retrieved items and the question, what the reader read.
        answer_tokens: Tokens of the answer; the substring metrics never punish a long one.
        memory_tokens: L(M_T).
        writer_calls: Calls of language models that wrote the memory, of the whole stream.
        stage: Where the answer was lost, see `failure_stages.STAGES`; `None` where it has none.
        stage_step, stage_rank: Step and rank that belong to the stage, `None` without one.
        stage_exact: Whether the evidence is known, `None` without a stage.
    """

    method: str
    instance_id: str
    category: str
    data_source: str
    rollout: int
    question_id: str
    question: str
    retrieved: str
    answer: str
    gold: str
    metric: str
    score: float | None
    read_tokens: int
    answer_tokens: int
    memory_tokens: int
    writer_calls: int
    stage: str | None
    stage_step: int | None
    stage_rank: int | None
    stage_exact: bool | None


def answer_rows(methods: Mapping[str, Sequence[Trajectory]]) -> list[AnswerRow]:
    """Return one row per method, trajectory and global question, in their order.

    Args:
        methods: Trajectories of every method by its name.

    Raises:
        ValueError: As `failure_stages`.

    >>> from finemem_lib.example import worked_example
    >>> first, second = answer_rows({"by hand": [worked_example()]})
    >>> first.retrieved, first.score, first.stage, first.writer_calls
    ('1 2', 1.0, 'answered', 0)
    """
    return [row for name, played in methods.items() for one in played for row in _rows(name, one)]


def _rows(method: str, trajectory: Trajectory) -> Iterable[AnswerRow]:
    held = {item.item_id: count_tokens(item.content) for item in trajectory.final_memory()}
    calls = writer_calls(trajectory)
    stages = failure_stages(trajectory)
    for answered, stage in zip(trajectory.questions, stages, strict=True):
        asked = answered.question
        ids = [one.item_id for one in answered.retrieved]
        yield AnswerRow(
            method=method,
            instance_id=trajectory.instance_id,
            category=trajectory.category,
            data_source=trajectory.data_source,
            rollout=trajectory.rollout,
            question_id=asked.question_id,
            question=asked.text,
            retrieved=" ".join(ids),
            answer=answered.answer,
            gold=" | ".join(asked.answers),
            metric=metric_for(asked.data_source),
            score=answered.score,
            read_tokens=count_tokens(asked.text) + sum(held.get(name, 0) for name in ids),
            answer_tokens=count_tokens(answered.answer),
            memory_tokens=trajectory.steps[-1].memory_tokens if trajectory.steps else 0,
            writer_calls=calls,
            stage=STAGES[stage.stage] if stage else None,
            stage_step=stage.step if stage else None,
            stage_rank=stage.rank if stage else None,
            stage_exact=stage.exact if stage else None,
        )


def writer_calls(trajectory: Trajectory) -> int:
    """Return how often a language model was asked to write the memory of a trajectory.

    Args:
        trajectory: What was played; a system records its calls per step in its settings, and a
            model in this process leaves its token ids.
    """
    per_step = trajectory.metadata.get("manager_settings", {}).get("calls_per_step")
    if per_step is not None:
        return int(per_step) * trajectory.num_steps
    return sum(step.completion_ids is not None for step in trajectory.steps)
