"""The commands that make data: real calls on small files, what they keep, print and refuse."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

import pytest

from finemem_lib.cli.main import main
from finemem_lib.data.memalpha import load_instances
from finemem_lib.data.question_store import stored_rows, with_questions
from tests.helpers.fault_server import FaultServer
from tests.helpers.paths import SHARED_DATA

DATA = SHARED_DATA
SAMPLES = DATA / "raw_samples"
TREC = SAMPLES / "trec_train_5500_excerpt.label"
needs_data = pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/data is not there")

KEY = "sk-never-shown-0123456789"
PLACES = ("Rome", "Oslo", "Lima", "Cairo")


def write_data(path, number=3, **fields):
    rows = [
        {
            "instance_id": f"one-{place}",
            "data_source": "squad",
            "chunks": [f"Mia moved to {city} in 19{place}8.", f"Ana sails from {city} on Friday."],
            "questions_and_answers": [{"question": "Where does Mia live?", "answer": city}],
            **fields,
        }
        for place, city in enumerate(PLACES[:number])
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def answers(request):
    """Answer as teacher with one question on the city of a chunk, as verifier with the city."""
    said = request["messages"][-1]["content"]
    city = next((place for place in PLACES if place in said), "")
    if "response_format" not in request:
        return city or "unknown"
    who = "Mia" if "Mia" in said else "Ana"
    return json.dumps({"questions": [{"question": f"Which city has {who}?", "answer": city}]})


def write_models(path, server, **settings):
    one = {
        "model": "m",
        "base_url": server.base_url,
        "key_env": "TEST_MODEL_KEY",
        "backoff": 0.01,
        "concurrency": 1,
        "price_in": 1000,
        "price_out": 2000,
        **settings,
    }
    path.write_text(json.dumps({"teacher": one, "verifier": one}), encoding="utf-8")
    return str(path)


def ask(data, folder, *more):
    """Run `finemem questions` and return its exit code."""
    return main(["questions", "--data", str(data), "--output", str(folder), *more])


def table_of(printed, first):
    """Return the rows of a printed table as lists, keyed by their first cell."""
    lines = printed[printed.index(first) :].splitlines()[1:]
    return {cells[0]: cells[1:] for line in lines if (cells := re.split(r"  +", line))}


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path / "data.jsonl")


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("TEST_MODEL_KEY", KEY)


# ---- finemem questions ---------------------------------------------------------------------------


@needs_data
def test_questions_without_a_model_on_real_text(tmp_path, capsys):
    folder, mini = tmp_path / "asked", DATA / "perltqa_mini.jsonl"
    command = ["questions", "--data", str(mini), "--output", str(folder), "--k", "4"]
    assert main(command) == 0
    printed = capsys.readouterr().out
    rows = stored_rows(folder)
    audit = table_of(printed, "all of this recipe")
    assert {row["teacher"] for row in rows} == {"cloze"} and {row["k"] for row in rows} == {4}
    assert audit["candidates"] == [str(len(rows))]
    accepted = sum(row["accepted"] for row in rows)
    assert audit["accepted"] == [str(accepted)] and 3 <= accepted <= 12
    assert audit["not needed"] == [str(sum(row["reason"] == "not needed" for row in rows))]
    assert f"{accepted} questions on 3 chunks" in printed and "1/1" in printed
    assert "leaks (no training to compare): none" in printed and "tokens" not in printed
    [made] = with_questions(load_instances(mini).instances, folder)
    assert sum(map(len, made.chunk_questions)) == accepted
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")}
    assert main(command) == 0
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.parquet")} == before
    assert main([*command, "--seed", "1"]) == 0  # another recipe stands beside it
    assert len(list(folder.glob("*.parquet"))) == 2
    assert table_of(capsys.readouterr().out, "all of this recipe")["candidates"] == [str(len(rows))]


def test_what_training_has_too_is_reported(data, tmp_path, capsys):
    training = write_data(tmp_path / "training.jsonl", number=1)
    assert ask(data, tmp_path / "q", "--training", training) == 0
    printed = capsys.readouterr().out
    assert "leaks (with 1 of training): 1 question in both, 2 text in both" in printed
    assert re.search(r"question in both +one-0 +1.00 +Where does Mia live\?", printed)


def test_language_models_are_asked_once_and_their_use_is_said(data, tmp_path, key, capsys):
    folder = tmp_path / "q"
    with FaultServer(answers) as server:
        models = write_models(tmp_path / "models.yaml", server)
        command = ["questions", "--data", data, "--output", str(folder), "--models", models]
        assert main(command) == 0
        printed = capsys.readouterr().out
        calls = sum(server.paid.values())
        assert set(server.authorizations) == {f"Bearer {KEY}"} and set(server.paid.values()) == {1}
        header, row = printed.splitlines()[-3:-1]
        used = dict(zip(re.split("  +", header), re.split("  +", row), strict=True))
        assert used["asked as"] == "teacher and verifier"  # equal settings share a client
        assert used["calls"] == str(calls) and calls > 6  # a teacher's call a chunk, and answers
        assert used["tokens in"] == str(10 * calls) and used["tokens out"] == str(5 * calls)
        assert float(used["cost"]) == pytest.approx(calls * (10 * 1000 + 5 * 2000) / 1e6)
        assert main(command) == 0  # all in the store
        assert main([*command, "--seed", "1"]) == 0  # another recipe, same replies
        assert sum(server.paid.values()) == calls
    again = capsys.readouterr()
    assert re.search(r"teacher and verifier +m +0 .* [1-9]\d*$", again.out, re.MULTILINE)  # memo
    assert KEY not in printed + again.out + again.err
    assert {row["teacher"] for row in stored_rows(folder)} == {"m"}
    assert len([row for row in stored_rows(folder) if row["accepted"]]) == 2 * 6


def test_the_teacher_alone_can_be_a_language_model(data, tmp_path, key):
    with FaultServer(answers) as server:
        models = Path(write_models(tmp_path / "models.yaml", server, memo=str(tmp_path / "memo")))
        settings = json.loads(models.read_text())
        models.write_text(json.dumps({"teacher": settings["teacher"]}))
        assert ask(data, tmp_path / "q", "--models", str(models), "--k", "3") == 0
        assert all("response_format" in request for request in server.requests)
        assert "Write 3 questions" in server.requests[0]["messages"][-1]["content"]
    assert (tmp_path / "memo").exists() and not (tmp_path / "q" / "replies.sqlite").exists()
    assert {row["verifier"] for row in stored_rows(tmp_path / "q")} == {"extractive"}


@pytest.fixture(params=[signal.SIGINT, signal.SIGTERM])
def number(request):
    """A signal with its default handler, also where a background job started these tests."""
    before = signal.signal(request.param, signal.SIG_DFL)
    yield request.param
    signal.signal(request.param, before)


def test_an_interrupt_keeps_what_is_done_and_says_how_to_go_on(data, tmp_path, key, capsys, number):
    folder, held = tmp_path / "q", []

    def interrupts(request):
        if not held and "Lima" in request["messages"][-1]["content"]:
            held.append(request)
            os.kill(os.getpid(), number)
        return answers(request)

    with FaultServer(interrupts) as server:
        models = write_models(tmp_path / "models.yaml", server)
        command = ["questions", "--data", data, "--output", str(folder), "--models", models]
        assert main(command) == 130
        printed = capsys.readouterr()
        assert (
            f"interrupted; 2 of 3 instances are done and kept in {folder}, the same command "
            "goes on from them"
        ) in printed.err
        assert "teacher and verifier" in printed.out  # what was spent so far
        assert signal.getsignal(number) is signal.SIG_DFL
        kept = dict(server.paid)
        assert len(list(folder.glob("*.parquet"))) == 2 and not list(folder.glob("*.tmp"))
        assert main(command) == 0
        asked_again = [body for body, times in server.paid.items() if times > kept.get(body, 0)]
        assert asked_again and all("Lima" in body for body in asked_again)
    assert len(list(folder.glob("*.parquet"))) == 3


def test_a_server_that_refuses_ends_the_command_without_the_key(data, tmp_path, key, capsys):
    body = json.dumps({"error": {"message": f"no such key: {KEY}"}})
    with FaultServer(status=401, body=body) as server:
        models = write_models(tmp_path / "models.yaml", server)
        assert ask(data, tmp_path / "q", "--models", models) == 1
    printed = capsys.readouterr()
    assert re.search(r"failed: m at http.*401.*\*\*\*.*0 of 3 instances are done", printed.err)
    assert KEY not in printed.out + printed.err
    assert "calls" in printed.out


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "models .*models.yaml: cannot be read"),
        (f"pupil: {{key: {KEY}}}", "got pupil, expected"),
        (
            "teacher: {model: m, base_url: 'http://h/v1', key_env: NOT_SET_HERE}",
            "variable NOT_SET_HERE is not set, expected the key of http://h/v1; set it",
        ),
        (
            "teacher: {model: m, base_url: 'http://h/v1', memo: models.yaml}",
            "memo models.yaml: file is not a database; expected a memo of earlier replies",
        ),
    ],
)
def test_settings_of_models_that_cannot_be_used(data, tmp_path, monkeypatch, capsys, content, said):
    monkeypatch.chdir(tmp_path)
    models = tmp_path / "models.yaml"
    if content is not None:
        models.write_text(content)
    assert ask(data, tmp_path / "q", "--models", str(models)) == 2
    printed = capsys.readouterr()
    assert re.search(said, printed.err) and KEY not in printed.err + printed.out
    assert not list(tmp_path.glob("q/*.parquet"))


def test_roles_that_the_command_does_not_play_may_stand_in_the_file(data, tmp_path, key):
    with FaultServer(answers) as server:
        models = Path(write_models(tmp_path / "models.yaml", server))
        given = json.loads(models.read_text())
        models.write_text(json.dumps(given | {"judge": given["teacher"] | {"key_env": "NOT_SET"}}))
        assert ask(data, tmp_path / "q", "--models", str(models)) == 0


def test_long_chunks_are_cut_as_notebook_01_cuts_them(tmp_path):
    data, folder = write_data(tmp_path / "long.jsonl", 1, chunks=["Mia moved to Rome. " * 40]), []
    for number in ("20", "4096"):
        folder.append(tmp_path / number)
        assert ask(data, folder[-1], "--max-chunk-tokens", number) == 0
    cut = load_instances(data, max_chunk_tokens=20).instances
    assert with_questions(cut, folder[0])
    assert with_questions(load_instances(data).instances, folder[1])
    with pytest.raises(ValueError, match="from chunks cut in the same way"):
        with_questions(cut, folder[1])


def test_questions_that_cannot_be_made_start_nothing(data, tmp_path, capsys):
    folder = tmp_path / "q"
    broken = write_data(tmp_path / "broken.jsonl", chunks=[3])
    for arguments, said in [
        (["--data", str(tmp_path / "none.jsonl"), "--output", str(folder)], "no such file"),
        (["--data", data, "--output", data], f"{data} is no folder, expected a folder"),
        (["--data", data, "--output", f"{data}/q"], f"{data} is no folder, expected a folder"),
        (["--data", broken, "--output", str(folder)], "line 1, field chunks"),
        (["--data", data, "--training", broken, "--output", str(folder)], "line 1, field chunks"),
    ]:
        assert main(["questions", *arguments]) == 2
        assert said in capsys.readouterr().err
    with pytest.raises(SystemExit, match="2"):
        ask(data, folder, "--k", "0")
    assert "'0', expected a whole number from 1" in capsys.readouterr().err
    assert not folder.exists()
    assert ask(data, folder, "--training", data, broken, "--on-error", "skip") == 2  # none is left
    mixed = Path(broken).read_text() + "\n" + Path(data).read_text()
    (tmp_path / "mixed.jsonl").write_text(mixed)
    assert ask(tmp_path / "mixed.jsonl", folder, "--on-error", "skip") == 0
    assert capsys.readouterr().err.count("field chunks[0]") >= 3


def test_text_of_others_does_not_steer_the_terminal(tmp_path, capsys):
    asked = [{"question": "Is it \x1b[2J\u202e Rome?", "answer": "Rome"}]
    data = write_data(tmp_path / "a.jsonl", 1, questions_and_answers=asked, instance_id="i\x1b[1m")
    assert ask(data, tmp_path / "q") == 0
    printed = capsys.readouterr().out
    assert "1 answer in question" in printed and "i\ufffd[1m" in printed
    assert not {"\x1b", "\u202e"} & set(printed)


# ---- finemem build -------------------------------------------------------------------------------


@needs_data
def test_build_writes_instances_and_shows_the_published_sizes(tmp_path, capsys):
    path = tmp_path / "new" / "trec.parquet"
    command = ["build", "trec_coarse", str(TREC), "--output", str(path), "--seed", "3"]
    assert main([*command, "--instances", "2"]) == 0
    printed = capsys.readouterr().out
    built = load_instances(path).instances
    assert len(built) == 2 and {one.metadata["seed"] for one in built} == {3}
    assert {len(one.chunks) for one in built} == {10}
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| icl_trec")]
    assert [row[1:4] for row in rows[:2]] == [
        ["these instances", "2", "10.0"],
        ["arXiv 2509.25911, table 7, train", "51", "10.0"],
    ]
    tokens = sum(chunk.tokens for one in built for chunk in one.chunks) / 20
    assert float(rows[0][4]) == pytest.approx(tokens, abs=0.051)
    written, last = printed.splitlines()[-2:]
    assert written == f"written: {path}" and last.startswith("status=ok seconds=")
    before = path.read_bytes()
    assert main(command) == 2
    assert f"{path} exists and is kept" in capsys.readouterr().err and path.read_bytes() == before


@needs_data
def test_what_was_built_can_be_asked_about(tmp_path, capsys):
    path = tmp_path / "squad.parquet"
    assert (
        main(
            [
                "build",
                "squad",
                str(SAMPLES / "squad_v1.1_dev_3articles.json"),
                "--output",
                str(path),
            ]
        )
        == 0
    )
    assert ask(path, tmp_path / "q", "--k", "1") == 0
    assert "7 questions on 7 chunks" in capsys.readouterr().out


@needs_data
def test_what_cannot_be_built_leaves_nothing(tmp_path, capsys):
    path = str(tmp_path / "new" / "x.parquet")
    hotpot = str(SAMPLES / "hotpotqa_distractor_5items.json")
    (tmp_path / "bad.label").write_text("LOC:city Where is Rome?\nno label here\n")
    bad = str(tmp_path / "bad.label")
    (tmp_path / "file").write_text("mine")
    for arguments, said in [
        (["nonsense", hotpot, "--output", path], "raw set 'nonsense', expected one of squad"),
        (["hotpotqa", hotpot, "--output", path], "give more of the set"),
        (["perltqa", hotpot, "--output", path], "at least one file in `asked`"),
        (["squad", str(tmp_path / "no.json"), "--output", path], "no such file"),
        (["trec_fine", bad, "--output", path], "line 2, field (whole row): expected COARSE:fine"),
        (["squad", hotpot, "--output", str(tmp_path / "x.csv")], "'.csv', expected .parquet"),
        (
            ["squad", hotpot, "--output", f"{tmp_path}/file/x.parquet"],
            "is no folder, expected",
        ),
    ]:
        assert main(["build", *arguments]) == 2, arguments
        assert said in capsys.readouterr().err
    assert sorted(each.name for each in tmp_path.iterdir()) == ["bad.label", "file"]


@needs_data
def test_the_half_that_is_asked_and_what_is_left_out(tmp_path, capsys):
    """PerLTQA's two samples are about different people; every character left out is named."""
    command = [
        "build",
        "perltqa",
        str(SAMPLES / "perltmem_en_v2_excerpt.json"),
        "--asked",
        str(SAMPLES / "perltqa_en_v2_excerpt.json"),
        "--output",
        str(tmp_path / "x.parquet"),
    ]
    assert main(command) == 2
    assert "0 of 0 questions usable on 3 events" in capsys.readouterr().err
    mixed = tmp_path / "mixed.label"
    mixed.write_bytes(TREC.read_bytes() + b"\nno label here\n")
    command = [
        "build",
        "trec_coarse",
        str(mixed),
        "--instances",
        "1",
        "--on-error",
        "skip",
        "--output",
        str(tmp_path / "x.parquet"),
    ]
    assert main(command) == 0
    assert "mixed.label, line 302, field (whole row)" in capsys.readouterr().err
