"""Figures of training: what GRPO made of groups of rollouts, and what the manager learned.

Pure builders in the manner of `plots`, of whose helpers they are made. Rewards and advantages are
computed again from trajectories, so a figure needs no trainer. A completion is shown as HTML
(`completion_view`) instead of a plotly figure: text that wraps, with a colour per token.
"""

from __future__ import annotations

import fnmatch
import html
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from finemem_lib import plot_style as style
from finemem_lib.advantages import ScaleRewards, dead_groups, group_relative
from finemem_lib.plot_style import (
    BLUE,
    CATEGORIES,
    GREY,
    INK,
    MARKERS,
    ORANGE,
    PALE,
    label,
    paragraph,
    plain,
)
from finemem_lib.plots import TERM_NAMES, source_sentence
from finemem_lib.report import TOKEN_CSS, html_table
from finemem_lib.rewards import RewardSettings, hybrid_reward, outcome_reward
from finemem_lib.text import sentences, words
from finemem_lib.training import SCHEMES, RewardScheme, scheme_weights
from finemem_lib.trajectory import Step, Trajectory

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NO_GRADIENT = "no gradient"

# ---- a run ---------------------------------------------------------------------------------------

TRAINING_PANELS: Mapping[str, tuple[str, ...]] = {
    "reward (mean)": ("reward",),
    "reward terms (mean)": ("rewards/*/mean",),
    "accuracy (mean score)": ("accuracy",),
    "operations (per step)": ("operations/*",),
    "invalid operations (share)": ("invalid_share",),
    "final memory (tokens)": ("memory_tokens",),
    "groups without gradient (share)": ("frac_reward_zero_std",),
    "entropy (nats per token)": ("entropy",),
}
"""What `training_curves` draws: panel title with unit -> patterns of record keys."""


def training_keys(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]] = TRAINING_PANELS,
) -> dict[str, list[str]]:
    """Return the record keys of every panel that has any, in the order they are drawn.

    >>> training_keys([{"step": 1, "reward": 0.5, "loss": 1.0}])
    {'reward (mean)': ['reward']}
    """
    keys = list(dict.fromkeys(key for record in records for key in record))
    return {title: found for title, patterns in panels.items() if (found := [
        key for key in keys if any(fnmatch.fnmatchcase(key, pattern) for pattern in patterns)])}


