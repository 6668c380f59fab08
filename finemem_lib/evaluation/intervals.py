"""Means with confidence intervals, and how an interval is written."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def percentile_ends(
    draws: NDArray[np.float64], level: float, axis: int | None = None
) -> NDArray[np.float64]:
    """Return the ends of the percentile interval of bootstrap draws, lower end first.

    Args:
        draws: resampled values.
        level: coverage, between 0 and 1.
        axis: the axis of the draws; by default all values are draws.
    """
    import numpy as np

    tail = 50 * (1 - level)
    ends: NDArray[np.float64] = np.percentile(draws, [tail, 100 - tail], axis=axis)
    return ends


def expanded_level(level: float, clusters: int) -> float:
    """Return the level at which a percentile interval over few clusters covers `level`.

    A bootstrap over n clusters is too narrow by ``sqrt((n - 1) / n)``, and normal where Student's t
    is due; the percentiles ``Phi(-sqrt(n / (n - 1)) t)`` make up for both. Source: Hesterberg
    (2015), expanded percentile interval.

    Args:
        level: coverage wanted, between 0 and 1.
        clusters: n, at least 2.

    >>> [round(expanded_level(0.95, n), 4) for n in (3, 6, 100)]
    [1.0, 0.9951, 0.9539]
    """
    from scipy.special import ndtr, stdtrit

    wider = stdtrit(clusters - 1, (1 + level) / 2) * math.sqrt(clusters / (clusters - 1))
    return float(1 - 2 * ndtr(-wider))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p-values corrected for their number, so that one error in all is as rare as p says.

    Args:
        p_values: of all comparisons of the family; `None` (not made yet) counts as one with p = 1.

    Returns:
        Corrected values in the same order: with m comparisons the i-th smallest p is multiplied by
        ``m - i + 1``, never falls below the one before it, and is 1 at most. Source: Holm (1979).

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
    """Return a value with its interval as text, "–" without a value.

    Args:
        value: the estimate.
        low, high: ends of its interval, `None` where there is none.
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
    level: float = 0.95,
    bounds: tuple[float, float] = (-math.inf, math.inf),
) -> tuple[float | None, float | None, float | None]:
    """Return the mean of all values and the ends of its interval, over whole clusters.

    Args:
        samples: the values of every cluster (an instance, say); `None` is left out.
        baseline: values to subtract, in the same places; both must be known.
        level: coverage of the interval.
        bounds: smallest and largest possible mean; the interval is cut to them.

    Returns:
        Mean, lower and upper end. The mean is `None` where there is no value, the ends where there
        are fewer than two clusters.

    The interval is Student's t over m clusters: with sums s_i of c_i values and mean r, the squared
    standard error is ``m / (m - 1) sum_i (s_i - r c_i)^2 / (sum_i c_i)^2``, with m - 1 degrees of
    freedom. Where clusters are few it holds its level better than the percentile bootstrap, which
    is too narrow; without `bounds` its ends may lie outside the range of the values. Source:
    Cochran (1977), ratio of cluster totals.

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
    half = stdtrit(m - 1, (1 + level) / 2) * math.sqrt(m / (m - 1) * squares) / sum(counts)
    return mean, max(bounds[0], float(mean - half)), min(bounds[1], float(mean + half))
