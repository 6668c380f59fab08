"""The rewards of Fine-Mem (arXiv 2601.08435), per step, as pure functions of a trajectory.

Lists carry one entry per step, indexed by ``step - 1``; T is the number of steps, n the number of
global questions with a score. `None` means not measured: a question whose score is `None` is left
out of n, a step without a scored chunk question has no chunk-level step reward, and without a
scored global question there is neither an outcome reward nor evidence. A term that is `None` is
left out of the hybrid sum; it never counts as 0.0.

Differs from the paper: `RewardSettings` names each choice that the paper leaves open. By default,
the evidence of a question that retrieved nothing is spread over all steps, because otherwise the
evidence-anchored rewards would not sum to the outcome reward; an updated item is credited to the
step that last wrote it; every retrieved item shares the credit, needed or not; a step that emits
no operation has format reward 0.0. DELETE and SKIP earn no evidence, as in the paper.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from finemem_lib.trajectory import AnsweredQuestion, Retrieved, Trajectory

Attribution = Literal["last_write", "creation", "lineage"]
Credited = Literal["retrieved", "used"]
Unretrieved = Literal["spread", "drop"]


@dataclass(frozen=True, slots=True)
class RewardSettings:
    """The weights of the hybrid reward and the choices that the paper leaves open.

    Attributes:
        beta: Share of the outcome reward distributed by evidence, in [0, 1]; the rest is divided
            evenly over the steps.
        w1: Weight of the chunk-level step reward, at least 0.
        w2: Weight of the compression reward, at least 0.
        attribution: The step phi(m) that receives the evidence of item m: "last_write" is the step
            that wrote its content, "creation" the step that created it; "lineage" divides the
            evidence equally over all its writes.
        credited: The items of M_j: "retrieved" takes all retrieved items, "used" only those that
            the reasoning agent names (all where its `used` is None).
        unretrieved: Treatment of a question without a credited item: "spread" gives s_j/(T n) to
            every step and keeps ``sum_t r_EARA = r_global``; "drop" lowers that sum by beta s_j/n.
        empty_format: Format reward of a step that emits no operation, in [0, 1]; None leaves the
            term out.

    Raises:
        ValueError: a value is out of range.
    """

    beta: float = 0.5
    w1: float = 0.5
    w2: float = 0.05
    attribution: Attribution = "last_write"
    credited: Credited = "retrieved"
    unretrieved: Unretrieved = "spread"
    empty_format: float | None = 0.0

    def __post_init__(self) -> None:
        choices = {"attribution": Attribution, "credited": Credited, "unretrieved": Unretrieved}
        for name, choice in choices.items():
            if getattr(self, name) not in get_args(choice):
                _refuse(name, getattr(self, name), "one of " + ", ".join(get_args(choice)))
        for name in ("beta", "empty_format"):
            value = getattr(self, name)
            if name == "empty_format" and value is None:
                continue
            if not (_is_finite(value) and 0 <= value <= 1):
                _refuse(name, value, "a number from 0 to 1")
        for name in ("w1", "w2"):
            value = getattr(self, name)
            if not (_is_finite(value) and value >= 0):
                _refuse(name, value, "a finite number of at least 0")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of every term of the hybrid reward, by its name in `StepReward`."""
        return {"eara": 1.0, "format": 1.0, "chunk": self.w1, "compression": self.w2}


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _refuse(name: str, value: object, expected: str) -> None:
    raise ValueError(
        f"reward settings: {name} is {value!r}, expected {expected}; "
        "leave it out to get the paper's value or the documented default"
    )


@dataclass(frozen=True, slots=True)
class StepReward:
    """Every component of one step's reward, unweighted, and their weighted sum.

    `None` means that a component could not be measured; it is left out of `total`.

    Attributes:
        step: From 1 to T.
        outcome, compression: Rewards of the whole trajectory, the same at every step.
        evidence: N_t; like the outcome it enters `total` only through `eara`.
        eara, format, chunk: Rewards of this step.
        total: Weighted sum of the terms named in `weights`.
        weights: The weight of every term by its name.
    """

    step: int
    outcome: float | None
    evidence: float | None
    eara: float | None
    format: float | None
    chunk: float | None
    compression: float | None
    total: float | None
    weights: Mapping[str, float]

    @property
    def weighted(self) -> dict[str, float | None]:
        """The terms that add up to `total`, each times its weight."""
        terms = {name: getattr(self, name) for name in self.weights}
        return {
            name: None if term is None else self.weights[name] * term
            for name, term in terms.items()
        }


