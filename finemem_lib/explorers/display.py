"""Show an explorer: widgets where a kernel runs, a figure with a slider elsewhere."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection

from finemem_lib.explorers.explorer import Explorer
from finemem_lib.explorers.live import Live
from finemem_lib.figures.display import display_bundle, show as show_figure


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

    Args:
        explorer: the explorer.
        frames: names of the controls that have frames in the static form, of those with `static`
            (`None`: all of them); each frame adds some kB to a notebook.
    """
    if frames is not None:
        explorer = dataclasses.replace(
            explorer,
            controls=tuple(
                control if control.name in frames else dataclasses.replace(control, static=False)
                for control in explorer.controls
            ),
        )
    if is_live():
        display_bundle(Live(explorer).box, raw=False)
    else:
        for figure in explorer.static_figures():
            show_figure(figure)
