"""The adapter that a cell trained ships in bf16, without a tokenizer, with a card."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from finemem_lib.build.trained_adapter import main
from finemem_lib.experiments.cells import Cell, CellResult
from finemem_lib.experiments.rows import write_rows
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from tests.helpers.observations import observe
from tests.helpers.small_models import adapted, save_model


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """Return a folder with the rows of a sweep and the manager that its cell trained."""
    folder = tmp_path_factory.mktemp("sweep")
    settings = ModelSettings(lora_rank=2, operations_as="matched-quotes", max_new_tokens=64)
    model = save_model(folder / "model", "llama", num_hidden_layers=2)
    manager = adapted(load_manager(model, model=settings))
    cell = Cell(variant="slot price", regime="150 tokens", seed=7, updates=4, data="data/real")
    untrained = cell.model_copy(update={"updates": 0})
    rows = [
        CellResult(
            cell=one,
            key=one.key,
            curve={},
            episodes=[],
            tests={},
            seconds={"training": 120.0},
            commit="0123abc",
        )
        for one in (cell, untrained)
    ]
    write_rows(rows, folder / "design.jsonl", {"hardware": "2 cores"})
    manager.save(folder / "managers" / cell.key)
    return folder, manager


def shipped(folder, output, seed=7):
    main(
        [
            *("--rows", str(folder / "design.jsonl"), "--managers", str(folder / "managers")),
            *("--variant", "slot price", "--seed", str(seed), "--output", str(output)),
        ]
    )


def test_the_shipped_adapter_loads_and_acts_as_the_trained_one(swept, tmp_path):
    folder, manager = swept
    output = tmp_path / "shipped"
    shipped(folder, output)
    weights = load_file(output / "adapter_model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    assert not list(output.glob("tokenizer*"))
    again = load_manager(output)
    assert again.builder.operations_as == "matched-quotes"
    manager.temperature = again.temperature = 0.0
    step = [observe("Mia lives in Rome.\nLeo owns a cat.", ("Leo owns a dog.",))]
    assert again.act(step, 0)[0].text == manager.act(step, 0)[0].text
    card = (output / "README.md").read_text(encoding="utf-8")
    assert "with seed 7" in card and "in 2 minutes on 2 cores,\nat commit 0123abc." in card


def test_what_is_there_is_kept_and_a_missing_training_is_said(swept, tmp_path, capsys):
    folder, _ = swept
    with pytest.raises(SystemExit):
        shipped(folder, folder)
    assert "exists and is kept" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        shipped(folder, tmp_path / "other", seed=8)
    assert "holds 0 trainings of 'slot price' with seed 8" in capsys.readouterr().err
