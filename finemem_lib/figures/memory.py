"""Memory and operations over the steps of one trajectory, and the audit of chunk questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go

from finemem_lib.figures import style
from finemem_lib.figures.selection import (
    _clicks,
    _faded,
    _outcome_name,
    _outline,
    _score,
    _selected_items,
)
from finemem_lib.figures.style import (
    BLUE,
    CATEGORIES,
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
from finemem_lib.trajectory import OPERATION_KINDS, MemoryDelta, Trajectory, creation_key

if TYPE_CHECKING:
    from finemem_lib.data.questions import AuditRow


def question_audit(rows: Iterable[AuditRow]) -> go.Figure:
    """Show what became of the candidate questions of each chunk: kept, or rejected and why.

    Counts of candidates, stacked per step.
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
                "color": CATEGORIES[number % len(CATEGORIES)],
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

    Tokens are L(M_t) in the trajectory's own token unit. `step` marks one step, and lets a click
    choose another.
    """
    steps = [record.step for record in trajectory.steps]
    counts: list[int] = []
    alive: set[str] = set()
    for record in trajectory.steps:
        alive -= {*record.delta.removed, *record.delta.evicted}
        alive |= {item.item_id for item in record.delta.written}
        counts.append(len(alive))
    line = {
        "type": "scatter",
        "mode": "lines+markers" if len(steps) <= 40 else "lines",
        "showlegend": False,
        "x": steps,
    }
    traces: list[dict[str, Any]] = [
        line
        | {
            "y": counts,
            "name": "items",
            "yaxis": "y",
            "line": {"color": BLUE},
            "marker": {"symbol": "circle"},
        },
        line
        | {
            "y": [record.memory_tokens for record in trajectory.steps],
            "name": "tokens",
            "yaxis": "y2",
            "line": {"color": ORANGE},
            "marker": {"symbol": "diamond"},
        },
    ]
    kinds = [
        Counter(_outcome_name(outcome) for outcome in record.outcomes)
        for record in trajectory.steps
    ]
    traces += [
        {
            "type": "bar",
            "x": steps,
            "y": [kind[name] for kind in kinds],
            "name": name,
            "yaxis": "y3",
            "marker": {"color": OPERATION_STYLE[name][0], "pattern": style.pattern(number)},
        }
        for number, name in enumerate((*OPERATION_KINDS, "invalid"))
        if any(kind[name] for kind in kinds)
    ]
    total = sum(kinds, Counter())
    read = sum(record.chunk.tokens for record in trajectory.steps)
    tokens = trajectory.steps[-1].memory_tokens if steps else 0
    kept = f" ({tokens / read:.0%} of the text read)" if read else ""
    panels = (
        ("yaxis", "items", 0.736),
        ("yaxis2", f"tokens ({label(trajectory.tokenizer, 12)})", 0.412),
        ("yaxis3", "operations", 0),
    )
    axes = {
        name: {
            "title": {"text": title},
            "rangemode": "tozero",
            "domain": [low, low + (0.264 if low else 0.352)],
        }
        for name, title, low in panels
    }
    return style.made(
        traces,
        f"Memory of {label(trajectory.manager, 24)}, step by step",
        f"After {len(steps)} steps the memory holds {counts[-1] if counts else 0} items and "
        f"{tokens} tokens{kept}; {total.total() - total['invalid']} of {total.total()} emitted "
        "operations were valid.",
        "Three panels over steps: items in memory, tokens in memory, and operations by kind.",
        560,
        step
        if step is None
        else {"control": "step", "points": {str(number): steps for number in range(len(traces))}},
        barmode="stack",
        xaxis=style.count_axis(len(steps)) | {"anchor": "y3"},
        **axes,
        shapes=[]
        if step is None
        else [_outline(x0=step - 0.4, x1=step + 0.4, yref="paper", y0=0, y1=1)],
    )


MEMORY_STATES = {
    "inserted at this step": GREEN,
    "updated at this step": ORANGE,
    "kept": BLUE,
    "kept, never retrieved": PALE,
    "deleted at this step": RED,
    "evicted at this step": PINK,
}
"""What `memory_state` tells apart, each by colour, pattern and a word."""


def memory_state(trajectory: Trajectory, step: int, max_items: int = 24) -> go.Figure:
    """Show M_t, the memory after one step: its items, their length, what this step did to them.

    Lengths are tokens, as `text.count_tokens` counts them. An item that this step removed is shown
    a last time; an item that no question of the whole trajectory retrieved is grey. Where more than
    `max_items` ever lived, those this step touched and the last written are shown.

    Raises:
        ValueError: `step` is outside 0..T.
    """
    now = {item.item_id: item for item in trajectory.memory_at(step)}
    before = {item.item_id: item for item in trajectory.memory_at(max(0, step - 1))}
    hits = {
        found.item_id
        for answered in (
            *(one for record in trajectory.steps for one in record.chunk_questions),
            *trajectory.questions,
        )
        for found in answered.retrieved
    }
    delta = trajectory.steps[step - 1].delta if step else MemoryDelta()
    touched = {
        item.item_id: f"{'updated' if item.item_id in before else 'inserted'} at this step"
        for item in delta.written
    }
    touched |= {item_id: "deleted at this step" for item_id in delta.removed}
    touched |= {item_id: "evicted at this step" for item_id in delta.evicted}
    ever = {item.item_id: item for record in trajectory.steps for item in record.delta.written}

    def order(item_id: str) -> tuple[int, int]:
        return creation_key(ever[item_id])

    shown = sorted(ever, key=order)
    if len(shown) > max_items:
        there = sorted(
            now | before,
            key=lambda item_id: (item_id not in touched, -(now | before)[item_id].last_step),
        )[:max_items]
        shown = sorted(there, key=order)
    lanes = {item_id: lane for lane, item_id in enumerate(shown)}
    bars: dict[str, list[tuple[int, int, str]]] = {state: [] for state in MEMORY_STATES}
    for item_id, lane in lanes.items():
        item = now.get(item_id) or (before.get(item_id) if item_id in touched else None)
        if item is None:
            continue
        state = touched.get(item_id) or ("kept" if item_id in hits else "kept, never retrieved")
        writes = ", ".join(f"{write.kind} at step {write.step}" for write in item.lineage)
        bars[state].append(
            (
                count_tokens(item.content),
                lane,
                f"#{label(item_id, 8)}: {paragraph(item.content)}<br>{writes}<br>"
                f"{'retrieved' if item_id in hits else 'never retrieved'}",
            )
        )
    traces = [
        {
            "type": "bar",
            "orientation": "h",
            "name": state,
            "x": [bar[0] for bar in bars[state]],
            "y": [bar[1] for bar in bars[state]],
            "customdata": [bar[2] for bar in bars[state]],
            "hovertemplate": "%{customdata}<br>%{x} tokens<extra></extra>",
            "marker": {
                "color": color,
                "pattern": style.pattern(number),
                "line": {"color": GREY, "width": 1},
            },
        }
        for number, (state, color) in enumerate(MEMORY_STATES.items())
    ]
    contents = {item_id: (now.get(item_id) or before.get(item_id)) for item_id in lanes}
    texts = [
        f"#{label(item_id, 8)} {label(item.content, 30)}" if item else f"#{label(item_id, 8)}"
        for item_id, item in contents.items()
    ]
    did = Counter(touched.values())
    longest = max((count_tokens(item.content) for item in ever.values()), default=1)
    idle = sum(1 for item_id in now if item_id not in hits)
    cut = "" if len(lanes) == len(ever) else f" ({len(lanes)} shown)"
    happened = (
        ", ".join(f"{count} {state.removesuffix(' at this step')}" for state, count in did.items())
        or "nothing changed"
    )
    return style.made(
        traces,
        f"Memory after step {step} of {trajectory.num_steps}",
        f"{len(now)} items{cut}, {sum(count_tokens(item.content) for item in now.values())} "
        f"tokens; at this step: {happened}. {idle} of the items are never retrieved (grey).",
        f"One bar per memory item; colour, pattern and legend tell what step {step} did to it.",
        200 + 24 * max(1, len(lanes)),
        barmode="overlay",
        xaxis={"title": {"text": f"length ({label(TOKENIZER, 12)})"}, "range": [0, longest * 1.08]},
        yaxis={
            "title": {"text": "memory item"},
            "tickvals": list(lanes.values()),
            "ticktext": texts,
            "zeroline": False,
            "range": [max(1, len(lanes)) - 0.4, -0.6],
        },
    )


def operation_timeline(
    trajectory: Trajectory, max_items: int = 24, selected: str | None = None
) -> go.Figure:
    """Show the life of every memory item: who wrote it when, when it ended, when it was retrieved.

    One lane per item (the `max_items` most retrieved, then the oldest), a line for its lifetime, a
    marker per operation, a tick per retrieval; global questions stand after the last step.
    """
    start = trajectory.num_steps + 0.55  # of the room that the global questions take
    end = start + max(1.0, 0.2 * trajectory.num_steps)
    born: dict[str, int] = {}
    contents: dict[str, str] = {}
    order: dict[str, tuple[int, int]] = {}
    gone: dict[str, tuple[int, str]] = {}
    for step in trajectory.steps:
        for item in step.delta.written:
            born.setdefault(item.item_id, item.created_step)
            contents[item.item_id] = item.content
            order[item.item_id] = creation_key(item)
        gone |= {item_id: (step.step, "DELETE") for item_id in step.delta.removed}
        gone |= {item_id: (step.step, "evicted") for item_id in step.delta.evicted}
    asked = [
        (style.number(left + room * place / (len(group) + 1)), when, answered)
        for left, room, when, group in [
            *((step.step + 0.1, 0.8, step.step, step.chunk_questions) for step in trajectory.steps),
            (start, end - start, "after the last", trajectory.questions),
        ]
        for place, answered in enumerate(group, start=1)
    ]
    hits = Counter(found.item_id for *_, answered in asked for found in answered.retrieved)
    chosen = _selected_items(trajectory, selected)
    shown = sorted(
        born, key=lambda item_id: (item_id not in chosen, -hits[item_id], order[item_id])
    )[:max_items]
    lanes = {item_id: lane for lane, item_id in enumerate(sorted(shown, key=order.__getitem__))}
    nowhere = len(lanes)

    life_x: list[float | None] = []
    life_y: list[int | None] = []
    for item_id, lane in lanes.items():
        life_x += [born[item_id], gone[item_id][0] if item_id in gone else end, None]
        life_y += [lane, lane, None]
    traces: list[dict[str, Any]] = [
        {
            "type": "scatter",
            "x": life_x,
            "y": life_y,
            "mode": "lines",
            "name": "in memory",
            "hoverinfo": "skip",
            "line": {"color": PALE, "width": 8},
        }
    ]
    done = {_outcome_name(outcome) for step in trajectory.steps for outcome in step.outcomes}
    ended = {how for _, how in gone.values()}
    marks: dict[str, list[tuple[float, int, str, int | str]]] = {
        name: [] for name in OPERATION_STYLE if name in done | ended
    }
    for item_id, lane in lanes.items():
        if item_id in gone and gone[item_id][1] == "evicted":
            marks["evicted"].append(
                (
                    gone[item_id][0],
                    lane,
                    f"pushed out: {paragraph(contents[item_id])}",
                    gone[item_id][0],
                )
            )
    for step in trajectory.steps:
        for outcome in step.outcomes:
            name = _outcome_name(outcome)
            item_id = outcome.item_id if outcome.applied else None
            if item_id is not None and item_id not in lanes:
                continue
            content = outcome.operation.content if outcome.operation else outcome.raw
            reason = f" ({label(outcome.reason, 60)})" if outcome.reason else ""
            marks[name].append(
                (
                    step.step,
                    nowhere if item_id is None else lanes[item_id],
                    f"step {step.step}: {name}{reason}<br>{paragraph(content or '')}",
                    step.step,
                )
            )
    retrieved = {"retrieved, answer right": [], "retrieved, answer not right": []}
    for x, when, answered in asked:
        name = "retrieved, answer right" if answered.score else "retrieved, answer not right"
        retrieved[name] += [
            (
                x,
                lanes[found.item_id],
                f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 60)}"
                f"<br>score: {_score(answered)}",
                when,
            )
            for found in answered.retrieved
            if found.item_id in lanes
        ]
    owners = [f"item {item_id}" for item_id in lanes]
    clicks: dict[int, list[str | None]] = {}
    ticks = {
        "retrieved, answer right": (BLUE, "line-ns-open"),
        "retrieved, answer not right": (GREY, "line-ne-open"),
    }
    for name, points in {**marks, **retrieved}.items():
        if not points and selected is None:
            continue  # else a selection changes which items are shown, but not the traces
        color, symbol = (OPERATION_STYLE | ticks)[name]
        xs, ys, hover, when = ([point[place] for point in points] for place in range(4))
        marker = {"color": color, "symbol": symbol, "size": 11}
        told: dict[str, Any] = {}
        if name in ticks:
            marker["line"] = {"width": 2, "color": color}
            told = {"meta": {"x": when}}
        trace = told | {
            "type": "scatter",
            "x": xs,
            "y": ys,
            "customdata": hover,
            "mode": "markers",
            "name": name,
            "hovertemplate": "%{customdata}<extra></extra>",
            "marker": marker,
        }
        if selected is not None:
            clicks[len(traces)] = [None if y == nowhere else owners[y] for y in ys]
            trace |= _faded(
                [not selected or (y != nowhere and owners[y][5:] in chosen) for y in ys]
            )
        traces.append(trace)
    shapes = [
        _outline(
            xref="paper",
            x0=0,
            x1=1,
            y0=lanes[item_id] - 0.5,
            y1=lanes[item_id] + 0.5,
            fillcolor="rgba(0,114,178,0.08)",
        )
        for item_id in lanes
        if item_id in chosen
    ]
    labels = [f"#{label(item_id, 8)} {label(contents[item_id], 24)}" for item_id in lanes]
    axis = style.count_axis(trajectory.num_steps)
    ticked = [step.step for step in trajectory.steps if step.step % axis["dtick"] == 0]
    bottom = bool(any(lane == nowhere for points in marks.values() for _, lane, *_ in points))
    never = sum(1 for item_id in born if not hits[item_id])
    cut = "" if len(lanes) == len(born) else f" ({len(lanes)} most retrieved shown)"
    return style.made(
        traces,
        "Operations and retrievals per memory item",
        f"Items: {len(born)}{cut}; ended before the last step: {len(gone)}; never retrieved: "
        f"{never}. The {len(trajectory.questions)} global questions are asked after the last step.",
        f"Timeline with one lane for each of {len(lanes)} memory items over "
        f"{trajectory.num_steps} steps; marker shapes tell operations, ticks tell retrievals.",
        240 + 26 * (nowhere + bottom),
        _clicks(selected, clicks),
        xaxis=axis | {"range": [0.4, end], "tickvals": ticked},
        margin={"t": 76},
        yaxis={
            "title": {"text": "memory item"},
            "tickvals": list(range(nowhere + bottom)),
            "ticktext": labels + ["no item"] * bottom,
            "zeroline": False,
            "range": [nowhere + bottom - 0.4, -0.6],
        },
        shapes=[
            *shapes,
            {
                "type": "line",
                "x0": start,
                "x1": start,
                "yref": "y domain",
                "y0": 0,
                "y1": 1,
                "line": {"color": GREY, "dash": "dot", "width": 1},
            },
        ],
        annotations=[
            {
                "x": (start + end) / 2,
                "y": 1,
                "yref": "paper",
                "yanchor": "bottom",
                "text": "global<br>questions",
                "showarrow": False,
                "font": {"size": 11},
            }
        ],
    )
