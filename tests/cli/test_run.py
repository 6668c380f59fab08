"""The command line, on small notebooks made here: what it refuses, what it leaves behind."""

from __future__ import annotations

import functools
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import nbformat
import psutil
import pytest

from finemem_lib.cli import (
    execute as execution,
    manifest,
    pictures,
    report as report_page,
    run as run_command_module,
)
from finemem_lib.cli.main import main
from finemem_lib.runs.run import sha256, start_run
from finemem_lib.util import console
from finemem_lib.util.provenance import workbench_root
from tests.helpers.patience import LAST_RESORT, wait_until
from tests.helpers.run_samples import make_bare_run
from tests.helpers.small_notebooks import (
    FIRST,
    PASS_ON,
    SECOND,
    THIRD,
    make_notebooks,
    write_profile,
)

FINEMEM = [sys.executable, "-m", "finemem_lib"]


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text(encoding="utf-8"))


def assert_nothing_half_written(folder):
    assert not list(folder.rglob("*.tmp")) and not (folder / "scratch").exists()
    for path in folder.rglob("*.ipynb"):
        nbformat.read(path, as_version=4)


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def no_kernel(*arguments):
    """An executor for what must be refused before a notebook is executed."""
    raise AssertionError("a kernel would have been started")


def ends(*outcomes, meanwhile=lambda: None):
    """Return an executor whose notebooks end so, one after the other, and the list that it fills
    with the parameters they are given; the last outcome is for all that follow."""
    given = []

    def execute(source, parameters, *arguments):
        given.append(parameters)
        meanwhile()
        return execution.Outcome(*outcomes[min(len(given), len(outcomes)) - 1])

    return execute, given


DONE, _ = ends(["ok"])


@pytest.fixture
def notebooks(tmp_path):
    return make_notebooks(tmp_path / "notebooks", PASS_ON)


def run(notebooks, *arguments, execute=execution.execute_notebook):
    """Run notebooks one after the other; `test_schedule.py` runs them side by side."""
    return main(["run", "--notebooks-dir", str(notebooks), "--jobs", "1", *arguments], execute)


# ---- a run that works ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """Two notebooks run from another working directory, with a decoy for the kernel's name."""
    place = tmp_path_factory.mktemp("good")
    notebooks = make_notebooks(place / "notebooks", PASS_ON)
    decoy = place / "share" / "kernels" / "python3"
    decoy.mkdir(parents=True)
    (decoy / "kernel.json").write_text(
        json.dumps(
            {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
        )
    )
    data = place / "my data.jsonl"
    data.write_text("{}\n")
    done = subprocess.run(
        [
            *FINEMEM,
            "run",
            "--notebooks-dir",
            str(notebooks),
            "--run-id",
            "good",
            "--set",
            "num_chunks=6",
            "--set",
            "03.beta=0.25",
            "--data",
            data.name,
        ],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
        env={
            **os.environ,
            "FINEMEM_RUNS_DIR": str(place / "runs"),
            "JUPYTER_PATH": str(place / "share"),
            "MY_SECRET": "never-shown",
        },
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "runs" / "good", done.stdout, notebooks, data


def test_a_run_ends_with_a_table_of_results_and_the_report(good):
    folder, printed, *_ = good
    lines = [line.split() for line in printed.splitlines()]
    assert ["notebook", "found"] in lines
    assert [FIRST, "kept", "6,", "unmeasured", "–"] in lines
    assert [THIRD, "reward", "1.5000"] in lines
    assert f"report: {folder / 'report.html'}" in printed
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert printed.splitlines()[-1].startswith("status=ok run=good seconds=")
    assert [line for line in lines if line[:2] == [FIRST, "ok"]]


def test_the_manifest_says_what_was_run_and_on_what(good):
    folder, _, notebooks, data = good
    found = manifest_of(folder)
    assert (found["status"], found["exit_code"], found["error"]) == ("ok", 0, None)
    assert found["schema_version"] == 1 and found["profile"] == "default" and found["seed"] == 0
    assert found["parameters_given"] == {
        "num_chunks": "6",
        "03.beta": "0.25",
        "data": [str(data)],
    }
    assert found["command"][:2] == ["finemem", "run"]
    shipped = workbench_root() / "data" / "tiny_manager"
    assert found["inputs"] == {
        str(data): sha256(data),
        "tiny": sha256(shipped),
    }
    assert found["outputs"]["rewards"]["sha256"] == sha256(folder / "rewards.parquet")
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["versions"]["papermill"] and found["platform"] and found["peak_memory_mb"] > 50
    assert found["started"] <= found["ended"] and found["seconds"] > 0
    first, third = found["notebooks"]
    assert first["parameters"] == {
        "run_id": "good",
        "seed": 0,
        "num_chunks": 6,
        "data": [str(data)],
    }
    assert third["parameters"]["beta"] == 0.25 and third["parameters"]["capacity"] == 0
    assert (first["reads"], first["writes"]) == ([], ["question_audit"])
    assert (third["reads"], third["writes"]) == (["question_audit"], ["rewards"])
    assert len(first["source_sha256"]) == 64 and first["peak_memory_mb"] > 10
    assert "never-shown" not in json.dumps(found)
    assert json.loads((folder / "metrics.json").read_text())[THIRD] == {"reward": 1.5}


def test_kernels_run_this_interpreter_in_the_notebooks_folder_offline(good):
    folder, _, notebooks, _ = good
    executed = nbformat.read(folder / "notebooks" / f"{THIRD}.ipynb", as_version=4)
    (text,) = [
        output.text
        for cell in executed.cells
        for output in cell.get("outputs", [])
        if "executable" in cell.source or "HASHSEED" in cell.source
    ]
    assert text.startswith(f"{sys.executable} {notebooks}")
    assert "'HF_HUB_OFFLINE': '1', 'PYTHONHASHSEED': '0'" in text
    assert "widgets" not in executed.metadata
    assert_nothing_half_written(folder)


def test_the_hash_of_a_notebook_is_that_of_its_cells_only(good, tmp_path):
    folder, _, notebooks, _ = good
    source = nbformat.read(notebooks / f"{FIRST}.ipynb", as_version=4)
    source.cells[2]["execution_count"] = 5
    source.metadata["x"] = 1
    nbformat.write(source, tmp_path / "same.ipynb")
    source.cells[2]["source"] += " "
    nbformat.write(source, tmp_path / "other.ipynb")
    recorded = manifest_of(folder)["notebooks"][0]["source_sha256"]
    assert manifest.source_hash(tmp_path / "same.ipynb") == recorded
    assert manifest.source_hash(tmp_path / "other.ipynb") != recorded


def test_list_shows_the_run_and_report_makes_the_page_again(good, monkeypatch, capsys, tmp_path):
    folder, *_ = good
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(folder.parent))
    exported = {}
    monkeypatch.setattr(pictures, "save_figures", exported.update)
    (folder / "report.html").unlink()
    assert main(["report", "good", "--figures", str(tmp_path / "figures")]) == 0
    assert (folder / "report.html").exists()
    ((stem, figure),) = exported.items()
    assert stem == tmp_path / "figures" / f"{FIRST}-kept" and figure.layout.title.text == "Kept"
    assert main(["list"]) == 0
    assert re.search(r"good +ok +default +2/2", capsys.readouterr().out)


def test_one_notebook_runs_on_what_an_earlier_run_left(good, monkeypatch, capsys):
    folder, _, notebooks, _ = good
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(folder.parent))
    again = ["--notebooks", "03", "--run-id"]
    assert run(notebooks, *again, "reusing", "--reuse", "good", "--set", "beta=1") == 0
    found = manifest_of(folder.parent / "reusing")
    assert found["inputs"] == {
        "good/question_audit": sha256(folder / "question_audit.parquet"),
        "tiny": sha256(workbench_root() / "data" / "tiny_manager"),
    }
    assert json.loads((folder.parent / "reusing" / "metrics.json").read_text())[THIRD] == {
        "reward": 6.0,
    }


