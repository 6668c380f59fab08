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
from tests.helpers.browser import TOKENS, click_at, opened
from tests.helpers.figure_samples import make_trajectory
from tests.helpers.lab import STATE, changed, move_every_control, on_screen, settled
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
    "playing": """explorers.show(explorers.Explorer("Playing", (
    explorers.Control("n", "step n", [(str(n), n) for n in range(1, 7)], kind="slider", play=True),
    explorers.Control("m", "seldom m", [("one", 1), ("two", 2)], rare=True)),
    lambda n, m: {"memory": figures.memory_state(hostile, n),
                  "growth": figures.memory_growth(hostile, n)}))""",
    "completion": f"""figures.show(figures.completion_view([figures.ColouredCompletion(
    "step 1", ({HOSTILE!r}, "b", "w" * 10_000), (1.0, -0.5, None))], "advantage A"))""",
    "growing curves": """growing = explorers.LiveCurves(3)
for record in records[:2]:
    growing(record)""",
    "finished curves": """finished = explorers.LiveCurves(3)
for record in records:
    finished(record)
figure = finished.finish(records)""",
    "static": """import os
os.environ["FINEMEM_EXPLORERS"] = "static"
explorers.show(explorers.memory_player(group[0]))
del os.environ["FINEMEM_EXPLORERS"]""",
}
FIGURES = {
    "evidence": 1,
    "memory player": 1,
    "what if": 1,
    "rollout compare": 1,
    "training": 1,
    "failing": 1,
    "playing": 1,
    "completion": 1,
    "growing curves": 1,
    "finished curves": 1,
    "static": 2,
}
"""How many figures a cell shows: a live explorer shows one, and hides those of its static form."""

