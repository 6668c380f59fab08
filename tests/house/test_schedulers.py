"""The files of `schedulers/`: their commands, their parameters, and what nightly.sh does."""

from __future__ import annotations

import configparser
import os
import re
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
import types

import pytest
import yaml

from finemem_lib.cli.main import make_parser
from finemem_lib.runs.notebooks import numbered, read_notebook
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT, wait_until

SCHEDULERS = ROOT / "schedulers"

FAKE = """#!/bin/sh
echo "$@" >> "$FINEMEM_RUNS_DIR/calls"
case "$1" in
list) printf 'started run status profile\\n%s' "$RUNS";;
run) if [ -n "$SLEEP" ]; then trap 'echo ended >> "$FINEMEM_RUNS_DIR/calls"; exit 130' TERM
     touch "$FINEMEM_RUNS_DIR/begun"; while :; do sleep 0.05; done; fi
     echo "status=ok"; exit "${RUN_CODE:-0}";;
diff) exit "${DIFF_CODE:-0}";;
esac
"""


@pytest.fixture
def nightly(tmp_path):
    """Return a function that starts nightly.sh with a command that notes how it is called."""
    if shutil.which("flock") is None:
        pytest.skip("no flock on this machine (Debian: apt-get install util-linux)")
    fake = tmp_path / "finemem"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    runs = tmp_path / "my runs"
    home = tmp_path / "home"
    home.mkdir()
    (home / "finemem-workbench").symlink_to(ROOT)

    def start(command=None, **variables):
        return subprocess.Popen(
            command or [str(SCHEDULERS / "nightly.sh"), "--profile", "real"],
            env={
                **os.environ,
                "HOME": str(home),
                "FINEMEM": str(fake),
                "FINEMEM_RUNS_DIR": str(runs),
                "RUNS": "",
                "SLEEP": "",
                **variables,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    start.runs = runs
    return start


def calls(nightly):
    return [line.split() for line in (nightly.runs / "calls").read_text().splitlines()]


def test_in_a_folder_without_an_environment_the_command_of_the_path_is_used(nightly, tmp_path):
    copied = tmp_path / "folder" / "schedulers" / "nightly.sh"
    copied.parent.mkdir(parents=True)
    shutil.copy(SCHEDULERS / "nightly.sh", copied)
    path = f"{tmp_path}:{os.environ['PATH']}"  # where the stand-in lies
    process = nightly([str(copied)], FINEMEM="", PATH=path)
    process.communicate(timeout=LAST_RESORT)
    assert process.returncode == 0
    assert [one[0] for one in calls(nightly)] == ["list", "run", "clean"]


def test_a_night_runs_compares_with_the_last_good_night_and_cleans(nightly):
    runs = "a nightly-1 ok d\nb nightly-2 ok d\nc nightly-3 failed d\nd mine ok d\n"
    process = nightly(RUNS=runs, FINEMEM_FAIL_OVER="2%")
    printed, _ = process.communicate(timeout=LAST_RESORT)
    assert (process.returncode, printed) == (0, "")
    listed, ran, compared, cleaned = calls(nightly)
    assert listed == ["list"] and ran[0] == "run" and ran[-2:] == ["--profile", "real"]
    run = ran[ran.index("--run-id") + 1]
    assert compared == ["diff", "nightly-2", run, "--fail-over", "2%"]
    assert cleaned == ["clean", "--keep", "14"]
    log = (nightly.runs / "nightly.log").read_text().splitlines()
    assert log[0] == f"== {run}" and log[-1] == f"== {run}: exit code 0"
    for words in (ran, compared, cleaned):
        make_parser().parse_args(words)


@pytest.mark.parametrize(
    ("variables", "code", "commands"),
    [
        ({"RUN_CODE": "1"}, 1, ["list", "run", "clean"]),
        ({"RUN_CODE": "3"}, 3, ["list", "run", "clean"]),
        ({"DIFF_CODE": "1", "RUNS": "a nightly-1 ok d\n"}, 1, ["list", "run", "diff", "clean"]),
        ({}, 0, ["list", "run", "clean"]),
    ],
)
def test_what_goes_wrong_is_the_exit_code(nightly, variables, code, commands):
    process = nightly(**variables)
    process.communicate(timeout=LAST_RESORT)
    assert process.returncode == code and [words[0] for words in calls(nightly)] == commands


def test_the_second_night_does_not_start_while_the_first_goes_on(nightly):
    first = nightly(SLEEP="yes")
    try:
        wait_until((nightly.runs / "begun").exists)
        second = nightly()
        printed, _ = second.communicate(timeout=LAST_RESORT)
        assert second.returncode == 75 and "still going on" in printed
        first.send_signal(signal.SIGTERM)
        first.communicate(timeout=LAST_RESORT)
    finally:
        first.kill()
    assert first.returncode == 130, "the run's own code, after it has ended its manifest"
    assert calls(nightly)[-1] == ["ended"]
    third = nightly()
    third.communicate(timeout=LAST_RESORT)
    assert third.returncode == 0, "the lock is free again"


def test_a_long_log_is_put_aside(nightly):
    nightly.runs.mkdir()
    (nightly.runs / "nightly.log").write_text("x" * 1_000_001)
    nightly().communicate(timeout=LAST_RESORT)
    assert len((nightly.runs / "nightly.log.1").read_text()) == 1_000_001
    assert len((nightly.runs / "nightly.log").read_text()) < 1000


def test_the_crontab_runs_it_every_night(nightly):
    lines = [
        line
        for line in (SCHEDULERS / "crontab").read_text().splitlines()
        if line and not line.startswith("#")
    ]
    settings = dict(line.split("=", 1) for line in lines if re.match(r"\w+=", line))
    [entry] = [line for line in lines if not re.match(r"\w+=", line)]
    minute, hour, day, month, weekday, command = entry.split(None, 5)
    assert (minute, hour, day, month, weekday) == ("0", "2", "*", "*", "*") and "%" not in command
    process = nightly([settings.pop("SHELL"), "-c", command], **settings)
    printed, _ = process.communicate(timeout=LAST_RESORT)
    assert (process.returncode, printed) == (0, "")
    assert calls(nightly)[1][-2:] == ["--profile", "default"]


def test_systemd_takes_service_and_timer(tmp_path):
    units = [SCHEDULERS / f"finemem-nightly.{kind}" for kind in ("service", "timer")]
    service, timer = (configparser.ConfigParser(interpolation=None) for _ in units)
    service.read(units[0]), timer.read(units[1])
    command = service["Service"]["ExecStart"].replace("%h/finemem-workbench", str(ROOT))
    program, *words = shlex.split(command)
    assert os.access(program, os.X_OK)
    make_parser().parse_args(["run", *words])
    assert timer["Timer"]["OnCalendar"] == "*-*-* 02:00:00"
    if shutil.which("systemd-analyze") is None:
        pytest.skip("no systemd on this machine, so systemd-analyze verifies nothing")
    for unit in units:
        text = unit.read_text().replace("%h/finemem-workbench", str(ROOT))
        (tmp_path / unit.name).write_text(text)
    verified = subprocess.run(
        ["systemd-analyze", "verify", *sorted(map(str, tmp_path.glob("*.*")))],
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    ours = [line for line in verified.stderr.splitlines() if "finemem" in line]
    assert ours == [] and verified.returncode == 0, verified.stderr


def test_the_workflow_of_github_names_commands_that_are_there():
    workflow = yaml.safe_load((SCHEDULERS / "github-actions.yml").read_text())
    assert workflow[True]["schedule"] == [{"cron": "0 2 * * *"}]  # YAML 1.1 reads "on" so
    steps = workflow["jobs"]["run"]["steps"]
    for step in steps:
        assert ("uses" in step) != ("run" in step)
        if "uses" in step:
            assert re.fullmatch(r"[\w-]+/[\w-]+@v\d+", step["uses"])
    commands = [step["run"].split() for step in steps if "run" in step]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(rf"^{commands[0][1]}:", makefile, re.MULTILINE)
    assert os.access(ROOT / commands[1][0], os.X_OK)
    make_parser().parse_args(["run", *commands[1][1:]])


class Operator:
    """Stands for PapermillOperator: the arguments that version 3 of the provider has."""

    made: dict = {}

    def __init__(
        self,
        *,
        task_id,
        input_nb=None,
        output_nb=None,
        parameters=None,
        kernel_name=None,
        language_name=None,
        kernel_conn_id=None,
        log_output=False,
        nbconvert=False,
        nbconvert_args=None,
    ):
        self.task_id, self.input_nb, self.output_nb = task_id, input_nb, output_nb
        self.parameters, self.after = parameters, []
        self.made[task_id] = self

    def __rshift__(self, other):
        other.after.append(self.task_id)
        return other


class Dag:
    """Stands for a DAG: the arguments that Airflow 2.4 and 3 both have."""

    def __init__(self, dag_id, *, schedule, start_date, catchup, max_active_runs, default_args):
        assert start_date.tzinfo and len(schedule.split()) == 5 and not catchup

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass


@pytest.mark.parametrize("version", [2, 3])
def test_airflow_runs_the_notebooks_in_the_order_of_their_artefacts(version, monkeypatch, tmp_path):
    """Without Airflow: modules of the same names stand for it."""
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setattr(Operator, "made", {})
    package = "airflow.providers.papermill.operators"
    modules = {
        "airflow": {"DAG": Dag},
        "airflow.providers": {},
        "airflow.providers.papermill": {},
        package: {},
        f"{package}.papermill": {"PapermillOperator": Operator},
    }
    if version == 3:
        modules |= {"airflow": {}, "airflow.sdk": {"DAG": Dag}}
    for name, content in modules.items():
        module = types.ModuleType(name)
        vars(module).update(content, __path__=[])
        monkeypatch.setitem(sys.modules, name, module)
    runpy.run_path(str(SCHEDULERS / "airflow_dag.py"))
    notebooks = numbered(ROOT / "notebooks")
    assert [*Operator.made] == [one.stem for one in notebooks]
    for one in Operator.made.values():
        notebook = read_notebook(ROOT / "notebooks" / one.input_nb.rpartition("/")[2])
        run_id = one.parameters["run_id"].replace("{{ ts_nodash }}", "20260101T020000")
        notebook.model().read(one.parameters | {"run_id": run_id})
        assert re.fullmatch(r"[A-Za-z0-9._-]+", run_id)
        assert os.path.isdir(os.path.dirname(one.output_nb)), "papermill makes no folder"
    assert Operator.made["03_rewards_and_credit"].after == [
        "01_question_generation",
        "02_memory_and_retrieval",
    ]


def test_prefect_runs_and_resumes(monkeypatch, tmp_path):
    """Without Prefect: modules of the same names stand for it."""
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path))
    settings = {}

    def decorator(function=None, **given):
        def keep(one):
            settings[one.__name__] = given
            return one

        return keep(function) if function else keep

    prefect, runtime = types.ModuleType("prefect"), types.ModuleType("prefect.runtime")
    prefect.flow = prefect.task = decorator
    runtime.flow_run = types.SimpleNamespace(id="0b1f-7")
    monkeypatch.setitem(sys.modules, "prefect", prefect)
    monkeypatch.setitem(sys.modules, "prefect.runtime", runtime)
    flow = runpy.run_path(str(SCHEDULERS / "prefect_flow.py"))
    ran = []
    monkeypatch.setattr(subprocess, "run", lambda words, check: ran.append(words[3:]))
    flow["nightly"]()
    (tmp_path / "prefect-0b1f-7").mkdir()
    flow["nightly"]("real", 3)
    assert ran == [
        ["run", "--run-id", "prefect-0b1f-7", "--profile", "default"],
        ["clean", "--keep", "14"],
        ["resume", "prefect-0b1f-7"],
        ["clean", "--keep", "3"],
    ]
    for words in ran:
        make_parser().parse_args(words)
    assert settings["run_notebooks"]["retries"] > 0


def test_the_readme_names_every_file():
    text = (SCHEDULERS / "README.md").read_text()
    files = {path.name for path in SCHEDULERS.iterdir() if path.is_file()} - {"README.md"}
    assert files and all(f"`{name}`" in text for name in files)
