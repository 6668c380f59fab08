"""The contract with TRL: its version, and the private methods that `trl_adapter` overrides."""

from __future__ import annotations

import inspect

import pytest
import trl

from finemem_lib.training.trl_adapter import OVERRIDDEN, READ_FROM, LikeLengthRows, StepGRPO

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
        for part in (StepGRPO, LikeLengthRows)
        for name, value in vars(part).items()
        if inspect.isfunction(value) and hasattr(trl.GRPOTrainer, name)
    }
    assert own - {"__init__"} <= {*OVERRIDDEN}
