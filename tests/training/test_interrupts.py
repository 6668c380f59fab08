"""What training keeps when it is stopped: by an interrupt anywhere, or by what is not finite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from transformers import Trainer, TrainerCallback, TrainerState
from transformers.integrations import integration_utils

from finemem_lib.data.planted import StreamSettings
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.rollout import LockstepRollouts, RolloutSettings
from finemem_lib.reading import MemoisedAgent, Reading, ReadingTask
from finemem_lib.training import run as training_run, schemes, stops
from finemem_lib.training.checkpoints import READER_MEMO, restore_reader, save_reader
from finemem_lib.training.record import StoredUpdates
from finemem_lib.training.run import train_manager
from finemem_lib.training.schemes import TERMS
from finemem_lib.training.stops import (
    Interrupts,
    advising_on_memory,
    check_reporter,
    is_out_of_memory,
    memory_advice,
)
from finemem_lib.training.trl_adapter import load_trainer_class
from tests.helpers.patience import LAST_RESORT
from tests.helpers.training_runs import assert_equal, manager, same_records

pytestmark = pytest.mark.usefixtures("frozen_imports")

UPDATES, STEPS = 3, 2


@pytest.fixture(autouse=True)
def interruptible(monkeypatch):
    """Random weights to train, and Python's own handler, which a shell may have switched off."""
    monkeypatch.setattr(training_run, "load_manager", lambda checkpoint, **settings: manager())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def trained(**settings):
    return train_manager(
        **{
            "updates": UPDATES,
            "instances_per_update": 1,
            "seed": 5,
            "w1_until": UPDATES,
            "rollout": RolloutSettings(num_generations=2),
            "keep_updates": range(1, UPDATES + 1),
            "stream": StreamSettings(num_chunks=STEPS),
            **settings,
        }
    )


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_run, "load_manager", lambda checkpoint, **settings: manager())
        return trained()


def at_call(number, action, function):
    """Return the function with an action before its call of that number."""
    calls = Counter()

    def wrapped(*arguments, **settings):
        calls["made"] += 1
        if calls["made"] == number:
            action()
        return function(*arguments, **settings)

    return wrapped


def interrupt():
    raise KeyboardInterrupt


def press_stop():
    os.kill(os.getpid(), signal.SIGINT)


# Where it is stopped: what is patched (owner and name), at which call of it, how, and how many
# updates are finished by then.
PLACES = {
    "on_update": (None, "on_update", 2, interrupt, 2),
    "rollout": (LockstepRollouts, "advance", 2 * STEPS + 2, interrupt, 2),
    "rewards": (schemes, "hybrid_reward", 4, interrupt, 1),
    "optimizer step, by signal": (torch.optim.AdamW, "step", 2, press_stop, 2),
    "log, by signal": (Trainer, "log", 2, press_stop, 2),
    "checkpoint": (TrainerState, "save_to_json", 1, interrupt, 2),
}


class ReaderGone(Exception):
    """In place of what a client raises when its server does not answer."""


def fail(error):
    def action():
        raise error

    return action


@pytest.mark.parametrize(
    "error",
    [
        ReaderGone("no answer"),
        torch.OutOfMemoryError("CUDA out of memory"),
        MemoryError("all of it"),
    ],
)
def test_an_error_loses_no_finished_update(error, whole, tmp_path, monkeypatch):
    """Incident: a reader that was gone in update 4 left nothing of the three before."""
    with monkeypatch.context() as patch:
        advance = at_call(2 * STEPS + 2, fail(error), LockstepRollouts.advance)
        patch.setattr(LockstepRollouts, "advance", advance)
        with pytest.raises((ReaderGone, MemoryError)):
            trained(output_dir=tmp_path, save_every=10)
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "checkpoint-2",
        "settings.json",
        "updates",
    ]
    resumed = trained(output_dir=tmp_path, resume=True)
    assert same_records(resumed.records, whole.records)
    assert_equal(resumed.manager.model.state_dict(), whole.manager.model.state_dict())


