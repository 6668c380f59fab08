"""What a memory lost, the value of it, and the two rules that charge it."""

from __future__ import annotations

import dataclasses
import math
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit.lost_evidence import losses, slot_price_measures, valued_losses
from finemem_lib.credit.rules import assign, credit_update
from finemem_lib.data.planted import planted_stream
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import InsertAll, RandomManager
from finemem_lib.memory import FlatMemory
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import RewardSettings, evidence_contribution, outcome_reward
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Chunk,
    Operation,
    Question,
    Retrieved,
    Step,
    Trajectory,
)

HOME = Question("home", "Where does Mia live?", ("Rome",), "planted")
PET = Question("pet", "Which pet does Ana keep?", ("cats",), "planted")
AGENT = reader_for([planted_stream(1)])


def recorded(
    steps: list[list[Operation]], answers: list[AnsweredQuestion], **memory_settings: object
) -> Trajectory:
    """Return the trajectory of these operations, with answers as given."""
    settings_ = {
        "capacity": None,
        "eviction": "oldest",
        "max_item_tokens": None,
        "duplicates": "refuse",
        "top_k": 3,
    } | memory_settings
    memory = FlatMemory(**{name: v for name, v in settings_.items() if name != "top_k"})
    done = []
    for number, operations in enumerate(steps, start=1):
        outcomes, delta = memory.apply(operations, number)
        done.append(Step(number, Chunk("", 0), "", outcomes, delta, memory.tokens))
    return Trajectory(
        "i", "planted", "AR", "by hand", 0, tuple(done), tuple(answers), "words",
        metadata={"rollout": settings_},
    )  # fmt: skip


def insert(content: str) -> Operation:
    return Operation("INSERT", content)


def failed(question: Question) -> AnsweredQuestion:
    return AnsweredQuestion(question, 4, (), "", (), 0.0)


# Two slots. The fact is pushed out by the two noise sentences; the pet is there at the end.
PUSHED_OUT = [
    [insert("Mia lives in Rome")],
    [insert("Yesterday Ana saw Oslo")],
    [insert("Ana owns cats")],
    [Operation("SKIP")],
]
FOUND_PET = AnsweredQuestion(PET, 4, (Retrieved("3", 1.0, (3,)),), "cats", ("3",), 1.0)


def test_what_was_pushed_out_is_charged_to_the_writes_that_hold_the_room():
    one = recorded(PUSHED_OUT, [failed(HOME), FOUND_PET], capacity=2)
    [lost] = valued_losses([one], AGENT)
    assert lost.evictions == 1
    [(loss, value)] = lost.values
    assert (loss.how, loss.step, loss.holding, value) == ("evicted", 3, (2, 3), 0.5)
    # N = (0, 0, 1/2, 0): the pet. H = (0, 1/4, 1/4, 0), or all of it at the evicting step 3.
    assert assign("two-sided-evidence", one, agent=AGENT).credit == (0.0, -0.25, 0.25, 0.0)
    evicting = assign("two-sided-evidence", one, agent=AGENT, responsible="evicting")
    assert evicting.credit == (0.0, 0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("per", "price", "credit"),
    [
        ("write", 1 / 6, (-1 / 6, -1 / 6, 1 / 2 - 1 / 6, 0.0)),
        ("eviction", 1 / 2, (-1 / 2, -1 / 2, 0.0, 0.0)),
        ("token", 1 / 22, (-4 / 22, -4 / 22, 1 / 2 - 3 / 22, 0.0)),  # 4 + 4 + 3 tokens
    ],
)
def test_the_price_of_a_slot_is_what_was_lost_over_what_was_used(per, price, credit):
    one = recorded(PUSHED_OUT, [failed(HOME), FOUND_PET], capacity=2)
    found = assign("slot-price", one, agent=AGENT, group=[one], per=per)
    measured = slot_price_measures(one, agent=AGENT, group=[one], per=per)["price"]
    assert measured == pytest.approx(price)
    assert found.credit == pytest.approx(credit)


def test_operations_are_charged_for_their_room_and_paid_for_what_they_left():
    """By hand: the evicted fact was worth 1/2, one item was evicted, so a slot costs 1/2."""
    one = recorded(
        [
            [insert("Mia lives in Rome")],
            [insert("Yesterday Ana saw Oslo"), insert("Ana owns cats")],
        ],
        [failed(HOME), dataclasses.replace(FOUND_PET, retrieved=(Retrieved("3", 1.0, (2,)),))],
        capacity=2,
    )
    found = assign("operation-slot-price", one, agent=AGENT)
    assert found.operations == [[-0.5], [-0.5, 0.0]] and found.credit == (-0.5, -0.5)
    deleted = recorded(
        [[insert("Mia lives in Rome"), Operation("SKIP")], [Operation("DELETE", None, "1")]],
        [failed(HOME)],
    )
    assert assign("operation-slot-price", deleted, agent=AGENT).operations == [[0.0, 0.0], [-1.0]]


