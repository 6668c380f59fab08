"""Play one update's rollouts in lockstep, reward every step, and flatten them to TRL's rows."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finemem_lib.advantages import ScaleRewards, instance_relative
from finemem_lib.data.faults import EvidenceFaults, with_faults
from finemem_lib.layers.content_reward import ContentJudge, rule_verdicts
from finemem_lib.managers.prompts import Prompt, PromptBuilder
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.managers.rollout import LockstepRollouts, RolloutSettings, check_memory
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, outcome_reward, weighted_sum
from finemem_lib.seeds import stable_seed
from finemem_lib.training.local_groups import LocalGroups, LocalUpdate, play_local_groups
from finemem_lib.training.record import PlayedUpdate
from finemem_lib.training.schemes import Scheme, Terms, scheme_weights, update_terms, w1_at
from finemem_lib.trajectory import OPERATION_KINDS, Instance, Step, Trajectory

Sampled = tuple[Sequence[Sequence[int]], Sequence[Sequence[float] | None] | None]
"""Token ids of the completions, and their log-probabilities, or `None` where unknown."""

Sampler = Callable[[list[Prompt], int], Sampled]
"""Samples one completion per prompt at a step (from 1; below 0 in local groups)."""


@dataclass(frozen=True)
class Rollouts:
    """The rollouts of one update.

    Attributes:
        groups: Trajectories per instance and rollout.
        rows: Reward terms and `Step`, ordered by (instance, step, rollout), as TRL's rows.
        operations: Per row, the value added to the advantage of the tokens of each outcome of the
            step; `None` where the scheme credits no operations.
        sampling_seconds: Seconds spent on sampling completions.
        credit_seconds: Seconds spent on rewards and credit after the rollouts.
        measures: `schemes.UpdateTerms.measures` and `LocalUpdate.measures`.
        local: The local groups, which are not in `rows`.
    """

    groups: list[list[Trajectory]]
    rows: list[tuple[Terms, Step]]
    operations: list[list[float]] | None
    sampling_seconds: float
    credit_seconds: float
    measures: dict[str, float]
    local: LocalUpdate = field(default_factory=LocalUpdate)


@dataclass
class _Acting:
    """The manager of one update, and the seconds that it spent on sampling."""

    builder: PromptBuilder
    sample: Sampler
    seconds: float = 0.0

    def act(self, observations: list[Observation], step: int) -> list[Completion]:
        """Return one completion per observation of a step."""
        prompts = [self.builder.render(observation) for observation in observations]
        started = time.perf_counter()
        sampled = self.sample(prompts, step)
        self.seconds += time.perf_counter() - started
        return self.builder.complete(prompts, *sampled)


@dataclass(frozen=True)
class UpdatePlayer:
    """Plays the rollouts of an update and rewards every step.

    Attributes:
        builder: Renders prompts and parses completions.
        agent: The reasoning agent.
        rollout: Settings of the rollouts.
        scheme: Reward scheme, or the name of a shipped scheme.
        rewards: Settings of the reward terms.
        w1_until: Update at which w1 has fallen to 0; `None` keeps it constant.
        evidence_faults: Faults in the evidence used for credit; scores do not change.
        manager_name: Name of the manager in the trajectories.
        seed: Seed of all random choices, together with the number of the update.
        local_groups: Local groups that are played in addition to the rollouts; `None` for none.
        content_judge: Judge of the written contents, used if the scheme has the content reward.

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
    content_judge: ContentJudge = rule_verdicts

    def __post_init__(self) -> None:
        if self.w1_until is not None and self.w1_until < 2:
            raise ValueError(
                f"StepGRPOTrainer: w1_until is {self.w1_until}, expected an update from 2 on, or "
                "None; for no chunk-level step reward at all set w1 to 0"
            )
        check_memory(self.manager_name, self.builder.memory, self.rollout)
        scheme_weights(self.scheme)  # refuses an unknown scheme before anything is loaded

    @property
    def terms(self) -> tuple[str, ...]:
        """Names of the logged reward terms, in the order of TRL's reward functions."""
        return tuple(scheme_weights(self.scheme, self.rewards))

    def weights(self, done: int) -> dict[str, float]:
        """Return the weight of every logged term after `done` finished updates.

        Args:
            done: Number of finished updates, from 0.
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
            size: Number of rollouts per instance.
            done: Number of finished updates, which determines the seeds.
            sample: Samples the completions of a step.
            previous: `Rollouts.measures` of the previous update.
            local: Whether to play the local groups, if there are any.
        """
        rollouts = LockstepRollouts(
            instances,
            dataclasses.replace(self.rollout, num_generations=size),
            self.agent,
            self.manager_name,
            stable_seed(self.seed, done),
            self.builder.settings,
        )
        manager = _Acting(self.builder, sample)
        while observations := rollouts.observations():
            rollouts.advance(manager.act(observations, observations[0].step))
        groups = rollouts.finish()
        started = time.perf_counter()
        found = update_terms(
            self._attributed(groups, done),
            self.scheme,
            self.rewards,
            self.agent,
            previous,
            self.content_judge,
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
                lambda observations, number: manager.act(observations, -number),
                self.agent,
                stable_seed(self.seed, done),
            )
            measures = measures | branched.measures
        return Rollouts(
            groups, rows, operations, manager.seconds, credit_seconds, measures, branched
        )

    def instance_advantages(
        self, rollouts: Rollouts, done: int, scale: ScaleRewards
    ) -> list[float]:
        """Return the advantage of every row over the group of its whole instance.

        Args:
            rollouts: The rollouts of the update.
            done: Number of finished updates.
            scale: As in `advantages.instance_relative`.
        """
        weights, found, start = self.weights(done), [], 0
        for group in rollouts.groups:
            steps, size = group[0].num_steps, len(group)
            rows = rollouts.rows[start : start + steps * size]
            start += len(rows)
            rewards = [
                [weighted_sum({name: row[name] for name in weights}, weights)] for row, _ in rows
            ]
            found += [value or 0.0 for (value,) in instance_relative(rewards, scale)]
        return found

    def record(
        self, update: int, rollouts: Rollouts, weights: Sequence[float], advantages: Sequence[float]
    ) -> PlayedUpdate:
        """Return the record of an update with the rewards and advantages of its loss.

        Args:
            update: Number of the update, from 1.
            rollouts: The rollouts of the update.
            weights: Weight that TRL applied to each of `terms`.
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
        """Return the trajectories for credit, with `evidence_faults` applied."""
        faults = self.evidence_faults
        if faults is None:
            return groups
        seed = stable_seed(self.seed, done)
        return [[with_faults(played, faults, seed) for played in group] for group in groups]


def _as_rows(groups: Sequence[Sequence[Sequence[Any]]]) -> list[Any]:
    """Return values per group, rollout and step, flattened to (instance, step, rollout)."""
    return [one for group in groups for step in zip(*group, strict=True) for one in step]


def trajectory_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return averages over trajectories for the training record.

    Args:
        trajectories: The rollouts of one update, at least one.

    Returns:
        "accuracy": mean r_global in [0, 1], absent where nothing could be scored;
        "operations/<kind>": number of parsed operations per step;
        "invalid_share": share of invalid operations among the emitted ones, in [0, 1];
        "prompt/truncated_tokens", "prompt/omitted_items": mean number per step;
        "memory_items", "memory_tokens": mean size of M_T.
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
