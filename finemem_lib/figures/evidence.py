"""Figures of evidence: the credit of each step and item for each question."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import plotly.graph_objects as go

from finemem_lib.data.sentences import sentences
from finemem_lib.figures import style
from finemem_lib.figures.history import memory_history, per_trajectory
from finemem_lib.figures.selection import (
    belongs,
    faded,
    outline,
    score_text,
    selecting_clicks,
)
from finemem_lib.figures.style import BLUE, GREY, ORANGE, PALE, label, paragraph
from finemem_lib.rewards import (
    RewardSettings,
    evidence_contribution,
    evidence_matrix,
    item_shares,
)
from finemem_lib.text import words
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, Retrieved, Trajectory

Window = tuple[int, int]
"""First and last step of a part of a trajectory."""

MAX_BINS = 200
"""Maximum number of bars of `evidence_overview`."""


@dataclass(frozen=True, slots=True)
class EvidencePart:
    """The credit of one item for one question.

    Attributes:
        step: the step that is credited for the item, from 1.
        item_id: the item that was retrieved.
        question: position of the question in the trajectory, from 0.
        share: 1/(|M_j| n), the share of the outcome reward that the step earns if the answer is
            right.
    """

    step: int
    item_id: str
    question: int
    share: float


def evidence_parts(
    trajectory: Trajectory, settings: RewardSettings | None = None
) -> list[EvidencePart]:
    """Return the evidence per question and credited item.

    The shares times s_j, summed over items, are `rewards.evidence_matrix`. A question without a
    credited item has no part. A question that cannot be scored has parts for its retrieved items,
    although it earns nothing.

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


