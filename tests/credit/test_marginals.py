"""Marginal contributions: dummies, equal players, and how many sets are asked for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit import (
    marginals,
)

quick = settings(max_examples=25, deadline=None)


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


@pytest.mark.parametrize("steps", [*range(1, 20), 60])
def test_owen_values_take_at_most_the_square_of_the_steps(steps):
    wanted = marginals.coalitions(marginals.owen(range(1, steps + 1)))
    assert len(wanted) - 1 <= steps**2  # but all steps, which the outcome has read


def test_sampled_owen_values_share_out_the_whole_and_come_to_the_exact_ones() -> None:
    players, rng = range(5), random.Random(0)

    def value(some: frozenset[int]) -> float:
        return len(some) ** 2 + 3 * ({0, 4} <= some)

    exact = marginals.player_values(marginals.owen(players), value)
    few = marginals.player_values(marginals.sampled_owen(players, 2, rng), value)
    assert sum(few.values()) == pytest.approx(value(frozenset(players)))
    many = marginals.player_values(marginals.sampled_owen(players, 4000, rng), value)
    assert many == pytest.approx(exact, abs=0.3)  # four standard errors
    for _ in range(20):  # the halves, and the halves of these, stay together
        order = [one.player for one in marginals.sampled_owen(players, 1, rng)]
        assert {*order[:2]} == {0, 1} or {*order[-2:]} == {0, 1}
        assert abs(order.index(3) - order.index(4)) == 1
