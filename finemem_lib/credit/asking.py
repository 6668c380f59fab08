"""Ask questions on many small memories at once: search them together and cache the readings.

Rules that replay a trajectory ask the same questions on memories that differ by an item or two.
BM25 scores are computed for all memories in one pass over arrays, with the operations of
`retrieval.BM25Retriever` in the same order, so that the scores are equal to the last bit. A reading
depends on the question, the retrieved contents and the order of their writes; equal readings, from
any memory or rollout, are made once.
"""

from __future__ import annotations

import copy
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finemem_lib.reading import (
    Inquiry,
    MemoisedAgent,
    ReadingTask,
    ReasoningAgent,
    answer_questions,
    reading_task,
)
from finemem_lib.retrieval import BM25Retriever, Retriever
from finemem_lib.text import words
from finemem_lib.trajectory import MemoryDelta, MemoryItem, Question

if TYPE_CHECKING:
    from numpy.typing import NDArray

Memory = tuple[MemoryItem, ...]
"""The items of a memory, in the order of their last writes."""

MAX_TABLE_CONTENTS = 500
"""Largest number of distinct contents to search as one table; above it, each memory is indexed."""

MAX_TABLE_SCORES = 2_000_000
"""Largest number of scores in one table; larger tables are split, to save memory."""

_Contents = tuple[str, ...]
_Task = tuple[int, _Contents, tuple[int, ...]]
"""The number of a question, the retrieved contents, best first, and their ranks by last write."""


def need_probabilities(
    agent: ReasoningAgent,
) -> Callable[[Sequence[ReadingTask], Sequence[Sequence[str]]], list[float]]:
    """Return the agent's method `answer_log_probabilities`.

    The method returns, per task, the mean log-probability per token of an accepted answer.

    Args:
        agent: A reasoning agent, memoised or not.

    Raises:
        ValueError: the agent has no such method.
    """
    while isinstance(agent, MemoisedAgent):
        agent = agent.agent
    found = getattr(agent, "answer_log_probabilities", None)
    if found is None:
        raise ValueError(
            f"soft scores: reasoning agent {agent.name!r} gives no probability of an answer, "
            "expected one with answer_log_probabilities; take a local language model that does "
            "not cite (ModelReader on LocalChat), or soft=False"
        )
    return found  # type: ignore[no-any-return]


