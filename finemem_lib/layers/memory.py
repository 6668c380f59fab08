"""Mem-alpha's memory in three layers: core, semantic and episodic (arXiv 2509.25911).

The core is one paragraph that every reader sees; it can only be rewritten. Semantic items (facts,
examples, rules) and episodic items (dated events) are inserted, updated and deleted. Items,
lineage, limits and records are those of `FlatMemory`, so code that reads a `Trajectory` works with
both memories.

Differs from the paper: ids are never reused; the published code draws four hexadecimal digits and
edits the first item that matches. Exact duplicates are refused in updates too (the published code
checks inserts only), because a write that changes nothing must not earn credit. An item limit
counts semantic and episodic items, a token budget all tokens; the core is never evicted. The paper
has no such limits. Lengths are counted in tokens of `text.TOKENIZER`. Where paper and published
code differ, `LayerRules` has a setting.
"""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass
from typing import Any, Literal, get_args

from finemem_lib.memory import (
    EMPTY_CONTENT,
    EXACT_DUPLICATE,
    OVER_CAPACITY,
    REWRITE_ONLY,
    TOO_LONG,
    UNKNOWN_ID,
    UNKNOWN_STORE,
    FlatMemory,
)
from finemem_lib.text import count_tokens, truncate_tokens
from finemem_lib.trajectory import MemoryItem, Operation, Store, Write

LAYERS: tuple[Store, ...] = ("core", "semantic", "episodic")
"""The stores of a layered memory, in the order in which the reader sees them."""

CORE_ID = "core"
"""Id of the first core; after it was cleared, the next core has the id "core-2"."""

CUT_MARK = " [cut]"
"""Text at the end of a core that was cut to the limit."""

LongCore = Literal["cut", "refuse"]
CoreDelete = Literal["refuse", "clear"]
UnknownDelete = Literal["refuse", "succeed"]


@dataclass(frozen=True, slots=True)
class LayerRules:
    """Behaviour of a layered memory in edge cases.

    Attributes:
        core_tokens: Largest number of tokens of the core (512 in the paper), at least 1.
        long_core: "cut" shortens a longer core to the limit and marks it, as in the published code;
            "refuse" makes the write invalid.
        core_delete: "refuse" makes a DELETE of the core invalid, as in the paper; "clear" clears
            the core, as in the published code.
        unknown_delete: "refuse" makes a DELETE of an unknown id invalid; "succeed" counts it as
            applied without effect, as in the published code. An UPDATE of an unknown id is always
            invalid.

    Raises:
        ValueError: a value is not allowed.

    >>> LayerRules(core_delete="keep")
    Traceback (most recent call last):
    ...
    ValueError: layer rules: core_delete is 'keep', expected one of refuse, clear
    """

    core_tokens: int = 512
    long_core: LongCore = "cut"
    core_delete: CoreDelete = "refuse"
    unknown_delete: UnknownDelete = "refuse"

    def __post_init__(self) -> None:
        if self.core_tokens < 1:
            raise ValueError(
                f"layer rules: core_tokens is {self.core_tokens!r}, expected at least 1"
            )
        for name, choice in (
            ("long_core", LongCore),
            ("core_delete", CoreDelete),
            ("unknown_delete", UnknownDelete),
        ):
            if (value := getattr(self, name)) not in get_args(choice):
                expected = ", ".join(get_args(choice))
                raise ValueError(f"layer rules: {name} is {value!r}, expected one of {expected}")


PUBLISHED_RULES = LayerRules(core_delete="clear", unknown_delete="succeed")
"""The rules of Mem-alpha's published code."""


