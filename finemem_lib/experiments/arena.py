"""Compare the variants of a design with each other: means, intervals, ranks, verdicts.

Equal seeds mean equal streams, so variants are compared in pairs on their common seeds. Differs
from the paper, which reports one run of each method without intervals.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from finemem_lib.credit.needs import mean_of_known
from finemem_lib.evaluation.intervals import (
    expanded_level,
    holm,
    interval_text,
    percentile_ends,
)
from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.experiments.cells import Cell, CellResult
from finemem_lib.experiments.design import Design
from finemem_lib.experiments.tables import Measures, hierarchical_draws, measures

RESAMPLES = 10_000

Slope = tuple[float | None, float | None]
"""Advantage per stored sentence and its standard error."""

STATUSES = ("not beaten", "open", "beaten")

PRICES = "advantage per stored sentence (standard error over seeds)"

NOT_BEATEN = (
    "in no regime and no primary measure is the interval of the difference to {} below zero."
)

Values = Mapping[str, Mapping[int, Sequence[float]]]
"""By variant and seed, one value per stream."""


@dataclass(frozen=True, slots=True)
class Standing:
    """One measure of one variant in one regime.

    Attributes:
        value: Mean over seeds and streams; `low` and `high` bound its interval.
        seeds: The seeds of the mean.
        rank: Rank of the mean over the seeds common to all variants of the regime, 1 for the
            greatest; `None` without a common seed.
        reader_calls: Mean number of reader calls for credit per training, without those of the
            outcome; `None` where not counted.
        cpu_seconds: Mean CPU seconds per training; `None` where not counted.
        beaten_by: Variants above it with a corrected p-value below ``1 - level``.
        trusted: Whether there are enough seeds for the interval (see `_enough_seeds`).
    """

    regime: str
    variant: str
    measure: str
    value: float
    low: float
    high: float
    seeds: tuple[int, ...]
    rank: int | None
    reader_calls: float | None
    cpu_seconds: float | None
    beaten_by: tuple[str, ...]
    trusted: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """The paired difference ``variant - other`` in one measure and regime.

    Attributes:
        seeds: The common seeds; without any, the numbers are `None`.
        difference: Mean over these seeds and their streams; `low` and `high` bound its interval.
        p: Two-sided p-value of no difference; `None` with fewer than two seeds.
        corrected: The p-value corrected within its family.
        trusted: Whether there are enough seeds for the interval (see `_enough_seeds`).
    """

    regime: str
    measure: str
    variant: str
    other: str
    seeds: tuple[int, ...] = ()
    difference: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    corrected: float | None = None
    trusted: bool = False

    def of(self, variant: str) -> Comparison:
        """Return the comparison seen from one of its two variants.

        Args:
            variant: One of the two variants.
        """
        if variant == self.variant:
            return self
        difference, low, high = (
            None if value is None else -value for value in (self.difference, self.high, self.low)
        )
        return dataclasses.replace(
            self, variant=variant, other=self.variant, difference=difference, low=low, high=high
        )


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a variant is beaten by a baseline.

    Attributes:
        below: Comparisons with a baseline whose whole interval is below zero.
        above: Comparisons with a baseline whose whole interval is above zero.
        level: Comparisons whose interval contains zero.
        missing: Comparisons that lack some or all seeds of the design.
    """

    variant: str
    below: tuple[Comparison, ...]
    above: tuple[Comparison, ...]
    level: tuple[Comparison, ...]
    missing: tuple[Comparison, ...]

    @property
    def status(self) -> str:
        """The status: "beaten", "not beaten", or "open" if it depends on missing seeds."""
        return "beaten" if self._decisive else "open" if self.missing else "not beaten"

    @property
    def trusted(self) -> bool:
        """Whether the intervals that determine the status have enough seeds."""
        return all(one.trusted for one in self._decisive or self.above + self.level)

    @property
    def _decisive(self) -> list[Comparison]:
        return [one for one in self.below if one.trusted or one not in self.missing]