class Asking:
    """Asks questions on memories and caches every score.

    Args:
        agent: The reasoning agent, which reads the retrieved items.
        top_k: Largest number of items to retrieve per question, at least 1.
        new_index: Returns an empty index of the kind used in the rollouts.
    """

    def __init__(
        self, agent: ReasoningAgent, top_k: int, new_index: Callable[[], Retriever]
    ) -> None:
        self.agent = agent
        self._top_k = top_k
        self._new_index = new_index
        # Questions are numbered, because hashing a number is faster than hashing a question.
        self._numbers: dict[Question, int] = {}
        self._found: dict[_Contents, dict[int, tuple[int, ...]]] = {}
        self._scores: dict[_Task, float | None] = {}
        self._probabilities: dict[_Task, float | None] = {}

    def through(self, agent: ReasoningAgent) -> Asking:
        """Return an `Asking` without cached scores that asks another agent of equal settings.

        Args:
            agent: The other agent; the cache of retrieved items is shared.
        """
        other = copy.copy(self)
        other.agent, other._scores, other._probabilities = agent, {}, {}
        return other

    def scores(
        self, asked: Sequence[tuple[Sequence[Question], Memory]]
    ) -> list[list[float | None]]:
        """Return the scores of questions on memories; new readings are made in one batch.

        Args:
            asked: Pairs of questions and the memory to ask them on.

        Returns:
            One row per memory, one score in [0, 1] per question, `None` where it cannot be scored.
        """
        return self._ask(asked, self._scores, self._read)

    def probabilities(
        self, asked: Sequence[tuple[Sequence[Question], Memory]]
    ) -> list[list[float]]:
        """Return the probability that the agent's model assigns to the accepted answer.

        It is the exponential of the mean log-probability of the answer's tokens, for the most
        probable accepted answer.

        Args:
            asked: Pairs of questions, each with an accepted answer, and the memory to ask them on.

        Returns:
            One row per memory, one probability in [0, 1] per question.

        Raises:
            ValueError: the agent gives no probabilities.
        """
        need_probabilities(self.agent)
        return self._ask(asked, self._probabilities, self._weigh)  # type: ignore[return-value]

    def _read(self, new: Sequence[Inquiry]) -> list[float | None]:
        return [one.score for (one,) in answer_questions(new, self.agent, self._top_k)]

    def _weigh(self, new: Sequence[Inquiry]) -> list[float]:
        """Return probabilities; each counts as one call in every `MemoisedAgent` on the way."""
        agent = self.agent
        while isinstance(agent, MemoisedAgent):
            agent.calls_asked += len(new)
            agent.calls_made += len(new)
            agent = agent.agent
        questions = [question for inquiry in new for question in inquiry.questions]
        tasks = [
            reading_task(question, inquiry.retriever.items)  # type: ignore[attr-defined]
            for question, inquiry in zip(questions, new, strict=True)
        ]
        log_probabilities = need_probabilities(agent)
        return [*map(math.exp, log_probabilities(tasks, [q.answers for q in questions]))]

    def _ask(
        self,
        asked: Sequence[tuple[Sequence[Question], Memory]],
        known: dict[_Task, float | None],
        measure: Callable[[Sequence[Inquiry]], Sequence[float | None]],
    ) -> list[list[float | None]]:
        """Return the values of questions on memories, after measuring those not in `known`."""
        numbers: dict[int, int] = {}  # by the id of the question
        numbered = []
        for questions, memory in asked:
            for one in questions:
                if id(one) not in numbers:
                    numbers[id(one)] = self._numbers.setdefault(one, len(self._numbers))
            numbered.append(([numbers[id(one)] for one in questions], memory))
        self._search(numbered)
        keys = []
        new: dict[_Task, Inquiry] = {}
        for (questions, _), (names, memory) in zip(asked, numbered, strict=True):
            contents = tuple([item.content for item in memory])
            found = self._found[_state(contents, memory)]
            row = []
            for question, name in zip(questions, names, strict=True):
                places = found[name]
                oldest_first = sorted(places)
                key = (
                    name,
                    tuple([contents[place] for place in places]),
                    tuple([oldest_first.index(place) for place in places]),
                )
                if key not in known and key not in new:
                    items = tuple([memory[place] for place in places])
                    new[key] = Inquiry([question], _FixedMemory(items), _FixedResult(items), 0)  # type: ignore[arg-type]
                row.append(key)
            keys.append(row)
        known.update(zip(new, measure([*new.values()]), strict=True))
        return [[known[key] for key in row] for row in keys]

    def _search(self, asked: Sequence[tuple[Sequence[int], Memory]]) -> None:
        """Search every memory for every question and cache the positions of the retrieved items."""
        memories: dict[_Contents, Memory] = {}
        new: dict[int, None] = {}
        for names, memory in asked:
            state = _state(tuple([item.content for item in memory]), memory)
            known = self._found.setdefault(state, {})
            unknown = [name for name in names if name not in known]
            if unknown:
                memories[state] = memory
                new.update(dict.fromkeys(unknown))
        if not memories:
            return
        questions = [*self._numbers]
        queries = [
            self.agent.query(questions[name].text, questions[name].data_source) for name in new
        ]
        index = self._new_index()
        distinct = {content for memory in memories for content in memory}
        if type(index) is BM25Retriever and len(distinct) <= MAX_TABLE_CONTENTS:
            found = search_memories([*memories], queries, self._top_k, index)
        else:
            found = [self._by_index(memory, queries) for memory in memories.values()]
        for contents, rows in zip(memories, found, strict=True):
            self._found[contents].update(zip(new, rows, strict=True))

    def _by_index(self, memory: Memory, queries: Sequence[str]) -> list[tuple[int, ...]]:
        index = self._new_index()
        index.update(MemoryDelta(written=memory))
        places = {item.item_id: place for place, item in enumerate(memory)}
        return [
            tuple(places[item_id] for item_id, _ in index.search(query, self._top_k))
            for query in queries
        ]


def _state(contents: _Contents, memory: Memory) -> _Contents:
    """Return what a search of the memory depends on: in layers also where each item is kept."""
    if not memory or memory[0].store == "flat":
        return contents
    return contents + tuple([item.store for item in memory])


@dataclass(frozen=True, slots=True)
class _FixedMemory:
    """A memory that holds only the retrieved items."""

    items: tuple[MemoryItem, ...]

    def get(self, item_id: str) -> MemoryItem | None:
        return next((item for item in self.items if item.item_id == item_id), None)


@dataclass(frozen=True, slots=True)
class _FixedResult:
    """An index that returns given items as its search result."""

    items: tuple[MemoryItem, ...]

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        return [(item.item_id, 0.0) for item in self.items[:k]]


