"""Credit rules that need only the recorded trajectory and make no reader call."""

from __future__ import annotations

from typing import Any

from finemem_lib.credit.needs import Credit, need, need_questions
from finemem_lib.rewards import RewardSettings, chunk_rewards, eara_rewards, outcome_reward
from finemem_lib.trajectory import Trajectory


def outcome_broadcast(trajectory: Trajectory) -> Credit:
    """Return the outcome reward at every step, as GRPO with outcome supervision assigns it.

    The mean over the steps is r_global. In [0, 1]. Source: GRPO (arXiv 2402.03300), outcome
    supervision.

    Args:
        trajectory: The rollout to credit.

    Raises:
        ValueError: no global question was asked, or a score is out of range.

    >>> from finemem_lib import worked_example
    >>> outcome_broadcast(worked_example())
    [0.75, 0.75, 0.75, 0.75]
    """
    need_questions(trajectory)
    return [outcome_reward(trajectory)] * trajectory.num_steps


def uniform_split(trajectory: Trajectory) -> Credit:
    """Return ``r_global / T`` at every step; the sum is r_global. In [0, 1].

    Args:
        trajectory: The rollout to credit.

    Raises:
        ValueError: as `outcome_broadcast`.

    >>> from finemem_lib import worked_example
    >>> uniform_split(worked_example())
    [0.1875, 0.1875, 0.1875, 0.1875]
    """
    return [
        None if reward is None else reward / trajectory.num_steps
        for reward in outcome_broadcast(trajectory)
    ]


def chunk_step_reward(trajectory: Trajectory) -> Credit:
    """Return the chunk-level step reward of every step (`rewards.chunk_rewards`), in [0, 1].

    Source: Fine-Mem (arXiv 2601.08435), CSR.

    Args:
        trajectory: The rollout to credit, with chunk questions.

    Raises:
        ValueError: no step has a chunk question, or a score is out of range.
    """
    need(
        any(step.chunk_questions for step in trajectory.steps),
        trajectory,
        "chunk questions",
        "make some (notebook 01) and play with ask_chunk_questions",
    )
    return chunk_rewards(trajectory)


def evidence_anchored(trajectory: Trajectory, **switches: Any) -> Credit:
    """Return the evidence-anchored reward (`rewards.eara_rewards`) of every step.

    The sum is r_global, unless `unretrieved` is "drop". Source: Fine-Mem, EARA.

    Args:
        trajectory: The rollout to credit.
        **switches: beta, attribution, credited and unretrieved of `RewardSettings`.

    Raises:
        ValueError: no global question was asked, a switch or a score is out of range, or
            `credited` is "used" and no answer names the items it used.

    >>> from finemem_lib import worked_example
    >>> evidence_anchored(worked_example(), beta=1.0)
    [0.25, 0.0, 0.5, 0.0]
    """
    settings = RewardSettings(**switches)
    need_questions(trajectory)
    need(
        settings.credited == "retrieved" or any(a.used is not None for a in trajectory.questions),
        trajectory,
        "answers that name the items they used",
        "take a reasoning agent that says so, or credited='retrieved'",
    )
    return eara_rewards(trajectory, settings)


def evidence_anchored_used(trajectory: Trajectory, **switches: Any) -> Credit:
    """Return `evidence_anchored` with the credit going to the used items only.

    Args:
        trajectory: The rollout to credit; its answers name the items they used.
        **switches: As in `evidence_anchored`; `credited` is always "used".

    Raises:
        ValueError: as `evidence_anchored`.
    """
    return evidence_anchored(trajectory, **{**switches, "credited": "used"})
