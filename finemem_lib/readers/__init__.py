"""Readers: who answers questions from the memory.

`extractive.reader_for` returns the reader that needs no model; `roles.load_roles` reads which
language models take the part of reader, teacher, verifier and judge.
"""
