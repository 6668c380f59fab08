"""Figure of the curves of a training run."""

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

LEGEND = 40
"""Height in pixels of the legend of a panel, below all panels."""


def training_keys(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]] = TRAINING_PANELS,
) -> dict[str, list[str]]:
    """Return the record keys of every panel that has any, in drawing order.

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
    several = [title for title, found in drawn.items() if len(found) > 1]
    for place, (title, found) in enumerate(drawn.items()):
        where = dict(zip(("row", "col"), (n + 1 for n in divmod(place, columns)), strict=True))
        legend = several.index(title) if title in several else None
        curves = [_curve(records, key, n, title, legend) for n, key in enumerate(found)]
        for curve in curves:
            fig.add_trace(curve, **where)
        fig.update_yaxes(
            range=_range_of_equal([value for one in curves for value in one.y]), **where
        )
    fig.update_xaxes(title_text="update", row=lines)
    fig.update_annotations(font={"size": 13})
    height = 150 + 200 * lines + LEGEND * len(several)
    return style.finish(
        fig,
        "Training curves by update",
        _what_changed(records),
        f"Small multiples over {len(records)} updates: {', '.join(drawn) or 'nothing logged'}.",
        height,
        margin={"t": 84, "b": 60 + LEGEND * len(several)},
        **_legends(several, height),
    )


def _curve(
    records: Sequence[Mapping[str, Any]], key: str, number: int, panel: str, legend: int | None
) -> go.Scatter:
    """Return the curve of a key, the `number`-th of its panel; without `legend` it is not named."""
    return go.Scatter(
        x=style.numbers(record["step"] for record in records),
        y=style.numbers(record.get(key) for record in records),
        mode="lines+markers",
        connectgaps=True,
        name=label(key.removesuffix("/mean").split("/", 1)[-1], 28),
        legend=_legend(legend or 0),
        showlegend=legend is not None,
        meta={"panel": panel},
        line_color=style.series_color(number),
        marker=style.series_marker(number, 7),
    )


def _range_of_equal(values: Sequence[float | None]) -> list[float] | None:
    """Return an axis range for equal values that includes 0; `None` if values differ.

    Plotly would choose -1 to 1 around 0, which a share cannot have.

    >>> _range_of_equal([0.0, None, 0.0]), _range_of_equal([2.0]), _range_of_equal([1.0, 2.0])
    ([-0.05, 1.05], [-0.1, 2.1], None)
    """
    known = {value for value in values if value is not None}
    if len(known) != 1:
        return None
    low, high = sorted((0.0, *known)) if any(known) else (0.0, 1.0)
    room = 0.05 * (high - low)
    return [low - room, high + room]


def _what_changed(records: Sequence[Mapping[str, Any]]) -> str:
    """Return the caption of `training_curves`."""
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
    return f"{change}{idle}".strip() or f"{len(records)} updates."


def _legends(titles: Sequence[str], height: int) -> dict[str, Any]:
    """Return one legend for each panel with several lines, below each other."""
    return {
        _legend(place): {
            "title": {"text": title, "side": "left", "font": {"size": 12}},
            "font": {"size": 12},
            "orientation": "h",
            "x": 0.01,
            "xref": "container",
            "xanchor": "left",
            "yref": "container",
            "y": LEGEND * (len(titles) - 1 - place) / height,
            "yanchor": "bottom",
        }
        for place, title in enumerate(titles)
    }


def _legend(place: int) -> str:
    return f"legend{place + 1 if place else ''}"