def lab_run(folder, **artefacts):
    """Leave what a notebook opened in JupyterLab leaves: records and artefacts, no manifest."""
    part = start_run(FIRST, {"run_id": folder.name})
    for name, value in artefacts.items():
        part.save(name, value)
    part.finish()


def test_what_was_made_in_jupyterlab_can_be_reused(notebooks, runs_dir, capsys):
    lab_run(runs_dir / "notebook", question_audit=[{"kept": 1}])
    reusing = ["--notebooks", "03", "--run-id", "on", "--reuse", "notebook"]
    assert run(notebooks, *reusing, execute=DONE) == 0
    capsys.readouterr()
    assert main(["list"]) == 0
    assert re.search(r"notebook +JupyterLab +1/1", capsys.readouterr().out)
    assert main(["report", "notebook"]) == 2
    shown = capsys.readouterr().err
    assert "made in JupyterLab" in shown and "finemem run --notebooks 05 --reuse notebook" in shown


# ---- runs that do not ----------------------------------------------------------------------------


def test_a_failing_cell_stops_the_run_and_its_error_is_shown(tmp_path, runs_dir, capsys):
    notebooks = make_notebooks(
        tmp_path / "notebooks",
        {
            FIRST: (
                "",
                [
                    'run.metric("early", 1)\nrun.save("question_audit", [])',
                    'def inner():\n    raise ValueError("<b>chunk 3 is broken</b>")\ninner()',
                ],
            ),
            SECOND: ("", []),
            THIRD: ("", ['run.load("question_audit")']),
        },
    )
    assert run(notebooks, "--run-id", "bad") == 1
    shown = capsys.readouterr()
    assert f"failed: {FIRST}: cell 4 (In [5]): ValueError: <b>chunk 3" in shown.err
    assert "raise ValueError" in shown.err and "\x1b" not in shown.err
    found = manifest_of(runs_dir / "bad")
    assert (found["status"], found["exit_code"]) == ("failed", 1)
    assert [entry["status"] for entry in found["notebooks"]] == ["failed", "not run", "not run"]
    assert "chunk 3 is broken" in found["notebooks"][0]["error"]
    why = f"not run: {FIRST} failed before it"
    assert [entry["error"] for entry in found["notebooks"][1:]] == [why, why]
    for stem in (SECOND, THIRD):
        assert f"{stem}: {why}\n" in shown.err
    assert "go on with: finemem resume bad" in shown.err
    assert found["notebooks"][0]["writes"] == ["question_audit"]
    report = (runs_dir / "bad" / "report.html").read_text(encoding="utf-8")
    assert "chunk 3 is broken" in report and "<b>chunk 3" not in report
    assert report.count(why) == 2


