"""The code cells of notebook 04 from first to last, with managers that sample with `generate`."""

from __future__ import annotations

import json

import pytest
import torch

from finemem_lib.managers import sampling
from finemem_lib.managers.model import load_manager
from finemem_lib.util.provenance import workbench_root
from tests.helpers import fake_unsloth

torch.set_num_threads(1)

NOTEBOOK = workbench_root() / "notebooks" / "04_grpo_training.ipynb"
SMALL = {
    "run_id": "unsloth",
    "loader": "unsloth",
    "scheme": "slot price",
    "lora_rank": 4,
    "max_prompt_tokens": 176,  # the tiny manager's; Unsloth would stretch its 512 positions
    "max_new_tokens": 80,
    "updates": 2,
    "instances_per_update": 1,
    "num_generations": 2,
    "num_chunks": 2,
    "held_out": 2,
}


def run_cells(**parameters):
    """Run the notebook's code cells in order, with parameters in place of its own."""
    namespace = {"__name__": "__main__"}
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        source = "".join(cell["source"])
        if "start_run(" in source:
            namespace |= parameters
        exec(compile(source, NOTEBOOK.name, "exec"), namespace)
    return namespace


@pytest.fixture
def runs(monkeypatch, tmp_path):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path))
    monkeypatch.setenv("FINEMEM_EXPLORERS", "static")
    fake_unsloth.install(monkeypatch, "tiny")
    return tmp_path


def test_it_finishes_under_unsloth_and_knows_the_log_probabilities(runs):
    """Incident: its managers had none, so the figure of their change raised before the trained
    manager was saved."""
    found = run_cells(**SMALL)
    record = json.loads((runs / "unsloth" / "records" / "04_grpo_training.json").read_text())
    assert record["status"] == "ok"
    for trajectory in (*found["before"], *found["after"], *found["episode_before"]):
        assert all(len(step.logprobs) == len(step.completion_ids) for step in trajectory.steps)
    for groups in found["result"].trajectories.values():
        steps = [step for group in groups for one in group for step in one.steps]
        assert all(max(step.logprobs) <= 0 for step in steps)
    again = load_manager(runs / "unsloth" / "trained_manager")
    assert again.loaded_as.lora_rank == 4


def test_unknown_log_probabilities_cost_a_colour_and_not_the_manager(runs, monkeypatch):
    def unknown(model, prompts, completions, **settings):
        return [None] * len(completions)

    for module in (sampling, "finemem_lib.managers.model", "finemem_lib.training.trl_adapter"):
        name = module if isinstance(module, str) else module.__name__
        monkeypatch.setattr(f"{name}.completion_logprobs", unknown)
    found = run_cells(**SMALL)
    assert all(step.logprobs is None for one in found["before"] for step in one.steps)
    assert (runs / "unsloth" / "trained_manager" / "adapter_model.safetensors").is_file()


def test_the_trained_manager_is_saved_before_anything_is_drawn(runs, monkeypatch):
    def broken(*arguments, **settings):
        raise ValueError("no figure today")

    monkeypatch.setattr("finemem_lib.explorers.LiveCurves.finish", broken)
    with pytest.raises(ValueError, match="no figure today"):
        run_cells(**SMALL)
    assert (runs / "unsloth" / "trained_manager" / "adapter_model.safetensors").is_file()
    assert (runs / "unsloth" / "training.parquet").is_file()
