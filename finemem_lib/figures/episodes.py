"""Figure that compares rollouts of one instance before and after training, by sentence."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib.data.sentences import sentences
from finemem_lib.figures import style
from finemem_lib.figures.evidence import source_sentence
from finemem_lib.figures.rollouts import reward_text
from finemem_lib.figures.style import BLUE, GREY, ORANGE, PALE, label, paragraph
from finemem_lib.rewards import outcome_reward
from finemem_lib.text import words
from finemem_lib.trajectory import Question, Trajectory


def episode_before_after(
    before: Sequence[Trajectory],
    after: Sequence[Trajectory],
    max_sentences: int = 32,
    max_questions: int = 12,
) -> go.Figure:
    """Show rollouts of one instance side by side, from before and after training.

    The figure marks the sentences of the stream that each rollout stored, and the questions that it
    answered. An item is assigned to the sentence of its chunk with which it shares most words. A
    sentence is needed (◆) if it contains an accepted answer of a global question and its step is
    among the known evidence.

    Args:
        before: rollouts of the manager before training.
        after: rollouts of the trained manager.
        max_sentences: maximum number of sentences shown; needed ones are preferred.
        max_questions: maximum number of questions shown, from the first.

    Raises:
        ValueError: the trajectories are of several instances, or there are none.
    """
    columns = _columns(before, after)
    read = [
        (step.step, place, text)
        for step in columns[0].steps
        for place, text in enumerate(sentences(step.chunk.text))
    ]
    needed = needed_sentences(columns[0])
    chosen = sorted(sorted(read, key=lambda row: row[:2] not in needed)[:max_sentences])
    asked = [answered.question for answered in columns[0].questions][:max_questions]
    outcomes = [_sentence_outcomes(trajectory) for trajectory in columns]
    fig = _matrix(chosen, needed, asked)
    rows = {(step, place): row for row, (step, place, _) in enumerate(chosen)}
    xs = [number + (0.5 if number > len(before) else 0) for number in range(1, len(columns) + 1)]
    for name, points in _marks(columns, xs, outcomes, rows, len(asked)).items():
        if points:
            _draw_marks(fig, name, points)
    fig.add_vline(x=len(before) + 0.75, line={"color": GREY, "dash": "dot", "width": 1})
    _name_rollouts(fig, xs, before, after)
    sides = [
        f"{name} training {_average(columns[part], outcomes[part], needed)}"
        for name, part in (("before", slice(len(before))), ("after", slice(len(before), None)))
    ]
    cut = "" if len(chosen) == len(read) else f" ({len(chosen)} of {len(read)} sentences shown)"
    return style.finish(
        fig,
        "Sentences kept and answers, before and after training",
        f"On average {sides[0]}; {sides[1]}{cut}. ◆ marks sentences that a question needs.",
        f"Dot matrix of {len(chosen)} sentences and {len(asked)} questions by {len(before)} "
        f"rollouts before and {len(after)} after training: kept, lost or not stored; answered "
        "right or not.",
        210 + 22 * (len(chosen) + len(asked)),
        margin={"t": 110, "b": 76},
    )


def _columns(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> list[Trajectory]:
    """Return the rollouts of both sides; raise ValueError unless all are of one instance."""
    columns = [*before, *after]
    names = sorted({trajectory.instance_id for trajectory in columns})
    if len(names) != 1 or not before or not after:
        raise ValueError(
            f"episode_before_after: got {len(before)} and {len(after)} trajectories of "
            f"{names or 'no instance'}, expected at least one each of the same instance"
        )
    return columns


def _matrix(
    chosen: Sequence[tuple[int, int, str]], needed: Collection[Place], asked: Sequence[Question]
) -> go.Figure:
    """Return empty panels with named lines: sentences above, questions below."""
    fig = make_subplots(
        rows=2,
        cols=1,
        shared_xaxes=True,
        vertical_spacing=0.05,
        row_heights=[max(len(chosen), 1), max(len(asked), 1)],
    )
    sentence_names = [
        f"{'◆ ' if (step, place) in needed else ''}{step} · {label(text, 34)}"
        for step, place, text in chosen
    ]
    questions = [label(question.text, 38) for question in asked]
    fig.update_yaxes(style.lines_axis(sentence_names), title_text="step and sentence", row=1, col=1)
    fig.update_yaxes(style.lines_axis(questions), title_text="question", row=2, col=1)
    return fig


def _draw_marks(fig: go.Figure, name: str, points: Sequence[tuple[float, int, str]]) -> None:
    """Draw the marks of one name of `_OUTCOMES`, given as x, y and hover text."""
    color, symbol, size, row = _OUTCOMES[name]
    has_notes = bool(points[0][2])
    fig.add_scatter(
        x=[x for x, _, _ in points],
        y=[y for _, y, _ in points],
        mode="markers",
        name=name,
        row=row,
        col=1,
        customdata=[note for *_, note in points] if has_notes else None,
        hovertemplate="%{customdata}<extra></extra>" if has_notes else None,
        marker={
            "color": color,
            "symbol": symbol,
            "size": size,
            "line": {"width": 2, "color": color},
        },
    )


def _name_rollouts(
    fig: go.Figure,
    xs: Sequence[float],
    before: Sequence[Trajectory],
    after: Sequence[Trajectory],
) -> None:
    """Write each rollout's name and outcome reward above its column."""
    heads = [
        f"{side} {number}<br>r = {reward_text(outcome_reward(trajectory), '.2f')}"
        for side, trajectories in (("before", before), ("after", after))
        for number, trajectory in enumerate(trajectories, start=1)
    ]
    fig.update_xaxes(
        tickvals=list(xs),
        ticktext=heads,
        range=[0.4, xs[-1] + 0.6],
        showgrid=False,
        zeroline=False,
    )
    fig.update_xaxes(showticklabels=True, side="top", row=1, col=1)
    fig.update_xaxes(
        showticklabels=False, title_text="rollout (r: its outcome reward)", row=2, col=1
    )


