"""Ask questions on a memory: retrieve items, let a reasoning agent read them, score the answer.

Any class with the methods of `ReasoningAgent` can answer; `readers` holds the classes provided.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from finemem_lib.memory import FlatMemory
from finemem_lib.retrieval import Searchable
from finemem_lib.scoring import score
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, Question, Retrieved, last_write_key
from finemem_lib.util.validation import parse_json, type_adapter


@dataclass(frozen=True, slots=True)
class ReadingTask:
    """One question with the items retrieved for it.

    Attributes:
        items: (item_id, content) of the retrieved items, best first.
        written: Rank of each item by its last write, 0 the oldest; empty if not known. The ranks
            let an agent prefer the newer of two contradicting items.
    """

    question: str
    data_source: str
    items: tuple[tuple[str, str], ...]
    written: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """The answer of a reasoning agent to one task.

    Attributes:
        answer: "" where the agent abstains, `None` where it failed to answer.
        used: Ids of the items the answer rests on, `None` where the agent does not report them.
    """

    answer: str | None
    used: tuple[str, ...] | None


class ReasoningAgent(Protocol):
    """Answers questions from retrieved items; the agent is frozen, only the manager is trained."""

    @property
    def name(self) -> str:
        """Name of the agent in records."""

    @property
    def settings(self) -> str:
        """Text that identifies everything the answers depend on, except for the task."""

    def query(self, question: str, data_source: str) -> str:
        """Return the retrieval query for a question.

        Args:
            question: Text of the question.
            data_source: Data source of the question.
        """

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        """Answer a batch of tasks; return one reading per task, in order."""


_Key = tuple[str, str, str, tuple[str, ...], tuple[int, ...]]
_Answer = tuple[str | None, tuple[int, ...] | None]


class MemoisedAgent(ReasoningAgent):
    """A reasoning agent that caches the readings of another agent.

    Two tasks are the same when agent settings, question, data source, and contents and write
    order of the retrieved items agree; item ids may differ, and `used` is returned with the ids of
    the current task.

    Attributes:
        agent: The reasoning agent that answers tasks not in the cache.
        calls_asked: Number of tasks received.
        calls_made: Number of tasks passed on to `agent`.
    """

    def __init__(self, agent: ReasoningAgent) -> None:
        self.agent = agent
        self.calls_asked = 0
        self.calls_made = 0
        self._memo: dict[_Key, _Answer] = {}

    @property
    def name(self) -> str:
        return self.agent.name

    @property
    def settings(self) -> str:
        return self.agent.settings

    def query(self, question: str, data_source: str) -> str:
        return self.agent.query(question, data_source)

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        """Answer a batch of tasks; pass equal tasks on to the agent once.

        Raises:
            ValueError: the agent returned another number of readings, or used an item it was
                not given.
        """
        keys = list(map(self._key, tasks))
        new = {key: task for key, task in zip(keys, tasks, strict=True) if key not in self._memo}
        self.calls_asked += len(tasks)
        self.calls_made += len(new)
        self.know(new.values(), _read_batch(self.agent, list(new.values())))
        return [
            Reading(
                answer, None if places is None else tuple(task.items[place][0] for place in places)
            )
            for task, (answer, places) in zip(tasks, map(self._memo.__getitem__, keys), strict=True)
        ]

    def know(self, tasks: Iterable[ReadingTask], readings: Iterable[Reading]) -> None:
        """Add earlier readings to the cache; they enter neither `calls_asked` nor `calls_made`.

        Args:
            tasks: The tasks that were read; a task already in the cache keeps its answer.
            readings: One reading per task.
        """
        for task, reading in zip(tasks, readings, strict=True):
            ids = [item_id for item_id, _ in task.items]
            places = None if reading.used is None else tuple(map(ids.index, reading.used))
            self._memo.setdefault(self._key(task), (reading.answer, places))

    def _key(self, task: ReadingTask) -> _Key:
        return (
            self.agent.settings,
            task.question,
            task.data_source,
            tuple(content for _, content in task.items),
            task.written,
        )

    def memo_to_json(self) -> str:
        """Return the cache as JSON text, for `memo_from_json`."""
        return json.dumps([*self._memo.items()])

    def memo_from_json(self, text: str) -> None:
        """Add the readings in `text` to the cache; readings already in it are kept.

        Raises:
            ValueError: `memo_to_json` cannot have written `text`.
        """
        try:
            known = type_adapter(list[tuple[_Key, _Answer]]).validate_python(parse_json(text))
        except ValueError as error:
            raise ValueError(
                f"MemoisedAgent: not readable as a memo ({error}), expected what memo_to_json "
                "returned; leave it out to ask again"
            ) from error
        self._memo = dict(known) | self._memo


def _read_batch(agent: ReasoningAgent, tasks: Sequence[ReadingTask]) -> list[Reading]:
    """Let the agent read a batch, and check that its readings follow the protocol."""
    readings = agent.read(tasks) if tasks else []
    if len(readings) != len(tasks):
        raise ValueError(
            f"reasoning agent {agent.name!r} returned {len(readings)} readings for {len(tasks)} "
            "tasks, expected one each in order"
        )
    for task, reading in zip(tasks, readings, strict=True):
        ids = [item_id for item_id, _ in task.items]
        if not set(reading.used or ()) <= set(ids):
            raise ValueError(
                f"reasoning agent {agent.name!r} says it used items {reading.used}, expected ids "
                f"of its task: {ids}; used is `None` when the agent does not know"
            )
    return readings


@dataclass(frozen=True, slots=True)
class Inquiry:
    """Questions to ask on one memory.

    Attributes:
        memory: The memory to ask them on.
        retriever: The index of that memory.
        step: The step after which the questions are asked.
    """

    questions: Sequence[Question]
    memory: FlatMemory
    retriever: Searchable
    step: int


def answer_questions(
    inquiries: Sequence[Inquiry], agent: ReasoningAgent, top_k: int
) -> list[tuple[AnsweredQuestion, ...]]:
    """Retrieve M_j = Retrieve(q_j, M) for every question, answer all in one batch, and score them.

    The agent sees the question, its data source and the items, never the accepted answers.

    Args:
        inquiries: The questions of each memory.
        agent: Reads the retrieved items.
        top_k: Most items retrieved per question; of a layered memory, from each searched store.

    Returns:
        One tuple per inquiry, in the order of its questions; a failed answer is recorded as ""
        without a score.

    Raises:
        ValueError: the retriever names an item the memory does not hold, a data source has no
            metric, or the agent breaks its protocol.
    """
    tasks: list[ReadingTask] = []
    retrieved: list[tuple[Retrieved, ...]] = []
    for inquiry in inquiries:
        for question in inquiry.questions:
            query = agent.query(question.text, question.data_source)
            hits = inquiry.retriever.search(query, top_k)
            items = [_held(inquiry.memory, item_id) for item_id, _ in hits]
            tasks.append(reading_task(question, items))
            retrieved.append(
                tuple(
                    Retrieved(item_id, value, tuple(write.step for write in item.lineage))
                    for (item_id, value), item in zip(hits, items, strict=True)
                )
            )
    answered = zip(retrieved, _read_batch(agent, tasks), strict=True)
    return [
        tuple(
            AnsweredQuestion(
                question,
                inquiry.step,
                found,
                reading.answer or "",
                reading.used,
                score(reading.answer, question.answers, question.data_source),
            )
            # `answered` runs over all inquiries. zip draws a question first, so that it consumes
            # no answer of the next inquiry.
            for question, (found, reading) in zip(inquiry.questions, answered, strict=False)
        )
        for inquiry in inquiries
    ]


def _held(memory: FlatMemory, item_id: str) -> MemoryItem:
    item = memory.get(item_id)
    if item is None:
        raise ValueError(
            f"the retriever returned item {item_id!r}, which the memory does not hold: "
            "pass every memory delta on to retriever.update"
        )
    return item


def reading_task(question: Question, items: Sequence[MemoryItem]) -> ReadingTask:
    """Return the reading task for a question and the items retrieved for it.

    Args:
        question: The question.
        items: Items retrieved for it, best first.
    """
    lasts = [*map(last_write_key, items)]
    oldest_first = sorted(lasts)
    return ReadingTask(
        question.text,
        question.data_source,
        tuple((item.item_id, item.content) for item in items),
        tuple(map(oldest_first.index, lasts)),
    )