@style.cached
def source_sentence(content: str, chunk_text: str) -> str:
    """Return the sentence of a chunk that shares most words with the content of an item.

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


parts_of = per_trajectory(evidence_parts)
_matrix = per_trajectory(evidence_matrix)
_contribution = per_trajectory(evidence_contribution)


def evidence_trail(
    trajectory: Trajectory,
    settings: RewardSettings | None = None,
    selected: str = "",
    max_rows: int = 10,
) -> go.Figure:
    """Show the source of credit line by line: question, item, operation, sentence of the chunk.

    Every retrieved item of the selected questions has a line for each step that shares its credit
    (0 if it has none). Blue is the share of the outcome reward that the step earned, grey the share
    that it did not earn because the answer was wrong.

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
        selected: "question j", "step t" or "item id" to show only its lines; "" for all.
        max_rows: maximum number of lines; those that earned least are left out.
    """
    rows = _trail_rows(trajectory, settings, selected)
    kept = sorted(range(len(rows)), key=lambda n: (-rows[n].earned, n))
    drawn = [rows[n] for n in sorted(kept[:max_rows])]
    past = memory_history(trajectory)
    texts = [
        _trail_texts(row, past.at(row.found.item_id, trajectory.num_steps), trajectory)
        for row in drawn
    ]
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
        f"Evidence by question, item and step{what}",
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
    """Return the lines of the selection, in the order of the questions."""
    shares: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for part in parts_of(trajectory, settings):
        shares.setdefault((part.question, part.item_id), []).append((part.step, part.share))
    return [
        _TrailRow(j, answered, rank, found, step, share)
        for j, answered in enumerate(trajectory.questions)
        for rank, found in enumerate(answered.retrieved, start=1)
        for step, share in shares.get((j, found.item_id), [(found.steps[-1], 0.0)])
        if belongs(selected, step, found.item_id, j)
    ]


def _trail_bars(rows: Sequence[_TrailRow], notes: Sequence[str]) -> list[dict[str, Any]]:
    """Return the bars of the earned shares, with hover texts, and of the unearned shares."""
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


def _retrieval_text(found: Retrieved) -> str:
    """Return a phrase for how a retriever found an item.

    >>> _retrieval_text(Retrieved("core", None, (1,))), _retrieval_text(Retrieved("1", 1.5, (1,)))
    ('always shown', 'retrieval score 1.50')
    """
    return "always shown" if found.score is None else f"retrieval score {found.score:.2f}"


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
        f"{score_text(answered)}<br>place {row.rank} of {len(answered.retrieved)}, "
        f"{_retrieval_text(found)}, {use}<br>"
        f"written at steps {', '.join(map(str, found.steps))}<br>{paragraph(source)}",
    )


def evidence_overview(
    trajectory: Trajectory, settings: RewardSettings | None = None, window: Window | None = None
) -> go.Figure:
    """Show N_t over a whole long trajectory, in bars of equal numbers of steps.

    A click on a bar selects the step of the bar that earned most.

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
        window: first and last step that other figures show, outlined here.
    """
    earned = _contribution(trajectory, settings)
    bars, clicks, size = _overview_bars(trajectory, settings)
    first, last = window or (1, trajectory.num_steps)
    return style.from_traces(
        [bars],
        "Evidence over all steps",
        f"{sum(map(bool, earned))} of {len(earned)} steps earned evidence; the outline "
        f"marks steps {first} to {last}, which the other figures show.",
        f"Bars of the evidence N_t, {size} steps each, over {len(earned)} steps.",
        200,
        selecting_clicks("", {0: clicks}),
        xaxis=style.count_axis(max(1, len(earned))),
        yaxis={"title": {"text": "N<sub>t</sub>"}, "rangemode": "tozero"},
        shapes=[outline(x0=first - 0.5, x1=last + 0.5, yref="paper", y0=0, y1=1)],
    )


@per_trajectory
def _overview_bars(
    trajectory: Trajectory, settings: RewardSettings | None
) -> tuple[dict[str, Any], list[str], int]:
    """Return the bars of the overview, the selection of a click on each, and the steps per bar."""
    earned = [total or 0.0 for total in _contribution(trajectory, settings)]
    size = max(1, math.ceil(len(earned) / MAX_BINS))
    starts = range(0, len(earned), size)
    tops = [max(range(n, min(n + size, len(earned))), key=earned.__getitem__) for n in starts]
    bars = {
        "type": "bar",
        "name": "N_t",
        "x": [n + (size + 1) / 2 for n in starts],
        "y": style.numbers(math.fsum(earned[n : n + size]) for n in starts),
        "width": [size] * len(starts),
        "customdata": [f"steps {n + 1} to {min(n + size, len(earned))}" for n in starts],
        "hovertemplate": "%{customdata}: %{y}<extra></extra>",
        "marker": {"color": ORANGE},
    }
    return bars, [f"step {top + 1}" for top in tops], size


def evidence_heatmap(
    trajectory: Trajectory,
    settings: RewardSettings | None = None,
    selected: str | None = None,
    window: Window | None = None,
) -> go.Figure:
    """Show the share of the outcome reward that every step t earned from every question j.

    The row sums on the right are N_t (normalised evidence contribution), the bars on top the scores
    s_j. A blank cell has no evidence; a cross marks evidence that was retrieved and earned nothing.

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
        selected: the selection to highlight: "question j", "step t", "item id" or "" (see
            `selection`); `None` for a figure without selection.
        window: first and last step shown; `None` for all.
    """
    first, last = window or (1, trajectory.num_steps)
    steps = list(range(first, last + 1))
    asked = trajectory.questions
    numbers = list(range(1, len(asked) + 1))
    matrix = _matrix(trajectory, settings)[first - 1 : last]
    row_sums = [total or 0.0 for total in _contribution(trajectory, settings)]
    row_sums = row_sums[first - 1 : last]
    parts = [p for p in parts_of(trajectory, settings) if first <= p.step <= last]
    zeros = sorted(
        {(p.step, p.question + 1) for p in parts if not matrix[p.step - first][p.question]}
    )
    few = len(steps) * len(asked) <= 160
    traces = [
        _share_cells(matrix, steps, asked, few),
        _unearned_crosses(zeros, few),
        *_margin_bars([answered.score for answered in asked], steps, row_sums),
    ]
    own = [p for p in parts if belongs(selected, p.step, p.item_id, p.question)]
    if selected is not None:
        own_questions, own_steps = {p.question + 1 for p in own}, {p.step for p in own}
        traces[2] |= faded([not selected or j in own_questions for j in numbers])
        traces[3] |= faded([not selected or step in own_steps for step in steps])
    caption = _heatmap_caption(steps, row_sums)
    if window is not None:
        caption += f" Steps {first} to {last} of {trajectory.num_steps} are shown."
    return style.from_traces(
        traces,
        "Evidence by step and question",
        caption,
        f"Heatmap of {len(steps)} steps by {len(asked)} questions with the scores as bars on top "
        "and the normalised evidence contribution N_t of each step as bars on the right.",
        260 + max(160, min(16 * len(steps), 600)),
        selecting_clicks(selected, _heatmap_clicks(numbers, steps, zeros)),
        shapes=[_cell_outline(p.step, p.question + 1) for p in own] if selected else [],
        **_evidence_axes(first, last, len(asked)),
    )


def _heatmap_clicks(
    numbers: Sequence[int], steps: Sequence[int], zeros: Sequence[tuple[int, int]]
) -> dict[int, list[str]]:
    """Return what clicks select: a cell, cross or score its question, a bar of N_t its step."""
    columns = [f"question {j}" for j in numbers]
    crosses = [columns[j - 1] for _, j in zeros]
    return {0: columns, 1: crosses, 2: columns, 3: [f"step {step}" for step in steps]}


def _heatmap_caption(steps: Sequence[int], row_sums: Sequence[float]) -> str:
    """Return the caption of the heatmap."""
    best = max(range(len(steps)), key=row_sums.__getitem__, default=0)
    total = sum(row_sums)
    top = f"Step {steps[best]} contributes most, N_t = {row_sums[best]:.3g}. " if total else ""
    idle = sum(1 for value in row_sums if not value)
    return (
        f"{top}{idle} of {len(steps)} steps earned no evidence; the N_t add up to {total:.3g}. "
        "A cross: retrieved, but nothing earned (0); blank: not retrieved."
    )


def _share_cells(
    matrix: Sequence[Sequence[float | None]],
    steps: Sequence[int],
    asked: Sequence[AnsweredQuestion],
    few: bool,
) -> dict[str, Any]:
    """Return the heatmap of earned shares; with `few` cells it shows numbers and questions."""
    cells = [[style.number(value) if value else None for value in row] for row in matrix]
    heat = {
        "type": "heatmap",
        "x": list(range(1, len(asked) + 1)),
        "y": list(steps),
        "z": cells,
        "name": "share earned",
        "hovertemplate": "step %{y}, question %{x}: %{z}<extra></extra>",
        **style.magnitude_heatmap(style.largest(cells), "share of r<sub>global</sub>"),
    }
    heat["colorbar"] |= {"len": 0.76, "y": 0, "yanchor": "bottom"}
    if not few:
        return heat
    return heat | {
        "texttemplate": "%{z:.2~g}",
        "customdata": [[paragraph(answered.question.text) for answered in asked]] * len(matrix),
        "hovertemplate": "step %{y}, question %{x}: %{z}<br>%{customdata}<extra></extra>",
    }


def _unearned_crosses(zeros: Sequence[tuple[int, int]], few: bool) -> dict[str, Any]:
    """Return crosses at the (step, question) pairs, from 1, whose evidence earned nothing."""
    return {
        "type": "scatter",
        "x": [j for _, j in zeros],
        "y": [step for step, _ in zeros],
        "mode": "markers",
        "name": "retrieved, earned nothing",
        "showlegend": bool(zeros),
        "marker": {
            "symbol": "x-thin",
            "size": 8 if few else 4,
            "line": {"color": GREY, "width": 1},
        },
        "hovertemplate": "step %{y}, question %{x}: retrieved, earned nothing<extra></extra>",
    }


def _margin_bars(
    scores: Sequence[float | None], steps: Sequence[int], row_sums: Sequence[float]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the bars of the scores above the heatmap and those of N_t on its right."""
    return (
        {
            "type": "bar",
            "x": list(range(1, len(scores) + 1)),
            "y": style.numbers(scores),
            "yaxis": "y2",
            "name": "score s_j",
            "showlegend": False,
            "marker": {"color": BLUE},
            "hovertemplate": "question %{x}: score %{y}<extra></extra>",
        },
        {
            "type": "bar",
            "x": style.numbers(row_sums),
            "y": list(steps),
            "xaxis": "x2",
            "orientation": "h",
            "name": "N_t",
            "showlegend": False,
            "marker": {"color": ORANGE},
            "hovertemplate": "step %{y}: N_t = %{x}<extra></extra>",
        },
    )


def _cell_outline(step: int, question: int) -> dict[str, Any]:
    return outline(x0=question - 0.5, x1=question + 0.5, y0=step - 0.5, y1=step + 0.5)


def _evidence_axes(first: int, last: int, num_questions: int) -> dict[str, Any]:
    """Return the axes of the heatmap and of the bars above and right of it."""
    rows = style.count_axis(last - first + 1, "step t") | {"showgrid": False}
    columns = style.count_axis(num_questions, "question j") | {"showgrid": False}
    return {
        "xaxis": columns | {"domain": [0, 0.76]},
        "yaxis": rows | {"range": [last + 0.6, first - 0.6], "domain": [0, 0.73]},
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
