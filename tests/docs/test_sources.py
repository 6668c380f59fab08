"""The sources of the site: their links, examples, commands, names and pictures.

`python -m tests.docs.test_sources` draws the README's picture again.
"""

from __future__ import annotations

import ast
import doctest
import functools
import json
import pkgutil
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from finemem_lib.cli.main import make_parser
from finemem_lib.credit.rules import RULES
from finemem_lib.figures.frames import without_slider
from finemem_lib.figures.style import PLOTLY_MIME
from tests.helpers.paths import ROOT

PAGES = sorted(
    path
    for pattern in (
        "*.md",
        "docs/**/*.md",
        "notebooks/*.md",
        "notebooks/*.ipynb",
        "schedulers/*.md",
        "data/*/README.md",
    )
    for path in ROOT.glob(pattern)
)
OURS = [path for path in PAGES if path.name == "README.md" or "docs" in path.parts]
"""The pages whose commands and names are current; a changelog may name what is gone."""
PICTURE = ROOT / "figures" / "evidence_sankey.svg"


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def outputs(notebook: Path, kind: str) -> list[Any]:
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    found = (output.get("data", {}) for cell in cells for output in cell.get("outputs", ()))
    return [data[kind] for data in found if kind in data]


@functools.cache
def text_of(path: Path) -> str:
    """Return the Markdown of a page or of a notebook."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return text


def blocks(path: Path, *languages: str) -> list[str]:
    return re.findall(rf"```(?:{'|'.join(languages)})\n(.*?)```", text_of(path), re.DOTALL)


def without_blocks(path: Path) -> str:
    """Return the Markdown of a page without blocks of code, in which # begins a comment."""
    return re.sub(r"```.*?```", "", text_of(path), flags=re.DOTALL)


def prose(path: Path) -> str:
    """Return the Markdown of a page without code, in which brackets are no links."""
    return re.sub(r"`[^`\n]*`", "", without_blocks(path))


def anchors(path: Path) -> set[str]:
    """Return the anchors of the headings of a page, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", one.lower()).strip().replace(" ", "-") for one in headings}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_link_leads_to_a_file_and_a_heading_of_the_repository(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith(("https://", "http://")):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_every_picture_is_there_and_has_a_text(path: Path) -> None:
    for alt, target in re.findall(r"!\[([^\]]*)\]\(([^)\s]+)\)", prose(path)):
        assert (path.parent / target).exists(), target
        assert len(alt.split()) > 5, f"{target} needs a text for who does not see it, not {alt!r}"


def drawn_figure() -> Any:
    """Return the figure of notebook 05 that the README's picture shows."""
    import plotly.graph_objects as go

    specs = outputs(ROOT / "notebooks" / "05_evidence_tracing.ipynb", PLOTLY_MIME)
    spec = next(one for one in specs if one["data"][0]["type"] == "sankey" and one.get("frames"))
    still = without_slider(spec)
    return go.Figure({"data": still["data"], "layout": still["layout"]})


def test_the_picture_of_the_readme_shows_what_notebook_05_shows() -> None:
    labels = {label for label in drawn_figure().data[0].node.label if label}
    shown = PICTURE.read_text(encoding="utf-8")
    assert len(labels) > 10
    assert {label for label in labels if label not in shown} == set()


@pytest.fixture
def own_rules():
    """Take back what an example adds to the credit rules."""
    before = dict(RULES)
    yield
    RULES.clear()
    RULES.update(before)


@pytest.mark.parametrize("path", [path for path in OURS if blocks(path, "pycon")], ids=name)
def test_every_example_prints_what_the_page_says(path: Path, own_rules: None) -> None:
    source = "\n".join(blocks(path, "pycon"))
    test = doctest.DocTestParser().get_doctest(source, {}, name(path), str(path), 0)
    lines: list[str] = []
    flags = doctest.NORMALIZE_WHITESPACE
    result = doctest.DocTestRunner(optionflags=flags).run(test, out=lines.append)
    assert test.examples and result.failed == 0, "".join(lines)


@pytest.mark.parametrize("path", sorted(ROOT.glob("docs/concepts/[!i]*.md")), ids=name)
def test_every_concept_has_a_source_an_example_and_its_place_in_the_library(path: Path) -> None:
    text = text_of(path)
    assert blocks(path, "pycon") and "## By hand" in text and "## In the library" in text
    assert re.search(r"Sources?:\s", text)


@pytest.mark.parametrize("path", [path for path in OURS if blocks(path, "bash")], ids=name)
def test_every_command_is_one_that_can_be_given(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    parser = make_parser()
    for line in "\n".join(blocks(path, "bash")).splitlines():
        program, *words = shlex.split(line, comments=True) or [""]
        if program == "make":
            assert re.search(rf"^{words[0]}:", makefile, re.MULTILINE), line
        elif program == "finemem":
            try:
                parser.parse_args(words)
            except SystemExit:
                pytest.fail(f"finemem does not take {line!r}")


@pytest.mark.parametrize("path", OURS, ids=name)
def test_every_path_and_name_in_code_exists(path: Path) -> None:
    top = "notebooks|data|docs|tests|benchmarks|schedulers|finemem_lib"
    for quoted in re.findall(r"`([^`\n]+)`", without_blocks(path)):
        if re.fullmatch(rf"(?:{top})/[\w./-]+", quoted) and not re.match(
            "data/(runs|models)", quoted
        ):
            assert (ROOT / quoted).exists(), quoted
        elif re.fullmatch(r"finemem_lib(\.\w+)+", quoted):
            assert pkgutil.resolve_name(quoted) is not None


def described() -> set[str]:
    """Return the modules whose docstrings the site shows."""
    pages = ROOT.glob("docs/api/*.md")
    return {one for path in pages for one in re.findall(r"automodule:: (\S+)", text_of(path))}


@pytest.mark.parametrize("path", OURS, ids=name)
def test_what_a_page_says_about_the_library_leads_to_its_docstring(path: Path) -> None:
    for kind, target in re.findall(r"\{py:(\w+)\}`([^`]+)`", text_of(path)):
        assert pkgutil.resolve_name(target) is not None
        module = target if kind == "mod" else re.match(r"[a-z_.0-9]+(?=\.)", target)[0]
        assert module in described(), f"{target}: no page of docs/api shows {module}"


def test_the_site_shows_every_public_name() -> None:
    stub = ast.parse((ROOT / "finemem_lib" / "__init__.pyi").read_text(encoding="utf-8"))
    public = {f"finemem_lib.{one.module}" for one in stub.body if isinstance(one, ast.ImportFrom)}
    assert public - described() == set()


if __name__ == "__main__":
    from finemem_lib.cli.pictures import save_figures

    print(*save_figures({PICTURE.with_suffix(""): drawn_figure()}))
