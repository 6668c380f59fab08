"""Hypothesis strategies for memories and trajectories, shared by several test files."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

from hypothesis import strategies as st

from finemem_lib.layers.memory import LayerRules
from finemem_lib.memory import FlatMemory
from finemem_lib.operations import MALFORMED
from finemem_lib.trajectory import (
    Chunk,
    InvalidOperation,
    MemoryDelta,
    MemoryItem,
    Operation,
    OperationOutcome,
    Step,
    Trajectory,
    Write,
)

# Few contents and few ids, so that duplicates, common words and hits on live items are frequent.
CONTENTS = st.one_of(
    st.lists(
        st.sampled_from("mia ana rome oslo lives sails the the in cats".split()),
        min_size=1,
        max_size=7,
    ).map(" ".join),
    st.sampled_from(["", "  ", "!?", "Mia lives in Rome.", "one two three four five six seven"]),
)
ITEM_IDS = st.integers(0, 14).map(str)
OPERATIONS = st.one_of(
    st.builds(Operation, st.just("INSERT"), CONTENTS),
    st.builds(Operation, st.just("INSERT"), CONTENTS),
    st.builds(Operation, st.just("UPDATE"), CONTENTS, ITEM_IDS),
    st.builds(Operation, st.just("DELETE"), st.none(), ITEM_IDS),
    st.just(Operation("SKIP")),
)
EMITTED = st.one_of(
    OPERATIONS, OPERATIONS, st.builds(InvalidOperation, st.sampled_from(MALFORMED), st.text())
)
STEPS = st.lists(st.lists(EMITTED, max_size=7), max_size=8)
STORES = st.sampled_from(["semantic", "semantic", "episodic", "core", None])
LAYERED_OPERATIONS = st.builds(
    lambda operation, store, letter: dataclasses.replace(
        operation,
        store=store,
        item_id=operation.item_id and letter + operation.item_id,  # as a layered memory names items
    ),
    OPERATIONS,
    STORES,
    st.sampled_from("se"),
)
LAYERED_STEPS = st.lists(
    st.lists(
        st.one_of(
            LAYERED_OPERATIONS,
            st.builds(Operation, st.just("UPDATE"), CONTENTS, st.none(), st.just("core")),
        ),
        max_size=7,
    ),
    max_size=8,
)
LAYER_RULES = st.builds(
    LayerRules,
    st.integers(1, 6),
    st.sampled_from(["cut", "refuse"]),
    st.sampled_from(["refuse", "clear"]),
    st.sampled_from(["refuse", "succeed"]),
)
MEMORY_SETTINGS = st.fixed_dictionaries(
    {
        "capacity": st.one_of(st.none(), st.integers(1, 5)),
        "eviction": st.sampled_from(["oldest", "first_created", "least_recent", "refuse"]),
        "max_item_tokens": st.one_of(st.none(), st.integers(1, 6)),
        "duplicates": st.sampled_from(["refuse", "allow"]),
        "token_budget": st.one_of(st.none(), st.integers(1, 12)),
    }
)


@dataclass(frozen=True)
class Played:
    """What a memory showed while a list of steps was applied to it."""

    states: list[tuple[MemoryItem, ...]]  # states[t] is the memory after step t, states[0] is ()
    outcomes: list[tuple[OperationOutcome, ...]]
    deltas: list[MemoryDelta]
    trajectory: Trajectory


def played(memory: FlatMemory, steps: list[list[Operation | InvalidOperation]]) -> Played:
    """Apply the steps to the memory and record everything."""
    states, outcomes, deltas, records = [memory.items], [], [], []
    for step, operations in enumerate(steps, start=1):
        outcome, delta = memory.apply(operations, step)
        states.append(memory.items)
        outcomes.append(outcome)
        deltas.append(delta)
        chunk = Chunk(text="a chunk", tokens=2)
        records.append(Step(step, chunk, "", outcome, delta, memory.tokens))
    trajectory = Trajectory("i", "planted", "AR", "random", 0, tuple(records), (), "words")
    return Played(states, outcomes, deltas, trajectory)


def items_of(*contents: str) -> list[MemoryItem]:
    """Items 1, 2, ... each written at the step of its number."""
    return [
        MemoryItem(str(number), content, (Write(number, "INSERT", 0),))
        for number, content in enumerate(contents, start=1)
    ]
