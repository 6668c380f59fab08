"""Explorers made by hand, and what must hold for the static form of any explorer."""

from __future__ import annotations

import json
from typing import Any

import plotly.graph_objects as go

from finemem_lib import figures
from finemem_lib.explorers import Control, Explorer
from finemem_lib.figures.frames import at_frame, without_slider


def bar(heights: list[float], clicks: list[Any] | None = None) -> go.Figure:
    meta = {"caption": f"Sum {sum(heights)}.", "alt": "Bars."}
    if clicks:
        meta["clicks"] = {"control": "n", "points": {"0": clicks}}
    return go.Figure(
        {
            "data": [{"type": "bar", "x": [1, 2], "y": heights}],
            "layout": {"title": {"text": "Bars"}, "height": 300, "meta": meta},
        }
    )


def static_states(explorer: Explorer) -> list[dict[str, Any]]:
    """What each position of the static form shows."""
    first = explorer.settle({})
    return [explorer.settle(state) for state in explorer.linked] or [
        explorer.settle(first | {control.name: value})
        for control in explorer.controls
        for _, value in control.frames(first)
    ]


def assert_frames_are_the_states(explorer: Explorer) -> None:
    """Any frame may follow any other, so each must undo what the others changed."""
    states = static_states(explorer)
    specs = [without_slider(json.loads(figure.to_json())) for figure in explorer.static_figures()]
    for place, state in enumerate(states):
        wanted = explorer.figures(**state).values()
        for view, (spec, want) in enumerate(zip(specs, wanted, strict=True)):
            frames = spec["layout"]["meta"]["states"]
            other = at_frame(spec, frames[(place + 3) % len(states)])
            after = at_frame(other | {"frames": spec["frames"]}, frames[place])
            assert figures.figure_table(after) == figures.figure_table(want)
            expected = json.loads(go.Figure(want.to_plotly_json()).to_json())
            layouts = after["layout"], expected["layout"]
            assert layouts[0]["meta"]["alt"] == layouts[1]["meta"]["alt"]
            note = layouts[0]["meta"]["caption"].removeprefix(layouts[1]["meta"]["caption"])
            assert not note or (view == 0 and note.startswith(" Without a kernel: "))
            for layout in layouts:  # the static form has one margin for all states
                layout.get("yaxis", {}).pop("automargin", None)
            for key in ("height", "title", "yaxis"):
                assert _without_none(layouts[0].get(key)) == _without_none(layouts[1].get(key))
            for drawn in ("shapes", "annotations"):
                assert _drawn(layouts[0], drawn) == _drawn(layouts[1], drawn)
            named = json.loads(go.Figure({"data": after["data"]}).to_json())["data"]
            for trace, wanted in zip(named, expected["data"], strict=True):
                assert _without_none(trace) == _without_none(wanted)


def _drawn(layout: dict[str, Any], what: str) -> list[str]:
    return sorted(
        json.dumps({**one, "visible": True}, sort_keys=True)
        for one in layout.get(what, ())
        if one.get("visible", True)
    )


def drill() -> Explorer:
    """Three levels of which not every state has frames: a view for each, and one that is fixed."""

    def build(run: str, step: int, token: int, colour: str) -> dict[str, go.Figure]:
        return {
            "run": bar([len(run), 5]).update_layout(
                meta={
                    "caption": "Runs.",
                    "alt": "Bars.",
                    "clicks": {"control": "run", "points": {"0": ["a", "bb"]}},
                }
            ),
            "step": bar([len(run), step]).update_layout(
                meta={
                    "caption": "Steps.",
                    "alt": "Bars.",
                    "clicks": {"control": "token", "points": {"0": [1, 2]}},
                }
            ),
            "token": bar([step, token]),
        }

    ways = {"a": {1: (1,), 2: (1, 2)}, "bb": {2: (1,), 3: (1,)}}
    return Explorer(
        "Drill",
        (
            Control("run", "run", [("first", "a"), ("second", "bb")], "bb"),
            Control("step", "step", lambda state: [(str(n), n) for n in ways[state["run"]]]),
            Control("token", "token", [(str(n), n) for n in (1, 2)]),
            Control("colour", "colour", [("red", "r"), ("blue", "b")]),
        ),
        build,
        [
            {"run": run, "step": step, "token": token}
            for run, steps in ways.items()
            for step, tokens in steps.items()
            for token in tokens
        ],
    )


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(one) for key, one in value.items() if one is not None}
    return value
