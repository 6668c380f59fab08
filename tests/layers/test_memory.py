from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, strategies as st

from finemem_lib.credit.replay import recorded_memory, recorded_retriever, replay
from finemem_lib.layers.memory import (
    LayeredMemory,
    LayerRules,
    cut_core,
    timestamp_of,
)
from finemem_lib.memory import (
    EMPTY_CONTENT,
    EXACT_DUPLICATE,
    OVER_CAPACITY,
    REWRITE_ONLY,
    TOO_LONG,
    UNKNOWN_ID,
    UNKNOWN_STORE,
    FlatMemory,
)
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.retrievers.layered import LayeredRetriever
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import MemoryDelta, Operation, Trajectory, Write, from_json, to_json
from tests.helpers.memory_strategies import LAYER_RULES, LAYERED_STEPS, MEMORY_SETTINGS, played


def core(content: str) -> Operation:
    return Operation("UPDATE", content, store="core")


def semantic(content: str) -> Operation:
    return Operation("INSERT", content, store="semantic")


def episodic(content: str) -> Operation:
    return Operation("INSERT", content, store="episodic")


def reasons(memory: FlatMemory, operations: list[Operation], step: int) -> list[str | None]:
    return [outcome.reason for outcome in memory.apply(operations, step)[0]]


def held(memory: FlatMemory) -> list[tuple[str, str, str]]:
    return [(item.item_id, item.store, item.content) for item in memory.items]


def test_every_rewrite_of_the_core_is_an_update_of_one_item():
    memory = LayeredMemory()
    memory.apply([semantic("Mia owns cats"), core("Mia plans a journey")], 1)
    outcomes, delta = memory.apply([core("Mia is in Rome")], 3)
    assert memory.core is not None
    assert memory.core.lineage == (Write(1, "UPDATE", 1), Write(3, "UPDATE", 0))
    assert outcomes[0].item_id == "core" and delta == MemoryDelta(written=(memory.core,))
    assert held(memory) == [
        ("s1", "semantic", "Mia owns cats"),
        ("core", "core", "Mia is in Rome"),
    ]


def test_what_a_layer_refuses():
    memory = LayeredMemory(rules=LayerRules(core_tokens=4, long_core="refuse"))
    memory.apply([semantic("a"), episodic("a")], 1)
    operations = [
        Operation("INSERT", "x", store="core"),
        Operation("DELETE", store="core"),
        core(" "),
        core("one two three four five"),
        core("one"),
        core("one"),
        semantic("a"),
        episodic("b"),
        Operation("UPDATE", "c", "s1", "episodic"),  # that item is semantic
        Operation("DELETE", None, "s1", "episodic"),
        Operation("DELETE", None, "77"),
        Operation("INSERT", "d", store="flat"),
    ]
    assert reasons(memory, operations, 2) == [
        REWRITE_ONLY,
        REWRITE_ONLY,
        EMPTY_CONTENT,
        TOO_LONG,
        None,
        EXACT_DUPLICATE,
        EXACT_DUPLICATE,
        None,
        UNKNOWN_ID,
        UNKNOWN_ID,
        UNKNOWN_ID,
        UNKNOWN_STORE,
    ]


def test_a_flat_memory_knows_no_layers():
    assert reasons(FlatMemory(), [semantic("a"), core("b")], 1) == [UNKNOWN_STORE] * 2


def test_operations_without_a_store_are_those_of_the_flat_memory():
    memory = LayeredMemory()
    memory.apply([episodic("On day 1 Mia slept"), Operation("INSERT", "Mia owns cats")], 1)
    memory.apply(
        [Operation("UPDATE", "On day 1 Mia woke", "e1"), Operation("DELETE", None, "s2")], 2
    )
    assert held(memory) == [("e1", "episodic", "On day 1 Mia woke")]


def test_the_published_rules_clear_the_core_and_accept_a_delete_of_nothing():
    memory = LayeredMemory(rules=LayerRules(core_delete="clear", unknown_delete="succeed"))
    memory.apply([core("one")], 1)
    clear = Operation("DELETE", store="core")
    outcomes, delta = memory.apply([clear, clear, Operation("DELETE", None, "9")], 2)
    assert [one.applied for one in outcomes] == [True] * 3
    assert [one.item_id for one in outcomes] == ["core", None, None]
    assert delta.removed == ("core",) and memory.items == ()
    memory.apply([core("two")], 3)
    assert held(memory) == [("core-2", "core", "two")]  # no id is used twice


def test_a_long_core_is_cut_and_recorded_as_it_was_written():
    memory = LayeredMemory(rules=LayerRules(core_tokens=6))
    outcomes, _ = memory.apply([core("one two three four five six seven")], 1)
    assert memory.core is not None and memory.core.content == "one two three [cut]"
    assert outcomes[0].operation is not None
    assert outcomes[0].operation.content == memory.core.content
    assert cut_core("one two three", 2) == "one two"


