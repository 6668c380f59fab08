"""One offline HTML page per run, and single figures as image files.

The page is made from the executed notebooks with nbconvert. Everything in it that came from data,
models or parameters is text: figures carry plotly's JSON in a data block, HTML outputs and
Markdown pass through an allowlist (nbconvert's own `sanitize_html` has no headings, paragraphs or
table heads on its list and would escape those), and a content security policy lets exactly two
scripts run, plotly.js and the one that draws the figures, and nothing leave the page.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import html
import itertools
import json
import logging
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from finemem_lib.util.files import written_beside

if TYPE_CHECKING:
    import plotly.graph_objects as go


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

_DRAW = """
const waiting = [...document.querySelectorAll("figure.plotly")];
const instant = {mode: "immediate", transition: {duration: 0}, frame: {duration: 0, redraw: true}};
function draw() {  // one after the other, so that the page answers while it fills
  const figure = waiting.shift();
  if (!figure) { document.body.dataset.drawn = "all"; return; }
  const spec = figure.spec = JSON.parse(figure.querySelector("script").textContent);
  spec.config = {...spec.config, responsive: true, displayModeBar: false};
  const plot = figure.querySelector(".plot");
  const own = structuredClone(spec);  // plotly writes into what it is given
  Plotly.newPlot(plot, own).then(() => {
    if (!spec.frames) return;
    const group = document.getElementById(figure.dataset.explorer);
    plot.on("plotly_click", event => {
      const {curveNumber, pointNumber} = event.points[0];
      const values = meta(figure, group.at).clicks?.[curveNumber];
      const [place, row] = [pointNumber].flat().reverse();
      const to = (Array.isArray(values?.[row]) ? values[row] : values)?.[place];
      if (to != null) setTimeout(() => move(group, to));
    });
    return show(figure, group.at);
  }).finally(() => setTimeout(draw));
}
function frame(figure, at) { return figure.spec.frames[figure.spec.layout.meta.states[at]]; }
function meta(figure, at) {
  return {...figure.spec.layout.meta, ...frame(figure, at).layout?.meta};
}
function show(figure, at) {  // drawing, caption, description and table of one state
  const plot = figure.querySelector(".plot");
  const {caption, alt} = meta(figure, at);
  const {name, layout} = frame(figure, at);
  figure.querySelector("figcaption").textContent = caption;
  plot.setAttribute("aria-label", `${plot.dataset.title}. ${alt}`);
  const tables = [...figure.querySelectorAll("[data-states]")];
  for (const table of tables) table.hidden = !table.dataset.states.split(" ").includes(name);
  plot.style.height = `${layout?.height ?? figure.spec.layout.height}px`;
  return Plotly.animate(plot, [name], instant);
}
function texts(group, level) {  // what a slider goes through: what there is below those before it
  const now = group.paths[group.at];
  return [...new Set(group.paths.filter(path => now.slice(0, level).every(
    (text, above) => path[above] === text)).map(path => path[level]))];
}
function nearest(group, wanted) {  // the state that keeps what it can of a path
  let left = group.paths.map((_, state) => state);
  wanted.forEach((text, level) => {
    const kept = left.filter(state => group.paths[state][level] === text);
    const first = group.paths[left[0]][level];
    left = kept.length ? kept : left.filter(state => group.paths[state][level] === first);
  });
  return left[0];
}
function turn(group, level, place) {
  const there = texts(group, level);
  const wanted = [...group.paths[group.at]];
  wanted[level] = there[Math.max(0, Math.min(place, there.length - 1))];
  move(group, nearest(group, wanted));
}
function move(group, at) {
  group.at = at;
  group.querySelectorAll("input").forEach((slider, level) => {
    const there = texts(group, level), now = group.paths[at][level];
    slider.max = there.length - 1;
    slider.value = there.indexOf(now);
    slider.setAttribute("aria-valuetext", now);
    group.querySelectorAll("output")[level].textContent = now;
  });
  for (const figure of document.querySelectorAll("figure.plotly"))
    if (figure.dataset.explorer === group.id && figure.spec) show(figure, at);
}
for (const group of document.querySelectorAll(".explorer")) {
  group.at = Number(group.dataset.start);
  group.paths = JSON.parse(group.dataset.paths);
  group.querySelectorAll("input").forEach((slider, level) => {
    slider.addEventListener("input", () => turn(group, level, Number(slider.value)));
    for (const button of slider.parentElement.querySelectorAll("button"))
      button.addEventListener("click", () => turn(
        group, level, Number(slider.value) + Number(button.dataset.by)));
  });
}
draw();
"""

_CELLS = """
{%- extends 'basic/index.html.j2' -%}
{% block in_prompt %}{% endblock %}
{% block empty_in_prompt %}{% endblock %}
{% block output_area_prompt %}{% endblock %}
{% block data_html %}<div class="scroll" tabindex="0" role="region" aria-label="output">
{{ output.data['text/html'] | clean_html }}</div>{% endblock %}
{% block data_other %}{{ output.data | figure }}{% endblock %}
"""

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; base-uri 'none';
 form-action 'none'; img-src data:; style-src 'unsafe-inline'; script-src {{ script_hashes }}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Run {{ run.run_id }}: {{ run.status }} · Fine-Mem workbench</title>
<style>
{{ pygments | safe }}
:root { color-scheme: light; }
body { font: 1rem/1.55 system-ui, sans-serif; color: #222; background: white; margin: 0 auto;
  max-width: 60rem; padding: 0 1rem 4rem; overflow-wrap: anywhere; }
h1, h2, h3, h4 { line-height: 1.25; margin-top: 2rem; }
h2 { border-top: 2px solid #ccc; padding-top: 1.5rem; }
a { color: #005a9c; }
a:focus-visible, summary:focus-visible, [tabindex]:focus-visible { outline: 3px solid #0072b2; }
.skip { position: absolute; left: -100rem; } .skip:focus { position: static; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; margin: 1rem 0; overflow-wrap: normal; }
caption { text-align: left; font-weight: bold; }
th, td { border-bottom: 1px solid #ddd; padding: 0.25rem 0.75rem 0.25rem 0; text-align: left;
  vertical-align: top; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: 0.85rem; margin: 0.5rem 0; }
.input pre { background: #f5f5f5; border-left: 3px solid #bbb; padding: 0.5rem 0.75rem; }
.output_stderr pre, .output_error pre, pre.error { background: #fff3e0; padding: 0.5rem; }
figure { margin: 1rem 0; } figure .plot { min-width: 36rem; }
figcaption { font-size: 0.95rem; color: #333; }
{{ token_css | safe }}
.output_area { display: contents; }  /* so that a slider stays in sight of all its figures */
.explorer { position: sticky; top: 0; z-index: 10; background: white; padding: 0.5rem 0;
  border-bottom: 2px solid #ccc; }
.explorer input { width: 60%; min-width: 12rem; vertical-align: middle; }
.explorer output { display: block; }
math { font-size: 1.1em; line-height: normal; } math[display="block"] { margin: 1rem 0; }
@media print { nav, .skip { display: none; } h2 { break-before: page; } }
</style>
</head>
<body>
<a class="skip" href="#main">Skip to the content</a>
<header>
<h1>Run {{ run.run_id }}</h1>
<p>Fine-Mem workbench, profile <b>{{ run.profile }}</b>, seed <b>{{ run.seed }}</b>. Status:
<b>{{ run.status }}</b>. Started {{ run.started }}, ended {{ run.ended or "not yet" }}.</p>
{% if run.error %}<pre class="error">{{ run.error }}</pre>{% endif %}
</header>
<nav aria-label="Contents"><ul>
<li><a href="#results">Results</a></li>
{% for notebook in notebooks %}
<li><a href="#{{ notebook.anchor }}">{{ notebook.name }}</a>: {{ notebook.status }}</li>
{% endfor %}
<li><a href="#provenance">Parameters and provenance</a></li>
</ul></nav>
<main id="main">
<h2 id="results">Results</h2>
{{ table("Notebooks", notebook_rows) }}
{{ table("Metrics", metric_rows) }}
{% for notebook in notebooks %}
<section aria-labelledby="{{ notebook.anchor }}">
<h2 id="{{ notebook.anchor }}">{{ notebook.name }}</h2>
{% if notebook.error %}<pre class="error">{{ notebook.error }}</pre>{% endif %}
{% if notebook.body is none %}<p>This notebook left no executed copy in the run folder.</p>
{% else %}{{ notebook.body | safe }}{% endif %}
</section>
{% endfor %}
<h2 id="provenance">Parameters and provenance</h2>
{{ table("Parameters", parameter_rows) }}
{{ table("Versions", version_rows) }}
</main>
{% for script in scripts %}<script>{{ script | safe }}</script>
{% endfor %}
</body>
</html>
"""


