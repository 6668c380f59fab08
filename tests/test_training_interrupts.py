"""What training keeps when it is stopped: by an interrupt anywhere, or by what is not finite."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections import Counter

import pytest
import torch
from test_training import assert_equal, manager
from transformers import Trainer, TrainerState

from finemem_lib import training
from finemem_lib.planted import StreamSettings
from finemem_lib.policy import load_manager
from finemem_lib.rollout import LockstepRollouts, RolloutSettings
from finemem_lib.training import load_trainer_class, train_manager

pytestmark = pytest.mark.usefixtures("frozen_imports")

UPDATES, STEPS = 3, 2


@pytest.fixture(autouse=True)
def interruptible(monkeypatch):
    """Random weights to train, and Python's own handler, which a shell may have switched off."""
    monkeypatch.setattr(training, "load_manager", lambda checkpoint: manager())
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    signal.signal(signal.SIGINT, before)


def trained(**settings):
    return train_manager(**{
        "updates": UPDATES, "instances_per_update": 1, "seed": 5, "w1_until": UPDATES,
        "rollout": RolloutSettings(num_generations=2), "keep_updates": range(1, UPDATES + 1),
        "stream": StreamSettings(num_chunks=STEPS), **settings,
    })


@pytest.fixture(scope="module")
def whole():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "load_manager", lambda checkpoint: manager())
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
    "rewards": (training, "hybrid_reward", 4, interrupt, 1),
    "optimizer step, by signal": (torch.optim.AdamW, "step", 2, press_stop, 2),
    "log, by signal": (Trainer, "log", 2, press_stop, 2),
    "checkpoint": (TrainerState, "save_to_json", 1, interrupt, 2),
}


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
        f"checkpoint-{finished}", "settings.json"
    ]

    resumed = trained(output_dir=tmp_path, save_every=2, resume=True)
    assert not resumed.interrupted
    assert same_records(resumed.records, whole.records)
    assert_equal(resumed.manager.model.state_dict(), whole.manager.model.state_dict())
    assert resumed.trajectories[UPDATES] == whole.trajectories[UPDATES]


def same_records(records, others):
    """Whether records agree in all but the seconds that something took."""
    def untimed(record):
        return {
            name: value for name, value in record.items()
            if "seconds" not in name and "time" not in name
        }

    return list(map(untimed, records)) == list(map(untimed, others))


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
from finemem_lib.planted import StreamSettings
from finemem_lib.rollout import RolloutSettings
from finemem_lib.training import train_manager
torch.set_num_threads(1)
signal.signal(signal.SIGINT, signal.default_int_handler)
done = train_manager(
    updates=500, instances_per_update=1, rollout=RolloutSettings(num_generations=2),
    stream=StreamSettings(num_chunks=2), output_dir=sys.argv[1], save_every=10_000,
    on_update=lambda record: print(record["step"], flush=True),
)
print(json.dumps([done.interrupted, len(done.records), done.checkpoint.name]))
"""


def test_a_real_interrupt_of_another_process(tmp_path):
    child = subprocess.Popen(
        [sys.executable, "-c", CHILD, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    try:
        for line in child.stdout:
            if line.strip() == "2":
                break
        child.send_signal(signal.SIGINT)
        output, _ = child.communicate(timeout=60)
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
    assert sorted(one.name for one in tmp_path.iterdir()) == [checkpoint, "settings.json"]


def test_interrupts_are_held_back_then_raised_once():
    interrupts = training._Interrupts()
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


@pytest.mark.parametrize(("name", "spoil"), [
    ("loss", lambda loss, weight: loss * torch.nan),
    ("gradient", lambda loss, weight: loss + (weight.sum() * 0).sqrt()),  # 0, its slope is not
])
def test_what_is_not_finite_stops_training_before_it_spoils_the_weights(
    name, spoil, tmp_path, monkeypatch
):
    spoilt(monkeypatch, 2 * 2 + 1, spoil)
    with pytest.raises(FloatingPointError, match=f"the {name} of update 3 is .* learning_rate"):
        trained(output_dir=tmp_path)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["checkpoint-2", "settings.json"]
    state = load_manager(tmp_path / "checkpoint-2").model.state_dict()
    assert all(weight.isfinite().all() for weight in state.values())
