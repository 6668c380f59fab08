"""Compare a small language model with the rule-based reader, verifier and question teacher.

Differs from the paper, where Qwen3-32B is reader and verifier, GPT-4o-mini is teacher, and no other
model is tested. Here a language model and the model-free default take each role on the same data:

- accuracy: score of a reader on the items retrieved from the same memories;
- accepted, same verdict, kappa: share of the same candidate questions that a verifier accepts,
  share of equal verdicts of two verifiers, and Cohen's kappa of their verdicts (0 at chance level);
- questions: share of a teacher's candidates that a verifier accepts;
- CSR agreement: Spearman correlation of the chunk-level step rewards that two pairs of teacher and
  reader give to the same operations, over the rollouts of one instance at one step. GRPO compares
  exactly these rollouts, so this agreement is the one that affects training.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from finemem_lib.data.questions import AuditRow, Teacher, make_chunk_questions
from finemem_lib.evaluation.credit_truth import rank_correlation
from finemem_lib.evaluation.intervals import clustered_mean
from finemem_lib.managers.protocol import MemoryManager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import chunk_rewards
from finemem_lib.trajectory import Instance

Measure = Literal["accuracy", "accepted", "same verdict", "kappa", "questions", "CSR agreement"]

Values = dict[str, list[float | None]]
"""Values by instance id; `None` if undefined."""

Rewards = dict[str, list[list[float | None]]]
"""Step rewards by instance id: one list per rollout with one value per step."""


@dataclass(frozen=True, slots=True)
class Row:
    """One value with its interval over instances.

    Attributes:
        measure: Name of the measure, see the module docstring.
        file: The data file.
        who: The reader, verifier or teacher, or the pair "teacher, reader".
        against: The reader, verifier or pair that `who` is compared with, or the verifier of a
            teacher's questions; "" if there is none.
        value: Mean, with its interval from `low` to `high`; for "accuracy" with `against`, the mean
            difference on the same questions.
        counted: Number of questions, candidates or steps in the mean.
        instances: Number of instances in the mean, the clusters of the interval.
    """

    measure: Measure
    file: str
    who: str
    against: str
    value: float | None
    low: float | None
    high: float | None
    counted: int
    instances: int


def row_of(
    measure: Measure,
    file: str,
    who: str,
    values: Mapping[str, Sequence[float | None]],
    against: str = "",
    baseline: Mapping[str, Sequence[float | None]] | None = None,
) -> Row:
    """Return the row for the mean of values, or of their differences to a baseline.

    Args:
        measure, file, who, against: See `Row`.
        values: Values by instance.
        baseline: Values to subtract, in the same positions.

    >>> row_of("accuracy", "squad", "m", {"a": [1.0, 0.0], "b": [None]}).counted
    2
    """
    subtracted = values if baseline is None else baseline
    known = [
        sum(None not in pair for pair in zip(some, subtracted[name], strict=True))
        for name, some in values.items()
    ]
    a_share = baseline is None and measure != "CSR agreement"
    return Row(
        measure,
        file,
        who,
        against,
        *clustered_mean(values, baseline, bounds=(0 if a_share else -1, 1)),
        sum(known),
        sum(map(bool, known)),
    )


def accuracies(
    instances: Sequence[Instance],
    manager: MemoryManager,
    reader: ReasoningAgent,
    top_k: int,
    seed: int,
) -> Values:
    """Return the score of every question, by instance.

    Args:
        instances: Instances with the questions.
        manager: Memory manager that writes the memories.
        reader: Reader that answers the questions.
        top_k: Number of items retrieved per question.
        seed: Seed of the manager.
    """
    settings = RolloutSettings(num_generations=1, top_k=top_k, ask_chunk_questions=False)
    return {
        one.instance_id: [answered.score for answered in one.questions]
        for [one] in play(instances, manager, settings, reader, seed)
    }


def questioned(
    instances: Sequence[Instance], teacher: Teacher, verifier: ReasoningAgent, k: int, seed: int
) -> tuple[list[Instance], dict[str, tuple[AuditRow, ...]]]:
    """Return the instances with their accepted chunk questions, and all verdicts by instance.

    If the teacher writes at most k candidates per chunk, every candidate gets a verdict.

    Args:
        instances: Instances whose chunks get questions.
        teacher: Writes the candidate questions.
        verifier: Accepts or rejects the candidates.
        k: Largest number of accepted questions per chunk.
        seed: Seed of the teacher.
    """
    made = [make_chunk_questions(one, teacher, verifier, k, seed) for one in instances]
    return [one for one, _ in made], {one.instance_id: audit for one, audit in made}


def acceptances(audits: Mapping[str, Sequence[AuditRow]]) -> Values:
    """Return 1 for every accepted candidate and 0 for every other, by instance.

    Args:
        audits: Verdicts by instance.
    """
    return {name: [float(row.accepted) for row in audit] for name, audit in audits.items()}


def same_verdicts(one: Values, other: Values) -> Values:
    """Return 1 for every candidate on which two verifiers agree and 0 for every other, by instance.

    Args:
        one, other: `acceptances` of the same candidates in the same order.

    Raises:
        ValueError: the numbers of candidates differ.

    >>> same_verdicts({"a": [1.0, 0.0]}, {"a": [1.0, 1.0]})
    {'a': [1.0, 0.0]}
    """
    return {
        name: [float(mine == yours) for mine, yours in zip(some, other[name], strict=True)]
        for name, some in one.items()
    }


def kappa(one: Values, other: Values) -> float | None:
    """Return Cohen's kappa of two verifiers over all candidates, `None` if it is undefined.

    ``(p - e) / (1 - e)`` with p the share of equal verdicts and e the share expected by chance from
    the two acceptance rates.

    Args:
        one, other: See `same_verdicts`.

    >>> kappa({"a": [1.0, 1.0, 0.0, 0.0]}, {"a": [1.0, 0.0, 0.0, 0.0]})
    0.5
    """
    pairs = [pair for name in one for pair in zip(one[name], other[name], strict=True)]
    if not pairs:
        return None
    mine, yours = (sum(pair[side] or 0.0 for pair in pairs) / len(pairs) for side in (0, 1))
    chance = mine * yours + (1 - mine) * (1 - yours)
    same = sum(a == b for a, b in pairs) / len(pairs)
    return None if chance == 1 else (same - chance) / (1 - chance)


def step_rewards(
    instances: Sequence[Instance],
    manager: MemoryManager,
    reader: ReasoningAgent,
    settings: RolloutSettings,
    seed: int,
) -> Rewards:
    """Return the CSR of every step of every rollout, by instance.

    With the same manager and seed the operations are the same for every teacher and reader.

    Args:
        instances: Instances with chunk questions; their global questions are not asked.
        manager: Memory manager whose operations do not depend on questions or answers.
        reader: Reader that answers the chunk questions.
        settings: Rollout settings.
        seed: Seed of the manager.
    """
    silent = [dataclasses.replace(one, questions=()) for one in instances]
    groups = play(silent, manager, settings, reader, seed)
    return {group[0].instance_id: [chunk_rewards(one) for one in group] for group in groups}


def reward_agreement(one: Rewards, other: Rewards) -> Values:
    """Return Spearman's correlation of two step rewards over the rollouts, per step, by instance.

    Args:
        one, other: Step rewards of the same rollouts.

    Returns:
        By instance, one value per step: `None` if `other` is constant over the rollouts, 0.0 if
        only `one` is.

    >>> first = {"a": [[0.0, 1.0], [0.5, 1.0], [1.0, 0.0]]}
    >>> reward_agreement(first, {"a": [[0.1, 1.0], [0.2, 1.0], [0.3, 1.0]]})
    {'a': [1.0, None]}
    """
    return {
        name: [
            rank_correlation(list(mine), list(yours))
            for mine, yours in zip(
                zip(*rollouts, strict=True), zip(*other[name], strict=True), strict=True
            )
        ]
        for name, rollouts in one.items()
    }
