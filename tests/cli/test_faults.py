"""What goes wrong in a night that nobody watches. After each fault no finished result is lost or
changed, the state is told truly, and resume ends with the artefacts of a run left alone."""

from __future__ import annotations

import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import psutil
import pytest

from finemem_lib.cli import execute as execution, manifest, run as run_command
from finemem_lib.cli.main import main
from finemem_lib.runs import run as runs
from tests.helpers.patience import LAST_RESORT, wait_until
from tests.helpers.run_samples import make_bare_run
from tests.helpers.small_notebooks import FIRST, SECOND, THIRD, make_notebooks

FINEMEM = [sys.executable, "-m", "finemem_lib"]
IN_NAMESPACE = ["unshare", "--map-root-user", "--mount"]

CHAIN = {
    FIRST: (
        "",
        [
            'run.save("question_audit", [{"kept": step} for step in range(50)])\n'
            'run.metric("kept", 50)\nrun.finish()'
        ],
    ),
    SECOND: (
        "",
        [
            'audit = run.load("question_audit")',
            'run.save("evidence", [{"step": one} for one in audit["kept"]])\n'
            'run.save("benchmark", [{"step": len(audit)}])\nrun.finish()',
        ],
    ),
    THIRD: (
        "",
        [
            'audit, evidence = run.load("question_audit"), run.load("evidence")',
            "import numpy\nnoise = numpy.random.default_rng(0).random((6000, 40))",
            'run.save("rewards", [dict(zip("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMN", row))\n'
            "                    for row in noise])\nrun.finish()",
        ],
    ),
}
"""Notebooks that read what those before them wrote; the last one writes two megabytes."""


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def manifest_of(folder):
    return json.loads((folder / "manifest.json").read_text())


def hashes(folder):
    """Return the hashes of the artefacts that the records of a run list, as the files have them."""
    return {
        name: runs.sha256(folder / entry["file"])
        for record in runs.recorded(folder)
        for name, entry in record["writes"].items()
    }


def finished(folder):
    """Return the hashes of what the notebooks that are ok have written."""
    done = {one["name"] for one in manifest_of(folder)["notebooks"] if one["status"] == "ok"}
    return {
        name: runs.sha256(folder / entry["file"])
        for record in runs.recorded(folder)
        if record["notebook"] in done
        for name, entry in record["writes"].items()
    }


def has_ended(folder):
    return manifest.read_manifest(folder).status not in manifest.ACTIVE


def files(folder):
    return {
        str(path.relative_to(folder)): runs.sha256(path)
        for path in folder.rglob("*")
        if path.is_file()
    }


# ---- killed at random moments --------------------------------------------------------------------


def kill(command, rng):
    """Kill the command, its kernels, or all of its processes, at once."""
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(command.pid)
        children = parent.children(recursive=True)
        kernels = []
        for child in children:
            with contextlib.suppress(psutil.Error):
                if "ipykernel_launcher" in " ".join(child.cmdline()):
                    kernels.append(child)
        for victim in rng.choice([[parent], kernels, [parent, *children]]):
            with contextlib.suppress(psutil.NoSuchProcess):
                victim.kill()


def phase(folder):
    """Return how far a run has come: its state, and the notebook that runs."""
    if not folder.exists():
        return "before the run's folder is there"
    found = manifest_of(folder)
    running = [one["name"][:2] for one in found["notebooks"] if one["status"] == "running"]
    if found["status"] != "running":
        return {"starting": "starting"}.get(found["status"], "after its end, or before it goes on")
    return f"in notebook {', '.join(running)}" if running else "between notebooks, or at the end"


