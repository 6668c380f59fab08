"""Figure of one GRPO group: completions, rewards and advantages side by side."""

from __future__ import annotations

import re
import statistics
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go
from plotly.colors import diverging

from finemem_lib.advantages import EPSILON, ScaleRewards
from finemem_lib.figures import style
from finemem_lib.figures.rollouts import TERMS, RolloutGroup
from finemem_lib.figures.style import INK, PALE, label
from finemem_lib.figures.tokens import visible

LINE = 68
"""Characters per line of a completion, readable next to the controls on a page of 1280 pixels."""

MOST_LINES = 3
"""Maximum lines shown of a completion; the caption states the number of omitted tokens."""

SCAFFOLD = re.compile(r'[{}",]*"(?:content|op)":"?|[{}"]')
"""JSON syntax that every operation repeats; it is omitted to save space."""

PITCH, GAP = 19, 0.5
"""Pixels per line of tokens, and the gap between two completions in lines."""

SHADES = diverging.PuOr[2:-2]
"""Orange for down, purple for up, without the darkest shades, on which text is hard to read."""

DOWN, UP = SHADES[0], SHADES[-1]

QUIET = 0.01
"""Tokens whose push is at most this share of the largest push have no sign."""


class _Token(NamedTuple):
    """A token, the text shown of it, and its position: completion, line and first character."""

    rollout: int
    line: int
    start: int
    shown: str
    text: str
    push: float | None


def group_completions(
    group: RolloutGroup,
    step: int,
    tokens: Sequence[Sequence[str]],
    pushes: Sequence[Sequence[float | None]],
    terms: Sequence[str],
    scale: ScaleRewards = "group",
) -> go.Figure:
    """Show the G completions of one step by token, with their reward terms and advantages.

    The colour of a token is its push (`tokens.token_push`). Where the sign changes, ▲ and ▼ mark
    the tokens that an update makes more and less likely. The bars are the weighted terms of the
    reward; the line is the mean of the group, the band one standard deviation to each side.

    Args:
        group: the rollouts.
        step: the step, from 1.
        tokens: the tokens of each completion, untrusted.
        pushes: the push of every token (`None`: not known).
        terms: the names of the terms drawn, also those that the group does not have.
        scale: how the advantages are scaled.
    """
    placed = [one for row, texts in enumerate(tokens) for one in _placed(row, texts, pushes[row])]
    cut = sum(map(len, tokens)) - len(placed)
    lines = max((one.line for one in placed), default=0) + 1
    known = [reward for row in group.rewards if (reward := row[step - 1]) is not None]
    mean, std = style.mean(known) or 0.0, statistics.stdev(known) if len(known) > 1 else 0.0
    bound = style.largest(pushes)
    moved = [one.push for one in placed if one.push and abs(one.push) > QUIET * bound]
    up = sum(push > 0 for push in moved)
    why = group.without_gradient().get(step)
    advantages = [row[step - 1] for row in group.advantages]
    largest = style.largest([advantages])
    count = len(group.rollouts)
    middles = [row * (lines + GAP) + lines / 2 - 0.5 for row in range(count)]
    return style.from_traces(
        [
            _token_bars(placed, lines, bound),
            *_term_bars(group, step, terms, middles, lines),
            _advantage_bars(advantages, middles, lines),
        ],
        f"Step {step}: {count} completions, their rewards and advantages",
        f"Mean reward {mean:.3g}, standard deviation {std:.3g}. "
        + (f"Dead group: {why}. " if why else f"{up} tokens go up, {len(moved) - up} down. ")
        + f"{len(placed) - len(moved)} tokens are not pushed: they were certain, or have no "
        "advantage."
        + (" Operations add their own credit to that of their tokens." if group.operations else "")
        + (f" {cut} tokens have no room." if cut else ""),
        f"{count} rows, one per completion: its tokens coloured by the push of an update, purple "
        "and ▲ up, orange and ▼ down; stacked bars of its reward terms with the mean of the group; "
        "a bar of its advantage.",
        round(156 + PITCH * count * (lines + GAP)),
        barmode="relative",
        bargap=0,
        uniformtext={"mode": "hide", "minsize": 6},
        margin={"t": 44, "b": 112},
        shapes=_mean_and_deviation(mean, std),
        **_axes(middles, mean, std, scale, count * (lines + GAP), largest),
    )


def _placed(rollout: int, texts: Sequence[str], pushes: Sequence[float | None]) -> list[_Token]:
    """Return the tokens of a completion without `SCAFFOLD`, in at most `MOST_LINES` lines."""
    found: list[_Token] = []
    line = start = 0
    for text, push in zip(texts, pushes, strict=True):
        shown = style.one_line(SCAFFOLD.sub("", visible(text)), 24)
        width = len(shown) + 2  # space for a sign
        if start and start + width > LINE:
            line, start = line + 1, 0
        if line == MOST_LINES:
            break
        found.append(_Token(rollout, line, start, shown, visible(text), push))
        start += width
    return found


