"""The seeded command that trains a language model's warm start on real text, and its figures.

    python -m finemem_lib.training.text_warm_start --data FOLDER --model data/models/smollm2 \\
        --output data/smollm2_manager --seed 0

An adapter on the upper layers learns by imitation (`text_demonstrations`) to write operations that
quote the text, and to address the record that the text revises. It learns nothing about what is
worth keeping. The layers below the adapter are frozen, so their output is computed once per
demonstration and read again in every pass.

Differs from the paper: it starts GRPO from the instruction-tuned model itself, which is large
enough to follow the instruction; SmolLM2-135M is not.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.memalpha import load_instances
from finemem_lib.managers.frozen_layers import FrozenLayers
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import ModelManager
from finemem_lib.managers.sampling import padded_rows
from finemem_lib.seeds import generator
from finemem_lib.text import words
from finemem_lib.training.text_demonstrations import (
    Demonstration,
    memory_of,
)
from finemem_lib.trajectory import Instance

if TYPE_CHECKING:
    import torch

SOURCES = ("squad", "locomo", "clinc150", "trec_coarse", "qmsum", "squality")
"""Files that the demonstrations are drawn from."""

LEFT_OUT = ("hotpotqa", "banking77")
"""Files that no demonstration is drawn from; the figures are reported on them, too."""

DEMONSTRATIONS, PASSES, BATCH, LEARNING_RATE = 3000, 2, 16, 1e-3

SETTINGS = ModelSettings(
    precision="bf16",
    lora_rank=16,
    lora_layers=8,
    max_prompt_tokens=640,
    max_new_tokens=128,
    batch_size=32,
    operations_as="quotes",
)
"""How the model is loaded and prompted."""


def read_files(folder: Path, names: Sequence[str]) -> dict[str, list[Instance]]:
    """Return the instances of data files by name.

    Args:
        folder: Folder of the files.
        names: Their names without ``.jsonl``.

    Raises:
        ValueError: A file is missing or cannot be read.
    """
    return {name: list(load_instances(folder / f"{name}.jsonl").instances) for name in names}


def train(
    manager: ModelManager,
    shown: Sequence[Demonstration],
    seed: int,
    *,
    passes: int = PASSES,
    learning_rate: float = LEARNING_RATE,
    progress: Callable[[int, int, float], None] | None = None,
) -> list[float]:
    """Train the adapter to write the demonstrations' completions; return the losses of updates.

    Args:
        manager: The manager, changed in place.
        shown: The demonstrations.
        seed: Orders the batches.
        passes: How often every demonstration is shown, at least 1.
        learning_rate: Of AdamW at its highest; it falls to a tenth by a cosine.
        progress: Called after every update with its number, their number and the loss.
    """
    import torch

    tokenizer: Any = manager.tokenizer
    frozen = FrozenLayers(manager.model)
    rows = []
    for one in shown:
        prompt = manager.builder.render(one.observation).ids
        written = tokenizer(one.completion, add_special_tokens=False)["input_ids"]
        rows.append((prompt, (*written, manager.end_token_ids[0])))
    weights = [value for value in manager.model.parameters() if value.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.0)
    batches = [batch for n in range(passes) for batch in _batches(rows, seed + n)]
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda n: (
            min((n + 1) / 20, 1.0)
            * (0.1 + 0.45 * (1 + math.cos(math.pi * min(1.0, n / len(batches)))))
        ),
    )
    manager.model.train(True)
    known: dict[int, torch.Tensor] = {}
    losses = []
    for number, batch in enumerate(batches, start=1):
        loss = _loss(frozen, rows, batch, known, manager.tokenizer.pad_token_id)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # it has no types
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(number, len(batches), losses[-1])
    manager.model.train(False)
    return losses


def _batches(rows: Sequence[tuple[Sequence[int], Sequence[int]]], seed: int) -> Iterator[list[int]]:
    """Yield the places of rows, those of like length together, in a random order of batches."""
    rng = generator("text warm start", seed)
    places = list(range(len(rows)))
    rng.shuffle(places)
    parts = []
    for start in range(0, len(places), 16 * BATCH):
        pool = sorted(places[start : start + 16 * BATCH], key=lambda place: len(rows[place][0]))
        parts += [pool[first : first + BATCH] for first in range(0, len(pool), BATCH)]
    rng.shuffle(parts)
    yield from parts


def _loss(
    frozen: FrozenLayers,
    rows: Sequence[tuple[Sequence[int], Sequence[int]]],
    batch: Sequence[int],
    known: dict[int, torch.Tensor],
    pad: int,
) -> torch.Tensor:
    """Return the mean cross entropy of the completions' tokens; `known` keeps lower layers' output
    by row."""
    import torch

    ids, mask, keep = padded_rows(*zip(*(rows[place] for place in batch), strict=True), pad=pad)
    if all(place in known for place in batch):
        width = known[batch[0]].shape[-1]
        hidden = known[batch[0]].new_zeros(*ids.shape, width)
        for row, place in enumerate(batch):
            hidden[row, mask[row].bool()] = known[place]
    else:
        hidden = frozen.hidden(ids, mask)
        known |= {place: hidden[row, mask[row].bool()].clone() for row, place in enumerate(batch)}
    logits = frozen.logits(hidden, mask, keep + 1)[:, :-1].float()
    counted = mask[:, -keep:].bool()
    loss: torch.Tensor = torch.nn.functional.cross_entropy(logits[counted], ids[:, -keep:][counted])
    return loss


def measure(manager: ModelManager, shown: Sequence[Demonstration], seed: int) -> dict[str, Any]:
    """Return the shares of the card, from one completion per demonstration.

    Args:
        manager: The manager; its temperature says how it is sampled.
        shown: Demonstrations that it was not trained on.
        seed: Seed of the sampling.

    Returns:
        "valid_json" over completions; "executable" over emitted operations; "supported" over
        INSERTs and UPDATEs: at least 0.9 of the content's words stand in the chunk;
        "right_record" over UPDATEs and DELETEs of steps with a revision or a retraction: the record
        is the one; "without_record" over all UPDATEs and DELETEs: the step revises nothing;
        "kept" over sentences; `None` where nothing was counted. And the numbers they are over.
    """
    completions = manager.act([one.observation for one in shown], seed)
    tally: dict[str, list[bool]] = {
        name: []
        for name in (
            "valid_json",
            "executable",
            "supported",
            "right_record",
            "without_record",
            "kept",
        )
    }
    for one, completion in zip(shown, completions, strict=True):
        try:
            tally["valid_json"].append(isinstance(json.loads(completion.text), list))
        except ValueError:
            tally["valid_json"].append(False)
        outcomes, _ = memory_of(one.observation).apply(completion.operations, 2)
        text = one.observation.chunk.text
        spoken, stored = set(words(text)), set()
        tally["executable"] += [outcome.applied for outcome in outcomes]
        meant = {one.retracted, one.revised and one.revised[0]} - {None}
        for operation in [outcome.operation for outcome in outcomes if outcome.operation]:
            if operation.content is not None:
                said = words(operation.content)
                share = sum(word in spoken for word in said) / max(len(said), 1)
                tally["supported"].append(share >= 0.9)
                stored.add(operation.content)
            if operation.item_id is not None:
                tally["without_record"].append(not meant)
                if meant:
                    tally["right_record"].append(operation.item_id in meant)
        quotable = manager.builder.render(one.observation).quotable
        tally["kept"] += [sentence in stored for sentence in quotable]
    return {
        "completions": len(shown),
        **{name: sum(hits) / len(hits) if hits else None for name, hits in tally.items()},
        **{f"{name}_of": len(hits) for name, hits in tally.items()},
    }
