"""Small notebooks and profiles, written by tests of the command line."""

from __future__ import annotations

import ast
import re
from typing import Annotated, Any

import nbformat
from pydantic import Field, create_model

from finemem_lib.runs.parameters import MODELS, LoadsCheckpoint, NotebookParameters
from tests.helpers.paths import ROOT

FIRST, SECOND, THIRD = "01_question_generation", "02_memory_and_retrieval", "03_rewards_and_credit"

PARAMETERS = """run_id: str = "notebook"  # name of the run
seed: int = 0  # every random choice follows from it
"""
START = """from finemem_lib.runs.run import start_run
run = start_run("{stem}", globals())"""
MODEL = """import sys
sys.path.insert(0, {root!r})
from tests.helpers.small_notebooks import make_model
Parameters = make_model({source!r})
"""
KNOWN = {name: field for model in MODELS.values() for name, field in model.model_fields.items()}
PASS_ON = {
    FIRST: (
        "num_chunks: int = 4  # chunks\ndata: list = []  # files\n",
        [
            'run.save("question_audit", [{"kept": step} for step in range(num_chunks)])\n'
            'run.metric("kept", num_chunks)\nrun.metric("unmeasured", None)',
            "import plotly.graph_objects as go\nfigure = go.Figure(go.Bar(y=[1]))\n"
            'figure.update_layout(title="Kept", meta={"caption": "c", "alt": "a"})\n'
            'run.figure("kept", figure)',
            "run.finish()",
        ],
    ),
    THIRD: (
        "beta: float = 0.5  # weight of the evidence\n"
        "capacity: int = 0  # items, 0 for no limit\n"
        'checkpoint: str = "tiny"  # a folder, or a name on the hub\n',
        [
            'audit = run.load("question_audit")',
            'run.save("rewards", [{"reward": beta * len(audit)}])\n'
            'run.metric("reward", beta * len(audit))',
            "import os, sys\nseen = {name: os.environ.get(name) for name in\n"
            '        ("HF_HUB_OFFLINE", "PYTHONHASHSEED")}\n'
            "print(sys.executable, os.getcwd(), seen)",
            "run.finish()",
        ],
    ),
}


def make_model(source: str) -> type[NotebookParameters]:
    """Return a model of the parameters that a cell declares, with the project's bounds for names
    that the project knows."""
    fields: dict[str, Any] = {}
    for node in ast.parse(source).body:
        name = node.target.id
        if name in NotebookParameters.model_fields:
            continue
        kind = {"int": int, "float": float, "str": str, "bool": bool, "list": list[str]}[
            node.annotation.id
        ]
        if known := KNOWN.get(name):
            kind = Annotated[(known.annotation, *known.metadata)] if known.metadata else kind
        fields[name] = (kind, Field(ast.literal_eval(node.value), description="d"))
    base = LoadsCheckpoint if "checkpoint" in fields else NotebookParameters
    return create_model("Parameters", __base__=base, **fields)


def write_notebook(folder, stem, parameters="", cells=(), **metadata):
    """Write a notebook whose metadata name what its cells load and save, and its parameters."""
    declared = PARAMETERS + parameters
    sources = [declared, START.format(stem=stem), *cells]
    code = [nbformat.v4.new_code_cell(source) for source in sources]
    code[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=code)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "language": "python",
        "display_name": "Python 3",
    }
    text = "\n".join(cells)
    notebook.metadata["finemem"] = {
        "name": stem,
        "order": int(stem[:2]),
        "parameters": f"parameters_{stem}.py:Parameters",
        "reads": {name: {} for name in re.findall(r"run\.load\(\"(\w+)\"", text)},
        "writes": list(dict.fromkeys(re.findall(r"run\.save\(\"(\w+)\"", text))),
    } | metadata
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.ipynb").write_text(nbformat.writes(notebook), encoding="utf-8")
    model = MODEL.format(root=str(ROOT), source=declared)
    (folder / f"parameters_{stem}.py").write_text(model, encoding="utf-8")


def write_profile(folder, name="default", text='description: d\nnotebooks: ["01-99"]\n'):
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    (folder / "profiles" / f"{name}.yaml").write_text(text, encoding="utf-8")


def make_notebooks(folder, notebooks):
    for stem, (parameters, cells) in notebooks.items():
        write_notebook(folder, stem, parameters, cells)
    numbers = ", ".join(f'"{stem[:2]}"' for stem in notebooks)
    write_profile(folder, text=f"description: d\nnotebooks: [{numbers}]\n")
    return folder
