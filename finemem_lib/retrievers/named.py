"""The names of the retrievers: settings, notebooks and experiments choose one by its name."""

from __future__ import annotations

from typing import Literal, get_args

from finemem_lib.retrieval import BM25Retriever, Retriever
from finemem_lib.retrievers.dense import DenseRetriever
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.graph import GraphRetriever
from finemem_lib.retrievers.hybrid import HybridRetriever

RetrieverName = Literal["bm25", "dense", "hybrid", "graph"]
RETRIEVERS: tuple[RetrieverName, ...] = get_args(RetrieverName)

WITH_ENCODER: tuple[RetrieverName, ...] = ("dense", "hybrid")
"""Retrievers that need a sentence encoder."""


def make_retriever(name: str, dense_model: str = DENSE_MODEL) -> Retriever:
    """Return an empty retriever.

    Args:
        name: "bm25"; "dense" for sentence embeddings; "hybrid" for both, fused by their ranks;
            "graph" for one hop from BM25's hits along shared names and rare words.
        dense_model: The sentence encoder of "dense" and "hybrid".

    Raises:
        ValueError: no retriever of that name, or the sentence encoder cannot be loaded.
    """
    if name == "dense":
        return DenseRetriever(dense_model)
    if name == "hybrid":
        return HybridRetriever(dense_model)
    if name == "graph":
        return GraphRetriever()
    if name == "bm25":
        return BM25Retriever()
    raise ValueError(f"retriever is {name!r}, expected one of {', '.join(RETRIEVERS)}")