def training_curves(
    records: Sequence[Mapping[str, Any]],
    panels: Mapping[str, Sequence[str]] = TRAINING_PANELS,
) -> go.Figure:
    """Show a training run as small multiples, one panel per quantity that the records hold.

    `records` are those of `training.TrainingResult`, one per update, under TRL's names.
    """
    numbers = [record["step"] for record in records]
    drawn = training_keys(records, panels)
    columns = min(2, len(drawn)) or 1
    lines = -(-len(drawn) // columns) or 1
    fig = make_subplots(rows=lines, cols=columns, shared_xaxes="all", horizontal_spacing=0.12,
                        vertical_spacing=0.24 / lines, subplot_titles=list(drawn))
    for place, (title, found) in enumerate(drawn.items()):
        row, col = divmod(place, columns)
        for number, key in enumerate(found):
            fig.add_scatter(
                x=style.numbers(numbers), y=style.numbers(record.get(key) for record in records),
                row=row + 1, col=col + 1, mode="lines+markers", connectgaps=True,
                name=label(key.removesuffix("/mean").split("/", 1)[-1], 28),
                legendgroup=title, legendgrouptitle_text=title, showlegend=len(found) > 1,
                meta={"panel": title},
                line_color=CATEGORIES[number % len(CATEGORIES)],
                marker={"symbol": MARKERS[number % len(MARKERS)], "size": 7},
            )
    fig.update_xaxes(title_text="update", row=lines)
    fig.update_annotations(font={"size": 13})
    third = len(records) // 3 or 1
    first, last = ([record["reward"] for record in part if "reward" in record]
                   for part in (records[:third], records[-third:]))
    change = (f"Mean reward {style.mean(first):.3g} in the first third, "
              f"{style.mean(last):.3g} in the last. "
              if first and last else "")
    dead = style.mean(record.get("frac_reward_zero_std") for record in records)
    idle = "" if dead is None else f"{dead:.0%} of the groups carried no gradient."
    return style.finish(
        fig, "Training, update by update",
        f"{change}{idle}".strip() or f"{len(records)} updates.",
        f"Small multiples over {len(records)} updates: {', '.join(drawn) or 'nothing logged'}.",
        150 + 200 * lines, margin={"t": 84},
    )


# ---- groups of rollouts --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G rollouts of one instance, and what GRPO makes of them under a reward scheme.

    `terms`, `rewards` and `advantages` have G rows and T columns: the weighted terms that the
    scheme adds up (`None`: not measurable), their sum (`None`: unscorable), and the advantage.
    """

    rollouts: tuple[Trajectory, ...]
    terms: tuple[tuple[Mapping[str, float | None], ...], ...]
    rewards: tuple[tuple[float | None, ...], ...]
    advantages: tuple[tuple[float | None, ...], ...]

    @property
    def num_steps(self) -> int:
        return self.rollouts[0].num_steps

    def branches(self) -> list[list[int]]:
        """Return G rows of T numbers: rollouts that did the same in every step so far share one,
        the first rollout's is 0."""
        histories: list[tuple[Any, ...]] = [() for _ in self.rollouts]
        columns = []
        for place in range(self.num_steps):
            histories = [(history, rollout.steps[place].outcomes)
                         for history, rollout in zip(histories, self.rollouts, strict=True)]
            distinct: list[tuple[Any, ...]] = []
            for history in histories:
                if history not in distinct:
                    distinct.append(history)
            # a number is enough to compare the next step by
            histories = [(distinct.index(history),) for history in histories]
            columns.append([history[0] for history in histories])
        return [list(row) for row in zip(*columns, strict=True)]

    def parted(self) -> int | None:
        """Return the first step at which not all rollouts did the same, `None` if there is none."""
        columns = zip(*self.branches(), strict=True)
        return next((step for step, column in enumerate(columns, 1) if any(column)), None)

    def without_gradient(self) -> dict[int, str]:
        """Return why a step carries no gradient, for every step that carries none.

        Either fewer than two rollouts could be scored, or the rewards are equal: because every
        term is, or because the terms that differ cancel out.
        """
        return {
            step: self._reason(step)
            for step, dead in enumerate(dead_groups(self.rewards), 1) if dead
        }

    def _reason(self, step: int) -> str:
        scored = [row[step - 1] for row, rewards in zip(self.terms, self.rewards, strict=True)
                  if rewards[step - 1] is not None]
        if len(scored) < 2:
            return f"{len(scored)} of {len(self.rollouts)} rollouts could be scored"
        differ = [TERMS[term] for term in scored[0]
                  if len({_rounded(terms[term]) for terms in scored}) > 1]
        if differ:
            return f"{' and '.join(differ)} differ and cancel out"
        same = len({rollout.steps[step - 1].outcomes for rollout in self.rollouts}) == 1
        terms = ", ".join(f"{TERMS[term]} {value:.3g}" for term, value in scored[0].items()
                          if value is not None)
        return (f"every rollout earned the same ({terms}) "
                f"{'for the same operations' if same else 'for different operations'}")


TERMS = {"outcome": "outcome", **TERM_NAMES}
"""What figures call the terms of a reward scheme."""


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 8)


def rollout_groups(
    groups: Sequence[Sequence[Trajectory]],
    scheme: RewardScheme = "Fine-Mem",
    settings: RewardSettings | None = None,
    scale_rewards: ScaleRewards = "group",
) -> list[RolloutGroup]:
    """Return the groups of one update with their rewards and advantages, as training had them.

    `groups` holds the rollouts of one instance each, all of the same number; they are one batch
    for `scale_rewards` "batch". An update with an annealed w1 needs the settings of that update.

    Raises:
        ValueError: a group is empty or mixes instances, or as `hybrid_reward` and
            `group_relative`.
    """
    settings = settings or RewardSettings()
    weights = scheme_weights(scheme, settings)
    all_terms = []
    for group in groups:
        names = sorted({rollout.instance_id for rollout in group})
        if len(names) != 1:
            raise ValueError(
                f"rollout_groups: a group has rollouts of {names or 'no instance'}, expected one "
                "instance; group them as TrainingResult.trajectories does"
            )
        all_terms.append([
            [{term: None if getattr(reward, term) is None else weights[term] * getattr(reward, term)
              for term in SCHEMES[scheme]} for reward in hybrid_reward(rollout, settings)]
            for rollout in group
        ])
    rewards = [[[_sum(step) for step in row] for row in terms] for terms in all_terms]
    batch = [sum(rows, start=[]) for rows in zip(*rewards, strict=True)]
    advantages = group_relative(batch, scale_rewards)
    found, start = [], 0
    for group, terms, rows in zip(groups, all_terms, rewards, strict=True):
        end = start + group[0].num_steps
        found.append(RolloutGroup(
            tuple(group), tuple(map(tuple, terms)), tuple(map(tuple, rows)),
            tuple(tuple(row[start:end]) for row in advantages),
        ))
        start = end
    return found


