"""Figures of memory, evidence, rewards and training: pure functions that return a plotly Figure.

Every builder sets a title, axis titles with units, and ``layout.meta`` with a `caption` (what to
see, with the numbers of this figure) and an `alt` sentence for screen readers; nothing is
displayed until `show`. Colours are Okabe and Ito's for categories, cividis for magnitude and PuOr
centred on 0 for signed values, and a marker shape, pattern or text always says the same again.

Text from data sets and models is untrusted: plotly renders a subset of HTML, ``%{...}`` inside
hover templates and TeX between dollar signs, so such text reaches a figure only through `label`
and `paragraph`, and hover text only through `customdata`.
"""

from __future__ import annotations

import fnmatch
import html
import json
import math
import re
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib.evaluation import ALL, Average, Estimate, format_estimate
from finemem_lib.rewards import (
    RewardSettings,
    StepReward,
    attributed_steps,
    credited_items,
    evidence_contribution,
    evidence_matrix,
)
from finemem_lib.text import sentences, words
from finemem_lib.trajectory import OPERATION_KINDS, AnsweredQuestion, Trajectory, creation_key

if TYPE_CHECKING:
    from finemem_lib.questions import AuditRow

PLOTLY_MIME = "application/vnd.plotly.v1+json"
CONFIG = {"responsive": True, "displaylogo": False}

BLUE, ORANGE, GREEN, PINK, SKY, RED = (
    "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
)
INK, GREY, PALE = "#222222", "#767676", "#D0D0D0"
CATEGORIES = (BLUE, ORANGE, GREEN, PINK, SKY, RED, INK)
MARKERS = ("circle", "diamond", "square", "triangle-up", "cross", "star", "x")
PATTERNS = ("", "/", ".", "x", "-", "\\", "+", "|")

OPERATION_STYLE = {
    "INSERT": (GREEN, "triangle-up"), "UPDATE": (ORANGE, "diamond"), "DELETE": (RED, "x"),
    "SKIP": (SKY, "circle-open"), "invalid": (INK, "asterisk-open"),
    "evicted": (PINK, "square-open"),
}

_AXIS = {
    "gridcolor": "#E4E4E4", "linecolor": GREY, "zerolinecolor": GREY, "ticks": "outside",
    "automargin": True, "title": {"standoff": 8, "font": {"size": 13}},
}
TEMPLATE = {"layout": {
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": INK},
    "title": {"x": 0, "xref": "paper", "y": 1, "yref": "container", "yanchor": "top",
              "pad": {"t": 14}, "font": {"size": 17}},
    "paper_bgcolor": "white", "plot_bgcolor": "white", "colorway": list(CATEGORIES),
    "margin": {"l": 64, "r": 24, "t": 56, "b": 56}, "hovermode": "closest",
    "hoverlabel": {"align": "left", "bgcolor": "white", "font": {"color": INK}},
    "xaxis": _AXIS, "yaxis": _AXIS,
    "legend": {"orientation": "h", "x": 0, "xanchor": "left",
               "y": 0, "yref": "container", "yanchor": "bottom", "traceorder": "normal"},
}}


def label(text: object, limit: int = 40) -> str:
    """Return untrusted text as one short line that plotly shows literally.

    Non-printable characters (controls, lone surrogates, direction marks) become spaces.

    >>> label("<script>alert('a $x$')</script>", limit=20)
    "&lt;script&gt;alert('a &#36;x…"
    """
    return _escape(_one_line(text, limit))


def paragraph(text: object, limit: int = 180, width: int = 60) -> str:
    """Return untrusted text for a hover box: at most `limit` characters in lines of `width`.

    >>> paragraph("a < b " * 3, width=8)
    'a &lt; b a<br>&lt; b a &lt;<br>b'
    """
    return "<br>".join(_escape(line) for line in textwrap.wrap(_one_line(text, limit), width))


def plain(text: object) -> str:
    """Undo `label` and `paragraph`, for places that do not render HTML.

    >>> plain(label("a < b & c"))
    'a < b & c'
    """
    return html.unescape(re.sub(r"<br>", " ", re.sub(r"</?[bi]>", "", str(text))))


def _one_line(text: object, limit: int) -> str:
    head = str(text)[: 4 * limit + 1]
    line = " ".join("".join(c if c.isprintable() else " " for c in head).split())
    if len(line) <= limit and len(head) <= 4 * limit:
        return line
    return line[: limit - 1].rstrip() + "…"


def _escape(text: str) -> str:
    return html.escape(text, quote=False).replace("$", "&#36;")


def _number(value: Any) -> Any:
    """Return a JSON number of four significant digits; `None` for what is not finite."""
    if value is None or isinstance(value, int):
        return value
    value = float(value)
    return float(f"{value:.4g}") if math.isfinite(value) else None


def _numbers(values: Iterable[Any]) -> list[Any]:
    return [_number(value) for value in values]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def _finish(fig: go.Figure, title: str, caption: str, alt: str, height: int, **layout: Any
            ) -> go.Figure:
    fig.layout.template = TEMPLATE  # assigned: an update would merge it into plotly's 6.5 kB one
    fig.update_layout(title_text=title, height=height, **layout,
                      meta={"caption": caption, "alt": alt})
    return fig


def _pattern(number: int) -> dict[str, Any]:
    return {"shape": PATTERNS[number % len(PATTERNS)], "fillmode": "overlay", "fgcolor": "white",
            "solidity": 0.25}


def _colorbar(title: str) -> dict[str, Any]:
    return {"title": {"text": title, "side": "right", "font": {"size": 13}}, "thickness": 12,
            "outlinewidth": 0, "tickfont": {"size": 11}}