def outcome_reward(trajectory: Trajectory) -> float | None:
    """Return the outcome (global) reward ``r_global = (1/n) sum_j s_j``, in [0, 1].

    `None` when no global question could be scored. Source: Fine-Mem, outcome reward.

    Raises:
        ValueError: a score is neither None nor a number in [0, 1].

    >>> from finemem_lib import worked_example
    >>> outcome_reward(worked_example())
    0.75
    """
    return _mean_score(trajectory.questions)


def chunk_rewards(trajectory: Trajectory) -> list[float | None]:
    """Return the chunk-level step reward ``r_chunk(t) = (1/K) sum_k s_k^(t)`` of every step.

    The K questions of chunk t were answered from M_t. In [0, 1]; `None` for a step without a
    scored chunk question. Source: Fine-Mem, chunk-level step reward (CSR).

    Raises:
        ValueError: a score is neither None nor a number in [0, 1].

    >>> from finemem_lib import worked_example
    >>> chunk_rewards(worked_example())
    [1.0, None, 0.5, 0.0]
    """
    return [_mean_score(step.chunk_questions) for step in trajectory.steps]


def evidence_contribution(
    trajectory: Trajectory, settings: RewardSettings | None = None
) -> list[float | None]:
    """Return the normalised evidence contribution N_t of every step.

    ``N_t = sum_j sum_{m in M_j, phi(m) = t} s_j / (|M_j| n)``, where M_j holds the credited items
    of question j and phi(m) is the step that item m is attributed to; ``sum_t N_t = r_global``
    unless `unretrieved` is "drop". In [0, 1]; `None` at every step where `outcome_reward` is.
    Source: Fine-Mem, evidence-anchored reward attribution (EARA).

    Args:
        trajectory: The rollout to score.
        settings: Switches of the rewards; default: `RewardSettings()`.

    Raises:
        ValueError: a score is out of range, or an item names a step outside 1..T.

    >>> from finemem_lib import worked_example
    >>> evidence_contribution(worked_example())
    [0.25, 0.0, 0.5, 0.0]
    """
    parts: list[list[float]] = [[] for _ in trajectory.steps]
    columns = _evidence_columns(trajectory, settings or RewardSettings())
    for column in columns:
        for step, part in (column or {}).items():
            parts[step - 1].append(part)
    if all(column is None for column in columns):
        return [None] * trajectory.num_steps
    return [math.fsum(step_parts) for step_parts in parts]


def evidence_matrix(
    trajectory: Trajectory, settings: RewardSettings | None = None
) -> list[list[float | None]]:
    """Return each question's contribution to each N_t: T rows, one column per global question.

    Cell (t, j) is ``sum_{m in M_j, phi(m) = t} s_j / (|M_j| n)``, so row t sums to N_t and column
    j to s_j/n (to 0 where `unretrieved` is "drop" and the question has no credited item). The
    column of a question that could not be scored is `None`.

    Args:
        trajectory: The rollout to score.
        settings: Switches of the rewards; default: `RewardSettings()`.

    Raises:
        ValueError: as `evidence_contribution`.

    >>> from finemem_lib import worked_example
    >>> evidence_matrix(worked_example())
    [[0.25, 0.0], [0.0, 0.0], [0.25, 0.25], [0.0, 0.0]]
    """
    columns = _evidence_columns(trajectory, settings or RewardSettings())
    return [
        [None if column is None else column.get(step, 0.0) for column in columns]
        for step in range(1, trajectory.num_steps + 1)
    ]


