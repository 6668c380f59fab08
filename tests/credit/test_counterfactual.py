"""Rules that ask "and without it?": examples by hand and the sums that they conserve."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit import (
    counterfactual,
    marginals,
    recorded,
)
from finemem_lib.credit.rules import assign
from finemem_lib.data.planted import StreamSettings, planted_stream
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import InsertAll, Oracle
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import MemoisedAgent
from finemem_lib.rewards import outcome_reward
from finemem_lib.trajectory import (
    Operation,
)
from tests.helpers.credit_cases import (
    HOME,
    PETS,
    Echo,
    Guess,
    asked,
    from_nothing,
    insert,
    known,
    recorded_steps,
    single,
)

quick = settings(max_examples=25, deadline=None)


def test_evidence_rules_by_hand():
    # Two copies of one fact (steps 1 and 2) and a noise item (step 3), top-k 3.
    one = recorded_steps(
        [[insert("mia lives rome")], [insert("mia lives rome")], [insert("mia saw oslo")]],
        [HOME],
        {"top_k": 3},
    )
    # Neither copy is needed; each order gives the answer to whichever copy comes first.
    assert counterfactual.evidence_leave_one_out(one, agent=Echo()) == [0.0, 0.0, 0.0]
    assert counterfactual.evidence_shapley(one, agent=Echo()) == pytest.approx([0.5, 0.5, 0.0])
    assert recorded.evidence_anchored(one, beta=1.0) == pytest.approx([1 / 3] * 3)
    # An answer that needs both items: each alone is necessary, together they share.
    both = recorded_steps(
        [[insert("ana keeps cats and")], [insert("ana keeps dogs")]],
        [asked("q", "ana keeps", "cats and ana keeps dogs", "dogs ana keeps cats and")],
    )
    assert counterfactual.evidence_leave_one_out(both, agent=Echo()) == [1.0, 1.0]
    assert counterfactual.evidence_shapley(both, agent=Echo()) == pytest.approx([0.5, 0.5])


def test_step_rules_by_hand():
    one = recorded_steps(
        [
            [insert("mia lives rome")],
            [insert("mia lives rome")],
            [Operation("SKIP")],
            [insert("ana keeps cats and dogs")],
        ],
        [HOME, PETS],
    )
    assert counterfactual.step_leave_one_out(one, agent=Echo()) == [0.0, 0.0, 0.0, 0.5]
    assert counterfactual.step_shapley(one, agent=Echo()) == pytest.approx([0.25, 0.25, 0.0, 0.5])
    assert counterfactual.owen_values(one, agent=Echo()) == pytest.approx([0.25, 0.25, 0.0, 0.5])
    half = counterfactual.owen_values(one, agent=Echo(), alpha=0.5)
    assert half == pytest.approx([0.125, 0.125, 0.0, 0.25 + 0.5])


def test_owen_keeps_halves_together():
    # Steps 1 and 2 say the same, step 4, in the other half, has to come on top of either.
    one = recorded_steps(
        [
            [insert("ana keeps cats and")],
            [insert("ana keeps cats and")],
            [Operation("SKIP")],
            [insert("ana keeps dogs")],
        ],
        [asked("q", "ana keeps", "cats and ana keeps dogs", "dogs ana keeps cats and")],
        {"top_k": 3},
    )
    # Shapley: in 2/3 of the orders step 4 comes after a copy; Owen: the halves share evenly.
    assert counterfactual.step_shapley(one, agent=Echo()) == pytest.approx([1 / 6, 1 / 6, 0, 2 / 3])
    assert counterfactual.owen_values(one, agent=Echo()) == pytest.approx([1 / 4, 1 / 4, 0, 1 / 2])


def test_a_step_that_pushes_out_the_answer_did_harm():
    one = recorded_steps(
        [[insert("mia lives rome")], [insert("buses left")]], [HOME], {"capacity": 1}
    )
    assert counterfactual.step_leave_one_out(one, agent=Echo()) == [0.0, -1.0]
    assert counterfactual.step_shapley(one, agent=Echo()) == [0.5, -0.5]


def test_a_refused_duplicate_is_stored_when_its_first_copy_is_missing():
    one = recorded_steps(
        [[insert("mia lives rome")], [insert("mia lives rome")]], [HOME], {"duplicates": "refuse"}
    )
    assert not one.steps[1].outcomes[0].applied
    assert counterfactual.step_leave_one_out(one, agent=Echo()) == [0.0, 0.0]
    assert counterfactual.step_shapley(one, agent=Echo()) == [0.5, 0.5]


def test_potential_pays_each_step_the_change_of_the_probes():
    one = recorded_steps(
        [
            [insert("mia lives rome")],
            [Operation("DELETE", item_id="1")],
            [insert("ana keeps cats and dogs")],
        ],
        [HOME, PETS],
    )
    paid = counterfactual.potential_shaping(one, agent=Echo(), probes=[HOME, PETS])
    assert paid == [0.5, -0.5, 0.5]
    discounted = counterfactual.potential_shaping(one, agent=Echo(), probes=[HOME], gamma=0.5)
    assert discounted == [0.5, -1.0, 0.5]


@quick
@given(single, st.sampled_from(["last_write", "creation", "lineage"]))
def test_evidence_shapley_sums_to_what_the_items_added(drawn, attribution):
    one, agent = drawn
    shares = counterfactual.evidence_shapley(
        one, agent=agent, attribution=attribution, permutations=3
    )
    scored = [answered for answered in one.questions if answered.score is not None]
    # A question that retrieved nothing was read from nothing, so nothing added to it.
    gained = math.fsum(
        answered.score - from_nothing(agent, [answered.question]) for answered in scored
    )
    assert math.fsum(known(shares)) == pytest.approx(gained / len(scored) if scored else 0.0)


@quick
@given(single, st.sampled_from(["refuse", "insert"]))
def test_step_shapley_and_owen_sum_to_the_outcome_less_that_of_nothing(drawn, orphaned):
    one, agent = drawn
    outcome = outcome_reward(one)
    nothing = from_nothing(agent, [answered.question for answered in one.questions])
    for shares, alpha in (
        (counterfactual.step_shapley(one, agent=agent, orphaned=orphaned, permutations=3), 1.0),
        (counterfactual.owen_values(one, agent=agent, orphaned=orphaned), 1.0),
        (counterfactual.owen_values(one, agent=agent, orphaned=orphaned, alpha=0.25), 0.25),
    ):
        assert (
            (shares == [None] * one.num_steps)
            if outcome is None
            else (math.fsum(shares) == pytest.approx(outcome - alpha * nothing))
        )


@quick
@given(single, st.floats(0.1, 1.0))
def test_potential_shaping_keeps_the_discounted_sum(drawn, gamma):
    one, agent = drawn
    probes = [HOME, PETS]
    shaped = counterfactual.potential_shaping(one, agent=agent, probes=probes, gamma=gamma)
    outcome = outcome_reward(one)
    if outcome is None:
        assert shaped == [None] * one.num_steps
        return
    total = math.fsum(gamma**place * paid for place, paid in enumerate(shaped))
    assert total == pytest.approx(
        gamma ** (one.num_steps - 1) * outcome - from_nothing(agent, probes)
    )


def test_an_agent_that_guesses_right_leaves_nothing_to_earn():
    """The properties above draw such agents; this one cannot miss them."""
    agent = Guess()
    one = recorded_steps([[insert("mia lives rome")], [insert("buses left")]], [HOME], agent=agent)
    assert from_nothing(agent, [HOME]) == 1.0 and from_nothing(Echo(), [HOME]) == 0.0
    assert sum(counterfactual.evidence_shapley(one, agent=agent)) == 0.0
    assert sum(counterfactual.step_shapley(one, agent=agent)) == 0.0
    assert sum(counterfactual.owen_values(one, agent=agent, alpha=0.5)) == pytest.approx(0.5)
    assert sum(counterfactual.potential_shaping(one, agent=agent, probes=[HOME])) == 0.0


def test_sampled_shapley_approaches_the_exact_one(monkeypatch):
    one = recorded_steps(
        [[insert(f"mia lives rome {word}")] for word in ("", "a", "b", "c", "d")],
        [HOME],
        {"top_k": 5},
    )
    monkeypatch.setattr(marginals, "MAX_EXACT_PLAYERS", 5)
    exact = counterfactual.evidence_shapley(one, agent=Echo())
    monkeypatch.undo()
    sampled = counterfactual.evidence_shapley(one, agent=Echo(), permutations=400)
    assert exact == pytest.approx([0.2] * 5)
    assert sampled == pytest.approx(exact, abs=0.06) and sampled != exact
    assert sampled == counterfactual.evidence_shapley(one, agent=Echo(), permutations=400)


def test_exact_shapley_takes_3n_calls_at_two_items_and_leave_one_out_2n():
    one = recorded_steps(
        [
            [insert("mia lives rome"), insert("mia saw oslo")],
            [insert("ana keeps cats and dogs"), insert("ana keeps calm")],
        ],
        [HOME, PETS],
    )
    assert [len(answered.retrieved) for answered in one.questions] == [2, 2]
    assert assign("evidence-shapley", one, agent=Echo()).calls_asked == 3 * 2
    assert assign("evidence-loo", one, agent=Echo()).calls_asked == 2 * 2
    assert assign("eara", one).calls_asked == 0
    assert assign("evidence-loo", one, agent=Echo()).calls_played == 0
    shared = MemoisedAgent(Echo())
    assign("evidence-loo", one, agent=shared)
    # The items alone were read for leave-one-out; only "nothing" is new, once per question.
    again = assign("evidence-shapley", one, agent=shared)
    assert (again.calls_asked, again.calls_made) == (6, 2)


def test_a_deletion_is_told_by_a_replay_or_the_outcome_and_by_no_chunk_reward():
    class Forgetful(InsertAll):
        name = "forgetful"

        def rule(self, observation, rng):
            kept = super().rule(observation, rng)
            if observation.step < 6:
                return kept
            return [Operation("DELETE", item_id=item.item_id) for item in observation.items] + kept

    instance = planted_stream(5)
    agent = reader_for([instance])
    ((keeps,),), ((forgets,),) = (
        play([instance], manager, RolloutSettings(num_generations=1), agent, 0)
        for manager in (InsertAll(), Forgetful())
    )
    assert recorded.chunk_step_reward(forgets) == recorded.chunk_step_reward(keeps)
    assert outcome_reward(forgets) < outcome_reward(keeps)
    assert counterfactual.step_leave_one_out(forgets, agent=agent)[-1] < 0
    assert all(part >= 0 for part in counterfactual.evidence_leave_one_out(forgets, agent=agent))


def test_an_oracle_is_paid_for_the_planted_steps():
    instance = planted_stream(3, StreamSettings(change_rate=0.4))
    agent = reader_for([instance])
    ((one,),) = play([instance], Oracle(), RolloutSettings(num_generations=1), agent, 0)
    assert outcome_reward(one) == 1.0
    n = len(instance.questions)
    truth = [sum(step in q.evidence_steps for q in instance.questions) / n for step in range(1, 7)]
    stored = counterfactual.step_leave_one_out(one, agent=agent, orphaned="insert")
    assert stored == pytest.approx(truth)
    assert recorded.evidence_anchored_used(one, beta=1.0) == pytest.approx(truth)
    assert counterfactual.evidence_shapley(one, agent=agent) == pytest.approx(truth)
    # An UPDATE of a slot needs the step that created the item as well.
    refused = counterfactual.step_leave_one_out(one, agent=agent)
    assert all(a >= b - 1e-12 for a, b in zip(refused, truth, strict=True))
    assert sum(refused) > 1
