from __future__ import annotations

import base64
import gzip
import json
import os
import re
from pathlib import Path
from typing import Any

import bs4
import plotly.graph_objects as go
import pytest

from finemem_lib.cli import report
from finemem_lib.explorers import evidence
from finemem_lib.figures import frames, notes
from tests.helpers.browser import opened, watched_page
from tests.helpers.explorer_samples import drill, static_states
from tests.helpers.figure_samples import make_figures, make_trajectory
from tests.helpers.patience import eventually, wait_until
from tests.helpers.run_samples import add_finding, make_bare_run, make_run, notebook_entry

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


def words(tag: bs4.Tag) -> str:
    """Return the text of an element in one line."""
    return " ".join(tag.get_text(" ").split())


def packed_figures(soup: bs4.BeautifulSoup) -> dict[str, Any]:
    """Return JSON and tables of the figures of a report by id."""
    block = soup.find(id="packed-figures").text
    found: dict[str, Any] = json.loads(gzip.decompress(base64.b64decode(block)))
    return found


# ---- without a browser ---------------------------------------------------------------------------


def test_summary_says_what_ran_with_what_and_how_it_ended(soup: bs4.BeautifulSoup) -> None:
    text = words(soup)
    for expected in (
        "Status failed : 1 of 2 notebooks ran",
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
    assert {"#nb-03_rewards", "#nb-04_next", "#findings", "#details"} <= targets
    assert all(soup.select(target) for target in targets)


def test_a_failed_or_missing_notebook_is_named_before_everything_else(
    soup: bs4.BeautifulSoup,
) -> None:
    header = words(soup.header)
    assert "notebook 04_next failed" in header
    assert "04_next : failed, left no executed copy." in header
    assert "03_rewards :" not in header


def test_findings_come_first_then_their_figures_then_notebooks_then_folded_details(
    tmp_path: Path,
) -> None:
    figures = make_figures()
    shown = figures["question_audit"]
    run = make_run(tmp_path / "run", figures=[shown, figures["memory_growth"]])
    add_finding(run, "03_rewards", f"It is 0.5 [0.4, 0.6] {POISON}", shown)
    add_finding(run, "04_next", "It is 7.", figures["advantage_heatmap"])
    page = report.build_report(run, tmp_path / "report.html").read_text("utf-8")
    found = bs4.BeautifulSoup(page, "html.parser")
    first, second = found.select("ol.findings > li")
    assert f"It is 0.5 [0.4, 0.6] {POISON.strip()}" in first.text and not first.select("script")
    links = [link["href"] for item in (first, second) for link in item.select("a")]
    assert links == ["#key-1", "#nb-03_rewards", "#key-2", "#nb-04_next"]
    order = [tag["id"] for tag in found.find_all(["h2", "figure"]) if tag.get("id")]
    assert order == [
        *("findings", "figures", "key-1", "key-2", "nb-03_rewards", "nb-03_rewards-2"),
        *("nb-04_next", "details"),
    ]
    assert packed_figures(found)["key-1"]["spec"]["data"] == json.loads(shown.to_json())["data"]
    section = found.select_one("section")
    assert section.select_one("ul.findings a")["href"] == "#key-1"
    assert section.select_one(".notebook a[href='#key-1']").text.startswith("Figure at the top")
    for heading in ("Metrics", "Parameters", "Versions"):
        fold = found.find("summary", string=re.compile(heading)).parent
        assert fold.name == "details" and not fold.has_attr("open") and fold.select("td")
    assert all(not fold.has_attr("open") for fold in found.select("details.notebook, details.code"))
    assert all(cell.find_parent("details", "code") for cell in found.select(".highlight"))


def test_at_most_seven_findings_lead_and_the_first_of_each_notebook_before_a_second(
    tmp_path: Path,
) -> None:
    names = [f"0{number}_n" for number in range(1, 7)]
    run = make_bare_run(tmp_path / "run", notebooks=[notebook_entry(name) for name in names])
    figure = make_figures()["question_audit"]
    for name in names:
        for number in (1, 2):
            add_finding(run, name, f"{name} finds {number}.", figure)
    page = report.build_report(run, tmp_path / "report.html").read_text("utf-8")
    found = bs4.BeautifulSoup(page, "html.parser")
    told = [re.search(r"0\d_n finds \d", item.text)[0] for item in found.select("ol.findings > li")]
    assert told == ["01_n finds 1", "01_n finds 2", *(f"{name} finds 1" for name in names[1:])]
    assert len(found.select("figure.plotly")) == 1, "the figure of all of them, once"
    assert len(found.select("section ul.findings > li")) == 12


def test_a_finding_whose_figure_is_gone_is_shown_without_a_link(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", figures=[])
    add_finding(run, "03_rewards", "It is 7.", make_figures()["question_audit"])
    for kept in (run / "figures").iterdir():
        kept.unlink()
    page = report.build_report(run, tmp_path / "report.html").read_text("utf-8")
    [item] = bs4.BeautifulSoup(page, "html.parser").select("ol.findings > li")
    assert "It is 7." in item.text
    assert [link["href"] for link in item.select("a")] == ["#nb-03_rewards"]


def test_seeds_that_differ_by_notebook_are_not_called_none(tmp_path: Path) -> None:
    folder = make_bare_run(tmp_path / "run", seed=None)
    page = report.build_report(folder, tmp_path / "report.html").read_text("utf-8")
    text = words(bs4.BeautifulSoup(page, "html.parser"))
    assert "seeds by notebook (see its parameters)" in text and "seed None" not in text


def test_page_has_language_title_and_headings_in_order(soup: bs4.BeautifulSoup) -> None:
    assert soup.html["lang"] == "en"
    assert "20260101-000000-abc: failed" in soup.title.text
    levels = [int(tag.name[1]) for tag in soup.find_all(re.compile(r"^h[1-6]$"))]
    assert levels.count(1) == 1 and levels[0] == 1
    assert all(after <= before + 1 for before, after in zip(levels, levels[1:], strict=False))
    ids = [tag["id"] for tag in soup.find_all(id=True)]
    assert len(ids) == len(set(ids))


def test_every_figure_has_alt_caption_and_table(soup: bs4.BeautifulSoup) -> None:
    figures, packed = soup.select("figure.plotly"), packed_figures(soup)
    assert [figure["id"] for figure in figures] == [
        f"nb-03_rewards-{number}" for number in range(1, NUM_FIGURES + 1)
    ]
    for figure, made in zip(figures, make_figures().values(), strict=True):
        meta = made.layout.meta
        drawing = figure.select_one("[role=img]")
        assert drawing["aria-label"].endswith(meta["alt"])
        assert figure.figcaption.text == meta["caption"]
        rows = frames.figure_table(made)
        tables = bs4.BeautifulSoup(packed[figure["id"]]["tables"], "html.parser")
        assert len(tables.select("tbody tr")) == min(len(rows), notes.MAX_TABLE_ROWS)
        assert soup.get_text().count(meta["caption"]) == 1


def test_nothing_is_loaded_from_elsewhere(soup: bs4.BeautifulSoup) -> None:
    assert not soup.select("link, iframe, script[src], img:not([src^='data:'])")
    policy = soup.select_one("meta[http-equiv=Content-Security-Policy]")["content"]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    assert len(re.findall("sha256-", policy)) == 2
    assert len(soup.select("script:not([type='application/gzip'])")) == 1
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
        table = page.locator("details.table").first
        table.locator("summary").focus()
        page.keyboard.press("Enter")
        assert table.evaluate("details => details.open")
        assert table.locator("td").first.is_visible()


@browser
def test_figures_in_folded_notebooks_are_drawn_when_they_are_unfolded(page_path: Path) -> None:
    with watched_page() as (page, watch):
        page.goto(page_path.as_uri())
        page.wait_for_function("() => window.Plotly")
        assert page.locator(".js-plotly-plot").count() == 0
        page.locator("details.notebook > summary").first.focus()
        page.keyboard.press("Enter")
        page.wait_for_selector("body[data-drawn=all]")
        assert page.locator(".js-plotly-plot .main-svg").count() >= NUM_FIGURES
        assert watch.errors == []


@browser
def test_the_first_figure_is_within_the_first_screen_and_a_half(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", figures=[])
    finding = "The advantage correlates at 0.49 [0.42, 0.55] with what the step did. " * 2
    for _ in range(7):
        add_finding(run, "03_rewards", finding, make_figures()["question_audit"])
    path = report.build_report(run, tmp_path / "report.html")
    with watched_page(1280, 800) as (page, _):
        page.goto(path.as_uri())
        page.wait_for_selector("body[data-drawn=all]")
        box = page.locator("#key-1 .main-svg").first.bounding_box()
        assert box["y"] + box["height"] <= 1200


@browser
def test_paper_has_everything_unfolded_and_drawn(page_path: Path) -> None:
    with watched_page() as (page, watch):
        page.goto(page_path.as_uri())
        page.wait_for_function("() => window.Plotly")
        page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
        assert page.locator("details:not([open], .table)").count() == 0
        assert page.locator("figure.plotly:has(.main-svg)").count() == NUM_FIGURES
        page.evaluate("window.dispatchEvent(new Event('afterprint'))")
        assert page.locator("details[open]").count() == 0
        assert watch.errors == []


@browser
def test_dark_pages_keep_figures_on_a_white_card(tmp_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    run = make_run(tmp_path / "run")
    add_finding(run, "03_rewards", "It is 7.", make_figures()["question_audit"])
    with opened(report.build_report(run, tmp_path / "report.html")) as (page, _, _):
        page.emulate_media(color_scheme="dark")
        page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
        ground = "element => getComputedStyle(element).backgroundColor"
        assert page.locator("body").evaluate(ground) == "rgb(22, 24, 28)"
        assert page.locator("figure.plotly").first.evaluate(ground) == "rgb(255, 255, 255)"
        page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text("utf-8"))
        found = page.evaluate(
            "axe.run({runOnly: ['color-contrast']}).then(result => result.violations)"
        )
        assert [node["html"] for one in found for node in one["nodes"]] == []
