"""`finemem export`: what viewers of agents get, and what they show of it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shlex
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from finemem_lib.cli import export, trackio_traces
from finemem_lib.cli.conversations import credited_rollouts, messages
from finemem_lib.cli.inspect_log import inspect_log
from finemem_lib.cli.main import main
from finemem_lib.data.worked_example import worked_example
from finemem_lib.runs.run import sha256, start_run
from tests.helpers.browser import watched_page
from tests.helpers.environments import environment_with
from tests.helpers.patience import LAST_RESORT, wait_until
from tests.helpers.rollout_samples import rollouts

POISON = "<script>window.ran = 1</script><img src='x' onerror='window.ran = 1'>"
SECRET = "never-to-be-exported"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run with three rollouts of one instance whose texts are hostile; returns its folder."""
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    for name in ("HF_TOKEN", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "TRACKIO_WRITE_TOKEN"):
        monkeypatch.setenv(name, SECRET)
    part = start_run("02_memory_and_retrieval", {"run_id": "played"})
    part.save("trajectories", rollouts(POISON))
    part.finish()
    return part.folder


def credited(trajectories):
    return credited_rollouts("trajectories", trajectories)[0]


def contents(folder: Path) -> dict[str, bytes]:
    return {str(one.relative_to(folder)): one.read_bytes() for one in files(folder)}


def files(folder: Path) -> list[Path]:
    return [one for one in folder.rglob("*") if one.is_file()]


# ---- what is exported ----------------------------------------------------------------------------


def test_a_conversation_holds_chunks_operations_and_questions_in_their_order():
    [rollout] = credited([worked_example()])
    found = [*messages(rollout)]
    steps = worked_example().steps
    for step in steps:
        place = next(i for i, one in enumerate(found) if step.chunk.text in one["content"])
        turn, results = found[place + 1], found[place + 2 : place + 2 + len(step.outcomes)]
        assert turn["content"] == step.completion and turn["metadata"]["step"] == step.step
        names = [call["function"]["name"] for call in turn["tool_calls"]]
        kinds = [one.operation.kind if one.operation else "unreadable" for one in step.outcomes]
        assert names == kinds
        assert [one["error"] for one in results] == [not one.applied for one in step.outcomes]
        assert [one["tool_call_id"] for one in results] == [one["id"] for one in turn["tool_calls"]]
    asked = sum(len(step.chunk_questions) for step in steps) + len(worked_example().questions)
    answers = [one for one in found if "score" in one.get("metadata", {})]
    assert len(answers) == asked
    assert [one["metadata"]["score"] for one in answers[-2:]] == [1.0, 0.5]
    last = found[found.index(answers[-1]) - 1]["content"]
    item = worked_example().questions[-1].retrieved[0]
    [kept] = [one for one in worked_example().final_memory() if one.item_id == item.item_id]
    assert f"{item.item_id} (steps 3): {kept.content}" in last


def test_every_step_carries_its_rewards_and_the_credit_of_every_rule_from_the_record():
    [rollout], without = credited_rollouts("trajectories", [worked_example()])
    assert [one["credit"]["eara"] for one in rollout.steps] == [0.21875, 0.09375, 0.34375, 0.09375]
    assert [one["credit"]["csr"] for one in rollout.steps] == [1.0, None, 0.5, 0.0]
    assert round(rollout.steps[0]["reward"]["total"], 4) == 1.7451
    assert rollout.about()["outcome"] == 0.75
    assert "step-loo" not in rollout.steps[0]["credit"], "it reads again"
    assert set(without) == {"hindsight"} and "evidence steps" in without["hindsight"]


def test_credit_that_recredit_has_computed_is_exported_too(run):
    """But not that of answers which a judge has scored again, or of rollouts since replaced."""
    rows = [
        {
            "artefact": "trajectories",
            "rule": "step-loo",
            "manager": one.manager,
            "instance_id": one.instance_id,
            "rollout": one.rollout,
            "step": step.step,
            "credit": step.step / 8,
        }
        for one in rollouts(POISON)
        for step in one.steps
    ]
    now = sha256(run / "trajectories.jsonl")
    for name, scores, read in (
        ("step-loo", None, now),
        ("judged", "strict", now),
        ("stale", None, "0" * 64),
    ):
        folder = run / "recredited" / name
        folder.mkdir(parents=True)
        factor = 1 if name == "step-loo" else 100
        lines = [json.dumps(row | {"credit": row["credit"] * factor}) for row in rows]
        (folder / "credit.jsonl").write_text("\n".join(lines))
        (folder / "how.json").write_text(
            json.dumps({"scores": scores, "read": {"trajectories": read}})
        )
    assert main(["export", "played", "--to", "inspect"]) == 0
    [log] = (run / "exported" / "inspect" / "logs").iterdir()
    sample = json.loads(log.read_text())["samples"][1]
    credit = sample["metadata"]["steps"]["credit"]["step-loo"]
    assert credit == [step / 8 for step in range(1, len(credit) + 1)]