@dataclass(frozen=True, slots=True)
class NoisePrice:
    """The advantage per stored sentence of a variant at one update.

    Attributes:
        update: Number of the update, from 1.
        fact: Mean over seeds for a fact; `None` where it could not be measured. `fact_error` is the
            standard error over seeds, or, with one seed, that of `evaluation.noise_price`.
        noise: The same for a noise sentence, with `noise_error`.
        seeds: The seeds with a measurement.
    """

    regime: str
    variant: str
    update: int
    fact: float | None
    fact_error: float | None
    noise: float | None
    noise_error: float | None
    seeds: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Arena:
    """The evaluation of a design's results.

    Attributes:
        design: The design.
        level: Coverage of the intervals.
        standings: One per measure, regime and variant with results, ordered by rank.
        comparisons: One per planned pair, with or without results.
        verdicts: One per variant.
        prices: One per regime, variant and measured update.
        missing: Cells of the design without a result.
        foreign: Number of results that belong to no cell of the design.
    """

    design: Design
    level: float
    standings: tuple[Standing, ...]
    comparisons: tuple[Comparison, ...]
    verdicts: tuple[Verdict, ...]
    prices: tuple[NoisePrice, ...]
    missing: tuple[Cell, ...]
    foreign: int


def arena(
    results: Iterable[CellResult],
    design: Design,
    settings: BootstrapSettings | None = None,
    of: Measures = measures,
) -> Arena:
    """Return the standings of all variants in all regimes and their comparisons with the baselines.

    Intervals are percentiles of a bootstrap over seeds and then over streams within each drawn seed
    (`tables.hierarchical_draws`), at a level expanded for few seeds (`expanded_level`); with one
    seed they are over streams only. p is from Student's t of the mean difference over its bootstrap
    standard error, with n - 1 degrees of freedom for n seeds, corrected over all planned
    comparisons of the family, including those without results.

    Args:
        results: Rows of any number of files; of equal cells the last one counts.
        design: The design, with variants, regimes, seeds and planned comparisons.
        settings: Number of resamples, level and seed of the bootstrap; 10,000 resamples by default.
        of: Returns the measures of a cell, including the primary ones.
    """
    settings = settings or BootstrapSettings(num_resamples=RESAMPLES)
    planned = {(cell.regime, cell.variant, cell.seed): cell for cell in design.cells}
    found: dict[tuple[str, str, int], CellResult] = {}
    foreign = 0
    for result in results:
        place = (result.cell.regime, result.cell.variant, result.cell.seed)
        if planned.get(place) == result.cell:
            found[place] = result
        else:
            foreign += 1
    found = {place: found[place] for place in planned if place in found}
    values: defaultdict[tuple[str, str], dict[str, dict[int, Sequence[float]]]]
    values = defaultdict(lambda: {variant: {} for variant in design.variants})
    for (regime, variant, seed), result in found.items():
        for measure, streams in of(result).items():
            values[measure, regime][variant][seed] = streams
    draws = {
        (measure, regime): _Draws(values[measure, regime], settings)
        for measure in design.primary
        for regime in design.regimes
    }
    comparisons = _corrected(
        [draws[pair.measure, pair.regime].compare(pair) for pair in _pairs(design)], design.family
    )
    return Arena(
        design=design,
        level=settings.level,
        standings=tuple(_standings(draws, comparisons, found)),
        comparisons=tuple(comparisons),
        verdicts=tuple(_verdict(name, comparisons, design) for name in design.variants),
        prices=tuple(_prices(found)),
        missing=tuple(cell for place, cell in planned.items() if place not in found),
        foreign=foreign,
    )


def _enough_seeds(seeds: int, level: float = 0.95) -> bool:
    """Return whether a percentile interval over n seeds can reach the coverage `level`.

    If seeds differ much more than streams, no percentile interval is wider than the range of the
    seeds, which misses the median of their distribution with probability ``2^(1 - n)``.

    >>> [n for n in range(9) if _enough_seeds(n)]
    [6, 7, 8]
    """
    return seeds > 0 and 1 - 2.0 ** (1 - seeds) >= level


