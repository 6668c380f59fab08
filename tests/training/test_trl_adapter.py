"""The contract with TRL: its version, and the private methods that `trl_adapter` overrides."""

from __future__ import annotations

import inspect

import pytest
import torch
import trl

from finemem_lib.managers import small_qwen3
from finemem_lib.training import trl_adapter
from finemem_lib.training.trl_adapter import (
    OVERRIDDEN,
    READ_FROM,
    LikeLengthRows,
    StepGRPO,
    TwoProcesses,
)
from tests.helpers.training_runs import mixed_instances, run

REMEDY = (
    "Read the method in the installed TRL, adapt finemem_lib/training/trl_adapter.py where it "
    "changed, and update READ_FROM and OVERRIDDEN there."
)


def test_the_installed_trl_is_the_one_that_was_read():
    assert trl.__version__ == READ_FROM, (
        f"TRL {trl.__version__} is installed, and its private methods were read in {READ_FROM}. "
        f"{REMEDY}"
    )


@pytest.mark.parametrize("method", OVERRIDDEN)
def test_the_overridden_methods_have_the_parameters_that_were_read(method):
    found = getattr(trl.GRPOTrainer, method, None)
    assert found is not None, f"TRL's GRPOTrainer has no {method} any more. {REMEDY}"
    parameters = f"({', '.join(inspect.signature(found).parameters)})"
    assert parameters == OVERRIDDEN[method], (
        f"TRL's GRPOTrainer.{method} has the parameters {parameters}, and {OVERRIDDEN[method]} "
        f"were read in TRL {READ_FROM}. {REMEDY}"
    )


def test_every_overridden_method_is_in_the_contract():
    own = {
        name
        for part in (StepGRPO, TwoProcesses, LikeLengthRows)
        for name, value in vars(part).items()
        if inspect.isfunction(value) and hasattr(trl.GRPOTrainer, name)
    }
    assert own - {"__init__"} <= {*OVERRIDDEN}


@pytest.mark.parametrize("few_operations", [True, False])
def test_rows_without_an_advantage_change_nothing(tmp_path, monkeypatch, few_operations):
    """They have no backward pass; loss and gradient stay what they are with every row."""
    if not few_operations:
        monkeypatch.setattr(small_qwen3, "is_small_qwen3", lambda model: False)

    def trained():
        done = run(tmp_path, mixed_instances(), scheme="outcome-only", updates=2)
        return done, [entry for entry in done.trainer.state.log_history if "loss" in entry]

    left_out, records = trained()
    dead = [(batch["advantages"].abs() < 1e-9).sum().item() for batch in left_out.inputs]
    assert 0 < sum(dead) < sum(len(batch["advantages"]) for batch in left_out.inputs)
    monkeypatch.setattr(trl_adapter, "NO_ADVANTAGE", -1.0)
    whole, others = trained()
    for record, other in zip(records, others, strict=True):
        for name in ("loss", "grad_norm", "entropy"):
            assert record[name] == pytest.approx(other[name], abs=1e-6)
    for name, gradient in whole.gradient.items():
        torch.testing.assert_close(left_out.gradient[name], gradient, atol=1e-6, rtol=1e-5)


class TellsIdle:
    """In the place of TRL's trainer: its loss is which rows have no backward pass."""

    def __init__(self, beta=0.0, entropy=False):
        self.beta, self._entropy_bonus_enabled = beta, entropy

    def _compute_loss(self, model, inputs):
        return self.idle


class IdleRows(LikeLengthRows, TellsIdle):
    pass


def test_rows_are_idle_by_their_advantages_unless_another_term_has_a_gradient():
    def idle(advantages, **terms):
        found = IdleRows(**terms)._compute_loss(None, {"advantages": torch.tensor(advantages)})
        return None if found is None else found.tolist()

    assert idle([0.5, 0.0, 1e-12, -0.1]) == [False, True, True, False]
    assert idle([[0.0, 0.5], [0.0, 0.0]]) == [False, True]  # of tokens
    assert idle([0.0, 0.0]) == [False, True]  # something must go back
    assert idle([0.5, 0.0], beta=0.02) is None
    assert idle([0.5, 0.0], entropy=True) is None
