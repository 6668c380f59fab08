"""What `from finemem_lib import ...` offers, what importing it loads, and the README's example."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

import finemem_lib
from tests.helpers.paths import ROOT

FOLDER = Path(finemem_lib.__file__).parent
LOADED_ON_IMPORT = 5
"""Modules that importing the package may add to those that Python loads by itself."""


def run(script: str) -> str:
    """Return what a script prints in a fresh interpreter."""
    return subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    ).stdout


def seen_by_type_checkers() -> dict[str, str]:
    """Return the module of every name in the stub that type checkers read."""
    tree = ast.parse((FOLDER / "__init__.pyi").read_text(encoding="utf-8"))
    return {
        alias.asname or alias.name: f"finemem_lib.{node.module}"
        for node in tree.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("name", finemem_lib.__all__)
def test_every_name_is_that_of_the_module_type_checkers_see(name: str) -> None:
    value = getattr(finemem_lib, name)
    module = sys.modules[seen_by_type_checkers()[name]]
    assert value is getattr(module, name)


def test_all_lists_the_exports_each_once() -> None:
    assert set(finemem_lib.__all__) == set(seen_by_type_checkers())
    assert max(Counter(finemem_lib.__all__).values()) == 1
    assert set(finemem_lib.__all__) <= set(dir(finemem_lib))


def test_no_name_hides_a_module_of_the_package() -> None:
    modules = {path.stem for path in FOLDER.glob("*.py")} | {path.name for path in FOLDER.iterdir()}
    assert not modules & set(finemem_lib.__all__)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(AttributeError, match="FlatMemmory"):
        finemem_lib.FlatMemmory  # noqa: B018
    with pytest.raises(ImportError, match="FlatMemmory"):
        exec("from finemem_lib import FlatMemmory")


def test_importing_the_package_loads_hardly_anything() -> None:
    script = (
        "import importlib, sys, typing; before = set(sys.modules); import finemem_lib;"
        "print(*set(sys.modules) - before)"
    )
    assert len(run(script).split()) <= LOADED_ON_IMPORT


def test_the_core_is_used_without_torch_and_without_pandas() -> None:
    script = (
        "import sys; from finemem_lib import FlatMemory, parse_operations, make_retriever,"
        "eara_rewards, group_relative, worked_example, assign, play, reader_for;"
        "print(*sys.modules)"
    )
    assert not {"torch", "transformers", "pandas", "plotly"} & set(run(script).split())


def test_the_package_tells_type_checkers_that_it_is_typed() -> None:
    assert (FOLDER / "py.typed").exists()
    assert '"py.typed"' in (ROOT / "pyproject.toml").read_text()


def test_the_readmes_example_runs_as_printed() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    script, printed = re.findall(r"```(?:python|text)\n(.*?)```", text, re.DOTALL)
    assert len(script.splitlines()) <= 15
    assert set(re.findall(r"^(?:from|import) (\S+)", script, re.MULTILINE)) == {"finemem_lib"}
    assert run(script) == printed
