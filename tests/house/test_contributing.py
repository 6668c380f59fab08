"""CONTRIBUTING.md names only files, symbols and make targets that exist."""

from __future__ import annotations

import pkgutil
import re

import pytest

from tests.helpers.paths import ROOT

TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
QUOTED = sorted({*re.findall(r"`([^`\n]+)`", TEXT)} - {"notebooks/12_my_notebook.ipynb"})
SYMBOLS = [name for name in QUOTED if re.fullmatch(r"finemem_lib(\.\w+)+", name)]
PATHS = [
    name
    for name in QUOTED
    if re.fullmatch(r"[\w.-]+(/[\w.-]+)+|[\w.-]+\.\w+", name) and name not in SYMBOLS
]
TARGETS = sorted(set(re.findall(r"make ([a-z-]+)`", TEXT)))


def resolved(name: str) -> object:
    """Return the object of a dotted name, which may be a module's."""
    return pkgutil.resolve_name(name)


@pytest.mark.parametrize("name", SYMBOLS)
def test_every_symbol_resolves(name):
    assert resolved(name) is not None


@pytest.mark.parametrize("name", PATHS)
def test_every_path_exists(name):
    assert (ROOT / name).exists()


@pytest.mark.parametrize("name", TARGETS)
def test_every_make_target_exists(name):
    assert re.search(rf"^{name}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)


def test_commands_of_code_blocks_name_files_that_exist():
    block = "\n".join(re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL))
    for path in re.findall(r"(?:tests|finemem_lib)/[\w./]+", block):
        assert (ROOT / path).exists(), path
    assert len(SYMBOLS) > 10 and len(PATHS) > 10 and len(TARGETS) > 5
