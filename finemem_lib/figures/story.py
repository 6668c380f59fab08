"""Figures of text: the chunk of a step, its operations, and the answer that depends on it."""

from __future__ import annotations

from collections.abc import Sequence

import plotly.graph_objects as go

from finemem_lib.figures import style
from finemem_lib.figures.evidence import evidence_parts
from finemem_lib.figures.selection import verdict
from finemem_lib.figures.style import label, paragraph
from finemem_lib.rewards import RewardSettings
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, OperationOutcome, Trajectory

LINE = 40
"""Maximum characters per line of `text_rows`, which fit on a page of 640 pixels."""

MOST_LINES = 5
"""Maximum lines of a list of operations or items; its last line counts the omitted ones."""


def text_rows(
    rows: Sequence[tuple[str, Sequence[str]]], title: str, caption: str, alt: str
) -> go.Figure:
    """Show named texts below each other.

    Args:
        rows: name and lines of each text, escaped, at least one line.
        title: title of the figure, escaped.
        caption: caption of the figure.
        alt: alt text of the figure.
    """
    middles, end = [], 0.0
    for _, lines in rows:
        middles.append(end + len(lines) / 2)
        end += len(lines) + 0.7
    texts = ["<br>".join(lines) for _, lines in rows]
    return style.from_traces(
        [
            {
                "type": "scatter",
                "mode": "text",
                "name": "text",
                "x": [0] * len(rows),
                "y": middles,
                "meta": {"x": list(range(1, len(rows) + 1))},
                "text": texts,
                "textposition": "middle right",
                "textfont": {"size": 12},
                "customdata": texts,
                "hovertemplate": "%{customdata}<extra></extra>",
                "cliponaxis": False,
                "showlegend": False,
            }
        ],
        title,
        caption,
        alt,
        round(64 + 16 * end),
        margin={"t": 48, "b": 8},
        xaxis={"title": {"text": "row"}, "visible": False, "range": [-0.01, 1]},
        yaxis={
            "title": {"text": ""},
            "tickvals": middles,
            "ticktext": [f"<b>{name}</b>" for name, _ in rows],
            "range": [end, -0.5],
            "showgrid": False,
            "zeroline": False,
            "ticks": "",
        },
    )


def step_story(
    trajectory: Trajectory,
    step: int,
    without: Sequence[AnsweredQuestion] | None = None,
    settings: RewardSettings | None = None,
) -> go.Figure:
    """Show the chunk and operations of a step, and the answer that changes without the step.

    The answer is the one whose score changes most; if `without` is `None`, the one for which the
    step gave most evidence.

    Args:
        trajectory: the trajectory.
        step: the step, from 1.
        without: the global questions in their order, answered on the memory without this step
            (`None`: they were not answered again).
        settings: how evidence is attributed.
    """
    what = trajectory.steps[step - 1]
    sentence, answered, again = (
        _most_evidence(trajectory, step, settings)
        if without is None
        else _most_changed(trajectory.questions, without, step)
    )
    answer = ["none"] if answered is None else _two_answers(answered, again, step)
    return text_rows(
        [
            ("chunk", _lines(what.chunk.text, 200)),
            ("operations", listed(written(trajectory, step))),
            ("answer with most evidence" if without is None else "changed answer", answer),
        ],
        f"Step {step}: chunk, operations and answer",
        sentence,
        f"Three texts about step {step}: its chunk, its operations, and a question with its answer "
        "with and without the step.",
    )


def seen_by_group(group: Sequence[Trajectory], step: int) -> go.Figure:
    """Show the memory and the chunk that a group of rollouts reads at a step.

    Memories differ between rollouts with different earlier operations; the first one is shown.

    Args:
        group: the rollouts of one instance.
        step: the step, from 1.
    """
    memories = [[item.content for item in one.memory_at(step - 1)] for one in group]
    distinct = len({*map(tuple, memories)})
    what = group[0].steps[step - 1]
    return text_rows(
        [
            ("memory", listed([f"{n}: {text}" for n, text in enumerate(memories[0], 1)])),
            ("chunk", _lines(what.chunk.text, 200)),
        ],
        f"Prompt of step {step}: memory and chunk",
        f"A memory of {len(memories[0])} items and a chunk of {what.chunk.tokens} tokens. "
        + (
            f"All {len(group)} completions answer this one prompt."
            if distinct == 1
            else f"The {len(group)} rollouts hold {distinct} different memories by now; that of "
            "the first is shown."
        ),
        f"Two texts: the memory before step {step}, and the chunk.",
    )


