"""Explorers: controls that determine figures, as widgets or as figures with a slider.

An `Explorer` is a list of controls and one function from their values to named figures. Every
selection is the value of a control, so clicks on figures and keys pressed on a widget are
equivalent. `display.show` displays an explorer in one of two forms:

live    a widget with the controls and the figure of one view. The error of a callback appears in a
        box above it, and the last state is kept.
static  one figure per view with a plotly slider over frames computed in advance, in which one
        control at a time changes. It needs no kernel and no network; the report adds a slider for
        the keyboard, joins the views of an explorer, and makes them react to clicks.
"""

from __future__ import annotations

import functools
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from finemem_lib.figures import frames, style

if TYPE_CHECKING:
    import plotly.graph_objects as go


State = Mapping[str, Any]
"""The value of every control by name."""

Options = Sequence[tuple[str, Any]]
"""The text and the value of every option of a control."""

Views = Mapping[str, "go.Figure"]
"""The figures of an explorer by name."""

SEE_ALL = "Run the cell in JupyterLab to choose among all."
"""The sentence that states how to see the values that the static form omits."""

MAX_FRAMES = 40
"""Maximum frames of a control in the static form, limited by the size of notebook and slider."""


@dataclass(frozen=True, slots=True)
class Control:
    """A control for one value.

    Attributes:
        name: the keyword under which `Explorer.build` receives the value.
        label: label of the widget, with the unit if there is one.
        options: (text, value) pairs, or a function that returns them for the values of the controls
            before this one; a value that is no longer an option is replaced by the first. Texts may
            be untrusted.
        value: the initial value; by default that of the first option.
        kind: "slider" for ordered values, "menu" for names.
        static: whether the static form has frames for its values (True: at most `MAX_FRAMES`), or
            the number of values with frames (the first ones of a menu, evenly spaced ones of a
            slider), or this number by kind, the first word of a value.
        preferred: values of a slider that get frames first if not all can have frames, such as the
            steps that carry a gradient.
        idle: whether the control has no effect in a state, so that a live explorer disables it.
        rare: whether a live explorer hides the control in a section of rarely used ones.
        play: whether a live explorer has a play button for the slider, one option per second.
    """

    name: str
    label: str
    options: Options | Callable[[State], Options]
    value: Any = None
    kind: Literal["slider", "menu"] = "menu"
    static: bool | int | Mapping[str, int] = False
    preferred: Collection[Any] = ()
    idle: Callable[[State], bool] = lambda state: False
    rare: bool = False
    play: bool = False
    _fixed: list[tuple[str, Any]] = field(default_factory=list, init=False, repr=False)

    def choices(self, state: State) -> list[tuple[str, Any]]:
        """Return the options in a state, with texts shortened to one line.

        Args:
            state: the values of the controls before this one.
        """
        if callable(self.options):
            return [(style.one_line(text, 60), value) for text, value in self.options(state)]
        if not self._fixed:  # cached: needed in every state, with thousands for a long stream
            self._fixed.extend((style.one_line(text, 60), value) for text, value in self.options)
        return self._fixed

    def frames(self, state: State) -> list[tuple[str, Any]]:
        """Return the options with frames in the static form, and the option of the state.

        Args:
            state: the value of every control.
        """
        options = self.choices(state)
        most = MAX_FRAMES if self.static is True else self.static
        if isinstance(most, Mapping):
            kept, seen = set(), Counter[str]()
            for place, (_, value) in enumerate(options):
                kind = self.kind_of(value)
                seen[kind] += 1
                if seen[kind] <= most.get(kind, 1):
                    kept.add(place)
        elif len(options) > most > 1 and self.kind == "slider":
            first = [place for place, (_, value) in enumerate(options) if value in self.preferred]
            rest = [place for place in range(len(options)) if place not in first]
            few = _spread(first, most)
            kept = {*few, *_spread(rest, most - len(few))}
        else:
            kept = set(range(most))
        return [
            option
            for place, option in enumerate(options)
            if place in kept or (most and option[1] == state[self.name])
        ]

    def kind_of(self, value: Any) -> str:
        """Return the kind of a value, by which `static` limits the number of frames.

        Args:
            value: the value of an option.
        """
        return str(value).partition(" ")[0] if isinstance(self.static, Mapping) else self.label


