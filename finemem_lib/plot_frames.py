"""Beside the picture: a figure's data as a table, and figures whose states are precomputed frames.

A framed figure needs no kernel and no network: its states are plotly frames that a slider, or the
script of the report, moves through.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from finemem_lib.plot_style import INK, TEMPLATE, label, plain


def figure_table(figure: go.Figure | Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the data of a figure as rows, for readers who do not see it and for tests.

    Reads the kinds of traces that the builders of this module make; others have no rows.

    >>> figure_table(go.Figure(go.Bar(x=[1, 2], y=[3.0, None], name="a")))
    [{'series': 'a', 'x': 1, 'y': 3.0}]
    """
    spec = figure.to_plotly_json() if isinstance(figure, go.Figure) else figure
    layout = spec.get("layout", {})
    rows: list[dict[str, Any]] = []
    for trace in spec.get("data", ()):
        name = plain(trace.get("name", ""))
        if trace["type"] == "sankey":
            names = [plain(text) for text in trace["node"]["label"]]
            columns = (trace["link"][key] for key in ("source", "target", "value", "label"))
            rows += [{"from": names[source], "to": names[target], "share": value, "kind": kind}
                     for source, target, value, kind in zip(*columns, strict=True)]
            continue
        xs, ys = trace.get("x"), trace.get("y")
        listed = isinstance(xs, list | tuple) and isinstance(ys, list | tuple)
        if not listed or trace.get("hoverinfo") == "skip":
            continue
        x_name, x_text = _axis_of(layout, "x", trace.get("xaxis", "x"))
        y_name, y_text = _axis_of(layout, "y", trace.get("yaxis", "y"))
        if trace["type"] == "heatmap":
            notes = trace.get("customdata") or [[]] * len(ys)
            rows += [{"series": name, x_name: x, y_name: y_text.get(y, y), "value": value}
                     | ({} if note is None else {"note": plain(note)})
                     for y, line, beside in zip(ys, trace["z"], notes, strict=True)
                     for x, value, note in itertools.zip_longest(xs, line, beside)
                     if value is not None]
            continue
        notes = trace.get("customdata") or [None] * len(xs)
        rows += [{"series": name, x_name: x_text.get(x, x), y_name: y_text.get(y, y)}
                 | ({} if note is None else {"note": plain(note)})
                 for x, y, note in zip(xs, ys, notes, strict=True)
                 if x is not None and y is not None]
    return rows


def _axis_of(layout: Mapping[str, Any], letter: str, axis: str) -> tuple[str, dict[Any, str]]:
    """Return the name of an axis and the texts that stand for its values; panels that share an
    axis are named on one of them only."""
    axes = {key.replace("axis", ""): spec for key, spec in layout.items()
            if key.startswith(f"{letter}axis")}
    own = axes.get(axis, {})
    root = own.get("matches", axis)
    shared = [spec for key, spec in axes.items() if root in (key, spec.get("matches"))]
    titles = [(spec.get("title") or {}).get("text") for spec in (own, *shared)]
    title = re.sub(r"</?sub>", "", next(filter(None, titles), letter))
    texts = zip(own.get("tickvals") or (), own.get("ticktext") or (), strict=False)
    return plain(title), {value: plain(text) for value, text in texts}


