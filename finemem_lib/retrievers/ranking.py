"""Rank items by score, the most recently written first among equals, and fuse rankings."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

from finemem_lib.trajectory import MemoryDelta

FUSION_CONSTANT = 60
"""The constant of reciprocal rank fusion in Cormack, Clarke and Büttcher (2009)."""


class Newest:
    """The ids of a memory's items, in the order of their last writes."""

    def __init__(self) -> None:
        self._ids: dict[str, None] = {}  # the item written last at the end

    def __len__(self) -> int:
        return len(self._ids)

    def update(self, delta: MemoryDelta) -> None:
        """Follow one change of the memory.

        Args:
            delta: The change.

        Raises:
            KeyError: an item to be removed is not known: an update was missed.
        """
        for item_id in delta.removed + delta.evicted:
            del self._ids[item_id]
        last = {one.item_id: one.lineage[-1] for one in delta.written}
        for item_id in sorted(last, key=lambda name: (last[name].step, last[name].position)):
            self._ids.pop(item_id, None)
            self._ids[item_id] = None

    def best(self, scores: Mapping[str, float], k: int) -> list[tuple[str, float]]:
        """Return (item id, score) of the `k` best items, among equals the one written last first.

        Args:
            scores: Score by item id; items without one are left out.
            k: Most items to return, at least 1.

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
    """Return the score ``sum_r 1 / (constant + rank_r)`` of everything that a ranking holds.

    A ranking that does not hold an item adds nothing to it. Source: Cormack, Clarke and Büttcher
    (2009), Reciprocal rank fusion outperforms Condorcet and individual rank learning methods.

    Args:
        rankings: Item ids, best first; ranks count from 1.
        constant: Above 0; the larger, the less the first ranks stand out.

    >>> fused = reciprocal_rank_fusion([["a", "b"], ["b", "c"]])
    >>> sorted(fused, key=fused.get, reverse=True), fused["b"] == 1 / 62 + 1 / 61
    (['b', 'a', 'c'], True)
    """
    parts: defaultdict[str, list[float]] = defaultdict(list)
    for ranking in rankings:
        for rank, item_id in enumerate(ranking, start=1):
            parts[item_id].append(1 / (constant + rank))
    # fsum, so that the order of the rankings cannot break a tie.
    return {item_id: math.fsum(some) for item_id, some in parts.items()}
