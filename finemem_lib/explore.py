"""Explorers: controls over the pure builders of `plots`, and what remains of them without a kernel.

An `Explorer` is a list of controls and one function from their values to named figures. Every
selection is the value of a control, so a click on a figure and a key pressed on a widget do the
same. `show` displays it in one of two forms:

live    ipywidgets, and a drawing that follows the figures. An error of a callback appears in a box
        above them, and they keep their last state.
static  one figure per view with a plotly slider over frames that are computed now, one changed
        control at a time. It needs no kernel and no network; the report adds a slider that the
        keyboard reaches, joins the views of an explorer, and lets clicks move them.

A kernel cannot see who displays its output, so the form follows the environment variable
FINEMEM_EXPLORERS ("live" or "static"), which the command line and the tests of the notebooks set;
without it, it is live in kernels that a Jupyter server or VS Code started, else static.
"""

from __future__ import annotations

import dataclasses
import functools
import html
import inspect
import math
import os
import statistics
import traceback
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

from finemem_lib import plot_frames, plots
from finemem_lib import plot_style as style
from finemem_lib.advantages import EPSILON, ScaleRewards, group_relative
from finemem_lib.credit import RULES, Together, World, outcome_readings
from finemem_lib.reasoning import MemoisedAgent
from finemem_lib.report import html_table
from finemem_lib.rewards import (
    Attribution,
    Credited,
    RewardSettings,
    credited_items,
    hybrid_reward,
    outcome_reward,
)
from finemem_lib.trajectory import Trajectory

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from finemem_lib.reasoning import ReasoningAgent

State = Mapping[str, Any]
Options = Sequence[tuple[str, Any]]
Views = Mapping[str, "go.Figure"]

MAX_FRAMES = 40
"""Frames of a control in the static form: what a notebook can hold, and a slider can tell apart."""

MAX_TABLE_ROWS = 200
"""Rows of a table twin that a live explorer shows."""


@dataclass(frozen=True, slots=True)
class Control:
    """One value that a reader chooses.

    name: the keyword under which `Explorer.build` receives the value.
    label: what the widget says, with the unit where there is one.
    options: (text, value) pairs, or a function of the controls before this one that returns them;
        a value that is no longer among them falls back to the first. Texts may be untrusted.
    value: the value at first; by default that of the first option.
    kind: "slider" for ordered values, "menu" for names.
    static: whether the static form has frames for its values, or for how many of them (a menu's
        first ones, a slider's evenly spaced ones; True: at most `MAX_FRAMES`), or for how many of
        each kind, which is the first word of a value.
    idle: whether it moves nothing in a state, so that a live explorer greys it out.
    """

    name: str
    label: str
    options: Options | Callable[[State], Options]
    value: Any = None
    kind: Literal["slider", "menu"] = "menu"
    static: bool | int | Mapping[str, int] = False
    idle: Callable[[State], bool] = lambda state: False

    def choices(self, state: State) -> list[tuple[str, Any]]:
        """Return the options in a state, their texts short and on one line."""
        found = self.options(state) if callable(self.options) else self.options
        return [(style.plain(style.label(text, 60)), value) for text, value in found]

    def frames(self, state: State) -> list[tuple[str, Any]]:
        """Return the options that the static form has frames for, with the one of the state."""
        options = self.choices(state)
        most = MAX_FRAMES if self.static is True else self.static
        if isinstance(most, Mapping):
            kinds = [self.kind_of(value) for _, value in options]
            kept = {place for place, kind in enumerate(kinds)
                    if kinds[:place].count(kind) < most.get(kind, 1)}
        elif len(options) > most > 1 and self.kind == "slider":
            kept = {round(n * (len(options) - 1) / (most - 1)) for n in range(most)}
        else:
            kept = set(range(most))
        return [option for place, option in enumerate(options)
                if place in kept or (most and option[1] == state[self.name])]

    def kind_of(self, value: Any) -> str:
        """Return what a value is called when values are counted."""
        return str(value).partition(" ")[0] if isinstance(self.static, Mapping) else self.label


