"""Local groups: several completions of one step from one shared memory state, each with a value.

Rollouts of one instance diverge at their first step. From then on the completions of a per-step
group answer different prompts, so a good completion after a bad memory gets a low reward. A local
group shares the memory: one rollout provides M_{t-1}, the manager answers the same prompt G times,
and each completion is valued by its later outcome. The groups enter the update as further rows,
in addition to the groups of whole rollouts ("global"). Source: LoGo-GRPO of Memory-R2 (arXiv
2605.21768).

Differs from the paper: only the abstract and a reading note were available. The local re-rollouts
of one session from one shared state and their sum with the global objective are the paper's; here a
chunk replaces a session. The value of a completion, both continuations, the random anchors and the
default weights are ours. The horizon curriculum is left out. In a replay, the rollout's later
UPDATEs and DELETEs change an item of a branch only if the rollout itself stored the same text;
under `least_recent`, a branch continued by the policy counts the retrievals of the rollout's chunk
questions, not of its own items.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from finemem_lib.advantages import dead_groups, group_relative
from finemem_lib.credit.asking import Memory
from finemem_lib.credit.replay import asking_of, recorded_memory, replay
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.managers.rollout import played_step
from finemem_lib.memory import FlatMemory
from finemem_lib.reading import MemoisedAgent, ReasoningAgent
from finemem_lib.rewards import weighted_sum
from finemem_lib.seeds import generator
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Instance,
    InvalidOperation,
    MemoryItem,
    Operation,
    Step,
    Trajectory,
)

Continuation = Literal["replay", "policy"]
"""How a branch continues after step t, see `LocalGroups`."""

Act = Callable[[list[Observation], int], Sequence[Completion]]
"""Returns one completion per observation; the integer is the number of the batch, from 1."""


@dataclass(frozen=True, slots=True)
class LocalGroups:
    """Number, value and weight of the local groups of an update.

    Attributes:
        anchors: Number of local groups per instance and update, at least 1, at different steps; an
            instance with fewer steps has one per step. Rollout and step are drawn at random.
        continuation: Continuation after step t: "replay" applies the later operations of the
            rollout that provided the state (no further completion, and no reaction to step t);
            "policy" lets the manager continue (T - t more completions per branch).
        outcome_weight: Weight of the mean score of the global questions at the end, at least 0.
        chunk_weight: Weight of the chunk-level step reward at M_t, at least 0.
        weight: Weight of the local advantages in the update, above 0.

    Raises:
        ValueError: A setting is out of range.
    """

    anchors: int = 1
    continuation: Continuation = "replay"
    outcome_weight: float = 1.0
    chunk_weight: float = 0.5
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.anchors < 1:
            raise ValueError(f"local groups: anchors is {self.anchors}, expected at least 1")
        if self.continuation not in get_args(Continuation):
            raise ValueError(
                f"local groups: continuation is {self.continuation!r}, expected one of "
                + ", ".join(get_args(Continuation))
            )
        weights = self.outcome_weight, self.chunk_weight
        if not (all(0 <= one < math.inf for one in weights) and any(weights)):
            raise ValueError(
                f"local groups: outcome_weight and chunk_weight are {weights}, expected numbers "
                "from 0, one of them above"
            )
        if not 0 < self.weight < math.inf:
            raise ValueError(
                f"local groups: weight is {self.weight}, expected a number above 0; for no local "
                "groups set local_groups to None"
            )


@dataclass(frozen=True)
class LocalGroup:
    """G completions of one step from one memory.

    Attributes:
        instance_id: Id of the instance.
        rollout: Index of the rollout whose memory M_{t-1} all completions share.
        step: Number of the step, t, from 1.
        steps: The step of each completion. Its new items have ids that do not occur in the
            rollout, unless the rollout inserted the same content at this step.
        outcomes: Mean score of the global questions at the end of each branch, `None` where
            unscorable.
        chunks: Chunk-level step reward at each M_t, `None` where unscorable.
        values: Weighted sum of the two, `None` where neither is known.
        advantages: Weighted group-relative advantages of the values; 0.0 where there is no value.
    """

    instance_id: str
    rollout: int
    step: int
    steps: tuple[Step, ...]
    outcomes: tuple[float | None, ...]
    chunks: tuple[float | None, ...]
    values: tuple[float | None, ...]
    advantages: tuple[float, ...]


@dataclass(frozen=True)
class LocalUpdate:
    """The local groups of an update and their cost.

    Attributes:
        groups: The groups, ordered by instance and step.
        completions: Number of completions sampled, including continuations.
        calls_asked: Number of readings requested to value them.
        calls_made: Number of these that reached the reasoning agent.
        seconds: Duration in seconds, including sampling.
    """

    groups: tuple[LocalGroup, ...] = ()
    completions: int = 0
    calls_asked: int = 0
    calls_made: int = 0
    seconds: float = 0.0

    @property
    def measures(self) -> dict[str, float]:
        """Quantities of the local groups for the training record, by name."""
        values = [value for group in self.groups for value in group.values if value is not None]
        dead = [dead_groups([[v] for v in group.values])[0] for group in self.groups]
        return {
            "local/groups": len(self.groups),
            "local/completions": self.completions,
            "local/calls_asked": self.calls_asked,
            "local/calls_made": self.calls_made,
            "local/seconds": self.seconds,
            **({"local/value": math.fsum(values) / len(values)} if values else {}),
            "local/dead_share": sum(dead) / max(1, len(dead)),
        }


@dataclass
class _Branch:
    """One completion of a local group, played to its end."""

    instance: Instance
    anchor: Trajectory
    memory: FlatMemory
    step: int
    played: Step | None = None
    after: Memory = ()  # M_t
    end: Memory = ()  # M_T

    @property
    def next(self) -> Observation:
        return Observation(
            self.instance, self.memory.items, self.instance.chunks[self.step - 1], self.step
        )

    def advance(self, completion: Completion) -> Step:
        """Apply a completion and repeat the retrievals of the rollout's chunk questions."""
        recorded = self.anchor.steps[self.step - 1]
        outcomes, delta = self.memory.apply(
            [*_with_own_ids(completion.operations, recorded)], self.step
        )
        self.memory.touch(
            found.item_id for asked in recorded.chunk_questions for found in asked.retrieved
        )
        self.step += 1
        tokens = self.memory.tokens
        return played_step(recorded.step, recorded.chunk, completion, outcomes, delta, tokens)

    def replayed_end(self) -> Memory:
        """Return the final memory after replaying the rollout's later operations."""
        assert self.played is not None
        recorded = dataclasses.replace(self.played, chunk_questions=self._recorded_questions())
        place = self.played.step
        steps = (*self.anchor.steps[: place - 1], recorded, *self.anchor.steps[place:])
        branch = dataclasses.replace(self.anchor, steps=steps)
        return _last_write_last(replay(branch, recorded_memory(branch), branch.num_steps))

    def _recorded_questions(self) -> tuple[AnsweredQuestion, ...]:
        assert self.played is not None
        return self.anchor.steps[self.played.step - 1].chunk_questions


