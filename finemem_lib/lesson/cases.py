"""Toy trajectories for the lessons, small enough to compute every number by hand."""

from __future__ import annotations

import functools
import random
import textwrap
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from finemem_lib.data.planted import ATTRIBUTES, DATA_SOURCE
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import ScriptedManager
from finemem_lib.readers.extractive import reader_for
from finemem_lib.text import clean_text, count_tokens
from finemem_lib.trajectory import (
    Chunk,
    Instance,
    Operation,
    OperationOutcome,
    Question,
    Trajectory,
)


class _ByHand(ScriptedManager):
    """A manager that emits one given operation per step."""

    name = "by hand"

    def __init__(self, operations: Sequence[Operation]) -> None:
        self.operations = operations

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        return [self.operations[observation.step - 1]]


def play_script(
    name: str,
    script: Sequence[tuple[str, Operation]],
    asked: Sequence[tuple[str, str, str, int | None]],
    top_k: int,
    capacity: int | None = None,
) -> Trajectory:
    """Return the trajectory of scripted operations, with global questions.

    Args:
        name: Id of the instance.
        script: (chunk, operation) of every step.
        asked: (person, attribute, value, step that stated it) of every question; the step is `None`
            if no chunk stated the value.
        top_k: Largest number of items retrieved per question, at least 1.
        capacity: Largest number of items in the memory, at least 1; `None` for no limit.
    """
    questions = tuple(
        Question(
            f"q-{number}",
            ATTRIBUTES[attribute].question.format(person=person),
            (value,),
            DATA_SOURCE,
            evidence_steps=None if step is None else (step,),
        )
        for number, (person, attribute, value, step) in enumerate(asked, start=1)
    )
    chunks = tuple(Chunk(text, count_tokens(text)) for text, _ in script)
    instance = Instance(name, DATA_SOURCE, "AR", chunks, questions)
    manager = _ByHand([operation for _, operation in script])
    settings = RolloutSettings(num_generations=1, top_k=top_k, capacity=capacity)
    ((trajectory,),) = play([instance], manager, settings, reader_for([instance]), seed=0)
    return trajectory


def insert(sentence: str) -> tuple[str, Operation]:
    """Return a step that stores its chunk.

    Args:
        sentence: The chunk and the stored content.
    """
    return sentence, Operation("INSERT", sentence)


def update(sentence: str, item_id: str) -> tuple[str, Operation]:
    """Return a step that overwrites an item with its chunk.

    Args:
        sentence: The chunk and the item's new content.
        item_id: Id of the item to overwrite.
    """
    return sentence, Operation("UPDATE", sentence, item_id)


@functools.cache
def toy() -> Trajectory:
    """Return the trajectory of the first exercises: T = 5, four questions, at most two items each.

    >>> [answered.score for answered in toy().questions]
    [1.0, 1.0, 0.0, 0.0]
    """
    return play_script(
        "toy",
        [
            insert("Ana owns cats."),
            insert("Leo studies law."),
            ("Buses left for Oslo.", Operation("SKIP")),
            update("Ana adopted dogs.", "1"),
            insert("Perhaps Ana painted geese."),
        ],
        [
            ("Ana", "pet", "dogs", 4),
            ("Leo", "study", "law", 2),
            ("Leo", "home", "Oslo", None),
            ("Ana", "study", "music", None),
        ],
        top_k=2,
    )


@functools.cache
def lucky_guess() -> Trajectory:
    """Return `toy` changed so that q-3 retrieved no item and the agent guessed the answer.

    >>> from finemem_lib import outcome_reward
    >>> outcome_reward(lucky_guess())
    0.75
    """
    played = toy()
    questions = list(played.questions)
    questions[2] = replace(questions[2], retrieved=(), used=(), answer="Oslo", score=1.0)
    return replace(played, questions=tuple(questions))


@functools.cache
def duplicates() -> Trajectory:
    """Return the trajectory of the last exercise: T = 4, with two redundant records.

    >>> from finemem_lib import outcome_reward
    >>> outcome_reward(duplicates())
    1.0
    """
    return play_script(
        "duplicates",
        [
            insert("Mia lives in Rome."),
            insert("Ben owns cats."),
            insert("Mia settled near Rome."),
            insert("Perhaps Ben painted geese."),
        ],
        [("Mia", "home", "Rome", 3), ("Ben", "pet", "cats", 2)],
        top_k=2,
    )