def eara_rewards(
    trajectory: Trajectory, settings: RewardSettings | None = None
) -> list[float | None]:
    """Return the evidence-anchored reward ``r_EARA(t) = (1 - beta) r_global / T + beta N_t``.

    ``sum_t r_EARA(t) = r_global`` for every setting with `unretrieved` "spread" (and at beta 0);
    with "drop" the sum lacks ``beta s_j / n`` for each question without a credited item. In
    [0, 1]; `None` at every step where `outcome_reward` is. Source: Fine-Mem, EARA.

    Args:
        trajectory: The rollout to score.
        settings: Switches of the rewards; default: `RewardSettings()`.

    Raises:
        ValueError: as `evidence_contribution`.

    >>> from finemem_lib import worked_example
    >>> eara_rewards(worked_example())
    [0.21875, 0.09375, 0.34375, 0.09375]
    """
    settings = settings or RewardSettings()
    evidence = evidence_contribution(trajectory, settings)
    return _eara(outcome_reward(trajectory), evidence, settings.beta)


def format_rewards(
    trajectory: Trajectory, settings: RewardSettings | None = None
) -> list[float | None]:
    """Return the format reward ``r_fmt(t) = valid operations / emitted operations`` of every step.

    An operation is valid if the memory applied it; text that could not be parsed counts as emitted.
    In [0, 1]; a step without operations gets `settings.empty_format`. Source: Fine-Mem, format
    reward.

    Args:
        trajectory: The rollout to score.
        settings: Switches of the rewards; default: `RewardSettings()`.

    >>> from finemem_lib import worked_example
    >>> format_rewards(worked_example())
    [1.0, 1.0, 0.5, 0.0]
    """
    empty = (settings or RewardSettings()).empty_format
    return [
        sum(outcome.applied for outcome in step.outcomes) / len(step.outcomes)
        if step.outcomes
        else empty
        for step in trajectory.steps
    ]


def compression_reward(trajectory: Trajectory) -> float | None:
    """Return the compression reward ``r_comp = 1 - L(M_T) / sum_t L(c_t)``.

    L counts tokens in the units of `trajectory.tokenizer`. At most 1, negative when the memory is
    longer than the chunks; `None` when the chunks hold no token. Source: Fine-Mem, compression.

    >>> from finemem_lib import worked_example
    >>> round(compression_reward(worked_example()), 4)
    0.5263
    """
    chunk_tokens = sum(step.chunk.tokens for step in trajectory.steps)
    return 1 - trajectory.steps[-1].memory_tokens / chunk_tokens if chunk_tokens else None


def hybrid_reward(
    trajectory: Trajectory, settings: RewardSettings | None = None
) -> tuple[StepReward, ...]:
    """Return every component of ``r_t = r_EARA(t) + r_fmt(t) + w1 r_chunk(t) + w2 r_comp``.

    Source: Fine-Mem, hybrid reward.

    Args:
        trajectory: The rollout to score.
        settings: Switches of the rewards; default: `RewardSettings()`.

    Raises:
        ValueError: as `evidence_contribution`.

    >>> from finemem_lib import worked_example
    >>> for reward in hybrid_reward(worked_example()):
    ...     print(reward.step, reward.eara, reward.format, reward.chunk, round(reward.total, 4))
    1 0.21875 1.0 1.0 1.7451
    2 0.09375 1.0 None 1.1201
    3 0.34375 0.5 0.5 1.1201
    4 0.09375 0.0 0.0 0.1201
    """
    settings = settings or RewardSettings()
    weights = settings.weights
    outcome = outcome_reward(trajectory)
    evidence = evidence_contribution(trajectory, settings)
    compression = compression_reward(trajectory)
    rewards = []
    for step, contribution, eara, format_, chunk in zip(
        trajectory.steps,
        evidence,
        _eara(outcome, evidence, settings.beta),
        format_rewards(trajectory, settings),
        chunk_rewards(trajectory),
        strict=True,
    ):
        terms = {"eara": eara, "format": format_, "chunk": chunk, "compression": compression}
        total = weighted_sum(terms, weights)
        rewards.append(
            StepReward(step.step, outcome, contribution, **terms, total=total, weights=weights)
        )
    return tuple(rewards)


def weighted_sum(
    terms: Mapping[str, float | None], weights: Mapping[str, float] | None = None
) -> float | None:
    """Return the weighted sum of the terms that are not `None`, or `None` if all are.

    Args:
        terms: Reward terms of one step by name; `None` is left out and never counts as 0.0.
        weights: The weight of every term by name; `None` weights each by 1.

    >>> weighted_sum({"outcome": 0.75, "chunk": None, "format": 1.0}, {"outcome": 1, "format": 0.5})
    1.25
    """
    known = [
        term if weights is None else weights[name] * term
        for name, term in terms.items()
        if term is not None
    ]
    return math.fsum(known) if known else None


