"""One offline HTML page per run, and single figures as image files.

Everything in the page that came from data, models or parameters is text: figures carry plotly's
JSON in a data block, HTML outputs and Markdown pass through an allowlist (nbconvert's own has no
headings, paragraphs or table heads), and a content security policy lets only plotly.js and
``report.js`` run, and nothing leave the page.
"""

from __future__ import annotations

import asyncio
import base64
import functools
import hashlib
import html
import importlib.resources
import itertools
import json
import logging
import re
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from finemem_lib.cli.manifest import Manifest, read_manifest
from finemem_lib.figures.frames import at_frame, figure_table, without_slider
from finemem_lib.figures.notes import (
    MAX_TABLE_ROWS,
    NOTE,
    TOKEN_CSS,
    cell_text,
    html_table,
    meta_of,
)
from finemem_lib.figures.style import CONFIG, PLOTLY_MIME, plain
from finemem_lib.util.console import plain as one_line
from finemem_lib.util.files import written_beside
from finemem_lib.util.validation import problems_in_words, type_adapter

if TYPE_CHECKING:
    import jinja2
    import plotly.graph_objects as go
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
"""Of an output with several, the first of these is shown."""


@functools.cache
def _templates() -> jinja2.Environment:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("finemem_lib.cli"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        keep_trailing_newline=True,
    )


def _template_text(name: str) -> str:
    return (importlib.resources.files("finemem_lib.cli") / "templates" / name).read_text("utf-8")


def build_report(run_dir: Path, output: Path) -> Path:
    """Write the report of a run and return its path.

    A run that failed or is still running gets a report of what there is. The file appears whole or
    not at all, opens from disk and asks the network for nothing.

    Args:
        run_dir: Folder with ``manifest.json``, ``metrics.json`` where there is one, and the
            executed notebooks, anywhere in it.
        output: The HTML file to write.

    Raises:
        ValueError: the manifest or the metrics are missing or cannot be read.
        OSError: the report could not be written.
    """
    from markupsafe import Markup
    from pygments.formatters import HtmlFormatter

    run = read_manifest(run_dir)
    scripts = [_plotlyjs(), _template_text("report.js")]
    page = (
        _templates()
        .get_template("report.html.j2")
        .render(
            run=run,
            notebooks=_notebooks(run_dir, run),
            scripts=scripts,
            script_hashes=Markup(" ".join(map(_hash, scripts))),
            # of pygments' styles one whose colours all have a contrast of 4.5 on the grey of cells
            pygments=HtmlFormatter(style="xcode").get_style_defs(".highlight"),
            table=html_table,
            token_css=TOKEN_CSS,
            **_summary_rows(run, _read_metrics(run_dir)),
        )
    )
    return _write(output, page.encode("utf-8", "replace"))


