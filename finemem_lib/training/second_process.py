"""A second process of a training, which computes the gradient of a part of its micro-batches.

Threads do not speed up a model as small as the tiny manager, whose operations are short; a second
process takes half of the gradient's work. The module imports torch; import it only when a trainer
exists.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import torch


def second_process_helps() -> bool:
    """Return whether a second process can be forked and has a core of its own."""
    return (
        sys.platform == "linux"
        and len(os.sched_getaffinity(0)) > 1
        and torch.get_num_threads() == 1  # threads do not survive a fork
        and not multiprocessing.current_process().daemon  # has no children
    )


class SecondProcess:
    """A fork of this process that answers requests until it is closed.

    Args:
        answer: Computes the answer to a request in the fork, from the state at its start.
    """

    def __init__(self, answer: Callable[..., Any]) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self.process = context.Process(
            target=_serve, args=(other, self.connection, answer), daemon=True
        )
        with warnings.catch_warnings():
            # Python warns of other threads, whose locks the fork could wait for; it needs none.
            warnings.simplefilter("ignore", DeprecationWarning)
            self.process.start()
        other.close()

    def ask(self, *request: Any) -> None:
        """Send a request; `answer` returns the answer.

        Args:
            request: Arguments of the function that answers.
        """
        self.connection.send(_arrays(request))

    def answer(self) -> Any:
        """Return the answer to the last request, or raise the error that it ended with.

        Raises:
            RuntimeError: The process has ended.
        """
        try:
            answer, error = self.connection.recv()
        except EOFError as ended:
            raise RuntimeError(
                "train_manager: its second process has ended, expected a gradient; it may have "
                "been killed because memory was short. Train with processes=1"
            ) from ended
        if error is not None:
            raise error
        return _tensors(answer)

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self.process.kill()
        self.process.join()


def _serve(connection: Connection, others: Connection, answer: Callable[..., Any]) -> None:
    """Answer requests until the other process closes its end or has ended."""
    others.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the other process ends this one
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with contextlib.suppress(EOFError, OSError):
        while True:
            request = _tensors(connection.recv())
            reply: tuple[Any, Exception | None]
            try:
                reply = _arrays(answer(*request)), None
            except Exception as error:
                reply = None, error
            connection.send(reply)


def _arrays(value: Any) -> Any:
    """Return nested lists, tuples and dicts with arrays for tensors, which a pipe would share."""
    return _mapped(value, lambda one: one.numpy() if isinstance(one, torch.Tensor) else one)


def _tensors(value: Any) -> Any:
    """Return the inverse of `_arrays`."""
    return _mapped(value, lambda one: torch.from_numpy(one) if isinstance(one, np.ndarray) else one)


def _mapped(value: Any, of: Callable[[Any], Any]) -> Any:
    if isinstance(value, dict):
        return {name: _mapped(one, of) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(one, of) for one in value)
    return of(value)


class GivenGradient(torch.autograd.Function):
    """A loss with a gradient that was computed elsewhere, with every scaling of the loss."""

    @staticmethod
    def forward(
        context: Any, loss: torch.Tensor, gradient: torch.Tensor, *weights: torch.Tensor
    ) -> torch.Tensor:
        """Return the loss; `backward` returns its gradients.

        Args:
            context: Holds the gradient for `backward`.
            loss: The loss, shape ().
            gradient: Gradients of all weights, joined.
            weights: The weights.
        """
        parts = torch.split(gradient, [one.numel() for one in weights])
        context.gradients = [part.view_as(one) for part, one in zip(parts, weights, strict=True)]
        return loss.clone()

    @staticmethod
    def backward(context: Any, scale: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradients.

        Args:
            context: Holds the gradients.
            scale: Scaling of the loss, which the gradient contains.
        """
        return None, None, *context.gradients