@dataclass(frozen=True)
class Explorer:
    """Controls, and the function that turns their values into figures.

    `build` is called with every control's value by name and returns the same view names in the
    same order each time. In the static form a view must also keep its traces (number and types;
    empty ones may stand in) and name the same properties. A figure whose ``layout.meta["clicks"]``
    is ``{"control": name, "points": {trace number as text: [value per point]}}`` (None: no effect;
    of a heatmap one value per column, or a list of them per row) sets that control when one of its
    points is clicked.

    `linked` lists the states of the static form where controls lead to one another: each state
    names the first controls, and their values in the order of the sliders. Without it the static
    form changes one control at a time.

    Raises:
        ValueError: two controls share a name, or a control has no options.
    """

    title: str
    controls: tuple[Control, ...]
    build: Callable[..., Views]
    linked: Sequence[State] = ()

    def __post_init__(self) -> None:
        names = [control.name for control in self.controls]
        if len(set(names)) < len(names):
            raise ValueError(f"explorer {self.title!r}: control names {names}, expected no repeats")
        self.settle({})

    def settle(self, wanted: State) -> dict[str, Any]:
        """Return a value for every control: the one wanted where it is an option, else its value
        at first, else the first option.

        Raises:
            ValueError: a control has no options.
        """
        state: dict[str, Any] = {}
        for control in self.controls:
            values = [value for _, value in control.choices(state)]
            if not values:
                raise ValueError(
                    f"explorer {self.title!r}: control {control.name!r} has no options, expected "
                    "at least one; give it something to choose from"
                )
            preferred = (wanted.get(control.name, control.value), control.value, values[0])
            state[control.name] = next(value for value in preferred if value in values)
        return state

    def figures(self, **wanted: Any) -> dict[str, go.Figure]:
        """Return the figures of one state; controls not named have their value at first."""
        return dict(self.build(**self.settle(wanted)))

    def static_figures(self) -> list[go.Figure]:
        """Return one figure per view with a slider over frames: the `linked` states, or all values
        of every control with `static`, one control at a time. An explorer without either has no
        slider. The first caption says what there are no frames for.

        Raises:
            ValueError: a view changes its traces between states.
        """
        first = self.settle({})
        levels = self._levels()
        states = [(levels, self.settle(state)) for state in self.linked] or [
            ([control], self.settle(first | {control.name: value}))
            for control in self.controls for _, value in control.frames(first)]
        if not states:
            return list(self.build(**first).values())
        places: dict[Any, int] = {}  # of the first state at each end of a way down the controls
        for place, (chain, state) in enumerate(states):
            for depth in range(1, len(chain) + 1):
                places.setdefault(_way(chain[:depth], state), place)
        between = " " if levels else ": "
        paths = [[f"{control.label}{between}{_text(control, state)}" for control in chain]
                 for chain, state in states]
        shown = [state for _, state in states]
        start = shown.index(first) if first in shown else 0
        views = [self._specs(state, places) for state in shown]
        note = self._left_out(first, shown)
        for specs in views:
            next(iter(specs.values()))["layout"]["meta"]["caption"] += note
        figures = [plot_frames.framed(
            [(path, specs[view]) for path, specs in zip(paths, views, strict=True)],
            start, self.title) for view in views[start]]
        if levels:
            figures[0].layout.meta = figures[0].layout.meta | {
                "levels": [control.label for control in levels], "paths": paths}
        return figures

    def _levels(self) -> list[Control]:
        """Return the controls that lead from one to the next in the static form."""
        return [one for one in self.controls if self.linked and one.name in self.linked[0]]

    def _specs(self, state: State, places: Mapping[Any, int]) -> dict[str, dict[str, Any]]:
        """Return the views of a state, their clicks naming states by their places."""
        specs = {view: figure.to_plotly_json() for view, figure in self.build(**state).items()}
        for spec in specs.values():
            meta = spec["layout"]["meta"]
            if clicks := meta.get("clicks"):
                [clicked] = [one for one in self.controls if one.name == clicks["control"]]
                levels = self._levels()
                chain = levels[:levels.index(clicked) + 1] if clicked in levels else [clicked]
                meta["clicks"] = {
                    trace: _each(values, lambda value, clicked=clicked, chain=chain: places.get(
                        _way(chain, {**state, clicked.name: value})))
                    for trace, values in clicks["points"].items()}
        return specs

    def _left_out(self, first: State, states: Sequence[State]) -> str:
        """Return a sentence about what the static form has no frames for, empty when it has all."""
        levels = self._levels()
        every: list[dict[str, Any]] = [{}]  # states as far as the levels so far lead
        few, fixed = [], []
        for control in self.controls:
            if control in levels:
                chain = levels[:levels.index(control) + 1]
                every = [{**state, control.name: value} for state in every
                         for _, value in control.choices(state)]
                have = Counter({control.label: len({_way(chain, state) for state in states})})
                there = Counter({control.label: len(every)})
            else:
                have = Counter(map(control.kind_of, {state[control.name] for state in states}))
                there = Counter(control.kind_of(value) for _, value in control.choices(first))
            if have.total() == 1 < there.total():
                fixed.append(f"{control.label}: {_text(control, first)}")
            else:
                few += [f"{count - have[kind]} of {count} ({kind})"
                        for kind, count in there.items() if have[kind] < count]
        told = "; ".join(f"{name} {', '.join(those)}" for name, those in (
            ("left out", few), ("fixed", fixed)) if those)
        return f" Without a kernel: {told}." if told else ""