def test_the_core_is_never_evicted_and_takes_part_in_the_token_budget():
    memory = LayeredMemory(capacity=1, token_budget=4)
    memory.apply([core("one two"), semantic("Ana"), episodic("Leo")], 1)
    assert [item.content for item in memory.items] == ["one two", "Leo"]
    assert reasons(memory, [semantic("three words more")], 2) == [TOO_LONG]  # 2 + 3 > 4
    memory.apply([core("one two three four")], 3)  # makes room for itself
    assert [item.content for item in memory.items] == ["one two three four"]
    full = LayeredMemory(capacity=1, eviction="refuse", token_budget=4)
    written = [semantic("Ana"), core("one two"), episodic("Leo"), core("one two three four")]
    assert reasons(full, written, 1) == [None, None, OVER_CAPACITY, OVER_CAPACITY]


@pytest.mark.parametrize(
    ("content", "time"),
    [
        ("On day 12 Mia visited Rome", "day 12"),
        ("At timestamp 2024-01-03 00:00, the user slept", "2024-01-03 00:00"),
        ("3 May 2024: Ana moved", "3 May 2024"),
        ("May 3, 2024 Ana moved", "May 3, 2024"),
        ("Mia visited Rome on day 12", None),
        ("", None),
    ],
)
def test_timestamps(content: str, time: str | None):
    assert timestamp_of(content) == time


def layered(settings: dict, rules: LayerRules) -> LayeredMemory:
    return LayeredMemory(**settings, rules=rules)


@given(MEMORY_SETTINGS, LAYER_RULES, LAYERED_STEPS)
def test_provenance_of_every_item_leads_to_its_writes(settings, rules, steps):
    run = played(layered(settings, rules), steps)
    for step, state in enumerate(run.states):
        for item in state:
            assert item.store in ("core", "semantic", "episodic")
            kinds = [write.kind for write in item.lineage]
            first = "UPDATE" if item.store == "core" else "INSERT"
            assert kinds == [first] + ["UPDATE"] * (len(kinds) - 1)
            assert [*item.lineage] == sorted(item.lineage)
            for write in item.lineage:
                assert write.step <= step
                outcome = run.outcomes[write.step - 1][write.position]
                assert outcome.applied and outcome.item_id == item.item_id
                assert outcome.operation is not None and outcome.operation.kind == write.kind
            last = item.lineage[-1]
            assert run.outcomes[last.step - 1][last.position].operation.content == item.content


@given(MEMORY_SETTINGS, LAYER_RULES, LAYERED_STEPS)
def test_limits_hold_and_deltas_lead_to_the_states(settings, rules, steps):
    run = played(layered(settings, rules), steps)
    seen: set[str] = set()
    for step, state in enumerate(run.states):
        ids = [item.item_id for item in state]
        assert len({*ids}) == len(ids)
        cores = [item for item in state if item.store == "core"]
        assert len(cores) <= 1
        assert all(count_tokens(item.content) <= rules.core_tokens for item in cores)
        if settings["capacity"] is not None:
            assert len(state) - len(cores) <= settings["capacity"]
        if settings["token_budget"] is not None:
            assert sum(count_tokens(item.content) for item in state) <= settings["token_budget"]
        if step:
            delta = run.deltas[step - 1]
            assert not {item.item_id for item in delta.written} & {*delta.removed, *delta.evicted}
            gone = {item.item_id for item in run.states[step - 1]} - {*ids}
            assert gone == {*delta.removed, *delta.evicted}
            assert not ({*ids} - {item.item_id for item in run.states[step - 1]}) & seen
        seen |= {*ids}
        by_id = {item.item_id: item for item in run.trajectory.memory_at(step)}
        assert by_id == {item.item_id: item for item in state}


def recorded(run: Trajectory, settings: dict, rules: LayerRules) -> Trajectory:
    how = {**settings, "top_k": 2, "memory": "layered", "layer_rules": dataclasses.asdict(rules)}
    return dataclasses.replace(run, metadata={"rollout": how})


@given(MEMORY_SETTINGS, LAYER_RULES, LAYERED_STEPS)
def test_a_replay_gives_the_same_states_also_of_a_read_back_record(settings, rules, steps):
    run = played(layered(settings, rules), steps)
    again = from_json(Trajectory, to_json(recorded(run.trajectory, settings, rules)))
    assert again == recorded(run.trajectory, settings, rules)
    for orphaned in ("refuse", "insert"):
        memory = replay(again, recorded_memory(again), again.num_steps, orphaned=orphaned)
        assert memory.items == run.states[-1]


@given(MEMORY_SETTINGS, LAYER_RULES, LAYERED_STEPS, st.integers(1, 4))
def test_the_index_follows_the_memory_of_every_step(settings, rules, steps, k):
    run = played(layered(settings, rules), steps)
    index = LayeredRetriever(BM25Retriever)
    for delta, state in zip(run.deltas, run.states[1:], strict=True):
        index.update(delta)
        anew = recorded_retriever(recorded(run.trajectory, settings, rules))
        anew.update(MemoryDelta(written=state))
        assert index.search("mia lives in rome", k) == anew.search("mia lives in rome", k)
        stores = {item.item_id: item.store for item in state}
        hits = [stores[item_id] for item_id, _ in index.search("mia lives in rome", k)]
        assert hits == sorted(hits, key=["core", "semantic", "episodic"].index)
        assert hits.count("core") == [*stores.values()].count("core")
        assert max(hits.count("semantic"), hits.count("episodic")) <= k
