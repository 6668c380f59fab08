"""The benchmark of one update of a language model runs on a small one and writes its figures."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.util.provenance import workbench_root
from tests.helpers.small_models import save_model


@pytest.mark.long
def test_both_loops_play_and_learn_and_their_times_are_written(tmp_path):
    folder = save_model(tmp_path / "model", "llama", num_hidden_layers=3)
    settings = ModelSettings(
        lora_rank=2, lora_layers=2, operations_as="quotes", max_new_tokens=4, batch_size=32
    )
    load_manager(folder, model=settings).save(tmp_path / "adapter")
    command = [sys.executable, str(workbench_root() / "benchmarks" / "language_model.py")]
    command += ["--checkpoint", str(tmp_path / "adapter"), "--repetitions", "1", "--threads", "1"]
    done = subprocess.run(
        [*command, "--output", str(tmp_path / "out.jsonl")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    found = {row["part"]: row for row in map(json.loads, lines)}
    for part in ("generation", "learning", "total"):
        assert all(found[part][who] > 0 for who in ("ours", "plain", "speedup"))
    card = json.loads((tmp_path / "out.json").read_text(encoding="utf-8"))
    assert card["tokens"] == {"ours": 32 * 4, "plain": 32 * 4}
    assert card["git"]["commit"] and "times faster" in done.stdout
