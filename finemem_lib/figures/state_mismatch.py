"""Figures of the state mismatch: a fork of four rollouts, and agreement with effects by step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from finemem_lib.evaluation.state_mismatch import COMPARISONS, Agreement, Fork
from finemem_lib.figures import style
from finemem_lib.figures.style import known


def fork_advantages(fork: Fork) -> go.Figure:
    """Show the effect of step 2 of every rollout of a fork, and its advantage by two comparisons.

    Args:
        fork: Four rollouts of two steps.
    """
    mean = sum(fork.effects) / len(fork.effects)
    series = {
        "effect of step 2, less its mean": [effect - mean for effect in fork.effects],
        "advantage over all rollouts": fork.compared,
        "advantage among equal memories": fork.within_state,
    }
    wrong = [
        str(number)
        for number, (effect, advantage) in enumerate(
            zip(series["effect of step 2, less its mean"], fork.compared, strict=True), start=1
        )
        if effect * advantage < 0
    ]
    traces = [
        {
            "type": "bar",
            "name": name,
            "x": list(range(1, len(Fork.STORED) + 1)),
            "y": style.numbers(values),
            "marker": {"color": style.series_color(place), "pattern": style.pattern(place)},
            "hovertemplate": "%{x}: %{y:+.3f}<extra></extra>",
        }
        for place, (name, values) in enumerate(series.items())
    ]
    outcomes = ", ".join(f"{value:.2f}" for value in fork.outcomes)
    return style.from_traces(
        traces,
        "Effect and advantages of step 2 in four rollouts",
        f"With {fork.share:.0%} of the questions about step 1 the outcomes are {outcomes}. "
        "No advantage is divided by a deviation. "
        + (
            f"Over all rollouts, step 2 gets the wrong sign in rollouts {' and '.join(wrong)}."
            if wrong
            else "Over all rollouts, step 2 gets the wrong sign in none."
        ),
        "Bars of three quantities for each of four rollouts: the effect of step 2, and its "
        "advantage over all rollouts and among those with equal memories.",
        440,
        barmode="group",
        xaxis=_axis_of_rollouts(),
        yaxis={
            "title": {"text": "advantage (share of questions)"},
            "range": [-0.55, 0.55],
        },
    )


def _axis_of_rollouts() -> dict[str, Any]:
    """Return the axis of the rollouts of a fork, with labels in lines that do not overlap."""
    words = ("skips", "stores")
    return {
        "title": {"text": "rollout: step 1, then step 2"},
        "tickvals": list(range(1, len(Fork.STORED) + 1)),
        "ticktext": [
            f"rollout {number}<br>{words[first]},<br>then {words[second]}"
            for number, (first, second) in enumerate(Fork.STORED, start=1)
        ],
    }


def agreement_by_step(agreements: Sequence[Agreement]) -> go.Figure:
    """Show by step how well the advantages of every comparison agree with the step's effect.

    Args:
        agreements: The rows of `evaluation.state_mismatch.agreements`.
    """
    names = [name for name in COMPARISONS if any(one.comparison == name for one in agreements)]
    fig = go.Figure()
    last = []
    for place, name in enumerate(names):
        part = [one for one in agreements if one.comparison == name and one.value is not None]
        shift = 0.08 * (place - (len(names) - 1) / 2)
        fig.add_scatter(
            x=style.numbers(one.step + shift for one in part),
            y=style.numbers(one.value for one in part),
            error_y=style.interval(part),
            mode="lines+markers",
            name=name,
            line_color=style.series_color(place),
            marker=style.series_marker(place, 9),
            customdata=[[one.step, one.alone] for one in part],
            hovertemplate="step %{customdata[0]}: %{y:.2f}, alone %{customdata[1]:.0%}"
            "<extra>" + name + "</extra>",
        )
        if part:
            last.append(f"{name} {known(part[-1].value):.2f} at step {part[-1].step}")
    steps = max((one.step for one in agreements), default=1)
    return style.finish(
        fig,
        "Correlation of advantage and effect by step",
        f"Correlation within instances, 95 % intervals over instances; 1 is best. Last known: "
        f"{'; '.join(last) or 'nothing (no step)'}.",
        f"Lines of {len(names)} comparisons over {steps} steps, with intervals: correlation of "
        "the advantage with the effect of the step.",
        460,
        xaxis=style.count_axis(steps),
        yaxis={"title_text": "correlation with the step's effect", "range": [-0.6, 1.05]},
    )
