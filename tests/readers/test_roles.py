"""Language models by role: what a file of them may say, who plays what, what is kept of it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.data.planted import planted_stream
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.chat import ModelError
from finemem_lib.readers.model_reader import ModelReader
from finemem_lib.readers.roles import (
    ROLES,
    ModelRole,
    Models,
    check_roles,
    load_roles,
    reader_role,
    usage_line,
)
from finemem_lib.runs import run as run_module
from finemem_lib.runs.run import start_run
from finemem_lib.util.provenance import FETCHED
from tests.helpers.chat_models import local
from tests.helpers.fault_server import FaultServer
from tests.helpers.paths import ROOT

pytest.importorskip("openai", reason="the server extra is not installed")

KEY = "sk-never-shown-0123456789"
NOTEBOOK = "02_memory_and_retrieval"


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("TEST_MODEL_KEY", KEY)


def write(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def settings(server, **more):
    return {
        "model": "m",
        "base_url": server.base_url,
        "key_env": "TEST_MODEL_KEY",
        "backoff": 0.01,
        "price_in": 1.0,
        "price_out": 2.0,
        **more,
    }


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, r"cannot be read \(No such file"),
        (
            f"teacher: [\n  key: {KEY}",
            "line 2: no YAML .*; expected one or more of the mappings reader",
        ),
        ("", "got NoneType, expected one or more of the mappings"),
        ("{}", "got nothing, expected"),
        (f"pupil: {{key: {KEY}}}", "got pupil, expected"),
        (f"teacher: {KEY}", "teacher is a str, expected"),
        (f"judge: {{model: m, api_key: {KEY}}}", "judge: .*api_key: Unexpected keyword.*fields"),
        ("teacher: {model: m, base_url: 'http://h/v1', cite: true}", "teacher: .*cite: Unexpected"),
        (
            f"reader: {{model: m, base_url: 'http://h/v1', cite: {KEY}}}",
            "reader: .*cite is a str",
        ),
        (
            f"verifier: {{model: m, base_url: 'http://h/v1', key_env: {KEY}}}",
            "verifier: .*key_env is ",
        ),
        (
            "reader: {model: m, base_url: 'http://h/v1', key_env: NOT_SET_HERE}",
            "reader: the environment variable NOT_SET_HERE is not set, expected the key of http://h/v1",
        ),
    ],
)
def test_files_that_are_not_usable_are_refused_without_showing_a_value(tmp_path, content, said):
    path = tmp_path / "models.yaml"
    if content is not None:
        write(path, content)
    with pytest.raises(ValueError, match=said) as caught:
        check_roles(path)
    assert str(path) in str(caught.value) and KEY not in str(caught.value)


def test_a_missing_package_is_said_before_anything_starts(tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    path = write(tmp_path / "m.yaml", "reader: {model: m, base_url: 'http://h/v1'}")
    with pytest.raises(ImportError, match=r"pip install -e .\[server\]"):
        check_roles(path)


WRITERS = ["memalpha-4b.yaml", "memory-r2-7b.yaml", "smollm2-writer.yaml"]
"""The files with a model that only writes: a published manager, or SmolLM2 for baselines."""


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_a_writer_names_no_other_role(name):
    roles = load_roles(ROOT / "notebooks/models" / name)
    assert set(roles) == {"writer"} and roles["writer"].chat.memo is None


@pytest.mark.parametrize(
    "path",
    [one for one in sorted((ROOT / "notebooks/models").glob("*.yaml")) if one.name not in WRITERS],
    ids=str,
)
def test_the_other_files_of_the_project_name_every_role(path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    roles = load_roles(path)
    fetched = roles["reader"].chat.model.startswith(FETCHED)
    if not fetched or Path(roles["reader"].chat.source).is_dir():
        check_roles(path)
    # A model of 135 million parameters is no judge, and its writer has a file of its own.
    assert set(roles) == set(ROLES) - ({"judge", "writer"} if path.stem == "smollm2" else set())
    assert roles["reader"] == roles["verifier"]  # one client
    assert all(one.chat.memo is None for one in roles.values())


def test_the_settings_that_the_site_shows_are_accepted(tmp_path):
    page = (ROOT / "docs" / "how_to" / "language_models.md").read_text("utf-8")
    shown = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    assert shown
    for text in shown:
        roles = load_roles(write(tmp_path / "models.yaml", text), tmp_path / "q")
        assert roles.keys() <= set(ROLES)
        assert {one.chat.memo for one in roles.values()} == {str(tmp_path / "q/replies.sqlite")}


def test_roles_that_are_left_out_are_played_without_a_model():
    models, instance = Models(), planted_stream(seed=1)
    assert models.reader([instance]).name == models.verifier([instance]).name == "extractive"
    assert isinstance(models.teacher(3), ClozeTeacher)
    played = play(
        [instance],
        make_manager("insert-all"),
        RolloutSettings(num_generations=1),
        models.reader([instance]),
        0,
    )[0]
    assert models.judged(played) == played and models.record() == []
    models.close()


def test_roles_with_equal_settings_share_a_client_and_each_names_its_prompts(tmp_path):
    with FaultServer(lambda request: "Rome") as server:
        one = settings(server)
        path = write(
            tmp_path / "m.yaml",
            {
                "reader": {**one, "cite": True},
                "verifier": one,
                "teacher": one,
                "judge": {**one, "temperature": 0.0},
            },
        )
        models = Models(load_roles(path, tmp_path))
        assert models.record() == []  # nobody was asked for
        instance = planted_stream(seed=1)
        models.reader([instance])
        models.teacher(4)
        [entry] = models.record()
        assert list(entry["roles"]) == ["reader", "teacher"]
        assert entry["roles"]["reader"]["prompts"][0].startswith("read_citing v")
        assert entry["roles"]["teacher"]["number"] == 4
        models.judged([])
        assert [list(one["roles"]) for one in models.record()] == [["reader", "teacher"], ["judge"]]
        models.close()
    assert KEY not in json.dumps(models.record())


def test_a_run_keeps_replies_and_a_run_that_reuses_it_asks_nothing(tmp_path, monkeypatch, capsys):
    instance = planted_stream(seed=2)

    def one_pass(run_id):
        run = start_run(NOTEBOOK, {"run_id": run_id, "models": str(path)})
        reader = run.models.reader([instance])
        played = play(
            [instance], make_manager("insert-all"), RolloutSettings(num_generations=1), reader, 0
        )
        kept = run_module.read_record(run.folder, NOTEBOOK)["models"]
        [usage] = [one["usage"] for one in run.models.record()]
        assert kept[-1]["usage"] == usage  # also when it is killed now
        total = run.model_usage()
        run.finish()
        assert not list(run.folder.glob("*.sqlite-*"))  # closed
        assert (
            play(
                [instance],
                make_manager("insert-all"),
                RolloutSettings(num_generations=1),
                ModelReader(reader.agent.chat),
                0,
            )
            == played
        )  # a cell is run once more
        run.models.close()
        return played, usage, total

    with FaultServer(lambda request: "Rome") as server:
        path = write(tmp_path / "models.yaml", {"reader": settings(server)})
        first, usage, total = one_pass("first")
        assert usage["calls"] == sum(server.paid.values()) > 0
        assert total == usage
        assert usage["cost"] == pytest.approx(usage["calls"] * (10 * 1.0 + 5 * 2.0) / 1e6)
        again, usage, both = one_pass("first")
        assert again == first and usage["calls"] == 0 and usage["memo_hits"] > 0
        assert both["calls"] == total["calls"] and both["cost"] == total["cost"]
        assert both["memo_hits"] >= total["memo_hits"] + usage["memo_hits"]
        monkeypatch.setenv("FINEMEM_REUSE_RUN", "first")
        reused, usage, _ = one_pass("second")
        assert reused == first and usage["calls"] == 0
        assert set(server.paid.values()) == {1}
    record = run_module.read_record(run_module.run_folder("second"), NOTEBOOK)
    [entry] = record["models"]
    assert entry["usage"]["calls"] == 0 and entry["base_url"] == server.base_url
    assert entry["roles"]["reader"]["chat"]["model"] == "m"
    assert record["parameters"]["models"] == str(path)
    assert capsys.readouterr().out.splitlines()[-1] == usage_line(entry | {"usage": usage})
    for file in (tmp_path / "runs").rglob("*"):
        assert not file.is_file() or KEY.encode() not in file.read_bytes()
    assert {one.name for one in (tmp_path / "runs" / "second").iterdir()} == {
        "records",
        "replies.sqlite",
    }


def test_a_notebook_that_fails_has_said_what_it_paid(tmp_path):
    def fails_later(request):
        server.status, server.body = 401, "{}"
        return "Rome"

    with FaultServer(fails_later) as server:
        path = write(tmp_path / "models.yaml", {"reader": settings(server, concurrency=1)})
        run = start_run(NOTEBOOK, {"run_id": "r", "models": str(path)})
        with pytest.raises(ModelError):
            play(
                [planted_stream(seed=2)],
                make_manager("insert-all"),
                RolloutSettings(num_generations=1),
                run.models.reader([]),
                0,
            )
    [entry] = run_module.read_record(run.folder, NOTEBOOK)["models"]
    assert entry["usage"]["calls"] == sum(server.paid.values()) == 1


def test_the_usage_of_a_run_sums_its_notebooks(tmp_path):
    with FaultServer(lambda request: "Rome") as server:
        path = write(tmp_path / "models.yaml", {"reader": settings(server)})
        for seed, notebook in enumerate((NOTEBOOK, "06_benchmark_evaluation")):
            run = start_run(notebook, {"run_id": "r", "models": str(path)})
            instance = planted_stream(seed=seed)
            play(
                [instance],
                make_manager("insert-all"),
                RolloutSettings(num_generations=1),
                run.models.reader([instance]),
                0,
            )
            total = run.model_usage()
            run.finish()
    assert total["calls"] == sum(server.paid.values())
    assert total["tokens_out"] == 5 * total["calls"]


def test_a_run_refuses_models_and_questions_that_are_not_there(tmp_path):
    for name, value, said in [
        ("models", "no/such.yaml", "models .*no/such.yaml: cannot be read"),
        ("questions", "no/such", "no/such: is no folder, expected one that `finemem questions`"),
        ("models", 3, "models is 3, expected a text"),
    ]:
        with pytest.raises(ValueError, match=said):
            start_run("01_question_generation", {"run_id": "r", name: value})
    assert not (tmp_path / "runs").exists()


def test_relative_models_are_looked_for_from_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = start_run(NOTEBOOK, {"run_id": "r", "models": "notebooks/models/server.yaml"})
    assert run.models.roles["reader"].chat.model == "Qwen/Qwen3-32B"
    assert run.models.roles["reader"].chat.memo == str(run.folder / "replies.sqlite")
    assert isinstance(run.models.roles["judge"], ModelRole)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"kind": "server", "model": "m"}, "base_url is missing"),
        ({"kind": "server", "model": "m", "base_url": "http://h", "key": "x"}, "key: Unexpected"),
        ({"kind": "nearby", "model": "m"}, "'server' or 'local'"),
        (
            {"kind": "server", "model": "m", "cite": "no"},
            "cite is a str, expected true or false",
        ),
    ],
)
def test_reader_settings_that_cannot_be_are_refused_in_words(settings, said):
    with pytest.raises(ValueError, match=said):
        reader_role(settings)


def test_the_writer_is_a_model_or_none_and_is_recorded(tiny_model):
    assert Models().writer() is None and Models().judge() is None
    models = Models({"writer": ModelRole(local(tiny_model))})
    writer = models.writer()
    assert writer is models.writer()  # one client
    [entry] = models.record()
    assert list(entry["roles"]) == ["writer"] and entry["model"] == writer.name
    models.close()
