"""Grids of training runs: keys, resuming, failures, a lost Dask worker, tables and kept rows."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from finemem_lib.cli import main
from finemem_lib.data.faults import EvidenceFaults, with_faults
from finemem_lib.evaluation.diagnostics import credit_at_evidence
from finemem_lib.experiments import cells, rows
from finemem_lib.experiments.cells import run_cell
from finemem_lib.experiments.design import Design, load_design
from finemem_lib.experiments.rows import read_card, read_rows, write_rows
from finemem_lib.experiments.sweep import run_cells
from finemem_lib.experiments.tables import table
from finemem_lib.managers.model import load_manager
from finemem_lib.seeds import stable_seed
from finemem_lib.training.local_groups import LocalGroups
from finemem_lib.util import console
from tests.helpers.experiment_samples import cell, result
from tests.helpers.paths import ROOT

DESIGNS = sorted((ROOT / "notebooks" / "designs").glob("*.yaml"))
COMMITTED = [
    path
    for design in DESIGNS
    if (path := design.parents[2] / "data" / "experiments" / f"{design.stem}.jsonl").exists()
]
STARTED = "FINEMEM_TEST_STARTED"


def grid(seeds=range(3)):
    return [
        cell(scheme, seed=seed, scheme=scheme)
        for seed in seeds
        for scheme in ("outcome-only", "+CSR")
    ]


def finished(of, accuracy=(0.5, 0.25)):
    return result(
        of,
        accuracy,
        key=of.key,
        curve={"reward": [1.0 / 3]},
        seconds={"training": 1.5},
        alignment={},
    )


def cheap(of):
    """Stand in for a training run; leave a mark of every start."""
    with open(os.environ[STARTED], "a", encoding="utf-8") as marks:
        marks.write(f"{of.key}\n")
    if of.learning_rate > 0.5:
        raise RuntimeError("learning rate out of hand")
    rng = np.random.default_rng(of.seed)
    return finished(of, accuracy=rng.random(2).round(3).tolist())


def dying(of):
    if of.seed == 2:
        os._exit(9)
    return cheap(of)


def slow(of):
    made = cheap(of)
    time.sleep(1.0)
    return made


@pytest.fixture
def started(tmp_path, monkeypatch):
    marks = tmp_path / "started"
    monkeypatch.setenv(STARTED, str(marks))
    return lambda: marks.read_text().split() if marks.exists() else []


# Cells and designs.


def test_the_key_of_a_cell_is_the_one_that_results_were_kept_under(monkeypatch):
    """A change of this key makes every kept result useless; increment KEY_VERSION instead when
    the same settings would produce different results."""
    files = cells.files_hash("tiny", *cells.TOKENIZER)
    monkeypatch.setattr(
        cells,
        "files_hash",
        lambda model, *patterns: "weights" if patterns == cells.WEIGHTS else files,
    )
    assert cell(scheme="Fine-Mem", capacity=12).key == "8b1a76ba9dbc0167"


def test_the_key_follows_what_changes_the_training_and_nothing_else(monkeypatch):
    base = cell(scheme="+EARA")
    assert cell("another", "name", scheme="+EARA").key == base.key
    for knob, value in {
        "seed": 1,
        "beta": 0.25,
        "credited": "used",
        "capacity": 12,
        "config": {"epsilon": 0.1},
        "evidence_drop": 0.5,
    }.items():
        assert base.model_copy(update={knob: value}).key != base.key, knob
    former = base.key
    monkeypatch.setattr(cells, "files_hash", lambda model, *patterns: "other files")
    assert base.key != former


def test_the_sentence_encoder_counts_where_retrieval_is_dense(tmp_path):
    assert cell(dense_model="other/encoder").key == cell().key
    keys = {cell(retriever="dense").key, cell(retriever="dense", dense_model="other/encoder").key}
    for content in ("1", "2"):
        folder = tmp_path / content
        folder.mkdir()
        (folder / "model.safetensors").write_text(content)
        keys.add(cell(retriever="dense", dense_model=str(folder)).key)
    assert len(keys | {cell().key}) == 5
    dense = cell(retriever="dense", dense_model="other/encoder").rollout(2)
    assert (dense.retriever, dense.dense_model) == ("dense", "other/encoder")


def test_the_world_and_the_token_budget_make_other_cells_and_reach_streams_and_memory():
    base, other = cell(), cell(world="paraphrased", token_budget=40)
    keys = {base.key, cell(world="paraphrased").key, cell(token_budget=40).key, other.key}
    assert len(keys) == 4 and cell(world="plain", token_budget=None).key == base.key
    assert (other.stream.world, other.rollout(2).token_budget) == ("paraphrased", 40)


def test_a_knob_of_a_term_that_the_scheme_leaves_out_does_not_make_another_cell():
    base = cell()
    assert base.model_copy(update={"wrong_questions": 0.5, "beta": 1.0}).key == base.key
    csr = cell(scheme="+CSR")
    assert csr.model_copy(update={"evidence_drop": 0.5}).key == csr.key
    assert csr.model_copy(update={"wrong_questions": 0.5}).key != csr.key


def test_local_groups_make_other_cells_and_can_be_named_in_a_design():
    base, other = cell(), cell(local_groups={"anchors": 2, "continuation": "policy"})
    assert other.local_groups == LocalGroups(anchors=2, continuation="policy")
    keys = {base.key, other.key, cell(local_groups={}).key}
    assert len(keys) == 3 and cell(local_groups=None).key == base.key
    asked, unasked = ({"local_groups": {"chunk_weight": weight}} for weight in (0.5, 0.0))
    assert cell(**asked, wrong_questions=1.0).key != cell(**asked).key
    assert cell(**unasked, wrong_questions=1.0).key == cell(**unasked).key


def test_local_groups_count_their_reader_calls_and_have_no_price_of_noise():
    shared = {"num_chunks": 2, "instances_per_update": 2, "num_generations": 2, "held_out": 1}
    own = run_cell(cell(**shared, updates=1, local_groups={}))
    record = {"credit/local/calls_asked": 10}
    assert cells._reader_calls("outcome-only", record, []) == 10
    plain = run_cell(cell(**shared, updates=1))
    assert own.curve["reader_calls"][0] > plain.curve["reader_calls"][0]
    assert plain.price and not own.price


def test_a_trained_manager_is_kept_where_asked(tmp_path):
    shared = {"num_chunks": 2, "instances_per_update": 2, "num_generations": 2, "held_out": 1}
    made = run_cell(cell(**shared, updates=1), keep=tmp_path)
    weights = [
        load_manager(one).model.get_input_embeddings().weight.detach()
        for one in ("tiny", tmp_path / made.key)
    ]
    assert weights[0].shape == weights[1].shape and not torch.equal(*weights)


def test_only_a_reader_that_can_learn_learns():
    with pytest.raises(ValueError, match="learns is 'jointly', which needs reader: trainable"):
        cell(learns="jointly")
    assert cell(reader="trainable", learns="jointly").key != cell(reader="trainable").key


def test_a_share_of_the_questions_is_asked_in_training_and_all_in_tests(monkeypatch):
    played = []
    real = cells.play

    def watched(streams, manager, settings, *more):
        played.append(settings.question_fraction)
        return real(streams, manager, settings, *more)

    monkeypatch.setattr(cells, "play", watched)
    sampled = cell(question_fraction=0.2, updates=0, held_out=1, num_chunks=1)
    assert sampled.rollout(2).question_fraction == 0.2
    run_cell(sampled)
    assert set(played) == {1.0}


REAL = {"data": "data/real", "num_chunks": 5, "token_budget": 150, "top_k": 2, "capacity": None}


def test_a_cell_of_real_text_tests_a_scripted_manager_on_the_held_out_excerpts():
    found = run_cell(cell(**REAL, checkpoint="insert-all", updates=0, held_out=6))
    columns = found.tests["greedy"].columns
    assert found.tests["sampled"].columns == columns, "a script samples nothing"
    assert len(columns["accuracy"]) == 6 and max(columns["memory_tokens"]) <= 150
    measured = {row.measure for row in table([found], "outcome-only")}
    assert {"WRITE asked per step", "WRITE distractor per step"} <= measured
    assert "right edits per step" not in measured, "there is no planted truth"
    assert min(columns["WRITE asked"]) > 0 and min(columns["WRITE distractor"]) > 0
    keyword = run_cell(cell(**REAL, checkpoint="keyword", updates=0, held_out=6))
    fewer = keyword.tests["greedy"].columns["WRITE distractor"]
    assert sum(fewer) < sum(columns["WRITE distractor"])


def test_several_plays_of_a_stream_count_as_their_mean():
    once, thrice = (run_cell(cell(updates=0, held_out=4, test_plays=n)) for n in (1, 3))
    assert once.tests["greedy"] == thrice.tests["greedy"] and once.key != thrice.key
    stored = thrice.tests["sampled"].columns["memory_items"]
    assert len(stored) == 4 and all(abs(3 * value - round(3 * value)) < 1e-4 for value in stored)
    assert any(value != int(value) for value in stored), "three plays differ"


def test_a_cell_of_real_text_trains_on_excerpts_in_the_order_of_its_seed():
    orders = [
        [one.instance_id for one in cells._training_streams(cell(**REAL, seed=seed, updates=3))]
        for seed in (1, 1, 2)
    ]
    assert len(orders[0]) == 24 and orders[0] == orders[1] != orders[2]
    assert cells._training_streams(cell(**REAL, updates=1))[0].chunk_questions


def test_the_text_is_part_of_the_key(tmp_path):
    real, planted = cell(**REAL), cell(**{**REAL, "data": ""})
    (tmp_path / "train.parquet").write_bytes(b"other")
    other = cell(**{**REAL, "data": str(tmp_path)})
    assert len({real.key, planted.key, other.key}) == 3
    with pytest.raises(ValueError, match="data is 'nowhere', which is not a folder here"):
        run_cell(cell(**{**REAL, "data": "nowhere"}, updates=0))


def test_a_cell_whose_reader_learns_is_tested_with_what_it_learned(tmp_path):
    shared = {"capacity": 12, "num_chunks": 2, "instances_per_update": 2, "num_generations": 2}
    settings = {**shared, "held_out": 3, "reader": "trainable"}
    taught = run_cell(cell(**settings, learns="reader", updates=1))
    untaught = run_cell(cell(**settings, updates=0))
    assert taught.curve["reader/picked"][0] <= taught.curve["reader/best"][0]
    assert set(taught.tests) == {
        f"{how}{reader}" for how in ("sampled", "greedy") for reader in ("", ", extractive reader")
    }
    same = [result.tests["greedy, extractive reader"] for result in (taught, untaught)]
    assert same[0] == same[1], "the manager did not learn"


def test_a_cell_that_measures_all_schemes_is_another_under_other_terms():
    base = cell(alignment_batches=2)
    assert base.model_copy(update={"credited": "used"}).key != base.key
    assert base.model_copy(update={"w1_until": None, "beta": 0.5}).key == base.key


def test_the_files_of_the_warm_start_are_those_that_would_be_loaded(tmp_path, monkeypatch):
    """A relative folder is looked for where the command runs first."""
    monkeypatch.chdir(tmp_path)
    Path("mine").mkdir()
    keys = []
    for name, content in (
        ("model.safetensors", b"1"),
        ("model.safetensors", b"2"),
        ("pytorch_model.bin", b"3"),
        ("tokenizer.json", b"4"),
        ("config.json", b"5"),
        ("trainer_state.json", b"6"),
    ):
        Path("mine", name).write_bytes(content)
        cells.files_hash.cache_clear()
        keys.append(cell(checkpoint="mine").key)
    assert len(set(keys)) == 5 and keys[-1] == keys[-2], "a trainer's log changes no training"


@pytest.mark.parametrize("path", DESIGNS, ids=lambda path: path.stem)
def test_every_design_is_a_whole_grid_with_its_baseline(path):
    design = load_design(path)
    cells = design.cells
    assert len(cells) == sum(
        len(regime.variants or design.variants) * len(regime.seeds or design.seeds)
        for regime in design.regimes.values()
    )
    assert len({(c.variant, c.regime, c.seed) for c in cells}) == len(cells)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (
            {"variants": {"a": {"betta": 0.5}}, "baseline": "a"},
            "betta is no field, expected one of variant, regime, seed",
        ),
        (
            {"variants": {"a": {"scheme": "EARA"}}, "baseline": "a"},
            "scheme is 'EARA', expected one of outcome-only, .*Fine-Mem",
        ),
        ({"variants": {"a": {"evidence_drop": 0.6, "evidence_swap": 0.6}}}, "drop . swap"),
        ({"variants": {"a": {"w1_until": 1}}}, "w1_until"),
        ({"baseline": "b"}, "baseline 'b' is not among a"),
        ({"baselines": []}, "baselines"),
        ({"seeds": "all"}, "seeds"),
        ({"excluded_seeds": {"of the pilots": [3, 0]}}, "seed 0 is excluded .of the pilots"),
        (
            {"regimes": {"r": {"seeds": [4]}}, "excluded_seeds": {"of the pilots": [4]}},
            "seed 4 is excluded",
        ),
        ({"regimes": {"r": {"variants": ["b"]}}}, "in regime 'r' variant 'b' is not among a"),
        ({"primary": ["reward"]}, "primary measure 'reward' is not among accuracy, first 10"),
        ({"correction": "bonferroni"}, "correction is 'bonferroni'"),
    ],
)
def test_a_wrong_design_is_refused_with_what_is_wrong_in_it(tmp_path, change, named):
    design = {
        "description": "d",
        "baseline": "a",
        "regimes": {"r": {}},
        "variants": {"a": {}},
        "seeds": [0],
    }
    path = tmp_path / "design.yaml"
    path.write_text(yaml.safe_dump(design | change))
    with pytest.raises(ValueError, match=rf"(?s){named}.*notebooks/designs") as refused:
        load_design(path)
    assert "pydantic" not in str(refused.value)


def test_a_regime_may_have_fewer_variants_and_other_seeds():
    design = Design(
        description="d",
        baselines=["a", "b"],
        common={"capacity": 12},
        regimes={
            "short": {},
            "long": {"num_chunks": 24, "capacity": 6, "seeds": [21, 30], "variants": ["b"]},
        },
        variants={"a": {}, "b": {"scheme": "+CSR"}},
        seeds=[20, 21],
        excluded_seeds={"the pilots' seeds": [0, 1]},
    )
    assert [(cell.seed, cell.regime, cell.variant) for cell in design.cells] == [
        (20, "short", "a"),
        (20, "short", "b"),
        (21, "short", "a"),
        (21, "short", "b"),
        (21, "long", "b"),
        (30, "long", "b"),
    ]
    long = design.cells[-1]
    assert (long.num_chunks, long.capacity, long.scheme) == (24, 6, "+CSR")
    assert design.baseline == "a"


# Many cells.


def test_cells_that_are_there_are_not_made_again(tmp_path, started):
    first, failures = run_cells(grid(range(2)), tmp_path / "cells", jobs=1, run=cheap)
    again, _ = run_cells(grid(range(3)), tmp_path / "cells", jobs=1, run=cheap)
    assert not failures and len(first) == 4 and len(again) == 6
    assert len(started()) == len(set(started())) == 6
    assert [one.cell for one in again] == grid(range(3))
    assert again[:4] == first


def test_a_failing_cell_is_reported_and_the_others_are_kept(tmp_path, started):
    cells = [cell(seed=0), cell(seed=1, learning_rate=0.9), cell(seed=2)]
    said = []
    results, (failure,) = run_cells(
        cells,
        tmp_path / "cells",
        jobs=2,
        run=cheap,
        progress=lambda done, total, of, what: said.append((done, total, of.seed, what)),
    )
    assert [one.cell.seed for one in results] == [0, 2]
    assert failure.cell == cells[1]
    assert failure.error == "RuntimeError: learning rate out of hand"
    assert [entry[:2] for entry in said] == [(1, 3), (2, 3), (3, 3)]
    assert sorted(entry[3] for entry in said) == [failure.error, "done", "done"]
    run_cells(cells, tmp_path / "cells", jobs=1, run=cheap)
    assert started().count(cells[1].key) == 2, "what failed is tried again"


def test_a_killed_process_is_reported_and_what_was_finished_is_kept(tmp_path, started):
    cells = [cell(seed=seed) for seed in range(3)]
    results, failures = run_cells(cells, tmp_path / "cells", jobs=2, run=dying)
    assert len(results) + len(failures) == 3
    assert cells[2] in [failure.cell for failure in failures]
    assert "run the same command again" in failures[0].error
    again, failures = run_cells(cells, tmp_path / "cells", jobs=1, run=cheap)
    assert len(again) == 3 and not failures


def test_a_training_run_that_was_interrupted_is_no_cell(tmp_path, monkeypatch):
    """train_manager ends at an interrupt and returns what it had."""

    class Interrupted:
        interrupted = True

    monkeypatch.setattr(cells, "train_manager", lambda *args, **settings: Interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_cells([cell(updates=1)], tmp_path / "cells", jobs=1)
    assert not list((tmp_path / "cells").glob("*.json"))


def test_an_interrupt_keeps_what_was_finished(tmp_path, started):
    def interrupt(done, total, of, what):
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_cells(grid(), tmp_path / "cells", jobs=1, run=cheap, progress=interrupt)
    assert len(list((tmp_path / "cells").glob("*.json"))) == 2
    results, _ = run_cells(grid(), tmp_path / "cells", jobs=1, run=cheap)
    assert len(results) == 6


def test_a_result_that_cannot_be_read_is_refused_with_a_remedy(tmp_path, started):
    run_cells(grid(), tmp_path / "cells", jobs=1, run=cheap)
    broken = next((tmp_path / "cells").glob("*.json"))
    whole = broken.read_text()
    other = next(path for path in (tmp_path / "cells").glob("*.json") if path != broken)
    broken.write_text(other.read_text())
    with pytest.raises(ValueError, match=f"it holds that of {other.stem}"):
        run_cells(grid(), tmp_path / "cells", jobs=1, run=cheap)
    broken.write_text(whole[:100])
    with pytest.raises(ValueError, match="move it away and run the same command again"):
        run_cells(grid(), tmp_path / "cells", jobs=1, run=cheap)


def test_equal_cells_under_two_names_are_made_once(tmp_path, started):
    cells = [cell("a"), cell("b"), cell("b", "elsewhere")]
    results, _ = run_cells(cells, tmp_path / "cells", jobs=1, run=cheap)
    assert [(one.cell.variant, one.cell.regime) for one in results] == [
        ("a", "pressure"),
        ("b", "pressure"),
        ("b", "elsewhere"),
    ]
    assert len(started()) == 1


@contextlib.contextmanager
def dask_cluster(workers):
    """Start a real scheduler with worker processes of one thread each."""
    distributed = pytest.importorskip("distributed", reason="needs the dask extra")
    with distributed.LocalCluster(
        n_workers=workers,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        worker_dashboard_address=None,
    ) as cluster:
        yield cluster


def test_a_dask_worker_killed_half_way_loses_nothing(tmp_path, started):
    """Two worker processes of a real scheduler; one is killed while it trains a cell."""
    cells = grid(range(4))
    expected, _ = run_cells(cells, tmp_path / "here", jobs=1, run=cheap)
    before = len(started())
    with dask_cluster(2) as cluster:
        doomed = next(iter(cluster.workers.values())).pid

        def kill(done, total, of, what):
            if done == 2:
                os.kill(doomed, signal.SIGKILL)

        results, failures = run_cells(
            cells,
            tmp_path / "there",
            scheduler=cluster.scheduler_address,
            run=slow,
            progress=kill,
        )
    assert not failures
    assert results == expected and table(results) == table(expected)
    starts = started()[before:]
    assert set(starts) == {one.key for one in cells} and len(starts) > len(cells)


def test_one_dask_worker_is_enough_and_a_cell_that_kills_it_is_reported(tmp_path, started):
    with dask_cluster(1) as cluster:
        cluster.scheduler.allowed_failures = 0
        address = cluster.scheduler_address
        results, failures = run_cells(
            [cell(seed=seed) for seed in range(2)], tmp_path, scheduler=address, run=cheap
        )
        assert len(results) == 2 and not failures
        _, failures = run_cells([cell(seed=2)], tmp_path, scheduler=address, run=dying)
    assert [failure.cell.seed for failure in failures] == [2]
    assert "run the same command again" in failures[0].error


def test_a_scheduler_that_does_not_answer_is_refused(tmp_path, started):
    pytest.importorskip("distributed", reason="needs the dask extra")
    import dask

    with (
        dask.config.set({"distributed.comm.timeouts.connect": "200ms"}),
        pytest.raises(ValueError, match="no Dask scheduler answers at 'tcp://127.0.0.1:1'"),
    ):
        run_cells([cell()], tmp_path, scheduler="tcp://127.0.0.1:1", run=cheap)
    assert not started()


@pytest.mark.parametrize("address", ["nowhere", "tcp://host", "carrier-pigeon://host:1"])
def test_an_address_that_is_none_is_refused_before_a_client_is_made(tmp_path, monkeypatch, address):
    """Incident: the client that could not be made took a minute to go, and left a traceback."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(distributed, "Client", None)
    with pytest.raises(ValueError, match=f"answers at '{address}'.* expected an address such as"):
        run_cells([cell()], tmp_path, scheduler=address, run=cheap)


