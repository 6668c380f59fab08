"""May steps with different prompts share a group: the fork by hand, and played streams."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, strategies as st

from finemem_lib import explorers, figures
from finemem_lib.data.planted import planted_instances
from finemem_lib.evaluation.state_mismatch import (
    COMPARISONS,
    Compared,
    Fork,
    FromState,
    agreements,
    mismatch_rows,
)
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import RandomManager
from finemem_lib.readers.extractive import reader_for


@given(st.floats(0.51, 0.99))
def test_above_one_half_the_right_step_is_punished_for_what_it_inherited(share):
    fork = Fork(share)
    assert fork.effects[2] > 0 > fork.compared[2]
    assert fork.effects[1] == 0 < fork.compared[1]
    for compared in (fork.compared, fork.within_state):
        assert math.fsum(compared) == pytest.approx(0)
    assert fork.within_state[2] > 0 > fork.within_state[1]


def row(name, step, advantage, effect, alone=False):
    return Compared(COMPARISONS[0], name, step, advantage, effect, alone)


def test_agreement_is_the_correlation_within_instances():
    rows = [
        row("a", 1, 1.0, 0.5),
        row("a", 1, -1.0, -0.5),
        row("b", 1, 6.0, 0.5),  # another level, the same slope
        row("b", 1, 4.0, -0.5),
        row("a", 2, 1.0, 0.0, alone=True),
        row("a", 2, -1.0, 0.0),
    ]
    first, second = agreements(rows)
    assert (first.step, first.value, first.low, first.high) == pytest.approx((1, 1.0, 1.0, 1.0))
    assert (second.value, second.low, second.alone) == (None, None, 0.5)


def test_re_rollouts_share_their_state_and_the_rows_cover_every_comparison():
    streams = planted_instances("train", 2, 1)
    agent, settings = reader_for(streams), RolloutSettings(num_generations=3)
    groups = play(streams, RandomManager(), settings, agent, 0)
    first = {group[0].instance_id: group[0] for group in groups}
    again = play(streams, FromState(RandomManager(), first, 3), settings, agent, 0)
    for group, shared in zip(again, groups, strict=True):
        states = [
            [[item.content for item in one.memory_at(step)] for step in (1, 2)] for one in group
        ]
        assert states == [[[i.content for i in shared[0].memory_at(s)] for s in (1, 2)]] * 3
    rows = mismatch_rows(streams, RandomManager(), settings, agent, 0)
    assert {one.comparison for one in rows} == {*COMPARISONS}
    assert rows == mismatch_rows(streams, RandomManager(), settings, agent, 0)
    at_first = [one for one in rows if one.step == 1 and one.comparison == COMPARISONS[2]]
    assert not any(one.alone for one in at_first)  # all start from the empty memory
    figure = figures.agreement_by_step(agreements(rows, resamples=20))
    assert len(figure.data) == len(COMPARISONS)


def test_the_explorer_of_the_fork_turns_its_sign_at_one_half():
    figure = explorers.fork_explorer(0.75).figures()["fork"]
    assert [trace.y[2] > 0 for trace in figure.data] == [True, False, True]
