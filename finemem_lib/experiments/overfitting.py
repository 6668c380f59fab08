"""Test whether high global and low chunk accuracy at the end of training indicate overfitting.

If they do, then among trainings with equal global accuracy those with lower chunk accuracy have
lower accuracy on held-out streams. Differs from the paper, which names this sign of overfitting but
does not measure it.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finemem_lib.evaluation.intervals import expanded_level, interval_text, percentile_ends
from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.experiments.arena import seeds_text
from finemem_lib.experiments.cells import CellResult
from finemem_lib.seeds import stable_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

LAST = 5
"""Number of last updates to average."""


@dataclass(frozen=True, slots=True)
class TrainingEnd:
    """A training's accuracies at its end, and on held-out streams.

    Attributes:
        variant: Name of the variant.
        seed: Seed of the training.
        outcome: Global accuracy of the rollouts of the last updates, in [0, 1].
        chunk: Accuracy on the chunk questions of these rollouts, in [0, 1].
        held_out: Accuracy on held-out streams, with sampling, in [0, 1].
    """

    variant: str
    seed: int
    outcome: float
    chunk: float
    held_out: float


@dataclass(frozen=True, slots=True)
class Sign:
    """The partial rank correlation of chunk and held-out accuracy, given global accuracy.

    Attributes:
        value: The correlation; above zero, low chunk accuracy goes with low held-out accuracy.
            `None` with fewer than four trainings per seed, or without differences.
        low: Lower end of the interval, or `None`; `high` is the upper end.
        trainings: Number of trainings.
        seeds: Seeds of the trainings.
    """

    value: float | None
    low: float | None
    high: float | None
    trainings: int
    seeds: tuple[int, ...]


def training_ends(results: Iterable[CellResult], updates: int = LAST) -> list[TrainingEnd]:
    """Return the accuracies at the end of every suitable training.

    Trainings with wrong chunk questions are left out, because their chunk accuracy refers to wrong
    answers; so are trainings with unlimited memory, which lose nothing between the chunk questions
    and the global questions.

    Args:
        results: The rows of an experiment; equal trainings with several names count once.
        updates: Number of last updates to average, at least 1.
    """
    ends: dict[str, TrainingEnd] = {}
    for one in results:
        cell = one.cell
        limited = cell.capacity is not None or cell.token_budget is not None
        curves = [
            [
                value
                for value in one.curve.get(f"rewards/{term}/mean", [])[-updates:]
                if value is not None
            ]
            for term in ("outcome", "chunk")
        ]
        tested = [value for value in one.tests["sampled"].columns["accuracy"] if value is not None]
        if cell.wrong_questions or not limited or not all((*curves, tested)):
            continue
        outcome, chunk, held_out = (float(np.mean(values)) for values in (*curves, tested))
        ends.setdefault(one.key, TrainingEnd(cell.variant, cell.seed, outcome, chunk, held_out))
    return list(ends.values())


def overfitting_sign(
    ends: Sequence[TrainingEnd], settings: BootstrapSettings | None = None
) -> Sign:
    """Return the partial rank correlation of chunk and held-out accuracy, given global accuracy.

    Ranks are within a seed, whose trainings read the same streams. The interval is from a bootstrap
    over seeds, then over trainings within each drawn seed, at a level expanded for few seeds
    (`evaluation.intervals.expanded_level`).

    Args:
        ends: Result of `training_ends`.
        settings: Number of resamples, level and seed of the bootstrap.
    """
    settings = settings or BootstrapSettings()
    by_seed: defaultdict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for one in ends:
        by_seed[one.seed].append((one.outcome, one.chunk, one.held_out))
    rows = [np.array(by_seed[seed]) for seed in sorted(by_seed) if len(by_seed[seed]) > 3]
    number = sum(map(len, rows))
    seeds = tuple(seed for seed in sorted(by_seed) if len(by_seed[seed]) > 3)
    value = _partial(rows)
    if value is None:
        return Sign(None, None, None, number, seeds)
    rng = np.random.default_rng(stable_seed(settings.seed, "overfitting"))
    drawn = []
    for _ in range(settings.num_resamples):
        some = [rows[place] for place in rng.integers(len(rows), size=len(rows))]
        found = _partial([row[rng.integers(len(row), size=len(row))] for row in some])
        if found is not None:
            drawn.append(found)
    level = settings.level if len(rows) < 2 else expanded_level(settings.level, len(rows))
    low, high = percentile_ends(np.array(drawn), level) if drawn else (None, None)
    return Sign(
        value,
        None if low is None else float(low),
        None if high is None else float(high),
        number,
        seeds,
    )


def sign_text(sign: Sign) -> str:
    """Return a sentence on whether low chunk accuracy indicated overfitting.

    Args:
        sign: Result of `overfitting_sign`.
    """
    if sign.value is None or sign.low is None or sign.high is None:
        return f"{sign.trainings} trainings: too few, or too much alike, to say anything."
    if sign.low <= 0 <= sign.high:
        says = "not decided"
    elif sign.value > 0:
        says = "at equal global accuracy, low chunk accuracy went with low held-out accuracy"
    else:
        says = "at equal global accuracy, low chunk accuracy went with high held-out accuracy"
    if len(sign.seeds) == 1 and says != "not decided":
        says += ", on one seed"
    return (
        f"Partial rank correlation {interval_text(sign.value, sign.low, sign.high, '+.2f')} over "
        f"{sign.trainings} trainings, seed{'s' * (len(sign.seeds) > 1)} {seeds_text(sign.seeds)}: "
        f"{says}."
    )


def _partial(rows: Sequence[NDArray[np.float64]]) -> float | None:
    """Return the partial correlation of chunk and held-out ranks, given the global ranks."""
    from scipy.stats import rankdata

    if not rows:
        return None
    ranked = [rankdata(row, axis=0) / len(row) for row in rows]
    ranks = np.concatenate([row - row.mean(axis=0) for row in ranked])
    outcome, rest = ranks[:, 0], ranks[:, 1:]
    if outcome @ outcome > 1e-9:
        rest = rest - np.outer(outcome, outcome @ rest / (outcome @ outcome))
    chunk, held_out = rest.T
    scale = float(np.sqrt((chunk @ chunk) * (held_out @ held_out)))
    return float(chunk @ held_out) / scale if scale > 1e-9 else None
