"""Rollouts: a memory manager reads instances chunk by chunk, and questions are asked on the way.

All rollouts of all instances move in lockstep: at every step the manager is asked once for all
that still have a chunk to read, and the reasoning agent once for all chunk questions. The G
rollouts of one instance at one step are the group that advantages are normalised in.

Differs from the paper: chunk questions are asked on M_t right after the operations of step t; the
global questions may be a random sample (`question_fraction`, 20 % in the paper's training), and
then it is the same sample for all rollouts of an instance, so that their rewards can be compared.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from finemem_lib.data.questions import sampled_questions
from finemem_lib.layers.memory import LayeredMemory, LayerRules
from finemem_lib.managers.protocol import Completion, MemoryManager, Observation
from finemem_lib.memory import Duplicates, Eviction, FlatMemory
from finemem_lib.reading import Inquiry, ReasoningAgent, answer_questions
from finemem_lib.retrieval import Retriever
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.layered import LayeredRetriever
from finemem_lib.retrievers.named import NAMES, RetrieverName, make_retriever
from finemem_lib.seeds import stable_seed
from finemem_lib.text import TOKENIZER, clean_text
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Chunk,
    Instance,
    MemoryDelta,
    OperationOutcome,
    Question,
    Step,
    Trajectory,
)

MemoryKind = Literal["flat", "layered"]
"""Names of the memories: `FlatMemory`, or Mem-alpha's `LayeredMemory`."""


@dataclass(frozen=True, slots=True)
class RolloutSettings:
    """Settings of rollouts.

    Attributes:
        num_generations: G, rollouts per instance.
        top_k: Items retrieved per question; of a layered memory, from each searched store.
        capacity: Most items of the memory; `None` for no limit.
        eviction: Which item leaves a full memory, see `FlatMemory`.
        duplicates: How the memory treats an item it holds already, see `FlatMemory`.
        max_item_tokens: Longest item; `None` for no limit.
        question_fraction: Share of the global questions that are asked, in (0, 1], at least one.
        ask_chunk_questions: Whether the chunk questions are asked, where an instance has any.
        retriever: Name of the retriever, see `make_retriever`.
        dense_model: Name or folder of the sentence encoder of "dense" and "hybrid".
        token_budget: Most tokens of all items together; `None` for no limit.
        memory: Kind of the memory.
        layer_rules: Edge rules of a layered memory.

    Raises:
        ValueError: A setting is out of range.
    """

    num_generations: int = 8
    top_k: int = 3
    capacity: int | None = None
    eviction: Eviction = "oldest"
    duplicates: Duplicates = "refuse"
    max_item_tokens: int | None = None
    question_fraction: float = 1.0
    ask_chunk_questions: bool = True
    retriever: RetrieverName = "bm25"
    dense_model: str = DENSE_MODEL
    token_budget: int | None = None
    memory: MemoryKind = "flat"
    layer_rules: LayerRules = LayerRules()

    def __post_init__(self) -> None:
        for name in ("num_generations", "top_k"):
            if getattr(self, name) < 1:
                raise ValueError(
                    f"rollout settings: {name} is {getattr(self, name)!r}, expected at least 1"
                )
        if not 0 < self.question_fraction <= 1:
            raise ValueError(
                f"rollout settings: question_fraction is {self.question_fraction!r}, expected "
                "more than 0 and at most 1"
            )
        if self.retriever not in NAMES:
            raise ValueError(
                f"rollout settings: retriever is {self.retriever!r}, expected one of "
                + ", ".join(NAMES)
            )
        if self.memory not in get_args(MemoryKind):
            raise ValueError(
                f"rollout settings: memory is {self.memory!r}, expected one of "
                + ", ".join(get_args(MemoryKind))
            )
        self.new_memory()  # refuses what it cannot use, before anything is played

    def new_memory(self) -> FlatMemory:
        """Return an empty memory."""
        names = ("capacity", "eviction", "max_item_tokens", "duplicates", "token_budget")
        limits = {name: getattr(self, name) for name in names}
        if self.memory == "layered":
            return LayeredMemory(**limits, rules=self.layer_rules)
        return FlatMemory(**limits)

    def new_retriever(self) -> Retriever:
        """Return a retriever over an empty memory."""
        if self.memory == "layered":
            return LayeredRetriever(lambda: make_retriever(self.retriever, self.dense_model))
        return make_retriever(self.retriever, self.dense_model)


