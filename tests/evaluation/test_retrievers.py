from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import numpy as np
import pytest

from finemem_lib.data.planted import planted_instances
from finemem_lib.evaluation.retrievers import (
    Row,
    compare,
    cost_table,
    recall,
    rows_of,
)
from finemem_lib.evaluation.rows import read_rows, write_rows
from finemem_lib.managers.scripted import InsertAll
from finemem_lib.retrievers.named import RETRIEVERS
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question
from tests.helpers.encoders import fake_encoder, save_small_encoder
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT


def one_question(*chunks: str) -> Instance:
    asked = Question("q", "Where does Mia live?", ("Rome",), "planted", evidence_steps=(1,))
    texts = tuple(Chunk(text, count_tokens(text)) for text in chunks)
    return Instance("i", "planted", "AR", texts, (asked,))


def test_recall_is_that_of_the_metric_of_the_question():
    asked = Question("q", "Where?", ("Rome", "Roma"), "planted")
    assert recall(asked, ["Oslo", "in Roma"]) == 1.0 and recall(asked, []) == 0.0
    keywords = Question("q", "Summarise.", ("rome, oslo",), "booksum")
    assert recall(keywords, ["Mia in Rome"]) == 0.5
    label = Question("q", "Sentence: hi", ("3",), "icl_nlu_8296shot_balance")
    assert recall(label, ["Sentence: 3\nLabel: 13"]) == 0.0
    assert recall(label, ["no example"]) == 0.0


def test_measures_by_hand(monkeypatch):
    """The encoder ranks by length: the dense retriever finds the longest item, BM25 Mia's."""
    fake_encoder(monkeypatch, lambda text: np.array([len(text), 20.0]) / np.hypot(len(text), 20))
    instance = one_question("Mia lives in Rome.", "Ana sails to Oslo and then all the way home.")
    found, items = compare([instance], InsertAll(), ["dense", "bm25"], [1, 2], [1])
    assert items == 2
    assert found["recall", "bm25", 1] == {"i": [1.0]}
    assert found["recall", "dense", 1] == {"i": [0.0]}
    assert found["recall", "dense", 2] == {"i": [1.0]}
    assert found["accuracy", "bm25", 1] == {"i": [1.0]}
    assert found["accuracy", "dense", 1] == {"i": [0.0]}
    # BM25 finds one item and pays its step alone; the dense retriever pays a bystander, too.
    assert found["evidence used", "bm25", 3] == {"i": [1.0]}
    assert found["evidence used", "dense", 3] == {"i": [0.5]}
    assert found["credit agreement", "bm25", 3] == {"i": [1.0]}
    assert found["credit agreement", "dense", 3] == {"i": [0.0]}  # both steps are paid the same
    assert found["credit against truth", "bm25", 3] == {"i": [1.0]}
    assert found["credit against truth", "dense", 3] == {"i": [0.0]}


def test_rows_hold_paired_differences_and_survive_their_file(monkeypatch, tmp_path):
    fake_encoder(monkeypatch, lambda text: np.array([len(text), 20.0]) / np.hypot(len(text), 20))
    instances = planted_instances("held-out", 3, seed=0)
    found, items = compare(instances, InsertAll(), RETRIEVERS, [1, 3], [3])
    rows = rows_of(found, "planted", "insert-all", items)
    cells = {(row.measure, row.retriever, row.k): row for row in rows}
    assert len(cells) == len(rows) == len(RETRIEVERS) * 6
    for row in rows:
        first = cells[row.measure, "bm25", row.k]
        if row is first:
            assert row.difference is None
        elif row.measure in ("recall", "accuracy"):
            assert row.difference == pytest.approx(row.value - first.value)
            assert row.difference_low <= row.difference <= row.difference_high
        assert row.low is None or row.low <= row.value <= row.high
    write_rows(rows, tmp_path / "rows.jsonl")
    kept = read_rows(tmp_path / "rows.jsonl", Row)
    for row, again in zip(rows, kept, strict=True):
        for value, kept_value in zip(
            dataclasses.astuple(row), dataclasses.astuple(again), strict=True
        ):
            close = isinstance(value, float)
            assert kept_value == (pytest.approx(value, rel=1e-3) if close else value)
    table = cost_table(rows)
    assert list(table.columns) == ["bm25", "dense", "hybrid", "graph"]
    assert list(table.index) == [
        f"{name}, planted" for name in ("evidence used", "credit agreement", "credit against truth")
    ]


def test_a_file_without_rows_is_refused_with_the_command(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"measure": "recall"}\n')
    for name in ("rows.jsonl", "nothing.jsonl"):
        with pytest.raises(ValueError, match="make them with `python benchmarks/retrievers.py"):
            read_rows(tmp_path / name, Row)


def test_the_benchmark_goes_on_where_it_stopped_and_writes_what_it_prints(tmp_path):
    """On small files of its own, with an encoder with random weights."""
    data = tmp_path / "data"
    data.mkdir()
    files = "squad hotpotqa locomo clinc150 squality qmsum long_longmemeval_s_115k"
    for name in files.split():
        chunks = [f"{name} lives in town {n}. {name} owns {n} cats." * 4 for n in range(30)]
        asked = [{"question": f"Who owns {n} cats, {name}?", "answer": name} for n in range(30)]
        rows = [
            {
                "instance_id": f"{name} {number}",
                "chunks": [f"{number} {chunk}" for chunk in chunks],
                "questions_and_answers": asked,
                "data_source": "squad",
            }
            for number in range(12)
        ]
        (data / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    model = save_small_encoder(tmp_path / "model")
    output = tmp_path / "rows.jsonl"
    command = [sys.executable, str(ROOT / "benchmarks" / "retrievers.py"), str(data), "--quick"]
    command += ["--model", str(model), "--work", str(tmp_path / "work"), "--output", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=LAST_RESORT)
    assert done.returncode == 0, done.stderr
    rows = read_rows(output, Row)
    assert {row.retriever for row in rows} == set(RETRIEVERS)
    assert {row.file for row in rows} >= {"squad.jsonl", "planted", ""}
    printed = [row for row in rows if row.measure == "recall" and row.k == 3]
    assert printed and all(f"{row.value:.3g}" in done.stdout for row in printed)
    card = json.loads(output.with_suffix(".json").read_text())
    assert {"command", "hardware", "seed", "git", "data_sha256", "encoder_hash"} <= card.keys()
    assert isinstance(rows[0], Row)
    again = subprocess.run(command, capture_output=True, text=True, timeout=LAST_RESORT)
    assert again.returncode == 2 and "exists" in again.stderr
