"""Rules that compare rollouts: examples by hand, sums of zero, and groups that are refused."""

from __future__ import annotations

import dataclasses
import math
import statistics

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit import (
    group as group_rules,
    recorded,
)
from finemem_lib.credit.rules import RULES
from finemem_lib.trajectory import (
    Operation,
)
from tests.helpers.credit_cases import (
    HOME,
    group_of_two,
    groups,
    insert,
    known,
    recorded_steps,
)

quick = settings(max_examples=25, deadline=None)


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


def test_padding_never_enters_an_advantage():
    good, bad = group_of_two()
    with pytest.raises(ValueError, match="padding"):
        group_rules.turn_level(good, group=[good, bad, good])
