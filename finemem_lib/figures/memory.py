"""Figures of memory and operations over the steps of a trajectory, and of rejected questions."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import plotly.graph_objects as go

from finemem_lib.data.instance_names import instance_name
from finemem_lib.figures import style
from finemem_lib.figures.history import Life, memory_history, per_trajectory
from finemem_lib.figures.selection import (
    clicks_on,
    faded,
    outcome_name,
    outline,
    score_text,
    selected_items,
    selecting_clicks,
    step_outline,
    stored_in,
)
from finemem_lib.figures.style import (
    BLUE,
    GREEN,
    GREY,
    OPERATION_STYLE,
    ORANGE,
    PALE,
    PINK,
    RED,
    elided,
    label,
    paragraph,
)
from finemem_lib.text import TOKENIZER, count_tokens
from finemem_lib.trajectory import (
    OPERATION_KINDS,
    AnsweredQuestion,
    MemoryDelta,
    MemoryItem,
    OperationOutcome,
    Trajectory,
    creation_key,
)

if TYPE_CHECKING:
    from finemem_lib.data.questions import AuditRow


def question_audit(rows: Iterable[AuditRow]) -> go.Figure:
    """Show the number of candidate questions per chunk that were kept, and rejected by reason.

    Args:
        rows: one row per candidate question, of any number of streams.
    """
    rows = list(rows)
    steps = sorted({row.step for row in rows})
    accepted = Counter(row.step for row in rows if row.accepted)
    rejected = Counter((row.step, row.reason) for row in rows if not row.accepted)
    reasons = Counter(row.reason for row in rows if not row.accepted).most_common()
    fig = go.Figure(
        go.Bar(
            x=steps,
            y=[accepted[step] for step in steps],
            name="accepted",
            marker_color=BLUE,
        )
    )
    for number, (reason, _) in enumerate(reasons, start=1):
        fig.add_bar(
            x=steps,
            y=[rejected[step, reason] for step in steps],
            name=label(f"rejected: {reason}"),
            marker={
                "color": style.series_color(number),
                "pattern": style.pattern(number),
            },
        )
    kept = sum(accepted.values())
    per_chunk = kept / len(steps) if steps else 0.0
    top = (
        f"; the most frequent reason for rejection is {style.one_line(reasons[0][0], 40)!r}"
        if reasons
        else ""
    )
    return style.finish(
        fig,
        "Candidate questions per chunk",
        f"{kept} of {len(rows)} candidate questions were kept, {per_chunk:.1f} per chunk{top}.",
        f"Stacked bars over {len(steps)} steps: accepted questions below, rejected ones by reason "
        f"above.",
        380,
        barmode="stack",
        xaxis=style.count_axis(max(steps, default=1)),
        yaxis={"title_text": "candidates (count)"},
    )


MAX_POINTS = 400
"""Maximum number of points of `memory_growth`; in a longer trajectory a point is several steps."""


def memory_growth(
    trajectory: Trajectory, step: int | None = None, window: tuple[int, int] | None = None
) -> go.Figure:
    """Show the items and tokens in memory after every step, and the operations of every step.

    Tokens are L(M_t) in the token unit of the trajectory.

    Args:
        trajectory: the trajectory.
        step: the marked step, from 1; a click selects another one. `None` for a figure without
            selection.
        window: first and last step shown; `None` for all.
    """
    first, last = window or (1, trajectory.num_steps)
    growth = _growth(trajectory, first, last)
    return style.from_traces(
        growth.traces,
        f"Memory of {label(trajectory.manager, 16)} · {label(instance_name(trajectory), 34)}",
        growth.caption,
        "Three panels over steps: items in memory, tokens in memory, and operations by kind.",
        560,
        None if step is None else clicks_on("step", growth.clicks),
        barmode="stack",
        xaxis=style.count_axis(max(1, last - first + 1))
        | {"anchor": "y3", "range": [first - 0.6, max(first, last) + 0.6]},
        yaxis=_growth_axis("items", [0.736, 1]),
        yaxis2=_growth_axis(f"tokens ({label(trajectory.tokenizer, 12)})", [0.412, 0.676]),
        yaxis3=_growth_axis("operations", [0, 0.352]),
        shapes=[] if step is None else [step_outline(step, 0.4 * growth.size)],
    )


class _Growth(NamedTuple):
    """The parts of `memory_growth` that do not depend on the marked step.

    A point stands for `size` steps.
    """

    traces: list[dict[str, Any]]
    caption: str
    clicks: dict[int, list[int]]
    size: int


@per_trajectory
def _growth(trajectory: Trajectory, first: int, last: int) -> _Growth:
    """Return the parts of `memory_growth` for the steps from `first` to `last`."""
    size = max(1, math.ceil((last - first + 1) / MAX_POINTS))
    ends = [*range(last, first - 1, -size)][::-1]  # the last step of every point
    steps = [trajectory.steps[end - 1].step for end in ends]
    every = memory_history(trajectory).counts
    tokens = [trajectory.steps[end - 1].memory_tokens for end in ends]
    kinds = [
        Counter(
            outcome_name(outcome)
            for record in trajectory.steps[max(first - 1, end - size) : end]
            for outcome in record.outcomes
        )
        for end in ends
    ]
    traces = [
        _growth_line("items", "y", BLUE, "circle", [every[end] for end in ends]),
        _growth_line("tokens", "y2", ORANGE, "diamond", tokens),
        *_operation_bars(kinds, memory_history(trajectory).names),
    ]
    for trace in traces:
        trace["x"] = steps
    total: Counter[str] = Counter()
    for kind in kinds:
        total.update(kind)
    read = sum(record.chunk.tokens for record in trajectory.steps[:last])
    length = tokens[-1] if tokens else 0
    kept = f" ({length / read:.0%} of the text read)" if read else ""
    shown = f" Steps {first} to {last} of {trajectory.num_steps} are shown."
    part = "" if last - first + 1 == trajectory.num_steps else shown
    caption = (
        f"After {last} steps the memory holds {every[last]} items "
        f"and {length} tokens{kept}; {total.total() - total['invalid']} of {total.total()} emitted "
        f"operations were valid.{f' A point stands for {size} steps.' if size > 1 else ''}"
        f"{part}"
    )
    return _Growth(traces, caption, dict.fromkeys(range(len(traces)), steps), size)


def _growth_line(
    name: str, axis: str, color: str, symbol: str, values: Sequence[int]
) -> dict[str, Any]:
    return {
        "type": "scatter",
        "mode": "lines+markers" if len(values) <= 40 else "lines",
        "showlegend": False,
        "y": list(values),
        "name": name,
        "yaxis": axis,
        "line": {"color": color},
        "marker": {"symbol": symbol},
    }


def _operation_bars(
    kinds: Sequence[Counter[str]], occurring: Collection[str]
) -> list[dict[str, Any]]:
    """Return bars of the operations of every step, for the kinds that occur."""
    return [
        {
            "type": "bar",
            "y": [kind[name] for kind in kinds],
            "name": name,
            "yaxis": "y3",
            "marker": {"color": OPERATION_STYLE[name][0], "pattern": style.pattern(number)},
        }
        for number, name in enumerate((*OPERATION_KINDS, "invalid"))
        if name in occurring
    ]


def _growth_axis(title: str, domain: Sequence[float]) -> dict[str, Any]:
    return {"title": {"text": title}, "rangemode": "tozero", "domain": list(domain)}


MEMORY_STATES = {
    "inserted at this step": GREEN,
    "updated at this step": ORANGE,
    "kept": BLUE,
    "kept, never retrieved": PALE,
    "deleted at this step": RED,
    "evicted at this step": PINK,
}
"""The states of an item in `memory_state`, with their colours."""


STATE_SIGNS = dict(zip(MEMORY_STATES, ("+ ", "~ ", "", "", "− ", "× "), strict=True))
"""The sign of each state before the name of an item, for readers who do not see colours."""

OPERATION_SIGNS = {"INSERT": "+", "UPDATE": "~", "DELETE": "−"}

CHUNK_LENGTH = 600
"""Maximum characters of a chunk in `memory_state`."""

SHOWN_OUTCOMES = 8
"""Maximum number of outcomes of a step listed in `memory_state`."""


def first_change(trajectory: Trajectory) -> int:
    """Return the first step that updated or removed an item.

    Args:
        trajectory: the trajectory.

    Returns:
        The step, from 1; if there is none, the first step that wrote an item, or else 0.
    """
    first = 0
    for record in trajectory.steps:
        delta = record.delta
        if delta.removed or delta.evicted or any(len(item.lineage) > 1 for item in delta.written):
            return record.step
        first = first or (record.step if delta.written else 0)
    return first


def memory_state(trajectory: Trajectory, step: int, max_items: int = 24) -> go.Figure:
    """Show M_t, the items in memory after one step, with the operations and chunk of the step.

    Bars are tokens (`text.count_tokens`), also of items that this step removed. Items that no
    question of the trajectory retrieved are grey. Signs repeat the colours: + inserted, ~ updated,
    − deleted, × evicted. On the right are the chunk and the operations of the step.

    Args:
        trajectory: the trajectory.
        step: the step t in 0..T; 0 is the empty memory at the start.
        max_items: maximum number of items; those touched by this step come first, then those
            written last.

    Raises:
        ValueError: `step` is outside 0..T.
    """
    if not 0 <= step <= trajectory.num_steps:
        raise ValueError(f"memory_state: step {step} is outside 0..{trajectory.num_steps}")
    past = memory_history(trajectory)
    before = past.there(_mentioned_items(trajectory, step), max(0, step - 1))
    touched = _touched(trajectory.steps[step - 1].delta if step else MemoryDelta(), before)
    chosen: Sequence[str] = past.ids
    if len(chosen) > max_items:
        chosen = _latest(trajectory, step, touched, max_items)
    there = past.there(chosen, max(0, step - 1)) | past.there(chosen, step)
    kept = {id_: "kept" if past.hits[id_] else "kept, never retrieved" for id_ in there}
    bars, texts = _items_by_state(chosen, there, kept | touched)
    cut = "" if len(chosen) == len(past.ids) else f" ({len(chosen)} shown)"
    changes = _changes_text(touched)
    page = _step_page(trajectory, step, before)
    return style.from_traces(
        [
            _state_bars(number, state, items, past.hits)
            for number, (state, items) in enumerate(bars.items())
        ],
        f"Memory after step {step} of {trajectory.num_steps} · "
        f"{label(instance_name(trajectory), 36)}",
        f"{past.counts[step]} items{cut}, {past.tokens[step]} tokens; at this step: {changes}. "
        f"{past.idle[step]} of the items are never retrieved (grey).",
        f"One bar per memory item; colour, pattern, legend and the sign before its name tell what "
        f"step {step} did to it. At the right the chunk that it read.",
        200 + max(24 * max(1, len(chosen)), 17 * (page.count("<br>") + 2)),
        barmode="overlay",
        xaxis={
            "title": {"text": f"length ({label(TOKENIZER, 12)})"},
            "range": [0, past.longest * 1.08],
            "domain": [0, 0.34],
        },
        yaxis={"title": {"text": "memory item"}} | style.lines_axis(texts),
        annotations=[_page_annotation(page)],
    )


def _items_by_state(
    chosen: Sequence[str], there: Mapping[str, MemoryItem], states: Mapping[str, str]
) -> tuple[dict[str, list[tuple[int, MemoryItem]]], list[str]]:
    """Return the lane and item of every bar by state, and the names of the lanes.

    An item that is not in `there` has no bar; the name of an item that the step touched is bold.
    """
    bars: dict[str, list[tuple[int, MemoryItem]]] = {state: [] for state in MEMORY_STATES}
    names = []
    for lane, item_id in enumerate(chosen):
        name = f"#{label(item_id, 8)}"
        if item_id in there:
            state = states[item_id]
            bars[state].append((lane, there[item_id]))
            name = f"{STATE_SIGNS[state]}{name} {elided(there[item_id].content, 24)}"
            name = name if state.startswith("kept") else f"<b>{name}</b>"
        names.append(name)
    return bars, names


def _mentioned_items(trajectory: Trajectory, step: int) -> set[str]:
    """Return the ids of the items that a step or its operations name."""
    if not step:
        return set()
    record = trajectory.steps[step - 1]
    delta = record.delta
    written = (item.item_id for item in delta.written)
    named = (outcome.item_id or "" for outcome in record.outcomes)
    return {*written, *delta.removed, *delta.evicted, *named}


def _latest(trajectory: Trajectory, step: int, touched: Collection[str], most: int) -> list[str]:
    """Return ids of items after a step: first those it touched, then those written last."""
    past = memory_history(trajectory)
    found = past.there(touched, max(0, step - 1)) | past.there(touched, step)
    for number in range(step, 0, -1):
        if len(found) >= most:
            break
        for item in trajectory.steps[number - 1].delta.written:
            if past.at(item.item_id, step) is item:
                found.setdefault(item.item_id, item)
    order = sorted(
        found, key=lambda one: (one not in touched, -found[one].last_step, creation_key(found[one]))
    )
    return sorted(order[:most], key=lambda one: creation_key(found[one]))


def _changes_text(touched: Mapping[str, str]) -> str:
    """Return a phrase with the number of items that a step inserted, updated or removed."""
    counts = Counter(touched.values())
    parts = [f"{count} {state.removesuffix(' at this step')}" for state, count in counts.items()]
    return ", ".join(parts) or "nothing changed"


def _page_annotation(text: str) -> dict[str, Any]:
    """Return the annotation with a text to the right of the bars."""
    return {
        "x": 0.38,
        "y": 1,
        "xref": "paper",
        "yref": "paper",
        "xanchor": "left",
        "yanchor": "top",
        "align": "left",
        "text": text,
        "showarrow": False,
        "font": {"size": 12},
    }


def _step_page(trajectory: Trajectory, step: int, before: Mapping[str, MemoryItem]) -> str:
    """Return the chunk and the operations of a step, escaped and in lines."""
    if not step:
        return "<b>before step 1</b><br>nothing was read"
    record = trajectory.steps[step - 1]
    text = record.chunk.text
    cut = "" if len(text) <= CHUNK_LENGTH else f"<br>(its first {CHUNK_LENGTH} characters)"
    lines = [_outcome_line(outcome, before) for outcome in record.outcomes]
    lines += [f"× evicted #{label(item_id, 8)}" for item_id in record.delta.evicted]
    more = len(lines) - SHOWN_OUTCOMES
    emitted = lines[:SHOWN_OUTCOMES] + [f"and {more} more"] * (more > 0)
    return "<br>".join(
        [
            f"<b>step {step} reads</b>",
            paragraph(text, CHUNK_LENGTH, 30) + cut,
            f"<b>and emits</b>{'' if emitted else ' nothing'}",
            *emitted,
        ]
    )


def _outcome_line(outcome: OperationOutcome, before: Mapping[str, MemoryItem]) -> str:
    """Return the outcome of an operation, escaped and on one line."""
    kind = outcome.operation.kind if outcome.operation else "no operation"
    if not outcome.applied:
        return f"refused: {label(kind, 20)} ({label(outcome.reason, 20)})"
    item_id = outcome.item_id or ""
    named = f" #{label(item_id, 8)}" if item_id else ""
    was = f", was: {elided(before[item_id].content, 13)}" if item_id in before else ""
    return f"{OPERATION_SIGNS.get(kind, '')} {kind}{named}{was}".strip()


def _state_bars(
    number: int, state: str, items: Sequence[tuple[int, MemoryItem]], hits: Collection[str]
) -> dict[str, Any]:
    """Return the bars of the items in one state, given as (lane, item); `hits` were retrieved."""
    notes = []
    for _, item in items:
        writes = ", ".join(f"{write.kind} at step {write.step}" for write in item.lineage)
        notes.append(
            f"#{label(item.item_id, 8)}{stored_in(item)}: {paragraph(item.content)}<br>{writes}<br>"
            f"{'retrieved' if item.item_id in hits else 'never retrieved'}"
        )
    return {
        "type": "bar",
        "orientation": "h",
        "name": state,
        "x": [count_tokens(item.content) for _, item in items],
        "y": [lane for lane, _ in items],
        "customdata": notes,
        "hovertemplate": "%{customdata}<br>%{x} tokens<extra></extra>",
        "marker": {
            "color": MEMORY_STATES[state],
            "pattern": style.pattern(number),
            "line": {"color": GREY, "width": 1},
        },
    }


def _touched(delta: MemoryDelta, before: Mapping[str, MemoryItem]) -> dict[str, str]:
    """Return the state in `memory_state` of every item that a step changed."""
    touched = {
        item.item_id: f"{'updated' if item.item_id in before else 'inserted'} at this step"
        for item in delta.written
    }
    touched |= {item_id: "deleted at this step" for item_id in delta.removed}
    touched |= {item_id: "evicted at this step" for item_id in delta.evicted}
    return touched


def operation_timeline(
    trajectory: Trajectory,
    max_items: int = 24,
    selected: str | None = None,
    window: tuple[int, int] | None = None,
) -> go.Figure:
    """Show the lifetime, operations and retrievals of every memory item on a time line.

    Every item has a lane with a line for its lifetime, a marker per operation and a tick per
    retrieval. Global questions follow the last step.

    Args:
        trajectory: the trajectory.
        max_items: maximum number of lanes: the most retrieved items, then the oldest.
        selected: the selection to highlight: "question j", "step t", "item id" or "" (see
            `selection`); `None` for a figure without selection.
        window: first and last step shown, with the items in memory then; `None` for all.
    """
    times = _Times.of(trajectory, window)
    past = memory_history(trajectory)
    lives = past.living(times.first, times.last)
    chosen = selected_items(trajectory, selected)
    lanes = _timeline_lanes(lives, chosen, max_items)
    marks = _operation_marks(trajectory, times, lives, lanes)
    traces, clicks = _timeline_traces(
        _lifetimes(lives, lanes, times.end),
        {**marks, **_retrieval_marks(_times_of_questions(trajectory, times), lanes)},
        lanes,
        chosen,
        selected,
    )
    bottom = any(mark.lane == len(lanes) for points in marks.values() for mark in points)
    names = [f"#{label(item_id, 8)} {label(lives[item_id].content, 24)}" for item_id in lanes]
    part = (
        ""
        if window is None
        else f" Steps {times.first} to {times.last} of {trajectory.num_steps} are shown."
    )
    return style.from_traces(
        traces,
        "Operations and retrievals per memory item",
        f"{_lives_caption(lives, past.hits, len(lanes))} The {len(trajectory.questions)} global "
        f"questions are asked after the last step.{part}",
        f"Timeline with one lane for each of {len(lanes)} memory items over "
        f"{times.last - times.first + 1} steps; marker shapes tell operations, ticks tell "
        "retrievals.",
        240 + 26 * (len(lanes) + bottom),
        selecting_clicks(selected, clicks),
        xaxis=times.axis(),
        margin={"t": 76},
        yaxis={"title": {"text": "memory item"}} | style.lines_axis(names + ["no item"] * bottom),
        shapes=[
            *(_lane_highlight(lane) for item_id, lane in lanes.items() if item_id in chosen),
            _start_of_questions(times.start),
        ],
        annotations=[_heading_of_questions((times.start + times.end) / 2)],
    )


class _Times(NamedTuple):
    """The time axis of the timeline, in steps.

    Attributes:
        first: First step shown.
        last: Last step shown.
        start: Where the global questions begin, after the last step of the trajectory.
        end: Where the global questions end.
        right: Where the axis ends.
    """

    first: int
    last: int
    start: float
    end: float
    right: float

    @classmethod
    def of(cls, trajectory: Trajectory, window: tuple[int, int] | None) -> _Times:
        first, last = window or (1, trajectory.num_steps)
        start = trajectory.num_steps + 0.55
        end = start + max(1.0, 0.2 * (last - first + 1))
        return cls(first, last, start, end, end if last == trajectory.num_steps else last + 0.55)

    def axis(self) -> dict[str, Any]:
        """Return the layout of the axis, with labels at steps only."""
        axis = style.count_axis(self.last - self.first + 1)
        named = [step for step in range(self.first, self.last + 1) if step % axis["dtick"] == 0]
        return axis | {"range": [self.first - 0.6, self.right], "tickvals": named}


def _timeline_lanes(
    lives: Mapping[str, Life], chosen: Collection[str], max_items: int
) -> dict[str, int]:
    """Return the lane of every item shown; items that come first in `lives` are preferred."""
    own = [item_id for item_id in lives if item_id in chosen]
    others = (item_id for item_id in lives if item_id not in chosen)
    shown = [*own, *itertools.islice(others, max(0, max_items - len(own)))][:max_items]
    shown.sort(key=lambda item_id: lives[item_id].order)
    return {item_id: lane for lane, item_id in enumerate(shown)}


def _lives_caption(lives: Mapping[str, Life], hits: Mapping[str, int], shown: int) -> str:
    """Return the caption: the numbers of items, removed items and items never retrieved."""
    never = sum(1 for item_id in lives if item_id not in hits)
    ended = sum(1 for life in lives.values() if life.end is not None)
    cut = "" if shown == len(lives) else f" ({shown} most retrieved shown)"
    return (
        f"Items: {len(lives)}{cut}; ended before the last step: {ended}; never retrieved: {never}."
    )


def _timeline_traces(
    lifetimes: dict[str, Any],
    marks: Mapping[str, Sequence[_Mark]],
    lanes: Mapping[str, int],
    chosen: Collection[str],
    selected: str | None,
) -> tuple[list[dict[str, Any]], dict[int, list[str | None]]]:
    """Return the traces of a timeline, and the selection set by a click on each point."""
    owners = [*(f"item {item_id}" for item_id in lanes), None]
    highlighted = [not selected or item_id in chosen for item_id in lanes] + [not selected]
    clicks: dict[int, list[str | None]] = {}
    traces = [lifetimes]
    for name, points in marks.items():
        if not points and selected is None:
            continue  # with selections, empty traces stay: all states need the same traces
        trace = _mark_trace(name, points)
        if selected is not None:
            clicks[len(traces)] = [owners[lane] for lane in trace["y"]]
            trace |= faded([highlighted[lane] for lane in trace["y"]])
        traces.append(trace)
    return traces, clicks


def _lane_highlight(lane: int) -> dict[str, Any]:
    fill = "rgba(0,114,178,0.08)"
    return outline(xref="paper", x0=0, x1=1, y0=lane - 0.5, y1=lane + 0.5, fillcolor=fill)


def _start_of_questions(x: float) -> dict[str, Any]:
    """Return the line between the last step and the global questions."""
    return {
        "type": "line",
        "x0": x,
        "x1": x,
        "yref": "y domain",
        "y0": 0,
        "y1": 1,
        "line": {"color": GREY, "dash": "dot", "width": 1},
    }


def _heading_of_questions(x: float) -> dict[str, Any]:
    return {
        "x": x,
        "y": 1,
        "yref": "paper",
        "yanchor": "bottom",
        "text": "global<br>questions",
        "showarrow": False,
        "font": {"size": 11},
    }


class _Mark(NamedTuple):
    """A point of the timeline: its position, its hover text and its time."""

    x: float
    lane: int
    hover: str
    time: int | str


Asked = tuple[float, int | str, AnsweredQuestion]
"""A question with its position on the time axis and the time at this position."""


def _times_of_questions(trajectory: Trajectory, times: _Times) -> list[Asked]:
    """Return the questions shown: chunk questions within their step, global ones after the last."""
    groups: list[tuple[float, float, int | str, Sequence[AnsweredQuestion]]] = [
        (step.step + 0.1, 0.8, step.step, step.chunk_questions)
        for step in trajectory.steps[times.first - 1 : times.last]
    ]
    room = times.end - times.start
    groups.append((times.start, room, "after the last", trajectory.questions))
    places = (
        (style.number(left + room * place / (len(group) + 1)), time, answered)
        for left, room, time, group in groups
        for place, answered in enumerate(group, start=1)
    )
    return [one for one in places if times.first <= one[0] <= times.right]


def _lifetimes(lives: Mapping[str, Life], lanes: Mapping[str, int], end: float) -> dict[str, Any]:
    """Return the trace with a line from the first to the last step of every item."""
    xs: list[float | None] = []
    ys: list[int | None] = []
    for item_id, lane in lanes.items():
        life = lives[item_id]
        xs += [life.born, life.end[0] if life.end else end, None]
        ys += [lane, lane, None]
    return {
        "type": "scatter",
        "x": xs,
        "y": ys,
        "mode": "lines",
        "name": "in memory",
        "hoverinfo": "skip",
        "line": {"color": PALE, "width": 8},
    }


def _operation_marks(
    trajectory: Trajectory,
    times: _Times,
    lives: Mapping[str, Life],
    lanes: Mapping[str, int],
) -> dict[str, list[_Mark]]:
    """Return the marks of operations and evictions by name, for every name in the trajectory.

    An operation that touched no item is in the lane below the items.
    """
    done = memory_history(trajectory).names
    marks: dict[str, list[_Mark]] = {name: [] for name in OPERATION_STYLE if name in done}
    for item_id, lane in lanes.items():
        life = lives[item_id]
        if life.end and life.end[1] == "evicted" and times.first <= life.end[0] <= times.last:
            step = life.end[0]
            hover = f"pushed out: {paragraph(life.content)}"
            marks["evicted"].append(_Mark(step, lane, hover, step))
    for record in trajectory.steps[times.first - 1 : times.last]:
        for outcome in record.outcomes:
            name = outcome_name(outcome)
            target = outcome.item_id if outcome.applied else None
            if target is not None and target not in lanes:
                continue
            content = outcome.operation.content if outcome.operation else outcome.raw
            reason = f" ({label(outcome.reason, 60)})" if outcome.reason else ""
            marks[name].append(
                _Mark(
                    record.step,
                    len(lanes) if target is None else lanes[target],
                    f"step {record.step}: {name}{reason}<br>{paragraph(content or '')}",
                    record.step,
                )
            )
    return marks


RETRIEVAL_STYLE = {
    "retrieved, answer right": (BLUE, "line-ns-open"),
    "retrieved, answer not right": (GREY, "line-ne-open"),
}


def _retrieval_marks(asked: Iterable[Asked], lanes: Mapping[str, int]) -> dict[str, list[_Mark]]:
    """Return the marks of retrievals, separately for right and other answers."""
    right, not_right = RETRIEVAL_STYLE
    marks: dict[str, list[_Mark]] = {right: [], not_right: []}
    for x, time, answered in asked:
        marks[right if answered.score else not_right] += [
            _Mark(
                x,
                lanes[found.item_id],
                f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 60)}"
                f"<br>score: {score_text(answered)}",
                time,
            )
            for found in answered.retrieved
            if found.item_id in lanes
        ]
    return marks


def _mark_trace(name: str, points: Sequence[_Mark]) -> dict[str, Any]:
    color, symbol = (OPERATION_STYLE | RETRIEVAL_STYLE)[name]
    marker: dict[str, Any] = {"color": color, "symbol": symbol, "size": 11}
    trace: dict[str, Any] = {}
    if name in RETRIEVAL_STYLE:
        marker["line"] = {"width": 2, "color": color}
        trace = {"meta": {"x": [mark.time for mark in points]}}
    return trace | {
        "type": "scatter",
        "x": [mark.x for mark in points],
        "y": [mark.lane for mark in points],
        "customdata": [mark.hover for mark in points],
        "mode": "markers",
        "name": name,
        "hovertemplate": "%{customdata}<extra></extra>",
        "marker": marker,
    }
