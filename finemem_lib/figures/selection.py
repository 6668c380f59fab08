"""What belongs to a selected step, item or question: highlighted, faded, clickable.

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
    """Return whether evidence on its way from a step over an item to a question is selected.

    Args:
        selected: the selection.
        step: the step that wrote the item.
        item_id: the item that was retrieved.
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
    """Return the items that a question retrieved, a step wrote, or that are selected themselves.

    Args:
        trajectory: the trajectory that the selection is about.
        selected: the selection; none of its items for "" and `None`.
    """
    kind, _, key = (selected or "").partition(" ")
    if kind == "question":
        return {found.item_id for found in trajectory.questions[int(key) - 1].retrieved}
    if kind == "step":
        return {item.item_id for item in trajectory.steps[int(key) - 1].delta.written}
    return {key} if kind else set()


def clicks_on(control: str, points: Mapping[int, Sequence[Any]]) -> dict[str, Any]:
    """Return what ``layout.meta["clicks"]`` of a figure says: which control a click sets, to what.

    Args:
        control: name of the control.
        points: a value per point of each clickable trace, by the trace's number; `None` where a
            click does nothing.
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
    """Return `clicks_on` the control "selected"; `None` for a figure without selection.

    Args:
        selected: the selection.
        points: as for `clicks_on`.
    """
    return None if selected is None else clicks_on("selected", points)


def faded(chosen: Sequence[bool]) -> dict[str, Any]:
    """Return the trace properties that fade the points which are not chosen.

    All points are named where all are chosen, since a frame cannot take a property away.

    Args:
        chosen: for every point of the trace whether it is chosen.
    """
    return {
        "selectedpoints": [place for place, own in enumerate(chosen) if own],
        "unselected": {"marker": {"opacity": 0.15}},
    }


def outline(**corners: Any) -> dict[str, Any]:
    """Return the shape of a rectangle around what is selected.

    Args:
        corners: `x0`, `x1`, `y0`, `y1` and other properties of a plotly shape.
    """
    return {"type": "rect", "line": {"color": INK, "width": 2}, "layer": "above", **corners}


def step_outline(step: int, half: float = 0.5) -> dict[str, Any]:
    """Return the `outline` of a step over the whole height of a figure.

    Args:
        step: the step, from 1.
        half: half of its width, in steps.
    """
    return outline(x0=step - half, x1=step + half, yref="paper", y0=0, y1=1)


def outcome_name(outcome: OperationOutcome) -> str:
    """Return the kind of an operation that was applied, "invalid" of any other.

    Args:
        outcome: an operation as the memory took or refused it.
    """
    return outcome.operation.kind if outcome.operation and outcome.applied else "invalid"


def stored_in(item: MemoryItem | None) -> str:
    """Return the layer that holds an item, in brackets after a space; "" of a flat memory.

    Args:
        item: an item, or `None` where it is not known.
    """
    return "" if item is None or item.store == "flat" else f" ({item.store} memory)"


def score_text(answered: AnsweredQuestion) -> str:
    """Return the score of an answer with two digits, or that it cannot be scored.

    Args:
        answered: an answered question.
    """
    return "cannot be scored" if answered.score is None else f"{answered.score:.2f}"


def verdict(answered: AnsweredQuestion) -> str:
    """Return a mark (right from a score of 0.5) and the score of an answer.

    Args:
        answered: an answered question.

    >>> from finemem_lib.example import worked_example
    >>> [verdict(answered) for answered in worked_example().questions]
    ['✓ 1.00', '✓ 0.50']
    """
    if answered.score is None:
        return "? no score"
    return f"{'✓' if answered.score >= 0.5 else '✗'} {answered.score:.2f}"
