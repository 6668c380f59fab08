"""The seeded command that trains a language model's warm start on real text, and its figures.

    python -m finemem_lib.training.text_warm_start --data FOLDER --model data/models/smollm2 \\
        --output data/smollm2_manager --seed 0
    python -m finemem_lib.training.text_warm_start --data FOLDER --measure data/smollm2_manager

An adapter on the upper layers learns by imitation (`text_demonstrations`) to write operations that
quote the text, and to address the record that the text revises. It learns nothing about what is
worth keeping. The layers below the adapter are frozen, so their output is computed once per
demonstration and read again in every pass.

Differs from the paper: it starts GRPO from the instruction-tuned model itself, which is large
enough to follow the instruction; SmolLM2-135M is not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.excerpts import without_last_fifth
from finemem_lib.data.memalpha import load_instances
from finemem_lib.managers.frozen_layers import FrozenLayers
from finemem_lib.managers.loading import ModelSettings, single_precision
from finemem_lib.managers.model import ModelManager, load_manager
from finemem_lib.managers.sampling import padded_rows
from finemem_lib.seeds import generator
from finemem_lib.text import words
from finemem_lib.training.run import torch_threads
from finemem_lib.training.text_demonstrations import (
    KEPT,
    RETRACTED,
    REVISED,
    UPDATED,
    Demonstration,
    demonstrations,
    memory_of,
)
from finemem_lib.trajectory import Instance
from finemem_lib.util.files import write_json, written_beside
from finemem_lib.util.provenance import git_state, hardware, repository_root, versions
from finemem_lib.util.validation import parse_json

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
        pad, device = manager.tokenizer.pad_token_id, manager.model.device
        loss = _loss(frozen, rows, batch, known, pad, device)
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
    device: torch.device,
) -> torch.Tensor:
    """Return the mean cross entropy of the completions' tokens; `known` keeps lower layers' output
    by row."""
    import torch

    prompts, completions = zip(*(rows[place] for place in batch), strict=True)
    ids, mask, keep = padded_rows(prompts, completions, pad=pad, device=device)
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


CARD = """---
license: apache-2.0
library_name: peft
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M as memory manager: warm start on real text

An adapter of {parameters:,} parameters ({megabytes:.1f} MB, rank {rank}, the {layers} layers at the
top) on SmolLM2-135M-Instruct (`finemem fetch smollm2`), to start GRPO on real text from. It writes
operations that quote the sentences of the text by number. How often it finds the record that a
text revises stands below. It has **no** sense for what is worth keeping: it was shown random
choices.

Made by `{command}`: {count} demonstrations, {passes} times each, batches of {batch}, in {seconds}
seconds on {hardware}.

**Data.** Demonstrations drawn by `training.text_demonstrations` from {sources}, all but the last
fifth of each file's instances: pieces of at most 80 tokens, 0 to 12 records of other pieces of the
same text within 150 tokens. A sentence is quoted with probability {kept:g}. In {revised:.0%} of the
demonstrations a record holds a sentence of the piece with another value; where that sentence is
quoted, the record is updated ({updated:.0%}) or deleted and the sentence inserted. In
{retracted:.0%} the piece takes a record back, which is then deleted.

## Measured

{samples} completions per row, sampled at temperature 1 by `text_warm_start.measure`
(`measured.jsonl`). "Held out" are the last fifth of the same files, "left out" are {left_out}, from
which no demonstration was drawn. Valid JSON: share of the completions. Executable: share of the
operations that the memory applies. Supported: share of the written contents of whose words 90 % or
more stand in the text. Right record: of the UPDATEs and DELETEs where a record is revised or taken
back (their number in brackets). Without record: share of all UPDATEs and DELETEs in a step that
revises nothing. Kept: share of the sentences that were stored.

| texts | valid JSON | executable | supported | right record | without record | kept |
|---|---|---|---|---|---|---|
{rows}
"""

TRAINED, MEASURED = "training.json", "measured.jsonl"
"""Files in the folder of the adapter: how it was trained, and the rows of the card's figures; the
rows' own card lies beside them."""

