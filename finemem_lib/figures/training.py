"""Curves of a training run."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib.figures import style
from finemem_lib.figures.style import label

TRAINING_PANELS: Mapping[str, tuple[str, ...]] = {
    "reward (mean)": ("reward",),
    "reward terms (mean)": ("rewards/*/mean",),
    "accuracy (mean score)": ("accuracy",),
    "operations (per step)": ("operations/*",),
    "invalid operations (share)": ("invalid_share",),
    "final memory (tokens)": ("memory_tokens",),
    "groups without gradient (share)": ("frac_reward_zero_std",),
    "entropy (nats per token)": ("entropy",),
}
"""The panels of `training_curves`: title with unit -> patterns of record keys."""


def training_keys(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]] = TRAINING_PANELS,
) -> dict[str, list[str]]:
    """Return the record keys of every panel that has any, in the order they are drawn.

    Args:
        records: the records of a training run, one per update.
        panels: title of each panel -> patterns of record keys.

    >>> training_keys([{"step": 1, "reward": 0.5, "loss": 1.0}])
    {'reward (mean)': ['reward']}
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    return {
        title: found
        for title, patterns in panels.items()
        if (
            found := [
                key
                for key in keys
                if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)
            ]
        )
    }


def training_curves(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]] = TRAINING_PANELS,
) -> go.Figure:
    """Show a training run as small multiples, one panel per quantity that the records hold.

    Args:
        records: the records of `TrainingResult`, one per update, under TRL's names.
        panels: title of each panel -> patterns of record keys.
    """
    numbers = [record["step"] for record in records]
    drawn = training_keys(records, panels)
    columns = min(2, len(drawn)) or 1
    lines = -(-len(drawn) // columns) or 1
    fig = make_subplots(
        rows=lines,
        cols=columns,
        shared_xaxes="all",
        horizontal_spacing=0.12,
        vertical_spacing=0.24 / lines,
        subplot_titles=list(drawn),
    )
    for place, (title, found) in enumerate(drawn.items()):
        row, col = divmod(place, columns)
        for number, key in enumerate(found):
            fig.add_scatter(
                x=style.numbers(numbers),
                y=style.numbers(record.get(key) for record in records),
                row=row + 1,
                col=col + 1,
                mode="lines+markers",
                connectgaps=True,
                name=label(key.removesuffix("/mean").split("/", 1)[-1], 28),
                legendgroup=title,
                legendgrouptitle_text=title,
                showlegend=len(found) > 1,
                meta={"panel": title},
                line_color=style.series_color(number),
                marker=style.series_marker(number, 7),
            )
    fig.update_xaxes(title_text="update", row=lines)
    fig.update_annotations(font={"size": 13})
    third = len(records) // 3 or 1
    first, last = (
        [record["reward"] for record in part if "reward" in record]
        for part in (records[:third], records[-third:])
    )
    change = (
        f"Mean reward {style.mean(first):.3g} in the first third, "
        f"{style.mean(last):.3g} in the last. "
        if first and last
        else ""
    )
    dead = style.mean(record.get("frac_reward_zero_std") for record in records)
    idle = "" if dead is None else f"{dead:.0%} of the groups carried no gradient."
    return style.finish(
        fig,
        "Training, update by update",
        f"{change}{idle}".strip() or f"{len(records)} updates.",
        f"Small multiples over {len(records)} updates: {', '.join(drawn) or 'nothing logged'}.",
        150 + 200 * lines,
        margin={"t": 84},
    )