def _sum(terms: Mapping[str, float | None]) -> float | None:
    known = [value for value in terms.values() if value is not None]
    return math.fsum(known) if known else None


SHORT = {"INSERT": "I", "UPDATE": "U", "DELETE": "D", "SKIP": "S", "invalid": "!"}
"""Operations where there is room for a letter each."""


def _done(step: Step) -> str:
    """Return what a step did in a few characters: "I2 S1"."""
    names = Counter(outcome.operation.kind if outcome.operation and outcome.applied else "invalid"
                    for outcome in step.outcomes)
    return " ".join(f"{short}{names[name]}" for name, short in SHORT.items() if names[name]) or "–"


def _told(step: Step) -> str:
    """Return the operations of a step for a hover box, one per line, equal ones once."""
    lines: Counter[str] = Counter()
    for outcome in step.outcomes:
        operation = outcome.operation
        if operation is None or not outcome.applied:
            lines[f"invalid: {label(outcome.reason, 60)}"] += 1
            continue
        target = "" if outcome.item_id is None else f" #{label(outcome.item_id, 8)}"
        content = "" if operation.content is None else f" {label(operation.content, 48)}"
        lines[f"{operation.kind}{target}{content}"] += 1
    return "<br>".join(f"{line} × {count}" if count > 1 else line
                       for line, count in lines.items()) or "nothing"


def _branch(number: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number] if number < 26 else f"#{number}"


def rollout_compare(group: RolloutGroup, details: bool = True) -> go.Figure:
    """Show the G rollouts of one instance side by side: what each did, and its advantage.

    A cell holds the branch (rollouts with the same letter did the same so far) and the number of
    operations of each kind; its colour is the advantage. The dotted line is where they part; a
    step whose group carries no gradient is marked, and its cells say why. With `details`, hovering
    shows the operations and the terms of the reward.
    """
    steps = list(range(1, group.num_steps + 1))
    branches = group.branches()
    dead = group.without_gradient()
    parted = group.parted()
    advantages = [style.numbers(row) for row in group.advantages]
    bound = max((abs(v) for row in advantages for v in row if v is not None), default=0) or 1
    few = len(advantages) * len(steps) <= 160
    notes = [
        [f"branch {_branch(branches[i][t])}: {_told(step)}<br>"
         f"reward {_shown(group.rewards[i][t])} = {_breakdown(group.terms[i][t])}"
         + (f"<br>{NO_GRADIENT}: {dead[t + 1]}" if t + 1 in dead else "")
         for t, step in enumerate(rollout.steps)]
        for i, rollout in enumerate(group.rollouts)
    ] if few and details else None
    fig = go.Figure(go.Heatmap(
        x=steps, y=list(range(1, len(advantages) + 1)), z=advantages, name="advantage",
        colorscale="PuOr", zmid=0, zmin=-bound, zmax=bound, xgap=1, ygap=1,
        text=[[f"{_branch(branches[i][t])} · {_done(step)}"
               for t, step in enumerate(rollout.steps)]
              for i, rollout in enumerate(group.rollouts)] if few else None,
        texttemplate="%{text}" if few else None, textfont={"size": 11},
        customdata=notes,
        hovertemplate="rollout %{y}, step %{x}: A = %{z:+.3f}"
                      + ("<br>%{customdata}" if few and details else "") + "<extra></extra>",
        colorbar=style.colorbar("advantage A"),
    ))
    for step in dead:
        fig.add_annotation(x=step, y=1, yref="paper", yanchor="bottom", text="no<br>gradient",
                           showarrow=False, font={"size": 11})
        fig.add_shape(type="rect", x0=step - 0.48, x1=step + 0.48, y0=0.52,
                      y1=len(advantages) + 0.48, line={"color": INK, "dash": "dot", "width": 1})
    if parted is not None:
        fig.add_vline(x=parted - 0.5, line={"color": INK, "dash": "dash", "width": 2})
    outcomes = [outcome_reward(rollout) for rollout in group.rollouts]
    where = ("They never part: all did the same." if parted is None
             else f"They part at step {parted}.")
    reasons = "".join(f" Step {step}: {why}." for step, why in list(dead.items())[:2])
    known = [outcome for outcome in outcomes if outcome is not None]
    spread = (f" Outcome rewards range from {min(known):.2g} to {max(known):.2g}."
              if known else " No outcome could be scored.")
    return style.finish(
        fig, f"{len(advantages)} rollouts of {label(group.rollouts[0].instance_id, 32)}",
        f"{where}{spread} {len(dead)} of {len(steps)} steps carry no gradient.{reasons} Letters "
        "before the dot tell branches; I, U, D, S and ! count INSERT, UPDATE, DELETE, SKIP and "
        "invalid operations.",
        f"Heatmap of the advantages of {len(advantages)} rollouts at {len(steps)} steps, orange "
        "below and purple above the mean of the group, with each step's operations as text.",
        210 + max(150, min(34 * len(advantages), 640)), margin={"t": 92},
        xaxis=style.count_axis(len(steps)) | {"showgrid": False},
        yaxis={"title_text": "rollout (outcome reward)", "autorange": "reversed",
               "showgrid": False, "tickvals": list(range(1, len(advantages) + 1)),
               "ticktext": [f"{i} ({_shown(outcome, '.2f')})"
                            for i, outcome in enumerate(outcomes, 1)]},
    )


