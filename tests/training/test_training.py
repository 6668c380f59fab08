"""Per-step GRPO: advantages and gradient against hand-written ones, resume, and what is refused.

Random weights are trained, see `tests.helpers.training_runs`.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections import Counter, defaultdict

import pytest
import torch
import trl
from transformers import TrainerState

from finemem_lib.advantages import group_relative
from finemem_lib.credit.rules import assign
from finemem_lib.data.faults import EvidenceFaults, with_faults
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.data.worked_example import worked_example
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.prompts import CompactPromptBuilder
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.rewards import RewardSettings, hybrid_reward, outcome_reward
from finemem_lib.seeds import stable_seed
from finemem_lib.training import run as training_run
from finemem_lib.training.checkpoints import hold_settings
from finemem_lib.training.run import train_manager
from finemem_lib.training.schemes import PAPER_SCHEMES, TERMS, RewardScheme
from finemem_lib.training.second_process import SecondProcess
from finemem_lib.training.trainer import trajectory_metrics
from finemem_lib.training.trl_adapter import TwoProcesses, load_trainer_class
from tests.helpers.benchmarks import benchmark_module
from tests.helpers.training_runs import (
    LIMIT,
    G,
    SentencePicker,
    assert_equal,
    manager,
    mixed_instances,
    rows_in_loss,
    run,
)

torch.set_num_threads(1)  # the models are too small to share, and tests run side by side

pytestmark = pytest.mark.usefixtures("frozen_imports")


class DistinctPicker(SentencePicker):
    """Like SentencePicker, but never twice the same sentence, so that all is valid."""

    def parse(self, completion, prompt):
        return tuple(dict.fromkeys(super().parse(completion, prompt)))


class Silent(CompactPromptBuilder):
    """Reads no operation from any completion."""

    def parse(self, completion, prompt):
        return ()


def scheme_total(reward, scheme, settings):
    """The reward of one step under a scheme, written out from its definition."""
    outcome = reward.eara if scheme in ("+EARA", "Fine-Mem") else reward.outcome
    chunk = reward.chunk if scheme in ("+CSR", "Fine-Mem") else None
    terms = [
        (1.0, outcome),
        (1.0, reward.format),
        (settings.w1, chunk),
        (settings.w2, reward.compression),
    ]
    known = [weight * term for weight, term in terms if term is not None]
    return sum(known) if known else None


def expected_rows(groups, scheme, settings):
    """Return (prompt ids, completion ids, advantage) of every step of every rollout."""
    rows = []
    for group in groups:
        totals = [
            [scheme_total(reward, scheme, settings) for reward in hybrid_reward(one, settings)]
            for one in group
        ]
        for one, advantages in zip(group, group_relative(totals), strict=True):
            rows += [
                (step.prompt_ids, step.completion_ids, advantage or 0.0)
                for step, advantage in zip(one.steps, advantages, strict=True)
            ]
    return rows


@pytest.mark.parametrize("scheme", PAPER_SCHEMES)
def test_advantages_in_the_loss_are_those_per_step(tmp_path, scheme):
    settings = RewardSettings(empty_format=None)
    done = run(tmp_path, mixed_instances(), scheme=scheme, rewards=settings, capacity=3)
    groups = done.trainer.kept[1]
    assert [[one.num_steps for one in group] for group in groups] == [
        [2] * G,
        [4] * G,
        [3] * G,
        [2] * G,
    ]
    expected, found = defaultdict(list), defaultdict(list)
    for rows, where in (
        (expected_rows(groups, scheme, settings), expected),
        (rows_in_loss(done.inputs), found),
    ):
        for prompt, completion, advantage in rows:
            where[prompt, completion].append(advantage)
    assert found.keys() == expected.keys()
    for row, advantages in expected.items():
        assert sorted(found[row]) == pytest.approx(sorted(advantages), abs=1e-6)
    flat = [advantage for advantages in expected.values() for advantage in advantages]
    assert max(flat) > 0.5 and len(flat) == G * 11

    totals = [
        scheme_total(reward, scheme, settings)
        for group in groups
        for one in group
        for reward in hybrid_reward(one, settings)
    ]
    known = [total for total in totals if total is not None]
    assert len(totals) - len(known) == (0 if "chunk" in PAPER_SCHEMES[scheme].terms else 2 * G)
    assert done.trainer.state.log_history[0]["reward"] == pytest.approx(sum(known) / len(known))


def test_a_scheme_with_a_credit_rule_is_trained_on(tmp_path):
    """One update on "eara-used", whose value stands in the record and decides the advantages."""
    scheme = RewardScheme("used items", {"eara-used": 1.0, "format": 0.5})
    done = run(tmp_path, mixed_instances()[:2], scheme=scheme, capacity=3)
    expected = []
    for group in done.trainer.kept[1]:
        totals = [
            [
                credit + 0.5 * reward.format
                for credit, reward in zip(
                    assign("eara-used", one).credit, hybrid_reward(one), strict=True
                )
            ]
            for one in group
        ]
        expected += [value for row in group_relative(totals) for value in row]
    found = [row[2] for row in rows_in_loss(done.inputs)]
    assert sorted(found) == pytest.approx(sorted(expected), abs=1e-6) and max(found) > 0.5
    [record] = [entry for entry in done.trainer.state.log_history if "reward" in entry]
    assert 0 < record["rewards/eara-used/mean"] < 1 and any(
        grad.any() for grad in done.gradient.values()
    )


def test_annealed_w1_and_faulty_evidence_reach_the_loss(tmp_path):
    """Three updates: w1 is 0.5, 0.25, 0; the kept trajectories are as they were played."""
    faults = EvidenceFaults(drop=0.3, swap=0.5)
    settings = RewardSettings(beta=1.0, empty_format=None)
    done = run(
        tmp_path,
        mixed_instances()[:2],
        updates=3,
        rewards=settings,
        w1_until=3,
        evidence_faults=faults,
    )
    records = [entry for entry in done.trainer.state.log_history if "reward" in entry]
    assert [record["w1"] for record in records] == [0.5, 0.25, 0.0]
    for update, record in enumerate(records):
        played = done.trainer.kept[update + 1]
        faulty = [
            [with_faults(one, faults, stable_seed(3, update)) for one in group] for group in played
        ]
        assert faulty != played
        expected, unlike = (
            sorted(row[2] for row in expected_rows(groups, "Fine-Mem", weights))
            for groups, weights in (
                (faulty, dataclasses.replace(settings, w1=record["w1"])),
                (played, settings),
            )
        )
        found = sorted(row[2] for row in rows_in_loss(done.inputs[update * G : update * G + G]))
        assert found == pytest.approx(expected, abs=1e-6)
        assert found != pytest.approx(unlike, abs=1e-3)


def policy_gradient(model, rows, loss_type):
    """The gradient of per-step GRPO at the sampling policy, one unpadded row at a time.

    The ratio is 1 there, so that nothing is clipped: ``-A * grad log p``, averaged over all tokens
    ("dapo") or over the tokens of a row and then over the rows ("grpo").
    """
    model.zero_grad()
    tokens = sum(len(completion) for _, completion, _ in rows)
    for prompt, completion, advantage in rows:
        logits = model(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
        logprobs = logits.log_softmax(-1)[range(len(completion)), list(completion)]
        scale = tokens if loss_type == "dapo" else len(rows) * len(completion)
        (-advantage * logprobs.sum() / scale).backward()
    return {name: weight.grad.clone() for name, weight in model.named_parameters()}


@pytest.mark.parametrize(("loss_type", "micro_batches"), [("dapo", 4), ("dapo", 1), ("grpo", 2)])
def test_the_first_gradient_is_the_hand_written_one(tmp_path, loss_type, micro_batches):
    done = run(
        tmp_path,
        mixed_instances(),
        loss_type=loss_type,
        micro_batches=micro_batches,
        rewards=RewardSettings(),
    )
    rows = expected_rows(done.trainer.kept[1], "Fine-Mem", RewardSettings())
    reference = policy_gradient(manager().model, rows, loss_type)
    difference = sum(
        (done.gradient[name] - grad).square().sum() for name, grad in reference.items()
    )
    size = sum(grad.square().sum() for grad in reference.values())
    assert size > 0 and done.gradient.keys() == reference.keys()
    assert (difference / size).sqrt().item() < 1e-5


def test_the_plain_loop_of_the_benchmark_has_the_same_gradient(tmp_path):
    """Else their times could not be compared."""
    done = run(tmp_path, mixed_instances(), rewards=RewardSettings())
    model = manager().model
    pad = done.trainer.player.builder.tokenizer.pad_token_id
    benchmark_module("training").backward(model, pad, done.trainer.kept[1], RewardSettings())
    for name, weight in model.named_parameters():
        assert torch.allclose(weight.grad, done.gradient[name], rtol=1e-3, atol=1e-5), name


def test_benchmark_runs_and_writes_what_it_prints(tmp_path, monkeypatch, capsys):
    output = tmp_path / "training.json"
    monkeypatch.setattr(sys, "argv", ["training.py", "--quick", "--output", str(output)])
    benchmark_module("training").main()
    found, printed = json.loads(output.read_text()), capsys.readouterr().out
    for part in ("generation", "environment", "learning", "total"):
        assert f"{found['ours'][part]:.3f}" in printed and f"{found['plain'][part]:.3f}" in printed
        assert f"{found['speedup'][part]:.2f}" in printed
    for one in (found["ours"], found["plain"]):
        assert one["tokens"] > 0 and one["generation"] < one["total"]
    with pytest.raises(SystemExit):
        benchmark_module("training").main()
    assert "exists" in capsys.readouterr().err


def test_an_update_makes_what_had_an_advantage_more_likely(tmp_path):
    done = run(tmp_path, mixed_instances()[:3], learning_rate=1e-3)
    before, gain = manager().model, 0.0
    with torch.no_grad():
        for prompt, completion, advantage in rows_in_loss(done.inputs):
            ids, picked = torch.tensor([prompt + completion]), list(completion)
            after_less_before = [
                model(ids)
                .logits[0, len(prompt) - 1 : -1]
                .log_softmax(-1)[range(len(picked)), picked]
                .sum()
                for model in (done.model, before)
            ]
            gain += advantage * (after_less_before[0] - after_less_before[1]).item()
    assert gain > 0


def test_dead_groups_move_nothing(tmp_path):
    done = run(tmp_path, mixed_instances()[:3], builder_type=Silent)
    [record] = [entry for entry in done.trainer.state.log_history if "reward" in entry]
    assert record["frac_reward_zero_std"] == 1.0
    assert record["advantages/max_abs"] == 0.0
    assert all(not grad.any() for grad in done.gradient.values())
    assert_equal(done.model.state_dict(), manager(Silent).model.state_dict())


def test_advantages_of_nearly_equal_rewards_are_not_blurred(tmp_path):
    settings = RewardSettings(w2=1e-4, empty_format=1.0)
    bare = [
        dataclasses.replace(one, questions=(), chunk_questions=None) for one in mixed_instances()
    ]
    done = run(
        tmp_path, bare[:3], builder_type=DistinctPicker, scheme="outcome-only", rewards=settings
    )
    expected = [row[2] for row in expected_rows(done.trainer.kept[1], "outcome-only", settings)]
    found = [row[2] for row in rows_in_loss(done.inputs)]
    assert 1e-3 < max(expected) < 0.5  # a spread far below TRL's eps of 1e-4
    assert sorted(found) == pytest.approx(sorted(expected), abs=1e-6)


def test_completions_end_at_the_limit_and_hold_no_padding(tmp_path):
    done = run(tmp_path, mixed_instances(), updates=3)  # enough that an unguarded pad is drawn
    pad, end = done.trainer.player.builder.tokenizer.pad_token_id, done.model.config.eos_token_id
    completions = [completion for _, completion, _ in rows_in_loss(done.inputs)]
    assert max(map(len, completions)) == LIMIT
    assert all(completion and pad not in completion for completion in completions)
    assert all(end not in completion[:-1] for completion in completions)


def test_records_agree_with_the_trajectories(tmp_path):
    done = run(tmp_path, mixed_instances(), updates=2, capacity=3)
    records = [entry for entry in done.trainer.state.log_history if "reward" in entry]
    assert [record["step"] for record in records] == [1, 2]
    for record in records:
        played = [one for group in done.trainer.kept[record["step"]] for one in group]
        scores = [score for one in played if (score := outcome_reward(one)) is not None]
        assert record["accuracy"] == pytest.approx(sum(scores) / len(scores))
        steps = [step for one in played for step in one.steps]
        outcomes = [outcome for step in steps for outcome in step.outcomes]
        assert record["operations/INSERT"] == pytest.approx(len(outcomes) / len(steps))
        invalid = Counter(outcome.applied for outcome in outcomes)[False] / len(outcomes)
        assert record["invalid_share"] == pytest.approx(invalid)
        assert record["memory_items"] <= 3
        for term in TERMS:
            values = [
                getattr(reward, term)
                for one in played
                for reward in hybrid_reward(one)
                if getattr(reward, term) is not None
            ]
            assert record[f"rewards/{term}/mean"] == pytest.approx(sum(values) / len(values))
        spent = record["seconds/generation"] + record["seconds/environment"]
        assert 0 < spent < record["step_time"]


def test_what_the_prompts_could_not_hold_is_a_metric():
    example = worked_example()
    steps = (
        dataclasses.replace(example.steps[0], prompt_truncated_tokens=6),
        dataclasses.replace(example.steps[1], prompt_omitted_items=2),
        *example.steps[2:],
    )
    metrics = trajectory_metrics([example, dataclasses.replace(example, steps=steps)])
    assert metrics["prompt/truncated_tokens"] == 6 / 8
    assert metrics["prompt/omitted_items"] == 2 / 8


def test_evaluation_plays_without_training(tmp_path):
    done = run(tmp_path, mixed_instances(), num_generations_eval=2, per_device_eval_batch_size=4)
    before = {name: weight.clone() for name, weight in done.model.state_dict().items()}
    metrics = done.trainer.evaluate(done.trainer.train_dataset)
    assert 0 <= metrics["eval_accuracy"] <= 1
    assert_equal(done.model.state_dict(), before)


def trained(monkeypatch, **settings):
    monkeypatch.setattr(training_run, "load_manager", lambda checkpoint, **settings: manager())
    return train_manager(
        "random weights",
        updates=4,
        instances_per_update=2,
        seed=5,
        scheme="Fine-Mem",
        rollout=RolloutSettings(num_generations=G, capacity=4),
        keep_updates=(1, 4),
        stream=StreamSettings(num_chunks=3),
        **settings,
    )


def test_a_run_is_not_resumed_with_other_settings(tmp_path, monkeypatch):
    hold_settings(tmp_path, False, {"scheme": "Fine-Mem", "seed": 5})
    (tmp_path / "checkpoint-2").mkdir()
    with pytest.raises(ValueError, match=r"trained with beta None, got 0.5; resume it with the"):
        trained(monkeypatch, output_dir=tmp_path, resume=True, beta=0.5)
    hold_settings(tmp_path, True, {"scheme": "Fine-Mem", "seed": 5})
    for spoilt in ("[]", "{"):
        (tmp_path / "settings.json").write_text(spoilt)
        with pytest.raises(ValueError, match="is not readable .*the settings of the run are"):
            trained(monkeypatch, output_dir=tmp_path, resume=True)
    (tmp_path / "settings.json").unlink()
    with pytest.raises(
        ValueError, match="put the file back, or start a new run in another output_dir"
    ):
        trained(monkeypatch, output_dir=tmp_path, resume=True, learning_rate=1.0)
    assert not (tmp_path / "settings.json").exists()


def test_a_run_is_not_resumed_on_other_instances(tmp_path, monkeypatch):
    """Incident: other texts and questions under the same ids were taken for the same data."""
    instances = planted_instances("train", 8, 5, StreamSettings(num_chunks=3))
    trained(monkeypatch, output_dir=tmp_path, instances=instances)
    first = instances[0].questions[0]
    asked = dataclasses.replace(first, answers=("something else",))
    other = dataclasses.replace(instances[0], questions=(asked, *instances[0].questions[1:]))
    with pytest.raises(ValueError, match="was trained with instances"):
        trained(monkeypatch, output_dir=tmp_path, instances=[other, *instances[1:]], resume=True)
    assert trained(monkeypatch, output_dir=tmp_path, instances=instances, resume=True).records


def test_a_run_is_resumed_with_settings_that_take_less_memory(tmp_path, monkeypatch):
    """What out-of-memory advises can be done, and the result differs by rounding only."""
    whole = trained(monkeypatch, micro_batches=1)
    with pytest.raises(
        MemoryError,
        match="change micro_batches: 1 .up to num_generations, 4., "
        "gradient_checkpointing: False, and resume .`finemem",
    ):
        trained(monkeypatch, output_dir=tmp_path, micro_batches=1, on_update=full_at_third)
    resumed = trained(
        monkeypatch,
        output_dir=tmp_path,
        resume=True,
        micro_batches=4,
        model=ModelSettings(gradient_checkpointing=True, gpu_memory_utilization=0.2),
    )
    assert [record["step"] for record in resumed.records] == [1, 2, 3, 4]
    assert resumed.trajectories[4] == whole.trajectories[4]
    weights = resumed.manager.model.state_dict()
    for name, weight in whole.manager.model.state_dict().items():
        torch.testing.assert_close(weights[name], weight, rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="trained with model"):
        trained(
            monkeypatch,
            output_dir=tmp_path,
            resume=True,
            micro_batches=1,
            model=ModelSettings(max_new_tokens=3),
        )


def full_at_third(record):
    if record["step"] == 3:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@pytest.mark.parametrize("use_vllm", [True, False])
def test_padding_is_never_sampled_by_what_trl_samples_with(monkeypatch, use_vllm):
    """Unsloth would mask a sampled pad token out; vLLM has another parameter for it."""

    class Built(Exception):
        pass

    def build(self, *, args, **others):
        raise Built(args.generation_kwargs)

    monkeypatch.setattr(trl.GRPOTrainer, "__init__", build)
    with pytest.raises(Built) as built:
        trained(monkeypatch, use_vllm=use_vllm, generation_kwargs={"seed": 3})
    pad = manager().builder.tokenizer.pad_token_id
    never = {"logit_bias": {pad: -100.0}} if use_vllm else {"suppress_tokens": [pad]}
    assert built.value.args[0] == {**never, "seed": 3}


def test_a_resumed_run_makes_the_updates_of_an_uninterrupted_one(tmp_path, monkeypatch):
    whole = trained(monkeypatch)

    class Killed(BaseException):
        pass

    def killed_at_third(record):
        if record["step"] == 3:
            raise Killed

    torch.manual_seed(99)  # what was drawn before must not matter
    with pytest.raises(Killed):
        trained(monkeypatch, output_dir=tmp_path, save_every=2, on_update=killed_at_third)
    (tmp_path / ".partial" / "checkpoint-3").mkdir(parents=True)  # a save that was cut off
    torch.manual_seed(7)
    resumed = trained(monkeypatch, output_dir=tmp_path, save_every=2, resume=True)

    weights = resumed.manager.model.state_dict()
    fresh = manager().model.state_dict()
    assert_equal(weights, whole.manager.model.state_dict())
    assert any(not torch.equal(weight, fresh[name]) for name, weight in weights.items())
    assert [record["step"] for record in resumed.records] == [1, 2, 3, 4]
    for one, other in zip(whole.records, resumed.records, strict=True):
        assert one["reward"] == other["reward"] and one["entropy"] == other["entropy"]
    assert resumed.trajectories[4] == whole.trajectories[4]
    assert resumed.checkpoint == tmp_path / "checkpoint-4"
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2",
        "checkpoint-4",
        "settings.json",
        "updates",
    ]
    with pytest.raises(FileExistsError, match="already holds checkpoint-4"):
        trained(monkeypatch, output_dir=tmp_path)


def test_a_checkpoint_that_could_not_be_written_leaves_no_half_one(tmp_path, monkeypatch):
    def full_disk(state, path):
        raise OSError("no space left on device")

    monkeypatch.setattr(TrainerState, "save_to_json", full_disk)
    with pytest.raises(OSError, match="no space left"):
        trained(monkeypatch, output_dir=tmp_path, save_every=2)
    assert not list(tmp_path.glob("checkpoint-*"))


def test_seeds_decide_the_run_and_watching_does_not_change_it(monkeypatch):
    first = trained(monkeypatch)
    second = trained(monkeypatch, on_update=lambda record: torch.rand(3))
    assert first.trajectories == second.trajectories and first.checkpoint is None
    assert_equal(first.manager.model.state_dict(), second.manager.model.state_dict())


@pytest.mark.long
@pytest.mark.parametrize(
    ("asked", "variable", "used"), [(None, None, 1), (None, "2", 2), (3, "2", 3)]
)
def test_training_computes_on_one_thread_unless_more_are_asked_for(
    monkeypatch, asked, variable, used
):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if variable:
        monkeypatch.setenv("OMP_NUM_THREADS", variable)
    seen, before = [], torch.get_num_threads()
    trained(monkeypatch, threads=asked, on_update=lambda _: seen.append(torch.get_num_threads()))
    assert set(seen) == {used} and torch.get_num_threads() == before


@pytest.mark.skipif(sys.platform != "linux", reason="a second process is forked on Linux only")
def test_two_processes_train_what_one_trains(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})
    ended, asked = [], SecondProcess.ask

    def ask(self, *request):
        ended.append(self.process)
        asked(self, *request)

    monkeypatch.setattr(SecondProcess, "ask", ask)
    one, two = (trained(monkeypatch, threads=1, processes=number) for number in (1, 2))
    assert len(ended) == 4 and not any(process.is_alive() for process in ended)
    timed = ("seconds/", "step_time", "num_tokens_per", "train_")
    for first, second in zip(one.records, two.records, strict=True):
        assert first.keys() == second.keys()
        assert all(first[name] == second[name] for name in first if not name.startswith(timed))
    assert one.trajectories == two.trajectories
    assert_equal(one.manager.model.state_dict(), two.manager.model.state_dict())


@pytest.mark.skipif(sys.platform != "linux", reason="a second process is forked on Linux only")
def test_an_error_of_the_second_process_ends_the_training(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1})

    def gradients(self, weights, batches):
        raise ArithmeticError("in the second process")

    monkeypatch.setattr(TwoProcesses, "_gradients", gradients)
    with pytest.raises(ArithmeticError, match="in the second process"):
        trained(monkeypatch, threads=1)
    monkeypatch.setattr(TwoProcesses, "_gradients", lambda *request: os._exit(1))
    with pytest.raises(RuntimeError, match="its second process has ended.*Train with processes=1"):
        trained(monkeypatch, threads=1)


@pytest.mark.parametrize("frozen", [True, False])
def test_old_objects_are_exempt_from_garbage_collection_within_the_block(frozen):
    if not frozen:
        gc.unfreeze()
    with training_run.old_objects():
        assert gc.get_freeze_count() > 0
    assert bool(gc.get_freeze_count()) == frozen


def test_planted_splits_share_no_instance():
    train = planted_instances("train", 20, seed=0)
    held_out = planted_instances("held-out", 20, seed=0)
    ids = [one.instance_id for one in (*train, *held_out)]
    assert len(set(ids)) == 40
    assert planted_instances("train", 5, seed=0) == train[:5]
    assert planted_instances("train", 5, seed=1) != train[:5]


def test_misuse_is_refused_before_anything_is_played(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match="expected a divisor of num_generations"):
        run(tmp_path, mixed_instances(), micro_batches=3)
    with pytest.raises(ValueError, match="got 1 instances, expected at least 2"):
        trained(monkeypatch, instances=mixed_instances()[:1])
    with pytest.raises(ValueError, match="threads is 0, expected a whole number from 1"):
        trained(monkeypatch, threads=0)
    with pytest.raises(ValueError, match="processes is 3, expected 1, 2 or None"):
        trained(monkeypatch, processes=3)
    with pytest.raises(ValueError, match="w1_until is 1, expected an update from 2 on"):
        trained(monkeypatch, w1_until=1)
    with pytest.raises(ValueError, match="no checkpoint in"):
        trained(monkeypatch, output_dir=tmp_path / "new", resume=True)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_unsloth_needs_a_gpu():
    with pytest.raises(RuntimeError, match="CUDA"):
        load_trainer_class(unsloth=True)


def test_importing_the_module_loads_no_heavy_library():
    code = (
        "import sys, finemem_lib.training;"
        "print(sorted({'torch', 'transformers', 'trl', 'datasets'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
