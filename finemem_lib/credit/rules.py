"""The table of credit rules; apply a rule by name and count its reader calls.

Every rule is a function ``(trajectory, **settings) -> Credit``: one value per step, indexed by
``step - 1``; `None` means not measured. `RULES` states the formula and source of each rule, the
sum that it conserves and the inputs that it needs. `assign` applies a rule by name and counts its
reader calls, without the calls that answered the global questions for the outcome, which every rule
may read. T is the number of steps, n the number of global questions with a score; questions without
a score are left out, as in `rewards`. If a trajectory lacks what a rule reads, the rule raises a
ValueError that names the missing part and how to get it.

Counterfactual rules need the reasoning agent that answered. They take the score of the complete
trajectory from the record and never read it again. The evidence rules remove items from the
retrieved ones and read the rest; the step rules omit steps, replay the others (`replay.replay`
defines the treatment of operations on a missing item), then retrieve and read again. A replay that
leaves the retrieved items of a question unchanged costs no call: `assign` reuses the recorded
answer.

Differs from the papers: in every rule the actions are the steps of one memory manager, and the
outcome is the outcome reward. MT-GRPO's turn reward is the chunk-level step reward. GiGPO's anchor
states are equal memories before the same chunk; forked memories share none. Mem-T takes the
advantage of a leaf within a tree, here it is the advantage of the question among the rollouts.
MemBuilder weights the gradient of each of its stores; a flat memory has one store, so here the
weight applies to the advantages of steps, which scales the gradient in the same way. SCAR splits a
text, here the steps are halved recursively. These rules are adaptations, not reproductions.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from finemem_lib.credit.counterfactual import (
    evidence_leave_one_out,
    evidence_shapley,
    operation_leave_one_out,
    owen_values,
    potential_shaping,
    step_leave_one_out,
    step_shapley,
)
from finemem_lib.credit.group import (
    CachedGroup,
    CachedUpdate,
    anchored_groups,
    attributed_dense,
    hindsight,
    turn_level,
)
from finemem_lib.credit.lost_evidence import (
    operation_slot_price,
    slot_price,
    slot_price_measures,
    two_sided_evidence,
)
from finemem_lib.credit.needs import Credit, OperationCredit, need_agent, retrieved_items
from finemem_lib.credit.recorded import (
    chunk_step_reward,
    evidence_anchored,
    evidence_anchored_used,
    outcome_broadcast,
    uniform_split,
)
from finemem_lib.credit.values import (
    delta_belief,
    gated_utility,
    information_gain,
    later_chunk_reward,
    value_difference,
)
from finemem_lib.reading import (
    MemoisedAgent,
    Reading,
    ReadingTask,
    ReasoningAgent,
    reading_task,
)
from finemem_lib.seeds import generator
from finemem_lib.trajectory import MemoryItem, Trajectory


@dataclass(frozen=True, slots=True)
class Rule:
    """One credit rule with its formula, source, conserved sum, inputs and cost.

    Attributes:
        function: The rule, ``(trajectory, **settings) -> Credit``.
        formula: The value at step t.
        gives: "reward", which `advantages.group_relative` still has to compare over the rollouts,
            or "advantage", which is already group-relative.
        conserves: The sum of the values.
        records: Parts that the trajectory must record.
        cost: Largest number of reader calls per trajectory, without those of the outcome.
        measures: Function that returns further quantities of the update, by name, for the training
            record; called with the arguments of `function`.
        unit: "operation" where `function` returns an `OperationCredit`, with one value per step and
            one per operation; otherwise "step".
    """

    function: Callable[..., Credit]
    formula: str
    source: str
    gives: Literal["reward", "advantage"] = "reward"
    conserves: str = "nothing"
    records: tuple[str, ...] = ()
    cost: str = "0"
    measures: Callable[..., Mapping[str, float]] | None = None
    unit: Literal["step", "operation"] = "step"

    @property
    def arguments(self) -> tuple[str, ...]:
        """The arguments of `ARGUMENTS` that the rule accepts."""
        accepted = inspect.signature(self.function).parameters
        return tuple(name for name in ARGUMENTS if name in accepted)

    @property
    def required(self) -> tuple[str, ...]:
        """The arguments that the rule requires; the other arguments only save work."""
        accepted = inspect.signature(self.function).parameters
        empty = inspect.Parameter.empty
        return tuple(name for name in self.arguments if accepted[name].default is empty)


ARGUMENTS = ("agent", "group", "probes", "replay", "batch", "previous")
"""Arguments that a rule may take: the reasoning agent, the group, questions to ask, a `Replayer` of
the trajectory, all groups of the update, and the rule's `measures` of the previous update."""

