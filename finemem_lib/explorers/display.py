"""Display an explorer: a widget if a kernel runs, otherwise figures with a slider."""

from __future__ import annotations

import dataclasses
import html
import os
from collections.abc import Collection
from typing import Any

from finemem_lib.explorers.explorer import Explorer
from finemem_lib.explorers.live import Live
from finemem_lib.figures.display import display_bundle, outputs, show as show_figure

LIVE_ONLY = {"finemem": "live"}
"""Metadata of outputs that belong to the widget and are not saved (`util.notebook_filter`)."""

SECONDS = 10
"""Seconds after which a live explorer computes no further frames of its static form."""

_kept: dict[tuple[str, str], dict[str, Any]] = {}  # last states, by title and first state


def is_live() -> bool:
    """Return whether `show` displays widgets.

    A kernel does not know which front end displays its output. The environment variable
    FINEMEM_EXPLORERS, "live" or "static", decides; the command line and the tests of notebooks set
    it. Without it, widgets are displayed in kernels started by a Jupyter server or VS Code.

    Raises:
        ValueError: FINEMEM_EXPLORERS is set to something else.
    """
    form = os.environ.get("FINEMEM_EXPLORERS")
    if form not in (None, "live", "static"):
        raise ValueError(f"FINEMEM_EXPLORERS is {form!r}, expected 'live' or 'static'; change it")
    return form == "live" if form else bool({"JPY_SESSION_NAME", "VSCODE_PID"} & {*os.environ})


def show(explorer: Explorer, frames: Collection[str] | None = None) -> None:
    """Display an explorer, live or static, each figure with its caption.

    A live explorer is followed by the figures of its static form, for readers who open the notebook
    without a kernel; the page hides them while the widget exists. It resumes the last state of the
    explorer with the same title and the same first state.

    Args:
        explorer: the explorer.
        frames: names of the controls with frames in the static form, among those with `static`
            (`None`: all of them); each frame adds some kB to a notebook.
    """
    saved = explorer.without_kernel or explorer
    if frames is not None:
        saved = dataclasses.replace(
            saved,
            controls=tuple(
                control if control.name in frames else dataclasses.replace(control, static=False)
                for control in saved.controls
            ),
        )
    if is_live():
        _show_live(explorer, saved)
    else:
        for figure in saved.static_figures():
            show_figure(figure)


def _show_live(explorer: Explorer, saved: Explorer) -> None:
    """Display the widget of `explorer`, and the static figures of `saved` for pages without it."""
    start = str(explorer.settle({}))
    widget = Live(explorer, _kept.setdefault((explorer.title, start), {})).widget
    note = "The controls are not shown here: run this cell to get them."
    bundles: list[dict[str, Any]] = []
    try:
        for figure in saved.static_figures(SECONDS):
            bundles += outputs(figure)
    except Exception as error:  # the widget works without the static figures
        note += f" The figures could not be drawn: {type(error).__name__}: {error}"
    display_bundle({"text/html": _note(note, len(bundles)), "text/plain": note}, metadata=LIVE_ONLY)
    display_bundle(widget, raw=False)
    for bundle in bundles:
        display_bundle(bundle)


def _note(text: str, below: int) -> str:
    """Return the HTML before a widget: a text for pages without the widget, and a style.

    The style replaces JupyterLab's "Error displaying widget" by the text. Note, widget and figures
    are sibling outputs. Unlike a script, a style need not wait for outputs to appear or disappear.
    It is applied in trusted notebooks only, like the widget.

    Args:
        text: the text.
        below: number of outputs that are hidden while the widget is there.
    """
    child = ".jp-OutputArea-child"
    note, widget = f"{child}:has(.finemem-no-widget)", ":has(.finemem-explorer)"
    hidden = [
        f"{note} + {child}:not({widget})",
        f"{note}:has(+ {child} .finemem-explorer)",
        *(f"{note} + {widget}{f' + {child}' * number}" for number in range(1, below + 1)),
    ]
    return (
        f"<style>{', '.join(hidden)} {{ display: none; }}</style>"
        f'<p class="finemem-no-widget">{html.escape(text)}</p>'
    )
