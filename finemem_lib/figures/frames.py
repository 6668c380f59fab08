"""Convert figures to tables, and join the states of a figure into plotly frames.

A framed figure needs no kernel and no network: a slider, or the script of the report, selects the
frame to show.
"""

from __future__ import annotations

import functools
import itertools
import json
import math
import operator
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeGuard

import plotly.graph_objects as go

from finemem_lib.figures.style import (
    INK,
    TEMPLATE_MARGIN,
    PlainFigure,
    cached,
    label,
    plain,
    read_only,
)


def figure_table(figure: go.Figure | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the data of a figure as rows, for screen readers and for tests.

    If the position of a point is not its value (shifted series, logarithmic axes), the ``meta`` of
    its trace holds the values under "x" or "y", and under "z" if the colour of a cell encodes
    another number. Under "panel" it holds the title of the panel.

    Args:
        figure: a figure of this package, or its JSON.

    Returns:
        One row per point, cell or link, with columns named after the axes. Trace types that this
        package does not use have no rows.

    >>> figure_table(go.Figure(go.Bar(x=[1, 2], y=[3.0, None], name="a")))
    [{'series': 'a', 'x': 1, 'y': 3.0}]
    """
    spec = read_only(figure) if isinstance(figure, go.Figure) else figure
    layout = spec.get("layout", {})
    return [row for trace in spec.get("data", ()) for row in _trace_rows(trace, layout)]


def _trace_rows(trace: Mapping[str, Any], layout: Mapping[str, Any]) -> list[dict[str, Any]]:
    name = plain(trace.get("name", ""))
    if trace["type"] == "sankey":
        names = [plain(text) for text in trace["node"]["label"]]
        columns = (trace["link"][key] for key in ("source", "target", "value", "label"))
        return [
            {"from": names[source], "to": names[target], "share": value, "kind": kind}
            for source, target, value, kind in zip(*columns, strict=True)
        ]
    meta = trace.get("meta") or {}
    xs, ys = meta.get("x", trace.get("x")), meta.get("y", trace.get("y"))
    if not isinstance(xs, list | tuple) or not isinstance(ys, list | tuple):
        return []
    if trace.get("hoverinfo") == "skip":
        return []
    series = {"series": name} | ({"panel": plain(meta["panel"])} if "panel" in meta else {})
    x_name, x_text = _axis_of(layout, "x", trace.get("xaxis", "x"))
    y_name, y_text = _axis_of(layout, "y", trace.get("yaxis", "y"))
    if trace["type"] == "heatmap":
        texts = None if "z" in meta else trace.get("text")
        notes = trace.get("customdata") or texts or [[]] * len(ys)
        return [
            series | {x_name: x, y_name: y_text.get(y, y), "value": value} | _note(note)
            for y, line, line_notes in zip(ys, meta.get("z", trace["z"]), notes, strict=True)
            for x, value, note in itertools.zip_longest(xs, line, line_notes)
            if value is not None
        ]
    notes = trace.get("customdata") or [None] * len(xs)
    return [
        series | {x_name: x_text.get(x, x), y_name: y_text.get(y, y)} | _note(note)
        for x, y, note in zip(xs, ys, notes, strict=True)
        if x is not None and y is not None
    ]


def _note(note: object) -> dict[str, str]:
    return {} if note is None else {"note": plain(note)}


def _axis_of(layout: Mapping[str, Any], letter: str, axis: str) -> tuple[str, dict[Any, str]]:
    """Return the title of an axis and the labels of its values.

    The title of a shared axis is on one panel only, or common to all (`style.name_panels`).
    """
    axes = {
        key.replace("axis", ""): spec
        for key, spec in layout.items()
        if key.startswith(f"{letter}axis")
    }
    own = axes.get(axis, {})
    root = own.get("matches", axis)
    shared = [spec for key, spec in axes.items() if root in (key, spec.get("matches"))]
    titles = [(spec.get("title") or {}).get("text") for spec in (own, *shared)]
    titles += [
        one["text"]
        for one in layout.get("annotations") or ()
        if one.get("name") == f"{letter} title"
    ]
    title = re.sub(r"</?sub>", "", next(filter(None, titles), letter))
    texts = zip(own.get("tickvals") or (), own.get("ticktext") or (), strict=False)
    return plain(title), {value: plain(text) for value, text in texts}


def leaves(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted path; lists and ``clicks`` are not flattened.

    Args:
        spec: the mapping.
        prefix: beginning of every path.

    >>> leaves({"line": {"color": "red"}, "x": (1, 2)})
    {'line.color': 'red', 'x': [1, 2]}
    """
    found: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping) and value and key != "clicks":
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the values that differ in `after`, by dotted path; `None` for those it lacks.

    Args:
        before: Nested values, such as the JSON of a figure.
        after: The values to reach.

    >>> changes({"x": [1], "line": {"color": "red"}}, {"x": [1], "line": {"width": 2}})
    {'line.color': None, 'line.width': 2}
    """
    found: dict[str, Any] = {}
    for key in [*before, *(key for key in after if key not in before)]:
        old, new = before.get(key), after.get(key)
        if old is new:  # states share the objects that no control changes: most of a figure
            continue
        if key != "clicks" and _is_branch(old) and _is_branch(new):
            found |= {f"{key}.{path}": value for path, value in changes(old, new).items()}
        else:
            was, now = leaves({key: old}), leaves({key: new})
            found |= {path: now.get(path) for path in was | now if was.get(path) != now.get(path)}
    return found


def _is_branch(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping) and bool(value)


DRAWN = ("shapes", "annotations")
"""Lists of the layout that plotly merges index by index, without removing entries."""

SLIDER_ROOM = 64
"""Height in pixels of the slider of `framed`, between title and drawing."""


def framed(
    states: Sequence[tuple[Sequence[str], Mapping[str, Any]]], start: int, explorer: str
) -> go.Figure:
    """Join the states of a figure into one figure with a plotly slider, which needs no kernel.

    Frame 0 is the state shown first, with all values that any state changes. The other frames hold
    their changes to it; states with equal changes share a frame. ``layout.meta["states"]`` holds
    the frame number of every state. The slider has one step for each path prefix on which the
    figure depends.

    Args:
        states: the path to each state (one text per level) and the JSON of the figure there, in
            the order of the slider.
        start: position of the state shown first.
        explorer: name shared by figures with common controls; the report puts the controls above
            all of them.

    Raises:
        ValueError: two states differ in the number or types of their traces.
    """
    specs = [{**spec, "layout": dict(spec["layout"])} for _, spec in states]
    kinds = [[trace["type"] for trace in spec["data"]] for spec in specs]
    for (path, _), spec, found in zip(states, specs, kinds, strict=True):
        if found != kinds[start]:
            raise ValueError(
                f"framed: state {', '.join(path)!r} has the traces {found}, expected "
                f"{kinds[start]} as in the first; let the builder return the same traces in every "
                "state, empty where needed"
            )
        _make_room(spec["layout"], SLIDER_ROOM)
    _equal_margins(specs)
    for drawn in DRAWN:
        _pad_lists([spec["layout"] for spec in specs], drawn)
    frames, numbers = _frames(specs, start)
    base = specs[start]
    layout = base["layout"] | {
        "meta": base["layout"]["meta"] | {"explorer": explorer, "states": numbers, "start": start},
        "sliders": [_slider([tuple(path) for path, _ in states], numbers, start, base["layout"])],
    }
    return PlainFigure({"data": base["data"], "layout": layout, "frames": frames})


def _frames(
    specs: Sequence[Mapping[str, Any]], start: int
) -> tuple[list[dict[str, Any]], list[int]]:
    """Return the frames, and the frame number of every state."""
    base = specs[start]
    parts = [(*spec["data"], spec["layout"]) for spec in specs]
    changed = [[changes(*pair) for pair in zip(parts[start], part, strict=True)] for part in parts]
    for column in changed:
        for drawn in {*DRAWN} & {*column[-1]}:
            column[-1][drawn] = [
                _nested(changes(*pair))
                for pair in zip(base["layout"][drawn], column[-1][drawn], strict=True)
            ]
            while not column[-1][drawn][-1]:  # frame 0 holds the unchanged entries at the end
                column[-1][drawn].pop()
    moved = [
        {path for column in changed for path in column[place]} for place in range(len(parts[start]))
    ]
    whole = [
        {path: leaves(part).get(path) for path in paths}
        for part, paths in zip(parts[start], moved, strict=True)
    ]
    frames = [_frame(0, base["data"], whole)]
    known = {json.dumps(changed[start]): 0}
    numbers = []
    for column in changed:
        number = known.setdefault(json.dumps(column), len(known))
        if number == len(frames):
            frames.append(_frame(number, base["data"], column) | {"baseframe": "0"})
        numbers.append(number)
    return frames, numbers


def _slider(
    paths: Sequence[tuple[str, ...]], numbers: Sequence[int], start: int, layout: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a slider with a step for each path prefix on which the figure depends."""
    pairs = list(zip(paths, numbers, strict=True))
    depth = next(
        depth
        for depth in range(1, len(paths[start]) + 1)
        if depth == len(paths[start])
        or len({path[:depth] for path in paths})
        == len({(path[:depth], number) for path, number in pairs})
    )
    shown = {path[:depth]: number for path, number in pairs}
    # Plotly shortens a transition to the duration of its frame.
    instant = {"mode": "immediate", "frame": {"duration": 0}}
    return {
        "active": [*shown].index(paths[start][:depth]),
        "x": 0,
        "len": 1,
        "y": 1,
        "yanchor": "bottom",
        "pad": {"t": 0, "b": max(0, layout["margin"]["t"] - SLIDER_ROOM - 40)},
        "minorticklen": 0,
        "ticklen": 4,
        "font": {"color": "rgba(0,0,0,0)", "size": 6},  # hidden: the current value is shown
        "currentvalue": {"font": {"color": INK, "size": 13}},
        "steps": [
            {
                "label": label(plain(", ".join(path)), 80),
                "method": "animate",
                "args": [[str(number)], instant],
            }
            for path, number in shown.items()
        ],
    }


