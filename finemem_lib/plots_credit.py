"""Figures of credit rules against the truth: pure builders in the manner of `plots`, of whose
helpers they are made. They read the rows of `credit_truth.truth_table`, saved or new."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib import plot_style as style
from finemem_lib.credit_truth import REGIMES, TOLD, Measure, Row, Truth
from finemem_lib.plot_style import CATEGORIES, MARKERS, label

MEASURE_NAMES: Mapping[Measure, str] = {
    "rank": "rank correlation over steps",
    "rank_rollouts": "rank correlation over rollouts",
    "precision": "precision at the true step",
    "recall": "recall of the true step",
    "noise": "share of credit on noise",
    "sign": "sign errors (share of steps)",
}
LESS_IS_BETTER = ("noise", "sign")


def credit_by_regime(rows: Iterable[Row], truth: Truth, measure: Measure = "rank") -> go.Figure:
    """Show one measure of every rule with its interval, one panel per regime of `REGIMES`.

    A rule that could not be judged in a slice has no point there. Rules are ordered by their value
    over all worlds, best on top.
    """
    table = _judged(rows, truth, measure)
    rules = _best_first(table, measure)
    fig = make_subplots(rows=1, cols=len(REGIMES), shared_yaxes=True, horizontal_spacing=0.04,
                        subplot_titles=list(REGIMES))
    series = 0
    for column, slices in enumerate(REGIMES.values(), start=1):
        for name, offset in zip(slices, (-0.16, 0.16), strict=True):
            part = [table[name, rule] for rule in rules if (name, rule) in table]
            fig.add_scatter(
                x=style.numbers(row.value for row in part),
                y=[style.number(rules.index(row.rule) + offset) for row in part],
                error_x=style.interval(part), mode="markers", name=label(name), cliponaxis=False,
                marker={"color": CATEGORIES[series], "size": 8, "symbol": MARKERS[series]},
                customdata=[_note(row) for row in part],
                hovertemplate="%{customdata}<extra></extra>", row=1, col=column,
            )
            series += 1
    fig.update_xaxes(title_text=MEASURE_NAMES[measure])
    ticks = [label(rule, 28) for rule in rules]
    fig.update_yaxes(range=[len(rules) - 0.4, -0.6], zeroline=False,
                     tickvals=list(range(len(rules))), ticktext=ticks)
    fig.update_yaxes(title_text="credit rule", col=1)
    fig.update_annotations(font={"size": 14})
    best = "; ".join(
        f"{style.one_line(name, 28)} {style.one_line(top.rule, 28)} {top.value:.2f}"
        for slices in REGIMES.values() for name in slices
        for top in _top([table[name, rule] for rule in rules if (name, rule) in table], measure)
    )
    return style.finish(
        fig, f"Credit rules against the {truth} truth, by regime",
        f"{_sense(measure)}. Best per slice: {best or 'nothing (0 rules)'}. {_told(truth)} "
        "Lines are 95 % intervals over instances.",
        f"Dot plots of {len(rules)} credit rules in {len(REGIMES)} regimes of two slices each, "
        "with intervals.",
        190 + 30 * len(rules), margin={"t": 84},
    )


def credit_per_call(rows: Iterable[Row], truth: Truth, measure: Measure = "rank") -> go.Figure:
    """Show one measure of every rule over all worlds against the reader calls that it cost.

    Calls per trajectory, those that reached the reader when the rollouts of an instance share a
    memo, on a scale of log10(1 + calls), so that rules that ask nothing have a place.
    """
    table = _judged(rows, truth, measure)
    rules = _best_first(table, measure)
    part = [table["all", rule] for rule in rules]
    fig = go.Figure()
    for place, row in enumerate(part):
        fig.add_scatter(
            x=[style.number(_calls(row.calls_made))], y=[style.number(row.value)],
            error_y=style.interval([row]), mode="markers", name=label(row.rule, 28),
            marker={"color": CATEGORIES[place % len(CATEGORIES)], "size": 11,
                    "symbol": MARKERS[place % len(MARKERS)],
                    "line": {"width": 1 + place // len(MARKERS)}},
            customdata=[_note(row)], hovertemplate="%{customdata}<extra></extra>",
        )
    ticks = [calls for calls in (0, 1, 3, 10, 30, 100, 300, 1000)
             if calls <= 3 * max([row.calls_made for row in part], default=0) + 1]
    free = _top([row for row in part if not row.calls_made], measure)
    paid = _top([row for row in part if row.calls_made], measure)
    told = [f"best without a call of its own: {style.one_line(row.rule, 28)} {row.value:.2f}"
            for row in free]
    told += [f"best with calls: {style.one_line(row.rule, 28)} {row.value:.2f} for "
             f"{row.calls_made:.0f}" for row in paid]
    return style.finish(
        fig, f"What a reader call buys, against the {truth} truth",
        f"{_sense(measure)}; {'; '.join(told) or '0 rules were judged'}. {_told(truth)} "
        "Lines are 95 % intervals over instances.",
        f"Scatter plot of {len(part)} credit rules: reader calls per trajectory against "
        f"{MEASURE_NAMES[measure]}.",
        560, xaxis={"title_text": "reader calls per trajectory (log scale from 0)",
                    "tickvals": [style.number(_calls(calls)) for calls in ticks],
                    "ticktext": [str(calls) for calls in ticks]},
        yaxis={"title_text": MEASURE_NAMES[measure]},
    )


def _told(truth: Truth) -> str:
    return f"No contestants, for they are told the truth or the exam: {', '.join(TOLD[truth])}."


def _calls(calls: float) -> float:
    return math.log10(1 + calls)


def _judged(rows: Iterable[Row], truth: Truth, measure: Measure) -> dict[tuple[str, str], Row]:
    return {
        (row.slice, row.rule): row for row in rows
        if row.truth == truth and row.measure == measure and row.value is not None
    }


def _best_first(table: Mapping[tuple[str, str], Row], measure: Measure) -> list[str]:
    everywhere = [row for (name, _), row in table.items() if name == "all"]
    sign = 1 if measure in LESS_IS_BETTER else -1
    return [row.rule for row in sorted(everywhere, key=lambda row: (sign * row.value, row.rule))]


def _top(rows: Iterable[Row], measure: Measure) -> list[Row]:
    """Return the best row of a rule that is not told the truth, if there is one."""
    rows = [row for row in rows if row.rule not in TOLD[row.truth]]
    pick = min if measure in LESS_IS_BETTER else max
    return [pick(rows, key=lambda row: row.value)] if rows else []


def _sense(measure: Measure) -> str:
    better = "less" if measure in LESS_IS_BETTER else "more"
    name = MEASURE_NAMES[measure]
    return f"{name[0].upper()}{name[1:]}, {better} is better"


def _note(row: Row) -> str:
    interval = "" if row.low is None else f" [{row.low:.2f}, {row.high:.2f}]"
    return (f"{label(row.rule)}, {label(row.slice)}: {row.value:.2f}{interval}<br>{row.counted} "
            f"judged in {row.instances} instances, {row.left_out} could not be; "
            f"{row.calls_made:.1f} reader calls")