_SPLIT = "sum over steps = r_global"
_GAIN = "sum over steps = r_global - r_global(empty memory)"
_ZERO = "sum over rollouts = 0 at every step"

RULES: dict[str, Rule] = {
    "outcome-broadcast": Rule(
        outcome_broadcast,
        "r_global",
        "GRPO, arXiv 2402.03300",
        conserves="mean over steps = r_global",
    ),
    "uniform-split": Rule(
        uniform_split,
        "r_global / T",
        "even split, the rule to beat",
        conserves=_SPLIT,
    ),
    "csr": Rule(
        chunk_step_reward,
        "(1/K) sum_k score(q_k read from M_t)",
        "Fine-Mem, arXiv 2601.08435",
        records=("chunk questions",),
        cost="K T while playing",
    ),
    "eara": Rule(
        evidence_anchored,
        "(1-beta) r_global / T + beta sum_j sum_{m in M_j, phi(m)=t} s_j / (|M_j| n)",
        "Fine-Mem, arXiv 2601.08435",
        conserves=f"{_SPLIT} (not with unretrieved='drop')",
    ),
    "eara-used": Rule(
        evidence_anchored_used,
        "eara, M_j being the items that the reader used",
        "Fine-Mem, arXiv 2601.08435, with a switch of ours",
        conserves=f"{_SPLIT} (not with unretrieved='drop')",
        records=("used items",),
    ),
    "evidence-loo": Rule(
        evidence_leave_one_out,
        "(1/n) sum_j sum_{m in M_j, phi(m)=t} (s_j(M_j) - s_j(M_j - m))",
        "leave-one-out",
        cost="n k",
    ),
    "evidence-shapley": Rule(
        evidence_shapley,
        "(1/n) sum_j sum_{m in M_j, phi(m)=t} Shapley_m(s_j)",
        "Shapley (1953)",
        conserves="sum over steps = mean_j (s_j - s_j read from nothing)",
        cost="n (2^k - 1), 3n at k = 2; above k = 4: n P k",
    ),
    "step-loo": Rule(
        step_leave_one_out,
        "r_global(all steps) - r_global(all but t)",
        "leave-one-out, by replay",
        cost="n T",
    ),
    "operation-loo": Rule(
        operation_leave_one_out,
        "sum over the operations o of t: r_global(all) - r_global(all but o)",
        "leave-one-out, by replay",
        cost="n per applied operation",
        unit="operation",
    ),
    "step-shapley": Rule(
        step_shapley,
        "Shapley_t(r_global of the memory that a set of steps leaves)",
        "Shapley (1953); Castro et al. (2009)",
        conserves=_GAIN,
        cost="n P T; up to T = 4: n (2^T - 1)",
    ),
    "owen": Rule(
        owen_values,
        "alpha Owen_t + (1-alpha) [t = T] r_global, steps halved repeatedly",
        "SCAR, arXiv 2505.20417; Owen (1977)",
        conserves="sum over steps = r_global - alpha r_global(empty memory)",
        cost="n T^2",
    ),
    "mt-grpo": Rule(
        turn_level,
        "A(r_global) + c A(r_chunk(t)), the latter at step 1 only",
        "MT-GRPO, arXiv 2505.11821",
        gives="advantage",
        conserves=_ZERO,
        records=("chunk questions",),
        cost="K while playing; K T with turns='all'",
    ),
    "gigpo": Rule(
        anchored_groups,
        "A(r_global) + omega A(gamma^(T-t) r_global among the rollouts in the same state)",
        "GiGPO, arXiv 2505.10978",
        gives="advantage",
        conserves=_ZERO,
    ),
    "hindsight": Rule(
        hindsight,
        "(1/n) sum_j ([t in E_j] + lambda [t wrote into M_j]) A(s_j)",
        "Mem-T",
        gives="advantage",
        conserves="at lambda = 0, sum over rollouts = 0 where all of them wrote",
        records=("evidence steps",),
    ),
    "attributed-dense": Rule(
        attributed_dense,
        "w_t A(valid_t r_chunk(t) (1 - lambda l_t)), w_t = alpha where retrieved most, else 1",
        "MemBuilder, arXiv 2601.05488",
        gives="advantage",
        conserves=f"at alpha = 1, {_ZERO}",
        records=("chunk questions",),
        cost="K T while playing",
    ),
    "potential": Rule(
        potential_shaping,
        "gamma Phi(M_t) - Phi(M_{t-1}), at T: r_global - Phi(M_{T-1})",
        "Ng, Harada and Russell (1999)",
        conserves="sum_t gamma^(t-1) r_t = gamma^(T-1) r_global - Phi(M_0)",
        cost="K' T for K' probes",
    ),
    "two-sided-evidence": Rule(
        two_sided_evidence,
        "N_t (used items) - sum of what the items it helped to push out would have scored",
        "ours",
        conserves="sum over steps = r_global - value of all losses",
        records=("used items",),
        cost="n",
    ),
    "slot-price": Rule(
        slot_price,
        "N_t (used items) - p INSERTs_t, p = value lost by evictions / INSERTs, over the update",
        "ours",
        conserves="sum over the update = sum of r_global - value lost by evictions (per='write')",
        records=("used items",),
        cost="n",
        measures=slot_price_measures,
    ),
    "operation-slot-price": Rule(
        operation_slot_price,
        "evidence of the operation - value it destroyed - p [INSERT into an overflowing memory]",
        "ours",
        records=("used items",),
        cost="n",
        unit="operation",
        measures=functools.partial(slot_price_measures, per="eviction"),  # the default of the rule
    ),
    "value-difference": Rule(
        value_difference,
        "sum_{u>=t} lambda^(u-t) (Phi(M_u) - Phi(M_{u-1})), Phi(M_T) = r_global",
        "lambda-returns of potentials, Ng, Harada and Russell (1999)",
        conserves="at lambda = 0, sum over steps = r_global - Phi(M_0)",
        cost="n T; with soft=True: n (T + 1)",
    ),
    "igpo": Rule(
        information_gain,
        "sum_{u>=t} lambda^(u-t) g_u, g_u = Phi(M_u) - Phi(M_{u-1}), g_T = r_global",
        "IGPO, arXiv 2510.14967",
        conserves="at lambda = 0, sum over steps = r_global + Phi(M_{T-1}) - Phi(M_0)",
        cost="n T",
    ),
    "delta-belief": Rule(
        delta_belief,
        "(1/n) sum_j max(0, s_j(M_t) - s_j(M_{t-1}))",
        "delta-belief, arXiv 2602.12342",
        conserves="sum over steps >= r_global - Phi(M_0)",
        cost="n T; with soft=True: n (T + 1)",
    ),
    "himpo": Rule(
        gated_utility,
        "(1/n) sum_j h_jt (s_j(M_t) - s_j(M_{t-1})), h_jt in [f, 1]: support by s_j(M_T)",
        "HiMPO, arXiv 2606.16285, the filter ours",
        conserves="at f = 1, sum over steps = r_global - Phi(M_0)",
        cost="n T",
    ),
    "csr-later": Rule(
        later_chunk_reward,
        "(1/K) sum_k score(q_k of step t, read from M_{t+d}), d = 'end': from M_T",
        "Fine-Mem, arXiv 2601.08435, with a switch of ours",
        records=("chunk questions",),
        cost="K (T - 1), and K while playing",
    ),
}
"""Every credit rule by name. T steps, n questions, k items retrieved for each, K questions per
chunk, P permutations."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """The credit of one trajectory and its number of reader calls, without those of the outcome.

    Attributes:
        credit: One value per step.
        calls_asked: Number of readings requested.
        calls_made: Number of these that reached the reasoning agent, because they differed from
            each other and from the readings of the outcome.
        calls_played: Number of `calls_made` that answered chunk questions during the rollout; the
            rule itself made the others afterwards.
        operations: Per step, one value per entry of its `outcomes`, which sum to the step's credit;
            `None` for a rule whose unit is the step.
    """

    rule: str
    credit: tuple[float | None, ...]
    calls_asked: int
    calls_made: int
    calls_played: int
    operations: list[list[float | None]] | None = None


def applicable(trajectories: Sequence[Trajectory], given: Collection[str] = ()) -> list[str]:
    """Return the names of the rules that can be applied to trajectories, in the order of `RULES`.

    Args:
        trajectories: The rollouts to credit.
        given: Arguments that the caller can pass, see `Rule.arguments`.

    >>> from finemem_lib.data.worked_example import worked_example
    >>> "eara-used" in applicable([worked_example()]), "owen" in applicable([worked_example()])
    (True, False)
    """
    have = {*given}
    answers = [one.questions for one in trajectories]
    if all(any(step.chunk_questions for step in one.steps) for one in trajectories):
        have.add("chunk questions")
    if all(any(a.used is not None for a in asked) for asked in answers):
        have.add("used items")
    if all(a.question.evidence_steps is not None for asked in answers for a in asked):
        have.add("evidence steps")
    return [name for name, rule in RULES.items() if have >= {*rule.required, *rule.records}]


def assign(rule: str, trajectory: Trajectory, **settings: Any) -> Assigned:
    """Apply a rule of `RULES` and count its reader calls.

    The example below makes three calls for four chunk questions, because one of them was also asked
    at the end, with the same items.

    Args:
        rule: A name in `RULES`.
        trajectory: The rollout to credit.
        **settings: Settings of the rule. If `agent` is a `MemoisedAgent`, its cache is used and
            only readings that are not in it count as made; the readings of the outcome are added
            to the cache first.

    Raises:
        ValueError: the rule is unknown, a required setting is missing, or as the rule.

    >>> from finemem_lib import worked_example
    >>> assign("eara", worked_example()).credit
    (0.21875, 0.09375, 0.34375, 0.09375)
    >>> found = assign("csr", worked_example())
    >>> found.credit, found.calls_asked, found.calls_made, found.calls_played
    ((1.0, None, 0.5, 0.0), 4, 3, 3)
    >>> assign("owen", worked_example())
    Traceback (most recent call last):
    ...
    ValueError: credit rule 'owen' needs agent; pass it as a setting
    """
    if rule not in RULES:
        raise ValueError(f"credit rule is {rule!r}, expected one of {', '.join(RULES)}")
    if missing := [name for name in RULES[rule].required if settings.get(name) is None]:
        raise ValueError(f"credit rule {rule!r} needs {', '.join(missing)}; pass it as a setting")
    played = calls_while_playing(rule, [trajectory], **settings)
    agent: ReasoningAgent = settings.get("agent") or _NoReader()
    counter = agent if isinstance(agent, MemoisedAgent) else MemoisedAgent(agent)
    before = counter.calls_asked, counter.calls_made
    if "agent" in settings:
        need_agent(trajectory, counter)
        counter.know(*outcome_readings(trajectory))
        settings["agent"] = counter
        if settings.get("replay") and settings["replay"].agent is not counter:
            settings["replay"] = settings["replay"].through(counter)
    credit = RULES[rule].function(trajectory, **settings)
    asked, made = counter.calls_asked - before[0], counter.calls_made - before[1]
    operations = credit.operations if isinstance(credit, OperationCredit) else None
    return Assigned(rule, tuple(credit), played[0] + asked, played[1] + made, played[1], operations)


@dataclass(frozen=True, slots=True)
class CreditedUpdate:
    """The credit of all rollouts of an update.

    Attributes:
        credit: Credit per group, rollout and step; an `OperationCredit` where the rule's unit is
            the operation.
        calls_asked: Number of readings that the rule requested, without those of the outcome and
            of the recorded chunk questions.
        calls_made: Number of these that reached the reasoning agent.
        measures: Quantities from `Rule.measures`; empty where the rule has none.
    """

    credit: list[list[Credit]]
    calls_asked: int
    calls_made: int
    measures: Mapping[str, float]


def credit_update(
    rule: str,
    groups: Sequence[Sequence[Trajectory]],
    *,
    agent: ReasoningAgent | None = None,
    previous: Mapping[str, float] | None = None,
    question_share: float = 1.0,
    **settings: Any,
) -> CreditedUpdate:
    """Apply a rule to every rollout of an update and count its reader calls.

    Args:
        rule: A name in `RULES`.
        groups: The groups of the update; rules share their results through a `CachedUpdate`.
        agent: The reasoning agent that answered, for rules that read again.
        previous: The rule's measures of the previous update.
        question_share: Share of the global questions that the rule sees, in (0, 1]. At least one
            question per instance is drawn, the same for all its rollouts.
        **settings: Settings of the rule. A rule with probe questions gets the chunk questions of
            each trajectory.

    Raises:
        ValueError: As `assign`, or `question_share` is out of range.
    """
    update = groups if isinstance(groups, CachedUpdate) else CachedUpdate(map(CachedGroup, groups))
    if question_share != 1:
        whole = update
        update = whole.once(
            ("questions", question_share), lambda: with_some_questions(whole, question_share)
        )
    card = RULES[rule]
    if "agent" in card.required and agent is None:
        raise ValueError(f"credit rule {rule!r} needs agent; pass it as a setting")
    counter = agent if isinstance(agent, MemoisedAgent) else MemoisedAgent(agent or _NoReader())
    before = counter.calls_asked, counter.calls_made
    if "agent" in card.arguments:
        for one in itertools.chain(*update):
            need_agent(one, counter)
            counter.know(*outcome_readings(one))
    credit: list[list[Credit]] = []
    measures: Mapping[str, float] = {}
    for group in update:
        credit.append([])
        for one in group:
            offered: dict[str, Any] = {"group": group, "batch": update, "previous": previous}
            if "agent" in card.arguments:
                offered["agent"] = counter
            offered["probes"] = [a.question for step in one.steps for a in step.chunk_questions]
            given = {name: offered[name] for name in card.arguments if name in offered} | settings
            credit[-1].append(card.function(one, **given))
            if card.measures and not measures:
                measures = card.measures(one, **given)
    asked, made = counter.calls_asked - before[0], counter.calls_made - before[1]
    return CreditedUpdate(credit, asked, made, measures)


def with_some_questions(groups: Sequence[Sequence[Trajectory]], share: float) -> CachedUpdate:
    """Return the groups with a random share of their global questions.

    Args:
        groups: Groups of rollouts; all rollouts of a group keep the same questions.
        share: Share of questions to keep, in (0, 1]; at least one is kept.

    Raises:
        ValueError: `share` is out of range.
    """
    if not 0 < share <= 1:
        raise ValueError(f"credit: question_share is {share}, expected more than 0 and at most 1")
    some = []
    for group in groups:
        total = len(group[0].questions)
        rng = generator("credit questions", share, group[0].instance_id)
        kept = sorted(rng.sample(range(total), min(total, max(1, round(share * total)))))
        some.append(
            CachedGroup(
                dataclasses.replace(one, questions=tuple(one.questions[place] for place in kept))
                for one in group
            )
        )
    return CachedUpdate(some)


def calls_while_playing(
    rule: str, trajectories: Iterable[Trajectory], **settings: Any
) -> tuple[int, int]:
    """Return the numbers of recorded reader calls, asked and made, for a rule's chunk questions.

    Equal readings, as `MemoisedAgent` compares them, count as made once, and readings equal to one
    of the outcome are not counted as made. For a rule that compares a group, each rollout counts
    its own chunk questions. A rule that asks chunk questions later uses only the recorded answers
    of the last step.

    Args:
        rule: A name in `RULES`.
        trajectories: The rollouts; their calls are counted together.
        **settings: Settings of the rule; if the turn reward enters only at step 1, only the
            questions of step 1 count.

    Raises:
        ValueError: a trajectory does not hold the items that it retrieved.
    """
    if "chunk questions" not in RULES[rule].records:
        return 0, 0
    read = slice(None)  # the steps whose recorded answers enter the credit
    if rule == "mt-grpo" and settings.get("turns", "first") == "first":
        read = slice(1)
    if rule == "csr-later" and settings.get("delay", "end") != 0:
        read = slice(-1, None)
    tasks = []
    counter = MemoisedAgent(_NoReader())
    for one in trajectories:
        counter.know(*outcome_readings(one))
        held: dict[str, MemoryItem] = {}
        counted = {step.step for step in one.steps[read]}
        for step in one.steps:
            held = step.delta.applied_to(held)
            tasks += [
                reading_task(answered.question, list(retrieved_items(one, held, answered).values()))
                for answered in (step.chunk_questions if step.step in counted else ())
            ]
    counter.read(tasks)
    return counter.calls_asked, counter.calls_made


def outcome_readings(trajectory: Trajectory) -> tuple[list[ReadingTask], list[Reading]]:
    """Return the readings of the outcome: the global questions with their items, and the answers.

    Left out are questions without a score, where the agent may have failed, and questions whose
    used items are not all among the retrieved ones, because they were read from more items.

    Args:
        trajectory: The rollout whose global questions are returned.

    Raises:
        ValueError: the trajectory does not hold the items that it retrieved.
    """
    held = {item.item_id: item for item in trajectory.final_memory()}
    read = [
        answered
        for answered in trajectory.questions
        if answered.score is not None
        and {*(answered.used or ())} <= {found.item_id for found in answered.retrieved}
    ]
    return (
        [
            reading_task(
                answered.question, list(retrieved_items(trajectory, held, answered).values())
            )
            for answered in read
        ],
        [Reading(answered.answer, answered.used) for answered in read],
    )


class _NoReader:
    """A reasoning agent that gives empty answers, for counting calls."""

    name = settings = "no reader"

    def query(self, question: str, data_source: str) -> str:
        return question

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        return [Reading("", ())] * len(tasks)
