"""Train a memory manager with GRPO and one reward per step.

`run.train_manager` trains a manager and returns it with its training records,
`schemes.scheme_weights` returns the weights of a reward scheme, `config.grpo_config` returns TRL's
configuration.
"""
