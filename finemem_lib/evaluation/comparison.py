"""Systems on equal terms: the same instances, reader, questions and, where asked, token budget."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finemem_lib.baselines.systems import SYSTEMS, Player, check_systems, make_system
from finemem_lib.evaluation.answers import writer_calls
from finemem_lib.managers.protocol import MemoryManager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.chat import Chat
from finemem_lib.reading import ReasoningAgent
from finemem_lib.trajectory import Instance, Trajectory


@dataclass(frozen=True, slots=True)
class PlayedSystem:
    """What a system did on all instances.

    Attributes:
        name: In tables: that of the system, and its budget where it had one.
        system: Name of the system.
        budget: Tokens that its memory could hold; `None`: its own settings.
        trajectories: One per instance and rollout.
        seconds: Wall time of playing, reading included.
        writer_calls: Calls of language models that wrote memories.
        questions: Questions that were read.
    """

    name: str
    system: str
    budget: int | None
    trajectories: tuple[Trajectory, ...]
    seconds: float
    writer_calls: int
    questions: int

    @property
    def seconds_per_step(self) -> float:
        """Wall time per chunk."""
        steps = sum(one.num_steps for one in self.trajectories)
        return self.seconds / max(1, steps)


def budget_name(name: str, budget: int | None) -> str:
    """Return what a table calls a system under a budget.

    Args:
        name: Of the system.
        budget: Most tokens of its memory; `None`: its own.

    >>> budget_name("mem1", None), budget_name("mem1", 1500)
    ('mem1', 'mem1, 1,500 tokens')
    """
    return name if budget is None else f"{name}, {budget:,} tokens"


def play_systems(
    names: Sequence[str],
    instances: Sequence[Instance],
    agent: ReasoningAgent,
    *,
    rollout: RolloutSettings | None = None,
    budgets: Sequence[int | None] = (None,),
    chat: Chat | None = None,
    managers: Mapping[str, MemoryManager] | None = None,
    seed: int = 0,
) -> dict[str, PlayedSystem]:
    """Let systems play the same instances, each with its own memory and under equal budgets.

    Args:
        names: Names of `baselines.systems.SYSTEMS` or of `make_manager`.
        instances: What every system plays.
        agent: Answers the questions of all.
        rollout: How systems without settings of their own are played.
        budgets: Most tokens of the memory; `None` leaves each its own.
        chat: The language model that writes memories; `None`: extractive.
        managers: Managers that are made already, such as a trained one, by name.
        seed: Of the managers' sampling.

    Returns:
        What was played by `PlayedSystem.name`.

    Raises:
        ValueError: a system cannot be played here (said before any plays), or as `play`.
    """
    managers = dict(managers or {})
    check_systems(names, chat, rollout)
    players = [
        (budget, make_system(name, rollout, chat=chat, budget=budget, manager=managers.get(name)))
        for budget in budgets
        for name in dict.fromkeys([*names, *managers])
    ]
    return {
        played.name: played
        for budget, player in players
        for played in [_played(player, budget, instances, agent, seed)]
    }


def _played(
    player: Player,
    budget: int | None,
    instances: Sequence[Instance],
    agent: ReasoningAgent,
    seed: int,
) -> PlayedSystem:
    begun = time.perf_counter()
    groups = play(instances, player.manager, player.settings, agent, seed)
    seconds = time.perf_counter() - begun
    trajectories = tuple(one for group in groups for one in group)
    return PlayedSystem(
        name=budget_name(player.name, budget),
        system=player.name,
        budget=budget,
        trajectories=trajectories,
        seconds=seconds,
        writer_calls=sum(map(writer_calls, trajectories)),
        questions=sum(len(one.questions) for one in trajectories),
    )


def model_calls(system: str, steps: int) -> int:
    """Return the calls that a system asks of a writing model for a stream, where one plays it.

    Args:
        system: A name of `SYSTEMS`, or of a manager by rule.
        steps: Chunks of the stream.

    >>> model_calls("mirix-proxy", 10), model_calls("rag-top2", 10), model_calls("insert-all", 10)
    (60, 0, 0)
    """
    return steps * (SYSTEMS[system].calls if system in SYSTEMS else 0)
