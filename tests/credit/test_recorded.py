"""Rules that read only what was recorded sum to the outcome."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings

from finemem_lib.credit import (
    recorded,
)
from finemem_lib.credit.rules import RULES
from finemem_lib.rewards import outcome_reward
from tests.helpers.credit_cases import (
    known,
)
from tests.helpers.trajectory_strategies import trajectories

quick = settings(max_examples=25, deadline=None)


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
