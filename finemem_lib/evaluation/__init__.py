"""Judge managers and credit rules.

`evaluate.evaluate` lets managers play and compares them; `tables.benchmark_table` and
`tables.paired_differences` tabulate trajectories with bootstrap intervals.
`operation_truth.operation_truth` judges operations, `credit_truth.judge` credit rules, and
`noise_price.noise_price` their advantages, by the planted truth. `retrievers.compare` measures what
another retriever changes, `real_readers.step_rewards` the CSR under another reader or teacher.
"""
