"""Artefacts by name, records and parameter checks of one notebook's part in a run."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import plotly.graph_objects as go
import pytest

from finemem_lib.runs import artefacts, run as run_module
from finemem_lib.trajectory import AnsweredQuestion, Chunk, Instance, Question, Trajectory
from finemem_lib.util.provenance import cpu_threads
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT
from tests.helpers.small_notebooks import PASS_ON, make_notebooks, write_notebook

FIRST, SECOND, THIRD = "01_question_generation", "02_memory_and_retrieval", "03_rewards_and_credit"
FOURTH = "04_grpo_training"
QUESTION = Question("q1", "Where does Mia live?", ("Rome",), "planted")
INSTANCE = Instance("i1", "planted", "AR", (Chunk("Mia lives in Rome.\u2028", 5),), (QUESTION,))
ANSWERED = AnsweredQuestion(QUESTION, 0, (), "", None, None)
TRAJECTORY = Trajectory("i1", "planted", "AR", "insert_all", 0, (), (ANSWERED,), "words", 3)


@pytest.fixture(autouse=True)
def runs_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.delenv("FINEMEM_REUSE_RUN", raising=False)
    return tmp_path / "runs"


def start(notebook=FIRST, run_id="notebook", **parameters):
    return run_module.start_run(notebook, {"run_id": run_id, "seed": 7, **parameters})


@pytest.mark.parametrize("run_id", ["", "../else", "a/b", ".hidden", "x" * 101, "a b"])
def test_a_run_id_stays_inside_the_folder_of_runs(run_id):
    with pytest.raises(ValueError, match="run id"):
        start(run_id=run_id)


def test_runs_lie_in_the_repository_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.delenv("FINEMEM_RUNS_DIR")
    monkeypatch.chdir(tmp_path)
    assert run_module.run_folder("x") == ROOT / "data" / "runs" / "x"


@pytest.mark.parametrize(
    "notebook, name, value",
    [
        (FIRST, "instances", [INSTANCE]),
        (SECOND, "trajectories", [TRAJECTORY, TRAJECTORY]),
    ],
)
def test_records_come_back_equal(notebook, name, value):
    start(notebook).save(name, value)
    assert start(THIRD).load(name) == value


def test_tables_keep_types_and_tell_unscorable_from_zero():
    rows = [{"step": 1, "chunk": None, "label": "<b>"}, {"step": 2, "chunk": 0.0, "label": "é"}]
    start(THIRD).save("rewards", rows)
    found = start("05_evidence_tracing").load("rewards")
    assert found["step"].dtype == "int64"
    assert found["chunk"].isna().tolist() == [True, False]
    assert found["label"].tolist() == ["<b>", "é"]
    start(THIRD).save("rewards", pd.DataFrame(rows[:1]))
    assert len(start(FOURTH).load("rewards")) == 1


def test_folders_come_back():
    run = start(FOURTH)
    run.save("trained_manager", lambda folder: (folder / "old.bin").write_bytes(b"1"))
    run.save("trained_manager", lambda folder: (folder / "new.bin").write_bytes(b"2"))
    later = start("06_benchmark_evaluation")
    assert [path.name for path in later.load("trained_manager").iterdir()] == ["new.bin"]
    assert not list(run.folder.rglob("*.tmp"))


def test_a_missing_artefact_names_the_notebook_that_writes_it():
    with pytest.raises(FileNotFoundError, match=f"'trajectories'.*notebook {SECOND} writes it"):
        start(THIRD).load("trajectories")


def test_a_file_no_record_lists_is_not_taken_for_an_artefact():
    """Incident: a killed notebook's file must not be read by the next one."""
    run = start(FIRST)
    (run.folder / "instances.jsonl").write_text("")
    with pytest.raises(FileNotFoundError):
        start(THIRD).load("instances")


def test_another_version_or_a_broken_file_says_which_notebook_to_run_again(monkeypatch):
    start(FIRST).save("instances", [INSTANCE])
    later = start(THIRD)
    (later.folder / "instances.jsonl").write_text('{"instance_id": 3}\n')
    with pytest.raises(ValueError, match=f"not as {FIRST} wrote it.*run notebook {FIRST} again"):
        later.load("instances")
    changed = artefacts.Artefact("instances.jsonl", "instances", version=2)
    monkeypatch.setitem(artefacts.ARTEFACTS, "instances", changed)
    with pytest.raises(ValueError, match=f"version 1, expected 2; run notebook {FIRST} again"):
        later.load("instances")