def test_a_log_of_inspect_has_a_sample_for_every_rollout(run, capsys):
    assert main(["export", "played", "--to", "inspect"]) == 0
    printed = capsys.readouterr().out
    assert f"inspect view --log-dir {run / 'exported' / 'inspect' / 'logs'}" in printed
    found = dict(one.split("=", 1) for one in shlex.split(printed.splitlines()[-1]))
    assert (found["status"], found["rollouts"]) == ("ok", "3")
    [path] = (run / "exported" / "inspect" / "logs").iterdir()
    log = json.loads(path.read_text())
    assert [(one["id"], one["epoch"]) for one in log["samples"]] == [
        (f"{POISON}planted-3", number) for number in (1, 2, 3)
    ]
    outcomes = [one["scores"]["outcome"]["value"] for one in log["samples"]]
    [score] = log["results"]["scores"]
    assert score["metrics"]["mean"]["value"] == pytest.approx(sum(outcomes) / 3)
    turn = next(one for one in log["samples"][0]["messages"] if one["role"] == "assistant")
    assert (
        turn["metadata"]["credit eara"]
        == log["samples"][0]["metadata"]["steps"]["credit"]["eara"][0]
    )


def test_a_rollout_that_nobody_could_score_has_no_outcome():
    one = worked_example()
    unscored = dataclasses.replace(
        one, questions=tuple(dataclasses.replace(asked, score=None) for asked in one.questions)
    )
    log = inspect_log("r", "2026-01-01T00:00:00+00:00", credited([unscored]))
    assert log["samples"][0]["scores"] == {} and log["results"]["scores"][0]["metrics"] == {}
    [logged] = trackio_traces.trackio_run("r", credited([unscored]))["rollouts"]
    assert logged["outcome"] is None


def test_spans_of_a_trace_are_the_steps_with_what_happened_in_them():
    [rollout] = credited([worked_example()])
    found = [*trackio_traces.spans(rollout)]
    ids = [one["id"] for one in found]
    assert len({*ids}) == len(ids)
    assert {one.get("parent_id") for one in found} - {None} <= {*ids}
    third = next(one for one in found if one["id"] == "step-3")
    assert third["metadata"]["credit"]["eara"] == 0.34375
    assert third["name"] == "step 3, reward 1.120"
    refused = [one for one in found if one["name"].endswith(", not applied")]
    assert refused and all(one["output"].startswith("not applied: ") for one in refused)


# ---- what is never done --------------------------------------------------------------------------


def test_nothing_is_overwritten_and_no_secret_is_exported(run, capsys):
    assert main(["export", "played", "--to", "inspect"]) == 0
    before = contents(run)
    assert not any(SECRET.encode() in content for content in before.values())
    assert main(["export", "played", "--to", "inspect"]) == 2
    assert "exists and is kept; give another --name" in capsys.readouterr().err
    assert contents(run) == before
    assert main(["export", "played", "--to", "inspect", "--name", "again"]) == 0
    assert contents(run).items() > before.items()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["nothing", "--to", "inspect"], "there is no run 'nothing'"),
        (["played", "--to", "inspect", "--artefact", "trained_trajectories"], "has no trained"),
        (["played", "--to", "inspect", "--name", "../up"], "expected a folder name"),
        (["played", "--to", "trackio", "--python", "/nowhere/python"], "cannot be started"),
    ],
)
def test_bad_usage_writes_nothing(run, capsys, words, reason):
    assert main(["export", *words]) == 2
    assert reason in capsys.readouterr().err
    assert not (run / "exported").exists()


def test_a_python_without_trackio_is_said_with_how_to_get_one(run, capsys, tmp_path):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    assert main(["export", "played", "--to", "trackio", "--python", str(python)]) == 2
    shown = capsys.readouterr().err
    assert "trackio is not installed" in shown and f"pip install '{export.TRACKIO}'" in shown


def test_what_trackio_could_not_write_is_said_and_nothing_is_left(run, capsys, tmp_path):
    python = tmp_path / "python"
    python.write_text('#!/bin/sh\n[ "$1" = -c ] && exit 0\necho "TypeError: spans" >&2\nexit 1\n')
    python.chmod(0o755)
    assert main(["export", "played", "--to", "trackio", "--python", str(python)]) == 2
    assert "could not write the traces (TypeError: spans)" in capsys.readouterr().err
    assert files(run / "exported") == []