def arena_tables(of: Arena) -> dict[str, list[tuple[str, ...]]]:
    """Return the tables as text, each with its header first: one per measure, "verdict", `PRICES`.

    A star marks an interval over too few seeds.

    Args:
        of: Result of `arena`.
    """
    head = ("regime", "rule", "rank", "mean", "seeds", "reader calls", "CPU seconds", "beaten by")
    tables: dict[str, list[tuple[str, ...]]] = {measure: [head] for measure in of.design.primary}
    for one in of.standings:
        tables[one.measure].append(
            (
                one.regime,
                one.variant,
                "–" if one.rank is None else str(one.rank),
                interval_text(one.value, one.low, one.high) + "*" * (not one.trusted),
                seeds_text(one.seeds),
                *("–" if n is None else f"{n:.0f}" for n in (one.reader_calls, one.cpu_seconds)),
                ", ".join(one.beaten_by) or "–",
            )
        )
    against = " or ".join(of.design.baselines)
    verdicts: list[tuple[str, ...]] = [
        ("rule", "verdict", f"below {against}", "above", "level", "missing")
    ]
    for verdict in sorted(of.verdicts, key=lambda one: STATUSES.index(one.status)):
        verdicts.append(
            (
                verdict.variant,
                verdict.status + "*" * (verdict.status != "open" and not verdict.trusted),
                "; ".join(map(_comparison_text, verdict.below)) or "–",
                *(str(len(part)) for part in (verdict.above, verdict.level, verdict.missing)),
            )
        )
    prices: list[tuple[str, ...]] = [("regime", "rule", "update", "fact", "noise", "seeds")]
    for price in of.prices:
        slopes = (price.fact, price.fact_error), (price.noise, price.noise_error)
        prices.append(
            (
                price.regime,
                price.variant,
                str(price.update),
                *(_slope_text(*slope) for slope in slopes),
                seeds_text(price.seeds),
            )
        )
    return tables | {"verdict": verdicts, PRICES: prices}


def arena_notes(of: Arena) -> list[str]:
    """Return sentences on the basis of the tables, the missing cells and how to read the tables.

    Args:
        of: Result of `arena`.
    """
    design = of.design
    planned = len(design.cells)
    by_place: defaultdict[tuple[str, str], list[int]] = defaultdict(list)
    for cell in of.missing:
        by_place[cell.regime, cell.variant].append(cell.seed)
    gaps = [
        f"{regime}, {variant}: seeds {seeds_text(seeds)}"
        for (regime, variant), seeds in by_place.items()
    ]
    few = sorted({len(one.seeds) for one in of.standings if not one.trusted})
    apart = " and ".join(design.family)
    notes = [
        f"{planned - len(of.missing)} of {planned} cells have a row; missing: "
        f"{'; '.join(gaps) or 'none'}.",
        f"Intervals ({of.level:.0%}) are over seeds, then streams within each seed. Rules are "
        "compared in pairs on the seeds that both have, and ranked over those that all rules of a "
        "regime have.",
        f'"Beaten by" names rules with a greater mean and p < {1 - of.level:.2g} after Holm\'s '
        f"correction over {len(of.comparisons)} comparisons"
        + (f", one family for each {apart}" if apart else "")
        + ("." if design.pairs == "all" else "; only pairs with a baseline are compared."),
        f'"Not beaten": {design.not_beaten or NOT_BEATEN.format(" or ".join(design.baselines))}',
    ]
    if few:
        notes.append(
            f"* {' or '.join(map(str, few))} seeds are too few: where seeds differ more than "
            f"streams, an interval over n seeds covers at most 1 - 2^(1-n)."
        )
    if of.foreign:
        notes.append(f"{of.foreign} rows are of no cell of the design and were left out.")
    return notes


