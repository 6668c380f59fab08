"""Defer interrupts, advise on settings when memory is too small, and check experiment trackers."""

from __future__ import annotations

import contextlib
import importlib.util
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finemem_lib.managers.loading import VLLM_HAS_NO_ROOM, ModelSettings, first_line

if TYPE_CHECKING:
    from trl.trainer.grpo_config import GRPOConfig

    from finemem_lib.managers.prompts import PromptBuilder


class Interrupts:
    """Defers interrupts (Ctrl-C, JupyterLab's stop button) from `hold` to `release`.

    Outside the main thread, where Python raises no interrupts, it does nothing.
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
        """Stop deferring interrupts, and raise a deferred one, if any."""
        handler = self._handler
        self.restore()
        if handler is not None and self._came:
            handler(signal.SIGINT, None)

    def restore(self) -> None:
        """Stop deferring interrupts, and discard a deferred one, if any."""
        if self._handler is not None:
            signal.signal(signal.SIGINT, self._handler)
            self._handler = None

    def _note(self, *arguments: Any) -> None:
        self._came = True


_TOO_SMALL = ("out of memory", "can't allocate memory", *map(str.lower, VLLM_HAS_NO_ROOM))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that GPU or CPU memory was too small.

    Args:
        error: Any error.

    >>> is_out_of_memory(RuntimeError("CUDA error: out of memory")), is_out_of_memory(KeyError(1))
    (True, False)
    """
    import torch

    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, (RuntimeError, ValueError))
        and any(sign in str(error).lower() for sign in _TOO_SMALL)
    )


@contextlib.contextmanager
def advising_on_memory(
    doing: Literal["loading", "testing"], model: ModelSettings
) -> Iterator[None]:
    """Add the settings to change to an out-of-memory error of loading or testing a manager.

    Args:
        doing: The action of the block, for the message.
        model: Settings of the manager.

    Raises:
        MemoryError: The block ran out of memory.
    """
    try:
        yield
    except Exception as error:
        advised = isinstance(error, MemoryError) and error.args  # by `load_manager`, on vLLM
        if advised or not is_out_of_memory(error):
            raise
        knobs = [
            (doing == "testing", f"{name}: {getattr(model, name) or 'the default'}")
            for name in ("batch_size", "max_new_tokens", "max_prompt_tokens")
        ]
        knobs += [
            (
                model.fast_inference,
                f"gpu_memory_utilization: {model.gpu_memory_utilization} (what "
                "vLLM takes; lower it)",
            ),
            (
                model.precision != "4bit",
                f"precision: {model.precision} (4bit needs CUDA and "
                f"lora_rank, now {model.lora_rank})",
            ),
        ]
        raise MemoryError(
            f"{doing} the manager ran out of memory ({first_line(error)}); change, in this order, "
            f"{_possible([*knobs, (True, 'checkpoint: a smaller model')])}"
        ) from error


def _possible(knobs: list[tuple[bool, str]]) -> str:
    return ", ".join(text for possible, text in knobs if possible)


def memory_advice(
    arguments: GRPOConfig,
    builder: PromptBuilder,
    model: ModelSettings,
    checkpoint: str | Path | None,
) -> str:
    """Return a message with the settings to change after a run was out of memory.

    Settings are ordered by cost, cheapest first; those that cannot be lowered further are left out.
    The first ones (`checkpoints.MEMORY_ONLY`) may change when a run is resumed; the others need a
    new run.

    Args:
        arguments: TRL's configuration of the run.
        builder: The prompt builder of the run.
        model: Settings of the manager.
        checkpoint: The last checkpoint, or `None`.
    """
    size, parts = arguments.num_generations or 1, arguments.steps_per_generation or 1
    instances = arguments.per_device_train_batch_size * parts // size
    # 4-bit weights cannot be trained themselves, and they need CUDA.
    four_bit = model.precision != "4bit" and arguments.use_cpu is False
    resumable = _possible(
        [
            (parts < size, f"micro_batches: {parts} (up to num_generations, {size})"),
            (not model.gradient_checkpointing, "gradient_checkpointing: False"),
            (
                model.fast_inference,
                f"gpu_memory_utilization: {model.gpu_memory_utilization} "
                "(what vLLM takes; lower it)",
            ),
        ]
    )
    others = _possible(
        [
            (instances > 1, f"instances_per_update: {instances}"),
            (True, f"max_new_tokens: {arguments.max_completion_length}"),
            (True, f"max_prompt_tokens: {builder.max_prompt_tokens}"),
            (
                four_bit,
                f"precision: {model.precision} (4bit needs lora_rank, now {model.lora_rank})",
            ),
        ]
    )
    if checkpoint is None:
        settings = ", ".join(filter(None, (resumable, others)))
        return f"out of memory; change, in this order, {settings}. There is no checkpoint yet"
    first = (
        f"change {resumable}, and resume (`finemem resume RUN --set NAME=VALUE`, or resume = "
        "True in the notebook); if that is not enough, "
        if resumable
        else ""
    )
    return (
        f"out of memory; {first}start a new run and change, in this order, {others}. The last "
        f"checkpoint is {checkpoint}"
    )


REPORTERS = {
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}
"""Supported experiment trackers, with the packages of which each needs one."""


def can_report(report_to: str) -> bool:
    """Return whether `report_to` is "none" or an installed experiment tracker.

    Args:
        report_to: TRL's name of a tracker, or "none".

    >>> can_report("none"), can_report("paper")
    (True, False)
    """
    packages = REPORTERS.get(report_to, ())
    return report_to == "none" or any(importlib.util.find_spec(name) for name in packages)


def check_reporter(report_to: str) -> None:
    """Check that an experiment tracker is known and installed.

    Args:
        report_to: Name of the tracker, or "none".

    Raises:
        ValueError: The tracker is unknown.
        ModuleNotFoundError: The tracker's package is missing.

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
