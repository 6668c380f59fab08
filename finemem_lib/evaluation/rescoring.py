"""Recompute scores and credit of recorded trajectories.

Nothing is played again, and the reader is called only for credit rules that need it. The recorded
answers stay; scores are recomputed by the metrics of this version or by a judge.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from finemem_lib.credit.needs import mean_of_known
from finemem_lib.credit.rules import RULES, credit_update
from finemem_lib.readers.model_judge import ModelJudge, all_answers, with_scores
from finemem_lib.reading import ReasoningAgent
from finemem_lib.scoring import metric_for, score
from finemem_lib.trajectory import AnsweredQuestion, Trajectory

Group = list[Trajectory]


def rescored(
    trajectories: Sequence[Trajectory], judge: ModelJudge | None = None, every: bool = False
) -> list[Trajectory]:
    """Return trajectories with recomputed scores of their global and chunk questions.

    A failed answer ("" without a score) and a question without an accepted answer get no score.

    Args:
        trajectories: Recorded trajectories.
        judge: Scores the answers that no metric can score; without a judge they keep their score.
        every: Whether the judge scores all answers.

    Raises:
        ModelError: a call to the judge failed.

    >>> from finemem_lib.data.worked_example import worked_example
    >>> [one] = rescored([worked_example()])
    >>> one.num_steps == worked_example().num_steps
    True
    """

    def has_metric(one: AnsweredQuestion) -> bool:
        return metric_for(one.question.data_source) != "unscored"

    def needs_judge(one: AnsweredQuestion) -> bool:
        known = one.answer and one.question.answers
        return bool(judge and known and (every or not has_metric(one)))

    def new_score(one: AnsweredQuestion) -> float | None:
        if needs_judge(one):
            return next(verdicts)
        failed = one.score is None and not one.answer
        if failed or not has_metric(one):
            return one.score
        return score(one.answer, one.question.answers, one.question.data_source)

    answered = [one for trajectory in trajectories for one in all_answers(trajectory)]
    verdicts = iter(judge.answers([*filter(needs_judge, answered)]) if judge else ())
    return with_scores(trajectories, [*map(new_score, answered)])


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """Effect of rescoring for one manager on one data source.

    Attributes:
        manager, data_source: Manager and data source of the trajectories.
        before, after: Mean score, without unscored questions; `None` if all are unscored.
        changed: Number of questions whose score changed.
        unscored_before, unscored_after: Number of questions without a score.
    """

    manager: str
    data_source: str
    questions: int
    before: float | None
    after: float | None
    changed: int
    unscored_before: int
    unscored_after: int


def score_changes(before: Sequence[Trajectory], after: Sequence[Trajectory]) -> list[ScoreChange]:
    """Compare the scores of the global questions before and after rescoring.

    Args:
        before: The recorded trajectories.
        after: The same trajectories rescored, in the same order.

    Returns:
        One entry per manager and data source.
    """
    pairs: defaultdict[tuple[str, str], list[tuple[float | None, float | None]]] = defaultdict(list)
    for old, new in zip(before, after, strict=True):
        pairs[old.manager, old.data_source] += [
            (one.score, other.score)
            for one, other in zip(old.questions, new.questions, strict=True)
        ]
    return [
        ScoreChange(
            manager,
            source,
            len(scores),
            mean_of_known(old for old, _ in scores),
            mean_of_known(new for _, new in scores),
            sum(old != new for old, new in scores),
            sum(old is None for old, _ in scores),
            sum(new is None for _, new in scores),
        )
        for (manager, source), scores in pairs.items()
    ]


@dataclass(frozen=True, slots=True)
class CreditRow:
    """The credit of one step under one rule.

    Attributes:
        manager, instance_id, rollout, step: Identify the step.
        credit: Credit of the step; `None` if undefined.
    """

    rule: str
    manager: str
    instance_id: str
    rollout: int
    step: int
    credit: float | None


@dataclass(frozen=True, slots=True)
class Recredited:
    """Credit of recorded trajectories under one rule.

    Attributes:
        rows: One row per step.
        calls_asked, calls_made: Reader calls that the rule requested, and those that were not
            answered from the cache.
    """

    rows: tuple[CreditRow, ...]
    calls_asked: int
    calls_made: int


def updates_of(trajectories: Iterable[Trajectory]) -> list[list[Group]]:
    """Return the rollout groups by manager; credit rules are applied to one manager at a time.

    Args:
        trajectories: Trajectories in any order.

    Returns:
        One list of groups per manager; a group holds the rollouts of one instance.
    """
    updates: defaultdict[str, defaultdict[str, Group]] = defaultdict(lambda: defaultdict(list))
    for one in trajectories:
        updates[one.manager][one.instance_id].append(one)
    return [list(groups.values()) for groups in updates.values()]


def recredited(
    trajectories: Sequence[Trajectory], rule: str, agent: ReasoningAgent | None = None
) -> Recredited:
    """Apply a credit rule to recorded trajectories.

    Args:
        trajectories: Recorded trajectories; rollouts of one instance by one manager form a group.
        rule: A name in `credit.rules.RULES`.
        agent: The reasoning agent that answered, for rules that call the reader.

    Raises:
        ValueError: there is no such rule, or the trajectories lack what it needs.
    """
    if rule not in RULES:
        raise ValueError(f"credit rule is {rule!r}, expected one of {', '.join(RULES)}")
    updates = updates_of(trajectories)
    found = [credit_update(rule, groups, agent=agent) for groups in updates]
    rows = tuple(
        CreditRow(rule, one.manager, one.instance_id, one.rollout, step, value)
        for groups, update in zip(updates, found, strict=True)
        for group, credits in zip(groups, update.credit, strict=True)
        for one, credit in zip(group, credits, strict=True)
        for step, value in enumerate(credit, start=1)
    )
    return Recredited(
        rows, sum(one.calls_asked for one in found), sum(one.calls_made for one in found)
    )


def credit_summary(rows: Sequence[CreditRow]) -> Mapping[str, tuple[int, int, float | None]]:
    """Return, by manager, the number of steps, of steps without credit, and the mean credit.

    Args:
        rows: Rows of one rule.
    """
    by_manager: defaultdict[str, list[float | None]] = defaultdict(list)
    for row in rows:
        by_manager[row.manager].append(row.credit)
    return {
        name: (len(values), values.count(None), mean_of_known(values))
        for name, values in by_manager.items()
    }