# One real cell.


def test_a_real_cell_trains_tests_and_counts(tmp_path, monkeypatch):
    tiny = cell(
        "Fine-Mem",
        scheme="Fine-Mem",
        capacity=12,
        num_chunks=2,
        updates=1,
        instances_per_update=2,
        num_generations=2,
        held_out=3,
        test_chunks=(3,),
        test_streams=2,
        evidence_swap=1.0,
    )
    (made,), failures = run_cells([tiny], tmp_path, jobs=1)
    assert not failures
    assert set(made.tests) == {"sampled", "greedy", "sampled T=3", "greedy T=3"}
    assert len(made.commit) == 40 and made.dirty in (True, False)
    assert len(made.episodes) == 1 and len(made.episodes[0]) == 2
    assert made.curve["accuracy"][0] == pytest.approx(np.mean(made.episodes), abs=1e-4)
    assert len(made.tests["sampled"].columns["accuracy"]) == 3
    assert len(made.tests["sampled T=3"].columns["accuracy"]) == 2
    emitted = sum(made.curve[f"operations/{kind}"][0] for kind in ("INSERT", "UPDATE", "DELETE"))
    counted = sum(
        values[0]
        for name, values in made.curve.items()
        if name.startswith("truth/") and "SKIP" not in name and name != "truth/refused"
    )
    assert counted == pytest.approx(emitted, abs=1e-4) or made.curve["truth/refused"][0] > 0
    trained = []
    real = cells.train_manager
    monkeypatch.setattr(
        cells,
        "train_manager",
        lambda *args, **more: trained.append(real(*args, **more)) or trained[-1],
    )
    again = run_cell(tiny)
    (played,) = trained[0].trajectories.values()
    faults = EvidenceFaults(swap=1.0)
    faulty = [with_faults(one, faults, stable_seed(0, 0)) for group in played for one in group]
    share = credit_at_evidence(faulty)
    assert share != credit_at_evidence([one for group in played for one in group])
    assert again.curve["credit_at_evidence/retrieved, faulty evidence"][0] == pytest.approx(
        share, abs=1e-5
    )
    assert (again.tests, again.episodes) == (made.tests, made.episodes)


