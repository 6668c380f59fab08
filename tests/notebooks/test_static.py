"""What must hold of every notebook without running it."""

from __future__ import annotations

import ast
import re
import subprocess
import sys

import nbformat
import papermill
import pytest

from tests.helpers.paths import ROOT

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
MAX_BYTES = 420_000  # a figure is there twice, drawn and as a table
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
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{number:02}" for number in range(1, 9)]


def test_committed_outputs_are_complete_small_and_clean(notebook):
    """Incident: stripped notebooks pass `--nbval` having compared nothing."""
    nbformat.validate({key: value for key, value in notebook.items() if key != "path"})
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in code_cells(notebook) for output in cell.outputs]
    assert not [output for output in outputs if output.output_type == "error"]
    assert "widgets" not in notebook.metadata and "papermill" not in notebook.metadata
    raw = notebook["path"].read_text(encoding="utf-8")
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


def test_papermill_sees_every_parameter_with_type_and_help_and_it_is_read(notebook):
    """Incident elsewhere: a sweep ran with a declared parameter that nothing read."""
    (cell,) = tagged(notebook, "parameters")
    declared = {
        node.target.id for node in ast.parse(cell.source).body if isinstance(node, ast.AnnAssign)
    }
    assert len(declared) == len(cell.source.splitlines()), "one annotated parameter per line"
    seen = papermill.inspect_notebook(str(notebook["path"]))
    assert set(seen) == declared
    assert all(entry["inferred_type_name"] not in ("", "None") for entry in seen.values())
    assert all(entry["help"] for entry in seen.values())
    start = next(c for c in code_cells(notebook) if "start_run(" in c.source)
    later = "\n".join(c.source for c in code_cells(notebook) if c is not cell)
    names = [node.id for node in ast.walk(ast.parse(later)) if isinstance(node, ast.Name)]
    assert not [name for name in declared if name not in names]
    in_start = {n.id for n in ast.walk(ast.parse(start.source)) if isinstance(n, ast.Name)}
    assert declared <= in_start, "every parameter goes through start_run, which checks it"


def header(notebook, word):
    match = re.search(rf"\*\*{word}\*\*([^·\n]*)", notebook.cells[0].source)
    return set(re.findall(r"`(\w+)`", match[1])) if match else set()


def test_header_says_what_the_cells_load_and_save(notebook):
    source = "\n".join(cell.source for cell in code_cells(notebook))
    assert header(notebook, "Reads") == set(re.findall(r"run\.load\(\s*\"(\w+)\"", source))
    assert header(notebook, "Writes") == set(re.findall(r"run\.save\(\s*\"(\w+)\"", source))


def test_every_figure_cell_is_followed_by_a_sentence_that_says_what_to_see(notebook):
    cells = notebook.cells
    for position, cell in enumerate(cells):
        if cell.cell_type == "code" and "show(" in cell.source:
            assert position + 1 < len(cells) and cells[position + 1].cell_type == "markdown"


def test_readme_table_equals_the_folder():
    rows = re.findall(
        r"^\| (\d\d) \| \[([^\]]+)\]\(notebooks/([^)]+)\) \| (.+?) \| (.+?) \| (.+?) \| (.+?) \| "
        r"(.+?) \|$",
        (ROOT / "README.md").read_text(encoding="utf-8"),
        re.MULTILINE,
    )
    assert [row[2] for row in rows] == [path.name for path in NOTEBOOKS]
    for row, path in zip(rows, NOTEBOOKS, strict=True):
        loaded = nbformat.read(path, as_version=4)
        title, question = loaded.cells[0].source.splitlines()[0:3:2]
        assert title == f"# {row[0]} · {row[1]}"
        assert question == row[3]
        assert set(re.findall(r"`(\w+)`", row[4])) == header(loaded, "Reads")
        assert set(re.findall(r"`(\w+)`", row[5])) == header(loaded, "Writes")
        needs = re.search(r"\*\*Needs\*\* (\d+) minutes? on (.+), no GPU", loaded.cells[0].source)
        assert (row[6], row[7]) == (needs[1], needs[2])


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
