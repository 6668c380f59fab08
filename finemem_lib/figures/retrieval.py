"""Figures of retrievers on the same memories, from the rows of `evaluation.retrievers`."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib.evaluation.retrievers import BASELINE, TOP_K, Row
from finemem_lib.figures import style
from finemem_lib.figures.style import known, label

_COLUMNS = 3


def recall_by_rank(rows: Iterable[Row], manager: str = "insert-all") -> go.Figure:
    """Show the recall of the answer in the first k items, a panel per file, a line per retriever.

    The points of a rank are side by side. The interval of a recall includes the variance between
    instances; the caption compares retrievers on the same questions (paired).

    Args:
        rows: The rows of `evaluation.retrievers.rows_of`, of any measures and files.
        manager: Name of the manager that wrote the memories.
    """
    table = [row for row in rows if row.measure == "recall" and row.manager == manager]
    files = list(dict.fromkeys(row.file for row in table))
    retrievers = list(dict.fromkeys(row.retriever for row in table))
    fig = make_subplots(
        rows=max(1, -(-len(files) // _COLUMNS)),
        cols=_COLUMNS,
        shared_xaxes="all",
        shared_yaxes="all",
        horizontal_spacing=0.04,
        vertical_spacing=0.16,
        subplot_titles=[label(_title(file), 14) for file in files],
    )
    for panel, file in enumerate(files):
        for place, retriever in enumerate(retrievers):
            part = [row for row in table if (row.file, row.retriever) == (file, retriever)]
            ranks = [row.k for row in part]
            fig.add_scatter(
                x=[style.number(k + 0.16 * (place - (len(retrievers) - 1) / 2)) for k in ranks],
                y=style.numbers(row.value for row in part),
                meta={"x": ranks, "panel": label(_title(file), 30)},
                error_y=style.interval(part) | {"width": 0, "thickness": 1},
                mode="lines+markers",
                name=label(retriever),
                legendgroup=retriever,
                showlegend=panel == 0,
                line={"color": style.series_color(place), "width": 1.5},
                marker=style.series_marker(place, 5),
                hovertemplate="%{y}",
                row=panel // _COLUMNS + 1,
                col=panel % _COLUMNS + 1,
            )
    # Student's t intervals can exceed the range of a recall.
    fig.update_yaxes(range=[-0.02, 1.02], tickvals=[0, 0.5, 1])
    fig.update_yaxes(title_text="recall", col=1)
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, "items retrieved, k")
    fig.update_xaxes(tickvals=[1, 3, 5, 10])
    return style.finish(
        fig,
        "Recall of the answer in the first k items",
        f"Recall at {TOP_K} less that of {BASELINE} on the same questions, where its interval "
        f"excludes 0. Above: {_clear(table, 1)}; below: {_clear(table, -1)}. Lines are 95 % "
        "intervals over the instances of a file.",
        f"Lines of recall over k for {len(retrievers)} retrievers on {len(files)} files, with "
        "intervals.",
        560,
        margin={"t": 84, "b": 92, "r": 12},
    )


def _title(file: str) -> str:
    return file.removesuffix(".jsonl")


def _clear(table: Sequence[Row], sign: int) -> str:
    """Return the files and retrievers whose difference has this sign, or "none"."""
    found = [
        f"{style.one_line(_title(row.file), 20)} {row.retriever} {row.difference:+.2f}"
        for row in table
        if row.k == TOP_K and row.difference is not None and row.difference_low is not None
        if min(sign * row.difference_low, sign * known(row.difference_high)) > 0
    ]
    return ", ".join(found) or "none"
