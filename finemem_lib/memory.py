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

REASONS = (
    UNKNOWN_ID,
    ID_IN_USE,
    EMPTY_CONTENT,
    EXACT_DUPLICATE,
    OVER_CAPACITY,
    TOO_LONG,
    *MALFORMED,
)
"""Every reason an invalid `OperationOutcome` can carry; the malformed ones are the parser's."""


class FlatMemory:
    """One store of items with ids "1", "2", ... that are never used again.

    Args:
        capacity: Most items it holds, at least 1; `None` for no limit.
        eviction: A write that does not fit evicts other items until it does, first the one whose
            last write ("oldest"), whose creation ("first_created"), or whose last write or
            retrieval ("least_recent") lies furthest back; or it is refused ("refuse").
        max_item_tokens: Most tokens of one item, at least 1; `None` for no limit.
        duplicates: "refuse" makes a write invalid whose content equals that of an item in the
            memory, also of the one to be updated: a write that changes nothing must not move credit
            to its step. "allow" stores it.
        token_budget: Most tokens of all items together, at least 1; `None` for no limit.

    Raises:
        ValueError: a setting is out of range.

    >>> memory = FlatMemory(capacity=1)
    >>> outcomes, delta = memory.apply([Operation("INSERT", "Mia lives in Rome")], step=1)
    >>> outcomes, delta = memory.apply([Operation("INSERT", "Ana sails"), Operation("SKIP")], 2)
    >>> [item.content for item in memory.items], delta.evicted, memory.tokens
    (['Ana sails'], ('1',), 2)
    """

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
                    f"FlatMemory: {name} is {limit}, expected at least 1 (None: no limit)"
                )
        for name, kinds in (("eviction", Eviction), ("duplicates", Duplicates)):
            value = getattr(self, name)
            if value not in (names := get_args(kinds)):
                raise ValueError(f"FlatMemory: {name} is {value!r}, expected one of {names}")
        self._items: dict[str, MemoryItem] = {}
        # Next to be evicted first. An OrderedDict finds its first key in constant time, also after
        # many removals at the front; a dict walks over every one of them.
        self._queue: OrderedDict[str, None] = OrderedDict()
        self._contents: set[str] = set()
        self._tokens = 0
        self._last_id = 0
        self._last_step = 0

    @property
    def items(self) -> tuple[MemoryItem, ...]:
        """All items, in order of creation."""
        return tuple(self._items.values())

    @property
    def tokens(self) -> int:
        """L(M), the summed length of the items' contents in tokens."""
        return self._tokens

    def get(self, item_id: str) -> MemoryItem | None:
        """Return the item of this id, or `None`."""
        return self._items.get(item_id)

    def apply(
        self, operations: Sequence[Operation | InvalidOperation], step: int
    ) -> tuple[tuple[OperationOutcome, ...], MemoryDelta]:
        """Carry out the operations of one step in their order.

        Args:
            operations: All operations of the step. An INSERT that names an id creates its item
                under it; only a replay emits such operations.
            step: Number of the step, greater than in the call before.

        Returns:
            One outcome per operation, and the net change of the step: an item that came and went
            within it does not appear, and `written` is in the order of the last writes.

        Raises:
            ValueError: `step` is not greater than in the call before.
        """
        if step <= self._last_step:
            raise ValueError(
                f"FlatMemory.apply: step is {step}, expected more than {self._last_step}; "
                "pass all operations of a step in one call"
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
            reason = self._objection(operation)
            if reason is not None:
                outcomes.append(OperationOutcome(operation, False, reason))
                continue
            item_id = operation.item_id or ""
            if operation.kind == "INSERT":
                self._last_id += 1
                item_id = item_id or str(self._last_id)
                created.add(item_id)
            if operation.kind in ("INSERT", "UPDATE"):
                content = operation.content or ""
                self._write(item_id, content, Write(step, operation.kind, position))
                while self._overfull(len(self._items), self._tokens):
                    oldest = next(other for other in self._queue if other != item_id)
                    self._remove(oldest)
                    evicted.append(oldest)
                written.pop(item_id, None)
                written[item_id] = None
            elif operation.kind == "DELETE":
                self._remove(item_id)
                removed.append(item_id)
            named = None if operation.kind == "SKIP" else item_id
            outcomes.append(OperationOutcome(operation, True, item_id=named))
        delta = MemoryDelta(
            written=tuple(self._items[item_id] for item_id in written if item_id in self._items),
            removed=tuple(item_id for item_id in removed if item_id not in created),
            evicted=tuple(item_id for item_id in evicted if item_id not in created),
        )
        return tuple(outcomes), delta

    def touch(self, item_ids: Iterable[str]) -> None:
        """Note that items were retrieved together: "least_recent" evicts them later.

        Args:
            item_ids: Items of equal age from now on; those no longer present are passed over.
        """
        if self.eviction == "least_recent":
            found = {*item_ids} & self._items.keys()
            for item_id in sorted(found, key=lambda name: self._items[name].lineage):
                self._queue.move_to_end(item_id)

    def _overfull(self, items: int, tokens: int) -> bool:
        return (self.capacity is not None and items > self.capacity) or (
            self.token_budget is not None and tokens > self.token_budget
        )

    def _objection(self, operation: Operation) -> str | None:
        """Return why the operation cannot be applied to the memory as it is, or `None`."""
        if operation.kind not in OPERATION_KINDS:
            return UNKNOWN_OPERATION
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
            if self.duplicates == "refuse" and content in self._contents:
                return EXACT_DUPLICATE
            if self.eviction == "refuse":
                old = self._items.get(operation.item_id or "")
                more = tokens - (count_tokens(old.content) if old else 0)
                if self._overfull(len(self._items) + (old is None), self._tokens + more):
                    return OVER_CAPACITY
        return None

    def _write(self, item_id: str, content: str, write: Write) -> None:
        old = self._items.get(item_id)
        if old is not None:
            self._forget(old.content)
        self._items[item_id] = MemoryItem(
            item_id, content, (*old.lineage, write) if old is not None else (write,)
        )
        self._contents.add(content)
        self._tokens += count_tokens(content)
        self._queue.setdefault(item_id)
        if self.eviction != "first_created":
            self._queue.move_to_end(item_id)

    def _remove(self, item_id: str) -> None:
        self._forget(self._items.pop(item_id).content)
        del self._queue[item_id]

    def _forget(self, content: str) -> None:
        self._contents.discard(content)  # consulted only where no two items can share a content
        self._tokens -= count_tokens(content)