@dataclass(slots=True)
class _Rollout:
    instance: Instance
    questions: tuple[Question, ...]
    rollout: int
    memory: FlatMemory
    retriever: Retriever
    steps: list[Step] = field(default_factory=list)

    @property
    def live(self) -> bool:
        return len(self.steps) < len(self.instance.chunks)


def played_step(
    step: int,
    chunk: Chunk,
    completion: Completion,
    outcomes: tuple[OperationOutcome, ...],
    delta: MemoryDelta,
    memory_tokens: int,
) -> Step:
    """Return the record of a step, from a completion and its effect on the memory.

    Args:
        step: Number of the step, from 1.
        chunk: The chunk of the step.
        completion: The manager's completion.
        outcomes: The outcomes of its operations.
        delta: The change of the memory.
        memory_tokens: Number of tokens in the memory after the step.
    """
    return Step(
        step=step,
        chunk=chunk,
        completion=clean_text(completion.text),
        outcomes=outcomes,
        delta=delta,
        memory_tokens=memory_tokens,
        prompt=None if completion.prompt is None else clean_text(completion.prompt),
        prompt_ids=completion.prompt_ids,
        completion_ids=completion.completion_ids,
        logprobs=completion.logprobs,
        prompt_truncated_tokens=completion.truncated_tokens,
        prompt_omitted_items=completion.omitted_items,
    )


class LockstepRollouts:
    """G rollouts of every instance, moved one step at a time.

    Call `observations`, pass one completion for each to `advance`, and repeat until there are none;
    `finish` then asks the global questions. Instances may differ in length: a rollout that has
    ended drops out.

    Args:
        instances: Instances with distinct ids.
        settings: Settings of the rollouts.
        agent: The reasoning agent that answers the questions.
        manager_name: Written into the trajectories.
        seed: Seed of the sample of global questions.
        manager_settings: Written into the trajectories.

    Raises:
        ValueError: Two instances share an id, or one has no chunks.
    """

    def __init__(
        self,
        instances: Sequence[Instance],
        settings: RolloutSettings,
        agent: ReasoningAgent,
        manager_name: str,
        seed: int,
        manager_settings: Mapping[str, Any] | None = None,
    ) -> None:
        ids = [instance.instance_id for instance in instances]
        if len(set(ids)) < len(ids):
            double = next(name for name in ids if ids.count(name) > 1)
            raise ValueError(
                f"rollouts: instance id {double!r} occurs twice, expected ids that differ; "
                "use num_generations for several rollouts of one instance"
            )
        for instance in instances:
            if not instance.chunks:
                raise ValueError(
                    f"rollouts: instance {instance.instance_id!r} has no chunks, expected at least "
                    "one; drop it from the data"
                )
        self.settings = settings
        self.agent = agent
        self.manager_name = manager_name
        self.manager_settings = dict(manager_settings or {})
        self.seed = seed
        self._rollouts = [
            _Rollout(
                instance, asked.questions, rollout, settings.new_memory(), settings.new_retriever()
            )
            for instance in instances
            for asked in [sampled_questions(instance, settings.question_fraction, seed)]
            for rollout in range(settings.num_generations)
        ]

    def observations(self) -> list[Observation]:
        """Return what every live rollout sees now, ordered by instance and rollout; empty when
        all have ended."""
        return [
            Observation(
                instance=one.instance,
                items=one.memory.items,
                chunk=one.instance.chunks[len(one.steps)],
                step=len(one.steps) + 1,
            )
            for one in self._live()
        ]

    def advance(self, completions: Sequence[Completion]) -> None:
        """Apply one completion per observation to its memory, and ask the chunk questions.

        Args:
            completions: One per observation, in the order of `observations`.

        Raises:
            ValueError: The number of completions is not that of the observations.
        """
        live = self._live()
        if len(completions) != len(live):
            raise ValueError(
                f"rollouts: got {len(completions)} completions for {len(live)} observations, "
                "expected one each in order"
            )
        for one, completion in zip(live, completions, strict=True):
            step = len(one.steps) + 1
            outcomes, delta = one.memory.apply(completion.operations, step)
            one.retriever.update(delta)
            chunk, tokens = one.instance.chunks[step - 1], one.memory.tokens
            one.steps.append(played_step(step, chunk, completion, outcomes, delta, tokens))
        asked = [
            one
            for one in live
            if self.settings.ask_chunk_questions and one.instance.chunk_questions
        ]
        answers = self._ask(
            [(one, (one.instance.chunk_questions or ())[len(one.steps) - 1]) for one in asked]
        )
        for one, answered in zip(asked, answers, strict=True):
            one.steps[-1] = dataclasses.replace(one.steps[-1], chunk_questions=answered)
            one.memory.touch(found.item_id for answer in answered for found in answer.retrieved)

    def finish(self) -> list[list[Trajectory]]:
        """Ask the global questions on M_T; return num_generations trajectories per instance.

        Raises:
            ValueError: a rollout has not ended.
        """
        if live := self._live():
            raise ValueError(
                f"rollouts: {len(live)} of {len(self._rollouts)} have not ended, expected none; "
                "advance them until observations() is empty"
            )
        answers = self._ask([(one, one.questions) for one in self._rollouts])
        metadata = {
            "rollout": dataclasses.asdict(self.settings),
            "manager_settings": self.manager_settings,
            "agent": self.agent.name,
            "agent_settings": self.agent.settings,
        }
        trajectories = [
            Trajectory(
                instance_id=one.instance.instance_id,
                data_source=one.instance.data_source,
                category=one.instance.category,
                manager=self.manager_name,
                rollout=one.rollout,
                steps=tuple(one.steps),
                questions=answered,
                tokenizer=TOKENIZER,
                seed=self.seed,
                metadata=metadata,
            )
            for one, answered in zip(self._rollouts, answers, strict=True)
        ]
        size = self.settings.num_generations
        return [trajectories[start : start + size] for start in range(0, len(trajectories), size)]

    def _live(self) -> list[_Rollout]:
        return [one for one in self._rollouts if one.live]

    def _ask(
        self, asked: Sequence[tuple[_Rollout, tuple[Question, ...]]]
    ) -> list[tuple[AnsweredQuestion, ...]]:
        inquiries = [
            Inquiry(questions, one.memory, one.retriever, len(one.steps))
            for one, questions in asked
        ]
        return answer_questions(inquiries, self.agent, self.settings.top_k)


