"""Notebooks with language models on a real server that fails: what they find, keep and ask."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest

from finemem_lib.data.memalpha import load_instances
from tests.helpers.fault_server import FAULTS, FaultServer, completion
from tests.helpers.paths import ROOT, SHARED_DATA
from tests.helpers.patience import LAST_RESORT

pytest.importorskip("openai", reason="the server extra is not installed")

LOCOMO = SHARED_DATA / "locomo.jsonl"
KEY = "sk-never-shown-0123456789"
SETTINGS = [
    "01.questions_per_chunk=2",
    "02.managers=[insert-all]",
    "06.managers=[raw-chunks, insert-all]",
    "06.systems=[]",
    "06.equal_budget=0",
    "06.controls=false",
    "05.source=trajectories",
    "06.trained=false",
    "06.resamples=100",
    "06.top_k=2",
]

EMPTY_AFTER = 16
"""Replies after which the first run is refused any more."""

pytestmark = [
    pytest.mark.notebook,
    pytest.mark.long,
    pytest.mark.skipif(not LOCOMO.is_file(), reason="../shared/data is not there"),
]


def finemem(runs, *arguments, code=0, **environment):
    done = subprocess.run(
        [sys.executable, "-m", "finemem_lib", *arguments],
        cwd=ROOT,
        text=True,
        timeout=LAST_RESORT,
        env={**os.environ, "FINEMEM_RUNS_DIR": str(runs), "TEST_MODEL_KEY": KEY, **environment},
        capture_output=True,
    )
    assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
    assert KEY not in done.stdout + done.stderr
    return done.stdout + done.stderr


def run(runs, run_id, data, models, *arguments, notebooks="01,02,06", code=0):
    settings = [f"models={models}", *(one for one in SETTINGS if one[:2] in notebooks.split(","))]
    printed = finemem(
        runs,
        "run",
        "--run-id",
        run_id,
        "--notebooks",
        notebooks,
        "--data",
        *data,
        *arguments,
        *(word for one in settings for word in ("--set", one)),
        code=code,
    )
    manifest = json.loads((runs / run_id / "manifest.json").read_text())
    return printed, manifest


def real_data(folder):
    """Write two instances of two chunks and four questions from a real dialogue: one scored by
    rule, one that only a judge can score. Answers and evidence are as published."""
    row = json.loads(LOCOMO.read_text(encoding="utf-8").splitlines()[0])
    asked = row["questions_and_answers"][:4]
    paths = []
    for number, source in enumerate(("locomo", "lme_train")):
        path = folder / f"{source}.jsonl"
        path.write_text(
            json.dumps(
                {
                    "instance_id": f"{source}-1",
                    "data_source": source,
                    "chunks": [
                        chunk[:1500] for chunk in row["chunks"][2 * number : 2 * number + 2]
                    ],
                    "questions_and_answers": [
                        {"question": one["question"], "answer": one["answer"]} for one in asked
                    ],
                }
            ),
            encoding="utf-8",
        )
        paths.append(str(path))
    return paths


def answers(request):
    """Answer each role by rule from what it was sent: the teacher asks which word stands before
    two others, verifier and reader find it, the judge tosses a coin."""
    said = request["messages"][-1]["content"]
    schema = request.get("response_format", {}).get("json_schema", {}).get("name")
    if schema == "WrittenQuestions":
        found = re.findall(r"\b([A-Z][a-z]{3,}) ([a-z]{3,} [a-z]{3,})\b", said)[-4:]
        return json.dumps(
            {
                "questions": [
                    {"question": f"Who or what is before '{after}'?", "answer": name}
                    for name, after in found
                ]
            }
        )
    if schema == "Verdict":
        return "maybe" if "relationship" in said else json.dumps({"verdict": len(said) % 2 == 0})
    if asked := re.search(r"before '(.*?)'\?", said):
        found = re.search(rf"(\w+) {asked[1]}(?!'\?)", said)
        return found[1] if found else "unknown"
    if "How long has" in said:
        return completion(None, refusal="I would rather not")
    return " ".join(re.findall(r"\b[A-Z]\w+", said)[-3:])


@pytest.fixture(scope="module")
def passes(tmp_path_factory):
    """A run without faults, cut off in the middle and resumed; the same with 30 % of the calls
    failing; and one that reuses that."""
    folder = tmp_path_factory.mktemp("models")
    data, runs = real_data(folder), folder / "runs"
    made = {}

    def models_of(server, name):
        one = {
            "model": "m",
            "base_url": server.base_url,
            "key_env": "TEST_MODEL_KEY",
            "backoff": 0.01,
            "price_in": 1.0,
            "price_out": 2.0,
        }
        path = folder / f"{name}.yaml"
        path.write_text(json.dumps(dict.fromkeys(("reader", "verifier", "teacher", "judge"), one)))
        return path

    def account_is_empty_after_a_while(request):
        if sum(server.paid.values()) >= EMPTY_AFTER and not refilled:
            server.status, server.body = 401, "{}"
        return answers(request)

    refilled = []
    with FaultServer(account_is_empty_after_a_while) as server:
        models = models_of(server, "clean")
        printed, _ = run(runs, "clean", data, models, code=1)
        assert "ModelError: m at http" in printed and "401" in printed
        said = finemem(runs, "resume", "clean", code=2, TEST_MODEL_KEY="")
        assert said.count("TEST_MODEL_KEY is not set") == 1
        refilled.append(server.paid.copy())
        server.body = None
        printed = finemem(runs, "resume", "clean")
        made["clean"] = (printed, json.loads((runs / "clean/manifest.json").read_text()), server)
        made["cut off"] = refilled
    with FaultServer(answers, FAULTS, share=0.3, seed=5) as server:
        models = models_of(server, "faults")
        made["faults"] = (*run(runs, "faults", data, models), server)
        paid = sum(server.paid.values())
        made["again"] = (
            *run(runs, "again", data, models, "--reuse", "faults", notebooks="01,02,05,06"),
            server,
        )
        assert sum(server.paid.values()) == paid
    return runs, data, made


def artefacts(folder):
    kept = {
        name: (folder / name).read_bytes() for name in ("instances.jsonl", "trajectories.jsonl")
    }
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics.pop("05_evidence_tracing", None)
    for values in metrics.values():
        for name in [name for name in values if name.startswith("models_")]:
            del values[name]
    return kept, metrics


def test_results_with_faults_equal_those_without(passes):
    runs, data, made = passes
    assert sum(made["faults"][-1].failed.values()) > 10
    assert not made["clean"][-1].failed
    assert artefacts(runs / "clean") == artefacts(runs / "faults") == artefacts(runs / "again")
    for _, _, server in (made["clean"], made["faults"]):
        assert set(server.paid.values()) == {1}  # nothing is paid twice
    _, metrics = artefacts(runs / "clean")
    assert metrics["01_question_generation"]["kept"] >= 4


def test_every_role_was_asked_and_the_manifest_says_what(passes):
    runs, _, made = passes
    _, manifest, server = made["faults"]
    entries = {one["name"][:2]: one["models"] for one in manifest["notebooks"]}
    for number, roles in (
        ("01", ["verifier", "teacher"]),
        ("02", ["reader", "judge"]),
        ("06", ["reader", "judge"]),
    ):
        [entry] = entries[number]
        assert list(entry["roles"]) == roles and entry["base_url"] == server.base_url
        for role in entry["roles"].values():
            assert role["chat"]["model"] == "m"
            assert all(re.fullmatch(r"\w+ v\d+ [0-9a-f]{12}", one) for one in role["prompts"])
    calls = [entry["usage"]["calls"] for [entry] in entries.values()]
    assert all(calls) and sum(calls) == sum(server.paid.values())
    folder = runs / "faults"
    total = json.loads((folder / "metrics.json").read_text())["06_benchmark_evaluation"]
    assert total["models_calls"] == sum(calls)
    assert total["models_tokens_in"] == 10 * sum(calls)
    assert total["models_cost"] == pytest.approx(sum(calls) * (10 * 1.0 + 5 * 2.0) / 1e6)
    assert total["models_refused"] > 0 and total["models_malformed"] > 0
    assert total["models_unanswered"] > 0
    assert total["models_retries"] > 0
    executed = (folder / "notebooks/02_memory_and_retrieval.ipynb").read_text()
    assert re.search(
        r"asked m as reader and judge: calls \d+, retries \d+, .*refused [1-9]\d*, "
        r"malformed [1-9]\d*, unanswered [1-9]",
        executed,
    )


def test_a_run_that_was_cut_off_goes_on_and_has_said_what_it_paid(passes):
    _, _, made = passes
    _, manifest, server = made["clean"]
    [paid] = made["cut off"]
    assert EMPTY_AFTER <= sum(paid.values()) < sum(server.paid.values())
    cut_off = next(one for one in manifest["notebooks"] if len(one["models"]) == 2)
    assert cut_off["status"] == "ok"
    calls = [each["usage"]["calls"] for one in manifest["notebooks"] for each in one["models"]]
    assert sum(calls) == sum(server.paid.values())


def test_a_judge_scores_what_no_rule_can(passes):
    runs, _, _ = passes
    rows = [
        json.loads(line) for line in (runs / "faults/trajectories.jsonl").read_text().splitlines()
    ]
    judged = [
        q["score"]
        for row in rows
        for q in row["questions"]
        if q["question"]["data_source"] == "lme_train" and q["answer"]
    ]
    assert set(judged) <= {0.0, 1.0, None} and None in judged and set(judged) != {None}
    refused = [q for row in rows for q in row["questions"] if not q["answer"]]
    assert refused and all(q["score"] is None for q in refused)


def test_a_rerun_on_the_earlier_run_asks_nothing(passes):
    _, manifest, _ = passes[2]["again"]
    assert len(manifest["notebooks"]) == 4
    for entry in manifest["notebooks"]:
        [models] = entry["models"]
        assert models["usage"]["calls"] == models["usage"]["retries"] == 0
        assert models["usage"]["memo_hits"] > 0


def test_the_key_is_in_no_file(passes):
    runs, _, made = passes
    assert set(made["clean"][-1].authorizations) == {f"Bearer {KEY}"}
    files = [path for path in runs.parent.rglob("*") if path.is_file()]
    assert {"replies.sqlite", "report.html", "manifest.json"} <= {path.name for path in files}
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_questions_made_ahead_are_loaded_with_their_recipe(passes):
    runs, data, _ = passes
    store = runs.parent / "store"
    finemem(runs, "questions", "--data", *data, "--output", str(store), "--k", "2")
    _, manifest = run(runs, "ahead", data, "", "--set", f"questions={store}", notebooks="01")
    metrics = json.loads((runs / "ahead/metrics.json").read_text())["01_question_generation"]
    assert metrics["questions_recipe"] in {
        path.stem.split("-")[1] for path in store.glob("*.parquet")
    }
    assert manifest["notebooks"][0]["models"] == []
    executed = (runs / "ahead/notebooks/01_question_generation.ipynb").read_text()
    assert "made ahead by Recipe(teacher='cloze'" in executed and "asked 0 times" in executed
    assert metrics["kept"] == len(
        re.findall('"question_id":"chunk-', (runs / "ahead/instances.jsonl").read_text())
    )
    assert metrics["candidates"] >= metrics["kept"] > 0
    assert load_instances(data[0]).instances[0].chunk_questions is None


def test_models_that_cannot_be_used_start_no_kernel(tmp_path):
    path = tmp_path / "models.yaml"
    path.write_text("reader: {model: m, base_url: 'http://h/v1', key_env: NOT_SET_HERE}")
    printed = finemem(
        tmp_path / "runs", "run", "--notebooks", "02", "--set", f"models={path}", code=2
    )
    assert f"models {path}: reader: the environment variable NOT_SET_HERE is not set" in printed
    assert not (tmp_path / "runs").exists()
