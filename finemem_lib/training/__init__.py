"""Train a memory manager with GRPO and one reward per step.

Reward schemes, TRL's configuration and trainer, checkpoints, and a record of every update.
"""
