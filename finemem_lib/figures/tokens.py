"""Completions with tokens coloured by advantage or by change of log-probability.

A completion is shown as HTML, whose text wraps; explorers draw it as a plotly grid.
"""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from finemem_lib.figures import style
from finemem_lib.figures.notes import TOKEN_CSS, html_table
from finemem_lib.figures.style import label, paragraph, plain
from finemem_lib.managers.operation_tokens import token_texts
from finemem_lib.trajectory import Step

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

LEVELS = 4
"""Shades of a token's colour on each side of 0."""


@dataclass(frozen=True, slots=True)
class ColouredCompletion:
    """A completion with one value per token.

    Attributes:
        heading: heading above the completion.
        tokens: the text of every token.
        values: the value of every token (`None`: not known).
    """

    heading: str
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class CompletionView:
    """Completions with coloured tokens, for notebooks and the report.

    Attributes:
        html: the completions, their legend and their table, all texts escaped.
        caption: sentence with the numbers of this view.
        alt: sentence for screen readers.
        table: the tokens as table rows.
    """

    html: str
    caption: str
    alt: str
    table: tuple[dict[str, Any], ...]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": f"[completions] {self.alt} {self.caption}"}


def completion_view(
    completions: Sequence[ColouredCompletion],
    measure: str,
    unit: str = "",
    title: str = "Completions, token by token",
    max_tokens: int = 600,
) -> CompletionView:
    """Show completions with every token coloured by a signed value.

    Purple is above 0, orange and underlined below, in four shades up to the largest absolute
    value, as the legend says; hovering shows the number, and the table lists all of them. All texts
    may be untrusted.

    Args:
        completions: the completions, in reading order.
        measure: name of the values.
        unit: unit of the values, if they have one.
        title: title of the view.
        max_tokens: only so many tokens are shown, and the caption says so.
    """
    shown = _first_tokens(completions, max_tokens)
    values = [value for one in shown for value in one.values if value is not None]
    bound = style.largest([values])
    what = f"{measure} ({unit})" if unit else measure
    total = sum(len(one.tokens) for one in completions)
    cut = "" if total <= max_tokens else f" The first {max_tokens} of {total} tokens are shown."
    up, down = sum(value > 0 for value in values), sum(value < 0 for value in values)
    extremes = (
        f"{up} tokens are above 0 and {down} below; the values reach from "
        f"{_signed(min(values))} to {_signed(max(values))}."
        if values
        else "No token has a known value."
    )
    caption = f"{measure[:1].upper()}{measure[1:]} of {len(values)} tokens: {extremes}{cut}"
    alt = (
        f"{title}: the text of {len(shown)} completions, each token coloured by its {what}, "
        "purple above 0, orange and underlined below."
    )
    table = _token_rows(shown, what)
    parts = "".join(_coloured(one, bound) for one in shown)
    markup = (
        f"<style>\n{TOKEN_CSS}</style>"
        f'<div class="finemem-tokens" role="group" aria-label="{_text(alt, 400)}">'
        f"<p><strong>{_text(title, 120)}</strong></p>"
        f"<p>{_text(what, 80)}:</p><pre>{_legend(bound)}</pre>{parts}"
        f"<p>{_text(caption, 400)}</p>"
        f"<details><summary>Show as table</summary>{html_table(title, table)}</details></div>"
    )
    return CompletionView(markup, caption, alt, tuple(table))


def _first_tokens(
    completions: Sequence[ColouredCompletion], max_tokens: int
) -> list[ColouredCompletion]:
    """Return the completions cut to so many tokens together."""
    left = max_tokens
    shown = []
    for one in completions:
        if left > 0:
            shown.append(
                dataclasses.replace(one, tokens=one.tokens[:left], values=one.values[:left])
            )
            left -= len(one.tokens)
    return shown


def _legend(bound: float) -> str:
    """Return every shade with the value it stands for, from -bound to bound."""
    values = [bound * level / LEVELS for level in range(-LEVELS, LEVELS + 1)]
    return "".join(_span(f" {_signed(value)} ", value, bound) for value in values)


def _coloured(one: ColouredCompletion, bound: float) -> str:
    """Return a completion as HTML, its tokens coloured."""
    text = "".join(
        _span(token, value, bound) for token, value in zip(one.tokens, one.values, strict=True)
    )
    return f"<p><b>{_text(one.heading, 120)}</b></p><pre>{text or 'no tokens'}</pre>"


def _token_rows(completions: Sequence[ColouredCompletion], what: str) -> list[dict[str, Any]]:
    """Return the rows of the table of tokens; `what` is the heading of their values."""
    return [
        {
            "completion": plain(label(one.heading, 60)),
            "token": number,
            "text": visible(token),
            what: style.number(value),
        }
        for one in completions
        for number, (token, value) in enumerate(zip(one.tokens, one.values, strict=True), 1)
    ]


def completion_grid(
    tokens: Sequence[str],
    values: Sequence[float | None],
    measure: str,
    title: str = "A completion, token by token",
    columns: int = 8,
) -> go.Figure:
    """Show a completion as a grid of tokens, coloured by a signed value.

    The figure for explorers, with long tokens cut; `completion_view` reads better.

    Args:
        tokens: the text of every token.
        values: the value of every token (`None`: not known).
        measure: name of the values.
        title: title of the figure.
        columns: tokens per line.
    """
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
    return style.finish(
        fig,
        title,
        f"{len(tokens)} tokens, {up} above 0 and {down} below; the largest absolute value is "
        f"{highest:.3g}."
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
    """Return how far a policy-gradient step pushes the logit of every completion token.

    The gradient of ``A log p`` in the token's logit is ``A (1 - p)``, p being the probability that
    it was sampled with.

    Args:
        step: the step that wrote the completion.
        advantages: the advantage A of every completion token.

    Returns:
        One number per completion token, `None` where the advantage or the log-probabilities are
        not known.
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
    title: str = "What training made more and less likely",
) -> CompletionView:
    """Show completions with every token coloured by the change of its log-probability.

    Args:
        steps: the steps that wrote the completions.
        before: log-probabilities before training, one row per step and one value in nats per
            completion token, such as `Step.logprobs`.
        after: the same after training, such as `explorers.token_logprobs`.
        tokenizer: spells the tokens.
        title: title of the view.
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
            )
        )
    return completion_view(completions, "change of log-probability", "nats", title)


def step_tokens(step: Step, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the text of every token of a step's completion; a scripted step has none.

    Args:
        step: the step.
        tokenizer: spells the tokens.
    """
    return token_texts(tuple(step.completion_ids or ()), tokenizer)


def visible(token: str) -> str:
    r"""Return a token so that it can be seen and does nothing, in at most 80 characters.

    Controls and direction marks are shown by their escapes.

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


def _span(token: str, value: float | None, bound: float) -> str:
    level = round((value or 0.0) / bound * LEVELS)
    name = f"level-n{-level} minus" if level < 0 else f"level-p{level}" if level else ""
    return f'<span class="{name}" title="{_signed(value)}">{html.escape(visible(token))}</span>'


def _signed(value: float | None) -> str:
    return "not known" if value is None else f"{value:+.3g}"


def _text(text: str, limit: int) -> str:
    return html.escape(style.one_line(text, limit))
