"""The installed Unsloth: what its calls accept, and the gradient of its GRPO trainer."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys

import pytest
import torch

from tests.helpers.fake_unsloth import FACTS
from tests.helpers.paths import ROOT

pytestmark = [
    pytest.mark.nightly,
    pytest.mark.skipif(
        importlib.util.find_spec("unsloth") is None, reason="Unsloth is not installed"
    ),
]


def in_process(folder, *arguments):
    """Run `unsloth_process` in a folder where Unsloth may write."""
    done = subprocess.run(
        [sys.executable, "-m", "tests.helpers.unsloth_process", *map(str, arguments)],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=1200,
    )
    assert done.returncode == 0, done.stderr[-3000:]


def test_its_calls_accept_what_the_stand_in_accepts(tmp_path):
    in_process(tmp_path, "facts", tmp_path / "facts.json")
    found = json.loads((tmp_path / "facts.json").read_text())
    assert found == FACTS, (
        f"Unsloth {found['unsloth']} differs from what was read in {FACTS['unsloth']}: adapt "
        "managers/loading.py and training/config.py, and write tests/helpers/unsloth_facts.json "
        "again (python -m tests.helpers.unsloth_process facts tests/helpers/unsloth_facts.json)"
    )


def test_its_trainer_has_the_gradient_of_trls_own(tmp_path):
    for loader in ("plain", "unsloth"):
        in_process(tmp_path, "gradient", loader, tmp_path / f"{loader}.pt")
    plain, unsloth = (torch.load(tmp_path / f"{name}.pt") for name in ("plain", "unsloth"))
    assert "UnslothGRPOTrainer" in unsloth["classes"]
    assert "UnslothGRPOTrainer" not in plain["classes"]
    assert unsloth["completions"] == plain["completions"]
    assert unsloth["advantages"] == pytest.approx(plain["advantages"], abs=1e-6)
    one, other = (
        torch.cat([value.flatten().double() for value in run["gradient"].values()])
        for run in (plain, unsloth)
    )
    assert one.norm() > 0 and torch.cosine_similarity(one, other, dim=0) > 0.9999
