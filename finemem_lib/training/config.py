"""TRL's configuration with every value set that Unsloth would silently change."""

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
"""What every run trains with unless it says otherwise."""

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
"""TRL's own values, which Unsloth has others for."""


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
    """Return TRL's configuration with every value set that Unsloth would silently change.

    One update is one optimizer step on freshly played rollouts.

    `loss_type` is TRL's default "dapo": the sum over tokens of advantage times ratio, divided by
    the number of completion tokens of the whole update. A long completion then weighs more than a
    short one. The paper's GRPO objective averages over the tokens of each completion and then over
    completions, which is `loss_type="grpo"`.

    Args:
        output_dir: Folder of the checkpoints.
        updates: Optimizer steps in all.
        instances_per_update: Instances that are played for one update.
        num_generations: G, rollouts of each instance.
        max_completion_length: Most tokens of a completion.
        learning_rate: Of Adam.
        seed: Of TRL's own random choices.
        micro_batches: Parts of an update's backward pass (default: num_generations); a divisor of
            num_generations, so that the rows (num_generations for every step of every instance)
            can be cut evenly whatever the instances' lengths are.
        overrides: Any of GRPOConfig's own fields. `log_completions` would show the last rows only;
            the trajectories of `keep_updates` hold them all.

    Raises:
        ValueError: `micro_batches` does not divide num_generations.
    """
    import torch
    from trl import GRPOConfig  # type: ignore[attr-defined]  # TRL exports its names lazily

    micro_batches = micro_batches or num_generations
    if num_generations % micro_batches:
        raise ValueError(
            f"grpo_config: micro_batches is {micro_batches}, expected a divisor of "
            f"num_generations ({num_generations}); TRL would drop the rows left over"
        )
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
