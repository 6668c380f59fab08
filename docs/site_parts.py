"""A Sphinx extension for what the site adds to Sphinx: offline figures, formulas and tables.

- plotly's figures in notebooks become places that ``static/figures.js`` draws; plotly.js is one
  file of the site, which only pages with figures load.
- Formulas become MathML, which browsers draw without a script.
- A comment such as ``<!-- generated: ledger figures -->`` in a page becomes the table or figure of
  that name, so that what the library or its data already say does not stand a second time.
"""

from __future__ import annotations

import ast
import html
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx

from finemem_lib import assign, figures, hybrid_reward, worked_example
from finemem_lib.cli import ledger
from finemem_lib.cli.pictures import plotlyjs
from finemem_lib.cli.report import draw_formulas
from finemem_lib.credit.rules import RULES
from finemem_lib.figures.display import outputs
from finemem_lib.figures.notes import meta_of
from finemem_lib.figures.style import PLOTLY_MIME, plain
from finemem_lib.util.provenance import workbench_root

PLOTLY = "plotly.min.js"
PLACE = '<div class="site-figure"'
"""How the place of a figure begins in a page."""


def figure_html(spec: dict[str, Any]) -> str:
    """Return the place of a figure: its JSON, which no text of the figure can end, and its size.

    Args:
        spec: The figure as plotly's JSON.
    """
    layout = spec.get("layout") or {}
    packed = json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")
    title = plain((layout.get("title") or {}).get("text") or "Figure")
    label = html.escape(f"{title}. {meta_of(spec).get('alt', '')}")
    return (
        f'<div class="site-scroll" role="region" tabindex="0" aria-label="{label}">'
        f'{PLACE} style="height:{layout.get("height") or 450}px">'
        f'<script type="application/json">{packed}</script></div></div>'
    )


def without_plotly(notebook: str) -> str:
    """Return a notebook's JSON with HTML in place of plotly's figures.

    Args:
        notebook: The text of its file.
    """
    page = json.loads(notebook)
    for cell in page["cells"]:
        for output in cell.get("outputs", ()):
            data = output.get("data", {})
            if PLOTLY_MIME in data:
                output["data"] = {"text/html": figure_html(data[PLOTLY_MIME])}
    return json.dumps(page)


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    """Return a table in Markdown.

    Args:
        head: Names of the columns.
        rows: Cells in Markdown; a bar in a cell stays a bar.
    """
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", r"\|").replace("\n", " ") for cell in line) + " |"
        for line in lines
    )


def code(text: str) -> str:
    """Return a text as code in Markdown, nothing for nothing.

    Args:
        text: On one line.
    """
    return f"`{text}`" if text else ""


def rules_table() -> str:
    """Return the credit rules with formula, source, what they conserve and what they cost."""
    return markdown_table(
        ["Rule", "Value at step t", "Conserves", "Reader calls", "Source"],
        [
            [code(name), code(rule.formula), code(rule.conserves), rule.cost, rule.source]
            for name, rule in RULES.items()
        ],
    )


def ledger_figures() -> str:
    """Return every measured figure of the texts with the rows that it comes from."""
    entries = ledger.load_ledger(workbench_root())
    return markdown_table(
        ["Text", "Figure", "Rows"],
        [[code(one.file), one.text, one.source] for one in entries.figures],
    )


def ledger_sources() -> str:
    """Return the rows that figures come from, and who made them."""
    root = workbench_root()
    entries = ledger.load_ledger(root)
    rows = []
    for name, source in entries.sources.items():
        made = ledger.origin(source, root)
        rows.append(
            [
                name,
                code(source.rows),
                code(made.data_hash[:12]),
                ", ".join(code(commit[:7]) for commit in made.commits),
                " ".join(map(str, made.seeds)),
                code(made.command),
                made.hardware,
            ]
        )
    return markdown_table(
        ["Name", "Rows", "SHA-256", "Commits", "Seeds", "Command", "Hardware"], rows
    )


def public_names() -> str:
    """Return what `from finemem_lib import ...` offers, by the module that defines it."""
    stub = workbench_root() / "finemem_lib" / "__init__.pyi"
    rows = [
        [
            code(f"finemem_lib.{node.module}"),
            ", ".join(
                f"[`{alias.name}`](#finemem_lib.{node.module}.{alias.name})" for alias in node.names
            ),
        ]
        for node in ast.parse(stub.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom)
    ]
    return markdown_table(["Module", "Names"], rows)


CONTENTS = """
```{toctree}
:hidden:
docs/quickstart
docs/notebooks
docs/concepts/index
docs/how_to/index
docs/api/index
docs/findings
docs/ledger
docs/data_and_models
CHANGELOG
CONTRIBUTING
```
"""
"""What the sidebar shows; README, the first page, stays a page for GitHub as well."""


