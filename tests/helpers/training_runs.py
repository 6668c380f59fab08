"""Small training runs: random weights, a builder that reads any completion, mixed instances.

The model is the tiny architecture with random weights, which never emits valid JSON. The builder
reads any completion as operations, so that memory, retrieval, answers and rewards are real.
"""

from __future__ import annotations

import dataclasses

import torch
from transformers import TrainerCallback

from finemem_lib.data.planted import SYNONYMS, StreamSettings, planted_stream
from finemem_lib.managers import tiny
from finemem_lib.managers.model import ModelManager
from finemem_lib.managers.prompts import CompactPromptBuilder
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.training.config import grpo_config
from finemem_lib.training.trl_adapter import load_trainer_class
from finemem_lib.trajectory import Chunk, Instance, Operation

G, LIMIT = 4, 6


class SentencePicker(CompactPromptBuilder):
    """Reads every word of a completion as the INSERT of one of the chunk's sentences."""

    def parse(self, completion, prompt):
        chunk = prompt.text.split(tiny.CHUNK)[1].split(tiny.OPERATIONS)[0]
        sentences = [part.strip() for part in chunk.split(tiny.STOP) if part.strip()]
        return tuple(
            Operation("INSERT", sentences[len(word) % len(sentences)])
            for word in completion.split()
            if sentences
        )


def manager(builder_type=SentencePicker):
    """Return the tiny architecture with random weights."""
    tokenizer, model = tiny.tiny_tokenizer(), tiny.tiny_model(seed=1)
    model.generation_config.suppress_tokens = None  # the trainer must see to that
    return ModelManager(
        model,
        tokenizer,
        builder_type(tokenizer, tiny.MAX_PROMPT_TOKENS),
        name="random weights",
        max_new_tokens=LIMIT,
    )


def mixed_instances():
    """Streams of 2, 4 and 3 chunks, the last without global questions, and one whose only
    measurable term is the chunk-level step reward."""
    streams = [
        planted_stream(number, StreamSettings(num_chunks=length))
        for number, length in enumerate((2, 4, 3))
    ]
    streams[2] = dataclasses.replace(streams[2], questions=())
    asked = streams[0].chunk_questions
    blank = Instance("blank", "planted", "AR", (Chunk("", 0),) * 2, (), asked)
    return [*streams, blank]


@dataclasses.dataclass
class Run:
    """One training run with what passed through its loss and the gradient of its last update."""

    trainer: object
    model: torch.nn.Module
    inputs: list
    gradient: dict


def run(
    tmp_path,
    instances,
    *,
    updates=1,
    builder_type=SentencePicker,
    scheme="Fine-Mem",
    rewards=None,
    capacity=None,
    w1_until=None,
    evidence_faults=None,
    updates_folder=None,
    local_groups=None,
    base=None,
    **config,
):
    """Train on instances and return what passed through the loss.

    Args:
        base: The trainer class (default: `load_trainer_class()`).
    """
    actor = manager(builder_type)
    inputs, gradient = [], {}

    class Capture(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **others):
            gradient.update(
                (name, weight.grad.clone()) for name, weight in model.named_parameters()
            )

    class Watched(base or load_trainer_class()):
        def _compute_loss(self, model, batch):
            inputs.append(batch)
            return super()._compute_loss(model, batch)

    trainer = Watched(
        actor.model,
        grpo_config(
            **{
                "output_dir": tmp_path,
                "updates": updates,
                "instances_per_update": len(instances),
                "num_generations": G,
                "max_completion_length": LIMIT,
                "learning_rate": 1e-3,
                "seed": 3,
                "max_grad_norm": 0.0,
                **config,
            }
        ),
        instances=instances,
        builder=actor.builder,
        agent=ExtractiveReader(synonyms=SYNONYMS),
        rollout=RolloutSettings(num_generations=G, capacity=capacity),
        scheme=scheme,
        rewards=rewards,
        w1_until=w1_until,
        evidence_faults=evidence_faults,
        keep_updates=range(1, updates + 1),
        updates_folder=updates_folder,
        local_groups=local_groups,
        callbacks=[Capture()],
    )
    trainer.train()
    return Run(trainer, actor.model, inputs, gradient)


def assert_equal(weights, others):
    """Assert that two state dicts hold the same numbers."""
    assert weights.keys() == others.keys()
    assert all(torch.equal(weight, others[name]) for name, weight in weights.items())


def rows_in_loss(inputs):
    """Return (prompt ids, completion ids, advantage) of every row that the loss saw."""
    return [
        (
            tuple(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()].tolist()),
            tuple(batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()),
            batch["advantages"][row].item(),
        )
        for batch in inputs
        for row in range(len(batch["advantages"]))
    ]


def same_records(records, others):
    """Whether records agree in all but the seconds that something took."""

    def untimed(record):
        return {
            name: value
            for name, value in record.items()
            if "seconds" not in name and "time" not in name
        }

    return list(map(untimed, records)) == list(map(untimed, others))