def _shown(value: float | None, form: str = ".3g") -> str:
    return "not scored" if value is None else format(value, form)


def _breakdown(terms: Mapping[str, float | None]) -> str:
    return " + ".join(f"{TERMS[term]} {_shown(value)}" for term, value in terms.items())


def step_terms(group: RolloutGroup, rollout: int) -> go.Figure:
    """Show what each step of one rollout was paid for under the scheme it was trained with.

    The bars are the weighted terms, a term that could not be measured has none; the line is the
    mean reward of the group at that step, which the advantage is measured from.
    """
    steps = list(range(1, group.num_steps + 1))
    rows = group.terms[rollout]
    fig = go.Figure()
    for number, term in enumerate(rows[0] if rows else ()):
        fig.add_bar(
            x=steps, y=style.numbers(terms[term] for terms in rows), name=TERMS[term],
            marker={"color": CATEGORIES[number], "pattern": style.pattern(number)},
        )
    means = [style.mean(rewards[t] for rewards in group.rewards) for t in range(group.num_steps)]
    fig.add_scatter(x=steps, y=style.numbers(means), name="mean of the group", mode="markers",
                    marker={"color": INK, "symbol": "line-ew-open", "size": 18,
                            "line": {"width": 3, "color": INK}})
    above = [step for step, advantage in zip(steps, group.advantages[rollout], strict=True)
             if advantage is not None and advantage > 0]
    return style.finish(
        fig, f"Rollout {rollout + 1}: what each step is paid for",
        f"{len(above)} of {len(steps)} steps earned more than the mean of their group"
        f"{': ' if above else ''}{', '.join(map(str, above[:12]))}.",
        f"Stacked bars of the weighted reward terms of {len(steps)} steps, with a mark at the mean "
        "of the group.",
        400, barmode="relative", xaxis=style.count_axis(len(steps)),
        yaxis={"title_text": "reward r<sub>t</sub> (weighted terms)"},
    )


def gradient_map(groups: Sequence[RolloutGroup]) -> go.Figure:
    """Show which groups of one update teach something, and why the others do not.

    One row per instance, one column per step; the colour is the standard deviation of the group's
    rewards, a cross marks a group without gradient.
    """
    num_steps = max((group.num_steps for group in groups), default=0)
    rows = [
        [_spread([rewards[t] for rewards in group.rewards]) if t < group.num_steps else None
         for t in range(num_steps)]
        for group in groups
    ]
    dead = [(step, row, why) for row, group in enumerate(groups, 1)
            for step, why in group.without_gradient().items()]
    fig = go.Figure(go.Heatmap(
        x=list(range(1, num_steps + 1)), y=list(range(1, len(groups) + 1)),
        z=[style.numbers(row) for row in rows], name="standard deviation",
        colorscale="Cividis", zmin=0, xgap=1, ygap=1,
        hovertemplate="instance %{y}, step %{x}: standard deviation %{z}<extra></extra>",
        colorbar=style.colorbar("standard deviation of r<sub>t</sub>"),
    ))
    fig.add_scatter(
        x=[step for step, _, _ in dead], y=[row for _, row, _ in dead], mode="markers",
        name=NO_GRADIENT, marker={"symbol": "x", "size": 10, "color": "white",
                                  "line": {"color": INK, "width": 1}},
        customdata=[why for _, _, why in dead],
        hovertemplate="instance %{y}, step %{x}: %{customdata}<extra></extra>",
    )
    kinds = Counter(
        "cancelling terms" if why.endswith("cancel out") else
        "equal rewards for the same operations" if why.endswith("the same operations") else
        "equal rewards for different operations" if why.endswith("different operations") else
        "fewer than two scored rollouts" for _, _, why in dead
    )
    total = sum(group.num_steps for group in groups)
    because = "; ".join(f"{count} for {kind}" for kind, count in kinds.most_common())
    return style.finish(
        fig, "Which groups teach?",
        f"{len(dead)} of {total} groups carry no gradient{': ' if because else ''}{because}.",
        f"Heatmap of the standard deviation of the rewards in the groups of {len(groups)} "
        f"instances at {num_steps} steps; crosses mark groups without gradient.",
        220 + max(120, min(30 * len(groups), 600)),
        xaxis=style.count_axis(num_steps) | {"showgrid": False},
        yaxis={"title_text": "instance", "autorange": "reversed", "showgrid": False,
               "tickvals": list(range(1, len(groups) + 1)),
               "ticktext": [f"{row}: {label(group.rollouts[0].instance_id, 14)}"
                            for row, group in enumerate(groups, 1)]},
    )


