"""One update's rollouts: played in lockstep, rewarded per step, flattened to TRL's rows."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finemem_lib.data.faults import EvidenceFaults, with_faults
from finemem_lib.managers.prompts import PromptBuilder
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.managers.rollout import LockstepRollouts, RolloutSettings
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, outcome_reward, weighted_sum
from finemem_lib.seeds import stable_seed
from finemem_lib.training.local_groups import LocalGroups, LocalUpdate, play_local_groups
from finemem_lib.training.record import PlayedUpdate
from finemem_lib.training.schemes import Scheme, scheme_weights, update_terms, w1_at
from finemem_lib.trajectory import OPERATION_KINDS, Instance, Step, Trajectory

Terms = dict[str, float | None]
"""The unweighted reward terms of one step by name; `None` where one is unknown."""

Sampled = tuple[Sequence[Sequence[int]], Sequence[Sequence[float] | None] | None]
"""Token ids of the completions, and their log-probabilities where the sampler knows them."""

Sampler = Callable[[list[tuple[int, ...]], int], Sampled]
"""Samples one completion per prompt (token ids) at a step (from 1; below 0 in local groups)."""


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of one update.

    Attributes:
        groups: Trajectories per instance and rollout, as they were played.
        rows: Reward terms and `Step`, ordered (instance, step, rollout), as TRL's rows are.
        operations: What is added to the advantage of the tokens of every outcome of each row's
            step; `None` where the scheme credits no operations.
        sampling_seconds: Seconds spent in sampling completions.
        credit_seconds: Seconds spent in rewards and credit, after playing.
        measures: `schemes.UpdateTerms.measures`, and those of the local groups.
        local: The local groups; `rows` are without them.
    """

    groups: list[list[Trajectory]]
    rows: list[tuple[Terms, Step]]
    operations: list[list[float]] | None
    sampling_seconds: float
    credit_seconds: float
    measures: dict[str, float]
    local: LocalUpdate = field(default_factory=LocalUpdate)


@dataclass(frozen=True)
class UpdatePlayer:
    """Plays the rollouts of an update and rewards every step of them.

    Attributes:
        builder: Renders prompts and reads completions.
        agent: Answers the questions.
        rollout: How instances are played.
        scheme: Reward scheme, or the name of a shipped one.
        rewards: Settings of the reward terms.
        w1_until: Update at which w1 has fallen to 0; `None` keeps it constant.
        evidence_faults: Faults of the evidence that credit is attributed by; scores stay as they
            are.
        manager_name: Written into the trajectories.
        seed: Every random choice follows from it and the number of the update.
        local_groups: Local groups that are played beside the rollouts; `None` for none.

    Raises:
        ValueError: `w1_until` is less than 2, or the scheme is unknown.
    """

    builder: PromptBuilder
    agent: ReasoningAgent
    rollout: RolloutSettings
    scheme: Scheme
    rewards: RewardSettings
    w1_until: int | None
    evidence_faults: EvidenceFaults | None
    manager_name: str
    seed: int
    local_groups: LocalGroups | None = None

    def __post_init__(self) -> None:
        if self.w1_until is not None and self.w1_until < 2:
            raise ValueError(
                f"StepGRPOTrainer: w1_until is {self.w1_until}, expected an update from 2 on, or "
                "None; for no chunk-level step reward at all set w1 to 0"
            )
        scheme_weights(self.scheme)  # refuses an unknown scheme before anything is loaded

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the logged reward terms, in the order of TRL's reward functions."""
        return tuple(scheme_weights(self.scheme, self.rewards))

    def weights(self, done: int) -> dict[str, float]:
        """Return the weight of every logged term after `done` finished updates.

        Args:
            done: Finished updates.
        """
        w1 = w1_at(done + 1, self.rewards.w1, self.w1_until)
        return scheme_weights(self.scheme, dataclasses.replace(self.rewards, w1=w1))

    def play(
        self,
        instances: Sequence[Instance],
        size: int,
        done: int,
        sample: Sampler,
        previous: Mapping[str, float] | None = None,
        local: bool = True,
    ) -> Rollouts:
        """Play an update and reward its steps.

        Args:
            instances: The instances of the update.
            size: Rollouts per instance.
            done: Finished updates, which seeds follow from.
            sample: Samples the completions of a step.
            previous: `Rollouts.measures` of the update before.
            local: Play the local groups, where there are any.
        """
        rollouts = LockstepRollouts(
            instances,
            dataclasses.replace(self.rollout, num_generations=size),
            self.agent,
            self.manager_name,
            stable_seed(self.seed, done),
            self.builder.settings,
        )
        seconds = 0.0

        def act(observations: list[Observation], step: int) -> list[Completion]:
            nonlocal seconds
            prompts = [self.builder.render(observation) for observation in observations]
            started = time.perf_counter()
            sampled = sample([prompt.ids for prompt in prompts], step)
            seconds += time.perf_counter() - started
            return self.builder.complete(prompts, *sampled)

        while observations := rollouts.observations():
            rollouts.advance(act(observations, observations[0].step))
        groups = rollouts.finish()
        started = time.perf_counter()
        found = update_terms(
            self._attributed(groups, done), self.scheme, self.rewards, self.agent, previous
        )
        steps = [[one.steps for one in group] for group in groups]
        rows = list(zip(_as_rows(found.terms), _as_rows(steps), strict=True))
        operations = None if found.operations is None else _as_rows(found.operations)
        credit_seconds = time.perf_counter() - started
        measures, branched = found.measures, LocalUpdate()
        if local and self.local_groups is not None:
            branched = play_local_groups(
                groups,
                instances,
                self.local_groups,
                lambda observations, number: act(observations, -number),
                self.agent,
                stable_seed(self.seed, done),
            )
            measures = measures | branched.measures
        return Rollouts(groups, rows, operations, seconds, credit_seconds, measures, branched)

    def record(
        self, update: int, rollouts: Rollouts, weights: Sequence[float], advantages: Sequence[float]
    ) -> PlayedUpdate:
        """Return the record of an update as it entered the loss.

        Args:
            update: Number of the update, from 1.
            rollouts: What was played.
            weights: Weight of every term of `terms`, as TRL applied it.
            advantages: Advantage of every row.
        """
        weight_of = dict(zip(self.terms, weights, strict=True))
        terms = [row for row, _ in rollouts.rows]
        rewards = [weighted_sum(row, weight_of) for row in terms]
        known = [
            None if reward is None else advantage
            for reward, advantage in zip(rewards, advantages, strict=True)
        ]
        return PlayedUpdate(update, rollouts.groups, terms, rewards, known, rollouts.operations)

    def _attributed(self, groups: list[list[Trajectory]], done: int) -> list[list[Trajectory]]:
        """Return the trajectories with the evidence that credit is attributed by."""
        faults = self.evidence_faults
        if faults is None:
            return groups
        seed = stable_seed(self.seed, done)
        return [[with_faults(played, faults, seed) for played in group] for group in groups]


