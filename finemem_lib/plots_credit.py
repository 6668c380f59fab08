"""Figures of credit rules against the truth: pure builders in the manner of `plots`, of whose
helpers they are made. They read the rows of `credit_truth.truth_table`, saved or new."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib import plot_style as style
from finemem_lib.credit_truth import BASELINE, REGIMES, TOLD, Measure, Row, Truth
from finemem_lib.plot_style import CATEGORIES, GREY, MARKERS, label

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
    best = "; ".join(
        f"{style.one_line(name, 28)} {style.one_line(top.rule, 28)} {top.value:.2f}"
        for slices in REGIMES.values() for name in slices
        for top in _top([table[name, rule] for rule in rules if (name, rule) in table], measure)
    )
    return style.finish(
        _dots(table, rules, MEASURE_NAMES[measure]),
        f"Credit rules against the {truth} truth, by regime",
        f"{_sense(measure)}. Best per slice: {best or 'nothing (0 rules)'}. {_told(truth)} "
        f"{_lines(table.values())}",
        f"Dot plots of {len(rules)} credit rules in {len(REGIMES)} regimes of two slices each, "
        "with intervals.",
        max(360, 190 + 30 * len(rules)), margin={"t": 84},
    )


def differences_by_regime(
    rows: Iterable[Row], truth: Truth, measure: Measure = "rank"
) -> go.Figure:
    """Show what every rule has more than `BASELINE` of one measure, in the same panels.

    A difference is over what both could be judged on and drawn together, so its interval may
    exclude 0 where the two intervals of `credit_by_regime` overlap.
    """
    judged = _judged(rows, truth, measure)
    table = {
        place: dataclasses.replace(
            row, value=row.difference, low=row.difference_low, high=row.difference_high)
        for place, row in judged.items() if row.difference is not None
    }
    rules = [rule for rule in _best_first(judged, measure) if ("all", rule) in table]
    fig = _dots(table, rules, f"difference to {BASELINE}")
    fig.add_vline(x=0, line={"color": GREY, "width": 1})
    sign = -1 if measure in LESS_IS_BETTER else 1
    places = [name for slices in REGIMES.values() for name in slices]
    wins: dict[bool, list[str]] = {True: [], False: []}
    for rule in rules:
        parts = [table.get((name, rule)) for name in places]
        for better, names in wins.items():
            way = sign if better else -sign
            if all(_excludes_zero(part) and way * part.value > 0 for part in parts):
                names.append(style.one_line(rule, 28))
    name = MEASURE_NAMES[measure]
    return style.finish(
        fig, f"Differences to {BASELINE} against the {truth} truth, by regime",
        f"{name[0].upper()}{name[1:]} less that of {BASELINE}; {'less' if sign < 0 else 'more'} is "
        f"better. Of {len(rules)} rules, with intervals that exclude 0 in all {len(places)} "
        f"slices, better: {'; '.join(wins[True]) or 'none'}. Worse: "
        f"{'; '.join(wins[False]) or 'none'}. {_told(truth)} {_lines(table.values())}",
        f"Dot plots of the differences of {len(rules)} credit rules to {BASELINE} in "
        f"{len(REGIMES)} regimes of two slices each, with intervals and a line at 0.",
        max(360, 190 + 30 * len(rules)), margin={"t": 84},
    )


def _dots(table: Mapping[tuple[str, str], Row], rules: Sequence[str], axis: str) -> go.Figure:
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
    fig.update_xaxes(title_text=axis, matches="x")
    ticks = [label(rule, 28) for rule in rules]
    fig.update_yaxes(range=[len(rules) - 0.4, -0.6], zeroline=False,
                     tickvals=list(range(len(rules))), ticktext=ticks)
    fig.update_yaxes(title_text="credit rule", col=1)
    fig.update_annotations(font={"size": 14})
    return fig


def credit_per_call(rows: Iterable[Row], truth: Truth, measure: Measure = "rank") -> go.Figure:
    """Show one measure of every rule over all worlds against the reader calls that it cost.

    Calls per trajectory beyond those of the outcome, made while playing and afterwards, those that
    reached the reader when the rollouts of an instance share a memo; on a scale of log10(1 +
    calls), so that rules that ask nothing more have a place.
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
    groups = {
        "without a call more than the outcome's": [row for row in part if not row.calls_made],
        "with calls while playing only":
            [row for row in part if row.calls_made and row.calls_made == row.calls_played],
        "with calls afterwards": [row for row in part if row.calls_made > row.calls_played],
    }
    told = [
        f"best {how}: {style.one_line(row.rule, 28)} {row.value:.2f}"
        + (f" for {row.calls_made:.1f}" if row.calls_made else "")
        for how, some in groups.items() for row in _top(some, measure)
    ]
    return style.finish(
        fig, f"What a reader call buys, against the {truth} truth",
        f"{_sense(measure)}; {'; '.join(told) or '0 rules were judged'}. {_told(truth)} "
        f"{_lines(part)}",
        f"Scatter plot of {len(part)} credit rules: reader calls per trajectory against "
        f"{MEASURE_NAMES[measure]}.",
        560, xaxis={"title_text": "reader calls per trajectory beyond the outcome's (log, from 0)",
                    "tickvals": [style.number(_calls(calls)) for calls in ticks],
                    "ticktext": [str(calls) for calls in ticks]},
        yaxis={"title_text": MEASURE_NAMES[measure]},
    )


def _lines(rows: Iterable[Row]) -> str:
    counts = sorted({row.instances for row in rows if row.low is not None})
    if not counts:
        return "There are no intervals: they take two instances."
    among = f"{counts[0]} to {counts[-1]}" if len(counts) > 1 else f"{counts[0]}"
    return f"Lines are 95 % intervals over {among} instances."


def _excludes_zero(row: Row | None) -> bool:
    return row is not None and row.low is not None and not row.low <= 0 <= row.high


def _told(truth: Truth) -> str:
    return f"No contestants, for they are told the truth or the exam: {'; '.join(TOLD[truth])}."


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
            f"{row.calls_made:.1f} reader calls, {row.calls_played:.1f} of them while playing")