_COLUMNS = ("valid_json", "executable", "supported", "right_record", "without_record", "kept")


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the warm start, measure it, and write adapter, figures and card; see the module.

    Args:
        arguments: The command line's; `None` for the process's own.
    """
    parser = argparse.ArgumentParser(description="Train or measure a warm start on real text.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--model", default="data/models/smollm2", help="the model's folder")
    parser.add_argument("--output", type=Path, help="train, and write into this new folder")
    parser.add_argument("--measure", type=Path, help="measure the adapter in this folder again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--demonstrations", type=int, default=DEMONSTRATIONS)
    parser.add_argument("--passes", type=int, default=PASSES)
    parser.add_argument("--samples", type=int, default=200, help="completions per row of the card")
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args(arguments)
    if (asked.output is None) == (asked.measure is None):
        parser.error("expected one of --output and --measure")
    parts = [without_last_fifth(one) for one in read_files(asked.data, SOURCES).values()]
    to_train, held_out = ([one for part in parts for one in part[n]] for n in (0, 1))
    left_out = [one for part in read_files(asked.data, LEFT_OUT).values() for one in part]
    texts = {"held out": held_out, "left out": left_out}
    with torch_threads(asked.threads):
        if asked.measure is not None:
            write_card(asked.measure, load_manager(asked.measure), texts, asked)
            return
        if asked.output.exists():
            parser.error(f"{asked.output} exists and is kept; name another folder, or remove it")
        manager, record = _trained(to_train, asked)
        with written_beside(asked.output) as beside:
            manager.save(beside)
            write_json(beside / TRAINED, record)
            write_card(beside, manager, texts, asked)


def _trained(
    texts: Sequence[Instance], asked: argparse.Namespace
) -> tuple[ModelManager, dict[str, Any]]:
    """Return the trained manager and the record of its training."""
    git, started = git_state(repository_root()), time.perf_counter()
    manager = load_manager(asked.model, model=SETTINGS, seed=asked.seed)
    single_precision(manager.model)
    losses = train(
        manager,
        demonstrations(texts, asked.demonstrations, asked.seed),
        asked.seed,
        passes=asked.passes,
        progress=lambda n, of, loss: print(f"update {n} of {of}: loss {loss:.3f}", flush=True),
    )
    adapters: Any = manager.model.peft_config
    adapters["default"].base_model_name_or_path = asked.model
    return manager, {
        "command": f"python -m finemem_lib.training.text_warm_start --data FOLDER --model "
        f"{asked.model} --output {asked.output} --seed {asked.seed} --demonstrations "
        f"{asked.demonstrations} --passes {asked.passes} --threads {asked.threads}",
        "demonstrations": asked.demonstrations,
        "passes": asked.passes,
        "seconds": round(time.perf_counter() - started),
        "loss": {"first": round(losses[0], 3), "last": round(losses[-1], 3)},
        "hardware": f"{hardware()}, {asked.threads} threads",
        "git": git,
        "versions": versions(),
    }


def write_card(
    folder: Path,
    manager: ModelManager,
    texts: Mapping[str, Sequence[Instance]],
    asked: argparse.Namespace,
) -> None:
    """Measure an adapter and write the rows, their card, and the card of the adapter.

    Args:
        folder: Folder of the adapter, with `TRAINED`.
        manager: The manager in it.
        texts: Instances to draw demonstrations from, by the row's name.
        asked: Of the command line: `samples`, `seed` and `threads`.
    """
    git, started = git_state(repository_root()), time.perf_counter()
    rows = []
    for number, (name, instances) in enumerate(texts.items(), start=asked.seed + 1):
        shown = demonstrations(instances, asked.samples, number)
        rows.append({"texts": name, **measure(manager, shown, number)})
    with written_beside(folder / MEASURED) as beside:
        beside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    weights = (folder / "adapter_model.safetensors").read_bytes()
    shown_folder = asked.measure or asked.output
    write_json(
        (folder / MEASURED).with_suffix(".json"),
        {
            "command": "python -m finemem_lib.training.text_warm_start --data FOLDER --measure "
            f"{shown_folder} --seed {asked.seed} --samples {asked.samples} "
            f"--threads {asked.threads}",
            "seed": asked.seed + 1,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "seconds": round(time.perf_counter() - started),
            "hardware": f"{hardware()}, {asked.threads} threads",
            "git": git,
            "versions": versions(),
        },
    )
    (folder / "README.md").write_text(card(folder), encoding="utf-8")


def card(folder: Path) -> str:
    """Return the card of an adapter from the files in its folder.

    Args:
        folder: Folder of the adapter, with `TRAINED` and `MEASURED`.
    """
    from peft.utils import load_peft_weights

    weights = load_peft_weights(str(folder), device="cpu")
    record = parse_json((folder / TRAINED).read_bytes())
    lines = (folder / MEASURED).read_text(encoding="utf-8").splitlines()
    rows = [parse_json(line) for line in lines]
    return CARD.format(
        parameters=sum(value.numel() for value in weights.values()),
        megabytes=(folder / "adapter_model.safetensors").stat().st_size / 1e6,
        rank=SETTINGS.lora_rank,
        layers=SETTINGS.lora_layers,
        command=record["command"],
        count=record["demonstrations"],
        passes=record["passes"],
        batch=BATCH,
        seconds=record["seconds"],
        hardware=record["hardware"],
        sources=", ".join(SOURCES),
        left_out=" and ".join(LEFT_OUT),
        kept=KEPT,
        revised=REVISED,
        updated=UPDATED,
        retracted=RETRACTED,
        samples=rows[0]["completions"],
        rows="\n".join(_line(row) for row in rows),
    )


def _line(row: Mapping[str, Any]) -> str:
    """Return a row of the card's table."""
    cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in _COLUMNS]
    cells[3] += f" ({row['right_record_of']})"
    return f"| {row['texts']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
