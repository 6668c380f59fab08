"""Figures of how well credit rules agree with the true credit.

They draw the rows of `evaluation.credit_truth.truth_table`, computed or read from a file.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib.evaluation.credit_truth import (
    BASELINE,
    MEASURES,
    PRIVILEGED,
    REGIMES,
    TRUTHS,
    Measure,
    Row,
    Truth,
)
from finemem_lib.figures import style
from finemem_lib.figures.style import CATEGORIES, GREY, MARKERS, known, label

MEASURE_NAMES: Mapping[Measure, str] = {
    "rank": "rank correlation over steps",
    "rank_rollouts": "rank correlation over rollouts",
    "precision": "precision at the true step",
    "recall": "recall of the true step",
    "noise": "share of credit on noise",
    "sign": "sign errors (share of steps)",
}

LESS_IS_BETTER: tuple[Measure, ...] = ("noise", "sign")


def credit_by_regime(rows: Iterable[Row], truth: Truth, measure: Measure = "rank") -> go.Figure:
    """Show one measure of every variant of a rule with its interval, one panel per regime.

    The panels are `REGIMES`, each with two slices of the worlds. A variant without a value in a
    slice has no point there. The variants are ordered by their value over all worlds, the best on
    top.

    Args:
        rows: the rows of `truth_table`.
        truth: which truth the rules are judged against.
        measure: which measure is shown.
    """
    table = _judged(rows, truth, measure)
    rules = _best_first(table, measure)
    best = "; ".join(
        f"{style.one_line(name, 28)} {style.one_line(top.rule, 28)} {top.value:.2f}"
        for slices in REGIMES.values()
        for name in slices
        for top in _top([table[name, rule] for rule in rules if (name, rule) in table], measure)
    )
    return style.finish(
        _dots(table, rules, MEASURE_NAMES[measure]),
        f"Credit rules against the {truth} truth, by regime",
        f"{_sense(measure)}. Best per slice: {best or 'nothing (0 variants)'}. "
        f"{_not_comparable(truth, rules)} {_intervals_note(table.values())}",
        f"Dot plots of {len(rules)} variants of credit rules in {len(REGIMES)} regimes of two "
        "slices each, with intervals.",
        max(360, 260 + _LINE * len(rules)),
        margin=_ROOM,
    )


def differences_by_regime(
    rows: Iterable[Row], truth: Truth, measure: Measure = "rank"
) -> go.Figure:
    """Show the difference of every variant to `BASELINE` in one measure, one panel per regime.

    The differences are paired: computed and resampled on the cases in which both have a value. So
    an interval can exclude 0 although the two intervals of `credit_by_regime` overlap.

    Args:
        rows: the rows of `truth_table`.
        truth: which truth the rules are judged against.
        measure: which measure is shown.
    """
    judged = _judged(rows, truth, measure)
    table = {
        place: dataclasses.replace(
            row, value=row.difference, low=row.difference_low, high=row.difference_high
        )
        for place, row in judged.items()
        if row.difference is not None
    }
    rules = [rule for rule in _best_first(judged, measure) if ("all", rule) in table]
    fig = _dots(table, rules, f"difference to {BASELINE}")
    fig.add_vline(x=0, line={"color": GREY, "width": 1})
    sign = -1 if measure in LESS_IS_BETTER else 1
    places = [name for slices in REGIMES.values() for name in slices]
    wins: dict[bool, list[str]] = {True: [], False: []}
    for rule in rules:
        signs = {_clear_sign(table.get((name, rule))) for name in places}
        for better, names in wins.items():
            if signs == {sign if better else -sign}:
                names.append(style.one_line(rule, 28))
    name = MEASURE_NAMES[measure]
    return style.finish(
        fig,
        f"Differences to {BASELINE} against the {truth} truth, by regime",
        f"{name[0].upper()}{name[1:]} less that of {BASELINE}; {'less' if sign < 0 else 'more'} is "
        f"better. Of {len(rules)} variants, with intervals that exclude 0 in all {len(places)} "
        f"slices, better: {'; '.join(wins[True]) or 'none'}. Worse: "
        f"{'; '.join(wins[False]) or 'none'}. {_not_comparable(truth, rules)} "
        f"{_intervals_note(table.values())}",
        f"Dot plots of the differences of {len(rules)} variants of credit rules to {BASELINE} in "
        f"{len(REGIMES)} regimes of two slices each, with intervals and a line at 0.",
        max(360, 260 + _LINE * len(rules)),
        margin=_ROOM,
    )


def _dots(table: Mapping[tuple[str, str], Row], rules: Sequence[str], axis: str) -> go.Figure:
    """Return a panel per regime with a line per rule and a series of dots per slice."""
    fig = make_subplots(
        rows=1,
        cols=len(REGIMES),
        shared_yaxes=True,
        horizontal_spacing=0.04,
        subplot_titles=list(REGIMES),
    )
    series = 0
    for column, slices in enumerate(REGIMES.values(), start=1):
        for name, offset in zip(slices, (-0.16, 0.16), strict=True):
            part = [table[name, rule] for rule in rules if (name, rule) in table]
            at = [rules.index(row.rule) for row in part]
            fig.add_scatter(
                x=style.numbers(row.value for row in part),
                meta={"y": at, "panel": [*REGIMES][column - 1]},
                y=[style.number(place + offset) for place in at],
                error_x=style.interval(part),
                mode="markers",
                name=label(name),
                cliponaxis=False,
                marker={"color": CATEGORIES[series], "size": 8, "symbol": MARKERS[series]},
                customdata=[_hover(row) for row in part],
                hovertemplate="%{customdata}",
                row=1,
                col=column,
            )
            series += 1
    fig.update_xaxes(matches="x")
    fig.update_annotations(font={"size": 14})
    style.name_panels(fig, axis)
    return _one_per_line(fig, rules)


def _one_per_line(fig: go.Figure, names: Sequence[str], title: str = "credit rule") -> go.Figure:
    """Label each line of the y axes with one variant, the first on top."""
    fig.update_yaxes(style.lines_axis([label(name, 36) for name in names]))
    fig.update_yaxes(title_text=title, col=1)
    return fig


_LINE = 24
"""Height in pixels of the line of one variant, such that all variants nearly fit on a screen."""

_ROOM = {"t": 84, "b": 130, "r": 12}
"""Margins in pixels of panels side by side: titles on top, axis title and legend below."""


def credit_per_call(rows: Iterable[Row], truth: Truth, measure: Measure = "rank") -> go.Figure:
    """Show the reader calls of every variant and, next to them, one measure.

    The calls are those per trajectory that a rule needs in addition to the outcome reward, during
    and after play. Calls answered by the cache that the rollouts of an instance share are not
    counted. The scale is log10(1 + calls), so that 0 calls have a point. The measure is over all
    worlds. Every variant has a line, the one with the fewest calls on top; variants that know the
    truth or the exam have hollow markers.

    Args:
        rows: the rows of `truth_table`.
        truth: which truth the rules are judged against.
        measure: which measure is shown.
    """
    part = _cheapest_first(_judged(rows, truth, measure))
    series = {
        "no further call": [row for row in part if not row.calls_made],
        "calls while playing": [
            row for row in part if row.calls_made and row.calls_made == row.calls_played
        ],
        "calls afterwards": [row for row in part if row.calls_made > row.calls_played],
    }
    name = MEASURE_NAMES[measure]
    fig = make_subplots(
        rows=1, cols=2, shared_yaxes=True, horizontal_spacing=0.05, column_widths=[0.42, 0.58]
    )
    for place, (how, chosen) in enumerate(series.items()):
        shared = _call_markers(how, place, chosen, part, truth)
        calls = [row.calls_made for row in chosen]
        x = style.numbers(map(_log_calls, calls))
        fig.add_scatter(**shared, x=x, meta={"x": style.numbers(calls)}, row=1, col=1)
        x = style.numbers(row.value for row in chosen)
        error_x = style.interval(chosen)
        fig.add_scatter(**shared, x=x, error_x=error_x, showlegend=False, row=1, col=2)
    _calls_axis(fig, max([row.calls_made for row in part], default=0))
    fig.update_xaxes(title_text=style.paragraph(name, 60, 18), col=2)
    _one_per_line(fig, [row.rule for row in part])
    best = [
        f"best with {how}: {style.one_line(row.rule, 28)} {row.value:.2f}"
        + (f" for {row.calls_made:.1f}" if row.calls_made else "")
        for how, chosen in series.items()
        for row in _top(chosen, measure)
    ]
    return style.finish(
        fig,
        f"Reader calls and agreement with the {truth} truth",
        f"{_sense(measure)}; calls are per trajectory, beyond those of the outcome; "
        f"{'; '.join(best) or '0 variants were judged'}. "
        f"{_not_comparable(truth, [row.rule for row in part])} Their markers are hollow. "
        f"{_intervals_note(part)}",
        f"Two dot plots with a line for each of {len(part)} variants of credit rules, the cheapest "
        f"on top: reader calls per trajectory, and {name} with intervals.",
        max(360, 190 + 26 * len(part)),
        margin={"b": 100, "r": 12},
    )


def _call_markers(
    how: str, place: int, chosen: Sequence[Row], order: Sequence[Row], truth: Truth
) -> dict[str, Any]:
    """Return trace properties of the variants in series `how`, each on its line of `order`."""
    color, symbol = CATEGORIES[place], MARKERS[place]
    hollow = [row.rule in PRIVILEGED[truth] for row in chosen]
    return {
        "y": [order.index(row) for row in chosen],
        "mode": "markers",
        "name": how,
        "legendgroup": how,
        "marker": {
            "color": color,
            "size": 9,
            "line": {"width": 2, "color": color},
            "symbol": [f"{symbol}-open" if open_ else symbol for open_ in hollow],
        },
        "customdata": list(map(_hover, chosen)),
        "cliponaxis": False,
        "hovertemplate": "%{customdata}<extra></extra>",
    }


def _calls_axis(fig: go.Figure, most: float) -> None:
    """Label the axis of reader calls up to `most`, on a scale of log10(1 + calls)."""
    ticks = [calls for calls in (0, 1, 3, 10, 30, 100, 300, 1000) if calls <= 1.5 * most + 1]
    # Unrounded positions cannot be mistaken for numbers of calls.
    fig.update_xaxes(
        title_text="reader calls (log)",
        col=1,
        ticktext=list(map(str, ticks)),
        tickvals=list(map(_log_calls, ticks)),
    )


def credit_measures(rows: Iterable[Row]) -> go.Figure:
    """Show all measures of every variant over all worlds against both truths, a panel per measure.

    Reader calls per trajectory stand next to each name; the variant with the fewest is on top.

    Args:
        rows: the rows of `truth_table`.
    """
    rows = [row for row in rows if row.slice == "all"]
    tables = {
        (truth, measure): _judged(rows, truth, measure) for measure in MEASURES for truth in TRUTHS
    }
    order = _cheapest_first({("all", row.rule): row for row in rows})
    fig = _measure_panels(tables, [row.rule for row in order])
    fig.update_annotations(font={"size": 13})
    _one_per_line(
        fig,
        [f"{style.one_line(row.rule, 28)} ({row.calls_made:.1f})" for row in order],
        "credit rule (reader calls)",
    )
    fig.update_yaxes(tickfont={"size": 11})
    best = {
        truth: "; ".join(
            f"{MEASURE_NAMES[measure]} {style.one_line(top.rule, 28)} {top.value:.2f}"
            for measure in MEASURES
            for top in _top(tables[truth, measure].values(), measure)
        )
        for truth in TRUTHS
    }
    return style.finish(
        fig,
        "Credit rules by every measure, against both truths",
        f"{len(order)} variants. Less is better for "
        f"{' and '.join(MEASURE_NAMES[measure] for measure in LESS_IS_BETTER)}, more for all "
        "others. "
        + " ".join(
            f"Best against the {truth} truth: {found or 'none'}. "
            f"{_not_comparable(truth, [row.rule for row in order])}"
            for truth, found in best.items()
        )
        + f" {_intervals_note(row for table in tables.values() for row in table.values())}",
        f"Dot plots of {len(order)} variants of credit rules against two truths, a panel for each "
        f"of {len(MEASURES)} measures, with intervals.",
        _measures_height(len(order)),
        margin={"t": 96, "b": 84, "r": 12},
    )


_BETWEEN_PANELS = 100
"""Pixels between two rows of panels, for tick labels and a title of three lines."""


def _measures_height(rules: int) -> int:
    """Return the height of `credit_measures` in pixels."""
    return max(660, 280 + 2 * 20 * rules)


def _measure_panels(
    tables: Mapping[tuple[Truth, Measure], Mapping[tuple[str, str], Row]], rules: Sequence[str]
) -> go.Figure:
    """Return a panel per measure with a line per rule and a series of dots per truth."""
    columns = 3
    names = [MEASURE_NAMES[measure] for measure in MEASURES]
    starts = range(0, len(names), columns)
    fig = make_subplots(
        rows=len(starts),
        cols=columns,
        shared_yaxes=True,
        horizontal_spacing=0.04,
        vertical_spacing=_BETWEEN_PANELS / (_measures_height(len(rules)) - 180),
        subplot_titles=[
            title
            for start in starts
            for title in style.panel_titles(names[start : start + columns])
        ],
    )
    for number, measure in enumerate(MEASURES):
        for series, truth in enumerate(TRUTHS):
            part = list(tables[truth, measure].values())
            at = [rules.index(row.rule) for row in part]
            fig.add_scatter(
                x=style.numbers(row.value for row in part),
                error_x=style.interval(part),
                y=[style.number(place + 0.36 * series - 0.18) for place in at],
                meta={"y": at, "panel": MEASURE_NAMES[measure]},
                mode="markers",
                name=f"{truth} truth",
                legendgroup=truth,
                showlegend=not number,
                cliponaxis=False,
                marker={"color": CATEGORIES[series], "size": 7, "symbol": MARKERS[series]},
                text=[label(row.rule, 28) for row in part],
                hovertemplate="%{text}: %{x}",
                row=1 + number // columns,
                col=1 + number % columns,
            )
    return fig


def _intervals_note(rows: Iterable[Row]) -> str:
    """Return a sentence that explains the intervals."""
    counts = sorted({row.instances for row in rows if row.low is not None})
    if not counts:
        return "There are no intervals: they need two instances."
    among = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"Lines are 95 % intervals over {among} instances."


def _clear_sign(row: Row | None) -> int:
    """Return the sign of a value whose interval excludes 0, else 0."""
    if row is None or row.low is None or row.low <= 0 <= known(row.high):
        return 0
    return 1 if known(row.value) > 0 else -1


LISTED = 4
"""Maximum number of names in a caption; `PRIVILEGED` holds all of them."""


def _not_comparable(truth: Truth, rules: Iterable[str]) -> str:
    shown = set(rules)
    names = [rule for rule in PRIVILEGED[truth] if rule in shown]
    if len(names) > LISTED:
        names[LISTED:] = [f"and {len(names) - LISTED} others"]
    listed = "; ".join(names) or "none"
    return f"Not comparable, because they know the truth or the exam: {listed}."


def _log_calls(calls: float) -> float:
    """Return the position of a number of calls on the axis."""
    return math.log10(1 + calls)


def _judged(rows: Iterable[Row], truth: Truth, measure: Measure) -> dict[tuple[str, str], Row]:
    """Return the rows that have a value, by slice and rule."""
    return {
        (row.slice, row.rule): row
        for row in rows
        if row.truth == truth and row.measure == measure and row.value is not None
    }


def _cheapest_first(table: Mapping[tuple[str, str], Row]) -> list[Row]:
    """Return the rows over all worlds, those with the fewest reader calls first."""
    everywhere = [row for (name, _), row in table.items() if name == "all"]
    return sorted(everywhere, key=lambda row: (row.calls_made, row.rule))


def _best_first(table: Mapping[tuple[str, str], Row], measure: Measure) -> list[str]:
    everywhere = [row for (name, _), row in table.items() if name == "all"]
    sign = 1 if measure in LESS_IS_BETTER else -1
    return [
        row.rule for row in sorted(everywhere, key=lambda row: (sign * known(row.value), row.rule))
    ]


def _top(rows: Iterable[Row], measure: Measure) -> list[Row]:
    """Return the best row of a rule that does not know the truth, if there is one."""
    rows = [row for row in rows if row.rule not in PRIVILEGED[row.truth]]
    pick = min if measure in LESS_IS_BETTER else max
    return [pick(rows, key=lambda row: known(row.value))] if rows else []


def _sense(measure: Measure) -> str:
    better = "less" if measure in LESS_IS_BETTER else "more"
    name = MEASURE_NAMES[measure]
    return f"{name[0].upper()}{name[1:]}, {better} is better"


def _hover(row: Row) -> str:
    interval = "" if row.low is None else f" [{row.low:.2f}, {row.high:.2f}]"
    return (
        f"{label(row.rule, 28)}: {row.value:.2f}{interval}, {row.counted} judged, "
        f"{row.left_out} not; {row.calls_made:.1f} reader calls, {row.calls_played:.1f} playing"
    )