def test_names_and_writers_are_held_to_the_registry():
    with pytest.raises(ValueError, match="no artefact is called 'rewrads'; there are .*rewards"):
        start().load("rewrads")
    with pytest.raises(
        ValueError,
        match=f"'rewards' is not one that {FIRST} writes.*instances, question_audit.*name it there",
    ):
        start().save("rewards", [])
    with pytest.raises(TypeError, match="got a Chunk, expected Instance only"):
        start().save("instances", [Chunk("x", 1)])


def test_what_a_run_lacks_is_taken_from_the_reused_run(monkeypatch):
    start(FIRST, run_id="earlier").save("instances", [INSTANCE])
    monkeypatch.setenv("FINEMEM_REUSE_RUN", "earlier")
    run = start(SECOND, run_id="later")
    assert run.load("instances") == [INSTANCE]
    assert run_module.read_record(run.folder, SECOND)["reads"]["instances"]["run_id"] == "earlier"


def test_the_record_says_how_the_artefacts_were_made(tmp_path):
    data = tmp_path / "data.jsonl"
    data.write_text("{}\n")
    run = start(FIRST, data=[str(data), "owner/name"], num_chunks=4)
    assert run.data == (str(data), "owner/name")
    assert run_module.read_record(run.folder, FIRST)["status"] == "running"
    run.save("instances", [INSTANCE])
    run.metric("kept", pd.Series([3.25]).mean())
    run.finish()
    record = run_module.read_record(run.folder, FIRST)
    assert record["status"] == "ok" and record["seconds"] >= 0 and record["peak_memory_mb"] > 10
    values = run.parameters.model_dump(exclude={"run_id"})
    assert record["parameters"] == values and values["max_instances"] == 8
    assert (values["seed"], values["data"], values["num_chunks"]) == (
        7,
        [str(data), "owner/name"],
        4,
    )
    assert [source["sha256"] for source in record["data"]] == [run_module.sha256(data), None]
    assert record["writes"]["instances"]["sha256"] == run_module.sha256(
        run.folder / "instances.jsonl"
    )
    assert record["versions"]["python"] == sys.version.split()[0]
    assert record["threads"] == cpu_threads()


@pytest.mark.parametrize("variable, threads", [(None, 1), ("3", 3)])
def test_a_notebook_computes_on_one_thread_unless_more_are_asked_for(
    monkeypatch, variable, threads
):
    import torch

    before = torch.get_num_threads()
    monkeypatch.setenv("OMP_NUM_THREADS", variable or "")
    if variable is None:
        monkeypatch.delenv("OMP_NUM_THREADS")
    try:
        run = start()
        assert torch.get_num_threads() == threads
        assert run_module.read_record(run.folder, run.notebook)["threads"] == threads
    finally:
        torch.set_num_threads(before)


def test_the_record_says_which_checkpoint_was_given(tmp_path):
    folder = tmp_path / "checkpoint-3"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    for given, digest in ((str(folder), run_module.sha256(folder)), ("owner/name", None)):
        run = start(FOURTH, checkpoint=given)
        found = run_module.read_record(run.folder, FOURTH)["checkpoint"]
        assert found == {"source": given, "sha256": digest, "commit": None}
    run.loaded(SimpleNamespace(commit="1cfa9a7"))
    assert run_module.read_record(run.folder, FOURTH)["checkpoint"]["commit"] == "1cfa9a7"
    assert run_module.read_record(start(FIRST).folder, FIRST)["checkpoint"] is None


@pytest.mark.parametrize(
    "source, reason",
    [
        ("no/such/file.jsonl", "does not exist"),
        ("missing.parquet", "does not exist"),
        ("owner/file.jsonl", "does not exist"),
        ("notebooks", "is a folder"),
        ("empty", "is empty"),
    ],
)
def test_a_data_file_that_cannot_be_read_is_refused_at_the_start(tmp_path, source, reason):
    if source == "empty":
        source = str(tmp_path / "empty.jsonl")
        Path(source).touch()
    with pytest.raises(ValueError, match=f"data file .*{reason}"):
        start(data=[source])


def test_a_relative_data_file_is_looked_for_from_the_repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shipped = "data/tiny_manager/config.json"
    assert run_module.locate(shipped) == ROOT / shipped


