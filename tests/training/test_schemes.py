"""Reward schemes as data: names, weights, and credit rules as terms."""

from __future__ import annotations

import dataclasses
import json

import pytest

from finemem_lib.credit.rules import assign, credit_update
from finemem_lib.data.planted import planted_stream
from finemem_lib.data.worked_example import worked_example
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import InsertAll
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import RewardSettings, hybrid_reward
from finemem_lib.training.schemes import (
    PAPER_SCHEMES,
    SCHEMES,
    TERMS,
    RewardScheme,
    reward_terms,
    scheme_of,
    scheme_record,
    scheme_weights,
    update_terms,
)

USED = RewardScheme("used items", {"eara-used": 1.0, "format": 0.5, "compression": "w2"})


def test_fine_mem_is_the_hybrid_reward_and_every_scheme_is_a_choice_of_its_terms():
    settings = RewardSettings(w1=0.3, w2=0.2)
    assert scheme_weights("Fine-Mem", settings) == {"outcome": 0.0, **settings.weights}
    for name, scheme in PAPER_SCHEMES.items():
        weights = scheme_weights(name, settings)
        assert tuple(weights) == TERMS and scheme.name == name
        assert {term for term, weight in weights.items() if weight} == set(scheme.terms)


def test_a_scheme_may_name_a_credit_rule_and_weigh_it_by_name_or_number():
    weights = scheme_weights(USED, RewardSettings(w2=0.2))
    assert weights == {**dict.fromkeys(TERMS, 0.0), "format": 0.5, "compression": 0.2} | {
        "eara-used": 1.0
    }
    example = worked_example()
    [rows] = reward_terms([example], USED)
    assert [row["eara-used"] for row in rows] == list(assign("eara-used", example).credit)
    assert [row["format"] for row in rows] == [step.format for step in hybrid_reward(example)]


@pytest.mark.parametrize("rule", ["mt-grpo", "gigpo", "attributed-dense"])
def test_a_rule_that_compares_rollouts_is_given_the_group(rule):
    example = worked_example()
    other = dataclasses.replace(example, rollout=1)
    group = [example, other]
    found = reward_terms(group, RewardScheme("compared", {rule: 1.0}))
    for trajectory, rows in zip(group, found, strict=True):
        credit = assign(rule, trajectory, group=group).credit
        assert [row[rule] for row in rows] == list(credit)


def test_a_step_without_a_known_term_of_the_scheme_is_unscorable():
    [rows] = reward_terms([worked_example()], RewardScheme("chunks", {"csr": 1.0}))
    assert rows[1] == dict.fromkeys((*TERMS, "csr"), None) and rows[0]["csr"] == 1.0


def test_a_rule_may_have_settings_of_its_own():
    scheme = RewardScheme("all evidence", {"eara-used": 1.0}, {"eara-used": {"beta": 1.0}})
    [rows] = reward_terms([worked_example()], scheme)
    expected = assign("eara-used", worked_example(), beta=1.0).credit
    assert [row["eara-used"] for row in rows] == list(expected)


def test_terms_may_be_standardised_on_their_own_before_they_are_added():
    """By hand: two rollouts of outcome 0.75 and 0.25 deviate by 0.25 from their mean."""
    example = worked_example()
    worse = dataclasses.replace(
        example,
        rollout=1,
        questions=tuple(dataclasses.replace(a, score=a.score / 3) for a in example.questions),
    )
    groups = [
        [example, worse],
        [dataclasses.replace(one, instance_id="j") for one in (example, worse)],
    ]
    for scale, deviation in {"none": 1.0, "group": 0.125**0.5 + 1e-4, "batch": 0.25}.items():
        scheme = RewardScheme(
            "apart", {"outcome": 1.0, "format": 1.0}, normalised={"outcome": scale}
        )
        found = update_terms(groups, scheme).terms
        value = found[0][0][0]["outcome"]
        if scale == "batch":  # all sixteen values, unbiased
            deviation = (16 * 0.25**2 / 15) ** 0.5 + 1e-4
        assert value == pytest.approx(0.25 / deviation)
        assert found[0][1][0]["outcome"] == pytest.approx(-value) and found[1] == found[0]
        assert found[0][0][0]["format"] == 1.0  # what is not named stays as it is