def _way(chain: Sequence[Control], state: State) -> tuple[tuple[str, str], ...]:
    """Return the values that lead to a state, control by control."""
    return tuple((control.name, str(state[control.name])) for control in chain)


def _each(values: Any, change: Callable[[Any], Any]) -> Any:
    """Return a change of every value in a list, or in lists of rows."""
    return [_each(one, change) for one in values] if isinstance(values, list) else change(values)


def _text(control: Control, state: State) -> str:
    return next(text for text, value in control.choices(state) if value == state[control.name])


# ---- the two forms -------------------------------------------------------------------------------


def is_live() -> bool:
    """Return whether `show` makes widgets: see the head of this module.

    Raises:
        ValueError: FINEMEM_EXPLORERS is set to something else.
    """
    form = os.environ.get("FINEMEM_EXPLORERS")
    if form not in (None, "live", "static"):
        raise ValueError(f"FINEMEM_EXPLORERS is {form!r}, expected 'live' or 'static'; change it")
    return form == "live" if form else bool({"JPY_SESSION_NAME", "VSCODE_PID"} & {*os.environ})


def show(explorer: Explorer, frames: Collection[str] | None = None) -> None:
    """Display an explorer, live or static; a figure's caption stands below it.

    frames: the controls that have frames in the static form, of those with `static` (`None`: all
    of them); each frame adds some kB to a notebook.
    """
    if frames is not None:
        explorer = dataclasses.replace(explorer, controls=tuple(
            control if control.name in frames else dataclasses.replace(control, static=False)
            for control in explorer.controls
        ))
    if is_live():
        from IPython.display import display

        display(Live(explorer).box)
    else:
        for figure in explorer.static_figures():
            plots.show(figure)