def test_finish_prints_the_same_text_on_every_run(capsys):
    texts = []
    for _ in range(2):
        run = start(SECOND)
        run.save("trajectories", [TRAJECTORY])
        run.metric("accuracy", 2 / 3)
        run.metric("items", 12)
        run.metric("unscorable", None)
        run.finish()
        texts.append(capsys.readouterr().out)
    assert (
        texts[0]
        == texts[1]
        == (
            f"{SECOND}, seed 7\nreads: nothing\nwrites: trajectories\n"
            "accuracy: 0.6667\nitems: 12\nunscorable: –\n"
        )
    )


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_metric_is_a_finite_number_or_none(value):
    with pytest.raises(ValueError, match="metric loss is .*, expected a finite number or None"):
        start().metric("loss", value)


def test_the_ends_of_a_metrics_interval_stand_beside_it():
    run = start()
    run.metric("accuracy", pd.Series([0.5]).mean(), 0.4, 0.6)
    run.metric("alone", 0.5, None, None)
    run.finish()
    kept = run_module.read_record(run.folder, FIRST)
    assert kept["metrics"] == {"accuracy": 0.5, "alone": 0.5}
    assert kept["intervals"] == {"accuracy": [0.4, 0.6]}
    run.metric("accuracy", 0.7)
    run.finish()
    assert run_module.read_record(run.folder, FIRST)["intervals"] == {}
    for ends in ((0.4, None), (float("nan"), 0.6)):
        with pytest.raises(ValueError, match="metric accuracy .*, expected"):
            run.metric("accuracy", 0.5, *ends)


def test_figures_are_kept_under_the_notebook_and_a_plain_name():
    run = start()
    run.figure("audit", go.Figure(go.Bar(y=[1, 2])))
    kept = json.loads((run.folder / "figures" / f"{FIRST}-audit.json").read_text())
    assert kept["data"][0]["y"] == [1, 2]
    with pytest.raises(ValueError, match="figure name"):
        run.figure("../audit", go.Figure())


# Whose artefact is it?


def test_findings_are_recorded_with_a_figure_that_was_kept():
    run = start(THIRD)
    with pytest.raises(ValueError, match=r"figure 'shares' was not kept.*run.figure\('shares'"):
        run.finding("The share is 0.5 [0.4, 0.6].", "shares")
    run.figure("shares", go.Figure())
    run.finding("The share is 0.5 [0.4, 0.6].", "shares")
    run.finish()
    record = run_module.read_record(run.folder, THIRD)
    assert record["findings"] == [{"text": "The share is 0.5 [0.4, 0.6].", "figure": "shares"}]
    start(THIRD).finish()
    assert run_module.read_record(run.folder, THIRD)["findings"] == [], "of the last pass alone"


def seeded(notebook, seed, run_id="notebook"):
    return run_module.start_run(notebook, {"run_id": run_id, "seed": seed})


def test_an_artefact_made_with_another_seed_is_refused_with_a_way_out():
    """Incident: notebook 02 with seed 3 read the instances of seed 0 and replaced trajectories."""
    seeded(FIRST, 0).save("instances", [INSTANCE])
    with pytest.raises(
        ValueError,
        match=f"'instances' of run 'notebook' was written by {FIRST} with seed 0, and {SECOND} "
        f"runs with seed 3; run {FIRST} with seed 3 first, or give both another run_id",
    ):
        seeded(SECOND, 3).load("instances")
    assert seeded(SECOND, 0).load("instances") == [INSTANCE]


def test_what_an_earlier_pass_with_another_seed_wrote_keeps_its_seed():
    seeded(SECOND, 0).save("trajectories", [TRAJECTORY])
    seeded(SECOND, 3)  # starts, and stops before it saves
    with pytest.raises(ValueError, match=f"written by {SECOND} with seed 0"):
        seeded(THIRD, 3).load("trajectories")
    assert seeded(THIRD, 0).load("trajectories") == [TRAJECTORY]


def test_an_artefact_made_from_one_that_was_replaced_is_refused():
    start(FIRST).save("instances", [INSTANCE])
    second = start(SECOND)
    second.load("instances")
    second.save("trajectories", [TRAJECTORY])
    start(FIRST).save("instances", [INSTANCE])  # the same bytes: nothing has been replaced
    assert start(THIRD).load("trajectories") == [TRAJECTORY]
    start(FIRST).save("instances", [INSTANCE, INSTANCE])
    with pytest.raises(
        ValueError,
        match=f"since then 'instances', from which {SECOND} made its artefacts, has been replaced "
        f"in this run; run {SECOND} and the notebooks after it again",
    ):
        start(THIRD).load("trajectories")


