"""Answer the questions of a design from its comparisons, and list missing rows.

Each regime of such a design is a question. The comparisons come from `arena.arena`: paired over
seeds and streams, with intervals corrected for few seeds and Holm's correction within each family.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from finemem_lib.evaluation.intervals import interval_text
from finemem_lib.experiments.arena import Arena, Comparison, seeds_text
from finemem_lib.experiments.cells import CellResult
from finemem_lib.experiments.rows import read_rows
from finemem_lib.experiments.tables import ExperimentRow

VERDICTS = (
    "above",
    "below",
    "above before Holm's correction only",
    "below before Holm's correction only",
    "above on one seed",
    "below on one seed",
    "not decided",
    "no rows yet",
)
"""The possible results of a comparison, in the order in which `answers` lists them."""


def rows_or_none(path: Path) -> list[CellResult]:
    """Return the rows of an experiment, or an empty list if the file does not exist.

    Args:
        path: The file of rows.

    Raises:
        ValueError: a line of the file is not the result of a cell.
    """
    return read_rows(path) if path.exists() else []


def verdict(one: Comparison, level: float = 0.95) -> str:
    """Return the verdict of a comparison, one of `VERDICTS`.

    Args:
        one: The comparison.
        level: Coverage of its interval, in (0, 1).

    >>> verdict(Comparison("r", "m", "a", "b", (1, 2), 0.1, -0.1, 0.3, 0.2, 0.4))
    'not decided'
    >>> verdict(Comparison("r", "m", "a", "b", (1, 2), 0.2, 0.1, 0.3, 0.03, 0.06))
    "above before Holm's correction only"
    """
    if one.difference is None or one.low is None or one.high is None:
        return "no rows yet"
    if one.low <= 0 <= one.high:
        return "not decided"
    side = "above" if one.difference > 0 else "below"
    if one.corrected is None:
        return f"{side} on one seed"
    return side if one.corrected < 1 - level else f"{side} before Holm's correction only"


def asked(
    of: Arena,
    regime: str,
    others: Collection[str] = (),
    variants: Collection[str] = (),
) -> list[Comparison]:
    """Return the comparisons that answer a question.

    Args:
        of: Result of `arena.arena`.
        regime: Name of the regime, that is, the question.
        others: Variants to compare with; empty for all.
        variants: Variants to compare; empty for all.
    """
    return [
        one
        for one in of.comparisons
        if one.regime == regime
        and (not others or one.other in others)
        and (not variants or one.variant in variants)
    ]


def answers(comparisons: Iterable[Comparison], level: float = 0.95) -> list[str]:
    """Return one sentence per measure and reference variant.

    A sentence lists the variants above and below the reference, with difference, interval, seeds
    and corrected p, and those not decided: the interval contains zero, the difference is not
    significant after Holm's correction, or there is only one seed.

    Args:
        comparisons: Result of `asked`.
        level: Coverage of the intervals, in (0, 1).
    """
    grouped: defaultdict[tuple[str, str], list[Comparison]] = defaultdict(list)
    for one in comparisons:
        grouped[one.measure, one.other].append(one)
    return [
        _sentence(f"{measure}, to {other}", of, level) for (measure, other), of in grouped.items()
    ]


def answer_table(comparisons: Iterable[Comparison], level: float = 0.95) -> list[tuple[str, ...]]:
    """Return comparisons as rows of text, the header first.

    Args:
        comparisons: Result of `asked`.
        level: Coverage of the intervals, in (0, 1).
    """
    head = ("measure", "variant", "to", "difference", "seeds", "p, corrected", "verdict")
    return [
        head,
        *(
            (
                one.measure,
                one.variant,
                one.other,
                interval_text(one.difference, one.low, one.high, "+.3f"),
                seeds_text(one.seeds) or "–",
                "–" if one.corrected is None else f"{one.corrected:.2g}",
                verdict(one, level),
            )
            for one in comparisons
        ),
    ]


def coverage(of: Arena) -> list[tuple[str, ...]]:
    """Return the number of cells with a result per regime, as rows of text, the header first.

    A cell in several regimes counts in each of them.

    Args:
        of: Result of `arena.arena`.
    """
    rows: list[tuple[str, ...]] = [("question", "cells", "planned", "seeds of all", "missing")]
    for regime in of.design.regimes:
        seeds, variants = of.design.seeds_in(regime), of.design.variants_in(regime)
        missing = {(one.variant, one.seed) for one in of.missing if one.regime == regime}
        whole = [seed for seed in seeds if not any((name, seed) in missing for name in variants)]
        gaps = [
            f"{name}: {seeds_text(gap)}"
            for name in variants
            if (gap := [seed for seed in seeds if (name, seed) in missing])
        ]
        planned = len(seeds) * len(variants)
        if len(missing) == planned:
            gaps = ["all"]
        rows.append(
            (
                regime,
                str(planned - len(missing)),
                str(planned),
                seeds_text(whole) or "–",
                "; ".join(gaps) or "nothing",
            )
        )
    return rows


def trainings_text(of: Arena) -> str:
    """Return a sentence with the number of planned trainings that have a row, each counted once.

    Args:
        of: Result of `arena.arena`.
    """
    planned = {cell.key for cell in of.design.cells}
    missing = {cell.key for cell in of.missing}
    seeds = sorted({cell.seed for cell in of.design.cells if cell not in of.missing})
    return (
        f"{len(planned - missing)} of {len(planned)} trainings have a row"
        + (f" (seeds {seeds_text(seeds)})" if seeds else "")
        + "."
    )


def comparison_rows(comparisons: Iterable[Comparison], of: Arena) -> list[ExperimentRow]:
    """Return comparisons with one variant as rows for the figures of `figures.experiments`.

    Args:
        comparisons: The comparisons; those without a difference are left out.
        of: Result of `arena.arena`, with the value of each variant.
    """
    values = {(one.regime, one.variant, one.measure): one for one in of.standings}
    return [
        ExperimentRow(
            one.regime,
            one.variant,
            one.measure,
            standing.value,
            standing.low,
            standing.high,
            one.difference,
            one.low,
            one.high,
            len(one.seeds),
        )
        for one in comparisons
        if one.difference is not None
        for standing in [values[one.regime, one.variant, one.measure]]
    ]


def as_doses(
    rows: Iterable[ExperimentRow], results: Iterable[CellResult], regime: str, first: str
) -> tuple[list[ExperimentRow], list[CellResult]]:
    """Return the rows and cells of a question with regime and variant exchanged.

    `figures.dose_response` plots one variant over regimes as doses; in a design of questions the
    doses are the variants of one regime.

    Args:
        rows: Result of `comparison_rows`.
        results: The rows of the experiment.
        regime: Name of the regime, that is, the question.
        first: The variant without a dose, which is placed first.
    """
    turned = [
        dataclasses.replace(row, regime=row.variant, variant=row.regime)
        for row in rows
        if row.regime == regime
    ]
    cells = [
        one.model_copy(
            update={
                "cell": one.cell.model_copy(
                    update={"regime": one.cell.variant, "variant": one.cell.regime}
                )
            }
        )
        for one in results
        if one.cell.regime == regime
    ]
    return turned, sorted(cells, key=lambda one: one.cell.regime != first)


def _sentence(what: str, comparisons: Sequence[Comparison], level: float) -> str:
    if all(one.difference is None for one in comparisons):
        return f"{what}: no rows yet."
    by_verdict: defaultdict[str, list[Comparison]] = defaultdict(list)
    for one in comparisons:
        by_verdict[verdict(one, level)].append(one)
    parts = [
        f"{name}: {' · '.join(map(_with_numbers, by_verdict[name]))}"
        for name in VERDICTS
        if name in by_verdict
    ]
    return f"{what}: {'; '.join(parts)}."


def _with_numbers(one: Comparison) -> str:
    if one.difference is None:
        return one.variant
    p = "" if one.corrected is None else f", p {one.corrected:.2g}"
    gap = interval_text(one.difference, one.low, one.high, "+.3f")
    return f"{one.variant} ({gap}, seed{'s' * (len(one.seeds) > 1)} {seeds_text(one.seeds)}{p})"
