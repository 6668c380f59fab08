from __future__ import annotations

import itertools
import sys

import pytest
from hypothesis import given, strategies as st

from finemem_lib.credit.replay import replay
from finemem_lib.memory import (
    EMPTY_CONTENT,
    EXACT_DUPLICATE,
    OVER_CAPACITY,
    REASONS,
    TOO_LONG,
    UNKNOWN_ID,
    FlatMemory,
)
from finemem_lib.operations import UNKNOWN_OPERATION, parse_operations
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import MemoryDelta, Operation, Write
from tests.helpers.memory_strategies import ITEM_IDS, MEMORY_SETTINGS, STEPS, played


def insert(content: str) -> Operation:
    return Operation("INSERT", content)


def update(item_id: str, content: str) -> Operation:
    return Operation("UPDATE", content, item_id)


def delete(item_id: str) -> Operation:
    return Operation("DELETE", item_id=item_id)


def contents(memory: FlatMemory) -> list[str]:
    return [item.content for item in memory.items]


def reasons(memory: FlatMemory, operations: list[Operation], step: int) -> list[str | None]:
    return [outcome.reason for outcome in memory.apply(operations, step)[0]]


def test_items_know_every_write():
    memory = FlatMemory()
    memory.apply([insert("Mia lives in Rome"), Operation("SKIP"), insert("Ana sails")], 1)
    outcomes, delta = memory.apply([delete("9"), update("1", "Mia lives in Oslo")], 4)
    item = memory.get("1")
    assert item.content == "Mia lives in Oslo"
    assert item.lineage == (Write(1, "INSERT", 0), Write(4, "UPDATE", 1))
    assert (item.created_step, item.last_step) == (1, 4)
    assert contents(memory) == ["Mia lives in Oslo", "Ana sails"]  # in order of creation
    assert delta == MemoryDelta(written=(item,))
    assert [outcome.item_id for outcome in outcomes] == [None, "1"]
    assert memory.get("9") is None


def test_every_reason_of_the_memory():
    memory = FlatMemory(capacity=2, eviction="refuse", max_item_tokens=4)
    assert reasons(
        memory,
        [
            insert("Ana sails"),
            insert(" \n"),
            insert("Ana sails"),
            insert("one two three four five"),
            update("7", "x"),
            delete("7"),
            Operation("DELETE"),
            insert("Leo owns cats"),
            insert("new"),
            update("1", "Leo owns cats"),
            update("1", "Ana sails"),
            update("1", ""),
            Operation("SKIP"),
            Operation("INSERT"),
            Operation("MERGE", "x"),
        ],
        1,
    ) == [
        None,
        EMPTY_CONTENT,
        EXACT_DUPLICATE,
        TOO_LONG,
        UNKNOWN_ID,
        UNKNOWN_ID,
        UNKNOWN_ID,
        None,
        OVER_CAPACITY,
        EXACT_DUPLICATE,
        EXACT_DUPLICATE,
        EMPTY_CONTENT,
        None,
        EMPTY_CONTENT,
        UNKNOWN_OPERATION,
    ]
    assert contents(memory) == ["Ana sails", "Leo owns cats"]


def test_malformed_operations_keep_the_reason_and_the_text_of_the_parser():
    (invalid,) = parse_operations("no list at all")
    (outcome,), delta = FlatMemory().apply([invalid], 1)
    assert (outcome.applied, outcome.operation) == (False, None)
    assert (outcome.reason, outcome.raw) == (invalid.reason, "no list at all")
    assert delta == MemoryDelta()


def test_a_content_is_free_again_once_its_item_is_gone_or_changed():
    memory = FlatMemory(capacity=2)
    memory.apply([insert("a"), insert("b"), delete("1"), insert("a"), update("2", "c")], 1)
    assert reasons(memory, [insert("b"), insert("a")], 2) == [None, None]  # "a" was pushed out
    assert contents(memory) == ["b", "a"]


