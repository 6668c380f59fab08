"""Ask questions on a memory: retrieve items, let a reasoning agent read them, score the answer.

A reasoning agent is whatever has `read`; the ones that ship are in `readers`.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from finemem_lib.memory import Memory
from finemem_lib.retrieval import Searchable
from finemem_lib.scoring import score
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, Question, Retrieved


@dataclass(frozen=True, slots=True)
class ReadingTask:
    """One question with the items retrieved for it, as (item_id, content), best first.

    `written` ranks the items by their last write, 0 the oldest, one rank per item; empty when
    nobody knows. It lets an agent prefer the newer of two items that disagree.
    """

    question: str
    data_source: str
    items: tuple[tuple[str, str], ...]
    written: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Reading:
    """An answer ("" when the agent abstains, `None` when it failed to give one) and the ids of the
    task's items it rests on (`None`: the agent does not say)."""

    answer: str | None
    used: tuple[str, ...] | None


class ReasoningAgent(Protocol):
    """What answers questions from retrieved items; it is frozen, only the manager learns.

    `settings` identifies everything the answers depend on beside the task. `query` turns a
    question into what retrieval is asked. `read` answers a batch, one reading per task in order.
    """

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> str: ...

    def query(self, question: str, data_source: str) -> str: ...

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]: ...


class MemoisedAgent:
    """Answers what was asked before from memory instead of asking the agent again.

    Two tasks are the same when agent settings, question, data source, and contents and write
    order of the retrieved items agree; item ids may differ, and `used` comes back with the ids of
    the task at hand. `calls_asked` counts the tasks received, `calls_made` those passed on.
    """

    def __init__(self, agent: ReasoningAgent) -> None:
        self.agent = agent
        self.calls_asked = 0
        self.calls_made = 0
        self._memo: dict[tuple[object, ...], tuple[str | None, tuple[int, ...] | None]] = {}

    @property
    def name(self) -> str:
        return self.agent.name

    @property
    def settings(self) -> str:
        return self.agent.settings

    def query(self, question: str, data_source: str) -> str:
        return self.agent.query(question, data_source)

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        """Answer a batch; equal tasks in it are passed on once.

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
            Reading(answer, places and tuple(task.items[place][0] for place in places))
            for task, (answer, places) in zip(tasks, map(self._memo.__getitem__, keys), strict=True)
        ]

    def know(self, tasks: Iterable[ReadingTask], readings: Iterable[Reading]) -> None:
        """Take readings made before as known, one per task, beside what is known already; they
        count neither as asked nor as made."""
        for task, reading in zip(tasks, readings, strict=True):
            ids = [item_id for item_id, _ in task.items]
            places = None if reading.used is None else tuple(map(ids.index, reading.used))
            self._memo.setdefault(self._key(task), (reading.answer, places))

    def _key(self, task: ReadingTask) -> tuple[object, ...]:
        return (
            self.agent.settings,
            task.question,
            task.data_source,
            tuple(content for _, content in task.items),
            task.written,
        )

    def memo_to_json(self) -> str:
        """Return all that was answered, for `memo_from_json`."""
        return json.dumps([*self._memo.items()])

    def memo_from_json(self, text: str) -> None:
        """Know again what was answered when `text` was made, beside what is known already.

        Raises:
            ValueError: the text is not that of a memo.
        """
        try:
            known = {
                (settings, question, source, tuple(contents), tuple(written)): (
                    answer,
                    None if places is None else tuple(places),
                )
                for (settings, question, source, contents, written), (answer, places) in json.loads(
                    text
                )
            }
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"MemoisedAgent: not readable as a memo ({error}), expected what memo_to_json "
                "returned; leave it out to ask anew"
            ) from error
        self._memo = known | self._memo


def _read_batch(agent: ReasoningAgent, tasks: Sequence[ReadingTask]) -> list[Reading]:
    """Read a batch and hold the agent to the protocol."""
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
    """Questions to ask on one memory after `step`; the retriever indexes that memory."""

    questions: Sequence[Question]
    memory: Memory
    retriever: Searchable
    step: int


def answer_questions(
    inquiries: Sequence[Inquiry], agent: ReasoningAgent, top_k: int
) -> list[tuple[AnsweredQuestion, ...]]:
    """Retrieve M_j = Retrieve(q_j, M) for every question, read all of them in one batch, score.

    Returns one tuple per inquiry, in the order of its questions. The agent sees the question, its
    data source and the items; the accepted answers meet its answer only in the score. A failed
    answer is recorded as "" without a score.

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
            # `answered` is one stream over all inquiries: each takes its share, questions lead.
            for question, (found, reading) in zip(inquiry.questions, answered, strict=False)
        )
        for inquiry in inquiries
    ]


def _held(memory: Memory, item_id: str) -> MemoryItem:
    item = memory.get(item_id)
    if item is None:
        raise ValueError(
            f"the retriever returned item {item_id!r}, which the memory does not hold: "
            "pass every memory delta on to retriever.update"
        )
    return item


def reading_task(question: Question, items: Sequence[MemoryItem]) -> ReadingTask:
    """Return what a reasoning agent is shown of a question and the items retrieved for it."""
    lasts = [(item.last_step, item.lineage[-1].position) for item in items]
    oldest_first = sorted(lasts)
    return ReadingTask(
        question.text,
        question.data_source,
        tuple((item.item_id, item.content) for item in items),
        tuple(map(oldest_first.index, lasts)),
    )