def test_the_script_for_another_python_needs_nothing_of_the_workbench(run, tmp_path, monkeypatch):
    """A module `trackio` made by hand takes down what it is given, and what its process sees."""
    fake = tmp_path / "fake"
    fake.mkdir()
    (fake / "trackio.py").write_text(
        "import json, os, pathlib\ncalls = []\n"
        "class Trace:\n    def __init__(self, messages, metadata, spans):\n"
        "        self.given = [messages, metadata, spans]\n"
        "def init(**settings): calls.append(['init', settings])\n"
        "def log(values, step): calls.append(['log', step, values['rollout'].given, "
        "values.get('outcome')])\n"
        "def finish():\n    place = pathlib.Path(os.environ['TRACKIO_DIR'])\n"
        "    (place / 'calls.json').write_text(json.dumps([calls, dict(os.environ)]))\n"
    )
    python = tmp_path / "python"
    python.write_text(
        f'#!/bin/sh\nfor word; do last=$word; done\n[ "$1" = -c ] && exit 0\n'
        f'PYTHONPATH={fake} exec {sys.executable} -P "$last"\n'
    )
    python.chmod(0o755)
    assert main(["export", "played", "--to", "trackio", "--python", str(python)]) == 0
    store = run / "exported" / "trackio" / "store"
    calls, environment = json.loads((store / "calls.json").read_text())
    assert [call[0] for call in calls] == ["init", "log", "log", "log"]
    assert calls[0][1] == {
        "project": "played",
        "name": f"trajectories {POISON}hand-made",
        "embed": False,
        "auto_log_cpu": False,
        "auto_log_gpu": False,
    }
    assert SECRET not in json.dumps(environment) and environment["HF_HUB_OFFLINE"] == "1"
    assert [call[1] for call in calls[1:]] == [0, 1, 2]
    arguments = calls[1][2][0][1]["tool_calls"][0]["function"]["arguments"]
    assert json.loads(arguments)["content"].startswith(POISON)


# ---- the viewers themselves ----------------------------------------------------------------------


@contextlib.contextmanager
def served(command, port, tmp_path, **variables):
    """Run a viewer on loopback until it answers; end it afterwards."""
    log = (tmp_path / "viewer.log").open("w")
    environment = {"PATH": os.environ["PATH"], "HOME": str(tmp_path), **variables}
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        address = f"http://127.0.0.1:{port}/"

        def answers():
            assert process.poll() is None, (tmp_path / "viewer.log").read_text()
            with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=30):
                return True

        wait_until(answers)
        yield address
    finally:
        process.terminate()
        process.wait(LAST_RESORT)


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.browser
def test_inspect_shows_rollouts_with_step_credits(run, tmp_path):
    viewer = environment_with(tmp_path / "viewer", "inspect-ai")
    assert main(["export", "played", "--to", "inspect"]) == 0
    logs = run / "exported" / "inspect" / "logs"
    [path] = logs.iterdir()
    read = (
        "import sys; from inspect_ai.log import read_eval_log as read\n"
        "log = read(sys.argv[1]); print(log.status, len(log.samples), log.samples[0].epoch)"
    )
    done = subprocess.run(
        [viewer / "bin/python", "-c", read, path], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["success", "3", "1"]
    port = free_port()
    command = [viewer / "bin/inspect", "view", "start", "--log-dir", logs, "--port", str(port)]
    with served(command, port, tmp_path) as address, watched_page() as (page, watch):
        page.goto(address)
        page.locator("[role=row]", has_text="6 chunks").first.click()
        page.get_by_text("credit eara").first.wait_for()
        text = page.inner_text("body")
        assert POISON in text and "INSERT" in text and "Retrieved:" in text
        assert page.evaluate("window.ran") is None
        assert watch.errors == [] and watch.requests == []


@pytest.mark.nightly
@pytest.mark.network
@pytest.mark.browser
def test_trackio_shows_rollouts_with_step_credits(run, tmp_path):
    viewer = environment_with(tmp_path / "viewer", export.TRACKIO)
    python = str(viewer / "bin/python")
    assert main(["export", "played", "--to", "trackio", "--python", python]) == 0
    store = run / "exported" / "trackio" / "store"
    assert not any(SECRET.encode() in one.read_bytes() for one in files(store))
    port = free_port()
    command = [viewer / "bin/trackio", "show", "--project", "played"]
    variables = {"TRACKIO_DIR": str(store), "GRADIO_SERVER_PORT": str(port)}
    with served(command, port, tmp_path, **variables) as address, watched_page() as (page, watch):
        page.goto(f"{address}traces?project=played")
        page.locator("tr.trace-row").first.click()
        page.get_by_text("step 1, reward").first.wait_for()
        assert page.locator("tr.trace-row").count() == 3
        page.get_by_text("Metadata", exact=True).first.click()
        text = page.inner_text("body")
        assert '"eara":' in text and POISON in text and "INSERT" in text and "outcome:" in text
        assert page.evaluate("window.ran") is None
        assert watch.errors == [] and watch.requests == []
