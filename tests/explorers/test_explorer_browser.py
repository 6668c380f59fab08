"""Explorers where they are used: in a real JupyterLab, and in the report opened from its file."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat.v4 as nb
import pytest

from finemem_lib import explorers
from finemem_lib.cli import report
from tests.helpers.browser import click_at, opened
from tests.helpers.figure_samples import make_trajectory
from tests.helpers.lab import STATE, changed, move_every_control
from tests.helpers.paths import ROOT
from tests.helpers.run_samples import make_run

pytestmark = pytest.mark.browser

HOSTILE = (
    "<script>window.ran=1</script><img src=https://example.org/x onerror='window.ran=1'> "
    "$x^2$ %{x} \u202eעברית العربية 🧠🔥 "
)
LONG = "w" * 10_000 + " "

CELLS = {
    "set up": f"""import dataclasses, sys
sys.path.insert(0, {str(ROOT)!r})
from tests.helpers.figure_samples import make_trajectory
from tests.helpers.rollout_samples import rollouts
from finemem_lib import explorers, figures
from finemem_lib.managers.model import load_manager
hostile = make_trajectory(poison={HOSTILE!r})
group = [dataclasses.replace(make_trajectory(seed, poison={HOSTILE!r}), instance_id="one",
                             rollout=seed) for seed in range(3)]
groups = [rollouts({HOSTILE!r}, 3), [
    dataclasses.replace(one, instance_id="two", questions=tuple(
        dataclasses.replace(a, score=0.25 * one.rollout) for a in one.questions))
    for one in rollouts("", 3)]]
records = [{{"step": step, "reward": step / 4, "entropy": 1 / step}} for step in (1, 2, 3)]""",
    "evidence": "explorers.show(explorers.evidence_explorer(hostile))",
    "memory player": "explorers.show(explorers.memory_player(hostile))",
    "what if": "explorers.show(explorers.what_if_explorer(group))",
    "rollout compare": "explorers.show(explorers.compare_rollouts(groups))",
    "training": """explorers.show(explorers.training_explorer(
    records, {1: groups, 3: groups[::-1]}, load_manager("tiny")))""",
    "failing": """def build(n):
    if n == 2:
        raise RuntimeError("<b>broken</b>")
    return {"memory": figures.memory_state(hostile, n)}
explorers.show(explorers.Explorer("Failing", (
    explorers.Control("n", "n", [(str(n), n) for n in (1, 2, 3)]),), build))""",
    "completion": f"""figures.completion_view([figures.ColouredCompletion(
    "step 1", ({HOSTILE!r}, "b", "w" * 10_000), (1.0, -0.5, None))], "advantage A")""",
    "growing curves": """growing = explorers.LiveCurves(3)
for record in records[:2]:
    growing(record)""",
    "finished curves": """finished = explorers.LiveCurves(3)
for record in records:
    finished(record)
figure = finished.finish(records)""",
    "static": """import os
