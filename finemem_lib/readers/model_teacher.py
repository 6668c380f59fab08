"""A teacher that writes chunk questions with a language model."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from finemem_lib.data.cloze import FACT_METRICS, FACT_SOURCE
from finemem_lib.data.questions import Teacher
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.prompts import Prompted
from finemem_lib.scoring import metric_for
from finemem_lib.trajectory import Question


@dataclass(frozen=True, slots=True)
class WrittenQuestion:
    """One question with its answer in a teacher's reply."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class WrittenQuestions:
    """A teacher's reply for one chunk."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    questions: list[WrittenQuestion]


class ModelTeacher(Prompted, Teacher):
    """A teacher that lets a language model write questions about a chunk.

    A chunk for which the model gave no valid reply has no candidates. `prepare` asks about all
    chunks in one batch, and `write` reads the replies from the memo; both raise ModelError if a
    call to the model failed.

    Args:
        chat: The model to ask.
        number: Number of candidate questions per chunk, at least 1.

    Raises:
        ValueError: `number` is less than 1.
    """

    def __init__(self, chat: Chat, number: int = 5) -> None:
        if number < 1:
            raise ValueError(f"ModelTeacher: number is {number}, expected at least 1")
        super().__init__(chat, "teach", number=number)
        self.number = number

    def prepare(self, chunk_texts: Sequence[str]) -> None:
        self._written(chunk_texts)

    def write(
        self, chunk_text: str, step: int, data_source: str, rng: random.Random
    ) -> list[Question]:
        source = data_source if metric_for(data_source) in FACT_METRICS else FACT_SOURCE
        [written] = self._written([chunk_text])
        questions = written.questions[: self.number] if written else []
        return [
            Question(
                f"{self.name}-{step}-{number}",
                one.question.strip(),
                (one.answer.strip(),),
                source,
                step,
                (step,),
            )
            for number, one in enumerate(questions, start=1)
            if one.question.strip() and one.answer.strip()
        ]

    def _written(self, chunk_texts: Sequence[str]) -> list[WrittenQuestions | None]:
        return self.chat.ask(
            [self._prompt.messages(number=str(self.number), text=text) for text in chunk_texts],
            WrittenQuestions,
        )
