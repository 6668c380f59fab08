"""Retrieve memory items for a question, with an index that follows the memory.

BM25 is the default; `retrievers` holds the other retrievers.
"""

from __future__ import annotations

import math
from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np

from finemem_lib.text import words
from finemem_lib.trajectory import MemoryDelta, MemoryItem, last_write_key

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Searchable(Protocol):
    """An index of a memory."""

    def search(self, query: str, k: int) -> Sequence[tuple[str, float | None]]:
        """Return (item id, score) of at most `k` items of a store, best first.

        Args:
            query: Text to compare with the items.
            k: Largest number of items of a store to return, at least 1.

        Raises:
            ValueError: `k` is less than 1.
        """


class Retriever(Searchable, Protocol):
    """An index that a rollout updates after every step."""

    def update(self, delta: MemoryDelta) -> None:
        """Apply one change of the memory to the index; callers must pass on every change.

        Raises:
            KeyError: an item to be removed is not in the index: an earlier update is missing.
        """


class BM25Retriever(Retriever):
    """Okapi BM25 with the scores of `rank_bm25.BM25Okapi` and an index updated in place.

    With N items of which df hold a word, f the word's count in an item of length L:

        idf(word) = log(N - df + 0.5) - log(df + 0.5), and epsilon * mean idf where that is negative
        score     = sum over query words of idf * f * (k1 + 1) / (f + k1 * (1 - b + b * L / mean L))

    `search` returns only items that share a word with the query, highest score first, and among
    equal scores the most recently written first.

    Okapi's weights fail in tiny memories. With one item every idf is negative, and so is the mean
    idf, the floor; with two items the idf of a word in one item is 0 and the idf of a word in both
    is negative. Sharing more words with the query then lowers the score. Where the mean idf is not
    positive, `search` therefore ranks by the number of distinct query words shared, then by score,
    then by most recent write; the scores it returns remain Okapi's, zero or negative.

    The time of an update grows with the number of words in the changed items, the time of a search
    with the number of items that hold a query word. (Robertson and Zaragoza, 2009; the floor is
    Trotman et al., 2014, as in rank-bm25.)

    Args:
        k1: Saturation of the term frequency, at least 0: larger values saturate later.
        b: Strength of the length normalisation, in [0, 1].
        epsilon: Share of the mean idf that replaces a negative idf.
    """

    def __init__(self, k1: float = 1.5, b: float = 0.75, epsilon: float = 0.25) -> None:
        self.k1 = k1
        self.b = b
        self.epsilon = epsilon
        # Every item has a slot; the slots of removed items are reused.
        self._slots: dict[str, int] = {}
        self._free: list[int] = []
        self._ids: list[str] = []
        self._contents: list[str] = []
        self._lengths = array("q")
        self._written = array("q")  # serial number of the last write: greater is more recent
        self._writes = 0
        self._postings: dict[
            str, tuple[array[int], array[int]]
        ] = {}  # word -> slots, counts in them
        self._words_by_df: Counter[int] = Counter()
        self._total_length = 0
        self._mean_idf = 0.0

    @classmethod
    def from_items(cls, items: Iterable[MemoryItem], **parameters: float) -> BM25Retriever:
        """Return a retriever that indexes these items.

        Args:
            items: Items in any order.
            **parameters: k1, b and epsilon, as for the class.
        """
        retriever = cls(**parameters)
        retriever.update(MemoryDelta(written=tuple(items)))
        return retriever

    def update(self, delta: MemoryDelta) -> None:
        for item_id in delta.removed + delta.evicted:
            self._remove(item_id)
        for item in sorted(delta.written, key=last_write_key):
            if item.item_id in self._slots:
                self._remove(item.item_id)
            self._add(item)
        self._mean_idf = self._average_idf()

    def scores(self, query: str) -> dict[str, float]:
        """Return Okapi's score of every item that shares a word with the query; others score 0.

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
        if k < 1:
            raise ValueError(f"BM25Retriever.search: k is {k}, expected at least 1")
        scores, shared = self._score(query)
        found = np.flatnonzero(shared)
        if self._mean_idf > 0 and len(found) > k:  # sort only the k best and their ties
            costs = -scores[found]
            found = found[costs <= np.partition(costs, k - 1)[k - 1]]
        keys = [-np.array(self._written)[found], -scores[found]]  # the last key sorts first
        if self._mean_idf <= 0:
            keys.append(-shared[found])
        best = found[np.lexsort(keys)][:k]
        return [(self._ids[slot], float(scores[slot])) for slot in best]

    def _score(self, query: str) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Return the scores, (num_slots,), and the numbers of distinct query words shared."""
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
            # Copies, because an array cannot grow while a view of it exists, e.g. in a traceback.
            slots, frequencies = np.array(holders), np.array(counts)
            scores[slots] += (
                repeats * idf * (self.k1 + 1) * frequencies / (frequencies + norms[slots])
            )
            shared[slots] += 1
        return scores, shared

    def _idf(self, df: int) -> float:
        return math.log(len(self._slots) - df + 0.5) - math.log(df + 0.5)

    def _average_idf(self) -> float:
        """Return the mean idf over the vocabulary.

        Words of equal df have the same idf, so the sum has one term per distinct df; `fsum` makes
        it independent of their order."""
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
        """Update the number of words per df after one word's df changed; df 0 is not counted."""
        for df, change in ((old_df, -1), (new_df, 1)):
            if df:
                self._words_by_df[df] += change
                if not self._words_by_df[df]:
                    del self._words_by_df[df]