@dataclass(frozen=True)
class Explorer:
    """Controls, and the function that returns the figures for their values.

    `build` is called with the value of every control by name and returns the same view names in the
    same order each time. In the static form, a view must also have the same number and types of
    traces (they may be empty) and the same properties in every state. A click on a point of a
    figure sets a control if ``layout.meta["clicks"]`` of the figure is ``{"control": name,
    "points": {trace number as text: [value per point]}}`` (None: no effect; for a heatmap one value
    per column, or a list of them per row).

    Attributes:
        title: title above the controls.
        controls: the controls, in display order.
        build: the function from the values of the controls to the figures.
        linked: the states of the static form if options of controls depend on each other: each maps
            the first controls to values, in the order of the sliders. Without it, the static form
            changes one control at a time.
        without_kernel: the explorer whose static form is stored in the notebook; `None` for this
            one. A live explorer may have more states than a notebook can store.

    Raises:
        ValueError: two controls share a name, or a control has no options.
    """

    title: str
    controls: tuple[Control, ...]
    build: Callable[..., Views]
    linked: Sequence[State] = ()
    without_kernel: Explorer | None = None

    def __post_init__(self) -> None:
        names = [control.name for control in self.controls]
        if len(set(names)) < len(names):
            raise ValueError(f"explorer {self.title!r}: control names {names}, expected no repeats")
        self.settle({})

    def settle(self, wanted: State) -> dict[str, Any]:
        """Return a valid value for every control.

        It is the wanted value if that is an option, otherwise the control's initial value, or else
        the first option.

        Args:
            wanted: values by name of the control, for any of the controls.

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
        """Return the figures of one state.

        Args:
            wanted: values of controls by name; the others have their initial values.
        """
        return dict(self.build(**self.settle(wanted)))

    def static_figures(self, seconds: float = math.inf) -> list[go.Figure]:
        """Return one figure per view with a slider over frames.

        The frames are the `linked` states, or the values of every control with `static`, with one
        control changed at a time. An explorer without either has no slider. The first caption
        states which values have no frames.

        Args:
            seconds: time limit in seconds, after which no further frame is computed.

        Raises:
            ValueError: a view changes its traces between states.
        """
        first = self.settle({})
        levels = self._levels()
        states = [(levels, self.settle(state)) for state in self.linked] or [
            ([control], self.settle(first | {control.name: value}))
            for control in self.controls
            for _, value in control.frames(first)
        ]
        if not states:
            return list(self.build(**first).values())
        begin = next((place for place, (_, state) in enumerate(states) if state == first), 0)
        ends = time.monotonic() + seconds
        built = [
            (chain, state, self.build(**state))
            for place, (chain, state) in enumerate(states)
            if place == begin or time.monotonic() < ends
        ]
        places: dict[Path, int] = {}  # position of the first state with each path of values
        for place, (chain, state, _) in enumerate(built):
            for depth in range(1, len(chain) + 1):
                places.setdefault(_path(chain[:depth], state), place)
        between = " " if levels else ": "
        paths = [
            [f"{control.label}{between}{_text(control, state)}" for control in chain]
            for chain, state, _ in built
        ]
        shown = [state for _, state, _ in built]
        start = shown.index(first) if first in shown else 0
        views = [self._specs(state, figures, places) for _, state, figures in built]
        note = self._left_out(first, shown)
        chains = {"levels": [control.label for control in levels], "paths": paths} if levels else {}
        for specs in views:
            meta = next(iter(specs.values()))["layout"]["meta"]
            meta["caption"] += note
            meta |= chains
        return [
            frames.framed(
                [(path, specs[view]) for path, specs in zip(paths, views, strict=True)],
                start,
                self.title,
            )
            for view in views[start]
        ]

    def _levels(self) -> list[Control]:
        """Return the controls of the `linked` states, in order."""
        return [one for one in self.controls if self.linked and one.name in self.linked[0]]

    def _specs(
        self, state: State, figures: Views, places: Mapping[Path, int]
    ) -> dict[str, dict[str, Any]]:
        """Return the views of a state as JSON, with clicks that refer to states by position."""
        specs = {view: dict(style.read_only(figure)) for view, figure in figures.items()}
        for spec in specs.values():
            meta = dict(spec["layout"]["meta"])
            spec["layout"] = spec["layout"] | {"meta": meta}
            if clicks := meta.get("clicks"):
                [clicked] = [one for one in self.controls if one.name == clicks["control"]]
                levels = self._levels()
                above = levels[: levels.index(clicked)] if clicked in levels else []

                path = _path(above, state)

                @functools.cache  # the traces of a view contain the same values
                def place(value: Any, name: str = clicked.name, path: Path = path) -> int | None:
                    return places.get((*path, (name, str(value))))

                meta["clicks"] = {
                    trace: _each(values, place) for trace, values in clicks["points"].items()
                }
        return specs

    def _left_out(self, first: State, states: Sequence[State]) -> str:
        """Return a sentence about values without frames in the static form, if there are any."""
        levels = self._levels()
        every: list[dict[str, Any]] = [{}]  # all combinations of values of the levels so far
        few, fixed = [], []
        for control in self.controls:
            if control in levels:
                chain = levels[: levels.index(control) + 1]
                every = [
                    {**state, control.name: value}
                    for state in every
                    for _, value in control.choices(state)
                ]
                have = Counter({control.label: len({_path(chain, state) for state in states})})
                there = Counter({control.label: len(every)})
            else:
                have = Counter(map(control.kind_of, {state[control.name] for state in states}))
                there = Counter(control.kind_of(value) for _, value in control.choices(first))
            if have.total() == 1 < there.total():
                fixed.append(f"{control.label}: {_text(control, first)}")
            else:
                few += [
                    f"{count - have[kind]} of {count} ({kind})"
                    for kind, count in there.items()
                    if have[kind] < count
                ]
        limits = "; ".join(
            f"{name} {', '.join(those)}"
            for name, those in (("left out", few), ("fixed", fixed))
            if those
        )
        return f" Without a kernel: {limits}. {SEE_ALL}" if limits else ""


def _spread(places: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the given places, evenly spaced from the first to the last.

    >>> _spread([1, 2, 3, 4, 5], 3), _spread([1, 2], 3), _spread([1, 2], 1)
    ([1, 3, 5], [1, 2], [1])
    """
    if len(places) <= most:
        return list(places)
    gap = (len(places) - 1) / max(1, most - 1)
    return [places[round(n * gap)] for n in range(most)]


Path = tuple[tuple[str, str], ...]
"""Names and values of the linked controls in a state, values as text."""


def _path(chain: Sequence[Control], state: State) -> Path:
    return tuple((control.name, str(state[control.name])) for control in chain)


def _each(values: list[Any], change: Callable[[Any], Any]) -> list[Any]:
    """Apply a function to every value in a list, or in a list of rows."""
    return [_each(one, change) if isinstance(one, list) else change(one) for one in values]


def _text(control: Control, state: State) -> str:
    return next(text for text, value in control.choices(state) if value == state[control.name])