def test_duplicates_may_be_allowed():
    memory = FlatMemory(duplicates="allow")
    operations = [insert("a"), insert("a"), update("2", "a"), delete("1")]
    assert reasons(memory, operations, 1) == [None] * 4
    assert contents(memory) == ["a"]
    assert len(memory.get("2").lineage) == 2


@pytest.mark.parametrize(
    ("eviction", "left", "evicted"),
    [
        ("oldest", ["a2", "c", "d"], ("2",)),  # the UPDATE made the first item young
        ("first_created", ["b", "c", "d"], ("1",)),
        ("least_recent", ["a2", "b", "d"], ("3",)),  # the second was retrieved
        ("refuse", ["a2", "b", "c"], ()),
    ],
)
def test_eviction_rules(eviction, left, evicted):
    memory = FlatMemory(capacity=3, eviction=eviction)
    memory.apply([insert("a"), insert("b"), insert("c")], 1)
    memory.apply([update("1", "a2")], 2)
    memory.touch(["2"])
    outcomes, delta = memory.apply([insert("d")], 3)
    assert contents(memory) == left
    assert delta.evicted == evicted
    assert outcomes[0].applied is (eviction != "refuse")


def test_of_items_retrieved_together_the_one_created_earlier_goes_first():
    memory = FlatMemory(capacity=3, eviction="least_recent")
    memory.apply([insert("a"), insert("b"), insert("c")], 1)
    memory.touch(["3", "gone", "1", "3"])
    _, delta = memory.apply([insert("d"), insert("e")], 2)
    assert delta.evicted == ("2", "1")
    assert contents(memory) == ["c", "d", "e"]


@pytest.mark.parametrize(
    ("eviction", "evicted", "left"),
    [
        ("oldest", [("2",), ("3",)], ["Mia owns two cats", "Leo is old", "Uma dives"]),
        ("first_created", [("2",), ("1",)], ["Ben", "Leo is old", "Uma dives"]),
        ("least_recent", [("3",), ("4",)], ["Mia owns two cats", "Ana sails", "Uma dives"]),
    ],
)
def test_a_token_budget_evicts_other_items_until_the_write_fits(eviction, evicted, left):
    """The items have 3 + 2 + 1 + 3 = 9 tokens and the UPDATE adds one: without the second item 8
    are left, without the third 9. The INSERT brings two."""
    memory = FlatMemory(token_budget=9, eviction=eviction)
    memory.apply([insert("Mia owns cats"), insert("Ana sails"), insert("Ben")], 1)
    memory.apply([insert("Leo is old")], 2)
    memory.touch(["2"])
    _, third = memory.apply([update("1", "Mia owns two cats")], 3)
    _, fourth = memory.apply([insert("Uma dives")], 4)
    assert [third.evicted, fourth.evicted] == evicted
    assert contents(memory) == left


def test_a_full_token_budget_may_refuse_and_takes_what_is_no_longer():
    memory = FlatMemory(token_budget=5, eviction="refuse")
    assert reasons(
        memory,
        [
            insert("Mia owns cats"),
            insert("Ana sails"),
            insert("Ben"),
            update("2", "Ana still sails"),
            update("1", "Mia sails"),
            insert("Ben"),
        ],
        1,
    ) == [None, None, OVER_CAPACITY, OVER_CAPACITY, None, None]
    assert contents(memory) == ["Mia sails", "Ana sails", "Ben"]


def test_an_item_longer_than_the_budget_is_too_long_and_evicts_nothing():
    memory = FlatMemory(token_budget=3)
    memory.apply([insert("Mia owns cats")], 1)
    long = "Mia owns cats now"
    assert reasons(memory, [insert(long), update("1", long), insert("Ana sails now")], 2) == [
        TOO_LONG,
        TOO_LONG,
        None,
    ]
    assert contents(memory) == ["Ana sails now"]


def test_invalid_insert_evicts_nothing():
    memory = FlatMemory(capacity=1)
    memory.apply([insert("a")], 1)
    assert memory.apply([insert("a"), insert("")], 2)[1] == MemoryDelta()


