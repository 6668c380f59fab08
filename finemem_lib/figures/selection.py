"""Highlight, fade and select a step, an item or a question in figures.

A selection is a text: "" (everything), "step 3", "item 7" or "question 2"; steps and questions
count from 1. `None` stands for a figure in which nothing can be selected.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finemem_lib.figures.style import INK
from finemem_lib.trajectory import AnsweredQuestion, MemoryItem, OperationOutcome, Trajectory


def belongs(
    selected: str | None, step: int | None, item_id: str | None, question: int | None
) -> bool:
    """Return whether the evidence of a step and item for a question belongs to the selection.

    Args:
        selected: the selection.
        step: the step that wrote the item, from 1.
        item_id: id of the retrieved item.
        question: position of the question, from 0.
    """
    kind, _, key = (selected or "").partition(" ")
    own = {
        "question": None if question is None else str(question + 1),
        "step": str(step),
        "item": item_id,
    }
    return not kind or own[kind] == key


def selected_items(trajectory: Trajectory, selected: str | None) -> set[str]:
    """Return the ids of the items of a selection.

    They are the items that a selected question retrieved, that a selected step wrote, or the
    selected item; none for "" and `None`.

    Args:
        trajectory: the trajectory to which the selection refers.
        selected: the selection.
    """
    kind, _, key = (selected or "").partition(" ")
    if kind == "question":
        return {found.item_id for found in trajectory.questions[int(key) - 1].retrieved}
    if kind == "step":
        return {item.item_id for item in trajectory.steps[int(key) - 1].delta.written}
    return {key} if kind else set()


def clicks_on(control: str, points: Mapping[int, Sequence[Any]]) -> dict[str, Any]:
    """Return ``layout.meta["clicks"]`` of a figure: the control that a click sets, and its values.

    Args:
        control: name of the control.
        points: by number of each clickable trace, one value per point; `None` if a click does
            nothing.
    """
    return {
        "control": control,
        "points": {
            str(trace): values if isinstance(values, list) else list(values)
            for trace, values in points.items()
        },
    }


def selecting_clicks(
    selected: str | None, points: Mapping[int, Sequence[Any]]
) -> dict[str, Any] | None:
    """Return `clicks_on` for the control "selected"; `None` for a figure without selection.

    Args:
        selected: the selection.
        points: as for `clicks_on`.
    """
    return None if selected is None else clicks_on("selected", points)


def faded(chosen: Sequence[bool]) -> dict[str, Any]:
    """Return the trace properties that fade the points that are not chosen.

    If all are chosen, all are listed, because a plotly frame cannot remove a property.

    Args:
        chosen: whether each point of the trace is chosen.
    """
    return {
        "selectedpoints": [place for place, own in enumerate(chosen) if own],
        "unselected": {"marker": {"opacity": 0.15}},
    }


def outline(**corners: Any) -> dict[str, Any]:
    """Return the shape of a rectangle around a selection.

    Args:
        corners: `x0`, `x1`, `y0`, `y1` and other properties of a plotly shape.
    """
    return {"type": "rect", "line": {"color": INK, "width": 2}, "layer": "above", **corners}


def step_outline(step: int, half: float = 0.5) -> dict[str, Any]:
    """Return the `outline` of a step over the whole height of a figure.

    Args:
        step: the step, from 1.
        half: half of the width, in steps.
    """
    return outline(x0=step - half, x1=step + half, yref="paper", y0=0, y1=1)


def outcome_name(outcome: OperationOutcome) -> str:
    """Return the kind of an applied operation, "invalid" for a rejected one.

    Args:
        outcome: the outcome of an operation.
    """
    return outcome.operation.kind if outcome.operation and outcome.applied else "invalid"


def stored_in(item: MemoryItem | None) -> str:
    """Return the layer of an item, such as " (core memory)"; "" for a flat memory.

    Args:
        item: an item, `None` if it is not known.
    """
    return "" if item is None or item.store == "flat" else f" ({item.store} memory)"


def score_text(answered: AnsweredQuestion) -> str:
    """Format the score of an answer with two decimals, or state that it cannot be scored.

    Args:
        answered: an answered question.
    """
    return "cannot be scored" if answered.score is None else f"{answered.score:.2f}"


def verdict(answered: AnsweredQuestion) -> str:
    """Return a mark for right (a score of at least 0.5) or wrong, and the score of an answer.

    Args:
        answered: an answered question.

    >>> from finemem_lib.data.worked_example import worked_example
    >>> [verdict(answered) for answered in worked_example().questions]
    ['✓ 1.00', '✓ 0.50']
    """
    if answered.score is None:
        return "? no score"
    return f"{'✓' if answered.score >= 0.5 else '✗'} {answered.score:.2f}"
