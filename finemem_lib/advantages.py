"""Group-relative advantages: compare the rewards of a step over the G rollouts of one instance.

Differs from the paper: Fine-Mem divides by ``std + eps`` without naming the estimator; here it is
TRL's, the unbiased standard deviation (divided by count - 1) and eps = 1e-4, and `scale_rewards`
has TRL's names and meaning. Normalising per step destroys conservation: the advantages of a
trajectory need not follow the sum of its evidence-anchored rewards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ScaleRewards = Literal["group", "batch", "none"]
EPSILON = 1e-4

Group = Literal["step", "instance"]
"""What a step is compared with: `group_relative` or `instance_relative`."""

DEAD_STD = 1e-8
"""A group whose standard deviation is at most this value counts as dead, as in TRL's log."""


def group_relative(
    rewards: Sequence[Sequence[float | None]], scale_rewards: ScaleRewards = "group"
) -> list[list[float | None]]:
    """Return ``A_{t,i} = (r_{t,i} - mean_i) / (std_i + 1e-4)``, normalised per step over rollouts.

    Source: Fine-Mem (arXiv 2601.08435), advantage; TRL's GRPOTrainer, "sum_then_normalize".

    Args:
        rewards: One row per rollout (num_generations), one column per step. An unscorable reward
            (`None`) enters neither mean nor standard deviation. To form a batch of several
            instances, concatenate their columns.
        scale_rewards: "group" divides by the standard deviation of the step's group, "batch" by
            the standard deviation of all rewards, "none" does not divide.

    Returns:
        Advantages in the shape of `rewards`, `None` where the reward is `None`; 0.0 in a dead
        group, which has a single reward or only equal rewards.

    Raises:
        ValueError: rollouts of different length, a reward that is not finite, or an unknown name.

    >>> group_relative([[1.0, 0.5], [0.0, 0.5], [0.5, None]], scale_rewards="none")
    [[0.5, 0.0], [-0.5, 0.0], [0.0, None]]
    >>> group_relative([[1.0], [-1.0]])[0][0] == 1 / (2**0.5 + 1e-4)
    True
    """
    if scale_rewards not in get_args(ScaleRewards):
        raise ValueError(
            f"scale_rewards is {scale_rewards!r}, expected one of "
            f"{', '.join(get_args(ScaleRewards))}"
        )
    values, scored = _as_array(rewards)
    advantages = _centred(values, scored)
    if scale_rewards == "group":
        advantages /= _std(values, scored, axis=0) + EPSILON
    elif scale_rewards == "batch":
        advantages /= _std(values, scored, axis=None) + EPSILON
    return [
        [float(value) if known else None for value, known in zip(row, mask, strict=True)]
        for row, mask in zip(advantages, scored, strict=True)
    ]


def instance_relative(
    rewards: Sequence[Sequence[float | None]], scale_rewards: ScaleRewards = "group"
) -> list[list[float | None]]:
    """Return advantages over one group of all steps of all rollouts of an instance.

    ``A_{t,i} = (r_{t,i} - mean) / (std + 1e-4)`` with mean and standard deviation over every t and
    i, as in Mem-alpha (arXiv 2509.25911), whose code adds 1e-6. A step that earns more than others
    in every rollout then has a positive advantage in all of them.

    Args:
        rewards: One row per rollout of one instance, one column per step; `None` enters nothing.
        scale_rewards: "none" does not divide; "group" and "batch" are the same here.

    Raises:
        ValueError: as `group_relative`.

    >>> instance_relative([[1.0, 0.0], [1.0, 0.0]], "none")
    [[0.5, -0.5], [0.5, -0.5]]
    """
    flat = [[value] for row in rewards for value in row]
    relative = iter(row[0] for row in group_relative(flat, scale_rewards))
    _as_array(rewards)  # refuses rollouts of different length
    return [[next(relative) for _ in row] for row in rewards]


def dead_groups(rewards: Sequence[Sequence[float | None]]) -> list[bool]:
    """Return per step whether its group is dead, so that the step gives no gradient.

    A group is dead when no two scorable rollouts differ: their standard deviation is at most 1e-8.

    Args:
        rewards: As for `group_relative`.

    Raises:
        ValueError: rollouts of different length, or a reward that is not finite.

    >>> dead_groups([[1.0, 0.5, None], [0.0, 0.5, 1.0]])
    [False, True, True]
    """
    values, scored = _as_array(rewards)
    return [bool(std <= DEAD_STD) for std in _std(values, scored, axis=0)]


def _as_array(
    rewards: Sequence[Sequence[float | None]],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Return the rewards, with 0 for None, and the mask of those that are not None; both G x T."""
    lengths = [len(row) for row in rewards]
    if len(set(lengths)) > 1:
        raise ValueError(
            f"the rollouts of a group have {sorted(set(lengths))} steps, expected the same number "
            "in each; group rollouts of one instance only"
        )
    shape = (len(rewards), lengths[0] if lengths else 0)
    scored = np.array([[r is not None for r in row] for row in rewards], dtype=bool).reshape(shape)
    values = np.array(
        [[0.0 if r is None else r for r in row] for row in rewards], dtype=np.float64
    ).reshape(shape)
    if not np.isfinite(values).all():
        rollout, step = np.argwhere(~np.isfinite(values))[0]
        raise ValueError(
            f"the reward of rollout {rollout} at step {step + 1} is {values[rollout, step]}, "
            "expected a finite number, or None where it cannot be scored"
        )
    return values, scored


def _centred(
    values: NDArray[np.float64], scored: NDArray[np.bool_], axis: int | None = 0
) -> NDArray[np.float64]:
    """Return the deviations from the mean of the scored values; exactly 0 where all are equal."""
    count = scored.sum(axis=axis, keepdims=True)
    mean = np.where(scored, values, 0.0).sum(axis=axis, keepdims=True) / np.maximum(count, 1)
    low = np.where(scored, values, np.inf).min(axis=axis, keepdims=True, initial=np.inf)
    high = np.where(scored, values, -np.inf).max(axis=axis, keepdims=True, initial=-np.inf)
    # The mean of equal numbers may differ from them in the last bit.
    return np.where(scored & (low < high), values - mean, 0.0)


def _std(
    values: NDArray[np.float64], scored: NDArray[np.bool_], axis: int | None
) -> NDArray[np.float64]:
    """Return the unbiased standard deviation of the scored values (0 for fewer than two)."""
    squares = (_centred(values, scored, axis) ** 2).sum(axis=axis)
    std: NDArray[np.float64] = np.sqrt(squares / np.maximum(scored.sum(axis=axis) - 1, 1))
    return std
