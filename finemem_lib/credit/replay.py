"""Replay a trajectory without some of its steps and answer its questions on what is left."""

from __future__ import annotations

import copy
import dataclasses
import itertools
from collections.abc import Collection, Iterator, Sequence
from typing import Literal

from finemem_lib.credit.needs import need, need_agent
from finemem_lib.memory import FlatMemory
from finemem_lib.reading import Inquiry, ReasoningAgent, answer_questions
from finemem_lib.retrieval import Retriever, Searchable, make_retriever
from finemem_lib.trajectory import (
    InvalidOperation,
    MemoryDelta,
    Operation,
    Question,
    Step,
    Trajectory,
)

Orphaned = Literal["refuse", "insert"]
"""What becomes of an UPDATE of an item that a missing step created, see `replay`."""


class Replayer:
    """Replays a trajectory without some of its steps and asks its questions on what is left.

    It remembers every score, so rules (and parts of the trajectory's questions) that share one
    ask nothing twice.

    Args:
        trajectory: Played by `rollout.play`, which records how in ``metadata["rollout"]``.
        agent: The reasoning agent that answered its questions.

    Raises:
        ValueError: the trajectory does not say how it was played, its operations do not lead to
            its memory, or `agent` is not the one that answered.
    """

    def __init__(self, trajectory: Trajectory, agent: ReasoningAgent) -> None:
        need_agent(trajectory, agent)
        self.trajectory = trajectory
        self.agent = agent
        recorded_memory(trajectory)  # refuses a trajectory that does not say how it was played
        self._top_k = trajectory.metadata["rollout"]["top_k"]
        self._scores: dict[tuple[frozenset[int], Orphaned, Question], float | None] = {}
        self._left: dict[tuple[frozenset[int], Orphaned], tuple[FlatMemory, Searchable]] = {}
        need(
            self.memory(frozenset()).items == trajectory.final_memory(),
            trajectory,
            "operations that lead to its final memory",
            "its settings or steps were changed; play the instance again",
        )

    def memory(self, without: frozenset[int], orphaned: Orphaned = "refuse") -> FlatMemory:
        """Return the final memory that the other steps leave, see `replay`.

        Args:
            without: Steps that emit nothing.
            orphaned: What becomes of updates of items that those steps created.
        """
        return replay(
            self.trajectory,
            recorded_memory(self.trajectory),
            self.trajectory.num_steps,
            without=without,
            orphaned=orphaned,
        )

    def through(self, agent: ReasoningAgent) -> Replayer:
        """Return a replayer that knows no score and asks through another agent of equal settings.

        Memories and what is retrieved from them are shared.

        Raises:
            ValueError: `agent` is not the one that answered.
        """
        need_agent(self.trajectory, agent)
        other = copy.copy(self)
        other.agent, other._scores = agent, {}
        return other

    def scores(
        self,
        questions: Sequence[Question],
        withouts: Sequence[frozenset[int]],
        orphaned: Orphaned = "refuse",
    ) -> list[list[float | None]]:
        """Return the score of every question without each set of steps, read in one batch.

        Args:
            questions: Asked on every memory.
            withouts: Sets of steps that emit nothing; a memory for each.
            orphaned: What becomes of updates of items that those steps created.

        Returns:
            One row per set, one score in [0, 1] per question, `None` where it cannot be scored.
        """
        return self.ask([(questions, without) for without in withouts], orphaned)

    def ask(
        self,
        asked: Sequence[tuple[Sequence[Question], frozenset[int]]],
        orphaned: Orphaned = "refuse",
    ) -> list[list[float | None]]:
        """Return the scores of questions, each list of them asked without its own set of steps.

        Args:
            asked: Questions, and the steps that emit nothing before they are asked.
            orphaned: As in `scores`.

        Returns:
            One row per entry, as `scores` returns them.
        """
        inquiries, keys = [], []
        for questions, without in asked:
            new = [q for q in questions if (without, orphaned, q) not in self._scores]
            if new:
                memory, index = self._searchable(without, orphaned)
                inquiries.append(Inquiry(new, memory, index, self.trajectory.num_steps))
                keys += [(without, orphaned, question) for question in new]
        answered = answer_questions(inquiries, self.agent, self._top_k)
        for key, answer in zip(keys, itertools.chain(*answered), strict=True):
            self._scores[key] = answer.score
        return [
            [self._scores[without, orphaned, question] for question in questions]
            for questions, without in asked
        ]

    def _searchable(
        self, without: frozenset[int], orphaned: Orphaned
    ) -> tuple[FlatMemory, Searchable]:
        if (without, orphaned) not in self._left:
            memory = self.memory(without, orphaned)
            index = recorded_retriever(self.trajectory)
            index.update(MemoryDelta(written=memory.items))
            self._left[without, orphaned] = memory, _CachedSearch(index)
        return self._left[without, orphaned]


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


class _CachedSearch:
    """The index of a memory that does not change any more: it searches for nothing twice."""

    def __init__(self, index: Searchable) -> None:
        self._index = index
        self._found: dict[tuple[str, int], list[tuple[str, float]]] = {}

    def search(self, query: str, k: int) -> list[tuple[str, float]]:
        if (query, k) not in self._found:
            self._found[query, k] = self._index.search(query, k)
        return self._found[query, k]


def replay(
    trajectory: Trajectory,
    memory: FlatMemory,
    step: int,
    *,
    without: Collection[int] = (),
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
        without: Steps that emit nothing.
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
    named = {
        name
        for record in trajectory.steps
        for outcome in record.outcomes
        if outcome.operation
        for name in (outcome.operation.item_id, outcome.item_id)
    }
    # For an INSERT that was refused then and is valid now: an id that nothing recorded can mean.
    spare = (name for name in map("new {}".format, itertools.count(1)) if name not in named)
    for record in trajectory.steps[:step]:
        if record.step not in without:
            memory.apply(tuple(_emitted(record, memory, orphaned, spare)), record.step)
        _touch(record, memory)
    return memory


def replayed_operations(
    trajectory: Trajectory, memory: FlatMemory
) -> Iterator[tuple[int, MemoryDelta]]:
    """Apply the recorded operations to `memory` one at a time; yield step and change of each.

    Args:
        trajectory: What was recorded.
        memory: Changed in place; it counts operations, from 1, where it would count steps.
    """
    number = itertools.count(1)
    spare = map("new {}".format, itertools.count(1))
    for record in trajectory.steps:
        for operation in _emitted(record, memory, "refuse", spare):
            yield record.step, memory.apply([operation], next(number))[1]
        _touch(record, memory)


def _touch(record: Step, memory: FlatMemory) -> None:
    """Retrieve again what the chunk questions of a step retrieved."""
    memory.touch(
        found.item_id for answered in record.chunk_questions for found in answered.retrieved
    )


def _emitted(
    record: Step, memory: FlatMemory, orphaned: Orphaned, spare: Iterator[str]
) -> Iterator[Operation | InvalidOperation]:
    """Yield what a recorded step emitted, for a memory from which items may be missing."""
    created: set[str | None] = set()
    for outcome in record.outcomes:
        operation = outcome.operation
        if operation is None:
            yield InvalidOperation(outcome.reason or "", outcome.raw or "")
            continue
        if operation.kind == "INSERT":
            operation = dataclasses.replace(operation, item_id=outcome.item_id or next(spare))
            created.add(operation.item_id)
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
