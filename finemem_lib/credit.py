"""Credit rules: other answers to "which step earned this?", on the same trajectories.

Every rule reads ``(trajectory, **settings)`` and returns one entry per step, indexed by
``step - 1``; `None` means that nothing could be measured there. `RULES` says of each its formula,
source, what it conserves and what it needs; `assign` applies one by name and counts the reader
calls that it takes beyond those of the outcome: the answers to the global questions at the end,
which every rule may read, count for none. T is the number of steps, n the number of global
questions that could be scored; a question that could not be scored is left out, as in `rewards`.
A rule that needs what a trajectory lacks raises a ValueError that says what is missing and how to
get it.

Rules that ask "and without it?" need the reasoning agent that answered. The score with everything
in place is the recorded one and never read again. The evidence rules take items away from what was
retrieved and read the rest; the step rules take steps away, replay the others (`memory.replay`
says what becomes of operations on an item that is missing then), retrieve and read again. What
leaves the evidence of a question as it was costs no call: `assign` knows what the outcome read.

Differs from the papers: the actions are the steps of one memory manager, and the outcome is the
outcome reward, whatever the paper's own were. MT-GRPO's turn reward is the chunk-level step
reward. GiGPO's anchor states are equal memories before the same chunk; forked memories share none.
Mem-T's advantage of a leaf is that of the question among the rollouts, not of a tree; MemBuilder
weights the gradient of its stores, and as a flat memory has one, the steps take their place and the
weight is on their advantages, which scales the gradient alike; SCAR splits a text, here the steps
are halved again and again. These are the rules carried over, not reproductions.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeVar

from finemem_lib.advantages import ScaleRewards, group_relative
from finemem_lib.memory import FlatMemory, Orphaned, replay
from finemem_lib.reasoning import (
    Inquiry,
    MemoisedAgent,
    Reading,
    ReadingTask,
    ReasoningAgent,
    answer_questions,
    reading_task,
)
from finemem_lib.repro import generator
from finemem_lib.retrieval import Retriever, make_retriever
from finemem_lib.rewards import (
    Attribution,
    RewardSettings,
    attributed_steps,
    chunk_rewards,
    eara_rewards,
    outcome_reward,
)
from finemem_lib.scoring import score
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import (
    AnsweredQuestion,
    MemoryDelta,
    MemoryItem,
    Question,
    Step,
    Trajectory,
    creation_key,
)

EXACT_PLAYERS = 4
"""Shapley values of at most this many items or steps are exact, of more they are sampled."""

Player = TypeVar("Player", bound=Hashable)
Credit = list[float | None]
Known = TypeVar("Known")


class Together(tuple[Trajectory, ...]):
    """The rollouts of one group, and what rules computed of all of them.

    A rule that is asked about each rollout with the same `Together` as its group computes what the
    rollouts share once, instead of once for each.
    """

    def once(self, what: Hashable, compute: Callable[[], Known]) -> Known:
        """Return what was computed under this name, computing it the first time."""
        known: dict[Hashable, Any] = self.__dict__
        if what not in known:
            known[what] = compute()
        return known[what]


# ---- from what was recorded ----------------------------------------------------------------------


def outcome_broadcast(trajectory: Trajectory) -> Credit:
    """Return the outcome reward at every step, as GRPO on the outcome alone pays it.

    The mean over the steps is r_global. In [0, 1]. Source: GRPO (arXiv 2402.03300), outcome
    supervision.

    Raises:
        ValueError: no global question was asked, or a score is out of range.

    >>> from finemem_lib.rewards import worked_example
    >>> outcome_broadcast(worked_example())
    [0.75, 0.75, 0.75, 0.75]
    """
    _need(trajectory.questions, trajectory, "a global question", "play it with questions")
    return [outcome_reward(trajectory)] * trajectory.num_steps


def uniform_split(trajectory: Trajectory) -> Credit:
    """Return ``r_global / T`` at every step; the sum is r_global. In [0, 1].

    Raises:
        ValueError: as `outcome_broadcast`.

    >>> from finemem_lib.rewards import worked_example
    >>> uniform_split(worked_example())
    [0.1875, 0.1875, 0.1875, 0.1875]
    """
    return [
        None if reward is None else reward / trajectory.num_steps
        for reward in outcome_broadcast(trajectory)
    ]


def chunk_step_reward(trajectory: Trajectory) -> Credit:
    """Return the chunk-level step reward of every step (`rewards.chunk_rewards`), in [0, 1].

    Source: Fine-Mem (arXiv 2601.08435), CSR.

    Raises:
        ValueError: no step was asked a chunk question, or a score is out of range.
    """
    _need(
        any(step.chunk_questions for step in trajectory.steps), trajectory, "chunk questions",
        "make some (notebook 01) and play with ask_chunk_questions",
    )
    return chunk_rewards(trajectory)


def evidence_anchored(trajectory: Trajectory, **switches: Any) -> Credit:
    """Return the evidence-anchored reward (`rewards.eara_rewards`); `switches` are beta,
    attribution, credited and unretrieved of `RewardSettings`.

    The sum is r_global, unless `unretrieved` is "drop". Source: Fine-Mem, EARA.

    Raises:
        ValueError: no global question was asked, a switch or a score is out of range, or credit
            goes to the items that were used and no answer says which.

    >>> from finemem_lib.rewards import worked_example
    >>> evidence_anchored(worked_example(), beta=1.0)
    [0.25, 0.0, 0.5, 0.0]
    """
    settings = RewardSettings(**switches)
    _need(trajectory.questions, trajectory, "a global question", "play it with questions")
    _need(
        settings.credited == "retrieved" or any(a.used is not None for a in trajectory.questions),
        trajectory, "answers that name the items they used",
        "take a reasoning agent that says so, or credited='retrieved'",
    )
    return eara_rewards(trajectory, settings)


def evidence_anchored_used(trajectory: Trajectory, **switches: Any) -> Credit:
    """Return `evidence_anchored` with the credit going to the used items only.

    Raises:
        ValueError: as `evidence_anchored`.
    """
    return evidence_anchored(trajectory, **{**switches, "credited": "used"})


# ---- from the other rollouts ---------------------------------------------------------------------


def turn_level(
    trajectory: Trajectory,
    *,
    group: Sequence[Trajectory],
    coefficient: float = 1.0,
    turns: Literal["first", "all"] = "first",
    scale_rewards: ScaleRewards = "group",
) -> Credit:
    """Return the turn-level advantage ``A_outcome + coefficient A_turn(t)``.

    Both are group-relative over the rollouts in `group`, the trajectory among them; the turn reward
    is r_chunk(t). It enters at step 1 (`turns` "first", as in the published two-turn code) or at
    every step that has one ("all"); elsewhere the advantage is A_outcome. The rollouts' advantages
    at a step sum to 0. `None` where r_global is. Source: MT-GRPO (arXiv 2505.11821).

    Raises:
        ValueError: `group` is not one group of the trajectory, or there are no chunk questions.
    """
    rollouts, place = _rollouts(trajectory, group)
    outcome = _outcome_advantages(rollouts, scale_rewards)[place]
    # A rollout without an outcome gets no advantage, so it takes no part in the turns either.
    turn = rollouts.once(("turn", scale_rewards), lambda: group_relative([
        [None] * one.num_steps if outcome_reward(one) is None else chunk_step_reward(one)
        for one in rollouts
    ], scale_rewards))[place]
    return [
        outcome if outcome is None or advantage is None or (turns == "first" and step > 1)
        else outcome + coefficient * advantage
        for step, advantage in enumerate(turn, start=1)
    ]


def anchored_groups(
    trajectory: Trajectory,
    *,
    group: Sequence[Trajectory],
    omega: float = 1.0,
    gamma: float = 0.95,
    scale_rewards: ScaleRewards = "group",
) -> Credit:
    """Return ``A_episode + omega A_step(t)``.

    A_episode is the group-relative outcome reward. A_step(t) is the return
    ``gamma^(T-t) r_global``, relative to the rollouts that stood in the same state at step t: the
    same contents in memory, in the same order, before the same chunk; 0 where no other rollout did.
    With `scale_rewards` "batch" all returns that are compared, at whatever step, share one standard
    deviation. The rollouts' advantages at a step sum to 0. `None` where r_global is. Source: GiGPO
    (arXiv 2505.10978).

    Raises:
        ValueError: `group` is not one group of the trajectory.
    """
    rollouts, place = _rollouts(trajectory, group)
    episode = _outcome_advantages(rollouts, scale_rewards)[place]
    if episode is None:
        return [None] * trajectory.num_steps
    anchored = rollouts.once(("anchored", gamma, scale_rewards),
                             lambda: _anchored(rollouts, gamma, scale_rewards))
    return [episode + omega * local for local in anchored[place]]


def _anchored(
    rollouts: Together, gamma: float, scale_rewards: ScaleRewards
) -> list[list[float]]:
    """Return A_step(t) of `anchored_groups` for every rollout with an outcome (0 for others)."""
    num_steps = rollouts[0].num_steps
    outcomes = [outcome_reward(one) for one in rollouts]
    groups = []  # (step, the rollouts in one state), where there are two of them at least
    for step, states in enumerate(zip(*map(_states, rollouts), strict=True)):
        alike = defaultdict(list)
        for rollout, state in enumerate(states):
            if outcomes[rollout] is not None:
                alike[state].append(rollout)
        groups += [(step, members) for members in alike.values() if len(members) > 1]
    returns = [
        [gamma ** (num_steps - 1 - step) * outcome if rollout in members else None
         for step, members in groups]
        for rollout, outcome in enumerate(outcomes)
    ]
    scaled = group_relative(returns, scale_rewards)
    local = [[0.0] * num_steps for _ in rollouts]
    for column, (step, members) in enumerate(groups):
        for rollout in members:
            local[rollout][step] = scaled[rollout][column]
    return local


def hindsight(
    trajectory: Trajectory,
    *,
    group: Sequence[Trajectory],
    retrieved_weight: float = 0.1,
    scale_rewards: ScaleRewards = "group",
) -> Credit:
    """Return ``S_t = (1/n) sum_j ([t in E_j] + lambda [t wrote an item in M_j]) A_j``.

    A_j is the advantage of the rollout's score on question j among the rollouts in `group`, E_j
    the steps whose chunks hold the evidence (the truth, which no other rule sees), M_j what was
    retrieved, lambda `retrieved_weight`. A step that wrote nothing gets 0. At lambda 0 the rollouts
    sum to 0 at every step at which all of them wrote. `None` where no question could be scored.
    Source: Mem-T, hindsight credit of memory construction.

    Raises:
        ValueError: `group` is not one group of the trajectory, or a question has no evidence
            steps.
    """
    rollouts, place = _rollouts(trajectory, group)
    for answered in trajectory.questions:
        _need(
            answered.question.evidence_steps is not None, trajectory,
            f"the evidence steps of question {answered.question.question_id!r}",
            "take data whose truth is known, such as the planted stream",
        )
    advantages = rollouts.once(("questions", scale_rewards), lambda: group_relative(
        [[answered.score for answered in one.questions] for one in rollouts], scale_rewards
    ))[place]
    scored = [
        (answered, advantage)
        for answered, advantage in zip(trajectory.questions, advantages, strict=True)
        if advantage is not None
    ]
    if not scored:
        return [None] * trajectory.num_steps
    parts: defaultdict[int, list[float]] = defaultdict(list)
    for answered, advantage in scored:
        told = set(answered.question.evidence_steps)
        wrote = {step for item in answered.retrieved for step in item.steps}
        for step in told | wrote:
            parts[step].append(((step in told) + retrieved_weight * (step in wrote)) * advantage)
    return [
        math.fsum(parts[step.step]) / len(scored) if step.delta.written else 0.0
        for step in trajectory.steps
    ]


def attributed_dense(
    trajectory: Trajectory,
    *,
    group: Sequence[Trajectory],
    alpha: float = 4.0,
    length_weight: float = 0.1,
    scale_rewards: ScaleRewards = "group",
) -> Credit:
    """Return ``w_t A(valid_t r_chunk(t) (1 - lambda l_t))``.

    valid_t is 1 where every operation of the step was applied (0 where it emitted none), l_t the
    length of what the step wrote over that of its chunk, at most 1, lambda `length_weight` (its
    value is ours), and A the advantage among the rollouts in `group`. w_t is `alpha` at the step
    whose items the global questions retrieved most (at each of them, where several tie), else 1; it
    comes after A, for standardising would cancel a weight that the rollouts share. At alpha 1 the
    rollouts' advantages at a step sum to 0. `None` where r_chunk is. Source: MemBuilder (arXiv
    2601.05488), attributed dense reward.

    Raises:
        ValueError: as `turn_level`.
    """
    rollouts, place = _rollouts(trajectory, group)
    advantages = rollouts.once(("dense", length_weight, scale_rewards), lambda: group_relative([
        [None if reward is None else _unspoilt(step, length_weight) * reward
         for step, reward in zip(one.steps, chunk_step_reward(one), strict=True)]
        for one in rollouts
    ], scale_rewards))
    hits = Counter(
        item.steps[-1] for answered in trajectory.questions for item in answered.retrieved
    )
    most = max(hits.values(), default=0)
    return [
        None if advantage is None
        else (alpha if most and hits[step] == most else 1.0) * advantage
        for step, advantage in enumerate(advantages[place], start=1)
    ]


def _unspoilt(step: Step, length_weight: float) -> float:
    """Return ``valid_t (1 - lambda l_t)`` of `attributed_dense`."""
    valid = bool(step.outcomes) and all(outcome.applied for outcome in step.outcomes)
    written = sum(count_tokens(item.content) for item in step.delta.written)
    return valid * (1 - length_weight * min(1.0, written / max(1, step.chunk.tokens)))


# ---- with the reader: take items away from the evidence ------------------------------------------


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


# ---- with the reader: take steps away from the trajectory ----------------------------------------


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
        trajectory, world or World(trajectory, agent), orphaned,
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
        None if part is None or outcome is None
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
    _need(None not in potentials, trajectory, "a probe question that can be scored",
          "pass probes with answers, from a data source that has a metric")
    return [gamma * after - before for before, after in itertools.pairwise(potentials)] + [
        outcome - potentials[-1]
    ]


# ---- one way to ask "and without it?" ------------------------------------------------------------


class _Marginal(NamedTuple):
    """``weight (v(others and player) - v(others))`` goes to the player."""

    player: Any
    weight: float
    others: frozenset


def _leave_one_out(players: Sequence[Player]) -> list[_Marginal]:
    return [_Marginal(one, 1.0, frozenset(players) - {one}) for one in players]


def _shapley(
    players: Sequence[Player], permutations: int, rng: random.Random
) -> list[_Marginal]:
    """Return all marginals of a few players, weighted |S|! (N-|S|-1)! / N!, or sampled ones."""
    n = len(players)
    if n <= EXACT_PLAYERS:
        return [
            _Marginal(one, 1 / (n * math.comb(n - 1, size)), frozenset(others))
            for one in players
            for size in range(n)
            for others in itertools.combinations([p for p in players if p != one], size)
        ]
    if permutations < 1:
        raise ValueError(f"Shapley values: permutations is {permutations}, expected at least 1")
    orders = [rng.sample(players, n) for _ in range(permutations)]
    return [
        _Marginal(order[place], 1 / permutations, frozenset(order[:place]))
        for order in orders for place in range(n)
    ]


def _owen(players: Sequence[Player]) -> list[_Marginal]:
    """Return the marginals of the Owen values for nested halves: at every level the other half is
    all there or all absent, each with weight 1/2."""

    def split(part: Sequence[Player], others: frozenset, weight: float) -> list[_Marginal]:
        if len(part) <= 1:
            return [_Marginal(one, weight, others) for one in part]
        halves = part[: len(part) // 2], part[len(part) // 2 :]
        return [
            marginal
            for half, other in (halves, halves[::-1])
            for beside in (frozenset(), frozenset(other))
            for marginal in split(half, others | beside, weight / 2)
        ]

    return split(players, frozenset(), 1.0)


def _sums(
    marginals: Iterable[_Marginal], value: Callable[[frozenset], float]
) -> dict[Any, float]:
    parts: defaultdict[Any, list[float]] = defaultdict(list)
    for player, weight, others in marginals:
        parts[player].append(weight * (value(others | {player}) - value(others)))
    return {player: math.fsum(terms) for player, terms in parts.items()}


def _sets(marginals: Iterable[_Marginal]) -> dict[frozenset, None]:
    """Return the sets whose value the marginals need, each once."""
    return dict.fromkeys(
        wanted for one in marginals for wanted in (one.others, one.others | {one.player})
    )


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
        unread += [(answered.question, items, values, some) for some in values
                   if values[some] is None]
    readings = agent.read([
        reading_task(question, [items[item_id] for item_id in items if item_id in some])
        for question, items, _, some in unread
    ])
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


def _held(
    trajectory: Trajectory, held: Mapping[str, MemoryItem], answered: AnsweredQuestion
) -> dict[str, MemoryItem]:
    """Return the retrieved items by id, as the memory holds them, in the order of retrieval."""
    ids = [item.item_id for item in answered.retrieved]
    _need(held.keys() >= set(ids), trajectory, f"an item among {ids} in its memory",
          "the trajectory was cut or joined; play the instance again")
    return {item_id: held[item_id] for item_id in ids}


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
        step.step for step in trajectory.steps
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


class World:
    """The memory, retrieval and reasoning agent that a trajectory was played with, to ask what
    would be answered without some of its steps.

    It remembers every score, so rules (and parts of the trajectory's questions) that are given the
    same world ask nothing twice; `through` another agent all is asked again, on the same memories.

    Raises:
        ValueError: the trajectory does not say how it was played, its operations do not lead to
            its memory, or `agent` is not the one that answered.
    """

    def __init__(self, trajectory: Trajectory, agent: ReasoningAgent) -> None:
        _check_agent(trajectory, agent)
        self.trajectory = trajectory
        self.agent = agent
        recorded = trajectory.metadata.get("rollout", {})
        names = ("capacity", "eviction", "max_item_tokens", "duplicates", "top_k")
        missing = [name for name in names if name not in recorded]
        _need(not missing, trajectory, f"the settings it was played with ({', '.join(missing)})",
              "play it again with rollout.play, which records them in metadata['rollout']")
        self._retrieval = [
            recorded[name] for name in ("retriever", "dense_model") if name in recorded
        ] or ["bm25"]
        *self._settings, self._top_k = (recorded[name] for name in names)
        self._scores: dict[tuple[frozenset[int], Orphaned, Question], float | None] = {}
        self._left: dict[tuple[frozenset[int], Orphaned], tuple[FlatMemory, _Settled]] = {}
        same = self.memory(frozenset()).items == trajectory.final_memory()
        _need(same, trajectory, "operations that lead to its final memory",
              "its settings or steps were changed; play the instance again")

    def memory(self, without: frozenset[int], orphaned: Orphaned = "refuse") -> FlatMemory:
        """Return the final memory that the other steps leave, see `memory.replay`."""
        return replay(
            self.trajectory, FlatMemory(*self._settings), self.trajectory.num_steps,
            without=without, orphaned=orphaned,
        )

    def through(self, agent: ReasoningAgent) -> World:
        """Return this world with no score known, to ask through another agent of equal settings;
        memories and what is retrieved from them are shared.

        Raises:
            ValueError: `agent` is not the one that answered.
        """
        _check_agent(self.trajectory, agent)
        other = copy.copy(self)
        other.agent, other._scores = agent, {}
        return other

    def scores(
        self,
        questions: Sequence[Question],
        withouts: Sequence[frozenset[int]],
        orphaned: Orphaned = "refuse",
    ) -> list[list[float | None]]:
        """Return the score of every question without each set of steps, read in one batch; a row
        per set, `None` where the question cannot be scored."""
        inquiries, keys = [], []
        for without in withouts:
            new = [q for q in questions if (without, orphaned, q) not in self._scores]
            if new:
                memory, index = self._searchable(without, orphaned)
                inquiries.append(Inquiry(new, memory, index, self.trajectory.num_steps))
                keys += [(without, orphaned, question) for question in new]
        answered = answer_questions(inquiries, self.agent, self._top_k)
        for key, answer in zip(keys, itertools.chain(*answered), strict=True):
            self._scores[key] = answer.score
        return [
            [self._scores[without, orphaned, question] for question in questions]
            for without in withouts
        ]

    def _searchable(
        self, without: frozenset[int], orphaned: Orphaned
    ) -> tuple[FlatMemory, _Settled]:
        if (without, orphaned) not in self._left:
            memory = self.memory(without, orphaned)
            index = make_retriever(*self._retrieval)
            index.update(MemoryDelta(written=memory.items))
            self._left[without, orphaned] = memory, _Settled(index)
        return self._left[without, orphaned]


class _Settled:
    """An index of a memory that does not change any more: it searches for nothing twice."""

    def __init__(self, index: Retriever) -> None:
        self.search = functools.cache(index.search)


def _mean(scores: Iterable[float | None]) -> float | None:
    known = [one for one in scores if one is not None]
    return math.fsum(known) / len(known) if known else None


# ---- what rules need -----------------------------------------------------------------------------


def _need(there: object, trajectory: Trajectory, what: str, remedy: str) -> None:
    if not there:
        raise ValueError(
            f"credit of {trajectory.instance_id!r}, rollout {trajectory.rollout}: this rule needs "
            f"{what}, which the trajectory lacks; {remedy}"
        )


_FAILED = (
    "an answer to every question that is asked again", "the reasoning agent failed; apply the rule "
    "again when it answers",
)


def _check_agent(trajectory: Trajectory, agent: ReasoningAgent) -> None:
    answered_by = trajectory.metadata.get("agent_settings")
    _need(answered_by in (None, agent.settings), trajectory,
          f"answers by the agent given here ({agent.settings})",
          f"pass the reasoning agent that answered: {answered_by}")


def _rollouts(
    trajectory: Trajectory, group: Sequence[Trajectory]
) -> tuple[Together, int]:
    """Return the group and the trajectory's place in it."""

    def asked(one: Trajectory) -> list[str]:
        return [answered.question.question_id for answered in one.questions]

    _need(trajectory.questions, trajectory, "a global question", "play it with questions")
    numbers = [one.rollout for one in group]
    _need(
        len(set(numbers)) == len(numbers) and trajectory.rollout in numbers, trajectory,
        f"a group that holds its rollout and no rollout twice (got {numbers})",
        "pass group=, all rollouts of the instance; padding must never enter an advantage",
    )
    same = all(
        (one.instance_id, one.num_steps, asked(one))
        == (trajectory.instance_id, trajectory.num_steps, asked(trajectory))
        for one in group
    )
    _need(same, trajectory, "a group of the same instance, steps and questions",
          "pass group=, the rollouts that `rollout.play` returned together")
    together = group if isinstance(group, Together) else Together(group)
    return together, numbers.index(trajectory.rollout)


def _outcome_advantages(
    rollouts: Together, scale_rewards: ScaleRewards
) -> list[float | None]:
    rows = rollouts.once(("outcome", scale_rewards), lambda: group_relative(
        [[outcome_reward(one)] for one in rollouts], scale_rewards))
    return [row[0] for row in rows]


def _states(trajectory: Trajectory) -> list[tuple[str, ...]]:
    """Return, per step, what the manager saw: the chunk and the contents in memory before it."""
    states, contents = [], {}  # of the items by id, in the order of their creation
    for step in trajectory.steps:
        states.append((step.chunk.text, *contents.values()))
        for item_id in step.delta.removed + step.delta.evicted:
            contents.pop(item_id, None)
        for item in sorted(step.delta.written, key=creation_key):
            contents[item.item_id] = item.content
    return states


# ---- the list ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Rule:
    """One credit rule and what to know before using it.

    gives: "reward", to be compared over the rollouts of a step by `advantages.group_relative`, or
        "advantage", which is so already.
    needs: settings without a default, and what must be recorded in the trajectory.
    cost: reader calls per trajectory beyond those of the outcome, at most; `assign` counts them.
    """

    function: Callable[..., Credit]
    gives: Literal["reward", "advantage"]
    formula: str
    source: str
    conserves: str
    needs: tuple[str, ...]
    cost: str


_SPLIT = "sum over steps = r_global"
_GAIN = "sum over steps = r_global - r_global(empty memory)"
_ZERO = "sum over rollouts = 0 at every step"

RULES: dict[str, Rule] = {
    "outcome-broadcast": Rule(
        outcome_broadcast, "reward", "r_global", "GRPO, arXiv 2402.03300",
        "mean over steps = r_global", (), "0",
    ),
    "uniform-split": Rule(
        uniform_split, "reward", "r_global / T", "even split, the rule to beat", _SPLIT, (), "0",
    ),
    "csr": Rule(
        chunk_step_reward, "reward", "(1/K) sum_k score(q_k read from M_t)",
        "Fine-Mem, arXiv 2601.08435", "nothing", ("chunk questions",), "K T while playing",
    ),
    "eara": Rule(
        evidence_anchored, "reward",
        "(1-beta) r_global / T + beta sum_j sum_{m in M_j, phi(m)=t} s_j / (|M_j| n)",
        "Fine-Mem, arXiv 2601.08435", f"{_SPLIT} (not with unretrieved='drop')", (), "0",
    ),
    "eara-used": Rule(
        evidence_anchored_used, "reward", "eara, M_j being the items that the reader used",
        "Fine-Mem, arXiv 2601.08435, with a switch of ours",
        f"{_SPLIT} (not with unretrieved='drop')", ("used items",), "0",
    ),
    "evidence-loo": Rule(
        evidence_leave_one_out, "reward",
        "(1/n) sum_j sum_{m in M_j, phi(m)=t} (s_j(M_j) - s_j(M_j - m))", "leave-one-out",
        "nothing", ("agent",), "n k",
    ),
    "evidence-shapley": Rule(
        evidence_shapley, "reward", "(1/n) sum_j sum_{m in M_j, phi(m)=t} Shapley_m(s_j)",
        "Shapley (1953)", "sum over steps = mean_j (s_j - s_j read from nothing)", ("agent",),
        "n (2^k - 1), 3n at k = 2; above k = 4: n P k",
    ),
    "step-loo": Rule(
        step_leave_one_out, "reward", "r_global(all steps) - r_global(all but t)",
        "leave-one-out, by replay", "nothing", ("agent", "replay"), "n T",
    ),
    "step-shapley": Rule(
        step_shapley, "reward", "Shapley_t(r_global of the memory that a set of steps leaves)",
        "Shapley (1953); Castro et al. (2009)", _GAIN, ("agent", "replay"),
        "n P T; up to T = 4: n (2^T - 1)",
    ),
    "owen": Rule(
        owen_values, "reward", "alpha Owen_t + (1-alpha) [t = T] r_global, steps halved repeatedly",
        "SCAR, arXiv 2505.20417; Owen (1977)",
        "sum over steps = r_global - alpha r_global(empty memory)", ("agent", "replay"),
        "n T^2",
    ),
    "mt-grpo": Rule(
        turn_level, "advantage", "A(r_global) + c A(r_chunk(t)), the latter at step 1 only",
        "MT-GRPO, arXiv 2505.11821", _ZERO, ("group", "chunk questions"),
        "K while playing; K T with turns='all'",
    ),
    "gigpo": Rule(
        anchored_groups, "advantage",
        "A(r_global) + omega A(gamma^(T-t) r_global among the rollouts in the same state)",
        "GiGPO, arXiv 2505.10978", _ZERO, ("group",), "0",
    ),
    "hindsight": Rule(
        hindsight, "advantage", "(1/n) sum_j ([t in E_j] + lambda [t wrote into M_j]) A(s_j)",
        "Mem-T", "at lambda = 0, sum over rollouts = 0 where all of them wrote",
        ("group", "evidence steps"), "0",
    ),
    "attributed-dense": Rule(
        attributed_dense, "advantage",
        "w_t A(valid_t r_chunk(t) (1 - lambda l_t)), w_t = alpha where retrieved most, else 1",
        "MemBuilder, arXiv 2601.05488", f"at alpha = 1, {_ZERO}", ("group", "chunk questions"),
        "K T while playing",
    ),
    "potential": Rule(
        potential_shaping, "reward",
        "gamma Phi(M_t) - Phi(M_{t-1}), at T: r_global - Phi(M_{T-1})",
        "Ng, Harada and Russell (1999)",
        "sum_t gamma^(t-1) r_t = gamma^(T-1) r_global - Phi(M_0)", ("agent", "probes", "replay"),
        "K' T for K' probes",
    ),
}
"""Every credit rule by name. T steps, n questions, k items retrieved for each, K questions per
chunk, P permutations."""


@dataclass(frozen=True, slots=True)
class Assigned:
    """The credit of one trajectory and the reader calls it took beyond those of the outcome.

    `calls_asked` readings were asked for, of which `calls_made` differed, from each other and from
    what was read for the outcome, and reached the reasoning agent; `calls_played` of the latter
    were made while the trajectory was played, for its chunk questions, the others afterwards by the
    rule itself.
    """

    rule: str
    credit: tuple[float | None, ...]
    calls_asked: int
    calls_made: int
    calls_played: int


def assign(rule: str, trajectory: Trajectory, **settings: Any) -> Assigned:
    """Apply a rule of `RULES` and count its reader calls.

    An `agent` that is memoised already keeps its memo, and then only what is new to it is counted
    as made; it is told what was read for the outcome, which is never read again. In the example one
    chunk question was also asked at the end, with the same items.

    Raises:
        ValueError: no such rule, a setting that the rule needs is missing, or as the rule.

    >>> from finemem_lib.rewards import worked_example
    >>> assign("eara", worked_example()).credit
    (0.21875, 0.09375, 0.34375, 0.09375)
    >>> assign("csr", worked_example())
    Assigned(rule='csr', credit=(1.0, None, 0.5, 0.0), calls_asked=4, calls_made=3, calls_played=3)
    >>> assign("owen", worked_example())
    Traceback (most recent call last):
    ...
    ValueError: credit rule 'owen' needs agent; pass it as a setting
    """
    if rule not in RULES:
        raise ValueError(f"credit rule is {rule!r}, expected one of {', '.join(RULES)}")
    settable = {"agent", "group", "probes"}
    missing = [n for n in RULES[rule].needs if n in settable and settings.get(n) is None]
    if missing:
        raise ValueError(f"credit rule {rule!r} needs {', '.join(missing)}; pass it as a setting")
    played = calls_while_playing(rule, [trajectory], **settings)
    counter = settings.get("agent") or _Silent()
    if not isinstance(counter, MemoisedAgent):
        counter = MemoisedAgent(counter)
    before = counter.calls_asked, counter.calls_made
    if "agent" in settings:
        _check_agent(trajectory, counter)
        counter.know(*outcome_readings(trajectory))
        settings["agent"] = counter
        if settings.get("world") and settings["world"].agent is not counter:
            settings["world"] = settings["world"].through(counter)
    credit = RULES[rule].function(trajectory, **settings)
    asked, made = counter.calls_asked - before[0], counter.calls_made - before[1]
    return Assigned(rule, tuple(credit), played[0] + asked, played[1] + made, played[1])


def calls_while_playing(
    rule: str, trajectories: Iterable[Trajectory], **settings: Any
) -> tuple[int, int]:
    """Return the reader calls, asked and made, that answered the chunk questions a rule reads.

    They are the readings that each trajectory records, made once where they agree, also with one
    of the outcome, as `reasoning.MemoisedAgent` compares them; a rule whose turn reward enters at
    step 1 reads the questions of step 1. A rule that compares a group reads the chunk questions of
    all its rollouts; they are calls of the rollouts that were asked, of which each gets its credit.

    Raises:
        ValueError: a trajectory does not hold the items that it retrieved.
    """
    if "chunk questions" not in RULES[rule].needs:
        return 0, 0
    first = rule == "mt-grpo" and settings.get("turns", "first") == "first"
    tasks = []
    counter = MemoisedAgent(_Silent())
    for one in trajectories:
        counter.know(*outcome_readings(one))
        held: dict[str, MemoryItem] = {}
        for step in one.steps[:1] if first else one.steps:
            held = step.delta.applied_to(held)
            tasks += [
                reading_task(answered.question, list(_held(one, held, answered).values()))
                for answered in step.chunk_questions
            ]
    counter.read(tasks)
    return counter.calls_asked, counter.calls_made


def outcome_readings(trajectory: Trajectory) -> tuple[list[ReadingTask], list[Reading]]:
    """Return what was read for the outcome: the global questions on the items retrieved for them,
    and the recorded answers. Questions without a score are left out, for there the agent may have
    failed, and those answered from an item that is not among the retrieved ones, because somebody
    cut them: that answer was read from more.

    Raises:
        ValueError: the trajectory does not hold the items that it retrieved.
    """
    held = {item.item_id: item for item in trajectory.final_memory()}
    read = [
        answered for answered in trajectory.questions
        if answered.score is not None
        and {*(answered.used or ())} <= {found.item_id for found in answered.retrieved}
    ]
    return (
        [reading_task(answered.question, list(_held(trajectory, held, answered).values()))
         for answered in read],
        [Reading(answered.answer, answered.used) for answered in read],
    )


class _Silent:
    """Answers nothing: what is asked is counted, not read."""

    name = settings = "silent"

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        return [Reading("", ())] * len(tasks)
