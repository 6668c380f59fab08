"""Explorers of one trajectory: its evidence, and its memory after every step."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

from finemem_lib.evaluation.failure_stages import FailureStage, failure_stages
from finemem_lib.explorers.explorer import Control, Explorer, Views
from finemem_lib.figures.evidence import (
    EvidencePart,
    Window,
    evidence_heatmap,
    evidence_overview,
    evidence_parts,
    evidence_trail,
)
from finemem_lib.figures.evidence_flow import evidence_sankey
from finemem_lib.figures.memory import (
    first_change,
    memory_growth,
    memory_state,
    operation_timeline,
)
from finemem_lib.figures.question_cards import question_card
from finemem_lib.figures.selection import belongs, stored_in
from finemem_lib.rewards import RewardSettings
from finemem_lib.trajectory import Trajectory

LONG_FRAMES = {"question": 8, "step": 4, "item": 4}
"""The values of `EVIDENCE_FRAMES` for a long trajectory."""

EVIDENCE_FRAMES = {"question": 16, "step": 16, "item": 12}
"""Maximum selections per kind with frames in the static form; each adds about 20 kB."""


LONG = 120
"""Trajectories with more steps are shown in a window, with only steps and items with evidence in
menus."""

WINDOW = 40
"""Number of steps in the window."""

MAX_LANES = 14
"""Items in the timeline: as many as a screen shows at once."""


def evidence_explorer(
    trajectory: Trajectory, settings: RewardSettings | None = None, max_questions: int = 10
) -> Explorer:
    """Return the explorer of evidence: the credit of steps and items for questions.

    A menu or a click selects a question, step or item, and every figure highlights its evidence.
    For more than `LONG` steps, the heatmap and the timeline show a window around the selected step,
    an overview shows where this is, and the menu lists only steps and items related to an answer.

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
        max_questions: maximum questions in the Sankey diagram, in addition to the selected one.

    Raises:
        ValueError: as `rewards.evidence_contribution`.
    """
    asked = range(len(trajectory.questions))
    long = trajectory.num_steps > LONG
    stages = failure_stages(trajectory)
    parts = evidence_parts(trajectory, settings)
    touched = {part.step for part in parts} | {one.step for one in stages if one}
    named = {one.item_id for one in stages if one}
    options = _options(trajectory, touched if long else None, named)

    def build(selected: str) -> Views:
        shown = list(asked[:max_questions])
        kind, _, key = selected.partition(" ")
        if kind == "question" and int(key) > len(shown):
            shown.append(int(key) - 1)
        window = _window(trajectory, selected, parts, stages) if long else None
        views = {"overview": evidence_overview(trajectory, settings, window)} if long else {}
        return views | {
            "question": question_card(trajectory, selected, stages=stages),
            "trail": evidence_trail(trajectory, settings, selected),
            "flow": evidence_sankey(trajectory, shown, settings, selected=selected),
            "heatmap": evidence_heatmap(trajectory, settings, selected, window),
            "timeline": operation_timeline(trajectory, MAX_LANES, selected, window),
        }

    return Explorer(
        "Evidence explorer",
        (
            Control(
                "selected", "selected", options, static=LONG_FRAMES if long else EVIDENCE_FRAMES
            ),
        ),
        build,
    )


def _options(
    trajectory: Trajectory, touched: Collection[int | None] | None, named: Collection[str | None]
) -> list[tuple[str, str]]:
    """Return the options of the menu.

    They are everything and all questions, steps and items; unless `touched` is `None`, only the
    steps in `touched` and the items that were retrieved or are in `named`.
    """
    ever = {item.item_id: item for step in trajectory.steps for item in step.delta.written}
    hits = Counter(found.item_id for a in trajectory.questions for found in a.retrieved)
    return [
        ("everything", ""),
        *(
            (f"question {j + 1}: {trajectory.questions[j].question.text}", f"question {j + 1}")
            for j in range(len(trajectory.questions))
        ),
        *(
            (f"step {step.step}: {step.chunk.text}", f"step {step.step}")
            for step in trajectory.steps
            if touched is None or step.step in touched
        ),
        *(
            (f"item #{item_id}{stored_in(item)}: {item.content}", f"item {item_id}")
            for item_id, item in sorted(ever.items(), key=lambda item: -hits[item[0]])
            if touched is None or hits[item_id] or item_id in named
        ),
    ]


def _window(
    trajectory: Trajectory,
    selected: str,
    parts: Sequence[EvidencePart],
    stages: Sequence[FailureStage | None],
) -> Window:
    """Return a window of `WINDOW` steps around the last evidence of the selection.

    Without a selection, it is the last evidence of the trajectory.
    """
    steps = [p.step for p in parts if belongs(selected, p.step, p.item_id, p.question)]
    kind, _, key = selected.partition(" ")
    if kind == "step":
        steps = [int(key)]
    elif kind == "question" and (stage := stages[int(key) - 1]) and stage.step:
        steps = [stage.step]
    elif kind == "item" and not steps:
        steps = [one.step for one in stages if one and one.item_id == key and one.step]
    middle = max(steps, default=trajectory.num_steps)
    return _around(middle, trajectory.num_steps)


def _around(step: int, num_steps: int) -> Window:
    """Return `WINDOW` steps around a step."""
    first = max(1, min(step - WINDOW // 2, num_steps - WINDOW + 1))
    return first, min(num_steps, first + WINDOW - 1)


def memory_player(trajectory: Trajectory) -> Explorer:
    """Return the explorer of the memory M_t after every step, from the empty memory to M_T.

    It opens at the first step that updated or removed an item, if any. For more than `LONG` steps,
    the growth is shown in a window around the step, and an overview shows where this is.

    Args:
        trajectory: the trajectory.
    """
    long = trajectory.num_steps > LONG

    def build(step: int) -> Views:
        window = _around(step, trajectory.num_steps) if long else None
        views = {
            "memory": memory_state(trajectory, step),
            "growth": memory_growth(trajectory, step, window),
        }
        return views | ({"overview": memory_growth(trajectory, step)} if long else {})

    return Explorer(
        "Memory player",
        (
            Control(
                "step",
                "after step t",
                [(str(step), step) for step in range(trajectory.num_steps + 1)],
                first_change(trajectory),
                kind="slider",
                static=12 if long else True,
                play=True,
            ),
        ),
        build,
    )
