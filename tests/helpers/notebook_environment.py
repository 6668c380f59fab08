"""Pytest plugin for nbval: kernels see what the pipeline gives them, runs go to a folder of their
own, so that a test never touches a user's runs, and a busy machine may take its time.

Notebooks 04 and 07 train less than their parameters say, unless --full-training is given: nbval
compares no output of their training (`nbval-ignore-output`), so the size decides the minutes only.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Generator
from typing import Any
from unittest import mock

import pytest

from finemem_lib.cli.run import KERNEL_ENVIRONMENT
from tests.helpers.patience import LAST_RESORT

SMALL_TRAINING: dict[str, dict[str, int]] = {
    "04_grpo_training": {"updates": 2, "held_out": 8},
    "07_ablations_and_robustness": {
        "updates": 2,
        "held_out": 4,
        "instances_per_update": 2,
        "num_generations": 4,
    },
}
"""By notebook, what is put in place of parameters once they are read and shown."""

_runs = tempfile.mkdtemp(prefix="finemem-nbval-")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full-training", action="store_true", help="train notebooks 04 and 07 as they stand"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[Any]) -> None:
    """Raise nbval's fixed five seconds between the outputs of a cell, and make training small."""
    cells = [item for item in items if hasattr(item, "output_timeout")]
    shown = set()
    for item in cells:
        item.output_timeout = LAST_RESORT
        name = item.path.stem
        if name in shown:
            smaller = f"p = run.parameters = p.model_copy(update={SMALL_TRAINING[name]})"
            item.cell.source = f"{smaller}\n{item.cell.source}"
            shown.remove(name)
        elif "run.show_parameters()" in item.cell.source and name in SMALL_TRAINING:
            if not config.getoption("--full-training"):
                shown.add(name)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: Any) -> Generator[None, bool | None, bool | None]:
    """Start the kernels of notebooks, and nothing else, in the environment of the pipeline."""
    if not hasattr(item, "output_timeout"):
        return (yield)
    with mock.patch.dict(os.environ, KERNEL_ENVIRONMENT | {"FINEMEM_RUNS_DIR": _runs}):
        return (yield)
