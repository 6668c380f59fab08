"""Score and credit what was played, again, from the trajectories alone.

Nothing is played or read again but what a credit rule asks for. What was answered stays; scores
become those of the metrics of this version, or of a judge.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from finemem_lib.credit.needs import mean_of_known
from finemem_lib.credit.rules import RULES, credit_update
from finemem_lib.readers.model_judge import ModelJudge
from finemem_lib.reading import ReasoningAgent
from finemem_lib.scoring import metric_for, score
from finemem_lib.trajectory import AnsweredQuestion, Trajectory

Group = list[Trajectory]


def rescored(
    trajectories: Sequence[Trajectory], judge: ModelJudge | None = None, every: bool = False
) -> list[Trajectory]:
    """Return trajectories with new scores of their global and chunk questions.

    An answer that failed ("" without a score) stays without one, and so does a question without an
    accepted answer.

    Args:
        trajectories: What was played.
        judge: Judges the answers that no metric can score; without one they keep their score.
        every: Let the judge judge all answers.

    Raises:
        ModelError: the judge could not be asked.

    >>> from finemem_lib.example import worked_example
    >>> [one] = rescored([worked_example()])
    >>> one.num_steps == worked_example().num_steps
    True
    """

    def judged(one: AnsweredQuestion) -> bool:
        known = one.answer and one.question.answers
        by_metric = metric_for(one.question.data_source) != "unscored"
        return bool(judge and known and (every or not by_metric))

    asked = [one for played in trajectories for one in _answers(played) if judged(one)]
    verdicts = iter(judge.answers(asked) if judge else ())

    def new(some: Iterable[AnsweredQuestion]) -> tuple[AnsweredQuestion, ...]:
        found = []
        for one in some:
            value = one.score
            if judged(one):
                value = next(verdicts)
            elif metric_for(one.question.data_source) != "unscored" and not (
                value is None and not one.answer
            ):
                value = score(one.answer, one.question.answers, one.question.data_source)
            found.append(dataclasses.replace(one, score=value))
        return tuple(found)

    # The verdicts come in the order of `_answers`: global questions first, then step by step.
    return [
        dataclasses.replace(
            one,
            questions=new(one.questions),
            steps=tuple(
                dataclasses.replace(step, chunk_questions=new(step.chunk_questions))
                for step in one.steps
            ),
        )
        for one in trajectories
    ]


def _answers(trajectory: Trajectory) -> Iterator[AnsweredQuestion]:
    yield from trajectory.questions
    for step in trajectory.steps:
        yield from step.chunk_questions


@dataclass(frozen=True, slots=True)
class ScoreChange:
    """What new scores change for one manager on one data source.

    Attributes:
        manager, data_source: Of which trajectories.
        questions: Global questions.
        before, after: Their mean score, `None` where none has one.
        changed: Questions whose score is another now.
        unscored_before, unscored_after: Questions without a score.
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
    """Compare the scores of the global questions of the same trajectories.

    Args:
        before: As they were played.
        after: The same, scored again.
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
        rule: Name of the rule.
        manager, instance_id, rollout, step: Which step.
        credit: What the rule gives it, `None` where nothing could be measured.
    """

    rule: str
    manager: str
    instance_id: str
    rollout: int
    step: int
    credit: float | None


@dataclass(frozen=True, slots=True)
class Recredited:
    """What a credit rule gives to what was played.

    Attributes:
        rows: One per step.
        calls_asked, calls_made: Readings that the rule asked for, and those that were new.
    """

    rows: tuple[CreditRow, ...]
    calls_asked: int
    calls_made: int


def updates_of(trajectories: Iterable[Trajectory]) -> list[list[Group]]:
    """Return the groups of rollouts of every manager: a credit rule sees one manager at a time.

    Args:
        trajectories: In any order.
    """
    updates: defaultdict[str, defaultdict[str, Group]] = defaultdict(lambda: defaultdict(list))
    for one in trajectories:
        updates[one.manager][one.instance_id].append(one)
    return [list(groups.values()) for groups in updates.values()]


def recredited(
    trajectories: Sequence[Trajectory], rule: str, agent: ReasoningAgent | None = None
) -> Recredited:
    """Apply a credit rule to what was played.

    Args:
        trajectories: What was played; rollouts of one instance by one manager are a group.
        rule: A name in `credit.rules.RULES`.
        agent: The reasoning agent that answered, for rules that read again.

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
    """Return steps, steps without a value, and the mean credit, by manager.

    Args:
        rows: Of one rule.
    """
    by_manager: defaultdict[str, list[float | None]] = defaultdict(list)
    for row in rows:
        by_manager[row.manager].append(row.credit)
    return {
        name: (len(values), values.count(None), mean_of_known(values))
        for name, values in by_manager.items()
    }