def _spread(rewards: Sequence[float | None]) -> float | None:
    known = [reward for reward in rewards if reward is not None]
    if len(known) < 2:
        return None
    mean = math.fsum(known) / len(known)
    return math.sqrt(math.fsum((reward - mean) ** 2 for reward in known) / (len(known) - 1))


# ---- an episode before and after -----------------------------------------------------------------


def episode_before_after(
    before: Sequence[Trajectory],
    after: Sequence[Trajectory],
    max_sentences: int = 32,
    max_questions: int = 12,
) -> go.Figure:
    """Show rollouts of one instance side by side, from before and after training: which sentences
    of the stream each kept, and which questions it could answer then.

    An item stands for the sentence of its chunk that it shares most words with. A sentence is
    needed (◆) when it holds an accepted answer of a global question and its step is among the
    known evidence. Where there are too many sentences, the needed ones are shown first.

    Raises:
        ValueError: the trajectories are not all of one instance, or there are none.
    """
    columns = [*before, *after]
    names = sorted({trajectory.instance_id for trajectory in columns})
    if len(names) != 1 or not before or not after:
        raise ValueError(
            f"episode_before_after: got {len(before)} and {len(after)} trajectories of "
            f"{names or 'no instance'}, expected at least one each of the same instance"
        )
    read = [(step.step, place, text) for step in columns[0].steps
            for place, text in enumerate(sentences(step.chunk.text))]
    needed = _needed(columns[0])
    chosen = sorted(sorted(read, key=lambda row: row[:2] not in needed)[:max_sentences])
    rows = {(step, place): row for row, (step, place, _) in enumerate(chosen)}
    xs = [number + (0.5 if number > len(before) else 0) for number in range(1, len(columns) + 1)]
    marks: dict[str, list[tuple[float, int, str]]] = {name: [] for name in _FATES}
    asked = [answered.question for answered in columns[0].questions][:max_questions]
    fates = [_fates(trajectory) for trajectory in columns]
    for x, trajectory, fate in zip(xs, columns, fates, strict=True):
        for key, row in rows.items():
            name, note = fate.get(key, ("not stored", ""))
            marks[name].append((x, row, note))
        for j in range(len(asked)):
            answered = trajectory.questions[j]
            name = ("not scored" if answered.score is None else
                    "answer right" if answered.score >= 0.5 else "answer not right")
            marks[name].append((x, j, f"answer: {label(answered.answer, 60)}"))
    fig = make_subplots(
        rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.05,
        row_heights=[max(len(rows), 1), max(len(asked), 1)],
    )
    for name, points in marks.items():
        if points:
            color, symbol, size, row = _FATES[name]
            fig.add_scatter(
                x=[x for x, _, _ in points], y=[y for _, y, _ in points], mode="markers",
                name=name, row=row, col=1,
                customdata=[note for *_, note in points] if points[0][2] else None,
                hovertemplate="%{customdata}<extra></extra>" if points[0][2] else None,
                marker={"color": color, "symbol": symbol, "size": size,
                        "line": {"width": 2, "color": color}},
            )
    groups = ((f"before {i}" for i in range(1, len(before) + 1)),
              (f"after {i}" for i in range(1, len(after) + 1)))
    heads = [f"{name}<br>r = {_shown(outcome_reward(one), '.2f')}" for name, one in
             zip((name for group in groups for name in group), columns, strict=True)]
    middle = len(before) + 0.75
    fig.add_vline(x=middle, line={"color": GREY, "dash": "dot", "width": 1})
    axis = {"tickvals": xs, "ticktext": heads, "range": [0.4, xs[-1] + 0.6], "showgrid": False,
            "zeroline": False}
    fig.update_xaxes(**axis)
    fig.update_xaxes(showticklabels=True, side="top", row=1, col=1)
    fig.update_xaxes(showticklabels=False, title_text="rollout (r: its outcome reward)",
                     row=2, col=1)
    fig.update_yaxes(
        title_text="step and sentence", tickvals=list(range(len(chosen))), row=1, col=1,
        ticktext=[f"{'◆ ' if (step, place) in needed else ''}{step} · {label(text, 34)}"
                  for step, place, text in chosen], range=[len(chosen) - 0.4, -0.6],
        zeroline=False)
    fig.update_yaxes(
        title_text="question", tickvals=list(range(len(asked))), row=2, col=1,
        ticktext=[label(question.text, 38) for question in asked], range=[len(asked) - 0.4, -0.6],
        zeroline=False)
    sides = []
    for name, part in (("before", slice(0, len(before))), ("after", slice(len(before), None))):
        kept = [[key for key, (fate, _) in found.items() if fate == "kept to the end"]
                for found in fates[part]]
        useful = style.mean(len([key for key in keys if key in needed]) for keys in kept) or 0.0
        other = style.mean(len([key for key in keys if key not in needed]) for keys in kept) or 0.0
        reward = style.mean(outcome_reward(trajectory) for trajectory in columns[part])
        sides.append(f"{name} training {useful:.3g} of {len(needed)} needed sentences and "
                     f"{other:.3g} others were kept, outcome reward {_shown(reward, '.2f')}")
    cut = "" if len(chosen) == len(read) else f" ({len(chosen)} of {len(read)} sentences shown)"
    return style.finish(
        fig, "One episode before and after training",
        f"On average {sides[0]}; {sides[1]}{cut}. ◆ marks what a question needs.",
        f"Dot matrix of {len(chosen)} sentences and {len(asked)} questions by {len(before)} "
        f"rollouts before and {len(after)} after training: kept, lost or not stored; answered "
        "right or not.",
        210 + 22 * (len(chosen) + len(asked)), margin={"t": 110, "b": 76},
    )


