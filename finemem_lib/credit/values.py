"""Credit rules that ask questions on the memory after each step, to measure the step's gain.

Phi(M) is the mean score of the trajectory's global questions, answered from the memory M. Phi(M_T)
is r_global, which is recorded and costs no call; the memories before M_T are replayed and asked,
including the empty memory, because a reader may guess. The gain of a step is
``delta_t = Phi(M_t) - Phi(M_{t-1})``. `replay.replayed`, which makes the rules, describes their
arguments agent, orphaned, replay and batch.

Differs from the papers: IGPO (arXiv 2510.14967) and delta-belief (arXiv 2602.12342) measure how
much a turn raised the policy's own probability of the gold answer. Here another model answers from
retrieved items, and a trajectory has n questions instead of one, whose gains are averaged. Both
papers treat agents that see the question; rewarding a manager after every step for the global
questions rewards it, in training, for information that it does not have. IGPO normalises gains and
outcomes separately before it sums them with a discount; here the reward scheme normalises, so
`information_gain` sums them unnormalised. Delta-belief clips per turn; here gains are clipped per
question, so that a gain on one question does not offset a loss on another. Only the summary of
HiMPO (arXiv 2606.16285) was available: the local utility of an update is the information
recoverable from the new memory minus that from the old memory in the same state, times a bounded
filter that reduces utility which the outcome does not support. Measuring information by scores, the
support and the floor of the filter are our choices. All tokens of a memory manager are memory
tokens.
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
from finemem_lib.credit.replay import Asked, Plan, Rows, replayed
from finemem_lib.rewards import outcome_reward
from finemem_lib.trajectory import Trajectory


@replayed
def value_difference(trajectory: Trajectory, *, lambda_: float = 1.0, soft: bool = False) -> Plan:
    """Return ``sum_{u >= t} lambda^(u-t) delta_u``, where ``delta_u = Phi(M_u) - Phi(M_{u-1})``.

    At lambda 1 this is ``r_global - Phi(M_{t-1})``, the return from step t on; at lambda 0 it is
    the gain delta_t, and the sum over the steps is ``r_global - Phi(M_0)``. `None` where r_global
    is `None`. Source: the TD(lambda) return on the potential of Ng, Harada and Russell (1999),
    without a learned value function.

    Args:
        trajectory: The rollout to credit.
        lambda_: Decay per step of the gains of later steps, in [0, 1].
        soft: Whether Phi is the mean probability of the accepted answer (`Asking.probabilities`)
            instead, also for M_T, which then costs n readings; only for agents with probabilities.

    Raises:
        ValueError: `lambda_` is out of range.
    """
    _check(lambda_)
    return _gains_plan(
        trajectory, lambda gains, _: _returns([_mean(step) for step in gains], lambda_), soft
    )


@replayed
def information_gain(trajectory: Trajectory, *, lambda_: float = 0.0, soft: bool = False) -> Plan:
    """Return the gain delta_t at steps 1 to T-1 and r_global at step T.

    With lambda above 0, each step also receives ``lambda^(u-t)`` times the reward of each later
    step u. At lambda 0 the sum over the steps is ``r_global + Phi(M_{T-1}) - Phi(M_0)``. Source:
    IGPO (arXiv 2510.14967), information gain of a turn, and outcome at the last turn; see "Differs"
    in this module.

    Args:
        trajectory: The rollout to credit.
        lambda_: Discount per step of the rewards of later steps, in [0, 1]; the paper's gamma.
        soft: As in `value_difference`; the outcome remains r_global.

    Raises:
        ValueError: `lambda_` is out of range.
    """
    _check(lambda_)
    # Phi(M_T) is not needed, so no probability is read for it.
    return _gains_plan(
        trajectory, lambda gains, final: _returns([*map(_mean, gains[:-1]), _mean(final)], lambda_)
    )


@replayed
def delta_belief(trajectory: Trajectory, *, soft: bool = False) -> Plan:
    """Return ``(1/n) sum_j max(0, s_j(M_t) - s_j(M_{t-1}))``, the mean of the positive gains.

    The sum over the steps is ``r_global - Phi(M_0)`` plus the sum of all losses. In [0, 1]. Source:
    delta-belief (arXiv 2602.12342); see "Differs" in this module.

    Args:
        trajectory: The rollout to credit.
        soft: As in `value_difference`; s_j is then the probability. The paper uses its logarithm,
            with which the least likely of n questions would dominate the mean.
    """
    return _gains_plan(
        trajectory,
        lambda gains, _: [_mean([max(0.0, gain) for gain in step]) for step in gains],
        soft,
    )


@replayed
def gated_utility(trajectory: Trajectory, *, floor: float = 0.1) -> Plan:
    """Return ``(1/n) sum_j h_jt u_jt`` with the local utility ``u_jt = s_j(M_t) - s_j(M_{t-1})``.

    The gate ``h_jt = floor + (1 - floor) x support`` weights the utility by the final outcome. The
    support of a gain is s_j, the final score of the question; the support of a loss is 1 - s_j. So
    a gain counts fully if the question was answered in the end, a loss if it was not. In [-1, 1];
    `None` where r_global is `None`. Source: HiMPO (arXiv 2606.16285); see "Differs" in this module.

    Args:
        trajectory: The rollout to credit.
        floor: Weight of a utility that the outcome does not support, in [0, 1]; at 1 this is
            `value_difference` with lambda 0.

    Raises:
        ValueError: `floor` is out of range.
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

    return _gains_plan(trajectory, credit)


@replayed
def later_chunk_reward(trajectory: Trajectory, *, delay: int | Literal["end"] = "end") -> Plan:
    """Return the mean score of the chunk questions of step t, read from M_{t+d} instead of M_t.

    ``M_{t+d}`` is M_T where t + d exceeds T. At d = 0 this is the recorded chunk-level step reward.
    An item that a later step evicted no longer counts; a fact without a global question still
    counts. In [0, 1]; `None` where the step has no scorable chunk question. Source: Fine-Mem (arXiv
    2601.08435), CSR; the delay is ours.

    Args:
        trajectory: The rollout to credit.
        delay: d, in steps, at least 0; "end" asks all chunk questions on M_T.

    Raises:
        ValueError: `delay` is negative, or no step has a chunk question.
    """
    if delay != "end" and delay < 0:
        raise ValueError(f"csr-later: delay is {delay}, expected at least 0 steps or 'end'")
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
    """Return the plan of a rule on the gains, the change of each question's score at each step.

    Args:
        trajectory: The rollout to credit.
        credit_of: Returns the credit, given the gains per step and question, and the final scores.
        soft: Whether the rows are probabilities, including a row for M_T.
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
    """Return the discounted return of every step: its reward plus lambda times the next return."""
    returns = [0.0]
    for reward in reversed(rewards):
        returns.append(reward + lambda_ * returns[-1])
    return [*reversed(returns[1:])]
