"""Credit rules: examples by hand, the law that each conserves, and what each refuses."""

from __future__ import annotations

import dataclasses
import math
import random
import statistics
from typing import get_args

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit import (
    asking,
    counterfactual,
    group as group_rules,
    marginals,
    recorded,
    rules,
)
from finemem_lib.credit.replay import Replayer, replay
from finemem_lib.credit.rules import RULES, assign
from finemem_lib.data.planted import StreamSettings, planted_stream
from finemem_lib.example import worked_example
from finemem_lib.lesson.cases import disagreement
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import FactsOnly, InsertAll, Oracle, RandomManager
from finemem_lib.memory import Eviction, FlatMemory
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import MemoisedAgent, Reading, reading_task
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.rewards import outcome_reward
from finemem_lib.scoring import score
from finemem_lib.trajectory import (
    Chunk,
    MemoryDelta,
    Operation,
    OperationOutcome,
    Question,
    Step,
    Trajectory,
    from_json,
    to_json,
)
from tests.helpers.credit_cases import (
    HOME,
    PETS,
    PLAYED_WITH,
    Echo,
    Guess,
    asked,
    groups,
    insert,
    known,
    recorded_steps,
    single,
)
from tests.helpers.memory_strategies import MEMORY_SETTINGS, STEPS, played
from tests.helpers.trajectory_strategies import trajectories

quick = settings(max_examples=25, deadline=None)


def from_nothing(agent: Echo, asked_: list[Question]) -> float:
    """Return the mean score of the questions that can be scored, read from no item."""
    readings = agent.read([reading_task(question, []) for question in asked_])
    scores = known(
        score(reading.answer, question.answers, question.data_source)
        for question, reading in zip(asked_, readings, strict=True)
    )
    return math.fsum(scores) / len(scores) if scores else 0.0


# ---- examples by hand ----------------------------------------------------------------------------


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


def group_of_two() -> list[Trajectory]:
    good = recorded_steps(
        [[insert("mia lives rome")], [Operation("SKIP")]], [HOME], chunk_scores=[1.0, 0.0]
    )
    bad = recorded_steps(
        [[insert("buses")], [Operation("SKIP")]], [HOME], rollout=1, chunk_scores=[0.0, 0.0]
    )
    return [good, bad]


def test_group_rules_by_hand():
    good, bad = group = group_of_two()
    plain = {"group": group, "scale_rewards": "none"}
    assert group_rules.turn_level(good, **plain) == [1.0, 0.5]
    assert group_rules.turn_level(bad, coefficient=2.0, **plain) == [-1.5, -0.5]
    assert group_rules.turn_level(good, turns="all", **plain) == [1.0, 0.5]
    # Both read the first chunk with an empty memory; then their memories differ.
    assert group_rules.anchored_groups(good, gamma=0.5, **plain) == [0.5 + 0.25, 0.5]
    assert group_rules.anchored_groups(bad, gamma=0.5, omega=2.0, **plain) == [-0.5 - 0.5, -0.5]
    # The step that told it and whose item was retrieved; the other wrote nothing.
    assert group_rules.hindsight(good, **plain) == pytest.approx([1.1 * 0.5, 0.0])
    assert group_rules.hindsight(bad, **plain) == [-0.5, 0.0]


def test_a_batch_of_anchored_groups_shares_one_standard_deviation():
    good, bad = group_of_two()
    twin = dataclasses.replace(good, rollout=2)  # stands at step 2 where `good` does, too
    group = [good, bad, twin]
    paid = {
        scale: group_rules.anchored_groups(good, group=group, gamma=0.5, scale_rewards=scale)
        for scale in ("none", "group", "batch")
    }
    outcomes = [1.0, 0.0, 1.0]
    first = [0.5, 0.0, 0.5]  # all three anchor at step 1, two at step 2, with equal returns
    centred = [1 - 2 / 3, 0.5 - 1 / 3]
    episode, alone, batch = map(statistics.stdev, (outcomes, first, [*first, 1.0, 1.0]))
    assert paid["none"] == pytest.approx([sum(centred), centred[0]])
    ratio = centred[0] / (episode + 1e-4)
    assert paid["group"] == pytest.approx([ratio + centred[1] / (alone + 1e-4), ratio])
    assert paid["batch"] == pytest.approx([ratio + centred[1] / (batch + 1e-4), ratio])
    assert paid["batch"] != paid["group"]


