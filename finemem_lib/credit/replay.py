"""Replay a trajectory without some of its steps and answer its questions on the resulting memory.

The memory after step t depends only on the omissions up to t, so `Replayer` shares memories between
replays that agree up to a step. `replay` runs one replay at a time and gives the same memories.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Literal, get_args

from finemem_lib.credit.asking import Asking, Memory, need_probabilities
from finemem_lib.credit.group import CachedGroup, CachedUpdate
from finemem_lib.credit.needs import Credit, need, need_agent
from finemem_lib.layers.memory import LayeredMemory, LayerRules
from finemem_lib.memory import FlatMemory
from finemem_lib.reading import ReasoningAgent
from finemem_lib.retrieval import Retriever
from finemem_lib.retrievers.layered import LayeredRetriever
from finemem_lib.retrievers.named import make_retriever
from finemem_lib.trajectory import (
    InvalidOperation,
    MemoryDelta,
    Operation,
    Question,
    Step,
    Trajectory,
    last_write_key,
)

Orphaned = Literal["refuse", "insert"]
"""Treatment of an UPDATE of an item that an omitted step created, see `replay`."""

Missing = int | tuple[int, int]
"""An omission: a step, or one of its operations as (step, index among its outcomes)."""


class Replayer:
    """Replays a trajectory without some of its operations and asks questions on the result.

    It caches every memory and every score, so rules that share a replayer ask no question twice.

    Args:
        trajectory: A rollout of `rollout.play`, which records its settings in
            ``metadata["rollout"]``.
        agent: The reasoning agent that answered its questions.
        asking: Asks the agent and caches its readings; rollouts of one instance may share it. By
            default a new one.

    Raises:
        ValueError: the trajectory does not record its settings, its operations do not lead to its
            memory, or another agent answered.
    """

    def __init__(
        self, trajectory: Trajectory, agent: ReasoningAgent, asking: Asking | None = None
    ) -> None:
        need_agent(trajectory, agent)
        self.trajectory = trajectory
        self.agent = agent
        self._named = _named(trajectory)
        empty = recorded_memory(trajectory)  # raises if the trajectory records no settings
        self._after: dict[tuple[int, frozenset[Missing], Orphaned], FlatMemory] = {
            (0, frozenset(), orphaned): empty for orphaned in get_args(Orphaned)
        }
        self._left: dict[tuple[frozenset[Missing], Orphaned], Memory] = {}
        everything = self.memory(frozenset())
        need(
            everything.items == trajectory.final_memory(),
            trajectory,
            "operations that lead to its final memory",
            "its settings or steps were changed; play the instance again",
        )
        self.asking = asking or asking_of(trajectory, agent)

    def memory(self, without: frozenset[Missing], orphaned: Orphaned = "refuse") -> FlatMemory:
        """Return the final memory of a replay with omissions, see `replay`.

        Args:
            without: Steps or operations to omit.
            orphaned: Treatment of updates of items that the omissions created.
        """
        last, nothing = self.trajectory.num_steps, frozenset[Missing]()
        if without and (last, nothing, orphaned) not in self._after:
            self.memory(nothing, orphaned)
        omitted: dict[int, list[Missing]] = {}
        for one in without:
            omitted.setdefault(_step_of(one), []).append(one)
        # Sets that agree up to a step share all memories to there.
        unknown, step = [], last
        while (key := (step, without, orphaned)) not in self._after:
            unknown.append(key)
            without = without.difference(omitted[step]) if step in omitted else without
            step -= 1
        memory = self._after[key]
        for key in reversed(unknown):
            memory = self._after[key] = self._next(key, memory, key[0] in omitted)
        return memory

    def _next(
        self, key: tuple[int, frozenset[Missing], Orphaned], before: FlatMemory, omits: bool
    ) -> FlatMemory:
        """Return the memory after a step, given the memory before it.

        If the omissions no longer change the memory, for example because the missing items would
        have been evicted by now, the recorded memories follow.
        """
        step, without, orphaned = key
        nothing = frozenset[Missing]()
        if without and not omits and before is self._after[step - 1, nothing, orphaned]:
            return self._after[step, nothing, orphaned]
        record, after = self.trajectory.steps[step - 1], before
        if step not in without or _touches(record, before):
            after = _copied(before)
            _apply(record, after, without, orphaned, self._named)
        if without and _same_state(after, recorded := self._after[step, nothing, orphaned]):
            return recorded
        return after

    def through(self, agent: ReasoningAgent) -> Replayer:
        """Return a replayer without cached scores that asks another agent of equal settings.

        The replayers share memories and retrieved items.

        Args:
            agent: The reasoning agent to ask.

        Raises:
            ValueError: the settings of `agent` are not those of the agent that answered.
        """
        need_agent(self.trajectory, agent)
        other = copy.copy(self)
        other.agent, other.asking = agent, self.asking.through(agent)
        return other

    def ask(
        self, asked: Sequence[Asked], orphaned: Orphaned = "refuse", soft: bool = False
    ) -> Rows:
        """Return the scores of questions on replayed memories, read in one batch.

        Args:
            asked: Pairs of questions and the steps or operations omitted before they are asked.
            orphaned: Treatment of updates of items that the omissions created.
            soft: Whether to return `Asking.probabilities` instead.

        Returns:
            One row per pair, one score in [0, 1] per question, `None` where it cannot be scored.
        """
        return _measured(
            self.asking,
            [(questions, self.left(without, orphaned)) for questions, without in asked],
            soft,
        )

    def left(self, without: frozenset[Missing], orphaned: Orphaned = "refuse") -> Memory:
        """Return the items of `memory`, in the order of their last writes.

        Args:
            without: Steps or operations to omit.
            orphaned: Treatment of updates of items that the omissions created.
        """
        key = without, orphaned
        if key not in self._left:
            items = self.memory(without, orphaned).items
            self._left[key] = tuple(sorted(items, key=last_write_key))
        return self._left[key]


Asked = tuple[Sequence[Question], frozenset[Missing]]
Rows = list[list[float | None]]
Plan = tuple[Sequence[Asked], Callable[[Rows], Credit]]
"""The questions that a rule asks on replays of a trajectory, and its credit given the scores."""


def replayed(plan: Callable[..., Plan]) -> Callable[..., Credit]:
    """Return the credit rule that asks the questions of a plan on replays of a trajectory.

    The rule takes the settings of the plan and, by keyword:

    - agent: the reasoning agent that answered the trajectory's questions;
    - orphaned: treatment of a later UPDATE of an item that an omitted step created, see `replay`;
    - replay: `Replayer` of this trajectory with scores from other rules; by default a new one;
    - batch: the groups of the whole update. If it is a `CachedUpdate`, the credit of all its
      rollouts is computed at once: the rollouts of an instance share readings, and their memories
      are searched together.

    It raises ValueError if no global question was asked, the trajectory cannot be replayed, another
    agent answered, or `agent` fails.

    Args:
        plan: Returns the plan for a trajectory. With its setting `soft`, the questions are measured
            by the probabilities of their accepted answers instead of scores.
    """

    @functools.wraps(plan)
    def rule(
        trajectory: Trajectory,
        *,
        agent: ReasoningAgent,
        orphaned: Orphaned = "refuse",
        replay: Replayer | None = None,
        batch: Sequence[Sequence[Trajectory]] | None = None,
        **settings: Any,
    ) -> Credit:
        soft = settings.get("soft", False)
        if soft:
            need_probabilities(agent)
        if isinstance(batch, CachedUpdate) and replay is None:
            planned = functools.partial(plan, **settings)
            credits = batch.once(
                (plan.__name__, *sorted(settings.items()), orphaned, id(agent)),
                lambda: _of_update(batch, agent, planned, orphaned, soft),
            )
            return credits[trajectory.instance_id, trajectory.rollout]
        asked, credit = plan(trajectory, **settings)
        rows = (replay or Replayer(trajectory, agent)).ask(asked, orphaned, soft) if asked else []
        return credit(rows)

    own, [_, *shared, _] = (
        [*inspect.signature(one, follow_wrapped=False).parameters.values()] for one in (plan, rule)
    )
    rule.__signature__ = inspect.Signature([*own, *shared])  # type: ignore[attr-defined]
    return rule


def _of_update(
    update: CachedUpdate,
    agent: ReasoningAgent,
    plan: Callable[[Trajectory], Plan],
    orphaned: Orphaned,
    soft: bool,
) -> dict[tuple[str, int], Credit]:
    """Return the credit of every rollout of an update, by instance and rollout."""
    credits = {}
    for group in update:
        plans = [plan(one) for one in group]
        replayers = _replayers(group, agent)
        asked = [
            (questions, replayer.left(without, orphaned))
            for replayer, (entries, _) in zip(replayers, plans, strict=True)
            for questions, without in entries
        ]
        rows = iter(_measured(replayers[0].asking, asked, soft))
        for one, (entries, credit) in zip(group, plans, strict=True):
            credits[one.instance_id, one.rollout] = credit([*itertools.islice(rows, len(entries))])
    return credits


def _measured(
    asking: Asking, asked: Sequence[tuple[Sequence[Question], Memory]], soft: bool
) -> Rows:
    if soft:
        return [[*row] for row in asking.probabilities(asked)]
    return asking.scores(asked)


def _replayers(group: CachedGroup, agent: ReasoningAgent) -> list[Replayer]:
    """Return the replayer of every rollout; they share their readings."""

    def new() -> list[Replayer]:
        asking = asking_of(group[0], agent)
        return [Replayer(one, agent, asking) for one in group]

    return group.once(("replayers", id(agent)), new)


def asking_of(trajectory: Trajectory, agent: ReasoningAgent) -> Asking:
    """Return an `Asking` with the recorded retrieval settings of a trajectory.

    Args:
        trajectory: Records top_k and the kind of index in its metadata.
        agent: The reasoning agent that answered.

    Raises:
        ValueError: these settings are not recorded, or the recorded index is unknown.
    """
    recorded_memory(trajectory)
    recorded_retriever(trajectory)
    top_k = trajectory.metadata["rollout"]["top_k"]
    return Asking(agent, top_k, lambda: recorded_retriever(trajectory))


def recorded_memory(trajectory: Trajectory) -> FlatMemory:
    """Return an empty memory with the recorded settings of a trajectory.

    Args:
        trajectory: A rollout of `rollout.play`, which records them in ``metadata["rollout"]``.

    Raises:
        ValueError: The settings are not recorded.
    """
    recorded = trajectory.metadata.get("rollout", {})
    names = ("capacity", "eviction", "max_item_tokens", "duplicates", "top_k")
    missing = [name for name in names if name not in recorded]
    need(
        not missing,
        trajectory,
        f"the settings it was played with ({', '.join(missing)})",
        "play it again with rollout.play, which records them in metadata['rollout']",
    )
    limits = {name: recorded[name] for name in names[:-1]}
    limits["token_budget"] = recorded.get("token_budget")  # younger than kept trajectories
    if _is_layered(trajectory):
        return LayeredMemory(**limits, rules=LayerRules(**recorded["layer_rules"]))
    return FlatMemory(**limits)


def _is_layered(trajectory: Trajectory) -> bool:
    return bool(trajectory.metadata.get("rollout", {}).get("memory", "flat") == "layered")


def recorded_retriever(trajectory: Trajectory) -> Retriever:
    """Return an empty index of the kind recorded in a trajectory (BM25 by default).

    Args:
        trajectory: The rollout whose metadata is read.

    Raises:
        ValueError: The recorded kind is unknown.
    """
    recorded = trajectory.metadata.get("rollout", {})
    kind = [recorded[name] for name in ("retriever", "dense_model") if name in recorded] or ["bm25"]
    if _is_layered(trajectory):
        return LayeredRetriever(lambda: make_retriever(*kind))
    return make_retriever(*kind)


def replay(
    trajectory: Trajectory,
    memory: FlatMemory,
    step: int,
    *,
    without: Collection[Missing] = (),
    orphaned: Orphaned = "refuse",
) -> FlatMemory:
    """Apply the recorded operations of steps 1 to `step` to `memory` and return it.

    Without omissions, an empty memory with the recorded settings becomes M_t of the trajectory.
    Operations that were refused are applied again and may now be valid: a duplicate is stored if
    its first copy is missing. Items keep their recorded ids, so an operation never changes another
    item than the one it named. If an omitted step created that item, a later DELETE is refused. The
    retrievals of the recorded chunk questions are repeated, also at omitted steps.

    Args:
        trajectory: The recorded rollout.
        memory: The memory to change in place, before its first step.
        step: The last step to apply, in 0..T.
        without: Steps or operations to omit.
        orphaned: Treatment of a later UPDATE of a missing item: "refuse" it, or "insert" its
            content under the same id (as if the manager would have stored it anyway).

    Raises:
        ValueError: `step` is outside 0..T, or `memory` has already applied a step.

    >>> memory = FlatMemory()
    >>> emitted = [Operation("INSERT", "Mia lives in Rome")], [Operation("UPDATE", "Oslo now", "1")]
    >>> outcomes = [memory.apply(operations, t)[0] for t, operations in enumerate(emitted, 1)]
    >>> from finemem_lib.trajectory import Chunk
    >>> steps = tuple(
    ...     Step(t, Chunk("", 0), "", outcome, MemoryDelta(), 0)
    ...     for t, outcome in enumerate(outcomes, start=1)
    ... )
    >>> recorded = Trajectory("i", "planted", "AR", "by hand", 0, steps, (), "words")
    >>> [
    ...     [item.content for item in replay(
    ...         recorded, FlatMemory(), 2, without={1}, orphaned=orphaned).items]
    ...     for orphaned in ("refuse", "insert")
    ... ]
    [[], ['Oslo now']]
    """
    if not 0 <= step <= trajectory.num_steps:
        raise ValueError(f"replay: step {step} is outside 0..{trajectory.num_steps}")
    named = _named(trajectory)
    for record in trajectory.steps[:step]:
        _apply(record, memory, without, orphaned, named)
    return memory


def replayed_operations(
    trajectory: Trajectory, memory: FlatMemory
) -> Iterator[tuple[int, int, MemoryDelta]]:
    """Apply the recorded operations to `memory` one at a time; yield the change by each.

    Args:
        trajectory: The recorded rollout.
        memory: The memory to change in place; its step numbers count operations, from 1.

    Yields:
        The step, the index of the operation among the step's outcomes, and the change.
    """
    number, named = itertools.count(1), _named(trajectory)
    for record in trajectory.steps:
        for position, operation in enumerate(_emitted(record, memory, (), "refuse", named)):
            yield record.step, position, memory.apply([operation], next(number))[1]
        _touch(record, memory)


def _named(trajectory: Trajectory) -> frozenset[str | None]:
    """Return every item id that occurs in the recorded operations and outcomes."""
    return frozenset(
        name
        for record in trajectory.steps
        for outcome in record.outcomes
        if outcome.operation
        for name in (outcome.operation.item_id, outcome.item_id)
    )


def _copied(memory: FlatMemory) -> FlatMemory:
    """Return a memory with the same items that changes by itself; items never change."""
    other = type(memory).__new__(type(memory))
    for name, value in vars(memory).items():
        setattr(other, name, value.copy() if isinstance(value, (dict, set)) else value)
    return other


def _same_state(memory: FlatMemory, other: FlatMemory) -> bool:
    """Return whether two memories hold the same items and will evict them in the same order."""
    return (
        [*memory._queue] == [*other._queue]
        and [*memory._items] == [*other._items]
        and all(
            one.content == two.content for one, two in zip(memory.items, other.items, strict=True)
        )
    )


def _apply(
    record: Step,
    memory: FlatMemory,
    without: Collection[Missing],
    orphaned: Orphaned,
    named: Collection[str | None],
) -> None:
    """Apply the operations of a recorded step, unless omitted, and repeat its retrievals."""
    if record.step not in without:
        memory.apply(tuple(_emitted(record, memory, without, orphaned, named)), record.step)
    _touch(record, memory)


def _step_of(missing: Missing) -> int:
    return missing if isinstance(missing, int) else missing[0]


def _touches(record: Step, memory: FlatMemory) -> bool:
    """Return whether what the chunk questions of a step retrieved may change a memory."""
    return memory.eviction == "least_recent" and bool(record.chunk_questions)


def _touch(record: Step, memory: FlatMemory) -> None:
    """Retrieve again what the chunk questions of a step retrieved."""
    if _touches(record, memory):
        memory.touch(
            found.item_id for answered in record.chunk_questions for found in answered.retrieved
        )


def _emitted(
    record: Step,
    memory: FlatMemory,
    without: Collection[Missing],
    orphaned: Orphaned,
    named: Collection[str | None],
) -> Iterator[Operation | InvalidOperation]:
    """Yield the operations of a recorded step, for a memory from which items may be missing."""
    created: set[str | None] = set()
    for place, outcome in enumerate(record.outcomes):
        operation = outcome.operation
        if (record.step, place) in without:
            continue
        if operation is None:
            yield InvalidOperation(outcome.reason or "", outcome.raw or "")
            continue
        if operation.kind == "INSERT":
            # An INSERT refused in the recording has no id; it gets one that is not recorded.
            name = outcome.item_id or f"new {record.step}.{place}"
            while outcome.item_id is None and name in named:
                name += "'"
            operation = dataclasses.replace(operation, item_id=name)
            created.add(name)
        elif (
            orphaned == "insert"
            and operation.kind == "UPDATE"
            and outcome.applied
            and operation.store != "core"  # which an UPDATE creates
            and memory.get(operation.item_id or "") is None
            and operation.item_id not in created
        ):
            operation = dataclasses.replace(operation, kind="INSERT")
            created.add(operation.item_id)
        yield operation
