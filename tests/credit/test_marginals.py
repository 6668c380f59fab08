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
