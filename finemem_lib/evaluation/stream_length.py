"""Accuracy, memory, time and model calls of systems by stream length.

The streams are planted streams of increasing length, or prefixes ("heads") of increasing length of
one long instance. A head keeps the questions whose evidence steps lie in it or, if these are
unknown, whose answer occurs in it. Time is CPU time of manager, memory and index per step, without
the final reading. Calls are those of a language model that writes the memory, if the system is
played with one, plus one reading per question.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from finemem_lib.baselines.systems import make_system
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.evaluation.comparison import budget_name, model_calls
from finemem_lib.evaluation.intervals import clustered_mean
from finemem_lib.evaluation.rows import MeasuredRow
from finemem_lib.managers.rollout import LockstepRollouts, RolloutSettings
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import ReasoningAgent
from finemem_lib.scoring import substring_match
from finemem_lib.seeds import stable_seed
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Instance, Trajectory


@dataclass(frozen=True, slots=True)
class LengthRow(MeasuredRow):
    """One system on streams of one length.

    Attributes:
        stream: "planted", or the id of the long instance.
        budget: Token limit of its memory; `None` for the limit in its own settings.
        chunks: Length of the streams in chunks.
        stream_tokens: Mean length of the streams in tokens.
        accuracy: Mean score of the questions; its interval over instances is `low` to `high`
            (`None` for a single instance).
        memory_tokens: Mean length of the final memory in tokens, L(M_T).
        read_tokens: Mean tokens of the items retrieved for a question.
        seconds_per_step: CPU seconds per chunk.
        calls: Model calls per stream.
    """

    made_by: ClassVar[str] = "python benchmarks/systems.py --output FOLDER"

    stream: str
    system: str
    budget: int | None
    chunks: int
    stream_tokens: float
    accuracy: float | None
    low: float | None
    high: float | None
    memory_tokens: float
    read_tokens: float
    seconds_per_step: float
    calls: float
    instances: int
    questions: int

    @property
    def method(self) -> str:
        """Name of the system, with its budget if it has one."""
        return budget_name(self.system, self.budget)


def planted_lengths(
    systems: Sequence[str],
    lengths: Sequence[int],
    count: int,
    budgets: Sequence[int | None] = (None,),
    seed: int = 0,
) -> list[LengthRow]:
    """Measure systems on planted streams of several lengths.

    Args:
        systems: Names of systems, played without a language model.
        lengths: Stream lengths in chunks.
        count: Number of streams per length.
        budgets: Token limits of the memory; `None` for the limit in each system's own settings.
        seed: Seed of streams and managers.
    """
    return [
        _row("planted", name, budget, instances, reader_for(instances), seed)
        for chunks in lengths
        for instances in [
            planted_instances(
                "held-out",
                count,
                stable_seed(seed, "length", chunks),
                StreamSettings(num_chunks=chunks, people=12),
            )
        ]
        for budget in budgets
        for name in systems
    ]


def head_lengths(
    systems: Sequence[str],
    instance: Instance,
    shares: Sequence[float],
    budgets: Sequence[int | None] = (None,),
    seed: int = 0,
) -> list[LengthRow]:
    """Measure systems on heads of increasing length of one long instance.

    Args:
        systems: Names of systems, played without a language model.
        instance: The long instance.
        shares: Shares of its chunks that the heads keep, in (0, 1].
        budgets: Token limits of the memory; `None` for the limit in each system's own settings.
        seed: Seed of the managers.
    """
    agent = reader_for([instance])
    heads = [head_of(instance, max(1, round(share * len(instance.chunks)))) for share in shares]
    return [
        _row(instance.instance_id, name, budget, [head], agent, seed)
        for head in heads
        if head.questions
        for budget in budgets
        for name in systems
    ]


def head_of(instance: Instance, chunks: int) -> Instance:
    """Return the first chunks of an instance with the questions that they can answer.

    Args:
        instance: The long instance.
        chunks: Number of chunks to keep.
    """
    kept = instance.chunks[:chunks]
    text = "\n".join(chunk.text for chunk in kept)
    questions = tuple(
        question
        for question in instance.questions
        if (
            max(question.evidence_steps) <= chunks
            if question.evidence_steps
            else substring_match(text, question.answers)
        )
    )
    return dataclasses.replace(
        instance,
        chunks=kept,
        questions=questions,
        chunk_questions=None,
        metadata={**instance.metadata, "head": chunks},
    )


def _row(
    stream: str,
    name: str,
    budget: int | None,
    instances: Sequence[Instance],
    agent: ReasoningAgent,
    seed: int,
) -> LengthRow:
    """Play one system on streams of one length."""
    settings = RolloutSettings(num_generations=1, ask_chunk_questions=False)
    player = make_system(name, settings, budget=budget)
    rollouts = LockstepRollouts(
        instances, player.settings, agent, player.name, seed, player.manager.settings
    )
    begun = time.process_time()
    while observations := rollouts.observations():
        act_seed = stable_seed(seed, "act", observations[0].step)
        rollouts.advance(player.manager.act(observations, act_seed))
    seconds = time.process_time() - begun
    played = [group[0] for group in rollouts.finish()]
    scores = {one.instance_id: [a.score for a in one.questions] for one in played}
    steps = [one.num_steps for one in played]
    questions = [a for one in played for a in one.questions]
    calls = sum(model_calls(name, n) for n in steps) + len(questions)
    return LengthRow(
        stream,
        name,
        budget,
        max(steps),
        sum(chunk.tokens for one in instances for chunk in one.chunks) / len(played),
        *clustered_mean(scores, bounds=(0, 1)),
        memory_tokens=sum(one.steps[-1].memory_tokens for one in played) / len(played),
        read_tokens=sum(map(_read, played)) / max(1, len(questions)),
        seconds_per_step=seconds / sum(steps),
        calls=calls / len(played),
        instances=len(played),
        questions=len(questions),
    )


def _read(trajectory: Trajectory) -> int:
    """Return the total tokens of the items retrieved for all questions of a trajectory."""
    sizes = {item.item_id: count_tokens(item.content) for item in trajectory.final_memory()}
    return sum(sizes[hit.item_id] for a in trajectory.questions for hit in a.retrieved)