def _count_axis(count: int, title: str = "step t (chunk number)") -> dict[str, Any]:
    """Return the layout of an axis that counts from 1, with at most 15 labels on round numbers."""
    every = next(step for step in (1, 2, 5, 10, 20, 50, 100, 200, 500, count)
                 if count <= 15 * step or step == count)
    return {"title_text": title, "range": [0.4, count + 0.6], "tick0": 0, "dtick": every,
            "zeroline": False}


# ---- questions and memory ------------------------------------------------------------------------


def question_audit(rows: Iterable[AuditRow]) -> go.Figure:
    """Show what became of the candidate questions of each chunk: kept, or rejected and why.

    Counts of candidates, stacked per step.
    """
    rows = list(rows)
    steps = sorted({row.step for row in rows})
    accepted = Counter(row.step for row in rows if row.accepted)
    rejected = Counter((row.step, row.reason) for row in rows if not row.accepted)
    reasons = Counter(row.reason for row in rows if not row.accepted).most_common()
    fig = go.Figure(go.Bar(
        x=steps, y=[accepted[step] for step in steps], name="accepted", marker_color=BLUE,
    ))
    for number, (reason, _) in enumerate(reasons, start=1):
        fig.add_bar(
            x=steps, y=[rejected[step, reason] for step in steps],
            name=label(f"rejected: {reason}"),
            marker={"color": CATEGORIES[number % len(CATEGORIES)],
                    "pattern": _pattern(number)},
        )
    kept = sum(accepted.values())
    per_chunk = kept / len(steps) if steps else 0.0
    top = (f"; the most frequent reason for rejection is {_one_line(reasons[0][0], 40)!r}"
           if reasons else "")
    return _finish(
        fig, "Candidate questions per chunk",
        f"{kept} of {len(rows)} candidate questions were kept, {per_chunk:.1f} per chunk{top}.",
        f"Stacked bars over {len(steps)} steps: accepted questions below, rejected ones by reason "
        f"above.",
        380, barmode="stack", xaxis=_count_axis(max(steps, default=1)),
        yaxis={"title_text": "candidates (count)"},
    )


def memory_growth(trajectory: Trajectory) -> go.Figure:
    """Show, step by step, items and tokens in memory and the operations that made them.

    Tokens are L(M_t) in the trajectory's own token unit.
    """
    steps = [step.step for step in trajectory.steps]
    counts: list[int] = []
    alive: set[str] = set()
    for step in trajectory.steps:
        alive -= {*step.delta.removed, *step.delta.evicted}
        alive |= {item.item_id for item in step.delta.written}
        counts.append(len(alive))
    fig = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.06,
                        row_heights=[0.3, 0.3, 0.4])
    line = {"mode": "lines+markers" if len(steps) <= 40 else "lines", "showlegend": False}
    fig.add_scatter(x=steps, y=counts, name="items", row=1, col=1, **line,
                    line_color=BLUE, marker_symbol="circle")
    fig.add_scatter(x=steps, y=[step.memory_tokens for step in trajectory.steps], name="tokens",
                    row=2, col=1, **line, line_color=ORANGE, marker_symbol="diamond")
    kinds = [Counter(_outcome_name(outcome) for outcome in step.outcomes)
             for step in trajectory.steps]
    for number, name in enumerate((*OPERATION_KINDS, "invalid")):
        if any(kind[name] for kind in kinds):
            fig.add_bar(
                x=steps, y=[kind[name] for kind in kinds], name=name, row=3, col=1,
                marker={"color": OPERATION_STYLE[name][0],
                        "pattern": _pattern(number)},
            )
    total = sum(kinds, Counter())
    read = sum(step.chunk.tokens for step in trajectory.steps)
    tokens = trajectory.steps[-1].memory_tokens if steps else 0
    kept = f" ({tokens / read:.0%} of the text read)" if read else ""
    axis = _count_axis(len(steps))
    fig.update_xaxes(**{**axis, "title_text": None})
    fig.update_xaxes(title_text=axis["title_text"], row=3, col=1)
    for row, title in enumerate(
        ("items", f"tokens ({label(trajectory.tokenizer, 12)})", "operations"), start=1
    ):
        fig.update_yaxes(title_text=title, rangemode="tozero", row=row, col=1)
    return _finish(
        fig, f"Memory of {label(trajectory.manager, 24)}, step by step",
        f"After {len(steps)} steps the memory holds {counts[-1] if counts else 0} items and "
        f"{tokens} tokens{kept}; {total.total() - total['invalid']} of {total.total()} emitted "
        "operations were valid.",
        "Three panels over steps: items in memory, tokens in memory, and operations by kind.",
        560, barmode="stack",
    )


def _outcome_name(outcome: Any) -> str:
    return outcome.operation.kind if outcome.operation and outcome.applied else "invalid"


