"""The report of a run: an offline HTML page with findings, figures, notebooks and settings.

HTML outputs and Markdown are cleaned with an allowlist (that of nbconvert lacks headings,
paragraphs and table heads); `cli.page` inserts the rest as text.
"""

from __future__ import annotations

import contextlib
import html
import itertools
import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finemem_lib.cli.manifest import Manifest, data_sources, read_manifest
from finemem_lib.cli.page import KEY, PageFigures, figure_title, render, template_text
from finemem_lib.figures.notes import NOTE, cell_text
from finemem_lib.figures.style import PLOTLY_MIME
from finemem_lib.runs.run import kept_figure, read_record
from finemem_lib.util.console import plain as one_line
from finemem_lib.util.files import write_bytes
from finemem_lib.util.validation import problems_in_words, type_adapter

if TYPE_CHECKING:
    from markupsafe import Markup

_TAGS = frozenset(
    "a abbr b blockquote br caption code dd del details div dl dt em h1 h2 h3 h4 h5 h6 hr i kbd li "
    "ol p pre s small span strong sub summary sup table tbody td tfoot th thead tr u ul".split()
)

_ATTRIBUTES = {
    "*": ["class"],
    "a": ["href", "title"],
    "th": ["colspan", "rowspan", "scope"],
    "td": ["colspan", "rowspan"],
}

_OUTPUT_TYPES = [
    PLOTLY_MIME,
    "text/html",
    "text/markdown",
    "image/svg+xml",
    "image/png",
    "image/jpeg",
    "text/plain",
]
"""MIME types of outputs in order of preference."""

MAX_FINDINGS = 7
"""Maximum findings at the top of the page; all are shown with their notebook."""


def build_report(run_dir: Path, output: Path) -> Path:
    """Write the report of a run and return its path.

    The report of a run that failed or is still running shows what exists. The file is written
    atomically, can be opened from disk and makes no network requests.

    Args:
        run_dir: Folder with ``manifest.json``, optionally ``metrics.json``, and the executed
            notebooks in any subfolder.
        output: The HTML file to write.

    Raises:
        ValueError: the manifest or the metrics are missing or cannot be read.
        OSError: the report could not be written.
    """
    run = read_manifest(run_dir)
    figures, found = PageFigures(), _findings(run_dir, run)
    leading = _leading(found)
    key_figures = _key_figures(leading, figures)
    notebooks = _notebooks(run_dir, run, figures)
    for one in found:
        one["place"] = figures.place(one["spec"])
    page = render(
        "report.html.j2",
        figures,
        run=run,
        data=data_sources(entry.parameters for entry in run.notebooks),
        leading=leading,
        findings=found,
        key_figures=key_figures,
        notebooks=notebooks,
        # two pygments styles whose colours have a contrast of 4.5 on the background of cells
        pygments=_highlighting("xcode"),
        pygments_dark=_highlighting("github-dark"),
        **_summary_rows(run, read_metrics(run_dir)),
    )
    return write_bytes(output, page)


def _highlighting(style: str) -> str:
    from pygments.formatters import HtmlFormatter

    return str(HtmlFormatter(style=style).get_style_defs(".highlight"))


def _findings(run_dir: Path, run: Manifest) -> list[dict[str, Any]]:
    """Return the recorded findings of the notebooks, each with the JSON of its figure.

    The JSON is `None` if the file is missing.
    """
    found = []
    for entry in run.notebooks:
        for number, one in enumerate(read_record(run_dir, entry.name).get("findings", ())):
            spec = title = None
            with contextlib.suppress(OSError, ValueError):
                spec = json.loads(kept_figure(run_dir, entry.name, one["figure"]).read_bytes())
                title = figure_title(spec)
            found.append(
                {
                    "text": one["text"],
                    "entry": entry,
                    "anchor": _anchor(entry.name),
                    "number": number,
                    "spec": spec,
                    "title": title,
                }
            )
    return found


