"""Why a reward scheme helps or hurts: what its gradient and its terms are made of.

Differs from the paper: it reports final scores; these are measurements on the rollouts that were
trained on, made where the truth is known.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finemem_lib.advantages import group_relative
from finemem_lib.managers.model import ModelManager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, evidence_matrix, hybrid_reward, weighted_sum
from finemem_lib.seeds import stable_seed
from finemem_lib.training.schemes import Scheme, scheme_weights
from finemem_lib.training.trl_adapter import ROWS_OF_LIKE_LENGTH
from finemem_lib.trajectory import Instance, Step, Trajectory

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

SPREAD_TERMS = ("outcome", "evidence", "eara", "format", "chunk", "compression")
"""The fields of `StepReward` whose spread is measured."""


def term_spread(
    groups: Sequence[Sequence[Trajectory]], settings: RewardSettings | None = None
) -> dict[str, float | None]:
    """Return the within-group standard deviation of every unweighted term, pooled over steps.

    A group is the rollouts of one instance at one step, of which each gives a deviation from the
    group's mean; the mean of squares is over those, each group's scaled by n/(n-1). `None` where a
    term was measured nowhere. A term with a small spread is drowned by one with a great spread when
    their sum is normalised.
    """
    squares: dict[str, list[float]] = {term: [] for term in SPREAD_TERMS}
    for group in groups:
        rewards = [hybrid_reward(trajectory, settings) for trajectory in group]
        for term, found in squares.items():
            centred = group_relative(
                [[getattr(step, term) for step in row] for row in rewards], scale_rewards="none"
            )
            for column in zip(*centred, strict=True):
                known = [value for value in column if value is not None]
                if len(known) > 1:
                    found += [value**2 * len(known) / (len(known) - 1) for value in known]
    return {
        term: math.sqrt(math.fsum(found) / len(found)) if found else None
        for term, found in squares.items()
    }


def credit_at_evidence(
    trajectories: Sequence[Trajectory], settings: RewardSettings | None = None
) -> float | None:
    """Return the share of the evidence credit N_t that lies on the true evidence steps, in [0, 1].

    Summed over the questions whose `evidence_steps` are known; `None` where none earned credit.
    """
    right = total = 0.0
    for trajectory in trajectories:
        matrix = evidence_matrix(trajectory, settings)
        for place, answered in enumerate(trajectory.questions):
            if answered.question.evidence_steps is None or answered.score is None:
                continue
            column = [row[place] for row in matrix]
            total += math.fsum(column)
            right += math.fsum(column[step - 1] for step in answered.question.evidence_steps)
    return right / total if total else None


REFERENCE = "true outcome"
"""The gradient that the others are held against."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """How a scheme's gradient points: `cosines` has one value per batch, its cosine with the mean
    reference gradient of the other batches; `agreement` is the mean cosine between two batches of
    the scheme itself. Both lie in [-1, 1]."""

    scheme: str
    cosines: tuple[float, ...]
    agreement: float


def gradient_alignment(
    manager: ModelManager,
    batches: Sequence[Sequence[Instance]],
    agent: ReasoningAgent,
    rollout: RolloutSettings,
    schemes: Mapping[str, tuple[Scheme, RewardSettings]],
    seed: int,
) -> list[Alignment]:
    """Return how well each scheme's policy gradient agrees with the true outcome's.

    Every batch is played once, G rollouts of each instance, and all schemes are computed from these
    same rollouts, at the weights that played them. A scheme's gradient is GRPO's at that point,
    ``sum_rows A sum_tokens grad log pi / tokens``, with its advantages per step. The reference
    (`REFERENCE`, first in the result) has ``A = r_global - mean over rollouts`` at every step of
    the trajectory, not divided by a standard deviation: the unbiased estimate of the gradient of
    the expected outcome. A cosine is also small where the reference of the other batches is mostly
    noise; the reference's own cosine says how much can be resolved.

    Raises:
        ValueError: fewer than two batches, or a question that could not be scored.
    """
    if len(batches) < 2:
        raise ValueError(
            f"gradient alignment: got {len(batches)} batches, expected at least 2 to compare"
        )
    weights = {
        name: scheme_weights(scheme, settings) for name, (scheme, settings) in schemes.items()
    }
    found: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (REFERENCE, *schemes)}
    for number, instances in enumerate(batches):
        groups = play(instances, manager, rollout, agent, stable_seed(seed, "alignment", number))
        advantages = {REFERENCE: [_advantages(group, {"outcome": 1.0}, None) for group in groups]}
        for name, (_, settings) in schemes.items():
            advantages[name] = [
                _advantages(group, weights[name], settings, "group") for group in groups
            ]
        steps = [step for group in groups for one in group for step in one.steps]
        rows = {
            name: [value for group in by_group for one in group for value in one]
            for name, by_group in advantages.items()
        }
        for name, gradient in _policy_gradients(manager.model, steps, rows).items():
            found[name].append(gradient)
    reference = np.array(found[REFERENCE])
    others = (reference.sum(axis=0) - reference) / (len(batches) - 1)
    alignments = []
    for name, gradients in found.items():
        unit = np.array([_unit(gradient) for gradient in gradients])
        pairs = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
        alignments.append(
            Alignment(
                name,
                tuple(float(a @ _unit(b)) for a, b in zip(unit, others, strict=True)),
                float(pairs.mean()),
            )
        )
    return alignments


def _advantages(
    group: Sequence[Trajectory],
    weights: Mapping[str, float],
    settings: RewardSettings | None,
    scale_rewards: str = "none",
) -> list[list[float]]:
    """Return the advantage of every step of every rollout under weighted terms of the reward."""
    rewards = []
    for trajectory in group:
        terms = [
            {name: getattr(step, name) for name in weights}
            for step in hybrid_reward(trajectory, settings)
        ]
        if any(
            step.get(name) is None
            for step in terms
            for name in ("outcome", "eara")
            if weights.get(name)
        ):
            raise ValueError(
                f"gradient alignment: a question of {trajectory.instance_id!r} could not be "
                "scored, expected planted streams or others with known answers"
            )
        rewards.append([weighted_sum(step, weights) for step in terms])
    return group_relative(rewards, scale_rewards=scale_rewards)


def _policy_gradients(
    model: torch.nn.Module, steps: Sequence[Step], advantages: Mapping[str, Sequence[float]]
) -> dict[str, NDArray[np.float64]]:
    """Return ``sum_rows A sum_tokens grad log pi / tokens`` over all weights, flat, by name."""
    import torch

    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    totals = {name: [torch.zeros_like(weight) for weight in parameters] for name in advantages}
    length = [len(step.prompt_ids) + len(step.completion_ids) for step in steps]
    order = sorted(range(len(steps)), key=length.__getitem__)
    tokens = sum(len(step.completion_ids) for step in steps)
    for start in range(0, len(order), ROWS_OF_LIKE_LENGTH):
        places = order[start : start + ROWS_OF_LIKE_LENGTH]
        logprobs = _row_logprobs(model, [steps[place] for place in places])
        for name, values in advantages.items():
            weights = torch.tensor([values[place] for place in places], device=logprobs.device)
            gradients = torch.autograd.grad(logprobs @ weights, parameters, retain_graph=True)
            for total, gradient in zip(totals[name], gradients, strict=True):
                total += gradient / tokens
    return {
        name: torch.cat([total.flatten() for total in parts]).double().cpu().numpy()
        for name, parts in totals.items()
    }


def _row_logprobs(model: torch.nn.Module, steps: Sequence[Step]) -> torch.Tensor:
    """Return the log-probability of every completion given its prompt, with its graph."""
    import torch

    rows = [torch.tensor([*step.prompt_ids, *step.completion_ids]) for step in steps]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(model.device)
    place = torch.arange(ids.shape[1], device=ids.device)
    ends = torch.tensor([len(row) for row in rows], device=ids.device)[:, None]
    prompts = torch.tensor([len(step.prompt_ids) for step in steps], device=ids.device)[:, None]
    logits = model(input_ids=ids, attention_mask=(place < ends).long()).logits[:, :-1].float()
    picked = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    written = (place >= prompts) & (place < ends)
    return (picked * written[:, 1:]).sum(dim=1)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.linalg.norm(vector)
    return vector / norm if norm else vector
