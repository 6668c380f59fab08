"""Cells that play on a layered memory and on streams that need structure."""

from __future__ import annotations

import pytest

from finemem_lib.experiments.cells import Cell, run_cell
from finemem_lib.experiments.design import load_design
from finemem_lib.experiments.tables import measures
from tests.helpers.paths import ROOT


def cell(**settings) -> Cell:
    return Cell(
        **{
            "variant": "v",
            "regime": "r",
            "seed": 0,
            "updates": 0,
            "held_out": 2,
            "num_chunks": 4,
            "streams": "planted-layers",
            "checkpoint": "layered-oracle",
            "memory": "layered",
        }
        | settings
    )


def test_the_columns_say_what_the_stores_hold_and_what_each_kind_of_question_scored():
    columns = run_cell(cell()).tests["sampled"].columns
    assert columns["accuracy, event"] == columns["accuracy, summary"] == [1.0, 1.0]
    for place, whole in enumerate(columns["memory_tokens"]):
        stores = [columns[f"{store} tokens"][place] for store in ("core", "semantic", "episodic")]
        assert sum(stores) == whole and all(stores)
    flat = run_cell(cell(checkpoint="insert-all", memory="flat"))
    assert "core tokens" not in flat.tests["sampled"].columns
    assert measures(flat)["accuracy, event"] == [0.0, 0.0]


def test_a_manager_of_layers_is_trained_and_its_operations_are_judged():
    trained = run_cell(
        cell(
            streams="planted",
            checkpoint="tiny-layers",
            scheme="Mem-alpha",
            updates=1,
            instances_per_update=2,
            num_generations=2,
        )
    )
    operations = [trained.curve[f"truth/{name}"][0] for name in ("UPDATE reuse", "INSERT fact")]
    assert sum(operations) > 0 and len(trained.episodes) == 1


@pytest.mark.parametrize(
    ("checkpoint", "memory"), [("tiny-structured", "flat"), ("tiny-layers-structured", "layered")]
)
def test_a_manager_is_trained_on_streams_that_need_structure(checkpoint, memory):
    trained = run_cell(
        cell(
            checkpoint=checkpoint,
            memory=memory,
            scheme="Mem-alpha",
            token_budget=60,
            num_chunks=2,
            updates=1,
            instances_per_update=1,
            num_generations=2,
        )
    )
    assert len(trained.episodes) == 1 and trained.tests["sampled"].columns["accuracy, event"]
    assert not trained.price  # a dated event is no sentence of the stream, and no noise


def test_settings_of_layers_enter_a_key_only_where_they_differ():
    plain = {"streams": "planted", "memory": "flat", "checkpoint": "insert-all"}
    assert (
        cell(**plain).key
        == Cell(
            variant="v",
            regime="r",
            seed=0,
            updates=0,
            held_out=2,
            num_chunks=4,
            checkpoint="insert-all",
        ).key
    )
    assert len({cell(**plain).key, cell(**plain | {"memory": "layered"}).key, cell().key}) == 3
    of = {"scheme": "Mem-alpha"}
    assert cell(**of).key != cell(scheme="Mem-alpha per step").key


@pytest.mark.parametrize(
    "name", ["memory_layers", "mem_alpha_rewards", "trained_layers", "training_length"]
)
def test_the_designs_are_usable(name):
    design = load_design(ROOT / "notebooks" / "designs" / f"{name}.yaml")
    assert design.cells and all(one.key for one in design.cells)
