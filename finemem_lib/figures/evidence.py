"""Figures of memory, evidence, rewards and benchmarks: pure functions that return a plotly Figure.

Every builder sets a title, axis titles with units, and ``layout.meta`` with a `caption` (what to
see, with the numbers of this figure) and an `alt` sentence for screen readers; nothing is
displayed until `show`. Magnitude is drawn in cividis, signed values in PuOr centred on 0; the rest
of the style, and how untrusted text is made safe, is in `plot_style`.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
from finemem_lib.trajectory import Trajectory


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
    return [
        EvidencePart(step, item_id, j, share / n)
        for j, answered in enumerate(trajectory.questions)
        for step, item_id, share in item_shares(answered, trajectory.num_steps, settings)
    ]


@style.remembered
def source_sentence(content: str, chunk_text: str) -> str:
    """Return the sentence of a chunk that shares most words with an item's content.

    >>> source_sentence("Mia: Rome", "It rained. Mia lives in Rome. Ana sails.")
    'Mia lives in Rome.'
    """
    wanted = set(words(content))
    return max(
        sentences(chunk_text), default="", key=lambda sentence: len(wanted & set(words(sentence)))
    )


STRONG, FAINT = ("73", "40"), ("1A", "12")
"""Opacity (hexadecimal) of links that earned something and of those that did not."""


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
    lit: set[tuple[int, int]] = set()  # links by their ends that are selected
    link_text: dict[tuple[int, int], str] = {}

    def node(kind: str, key: Any, text: str, hover: str, color: str) -> int:
        if (kind, key) not in nodes:
            nodes[kind, key] = len(texts)
            texts.append(text)
            hovers.append(hover)
            colors.append(color)
        return nodes[kind, key]

    def link(
        source: int, target: int, share: float, score: float | None, hover: str, chosen: bool
    ) -> None:
        link_text[source, target] = hover
        if chosen:
            lit.add((source, target))
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
            "question",
            j,
            f"{verdict(answered)} {label(answered.question.text, 18)}",
            f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 80)}"
            f"<br>score s_j = {score_text(answered)}",
            BLUE if answered.score else GREY,
        )
        if not any(part.question == j for part in parts):
            empty = node("item", None, "no item", "no item was credited", PALE)
            link(
                empty,
                target,
                1 / scored,
                answered.score,
                "no item was credited",
                belongs(selected, None, None, j),
            )
    for part in parts:
        if part.question not in chosen:
            continue
        own = belongs(selected, part.step, part.item_id, part.question)
        answered = trajectory.questions[part.question]
        content = contents.get(part.item_id, "")
        item = node(
            "item",
            part.item_id,
            f"#{label(part.item_id, 8)} {label(content, 14)}",
            f"item #{label(part.item_id, 8)}<br>{paragraph(content)}",
            ORANGE,
        )
        chunk = trajectory.steps[part.step - 1].chunk.text
        step = node(
            "step",
            part.step,
            f"step {part.step}",
            f"step {part.step} reads<br>{paragraph(chunk)}",
            GREEN,
        )
        link(
            step,
            item,
            part.share,
            answered.score,
            f"step {part.step} wrote it from<br>{paragraph(source_sentence(content, chunk))}",
            own,
        )
        link(
            item,
            nodes["question", part.question],
            part.share,
            answered.score,
            f"#{label(part.item_id, 8)} was retrieved for<br>{paragraph(answered.question.text)}",
            own,
        )
        earners[part.step] += part.share * (answered.score or 0.0)
    keys = sorted(links, key=lambda key: (not key[2], key[0], key[1]))
    names = [
        f"question {key + 1}" if kind == "question" else f"{kind} {key}" for kind, key in nodes
    ]
    # A click says only the number of what was clicked, be it node or link: unused nodes in front
    # keep the two apart.
    ahead = 0 if selected is None else len(keys)
    clicks = [names[key[1]] for key in keys] + [
        None if key[1] is None else name for name, key in zip(names, nodes, strict=True)
    ]
    link_colors = [
        (BLUE if key[2] else GREY) + opacity[0 if key[2] else 1]
        for key in keys
        for opacity in [STRONG if selected in (None, "") or key[:2] in lit else FAINT]
    ]
    trace = {
        # nodes that can be dragged are not clicked: plotly takes them out of the page on the way
        "type": "sankey",
        "arrangement": "snap" if selected is None else "fixed",
        "textfont": {"size": 11},
        "node": {
            "label": [""] * ahead + texts,
            "customdata": [""] * ahead + hovers,
            "color": [PALE] * ahead + colors,
            "pad": 14,
            "thickness": 14,
            "hovertemplate": "%{customdata}<extra></extra>",
            "align": "right",
            "line": {"color": INK, "width": 0.5},
        },
        "link": {
            "source": [ahead + key[0] for key in keys],
            "target": [ahead + key[1] for key in keys],
            "value": style.numbers(links[key] for key in keys),
            "color": link_colors,
            "label": ["earned" if key[2] else "not earned" for key in keys],
            "customdata": [
                f"{link_text[key[0], key[1]]}<br>"
                f"{'earns' if key[2] else 'earns nothing of'} {links[key]:.4g}"
                for key in keys
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
    }
    headings = [
        {
            "x": x,
            "y": 1,
            "xref": "paper",
            "yref": "paper",
            "xanchor": anchor,
            "yanchor": "bottom",
            "text": f"<b>{heading}</b>",
            "showarrow": False,
            "yshift": 4,
        }
        for x, anchor, heading in (
            (0, "left", "step"),
            (0.5, "center", "memory item"),
            (1, "right", "question (score s<sub>j</sub>)"),
        )
    ]
    right = sum(1 for j in chosen if trajectory.questions[j].score)
    best = earners.most_common(1)
    who = (
        f" Step {best[0][0]} earned most: {best[0][1]:.3g} of the outcome reward."
        if best and best[0][1]
        else " No step earned anything."
    )
    cut = (
        ""
        if len(chosen) == len(trajectory.questions)
        else (f" ({len(chosen)} of {len(trajectory.questions)} questions shown)")
    )
    rows = max(Counter(kind for kind, _ in nodes).values(), default=1)
    return style.from_traces(
        [trace],
        "Who earned which answer?",
        f"{right} of {len(chosen)} questions were answered with a score above 0{cut}.{who} Grey is "
        "what was retrieved without earning.",
        f"Sankey diagram from {len(earners)} steps over memory items to {len(chosen)} questions; "
        "the width of a band is a share of the outcome reward, grey bands earned nothing.",
        150 + 30 * rows,
        selecting_clicks(selected, {0: clicks}),
        annotations=headings,
        margin={"l": 8, "r": 8, "t": 84, "b": 24},
    )


def evidence_trail(
    trajectory: Trajectory,
    settings: RewardSettings | None = None,
    selected: str = "",
    max_rows: int = 10,
) -> go.Figure:
    """Show where credit came from, line by line: question, item, operation, sentence of the chunk.

    Every retrieved item of the selected questions has a line for each step that shares its credit
    (with 0 where it has none); blue is what flowed back to that step, grey what a wrong answer left
    unearned, in shares of the outcome reward. Beyond `max_rows` the smallest are left out.
    """
    settings = settings or RewardSettings()
    shares: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for part in evidence_parts(trajectory, settings):
        shares.setdefault((part.question, part.item_id), []).append((part.step, part.share))
    items = {item.item_id: item for item in trajectory.final_memory()}
    rows = [
        (j, answered, rank, found, step, share)
        for j, answered in enumerate(trajectory.questions)
        for rank, found in enumerate(answered.retrieved, start=1)
        for step, share in shares.get((j, found.item_id), [(found.steps[-1], 0.0)])
        if belongs(selected, step, found.item_id, j)
    ]
    kept = sorted(range(len(rows)), key=lambda n: (-rows[n][5] * (rows[n][1].score or 0), n))
    drawn = [rows[n] for n in sorted(kept[:max_rows])]
    ticks, notes = [], []
    for j, answered, rank, found, step, _ in drawn:
        item = items.get(found.item_id)
        content = item.content if item else ""
        kind = (
            next((write.kind for write in item.lineage if write.step == step), "?") if item else "?"
        )
        source = source_sentence(content, trajectory.steps[step - 1].chunk.text)
        used = answered.used is not None and found.item_id in answered.used
        ticks.append(
            f"question {j + 1} ← #{label(found.item_id, 8)} {label(content, 26)}"
            f"{' <b>(used)</b>' if used else ''}<br>{kind} at step {step} “"
            f"{label(source, 34)}”"
        )
        said = (
            "used by the reader"
            if used
            else (
                "not used" if answered.used is not None else "the reader does not say what it used"
            )
        )
        notes.append(
            f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 60)}, score "
            f"{score_text(answered)}<br>place {rank} of {len(answered.retrieved)}, retrieval score "
            f"{found.score:.2f}, {said}<br>written at steps {', '.join(map(str, found.steps))}<br>"
            f"{paragraph(source)}"
        )
    lines = list(range(len(drawn)))
    parts = [
        (row[5] * (row[1].score or 0.0), row[5] * (1 - (row[1].score or 0.0))) for row in drawn
    ]
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": lines,
            "x": style.numbers(part[number] for part in parts),
            "marker": {"color": color, "pattern": style.pattern(number)},
        }
        for number, (name, color) in enumerate((("earned", BLUE), ("not earned", PALE)))
    ]
    traces[0] |= {"customdata": notes, "hovertemplate": "%{customdata}<br>%{x}<extra></extra>"}
    traces[1] |= {"hovertemplate": "not earned: %{x}<extra></extra>"}
    owners = [f"item {row[3].item_id}" for row in drawn]
    earned = math.fsum(row[5] * (row[1].score or 0.0) for row in rows)
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
        traces,
        f"What was it answered from{what}",
        f"{asked}{len(rows)} ways of evidence{cut}, through which {earned:.3g} of the outcome "
        "reward flowed back.",
        f"Bars for {len(drawn)} ways from a question over a retrieved item to the step and the "
        "sentence it was written from.",
        170 + 46 * max(1, len(drawn)),
        selecting_clicks(selected, {0: owners, 1: owners}),
        barmode="stack",
        xaxis={"title": {"text": "share of r<sub>global</sub>"}, "rangemode": "tozero"},
        yaxis={
            "title": {"text": "evidence"},
            "tickvals": lines,
            "ticktext": ticks,
            "zeroline": False,
            "range": [max(1, len(drawn)) - 0.4, -0.6],
        },
    )


def evidence_heatmap(
    trajectory: Trajectory, settings: RewardSettings | None = None, selected: str | None = None
) -> go.Figure:
    """Show which step matters for which question: what step t earned from question j.

    Cells are shares of the outcome reward; the row sums on the right are N_t (normalised evidence
    contribution), the bars on top the scores s_j. Blank: no evidence; cross: retrieved, earned
    nothing.
    """
    asked = trajectory.questions
    matrix = evidence_matrix(trajectory, settings)
    row_sums = [total or 0.0 for total in evidence_contribution(trajectory, settings)]
    parts = evidence_parts(trajectory, settings)
    touched = {(part.step, part.question) for part in parts}
    steps = list(range(1, trajectory.num_steps + 1))
    numbers = list(range(1, len(asked) + 1))
    cells = [[style.number(value) if value else None for value in row] for row in matrix]
    zeros = sorted((step, j + 1) for step, j in touched if not matrix[step - 1][j])
    few = len(steps) * len(asked) <= 160
    bars = {"type": "bar", "marker": {"color": BLUE}}
    heat = {
        "type": "heatmap",
        "x": numbers,
        "y": steps,
        "z": cells,
        "colorscale": "Cividis",
        "reversescale": True,
        "zmin": 0,
        "xgap": 1,
        "ygap": 1,
        "name": "share earned",
        "zmax": max((value for row in cells for value in row if value is not None), default=1),
        "hovertemplate": "step %{y}, question %{x}: %{z}"
        + ("<br>%{customdata}" if few else "")
        + "<extra></extra>",
        "colorbar": style.colorbar("share of r<sub>global</sub>")
        | {"len": 0.76, "y": 0, "yanchor": "bottom"},
    }
    if few:
        heat |= {
            "texttemplate": "%{z:.2~g}",
            "textfont": {"size": 11},
            "customdata": [[paragraph(answered.question.text) for answered in asked]] * len(steps),
        }
    traces = [
        heat,
        {
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
        },
        bars
        | {
            "x": numbers,
            "y": style.numbers(a.score for a in asked),
            "yaxis": "y2",
            "name": "score s_j",
            "hovertemplate": "question %{x}: score %{y}<extra></extra>",
        },
        bars
        | {
            "x": style.numbers(row_sums),
            "y": steps,
            "xaxis": "x2",
            "orientation": "h",
            "name": "N_t",
            "marker": {"color": ORANGE},
            "hovertemplate": "step %{y}: N_t = %{x}<extra></extra>",
        },
    ]
    outlines: list[dict[str, Any]] = []
    if selected is not None:
        own = [part for part in parts if belongs(selected, part.step, part.item_id, part.question)]
        lit = {part.step for part in own}, {part.question + 1 for part in own}
        for trace, places, those in ((traces[2], numbers, lit[1]), (traces[3], steps, lit[0])):
            trace |= faded([not selected or place in those for place in places])
        outlines = (
            [
                outline(
                    x0=part.question + 0.5,
                    x1=part.question + 1.5,
                    y0=part.step - 0.5,
                    y1=part.step + 0.5,
                )
                for part in own
            ]
            if selected
            else []
        )
    rows = style.count_axis(len(steps), "step t") | {"showgrid": False}
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
        selecting_clicks(
            selected,
            {
                0: (columns := [f"question {j}" for j in numbers]),
                1: [columns[j - 1] for _, j in zeros],
                2: columns,
                3: [f"step {step}" for step in steps],
            },
        ),
        showlegend=False,
        shapes=outlines,
        xaxis=style.count_axis(len(asked), "question j") | {"showgrid": False, "domain": [0, 0.76]},
        yaxis=rows | {"range": rows["range"][::-1], "domain": [0, 0.73]},
        xaxis2={
            "title": {"text": "N<sub>t</sub>"},
            "domain": [0.79, 1],
            "rangemode": "tozero",
            "nticks": 4,
            "tickangle": 0,
        },
        yaxis2={"title": {"text": "score s<sub>j</sub>"}, "domain": [0.77, 1], "range": [0, 1.05]},
    )