@pytest.mark.parametrize("where", ["before", "after"])
def test_what_fails_amid_an_update_leaves_no_checkpoint_of_it(where, whole, tmp_path, monkeypatch):
    """Some weights may have moved and others not."""
    real, calls = torch.optim.AdamW.step, Counter()

    def step(self, *arguments, **settings):
        calls["made"] += 1
        if calls["made"] != 2:
            return real(self, *arguments, **settings)
        if where == "after":
            real(self, *arguments, **settings)
        raise torch.OutOfMemoryError("CUDA out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        with pytest.raises(MemoryError, match="update 2 ran out of memory.*no checkpoint yet"):
            trained(output_dir=tmp_path, save_every=10)
    assert not list(tmp_path.glob("checkpoint-*"))
    assert_equal(
        trained(output_dir=tmp_path).manager.model.state_dict(), whole.manager.model.state_dict()
    )


def test_a_checkpoint_that_cannot_be_written_does_not_hide_why_it_was_due(tmp_path, monkeypatch):
    def full_disk(state, path):
        raise OSError("no space left on device")

    monkeypatch.setattr(TrainerState, "save_to_json", full_disk)
    with pytest.raises(ReaderGone, match="no answer") as raised:
        trained(output_dir=tmp_path, on_update=at_call(2, fail(ReaderGone("no answer")), id))
    assert raised.value.__notes__ == [
        "The checkpoint of update 2 could not be written: no space left on device"
    ]
    assert not list(tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("place", PLACES)
def test_an_interrupt_keeps_what_was_done_and_resuming_loses_nothing(
    place, whole, tmp_path, monkeypatch
):
    owner, name, call, action, finished = PLACES[place]
    settings = {}
    with monkeypatch.context() as patch:
        if owner is None:
            settings[name] = at_call(call, action, lambda record: None)
        else:
            patch.setattr(owner, name, at_call(call, action, getattr(owner, name)))
        stopped = trained(output_dir=tmp_path, save_every=2, **settings)
    assert stopped.interrupted and stopped.checkpoint == tmp_path / f"checkpoint-{finished}"
    assert same_records(stopped.records, whole.records[:finished])
    assert stopped.trajectories == {
        update: whole.trajectories[update] for update in range(1, finished + 1)
    }
    assert not stopped.manager.model.training
    weights = stopped.manager.model.state_dict()
    assert_equal(weights, load_manager(stopped.checkpoint).model.state_dict())
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        f"checkpoint-{finished}",
        "settings.json",
        "updates",
    ]

    resumed = trained(output_dir=tmp_path, save_every=2, resume=True)
    assert not resumed.interrupted
    assert same_records(resumed.records, whole.records)
    assert_equal(resumed.manager.model.state_dict(), whole.manager.model.state_dict())
    assert resumed.trajectories[UPDATES] == whole.trajectories[UPDATES]


def test_without_a_folder_an_interrupt_returns_what_there_is(whole):
    stopped = trained(on_update=at_call(3, interrupt, lambda record: None))
    assert stopped.interrupted and stopped.checkpoint is None
    assert same_records(stopped.records, whole.records[:3])
    parameters = stopped.manager.model.parameters()
    assert all(one.grad is None or not one.grad.any() for one in parameters)
    assert not whole.interrupted and len(whole.records) == UPDATES


def test_before_an_update_is_finished_there_is_nothing_to_keep(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(LockstepRollouts, "advance", lambda *arguments: interrupt())
        stopped = trained(output_dir=tmp_path)
    assert stopped.interrupted and stopped.records == () and stopped.checkpoint is None
    assert_equal(stopped.manager.model.state_dict(), manager().model.state_dict())
    monkeypatch.setattr(load_trainer_class(), "train", lambda *arguments, **settings: interrupt())
    with pytest.raises(KeyboardInterrupt):
        trained(output_dir=tmp_path)


CHILD = """
import json, signal, sys, torch
from finemem_lib.data.planted import StreamSettings
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.training.run import train_manager
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
done = train_manager(
    updates=500, instances_per_update=1, rollout=RolloutSettings(num_generations=2),
    stream=StreamSettings(num_chunks=2), output_dir=sys.argv[1], save_every=10_000,
    on_update=lambda record: print(record["step"], flush=True),
)
print(json.dumps([done.interrupted, len(done.records), done.checkpoint.name]))
"""


@pytest.mark.long
def test_a_real_interrupt_of_another_process(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        for line in child.stdout:
            if line.strip() == "2":
                break
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=LAST_RESORT)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 0
    *updates, last = output.splitlines()
    interrupted, records, checkpoint = json.loads(last)
    finished = int((["2"] + updates)[-1])
    assert interrupted and records in (finished, finished + 1)  # stopped while printing
    assert checkpoint == f"checkpoint-{records}"
    state = json.loads((tmp_path / checkpoint / "trainer_state.json").read_text())
    assert state["global_step"] == len(state["log_history"]) == records
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        checkpoint,
        "settings.json",
        "updates",
    ]


def test_interrupts_are_held_back_then_raised_once():
    interrupts = Interrupts()
    interrupts.hold()
    interrupts.hold()
    press_stop()
    press_stop()
    with pytest.raises(KeyboardInterrupt):
        interrupts.release()
    interrupts.release()
    interrupts.hold()
    press_stop()
    interrupts.restore()
    interrupts.hold()
    interrupts.release()


def test_training_in_another_thread_leaves_signals_alone(whole):
    results = []
    thread = threading.Thread(target=lambda: results.append(trained(updates=1)))
    thread.start()
    thread.join()
    assert results[0].records[0]["reward"] == whole.records[0]["reward"]


def spoilt(monkeypatch, call, spoil):
    """Let what is not finite into the loss at one call, two calls to an update."""
    trainer = load_trainer_class()
    real, calls = trainer._compute_loss, Counter()

    def loss(self, model, inputs):
        calls["made"] += 1
        value = real(self, model, inputs)
        return spoil(value, next(model.parameters())) if calls["made"] == call else value

    monkeypatch.setattr(trainer, "_compute_loss", loss)


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("loss", lambda loss, weight: loss * torch.nan),
        ("gradient", lambda loss, weight: loss + (weight.sum() * 0).sqrt()),  # 0, its slope is not
    ],
)
def test_what_is_not_finite_stops_training_before_it_spoils_the_weights(
    name, spoil, tmp_path, monkeypatch
):
    spoilt(monkeypatch, 2 * 2 + 1, spoil)
    with pytest.raises(FloatingPointError, match=f"the {name} of update 3 is .* in .*3.parquet"):
        trained(output_dir=tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == [
        "checkpoint-2",
        "nonfinite-3.parquet",
        "settings.json",
        "updates",
    ]
    batch = pd.read_parquet(tmp_path / "nonfinite-3.parquet")
    assert set(batch["quantity"]) == {name} and not batch["value"].isin([0.0]).any()
    assert set(batch["update"]) == {3} and len(batch) == 2 * STEPS
    assert {"prompt", "completion", *TERMS, "reward", "advantage"} < set(batch)
    assert [*StoredUpdates(tmp_path / "updates")] == [1, 2]
    state = load_manager(tmp_path / "checkpoint-2").model.state_dict()
    assert all(weight.isfinite().all() for weight in state.values())


def test_out_of_memory_names_what_to_turn_and_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    def full(loss, weight):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    spoilt(monkeypatch, 3, full)
    with pytest.raises(MemoryError) as raised:
        trained(output_dir=tmp_path, save_every=1, micro_batches=1)
    message = str(raised.value)
    assert message.startswith(
        "train_manager: update 3 ran out of memory; change micro_batches: 1 "
        "(up to num_generations, 2), gradient_checkpointing: False, and "
        "resume (`finemem resume RUN --set NAME=VALUE`"
    )
    assert "start a new run and change, in this order, max_new_tokens: 6, " in message
    assert message.endswith("checkpoint-2")
    assert isinstance(raised.value.__cause__, torch.OutOfMemoryError)
    assert sorted(one.name for one in tmp_path.glob("checkpoint-*")) == [
        "checkpoint-1",
        "checkpoint-2",
    ]


def test_other_errors_are_not_taken_for_too_little_memory(tmp_path, monkeypatch):
    def broken(loss, weight):
        raise RuntimeError("shapes do not match")

    spoilt(monkeypatch, 1, broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        trained()


def test_knobs_come_in_order_and_those_at_their_end_are_left_out():
    arguments = SimpleNamespace(
        num_generations=8,
        steps_per_generation=2,
        per_device_train_batch_size=16,
        use_cpu=False,
        max_completion_length=512,
    )
    builder = SimpleNamespace(max_prompt_tokens=4096)
    said = memory_advice(arguments, builder, ModelSettings(), None)
    places = [
        said.index(knob)
        for knob in (
            "micro_batches: 2",
            "gradient_checkpointing: False",
            "instances_per_update: 4",
            "max_new_tokens: 512",
            "max_prompt_tokens: 4096",
            "precision: auto",
            "no checkpoint yet",
        )
    ]
    assert places == sorted(places) and "resume" not in said
    sampled = ModelSettings(loader="unsloth", lora_rank=8, fast_inference=True)
    said = memory_advice(arguments, builder, sampled, "checkpoint-5")
    assert "gpu_memory_utilization: 0.5" in said.partition("and resume")[0]
    arguments.steps_per_generation, arguments.per_device_train_batch_size = 8, 1
    used = ModelSettings(precision="4bit", lora_rank=16, gradient_checkpointing=True)
    said = memory_advice(arguments, builder, used, "checkpoint-5")
    assert "max_new_tokens" in said and "checkpoint-5" in said and "and resume" not in said
    for gone in ("micro_batches", "instances_per_update", "precision", "gradient_checkpointing"):
        assert gone not in said


@pytest.mark.parametrize(
    "error",
    [
        ValueError(
            "Free memory on device (10/24 GiB) on startup is less than desired GPU memory "
            "utilization (0.9, 21 GiB)."
        ),
        ValueError(
            "No available memory for the cache blocks. Try increasing gpu_memory_utilization."
        ),
        RuntimeError("CUDA error: out of memory"),
        MemoryError(),
    ],
)
def test_outside_training_too_little_memory_also_names_what_to_turn(error):
    assert is_out_of_memory(error)
    sampled = ModelSettings(loader="unsloth", lora_rank=8, fast_inference=True, batch_size=32)
    with pytest.raises(
        MemoryError,
        match=r"^testing the manager ran out of .*; change, in this "
        "order, batch_size: 32, max_new_tokens: the default, max_prompt_tokens: .*, "
        "gpu_memory_utilization: 0.5 .*, precision: auto .*, checkpoint: a smaller",
    ):
        with advising_on_memory("testing", sampled):
            raise error
    frozen = ModelSettings(precision="4bit", lora_rank=8)
    with pytest.raises(MemoryError) as raised, advising_on_memory("loading", frozen):
        raise error
    knobs = str(raised.value).partition("; change, in this order, ")[2]
    assert knobs == "checkpoint: a smaller model"


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no such folder"),
        RuntimeError("shapes"),
        MemoryError("load_manager: lower it"),
    ],
)
def test_what_is_no_lack_of_memory_or_has_its_advice_is_raised_as_it_is(error):
    with pytest.raises(type(error)) as raised, advising_on_memory("loading", ModelSettings()):
        raise error
    assert raised.value is error


