"""State mismatch: how well advantages match the effects of steps whose memory states differ.

At step 1 all rollouts of a group see the same prompt. Later each rollout has its own memory, so a
difference in outcome mixes the effect of the step with that of the earlier steps. `Fork` is the
smallest example. `mismatch_rows` measures the agreement on rollouts, step by step, also for two
remedies: comparing only rollouts in equal states (GiGPO), and rolling out each step several times
from one shared state (LoGo-GRPO).

Differs from the papers: only the local comparison of both methods is used, without the advantage
over the whole group that they add to it; the re-rollouts of all steps start from the first rollout
of a group.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finemem_lib.advantages import group_relative
from finemem_lib.credit.group import anchored_groups, states_seen
from finemem_lib.credit.needs import mean_of_known
from finemem_lib.credit.recorded import evidence_anchored_used
from finemem_lib.credit.replay import Replayer
from finemem_lib.evaluation.intervals import expanded_level, percentile_ends
from finemem_lib.managers.protocol import Completion, MemoryManager, Observation
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import outcome_reward
from finemem_lib.seeds import stable_seed
from finemem_lib.trajectory import Instance, InvalidOperation, Step, Trajectory

COMPARISONS = (
    "all rollouts, outcome",
    "all rollouts, used items",
    "equal states only",
    "re-rollouts from one state",
)
"""Comparisons that define an advantage: over all rollouts, by the outcome or by the evidence of the
items that the reader used; among rollouts in the same state; among re-rollouts from one state."""


@dataclass(frozen=True, slots=True)
class Fork:
    """Example: four rollouts of two steps that store their facts or not, in all combinations.

    A question is answered right if the fact that it asks for is in the memory.

    Attributes:
        share: Share of the questions that ask for the fact of step 1, in [0, 1]; all others ask for
            that of step 2.

    >>> fork = Fork(0.75)
    >>> fork.outcomes, fork.compared, fork.within_state, fork.effects
    ([1.0, 0.75, 0.25, 0.0], [0.5, 0.25, -0.25, -0.5], [0.125, -0.125, 0.125, -0.125], \
[0.25, 0.0, 0.25, 0.0])
    """

    share: float

    STORED = ((1, 1), (1, 0), (0, 1), (0, 0))
    """Whether each rollout stored the fact of step 1, and that of step 2."""

    @property
    def outcomes(self) -> list[float]:
        """The outcome of each rollout."""
        return [self.share * first + (1 - self.share) * second for first, second in self.STORED]

    @property
    def effects(self) -> list[float]:
        """The effect of step 2 in each rollout: its outcome minus the outcome without step 2."""
        return [(1 - self.share) * second for _, second in self.STORED]

    @property
    def compared(self) -> list[float]:
        """The advantage of step 2 over all rollouts, unscaled."""
        return _centred(self.outcomes)

    @property
    def within_state(self) -> list[float]:
        """The advantage of step 2 among the two rollouts with the same memory, unscaled."""
        outcomes = self.outcomes
        return _centred(outcomes[:2]) + _centred(outcomes[2:])


@dataclass(frozen=True, slots=True)
class Compared:
    """Advantage and effect of one step of one rollout under one comparison.

    Attributes:
        comparison: One of `COMPARISONS`.
        step: From 1 to T.
        advantage: Advantage of the step under the comparison.
        effect: r_global minus r_global of a replay without the step.
        alone: Whether there was no other rollout to compare with.
    """

    comparison: str
    instance_id: str
    step: int
    advantage: float
    effect: float
    alone: bool


@dataclass(frozen=True, slots=True)
class Agreement:
    """Correlation of advantages and effects under one comparison at one step.

    Attributes:
        comparison: One of `COMPARISONS`.
        step: From 1 to T.
        value: Correlation within instances, in [-1, 1]; `None` if advantage or effect is constant.
        low, high: Ends of its bootstrap interval over instances; `None` if there is none.
        alone: Share of the rollouts without another rollout to compare with.
    """

    comparison: str
    step: int
    value: float | None
    low: float | None
    high: float | None
    alone: float


class FromState:
    """Manager that repeats recorded completions before a step and samples new ones from there on.

    Args:
        manager: Memory manager that acts from `step` on.
        recorded: The trajectory to repeat, by instance id.
        step: The first step that is not repeated.
    """

    def __init__(
        self, manager: MemoryManager, recorded: Mapping[str, Trajectory], step: int
    ) -> None:
        self.manager = manager
        self.recorded = recorded
        self.step = step
        self.name = manager.name
        self.settings = manager.settings

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return recorded completions before `step`, and the manager's own from there on.

        Args:
            observations: Observations of this step, one per rollout.
            seed: Seed of all random choices; it is combined with `step`, so that re-rollouts from
                different steps use different random numbers.
        """
        if observations[0].step >= self.step:
            return self.manager.act(observations, stable_seed(seed, "from", self.step))
        return [
            _completion(self.recorded[one.instance.instance_id].steps[one.step - 1])
            for one in observations
        ]


