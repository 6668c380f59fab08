"""The memory that a manager edits, with the lineage of every item."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from finemem_lib.operations import MALFORMED, UNKNOWN_OPERATION
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import (
    OPERATION_KINDS,
    InvalidOperation,
    MemoryDelta,
    MemoryItem,
    Operation,
    OperationOutcome,
    Store,
    Write,
)

Eviction = Literal["oldest", "first_created", "least_recent", "refuse"]
Duplicates = Literal["refuse", "allow"]
UNKNOWN_ID = "unknown id"
ID_IN_USE = "id in use"
EMPTY_CONTENT = "empty content"
EXACT_DUPLICATE = "exact duplicate"
OVER_CAPACITY = "over capacity"
TOO_LONG = "too long"
UNKNOWN_STORE = "unknown store"
REWRITE_ONLY = "core memory is rewritten only"

REASONS = (
    UNKNOWN_ID,
    ID_IN_USE,
    EMPTY_CONTENT,
    EXACT_DUPLICATE,
    OVER_CAPACITY,
    TOO_LONG,
    UNKNOWN_STORE,
    REWRITE_ONLY,
    *MALFORMED,
)
"""Every reason an invalid `OperationOutcome` can carry; the parser gives those in `MALFORMED`."""


class FlatMemory:
    """A memory store with one list of items; ids "1", "2", ... are never reused.

    Args:
        capacity: Largest number of items, at least 1; `None` for no limit.
        eviction: Which items a write evicts when it does not fit: first the item with the oldest
            last write ("oldest"), the oldest creation ("first_created"), or the oldest last write
            or retrieval ("least_recent"). "refuse" makes the write invalid instead.
        max_item_tokens: Largest number of tokens in one item, at least 1; `None` for no limit.
        duplicates: "refuse" makes a write invalid if an item of the memory already has the same
            content, including the item to be updated: a write that changes nothing must not move
            credit to its step. "allow" stores it.
        token_budget: Largest number of tokens in all items together, at least 1; `None` for no
            limit.

    Raises:
        ValueError: a setting is out of range.

    >>> memory = FlatMemory(capacity=1)
    >>> outcomes, delta = memory.apply([Operation("INSERT", "Mia lives in Rome")], step=1)
    >>> outcomes, delta = memory.apply([Operation("INSERT", "Ana sails"), Operation("SKIP")], 2)
    >>> [item.content for item in memory.items], delta.evicted, memory.tokens
    (['Ana sails'], ('1',), 2)
    """

    stores: tuple[Store | None, ...] = (None, "flat")
    """The stores that an operation may name."""

    def __init__(
        self,
        capacity: int | None = None,
        eviction: Eviction = "oldest",
        max_item_tokens: int | None = None,
        duplicates: Duplicates = "refuse",
        token_budget: int | None = None,
    ) -> None:
        self.capacity = capacity
        self.eviction = eviction
        self.max_item_tokens = max_item_tokens
        self.duplicates = duplicates
        self.token_budget = token_budget
        for name in ("capacity", "max_item_tokens", "token_budget"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ValueError(
                    f"{type(self).__name__}: {name} is {limit}, expected at least 1 "
                    "(None: no limit)"
                )
        for name, kinds in (("eviction", Eviction), ("duplicates", Duplicates)):
            value = getattr(self, name)
            if value not in (names := get_args(kinds)):
                raise ValueError(
                    f"{type(self).__name__}: {name} is {value!r}, expected one of {names}"
                )
        self._items: dict[str, MemoryItem] = {}
        # In order of eviction. An OrderedDict finds its first key in constant time; a dict steps
        # over every key that was removed at its front.
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._contents: set[tuple[Store, str]] = set()
        self._tokens = 0
        self._last_id = 0
        self._last_step = 0

    @property
    def items(self) -> tuple[MemoryItem, ...]:
        """All items, in order of creation."""
        return tuple(self._items.values())

    @property
    def tokens(self) -> int:
        """L(M), the number of tokens in the contents of all items."""
        return self._tokens

    def get(self, item_id: str) -> MemoryItem | None:
        """Return the item with this id, or `None`."""
        return self._items.get(item_id)

    def apply(
        self, operations: Sequence[Operation | InvalidOperation], step: int
    ) -> tuple[tuple[OperationOutcome, ...], MemoryDelta]:
        """Apply the operations of one step in order.

        Args:
            operations: All operations of the step. An INSERT with an id creates its item under
                that id; only a replay emits such operations.
            step: Number of the step, greater than in the previous call.

        Returns:
            One outcome per operation, and the net change of the step: it leaves out items that
            were created and removed within the step, and orders `written` by the last write.

        Raises:
            ValueError: `step` is not greater than in the previous call.
        """
        if step <= self._last_step:
            raise ValueError(
                f"{type(self).__name__}.apply: step is {step}, expected more than "
                f"{self._last_step}; pass all operations of a step in one call"
            )
        self._last_step = step
        created: set[str] = set()
        written: dict[str, None] = {}
        removed: list[str] = []
        evicted: list[str] = []
        outcomes = []
        for position, operation in enumerate(operations):
            if isinstance(operation, InvalidOperation):
                outcomes.append(OperationOutcome(None, False, operation.reason, raw=operation.raw))
                continue
            resolved = self._resolved(operation)
            if resolved.store == "core":
                operation = resolved  # recorded as it is carried out
            if (reason := self._refusal(resolved)) is not None:
                outcomes.append(OperationOutcome(operation, False, reason))
                continue
            self._last_id += resolved.kind == "INSERT"
            item_id = None if resolved.kind == "SKIP" else resolved.item_id
            if resolved.kind in ("INSERT", "UPDATE"):
                item_id = item_id or self._new_id(resolved)
                if item_id not in self._items:
                    created.add(item_id)
                evicted += self._write_and_evict(item_id, resolved, step, position)
                written.pop(item_id, None)
                written[item_id] = None
            elif item_id in self._items:  # a DELETE; one of nothing may count as done
                self._remove(item_id)
                removed.append(item_id)
            else:
                item_id = None
            outcomes.append(OperationOutcome(operation, True, item_id=item_id))
        delta = MemoryDelta(
            written=tuple(self._items[item_id] for item_id in written if item_id in self._items),
            removed=tuple(item_id for item_id in removed if item_id not in created),
            evicted=tuple(item_id for item_id in evicted if item_id not in created),
        )
        return tuple(outcomes), delta

    def touch(self, item_ids: Iterable[str]) -> None:
        """Mark items as just retrieved, so that "least_recent" evicts them later.

        Args:
            item_ids: Ids of the items retrieved together; ids not in the memory are ignored.
        """
        if self.eviction == "least_recent":
            found = {*item_ids} & self._queue.keys()
            for item_id in sorted(found, key=lambda name: self._items[name].lineage):
                self._queue.move_to_end(item_id)

    def _overfull(self, items: int, tokens: int) -> bool:
        return (self.capacity is not None and items > self.capacity) or (
            self.token_budget is not None and tokens > self.token_budget
        )

    def _write_and_evict(
        self, item_id: str, operation: Operation, step: int, position: int
    ) -> list[str]:
        """Write an item and return the ids of the items evicted to make room for it."""
        write = Write(step, operation.kind, position)
        self._write(item_id, operation.content or "", write, operation.store or "flat")
        evicted = []
        while self._overfull(len(self._items), self._tokens):
            evicted.append(next(other for other in self._queue if other != item_id))
            self._remove(evicted[-1])
        return evicted

    def _new_id(self, operation: Operation) -> str:
        """Return the id of an item that an operation creates."""
        return str(self._last_id)

    def _resolved(self, operation: Operation) -> Operation:
        """Return the operation with the fields that the memory fills in; here none."""
        return operation

    def _refusal(self, operation: Operation) -> str | None:
        """Return the reason why the operation cannot be applied now, or `None` if it can."""
        if operation.kind not in OPERATION_KINDS:
            return UNKNOWN_OPERATION
        if operation.store not in self.stores:
            return UNKNOWN_STORE
        if operation.kind in ("UPDATE", "DELETE") and operation.item_id not in self._items:
            return UNKNOWN_ID
        if operation.kind == "INSERT" and operation.item_id in self._items:
            return ID_IN_USE
        if operation.kind in ("INSERT", "UPDATE"):
            content = operation.content or ""
            if not content.strip():
                return EMPTY_CONTENT
            tokens = count_tokens(content)
            for limit in (self.max_item_tokens, self.token_budget):
                if limit is not None and tokens > limit:
                    return TOO_LONG
            stored = (operation.store or "flat", content) in self._contents
            if stored and self.duplicates == "refuse":
                return EXACT_DUPLICATE
            if self.eviction == "refuse":
                old = self._items.get(operation.item_id or "")
                more = tokens - (count_tokens(old.content) if old else 0)
                if self._overfull(len(self._items) + (old is None), self._tokens + more):
                    return OVER_CAPACITY
        return None

    def _write(self, item_id: str, content: str, write: Write, store: Store) -> None:
        old = self._items.get(item_id)
        if old is not None:
            self._forget(old)
        lineage = (*old.lineage, write) if old is not None else (write,)
        self._items[item_id] = MemoryItem(item_id, content, lineage, store)
        self._contents.add((store, content))
        self._tokens += count_tokens(content)
        self._queue.setdefault(item_id)
        if self.eviction != "first_created":
            self._queue.move_to_end(item_id)

    def _remove(self, item_id: str) -> None:
        self._forget(self._items.pop(item_id))
        self._queue.pop(item_id, None)

    def _forget(self, item: MemoryItem) -> None:
        # Consulted only where no two items of a store can share a content.
        self._contents.discard((item.store, item.content))
        self._tokens -= count_tokens(item.content)
