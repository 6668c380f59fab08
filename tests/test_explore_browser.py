"""Explorers where they are used: a real JupyterLab, and the report opened from its file."""

from __future__ import annotations

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import nbformat.v4 as nb
import pytest
from browser import CHROMIUM, opened, photographed, watched_page
from figure_samples import make_trajectory
from run_samples import make_run

from finemem_lib import explore, report

TESTS = Path(__file__).resolve().parent
pytestmark = pytest.mark.browser

HOSTILE = ("<script>window.ran=1</script><img src=https://example.org/x onerror='window.ran=1'> "
           "$x^2$ %{x} \u202eעברית العربية 🧠🔥 ")
LONG = "w" * 10_000 + " "

CELLS = [
    f"""import dataclasses, sys
sys.path.insert(0, {str(TESTS)!r})
from figure_samples import make_trajectory
from finemem_lib import explore
hostile = make_trajectory(poison={HOSTILE!r})
group = [dataclasses.replace(make_trajectory(seed), instance_id="one", rollout=seed)
         for seed in range(3)]""",
    "explore.show(explore.evidence(hostile))",
    "explore.show(explore.memory_player(hostile))",
    "explore.show(explore.what_if(group))",
    """from finemem_lib import plots
def build(n):
    if n == 2:
        raise RuntimeError("<b>broken</b>")
    return {"memory": plots.memory_state(hostile, n)}
explore.show(explore.Explorer("Failing", (
    explore.Control("n", "n", [(str(n), n) for n in (1, 2, 3)]),), build))""",
    """import os
os.environ["FINEMEM_EXPLORERS"] = "static"
explore.show(explore.memory_player(group[0]))""",
]

FIGURES = """cell => [...document.querySelectorAll(".jp-CodeCell")][cell]
    ?.querySelectorAll(".js-plotly-plot") ?? []"""
STATE = f"""cell => JSON.stringify([...({FIGURES})(cell)].map(
    plot => [plot.data.map(trace => ({{...trace, uid: 0}})), plot.layout.shapes,
             plot.layout.title, plot.layout.yaxis]))"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A page with JupyterLab in which a notebook of explorers has been run."""
    if CHROMIUM is None:
        pytest.skip("no chromium on this machine (Debian: apt-get install chromium)")
    pytest.importorskip("jupyterlab", reason="JupyterLab is not installed")
    root = tmp_path_factory.mktemp("lab")
    for plugin, setting in (
        # else JupyterLab takes cells out of the page that are out of sight, and asks about news
        ("notebook-extension/tracker", '{"windowingMode": "none"}'),
        ("apputils-extension/notification", '{"fetchNews": "false"}'),
    ):
        path = root / "settings" / "@jupyterlab" / f"{plugin}.jupyterlab-settings"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(setting)
    notebook = nb.new_notebook(cells=[nb.new_code_cell(cell) for cell in CELLS])
    notebook.metadata.kernelspec = {
        "name": "python3", "display_name": "Python 3 (ipykernel)", "language": "python"}
    (root / "work").mkdir()
    nbformat.write(notebook, root / "work" / "explorers.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items()
                   if name not in ("FINEMEM_EXPLORERS", "PYTEST_CURRENT_TEST")}
    environment |= {
        "JUPYTERLAB_SETTINGS_DIR": str(root / "settings"), "PLOTLY_RENDERER": "plotly_mimetype",
        "JUPYTERLAB_WORKSPACES_DIR": str(root / "workspaces"), "IPYTHONDIR": str(root / "ipython"),
        "JUPYTER_RUNTIME_DIR": str(root / "runtime"), "JUPYTER_CONFIG_DIR": str(root / "config"),
    }
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyter", "lab", "--no-browser", "--allow-root",
         "--expose-app-in-browser", "--ServerApp.token=t", f"--ServerApp.port={port}",
         "--ServerApp.port_retries=0", f"--ServerApp.root_dir={root / 'work'}"],
        env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        _wait_for_port(port, server)
        with watched_page(1300, 1500) as (page, watch), photographed(page, "lab-start"):
            page.goto(f"http://127.0.0.1:{port}/lab/tree/explorers.ipynb?token=t&reset")
            page.wait_for_selector(".jp-Notebook .jp-CodeCell", timeout=240_000)
            idle = ".jp-Notebook-ExecutionIndicator[data-status=idle]"
            page.wait_for_selector(idle, timeout=240_000, state="attached")
            page.wait_for_selector("text=/\\| Idle/", timeout=240_000)  # the kernel has answered
            page.evaluate("window.jupyterapp.commands.execute('notebook:run-all-cells') && 0")
            page.wait_for_function(
                f"""() => [4, 2, 3, 1, 2].every((count, cell) => {{
                    const plots = [...({FIGURES})(cell + 1)];
                    return plots.length === count && plots.every(plot => plot.data?.length);
                }})""", timeout=240_000)
            yield page, watch
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:  # it waits for its kernels; none may stay behind
            os.killpg(server.pid, signal.SIGKILL)


