"""Rank items by score, in ties the last written first, and fuse rankings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from finemem_lib.trajectory import MemoryDelta, last_write_key

FUSION_CONSTANT = 60
"""The constant of reciprocal rank fusion in Cormack, Clarke and Büttcher (2009)."""


class WriteOrder:
    """The ids of a memory's items, in the order of their last writes."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}

    def __iter__(self) -> Iterator[str]:
        return iter(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def update(self, delta: MemoryDelta) -> None:
        """Apply one change of the memory.

        Args:
            delta: The change.

        Raises:
            KeyError: an item to be removed is unknown: an earlier update is missing.
        """
        for item_id in delta.removed + delta.evicted:
            del self._ids[item_id]
        for item in sorted(delta.written, key=last_write_key):
            self._ids.pop(item.item_id, None)
            self._ids[item.item_id] = None

    def best(self, scores: Mapping[str, float], k: int) -> list[tuple[str, float]]:
        """Return (item id, score) of the `k` best items; in ties, the last written first.

        Args:
            scores: Score by item id; items without a score are left out.
            k: Largest number of items to return, at least 1.

        Raises:
            ValueError: `k` is less than 1.
        """
        if k < 1:
            raise ValueError(f"search: k is {k}, expected at least 1")
        known = [name for name in reversed(self._ids) if name in scores]
        return [(name, scores[name]) for name in sorted(known, key=lambda one: -scores[one])[:k]]


def reciprocal_rank_fusion(
    rankings: Sequence[Sequence[str]], constant: int = FUSION_CONSTANT
) -> dict[str, float]:
    """Return the score ``sum_r 1 / (constant + rank_r)`` of every item in the rankings.

    A ranking without an item adds 0 to the item's score. Source: Cormack, Clarke and Büttcher
    (2009), Reciprocal rank fusion outperforms Condorcet and individual rank learning methods.

    Args:
        rankings: Item ids, best first; ranks count from 1.
        constant: Above 0; a larger constant reduces the weight of the first ranks.

    >>> fused = reciprocal_rank_fusion([["a", "b"], ["b", "c"]])
    >>> sorted(fused, key=fused.get, reverse=True), fused["b"] == 1 / 62 + 1 / 61
    (['b', 'a', 'c'], True)
    """
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for ranking in rankings:
        for rank, item_id in enumerate(ranking, start=1):
            parts[item_id].append(1 / (constant + rank))
    # fsum makes ties independent of the order of the rankings.
    return {item_id: math.fsum(some) for item_id, some in parts.items()}
