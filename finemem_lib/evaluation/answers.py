"""One row per question and method: retrieved items, answer, score, tokens, calls, failure stage.

All values are read from the trajectories.
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
        instance_id, category, data_source, rollout, question_id: Identify the question.
        retrieved: Ids of the retrieved items, best first, separated by spaces.
        gold: Accepted answers, separated by " | ".
        metric: Name of the metric that scored the answer.
        score: In [0, 1]; `None` if the answer could not be scored.
        read_tokens: Tokens of the question and the retrieved items, the input of the reader.
        answer_tokens: Tokens of the answer; the substring metrics do not penalise long answers.
        memory_tokens: Length of the final memory in tokens, L(M_T).
        writer_calls: Language-model calls that wrote the memory, over the whole stream.
        stage: A value of `failure_stages.STAGES`, the failure stage or "answered"; `None` without a
            score.
        stage_step, stage_rank: Step and rank of the stage, see `failure_stages.FailureStage`.
        stage_exact: Whether the stage rests on known evidence steps; `None` without a stage.
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
    """Return one row per method, trajectory and global question, in this order.

    Args:
        methods: Trajectories of every method by its name.

    Raises:
        ValueError: see `failure_stages`.

    >>> from finemem_lib.data.worked_example import worked_example
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
    """Return the number of language-model calls that wrote the memory of a trajectory.

    Rule-based managers make none.

    Args:
        trajectory: A played trajectory. The recorded settings of its manager state the calls per
            step; without them, every step with completion token ids counts as one call.
    """
    per_step = trajectory.metadata.get("manager_settings", {}).get("calls_per_step")
    if per_step is not None:
        return int(per_step) * trajectory.num_steps
    return sum(step.completion_ids is not None for step in trajectory.steps)