def test_a_killed_kernel_fails_the_run_and_leaves_no_half_artefact(tmp_path, runs_dir, capsys):
    """Incident: papermill marks the cell of a kernel that was killed as completed."""
    notebooks = make_notebooks(
        tmp_path / "notebooks",
        {
            FIRST: (
                "",
                [
                    "import os, signal\nfrom finemem_lib.util.files import written_beside\n"
                    'with written_beside(run.folder / "question_audit.parquet") as beside:\n'
                    '    beside.write_text("half")\n'
                    "    os.kill(os.getpid(), signal.SIGKILL)",
                ],
            )
        },
    )
    assert run(notebooks, "--run-id", "killed") == 1
    assert "Kernel died" in capsys.readouterr().err
    found = manifest_of(runs_dir / "killed")
    assert found["status"] == found["notebooks"][0]["status"] == "failed"
    assert found["notebooks"][0]["writes"] == []
    assert not list((runs_dir / "killed").glob("question_audit*"))
    assert_nothing_half_written(runs_dir / "killed")


SLEEP = (
    "from pathlib import Path\nimport os, time\n"
    "Path(run.folder, 'pid').write_text(str(os.getpid()))\ntime.sleep(3600)"
)


def test_a_run_over_its_time_is_stopped(tmp_path, runs_dir, capsys):
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: ("", [SLEEP])})
    assert run(notebooks, "--run-id", "slow", "--timeout", "6") == 3
    found = manifest_of(runs_dir / "slow")
    assert (found["status"], found["notebooks"][0]["status"]) == ("timeout", "timeout")
    assert found["seconds"] >= 6
    pid = runs_dir / "slow" / "pid"
    assert not pid.exists() or not psutil.pid_exists(int(pid.read_text()))
    assert "--timeout" in capsys.readouterr().err
    assert_nothing_half_written(runs_dir / "slow")


@pytest.fixture
def sleeping(tmp_path, runs_dir):
    """A command whose notebook sleeps, started and waited for; its folder and its kernel's id."""
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: ("", [SLEEP]), THIRD: ("", [])})
    command = subprocess.Popen(
        [*FINEMEM, "run", "--notebooks-dir", notebooks, "--run-id", "asleep", "--jobs", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    pid = runs_dir / "asleep" / "pid"
    try:
        wait_until(lambda: pid.exists() and pid.read_text())
        yield command, runs_dir / "asleep", int(pid.read_text())
    finally:
        command.kill()
        command.communicate()


def test_an_interrupted_run_ends_its_manifest_and_its_kernel(sleeping):
    command, folder, kernel = sleeping
    assert manifest_of(folder)["status"] == "running"
    command.send_signal(signal.SIGINT)
    command.send_signal(signal.SIGINT)  # an impatient user must not cut the end short
    printed, _ = command.communicate(timeout=LAST_RESORT)
    assert command.returncode == 130, printed
    found = manifest_of(folder)
    assert (found["status"], found["exit_code"]) == ("interrupted", 130)
    assert [entry["status"] for entry in found["notebooks"]] == ["interrupted", "not run"]
    assert found["notebooks"][1]["error"] == f"not run: {FIRST} was interrupted before it"
    assert not psutil.pid_exists(kernel)
    assert_nothing_half_written(folder)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_that_ends_the_command_finds_an_ended_manifest(notebooks, runs_dir, number):
    killed, _ = ends(["ok"], meanwhile=lambda: os.kill(os.getpid(), number))
    before = signal.signal(number, signal.SIG_DFL)  # ignored where nohup started these tests
    try:
        assert run(notebooks, "--run-id", "ended", execute=killed) == 130
        assert signal.getsignal(number) is signal.SIG_DFL
    finally:
        signal.signal(number, before)
    assert manifest_of(runs_dir / "ended")["status"] == "interrupted"


def test_a_killed_command_leaves_a_failed_manifest_and_no_kernel(sleeping, capsys):
    command, folder, kernel = sleeping
    command.kill()
    wait_until(lambda: manifest_of(folder)["status"] == "failed")
    wait_until(lambda: not psutil.pid_exists(kernel))
    found = manifest_of(folder)
    assert [entry["status"] for entry in found["notebooks"]] == ["failed", "not run"]
    wait_until(lambda: not (folder / "scratch").exists())
    assert_nothing_half_written(folder)


def test_a_command_killed_before_its_first_notebook_leaves_a_run_that_can_be_resumed(
    notebooks, tmp_path, runs_dir, capsys
):
    folder, data = runs_dir / "early", tmp_path / "data.jsonl"
    data.write_text("{}\n")
    command = subprocess.Popen(
        [*FINEMEM, "run", "--notebooks-dir", notebooks, "--run-id", "early", "--data", data]
    )
    wait_until(folder.exists, pause=0.001)
    command.kill()
    command.wait()
    found = manifest_of(folder)
    assert [entry["status"] for entry in found["notebooks"]] == ["not run", "not run"]
    assert found["status"] in ("starting", "running")
    assert main(["list"]) == 0
    assert re.search("early +failed +default +0/2", capsys.readouterr().out)
    assert main(["report", "early"]) == 0
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert "the process of this run was killed" in text
    capsys.readouterr()
    if not found["versions"]:  # nothing to compare with was recorded yet
        data.write_text("{} {}\n")
    assert main(["resume", "early"], DONE) == 0
    found = manifest_of(folder)
    assert found["status"] == "ok" and found["versions"]["finemem"] and found["platform"]
    assert found["inputs"] == {str(data): sha256(data)}
    assert "the process of this run was killed" in found["resumed"][0]["after"]["error"]


@pytest.mark.parametrize("status", ["starting", "running"])
def test_a_run_that_another_process_carries_out_is_left_to_it(runs_dir, capsys, status):
    make_bare_run(runs_dir / "busy", status=status)
    before = (runs_dir / "busy" / "manifest.json").read_bytes()
    assert main(["list"]) == 0
    assert re.search(f"busy +{status} ", capsys.readouterr().out)
    assert main(["resume", "busy"], no_kernel) == 2
    assert f"run 'busy' is {status}, as process {os.getpid()} on" in capsys.readouterr().err
    assert main(["report", "busy"]) == 0
    assert "ended not yet" in (runs_dir / "busy" / "report.html").read_text(encoding="utf-8")
    assert (runs_dir / "busy" / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"status": "ok"}', "run_id: Field required"),
        ('{"status": "ok", "process": {}, "notebooks": 5}', "run_id: Field required"),
        ("[]", "Input should be an object"),
        ("5", "Input should be an object"),
        ("", "Invalid JSON"),
        ('{"status": ', "Invalid JSON"),
        ("[" * 100_000, "Invalid JSON: recursion limit exceeded"),
        (b"\xff\xfe", "Invalid JSON"),
        ({"notebooks": 5}, "notebooks: Input should be a valid array"),
        ({"notebooks": []}, "notebooks: List should have at least 1 item"),
        ({"notebooks": [{"name": 5}]}, "notebooks.0.name: Input should be a valid string"),
        ({"status": "done"}, "status: Input should be 'starting', 'running'"),
        ({"process": None}, "process: Input should be an object"),
        ({"seconds": "long"}, "seconds: Input should be a valid number"),
        ({"inputs": [1]}, "inputs: Input should be an object"),
        (None, "Is a directory"),
    ],
)
def test_a_broken_manifest_is_a_sentence_for_every_command(
    notebooks, runs_dir, capsys, content, why
):
    make_bare_run(runs_dir / "fine")
    folder = make_bare_run(runs_dir / "odd", **(content if isinstance(content, dict) else {}))
    path = folder / "manifest.json"
    if content is None:
        path.unlink()
        path.mkdir()
    elif not isinstance(content, dict):
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["list"]) == 0
    printed = capsys.readouterr().out
    assert re.search("odd +unreadable", printed) and re.search("fine +failed", printed)
    for command in (["resume", "odd"], ["report", "odd"]):
        assert main(command, no_kernel) == 2
        said = capsys.readouterr().err
        assert said.startswith("finemem: run 'odd' has no readable manifest.json (") and why in said
        assert said.count("\n") == 1
    assert run(notebooks, "--notebooks", "03", "--reuse", "odd", execute=no_kernel) == 2
    assert why in capsys.readouterr().err


