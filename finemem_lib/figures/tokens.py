"""Figures of completions with tokens coloured by advantage or change of log-probability.

Both are plotly figures, because their colours are shown also in notebooks that are not trusted.
`completion_view` reads like text; `completion_grid` has the same traces for every state of a
control.
"""

from __future__ import annotations

import dataclasses
import math
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from finemem_lib.figures import style
from finemem_lib.figures.style import GREY, INK, PALE, label, paragraph
from finemem_lib.managers.operation_tokens import token_texts
from finemem_lib.trajectory import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

COLUMNS = 78
"""Monospaced characters per line of `completion_view`, readable on 600 pixels."""

LINE = 26
"""Height in pixels of a line of tokens."""

GRID_COLUMNS = 8
"""Tokens per line of `completion_grid`."""

SCALE_LINES = 2.8
"""Height of the colour scale above the text, in lines; plotly moves the title if it is higher."""


@dataclass(frozen=True, slots=True)
class ColouredCompletion:
    """A completion with one value per token.

    Attributes:
        heading: heading above the completion.
        tokens: the text of every token.
        values: the value of every token (`None`: not known).
        logprobs: the log-probability with which every token was sampled, in nats (`None`: not
            known).
    """

    heading: str
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]
    logprobs: tuple[float, ...] | None = None


def completion_view(
    completions: Sequence[ColouredCompletion],
    measure: str,
    unit: str = "",
    title: str = "Completions by token",
    max_tokens: int = 2000,
) -> go.Figure:
    """Show completions as lines of text with every token coloured by a signed value.

    Values above 0 are purple, values below 0 orange and underlined. Tokens without a known value
    are white; the caption states this. Hovering shows the whole token and its numbers. All texts
    may be untrusted.

    Args:
        completions: the completions, in reading order.
        measure: name of the values.
        unit: unit of the values, if they have one.
        title: title of the figure.
        max_tokens: maximum number of tokens shown; the caption states if any are omitted.
    """
    shown = _first_tokens(completions, max_tokens)
    values = [value for one in shown for value in one.values if value is not None]
    bound = style.largest([values])
    what = label(f"{measure} ({unit})" if unit else measure, 40)
    traces, headings, line = [], [], 0
    for one in shown:
        headings.append(_heading(line, one.heading if one.tokens else f"{one.heading}: no tokens"))
        places = list(_places([_boxed(token) for token in one.tokens]))
        traces.append(_boxes(one, places, line + 1, bound, measure))
        line += 2 + max((row for row, *_ in places), default=0)
    unknown = sum(len(one.values) for one in shown) - len(values)
    total = sum(len(one.tokens) for one in completions)
    cut = "" if total <= max_tokens else f" The first {max_tokens} of {total} tokens are shown."
    return style.finish(
        go.Figure(traces),
        title,
        f"{measure[:1].upper()}{measure[1:]} of {len(values)} tokens: {_extremes(values)}"
        + f" {unknown} have no known value (white)." * bool(values and unknown)
        + cut,
        f"The text of {len(shown)} completions in lines, each token in a box coloured by its "
        f"{measure}: purple above 0, orange and underlined below.",
        round(76 + LINE * (max(1, line) + SCALE_LINES)),
        showlegend=False,
        barmode="overlay",
        bargap=0.12,
        margin={"t": 56, "r": 8, "b": 20, "l": 8},
        annotations=headings,
        xaxis={"title_text": "token", "visible": False, "range": [0, COLUMNS]},
        yaxis={
            "title_text": what,
            "visible": False,
            "range": [max(1, line) - 0.5, -0.5 - SCALE_LINES],
        },
        coloraxis=_scale_above(what, bound),
    )


def _extremes(values: Sequence[float]) -> str:
    """Return a text with the numbers of values above and below 0, and the extreme values."""
    if not values:
        return "No token has a known value."
    up, down = sum(value > 0 for value in values), sum(value < 0 for value in values)
    return (
        f"{up} tokens are above 0 and {down} below (underlined); the values reach from "
        f"{_signed(min(values))} to {_signed(max(values))}."
    )


