"""What must hold of every notebook without running it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from dataclasses import fields

import nbformat
import papermill
import pytest

from finemem_lib.managers.loading import ModelSettings
from finemem_lib.runs.artefacts import ARTEFACTS
from finemem_lib.runs.notebooks import notebook_table, read_notebook
from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MAX_BYTES = 800_000  # without pictures; explorers bring frames for who has no kernel
MAX_CODE_LINES = 30
MAX_CODE_WIDTH = 88


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def tagged(notebook, tag):
    return [cell for cell in code_cells(notebook) if tag in cell.metadata.get("tags", [])]


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def notebook(request):
    loaded = nbformat.read(request.param, as_version=4)
    loaded["path"] = request.param
    return loaded


def test_there_are_notebooks():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{n + 1:02}" for n in range(len(NOTEBOOKS))]
    assert len(NOTEBOOKS) >= 8


def test_committed_outputs_are_complete_small_and_clean(notebook):
    """Incident: stripped notebooks pass `--nbval` having compared nothing."""
    nbformat.validate({key: value for key, value in notebook.items() if key != "path"})
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "widgets" not in notebook.metadata and "papermill" not in notebook.metadata
    raw = notebook["path"].read_text(encoding="utf-8")
    for output in outputs:  # of pictures see tests/cli/test_pictures.py
        raw = raw.replace(output.get("data", {}).get("image/png", ""), "")
    assert len(raw.encode()) < MAX_BYTES
    assert not re.search(r"/(home|root|Users|tmp|work)/", raw), "an absolute path of a machine"


def test_cells_are_short_and_parse(notebook):
    for cell in code_cells(notebook):
        lines = [line for line in cell.source.splitlines() if line.strip()]
        assert lines, "empty cell"
        if "parameters" not in cell.metadata.get("tags", []):
            assert len(lines) <= MAX_CODE_LINES
            assert max(map(len, lines)) <= MAX_CODE_WIDTH
        ast.parse(cell.source)


def test_at_most_two_code_cells_stand_between_prose(notebook):
    """The three opening cells (imports, parameters, start_run) are one unit of their own."""
    kinds = "".join("c" if cell.cell_type == "code" else "m" for cell in notebook.cells)
    assert kinds.startswith("mcccm")
    assert "ccc" not in kinds[4:]


def test_the_parameters_cell_is_the_models_and_papermill_sees_all_of_it(notebook):
    """`python -m finemem_lib.runs.notebooks NOTEBOOK` prints the cell of a notebook's model."""
    (cell,) = tagged(notebook, "parameters")
    described = read_notebook(notebook["path"])
    model = described.model()
    assert cell.source == model.cell()
    seen = papermill.inspect_notebook(str(notebook["path"]))
    assert list(seen) == list(model.main())
    assert all(entry["inferred_type_name"] not in ("", "None") for entry in seen.values())
    assert all(entry["help"] for entry in seen.values())
    start = next(c for c in code_cells(notebook) if "start_run(" in c.source)
    shown = ["run.show_parameters()"] if len(model.main()) < len(model.model_fields) else []
    assert start.source.splitlines() == [
        f'run = start_run("{described.stem}", globals())',
        "p = run.parameters",
        *shown,
    ]


def test_every_parameter_is_read_and_none_is_the_name_of_another_variable(notebook):
    """Incident elsewhere: a sweep ran with a declared parameter that nothing read. And a variable
    that is called like a parameter would be read as one when the notebook is run again."""
    (cell,) = tagged(notebook, "parameters")
    model = read_notebook(notebook["path"]).model()
    nodes = [
        node
        for other in code_cells(notebook)
        if other is not cell
        for node in ast.walk(ast.parse(other.source))
    ]
    read = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "p"
    }
    by_the_run = {"run_id", "seed", "data", "models", "questions"}
    by_settings = (
        {field.name for field in fields(ModelSettings)} if "model_settings" in read else set()
    )
    assert set(model.model_fields) - by_the_run <= read | by_settings
    assert read <= {*model.model_fields, "model_settings"}
    names = {node.id for node in nodes if isinstance(node, ast.Name)}
    imported = {
        alias.asname or alias.name
        for node in nodes
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert not (names | imported) & set(model.model_fields)
    assigned = [n for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)]
    assert sum(node.id == "p" for node in assigned) == 1


def header(notebook, word):
    match = re.search(rf"\*\*{word}\*\*([^·\n]*)", notebook.cells[0].source)
    return set(re.findall(r"`(\w+)`", match[1])) if match else set()


def test_the_metadata_say_what_the_cells_load_and_save_and_the_header_says_it_too(notebook):
    described = read_notebook(notebook["path"])
    source = "\n".join(cell.source for cell in code_cells(notebook))
    loads = set(re.findall(r"run\.load\(\s*\"(\w+)\"", source))
    saves = set(re.findall(r"run\.save\(\s*\"(\w+)\"", source))
    assert set(described.reads) == loads == header(notebook, "Reads")
    assert set(described.writes) == saves == header(notebook, "Writes")
    assert loads | saves <= set(ARTEFACTS)
    conditions = {name for each in described.reads.values() for name in each}
    assert conditions <= set(described.model().model_fields)
    title, question = notebook.cells[0].source.splitlines()[0:3:2]
    assert title == f"# {described.order:02} · {described.title}"
    assert question == described.question and described.name == described.stem
    assert f"**Needs** {described.minutes} minute" in notebook.cells[0].source
    assert f"on {described.hardware}, no GPU" in notebook.cells[0].source


def test_every_artefact_is_written_by_one_notebook():
    writes = [name for path in NOTEBOOKS for name in read_notebook(path).writes]
    assert sorted(writes) == sorted(ARTEFACTS)


def test_every_figure_cell_is_followed_by_a_sentence_that_says_what_to_see(notebook):
    cells = notebook.cells
    for position, cell in enumerate(cells):
        if cell.cell_type == "code" and "show(" in cell.source:
            assert position + 1 < len(cells) and cells[position + 1].cell_type == "markdown"


def test_the_table_of_notebooks_is_made_from_the_metadata():
    """`python -m finemem_lib.runs.notebooks` prints it."""
    page = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
    assert notebook_table(ROOT / "notebooks") in page


def test_unsloth_can_be_imported_before_what_it_rewrites():
    """Notebook 04 up to the loading of its manager, which may import Unsloth, imports no
    transformers; a reader that runs in the process would, and comes after it."""
    cells = [cell.source for cell in code_cells(nbformat.read(NOTEBOOKS[3], as_version=4))]
    code, loading, rest = "\n".join(cells).partition("load_manager(")
    assert loading and "models.reader(" in rest and "models.reader(" not in code
    imports = next(cell for cell in cells if "finemem_lib.managers.model import" in cell)
    done = subprocess.run(
        [sys.executable, "-c", f"{imports}\nimport sys\nprint('transformers' in sys.modules)"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == "False\n"
