"""Create a retriever by name, as in settings, notebooks and experiments."""

from __future__ import annotations

from typing import Literal, get_args

from finemem_lib.retrieval import BM25Retriever, Retriever
from finemem_lib.retrievers.dense import DenseRetriever
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.graph import GraphRetriever
from finemem_lib.retrievers.hybrid import HybridRetriever
from finemem_lib.retrievers.whole import WholeMemory

RetrieverName = Literal["bm25", "dense", "hybrid", "graph", "whole"]
NAMES: tuple[RetrieverName, ...] = get_args(RetrieverName)

RETRIEVERS: tuple[RetrieverName, ...] = NAMES[:-1]
"""Retrievers that rank items by the question; "whole" does not rank them."""

WITH_ENCODER: tuple[RetrieverName, ...] = ("dense", "hybrid")
"""Retrievers that need a sentence encoder."""


def make_retriever(name: str, dense_model: str = DENSE_MODEL) -> Retriever:
    """Return an empty retriever.

    Args:
        name: "bm25"; "dense" for sentence embeddings; "hybrid" for both, fused by their ranks;
            "graph" for one hop from BM25's hits along shared names and rare words; "whole" for the
            items written last, whatever is asked.
        dense_model: The sentence encoder of "dense" and "hybrid".

    Raises:
        ValueError: the name is unknown, or the sentence encoder cannot be loaded.
    """
    if name == "dense":
        return DenseRetriever(dense_model)
    if name == "hybrid":
        return HybridRetriever(dense_model)
    if name == "graph":
        return GraphRetriever()
    if name == "bm25":
        return BM25Retriever()
    if name == "whole":
        return WholeMemory()
    raise ValueError(f"retriever is {name!r}, expected one of {', '.join(NAMES)}")