def _scale_above(what: str, bound: float) -> dict[str, Any]:
    """Return the colour axis with its scale above the text."""
    return {
        "colorscale": style.PURPLE_ORANGE,
        "cmin": -bound,
        "cmax": bound,
        "colorbar": style.colorbar(what)
        | {"title": {"text": what, "side": "top"}, "tickformat": "+.3~g", "nticks": 5}
        | {"orientation": "h", "lenmode": "pixels", "len": 320, "x": 0, "xanchor": "left"}
        | {"y": 1, "yanchor": "top"},
    }


def _first_tokens(
    completions: Sequence[ColouredCompletion], max_tokens: int
) -> list[ColouredCompletion]:
    """Return the first completions with at most `max_tokens` tokens in total."""
    left = max_tokens
    shown = []
    for one in completions:
        if left > 0:
            shown.append(
                dataclasses.replace(one, tokens=one.tokens[:left], values=one.values[:left])
            )
            left -= len(one.tokens)
    return shown


def _heading(line: int, text: str) -> dict[str, Any]:
    return {
        "x": 0,
        "y": line,
        "xanchor": "left",
        "text": f"<b>{label(text, 48)}</b>",
        "showarrow": False,
    }


def _boxed(token: str) -> str:
    """Return the short text in a token's box, "␣" for a token of spaces only."""
    return style.one_line(visible(token), 40) or "␣"


def _places(texts: Sequence[str]) -> Iterator[tuple[int, int, int]]:
    """Yield the line from 0, the column from 0 and the width of the box of every text."""
    line = column = 0
    for text in texts:
        width = 1 + sum(1 + (unicodedata.east_asian_width(char) in "WF") for char in text)
        if column and column + width > COLUMNS:
            line, column = line + 1, 0
        yield line, column, width
        column += width


def _boxes(
    one: ColouredCompletion,
    places: Sequence[tuple[int, int, int]],
    line: int,
    bound: float,
    measure: str,
) -> go.Bar:
    """Return the boxes of a completion that begins on line `line`; `places` are from `_places`."""
    texts = [label(_boxed(token)) for token in one.tokens]
    return go.Bar(
        orientation="h",
        name=label(one.heading, 60),
        base=[column for _, column, _ in places],
        x=[width for *_, width in places],
        y=[line + row for row, *_ in places],
        meta={
            "x": list(range(1, len(texts) + 1)),
            "y": ["not known" if value is None else style.number(value) for value in one.values],
        },
        marker={
            "color": ["white" if value is None else value for value in style.numbers(one.values)],
            "coloraxis": "coloraxis",
            "line": {"color": PALE, "width": 1},
        },
        text=[
            f"<u>{text}</u>" if value is not None and value < 0 else text
            for text, value in zip(texts, one.values, strict=True)
        ],
        textposition="inside",
        insidetextanchor="middle",
        textangle=0,
        constraintext="none",
        textfont={
            "family": "monospace",
            "size": 12,
            "color": [
                GREY if value is None else INK if -0.8 < value / bound < 0.55 else "white"
                for value in one.values
            ],
        },
        customdata=_hovers(one, measure),
        hovertemplate="%{customdata}<extra></extra>",
    )


def _hovers(one: ColouredCompletion, measure: str) -> list[str]:
    """Return the hover text of every token: the token and its numbers."""
    sampled = [
        "" if value is None else f"<br>log-probability {value:.3g} nats"
        for value in (one.logprobs or (None,) * len(one.tokens))
    ]
    return [
        f"{paragraph(visible(token)) or '␣'}<br>{label(measure)} {_signed(value)}{more}"
        for token, value, more in zip(one.tokens, one.values, sampled, strict=False)
    ]


