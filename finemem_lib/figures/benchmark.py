"""Figures of managers: accuracy, memory length, failure stages, and cost by stream length."""

from __future__ import annotations

from collections.abc import Iterable

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib.evaluation.failure_stages import STAGES, StageCount
from finemem_lib.evaluation.intervals import interval_text
from finemem_lib.evaluation.stream_length import LengthRow
from finemem_lib.evaluation.tables import ALL, Average, Estimate, format_estimate
from finemem_lib.figures import style
from finemem_lib.figures.style import (
    BLUE,
    GREEN,
    GREY,
    INK,
    ORANGE,
    PINK,
    RED,
    SKY,
    known,
    label,
    paragraph,
)


def benchmark_accuracy(rows: Iterable[Estimate], average: Average = "macro") -> go.Figure:
    """Show accuracy with its interval, one panel per category, one line per method.

    A value that could not be measured has no point.

    Args:
        rows: the rows of `evaluation.tables.benchmark_table`.
        average: the average over a category that is drawn.
    """
    table, methods, categories = _estimates(rows, "accuracy", average)
    fig = style.side_by_side(categories)
    for place, category in enumerate(categories):
        part = [row for row in table if row.category == category]
        fig.add_scatter(
            x=style.numbers(row.value for row in part),
            y=[methods.index(row.method) for row in part],
            error_x=style.interval(part),
            mode="markers+text",
            text=[f"{row.value:.2f}" for row in part],
            textposition="top center",
            cliponaxis=False,
            name=label(category),
            showlegend=False,
            marker={"color": style.series_color(place), **style.series_marker(place, 11)},
            customdata=[
                f"{label(row.method)}: {label(format_estimate(row))}<br>{row.counted} "
                f"answers, {row.left_out} not scored"
                for row in part
            ],
            hovertemplate="%{customdata}<extra></extra>",
            row=1,
            col=place + 1,
        )
    fig.update_xaxes(range=[-0.04, 1.08], tickvals=[0, 0.5, 1])
    fig.update_yaxes(style.lines_axis([paragraph(method, 28, 16) for method in methods], 0.7))
    fig.update_yaxes(title_text="method", col=1)
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, "accuracy")
    best = [
        max((row for row in table if row.category == category), key=lambda row: known(row.value))
        for category in categories
    ]
    tops = "; ".join(
        f"{style.one_line(row.category, 12)} {style.one_line(row.method, 28)} {row.value:.2f}"
        for row in best
    )
    return style.finish(
        fig,
        f"Accuracy by category ({average} average)",
        f"Best per category: {tops}. Lines are the intervals of the table."
        if best
        else "Nothing could be scored.",
        f"Dot plot of the accuracy of {len(methods)} methods in {len(categories)} categories, with "
        "intervals.",
        200 + 44 * len(methods),
        margin={"t": style.PANELS_TOP},
    )


def memory_length(rows: Iterable[Estimate], average: Average = "macro") -> go.Figure:
    """Show the length of the final memory, L(M_T) in tokens, per method and category.

    Args:
        rows: as for `benchmark_accuracy`.
        average: as for `benchmark_accuracy`.
    """
    table, methods, categories = _estimates(rows, "memory_tokens", average)
    fig = go.Figure()
    for place, category in enumerate(categories):
        part = [row for row in table if row.category == category]
        fig.add_bar(
            x=style.numbers(row.value for row in part),
            orientation="h",
            y=[methods.index(row.method) for row in part],
            name=label(category),
            text=[f"{row.value:,.0f}" for row in part],
            textposition="inside",
            insidetextanchor="start",
            textangle=0,
            constraintext="none",
            textfont={"color": "white" if style.series_color(place) in (BLUE, INK) else INK},
            error_x=style.interval(part),
            cliponaxis=False,
            hovertemplate="%{x} tokens<extra></extra>",
            marker={"color": style.series_color(place), "pattern": style.pattern(place)},
        )
    means = {
        method: style.mean(row.value for row in table if row.method == method) or 0.0
        for method in methods
    }
    ordered = sorted(methods, key=means.__getitem__)
    return style.finish(
        fig,
        f"Length of the final memory ({average} average)",
        f"{style.one_line(ordered[0], 28)} keeps the shortest memory, "
        f"{style.one_line(ordered[-1], 28)} the longest: "
        f"{means[ordered[0]]:,.0f} and {means[ordered[-1]]:,.0f} tokens over the categories."
        if ordered
        else "Nothing was measured.",
        f"Bars of the memory length of {len(methods)} methods in {len(categories)} categories.",
        170 + (20 * len(categories) + 14) * len(methods),
        barmode="group",
        xaxis={"title_text": "length of the final memory (tokens)", "rangemode": "tozero"},
        yaxis=style.lines_axis([label(method, 28) for method in methods])
        | {"title_text": "method"},
    )


