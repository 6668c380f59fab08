"""Sankey diagram of credit from steps over memory items to questions."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import plotly.graph_objects as go

from finemem_lib.figures import style
from finemem_lib.figures.evidence import EvidencePart, parts_of, source_sentence
from finemem_lib.figures.history import memory_history
from finemem_lib.figures.selection import belongs, score_text, selecting_clicks, verdict
from finemem_lib.figures.style import BLUE, GREEN, GREY, INK, ORANGE, PALE, elided, label, paragraph
from finemem_lib.rewards import RewardSettings
from finemem_lib.trajectory import Trajectory

STRONG, FAINT = ("A6", "8C"), ("14", "14")
"""Opacity (hexadecimal) of links that earned something and of those that did not; in each pair,
first of selected links, then of others."""

MAX_STEPS, MAX_ITEMS = 12, 20
"""Maximum numbers of steps and items that the Sankey diagram draws individually."""


def evidence_sankey(
    trajectory: Trajectory,
    questions: Sequence[int] | None = None,
    settings: RewardSettings | None = None,
    max_questions: int = 10,
    selected: str | None = None,
) -> go.Figure:
    """Show the evidence of every answer as a flow: step -> memory item -> question.

    The width of a link is the item's share of the outcome reward, `1/(|M_j| n)` for each credited
    item, of which s_j is coloured (earned) and 1 - s_j grey (retrieved for an answer that was not
    right, or cannot be scored). Steps stand in their order from top to bottom. Beyond `MAX_STEPS`
    steps or `MAX_ITEMS` items a selection shows its own links alone, and what is still too much is
    drawn as runs of steps with the items that they wrote.

    Args:
        trajectory: the trajectory.
        questions: positions of the questions shown (`None`: the first `max_questions`).
        settings: how evidence is attributed.
        max_questions: most questions shown where `questions` is `None`.
        selected: "question j", "step t", "item id" or "" to highlight what belongs to it (see
            `selection`); `None` for a figure without selection.
    """
    chosen = list(range(len(trajectory.questions)))[:max_questions]
    if questions is not None:
        chosen = list(questions)
    flow, earners = _evidence_flow(trajectory, chosen, settings, selected)
    right = sum(1 for j in chosen if trajectory.questions[j].score)
    best = max(earners, key=earners.__getitem__, default=0)
    who = (
        f" Step {best} earned most: {earners[best]:.3g} of the outcome reward."
        if earners.get(best)
        else " No step earned anything."
    )
    cut = (
        ""
        if len(chosen) == len(trajectory.questions)
        else f" ({len(chosen)} of {len(trajectory.questions)} questions shown)"
    )
    rows = max(map(len, flow.columns()), default=1)
    trace, clicks = flow.trace(selected, 42 + 30 * rows)
    return style.from_traces(
        [trace],
        "Evidence flow from steps over items to questions",
        f"{right} of {len(chosen)} questions were answered with a score above 0{cut}.{who} Grey is "
        f"retrieved evidence that earned nothing.{flow.note}",
        f"Sankey diagram from {len(earners)} steps over memory items to {len(chosen)} questions; "
        "the width of a band is a share of the outcome reward, grey bands earned nothing.",
        150 + 30 * rows,
        selecting_clicks(selected, {0: clicks}),
        annotations=[
            _heading(0, "left", "step"),
            _heading(COLUMNS["item"], "left", "memory item"),
            _heading(1, "right", "question (score s<sub>j</sub>)"),
        ],
        margin={"l": 8, "r": 8, "t": 84, "b": 24},
    )


def _heading(x: float, anchor: str, text: str) -> dict[str, Any]:
    """Return the heading of a column of nodes, at x from 0 to 1."""
    return {
        "x": x,
        "y": 1,
        "xref": "paper",
        "yref": "paper",
        "xanchor": anchor,
        "yanchor": "bottom",
        "text": f"<b>{text}</b>",
        "showarrow": False,
        "yshift": 4,
    }


COLUMNS = {"step": 0.001, "item": 0.22, "question": 0.999}
"""Horizontal position of each kind of node. It is never 0, which plotly ignores. The names of items
and questions share the space between their columns; those of steps are short."""

ITEM_NAME, QUESTION_NAME = 24, 28
"""Maximum characters of item and question names, which just do not overlap at 640 pixels."""

NODE_PAD = 14
"""Pixels between the nodes of a column."""

_Key = tuple[str, Any]
"""The kind of a node, and its identifier within the kind."""


class _Node(NamedTuple):
    """A node of a Sankey diagram; `order` sorts its column, `click` is the selection it sets."""

    text: str
    hover: str
    color: str
    click: str | None
    order: tuple[int, ...]


class _Link(NamedTuple):
    """A link between two nodes; `own` links belong to the selection."""

    source: _Key
    target: _Key
    earned: bool
    own: bool


@dataclass(slots=True)
class _Flow:
    """Collects the nodes and links of a Sankey diagram."""

    nodes: dict[_Key, _Node] = field(default_factory=dict)
    links: dict[_Link, float] = field(default_factory=dict)
    note: str = ""

    def link(
        self, source: _Key, target: _Key, share: float, score: float | None, own: bool
    ) -> None:
        """Add a share to two links: `score` of it earned, the rest not; `own` if it is selected."""
        for earned, part in ((True, share * (score or 0.0)), (False, share * (1 - (score or 0.0)))):
            if part > 0:
                key = _Link(source, target, earned, own)
                self.links[key] = self.links.get(key, 0.0) + part

    def columns(self) -> list[list[_Key]]:
        """Return the nodes of every column from top to bottom."""
        return [
            sorted(
                (key for key in self.nodes if key[0] == kind),
                key=lambda key: self.nodes[key].order,
            )
            for kind in COLUMNS
        ]

    def heights(self, height: float) -> list[float]:
        """Return y (0 to 1) of the nodes of all columns in a drawing `height` pixels high."""
        through: dict[_Key, list[float]] = {key: [0.0, 0.0] for key in self.nodes}
        for link, share in self.links.items():
            through[link.target][0] += share
            through[link.source][1] += share
        columns = [[max(through[key]) for key in column] for column in self.columns()]
        scale = min(
            (
                (height - NODE_PAD * (len(sizes) - 1)) / sum(sizes)
                for sizes in columns
                if sum(sizes) > 0
            ),
            default=0.0,
        )
        places = []
        for sizes in columns:
            top = (height - scale * sum(sizes) - NODE_PAD * (len(sizes) - 1)) / 2
            for size in sizes:
                places.append(style.number((top + scale * size / 2) / height))
                top += scale * size + NODE_PAD
        return places

    def trace(self, selected: str | None, height: float) -> tuple[dict[str, Any], list[str | None]]:
        """Return the plotly trace in a drawing `height` pixels high, and what its clicks select.

        Plotly reports a click by the number of the node or link, without the kind. Unused nodes
        before the others make the numbers distinct. Their number, 4 per pair of linked nodes (a
        link is earned or not, own or not), is the same for every selection.
        """
        keys = sorted(self.links, key=lambda key: (key.own, not key.earned))
        ahead = 0 if selected is None else 4 * len({key[:2] for key in keys})
        order = [key for column in self.columns() for key in column]
        numbers = {key: ahead + n for n, key in enumerate(order)}
        nodes = [self.nodes[key] for key in order]
        trace = {
            # Clicks do not reach nodes that can be dragged: plotly removes them from the page.
            "type": "sankey",
            "arrangement": "snap" if selected is None else "fixed",
            "textfont": {"size": 12},
            "node": {
                "label": [""] * ahead + [node.text for node in nodes],
                "customdata": [""] * ahead + [node.hover for node in nodes],
                "color": [PALE] * ahead + [node.color for node in nodes],
                # Plotly expects positions of the used nodes only.
                "x": [COLUMNS[kind] for kind, _ in order],
                "y": self.heights(height),
                "pad": NODE_PAD,
                "thickness": 14,
                "hovertemplate": "%{customdata}<extra></extra>",
                "align": "right",
                "line": {"color": INK, "width": 0.5},
            },
            "link": {
                "source": [numbers[key.source] for key in keys],
                "target": [numbers[key.target] for key in keys],
                "value": style.numbers(self.links[key] for key in keys),
                "color": [
                    (BLUE if key.earned else GREY)
                    + (STRONG if not selected or key.own else FAINT)[0 if key.earned else 1]
                    for key in keys
                ],
                "label": ["earned" if key.earned else "not earned" for key in keys],
                "hovertemplate": "%{source.label} → %{target.label}<br>%{label}: %{value:.4~g}"
                "<extra></extra>",
            },
        }
        clicks = [self.nodes[key.target].click for key in keys]
        clicks += [None] * (ahead - len(keys)) + [node.click for node in nodes]
        return trace, clicks


def _evidence_flow(
    trajectory: Trajectory,
    chosen: Sequence[int],
    settings: RewardSettings | None,
    selected: str | None,
) -> tuple[_Flow, dict[int, float]]:
    """Return the flow from steps over items to the chosen questions, and what each step earned."""
    flow = _Flow()
    parts = [part for part in parts_of(trajectory, settings) if part.question in chosen]
    if selected and _too_many(parts):
        parts = [p for p in parts if belongs(selected, p.step, p.item_id, p.question)]
        asked = {part.question for part in parts}
        chosen = [j for j in chosen if j in asked or belongs(selected, None, None, j)]
        flow.note = " Only what belongs to the selection is drawn."
    earners: dict[int, float] = {}
    for part in parts:
        earned = part.share * (trajectory.questions[part.question].score or 0.0)
        earners[part.step] = earners.get(part.step, 0.0) + earned
    _add_questions(flow, trajectory, chosen, parts, selected)
    add = _run_nodes(flow, parts, earners) if _too_many(parts) else _item_nodes(flow, trajectory)
    for part in parts:
        own = belongs(selected, part.step, part.item_id, part.question)
        answered = trajectory.questions[part.question]
        step, item = add(part)
        question = "question", part.question
        flow.link(step, item, part.share, answered.score, own)
        flow.link(item, question, part.share, answered.score, own)
    return flow, earners


def _too_many(parts: Sequence[EvidencePart]) -> bool:
    """Return whether evidence has more steps or items than the diagram draws individually."""
    steps, items = {part.step for part in parts}, {part.item_id for part in parts}
    return len(steps) > MAX_STEPS or len(items) > MAX_ITEMS


def _add_questions(
    flow: _Flow,
    trajectory: Trajectory,
    chosen: Sequence[int],
    parts: Sequence[EvidencePart],
    selected: str | None,
) -> None:
    """Add the nodes of questions, and the links of questions without a credited item."""
    scored = sum(a.score is not None for a in trajectory.questions) or len(trajectory.questions)
    credited = {part.question for part in parts}
    for j in chosen:
        answered = trajectory.questions[j]
        flow.nodes["question", j] = _Node(
            f"{verdict(answered)} {elided(answered.question.text, QUESTION_NAME)}",
            f"{paragraph(answered.question.text)}<br>answer: {label(answered.answer, 80)}"
            f"<br>score s_j = {score_text(answered)}",
            BLUE if answered.score else GREY,
            f"question {j + 1}",
            (j,),
        )
        if j not in credited:
            last = (trajectory.num_steps + 1,)
            flow.nodes["item", None] = _Node("no item", "no item was credited", PALE, None, last)
            own = belongs(selected, None, None, j)
            ends = ("item", None), ("question", j)
            flow.link(*ends, 1 / scored, answered.score, own)


_AddNodes = Callable[[EvidencePart], tuple[_Key, _Key]]
"""Function that adds the nodes of an evidence part and returns their keys: step and item."""


def _item_nodes(flow: _Flow, trajectory: Trajectory) -> _AddNodes:
    """Return the function that adds a node for every step and every item."""
    past = memory_history(trajectory)

    def add(part: EvidencePart) -> tuple[_Key, _Key]:
        held = past.at(part.item_id, trajectory.num_steps)
        content = held.content if held else ""
        chunk = trajectory.steps[part.step - 1].chunk.text
        name = f"#{label(part.item_id, 8)}"
        step, item = ("step", part.step), ("item", part.item_id)
        flow.nodes[step] = _Node(
            f"step {part.step}",
            f"step {part.step} reads<br>{paragraph(chunk)}",
            GREEN,
            f"step {part.step}",
            (part.step,),
        )
        if item not in flow.nodes:
            flow.nodes[item] = _Node(
                f"{name} {elided(content, ITEM_NAME)}",
                f"item {name}<br>{paragraph(content)}<br>written at step {part.step} from<br>"
                f"{paragraph(source_sentence(content, chunk))}",
                ORANGE,
                f"item {part.item_id}",
                (part.step, len(flow.nodes)),
            )
        return step, item

    return add


def _run_nodes(
    flow: _Flow, parts: Sequence[EvidencePart], earners: Mapping[int, float]
) -> _AddNodes:
    """Return the function that adds a node per range of steps, and one for all items it wrote.

    A click on either selects the step of the range that earned most.
    """
    items: dict[int, set[str]] = {}
    for part in parts:
        items.setdefault(part.step, set()).add(part.item_id)
    steps = sorted(items)
    size = math.ceil(len(steps) / MAX_STEPS)
    runs = {step: steps[n - n % size : n - n % size + size] for n, step in enumerate(steps)}
    flow.note += (
        f" {len(steps)} steps are drawn in {math.ceil(len(steps) / size)} runs; select one to see "
        "its items."
    )

    def add(part: EvidencePart) -> tuple[_Key, _Key]:
        run = runs[part.step]
        name = f"step {run[0]}" if len(run) == 1 else f"steps {run[0]}–{run[-1]}"
        count = len(set().union(*(items[step] for step in run)))
        wrote = f"{count} item{'s' * (count != 1)} of {name}"
        best = max(run, key=lambda step: earners[step])
        hover = f"{name}: {len(run)} with evidence; step {best} earned most"
        step, item = ("step", run[0]), ("item", f"of {run[0]}")
        flow.nodes[step] = _Node(name, hover, GREEN, f"step {best}", (run[0],))
        flow.nodes[item] = _Node(wrote, hover, ORANGE, f"step {best}", (run[0],))
        return step, item

    return add