def test_replaced_inputs_are_found_through_the_artefacts_between():
    start(FIRST).save("instances", [INSTANCE])
    fourth = start(FOURTH)
    fourth.load("instances")
    fourth.save("trained_trajectories", [TRAJECTORY])
    fifth = start("05_evidence_tracing")
    fifth.load("trained_trajectories")
    fifth.save("evidence", [{"step": 1}])
    start(FIRST).save("instances", [])
    assert run_module.replaced_input(fifth.folder, "evidence") == ("instances", FOURTH)


def make_trajectories_from_instances(num_chunks=4):
    start(FIRST, num_chunks=num_chunks).save("instances", [INSTANCE])
    second = start(SECOND)
    second.load("instances")
    second.save("trajectories", [TRAJECTORY])
    return second.folder


@pytest.mark.parametrize("change", [{"num_chunks": 5}, {"seed": 8}])
def test_what_others_worked_with_is_not_replaced_under_other_parameters(change):
    """Incident: with another num_chunks notebook 01 replaced the instances first."""
    folder = make_trajectories_from_instances()
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    (name, value), old = next(iter(change.items())), {"num_chunks": 4, "seed": 7}
    with pytest.raises(
        ValueError,
        match=rf"{FIRST} made artefact 'instances' of run 'notebook' with {name} {old[name]} \(now "
        rf"{value}\), and {SECOND} made artefacts from it; give another run_id, or delete "
        rf"records/{SECOND}.json in ",
    ):
        start(FIRST, **{"num_chunks": 4} | change)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    start(FIRST, run_id="other", **change)
    start(FIRST, num_chunks=4)  # the same again is no replacement
    (folder / "records" / f"{SECOND}.json").unlink()
    start(FIRST, **change).save("instances", [])


def test_what_nobody_worked_with_is_replaced_under_any_parameters():
    start(FIRST, num_chunks=4).save("instances", [INSTANCE])
    start(SECOND).load("instances")  # and stops before it has made anything
    start(FIRST, num_chunks=5).save("instances", [])
    assert start(SECOND).load("instances") == []


def test_a_resumed_training_replaces_its_manager():
    fourth = start(FOURTH, updates=1)
    fourth.save("trained_manager", lambda folder: (folder / "model").write_text("one"))
    fifth = start("05_evidence_tracing")
    fifth.load("trained_manager")
    fifth.save("evidence", [{"step": 1}])
    with pytest.raises(ValueError, match=r"with updates 1 \(now 2\)"):
        start(FOURTH, updates=2)
    start(FOURTH, updates=1, save_every=7)  # changes nothing that is trained
    start(FOURTH, updates=2, resume=True)


def test_a_reused_run_may_have_another_seed(monkeypatch):
    seeded(FIRST, 0, "earlier").save("instances", [INSTANCE])
    monkeypatch.setenv("FINEMEM_REUSE_RUN", "earlier")
    assert seeded(SECOND, 3, "later").load("instances") == [INSTANCE]


def test_the_notebook_that_saved_an_artefact_last_is_its_writer(tmp_path, monkeypatch):
    write_notebook(tmp_path, "02_short", cells=['run.save("trajectories", [])'])
    monkeypatch.chdir(tmp_path)
    start(SECOND).save("trajectories", [TRAJECTORY])
    start("02_short").save("trajectories", [])
    found = run_module.written_entry(start(THIRD).folder, "trajectories")
    assert found["notebook"] == "02_short"
    assert start(THIRD).load("trajectories") == []