_FATES = {
    "kept to the end": (BLUE, "circle", 11, 1), "stored, then lost": (ORANGE, "x-thin", 9, 1),
    "not stored": (PALE, "circle", 3, 1), "answer right": (BLUE, "square", 11, 2),
    "answer not right": (ORANGE, "x-thin", 9, 2), "not scored": (GREY, "square-open", 9, 2),
}
"""What became of a sentence or an answer: colour, symbol, size, panel."""


def _needed(trajectory: Trajectory) -> set[tuple[int, int]]:
    """Return (step, place) of the sentences that hold what the global questions ask for: one for
    each question and evidence step, or one in all where the evidence is not known."""
    found = set()
    for question in (answered.question for answered in trajectory.questions):
        wanted = set(words(f"{question.text} {' '.join(question.answers)}"))
        holding = [
            (len(wanted & shared) / len(shared), step.step, place)
            for step in trajectory.steps
            if question.evidence_steps is None or step.step in question.evidence_steps
            for place, text in enumerate(sentences(step.chunk.text))
            if any(answer and answer in text for answer in question.answers)
            and (shared := set(words(text)))
        ]
        if question.evidence_steps is None:
            best = [max(holding)] if holding else []
        else:
            best = [max(row for row in holding if row[1] == step)
                    for step in {row[1] for row in holding}]
        found |= {(step, place) for _, step, place in best}
    return found


def _fates(trajectory: Trajectory) -> dict[tuple[int, int], tuple[str, str]]:
    """Return what became of every sentence (step, place) that was stored, with a note."""
    final = {item.item_id: item for item in trajectory.final_memory()}
    found: dict[tuple[int, int], tuple[str, str]] = {}
    for step in trajectory.steps:
        texts = sentences(step.chunk.text)
        for item in step.delta.written:
            source = source_sentence(item.content, step.chunk.text)
            if source not in texts:
                continue
            kept = final.get(item.item_id) == item
            name = "kept to the end" if kept else "stored, then lost"
            end = "" if kept else f"<br>{_end(trajectory, item.item_id, step.step)}"
            key = (step.step, texts.index(source))
            if kept or key not in found:
                found[key] = name, (f"{item.lineage[-1].kind} #{label(item.item_id, 8)}: "
                                    f"{paragraph(item.content)}{end}")
    return found


def _end(trajectory: Trajectory, item_id: str, written: int) -> str:
    """Return how an item's state after step `written` ended."""
    for step in trajectory.steps[written:]:
        if item_id in step.delta.removed:
            return f"deleted at step {step.step}"
        if item_id in step.delta.evicted:
            return f"pushed out at step {step.step}"
        if any(item.item_id == item_id for item in step.delta.written):
            return f"overwritten at step {step.step}"
    return f"gone at step {written}"  # written and removed by the same step


# ---- completions ---------------------------------------------------------------------------------

