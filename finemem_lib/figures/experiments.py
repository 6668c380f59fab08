"""Figures of experiments: estimates with intervals, paired differences, curves, edits.

They draw the rows of `experiments.tables.table` or the results of cells.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from finemem_lib.evaluation.intervals import interval_text
from finemem_lib.experiments.arena import Arena, Standing
from finemem_lib.experiments.cells import Cell, CellResult
from finemem_lib.experiments.tables import (
    PRIMARY,
    ExperimentRow,
    compared,
    excludes_zero,
    format_difference,
    format_interval,
    length_measure,
    regimes_and_variants,
)
from finemem_lib.figures import style
from finemem_lib.figures.style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    PALE,
    PINK,
    RED,
    SKY,
    known,
    label,
    paragraph,
)

EDITS = {
    "INSERT of a fact": (("INSERT fact",), GREEN),
    "UPDATE of a worthless record": (("UPDATE reuse",), SKY),
    "UPDATE of the right record": (("UPDATE right",), BLUE),
    "DELETE of a useless record": (("DELETE stale", "DELETE noise"), PINK),
    "INSERT of noise or a bad copy": (("INSERT noise", "INSERT inexact", "INSERT duplicate"), PALE),
    "UPDATE that harms": (
        ("UPDATE wrong", "UPDATE noise", "UPDATE inexact", "UPDATE duplicate"),
        ORANGE,
    ),
    "DELETE of a live record": (("DELETE live",), RED),
}
"""The bars of `edit_bars`: name -> the counts of `operation_truth` that are summed, and colour."""

FAULTS: dict[str, tuple[str, dict[str, Any]]] = {
    "wrong chunk questions": ("wrong_questions", {}),
    "wrong chunk questions, verified": ("wrong_questions", {"verified": True}),
    "evidence dropped": ("evidence_drop", {}),
    "evidence swapped": ("evidence_swap", {}),
}
"""The lines of `dose_response`: name -> the knob that varies, and the values of other knobs that
differ from the first regime on the whole line."""

BLOCK = 5
"""Number of updates averaged per point of a learning curve."""


def measure_intervals(
    rows: Iterable[ExperimentRow],
    measures: Sequence[str],
    title: str,
    unit: str,
    difference: bool = False,
) -> go.Figure:
    """Show measures with their intervals, one panel per regime and one line per variant.

    If there are more regimes than variants, the panels are variants and the lines regimes.

    Args:
        rows: the rows of `experiments.tables.table`.
        measures: the measures shown, by name.
        title: title of the figure.
        unit: title of the x axis.
        difference: show paired differences to the baseline instead of values; the baseline then
            has no line.
    """
    drawn = [
        row
        for row in rows
        if row.measure in measures and not (difference and row.difference is None)
    ]
    if not drawn:
        return style.no_rows(title, f"Dot plot with intervals of {len(measures)} measures.")
    panels, lines = _arranged(drawn)
    fig = _panels(panels, lines)
    for place, measure in enumerate(measures):
        shift = 0.6 * (place - (len(measures) - 1) / 2) / max(1, len(measures))
        for panel, name in enumerate(panels.names):
            part = [row for row in drawn if row.measure == measure and panels.of(row) == name]
            dots = _measure_dots(part, lines, place, shift, difference)
            dots.update(name=label(measure), legendgroup=measure)
            dots.meta = {**dots.meta, "panel": label(name)}
            dots.update(showlegend=not panel and len(measures) > 1)
            fig.add_trace(dots, row=1, col=panel + 1)
            if difference:
                fig.add_vline(x=0, line={"color": GREY, "width": 1}, row=1, col=panel + 1)
    style.name_panels(fig, unit)
    one_seed = all(row.seeds == 1 for row in drawn)
    count = f"{len(drawn)} estimates over {_seeds(drawn)} seed{'s' * (not one_seed)}"
    over = "its streams" if one_seed else "seeds and streams"
    clear = [row for row in drawn if difference and excludes_zero(row)]
    excluding = f"; {len(clear)} of the intervals exclude zero" if difference else ""
    return style.finish(
        fig,
        title,
        f"{count}, with 95 % intervals over {over}{excluding}.",
        f"Dot plot with intervals of {len(measures)} measures for {lines} in {panels}.",
        170 + max(130, (26 + 12 * len(measures)) * len(lines.names)) + 24 * (len(measures) > 1),
        margin={"t": style.PANELS_TOP, "b": 72 + 24 * (len(measures) > 1)},
    )


def _measure_dots(
    part: Sequence[ExperimentRow],
    lines: _Names,
    series: int,
    shift: float,
    difference: bool,
) -> go.Scatter:
    """Return the dots of one measure in a panel, each `shift` lines below its line."""
    bounds = [_bounds(row, difference) for row in part]
    at = [lines.names.index(lines.of(row)) for row in part]
    return go.Scatter(
        x=style.numbers(value for value, _, _ in bounds),
        y=style.numbers(line + shift for line in at),
        mode="markers",
        meta={"y": at},
        error_x=_error_bars(bounds),
        marker={"color": style.series_color(series), **style.series_marker(series, 9)},
        customdata=[
            f"{label(lines.of(row))}, {label(row.measure)}: "
            + (format_difference(row) if difference else format_interval(row))
            for row in part
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def dose_response(
    rows: Iterable[ExperimentRow],
    results: Iterable[CellResult],
    kinds: Mapping[str, tuple[str, Mapping[str, Any]]] = FAULTS,
    title: str = "Difference to the baseline by share of faults",
    unit: str = "share that is faulty",
) -> go.Figure:
    """Show the paired difference to the baseline against the strength of a fault, or any knob.

    There is one panel per primary measure and one line per kind and variant, over the regimes that
    differ from the first one in the knobs of the kind only. The first regime, which has no fault,
    is the first point of every line without further knobs.

    Args:
        rows: the rows of `experiments.tables.table`.
        results: the results of the cells of these rows, which hold the knobs.
        kinds: name of each line -> the knob that varies, and the values of other knobs that differ
            from the first regime on the whole line.
        title: title of the figure.
        unit: title of the x axis.
    """
    cells = {(one.cell.variant, one.cell.regime): one.cell for one in results}
    pairs = compared(rows)
    _, variants = regimes_and_variants(pairs)
    fig = style.side_by_side(PRIMARY)
    drawn: list[ExperimentRow] = []
    lines = [(variant, kind) for variant in variants for kind in kinds]
    for place, (variant, kind) in enumerate(lines):
        name = kind if len(variants) == 1 else f"{variant}, {kind}"
        for panel, measure in enumerate(PRIMARY):
            here = [row for row in pairs if (row.variant, row.measure) == (variant, measure)]
            if points := _doses(here, cells, *kinds[kind]):
                _draw_doses(fig, points, name, place, panel)
                drawn += [row for _, row in points]
    if not drawn:
        return style.no_rows(title, f"Line plots with intervals over {unit}.")
    fig.add_hline(y=0, line={"color": GREY, "width": 1})
    doses = sorted({dose for trace in fig.data for dose in trace.x})
    fig.update_xaxes(tickvals=doses, zeroline=False)
    fig.update_yaxes(zeroline=False)
    fig.update_yaxes(title_text="difference in accuracy", col=1)
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, unit)
    return style.finish(
        fig,
        title,
        _counted(list(dict.fromkeys(drawn))),
        f"Line plots with intervals of {len(lines)} lines over {unit}: paired difference to the "
        "baseline, at the end of training and over its first updates.",
        420,
        margin={"t": style.PANELS_TOP, "b": 100},
        scattermode="group",
        scattergap=0.8,
    )


def _doses(
    rows: Iterable[ExperimentRow],
    cells: Mapping[tuple[str, str], Cell],
    knob: str,
    along: Mapping[str, Any],
) -> list[tuple[float, ExperimentRow]]:
    """Return the doses and rows of a line of `dose_response`, the smallest dose first."""
    points = [(dose, row) for row in rows if (dose := _dose(row, cells, knob, along)) is not None]
    return sorted(points, key=lambda point: point[0])


def _draw_doses(
    fig: go.Figure, points: Sequence[tuple[float, ExperimentRow]], name: str, line: int, panel: int
) -> None:
    """Draw a line of `dose_response` in one panel; its number is the same in all panels."""
    fig.add_scatter(
        x=style.numbers(dose for dose, _ in points),
        row=1,
        col=panel + 1,
        y=style.numbers(row.difference for _, row in points),
        error_y=_error_bars([_bounds(row, True) for _, row in points]),
        mode="lines+markers",
        name=label(name, 40),
        legendgroup=str(line),
        meta={"panel": label(PRIMARY[panel])},
        offsetgroup=str(line),
        showlegend=not panel,
        line_color=style.series_color(line),
        marker=style.series_marker(line, 9),
        customdata=[f"{label(row.regime)}: {format_difference(row)}" for _, row in points],
        hovertemplate="%{customdata}<extra></extra>",
    )


def learning_curves(
    results: Iterable[CellResult], curve: str = "accuracy", unit: str = "accuracy (mean score)"
) -> go.Figure:
    """Show one curve of the training rollouts, one panel per regime and one line per variant.

    A point is the mean of `BLOCK` updates over seeds; the error bars are the range over seeds.

    Args:
        results: the results of cells; cells without the curve are omitted.
        curve: name of the curve.
        unit: title of the y axis.
    """
    results = [result for result in results if curve in result.curve]
    title = f"{unit[:1].upper()}{unit[1:]} by update"
    if not results:
        return style.no_rows(title, f"Line plots of {unit} over updates.")
    regimes, variants = regimes_and_variants(result.cell for result in results)
    fig = style.side_by_side(regimes)
    ends = {}
    for (panel, regime), (line, variant) in itertools.product(
        enumerate(regimes), enumerate(variants)
    ):
        runs = [
            result.curve[curve]
            for result in results
            if (result.cell.regime, result.cell.variant) == (regime, variant)
        ]
        if runs:
            trace = _curve_of(runs, variant, regime, panel, line)
            fig.add_trace(trace, row=1, col=panel + 1)
            ends[regime, variant] = trace.y[-1]
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, f"update (mean of {BLOCK})")
    fig.update_yaxes(title_text=unit, col=1)
    seeds = len({result.cell.seed for result in results})
    last = "; ".join(
        style.plain(f"{label(variant, 24)}, {label(regime, 24)} {end:.2f}")
        for (regime, variant), end in ends.items()
        if end is not None
    )
    return style.finish(
        fig,
        title,
        f"Means over {seeds} seeds, bars from the lowest to the highest. Last block: {last}.",
        f"Line plots of {len(variants)} variants in {len(regimes)} regimes over updates.",
        420,
        margin={"t": style.PANELS_TOP, "b": 100},
    )


def _curve_of(
    runs: Sequence[Sequence[float | None]], variant: str, regime: str, panel: int, line: int
) -> go.Scatter:
    """Return the mean of a variant's runs per block of updates, with the range over runs."""
    updates = max(map(len, runs))
    points = list(zip(*map(_blocks, runs), strict=False))
    middle = [style.mean(point) for point in points]
    spread = [[value for value in point if value is not None] for point in points]
    return go.Scatter(
        x=[min((number + 1) * BLOCK, updates) for number in range(len(points))],
        y=style.numbers(middle),
        error_y=style.error_bars(
            (max(s) - known(m) if s else None for s, m in zip(spread, middle, strict=True)),
            (known(m) - min(s) if s else None for s, m in zip(spread, middle, strict=True)),
            width=3,
            thickness=1,
        ),
        mode="lines+markers",
        name=label(variant),
        legendgroup=label(variant),
        meta={"panel": label(regime)},
        showlegend=not panel,
        line_color=style.series_color(line),
        marker=style.series_marker(line, 7),
    )


