"""Streams and questions: where instances come from.

`planted.planted_instances` generates streams with known truth, `memalpha.load_instances` reads
Memalpha and MemoryAgentBench files, `own_texts.make_instance` takes a researcher's own texts.
`questions.make_chunk_questions` writes chunk questions, `question_store.prepare_questions` keeps
them on disk; `leaks.leaks` finds leaked answers, `faults.with_faults` falsifies evidence.
"""