def _lines(text: str, limit: int) -> list[str]:
    return paragraph(text, limit, LINE).split("<br>") if text.strip() else ["nothing"]


def listed(texts: Sequence[str]) -> list[str]:
    """Return untrusted texts as the lines of a row, at most `MOST_LINES`.

    Args:
        texts: the texts, one per line.

    >>> listed(["INSERT a < b"]), listed([])
    (['INSERT a &lt; b'], ['nothing'])
    """
    most = MOST_LINES if len(texts) <= MOST_LINES else MOST_LINES - 1
    more = [f"and {len(texts) - most} more"] if len(texts) > most else []
    return [label(text, LINE) for text in texts[:most]] + more or ["nothing"]


_Answers = tuple[str, AnsweredQuestion | None, AnsweredQuestion | None]
"""A sentence, a question as answered, and as answered without the step, if known."""


def _two_answers(
    answered: AnsweredQuestion, again: AnsweredQuestion | None, step: int
) -> list[str]:
    """Return a question, its answers with and without a step, and the accepted answers."""
    texts = [
        answered.question.text,
        f"with step {step}: {answered.answer or '(no answer)'} {verdict(answered)}",
        "without it: not read again, no reasoning agent is given"
        if again is None
        else f"without it: {again.answer or '(no answer)'} {verdict(again)}",
        f"accepted: {' or '.join(answered.question.answers) or 'not known'}",
    ]
    return [label(text, LINE) for text in texts]


def _most_changed(
    before: Sequence[AnsweredQuestion], without: Sequence[AnsweredQuestion], step: int
) -> _Answers:
    """Return a sentence about all answers, and the one whose score changes most."""
    changed = [
        (old, new)
        for old, new in zip(before, without, strict=True)
        if (old.answer, old.score) != (new.answer, new.score)
    ]
    means = [style.mean(a.score for a in answers) for answers in (before, without)]
    outcome = " → ".join("not scored" if mean is None else f"{mean:.3g}" for mean in means)
    sentence = (
        f"Without step {step}, {len(changed)} of {len(before)} answers change; the outcome reward "
        f"goes {outcome}."
    )
    return sentence, *max(changed, key=lambda pair: abs(score_change(*pair)), default=(None, None))


def score_change(old: AnsweredQuestion, new: AnsweredQuestion) -> float:
    """Return the change in the score of a question, 0.0 if one of the scores is `None`.

    Args:
        old: the answered question.
        new: the same question, answered again.
    """
    return 0.0 if old.score is None or new.score is None else new.score - old.score


def _most_evidence(trajectory: Trajectory, step: int, settings: RewardSettings | None) -> _Answers:
    """Return a sentence about all answers, and the one for which a step gave most evidence."""
    earned: dict[int, tuple[bool, float]] = {}  # whether the answer used the item, and the share
    for part in evidence_parts(trajectory, settings):
        if part.step == step:
            answered = trajectory.questions[part.question]
            own = part.item_id in (answered.used or ()), part.share * (answered.score or 0.0)
            earned[part.question] = max(own, earned.get(part.question, own))
    sentence = (
        f"Items of step {step} were retrieved for {len(earned)} of {len(trajectory.questions)} "
        "questions. What the answers are without the step is not known: no reasoning agent is "
        "given that could read again."
    )
    best = max(earned, key=earned.__getitem__, default=None)
    return sentence, None if best is None else trajectory.questions[best], None


def written(trajectory: Trajectory, step: int) -> list[str]:
    """Return the operations of a step, one untrusted text each.

    An updated or deleted item is named by its former content, because ids differ between rollouts.

    Args:
        trajectory: the trajectory.
        step: the step, from 1.
    """
    held = {item.item_id: item for item in trajectory.memory_at(step - 1)}
    return [_operation_text(outcome, held) for outcome in trajectory.steps[step - 1].outcomes]


def _operation_text(outcome: OperationOutcome, held: dict[str, MemoryItem]) -> str:
    operation = outcome.operation
    if operation is None or not outcome.applied:
        kind = "" if operation is None else f" {operation.kind}"
        return f"invalid{kind}: {outcome.reason}"
    target = held.get(operation.item_id or "")
    old = target.content if target else f"item {operation.item_id}" if operation.item_id else ""
    if operation.kind == "UPDATE":
        return f"UPDATE {operation.content} (was: {old})"
    return " ".join(filter(None, (operation.kind, operation.content, old)))
