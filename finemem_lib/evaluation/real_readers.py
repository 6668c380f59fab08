"""What changes when a small language model reads, verifies or teaches instead of the rules.

Differs from the paper: there Qwen3-32B reads and verifies and GPT-4o-mini teaches, and no other
model is tried. Here each role is played by a language model and by the model-free default on the
same data:

- accuracy: score of a reader on the items retrieved from the same memories;
- accepted, same verdict, kappa: share of the same candidate questions that a verifier accepts, how
  often two verifiers agree, and Cohen's kappa of it, which is 0 where they agree as by chance;
- questions: share of a teacher's candidates that a verifier accepts;
- CSR agreement: Spearman correlation, over the rollouts of one instance at one step, of the step
  rewards that two pairs of teacher and reader give to the same operations. GRPO compares exactly
  these rollouts with each other, so it is the agreement that matters to training.
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
"""Values by instance, `None` where there is nothing to measure."""

Rewards = dict[str, list[list[float | None]]]
"""Step rewards by instance: a list per rollout of a value per step."""


@dataclass(frozen=True, slots=True)
class Row:
    """One value with its interval over instances.

    Attributes:
        measure: See above.
        file: The data file.
        who: The reader, the verifier, the teacher, or "teacher, reader".
        against: Whom it is compared with or verified by; "" for a value of its own.
        value: The mean, between `low` and `high`; of "accuracy" against another reader the
            difference on the same questions.
        counted: Questions, candidates or steps behind the value.
        instances: Clusters behind the interval.
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
    """Return the row of values, or of their difference to others in the same places.

    Args:
        measure, file, who, against: As in `Row`.
        values: Values by instance.
        baseline: Values to subtract.

    >>> row_of("accuracy", "squad", "m", {"a": [1.0, 0.0], "b": [None]}).counted
    2
    """
    subtracted = values if baseline is None else baseline
    known = [
        sum(None not in pair for pair in zip(some, subtracted[name], strict=True))
        for name, some in values.items()
    ]
    return Row(
        measure,
        file,
        who,
        against,
        *clustered_mean(values, baseline),
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
        instances: What the manager reads and the reader is asked about.
        manager: Fills the memories.
        reader: Answers.
        top_k: Items it reads per question.
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
    """Return instances with the questions that were accepted, and the verdicts by instance.

    With at most k candidates per chunk, every candidate gets a verdict.

    Args:
        instances: Their chunks are asked about.
        teacher: Writes the candidates.
        verifier: Accepts them.
        k: Most questions per chunk.
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
    """Return 1 where two verifiers agree on a candidate and 0 where not, by instance.

    Args:
        one, other: `acceptances` of the same candidates in the same order.

    Raises:
        ValueError: They are not of the same candidates.

    >>> same_verdicts({"a": [1.0, 0.0]}, {"a": [1.0, 1.0]})
    {'a': [1.0, 0.0]}
    """
    return {
        name: [float(mine == yours) for mine, yours in zip(some, other[name], strict=True)]
        for name, some in one.items()
    }


def kappa(one: Values, other: Values) -> float | None:
    """Return Cohen's kappa of two verifiers over all candidates, `None` where it is undefined.

    ``(p - e) / (1 - e)`` with p the share of equal verdicts and e the share that the two shares of
    acceptance give by chance.

    Args:
        one, other: As for `same_verdicts`.

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

    The same manager and seed give the same operations, whoever asks and answers.

    Args:
        instances: With chunk questions; their global questions are not asked.
        manager: It must not look at questions or answers.
        reader: Answers the chunk questions.
        settings: How they are played.
        seed: Seed of the manager.
    """
    silent = [dataclasses.replace(one, questions=()) for one in instances]
    groups = play(silent, manager, settings, reader, seed)
    return {group[0].instance_id: [chunk_rewards(one) for one in group] for group in groups}


def reward_agreement(one: Rewards, other: Rewards) -> Values:
    """Return the rank agreement of two step rewards over the rollouts, per step, by instance.

    Args:
        one, other: Step rewards of the same rollouts. Where `other` is the same for all of them
            there is nothing to rank (`None`); where only `one` is, they do not agree (0.0).

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
