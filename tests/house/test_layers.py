"""The library's files and folders: what they are for, what they import, what importing loads.

`python -m tests.house.test_layers` prints the map to paste into docs/api/index.md.
"""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

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


def docstring(path: Path) -> str:
    """Return the docstring of a file, or of a folder's package."""
    file = path / "__init__.py" if path.is_dir() else path
    return ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""


def folder_map() -> str:
    """Return the map of the library in Markdown, from the bottom of the layers to the top."""
    [contract] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    names = [name for layer in contract["layers"][::-1] for name in re.findall(r"\w+", layer)]
    core = [FOLDER / f"{name}.py" for name in names if (FOLDER / f"{name}.py").exists()]
    wings = [FOLDER / name for name in names if (FOLDER / name).is_dir()]
    return "\n".join(
        ["| Core | |", "|---|---|"]
        + [f"| `{path.stem}` | {docstring(path).splitlines()[0]} |" for path in core]
        + ["", "| Folder | |", "|---|---|"]
        + [f"| `{path.name}/` | {docstring(path).splitlines()[0]} |" for path in wings]
    )


def test_the_map_of_the_site_is_that_of_the_docstrings() -> None:
    page = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    assert folder_map() in page, f"paste this:\n{folder_map()}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_folder_names_its_public_functions(folder: Path) -> None:
    first, *rest = docstring(folder).split("\n\n")
    names = re.findall(r"`([A-Za-z_][\w.]*)`", "".join(rest))
    assert first.endswith(".") and "\n" not in first and names
    for name in names:
        place = f"finemem_lib.{folder.name}.{name}"
        module, _, attribute = place.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute), place


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


if __name__ == "__main__":
    print(folder_map())