def test_an_overwritten_or_deleted_item_is_charged_to_the_step_that_did_it():
    for operation in (Operation("UPDATE", "Mia visited Oslo", "1"), Operation("DELETE", None, "1")):
        one = recorded([[insert("Mia lives in Rome")], [operation]], [failed(HOME)])
        assert assign("two-sided-evidence", one, agent=AGENT).credit == (0.0, -1.0)
        assert slot_price_measures(one, agent=AGENT, group=[one]) == {"price": 0.0}


def test_what_comes_back_is_not_lost():
    steps = [
        [insert("Mia lives in Rome")],
        [insert("Ana owns cats")],
        [insert("Mia lives in Rome")],
    ]
    assert [*losses(recorded(steps, [], capacity=1)).lost] == ["Ana owns cats"]


def test_a_price_is_estimated_over_update_group_or_trajectory_and_smoothed():
    lossy = recorded(PUSHED_OUT, [failed(HOME), FOUND_PET], capacity=2)
    whole = recorded(PUSHED_OUT[:1], [failed(PET)], capacity=2)
    whole = dataclasses.replace(whole, rollout=1)
    other = dataclasses.replace(whole, instance_id="j", rollout=0)
    batch = [[lossy, whole], [other]]

    def price(one: Trajectory, **more: object) -> float:
        return slot_price_measures(one, agent=AGENT, batch=batch, **more)["price"]

    assert price(lossy) == price(other) == 0.5 / 5  # three writes, one, and one
    assert price(lossy, over="group") == price(whole, over="group") == 0.5 / 4
    assert price(other, over="group") == 0.0
    assert price(lossy, over="trajectory") == 0.5 / 3 and price(whole, over="trajectory") == 0.0
    assert price(lossy, smoothing=0.3, previous={"price": 1.0}) == pytest.approx(0.3 + 0.7 * 0.1)
    assert price(lossy, smoothing=0.3) == pytest.approx(0.1)  # the first update has no other
    with pytest.raises(ValueError, match="smoothing is 1.0, expected at least 0 and below 1"):
        price(lossy, smoothing=1.0)
    with pytest.raises(ValueError, match="expected over='update'"):
        price(lossy, smoothing=0.3, over="group")


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.integers(2, 6))
def test_the_laws_of_both_rules_on_played_rollouts(seed, capacity):
    streams = [planted_stream(seed), planted_stream(seed + 1)]
    rollout = RolloutSettings(num_generations=2, capacity=capacity)
    groups = play(streams, RandomManager(), rollout, AGENT, seed)
    flat = [one for group in groups for one in group]
    lost = valued_losses(flat, AGENT)
    two_sided = credit_update("two-sided-evidence", groups, agent=AGENT)
    priced = credit_update("slot-price", groups, agent=AGENT)
    credited = [credit for group in two_sided.credit for credit in group]
    for one, credit, found in zip(flat, credited, lost, strict=True):
        value = math.fsum(part for _, part in found.values)
        assert sum(credit) == pytest.approx(outcome_reward(one) - value)
        applied = Counter(o.operation.kind for s in one.steps for o in s.outcomes if o.applied)
        left = len(one.final_memory())
        assert found.evictions == applied["INSERT"] - applied["DELETE"] - left
    evicted = sum(v for one in lost for loss, v in one.values if loss.how == "evicted")
    paid = math.fsum(value for group in priced.credit for credit in group for value in credit)
    assert paid == pytest.approx(sum(map(outcome_reward, flat)) - evicted)
    asked_again = sum(score.score < 1 for one in flat for score in one.questions)
    assert priced.calls_asked <= asked_again


@pytest.mark.parametrize(
    ("rule", "per"), [("slot-price", "write"), ("operation-slot-price", "eviction")]
)
def test_the_price_that_is_logged_is_the_price_that_is_charged(rule, per):
    """So that smoothing mixes prices of one unit: the measures go into the next update."""
    lossy = recorded(PUSHED_OUT, [failed(HOME), FOUND_PET], capacity=2)
    logged = credit_update(rule, [[lossy]], agent=AGENT).measures
    assert logged == slot_price_measures(lossy, agent=AGENT, per=per)
    assert logged["price"] == pytest.approx({"write": 1 / 6, "eviction": 1 / 2}[per])
    [[first]] = credit_update(rule, [[lossy]], agent=AGENT).credit
    half = {"previous": logged, "smoothing": 0.5}
    [[again]] = credit_update(rule, [[lossy]], agent=AGENT, **half).credit
    assert list(again) == list(first)


def test_without_a_limit_the_price_is_zero_and_the_credit_is_the_evidence():
    [group] = play([planted_stream(3)], InsertAll(), RolloutSettings(num_generations=2), AGENT, 0)
    used = RewardSettings(credited="used")
    found = credit_update("slot-price", [group], agent=AGENT)
    assert found.measures == {"price": 0.0} and found.calls_asked == 0
    assert found.credit == [[evidence_contribution(one, used) for one in group]]
