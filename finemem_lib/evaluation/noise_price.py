"""Regress advantages on the numbers of stored facts and stored noise sentences.

A credit rule that does not penalise stored noise trains a manager to store everything. Differs from
the paper, which does not measure this.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from finemem_lib.evaluation.operation_truth import step_truth
from finemem_lib.trajectory import Instance, Trajectory

STORED = {
    "fact": ("INSERT fact", "UPDATE right", "UPDATE reuse", "UPDATE wrong"),
    "noise": ("INSERT noise", "UPDATE noise"),
}
"""Kind of stored sentence -> the counts of `operation_truth` whose sum is its number. Duplicates
and sentences that are not in the chunk belong to neither kind."""

Price = tuple[float | None, float | None]
"""Slope and its standard error."""


def noise_price(
    groups: Sequence[Sequence[Trajectory]],
    advantages: Sequence[Sequence[Sequence[float | None]]],
    truth: Mapping[str, Instance],
) -> dict[str, Price]:
    """Return the advantage per stored fact and per stored noise sentence, within groups.

    Least-squares regression of the advantage A on the numbers of fact and noise sentences that the
    step stores; all are deviations from the mean of the group (the rollouts of one instance at one
    step). With the deviations x of the steps of cluster i (an instance), their residuals e and m
    clusters, the covariance of the slopes is ``m / (m - 1) B^-1 (sum_i s_i s_i') B^-1`` with
    ``B = sum x x'`` and ``s_i = sum x e``. Source: Liang and Zeger (1986), clustered standard
    errors.

    Args:
        groups: the rollouts of every instance of planted streams.
        advantages: one value per step, in the shape of `groups`; `None` is left out.
        truth: the instances by id, with their facts.

    Returns:
        By "fact" and "noise", the slope in advantage per sentence and its standard error. A slope
        is `None` if its number is constant in every group or collinear with the other number; its
        error is also `None` if there are fewer than two instances.

    Raises:
        ValueError: groups and advantages differ in shape, or the facts of an instance are unknown.
    """
    parts = [
        _deviations(group, values, truth)
        for group, values in zip(groups, advantages, strict=True)
        if group
    ]
    found: dict[str, Price] = dict.fromkeys(STORED, (None, None))
    if not parts:
        return found
    bread = np.sum([x.T @ x for x, _ in parts], axis=0)
    varied = np.flatnonzero(np.diag(bread) > 0)
    bread = bread[np.ix_(varied, varied)]
    if not len(varied) or np.linalg.matrix_rank(bread) < len(varied):
        return found
    inverse = np.linalg.inv(bread)
    slopes = inverse @ np.sum([x[:, varied].T @ y for x, y in parts], axis=0)
    scores = np.array([x[:, varied].T @ (y - x[:, varied] @ slopes) for x, y in parts])
    errors: list[float | None] = [None] * len(varied)
    if (m := len(parts)) > 1:
        covariance = m / (m - 1) * inverse @ scores.T @ scores @ inverse
        errors = np.sqrt(np.diag(covariance)).tolist()
    names = list(STORED)
    return found | {
        names[place]: (float(slope), error)
        for place, slope, error in zip(varied, slopes, errors, strict=True)
    }


def _deviations(
    group: Sequence[Trajectory],
    advantages: Sequence[Sequence[float | None]],
    truth: Mapping[str, Instance],
) -> tuple[np.ndarray, np.ndarray]:
    """Return numbers stored and advantage of the steps with an advantage, minus the group means."""
    stored = np.array(
        [
            [
                [sum(step[name] for name in names) for names in STORED.values()]
                for step in step_truth(one, truth[one.instance_id])
            ]
            for one in group
        ],
        dtype=float,
    )
    values = np.array(advantages, dtype=float)
    if values.shape != stored.shape[:2]:
        raise ValueError(
            f"noise_price: the advantages of {group[0].instance_id!r} have shape {values.shape}, "
            f"expected {stored.shape[:2]}, one value per rollout and step"
        )
    known = ~np.isnan(values)
    count = np.maximum(known.sum(axis=0), 1)
    x = stored - np.where(known[..., None], stored, 0).sum(axis=0) / count[:, None]
    y = values - np.where(known, values, 0).sum(axis=0) / count
    return x[known], y[known]