def leaves(spec: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of a nested mapping by dotted path; lists and ``meta`` are not entered.

    >>> leaves({"line": {"color": "red"}, "x": (1, 2)})
    {'line.color': 'red', 'x': [1, 2]}
    """
    found: dict[str, Any] = {}
    for key, value in spec.items():
        if isinstance(value, Mapping) and value and key != "meta":
            found |= leaves(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = list(value) if isinstance(value, tuple) else value
    return found


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return by dotted path what `after` has that `before` has not; `None` for what is gone.

    >>> changes({"x": [1], "line": {"color": "red"}}, {"x": [1], "line": {"width": 2}})
    {'line.color': None, 'line.width': 2}
    """
    old, new = leaves(before), leaves(after)
    return {path: new.get(path) for path in old | new if old.get(path) != new.get(path)}


SLIDER_ROOM = 64
"""Pixels that `framed` puts between the title and the drawing, for its slider."""


def framed(
    states: Sequence[tuple[str, go.Figure]], start: int, explorer: str
) -> go.Figure:
    """Join figures of the same traces into one with a plotly slider, which needs no kernel.

    states: the name of each state and its figure, in the order of the slider. start: the position
    of the one shown first. explorer: what figures that move together have in common; the report
    puts one slider above all of them. A frame holds whatever differs between any two states, so
    that each can follow each.

    Raises:
        ValueError: two states have other traces (number or types).
    """
    specs = [figure.to_plotly_json() for _, figure in states]
    kinds = [[trace["type"] for trace in spec["data"]] for spec in specs]
    for (name, _), spec, found in zip(states, specs, kinds, strict=True):
        if found != kinds[start]:
            raise ValueError(
                f"framed: state {name!r} has the traces {found}, expected {kinds[start]} as in the "
                "first; let the builder return the same traces in every state, empty where needed"
            )
        _make_room(spec["layout"], SLIDER_ROOM)
        for drawn in ("shapes", "annotations"):
            # plotly drops an empty list, and the frame could not take away what another one drew
            if drawn in spec["layout"] and not spec["layout"][drawn]:
                spec["layout"][drawn] = [{"visible": False}]
    base = specs[start]
    parts = [(*spec["data"], spec["layout"]) for spec in specs]
    varying = [
        {path for part in parts for path in changes(parts[start][place], part[place])}
        for place in range(len(parts[start]))
    ]
    moving = [place for place in range(len(base["data"])) if varying[place]]
    frames = [
        {"name": str(number), "traces": moving, "layout": _nested(part[-1], varying[-1]),
         "data": [{"type": part[place]["type"]} | _nested(part[place], varying[place])
                  for place in moving]}
        for number, part in enumerate(parts)
    ]
    instant = {"mode": "immediate", "transition": {"duration": 0}, "frame": {"duration": 0}}
    margin = base["layout"]["margin"]["t"] - SLIDER_ROOM
    layout = base["layout"] | {
        "meta": base["layout"]["meta"] | {"explorer": explorer},
        "sliders": [{
            "active": start, "x": 0, "len": 1, "y": 1, "yanchor": "bottom",
            "pad": {"t": 0, "b": max(0, margin - 40)}, "minorticklen": 0, "ticklen": 4,
            "font": {"color": "rgba(0,0,0,0)", "size": 6},  # one name is enough, the current one
            "currentvalue": {"font": {"color": INK, "size": 13}},
            "steps": [{"label": label(name, 80), "method": "animate",
                       "args": [[str(number)], instant]}
                      for number, (name, _) in enumerate(states)],
        }],
    }
    return go.Figure({"data": base["data"], "layout": layout, "frames": frames})


def _make_room(layout: dict[str, Any], pixels: int) -> None:
    margin = layout.get("margin") or {}
    layout["margin"] = margin | {"t": margin.get("t", TEMPLATE["layout"]["margin"]["t"]) + pixels}
    layout["height"] += pixels


def without_slider(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the spec of a framed figure without its slider and the room for it, for a page that
    moves the frames by other means."""
    spec = json.loads(json.dumps(spec))
    spec["layout"].pop("sliders")
    _make_room(spec["layout"], -SLIDER_ROOM)
    for frame in spec["frames"]:
        layout = frame.get("layout", {})
        for part in (layout, layout.get("margin") or {}):
            for name in {"height", "t"} & {*part}:
                part[name] -= SLIDER_ROOM
    return spec


def at_frame(spec: Mapping[str, Any], number: int) -> dict[str, Any]:
    """Return the spec of a framed figure in one of its states, without frames."""
    frame = spec["frames"][number]
    data = list(spec["data"])
    for place, delta in zip(frame.get("traces", ()), frame.get("data", ()), strict=True):
        data[place] = _merged(data[place], delta)
    return {"data": data, "layout": _merged(spec["layout"], frame.get("layout", {}))}


def _merged(base: Any, delta: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(base or {})
    for key, value in delta.items():
        made[key] = _merged(made.get(key), value) if isinstance(value, Mapping) else value
    return made


def _nested(spec: Mapping[str, Any], paths: Iterable[str]) -> dict[str, Any]:
    values = leaves(spec)
    made: dict[str, Any] = {}
    for path in sorted(paths):
        *above, last = path.split(".")
        place = made
        for key in above:
            place = place.setdefault(key, {})
        place[last] = values.get(path)
    return made
