"""Captions and tables below a figure, as escaped HTML."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from typing import Any

from finemem_lib.figures.frames import figure_table
from finemem_lib.figures.style import plain

MAX_TABLE_ROWS = 200
"""Rows of a figure's table twin that the page shows; it says how many it leaves out."""

TOKEN_CSS = """
.finemem-tokens pre { white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.9; }
.finemem-tokens pre span { border: 1px solid #d0d0d0; border-radius: 3px; padding: 1px;
  color: #222222; background: white; unicode-bidi: isolate; text-decoration: none; }
.finemem-tokens pre span.minus { text-decoration: underline; }
.finemem-tokens pre span.level-n1 { background: #fee0b6; }
.finemem-tokens pre span.level-n2 { background: #fdb863; }
.finemem-tokens pre span.level-n3 { background: #f1a340; }
.finemem-tokens pre span.level-n4 { background: #b35806; color: white; }
.finemem-tokens pre span.level-p1 { background: #d8daeb; }
.finemem-tokens pre span.level-p2 { background: #b2abd2; }
.finemem-tokens pre span.level-p3 { background: #998ec3; }
.finemem-tokens pre span.level-p4 { background: #542788; color: white; }
"""
"""The style of completions with coloured tokens (`plots_training.completion_view`): it belongs to
the page, because style blocks are dropped from what notebooks show."""


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_shown, value))
    return "–" if value is None else str(value)


def html_table(name: str, rows: Sequence[Mapping[str, Any]], limit: int | None = None) -> Any:
    """Return rows as an HTML table with everything escaped, or a sentence when there are none."""
    from markupsafe import Markup, escape

    if not rows:
        return Markup(f"<p>{escape(name)}: none.</p>")
    columns = list(dict.fromkeys(key for row in rows for key in row))
    head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
    body = "".join(
        "<tr>"
        + "".join(f"<td>{escape(_shown(row.get(column, '')))}</td>" for column in columns)
        + "</tr>"
        for row in rows[:limit]
    )
    more = (
        ""
        if limit is None or len(rows) <= limit
        else (f"<p>{len(rows) - limit} of {len(rows)} rows are left out here.</p>")
    )
    return Markup(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(name)}"><table>'
        f"<caption>{escape(name)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>"
        f"</table></div>{more}"
    )


_NOTE = '<figure class="finemem-note"'


def note_below(spec: Mapping[str, Any]) -> str:
    """Return what a notebook shows below a figure, as HTML that front ends keep: its caption, and,
    closed, its alt text and its data as a table.

    JupyterLab drops roles and labels from notebooks that are not trusted; texts, the elements of a
    figure and those that open stay. A figure with frames has the table of the state shown first,
    since nothing in a notebook follows its slider, and says so.
    """
    meta = _meta(spec)
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
        f'{_NOTE} role="figure" aria-label="{alt}">'
        f"<figcaption>{html.escape(str(meta['caption']))}</figcaption><details><summary>Show "
        f"as table</summary><p>{alt}</p>{first}{table}</details></figure>"
    )


def _meta(spec: Mapping[str, Any]) -> Mapping[str, Any]:
    return (spec.get("layout") or {}).get("meta") or {}