def _eara(
    outcome: float | None, evidence: Sequence[float | None], beta: float
) -> list[float | None]:
    return [
        None
        if outcome is None or part is None
        else (1 - beta) * outcome / len(evidence) + beta * part
        for part in evidence
    ]


def _mean_score(answered: Sequence[AnsweredQuestion]) -> float | None:
    scores = [score for question in answered if (score := _score(question)) is not None]
    # fsum makes the mean independent of the order of the questions.
    return math.fsum(scores) / len(scores) if scores else None


def _score(answered: AnsweredQuestion) -> float | None:
    """Return the score of a question; raise ValueError if it is not in [0, 1] (NaN included)."""
    score = answered.score
    if score is not None and not 0 <= score <= 1:
        raise ValueError(
            f"question {answered.question.question_id!r}: score is {score!r}, expected a number "
            "in [0, 1], or None where it cannot be scored; score the answer again"
        )
    return score


def _evidence_columns(
    trajectory: Trajectory, settings: RewardSettings
) -> list[dict[int, float] | None]:
    """Return, for each global question, its part of N_t by step (`None` without a score)."""
    scores = [_score(question) for question in trajectory.questions]
    n = sum(score is not None for score in scores)
    return [
        None
        if score is None
        else {
            step: share * score / n
            for step, share in _shares(question, trajectory.num_steps, settings).items()
        }
        for question, score in zip(trajectory.questions, scores, strict=True)
    ]


def _shares(
    answered: AnsweredQuestion, num_steps: int, settings: RewardSettings
) -> dict[int, float]:
    """Return each step's share of a question's evidence: the shares sum to 1, or the result is
    empty when the evidence is dropped."""
    shares: defaultdict[int, float] = defaultdict(float)
    for step, _, share in item_shares(answered, num_steps, settings):
        shares[step] += share
    if not shares and settings.unretrieved == "spread":
        return {step: 1 / num_steps for step in range(1, num_steps + 1)}
    return shares


def item_shares(
    answered: AnsweredQuestion, num_steps: int, settings: RewardSettings
) -> list[tuple[int, str, float]]:
    """Return the shares of a question's evidence as (step, item id, share).

    The shares sum to 1; the list is empty where the question has no credited item. Source:
    Fine-Mem, the inner sum of N_t without s_j / n.

    Args:
        answered: The question with its retrieved items.
        num_steps: T.
        settings: Switches of the rewards.

    Raises:
        ValueError: an item names a step outside 1..T.

    >>> from finemem_lib import worked_example
    >>> item_shares(worked_example().questions[0], 4, RewardSettings())
    [(1, '1', 0.5), (3, '2', 0.5)]
    """
    shares = []
    items = credited_items(answered, settings.credited)
    for item in items:
        steps = attributed_steps(item, settings.attribution)
        if not steps or min(steps) < 1 or max(steps) > num_steps:
            raise ValueError(
                f"question {answered.question.question_id!r}: item {item.item_id!r} was written at "
                f"steps {item.steps}, expected steps within 1..{num_steps}; the trajectory was cut "
                "or joined, play the instance again"
            )
        shares += [(step, item.item_id, 1 / (len(items) * len(steps))) for step in steps]
    return shares


def credited_items(answered: AnsweredQuestion, credited: Credited) -> tuple[Retrieved, ...]:
    """Return M_j, the items of a question that share its credit.

    Args:
        answered: The question with its retrieved items.
        credited: "retrieved" or "used", as in `RewardSettings`.
    """
    if credited == "used" and answered.used is not None:
        return tuple(item for item in answered.retrieved if item.item_id in answered.used)
    return answered.retrieved


def attributed_steps(item: Retrieved, attribution: Attribution) -> tuple[int, ...]:
    """Return phi(m), the steps that share an item's evidence equally.

    Args:
        item: A retrieved item.
        attribution: "last_write", "creation" or "lineage", as in `RewardSettings`.

    >>> attributed_steps(Retrieved("1", 0.5, (2, 5)), "creation")
    (2,)
    """
    if attribution == "lineage":
        return item.steps
    return item.steps[:1] if attribution == "creation" else item.steps[-1:]
