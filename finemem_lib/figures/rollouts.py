"""Figures of groups of rollouts: operations, rewards, advantages, and groups without gradient.

Rewards and advantages are computed from trajectories, or read from the records of training.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from finemem_lib.advantages import ScaleRewards, dead_groups
from finemem_lib.data.instance_names import instance_name
from finemem_lib.figures import style
from finemem_lib.figures.rewards import TERM_NAMES, stacked_terms
from finemem_lib.figures.selection import outcome_name, verdict
from finemem_lib.figures.story import written
from finemem_lib.figures.style import INK, label, paragraph
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, outcome_reward, weighted_sum
from finemem_lib.training.record import PlayedUpdate
from finemem_lib.training.schemes import (
    Scheme,
    advantages_of,
    scheme_of,
    scheme_weights,
    update_terms,
)
from finemem_lib.trajectory import AnsweredQuestion, Step, Trajectory

NO_GRADIENT = "no gradient"


@dataclass(frozen=True, slots=True)
class RolloutGroup:
    """The G rollouts of one instance with their rewards and advantages under a reward scheme.

    Attributes:
        rollouts: the G trajectories, all of T steps.
        terms: G rows of T mappings: the weighted terms of the scheme (`None`: not measurable).
        rewards: G rows of T sums of the terms (`None`: unscorable).
        advantages: G rows of T advantages (`None`: unscorable).
        operations: G rows of T rows: the value added to the advantage on the tokens of each
            operation; `None` if the scheme credits no operations.
    """

    rollouts: tuple[Trajectory, ...]
    terms: tuple[tuple[Mapping[str, float | None], ...], ...]
    rewards: tuple[tuple[float | None, ...], ...]
    advantages: tuple[tuple[float | None, ...], ...]
    operations: tuple[tuple[Sequence[float], ...], ...] | None = None

    @property
    def num_steps(self) -> int:
        """Number of steps T of each rollout."""
        return self.rollouts[0].num_steps

    def largest(self, rollout: int, step: int) -> float:
        """Return the largest absolute advantage of an operation's tokens at a step, 0.0 if unknown.

        Args:
            rollout: position of the rollout in the group.
            step: number of the step, from 1.
        """
        advantage = self.advantages[rollout][step - 1]
        if advantage is None:
            return 0.0
        added = self.operations[rollout][step - 1] if self.operations else ()
        return max(abs(advantage + more) for more in (*added, 0.0))

    def branches(self) -> list[list[int]]:
        """Return the branch number of every rollout at every step, G rows of T numbers.

        Rollouts with the same operations in all steps so far share a number; the first rollout has
        0.
        """
        histories: list[tuple[Any, ...]] = [() for _ in self.rollouts]
        columns = []
        for place in range(self.num_steps):
            histories = [
                (history, rollout.steps[place].outcomes)
                for history, rollout in zip(histories, self.rollouts, strict=True)
            ]
            distinct: list[tuple[Any, ...]] = []
            for history in histories:
                if history not in distinct:
                    distinct.append(history)
            # the number of a history suffices to compare the next step
            histories = [(distinct.index(history),) for history in histories]
            columns.append([history[0] for history in histories])
        return [list(row) for row in zip(*columns, strict=True)]

    def first_difference(self) -> int | None:
        """Return the first step (from 1) at which the rollouts differ, `None` if they are equal."""
        columns = zip(*self.branches(), strict=True)
        return next((step for step, column in enumerate(columns, 1) if any(column)), None)

    def information(self) -> tuple[int, float, float]:
        """Return a sort key whose maximum is the most informative group of an update.

        The advantage comes last, because dividing by a small deviation makes it large.

        Returns:
            The number of steps with a gradient, the sum over steps of the rewards' standard
            deviations, and the largest absolute advantage.
        """
        sizes = (
            self.largest(rollout, step)
            for rollout in range(len(self.rollouts))
            for step in range(1, self.num_steps + 1)
        )
        spread = sum(one or 0.0 for one in _spreads(self, self.num_steps))
        live = self.num_steps - len(self.without_gradient())
        return live, round(spread, 8), max(sizes, default=0.0)

    def without_gradient(self) -> dict[int, str]:
        """Return the steps (from 1) without gradient, each with the reason.

        Either fewer than two rollouts could be scored, or the rewards are equal: because all terms
        are equal, or because the terms that differ cancel out. A step with credit of operations has
        a gradient.
        """
        return {
            step: self._reason(step)
            for step, dead in enumerate(dead_groups(self.rewards), 1)
            if dead and not any(any(row[step - 1]) for row in self.operations or ())
        }

    def _reason(self, step: int) -> str:
        scored = [
            row[step - 1]
            for row, rewards in zip(self.terms, self.rewards, strict=True)
            if rewards[step - 1] is not None
        ]
        if len(scored) < 2:
            return f"{len(scored)} of {len(self.rollouts)} rollouts could be scored"
        differ = [
            TERMS.get(term, term)
            for term in scored[0]
            if len({_rounded(terms[term]) for terms in scored}) > 1
        ]
        if differ:
            return f"{' and '.join(differ)} differ and cancel out"
        same = len({rollout.steps[step - 1].outcomes for rollout in self.rollouts}) == 1
        terms = ", ".join(
            f"{TERMS.get(term, term)} {value:.3g}"
            for term, value in scored[0].items()
            if value is not None
        )
        return (
            f"every rollout earned the same ({terms}) "
            f"{'for the same operations' if same else 'for different operations'}"
        )


def stream_names(groups: Sequence[Sequence[Trajectory]]) -> list[str]:
    """Return the names of the instances of an update in figures and controls, unescaped.

    Args:
        groups: the rollouts of one instance each.
    """
    return [instance_name(group[0], place) for place, group in enumerate(groups, start=1)]


TERMS = {"outcome": "outcome", **TERM_NAMES}
"""Names of the terms of a reward scheme in figures."""


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 8)


def rollout_groups(
    groups: Sequence[Sequence[Trajectory]],
    scheme: Scheme = "Fine-Mem",
    settings: RewardSettings | None = None,
    scale_rewards: ScaleRewards = "group",
    agent: ReasoningAgent | None = None,
) -> list[RolloutGroup]:
    """Return the groups of one update with the rewards and advantages that training computes.

    Args:
        groups: the rollouts of one instance each, the same number in every group.
        scheme: name of the reward scheme.
        settings: settings of the rewards; with an annealed w1 those of this update.
        scale_rewards: as for `group_relative`; for "batch" the groups are one batch.
        agent: the reasoning agent that answered, for credit rules with further reader calls.

    Returns:
        One group per instance, in the order of `groups`.

    Raises:
        ValueError: a group is empty or mixes instances, or as for `update_terms` and
            `group_relative`.
    """
    settings = settings or RewardSettings()
    for group in groups:
        names = sorted({rollout.instance_id for rollout in group})
        if len(names) != 1:
            raise ValueError(
                f"rollout_groups: a group has rollouts of {names or 'no instance'}, expected one "
                "instance; group them as TrainingResult.trajectories does"
            )
    found = update_terms(groups, scheme, settings, agent)
    terms = [_weighted(rows, scheme, settings) for rows in found.terms]
    rewards = [[[weighted_sum(step) for step in row] for row in rows] for rows in terms]
    advantages = advantages_of(scheme, rewards, scale_rewards)
    return [
        RolloutGroup(
            tuple(group),
            tuple(map(tuple, terms[place])),
            tuple(map(tuple, rewards[place])),
            tuple(map(tuple, advantages[place])),
            None if found.operations is None else tuple(map(tuple, found.operations[place])),
        )
        for place, group in enumerate(groups)
    ]


def recorded_groups(
    played: PlayedUpdate, scheme: Scheme, settings: RewardSettings
) -> list[RolloutGroup]:
    """Return the groups of an update with the rewards and advantages that training recorded.

    A rule that compares all groups of an update cannot be recomputed from a part of them.

    Args:
        played: the update.
        scheme: the reward scheme of the run.
        settings: settings of the rewards; with an annealed w1 those of this update.
    """
    found, end = [], 0
    for group in played.groups:
        start, end = end, end + len(group) * group[0].num_steps

        def by_rollout(
            column: Sequence[Any], start: int = start, end: int = end, size: int = len(group)
        ) -> list[tuple[Any, ...]]:
            return [tuple(column[start + place : end : size]) for place in range(size)]

        operations = played.operations
        found.append(
            RolloutGroup(
                tuple(group),
                tuple(map(tuple, _weighted(by_rollout(played.terms), scheme, settings))),
                tuple(by_rollout(played.rewards)),
                tuple(by_rollout(played.advantages)),
                None if operations is None else tuple(by_rollout(operations)),
            )
        )
    return found


def _weighted(
    rows: Sequence[Sequence[Mapping[str, float | None]]], scheme: Scheme, settings: RewardSettings
) -> list[list[dict[str, float | None]]]:
    """Return the weighted terms of a scheme per rollout and step."""
    weights = scheme_weights(scheme, settings)
    return [
        [
            {
                term: None if (value := terms[term]) is None else weights[term] * value
                for term in scheme_of(scheme).terms
            }
            for terms in row
        ]
        for row in rows
    ]


SHORT = {"INSERT": "I", "UPDATE": "U", "DELETE": "D", "SKIP": "S", "invalid": "!"}
"""One-letter abbreviations of operations."""


def _operation_counts(step: Step) -> str:
    """Return the numbers of operations of a step in short form, such as "I2 S1"."""
    names = Counter(map(outcome_name, step.outcomes))
    return " ".join(f"{short}{names[name]}" for name, short in SHORT.items() if names[name]) or "–"


def _operation_lines(trajectory: Trajectory, step: int) -> str:
    """Return the operations of a step for a hover box, one per line, equal ones once."""
    lines = Counter(label(text, 60) for text in written(trajectory, step))
    return (
        "<br>".join(f"{line} × {count}" if count > 1 else line for line, count in lines.items())
        or "nothing"
    )


def _branch(number: int) -> str:
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[number] if number < 26 else f"#{number}"


def rollout_compare(
    group: RolloutGroup, details: bool = True, name: str | None = None
) -> go.Figure:
    """Show the operations and advantages of the G rollouts of one instance side by side.

    A cell shows the branch (rollouts with the same letter have had the same operations so far) and
    the number of operations of each kind; its colour is the advantage. The dashed line is the first
    step at which rollouts differ. A step without gradient is marked, with the reason in its cells.

    Args:
        group: the rollouts.
        details: whether hovering shows the operations and the terms of the reward.
        name: name of the instance (`None`: that of `instance_name`).
    """
    dead, first_difference = group.without_gradient(), group.first_difference()
    outcomes = [outcome_reward(rollout) for rollout in group.rollouts]
    count = len(outcomes)
    rows, steps = range(1, count + 1), range(1, group.num_steps + 1)
    gaps = style.gap_marks(steps, rows, group.advantages, "not scored")
    fig = go.Figure([_advantage_cells(group, dead, details), gaps])
    for step in dead:
        _mark_dead_step(fig, step, count)
    if first_difference is not None:
        fig.add_vline(x=first_difference - 0.5, line={"color": INK, "dash": "dash", "width": 2})
    return style.finish(
        fig,
        f"{count} rollouts of {label(name or instance_name(group.rollouts[0]), 36)}",
        _group_caption(group, dead, first_difference, outcomes) + style.gap_note(gaps),
        f"Heatmap of the advantages of {count} rollouts at {group.num_steps} steps, orange below "
        "and purple above the mean of the group, with each step's operations as text.",
        210 + max(150, min(36 * count, 640)),
        margin={"t": 92},
        xaxis=style.count_axis(group.num_steps) | {"showgrid": False},
        yaxis={
            "title_text": "rollout (outcome reward)",
            "autorange": "reversed",
            "showgrid": False,
            "tickvals": list(range(1, count + 1)),
            "ticktext": [
                f"{i} ({reward_text(outcome, '.2f')})" for i, outcome in enumerate(outcomes, 1)
            ],
        },
    )


def _advantage_cells(group: RolloutGroup, dead: Mapping[int, str], details: bool) -> go.Heatmap:
    """Return the cells of `rollout_compare`, without texts if there are many."""
    branches = group.branches()
    advantages = [style.numbers(row) for row in group.advantages]
    few = len(advantages) * group.num_steps <= 160
    return go.Heatmap(
        x=list(range(1, group.num_steps + 1)),
        y=list(range(1, len(advantages) + 1)),
        z=advantages,
        name="advantage",
        **style.signed_heatmap(style.largest(advantages), "advantage A"),
        text=_cell_texts(group, branches) if few else None,
        texttemplate="%{text}" if few else None,
        customdata=_hover_notes(group, branches, dead) if few and details else None,
        hovertemplate="rollout %{y}, step %{x}: A = %{z:+.3f}"
        + ("<br>%{customdata}" if few and details else "")
        + "<extra></extra>",
    )


def _group_caption(
    group: RolloutGroup,
    dead: Mapping[int, str],
    first_difference: int | None,
    outcomes: Sequence[float | None],
) -> str:
    """Return the caption of `rollout_compare`."""
    known = [outcome for outcome in outcomes if outcome is not None]
    where = (
        "All rollouts have the same operations."
        if first_difference is None
        else f"Their operations first differ at step {first_difference}."
    )
    spread = (
        f"Outcome rewards range from {min(known):.2g} to {max(known):.2g}."
        if known
        else "No outcome could be scored."
    )
    reasons = "".join(f" Step {step}: {why}." for step, why in list(dead.items())[:2])
    return (
        f"{where} {spread} {len(dead)} of {group.num_steps} steps carry no gradient.{reasons} "
        "Letters name branches; I, U, D, S and ! count INSERT, UPDATE, DELETE, SKIP "
        "and invalid operations."
    )


def _cell_texts(group: RolloutGroup, branches: Sequence[Sequence[int]]) -> list[list[str]]:
    """Return the branch and the operations of every cell."""
    return [
        [
            f"{_branch(branches[i][t])}<br>{_operation_counts(step)}"
            for t, step in enumerate(rollout.steps)
        ]
        for i, rollout in enumerate(group.rollouts)
    ]


def _mark_dead_step(fig: go.Figure, step: int, num_rollouts: int) -> None:
    """Outline the cells of a step without gradient, with a label above them."""
    fig.add_annotation(
        x=step,
        y=1,
        yref="paper",
        yanchor="bottom",
        text="no<br>gradient",
        showarrow=False,
        font={"size": 11},
    )
    fig.add_shape(
        type="rect",
        x0=step - 0.48,
        x1=step + 0.48,
        y0=0.52,
        y1=num_rollouts + 0.48,
        line={"color": INK, "dash": "dot", "width": 1},
    )


def _hover_notes(
    group: RolloutGroup, branches: Sequence[Sequence[int]], dead: Mapping[int, str]
) -> list[list[str]]:
    """Return the operations, reward terms and reason for no gradient of every cell."""
    return [
        [
            f"branch {_branch(branches[i][t])}: {_operation_lines(rollout, t + 1)}<br>"
            f"reward {reward_text(group.rewards[i][t])} = {_breakdown(group.terms[i][t])}"
            + (f"<br>{NO_GRADIENT}: {dead[t + 1]}" if t + 1 in dead else "")
            for t in range(group.num_steps)
        ]
        for i, rollout in enumerate(group.rollouts)
    ]


def reward_text(value: float | None, form: str = ".3g") -> str:
    """Format a reward; a reward of `None` is described as not scored.

    Args:
        value: The reward; `None` if it was not scored.
        form: A Python format specification.
    """
    return "not scored" if value is None else format(value, form)


def _breakdown(terms: Mapping[str, float | None]) -> str:
    return " + ".join(
        f"{TERMS.get(term, term)} {reward_text(value)}" for term, value in terms.items()
    )


def step_terms(group: RolloutGroup, rollout: int) -> go.Figure:
    """Show the reward terms of every step of one rollout under the scheme of its training.

    The bars are the weighted terms; a term that could not be measured has no bar. The mark is the
    mean reward of the group at the step, which the advantage subtracts.

    Args:
        group: the rollouts of the instance.
        rollout: position of the rollout in the group.
    """
    steps = list(range(1, group.num_steps + 1))
    rows = group.terms[rollout]
    terms = {
        TERMS.get(term, term): [paid[term] for paid in rows] for term in (rows[0] if rows else ())
    }
    means = [style.mean(rewards[t] for rewards in group.rewards) for t in range(group.num_steps)]
    above = [
        step
        for step, advantage in zip(steps, group.advantages[rollout], strict=True)
        if advantage is not None and advantage > 0
    ]
    credited = [
        value for step in (group.operations[rollout] if group.operations else ()) for value in step
    ]
    own = (
        f" Operations add {min(credited):+.2f} to {max(credited):+.2f} to the advantage of their "
        "own tokens."
        if credited
        else ""
    )
    return stacked_terms(
        steps,
        terms,
        ("mean of the group", means, 18),
        f"Rollout {rollout + 1}: reward terms per step",
        f"{len(above)} of {len(steps)} steps earned more than the mean of their group"
        f"{': ' if above else ''}{', '.join(map(str, above[:12]))}.{own}",
        f"Stacked bars of the weighted reward terms of {len(steps)} steps, with a mark at the mean "
        "of the group.",
    )


def gradient_map(groups: Sequence[RolloutGroup]) -> go.Figure:
    """Show which groups of one update have a gradient, and why the others have none.

    There is one row per instance and one column per step. The colour is the standard deviation of
    the group's rewards, also if it is 0; a cell without colour has fewer than two scored rollouts.
    A cross marks a group without gradient.

    Args:
        groups: the groups of the update.
    """
    num_steps = max((group.num_steps for group in groups), default=0)
    dead = [
        (step, row, why)
        for row, group in enumerate(groups, 1)
        for step, why in group.without_gradient().items()
    ]
    spreads = [_spreads(group, num_steps) for group in groups]
    fig = go.Figure(
        go.Heatmap(
            x=list(range(1, num_steps + 1)),
            y=list(range(1, len(groups) + 1)),
            z=spreads,
            name="standard deviation",
            hovertemplate="%{y}, step %{x}: standard deviation %{z}<extra></extra>",
            **style.magnitude_heatmap(
                style.largest(spreads), "standard deviation of r<sub>t</sub>"
            ),
        )
    )
    fig.add_trace(_dead_crosses(dead))
    kinds = Counter(_kind_of_reason(why) for *_, why in dead)
    total = sum(group.num_steps for group in groups)
    because = "; ".join(f"{count} for {kind}" for kind, count in kinds.most_common())
    because += ". A cross without a colour: no deviation is known" * bool(kinds[UNSCORED])
    return style.finish(
        fig,
        "Standard deviation of rewards by group and step",
        f"{len(dead)} of {total} groups carry no gradient{': ' if because else ''}{because}.",
        f"Heatmap of the standard deviation of the rewards in the groups of {len(groups)} "
        f"instances at {num_steps} steps; crosses mark groups without gradient.",
        220 + max(120, min(30 * len(groups), 600)),
        xaxis=style.count_axis(num_steps) | {"showgrid": False},
        yaxis={
            "title_text": "instance",
            "autorange": "reversed",
            "showgrid": False,
            "tickvals": list(range(1, len(groups) + 1)),
            "ticktext": [
                label(name, 30) for name in stream_names([group.rollouts for group in groups])
            ],
        },
    )


def _dead_crosses(dead: Sequence[tuple[int, int, str]]) -> go.Scatter:
    """Return crosses at the groups without gradient, given as (step, row, reason)."""
    return go.Scatter(
        x=[step for step, _, _ in dead],
        y=[row for _, row, _ in dead],
        mode="markers",
        name=NO_GRADIENT,
        showlegend=bool(dead),
        marker={"symbol": "x", "size": 10, "color": "white", "line": {"color": INK, "width": 1}},
        customdata=[why for _, _, why in dead],
        hovertemplate="%{y}, step %{x}: %{customdata}<extra></extra>",
    )


def _spreads(group: RolloutGroup, num_steps: int) -> list[float | None]:
    """Return the standard deviation of rewards per step, `None` for fewer than two rewards."""
    columns = [
        [reward for reward in rewards if reward is not None]
        for rewards in zip(*group.rewards, strict=True)
    ]
    columns += [[]] * (num_steps - len(columns))
    return [style.number(statistics.stdev(known)) if len(known) > 1 else None for known in columns]


UNSCORED = "fewer than two scored rollouts"


def _kind_of_reason(why: str) -> str:
    """Return the kind of a reason given by `RolloutGroup.without_gradient`."""
    if why.endswith("cancel out"):
        return "cancelling terms"
    if why.endswith("the same operations"):
        return "equal rewards for the same operations"
    if why.endswith("different operations"):
        return "equal rewards for different operations"
    return UNSCORED


ONLY_FIRST, ONLY_SECOND = "#F5D08A", "#A9CFE8"
"""Fill of operations of only the first, and of only the second of two rollouts: tints of orange and
blue on which black text is readable."""

SAME = "the same"
CELL = 28
"""Maximum characters per line of a cell of `rollout_diff`: two cells fit on a narrow page."""


def rollout_diff(
    group: RolloutGroup, first: int, second: int, name: str | None = None
) -> go.Figure:
    """Compare the operations of two rollouts of one instance by step, then their answers.

    Operations of only one rollout are marked by "−" (the first) or "+" (the second) and a colour;
    common ones are counted. Questions with different answers follow below.

    Args:
        group: the rollouts of the instance.
        first: position of the first rollout in the group.
        second: position of the second rollout.
        name: name of the instance (`None`: that of `instance_name`).
    """
    one, other = group.rollouts[first], group.rollouts[second]
    steps = _step_rows(one, other)
    asked = [
        (f"question {place}", _answer_text(mine), _answer_text(others))
        for place, (mine, others) in enumerate(zip(one.questions, other.questions, strict=True), 1)
        if mine.answer != others.answer
    ]
    rows = steps + asked
    counts = [sum(bool(row[side]) and row[1] != row[2] for row in steps) for side in (1, 2)]
    outcomes = [reward_text(outcome_reward(each), ".2f") for each in (one, other)]
    return style.from_traces(
        [_diff_cells(rows)],
        f"Rollouts {first + 1} and {second + 1} of {label(name or instance_name(one), 36)}",
        f"{counts[0]} operations (−) only rollout {first + 1} did, {counts[1]} (+) only rollout "
        f"{second + 1}; they answer {len(asked)} of {len(one.questions)} questions differently. "
        f"Outcome rewards: {outcomes[0]} and {outcomes[1]}.",
        f"Two columns, rollout {first + 1} and rollout {second + 1}: rows of {group.num_steps} "
        "steps with their operations, then questions with both answers; what differs is marked "
        "with a sign and a colour.",
        120 + 31 * len(rows),
        margin={"t": 84, "b": 16},
        xaxis={
            "title": {"text": "rollout (outcome reward)"},
            "side": "top",
            "tickvals": [0, 1],
            "ticktext": [
                f"{place + 1} ({outcome})"
                for place, outcome in zip((first, second), outcomes, strict=True)
            ],
            "showgrid": False,
            "zeroline": False,
        },
        yaxis={"title": {"text": "step, question"}, "showgrid": False}
        | style.lines_axis([row[0] for row in rows], 0.5),
    )


_Row = tuple[str, str, str]
"""Name of a row of `rollout_diff`, and its untrusted text for each of both rollouts."""


def _step_rows(one: Trajectory, other: Trajectory) -> list[_Row]:
    """Return the rows of operations by step.

    Operations of only one rollout have a row each; consecutive steps at which both rollouts have
    the same operations share one row.
    """
    rows: list[_Row] = []
    did = [
        (step, Counter(written(one, step)), Counter(written(other, step)))
        for step in range(1, one.num_steps + 1)
    ]
    for same, part in itertools.groupby(did, key=lambda found: found[1] == found[2]):
        steps = [*part]
        if same:
            first, last = steps[0][0], steps[-1][0]
            name = f"step {first}" if first == last else f"steps {first}–{last}"
            rows.append((name, SAME, SAME))
            continue
        for step, mine, others in steps:
            both = (mine & others).total()
            name = f"step {step}, {both} alike" if both else f"step {step}"
            apart = (mine - others).elements(), (others - mine).elements()
            rows += [(name, *pair) for pair in itertools.zip_longest(*apart, fillvalue="")]
    return rows


def _answer_text(answered: AnsweredQuestion) -> str:
    return f"{answered.question.text} → {answered.answer or '(no answer)'} {verdict(answered)}"


def _diff_cells(rows: Sequence[_Row]) -> dict[str, Any]:
    """Return the cells of `rollout_diff`."""
    signs = [[0, 0] if row[1] == row[2] else [-bool(row[1]), +bool(row[2])] for row in rows]
    texts = [
        [f"{'− +'[sign + 1]} {text}".strip() for sign, text in zip(signed, row[1:], strict=True)]
        for signed, row in zip(signs, rows, strict=True)
    ]
    return {
        "type": "heatmap",
        "name": "difference",
        "x": [0, 1],
        "y": list(range(len(rows))),
        "z": signs,
        "zmin": -1,
        "zmax": 1,
        "colorscale": [[0, ONLY_FIRST], [0.5, "white"], [1, ONLY_SECOND]],
        "showscale": False,
        "xgap": 6,
        "ygap": 1,
        "text": [[paragraph(text, 2 * CELL, CELL) for text in row] for row in texts],
        "texttemplate": "%{text}",
        "textfont": {"size": 11},
        "customdata": [[paragraph(text) for text in row] for row in texts],
        "hovertemplate": "%{customdata}<extra></extra>",
    }
