"""Memory and operations over the steps of one trajectory, and the audit of chunk questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import plotly.graph_objects as go

from finemem_lib.figures import style
from finemem_lib.figures.selection import (
    clicks_on,
    faded,
    outcome_name,
    outline,
    score_text,
    selected_items,
    selecting_clicks,
    step_outline,
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
    label,
    paragraph,
)
from finemem_lib.text import TOKENIZER, count_tokens
from finemem_lib.trajectory import (
    OPERATION_KINDS,
    AnsweredQuestion,
    MemoryDelta,
    MemoryItem,
    Trajectory,
    creation_key,
)

if TYPE_CHECKING:
    from finemem_lib.data.questions import AuditRow


def question_audit(rows: Iterable[AuditRow]) -> go.Figure:
    """Show what became of the candidate questions of each chunk: kept, or rejected and why.

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


def memory_growth(trajectory: Trajectory, step: int | None = None) -> go.Figure:
    """Show, step by step, items and tokens in memory and the operations that made them.

    Tokens are L(M_t) in the token unit of the trajectory.

    Args:
        trajectory: the trajectory.
        step: the step that is marked, from 1; a click chooses another one. `None` for a figure
            without selection.
    """
    steps = [record.step for record in trajectory.steps]
    counts = _item_counts(trajectory)
    tokens = [record.memory_tokens for record in trajectory.steps]
    kinds = [Counter(map(outcome_name, record.outcomes)) for record in trajectory.steps]
    traces = [
        _growth_line("items", "y", BLUE, "circle", counts),
        _growth_line("tokens", "y2", ORANGE, "diamond", tokens),
        *_operation_bars(kinds),
    ]
    for trace in traces:
        trace["x"] = steps
    total = sum(kinds, Counter())
    read = sum(record.chunk.tokens for record in trajectory.steps)
    length = tokens[-1] if tokens else 0
    kept = f" ({length / read:.0%} of the text read)" if read else ""
    return style.from_traces(
        traces,
        f"Memory of {label(trajectory.manager, 24)}, step by step",
        f"After {len(steps)} steps the memory holds {counts[-1] if counts else 0} items and "
        f"{length} tokens{kept}; {total.total() - total['invalid']} of {total.total()} emitted "
        "operations were valid.",
        "Three panels over steps: items in memory, tokens in memory, and operations by kind.",
        560,
        None if step is None else clicks_on("step", dict.fromkeys(range(len(traces)), steps)),
        barmode="stack",
        xaxis=style.count_axis(len(steps)) | {"anchor": "y3"},
        yaxis=_growth_axis("items", [0.736, 1]),
        yaxis2=_growth_axis(f"tokens ({label(trajectory.tokenizer, 12)})", [0.412, 0.676]),
        yaxis3=_growth_axis("operations", [0, 0.352]),
        shapes=[] if step is None else [step_outline(step, 0.4)],
    )


def _item_counts(trajectory: Trajectory) -> list[int]:
    """Return the number of items in memory after every step."""
    counts: list[int] = []
    alive: set[str] = set()
    for record in trajectory.steps:
        alive -= {*record.delta.removed, *record.delta.evicted}
        alive |= {item.item_id for item in record.delta.written}
        counts.append(len(alive))
    return counts


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


def _operation_bars(kinds: Sequence[Counter[str]]) -> list[dict[str, Any]]:
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
        if any(kind[name] for kind in kinds)
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
"""The states of an item in `memory_state`, each with its colour."""


