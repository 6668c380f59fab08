"""What language models do here: read, write questions, judge; each is a prompt put to a `Chat`.

Differs from the paper: Fine-Mem (arXiv 2601.08435) and Mem-alpha (arXiv 2509.25911) publish prompts
of their own. The prompts here are the files in `prompts/`, in other words and for a flat memory;
name, version and hash stand in `settings` and so in every trajectory. A reply that nobody could
read is `None`, where Mem-alpha scores it 0. What is asked about was written by others, and every
prompt says so.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from string import Template
from typing import Any, ClassVar

from finemem_lib.data.cloze import FACT_METRICS, FACT_SOURCE
from finemem_lib.data.sentences import retrieval_query
from finemem_lib.readers.chat import Chat, ChatSettings, Messages, chat_settings
from finemem_lib.reading import Reading, ReadingTask
from finemem_lib.scoring import metric_for
from finemem_lib.text import clean_text
from finemem_lib.trajectory import AnsweredQuestion, Question, Step, Trajectory


@dataclass(frozen=True, slots=True)
class Prompt:
    """A file of `prompts/`: its version, the system message, and the user message with $names."""

    name: str
    version: int
    system: str
    user: str
    digest: str

    @property
    def identity(self) -> str:
        return f"{self.name} v{self.version} {self.digest}"

    def messages(self, **values: str) -> Messages:
        """Return the conversation with the values in their places; nothing in them is replaced.

        Raises:
            KeyError: a place has no value.
        """
        user = clean_text(Template(self.user).substitute(values))
        return [{"role": "system", "content": self.system}, {"role": "user", "content": user}]


def load_prompt(name: str) -> Prompt:
    """Return a prompt by the name of its file.

    >>> load_prompt("teach").messages(number="5", text="Costs $items.")[1]["content"]
    'Write 5 questions about this text:\\n\\nCosts $items.'
    """
    text = files("finemem_lib").joinpath("prompts", f"{name}.txt").read_text(encoding="utf-8")
    version, system, user = text.split("\n---\n")
    digest = hashlib.sha256(text.encode()).hexdigest()[:12]
    return Prompt(name, int(version.removeprefix("version: ")), system, user.strip(), digest)


@dataclass(frozen=True, slots=True)
class CitedAnswer:
    """An answer with the numbers of the items it rests on, 1 the first shown."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    answer: str
    items: list[int]


@dataclass(frozen=True, slots=True)
class WrittenQuestion:
    """A question with its answer, as a teacher writes it."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    question: str
    answer: str


@dataclass(frozen=True, slots=True)
class WrittenQuestions:
    """What a teacher writes about one chunk."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    questions: list[WrittenQuestion]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a judge says."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    verdict: bool


class ModelReader:
    """A reasoning agent that answers with a language model, all tasks of a batch at once.

    Items are shown oldest write first where that is known, else best match first. With `cite` the
    answer names the items it rests on; a number that no item has is passed over. Without it the
    reader does not say (`used` is `None`). It serves as verifier of chunk questions too.
    """

    def __init__(self, chat: Chat, cite: bool = False) -> None:
        self.chat = chat
        self.cite = cite
        self._prompt = load_prompt("read_citing" if cite else "read")

    @property
    def name(self) -> str:
        return self.chat.name

    @property
    def settings(self) -> str:
        return _settings(self.chat, self._prompt)

    def query(self, question: str, data_source: str) -> str:
        return retrieval_query(question, data_source)

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        """Answer a batch, one reading per task in order; an answer is `None` where the model
        refused or could not be understood twice.

        Raises:
            ModelError: the model could not be asked; what it answered so far is in the memo.
        """
        shown = [_shown(task) for task in tasks]
        replies = self.chat.ask(
            [
                self._prompt.messages(
                    question=task.question,
                    order="oldest first" if task.written else "best match first",
                    items=_numbered([content for _, content in items]),
                )
                for task, items in zip(tasks, shown, strict=True)
            ],
            CitedAnswer if self.cite else None,
        )
        return [_reading(reply, items) for reply, items in zip(replies, shown, strict=True)]


class ModelTeacher:
    """A teacher that lets a language model write `number` candidates from a chunk.

    `write` asks about one chunk; `prepare` asks about many at once, whose replies `write` then
    finds in the memo. The random generator of the protocol is not used: the draws are the model's.
    A chunk the model would not write about has no candidates.

    Raises:
        ValueError: `number` is less than 1.
    """

    def __init__(self, chat: Chat, number: int = 5) -> None:
        if number < 1:
            raise ValueError(f"ModelTeacher: number is {number}, expected at least 1")
        self.chat = chat
        self.number = number
        self._prompt = load_prompt("teach")

    @property
    def name(self) -> str:
        return self.chat.name

    @property
    def settings(self) -> str:
        return _settings(self.chat, self._prompt, number=self.number)

    def prepare(self, chunk_texts: Sequence[str]) -> None:
        """Ask about many chunks at once.

        Raises:
            ModelError: the model could not be asked; what it answered so far is in the memo.
        """
        self._ask(chunk_texts)

    def write(
        self, chunk_text: str, step: int, data_source: str, rng: random.Random
    ) -> list[Question]:
        """Return candidates in the model's order, the chunk's step as their evidence.

        Raises:
            ValueError: the data source has no metric.
            ModelError: the model could not be asked.
        """
        source = data_source if metric_for(data_source) in FACT_METRICS else FACT_SOURCE
        [written] = self._ask([chunk_text])
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

    def _ask(self, chunk_texts: Sequence[str]) -> list[WrittenQuestions | None]:
        return self.chat.ask(
            [self._prompt.messages(number=str(self.number), text=text) for text in chunk_texts],
            WrittenQuestions,
        )


