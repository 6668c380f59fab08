"""The live form of an explorer: a widget with controls, a figure and error messages."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any

from finemem_lib.explorers.explorer import Control, Explorer
from finemem_lib.figures import frames, style
from finemem_lib.figures.notes import html_table

if TYPE_CHECKING:
    import plotly.graph_objects as go


MAX_TABLE_ROWS = 200
"""Maximum rows of the table that a live explorer shows in place of a figure."""


@dataclass(frozen=True, slots=True)
class ShownControl:
    """The current state of a control.

    Attributes:
        options: text and value of each option.
        value: the current value.
        disabled: whether the control has no effect in this state.
    """

    options: Sequence[tuple[str, Any]]
    value: Any
    disabled: bool

    @property
    def place(self) -> int:
        """Position of the value among the options, from 0."""
        return [value for _, value in self.options].index(self.value)


class Live:
    """The live form of an explorer: a widget with the controls and one view at a time.

    The widget has its own HTML elements instead of those of ipywidgets, whose tabs and accordions
    are not accessible by keyboard, whose sliders have no label, and whose menus do not handle the
    arrow keys in JupyterLab.

    Attributes:
        explorer: the explorer.
        widget: the widget to display.
        controls: the current state of each control by name.
        state: the value of each control by name.
        views: the figure of each view by name.
        view: name of the open view.
        tabled: whether a table is shown in place of the figure.
        error: the text of the last error, empty if there is none.
    """

    def __init__(self, explorer: Explorer, kept: dict[str, Any] | None = None) -> None:
        """Create the widget.

        Args:
            explorer: the explorer.
            kept: dictionary for the state, the open view and the choice of the table; values in it
                are restored.
        """
        self._kept = {} if kept is None else kept
        self.explorer = explorer
        self.state = explorer.settle(self._kept.get("state", {}))
        self.view: str = self._kept.get("view", "")
        self.tabled: bool = self._kept.get("tabled", False)
        self.views: dict[str, go.Figure] = {}
        self.error = self._trace = ""
        self._answers = 0
        self._look()
        self.widget = drawing({}, self._received)
        self._guarded(self._draw)

    def set(self, name: str, value: Any) -> None:
        """Set a control like its widget; a value that is not an option is ignored.

        Args:
            name: name of the control.
            value: its new value.
        """
        self._guarded(lambda: self._change(name, value))

    def open(self, view: str) -> None:
        """Show a view.

        Args:
            view: name of the view.
        """
        self.view = view
        self._publish()

    def click(self, view: str, trace: int, points: Sequence[Any]) -> None:
        """Set the control that a click on points of a view sets.

        Args:
            view: name of the view.
            trace: number of the trace.
            points: numbers of the points; for a heatmap the row and column of each.
        """
        layout = style.read_only(self.views[view])["layout"]
        clicks = layout["meta"].get("clicks") or {"points": {}}
        values = clicks["points"].get(str(trace), ())
        for point in points:
            *row, place = point if isinstance(point, list | tuple) else [point]
            of_row = values[row[0]] if row and values and isinstance(values[0], list) else values
            if place < len(of_row) and of_row[place] is not None:
                self.set(clicks["control"], of_row[place])

    def _received(self, message: Mapping[str, Any]) -> None:
        """Handle a message of the widget; the answer to each is a new panel."""
        self._answers += 1
        match message:
            case {"control": name, "option": place}:
                options = self.controls[name].options
                self.set(name, options[min(place, len(options) - 1)][1])
            case {"view": view}:
                self.open(view)
            case {"table": tabled}:
                self.tabled = tabled
                self._publish()
            case {"trace": trace, "point": point}:
                self.click(self.view, trace, [point])

    def _guarded(self, callback: Callable[[], None]) -> None:
        """Run a callback and show its error, which the front end would hide."""
        try:
            callback()
            self.error = self._trace = ""
        except Exception as error:  # builders can raise any error; all are shown
            self.error = f"{type(error).__name__}: {error}"
            self._trace = traceback.format_exc()
        self._publish()

    def _change(self, name: str, value: Any) -> None:
        self.state = self.explorer.settle(self.state | {name: value})
        self._look()
        self._draw()

    def _look(self) -> None:
        self.controls = {
            control.name: ShownControl(
                control.choices(self.state), self.state[control.name], control.idle(self.state)
            )
            for control in self.explorer.controls
        }

    def _draw(self) -> None:
        self.views = dict(self.explorer.build(**self.state))
        if self.view not in self.views:
            self.view = next(iter(self.views), "")

    def _publish(self) -> None:
        """Let the widget show the state, and keep it."""
        self._kept |= {"state": self.state, "view": self.view, "tabled": self.tabled}
        figure = self.views.get(self.view)
        spec = style.read_only(figure) if figure is not None else {}
        with self.widget.hold_sync():
            if spec:
                self.widget.spec = spec
            self.widget.texts = {  # apart, since they seldom change and a long stream has many
                name: [text for text, _ in shown.options] for name, shown in self.controls.items()
            }
            self.widget.panel = {
                "title": self.explorer.title,
                "controls": [self._described(control) for control in self.explorer.controls],
                "views": [[name, name.replace("_", " ").capitalize()] for name in self.views],
                "view": self.view,
                "caption": spec["layout"]["meta"]["caption"] if spec else "",
                "tabled": self.tabled,
                "table": self._table(spec) if spec and self.tabled else "",
                "error": self.error,
                "trace": self._trace,
                "answers": self._answers,
            } | self._around()

    def _around(self) -> dict[str, Any]:
        """Return what the panel shows in addition to one explorer, in the place of its own."""
        return {}

    def _described(self, control: Control) -> dict[str, Any]:
        shown = self.controls[control.name]
        return {
            **{key: getattr(control, key) for key in ("name", "label", "kind", "rare", "play")},
            "place": shown.place,
            "idle": shown.disabled,
        }

    @staticmethod
    def _table(spec: Mapping[str, Any]) -> str:
        name = style.plain(spec["layout"]["title"]["text"])
        return str(html_table(name, frames.figure_table(spec), MAX_TABLE_ROWS))


def drawing(
    spec: Mapping[str, Any], received: Callable[[Mapping[str, Any]], None] | None = None
) -> Any:
    """Return a widget that draws a figure, and redraws it when its `spec` is set.

    Plotly's FigureWidget loads plotly.js with every figure. On a slow machine, several do not load
    within anywidget's time limit of two seconds each, and a figure stays unchanged or empty. This
    widget loads plotly.js once per page, and its state is always the whole figure.

    Args:
        spec: the figure as plotly's JSON.
        received: called with each message of the page: a click on a point (``trace``, ``point``),
            a changed control, an opened view, or the table switched on or off.
    """
    return _drawing_class()(
        spec=dict(spec),
        config=style.CONFIG | {"responsive": True},
        received=received or (lambda message: None),
    )


@functools.cache
def _drawing_class() -> type:
    import anywidget
    import traitlets
    from plotly.offline import get_plotlyjs

    static = resources.files(__package__) / "static"

    class Drawing(anywidget.AnyWidget):
        _esm = "".join(
            (static / f"{name}.js").read_text("utf-8") for name in ("controls", "drawing")
        )
        _css = (static / "explorer.css").read_text("utf-8")
        spec = traitlets.Dict().tag(sync=True)
        panel = traitlets.Dict().tag(sync=True)
        texts = traitlets.Dict().tag(sync=True)
        status = traitlets.Unicode().tag(sync=True)
        config = traitlets.Dict().tag(sync=True)
        received = traitlets.Callable()

        def __init__(self, **traits: Any) -> None:
            super().__init__(**traits)
            self.on_msg(self._received)

        def __repr__(self) -> str:
            return "[controls]"

        def _received(self, _: Any, message: Any, __: Any) -> None:
            if message == "plotly.js":
                self.send("plotly.js", [get_plotlyjs().encode()])
            else:
                self.received(message)

    return Drawing