def memory_state(trajectory: Trajectory, step: int, max_items: int = 24) -> go.Figure:
    """Show M_t, the memory after one step: its items, their length, what this step did to them.

    Lengths are tokens, as `text.count_tokens` counts them. An item that this step removed is shown
    a last time; an item that no question of the whole trajectory retrieved is grey.

    Args:
        trajectory: the trajectory.
        step: the step t in 0..T; 0 is the empty memory at the start.
        max_items: most items shown; those that this step touched come first, then the last written.

    Raises:
        ValueError: `step` is outside 0..T.
    """
    now = {item.item_id: item for item in trajectory.memory_at(step)}
    before = {item.item_id: item for item in trajectory.memory_at(max(0, step - 1))}
    hits = {
        found.item_id for answered in _all_questions(trajectory) for found in answered.retrieved
    }
    touched = _touched(trajectory.steps[step - 1].delta if step else MemoryDelta(), before)
    ever = {item.item_id: item for record in trajectory.steps for item in record.delta.written}
    there = before | now
    chosen = sorted(ever, key=lambda item_id: creation_key(ever[item_id]))
    if len(chosen) > max_items:
        first = sorted(
            there, key=lambda item_id: (item_id not in touched, -there[item_id].last_step)
        )[:max_items]
        chosen = [item_id for item_id in chosen if item_id in first]
    bars: dict[str, list[tuple[int, MemoryItem]]] = {state: [] for state in MEMORY_STATES}
    for lane, item_id in enumerate(chosen):
        if item_id in there:
            unchanged = "kept" if item_id in hits else "kept, never retrieved"
            bars[touched.get(item_id, unchanged)].append((lane, there[item_id]))
    texts = [
        f"#{label(item_id, 8)} {label(there[item_id].content, 30)}"
        if item_id in there
        else f"#{label(item_id, 8)}"
        for item_id in chosen
    ]
    longest = max((count_tokens(item.content) for item in ever.values()), default=1)
    idle = sum(1 for item_id in now if item_id not in hits)
    cut = "" if len(chosen) == len(ever) else f" ({len(chosen)} shown)"
    happened = (
        ", ".join(
            f"{count} {state.removesuffix(' at this step')}"
            for state, count in Counter(touched.values()).items()
        )
        or "nothing changed"
    )
    return style.from_traces(
        [
            _state_bars(number, state, items, hits)
            for number, (state, items) in enumerate(bars.items())
        ],
        f"Memory after step {step} of {trajectory.num_steps}",
        f"{len(now)} items{cut}, {sum(count_tokens(item.content) for item in now.values())} "
        f"tokens; at this step: {happened}. {idle} of the items are never retrieved (grey).",
        f"One bar per memory item; colour, pattern and legend tell what step {step} did to it.",
        200 + 24 * max(1, len(chosen)),
        barmode="overlay",
        xaxis={"title": {"text": f"length ({label(TOKENIZER, 12)})"}, "range": [0, longest * 1.08]},
        yaxis={"title": {"text": "memory item"}} | style.lines_axis(texts),
    )


def _state_bars(
    number: int, state: str, items: Sequence[tuple[int, MemoryItem]], hits: Collection[str]
) -> dict[str, Any]:
    """Return the bars of the items in one state, given as (lane, item); `hits` were retrieved."""
    notes = []
    for _, item in items:
        writes = ", ".join(f"{write.kind} at step {write.step}" for write in item.lineage)
        notes.append(
            f"#{label(item.item_id, 8)}: {paragraph(item.content)}<br>{writes}<br>"
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


def _all_questions(trajectory: Trajectory) -> Iterable[AnsweredQuestion]:
    for record in trajectory.steps:
        yield from record.chunk_questions
    yield from trajectory.questions


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
    trajectory: Trajectory, max_items: int = 24, selected: str | None = None
) -> go.Figure:
    """Show the life of every memory item: its operations, its end, and its retrievals.

    One lane per item, a line for its lifetime, a marker per operation, a tick per retrieval; global
    questions stand after the last step.

    Args:
        trajectory: the trajectory.
        max_items: most lanes shown: the most retrieved items, then the oldest.
        selected: "question j", "step t", "item id" or "" to highlight what belongs to it (see
            `selection`); `None` for a figure without selection.
    """
    start = trajectory.num_steps + 0.55  # of the room that the global questions take
    end = start + max(1.0, 0.2 * trajectory.num_steps)
    lives = _lives(trajectory)
    asked = _times_of_questions(trajectory, start, end)
    hits = Counter(found.item_id for *_, answered in asked for found in answered.retrieved)
    chosen = selected_items(trajectory, selected)
    shown = sorted(
        lives, key=lambda item_id: (item_id not in chosen, -hits[item_id], lives[item_id].order)
    )[:max_items]
    shown = sorted(shown, key=lambda item_id: lives[item_id].order)
    lanes = {item_id: lane for lane, item_id in enumerate(shown)}
    nowhere = len(lanes)  # the lane of operations that touched no item
    marks = _operation_marks(trajectory, lives, lanes)
    owners = [*(f"item {item_id}" for item_id in lanes), None]
    lit = [not selected or item_id in chosen for item_id in lanes] + [not selected]
    clicks: dict[int, list[str | None]] = {}
    traces = [_lifetimes(lives, lanes, end)]
    for name, points in {**marks, **_retrieval_marks(asked, lanes)}.items():
        if not points and selected is None:
            continue  # else a selection changes which items are shown, but not the traces
        trace = _mark_trace(name, points)
        if selected is not None:
            clicks[len(traces)] = [owners[lane] for lane in trace["y"]]
            trace |= faded([lit[lane] for lane in trace["y"]])
        traces.append(trace)
    labels = [f"#{label(item_id, 8)} {label(lives[item_id].content, 24)}" for item_id in lanes]
    axis = style.count_axis(trajectory.num_steps)
    ticked = [step.step for step in trajectory.steps if step.step % axis["dtick"] == 0]
    bottom = bool(any(mark.lane == nowhere for points in marks.values() for mark in points))
    never = sum(1 for item_id in lives if not hits[item_id])
    ended = sum(1 for life in lives.values() if life.end is not None)
    cut = "" if len(lanes) == len(lives) else f" ({len(lanes)} most retrieved shown)"
    return style.from_traces(
        traces,
        "Operations and retrievals per memory item",
        f"Items: {len(lives)}{cut}; ended before the last step: {ended}; never retrieved: "
        f"{never}. The {len(trajectory.questions)} global questions are asked after the last step.",
        f"Timeline with one lane for each of {len(lanes)} memory items over "
        f"{trajectory.num_steps} steps; marker shapes tell operations, ticks tell retrievals.",
        240 + 26 * (nowhere + bottom),
        selecting_clicks(selected, clicks),
        xaxis=axis | {"range": [0.4, end], "tickvals": ticked},
        margin={"t": 76},
        yaxis={"title": {"text": "memory item"}} | style.lines_axis(labels + ["no item"] * bottom),
        shapes=[
            *(_lane_highlight(lane) for item_id, lane in lanes.items() if item_id in chosen),
            _start_of_questions(start),
        ],
        annotations=[_heading_of_questions((start + end) / 2)],
    )


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