class LayeredMemory(FlatMemory):
    """Memory with a core paragraph, semantic items and episodic items.

    An operation names its store. Without a store, an INSERT goes to the semantic items, and an
    UPDATE or DELETE to the item with its id, so managers of the flat memory work here too. An
    UPDATE of the core creates it if there is none; every rewrite extends the lineage of the same
    item. Ids begin with the first letter of the store: "s1", "e2".

    Args:
        rules: Behaviour in edge cases; default: `LayerRules()`.
        limits: As in `FlatMemory`. The core is never evicted and enters only `token_budget`;
            duplicates are those within a store.

    >>> memory = LayeredMemory()
    >>> outcomes, delta = memory.apply(
    ...     [
    ...         Operation("UPDATE", "Mia plans a journey", store="core"),
    ...         Operation("INSERT", "On day 3 Mia saw Rome", store="episodic"),
    ...     ],
    ...     step=1,
    ... )
    >>> [(item.item_id, item.store) for item in memory.items]
    [('core', 'core'), ('e1', 'episodic')]
    >>> timestamp_of(memory.items[1].content)
    'day 3'
    """

    stores = (None, *LAYERS)

    def __init__(self, *, rules: LayerRules | None = None, **limits: Any) -> None:
        super().__init__(**limits)
        self.rules = rules or LayerRules()
        self._core_id = CORE_ID
        self._cleared = 0

    @property
    def core(self) -> MemoryItem | None:
        """The core item; `None` before its first write and after it was cleared."""
        return self._items.get(self._core_id)

    def _resolved(self, operation: Operation) -> Operation:
        """Return the operation with its store and, for the core, with its id and a cut content."""
        item = self._items.get(operation.item_id or "")
        store = operation.store or (item.store if item else "semantic")
        if operation.kind not in ("INSERT", "UPDATE", "DELETE"):
            return operation
        if store != "core":
            return dataclasses.replace(operation, store=store)
        content = operation.content
        if content is not None and self.rules.long_core == "cut":
            content = cut_core(content, self.rules.core_tokens)
        return Operation(operation.kind, content, self._core_id, store)

    def _new_id(self, operation: Operation) -> str:
        return f"{(operation.store or 'semantic')[0]}{self._last_id}"

    def _overfull(self, items: int, tokens: int) -> bool:
        return super()._overfull(items - (self.core is not None), tokens)

    def _refusal(self, operation: Operation) -> str | None:
        if operation.store not in self.stores:
            return UNKNOWN_STORE
        if operation.store == "core":
            return self._core_refusal(operation)
        item = self._items.get(operation.item_id or "")
        elsewhere = item is not None and item.store != operation.store
        if operation.kind == "UPDATE" and elsewhere:
            return UNKNOWN_ID
        if operation.kind == "DELETE" and (item is None or elsewhere):
            return None if self.rules.unknown_delete == "succeed" and item is None else UNKNOWN_ID
        reason = super()._refusal(operation)
        if reason is None and self.core is not None and self.token_budget is not None:
            held = count_tokens(self.core.content) + count_tokens(operation.content or "")
            if operation.kind in ("INSERT", "UPDATE") and held > self.token_budget:
                return TOO_LONG
        return reason

    def _core_refusal(self, operation: Operation) -> str | None:
        """Return why an operation on the core is invalid, `None` if it is valid."""
        old = self.core
        if operation.kind == "DELETE":
            if self.rules.core_delete == "refuse":
                return REWRITE_ONLY
            return UNKNOWN_ID if old is None and self.rules.unknown_delete == "refuse" else None
        if operation.kind != "UPDATE":
            return REWRITE_ONLY
        content = operation.content or ""
        if not content.strip():
            return EMPTY_CONTENT
        tokens = count_tokens(content)
        budget = self.token_budget
        if tokens > self.rules.core_tokens or (budget is not None and tokens > budget):
            return TOO_LONG
        if self.duplicates == "refuse" and old is not None and content == old.content:
            return EXACT_DUPLICATE
        more = tokens - (count_tokens(old.content) if old else 0)
        if self.eviction == "refuse" and self._overfull(len(self._items), self.tokens + more):
            return OVER_CAPACITY
        return None

    def _write(self, item_id: str, content: str, write: Write, store: Store) -> None:
        super()._write(item_id, content, write, store)
        if store == "core":
            self._queue.pop(item_id)  # the core is never evicted

    def _remove(self, item_id: str) -> None:
        super()._remove(item_id)
        if item_id == self._core_id:
            self._cleared += 1
            self._core_id = f"{CORE_ID}-{self._cleared + 1}"


def cut_core(content: str, limit: int) -> str:
    """Return the text of a core, cut to `limit` tokens and marked with `CUT_MARK` if it is longer.

    Args:
        content: Text of the core.
        limit: Largest number of tokens, at least 1; the mark is left out if it does not fit.

    >>> cut_core("one two three four five six", 5)
    'one two [cut]'
    >>> cut_core("one two", 5)
    'one two'
    """
    if count_tokens(content) <= limit:
        return content
    mark = CUT_MARK if count_tokens(CUT_MARK) < limit else ""
    return truncate_tokens(content, limit - count_tokens(mark))[0] + mark


_DATE = (
    r"\d{4}[-/]\d{1,2}[-/]\d{1,2}(?:[ T]\(?[A-Z][a-z]{2}\)?)?(?:[ T]\d{1,2}:\d{2}(?::\d{2})?)?"
    r"|\d{1,2} [A-Z][a-z]{2,8},? \d{4}|[A-Z][a-z]{2,8} \d{1,2},? \d{4}|[Dd]ay \d+"
)
_TIMESTAMP = re.compile(
    rf"\A\W{{0,3}}(?:(?:[Aa]t|[Oo]n)(?: (?:the )?(?:timestamp|time|date))? )?({_DATE})"
)


def timestamp_of(content: str) -> str | None:
    """Return the date at the beginning of an episodic item, `None` if there is none.

    Mem-alpha's tools have no field for the date, so an episodic item states it in its text.

    Args:
        content: Text of the item.

    >>> timestamp_of("At timestamp 2024-01-03 00:00, the user sold a boat.")
    '2024-01-03 00:00'
    >>> timestamp_of("[2023/05/20 (Sat) 02:21] Ana moved."), timestamp_of("Ana moved.")
    ('2023/05/20 (Sat) 02:21', None)
    """
    found = _TIMESTAMP.match(content)
    return found[1] if found else None
