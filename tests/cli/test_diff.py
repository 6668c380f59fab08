"""`finemem diff`: what it compares, when it fails, and its page."""

from __future__ import annotations

import argparse
import json
import math
import shlex
from pathlib import Path
from typing import Any

import pandas as pd
import plotly.graph_objects as go
import pytest

from finemem_lib.cli import comparison, diff
from finemem_lib.cli.main import main
from tests.helpers.browser import opened
from tests.helpers.figure_samples import make_figures
from tests.helpers.run_samples import add_finding, make_bare_run, notebook_entry

POISON = "<script>window.ran = 1</script>"
TEACHING = "03_rewards"


@pytest.fixture
def runs_dir(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    return tmp_path / "runs"


def make(
    folder: Path,
    metrics: dict[str, Any],
    parameters: dict[str, Any] | None = None,
    rows: list[tuple[str, float, float | None, float | None]] = (),
    **changes: Any,
) -> Path:
    """Write a run that is ok, with metrics of one notebook and rows of the table `benchmark`."""
    entry = notebook_entry(TEACHING, status="ok", parameters={"run_id": folder.name, "beta": 0.5})
    entry["parameters"] |= parameters or {}
    outputs = {"benchmark": {"file": "benchmark.parquet", "version": 1, "sha256": folder.name * 9}}
    make_bare_run(
        folder,
        **{
            "status": "ok",
            "notebooks": [entry],
            "versions": {"python": "3.11", "torch": "2.9"},
            "outputs": outputs if rows else {},
        }
        | changes,
    )
    (folder / "metrics.json").write_text(json.dumps({TEACHING: metrics}))
    if rows:
        columns = ["method", "value", "low", "high"]
        table = pd.DataFrame(rows, columns=columns).assign(over="all questions")
        table.to_parquet(folder / "benchmark.parquet")
    return folder


def last_line(printed: str) -> dict[str, str]:
    return dict(one.split("=", 1) for one in shlex.split(printed.splitlines()[-1]))


def test_what_differs_is_printed_and_what_is_the_same_is_counted(runs_dir, capsys):
    make(runs_dir / "a", {"accuracy": 0.5, "kept": 10}, versions={"python": "3.11", "torch": "2.9"})
    make(
        runs_dir / "b",
        {"accuracy": 0.525, "kept": 10},
        {"beta": 0.25},
        versions={"python": "3.11", "torch": "2.10"},
        inputs={"data.jsonl": "f" * 64},
    )
    assert main(["diff", "a", "b"]) == 0
    shown = capsys.readouterr().out
    lines = [line.split() for line in shown.splitlines()]
    assert ["torch", "2.9", "2.10"] in lines and ["03_rewards.beta", "0.5", "0.25"] in lines
    assert ["data.jsonl", "–", "f" * 12] in lines
    assert ["03_rewards", "accuracy", "0.5000", "0.5250", "+0.025", "+5.0%"] in lines
    assert "metrics: 1 of 2 differ" in shown and "run_id" not in shown and "python" not in shown
    page = runs_dir / "b" / "diff-a.html"
    found = last_line(shown)
    assert found.pop("seconds").isdecimal()
    assert found == {
        "status": "ok",
        "a": "a",
        "b": "b",
        "metrics": "2",
        "changed": "1",
        "over": "0",
        "page": str(page),
    }


@pytest.mark.parametrize(
    ("before", "after", "limit", "code"),
    [
        ({"m": 1.0}, {"m": 1.04}, "5%", 0),
        ({"m": 1.0}, {"m": 0.94}, "5%", 1),
        ({"m": 1.0}, {"m": 0.94}, "0.1", 0),
        ({"m": 0.0}, {"m": 1e-12}, "0%", 0),  # rounding
        ({"m": 0.0}, {"m": 0.01}, "99%", 1),  # any share of nothing
        ({"m": -2.0}, {"m": -2.2}, "5%", 1),
        ({"m": 0.5}, {"m": None}, "5%", 1),  # no longer measured
        ({"m": 0.5}, {}, "5%", 1),  # lost
        ({"m": "a"}, {"m": "b"}, "5%", 1),
        ({"m": "a", "seconds_m": 1.0}, {"m": "a", "seconds_m": 9.0}, "5%", 0),  # the machine's
        ({}, {}, "5%", 1),  # nothing to compare is no success
    ],
)
def test_a_metric_that_changes_by_more_fails(runs_dir, capsys, before, after, limit, code):
    make(runs_dir / "a", before)
    make(runs_dir / "b", after)
    assert main(["diff", "a", "b", "--fail-over", limit]) == code
    shown = capsys.readouterr()
    assert last_line(shown.out)["status"] == ("failed" if code else "ok")
    assert bool(shown.err) == bool(code)


def test_patterns_say_which_metrics_do_not_count(runs_dir):
    make(runs_dir / "a", {"x": 1.0, "seconds_x": 1.0})
    make(runs_dir / "b", {"x": 2.0, "seconds_x": 1.0})
    failing = ["diff", "a", "b", "--fail-over", "5%"]
    assert main([*failing, "--ignore", "03_*.x"]) == 0
    assert main([*failing, "--ignore", "04_*.x"]) == 1


def test_a_notebook_that_one_run_does_not_have_loses_no_metric(runs_dir, capsys):
    make(runs_dir / "a", {"m": 1.0})
    folder = make(runs_dir / "b", {"m": 1.0})
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["notebooks"].append(notebook_entry("09_new", status="ok"))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "metrics.json").write_text(json.dumps({TEACHING: {"m": 1.0}, "09_new": {"n": 3}}))
    assert main(["diff", "a", "b", "--fail-over", "1%"]) == 0
    assert ["09_new", "n", "not", "run", "3"] in map(str.split, capsys.readouterr().out.split("\n"))


