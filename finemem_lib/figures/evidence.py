"""Evidence: which step and which item earned which answer."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import plotly.graph_objects as go

from finemem_lib.data.sentences import sentences
from finemem_lib.figures import style
from finemem_lib.figures.selection import (
    belongs,
    faded,
    outline,
    score_text,
    selecting_clicks,
    verdict,
)
from finemem_lib.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, label, paragraph
from finemem_lib.rewards import (
    RewardSettings,
    evidence_contribution,
    evidence_matrix,
    item_shares,
)
from finemem_lib.text import words
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, Retrieved, Trajectory


@dataclass(frozen=True, slots=True)
class EvidencePart:
    """The credit of one item for one question.

    Attributes:
        step: the step that is credited for the item, from 1.
        item_id: the item that was retrieved.
        question: position of the question in the trajectory, from 0.
        share: 1/(|M_j| n), the share of the outcome reward that the step earns when the answer is
            right.
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

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
    """
    settings = settings or RewardSettings()
    n = sum(a.score is not None for a in trajectory.questions) or len(trajectory.questions)
    return [
        EvidencePart(step, item_id, j, share / n)
        for j, answered in enumerate(trajectory.questions)
        for step, item_id, share in item_shares(answered, trajectory.num_steps, settings)
    ]


@style.remembered
def source_sentence(content: str, chunk_text: str) -> str:
    """Return the sentence of a chunk that shares most words with an item's content.

    Args:
        content: content of the item.
        chunk_text: text of the chunk it was written from.

    >>> source_sentence("Mia: Rome", "It rained. Mia lives in Rome. Ana sails.")
    'Mia lives in Rome.'
    """
    wanted = set(words(content))
    return max(
        sentences(chunk_text), default="", key=lambda sentence: len(wanted & set(words(sentence)))
    )


STRONG, FAINT = ("73", "40"), ("1A", "12")
"""Opacity (hexadecimal) of links that earned something and of those that did not: selected ones,
and others."""


def evidence_sankey(
    trajectory: Trajectory,
    questions: Sequence[int] | None = None,
    settings: RewardSettings | None = None,
    max_questions: int = 10,
    selected: str | None = None,
) -> go.Figure:
    """Show who earned which answer: step -> memory item -> question.

    The width of a link is the item's share of the outcome reward, 1/(|M_j| n) for each credited
    item, of which s_j is coloured (earned) and 1 - s_j grey (retrieved for an answer that was not
    right, or cannot be scored).

    Args:
        trajectory: the trajectory.
        questions: positions of the questions shown (`None`: the first `max_questions`).
        settings: how evidence is attributed.
        max_questions: most questions shown where `questions` is `None`.
        selected: "question j", "step t", "item id" or "" to highlight what belongs to it (see
            `selection`); `None` for a figure without selection.
    """
    chosen = list(range(len(trajectory.questions)))[:max_questions]
    if questions is not None:
        chosen = list(questions)
    flow, earners = _evidence_flow(trajectory, chosen, settings, selected)
    keys = sorted(flow.links, key=lambda key: (not key[2], key[0], key[1]))
    names = [
        f"question {key + 1}" if kind == "question" else f"{kind} {key}" for kind, key in flow.nodes
    ]
    # A click says only the number of what was clicked, be it node or link: unused nodes in front
    # keep the two apart.
    ahead = 0 if selected is None else len(keys)
    clicks = [names[key[1]] for key in keys] + [
        None if key[1] is None else name for name, key in zip(names, flow.nodes, strict=True)
    ]
    right = sum(1 for j in chosen if trajectory.questions[j].score)
    best = max(earners, key=earners.__getitem__, default=0)
    who = (
        f" Step {best} earned most: {earners[best]:.3g} of the outcome reward."
        if earners.get(best)
        else " No step earned anything."
    )
    cut = (
        ""
        if len(chosen) == len(trajectory.questions)
        else f" ({len(chosen)} of {len(trajectory.questions)} questions shown)"
    )
    rows = max(Counter(kind for kind, _ in flow.nodes).values(), default=1)
    return style.from_traces(
        [flow.trace(keys, ahead, selected)],
        "Who earned which answer?",
        f"{right} of {len(chosen)} questions were answered with a score above 0{cut}.{who} Grey is "
        "what was retrieved without earning.",
        f"Sankey diagram from {len(earners)} steps over memory items to {len(chosen)} questions; "
        "the width of a band is a share of the outcome reward, grey bands earned nothing.",
        150 + 30 * rows,
        selecting_clicks(selected, {0: clicks}),
        annotations=[
            _heading(0, "left", "step"),
            _heading(0.5, "center", "memory item"),
            _heading(1, "right", "question (score s<sub>j</sub>)"),
        ],
        margin={"l": 8, "r": 8, "t": 84, "b": 24},
    )


def _heading(x: float, anchor: str, text: str) -> dict[str, Any]:
    """Return the heading of a column of nodes, at x from 0 to 1."""
    return {
        "x": x,
        "y": 1,
        "xref": "paper",
        "yref": "paper",
        "xanchor": anchor,
        "yanchor": "bottom",
        "text": f"<b>{text}</b>",
        "showarrow": False,
        "yshift": 4,
    }


@dataclass(slots=True)
class _Flow:
    """Nodes and links of a Sankey diagram, while they are collected."""

    nodes: dict[tuple[str, Any], int] = field(default_factory=dict)
    texts: list[str] = field(default_factory=list)
    hovers: list[str] = field(default_factory=list)
    colors: list[str] = field(default_factory=list)
    links: dict[tuple[int, int, bool], float] = field(default_factory=dict)
    link_hovers: dict[tuple[int, int], str] = field(default_factory=dict)
    highlighted: set[tuple[int, int]] = field(default_factory=set)

    def node(self, kind: str, key: Any, text: str, hover: str, color: str) -> int:
        """Add a node unless it is there, and return its number."""
        if (kind, key) not in self.nodes:
            self.nodes[kind, key] = len(self.texts)
            self.texts.append(text)
            self.hovers.append(hover)
            self.colors.append(color)
        return self.nodes[kind, key]

    def link(
        self, source: int, target: int, share: float, score: float | None, hover: str, own: bool
    ) -> None:
        """Add a share to a link, of which the score is earned; `own`: it is selected."""
        self.link_hovers[source, target] = hover
        if own:
            self.highlighted.add((source, target))
        for earned, part in ((True, share * (score or 0.0)), (False, share * (1 - (score or 0.0)))):
            if part > 0:
                key = source, target, earned
                self.links[key] = self.links.get(key, 0.0) + part

    def trace(
        self, keys: Sequence[tuple[int, int, bool]], ahead: int, selected: str | None
    ) -> dict[str, Any]:
        """Return the plotly trace of the links `keys`, with `ahead` unused nodes in front."""
        link_colors = [
            (BLUE if key[2] else GREY) + opacity[0 if key[2] else 1]
            for key in keys
            for opacity in [
                STRONG if selected in (None, "") or key[:2] in self.highlighted else FAINT
            ]
        ]
        return {
            # nodes that can be dragged are not clicked: plotly takes them out of the page on the
            # way
            "type": "sankey",
            "arrangement": "snap" if selected is None else "fixed",
            "textfont": {"size": 11},
            "node": {
                "label": [""] * ahead + self.texts,
                "customdata": [""] * ahead + self.hovers,
                "color": [PALE] * ahead + self.colors,
                "pad": 14,
                "thickness": 14,
                "hovertemplate": "%{customdata}<extra></extra>",
                "align": "right",
                "line": {"color": INK, "width": 0.5},
            },
            "link": {
                "source": [ahead + key[0] for key in keys],
                "target": [ahead + key[1] for key in keys],
                "value": style.numbers(self.links[key] for key in keys),
                "color": link_colors,
                "label": ["earned" if key[2] else "not earned" for key in keys],
                "customdata": [
                    f"{self.link_hovers[key[0], key[1]]}<br>"
                    f"{'earns' if key[2] else 'earns nothing of'} {self.links[key]:.4g}"
                    for key in keys
                ],
                "hovertemplate": "%{customdata}<extra></extra>",
            },
        }


def _evidence_flow(
    trajectory: Trajectory,
    chosen: Sequence[int],
    settings: RewardSettings | None,
    selected: str | None,
) -> tuple[_Flow, dict[int, float]]:
    """Return the flow from steps over items to the chosen questions, and each step's earnings."""
    flow = _Flow()
    earners: dict[int, float] = {}
    contents = {item.item_id: item.content for item in trajectory.final_memory()}
    parts = evidence_parts(trajectory, settings)
    scored = sum(a.score is not None for a in trajectory.questions) or len(trajectory.questions)
    for j in chosen:
        answered = trajectory.questions[j]
        target = flow.node(
            "question",
            j,
            f"{verdict(answered)} {label(answered.question.text, 18)}",
            f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 80)}"
            f"<br>score s_j = {score_text(answered)}",
            BLUE if answered.score else GREY,
        )
        if not any(part.question == j for part in parts):
            nothing = "no item was credited"
            empty = flow.node("item", None, "no item", nothing, PALE)
            own = belongs(selected, None, None, j)
            flow.link(empty, target, 1 / scored, answered.score, nothing, own)
    for part in parts:
        if part.question not in chosen:
            continue
        own = belongs(selected, part.step, part.item_id, part.question)
        answered = trajectory.questions[part.question]
        content = contents.get(part.item_id, "")
        chunk = trajectory.steps[part.step - 1].chunk.text
        name = f"#{label(part.item_id, 8)}"
        item = flow.node(
            "item",
            part.item_id,
            f"{name} {label(content, 14)}",
            f"item {name}<br>{paragraph(content)}",
            ORANGE,
        )
        step = flow.node(
            "step",
            part.step,
            f"step {part.step}",
            f"step {part.step} reads<br>{paragraph(chunk)}",
            GREEN,
        )
        written = f"step {part.step} wrote it from<br>{paragraph(source_sentence(content, chunk))}"
        found = f"{name} was retrieved for<br>{paragraph(answered.question.text)}"
        question = flow.nodes["question", part.question]
        flow.link(step, item, part.share, answered.score, written, own)
        flow.link(item, question, part.share, answered.score, found, own)
        earned = part.share * (answered.score or 0.0)
        earners[part.step] = earners.get(part.step, 0.0) + earned
    return flow, earners


