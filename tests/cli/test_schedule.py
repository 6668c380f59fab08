"""Notebooks of a run side by side: who waits for whom, who starts next, and how it ends."""

import json
import os
import signal
import threading

import pytest
from hypothesis import given, strategies as st

from finemem_lib.cli import execute as execution
from finemem_lib.cli.main import main
from finemem_lib.cli.schedule import Schedule, default_jobs
from finemem_lib.runs.notebooks import numbered
from finemem_lib.util.provenance import workbench_root
from tests.helpers.patience import LAST_RESORT
from tests.helpers.small_notebooks import FIRST, SECOND, THIRD, make_notebooks

APART = {FIRST: ("", []), SECOND: ("", []), THIRD: ("", [])}
DONE = execution.Outcome("ok")


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def run(tmp_path, execute, *arguments):
    """Return the exit code and the manifest of a run of three notebooks that read nothing."""
    notebooks = make_notebooks(tmp_path / "notebooks", APART)
    line = ["run", "--notebooks-dir", str(notebooks), "--run-id", "x", *arguments]
    code = main(line, execute)
    return code, json.loads((tmp_path / "runs" / "x" / "manifest.json").read_text())


def projects_schedule(**parameters):
    notebooks = numbered(workbench_root() / "notebooks")
    values = {one.stem: one.model().read({}).model_dump() | parameters for one in notebooks}
    return Schedule.of(notebooks, values)


def test_the_projects_notebooks_wait_for_those_whose_artefacts_they_read():
    schedule = projects_schedule()
    waits = {name[:2]: {one[:2] for one in schedule.waits_for[name]} for name in schedule.names}
    assert waits["02"] == {"01"} and waits["03"] == {"01", "02"}
    assert waits["04"] == waits["07"] == waits["08"] == set()
    trained = projects_schedule(train_on="instances", trained=True)
    waits = {name[:2]: {one[:2] for one in trained.waits_for[name]} for name in trained.names}
    assert waits["04"] == {"01"} and waits["06"] == {"01", "04"}


def test_the_longest_chain_takes_one_process_and_first_figures_the_other():
    schedule = projects_schedule(trained=True)
    started = [schedule.next(set(), set()), schedule.next(set(), {schedule.names[0]})]
    assert [name[:2] for name in started] == ["01", "04"]
    done = {started[0]}
    order = []
    for _ in range(3):
        order.append(schedule.next(done, {started[1]}))
        done.add(order[-1])
    assert [name[:2] for name in order] == ["02", "03", "05"]


@given(
    waits=st.integers(1, 7).flatmap(
        lambda n: st.tuples(*(st.frozensets(st.integers(0, max(i - 1, 0))) for i in range(n)))
    ),
    jobs=st.integers(1, 4),
    choices=st.randoms(use_true_random=False),
)
def test_every_notebook_runs_once_after_those_it_waits_for(waits, jobs, choices):
    names = tuple(f"{number:02}" for number in range(len(waits)))
    needs = {
        name: frozenset(names[i] for i in before if names[i] < name)
        for name, before in zip(names, waits, strict=True)
    }
    schedule = Schedule(names, needs, {name: choices.randrange(5) for name in names})
    done, running = [], []
    while len(done) < len(names):
        while len(running) < jobs and (name := schedule.next(done, running)) is not None:
            assert name not in running + done and needs[name] <= {*done}
            running.append(name)
        assert running, "a run that can go on must not stand still"
        done.append(running.pop(choices.randrange(len(running))))
    assert sorted(done) == list(names)


def test_a_notebook_without_a_number_waits_for_all_before_it():
    notebooks = numbered(workbench_root() / "notebooks")
    own = notebooks[7].model_copy(update={"order": None})
    both = [notebooks[6], own]
    values = {one.stem: {} for one in both}
    assert Schedule.of(both, values).waits_for[own.stem] == {notebooks[6].stem}
    assert not Schedule.of([notebooks[6], notebooks[7]], values).waits_for[own.stem]


@pytest.mark.parametrize(
    ("values", "alone"),
    [
        ({"checkpoint": "tiny"}, False),
        ({"models": ""}, False),
        ({"models": "api.yaml"}, True),
        ({"checkpoint": "Qwen/Qwen3-4B"}, True),
    ],
)
def test_language_models_do_not_share_their_machine(values, alone):
    jobs = default_jobs({"04_grpo_training": values})
    assert jobs == (1 if alone else len(os.sched_getaffinity(0)))


def test_notebooks_that_read_nothing_of_each_other_run_at_the_same_time(tmp_path, runs_dir):
    together = threading.Barrier(2, timeout=LAST_RESORT)
    met = []

    def execute(source, *arguments):
        if len(met) < 2:
            together.wait()  # for ever, were they to run one after the other
            met.append(source.stem)
        return DONE

    code, manifest = run(tmp_path, execute, "--jobs", "2")
    assert code == 0 and len(met) == 2
    assert [entry["status"] for entry in manifest["notebooks"]] == ["ok", "ok", "ok"]


def test_what_runs_beside_a_failing_notebook_is_kept_and_nothing_else_starts(
    tmp_path, runs_dir, capsys
):
    beside, failed = threading.Event(), threading.Event()

    def execute(source, parameters, folder, environment, deadline, tick):
        if source.stem == FIRST:
            assert beside.wait(LAST_RESORT)
            failed.set()
            return execution.Outcome("failed", "wrong data")
        assert source.stem == SECOND or source.stem == THIRD
        beside.set()
        assert failed.wait(LAST_RESORT)
        tick()  # raises where the run is stopped: it is not
        return DONE

    code, manifest = run(tmp_path, execute, "--jobs", "2")
    assert code == 1 and manifest["error"] == f"{FIRST}: wrong data"
    statuses = [entry["status"] for entry in manifest["notebooks"]]
    assert statuses[0] == "failed" and sorted(statuses[1:]) == ["not run", "ok"]
    assert "go on with: finemem resume x" in capsys.readouterr().err


@pytest.mark.parametrize("ending", ["signal", "full disk"])
def test_what_ends_the_run_ends_all_that_is_running(tmp_path, runs_dir, monkeypatch, ending):
    running = threading.Barrier(2, timeout=LAST_RESORT)
    stopped = []

    def execute(source, parameters, folder, environment, deadline, tick):
        first = running.wait() == 0
        if first and ending == "signal":
            os.kill(os.getpid(), signal.SIGTERM)
        if first and ending == "full disk":
            raise OSError(28, "No space left on device")
        try:
            for _ in iter(lambda: threading.Event().wait(0.01), None):
                tick()
        except KeyboardInterrupt:
            stopped.append(source.stem)
            raise

    code, manifest = run(tmp_path, execute, "--jobs", "2")
    assert (code, manifest["status"]) == (
        (130, "interrupted") if ending == "signal" else (1, "failed")
    )
    assert len(stopped) == (2 if ending == "signal" else 1)
    assert "running" not in [entry["status"] for entry in manifest["notebooks"]]