def accuracy_by_test_length(of: Arena, lengths: Sequence[int]) -> go.Figure:
    """Show accuracy against the length of the test streams, a panel per regime, a line per variant.

    Args:
        of: an arena over the measures of `tables.length_measures`.
        lengths: lengths of the test streams, in chunks.
    """
    table = {(one.regime, one.variant, one.measure): one for one in of.standings}
    title = "Accuracy by length of the test stream"
    if not table:
        return style.no_rows(title, "Line plots of accuracy over the length of the test stream.")
    regimes, variants = (
        [name for name in planned if any(name in place for place in table)]
        for planned in (of.design.regimes, of.design.variants)
    )
    fig = style.side_by_side(regimes)
    for (panel, regime), (line, variant) in itertools.product(
        enumerate(regimes), enumerate(variants)
    ):
        points = [
            (chunks, table[place])
            for chunks in lengths
            if (place := (regime, variant, length_measure(chunks))) in table
        ]
        fig.add_trace(_length_line(points, panel, regime, line, variant), row=1, col=panel + 1)
    fig.update_xaxes(type="log", tickvals=list(lengths))
    fig.update_yaxes(range=[-0.04, 1.08])
    fig.update_yaxes(title_text="accuracy", col=1)
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, "length of the test stream (chunks)")
    return style.finish(
        fig,
        title,
        _best_on_the_longest(table.values(), max(lengths)),
        f"Line plots of accuracy over {len(lengths)} lengths of the test stream, one panel for "
        f"each of {len(regimes)} regimes and one line for each of {len(variants)} variants.",
        430,
        margin={"t": style.PANELS_TOP, "b": 112},
    )