@functools.cache
def pushed_out() -> tuple[Trajectory, Trajectory]:
    """Return two rollouts of one stream of four steps, with a memory of two items.

    The first stores the noise of step 2, so that step 3 evicts the item of step 1, which a question
    needs; the second skips the noise.

    >>> from finemem_lib import outcome_reward
    >>> [outcome_reward(one) for one in pushed_out()]
    [0.5, 1.0]
    """
    home, noise, pet, last = (
        insert("Mia lives in Rome."),
        insert("Yesterday Ana saw Oslo."),
        insert("Ben owns cats."),
        ("Buses left for Oslo.", Operation("SKIP")),
    )
    asked = [("Mia", "home", "Rome", 1), ("Ben", "pet", "cats", 3)]
    stores, skips = (
        play_script("pushed out", [home, second, pet, last], asked, top_k=2, capacity=2)
        for second in (noise, (noise[0], Operation("SKIP")))
    )
    return stores, replace(skips, rollout=1)


def disagreement(top_k: int = 2, capacity: int | None = None) -> Trajectory:
    """Return a trajectory of nine steps on which the credit rules disagree for visible reasons.

    Step 4 repeats the fact of step 1, step 5 updates the item of step 2, step 6 stores a new value
    and leaves the stale record of step 3, step 7 stores noise about the person of a question, and
    step 9 deletes the item of step 8, which a question needs.

    Args:
        top_k: Largest number of items retrieved per question, at least 1.
        capacity: Largest number of items in the memory; `None` for no limit. With 4, steps 6 to 8
            evict items 1, 3 and 4, so that q-1 fails, too.

    >>> [answered.score for answered in disagreement().questions]
    [1.0, 1.0, 1.0, 0.0]
    """
    return play_script(
        "disagreement",
        [
            insert("Mia lives in Rome."),
            insert("Ben owns cats."),
            insert("Leo studies law."),
            insert("Mia settled near Rome."),
            update("Ben adopted dogs.", "2"),
            insert("Leo researches optics."),
            insert("Perhaps Ben painted geese."),
            insert("Eva feeds goats."),
            ("Buses left for Oslo.", Operation("DELETE", item_id="7")),
        ],
        [
            ("Mia", "home", "Rome", 4),
            ("Ben", "pet", "dogs", 5),
            ("Leo", "study", "optics", 6),
            ("Eva", "pet", "goats", 8),
        ],
        top_k=top_k,
        capacity=capacity,
    )


def story(trajectory: Trajectory) -> str:
    """Return a trajectory as text: a line per operation, then two per global question.

    Each eviction has a separate line. The lines of a question state its score, the retrieved items
    (with the steps that wrote them) and the used items.

    Args:
        trajectory: The trajectory.

    >>> print(story(duplicates()).splitlines()[2])
    step 3  INSERT item 3: Mia settled near Rome.
    """
    lines = [
        f"step {step.step}  {deed}"
        for step in trajectory.steps
        for deed in (*map(_deed, step.outcomes or (None,)), *map(_loss, step.delta.evicted))
    ]
    for answered in trajectory.questions:
        found = ", ".join(
            f"item {item.item_id} (step{'s' * (len(item.steps) > 1)} "
            f"{' and '.join(map(str, item.steps))})"
            for item in answered.retrieved
        )
        used = "unknown" if answered.used is None else ", ".join(answered.used) or "none"
        lines.append(
            f"{answered.question.question_id}  {_short(answered.question.text)} "
            f"score {as_text(answered.score)}\n     retrieved {found or 'nothing'}; used {used}"
        )
    return "\n".join(lines)


def _deed(outcome: OperationOutcome | None) -> str:
    if outcome is None:
        return "emits nothing"
    operation = outcome.operation
    kind = operation.kind if operation else "unreadable"
    if not outcome.applied:
        return f"{kind}, refused: {outcome.reason}"
    content = f": {_short(operation.content)}" if operation and operation.content else ""
    return kind + (f" item {outcome.item_id}" if outcome.item_id else "") + content


def _loss(item_id: str) -> str:
    return f"pushes item {item_id} out"


def _short(text: str) -> str:
    return textwrap.shorten(clean_text(text), 60, placeholder="…")


def as_text(value: Any) -> str:
    """Return a value as text for the lesson, with numbers rounded to four decimals.

    Args:
        value: A number, `None`, a text, or a list of these.

    >>> as_text([0.25, None, 1 / 3])
    '[0.25, None, 0.3333]'
    """
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(as_text, value))}]"
    return f"{round(value, 4) + 0.0:g}" if isinstance(value, float) else str(value)
