"""Figure of a sweep over the parameters of a notebook: every metric against the grid points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib.figures import style
from finemem_lib.figures.style import BLUE, GREY, known, label

POINT_HEIGHT, PANEL_ROOM = 26, 80
"""Height in pixels of the line of a point, and of the title and axis of a panel."""

COLUMNS = 3
"""Panels per row."""


@dataclass(frozen=True, slots=True)
class SweepRow:
    """One metric at one point of the grid.

    Attributes:
        point: The parameters of the point as text.
        metric: Name of the metric.
        value: Mean over the seeds, `None` if no seed has a value; `low` and `high` bound its
            interval, `None` for fewer than two seeds.
        seeds: The value of every seed that has one.
    """

    point: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    seeds: tuple[float, ...]


def sweep_metrics(rows: Sequence[SweepRow], unit: str) -> go.Figure:
    """Show every metric of a sweep in a panel of its own.

    Args:
        rows: The metrics at all points, in the order of the axis.
        unit: Title of the axis of points: the names of the parameters.
    """
    title, alt = "Metrics by parameters", "Dot plots of each metric against the points of the grid"
    drawn = [row for row in rows if row.value is not None]
    if not drawn:
        return style.no_rows(title, f"{alt}.")
    points = list(dict.fromkeys(row.point for row in drawn))
    metrics = list(dict.fromkeys(row.metric for row in drawn))
    columns = min(COLUMNS, len(metrics))
    lines = -(-len(metrics) // columns)
    height = POINT_HEIGHT * len(points) + PANEL_ROOM
    fig = make_subplots(
        rows=lines,
        cols=columns,
        shared_yaxes=True,
        subplot_titles=[label(metric) for metric in metrics],
        vertical_spacing=PANEL_ROOM / (lines * height),
        horizontal_spacing=0.05,
    )
    for place, metric in enumerate(metrics):
        part = [row for row in drawn if row.metric == metric]
        _add_panel(fig, part, points, place // columns + 1, place % columns + 1, place == 0)
    fig.update_xaxes(nticks=4, tickangle=0)
    fig.update_yaxes(
        tickvals=[*range(len(points))],
        ticktext=[label(point) for point in points],
        range=[len(points) - 0.4, -0.6],
        zeroline=False,
    )
    several = max(len(row.seeds) for row in drawn) > 1
    interval = "mean with 95 % interval over seeds" if several else "one seed, no interval"
    return style.finish(
        fig,
        title,
        f"Large markers: {interval}; small ones: the seeds. Points are {label(unit, 80)}.",
        f"{alt}: {len(metrics)} metrics at {len(points)} points.",
        lines * height + 90,
        margin={**style.TEMPLATE_MARGIN, "t": 80},
    )


def _add_panel(
    fig: go.Figure,
    rows: Sequence[SweepRow],
    points: Sequence[str],
    line: int,
    column: int,
    first: bool,
) -> None:
    single = [(points.index(row.point), value) for row in rows for value in row.seeds]
    places, values = zip(*single, strict=True)
    fig.add_scatter(
        x=style.numbers(values),
        y=[place + 0.25 for place in places],
        mode="markers",
        marker={"color": GREY, "size": 5, "symbol": "circle-open"},
        name="one seed",
        legendgroup="seed",
        showlegend=first,
        hovertemplate="%{x}<extra></extra>",
        row=line,
        col=column,
    )
    fig.add_scatter(
        x=style.numbers(known(row.value) for row in rows),
        y=[points.index(row.point) for row in rows],
        error_x=style.interval(rows),
        mode="markers",
        marker={"color": BLUE, "size": 10, "symbol": "diamond"},
        name="mean",
        legendgroup="mean",
        showlegend=first,
        customdata=[label(row.point) for row in rows],
        hovertemplate="%{customdata}: %{x}<extra></extra>",
        row=line,
        col=column,
    )
