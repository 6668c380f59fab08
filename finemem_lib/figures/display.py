"""Show a figure with its caption and table in a notebook."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go

from finemem_lib.figures.notes import note_below
from finemem_lib.figures.style import CONFIG, PLOTLY_MIME, plain


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook, and below it its caption, its description and its data as a
    table that opens.

    What is stored (about 10 kB) is the same on every run; where plotly's JSON is not rendered, the
    figure's alt text stands in. The description is text, because nothing that a notebook holds can
    label the drawing: JupyterLab's renderer of plotly takes no role or label.
    """
    from IPython.display import display

    for bundle in shown(figure):
        display(bundle, raw=True)


def shown(figure: go.Figure) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two outputs of `show`, by MIME type: the figure, and what stands below it."""
    spec = json.loads(figure.to_json())
    title, meta = plain(spec["layout"]["title"]["text"]), spec["layout"]["meta"]
    return (
        {PLOTLY_MIME: spec | {"config": CONFIG}, "text/plain": f"[figure] {title}: {meta['alt']}"},
        {"text/html": note_below(spec), "text/plain": meta["caption"]},
    )
