"""The worked example: four steps and two global questions, to be checked by hand."""

from __future__ import annotations

from finemem_lib.text import TOKENIZER, count_tokens
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Chunk,
    MemoryDelta,
    MemoryItem,
    Operation,
    OperationOutcome,
    Question,
    Retrieved,
    Step,
    Trajectory,
    Write,
)


def worked_example() -> Trajectory:
    """Return the example that can be checked by hand: T = 4 and two global questions.

    q1 (score 1.0) retrieved the items written at steps 1 and 3, q2 (score 0.5) the item written at
    step 3. Step 2 skips and has no chunk question; at step 3 one of two operations names an
    unknown id; step 4 emits nothing.

    >>> example = worked_example()
    >>> [item.content for item in example.final_memory()]
    ['Mia lives in Rome.', 'Mia adopted cats.']
    """
    texts = ("Mia lives in Rome.", "It rained.", "Mia adopted cats. Ben saw cats.", "Buses left.")
    first = MemoryItem("1", "Mia lives in Rome.", (Write(1, "INSERT", 0),))
    second = MemoryItem("2", "Mia adopted cats.", (Write(3, "INSERT", 0),))
    unknown = Operation("UPDATE", "Ben saw cats.", "9")
    outcomes = (
        (OperationOutcome(Operation("INSERT", first.content), True, item_id="1"),),
        (OperationOutcome(Operation("SKIP"), True),),
        (
            OperationOutcome(Operation("INSERT", second.content), True, item_id="2"),
            OperationOutcome(unknown, False, "unknown id"),
        ),
        (),
    )
    deltas = (MemoryDelta((first,)), MemoryDelta(), MemoryDelta((second,)), MemoryDelta())
    one, two = Retrieved("1", 1.2, (1,)), Retrieved("2", 0.8, (3,))

    def asked(
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

    home, pet = "Where does Mia live?", "Which pets does Mia keep?"
    chunk_questions = (
        (asked("chunk-1-1", home, "Rome", 1.0, (one,), 1),),
        (),
        (
            asked("chunk-3-1", pet, "cats", 1.0, (two,), 3),
            asked("chunk-3-2", "Who saw cats?", "Ben", 0.0, (two,), 3),
        ),
        (asked("chunk-4-1", "What left?", "Buses", 0.0, (), 4),),
    )
    memory_tokens = (5, 5, 9, 9)
    return Trajectory(
        instance_id="worked-example",
        data_source="planted",
        category="AR",
        manager="by hand",
        rollout=0,
        steps=tuple(
            Step(number, Chunk(text, count_tokens(text)), "", outcome, delta, tokens, questions)
            for number, (text, outcome, delta, tokens, questions) in enumerate(
                zip(texts, outcomes, deltas, memory_tokens, chunk_questions, strict=True), start=1
            )
        ),
        questions=(
            asked("q-1", home, "Rome", 1.0, (one, two)),
            asked("q-2", pet, "cats and dogs", 0.5, (two,)),
        ),
        tokenizer=TOKENIZER,
    )
