"""Figure of one question's retrieval, answer and failure stage, or of a list of questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import plotly.graph_objects as go

from finemem_lib.data.instance_names import instance_name
from finemem_lib.evaluation.failure_stages import STAGES, FailureStage, failure_stages
from finemem_lib.figures import style
from finemem_lib.figures.evidence import source_sentence
from finemem_lib.figures.history import memory_history
from finemem_lib.figures.selection import (
    belongs,
    score_text,
    selecting_clicks,
    stored_in,
    verdict,
)
from finemem_lib.figures.style import BLUE, GREY, ORANGE, label, paragraph
from finemem_lib.trajectory import MemoryItem, Retrieved, Trajectory

CARD_SERIES = {
    "used": (BLUE, "circle"),
    "retrieved, not used": (GREY, "circle-open"),
    "retrieved, use not known": (GREY, "square-open"),
    "answered": (BLUE, "circle"),
    "not answered": (ORANGE, "x"),
    "cannot be scored": (GREY, "square-open"),
}
"""The markers of `question_card` with colour and shape, those of items before questions."""


CARD_WIDTH = 54
"""Maximum characters per line of `question_card`, which fit on a narrow page."""


class _CardRow(NamedTuple):
    """A line of a card: its heading, its text, and optionally a marker of `series` at `value`.

    `text` is shown, `note` is the full text on hover; both are escaped.
    """

    heading: str
    text: str
    note: str
    series: str = ""
    value: float | None = None
    click: str | None = None


def question_card(
    trajectory: Trajectory,
    selected: str = "",
    max_rows: int = 16,
    stages: Sequence[FailureStage | None] | None = None,
) -> go.Figure:
    """Show one question with its retrieved items, answers and failure stage, or list questions.

    For one question the figure shows its text, accepted and given answer, score, every retrieved
    item with rank and retrieval score, and the failure stage (`failure_stages`). Otherwise it shows
    score and stage of every question; if there are too many, failed ones are preferred.

    Args:
        trajectory: the trajectory.
        selected: "question j" for one question; "step t" or "item id" for the questions that
            retrieved the item or an item of the step; "" for all.
        max_rows: maximum number of questions shown.
        stages: the result of `failure_stages` for the trajectory; `None` to compute it.

    Raises:
        ValueError: as `failure_stages`.
    """
    stages = failure_stages(trajectory) if stages is None else stages
    if selected.startswith("question "):
        place = int(selected[9:]) - 1
        rows = _question_rows(trajectory, place, stages[place])
        score = score_text(trajectory.questions[place])
        scored = "" if trajectory.questions[place].score is None else "score "
        title = f"Question {place + 1}: {_reason(stages[place])[0]}"
        caption = (
            f"Question {place + 1} of {len(stages)}, {scored}{score}: {_reason(stages[place])[1]}"
        )
        axis = "retrieval score"
    else:
        rows, caption = _question_list(trajectory, stages, selected, max_rows)
        about = selected or instance_name(trajectory)
        title = f"Failure stage of every question · {about}"
        axis = "score s<sub>j</sub>"
    lines = max((row.text.count("<br>") + 1 for row in rows), default=1)
    return style.from_traces(
        _card_traces(rows),
        label(title, 64),
        caption,
        f"Table of {len(rows)} lines; a mark at the left shows the score of each that has one.",
        140 + max(46, 16 * lines + 6) * max(len(rows), 3),
        selecting_clicks(selected, _card_clicks(rows)),
        margin={"b": 84},
        xaxis={
            "title": {"text": axis},
            "domain": [0, 0.16],
            "nticks": 4,
            "range": _card_range([row.value for row in rows if row.value is not None]),
        },
        xaxis2={"domain": [0.17, 1], "range": [0, 1], "visible": False},
        yaxis={"title": {"text": "entry"}, "showgrid": False}
        | style.lines_axis([row.heading for row in rows]),
    )


def _card_range(values: Sequence[float]) -> list[float]:
    """Return an axis range that contains the markers, from 0 if no value is negative."""
    low, high = min([0.0, *values]), max([0.0, *values])
    room = 0.08 * ((high - low) or 1)
    return style.numbers([low - room, (high if high > low else 1) + room])


def _card_traces(rows: Sequence[_CardRow]) -> list[dict[str, Any]]:
    """Return the traces: texts of the lines, and markers of every series, also of empty ones."""
    texts = {
        "type": "scatter",
        "mode": "text",
        "name": "text",
        "xaxis": "x2",
        "x": [0] * len(rows),
        "y": list(range(len(rows))),
        "text": [row.text for row in rows],
        "textposition": "middle right",
        "textfont": {"size": 12},
        "customdata": [row.note for row in rows],
        "hovertemplate": "%{customdata}<extra></extra>",
        "showlegend": False,
    }
    marks = [
        {
            "type": "scatter",
            "mode": "markers",
            "name": series,
            "x": [style.number(row.value) for row in rows if row.series == series],
            "y": [place for place, row in enumerate(rows) if row.series == series],
            "hovertemplate": "%{x}<extra></extra>",
            "cliponaxis": False,
            "showlegend": any(row.series == series for row in rows),
            "marker": {"color": color, "symbol": symbol, "size": 11},
        }
        for series, (color, symbol) in CARD_SERIES.items()
    ]
    return [texts, *marks]


def _card_clicks(rows: Sequence[_CardRow]) -> dict[int, list[str | None]]:
    """Return the selection set by a click on each point of a card."""
    clicks = {0: [row.click for row in rows]}
    for number, series in enumerate(CARD_SERIES, 1):
        clicks[number] = [row.click for row in rows if row.series == series]
    return clicks


def _reason(stage: FailureStage | None) -> tuple[str, str]:
    """Return the name of a stage and a sentence with the reason, both unescaped."""
    if stage is None:
        return "no stage", "it cannot be scored, or no accepted answer is known."
    known = "" if stage.exact else " (evidence found by the words of the answer)"
    return STAGES[stage.stage], f"{stage.reason}{known}."


def _question_rows(
    trajectory: Trajectory, place: int, stage: FailureStage | None
) -> list[_CardRow]:
    """Return the lines about one question."""
    answered = trajectory.questions[place]
    accepted = " | ".join(answered.question.answers) or "none is known"
    reply = answered.answer or "no answer"
    name, reason = _reason(stage)
    rows = [
        _text_row("question", answered.question.text),
        _text_row("accepted answers", accepted),
        _text_row("answer given", reply),
        _text_row("score", verdict(answered)),
        _text_row("failure stage" if name != "answered" else "answered", f"{name}: {reason}"),
    ]
    if stage and stage.step and stage.stage in ("lost", "not written"):
        chunk = trajectory.steps[stage.step - 1].chunk.text
        wanted = f"{answered.question.text} {accepted}"
        rows.append(
            _text_row("lost item", f"#{stage.item_id} {stage.content}")
            if stage.stage == "lost"
            else _text_row(f"chunk of step {stage.step}", source_sentence(wanted, chunk))
        )
    past = memory_history(trajectory)
    for rank, found in enumerate(answered.retrieved, 1):
        item = past.at(found.item_id, answered.asked_step)
        series = "used" if found.item_id in (answered.used or ()) else "retrieved, not used"
        if answered.used is None:
            series = "retrieved, use not known"
        rows.append(_item_row(rank, item, found, series))
    if stage and stage.stage == "not retrieved":
        where = f"missed (rank {stage.rank})" if stage.rank else "missed"
        text = (
            f"#{stage.item_id} {stage.content} (holds the answer, not retrieved; step {stage.step})"
        )
        rows.append(_text_row(where, text)._replace(click=f"item {stage.item_id}"))
    return rows


def _text_row(heading: str, text: str) -> _CardRow:
    return _CardRow(heading, paragraph(text, 150, CARD_WIDTH), paragraph(text, 600))


def _item_row(rank: int, item: MemoryItem | None, found: Retrieved, series: str) -> _CardRow:
    """Return the line of a retrieved item."""
    content = item.content if item else ""
    text = f"#{found.item_id}{stored_in(item)} {content} ({series}; step {found.steps[-1]})"
    return _text_row(f"rank {rank}", text)._replace(
        series=series, value=found.score, click=f"item {found.item_id}"
    )


def _question_list(
    trajectory: Trajectory,
    stages: Sequence[FailureStage | None],
    selected: str,
    max_rows: int,
) -> tuple[list[_CardRow], str]:
    """Return a line per question that belongs to a selection, and the caption."""
    asked = [
        j
        for j, answered in enumerate(trajectory.questions)
        if not selected
        or any(
            belongs(selected, step, found.item_id, j)
            for found in answered.retrieved
            for step in found.steps
        )
    ]
    ended = Counter(_reason(stages[j])[0] for j in asked)
    shown = sorted(
        sorted(asked, key=lambda j: _reason(stages[j])[0] == STAGES["answered"])[:max_rows]
    )
    rows = []
    for j in shown:
        answered = trajectory.questions[j]
        name, reason = _reason(stages[j])
        accepted = answered.question.answers[0] if answered.question.answers else "none is known"
        text = (
            f"{name}: {style.one_line(answered.question.text, 60)} → "
            f"{style.one_line(answered.answer or 'no answer', 30)} "
            f"(accepted: {style.one_line(accepted, 30)})"
        )
        series = "cannot be scored"
        if answered.score is not None:
            series = "answered" if name == "answered" else "not answered"
        row = _CardRow(
            f"question {j + 1}",
            paragraph(text, 150, CARD_WIDTH),
            f"{paragraph(text, 300)}<br>{paragraph(reason)}",
            series,
            answered.score or 0.0,
            f"question {j + 1}",
        )
        rows.append(row)
    counts = ", ".join(f"{name} {count}" for name, count in ended.most_common())
    cut = "" if len(shown) == len(asked) else f" ({len(shown)} shown, failed ones first)"
    return rows, f"{len(asked)} questions{cut}: {counts or 'none'}."
