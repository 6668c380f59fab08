"""The shipped notebooks where they are read: run in a real JupyterLab, and in the report of a run,
opened from its file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest

from finemem_lib import figures
from finemem_lib.data.worked_example import worked_example
from finemem_lib.rewards import RewardSettings
from finemem_lib.trajectory import Trajectory, read_jsonl
from tests.helpers.browser import TOKENS, Watch, click_at, opened, unfold
from tests.helpers.lab import Lab, move_every_control, on_screen
from tests.helpers.notebook_runs import SMALL, SMALL_RUN, finemem, settings
from tests.helpers.paths import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.notebook]

NOTEBOOKS = {"03": "03_rewards_and_credit", "05": "05_evidence_tracing", "08": "08_rules_disagree"}


@pytest.fixture(scope="module")
def real_run(lab: Lab) -> Path:
    """The folder of a run of the notebooks that have explorers, and those they read from."""
    small = [value for value in SMALL if not value.startswith(("07.", "resamples"))]
    finemem(lab.runs, "--run-id", SMALL_RUN, "--notebooks", "01-05,08", *settings(small))
    return lab.runs / SMALL_RUN


# ---- JupyterLab ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=NOTEBOOKS)
def read(request, lab: Lab, real_run: Path) -> Iterator[tuple[str, Any, Watch, Path]]:
    """A notebook as shipped, run in JupyterLab: its number, its page, and the folder it wrote."""
    name = NOTEBOOKS[request.param]
    notebook = nbformat.read(ROOT / "notebooks" / f"{name}.ipynb", as_version=4)
    with lab.ran(notebook, f"{name}.ipynb") as (page, watch):
        page.wait_for_function("""() => {
            const plots = [...document.querySelectorAll(".jp-OutputArea .js-plotly-plot")];
            const waiting = document.querySelectorAll(".jp-OutputArea [role=img]:empty");
            return plots.length && !waiting.length && plots.every(plot => plot.data?.length);
        }""")
        yield request.param, page, watch, lab.runs / "notebook"


def drawn(page: Any) -> list[tuple[str, list[dict[str, Any]]]]:
    """Return the titles and the traces of the figures that are drawn."""
    return page.evaluate("""() => [...document.querySelectorAll(".js-plotly-plot")]
        .map(plot => [plot.layout.title.text, plot.data])""")


def quantities(traces: list[dict[str, Any]]) -> list[Any]:
    """Return what the traces of a figure show, as JSON."""
    return json.loads(
        json.dumps(
            [
                [trace.get(key) for key in ("type", "x", "y", "z")]
                + [trace.get("link", {}).get(key) for key in ("source", "target", "value")]
                for trace in traces
            ]
        )
    )


def test_its_figures_show_what_the_run_holds(read, real_run: Path) -> None:
    number, page, watch, folder = read
    found = {title: quantities(traces) for title, traces in reversed(drawn(page))}
    kept = [
        json.loads(path.read_text("utf-8"))
        for path in sorted((folder / "figures").glob(f"{NOTEBOOKS[number]}-*.json"))
    ]
    assert len(kept) == {"03": 4, "05": 4, "08": 8}[number]
    if number == "05":  # the explorer draws the same quantities, and more beside them
        text = (real_run / "trajectories.jsonl").read_text("utf-8")
        [first, *_] = read_jsonl(Trajectory, text)
        kept = [figures.evidence_heatmap(first, RewardSettings(), "").to_plotly_json()]
        assert found["Evidence flow from steps over items to questions"] == quantities(
            figures.evidence_sankey(worked_example()).to_plotly_json()["data"]
        )
    for figure in kept:
        assert found[figure["layout"]["title"]["text"]] == quantities(figure["data"])
    assert page.locator(".jp-OutputArea-output[data-mime-type*=error]").count() == 0
    assert watch.errors == [] and watch.requests == []


def test_every_control_is_moved_by_keyboard(read) -> None:
    number, page, watch, _ = read
    explorers = page.locator(".jp-CodeCell:has(.finemem-explorer)")
    assert explorers.count() == {"03": 1, "05": 1, "08": 0}[number]
    for area in explorers.all():
        for folded in area.locator(".finemem-controls summary").all():
            folded.press("Enter")
        move_every_control(area)
    for answer in page.locator(".jp-RenderedHTMLCommon details > summary:visible").all()[:2]:
        answer.focus()
        page.keyboard.press("Enter")
        assert answer.evaluate("summary => summary.parentElement.open")
    assert watch.errors == [] and watch.requests == []


def test_its_explorer_fits_the_screen(read) -> None:
    _, page, watch, _ = read
    before = page.viewport_size
    for width, height in ((1280, 800), (853, 533)):  # and at 150 %, without the file browser
        page.set_viewport_size({"width": width, "height": height})
        page.evaluate(f"jupyterapp.shell.{'expand' if width > 1000 else 'collapse'}Left()")
        for area in page.locator(".jp-CodeCell:has(.finemem-explorer)").all():
            found = on_screen(area)
            assert found["outside"] == [] and found["beside"] and found["width"] > 380
    page.evaluate("jupyterapp.shell.expandLeft()")
    page.set_viewport_size(before)
    assert watch.errors == []


# ---- the report ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reported(real_run: Path) -> Iterator[tuple[Any, list[str], list[str]]]:
    """The report of the run, built again by the command and opened from its file."""
    (real_run / "report.html").unlink()
    subprocess.run(
        [sys.executable, "-m", "finemem_lib", "report", SMALL_RUN],
        cwd=ROOT,
        check=True,
        env={**os.environ, "FINEMEM_RUNS_DIR": str(real_run.parent)},
        stdout=subprocess.DEVNULL,
    )
    with opened(real_run / "report.html") as page:
        yield page


SHOWN = """group => JSON.stringify([...document.querySelectorAll("figure.plotly")]
    .filter(figure => figure.dataset.explorer === group)
    .map(figure => [figure.querySelector(".plot").data, figure.querySelector(".plot").layout,
                    figure.querySelector("figcaption").textContent]))"""


def test_the_report_draws_what_the_run_kept(reported, real_run: Path) -> None:
    page, errors, requests = reported
    shown = [(title, quantities(traces)) for title, traces in drawn(page)]
    names = (
        "02_memory_and_retrieval-memory_growth",
        "03_rewards_and_credit-advantages",
        "08_rules_disagree-credit_by_rule",
    )
    for name in names:
        figure = json.loads((real_run / "figures" / f"{name}.json").read_text("utf-8"))
        assert (figure["layout"]["title"]["text"], quantities(figure["data"])) in shown
    assert len({colour for _, colour in page.evaluate(f"({TOKENS})(document)")}) > 4
    assert errors == [] and requests == []


def test_every_explorer_of_the_report_moves_by_keyboard(reported) -> None:
    page, errors, requests = reported
    groups = page.locator(".explorer")
    names = [group.get_attribute("aria-label") for group in groups.all()]
    assert len(names) == 6 and "Training, from the run to the token" in names
    for group in groups.all():
        name = group.get_attribute("id")
        for slider in group.locator("input").all():
            if slider.get_attribute("max") == "0":
                continue
            before, was = page.evaluate(SHOWN, name), slider.get_attribute("aria-valuetext")
            slider.focus()
            slider.press(
                "ArrowLeft" if slider.input_value() == slider.get_attribute("max") else "ArrowRight"
            )
            assert slider.get_attribute("aria-valuetext") != was
            page.wait_for_function(
                f"([name, before]) => ({SHOWN})(name) !== before",
                arg=[name, before],
            )
    assert errors == [] and requests == []


def test_a_click_on_a_group_chooses_its_instance(reported) -> None:
    page, errors, requests = reported
    group = page.locator(".explorer[aria-label^=Training]").get_attribute("id")
    _, groups, rollouts, *_ = page.locator(f"figure[data-explorer={group}] .plot").all()
    names = groups.evaluate("plot => plot.layout.yaxis.ticktext")
    assert len(names) == 2
    for row, name in enumerate(names, start=1):
        click_at(groups, 1, row)
        page.wait_for_function(
            "([plot, start]) => plot.layout.title.text.includes(` of ${start}`)",
            arg=[rollouts.element_handle(), name.rstrip("…")],
        )
    assert errors == [] and requests == []


@pytest.mark.long
def test_axe_finds_no_serious_violation_before_and_after_a_change(reported) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    page, _, _ = reported
    page.reload()
    unfold(page)
    page.evaluate(Path(axe.__file__).with_name("axe.min.js").read_text("utf-8"))
    parts = {
        "as opened": "document",
        "moved, with tables": "{include: [['.explorer'], ['figcaption'], ['details[open]']]}",
    }
    for state, part in parts.items():
        found = page.evaluate(f"axe.run({part}).then(result => result.violations)")
        assert [
            (one["impact"], one["id"], one["nodes"][0]["html"][:200])
            for one in found
            if one["impact"] in ("serious", "critical")
        ] == [], state
        for group in page.locator(".explorer").all():
            group.locator("button").first.click()
            figure = page.locator(f"figure[data-explorer={group.get_attribute('id')}]").first
            figure.locator("details").evaluate("details => details.open = true")
