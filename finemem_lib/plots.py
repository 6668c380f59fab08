"""Figures of memory, evidence, rewards and benchmarks: pure functions that return a plotly Figure.

Every builder sets a title, axis titles with units, and ``layout.meta`` with a `caption` (what to
see, with the numbers of this figure) and an `alt` sentence for screen readers; nothing is
displayed until `show`. Magnitude is drawn in cividis, signed values in PuOr centred on 0; the rest
of the style, and how untrusted text is made safe, is in `plot_style`.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib import plot_style as style
from finemem_lib.evaluation import ALL, Average, Estimate, format_estimate
from finemem_lib.plot_style import (
    BLUE,
    CATEGORIES,
    CONFIG,
    GREEN,
    GREY,
    INK,
    MARKERS,
    OPERATION_STYLE,
    ORANGE,
    PALE,
    PINK,
    PLOTLY_MIME,
    RED,
    label,
    paragraph,
    plain,
)
from finemem_lib.report import note_below
from finemem_lib.rewards import (
    RewardSettings,
    StepReward,
    evidence_contribution,
    evidence_matrix,
    item_shares,
)
from finemem_lib.text import TOKENIZER, count_tokens, sentences, words
from finemem_lib.trajectory import (
    OPERATION_KINDS,
    AnsweredQuestion,
    MemoryDelta,
    Trajectory,
    creation_key,
)

if TYPE_CHECKING:
    from finemem_lib.questions import AuditRow

# ---- selections ----------------------------------------------------------------------------------
#
# The figures of evidence take `selected`: "question 3" (the third), "step 2", "item 14", or "" for
# everything; what does not belong to it fades. Such a figure says in ``layout.meta["clicks"]`` what
# a click on each of its points selects. None is a figure that stands alone.


def _belongs(selected: str | None, step: int | None, item_id: str | None, question: int | None
             ) -> bool:
    """Return whether evidence on its way from a step over an item to a question is selected."""
    kind, _, key = (selected or "").partition(" ")
    own = {"question": None if question is None else str(question + 1), "step": str(step),
           "item": item_id}
    return not kind or own[kind] == key


def _selected_items(trajectory: Trajectory, selected: str | None) -> set[str]:
    """Return the items that a question retrieved, a step wrote, or that are selected themselves."""
    kind, _, key = (selected or "").partition(" ")
    if kind == "question":
        return {found.item_id for found in trajectory.questions[int(key) - 1].retrieved}
    if kind == "step":
        return {item.item_id for item in trajectory.steps[int(key) - 1].delta.written}
    return {key} if kind else set()


def _clicks(selected: str | None, points: Mapping[int, Sequence[Any]]) -> dict[str, Any] | None:
    if selected is None:
        return None
    return {"control": "selected", "points": {str(trace): list(values)
                                              for trace, values in points.items()}}


def _faded(chosen: Sequence[bool]) -> dict[str, Any]:
    """Return the properties of a trace that fade its other points; all are named where all are
    chosen, since a frame cannot take a property away."""
    return {"selectedpoints": [place for place, own in enumerate(chosen) if own],
            "unselected": {"marker": {"opacity": 0.15}}}


def _outline(**corners: Any) -> dict[str, Any]:
    return {"type": "rect", "line": {"color": INK, "width": 2}, "layer": "above", **corners}


# ---- questions and memory ------------------------------------------------------------------------


def question_audit(rows: Iterable[AuditRow]) -> go.Figure:
    """Show what became of the candidate questions of each chunk: kept, or rejected and why.

    Counts of candidates, stacked per step.
    """
    rows = list(rows)
    steps = sorted({row.step for row in rows})
    accepted = Counter(row.step for row in rows if row.accepted)
    rejected = Counter((row.step, row.reason) for row in rows if not row.accepted)
    reasons = Counter(row.reason for row in rows if not row.accepted).most_common()
    fig = go.Figure(go.Bar(
        x=steps, y=[accepted[step] for step in steps], name="accepted", marker_color=BLUE,
    ))
    for number, (reason, _) in enumerate(reasons, start=1):
        fig.add_bar(
            x=steps, y=[rejected[step, reason] for step in steps],
            name=label(f"rejected: {reason}"),
            marker={"color": CATEGORIES[number % len(CATEGORIES)],
                    "pattern": style.pattern(number)},
        )
    kept = sum(accepted.values())
    per_chunk = kept / len(steps) if steps else 0.0
    top = (f"; the most frequent reason for rejection is {style.one_line(reasons[0][0], 40)!r}"
           if reasons else "")
    return style.finish(
        fig, "Candidate questions per chunk",
        f"{kept} of {len(rows)} candidate questions were kept, {per_chunk:.1f} per chunk{top}.",
        f"Stacked bars over {len(steps)} steps: accepted questions below, rejected ones by reason "
        f"above.",
        380, barmode="stack", xaxis=style.count_axis(max(steps, default=1)),
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
    line = {"type": "scatter", "mode": "lines+markers" if len(steps) <= 40 else "lines",
            "showlegend": False, "x": steps}
    traces: list[dict[str, Any]] = [
        line | {"y": counts, "name": "items", "yaxis": "y", "line": {"color": BLUE},
                "marker": {"symbol": "circle"}},
        line | {"y": [record.memory_tokens for record in trajectory.steps], "name": "tokens",
                "yaxis": "y2", "line": {"color": ORANGE}, "marker": {"symbol": "diamond"}},
    ]
    kinds = [Counter(_outcome_name(outcome) for outcome in record.outcomes)
             for record in trajectory.steps]
    traces += [
        {"type": "bar", "x": steps, "y": [kind[name] for kind in kinds], "name": name,
         "yaxis": "y3",
         "marker": {"color": OPERATION_STYLE[name][0], "pattern": style.pattern(number)}}
        for number, name in enumerate((*OPERATION_KINDS, "invalid"))
        if any(kind[name] for kind in kinds)
    ]
    total = sum(kinds, Counter())
    read = sum(record.chunk.tokens for record in trajectory.steps)
    tokens = trajectory.steps[-1].memory_tokens if steps else 0
    kept = f" ({tokens / read:.0%} of the text read)" if read else ""
    panels = (("yaxis", "items", 0.736), ("yaxis2", f"tokens ({label(trajectory.tokenizer, 12)})",
                                          0.412), ("yaxis3", "operations", 0))
    axes = {name: {"title": {"text": title}, "rangemode": "tozero",
                   "domain": [low, low + (0.264 if low else 0.352)]}
            for name, title, low in panels}
    return style.made(
        traces, f"Memory of {label(trajectory.manager, 24)}, step by step",
        f"After {len(steps)} steps the memory holds {counts[-1] if counts else 0} items and "
        f"{tokens} tokens{kept}; {total.total() - total['invalid']} of {total.total()} emitted "
        "operations were valid.",
        "Three panels over steps: items in memory, tokens in memory, and operations by kind.",
        560, step if step is None else {
            "control": "step", "points": {str(number): steps for number in range(len(traces))}},
        barmode="stack", xaxis=style.count_axis(len(steps)) | {"anchor": "y3"}, **axes,
        shapes=[] if step is None else [
            _outline(x0=step - 0.4, x1=step + 0.4, yref="paper", y0=0, y1=1)],
    )


def _outcome_name(outcome: Any) -> str:
    return outcome.operation.kind if outcome.operation and outcome.applied else "invalid"


MEMORY_STATES = {
    "inserted at this step": GREEN, "updated at this step": ORANGE, "kept": BLUE,
    "kept, never retrieved": PALE, "deleted at this step": RED, "evicted at this step": PINK,
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
    hits = {found.item_id for answered in (
        *(one for record in trajectory.steps for one in record.chunk_questions),
        *trajectory.questions) for found in answered.retrieved}
    delta = trajectory.steps[step - 1].delta if step else MemoryDelta()
    touched = {item.item_id: f"{'updated' if item.item_id in before else 'inserted'} at this step"
               for item in delta.written}
    touched |= {item_id: "deleted at this step" for item_id in delta.removed}
    touched |= {item_id: "evicted at this step" for item_id in delta.evicted}
    ever = {item.item_id: item for record in trajectory.steps for item in record.delta.written}

    def order(item_id: str) -> tuple[int, int]:
        return creation_key(ever[item_id])

    shown = sorted(ever, key=order)
    if len(shown) > max_items:
        there = sorted(now | before, key=lambda item_id: (
            item_id not in touched, -(now | before)[item_id].last_step))[:max_items]
        shown = sorted(there, key=order)
    lanes = {item_id: lane for lane, item_id in enumerate(shown)}
    bars: dict[str, list[tuple[int, int, str]]] = {state: [] for state in MEMORY_STATES}
    for item_id, lane in lanes.items():
        item = now.get(item_id) or (before.get(item_id) if item_id in touched else None)
        if item is None:
            continue
        state = touched.get(item_id) or ("kept" if item_id in hits else "kept, never retrieved")
        writes = ", ".join(f"{write.kind} at step {write.step}" for write in item.lineage)
        bars[state].append((count_tokens(item.content), lane,
                            f"#{label(item_id, 8)}: {paragraph(item.content)}<br>{writes}<br>"
                            f"{'retrieved' if item_id in hits else 'never retrieved'}"))
    traces = [
        {"type": "bar", "orientation": "h", "name": state, "x": [bar[0] for bar in bars[state]],
         "y": [bar[1] for bar in bars[state]], "customdata": [bar[2] for bar in bars[state]],
         "hovertemplate": "%{customdata}<br>%{x} tokens<extra></extra>",
         "marker": {"color": color, "pattern": style.pattern(number),
                    "line": {"color": GREY, "width": 1}}}
        for number, (state, color) in enumerate(MEMORY_STATES.items())
    ]
    contents = {item_id: (now.get(item_id) or before.get(item_id)) for item_id in lanes}
    texts = [f"#{label(item_id, 8)} {label(item.content, 30)}" if item else f"#{label(item_id, 8)}"
             for item_id, item in contents.items()]
    did = Counter(touched.values())
    longest = max((count_tokens(item.content) for item in ever.values()), default=1)
    idle = sum(1 for item_id in now if item_id not in hits)
    cut = "" if len(lanes) == len(ever) else f" ({len(lanes)} shown)"
    happened = ", ".join(f"{count} {state.removesuffix(' at this step')}"
                         for state, count in did.items()) or "nothing changed"
    return style.made(
        traces, f"Memory after step {step} of {trajectory.num_steps}",
        f"{len(now)} items{cut}, {sum(count_tokens(item.content) for item in now.values())} "
        f"tokens; at this step: {happened}. {idle} of the items are never retrieved (grey).",
        f"One bar per memory item; colour, pattern and legend tell what step {step} did to it.",
        200 + 24 * max(1, len(lanes)), barmode="overlay",
        xaxis={"title": {"text": f"length ({label(TOKENIZER, 12)})"}, "range": [0, longest * 1.08]},
        yaxis={"title": {"text": "memory item"}, "tickvals": list(lanes.values()),
               "ticktext": texts, "zeroline": False, "range": [max(1, len(lanes)) - 0.4, -0.6]},
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
    asked = [(style.number(left + room * place / (len(group) + 1)), when, answered)
             for left, room, when, group in [
                 *((step.step + 0.1, 0.8, step.step, step.chunk_questions)
                   for step in trajectory.steps),
                 (start, end - start, "after the last", trajectory.questions)]
             for place, answered in enumerate(group, start=1)]
    hits = Counter(found.item_id for *_, answered in asked for found in answered.retrieved)
    chosen = _selected_items(trajectory, selected)
    shown = sorted(born, key=lambda item_id: (item_id not in chosen, -hits[item_id],
                                              order[item_id]))[:max_items]
    lanes = {item_id: lane for lane, item_id in enumerate(sorted(shown, key=order.__getitem__))}
    nowhere = len(lanes)

    life_x: list[float | None] = []
    life_y: list[int | None] = []
    for item_id, lane in lanes.items():
        life_x += [born[item_id], gone[item_id][0] if item_id in gone else end, None]
        life_y += [lane, lane, None]
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "x": life_x, "y": life_y, "mode": "lines", "name": "in memory",
        "hoverinfo": "skip", "line": {"color": PALE, "width": 8}}]
    done = {_outcome_name(outcome) for step in trajectory.steps for outcome in step.outcomes}
    ended = {how for _, how in gone.values()}
    marks: dict[str, list[tuple[float, int, str, int | str]]] = {
        name: [] for name in OPERATION_STYLE if name in done | ended}
    for item_id, lane in lanes.items():
        if item_id in gone and gone[item_id][1] == "evicted":
            marks["evicted"].append(
                (gone[item_id][0], lane, f"pushed out: {paragraph(contents[item_id])}",
                 gone[item_id][0]))
    for step in trajectory.steps:
        for outcome in step.outcomes:
            name = _outcome_name(outcome)
            item_id = outcome.item_id if outcome.applied else None
            if item_id is not None and item_id not in lanes:
                continue
            content = outcome.operation.content if outcome.operation else outcome.raw
            reason = f" ({label(outcome.reason, 60)})" if outcome.reason else ""
            marks[name].append((
                step.step, nowhere if item_id is None else lanes[item_id],
                f"step {step.step}: {name}{reason}<br>{paragraph(content or '')}", step.step,
            ))
    retrieved = {"retrieved, answer right": [], "retrieved, answer not right": []}
    for x, when, answered in asked:
        name = "retrieved, answer right" if answered.score else "retrieved, answer not right"
        retrieved[name] += [
            (x, lanes[found.item_id],
             f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 60)}"
             f"<br>score: {_score(answered)}", when)
            for found in answered.retrieved if found.item_id in lanes
        ]
    owners = [f"item {item_id}" for item_id in lanes]
    clicks: dict[int, list[str | None]] = {}
    ticks = {"retrieved, answer right": (BLUE, "line-ns-open"),
             "retrieved, answer not right": (GREY, "line-ne-open")}
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
            "type": "scatter", "x": xs, "y": ys, "customdata": hover, "mode": "markers",
            "name": name, "hovertemplate": "%{customdata}<extra></extra>", "marker": marker}
        if selected is not None:
            clicks[len(traces)] = [None if y == nowhere else owners[y] for y in ys]
            trace |= _faded([not selected or (y != nowhere and owners[y][5:] in chosen)
                             for y in ys])
        traces.append(trace)
    shapes = [_outline(xref="paper", x0=0, x1=1, y0=lanes[item_id] - 0.5, y1=lanes[item_id] + 0.5,
                       fillcolor="rgba(0,114,178,0.08)")
              for item_id in lanes if item_id in chosen]
    labels = [f"#{label(item_id, 8)} {label(contents[item_id], 24)}" for item_id in lanes]
    axis = style.count_axis(trajectory.num_steps)
    ticked = [step.step for step in trajectory.steps if step.step % axis["dtick"] == 0]
    bottom = bool(any(lane == nowhere for points in marks.values() for _, lane, *_ in points))
    never = sum(1 for item_id in born if not hits[item_id])
    cut = "" if len(lanes) == len(born) else f" ({len(lanes)} most retrieved shown)"
    return style.made(
        traces, "Operations and retrievals per memory item",
        f"Items: {len(born)}{cut}; ended before the last step: {len(gone)}; never retrieved: "
        f"{never}. The {len(trajectory.questions)} global questions are asked after the last step.",
        f"Timeline with one lane for each of {len(lanes)} memory items over "
        f"{trajectory.num_steps} steps; marker shapes tell operations, ticks tell retrievals.",
        240 + 26 * (nowhere + bottom), _clicks(selected, clicks),
        xaxis=axis | {"range": [0.4, end], "tickvals": ticked}, margin={"t": 76},
        yaxis={"title": {"text": "memory item"}, "tickvals": list(range(nowhere + bottom)),
               "ticktext": labels + ["no item"] * bottom, "zeroline": False,
               "range": [nowhere + bottom - 0.4, -0.6]},
        shapes=[*shapes, {"type": "line", "x0": start, "x1": start, "yref": "y domain", "y0": 0,
                          "y1": 1, "line": {"color": GREY, "dash": "dot", "width": 1}}],
        annotations=[{"x": (start + end) / 2, "y": 1, "yref": "paper", "yanchor": "bottom",
                      "text": "global<br>questions", "showarrow": False, "font": {"size": 11}}],
    )


# ---- evidence ------------------------------------------------------------------------------------


def _score(answered: AnsweredQuestion) -> str:
    return "cannot be scored" if answered.score is None else f"{answered.score:.2f}"


def _verdict(answered: AnsweredQuestion) -> str:
    if answered.score is None:
        return "? no score"
    return f"{'✓' if answered.score >= 0.5 else '✗'} {answered.score:.2f}"


@dataclass(frozen=True, slots=True)
class EvidencePart:
    """One credited item's way from a step to a question (a position in the trajectory).

    `share` is 1/(|M_j| n), what the step earns of the outcome reward when the answer is right.
    """

    step: int
    item_id: str
    question: int
    share: float


def evidence_parts(
    trajectory: Trajectory, settings: RewardSettings | None = None
) -> list[EvidencePart]:
    """Return the evidence item by item; times s_j and summed it is `rewards.evidence_matrix`.

    Questions without a credited item have no part. A question that cannot be scored has parts (it
    retrieved something) although it earns nothing.
    """
    settings = settings or RewardSettings()
    n = sum(a.score is not None for a in trajectory.questions) or len(trajectory.questions)
    return [EvidencePart(step, item_id, j, share / n)
            for j, answered in enumerate(trajectory.questions)
            for step, item_id, share in item_shares(answered, trajectory.num_steps, settings)]


@style.remembered
def source_sentence(content: str, chunk_text: str) -> str:
    """Return the sentence of a chunk that shares most words with an item's content.

    >>> source_sentence("Mia: Rome", "It rained. Mia lives in Rome. Ana sails.")
    'Mia lives in Rome.'
    """
    wanted = set(words(content))
    return max(sentences(chunk_text), default="",
               key=lambda sentence: len(wanted & set(words(sentence))))


STRONG, FAINT = ("73", "40"), ("1A", "12")
"""Opacity (hexadecimal) of links that earned something and of those that did not."""


def evidence_sankey(
    trajectory: Trajectory,
    questions: Sequence[int] | None = None,
    settings: RewardSettings | None = None,
    max_questions: int = 10,
    selected: str | None = None,
) -> go.Figure:
    """Show who earned which answer: step -> memory item -> question.

    The width of a link is the item's share of the outcome reward, 1/(|M_j| n) for each credited
    item, of which s_j is coloured (earned) and 1 - s_j grey (retrieved for an answer that was not
    right, or cannot be scored). `questions` are positions in ``trajectory.questions``, by default
    the first `max_questions`.
    """
    chosen = list(range(len(trajectory.questions)))[:max_questions]
    if questions is not None:
        chosen = list(questions)
    nodes: dict[tuple[str, Any], int] = {}
    texts: list[str] = []
    hovers: list[str] = []
    colors: list[str] = []
    links: dict[tuple[int, int, bool], float] = {}
    lit: set[tuple[int, int]] = set()  # links by their ends that are selected
    link_text: dict[tuple[int, int], str] = {}

    def node(kind: str, key: Any, text: str, hover: str, color: str) -> int:
        if (kind, key) not in nodes:
            nodes[kind, key] = len(texts)
            texts.append(text)
            hovers.append(hover)
            colors.append(color)
        return nodes[kind, key]

    def link(source: int, target: int, share: float, score: float | None, hover: str,
             chosen: bool) -> None:
        link_text[source, target] = hover
        if chosen:
            lit.add((source, target))
        for earned, part in ((True, share * (score or 0.0)), (False, share * (1 - (score or 0.0)))):
            if part > 0:
                links[source, target, earned] = links.get((source, target, earned), 0.0) + part

    contents = {item.item_id: item.content for item in trajectory.final_memory()}
    parts = evidence_parts(trajectory, settings)
    scored = sum(a.score is not None for a in trajectory.questions) or len(trajectory.questions)
    earners: Counter[int] = Counter()
    for j in chosen:
        answered = trajectory.questions[j]
        target = node(
            "question", j, f"{_verdict(answered)} {label(answered.question.text, 18)}",
            f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 80)}"
            f"<br>score s_j = {_score(answered)}", BLUE if answered.score else GREY,
        )
        if not any(part.question == j for part in parts):
            empty = node("item", None, "no item", "no item was credited", PALE)
            link(empty, target, 1 / scored, answered.score, "no item was credited",
                 _belongs(selected, None, None, j))
    for part in parts:
        if part.question not in chosen:
            continue
        own = _belongs(selected, part.step, part.item_id, part.question)
        answered = trajectory.questions[part.question]
        content = contents.get(part.item_id, "")
        item = node("item", part.item_id, f"#{label(part.item_id, 8)} {label(content, 14)}",
                    f"item #{label(part.item_id, 8)}<br>{paragraph(content)}", ORANGE)
        chunk = trajectory.steps[part.step - 1].chunk.text
        step = node("step", part.step, f"step {part.step}",
                    f"step {part.step} reads<br>{paragraph(chunk)}", GREEN)
        link(step, item, part.share, answered.score,
             f"step {part.step} wrote it from<br>{paragraph(source_sentence(content, chunk))}", own)
        link(item, nodes["question", part.question], part.share, answered.score,
             f"#{label(part.item_id, 8)} was retrieved for<br>{paragraph(answered.question.text)}",
             own)
        earners[part.step] += part.share * (answered.score or 0.0)
    keys = sorted(links, key=lambda key: (not key[2], key[0], key[1]))
    names = [f"question {key + 1}" if kind == "question" else f"{kind} {key}"
             for kind, key in nodes]
    # A click says only the number of what was clicked, be it node or link: unused nodes in front
    # keep the two apart.
    ahead = 0 if selected is None else len(keys)
    clicks = [names[key[1]] for key in keys] + [None if key[1] is None else name
                                                for name, key in zip(names, nodes, strict=True)]
    link_colors = [(BLUE if key[2] else GREY) + opacity[0 if key[2] else 1] for key in keys
                   for opacity in [STRONG if selected in (None, "") or key[:2] in lit else FAINT]]
    trace = {
        # nodes that can be dragged are not clicked: plotly takes them out of the page on the way
        "type": "sankey", "arrangement": "snap" if selected is None else "fixed",
        "textfont": {"size": 11},
        "node": {
            "label": [""] * ahead + texts, "customdata": [""] * ahead + hovers,
            "color": [PALE] * ahead + colors,
            "pad": 14, "thickness": 14, "hovertemplate": "%{customdata}<extra></extra>",
            "align": "right", "line": {"color": INK, "width": 0.5}},
        "link": {
            "source": [ahead + key[0] for key in keys], "target": [ahead + key[1] for key in keys],
            "value": style.numbers(links[key] for key in keys),
            "color": link_colors,
            "label": ["earned" if key[2] else "not earned" for key in keys],
            "customdata": [
                f"{link_text[key[0], key[1]]}<br>"
                f"{'earns' if key[2] else 'earns nothing of'} {links[key]:.4g}" for key in keys
            ],
            "hovertemplate": "%{customdata}<extra></extra>",
        },
    }
    headings = [
        {"x": x, "y": 1, "xref": "paper", "yref": "paper", "xanchor": anchor, "yanchor": "bottom",
         "text": f"<b>{heading}</b>", "showarrow": False, "yshift": 4}
        for x, anchor, heading in ((0, "left", "step"), (0.5, "center", "memory item"),
                                   (1, "right", "question (score s<sub>j</sub>)"))]
    right = sum(1 for j in chosen if trajectory.questions[j].score)
    best = earners.most_common(1)
    who = (f" Step {best[0][0]} earned most: {best[0][1]:.3g} of the outcome reward."
           if best and best[0][1] else " No step earned anything.")
    cut = "" if len(chosen) == len(trajectory.questions) else (
        f" ({len(chosen)} of {len(trajectory.questions)} questions shown)")
    rows = max(Counter(kind for kind, _ in nodes).values(), default=1)
    return style.made(
        [trace], "Who earned which answer?",
        f"{right} of {len(chosen)} questions were answered with a score above 0{cut}.{who} Grey is "
        "what was retrieved without earning.",
        f"Sankey diagram from {len(earners)} steps over memory items to {len(chosen)} questions; "
        "the width of a band is a share of the outcome reward, grey bands earned nothing.",
        150 + 30 * rows, _clicks(selected, {0: clicks}), annotations=headings,
        margin={"l": 8, "r": 8, "t": 84, "b": 24},
    )


def evidence_trail(
    trajectory: Trajectory,
    settings: RewardSettings | None = None,
    selected: str = "",
    max_rows: int = 10,
) -> go.Figure:
    """Show where credit came from, line by line: question, item, operation, sentence of the chunk.

    Every retrieved item of the selected questions has a line for each step that shares its credit
    (with 0 where it has none); blue is what flowed back to that step, grey what a wrong answer left
    unearned, in shares of the outcome reward. Beyond `max_rows` the smallest are left out.
    """
    settings = settings or RewardSettings()
    shares: dict[tuple[int, str], list[tuple[int, float]]] = {}
    for part in evidence_parts(trajectory, settings):
        shares.setdefault((part.question, part.item_id), []).append((part.step, part.share))
    items = {item.item_id: item for item in trajectory.final_memory()}
    rows = [
        (j, answered, rank, found, step, share)
        for j, answered in enumerate(trajectory.questions)
        for rank, found in enumerate(answered.retrieved, start=1)
        for step, share in shares.get((j, found.item_id), [(found.steps[-1], 0.0)])
        if _belongs(selected, step, found.item_id, j)
    ]
    kept = sorted(range(len(rows)), key=lambda n: (-rows[n][5] * (rows[n][1].score or 0), n))
    drawn = [rows[n] for n in sorted(kept[:max_rows])]
    ticks, notes = [], []
    for j, answered, rank, found, step, _ in drawn:
        item = items.get(found.item_id)
        content = item.content if item else ""
        kind = next((write.kind for write in item.lineage if write.step == step), "?"
                    ) if item else "?"
        source = source_sentence(content, trajectory.steps[step - 1].chunk.text)
        used = answered.used is not None and found.item_id in answered.used
        ticks.append(f"question {j + 1} ← #{label(found.item_id, 8)} {label(content, 26)}"
                     f"{' <b>(used)</b>' if used else ''}<br>{kind} at step {step} “"
                     f"{label(source, 34)}”")
        said = "used by the reader" if used else (
            "not used" if answered.used is not None else "the reader does not say what it used")
        notes.append(
            f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 60)}, score "
            f"{_score(answered)}<br>place {rank} of {len(answered.retrieved)}, retrieval score "
            f"{found.score:.2f}, {said}<br>written at steps {', '.join(map(str, found.steps))}<br>"
            f"{paragraph(source)}")
    lines = list(range(len(drawn)))
    parts = [(row[5] * (row[1].score or 0.0), row[5] * (1 - (row[1].score or 0.0)))
             for row in drawn]
    traces = [
        {"type": "bar", "orientation": "h", "name": name, "y": lines,
         "x": style.numbers(part[number] for part in parts),
         "marker": {"color": color, "pattern": style.pattern(number)}}
        for number, (name, color) in enumerate((("earned", BLUE), ("not earned", PALE)))
    ]
    traces[0] |= {"customdata": notes, "hovertemplate": "%{customdata}<br>%{x}<extra></extra>"}
    traces[1] |= {"hovertemplate": "not earned: %{x}<extra></extra>"}
    owners = [f"item {row[3].item_id}" for row in drawn]
    earned = math.fsum(row[5] * (row[1].score or 0.0) for row in rows)
    cut = "" if len(drawn) == len(rows) else f" ({len(drawn)} with most credit shown)"
    what = f": {label(selected, 24)}" if selected else ""
    asked = ""
    if selected.startswith("question "):
        answered = trajectory.questions[int(selected[9:]) - 1]
        asked = (f"{style.one_line(answered.question.text, 120)} Answer: "
                 f"{style.one_line(answered.answer, 60)!r}, score {_score(answered)}. ")
    return style.made(
        traces, f"What was it answered from{what}",
        f"{asked}{len(rows)} ways of evidence{cut}, through which {earned:.3g} of the outcome "
        "reward flowed back.",
        f"Bars for {len(drawn)} ways from a question over a retrieved item to the step and the "
        "sentence it was written from.",
        170 + 46 * max(1, len(drawn)), _clicks(selected, {0: owners, 1: owners}), barmode="stack",
        xaxis={"title": {"text": "share of r<sub>global</sub>"},
               "rangemode": "tozero"},
        yaxis={"title": {"text": "evidence"}, "tickvals": lines, "ticktext": ticks,
               "zeroline": False, "range": [max(1, len(drawn)) - 0.4, -0.6]},
    )


def evidence_heatmap(
    trajectory: Trajectory, settings: RewardSettings | None = None, selected: str | None = None
) -> go.Figure:
    """Show which step matters for which question: what step t earned from question j.

    Cells are shares of the outcome reward; the row sums on the right are N_t (normalised evidence
    contribution), the bars on top the scores s_j. Blank: no evidence; cross: retrieved, earned
    nothing.
    """
    asked = trajectory.questions
    matrix = evidence_matrix(trajectory, settings)
    row_sums = [total or 0.0 for total in evidence_contribution(trajectory, settings)]
    parts = evidence_parts(trajectory, settings)
    touched = {(part.step, part.question) for part in parts}
    steps = list(range(1, trajectory.num_steps + 1))
    numbers = list(range(1, len(asked) + 1))
    cells = [[style.number(value) if value else None for value in row] for row in matrix]
    zeros = sorted((step, j + 1) for step, j in touched if not matrix[step - 1][j])
    few = len(steps) * len(asked) <= 160
    bars = {"type": "bar", "marker": {"color": BLUE}}
    heat = {
        "type": "heatmap", "x": numbers, "y": steps, "z": cells, "colorscale": "Cividis",
        "reversescale": True,
        "zmin": 0, "xgap": 1, "ygap": 1, "name": "share earned",
        "zmax": max((value for row in cells for value in row if value is not None), default=1),
        "hovertemplate": "step %{y}, question %{x}: %{z}"
                         + ("<br>%{customdata}" if few else "") + "<extra></extra>",
        "colorbar": style.colorbar("share of r<sub>global</sub>") | {
            "len": 0.76, "y": 0, "yanchor": "bottom"},
    }
    if few:
        heat |= {"texttemplate": "%{z:.2~g}", "textfont": {"size": 11},
                 "customdata": [[paragraph(answered.question.text) for answered in asked]
                                ] * len(steps)}
    traces = [
        heat,
        {"type": "scatter", "x": [j for _, j in zeros], "y": [step for step, _ in zeros],
         "mode": "markers", "name": "retrieved, earned nothing",
         "marker": {"symbol": "x-thin", "size": 8 if few else 4,
                    "line": {"color": GREY, "width": 1}},
         "hovertemplate": "step %{y}, question %{x}: retrieved, earned nothing<extra></extra>"},
        bars | {"x": numbers, "y": style.numbers(a.score for a in asked), "yaxis": "y2",
                "name": "score s_j", "hovertemplate": "question %{x}: score %{y}<extra></extra>"},
        bars | {"x": style.numbers(row_sums), "y": steps, "xaxis": "x2", "orientation": "h",
                "name": "N_t", "marker": {"color": ORANGE},
                "hovertemplate": "step %{y}: N_t = %{x}<extra></extra>"},
    ]
    outlines: list[dict[str, Any]] = []
    if selected is not None:
        own = [part for part in parts
               if _belongs(selected, part.step, part.item_id, part.question)]
        lit = {part.step for part in own}, {part.question + 1 for part in own}
        for trace, places, those in ((traces[2], numbers, lit[1]), (traces[3], steps, lit[0])):
            trace |= _faded([not selected or place in those for place in places])
        outlines = [_outline(x0=part.question + 0.5, x1=part.question + 1.5, y0=part.step - 0.5,
                             y1=part.step + 0.5) for part in own] if selected else []
    rows = style.count_axis(len(steps), "step t") | {"showgrid": False}
    best = max(range(len(steps)), key=row_sums.__getitem__, default=0)
    total = sum(row_sums)
    top = f"Step {steps[best]} contributes most, N_t = {row_sums[best]:.3g}. " if total else ""
    idle = sum(1 for value in row_sums if not value)
    return style.made(
        traces, "Evidence: which step matters for which question",
        f"{top}{idle} of {len(steps)} steps earned no evidence; the N_t add up to {total:.3g}. "
        "A cross: retrieved, but nothing earned.",
        f"Heatmap of {len(steps)} steps by {len(asked)} questions with the scores as bars on top "
        "and the normalised evidence contribution N_t of each step as bars on the right.",
        260 + max(160, min(16 * len(steps), 600)),
        _clicks(selected, {0: (columns := [f"question {j}" for j in numbers]),
                           1: [columns[j - 1] for _, j in zeros], 2: columns,
                           3: [f"step {step}" for step in steps]}),
        showlegend=False, shapes=outlines,
        xaxis=style.count_axis(len(asked), "question j") | {"showgrid": False, "domain": [0, 0.76]},
        yaxis=rows | {"range": rows["range"][::-1], "domain": [0, 0.73]},
        xaxis2={"title": {"text": "N<sub>t</sub>"}, "domain": [0.79, 1], "rangemode": "tozero",
                "nticks": 4, "tickangle": 0},
        yaxis2={"title": {"text": "score s<sub>j</sub>"}, "domain": [0.77, 1], "range": [0, 1.05]},
    )


# ---- rewards and advantages ----------------------------------------------------------------------

TERM_NAMES = {"eara": "EARA", "format": "format", "chunk": "chunk step", "compression":
              "compression"}


def reward_decomposition(rewards: Sequence[StepReward]) -> go.Figure:
    """Show what each step is paid for: the weighted terms of the hybrid reward and their total.

    A term that could not be measured (`None`) has no bar.
    """
    steps = [reward.step for reward in rewards]
    fig = go.Figure()
    means: dict[str, float] = {}
    for number, (term, weight) in enumerate(rewards[0].weights.items() if rewards else ()):
        name = TERM_NAMES[term] if weight == 1 else f"{weight:g} × {TERM_NAMES[term]}"
        values = [reward.weighted[term] for reward in rewards]
        means[name] = style.mean(values) or 0.0
        fig.add_bar(
            x=steps, y=style.numbers(values), name=name,
            marker={"color": CATEGORIES[number],
                    "pattern": style.pattern(number)},
        )
    totals = [reward.total for reward in rewards]
    fig.add_scatter(x=steps, y=style.numbers(totals), name="total", mode="markers",
                    marker={"color": INK, "symbol": "line-ew-open", "size": 16,
                            "line": {"width": 3, "color": INK}})
    known = [total for total in totals if total is not None]
    caption = "No step could be rewarded."
    if known:
        largest = max(means, key=means.__getitem__)
        caption = (f"The largest term is {largest} with {means[largest]:.3g} per step on average; "
                   f"totals range from {min(known):.3g} to {max(known):.3g}.")
    missing = sum(1 for reward in rewards if reward.chunk is None)
    if missing:
        caption += f" {missing} of {len(steps)} steps have no chunk term: nothing to score there."
    return style.finish(
        fig, "What is each step paid for?", caption,
        f"Stacked bars of {len(means)} weighted reward terms for {len(steps)} steps with a mark at "
        "the total.",
        400, barmode="relative", xaxis=style.count_axis(len(steps)),
        yaxis={"title_text": "reward r<sub>t</sub> (weighted terms)"},
    )


def advantage_heatmap(advantages: Sequence[Sequence[float | None]]) -> go.Figure:
    """Show which rollout is reinforced at which step.

    `advantages` has num_generations rows and T columns, as `group_relative` returns them. A step
    whose group is dead (all advantages 0 or None) teaches nothing and is marked "no gradient".
    """
    rows = [style.numbers(row) for row in advantages]
    num_steps = max((len(row) for row in rows), default=0)
    steps = list(range(1, num_steps + 1))
    dead = [step for step in steps if not any(row[step - 1] for row in rows if len(row) >= step)]
    bound = max((abs(value) for row in rows for value in row if value is not None), default=0) or 1
    few = len(rows) * num_steps <= 160
    fig = go.Figure(go.Heatmap(
        x=steps, y=list(range(1, len(rows) + 1)), z=rows, colorscale="PuOr", zmid=0, zmin=-bound,
        zmax=bound, xgap=1, ygap=1, name="advantage",
        texttemplate="%{z:+.2f}" if few else None, textfont={"size": 11},
        hovertemplate="rollout %{y}, step %{x}: A = %{z:+.3f}<extra></extra>",
        colorbar=style.colorbar("advantage A"),
    ))
    for step in dead:
        fig.add_shape(type="rect", x0=step - 0.5, x1=step + 0.5, y0=0.5, y1=len(rows) + 0.5,
                      line={"color": GREY, "dash": "dot"}, fillcolor="white")
        fig.add_annotation(x=step, y=(len(rows) + 1) / 2, text="no gradient", textangle=-90,
                           showarrow=False, font={"color": INK})
    return style.finish(
        fig, "Advantage per rollout and step",
        f"{len(dead)} of {num_steps} steps carry no gradient: their rollouts earned the same, or "
        f"none could be scored. The largest advantage is {bound:.3g}." if rows else "No rollouts.",
        f"Heatmap of {len(rows)} rollouts by {num_steps} steps, orange below and purple above the "
        "mean of the group.",
        190 + max(150, min(30 * len(rows), 600)),
        xaxis=style.count_axis(num_steps) | {"showgrid": False},
        yaxis={"title_text": "rollout", "tick0": 1, "dtick": 1, "autorange": "reversed",
               "showgrid": False},
    )


def credit_by_rule(credits: Mapping[str, Sequence[float | None]]) -> go.Figure:
    """Show what rules of credit pay each step of one trajectory, one row per rule.

    `credits` has T values per rule, in units of the outcome reward; `None` cells stay empty.
    """
    rows = [style.numbers(row) for row in credits.values()]
    num_steps = max((len(row) for row in rows), default=0)
    bound = max((abs(value) for row in rows for value in row if value is not None), default=0) or 1
    sums = [math.fsum(value for value in row if value is not None) for row in credits.values()]
    spread = f"; their sums run from {min(sums):.3g} to {max(sums):.3g}" if sums else ""
    negative = sum(any(value is not None and value < 0 for value in row) for row in rows)
    fig = go.Figure(go.Heatmap(
        x=list(range(1, num_steps + 1)), y=[label(name) for name in credits], z=rows,
        colorscale="PuOr", zmid=0, zmin=-bound, zmax=bound, xgap=1, ygap=1, name="credit",
        texttemplate="%{z:.3~f}" if len(rows) * num_steps <= 160 else None, textfont={"size": 11},
        hovertemplate="%{y}, step %{x}: %{z:.4~f}<extra></extra>",
        colorbar=style.colorbar("credit (outcome reward)"),
    ))
    return style.finish(
        fig, "What each rule pays each step",
        f"{len(rows)} rules{spread}; {negative} of them pay some step less than nothing.",
        f"Heatmap of {len(rows)} rules by {num_steps} steps: credit in units of the outcome "
        "reward, purple above and orange below zero.",
        190 + max(150, min(34 * len(rows), 600)),
        xaxis=style.count_axis(num_steps) | {"showgrid": False},
        yaxis={"title_text": "rule", "autorange": "reversed", "showgrid": False},
    )


def advantage_dumbbell(
    before: Sequence[Sequence[float | None]],
    after: Sequence[Sequence[float | None]],
    names: tuple[str, str] = ("outcome reward only", "with attribution"),
    measure: str = "advantage",
    rollouts: Sequence[int] | None = None,
    step: int | None = None,
) -> go.Figure:
    """Show how attribution moves the advantage of each rollout at each step.

    `before` and `after` have num_generations rows and T columns; rollouts stand side by side within
    a step, only those in `rollouts` (positions) where it is given. `measure` is what the numbers
    are: "advantage", or "reward". `step` marks one step, and lets a click choose another.
    """
    shown = list(range(len(before)) if rollouts is None else rollouts)
    num_steps = max((len(row) for row in before), default=0)
    points = [
        (style.number(at + (place - (len(shown) - 1) / 2) / (len(shown) + 1)), old, new,
         f"step {at}, rollout {rollout + 1}: {old:+.2f} → {new:+.2f}", at)
        for at in range(1, num_steps + 1)
        for place, rollout in enumerate(shown)
        if at <= len(before[rollout]) and at <= len(after[rollout])
        and (old := before[rollout][at - 1]) is not None
        and (new := after[rollout][at - 1]) is not None
    ]
    xs, at = [point[0] for point in points], [point[4] for point in points]
    ends = style.numbers(point[1] for point in points), style.numbers(point[2] for point in points)
    traces: list[dict[str, Any]] = [{
        "type": "scatter", "mode": "lines", "line": {"color": GREY, "width": 2}, "name": "change",
        "showlegend": False, "hoverinfo": "skip",
        "x": [value for x in xs for value in (x, x, None)],
        "y": [value for pair in zip(*ends, strict=True) for value in (*pair, None)],
    }]
    traces += [
        {"type": "scatter", "mode": "markers", "name": label(name), "x": xs, "y": ys,
         "customdata": [point[3] for point in points], "meta": {"x": at},
         "hovertemplate": "%{customdata}<extra></extra>",
         "marker": {"color": color, "symbol": symbol, "size": 9,
                    "line": {"width": 2, "color": color}}}
        for name, ys, color, symbol in ((names[0], ends[0], ORANGE, "circle-open"),
                                        (names[1], ends[1], BLUE, "diamond"))
    ]
    moved = style.mean(abs(point[2] - point[1]) for point in points) or 0.0
    turned = sum(1 for point in points if point[1] * point[2] < 0)
    sign = f" and turns the sign of {turned} of {len(points)}" if measure == "advantage" else (
        f" over {len(points)} steps")
    who = "" if rollouts is None else f" of rollout {', '.join(str(one + 1) for one in shown)}"
    return style.made(
        traces, f"{measure.capitalize()}s{who} before and after attribution",
        f"“{style.one_line(names[0], 40)}” against “{style.one_line(names[1], 40)}”: the {measure} "
        f"moves by {moved:.3g} on average{sign}.",
        f"Dumbbells for {len(shown)} rollouts at each of {num_steps} steps: "
        f"“{style.one_line(names[0], 28)}” at one end, “{style.one_line(names[1], 28)}” at the "
        "other.",
        420, step if step is None else {"control": "step", "points": {"1": at, "2": at}},
        xaxis=style.count_axis(num_steps, "step t (rollouts side by side)" if len(shown) > 1
                          else "step t (chunk number)"),
        yaxis={"title": {"text": "advantage A" if measure == "advantage" else
                         "reward r<sub>t</sub>"}, "zeroline": True},
        shapes=[] if step is None else [
            _outline(x0=step - 0.5, x1=step + 0.5, yref="paper", y0=0, y1=1)],
    )


@dataclass(frozen=True, slots=True)
class Term:
    """One line of a formula: its symbols, the same with numbers, and what it comes to (`None`: not
    measurable, left out). A result sums up what stands above it."""

    formula: str
    numbers: str
    value: float | None
    result: bool = False


def formula_card(
    terms: Sequence[Term], title: str, caption: str, units: str = "units of the reward"
) -> go.Figure:
    """Show a formula with live numbers: a line and a bar for each term, in the `units` named."""
    rows = list(range(len(terms)))
    lines = [
        f"{paragraph(term.formula, 240, 36)}<br>"
        f"{paragraph('not measurable' if term.value is None else term.numbers, 240, 36)}"
        for term in terms
    ]
    traces = [
        {"type": "bar", "orientation": "h", "name": name, "y": rows,
         "x": [style.number(term.value) if term.result == result else None for term in terms],
         "text": [f"<b>{term.value:+.4g}</b>" if term.value is not None and term.result == result
                  else "" for term in terms],
         "textposition": "outside", "cliponaxis": False, "hoverinfo": "skip" if not terms else "x",
         "showlegend": any(term.result == result for term in terms),
         "marker": {"color": color, "pattern": style.pattern(number)}}
        for number, (name, result, color) in enumerate((("term", False, BLUE),
                                                        ("result", True, ORANGE)))
    ]
    ends = [0.0, *(term.value for term in terms if term.value is not None)]
    room = 0.25 * ((max(ends) - min(ends)) or 1)
    most = max((line.count("<br>") + 1 for line in lines), default=2)
    return style.made(
        traces, title, caption,
        "The formula term by term with its numbers: " + "; ".join(
            f"{style.one_line(term.formula, 240)} is "
            f"{'left out' if term.value is None else term.numbers}"
            for term in terms) + ".",
        170 + max(44, 10 + 17 * most) * len(terms), barmode="overlay",
        xaxis={"title": {"text": f"value ({label(units, 60)})"}, "zeroline": True,
               "range": [min(ends) - (room if min(ends) < 0 else 0), max(ends) + room]},
        yaxis={"title": {"text": "term"}, "tickvals": rows, "zeroline": False,
               "range": [len(terms) - 0.4, -0.6], "ticktext": lines},
    )


# ---- benchmark -----------------------------------------------------------------------------------


def benchmark_accuracy(rows: Iterable[Estimate], average: Average = "macro") -> go.Figure:
    """Show accuracy with its interval, one panel per category, one line per method.

    `rows` are those of `evaluation.benchmark_table`; `average` picks which of its two category
    averages is drawn. A value nobody could measure has no point.
    """
    table, methods, categories = _estimates(rows, "accuracy", average)
    fig = make_subplots(rows=1, cols=len(categories) or 1, shared_yaxes=True,
                        horizontal_spacing=0.05, subplot_titles=style.panel_titles(categories))
    for place, category in enumerate(categories):
        part = [row for row in table if row.category == category]
        fig.add_scatter(
            x=style.numbers(row.value for row in part),
            y=[methods.index(row.method) for row in part],
            error_x=style.interval(part),
            mode="markers+text", text=[f"{row.value:.2f}" for row in part],
            textposition="top center", cliponaxis=False, name=label(category), showlegend=False,
            marker={"color": CATEGORIES[place % len(CATEGORIES)], "size": 11,
                    "symbol": MARKERS[place % len(MARKERS)]},
            customdata=[f"{label(row.method)}: {label(format_estimate(row))}<br>{row.counted} "
                        f"answers, {row.left_out} not scored" for row in part],
            hovertemplate="%{customdata}<extra></extra>", row=1, col=place + 1,
        )
    fig.update_xaxes(range=[-0.04, 1.08], tickvals=[0, 0.5, 1])
    fig.update_yaxes(tickvals=list(range(len(methods))),
                     ticktext=[paragraph(method, 28, 16) for method in methods],
                     range=[len(methods) - 0.4, -0.7], zeroline=False)
    fig.update_yaxes(title_text="method", col=1)
    fig.update_annotations(font={"size": 13})
    style.name_panels(fig, "accuracy")
    best = [max((row for row in table if row.category == category), key=lambda row: row.value)
            for category in categories]
    tops = "; ".join(
        f"{style.one_line(row.category, 12)} {style.one_line(row.method, 28)} {row.value:.2f}"
        for row in best
    )
    return style.finish(
        fig, f"Accuracy by category ({average} average)",
        f"Best per category: {tops}. Lines are the intervals of the table." if best
        else "Nothing could be scored.",
        f"Dot plot of the accuracy of {len(methods)} methods in {len(categories)} categories, with "
        "intervals.",
        200 + 44 * len(methods), margin={"t": 84},
    )


def memory_length(rows: Iterable[Estimate], average: Average = "macro") -> go.Figure:
    """Show the length of the final memory, L(M_T) in tokens, per method and category.

    `rows` and `average` as for `benchmark_accuracy`.
    """
    table, methods, categories = _estimates(rows, "memory_tokens", average)
    fig = go.Figure()
    for place, category in enumerate(categories):
        part = [row for row in table if row.category == category]
        fig.add_bar(
            x=style.numbers(row.value for row in part), orientation="h",
            y=[methods.index(row.method) for row in part], name=label(category),
            text=[f"{row.value:,.0f}" for row in part], textposition="inside",
            insidetextanchor="start", textfont={"color": "white"}, error_x=style.interval(part),
            cliponaxis=False, hovertemplate="%{x} tokens<extra></extra>",
            marker={"color": CATEGORIES[place % len(CATEGORIES)], "pattern": style.pattern(place)},
        )
    means = {method: style.mean(row.value for row in table if row.method == method) or 0.0
             for method in methods}
    ordered = sorted(methods, key=means.__getitem__)
    return style.finish(
        fig, f"Length of the final memory ({average} average)",
        f"{style.one_line(ordered[0], 28)} keeps the shortest memory, "
        f"{style.one_line(ordered[-1], 28)} the longest: "
        f"{means[ordered[0]]:,.0f} and {means[ordered[-1]]:,.0f} tokens over the categories."
        if ordered else "Nothing was measured.",
        f"Bars of the memory length of {len(methods)} methods in {len(categories)} categories.",
        170 + (20 * len(categories) + 14) * len(methods), barmode="group",
        xaxis={"title_text": "length of the final memory (tokens)", "rangemode": "tozero"},
        yaxis={"title_text": "method", "tickvals": list(range(len(methods))), "zeroline": False,
               "ticktext": [label(method, 28) for method in methods],
               "range": [len(methods) - 0.4, -0.6]},
    )


def _estimates(
    rows: Iterable[Estimate], measure: str, average: Average
) -> tuple[list[Estimate], list[str], list[str]]:
    """Return the measured category rows of one measure, and the methods and categories in them."""
    table = [row for row in rows if row.measure == measure and row.average == average
             and row.data_source == ALL and row.value is not None]
    return (table, list(dict.fromkeys(row.method for row in table)),
            list(dict.fromkeys(row.category for row in table)))


def show(figure: go.Figure) -> None:
    """Display a figure in a notebook, and below it its caption, its description and its data as a
    table that opens.

    What is stored (about 10 kB) is the same on every run; where plotly's JSON is not rendered, the
    figure's alt text stands in. The description is text, because nothing that a notebook holds can
    label the drawing: JupyterLab's renderer of plotly takes no role or label.
    """
    from IPython.display import display

    for bundle in shown(figure):
        display(bundle, raw=True)


def shown(figure: go.Figure) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the two outputs of `show`, by MIME type: the figure, and what stands below it."""
    spec = json.loads(figure.to_json())
    title, meta = plain(spec["layout"]["title"]["text"]), spec["layout"]["meta"]
    return (
        {PLOTLY_MIME: spec | {"config": CONFIG}, "text/plain": f"[figure] {title}: {meta['alt']}"},
        {"text/html": note_below(spec), "text/plain": meta["caption"]},
    )
