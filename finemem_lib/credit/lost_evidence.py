"""Credit rules that charge a step for the value of the items that its writes evicted.

A failed question is asked again on a memory that never lost an item. If it is answered there, the
missing score is the value of the lost items that the answer rests on. Two-sided evidence charges
that value to the steps responsible for the loss. The slot price charges every write the same:
under a capacity each further INSERT evicts one more item in the end, whatever it stores, so the
cost of a write is the value of the item at the margin, and one estimate over a whole update has
less variance than many small ones. It is the shadow price of the capacity: 0 where nothing of value
is lost, hence also without a limit.

Differs from the paper: Fine-Mem (arXiv 2601.08435) rewards the evidence in memory and charges for
memory with a fixed weight (the compression reward); both rules are ours.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from finemem_lib.credit.group import CachedGroup, CachedUpdate
from finemem_lib.credit.needs import Credit, OperationCredit, need_agent, need_questions
from finemem_lib.credit.replay import recorded_memory, recorded_retriever, replayed_operations
from finemem_lib.memory import FlatMemory
from finemem_lib.reading import Inquiry, ReasoningAgent, answer_questions
from finemem_lib.rewards import (
    RewardSettings,
    credited_items,
    evidence_contribution,
    outcome_reward,
)
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import (
    MemoryDelta,
    MemoryItem,
    Operation,
    OperationOutcome,
    Question,
    Trajectory,
)

Responsible = Literal["holding", "evicting"]
"""The steps charged for an evicted item: "holding" charges the last writes of all items in memory
at the eviction (without one of them the item would have stayed), "evicting" the write that evicted
the item."""

Per = Literal["write", "eviction", "token"]
Over = Literal["update", "group", "trajectory"]


@dataclass(frozen=True, slots=True)
class Loss:
    """The loss of a content that is not in the final memory.

    Attributes:
        how: "evicted", "overwritten" by an UPDATE, or "deleted".
        step: The step that caused the loss.
        position: Index of the operation among the step's outcomes.
        holding: For an eviction, the step of the last write of each item then in memory; otherwise
            only `step`.
    """

    how: Literal["evicted", "overwritten", "deleted"]
    step: int
    position: int
    holding: tuple[int, ...]


@dataclass(slots=True)
class Losses:
    """The losses of one trajectory and their values.

    Attributes:
        lost: The last loss of every content that is not in the final memory, by content.
        written: The content of every applied write, in the order of the last write of each content.
        evictions: Total number of evicted items.
        values: Losses that made a question fail, each with its cost as a part of r_global.
    """

    lost: dict[str, Loss] = field(default_factory=dict)
    written: dict[str, None] = field(default_factory=dict)
    evictions: int = 0
    values: list[tuple[Loss, float]] = field(default_factory=list)


def losses(trajectory: Trajectory) -> Losses:
    """Return the losses of a trajectory, found by replaying its operations one at a time.

    Args:
        trajectory: A rollout of `rollout.play`, which records the memory's settings.

    Raises:
        ValueError: The settings are not recorded.
    """
    found = Losses()
    memory = recorded_memory(trajectory)
    held: dict[str, MemoryItem] = {}
    steps = [0]  # step of each operation; the replayed memory counts operations, from 1
    for step, position, delta in replayed_operations(trajectory, memory):
        steps.append(step)
        for item_id in delta.removed:
            found.lost[held.pop(item_id).content] = Loss("deleted", step, position, (step,))
        for item in delta.written:
            before = held.get(item.item_id)
            if before is not None and before.content != item.content:
                found.lost[before.content] = Loss("overwritten", step, position, (step,))
            held[item.item_id] = item
            found.written.pop(item.content, None)
            found.written[item.content] = None
        if delta.evicted:
            holding = tuple(steps[item.last_step] for item in memory.items)
            found.evictions += len(delta.evicted)
            for item_id in delta.evicted:
                found.lost[held.pop(item_id).content] = Loss("evicted", step, position, holding)
    for item in held.values():
        found.lost.pop(item.content, None)
    return found


def valued_losses(trajectories: Sequence[Trajectory], agent: ReasoningAgent) -> list[Losses]:
    """Return the losses of every trajectory with their values, read in one batch.

    If a trajectory lost a content, each failed question is asked again, with the recorded
    retriever, on a memory of everything ever written. The gain in score, divided by the number of
    questions, is shared equally by the lost items that the new answer used (or retrieved, where the
    agent does not report used items).

    Args:
        trajectories: Rollouts of `rollout.play`.
        agent: The reasoning agent that answered their questions.

    Raises:
        ValueError: A trajectory does not record its settings, another agent answered it, or the
            trajectories have different top_k.
    """
    found = [losses(one) for one in trajectories]
    asked, inquiries = [], []
    for one, lost in zip(trajectories, found, strict=True):
        failed = [a for a in one.questions if a.score is not None and a.score < 1]
        if lost.lost and failed:
            need_agent(one, agent)
            asked.append((one, lost, failed))
            inquiries.append(_everything_written(one, lost, [a.question for a in failed]))
    by_top_k = {one.metadata["rollout"]["top_k"] for one, _, _ in asked}
    top_k = by_top_k.pop() if len(by_top_k) == 1 else None
    if by_top_k or (asked and top_k is None):
        raise ValueError(
            "lost evidence: the trajectories were played with different top_k, expected one; "
            "credit them apart"
        )
    answers = answer_questions(inquiries, agent, top_k or 1)
    for (one, lost, failed), inquiry, again in zip(asked, inquiries, answers, strict=True):
        scored = sum(answered.score is not None for answered in one.questions)
        for answered, now in zip(failed, again, strict=True):
            gain = (now.score or 0.0) - (answered.score or 0.0)
            ids = [item.item_id for item in now.retrieved] if now.used is None else now.used
            contents = [item.content for name in ids if (item := inquiry.memory.get(name))]
            gone = [lost.lost[content] for content in contents if content in lost.lost]
            if gain > 0:
                lost.values += [(loss, gain / scored / len(gone)) for loss in gone]
    return found


def two_sided_evidence(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    group: Sequence[Trajectory] | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
    responsible: Responsible = "holding",
) -> Credit:
    """Return ``N_t - H_t``, the evidence from a step minus the value of the losses it caused.

    N_t is the normalised evidence contribution of the items that the reader used, H_t the value of
    the losses that step t is responsible for, divided equally if several steps are; an overwritten
    or deleted item is charged to the step of that operation. `None` where r_global is `None`.

    Args:
        trajectory: The rollout to credit.
        agent: The reasoning agent that answered its questions.
        group: All rollouts of the instance, whose failed questions are then read in one batch.
        batch: The groups of the whole update, likewise; it replaces `group`.
        responsible: The steps charged for an evicted item, see `Responsible`.

    Raises:
        ValueError: As `valued_losses`.
    """
    need_questions(trajectory)
    update = _update(trajectory, group, batch)
    harm = [0.0] * trajectory.num_steps
    for loss, value in _valued(update, agent)[_key(trajectory)].values:
        steps = loss.holding if responsible == "holding" else (loss.step,)
        for step in steps:
            harm[step - 1] += value / len(steps)
    return [
        None if paid is None else paid - lost
        for paid, lost in zip(_evidence(trajectory), harm, strict=True)
    ]


def slot_price(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    group: Sequence[Trajectory] | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
    previous: Mapping[str, float] | None = None,
    per: Per = "write",
    over: Over = "update",
    smoothing: float = 0.0,
) -> Credit:
    """Return ``N_t - p u_t``, the evidence from a step minus the price of the memory it used.

    The price p is the value lost by evictions per unit used, ``u_t`` the units used by step t. N_t
    is the normalised evidence contribution of the items that the reader used. `None` where r_global
    is `None`.

    Args:
        trajectory: The rollout to credit.
        agent: The reasoning agent that answered its questions.
        group: All rollouts of the instance.
        batch: The groups of the whole update.
        previous: Result of `slot_price_measures` for the previous update; `None` at the first one.
        per: The unit: "write", an applied INSERT; "eviction", an applied INSERT of a trajectory
            with evictions, where p is the value lost per evicted item; or "token", a token of an
            inserted content.
        over: The rollouts over which one price is estimated; "update" means the group where no
            batch is given.
        smoothing: Weight of the previous update's price, in [0, 1).

    Raises:
        ValueError: As `valued_losses`, or `smoothing` is out of range.
    """
    need_questions(trajectory)
    update = _update(trajectory, group, batch)
    price = _price(trajectory, update, agent, previous, per, over, smoothing)
    overflowed = _valued(update, agent)[_key(trajectory)].evictions > 0
    charged = per != "eviction" or overflowed
    return [
        None if paid is None else paid - price * number * charged
        for paid, number in zip(_evidence(trajectory), _units(trajectory, per), strict=True)
    ]


def operation_slot_price(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    group: Sequence[Trajectory] | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
    previous: Mapping[str, float] | None = None,
    per: Per = "eviction",
    over: Over = "update",
    smoothing: float = 0.0,
) -> OperationCredit:
    """Return, per operation, its evidence minus the value it destroyed and the price of its memory.

    The evidence is ``s_j / (|M_j| n)`` for every used item that the operation wrote last, the
    destroyed value that of the contents it overwrote or deleted, the price as in `slot_price`. SKIP
    and refused operations get 0, so a write pays off if its evidence exceeds its price.

    Args:
        trajectory, agent, group, batch, previous, per, over, smoothing: As in `slot_price`.

    Returns:
        One value per step and one per outcome of the step; `None` where r_global is `None`.

    Raises:
        ValueError: As `slot_price`.
    """
    need_questions(trajectory)
    update = _update(trajectory, group, batch)
    price = _price(trajectory, update, agent, previous, per, over, smoothing)
    lost = _valued(update, agent)[_key(trajectory)]
    if outcome_reward(trajectory) is None:
        return OperationCredit([[None] * len(step.outcomes) or [None] for step in trajectory.steps])
    charged = per != "eviction" or lost.evictions > 0
    credit = [
        [-price * _memory_units(outcome, per) * charged for outcome in step.outcomes]
        for step in trajectory.steps
    ]
    for loss, value in lost.values:
        if loss.how != "evicted":
            credit[loss.step - 1][loss.position] -= value
    scored = [answered for answered in trajectory.questions if answered.score is not None]
    last_write = {item.item_id: item.lineage[-1] for item in trajectory.final_memory()}
    for answered in scored:
        items = credited_items(answered, "used")
        for item in items:
            write = last_write[item.item_id]
            credit[write.step - 1][write.position] += (
                (answered.score or 0) / len(items) / len(scored)
            )
    return OperationCredit(credit)


def slot_price_measures(
    trajectory: Trajectory,
    *,
    agent: ReasoningAgent,
    group: Sequence[Trajectory] | None = None,
    batch: Sequence[Sequence[Trajectory]] | None = None,
    previous: Mapping[str, float] | None = None,
    per: Per = "write",
    over: Over = "update",
    smoothing: float = 0.0,
) -> dict[str, float]:
    """Return, as "price", the price that `slot_price` charges, as a part of r_global per unit.

    Args:
        trajectory, agent, group, batch, previous, per, over, smoothing: As in `slot_price`.

    Raises:
        ValueError: As `slot_price`.
    """
    update = _update(trajectory, group, batch)
    return {"price": _price(trajectory, update, agent, previous, per, over, smoothing)}


def _price(
    trajectory: Trajectory,
    update: CachedUpdate,
    agent: ReasoningAgent,
    previous: Mapping[str, float] | None,
    per: Per,
    over: Over,
    smoothing: float,
) -> float:
    if not 0 <= smoothing < 1:
        raise ValueError(f"slot price: smoothing is {smoothing!r}, expected at least 0 and below 1")
    if smoothing and over != "update":
        raise ValueError(
            f"slot price: smoothing is {smoothing!r} with over={over!r}, expected over='update': "
            "a record holds one price; leave smoothing out, or estimate over the update"
        )
    valued = _valued(update, agent)
    own = next(some for some in update if any(_key(one) == _key(trajectory) for one in some))
    among: Iterable[Trajectory] = (
        (trajectory,) if over == "trajectory" else own if over == "group" else _flat(update)
    )

    def price() -> float:
        lost = [valued[_key(one)] for one in among]
        value = math.fsum(v for one in lost for loss, v in one.values if loss.how == "evicted")
        if per == "eviction":
            return value / max(sum(one.evictions for one in lost), 1)
        return value / max(sum(sum(_units(one, per)) for one in among), 1)

    place = {"trajectory": _key(trajectory), "group": trajectory.instance_id, "update": None}[over]
    now = update.once(("price", agent.settings, per, over, place), price)
    before = now if previous is None else previous["price"]
    return smoothing * before + (1 - smoothing) * now


def _units(trajectory: Trajectory, per: Per) -> list[int]:
    """Return the units of memory that every step used."""
    return [
        sum(_memory_units(outcome, per) for outcome in step.outcomes) for step in trajectory.steps
    ]


def _memory_units(outcome: OperationOutcome, per: Per) -> int:
    """Return the units of memory that an operation used: 0 unless it is an applied INSERT."""
    operation = outcome.operation
    if operation is None or operation.kind != "INSERT" or not outcome.applied:
        return 0
    return count_tokens(operation.content or "") if per == "token" else 1


def _evidence(trajectory: Trajectory) -> list[float | None]:
    return evidence_contribution(trajectory, RewardSettings(credited="used"))


def _everything_written(one: Trajectory, lost: Losses, questions: Sequence[Question]) -> Inquiry:
    """Return the inquiry on a memory of every content ever written, oldest first."""
    memory = FlatMemory()
    for number, content in enumerate(lost.written, start=1):
        memory.apply([Operation("INSERT", content)], number)
    retriever = recorded_retriever(one)
    retriever.update(MemoryDelta(written=memory.items))
    return Inquiry(questions, memory, retriever, one.num_steps)


def _update(
    trajectory: Trajectory,
    group: Sequence[Trajectory] | None,
    batch: Sequence[Sequence[Trajectory]] | None,
) -> CachedUpdate:
    """Return the update of a trajectory: `batch`, or its group alone, or the trajectory alone."""
    if isinstance(batch, CachedUpdate):
        return batch
    groups = (group or (trajectory,),) if batch is None else batch
    if batch is None and isinstance(group, CachedGroup):
        return group.once("update", lambda: CachedUpdate((group,)))
    return CachedUpdate(map(CachedGroup, groups))


def _valued(update: CachedUpdate, agent: ReasoningAgent) -> dict[tuple[str, int], Losses]:
    flat = _flat(update)
    return update.once(
        ("losses", agent.settings),
        lambda: dict(zip(map(_key, flat), valued_losses(flat, agent), strict=True)),
    )


def _flat(update: CachedUpdate) -> list[Trajectory]:
    return [one for group in update for one in group]


def _key(trajectory: Trajectory) -> tuple[str, int]:
    return trajectory.instance_id, trajectory.rollout