def _length_line(
    points: Sequence[tuple[int, Standing]], panel: int, regime: str, line: int, variant: str
) -> go.Scatter:
    """Return the line of a variant in the panel of a regime, with a point per length."""
    return go.Scatter(
        x=[chunks for chunks, _ in points],
        y=style.numbers(one.value for _, one in points),
        error_y=style.interval([one for _, one in points]),
        mode="lines+markers",
        name=label(variant, 30),
        legendgroup=str(line),
        meta={"panel": label(regime)},
        showlegend=not panel,
        **style.series_style(line, 8),
        customdata=[
            f"{label(regime)}, {label(variant)}<br>{chunks} chunks, "
            f"{len(one.seeds)} seeds: {interval_text(one.value, one.low, one.high, '.2f')}"
            for chunks, one in points
        ],
        hovertemplate="%{customdata}<extra></extra>",
    )


def _best_on_the_longest(standings: Iterable[Standing], longest: int) -> str:
    """Return the caption: the best regime and variant on the longest test streams."""
    tested = [one for one in standings if one.measure == length_measure(longest)]
    if not tested:
        return f"Nothing was tested on {longest} chunks."
    best = max(tested, key=lambda one: one.value)
    return (
        f"On {longest} chunks {style.one_line(best.regime, 30)}, "
        f"{style.one_line(best.variant, 20)}, answers most: {best.value:.2f}. Bars are 95 % "
        "intervals over seeds and streams."
    )