def test_hindsight_counts_a_step_once_however_many_of_its_items_were_retrieved():
    good = recorded_steps([[insert("mia lives rome"), insert("mia lives here")]], [HOME])
    bad = recorded_steps([[insert("buses")]], [HOME], rollout=1)
    assert [item.steps for item in good.questions[0].retrieved] == [(1,), (1,)]
    paid = group_rules.hindsight(
        good, group=[good, bad], retrieved_weight=0.5, scale_rewards="none"
    )
    assert paid == pytest.approx([1.5 * 0.5])


def test_attributed_dense_weighs_the_step_that_wrote_an_item_last():
    update = Operation("UPDATE", "mia lives rome", "1")
    good = recorded_steps([[insert("mia lives oslo")], [update]], [HOME], chunk_scores=[1.0, 1.0])
    bad = recorded_steps(
        [[insert("buses")], [Operation("SKIP")]], [HOME], rollout=1, chunk_scores=[0.0, 0.0]
    )
    assert [item.steps for item in good.questions[0].retrieved] == [(1, 2)]
    paid = group_rules.attributed_dense(
        good, group=[good, bad], scale_rewards="none", length_weight=0.0
    )
    assert paid == [0.5, 4 * 0.5]


def test_a_rollout_without_an_outcome_takes_no_part_in_the_turns():
    good, bad = group_of_two()
    unscored = dataclasses.replace(
        good,
        rollout=2,
        questions=tuple(dataclasses.replace(answered, score=None) for answered in good.questions),
    )
    plain = {"turns": "all", "scale_rewards": "none"}
    group = [good, bad, unscored]
    assert group_rules.turn_level(unscored, group=group, **plain) == [None] * good.num_steps
    assert group_rules.turn_level(good, group=group, **plain) == group_rules.turn_level(
        good, group=[good, bad], **plain
    )


def test_attributed_dense_by_hand():
    good, bad = group = group_of_two()
    plain = {"group": group, "scale_rewards": "none", "length_weight": 0.5}
    # Both wrote as much as their chunk holds. Step 1 of the good one was retrieved: weight 4.
    assert group_rules.attributed_dense(good, **plain) == [4 * 0.25, 0.0]
    assert group_rules.attributed_dense(bad, **plain) == [-0.25, 0.0]  # nothing of it was retrieved
    refused = dataclasses.replace(
        good,
        steps=tuple(
            dataclasses.replace(
                step,
                outcomes=tuple(
                    dataclasses.replace(outcome, applied=False) for outcome in step.outcomes
                ),
            )
            for step in good.steps
        ),
    )
    assert group_rules.attributed_dense(refused, **plain | {"group": [refused, bad]}) == [0.0, 0.0]


def test_the_weight_of_attributed_dense_outlives_standardising():
    good, bad = group_of_two()
    twin = dataclasses.replace(bad, rollout=2, questions=good.questions)
    for one in (good, twin):  # in these two, step 1 is the one retrieved most
        plain, heavy = (
            group_rules.attributed_dense(one, group=[good, bad, twin], alpha=alpha)
            for alpha in (1.0, 4.0)
        )
        assert plain[0] and heavy[0] == pytest.approx(4 * plain[0])


# ---- what each rule conserves --------------------------------------------------------------------


