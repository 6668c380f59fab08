"""Tasks, memories and a recording agent for tests of reading."""

from __future__ import annotations

from collections.abc import Sequence

from finemem_lib.memory import FlatMemory
from finemem_lib.reading import Reading, ReadingTask
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.trajectory import Operation


def task(
    question: str, *contents: str, data_source: str = "squad", written: tuple[int, ...] = ()
) -> ReadingTask:
    """Return a task on items i0, i1, ..."""
    items = tuple((f"i{place}", content) for place, content in enumerate(contents))
    return ReadingTask(question, data_source, items, written)


class Recorder:
    """An agent that answers with what it was asked, uses its last item, and keeps the tasks."""

    name = "recorder"

    def __init__(self, settings: str = "s") -> None:
        self.settings = settings
        self.seen: list[ReadingTask] = []

    def query(self, question: str, data_source: str) -> str:
        return question

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        self.seen.extend(tasks)
        return [
            Reading(f"{one.question} {len(self.seen)}", tuple(i for i, _ in one.items[-1:]) or None)
            for one in tasks
        ]


def remembered(contents_by_step: Sequence[Sequence[str]]) -> tuple[FlatMemory, BM25Retriever]:
    """Return a memory and its retriever after one step of insertions per entry."""
    memory, retriever = FlatMemory(duplicates="allow"), BM25Retriever()
    for step, contents in enumerate(contents_by_step, start=1):
        _, delta = memory.apply([Operation("INSERT", content) for content in contents], step)
        retriever.update(delta)
    return memory, retriever