def test_a_run_whose_processes_are_all_gone_is_shown_as_failed(good, tmp_path, runs_dir, capsys):
    """What a power cut or an out-of-memory killer leaves: a manifest that says running."""
    gone = subprocess.Popen([sys.executable, "-c", ""])
    created = psutil.Process(gone.pid).create_time()
    found = manifest_of(good[0])
    found |= {"run_id": "cut", "status": "running", "ended": None, "seconds": None}
    found["notebooks"][1]["status"] = "running"
    found["process"] |= {"pid": gone.pid, "created": created}
    (runs_dir / "cut").mkdir(parents=True)
    (runs_dir / "cut" / "manifest.json").write_text(json.dumps(found))
    wait_until(lambda: psutil.Process(gone.pid).status() == psutil.STATUS_ZOMBIE)
    assert manifest.read_manifest(runs_dir / "cut").status == "failed"  # ended, not waited for
    gone.wait()
    assert main(["list"]) == 0
    assert "cut  failed" in capsys.readouterr().out
    assert manifest_of(runs_dir / "cut")["status"] == "running"
    assert main(["report", "cut"]) == 0
    assert manifest_of(runs_dir / "cut")["notebooks"][1]["status"] == "failed"


@pytest.mark.parametrize("content", ['{"metadata": {}}', '{"cells": 5}', "[]", "5", '{"cells": ['])
def test_a_notebook_without_cells_has_no_hash(tmp_path, content):
    path = tmp_path / "x.ipynb"
    path.write_text(content)
    with pytest.raises(ValueError, match="x.ipynb"):
        manifest.source_hash(path)


def test_a_run_that_cannot_be_resumed_gets_no_file(runs_dir, capsys):
    lab_run(runs_dir / "lab")
    before = sorted(runs_dir.rglob("*"))
    assert main(["resume", "lab"], no_kernel) == 2
    assert "was made in JupyterLab" in capsys.readouterr().err
    assert sorted(runs_dir.rglob("*")) == before


def test_a_process_id_used_again_is_not_taken_for_the_run(good, runs_dir):
    found = manifest_of(good[0]) | {"status": "running"}
    process = psutil.Process()
    found["process"] |= {"pid": process.pid, "created": process.create_time() - 100}
    (runs_dir / "old").mkdir(parents=True)
    (runs_dir / "old" / "manifest.json").write_text(json.dumps(found))
    assert manifest.read_manifest(runs_dir / "old").status == "failed"
    found["process"]["created"] = process.create_time()
    found["process"]["since_boot"] = process.create_time() - psutil.boot_time()
    (runs_dir / "old" / "manifest.json").write_text(json.dumps(found))
    assert manifest.read_manifest(runs_dir / "old").status == "running"