def play_local_groups(
    groups: Sequence[Sequence[Trajectory]],
    instances: Sequence[Instance],
    settings: LocalGroups,
    act: Act,
    agent: ReasoningAgent,
    seed: int,
) -> LocalUpdate:
    """Play the local groups of an update, and compute their values and advantages.

    Args:
        groups: The rollouts of the update, G per instance; a local group has G completions.
        instances: The instances of the groups, in the same order.
        settings: Number and value of the local groups.
        act: The manager.
        agent: The reasoning agent that answered in the rollouts.
        seed: Seed of the choice of rollouts and steps.

    Raises:
        ValueError: A rollout does not record its settings.
    """
    started = time.perf_counter()
    counter = agent if isinstance(agent, MemoisedAgent) else MemoisedAgent(agent)
    before = counter.calls_asked, counter.calls_made
    branched = [
        _branches(instance, group[rollout], step, len(group))
        for instance, group in zip(instances, groups, strict=True)
        for rollout, step in anchors(group, settings.anchors, seed)
    ]
    completions = _play([one for branches in branched for one in branches], settings, act)
    return LocalUpdate(
        tuple(_valued(branches, settings, counter) for branches in branched),
        completions,
        counter.calls_asked - before[0],
        counter.calls_made - before[1],
        time.perf_counter() - started,
    )


def anchors(group: Sequence[Trajectory], number: int, seed: int) -> list[tuple[int, int]]:
    """Return random rollouts and steps from which local groups start.

    Args:
        group: The rollouts of one instance.
        number: Number of anchors; at most one per step is returned.
        seed: Seed of the draws.

    Returns:
        (index of the rollout in the group, step from 1), ordered by step.
    """
    rng = generator(seed, "local groups", group[0].instance_id)
    steps = range(1, group[0].num_steps + 1)
    chosen = sorted(rng.sample(steps, min(number, len(steps))))
    return [(rng.randrange(len(group)), step) for step in chosen]