def arena_json(of: Arena) -> dict[str, Any]:
    """Return the evaluation as plain JSON.

    Args:
        of: Result of `arena`.
    """
    return {
        "design": of.design.model_dump(mode="json"),
        "level": of.level,
        "cells": {
            "planned": len(of.design.cells),
            "missing": [
                {"regime": cell.regime, "variant": cell.variant, "seed": cell.seed}
                for cell in of.missing
            ],
            "foreign": of.foreign,
        },
        "standings": [dataclasses.asdict(one) for one in of.standings],
        "comparisons": [dataclasses.asdict(one) for one in of.comparisons],
        "prices": [dataclasses.asdict(one) for one in of.prices],
        "verdicts": [
            {**dataclasses.asdict(one), "status": one.status, "trusted": one.trusted}
            for one in of.verdicts
        ],
    }


def leaders(of: Arena, regime: str, others: int = 3) -> list[str]:
    """Return the baselines and the best other variants of a regime, the best first.

    Args:
        of: Result of `arena`.
        regime: Name of the regime.
        others: Largest number of variants in addition to the baselines.
    """
    ranked = [
        one.variant
        for one in of.standings
        if (one.measure, one.regime) == (of.design.primary[0], regime)
    ]
    best = [name for name in ranked if name not in of.design.baselines][:others]
    return [name for name in ranked if name in best or name in of.design.baselines]


def limits(of: Arena, results: Iterable[CellResult]) -> list[str]:
    """Return sentences on the limits of all variants.

    The first sentence states whether one variant has the greatest mean in every regime, each over
    its own seeds. Then one sentence per regime gives the best mean in the first primary measure,
    and the numbers of wrong and right edits of that variant's sampled manager.

    Args:
        of: Result of `arena`.
        results: The rows of the experiment.
    """
    measure = of.design.primary[0]
    by_regime: defaultdict[str, list[Standing]] = defaultdict(list)
    for one in of.standings:
        if one.measure == measure:
            by_regime[one.regime].append(one)
    best = [max(some, key=lambda one: one.value) for some in by_regime.values()]
    names = list(dict.fromkeys(one.variant for one in best))
    sentences = [
        f"{names[0]} has the greatest mean in every regime, each rule over the seeds that it has."
        if len(names) == 1
        else "No rule has the greatest mean in every regime: "
        + "; ".join(f"{one.regime} {one.variant}" for one in best)
        + "."
    ]
    edits: defaultdict[tuple[str, str], list[Mapping[str, Sequence[float]]]] = defaultdict(list)
    for result in results:
        edits[result.cell.regime, result.cell.variant].append(measures(result))
    for one in best:
        right, wrong = (
            statistics.fmean(
                value
                for cell in edits[one.regime, one.variant]
                for value in cell[f"{kind} edits per step"]
            )
            for kind in ("right", "wrong")
        )
        sentences.append(
            f"{one.regime}: {measure}, no rule's mean is above {one.value:.3f} "
            f"({one.variant}, {interval_text(one.value, one.low, one.high)}, seeds "
            f"{seeds_text(one.seeds)}); its manager makes {wrong:.2f} wrong edits per step and "
            f"{right:.2f} right ones when it samples."
        )
    return sentences if best else []


def seeds_text(seeds: Sequence[int]) -> str:
    """Return seeds as text, with consecutive seeds as ranges.

    Args:
        seeds: Seeds in any order.

    >>> seeds_text([20, 21, 22, 25])
    '20-22, 25'
    """
    runs: list[list[int]] = []
    for seed in sorted(seeds):
        if runs and seed == runs[-1][-1] + 1:
            runs[-1].append(seed)
        else:
            runs.append([seed])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _slope_text(slope: float | None, error: float | None) -> str:
    if slope is None:
        return "–"
    return f"{slope:+.2f}" + ("" if error is None else f" ({error:.2f})")


def _comparison_text(one: Comparison) -> str:
    gap = interval_text(one.difference, one.low, one.high, "+.3f") + "*" * (not one.trusted)
    return f"{one.regime}, {one.measure.removeprefix('accuracy, ')}: {gap} to {one.other}"


