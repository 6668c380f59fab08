"""Show an explorer: a widget where a kernel runs, figures with a slider elsewhere."""

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
"""Metadata of outputs that belong to the widget, not to the notebook (`util.notebook_filter`)."""

SECONDS = 10
"""Time after which a live explorer begins no further frame of the figures that it leaves behind."""

_kept: dict[tuple[str, str], dict[str, Any]] = {}  # what readers left, by title and first state


def is_live() -> bool:
    """Return whether `show` makes widgets.

    A kernel cannot see who displays its output, so this follows the environment variable
    FINEMEM_EXPLORERS, "live" or "static", which the command line and the tests of notebooks set.
    Without it, widgets are made in kernels that a Jupyter server or VS Code started.

    Raises:
        ValueError: FINEMEM_EXPLORERS is set to something else.
    """
    form = os.environ.get("FINEMEM_EXPLORERS")
    if form not in (None, "live", "static"):
        raise ValueError(f"FINEMEM_EXPLORERS is {form!r}, expected 'live' or 'static'; change it")
    return form == "live" if form else bool({"JPY_SESSION_NAME", "VSCODE_PID"} & {*os.environ})


def show(explorer: Explorer, frames: Collection[str] | None = None) -> None:
    """Display an explorer, live or static, each figure with its caption.

    A live one comes with the figures of the static form, which stand in the notebook where it is
    opened without its kernel; the page hides them while the widget is there. It goes on where its
    reader left the explorer of this title, if that started alike.

    Args:
        explorer: the explorer.
        frames: names of the controls that have frames in the static form, of those with `static`
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
    """Display the widget of an explorer and, for a page without it, the figures of another."""
    start = str(explorer.settle({}))
    widget = Live(explorer, _kept.setdefault((explorer.title, start), {})).widget
    note = "The controls are not shown here: run this cell to get them."
    bundles: list[dict[str, Any]] = []
    try:
        for figure in saved.static_figures(SECONDS):
            bundles += outputs(figure)
    except Exception as error:  # the widget shows what can be shown
        note += f" There are no figures without them: {type(error).__name__}: {error}"
    display_bundle({"text/html": _note(note, len(bundles)), "text/plain": note}, metadata=LIVE_ONLY)
    display_bundle(widget, raw=False)
    for bundle in bundles:
        display_bundle(bundle)


def _note(text: str, below: int) -> str:
    """Return the HTML in front of a widget: a text in its place where it is gone, and a style.

    JupyterLab says "Error displaying widget" there. Its outputs are siblings: this note, the
    widget, and the figures. A style needs no script that waits for them to come and to go, and it
    acts in trusted notebooks only, as the widget does.

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
