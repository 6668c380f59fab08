"""Lifetimes and counts of the memory items of a trajectory, computed once for all its figures."""

from __future__ import annotations

import bisect
import functools
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Concatenate, ParamSpec, TypeVar

from finemem_lib.figures.selection import outcome_name
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, Trajectory, creation_key

P = ParamSpec("P")
Result = TypeVar("Result")

CACHE_SIZE = 8
"""Size of the cache of `per_trajectory`; each entry keeps its trajectory in memory."""


def per_trajectory(
    function: Callable[Concatenate[Trajectory, P], Result],
) -> Callable[Concatenate[Trajectory, P], Result]:
    """Return the function with a cache of its last `CACHE_SIZE` results.

    Trajectories are compared by identity: they are immutable, and comparing two long ones by value
    takes longer than most cached functions. Callers share the result and must not change it.

    Args:
        function: a pure function of a trajectory and of hashable arguments.
    """
    kept: OrderedDict[tuple[object, ...], tuple[Trajectory, Result]] = OrderedDict()

    def cached(trajectory: Trajectory, /, *args: P.args, **named: P.kwargs) -> Result:
        key = (id(trajectory), *args, *named.items())
        if key not in kept:
            kept[key] = trajectory, function(trajectory, *args, **named)
            while len(kept) > CACHE_SIZE:
                kept.popitem(last=False)
        kept.move_to_end(key)
        return kept[key][1]

    return functools.update_wrapper(cached, function)


@dataclass(slots=True)
class Life:
    """An item's first step, last content, and the step and kind of its removal (`end`)."""

    born: int
    content: str
    order: tuple[int, int]
    end: tuple[int, str] | None = None


@dataclass(frozen=True, slots=True)
class MemoryHistory:
    """The memory of a trajectory at every step, without replaying the trajectory.

    Its size grows with the number of writes, not with the size of the memory at every step.

    Attributes:
        lives: the `Life` of every item by id, the most retrieved first, then the oldest.
        ids: ids of all items, in the order of creation.
        hits: number of questions of the trajectory that retrieved each item.
        longest: maximum number of tokens of an item's last version, at least 1.
        counts: number of items in memory after every step, from step 0.
        tokens: number of tokens in memory after every step (`text.count_tokens`), from step 0.
        idle: number of items in memory after every step that no question retrieves, from step 0.
        names: names of the outcomes that occur (`selection.outcome_name`, and "evicted").
    """

    lives: Mapping[str, Life]
    ids: tuple[str, ...]
    hits: Counter[str]
    longest: int
    counts: list[int]
    tokens: list[int]
    idle: list[int]
    names: frozenset[str]
    _steps: Mapping[str, list[int]]
    _states: Mapping[str, list[MemoryItem | None]]

    def at(self, item_id: str, step: int) -> MemoryItem | None:
        """Return the version of an item after a step, `None` if it is not in the memory.

        Args:
            item_id: id of the item.
            step: the step, from 0.
        """
        place = bisect.bisect_right(self._steps.get(item_id, ()), step)
        return self._states[item_id][place - 1] if place else None

    def there(self, ids: Iterable[str], step: int) -> dict[str, MemoryItem]:
        """Return the items with the given ids that are in the memory after a step.

        Args:
            ids: ids of the items.
            step: the step, from 0.
        """
        found = ((item_id, self.at(item_id, step)) for item_id in ids)
        return {item_id: item for item_id, item in found if item}

    def living(self, first: int, last: int) -> dict[str, Life]:
        """Return the lives, by id, of the items that are in the memory between two steps.

        Args:
            first: the first step.
            last: the last step.
        """
        return {
            item_id: life
            for item_id, life in self.lives.items()
            if life.born <= last and (life.end is None or life.end[0] >= first)
        }


@per_trajectory
def memory_history(trajectory: Trajectory) -> MemoryHistory:
    """Return the history of a trajectory's memory.

    Args:
        trajectory: the trajectory.

    >>> from finemem_lib.data.worked_example import worked_example
    >>> past = memory_history(worked_example())
    >>> past.counts, past.at("1", 1).content, past.at("1", 0)
    ([0, 1, 1, 2, 2], 'Mia lives in Rome.', None)
    """
    hits = Counter(found.item_id for one in _questions(trajectory) for found in one.retrieved)
    last = {item.item_id: item for step in trajectory.steps for item in step.delta.written}
    steps: dict[str, list[int]] = {item_id: [] for item_id in last}
    states: dict[str, list[MemoryItem | None]] = {item_id: [] for item_id in last}
    length: dict[str, int] = {}  # tokens of each item in memory
    counts, tokens, idle = [0], [0], [0]
    total = unused = 0
    for record in trajectory.steps:
        changed: dict[str, MemoryItem | None] = dict.fromkeys(
            record.delta.removed + record.delta.evicted
        )
        changed |= {item.item_id: item for item in record.delta.written}
        for item_id, item in changed.items():
            before = length.pop(item_id, None)
            total -= before or 0
            unused -= before is not None and not hits[item_id]
            if item is not None:
                length[item_id] = count_tokens(item.content)
                total += length[item_id]
                unused += not hits[item_id]
            if item_id in last:
                steps[item_id].append(record.step)
                states[item_id].append(item)
        counts.append(len(length))
        tokens.append(total)
        idle.append(unused)
    lives = _lives(trajectory)
    return MemoryHistory(
        lives={one: lives[one] for one in sorted(lives, key=lambda n: (-hits[n], lives[n].order))},
        ids=tuple(sorted(last, key=lambda item_id: creation_key(last[item_id]))),
        hits=hits,
        longest=max((count_tokens(item.content) for item in last.values()), default=1),
        counts=counts,
        tokens=tokens,
        idle=idle,
        names=_names(trajectory),
        _steps=steps,
        _states=states,
    )


def _questions(trajectory: Trajectory) -> Iterator[AnsweredQuestion]:
    for record in trajectory.steps:
        yield from record.chunk_questions
    yield from trajectory.questions


def _lives(trajectory: Trajectory) -> dict[str, Life]:
    lives: dict[str, Life] = {}
    for step in trajectory.steps:
        for item in step.delta.written:
            life = lives.setdefault(item.item_id, Life(item.created_step, "", (0, 0)))
            life.content, life.order = item.content, creation_key(item)
        for how, ids in (("DELETE", step.delta.removed), ("evicted", step.delta.evicted)):
            for item_id in ids:
                lives[item_id].end = step.step, how
    return lives


def _names(trajectory: Trajectory) -> frozenset[str]:
    """Return the names of the outcomes, and "evicted", that occur in a trajectory."""
    done = {outcome_name(outcome) for step in trajectory.steps for outcome in step.outcomes}
    return frozenset(
        done | ({"evicted"} if any(step.delta.evicted for step in trajectory.steps) else set())
    )