def build_report(run_dir: Path, output: Path) -> Path:
    """Write the report of a run to `output` and return that path.

    Reads ``manifest.json``, ``metrics.json`` where there is one, and the executed notebook
    ``<name>.ipynb`` of every notebook the manifest lists, anywhere in the run folder. A run that
    failed or is still running gets a report of what there is. The file appears whole or not at
    all, opens from disk and asks the network for nothing.

    Raises:
        ValueError: the manifest is missing or not readable.
    """
    import jinja2
    from pygments.formatters import HtmlFormatter

    run = _read_json(run_dir / "manifest.json")
    metrics = _read_json(run_dir / "metrics.json") if (run_dir / "metrics.json").exists() else {}
    listed = run.get("notebooks", [])
    links = {f"{entry['name']}.ipynb": f"#{_anchor(entry['name'])}" for entry in listed}
    notebooks = [
        entry
        | {"anchor": _anchor(entry["name"]), "body": _notebook_body(run_dir, entry["name"], links)}
        for entry in listed
    ]
    scripts = [_plotlyjs(), _DRAW]
    environment = jinja2.Environment(autoescape=True)
    environment.globals |= {"table": html_table, "token_css": TOKEN_CSS}
    page = environment.from_string(_PAGE).render(
        run=run,
        notebooks=notebooks,
        scripts=scripts,
        script_hashes=jinja2.utils.markupsafe.Markup(" ".join(map(_hash, scripts))),
        # of pygments' styles one whose colours all have a contrast of 4.5 on the grey of cells
        pygments=HtmlFormatter(style="xcode").get_style_defs(".highlight"),
        notebook_rows=[
            {
                "notebook": entry["name"],
                "status": entry.get("status"),
                "seconds": cell_text(entry.get("seconds")),
                "reads": cell_text(entry.get("reads")),
                "writes": cell_text(entry.get("writes")),
            }
            for entry in listed
        ],
        metric_rows=[
            {"notebook": name, "metric": metric, "value": cell_text(value)}
            for name, values in metrics.items()
            for metric, value in values.items()
        ],
        parameter_rows=[
            {"notebook": entry["name"], "parameter": name, "value": cell_text(value)}
            for entry in listed
            for name, value in (entry.get("parameters") or {}).items()
        ],
        version_rows=[
            {"what": name, "version": cell_text(value)}
            for name, value in [
                *(run.get("git") or {}).items(),
                *(run.get("versions") or {}).items(),
            ]
        ],
    )
    return _write(output, page.encode("utf-8", "replace"))