class Guessing:
    """A reader that would answer otherwise every time it is asked."""

    name = settings = "guessing"

    def __init__(self):
        self.asked = 0

    def query(self, question, data_source):
        return question

    def read(self, tasks):
        self.asked += len(tasks)
        return [
            Reading(f"guess {self.asked}", (task.items[0][0],) if task.items else None)
            for task in tasks
        ]


def test_what_only_the_process_knew_is_in_the_checkpoint(tmp_path):
    """A reader whose answers cannot be asked for again knows them after a resume."""
    trained(agent=MemoisedAgent(Guessing()), output_dir=tmp_path, save_every=1, updates=2)
    known = json.loads((tmp_path / "checkpoint-2" / READER_MEMO).read_text())
    assert len(known) > 2
    resumed = MemoisedAgent(Guessing())
    trained(agent=resumed, output_dir=tmp_path, resume=True)
    later = json.loads((tmp_path / "checkpoint-3" / READER_MEMO).read_text())
    assert later[: len(known)] == known
    assert resumed.agent.asked == len(later) - len(known)
    restore_reader(again := MemoisedAgent(Guessing()), tmp_path / "checkpoint-2")
    tasks = [
        ReadingTask(
            question,
            source,
            tuple((f"#{n}", one) for n, one in enumerate(contents)),
            tuple(written),
        )
        for (_, question, source, contents, written), _ in known
    ]
    assert [one.answer for one in again.read(tasks)] == [answer for _, (answer, _) in known]
    assert again.calls_made == 0 and again.agent.asked == 0