def _token_bars(placed: Sequence[_Token], lines: int, bound: float) -> dict[str, Any]:
    """Return the bars with the tokens' texts, coloured by their push."""
    texts, before = [], (-1, 0)
    for one in placed:
        turn = one.rollout, _sign(one.push, bound)
        mark = "" if turn == before else " ▲▼"[turn[1]].strip()
        texts.append(f"{mark}{label(one.shown, 24)}")
        before = turn
    return {
        "type": "bar",
        "orientation": "h",
        "name": "token",
        "showlegend": False,
        "y": [one.rollout * (lines + GAP) + one.line for one in placed],
        "base": [one.start for one in placed],
        "x": [len(one.shown) + 2 for one in placed],
        "width": 1,
        "text": texts,
        "textposition": "inside",
        "insidetextanchor": "middle",
        "textangle": 0,
        "textfont": {"family": "monospace", "size": 11},
        "customdata": [
            f"completion {one.rollout + 1}: {label(one.text, 24)}<br>push "
            + ("not known" if one.push is None else f"{one.push:+.3g}")
            for one in placed
        ],
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": {
            "color": [style.number(one.push or 0.0) for one in placed],
            "colorscale": [[n / (len(SHADES) - 1), shade] for n, shade in enumerate(SHADES)],
            "cmin": -bound,
            "cmax": bound,
            "line": {"color": PALE, "width": 0.5},
        },
    }


def _sign(push: float | None, bound: float) -> int:
    return 0 if push is None or abs(push) <= QUIET * bound else 1 if push > 0 else -1


def _term_bars(
    group: RolloutGroup, step: int, terms: Sequence[str], middles: Sequence[float], lines: int
) -> list[dict[str, Any]]:
    """Return the stacked bars of the reward terms, one trace per term."""
    paid = [row[step - 1] for row in group.terms]
    return [
        {
            "type": "bar",
            "orientation": "h",
            "name": label(TERMS.get(term, term)),
            "showlegend": any(term in row for row in paid),
            "xaxis": "x2",
            "y": list(middles),
            "x": style.numbers(row.get(term) for row in paid),
            "width": 0.9 * lines,
            "hovertemplate": "%{x:.3g}",
            "marker": {"color": style.series_color(number), "pattern": style.pattern(number)},
        }
        for number, term in enumerate(terms)
    ]


def _advantage_bars(
    advantages: Sequence[float | None], middles: Sequence[float], lines: int
) -> dict[str, Any]:
    return {
        "type": "bar",
        "orientation": "h",
        "name": "advantage",
        "showlegend": False,
        "xaxis": "x3",
        "y": list(middles),
        "x": style.numbers(advantages),
        "width": 0.9 * lines,
        "text": ["–" if value is None else f"{value:+.2f}" for value in advantages],
        "textposition": "outside",
        "cliponaxis": False,
        "hovertemplate": "%{x:+.3f}<extra></extra>",
        "marker": {"color": [UP if (value or 0.0) > 0 else DOWN for value in advantages]},
    }


def _mean_and_deviation(mean: float, std: float) -> list[dict[str, Any]]:
    """Return the line at the mean reward of the group, and the band around it."""
    place = {"xref": "x2", "yref": "paper", "y0": 0, "y1": 1}
    band = {"type": "rect", "x0": mean - std, "x1": mean + std, "layer": "below"}
    line = {"type": "line", "x0": mean, "x1": mean, "line": {"color": INK, "width": 2}}
    return [
        place | band | {"fillcolor": PALE, "opacity": 0.5, "line": {"width": 0}},
        place | line,
    ]


def _axes(
    middles: Sequence[float],
    mean: float,
    std: float,
    scale: ScaleRewards,
    end: float,
    largest: float,
) -> dict[str, Any]:
    """Return the axes of `group_completions`; the titles state how advantages are computed."""
    divisor = {
        "group": f"<br>/ (std + {EPSILON:g})",
        "batch": f"<br>/ (std of all<br>+ {EPSILON:g})",
        "none": "",
    }
    titles = (
        "tokens",
        f"reward r<br>mean {mean:.3g}<br>std {std:.3g}",
        f"advantage A =<br>(r − mean){divisor[scale]}",
    )
    domains = ([0, 0.64], [0.67, 0.82], [0.86, 1])
    axes = {
        f"xaxis{number if number > 1 else ''}": {
            "title": {"text": title},
            "domain": domain,
            "anchor": "y",
            "nticks": 4,
            "tickangle": 0,
        }
        for number, (title, domain) in enumerate(zip(titles, domains, strict=True), 1)
    }
    axes["xaxis"] |= {"range": [0, LINE], "showticklabels": False, "showgrid": False, "ticks": ""}
    axes["xaxis3"] |= {"range": [-1.7 * largest, 1.7 * largest]}  # space for the numbers
    axes["yaxis"] = {
        "title": {"text": "completion"},
        "tickvals": list(middles),
        "ticktext": [str(place) for place in range(1, len(middles) + 1)],
        "range": [end - 0.5, -0.8],
        "showgrid": False,
        "zeroline": False,
    }
    return axes
