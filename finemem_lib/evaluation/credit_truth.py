"""Compare credit rules with the true credit of every step on planted streams.

Planted streams define two kinds of true credit ("truths"):

- planted: the steps whose chunks state the answer share its part ``s_j / n`` of the outcome reward;
- causal: the recorded score minus the score of a replay without the step
  (`credit.counterfactual.step_leave_one_out`). It is negative if the step did harm, and 0 at both
  steps if two steps state the same fact.

The two differ. A stated fact that the manager never stored has no causal credit. If a stale item
happens to give the right answer, the causal credit goes to a step that does not state the answer. A
step that only evicts an item from a full memory states nothing but has negative causal credit.

Each measure gives one number per trajectory or per question:

- rank: Spearman correlation of credit and truth over the steps of a trajectory;
- rank_rollouts: the same correlation over the rollouts of an instance at one step, the only
  comparison that group-relative advantages make; constant credit counts as 0 in both measures;
- sign: share of the steps with nonzero truth whose credit has the opposite sign; a reward that is
  never negative cannot penalise a harmful step;
- precision, recall: a step is credited if its credit for the question is positive and above the
  mean over steps, and true if its truth for the question is positive;
- noise: share of the absolute credit for the question that lies on steps whose truth is 0.

The credit for a question is the rule's credit on the trajectory with this question alone. A value
is `None` if the measure is undefined, for example if the truth is 0 at every step (see the
functions below). Undefined values are counted and left out of the mean.

The cost of a rule is its number of reader calls beyond those of the outcome reward, which asks the
global questions at the end: the calls for its chunk questions, made while the rollouts were played,
and the calls that it makes afterwards. Readings that the outcome reward of any rollout in the group
already made are reused and cost nothing.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, get_args

import numpy as np

from finemem_lib.credit.counterfactual import step_leave_one_out
from finemem_lib.credit.needs import Credit
from finemem_lib.credit.replay import Replayer
from finemem_lib.credit.rules import RULES, calls_while_playing, outcome_readings
from finemem_lib.evaluation.intervals import clustered_mean, interval_text
from finemem_lib.evaluation.rows import MeasuredRow
from finemem_lib.reading import MemoisedAgent, ReasoningAgent
from finemem_lib.trajectory import Question, Trajectory

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Truth = Literal["planted", "causal"]
Measure = Literal["rank", "rank_rollouts", "precision", "recall", "noise", "sign"]
TRUTHS: tuple[Truth, ...] = get_args(Truth)
MEASURES: tuple[Measure, ...] = get_args(Measure)

BASELINE = "eara"
"""The paper's rule; tables show the difference of every other rule to it."""

REGIMES: Mapping[str, tuple[str, str]] = {
    "memory": ("memory without limit", "memory of 12 items"),
    "duplicates": ("duplicates refused", "duplicates allowed"),
    "facts": ("facts stay", "facts change"),
}
"""Pairs of slices that a table compares, in addition to "all" and one slice per manager."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A rule of `credit.rules.RULES` with its settings.

    Attributes:
        rule: name in `credit.rules.RULES`.
        settings: keyword arguments of the rule.
        probes: questions that the rule "potential" asks after every step: the trajectory's global
            questions ("global", those asked at the end) or its chunk questions ("chunk").
    """

    rule: str
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    probes: Literal["global", "chunk"] | None = None


