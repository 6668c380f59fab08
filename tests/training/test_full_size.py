"""A full-size profile from end to end on the CPU: the real architecture, chat template and servers,
two narrow layers in place of the weights, killed after its first update and resumed."""

from __future__ import annotations

import functools
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import psutil
import pytest
import torch

from finemem_lib.data.memalpha import load_instances
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.protocol import Observation
from finemem_lib.trajectory import Chunk, Instance
from finemem_lib.util.provenance import workbench_root
from tests.helpers.fault_server import FaultServer
from tests.helpers.patience import LAST_RESORT
from tests.helpers.small_models import chat_template, save_model

pytest.importorskip("openai", reason="the server extra is not installed")
pytestmark = [pytest.mark.notebook, pytest.mark.long]

torch.set_num_threads(1)
PROFILE, GENERATIONS, CHUNKS = "qwen3-1.7b-16gb", 4, 2
FACTS = (
    ("Mia", "Oslo"),
    ("Leo", "Rome"),
    ("Ana", "Lima"),
    ("Tom", "Cairo"),
    ("Eva", "Paris"),
    ("Ida", "Tokyo"),
    ("Ben", "Delhi"),
    ("Zoe", "Accra"),
    ("Max", "Quito"),
    ("Lea", "Seoul"),
    ("Jan", "Sofia"),
    ("Amy", "Tunis"),
)
SETTINGS = {
    # What a CPU cannot have of the profile, and sizes.
    "loader": "transformers",
    "precision": "auto",
    "max_prompt_tokens": 1024,
    "max_new_tokens": 40,
    "04.updates": 2,
    "04.instances_per_update": 1,
    "04.num_generations": GENERATIONS,
    "04.held_out": 1,
    "04.save_every": 1,
    "resamples": 100,
    "04.learning_rate": 0.001,
}


