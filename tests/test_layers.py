"""Imports run only downwards, and looking at the package costs little."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import finemem_lib

FOLDER = Path(finemem_lib.__file__).parent
HEAVY = {"torch", "transformers", "trl", "plotly", "pandas", "ipywidgets", "datasets"}
ENTRY = {"__init__", "__main__"}


def layers() -> dict[str, int]:
    """Return the layer of every module, as the package's docstring draws them."""
    found, layer = {}, 0
    for line in finemem_lib.__doc__.splitlines():
        match = re.match(r"    (\d| )  ([a-z_]+(?:, [a-z_]+)*),?(?:  |$)", line)
        if match:
            layer = int(match[1]) if match[1].strip() else layer
            found |= {name: layer for name in match[2].split(", ")}
    return found


def imports(path: Path, top_only: bool) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    nodes = tree.body if top_only else list(ast.walk(tree))
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_map_names_every_module():
    assert set(layers()) == {path.stem for path in FOLDER.glob("*.py")} - ENTRY


def test_the_readme_draws_the_same_map():
    readme = (FOLDER.parent / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ((?:`\w+` ?)+)\|", readme, re.MULTILINE)
    drawn = {name: int(layer) for layer, names in rows for name in re.findall(r"\w+", names)}
    assert drawn == layers()


def test_no_module_imports_from_a_layer_above_its_own():
    order = layers()
    for name, layer in order.items():
        used = {
            part.split(".")[1] for part in imports(FOLDER / f"{name}.py", top_only=False)
            if part.startswith("finemem_lib.")
        }
        assert not [other for other in used & set(order) if order[other] > layer], name


def test_the_lower_layers_load_no_heavy_library():
    for name, layer in layers().items():
        if layer <= 2:
            used = {part.split(".")[0] for part in imports(FOLDER / f"{name}.py", top_only=True)}
            assert not used & HEAVY, name


def test_importing_the_package_loads_nothing_heavy():
    script = "import finemem_lib, sys; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert not HEAVY & set(loaded)
