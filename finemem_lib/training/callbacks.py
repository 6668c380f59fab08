"""The training callback that makes updates atomic.

The module imports transformers; import it only when a trainer is created.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback

if TYPE_CHECKING:
    from finemem_lib.training.trl_adapter import StepGRPO


class WholeUpdates(TrainerCallback):
    """A callback that raises an error for non-finite gradients and defers interrupts.

    An interrupt between the optimizer's step and the update's record is raised after the record is
    written.

    Attributes:
        begun: Whether training has begun.
        whole: Whether no update is in progress, so that the weights are those of the last
            finished update.
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
            model.zero_grad()  # without a gradient Adam changes neither weights nor moments
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
        """Mark the update as finished and raise a deferred interrupt, if any."""
        self.whole = True
        self.trainer.interrupts.release()
