"""Retrieval from a layered memory: the core always, then each searched store by itself."""

from __future__ import annotations

from collections.abc import Callable

from finemem_lib.retrieval import Retriever
from finemem_lib.trajectory import MemoryDelta, Store

SEARCHED: tuple[Store, ...] = ("semantic", "episodic")
"""The stores that are searched, in the order of their hits."""


class LayeredRetriever(Retriever):
    """The core, then the best of the semantic and of the episodic items, each of its own index.

    Scores of two indexes cannot be compared, so the hits stay in the order of the stores. The core
    is shown without a search and has no score. Items of a flat memory are searched as semantic.

    Args:
        new_index: Returns an empty index for one store.

    >>> from finemem_lib.retrieval import BM25Retriever
    >>> from finemem_lib.trajectory import MemoryItem, Write
    >>> retriever = LayeredRetriever(BM25Retriever)
    >>> retriever.update(MemoryDelta(written=(
    ...     MemoryItem("core", "A journey", (Write(1, "UPDATE", 0),), "core"),
    ...     MemoryItem("1", "On day 1 Mia saw Rome", (Write(1, "INSERT", 1),), "episodic"),
    ...     MemoryItem("2", "Mia owns cats", (Write(1, "INSERT", 2),), "semantic"),
    ... )))
    >>> [item_id for item_id, _ in retriever.search("Where is Mia?", 1)]
    ['core', '2', '1']
    """

    def __init__(self, new_index: Callable[[], Retriever]) -> None:
        self._indexes = {store: new_index() for store in SEARCHED}
        self._core: dict[str, None] = {}
        self._stores: dict[str, Store] = {}

    def update(self, delta: MemoryDelta) -> None:
        for item in delta.written:
            self._stores[item.item_id] = "semantic" if item.store == "flat" else item.store
        stores = {
            item_id: self._stores[item_id]
            for item_id in (*delta.removed, *delta.evicted, *(one.item_id for one in delta.written))
        }
        for store, index in self._indexes.items():
            index.update(
                MemoryDelta(
                    tuple(one for one in delta.written if stores[one.item_id] == store),
                    tuple(one for one in delta.removed if stores[one] == store),
                    tuple(one for one in delta.evicted if stores[one] == store),
                )
            )
        for item_id in (*delta.removed, *delta.evicted):
            self._core.pop(item_id, None)
            del self._stores[item_id]
        for item in delta.written:
            if item.store == "core":
                self._core[item.item_id] = None

    def search(self, query: str, k: int) -> list[tuple[str, float | None]]:
        found: list[tuple[str, float | None]] = [(item_id, None) for item_id in self._core]
        for index in self._indexes.values():
            found += index.search(query, k)
        return found