def _marks(
    columns: Sequence[Trajectory],
    xs: Sequence[float],
    outcomes: Sequence[Outcomes],
    rows: Mapping[Place, int],
    questions: int,
) -> dict[str, list[tuple[float, int, str]]]:
    """Return the marks of sentences and answers (x, y, hover text) by name of `_OUTCOMES`."""
    marks: dict[str, list[tuple[float, int, str]]] = {name: [] for name in _OUTCOMES}
    for x, trajectory, outcome in zip(xs, columns, outcomes, strict=True):
        for place, row in rows.items():
            name, note = outcome.get(place, ("not stored", ""))
            marks[name].append((x, row, note))
        for j, answered in enumerate(trajectory.questions[:questions]):
            name = (
                "not scored"
                if answered.score is None
                else "answer right"
                if answered.score >= 0.5
                else "answer not right"
            )
            marks[name].append((x, j, f"answer: {label(answered.answer, 60)}"))
    return marks


def _average(
    trajectories: Sequence[Trajectory], outcomes: Sequence[Outcomes], needed: Collection[Place]
) -> str:
    """Return a text with the mean number of sentences kept and the mean outcome reward."""
    kept = [
        [place for place, (outcome, _) in found.items() if outcome == "kept to the end"]
        for found in outcomes
    ]
    useful = style.mean(sum(place in needed for place in places) for places in kept) or 0.0
    other = style.mean(sum(place not in needed for place in places) for places in kept) or 0.0
    reward = style.mean(outcome_reward(trajectory) for trajectory in trajectories)
    return (
        f"{useful:.3g} of {len(needed)} needed sentences and {other:.3g} others were kept, "
        f"outcome reward {reward_text(reward, '.2f')}"
    )


Place = tuple[int, int]
"""A sentence of the stream: its step from 1, and its position in the chunk from 0."""

Outcomes = Mapping[Place, tuple[str, str]]
"""Outcome of every stored sentence: a name of `_OUTCOMES`, and a note."""

_OUTCOMES = {
    "kept to the end": (BLUE, "circle", 11, 1),
    "stored, then lost": (ORANGE, "x-thin", 9, 1),
    "not stored": (PALE, "circle", 3, 1),
    "answer right": (BLUE, "square", 11, 2),
    "answer not right": (ORANGE, "x-thin", 9, 2),
    "not scored": (GREY, "square-open", 9, 2),
}
"""Outcomes of sentences and answers, with colour, symbol, size and panel."""


def needed_sentences(trajectory: Trajectory) -> set[Place]:
    """Return the sentences that contain the answers of the global questions.

    There is at most one per question and evidence step, or per question if its evidence is not
    known.

    Args:
        trajectory: the trajectory.

    Returns:
        The step (from 1) and the position in its chunk (from 0) of each sentence.
    """
    found: set[Place] = set()
    for question in (answered.question for answered in trajectory.questions):
        wanted = set(words(f"{question.text} {' '.join(question.answers)}"))
        holding = [
            (len(wanted & shared) / len(shared), step.step, place)
            for step in trajectory.steps
            if question.evidence_steps is None or step.step in question.evidence_steps
            for place, text in enumerate(sentences(step.chunk.text))
            if any(answer and answer in text for answer in question.answers)
            and (shared := set(words(text)))
        ]
        if question.evidence_steps is None:
            best = [max(holding)] if holding else []
        else:
            best = [
                max(row for row in holding if row[1] == step)
                for step in {row[1] for row in holding}
            ]
        found |= {(step, place) for _, step, place in best}
    return found


def _sentence_outcomes(trajectory: Trajectory) -> Outcomes:
    final = {item.item_id: item for item in trajectory.final_memory()}
    found: dict[Place, tuple[str, str]] = {}
    for step in trajectory.steps:
        texts = sentences(step.chunk.text)
        for item in step.delta.written:
            source = source_sentence(item.content, step.chunk.text)
            if source not in texts:
                continue
            kept = final.get(item.item_id) == item
            name = "kept to the end" if kept else "stored, then lost"
            end = "" if kept else f"<br>{_end(trajectory, item.item_id, step.step)}"
            key = (step.step, texts.index(source))
            if kept or key not in found:
                found[key] = (
                    name,
                    (
                        f"{item.lineage[-1].kind} #{label(item.item_id, 8)}: "
                        f"{paragraph(item.content)}{end}"
                    ),
                )
    return found


def _end(trajectory: Trajectory, item_id: str, written: int) -> str:
    """Return how the version of an item written at step `written` was lost."""
    for step in trajectory.steps[written:]:
        if item_id in step.delta.removed:
            return f"deleted at step {step.step}"
        if item_id in step.delta.evicted:
            return f"pushed out at step {step.step}"
        if any(item.item_id == item_id for item in step.delta.written):
            return f"overwritten at step {step.step}"
    return f"gone at step {written}"  # written and removed by the same step