class _Draws:
    """Bootstrap draws of the variants of one regime in one measure, cached by set of seeds."""

    def __init__(self, values: Values, settings: BootstrapSettings) -> None:
        self.values = {variant: by_seed for variant, by_seed in values.items() if by_seed}
        self.level = settings.level
        self._settings = settings
        self._draw = functools.cache(self._draw_once)

    def _draw_once(
        self, seeds: tuple[int, ...], streams: int
    ) -> dict[str, tuple[float, np.ndarray]]:
        """Return the mean and the draws of every variant with these seeds."""
        rows = {
            variant: [by_seed[seed] for seed in seeds]
            for variant, by_seed in self.values.items()
            if all(len(by_seed.get(seed, ())) == streams for seed in seeds)
        }
        stacked = np.array(list(rows.values()), dtype=float)
        stacked[:, np.isnan(stacked).any(axis=0)] = math.nan
        drawn = hierarchical_draws(stacked, self._settings)
        return {
            variant: (float(np.nanmean(stacked[place])), drawn[:, place])
            for place, variant in enumerate(rows)
        }

    def interval(self, variant: str) -> tuple[tuple[int, ...], float, float, float]:
        """Return the seeds of a variant, its mean, and the ends of its interval."""
        seeds = tuple(sorted(self.values[variant]))
        mean, draws = self._draw(seeds, len(self.values[variant][seeds[0]]))[variant]
        return seeds, mean, *self._ends(draws, len(seeds))

    def compare(self, pair: Comparison) -> Comparison:
        """Return a comparison with its numbers, or unchanged if there is no common seed."""
        ours, others = (self.values.get(name, {}) for name in (pair.variant, pair.other))
        seeds = tuple(seed for seed in sorted(ours) if len(ours[seed]) == len(others.get(seed, ())))
        if not seeds:
            return pair
        drawn = self._draw(seeds, len(ours[seeds[0]]))
        (ours_mean, ours_draws), (other_mean, other_draws) = drawn[pair.variant], drawn[pair.other]
        difference, draws = ours_mean - other_mean, ours_draws - other_draws
        low, high = self._ends(draws, len(seeds))
        return dataclasses.replace(
            pair,
            seeds=seeds,
            difference=difference,
            low=low,
            high=high,
            p=_p_value(difference, draws, len(seeds)),
            trusted=_enough_seeds(len(seeds), self.level),
        )

    def _ends(self, draws: np.ndarray, seeds: int) -> tuple[float, float]:
        level = expanded_level(self.level, seeds) if seeds > 1 else self.level
        low, high = percentile_ends(draws, level)
        return float(low), float(high)

    def ranks(self) -> dict[str, int | None]:
        """Return the rank of every variant over the seeds common to all variants."""
        shared = set.intersection(*(set(by_seed) for by_seed in self.values.values()))
        if not shared:
            return dict.fromkeys(self.values)
        means = {
            variant: np.nanmean([value for seed in shared for value in by_seed[seed]])
            for variant, by_seed in self.values.items()
        }
        return {
            variant: 1 + int(sum(other > mean for other in means.values()))
            for variant, mean in means.items()
        }


def _p_value(difference: float, draws: np.ndarray, seeds: int) -> float | None:
    from scipy.special import stdtr

    if seeds < 2:
        return None
    error = float(np.std(draws)) * math.sqrt(seeds / (seeds - 1))
    if error <= 1e-12:  # equal differences on all streams, up to rounding
        return float(abs(difference) <= 1e-12)
    return float(2 * stdtr(seeds - 1, -abs(difference) / error))


def _pairs(design: Design) -> list[Comparison]:
    """Return the planned comparisons without numbers; a baseline is second in its pair."""
    order = [name for name in design.variants if name not in design.baselines]
    order += reversed(design.baselines)
    return [
        Comparison(regime, measure, variant, other)
        for measure in design.primary
        for regime in design.regimes
        for variant, other in itertools.combinations(order, 2)
        if {variant, other} <= set(design.variants_in(regime))
        if design.pairs == "all" or other in design.baselines
    ]


