"""The callback that makes an update happen whole or not at all.

Imports transformers, so it is imported when a trainer is made and not before.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from finemem_lib.training.trl_adapter import StepGRPO


class WholeUpdates(TrainerCallback):
    """Refuses gradients that are not finite, and holds interrupts back during an update.

    An interrupt that comes between the optimizer's step and the update's record is raised after
    the record is written.

    Attributes:
        begun: Whether training has begun.
        whole: Whether no update is under way, so that the weights are those of the last one
            counted.
    """

    def __init__(self, trainer: StepGRPO) -> None:
        self.trainer = trainer
        self.begun = False
        self.whole = True

    def on_train_begin(self, *arguments: Any, **settings: Any) -> None:
        self.begun = True

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **settings: Any) -> None:
        model = settings["model"]
        if not self.trainer.manager_learns:
            model.zero_grad()  # without a gradient Adam leaves weights and moments as they are
        gradients = [weight.grad for weight in model.parameters() if weight.grad is not None]
        scaled = self.trainer.accelerator.scaler is not None  # fp16 skips such updates itself
        if not scaled:
            self.trainer.check_finite("gradient", torch.nn.utils.get_total_norm(gradients))
        self.whole = False
        self.trainer.interrupts.hold()

    def on_step_end(self, args: Any, state: Any, control: Any, **settings: Any) -> None:
        if not control.should_log:
            self.end()

    def end(self) -> None:
        """Mark the update as whole and raise the interrupt that came during it, if any."""
        self.whole = True
        self.trainer.interrupts.release()
