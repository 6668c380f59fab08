"""What belongs to a selected step, item or question: highlighted, faded, clickable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from finemem_lib.figures.style import INK
from finemem_lib.trajectory import AnsweredQuestion, Trajectory


def _belongs(
    selected: str | None, step: int | None, item_id: str | None, question: int | None
) -> bool:
    """Return whether evidence on its way from a step over an item to a question is selected."""
    kind, _, key = (selected or "").partition(" ")
    own = {
        "question": None if question is None else str(question + 1),
        "step": str(step),
        "item": item_id,
    }
    return not kind or own[kind] == key


def _selected_items(trajectory: Trajectory, selected: str | None) -> set[str]:
    """Return the items that a question retrieved, a step wrote, or that are selected themselves."""
    kind, _, key = (selected or "").partition(" ")
    if kind == "question":
        return {found.item_id for found in trajectory.questions[int(key) - 1].retrieved}
    if kind == "step":
        return {item.item_id for item in trajectory.steps[int(key) - 1].delta.written}
    return {key} if kind else set()


def _clicks(selected: str | None, points: Mapping[int, Sequence[Any]]) -> dict[str, Any] | None:
    if selected is None:
        return None
    return {
        "control": "selected",
        "points": {str(trace): list(values) for trace, values in points.items()},
    }


def _faded(chosen: Sequence[bool]) -> dict[str, Any]:
    """Return the properties of a trace that fade its other points; all are named where all are
    chosen, since a frame cannot take a property away."""
    return {
        "selectedpoints": [place for place, own in enumerate(chosen) if own],
        "unselected": {"marker": {"opacity": 0.15}},
    }


def _outline(**corners: Any) -> dict[str, Any]:
    return {"type": "rect", "line": {"color": INK, "width": 2}, "layer": "above", **corners}


def _outcome_name(outcome: Any) -> str:
    return outcome.operation.kind if outcome.operation and outcome.applied else "invalid"


def _score(answered: AnsweredQuestion) -> str:
    return "cannot be scored" if answered.score is None else f"{answered.score:.2f}"


def _verdict(answered: AnsweredQuestion) -> str:
    if answered.score is None:
        return "? no score"
    return f"{'✓' if answered.score >= 0.5 else '✗'} {answered.score:.2f}"
