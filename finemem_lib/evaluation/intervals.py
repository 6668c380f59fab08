"""Means with confidence intervals, corrected p-values, and intervals as text."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.95
"""Coverage of the intervals of `clustered_mean`."""


def percentile_ends(
    draws: NDArray[np.float64], level: float, axis: int | None = None
) -> NDArray[np.float64]:
    """Return the ends of the percentile interval of bootstrap draws, lower end first.

    Args:
        draws: values of the statistic on resampled data.
        level: coverage, between 0 and 1.
        axis: axis of the draws; default: all values are draws of one statistic.
    """
    import numpy as np

    tail = 50 * (1 - level)
    ends: NDArray[np.float64] = np.percentile(draws, [tail, 100 - tail], axis=axis)
    return ends


def expanded_level(level: float, clusters: int) -> float:
    """Return the level that gives a percentile interval over few clusters the coverage `level`.

    A bootstrap interval over n clusters is too narrow by the factor ``sqrt((n - 1) / n)`` and has
    normal instead of Student's t quantiles; the percentiles ``Phi(-sqrt(n / (n - 1)) t)`` correct
    both. Source: Hesterberg (2015), expanded percentile interval.

    Args:
        level: desired coverage, between 0 and 1.
        clusters: n, at least 2.

    >>> [round(expanded_level(0.95, n), 4) for n in (3, 6, 100)]
    [1.0, 0.9951, 0.9539]
    """
    from scipy.special import ndtr, stdtrit

    wider = stdtrit(clusters - 1, (1 + level) / 2) * math.sqrt(clusters / (clusters - 1))
    return float(1 - 2 * ndtr(-wider))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected by Holm's method, which controls the family-wise error rate.

    Args:
        p_values: p-values of all comparisons of the family; a comparison without a result (`None`)
            counts as one with p = 1 and stays `None`.

    Returns:
        Corrected values in the same order: with m comparisons the i-th smallest p is multiplied by
        ``m - i + 1``, and is at least the corrected value before it and at most 1. Source: Holm
        (1979).

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    known = [(p, place) for place, p in enumerate(p_values) if p is not None]
    corrected: list[float | None] = [None] * len(p_values)
    least = 0.0
    for rank, (p, place) in enumerate(sorted(known)):
        least = min(1.0, max(least, (len(p_values) - rank) * p))
        corrected[place] = least
    return corrected


def interval_text(
    value: float | None, low: float | None, high: float | None, form: str = ".3f"
) -> str:
    """Return a value with its interval as text, "–" if there is no value.

    Args:
        value: the estimate.
        low, high: ends of its interval, `None` if there is none.
        form: format specification of all three.

    >>> interval_text(0.5, 0.25, 0.75, "+.2f"), interval_text(0.5, None, None)
    ('+0.50 [+0.25, +0.75]', '0.500')
    """
    if value is None:
        return "–"
    return f"{value:{form}}" + ("" if low is None else f" [{low:{form}}, {high:{form}}]")


def clustered_mean(
    samples: Mapping[str, Sequence[float | None]],
    baseline: Mapping[str, Sequence[float | None]] | None = None,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float | None, float | None, float | None]:
    """Return the mean of all values and the ends of its cluster-robust confidence interval.

    Args:
        samples: values by cluster (for example, by instance); `None` is left out.
        baseline: values to subtract, in the same positions; a pair with a `None` is left out.
        bounds: smallest and largest possible mean; the interval is clipped to them.

    Returns:
        Mean, lower end and upper end. The mean is `None` if there is no value, the ends are `None`
        if there are fewer than two clusters.

    The interval is Student's t over m clusters: with sums s_i of c_i values and mean r, the squared
    standard error is ``m / (m - 1) sum_i (s_i - r c_i)^2 / (sum_i c_i)^2``, with m - 1 degrees of
    freedom. With few clusters its coverage is closer to `LEVEL` than that of the percentile
    bootstrap, which is too narrow; without `bounds` its ends may lie outside the range of the
    values. Source: Cochran (1977), ratio of cluster totals.

    >>> clustered_mean({"a": [1.0, 0.0], "b": [1.0, None]}, {"a": [0.5, None], "b": [0.5, 0.5]})
    (0.5, 0.5, 0.5)
    >>> clustered_mean({"a": [1.0], "b": [1.0], "c": [0.25]}, bounds=(0, 1))
    (0.75, 0, 1)
    """
    from scipy.special import stdtrit

    totals, counts = [], []
    for cluster in sorted(samples):
        columns = (samples[cluster], *([] if baseline is None else [baseline[cluster]]))
        known = [pair for pair in zip(*columns, strict=True) if None not in pair]
        if known:
            totals.append(math.fsum(pair[0] - sum(pair[1:]) for pair in known))
            counts.append(len(known))
    if not totals:
        return None, None, None
    mean, m = math.fsum(totals) / sum(counts), len(totals)
    if m < 2:
        return mean, None, None
    squares = math.fsum(
        (total - mean * count) ** 2 for total, count in zip(totals, counts, strict=True)
    )
    half = stdtrit(m - 1, (1 + LEVEL) / 2) * math.sqrt(m / (m - 1) * squares) / sum(counts)
    return mean, max(bounds[0], float(mean - half)), min(bounds[1], float(mean + half))