def stages_by_method(rows: Iterable[StageCount]) -> go.Figure:
    """Show the failure stages of every method's questions, as shares of its questions.

    Args:
        rows: the rows of `evaluation.failure_stages.stage_counts`.
    """
    table = [row for row in rows if row.share is not None]
    methods = list(dict.fromkeys(row.method for row in table))
    colors = (BLUE, GREY, SKY, ORANGE, GREEN, PINK, RED)
    traces = []
    for place, ((stage, name), color) in enumerate(zip(STAGES.items(), colors, strict=True)):
        part = [row for row in table if row.stage == stage]
        traces.append(
            {
                "type": "bar",
                "orientation": "h",
                "name": name,
                "x": style.numbers(row.share for row in part),
                "y": [methods.index(row.method) for row in part],
                "text": [f"{row.count}" if known(row.share) >= 0.03 else "" for row in part],
                "textposition": "inside",
                "insidetextanchor": "middle",
                "textangle": 0,
                "insidetextfont": {"color": INK if place else "white"},
                "customdata": [
                    f"{label(row.method)}: {name}<br>{row.count} of {row.total} questions, "
                    f"{row.exact} of them with known evidence"
                    for row in part
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
                "marker": {"color": color, "pattern": style.pattern(place)},
            }
        )
    lost = [row for row in table if row.stage != "answered" and row.count]
    worst = max(lost, key=lambda row: row.count, default=None)
    most = (
        f" Most are lost by {style.one_line(worst.method, 28)}: {worst.count} "
        f"{STAGES[worst.stage]}."
        if worst
        else ""
    )
    totals = {row.method: row.total for row in table}
    return style.from_traces(
        traces,
        "Failure stages of questions by method",
        f"{sum(totals.values())} questions of {len(methods)} methods that can be scored; the "
        f"numbers in the bars count questions.{most}",
        f"Stacked bars of the stages at which the questions of {len(methods)} methods ended, as "
        "shares of their questions.",
        210 + 40 * max(1, len(methods)),
        barmode="stack",
        margin={"b": 130},
        xaxis={"title": {"text": "share of the questions"}, "range": [0, 1]},
        yaxis={"title": {"text": "method"}}
        | style.lines_axis([label(method, 28) for method in methods]),
    )


LENGTH_PANELS = (
    ("accuracy", "accuracy"),
    ("memory_tokens", "memory (tokens)"),
    ("seconds_per_step", "CPU seconds per step"),
    ("calls", "calls of models per stream"),
)
"""The measures of `cost_by_length`: fields of `LengthRow`, and their names."""


def cost_by_length(rows: Iterable[LengthRow]) -> go.Figure:
    """Show accuracy, memory, seconds and calls of every system against the length of the stream.

    Args:
        rows: rows of one stream, with any systems and budgets.
    """
    table = sorted(rows, key=lambda row: row.stream_tokens)
    methods = list(dict.fromkeys(row.method for row in table))
    fig = make_subplots(
        rows=2,
        cols=2,
        horizontal_spacing=0.14,
        vertical_spacing=0.16,
        subplot_titles=[name for _, name in LENGTH_PANELS],
    )
    for place, method in enumerate(methods):
        part = [row for row in table if row.method == method]
        for panel, (measure, name) in enumerate(LENGTH_PANELS):
            fig.add_scatter(
                x=style.numbers(row.stream_tokens for row in part),
                y=style.numbers(getattr(row, measure) for row in part),
                mode="lines+markers",
                name=label(method, 34),
                legendgroup=str(place),
                showlegend=not panel,
                **style.series_style(place, 8),
                customdata=[
                    f"{label(row.method)}<br>{row.chunks} chunks, {row.stream_tokens:,.0f} tokens, "
                    f"{row.instances} streams, {row.questions} questions<br>accuracy "
                    + interval_text(row.accuracy, row.low, row.high, ".2f")
                    for row in part
                ],
                hovertemplate=f"%{{customdata}}<br>{name}: %{{y}}<extra></extra>",
                row=panel // 2 + 1,
                col=panel % 2 + 1,
            )
    fig.update_xaxes(type="log", tickformat="~s", nticks=5)
    fig.update_xaxes(title_text="length of the stream (tokens)", row=2)
    fig.update_yaxes(range=[-0.04, 1.08], row=1, col=1)
    for line, column in ((1, 2), (2, 1), (2, 2)):
        fig.update_yaxes(type="log", tickformat="~s", nticks=4, row=line, col=column)
    fig.update_annotations(font={"size": 13})
    streams = {row.stream for row in table}
    where = f": {label(streams.pop(), 40)}" if len(streams) == 1 else ""
    longest = [row for row in table if table and row.chunks == table[-1].chunks]
    best = max(longest, key=lambda row: row.accuracy or 0.0, default=None)
    return style.finish(
        fig,
        f"Accuracy and cost by stream length{where}",
        f"On the longest streams ({best.stream_tokens:,.0f} tokens) "
        f"{style.one_line(best.method, 34)} answers most: {best.accuracy or 0.0:.2f}, with a "
        f"memory of {best.memory_tokens:,.0f} tokens."
        if best
        else "Nothing was measured.",
        "Four panels of lines over the length of the stream: accuracy, memory, seconds and calls "
        f"of {len(methods)} systems.",
        560 + 22 * ((len(methods) + 2) // 3),
        margin={"b": 90 + 22 * ((len(methods) + 2) // 3)},
    )


def _estimates(
    rows: Iterable[Estimate], measure: str, average: Average
) -> tuple[list[Estimate], list[str], list[str]]:
    """Return the measured category rows of one measure, and the methods and categories in them."""
    table = [
        row
        for row in rows
        if row.measure == measure
        and row.average == average
        and row.data_source == ALL
        and row.value is not None
    ]
    return (
        table,
        list(dict.fromkeys(row.method for row in table)),
        list(dict.fromkeys(row.category for row in table)),
    )