VARIANTS: dict[str, Variant] = {
    "outcome-broadcast": Variant("outcome-broadcast"),
    "uniform-split": Variant("uniform-split"),
    "csr": Variant("csr"),
    "eara": Variant("eara"),
    "eara, beta 1": Variant("eara", {"beta": 1.0}),
    "eara-used": Variant("eara-used"),
    "evidence-loo": Variant("evidence-loo"),
    "evidence-shapley": Variant("evidence-shapley"),
    "step-loo": Variant("step-loo"),
    "step-loo, orphans stored": Variant("step-loo", {"orphaned": "insert"}),
    "operation-loo": Variant("operation-loo"),
    "step-shapley": Variant("step-shapley"),
    "owen": Variant("owen"),
    "mt-grpo": Variant("mt-grpo"),
    "mt-grpo, all turns": Variant("mt-grpo", {"turns": "all"}),
    "gigpo": Variant("gigpo"),
    "hindsight": Variant("hindsight"),
    "attributed-dense": Variant("attributed-dense"),
    "potential, final questions": Variant("potential", probes="global"),
    "potential, chunk questions": Variant("potential", probes="chunk"),
    "two-sided-evidence": Variant("two-sided-evidence"),
    "two-sided-evidence, evicting": Variant("two-sided-evidence", {"responsible": "evicting"}),
    "slot-price": Variant("slot-price"),
    "slot-price, per eviction": Variant("slot-price", {"per": "eviction"}),
    "operation-slot-price": Variant("operation-slot-price"),
    "value-difference": Variant("value-difference"),
    "value-difference, lambda 0.7": Variant("value-difference", {"lambda_": 0.7}),
    "value-difference, lambda 0": Variant("value-difference", {"lambda_": 0.0}),
    "igpo": Variant("igpo"),
    "igpo, lambda 1": Variant("igpo", {"lambda_": 1.0}),
    "delta-belief": Variant("delta-belief"),
    "himpo": Variant("himpo"),
    "csr-later, 1 step": Variant("csr-later", {"delay": 1}),
    "csr-later, end": Variant("csr-later"),
}
"""The compared rules with their settings, by name."""

USES_FINAL_QUESTIONS: tuple[str, ...] = (
    "potential, final questions",
    "value-difference",
    "value-difference, lambda 0.7",
    "value-difference, lambda 0",
    "igpo",
    "igpo, lambda 1",
    "delta-belief",
    "himpo",
)
"""Variants that use the global questions after every step, before a manager may know them."""

PRIVILEGED: Mapping[Truth, tuple[str, ...]] = {
    "causal": ("step-loo", "step-loo, orphans stored", *USES_FINAL_QUESTIONS),
    "planted": ("hindsight", *USES_FINAL_QUESTIONS),
}
"""By truth, the variants that equal it up to a setting or use information that no manager may have.
Tables show them without ranking them."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One value of one measure for a variant on an instance.

    Attributes:
        rule: name of the variant.
        value: in [-1, 1] for rank correlations, else in [0, 1]; `None` if undefined.
    """

    rule: str
    truth: Truth
    measure: Measure
    instance_id: str
    value: float | None


class Calls(NamedTuple):
    """Reader calls beyond those of the outcome reward.

    Attributes:
        asked: readings that were requested.
        made: readings that reached the reader; the rollouts of an instance share one cache.
        played: the part of `made` that was made while the rollouts were played.
    """

    asked: int
    made: int
    played: int


@dataclass(frozen=True, slots=True)
class Row(MeasuredRow):
    """One cell of the table: a mean with its interval, and the paired difference to `BASELINE`.

    Attributes:
        value: mean of the measure; `low` and `high` are the ends of its interval.
        difference: mean difference to `BASELINE` where both could be judged, with its interval in
            `difference_low` and `difference_high`.
        counted: number of trajectories, steps or questions in the mean.
        left_out: number of those where the measure is undefined.
        instances: number of instances with a value, the clusters of the interval.
        calls_asked: `Calls.asked` per trajectory; so are `calls_made` and `calls_played`.
    """

    made_by: ClassVar[str] = "python benchmarks/credit.py --output FILE.jsonl"

    slice: str
    rule: str
    truth: Truth
    measure: Measure
    value: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    counted: int
    left_out: int
    instances: int
    calls_asked: float
    calls_made: float
    calls_played: float


def planted_credit(trajectory: Trajectory) -> Credit:
    """Return the planted credit of every step: ``(1/n) sum_j s_j [t in E_j] / |E_j|``.

    E_j are the steps whose chunks state the answer of question j, s_j is its score, and n is the
    number of scored questions. The sum is r_global. All entries are `None` if no question has a
    score.

    Args:
        trajectory: a trajectory of a planted stream, whose questions name their evidence steps.

    Raises:
        ValueError: the evidence steps of a question are unknown.
    """
    scored = [(one.question, one.score) for one in trajectory.questions if one.score is not None]
    credit = [0.0] * trajectory.num_steps
    for question, score in scored:
        if not question.evidence_steps:
            raise ValueError(
                f"planted credit of {trajectory.instance_id!r}: question "
                f"{question.question_id!r} has no evidence steps, expected a stream whose truth is "
                "known; use planted.planted_stream"
            )
        for step in question.evidence_steps:
            credit[step - 1] += score / (len(question.evidence_steps) * len(scored))
    return [*credit] if scored else [None] * trajectory.num_steps


