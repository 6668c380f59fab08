"""The shipped real sample: what it holds, and the command that makes it."""

from __future__ import annotations

import hashlib
import json

import pytest

from finemem_lib.build.real_sample import main, real_sample
from finemem_lib.data.excerpts import without_last_fifth
from finemem_lib.data.memalpha import load_instances
from finemem_lib.trajectory import Chunk, Instance, Question
from finemem_lib.util.provenance import workbench_root

FOLDER = workbench_root() / "data" / "real"


@pytest.fixture(scope="module")
def shipped():
    return [load_instances(FOLDER / f"{name}.parquet").instances for name in ("train", "held_out")]


def article(name, count=12):
    """Return an instance of chunks with one answered question for each two sentences."""
    texts = [f"{name} has the number {step}a. {name} keeps {step}b." for step in range(count)]
    questions = tuple(
        Question(f"q-{step}-{letter}", f"Which number {step}?", (f"{step}{letter}",), "squad")
        for step in range(count)
        for letter in "ab"
    )
    return Instance(name, "squad", "AR", tuple(Chunk(text, 8) for text in texts), questions)


def test_shipped_sample_is_small_has_the_shape_it_names_and_no_text_in_both_parts(shipped):
    assert sum(path.stat().st_size for path in FOLDER.iterdir()) <= 300_000
    train, held_out = shipped
    assert (len(train), len(held_out)) == (120, 60)
    for one in (*train, *held_out):
        steps = one.metadata["distractor_steps"]
        assert len(one.chunks) == 5 and len(steps) == 3 and len(one.questions) >= 2
        for question in one.questions:
            assert question.evidence_steps and not set(question.evidence_steps) & set(steps)
    texts = [{chunk.text for one in part for chunk in one.chunks} for part in shipped]
    assert texts[0].isdisjoint(texts[1])
    articles = [{one.metadata["excerpt_of"] for one in part} for part in shipped]
    assert articles[0].isdisjoint(articles[1])


def test_same_seed_makes_the_same_sample():
    asked, between = [article(f"Town{n}") for n in range(6)], [article(f"Talk{n}") for n in (1, 2)]
    train, held_out = real_sample(asked, between, 3)
    assert (train, held_out) == real_sample(asked, between, 3)
    assert {one.metadata["excerpt_of"] for one in held_out} == {"Town4", "Town5"}
    assert without_last_fifth(asked)[1] == asked[4:]


def test_command_writes_both_parts_and_the_card_and_overwrites_nothing(tmp_path):
    for name in ("squad", "qmsum"):
        rows = [
            {
                "instance_id": made.instance_id,
                "data_source": "squad",
                "chunks": [chunk.text for chunk in made.chunks],
                "questions_and_answers": [
                    {"question": asked.text, "answer": asked.answers[0]} for asked in made.questions
                ],
            }
            for made in (article(f"{name}{number}") for number in range(6))
        ]
        text = "".join(f"{json.dumps(row)}\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    arguments = ["--data", str(tmp_path), "--output", str(tmp_path / "out"), "--seed", "2"]
    main(arguments)
    made = load_instances(tmp_path / "out" / "train.parquet").instances
    assert {one.metadata["excerpt_of"] for one in made} == {f"squad{n}" for n in range(4)}
    digest = hashlib.sha256((tmp_path / "qmsum.jsonl").read_bytes()).hexdigest()
    assert digest in (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    with pytest.raises(FileExistsError):
        main(arguments)