@quick
@given(trajectories())
def test_the_splits_sum_to_the_outcome(one):
    if not one.questions:
        return
    outcome = outcome_reward(one)
    for rule, settings_ in (
        ("uniform-split", {}),
        ("eara", {}),
        ("eara", {"beta": 1.0, "attribution": "lineage"}),
        ("eara-used", {}),
    ):
        if rule == "eara-used" and all(a.used is None for a in one.questions):
            continue
        shares = RULES[rule].function(one, **settings_)
        assert len(shares) == one.num_steps
        if outcome is None:
            assert shares == [None] * one.num_steps
        else:
            assert math.fsum(shares) == pytest.approx(outcome)
    broadcast = known(recorded.outcome_broadcast(one))
    assert broadcast == ([] if outcome is None else [outcome] * one.num_steps)


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


@quick
@given(groups(size=3), st.sampled_from(["group", "batch", "none"]))
def test_advantages_of_a_group_sum_to_zero_at_every_step(group, scale):
    for rule in ("mt-grpo", "gigpo"):
        rows = [RULES[rule].function(one, group=group, scale_rewards=scale) for one in group]
        for column in zip(*rows, strict=True):
            assert math.fsum(known(column)) == pytest.approx(0, abs=1e-9)


@quick
@given(groups(size=3))
def test_hindsight_sums_to_zero_where_all_wrote_and_pays_no_step_that_wrote_nothing(group):
    rows = [group_rules.hindsight(one, group=group, retrieved_weight=0.0) for one in group]
    for step, column in enumerate(zip(*rows, strict=True)):
        wrote = [bool(one.steps[step].delta.written) for one in group]
        assert all(value in (0.0, None) for value, w in zip(column, wrote, strict=True) if not w)
        if all(wrote):
            assert math.fsum(known(column)) == pytest.approx(0, abs=1e-9)


@quick
@given(groups(size=3), st.floats(0, 8), st.floats(0, 1))
def test_attributed_dense_weights_advantages_that_sum_to_zero(group, alpha, weight):
    def paid(alpha: float) -> list[list[float | None]]:
        return [
            group_rules.attributed_dense(one, group=group, alpha=alpha, length_weight=weight)
            for one in group
        ]

    even, weighted = paid(1.0), paid(alpha)
    for column in zip(*even, strict=True):
        assert math.fsum(known(column)) == pytest.approx(0, abs=1e-9)
    for one, plain, heavy in zip(group, even, weighted, strict=True):
        for reward, before, after in zip(
            recorded.chunk_step_reward(one), plain, heavy, strict=True
        ):
            assert (before is None) == (after is None) == (reward is None)
            if reward is not None:
                assert after in (before, alpha * before)


