"""The widget form of an explorer: controls, figures, and errors that are shown."""

from __future__ import annotations

import functools
import html
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any

from finemem_lib.explorers.explorer import Control, Explorer, State
from finemem_lib.figures import frames, style
from finemem_lib.figures.notes import html_table

if TYPE_CHECKING:
    import plotly.graph_objects as go


MAX_TABLE_ROWS = 200
"""Rows of a table twin that a live explorer shows."""


class Live:
    """The live form of an explorer: widgets, and figures that follow them.

    Attributes:
        explorer: the explorer.
        box: the widget to display.
        controls: the widget of each control by name.
        state: the value of each control by name.
        views: the figure shown in each view by name.
        error: the text of the last error, empty when there is none.
    """

    def __init__(self, explorer: Explorer) -> None:
        import ipywidgets as widgets

        self.explorer = explorer
        self.state = explorer.settle({})
        self.error = ""
        self.views: dict[str, go.Figure] = {}
        self._boxes: dict[str, tuple[Any, ...]] = {}  # drawing, caption, button, table
        self._buttons: dict[str, list[Any]] = {}  # next to a menu
        self._settling = False
        self._alert = widgets.HTML()
        self._figures = widgets.VBox()
        self.controls = {control.name: self._widget(control) for control in explorer.controls}
        self.box = widgets.VBox(
            [
                widgets.HTML(f"<b>{html.escape(explorer.title)}</b>"),
                widgets.HBox(
                    [self._reachable(control) for control in explorer.controls],
                    layout={"flex_flow": "row wrap"},
                ),
                self._alert,
                self._figures,
            ]
        )
        self._guarded(self._draw)

    def set(self, name: str, value: Any) -> None:
        """Set a control as its widget does; a value that is no option is ignored.

        Args:
            name: name of the control.
            value: its new value.
        """
        self._guarded(lambda: self._change({name: value}))

    def _widget(self, control: Control) -> Any:
        import ipywidgets as widgets

        kind = widgets.SelectionSlider if control.kind == "slider" else widgets.Dropdown
        more = {"continuous_update": False} if control.kind == "slider" else {}
        widget = kind(
            options=control.choices(self.state),
            value=self.state[control.name],
            description=control.label,
            style={"description_width": "initial"},
            layout={"width": "24rem"},
            **more,
        )
        widget.observe(
            lambda change: None if self._settling else self.set(control.name, change["new"]),
            names="value",
        )
        return widget

    def _reachable(self, control: Control) -> Any:
        """Return the widget of a control; a menu with buttons next to it, because JupyterLab keeps
        the arrow keys that would move it."""
        import ipywidgets as widgets

        widget = self.controls[control.name]
        if control.kind == "slider":
            return widget
        buttons = self._buttons[control.name] = []
        for by, sign, name in ((-1, "◀", "previous"), (1, "▶", "next")):
            button = widgets.Button(
                description=sign, tooltip=f"{control.label}: {name}", layout={"width": "2.5rem"}
            )
            button.on_click(lambda _, by=by: self._guarded(lambda: self._step(control.name, by)))
            buttons.append(button)
        return widgets.HBox([widget, *buttons])

    def _step(self, name: str, by: int) -> None:
        """Move a control by one option, as far as there are any."""
        values = [value for _, value in self.controls[name].options]
        place = values.index(self.state[name]) + by
        self._change({name: values[max(0, min(place, len(values) - 1))]})

    def _guarded(self, callback: Callable[[], None]) -> None:
        """Run a callback and show its error, since the front end would swallow it."""
        try:
            callback()
            self.error = ""
            self._alert.value = ""
        except Exception as error:  # the reader is shown whatever a builder raises
            self.error = f"{type(error).__name__}: {error}"
            trace = html.escape(traceback.format_exc())
            self._alert.value = (
                '<div role="alert" style="border:2px solid #D55E00; padding:0.5rem"><b>This change '
                f"failed; the figures show the state before it.</b><br>{html.escape(self.error)}"
                f"<details><summary>Traceback</summary><pre>{trace}</pre></details></div>"
            )

    def _change(self, wanted: State) -> None:
        """Settle all controls on a change, let their widgets follow, and draw."""
        self.state = self.explorer.settle(self.state | dict(wanted))
        self._settling = True
        try:
            for control in self.explorer.controls:
                widget = self.controls[control.name]
                options = tuple(control.choices(self.state))
                if callable(control.options) and tuple(widget.options) != options:
                    widget.options = options
                if widget.value != self.state[control.name]:
                    widget.value = self.state[control.name]
                for part in (widget, *self._buttons.get(control.name, ())):
                    part.disabled = control.idle(self.state)
        finally:
            self._settling = False
        self._draw()

    def _draw(self) -> None:
        figures = dict(self.explorer.build(**self.state))
        if not self._boxes:
            self._figures.children = [self._box(name) for name in figures]
        self.views = figures
        for name, figure in figures.items():
            self._boxes[name][0].spec = figure.to_plotly_json()
            self._note(name)

    def _box(self, name: str) -> Any:
        import ipywidgets as widgets

        drawn = drawing({}, lambda trace, point: self.click(name, trace, [point]))
        button = widgets.ToggleButton(description="Show as table")
        button.observe(lambda _: self._guarded(lambda: self._note(name)), names="value")
        self._boxes[name] = drawn, widgets.HTML(), button, widgets.HTML()
        return widgets.VBox(self._boxes[name])

    def _note(self, name: str) -> None:
        """Write the caption of a figure, and its table where the reader asked for it."""
        _, caption, button, table = self._boxes[name]
        layout = self.views[name].layout
        caption.value = f"<p>{html.escape(layout.meta['caption'])}</p>"
        table.value = (
            str(
                html_table(
                    style.plain(layout.title.text),
                    frames.figure_table(self.views[name]),
                    MAX_TABLE_ROWS,
                )
            )
            if button.value
            else ""
        )

    def click(self, view: str, trace: int, points: Sequence[Any]) -> None:
        """Set the control that a click on points of a view sets.

        Args:
            view: name of the view.
            trace: number of the trace.
            points: numbers of the points; of a heatmap the row and column of each.
        """
        clicks = self.views[view].layout.meta.get("clicks") or {"points": {}}
        values = clicks["points"].get(str(trace), ())
        for point in points:
            *row, place = point if isinstance(point, list | tuple) else [point]
            of_row = values[row[0]] if row and values and isinstance(values[0], list) else values
            if place < len(of_row) and of_row[place] is not None:
                self.set(clicks["control"], of_row[place])


