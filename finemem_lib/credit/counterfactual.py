"""Rules that ask "and without it?": leave-one-out, Shapley, Owen, and potential differences."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

from finemem_lib.credit.marginals import _leave_one_out, _Marginal, _owen, _sets, _shapley, _sums
from finemem_lib.credit.needs import _FAILED, Credit, _check_agent, _held, _mean, _need
from finemem_lib.credit.replay import Orphaned, World
from finemem_lib.reading import ReasoningAgent, reading_task
from finemem_lib.rewards import Attribution, attributed_steps, outcome_reward
from finemem_lib.scoring import score
from finemem_lib.seeds import generator
from finemem_lib.trajectory import Question, Trajectory


def evidence_leave_one_out(
    trajectory: Trajectory, *, agent: ReasoningAgent, attribution: Attribution = "last_write"
) -> Credit:
    """Return ``(1/n) sum_j sum_{m in M_j, phi(m) = t} (s_j(M_j) - s_j(M_j without m))``.

    Reads each question once per retrieved item. Conserves nothing: two items that say the same earn
    nothing, two that are needed together earn the answer twice. In [-1, 1] per question and item.

    Raises:
        ValueError: no global question was asked, or `agent` is not the one that answered or fails.
    """
    return _evidence_credit(trajectory, agent, attribution, _leave_one_out)


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
    most 4 items (``2^k - 1`` calls per question, the full set being recorded), else the mean over
    `permutations` random orders. Either way the sum over the steps is ``(1/n) sum_j (s_j - s_j
    read from nothing)``, where a question that retrieved nothing counts 0. Source: Shapley (1953).

    Raises:
        ValueError: no global question was asked, or `agent` is not the one that answered or fails.
    """
    rng = generator("evidence shapley", seed, trajectory.instance_id, trajectory.rollout)
    return _evidence_credit(
        trajectory, agent, attribution, lambda items: _shapley(items, permutations, rng)
    )


def step_leave_one_out(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    orphaned: Orphaned = "refuse",
    world: World | None = None,
) -> Credit:
    """Return ``r_global - r_global(the memory that all steps but t leave)``: what the step caused.

    In [-1, 1], negative where the step did harm. Conserves nothing. `orphaned` is that of
    `memory.replay`: whether a later UPDATE of an item that the missing step created is refused (so
    the creating step earns, with the updating one, what it says now) or stored all the same.

    Raises:
        ValueError: no global question was asked, the trajectory cannot be replayed, or `agent` is
            not the one that answered or fails.
    """
    return _step_credit(trajectory, world or World(trajectory, agent), orphaned, _leave_one_out)


def step_shapley(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    orphaned: Orphaned = "refuse",
    permutations: int = 16,
    seed: int = 0,
    world: World | None = None,
) -> Credit:
    """Return the Shapley value of every step; v(S) is r_global of the memory that S alone leaves.

    Exact for at most 4 steps that emitted an operation, else the mean over `permutations` random
    orders. Either way the sum is r_global less that of the empty memory. Source: Shapley (1953);
    Castro et al. (2009) for the sampling.

    Raises:
        ValueError: as `step_leave_one_out`.
    """
    rng = generator("step shapley", seed, trajectory.instance_id, trajectory.rollout)
    return _step_credit(
        trajectory,
        world or World(trajectory, agent),
        orphaned,
        lambda steps: _shapley(steps, permutations, rng),
    )


def owen_values(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    orphaned: Orphaned = "refuse",
    alpha: float = 1.0,
    world: World | None = None,
) -> Credit:
    """Return ``alpha Owen_t + (1 - alpha) [t = T] r_global``.

    Owen_t is the Shapley value over the orders that keep the halves of the steps together, and the
    halves of these, and so on: at most T^2 sets of steps instead of 2^T, exact for that
    structure. The Owen values sum to r_global less that of the empty memory. Source: SCAR (arXiv
    2505.20417); Owen (1977).

    Raises:
        ValueError: as `step_leave_one_out`.
    """
    steps = range(1, trajectory.num_steps + 1)  # also those that did nothing: halves of the stream
    shared = _step_credit(
        trajectory, world or World(trajectory, agent), orphaned, lambda _: _owen(steps)
    )
    outcome = outcome_reward(trajectory)
    return [
        None
        if part is None or outcome is None
        else alpha * part + (1 - alpha) * outcome * (step == trajectory.num_steps)
        for step, part in enumerate(shared, start=1)
    ]