def test_a_memo_in_a_file_and_an_extractive_reader_need_no_copy(tmp_path):
    on_disk = MemoisedAgent(Guessing())
    on_disk.agent.chat = SimpleNamespace(memo=SimpleNamespace(path="replies.sqlite"))
    save_reader(on_disk, tmp_path)
    assert not (tmp_path / READER_MEMO).exists()
    trained(output_dir=tmp_path, updates=1)
    assert not (tmp_path / "checkpoint-1" / READER_MEMO).exists()
    on_disk.agent.chat.memo.path = None
    save_reader(on_disk, tmp_path)
    assert (tmp_path / READER_MEMO).read_text() == "[]"
    (tmp_path / READER_MEMO).write_text("[1]")
    with pytest.raises(ValueError, match="not readable as a memo"):
        restore_reader(on_disk, tmp_path)


def test_a_run_is_reported_where_it_is_asked_to(monkeypatch, tmp_path):
    """Through transformers' own table of callbacks, with one that records in trackio's place."""
    told = []

    class Recorder(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **others):
            told.append(logs)

    monkeypatch.setitem(integration_utils.INTEGRATION_TO_CALLBACK, "trackio", Recorder)
    monkeypatch.setattr(stops, "can_report", lambda report_to: True)
    done = trained(report_to="trackio", output_dir=tmp_path)
    rewards = [logs["reward"] for logs in told if "reward" in logs]
    assert rewards == [record["reward"] for record in done.records] and len(rewards) == UPDATES
    assert "report_to" not in json.loads((tmp_path / "settings.json").read_text())


def test_a_reporter_that_is_missing_is_refused_before_anything_is_loaded(monkeypatch):
    monkeypatch.setattr(stops.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(training_run, "load_manager", None)
    with pytest.raises(ModuleNotFoundError, match="pip install wandb"):
        trained(report_to="wandb")
    with pytest.raises(ValueError, match="expected one of none, tensorboard, trackio, wandb"):
        check_reporter("mlflow")
