"""Retrieve memory items for a question, with an index that follows the memory.

BM25 is the default; the other retrievers are in `retrievers`.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

import numpy as np

from finemem_lib.text import words
from finemem_lib.trajectory import MemoryDelta, MemoryItem

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Searchable(Protocol):
    """An index of a memory."""

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        """Return (item id, score) of at most `k` items, best first.

        Args:
            query: Text to compare with the items.
            k: Most items to return, at least 1.
        """


class Retriever(Searchable, Protocol):
    """What a rollout needs of a retriever: an index that follows the memory step by step."""

    def update(self, delta: MemoryDelta) -> None:
        """Follow one change of the memory; every change is passed on."""


class BM25Retriever:
    """Okapi BM25 with the scores of `rank_bm25.BM25Okapi`, updated and never rebuilt.

    With N items of which df hold a word, f the word's count in an item of length L:

        idf(word) = log(N - df + 0.5) - log(df + 0.5), and epsilon * mean idf where that is negative
        score     = sum over query words of idf * f * (k1 + 1) / (f + k1 * (1 - b + b * L / mean L))

    Only items that share a word with the query are retrieved, by score, and among equal scores the
    most recently written first.

    Okapi's weights fail in tiny memories. In one item every idf is negative, and so is their mean,
    the floor; in two items a word held by one weighs nothing and a word held by both weighs less
    than nothing. Sharing more with the query then lowers the score. Wherever the mean idf is not
    positive, `search` therefore ranks by the number of different query words shared, then score,
    then most recently written; the scores returned stay Okapi's, zero or negative as they are.

    An update costs time in proportion to the words of the changed items, a search in proportion to
    the items that hold a query word, in numpy. (Robertson and Zaragoza, 2009; the floor is
    Trotman et al., 2014, as in rank-bm25.)

    Args:
        k1: How slowly repeated words saturate, at least 0.
        b: Weight of the length, in [0, 1].
        epsilon: Share of the mean idf that replaces a negative one.
    """

    def __init__(self, k1: float = 1.5, b: float = 0.75, epsilon: float = 0.25) -> None:
        self.k1 = k1
        self.b = b
        self.epsilon = epsilon
        # Every item has a slot; the slots of removed items are used again.
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._ids: list[str] = []
        self._contents: list[str] = []
        self._lengths = array("q")
        self._written = array("q")  # running number of the last write: greater is more recent
        self._writes = 0
        self._postings: dict[
            str, tuple[array[int], array[int]]
        ] = {}  # word -> slots, counts in them
        self._words_by_df: Counter[int] = Counter()
        self._total_length = 0
        self._mean_idf = 0.0

    @classmethod
    def from_items(cls, items: Iterable[MemoryItem], **parameters: float) -> BM25Retriever:
        """Return a retriever over items.

        Args:
            items: Items in any order.
            **parameters: As in the class: k1, b, epsilon.
        """
        retriever = cls(**parameters)
        retriever.update(MemoryDelta(written=tuple(items)))
        return retriever

    def update(self, delta: MemoryDelta) -> None:
        """Follow one change of the memory.

        Raises:
            KeyError: an item to be removed is not in the index, which has missed an update.
        """
        for item_id in delta.removed + delta.evicted:
            self._remove(item_id)
        for item in sorted(delta.written, key=_last_write):
            if item.item_id in self._slots:
                self._remove(item.item_id)
            self._add(item)
        self._mean_idf = self._average_idf()

    def scores(self, query: str) -> dict[str, float]:
        """Return Okapi's score of every item that shares a word with the query; all others have 0.

        >>> from finemem_lib.trajectory import Write
        >>> contents = ("Mia lives in Rome", "Ana sails", "Leo owns cats")
        >>> items = [
        ...     MemoryItem(str(number), content, (Write(number, "INSERT", 0),))
        ...     for number, content in enumerate(contents, start=1)
        ... ]
        >>> BM25Retriever.from_items(items).scores("Where does Mia live?")
        {'1': 0.444...}
        """
        scores, shared = self._score(query)
        return {self._ids[slot]: float(scores[slot]) for slot in np.flatnonzero(shared)}

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        """Return (item id, score) of at most `k` items, best first.

        Args:
            query: Text to compare with the items.
            k: Most items to return, at least 1.

        Raises:
            ValueError: `k` is less than 1.
        """
        if k < 1:
            raise ValueError(f"BM25Retriever.search: k is {k}, expected at least 1")
        scores, shared = self._score(query)
        found = np.flatnonzero(shared)
        if self._mean_idf > 0 and len(found) > k:  # only the k best, with ties, are sorted
            costs = -scores[found]
            found = found[costs <= np.partition(costs, k - 1)[k - 1]]
        keys = [-np.array(self._written)[found], -scores[found]]  # the last key sorts first
        if self._mean_idf <= 0:
            keys.append(-shared[found])
        best = found[np.lexsort(keys)][:k]
        return [(self._ids[slot], float(scores[slot])) for slot in best]

    def _score(self, query: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return (num_slots,) scores and (num_slots,) numbers of different query words shared."""
        scores = np.zeros(len(self._ids))
        shared = np.zeros(len(self._ids), dtype=np.int64)
        known = [
            (repeats, self._postings[word])
            for word, repeats in Counter(words(query)).items()
            if word in self._postings
        ]
        if known:
            mean_length = self._total_length / len(self._slots)
            norms = self.k1 * (1 - self.b + self.b * np.array(self._lengths) / mean_length)
        for repeats, (holders, counts) in known:
            idf = self._idf(len(holders))
            if idf < 0:
                idf = self.epsilon * self._mean_idf
            # Copies: an array cannot grow while a view of it lives, say, in a traceback.
            slots, frequencies = np.array(holders), np.array(counts)
            scores[slots] += (
                repeats * idf * (self.k1 + 1) * frequencies / (frequencies + norms[slots])
            )
            shared[slots] += 1
        return scores, shared

    def _idf(self, df: int) -> float:
        return math.log(len(self._slots) - df + 0.5) - math.log(df + 0.5)

    def _average_idf(self) -> float:
        """Return the mean idf over the vocabulary: words of equal df share one idf, so this takes
        one term for each df that occurs. The exact sum makes it independent of their order."""
        terms = (number * self._idf(df) for df, number in self._words_by_df.items())
        return math.fsum(terms) / max(len(self._postings), 1)

    def _add(self, item: MemoryItem) -> None:
        if self._free:
            slot = self._free.pop()
        else:
            slot = len(self._ids)
            self._ids.append("")
            self._contents.append("")
            self._lengths.append(0)
            self._written.append(0)
        found = words(item.content)
        self._slots[item.item_id] = slot
        self._ids[slot] = item.item_id
        self._contents[slot] = item.content
        self._lengths[slot] = len(found)
        self._total_length += len(found)
        self._writes += 1
        self._written[slot] = self._writes
        for word, count in Counter(found).items():
            holders, counts = self._postings.setdefault(word, (array("i"), array("i")))
            holders.append(slot)
            counts.append(count)
            self._move_word(len(holders) - 1, len(holders))

    def _remove(self, item_id: str) -> None:
        slot = self._slots.pop(item_id)
        self._free.append(slot)
        self._total_length -= self._lengths[slot]
        for word in set(words(self._contents[slot])):
            holders, counts = self._postings[word]
            place = int(np.argmax(np.array(holders) == slot))
            holders[place], counts[place] = holders[-1], counts[-1]
            holders.pop()
            counts.pop()
            if not holders:
                del self._postings[word]
            self._move_word(len(holders) + 1, len(holders))

    def _move_word(self, old_df: int, new_df: int) -> None:
        """Keep count of how many words have which df; words with df 0 are no vocabulary."""
        for df, change in ((old_df, -1), (new_df, 1)):
            if df:
                self._words_by_df[df] += change
                if not self._words_by_df[df]:
                    del self._words_by_df[df]


def _last_write(item: MemoryItem) -> tuple[int, int]:
    last = item.lineage[-1]
    return last.step, last.position
