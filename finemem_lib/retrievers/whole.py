"""No retrieval: the whole memory, for systems that put all items into the prompt."""

from __future__ import annotations

from finemem_lib.retrieval import Retriever
from finemem_lib.retrievers.ranking import WriteOrder
from finemem_lib.trajectory import MemoryDelta


class WholeMemory(Retriever):
    """Returns the same items for every query, the last written first, each with score 0.

    A system that shows all of its memory asks for more items than the memory can hold.
    """

    def __init__(self) -> None:
        self._order = WriteOrder()

    def update(self, delta: MemoryDelta) -> None:
        self._order.update(delta)

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        return self._order.best(dict.fromkeys(self._order, 0.0), k)
