"""Explorers of one trajectory: its evidence, and its memory step by step."""

from __future__ import annotations

from collections import Counter

from finemem_lib.explorers.explorer import Control, Explorer, Views
from finemem_lib.figures.evidence import evidence_heatmap, evidence_sankey, evidence_trail
from finemem_lib.figures.memory import memory_growth, memory_state, operation_timeline
from finemem_lib.rewards import RewardSettings
from finemem_lib.trajectory import Trajectory

EVIDENCE_FRAMES = {"question": 16, "step": 16, "item": 32}
"""Most selections of each kind with frames in the static form; all of a toy episode have them."""


def evidence_explorer(
    trajectory: Trajectory, settings: RewardSettings | None = None, max_questions: int = 10
) -> Explorer:
    """Return the explorer of evidence: who earned which answer.

    A question, step or item is selected in the menu or by a click, and every figure highlights what
    belongs to it.

    Args:
        trajectory: the trajectory.
        settings: how evidence is attributed.
        max_questions: most questions in the Sankey diagram, in addition to the selected one.

    Raises:
        ValueError: as `rewards.evidence_contribution`.
    """
    asked = range(len(trajectory.questions))
    ever = {item.item_id: item for step in trajectory.steps for item in step.delta.written}
    hits = Counter(found.item_id for a in trajectory.questions for found in a.retrieved)
    options = [
        ("everything", ""),
        *(
            (f"question {j + 1}: {trajectory.questions[j].question.text}", f"question {j + 1}")
            for j in asked
        ),
        *(
            (f"step {step.step}: {step.chunk.text}", f"step {step.step}")
            for step in trajectory.steps
        ),
        *(
            (f"item #{item_id}: {item.content}", f"item {item_id}")
            for item_id, item in sorted(ever.items(), key=lambda item: -hits[item[0]])
        ),
    ]

    def build(selected: str) -> Views:
        shown = list(asked[:max_questions])
        kind, _, key = selected.partition(" ")
        if kind == "question" and int(key) > len(shown):
            shown.append(int(key) - 1)
        return {
            "trail": evidence_trail(trajectory, settings, selected),
            "flow": evidence_sankey(trajectory, shown, settings, selected=selected),
            "heatmap": evidence_heatmap(trajectory, settings, selected),
            "timeline": operation_timeline(trajectory, selected=selected),
        }

    return Explorer(
        "Evidence explorer",
        (Control("selected", "selected", options, static=EVIDENCE_FRAMES),),
        build,
    )


def memory_player(trajectory: Trajectory) -> Explorer:
    """Return the explorer of the memory M_t, step by step from the empty start to M_T.

    Args:
        trajectory: the trajectory.
    """

    def build(step: int) -> Views:
        return {
            "memory": memory_state(trajectory, step),
            "growth": memory_growth(trajectory, step),
        }

    return Explorer(
        "Memory player",
        (
            Control(
                "step",
                "after step t",
                [(str(step), step) for step in range(trajectory.num_steps + 1)],
                trajectory.num_steps,
                kind="slider",
                static=True,
            ),
        ),
        build,
    )
