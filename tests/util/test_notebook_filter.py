"""What git keeps of a notebook that was run in JupyterLab."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from finemem_lib.explorers.display import LIVE_ONLY
from finemem_lib.util.notebook_filter import PLOTLY, WIDGET_VIEW, clean
from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def written(notebook: dict[str, Any]) -> str:
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def looked_at(text: str) -> str:
    """Return a notebook with what JupyterLab adds when its cells are run and it is saved."""
    notebook = json.loads(text)
    view = {"output_type": "display_data", "metadata": {}, "data": {WIDGET_VIEW: {"model_id": "1"}}}
    note = {"output_type": "display_data", "metadata": LIVE_ONLY, "data": {"text/plain": "gone"}}
    notebook["metadata"] |= {
        "widgets": {"application/vnd.jupyter.widget-state+json": {"state": {}}},
        "language_info": {"name": "python", "version": "3.11.2", "pygments_lexer": "ipython3"},
        "kernelspec": notebook["metadata"]["kernelspec"] | {"display_name": "Python 3 (ipykernel)"},
    }
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            cell["metadata"]["execution"] = {"iopub.execute_input": "2026-01-01T00:00:00Z"}
            cell["outputs"] = [copy.deepcopy(note), copy.deepcopy(view), *cell["outputs"]]
    return written(notebook)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_that_was_only_looked_at_is_the_tracked_one_byte_for_byte(path: Path) -> None:
    text = path.read_text("utf-8")
    assert (clean(text) == text) == (WIDGET_VIEW not in text)  # a progress bar may be one
    assert looked_at(text) != text and clean(looked_at(text)) == clean(text)


def test_a_figure_that_is_as_it_was_gets_its_picture_back() -> None:
    tracked = next(path for path in NOTEBOOKS if path.stem.startswith("02")).read_text("utf-8")
    notebook = json.loads(tracked)
    shown = [
        output
        for cell in notebook["cells"]
        for output in cell.get("outputs", ())
        if PLOTLY in output.get("data", {})
    ]
    for output in shown:
        del output["data"]["image/png"], output["metadata"]["image/png"]
    assert len(shown) == 2 and clean(written(notebook), tracked) == tracked
    assert clean(written(notebook)) == clean(written(notebook), "no notebook") == written(notebook)
    shown[0]["data"][PLOTLY]["layout"]["title"]["text"] = "Another"  # so the picture is not its own
    cleaned = json.loads(clean(written(notebook), tracked))
    kept = [
        "image/png" in output["data"]
        for cell in cleaned["cells"]
        for output in cell.get("outputs", ())
        if PLOTLY in output.get("data", {})
    ]
    assert kept == [False, True]


def test_what_was_changed_stays() -> None:
    notebook = json.loads(NOTEBOOKS[0].read_text("utf-8"))
    cell = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    cell["source"] = ["x = 1.0e-7  # ü 🧠"]
    cell["outputs"] = [
        {
            "output_type": "execute_result",
            "execution_count": 99,
            "metadata": {"finemem": "mine"},
            "data": {"text/plain": "1e-07"},
        }
    ]
    cell["metadata"]["tags"] = ["mine"]
    text = written(notebook)
    assert clean(looked_at(text)) == text


@pytest.mark.parametrize(
    "text", ["", "<<<<<<< HEAD\n{}", "[]", '{"cells": 3, "metadata": {}}', "{}"]
)
def test_what_is_no_notebook_passes_unchanged(text: str) -> None:
    assert clean(text) == text


def test_git_adds_the_cleaned_notebook_and_leaves_the_file_alone(tmp_path: Path) -> None:
    tracked = NOTEBOOKS[0].read_text("utf-8")
    file = tmp_path / "page.ipynb"

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments],
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout

    git("init", "--quiet")
    (tmp_path / ".gitattributes").write_text((ROOT / ".gitattributes").read_text())
    command = f"{sys.executable} -m finemem_lib.util.notebook_filter %f"
    assert command.partition(" ")[2] in (ROOT / "Makefile").read_text()
    git("config", "filter.finemem-notebook.clean", command)
    file.write_text(tracked)
    git("add", ".")
    git("commit", "--quiet", "--message", "page")
    file.write_text(looked_at(tracked))
    assert git("diff") == "" and file.read_text() == looked_at(tracked)
    git("add", ".")
    assert git("status", "--porcelain") == "" and git("show", "HEAD:page.ipynb") == tracked
