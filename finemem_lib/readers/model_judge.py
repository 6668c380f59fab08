"""A language model as judge of answers without a metric, and of what a manager writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from finemem_lib.layers.content_reward import Written
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.prompts import Prompted
from finemem_lib.scoring import metric_for
from finemem_lib.trajectory import AnsweredQuestion, Trajectory


@dataclass(frozen=True, slots=True)
class Verdict:
    """A judge's reply; `verdict` is true if the answer is right."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    verdict: bool


class ModelJudge(Prompted):
    """A language model that decides whether free answers are right.

    Args:
        chat: The model to ask.
    """

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat, "judge_answer")

    def answers(self, answered: Sequence[AnsweredQuestion]) -> list[float | None]:
        """Return a score for each free answer, judged against the accepted answers.

        Differs from LongMemEval (arXiv 2410.10813), which has one template per type of question,
        and from Mem-alpha (arXiv 2509.25911), which uses LongMemEval's preference rubric for every
        type and scores an unparsable verdict 0: here one prompt covers all types.

        Args:
            answered: Questions with the answers to judge.

        Returns:
            1.0 or 0.0 per answer, `None` where the model refused or gave no valid verdict.

        Raises:
            ModelError: a call to the model failed.
        """
        replies = self.chat.ask(
            [
                self._prompt.messages(
                    question=one.question.text,
                    answer="\nor: ".join(one.question.answers),
                    reply=one.answer,
                )
                for one in answered
            ],
            Verdict,
        )
        return [None if reply is None else float(reply.verdict) for reply in replies]


@dataclass(frozen=True, slots=True)
class Validity:
    """A judge's reply: whether a note suits its store."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    valid: bool


class ModelContentJudge(Prompted):
    """A language model that decides whether notes suit their stores (Mem-alpha's r4).

    Args:
        chat: The model to ask.
    """

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat, "judge_content")

    def __call__(self, written: Sequence[Written]) -> list[float | None]:
        """Judge notes; a note that occurs several times is asked once.

        Args:
            written: Texts with the stores they are for; those of a flat store count as semantic.

        Returns:
            1.0 or 0.0 per text, `None` where the model refused or was not understood.

        Raises:
            ModelError: the model could not be asked.
        """
        distinct = list(dict.fromkeys(written))
        replies = self.chat.ask(
            [
                self._prompt.messages(
                    store="semantic" if one.store == "flat" else one.store, note=one.content
                )
                for one in distinct
            ],
            Validity,
        )
        verdicts = {
            one: None if reply is None else float(reply.valid)
            for one, reply in zip(distinct, replies, strict=True)
        }
        return [verdicts[one] for one in written]


def judged(trajectories: Sequence[Trajectory], judge: ModelJudge) -> list[Trajectory]:
    """Return the trajectories with a judge's scores where the data source has no metric.

    Args:
        trajectories: Trajectories with answered global and chunk questions; an empty answer, or an
            answer to a question without an accepted answer, remains unscored.
        judge: The judge that scores the answers.

    Raises:
        ModelError: a call to the model failed.
    """

    def needs_judge(one: AnsweredQuestion) -> bool:
        unscored = one.score is None and metric_for(one.question.data_source) == "unscored"
        return bool(unscored and one.answer and one.question.answers)

    answered = [one for trajectory in trajectories for one in all_answers(trajectory)]
    verdicts = iter(judge.answers([*filter(needs_judge, answered)]))
    return with_scores(
        trajectories, [next(verdicts) if needs_judge(one) else one.score for one in answered]
    )


def all_answers(trajectory: Trajectory) -> list[AnsweredQuestion]:
    """Return the answered global questions, then the chunk questions of every step.

    Args:
        trajectory: The trajectory.
    """
    chunks = (answered for step in trajectory.steps for answered in step.chunk_questions)
    return [*trajectory.questions, *chunks]


def with_scores(
    trajectories: Sequence[Trajectory], scores: Sequence[float | None]
) -> list[Trajectory]:
    """Return the trajectories with other scores of their questions.

    Args:
        trajectories: The trajectories.
        scores: One score per answer, in the order of `all_answers`.
    """
    left = iter(scores)

    def scored(answered: Sequence[AnsweredQuestion]) -> tuple[AnsweredQuestion, ...]:
        return tuple(dataclasses.replace(one, score=next(left)) for one in answered)

    return [
        dataclasses.replace(
            one,
            questions=scored(one.questions),
            steps=tuple(
                dataclasses.replace(step, chunk_questions=scored(step.chunk_questions))
                for step in one.steps
            ),
        )
        for one in trajectories
    ]
