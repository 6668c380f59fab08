from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, strategies as st
from rank_bm25 import BM25Okapi

from finemem_lib import retrieval
from finemem_lib.memory import FlatMemory
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.text import words
from finemem_lib.trajectory import MemoryDelta, MemoryItem, Operation, Write
from tests.helpers.memory_strategies import CONTENTS, MEMORY_SETTINGS, STEPS, items_of, played
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT

PARAMETERS = st.fixed_dictionaries(
    {
        "k1": st.sampled_from([0.5, 1.2, 1.5]),
        "b": st.sampled_from([0.0, 0.4, 0.75, 1.0]),
        "epsilon": st.sampled_from([0.0, 0.25, 1.0]),
    }
)
QUERIES = st.lists(CONTENTS, min_size=1, max_size=3)


def okapi(items: Sequence[MemoryItem], **parameters: float) -> BM25Okapi | None:
    """The reference; `None` where rank-bm25 divides by zero, which is a memory without words."""
    corpus = [words(item.content) for item in items]
    return BM25Okapi(corpus, **parameters) if any(corpus) else None


def shared_words(query: str, item: MemoryItem) -> int:
    return len(set(words(query)) & set(words(item.content)))


def check_against_okapi(retriever, items, queries, **parameters):
    reference = okapi(items, **parameters)
    for query in queries:
        scores = retriever.scores(query)
        assert set(scores) == {item.item_id for item in items if shared_words(query, item)}
        if reference is None:
            assert scores == {}
            continue
        # With b = 1 rank-bm25 computes 0 / 0 for an item without words, which shares none.
        with np.errstate(invalid="ignore"):
            expected = np.nan_to_num(reference.get_scores(words(query)))
        for item, score in zip(items, expected, strict=True):
            assert scores.get(item.item_id, 0.0) == pytest.approx(score, abs=1e-9, rel=0)


@given(STEPS, MEMORY_SETTINGS, PARAMETERS, QUERIES)
def test_scores_follow_okapi_through_any_sequence_of_operations(
    steps, settings, parameters, queries
):
    run = played(FlatMemory(**settings), steps)
    retriever = BM25Retriever(**parameters)
    check_against_okapi(retriever, (), queries, **parameters)
    for items, delta in zip(run.states[1:], run.deltas, strict=True):
        retriever.update(delta)
        check_against_okapi(retriever, items, queries, **parameters)
        fresh = BM25Retriever.from_items(items, **parameters)
        for query in queries:
            assert fresh.search(query, 5) == retriever.search(query, 5)  # to the last bit


@given(STEPS, MEMORY_SETTINGS, QUERIES, st.integers(1, 6))
def test_order_is_score_then_newest(steps, settings, queries, k):
    run = played(FlatMemory(**settings), steps)
    items = run.states[-1]
    retriever = BM25Retriever.from_items(reversed(items))  # whatever order they come in
    reference = okapi(items)
    by_id = {item.item_id: item for item in items}
    for query in queries:
        scores = retriever.scores(query)

        def key(item_id, query=query, scores=scores):
            last = by_id[item_id].lineage[-1]
            upside_down = reference.average_idf <= 1e-12
            shared = shared_words(query, by_id[item_id]) if upside_down else 0
            return shared, scores[item_id], last.step, last.position

        best = sorted(scores, key=key, reverse=True)[:k]
        assert retriever.search(query, k) == [(item_id, scores[item_id]) for item_id in best]


def test_a_larger_memory_against_okapi():
    """Hundreds of items with a steep word distribution: common words, rare words, negative idf."""
    vocabulary = ["the", "of", *(f"w{n}" for n in range(200))]
    items = items_of(
        *(
            " ".join(vocabulary[(n * n * i) % (2 + (n * 7 + i) % 200)] for i in range(1, 12))
            for n in range(600)
        )
    )
    retriever = BM25Retriever.from_items(items)
    queries = ("the w3 w3 of w10", "w1 w2 w5", "the")
    check_against_okapi(retriever, items, queries)
    retriever.update(MemoryDelta(removed=tuple(item.item_id for item in items[100:500])))
    check_against_okapi(retriever, items[:100] + items[500:], queries)