@pytest.mark.parametrize("fails_at", [2, 3, 5])
def test_a_disk_that_fills_up_fails_the_run(notebooks, runs_dir, monkeypatch, capsys, fails_at):
    """The second file is that of a manifest whose data, versions and commit are recorded, the third
    is that of the first notebook's start, the fifth is metrics."""
    replace, calls = os.replace, []

    def fill(source, target):
        calls.append(target)
        if len(calls) == fails_at:
            raise OSError(28, "No space left on device")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fill)
    assert run(notebooks, "--run-id", "full", execute=DONE) == 1
    assert "No space left on device" in capsys.readouterr().err
    found = manifest_of(runs_dir / "full")
    assert (found["status"], found["exit_code"]) == ("failed", 1)
    assert "No space left" in found["error"]
    assert "running" not in [entry["status"] for entry in found["notebooks"]]


def test_a_report_that_cannot_be_made_is_a_failure_said_in_the_manifest(
    notebooks, runs_dir, monkeypatch, capsys
):
    monkeypatch.setattr(report_page, "build_report", lambda *arguments: 1 / 0)
    assert run(notebooks, "--run-id", "x", execute=DONE) == 1
    assert manifest_of(runs_dir / "x")["error"] == "ZeroDivisionError: division by zero"
    assert "report:" not in capsys.readouterr().out


# ---- runs that go on -----------------------------------------------------------------------------


MENDED = 'if not (run.folder / "mended").exists():\n    raise RuntimeError("not yet")'
FLAKY = {
    FIRST: (
        "data: list = []  # files\n",
        ['run.save("question_audit", [{"kept": 1}])\nrun.metric("kept", 1)', "run.finish()"],
    ),
    THIRD: (
        "beta: float = 0.5  # weight\ndata: list = []  # files\n",
        ['run.load("question_audit")', MENDED, 'run.metric("reward", beta)', "run.finish()"],
    ),
}


def test_resume_keeps_what_is_ok_and_runs_the_rest_again(tmp_path, runs_dir, capsys):
    notebooks = make_notebooks(tmp_path / "notebooks", FLAKY)
    data, folder = tmp_path / "data.jsonl", runs_dir / "flaky"
    data.write_text("{}\n")
    assert run(notebooks, "--run-id", "flaky", "--set", "beta=0.25", "--data", str(data)) == 1
    assert "go on with: finemem resume flaky\n" in capsys.readouterr().err
    kept = (folder / "notebooks" / f"{FIRST}.ipynb").stat().st_mtime_ns
    before = manifest_of(folder)

    data.write_text("{} {}\n")
    assert main(["resume", "flaky"]) == 2
    assert f"data {data} has changed" in capsys.readouterr().err
    data.write_text("{}\n")
    (notebooks / f"{THIRD}.ipynb").rename(tmp_path / "away")
    assert main(["resume", "flaky"]) == 2
    assert f"{THIRD}.ipynb is gone" in capsys.readouterr().err
    (tmp_path / "away").rename(notebooks / f"{THIRD}.ipynb")
    assert manifest_of(folder) == before

    (folder / "mended").touch()
    assert main(["resume", "flaky"]) == 0
    found = manifest_of(folder)
    assert (found["status"], found["exit_code"], found["error"]) == ("ok", 0, None)
    assert [entry["status"] for entry in found["notebooks"]] == ["ok", "ok"]
    assert found["notebooks"][1]["error"] is None
    assert found["notebooks"][1]["parameters"]["beta"] == 0.25
    assert found["started"] == before["started"] and found["seconds"] > before["seconds"]
    [again] = found["resumed"]
    assert again["notebooks"] == [THIRD] and again["process"]["pid"] == os.getpid()
    assert again["after"]["status"] == "failed" and "not yet" in again["after"]["error"]
    assert (folder / "notebooks" / f"{FIRST}.ipynb").stat().st_mtime_ns == kept
    metrics = json.loads((folder / "metrics.json").read_text())
    assert metrics == {FIRST: {"kept": 1}, THIRD: {"reward": 0.25}}
    assert_nothing_half_written(folder)
    capsys.readouterr()
    assert main(["resume", "flaky"]) == 2
    assert "has nothing left to run" in capsys.readouterr().err


RESUMED = {
    FIRST: (
        "gradient_checkpointing: bool = False  # slower\nsave_every: int = 10  # updates\n"
        "learning_rate: float = 0.1  # of Adam\n",
        [],
    ),
    THIRD: ("jobs: int = 1  # processes\nbeta: float = 0.5  # weight\n", []),
}