def _notebooks(run_dir: Path, run: Manifest) -> list[dict[str, Any]]:
    """Return what the page says of every notebook; one that fails stops no other."""
    links = {f"{entry.name}.ipynb": f"#{_anchor(entry.name)}" for entry in run.notebooks}
    shown = []
    for entry in run.notebooks:
        body = problem = None
        try:
            body = _notebook_body(run_dir, entry.name, links)
        except Exception as error:  # json, nbformat, nbconvert and jinja2 each raise their own
            problem = f"{type(error).__name__}: {one_line(str(error))[:300]}"
            print(f"{entry.name}: its executed copy cannot be shown: {problem}", file=sys.stderr)
        shown.append(
            {"entry": entry, "anchor": _anchor(entry.name), "body": body, "problem": problem}
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


def save_figures(figures: Mapping[Path, go.Figure], width: int = 900) -> list[Path]:
    """Write figures as SVG, and return the paths.

    Where kaleido or a browser for it is missing, each becomes a small HTML page instead, with one
    plotly.js in its folder, and a warning gives the reason.

    Args:
        figures: By the path of their file without its suffix.
        width: Of the images, in pixels.

    Raises:
        OSError: a file could not be written.
    """
    import warnings

    paths, problems = [], []
    for (stem, figure), image in zip(
        figures.items(), _images(list(figures.values()), width), strict=True
    ):
        if isinstance(image, bytes):
            paths.append(_write(stem.with_name(f"{stem.name}.svg"), _fixed_ids(image)))
            continue
        problems.append((stem.name, image))
        page = figure.to_html(
            config=CONFIG, div_id=stem.name, auto_play=False, include_plotlyjs="directory"
        )
        if not (script := stem.with_name("plotly.min.js")).exists():
            _write(script, _plotlyjs().encode())
        paths.append(_write(stem.with_name(f"{stem.name}.html"), page.encode()))
    if problems:
        warnings.warn(
            f"{', '.join(name for name, _ in problems)}: written as HTML, because no image could "
            f"be made ({problems[0][1]}); install kaleido and Chromium for images",
            stacklevel=2,
        )
    return paths


def _images(figures: Sequence[go.Figure], width: int) -> list[bytes | Exception]:
    """Return the SVG of every figure, or the error that prevented it."""
    specs = [figure.to_dict() for figure in figures]
    for spec in specs:
        for number, trace in enumerate(spec["data"]):
            trace["uid"] = f"{number:06x}"  # else random, and part of the ids in an SVG
    images: list[bytes | Exception] = []

    async def draw() -> None:
        import kaleido

        logging.getLogger("choreographer.channels.pipe").addFilter(is_real_error)
        # mathjax: its default is fetched from the network
        async with kaleido.Kaleido(n=1, mathjax=False) as browser:
            for figure, spec in zip(figures, specs, strict=True):
                opts = {"format": "svg", "width": width, "height": figure.layout.height}
                try:
                    images.append(await browser.calc_fig(spec, opts=opts))
                except Exception as error:  # of this figure alone
                    images.append(error)

    def run() -> None:
        try:
            asyncio.run(draw())
        except Exception as error:  # kaleido, choreographer and the browser each raise their own
            images.extend([error] * (len(figures) - len(images)))

    # In a thread of its own, because the caller may be in an event loop: a notebook is.
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return images


def is_real_error(record: logging.LogRecord) -> bool:
    """Return whether a log record of kaleido's helper is an error.

    The helper sends "{bye}" when its browser ends; where that arrives together with the last
    answer, it is logged as broken JSON with a traceback.

    Args:
        record: A record of the logger.
    """
    cause = record.exc_info and getattr(record.exc_info[1], "__cause__", None)
    return getattr(cause, "doc", None) != "{bye}\n"


def _fixed_ids(image: bytes) -> bytes:
    """Replace the random id that plotly puts into every SVG, so that equal figures are equal."""
    found = re.search(rb'id="defs-([0-9a-f]{6})"', image)
    return image.replace(found[1], b"figure") if found else image


def _read_metrics(run_dir: Path) -> dict[str, dict[str, Any]]:
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


def _write(path: Path, content: bytes) -> Path:
    with written_beside(path) as beside:
        beside.write_bytes(content)
    return path


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _plotlyjs() -> str:
    from plotly.offline import get_plotlyjs

    return str(get_plotlyjs())


def _anchor(name: str) -> str:
    return "nb-" + re.sub(r"\W+", "-", name)


def _notebook_body(run_dir: Path, name: str, links: Mapping[str, str]) -> Markup | None:
    """Return the cells of an executed notebook as HTML, `None` when there is no such file."""
    import nbformat
    from markupsafe import Markup
    from nbconvert import HTMLExporter
    from nbconvert.filters.markdown_mistune import MarkdownWithMath
    from traitlets.config import Config

    path = next(iter(sorted(run_dir.rglob(f"{name}.ipynb"))), None)
    if path is None:
        return None
    notebook = nbformat.read(path, as_version=4)
    _drop_notes(notebook)
    markdown = MarkdownWithMath(renderer=_renderer())
    numbers = itertools.count(1)
    explorers: dict[str, str] = {}
    exporter = HTMLExporter(
        raw_template=_template_text("cells.html.j2"),
        sanitize_html=True,
        config=Config({"NbConvertBase": {"display_data_priority": _OUTPUT_TYPES}}),
        filters={
            "clean_html": clean_html,
            "markdown2html": markdown.render,
            "figure": lambda data: _figure(
                data[PLOTLY_MIME], f"{_anchor(name)}-{next(numbers)}", explorers
            ),
        },
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = draw_formulas(body)
    for file, anchor in links.items():
        body = body.replace(f'href="{file}"', f'href="{anchor}"')
    return Markup(body)


def _drop_notes(notebook: Any) -> None:
    """Remove what `figures.show` puts below a figure: the page has the same inside the figure."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [
                output
                for output in cell.outputs
                if not output.get("data", {}).get("text/html", "").startswith(NOTE)
            ]


def _figure(spec: Mapping[str, Any], figure_id: str, explorers: dict[str, str]) -> str:
    """Return a plotly spec as HTML: data block, place to draw, caption and table.

    A figure with frames also gets the controls of its explorer in front, once per explorer:
    `explorers` holds their ids by title.
    """
    from markupsafe import Markup

    meta = meta_of(spec)
    controls, group = None, ""
    if spec.get("frames") and "explorer" in meta:
        group = explorers.setdefault(meta["explorer"], f"{figure_id}-states")
        if group == f"{figure_id}-states":
            controls = _controls(meta, spec["layout"]["sliders"][0], group)
        spec = without_slider(spec)  # which also makes it less high
    layout = spec.get("layout") or {}
    title = plain((layout.get("title") or {}).get("text") or "Figure")
    return (
        _templates()
        .get_template("figure.html.j2")
        .render(
            id=figure_id,
            controls=controls,
            group=group,
            title=title,
            alt=meta.get("alt", ""),
            caption=meta.get("caption", title),
            height=int(layout.get("height") or 450),
            data=Markup(json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")),
            tables=_tables(title, spec),
        )
    )


def _controls(meta: Mapping[str, Any], slider: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return an explorer's sliders, one for each level of the paths to its states."""
    paths = meta.get("paths") or [[step["label"]] for step in slider["steps"]]
    paths = [[plain(text) for text in path] for path in paths]
    first = paths[meta["start"]]
    sliders = []
    for level, name in enumerate(meta.get("levels") or [meta["explorer"]]):
        below = [path[level] for path in paths if path[:level] == first[:level]]
        texts = list(dict.fromkeys(below))
        sliders.append(
            {
                "id": f"{group}-slider-{level}",
                "name": name,
                "now": first[level],
                "value": texts.index(first[level]),
                "last": len(texts) - 1,
            }
        )
    return {
        "title": meta["explorer"],
        "start": meta["start"],
        "paths": json.dumps(paths),
        "sliders": sliders,
    }


def _tables(title: str, spec: Mapping[str, Any]) -> dict[Any, list[str]]:
    """Return the table twins of a figure, each with the names of the frames it belongs to."""
    if not spec.get("frames"):
        return {html_table(title, figure_table(spec), MAX_TABLE_ROWS): []}
    frames: dict[Any, list[str]] = {}
    for number, frame in enumerate(spec["frames"]):
        shown = at_frame(spec, number)
        name = plain(shown["layout"]["title"]["text"])
        table = html_table(name, figure_table(shown), MAX_TABLE_ROWS)
        frames.setdefault(table, []).append(frame["name"])
    return frames


def clean_html(markup: Any) -> str:
    """Keep allowlisted tags of an HTML fragment, escape all others, drop pandas' style block.

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
    """Return nbconvert's Markdown renderer with headings two levels down (the page has its own
    first and second) and formulas as marked code."""
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
    """Turn marked TeX into MathML, which browsers draw without a script.

    Runs on cleaned HTML. latex2mathml does not escape what it copies, so the TeX is given to it
    without angle brackets and its result can hold no markup of the author's.

    Args:
        body: HTML in which a formula is code of the class formula-block or formula-inline.
    """
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        tex = html.unescape(match[2]).replace("<", r"\lt ").replace(">", r"\gt ")
        try:
            return convert(tex, display=match[1])
        except Exception:  # each malformed formula raises another type; its source can be read
            return match[0]

    return re.sub(r'<code class="formula-(block|inline)">([^<]*)</code>', formula, body)