def evidence_trail(
    trajectory: Trajectory,
    settings: RewardSettings | None = None,
    selected: str = "",
    max_rows: int = 10,
) -> go.Figure:
    """Show where credit came from, line by line: question, item, operation, sentence of the chunk.

    Every retrieved item of the selected questions has a line for each step that shares its credit
    (with 0 where it has none); blue is the share of the outcome reward that flowed back to that
    step, grey the share that a wrong answer left unearned.

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
        selected: "question j", "step t" or "item id" to show only what belongs to it; "" for all.
        max_rows: most lines shown; the smallest are left out.
    """
    rows = _trail_rows(trajectory, settings, selected)
    kept = sorted(range(len(rows)), key=lambda n: (-rows[n].earned, n))
    drawn = [rows[n] for n in sorted(kept[:max_rows])]
    items = {item.item_id: item for item in trajectory.final_memory()}
    texts = [_trail_texts(row, items.get(row.found.item_id), trajectory) for row in drawn]
    owners = [f"item {row.found.item_id}" for row in drawn]
    earned = math.fsum(row.earned for row in rows)
    cut = "" if len(drawn) == len(rows) else f" ({len(drawn)} with most credit shown)"
    what = f": {label(selected, 24)}" if selected else ""
    asked = ""
    if selected.startswith("question "):
        answered = trajectory.questions[int(selected[9:]) - 1]
        asked = (
            f"{style.one_line(answered.question.text, 120)} Answer: "
            f"{style.one_line(answered.answer, 60)!r}, score {score_text(answered)}. "
        )
    return style.from_traces(
        _trail_bars(drawn, [note for _, note in texts]),
        f"Where the answers come from{what}",
        f"{asked}{len(rows)} paths of evidence{cut}, through which {earned:.3g} of the outcome "
        "reward flowed back.",
        f"Bars for {len(drawn)} paths from a question over a retrieved item to the step and the "
        "sentence it was written from.",
        170 + 46 * max(1, len(drawn)),
        selecting_clicks(selected, {0: owners, 1: owners}),
        barmode="stack",
        xaxis={"title": {"text": "share of r<sub>global</sub>"}, "rangemode": "tozero"},
        yaxis={"title": {"text": "evidence"}} | style.lines_axis([tick for tick, _ in texts]),
    )