def edit_bars(results: Iterable[CellResult]) -> go.Figure:
    """Show the edits per step in the sampled test rollouts, judged by the planted truth.

    Args:
        results: the results of cells.
    """
    results = list(results)
    panels, lines = _arranged([result.cell for result in results])
    fig = _panels(panels, lines)
    sums: dict[str, float] = {}
    for place, (name, (counts, color)) in enumerate(EDITS.items()):
        for panel, title in enumerate(panels.names):
            values = [
                style.mean(
                    sum(known(test.columns[count][stream]) for count in counts) / test.chunks
                    for result in results
                    for test in [result.tests["sampled"]]
                    if (panels.of(result.cell), lines.of(result.cell)) == (title, line)
                    for stream in range(len(test.columns["accuracy"]))
                )
                for line in lines.names
            ]
            sums[name] = sums.get(name, 0.0) + sum(value or 0.0 for value in values)
            fig.add_bar(
                x=style.numbers(values),
                y=list(range(len(lines.names))),
                orientation="h",
                name=label(name),
                legendgroup=name,
                showlegend=not panel,
                row=1,
                col=panel + 1,
                meta={"panel": label(title)},
                marker={"color": color, "pattern": style.pattern(place)},
                hovertemplate=f"{label(name)}: %{{x:.3f}} per step<extra></extra>",
            )
    style.name_panels(fig, "edits per step")
    total = sum(sums.values()) or 1.0
    good = sum(list(sums.values())[:4]) / total
    return style.finish(
        fig,
        "Edits of the memory per step, by kind",
        f"{good:.0%} of all edits are right by the planted truth (the first four kinds).",
        f"Stacked bars of edits per step for {lines} in {panels}.",
        230 + max(110, 56 * len(lines.names)),
        barmode="stack",
        margin={"t": style.PANELS_TOP, "b": 130},
    )


