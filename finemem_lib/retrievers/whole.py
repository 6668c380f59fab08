"""No retrieval: the whole memory, as systems read it that put all of it into the prompt."""

from __future__ import annotations

from finemem_lib.retrievers.ranking import Newest
from finemem_lib.trajectory import MemoryDelta


class WholeMemory:
    """Returns items whatever is asked, the one written last first, each with score 0.

    A system that shows all of its memory asks for more items than the memory can hold.
    """

    def __init__(self) -> None:
        self._newest = Newest()
        self._scores: dict[str, float] = {}

    def update(self, delta: MemoryDelta) -> None:
        """Follow one change of the memory.

        Args:
            delta: The change.

        Raises:
            KeyError: an item to be removed is not known: an update was missed.
        """
        self._newest.update(delta)
        for item_id in delta.removed + delta.evicted:
            del self._scores[item_id]
        self._scores |= dict.fromkeys((item.item_id for item in delta.written), 0.0)

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        """Return (item id, 0.0) of the `k` items that were written last.

        Args:
            query: Is not looked at.
            k: Most items to return, at least 1.

        Raises:
            ValueError: `k` is less than 1.
        """
        return self._newest.best(self._scores, k)
