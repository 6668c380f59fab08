from __future__ import annotations

import json
import os
import re
import sys
from pathlib import Path

import bs4
import plotly.graph_objects as go
import pytest

from finemem_lib.cli import report
from finemem_lib.explorers import evidence
from finemem_lib.figures import frames, notes
from tests.helpers.browser import CHROMIUM, opened
from tests.helpers.explorer_samples import drill, static_states
from tests.helpers.figure_samples import make_figures, make_trajectory
from tests.helpers.patience import eventually, wait_until
from tests.helpers.run_samples import make_bare_run, make_run

POISON = (
    '<script>window.ran = 1</script><img src="https://example.org/x" onerror="window.ran = 1">'
    "</script></style><svg onload='window.ran = 1'> $x$ "
)
NUM_FIGURES = len(make_figures())


@pytest.fixture(scope="module")
def page_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    return report.build_report(make_run(folder / "run"), folder / "out" / "report.html")


@pytest.fixture(scope="module")
def soup(page_path: Path) -> bs4.BeautifulSoup:
    return bs4.BeautifulSoup(page_path.read_text("utf-8"), "html.parser")


# ---- without a browser ---------------------------------------------------------------------------


def test_summary_says_what_ran_with_what_and_how_it_ended(soup: bs4.BeautifulSoup) -> None:
    text = soup.get_text(" ", strip=True)
    for expected in (
        "Status: failed",
        "12.35",
        "trajectories",
        "r_global",
        "0.1235",
        "beta",
        "seed 7",
        "ValueError: no",
        "left no executed copy",
    ):
        assert expected in text
    targets = {link["href"] for link in soup.select("nav a")}
    assert {"#nb-03_rewards", "#nb-04_next", "#results", "#provenance"} <= targets
    assert all(soup.select(target) for target in targets)


def test_seeds_that_differ_by_notebook_are_not_called_none(tmp_path: Path) -> None:
    folder = make_bare_run(tmp_path / "run", seed=None)
    page = report.build_report(folder, tmp_path / "report.html").read_text("utf-8")
    text = bs4.BeautifulSoup(page, "html.parser").get_text(" ", strip=True)
    assert "seeds by notebook, see its parameters" in text and "seed None" not in text


def test_page_has_language_title_and_headings_in_order(soup: bs4.BeautifulSoup) -> None:
    assert soup.html["lang"] == "en"
    assert "20260101-000000-abc: failed" in soup.title.text
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile(r"^h[1-6]$"))]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))


def test_every_figure_has_alt_caption_and_table(soup: bs4.BeautifulSoup) -> None:
    figures = soup.select("figure.plotly")
    assert [figure["id"] for figure in figures] == [
        f"nb-03_rewards-{number}" for number in range(1, NUM_FIGURES + 1)
    ]
    for figure, made in zip(figures, make_figures().values(), strict=True):
        meta = made.layout.meta
        drawing = figure.select_one("[role=img]")
        assert drawing["aria-label"].endswith(meta["alt"])
        assert figure.figcaption.text == meta["caption"]
        rows = frames.figure_table(made)
        assert len(figure.select("details tbody tr")) == min(len(rows), notes.MAX_TABLE_ROWS)
        assert soup.get_text().count(meta["caption"]) == 1


def test_nothing_is_loaded_from_elsewhere(soup: bs4.BeautifulSoup) -> None:
    assert not soup.select("link, iframe, script[src], img:not([src^='data:'])")
    policy = soup.select_one("meta[http-equiv=Content-Security-Policy]")["content"]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert len(re.findall("sha256-", policy)) == 2
    rest = "".join(str(tag) for tag in soup.body.find_all(recursive=False) if tag.name != "script")
    assert not re.search("mathjax|require.min|unpkg|cdnjs", rest, re.IGNORECASE)


def test_formulas_become_mathml(soup: bs4.BeautifulSoup) -> None:
    inline, block = soup.select("math")
    assert inline["display"] == "inline" and block["display"] == "block"
    assert block.mfrac is not None
    assert "<" in inline.text


@pytest.mark.parametrize(
    "tex",
    [
        r"\text{<script>window.ran=1</script>}",
        r"\frac{",
        "&lt;b&gt;",
        r"\text{&lt;script&gt;}",
        r"\color{",
    ],
)
def test_odd_formulas_make_no_markup(tex: str) -> None:
    made = report.draw_formulas(f'<code class="formula-inline">{report.html.escape(tex)}</code>')
    tags = {tag.name for tag in bs4.BeautifulSoup(made, "html.parser").find_all(True)}
    assert not tags & {"script", "b"}


def test_links_between_notebooks_stay_inside_the_page(soup: bs4.BeautifulSoup) -> None:
    assert soup.find("a", string="04")["href"] == "#nb-04_next"


def test_cleaning_keeps_tables_and_escapes_the_rest() -> None:
    kept = report.clean_html(
        "<style scoped>.x{}</style><table><thead><tr><th>a</th></tr></thead>"
        "</table><p onclick='x()'>p</p><a href='javascript:x()'>l</a>"
    )
    assert kept == "<table><thead><tr><th>a</th></tr></thead></table><p>p</p><a>l</a>"
    assert "<script" not in report.clean_html(POISON) and "<img" not in report.clean_html(POISON)