LEVELS = 4
"""Shades of a token's colour on each side of 0."""


@dataclass(frozen=True, slots=True)
class ColouredCompletion:
    """A completion as tokens, with one value per token (`None`: not known) and a heading."""

    heading: str
    tokens: tuple[str, ...]
    values: tuple[float | None, ...]


@dataclass(frozen=True, slots=True)
class CompletionView:
    """Completions with coloured tokens: HTML for notebooks and the report, its caption, its alt
    text, and the same as table rows."""

    html: str
    caption: str
    alt: str
    table: tuple[dict[str, Any], ...]

    def _repr_mimebundle_(self, **_: Any) -> dict[str, str]:
        return {"text/html": self.html, "text/plain": f"[completions] {self.alt} {self.caption}"}


def completion_view(
    completions: Sequence[ColouredCompletion],
    measure: str,
    unit: str = "",
    title: str = "Completions, token by token",
    max_tokens: int = 600,
) -> CompletionView:
    """Show completions with every token coloured by a signed value.

    Purple is above 0, orange and underlined below, in four shades up to the largest absolute
    value, as the legend says; hovering shows the number, and the table lists all of them. Only the
    first `max_tokens` tokens are shown, and the caption says so. All texts may be untrusted.
    """
    left = max_tokens
    shown = []
    for one in completions:
        if left > 0:
            shown.append(ColouredCompletion(one.heading, one.tokens[:left], one.values[:left]))
            left -= len(one.tokens)
    values = [value for one in shown for value in one.values if value is not None]
    bound = max(map(abs, values), default=0.0) or 1.0
    what = f"{measure} ({unit})" if unit else measure
    legend = "".join(
        _span(f" {_signed(bound * level / LEVELS)} ", bound * level / LEVELS, bound)
        for level in range(-LEVELS, LEVELS + 1)
    )
    parts = []
    table = []
    for one in shown:
        text = "".join(_span(token, value, bound)
                       for token, value in zip(one.tokens, one.values, strict=True))
        parts.append(f"<p><b>{_text(one.heading, 120)}</b></p><pre>{text or 'no tokens'}</pre>")
        table += [{"completion": plain(label(one.heading, 60)), "token": number,
                   "text": visible(token), what: style.number(value)}
                  for number, (token, value) in enumerate(
                      zip(one.tokens, one.values, strict=True), 1)]
    total = sum(len(one.tokens) for one in completions)
    cut = "" if total <= max_tokens else f" The first {max_tokens} of {total} tokens are shown."
    up, down = sum(value > 0 for value in values), sum(value < 0 for value in values)
    extremes = (f"{up} tokens are above 0 and {down} below; the values reach from "
                f"{_signed(min(values))} to {_signed(max(values))}." if values
                else "No token has a known value.")
    caption = f"{measure[:1].upper()}{measure[1:]} of {len(values)} tokens: {extremes}{cut}"
    alt = (f"{title}: the text of {len(shown)} completions, each token coloured by its {what}, "
           "purple above 0, orange and underlined below.")
    markup = (
        f"<style>{TOKEN_CSS}</style>"
        f'<div class="finemem-tokens" role="group" aria-label="{_text(alt, 400)}">'
        f"<p><strong>{_text(title, 120)}</strong></p>"
        f"<p>{_text(what, 80)}:</p><pre>{legend}</pre>{''.join(parts)}"
        f"<p>{_text(caption, 400)}</p>"
        f"<details><summary>Show as table</summary>{html_table(title, table)}</details></div>"
    )
    return CompletionView(markup, caption, alt, tuple(table))


