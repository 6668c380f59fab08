"""Streams and questions.

Planted streams with known truth, Memalpha and MemoryAgentBench files, the chunk-question factory
and its store.
"""