def test_long_tables_say_what_they_leave_out() -> None:
    table = str(notes.html_table("t", [{"x": number} for number in range(7)], limit=5))
    assert table.count("<tr>") == 6
    assert "2 of 7 rows are left out here" in table


def test_report_of_a_run_that_has_just_begun(tmp_path: Path) -> None:
    make_bare_run(tmp_path, status="starting")
    text = report.build_report(tmp_path, tmp_path / "report.html").read_text("utf-8")
    assert "ended not yet" in text and "left no executed copy" in text


@pytest.mark.parametrize("content", [None, "", "[]", "{"])
def test_unreadable_manifest_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(ValueError, match=r"run .* has no readable manifest\.json .*; choose"):
        report.build_report(tmp_path, tmp_path / "report.html")
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"{", "NotJSONError: Notebook does not appear to be JSON"),
        (b"", "NotJSONError"),
        (b"\xff", "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError"),
        (b"5", "Error"),
        (b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 5}', "Error"),
        (None, "IsADirectoryError"),
    ],
)
def test_a_notebook_that_cannot_be_shown_stops_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, why: str
) -> None:
    run = make_run(tmp_path / "run")
    broken = run / "notebooks" / "04_next.ipynb"
    broken.parent.mkdir()
    broken.mkdir() if content is None else broken.write_bytes(content)
    text = report.build_report(run, tmp_path / "report.html").read_text("utf-8")
    assert "The executed copy of this notebook cannot be shown" in text and why in text
    assert "04_next: its executed copy cannot be shown: " in capsys.readouterr().err
    assert "Who earned it?" in text


@pytest.mark.parametrize("content", ["{", "[]", '{"01_x": 5}', "[" * 100_000])
def test_metrics_that_cannot_be_read_are_named(tmp_path: Path, content: str) -> None:
    (make_bare_run(tmp_path) / "metrics.json").write_text(content)
    with pytest.raises(ValueError, match=r"metrics\.json of run .* cannot be read .*; remove it"):
        report.build_report(tmp_path, tmp_path / "report.html")


def test_a_failed_write_leaves_the_old_report(tmp_path: Path, monkeypatch) -> None:
    run = make_run(tmp_path / "run")
    output = tmp_path / "report.html"
    output.write_text("old")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        report.build_report(run, output)
    assert output.read_text() == "old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report.html", "run"]


def test_figure_without_a_browser_is_saved_as_html(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "kaleido", None)
    with pytest.warns(UserWarning, match="written as HTML.*Chromium"):
        [path] = report.save_figures({tmp_path / "flow": make_figures()["evidence_sankey"]})
    assert path.name == "flow.html" and "Plotly.newPlot" in path.read_text("utf-8")


# ---- in a browser --------------------------------------------------------------------------------

browser = pytest.mark.browser


@browser
def test_figures_are_drawn_offline(page_path: Path) -> None:
    with opened(page_path) as (page, errors, requests):
        drawn = page.evaluate(
            "[...document.querySelectorAll('figure.plotly')]"
            ".filter(figure => figure.querySelector('.main-svg')).length"
        )
        traces = page.evaluate("document.querySelector('.js-plotly-plot').data[0].y")
        assert drawn == NUM_FIGURES
        assert traces == list(make_figures()["question_audit"].data[0].y)
        assert errors == [] and requests == []


@browser
def test_text_from_data_never_runs(tmp_path: Path) -> None:
    """A script tag in every figure, table, output, parameter and metric stays text."""
    path = report.build_report(make_run(tmp_path / "run", POISON), tmp_path / "report.html")
    with opened(path) as (page, errors, requests):
        page.locator(".sankey-node rect").first.hover(force=True)
        page.wait_for_selector(".hoverlayer .hovertext", state="attached")
        hover = page.locator(".hoverlayer").all_text_contents()
        assert any("<script>" in text for text in hover)
        labels = page.locator("svg .node-label").all_text_contents()
        assert any("<script>" in text for text in labels)
        assert page.evaluate("window.ran") is None
        assert page.locator("svg a, svg script, #main img:not([src^=data])").count() == 0
        assert page.locator("figure.plotly .main-svg").count() >= NUM_FIGURES
        assert "<script>window.ran = 1</script>" in page.locator("#main").inner_text()
        assert errors == [] and requests == []


SHOWN = """() => [...document.querySelectorAll("figure.plotly")].map(figure => {
    const plot = figure.querySelector(".plot");
    const whole = (one) => JSON.parse(JSON.stringify(one ?? null));
    return {
        data: whole(plot.data), height: plot._fullLayout.height,
        yaxis: whole(plot.layout.yaxis?.ticktext), title: plot.layout.title.text,
        shapes: plot._fullLayout.shapes.filter(shape => shape.visible).map(
            ({type, x0, x1, y0, y1, xref, yref}) => [type, x0, x1, y0, y1, xref, yref]),
        caption: figure.querySelector("figcaption").textContent,
        tables: [...figure.querySelectorAll("[data-states]")].filter(one => !one.hidden).length};
})"""