def drawing(spec: Mapping[str, Any], clicked: Callable[[int, Any], None] | None = None) -> Any:
    """Return a widget that draws a figure, and draws again when its `spec` is set.

    Plotly's FigureWidget brings plotly.js with every figure; a busy or slow machine does not load
    several in the two seconds that anywidget gives each; such a figure then stays as it is, or
    empty. This widget loads plotly.js once per page, and its state is always the whole figure.

    Args:
        spec: the figure as plotly's JSON.
        clicked: called with the number of the trace and the point of each click.
    """
    return _drawing_class()(
        spec=dict(spec),
        config=style.CONFIG | {"responsive": True},
        clicked=clicked or (lambda trace, point: None),
    )


@functools.cache
def _drawing_class() -> type:
    import anywidget
    import traitlets
    from plotly.offline import get_plotlyjs

    class Drawing(anywidget.AnyWidget):
        _esm = (resources.files(__package__) / "static" / "drawing.js").read_text("utf-8")
        spec = traitlets.Dict().tag(sync=True)
        config = traitlets.Dict().tag(sync=True)
        clicked = traitlets.Callable()

        def __init__(self, **traits: Any) -> None:
            super().__init__(**traits)
            self.on_msg(self._received)

        def _received(self, _: Any, message: Any, __: Any) -> None:
            if message == "plotly.js":
                self.send("plotly.js", [get_plotlyjs().encode()])
            else:
                self.clicked(message["trace"], message["point"])

    return Drawing
