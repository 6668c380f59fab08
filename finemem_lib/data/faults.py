"""Deliberate faults: wrong chunk questions, and lost or swapped evidence."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass

from finemem_lib.data.cloze import DATE, NUMBER
from finemem_lib.data.planted import ATTRIBUTES, DATA_SOURCE as PLANTED
from finemem_lib.scoring import score
from finemem_lib.seeds import generator
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Instance,
    MemoryItem,
    Question,
    Retrieved,
    Trajectory,
)


def wrong_questions(instance: Instance, share: float, seed: int) -> Instance:
    """Return the instance with wrong accepted answers in a share of its chunk questions.

    On the planted stream the wrong answer is a value of the same attribute; otherwise it is the
    answer of another question of the instance, of the same form (date, number, name, other) if
    possible. `evidence_steps` becomes `None`, because no step stated the wrong answer.

    Args:
        instance: The instance; returned unchanged if it has no chunk questions.
        share: Share of its chunk questions, from 0 to 1; the number is rounded.
        seed: Seed of the draws; with equal seeds a larger share includes a smaller one.

    Raises:
        ValueError: `share` is outside [0, 1], or the instance has no wrong answer to use.
    """
    if not 0 <= share <= 1:
        raise ValueError(f"wrong_questions: share is {share!r}, expected a number from 0 to 1")
    if instance.chunk_questions is None:
        return instance
    questions = [list(asked) for asked in instance.chunk_questions]
    places = [(row, place) for row, asked in enumerate(questions) for place in range(len(asked))]
    generator("wrong questions", seed, instance.instance_id).shuffle(places)
    for row, place in places[: round(share * len(places))]:
        rng = generator("wrong answer", seed, instance.instance_id, row, place)
        question = questions[row][place]
        questions[row][place] = dataclasses.replace(
            question, answers=(_wrong_answer(question, instance, rng),), evidence_steps=None
        )
    return dataclasses.replace(instance, chunk_questions=tuple(map(tuple, questions)))


def _wrong_answer(question: Question, instance: Instance, rng: random.Random) -> str:
    """Return an answer, of the same form if possible, that the question's metric scores as 0."""
    right = question.answers[0] if question.answers else ""
    known = [
        answer
        for asked in (instance.questions, *(instance.chunk_questions or ()))
        for other in asked
        for answer in other.answers
    ]
    same_form = [answer for answer in known if _form(answer) == _form(right)]
    same_attribute = (
        [
            value
            for attribute in ATTRIBUTES.values()
            if right in attribute.values
            for value in attribute.values
        ]
        if question.data_source == PLANTED
        else []
    )
    for answers in (same_attribute, same_form, known):
        if wrong := sorted(
            {
                answer
                for answer in answers
                if score(answer, question.answers, question.data_source) == 0
                and not any(score(one, (answer,), question.data_source) for one in question.answers)
            }
        ):
            return rng.choice(wrong)
    raise ValueError(
        f"wrong_questions: instance {instance.instance_id!r} has no answer that would be wrong for "
        f"{question.question_id!r}, expected at least two different answers among its questions; "
        "use instances with more questions"
    )


def _form(answer: str) -> str:
    """Return the form of an answer: date, number, name or other."""
    if DATE.fullmatch(answer):
        return "date"
    if NUMBER.fullmatch(answer):
        return "number"
    return "name" if answer[:1].isupper() else "other"


@dataclass(frozen=True, slots=True)
class EvidenceFaults:
    """Probabilities of faults in the evidence, to test the robustness of credit rules.

    At most one fault happens to an item, so the sum is at most 1.

    Attributes:
        drop: Probability that a retrieved item is lost.
        swap: Probability that it is replaced by another item of M_T.

    Raises:
        ValueError: a probability, or their sum, is outside [0, 1].
    """

    drop: float = 0.0
    swap: float = 0.0

    def __post_init__(self) -> None:
        for name, value in (
            ("drop", self.drop),
            ("swap", self.swap),
            ("drop + swap", self.drop + self.swap),
        ):
            if not 0 <= value <= 1:
                raise ValueError(
                    f"evidence faults: {name} is {value!r}, expected a number from 0 to 1"
                )


def with_faults(trajectory: Trajectory, faults: EvidenceFaults, seed: int) -> Trajectory:
    """Return the trajectory with faults in the evidence of its global questions.

    Only the retrieved and used items change; scores and answers remain. A replacement takes over
    rank and score, and counts as used if the original did; it is an item that the question does not
    list yet. If there is none, the original remains.

    Args:
        trajectory: The rollout to change.
        faults: Probabilities of the faults.
        seed: Seed of the draws.

    >>> from finemem_lib import evidence_contribution, outcome_reward, worked_example
    >>> faulty = with_faults(worked_example(), EvidenceFaults(swap=1.0), seed=0)
    >>> [[item.item_id for item in answered.retrieved] for answered in faulty.questions]
    [['1', '2'], ['1']]
    >>> evidence_contribution(faulty), outcome_reward(faulty)
    ([0.5, 0.0, 0.25, 0.0], 0.75)
    """
    rng = generator("evidence faults", seed, trajectory.instance_id, trajectory.rollout)
    memory = trajectory.final_memory()
    return dataclasses.replace(
        trajectory,
        questions=tuple(_faulty(one, memory, faults, rng) for one in trajectory.questions),
    )


def _faulty(
    answered: AnsweredQuestion,
    memory: Sequence[MemoryItem],
    faults: EvidenceFaults,
    rng: random.Random,
) -> AnsweredQuestion:
    listed = {item.item_id for item in answered.retrieved}
    others = [item for item in memory if item.item_id not in listed]
    rng.shuffle(others)
    retrieved, swapped = [], {}
    for item in answered.retrieved:
        chance = rng.random()
        if chance < faults.drop:
            continue
        if chance < faults.drop + faults.swap and others:
            other = others.pop()
            swapped[item.item_id] = other.item_id
            steps = tuple(write.step for write in other.lineage)
            item = Retrieved(other.item_id, item.score, steps)
        retrieved.append(item)
    used = answered.used and tuple(swapped.get(item_id, item_id) for item_id in answered.used)
    return dataclasses.replace(answered, retrieved=tuple(retrieved), used=used)
