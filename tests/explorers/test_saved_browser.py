"""A page that was run in JupyterLab, saved, and opened again without its kernel."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest

from finemem_lib.figures.display import page_number
from finemem_lib.figures.style import PLOTLY_MIME
from finemem_lib.util.notebook_filter import WIDGET_VIEW
from tests.helpers.lab import settled
from tests.helpers.paths import ROOT

pytestmark = [pytest.mark.browser, pytest.mark.long]

NAME = "10_state_mismatch.ipynb"


def save(page: Any, path: Path) -> str:
    """Save the page's notebook, and return the text of its file."""
    page.evaluate("jupyterapp.commands.execute('docmanager:save')")
    return path.read_text("utf-8")


def git(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
        capture_output=True,
        text=True,
    ).stdout


def test_a_saved_explorer_is_clean_in_git_and_a_figure_without_its_kernel(lab: Any) -> None:
    """Incident: autosave put views of widgets in the place of thousands of lines of figures, and
    who opened the page read "Error displaying widget: model not found"."""
    notebook = nbformat.read(ROOT / "notebooks" / NAME, as_version=4)
    shown = next(n for n, cell in enumerate(notebook.cells) if "explorers.show" in cell.source)
    del notebook.cells[shown + 1 :]  # the rest takes minutes
    path = lab.folder / NAME
    text = nbformat.writes(notebook)
    notebook = nbformat.reads(json.dumps(json.loads(text, parse_float=page_number)), as_version=4)
    nbformat.write(notebook, path)  # as nbformat and JupyterLab order keys and write numbers
    git(lab.folder, "init", "--quiet")
    (lab.folder / ".gitattributes").write_text((ROOT / ".gitattributes").read_text())
    command = f"{sys.executable} -m finemem_lib.util.notebook_filter %f"
    git(lab.folder, "config", "filter.finemem-notebook.clean", command)
    git(lab.folder, "add", NAME, ".gitattributes")
    git(lab.folder, "commit", "--quiet", "--message", "as shipped")
    with lab.ran(notebook, NAME) as (page, watch):
        area = page.locator(".jp-CodeCell").last
        before = settled(area)
        assert area.locator(".js-plotly-plot:visible").count() == 1
        area.locator("input").focus()
        area.locator("input").press("ArrowRight")
        assert settled(area) != before
        text = save(page, path)
        assert WIDGET_VIEW in text
        assert git(lab.folder, "diff", NAME) == ""
        page.locator(".jp-CodeCell .cm-content").last.click()
        page.keyboard.press("Control+End")
        page.keyboard.type("  # mine")
        save(page, path)
        changed = [line for line in git(lab.folder, "diff", "-U0", NAME).splitlines()[4:]]
        assert [line[0] for line in changed] == ["@", "-", "+"] and "  # mine" in changed[-1]
        page.evaluate("jupyterapp.serviceManager.sessions.shutdownAll()")
        assert watch.errors == [] and watch.requests == []
    saved = nbformat.read(path, as_version=4)
    bundles = [output.get("data", {}) for output in saved.cells[-1].outputs]
    [kept] = [bundle[PLOTLY_MIME] for bundle in bundles if PLOTLY_MIME in bundle]
    with lab.saved(saved, NAME) as (page, watch):
        area = page.locator(".jp-CodeCell").last
        gone = area.get_by_text("Error displaying widget")
        gone.wait_for(state="attached")
        assert not gone.is_visible()
        assert area.get_by_text("run this cell").is_visible()
        figure = area.locator(".js-plotly-plot:visible")
        figure.wait_for()
        assert figure.evaluate("plot => plot.data.map(trace => trace.y)") == [
            trace.get("y") for trace in json.loads(json.dumps(kept))["data"]
        ]
        assert area.get_by_text(kept["layout"]["meta"]["caption"]).is_visible()
        assert watch.errors == [] and watch.requests == []
