"""The worked example: four steps and two global questions, to be checked by hand."""

from __future__ import annotations

from finemem_lib.memory import FlatMemory
from finemem_lib.text import TOKENIZER, count_tokens
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Chunk,
    Operation,
    Question,
    Retrieved,
    Step,
    Trajectory,
)


def _answered(
    name: str,
    text: str,
    gold: str,
    score: float,
    items: tuple[Retrieved, ...],
    step: int | None = None,
) -> AnsweredQuestion:
    question = Question(name, text, (gold,), "planted", step=step)
    used = tuple(item.item_id for item in items)
    return AnsweredQuestion(question, step or 4, items, gold if score else "", used, score)


def worked_example() -> Trajectory:
    """Return a trajectory with T = 4 and two global questions, small enough to check by hand.

    q1 (score 1.0) retrieved the items written at steps 1 and 3, q2 (score 0.5) the item written at
    step 3. Step 2 skips and has no chunk question; at step 3 one of two operations names an
    unknown id; step 4 emits no operation.

    >>> example = worked_example()
    >>> [item.content for item in example.final_memory()]
    ['Mia lives in Rome.', 'Mia adopted cats.']
    """
    one, two = Retrieved("1", 1.2, (1,)), Retrieved("2", 0.8, (3,))
    home, pet = "Where does Mia live?", "Which pets does Mia keep?"
    emitted: tuple[tuple[str, list[Operation]], ...] = (
        ("Mia lives in Rome.", [Operation("INSERT", "Mia lives in Rome.")]),
        ("It rained.", [Operation("SKIP")]),
        (
            "Mia adopted cats. Ben saw cats.",
            [Operation("INSERT", "Mia adopted cats."), Operation("UPDATE", "Ben saw cats.", "9")],
        ),
        ("Buses left.", []),
    )
    chunk_questions = (
        (_answered("chunk-1-1", home, "Rome", 1.0, (one,), 1),),
        (),
        (
            _answered("chunk-3-1", pet, "cats", 1.0, (two,), 3),
            _answered("chunk-3-2", "Who saw cats?", "Ben", 0.0, (two,), 3),
        ),
        (_answered("chunk-4-1", "What left?", "Buses", 0.0, (), 4),),
    )
    memory, steps = FlatMemory(), []
    for number, ((text, operations), questions) in enumerate(
        zip(emitted, chunk_questions, strict=True), start=1
    ):
        chunk = Chunk(text, count_tokens(text))
        outcomes, delta = memory.apply(operations, number)
        steps.append(Step(number, chunk, "", outcomes, delta, memory.tokens, questions))
    return Trajectory(
        instance_id="worked-example",
        data_source="planted",
        category="AR",
        manager="by hand",
        rollout=0,
        steps=tuple(steps),
        questions=(
            _answered("q-1", home, "Rome", 1.0, (one, two)),
            _answered("q-2", pet, "cats and dogs", 0.5, (two,)),
        ),
        tokenizer=TOKENIZER,
    )
