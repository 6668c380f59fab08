from __future__ import annotations

import pytest

from finemem_lib.retrievers.hybrid import HybridRetriever
from finemem_lib.trajectory import MemoryDelta
from tests.helpers.encoders import count_letters, fake_encoder
from tests.helpers.memory_strategies import items_of


def test_both_rankings_count_by_hand(monkeypatch):
    """BM25 finds item 2 alone ("cats"); by its letters the query is like 3, then 1, then 2."""
    fake_encoder(monkeypatch, count_letters)
    retriever = HybridRetriever("letters")
    retriever.update(MemoryDelta(written=tuple(items_of("sis", "cats", "sas aaa"))))
    assert retriever.search("cats aa", 3) == [
        ("2", pytest.approx(1 / 61 + 1 / 62)),
        ("3", pytest.approx(1 / 61)),
        ("1", pytest.approx(1 / 63)),
    ]
