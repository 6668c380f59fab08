"""Figure of an overfitting indicator: chunk accuracy in training against held-out accuracy."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from finemem_lib.experiments.overfitting import LAST, Sign, TrainingEnd, sign_text
from finemem_lib.figures import style
from finemem_lib.figures.style import label


def overfitting_scatter(ends: Sequence[TrainingEnd], sign: Sign) -> go.Figure:
    """Show chunk, held-out and global accuracy at the end of every training run.

    Args:
        ends: the result of `experiments.overfitting.training_ends`.
        sign: the result of `overfitting_sign` for them.
    """
    fig = go.Figure()
    for place, seed in enumerate(sorted({one.seed for one in ends})):
        part = [one for one in ends if one.seed == seed]
        fig.add_scatter(
            x=style.numbers(one.chunk for one in part),
            y=style.numbers(one.held_out for one in part),
            mode="markers",
            name=f"seed {seed}",
            marker={
                "color": style.numbers(one.outcome for one in part),
                "coloraxis": "coloraxis",
                "line": {"color": style.INK, "width": 1},
                **style.series_marker(place, 10),
            },
            customdata=[f"{label(one.variant)}, global {one.outcome:.3f}" for one in part],
            hovertemplate="%{customdata}, chunk %{x:.3f}, held out %{y:.3f}<extra></extra>",
        )
    return style.finish(
        fig,
        "Held-out accuracy against chunk accuracy",
        f"At equal global accuracy (colour). {sign_text(sign)}",
        f"Scatter plot of {len(ends)} trainings: chunk accuracy and, as colour, global accuracy "
        f"over the last {LAST} updates, against held-out accuracy.",
        460,
        xaxis={"title_text": f"chunk accuracy, last {LAST} updates"},
        yaxis={"title_text": "held-out accuracy, sampled"},
        coloraxis={"colorscale": style.MAGNITUDES, "colorbar": style.colorbar("global accuracy")},
        legend={"y": -0.2},
    )
