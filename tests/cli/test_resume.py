"""A training run that is killed at any moment goes on as if nothing had happened.

The runs are children of a fork server that has imported the library once: a real SIGKILL costs
little more than the work it destroys.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pyarrow.parquet
import pytest
import torch

from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.runs.run import sha256
from finemem_lib.training import run as training_run
from finemem_lib.training.checkpoints import last_checkpoint
from finemem_lib.training.record import StoredUpdates, update_file
from finemem_lib.training.run import train_manager
from tests.helpers.patience import LAST_RESORT
from tests.helpers.small_models import save_model
from tests.helpers.training_runs import assert_equal, manager, same_records

KILLS_AND_UPDATES = ((8, 40), pytest.param((20, 100), marks=pytest.mark.nightly))
SAVE_EVERY = 2
STREAM = StreamSettings(num_chunks=2)


def child(folder, updates, all_updates):
    """Train `updates` of all updates into a folder, from the checkpoint that is there."""
    torch.set_num_threads(1)
    training_run.load_manager = lambda checkpoint, **settings: manager()
    done = train_manager(
        "random weights",
        updates=updates,
        instances_per_update=1,
        seed=5,
        scheme="Fine-Mem",
        w1_until=all_updates,
        rollout=RolloutSettings(num_generations=2, capacity=4),
        stream=STREAM,
        instances=planted_instances("train", all_updates + 1, 5, STREAM),
        output_dir=folder,
        save_every=SAVE_EVERY,
        keep_updates={1, updates},
        resume=last_checkpoint(folder) is not None,
    )
    (folder / "result.json").write_text(json.dumps(done.records))


@pytest.fixture(scope="module")
def start():
    """Start a child that trains; the fork server ends with this process."""
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["test_resume", "trl.trainer.grpo_trainer", "datasets"])

    def started(folder, updates, all_updates):
        process = server.Process(target=child, args=(folder, updates, all_updates))
        process.start()
        return process

    return started


def finish(process):
    process.join(LAST_RESORT)
    assert process.exitcode == 0


@dataclass(frozen=True)
class Whole:
    """A run that was never killed, how often another is, the seconds to its first update, and those
    of an update."""

    folder: Path
    updates: int
    kills: int
    startup: float
    pace: float


@pytest.fixture(scope="module", params=KILLS_AND_UPDATES, ids=str)
def whole(request, start, tmp_path_factory):
    kills, updates = request.param
    folder = tmp_path_factory.mktemp("whole") / "run"
    finish(start(folder.with_name("imports"), 1, updates))
    started = time.monotonic()
    process = start(folder, updates, updates)
    while process.is_alive() and not update_file(folder / "updates", 1).exists():
        time.sleep(0.02)
    begun = time.monotonic()
    finish(process)
    pace = (time.monotonic() - begun) / updates
    return Whole(folder, updates, kills, begun - started, pace)


@pytest.mark.long
def test_killed_again_and_again_a_run_ends_as_if_it_never_was(start, whole, tmp_path):
    folder, rng = tmp_path / "run", np.random.default_rng(20)
    where, early = [], 0
    for _ in range(whole.kills):
        before = len(StoredUpdates(folder / "updates"))
        process = start(folder, whole.updates, whole.updates)
        if more := int(rng.integers(0, 5)):  # updates that it may finish, then a random moment
            newest = update_file(folder / "updates", before + more)
            while process.is_alive() and not newest.exists():
                time.sleep(0.005)
        process.join(rng.uniform(0, 1.5 * whole.pace if more else whole.startup))
        assert process.exitcode is None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        where.append(len(StoredUpdates(folder / "updates")))
        early += last_checkpoint(folder) is None
        for left in folder.glob("checkpoint-*"):  # whole, wherever the kill was
            json.loads((left / "trainer_state.json").read_text())
    if not (folder / "result.json").exists():
        finish(start(folder, whole.updates, whole.updates))
    print(
        f"{len(where)} kills after updates {where}, {early} before a checkpoint; "
        f"{whole.startup:.2f} s to the first update, {whole.pace:.3f} s each"
    )
    assert len({*where}) > 3
    assert_same_run(folder, whole)


def assert_same_run(folder, whole):
    """Weights, optimizer, records and every update that was played agree, bit for bit."""
    reference = whole.folder
    newest = last_checkpoint(reference)
    mine = folder / newest.name
    for name in ("optimizer.pt", "scheduler.pt"):
        one, other = (torch.load(place / name, weights_only=True) for place in (mine, newest))
        assert_same_tensors(one, other)
    assert_equal(load_manager(mine).model.state_dict(), load_manager(newest).model.state_dict())
    records, others = (
        json.loads((place / "result.json").read_text()) for place in (folder, reference)
    )
    assert len(records) == whole.updates and same_records(records, others)
    stored, expected = (StoredUpdates(place / "updates") for place in (folder, reference))
    assert [*stored] == [*expected] == [*range(1, whole.updates + 1)]
    for update in expected:
        tables = [
            pyarrow.parquet.read_table(update_file(one.folder, update))
            for one in (stored, expected)
        ]
        assert tables[0].equals(tables[1])


def assert_same_tensors(one, other):
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for name, value in one.items():
            assert_same_tensors(value, other[name])
    elif isinstance(one, list | tuple):
        for value, another in zip(one, other, strict=True):
            assert_same_tensors(value, another)
    else:
        assert one == other


def test_the_next_batch_after_a_resume_is_the_one_that_would_have_come(start, whole, tmp_path):
    """A run of more updates than before: what follows the end is what a longer run plays there."""
    folder = tmp_path / "run"
    finish(start(folder, 3, whole.updates))
    assert last_checkpoint(folder).name == "checkpoint-3"
    reference = StoredUpdates(whole.folder / "updates")
    assert StoredUpdates(folder / "updates")[3] == reference[3]
    finish(start(folder, 4, whole.updates))
    assert StoredUpdates(folder / "updates")[4] == reference[4]
    assert reference[4] != reference[3]


def test_an_adapter_is_checkpointed_alone_and_resumed_bit_for_bit(tmp_path):
    """A random-weight Qwen3 with its own chat template, through `load_manager`. Incident: with a KL
    term, transformers loaded TRL's copy of the first adapter and left the trained one as it was."""
    save_model(tmp_path / "base", "qwen3")
    model = ModelSettings(lora_rank=2, max_prompt_tokens=1500, max_new_tokens=8)

    def trained(folder, updates, **settings):
        return train_manager(
            tmp_path / "base",
            model=model,
            updates=updates,
            instances_per_update=1,
            seed=3,
            rollout=RolloutSettings(num_generations=2),
            learning_rate=1e-2,
            scheme="outcome-only",
            beta=0.02,
            stream=STREAM,
            instances=planted_instances("train", 3, 5, STREAM),
            save_every=1,
            output_dir=tmp_path / folder,
            **settings,
        )

    whole = trained("whole", 2)
    trained("stopped", 1)
    resumed = trained("stopped", 2, resume=True)
    weights = whole.manager.model.state_dict()
    assert_equal(resumed.manager.model.state_dict(), weights)
    trained_ones = {name: weight for name, weight in weights.items() if ".ref." not in name}
    fresh = load_manager(tmp_path / "base", model=model, seed=3).model.state_dict()
    moved = {name for name, one in trained_ones.items() if not torch.equal(one, fresh[name])}
    assert moved and all("lora" in name for name in moved)
    files = {path.name for path in resumed.checkpoint.iterdir()}
    assert "adapter_model.safetensors" in files and "model.safetensors" not in files
    assert_equal(load_manager(resumed.checkpoint, model=model).model.state_dict(), trained_ones)
    with pytest.raises(ValueError, match="was trained with .*resume it with the same"):
        train_manager(tmp_path / "base", output_dir=tmp_path / "stopped", resume=True, updates=3)