@pytest.mark.nightly
@pytest.mark.parametrize(("kills", "seed"), [(50, 50)])
def test_killed_at_random_moments_a_run_ends_as_if_it_never_was(
    tmp_path, runs_dir, capsys, kills, seed
):
    """`tests/README.md` states what this printed."""
    notebooks = make_notebooks(tmp_path / "notebooks", CHAIN)
    start = ["run", "--notebooks-dir", str(notebooks), "--run-id"]
    began = time.monotonic()
    assert main([*start, "whole"]) == 0
    seconds = time.monotonic() - began
    expected = hashes(runs_dir / "whole")
    assert len(expected) == 4
    rng = random.Random(seed)
    number, phases, statuses = 0, [], []
    while len(phases) < kills:
        number += 1
        folder = runs_dir / f"killed-{number}"
        words = [*start, folder.name]
        while not (folder.exists() and manifest_of(folder)["status"] == "ok"):
            command = subprocess.Popen(
                [*FINEMEM, *words], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            )
            if len(phases) < kills:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    command.wait(rng.uniform(0.3, seconds))
                phases.append("after the command" if command.poll() is not None else phase(folder))
                kill(command, rng)
            command.wait(LAST_RESORT)
            if not folder.exists():  # it was killed before it had begun
                assert not [*runs_dir.glob(f"{folder.name}*")]
                continue
            # a worker that outlives its command ends kernel and manifest
            wait_until(functools.partial(has_ended, folder))
            capsys.readouterr()
            assert main(["list", "--json"]) == 0
            told = {one["run"]: one for one in json.loads(capsys.readouterr().out)}[folder.name]
            statuses.append(told["status"])
            before = finished(folder)
            assert told["status"] in ("ok", "failed")
            assert before.items() <= expected.items(), "what is finished is whole"
            words = ["resume", folder.name]
        assert hashes(folder) == expected
        assert not [*folder.rglob("*.tmp")]
    print(
        f"{kills} kills (seed {seed}) in {number} runs, after which {statuses.count('failed')} "
        f"were failed and {number} ended with equal hashes; killed {dict(Counter(phases))}"
    )
    assert statuses.count("failed") > kills / 4
    assert hashes(runs_dir / "whole") == expected


@pytest.mark.nightly
def test_a_notebook_that_hangs_is_stopped_with_its_children_and_resumed(tmp_path, runs_dir):
    """It ignores every signal that can be ignored, and so does the process that it has started."""
    free = tmp_path / "free"
    stubborn = (
        "import os, signal, subprocess, sys, time\nfrom pathlib import Path\n"
        "for one in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):\n"
        "    signal.signal(one, signal.SIG_IGN)\n"
        f"if not Path({str(free)!r}).exists():\n"
        "    child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(3600)'])\n"
        "    Path(run.folder, 'pids').write_text(f'{os.getpid()} {child.pid}')\n"
        "    time.sleep(3600)"
    )
    notebooks = make_notebooks(
        tmp_path / "notebooks", {FIRST: CHAIN[FIRST], SECOND: ("", [stubborn, "run.finish()"])}
    )
    words = ["--notebooks-dir", str(notebooks), "--run-id", "hangs", "--jobs", "1"]
    folder = runs_dir / "hangs"
    pids = folder / "pids"
    command = subprocess.Popen([*FINEMEM, "run", *words])
    wait_until(lambda: pids.exists() and pids.read_text() or command.poll() is not None)
    command.send_signal(signal.SIGTERM)
    assert command.wait(LAST_RESORT) == 130
    alive = [pid for pid in map(int, pids.read_text().split()) if psutil.pid_exists(pid)]
    assert alive == []
    before = finished(folder)
    assert manifest_of(folder)["status"] == "interrupted" and before
    free.touch()
    assert main(["resume", "hangs"]) == 0
    assert finished(folder).items() >= before.items()


# ---- disks ---------------------------------------------------------------------------------------


