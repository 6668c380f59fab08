"""Judge managers and credit rules.

`evaluate.evaluate` lets managers play and compares them; `tables.benchmark_table` and
`tables.paired_differences` tabulate trajectories with bootstrap intervals.
`operation_truth.operation_truth` judges operations, `credit_truth.judge` credit rules, and
`noise_price.noise_price` their advantages, by the planted truth. `retrievers.compare` measures what
another retriever changes, `real_readers.step_rewards` the CSR under another reader or teacher, and
`failure_stages.failure_stages` says where an answer was lost. `comparison.play_systems` plays
baselines on equal terms, `controls.play_controls` the negative controls; `answers.answer_rows` has
a row per question, `paired_tests.paired_tests` corrects over a table, `published.beside_published`
shows printed tables next to ours, and `stream_length.planted_lengths` measures what a longer stream
costs. `layers.utilisation` and `layers.failure_signs` say what the stores of a layered memory were
used for, and how it fails.
"""
