"""Value differences and delayed chunk questions: by hand, their sums, and what they refuse."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit import values
from finemem_lib.credit.counterfactual import potential_shaping
from finemem_lib.credit.recorded import chunk_step_reward
from finemem_lib.credit.rules import assign, calls_while_playing
from finemem_lib.data.planted import planted_stream
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import InsertAll, RandomManager
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import Inquiry, MemoisedAgent, answer_questions
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.rewards import outcome_reward
from finemem_lib.trajectory import AnsweredQuestion, Operation, Trajectory
from tests.helpers.credit_cases import HOME, PETS, Echo, insert, recorded_steps, single

quick = settings(max_examples=25, deadline=None)


def lost_and_won() -> Trajectory:
    """A fact, its deletion, another fact: Phi is 0, 1/2, 0, 1/2."""
    return recorded_steps(
        [
            [insert("mia lives rome")],
            [Operation("DELETE", item_id="1")],
            [insert("ana keeps cats and dogs")],
        ],
        [HOME, PETS],
    )


def test_value_differences_by_hand():
    one, agent = lost_and_won(), Echo()
    assert values.value_difference(one, agent=agent, lambda_=0.0) == [0.5, -0.5, 0.5]
    assert values.value_difference(one, agent=agent, lambda_=0.5) == [0.375, -0.25, 0.5]
    assert values.value_difference(one, agent=agent) == [0.5, 0.0, 0.5]
    # The last step is paid the outcome, whatever was there before it.
    assert values.information_gain(one, agent=agent) == [0.5, -0.5, 0.5]
    kept = recorded_steps([[insert("mia lives rome")], [Operation("SKIP")]], [HOME])
    assert values.information_gain(kept, agent=agent) == [1.0, 1.0]
    assert values.value_difference(kept, agent=agent, lambda_=0.0) == [1.0, 0.0]
    # Both gains count, and the loss between them does not.
    assert values.delta_belief(one, agent=agent) == [0.5, 0.0, 0.5]


def test_a_loss_does_not_hide_behind_a_gain_of_the_same_step():
    one = recorded_steps(
        [[insert("mia lives rome")], [insert("ana keeps cats and dogs")]],
        [HOME, PETS],
        {"capacity": 1},
    )
    assert values.value_difference(one, agent=Echo(), lambda_=0.0) == [0.5, 0.0]
    assert values.delta_belief(one, agent=Echo()) == [0.5, 0.5]


@quick
@given(single, st.floats(0, 1))
def test_returns_sum_up_the_gains_that_potentials_give(drawn, lambda_):
    one, agent = drawn
    found = values.value_difference(one, agent=agent, lambda_=lambda_)
    if outcome_reward(one) is None:
        assert found == [None] * one.num_steps
        return
    asked_ = [answered.question for answered in one.questions if answered.score is not None]
    gains = potential_shaping(one, agent=agent, probes=asked_)
    expected = [
        math.fsum(lambda_**delay * gain for delay, gain in enumerate(gains[step:]))
        for step in range(one.num_steps)
    ]
    assert found == pytest.approx(expected)
    paid = values.information_gain(one, agent=agent)
    assert paid[:-1] == pytest.approx(gains[:-1]) and paid[-1] == outcome_reward(one)


@quick
@given(single)
def test_delta_belief_pays_the_gains_and_never_charges(drawn):
    one, agent = drawn
    found = values.delta_belief(one, agent=agent)
    if outcome_reward(one) is None:
        assert found == [None] * one.num_steps
        return
    gains = values.value_difference(one, agent=agent, lambda_=0.0)
    assert all(clipped >= max(0, gain) - 1e-12 for clipped, gain in zip(found, gains, strict=True))
    assert all(clipped <= 1 for clipped in found)


class Doubting(Echo):
    """Echoes, and gives a gold answer 0.9 where it is among the items, else 0.1."""

    name = settings = "doubting"
    weighed = 0

    def answer_log_probabilities(self, tasks, accepted):
        self.weighed += len(tasks)
        return [
            max(
                math.log(0.9 if any(answer in content for _, content in task.items) else 0.1)
                for answer in answers
            )
            for task, answers in zip(tasks, accepted, strict=True)
        ]


def test_soft_scores_by_hand_and_their_cost():
    one = dataclasses.replace(
        lost_and_won(), metadata=lost_and_won().metadata | {"agent_settings": "doubting"}
    )
    agent = Doubting()
    # The mean probability is 0.1, 0.5, 0.1, 0.5 after 0 to 3 steps.
    assert values.value_difference(one, agent=agent, lambda_=0.0, soft=True) == pytest.approx(
        [0.4, -0.4, 0.4]
    )
    assert values.delta_belief(one, agent=agent, soft=True) == pytest.approx([0.4, 0.0, 0.4])
    assert values.information_gain(one, agent=agent, soft=True) == pytest.approx([0.4, -0.4, 0.5])
    hard = values.value_difference(one, agent=agent, lambda_=0.0)
    assert hard == [0.5, -0.5, 0.5]
    below = Doubting()
    counted = assign("value-difference", one, agent=MemoisedAgent(below), soft=True)
    assert counted.calls_asked == counted.calls_made == below.weighed
    # Nothing twice for each question, Rome and its loss, and the pets: the memory of 0 and of 2
    # steps is the same.
    assert below.weighed == 2 + 1 + 1


def test_soft_scores_need_an_agent_that_gives_them_before_any_work(monkeypatch):
    one, agent = chunked(4)
    monkeypatch.setattr(values, "_gains_plan", lambda *_: pytest.fail("worked"))
    for rule in ("value-difference", "igpo", "delta-belief"):
        with pytest.raises(ValueError, match="soft scores: .*'extractive' gives no probability"):
            assign(rule, one, agent=agent, soft=True)


def test_hindsight_weakens_what_the_outcome_does_not_support_by_hand():
    # The memory stores Rome, evicts it for the pets, and stores it again, which evicts the pets.
    one = recorded_steps(
        [
            [insert("mia lives rome")],
            [insert("ana keeps cats and dogs")],
            [insert("mia lives rome")],
        ],
        [HOME, PETS],
        {"capacity": 1},
    )
    assert values.value_difference(one, agent=Echo(), lambda_=0.0) == [0.5, 0.0, 0.0]
    # Gains of Rome (answered) count in full, its loss 0.2; the pets (missed) the other way round.
    assert values.gated_utility(one, agent=Echo(), floor=0.2) == pytest.approx(
        [0.5, (-0.2 + 0.2) / 2, (1 - 1) / 2]
    )
    pets = dataclasses.replace(one, questions=one.questions[1:])
    assert values.gated_utility(pets, agent=Echo(), floor=0.2) == pytest.approx([0.0, 0.2, -1.0])


@quick
@given(single, st.floats(0, 1))
def test_the_filter_is_bounded_and_keeps_the_sign_of_every_gain(drawn, floor):
    one, agent = drawn
    for answered in one.questions:
        alone = dataclasses.replace(one, questions=(answered,))
        gated = values.gated_utility(alone, agent=agent, floor=floor)
        gains = values.value_difference(alone, agent=agent, lambda_=0.0)
        for kept, gain in zip(gated, gains, strict=True):
            if gain is None:
                assert kept is None
                continue
            assert min(floor * gain, gain) - 1e-12 <= kept <= max(floor * gain, gain) + 1e-12
    full = values.gated_utility(one, agent=agent, floor=1.0)
    assert full == values.value_difference(one, agent=agent, lambda_=0.0)


def chunked(capacity: int) -> tuple[Trajectory, Echo]:
    instance = planted_stream(5)
    agent = reader_for([instance])
    managed = RolloutSettings(num_generations=1, capacity=capacity)
    ((one,),) = play([instance], RandomManager(), managed, agent, 1)
    return one, agent


def on_memory_after(step: int, asked_: Trajectory, agent: Echo) -> list[AnsweredQuestion]:
    """Answer the chunk questions of every step on M_step, without any replay."""
    held = asked_.memory_at(step)

    class Held:
        get = staticmethod({item.item_id: item for item in held}.get)

    index = BM25Retriever.from_items(held)
    questions = [q.question for record in asked_.steps for q in record.chunk_questions]
    return answer_questions([Inquiry(questions, Held(), index, step)], agent, 3)[0]


@pytest.mark.parametrize("capacity", [4, None])
@pytest.mark.parametrize("delay", [0, 1, 2, 99, "end"])
def test_chunk_questions_are_asked_of_the_memory_d_steps_later(capacity, delay):
    one, agent = chunked(capacity)
    assert one.metadata["rollout"]["top_k"] == 3
    found = values.later_chunk_reward(one, agent=agent, delay=delay)
    for step, value in enumerate(found, start=1):
        after = one.num_steps if delay == "end" else min(one.num_steps, step + delay)
        asked_ = [a for a in on_memory_after(after, one, agent) if a.question.step == step]
        assert len(asked_) == len(one.steps[step - 1].chunk_questions) > 0
        assert value == pytest.approx(sum(a.score for a in asked_) / len(asked_))
    at_once = chunk_step_reward(one)
    assert (found == at_once) == (delay == 0)
    counted = assign("csr-later", one, agent=agent, delay=delay)
    sizes = [len(record.chunk_questions) for record in one.steps]
    assert counted.calls_asked == sum(sizes)
    playing = calls_while_playing("csr-later", [one], delay=delay)
    assert playing[0] == (sum(sizes) if delay == 0 else sizes[-1])
    assert counted.calls_played == playing[1]


def test_what_was_pushed_out_is_missed_later_and_not_at_once():
    instance = planted_stream(5)
    agent = reader_for([instance])
    managed = RolloutSettings(num_generations=1, capacity=6)
    ((one,),) = play([instance], InsertAll(), managed, agent, 0)
    at_once, late = chunk_step_reward(one), values.later_chunk_reward(one, agent=agent)
    assert all(before >= after for before, after in zip(at_once, late, strict=True))
    assert sum(at_once) > 2 * sum(late) and late[-1] == at_once[-1] > 0
    assert all(
        sum(values.later_chunk_reward(one, agent=agent, delay=d)) >= sum(late) for d in (0, 1, 2)
    )


def test_what_is_out_of_range_is_refused_before_anything_is_asked():
    one, agent = lost_and_won(), Echo()
    for rule, settings_, words in (
        ("value-difference", {"lambda_": 1.5}, "lambda_ is 1.5"),
        ("igpo", {"lambda_": -0.1}, "lambda_ is -0.1"),
        ("himpo", {"floor": 2.0}, "floor is 2.0"),
        ("csr-later", {"delay": -1}, "delay is -1"),
    ):
        with pytest.raises(ValueError, match=words):
            assign(rule, one, agent=agent, **settings_)


def test_sampled_questions_are_asked_alone():
    """A rule on some of the questions is the rule on the trajectory that has only these."""
    one, agent = lost_and_won(), Echo()
    halves = [dataclasses.replace(one, questions=(answered,)) for answered in one.questions]
    parts = [values.value_difference(half, agent=agent, lambda_=0.0) for half in halves]
    assert parts == [[1.0, -1.0, 0.0], [0.0, 0.0, 1.0]]
    whole = values.value_difference(one, agent=agent, lambda_=0.0)
    assert whole == [sum(pair) / 2 for pair in zip(*parts, strict=True)]
    assert list(itertools.accumulate(whole))[-1] == outcome_reward(one)