os.environ["FINEMEM_EXPLORERS"] = "static"
explorers.show(explorers.memory_player(group[0]))""",
}
VIEWS = {
    "evidence": 4,
    "memory player": 2,
    "what if": 3,
    "rollout compare": 2,
    "training": 5,
    "failing": 1,
    "growing curves": 1,
    "finished curves": 1,
    "static": 2,
}
"""How many figures a cell shows."""

EXPLORERS = list(VIEWS)[:5]


@pytest.fixture(scope="module")
def session(lab) -> Iterator[tuple[Any, Any]]:
    """A page with a notebook of explorers that has been run."""
    notebook = nb.new_notebook(cells=[nb.new_code_cell(cell) for cell in CELLS.values()])
    notebook.metadata.kernelspec = {
        "name": "python3",
        "display_name": "Python 3 (ipykernel)",
        "language": "python",
    }
    with lab.ran(notebook, "explorers.ipynb") as (page, watch):
        for name, count in VIEWS.items():
            page.wait_for_function(
                """([area, count]) => {
                    const plots = [...area.querySelectorAll(".js-plotly-plot")];
                    return plots.length === count && plots.every(plot => plot.data?.length);
                }""",
                arg=[area_of(page, name).element_handle(), count],
            )
        yield page, watch


def area_of(page: Any, name: str) -> Any:
    return page.locator(".jp-CodeCell").nth(list(CELLS).index(name))


@pytest.mark.parametrize("name", EXPLORERS)
def test_every_control_moves_the_figures_by_keyboard(session, name: str) -> None:
    page, watch = session
    assert move_every_control(area_of(page, name)) >= {"what if": 11, "training": 5}.get(name, 1)
    assert watch.errors == [] and watch.requests == []


def test_a_click_on_a_sankey_link_selects_in_every_view(session) -> None:
    page, watch = session
    area = area_of(page, "evidence")
    read = """area => {
        const [trail, flow, heat, timeline] = area.querySelectorAll(".js-plotly-plot");
        return {title: trail.layout.title.text, links: flow.data[0].link.color,
                cells: (heat.layout.shapes || []).length,
                lanes: (timeline.layout.shapes || []).length};
    }"""
    before = area.evaluate(read)
    link = area.locator("path.sankey-link").nth(2)
    link.scroll_into_view_if_needed()
    link.click(force=True)
    page.wait_for_function(
        f"""([area, before]) => {{
            const after = ({read})(area);
            return after.title !== before.title && after.cells > before.cells
                && after.lanes > before.lanes
                && new Set(after.links).size > new Set(before.links).size;
        }}""",
        arg=[area.element_handle(), before],
    )
    after = area.evaluate(read)
    chosen = area.locator("select").first.evaluate(
        "element => element.selectedOptions[0].textContent"
    )
    assert (
        chosen.replace("\N{NO-BREAK SPACE}", " ").split(":")[0].replace("#", "") in (after["title"])
    )
    area.locator(".sankey-node rect").last.click(force=True)
    page.wait_for_function(
        f"([area, before]) => ({read})(area).title !== before",
        arg=[area.element_handle(), after["title"]],
    )
    assert watch.errors == [] and watch.requests == []


def test_clicks_lead_from_the_group_to_the_step(session) -> None:
    """A cell of the group chooses the rollout, and a bar of the rollout the step."""
    page, watch = session
    area = area_of(page, "training")
    titles = """area => [...area.querySelectorAll(".js-plotly-plot")]
        .map(plot => plot.layout.title.text)"""
    figures = area.locator(".js-plotly-plot")
    third = figures.nth(2).evaluate("plot => plot.data[0].y[2]")
    for view, place, told in ((2, (4, third), "ollout 3"), (3, (5, 0.01), "step 5")):
        click_at(figures.nth(view), *place)
        page.wait_for_function(
            f"([area, told]) => ({titles})(area).at(-1).includes(told)",
            arg=[area.element_handle(), told],
        )
    assert area.locator("[role=alert]").count() == 0
    assert watch.errors == [] and watch.requests == []


def test_an_error_in_a_callback_is_shown_and_goes_away(session) -> None:
    page, _ = session
    area = area_of(page, "failing")
    menu = area.locator("select").first
    before = area.evaluate(STATE)
    menu.select_option(index=1)
    alert = area.locator("[role=alert]")
    alert.wait_for()
    assert "RuntimeError: <b>broken</b>" in alert.inner_text()
    assert area.evaluate(STATE) == before
    menu.select_option(index=2)
    changed(area, before)
    assert alert.count() == 0


@pytest.mark.parametrize("name", EXPLORERS)
def test_text_from_data_is_harmless_and_legible_in_the_lab(session, name: str) -> None:
    page, watch = session
    area = area_of(page, name)
    assert page.evaluate("window.ran") is None
    assert area.locator(".jp-OutputArea script, .jp-OutputArea img, svg a").count() == 0
    cut = area.evaluate("""area => [...area.querySelectorAll(".js-plotly-plot")].flatMap(plot => {
        const frame = plot.getBoundingClientRect();
        return [...plot.querySelectorAll("svg text")].filter(text => {
            const box = text.getBoundingClientRect();
            return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
        }).map(text => text.textContent);
    })""")
    assert cut == []
    options = area.locator("option").all_text_contents()
    assert max(map(len, options), default=0) <= 60
    if name in ("evidence", "rollout compare"):
        assert any("<script>" in text for text in options)
    assert watch.errors == [] and watch.requests == []


def test_the_table_twin_is_a_button_away(session) -> None:
    page, _ = session
    area = area_of(page, "memory player")
    area.locator("button", has_text="Show as table").first.focus()
    page.keyboard.press("Enter")
    area.locator("table td").first.wait_for()


def test_a_completion_has_its_colours_and_nothing_runs(session) -> None:
    page, watch = session
    area = area_of(page, "completion")
    read = """tokens => tokens.map(token => [token.textContent.slice(0, 8),
        getComputedStyle(token).backgroundColor, getComputedStyle(token).textDecorationLine])"""
    tokens = area.locator(".finemem-tokens pre").nth(1).locator("span").evaluate_all(read)
    assert tokens == [
        ["<script>", "rgb(84, 39, 136)", "none"],
        ["b", "rgb(253, 184, 99)", "underline"],
        ["wwwwwwww", "rgb(255, 255, 255)", "none"],
    ]
    legend = area.locator(".finemem-tokens pre").nth(0).locator("span").evaluate_all(read)
    assert {tokens[0][1], tokens[1][1]} < {colour for _, colour, _ in legend}
    assert area.locator(".finemem-tokens").evaluate("view => view.scrollWidth <= view.clientWidth")
    assert page.evaluate("window.ran") is None and watch.requests == []


def test_curves_grow_while_training_and_end_as_the_final_figure(session) -> None:
    page, _ = session
    for name, updates in (("growing curves", [1, 2]), ("finished curves", [1, 2, 3])):
        plot = area_of(page, name).locator(".js-plotly-plot")
        assert plot.evaluate("plot => [...plot.data[0].x]") == updates
        assert plot.evaluate("plot => [...plot.data[0].y]") == [step / 4 for step in updates]


def test_the_static_form_works_in_the_lab_without_its_kernel(session) -> None:
    page, watch = session
    area = area_of(page, "static")
    before = area.evaluate(STATE)
    rail = area.locator(".slider-rail-touch-rect").first
    rail.scroll_into_view_if_needed()
    box = rail.bounding_box()
    page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + box["height"] / 2)
    changed(area, before)
    assert watch.errors == []


def test_figures_keep_their_height_when_only_that_of_the_window_changes(session) -> None:
    """Incident: figures fell to a height of 0 until the window's width changed too."""
    page, _ = session
    heights = """() => [...document.querySelectorAll(".js-plotly-plot .main-svg:first-child")]
        .map(drawing => drawing.getBoundingClientRect().height)"""
    before = page.evaluate(heights)
    assert min(before) > 100
    for height in (700, 1500):
        page.set_viewport_size({"width": 1300, "height": height})
        page.evaluate("() => new Promise(done => setTimeout(done, 1500))")
        assert page.evaluate(heights) == before