def check_memory(manager: str, needed: str | None, settings: RolloutSettings) -> None:
    """Check that a manager's operations are for the memory that it will edit.

    Args:
        manager: Its name.
        needed: The kind of memory it needs; `None` where any will do.
        settings: Settings of the rollouts.

    Raises:
        ValueError: It needs another kind.
    """
    if needed not in (None, settings.memory):
        raise ValueError(
            f"rollouts: manager {manager!r} needs a {needed} memory, and the rollout settings "
            f"have memory={settings.memory!r}; set memory={needed!r}, or take another manager"
        )


def play(
    instances: Sequence[Instance],
    manager: MemoryManager,
    settings: RolloutSettings,
    agent: ReasoningAgent,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Trajectory]]:
    """Let a manager play instances to their end.

    Args:
        instances: Instances with distinct ids.
        manager: The memory manager.
        settings: Settings of the rollouts.
        agent: The reasoning agent that answers the questions.
        seed: The same seed gives the same trajectories.
        progress: Called after every step with the chunks read so far and in all.

    Returns:
        Per instance num_generations trajectories.

    Raises:
        ValueError: As `LockstepRollouts`, or the manager needs another kind of memory.
    """
    check_memory(manager.name, getattr(manager, "memory", None), settings)
    rollouts = LockstepRollouts(instances, settings, agent, manager.name, seed, manager.settings)
    total = settings.num_generations * sum(len(instance.chunks) for instance in instances)
    done = 0
    while observations := rollouts.observations():
        act_seed = stable_seed(seed, "act", observations[0].step)
        rollouts.advance(manager.act(observations, act_seed))
        done += len(observations)
        if progress is not None:
            progress(done, total)
    return rollouts.finish()
