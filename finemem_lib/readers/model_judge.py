"""A judge that scores answers without a metric, by a language model."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

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

    asked = [
        one
        for trajectory in trajectories
        for answered in (trajectory.questions, *(s.chunk_questions for s in trajectory.steps))
        for one in answered
        if needs_judge(one)
    ]
    verdicts = iter(judge.answers(asked))

    def scored(answered: Iterable[AnsweredQuestion]) -> tuple[AnsweredQuestion, ...]:
        return tuple(
            dataclasses.replace(one, score=next(verdicts)) if needs_judge(one) else one
            for one in answered
        )

    # Take the verdicts in the order of `asked`: global questions first, then step by step.
    return [
        dataclasses.replace(
            trajectory,
            questions=scored(trajectory.questions),
            steps=tuple(
                dataclasses.replace(step, chunk_questions=scored(step.chunk_questions))
                for step in trajectory.steps
            ),
        )
        for trajectory in trajectories
    ]
