"""Explorers of one trajectory: its evidence, and its memory step by step."""

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
"""The same of a long trajectory."""

EVIDENCE_FRAMES = {"question": 16, "step": 16, "item": 12}
"""Most selections of each kind with frames in the static form; each adds some 20 kB."""


LONG = 120
"""Steps from which figures show a window of a trajectory, and menus what has evidence only."""

WINDOW = 40
"""Steps in the window."""

MAX_LANES = 14
"""Items in the timeline: as many as a screen shows at once."""


def evidence_explorer(
    trajectory: Trajectory, settings: RewardSettings | None = None, max_questions: int = 10
) -> Explorer:
    """Return the explorer of evidence: who earned which answer.

    A question, step or item is selected in the menu or by a click, and every figure highlights what
    belongs to it. Of more than `LONG` steps, the heatmap and the timeline show the neighbourhood of
    the selected step, an overview the place of it, and the menu has the steps and items that an
    answer touched.

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
        max_questions: most questions in the Sankey diagram, in addition to the selected one.

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
    """Return what can be selected: all, or the steps `touched` and the items retrieved or named."""
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
    """Return `WINDOW` steps around what is selected; around its last evidence, if it has several.

    Without a selection, around the last step of the trajectory with evidence.
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
    """Return the explorer of the memory M_t, step by step from the empty start to M_T.

    It opens at the first step that did more than insert. Of more than `LONG` steps, the growth
    shows the neighbourhood of the step, and an overview the place of it.

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
