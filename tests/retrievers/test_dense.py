from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from finemem_lib.memory import FlatMemory
from finemem_lib.retrievers.dense import DenseRetriever
from finemem_lib.trajectory import MemoryDelta
from tests.helpers.encoders import count_letters, fake_encoder, save_small_encoder
from tests.helpers.memory_strategies import CONTENTS, MEMORY_SETTINGS, STEPS, items_of, played


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(STEPS, MEMORY_SETTINGS, CONTENTS, st.integers(1, 6))
def test_dense_search_is_by_cosine_whatever_the_history(
    monkeypatch, steps, memory_settings, query, k
):
    fake_encoder(monkeypatch, count_letters)
    run = played(FlatMemory(**memory_settings), steps)
    retriever = DenseRetriever("letters")
    for items, delta in zip(run.states[1:], run.deltas, strict=True):
        retriever.update(delta)
        found = retriever.search(query, k)
        cosines = {
            item.item_id: float(count_letters(item.content) @ count_letters(query))
            for item in items
        }
        assert [score for _, score in found] == pytest.approx(
            sorted(cosines.values(), reverse=True)[:k], abs=1e-6
        )
        assert all(score == pytest.approx(cosines[name], abs=1e-6) for name, score in found)


def test_the_texts_of_an_update_are_embedded_together_and_once(monkeypatch):
    fake = fake_encoder(monkeypatch, count_letters)
    for _ in range(3):
        retriever = DenseRetriever("letters")
        retriever.update(MemoryDelta(written=tuple(items_of("a", "i", "a s"))))
        retriever.search("who has a?", 1)
    assert fake.read == ["a", "i", "a s", "who has a?"]


def test_a_real_sentence_encoder(tmp_path):
    """A BERT with random weights; equal words still make texts more alike than other ones."""
    retriever = DenseRetriever(str(save_small_encoder(tmp_path / "model")))
    retriever.update(MemoryDelta(written=tuple(items_of("mia lives in rome", "ana sails", "cats"))))
    found = retriever.search("mia in rome", 3)
    assert found[0][0] == "1" and len(found) == 3
    assert all(-1 - 1e-6 <= score <= 1 + 1e-6 for _, score in found)
    assert retriever.search("ana sails", 1) == [("2", pytest.approx(1.0))]
    with pytest.raises(ValueError, match="could not be loaded .* name another dense_model"):
        DenseRetriever(str(tmp_path / "nothing"))