class ModelJudge:
    """A language model as judge: 1.0 or 0.0, `None` where it refused or was not understood."""

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._answer = load_prompt("judge_answer")
        self._content = load_prompt("judge_content")

    @property
    def name(self) -> str:
        return self.chat.name

    @property
    def settings(self) -> str:
        return _settings(self.chat, self._answer, self._content)

    def answers(self, answered: Sequence[AnsweredQuestion]) -> list[float | None]:
        """Judge free answers against the accepted ones, any of which will do.

        Differs from LongMemEval (arXiv 2410.10813), which has a template per type of question, and
        from Mem-alpha, which has its preference rubric for all: this one prompt covers both.

        Raises:
            ModelError: the model could not be asked.
        """
        return self._judge(
            [
                self._answer.messages(
                    question=one.question.text,
                    answer="\nor: ".join(one.question.answers),
                    reply=one.answer,
                )
                for one in answered
            ]
        )

    def contents(self, contents: Sequence[str]) -> list[float | None]:
        """Judge what was written to the memory, each entry on its own.

        Raises:
            ModelError: the model could not be asked.
        """
        return self._judge([self._content.messages(entry=content) for content in contents])

    def _judge(self, conversations: Sequence[Messages]) -> list[float | None]:
        replies = self.chat.ask(conversations, Verdict)
        return [None if reply is None else float(reply.verdict) for reply in replies]


def judged(trajectories: Sequence[Trajectory], judge: ModelJudge) -> list[Trajectory]:
    """Return the trajectories with a judge's scores where the data source has no metric of its
    own; an empty answer and one without an accepted answer stay unscored.

    Raises:
        ModelError: the model could not be asked.
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

    # The verdicts are taken in the order of `asked`: global questions first, then step by step.
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


def content_rewards(trajectory: Trajectory, judge: ModelJudge) -> list[float | None]:
    """Return r_content per step, in [0, 1]: the share of a step's operations that wrote something
    worth keeping (r4 of Mem-alpha, arXiv 2509.25911, and its code).

    As there, an operation that wrote nothing (SKIP, DELETE, refused, not understood) counts 0, and
    so does a step without any. Unlike there, an operation the judge gave no verdict on is left
    out; `None` where that leaves none.

    Raises:
        ModelError: the model could not be asked.
    """
    written = [_written(step) for step in trajectory.steps]
    verdicts = iter(judge.contents([text for texts in written for text in texts if text]))
    rewards: list[float | None] = []
    for texts in written:
        known = [next(verdicts) if text else 0.0 for text in texts]
        known = [verdict for verdict in known if verdict is not None]
        rewards.append(math.fsum(known) / len(known) if known else None if texts else 0.0)
    return rewards


def reader_settings(options: Mapping[str, Any]) -> tuple[ChatSettings, bool]:
    """Return which language model reads, and `cite` as `ModelReader` takes it, from one mapping.

    Raises:
        ValueError: a setting is unknown, missing or out of range.
    """
    options = dict(options)
    cite = options.pop("cite", False)
    if not isinstance(cite, bool):
        raise ValueError("reader settings: cite is no switch, expected true or false")
    return chat_settings(options), cite


def _settings(chat: Chat, *prompts: Prompt, **more: Any) -> str:
    return json.dumps(
        {
            "chat": json.loads(chat.settings.identity),
            "prompts": [prompt.identity for prompt in prompts],
            **more,
        }
    )


def _shown(task: ReadingTask) -> list[tuple[str, str]]:
    """Return the items of a task in the order the model sees them."""
    order = range(len(task.items))
    return [
        task.items[place]
        for place in (sorted(order, key=task.written.__getitem__) if task.written else order)
    ]


def _numbered(contents: Sequence[str]) -> str:
    return "\n\n".join(f"[{n}] {content}" for n, content in enumerate(contents, 1)) or "(none)"


def _reading(reply: Any, items: Sequence[tuple[str, str]]) -> Reading:
    if not isinstance(reply, CitedAnswer):
        return Reading(reply, None)
    cited = dict.fromkeys(number for number in reply.items if 1 <= number <= len(items))
    return Reading(reply.answer.strip(), tuple(items[number - 1][0] for number in cited))


def _written(step: Step) -> list[str | None]:
    """Return what each operation of a step wrote, `None` for one that wrote nothing."""
    return [
        outcome.operation.content
        if outcome.applied and outcome.operation and outcome.operation.content
        else None
        for outcome in step.outcomes
    ]