@browser
def test_every_state_of_an_explorer_is_drawn_as_if_it_were_the_first(tmp_path: Path) -> None:
    """Incident: the outlines of one selection stayed under the next, because plotly merges shapes
    one by one."""
    explorer = evidence.evidence_explorer(make_trajectory())
    path = report.build_report(
        make_run(tmp_path / "run", figures=explorer.static_figures()), tmp_path / "report.html"
    )
    states = static_states(explorer)
    with opened(path) as (page, errors, _):
        slider = page.locator(".explorer input")
        for place in (9, 2, 20, 0, len(states) - 1):
            slider.fill(str(place))
            slider.dispatch_event("input")
            wanted_figures = explorer.figures(**states[place]).values()

            def drawn_as_if_first(wanted_figures=wanted_figures) -> None:
                for shown, want in zip(page.evaluate(SHOWN), wanted_figures, strict=True):
                    layout = json.loads(go.Figure(want.to_plotly_json()).to_json())["layout"]
                    assert shown["title"] == layout["title"]["text"]
                    assert shown["height"] == layout["height"]
                    assert shown["yaxis"] == layout.get("yaxis", {}).get("ticktext")
                    assert shown["caption"] == layout["meta"]["caption"] and shown["tables"] == 1
                    drawn = sorted(tuple(shape[:5]) for shape in shown["shapes"])
                    assert drawn == sorted(
                        (one["type"], one["x0"], one["x1"], one["y0"], one["y1"])
                        for one in layout.get("shapes", ())
                    )
                    lines = [shape for shape in shown["shapes"] if shape[0] == "line"]
                    assert all(shape[5:] == ["x", "y domain"] for shape in lines)
                    for trace, wanted in zip(
                        shown["data"], json.loads(want.to_json())["data"], strict=True
                    ):
                        for name in ("x", "y", "z", "selectedpoints"):
                            assert trace.get(name) == wanted.get(name)

            eventually(drawn_as_if_first)
        assert errors == []


@browser
def test_linked_sliders_and_clicks_go_down_from_the_run_to_the_token(tmp_path: Path) -> None:
    explorer = drill()
    path = report.build_report(
        make_run(tmp_path / "run", figures=explorer.static_figures()), tmp_path / "report.html"
    )

    def heights() -> list[list[float]]:
        return [figure["data"][0]["y"] for figure in page.evaluate(SHOWN)]

    with opened(path) as (page, errors, _):
        run, step, token = page.locator(".explorer input").all()
        wait_until(lambda: heights() == [[2, 5], [2, 2], [2, 1]])
        assert token.get_attribute("max") == "0"
        run.focus()
        run.press("ArrowLeft")  # keeps step 2, which run a has too
        wait_until(lambda: heights() == [[1, 5], [1, 2], [2, 1]])
        assert (step.get_attribute("aria-valuetext"), token.get_attribute("max")) == ("step 2", "1")
        token.focus()
        token.press("ArrowRight")
        wait_until(lambda: heights() == [[1, 5], [1, 2], [2, 2]])
        step.focus()
        step.press("Home")  # has no second token
        wait_until(lambda: heights() == [[1, 5], [1, 1], [1, 1]])
        page.locator(".explorer button[aria-label='step: next']").click()
        wait_until(lambda: heights()[2] == [2, 1])
        page.locator("figure.plotly .bars .point path").nth(1).click(force=True)  # run bb
        wait_until(lambda: heights() == [[2, 5], [2, 2], [2, 1]])
        assert page.locator(".explorer output").all_text_contents() == [
            "run second",
            "step 2",
            "token 1",
        ]
        assert errors == []


@browser
def test_page_works_by_keyboard_and_at_twice_the_size(page_path: Path) -> None:
    with opened(page_path, width=640) as (page, _, _):
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        page.keyboard.press("Tab")
        assert page.evaluate("document.activeElement.className") == "skip"
        table = page.locator("details").first
        table.locator("summary").focus()
        page.keyboard.press("Enter")
        assert table.evaluate("details => details.open")
        assert table.locator("td").first.is_visible()


@browser
def test_saved_images_are_small_and_the_same_every_time(tmp_path: Path) -> None:
    pytest.importorskip("kaleido", reason="kaleido is not installed")
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    figure = make_figures()["question_audit"]  # its patterns have random ids in plotly
    first, second = report.save_figures({tmp_path / name: figure for name in ("a", "b")})
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_size < 150_000 and first.name == "a.svg"
    assert "accepted" in first.read_text("utf-8")


def test_a_browser_that_says_goodbye_is_no_error(caplog: pytest.LogCaptureFixture) -> None:
    """Incident: the export of figures was complete and ended with a traceback."""
    pipe = pytest.importorskip("choreographer.channels.pipe", reason="kaleido is not installed")
    pipe._logger.addFilter(report.is_real_error)
    for read in ("{bye}\n", '{"id": 1'):
        try:
            pipe.wire.deserialize(read)
        except pipe.JSONError:
            pipe._logger.exception("of %s", read)
    assert [record.args for record in caplog.records] == [('{"id": 1',)]
