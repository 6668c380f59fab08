"""Judge managers and credit rules.

`evaluate.evaluate` plays instances with several managers and compares their accuracy and memory;
`tables.benchmark_table` and `tables.paired_differences` tabulate trajectories with bootstrap
intervals. The planted truth is the reference of `operation_truth.operation_truth` (operations),
`credit_truth.judge` (credit rules) and `noise_price.noise_price` (advantages).
`retrievers.compare` compares retrievers, `real_readers.step_rewards` returns the chunk-level step
reward (CSR) under another reader or teacher, `model_writers.writer_rows` compares memories that a
language model wrote with those by rule, and `failure_stages.failure_stages` finds the stage
at which an answer was lost. `comparison.play_systems` plays baselines on the same instances with
the same reader, `controls.play_controls` plays the negative controls; `answers.answer_rows` returns
one row per question, `paired_tests.paired_tests` tests differences between methods,
`published.compare_with_published` shows published figures next to measured ones, and
`stream_length.planted_lengths` measures systems on streams of increasing length.
`layers.utilisation` counts how the stores of a layered memory are used, and `layers.failure_signs`
counts known failures of layered managers.
"""