def _corrected(comparisons: Sequence[Comparison], family: Iterable[str]) -> list[Comparison]:
    members: defaultdict[tuple[str, ...], list[int]] = defaultdict(list)
    for place, one in enumerate(comparisons):
        members[tuple(getattr(one, field) for field in family)].append(place)
    corrected = {
        place: p
        for places in members.values()
        for place, p in zip(places, holm([comparisons[place].p for place in places]), strict=True)
    }
    return [
        dataclasses.replace(one, corrected=corrected[place])
        for place, one in enumerate(comparisons)
    ]


def _standings(
    draws: Mapping[tuple[str, str], _Draws],
    comparisons: Iterable[Comparison],
    found: Mapping[tuple[str, str, int], CellResult],
) -> Iterable[Standing]:
    costs = _costs(found)
    for (measure, regime), drawn in draws.items():
        if not drawn.values:
            continue
        here = [one for one in comparisons if (one.measure, one.regime) == (measure, regime)]
        standings = []
        for variant, rank in drawn.ranks().items():
            seeds, mean, low, high = drawn.interval(variant)
            beaten_by = tuple(
                one.other
                for pair in here
                if variant in (pair.variant, pair.other)
                for one in [pair.of(variant)]
                if (one.difference or 0) < 0
                and one.corrected is not None
                and one.corrected < 1 - drawn.level
            )
            standings.append(
                Standing(
                    regime,
                    variant,
                    measure,
                    mean,
                    low,
                    high,
                    seeds,
                    rank,
                    *costs[regime, variant],
                    beaten_by,
                    _enough_seeds(len(seeds), drawn.level),
                )
            )
        yield from sorted(standings, key=lambda one: one.rank or 0)


def _costs(
    found: Mapping[tuple[str, str, int], CellResult],
) -> dict[tuple[str, str], tuple[float | None, float | None]]:
    """Return mean reader calls and CPU seconds per cell, by regime and variant."""
    of: defaultdict[tuple[str, str], list[CellResult]] = defaultdict(list)
    for (regime, variant, _), result in found.items():
        of[regime, variant].append(result)
    return {
        place: (
            mean_of_known(
                sum(calls or 0 for calls in one.curve["reader_calls"])
                for one in cells
                if "reader_calls" in one.curve
            ),
            mean_of_known(one.seconds.get("training_cpu") for one in cells),
        )
        for place, cells in of.items()
    }


def _prices(found: Mapping[tuple[str, str, int], CellResult]) -> Iterable[NoisePrice]:
    measured: defaultdict[tuple[str, str, int], dict[int, dict[str, Slope]]] = defaultdict(dict)
    for (regime, variant, seed), result in found.items():
        for update, price in result.price.items():
            measured[regime, variant, int(update)][seed] = price
    order = list(dict.fromkeys(place[:2] for place in found))
    for place, by_seed in sorted(measured.items(), key=lambda item: order.index(item[0][:2])):
        fact, noise = (
            _mean_slope([price[kind] for price in by_seed.values()]) for kind in ("fact", "noise")
        )
        yield NoisePrice(*place, *fact, *noise, tuple(sorted(by_seed)))


def _mean_slope(slopes: Iterable[Slope]) -> Slope:
    known = [(slope, error) for slope, error in slopes if slope is not None]
    if len(known) < 2:
        return known[0] if known else (None, None)
    values = [slope for slope, _ in known]
    return statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))


def _verdict(variant: str, comparisons: Iterable[Comparison], design: Design) -> Verdict:
    with_baselines = [
        one
        for pair in comparisons
        if variant in (pair.variant, pair.other)
        for one in [pair.of(variant)]
        if one.other in design.baselines
    ]
    made = [one for one in with_baselines if one.low is not None and one.high is not None]
    below = tuple(one for one in made if (one.high or 0) < 0)
    above = tuple(one for one in made if (one.low or 0) > 0)
    return Verdict(
        variant,
        below,
        above,
        tuple(one for one in made if one not in below + above),
        tuple(one for one in with_baselines if set(one.seeds) != {*design.seeds_in(one.regime)}),
    )
