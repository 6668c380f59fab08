"""Replay a trajectory without some of its steps and answer its questions on what is left.

A memory after step t depends on what is left out up to t, so replays that agree up to a step share
the memories to there; `replay` is the plain way, one replay at a time, and leads to the same.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from typing import Literal

from finemem_lib.credit.asking import Asking, Memory, need_probabilities
from finemem_lib.credit.group import CachedGroup, CachedUpdate
from finemem_lib.credit.needs import Credit, need, need_agent
from finemem_lib.memory import FlatMemory
from finemem_lib.reading import ReasoningAgent
from finemem_lib.retrieval import Retriever
from finemem_lib.retrievers.named import make_retriever
from finemem_lib.trajectory import (
    InvalidOperation,
    MemoryDelta,
    MemoryItem,
    Operation,
    Question,
    Step,
    Trajectory,
)

Orphaned = Literal["refuse", "insert"]
"""What becomes of an UPDATE of an item that a missing step created, see `replay`."""

Missing = int | tuple[int, int]
"""What is left out: a step, or one operation of it as (step, place among its outcomes)."""


class Replayer:
    """Replays a trajectory without some of its operations and asks its questions on what is left.

    It remembers every memory and every score, so rules (and parts of the trajectory's questions)
    that share one replay and ask nothing twice.

    Args:
        trajectory: Played by `rollout.play`, which records how in ``metadata["rollout"]``.
        agent: The reasoning agent that answered its questions.
        asking: Asks the agent, for rollouts of one instance that share what they read; a new one
            by default.

    Raises:
        ValueError: the trajectory does not say how it was played, its operations do not lead to
            its memory, or `agent` is not the one that answered.
    """

    def __init__(
        self, trajectory: Trajectory, agent: ReasoningAgent, asking: Asking | None = None
    ) -> None:
        need_agent(trajectory, agent)
        self.trajectory = trajectory
        self.agent = agent
        self._named = _named(trajectory)
        self._after: dict[tuple[int, frozenset[Missing], Orphaned], FlatMemory] = {}
        self._left: dict[tuple[frozenset[Missing], Orphaned], Memory] = {}
        everything = self.memory(frozenset())  # refuses one that does not say how it was played
        need(
            everything.items == trajectory.final_memory(),
            trajectory,
            "operations that lead to its final memory",
            "its settings or steps were changed; play the instance again",
        )
        self.asking = asking or asking_of(trajectory, agent)

    def memory(self, without: frozenset[Missing], orphaned: Orphaned = "refuse") -> FlatMemory:
        """Return the final memory that all other operations leave, see `replay`.

        Args:
            without: Steps or operations that are left out.
            orphaned: What becomes of updates of items that those created.
        """
        return self._memory_after(self.trajectory.num_steps, without, orphaned)

    def _memory_after(
        self, step: int, without: frozenset[Missing], orphaned: Orphaned
    ) -> FlatMemory:
        """Return the memory after a step, from that after the step before: sets that agree up to a
        step share all memories to there. Where what is missing no longer shows, say because it
        would be evicted by now, the recorded memories follow."""
        of_step = {one: one if isinstance(one, int) else one[0] for one in without}
        without = frozenset(one for one in without if of_step[one] <= step)
        key = step, without, orphaned
        if key in self._after:
            return self._after[key]

        def recorded(step: int) -> FlatMemory:
            return self._memory_after(step, frozenset(), orphaned)

        before = self._memory_after(step - 1, without, orphaned) if step else None
        if before is None:
            after = recorded_memory(self.trajectory)
        elif without and step not in of_step.values() and before is recorded(step - 1):
            after = recorded(step)
        else:
            after = _copied(before)
            _apply(self.trajectory.steps[step - 1], after, without, orphaned, self._named)
            if without and _alike(after, recorded(step)):
                after = recorded(step)
        self._after[key] = after
        return after

    def through(self, agent: ReasoningAgent) -> Replayer:
        """Return a replayer that knows no score and asks through another agent of equal settings.

        Memories and what is retrieved from them are shared.

        Args:
            agent: The reasoning agent to ask.

        Raises:
            ValueError: `agent` is not the one that answered.
        """
        need_agent(self.trajectory, agent)
        other = copy.copy(self)
        other.agent, other.asking = agent, self.asking.through(agent)
        return other

    def scores(
        self,
        questions: Sequence[Question],
        withouts: Sequence[frozenset[Missing]],
        orphaned: Orphaned = "refuse",
    ) -> list[list[float | None]]:
        """Return the score of every question without each set of steps, read in one batch.

        Args:
            questions: Asked on every memory.
            withouts: Sets of steps or operations that are left out; a memory for each.
            orphaned: What becomes of updates of items that those created.

        Returns:
            One row per set, one score in [0, 1] per question, `None` where it cannot be scored.
        """
        return self.ask([(questions, without) for without in withouts], orphaned)

    def ask(
        self, asked: Sequence[Asked], orphaned: Orphaned = "refuse", soft: bool = False
    ) -> Rows:
        """Return the scores of questions, each list of them asked without its own set of steps.

        Args:
            asked: Questions, and the steps or operations left out before they are asked.
            orphaned: As in `scores`.
            soft: Return `Asking.probabilities` instead.

        Returns:
            One row per entry, as `scores` returns them.
        """
        return _measured(
            self.asking,
            [(questions, self.left(without, orphaned)) for questions, without in asked],
            soft,
        )

    def left(self, without: frozenset[Missing], orphaned: Orphaned = "refuse") -> Memory:
        """Return the items of `memory`, the one written last at the end.

        Args:
            without: Steps or operations that are left out.
            orphaned: What becomes of updates of items that those created.
        """
        key = without, orphaned
        if key not in self._left:
            items = self.memory(without, orphaned).items
            self._left[key] = tuple(sorted(items, key=_last_write))
        return self._left[key]


Asked = tuple[Sequence[Question], frozenset[Missing]]
Rows = list[list[float | None]]
Plan = tuple[Sequence[Asked], Callable[[Rows], Credit]]
"""What a rule asks of a trajectory, and its credit given the scores."""


def replayed_credit(
    trajectory: Trajectory,
    agent: ReasoningAgent,
    plan: Callable[[Trajectory], Plan],
    *,
    replay: Replayer | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
    key: Hashable = None,
    orphaned: Orphaned = "refuse",
    soft: bool = False,
) -> Credit:
    """Return the credit of a rule that asks questions of replayed memories.

    With a `CachedUpdate` as its batch, the rule is worked out for the whole update at once: the
    rollouts of an instance share what they read and are searched together.

    Args:
        trajectory: What was played.
        agent: The reasoning agent that answered its questions.
        plan: Returns what the rule asks of a trajectory.
        replay: Knows scores of this trajectory from other rules; then `batch` is not used.
        batch: The groups of the whole update.
        key: Names the rule, with every setting that it depends on.
        orphaned: What becomes of updates of items that what is missing created.
        soft: Whether the rows of the plan are probabilities of the accepted answers.

    Raises:
        ValueError: as `Replayer`, as `plan`, or soft scores are asked of an agent without them.
    """
    if soft:
        need_probabilities(agent)
    if isinstance(batch, CachedUpdate) and replay is None:
        credits = batch.once(
            (key, orphaned, soft, id(agent)), lambda: _of_update(batch, agent, plan, orphaned, soft)
        )
        return credits[trajectory.instance_id, trajectory.rollout]
    asked, credit = plan(trajectory)
    rows = (replay or Replayer(trajectory, agent)).ask(asked, orphaned, soft) if asked else []
    return credit(rows)


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
    """Return the replayer of every rollout; they share what they read."""

    def new() -> list[Replayer]:
        asking = asking_of(group[0], agent)
        return [Replayer(one, agent, asking) for one in group]

    return group.once(("replayers", id(agent)), new)


def asking_of(trajectory: Trajectory, agent: ReasoningAgent) -> Asking:
    """Return what asks an agent on memories as the trajectory's rollout asked it.

    Args:
        trajectory: Says how many items were retrieved for a question, and with which index.
        agent: The reasoning agent that answered.

    Raises:
        ValueError: it does not say so, or the recorded index is unknown.
    """
    recorded_memory(trajectory)
    recorded_retriever(trajectory)
    top_k = trajectory.metadata["rollout"]["top_k"]
    return Asking(agent, top_k, lambda: recorded_retriever(trajectory))


def recorded_memory(trajectory: Trajectory) -> FlatMemory:
    """Return an empty memory with the settings of the one that a trajectory was played with.

    Args:
        trajectory: Played by `rollout.play`, which records them in ``metadata["rollout"]``.

    Raises:
        ValueError: They are not recorded.
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
    return FlatMemory(
        **{name: recorded[name] for name in names[:-1]},
        token_budget=recorded.get("token_budget"),  # younger than kept trajectories
    )


def recorded_retriever(trajectory: Trajectory) -> Retriever:
    """Return an empty index of the kind that a trajectory was played with (BM25 by default).

    Args:
        trajectory: What was played.

    Raises:
        ValueError: The recorded kind is unknown.
    """
    recorded = trajectory.metadata.get("rollout", {})
    kind = [recorded[name] for name in ("retriever", "dense_model") if name in recorded]
    return make_retriever(*kind or ["bm25"])


def replay(
    trajectory: Trajectory,
    memory: FlatMemory,
    step: int,
    *,
    without: Collection[Missing] = (),
    orphaned: Orphaned = "refuse",
) -> FlatMemory:
    """Apply the recorded operations of steps 1 to `step` to `memory` again and return it.

    An empty memory with the settings of the recorded one ends as M_t of the trajectory. Refused
    operations are applied as well and may be valid now: a duplicate whose first copy is missing is
    stored. Items keep the ids of the recording, so an operation never hits another item than it
    named. Where that item is missing because a step left out created it, a later DELETE is refused.
    What the recorded chunk questions retrieved counts as retrieved again, also at steps left out.

    Args:
        trajectory: What was recorded.
        memory: Changed in place.
        step: The last step to apply, in 0..T.
        without: Steps, or operations of a step, that are not emitted.
        orphaned: A later UPDATE of an item that is missing is refused, content and all ("refuse"),
            or becomes an INSERT of its content under the same id ("insert": the manager would have
            stored it anyway).

    Raises:
        ValueError: `step` is outside 0..T, or the memory has already gone past step 1.

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
    """Apply the recorded operations to `memory` one at a time; yield what each of them changed.

    Args:
        trajectory: What was recorded.
        memory: Changed in place; it counts operations, from 1, where it would count steps.

    Yields:
        The step, the position of the operation among its outcomes, and the change.
    """
    number, named = itertools.count(1), _named(trajectory)
    for record in trajectory.steps:
        for position, operation in enumerate(_emitted(record, memory, (), "refuse", named)):
            yield record.step, position, memory.apply([operation], next(number))[1]
        _touch(record, memory)


def _named(trajectory: Trajectory) -> frozenset[str | None]:
    """Return every id that a recorded operation can mean."""
    return frozenset(
        name
        for record in trajectory.steps
        for outcome in record.outcomes
        if outcome.operation
        for name in (outcome.operation.item_id, outcome.item_id)
    )


def _last_write(item: MemoryItem) -> tuple[int, int]:
    last = item.lineage[-1]
    return last.step, last.position


def _copied(memory: FlatMemory) -> FlatMemory:
    """Return a memory with the same items that changes by itself; items never change."""
    other = FlatMemory.__new__(FlatMemory)
    for name, value in vars(memory).items():
        setattr(other, name, value.copy() if isinstance(value, (dict, set)) else value)
    return other


def _alike(memory: FlatMemory, other: FlatMemory) -> bool:
    """Return whether two memories hold the same and will evict it in the same order."""
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
    """Apply what a recorded step emitted, unless it is left out, and what was retrieved then."""
    if record.step not in without:
        memory.apply(tuple(_emitted(record, memory, without, orphaned, named)), record.step)
    _touch(record, memory)


def _touch(record: Step, memory: FlatMemory) -> None:
    """Retrieve again what the chunk questions of a step retrieved."""
    if memory.eviction == "least_recent":
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
    """Yield what a recorded step emitted, for a memory from which items may be missing."""
    created: set[str | None] = set()
    for place, outcome in enumerate(record.outcomes):
        operation = outcome.operation
        if (record.step, place) in without:
            continue
        if operation is None:
            yield InvalidOperation(outcome.reason or "", outcome.raw or "")
            continue
        if operation.kind == "INSERT":
            # One that was refused then and is valid now gets an id that nothing recorded can mean.
            name = outcome.item_id or f"new {record.step}.{place}"
            while outcome.item_id is None and name in named:
                name += "'"
            operation = Operation("INSERT", operation.content, name)
            created.add(name)
        elif (
            orphaned == "insert"
            and operation.kind == "UPDATE"
            and outcome.applied
            and memory.get(operation.item_id or "") is None
            and operation.item_id not in created
        ):
            operation = dataclasses.replace(operation, kind="INSERT")
            created.add(operation.item_id)
        yield operation