@quick
@given(st.integers(1, 4), st.integers(0, 2**30), st.booleans())
def test_marginals_give_a_dummy_nothing_and_equals_the_same(n, seed, additive):
    rng = random.Random(seed)
    worth = {player: rng.random() for player in range(n)}

    def value(some: frozenset) -> float:
        real = some - {0}  # player 0 adds nothing, all others are worth 1 to a threshold
        return sum(worth[p] for p in real) if additive else float(len(real) >= max(1, n // 2))

    for sets in (
        marginals.shapley(range(n), 1, rng),
        marginals.owen(list(range(n))),
        marginals.leave_one_out(range(n)),
    ):
        sums = marginals.player_values(sets, value)
        assert sums[0] == 0
        if additive:
            assert all(sums[p] == pytest.approx(worth[p]) for p in range(1, n))
    shapley = marginals.player_values(marginals.shapley(range(n), 1, rng), value)
    if not additive:
        assert len({round(shapley[p], 9) for p in range(1, n)}) <= 1


def test_sampled_shapley_approaches_the_exact_one(monkeypatch):
    one = recorded_steps(
        [[insert(f"mia lives rome {word}")] for word in ("", "a", "b", "c", "d")],
        [HOME],
        {"top_k": 5},
    )
    monkeypatch.setattr(marginals, "EXACT_PLAYERS", 5)
    exact = counterfactual.evidence_shapley(one, agent=Echo())
    monkeypatch.undo()
    sampled = counterfactual.evidence_shapley(one, agent=Echo(), permutations=400)
    assert exact == pytest.approx([0.2] * 5)
    assert sampled == pytest.approx(exact, abs=0.06) and sampled != exact
    assert sampled == counterfactual.evidence_shapley(one, agent=Echo(), permutations=400)


# ---- reader calls are counted --------------------------------------------------------------------


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


def played_group() -> list[Trajectory]:
    instance = planted_stream(5)
    settings = RolloutSettings(num_generations=3, capacity=8)
    return play([instance], RandomManager(), settings, reader_for([instance]), 1)[0]


class Watch(MemoisedAgent):
    """Notes what it is asked; settings and answers are those of the agent below."""

    def __init__(self, agent) -> None:
        super().__init__(agent)
        self.asked = []

    def read(self, tasks):
        self.asked += [
            (task.question, tuple(content for _, content in task.items), task.written)
            for task in tasks
        ]
        return super().read(tasks)


AGENT_RULES = [name for name, rule in RULES.items() if "agent" in rule.arguments]


@pytest.mark.parametrize("name", AGENT_RULES)
def test_what_the_outcome_read_is_never_read_again(name):
    one, *_ = played_group()
    probes = {"probes": [answered.question for answered in one.questions]}
    extra = probes if "probes" in RULES[name].arguments else {}
    outcome = Watch(reader_for([planted_stream(5)]))
    held = {item.item_id: item for item in one.final_memory()}
    outcome.read(
        [
            reading_task(answered.question, [held[item.item_id] for item in answered.retrieved])
            for answered in one.questions
        ]
    )
    alone, below = Watch(reader_for([planted_stream(5)])), Watch(reader_for([planted_stream(5)]))
    RULES[name].function(one, agent=alone, **extra)
    counted = assign(name, one, agent=MemoisedAgent(below), **extra)
    played_ = rules.calls_while_playing(name, [one])[0]
    assert counted.calls_asked - played_ == len(alone.asked)
    assert counted.calls_made - counted.calls_played == len(below.asked)
    assert set(below.asked) == set(alone.asked) - set(outcome.asked)
    if "replay" in RULES[name].arguments and name != "potential":  # some step moved no evidence
        assert set(alone.asked) & set(outcome.asked)


def test_the_readings_of_the_page_on_disagreement_are_counted_beyond_the_outcome():
    one = disagreement()
    made = {
        name: assign(name, one, agent=reader_for([one])).calls_made
        for name in ("step-loo", "step-shapley", "owen")
    }
    assert made == {"step-loo": 11, "step-shapley": 21, "owen": 20}


def test_what_is_told_as_known_is_not_asked_and_never_overwrites():
    task = reading_task(HOME, [])
    agent = MemoisedAgent(Echo())
    agent.know([task], [Reading("oslo", ())])
    agent.know([task], [Reading("lima", ())])
    assert agent.read([task]) == [Reading("oslo", ())]
    assert (agent.calls_asked, agent.calls_made) == (1, 0)


def test_another_agents_answers_are_not_told_to_this_one():
    one, *_ = played_group()
    agent = MemoisedAgent(Echo())
    with pytest.raises(ValueError, match="answers by the agent"):
        assign("step-loo", one, agent=agent)
    assert agent.memo_to_json() == "[]"


def test_no_rule_asks_for_more_than_its_card_says():
    one, *_ = group = played_group()
    n, t = len(one.questions), one.num_steps
    k = one.metadata["rollout"]["top_k"]
    chunk = max(len(step.chunk_questions) for step in one.steps)
    probes = [answered.question for answered in one.questions]
    most = {
        "csr": chunk * t,
        "attributed-dense": chunk * t,
        "mt-grpo": chunk,
        "evidence-loo": n * k,
        "evidence-shapley": n * (2**k - 1),
        "step-loo": n * t,
        "operation-loo": n * sum(len(step.outcomes) for step in one.steps),
        "step-shapley": n * 16 * t,
        "owen": n * t**2,
        "potential": len(probes) * t,
        "two-sided-evidence": n * len(group),
        "slot-price": n * len(group),
        "value-difference": n * t,
        "igpo": n * t,
        "delta-belief": n * t,
        "himpo": n * t,
        "csr-later": chunk * t,
    }
    for name, rule in RULES.items():
        there = {"agent": reader_for([planted_stream(5)]), "group": group, "probes": probes}
        needed = {need: there[need] for need in rule.arguments if need in there}
        assert assign(name, one, **needed).calls_asked <= most.get(name, 0), name


@pytest.mark.parametrize("steps", [*range(1, 20), 60])
def test_owen_values_take_at_most_the_square_of_the_steps(steps):
    wanted = marginals.coalitions(marginals.owen(range(1, steps + 1)))
    assert len(wanted) - 1 <= steps**2  # but all steps, which the outcome has read


def test_chunk_questions_read_while_playing_are_the_cost_of_the_rules_that_read_them():
    one, *_ = group = played_group()
    sizes = [len(step.chunk_questions) for step in one.steps]
    counts = {
        name: assign(name, one, **({"group": group} if "group" in rule.arguments else {}), **extra)
        for name, rule, extra in (
            *((name, rule, {}) for name, rule in RULES.items() if "agent" not in rule.arguments),
        )
    }
    asked_ = {name: found.calls_asked for name, found in counts.items() if found.calls_asked}
    assert asked_ == {"csr": sum(sizes), "attributed-dense": sum(sizes), "mt-grpo": sizes[0]}
    for found in counts.values():
        assert found.calls_played == found.calls_made <= found.calls_asked
    assert assign("mt-grpo", one, group=group, turns="all").calls_asked == sum(sizes)


def flipped(one: Trajectory, step: Step, number: int) -> Trajectory:
    """Return the trajectory with the score of one chunk question of a step turned."""
    asked_ = list(step.chunk_questions)
    asked_[number] = dataclasses.replace(asked_[number], score=1 - asked_[number].score)
    return dataclasses.replace(
        one,
        steps=tuple(
            dataclasses.replace(step, chunk_questions=tuple(asked_))
            if other.step == step.step
            else other
            for other in one.steps
        ),
    )


@pytest.mark.parametrize(
    ("name", "extra"),
    [("csr", {}), ("mt-grpo", {}), ("mt-grpo", {"turns": "all"}), ("attributed-dense", {})],
)
def test_what_is_counted_is_what_moves_the_credit(name, extra):
    """A chunk question is a call of the rollout that was asked if, and only if, its answer can
    change that rollout's credit. Those of the other rollouts move it too, and are calls of theirs.
    """
    one, other, _ = group = played_group()

    def paid(*some: Trajectory) -> list[tuple[float | None, ...]]:
        together = {"group": some} if "group" in RULES[name].arguments else {}
        return assign(name, some[0], **together, **extra).credit

    def moves(asked_: Trajectory, step: Step) -> int:
        before = paid(*group)
        return sum(
            paid(*(flipped(asked_, step, number) if two is asked_ else two for two in group))
            != before
            for number in range(len(step.chunk_questions))
        )

    together = {"group": group} if "group" in RULES[name].arguments else {}
    # What a spoilt step answers is multiplied by 0, and was asked all the same.
    spoilt = [
        step
        for step in one.steps
        if name == "attributed-dense"
        and not (step.outcomes and all(outcome.applied for outcome in step.outcomes))
    ]
    wasted = sum(len(step.chunk_questions) for step in spoilt)
    moved = sum(moves(one, step) for step in one.steps)
    assert assign(name, one, **together, **extra).calls_asked == moved + wasted
    assert moved > 0
    assert bool(together) == any(moves(other, step) for step in other.steps)
    of_all = rules.calls_while_playing(name, group, **extra)[0]
    assert of_all == sum(rules.calls_while_playing(name, [two], **extra)[0] for two in group)


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


def test_an_answer_from_an_item_that_was_cut_is_no_reading_of_the_others():
    """Incident: rules failed on trajectories whose evidence somebody had cut to fewer items."""
    one = worked_example()
    place, asked = next(
        (number, answered)
        for number, answered in enumerate(one.questions)
        if answered.used and answered.score is not None
    )
    kept = tuple(found for found in asked.retrieved if found.item_id not in asked.used)
    cut = dataclasses.replace(
        one,
        questions=(
            *one.questions[:place],
            dataclasses.replace(asked, retrieved=kept),
            *one.questions[place + 1 :],
        ),
    )
    (tasks, _), (fewer, _) = rules.outcome_readings(one), rules.outcome_readings(cut)
    assert len(fewer) == len(tasks) - 1
    assert assign("csr", cut).credit == assign("csr", one).credit


def test_equal_readings_while_playing_are_made_once():
    group = played_group()
    twin = dataclasses.replace(group[0], rollout=9)
    alone = rules.calls_while_playing("csr", group[:1])
    asked_, made = rules.calls_while_playing("csr", [group[0], twin])
    assert asked_ == 2 * alone[0] and made == alone[1]
    answered = [a for one in group for step in one.steps for a in step.chunk_questions]
    tasks, _ = map(list, zip(*map(rules.outcome_readings, group), strict=True))
    outcome = {
        (task.question, tuple(c for _, c in task.items), task.written)
        for some in tasks
        for task in some
    }
    seen = Watch(Echo())
    for one in group:
        held = {}
        for step in one.steps:
            held = step.delta.applied_to(held)
            seen.read(
                [
                    reading_task(a.question, [held[item.item_id] for item in a.retrieved])
                    for a in step.chunk_questions
                ]
            )
    assert len(seen.asked) == len(answered) and set(seen.asked) & outcome
    # One asked again at the end, on the same items, is the outcome's.
    made = rules.calls_while_playing("csr", group)[1]
    assert made == len(set(seen.asked) - outcome)
    torn = dataclasses.replace(
        group[0],
        steps=tuple(dataclasses.replace(step, delta=MemoryDelta()) for step in group[0].steps),
    )
    with pytest.raises(ValueError, match="cut or joined"):
        assign("csr", torn)


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


def test_what_a_given_replayer_asks_is_counted():
    one, *_ = played_group()
    agent = reader_for([planted_stream(5)]).agent
    expected = assign("step-loo", one, agent=agent)
    assert assign("step-loo", one, agent=agent, replay=Replayer(one, agent)) == expected
    memoised = MemoisedAgent(agent)
    replayer = Replayer(one, memoised)
    assert assign("step-loo", one, agent=memoised, replay=replayer) == expected
    assert assign("step-loo", one, agent=memoised, replay=replayer).calls_asked == 0  # it remembers


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


# ---- what a rule needs ---------------------------------------------------------------------------


def test_every_rule_says_what_is_missing_and_what_to_do():
    good, bad = group_of_two()
    no_questions = dataclasses.replace(good, questions=())
    nameless = dataclasses.replace(
        good,
        questions=tuple(dataclasses.replace(answered, used=None) for answered in good.questions),
    )
    unchunked = dataclasses.replace(
        good, steps=tuple(dataclasses.replace(step, chunk_questions=()) for step in good.steps)
    )
    untold = dataclasses.replace(
        good,
        questions=tuple(
            dataclasses.replace(
                answered, question=dataclasses.replace(answered.question, evidence_steps=None)
            )
            for answered in good.questions
        ),
    )
    silent = dataclasses.replace(good, metadata={})
    changed = dataclasses.replace(good, metadata={"rollout": PLAYED_WITH | {"max_item_tokens": 1}})
    unknown = dataclasses.replace(good, metadata={"rollout": PLAYED_WITH | {"retriever": "sparse"}})
    agent = {"agent": Echo()}
    cases = [
        *(
            (
                name,
                no_questions,
                agent | {"group": [no_questions], "probes": [HOME]},
                "a global question",
            )
            for name in RULES
            if name not in ("csr", "csr-later")
        ),
        ("csr", unchunked, {}, "chunk questions"),
        ("csr-later", unchunked, agent, "chunk questions"),
        ("attributed-dense", unchunked, {"group": [unchunked]}, "chunk questions"),
        ("mt-grpo", unchunked, {"group": [unchunked]}, "chunk questions"),
        ("eara-used", nameless, {}, "name the items they used"),
        ("hindsight", untold, {"group": [untold]}, "evidence steps"),
        ("step-loo", silent, agent, "settings it was played with"),
        ("value-difference", silent, agent, "settings it was played with"),
        ("owen", changed, agent, "operations that lead to its final memory"),
        ("potential", unknown, agent | {"probes": [HOME]}, "retriever is 'sparse'"),
        ("potential", good, agent | {"probes": [asked("q", "who")]}, "probe question that can be"),
        ("step-shapley", good, {"agent": reader_for([])}, "answers by the agent"),
        ("evidence-loo", good, {"agent": reader_for([])}, "answers by the agent"),
        ("gigpo", good, {"group": [bad]}, "a group that holds its rollout"),
        ("gigpo", good, {"group": [good, dataclasses.replace(bad, instance_id="j")]}, "same inst"),
    ]
    for name, one, given_settings, words in cases:
        rule = RULES[name]
        allowed = {n: value for n, value in given_settings.items() if n in rule.arguments}
        with pytest.raises(ValueError, match=words):
            rule.function(one, **allowed)


def test_an_agent_that_fails_is_no_score_of_zero():
    class Failing(Echo):
        def read(self, tasks):
            return [Reading(None, ()) for _ in tasks]

    good, _ = group_of_two()
    for rule in ("evidence-loo", "step-loo", "owen", "value-difference"):
        with pytest.raises(ValueError, match="reasoning agent failed"):
            assign(rule, good, agent=Failing())
    with pytest.raises(ValueError, match="probe question that can be scored"):
        assign("potential", good, agent=Failing(), probes=[HOME])


def test_padding_never_enters_an_advantage():
    good, bad = group_of_two()
    with pytest.raises(ValueError, match="padding"):
        group_rules.turn_level(good, group=[good, bad, good])


def test_assign_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="expected one of outcome-broadcast"):
        assign("scar", worked_example())
    with pytest.raises(ValueError, match="'gigpo' needs group"):
        assign("gigpo", worked_example())
    with pytest.raises(ValueError, match="permutations is 0"):
        one = recorded_steps([[insert(word)] for word in "abcde"], [asked("q", "a b c d e", "a")])
        counterfactual.step_shapley(one, agent=Echo(), permutations=0)


def test_unscorable_is_none_and_left_out():
    one = recorded_steps([[insert("mia lives rome")]], [HOME, asked("q-4", "oslo")])
    assert counterfactual.step_leave_one_out(one, agent=Echo()) == [1.0]
    nothing = dataclasses.replace(one, questions=one.questions[1:])
    settings_ = {"agent": Echo(), "group": [nothing], "probes": [HOME]}
    for name, rule in RULES.items():
        if "chunk questions" not in rule.records:
            needed = {n: settings_[n] for n in rule.arguments if n in settings_}
            assert rule.function(nothing, **needed) == [None], name


def test_every_rule_has_a_card():
    for name, rule in RULES.items():
        for text in (rule.formula, rule.source, rule.conserves, rule.cost):
            assert text, name


# ---- on played streams ---------------------------------------------------------------------------


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


def test_all_rules_run_on_one_played_group_and_agree_with_assign():
    instance = planted_stream(5)
    agent = reader_for([instance])
    settings_ = RolloutSettings(num_generations=3, capacity=8, duplicates="allow")
    (group,) = play([instance], RandomManager(), settings_, agent, 1)
    probes = [question for asked_ in instance.chunk_questions for question in asked_]
    for name, rule in RULES.items():
        there = {"agent": agent, "group": group, "probes": probes}
        needed = {n: there[n] for n in rule.arguments if n in there}
        found = assign(name, group[0], **needed)
        assert list(found.credit) == rule.function(group[0], **needed)
        assert len(found.credit) == 6 and any(found.credit), name
        assert found.calls_made <= found.calls_asked
        read = from_json(Trajectory, to_json(group[0]))
        if "group" not in rule.arguments:
            assert tuple(rule.function(read, **needed)) == found.credit


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
