"""Tables over the results of an experiment: intervals over seeds and streams, paired differences.

Equal seeds mean equal streams, so a variant is compared with the baseline pair by pair: both are
read on the same seeds and the same streams, in every draw of the bootstrap.
"""

from __future__ import annotations

import functools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from finemem_lib.evaluation.operation_truth import RIGHT_EDITS, WRONG_EDITS
from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.experiments.cells import FAULTY, Cell, CellResult
from finemem_lib.seeds import stable_seed

FIRST_UPDATES = 10

ACCURACIES = (
    f"accuracy, first {FIRST_UPDATES} updates",
    "accuracy, area under curve",
    "accuracy, sampled",
    "accuracy, greedy",
)
"""The accuracies of `measures`, in the order of training."""

PRIMARY = ("accuracy, sampled", ACCURACIES[0])
"""What an experiment is about, the end and the start of training: findings speak of these two only,
because among many measures some differ by chance."""


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """One measure of one variant in one regime, over all its seeds and their streams, and its
    difference to the baseline on the same seeds and streams (`None` for the baseline itself, and
    where the two share no seed). `low` and `high` bound the interval."""

    regime: str
    variant: str
    measure: str
    value: float
    low: float
    high: float
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    seeds: int


def table(
    results: Iterable[CellResult],
    baseline: str = "outcome-only",
    settings: BootstrapSettings | None = None,
    of: Callable[[CellResult], Mapping[str, Sequence[float]]] | None = None,
) -> list[ExperimentRow]:
    """Return every measure of every variant with intervals and paired differences.

    `of` returns the measures of a cell: `measures`, or `diagnostic_measures`, whose unit is not the
    stream but the update.

    The percentile bootstrap draws seeds, then streams within each drawn seed, and reads variant and
    baseline on the same draw. Over few seeds it is too narrow (see `chance_of_clear`). A measure
    whose values cannot be paired, because variant and baseline have different numbers of them (of
    updates, say), has no difference.
    "first 10 updates" and "area under curve" are means over the streams trained on, each played
    before the update that learns from it.
    """
    settings, of = settings or BootstrapSettings(), of or measures
    found: defaultdict[tuple[str, str], dict[int, dict[str, list[float]]]] = defaultdict(dict)
    for result in results:
        cell = result.cell
        found[cell.regime, cell.variant][cell.seed] = of(result)
    rows = []
    for (regime, variant), seeds in found.items():
        others = {} if variant == baseline else found.get((regime, baseline), {})
        for measure in dict.fromkeys(name for one in seeds.values() for name in one):
            mine = {seed: one[measure] for seed, one in seeds.items() if measure in one}
            theirs = {
                seed: others[seed][measure]
                for seed in sorted(mine)
                if len(others.get(seed, {}).get(measure, ())) == len(mine[seed])
            }
            paired = {
                seed: [a - b for a, b in zip(mine[seed], values, strict=True)]
                for seed, values in theirs.items()
            }
            rows.append(
                ExperimentRow(
                    regime,
                    variant,
                    measure,
                    *_interval(mine, settings),
                    *(_interval(paired, settings) if paired else (None, None, None)),
                    len(mine),
                )
            )
    return rows


def measures(result: CellResult) -> dict[str, list[float]]:
    """Return the measures of a cell, each as one value per stream."""
    found: dict[str, list[float]] = {}
    for name, test in result.tests.items():
        columns = test.columns
        found[f"accuracy, {name}"] = columns["accuracy"]
    sampled = result.tests["sampled"]
    if result.episodes:
        found[f"accuracy, first {FIRST_UPDATES} updates"] = [
            value for update in result.episodes[:FIRST_UPDATES] for value in update
        ]
        found["accuracy, area under curve"] = [
            value for update in result.episodes for value in update
        ]
    found["memory tokens"] = sampled.columns["memory_tokens"]
    found["memory items"] = sampled.columns["memory_items"]
    found["valid share"] = sampled.columns["valid_share"]
    groups = {
        **{
            f"{kind}s per step": [name for name in sampled.columns if name.startswith(f"{kind} ")]
            for kind in ("INSERT", "UPDATE", "DELETE")
        },
        "right edits per step": RIGHT_EDITS,
        "wrong edits per step": WRONG_EDITS,
    }
    for measure, names in groups.items():
        found[measure] = [
            sum(counts) / sampled.chunks
            for counts in zip(*(sampled.columns[name] for name in names), strict=True)
        ]
    for name, values in result.alignment.items():
        what, _, scheme = name.rpartition("/")
        found[f"{what or 'alignment'}, {scheme}"] = values
    return _with_nan(found)


