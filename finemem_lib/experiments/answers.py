"""Answer the questions of a design from its comparisons, and say what has no rows yet.

Each regime of such a design is a question. The comparisons are those of `arena.arena`: paired over
seeds and streams, intervals wide enough for few seeds, Holm's correction within each family.
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
"""What a comparison says, in the order in which `answers` names them."""


def rows_or_none(path: Path) -> list[CellResult]:
    """Return the rows of an experiment, none where its file is not there yet.

    Args:
        path: the file of rows.

    Raises:
        ValueError: the file is there, and a line of it is not the result of a cell.
    """
    return read_rows(path) if path.exists() else []


def verdict(one: Comparison, level: float = 0.95) -> str:
    """Return what a comparison says, one of `VERDICTS`.

    Args:
        one: the comparison.
        level: coverage of its interval.

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
        of: what `arena.arena` returned.
        regime: the question.
        others: what is compared with; all baselines where it is empty.
        variants: what is compared; all variants where it is empty.
    """
    return [
        one
        for one in of.comparisons
        if one.regime == regime
        and (not others or one.other in others)
        and (not variants or one.variant in variants)
    ]


def answers(comparisons: Iterable[Comparison], level: float = 0.95) -> list[str]:
    """Return one sentence for each measure and each variant that is compared with.

    A sentence names what is above and below it, with difference, interval, seeds and corrected p,
    and what is not decided: the interval holds zero, Holm's correction takes the difference away,
    or there is only one seed.

    Args:
        comparisons: what `asked` returned.
        level: coverage of their intervals.
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
        comparisons: what `asked` returned.
        level: coverage of their intervals.
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
    """Return how many cells of each regime are there, as rows of text, the header first.

    A cell that several regimes name counts in each of them.

    Args:
        of: what `arena.arena` returned.
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
    """Return in a sentence how many of the planned trainings have a row, each counted once.

    Args:
        of: what `arena.arena` returned.
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
        comparisons: those that were made are returned.
        of: what `arena.arena` returned, with the value of each variant.
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
    """Return the rows and cells of a question, regime and variant exchanged.

    `figures.dose_response` follows one variant over the regimes that are its doses; in a design of
    questions the doses are the variants of one regime.

    Args:
        rows: what `comparison_rows` returned.
        results: the rows of the experiment.
        regime: the question.
        first: the variant that the doses are changes of.
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
