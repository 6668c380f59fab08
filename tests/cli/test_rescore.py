"""`finemem rescore` and `finemem recredit` on a small real run: nothing is played again or lost."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from finemem_lib.cli.main import main
from finemem_lib.credit.rules import assign
from finemem_lib.data.planted import planted_instances
from finemem_lib.data.worked_example import worked_example
from finemem_lib.evaluation.rescoring import recredited, rescored, score_changes, updates_of
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.runs.run import start_run
from finemem_lib.trajectory import Chunk, Instance, Question, Trajectory, read_jsonl
from tests.helpers.fault_server import FaultServer

FREE = Instance(
    "free-text",
    "lme_train",
    "AR",
    (Chunk("Mia moved to Rome. She likes tea.", 8), Chunk("Mia moved to Oslo.", 5)),
    (Question("q-1", "Where did Mia move?", ("Oslo",), "lme_train"),),
)
"""Its source needs a judge."""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run whose notebooks 01 and 02 did their work, and its folder."""
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    first = start_run("01_question_generation", {"run_id": "small"})
    first.save("instances", [*planted_instances("held-out", 2, seed=0), FREE])
    first.finish()
    second = start_run("02_memory_and_retrieval", {"run_id": "small"})
    instances = second.load("instances")
    played = [
        one
        for name in ("insert-all", "random")
        for group in play(
            instances,
            make_manager(name),
            RolloutSettings(num_generations=1),
            reader_for(instances),
            seed=0,
        )
        for one in group
    ]
    second.save("trajectories", played)
    second.finish()
    return second.folder


def played_in(run) -> list[Trajectory]:
    return read_jsonl(Trajectory, (run / "trajectories.jsonl").read_text(encoding="utf-8"))


def judge_file(tmp_path, server):
    path = tmp_path / "strict.yaml"
    one = {"model": "m", "base_url": server.base_url, "backoff": 0.01}
    path.write_text(json.dumps({"judge": one}), encoding="utf-8")
    return str(path)


def everything(run) -> dict[str, bytes]:
    return {str(p.relative_to(run)): p.read_bytes() for p in run.rglob("*") if p.is_file()}


def test_a_judge_scores_what_no_metric_can_and_nothing_is_overwritten(run, tmp_path, capsys):
    before, files = played_in(run), everything(run)
    with FaultServer(lambda request: '{"verdict": true}') as server:
        command = ["rescore", "small", "--judge", judge_file(tmp_path, server)]
        assert main(command) == 0
        assert sum(server.paid.values()) <= 2  # two managers, equal answers are asked once
    printed = capsys.readouterr().out
    kept = run / "rescored" / "strict"
    after = read_jsonl(Trajectory, (kept / "trajectories.jsonl").read_text(encoding="utf-8"))
    for old, new in zip(before, after, strict=True):
        free = old.data_source == "lme_train"
        assert [a.score for a in new.questions] == (
            [1.0 if a.answer else None for a in old.questions]
            if free
            else [a.score for a in old.questions]
        )
        assert [a.answer for a in new.questions] == [a.answer for a in old.questions]
    assert "1 -> 0" in printed and "strict" in printed
    card = json.loads((kept / "how.json").read_text(encoding="utf-8"))
    assert card["judge"]["prompts"] and card["read"]["trajectories"]
    assert {name: body for name, body in everything(run).items() if name in files} == files
    assert main(command) == 2
    assert "exists and is kept; give another --name" in capsys.readouterr().err


def test_metrics_alone_change_nothing_that_they_scored(run, capsys):
    assert main(["rescore", "small"]) == 0
    printed = capsys.readouterr().out
    assert "insert-all" in printed and (run / "rescored/metrics/trajectories.jsonl").is_file()
    [one, *_] = score_changes(played_in(run), rescored(played_in(run)))
    assert one.changed == 0 and one.before == one.after


def test_a_score_that_the_metric_no_longer_gives_is_corrected(run):
    """As after a scorer was repaired: the file holds 0.0 where the answer is right."""
    path = run / "trajectories.jsonl"
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace('"score":1.0}', '"score":0.25}'), encoding="utf-8")
    changes = score_changes(played_in(run), rescored(played_in(run)))
    assert sum(one.changed for one in changes) > 0
    assert all(one.after is None or one.after >= one.before for one in changes)


