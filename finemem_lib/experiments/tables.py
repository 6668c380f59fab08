"""Tables of an experiment's results: intervals over seeds and streams, paired differences.

Equal seeds mean equal streams, so a variant is compared with the baseline in pairs: every bootstrap
draw takes both at the same seeds and the same streams.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finemem_lib.evaluation.intervals import interval_text, percentile_ends
from finemem_lib.evaluation.operation_truth import RIGHT_EDITS, WRONG_EDITS
from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.experiments.cells import (
    FAULTY,
    REAL_TRUTHS,
    Cell,
    CellResult,
    cell_streams,
)
from finemem_lib.seeds import stable_seed

if TYPE_CHECKING:
    from numpy.typing import NDArray

Measures = Callable[[CellResult], Mapping[str, Sequence[float]]]

FIRST_UPDATES = 10

ACCURACIES = (
    f"accuracy, first {FIRST_UPDATES} updates",
    "accuracy, area under curve",
    "accuracy, sampled",
    "accuracy, greedy",
)
"""The accuracies of `measures`, in the order of training."""

PRIMARY = ("accuracy, sampled", ACCURACIES[0])
"""The two primary measures, for the end and the start of training; with many measures, some
would differ by chance."""


@dataclass(frozen=True, slots=True)
class ExperimentRow:
    """One measure of one variant in one regime.

    Attributes:
        value: Mean over all seeds and their streams; `low` and `high` bound its interval.
        difference: Difference to the baseline on the same seeds and streams; `None` for the
            baseline itself, and without a common seed. `difference_low` and `difference_high` bound
            its interval.
        seeds: Number of seeds of the variant.
    """

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
    of: Measures | None = None,
) -> list[ExperimentRow]:
    """Return every measure of every variant with intervals and paired differences.

    The percentile bootstrap draws seeds, then streams within each drawn seed, and takes variant and
    baseline at the same draw. With few seeds its intervals are too narrow: with two, it is their
    range. If variant and baseline have different numbers of values (for example, of updates), they
    cannot be paired and have no difference. "first 10 updates" and "area under curve" are means
    over the training streams, each played before the update that trains on it.

    Args:
        results: The cells of one experiment.
        baseline: The variant with which the others are compared, within each regime.
        settings: Number of resamples, level and seed of the bootstrap.
        of: Returns the measures of a cell: by default `measures`; `diagnostic_measures` has one
            value per update instead of one per stream.
    """
    settings, of = settings or BootstrapSettings(), of or measures
    by_place: defaultdict[tuple[str, str], dict[int, Mapping[str, Sequence[float]]]]
    by_place = defaultdict(dict)
    for result in results:
        cell = result.cell
        by_place[cell.regime, cell.variant][cell.seed] = of(result)
    rows = []
    for (regime, variant), seeds in by_place.items():
        base = {} if variant == baseline else by_place.get((regime, baseline), {})
        for measure in dict.fromkeys(name for one in seeds.values() for name in one):
            values = {seed: one[measure] for seed, one in seeds.items() if measure in one}
            paired = _differences(
                values, {seed: one[measure] for seed, one in base.items() if measure in one}
            )
            value, low, high = seed_interval(values, settings)
            gap: tuple[float | None, float | None, float | None] = (None, None, None)
            if paired:
                gap = seed_interval(paired, settings)
            row = ExperimentRow(regime, variant, measure, value, low, high, *gap, len(values))
            rows.append(row)
    return rows


def _differences(
    values: Mapping[int, Sequence[float]], base: Mapping[int, Sequence[float]]
) -> dict[int, list[float]]:
    """Return values minus baseline at every seed with equal numbers of values."""
    return {
        seed: [a - b for a, b in zip(values[seed], base[seed], strict=True)]
        for seed in sorted(values)
        if len(base.get(seed, ())) == len(values[seed])
    }


def measures(result: CellResult) -> dict[str, list[float]]:
    """Return the measures of a cell, each with one value per stream (NaN: not measured).

    Args:
        result: A trained and tested cell.
    """
    found: dict[str, Sequence[float | None]] = {}
    for name, test in result.tests.items():
        found[f"accuracy, {name}"] = test.columns["accuracy"]
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
    for name in sampled.columns:  # of layers and of streams that need them
        if name.startswith("accuracy, ") or name.endswith((" tokens", " never retrieved")):
            found[name] = sampled.columns[name]
    groups: dict[str, Sequence[str]] = {
        **{
            f"{kind}s per step": [name for name in sampled.columns if name.startswith(f"{kind} ")]
            for kind in ("INSERT", "UPDATE", "DELETE")
        },
        "right edits per step": RIGHT_EDITS,
        "wrong edits per step": WRONG_EDITS,
        **{f"{name} per step": [name] for name in REAL_TRUTHS},
    }
    for measure, names in groups.items():
        if not names or any(name not in sampled.columns for name in names):
            continue  # planted streams and real text have different counts
        found[measure] = [
            sum(count or 0 for count in counts) / sampled.chunks
            for counts in zip(*(sampled.columns[name] for name in names), strict=True)
        ]
    for name, values in result.alignment.items():
        what, _, scheme = name.rpartition("/")
        found[f"{what or 'alignment'}, {scheme}"] = values
    return _with_nan(found)


def diagnostic_measures(result: CellResult) -> dict[str, list[float]]:
    """Return the measures of the training rollouts, each with one value per update.

    These are the spread of each term within its group, the share of credit at the evidence step
    (for the true evidence, and with ", faulty evidence" for the evidence that credit was based on),
    duplicates per step, and the share of groups without gradient.

    Args:
        result: A trained and tested cell.
    """
    curve = result.curve
    names = {f"spread of {name.partition('/')[2]}": name for name in curve if "spread/" in name}
    names |= {
        f"credit at the evidence step, {credited} items{faulty}": name
        for name in curve
        if name.startswith("credit_at_evidence/")
        for credited, faulty, _ in [name.partition("/")[2].partition(FAULTY)]
    }
    names["groups without gradient"] = "frac_reward_zero_std"
    found: dict[str, Sequence[float | None]] = {
        measure: curve[name] for measure, name in names.items() if name in curve
    }
    if "truth/INSERT duplicate" in curve:
        found["duplicates per step"] = [
            (inserted or 0) + (updated or 0)
            for inserted, updated in zip(
                curve["truth/INSERT duplicate"], curve["truth/UPDATE duplicate"], strict=True
            )
        ]
    return _with_nan(found)


CHANGED_UPDATED = "changed facts updated"
STALE_DELETED = "stale records deleted per changed fact"


def revision_measures(result: CellResult) -> dict[str, list[float]]:
    """Return how the sampled test treats changed facts, each with one value per stream.

    `CHANGED_UPDATED` is the share of changed facts whose UPDATE overwrites a former value of the
    same slot, in [0, 1]; `STALE_DELETED` is the number of DELETEs of outdated records per changed
    fact. NaN in a stream without a changed fact. Empty where the operations of the test were not
    judged: on real text and on streams that need structure.

    Args:
        result: A tested cell.
    """
    test = result.tests["sampled"]
    if "UPDATE right" not in test.columns:
        return {}
    number = len(test.columns["accuracy"])
    streams = cell_streams(result.cell, "held-out", number, test.chunks, result.cell.seed)
    changed = [
        sum(fact["changed"] for chunk in one.metadata["facts"] for fact in chunk) for one in streams
    ]
    return {
        measure: [
            (count or 0) / facts if facts else math.nan
            for count, facts in zip(test.columns[name], changed, strict=True)
        ]
        for measure, name in ((CHANGED_UPDATED, "UPDATE right"), (STALE_DELETED, "DELETE stale"))
    }


def length_measure(chunks: int) -> str:
    """Return the name of the sampled accuracy on streams of a length, see `length_measures`.

    Args:
        chunks: Length of the streams in chunks.
    """
    return f"accuracy on {chunks} chunks"


def length_measures(result: CellResult) -> dict[str, list[float]]:
    """Return the sampled accuracy by the length of the test streams, one value per stream.

    The names do not depend on the length of the training streams, so managers trained on streams
    of different lengths can be compared on the same test streams.

    Args:
        result: A tested cell.
    """
    return _with_nan(
        {
            length_measure(test.chunks): test.columns["accuracy"]
            for name, test in result.tests.items()
            if name.partition(" T=")[0] == "sampled" and not name.endswith("reader")
        }
    )


def stream_rows(results: Iterable[CellResult]) -> list[dict[str, str | int | float | None]]:
    """Return one row per held-out stream of every test of every cell.

    A row holds the cell's names and seed, the test, the number of the stream, and all measures of
    the stream.

    Args:
        results: Trained and tested cells.
    """
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
    """Return the values with NaN for `None`, without measures that have only `None`."""
    return {
        name: [math.nan if value is None else value for value in values]
        for name, values in found.items()
        if any(value is not None for value in values)
    }


def seed_interval(
    values: Mapping[int, Sequence[float]], settings: BootstrapSettings
) -> tuple[float, float, float]:
    """Return the mean of all values and the ends of its interval.

    Args:
        values: By seed, one value per stream; the same number of streams for each seed.
        settings: Number of resamples, level and seed of the bootstrap.
    """
    rows = np.array([values[seed] for seed in sorted(values)], dtype=float)
    low, high = percentile_ends(hierarchical_draws(rows[None], settings)[:, 0], settings.level)
    return float(np.nanmean(rows)), float(low), float(high)


def hierarchical_draws(
    rows: NDArray[np.float64], settings: BootstrapSettings
) -> NDArray[np.float64]:
    """Return bootstrap draws of the mean of every row, all at the same seeds and streams.

    Each draw resamples the seeds with replacement, and within each drawn seed its streams. The mean
    of a seed already varies with its streams, so if streams differ more than seeds, the spread of
    the draws is up to sqrt(2) times too large. Source: Davison and Hinkley (1997), 3.8.

    Args:
        rows: Values, shape (rows, seeds, streams); a stream with NaN in any row is left out.
        settings: Number of resamples and seed. The draws depend only on the numbers of seeds and
            streams, so that all comparisons share random numbers.

    Returns:
        The means, shape (draws, rows).
    """
    num_rows, n, k = rows.shape
    rng = np.random.default_rng(stable_seed(settings.seed, "experiment", n, k))
    seeds = rng.integers(n, size=(settings.num_resamples, n, 1)).ravel()
    streams = rng.integers(k, size=(settings.num_resamples, n, k), dtype=np.int32).reshape(-1, k)
    places = streams + np.arange(len(seeds))[:, None] * k
    counts = np.bincount(places.ravel(), minlength=places.size).reshape(-1, k).astype(float)
    known = np.asarray(~np.isnan(rows).any(axis=0))
    values = np.where(known, rows, 0.0)
    sums, number = np.empty((len(seeds), num_rows)), np.empty(len(seeds))
    for seed in range(n):
        drawn = counts[seeds == seed]
        sums[seeds == seed] = drawn @ values[:, seed].T
        number[seeds == seed] = drawn @ known[seed]
    means: NDArray[np.float64] = sums.reshape(-1, n, num_rows).sum(axis=1)
    means /= number.reshape(-1, n).sum(axis=1)[:, None]
    return means


def format_interval(row: ExperimentRow) -> str:
    """Return a value with its interval as text.

    Args:
        row: One value of the table.
    """
    return interval_text(row.value, row.low, row.high)


def format_difference(row: ExperimentRow) -> str:
    """Return the difference to the baseline with its interval as text, or "–".

    Args:
        row: One value of the table.
    """
    return interval_text(row.difference, row.difference_low, row.difference_high, "+.3f")


def excludes_zero(row: ExperimentRow) -> bool:
    """Return whether there is a difference whose interval does not contain zero.

    Args:
        row: One value of the table.
    """
    if row.difference_low is None or row.difference_high is None:
        return False
    return row.difference_low > 0 or row.difference_high < 0


def regimes_and_variants(rows: Iterable[ExperimentRow | Cell]) -> tuple[list[str], list[str]]:
    """Return the regimes and the variants of rows, each once, in order of occurrence.

    Args:
        rows: Rows or cells with a regime and a variant.
    """
    rows = list(rows)
    return (
        list(dict.fromkeys(row.regime for row in rows)),
        list(dict.fromkeys(row.variant for row in rows)),
    )


def compared(rows: Iterable[ExperimentRow]) -> list[ExperimentRow]:
    """Return the comparisons with the baseline in the primary measures.

    Args:
        rows: The table.
    """
    return [row for row in rows if row.difference is not None and row.measure in PRIMARY]
