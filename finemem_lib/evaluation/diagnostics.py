"""Diagnose a reward scheme: spread of its terms, true evidence credit, direction of its gradient.

Differs from the paper, which reports final scores only: these are measurements on training rollouts
of streams with known truth.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from finemem_lib.advantages import ScaleRewards, group_relative
from finemem_lib.managers.model import ModelManager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, evidence_matrix, hybrid_reward, weighted_sum
from finemem_lib.seeds import stable_seed
from finemem_lib.training.schemes import RewardScheme, Scheme, reward_terms, scheme_weights
from finemem_lib.training.trl_adapter import ROWS_OF_LIKE_LENGTH
from finemem_lib.trajectory import Instance, Trajectory

if TYPE_CHECKING:
    import torch
    from numpy.typing import NDArray

SPREAD_TERMS = ("outcome", "evidence", "eara", "format", "chunk", "compression")
"""The fields of `StepReward` whose spread is measured."""

TokenIds = tuple[Sequence[int], Sequence[int]]
"""Token ids of the prompt and of the completion of one step."""

_ANSWERED = ("outcome", "eara")
"""Terms that are unknown if a question has no score."""


def term_spread(
    groups: Sequence[Sequence[Trajectory]], settings: RewardSettings | None = None
) -> dict[str, float | None]:
    """Return the within-group standard deviation of every unweighted term, pooled over steps.

    A group is the rollouts of one instance at one step. The spread is the root of the mean squared
    deviation from the group mean, where the squares of a group of n rollouts are scaled by
    n/(n-1). The term with the largest spread dominates a normalised sum of terms.

    Args:
        groups: the rollouts of every instance.
        settings: settings of the reward terms; weights are ignored.

    Returns:
        Spread by term of `SPREAD_TERMS`; `None` if no group has two known values of the term.
    """
    squares: dict[str, list[float]] = {term: [] for term in SPREAD_TERMS}
    for group in groups:
        rewards = [hybrid_reward(trajectory, settings) for trajectory in group]
        for term in SPREAD_TERMS:
            centred = group_relative(
                [[getattr(step, term) for step in row] for row in rewards], scale_rewards="none"
            )
            for column in zip(*centred, strict=True):
                known = [value for value in column if value is not None]
                if len(known) > 1:
                    squares[term] += [value**2 * len(known) / (len(known) - 1) for value in known]
    return {
        term: math.sqrt(math.fsum(values) / len(values)) if values else None
        for term, values in squares.items()
    }


def credit_at_evidence(
    trajectories: Sequence[Trajectory], settings: RewardSettings | None = None
) -> float | None:
    """Return the share of the evidence credit N_t that lies on the true evidence steps, in [0, 1].

    Args:
        trajectories: rollouts of planted streams.
        settings: settings of the evidence attribution.

    Returns:
        The share over all scored questions with known `evidence_steps`; `None` if these questions
        give no credit.
    """
    right = total = 0.0
    for trajectory in trajectories:
        matrix = evidence_matrix(trajectory, settings)
        for place, answered in enumerate(trajectory.questions):
            if answered.question.evidence_steps is None:
                continue
            column = [row[place] or 0.0 for row in matrix]  # without a score there is no credit
            total += math.fsum(column)
            right += math.fsum(column[step - 1] for step in answered.question.evidence_steps)
    return right / total if total else None


REFERENCE = "true outcome"
"""Name of the gradient with which all others are compared."""


@dataclass(frozen=True, slots=True)
class Alignment:
    """Agreement of a scheme's policy gradient with the reference gradient.

    Attributes:
        scheme: name of the scheme, or `REFERENCE`.
        cosines: per batch, the cosine with the mean reference gradient of the other batches, in
            [-1, 1].
        agreement: mean cosine between two batches of the scheme itself, in [-1, 1].
    """

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
    """Return the cosine similarity of each scheme's policy gradient with that of the true outcome.

    Every batch is played once; the gradients of all schemes are computed from the same rollouts at
    the weights that produced them. A scheme's gradient is that of GRPO at these weights,
    ``sum_rows A sum_tokens grad log pi / tokens``, with the scheme's advantages A per step. The
    reference has ``A = r_global - mean over rollouts`` at every step, not divided by a standard
    deviation: an unbiased estimate of the gradient of the expected outcome. A cosine is also small
    if the reference gradient of the other batches is noisy; the reference's own cosine shows this.

    Args:
        manager: the policy; gradients are over its trainable weights.
        batches: instances of every batch, at least two batches.
        agent: reasoning agent that answers the questions.
        rollout: rollout settings, with `num_generations` rollouts per instance.
        schemes: reward scheme and settings by name.
        seed: seed of the rollouts.

    Returns:
        One entry per gradient, `REFERENCE` first.

    Raises:
        ValueError: there are fewer than two batches, or a question could not be scored.
    """
    if len(batches) < 2:
        raise ValueError(
            f"gradient alignment: got {len(batches)} batches, expected at least 2 to compare"
        )
    gradients: dict[str, list[NDArray[np.float64]]] = {name: [] for name in (REFERENCE, *schemes)}
    for number, instances in enumerate(batches):
        groups = play(instances, manager, rollout, agent, stable_seed(seed, "alignment", number))
        steps = [
            (step.prompt_ids or (), step.completion_ids or ())
            for group in groups
            for one in group
            for step in one.steps
        ]
        rows = _advantage_rows(groups, schemes, agent)
        for name, gradient in policy_gradients(manager.model, steps, rows).items():
            gradients[name].append(gradient)
    reference = np.array(gradients[REFERENCE])
    others = (reference.sum(axis=0) - reference) / (len(batches) - 1)
    return [_alignment(name, batch_wise, others) for name, batch_wise in gradients.items()]


def _advantage_rows(
    groups: Sequence[Sequence[Trajectory]],
    schemes: Mapping[str, tuple[Scheme, RewardSettings]],
    agent: ReasoningAgent,
) -> dict[str, list[float]]:
    """Return the advantages of `REFERENCE` and of every scheme, in the order of the steps."""
    scaled: dict[str, tuple[Scheme, RewardSettings | None, ScaleRewards]]
    scaled = {REFERENCE: (RewardScheme(REFERENCE, {"outcome": 1.0}), None, "none")}
    scaled |= {name: (scheme, settings, "group") for name, (scheme, settings) in schemes.items()}
    return {
        name: [
            value
            for group in groups
            for row in _advantages(group, *arguments, agent)
            for value in row
        ]
        for name, arguments in scaled.items()
    }


def _alignment(
    name: str, gradients: Sequence[NDArray[np.float64]], others: NDArray[np.float64]
) -> Alignment:
    unit = np.array([_unit(gradient) for gradient in gradients])
    pairs = (unit @ unit.T)[np.triu_indices(len(unit), 1)]
    return Alignment(
        name,
        tuple(float(a @ _unit(b)) for a, b in zip(unit, others, strict=True)),
        float(pairs.mean()),
    )


def _advantages(
    group: Sequence[Trajectory],
    scheme: Scheme,
    settings: RewardSettings | None,
    scale_rewards: ScaleRewards,
    agent: ReasoningAgent,
) -> list[list[float]]:
    """Return the advantage of every step of every rollout under a reward scheme."""
    weights = scheme_weights(scheme, settings)
    answered = [name for name in _ANSWERED if weights[name]]
    rewards = [
        [
            None if any(step[name] is None for name in answered) else weighted_sum(step, weights)
            for step in row
        ]
        for row in reward_terms(group, scheme, settings, agent)
    ]
    advantages = group_relative(rewards, scale_rewards=scale_rewards)
    known = [[value for value in row if value is not None] for row in advantages]
    if known != advantages:
        raise ValueError(
            f"gradient alignment: a question of {group[0].instance_id!r} could not be scored, "
            "expected planted streams or others with known answers"
        )
    return known


def policy_gradients(
    model: torch.nn.Module, steps: Sequence[TokenIds], advantages: Mapping[str, Sequence[float]]
) -> dict[str, NDArray[np.float64]]:
    """Return ``sum_rows A sum_tokens grad log pi / tokens`` over all trainable weights.

    Args:
        model: the policy, a causal language model.
        steps: token ids of prompt and completion of every row.
        advantages: by name, the advantage A of every row.

    Returns:
        By name, the gradient as one flat vector.
    """
    import torch

    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    totals = {name: [torch.zeros_like(weight) for weight in parameters] for name in advantages}
    length = [len(prompt) + len(completion) for prompt, completion in steps]
    order = sorted(range(len(steps)), key=length.__getitem__)
    tokens = sum(len(completion) for _, completion in steps)
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


def _row_logprobs(model: torch.nn.Module, steps: Sequence[TokenIds]) -> torch.Tensor:
    """Return the log-probability of every completion given its prompt, shape (rows,), with grad."""
    import torch

    device = next(model.parameters()).device
    rows = [torch.tensor([*prompt, *completion]) for prompt, completion in steps]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).to(device)
    place = torch.arange(ids.shape[1], device=device)
    ends = torch.tensor([len(row) for row in rows], device=device)[:, None]
    prompts = torch.tensor([len(prompt) for prompt, _ in steps], device=device)[:, None]
    logits = model(input_ids=ids, attention_mask=(place < ends).long()).logits[:, :-1].float()
    picked: torch.Tensor = logits.log_softmax(dim=-1).gather(2, ids[:, 1:, None]).squeeze(2)
    written = (place >= prompts) & (place < ends)
    return (picked * written[:, 1:]).sum(dim=1)


def _unit(vector: NDArray[np.float64]) -> NDArray[np.float64]:
    norm = np.linalg.norm(vector)
    return vector / norm if norm else vector
