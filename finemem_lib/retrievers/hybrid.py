"""Hybrid retrieval: reciprocal rank fusion of BM25's ranking and the dense ranking."""

from __future__ import annotations

from finemem_lib.retrieval import BM25Retriever, Retriever
from finemem_lib.retrievers.dense import DenseRetriever
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.ranking import WriteOrder, reciprocal_rank_fusion
from finemem_lib.trajectory import MemoryDelta


class HybridRetriever(Retriever):
    """A retriever by `reciprocal_rank_fusion` of complete rankings; in ties, last written first.

    Args:
        model_name: Sentence encoder of the dense ranking, see `DenseRetriever`.

    Raises:
        ValueError: the model cannot be loaded.
    """

    def __init__(self, model_name: str = DENSE_MODEL) -> None:
        self._order = WriteOrder()
        self._parts: tuple[Retriever, ...] = (BM25Retriever(), DenseRetriever(model_name))

    def update(self, delta: MemoryDelta) -> None:
        self._order.update(delta)
        for part in self._parts:
            part.update(delta)

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        every = max(1, len(self._order))
        rankings = [[item_id for item_id, _ in part.search(query, every)] for part in self._parts]
        return self._order.best(reciprocal_rank_fusion(rankings), k)