def _wait_for_port(port: int, server: subprocess.Popen) -> None:
    for _ in range(1200):
        assert server.poll() is None, "JupyterLab ended before it answered"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("JupyterLab did not answer within 120 seconds")


def changed(page: Any, cell: int, before: str) -> str:
    """Wait until the figures of a cell hold other data, and return it."""
    page.wait_for_function(f"([cell, before]) => ({STATE})(cell) !== before",
                           arg=[cell, before], timeout=30_000)
    return page.evaluate(STATE, cell)


@pytest.mark.parametrize("cell", [1, 2, 3])
def test_every_control_moves_the_figures_by_keyboard(lab, cell: int) -> None:
    page, watch = lab
    area = page.locator(".jp-CodeCell").nth(cell)
    with photographed(page, f"keyboard-{cell}"):
        for handle in area.locator(".noUi-handle").all():
            value = "element => element.getAttribute('aria-valuetext')"
            before, was = page.evaluate(STATE, cell), handle.evaluate(value)
            keys = ["ArrowRight", "ArrowLeft"]
            handle.focus()
            handle.press(keys[0])
            if handle.evaluate(value) == was:  # it stood at its end
                keys.reverse()
                handle.press(keys[0])
            after = changed(page, cell, before)
            handle.press(keys[1])
            changed(page, cell, after)
        for number in range(area.locator("select").count()):
            before = page.evaluate(STATE, cell)
            menu = area.locator("select").nth(number)
            keys = "next", "previous"
            if menu.evaluate("menu => menu.selectedIndex === menu.options.length - 1"):
                keys = "previous", "next"
            for name in keys:
                button = area.locator(f"button[title$='{name}']").nth(number)
                button.focus()
                page.keyboard.press("Enter")
                before = changed(page, cell, before)
        assert area.locator("[role=alert]").count() == 0
    assert watch.errors == [] and watch.requests == []


def test_a_click_on_a_sankey_link_selects_in_every_view(lab) -> None:
    page, watch = lab
    area = page.locator(".jp-CodeCell").nth(1)
    with photographed(page, "sankey"):
        views = "cell => [...(" + FIGURES + ")(cell)].map(plot => plot.layout.title.text)"
        trail, flow, heat, timeline = range(4)
        assert "Who earned" in page.evaluate(views, 1)[flow]
        read = f"""() => {{
            const plots = [...({FIGURES})(1)];
            return {{title: plots[{trail}].layout.title.text,
                     links: plots[{flow}].data[0].link.color,
                     cells: (plots[{heat}].layout.shapes || []).length,
                     lanes: (plots[{timeline}].layout.shapes || []).length}};
        }}"""
        before = page.evaluate(read)
        link = area.locator("path.sankey-link").nth(2)
        link.scroll_into_view_if_needed()
        link.click(force=True)
        page.wait_for_function(
            f"""before => {{
                const after = ({read})();
                return after.title !== before.title && after.cells > before.cells
                    && after.lanes > before.lanes
                    && new Set(after.links).size > new Set(before.links).size;
            }}""", arg=before, timeout=30_000)
        after = page.evaluate(read)
        chosen = area.locator("select").first.evaluate(
            "element => element.selectedOptions[0].textContent")
        chosen = chosen.replace("\N{NO-BREAK SPACE}", " ").split(":")[0].replace("#", "")
        assert chosen in after["title"]
        area.locator(".sankey-node rect").last.click(force=True)
        page.wait_for_function(f"before => ({read})().title !== before", arg=after["title"],
                               timeout=30_000)
    assert watch.errors == [] and watch.requests == []