# ---- the report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hostile = make_trajectory(poison=HOSTILE + LONG)
    group = [
        dataclasses.replace(make_trajectory(seed), instance_id="one", rollout=seed)
        for seed in range(3)
    ]
    shown = (
        explorers.evidence_explorer(hostile),
        explorers.memory_player(hostile),
        explorers.what_if_explorer(group),
    )
    static = [figure for one in shown for figure in one.static_figures()]
    folder = tmp_path_factory.mktemp("explorers") / "run"
    return report.build_report(make_run(folder, figures=static), folder / "report.html")


REPORT_STATE = """group => JSON.stringify([...document.querySelectorAll("figure.plotly")]
    .filter(figure => figure.dataset.explorer === group)
    .map(figure => [figure.querySelector(".plot").data, figure.querySelector(".plot").layout.shapes,
                    figure.querySelector("figcaption").textContent]))"""


def test_the_report_moves_by_keyboard_and_by_click_offline(report_path: Path) -> None:
    with opened(report_path) as (page, errors, requests):
        groups = page.locator(".explorer")
        assert groups.count() == 3
        for group in groups.all():
            name = group.get_attribute("id")
            for number, slider in enumerate(group.locator("input").all()):
                before = page.evaluate(REPORT_STATE, name)
                slider.focus()
                slider.press("Home")
                slider.press("ArrowRight")
                told = group.locator("output").nth(number).inner_text()
                assert slider.get_attribute("aria-valuetext") == told
                page.wait_for_function(
                    f"([name, before]) => ({REPORT_STATE})(name) !== before", arg=[name, before]
                )
        first = groups.first
        slider = first.locator("input").last
        slider.press("Home")
        first.locator("button").last.focus()
        page.keyboard.press("Enter")
        assert slider.input_value() == "1"
        slider.press("Home")
        figures = page.locator(f"figure[data-explorer={first.get_attribute('id')}]")
        caption = figures.first.locator("figcaption").inner_text()
        link = figures.locator("path.sankey-link").first
        link.scroll_into_view_if_needed()
        link.click(force=True)
        page.wait_for_function(
            "([figure, caption]) => figure.querySelector('figcaption').innerText !== caption",
            arg=[figures.first.element_handle(), caption],
        )
        outlined = page.evaluate("""() => [...document.querySelectorAll(".plot")].slice(2, 4)
            .map(plot => (plot.layout.shapes || []).filter(shape => shape.type === "rect").length)
        """)
        assert all(outlined)
        tables = figures.first.locator("[data-states]")
        assert tables.count() > 1
        assert tables.evaluate_all("all => all.filter(table => !table.hidden).length") == 1
        assert errors == [] and requests == []


def test_text_from_data_is_harmless_and_legible_in_the_report(report_path: Path) -> None:
    with opened(report_path, width=640) as (page, errors, requests):  # 200 % of 1280 pixels
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        assert page.evaluate("window.ran") is None
        assert page.locator("svg script, svg image[href^=http], #main img").count() == 0
        labels = page.locator("svg .node-label").all_text_contents()
        assert any("<script>" in text for text in labels)
        assert max(map(len, labels)) < 80
        assert errors == [] and requests == []