def operation_timeline(trajectory: Trajectory, max_items: int = 24) -> go.Figure:
    """Show the life of every memory item: who wrote it when, when it ended, when it was retrieved.

    One lane per item (the `max_items` most retrieved, then the oldest), a line for its lifetime, a
    marker per operation, a tick per retrieval; global questions stand after the last step.
    """
    start = trajectory.num_steps + 0.55  # of the room that the global questions take
    end = start + max(1.0, 0.2 * trajectory.num_steps)
    born: dict[str, int] = {}
    contents: dict[str, str] = {}
    order: dict[str, tuple[int, int]] = {}
    gone: dict[str, tuple[int, str]] = {}
    for step in trajectory.steps:
        for item in step.delta.written:
            born.setdefault(item.item_id, item.created_step)
            contents[item.item_id] = item.content
            order[item.item_id] = creation_key(item)
        gone |= {item_id: (step.step, "DELETE") for item_id in step.delta.removed}
        gone |= {item_id: (step.step, "evicted") for item_id in step.delta.evicted}
    asked = [(_number(left + room * place / (len(group) + 1)), answered)
             for left, room, group in [
                 *((step.step + 0.1, 0.8, step.chunk_questions) for step in trajectory.steps),
                 (start, end - start, trajectory.questions)]
             for place, answered in enumerate(group, start=1)]
    hits = Counter(found.item_id for _, answered in asked for found in answered.retrieved)
    shown = sorted(born, key=lambda item_id: (-hits[item_id], order[item_id]))[:max_items]
    lanes = {item_id: lane for lane, item_id in enumerate(sorted(shown, key=order.__getitem__))}
    nowhere = len(lanes)

    fig = go.Figure()
    life_x: list[float | None] = []
    life_y: list[int | None] = []
    for item_id, lane in lanes.items():
        life_x += [born[item_id], gone[item_id][0] if item_id in gone else end, None]
        life_y += [lane, lane, None]
    fig.add_scatter(x=life_x, y=life_y, mode="lines", name="in memory", hoverinfo="skip",
                    line={"color": PALE, "width": 8})
    marks: dict[str, list[tuple[float, int, str]]] = {}
    for item_id, lane in lanes.items():
        if item_id in gone and gone[item_id][1] == "evicted":
            marks.setdefault("evicted", []).append(
                (gone[item_id][0], lane, f"pushed out: {paragraph(contents[item_id])}"))
    for step in trajectory.steps:
        for outcome in step.outcomes:
            name = _outcome_name(outcome)
            item_id = outcome.item_id if outcome.applied else None
            if item_id is not None and item_id not in lanes:
                continue
            content = outcome.operation.content if outcome.operation else outcome.raw
            reason = f" ({label(outcome.reason, 60)})" if outcome.reason else ""
            marks.setdefault(name, []).append((
                step.step, nowhere if item_id is None else lanes[item_id],
                f"step {step.step}: {name}{reason}<br>{paragraph(content or '')}",
            ))
    retrieved = {"retrieved, answer right": [], "retrieved, answer not right": []}
    for x, answered in asked:
        name = "retrieved, answer right" if answered.score else "retrieved, answer not right"
        retrieved[name] += [
            (x, lanes[found.item_id],
             f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 60)}"
             f"<br>score: {_score(answered)}")
            for found in answered.retrieved if found.item_id in lanes
        ]
    for name, points in {**marks, **retrieved}.items():
        if points:
            ticks = {"retrieved, answer right": (BLUE, "line-ns-open"),
                     "retrieved, answer not right": (GREY, "line-ne-open")}
            color, symbol = (OPERATION_STYLE | ticks)[name]
            xs, ys, hover = (list(column) for column in zip(*points, strict=True))
            fig.add_scatter(
                x=xs, y=ys, customdata=hover, mode="markers", name=name,
                hovertemplate="%{customdata}<extra></extra>",
                marker={"color": color, "symbol": symbol, "size": 11,
                        "line": {"width": 2, "color": color} if name in ticks else None},
            )
    fig.add_vline(x=start, line={"color": GREY, "dash": "dot", "width": 1})
    fig.add_annotation(x=(start + end) / 2, y=1, yref="paper", yanchor="bottom",
                       text="global<br>questions", showarrow=False, font={"size": 11})
    labels = [f"#{label(item_id, 8)} {label(contents[item_id], 24)}" for item_id in lanes]
    axis = _count_axis(trajectory.num_steps)
    ticked = [step.step for step in trajectory.steps if step.step % axis["dtick"] == 0]
    bottom = bool(any(lane == nowhere for points in marks.values() for _, lane, _ in points))
    never = sum(1 for item_id in born if not hits[item_id])
    cut = "" if len(lanes) == len(born) else f" ({len(lanes)} most retrieved shown)"
    return _finish(
        fig, "Operations and retrievals per memory item",
        f"Items: {len(born)}{cut}; ended before the last step: {len(gone)}; never retrieved: "
        f"{never}. The {len(trajectory.questions)} global questions are asked after the last step.",
        f"Timeline with one lane for each of {len(lanes)} memory items over "
        f"{trajectory.num_steps} steps; marker shapes tell operations, ticks tell retrievals.",
        200 + 26 * (nowhere + bottom),
        xaxis=axis | {"range": [0.4, end], "tickvals": ticked}, margin={"t": 76},
        yaxis={"title_text": "memory item", "tickvals": list(range(nowhere + bottom)),
               "ticktext": labels + ["no item"] * bottom, "zeroline": False,
               "range": [nowhere + bottom - 0.4, -0.6]},
    )


# ---- evidence ------------------------------------------------------------------------------------


def _score(answered: AnsweredQuestion) -> str:
    return "cannot be scored" if answered.score is None else f"{answered.score:.2f}"


def _verdict(answered: AnsweredQuestion) -> str:
    if answered.score is None:
        return "? not scored"
    return f"{'✓' if answered.score >= 0.5 else '✗'} {answered.score:.2f}"


@dataclass(frozen=True, slots=True)
class EvidencePart:
    """One credited item's way from a step to a question (a position in the trajectory).

    `share` is 1/(|M_j| n), what the step earns of the outcome reward when the answer is right.
    """

    step: int
    item_id: str
    question: int
    share: float


