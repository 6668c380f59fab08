"""Counterfactual credit rules: leave-one-out, Shapley and Owen values, and potential shaping.

`replay.replayed`, which makes the rules of steps and operations, describes their arguments agent,
orphaned, replay and batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from finemem_lib.credit.marginals import (
    Marginal,
    coalitions,
    leave_one_out,
    owen,
    player_values,
    sampled_owen,
    shapley,
)
from finemem_lib.credit.needs import (
    Credit,
    OperationCredit,
    answered_again,
    mean_of_known,
    need,
    need_agent,
    need_questions,
    retrieved_items,
)
from finemem_lib.credit.replay import Plan, Replayer, Rows, replayed
from finemem_lib.reading import ReasoningAgent, reading_task
from finemem_lib.rewards import Attribution, attributed_steps, outcome_reward
from finemem_lib.scoring import score
from finemem_lib.seeds import generator
from finemem_lib.trajectory import Question, Trajectory


def evidence_leave_one_out(
    trajectory: Trajectory, *, agent: ReasoningAgent, attribution: Attribution = "last_write"
) -> Credit:
    """Return ``(1/n) sum_j sum_{m in M_j, phi(m) = t} (s_j(M_j) - s_j(M_j without m))``.

    The agent reads each question once per retrieved item. Nothing is conserved: of two redundant
    items neither earns credit; two items that are needed together each earn the whole score. In
    [-1, 1] per question and item.

    Args:
        trajectory: The rollout to credit.
        agent: The reasoning agent that answered its questions.
        attribution: The step phi(m) that receives an item's credit, see `RewardSettings`.

    Raises:
        ValueError: no global question was asked, another agent answered them, or `agent` fails.
    """
    return _evidence_credit(trajectory, agent, attribution, leave_one_out)


def evidence_shapley(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    attribution: Attribution = "last_write",
    permutations: int = 16,
    seed: int = 0,
) -> Credit:
    """Return the Shapley values of the retrieved items, summed over questions by phi(m) = t.

    v(S) is the score of question j read from the items S of M_j only, divided by n. Exact for at
    most 4 items (``2^k - 1`` calls per question, because the score of the full set is recorded),
    else sampled. In both cases the sum over the steps is ``(1/n) sum_j (s_j - s_j read from no
    item)``, where a question that retrieved nothing counts 0. Source: Shapley (1953).

    Args:
        trajectory: The rollout to credit.
        agent: The reasoning agent that answered its questions.
        attribution: The step phi(m) that receives an item's credit, see `RewardSettings`.
        permutations: Number of random orders for more than 4 items, at least 1.
        seed: Seed of the random orders.

    Raises:
        ValueError: no global question was asked, another agent answered them, or `agent` fails.
    """
    rng = generator("evidence shapley", seed, trajectory.instance_id, trajectory.rollout)
    return _evidence_credit(
        trajectory, agent, attribution, lambda items: shapley(items, permutations, rng)
    )


@replayed
def step_leave_one_out(trajectory: Trajectory) -> Plan:
    """Return ``r_global - r_global(replay without step t)``, the causal effect of the step.

    In [-1, 1], negative where the step lowered the outcome. Nothing is conserved. With `orphaned`
    "refuse", both the step that created an item and a step that updated it earn credit for the
    item's final content.

    Args:
        trajectory: The rollout to credit.
    """
    return _step_plan(trajectory, leave_one_out)


@replayed
def operation_leave_one_out(trajectory: Trajectory) -> Plan:
    """Return ``r_global - r_global(replay without the operation)`` per operation, and step sums.

    In [-1, 1] per operation; 0.0 for SKIP and for an operation that was not applied, because
    omitting it changes nothing. Nothing is conserved: a step's sum differs from
    `step_leave_one_out` where its operations are redundant or depend on each other. Source:
    leave-one-out, by replay.

    Args:
        trajectory: The rollout to credit.
    """
    need_questions(trajectory)
    outcome = outcome_reward(trajectory)
    places = [
        [
            done.applied and done.operation is not None and done.operation.kind != "SKIP"
            for done in step.outcomes
        ]
        for step in trajectory.steps
    ]
    if outcome is None:
        return (), lambda rows: OperationCredit([[None] * len(step) or [None] for step in places])
    questions = [a.question for a in trajectory.questions if a.score is not None]
    asked = [
        (questions, frozenset({(step, place)}))
        for step, applied in enumerate(places, start=1)
        for place, there in enumerate(applied)
        if there
    ]

    def credit(rows: Rows) -> Credit:
        without = iter(rows)
        return OperationCredit(
            [
                [outcome - _answered(next(without), trajectory) if there else 0.0 for there in step]
                for step in places
            ]
        )

    return asked, credit


@replayed
def step_shapley(trajectory: Trajectory, *, permutations: int = 16, seed: int = 0) -> Plan:
    """Return the Shapley value of every step, where v(S) is r_global after replaying only S.

    Exact for at most 4 steps that emitted an operation other than SKIP, else sampled. In both cases
    the sum is r_global minus the r_global of the empty memory. Source: Shapley (1953); Castro et
    al. (2009) for the sampling.

    Args:
        trajectory: The rollout to credit.
        permutations: Number of random orders for more than 4 steps, at least 1.
        seed: Seed of the random orders.
    """
    rng = generator("step shapley", seed, trajectory.instance_id, trajectory.rollout)
    return _step_plan(trajectory, lambda steps: shapley(steps, permutations, rng))


@replayed
def owen_values(
    trajectory: Trajectory, *, alpha: float = 1.0, permutations: int | None = None, seed: int = 0
) -> Plan:
    """Return ``alpha Owen_t + (1 - alpha) [t = T] r_global``.

    Owen_t is the Shapley value over the orders that keep each half of the steps together, each half
    of these halves, and so on. It is exact for this structure and needs at most T^2 sets of steps
    instead of 2^T. The Owen values sum to r_global minus the r_global of the empty memory. Source:
    SCAR (arXiv 2505.20417); Owen (1977).

    Args:
        trajectory: The rollout to credit.
        alpha: Share of the Owen values, in [0, 1].
        permutations: Number of random orders for an estimate, at least 1; `None`: exact values.
        seed: Seed of the random orders.
    """
    steps = range(1, trajectory.num_steps + 1)  # inactive ones too: the halves divide the stream
    if permutations is None:
        marginals = owen(steps)
    else:
        rng = generator("owen", seed, trajectory.instance_id, trajectory.rollout)
        marginals = sampled_owen(steps, permutations, rng)
    asked, owen_credit = _step_plan(trajectory, lambda _: marginals)
    outcome = outcome_reward(trajectory)

    def credit(rows: Rows) -> Credit:
        return [
            None
            if part is None or outcome is None
            else alpha * part + (1 - alpha) * outcome * (step == trajectory.num_steps)
            for step, part in enumerate(owen_credit(rows), start=1)
        ]

    return asked, credit


def potential_shaping(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    probes: Sequence[Question],
    gamma: float = 1.0,
    replay: Replayer | None = None,
) -> Credit:
    """Return ``gamma Phi(M_t) - Phi(M_{t-1})``, at the last step ``r_global - Phi(M_{T-1})``.

    Phi(M) is the mean score of the probe questions on M; the potential after the end is 0, which
    leaves the optimal policy unchanged. ``sum_t gamma^(t-1) r_t = gamma^(T-1) r_global -
    Phi(M_0)``, where M_0 is the empty memory. `None` where r_global is `None`. Source: Ng, Harada
    and Russell (1999).

    Args:
        trajectory: The rollout to credit.
        agent: The reasoning agent that answered its questions.
        probes: Questions asked on every memory; at least one must be scorable.
        gamma: Discount per step.
        replay: `Replayer` of this trajectory with scores from other rules.

    Raises:
        ValueError: no probe question can be scored, the trajectory cannot be replayed, another
            agent answered, or `agent` fails.
    """
    need_questions(trajectory)
    need(probes, trajectory, "probe questions", "pass probes=, for example its chunk questions")
    outcome = outcome_reward(trajectory)
    if outcome is None:
        return [None] * trajectory.num_steps
    replay = replay or Replayer(trajectory, agent)
    steps = range(1, trajectory.num_steps + 1)
    rows = replay.ask([(probes, frozenset(steps[t:])) for t in range(trajectory.num_steps)])
    potentials = [mean for row in rows if (mean := mean_of_known(row)) is not None]
    need(
        len(potentials) == len(rows),
        trajectory,
        "a probe question that can be scored",
        "pass probes with answers, from a data source that has a metric",
    )
    return [
        *(gamma * after - before for before, after in itertools.pairwise(potentials)),
        outcome - potentials[-1],
    ]


def _evidence_credit(
    trajectory: Trajectory,
    agent: ReasoningAgent,
    attribution: Attribution,
    marginals_of: Callable[[Sequence[str]], list[Marginal[str]]],
) -> Credit:
    """Return the credit of every step: the values of the retrieved items attributed to it."""
    need_questions(trajectory)
    need_agent(trajectory, agent)
    held = {item.item_id: item for item in trajectory.final_memory()}
    games, unread, tasks = [], [], []
    for answered in trajectory.questions:
        if answered.score is None:
            continue
        items = retrieved_items(trajectory, held, answered)
        marginals, everything = marginals_of(list(items)), frozenset(items)
        values = {everything: answered.score}
        games.append((answered, marginals, values))
        for some in coalitions(marginals):
            if some != everything:
                shown = [item for item_id, item in items.items() if item_id in some]
                unread.append((answered.question, values, some))
                tasks.append(reading_task(answered.question, shown))
    if not games:
        return [None] * trajectory.num_steps
    for (question, values, some), reading in zip(unread, agent.read(tasks), strict=True):
        read = score(reading.answer, question.answers, question.data_source)
        values[some] = answered_again(read, trajectory)
    credit = [0.0] * trajectory.num_steps
    for answered, marginals, values in games:
        gains = player_values(marginals, values.__getitem__)
        for item in answered.retrieved:
            steps = attributed_steps(item, attribution)
            for step in steps:
                credit[step - 1] += gains[item.item_id] / (len(steps) * len(games))
    return [*credit]


def _answered(row: Sequence[float | None], trajectory: Trajectory) -> float:
    """Return the mean of the scores; raise ValueError if one is `None`."""
    return answered_again(None if None in row else mean_of_known(row), trajectory)


def _step_plan(
    trajectory: Trajectory, marginals_of: Callable[[Sequence[int]], list[Marginal[int]]]
) -> Plan:
    """Return the plan for the value of every step, where v(S) is the outcome after replaying S."""
    need_questions(trajectory)
    outcome = outcome_reward(trajectory)
    if outcome is None:
        return (), lambda rows: [None] * trajectory.num_steps
    # All marginals of a step that emitted only SKIP are 0.
    active = frozenset(
        step.step
        for step in trajectory.steps
        if any(o.operation is not None and o.operation.kind != "SKIP" for o in step.outcomes)
    )
    marginals = marginals_of(sorted(active))
    unread = [s for s in dict.fromkeys(s & active for s in coalitions(marginals)) if s != active]
    questions = [a.question for a in trajectory.questions if a.score is not None]

    def credit(rows: Rows) -> Credit:
        values = {active: outcome}
        for some, row in zip(unread, rows, strict=True):
            values[some] = _answered(row, trajectory)
        gains = player_values(marginals, lambda some: values[some & active])
        return [gains.get(step.step, 0.0) for step in trajectory.steps]

    return [(questions, active - some) for some in unread], credit