def save_figures(figures: Mapping[Path, go.Figure], width: int = 900) -> list[Path]:
    """Write figures as ``<stem>.svg`` (small, text stays text), and return the paths.

    Where kaleido or a browser for it is missing, a small HTML page is written instead of each, with
    plotly.js beside it (4.8 MB, once per folder), and the reason is given as a warning.
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
    """Return the SVG of every figure, drawn one after the other by one browser, or why there is
    none."""
    specs = [figure.to_dict() for figure in figures]
    for spec in specs:
        for number, trace in enumerate(spec["data"]):
            trace["uid"] = f"{number:06x}"  # else random, and part of the ids in an SVG
    images: list[bytes | Exception] = []

    async def draw() -> None:
        import kaleido

        logging.getLogger("choreographer.channels.pipe").addFilter(_is_no_farewell)
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


def _is_no_farewell(record: logging.LogRecord) -> bool:
    """Say no to one traceback: kaleido's helper says "{bye}" when its browser ends, and where that
    arrives together with the last answer it is read, and reported, as broken JSON."""
    cause = record.exc_info and getattr(record.exc_info[1], "__cause__", None)
    return getattr(cause, "doc", None) != "{bye}\n"


def _fixed_ids(image: bytes) -> bytes:
    """Replace the random id that plotly puts into every SVG, so that equal figures are equal."""
    found = re.search(rb'id="defs-([0-9a-f]{6})"', image)
    return image.replace(found[1], b"figure") if found else image


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text("utf-8"))
        if isinstance(found, dict):
            return found
        reason = f"it holds a {type(found).__name__}, expected an object"
    except (OSError, ValueError) as error:
        reason = str(error)
    raise ValueError(
        f"{path.name} of run {path.parent.name} is not readable ({reason}); give the folder of a "
        "run, as `finemem list` shows it"
    )


def _write(path: Path, content: bytes) -> Path:
    with written_beside(path) as beside:
        beside.write_bytes(content)
    return path


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _plotlyjs() -> str:
    from plotly.offline import get_plotlyjs

    return get_plotlyjs()


def _anchor(name: str) -> str:
    return "nb-" + re.sub(r"\W+", "-", name)


def _notebook_body(run_dir: Path, name: str, links: Mapping[str, str]) -> str | None:
    """Return the cells of an executed notebook as HTML, `None` when there is no such file."""
    import nbformat
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
        raw_template=_CELLS,
        sanitize_html=True,
        config=Config(
            {
                "NbConvertBase": {
                    "display_data_priority": [
                        PLOTLY_MIME,
                        "text/html",
                        "text/markdown",
                        "image/svg+xml",
                        "image/png",
                        "image/jpeg",
                        "text/plain",
                    ]
                }
            }
        ),
        filters={
            "clean_html": _clean,
            "markdown2html": markdown.render,
            "figure": lambda data: _figure(
                data[PLOTLY_MIME], f"{_anchor(name)}-{next(numbers)}", explorers
            ),
        },
    )
    body, _ = exporter.from_notebook_node(notebook)
    body = _formulas(body)
    for file, anchor in links.items():
        body = body.replace(f'href="{file}"', f'href="{anchor}"')
    return body


def _drop_notes(notebook: Any) -> None:
    """Remove what `plots.show` puts below a figure: the page has the same inside the figure."""
    for cell in notebook.cells:
        if "outputs" in cell:
            cell.outputs = [
                output
                for output in cell.outputs
                if not output.get("data", {}).get("text/html", "").startswith(NOTE)
            ]


def _figure(spec: Mapping[str, Any], figure_id: str, explorers: dict[str, str]) -> str:
    """Return a plotly spec as a figure: data block, place to draw, caption and table.

    The role "img" sits on the drawing only: an image has no readable content, so on the whole
    figure it would hide caption and table from screen readers. A figure with frames also gets the
    controls of its explorer in front, once per explorer: `explorers` holds their ids by title.
    """
    meta = meta_of(spec)
    controls = group = ""
    if spec.get("frames") and "explorer" in meta:
        group = explorers.setdefault(meta["explorer"], f"{figure_id}-states")
        if group == f"{figure_id}-states":
            controls = _controls(meta, spec["layout"]["sliders"][0], group)
        spec = without_slider(spec)
    title = plain(((spec.get("layout") or {}).get("title") or {}).get("text") or "Figure")
    data = json.dumps(spec, separators=(",", ":")).replace("<", "\\u003c")
    alt = html.escape(f"{title}. {meta.get('alt', '')}")
    caption = html.escape(str(meta.get("caption", title)))
    height = int((spec.get("layout") or {}).get("height") or 450)
    return (
        f'{controls}<figure class="plotly" id="{figure_id}" data-explorer="{group}"><div '
        f'class="scroll" tabindex="0" role="region" aria-label="{html.escape(title)}"><div '
        f'class="plot" role="img" aria-label="{alt}" data-title="{html.escape(title)}" '
        f'style="height:{height}px"></div></div><script type="application/json">{data}</script>'
        f"<figcaption>{caption}</figcaption><details><summary>Show as table</summary>"
        f"{_tables(title, spec)}</details></figure>"
    )


def _controls(meta: Mapping[str, Any], slider: Mapping[str, Any], group: str) -> str:
    """Return the sliders of an explorer, one for each level of the paths to its states; plotly's
    own cannot be reached by keyboard."""
    paths = meta.get("paths") or [[step["label"]] for step in slider["steps"]]
    paths = [[plain(text) for text in path] for path in paths]
    title, start = html.escape(meta["explorer"]), meta["start"]
    rows = []
    for level, name in enumerate(meta.get("levels") or [meta["explorer"]]):
        now, name = html.escape(paths[start][level]), html.escape(name)
        own = f"{group}-slider-{level}"
        there = list(
            dict.fromkeys(path[level] for path in paths if path[:level] == paths[start][:level])
        )
        rows.append(
            f'<div><label for="{own}">{name}</label> <button type="button" data-by="-1" '
            f'aria-label="{name}: previous">◀</button> <input type="range" id="{own}" min="0" '
            f'max="{len(there) - 1}" value="{there.index(paths[start][level])}" '
            f'aria-valuetext="{now}"> <button type="button" data-by="1" '
            f'aria-label="{name}: next">▶</button><output for="{own}">{now}</output></div>'
        )
    return (
        f'<div class="explorer" id="{group}" role="group" aria-label="{title}" '
        f'data-start="{start}" data-paths="{html.escape(json.dumps(paths))}">'
        f"{''.join(rows)}</div>"
    )


def _tables(title: str, spec: Mapping[str, Any]) -> str:
    """Return the table twin of a figure, one for every frame in which it differs."""
    if not spec.get("frames"):
        return str(html_table(title, figure_table(spec), MAX_TABLE_ROWS))
    frames: dict[str, list[str]] = {}
    for number, frame in enumerate(spec["frames"]):
        shown = at_frame(spec, number)
        name = plain(shown["layout"]["title"]["text"])
        table = str(html_table(name, figure_table(shown), MAX_TABLE_ROWS))
        frames.setdefault(table, []).append(frame["name"])
    return "".join(
        f'<div data-states="{" ".join(names)}"{"" if "0" in names else " hidden"}>{table}</div>'
        for table, names in frames.items()
    )


def _clean(markup: Any) -> str:
    """Keep allowlisted tags of an HTML fragment, escape all others, drop pandas' style block."""
    import bleach
    import bs4

    soup = bs4.BeautifulSoup(str(markup), "html.parser")
    for style in soup("style"):
        style.decompose()
    return bleach.clean(str(soup), tags=_TAGS, attributes=_ATTRIBUTES)


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


def _formulas(body: str) -> str:
    """Turn marked TeX into MathML, which browsers draw without a script.

    Runs on cleaned HTML. latex2mathml does not escape what it copies, so the TeX is given to it
    without angle brackets and its result can hold no markup of the author's.
    """
    from latex2mathml.converter import convert

    def formula(match: re.Match[str]) -> str:
        tex = html.unescape(match[2]).replace("<", r"\lt ").replace(">", r"\gt ")
        try:
            return convert(tex, display=match[1])
        except Exception:  # each malformed formula raises another type; its source can be read
            return match[0]

    return re.sub(r'<code class="formula-(block|inline)">([^<]*)</code>', formula, body)
