"""Readers: answer questions from the memory.

`extractive.reader_for` returns the reader that needs no model, `trainable.TrainableReader` learns
which item to answer from. `roles.load_roles` loads the language models for the roles of reader,
verifier, teacher and judge (`model_reader`, `model_teacher`, `model_judge`); `chat.Chat` asks them,
on a server or in this process.
"""
