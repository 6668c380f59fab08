"""Readers: who answers questions from the memory.

The extractive reader, language models on a server or in process, and the roles that name them.
"""
