"""Rows of systems by writer: means, differences in pairs, and no text of the data."""

from __future__ import annotations

import json

import pytest

from finemem_lib.data.planted import planted_instances
from finemem_lib.evaluation.comparison import play_systems
from finemem_lib.evaluation.model_writers import RULES, Play, WriterRow, writer_rows
from finemem_lib.evaluation.rows import read_rows, write_rows
from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.readers.extractive import reader_for
from finemem_lib.util.provenance import workbench_root
from tests.helpers.benchmarks import benchmark_module
from tests.helpers.chat_models import save_tiny_model
from tests.helpers.writers import ScriptedChat

STREAMS = planted_instances("held-out", 3, seed=0)
FEW = BootstrapSettings(num_resamples=100)


def plays(reply) -> dict[str, Play]:
    """Let MEM1 play with its rules, and with a model that replies so."""
    found = {}
    for name, chat in ((RULES, None), ("m", ScriptedChat(reply))):
        [one] = play_systems(["mem1"], STREAMS, reader_for(STREAMS), chat=chat).values()
        found[name] = Play(one.trajectories, 6.0, 0 if chat is None else 5)
    return found


def test_a_writer_that_keeps_nothing_is_below_the_rules_by_all_they_answer():
    rules, *rest = writer_rows("mem1", plays(lambda said: "no state"), FEW)
    [mean] = [row for row in rest if row.instance == "all"]
    assert rules.difference is None and rules.score > 0
    assert mean.difference == pytest.approx(-rules.score) and mean.score == 0
    assert mean.difference_low <= mean.difference <= mean.difference_high < 0
    assert (mean.memory_tokens, mean.changed, mean.unanswered) == (0, 0, 5)
    assert rules.changed > 0 == rules.calls and mean.calls == mean.steps == rules.steps
    assert mean.seconds == 2.0, "of three instances"


def test_there_is_a_row_per_question_and_the_mean_counts_each_once():
    rows = writer_rows("mem1", plays(lambda said: "<state>Mia lives in Rome.</state>"), FEW)
    for writer in (RULES, "m"):
        mean, *asked = [row for row in rows if row.writer == writer]
        assert len(asked) == mean.questions == sum(len(one.questions) for one in STREAMS)
        assert mean.score == pytest.approx(sum(row.score for row in asked) / len(asked))
        assert mean.instances == 3 == len({row.instance for row in asked})
        assert all(row.low is row.difference is row.unanswered is None for row in asked)


def test_rows_survive_the_file_and_hold_no_text(tmp_path):
    rows = writer_rows("mem1", plays(lambda said: "<state>Mia lives in Rome.</state>"), FEW)
    write_rows(rows, path := tmp_path / "rows.jsonl")
    assert [row.question for row in read_rows(path, WriterRow)] == [row.question for row in rows]
    assert not any(chunk.text in path.read_text() for one in STREAMS for chunk in one.chunks)
    assert "Rome" not in path.read_text()


def test_other_instances_are_not_compared():
    found = plays(lambda said: "no state")
    with pytest.raises(ValueError, match="instances"):
        writer_rows("mem1", found | {"m": Play(found["m"].trajectories[:1], 1.0)}, FEW)


def test_the_benchmark_plays_with_a_model_of_this_process(tmp_path, monkeypatch, capsys):
    save_tiny_model(tmp_path / "model")
    models, output = tmp_path / "models.yaml", tmp_path / "rows.jsonl"
    models.write_text(
        f"writer: {{kind: local, model: {tmp_path / 'model'}, temperature: 0, max_tokens: 12}}"
    )
    module = benchmark_module("model_writers")
    arguments = [
        "model_writers.py",
        "--quick",
        "--systems",
        "memagent",
        "mem1",
        "--models",
        str(models),
        "--output",
        str(output),
    ]
    monkeypatch.setattr("sys.argv", arguments)
    module.main()
    means = [row for row in read_rows(output, WriterRow) if row.instance == "all"]
    assert [(row.method, row.writer) for row in means] == [
        (method, writer) for method in ("memagent", "mem1") for writer in (RULES, "model")
    ]
    assert all(f"{row.score:.3f}" in capsys.readouterr().out for row in means[:1])
    assert all(row.memory_tokens <= module.BUDGET for row in means)
    card = json.loads(output.with_suffix(".json").read_text())
    assert {"command", "hardware", "seed", "git", "data_sha256", "versions"} <= card.keys()
    [entry] = card["models"]
    assert list(entry["roles"]) == ["writer"] and entry["usage"]["calls"] > 0
    with pytest.raises(SystemExit):
        module.main()
    assert "exists" in capsys.readouterr().err


def test_a_file_of_models_without_a_writer_is_refused(monkeypatch, capsys):
    path = workbench_root() / "notebooks/models/smollm2.yaml"
    monkeypatch.setattr("sys.argv", ["model_writers.py", "--models", str(path)])
    with pytest.raises(SystemExit):
        benchmark_module("model_writers").main()
    assert "names no writer" in capsys.readouterr().err
