"""No retrieval: the whole memory, as systems read it that put all of it into the prompt."""

from __future__ import annotations

from finemem_lib.retrieval import Retriever
from finemem_lib.retrievers.ranking import WriteOrder
from finemem_lib.trajectory import MemoryDelta


class WholeMemory(Retriever):
    """Returns items whatever is asked, the one written last first, each with score 0.

    A system that shows all of its memory asks for more items than the memory can hold.
    """

    def __init__(self) -> None:
        self._order = WriteOrder()

    def update(self, delta: MemoryDelta) -> None:
        self._order.update(delta)

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        return self._order.best(dict.fromkeys(self._order, 0.0), k)