def completion_grid(
    tokens: Sequence[str],
    values: Sequence[float | None],
    measure: str,
    title: str = "Completion by token",
) -> go.Figure:
    """Show a completion as a grid of tokens, coloured by a signed value.

    Explorers use it. Long tokens are cut; `completion_view` is easier to read.

    Args:
        tokens: the text of every token.
        values: the value of every token (`None`: not known).
        measure: name of the values.
        title: title of the figure.
    """
    columns = GRID_COLUMNS
    missing = -len(tokens) % columns
    texts = [*map(visible, tokens), *[""] * missing]
    filled = [*values, *[None] * missing]
    lines = [slice(start, start + columns) for start in range(0, len(texts), columns)]
    known = [value for value in values if value is not None]
    highest = max(map(abs, known), default=0.0)
    fig = go.Figure(
        go.Heatmap(
            x=list(range(1, columns + 1)),
            y=list(range(1, len(lines) + 1)),
            z=[style.numbers(filled[line]) for line in lines],
            name=label(measure),
            text=[[paragraph(token, 16, 8) for token in texts[line]] for line in lines],
            texttemplate="%{text}",
            customdata=[[label(token, 18) for token in texts[line]] for line in lines],
            hovertemplate="%{customdata}<br>%{z:+.3g}<extra></extra>",
            **style.signed_heatmap(style.number(highest) or 1.0, measure, gap=2)
            | {"textfont": {"size": 11, "family": "monospace"}},
        )
    )
    up, down = sum(value > 0 for value in known), sum(value < 0 for value in known)
    unknown = len(values) - len(known)
    return style.finish(
        fig,
        title,
        f"{len(tokens)} tokens, {up} above 0 and {down} below; the largest absolute value is "
        f"{highest:.3g}." + f" {unknown} have no known value (white)." * bool(unknown)
        if known
        else f"{len(tokens)} tokens, none of which has a known value.",
        f"Grid of the {len(tokens)} tokens of a completion in reading order, coloured by the "
        f"{measure}: purple above 0, orange below.",
        190 + max(60, 40 * len(lines)),
        xaxis={
            "title_text": "token of the line",
            "dtick": 1,
            "showgrid": False,
            "range": [0.5, columns + 0.5],
        },
        yaxis={"title_text": "line", "autorange": "reversed", "dtick": 1, "showgrid": False},
    )


def token_push(step: Step, advantages: Sequence[float | None]) -> tuple[float | None, ...]:
    """Return the policy gradient with respect to the logit of every completion token, its push.

    The gradient of ``A log p`` with respect to the token's logit is ``A (1 - p)``, where p is the
    probability with which it was sampled.

    Args:
        step: the step that wrote the completion.
        advantages: the advantage A of every completion token.

    Returns:
        One number per completion token, `None` if its advantage or the log-probabilities are not
        known.
    """
    if step.logprobs is None:
        return (None,) * len(advantages)
    return tuple(
        None if advantage is None else advantage * -math.expm1(value)
        for advantage, value in zip(advantages, step.logprobs, strict=True)
    )


def change_view(
    steps: Sequence[Step],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    tokenizer: PreTrainedTokenizerBase,
) -> go.Figure:
    """Show completions with every token coloured by the change of its log-probability.

    Args:
        steps: the steps that wrote the completions.
        before: log-probabilities before training, one row per step and one value in nats per
            completion token, such as `Step.logprobs`.
        after: log-probabilities after training in the same shape, such as
            `explorers.token_logprobs`.
        tokenizer: converts token ids to text.
    """
    completions = []
    for step, old, new in zip(steps, before, after, strict=True):
        change = [style.number(b - a) for a, b in zip(old, new, strict=True)]
        total = math.fsum(value for value in change if value is not None)
        completions.append(
            ColouredCompletion(
                f"step {step.step}, whole completion {_signed(total)} nats",
                step_tokens(step, tokenizer),
                tuple(change),
                tuple(old),
            )
        )
    title = "Change of log-probability by token"
    return completion_view(completions, "change of log-probability", "nats", title)


def step_tokens(step: Step, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the text of every token of a step's completion; a scripted step has none.

    Args:
        step: the step.
        tokenizer: converts token ids to text.
    """
    return token_texts(tuple(step.completion_ids or ()), tokenizer)


def visible(token: str) -> str:
    r"""Return a token with visible escapes for control characters, in at most 80 characters.

    Control characters and direction marks have no effect in this form.

    Args:
        token: the text of a token.

    >>> visible("a\n\u202eb"), visible("")
    ('a⏎\\u202eb', '◌')
    """
    head = token if len(token) <= 80 else token[:79] + "…"
    return (
        "".join(
            "⏎"
            if char == "\n"
            else char
            if char.isprintable()
            else char.encode("unicode_escape", "surrogatepass").decode("ascii")
            for char in head
        )
        or "◌"
    )


def _signed(value: float | None) -> str:
    return "not known" if value is None else f"{value:+.3g}"
