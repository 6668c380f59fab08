"""Small notebooks and profiles, made by tests of the command line."""

from __future__ import annotations

import nbformat

FIRST, SECOND, THIRD = "01_question_generation", "02_memory_and_retrieval", "03_rewards_and_credit"

PARAMETERS = """run_id: str = "notebook"  # name of the run
seed: int = 0  # every random choice follows from it
"""
START = """from finemem_lib.runs.run import start_run
run = start_run("{stem}", run_id=run_id, seed=seed, parameters={{{parameters}}})"""
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


def write_notebook(folder, stem, parameters="", cells=()):
    declared = PARAMETERS + parameters
    names = [line.split(":")[0] for line in parameters.splitlines()]
    passed = ", ".join(f'"{name}": {name}' for name in names)
    sources = [declared, START.format(stem=stem, parameters=passed), *cells]
    made = [nbformat.v4.new_code_cell(source) for source in sources]
    made[0].metadata["tags"] = ["parameters"]
    notebook = nbformat.v4.new_notebook(cells=made)
    notebook.metadata["kernelspec"] = {
        "name": "python3",
        "language": "python",
        "display_name": "Python 3",
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{stem}.ipynb").write_text(nbformat.writes(notebook), encoding="utf-8")


def write_profile(folder, name="default", text='description: d\nnotebooks: ["01-99"]\n'):
    (folder / "profiles").mkdir(parents=True, exist_ok=True)
    (folder / "profiles" / f"{name}.yaml").write_text(text, encoding="utf-8")


def make_notebooks(folder, notebooks):
    for stem, (parameters, cells) in notebooks.items():
        write_notebook(folder, stem, parameters, cells)
    numbers = ", ".join(f'"{stem[:2]}"' for stem in notebooks)
    write_profile(folder, text=f"description: d\nnotebooks: [{numbers}]\n")
    return folder
