"""Replays without some steps: what is left, and what is never hit, indexed or asked twice."""

from __future__ import annotations

from typing import get_args

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit import (
    asking,
    counterfactual,
)
from finemem_lib.credit.replay import Replayer, replay
from finemem_lib.data.planted import StreamSettings, planted_stream
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import FactsOnly, RandomManager
from finemem_lib.memory import Eviction, FlatMemory
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import MemoisedAgent
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.trajectory import (
    Chunk,
    MemoryDelta,
    Operation,
    OperationOutcome,
    Step,
    Trajectory,
)
from tests.helpers.credit_cases import (
    HOME,
    PETS,
    Echo,
    insert,
    played_group,
    recorded_steps,
)
from tests.helpers.memory_strategies import MEMORY_SETTINGS, STEPS, played

quick = settings(max_examples=25, deadline=None)


def test_later_operations_on_what_a_missing_step_created():
    update, delete = Operation("UPDATE", "mia lives rome", "1"), Operation("DELETE", item_id="2")
    one = recorded_steps(
        [[insert("mia lives oslo"), insert("buses")], [insert("trains")], [update, delete]], [HOME]
    )
    # Without step 1 the UPDATE is refused, content and all, and the DELETE too; it must not hit
    # the item of step 2, to which the memory alone would now give the id 1.
    replayer = Replayer(one, Echo())
    assert [item.content for item in replayer.memory(frozenset({1})).items] == ["trains"]
    stored = replayer.memory(frozenset({1}), "insert").items
    assert [(item.item_id, item.content) for item in stored] == [
        ("3", "trains"),
        ("1", "mia lives rome"),
    ]
    assert counterfactual.step_leave_one_out(one, agent=Echo()) == [1.0, 0.0, 1.0]
    assert counterfactual.step_leave_one_out(one, agent=Echo(), orphaned="insert") == [
        0.0,
        0.0,
        1.0,
    ]


def test_a_replay_asked_through_another_agent_counts_anew_on_the_same_memories(monkeypatch):
    one, *_ = played_group()
    agent = reader_for([planted_stream(5)])
    replayer = Replayer(one, agent)
    first = counterfactual.step_shapley(one, agent=agent, replay=replayer)
    counts = agent.calls_asked, agent.calls_made
    monkeypatch.setattr(BM25Retriever, "update", None)  # what is indexed is indexed
    counter = MemoisedAgent(agent)
    assert (
        counterfactual.step_shapley(one, agent=counter, replay=replayer.through(counter)) == first
    )
    assert (counter.calls_asked, counter.calls_made) == counts
    assert agent.calls_made == counts[1]  # the agent below was asked nothing new
    with pytest.raises(ValueError, match="answers by the agent"):
        replayer.through(Echo())


def test_a_replayer_indexes_every_memory_once_and_asks_nothing_twice(monkeypatch):
    one = recorded_steps(
        [[insert("mia lives rome")], [insert("ana keeps cats and dogs")]], [HOME, PETS]
    )
    searched = []
    search = asking.search_memories
    monkeypatch.setattr(
        asking, "search_memories", lambda some, *rest: searched.append(some) or search(some, *rest)
    )
    agent = MemoisedAgent(Echo())
    replayer = Replayer(one, agent)
    first = counterfactual.step_leave_one_out(one, agent=agent, replay=replayer)
    assert list(map(len, searched)) == [2]  # one for each step that is missing, searched together
    calls = agent.calls_asked
    assert counterfactual.step_leave_one_out(one, agent=agent, replay=replayer) == first
    assert len(searched) == 1 and agent.calls_asked == calls == 4


@pytest.mark.parametrize("eviction", get_args(Eviction))
@pytest.mark.parametrize("limit", [{"capacity": 5}, {"token_budget": 15}, {}], ids=str)
def test_replaying_everything_gives_the_recorded_memory(eviction, limit):
    instance = planted_stream(9, StreamSettings(num_chunks=12))
    settings_ = RolloutSettings(num_generations=2, eviction=eviction, **limit)
    for manager in (FactsOnly(), RandomManager()):
        (group,) = play([instance], manager, settings_, reader_for([instance]), 2)
        for one in group:
            again = replay(one, settings_.new_memory(), 12, orphaned="insert")
            assert again.items == one.final_memory()
            assert Replayer(one, reader_for([instance])).memory(frozenset()).items == again.items


@quick
@given(STEPS, MEMORY_SETTINGS, st.sets(st.integers(1, 8)))
def test_a_replay_never_hits_another_item_than_was_named(steps, memory_settings, without):
    run = played(FlatMemory(**memory_settings), steps)
    for orphaned in ("refuse", "insert"):
        memory = replay(
            run.trajectory,
            FlatMemory(**memory_settings),
            len(steps),
            without=without,
            orphaned=orphaned,
        )
        said: dict[str, set[str]] = {}  # what was ever written under an id in the recording
        for step in run.trajectory.steps:
            for outcome in step.outcomes:
                if outcome.applied and outcome.operation.content is not None:
                    said.setdefault(outcome.item_id, set()).add(outcome.operation.content)
        for item in memory.items:
            assert not {write.step for write in item.lineage} & without
            if item.item_id in said:
                assert item.content in said[item.item_id] | {
                    o.operation.content
                    for step in run.trajectory.steps
                    for o in step.outcomes
                    if o.operation and not o.applied and o.operation.item_id == item.item_id
                }


def test_an_insert_never_takes_an_id_in_use():
    memory = FlatMemory()
    memory.apply([insert("a")], 1)
    emitted = [Operation("INSERT", "b", "1"), Operation("INSERT", "c", "x")]
    outcomes, delta = memory.apply(emitted, 2)
    assert [outcome.reason for outcome in outcomes] == ["id in use", None]
    assert [item.content for item in memory.items] == ["a", "c"]
    assert [item.item_id for item in delta.written] == ["x"]


def test_records_made_by_hand_need_no_ids():
    outcome = OperationOutcome(insert("a"), True)
    step = Step(1, Chunk("", 0), "", (outcome,), MemoryDelta(), 1)
    one = Trajectory("i", "planted", "AR", "m", 0, (step,), (), "words")
    assert [item.content for item in replay(one, FlatMemory(), 1).items] == ["a"]