def test_an_error_in_a_callback_is_shown_and_goes_away(lab) -> None:
    page, _ = lab
    area = page.locator(".jp-CodeCell").nth(4)
    with photographed(page, "error"):
        menu = area.locator("select").first
        before = page.evaluate(STATE, 4)
        menu.select_option(index=1)
        alert = area.locator("[role=alert]")
        alert.wait_for(timeout=30_000)
        assert "RuntimeError: <b>broken</b>" in alert.inner_text()
        assert page.evaluate(STATE, 4) == before
        menu.select_option(index=2)
        changed(page, 4, before)
        assert alert.count() == 0


def test_text_from_data_is_harmless_in_the_lab(lab) -> None:
    page, watch = lab
    assert page.evaluate("window.ran") is None
    assert page.locator(".jp-CodeCell .js-plotly-plot svg script").count() == 0
    options = page.locator(".jp-CodeCell").nth(1).locator("option").all_text_contents()
    assert any("<script>" in text for text in options)
    assert watch.requests == []


def test_the_table_twin_is_a_button_away(lab) -> None:
    page, _ = lab
    area = page.locator(".jp-CodeCell").nth(2)
    button = area.locator("button", has_text="Show as table").first
    button.focus()
    page.keyboard.press("Enter")
    area.locator("table td").first.wait_for(timeout=30_000)


def test_the_static_form_works_in_the_lab_without_its_kernel(lab) -> None:
    page, watch = lab
    area = page.locator(".jp-CodeCell").nth(5)
    with photographed(page, "static"):
        before = page.evaluate(STATE, 5)
        rail = area.locator(".slider-rail-touch-rect").first
        rail.scroll_into_view_if_needed()
        box = rail.bounding_box()
        page.mouse.click(box["x"] + 0.3 * box["width"], box["y"] + box["height"] / 2)
        changed(page, 5, before)
    assert watch.errors == []


# ---- the report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def report_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    hostile = make_trajectory(poison=HOSTILE + LONG)
    group = [dataclasses.replace(make_trajectory(seed), instance_id="one", rollout=seed)
             for seed in range(3)]
    explorers = (explore.evidence(hostile), explore.memory_player(hostile),
                 explore.what_if(group))
    figures = [figure for one in explorers for figure in one.static_figures()]
    folder = tmp_path_factory.mktemp("explorers") / "run"
    return report.build_report(make_run(folder, figures=figures), folder / "report.html")


REPORT_STATE = """group => JSON.stringify([...document.querySelectorAll("figure.plotly")]
    .filter(figure => figure.dataset.explorer === group)
    .map(figure => [figure.querySelector(".plot").data, figure.querySelector(".plot").layout.shapes,
                    figure.querySelector("figcaption").textContent]))"""


def test_the_report_moves_by_keyboard_and_by_click_offline(report_path: Path) -> None:
    with opened(report_path) as (page, errors, requests):
        groups = page.locator(".explorer")
        assert groups.count() == 3
        for number in range(3):
            group = groups.nth(number)
            name = group.get_attribute("id")
            before = page.evaluate(REPORT_STATE, name)
            slider = group.locator("input")
            slider.focus()
            slider.press("Home")
            slider.press("ArrowRight")
            assert slider.get_attribute("aria-valuetext") == group.locator("output").inner_text()
            page.wait_for_function(f"([name, before]) => ({REPORT_STATE})(name) !== before",
                                   arg=[name, before])
            at = slider.input_value()
            group.locator("button").last.focus()
            page.keyboard.press("Enter")
            assert int(slider.input_value()) == int(at) + 1
        first = groups.first
        first.locator("input").press("Home")
        figures = page.locator(f"figure[data-explorer={first.get_attribute('id')}]")
        caption = figures.first.locator("figcaption").inner_text()
        link = figures.locator("path.sankey-link").first
        link.scroll_into_view_if_needed()
        link.click(force=True)
        page.wait_for_function("input => input.value !== '0'",
                               arg=first.locator("input").element_handle())
        assert figures.first.locator("figcaption").inner_text() != caption
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


def test_axe_finds_no_serious_violation_in_the_report(report_path: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    script = Path(axe.__file__).with_name("axe.min.js").read_text("utf-8")
    with opened(report_path) as (page, _, _):
        page.locator("details summary").first.click()
        page.evaluate(script)
        found = page.evaluate("axe.run().then(result => result.violations)")
        assert [(one["impact"], one["id"], one["nodes"][0]["html"][:200]) for one in found
                if one["impact"] in ("serious", "critical")] == []
