"""Credit rules that compare the rollouts of one group."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Literal, TypeVar

from finemem_lib.advantages import ScaleRewards, group_relative
from finemem_lib.credit.needs import Credit, need, need_questions
from finemem_lib.credit.recorded import chunk_step_reward
from finemem_lib.rewards import outcome_reward
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Step, Trajectory, creation_key

Known = TypeVar("Known")


class _Cached:
    """A cache of results that rules computed from all of its parts."""

    def once(self, key: Hashable, compute: Callable[[], Known]) -> Known:
        """Return the cached result for a key; compute it on the first call.

        Args:
            key: Identifies the result, including every setting that it depends on.
            compute: Computes the result; called only if the key is new.
        """
        known: dict[Hashable, Any] = self.__dict__.setdefault("known", {})
        if key not in known:
            known[key] = compute()
        result: Known = known[key]
        return result


class CachedGroup(_Cached, tuple[Trajectory, ...]):
    """The rollouts of one group, with a cache of results that rules computed from all of them.

    A rule that receives the same `CachedGroup` for each rollout computes the results that the
    rollouts share only once.
    """


class CachedUpdate(_Cached, tuple[CachedGroup, ...]):
    """The groups of one update, with a cache of results that rules computed from all of them."""


def turn_level(
    trajectory: Trajectory,
    *,
    group: Sequence[Trajectory],
    coefficient: float = 1.0,
    turns: Literal["first", "all"] = "first",
    scale_rewards: ScaleRewards = "group",
) -> Credit:
    """Return the turn-level advantage ``A_outcome + coefficient A_turn(t)``.

    Both are group-relative; the turn reward is r_chunk(t). The rollouts' advantages at a step sum
    to 0. `None` where r_global is `None`. Source: MT-GRPO (arXiv 2505.11821).

    Args:
        trajectory: One rollout of `group`.
        group: All rollouts of the instance.
        coefficient: Weight of the turn's advantage.
        turns: Steps at which the turn reward enters: step 1 only ("first", as in the published
            two-turn code) or every step with a turn reward ("all"); elsewhere the advantage is
            A_outcome.
        scale_rewards: As in `advantages.group_relative`.

    Raises:
        ValueError: `group` is not a group of the trajectory, or there are no chunk questions.
    """
    rollouts, place = _rollouts(trajectory, group)
    outcome = _outcome_advantages(rollouts, scale_rewards)[place]
    # A rollout without an outcome has no advantage, so its turn rewards are left out as well.
    turn = rollouts.once(
        ("turn", scale_rewards),
        lambda: group_relative(
            [
                [None] * one.num_steps if outcome_reward(one) is None else chunk_step_reward(one)
                for one in rollouts
            ],
            scale_rewards,
        ),
    )[place]
    return [
        outcome
        if outcome is None or advantage is None or (turns == "first" and step > 1)
        else outcome + coefficient * advantage
        for step, advantage in enumerate(turn, start=1)
    ]


def anchored_groups(
    trajectory: Trajectory,
    *,
    group: Sequence[Trajectory],
    omega: float = 1.0,
    gamma: float = 0.95,
    scale_rewards: ScaleRewards = "group",
) -> Credit:
    """Return ``A_episode + omega A_step(t)``.

    A_episode is the group-relative outcome reward. A_step(t) is the advantage of the return
    ``gamma^(T-t) r_global`` among the rollouts in the same state at step t: the same contents in
    memory, in the same order, and the same chunk. A_step(t) is 0 where no other rollout is in that
    state. The rollouts' advantages at a step sum to 0. `None` where r_global is `None`. Source:
    GiGPO (arXiv 2505.10978).

    Args:
        trajectory, group: As in `turn_level`.
        omega: Weight of A_step.
        gamma: Discount per step.
        scale_rewards: As in `advantages.group_relative`; with "batch" the compared returns of all
            steps share one standard deviation.

    Raises:
        ValueError: `group` is not a group of the trajectory.
    """
    rollouts, place = _rollouts(trajectory, group)
    episode = _outcome_advantages(rollouts, scale_rewards)[place]
    if episode is None:
        return [None] * trajectory.num_steps
    anchored = rollouts.once(
        ("anchored", gamma, scale_rewards), lambda: _anchored(rollouts, gamma, scale_rewards)
    )
    return [episode + omega * local for local in anchored[place]]


def _anchored(
    rollouts: CachedGroup, gamma: float, scale_rewards: ScaleRewards
) -> list[list[float]]:
    """Return A_step(t) of `anchored_groups` for every rollout with an outcome (0 for others)."""
    num_steps = rollouts[0].num_steps
    outcomes = [outcome_reward(one) for one in rollouts]
    groups = []  # (step, the rollouts in one state), if there are at least two of them
    for step, states in enumerate(zip(*map(states_seen, rollouts), strict=True)):
        alike = defaultdict(list)
        for rollout, state in enumerate(states):
            if outcomes[rollout] is not None:
                alike[state].append(rollout)
        groups += [(step, members) for members in alike.values() if len(members) > 1]
    returns = [
        [
            None
            if outcome is None or rollout not in members
            else gamma ** (num_steps - 1 - step) * outcome
            for step, members in groups
        ]
        for rollout, outcome in enumerate(outcomes)
    ]
    scaled = group_relative(returns, scale_rewards)
    local = [[0.0] * num_steps for _ in rollouts]
    for row, advantages in zip(local, scaled, strict=True):
        for (step, _), advantage in zip(groups, advantages, strict=True):
            if advantage is not None:
                row[step] = advantage
    return local


def hindsight(
    trajectory: Trajectory,
    *,
    group: Sequence[Trajectory],
    retrieved_weight: float = 0.1,
    scale_rewards: ScaleRewards = "group",
) -> Credit:
    """Return ``S_t = (1/n) sum_j ([t in E_j] + lambda [t wrote an item in M_j]) A_j``.

    A_j is the group-relative advantage of the score on question j, E_j the steps whose chunks hold
    the evidence (the ground truth, which no other rule reads), M_j the retrieved items. A step
    without a write gets 0. At lambda 0 the credit sums to 0 over the rollouts at every step where
    all of them wrote. `None` where no question could be scored. Source: Mem-T, hindsight credit of
    memory construction.

    Args:
        trajectory, group: As in `turn_level`.
        retrieved_weight: lambda, the weight of having written a retrieved item.
        scale_rewards: As in `advantages.group_relative`.

    Raises:
        ValueError: `group` is not a group of the trajectory, or a question has no evidence steps.
    """
    rollouts, place = _rollouts(trajectory, group)
    for answered in trajectory.questions:
        need(
            answered.question.evidence_steps is not None,
            trajectory,
            f"the evidence steps of question {answered.question.question_id!r}",
            "take data whose truth is known, such as the planted stream",
        )
    advantages = rollouts.once(
        ("questions", scale_rewards),
        lambda: group_relative(
            [[answered.score for answered in one.questions] for one in rollouts], scale_rewards
        ),
    )[place]
    scored = [
        (answered, advantage)
        for answered, advantage in zip(trajectory.questions, advantages, strict=True)
        if advantage is not None
    ]
    if not scored:
        return [None] * trajectory.num_steps
    parts: defaultdict[int, list[float]] = defaultdict(list)
    for answered, advantage in scored:
        evidence = set(answered.question.evidence_steps or ())
        wrote = {step for item in answered.retrieved for step in item.steps}
        for step in evidence | wrote:
            weight = (step in evidence) + retrieved_weight * (step in wrote)
            parts[step].append(weight * advantage)
    return [
        math.fsum(parts[step.step]) / len(scored) if step.delta.written else 0.0
        for step in trajectory.steps
    ]


def attributed_dense(
    trajectory: Trajectory,
    *,
    group: Sequence[Trajectory],
    alpha: float = 4.0,
    length_weight: float = 0.1,
    scale_rewards: ScaleRewards = "group",
) -> Credit:
    """Return ``w_t A(valid_t r_chunk(t) (1 - lambda l_t))``.

    valid_t is 1 where every operation of the step was applied (0 where the step emitted none); l_t
    is the length of the step's writes divided by the length of its chunk, at most 1; A is the
    group-relative advantage. w_t is `alpha` at the step whose items the global questions retrieved
    most often (at all such steps in a tie), else 1. w_t multiplies the advantage, because
    standardising would cancel a weight that all rollouts share. At alpha 1 the rollouts' advantages
    at a step sum to 0. `None` where r_chunk is `None`. Source: MemBuilder (arXiv 2601.05488),
    attributed dense reward.

    Args:
        trajectory, group: As in `turn_level`.
        alpha: Weight of the step whose items were retrieved most often.
        length_weight: lambda, the weight of the length; the default is our choice.
        scale_rewards: As in `advantages.group_relative`.

    Raises:
        ValueError: as `turn_level`.
    """
    rollouts, place = _rollouts(trajectory, group)
    advantages = rollouts.once(
        ("dense", length_weight, scale_rewards),
        lambda: group_relative(
            [
                [
                    None if reward is None else valid_and_short(step, length_weight) * reward
                    for step, reward in zip(one.steps, chunk_step_reward(one), strict=True)
                ]
                for one in rollouts
            ],
            scale_rewards,
        ),
    )
    hits = Counter(
        item.steps[-1] for answered in trajectory.questions for item in answered.retrieved
    )
    most = max(hits.values(), default=0)
    return [
        None if advantage is None else (alpha if most and hits[step] == most else 1.0) * advantage
        for step, advantage in enumerate(advantages[place], start=1)
    ]


def valid_and_short(step: Step, length_weight: float) -> float:
    """Return ``valid_t (1 - lambda l_t)`` of `attributed_dense`.

    Args:
        step: The step to credit.
        length_weight: lambda, the weight of the length.
    """
    valid = bool(step.outcomes) and all(outcome.applied for outcome in step.outcomes)
    written = sum(count_tokens(item.content) for item in step.delta.written)
    return valid * (1 - length_weight * min(1.0, written / max(1, step.chunk.tokens)))


def _rollouts(trajectory: Trajectory, group: Sequence[Trajectory]) -> tuple[CachedGroup, int]:
    """Return the group and the index of the trajectory in it."""

    def asked(one: Trajectory) -> list[str]:
        return [answered.question.question_id for answered in one.questions]

    need_questions(trajectory)
    numbers = [one.rollout for one in group]
    need(
        len(set(numbers)) == len(numbers) and trajectory.rollout in numbers,
        trajectory,
        f"a group that holds its rollout and no rollout twice (got {numbers})",
        "pass group=, all rollouts of the instance; padding must never enter an advantage",
    )
    same = all(
        (one.instance_id, one.num_steps, asked(one))
        == (trajectory.instance_id, trajectory.num_steps, asked(trajectory))
        for one in group
    )
    need(
        same,
        trajectory,
        "a group of the same instance, steps and questions",
        "pass group=, the rollouts that `rollout.play` returned together",
    )
    rollouts = group if isinstance(group, CachedGroup) else CachedGroup(group)
    return rollouts, numbers.index(trajectory.rollout)


def _outcome_advantages(rollouts: CachedGroup, scale_rewards: ScaleRewards) -> list[float | None]:
    rows = rollouts.once(
        ("outcome", scale_rewards),
        lambda: group_relative([[outcome_reward(one)] for one in rollouts], scale_rewards),
    )
    return [row[0] for row in rows]


def states_seen(trajectory: Trajectory) -> list[tuple[str, ...]]:
    """Return the manager's state at every step: the chunk and the contents in memory before it.

    Args:
        trajectory: The rollout whose states are returned.
    """
    states = []
    contents: dict[str, str] = {}  # by item id, in the order of creation
    for step in trajectory.steps:
        states.append((step.chunk.text, *contents.values()))
        for item_id in step.delta.removed + step.delta.evicted:
            contents.pop(item_id, None)
        for item in sorted(step.delta.written, key=creation_key):
            contents[item.item_id] = item.content
    return states
