"""Graph retrieval: from BM25's hits, follow links to items that share a name or a rare word.

The items are the nodes. An item links to another item by every term that both contain and that is a
name or number in the first item or occurs in at most `MAX_LINK_DF` items. A hit of rank r has the
score 1 / r and distributes half as much, equally over its link terms, and for each term equally
over the other items with that term:

    score(j) = 1 / r_j + 1/2 sum_{hits i} sum_{terms t of i and j} 1 / (r_i |L(i)| (df(t) - 1))

where L(i) are the link terms of i, df(t) is the number of items with t, only the first
`LINKING_HITS` hits distribute, and 1 / r_j is 0 for items that BM25 does not find. This is one step
of a random walk that stays at its node with probability 2/3. Links change with the memory: a word
that becomes common is no longer a link.

Differs from the paper: Fine-Mem retrieves with BM25 and asks what graphs would change, but defines
no graph. Differs from systems like HippoRAG (Gutiérrez et al., 2024): no language model extracts
entities or relations (names and numbers are recognised by their spelling), the walk takes one step
instead of converging, and similar terms have no synonym links.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict

from finemem_lib.data.sentences import STOPWORDS, sentences
from finemem_lib.retrieval import BM25Retriever, Retriever
from finemem_lib.retrievers.ranking import WriteOrder
from finemem_lib.text import words
from finemem_lib.trajectory import MemoryDelta

LINKING_HITS = 10
"""Number of first hits that distribute score along links."""

LINK_WEIGHT = 0.5
"""Distributed score of a hit, as a share of its own score."""

MAX_LINK_DF = 3
"""Largest number of items with a word that links without being a name."""

_WORD = re.compile(r"\w+")


def names(content: str) -> frozenset[str]:
    """Return the names and numbers of a text, in lower case.

    A name is a word with a capital letter that does not begin a sentence; a number is a word with a
    digit.

    Args:
        content: Any text.

    >>> sorted(names("Yesterday Mia met Dr. Okoye in Rome. She left at 9."))
    ['9', 'dr', 'mia', 'okoye', 'rome']
    """
    found = {
        word.lower()
        for sentence in sentences(content)
        for place, word in enumerate(_WORD.findall(sentence))
        if (place and word[0].isupper()) or any(letter.isdigit() for letter in word)
    }
    return frozenset(found - STOPWORDS)


class GraphRetriever(Retriever):
    """A retriever of BM25's hits and the items linked to the first hits.

    The module's docstring defines the score. In ties, the last written item comes first. Without
    links the order is BM25's.
    """

    def __init__(self) -> None:
        self._bm25 = BM25Retriever()
        self._order = WriteOrder()
        self._terms: dict[str, frozenset[str]] = {}
        self._names: dict[str, frozenset[str]] = {}
        self._holders: defaultdict[str, set[str]] = defaultdict(set)

    def update(self, delta: MemoryDelta) -> None:
        self._bm25.update(delta)
        self._order.update(delta)
        gone = delta.removed + delta.evicted
        changed = tuple(item.item_id for item in delta.written if item.item_id in self._terms)
        for item_id in gone + changed:
            for term in self._terms.pop(item_id):
                self._holders[term].discard(item_id)
                if not self._holders[term]:
                    del self._holders[term]
            del self._names[item_id]
        for item in delta.written:
            self._terms[item.item_id] = frozenset(words(item.content)) - STOPWORDS
            self._names[item.item_id] = names(item.content)
            for term in self._terms[item.item_id]:
                self._holders[term].add(item.item_id)

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        hits = self._bm25.search(query, max(1, len(self._order)))
        parts = {item_id: [1 / rank] for rank, (item_id, _) in enumerate(hits, start=1)}
        passed: defaultdict[str, dict[str, float]] = defaultdict(dict)  # by term and hit
        for rank, (item_id, _) in enumerate(hits[:LINKING_HITS], start=1):
            links = self._links(item_id)
            for term in links:
                passed[term][item_id] = LINK_WEIGHT / (rank * len(links))
        for term, from_hits in passed.items():
            others = len(self._holders[term]) - 1
            for item_id in self._holders[term]:
                part = math.fsum(value for hit, value in from_hits.items() if hit != item_id)
                if part:
                    parts.setdefault(item_id, []).append(part / others)
        # fsum makes ties independent of the history of the index.
        return self._order.best({name: math.fsum(some) for name, some in parts.items()}, k)

    def _links(self, item_id: str) -> list[str]:
        """Return the terms of an item that link it to other items."""
        return [
            term
            for term in self._terms[item_id]
            if 1 < len(self._holders[term])
            and (term in self._names[item_id] or len(self._holders[term]) <= MAX_LINK_DF)
        ]
