"""Data: generate or load instances, the streams of chunks with their questions.

`planted.planted_instances` generates streams with known truth, `memalpha.load_instances` reads
Memalpha and MemoryAgentBench files, `own_texts.make_instance` takes a researcher's own texts.
`questions.make_chunk_questions` writes chunk questions, `question_store.prepare_questions` stores
them on disk; `leaks.leaks` finds leaked answers, `faults.with_faults` falsifies evidence,
`instance_names.instance_name` returns a short name for titles.
"""
