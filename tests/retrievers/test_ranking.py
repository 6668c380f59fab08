from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from finemem_lib.retrievers.ranking import WriteOrder, reciprocal_rank_fusion
from finemem_lib.trajectory import MemoryDelta
from tests.helpers.memory_strategies import items_of

RANKINGS = st.lists(
    st.permutations("abcdef").flatmap(lambda ids: st.integers(0, 6).map(lambda size: ids[:size])),
    min_size=1,
    max_size=4,
)


def order(scores):
    return sorted(scores, key=lambda name: -scores[name])


@given(st.permutations("abcdef"), st.integers(1, 4), st.integers(0, 100))
def test_the_fusion_of_equal_rankings_is_that_ranking(ranking, times, constant):
    assert order(reciprocal_rank_fusion([ranking] * times, constant)) == ranking


@given(RANKINGS, st.randoms(use_true_random=False))
def test_fusion_does_not_depend_on_the_order_of_the_rankings(rankings, random):
    fused = reciprocal_rank_fusion(rankings)
    shuffled = random.sample(rankings, len(rankings))
    assert reciprocal_rank_fusion(shuffled) == fused
    assert set(fused) == set().union(*rankings)


@given(RANKINGS)
def test_an_item_ahead_in_every_ranking_stays_ahead(rankings):
    fused = reciprocal_rank_fusion(rankings)
    for one in fused:
        for other in fused:
            places = [
                (r.index(one) if one in r else 9, r.index(other) if other in r else 9)
                for r in rankings
            ]
            if all(a <= b for a, b in places) and any(a < b for a, b in places):
                assert fused[one] > fused[other]


def test_fusion_by_hand():
    fused = reciprocal_rank_fusion([["a", "b", "c"], ["c", "a"]], constant=1)
    assert fused == pytest.approx({"a": 1 / 2 + 1 / 3, "b": 1 / 3, "c": 1 / 4 + 1 / 2})


def test_the_best_come_by_score_then_newest():
    newest = WriteOrder()
    first, second, third = items_of("one", "two", "three")
    newest.update(MemoryDelta(written=(third, first, second)))
    scores = {"1": 1.0, "2": 2.0, "3": 1.0}
    assert newest.best(scores, 3) == [("2", 2.0), ("3", 1.0), ("1", 1.0)]
    assert newest.best({"1": 1.0, "gone": 3.0}, 3) == [("1", 1.0)]
    assert len(newest) == 3
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        newest.best(scores, 0)
