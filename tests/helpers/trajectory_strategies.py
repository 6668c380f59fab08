"""Hypothesis strategies for records that could have come out of a real rollout.

`trajectories` plays random operations on a small dictionary, so that deltas, lineages, retrieved
steps and memory lengths agree with each other, without any module of a higher layer.
"""

from __future__ import annotations

from hypothesis import strategies as st

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

SOURCES = {"squad": "AR", "hotpotqa": "AR", "clinc150": "TTL", "squality": "LRU"}
REASONS = ("unknown id", "empty content", "exact duplicate")

texts = st.text(max_size=20)
names = st.text(alphabet="abcdef-0123", min_size=1, max_size=8)
scores = st.sampled_from((1.0, 0.0, 0.5, None, 0.3)) | st.floats(0, 1)
finite = st.floats(-1e6, 1e6)
few = st.sampled_from((1, 2, 3, 0))
kinds = st.sampled_from(
    ("INSERT", "UPDATE", "SKIP", "DELETE", "refused", "unparsed", "INSERT", "UPDATE")
)
refused_operations = st.one_of(
    st.builds(Operation, kind=st.just("INSERT"), content=texts),
    st.builds(Operation, kind=st.just("UPDATE"), content=texts, item_id=names),
    st.builds(Operation, kind=st.just("DELETE"), item_id=names),
)


@st.composite
def answered_questions(
    draw: st.DrawFn,
    question_id: str,
    items: list[MemoryItem],
    asked_step: int,
    step: int | None = None,
) -> AnsweredQuestion:
    """An answer given from some of `items`, the memory after `asked_step`."""
    found = draw(st.permutations(items))[: draw(few)]
    retrieved = tuple(
        Retrieved(item.item_id, draw(finite), tuple(write.step for write in item.lineage))
        for item in found
    )
    ids = [item.item_id for item in found] + ["never-written"]
    used = draw(st.none() | st.lists(st.sampled_from(ids), unique=True).map(tuple))
    question = Question(
        question_id=question_id,
        text=draw(texts),
        answers=tuple(draw(st.lists(texts, max_size=2))),
        data_source=draw(st.sampled_from(sorted(SOURCES))),
        step=step,
        evidence_steps=draw(st.sampled_from((None, (), (asked_step,)))),
    )
    return AnsweredQuestion(question, asked_step, retrieved, draw(texts), used, draw(scores))


@st.composite
def trajectories(draw: st.DrawFn, max_steps: int = 5, max_questions: int = 4) -> Trajectory:
    """A trajectory whose parts agree; its global questions are called q-0, q-1, ..."""
    source = draw(st.sampled_from(sorted(SOURCES)))
    memory: dict[str, MemoryItem] = {}
    created = 0
    steps = []
    for number in range(1, draw(st.integers(1, max_steps)) + 1):
        outcomes: list[OperationOutcome] = []
        before = dict(memory)
        written: dict[str, MemoryItem] = {}
        for position, kind in enumerate(draw(kinds) for _ in range(draw(few))):
            live = sorted(memory)
            if kind == "SKIP":
                outcomes.append(OperationOutcome(Operation("SKIP"), True))
            elif kind == "INSERT":
                created += 1
                item_id, content = str(created), draw(texts)
                write = Write(number, "INSERT", position)
                memory[item_id] = written[item_id] = MemoryItem(item_id, content, (write,))
                operation = Operation("INSERT", content)
                outcomes.append(OperationOutcome(operation, True, item_id=item_id))
            elif kind == "UPDATE" and live:
                item_id, content = draw(st.sampled_from(live)), draw(texts)
                lineage = (*memory[item_id].lineage, Write(number, "UPDATE", position))
                memory[item_id] = written[item_id] = MemoryItem(item_id, content, lineage)
                operation = Operation("UPDATE", content, item_id)
                outcomes.append(OperationOutcome(operation, True, item_id=item_id))
            elif kind == "DELETE" and live:
                item_id = draw(st.sampled_from(live))
                del memory[item_id]
                written.pop(item_id, None)
                operation = Operation("DELETE", item_id=item_id)
                outcomes.append(OperationOutcome(operation, True, item_id=item_id))
            elif kind == "unparsed":
                reason = draw(st.sampled_from(REASONS))
                outcomes.append(OperationOutcome(None, False, reason, raw=draw(texts)))
            else:
                operation, reason = draw(refused_operations), draw(st.sampled_from(REASONS))
                outcomes.append(OperationOutcome(operation, False, reason))
        text = draw(texts)
        asked = [
            draw(answered_questions(f"chunk-{number}-{k}", list(memory.values()), number, number))
            for k in range(min(2, draw(few)))
        ]
        ids = draw(st.none() | st.lists(st.integers(0, 99), max_size=3).map(tuple))
        removed = tuple(sorted(before.keys() - memory.keys()))
        steps.append(
            Step(
                step=number,
                chunk=Chunk(text, count_tokens(text), draw(st.integers(0, 3))),
                completion=draw(texts),
                outcomes=tuple(outcomes),
                delta=MemoryDelta(tuple(written.values()), removed),
                memory_tokens=sum(count_tokens(item.content) for item in memory.values()),
                chunk_questions=tuple(asked),
                prompt=draw(st.none() | texts),
                prompt_ids=ids,
                completion_ids=ids,
                logprobs=None if ids is None else tuple(-float(token) for token in ids),
            )
        )
    return Trajectory(
        instance_id=draw(names),
        data_source=source,
        category=SOURCES[source],
        manager=draw(names),
        rollout=draw(st.integers(0, 7)),
        steps=tuple(steps),
        questions=tuple(
            draw(answered_questions(f"q-{number}", list(memory.values()), len(steps)))
            for number in range(draw(st.sampled_from((max_questions, *range(max_questions)))))
        ),
        tokenizer=TOKENIZER,
        seed=draw(st.none() | st.integers(0, 2**62)),
        metadata=draw(st.dictionaries(names, texts | st.integers(0, 9), max_size=2)),
    )