def papermill(folder, stem, *arguments):
    """Run papermill by itself from the folder of the notebooks."""
    return subprocess.run(
        [sys.executable, "-m", "papermill", f"{stem}.ipynb", f"out-{stem}.ipynb", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )


@pytest.mark.long
def test_bare_papermill_mixes_no_runs_and_refuses_what_is_no_parameter(tmp_path, runs_folder):
    folder = make_notebooks(tmp_path / "notebooks", PASS_ON)
    assert papermill(folder, FIRST).returncode == 0
    assert papermill(folder, THIRD).returncode == 0
    before = run_module.sha256(runs_folder / "notebook" / "rewards.parquet")
    other_seed = papermill(folder, THIRD, "-p", "seed", "3", "-p", "beta", "1.0")
    assert other_seed.returncode == 1
    assert f"written by {FIRST} with seed 0, and {THIRD} runs with seed 3" in other_seed.stderr
    assert run_module.sha256(runs_folder / "notebook" / "rewards.parquet") == before
    misspelt = papermill(folder, THIRD, "-p", "betta", "1.0")
    assert misspelt.returncode == 1
    assert "unknown parameter betta; there are: beta, capacity" in misspelt.stderr


# Nothing half-written.


@contextmanager
def file_size_limit(size):
    """Make the kernel refuse writes beyond `size` bytes a file, as a full disk does half-way."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def assert_untouched(run, before):
    assert not list(run.folder.rglob("*.tmp"))
    assert start(SECOND).load("trajectories") == before


def test_a_write_that_fails_half_way_leaves_the_artefact_as_it_was():
    run = start(SECOND)
    run.save("trajectories", [TRAJECTORY])
    with file_size_limit(20_000):
        with pytest.raises(OSError, match="could not be written.*what was there before.*Make room"):
            run.save("trajectories", [TRAJECTORY] * 500)
    assert_untouched(run, [TRAJECTORY])


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_full_disk_leaves_the_artefact_as_it_was(monkeypatch, call):
    run = start(SECOND)
    run.save("trajectories", [TRAJECTORY])

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        with pytest.raises(OSError, match="No space left on device") as caught:
            run.save("trajectories", [])
    assert caught.value.errno == errno.ENOSPC
    assert_untouched(run, [TRAJECTORY])


def test_a_really_full_disk(monkeypatch):
    with tempfile.TemporaryDirectory() as place:
        mounted = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", place], capture_output=True
            )
            if shutil.which("mount")
            else None
        )
        if mounted is None or mounted.returncode:
            pytest.skip("a small file system cannot be mounted here")
        try:
            monkeypatch.setenv("FINEMEM_RUNS_DIR", place)
            run = start(SECOND)
            run.save("trajectories", [TRAJECTORY])
            with pytest.raises(OSError, match="No space left on device"):
                run.save("trajectories", [TRAJECTORY] * 1000)
            assert_untouched(run, [TRAJECTORY])
        finally:
            subprocess.run(["umount", place], check=True)


def test_a_writer_that_fails_leaves_the_folder_as_it_was():
    run = start(FOURTH)
    run.save("trained_manager", lambda folder: (folder / "model").write_text("one"))

    def break_off(folder):
        (folder / "model").write_text("tw")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.save("trained_manager", break_off)
    assert (run.load("trained_manager") / "model").read_text() == "one"
    assert not list(run.folder.rglob("*.tmp"))


def test_what_a_killed_process_left_beside_is_cleared_by_the_next_write():
    run = start(FOURTH)
    left = run.folder / "trained_manager.tmp"
    left.mkdir()
    (left / "half").touch()
    run.save("trained_manager", lambda folder: (folder / "model").touch())
    assert [path.name for path in run.load("trained_manager").iterdir()] == ["model"]
    assert not left.exists()


@pytest.fixture
def read_only_folder():
    """A folder nobody may write to; root, whom modes do not hold, becomes someone else."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)
    folder.chmod(0o755)
    shutil.rmtree(folder)


def test_a_read_only_folder_is_said_with_a_way_out(read_only_folder, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(read_only_folder))
    with pytest.raises(PermissionError, match="could not be written.*FINEMEM_RUNS_DIR"):
        start()
    assert not list(read_only_folder.iterdir())


def test_papermill_may_be_given_a_profile(tmp_path, monkeypatch):
    """`papermill -f PROFILE` injects every key of the file; -p wins, and typos are refused."""
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path))
    values = {
        "description": "d",
        "notebooks": ["01-11"],
        "parameters": {"seed": 3, "num_chunks": "7", "learning_rate": "1e-4"},
        "notebook_parameters": {"01": {"max_instances": 2}, "02": {"max_instances": 9}},
        "requires": [],
        "num_chunks": 5,
        "run_id": "mine",
    }
    cell = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in values.items())
    run = run_module.start_run("01_question_generation", {"In": ["", cell], **values})
    found = run.parameters
    assert (found.seed, found.num_chunks, found.max_instances) == (3, 5, 2)
    for change, reason in (
        ({"num_chunk": 5}, "unknown parameter num_chunk"),
        ({"requires": ["data"]}, "the profile needs data"),
        ({"notebooks": "all"}, "the profile that papermill was given is not usable: notebooks"),
    ):
        names = values | change
        cell = "# Parameters\n" + "".join(f"{name} = {value!r}\n" for name, value in names.items())
        with pytest.raises(ValueError, match=reason):
            run_module.start_run("01_question_generation", {"In": ["", cell], **names})
