"""One hypothesis profile for all tests: other work on the machine must not fail a correct test."""

import gc

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile(
    "workbench", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("workbench")

collect_ignore = ["notebook_environment.py"]  # a plugin for nbval that changes the environment


@pytest.fixture(scope="session")
def frozen_imports():
    """Keep the garbage collector, which every training run starts once, out of what is imported."""
    from finemem_lib.training import load_trainer_class

    load_trainer_class()
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
