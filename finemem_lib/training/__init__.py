"""Train a memory manager with GRPO and one reward per step.

`run.train_manager` trains and returns manager and curves, `schemes.scheme_weights` names the
reward schemes, `config.grpo_config` holds TRL's settings.
"""