def statement(person, city):
    return f"{person} lives in {city}."


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Write a small Qwen3 that has learnt to write one operation, on any of the facts."""
    folder = tmp_path_factory.mktemp("checkpoint") / "small-qwen3"
    save_model(folder, texts=[statement(*fact) for fact in FACTS] * 3, hidden_size=48)
    manager = load_manager(folder, model=ModelSettings(max_prompt_tokens=1024))
    tokenizer, model, rng = manager.tokenizer, manager.model, random.Random(0)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.1, 130)
    model.train()
    for update in range(130):
        rows = []
        for _ in range(4):
            chunk = Chunk(" ".join(statement(*fact) for fact in rng.sample(FACTS, 2)), 8)
            instance = Instance("i", "squad", "AR", (chunk,), ())
            prompt = manager.builder.render(Observation(instance, (), chunk, 1)).ids
            said = (
                json.dumps(
                    [{"op": "INSERT", "content": statement(*rng.choice(FACTS))}],
                    separators=(",", ":"),
                )
                if rng.random() < 0.8
                else '[{"op":"SKIP"}]'
            )
            # Most updates see the prompt's end only: what an operation looks like costs less so.
            prompt = prompt[-40:] if update < 100 else prompt
            rows.append((prompt, (*tokenizer.encode(said), tokenizer.eos_token_id)))
        width = max(len(before) + len(after) for before, after in rows)
        ids = torch.full((len(rows), width), tokenizer.pad_token_id)
        labels = torch.full_like(ids, -100)
        for row, (before, after) in enumerate(rows):
            ids[row, : len(before) + len(after)] = torch.tensor((*before, *after))
            labels[row, len(before) : len(before) + len(after)] = torch.tensor(after)
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    manager.save(folder)
    return folder


def write_data(path):
    """Write three instances of two chunks with two facts each, all asked for."""
    lines = []
    for number in range(3):
        told = FACTS[4 * number : 4 * number + 4]
        lines.append(
            json.dumps(
                {
                    "instance_id": f"cities-{number}",
                    "data_source": "squad",
                    "chunks": [
                        " ".join(statement(*fact) for fact in told[start : start + 2])
                        for start in (0, 2)
                    ],
                    "questions_and_answers": [
                        {"question": f"Where does {person} live?", "answer": city}
                        for person, city in told
                    ],
                }
            )
        )
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


class Rules:
    """Answers every role by rule; a reader's call after the first checkpoint of a run is held until
    `gone` is set, and then fails, as the machine that asked is gone."""

    def __init__(self, runs):
        self.runs = runs
        self.held, self.gone = threading.Event(), threading.Event()

    def answer(self, request):
        said = request["messages"][-1]["content"]
        schema = request.get("response_format", {}).get("json_schema", {}).get("name")
        if schema == "WrittenQuestions":
            return json.dumps(
                {
                    "questions": [
                        {"question": f"Where does {person} live?", "answer": city}
                        for person, city in re.findall(r"(\w+) lives in (\w+)\.", said)
                    ]
                }
            )
        if not self.gone.is_set() and list(self.runs.rglob("checkpoint-1")):
            self.held.set()
            self.gone.wait(LAST_RESORT)
            raise ConnectionError("whoever asked is gone")
        person = re.search(r"Where does (\w+) live\?", said)[1]
        found = re.search(rf"{person} lives in (\w+)\.", said)
        return found[1] if found else "unknown"


def finemem(runs, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "finemem_lib", *arguments],
        cwd=workbench_root(),
        text=True,
        env={**os.environ, "FINEMEM_RUNS_DIR": str(runs), "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def kill(process):
    """End a process and all that it started at once, as a power cut does."""
    if process.poll() is None:
        family = [*psutil.Process(process.pid).children(recursive=True), process]
        for one in family:
            one.kill()
        process.communicate()
        psutil.wait_procs(family[:-1], timeout=30)


@dataclass
class Resumed:
    """A run of the profile that was killed in its second update and resumed."""

    folder: Path
    data: Path
    server: FaultServer
    before: dict
    first_update: bytes
    printed: str

    @functools.cached_property
    def manifest(self):
        return json.loads((self.folder / "manifest.json").read_text())


@pytest.fixture(scope="module")
def resumed(checkpoint, tmp_path_factory):
    place = tmp_path_factory.mktemp("full_size")
    runs, data = place / "runs", write_data(place / "cities.jsonl")
    rules = Rules(runs)
    with FaultServer(rules.answer) as server:
        models = place / "models.yaml"
        one = {"model": "m", "base_url": server.base_url, "backoff": 0.01}
        models.write_text(json.dumps(dict.fromkeys(("reader", "verifier", "teacher"), one)))
        settings = {**SETTINGS, "checkpoint": checkpoint, "models": models}
        words = [word for name, value in settings.items() for word in ("--set", f"{name}={value}")]
        process = finemem(
            runs, "run", "--profile", PROFILE, "--run-id", "full", "--data", str(data), *words
        )
        try:
            until = time.monotonic() + LAST_RESORT
            while not rules.held.wait(0.2):
                assert process.poll() is None, process.communicate()[0]
                assert time.monotonic() < until, "the second update was not reached"
        finally:
            kill(process)
        before = json.loads((runs / "full" / "manifest.json").read_text())
        [first_update] = runs.rglob("updates/000001.parquet")
        first_update = first_update.read_bytes()
        rules.gone.set()
        process = finemem(runs, "resume", "full")
        printed, _ = process.communicate(timeout=LAST_RESORT)
        assert process.returncode == 0, printed
    return Resumed(runs / "full", data, server, before, first_update, printed)


def test_it_was_killed_in_training_and_went_on_there(resumed):
    assert [one["status"] for one in resumed.before["notebooks"]][:3] == ["ok", "ok", "running"]
    manifest = resumed.manifest
    assert manifest["status"] == "ok" and manifest["profile"] == PROFILE
    assert len(manifest["resumed"]) == 1
    assert [one["name"][:2] for one in manifest["notebooks"]] == ["01", "02", "04", "05", "06"]
    assert manifest["notebooks"][:2] == resumed.before["notebooks"][:2]
    assert not (resumed.folder / "scratch").exists()


def test_both_updates_are_there_the_first_as_it_was(resumed):
    records = pd.read_parquet(resumed.folder / "training.parquet")
    assert list(records["step"]) == [1, 2]
    folder = resumed.folder / "training_updates"
    assert (folder / "000001.parquet").read_bytes() == resumed.first_update
    for update in (1, 2):
        rows = pd.read_parquet(folder / f"{update:06}.parquet")
        assert list(rows["update"]) == [update] * GENERATIONS * CHUNKS
        assert set(rows["instance"]) == {f"cities-{update - 1}"}
        assert rows["completion"].str.contains("lives in").mean() > 0.3
        assert rows["reward"].notna().all() and rows["advantage"].abs().max() > 0.1
        for _, group in rows.groupby("step"):
            assert group["advantage"].sum() == pytest.approx(0, abs=1e-4)


def test_the_model_was_shown_its_own_chat_template_without_thinking(resumed, checkpoint):
    rows = pd.read_parquet(resumed.folder / "training_updates" / "000002.parquet")
    tokenizer = load_manager(checkpoint).tokenizer
    assert tokenizer.chat_template == chat_template("qwen3")
    for prompt, ids in zip(rows["prompt"], rows["prompt_ids"], strict=True):
        assert prompt.startswith("<|im_start|>system\n") and prompt.count("<|im_start|>") == 3
        assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
        assert tokenizer.encode(prompt) == list(ids) and len(ids) <= SETTINGS["max_prompt_tokens"]


def test_only_an_adapter_was_trained_and_saved(resumed, checkpoint):
    from safetensors.torch import load_file

    folder = resumed.folder / "trained_manager"
    assert not (folder / "model.safetensors").exists()
    config = json.loads((folder / "adapter_config.json").read_text())
    assert Path(config["base_model_name_or_path"]) == checkpoint and config["r"] == 16
    weights = load_file(folder / "adapter_model.safetensors")
    assert all(("lora_A" in name) != ("lora_B" in name) for name in weights)
    # An adapter begins with B = 0: what is not zero was learnt.
    learnt = [name for name, value in weights.items() if "lora_B" in name and value.any()]
    assert len(learnt) == 2 * 7  # every linear layer of both blocks
    manager = load_manager(folder, model=ModelSettings(max_prompt_tokens=1024, max_new_tokens=40))
    instance = load_instances(resumed.data).instances[0]
    [completion] = manager.act([Observation(instance, (), instance.chunks[0], 1)], seed=0)
    assert 0 < len(completion.completion_ids) <= 40


def test_the_reader_was_asked_on_a_server_and_nothing_twice(resumed):
    assert set(resumed.server.paid.values()) == {1}
    usage = {
        one["name"][:2]: entry["usage"]
        for one in resumed.manifest["notebooks"]
        for entry in one["models"]
    }
    assert usage["01"]["calls"] > 0 and usage["04"]["memo_hits"] > 0
    said = [request["messages"][-1]["content"] for request in resumed.server.requests]
    assert any(re.search(r"\w+ lives in \w+\.", one) for one in said)
    executed = (resumed.folder / "notebooks" / "04_grpo_training.ipynb").read_text()
    assert "asked m as reader" in executed


def test_the_trained_manager_is_compared_on_the_benchmark(resumed):
    metrics = json.loads((resumed.folder / "metrics.json").read_text())["06_benchmark_evaluation"]
    assert metrics["accuracy_insert_all"] == 1 and 0 <= metrics["accuracy_trained"] <= 1