def test_worked_example():
    """Three items of 4, 2 and 3 words, one query word in one item: idf = log(2.5 / 1.5), mean
    length 3, score = idf * 2.5 / (1 + 1.5 * (0.25 + 0.75 * 2 / 3))."""
    items = items_of("Mia lives in Rome", "Ana sails", "Leo owns cats")
    retriever = BM25Retriever.from_items(items)
    assert retriever.search("Does Ana?", 2) == [("2", pytest.approx(0.5108256237 * 2.5 / 2.125))]


def test_equal_scores_come_newest_first_and_an_update_makes_new():
    memory = FlatMemory(duplicates="allow")
    retriever = BM25Retriever()
    contents = ["red cat", "blue fish", "green bird", "red cat", "red cat"]
    for step, content in enumerate(contents, start=1):
        retriever.update(memory.apply([Operation("INSERT", content)], step)[1])
    assert [item_id for item_id, _ in retriever.search("cat", 3)] == ["5", "4", "1"]
    retriever.update(memory.apply([Operation("UPDATE", "red cat", "1")], 6)[1])
    assert [item_id for item_id, _ in retriever.search("cat", 2)] == ["1", "5"]


def test_one_item_is_retrieved_although_okapi_scores_it_below_zero():
    retriever = BM25Retriever.from_items(items_of("Mia lives in Rome"))
    ((item_id, score),) = retriever.search("Where does Mia live?", 3)
    assert item_id == "1" and score < 0
    assert retriever.search("Who sails?", 3) == []


def test_two_items_are_ranked_by_what_they_share():
    """Okapi gives "mia" and "rome" weight 0 here and "in" a negative one, so by score alone the
    newer item would win on one common word."""
    items = items_of("Mia lives in Rome", "Ana sails in Oslo")
    retriever = BM25Retriever.from_items(items)
    scores = retriever.scores("Who in Rome knows Mia?")
    assert scores["1"] == scores["2"] < 0
    assert [item_id for item_id, _ in retriever.search("Who in Rome knows Mia?", 1)] == ["1"]
    assert [item_id for item_id, _ in retriever.search("Who lives in Oslo or sails?", 1)] == ["2"]
    # A word of one item only weighs nothing, and still finds it.
    assert retriever.search("Mia?", 2) == [("1", 0.0)]


def test_items_without_words_do_no_harm():
    retriever = BM25Retriever.from_items(items_of("?!", "..."))
    assert retriever.search("anything ?!", 2) == []
    retriever.update(MemoryDelta(written=(items_of("", "", "cats and dogs")[2],)))
    check_against_okapi(retriever, items_of("?!", "...", "cats and dogs"), ["cats"])


def test_nothing_is_tokenised_twice(monkeypatch):
    """The Mem-alpha server tokenises and indexes the whole memory for every question. Here a step
    reads the changed items, a question reads itself."""
    read: list[str] = []
    monkeypatch.setattr(retrieval, "words", lambda text: read.append(text) or words(text))
    items = items_of(*(f"fact number {n}" for n in range(50)))
    retriever = BM25Retriever.from_items(items)
    assert len(read) == 50
    read.clear()
    changed = MemoryItem("7", "fact changed", (*items[6].lineage, Write(51, "UPDATE", 0)))
    retriever.update(MemoryDelta(written=(changed,), removed=("3",)))
    for _ in range(5):
        retriever.search("which fact changed", 2)
    assert sorted(read) == sorted(
        [items[6].content, "fact changed", items[2].content] + ["which fact changed"] * 5
    )


def test_an_index_that_missed_an_update_says_so():
    retriever = BM25Retriever.from_items(items_of("a", "b"))
    with pytest.raises(KeyError, match="9"):
        retriever.update(MemoryDelta(removed=("9",)))
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        retriever.search("a", 0)


def test_benchmark_runs_and_writes_what_it_prints(tmp_path):
    script = ROOT / "benchmarks" / "retrieval.py"
    output = tmp_path / "retrieval.json"
    command = [sys.executable, str(script), "--quick", "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LAST_RESORT, check=True)
    rows = json.loads(output.read_text())["rows"]
    for row in rows:
        assert f"{row['speedup']:.1f}" in done.stdout
        assert row["largest_score_difference"] <= 1e-9
    again = subprocess.run(command, capture_output=True, text=True, timeout=LAST_RESORT)
    assert again.returncode == 2 and "exists" in again.stderr