def in_namespace(script, **variables):
    """Run a shell script that may mount; skip the test where it may not."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(
            [*IN_NAMESPACE, "mount", "-t", "tmpfs", "tmpfs", "/mnt"], capture_output=True
        ).returncode
    ):
        pytest.skip("this machine lets nobody mount in a namespace of their own")
    done = subprocess.run(
        [*IN_NAMESPACE, "sh", "-c", f'finemem() {{ {" ".join(FINEMEM)} "$@"; }}\n{script}'],
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return done.stdout + done.stderr


@pytest.mark.nightly
def test_a_disk_that_is_full_fails_the_run_and_resume_ends_it(tmp_path):
    """A real file system of one megabyte, made larger afterwards."""
    notebooks = make_notebooks(tmp_path / "notebooks", CHAIN)
    runs_dir, copy = tmp_path / "runs", tmp_path / "copy"
    runs_dir.mkdir()
    printed = in_namespace(
        f"""
        mount -t tmpfs -o size=1m tmpfs "$FINEMEM_RUNS_DIR" || exit 90
        finemem run --notebooks-dir {notebooks} --run-id full; [ $? -eq 1 ] || exit 91
        cp -r "$FINEMEM_RUNS_DIR" {copy}
        mount -o remount,size=200m "$FINEMEM_RUNS_DIR" || exit 92
        finemem resume full || exit 93
        cp -r "$FINEMEM_RUNS_DIR/full" {copy}/ended
        finemem run --notebooks-dir {notebooks} --run-id whole || exit 94
        cp -r "$FINEMEM_RUNS_DIR/whole" {copy}/whole
        """,
        FINEMEM_RUNS_DIR=str(runs_dir),
    )
    assert "No space left on device" in printed
    stopped = manifest_of(copy / "full")
    assert (stopped["status"], stopped["exit_code"]) == ("failed", 1)
    assert not [*(copy / "full").rglob("*.tmp")]
    before, whole = finished(copy / "full"), hashes(copy / "whole")
    assert {"question_audit"} <= {*before} < {*whole}
    assert before.items() <= whole.items() and hashes(copy / "ended") == whole
    assert manifest_of(copy / "ended")["status"] == "ok"


@pytest.mark.nightly
def test_a_folder_that_is_read_only_is_a_sentence_for_every_command(tmp_path):
    runs_dir = tmp_path / "runs"
    for day, (name, status) in enumerate([("a", "failed"), ("b", "failed"), ("c", "ok")], start=1):
        make_bare_run(runs_dir / name, status=status, started=f"2026-01-0{day}")
    before = files(runs_dir)
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: CHAIN[FIRST]})
    printed = in_namespace(
        f"""
        mount --bind "$FINEMEM_RUNS_DIR" "$FINEMEM_RUNS_DIR" || exit 90
        mount -o remount,ro,bind "$FINEMEM_RUNS_DIR" || exit 90
        finemem run --notebooks-dir {notebooks} --run-id new; [ $? -eq 2 ] || exit 91
        finemem resume a; [ $? -eq 2 ] || exit 92
        finemem report a; [ $? -eq 1 ] || exit 93
        finemem clean --keep 1; [ $? -eq 1 ] || exit 94
        finemem diff a b; [ $? -eq 1 ] || exit 95
        finemem list || exit 96
        """,
        FINEMEM_RUNS_DIR=str(runs_dir),
    )
    assert printed.count("Read-only file system") >= 4 and "Traceback" not in printed
    assert "allow writing there, or set FINEMEM_RUNS_DIR" in printed
    assert "a stays: " in printed
    assert files(runs_dir) == before


# ---- clocks and names ----------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [-86_400.0, 3600.0])
def test_a_clock_that_jumps_does_not_make_a_running_run_a_dead_one(runs_dir, monkeypatch, seconds):
    """psutil adds the time of the machine's start, which moves with the clock, to that of the
    process: after a jump `finemem list` called a running run failed, and resume ran it twice."""
    folder = make_bare_run(
        runs_dir / "mine",
        status="running",
        process=manifest.ProcessId.current().model_dump(),
    )
    create_time, boot_time = psutil.Process.create_time, psutil.boot_time
    monkeypatch.setattr(psutil.Process, "create_time", lambda one: create_time(one) + seconds)
    monkeypatch.setattr(psutil, "boot_time", lambda: boot_time() + seconds)
    assert manifest.read_manifest(folder).status == "running"
    assert main(["resume", "mine"]) == 2
    monkeypatch.setattr(manifest, "_boot_id", lambda: "another start of the machine")
    assert manifest.read_manifest(folder).status == "failed"


def test_a_manifest_of_an_earlier_version_is_judged_by_its_time(runs_dir):
    process = manifest.ProcessId.current().model_dump(exclude={"since_boot", "boot"})
    folder = make_bare_run(runs_dir / "old", status="running", process=process)
    assert manifest.read_manifest(folder).status == "running"
    process["created"] -= 10
    folder = make_bare_run(runs_dir / "older", status="running", process=process)
    assert manifest.read_manifest(folder).status == "failed"


def test_a_run_whose_clock_is_set_back_ends_well(tmp_path, runs_dir, monkeypatch, capsys):
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: CHAIN[FIRST]})
    times = iter(["2026-03-29T02:59:59+00:00"] + ["2026-03-29T02:00:00+00:00"] * 20)
    for module in (manifest, run_command):
        monkeypatch.setattr(module, "now", lambda: next(times))
    ended = execution.Outcome("ok")
    words = ["run", "--notebooks-dir", str(notebooks), "--run-id", "back"]
    assert main(words, lambda *_: ended) == 0
    found = manifest_of(runs_dir / "back")
    assert found["ended"] < found["started"] and found["seconds"] >= 0
    assert main(["list", "--json"]) == 0 and main(["clean", "--keep", "1"]) == 0
    assert (runs_dir / "back" / "report.html").exists()


def claim(folder, barrier, answers, number):
    sample = manifest.read_manifest(folder / "sample").model_copy(update={"profile": str(number)})
    barrier.wait()
    try:
        manifest.create_run_folder(folder / "same", sample)
        answers.put(number)
    except manifest.UsageError as error:
        assert "exists; give another --run-id" in str(error)
        answers.put(None)


def test_of_runs_that_start_in_the_same_moment_under_one_name_one_begins(runs_dir):
    make_bare_run(runs_dir / "sample")
    context = multiprocessing.get_context("fork")
    for _ in range(5):
        barrier, answers = context.Barrier(6), context.SimpleQueue()
        claims = [
            context.Process(target=claim, args=(runs_dir, barrier, answers, number))
            for number in range(6)
        ]
        for one in claims:
            one.start()
        for one in claims:
            one.join(LAST_RESORT)
        [winner] = [number for number in (answers.get() for _ in claims) if number is not None]
        assert manifest_of(runs_dir / "same")["profile"] == str(winner)
        assert {path.name for path in runs_dir.iterdir()} == {"sample", "same"}
        shutil.rmtree(runs_dir / "same")


def test_runs_that_start_in_the_same_second_have_names_of_their_own(tmp_path, runs_dir):
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: CHAIN[FIRST]})
    for _ in range(3):
        words = ["run", "--notebooks-dir", str(notebooks)]
        assert main(words, lambda *_: execution.Outcome("ok")) == 0
    assert len([*runs_dir.iterdir()]) == 3


@pytest.mark.nightly
def test_two_runs_that_share_a_folder_do_not_touch_each_other(tmp_path, runs_dir, capsys):
    """Both take what a third run wrote; one of them is killed, and then resumed."""
    notebooks = make_notebooks(tmp_path / "notebooks", CHAIN)
    words = ["run", "--notebooks-dir", str(notebooks), "--run-id"]
    assert main([*words, "whole"]) == 0
    expected, whole = hashes(runs_dir / "whole"), files(runs_dir / "whole")
    reusing = [*words[:-1], "--notebooks", "02,03", "--reuse", "whole", "--run-id"]
    folders = [runs_dir / "one", runs_dir / "other"]
    commands = [subprocess.Popen([*FINEMEM, *reusing, folder.name]) for folder in folders]

    def both_run():
        assert [command.poll() for command in commands] == [None, None]
        return all(folder.exists() and manifest_of(folder)["versions"] for folder in folders)

    wait_until(both_run)
    kill(commands[0], random.Random(2))
    for command in commands:
        command.wait(LAST_RESORT)
    wait_until(functools.partial(has_ended, folders[0]))
    assert manifest_of(folders[1])["status"] == "ok"
    other = files(folders[1])
    if manifest.read_manifest(folders[0]).status != "ok":
        assert main(["resume", "one"]) == 0
    for folder in folders:
        assert hashes(folder) == {name: expected[name] for name in hashes(folder)}
        assert {*hashes(folder)} == {"evidence", "benchmark", "rewards"}
    assert files(folders[1]) == other and files(runs_dir / "whole") == whole


# ---- files changed by hand or cut off ------------------------------------------------------------


def two_notebooks(folder):
    """Leave a run whose first notebook is ok and wrote an artefact, and whose second one failed."""
    part = runs.start_run("01_question_generation", {"run_id": folder.name})
    part.save("question_audit", [{"kept": 1}])
    part.finish()


def test_an_artefact_that_was_changed_by_hand_is_not_read(runs_dir):
    two_notebooks(runs_dir / "edited")
    path = runs_dir / "edited" / "question_audit.parquet"
    whole = path.read_bytes()
    later = runs.start_run("06_benchmark_evaluation", {"run_id": "edited"})
    assert len(later.load("question_audit")) == 1
    path.write_bytes(whole + b" ")
    with pytest.raises(ValueError, match="is not as 01_question_generation wrote it.*again"):
        later.load("question_audit")
    path.write_bytes(whole)
    assert len(later.load("question_audit")) == 1


@pytest.mark.parametrize(("change", "reason"), [(b"x", "was changed"), (None, "is gone")])
def test_a_run_whose_finished_artefact_was_changed_is_not_resumed(
    tmp_path, runs_dir, capsys, change, reason
):
    notebooks = make_notebooks(tmp_path / "notebooks", {FIRST: CHAIN[FIRST], SECOND: ("", [])})
    outcomes = iter(
        [execution.Outcome("ok"), execution.Outcome("failed", "no"), execution.Outcome("ok")]
    )

    def execute(source, parameters, folder, *_):
        if source.stem == FIRST:
            two_notebooks(folder)
        return next(outcomes)

    words = ["run", "--notebooks-dir", str(notebooks), "--run-id", "edited", "--jobs", "1"]
    assert main(words, execute) == 1
    path = runs_dir / "edited" / "question_audit.parquet"
    whole = path.read_bytes()
    path.unlink() if change is None else path.write_bytes(whole + change)
    before = (runs_dir / "edited" / "manifest.json").read_bytes()
    assert main(["resume", "edited"], execute) == 2
    assert f"question_audit.parquet {reason} after {FIRST} wrote it" in capsys.readouterr().err
    assert (runs_dir / "edited" / "manifest.json").read_bytes() == before
    path.write_bytes(whole)
    assert main(["resume", "edited"], execute) == 0


def test_a_manifest_cut_off_anywhere_is_a_sentence_and_loses_nothing(runs_dir, capsys):
    folder = make_bare_run(runs_dir / "cut")
    make_bare_run(runs_dir / "good", status="ok")
    (folder / "rewards.parquet").write_bytes(b"result")
    whole = (folder / "manifest.json").read_bytes()
    for length in sorted({*range(0, len(whole), len(whole) // 12), len(whole) - 1}):
        (folder / "manifest.json").write_bytes(whole[:length])
        for words in (["resume", "cut"], ["report", "cut"], ["diff", "cut", "good"]):
            assert main(words) == 2
            shown = capsys.readouterr().err
            assert "run 'cut' has no readable manifest.json" in shown
        assert main(["list"]) == 0 and "unreadable" in capsys.readouterr().out
        assert main(["clean", "--keep", "1"]) == 0
        assert (folder / "rewards.parquet").read_bytes() == b"result"
    (folder / "manifest.json").write_bytes(whole)
    assert manifest.read_manifest(folder).run_id == "cut"