def test_intervals_of_tables_overlap_or_not(runs_dir, capsys):
    make(runs_dir / "a", {}, rows=[("rag", 0.5, 0.4, 0.6), ("all", 0.2, 0.1, 0.3), ("x", 1, 0, 2)])
    make(runs_dir / "b", {}, rows=[("rag", 0.7, 0.6, 0.8), ("all", 0.9, 0.8, 1.0), ("x", 1, 0, 2)])
    found = comparison.compare_runs(runs_dir / "a", runs_dir / "b")
    assert {one.name: one.overlap for one in found.estimates} == {
        "rag": True,  # they touch
        "all": False,
        "x": True,
    }
    assert main(["diff", "a", "b"]) == 0
    shown = capsys.readouterr().out
    assert "2 of 3 differ, of 1 the intervals do not overlap" in shown
    assert shown.index("benchmark  all") < shown.index("benchmark  rag")
    assert "0.2000 [0.1000, 0.3000]" in shown


def with_intervals(folder, **ends):
    """Give metrics of a run the ends of their intervals, as its notebook records them."""
    (folder / "records").mkdir()
    record = {"schema_version": 1, "intervals": ends}
    (folder / "records" / f"{TEACHING}.json").write_text(json.dumps(record))


def test_metrics_say_whether_their_intervals_overlap(runs_dir, capsys):
    metrics = ["apart", "touching", "bare"]
    first = make(runs_dir / "a", {name: 0.2 for name in metrics})
    second = make(runs_dir / "b", {name: 0.7 for name in metrics})
    make(runs_dir / "old", {name: 0.6 for name in metrics})
    with_intervals(first, apart=[0.1, 0.3], touching=[0.1, 0.6], bare=[0.1, 0.3])
    with_intervals(second, apart=[0.6, 0.8], touching=[0.6, 0.8])
    found = comparison.compare_runs(first, second)
    assert {one.name: one.overlap for one in found.metrics} == {
        "apart": False,
        "touching": True,
        "bare": None,
    }
    assert main(["diff", "a", "b"]) == 0
    lines = capsys.readouterr().out.splitlines()
    [apart] = [line for line in lines if "apart" in line]
    assert "0.2000 [0.1000, 0.3000]" in apart and apart.endswith("apart")
    page = (runs_dir / "b" / "diff-a.html").read_text(encoding="utf-8")
    assert "0.7000 [0.6000, 0.8000]" in page and ">apart<" in page
    assert main(["diff", "old", "b"]) == 0, "a run from before metrics had intervals"


def test_rows_without_an_interval_or_that_look_alike_are_no_comparison(runs_dir):
    make(runs_dir / "a", {}, rows=[("rag", 0.5, None, None), ("twin", 1, 0, 2), ("twin", 2, 1, 3)])
    make(runs_dir / "b", {}, rows=[("rag", 0.7, 0.6, 0.8)])
    found = comparison.compare_runs(runs_dir / "a", runs_dir / "b")
    assert [(one.name, one.overlap) for one in found.estimates] == [("rag", None)]


