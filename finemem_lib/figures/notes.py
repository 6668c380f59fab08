"""Captions and tables below a figure, as escaped HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

from finemem_lib.figures.frames import figure_table
from finemem_lib.figures.style import plain

MAX_TABLE_ROWS = 200
"""Maximum rows shown of a figure's table; a sentence states how many rows are omitted."""

NOTE = '<figure class="finemem-note"'
"""First characters of the HTML of `note_below`."""


def cell_text(value: Any) -> str:
    """Format a value for a table cell: four significant digits, a dash for `None`.

    Args:
        value: a number, a text, or `None`.

    >>> cell_text([0.123456, None, "a"])
    '0.1235, –, a'
    """
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(cell_text, value))
    return "–" if value is None else str(value)


def html_table(name: str, rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> Markup:
    """Return rows as an HTML table with all text escaped, or a sentence if there are none.

    Args:
        name: caption and accessible name of the table.
        rows: one mapping per row; the columns are all keys in the order in which they first occur.
        limit: maximum rows shown; a sentence states how many are omitted (`None`: no limit).
    """
    if not rows:
        return Markup(f"<p>{escape(name)}: none.</p>")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(cell_text(row.get(column, '')))}</td>" for column in columns)
        + "</tr>"
        for row in rows[:limit]
    )
    more = (
        ""
        if limit is None or len(rows) <= limit
        else f"<p>{len(rows) - limit} of {len(rows)} rows are left out here.</p>"
    )
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table>'
        f"<caption>{escape(name)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"</table></div>{more}"
    )


def note_below(spec: Mapping[str, Any]) -> str:
    """Return the note below a figure in a notebook: caption, and collapsed alt text and table.

    JupyterLab removes ARIA roles and labels from notebooks that are not trusted, but keeps text and
    the elements `figure` and `details`. The table of a figure with frames is that of the state
    shown first, because it cannot follow the slider in a notebook; the note states this.

    Args:
        spec: the figure as plotly's JSON.

    Returns:
        HTML that front ends do not strip, with all texts escaped.
    """
    meta = meta_of(spec)
    title = plain(spec["layout"]["title"]["text"])
    alt = html.escape(f"{title}. {meta['alt']}")
    first = (
        "<p>This is the figure as it is at first; its slider moves the drawing alone. The "
        "report of the run has a table for every state.</p>"
        if spec.get("frames")
        else ""
    )
    table = html_table(title, figure_table(spec), MAX_TABLE_ROWS)
    return (
        f'{NOTE} role="figure" aria-label="{alt}">'
        f"<figcaption>{html.escape(str(meta['caption']))}</figcaption><details><summary>Show "
        f"as table</summary><p>{alt}</p>{first}{table}</details></figure>"
    )


def meta_of(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return ``layout.meta`` of a figure's JSON, an empty mapping if there is none.

    Args:
        spec: a figure as plotly's JSON.
    """
    return (spec.get("layout") or {}).get("meta") or {}