def test_resume_takes_other_values_of_what_changes_no_result(tmp_path, runs_dir, capsys):
    """Incident: what out-of-memory advised could not be done to a run of the command line."""
    notebooks = make_notebooks(tmp_path / "notebooks", RESUMED)
    execute, given = ends(["failed", "out of memory"], ["ok"], ["failed", "full disk"])
    assert run(notebooks, "--run-id", "full", execute=execute) == 1
    before = manifest_of(runs_dir / "full")
    for refused, why in [
        ("learning_rate=0.5", "a resumed run keeps its parameters but for "),
        ("seed=1", "start a new run for others"),
        ("gradient_checkpointing=perhaps", "'perhaps', expected True or False"),
        ("gradient_checkpointing", "expected NAME=VALUE"),
        ("save_every=0", "save_every is 0, expected a whole number from 1"),
        ("03.save_every=5", "no notebook that is left has this parameter"),
        ("micro_batches=8", "no notebook that is left has this parameter"),
    ]:
        assert main(["resume", "full", "--set", "jobs=2", "--set", refused]) == 2
        assert why in capsys.readouterr().err, refused
    assert manifest_of(runs_dir / "full") == before and len(given) == 1

    changed = ["gradient_checkpointing=true", "01.save_every=5", "jobs=2"]
    arguments = ["resume", "full", "--jobs", "1", *(f"--set={one}" for one in changed)]
    assert main(arguments, execute) == 1
    assert (given[1]["gradient_checkpointing"], given[1]["save_every"]) == (True, 5)
    assert given[1]["learning_rate"] == 0.1 and given[2]["jobs"] == 2 and given[2]["beta"] == 0.5
    found = manifest_of(runs_dir / "full")
    assert found["resumed"][0]["set"] == changed
    assert [entry["parameters"] for entry in found["notebooks"]] == given[1:]
    assert main(["resume", "full", "--set=save_every=5"]) == 2  # of a notebook that is done
    assert "no notebook that is left" in capsys.readouterr().err


def test_two_processes_do_not_resume_the_same_run(tmp_path, runs_dir, monkeypatch, capsys):
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: ("", [])})
    folder, codes = runs_dir / "twice", []
    execute, given = ends(
        ["failed", "x"], ["ok"], meanwhile=lambda: codes.append(main(["resume", "twice"]))
    )
    assert run(notebooks, "--run-id", "twice", execute=execute) == 1

    def as_another(parameters):  # between the look at the manifest and its new state
        codes.append(main(["resume", "twice"]))
        return []

    capsys.readouterr()
    monkeypatch.setattr(run_command_module, "unusable_sources", as_another)
    holder = subprocess.run(  # a process that was killed while it held the lock
        [
            sys.executable,
            "-c",
            "import fcntl, os, signal, sys; file = open(sys.argv[1], 'a'); "
            "fcntl.flock(file, fcntl.LOCK_EX); os.kill(os.getpid(), signal.SIGKILL)",
            str(folder / "resume.lock"),
        ],
        check=False,
    )
    assert holder.returncode == -signal.SIGKILL
    assert main(["resume", "twice"], execute) == 0
    said = capsys.readouterr().err
    assert "run 'twice' is just being resumed by another process" in said
    assert "run 'twice' is running, as process" in said
    assert codes == [2, 2, 2] and len(given) == 2
    assert len(manifest_of(folder)["resumed"]) == 1


def test_a_run_that_is_running_is_not_resumed(sleeping, capsys):
    command, *_ = sleeping
    assert main(["resume", "asleep"]) == 2
    assert f"is running, as process {command.pid} on" in capsys.readouterr().err


def test_checkpoints_of_a_stopped_run_stay_and_are_gone_on_from(tmp_path, runs_dir):
    notebooks = make_notebooks(
        tmp_path / "notebooks", {FIRST: ("resume: bool = False  # go on\n", [])}
    )
    checkpoints = runs_dir / "long" / "scratch" / f"{FIRST}-checkpoints"

    def train():
        checkpoints.mkdir(parents=True, exist_ok=True)
        if len(given) == 2:  # killed before the first checkpoint the first time
            (checkpoints / "checkpoint-20").mkdir()
        (checkpoints.with_name(f"{FIRST}.progress")).write_text("1/2 updates")

    execute, given = ends(["failed", "x"], ["failed", "y"], ["ok"], meanwhile=train)
    assert run(notebooks, "--run-id", "long", execute=execute) == 1
    assert [path.name for path in checkpoints.parent.iterdir()] == [checkpoints.name]
    assert main(["resume", "long"], execute) == 1 and checkpoints.exists()
    assert main(["resume", "long"], execute) == 0 and not checkpoints.parent.exists()
    assert [parameters["resume"] for parameters in given] == [False, False, True]
    found = manifest_of(runs_dir / "long")
    assert found["notebooks"][0]["parameters"]["resume"] is False and len(found["resumed"]) == 2


@pytest.mark.parametrize("live", [True, False])
def test_a_running_notebook_shows_how_far_it_has_come(
    tmp_path, runs_dir, monkeypatch, capsys, live
):
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: ("", [])})
    seen = []

    class Recorded(console.StatusLine):
        def update(self, lines):
            super().update(lines)
            seen.extend(lines)

    def execute(source, parameters, folder, environment, deadline, tick):
        wait_until(lambda: seen)
        for done in (1, 2):
            part = start_run(FIRST, {"run_id": folder.name})
            part.progress(f"{done}/75 updates, about {3 - done} min left\x1b[2J")
            wait_until(functools.partial(lambda done: f"{done}/75" in seen[-1], done))
        return execution.Outcome("ok")

    monkeypatch.setenv("FORCE_COLOR", "1" if live else "")
    monkeypatch.setattr(console, "SECONDS_A_LINE", 0.0)
    monkeypatch.setattr(run_command_module, "StatusLine", Recorded)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    assert run(notebooks, "--run-id", "seen", execute=execute) == 0
    printed = capsys.readouterr().out
    assert "\x1b[2J" not in printed and ("\x1b" in printed) == live
    shown = [line for line in re.split(r"[\r\n]|\x1b\[[\d;?]*\w", printed) if FIRST in line]
    assert "running" in shown[0] and "updates" not in shown[0]
    assert any("1/75 updates, about 2 min left" in line for line in shown)
    assert any("2/75 updates" in line for line in shown)
    assert "ok" in shown[-1] and "updates" not in shown[-1]


