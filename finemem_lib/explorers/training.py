"""Explorers of training: live curves, groups of rollouts, and a whole run.

They need the records and rollouts that training kept, but no trainer.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import json
import math
import sys
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

from finemem_lib.advantages import ScaleRewards
from finemem_lib.explorers.display import is_live
from finemem_lib.explorers.explorer import Control, Explorer, Options, State
from finemem_lib.explorers.live import drawing
from finemem_lib.figures import style
from finemem_lib.figures.display import display_bundle, figure_bundle, outputs
from finemem_lib.figures.group import group_completions
from finemem_lib.figures.rollouts import (
    RolloutGroup,
    gradient_map,
    recorded_groups,
    rollout_compare,
    rollout_diff,
    rollout_groups,
    step_terms,
    stream_names,
)
from finemem_lib.figures.selection import clicks_on
from finemem_lib.figures.story import seen_by_group
from finemem_lib.figures.tokens import (
    change_view,
    completion_grid,
    step_tokens,
    token_push,
)
from finemem_lib.figures.training import TRAINING_PANELS, training_curves, training_keys
from finemem_lib.managers.operation_tokens import operation_of_tokens, token_texts
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, outcome_reward
from finemem_lib.training.record import StoredUpdates
from finemem_lib.training.schemes import PAPER_SCHEMES, Scheme, scheme_of
from finemem_lib.training.trl_adapter import Record
from finemem_lib.trajectory import Step, Trajectory
from finemem_lib.util.progress import Progress

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from finemem_lib.managers.model import ModelManager

Updates = Mapping[int, Sequence[Sequence[Trajectory]]]
"""Kept trajectories by update, instance and rollout, as in `TrainingResult.trajectories`."""

SHARE_OF_TIME = 0.05
"""Maximum share of the time of a training run that `LiveCurves` spends on drawing."""


class LiveCurves:
    """Curves of a training run that are updated below the cell during training.

    Pass it to `train_manager` as `on_update`, and call `finish` with the records of the result. The
    title states the number of updates done and the estimated time remaining. A record costs a few
    milliseconds at most: the figure is created once and then only its numbers are replaced, and if
    drawing takes longer than `SHARE_OF_TIME` of the time, several records are drawn together. An
    error in drawing is printed once and does not interrupt the training.

    The curves are one output of the cell, replaced with every drawing, so a notebook that is run
    without a front end keeps the last state as a plain figure. JupyterLab does not redraw a plain
    figure when its output is updated; there the curves are the explorers' widget until `finish`.

    Attributes:
        line: progress and remaining time, as in the title.
        records: the records so far.
        error: the text of the last error, empty if there is none.
    """

    def __init__(self, updates: int, say: Callable[[str], Any] | None = None) -> None:
        """Start without records.

        Args:
            updates: number of updates of the whole run.
            say: function called with `line` at every record, such as `Run.progress`.
        """
        self.say = say
        self.progress = Progress(updates, "updates")
        self.line = ""
        self.records: list[Record] = []
        self.error = ""
        self._keys: list[str] = []
        self._spec: dict[str, Any] = {}
        self._widget: Any = None
        self._handle: Any = None
        self._next = 0.0

    def __call__(self, record: Record) -> None:
        """Add the record of an update and draw it, unless the last drawing was too recent."""
        try:
            self.records.append(dict(record))
            self.line = self.progress(record["step"])
            if self.say is not None:
                self.say(self.line)
            started = time.perf_counter()
            if started >= self._next:
                known = self._keys
                self._draw()
                if self._keys == known:  # the time of the first drawing is not typical
                    ended = time.perf_counter()
                    self._next = ended + (ended - started) * (1 / SHARE_OF_TIME - 1)
        except Exception as error:  # an error in drawing must not stop hours of training
            if not self.error:
                print(
                    f"the live curves failed ({type(error).__name__}: {error}); training goes "
                    "on without them",
                    file=sys.stderr,
                )
            self.error = f"{type(error).__name__}: {error}"

    def finish(self, records: Sequence[Record]) -> go.Figure:
        """Replace the live figure by the final one with its caption and table, and return it.

        Args:
            records: the records of the whole run, in a resumed run also those of earlier sessions.
        """
        figure = training_curves(records)
        drawn, below = outputs(figure)
        self._show(drawn)
        if self._widget is not None:
            self._widget.close()
        display_bundle(below)
        return figure

    def _draw(self) -> None:
        """Draw the records so far."""
        drawn = [key for keys in training_keys(self.records).values() for key in keys]
        if drawn != self._keys:
            self._spec = json.loads(training_curves(self.records).to_json())
        for trace, key in zip(self._spec["data"], drawn, strict=True):
            trace["x"] = [record["step"] for record in self.records]
            trace["y"] = [style.number(record.get(key)) for record in self.records]
        self._spec["layout"]["title"]["text"] = f"Training, {self.line}"
        if not is_live():
            self._show(figure_bundle(self._spec))
        elif self._widget is None:
            self._widget = drawing(copy.deepcopy(self._spec))
            self._show(self._widget, raw=False)
        else:
            self._widget.spec = copy.deepcopy(self._spec)  # an equal one would not be sent
        self._keys = drawn

    def _show(self, output: Any, raw: bool = True) -> None:
        """Display an output, replacing the one displayed before."""
        if self._handle is None:
            self._handle = display_bundle(output, display_id=True, raw=raw)
        else:
            self._handle.update(output, raw=raw)


def token_logprobs(manager: ModelManager, steps: Sequence[Step]) -> list[tuple[float, ...] | None]:
    """Return the log-probability of every token of recorded completions under a manager.

    For the manager that sampled them these are `Step.logprobs`, up to rounding.

    Args:
        manager: the manager.
        steps: steps that a language model wrote.

    Returns:
        One row per step with one value in nats per completion token, given its prompt; `None` for a
        step whose log-probabilities are unknown.

    Raises:
        ValueError: a step has no token ids, because it was not written by a language model.
    """
    for step in steps:
        if not step.prompt_ids or not step.completion_ids:
            raise ValueError(
                f"token_logprobs: step {step.step} has no token ids, expected steps that a "
                "language model wrote; scripted managers have none"
            )
    return manager.logprobs(
        [step.prompt_ids or () for step in steps], [step.completion_ids or () for step in steps]
    )


def log_prob_change(trajectory: Trajectory, after: ModelManager) -> go.Figure:
    """Show a trajectory's completions with every token coloured by its change of log-probability.

    Purple tokens are more likely after training, orange ones less; tokens with unknown
    log-probability have no colour.

    Args:
        trajectory: a trajectory of the manager before training.
        after: the trained manager.

    Raises:
        ValueError: the completions were not written by a language model.
    """
    new = token_logprobs(after, trajectory.steps)
    old = [step.logprobs for step in trajectory.steps]
    unknown = [(math.nan,) * len(step.completion_ids or ()) for step in trajectory.steps]
    before, trained = (
        [row or blank for row, blank in zip(rows, unknown, strict=True)] for rows in (old, new)
    )
    return change_view(trajectory.steps, before, trained, after.tokenizer)


def compare_rollouts(
    groups: Sequence[Sequence[Trajectory]],
    scheme: str = "Fine-Mem",
    settings: RewardSettings | None = None,
    scale_rewards: ScaleRewards = "group",
) -> Explorer:
    """Return the explorer of one update's groups under the reward schemes of the paper.

    It shows which groups carry a gradient, how the rollouts of one instance differ, and two of them
    next to each other. A click on the map selects the instance. It opens at the instance with most
    steps that carry a gradient, and at its best and its worst rollout.

    Args:
        groups: the rollouts of one instance each.
        scheme: the initial reward scheme, one of `training.schemes.PAPER_SCHEMES`; others can need
            further reader calls.
        settings: settings of the rewards.
        scale_rewards: initial scaling of the advantages.

    Raises:
        ValueError: `scheme` is not one of them.
    """
    if scheme not in PAPER_SCHEMES:
        raise ValueError(
            f"compare_rollouts: scheme is {scheme!r}, expected one of "
            f"{', '.join(PAPER_SCHEMES)}; training_explorer shows a run under any other"
        )

    @functools.cache
    def scored(scheme: str, scale: ScaleRewards) -> list[RolloutGroup]:
        return rollout_groups(groups, scheme, settings, scale)

    names = stream_names(groups)

    def build(
        scheme: str, scale: ScaleRewards, instance: int, first: int, second: int
    ) -> dict[str, go.Figure]:
        found, name = scored(scheme, scale), names[instance]
        return {
            "groups": _clickable(gradient_map(found), "instance", _rows_of(found)),
            "rollouts": rollout_compare(found[instance], name=name),
            "difference": rollout_diff(found[instance], first, second, name),
        }

    shown = _most_informative(scored(scheme, scale_rewards))
    return Explorer(
        "Rollouts side by side",
        _comparing_controls(groups, scheme, scale_rewards, shown),
        build,
    )


def _most_informative(groups: Sequence[RolloutGroup]) -> int:
    return max(range(len(groups)), key=lambda place: groups[place].information())


def _comparing_controls(
    groups: Sequence[Sequence[Trajectory]], scheme: str, scale_rewards: ScaleRewards, instance: int
) -> tuple[Control, ...]:
    """Return the controls of `compare_rollouts`, which opens at `instance`."""

    def rollouts(state: State) -> Options:
        return [(str(place + 1), place) for place in range(len(groups[state["instance"]]))]

    outcomes = [outcome_reward(one) or 0.0 for one in groups[instance]]
    worst, best = (choose(range(len(outcomes)), key=outcomes.__getitem__) for choose in (min, max))
    return (
        Control("scheme", "reward scheme", _named(PAPER_SCHEMES), scheme, static=True),
        Control("scale", "scale_rewards", _named(get_args(ScaleRewards)), scale_rewards),
        Control("instance", "instance", _instances(groups), instance, static=True),
        Control("first", "first rollout", rollouts, worst),
        Control("second", "second rollout", rollouts, best, static=True),
    )


def _named(values: Iterable[str]) -> list[tuple[str, str]]:
    return [(value, value) for value in values]


def group_explorer(
    group: Sequence[Trajectory],
    manager: ModelManager,
    scheme: Scheme = "Fine-Mem",
    settings: RewardSettings | None = None,
    scale_rewards: ScaleRewards = "group",
    agent: ReasoningAgent | None = None,
) -> Explorer:
    """Return the explorer of one GRPO group: a prompt, its G completions, rewards and advantages.

    It opens at the first step at which the completions differ, if that has a gradient: at this step
    all rollouts still have the same memory.

    Args:
        group: the rollouts of one instance, played by `manager`.
        manager: the manager whose tokenizer converts token ids to text.
        scheme: the initial reward scheme, in addition to those of the paper. A scheme that compares
            the groups of an update sees only this group.
        settings: settings of the rewards.
        scale_rewards: initial scaling of the advantages.
        agent: the reasoning agent that answered, for credit rules with further reader calls.

    Raises:
        ValueError: as `rollout_groups`.
    """
    schemes = {scheme_of(one).name: one for one in (*PAPER_SCHEMES, scheme)}
    terms = dict.fromkeys(term for one in schemes.values() for term in scheme_of(one).terms)

    @functools.cache
    def scored(name: str, scale: ScaleRewards) -> RolloutGroup:
        return rollout_groups([group], schemes[name], settings, scale, agent)[0]

    def build(step: int, scheme: str, scale: ScaleRewards) -> dict[str, go.Figure]:
        found = scored(scheme, scale)
        steps = [one.steps[step - 1] for one in group]
        pushes = [
            token_push(one, _token_advantages(found, row, step, manager))
            for row, one in enumerate(steps)
        ]
        tokens = [step_tokens(one, manager.tokenizer) for one in steps]
        return {
            "prompt": seen_by_group(group, step),
            "group": group_completions(found, step, tokens, pushes, [*terms], scale),
        }

    name = scheme_of(scheme).name
    scales = _named(get_args(ScaleRewards))
    controls = (
        _step_control(scored(name, scale_rewards)),
        Control("scheme", "reward rule", _named(schemes), name, static=True),
        Control("scale", "scale_rewards", scales, scale_rewards, static=True),
    )
    return Explorer("One group of GRPO", controls, build)


def _step_control(group: RolloutGroup) -> Control:
    """Return the slider of steps; those with a gradient get frames first."""
    numbers = [(str(t), t) for t in range(1, group.num_steps + 1)]
    live = {t for _, t in numbers} - {*group.without_gradient()}
    first = _first_with_gradient(group)
    return Control("step", "step t", numbers, first, kind="slider", static=12, preferred=live)


def _first_with_gradient(group: RolloutGroup) -> int:
    """Return the first step at which rollouts differ, or if it has no gradient, the first that has.

    It is 1 if no step has a gradient.
    """
    dead, first = group.without_gradient(), group.first_difference()
    live = [step for step in range(1, group.num_steps + 1) if step not in dead]
    return first if first in live else min(live, default=1)


def training_explorer(
    records: Sequence[Record],
    kept: Updates,
    manager: ModelManager,
    scheme: Scheme = "Fine-Mem",
    settings: RewardSettings | None = None,
    scale_rewards: ScaleRewards = "group",
    stored: StoredUpdates | None = None,
    agent: ReasoningAgent | None = None,
) -> Explorer:
    """Return the explorer of a training run: run, update, group, rollout, step, token.

    A click on a kept update (dotted lines), a group, a rollout or a step's bar selects what the
    next figure shows. The explorer opens at the kept update in which most groups carry a gradient,
    at its most informative instance (`RolloutGroup.information`), and at the rollout and step of
    the largest advantage.

    Args:
        records: the records of a `TrainingResult`, or the run's artefact "training".
        kept: its trajectories, or the run's artefact "training_rollouts".
        manager: the trained manager, for the texts and log-probabilities of tokens.
        scheme: the reward scheme of the run.
        settings: settings of the rewards.
        scale_rewards: scaling of the advantages.
        stored: all updates as written by training (`TrainingResult.updates`, or `StoredUpdates` of
            the artefact "training_updates"). With it, a live explorer offers every update, and
            rewards and advantages are those that training recorded. Without it they are computed
            from `kept`.
        agent: the reasoning agent that answered, for credit rules with further reader calls.

    Raises:
        ValueError: no trajectories of an update were kept.
    """
    given = manager, scheme, settings or RewardSettings(), scale_rewards, stored, agent
    if stored and is_live():
        live = _run_explorer(records, stored, kept, *given)
        saved = _run_explorer(records, kept, kept, *given) if kept else None
        return dataclasses.replace(live, without_kernel=saved)
    return _run_explorer(records, kept, kept, *given)


def _run_explorer(
    records: Sequence[Record], offered: Updates, kept: Updates, *given: Any
) -> Explorer:
    """Return the explorer of a run for the `offered` updates; `given` as for `_RunViews`."""
    if not offered:
        raise ValueError(
            "training_explorer: no trajectories were kept, expected those of at least one update; "
            "train with keep_updates"
        )
    views = _RunViews(records, offered, kept, *given)
    start = views.most_informative(kept or offered)
    with_frames = sorted(kept) if offered is kept else []  # a live explorer needs no frames
    return Explorer(
        "Training, from the run to the token",
        _run_controls(sorted(offered), views.played, start),
        views.build,
        [state for update in with_frames for state in views.linked(update)],
    )


class _RunViews:
    """The figures of `training_explorer`, with caches of their common inputs."""

    def __init__(
        self,
        records: Sequence[Record],
        offered: Updates,
        kept: Updates,
        manager: ModelManager,
        scheme: Scheme,
        settings: RewardSettings,
        scale_rewards: ScaleRewards,
        stored: StoredUpdates | None,
        agent: ReasoningAgent | None,
    ) -> None:
        self._manager = manager
        weights = {record["step"]: record["w1"] for record in records if "w1" in record}

        @functools.lru_cache(maxsize=8)  # a run has hundreds of updates, which can be large
        def played(update: int) -> Sequence[Sequence[Trajectory]]:
            return offered[update]

        @functools.lru_cache(maxsize=8)
        def groups(update: int) -> list[RolloutGroup]:
            then = dataclasses.replace(settings, w1=weights.get(update, settings.w1))
            if stored is None or update not in stored:
                return rollout_groups(played(update), scheme, then, scale_rewards, agent)
            recorded = recorded_groups(stored.played(update), scheme, then)
            by_id = {one.rollouts[0].instance_id: one for one in recorded}
            names = [group[0].instance_id for group in played(update)]
            if missing := sorted({*names} - {*by_id}):
                raise ValueError(
                    f"training_explorer: the record of update {update} holds no {missing[0]}, "
                    "which is among the kept trajectories; give those of the same run"
                )
            return [by_id[name] for name in names]

        self.played, self.groups = played, groups
        self._run = functools.cache(lambda update: _run_curves(records, offered, kept, update))
        self._update = functools.cache(self._groups_of_update)
        self._group = functools.cache(self._rollouts_of_group)
        self._rollout = functools.cache(self._steps_of_rollout)

    def build(
        self, update: int, instance: int, rollout: int, step: int, colour: str
    ) -> dict[str, go.Figure]:
        """Return the views of one state of the controls."""
        group = self.groups(update)[instance]
        one = group.rollouts[rollout].steps[step - 1]
        advantages = _token_advantages(group, rollout, step, self._manager)
        values, measure = _token_values(colour, one, advantages, self._manager)
        return {
            "run": self._run(update),
            "update": self._update(update),
            "group": self._group(update, instance),
            "rollout": self._rollout(update, instance, rollout),
            "step": completion_grid(
                step_tokens(one, self._manager.tokenizer),
                values,
                measure,
                f"Update {update}, rollout {rollout + 1}, step {step}",
            ),
        }

    def most_informative(self, updates: Iterable[int]) -> dict[str, int]:
        """Return the most informative update, and its instance, rollout and step.

        The update has most steps with a gradient over all groups, and at equal numbers the largest
        sum of reward deviations. The instance is chosen by `RolloutGroup.information`, rollout and
        step by the largest advantage.
        """

        def information(update: int) -> tuple[float, ...]:
            found = [group.information()[:2] for group in self.groups(update)]
            return tuple(map(math.fsum, zip(*found, strict=True)))

        update = max(sorted(updates, reverse=True), key=information)
        instance = _most_informative(self.groups(update))
        _, rollout, step = _strongest(self.groups(update)[instance])[0]
        return {"update": update, "instance": instance, "rollout": rollout, "step": step}

    def linked(self, update: int) -> list[dict[str, int]]:
        """Return the states of an update that have frames in the static form."""
        groups = self.groups(update)
        by_size = sorted(range(len(groups)), key=lambda place: groups[place].information())
        return [
            {"update": update, "instance": place, "rollout": row, "step": step}
            for place in sorted(by_size[-STATIC_GROUPS:])
            for row, steps in sorted(_shown_steps(groups[place]).items())
            for step in steps
        ]

    def _groups_of_update(self, update: int) -> go.Figure:
        found = self.groups(update)
        return _clickable(gradient_map(found), "instance", _rows_of(found))

    def _rollouts_of_group(self, update: int, instance: int) -> go.Figure:
        group, name = self.groups(update)[instance], stream_names(self.played(update))[instance]
        figure = rollout_compare(group, False, name)  # without details: the next views show them
        rows = [[row] * group.num_steps for row in range(len(group.rollouts))]
        return _clickable(figure, "rollout", {0: rows})

    def _steps_of_rollout(self, update: int, instance: int, rollout: int) -> go.Figure:
        figure = step_terms(self.groups(update)[instance], rollout)
        steps = {place: list(trace.x) for place, trace in enumerate(figure.data)}
        return _clickable(figure, "step", steps)


def _run_controls(
    updates: Sequence[int],
    played: Callable[[int], Sequence[Sequence[Trajectory]]],
    start: Mapping[str, int],
) -> tuple[Control, ...]:
    """Return the controls of `training_explorer`; options depend on the controls before."""

    def rollouts(state: State) -> Options:
        return [
            (str(row + 1), row) for row in range(len(played(state["update"])[state["instance"]]))
        ]

    def steps(state: State) -> Options:
        trajectory = played(state["update"])[state["instance"]][state["rollout"]]
        return [(str(one.step), one.step) for one in trajectory.steps]

    def instances(state: State) -> Options:
        return _instances(played(state["update"]))

    numbers = [(str(number), number) for number in updates]
    return (
        Control("update", "update", numbers, start["update"], kind="slider"),
        Control("instance", "instance", instances, start["instance"]),
        Control("rollout", "rollout", rollouts, start["rollout"]),
        Control("step", "step t", steps, start["step"], kind="slider"),
        Control("colour", "colour of tokens", _named(TOKEN_COLOURS)),
    )


STATIC_GROUPS, STATIC_ROLLOUTS, STATIC_STEPS = 2, 2, 3
"""Numbers of groups per update, rollouts per group, and steps of the first rollout with frames in
the static form, limited by the size of a notebook."""

RUN_PANELS = {title: TRAINING_PANELS[title] for title in ("reward (mean)", "accuracy (mean score)")}
"""Panels of the run in `training_explorer`, which suffice to choose an update."""

TOKEN_COLOURS = {
    "push": "push A(1 − p)",
    "advantage": "advantage A",
    "change": "change of log-probability (nats)",
}
"""Measures for the colours of tokens: the push of the update (`tokens.token_push`), the advantage,
and the change of log-probability between sampling and the trained manager."""


def _strongest(group: RolloutGroup) -> list[tuple[float, int, int]]:
    """Return the largest absolute advantage, position and step (from 1) of every rollout.

    The rollout with the largest advantage comes first.
    """
    best = [
        max((group.largest(row, step), row, -step) for step in range(1, group.num_steps + 1))
        for row in range(len(group.rollouts))
    ]
    return [(size, row, -step) for size, row, step in sorted(best, key=lambda one: -one[0])]


def _shown_steps(group: RolloutGroup) -> dict[int, list[int]]:
    """Return the rollouts of a group with frames in the static form, and the steps of each.

    They are the steps around the largest advantage, and one step of each of the next rollouts.
    """
    (_, first, strongest), *others = _strongest(group)[:STATIC_ROLLOUTS]
    near = sorted(range(1, group.num_steps + 1), key=lambda step: abs(step - strongest))
    return {first: sorted(near[:STATIC_STEPS])} | {row: [step] for _, row, step in others}


def _token_advantages(
    group: RolloutGroup, rollout: int, step: int, manager: ModelManager
) -> list[float | None]:
    """Return the advantage of every completion token, including the credit of its operation."""
    one = group.rollouts[rollout].steps[step - 1]
    ids = tuple(one.completion_ids or ())
    advantage = group.advantages[rollout][step - 1]
    if group.operations is None or advantage is None:
        return [advantage] * len(ids)
    added = group.operations[rollout][step - 1]
    places = operation_of_tokens(one, token_texts(ids, manager.tokenizer))
    return [advantage + (0.0 if place is None else added[place]) for place in places]


def _token_values(
    colour: str, step: Step, advantages: Sequence[float | None], manager: ModelManager
) -> tuple[Sequence[float | None], str]:
    count = len(step.completion_ids or ())
    values: Sequence[float | None] = advantages
    if colour == "push":
        values = token_push(step, advantages)
    elif colour == "change":
        after = token_logprobs(manager, [step])[0] if count and step.logprobs else None
        values = (
            [new - old for new, old in zip(after, step.logprobs, strict=True)]
            if after is not None and step.logprobs is not None
            else (None,) * count
        )
    return values, TOKEN_COLOURS[colour]


def _instances(groups: Sequence[Sequence[Trajectory]]) -> list[tuple[str, int]]:
    return [(name, place) for place, name in enumerate(stream_names(groups))]


def _run_curves(
    records: Sequence[Record], offered: Collection[int], kept: Collection[int], update: int
) -> go.Figure:
    """Return the curves of the run with a line at every kept update, solid at the selected one."""
    figure = training_curves(records, RUN_PANELS)
    for number in kept:
        chosen = number == update
        for axis in ("x", "x2")[: len(training_keys(records, RUN_PANELS))]:
            figure.add_shape(
                type="line",
                x0=number,
                x1=number,
                y0=0,
                y1=1,
                xref=axis,
                yref="paper",
                layer="below",
                line={
                    "dash": "solid" if chosen else "dot",
                    "color": style.INK,
                    "width": 2 if chosen else 1,
                },
            )
    points = [record["step"] if record["step"] in offered else None for record in records]
    return _clickable(figure, "update", dict.fromkeys(range(len(figure.data)), points))


def _rows_of(groups: Sequence[RolloutGroup]) -> dict[int, list[Any]]:
    """Return the instance that a click on a cell or cross of `gradient_map` selects."""
    width = max(group.num_steps for group in groups)
    crosses = [row for row, group in enumerate(groups) for _ in group.without_gradient()]
    return {0: [[row] * width for row in range(len(groups))], 1: crosses}


def _clickable(figure: go.Figure, control: str, points: Mapping[int, Sequence[Any]]) -> go.Figure:
    """Make clicks on the points of a figure set a control, and return the figure."""
    figure.layout.meta = {**figure.layout.meta, "clicks": clicks_on(control, points)}
    return figure