def search_memories(
    memories: Sequence[Sequence[str]],
    queries: Sequence[str],
    k: int,
    like: BM25Retriever | None = None,
) -> list[list[tuple[int, ...]]]:
    """Return per memory and query the places of what `BM25Retriever.search` returns, best first.

    Args:
        memories: The contents of each memory, in the order of their last writes.
        queries: Texts to compare with the contents.
        k: Largest number of items to return, at least 1.
        like: Retriever whose parameters k1, b and epsilon to use; default: `BM25Retriever()`.

    >>> search_memories([["Mia lives in Rome", "Ana sails", "Mia saw Oslo"]], ["Where is Mia?"], 2)
    [[(2, 0)]]
    """
    like = like or BM25Retriever()
    sizes = np.array([len(memory) for memory in memories])
    most = int(sizes.max(initial=0))
    if not most:
        return [[() for _ in queries] for _ in memories]
    if len(memories) > 1 and len(memories) * most * len(queries) > MAX_TABLE_SCORES:
        half = len(memories) // 2
        parts = memories[:half], memories[half:]
        return [row for part in parts for row in search_memories(part, queries, k, like)]
    # Contents are numbered from 1; number 0 stands for an empty position.
    numbers = {c: n for n, c in enumerate(dict.fromkeys(c for m in memories for c in m), start=1)}
    frequencies, vocabulary = _word_counts([*numbers])
    lengths = frequencies.sum(axis=1).astype(np.int64)
    items = np.zeros((len(memories), most), dtype=np.int64)
    for row, memory in zip(items, memories, strict=True):
        row[: len(memory)] = [numbers[content] for content in memory]

    present = np.zeros((len(memories), len(numbers) + 1))
    np.add.at(present, (np.arange(len(memories))[:, None], items), 1.0)
    held = (present @ (frequencies > 0)).astype(np.int64)  # df: items of a memory with a word
    idf, mean_idf = _idf(held, sizes)

    total = lengths[items].sum(axis=1)
    mean_length = np.where(total > 0, total, 1) / np.maximum(sizes, 1)
    norms = like.k1 * (1 - like.b + like.b * lengths[items] / mean_length[:, None])
    scores = np.zeros((len(memories), most, len(queries)))
    shared = np.zeros((len(memories), most, len(queries)), dtype=np.int64)
    for columns, repeats in _words_by_place(queries, vocabulary):
        weight = np.take_along_axis(idf, held[:, columns], axis=1)
        weight = np.where(weight < 0, like.epsilon * mean_idf[:, None], weight)
        found = frequencies[items[:, :, None], columns]
        scores += (
            (repeats * weight * (like.k1 + 1))[:, None, :] * found / (found + norms[:, :, None])
        )
        shared += found > 0

    return _ranked(scores, shared, mean_idf, k)


def _word_counts(contents: Sequence[str]) -> tuple[NDArray[np.float64], dict[str, int]]:
    """Return the counts of words in contents, and the column of every word.

    Row 0 is that of an empty content, the last column that of words in no content."""
    counted = [Counter(words(content)) for content in contents]
    vocabulary = {word: n for n, word in enumerate({word: None for row in counted for word in row})}
    frequencies = np.zeros((len(contents) + 1, len(vocabulary) + 1))
    for number, counts in enumerate(counted, start=1):
        for word, count in counts.items():
            frequencies[number, vocabulary[word]] = count
    return frequencies, vocabulary


def _ranked(
    scores: NDArray[np.float64], shared: NDArray[np.int64], mean_idf: NDArray[np.float64], k: int
) -> list[list[tuple[int, ...]]]:
    """Return per memory and query the positions of the best items that share a word with it."""
    by_words = np.where(mean_idf > 0, 0, 1)[:, None, None] * shared
    written = np.broadcast_to(np.arange(scores.shape[1])[None, :, None], scores.shape)
    best = np.lexsort((-written, -scores, -by_words, shared == 0), axis=1)[:, :k]
    counts = np.minimum((shared > 0).sum(axis=1), k)
    return [
        [tuple(row[:count]) for row, count in zip(places, many, strict=True)]
        for places, many in zip(best.transpose(0, 2, 1).tolist(), counts.tolist(), strict=True)
    ]


def _idf(
    held: NDArray[np.int64], sizes: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the idf by memory and df, and the mean idf over each memory's vocabulary.

    The mean is summed as in `BM25Retriever`, so that both are equal to the last bit."""
    known: dict[tuple[int, int], float] = {}
    idf = np.zeros((len(sizes), int(held.max(initial=0)) + 1))
    means = np.zeros(len(sizes))
    for number, (row, size) in enumerate(zip(held, sizes.tolist(), strict=True)):
        numbers = np.bincount(row)
        numbers[0] = 0  # df 0: words of other memories
        terms = []
        for df in np.flatnonzero(numbers).tolist():
            if (size, df) not in known:
                known[size, df] = math.log(size - df + 0.5) - math.log(df + 0.5)
            idf[number, df] = known[size, df]
            terms.append(int(numbers[df]) * known[size, df])
        means[number] = math.fsum(terms) / max(int(numbers.sum()), 1)
    return idf, means


def _words_by_place(
    queries: Sequence[str], vocabulary: dict[str, int]
) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Return (word numbers, repeats) of every query's first distinct word, second word, ..."""
    rows = [list(Counter(words(query)).items()) for query in queries]
    nothing = len(vocabulary)
    places = []
    for place in range(max(map(len, rows), default=0)):
        pairs = [row[place] if place < len(row) else ("", 0) for row in rows]
        places.append(
            (
                np.array([vocabulary.get(word, nothing) for word, _ in pairs]),
                np.array([repeats for _, repeats in pairs]),
            )
        )
    return places
