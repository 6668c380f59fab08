"""The library's folders: what they say of themselves, what they import, what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT

FOLDER = ROOT / "finemem_lib"
HEAVY = {"torch", "transformers", "trl", "plotly", "pandas", "ipywidgets", "datasets"}
FOLDERS = sorted(path.parent for path in FOLDER.glob("*/__init__.py"))


def test_imports_keep_the_contracts_of_pyproject() -> None:
    """The layers stand in pyproject.toml; import-linter checks them."""
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_folder_says_what_it_is_for(folder) -> None:
    text = ast.get_docstring(ast.parse((folder / "__init__.py").read_text(encoding="utf-8")))
    assert text and text.count(".") >= 2, folder


def test_every_folder_with_code_is_a_package() -> None:
    assert {path.parent for path in FOLDER.glob("*/*.py")} == set(FOLDERS)


def test_importing_the_package_loads_nothing_heavy() -> None:
    script = "import finemem_lib, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        timeout=LAST_RESORT,
    ).stdout.split()
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.py")), ids=lambda path: path.stem)
def test_the_core_loads_no_heavy_library_at_import(path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    used = {
        alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names
    }
    used |= {node.module for node in tree.body if isinstance(node, ast.ImportFrom) and node.module}
    assert not {name.split(".")[0] for name in used} & HEAVY