def test_an_artefact_that_is_gone_hides_no_other_difference(runs_dir):
    make(runs_dir / "a", {"m": 1.0}, rows=[("rag", 0.5, 0.4, 0.6)])
    make(runs_dir / "b", {"m": 2.0}, rows=[("rag", 0.5, 0.4, 0.6)])
    (runs_dir / "b" / "benchmark.parquet").write_bytes(b"not a table")
    found = comparison.compare_runs(runs_dir / "a", runs_dir / "b")
    assert [one.difference for one in found.metrics] == [1.0]
    assert found.estimates[0].after is None
    assert [one.what for one in found.data] == ["artefact benchmark"]


def test_relative_changes_of_numbers_texts_and_nothing():
    def change(*values):
        return comparison.Change("n", "m", *map(comparison.Estimate, values))

    assert change(4, 5).relative == 0.25 and change(-4, -5).relative == -0.25
    assert change(0, -1).relative == -math.inf and change(None, None).relative == 0
    assert change("a", "b").relative == math.inf
    assert comparison.Change("n", "m", None, comparison.Estimate(1)).relative is None


@pytest.mark.parametrize("text", ["5", "five", "-5%", "1e9", "", "nan", "5 %"])
def test_a_share_that_could_mean_two_things_is_refused(text, capsys):
    with pytest.raises(argparse.ArgumentTypeError, match="such as 5% or 0.05"):
        diff.share(text)


def test_runs_are_named_by_id_or_by_folder(runs_dir, tmp_path, capsys):
    make(runs_dir / "a", {"m": 1.0})
    make(tmp_path / "elsewhere" / "a", {"m": 1.0})
    assert main(["diff", "a", str(tmp_path / "elsewhere" / "a")]) == 0
    assert "metrics: 0 of 1 differ" in capsys.readouterr().out
    page = (tmp_path / "elsewhere" / "a" / "diff-a.html").read_text(encoding="utf-8")
    assert "a (A)" in page and "a (B)" in page
    assert main(["diff", "a", "nothing"]) == 2
    assert "no readable manifest.json" in capsys.readouterr().err


def test_a_page_that_cannot_be_written_is_a_sentence(runs_dir, capsys, tmp_path):
    make(runs_dir / "a", {"m": 1.0})
    (tmp_path / "file").write_text("")
    to = tmp_path / "file" / "page.html"
    assert main(["diff", "a", "a", "--output", str(to)]) == 1
    shown = capsys.readouterr()
    assert shown.err.startswith("failed: ") and "--output" in shown.err
    assert last_line(shown.out)["status"] == "failed"


@pytest.mark.browser
def test_the_page_shows_figures_side_by_side_offline(runs_dir):
    figures = make_figures()
    shared, first, second = (
        figures[name] for name in ("question_audit", "memory_growth", "advantage_heatmap")
    )
    for name, own in (("a", first), ("b", second)):
        folder = make(runs_dir / name, {"m": 1.0}, {"beta": f"{name}{POISON}"})
        add_finding(folder, TEACHING, f"{name} is 0.5 {POISON}", own)
        add_finding(folder, TEACHING, "The same.", shared)
        only = go.Figure(go.Bar(y=[1]), layout={"title": {"text": f"Only in {name}"}})
        (folder / "figures" / f"03_rewards-only_{name}.json").write_text(only.to_json())
    assert main(["diff", "a", "b"]) == 0
    path = runs_dir / "b" / "diff-a.html"
    assert 1_000_000 < path.stat().st_size < 4_000_000
    with opened(path) as (page, errors, requests):
        assert page.locator("figure.plotly .main-svg").count() > 0
        assert page.locator("figure.plotly").count() == 5  # two, one for both, one in each
        assert page.locator("h3", has_text="the same in both").count() == 1
        text = page.locator("main").text_content()
        assert text.count("This run has not kept the figure.") == 2
        assert f"a is 0.5 {POISON}" in text and "b is 0.5" in text
        left, right = (page.locator(f"#figure-1-{side}").bounding_box() for side in ("a", "b"))
        assert left["y"] == right["y"] and left["x"] + left["width"] <= right["x"]
        assert page.evaluate("window.ran") is None
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert errors == [] and requests == []
