"""Figures of rewards, advantages and credit per step."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib.figures import style
from finemem_lib.figures.selection import clicks_on, step_outline
from finemem_lib.figures.style import BLUE, GREY, INK, ORANGE, label, paragraph
from finemem_lib.rewards import StepReward

TERM_NAMES = {
    "eara": "EARA",
    "format": "format",
    "chunk": "chunk step",
    "compression": "compression",
}


def reward_decomposition(rewards: Sequence[StepReward]) -> go.Figure:
    """Show the weighted terms of the hybrid reward of every step, and their sum.

    A term that could not be measured (`None`) has no bar.

    Args:
        rewards: the rewards of one trajectory, one per step.
    """
    steps = [reward.step for reward in rewards]
    terms = {
        TERM_NAMES[term] if weight == 1 else f"{weight:g} × {TERM_NAMES[term]}": [
            reward.weighted[term] for reward in rewards
        ]
        for term, weight in (rewards[0].weights.items() if rewards else ())
    }
    means = {name: style.mean(values) or 0.0 for name, values in terms.items()}
    totals = [reward.total for reward in rewards]
    known = [total for total in totals if total is not None]
    caption = "No step could be rewarded."
    if known:
        largest = max(means, key=means.__getitem__)
        caption = (
            f"The largest term is {largest} with {means[largest]:.3g} per step on average; "
            f"totals range from {min(known):.3g} to {max(known):.3g}."
        )
    missing = sum(1 for reward in rewards if reward.chunk is None)
    if missing:
        caption += (
            f" {missing} of {len(steps)} steps have no chunk term: no question to score there."
        )
    return stacked_terms(
        steps,
        terms,
        ("total", totals, 16),
        "Reward terms per step",
        caption,
        f"Stacked bars of {len(means)} weighted reward terms for {len(steps)} steps with a mark at "
        "the total.",
    )


def stacked_terms(
    steps: Sequence[int],
    terms: Mapping[str, Sequence[float | None]],
    mark: tuple[str, Sequence[float | None], int],
    title: str,
    caption: str,
    alt: str,
) -> go.Figure:
    """Return stacked bars of weighted reward terms per step, with a mark at every step.

    Args:
        steps: the steps, from 1.
        terms: name of each term -> its value at every step (`None`: no bar).
        mark: name, values and width in pixels of the marks.
        title: title of the figure.
        caption: caption of the figure.
        alt: alt text of the figure.
    """
    fig = go.Figure()
    for number, (name, values) in enumerate(terms.items()):
        fig.add_bar(
            x=steps,
            y=style.numbers(values),
            name=name,
            marker={"color": style.series_color(number), "pattern": style.pattern(number)},
        )
    name, values, size = mark
    line = {"width": 3, "color": INK}
    fig.add_scatter(
        x=steps,
        y=style.numbers(values),
        name=name,
        mode="markers",
        marker={"color": INK, "symbol": "line-ew-open", "size": size, "line": line},
    )
    return style.finish(
        fig,
        title,
        caption,
        alt,
        400,
        barmode="relative",
        xaxis=style.count_axis(len(steps)),
        yaxis={"title_text": "reward r<sub>t</sub> (weighted terms)"},
    )


def advantage_heatmap(advantages: Sequence[Sequence[float | None]]) -> go.Figure:
    """Show the advantage of every rollout at every step.

    A step whose group is dead (all advantages 0 or `None`) is marked "no gradient".

    Args:
        advantages: num_generations rows of T values, as `group_relative` returns them.
    """
    rows = [style.numbers(row) for row in advantages]
    num_steps = max((len(row) for row in rows), default=0)
    steps = list(range(1, num_steps + 1))
    dead = [step for step in steps if not any(row[step - 1] for row in rows if len(row) >= step)]
    bound = style.largest(rows)
    few = len(rows) * num_steps <= 160
    fig = go.Figure(
        go.Heatmap(
            x=steps,
            y=list(range(1, len(rows) + 1)),
            z=rows,
            **style.signed_heatmap(bound, "advantage A"),
            name="advantage",
            texttemplate="%{z:+.2f}" if few else None,
            hovertemplate="rollout %{y}, step %{x}: A = %{z:+.3f}<extra></extra>",
        )
    )
    live = [[0 if step in dead else value for step, value in enumerate(row, 1)] for row in rows]
    gaps = style.gap_marks(steps, range(1, len(rows) + 1), live, "not scored")
    fig.add_trace(gaps)
    for step in dead:
        _cover_dead_step(fig, step, len(rows))
    return style.finish(
        fig,
        "Advantage per rollout and step",
        f"{len(dead)} of {num_steps} steps carry no gradient: their rollouts earned the same, or "
        f"none could be scored. The largest advantage is {bound:.3g}.{style.gap_note(gaps)}"
        if rows
        else "No rollouts.",
        f"Heatmap of {len(rows)} rollouts by {num_steps} steps, orange below and purple above the "
        "mean of the group.",
        190 + max(150, min(30 * len(rows), 600)),
        xaxis=style.count_axis(num_steps) | {"showgrid": False},
        yaxis={
            "title_text": "rollout",
            "tick0": 1,
            "dtick": 1,
            "autorange": "reversed",
            "showgrid": False,
        },
    )


def _cover_dead_step(fig: go.Figure, step: int, num_rows: int) -> None:
    """Cover the cells of a step without gradient with a label."""
    fig.add_shape(
        type="rect",
        x0=step - 0.5,
        x1=step + 0.5,
        y0=0.5,
        y1=num_rows + 0.5,
        line={"color": GREY, "dash": "dot"},
        fillcolor="white",
    )
    fig.add_annotation(
        x=step,
        y=(num_rows + 1) / 2,
        text="no gradient",
        textangle=-90,
        showarrow=False,
        font={"color": INK},
    )


def credit_by_rule(credits: Mapping[str, Sequence[float | None]]) -> go.Figure:
    """Show the credit of every step of one trajectory by every credit rule, one row per rule.

    Colours are relative to the largest absolute credit of the rule, because the sums of the rules
    differ: next to a rule that gives every step the whole outcome, all others would be pale.

    Args:
        credits: name of each rule -> T values in units of the outcome reward; a `None` has an empty
            cell.
    """
    rows = [style.numbers(row) for row in credits.values()]
    num_steps = max((len(row) for row in rows), default=0)
    steps = list(range(1, num_steps + 1))
    names = [label(name) for name in credits]
    gaps = style.gap_marks(steps, names, rows, "not assigned")
    sums = [math.fsum(value for value in row if value is not None) for row in credits.values()]
    spread = f"; their sums run from {min(sums):.3g} to {max(sums):.3g}" if sums else ""
    negative = sum(any(value is not None and value < 0 for value in row) for row in rows)
    fig = go.Figure(
        go.Heatmap(
            x=steps,
            y=names,
            z=[_shares(row) for row in rows],
            meta={"z": rows},
            **style.signed_heatmap(1, "share of the rule's largest"),
            name="credit",
            text=[
                ["" if value is None else f"{round(value, 3) + 0.0:g}" for value in row]
                for row in rows
            ],
            texttemplate="%{text}" if len(rows) * num_steps <= 160 else None,
            hovertemplate="%{y}, step %{x}: %{text}<extra></extra>",
        )
    )
    fig.add_trace(gaps)
    return style.finish(
        fig,
        "Credit per step by rule",
        f"{len(rows)} rules{spread}; {negative} of them give some step negative credit. Numbers "
        "are in units of the outcome reward; a colour compares the steps of one rule."
        + style.gap_note(gaps),
        f"Heatmap of {len(rows)} rules by {num_steps} steps: credit in units of the outcome "
        "reward, purple above and orange below zero, darkest at the largest of each rule.",
        190 + max(150, min(34 * len(rows), 600)),
        xaxis=style.count_axis(num_steps) | {"showgrid": False},
        yaxis={"title_text": "rule", "autorange": "reversed", "showgrid": False},
    )


def _shares(row: Sequence[float | None]) -> list[float | None]:
    """Return the values of a row as shares of its largest absolute value."""
    most = style.largest([row])
    return style.numbers(None if value is None else value / most for value in row)


def credit_side_by_side(
    credits: Mapping[str, Mapping[str, Sequence[float | None]]], title: str
) -> go.Figure:
    """Show the credit of every step of several trajectories by every rule, one panel per rule.

    Args:
        credits: name of each rule -> name of each trajectory -> T values in units of the outcome
            reward; a `None` has no bar. All rules have the same trajectories.
        title: title of the figure, escaped.
    """
    names = list(next(iter(credits.values()), {}))
    paid = [row for rule in credits.values() for row in rule.values()]
    num_steps = max(map(len, paid), default=0)
    fig = make_subplots(
        rows=max(1, len(credits)),
        cols=1,
        shared_xaxes=True,
        shared_yaxes="all",
        vertical_spacing=0.28 / max(1, len(credits)),
        subplot_titles=[label(name, 36) for name in credits],
    )
    count = num_steps * len(names)
    for panel, (rule, rows) in enumerate(credits.items(), start=1):
        for series, (name, values) in enumerate(rows.items()):
            bars = _credit_bars(values, label(rule, 36), label(name), series, count)
            fig.add_trace(bars.update(showlegend=panel == 1), row=panel, col=1)
    sums = "; ".join(map(_sums_text, credits.items()))
    fig.update_annotations(font={"size": 13})
    fig.update_xaxes(style.count_axis(num_steps, ""))
    fig.update_xaxes(title_text="step t (chunk number)", row=len(credits) or 1)
    fig.update_yaxes(range=_range_of_bars(paid), nticks=6)
    fig.update_yaxes(title_text="credit", row=(len(credits) + 1) // 2 or 1)
    return style.finish(
        fig,
        title,
        f"Sum over steps, in the order of the legend: {sums or 'nothing (0 rules)'}.",
        f"Bars of {len(names)} trajectories over {num_steps} steps, one panel for each of "
        f"{len(credits)} rules: credit in units of the outcome reward.",
        170 + 138 * max(1, len(credits)),
        barmode="group",
        margin={"b": 90, "t": 84},
    )


def _credit_bars(
    values: Sequence[float | None], rule: str, name: str, series: int, count: int
) -> go.Bar:
    """Return the bars of one trajectory in the panel of a rule.

    The bars have numbers if the panel has at most 20 bars (`count`); with more than 10, the 0
    before the decimal point is omitted, so that numbers do not touch.
    """
    numbers = ["" if value is None else f"{round(value, 2) + 0.0:g}" for value in values]
    if count > 10:
        numbers = [re.sub(r"^(-?)0\.", r"\1.", text) for text in numbers]
    return go.Bar(
        x=list(range(1, len(values) + 1)),
        y=style.numbers(values),
        meta={"panel": rule},
        name=name,
        legendgroup=str(series),
        marker={"color": style.series_color(series), "pattern": style.pattern(series)},
        text=numbers if count <= 20 else None,
        textposition="outside",
        textangle=0,
        textfont={"size": 11},
        cliponaxis=False,
        hovertemplate="step %{x}: %{y:.4~f}",
    )


def _range_of_bars(rows: Sequence[Sequence[float | None]]) -> list[float]:
    """Return the range of an axis with space for numbers at the ends of bars."""
    known = [value for row in rows for value in row if value is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    low, high = min(low, 0.0), max(high, 0.0)
    room = 0.3 * (high - low) or 1.0
    return [low - room * (low < 0), high + room]


def _sums_text(paid: tuple[str, Mapping[str, Sequence[float | None]]]) -> str:
    """Return a text with the sum over steps of every trajectory, and the steps below 0."""
    name, rows = paid
    sums = " and ".join(
        f"{math.fsum(value for value in row if value is not None):.3g}" for row in rows.values()
    )
    below = sorted(
        {
            str(step)
            for row in rows.values()
            for step, value in enumerate(row, start=1)
            if value is not None and value < 0
        },
        key=int,
    )
    return f"{style.one_line(name, 28)} {sums}" + (
        f", below 0 at step {', '.join(below)}" if below else ""
    )


def advantage_dumbbell(
    before: Sequence[Sequence[float | None]],
    after: Sequence[Sequence[float | None]],
    names: tuple[str, str] = ("outcome reward only", "with attribution"),
    measure: str = "advantage",
    rollouts: Sequence[int] | None = None,
    step: int | None = None,
) -> go.Figure:
    """Show how attribution changes the advantage of every rollout at every step.

    The rollouts are side by side within a step.

    Args:
        before: num_generations rows of T values; `None` for a step that could not be scored.
        after: the values with attribution, in the same shape.
        names: names of `before` and `after` in the legend.
        measure: name of the values, "advantage" or "reward".
        rollouts: positions of the rollouts shown (`None`: all).
        step: the marked step, from 1; a click selects another one. `None` for a figure without
            selection.
    """
    shown = list(range(len(before)) if rollouts is None else rollouts)
    num_steps = max((len(row) for row in before), default=0)
    pairs = _moves(before, after, shown, num_steps)
    steps = [pair.step for pair in pairs]
    moved = style.mean(abs(pair.after - pair.before) for pair in pairs) or 0.0
    turned = sum(1 for pair in pairs if pair.before * pair.after < 0)
    sign = (
        f" and turns the sign of {turned} of {len(pairs)}"
        if measure == "advantage"
        else f" over {len(pairs)} steps"
    )
    who = "" if rollouts is None else f" of rollout {', '.join(str(one + 1) for one in shown)}"
    return style.from_traces(
        [
            _connections(pairs),
            _dumbbell_ends(names[0], pairs, [pair.before for pair in pairs], ORANGE, "circle-open"),
            _dumbbell_ends(names[1], pairs, [pair.after for pair in pairs], BLUE, "diamond"),
        ],
        f"{measure.capitalize()}s{who} before and after attribution",
        f"“{style.one_line(names[0], 40)}” against “{style.one_line(names[1], 40)}”: the {measure} "
        f"moves by {moved:.3g} on average{sign}.",
        f"Dumbbells for {len(shown)} rollouts at each of {num_steps} steps: "
        f"“{style.one_line(names[0], 28)}” at one end, “{style.one_line(names[1], 28)}” at the "
        "other.",
        420,
        None if step is None else clicks_on("step", {1: steps, 2: steps}),
        xaxis=style.count_axis(
            num_steps,
            "step t (rollouts side by side)" if len(shown) > 1 else "step t (chunk number)",
        ),
        yaxis={
            "title": {"text": "advantage A" if measure == "advantage" else "reward r<sub>t</sub>"},
            "zeroline": True,
        },
        shapes=[] if step is None else [step_outline(step)],
    )


class _Move(NamedTuple):
    """The values of one rollout at one step before and after, with their x position."""

    x: float
    step: int
    rollout: int
    before: float
    after: float


def _moves(
    before: Sequence[Sequence[float | None]],
    after: Sequence[Sequence[float | None]],
    shown: Sequence[int],
    num_steps: int,
) -> list[_Move]:
    """Return the pairs of values that are both known, by step, for the rollouts shown."""
    return [
        _Move(style.number(x), step, rollout, old, new)
        for step in range(1, num_steps + 1)
        for place, rollout in enumerate(shown)
        if step <= min(len(before[rollout]), len(after[rollout]))
        and (old := before[rollout][step - 1]) is not None
        and (new := after[rollout][step - 1]) is not None
        for x in [step + (place - (len(shown) - 1) / 2) / (len(shown) + 1)]
    ]


def _connections(pairs: Sequence[_Move]) -> dict[str, Any]:
    """Return the trace of the lines between both values."""
    ends = (style.numbers((pair.before, pair.after)) for pair in pairs)
    return {
        "type": "scatter",
        "mode": "lines",
        "line": {"color": GREY, "width": 2},
        "name": "change",
        "showlegend": False,
        "hoverinfo": "skip",
        "x": [value for pair in pairs for value in (pair.x, pair.x, None)],
        "y": [value for pair in ends for value in (*pair, None)],
    }


def _dumbbell_ends(
    name: str, pairs: Sequence[_Move], values: Sequence[float], color: str, symbol: str
) -> dict[str, Any]:
    """Return the trace of the markers of the values before, or of those after."""
    return {
        "type": "scatter",
        "mode": "markers",
        "name": label(name),
        "x": [pair.x for pair in pairs],
        "y": style.numbers(values),
        "customdata": [
            f"step {pair.step}, rollout {pair.rollout + 1}: {pair.before:+.2f} → {pair.after:+.2f}"
            for pair in pairs
        ],
        "meta": {"x": [pair.step for pair in pairs]},
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": color,
            "symbol": symbol,
            "size": 9,
            "line": {"width": 2, "color": color},
        },
    }


@dataclass(frozen=True, slots=True)
class Term:
    """One line of a formula.

    Attributes:
        formula: the line in symbols.
        numbers: the line in numbers.
        value: its value; `None` if it cannot be measured and is omitted.
        result: whether the line is the result of the lines above it.
    """

    formula: str
    numbers: str
    value: float | None
    result: bool = False


def formula_card(
    terms: Sequence[Term], title: str, caption: str, units: str = "units of the reward"
) -> go.Figure:
    """Show a formula with its numbers: a line and a bar per term.

    Args:
        terms: the lines of the formula, from top to bottom.
        title: title of the figure.
        caption: caption of the figure.
        units: units of the bars.
    """
    lines = [
        f"{paragraph(term.formula, 240, 36)}<br>"
        f"{paragraph('not measurable' if term.value is None else term.numbers, 240, 36)}"
        for term in terms
    ]
    ends = [0.0, *(term.value for term in terms if term.value is not None)]
    room = 0.25 * ((max(ends) - min(ends)) or 1)
    most = max((line.count("<br>") + 1 for line in lines), default=2)
    numbers = "; ".join(
        f"{style.one_line(term.formula, 240)} is "
        f"{'left out' if term.value is None else term.numbers}"
        for term in terms
    )
    return style.from_traces(
        [_value_bars(terms, False), _value_bars(terms, True)],
        title,
        caption,
        f"The formula term by term with its numbers: {numbers}.",
        170 + max(44, 10 + 17 * most) * len(terms),
        barmode="overlay",
        xaxis={
            "title": {"text": f"value ({label(units, 60)})"},
            "zeroline": True,
            "range": [min(ends) - (room if min(ends) < 0 else 0), max(ends) + room],
        },
        yaxis={"title": {"text": "term"}} | style.lines_axis(lines),
    )


def _value_bars(terms: Sequence[Term], result: bool) -> dict[str, Any]:
    """Return the bars of the terms of a formula, or of its results (`result`)."""
    values = [term.value if term.result == result else None for term in terms]
    return {
        "type": "bar",
        "orientation": "h",
        "name": "result" if result else "term",
        "y": list(range(len(terms))),
        "x": style.numbers(values),
        "text": ["" if value is None else f"<b>{value:+.4g}</b>" for value in values],
        "textposition": "outside",
        "cliponaxis": False,
        "hoverinfo": "x" if terms else "skip",
        "showlegend": any(term.result == result for term in terms),
        "marker": {"color": ORANGE if result else BLUE, "pattern": style.pattern(int(result))},
    }