def rank_correlation(credit: Credit, truth: Credit) -> float | None:
    """Return Spearman's rank correlation of credit and truth, in [-1, 1].

    Args:
        credit: credit by a rule, one entry per step (or rollout); `None` entries are left out.
        truth: true credit of the same steps (or rollouts); `None` entries are left out.

    Returns:
        The correlation; `None` if the truth is constant, 0.0 if only the credit is.

    >>> rank_correlation([0.1, 0.5, None, 0.2], [0.0, 0.6, 0.3, 0.1])
    1.0
    >>> rank_correlation([0.2, 0.2], [0.0, 1.0]), rank_correlation([0.0, 1.0], [0.2, 0.2])
    (0.0, None)
    """
    from scipy.stats import rankdata

    paid, true = _known_pairs(credit, truth)
    if len(np.unique(true)) < 2:
        return None
    if len(np.unique(paid)) < 2:
        return 0.0
    return round(float(np.corrcoef(rankdata(paid), rankdata(true))[0, 1]), 12)


def at_true_steps(credit: Credit, truth: Credit) -> tuple[float | None, float | None]:
    """Return precision and recall of the credited steps, in [0, 1].

    A step is credited if its credit is positive and above the mean, and true if its truth is
    positive. Both values are `None` if no step is true; precision is also `None` if no step is
    credited.

    Args:
        credit: credit by a rule, one entry per step; `None` entries are left out.
        truth: true credit of each step.

    >>> at_true_steps([0.1, 0.4, 0.4, 0.1], [0.0, 1.0, 0.0, 0.0])
    (0.5, 1.0)
    >>> at_true_steps([0.25, 0.25, 0.25, 0.25], [0.0, 1.0, 0.0, 0.0])
    (None, 0.0)
    >>> at_true_steps([-0.1, -0.9, -0.9, -0.9], [1.0, 0.0, 0.0, 0.0])
    (None, 0.0)
    """
    paid, earned = _known_pairs(credit, truth)
    true = earned > 0
    if not true.any():
        return None, None
    credited = paid > max(paid.mean(), 0.0) + _TIE
    hits = int((credited & true).sum())
    return hits / int(credited.sum()) if credited.any() else None, hits / int(true.sum())


def noise_share(credit: Credit, truth: Credit) -> float | None:
    """Return the share of absolute credit on steps whose truth is 0; `None` if one is 0 everywhere.

    Args:
        credit: credit by a rule, one entry per step; `None` entries are left out.
        truth: true credit of each step.

    >>> noise_share([0.1, 0.4, -0.3, 0.2], [0.0, 1.0, 0.0, 0.0])
    0.6
    """
    paid, true = _known_pairs(credit, truth)
    total = np.abs(paid).sum()
    if not true.any() or total <= _TIE:
        return None
    return round(float(np.abs(paid[true == 0]).sum() / total), 12)


def sign_errors(credit: Credit, truth: Credit) -> float | None:
    """Return the share of steps with nonzero truth whose credit has the opposite sign.

    Args:
        credit: credit by a rule, one entry per step; `None` entries are left out, and a credit of 0
            has no sign.
        truth: true credit of each step.

    Returns:
        The share in [0, 1]; `None` if the truth is 0 at every step.

    >>> sign_errors([0.5, 0.5, 0.0, 0.5], [1.0, -1.0, 1.0, 0.0])
    0.3333333333333333
    """
    paid, true = _known_pairs(credit, truth)
    if not true.any():
        return None
    opposite = np.sign(np.where(np.abs(paid) > _TIE, paid, 0)) * np.sign(true) < 0
    return float(opposite.sum() / (true != 0).sum())


