"""What stops a training run: an interrupt at a bad moment, and memory that is too small."""

from __future__ import annotations

import importlib.util
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trl import GRPOConfig

    from finemem_lib.policy import ModelSettings, PromptBuilder


class Interrupts:
    """Holds an interrupt (Ctrl-C, JupyterLab's stop button) back from `hold` to `release`.

    Outside the main thread, where Python raises none, it does nothing.
    """

    def __init__(self) -> None:
        self._handler: Any = None
        self._came = False

    def hold(self) -> None:
        handler = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        if main and callable(handler) and self._handler is None:
            self._came = False
            self._handler = handler
            signal.signal(signal.SIGINT, self._note)

    def release(self) -> None:
        """Raise the interrupt that came meanwhile."""
        handler = self._handler
        self.restore()
        if handler is not None and self._came:
            handler(signal.SIGINT, None)

    def restore(self) -> None:
        """Forget what came meanwhile."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _note(self, *arguments: Any) -> None:
        self._came = True


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory of a device or of the machine was too small.

    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(KeyError(1))
    (True, False)
    """
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError)
        and any(sign in str(error).lower() for sign in ("out of memory", "can't allocate memory"))
    )


def memory_advice(
    arguments: GRPOConfig, builder: PromptBuilder, model: ModelSettings,
    checkpoint: str | Path | None,
) -> str:
    """Return what to turn after a run was out of memory: every knob with its present value, the
    one that costs least first, and those that are at their end left out."""
    size, parts = arguments.num_generations, arguments.steps_per_generation
    instances = arguments.per_device_train_batch_size * parts // size
    # A 4-bit base cannot be trained whole, and without CUDA there is none.
    four_bit = model.precision != "4bit" and arguments.use_cpu is False
    knobs = [
        (parts < size, f"micro_batches: {parts} (up to num_generations, {size})"),
        (instances > 1, f"instances_per_update: {instances}"),
        (True, f"max_new_tokens: {arguments.max_completion_length}"),
        (True, f"max_prompt_tokens: {builder.max_prompt_tokens}"),
        (four_bit, f"precision: {model.precision} (4bit needs lora_rank, now {model.lora_rank})"),
        (not model.gradient_checkpointing, "gradient_checkpointing: False"),
    ]
    return (
        "out of memory; turn, in this order, "
        + ", ".join(text for possible, text in knobs if possible)
        + ". " + (f"The last checkpoint is {checkpoint}; resuming asks for the same settings, so "
                  "train it on in another output_dir" if checkpoint
                  else "There is no checkpoint yet")
    )


REPORTERS = {"tensorboard": ("tensorboard", "tensorboardX"), "trackio": ("trackio",),
             "wandb": ("wandb",)}
"""Where a run can be reported to, and the packages one of which is needed for it."""


def can_report(report_to: str) -> bool:
    """Whether a run can be reported there: it is "none", or known and its package installed.

    >>> can_report("none"), can_report("paper")
    (True, False)
    """
    packages = REPORTERS.get(report_to, ())
    return report_to == "none" or any(importlib.util.find_spec(name) for name in packages)


def check_reporter(report_to: str) -> None:
    """Check that what a run is to be reported to is installed.

    Raises:
        ValueError: it is unknown.
        ModuleNotFoundError: its package is missing.

    >>> check_reporter("none")
    >>> check_reporter("paper")
    Traceback (most recent call last):
    ...
    ValueError: report_to is 'paper', expected one of none, tensorboard, trackio, wandb
    """
    if report_to == "none":
        return
    if report_to not in REPORTERS:
        raise ValueError(
            f"report_to is {report_to!r}, expected one of {', '.join(['none', *REPORTERS])}"
        )
    if not can_report(report_to):
        raise ModuleNotFoundError(
            f"report_to is {report_to!r} and its package is not installed: "
            f"pip install {REPORTERS[report_to][0]}, or set report_to to none"
        )