def _as_rows(groups: Sequence[Sequence[Sequence[Any]]]) -> list[Any]:
    """Return what is given per group, rollout and step in the order (instance, step, rollout)."""
    return [one for group in groups for step in zip(*group, strict=True) for one in step]


def trajectory_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return averages over trajectories, as every record of training has them.

    Args:
        trajectories: The rollouts of one update, at least one.

    Returns:
        "accuracy": mean r_global in [0, 1], absent where nothing could be scored;
        "operations/<kind>": emitted per step, without those that could not be parsed;
        "invalid_share": of the emitted operations, in [0, 1];
        "prompt/truncated_tokens", "prompt/omitted_items": left out of the prompt, per step;
        "memory_items", "memory_tokens": size of M_T.
    """
    scores = [score for played in trajectories if (score := outcome_reward(played)) is not None]
    steps = [step for played in trajectories for step in played.steps]
    outcomes = [outcome for step in steps for outcome in step.outcomes]
    kinds = Counter(outcome.operation.kind for outcome in outcomes if outcome.operation)
    invalid = sum(not outcome.applied for outcome in outcomes)
    return {
        **({"accuracy": sum(scores) / len(scores)} if scores else {}),
        **{f"operations/{kind}": kinds[kind] / len(steps) for kind in OPERATION_KINDS},
        "invalid_share": invalid / max(len(outcomes), 1),
        "prompt/truncated_tokens": _mean(step.prompt_truncated_tokens for step in steps),
        "prompt/omitted_items": _mean(step.prompt_omitted_items for step in steps),
        "memory_items": _mean(len(played.final_memory()) for played in trajectories),
        "memory_tokens": _mean(played.steps[-1].memory_tokens for played in trajectories),
    }


def as_columns(rows: Iterable[tuple[Terms, Step]]) -> list[dict[str, Any]]:
    """Return TRL's input rows: the prompt's text and one column per reward term.

    Args:
        rows: Reward terms and step of every row.
    """
    return [{"prompt": step.prompt, **terms} for terms, step in rows]


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
