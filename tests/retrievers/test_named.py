"""What holds of every retriever, by name."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from finemem_lib.memory import FlatMemory
from finemem_lib.retrievers.named import RETRIEVERS, make_retriever
from finemem_lib.trajectory import MemoryDelta, Operation
from tests.helpers.encoders import count_letters, fake_encoder
from tests.helpers.memory_strategies import CONTENTS, MEMORY_SETTINGS, STEPS, items_of, played

QUERIES = st.lists(CONTENTS, min_size=1, max_size=3)


@pytest.fixture(autouse=True)
def letters(monkeypatch):
    """A fake encoder: many different texts have equal embeddings."""
    return fake_encoder(monkeypatch, count_letters)


@pytest.mark.parametrize("name", RETRIEVERS)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, MEMORY_SETTINGS, QUERIES, st.integers(1, 6))
def test_an_updated_index_equals_one_built_from_the_memory(
    letters, name, steps, memory_settings, queries, k
):
    run = played(FlatMemory(**memory_settings), steps)
    retriever = make_retriever(name)
    for items, delta in zip(run.states[1:], run.deltas, strict=True):
        retriever.update(delta)
        fresh = make_retriever(name)
        fresh.update(MemoryDelta(written=tuple(reversed(items))))
        for query in queries:
            found = retriever.search(query, k)
            assert found == fresh.search(query, k)  # to the last bit
            assert len(found) <= k and {item_id for item_id, _ in found} <= {
                item.item_id for item in items
            }
            assert found == retriever.search(query, k + 1)[:k]


@pytest.mark.parametrize("name", RETRIEVERS)
def test_equal_items_come_newest_first_and_an_update_makes_new(name):
    memory = FlatMemory(duplicates="allow")
    retriever = make_retriever(name)
    for step, content in enumerate(["a red cat", "blue fish", "a red cat", "a red cat"], start=1):
        retriever.update(memory.apply([Operation("INSERT", content)], step)[1])
    assert [item_id for item_id, _ in retriever.search("a red cat", 3)] == ["4", "3", "1"]
    retriever.update(memory.apply([Operation("UPDATE", "a red cat", "1")], 5)[1])
    assert [item_id for item_id, _ in retriever.search("a red cat", 3)] == ["1", "4", "3"]


@pytest.mark.parametrize("name", RETRIEVERS)
def test_an_index_that_missed_an_update_says_so(name):
    retriever = make_retriever(name)
    assert retriever.search("a", 3) == []
    with pytest.raises(KeyError, match="9"):
        retriever.update(MemoryDelta(removed=("9",)))
    retriever = make_retriever(name)
    retriever.update(MemoryDelta(written=tuple(items_of("a", "b"))))
    with pytest.raises(ValueError, match="k is 0, expected at least 1"):
        retriever.search("a", 0)


def test_an_unknown_name_is_refused():
    with pytest.raises(ValueError, match="'sparse', expected one of bm25, dense, hybrid, graph"):
        make_retriever("sparse")
