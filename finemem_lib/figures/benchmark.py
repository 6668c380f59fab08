"""Accuracy and memory length of managers, with intervals."""

from __future__ import annotations

from collections.abc import Iterable

import plotly.graph_objects as go

from finemem_lib.evaluation.tables import ALL, Average, Estimate, format_estimate
from finemem_lib.figures import style
from finemem_lib.figures.style import known, label, paragraph


def benchmark_accuracy(rows: Iterable[Estimate], average: Average = "macro") -> go.Figure:
    """Show accuracy with its interval, one panel per category, one line per method.

    A value that could not be measured has no point.

    Args:
        rows: the rows of `evaluation.tables.benchmark_table`.
        average: which of its two averages over a category is drawn.
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
        margin={"t": 84},
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
            textfont={"color": "white"},
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