def potential_shaping(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    probes: Sequence[Question],
    gamma: float = 1.0,
    world: World | None = None,
) -> Credit:
    """Return ``gamma Phi(M_t) - Phi(M_{t-1})``, at the last step ``r_global - Phi(M_{T-1})``.

    Phi(M) is the mean score of the probe questions asked on M; after the end it is 0, which is what
    keeps the optimal policy. ``sum_t gamma^(t-1) r_t = gamma^(T-1) r_global - Phi(M_0)``, where M_0
    is the empty memory. `None` where r_global is. Source: Ng, Harada and Russell (1999).

    Raises:
        ValueError: there is no probe question that can be scored, the trajectory cannot be
            replayed, or `agent` is not the one that answered or fails.
    """
    _need(trajectory.questions, trajectory, "a global question", "play it with questions")
    _need(probes, trajectory, "probe questions", "pass probes=, say its chunk questions")
    outcome = outcome_reward(trajectory)
    if outcome is None:
        return [None] * trajectory.num_steps
    world = world or World(trajectory, agent)
    steps = range(1, trajectory.num_steps + 1)
    rows = world.scores(probes, [frozenset(steps[t:]) for t in range(trajectory.num_steps)])
    potentials = [_mean(row) for row in rows]
    _need(
        None not in potentials,
        trajectory,
        "a probe question that can be scored",
        "pass probes with answers, from a data source that has a metric",
    )
    return [gamma * after - before for before, after in itertools.pairwise(potentials)] + [
        outcome - potentials[-1]
    ]


def _evidence_credit(
    trajectory: Trajectory,
    agent: ReasoningAgent,
    attribution: Attribution,
    marginals_of: Callable[[Sequence[str]], list[_Marginal]],
) -> Credit:
    _need(trajectory.questions, trajectory, "a global question", "play it with questions")
    _check_agent(trajectory, agent)
    scored = [answered for answered in trajectory.questions if answered.score is not None]
    if not scored:
        return [None] * trajectory.num_steps
    held = {item.item_id: item for item in trajectory.final_memory()}
    games, unread = [], []
    for answered in scored:
        items = _held(trajectory, held, answered)
        marginals = marginals_of(list(items))
        values = dict.fromkeys(_sets(marginals))
        values[frozenset(items)] = answered.score
        games.append((answered, marginals, values))
        unread += [
            (answered.question, items, values, some) for some in values if values[some] is None
        ]
    readings = agent.read(
        [
            reading_task(question, [items[item_id] for item_id in items if item_id in some])
            for question, items, _, some in unread
        ]
    )
    for (question, _, values, some), reading in zip(unread, readings, strict=True):
        values[some] = score(reading.answer, question.answers, question.data_source)
        _need(values[some] is not None, trajectory, *_FAILED)
    credit = [0.0] * trajectory.num_steps
    for answered, marginals, values in games:
        gains = _sums(marginals, values.__getitem__)
        for item in answered.retrieved:
            steps = attributed_steps(item, attribution)
            for step in steps:
                credit[step - 1] += gains[item.item_id] / (len(steps) * len(scored))
    return credit


def _step_credit(
    trajectory: Trajectory,
    world: World,
    orphaned: Orphaned,
    marginals_of: Callable[[Sequence[int]], list[_Marginal]],
) -> Credit:
    _need(trajectory.questions, trajectory, "a global question", "play it with questions")
    outcome = outcome_reward(trajectory)
    if outcome is None:
        return [None] * trajectory.num_steps
    # A step that emitted nothing but SKIP is a player whose every marginal is 0.
    active = frozenset(
        step.step
        for step in trajectory.steps
        if any(o.operation is not None and o.operation.kind != "SKIP" for o in step.outcomes)
    )
    marginals = marginals_of(sorted(active))
    values = {active: outcome}
    unread = [s for s in dict.fromkeys(s & active for s in _sets(marginals)) if s != active]
    questions = [a.question for a in trajectory.questions if a.score is not None]
    rows = world.scores(questions, [active - some for some in unread], orphaned)
    _need(all(None not in row for row in rows), trajectory, *_FAILED)
    values.update(zip(unread, map(_mean, rows), strict=True))
    gains = _sums(marginals, lambda some: values[some & active])
    return [gains.get(step.step, 0.0) for step in trajectory.steps]