def test_sweep_makes_a_table_and_rows_and_goes_on_from_what_is_there(tmp_path, capsys):
    design = tmp_path / "small.yaml"
    design.write_text(
        yaml.safe_dump(
            {
                "description": "The warm start, under pressure and without.",
                "baseline": "start",
                "common": {"updates": 0, "num_chunks": 2, "held_out": 2},
                "regimes": {"pressure": {"capacity": 2}},
                "seeds": [0, 1],
                "variants": {"start": {}, "start, k=1": {"top_k": 1}},
            }
        )
    )
    command = ["sweep", str(design), "--output", str(tmp_path / "out"), "--jobs", "1"]
    assert main.main(command) == 0
    first = capsys.readouterr().out
    assert first.count(": done") == 4 and "accuracy, greedy" in first
    assert main.main(command) == 0
    again = capsys.readouterr().out
    assert again.count(": kept") == 4
    assert [line for line in again.splitlines() if "accuracy" in line] == [
        line for line in first.splitlines() if "accuracy" in line
    ]
    rows = read_rows(tmp_path / "out" / "small.jsonl")
    assert [one.cell.seed for one in rows] == [0, 0, 1, 1]
    assert "finemem sweep" in (tmp_path / "out" / "small.json").read_text()


def test_sweep_trains_the_regimes_and_seeds_that_are_named_and_keeps_the_rest(tmp_path, capsys):
    design = tmp_path / "two.yaml"
    design.write_text(
        yaml.safe_dump(
            {
                "description": "The warm start in two regimes.",
                "baseline": "start",
                "common": {"updates": 0, "num_chunks": 2, "held_out": 2},
                "regimes": {"pressure": {"capacity": 2}, "no limit": {}},
                "seeds": [0, 1],
                "variants": {"start": {}, "k=1": {"top_k": 1}},
            }
        )
    )
    command = ["sweep", str(design), "--output", str(tmp_path / "out"), "--jobs", "1"]
    command += ["--variants", "start"]
    assert main.main([*command, "--regimes", "no limit", "--seeds", "1"]) == 0
    assert main.main([*command, "--regimes", "pressure"]) == 0
    assert capsys.readouterr().out.count(": done") == 3
    kept = read_rows(tmp_path / "out" / "two.jsonl")
    assert {(one.cell.regime, one.cell.seed) for one in kept} == {
        ("pressure", 0),
        ("pressure", 1),
        ("no limit", 1),
    }
    (tmp_path / "out" / "two.jsonl").unlink()
    assert main.main([*command, "--collect"]) == 0
    assert ": done" not in capsys.readouterr().out, "nothing is trained"
    assert read_rows(tmp_path / "out" / "two.jsonl") == kept
    assert main.main([*command, "--regimes", "presure"]) == 2
    assert "--regimes has 'presure', expected some of no limit, pressure" in capsys.readouterr().err
    assert main.main([*command, "--managers", str(design)]) == 2
    assert f"--managers: {design} is no folder, expected" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main.main([*command, "--seeds", "one"])
    assert "'one', expected whole numbers" in capsys.readouterr().err