def test_a_rule_sees_the_whole_update_and_its_calls_and_measures_are_reported():
    agent = reader_for([planted_stream(1)])
    rollout = RolloutSettings(num_generations=2, capacity=2)
    groups = play([planted_stream(1), planted_stream(2)], InsertAll(), rollout, agent, 0)
    scheme = RewardScheme(
        "price", {"slot-price": 1.0}, rule_settings={"slot-price": {"smoothing": 0.5}}
    )
    first = update_terms(groups, scheme, agent=agent)
    found = credit_update("slot-price", groups, agent=agent)
    price = first.measures["slot-price/price"]
    assert price == found.measures["price"] > 0
    assert first.measures["slot-price/calls_asked"] == found.calls_asked > 0
    assert [
        [[step["slot-price"] for step in row] for row in of] for of in first.terms
    ] == found.credit
    again = update_terms(groups, scheme, agent=agent, previous={"slot-price/price": 3 * price})
    assert again.measures["slot-price/price"] == pytest.approx(2 * price)


@pytest.mark.parametrize(
    ("terms", "settings", "said"),
    [
        ({}, {}, "has no terms"),
        ({"evidence": 1.0}, {}, "term is 'evidence', expected one of outcome, eara"),
        ({"chunk": "w3"}, {}, "weight of 'chunk' is 'w3', expected a number or one of w1, w2"),
        ({"chunk": 1.0}, {"owen": {"alpha": 1.0}}, "rule_settings name owen, expected credit rul"),
    ],
)
def test_an_impossible_scheme_is_refused(terms, settings, said):
    with pytest.raises(ValueError, match=said):
        RewardScheme("mine", terms, settings)


def test_operations_are_scaled_by_their_root_mean_square_and_weighted():
    agent = reader_for([planted_stream(1)])
    rollout = RolloutSettings(num_generations=2, capacity=4)
    groups = play([planted_stream(1)], InsertAll(), rollout, agent, 0)
    rule = "operation-slot-price"
    scheme = RewardScheme("operations", {"outcome": 1.0}, operations={rule: 2.0})
    found = update_terms(groups, scheme, agent=agent)
    credit = [
        one.operations for group in credit_update(rule, groups, agent=agent).credit for one in group
    ]
    flat = [value for one in credit for step in one for value in step]
    size = (sum(value**2 for value in flat) / len(flat)) ** 0.5 + 1e-4
    assert [[[v * size / 2 for v in step] for step in one] for one in found.operations[0]] == [
        [pytest.approx(step) for step in one] for one in credit
    ]
    assert [*found.terms[0][0][0]] == [*TERMS]  # it is no term of the reward
    assert update_terms(groups, "outcome-only").operations is None
    with pytest.raises(ValueError, match="expected rules that credit operations: operation-loo"):
        RewardScheme("steps", {"outcome": 1.0}, operations={"step-loo": 1.0})


def test_only_terms_of_the_scheme_are_normalised_and_by_a_known_scale():
    for normalised in ({"eara": "group"}, {"chunk": "step"}):
        with pytest.raises(ValueError, match="expected one of its terms with one of group, batch"):
            RewardScheme("mine", {"chunk": 1.0}, normalised=normalised)


def test_an_unknown_name_lists_the_shipped_schemes():
    with pytest.raises(ValueError, match="outcome-only, "):
        scheme_of("outcome")
    assert scheme_of(USED) is USED and scheme_of("+CSR") is SCHEMES["+CSR"]


def test_a_run_records_a_shipped_scheme_by_name_and_others_in_full():
    assert scheme_record("Fine-Mem") == scheme_record(SCHEMES["Fine-Mem"]) == "Fine-Mem"
    assert json.loads(json.dumps(scheme_record(USED)))["terms"]["compression"] == "w2"
    assert scheme_record(RewardScheme("Fine-Mem", {"eara": 1.0})) != "Fine-Mem"
