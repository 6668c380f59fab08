"""Searching many memories at once is searching each, to the last bit; nothing is read twice."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import example, given, settings, strategies as st

from finemem_lib.credit import asking, counterfactual
from finemem_lib.credit.asking import search_memories
from finemem_lib.credit.group import CachedGroup, CachedUpdate
from finemem_lib.credit.replay import Replayer, asking_of, recorded_memory, replay
from finemem_lib.credit.rules import RULES, assign, credit_update, with_some_questions
from finemem_lib.data.planted import planted_instances
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import RandomManager
from finemem_lib.memory import FlatMemory
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import Inquiry, MemoisedAgent, answer_questions
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.rewards import outcome_reward
from finemem_lib.trajectory import MemoryItem, Operation, Trajectory, Write
from tests.helpers.credit_cases import HOME, PETS, Echo, insert, recorded_steps, single

quick = settings(max_examples=25, deadline=None)
CONTENTS = st.lists(
    st.sampled_from(["mia", "lives", "rome", "rome rome", "ana", "oslo", "cats", "..."]),
    min_size=1,
    max_size=6,
).map(" ".join)


def plain_search(memory: list[str], query: str, k: int) -> tuple[int, ...]:
    items = [
        MemoryItem(str(place), content, (Write(place + 1, "INSERT", 0),))
        for place, content in enumerate(memory)
    ]
    return tuple(int(name) for name, _ in BM25Retriever.from_items(items).search(query, k))


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(CONTENTS, max_size=9), min_size=1, max_size=5),
    st.lists(CONTENTS | st.just("nobody"), min_size=1, max_size=4),
    st.integers(1, 4),
)
@example([[], ["..."], ["mia", "mia"]], ["mia", "nobody"], 2)
def test_searching_together_finds_what_each_index_finds(memories, queries, k):
    expected = [[plain_search(memory, query, k) for query in queries] for memory in memories]
    assert search_memories(memories, queries, k) == expected


def test_memories_of_many_items_are_searched_in_parts(monkeypatch):
    memories = [[f"word{n} lives in city{n % m}" for n in range(60)] for m in (3, 5, 7)]
    queries = [f"city{n} word{n}" for n in range(8)]
    whole = search_memories(memories, queries, 3)
    assert whole == [[plain_search(memory, query, 3) for query in queries] for memory in memories]
    monkeypatch.setattr(asking, "MAX_TABLE_SCORES", 60 * 8)
    assert search_memories(memories, queries, 3) == whole


def update() -> tuple[list[list[Trajectory]], MemoisedAgent]:
    instances = planted_instances("train", 2, 3)
    agent = reader_for(instances)
    managed = RolloutSettings(num_generations=3, capacity=6)
    return [*play(instances, RandomManager(), managed, agent, 0)], agent


def plain_score(one: Trajectory, agent: MemoisedAgent, without: set) -> float:
    """Return r_global without some steps or operations: replayed, indexed and read by itself."""
    memory = replay(one, recorded_memory(one), one.num_steps, without=without)
    index = BM25Retriever.from_items(memory.items)
    questions = [answered.question for answered in one.questions]
    (answers,) = answer_questions(
        [Inquiry(questions, memory, index, one.num_steps)],
        agent,
        one.metadata["rollout"]["top_k"],
    )
    known = [answered.score for answered in answers if answered.score is not None]
    return math.fsum(known) / len(known)


def plain_operations(one: Trajectory, agent: MemoisedAgent) -> list[list[float]]:
    return [
        [
            outcome_reward(one) - plain_score(one, agent, {(step.step, place)})
            for place in range(len(step.outcomes))
        ]
        for step in one.steps
    ]


def test_a_whole_update_gets_what_plain_replays_give_to_the_last_bit():
    groups, agent = update()
    steps = credit_update("step-loo", groups, agent=agent).credit
    operations = credit_update("operation-loo", groups, agent=agent).credit
    for group, by_step, by_operation in zip(groups, steps, operations, strict=True):
        for one, credit, parts in zip(group, by_step, by_operation, strict=True):
            outcome = outcome_reward(one)
            assert credit == [
                outcome - plain_score(one, agent, {step}) for step in range(1, one.num_steps + 1)
            ]
            assert parts.operations == plain_operations(one, agent)
            assert parts == [math.fsum(step) for step in parts.operations]
    assert any(value < 0 for group in operations for one in group for value in one)


@quick
@given(single)
def test_operations_are_left_out_one_at_a_time(drawn):
    one, agent = drawn
    found = counterfactual.operation_leave_one_out(one, agent=agent)
    assert [len(step) for step in found.operations] == [
        max(len(step.outcomes), outcome_reward(one) is None) for step in one.steps
    ]
    if outcome_reward(one) is None:
        assert found == [None] * one.num_steps
        return
    assert found.operations == plain_operations(one, agent)
    for step, values in zip(one.steps, found.operations, strict=True):
        for done, value in zip(step.outcomes, values, strict=True):
            assert done.applied or value == 0.0


def test_operations_by_hand():
    # The noise pushes the first fact out; the second fact is stored twice in one step.
    one = recorded_steps(
        [
            [insert("mia lives rome")],
            [insert("ana keeps cats and dogs"), insert("ana keeps cats and dogs")],
            [insert("buses left"), Operation("SKIP")],
        ],
        [HOME, PETS],
        {"capacity": 3},
    )
    found = assign("operation-loo", one, agent=Echo())
    assert found.operations == [[0.0], [-0.5, -0.5], [-0.5, 0.0]]
    assert found.credit == (0.0, -1.0, -0.5)
    # Taken together the twins earn what they bring and lose what they push out.
    assert assign("step-loo", one, agent=Echo()).credit == (0.0, 0.0, -0.5)
    assert assign("step-loo", one, agent=Echo()).operations is None
    crediting = [name for name, rule in RULES.items() if rule.unit == "operation"]
    assert crediting == ["operation-loo", "operation-slot-price"]


@pytest.mark.parametrize(
    ("rule", "settings_"),
    [
        ("step-loo", {"orphaned": "insert"}),
        ("step-shapley", {"permutations": 3}),
        ("owen", {}),
        ("operation-loo", {}),
        ("value-difference", {"lambda_": 0.5}),
        ("igpo", {}),
        ("delta-belief", {}),
        ("himpo", {}),
        ("csr-later", {"delay": 1}),
        ("csr-later", {}),
    ],
)
def test_an_update_together_is_each_rollout_alone(rule, settings_):
    groups, agent = update()
    together = credit_update(rule, groups, agent=agent, **settings_).credit
    alone = [[RULES[rule].function(one, agent=agent, **settings_) for one in g] for g in groups]
    assert together == alone


@pytest.mark.parametrize("rule", ["step-loo", "value-difference", "himpo", "eara", "gigpo"])
def test_a_rule_on_sampled_questions_is_the_rule_on_trajectories_that_have_only_these(rule):
    groups, agent = update()
    some = with_some_questions(groups, 0.3)
    for group, fewer in zip(groups, some, strict=True):
        names = [[a.question.question_id for a in one.questions] for one in fewer]
        assert names == [names[0]] * len(group)
        assert len(names[0]) == round(0.3 * len(group[0].questions)) > 0
    sampled = credit_update(rule, groups, agent=MemoisedAgent(agent), question_share=0.3)
    assert sampled.credit == credit_update(rule, some, agent=agent).credit
    whole = credit_update(rule, groups, agent=MemoisedAgent(agent))
    assert sampled.credit != whole.credit and sampled.calls_asked <= whole.calls_asked / 2
    with pytest.raises(ValueError, match="question_share is 0"):
        credit_update(rule, groups, agent=agent, question_share=0)


def test_settings_of_a_rule_are_not_mixed_up_within_an_update():
    groups, agent = update()
    whole = CachedUpdate(map(CachedGroup, groups))
    kept = {
        lambda_: credit_update("value-difference", whole, agent=agent, lambda_=lambda_).credit
        for lambda_ in (0.0, 1.0)
    }
    assert kept[0.0] != kept[1.0]
    assert kept[0.0] == credit_update("value-difference", groups, agent=agent, lambda_=0.0).credit


def test_rollouts_of_an_instance_read_nothing_that_another_has_read():
    groups, agent = update()
    twins = [[group[0], dataclasses.replace(group[0], rollout=9)] for group in groups]
    once = credit_update("step-loo", [group[:1] for group in twins], agent=MemoisedAgent(agent))
    twice = credit_update("step-loo", twins, agent=MemoisedAgent(agent))
    assert twice.calls_asked == once.calls_asked > 0
    assert twice.calls_made == once.calls_made > 0
    assert [row[0] for row in twice.credit] == [row[1] for row in twice.credit]


def test_an_index_of_another_kind_is_asked_memory_by_memory():
    (group, _), agent = update()

    class Newest:
        """Finds the items written last, whatever is asked."""

        def __init__(self) -> None:
            self.ids: list[str] = []

        def update(self, delta):
            self.ids += [item.item_id for item in delta.written]

        def search(self, query, k):
            return [(name, 1.0) for name in self.ids[::-1][:k]]

    one = group[0]
    same = asking.Asking(agent, 2, Newest)
    questions = [a.question for a in one.questions]
    (row,) = Replayer(one, agent, same).ask([(questions, frozenset())])
    newest = sorted(
        one.final_memory(), key=lambda item: (item.last_step, item.lineage[-1].position)
    )
    memory = tuple(newest[-2:])
    assert same.scores([(questions, memory)]) == [row]
    usual = asking_of(one, agent).scores([(questions, tuple(newest))])
    assert usual == [[a.score for a in one.questions]] != [row]


def test_what_no_longer_shows_is_replayed_no_further(monkeypatch):
    # A memory of one item: from step 3 on, nothing tells whether step 1 was there.
    one = recorded_steps(
        [[insert(f"mia lives rome {n}")] for n in range(9)], [HOME], {"capacity": 1}
    )
    applied = []
    apply = FlatMemory.apply
    monkeypatch.setattr(
        FlatMemory,
        "apply",
        lambda self, operations, step: applied.append(step) or apply(self, operations, step),
    )
    replayer = Replayer(one, Echo())
    assert applied == [*range(1, 10)]
    recorded = replayer.memory(frozenset())
    assert replayer.memory(frozenset({1})) is recorded and applied[9:] == [2]
    assert replayer.memory(frozenset({(1, 0), (4, 0)})) is recorded and applied[10:] == [1, 2, 4, 5]
    assert replayer.memory(frozenset({9})).items != recorded.items


@quick
@given(single, st.data(), st.sampled_from(["refuse", "insert"]))
def test_memories_of_a_replayer_are_those_of_plain_replays(drawn, data, orphaned):
    one, agent = drawn
    replayer = Replayer(one, agent)
    places = [(s.step, place) for s in one.steps for place in range(len(s.outcomes))]
    missing = st.frozensets(st.sampled_from([*range(1, one.num_steps + 1), *places]), max_size=4)
    for without in data.draw(st.lists(missing, min_size=1, max_size=4)):
        plain = replay(one, recorded_memory(one), one.num_steps, without=without, orphaned=orphaned)
        found = replayer.memory(without, orphaned)
        assert [(i.item_id, i.content) for i in found.items] == [
            (i.item_id, i.content) for i in plain.items
        ]
        oldest = sorted(plain.items, key=lambda item: (item.last_step, item.lineage[-1].position))
        left = replayer.left(without, orphaned)
        assert [item.content for item in left] == [item.content for item in oldest]