def _branches(instance: Instance, anchor: Trajectory, step: int, size: int) -> list[_Branch]:
    """Return the branches of a local group, each with its own copy of the shared memory."""
    return [
        _Branch(instance, anchor, replay(anchor, recorded_memory(anchor), step - 1), step)
        for _ in range(size)
    ]


def _play(branches: Sequence[_Branch], settings: LocalGroups, act: Act) -> int:
    """Play the branches to their end, in lockstep; return the number of completions."""
    live, number, completions = [*branches], 0, 0
    while live:
        number += 1
        found = act([one.next for one in live], number)
        completions += len(live)
        for one, completion in zip(live, found, strict=True):
            step = one.advance(completion)
            if one.played is None:
                one.played, one.after = step, _last_write_last(one.memory)
        live = [one for one in live if one.step <= one.anchor.num_steps]
        if settings.continuation == "replay":
            break
    for one in branches:
        replayed = settings.continuation == "replay"
        one.end = one.replayed_end() if replayed else _last_write_last(one.memory)
    return completions


def _valued(
    branches: Sequence[_Branch], settings: LocalGroups, agent: ReasoningAgent
) -> LocalGroup:
    """Return the local group of branches that were played, with values and advantages."""
    anchor = branches[0].anchor
    steps = tuple(one.played for one in branches if one.played is not None)
    outcomes, chunks = _scores(branches, anchor, steps[0].step, agent)
    weights = {"outcome": settings.outcome_weight, "chunk": settings.chunk_weight}
    weights = {name: weight for name, weight in weights.items() if weight}
    terms = [
        {"outcome": outcome, "chunk": chunk}
        for outcome, chunk in zip(outcomes, chunks, strict=True)
    ]
    values = [weighted_sum({name: one[name] for name in weights}, weights) for one in terms]
    advantages = [row[0] for row in group_relative([[value] for value in values])]
    return LocalGroup(
        anchor.instance_id,
        anchor.rollout,
        steps[0].step,
        steps,
        tuple(outcomes),
        tuple(chunks),
        tuple(values),
        tuple(settings.weight * (advantage or 0.0) for advantage in advantages),
    )


def _scores(
    branches: Sequence[_Branch], anchor: Trajectory, step: int, agent: ReasoningAgent
) -> tuple[list[float | None], list[float | None]]:
    """Return the outcome and the chunk-level step reward of every branch."""
    asking = asking_of(anchor, agent)
    last = [answered.question for answered in anchor.questions]
    of_chunk = [answered.question for answered in anchor.steps[step - 1].chunk_questions]
    rows = asking.scores(
        [(last, one.end) for one in branches] + [(of_chunk, one.after) for one in branches]
    )
    means = [_mean(row) for row in rows]
    return means[: len(branches)], means[len(branches) :]


def _with_own_ids(
    operations: Iterable[Operation | InvalidOperation], recorded: Step
) -> Iterable[Operation | InvalidOperation]:
    """Yield operations with explicit ids for new items.

    Content that the rollout's own step inserted keeps its recorded id, so that a later UPDATE in
    the replay still changes it. Other items get ids that do not occur in the rollout.
    """
    stored = {
        outcome.operation.content: outcome.item_id
        for outcome in recorded.outcomes
        if outcome.applied and outcome.operation and outcome.operation.kind == "INSERT"
    }
    for place, operation in enumerate(operations):
        if (
            isinstance(operation, Operation)
            and operation.kind == "INSERT"
            and operation.item_id is None
        ):
            own = f"local {recorded.step}.{place}"
            known = stored.pop(operation.content, None)  # only the first INSERT of a content
            operation = dataclasses.replace(operation, item_id=known or own)
        yield operation


def _last_write_last(memory: FlatMemory) -> Memory:
    def last_write(item: MemoryItem) -> tuple[int, int]:
        return item.lineage[-1].step, item.lineage[-1].position

    return tuple(sorted(memory.items, key=last_write))


def _mean(scores: Sequence[float | None]) -> float | None:
    known = [score for score in scores if score is not None]
    return math.fsum(known) / len(known) if known else None
