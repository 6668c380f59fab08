from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from finemem_lib.retrieval import BM25Retriever
from finemem_lib.retrievers.graph import LINKING_HITS, GraphRetriever
from finemem_lib.trajectory import MemoryDelta
from tests.helpers.memory_strategies import items_of

FILLER = ("Some rain fell", "A bus came late", "Two dogs ran off", "Cold tea again")


def graph_of(*contents: str) -> GraphRetriever:
    retriever = GraphRetriever()
    retriever.update(MemoryDelta(written=tuple(items_of(*contents))))
    return retriever


def test_one_hop_finds_the_second_half_of_an_answer():
    """Only item 1 shares a word with the question; it shares the name Okoye with item 2."""
    contents = ("The film was directed by Okoye", "Her home, says Okoye, is Oslo", *FILLER)
    bm25 = BM25Retriever.from_items(items_of(*contents))
    assert "2" not in [item_id for item_id, _ in bm25.search("film", 6)]
    found = graph_of(*contents).search("film", 6)
    assert [item_id for item_id, _ in found] == ["1", "2"]


def test_the_score_by_hand():
    """Item 1 is the only hit. Of its terms "okoye" (a name) is held by two others and "directed"
    by one; "film" is its own. Each of the two link terms carries 1/2."""
    contents = ("A film directed by Okoye", "then Okoye slept", "when Okoye directed", *FILLER)
    assert graph_of(*contents).search("film", 9) == [
        ("1", 1.0),
        ("3", pytest.approx(0.5 * (0.5 / 2 + 0.5))),
        ("2", pytest.approx(0.5 * 0.5 / 2)),
    ]


def test_a_word_links_while_it_is_rare_and_a_name_always():
    plain = ["A film with snow", "much snow there"]
    assert [name for name, _ in graph_of(*plain, *FILLER).search("film", 9)] == ["1", "2"]
    common = [*plain, "deep snow", "more snow", *FILLER]
    assert [name for name, _ in graph_of(*common).search("film", 9)] == ["1"]
    named = ["A film with Snow", "much snow there", "deep snow", "more snow", *FILLER]
    assert {name for name, _ in graph_of(*named).search("film", 9)} == {"1", "2", "3", "4"}


@given(st.lists(st.sampled_from(["red", "blue", "old"]), min_size=1, max_size=5, unique=True))
def test_without_links_the_order_is_that_of_bm25(asked):
    """Every word but the question's is an item's own; those asked for are too common to link."""
    contents = [f"red blue old w{n}x{n}" if n % 2 else f"red w{n}x{n}" for n in range(9)]
    items = items_of(*contents)
    query = " ".join(asked)
    bm25 = [item_id for item_id, _ in BM25Retriever.from_items(items).search(query, 9)]
    graph = graph_of(*contents)
    found = graph.search(query, 9)
    assert [item_id for item_id, _ in found] == bm25
    assert [score for _, score in found] == [1 / rank for rank in range(1, len(bm25) + 1)]


def test_only_the_first_hits_pass_on():
    """The last hit alone is linked to the item without the word."""
    hits = [f"{'film ' * 3}n{n}" for n in range(LINKING_HITS)]
    contents = (*hits, "film by one Okoye", "then Okoye slept", *FILLER * 4)
    assert str(LINKING_HITS + 2) not in [name for name, _ in graph_of(*contents).search("film", 99)]
    fewer = (*hits[1:], "film by one Okoye", "then Okoye slept", *FILLER * 4)
    assert str(LINKING_HITS + 1) in [name for name, _ in graph_of(*fewer).search("film", 99)]