_TIE = 1e-12
"""Credits that differ by no more than this are equal; the difference is rounding error."""


def _known_pairs(credit: Credit, truth: Credit) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    pairs = [pair for pair in zip(credit, truth, strict=True) if None not in pair]
    # Rounded, so that values that differ by floating-point error only rank as ties.
    paid, true = np.round(np.array(pairs, dtype=float).reshape(-1, 2), 12).T
    return paid, true


def judge(
    group: Sequence[Trajectory],
    agent: ReasoningAgent,
    variants: Mapping[str, Variant] | None = None,
) -> tuple[list[Judged], dict[str, Calls]]:
    """Compute every measure of every variant on the rollouts of one planted instance.

    Args:
        group: the rollouts, of equal length and with equal questions.
        agent: the reasoning agent that answered the questions.
        variants: the variants by name; default: `VARIANTS`.

    Returns:
        The values, and by variant the reader calls for the credit of the whole trajectories.

    Raises:
        ValueError: a rule cannot be applied to the trajectories, see `credit`.
    """
    shared = _memoised(agent, group)
    replayers = [Replayer(one, shared) for one in group]
    groups = [group, *_by_question(group)]
    truths: dict[Truth, list[list[Credit]]] = {
        "planted": [[planted_credit(one) for one in members] for members in groups],
        "causal": [
            [
                step_leave_one_out(one, agent=shared, replay=replayer)
                for one, replayer in zip(members, replayers, strict=True)
            ]
            for members in groups
        ],
    }
    judged: list[Judged] = []
    calls = {}
    for name, variant in (VARIANTS if variants is None else variants).items():
        credits, calls[name] = _apply(variant, groups, shared, replayers)
        judged += [
            Judged(name, truth, measure, group[0].instance_id, value)
            for truth, true in truths.items()
            for measure, value in _values(credits, true)
        ]
    return judged, calls


def _memoised(agent: ReasoningAgent, group: Sequence[Trajectory]) -> MemoisedAgent:
    """Return the agent with a new cache that holds the readings of the outcome reward."""
    memoised = MemoisedAgent(agent)
    for one in group:
        memoised.know(*outcome_readings(one))
    return memoised


def _by_question(group: Sequence[Trajectory]) -> list[list[Trajectory]]:
    """Return one group per question: the trajectories with this question only."""
    return [
        [dataclasses.replace(one, questions=(one.questions[number],)) for one in group]
        for number in range(len(group[0].questions))
    ]


def _apply(
    variant: Variant,
    groups: Sequence[Sequence[Trajectory]],
    shared: MemoisedAgent,
    replayers: Sequence[Replayer],
) -> tuple[list[list[Credit]], Calls]:
    """Return a variant's credit for every group, and its reader calls for the first group.

    The first group holds the whole trajectories, every other one a single question.
    """
    whole = groups[0]
    counter = _memoised(shared, whole)  # counts every call of this variant
    counted = [replayer.through(counter) for replayer in replayers]
    credits = [_credits(variant, whole, whole, counter, counted)]
    asked, played = calls_while_playing(variant.rule, whole, **variant.settings)
    calls = Calls(asked + counter.calls_asked, played + counter.calls_made, played)
    credits += [_credits(variant, group, whole, counter, counted) for group in groups[1:]]
    return credits, calls


def _credits(
    variant: Variant,
    group: Sequence[Trajectory],
    whole: Sequence[Trajectory],
    agent: MemoisedAgent,
    replayers: Sequence[Replayer],
) -> list[Credit]:
    rule = RULES[variant.rule]
    credits = []
    for one, full, replayer in zip(group, whole, replayers, strict=True):
        offered = {
            "agent": agent,
            "group": group,
            "probes": _probes(variant, one, full),
            "replay": replayer,
        }
        settings = {name: offered[name] for name in rule.arguments if name in offered}
        credits.append(rule.function(one, **settings, **variant.settings))
    return credits


def _probes(variant: Variant, one: Trajectory, full: Trajectory) -> list[Question]:
    if variant.probes == "global":
        return [answered.question for answered in one.questions]
    return [answered.question for step in full.steps for answered in step.chunk_questions]