def diagnostic_measures(result: CellResult) -> dict[str, list[float]]:
    """Return what was measured of the rollouts that were trained on, one value per update: spread
    of each term within its group, credit at the evidence step (both of the evidence as it was;
    ", faulty evidence" of that which credit was attributed by), duplicates per step, and the share
    of groups without gradient."""
    curve = result.curve
    names = {f"spread of {name.partition('/')[2]}": name for name in curve if "spread/" in name}
    names |= {
        f"credit at the evidence step, {credited} items{faulty}": name
        for name in curve
        if name.startswith("credit_at_evidence/")
        for credited, faulty, _ in [name.partition("/")[2].partition(FAULTY)]
    }
    names["groups without gradient"] = "frac_reward_zero_std"
    found = {measure: curve[name] for measure, name in names.items() if name in curve}
    if curve:
        found["duplicates per step"] = [
            inserted + updated
            for inserted, updated in zip(
                curve["truth/INSERT duplicate"], curve["truth/UPDATE duplicate"], strict=True
            )
        ]
    return _with_nan(found)


def stream_rows(results: Iterable[CellResult]) -> list[dict[str, str | int | float | None]]:
    """Return one row per held-out stream of every test of every cell: its names, its seed, the
    test, the stream's place, and everything that was measured of it."""
    return [
        {
            "variant": result.cell.variant,
            "regime": result.cell.regime,
            "seed": result.cell.seed,
            "test": name,
            "stream": place,
            **{column: values[place] for column, values in test.columns.items()},
        }
        for result in results
        for name, test in result.tests.items()
        for place in range(len(test.columns["accuracy"]))
    ]


def _with_nan(found: Mapping[str, Sequence[float | None]]) -> dict[str, list[float]]:
    """Return the values as numbers, without the measures that were measured nowhere."""
    return {
        name: [math.nan if value is None else value for value in values]
        for name, values in found.items()
        if any(value is not None for value in values)
    }


def _interval(
    values: Mapping[int, Sequence[float]], settings: BootstrapSettings
) -> tuple[float, float, float]:
    """Return mean and interval of values by seed and stream; the draw depends on the shape only."""
    rows = np.array([values[seed] for seed in sorted(values)], dtype=float)
    rng = np.random.default_rng(stable_seed(settings.seed, "experiment", *rows.shape))
    seeds = rng.integers(len(rows), size=(settings.num_resamples, len(rows), 1))
    streams = rng.integers(
        rows.shape[1], size=(settings.num_resamples, len(rows), rows.shape[1]), dtype=np.int32
    )
    mean = np.nanmean if np.isnan(rows).any() else np.mean  # the first is several times slower
    draws = mean(rows[seeds, streams], axis=(1, 2))
    tail = 50 * (1 - settings.level)
    low, high = np.percentile(draws, [tail, 100 - tail])
    return float(np.nanmean(rows)), float(low), float(high)


def format_interval(row: ExperimentRow) -> str:
    """Return a value with its interval as text."""
    return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"


def format_difference(row: ExperimentRow) -> str:
    """Return the difference to the baseline with its interval as text, "–" where there is none."""
    if row.difference is None:
        return "–"
    return f"{row.difference:+.3f} [{row.difference_low:+.3f}, {row.difference_high:+.3f}]"


def excludes_zero(row: ExperimentRow) -> bool:
    """Return whether there is a difference and its interval does not hold zero."""
    return row.difference is not None and (row.difference_low > 0 or row.difference_high < 0)


