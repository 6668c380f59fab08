"""Compare memory managers on the same instances."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finemem_lib.baselines.systems import check_systems, make_system
from finemem_lib.evaluation.tables import (
    BootstrapSettings,
    Estimate,
    benchmark_table,
    paired_differences,
)
from finemem_lib.managers.protocol import MemoryManager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import ReasoningAgent
from finemem_lib.trajectory import Instance


def evaluate(
    managers: Sequence[str] | Mapping[str, MemoryManager],
    instances: Sequence[Instance],
    agent: ReasoningAgent | None = None,
    *,
    rollout: RolloutSettings | None = None,
    baseline: str | None = None,
    bootstrap: BootstrapSettings | None = None,
    chat: Chat | None = None,
    seed: int = 0,
) -> list[Estimate]:
    """Play the same instances with every manager; return accuracy and memory with intervals.

    Args:
        managers: Names of systems (`baselines.systems.SYSTEMS`) or managers (`make_manager`), or
            manager objects by their name in the table.
        instances: Instances that every manager plays.
        agent: Reasoning agent that answers; default: the extractive reader for these instances.
        rollout: Rollout settings; default: one rollout per instance, without chunk questions.
        baseline: Manager with which all others are compared, question by question.
        bootstrap: Settings of the bootstrap intervals.
        chat: Language model that writes the memories of systems; `None` to write by rules.
        seed: Seed of the managers' sampling.

    Returns:
        The rows of `benchmark_table`; with a baseline also the `paired_differences` in accuracy.
        `tables.summary` and `tables.to_frame` format them.

    Raises:
        ValueError: there is nothing to play, or a system cannot be played; also see `play`.

    >>> from finemem_lib.data.planted import planted_instances
    >>> from finemem_lib.evaluation.tables import summary
    >>> rows = evaluate(["random", "insert-all"], planted_instances("held-out", 2, seed=0))
    >>> [(line["method"], line["all accuracy"]) for line in summary(rows)]
    [('random', '0.467 [0.333, 0.556]'), ('insert-all', '0.933 [0.889, 1.000]')]
    """
    if isinstance(managers, str) or not managers or not instances:
        raise ValueError(
            f"evaluate: got managers {managers!r:.60} and {len(instances)} instances, expected a "
            "list of names (or managers by name) and at least one instance"
        )
    rollout = rollout or RolloutSettings(num_generations=1, ask_chunk_questions=False)
    if isinstance(managers, Mapping):
        players = {name: make_system(name, rollout, manager=one) for name, one in managers.items()}
    else:
        check_systems(managers, chat, rollout)
        players = {name: make_system(name, rollout, chat=chat) for name in managers}
    if baseline is not None and baseline not in players:
        raise ValueError(
            f"evaluate: baseline is {baseline!r}, expected one of {', '.join(players)}"
        )
    agent = agent or reader_for(instances)
    played = {
        name: sum(play(instances, one.manager, one.settings, agent, seed), start=[])
        for name, one in players.items()
    }
    rows = benchmark_table(played, bootstrap)
    return rows if baseline is None else rows + paired_differences(played, baseline, bootstrap)
