"""Negative controls: what can be answered without the memory that a method made.

- "control: no memory": the reader answers from nothing. What it gets right, it knows already.
- "control: question": the question itself is the answer. What scores, the question gives away, or
  the metric lets pass.
- "control: shuffled memory": the reader answers from the memory that the same manager made of
  another instance of the same data source. What it gets right, any memory of the kind would give.

Each is a row of its own in a table of methods, never taken off another row.

Differs from the paper, which has none; users of MemoryAgentBench ask for them.
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
    """Skips every chunk."""

    name = "keep-nothing"
    settings = {"calls_per_step": 0}

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        return []


class Echo:
    """A reader that answers with the question."""

    name = settings = "echo of the question"

    def query(self, question: str, data_source: str) -> str:
        """Return what to search the memory for.

        Args:
            question: Text of the question.
            data_source: Is not looked at.
        """
        return question

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        """Return every question as its answer.

        Args:
            tasks: The questions.
        """
        return [Reading(task.question, ()) for task in tasks]


def shuffled(instances: Sequence[Instance]) -> list[Instance]:
    """Return the questions of every instance on the stream of the next one of its data source.

    An instance whose data source has no other is left out. Evidence steps are dropped: they are
    those of the stream that the questions were written for.

    Args:
        instances: With ids that differ.

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
        instances: What the methods played.
        player: Makes the memories that are shuffled.
        agent: The reader of the methods.
        seed: Of the manager's sampling.

    Returns:
        Trajectories by the name of the control; without the shuffled memory where no data source
        has two instances.
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
