"""Negative controls: scores without the memory that a method wrote for the instance.

- "control: no memory": the reader answers with an empty memory. The score measures what the reader
  knows already.
- "control: question": the question itself is the answer. The score measures what the question
  leaks and what the metric tolerates.
- "control: shuffled memory": the reader answers from the memory that the same manager wrote for
  another instance of the same data source. The score measures what any memory of this source gives.

Each control is a row of its own in a table of methods; it is never subtracted from another row.

Differs from the paper, which has no negative controls; users of MemoryAgentBench ask for them.
"""

from __future__ import annotations

import dataclasses
import random
from collections import defaultdict
from collections.abc import Sequence

from finemem_lib.baselines.systems import Player
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.rollout import play
from finemem_lib.managers.scripted import ScriptedManager
from finemem_lib.reading import Reading, ReadingTask, ReasoningAgent
from finemem_lib.trajectory import Instance, Operation, Trajectory

NO_MEMORY = "control: no memory"
QUESTION = "control: question"
SHUFFLED = "control: shuffled memory"
CONTROLS = (NO_MEMORY, QUESTION, SHUFFLED)


class KeepNothing(ScriptedManager):
    """Manager that skips every chunk."""

    name = "keep-nothing"
    settings = {"calls_per_step": 0}

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        return []


class Echo(ReasoningAgent):
    """Reader that answers with the question."""

    name = settings = "echo of the question"

    def query(self, question: str, data_source: str) -> str:
        return question

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        return [Reading(task.question, ()) for task in tasks]


def shuffled(instances: Sequence[Instance]) -> list[Instance]:
    """Return every instance with the chunks of the next instance of the same data source.

    The only instance of a data source is left out. Evidence steps are dropped, because they refer
    to the replaced chunks.

    Args:
        instances: Instances with distinct ids.

    >>> from finemem_lib.data.planted import planted_instances
    >>> streams = planted_instances("held-out", 2, seed=0)
    >>> moved = shuffled(streams)
    >>> moved[0].chunks == streams[1].chunks, len(moved[0].questions) == len(streams[0].questions)
    (True, True)
    """
    groups: defaultdict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.data_source].append(instance)
    return [
        dataclasses.replace(
            one,
            chunks=other.chunks,
            metadata=other.metadata,
            chunk_questions=None,
            questions=tuple(
                dataclasses.replace(question, evidence_steps=None) for question in one.questions
            ),
        )
        for group in groups.values()
        if len(group) > 1
        for one, other in zip(group, [*group[1:], group[0]], strict=True)
    ]


def play_controls(
    instances: Sequence[Instance], player: Player, agent: ReasoningAgent, seed: int = 0
) -> dict[str, list[Trajectory]]:
    """Play the negative controls.

    Args:
        instances: Instances that the methods played.
        player: System whose memories are shuffled.
        agent: Reader of the methods.
        seed: Seed of the manager's sampling.

    Returns:
        Trajectories by name of the control; `SHUFFLED` is missing if no data source has two
        instances.
    """
    settings = dataclasses.replace(
        player.settings, num_generations=1, ask_chunk_questions=False, question_fraction=1.0
    )

    def first(
        some: Sequence[Instance], manager: ScriptedManager | None, reader: ReasoningAgent
    ) -> list[Trajectory]:
        played = play(some, manager or player.manager, settings, reader, seed)
        return [group[0] for group in played]

    found = {
        NO_MEMORY: first(instances, KeepNothing(), agent),
        QUESTION: first(instances, KeepNothing(), Echo()),
    }
    moved = shuffled(instances)
    return found | ({SHUFFLED: first(moved, None, agent)} if moved else {})
