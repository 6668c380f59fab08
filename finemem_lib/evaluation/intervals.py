"""Means with confidence intervals over clusters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence


def clustered_mean(
    samples: Mapping[str, Sequence[float | None]],
    baseline: Mapping[str, Sequence[float | None]] | None = None,
    level: float = 0.95,
) -> tuple[float | None, float | None, float | None]:
    """Return the mean of all values with the ends of its interval, over whole clusters.

    `samples` holds the values of every cluster (an instance, say); `None` is left out. With a
    `baseline` the mean and interval are those of the difference, over the places where both have a
    value. The mean is `None` where there is no value, the ends where there are fewer than two
    clusters.

    The interval is Student's t over m clusters: with sums s_i of c_i values and mean r, the squared
    standard error is ``m / (m - 1) sum_i (s_i - r c_i)^2 / (sum_i c_i)^2``, with m - 1 degrees of
    freedom. Where clusters are few it holds its level better than the percentile bootstrap, which
    is too narrow; its ends may lie outside the range of the values. Source: Cochran (1977), ratio
    of cluster totals.

    >>> clustered_mean({"a": [1.0, 0.0], "b": [1.0, None]}, {"a": [0.5, None], "b": [0.5, 0.5]})
    (0.5, 0.5, 0.5)
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
    half = stdtrit(m - 1, (1 + level) / 2) * math.sqrt(m / (m - 1) * squares) / sum(counts)
    return mean, float(mean - half), float(mean + half)