@dataclass(slots=True)
class _Life:
    """What became of an item: its last content, its first step, and the step and way of its end."""

    born: int
    content: str
    order: tuple[int, int]
    end: tuple[int, str] | None = None


class _Mark(NamedTuple):
    """A point of the timeline: its place, its hover text, and the time it stands for."""

    x: float
    lane: int
    hover: str
    time: int | str


Asked = tuple[float, int | str, AnsweredQuestion]
"""A question with its place on the time axis and the time that this stands for."""


def _lives(trajectory: Trajectory) -> dict[str, _Life]:
    lives: dict[str, _Life] = {}
    for step in trajectory.steps:
        for item in step.delta.written:
            life = lives.setdefault(item.item_id, _Life(item.created_step, "", (0, 0)))
            life.content, life.order = item.content, creation_key(item)
        for how, ids in (("DELETE", step.delta.removed), ("evicted", step.delta.evicted)):
            for item_id in ids:
                lives[item_id].end = step.step, how
    return lives


def _times_of_questions(trajectory: Trajectory, start: float, end: float) -> list[Asked]:
    """Place chunk questions within their step, and global ones between `start` and `end`."""
    groups: list[tuple[float, float, int | str, Sequence[AnsweredQuestion]]] = [
        (step.step + 0.1, 0.8, step.step, step.chunk_questions) for step in trajectory.steps
    ]
    groups.append((start, end - start, "after the last", trajectory.questions))
    return [
        (style.number(left + room * place / (len(group) + 1)), time, answered)
        for left, room, time, group in groups
        for place, answered in enumerate(group, start=1)
    ]


def _lifetimes(lives: Mapping[str, _Life], lanes: Mapping[str, int], end: float) -> dict[str, Any]:
    """Return the trace of a line from the first to the last step of every item."""
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
    trajectory: Trajectory, lives: Mapping[str, _Life], lanes: Mapping[str, int]
) -> dict[str, list[_Mark]]:
    """Return the marks of operations and evictions by name; an operation that touched no item is in
    the lane below the items."""
    done = {outcome_name(outcome) for step in trajectory.steps for outcome in step.outcomes}
    ends = {life.end[1] for life in lives.values() if life.end}
    marks: dict[str, list[_Mark]] = {name: [] for name in OPERATION_STYLE if name in done | ends}
    for item_id, lane in lanes.items():
        life = lives[item_id]
        if life.end and life.end[1] == "evicted":
            step = life.end[0]
            hover = f"pushed out: {paragraph(life.content)}"
            marks["evicted"].append(_Mark(step, lane, hover, step))
    for record in trajectory.steps:
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
    """Return the marks of retrievals, by whether the answer was right."""
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