EXPLORERS = list(FIGURES)[:5]


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
        for name, count in FIGURES.items():
            page.wait_for_function(
                """([area, count]) => {
                    const plots = [...area.querySelectorAll(".js-plotly-plot")]
                        .filter(plot => plot.checkVisibility());
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


def open_view(area: Any, name: str) -> Any:
    """Open a view of a live explorer, and return its figure."""
    area.locator("[role=tab]", has_text=name).click()
    settled(area)
    assert area.locator("[role=tab][aria-selected=true]").inner_text() == name
    return area.locator(".finemem-explorer .js-plotly-plot")


SCROLLED = "() => document.querySelector('.jp-WindowedPanel-outer').scrollTop"
"""How far down the page of a notebook is."""


def test_a_click_on_a_sankey_link_selects_in_every_view_and_leaves_the_page(session) -> None:
    page, watch = session
    area = area_of(page, "evidence")
    area.locator("select").select_option(index=0)
    settled(area)
    read = {
        "Trail": "plot => plot.layout.title.text",
        "Heatmap": "plot => (plot.layout.shapes || []).length",
        "Timeline": "plot => (plot.layout.shapes || []).length",
        "Flow": "plot => new Set(plot.data[0].link.color).size",
    }
    before = {view: open_view(area, view).evaluate(how) for view, how in read.items()}
    flow = area.locator(".finemem-explorer .js-plotly-plot")
    nodes = flow.locator(".sankey-node")
    step = nodes.filter(has_text="step").first  # the heatmap outlines steps and questions
    link, *rects = flow.locator("path.sankey-link").nth(2), nodes.last, step
    for mark in (link, *(node.locator("rect") for node in rects)):
        mark.scroll_into_view_if_needed()
        at, was = page.evaluate(SCROLLED), area.evaluate(STATE)
        mark.click(force=True)
        changed(area, was)
        settled(area)
        assert page.evaluate(SCROLLED) == at
        assert area.locator("[role=tab][aria-selected=true]").inner_text() == "Flow"
    after = {view: open_view(area, view).evaluate(how) for view, how in read.items()}
    moved = {view: (before[view], after[view]) for view in ("Heatmap", "Timeline", "Flow")}
    assert all(was < now for was, now in moved.values()), moved
    chosen = area.locator("select").evaluate("element => element.selectedOptions[0].textContent")
    assert (
        chosen.replace("\N{NO-BREAK SPACE}", " ").split(":")[0].replace("#", "") in after["Trail"]
    )
    assert watch.errors == [] and watch.requests == []


def test_clicks_lead_from_the_group_to_the_step(session) -> None:
    """A cell of the group chooses the rollout, and a bar of the rollout the step."""
    page, watch = session
    area = area_of(page, "training")
    third = open_view(area, "Group").evaluate("plot => plot.data[0].y[2]")
    for view, place, label, value in (
        ("Group", (4, third), "rollout", "3"),
        ("Rollout", (5, 0.01), "step t", "5"),
    ):
        figure = open_view(area, view)
        figure.scroll_into_view_if_needed()
        at = page.evaluate(SCROLLED)
        click_at(figure, *place)
        page.wait_for_function(
            """([area, label, value]) => {
                const control = area.querySelector(`[aria-label="${label}"]`);
                return value === (control.selectedOptions?.[0].textContent
                    ?? control.ariaValueText);
            }""",
            arg=[area.element_handle(), label, value],
        )
        settled(area)
        assert page.evaluate(SCROLLED) == at
    figure = open_view(area, "Step")
    assert "ollout 3, step 5" in figure.evaluate("plot => plot.layout.title.text")
    assert area.locator("[role=alert]").count() == 0
    assert watch.errors == [] and watch.requests == []


SIZES = {"whole": (1280, 800), "at 150 %": (853, 533)}
"""A screen of 1280 x 800; what is left of it at 150 %."""


@pytest.fixture(params=["whole", pytest.param("at 150 %", marks=pytest.mark.long)])
def sized(request, session) -> Iterator[Any]:
    """The page in a size that a projector has, at 150 % without the file browser."""
    page, _ = session
    before = page.viewport_size
    width, height = SIZES[request.param]
    page.set_viewport_size({"width": width, "height": height})
    if width < 1000:
        page.evaluate("jupyterapp.shell.collapseLeft()")
    yield page
    page.evaluate("jupyterapp.shell.expandLeft()")
    page.set_viewport_size(before)


@pytest.mark.parametrize("name", EXPLORERS)
def test_controls_and_figure_share_a_screen(sized, name: str) -> None:
    """Incident: four figures below one another were thousands of pixels high, far from what moves
    them."""
    area = area_of(sized, name)
    for tab in area.locator("[role=tab]").all():
        tab.click()
        settled(area)
        found = on_screen(area)
        assert found["outside"] == [] and found["beside"] and found["width"] > 380
        assert found["hidden"] == [] or sized.viewport_size["height"] < 800


def test_every_control_is_reached_by_tab_and_has_a_name(session) -> None:
    page, watch = session
    area = area_of(page, "playing")
    more = area.locator(".finemem-explorer summary")
    assert more.inner_text() == "More controls"
    assert not area.locator("[aria-label='seldom m']").is_visible()
    area.locator("[aria-label='step n']").focus()
    names = []
    for _ in range(6):
        names.append(
            page.evaluate("""() => document.activeElement.ariaLabel
            || document.activeElement.textContent""")
        )
        if names[-1] == "More controls":
            page.keyboard.press("Enter")
        page.keyboard.press("Tab")
    assert names == [
        "step n",
        "Play step n",
        "More controls",
        "seldom m",
        "Memory",
        "Show as table",
    ]
    assert watch.errors == []


@pytest.mark.parametrize("name", EXPLORERS)
def test_tab_reaches_all_of_an_explorer_in_its_order(session, name: str) -> None:
    """Controls with their labels, those folded away after they are unfolded, then the open view's
    button and that of the table; a disabled control is passed over."""
    page, watch = session
    area = area_of(page, name)
    root = area.locator(".finemem-explorer")
    for more in root.locator(".finemem-controls details:not([open]) > summary").all():
        more.focus()
        more.press("Enter")
    focusable = root.locator(
        ":is(input, select, button, summary):not(:disabled):not([tabindex='-1']):visible"
    )
    named = "one => one.ariaLabel || one.textContent"
    expected = focusable.evaluate_all(f"all => all.map({named})")
    labels = root.locator(".finemem-control label > span").evaluate_all(
        "all => all.map(one => one.firstChild.textContent)"
    )
    assert len({*expected}) == len(expected) and "" not in expected
    assert root.locator(":is(input, select)").evaluate_all(f"all => all.map({named})") == labels
    focusable.first.focus()
    reached = []
    for _ in expected:
        reached.append(page.evaluate(f"({named})(document.activeElement)"))
        page.keyboard.press("Tab")
    assert reached == expected and watch.errors == []


def test_keys_on_a_control_are_no_commands_of_the_notebook(session) -> None:
    """Incident: JupyterLab kept the arrow keys of menus; a letter would delete cells."""
    page, watch = session
    area = area_of(page, "what if")
    cells = """() => [...document.querySelectorAll(".jp-Notebook .jp-Cell")]
        .map(cell => cell.classList.contains("jp-mod-active"))"""
    menu = area.locator("select").first
    menu.click()
    page.keyboard.press("Escape")
    before = page.evaluate(cells)
    assert True in before
    for control in (menu, area.locator("input").first, area.locator("[role=tab]").first):
        control.focus()
        for key in ("ArrowDown", "ArrowUp", "j", "a", "b", "d", "d", "Home", "Escape"):
            page.keyboard.press(key)
        assert control.evaluate("control => control === document.activeElement")
        settled(area)
    assert page.evaluate(cells) == before and watch.errors == []


def test_a_slider_plays_by_itself_until_its_end(session) -> None:
    page, watch = session
    area = area_of(page, "playing")
    slider, button = area.locator("[aria-label='step n']"), area.locator(".finemem-play")
    slider.focus()
    slider.press("Home")
    settled(area)
    slider.press(" ")
    assert button.get_attribute("aria-label") == "Pause step n"
    area.locator("input[aria-valuetext='3']").wait_for()
    slider.press(" ")
    assert button.get_attribute("aria-label") == "Play step n"
    stopped = int(slider.input_value())
    button.focus()
    button.press("ArrowRight")
    settled(area)
    assert int(slider.input_value()) == stopped + 1
    button.press("Enter")
    area.locator("input[aria-valuetext='6']").wait_for()
    area.locator("[aria-label='Play step n']").wait_for()
    settled(area)
    figure = open_view(area, "Memory")
    assert "step 6 of 6" in figure.evaluate("plot => plot.layout.title.text")
    assert watch.errors == []


def test_running_the_cell_again_keeps_state_view_and_table(session) -> None:
    page, watch = session
    area = area_of(page, "memory player")
    open_view(area, "Growth")
    slider = area.locator("input")
    slider.focus()
    slider.press("Home")
    area.locator("button", has_text="Show as table").click()
    settled(area)
    area.locator("table td").first.wait_for()
    old = area.locator(".finemem-explorer").element_handle()
    area.locator(".jp-InputArea").click()
    page.evaluate("jupyterapp.commands.execute('notebook:run-cell')")
    page.wait_for_function("old => !old.isConnected", arg=old)
    settled(area)
    assert area.locator("input").get_attribute("aria-valuetext") == "0"
    assert area.locator("[role=tab][aria-selected=true]").inner_text() == "Growth"
    button = area.locator("button", has_text="Show as table")
    assert button.get_attribute("aria-pressed") == "true"
    assert area.locator("table td").first.is_visible()
    button.focus()
    page.keyboard.press("Enter")
    settled(area)
    assert area.locator(".finemem-explorer .js-plotly-plot").is_visible()
    assert area.locator(".finemem-explorer td").count() == 0 and watch.errors == []


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
    own = ":not(.plot-img:not([src]))"  # JupyterLab puts one beside a plain figure
    assert area.locator(f".jp-OutputArea script, .jp-OutputArea img{own}, svg a").count() == 0
    for tab in area.locator("[role=tab]").all():
        cut = open_view(area, tab.inner_text()).evaluate("""plot => {
            const frame = plot.getBoundingClientRect();
            return [...plot.querySelectorAll("svg text")].filter(text => {
                const box = text.getBoundingClientRect();
                return box.width && (box.left < frame.left - 1 || box.right > frame.right + 1);
            }).map(text => text.textContent);
        }""")
        assert cut == []
    options = area.locator("option").all_text_contents()
    assert max(map(len, options), default=0) <= 60
    if name in ("evidence", "rollout compare"):
        assert any("<script>" in text for text in options)
    assert watch.errors == [] and watch.requests == []


def test_a_completion_has_its_colours_and_nothing_runs(session) -> None:
    page, watch = session
    area = area_of(page, "completion")
    assert [text[:8] for text, _ in area.evaluate(TOKENS)] == ["<script>", "b", "wwwwwwww"]
    (_, purple), (_, orange), (_, white) = area.evaluate(TOKENS)
    assert (purple, white) == ("rgb(45, 0, 75)", "rgb(255, 255, 255)")
    assert orange not in (purple, white)
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
    page.mouse.click(box["x"] + 0.8 * box["width"], box["y"] + box["height"] / 2)
    changed(area, before)
    assert watch.errors == []


def test_figures_keep_a_height_when_only_that_of_the_window_changes(session) -> None:
    """Incident: figures fell to a height of 0 until the window's width changed too. A live one
    follows the window, the others stay."""
    page, _ = session
    heights = """() => [...document.querySelectorAll(".js-plotly-plot .main-svg:first-child")]
        .filter(drawing => drawing.checkVisibility())
        .map(drawing => [drawing.closest(".finemem-explorer") !== null,
                         drawing.getBoundingClientRect().height])"""
    before = page.evaluate(heights)
    assert min(height for _, height in before) > 100
    for size in (700, 1500):
        page.set_viewport_size({"width": 1300, "height": size})
        page.evaluate("() => new Promise(done => setTimeout(done, 1500))")
        after = page.evaluate(heights)
        assert [one for one in after if not one[0]] == [one for one in before if not one[0]]
        assert all(100 < height <= was for (_, height), (_, was) in zip(after, before, strict=True))


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


MISPLACED = """() => {
    const wrong = [];
    let bars = 0;
    for (const plot of document.querySelectorAll(".js-plotly-plot")) {
        const drawing = plot.querySelector(".main-svg").getBoundingClientRect();
        for (const trace of plot.querySelectorAll(".trace.bars")) {
            const {xaxis, yaxis, orientation, name} = trace.__data__[0].trace;
            const panel = plot._fullLayout._plots[(xaxis || "x") + (yaxis || "y")];
            const flat = orientation === "h", axis = flat ? panel.xaxis : panel.yaxis;
            const zero = (flat ? drawing.left : drawing.top) + axis._offset;
            for (const bar of trace.querySelectorAll(".point > path")) {
                const box = bar.getBoundingClientRect(), point = bar.parentNode.__data__;
                if (!point || !box.width || !box.height) continue;
                bars += 1;
                const at = [point.s0, point.s1].map(value => zero + axis.c2p(value, true));
                const drawn = flat ? [box.left, box.right] : [box.top, box.bottom];
                at.sort((one, other) => one - other);
                if (at.some((end, place) => Math.abs(end - drawn[place]) > 2))
                    wrong.push([plot.dataset.title, name, at, drawn]);
            }
        }
        for (const tick of plot.querySelectorAll(".ytick text"))
            if (tick.getBoundingClientRect().left < drawing.left - 1)
                wrong.push([plot.dataset.title, "cut", tick.textContent]);
    }
    return {bars, wrong};
}"""
"""Bars that do not end where the axis has their values, and names that are cut."""


@pytest.mark.long
def test_bars_of_the_report_stand_at_their_values_in_every_state(report_path: Path) -> None:
    """Incident: margins followed the names of each state, and bars stood 230 pixels aside."""
    with opened(report_path) as (page, _, _):
        page.wait_for_function("document.body.dataset.drawn === 'all'")
        moved = 0
        for group in page.locator(".explorer").all():
            for slider in group.locator("input").all():
                slider.focus()
                slider.press("Home")
                for _ in range(int(slider.get_attribute("max"))):
                    slider.press("ArrowRight")
                    page.evaluate("() => new Promise(done => setTimeout(done, 60))")
                    found = page.evaluate(MISPLACED)
                    assert found["wrong"] == [] and found["bars"] > 10
                    moved += 1
        assert moved > 10


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
        outlined = page.evaluate("""() => [...document.querySelectorAll(".plot")].slice(3, 5)
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
