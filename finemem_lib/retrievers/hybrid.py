"""Hybrid retrieval: reciprocal rank fusion of BM25's ranking and the dense ranking."""

from __future__ import annotations

from finemem_lib.retrieval import BM25Retriever, Retriever
from finemem_lib.retrievers.dense import DenseRetriever
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.ranking import Newest, reciprocal_rank_fusion
from finemem_lib.trajectory import MemoryDelta


class HybridRetriever:
    """A retriever by `reciprocal_rank_fusion` of complete rankings; in ties, last written first.

    Args:
        model_name: Sentence encoder of the dense ranking, see `DenseRetriever`.

    Raises:
        ValueError: the model cannot be loaded.
    """

    def __init__(self, model_name: str = DENSE_MODEL) -> None:
        self._newest = Newest()
        self._parts: tuple[Retriever, ...] = (BM25Retriever(), DenseRetriever(model_name))

    def update(self, delta: MemoryDelta) -> None:
        """Apply one change of the memory to both indexes.

        Args:
            delta: The change.

        Raises:
            KeyError: an item to be removed is not in the index: an earlier update is missing.
        """
        self._newest.update(delta)
        for part in self._parts:
            part.update(delta)

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        """Return (item id, fused score) of at most `k` items, best first.

        Args:
            query: Text to compare with the items.
            k: Largest number of items to return, at least 1.

        Raises:
            ValueError: `k` is less than 1.
        """
        every = max(1, len(self._newest))
        rankings = [[item_id for item_id, _ in part.search(query, every)] for part in self._parts]
        return self._newest.best(reciprocal_rank_fusion(rankings), k)