def test_every_rule_that_needs_no_model_credits_as_it_did_in_the_notebook(run, capsys):
    assert main(["recredit", "small", "--rule", "eara", "--rule", "step-loo"]) == 0
    printed = capsys.readouterr().out
    rows = [
        json.loads(line)
        for line in (run / "recredited/eara+step-loo/credit.jsonl").read_text().splitlines()
    ]
    assert "mean credit" in printed and "of" in printed
    for one in played_in(run):
        agent = reader_for(played_in(run))
        for rule in ("eara", "step-loo"):
            got = [
                row["credit"]
                for row in rows
                if (row["rule"], row["manager"], row["instance_id"])
                == (rule, one.manager, one.instance_id)
            ]
            settings = {"agent": agent} if rule == "step-loo" else {}
            if one.data_source == "planted":
                assert got == list(assign(rule, one, **settings).credit)


def test_credit_follows_the_scores_of_a_judge(run, tmp_path, capsys):
    with FaultServer(lambda request: '{"verdict": true}') as server:
        assert main(["rescore", "small", "--judge", judge_file(tmp_path, server)]) == 0
    for scores in ([], ["--scores", "strict"]):
        assert main(["recredit", "small", "--rule", "outcome-broadcast", *scores]) == 0

    def credit(name):
        lines = (run / "recredited" / name / "credit.jsonl").read_text().splitlines()
        return [
            row["credit"]
            for row in map(json.loads, lines)
            if row["instance_id"] == "free-text" and row["manager"] == "insert-all"
        ]

    assert credit("outcome-broadcast") == [None, None]
    assert credit("outcome-broadcast+strict") == [1.0, 1.0]


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["rescore", "none"], "there is no run 'none'.*finemem list"),
        (["rescore", "../x"], "run id '../x'"),
        (["rescore", "small", "--every"], "name its file with --judge"),
        (["rescore", "small", "--judge", "none.yaml"], "none.yaml"),
        (["rescore", "small", "--name", "a/b"], "--name is 'a/b'"),
        (["rescore", "small", "--artefact", "trained_trajectories"], "has no trained_trajectories"),
        (["recredit", "small", "--rule", "eera"], "'eera', expected one of .*eara"),
        (["recredit", "small", "--rule", "csr"], "csr: trajectories of run small: .*chunk"),
        (["recredit", "small", "--rule", "eara", "--scores", "x"], "it has none.*finemem rescore"),
    ],
)
def test_what_cannot_be_done_is_refused_with_a_remedy(run, command, message, capsys):
    before = everything(run)
    assert main(command) == 2
    error = " ".join(capsys.readouterr().err.split())
    assert re.search(message, error), error
    assert everything(run) == before


def test_a_file_without_a_judge_is_refused(run, tmp_path, capsys):
    path = tmp_path / "models.yaml"
    path.write_text(json.dumps({"reader": {"model": "m", "base_url": "http://h/v1"}}))
    assert main(["rescore", "small", "--judge", str(path)]) == 2
    assert "names no judge; add the role judge" in capsys.readouterr().err


def test_a_run_without_trajectories_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    start_run("01_question_generation", {"run_id": "empty"}).finish()
    assert main(["recredit", "empty", "--rule", "eara"]) == 2
    assert "has no trajectories" in capsys.readouterr().err


def test_a_judge_that_judges_all_replaces_the_metrics():
    class No:
        def answers(self, answered):
            return [0.0] * len(answered)

    one = worked_example()
    [kept], [judged] = rescored([one], No()), rescored([one], No(), every=True)
    answered = [a for a in one.questions if a.answer]
    assert [a.score for a in judged.questions if a.answer] == [0.0] * len(answered)
    assert kept == rescored([one])[0]


def test_groups_are_rollouts_of_one_manager_on_one_instance():
    one = worked_example()
    other = dataclasses.replace(one, manager="another")
    assert [[len(group) for group in groups] for groups in updates_of([one, other, one])] == [
        [2],
        [1],
    ]
    done = recredited([one], "eara")
    assert [row.credit for row in done.rows] == [0.21875, 0.09375, 0.34375, 0.09375]
    assert done.calls_made == done.calls_asked == 0
    with pytest.raises(ValueError, match="expected one of"):
        recredited([one], "none")