SMALL = [
    "updates=6",
    "save_every=2",
    "instances_per_update=2",
    "num_generations=2",
    "num_chunks=2",
    "held_out=2",
]


@pytest.mark.long
@pytest.mark.notebook
def test_notebook_04_killed_with_all_its_processes_goes_on_with_resume(tmp_path):
    """The command, its worker and its kernel are killed at once; `finemem resume` ends the run as
    one that was left alone."""

    def finemem(*arguments):
        return subprocess.Popen(
            [sys.executable, "-m", "finemem_lib", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "FINEMEM_RUNS_DIR": str(tmp_path)},
        )

    start_run = ["run", "--notebooks", "04", *(f"--set={one}" for one in SMALL), "--run-id"]
    whole = finemem(*start_run, "whole")
    assert whole.wait(LAST_RESORT) == 0, whole.stdout.read()
    killed = finemem(*start_run, "killed")
    checkpoints = tmp_path / "killed" / "scratch" / "04_grpo_training-checkpoints"
    while not (checkpoints / "checkpoint-2").exists():
        assert killed.poll() is None, killed.stdout.read()
        time.sleep(0.05)
    command = psutil.Process(killed.pid)
    for process in (command, *command.children(recursive=True)):
        process.kill()
    killed.wait()
    assert last_checkpoint(checkpoints).name != "checkpoint-6"

    resumed = finemem("resume", "killed")
    assert resumed.wait(LAST_RESORT) == 0, resumed.stdout.read()
    manifest = json.loads((tmp_path / "killed" / "manifest.json").read_text())
    assert (manifest["status"], len(manifest["resumed"])) == ("ok", 1)
    assert manifest["resumed"][0]["after"]["error"] == "the process of this run was killed"
    for name in (
        "trained_manager",
        "trained_trajectories.jsonl",
        "training_rollouts.jsonl",
        "training_updates",
    ):
        assert sha256(tmp_path / "killed" / name) == sha256(tmp_path / "whole" / name), name
    assert not (tmp_path / "killed" / "scratch").exists()