class _TrailRow(NamedTuple):
    """A line of the trail: a question, an item found at `rank` from 1, and a step that wrote it."""

    question: int
    answered: AnsweredQuestion
    rank: int
    found: Retrieved
    step: int
    share: float

    @property
    def earned(self) -> float:
        return self.share * (self.answered.score or 0.0)


def _trail_rows(
    trajectory: Trajectory, settings: RewardSettings | None, selected: str
) -> list[_TrailRow]:
    """Return the lines of what is selected, in the order of the questions."""
    shares: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for part in evidence_parts(trajectory, settings):
        shares.setdefault((part.question, part.item_id), []).append((part.step, part.share))
    return [
        _TrailRow(j, answered, rank, found, step, share)
        for j, answered in enumerate(trajectory.questions)
        for rank, found in enumerate(answered.retrieved, start=1)
        for step, share in shares.get((j, found.item_id), [(found.steps[-1], 0.0)])
        if belongs(selected, step, found.item_id, j)
    ]


def _trail_bars(rows: Sequence[_TrailRow], notes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the bars of what each line earned, with its hover text, and of what it did not."""
    earned: dict[str, Any] = {
        "name": "earned",
        "x": style.numbers(row.earned for row in rows),
        "marker": {"color": BLUE, "pattern": style.pattern(0)},
        "customdata": list(notes),
        "hovertemplate": "%{customdata}<br>%{x}<extra></extra>",
    }
    missed = {
        "name": "not earned",
        "x": style.numbers(row.share * (1 - (row.answered.score or 0.0)) for row in rows),
        "marker": {"color": PALE, "pattern": style.pattern(1)},
        "hovertemplate": "not earned: %{x}<extra></extra>",
    }
    shared = {"type": "bar", "orientation": "h", "y": list(range(len(rows)))}
    return [shared | earned, shared | missed]


def _trail_texts(
    row: _TrailRow, item: MemoryItem | None, trajectory: Trajectory
) -> tuple[str, str]:
    """Return the name of a line of the trail, and its hover text."""
    answered, found, step = row.answered, row.found, row.step
    content = item.content if item else ""
    kind = next((write.kind for write in item.lineage if write.step == step), "?") if item else "?"
    source = source_sentence(content, trajectory.steps[step - 1].chunk.text)
    if answered.used is None:
        mark, use = "", "the reader does not say what it used"
    elif found.item_id in answered.used:
        mark, use = " <b>(used)</b>", "used by the reader"
    else:
        mark, use = "", "not used"
    return (
        f"question {row.question + 1} ← #{label(found.item_id, 8)} {label(content, 26)}{mark}"
        f"<br>{kind} at step {step} “{label(source, 34)}”",
        f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 60)}, score "
        f"{score_text(answered)}<br>place {row.rank} of {len(answered.retrieved)}, retrieval score "
        f"{found.score:.2f}, {use}<br>written at steps {', '.join(map(str, found.steps))}<br>"
        f"{paragraph(source)}",
    )


def evidence_heatmap(
    trajectory: Trajectory, settings: RewardSettings | None = None, selected: str | None = None
) -> go.Figure:
    """Show which step matters for which question: what step t earned from question j.

    Cells are shares of the outcome reward; the row sums on the right are N_t (normalised evidence
    contribution), the bars on top the scores s_j. Blank: no evidence; cross: retrieved, earned
    nothing.

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
        selected: "question j", "step t", "item id" or "" to highlight what belongs to it (see
            `selection`); `None` for a figure without selection.
    """
    steps = list(range(1, trajectory.num_steps + 1))
    asked = trajectory.questions
    numbers = list(range(1, len(asked) + 1))
    matrix = evidence_matrix(trajectory, settings)
    row_sums = [total or 0.0 for total in evidence_contribution(trajectory, settings)]
    parts = evidence_parts(trajectory, settings)
    zeros = sorted({(p.step, p.question + 1) for p in parts if not matrix[p.step - 1][p.question]})
    few = len(steps) * len(asked) <= 160
    traces = [
        _share_cells(matrix, asked, few),
        _unearned_crosses(zeros, few),
        *_margin_bars([answered.score for answered in asked], row_sums),
    ]
    own = [p for p in parts if belongs(selected, p.step, p.item_id, p.question)]
    if selected is not None:
        own_questions, own_steps = {p.question + 1 for p in own}, {p.step for p in own}
        traces[2] |= faded([not selected or j in own_questions for j in numbers])
        traces[3] |= faded([not selected or step in own_steps for step in steps])
    columns = [f"question {j}" for j in numbers]
    clicks = {
        0: columns,
        1: [columns[j - 1] for _, j in zeros],
        2: columns,
        3: [f"step {step}" for step in steps],
    }
    best = max(range(len(steps)), key=row_sums.__getitem__, default=0)
    total = sum(row_sums)
    top = f"Step {steps[best]} contributes most, N_t = {row_sums[best]:.3g}. " if total else ""
    idle = sum(1 for value in row_sums if not value)
    return style.from_traces(
        traces,
        "Evidence: which step matters for which question",
        f"{top}{idle} of {len(steps)} steps earned no evidence; the N_t add up to {total:.3g}. "
        "A cross: retrieved, but nothing earned.",
        f"Heatmap of {len(steps)} steps by {len(asked)} questions with the scores as bars on top "
        "and the normalised evidence contribution N_t of each step as bars on the right.",
        260 + max(160, min(16 * len(steps), 600)),
        selecting_clicks(selected, clicks),
        showlegend=False,
        shapes=[_cell_outline(p.step, p.question + 1) for p in own] if selected else [],
        **_evidence_axes(len(steps), len(asked)),
    )


def _share_cells(
    matrix: Sequence[Sequence[float | None]], asked: Sequence[AnsweredQuestion], few: bool
) -> dict[str, Any]:
    """Return the heatmap of earned shares; with `few` cells it shows numbers and questions."""
    cells = [[style.number(value) if value else None for value in row] for row in matrix]
    heat = {
        "type": "heatmap",
        "x": list(range(1, len(asked) + 1)),
        "y": list(range(1, len(matrix) + 1)),
        "z": cells,
        "colorscale": "Cividis",
        "reversescale": True,
        "zmin": 0,
        "zmax": max((value for row in cells for value in row if value is not None), default=1),
        "xgap": 1,
        "ygap": 1,
        "name": "share earned",
        "hovertemplate": "step %{y}, question %{x}: %{z}<extra></extra>",
        "colorbar": style.colorbar("share of r<sub>global</sub>")
        | {"len": 0.76, "y": 0, "yanchor": "bottom"},
    }
    if not few:
        return heat
    return heat | {
        "texttemplate": "%{z:.2~g}",
        "textfont": {"size": 11},
        "customdata": [[paragraph(answered.question.text) for answered in asked]] * len(matrix),
        "hovertemplate": "step %{y}, question %{x}: %{z}<br>%{customdata}<extra></extra>",
    }


def _unearned_crosses(zeros: Sequence[tuple[int, int]], few: bool) -> dict[str, Any]:
    """Return crosses at (step, question), both from 1, that were retrieved and earned nothing."""
    return {
        "type": "scatter",
        "x": [j for _, j in zeros],
        "y": [step for step, _ in zeros],
        "mode": "markers",
        "name": "retrieved, earned nothing",
        "marker": {
            "symbol": "x-thin",
            "size": 8 if few else 4,
            "line": {"color": GREY, "width": 1},
        },
        "hovertemplate": "step %{y}, question %{x}: retrieved, earned nothing<extra></extra>",
    }


def _margin_bars(
    scores: Sequence[float | None], row_sums: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the bars of the scores above the heatmap and those of N_t on its right."""
    return (
        {
            "type": "bar",
            "x": list(range(1, len(scores) + 1)),
            "y": style.numbers(scores),
            "yaxis": "y2",
            "name": "score s_j",
            "marker": {"color": BLUE},
            "hovertemplate": "question %{x}: score %{y}<extra></extra>",
        },
        {
            "type": "bar",
            "x": style.numbers(row_sums),
            "y": list(range(1, len(row_sums) + 1)),
            "xaxis": "x2",
            "orientation": "h",
            "name": "N_t",
            "marker": {"color": ORANGE},
            "hovertemplate": "step %{y}: N_t = %{x}<extra></extra>",
        },
    )


def _cell_outline(step: int, question: int) -> dict[str, Any]:
    return outline(x0=question - 0.5, x1=question + 0.5, y0=step - 0.5, y1=step + 0.5)


def _evidence_axes(num_steps: int, num_questions: int) -> dict[str, Any]:
    """Return the axes of the heatmap, and of the bars above it and on its right."""
    rows = style.count_axis(num_steps, "step t") | {"showgrid": False}
    columns = style.count_axis(num_questions, "question j") | {"showgrid": False}
    return {
        "xaxis": columns | {"domain": [0, 0.76]},
        "yaxis": rows | {"range": rows["range"][::-1], "domain": [0, 0.73]},
        "xaxis2": {
            "title": {"text": "N<sub>t</sub>"},
            "domain": [0.79, 1],
            "rangemode": "tozero",
            "nticks": 4,
            "tickangle": 0,
        },
        "yaxis2": {
            "title": {"text": "score s<sub>j</sub>"},
            "domain": [0.77, 1],
            "range": [0, 1.05],
        },
    }