def figure(draw: Callable[[], Any]) -> Callable[[], str]:
    """Return what writes a figure of `finemem_lib.figures` into a page, with its caption.

    Args:
        draw: Makes the figure.
    """

    def written() -> str:
        # of the two outputs in a notebook, the first is the drawing, the second the note below it
        drawing, note = outputs(draw())
        return f"{figure_html(drawing[PLOTLY_MIME])}\n\n{note['text/html']}"

    return written


def credit_by_rule() -> Any:
    """Return the figure of the page about credit rules: some rules on the worked example."""
    rules = ("outcome-broadcast", "uniform-split", "csr", "eara")
    return figures.credit_by_rule({name: assign(name, worked_example()).credit for name in rules})


GENERATED: dict[str, Callable[[], str]] = {
    "credit rules": rules_table,
    "ledger figures": ledger_figures,
    "ledger sources": ledger_sources,
    "public names": public_names,
    "contents": lambda: CONTENTS,
    "credit by rule": figure(credit_by_rule),
    "evidence sankey": figure(lambda: figures.evidence_sankey(worked_example())),
    "reward decomposition": figure(
        lambda: figures.reward_decomposition(hybrid_reward(worked_example()))
    ),
}
MARK = re.compile(r"<!-- generated: ([\w ]+) -->")


def read_source(app: Sphinx, name: str, source: list[str]) -> None:
    """Replace figures of notebooks and marks of generated tables, as Sphinx reads a source.

    Args:
        app: Sphinx.
        name: The document.
        source: Its text, the only entry, which is replaced.
    """
    if app.env.doc2path(name).suffix == ".ipynb":
        source[0] = without_plotly(source[0])
    else:
        source[0] = MARK.sub(lambda found: GENERATED[found[1]](), source[0])


def generated_pages(
    app: Sphinx, env: Any, added: set[str], changed: set[str], removed: set[str]
) -> list[str]:
    """Return the pages with generated parts, which are read every time.

    Args:
        app: Sphinx.
        env: Its record of what it has read.
        added: Pages that are new.
        changed: Pages whose sources have changed.
        removed: Pages that are gone.
    """
    return [
        name
        for name in env.found_docs
        if (path := env.doc2path(name)).suffix == ".md" and MARK.search(path.read_text("utf-8"))
    ]


def keep_formulas(
    app: Sphinx, kind: str, name: str, described: Any, options: Any, lines: list[str]
) -> None:
    """Show the indented formulas of a docstring as they stand, line by line.

    Args:
        app: Sphinx.
        kind: Of what is described.
        name: Its full name.
        described: What is described.
        options: Those of the directive.
        lines: The docstring, changed in place.
    """
    for number, line in enumerate(lines[:-2]):
        introduces = re.search(r"\w.*\s.*[^:]:$", line) and not lines[number + 1].strip()
        if introduces and _indent(lines[number + 2]) > _indent(line):
            lines[number] = f"{line}:"


def _indent(line: str) -> int:
    return len(line) - len(line.lstrip())


def finish_page(
    app: Sphinx, page: str, template: str, context: dict[str, Any], tree: nodes.document | None
) -> None:
    """Load plotly.js where a page has figures, and let keys scroll what is wider than the page.

    Args:
        app: Sphinx.
        page: Name of the page.
        template: Of the page.
        context: What the template shows.
        tree: The page's document, if it has one.
    """
    body = context.get("body", "")
    if PLACE in body:
        app.add_js_file(PLOTLY, loading_method="defer")
        app.add_js_file("figures.js", loading_method="defer")
    context["body"] = re.sub(r'<(pre|div class="table-wrapper[^>]*)>', r'<\1 tabindex="0">', body)


def write_plotly(app: Sphinx) -> None:
    """Write plotly.js into the site.

    Args:
        app: Sphinx.
    """
    static = Path(app.outdir) / "_static"
    static.mkdir(parents=True, exist_ok=True)
    (static / PLOTLY).write_text(plotlyjs(), encoding="utf-8")


def formula(translator: Any, node: nodes.Element) -> None:
    """Write a formula as MathML and skip what is below it.

    Args:
        translator: The writer of HTML.
        node: `math` or `math_block`.
    """
    kind = "block" if isinstance(node, nodes.math_block) else "inline"
    tex = html.escape(node.astext(), quote=False)
    drawn = draw_formulas(f'<code class="formula-{kind}">{tex}</code>')
    translator.body.append(
        f'<div class="formula" tabindex="0">{drawn}</div>' if kind == "block" else drawn
    )
    raise nodes.SkipNode


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the parts.

    Args:
        app: Sphinx.
    """
    app.add_html_math_renderer("mathml", (formula, None), (formula, None))
    app.connect("builder-inited", write_plotly)
    app.connect("env-get-outdated", generated_pages)
    app.connect("source-read", read_source)
    # before napoleon, which has priority 500 and writes sections of its own
    app.connect("autodoc-process-docstring", keep_formulas, priority=400)
    app.connect("html-page-context", finish_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