def evidence_parts(
    trajectory: Trajectory, settings: RewardSettings | None = None
) -> list[EvidencePart]:
    """Return the evidence item by item; times s_j and summed it is `rewards.evidence_matrix`.

    Questions without a credited item have no part. A question that cannot be scored has parts (it
    retrieved something) although it earns nothing.
    """
    settings = settings or RewardSettings()
    n = sum(a.score is not None for a in trajectory.questions) or len(trajectory.questions)
    parts = []
    for j, answered in enumerate(trajectory.questions):
        items = credited_items(answered, settings.credited)
        for item in items:
            steps = attributed_steps(item, settings.attribution)
            parts += [EvidencePart(step, item.item_id, j, 1 / (len(items) * len(steps) * n))
                      for step in steps]
    return parts


def source_sentence(content: str, chunk_text: str) -> str:
    """Return the sentence of a chunk that shares most words with an item's content.

    >>> source_sentence("Mia: Rome", "It rained. Mia lives in Rome. Ana sails.")
    'Mia lives in Rome.'
    """
    wanted = set(words(content))
    return max(sentences(chunk_text), default="",
               key=lambda sentence: len(wanted & set(words(sentence))))


def evidence_sankey(
    trajectory: Trajectory,
    questions: Sequence[int] | None = None,
    settings: RewardSettings | None = None,
    max_questions: int = 10,
) -> go.Figure:
    """Show who earned which answer: step -> memory item -> question.

    The width of a link is the item's share of the outcome reward, 1/(|M_j| n) for each credited
    item, of which s_j is coloured (earned) and 1 - s_j grey (retrieved for an answer that was not
    right, or cannot be scored). `questions` are positions in ``trajectory.questions``, by default
    the first `max_questions`.
    """
    chosen = list(range(len(trajectory.questions)))[:max_questions]
    if questions is not None:
        chosen = list(questions)
    nodes: dict[tuple[str, Any], int] = {}
    texts: list[str] = []
    hovers: list[str] = []
    colors: list[str] = []
    links: dict[tuple[int, int, bool], float] = {}
    link_text: dict[tuple[int, int], str] = {}

    def node(kind: str, key: Any, text: str, hover: str, color: str) -> int:
        if (kind, key) not in nodes:
            nodes[kind, key] = len(texts)
            texts.append(text)
            hovers.append(hover)
            colors.append(color)
        return nodes[kind, key]

    def link(source: int, target: int, share: float, score: float | None, hover: str) -> None:
        link_text[source, target] = hover
        for earned, part in ((True, share * (score or 0.0)), (False, share * (1 - (score or 0.0)))):
            if part > 0:
                links[source, target, earned] = links.get((source, target, earned), 0.0) + part

    contents = {item.item_id: item.content for item in trajectory.final_memory()}
    parts = evidence_parts(trajectory, settings)
    scored = sum(a.score is not None for a in trajectory.questions) or len(trajectory.questions)
    earners: Counter[int] = Counter()
    for j in chosen:
        answered = trajectory.questions[j]
        target = node(
            "question", j, f"{_verdict(answered)} {label(answered.question.text, 24)}",
            f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 80)}"
            f"<br>score s_j = {_score(answered)}", BLUE if answered.score else GREY,
        )
        if not any(part.question == j for part in parts):
            empty = node("item", None, "no item", "no item was credited", PALE)
            link(empty, target, 1 / scored, answered.score, "no item was credited")
    for part in parts:
        if part.question not in chosen:
            continue
        answered = trajectory.questions[part.question]
        content = contents.get(part.item_id, "")
        item = node("item", part.item_id, f"#{label(part.item_id, 8)} {label(content, 24)}",
                    f"item #{label(part.item_id, 8)}<br>{paragraph(content)}", ORANGE)
        chunk = trajectory.steps[part.step - 1].chunk.text
        step = node("step", part.step, f"step {part.step}",
                    f"step {part.step} reads<br>{paragraph(chunk)}", GREEN)
        link(step, item, part.share, answered.score,
             f"step {part.step} wrote it from<br>{paragraph(source_sentence(content, chunk))}")
        link(item, nodes["question", part.question], part.share, answered.score,
             f"#{label(part.item_id, 8)} was retrieved for<br>{paragraph(answered.question.text)}")
        earners[part.step] += part.share * (answered.score or 0.0)
    keys = sorted(links, key=lambda key: (not key[2], key[0], key[1]))
    fig = go.Figure(go.Sankey(
        arrangement="snap", textfont={"size": 12},
        node={"label": texts, "customdata": hovers, "color": colors, "pad": 14, "thickness": 14,
              "hovertemplate": "%{customdata}<extra></extra>", "align": "right",
              "line": {"color": INK, "width": 0.5}},
        link={
            "source": [key[0] for key in keys], "target": [key[1] for key in keys],
            "value": _numbers(links[key] for key in keys),
            "color": ["rgba(0,114,178,0.45)" if key[2] else "rgba(118,118,118,0.25)"
                      for key in keys],
            "label": ["earned" if key[2] else "not earned" for key in keys],
            "customdata": [
                f"{link_text[key[0], key[1]]}<br>"
                f"{'earns' if key[2] else 'earns nothing of'} {links[key]:.4g}" for key in keys
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
    ))
    for x, anchor, heading in ((0, "left", "step"), (0.5, "center", "memory item"),
                               (1, "right", "question (score s<sub>j</sub>)")):
        fig.add_annotation(x=x, y=1, xref="paper", yref="paper", xanchor=anchor, yanchor="bottom",
                           text=f"<b>{heading}</b>", showarrow=False, yshift=4)
    right = sum(1 for j in chosen if trajectory.questions[j].score)
    best = earners.most_common(1)
    who = (f" Step {best[0][0]} earned most: {best[0][1]:.3g} of the outcome reward."
           if best and best[0][1] else " No step earned anything.")
    cut = "" if len(chosen) == len(trajectory.questions) else (
        f" ({len(chosen)} of {len(trajectory.questions)} questions shown)")
    rows = max(Counter(kind for kind, _ in nodes).values(), default=1)
    return _finish(
        fig, "Who earned which answer?",
        f"{right} of {len(chosen)} questions were answered with a score above 0{cut}.{who} Grey is "
        "what was retrieved without earning.",
        f"Sankey diagram from {len(earners)} steps over memory items to {len(chosen)} questions; "
        "the width of a band is a share of the outcome reward, grey bands earned nothing.",
        150 + 30 * rows, margin={"l": 24, "r": 24, "t": 84, "b": 24},
    )


def evidence_heatmap(trajectory: Trajectory, settings: RewardSettings | None = None) -> go.Figure:
    """Show which step matters for which question: what step t earned from question j.

    Cells are shares of the outcome reward; the row sums on the right are N_t (normalised evidence
    contribution), the bars on top the scores s_j. Blank: no evidence; cross: retrieved, earned
    nothing.
    """
    asked = trajectory.questions
    matrix = evidence_matrix(trajectory, settings)
    row_sums = [total or 0.0 for total in evidence_contribution(trajectory, settings)]
    touched = {(part.step, part.question) for part in evidence_parts(trajectory, settings)}
    steps = list(range(1, trajectory.num_steps + 1))
    numbers = list(range(1, len(asked) + 1))
    cells = [[_number(value) if value else None for value in row] for row in matrix]
    zeros = sorted((step, j + 1) for step, j in touched if not matrix[step - 1][j])
    few = len(steps) * len(asked) <= 160
    fig = make_subplots(
        rows=2, cols=2, shared_xaxes=True, shared_yaxes=True, column_widths=[0.78, 0.22],
        row_heights=[0.24, 0.76], horizontal_spacing=0.03, vertical_spacing=0.04,
    )
    fig.add_heatmap(
        x=numbers, y=steps, z=cells, row=2, col=1, colorscale="Cividis_r", zmin=0,
        zmax=max((value for row in cells for value in row if value is not None), default=1),
        xgap=1, ygap=1, name="share earned",
        customdata=[[paragraph(answered.question.text) for answered in asked]] * len(steps)
        if few else None,
        hovertemplate="step %{y}, question %{x}: %{z}<br>%{customdata}<extra></extra>"
        if few else "step %{y}, question %{x}: %{z}<extra></extra>",
        texttemplate="%{z:.2~g}" if few else None, textfont={"size": 11},
        colorbar=_colorbar("share of r<sub>global</sub>") | {
            "len": 0.76, "y": 0, "yanchor": "bottom"},
    )
    fig.add_scatter(
        x=[j for _, j in zeros], y=[step for step, _ in zeros], row=2, col=1, mode="markers",
        name="retrieved, earned nothing",
        marker={"symbol": "x-thin", "size": 8 if few else 4, "line": {"color": GREY, "width": 1}},
        hovertemplate="step %{y}, question %{x}: retrieved, earned nothing<extra></extra>",
    )
    fig.add_bar(x=numbers, y=_numbers(a.score for a in asked), row=1, col=1, name="score s_j",
                marker_color=BLUE, hovertemplate="question %{x}: score %{y}<extra></extra>")
    fig.add_bar(x=_numbers(row_sums), y=steps, row=2, col=2, orientation="h", name="N_t",
                marker_color=ORANGE, hovertemplate="step %{y}: N_t = %{x}<extra></extra>")
    questions = _count_axis(len(asked), "question j") | {"showgrid": False}
    fig.update_xaxes(**questions, row=2, col=1)
    fig.update_xaxes(range=questions["range"], row=1, col=1)
    rows = _count_axis(len(steps), "step t") | {"showgrid": False}
    for col in (1, 2):
        fig.update_yaxes(**rows | {"range": rows["range"][::-1]}, row=2, col=col)
    fig.update_yaxes(title_text=None, row=2, col=2)
    fig.update_yaxes(title_text="score s<sub>j</sub>", range=[0, 1.05], row=1, col=1)
    fig.update_xaxes(title_text="N<sub>t</sub>", row=2, col=2, rangemode="tozero", nticks=4,
                     tickangle=0)
    best = max(range(len(steps)), key=row_sums.__getitem__, default=0)
    total = sum(row_sums)
    top = f"Step {steps[best]} contributes most, N_t = {row_sums[best]:.3g}. " if total else ""
    idle = sum(1 for value in row_sums if not value)
    return _finish(
        fig, "Evidence: which step matters for which question",
        f"{top}{idle} of {len(steps)} steps earned no evidence; the N_t add up to {total:.3g}. "
        "A cross: retrieved, but nothing earned.",
        f"Heatmap of {len(steps)} steps by {len(asked)} questions with the scores as bars on top "
        "and the normalised evidence contribution N_t of each step as bars on the right.",
        260 + max(160, min(16 * len(steps), 600)), showlegend=False,
    )


# ---- rewards and advantages ----------------------------------------------------------------------

TERM_NAMES = {"eara": "EARA", "format": "format", "chunk": "chunk step", "compression":
              "compression"}


def reward_decomposition(rewards: Sequence[StepReward]) -> go.Figure:
    """Show what each step is paid for: the weighted terms of the hybrid reward and their total.

    A term that could not be measured (`None`) has no bar.
    """
    steps = [reward.step for reward in rewards]
    fig = go.Figure()
    means: dict[str, float] = {}
    for number, (term, weight) in enumerate(rewards[0].weights.items() if rewards else ()):
        name = TERM_NAMES[term] if weight == 1 else f"{weight:g} × {TERM_NAMES[term]}"
        values = [reward.weighted[term] for reward in rewards]
        means[name] = _mean(values) or 0.0
        fig.add_bar(
            x=steps, y=_numbers(values), name=name,
            marker={"color": CATEGORIES[number],
                    "pattern": _pattern(number)},
        )
    totals = [reward.total for reward in rewards]
    fig.add_scatter(x=steps, y=_numbers(totals), name="total", mode="markers",
                    marker={"color": INK, "symbol": "line-ew-open", "size": 16,
                            "line": {"width": 3, "color": INK}})
    known = [total for total in totals if total is not None]
    caption = "No step could be rewarded."
    if known:
        largest = max(means, key=means.__getitem__)
        caption = (f"The largest term is {largest} with {means[largest]:.3g} per step on average; "
                   f"totals range from {min(known):.3g} to {max(known):.3g}.")
    missing = sum(1 for reward in rewards if reward.chunk is None)
    if missing:
        caption += f" {missing} of {len(steps)} steps have no chunk term: nothing to score there."
    return _finish(
        fig, "What is each step paid for?", caption,
        f"Stacked bars of {len(means)} weighted reward terms for {len(steps)} steps with a mark at "
        "the total.",
        400, barmode="relative", xaxis=_count_axis(len(steps)),
        yaxis={"title_text": "reward r<sub>t</sub> (weighted terms)"},
    )


def advantage_heatmap(advantages: Sequence[Sequence[float | None]]) -> go.Figure:
    """Show which rollout is reinforced at which step.

    `advantages` has num_generations rows and T columns, as `group_relative` returns them. A step
    whose group is dead (all advantages 0 or None) teaches nothing and is marked "no gradient".
    """
    rows = [_numbers(row) for row in advantages]
    num_steps = max((len(row) for row in rows), default=0)
    steps = list(range(1, num_steps + 1))
    dead = [step for step in steps if not any(row[step - 1] for row in rows if len(row) >= step)]
    bound = max((abs(value) for row in rows for value in row if value is not None), default=0) or 1
    few = len(rows) * num_steps <= 160
    fig = go.Figure(go.Heatmap(
        x=steps, y=list(range(1, len(rows) + 1)), z=rows, colorscale="PuOr", zmid=0, zmin=-bound,
        zmax=bound, xgap=1, ygap=1, name="advantage",
        texttemplate="%{z:+.2f}" if few else None, textfont={"size": 11},
        hovertemplate="rollout %{y}, step %{x}: A = %{z:+.3f}<extra></extra>",
        colorbar=_colorbar("advantage A"),
    ))
    for step in dead:
        fig.add_shape(type="rect", x0=step - 0.5, x1=step + 0.5, y0=0.5, y1=len(rows) + 0.5,
                      line={"color": GREY, "dash": "dot"}, fillcolor="white")
        fig.add_annotation(x=step, y=(len(rows) + 1) / 2, text="no gradient", textangle=-90,
                           showarrow=False, font={"color": INK})
    return _finish(
        fig, "Advantage per rollout and step",
        f"{len(dead)} of {num_steps} steps carry no gradient: their rollouts earned the same, or "
        f"none could be scored. The largest advantage is {bound:.3g}." if rows else "No rollouts.",
        f"Heatmap of {len(rows)} rollouts by {num_steps} steps, orange below and purple above the "
        "mean of the group.",
        190 + max(150, min(30 * len(rows), 600)),
        xaxis=_count_axis(num_steps) | {"showgrid": False},
        yaxis={"title_text": "rollout", "tick0": 1, "dtick": 1, "autorange": "reversed",
               "showgrid": False},
    )


def advantage_dumbbell(
    before: Sequence[Sequence[float | None]],
    after: Sequence[Sequence[float | None]],
    names: tuple[str, str] = ("outcome reward only", "with attribution"),
) -> go.Figure:
    """Show how attribution moves the advantage of each rollout at each step.

    Both arguments have num_generations rows and T columns; rollouts stand side by side within a
    step.
    """
    generations = len(before)
    num_steps = max((len(row) for row in before), default=0)
    points = [
        (_number(step + (rollout - (generations - 1) / 2) / (generations + 1)), old, new,
         f"step {step}, rollout {rollout + 1}: {old:+.2f} → {new:+.2f}")
        for step in range(1, num_steps + 1)
        for rollout, (old_row, new_row) in enumerate(zip(before, after, strict=True))
        if step <= len(old_row) and step <= len(new_row)
        and (old := old_row[step - 1]) is not None and (new := new_row[step - 1]) is not None
    ]
    bars_x = [value for x, _, _, _ in points for value in (x, x, None)]
    bars_y = [value for _, old, new, _ in points for value in (_number(old), _number(new), None)]
    fig = go.Figure(go.Scatter(x=bars_x, y=bars_y, mode="lines", line={"color": GREY, "width": 2},
                               showlegend=False, hoverinfo="skip", name="change"))
    for name, column, color, symbol in ((names[0], 1, ORANGE, "circle-open"),
                                        (names[1], 2, BLUE, "diamond")):
        fig.add_scatter(
            x=[point[0] for point in points], y=_numbers(point[column] for point in points),
            mode="markers", name=label(name), customdata=[point[3] for point in points],
            hovertemplate="%{customdata}<extra></extra>",
            marker={"color": color, "symbol": symbol, "size": 9,
                    "line": {"width": 2, "color": color}},
        )
    moved = _mean(abs(new - old) for _, old, new, _ in points) or 0.0
    turned = sum(1 for _, old, new, _ in points if old * new < 0)
    return _finish(
        fig, "Advantages before and after attribution",
        f"Attribution moves an advantage by {moved:.3g} on average and turns the sign of {turned} "
        f"of {len(points)}.",
        f"Dumbbells for {generations} rollouts at each of {num_steps} steps, from "
        f"{_one_line(names[0], 28)} to {_one_line(names[1], 28)}.",
        420, xaxis=_count_axis(num_steps, "step t (rollouts side by side)"),
        yaxis={"title_text": "advantage A", "zeroline": True},
    )


# ---- training and benchmark ----------------------------------------------------------------------

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
"""What `training_curves` draws: panel title with unit -> patterns of record keys."""


def training_curves(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]] = TRAINING_PANELS,
) -> go.Figure:
    """Show a training run as small multiples, one panel per quantity that the records hold.

    `records` are those of `training.TrainingResult`, one per update, under TRL's names.
    """
    numbers = [record["step"] for record in records]
    keys = list(dict.fromkeys(key for record in records for key in record))
    drawn = {title: found for title, patterns in panels.items() if (found := [
        key for key in keys if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)])}
    columns = min(2, len(drawn)) or 1
    lines = -(-len(drawn) // columns) or 1
    fig = make_subplots(rows=lines, cols=columns, shared_xaxes="all", horizontal_spacing=0.12,
                        vertical_spacing=0.24 / lines, subplot_titles=list(drawn))
    for place, (title, found) in enumerate(drawn.items()):
        row, col = divmod(place, columns)
        for number, key in enumerate(found):
            fig.add_scatter(
                x=_numbers(numbers), y=_numbers(record.get(key) for record in records),
                row=row + 1, col=col + 1, mode="lines+markers", connectgaps=True,
                name=label(key.removesuffix("/mean").split("/", 1)[-1], 28),
                legendgroup=title, legendgrouptitle_text=title, showlegend=len(found) > 1,
                line_color=CATEGORIES[number % len(CATEGORIES)],
                marker={"symbol": MARKERS[number % len(MARKERS)], "size": 7},
            )
    fig.update_xaxes(title_text="update", row=lines)
    fig.update_annotations(font={"size": 13})
    third = len(records) // 3 or 1
    first, last = ([record["reward"] for record in part if "reward" in record]
                   for part in (records[:third], records[-third:]))
    change = (f"Mean reward {_mean(first):.3g} in the first third, {_mean(last):.3g} in the last. "
              if first and last else "")
    dead = _mean(record.get("frac_reward_zero_std") for record in records)
    idle = "" if dead is None else f"{dead:.0%} of the groups carried no gradient."
    return _finish(
        fig, "Training, update by update",
        f"{change}{idle}".strip() or f"{len(records)} updates.",
        f"Small multiples over {len(records)} updates: {', '.join(drawn) or 'nothing logged'}.",
        150 + 200 * lines, margin={"t": 84},
    )


def benchmark_accuracy(rows: Iterable[Estimate], average: Average = "macro") -> go.Figure:
    """Show accuracy with its interval, one panel per category, one line per method.

    `rows` are those of `evaluation.benchmark_table`; `average` picks which of its two category
    averages is drawn. A value nobody could measure has no point.
    """
    table, methods, categories = _estimates(rows, "accuracy", average)
    fig = make_subplots(rows=1, cols=len(categories) or 1, shared_yaxes=True,
                        horizontal_spacing=0.05,
                        subplot_titles=[label(name, 24) for name in categories])
    for place, category in enumerate(categories):
        part = [row for row in table if row.category == category]
        fig.add_scatter(
            x=_numbers(row.value for row in part), y=[methods.index(row.method) for row in part],
            error_x=_interval(part),
            mode="markers+text", text=[f"{row.value:.2f}" for row in part],
            textposition="top center", cliponaxis=False, name=label(category), showlegend=False,
            marker={"color": CATEGORIES[place % len(CATEGORIES)], "size": 11,
                    "symbol": MARKERS[place % len(MARKERS)]},
            customdata=[f"{label(row.method)}: {label(format_estimate(row))}<br>{row.counted} "
                        f"answers, {row.left_out} not scored" for row in part],
            hovertemplate="%{customdata}<extra></extra>", row=1, col=place + 1,
        )
    fig.update_xaxes(range=[-0.04, 1.08], title_text="accuracy", tickvals=[0, 0.5, 1])
    fig.update_yaxes(tickvals=list(range(len(methods))),
                     ticktext=[label(method, 28) for method in methods],
                     range=[len(methods) - 0.4, -0.7], zeroline=False)
    fig.update_yaxes(title_text="method", col=1)
    fig.update_annotations(font={"size": 14})
    best = [max((row for row in table if row.category == category), key=lambda row: row.value)
            for category in categories]
    tops = "; ".join(f"{_one_line(row.category, 12)} {_one_line(row.method, 28)} {row.value:.2f}"
                     for row in best)
    return _finish(
        fig, f"Accuracy by category ({average} average)",
        f"Best per category: {tops}. Lines are the intervals of the table." if best
        else "Nothing could be scored.",
        f"Dot plot of the accuracy of {len(methods)} methods in {len(categories)} categories, with "
        "intervals.",
        200 + 44 * len(methods), margin={"t": 84},
    )


def _interval(rows: Sequence[Estimate]) -> dict[str, Any]:
    """Return error bars; a row without an interval has none."""
    return {
        "type": "data", "symmetric": False, "thickness": 2, "width": 5,
        "array": [0 if row.high is None else _number(row.high - row.value) for row in rows],
        "arrayminus": [0 if row.low is None else _number(row.value - row.low) for row in rows],
    }


def memory_length(rows: Iterable[Estimate], average: Average = "macro") -> go.Figure:
    """Show the length of the final memory, L(M_T) in tokens, per method and category.

    `rows` and `average` as for `benchmark_accuracy`.
    """
    table, methods, categories = _estimates(rows, "memory_tokens", average)
    fig = go.Figure()
    for place, category in enumerate(categories):
        part = [row for row in table if row.category == category]
        fig.add_bar(
            x=_numbers(row.value for row in part), orientation="h",
            y=[methods.index(row.method) for row in part], name=label(category),
            text=[f"{row.value:,.0f}" for row in part], textposition="inside",
            insidetextanchor="start", textfont={"color": "white"}, error_x=_interval(part),
            cliponaxis=False, hovertemplate="%{x} tokens<extra></extra>",
            marker={"color": CATEGORIES[place % len(CATEGORIES)], "pattern": _pattern(place)},
        )
    means = {method: _mean(row.value for row in table if row.method == method) or 0.0
             for method in methods}
    ordered = sorted(methods, key=means.__getitem__)
    return _finish(
        fig, f"Length of the final memory ({average} average)",
        f"{_one_line(ordered[0], 28)} keeps the shortest memory, {_one_line(ordered[-1], 28)} the "
        "longest: "
        f"{means[ordered[0]]:,.0f} and {means[ordered[-1]]:,.0f} tokens over the categories."
        if ordered else "Nothing was measured.",
        f"Bars of the memory length of {len(methods)} methods in {len(categories)} categories.",
        170 + (20 * len(categories) + 14) * len(methods), barmode="group",
        xaxis={"title_text": "length of the final memory (tokens)", "rangemode": "tozero"},
        yaxis={"title_text": "method", "tickvals": list(range(len(methods))), "zeroline": False,
               "ticktext": [label(method, 28) for method in methods],
               "range": [len(methods) - 0.4, -0.6]},
    )


def _estimates(
    rows: Iterable[Estimate], measure: str, average: Average
) -> tuple[list[Estimate], list[str], list[str]]:
    """Return the measured category rows of one measure, and the methods and categories in them."""
    table = [row for row in rows if row.measure == measure and row.average == average
             and row.data_source == ALL and row.value is not None]
    return (table, list(dict.fromkeys(row.method for row in table)),
            list(dict.fromkeys(row.category for row in table)))


# ---- beside the picture --------------------------------------------------------------------------


def figure_table(figure: go.Figure | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the data of a figure as rows, for readers who do not see it and for tests.

    Reads the kinds of traces that the builders of this module make; others have no rows.

    >>> figure_table(go.Figure(go.Bar(x=[1, 2], y=[3.0, None], name="a")))
    [{'series': 'a', 'x': 1, 'y': 3.0}]
    """
    spec = figure.to_plotly_json() if isinstance(figure, go.Figure) else figure
    layout = spec.get("layout", {})
    rows: list[dict[str, Any]] = []
    for trace in spec.get("data", ()):
        name = plain(trace.get("name", ""))
        if trace["type"] == "sankey":
            names = [plain(text) for text in trace["node"]["label"]]
            columns = (trace["link"][key] for key in ("source", "target", "value", "label"))
            rows += [{"from": names[source], "to": names[target], "share": value, "kind": kind}
                     for source, target, value, kind in zip(*columns, strict=True)]
            continue
        xs, ys = trace.get("x"), trace.get("y")
        listed = isinstance(xs, list | tuple) and isinstance(ys, list | tuple)
        if not listed or trace.get("hoverinfo") == "skip":
            continue
        x_name, x_text = _axis_of(layout, "x", trace.get("xaxis", "x"))
        y_name, y_text = _axis_of(layout, "y", trace.get("yaxis", "y"))
        if trace["type"] == "heatmap":
            rows += [{"series": name, x_name: x, y_name: y, "value": value}
                     for y, line in zip(ys, trace["z"], strict=True)
                     for x, value in zip(xs, line, strict=False) if value is not None]
            continue
        notes = trace.get("customdata") or [None] * len(xs)
        rows += [{"series": name, x_name: x_text.get(x, x), y_name: y_text.get(y, y)}
                 | ({} if note is None else {"note": plain(note)})
                 for x, y, note in zip(xs, ys, notes, strict=True)
                 if x is not None and y is not None]
    return rows


def _axis_of(layout: Mapping[str, Any], letter: str, axis: str) -> tuple[str, dict[Any, str]]:
    """Return the name of an axis and the texts that stand for its values; panels that share an
    axis are named on one of them only."""
    axes = {key.replace("axis", ""): spec for key, spec in layout.items()
            if key.startswith(f"{letter}axis")}
    own = axes.get(axis, {})
    root = own.get("matches", axis)
    shared = [spec for key, spec in axes.items() if root in (key, spec.get("matches"))]
    titles = [(spec.get("title") or {}).get("text") for spec in (own, *shared)]
    title = re.sub(r"</?sub>", "", next(filter(None, titles), letter))
    texts = zip(own.get("tickvals") or (), own.get("ticktext") or (), strict=False)
    return plain(title), {value: plain(text) for value, text in texts}


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook, its caption printed below it.

    Only plotly's JSON is stored (about 10 kB, the same on every run); where that is not rendered,
    the figure's alt text stands in.
    """
    from IPython.display import display

    spec = json.loads(figure.to_json())
    title = plain(spec["layout"]["title"]["text"])
    display({PLOTLY_MIME: spec | {"config": CONFIG},
             "text/plain": f"[figure] {title}: {spec['layout']['meta']['alt']}"}, raw=True)
    print(spec["layout"]["meta"]["caption"])
