"""Explorer of credit: one group of rollouts under any credit rule and settings."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

from finemem_lib.advantages import EPSILON, ScaleRewards, group_relative
from finemem_lib.credit.group import CachedGroup
from finemem_lib.credit.replay import Replayer, recorded_retriever
from finemem_lib.credit.rules import RULES, applicable, outcome_readings
from finemem_lib.explorers.explorer import Control, Explorer, Options, Views
from finemem_lib.figures import style
from finemem_lib.figures.rewards import Term, advantage_dumbbell, formula_card
from finemem_lib.figures.story import score_change, step_story
from finemem_lib.figures.style import known
from finemem_lib.reading import Inquiry, MemoisedAgent, answer_questions
from finemem_lib.rewards import (
    Attribution,
    Credited,
    RewardSettings,
    credited_items,
    evidence_contribution,
    hybrid_reward,
    outcome_reward,
)
from finemem_lib.trajectory import AnsweredQuestion, MemoryDelta, Trajectory

if TYPE_CHECKING:
    import plotly.graph_objects as go

    from finemem_lib.reading import ReasoningAgent

FINE_MEM = "Fine-Mem"
"""The hybrid reward, in addition to the rules of `credit.RULES`."""

OUTCOME_ONLY, INITIAL = "outcome reward only", "as it starts"

Credits = list[list[float | None]]
"""A number per rollout and step (G x T), `None` for missing values."""

EVEN_SPLIT = "outcome split evenly"
"""The reference of rewards if that of advantages is `OUTCOME_ONLY`."""

SAMPLED, ORDERS = ("step-shapley", "owen"), (2, 4)
"""Rules that evaluate many subsets of steps, and numbers of random orders for estimates."""

MANY_SETS = 600
"""Maximum subsets of steps, over all rollouts, that these rules evaluate without sampling."""

READ_RETRIEVED = (FINE_MEM, "eara", "eara-used", "hindsight", "attributed-dense")
"""Rules that depend on k; rules with further reader calls take the recorded score as that of all
items."""


def what_if_explorer(
    trajectories: Sequence[Trajectory],
    settings: RewardSettings | None = None,
    scale_rewards: ScaleRewards = "group",
    agent: ReasoningAgent | None = None,
) -> Explorer:
    """Return the explorer of credit: other weights, switches and rules on the same rollouts.

    It opens at the step with the most evidence among the steps without which an answer changes
    (without an agent, among all). The first view shows the chunk and operations of the step, and
    the changed answer.

    The reader calls for a rule or step are made when it is first selected, and cached; nothing else
    calls a model, so other changes take milliseconds. A control that the selected rule does not use
    is disabled.

    Args:
        trajectories: the rollouts of one instance.
        settings: initial reward settings.
        scale_rewards: initial scaling of the advantages.
        agent: the reasoning agent that answered, needed for rules with further reader calls.

    Raises:
        ValueError: there is no rollout, or they differ in instance or length; or, with an agent, as
            `credit.replay.Replayer`.
    """
    start = settings or RewardSettings()
    group = list(trajectories)
    _check_group(group)
    most = max((len(a.retrieved) for one in group for a in one.questions), default=0)
    lab = _CreditLab(group, agent)
    first = _Choice(FINE_MEM, start, most, scale_rewards)

    def build(
        rollout: int,
        step: int,
        rule: str,
        k: int,
        scale: ScaleRewards,
        before: str,
        orders: int | None = None,
        **switches: Any,
    ) -> Views:
        orders = orders if rule in SAMPLED else None
        chosen = _Choice(rule, dataclasses.replace(start, **switches), k, scale, orders)
        if before == INITIAL:
            other = even = first
        else:
            other = _Choice("outcome-broadcast", start, most, scale)
            even = lab.split_evenly(chosen)
        rewards = _rewards_view(lab, chosen, even, before, rollout, step)
        return {
            "story": lab.story(rollout, step, start),
            "card": _card(lab, chosen, rollout, step),
            "rewards": _with_reservation(rule, before, rollout, rewards),
            "advantages": _advantages_view(lab, chosen, other, before, rollout, step),
        }

    return Explorer("What-if credit", _controls(lab, start, scale_rewards, most), build)


def _check_group(group: Sequence[Trajectory]) -> None:
    if not group or len({(one.instance_id, one.num_steps) for one in group}) > 1:
        raise ValueError(
            f"what_if: got {len(group)} trajectories of "
            f"{len({one.instance_id for one in group})} instances, expected the rollouts of one "
            "instance, all of the same length"
        )


def _name_of(chosen: _Choice) -> str:
    """Return the name of the rule with the number of sampled orders, or with β."""
    if chosen.orders is not None:
        return f"{chosen.rule}, sampled, {chosen.orders} orders"
    return chosen.rule if chosen.rule != FINE_MEM else f"{FINE_MEM}, β = {chosen.settings.beta:g}"


def _rewards_view(
    lab: _CreditLab, chosen: _Choice, even: _Choice, before: str, rollout: int, step: int
) -> go.Figure:
    """Return the figure of the rewards of one rollout, compared with the start or an even split."""
    names = (before if before == INITIAL else EVEN_SPLIT, _name_of(chosen))
    return advantage_dumbbell(lab.paid(even), lab.paid(chosen), names, "reward", [rollout], step)


def _advantages_view(
    lab: _CreditLab, chosen: _Choice, other: _Choice, before: str, rollout: int, step: int
) -> go.Figure:
    """Return the figure of the advantages of the group, of one rollout if the group is large."""
    few = len(lab.group) * lab.group[0].num_steps <= 40  # more are unreadable, and large as a frame
    return advantage_dumbbell(
        lab.advantages(other),
        lab.advantages(chosen),
        (before, _name_of(chosen)),
        "advantage",
        None if few else [rollout],
        step,
    )


def _controls(
    lab: _CreditLab, start: RewardSettings, scale_rewards: ScaleRewards, most: int
) -> tuple[Control, ...]:
    """Return the controls; a switch that the selected rule does not use is idle.

    Rarely used ones are collapsed, so that the others and a figure fit on a screen.
    """

    def choices(names: Iterable[str]) -> list[tuple[str, str]]:
        return [(name, name) for name in names]

    def switch(name: str, text: str, options: Options, **more: Any) -> Control:
        value = more.pop("value", None) or getattr(start, name, None)
        return Control(
            name,
            text,
            options,
            value,
            idle=lambda state: name not in lab.reads(state["rule"]),
            **more,
        )

    def slider(name: str, text: str, high: float, by: float, **more: Any) -> Control:
        grid = {round(by * number, 6) for number in range(round(high / by) + 1)}
        values = sorted(grid | {getattr(start, name)})
        options = [(f"{value:g}", value) for value in values]
        return switch(name, text, options, kind="slider", **more)

    numbers = [(str(n), n) for n in range(1, most + 1)] or [("0", 0)]
    steps = [(str(step.step), step.step) for step in lab.group[0].steps]
    rollout, step = lab.opening_step(start)
    return (
        Control("rollout", "rollout", [(str(n + 1), n) for n in range(len(lab.group))], rollout),
        Control("step", "step t", steps, step, kind="slider", static=True),
        Control("rule", "rule", choices(lab.rules), static=True),
        slider("beta", "β, share paid by evidence", 1, 0.05, static=5),
        slider("w1", "w1, chunk step reward", 1, 0.1),
        slider("w2", "w2, compression", 0.5, 0.05, rare=True),
        switch("k", "k, retrieved items credited", numbers, value=most, kind="slider", static=True),
        switch(
            "attribution", "attribution", choices(get_args(Attribution)), static=True, rare=True
        ),
        switch("credited", "credited", choices(get_args(Credited)), static=True, rare=True),
        Control(
            "scale", "scale_rewards", choices(get_args(ScaleRewards)), scale_rewards, static=True
        ),
        Control("before", "compare with", choices([OUTCOME_ONLY, INITIAL]), rare=True),
        *lab.precision(),
    )


@dataclass(frozen=True)
class _Choice:
    """A rule and its settings.

    `k` is the number of credited retrieved items per question, `scale` the scale_rewards, `orders`
    the number of sampled orders of steps (`None`: the default of the rule).
    """

    rule: str
    settings: RewardSettings
    k: int
    scale: ScaleRewards
    orders: int | None = None


class _CreditLab:
    """Computes rewards and advantages of a group under any choice, with a cache.

    The change of a setting that the rule does not use needs no computation.
    """

    def __init__(self, group: list[Trajectory], agent: ReasoningAgent | None) -> None:
        self.group = CachedGroup(group)
        self._agent = agent
        given = {"group"} if agent is None else {"group", "agent"}
        self.rules = [FINE_MEM, *applicable(group, given)]
        self._known: dict[tuple[Any, ...], Credits] = {}
        self._cut: dict[int, CachedGroup] = {}
        self._without: dict[tuple[int, int], tuple[AnsweredQuestion, ...]] = {}

    @functools.cached_property
    def agents(self) -> list[MemoisedAgent]:
        """The reasoning agent for each rollout, with a cache that holds its recorded answers."""
        if self._agent is None:
            raise ValueError(
                "what_if: the rule calls the reader again, expected an agent; give one"
            )
        shared = MemoisedAgent(self._agent)
        own = [MemoisedAgent(shared) for _ in self.group]
        for agent, one in zip(own, self.group, strict=True):
            agent.know(*outcome_readings(one))
        return own

    @functools.cached_property
    def replayers(self) -> list[Replayer]:
        """The replayer of each rollout, for the rules that replay it."""
        return list(map(Replayer, self.group, self.agents))

    def opening_step(self, settings: RewardSettings) -> tuple[int, int]:
        """Return the rollout (from 0) and the step (from 1) at which the explorer opens."""
        earned = sorted(
            (-share, place, step)
            for place, one in enumerate(self.group)
            for step, share in enumerate(evidence_contribution(one, settings), start=1)
            if share
        )
        found = [(place, step) for _, place, step in earned] or [(0, 1)]
        if self._agent is None:
            return found[0]
        return next((one for one in found if self._changes_an_answer(*one)), found[0])

    def _changes_an_answer(self, rollout: int, step: int) -> bool:
        pairs = zip(self.group[rollout].questions, self.without(rollout, step), strict=True)
        return any(score_change(*pair) for pair in pairs)

    def without(self, rollout: int, step: int) -> tuple[AnsweredQuestion, ...]:
        """Return the global questions, answered on the memory without a step."""
        if (rollout, step) not in self._without:
            one, replayer = self.group[rollout], self.replayers[rollout]
            missing = frozenset({step})
            index = recorded_retriever(one)
            index.update(MemoryDelta(written=replayer.left(missing)))
            asked = [answered.question for answered in one.questions]
            inquiry = Inquiry(asked, replayer.memory(missing), index, one.num_steps)
            top_k = one.metadata["rollout"]["top_k"]
            [self._without[rollout, step]] = answer_questions(
                [inquiry], self.agents[rollout], top_k
            )
        return self._without[rollout, step]

    def story(self, rollout: int, step: int, settings: RewardSettings) -> go.Figure:
        """Return the figure of the chunk, operations and changed answer of a step."""
        again = None if self._agent is None else self.without(rollout, step)
        return step_story(self.group[rollout], step, again, settings)

    @staticmethod
    def pays(rule: str) -> bool:
        """Return whether a rule computes rewards; the others compute advantages directly."""
        return rule == FINE_MEM or RULES[rule].gives == "reward"

    @staticmethod
    def reads(rule: str) -> list[str]:
        """Return the controls on which the credit of a rule depends.

        All advantages depend on scale_rewards, which is not included.
        """
        accepts = (
            ["w1", "w2", "switches"]
            if rule == FINE_MEM
            else inspect.signature(RULES[rule].function).parameters
        )
        return [
            name
            for name in ("beta", "w1", "w2", "k", "attribution", "credited")
            if name in accepts
            or (name == "k" and rule in READ_RETRIEVED)
            or (
                name in ("beta", "attribution", "credited")
                and "switches" in accepts
                and (name, rule) != ("credited", "eara-used")
            )
        ]

    def cut(self, k: int) -> CachedGroup:
        """Return the group with only the first k retrieved items of each question."""
        if all(len(a.retrieved) <= k for one in self.group for a in one.questions):
            return self.group
        if k not in self._cut:
            self._cut[k] = CachedGroup(
                dataclasses.replace(
                    one,
                    questions=tuple(
                        dataclasses.replace(a, retrieved=a.retrieved[:k]) for a in one.questions
                    ),
                )
                for one in self.group
            )
        return self._cut[k]

    def split_evenly(self, choice: _Choice) -> _Choice:
        """Return the choice whose rewards have the same sum, without evidence."""
        if choice.rule == FINE_MEM:
            return dataclasses.replace(
                choice, settings=dataclasses.replace(choice.settings, beta=0)
            )
        return dataclasses.replace(choice, rule="uniform-split", orders=None)

    def paid(self, choice: _Choice) -> Credits:
        """Return the rewards (G x T), `None` for a rule that computes advantages directly."""
        if self.pays(choice.rule):
            return self._given(choice)
        return [[None] * one.num_steps for one in self.group]

    def advantages(self, choice: _Choice) -> Credits:
        """Return the advantages (G x T)."""
        if not self.pays(choice.rule):
            return self._given(choice)
        key = *self._key(choice), choice.scale
        return self._once(key, lambda: group_relative(self._given(choice), choice.scale))

    def _given(self, choice: _Choice) -> Credits:
        return self._once(self._key(choice), lambda: self._by_rule(choice))

    def _key(self, choice: _Choice) -> tuple[Any, ...]:
        """Return the values of a choice on which the result of the rule depends."""
        values = dataclasses.asdict(choice.settings) | {"k": choice.k}
        return (
            choice.rule,
            *(values[name] for name in self.reads(choice.rule)),
            *(() if self.pays(choice.rule) else (choice.scale,)),
            choice.orders,
        )

    def _once(self, key: tuple[Any, ...], compute: Callable[[], Credits]) -> Credits:
        if key not in self._known:
            self._known = dict([*self._known.items()][-256:])
            self._known[key] = compute()
        return self._known[key]

    def precision(self) -> list[Control]:
        """Return the control for the precision of `SAMPLED` rules, if exact values are slow."""
        steps = self.group[0].num_steps
        if "owen" not in self.rules or len(self.group) * steps**2 <= MANY_SETS:
            return []
        options: Options = [
            *((f"sampled, {count} orders", count) for count in ORDERS),
            ("the rule's own, takes seconds", None),
        ]
        return [
            Control(
                "orders",
                "orders",
                options,
                ORDERS[0],
                idle=lambda state: state["rule"] not in SAMPLED,
            )
        ]

    def orders_of(self, choice: _Choice, rollout: int) -> list[list[float | None]]:
        """Return the credit of every step of a rollout under each single sampled order."""
        key = choice.rule, choice.orders, rollout
        return self._once(
            key,
            lambda: [
                list(
                    RULES[choice.rule].function(
                        self.group[rollout],
                        agent=self.agents[rollout],
                        replay=self.replayers[rollout],
                        permutations=1,
                        seed=seed,
                    )
                )
                for seed in range(choice.orders or 0)
            ],
        )

    def _by_rule(self, choice: _Choice) -> Credits:
        if choice.orders is not None:
            orders = [self.orders_of(choice, place) for place in range(len(self.group))]
            return [[style.mean(step) for step in zip(*rows, strict=True)] for rows in orders]
        group = self.cut(choice.k) if "k" in self.reads(choice.rule) else self.group
        if choice.rule == FINE_MEM:
            return self._between(choice) or [
                [reward.total for reward in hybrid_reward(one, choice.settings)] for one in group
            ]
        rule = RULES[choice.rule]
        accepts = inspect.signature(rule.function).parameters
        switches = dataclasses.asdict(choice.settings)
        arguments: dict[str, Any] = {
            "group": group,
            "scale_rewards": choice.scale,
            "attribution": switches["attribution"],
        }
        arguments = {name: value for name, value in arguments.items() if name in accepts}
        if "switches" in accepts:  # the rule takes those of RewardSettings
            arguments |= {
                name: switches[name] for name in ("beta", "attribution", "credited", "unretrieved")
            }
        return [  # calls are not counted here
            list(rule.function(one, **arguments, **self._own_arguments(place, accepts)))
            for place, one in enumerate(group)
        ]

    def _between(self, choice: _Choice) -> Credits | None:
        """Return the totals of the hybrid reward from those at β = 0 and 1, in which they are
        linear, so that the slider moves without another attribution; `None` at these two."""
        beta = choice.settings.beta
        if beta in (0, 1):
            return None
        ends = (
            self._given(dataclasses.replace(choice, settings=settings))
            for settings in (dataclasses.replace(choice.settings, beta=end) for end in (0, 1))
        )
        return [
            [
                None if low is None or high is None else (1 - beta) * low + beta * high
                for low, high in zip(*rows, strict=True)
            ]
            for rows in zip(*ends, strict=True)
        ]

    def _own_arguments(self, place: int, accepts: Collection[str]) -> dict[str, Any]:
        """Return the arguments of a rule that differ from rollout to rollout."""
        own: dict[str, Any] = {}
        if "agent" in accepts:
            own["agent"] = self.agents[place]
        if "replay" in accepts:
            own["replay"] = self.replayers[place]
        return own


def _with_reservation(rule: str, before: str, rollout: int, figure: go.Figure) -> go.Figure:
    """Return the figure of rewards with a note if they cannot be compared."""
    spec = style.read_only(figure)
    layout = {**spec["layout"], "meta": {**spec["layout"]["meta"]}}
    layout["yaxis"] = layout["yaxis"] | {"showticklabels": _CreditLab.pays(rule)}
    meta = layout["meta"]
    if not _CreditLab.pays(rule):
        note = (
            f"The rule {rule} gives the advantages of rollout {rollout + 1} directly: there is "
            "no reward before them."
        )
        meta |= {"caption": note, "alt": f"No rewards. {note}"}
        layout["annotations"] = [
            {
                "text": style.paragraph(note, width=44),
                "showarrow": False,
                "x": 0.5,
                "y": 0.5,
                "xref": "paper",
                "yref": "paper",
                "bgcolor": "white",
            }
        ]
    elif before == INITIAL and rule != FINE_MEM:
        meta["caption"] += (
            f" {FINE_MEM} pays for more than the outcome, so compare the advantages rather than "
            "these."
        )
    return style.PlainFigure({**spec, "layout": layout})


def _card(lab: _CreditLab, choice: _Choice, rollout: int, step: int) -> go.Figure:
    """Return the formula card of one step: the terms of its reward, and its advantage."""
    rule, is_reward = choice.rule, lab.pays(choice.rule)
    rewards, advantages = lab.paid(choice), lab.advantages(choice)
    paid, advantage = rewards[rollout][step - 1], advantages[rollout][step - 1]
    first = paid if is_reward else advantage
    column = [
        value
        for row in (rewards if is_reward else advantages)
        if (value := row[step - 1]) is not None
    ]
    terms, numbers = _terms(lab, choice, rollout, step)
    formula = "sum of the terms" if rule == FINE_MEM else RULES[rule].formula
    terms.append(
        Term(
            f"{'r_t' if is_reward else 'A_t'} = {formula}",
            numbers or f"{first or 0:.4g}",
            first,
            result=True,
        )
    )
    if is_reward:
        terms.append(_standardised(rewards, column, paid, advantage, choice.scale))
    source = "Fine-Mem, arXiv 2601.08435" if rule == FINE_MEM else RULES[rule].source
    reached = "has no advantage" if advantage is None else f"has the advantage {advantage:+.4g}"
    read = ["β" if name == "beta" else name for name in lab.reads(rule)]
    moves = (
        ""
        if rule == FINE_MEM
        else (f" Of the controls above it reads {', '.join([*read, 'scale_rewards'])} only.")
    )
    return formula_card(
        terms,
        f"Formula with numbers: rollout {rollout + 1}, step {step}",
        f"By the rule {rule} ({source}), step {step} of rollout {rollout + 1} "
        f"{reached} among {len(column)} rollouts.{moves}{_cut_away(lab, choice, rollout)}"
        f"{_sampled(lab, choice, rollout, step)}",
        "units of the reward; A_t: advantage" if is_reward else "advantage",
    )


def _sampled(lab: _CreditLab, choice: _Choice, rollout: int, step: int) -> str:
    """Return a sentence about the interval of a sampled credit, "" if it is not sampled."""
    if choice.orders is None:
        return ""
    values = [row[step - 1] for row in lab.orders_of(choice, rollout)]
    measured = [value for value in values if value is not None]
    if len(measured) < 2:
        return " Sampled, no interval: it could not be scored."
    error = statistics.stdev(measured) / math.sqrt(len(measured))
    return (
        f" Sampled, {len(measured)} orders: {statistics.fmean(measured):.3g} ± "
        f"{round(error, 9):.2g} (standard error); choose more orders, or the rule's own."
    )


def _terms(lab: _CreditLab, choice: _Choice, rollout: int, step: int) -> tuple[list[Term], str]:
    """Return the terms of a step's credit, and the numbers of a formula that has a single term.

    Both are empty for a rule whose terms are not recorded.
    """
    rule, settings, one = choice.rule, choice.settings, lab.group[rollout]
    outcome, T = outcome_reward(one), one.num_steps
    if rule in (FINE_MEM, "eara", "eara-used"):
        if rule == "eara-used":
            settings = dataclasses.replace(settings, credited="used")
        part, beta = hybrid_reward(lab.cut(choice.k)[rollout], settings)[step - 1], settings.beta
        terms = [
            Term(
                "(1 - β) r_global / T",
                f"(1 - {beta:g}) × {outcome or 0:.4g} / {T}",
                None if outcome is None else (1 - beta) * outcome / T,
            ),
            Term(
                "β N_t",
                f"{beta:g} × {part.evidence or 0:.4g}",
                None if outcome is None else beta * known(part.evidence),
            ),
        ]
        return terms + (
            []
            if rule != FINE_MEM
            else [
                Term("r_format", f"{part.format or 0:.4g}", part.format),
                Term(
                    "w1 r_chunk", f"{settings.w1:g} × {part.chunk or 0:.4g}", part.weighted["chunk"]
                ),
                Term(
                    "w2 r_compression",
                    f"{settings.w2:g} × {part.compression or 0:.4g}",
                    part.weighted["compression"],
                ),
            ]
        ), ""
    given = (lab.paid if lab.pays(rule) else lab.advantages)(choice)[rollout][step - 1]
    if given is None:
        return [], ""
    if rule in ("mt-grpo", "gigpo"):
        outcomes = [[outcome_reward(each)] for each in lab.group]
        whole = known(group_relative(outcomes, choice.scale)[rollout][0])
        local = "c A(r_chunk(t))" if rule == "mt-grpo" else "ω A(γ^(T-t) r_global)"
        return [
            Term("A(r_global)", f"{whole:.4g}", whole),
            Term(local, f"{given - whole:.4g}", given - whole),
        ], ""
    if rule == "step-loo":
        return [], f"{outcome:.4g} - {known(outcome) - given:.4g}"
    if rule == "uniform-split":
        return [], f"{outcome:.4g} / {T}"
    if rule in ("csr", "outcome-broadcast"):
        asked = one.steps[step - 1].chunk_questions if rule == "csr" else one.questions
        scores = [answered.score for answered in asked if answered.score is not None]
        added = " + ".join(f"{score:.4g}" for score in scores)
        return [], f"({added if len(scores) <= 12 else f'{math.fsum(scores):.4g}'}) / {len(scores)}"
    return [], ""


def _standardised(
    rewards: Sequence[Sequence[float | None]],
    column: Sequence[float],
    paid: float | None,
    advantage: float | None,
    scale: ScaleRewards,
) -> Term:
    """Return the line of the card that computes the advantage from the reward."""
    formula = (
        "A_t = r_t - mean"
        if scale == "none"
        else (
            f"A_t = (r_t - mean) / (std + {EPSILON:g}), "
            f"{'both of step t' if scale == 'group' else 'std of all steps'}"
        )
    )
    if paid is None:
        return Term(formula, "", None, result=True)
    numbers = f"{paid:.6g} - {math.fsum(column) / len(column):.6g}"  # they nearly cancel
    if scale != "none":
        spread = (
            column
            if scale == "group"
            else [reward for row in rewards for reward in row if reward is not None]
        )
        std = statistics.stdev(spread) if len(spread) > 1 else 0.0
        numbers = f"({numbers}) / ({std:.6g} + {EPSILON:g})"
    return Term(formula, numbers, advantage, result=True)


def _cut_away(lab: _CreditLab, choice: _Choice, rollout: int) -> str:
    """Return a sentence about used items beyond the first k, if only used items are credited."""
    reads, settings = lab.reads(choice.rule), choice.settings
    if choice.rule != "eara-used" and not ("credited" in reads and settings.credited == "used"):
        return ""
    pairs = zip(lab.group[rollout].questions, lab.cut(choice.k)[rollout].questions, strict=True)
    lost = sum(
        bool(credited_items(whole, "used")) and not credited_items(cut, "used")
        for whole, cut in pairs
    )
    treatment = "spread over all steps" if settings.unretrieved == "spread" else "dropped"
    return (
        ""
        if not lost
        else (
            f" k = {choice.k} cuts away every used item of {lost} of "
            f"{len(lab.group[rollout].questions)} questions: their evidence is {treatment}, as if "
            "nothing "
            "had been found."
        )
    )
