"""The benchmark of explorers: what the static form costs, now and before it was made faster."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest

from finemem_lib.explorers import memory_player
from finemem_lib.util.provenance import workbench_root
from tests.helpers.benchmarks import benchmark_module
from tests.helpers.figure_samples import make_trajectory


@pytest.fixture(scope="module")
def explore(request: pytest.FixtureRequest):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(workbench_root() / "benchmarks"))
        yield benchmark_module("explore")


def test_the_static_form_is_that_of_figures_made_of_objects() -> None:
    """Figures that stay JSON, and share their parts, lead to the frames that plotly's copies do."""
    player = memory_player(make_trajectory())

    def build(**state: Any) -> dict[str, go.Figure]:
        views = player.build(**state)
        return {name: go.Figure(one.to_dict(), _validate=False) for name, one in views.items()}

    objects = dataclasses.replace(player, build=build)
    assert [json.loads(one.to_json()) for one in player.static_figures()] == [
        json.loads(one.to_json()) for one in objects.static_figures()
    ]


def test_the_states_of_a_library_are_drawn_by_another(explore) -> None:
    """The worker draws the states that it is given, and those of the library where it has none."""
    states = {"evidence": ["", "step 2"]}
    rows = explore.static_form(workbench_root(), 8, states)
    assert rows["evidence"]["states"] == states["evidence"]
    assert rows["memory player"]["states"] == [*range(9)]
    assert all(row["cpu_ms"] > 0 and row["bytes"] > 1000 for row in rows.values())


def test_a_long_stream_is_measured(explore) -> None:
    rows = explore.measure_long(300)
    assert [row["explorer"] for row in rows] == [f"{name}, 300 steps" for name in explore.STATIC]
    assert all(2 < row["frames"] < 25 and row["peak_mb"] > 0 for row in rows)


def test_the_committed_rows_say_what_was_measured(explore) -> None:
    path = workbench_root() / "data" / "experiments" / "explore.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    card = json.loads(Path(path).with_suffix(".json").read_text("utf-8"))
    assert (card["steps"], card["questions"]) == (200, 100) and card["git"]["commit"]
    static = {
        (row["explorer"], row["part"]): row for row in rows if row["part"].startswith("static")
    }
    assert {*static} == {
        (f"{name}, {steps} steps", part)
        for name in explore.STATIC
        for steps, parts in {
            200: ("static", f"static at {card['before']}"),
            1000: ("static", f"static at {card['before']}"),
            explore.LONG: ("static",),
        }.items()
        for part in parts
    }
    now = [row for (_, part), row in static.items() if part == "static" and "of_before" in row]
    assert len(now) == 4 and all(row["of_before"] <= 0.25 for row in now)
    assert all(row["cpu_ms"] > 0 for row in rows)


def test_the_committed_rows_of_drawn_figures_have_every_view() -> None:
    path = workbench_root() / "data" / "experiments" / "drawn.jsonl"
    rows = [json.loads(line) for line in path.read_text("utf-8").splitlines()]
    views = Counter(row["explorer"] for row in rows)
    assert views == {"evidence": 6, "memory player": 3, "what-if": 4}
    assert all(0 < row["kernel_cpu_ms"] < row["cpu_ms"] for row in rows)