@dataclass(frozen=True, slots=True)
class _Names:
    """The values that occur of one field of cells, "regime" or "variant"."""

    field: str
    names: list[str]

    def of(self, row: ExperimentRow | Cell) -> str:
        return str(getattr(row, self.field))

    def __str__(self) -> str:
        return f"{len(self.names)} {self.field}{'s' * (len(self.names) != 1)}"


def _arranged(rows: Sequence[ExperimentRow | Cell]) -> tuple[_Names, _Names]:
    """Return the names of the panels and of the lines; the field with fewer names has panels."""
    regimes, variants = regimes_and_variants(rows)
    by_regime, by_variant = _Names("regime", regimes), _Names("variant", variants)
    if len(regimes) <= len(variants):
        return by_regime, by_variant
    return by_variant, by_regime


def _panels(panels: _Names, lines: _Names) -> go.Figure:
    """Return a figure with an empty panel per name of `panels` and lines named by `lines`."""
    fig = style.side_by_side(panels.names)
    fig.update_yaxes(style.lines_axis([paragraph(name, 36, 20) for name in lines.names]))
    fig.update_yaxes(title_text=lines.field, col=1)
    fig.update_annotations(font={"size": 13})
    return fig


def _dose(
    row: ExperimentRow, cells: Mapping[tuple[str, str], Cell], knob: str, along: Mapping[str, Any]
) -> float | None:
    """Return the value of a knob in the regime of a row; `None` if other knobs differ.

    Knobs are compared with those of the first regime; `along` holds the allowed differences.
    """

    def knobs(cell: Cell) -> dict[str, Any]:
        return cell.model_dump(exclude={"variant", "regime", "seed"})

    first = next(cell for (variant, _), cell in cells.items() if variant == row.variant)
    found = knobs(cells[row.variant, row.regime])
    line = {**knobs(first), **along, knob: found[knob]}
    return found[knob] if found == line else None


def _counted(rows: Sequence[ExperimentRow]) -> str:
    """Return a sentence with the number of clear comparisons in primary measures."""
    pairs = compared(rows)
    clear = [row for row in pairs if excludes_zero(row)]
    up = sum(known(row.difference) > 0 for row in clear)
    return (
        f"Of {len(pairs)} comparisons in the {len(PRIMARY)} primary measures (sampled at the end, "
        f"first updates) over {_seeds(rows)} seeds {up} are above zero and {len(clear) - up} below "
        "it with a 95 % interval that excludes it."
    )


def _bounds(row: ExperimentRow, difference: bool) -> tuple[float, float, float]:
    """Return a value or difference, and the lower and upper end of its interval."""
    if difference:
        return known(row.difference), known(row.difference_low), known(row.difference_high)
    return row.value, row.low, row.high


def _error_bars(bounds: Sequence[tuple[float, float, float]]) -> dict[str, Any]:
    return style.error_bars(
        [high - value for value, _, high in bounds], [value - low for value, low, _ in bounds]
    )


def _seeds(rows: Iterable[ExperimentRow]) -> str:
    return " or ".join(map(str, sorted({row.seeds for row in rows}))) or "no"


def _blocks(values: Sequence[float | None]) -> list[float | None]:
    return [style.mean(values[start : start + BLOCK]) for start in range(0, len(values), BLOCK)]