def mismatch_rows(
    instances: Sequence[Instance],
    manager: MemoryManager,
    settings: RolloutSettings,
    agent: ReasoningAgent,
    seed: int,
) -> list[Compared]:
    """Play instances and return advantage and effect of every step under every comparison.

    The re-rollouts cost ``(T - 1) / 2`` times the steps of the original rollouts; step 1 needs no
    re-rollouts, because all rollouts start from the same state.

    Args:
        instances: Instances of equal length with distinct ids.
        manager: Memory manager.
        settings: Rollout settings.
        agent: Reasoning agent that answers the questions.
        seed: Seed of all random choices.

    Raises:
        ValueError: see `rollout.play` and `counterfactual.step_leave_one_out`.
    """
    groups = play(instances, manager, settings, agent, seed)
    num_steps = groups[0][0].num_steps
    first = {group[0].instance_id: group[0] for group in groups}
    again = {1: groups} | {
        step: play(instances, FromState(manager, first, step), settings, agent, seed)
        for step in range(2, num_steps + 1)
    }
    return [
        row
        for place, group in enumerate(groups)
        for row in _group_rows(group, {step: again[step][place] for step in again}, agent)
    ]


def _group_rows(
    group: Sequence[Trajectory],
    again: Mapping[int, Sequence[Trajectory]],
    agent: ReasoningAgent,
) -> list[Compared]:
    """Return the rows of a group, given its re-rollouts from every step."""
    outcome = group_relative([[outcome_reward(one)] for one in group])
    used = group_relative([evidence_anchored_used(one, beta=1.0) for one in group])
    local = [anchored_groups(one, group=group, gamma=1.0) for one in group]
    rows = []
    for step, states in enumerate(zip(*map(states_seen, group), strict=True), start=1):
        effects = _effects(group, step, agent)
        for number, (whole, effect) in enumerate(zip(outcome, effects, strict=True)):
            anchored, shared = local[number][step - 1], whole[0]
            values = {
                COMPARISONS[0]: shared,
                COMPARISONS[1]: used[number][step - 1],
                COMPARISONS[2]: None if anchored is None or shared is None else anchored - shared,
            }
            alone = {COMPARISONS[2]: states.count(states[number]) == 1}
            rows += _rows(group, step, values, effect, alone)
        fresh = group_relative([[outcome_reward(one)] for one in again[step]])
        for row, effect in zip(fresh, _effects(again[step], step, agent), strict=True):
            rows += _rows(again[step], step, {COMPARISONS[3]: row[0]}, effect, {})
    return rows


def agreements(rows: Sequence[Compared], resamples: int = 1000, seed: int = 0) -> list[Agreement]:
    """Return the correlation of advantages and effects for every comparison and step.

    Advantage and effect are centred on their means over the rollouts of an instance at the step.
    Intervals are bootstrap intervals over instances, of 95 %.

    Args:
        rows: Rows of `mismatch_rows`.
        resamples: Number of bootstrap resamples.
        seed: Seed of the bootstrap.
    """
    found = []
    keys = dict.fromkeys((row.comparison, row.step) for row in rows)
    for comparison, step in sorted(keys, key=lambda key: (COMPARISONS.index(key[0]), key[1])):
        those = [row for row in rows if (row.comparison, row.step) == (comparison, step)]
        sums = np.array(
            [
                _moments([r for r in those if r.instance_id == name])
                for name in sorted({row.instance_id for row in those})
            ]
        )
        value = _correlation(sums.sum(axis=0))
        low = high = None
        if value is not None and len(sums) > 1:
            draw = np.random.default_rng(stable_seed(seed, comparison, step))
            picked = sums[draw.integers(len(sums), size=(resamples, len(sums)))].sum(axis=1)
            drawn = [one for one in map(_correlation, picked) if one is not None]
            ends = percentile_ends(np.array(drawn), expanded_level(0.95, len(sums)))
            low, high = map(float, ends)
        alone = sum(row.alone for row in those) / len(those)
        found.append(Agreement(comparison, step, value, low, high, alone))
    return found


def _rows(
    group: Sequence[Trajectory],
    step: int,
    advantages: Mapping[str, float | None],
    effect: float | None,
    alone: Mapping[str, bool],
) -> list[Compared]:
    """Return the rows of one step of one rollout; an unscored comparison has no row."""
    return [
        Compared(name, group[0].instance_id, step, value, effect, alone.get(name, False))
        for name, value in advantages.items()
        if value is not None and effect is not None
    ]


def _effects(group: Sequence[Trajectory], step: int, agent: ReasoningAgent) -> list[float | None]:
    """Return, per rollout, r_global minus r_global of a replay without the step."""
    effects: list[float | None] = []
    for one in group:
        outcome = outcome_reward(one)
        questions = [answered.question for answered in one.questions if answered.score is not None]
        [scores] = Replayer(one, agent).ask([(questions, frozenset({step}))])
        without = mean_of_known(scores)
        effects.append(None if outcome is None or without is None else outcome - without)
    return effects


def _completion(step: Step) -> Completion:
    """Return the completion of a recorded step, as the manager returned it."""
    operations = tuple(
        InvalidOperation(outcome.reason or "", outcome.raw or "")
        if outcome.operation is None
        else outcome.operation
        for outcome in step.outcomes
    )
    return Completion(
        step.completion,
        operations,
        step.prompt,
        step.prompt_ids,
        step.completion_ids,
        step.logprobs,
        step.prompt_truncated_tokens,
        step.prompt_omitted_items,
    )


def _centred(values: Sequence[float]) -> list[float]:
    return [value - math.fsum(values) / len(values) for value in values]


def _moments(rows: Sequence[Compared]) -> tuple[float, float, float]:
    """Return the sums of squares and products of advantage and effect around their means."""
    x = np.array([row.advantage for row in rows])
    y = np.array([row.effect for row in rows])
    x, y = x - x.mean(), y - y.mean()
    return float(x @ x), float(y @ y), float(x @ y)


def _correlation(sums: Any) -> float | None:
    xx, yy, xy = map(float, sums)
    return None if min(xx, yy) <= 1e-12 else xy / math.sqrt(xx * yy)