def _pad_lists(layouts: Sequence[dict[str, Any]], drawn: str) -> None:
    """Pad the shapes or annotations of all layouts with hidden ones to the same lists.

    Shapes of one kind (with the same properties) then have the same indices in all layouts.
    """
    found = [
        [(frozenset(leaves(one)), one) for one in layout.get(drawn) or ()] for layout in layouts
    ]
    counts = [Counter(kind for kind, _ in own) for own in found]
    examples = {kind: one for own in reversed(found) for kind, one in reversed(own)}
    for layout, own in zip(layouts, found, strict=True):
        placed: list[dict[str, Any]] = []
        for kind, most in functools.reduce(operator.or_, counts).items():
            there = [one for its, one in own if its == kind]
            if most > min(count[kind] for count in counts):
                there = [one | {"visible": True} for one in there]
            hidden = examples[kind] | {"visible": False}
            placed += [*there, *[hidden] * (most - len(there))]
        if placed:
            layout[drawn] = placed


def _frame(
    number: int, data: Sequence[Mapping[str, Any]], changed: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a frame from the changes of every trace and, last in `changed`, of the layout."""
    moving = [place for place in range(len(data)) if changed[place]]
    frame = {
        "name": str(number),
        "traces": moving,
        "layout": _nested(changed[-1]),
        "data": [{"type": data[place]["type"]} | _nested(changed[place]) for place in moving],
    }
    return {key: part for key, part in frame.items() if part or key == "traces"}


CHAR_WIDTH = 7.5
"""Upper bound on the average width in pixels of a character in an axis label."""

AXIS_SPACE = 40
"""Width in pixels of the ticks and title of a y axis."""


def _equal_margins(specs: Sequence[dict[str, Any]]) -> None:
    """Give all states of a figure the same left margin, wide enough for the labels there.

    With ``automargin``, plotly does not move bars and lines when a frame changes the margin, so
    they no longer match the axis.
    """
    widths = [0.0]
    for spec in specs:
        layout = spec["layout"]
        margin = {**TEMPLATE_MARGIN, **(layout.get("margin") or {})}
        widths += [
            margin["l"],
            *(CHAR_WIDTH * most + AXIS_SPACE for most in _names_at_the_left(spec)),
        ]
    for spec in specs:
        layout = spec["layout"]
        layout["margin"] = (layout.get("margin") or {}) | {"l": math.ceil(max(widths))}
        for key in [key for key in layout if key.startswith("yaxis")]:
            layout[key] = layout[key] | {"automargin": "height"}


def _names_at_the_left(spec: Mapping[str, Any]) -> Iterator[int]:
    """Yield the length in characters of the longest label line of every y axis at the left."""
    layout = spec["layout"]
    for trace in spec["data"]:
        axis = trace.get("yaxis", "y")
        own = layout.get(axis.replace("y", "yaxis", 1)) or {}
        across = layout.get(trace.get("xaxis", "x").replace("x", "xaxis", 1)) or {}
        beside = (across.get("domain") or (0, 1))[0] > 0
        if beside or own.get("side") == "right" or own.get("showticklabels") is False:
            continue
        names = own.get("ticktext") or trace.get("y")
        for name in names if isinstance(names, list | tuple) else ():
            if isinstance(name, str):
                yield _width(name)


@cached
def _width(name: str) -> int:
    """Return the length in characters of the longest line of a name."""
    return max(len(plain(line)) for line in name.split("<br>"))


def _make_room(layout: dict[str, Any], pixels: int) -> None:
    margin = {**TEMPLATE_MARGIN, **(layout.get("margin") or {})}
    layout["margin"] = (layout.get("margin") or {}) | {"t": margin["t"] + pixels}
    layout["height"] += pixels


def without_slider(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the JSON of a framed figure without its slider and the space for it.

    A page with other controls for the frames uses it.

    Args:
        spec: the JSON of the framed figure.
    """
    copy: dict[str, Any] = json.loads(json.dumps(spec))
    copy["layout"].pop("sliders")
    _make_room(copy["layout"], -SLIDER_ROOM)
    for frame in copy["frames"]:
        layout = frame.get("layout", {})
        for part in (layout, layout.get("margin") or {}):
            for name in {"height", "t"} & {*part}:
                part[name] -= SLIDER_ROOM
    return copy


def at_frame(spec: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the JSON of a framed figure in the state of one frame, without frames.

    Args:
        spec: the JSON of the framed figure.
        number: position of the frame.
    """
    data, layout = list(spec["data"]), spec["layout"]
    for frame in (spec["frames"][0], spec["frames"][number]):
        for place, delta in zip(frame.get("traces", ()), frame.get("data", ()), strict=True):
            data[place] = _merged(data[place], delta)
        layout = _merged(layout, frame.get("layout", {}))
    return {"data": data, "layout": layout}


def _merged(base: Any, delta: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base or {})
    for key, value in delta.items():
        if key in DRAWN:
            olds, nothing = list(merged.get(key) or ()), dict[str, Any]()
            pairs = itertools.zip_longest(olds, value, fillvalue=nothing)
            merged[key] = [_merged(old, new) for old, new in pairs]
        elif isinstance(value, Mapping) and key != "clicks":
            merged[key] = _merged(merged.get(key), value)
        else:
            merged[key] = value
    return merged


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a nested mapping from its values by dotted path."""
    nested: dict[str, Any] = {}
    for path in sorted(values):
        *above, last = path.split(".")
        place = nested
        for key in above:
            place = place.setdefault(key, {})
        place[last] = values[path]
    return nested
