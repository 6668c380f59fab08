"""A run folder made by hand: executed notebooks with figures, tables and text, and a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import nbformat.v4 as nb
import pandas as pd
import plotly.graph_objects as go

from finemem_lib.cli.manifest import ProcessId
from finemem_lib.figures import outputs
from tests.helpers.figure_samples import make_figures

HEADINGS = "# 03 · Rewards\n\nWho earned it?\n\n## By hand\n\n| a | b |\n|---|---|\n| 1 | 2 |\n"
FORMULA = r"Inline $N_t < 1$ and $$N_t = \sum_j \frac{s_j}{|M_j|\,n}$$ Next: [04](04_next.ipynb)"


def make_bare_run(folder: Path, **changes: Any) -> Path:
    """Write the manifest of a run of one failed notebook into a new folder, with these changes."""
    folder.mkdir(parents=True, exist_ok=True)
    manifest = {
        "schema_version": 1,
        "run_id": folder.name,
        "status": "failed",
        "exit_code": None,
        "error": None,
        "started": "2026-01-01",
        "ended": None,
        "seconds": None,
        "command": ["finemem", "run"],
        "profile": "default",
        "parameters_given": {},
        "seed": 7,
        "reuse": None,
        "inputs": {},
        "outputs": {},
        "versions": {},
        "git": {},
        "platform": None,
        "cpus": None,
        "peak_memory_mb": None,
        "process": ProcessId.current().model_dump(),
        "notebooks": [notebook_entry("01_x")],
    }
    (folder / "manifest.json").write_text(json.dumps(manifest | changes), "utf-8")
    return folder


def notebook_entry(name: str, **changes: Any) -> dict[str, Any]:
    """Return a notebook's entry in a manifest, with these changes."""
    return {"name": name, "source_sha256": "0", "status": "not run", "parameters": {}} | changes


def cell_of_every_output(poison: str) -> nb.NotebookNode:
    """Return an executed code cell with an output of every kind."""
    frame = pd.DataFrame({"item": [f"{poison}Mia lives in Rome."], "score": [0.5]})
    return nb.new_code_cell(
        "frame",
        execution_count=90,
        outputs=[
            nb.new_output(
                "execute_result",
                {"text/html": frame._repr_html_(), "text/plain": "frame"},
                execution_count=90,
            ),
            nb.new_output("display_data", {"text/html": f"<p>raw</p>{poison}", "text/plain": "x"}),
            nb.new_output("display_data", {"text/markdown": f"**md** {poison}"}),
            nb.new_output(
                "display_data",
                {"application/javascript": "window.ran = 1", "text/plain": "javascript object"},
            ),
            nb.new_output("stream", name="stdout", text=f"{poison}printed\n"),
            nb.new_output("stream", name="stderr", text=f"{poison}warned\n"),
            nb.new_output("error", ename="ValueError", evalue=poison, traceback=[f"{poison}line"]),
        ],
    )


def make_run(folder: Path, poison: str = "", figures: Iterable[go.Figure] | None = None) -> Path:
    """Write a run of two notebooks (the second one failed) into `folder`; the first one shows
    `figures`, by default one of every builder."""
    figures = make_figures(poison).values() if figures is None else figures
    cells = [nb.new_markdown_cell(HEADINGS), nb.new_markdown_cell(FORMULA)]
    for number, figure in enumerate(figures, start=1):
        cells.append(
            nb.new_code_cell(
                "show(figure)",
                execution_count=number,
                outputs=[nb.new_output("display_data", bundle) for bundle in outputs(figure)],
            )
        )
    cells.append(cell_of_every_output(poison))
    folder.mkdir(parents=True)
    name = "03_rewards"
    (folder / f"{name}.ipynb").write_text(nbformat_text(cells), "utf-8")
    make_bare_run(
        folder,
        run_id=f"{poison}20260101-000000-abc",
        ended="2026-01-01",
        profile=f"{poison}default",
        error=f"{poison}notebook 04_next failed",
        git={"commit": "0" * 40, "dirty": False},
        versions={"python": f"{poison}3.11"},
        notebooks=[
            notebook_entry(
                name,
                status="ok",
                seconds=12.3456,
                reads=["trajectories"],
                writes=[f"{poison}rewards"],
                parameters={"beta": 0.5, "name": f"{poison}x"},
            ),
            notebook_entry(
                "04_next", status="failed", seconds=1.0, error=f"{poison}ValueError: no"
            ),
        ],
    )
    metrics = {name: {"r_global": 0.123456, f"{poison}metric": f"{poison}value"}}
    (folder / "metrics.json").write_text(json.dumps(metrics), "utf-8")
    return folder


def add_finding(folder: Path, notebook: str, text: str, figure: go.Figure) -> None:
    """Add a finding, and the figure it belongs to, to the record of a notebook of a run."""
    path = folder / "records" / f"{notebook}.json"
    path.parent.mkdir(exist_ok=True)
    record = json.loads(path.read_text()) if path.exists() else {"schema_version": 1}
    found = record.setdefault("findings", [])
    name = f"found_{len(found) + 1}"
    found.append({"text": text, "figure": name})
    path.write_text(json.dumps(record))
    kept = folder / "figures" / f"{notebook}-{name}.json"
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(figure.to_json())


def nbformat_text(cells: list) -> str:
    import nbformat

    return nbformat.writes(nb.new_notebook(cells=cells))