def _leading(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the findings for the top of the page, in the order of the notebooks.

    The first finding of every notebook has precedence over the second of any.
    """
    chosen = sorted(found, key=lambda one: one["number"])[:MAX_FINDINGS]
    return [one for one in found if one in chosen]


def _key_figures(leading: Sequence[Mapping[str, Any]], figures: PageFigures) -> list[Markup]:
    """Return the figures of findings as HTML, without duplicates."""
    from markupsafe import Markup

    shown: list[Markup] = []
    for one in leading:
        if one["spec"] is not None and figures.place(one["spec"]) is None:
            figure_id = f"{KEY}{len(shown) + 1}"
            shown.append(Markup(figures.draw(one["spec"], figure_id, {})))
    return shown


def _notebooks(run_dir: Path, run: Manifest, figures: PageFigures) -> list[dict[str, Any]]:
    """Return the template values of every notebook; an error in one does not affect the others."""
    import nbformat

    links = {f"{entry.name}.ipynb": f"#{_anchor(entry.name)}" for entry in run.notebooks}
    shown = []
    for entry in run.notebooks:
        body = problem = None
        described: dict[str, Any] = {}
        try:
            if path := next(iter(sorted(run_dir.rglob(f"{entry.name}.ipynb"))), None):
                notebook = nbformat.read(path, as_version=4)
                described = notebook.metadata.get("finemem", {})
                body = _notebook_body(notebook, entry.name, links, figures)
        except Exception as error:  # json, nbformat, nbconvert and jinja2 raise various errors
            problem = f"{type(error).__name__}: {one_line(str(error))[:300]}"
            print(f"{entry.name}: its executed copy cannot be shown: {problem}", file=sys.stderr)
        shown.append(
            {
                "entry": entry,
                "anchor": _anchor(entry.name),
                "title": described.get("title", entry.name),
                "question": described.get("question", ""),
                "body": body,
                "problem": problem,
            }
        )
    return shown


def _summary_rows(
    run: Manifest, metrics: Mapping[str, Mapping[str, Any]]
) -> dict[str, list[dict[str, str]]]:
    """Return the rows of the page's tables."""
    return {
        "notebook_rows": [
            {
                "notebook": entry.name,
                "status": entry.status,
                "seconds": cell_text(entry.seconds),
                "reads": cell_text(entry.reads),
                "writes": cell_text(entry.writes),
            }
            for entry in run.notebooks
        ],
        "metric_rows": [
            {"notebook": name, "metric": metric, "value": cell_text(value)}
            for name, values in metrics.items()
            for metric, value in values.items()
        ],
        "parameter_rows": [
            {"notebook": entry.name, "parameter": name, "value": cell_text(value)}
            for entry in run.notebooks
            for name, value in entry.parameters.items()
        ],
        "version_rows": [
            {"what": name, "version": cell_text(value)}
            for name, value in [*run.git.items(), *run.versions.items()]
        ],
    }


def read_metrics(run_dir: Path) -> dict[str, dict[str, Any]]:
    """Return the metrics of a run by notebook, empty if it has none yet.

    Args:
        run_dir: Folder of the run.

    Raises:
        ValueError: the metrics exist but cannot be read.
    """
    path = run_dir / "metrics.json"
    if not path.exists():
        return {}
    try:
        metrics: dict[str, dict[str, Any]] = type_adapter(dict[str, dict[str, Any]]).validate_json(
            path.read_bytes()
        )
        return metrics
    except (OSError, ValidationError) as error:
        why = problems_in_words(error) if isinstance(error, ValidationError) else error.strerror
        raise ValueError(
            f"metrics.json of run {run_dir.name!r} cannot be read ({why}); remove it, or make it "
            "again with `finemem resume`"
        ) from error


def _anchor(name: str) -> str:
    return "nb-" + re.sub(r"\W+", "-", name)


def _notebook_body(
    notebook: Any, name: str, links: Mapping[str, str], figures: PageFigures
) -> Markup:
    """Return the cells of an executed notebook as HTML."""
    from markupsafe import Markup
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import MarkdownWithMath
    from traitlets.config import Config

    _drop_notes(notebook)
    markdown = MarkdownWithMath(renderer=_renderer())
    numbers = itertools.count(1)
    explorers: dict[str, str] = {}
    exporter = HTMLExporter(
        raw_template=template_text("cells.html.j2"),
        sanitize_html=True,
        config=Config({"NbConvertBase": {"display_data_priority": _OUTPUT_TYPES}}),
        filters={
            "clean_html": clean_html,
            "markdown2html": markdown.render,
            "figure": lambda data: figures.draw(
                data[PLOTLY_MIME], f"{_anchor(name)}-{next(numbers)}", explorers
            ),
        },
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = _UNCOLOURED.sub(r"\1", draw_formulas(body))
    for file, anchor in links.items():
        body = body.replace(f'href="{file}"', f'href="{anchor}"')
    return Markup(body)


_UNCOLOURED = re.compile(r'<span class="(?:n|p|w)">([^<]*)</span>')
"""Tags of names, punctuation and space in highlighted code, a fifteenth of the page. They are
removed, because both styles give them the default colour."""


def _drop_notes(notebook: Any) -> None:
    """Remove the notes of `figures.show` below figures, which the page shows in the figure."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [
                output
                for output in cell.outputs
                if not output.get("data", {}).get("text/html", "").startswith(NOTE)
            ]


def clean_html(markup: Any) -> str:
    """Keep allowed tags of an HTML fragment, escape all others, and remove pandas' style block.

    Args:
        markup: An HTML fragment of a cell's output; untrusted.
    """
    import bleach
    import bs4

    soup = bs4.BeautifulSoup(str(markup), "html.parser")
    for style in soup("style"):
        style.decompose()
    return str(bleach.clean(str(soup), tags=_TAGS, attributes=_ATTRIBUTES))


def _renderer() -> Any:
    """Return nbconvert's Markdown renderer with changed headings and formulas.

    Headings are two levels lower, because the page has its own first and second level. Formulas are
    code with a class.
    """
    from nbconvert.filters.markdown_mistune import IPythonRenderer

    class Renderer(IPythonRenderer):
        def heading(self, text: str, level: int, **attrs: Any) -> str:
            return f"<h{min(level + 2, 6)}>{text}</h{min(level + 2, 6)}>\n"

        def block_math(self, body: str) -> str:
            return f'<code class="formula-block">{html.escape(body)}</code>'

        def inline_math(self, body: str) -> str:
            return f'<code class="formula-inline">{html.escape(body)}</code>'

    return Renderer(escape=False)


def draw_formulas(body: str) -> str:
    """Convert TeX formulas to MathML, which browsers draw without a script.

    latex2mathml does not escape text that it copies. Its input has no angle brackets, so the result
    cannot contain markup of the author.

    Args:
        body: Cleaned HTML in which formulas are code of the class formula-block or formula-inline.
    """
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        tex = html.unescape(match[2]).replace("<", r"\lt ").replace(">", r"\gt ")
        try:
            return convert(tex, display=match[1])
        except Exception:  # malformed TeX raises various errors; it stays as source
            return match[0]

    return re.sub(r'<code class="formula-(block|inline)">([^<]*)</code>', formula, body)
