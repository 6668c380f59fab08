"""TRL's configuration, with explicit values for all settings that Unsloth changes silently."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

OURS: dict[str, Any] = dict(
    num_iterations=1,
    mask_truncated_completions=False,
    temperature=1.0,
    loss_type="dapo",
    beta=0.0,
    epsilon=0.2,
    epsilon_high=0.2,
    scale_rewards="group",
    optim="adamw_torch",
    adam_beta1=0.9,
    adam_beta2=0.95,
    weight_decay=0.0,
    max_grad_norm=1.0,
    lr_scheduler_type="constant",
    warmup_steps=0,
    bf16=False,
    gradient_checkpointing=False,
    use_vllm=False,
    vllm_enable_sleep_mode=False,
    vllm_importance_sampling_correction=True,
    shuffle_dataset=False,
    logging_steps=1,
    save_strategy="no",
    report_to="none",
    disable_tqdm=True,
)
"""Default settings of every run."""

TRLS_OWN: dict[str, Any] = dict(
    auto_find_batch_size=False,
    dataloader_pin_memory=True,
    eval_accumulation_steps=None,
    fp16=False,
    generation_kwargs=None,
    logging_nan_inf_filter=True,
    per_device_eval_batch_size=8,
    router_aux_loss_coef=None,
    torch_empty_cache_steps=None,
    vllm_mode="colocate",
)
"""TRL's defaults that Unsloth changes."""


def grpo_config(
    output_dir: str | Path,
    *,
    updates: int,
    instances_per_update: int,
    num_generations: int,
    max_completion_length: int,
    learning_rate: float,
    seed: int,
    micro_batches: int | None = None,
    **overrides: Any,
) -> GRPOConfig:
    """Return TRL's configuration, with explicit values for what Unsloth changes silently.

    One update is one optimizer step on new rollouts.

    `loss_type` is TRL's default "dapo": the sum over tokens of advantage times ratio, divided by
    the number of completion tokens of the whole update, so that a long completion weighs more than
    a short one. The paper's GRPO objective averages over the tokens of each completion and then
    over completions, which is `loss_type="grpo"`.

    Args:
        output_dir: Folder of the checkpoints.
        updates: Total number of updates.
        instances_per_update: Number of instances per update.
        num_generations: G, the number of rollouts per instance.
        max_completion_length: Largest number of tokens of a completion.
        learning_rate: Learning rate of Adam.
        seed: Seed of TRL's own random choices.
        micro_batches: Number of parts of an update's backward pass, a divisor of num_generations
            (the default), so that the rows (num_generations per step of each instance) can be
            divided evenly for instances of any length.
        overrides: Further fields of GRPOConfig. `log_completions` shows only the last rows; the
            trajectories of `keep_updates` hold all of them.

    Raises:
        ValueError: `micro_batches` does not divide num_generations.
    """
    import torch
    from trl import GRPOConfig  # type: ignore[attr-defined]  # TRL exports its names lazily

    micro_batches = _whole_parts(micro_batches or num_generations, num_generations)
    values: dict[str, Any] = dict(
        output_dir=str(output_dir),
        max_steps=updates,
        num_generations=num_generations,
        per_device_train_batch_size=instances_per_update * num_generations // micro_batches,
        steps_per_generation=micro_batches,
        gradient_accumulation_steps=micro_batches,
        max_completion_length=max_completion_length,
        learning_rate=learning_rate,
        seed=seed,
        use_cpu=not torch.cuda.is_available(),
    )
    return GRPOConfig(**(OURS | TRLS_OWN | values | overrides))


def _whole_parts(micro_batches: int, num_generations: int) -> int:
    """Return the number of micro-batches, or raise an error if it does not divide G."""
    if num_generations % micro_batches:
        raise ValueError(
            f"grpo_config: micro_batches is {micro_batches}, expected a divisor of "
            f"num_generations ({num_generations}); TRL would drop the rows left over"
        )
    return micro_batches
