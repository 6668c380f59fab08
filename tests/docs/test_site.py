"""The built site: it builds without a warning, works offline, and draws the notebooks' figures."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml

from finemem_lib.credit.rules import RULES
from finemem_lib.figures.style import PLOTLY_MIME
from tests.helpers.browser import watched_page
from tests.helpers.paths import ROOT
from tests.helpers.patience import LAST_RESORT

pytestmark = pytest.mark.long

NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as `make docs` builds it."""
    pytest.importorskip("sphinx", reason="the site is built with Sphinx (make setup)")
    folder = tmp_path_factory.mktemp("site")
    output, doctrees = folder / "html", folder / "doctrees"
    done = subprocess.run(
        [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-c", "docs"]
        + ["-d", str(doctrees), ".", str(output)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    return output


def page(site: Path, name: str) -> str:
    return (site / f"{name}.html").read_text(encoding="utf-8")


def figures_of(notebook: Path) -> int:
    cells = nbformat.read(notebook, as_version=4).cells
    outputs = [output for cell in cells for output in cell.get("outputs", ())]
    return sum(PLOTLY_MIME in output.get("data", {}) for output in outputs)


def test_the_sources_stay_as_they_are(site: Path) -> None:
    assert not (ROOT / "jupyter_execute").exists() and not (ROOT / "docs" / "_build").exists()


def test_no_page_loads_anything_from_elsewhere(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 50
    loaded = r"<(?:script|img|iframe|source|video)\b[^>]*\bsrc=\"(?:https?:)?//"
    linked = r"<link\b[^>]*\bhref=\"(?:https?:)?//"
    for path in pages:
        assert not re.search(f"{loaded}|{linked}", path.read_text(encoding="utf-8")), path


def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in site.rglob("*.html")}
    ids = {path: set(re.findall(r'\sid="([^"]+)"', text)) for path, text in texts.items()}
    missing = set()
    for path, text in texts.items():
        for target in re.findall(r'<a\b[^>]*\shref="([^"]+)"', text):
            file, _, anchor = target.partition("#")
            if re.match(r"[a-z]+:", target):
                continue
            there = (path.parent / file).resolve() if file else path
            if not there.exists() or (anchor and there in ids and anchor not in ids[there]):
                missing.add((path.name, target))
    assert missing == set()


def test_plotly_is_one_file_that_pages_with_figures_load(site: Path) -> None:
    [script] = [path for path in site.rglob("*.js") if path.stat().st_size > 1_000_000]
    assert script.name == "plotly.min.js"
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert ('class="site-figure"' in text) == ("plotly.min.js" in text), path


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_shown_with_all_of_its_figures(site: Path, notebook: Path) -> None:
    assert page(site, f"notebooks/{notebook.stem}").count('class="site-figure"') == figures_of(
        notebook
    )


def test_formulas_need_no_script(site: Path) -> None:
    for path in site.rglob("*.html"):
        text = path.read_text(encoding="utf-8")
        assert "formula-inline" not in text and "formula-block" not in text, path
        assert "MathJax" not in text
    assert '<math xmlns="http://www.w3.org/1998/Math/MathML" display="block">' in page(
        site, "docs/concepts/eara"
    )


def test_what_is_generated_is_all_of_it(site: Path) -> None:
    rules = page(site, "docs/concepts/credit_rules")
    assert {name for name in RULES if f">{name}<" not in rules} == set()
    ledger = yaml.safe_load((ROOT / "data" / "ledger.yaml").read_text(encoding="utf-8"))
    rows = page(site, "docs/ledger").count("<tr")
    assert rows == len(ledger["figures"]) + len(ledger["sources"]) + 2  # and two heads
    stub = ast.parse((ROOT / "finemem_lib" / "__init__.pyi").read_text(encoding="utf-8"))
    names = [
        f"finemem_lib.{one.module}.{alias.name}"
        for one in stub.body
        if isinstance(one, ast.ImportFrom)
        for alias in one.names
    ]
    library = page(site, "docs/api/index")
    assert [name for name in names if f"#{name}" not in library] == []
    for path in site.rglob("*.html"):
        assert "generated: " not in path.read_text(encoding="utf-8"), path


def opened(page: Any, path: Path) -> list[str]:
    """Open a page from its file; return what its console says is wrong, now and later."""
    wrong: list[str] = []
    page.on("console", lambda said: wrong.append(said.text) if said.type == "error" else None)
    page.on("requestfailed", lambda request: wrong.append(request.url))
    page.goto(path.as_uri())
    return wrong


@pytest.mark.browser
@pytest.mark.parametrize("name", ["notebooks/03_rewards_and_credit", "docs/concepts/eara"])
def test_a_page_draws_its_figures_from_its_file(site: Path, name: str) -> None:
    with watched_page() as (page, watch):
        wrong = opened(page, site / f"{name}.html")
        figure = page.get_by_role(
            "region", name="Evidence flow from steps over items to questions"
        ).first
        figure.scroll_into_view_if_needed()
        figure.locator(".sankey-link").first.wait_for()
        assert "Where does Mia live?" in figure.text_content()
        assert wrong == [] and watch.errors == [] and watch.requests == []


@pytest.mark.browser
def test_no_window_is_too_narrow_for_a_page(site: Path) -> None:
    """Incident: text, sidebar and contents together were wider than a window of 1366 pixels."""
    with watched_page() as (page, _):
        for name in ("README", "docs/findings", "docs/concepts/retrieval", "docs/ledger"):
            opened(page, site / f"{name}.html")
            for width in (390, 768, 1024, 1280, 1366, 1440):
                page.set_viewport_size({"width": width, "height": 800})
                assert page.evaluate("document.documentElement.scrollWidth") <= width, name


@pytest.mark.browser
def test_pages_can_be_read_in_the_dark(site: Path) -> None:
    axe = pytest.importorskip("axe_playwright_python", reason="axe-playwright-python is missing")
    script = Path(axe.__file__).with_name("axe.min.js").read_text("utf-8")
    with watched_page(width=390) as (page, watch):
        page.emulate_media(color_scheme="dark")
        for name in (
            "README",
            "docs/findings",
            "docs/concepts/eara",
            "docs/concepts/credit_rules",
            "notebooks/09_per_step_grpo",
        ):
            wrong = opened(page, site / f"{name}.html")
            page.evaluate(script)
            # axe would fetch the style sheets, which a page from a file may not
            found = page.evaluate(
                "axe.run(document, {preload: false}).then(result => result.violations)"
            )
            serious = [one for one in found if one["impact"] in ("serious", "critical")]
            assert [(one["id"], one["nodes"][0]["html"][:200]) for one in serious] == [], name
            assert wrong == []
        assert watch.errors == [] and watch.requests == []


@pytest.mark.browser
def test_the_first_page_is_found_and_the_search_works_offline(site: Path) -> None:
    with watched_page() as (page, watch):
        wrong = opened(page, site / "index.html")
        page.wait_for_url("**/README.html")
        page.locator("input[name=q]").first.fill("shapley")
        page.keyboard.press("Enter")
        page.locator("#search-results li a").first.wait_for()
        assert wrong == [] and watch.errors == [] and watch.requests == []