def completion_grid(
    tokens: Sequence[str],
    values: Sequence[float | None],
    measure: str,
    title: str = "A completion, token by token",
    columns: int = 8,
) -> go.Figure:
    """Show a completion as lines of `columns` tokens, coloured by a signed value.

    The figure for explorers, long tokens in two lines and cut; `completion_view` reads better.
    """
    missing = -len(tokens) % columns
    texts = [*map(visible, tokens), *[""] * missing]
    filled = [*values, *[None] * missing]
    lines = [slice(start, start + columns) for start in range(0, len(texts), columns)]
    known = [value for value in values if value is not None]
    bound = style.number(max(map(abs, known), default=0.0)) or 1.0
    fig = go.Figure(go.Heatmap(
        x=list(range(1, columns + 1)), y=list(range(1, len(lines) + 1)),
        z=[style.numbers(filled[line]) for line in lines], name=label(measure),
        text=[[paragraph(token, 16, 8) for token in texts[line]] for line in lines],
        texttemplate="%{text}", textfont={"size": 11, "family": "monospace"},
        customdata=[[label(token, 18) for token in texts[line]] for line in lines],
        colorscale="PuOr", zmid=0, zmin=-bound, zmax=bound, xgap=2, ygap=2,
        hovertemplate="%{customdata}<br>%{z:+.3g}<extra></extra>", colorbar=style.colorbar(measure),
    ))
    up, down = sum(value > 0 for value in known), sum(value < 0 for value in known)
    return style.finish(
        fig, title,
        f"{len(tokens)} tokens, {up} above 0 and {down} below; the largest absolute value is "
        f"{max(map(abs, known), default=0.0):.3g}." if known
        else f"{len(tokens)} tokens, none of which has a known value.",
        f"Grid of the {len(tokens)} tokens of a completion in reading order, coloured by the "
        f"{measure}: purple above 0, orange below.",
        190 + max(60, 40 * len(lines)),
        xaxis={"title_text": "token of the line", "dtick": 1, "showgrid": False,
               "range": [0.5, columns + 0.5]},
        yaxis={"title_text": "line", "autorange": "reversed", "dtick": 1, "showgrid": False},
    )


def token_push(step: Step, advantage: float | None) -> tuple[float | None, ...]:
    """Return ``A (1 - p)`` per completion token: how far a policy-gradient step on ``A log p``
    pushes the token's own logit, p being the probability it was sampled with.

    `None` where the advantage or the log-probabilities are not known.
    """
    if advantage is None or step.logprobs is None:
        return (None,) * len(step.completion_ids or ())
    return tuple(advantage * -math.expm1(value) for value in step.logprobs)


def advantage_view(group: RolloutGroup, rollout: int, tokenizer: PreTrainedTokenizerBase
                   ) -> CompletionView:
    """Show one rollout's completions with every token coloured by the advantage of its step.

    GRPO gives all tokens of a completion the same advantage; what the update pushes further is
    seen in `change_view`.
    """
    one = group.rollouts[rollout]
    completions = []
    for step, advantage in zip(one.steps, group.advantages[rollout], strict=True):
        tokens = step_tokens(step, tokenizer)
        completions.append(ColouredCompletion(
            f"step {step.step}, advantage {_signed(advantage)}", tokens,
            (style.number(advantage),) * len(tokens)))
    return completion_view(
        completions, "advantage A",
        title=f"Rollout {rollout + 1}: what the update reinforces and suppresses")


def change_view(
    steps: Sequence[Step],
    before: Sequence[Sequence[float]],
    after: Sequence[Sequence[float]],
    tokenizer: PreTrainedTokenizerBase,
    title: str = "What training made more and less likely",
) -> CompletionView:
    """Show completions with every token coloured by the change of its log-probability.

    `before` and `after` hold one row per step and one value in nats per completion token, as
    `Step.logprobs` and `explore_training.token_logprobs` give them.
    """
    completions = []
    for step, old, new in zip(steps, before, after, strict=True):
        change = [style.number(b - a) for a, b in zip(old, new, strict=True)]
        total = math.fsum(value for value in change if value is not None)
        completions.append(ColouredCompletion(
            f"step {step.step}, whole completion {_signed(total)} nats",
            step_tokens(step, tokenizer), tuple(change)))
    return completion_view(completions, "change of log-probability", "nats", title)


def step_tokens(step: Step, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Return the text of every token of a step's completion; a scripted step has none.

    A character that several tokens spell stands with the last of them, the others are empty.
    """
    texts: list[str] = []
    waiting: list[int] = []
    for token in step.completion_ids or ():
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("\ufffd") and len(waiting) < 8:
            texts.append("")
        else:
            texts.append(text)
            waiting = []
    return tuple(texts)


def visible(token: str) -> str:
    r"""Return a token so that it can be seen and does nothing: controls and direction marks by
    their escapes, at most 80 characters.

    >>> visible("a\n\u202eb"), visible("")
    ('a⏎\\u202eb', '◌')
    """
    head = token if len(token) <= 80 else token[:79] + "…"
    return "".join(
        "⏎" if char == "\n" else char if char.isprintable()
        else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in head
    ) or "◌"


def _span(token: str, value: float | None, bound: float) -> str:
    level = 0 if value is None else round(abs(value) / bound * LEVELS)
    name = f"level-n{level} minus" if level and value < 0 else f"level-p{level}" if level else ""
    return (f'<span class="{name}" title="{_signed(value)}">'
            f"{html.escape(visible(token))}</span>")


def _signed(value: float | None) -> str:
    return "not known" if value is None else f"{value:+.3g}"


def _text(text: str, limit: int) -> str:
    return html.escape(style.one_line(text, limit))
