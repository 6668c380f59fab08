"""Common parts of the offline pages of runs: templates, plotly.js, figures with their tables.

Values from data, models or parameters are inserted as text only: plotly's JSON is in data blocks,
and a content security policy allows only plotly.js and ``report.js`` to run and no requests.
plotly.js and the JSON and tables of figures, nine tenths of the bytes, are compressed;
``report.js`` decompresses them.
"""

from __future__ import annotations

import base64
import functools
import gzip
import hashlib
import html
import importlib.resources
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from finemem_lib.cli.pictures import plotlyjs
from finemem_lib.figures.frames import at_frame, figure_table, without_slider
from finemem_lib.figures.notes import MAX_TABLE_ROWS, html_table, meta_of
from finemem_lib.figures.style import plain

if TYPE_CHECKING:
    import jinja2


KEY = "key-"
"""Prefix of the ids of the figures at the top of the page."""


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


def template_text(name: str) -> str:
    """Return the text of a file of ``templates``, not rendered.

    Args:
        name: Name of the file.
    """
    return (importlib.resources.files("finemem_lib.cli") / "templates" / name).read_text("utf-8")


def render(template: str, figures: PageFigures, **values: Any) -> bytes:
    """Return a page that works offline.

    Args:
        template: Name of a file of ``templates``; the common head and end of pages are in
            ``page.html.j2``.
        figures: The figures of the page, after `PageFigures.draw`.
        values: The other values of the template.
    """
    from markupsafe import Markup

    library, script = plotlyjs(), template_text("report.js")
    page = (
        _templates()
        .get_template(template)
        .render(
            script=Markup(script),
            script_hashes=Markup(f"{_hash(library)} {_hash(script)}"),
            packed={"plotly": _packed(library), "figures": _packed(json.dumps(figures.packed))},
            table=html_table,
            **values,
        )
    )
    return page.encode("utf-8", "replace")


def _packed(text: str) -> str:
    """Return a text compressed for a data block; equal texts give equal blocks."""
    return base64.b64encode(gzip.compress(text.encode("utf-8", "replace"), 9, mtime=0)).decode()


def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


class PageFigures:
    """The figures of a page.

    Attributes:
        packed: JSON and tables (HTML) of every figure by its id.
    """

    def __init__(self) -> None:
        self.packed: dict[str, dict[str, Any]] = {}
        self._places: dict[str, str] = {}

    def place(self, spec: Mapping[str, Any] | None) -> str | None:
        """Return the id of a figure in the page, `None` if the page does not contain it.

        Args:
            spec: plotly's JSON of the figure.
        """
        return self._places.get(_identity(spec or {}))

    def draw(self, spec: Mapping[str, Any], figure_id: str, explorers: dict[str, str]) -> str:
        """Return the HTML of a figure: containers for drawing and table, and the caption.

        For a figure that is already at the top of the page, it is a link to that. Before the first
        figure with frames of an explorer, it contains the controls of the explorer.

        Args:
            spec: plotly's JSON of the figure.
            figure_id: Its id in the page.
            explorers: The ids of the explorers by title; new ones are added.
        """
        title, place = figure_title(spec), self.place(spec)
        if place and place.startswith(KEY):
            return f'<p><a href="#{place}">Figure at the top: {html.escape(title)}</a></p>'
        self._places.setdefault(_identity(spec), figure_id)
        meta = meta_of(spec)
        controls, group = None, ""
        if spec.get("frames") and "explorer" in meta:
            group = explorers.setdefault(meta["explorer"], f"{figure_id}-states")
            if group == f"{figure_id}-states":
                controls = _controls(meta, spec["layout"]["sliders"][0], group)
            spec = without_slider(spec)  # this also reduces its height
        self.packed[figure_id] = {"spec": spec, "tables": _tables(title, spec)}
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
                height=int((spec.get("layout") or {}).get("height") or 450),
            )
        )


def figure_title(spec: Mapping[str, Any]) -> str:
    """Return the title of a figure as text.

    Args:
        spec: plotly's JSON of the figure.
    """
    return plain(((spec.get("layout") or {}).get("title") or {}).get("text") or "Figure")


def _identity(spec: Mapping[str, Any]) -> str:
    """Return a text that is equal for a saved figure and the same figure in a notebook."""
    return json.dumps({key: spec.get(key) for key in ("data", "layout")}, sort_keys=True)


def _controls(meta: Mapping[str, Any], slider: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the sliders of an explorer, one per level of the paths to its states."""
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


def _tables(title: str, spec: Mapping[str, Any]) -> str:
    """Return the tables of a figure as HTML, each with the names of its frames."""
    if not spec.get("frames"):
        return html_table(title, figure_table(spec), MAX_TABLE_ROWS)
    states: dict[str, list[str]] = {}
    for number, frame in enumerate(spec["frames"]):
        shown = at_frame(spec, number)
        name = plain(shown["layout"]["title"]["text"])
        table = html_table(name, figure_table(shown), MAX_TABLE_ROWS)
        states.setdefault(table, []).append(frame["name"])
    return "".join(
        f'<div data-states="{html.escape(" ".join(names))}"{"" if "0" in names else " hidden"}>'
        f"{table}</div>"
        for table, names in states.items()
    )