class Live:
    """The live form of an explorer, and what a test or a notebook may reach of it.

    box: the widget to display. controls: the widget of each control by name. views: the figure
    shown in each view by name. error: the text of the last error, empty when there is none.
    """

    def __init__(self, explorer: Explorer) -> None:
        import ipywidgets as widgets

        self.explorer = explorer
        self.state = explorer.settle({})
        self.error = ""
        self.views: dict[str, go.Figure] = {}
        self._boxes: dict[str, tuple[Any, ...]] = {}  # drawing, caption, button, table
        self._buttons: dict[str, list[Any]] = {}  # beside a menu
        self._settling = False
        self._alert = widgets.HTML()
        self._figures = widgets.VBox()
        self.controls = {control.name: self._widget(control) for control in explorer.controls}
        self.box = widgets.VBox([
            widgets.HTML(f"<b>{html.escape(explorer.title)}</b>"),
            widgets.HBox([self._reachable(control) for control in explorer.controls],
                         layout={"flex_flow": "row wrap"}),
            self._alert, self._figures,
        ])
        self._guarded(self._draw)

    def set(self, name: str, value: Any) -> None:
        """Set a control as its widget does; a value that is no option is ignored."""
        self._guarded(lambda: self._change({name: value}))

    def _widget(self, control: Control) -> Any:
        import ipywidgets as widgets

        kind = widgets.SelectionSlider if control.kind == "slider" else widgets.Dropdown
        more = {"continuous_update": False} if control.kind == "slider" else {}
        widget = kind(
            options=control.choices(self.state), value=self.state[control.name],
            description=control.label, style={"description_width": "initial"},
            layout={"width": "24rem"}, **more,
        )
        widget.observe(
            lambda change: None if self._settling else self.set(control.name, change["new"]),
            names="value",
        )
        return widget

    def _reachable(self, control: Control) -> Any:
        """Return the widget of a control; a menu with buttons beside it, because JupyterLab keeps
        the arrow keys that would move it."""
        import ipywidgets as widgets

        widget = self.controls[control.name]
        if control.kind == "slider":
            return widget
        buttons = self._buttons[control.name] = []
        for by, sign, name in ((-1, "◀", "previous"), (1, "▶", "next")):
            button = widgets.Button(description=sign, tooltip=f"{control.label}: {name}",
                                    layout={"width": "2.5rem"})
            button.on_click(lambda _, by=by: self._guarded(lambda: self._step(control.name, by)))
            buttons.append(button)
        return widgets.HBox([widget, *buttons])

    def _step(self, name: str, by: int) -> None:
        """Move a control by one option, as far as there are any."""
        values = [value for _, value in self.controls[name].options]
        place = values.index(self.state[name]) + by
        self._change({name: values[max(0, min(place, len(values) - 1))]})

    def _guarded(self, work: Callable[[], None]) -> None:
        """Do the work of a callback; an error is shown, since the front end would swallow it."""
        try:
            work()
            self.error = ""
            self._alert.value = ""
        except Exception as error:  # whatever a builder raises belongs before the reader's eyes
            self.error = f"{type(error).__name__}: {error}"
            trace = html.escape(traceback.format_exc())
            self._alert.value = (
                '<div role="alert" style="border:2px solid #D55E00; padding:0.5rem"><b>This change '
                f"failed; the figures show the state before it.</b><br>{html.escape(self.error)}"
                f'<details><summary>Traceback</summary><pre>{trace}</pre></details></div>'
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
                for one in (widget, *self._buttons.get(control.name, ())):
                    one.disabled = control.idle(self.state)
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
        """Write what stands below a figure; the table only where its reader asked for it."""
        _, caption, button, table = self._boxes[name]
        layout = self.views[name].layout
        caption.value = f"<p>{html.escape(layout.meta['caption'])}</p>"
        table.value = str(html_table(
            style.plain(layout.title.text), plot_frames.figure_table(self.views[name]),
            MAX_TABLE_ROWS,
        )) if button.value else ""

    def click(self, view: str, trace: int, points: Sequence[Any]) -> None:
        """Do what a click on points of a view's trace does."""
        clicks = self.views[view].layout.meta.get("clicks") or {"points": {}}
        values = clicks["points"].get(str(trace), ())
        for point in points:
            *row, place = point if isinstance(point, list | tuple) else [point]
            of_row = values[row[0]] if row and values and isinstance(values[0], list) else values
            if place < len(of_row) and of_row[place] is not None:
                self.set(clicks["control"], of_row[place])


_DRAWING = """
const KEY = Symbol.for("finemem.plotly");
function plotly(model) {  // one copy for all figures of a page, asked for when the first is drawn
  return globalThis[KEY] ??= new Promise(resolve => {
    model.on("msg:custom", async (message, buffers) => {
      if (message !== "plotly.js") return;
      const before = window.Plotly;
      const parts = ["const module = {exports: {}};", buffers[0], ";export default module.exports"];
      const url = URL.createObjectURL(new Blob(parts, {type: "text/javascript"}));
      const loaded = (await import(url)).default;
      URL.revokeObjectURL(url);
      window.Plotly = before;
      resolve(loaded);
    });
    model.send("plotly.js");
  });
}
function render({model, el}) {
  const plot = document.createElement("div");
  plot.setAttribute("role", "img");
  el.append(plot);
  let busy = Promise.resolve();
  const draw = () => busy = busy.then(async () => {
    const {data, layout} = structuredClone(model.get("spec"));
    if (!data) return;
    const title = new DOMParser().parseFromString(layout.title.text, "text/html").body.textContent;
    plot.setAttribute("aria-label", `${title}. ${layout.meta.alt}`);
    const first = !plot.data;
    plot.style.height = `${layout.height}px`;
    await (await plotly(model)).react(plot, data, {...layout, uirevision: "kept"},
      model.get("config"));
    if (first) plot.on("plotly_click", ({points: [point]}) =>
      model.send({trace: point.curveNumber, point: point.pointNumber}));
  }).catch(error => { plot.textContent = `The figure cannot be drawn: ${error}`; });
  model.on("change:spec", draw);
  draw();
  return () => model.off("change:spec", draw);
}
export default {render};
"""


def drawing(spec: Mapping[str, Any], clicked: Callable[[int, Any], None] | None = None) -> Any:
    """Return the widget that draws a plotly spec, and another one when its `spec` is set.

    clicked: what to do with the trace number and the point of a click.

    Plotly's own FigureWidget brings 5 MB per figure, of which a busy or slow machine does not load
    several in the two seconds that anywidget gives each; such a figure then stays as it is, or
    empty. This one loads plotly.js once per page, and its state is always the whole figure.
    """
    return _drawing_class()(spec=dict(spec), config=style.CONFIG | {"responsive": True},
                            clicked=clicked or (lambda trace, point: None))


@functools.cache
def _drawing_class() -> type:
    import anywidget
    import traitlets
    from plotly.offline import get_plotlyjs

    class Drawing(anywidget.AnyWidget):
        _esm = _DRAWING
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


# ---- the explorers -------------------------------------------------------------------------------

EVIDENCE_FRAMES = {"question": 16, "step": 16, "item": 32}
"""Selections that the evidence explorer has frames for: a toy episode is whole."""


def evidence(
    trajectory: Trajectory, settings: RewardSettings | None = None, max_questions: int = 10
) -> Explorer:
    """Return the explorer of who earned which answer: a question, step or item is selected by the
    menu or by a click, and every figure shows what belongs to it.

    The Sankey diagram draws the first `max_questions` questions, and the selected one.

    Raises:
        ValueError: as `rewards.evidence_contribution`.
    """
    asked = range(len(trajectory.questions))
    ever = {item.item_id: item for step in trajectory.steps for item in step.delta.written}
    hits = Counter(found.item_id for a in trajectory.questions for found in a.retrieved)
    options = [
        ("everything", ""),
        *((f"question {j + 1}: {trajectory.questions[j].question.text}", f"question {j + 1}")
          for j in asked),
        *((f"step {step.step}: {step.chunk.text}", f"step {step.step}")
          for step in trajectory.steps),
        *((f"item #{item_id}: {item.content}", f"item {item_id}")
          for item_id, item in sorted(ever.items(), key=lambda item: -hits[item[0]])),
    ]

    def build(selected: str) -> Views:
        shown = list(asked[:max_questions])
        kind, _, key = selected.partition(" ")
        if kind == "question" and int(key) > len(shown):
            shown.append(int(key) - 1)
        return {
            "trail": plots.evidence_trail(trajectory, settings, selected),
            "flow": plots.evidence_sankey(trajectory, shown, settings, selected=selected),
            "heatmap": plots.evidence_heatmap(trajectory, settings, selected),
            "timeline": plots.operation_timeline(trajectory, selected=selected),
        }

    return Explorer("Evidence explorer", (
        Control("selected", "selected", options, static=EVIDENCE_FRAMES),
    ), build)


def memory_player(trajectory: Trajectory) -> Explorer:
    """Return the explorer of the memory M_t, step by step from the empty start to M_T."""

    def build(step: int) -> Views:
        return {"memory": plots.memory_state(trajectory, step),
                "growth": plots.memory_growth(trajectory, step)}

    return Explorer("Memory player", (
        Control("step", "after step t", [(str(step), step) for step
                                         in range(trajectory.num_steps + 1)],
                trajectory.num_steps, kind="slider", static=True),
    ), build)


FINE_MEM = "Fine-Mem"
"""The hybrid reward, beside the rules of `credit.RULES`."""

BROADCAST, START = "outcome reward only", "as it starts"

EVEN = "outcome split evenly"
"""What rewards are compared with where advantages are with `BROADCAST`."""

READ_RETRIEVED = (FINE_MEM, "eara", "eara-used", "hindsight", "attributed-dense")
"""What k moves: a rule that reads again takes the recorded score as that of all items retrieved."""


def what_if(
    trajectories: Sequence[Trajectory],
    settings: RewardSettings | None = None,
    scale_rewards: ScaleRewards = "group",
    agent: ReasoningAgent | None = None,
) -> Explorer:
    """Return the explorer of credit: other weights, switches and rules on the same rollouts.

    trajectories: the rollouts of one instance. settings, scale_rewards: where the controls start.
    agent: the reasoning agent that answered; with it the rules that read again can be chosen too.
    What they need is read when they are first chosen, and remembered; nothing else calls a model: a
    change costs milliseconds. A control that the chosen rule does not read is greyed out.

    Raises:
        ValueError: there is no rollout, or they are not of one instance and length.
    """
    start = settings or RewardSettings()
    group = list(trajectories)
    if not group or len({(one.instance_id, one.num_steps) for one in group}) > 1:
        raise ValueError(
            f"what_if: got {len(group)} trajectories of "
            f"{len({one.instance_id for one in group})} instances, expected the rollouts of one "
            "instance, all of the same length"
        )
    most = max((len(a.retrieved) for one in group for a in one.questions), default=0)
    lab = _CreditLab(group, agent)
    first = _Choice(FINE_MEM, start, most, scale_rewards)

    def build(rollout: int, step: int, rule: str, beta: float, w1: float, w2: float, k: int,
              attribution: str, credited: str, scale: str, before: str) -> Views:
        chosen = _Choice(rule, dataclasses.replace(
            start, beta=beta, w1=w1, w2=w2, attribution=attribution, credited=credited), k, scale)
        other = first if before == START else _Choice("outcome-broadcast", start, most, scale)
        # Rewards are compared with rewards that have the same terms, and the same sum.
        even = (_Choice("uniform-split", start, most, scale) if rule != FINE_MEM else
                dataclasses.replace(chosen, settings=dataclasses.replace(chosen.settings, beta=0)))
        name = rule if rule != FINE_MEM else f"{FINE_MEM}, β = {beta:g}"
        few = len(group) * group[0].num_steps <= 40  # more are a crowd, and too much for a frame
        return {
            "card": _card(lab, chosen, rollout, step),
            "rewards": _noted(rule, before, rollout, plots.advantage_dumbbell(
                lab.paid(first if before == START else even), lab.paid(chosen),
                (before if before == START else EVEN, name), "reward", [rollout], step)),
            "advantages": plots.advantage_dumbbell(
                lab.advantages(other), lab.advantages(chosen), (before, name), "advantage",
                None if few else [rollout], step),
        }

    def steps(low: float, high: float, by: float, own: float) -> list[tuple[str, float]]:
        count = round((high - low) / by)
        grid = {round(low + by * number, 6) for number in range(count + 1)} | {own}
        return [(f"{value:g}", value) for value in sorted(grid)]

    def names(choice: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in get_args(choice)]

    def unread(name: str) -> dict[str, Any]:
        return {"idle": lambda state: name not in lab.reads(state["rule"])}

    return Explorer("What-if credit", (
        Control("rollout", "rollout", [(str(n + 1), n) for n in range(len(group))]),
        Control("step", "step t", [(str(s.step), s.step) for s in group[0].steps], kind="slider"),
        Control("rule", "rule", [(name, name) for name in lab.rules], static=True),
        Control("beta", "β, share paid by evidence", steps(0, 1, 0.05, start.beta), start.beta,
                "slider", static=5, **unread("beta")),
        Control("w1", "w1, chunk step reward", steps(0, 1, 0.1, start.w1), start.w1, "slider",
                **unread("w1")),
        Control("w2", "w2, compression", steps(0, 0.5, 0.05, start.w2), start.w2, "slider",
                **unread("w2")),
        Control("k", "k, retrieved items credited",
                [(str(n), n) for n in range(1, most + 1)] or [("0", 0)], most, "slider",
                static=True, **unread("k")),
        Control("attribution", "attribution", names(Attribution), start.attribution, static=True,
                **unread("attribution")),
        Control("credited", "credited", names(Credited), start.credited, static=True,
                **unread("credited")),
        Control("scale", "scale_rewards", names(ScaleRewards), scale_rewards, static=True),
        Control("before", "compare with", [(BROADCAST, BROADCAST), (START, START)]),
    ), build)


@dataclass(frozen=True)
class _Choice:
    """What decides the credit: rule, reward settings, retrieved items credited, scale_rewards."""

    rule: str
    settings: RewardSettings
    k: int
    scale: str


class _CreditLab:
    """Rewards and advantages of a group under any choice, computed again only for what the rule
    reads."""

    def __init__(self, group: list[Trajectory], agent: ReasoningAgent | None) -> None:
        self.group = Together(group)
        self._agent = agent
        have = {"group"}
        answers = [one.questions for one in group]
        if all(any(step.chunk_questions for step in one.steps) for one in group):
            have.add("chunk questions")
        if all(any(a.used is not None for a in asked) for asked in answers):
            have.add("used items")
        if all(a.question.evidence_steps is not None for asked in answers for a in asked):
            have.add("evidence steps")
        if agent is not None:
            have |= {"agent", "replay"}
        self.rules = [FINE_MEM, *(name for name, rule in RULES.items() if have >= {*rule.needs})]
        self._known: dict[Any, Any] = {}
        self._cut: dict[int, Together] = {}

    @functools.cached_property
    def agents(self) -> list[ReasoningAgent]:
        """The reasoning agent for each rollout: nothing is asked twice, nor what the
        rollout's outcome was read from."""
        shared = MemoisedAgent(self._agent)
        own = [MemoisedAgent(shared) for _ in self.group]
        for agent, one in zip(own, self.group, strict=True):
            agent.know(*outcome_readings(one))
        return own

    @functools.cached_property
    def worlds(self) -> list[World]:
        """What each rollout was played with, for the rules that replay it."""
        return list(map(World, self.group, self.agents))

    @staticmethod
    def pays(rule: str) -> bool:
        """Return whether a rule pays rewards; the others give advantages directly."""
        return rule == FINE_MEM or RULES[rule].gives == "reward"

    @staticmethod
    def reads(rule: str) -> list[str]:
        """Return the names of the controls that move what a rule gives, beside scale_rewards,
        which every advantage has been through."""
        accepts = (["w1", "w2", "switches"] if rule == FINE_MEM else
                   inspect.signature(RULES[rule].function).parameters)
        return [name for name in ("beta", "w1", "w2", "k", "attribution", "credited")
                if name in accepts
                or (name == "k" and rule in READ_RETRIEVED)
                or (name in ("beta", "attribution", "credited") and "switches" in accepts
                    and (name, rule) != ("credited", "eara-used"))]

    def cut(self, k: int) -> Together:
        """Return the group with only the first k retrieved items of each question."""
        if all(len(a.retrieved) <= k for one in self.group for a in one.questions):
            return self.group
        if k not in self._cut:
            self._cut[k] = Together(dataclasses.replace(one, questions=tuple(
                dataclasses.replace(a, retrieved=a.retrieved[:k]) for a in one.questions
            )) for one in self.group)
        return self._cut[k]

    def paid(self, choice: _Choice) -> list[list[float | None]]:
        """Return what each rollout is paid per step (G x T), `None` by a rule that does not pay."""
        if self.pays(choice.rule):
            return self._given(choice)
        return [[None] * one.num_steps for one in self.group]

    def advantages(self, choice: _Choice) -> list[list[float | None]]:
        """Return the advantages (G x T)."""
        if not self.pays(choice.rule):
            return self._given(choice)
        key = *self._key(choice), choice.scale
        return self._once(key, lambda: group_relative(self._given(choice), choice.scale))

    def _given(self, choice: _Choice) -> list[list[float | None]]:
        return self._once(self._key(choice), lambda: self._by_rule(choice))

    def _key(self, choice: _Choice) -> tuple[Any, ...]:
        """Return all that a rule reads of a choice."""
        values = dataclasses.asdict(choice.settings) | {"k": choice.k}
        return (choice.rule, *(values[name] for name in self.reads(choice.rule)),
                *(() if self.pays(choice.rule) else (choice.scale,)))

    def _once(self, key: tuple[Any, ...], compute: Callable[[], Any]) -> Any:
        if key not in self._known:
            self._known = dict([*self._known.items()][-256:])
            self._known[key] = compute()
        return self._known[key]

    def _by_rule(self, choice: _Choice) -> list[list[float | None]]:
        group = self.cut(choice.k) if "k" in self.reads(choice.rule) else self.group
        if choice.rule == FINE_MEM:
            return [[reward.total for reward in hybrid_reward(one, choice.settings)]
                    for one in group]
        rule = RULES[choice.rule]
        accepts = inspect.signature(rule.function).parameters
        offered = {
            "group": lambda _: group, "agent": lambda place: self.agents[place],
            "world": lambda place: self.worlds[place], "scale_rewards": lambda _: choice.scale,
            "attribution": lambda _: choice.settings.attribution,
        }
        settings = {name: value for name, value in offered.items() if name in accepts}
        if "switches" in accepts:  # the rule takes those of RewardSettings
            settings |= {name: lambda _, name=name: getattr(choice.settings, name)
                         for name in ("beta", "attribution", "credited", "unretrieved")}
        return [
            list(rule.function(one, **{name: value(place) for name, value in settings.items()}))
            for place, one in enumerate(group)
        ]  # nobody counts calls here


def _noted(rule: str, before: str, rollout: int, figure: go.Figure) -> go.Figure:
    """Say in the figure of rewards what keeps them from being compared."""
    meta = dict(figure.layout.meta)
    figure.update_layout(yaxis_showticklabels=_CreditLab.pays(rule))
    if not _CreditLab.pays(rule):
        said = (f"The rule {rule} gives the advantages of rollout {rollout + 1} directly: there is "
                "no reward before them.")
        figure.update_layout(
            meta={**meta, "caption": said, "alt": f"No rewards. {said}"},
            annotations=[{"text": style.paragraph(said, width=44), "showarrow": False, "x": 0.5,
                          "y": 0.5, "xref": "paper", "yref": "paper", "bgcolor": "white"}])
    elif before == START and rule != FINE_MEM:
        figure.update_layout(meta={**meta, "caption": (
            f"{meta['caption']} {FINE_MEM} pays for more than the outcome, so compare the "
            "advantages rather than these.")})
    return figure


def _card(lab: _CreditLab, choice: _Choice, rollout: int, step: int) -> go.Figure:
    """Return the formula card of one step: what it is paid, term by term, and its advantage."""
    rule, is_reward = choice.rule, lab.pays(choice.rule)
    rewards, advantages = lab.paid(choice), lab.advantages(choice)
    paid, advantage = rewards[rollout][step - 1], advantages[rollout][step - 1]
    first = paid if is_reward else advantage
    column = [row[step - 1] for row in (rewards if is_reward else advantages)
              if row[step - 1] is not None]
    terms, numbers = _terms(lab, choice, rollout, step)
    formula = "sum of the terms" if rule == FINE_MEM else RULES[rule].formula
    terms.append(plots.Term(f"{'r_t' if is_reward else 'A_t'} = {formula}",
                            numbers or f"{first or 0:.4g}", first, result=True))
    if is_reward:
        terms.append(_standardised(rewards, column, paid, advantage, choice.scale))
    source = "Fine-Mem, arXiv 2601.08435" if rule == FINE_MEM else RULES[rule].source
    reached = "has no advantage" if advantage is None else f"has the advantage {advantage:+.4g}"
    read = ["β" if name == "beta" else name for name in lab.reads(rule)]
    moves = "" if rule == FINE_MEM else (
        f" Of the controls above it reads {', '.join([*read, 'scale_rewards'])} only.")
    return plots.formula_card(
        terms, f"Formula with numbers: rollout {rollout + 1}, step {step}",
        f"By the rule {rule} ({source}), step {step} of rollout {rollout + 1} "
        f"{reached} among {len(column)} rollouts.{moves}{_cut_away(lab, choice, rollout)}",
        "units of the reward; A_t: advantage" if is_reward else "advantage",
    )


def _terms(
    lab: _CreditLab, choice: _Choice, rollout: int, step: int
) -> tuple[list[plots.Term], str]:
    """Return the terms of what a step is given, and the numbers of a formula that has one term;
    neither for a rule whose terms nobody kept."""
    rule, settings, one = choice.rule, choice.settings, lab.group[rollout]
    outcome, T = outcome_reward(one), one.num_steps
    if rule in (FINE_MEM, "eara", "eara-used"):
        if rule == "eara-used":
            settings = dataclasses.replace(settings, credited="used")
        part, beta = hybrid_reward(lab.cut(choice.k)[rollout], settings)[step - 1], settings.beta
        terms = [
            plots.Term("(1 - β) r_global / T", f"(1 - {beta:g}) × {outcome or 0:.4g} / {T}",
                       None if outcome is None else (1 - beta) * outcome / T),
            plots.Term("β N_t", f"{beta:g} × {part.evidence or 0:.4g}",
                       None if outcome is None else beta * part.evidence),
        ]
        return terms + ([] if rule != FINE_MEM else [
            plots.Term("r_format", f"{part.format or 0:.4g}", part.format),
            plots.Term("w1 r_chunk", f"{settings.w1:g} × {part.chunk or 0:.4g}",
                       part.weighted["chunk"]),
            plots.Term("w2 r_compression", f"{settings.w2:g} × {part.compression or 0:.4g}",
                       part.weighted["compression"]),
        ]), ""
    given = (lab.paid if lab.pays(rule) else lab.advantages)(choice)[rollout][step - 1]
    if given is None:
        return [], ""
    if rule in ("mt-grpo", "gigpo"):
        [whole] = group_relative([[outcome_reward(each)] for each in lab.group],
                                 choice.scale)[rollout]
        local = "c A(r_chunk(t))" if rule == "mt-grpo" else "ω A(γ^(T-t) r_global)"
        return [plots.Term("A(r_global)", f"{whole:.4g}", whole),
                plots.Term(local, f"{given - whole:.4g}", given - whole)], ""
    if rule == "step-loo":
        return [], f"{outcome:.4g} - {outcome - given:.4g}"
    if rule == "uniform-split":
        return [], f"{outcome:.4g} / {T}"
    if rule in ("csr", "outcome-broadcast"):
        asked = one.steps[step - 1].chunk_questions if rule == "csr" else one.questions
        scores = [answered.score for answered in asked if answered.score is not None]
        added = " + ".join(f"{score:.4g}" for score in scores)
        return [], f"({added if len(scores) <= 12 else f'{math.fsum(scores):.4g}'}) / {len(scores)}"
    return [], ""


def _standardised(
    rewards: Sequence[Sequence[float | None]], column: Sequence[float], paid: float | None,
    advantage: float | None, scale: str,
) -> plots.Term:
    """Return the line that leads from a reward to its advantage."""
    formula = "A_t = r_t - mean" if scale == "none" else (
        f"A_t = (r_t - mean) / (std + {EPSILON:g}), "
        f"{'both of step t' if scale == 'group' else 'std of all steps'}")
    if paid is None:
        return plots.Term(formula, "", None, result=True)
    numbers = f"{paid:.6g} - {math.fsum(column) / len(column):.6g}"  # they nearly cancel
    if scale != "none":
        spread = column if scale == "group" else [
            reward for row in rewards for reward in row if reward is not None]
        std = statistics.stdev(spread) if len(spread) > 1 else 0.0
        numbers = f"({numbers}) / ({std:.6g} + {EPSILON:g})"
    return plots.Term(formula, numbers, advantage, result=True)


def _cut_away(lab: _CreditLab, choice: _Choice, rollout: int) -> str:
    """Return a sentence about used items that k cuts away, where they alone are credited."""
    reads, settings = lab.reads(choice.rule), choice.settings
    if choice.rule != "eara-used" and not ("credited" in reads and settings.credited == "used"):
        return ""
    pairs = zip(lab.group[rollout].questions, lab.cut(choice.k)[rollout].questions, strict=True)
    lost = sum(bool(credited_items(whole, "used")) and not credited_items(cut, "used")
               for whole, cut in pairs)
    fate = "spread over all steps" if settings.unretrieved == "spread" else "dropped"
    return "" if not lost else (
        f" k = {choice.k} cuts away every used item of {lost} of "
        f"{len(lab.group[rollout].questions)} questions: their evidence is {fate}, as if nothing "
        "had been found.")
