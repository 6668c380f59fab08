"""The estimate of what the experiment on real text can show, before it is run."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.util.provenance import workbench_root
from tests.helpers.benchmarks import benchmark_module
from tests.helpers.small_models import save_model


@pytest.fixture(scope="module")
def power():
    return benchmark_module("power")


def test_worth_finds_planted_slopes_and_how_many_rollouts_show_them(power):
    rng = np.random.default_rng(0)
    stored = rng.integers(0, 4, (200, 8, 2)).astype(float)
    noise = rng.normal(0, 0.2, (200, 8))
    asked, other = power.worth(stored @ np.array([0.1, -0.02]) + noise, stored)
    assert asked["slope"] == pytest.approx(0.1, abs=3 * asked["error"])
    assert other["slope"] == pytest.approx(-0.02, abs=3 * other["error"])
    # An effect five times as small takes 25 times as many rollouts.
    assert other["rollouts"] / asked["rollouts"] == pytest.approx(25, rel=0.6)
    assert asked["rollouts"] < 1600


def test_a_kind_that_never_varies_shows_never(power):
    stored = np.zeros((3, 4, 2))
    stored[:, :, 0] = np.arange(4)
    _, other = power.worth(stored[..., 0] / 9, stored)
    assert other["rollouts"] is None


def test_detectable_difference_is_what_a_simulated_test_detects_four_times_in_five(power):
    least = power.detectable(0.3, 60, 2)
    rng, shown = np.random.default_rng(1), 0
    for _ in range(2000):
        plays = rng.normal(0, 0.3, (2, 60, 2))
        paired = (plays[0] - plays[1]).mean(axis=1) + least
        shown += paired.mean() > 1.96 * 0.3 * np.sqrt(2 / 120)
    assert shown / 2000 == pytest.approx(0.8, abs=0.03)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rollouts", "1"], "--rollouts is 1, expected 2 or more"),
        (["--excerpts", "0"], "'0', expected a whole number from 1"),
        (["--output", "power.json"], "'power.json', expected a file that ends in .jsonl"),
    ],
)
def test_unusable_arguments_are_refused_before_anything_is_played(power, capsys, arguments, said):
    with pytest.raises(SystemExit):
        power.main(arguments)
    assert said in capsys.readouterr().err


def test_command_plays_a_manager_and_writes_the_estimates(tmp_path):
    folder = save_model(tmp_path / "model", "llama", num_hidden_layers=3)
    settings = ModelSettings(
        lora_rank=2, operations_as="constrained-quotes", max_new_tokens=128, batch_size=32
    )
    load_manager(folder, model=settings).save(tmp_path / "adapter")
    command = [sys.executable, str(workbench_root() / "benchmarks" / "power.py")]
    command += ["--checkpoint", str(tmp_path / "adapter"), "--excerpts", "2", "--rollouts", "3"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out.jsonl")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    (row,) = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(row)["completions"] == 2 * 3 * 5
    assert json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))["git"]["commit"]
    assert "held-out test of 60 excerpts" in done.stdout
