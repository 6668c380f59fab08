"""Show a figure with its caption and table in a notebook."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go

from finemem_lib.figures.notes import note_below
from finemem_lib.figures.style import CONFIG, PLOTLY_MIME, plain


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook, and below it its caption, alt text and table.

    The stored output (about 10 kB) is the same on every run. A front end that does not render
    plotly's JSON shows the alt text. The description is text below the figure, because JupyterLab's
    plotly renderer accepts no ARIA role or label.

    Args:
        figure: a figure of this package, with a title, and with `caption` and `alt` in
            ``layout.meta``.
    """
    for bundle in outputs(figure):
        display_bundle(bundle)


def outputs(figure: go.Figure) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two outputs of `show` by MIME type: the figure, and the description below it.

    Args:
        figure: as for `show`.
    """
    spec = json.loads(figure.to_json(), parse_float=page_number)
    return (
        figure_bundle(spec),
        {"text/html": note_below(spec), "text/plain": spec["layout"]["meta"]["caption"]},
    )


def page_number(text: str) -> int | float:
    """Parse a JSON number such that JupyterLab writes it back unchanged.

    JupyterLab saves 1.0 as 1. With such numbers, saving a notebook does not change the text of its
    figures.

    Args:
        text: the number in JSON.

    >>> [page_number(text) for text in ("1.0", "-0.0", "0.5", "1e-7", "1e300")]
    [1, 0, 0.5, 1e-07, 1e+300]
    """
    value = float(text)
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


def figure_bundle(spec: dict[str, Any]) -> dict[str, Any]:
    """Return the output of a figure by MIME type: its JSON and its alt text.

    Args:
        spec: the figure as plotly's JSON.
    """
    title, alt = plain(spec["layout"]["title"]["text"]), spec["layout"]["meta"]["alt"]
    return {PLOTLY_MIME: spec | {"config": CONFIG}, "text/plain": f"[figure] {title}: {alt}"}


def display_bundle(bundle: Any, **form: Any) -> Any:
    """Display one output in a notebook and return IPython's display handle, if there is one.

    Args:
        bundle: representations by MIME type, or an object to display if ``raw=False``.
        form: further arguments of IPython's `display`.
    """
    from IPython.display import display

    return display(bundle, **{"raw": True, **form})  # type: ignore[no-untyped-call]  # IPython has no types