@functools.cache
def chance_of_clear(seeds: int, level: float = 0.95) -> float:
    """Return the share of true differences of zero whose interval excludes zero, in [0, 1], where
    only the seed makes runs differ.

    Simulated with normal differences; where streams differ more than seeds it is nearer to
    ``1 - level``. With two seeds the interval is their range, which leaves zero out half the time.

    >>> [round(chance_of_clear(seeds), 1) for seeds in (1, 2, 3)]
    [1.0, 0.5, 0.3]
    """
    rng = np.random.default_rng(stable_seed("chance of clear", seeds))
    values = rng.normal(size=(2000, seeds))
    draws = rng.multinomial(seeds, [1 / seeds] * seeds, size=1000) / seeds
    tail = 50 * (1 - level)
    low, high = np.percentile(values @ draws.T, [tail, 100 - tail], axis=1)
    return float(np.mean((low > 0) | (high < 0)))


def kept_together(rows: Iterable[ExperimentRow | Cell]) -> tuple[list[str], list[str]]:
    """Return the regimes and the variants that occur, each once, in their order."""
    rows = list(rows)
    return (
        list(dict.fromkeys(row.regime for row in rows)),
        list(dict.fromkeys(row.variant for row in rows)),
    )


def compared(rows: Iterable[ExperimentRow]) -> list[ExperimentRow]:
    """Return the comparisons with the baseline in the primary measures."""
    return [row for row in rows if row.difference is not None and row.measure in PRIMARY]


def findings(rows: Sequence[ExperimentRow], baseline: str = "outcome-only") -> list[str]:
    """Return what the rows say of the primary measures, as three sentences: which variants end
    above or below the baseline in each regime (or, where there are more regimes, in which regimes
    each variant does), which start above or below it, and how sure that is.

    A difference counts when its interval excludes zero; nothing is said of why.
    """
    pairs = compared(rows)
    seeds = sorted({row.seeds for row in pairs})
    by_chance = sum(chance_of_clear(row.seeds) for row in pairs)
    final, first = (
        _verdict([row for row in rows if row.measure == measure], baseline) for measure in PRIMARY
    )
    return [
        f"At the end: {final}.",
        f"Over the first {FIRST_UPDATES} updates: {first}.",
        f"{sum(map(excludes_zero, pairs))} of the {len(pairs)} intervals of these comparisons (95 "
        f"%, paired, over {' or '.join(map(str, seeds)) or 'no'} seeds and their streams) exclude "
        f"zero; by chance alone {0.05 * len(pairs):.1f} would, up to {by_chance:.1f} where seeds "
        "differ much.",
    ]


def _verdict(rows: Sequence[ExperimentRow], baseline: str) -> str:
    pairs = [row for row in rows if row.difference is not None]
    regimes, variants = kept_together(pairs)
    parts = []
    if len(regimes) > len(variants):
        for variant in variants:
            up, down, rest = _sides({row.regime: row for row in pairs if row.variant == variant})
            parts.append(f"{variant}: above {baseline} in {up}, below it in {down}, {rest}")
        return "; ".join(parts)
    for regime in kept_together(rows)[0]:
        up, down, rest = _sides({row.variant: row for row in pairs if row.regime == regime})
        base = [
            f" ({row.value:.3f})" for row in rows if (row.regime, row.variant) == (regime, baseline)
        ]
        parts.append(f"{regime}: {up} above {baseline}{''.join(base)}, {down} below it, {rest}")
    return "; ".join(parts)


def _sides(rows: Mapping[str, ExperimentRow]) -> tuple[str, str, str]:
    """Return in words which of the named comparisons are clearly above and below zero, the greatest
    difference first, and how many are not."""
    clear = sorted(
        ((name, row) for name, row in rows.items() if excludes_zero(row)),
        key=lambda pair: -pair[1].difference,
    )
    up, down = (
        ", ".join(
            f"{name} ({format_difference(row)})"
            for name, row in clear
            if (row.difference > 0) is positive
        )
        or "nothing"
        for positive in (True, False)
    )
    return up, down, f"{len(rows) - len(clear)} not told apart"
