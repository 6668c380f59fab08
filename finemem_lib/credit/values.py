"""Rules that ask questions of the memory after a step: what a step changed, and what was kept.

Phi(M) is the mean score of the trajectory's own global questions, read from what is retrieved from
the memory M. Phi(M_T) is r_global, which is recorded and costs nothing; the memories before it are
replayed and asked, the empty one too, for a reader may guess. A step's gain is
``delta_t = Phi(M_t) - Phi(M_{t-1})``.

Differs from the papers: IGPO (arXiv 2510.14967) and delta-belief (arXiv 2602.12342) measure how
much a turn raised the policy's own probability of the gold answer. Here another model answers, from
what is retrieved, and a trajectory has n questions instead of one, whose gains are averaged. Both
are for agents that see the question; a manager that is paid for the global questions after every
step is paid, in training, for what it cannot know. IGPO normalises gains and outcomes apart before
it sums them with a discount; that is the business of the reward scheme, so `information_gain` sums
them as they are. Delta-belief clips per turn; with n questions, each of which has a belief of its
own, gains are clipped per question, and a loss on one does not hide behind a gain on another.
HiMPO (arXiv 2606.16285) is known here by its summary: local utility of an update, information
recoverable from the new memory less that from the old one in the same state, times a bounded filter
that weakens what the outcome does not support. Ours are the scores that measure the information,
the support and the floor of the filter. All tokens of a memory manager are memory tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

from finemem_lib.credit.needs import (
    Credit,
    answered_again,
    mean_of_known,
    need_questions,
)
from finemem_lib.credit.recorded import chunk_step_reward
from finemem_lib.credit.replay import Asked, Plan, Replayer, Rows, replayed_credit
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import outcome_reward
from finemem_lib.trajectory import Trajectory


def value_difference(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    lambda_: float = 1.0,
    soft: bool = False,
    replay: Replayer | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
) -> Credit:
    """Return ``sum_{u >= t} lambda^(u-t) delta_u``, where ``delta_u = Phi(M_u) - Phi(M_{u-1})``.

    At lambda 1 this is ``r_global - Phi(M_{t-1})``, the value still to come; at lambda 0 it is the
    gain delta_t, and the sum over the steps is ``r_global - Phi(M_0)``. `None` where r_global is.
    Source: the return TD(lambda) on the potential of Ng, Harada and Russell (1999), without a
    learned value.

    Args:
        trajectory: What was played.
        agent: The reasoning agent that answered its questions.
        lambda_: Share of the gain of the next step that a step is paid, in [0, 1].
        soft: Phi is the mean probability of the accepted answer instead (`Asking.probabilities`),
            also at the end, which then costs n readings; for agents that give one.
        replay: Knows scores of this trajectory from other rules; a new one by default.
        batch: The groups of the whole update; a `CachedUpdate` shares the work among its rollouts.

    Raises:
        ValueError: `lambda_` is out of range, no global question was asked, the trajectory cannot
            be replayed, or `agent` is not the one that answered or fails.
    """
    _check(lambda_)
    return replayed_credit(
        trajectory,
        agent,
        lambda one: _gains_plan(
            one, lambda gains, _: _returns([_mean(step) for step in gains], lambda_), soft
        ),
        replay=replay,
        batch=batch,
        key=("value-difference", lambda_),
        soft=soft,
    )


def information_gain(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    lambda_: float = 0.0,
    soft: bool = False,
    replay: Replayer | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
) -> Credit:
    """Return the gain delta_t at steps 1 to T-1 and r_global at step T.

    With lambda above 0, each step is also paid ``lambda^(u-t)`` of what step u is paid. At lambda 0
    the sum over the steps is ``r_global + Phi(M_{T-1}) - Phi(M_0)``. Source: IGPO (arXiv
    2510.14967), information gain of a turn and outcome of the last; see "Differs" in this module.

    Args:
        trajectory: What was played.
        agent: The reasoning agent that answered its questions.
        lambda_: Discount of what later steps are paid, in [0, 1]; the paper's gamma.
        soft: As in `value_difference`; the outcome stays r_global.
        replay: As in `value_difference`.
        batch: As in `value_difference`.

    Raises:
        ValueError: as `value_difference`.
    """
    _check(lambda_)
    return replayed_credit(
        trajectory,
        agent,
        lambda one: _gains_plan(
            one, lambda gains, final: _returns([*map(_mean, gains[:-1]), _mean(final)], lambda_)
        ),
        replay=replay,
        batch=batch,
        key=("igpo", lambda_),
        soft=soft,
    )


def delta_belief(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    soft: bool = False,
    replay: Replayer | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
) -> Credit:
    """Return ``(1/n) sum_j max(0, s_j(M_t) - s_j(M_{t-1}))``: gains, and never a loss.

    The sum over the steps is at least ``r_global - Phi(M_0)``, and more by all that was lost on the
    way. In [0, 1]. Source: delta-belief (arXiv 2602.12342); see "Differs" in this module.

    Args:
        trajectory: What was played.
        agent: The reasoning agent that answered its questions.
        soft: As in `value_difference`; s_j is then the probability, where the paper has its
            logarithm, which n questions would let the least likely one rule.
        replay: As in `value_difference`.
        batch: As in `value_difference`.

    Raises:
        ValueError: as `value_difference`.
    """
    return replayed_credit(
        trajectory,
        agent,
        lambda one: _gains_plan(
            one,
            lambda gains, _: [_mean([max(0.0, gain) for gain in step]) for step in gains],
            soft,
        ),
        replay=replay,
        batch=batch,
        key="delta-belief",
        soft=soft,
    )


def gated_utility(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    floor: float = 0.1,
    replay: Replayer | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
) -> Credit:
    """Return ``(1/n) sum_j h_jt u_jt`` with the local utility ``u_jt = s_j(M_t) - s_j(M_{t-1})``.

    The gate ``h_jt = floor + (1 - floor) x support`` is what hindsight leaves of it. The support of
    a gain is s_j, the score of the question at the end; that of a loss is 1 - s_j. So a gain counts
    in full where the question was answered in the end, a loss where it was not. In [-1, 1]; `None`
    where r_global is. Source: HiMPO (arXiv 2606.16285); see "Differs" in this module.

    Args:
        trajectory: What was played.
        agent: The reasoning agent that answered its questions.
        floor: What is left of a utility that the outcome does not support, in [0, 1]; at 1 this is
            `value_difference` with lambda 0.
        replay: As in `value_difference`.
        batch: As in `value_difference`.

    Raises:
        ValueError: `floor` is out of range, or as `value_difference`.
    """
    _check(floor, "floor")

    def credit(gains: list[list[float]], final: list[float]) -> Credit:
        return [
            _mean(
                [
                    (floor + (1 - floor) * (score if gain > 0 else 1 - score)) * gain
                    for gain, score in zip(step, final, strict=True)
                ]
            )
            for step in gains
        ]

    return replayed_credit(
        trajectory,
        agent,
        lambda one: _gains_plan(one, credit),
        replay=replay,
        batch=batch,
        key=("himpo", floor),
    )


def later_chunk_reward(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    delay: int | Literal["end"] = "end",
    replay: Replayer | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
) -> Credit:
    """Return the mean score of the chunk questions of step t, read from M_{t+d} instead of M_t.

    ``M_{t+d}`` is M_T where t + d goes beyond the end. At d = 0 this is the chunk-level step reward
    as recorded. What a later step pushed out is missed, and a fact that nobody asked for at the end
    still counts. In [0, 1]; `None` where the step has no chunk question that can be scored. Source:
    Fine-Mem (arXiv 2601.08435), CSR, with the delay ours.

    Args:
        trajectory: What was played.
        agent: The reasoning agent that answered its questions.
        delay: d, in steps, at least 0; "end" asks all of them on M_T.
        replay: As in `value_difference`.
        batch: As in `value_difference`.

    Raises:
        ValueError: `delay` is negative, no step was asked a chunk question, the trajectory cannot
            be replayed, or `agent` is not the one that answered.
    """
    if delay != "end" and delay < 0:
        raise ValueError(f"csr-later: delay is {delay}, expected at least 0 steps or 'end'")
    return replayed_credit(
        trajectory,
        agent,
        lambda one: _later_plan(one, delay),
        replay=replay,
        batch=batch,
        key=("csr-later", delay),
    )


def _later_plan(trajectory: Trajectory, delay: int | Literal["end"]) -> Plan:
    """Return the chunk questions that meet another memory than they met while playing."""
    credit = chunk_step_reward(trajectory)
    last = trajectory.num_steps
    after = {
        step.step: last if delay == "end" else min(last, step.step + delay)
        for step in trajectory.steps
        if step.chunk_questions and delay and step.step < last
    }
    asked: list[Asked] = [
        (
            [one.question for one in trajectory.steps[step - 1].chunk_questions],
            frozenset(range(then + 1, last + 1)),
        )
        for step, then in after.items()
    ]

    def paid(rows: Rows) -> Credit:
        for step, row in zip(after, rows, strict=True):
            credit[step - 1] = mean_of_known(row)
        return credit

    return asked, paid


def _gains_plan(
    trajectory: Trajectory,
    credit_of: Callable[[list[list[float]], list[float]], Credit],
    soft: bool = False,
) -> Plan:
    """Return the plan of a rule on the gains: how much every step changed each question's score.

    Args:
        trajectory: What was played.
        credit_of: Returns the credit, given the gains per step and question, and the final scores.
        soft: Whether the rows are probabilities, those of M_T among them.
    """
    need_questions(trajectory)
    if outcome_reward(trajectory) is None:
        return (), lambda rows: [None] * trajectory.num_steps
    scored = [
        (answered.question, answered.score)
        for answered in trajectory.questions
        if answered.score is not None
    ]
    steps = range(1, trajectory.num_steps + 1)
    questions = [question for question, _ in scored]

    def credit(rows: Rows) -> Credit:
        values = [[answered_again(value, trajectory) for value in row] for row in rows]
        if not soft:
            values.append([score for _, score in scored])
        gains = [
            [now - before for now, before in zip(after, earlier, strict=True)]
            for earlier, after in itertools.pairwise(values)
        ]
        return credit_of(gains, [score for _, score in scored])

    befores = range(len(steps) + soft)
    return [(questions, frozenset(steps[after:])) for after in befores], credit


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _check(share: float, name: str = "lambda_") -> None:
    if not 0 <= share <= 1:
        raise ValueError(f"value differences: {name} is {share}, expected 0 to 1")


def _returns(rewards: Sequence[float], lambda_: float) -> Credit:
    """Return, per step, its reward and the discounted ones of the steps after it."""
    returns = [0.0]
    for reward in reversed(rewards):
        returns.append(reward + lambda_ * returns[-1])
    return [*reversed(returns[1:])]
