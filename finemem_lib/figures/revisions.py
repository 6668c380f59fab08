"""Figure of the accuracy of managers by the number of revisions of a fact."""

from __future__ import annotations

from collections.abc import Iterable

import plotly.graph_objects as go

from finemem_lib.data.revised import KINDS, Kind
from finemem_lib.evaluation.intervals import interval_text
from finemem_lib.evaluation.revisions import ALL_REVISIONS, RevisionRow
from finemem_lib.figures import style
from finemem_lib.figures.style import known, label

KIND_NAMES: dict[Kind, str] = {
    "single": "one fact",
    "pair": "two people's facts",
    "chain": "a chain of two facts",
}


def accuracy_by_revisions(rows: Iterable[RevisionRow]) -> go.Figure:
    """Show accuracy by number of revisions, a line per manager, a panel per kind of question.

    Args:
        rows: the rows of `evaluation.revisions.revision_rows`, of one budget.
    """
    table = [row for row in rows if row.accuracy is not None and row.revisions != ALL_REVISIONS]
    kinds = [kind for kind in KINDS if any(row.kind == kind for row in table)]
    methods = list(dict.fromkeys(row.method for row in table))
    fig = style.side_by_side([KIND_NAMES[kind] for kind in kinds])
    for place, method in enumerate(methods):
        for column, kind in enumerate(kinds, start=1):
            part = [row for row in table if (row.method, row.kind) == (method, kind)]
            fig.add_scatter(
                x=[row.revisions for row in part],
                y=style.numbers(row.accuracy for row in part),
                mode="lines+markers",
                name=label(method, 30),
                legendgroup=str(place),
                showlegend=column == 1,
                **style.series_style(place, 8),
                customdata=[
                    f"{label(row.method)}<br>revised {row.revisions} times: {row.questions} "
                    f"questions of {row.streams} streams<br>accuracy "
                    + interval_text(row.accuracy, row.low, row.high, ".2f")
                    for row in part
                ],
                hovertemplate="%{customdata}<extra></extra>",
                row=1,
                col=column,
            )
    fig.update_yaxes(range=[-0.04, 1.08])
    fig.update_yaxes(title_text="accuracy", col=1)
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, "revisions of the facts asked for")
    often = [row for row in table if row.kind == "single"]
    most = max((row.revisions for row in often), default=0)
    ends = {row.method: known(row.accuracy) for row in often if row.revisions == most}
    worst = min(ends, key=ends.__getitem__, default=None)
    lines = (len(methods) + 2) // 3
    return style.finish(
        fig,
        "Accuracy by number of revisions",
        f"Of facts revised {most} times {style.one_line(worst, 30)} knows the fewest: "
        f"{ends[worst]:.2f}."
        if worst
        else "Nothing was measured.",
        f"Lines of the accuracy of {len(methods)} managers over the number of revisions, one panel "
        f"for each of {len(kinds)} kinds of questions.",
        380 + 22 * lines,
        margin={"t": 84, "b": 90 + 22 * lines},
    )