def test_sweep_refuses_a_missing_design(tmp_path, capsys):
    command = ["sweep", str(tmp_path / "none.yaml"), "--output", str(tmp_path / "out")]
    assert main.main(command) == console.BAD_USAGE
    assert "notebooks/designs" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# Rows to keep.


def test_rows_come_back_short_and_with_their_card(tmp_path):
    path = tmp_path / "schemes.jsonl"
    design = Design(
        description="d",
        baseline="outcome-only",
        regimes={"pressure": {}},
        variants={"outcome-only": {}},
        seeds=[0],
    )
    made = [finished(cell(learning_rate=0.00123456, config={"beta": 0.0}))]
    card = rows.experiment_card(design, made, [], "finemem sweep schemes.yaml")
    write_rows(made, path, card)
    (row,) = read_rows(path)
    assert row.cell == made[0].cell and row.cell.key == row.key and row.tests == made[0].tests
    assert row.curve == {"reward": [0.333]}
    assert card["cells"] == 1 and card["commit"] and "cores" in card["hardware"]
    assert card["made_by"] == {"no recorded commit": 1}
    made = [
        finished(cell(seed=seed)).model_copy(update={"commit": "c", "dirty": seed == 2})
        for seed in range(3)
    ]
    card = rows.experiment_card(design, made, [], "finemem sweep schemes.yaml")
    assert card["made_by"] == {"c": 2, "c and changes": 1}
    write_rows(made, path, card)
    assert [row.dirty for row in read_rows(path)] == [False, False, True]
    assert os.uname().nodename not in str(card)
    assert read_card(path) == card


@pytest.mark.parametrize("text", [None, "{}\n", "not JSON\n"])
def test_rows_that_cannot_be_read_name_the_command_that_makes_them(tmp_path, text):
    path = tmp_path / "rows.jsonl"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ValueError, match="finemem sweep DESIGN --output FOLDER"):
        read_rows(path)
    with pytest.raises(ValueError, match="`finemem sweep` writes it next to the rows"):
        read_card(path)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda path: path.stem)
def test_committed_rows_are_the_cells_of_their_design(path):
    design = load_design(next(each for each in DESIGNS if each.stem == path.stem))
    rows, card = read_rows(path), read_card(path)
    trained = {row.key for row in rows}  # a design may be trained in part so far
    assert [row.cell for row in rows] == [one for one in design.cells if one.key in trained]
    assert card["key_version"] <= cells.KEY_VERSION
    if card["key_version"] == cells.KEY_VERSION:  # older rows were played under older rules
        assert trained <= {each.key for each in design.cells}
    assert all(len(row.episodes) == row.cell.updates for row in rows)
    assert (card["cells"], card["failed"]) == (len({row.key for row in rows}), 0)
    assert card["baseline"] == design.baseline and "finemem sweep" in card["command"]