# ---- an executed notebook ------------------------------------------------------------------------


def executed(tmp_path, *cells):
    made = []
    for source, count, tags, outputs in cells:
        cell = nbformat.v4.new_code_cell(source, execution_count=count, outputs=outputs)
        cell.metadata["tags"] = tags
        made.append(cell)
    nbformat.write(nbformat.v4.new_notebook(cells=made), tmp_path / "n.ipynb")
    return tmp_path / "n.ipynb"


def test_every_cell_must_have_run(tmp_path):
    """Incident: `sys.exit(0)` ends papermill with code 0 and the rest of the cells not run."""
    fine = executed(
        tmp_path, ("1", 1, [], []), (" \n", None, [], []), ("2", None, ["skip-execution"], [])
    )
    assert execution.notebook_error(fine) is None
    early = executed(tmp_path, ("1", 1, [], []), ("2", None, [], []))
    assert execution.notebook_error(early) == "cell 2 was not executed"


def test_an_error_is_an_error_also_in_a_cell_that_may_raise(tmp_path):
    raised = nbformat.v4.new_output(
        "error", ename="KeyError", evalue="\x1b[31m'x'\x1b[0m", traceback=["\x1b[31mline\x1b[0m"]
    )
    path = executed(tmp_path, ("1", 1, ["raises-exception"], [raised]), ("2", 2, [], []))
    assert execution.notebook_error(path) == "cell 1 (In [1]): KeyError: 'x'\nline"