def test_delta_is_net():
    memory = FlatMemory(capacity=3)
    memory.apply([insert("a"), insert("b"), insert("c")], 1)
    _, delta = memory.apply(
        [
            insert("d"),  # pushes out 1
            delete("4"),  # d came and went
            update("2", "b2"),
            update("3", "c2"),
            update("2", "b3"),
            delete("3"),  # updated, then deleted
            insert("e"),
            insert("f"),
            insert("g"),  # pushes out 2, updated before
        ],
        2,
    )
    assert contents(memory) == ["e", "f", "g"]
    assert [item.item_id for item in delta.written] == ["5", "6", "7"]
    assert (delta.removed, delta.evicted) == (("3",), ("1", "2"))
    _, delta = FlatMemory(capacity=1).apply([insert("a"), insert("b"), insert("c")], 1)
    assert [item.content for item in delta.written] == ["c"]
    assert delta.evicted == ()


def test_written_items_are_in_the_order_of_their_last_writes():
    memory = FlatMemory()
    _, delta = memory.apply([insert("a"), insert("b"), update("1", "a2")], 1)
    assert [item.content for item in delta.written] == ["b", "a2"]
    assert contents(memory) == ["a2", "b"]


def test_ids_never_collide_and_unknown_ids_hit_nothing():
    """Mem-alpha draws four hex digits: 302 items collide with probability one half, and an update
    then hits the first match."""
    memory = FlatMemory(capacity=400)
    seen = set()
    for step in range(1, 11):
        outcomes, _ = memory.apply([insert(f"fact {step} {n}") for n in range(500)], step)
        seen |= {outcome.item_id for outcome in outcomes}
    assert len(seen) == 5000
    assert max(map(len, seen)) <= 4
    before = memory.items
    gone = next(iter(seen - {item.item_id for item in before}))
    operations = [update(gone, "x"), delete(gone), update("zz", "x")]
    assert reasons(memory, operations, 11) == [UNKNOWN_ID] * 3
    assert memory.items == before
    target = before[123]
    memory.apply([update(target.item_id, "changed")], 12)
    changed = [item for item in memory.items if item.content == "changed"]
    assert changed == [memory.get(target.item_id)]
    assert len(memory.items) == 400


@given(STEPS, MEMORY_SETTINGS)
def test_deltas_replay_and_live_memory_agree(steps, settings):
    memory = FlatMemory(**settings)
    run = played(memory, steps)
    twin = FlatMemory(**settings)
    rebuilt = {}
    for step, (before, after, delta) in enumerate(
        zip(run.states[:-1], run.states[1:], run.deltas, strict=True), start=1
    ):
        rebuilt = delta.applied_to(rebuilt)
        assert rebuilt == {item.item_id: item for item in after}
        assert run.trajectory.memory_at(step) == after
        assert replay(run.trajectory, FlatMemory(**settings), step).items == after
        assert twin.apply(steps[step - 1], step) == (run.outcomes[step - 1], delta)
        # The delta is net, and says nothing of items that stayed as they were.
        ids_before = {item.item_id for item in before}
        gone = delta.removed + delta.evicted
        assert len(set(gone)) == len(gone) and set(gone) <= ids_before
        assert {item.item_id for item in after} == (
            (ids_before - set(gone)) | {item.item_id for item in delta.written}
        )
        assert not set(delta.written) & set(before)
        assert all(item.last_step == step for item in delta.written)
        last_writes = [item.lineage[-1].position for item in delta.written]
        assert last_writes == sorted(last_writes)
    assert memory.tokens == sum(count_tokens(item.content) for item in memory.items)
    assert memory.tokens == (run.trajectory.steps[-1].memory_tokens if steps else 0)


