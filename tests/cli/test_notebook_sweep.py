"""`finemem sweep NOTEBOOK`: the cells of a grid, and runs that are kept, resumed and stopped."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from finemem_lib.cli import grid, notebook_sweep
from finemem_lib.cli.main import main
from finemem_lib.cli.profiles import Profile
from finemem_lib.figures.sweeps import SweepRow, sweep_metrics
from finemem_lib.util.console import UsageError
from tests.helpers.patience import LAST_RESORT, wait_until
from tests.helpers.small_notebooks import FIRST, PASS_ON, THIRD, make_notebooks

PROFILE = Profile("default", "d", ["01"], {}, {}, [])


@pytest.fixture
def notebooks(tmp_path):
    return make_notebooks(tmp_path / "notebooks", PASS_ON)


def cells_of(notebooks, stem, points, seeds=(), given=None, reuse=None):
    path = notebooks / f"{stem}.ipynb"
    return grid.sweep_cells(path, PROFILE, given or {}, points, seeds, reuse)


# ---- the grid ------------------------------------------------------------------------------------


def test_a_grid_is_every_combination_and_a_list_is_its_points():
    assert grid.grid_points(["a=1,2", "b=x, y"], []) == [
        (("a", "1"), ("b", "x")),
        (("a", "1"), ("b", "y")),
        (("a", "2"), ("b", "x")),
        (("a", "2"), ("b", "y")),
    ]
    assert grid.grid_points([], [["a=1", "b=2"], ["a=3"]]) == [
        (("a", "1"), ("b", "2")),
        (("a", "3"),),
    ]
    assert grid.grid_points([], []) == [()]
    assert grid.grid_points(['a=["x,y",0.5,[1,2]]'], []) == [
        (("a", "x,y"),),
        (("a", "0.5"),),
        (("a", "[1, 2]"),),
    ]


@pytest.mark.parametrize(
    ("axes", "listed", "reason"),
    [
        (["a"], [], "expected NAME=VALUE"),
        (["=1"], [], "expected NAME=VALUE"),
        (["a="], [], "expected NAME=VALUE"),
        (["a=[1,"], [], "is not JSON"),
        (["a=1"], [["a=2"]], "a is given twice"),
        (["seed=1,2"], [], "give --seeds"),
    ],
)
def test_a_grid_that_cannot_be_read_is_refused(axes, listed, reason):
    with pytest.raises(UsageError, match=reason):
        grid.grid_points(axes, listed)


def test_a_cell_runs_the_notebooks_that_write_what_it_reads(notebooks):
    points = grid.grid_points(["beta=0.25,1", "num_chunks=4"], [])
    cells = cells_of(notebooks, THIRD, points, [3, 4])
    assert [cell.notebooks for cell in cells] == [(FIRST, THIRD)] * 4
    assert [(cell.point[0][1], cell.seed) for cell in cells] == [
        ("0.25", 3),
        ("0.25", 4),
        ("1", 3),
        ("1", 4),
    ]
    assert cells[0].key.startswith("03-beta-0.25-num-chunks-4-seed-3-")
    assert cells[0].settings == [
        *("--set", "beta=0.25"),
        *("--set", "num_chunks=4"),
        *("--set", "seed=3"),
    ]
    [alone] = cells_of(notebooks, FIRST, [()])
    assert (alone.notebooks, alone.seed, alone.name) == ((FIRST,), None, "as it is")


def test_equal_cells_have_one_key_and_a_changed_notebook_gives_others(notebooks):
    def keys(**more):
        return [cell.key for cell in cells_of(notebooks, THIRD, [(("beta", "0.5"),)], [0], **more)]

    before = keys()
    assert keys() == before and keys(given={"capacity": "3"}) != before
    same = cells_of(notebooks, THIRD, [(("beta", "0.5"),), (("beta", ".5"),)], [0])
    assert len({cell.key.rpartition("-")[2] for cell in same}) == 1
    path = notebooks / f"{FIRST}.ipynb"
    path.write_text(path.read_text().replace("run.finish()", "run.finish() "))
    assert keys() != before, "what it reads is made otherwise now"


@pytest.mark.parametrize(
    ("point", "reason"),
    [(("bet", "1"), "unknown parameter bet"), (("beta", "much"), "beta"), (("04.beta", "1"), "04")],
)
def test_a_parameter_that_is_refused_is_so_before_anything_starts(notebooks, point, reason):
    with pytest.raises(UsageError, match=reason):
        cells_of(notebooks, THIRD, [(point,)])


# ---- results -------------------------------------------------------------------------------------


def result(point, seed, metrics, status="ok"):
    cell = grid.SweepCell(f"{point}-{seed}", (("beta", point),), seed, (THIRD,))
    return notebook_sweep.CellRun(cell, status, "", metrics, 1.0)


def test_metrics_are_averaged_over_the_seeds_of_a_point():
    rows = notebook_sweep.summarise(
        [
            result("0", 0, {"m": 1.0, "text": "x", "none": None}),
            result("0", 1, {"m": 3.0, "text": "y", "none": None}),
            result("1", 0, {"m": 5.0, "none": 2}),
            result("1", 1, {}, "failed"),
        ]
    )
    first, second, none, some = rows
    assert (first.point, first.metric, first.value, first.seeds) == ("beta=0", "m", 2.0, (1.0, 3.0))
    # Student's t with 1 degree of freedom: 12.706 times the standard error 1
    assert first.low == pytest.approx(2 - 12.706, abs=1e-3)
    assert (second.value, second.low, second.seeds) == (5.0, None, (5.0,))
    assert (none.value, none.seeds, some.value) == (None, (), 2.0)


def test_the_figure_has_a_panel_for_every_metric():
    rows = [
        SweepRow(f"beta={beta}", metric, 0.5, 0.4, 0.6, (0.45, 0.55))
        for metric in ("a", "b", "<b>c", "d")
        for beta in (0, 1)
    ]
    figure = sweep_metrics(rows, "beta")
    assert [note.text for note in figure.layout.annotations] == ["a", "b", "&lt;b&gt;c", "d"]
    means = [trace for trace in figure.data if trace.name == "mean"]
    assert len(means) == 4 and [*means[0].x] == [0.5, 0.5]
    assert [*means[0].error_x.array] == pytest.approx([0.1, 0.1])
    assert [*figure.layout.yaxis.ticktext] == ["beta=0", "beta=1"]
    nothing = SweepRow("p", "m", None, None, None, ())
    assert "no rows yet" in sweep_metrics([nothing], "x").layout.annotations[0].text


# ---- runs ----------------------------------------------------------------------------------------


def sweep(notebooks, folder, *arguments):
    words = ["sweep", str(notebooks / f"{THIRD}.ipynb"), "--output", str(folder)]
    return [*words, "--grid", "beta=0.25,1", *arguments]


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """A sweep of one seed, run two at a time."""
    place = tmp_path_factory.mktemp("swept")
    notebooks = make_notebooks(place / "notebooks", PASS_ON)
    done = subprocess.run(
        [
            *(sys.executable, "-m", "finemem_lib"),
            *sweep(notebooks, place / "sweep", "--seeds", "5", "--set", "num_chunks=2"),
            *("--jobs", "2"),
        ],
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "sweep", notebooks, done.stdout


def test_every_cell_is_a_run_with_its_manifest(swept):
    folder, _, printed = swept
    lines = [line.split() for line in printed.splitlines()]
    assert ["beta=0.25", "reward", "0.5", "1"] in lines and ["beta=1", "reward", "2", "1"] in lines
    rows = [json.loads(line) for line in (folder / "sweep.jsonl").read_text().splitlines()]
    assert [row["metrics"] for row in rows] == [{"reward": 0.5}, {"reward": 2.0}]
    assert [row["parameters"] for row in rows] == [{"beta": "0.25"}, {"beta": "1"}]
    for row in rows:
        manifest = json.loads((folder / row["run"] / "manifest.json").read_text())
        assert (manifest["status"], manifest["seed"]) == ("ok", 5)
        assert [one["name"] for one in manifest["notebooks"]] == [FIRST, THIRD]
        assert manifest["notebooks"][0]["parameters"]["num_chunks"] == 2
        assert (folder / row["run"] / "report.html").exists()
    assert json.loads((folder / "sweep.json").read_text())["notebook"] == THIRD
    page = (folder / "sweep.html").read_text()
    assert all(f'href="{row["run"]}/report.html"' in page for row in rows)
    found = dict(one.split("=", 1) for one in shlex.split(printed.splitlines()[-1]))
    assert (found["status"], found["cells"], found["ok"]) == ("ok", "2", "2")
    assert Path(found["page"]) == folder / "sweep.html"


def test_what_is_finished_is_not_run_again(swept, monkeypatch, capsys):
    folder, notebooks, _ = swept

    def never(*arguments, **settings):
        raise AssertionError("a process was started")

    monkeypatch.setattr(notebook_sweep.Running, "start", never)
    assert main(sweep(notebooks, folder, "--seeds", "5", "--set", "num_chunks=2")) == 0
    assert capsys.readouterr().out.count(": kept") == 2


def test_cells_that_are_not_there_are_said_where_nothing_is_run(swept, capsys):
    folder, notebooks, _ = swept
    words = sweep(notebooks, folder, "--seeds", "5,6", "--set", "num_chunks=2", "--collect")
    before = (folder / "sweep.jsonl").read_text()
    assert main(words) == 1
    shown = capsys.readouterr()
    assert shown.err.count("not run: 03-beta") == 2 and "ok=2" in shown.out
    (folder / "sweep.jsonl").write_text(before)


@pytest.mark.long
def test_a_cell_that_fails_stops_no_other_and_is_resumed_by_the_same_command(
    tmp_path, capsys, monkeypatch
):
    broken = tmp_path / "broken"
    notebooks = make_notebooks(
        tmp_path / "notebooks",
        {
            THIRD: (
                "beta: float = 0.5  # weight\n",
                [
                    "from pathlib import Path\n"
                    f"assert beta > 0.5 or not Path({str(broken)!r}).exists(), 'no such luck'\n"
                    'run.metric("reward", beta)',
                    "run.finish()",
                ],
            )
        },
    )
    broken.touch()
    assert main(sweep(notebooks, tmp_path / "sweep", "--jobs", "1")) == 1
    shown = capsys.readouterr()
    assert "beta=0.25: failed (exit code 1), see" in shown.out and "no such luck" in shown.err
    assert "beta=1: ok" in shown.out
    broken.unlink()
    assert main(sweep(notebooks, tmp_path / "sweep", "--jobs", "1")) == 0
    shown = capsys.readouterr().out
    assert "beta=0.25: ok" in shown and "beta=1: kept" in shown
    [failed] = (tmp_path / "sweep").glob("03-beta-0.25-*")
    assert len(json.loads((failed / "manifest.json").read_text())["resumed"]) == 1


def test_an_interrupted_sweep_ends_its_runs_and_leaves_no_process(tmp_path):
    notebooks = make_notebooks(
        tmp_path / "notebooks",
        {THIRD: ("beta: float = 0.5  # w\n", ["import time\ntime.sleep(999)"])},
    )
    command = subprocess.Popen(
        [sys.executable, "-m", "finemem_lib", *sweep(notebooks, tmp_path / "sweep", "--jobs", "1")],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        begun = (tmp_path / "sweep").glob
        wait_until(lambda: [*begun("03-*/records/*.json")] or command.poll() is not None)
        children = psutil.Process(command.pid).children(recursive=True)
        command.send_signal(signal.SIGINT)
        printed, _ = command.communicate(timeout=LAST_RESORT)
    finally:
        command.kill()
    assert command.returncode == 130, printed
    assert "the same command goes on from them" in printed
    assert printed.splitlines()[-1].startswith("status=interrupted")
    [begun] = (tmp_path / "sweep").glob("03-*")
    assert json.loads((begun / "manifest.json").read_text())["status"] == "interrupted"
    wait_until(lambda: not any(child.is_running() for child in children))


def test_a_cell_that_another_process_runs_is_waited_for(swept, monkeypatch):
    folder, notebooks, _ = swept
    made = notebook_sweep.Sweep(folder, notebooks / f"{THIRD}.ipynb", "default")
    [row, _] = map(json.loads, (folder / "sweep.jsonl").read_text().splitlines())
    cell = grid.SweepCell(row["run"], (), 5, (FIRST, THIRD))
    path = folder / row["run"] / "manifest.json"
    whole = path.read_text()
    active = json.loads(whole) | {"status": "running"}
    active["process"] |= {"pid": os.getpid(), "created": psutil.Process().create_time()}
    active["process"].pop("since_boot", None)
    path.write_text(json.dumps(active))
    waited = []

    def ends(seconds):
        waited.append(seconds)
        path.write_text(whole)

    monkeypatch.setattr(time, "sleep", ends)
    assert notebook_sweep.run_cell(made, cell) == "kept" and len(waited) == 1
    active["process"]["host"] = "another"
    path.write_text(json.dumps(active))
    with pytest.raises(RuntimeError, match="on another runs it"):
        notebook_sweep.run_cell(made, cell)
    path.write_text(whole)


def test_cells_take_artefacts_from_a_run_that_is_reused(swept, tmp_path, monkeypatch, capsys):
    folder, notebooks, _ = swept
    [row, _] = map(json.loads, (folder / "sweep.jsonl").read_text().splitlines())
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(folder))
    words = sweep(notebooks, tmp_path / "reusing", "--reuse", row["run"], "--jobs", "1")
    words[words.index("beta=0.25,1")] = "beta=0.75"
    assert main(words) == 0
    shown = capsys.readouterr().out
    assert f"1 cells, runs of {THIRD}\n" in shown and ["beta=0.75", "reward", "1.5", "1"] in [
        line.split() for line in shown.splitlines()
    ]


@pytest.mark.nightly
def test_a_dask_cluster_runs_the_cells(tmp_path, capsys):
    distributed = pytest.importorskip("distributed")
    notebooks = make_notebooks(tmp_path / "notebooks", PASS_ON)
    with distributed.LocalCluster(
        n_workers=1, threads_per_worker=1, dashboard_address=None
    ) as cluster:
        words = sweep(notebooks, tmp_path / "sweep", "--scheduler", cluster.scheduler_address)
        assert main(words) == 0
    assert capsys.readouterr().out.count(": ok") == 2


# ---- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["sweep", "nothing.ipynb"], "does not exist"),
        (["sweep", "99"], "expected numbers"),
        (["sweep", "03", "--regimes", "x"], "--regimes is for designs"),
        (["sweep", "03", "--reuse", "nothing"], "no readable manifest"),
        (["sweep", "03", "--scheduler", "nowhere"], "no Dask scheduler"),
        (["sweep", "notebooks/designs/schemes.yaml", "--grid", "a=1"], "are for notebooks"),
    ],
)
def test_bad_usage_starts_nothing(words, reason, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: pytest.fail("started"))
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    assert main([*words, "--output", str(tmp_path / "sweep")]) == 2
    assert reason in capsys.readouterr().err