# ---- refusals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (
            ["--set", "betta=1"],
            "unknown parameter betta; there are: beta, capacity, checkpoint, data, num_chunks",
        ),
        (["--set", "01.beta=1"], "unknown parameter 01.beta; there are: data, num_chunks, seed"),
        (["--notebooks", "01", "--set", "beta=1"], "unknown parameter beta"),
        (
            ["--notebooks", "01", "--set", "03.beta=1"],
            "03.beta: notebook 03 is not chosen, only 01; choose it with --notebooks",
        ),
        (
            ["--notebooks", "03"],
            f"{THIRD} reads question_audit, which {FIRST} writes: choose it too "
            "(--notebooks 01,03), or take it from a run that has it (--reuse RUN",
        ),
        (["--notebooks", "03", "--reuse", "bare"], f"{FIRST} writes and run 'bare' does not hold"),
        (["--set", "beta=much"], f"{THIRD}: beta is 'much', expected a number from 0 to 1"),
        (["--set", "beta=inf"], "beta is inf, expected a number from 0 to 1"),
        (["--set", "num_chunks=2.5"], "num_chunks is '2.5', expected a whole number from 1"),
        (["--set", "beta=2"], "beta is 2.0, expected a number from 0 to 1"),
        (["--set", "data=[a"], "data is '[a', expected a list of texts"),
        (["--set", "beta"], "expected NAME=VALUE"),
        (["--set", "run_id=x"], "--run-id"),
        (["--notebooks", "07"], "expected numbers and ranges"),
        (["--notebooks", "03-01"], "expected numbers and ranges"),
        (["--notebooks", "one"], "expected numbers and ranges"),
        (["--profile", "nightly"], "no profile 'nightly'"),
        (["--profile", "../none"], "profile ../none: cannot be read (No such file or directory)"),
        (["--profile", "/"], "profile /: cannot be read (Is a directory); check the path"),
        (["--data", "missing.jsonl"], "missing.jsonl does not exist"),
        (["--data", "~none/x.jsonl"], "~none/x.jsonl does not exist"),
        (["--data", "{loop}.jsonl"], "loop.jsonl does not exist"),
        (["--data", "{loop}/x.jsonl"], "loop/x.jsonl does not exist"),
        (["--set", "data={loop}.jsonl"], "loop.jsonl does not exist"),
        (["--profile", "{loop}.yaml"], "loop.yaml: cannot be read (Too many levels"),
        (["--notebooks-dir", "{loop}"], "no profile 'default' in"),
        (["--set", 'data=[["a"],"b"]'], "data"),
        (["--reuse", "nothing"], "run 'nothing' has no readable manifest"),
        (["--run-id", "a/b"], "run id 'a/b'"),
        (["--figures", "{loop}"], "--figures: "),
        (["--run-id", "taken"], "exists; give another --run-id"),
    ],
)
def test_bad_usage_is_refused_before_a_kernel_starts(
    notebooks, runs_dir, tmp_path, capsys, arguments, reason
):
    for name in ("loop", "loop.jsonl", "loop.yaml"):
        (tmp_path / name).symlink_to(name)
    arguments = [one.replace("{loop}", str(tmp_path / "loop")) for one in arguments]
    lab_run(runs_dir / "bare")
    (runs_dir / "taken").mkdir(parents=True)
    (runs_dir / "taken" / "mine.txt").write_text("mine")
    capsys.readouterr()
    assert run(notebooks, *arguments, execute=no_kernel) == 2
    shown = capsys.readouterr()
    assert reason in shown.err and not shown.out
    left = [str(path.relative_to(runs_dir)) for path in runs_dir.rglob("*") if path.is_file()]
    assert sorted(left) == [f"bare/records/{FIRST}.json", "taken/mine.txt"]


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["fly"],
        ["run", "--timeout", "0"],
        ["run", "--timeout", "nan"],
        ["run", "--speed", "9"],
        ["report"],
    ],
)
def test_an_unreadable_command_line_is_bad_usage(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


def test_an_option_that_is_no_number_says_what_is_expected(capsys):
    for arguments, said in (
        (["run", "--timeout", "soon"], "'soon', expected a number of seconds above 0"),
        (["sweep", "x.yaml", "--output", "o", "--jobs", "0"], "'0', expected a whole number from"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert said in capsys.readouterr().err


@pytest.mark.parametrize("target", ["report.html", "figures"])
def test_a_report_that_cannot_be_written_is_a_sentence(runs_dir, tmp_path, capsys, target):
    folder = make_bare_run(runs_dir / "fine")
    command = ["report", "fine"]
    if target == "figures":
        (tmp_path / "file").touch()
        command += ["--figures", str(tmp_path / "file")]
    else:
        (folder / "report.html").mkdir()
    assert main(command) == (2 if target == "figures" else 1)
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and ("--figures: " in said or "report.html could not be" in said)


@pytest.mark.parametrize("command", [["report", "nothing"], ["report", "../x"]])
def test_a_report_of_no_run_is_bad_usage(command, runs_dir, capsys):
    assert main(command) == 2
    assert "finemem: run" in capsys.readouterr().err


@pytest.mark.parametrize(
    "text, reason",
    [
        ("description: d\nnotebooks: ['01']\nparameter: {}\n", "parameter"),
        ("description: d\n", "notebooks"),
        ("description: d\nnotebooks: 1\n", "notebooks"),
        ("- 1\n", "is not usable: Input should be a valid dictionary\n"),
        ("description: [\n", "odd.yaml, line 2: no YAML"),
        ("description: d\nnotebooks: " + "[" * 5000, "odd.yaml, line 2: nested deeper than 20"),
        (
            "description: d\nnotebooks: ['01']\nparameters: {numchunks: 3}\n",
            "unknown parameter numchunks",
        ),
        (
            "description: d\nnotebooks: ['01']\nparameters: {num_chunks: '3x'}\n",
            "num_chunks is '3x', expected a whole number",
        ),
        (
            "description: d\nnotebooks: ['01']\nparameters: {num_chunks: true}\n",
            "num_chunks is True, expected a whole number",
        ),
        (
            "description: d\nnotebooks: ['03']\nnotebook_parameters: {'01': {beta: 1}}\n",
            "01.beta: notebook 01 is not chosen, only 03",
        ),
        (
            "description: d\nnotebooks: ['01']\nrequires: [data]\n",
            "profile odd needs data: give --data PATH",
        ),
    ],
)
def test_a_profile_that_does_not_fit_is_refused(notebooks, runs_dir, capsys, text, reason):
    write_profile(notebooks, "odd", text)
    assert run(notebooks, "--profile", "odd", execute=no_kernel) == 2
    assert reason in capsys.readouterr().err
    assert not runs_dir.exists()


@pytest.mark.parametrize("value", ['[["a"],"b"]', "[{a: 1}]", "[a, [" + "[" * 50 + "]"])
def test_a_list_within_a_list_is_no_name(runs_dir, capsys, value):
    assert main(["run", "--notebooks", "01,02", "--set", f"managers={value}"], no_kernel) == 2
    assert "02_memory_and_retrieval: managers" in capsys.readouterr().err
    assert not runs_dir.exists()


def test_a_profile_may_be_given_as_a_path(notebooks, runs_dir, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mine.yaml").write_text("description: d\nnotebooks: ['01']\nrequires: [data]\n")
    for given in ("mine.yaml", "./mine.yaml", str(tmp_path / "mine.yaml")):
        assert run(notebooks, "--profile", given, execute=no_kernel) == 2
        assert f"profile {given} needs data: give --data PATH" in capsys.readouterr().err


def test_a_runs_folder_that_cannot_be_written_is_bad_usage(
    notebooks, tmp_path, monkeypatch, capsys
):
    (tmp_path / "file").touch()
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "file" / "runs"))
    assert run(notebooks, execute=no_kernel) == 2
    assert "FINEMEM_RUNS_DIR" in capsys.readouterr().err


def test_a_runs_folder_whose_links_lead_in_a_circle_is_none(
    notebooks, tmp_path, monkeypatch, capsys
):
    (tmp_path / "runs").symlink_to("runs")
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    assert main(["list"]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert run(notebooks, execute=no_kernel) == 2
    assert "cannot be written (Too many levels of symbolic links); allow" in capsys.readouterr().err


def test_list_survives_folders_that_are_no_runs(runs_dir, capsys):
    assert main(["list"]) == 0
    assert "no runs in" in capsys.readouterr().out
    for name in ("empty", ".killed.123.tmp", "records/records"):
        (runs_dir / name).mkdir(parents=True)
    make_bare_run(runs_dir / ".half.123.tmp")
    (runs_dir / "file").touch()
    (runs_dir / "loop").symlink_to("loop")
    (runs_dir / "up").symlink_to("..")
    assert main(["list"]) == 0
    assert "no runs in" in capsys.readouterr().out
    for name, text in {"a": "[]", "b": "[" * 100_000, "c": '{"schema_version": 1}'}.items():
        record = runs_dir / "lab" / "records" / f"{name}.json"
        record.parent.mkdir(parents=True, exist_ok=True)
        record.write_text(text)
    assert main(["list"]) == 0
    assert re.search("lab +JupyterLab +0/1", capsys.readouterr().out)