@given(STEPS, MEMORY_SETTINGS)
def test_invariants_of_any_run(steps, settings):
    run = played(FlatMemory(**settings), steps)
    capacity = settings["capacity"] or sys.maxsize
    budget = settings["token_budget"] or sys.maxsize
    limit = settings["max_item_tokens"] or sys.maxsize
    for items in run.states:
        assert len(items) <= capacity
        assert sum(count_tokens(item.content) for item in items) <= budget
        assert all(item.content.strip() and count_tokens(item.content) <= limit for item in items)
        if settings["duplicates"] == "refuse":
            assert len({item.content for item in items}) == len(items)
        ids = [int(item.item_id) for item in items]
        assert ids == sorted(ids)
    inserted = []
    for step, outcomes in enumerate(run.outcomes, start=1):
        assert len(outcomes) == len(steps[step - 1])
        for position, outcome in enumerate(outcomes):
            assert outcome.applied == (outcome.reason is None)
            assert outcome.applied or outcome.reason in REASONS
            kind = outcome.operation.kind if outcome.operation else None
            if outcome.applied and kind == "INSERT":
                inserted.append(outcome.item_id)
            if outcome.applied and kind in ("INSERT", "UPDATE"):
                for item in run.states[step]:
                    if item.item_id == outcome.item_id:
                        assert Write(step, kind, position) in item.lineage
    assert inserted == [str(number) for number in range(1, len(inserted) + 1)]


@given(STEPS, MEMORY_SETTINGS, st.lists(st.lists(ITEM_IDS, max_size=3), min_size=8, max_size=8))
def test_no_item_is_evicted_before_one_that_is_older(steps, settings, retrieved):
    """One operation per step, so that what an eviction chose from can be seen from outside."""
    memory = FlatMemory(**settings)
    last_retrieved: dict[str, float] = {}
    age = {
        "oldest": lambda item: item.last_step,
        "first_created": lambda item: item.created_step,
        "least_recent": lambda item: max(item.last_step, last_retrieved.get(item.item_id, 0)),
        "refuse": lambda item: 0,
    }[settings["eviction"]]
    for step, operation in enumerate(itertools.chain.from_iterable(steps), start=1):
        before = memory.items
        [outcome], delta = memory.apply([operation], step)
        others = [item for item in before if item.item_id != outcome.item_id]
        by_age = [item.item_id for item in sorted(others, key=age)]  # equal: created first
        gone = delta.evicted
        assert settings["eviction"] != "refuse" or not gone
        assert outcome.item_id not in gone
        assert list(gone) == by_age[: len(gone)]
        now = retrieved[step % len(retrieved)]
        memory.touch(now)
        last_retrieved |= dict.fromkeys(now, step + 0.5)  # asked after the step's operations


def test_work_per_operation_does_not_grow_with_the_memory():
    """The same operations run the same number of library lines on 50 and on 5,000 items, and no
    line of `apply` hands the whole memory to a built-in: only what it wrote is in the delta."""

    def lines_run(size: int) -> int:
        memory = FlatMemory(capacity=size, eviction="least_recent")
        memory.apply([insert(f"fact {n}") for n in range(size)], 1)
        run = [insert(f"new {n}") for n in range(5)]
        run += [delete(str(size)), update(str(size - 1), "u")]
        lines = 0

        def trace(frame, event, argument):
            nonlocal lines
            lines += event == "line"
            return trace

        before = sys.gettrace()
        sys.settrace(trace)
        try:
            _, delta = memory.apply(run, 2)
        finally:
            sys.settrace(before)
        assert len(delta.written) == 6
        return lines

    assert lines_run(5000) == lines_run(50)


def test_bad_settings_and_steps_are_refused():
    for settings in (
        {"capacity": 0},
        {"max_item_tokens": 0},
        {"token_budget": 0},
        {"eviction": "newest"},
        {"duplicates": "merge"},
    ):
        name, value = next(iter(settings.items()))
        with pytest.raises(ValueError, match=f"{name} is {value!r}, expected"):
            FlatMemory(**settings)
    memory = FlatMemory()
    memory.apply([insert("a")], 2)
    for step in (2, 1, 0):
        with pytest.raises(ValueError, match=f"step is {step}, expected more than 2"):
            memory.apply([insert("b")], step)
    run = played(FlatMemory(), [[insert("a")]])
    for step in (-1, 2):
        with pytest.raises(ValueError, match="outside 0..1"):
            replay(run.trajectory, FlatMemory(), step)
    with pytest.raises(ValueError, match="step is 1"):
        replay(run.trajectory, memory, 1)