def _values(
    credits: Sequence[Sequence[Credit]], truths: Sequence[Sequence[Credit]]
) -> Iterable[tuple[Measure, float | None]]:
    """Yield the values of all measures of a variant against one truth.

    Entry 0 of both arguments belongs to the whole trajectories, every other entry to one question.
    An entry holds one credit per rollout.
    """
    for credit, truth in zip(credits[0], truths[0], strict=True):
        yield "rank", rank_correlation(credit, truth)
        yield "sign", sign_errors(credit, truth)
    steps = zip(zip(*credits[0], strict=True), zip(*truths[0], strict=True), strict=True)
    for over_rollouts, true_over_rollouts in steps:
        yield "rank_rollouts", rank_correlation([*over_rollouts], [*true_over_rollouts])
    for paid, true in zip(credits[1:], truths[1:], strict=True):
        for credit, truth in zip(paid, true, strict=True):
            precision, recall = at_true_steps(credit, truth)
            yield "precision", precision
            yield "recall", recall
            yield "noise", noise_share(credit, truth)


def truth_table(
    slices: Mapping[str, Iterable[tuple[Sequence[Judged], Mapping[str, Calls], int]]],
) -> list[Row]:
    """Return one row per slice, rule, truth and measure.

    Intervals are those of `intervals.clustered_mean`, with instances as clusters.

    Args:
        slices: by name, the two results of `judge` for every group, with the group's number of
            trajectories.
    """
    rows = []
    for name, groups in slices.items():
        values: defaultdict[tuple[str, Truth, Measure], dict[str, list[float | None]]]
        values = defaultdict(lambda: defaultdict(list))
        totals: defaultdict[str, Calls] = defaultdict(lambda: Calls(0, 0, 0))
        trajectories = 0
        for judged, calls, size in groups:
            trajectories += size
            for rule, added in calls.items():
                totals[rule] = Calls(*map(sum, zip(totals[rule], added, strict=True)))
            for one in judged:
                values[one.rule, one.truth, one.measure][one.instance_id].append(one.value)
        for (rule, truth, measure), samples in values.items():
            base = values.get((BASELINE, truth, measure)) if rule != BASELINE else None
            known = [sum(v is not None for v in sample) for sample in samples.values()]
            rows.append(
                Row(
                    name,
                    rule,
                    truth,
                    measure,
                    *clustered_mean(samples),
                    *(clustered_mean(samples, base) if base else (None, None, None)),
                    sum(known),
                    sum(map(len, samples.values())) - sum(known),
                    sum(map(bool, known)),
                    *(count / trajectories for count in totals[rule]),
                )
            )
    return rows


def measures_frame(rows: Iterable[Row], truth: Truth) -> pd.DataFrame:
    """Return a table of all measures of every variant against one truth, cheapest variant first.

    Args:
        rows: rows of `truth_table`.
        truth: the truth with which credit is compared.

    Returns:
        A pandas frame. A cell is a mean with its interval, "–" if undefined; "calls" are reader
        calls per trajectory beyond those of the outcome reward, and "rank per call" is the gain in
        rank correlation over `BASELINE` divided by "calls".
    """
    import pandas as pd

    cells = {
        (row.rule, row.measure): row for row in rows if row.slice == "all" and row.truth == truth
    }
    ranks = sorted(
        (row for row in cells.values() if row.measure == "rank"),
        key=lambda row: (row.calls_made, row.rule),
    )
    return (
        pd.DataFrame(
            [
                {"rule": row.rule, "calls": f"{row.calls_made:.1f}"}
                | {
                    measure: interval_text(cell.value, cell.low, cell.high, ".2f")
                    for measure in MEASURES
                    for cell in [cells[row.rule, measure]]
                }
                | {
                    "rank per call": "–"
                    if row.difference is None or not row.calls_made
                    else f"{row.difference / row.calls_made:+.3f}"
                }
                for row in ranks
            ]
        )
        .set_index("rule")
        .rename_axis(index=None, columns="rule")
    )  # index and columns share one heading line
