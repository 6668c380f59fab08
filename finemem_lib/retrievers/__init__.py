"""Retrievers other than BM25: dense, hybrid by rank fusion, and graph by links between items.

`named.make_retriever` returns a retriever by its name. `dense.DenseRetriever` compares embeddings
(`encoder.embeddings`), `hybrid.HybridRetriever` fuses BM25's ranking with the dense one
(`ranking.reciprocal_rank_fusion`), `graph.GraphRetriever` follows links from BM25's hits,
`whole.WholeMemory` shows all items to systems that retrieve nothing, and
`layered.LayeredRetriever` searches each store of a layered memory by itself.
"""
