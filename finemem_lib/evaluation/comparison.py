"""Play systems under equal conditions: instances, questions, reader and optionally token budget."""

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
    """Results of one system on all instances.

    Attributes:
        name: Name in tables: the system, with its budget if it had one.
        budget: Token limit of its memory; `None` for the limit in its own settings.
        trajectories: One per instance and rollout.
        seconds: Wall time of playing in seconds, including reading.
        writer_calls: Language-model calls that wrote memories.
        questions: Number of questions that were answered.
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
        """Wall time per chunk in seconds."""
        steps = sum(one.num_steps for one in self.trajectories)
        return self.seconds / max(1, steps)


def budget_name(name: str, budget: int | None) -> str:
    """Return the name of a system under a budget, as tables show it.

    Args:
        name: Name of the system.
        budget: Token limit of its memory; `None` for the limit in its own settings.

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
    """Play the same instances with every system and budget; return results by their name.

    Args:
        names: Names in `baselines.systems.SYSTEMS` or known to `make_manager`.
        instances: Instances that every system plays.
        agent: Reasoning agent that answers the questions for all systems.
        rollout: Rollout settings; a system overrides those that it defines itself.
        budgets: Token limits of the memory; `None` for the limit in each system's own settings.
        chat: Language model that writes memories; `None` to write by rules.
        managers: Existing managers, such as trained ones, by name; they are played in addition.
        seed: Seed of the managers' sampling.

    Raises:
        ValueError: a system cannot be played with these arguments (raised before any is played);
            also see `play`.
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
    """Return the number of calls on a stream if a language model writes the system's memory.

    Args:
        system: A name in `SYSTEMS`, or of a rule-based manager (no calls).
        steps: Number of chunks of the stream.

    >>> model_calls("mirix-proxy", 10), model_calls("rag-top2", 10), model_calls("insert-all", 10)
    (60, 0, 0)
    """
    return steps * (SYSTEMS[system].calls if system in SYSTEMS else 0)
