"""Train and measure a language model's warm start on real text, as a seeded command.

    python -m finemem_lib.training.text_warm_start --data FOLDER --model data/models/smollm2 \\
        --output data/smollm2_manager --seed 0
    python -m finemem_lib.training.text_warm_start --data FOLDER --measure data/smollm2_manager

An adapter on all layers learns by imitation (`text_demonstrations`) to emit operations that quote
the text, and to address the record that the text revises. It does not learn what is worth keeping.
Decoding is constrained (`managers.grammar`), so the loss covers only the choices among the allowed
tokens; the format of the operations need not be learned.

Differs from the paper: the paper starts GRPO from the instruction-tuned model itself, which is
large enough to follow the instruction; SmolLM2-135M is not.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.excerpts import without_last_fifth
from finemem_lib.data.memalpha import load_instances
from finemem_lib.managers.loading import (
    ModelSettings,
    adapter_in_half_precision,
    single_precision,
)
from finemem_lib.managers.model import ModelManager, load_manager
from finemem_lib.managers.sampling import padded_rows
from finemem_lib.memory import FlatMemory
from finemem_lib.seeds import generator
from finemem_lib.text import words
from finemem_lib.training.run import torch_threads
from finemem_lib.training.text_demonstrations import (
    KEPT,
    MOST_REVISIONS,
    RETRACTED,
    REVISED,
    TAKEN_BACK,
    Demonstration,
    demonstrations,
    memory_of,
)
from finemem_lib.training.trl_adapter import constrained_logps
from finemem_lib.trajectory import Instance, Operation
from finemem_lib.util.files import write_json, written_beside
from finemem_lib.util.provenance import code_root, git_state, hardware, versions, write_measured
from finemem_lib.util.validation import parse_json

if TYPE_CHECKING:
    import torch

SOURCES = ("squad", "locomo", "clinc150", "trec_coarse", "qmsum", "squality")
"""Data files from which the demonstrations are drawn."""

LEFT_OUT = ("hotpotqa", "banking77")
"""Data files without demonstrations, on which the warm start is measured, too."""

DEMONSTRATIONS, PASSES, BATCH, LEARNING_RATE = 3000, 1, 8, 1e-3

SETTINGS = ModelSettings(
    lora_rank=8,
    max_prompt_tokens=640,
    max_new_tokens=128,
    batch_size=32,
    operations_as="matched-quotes",
)
"""Settings to load and prompt the model."""

TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
"""Files of a tokenizer."""

TRAINED_LATER = 8
"""Number of layers, from the top, whose adapter GRPO continues to train."""

MEASURES = (
    "valid_json",
    "executable",
    "supported",
    "right_record",
    "deleted",
    "outdated",
    "without_record",
    "kept",
)
"""The shares that `measure` returns, in the order of the card's columns."""


def read_files(folder: Path, names: Sequence[str]) -> dict[str, list[Instance]]:
    """Return the instances of data files by name.

    Args:
        folder: Folder of the files.
        names: Names of the files without ``.jsonl``.

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
    """Train the adapter on the demonstrations' completions; return the loss of every update.

    Args:
        manager: The manager, changed in place.
        shown: The demonstrations; those that do not fit into a prompt are left out.
        seed: Seed of the order of batches.
        passes: Number of passes over the demonstrations, at least 1.
        learning_rate: Peak learning rate of AdamW; it falls to a tenth by a cosine schedule.
        progress: Called after every update with its number, the total number and the loss.

    Raises:
        ValueError: No demonstration fits into a prompt.
    """
    import torch

    rows = [row for one in shown if (row := _row(manager, one)) is not None]
    if not rows:
        raise ValueError(
            f"train: none of {len(shown)} demonstrations fits into prompts of "
            f"{manager.builder.max_prompt_tokens} tokens, expected one at least; draw more, or "
            "raise max_prompt_tokens"
        )
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
    losses = []
    for number, batch in enumerate(batches, start=1):
        optimiser.zero_grad()
        with _fast_backward(manager.model):
            loss = _loss(manager, [rows[place] for place in batch])
            loss.backward()  # type: ignore[no-untyped-call]  # it has no types
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        if progress is not None:
            progress(number, len(batches), losses[-1])
    manager.model.train(False)
    return losses


@contextmanager
def _fast_backward(model: Any) -> Iterator[None]:
    """Compute the adapter in bf16 and attention by plain products.

    On a CPU a forward and backward pass then takes 0.6 times as long."""
    base = model.get_base_model()
    before = base.config._attn_implementation
    base.set_attn_implementation("eager")
    try:
        with adapter_in_half_precision(model):
            yield
    finally:
        base.set_attn_implementation(before)


@dataclass(frozen=True)
class _Row:
    """A demonstration in token ids, with the allowed tokens at every position."""

    prompt: tuple[int, ...]
    completion: tuple[int, ...]
    allowed: list[tuple[int, ...]]


def _row(manager: ModelManager, shown: Demonstration) -> _Row | None:
    """Return a demonstration in token ids, or `None` if it does not fit into the prompt."""
    prompt = manager.builder.render(shown.observation)
    if prompt.omitted_items or prompt.truncated_tokens:
        return None
    assert prompt.grammar is not None
    completion = prompt.grammar.tokens(shown.completion)
    return _Row(prompt.ids, completion, prompt.grammar.choices(completion))


def _batches(rows: Sequence[_Row], seed: int) -> Iterator[list[int]]:
    """Yield batches of row indices, of similar prompt length within a batch, in random order."""
    rng = generator("text warm start", seed)
    places = list(range(len(rows)))
    rng.shuffle(places)
    parts = []
    for start in range(0, len(places), 32 * BATCH):
        pool = sorted(places[start : start + 32 * BATCH], key=lambda place: len(rows[place].prompt))
        parts += [pool[first : first + BATCH] for first in range(0, len(pool), BATCH)]
    rng.shuffle(parts)
    yield from parts


def _loss(manager: ModelManager, rows: Sequence[_Row]) -> torch.Tensor:
    """Return the mean cross entropy over the positions where several tokens are allowed."""
    ids, mask, keep = padded_rows(
        [row.prompt for row in rows],
        [row.completion for row in rows],
        pad=manager.tokenizer.pad_token_id,
        device=manager.model.device,
    )
    logps, _, _ = constrained_logps(
        manager.model,
        {(*row.prompt, *row.completion): row.allowed for row in rows},
        1.0,
        ids,
        mask,
        keep,
    )
    choices = sum(len(allowed) > 1 for row in rows for allowed in row.allowed)
    loss: torch.Tensor = -logps.sum() / choices
    return loss


def measure(manager: ModelManager, shown: Sequence[Demonstration], seed: int) -> dict[str, Any]:
    """Return the measures of the model card, from one completion per demonstration.

    Args:
        manager: The manager; completions are sampled at its temperature.
        shown: Demonstrations that it was not trained on.
        seed: Seed of the sampling.

    Returns:
        Shares, `None` where the denominator is 0, and each denominator as "<name>_of":

        - "valid_json": share of the completions that are a JSON list;
        - "executable": share of the emitted operations that the memory applies;
        - "supported": share of the INSERTs and UPDATEs with at least 0.9 of the content's words in
          the chunk;
        - "right_record": share of the UPDATEs and DELETEs in steps with a revision or retraction
          that address a revised or retracted record; an UPDATE must also write the sentence that
          revises or retracts it;
        - "deleted": share of DELETEs among the operations that address a retracted record;
        - "outdated": share of unchanged records among those retracted or with a stored revision;
        - "without_record": share of all UPDATEs and DELETEs that are in steps without revision or
          retraction;
        - "kept": share of the sentences that are stored.
    """
    completions = manager.act([one.observation for one in shown], seed)
    tally: dict[str, list[bool]] = {name: [] for name in MEASURES}
    for one, completion in zip(shown, completions, strict=True):
        try:
            tally["valid_json"].append(isinstance(json.loads(completion.text), list))
        except ValueError:
            tally["valid_json"].append(False)
        memory = memory_of(one.observation)
        outcomes, _ = memory.apply(completion.operations, 2)
        text = one.observation.chunk.text
        spoken, stored = set(words(text)), set()
        tally["executable"] += [outcome.applied for outcome in outcomes]
        meant = {one.retracted, *one.revised} - {None}
        for operation in [outcome.operation for outcome in outcomes if outcome.operation]:
            if operation.content is not None:
                said = words(operation.content)
                share = sum(word in spoken for word in said) / max(len(said), 1)
                tally["supported"].append(share >= 0.9)
                stored.add(operation.content)
            if operation.item_id is not None:
                tally["without_record"].append(not meant)
                if meant:
                    tally["right_record"].append(_is_right(operation, one))
                if operation.item_id == one.retracted:
                    tally["deleted"].append(operation.kind == "DELETE")
        tally["outdated"] += _outdated(one, stored, memory)
        quotable = manager.builder.render(one.observation).quotable
        tally["kept"] += [sentence in stored for sentence in quotable]
    return {
        "completions": len(shown),
        **{name: sum(hits) / len(hits) if hits else None for name, hits in tally.items()},
        **{f"{name}_of": len(hits) for name, hits in tally.items()},
    }


def _is_right(edit: Operation, shown: Demonstration) -> bool:
    """Return whether an UPDATE or DELETE is of a record that the text revises or retracts.

    An UPDATE must write the sentence that does so."""
    content, record = edit.content, edit.item_id or ""
    if record == shown.retracted:
        return content is None or content.startswith(TAKEN_BACK)
    return record in shown.revised and content in (None, shown.revised[record])


def _outdated(shown: Demonstration, stored: set[str], memory: FlatMemory) -> list[bool]:
    """Return whether each retracted record, or record with a stored revision, is unchanged."""
    after = {item.item_id: item.content for item in memory.items}
    return [
        after.get(item.item_id) == item.content
        for item in shown.observation.items
        if item.item_id == shown.retracted or shown.revised.get(item.item_id) in stored
    ]


CARD = """---
license: apache-2.0
library_name: peft
base_model: HuggingFaceTB/SmolLM2-135M-Instruct
---
# SmolLM2-135M as memory manager: warm start on real text

An adapter of {parameters:,} parameters ({megabytes:.1f} MB, rank {rank}, all layers, bf16) on
SmolLM2-135M-Instruct (`finemem fetch smollm2`), to start GRPO on real text from. It writes
operations that quote the sentences of the text by number; decoding is constrained to operations on
the sentences and records that the prompt shows (`finemem_lib/managers/grammar.py`), so they are
valid by construction. A record can be updated or deleted only if a sentence of the text repeats
most of its words; whether to do so is the manager's choice. It has **no**
sense for what is worth keeping: it was shown random choices. GRPO goes on training the adapter of
the {layers} layers at the top.

Made by `{command}`: {count} demonstrations, {passes} each, batches of {batch}, in {seconds}
seconds on {hardware}.

**Data.** Demonstrations drawn by `training.text_demonstrations` from {sources}, all but the last
fifth of each file's instances: pieces of at most 80 tokens, 0 to 12 records of other pieces of the
same text within 150 tokens. In {revised:.0%} of the demonstrations one to {revisions} records hold
sentences of the piece with another value; these sentences update them. In {retracted:.0%} the piece
takes a record back, which is deleted. Any other sentence is quoted with probability {kept:g}.

## Measured

{samples} completions per row, sampled at temperature 1 by `text_warm_start.measure`
(`measured.jsonl`). "Held out" are the last fifth of the same files, "left out" are {left_out}, from
which no demonstration was drawn. Valid JSON: share of the completions. Executable: share of the
operations that the memory applies. Supported: share of the written contents of whose words 90 % or
more stand in the text. Right record: of the UPDATEs and DELETEs where records are revised or taken
back (their number in brackets), those of such a record, an UPDATE by the sentence that does so.
Deleted: of those on a record taken back, the DELETEs; the others write the sentence that takes it
back into the record. Outdated: share of the records with a stored revision, and of those taken
back, that stayed as they were. No record: share of all UPDATEs and DELETEs in a step that revises
nothing. Kept: share of the sentences that were stored.

| texts | JSON | executable | supported | right record | deleted | outdated | no record | kept |
|---|---|---|---|---|---|---|---|---|
{rows}
"""

TRAINED, MEASURED = "training.json", "measured.jsonl"
"""Files in the adapter's folder: the record of its training, and the rows of the card's figures."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Train the warm start, measure it, and write adapter, figures and card; see the module.

    Args:
        arguments: Command-line arguments; `None` for those of the process.
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
            for value in manager.model.parameters():
                if value.requires_grad:
                    value.data = value.data.bfloat16()  # half as large
            manager.loaded_as = dataclasses.replace(SETTINGS, lora_layers=TRAINED_LATER)
            manager.save(beside)
            for name in TOKENIZER:  # the adapter uses the tokenizer of its base model
                (beside / name).unlink(missing_ok=True)
            write_json(beside / TRAINED, record)
            write_card(beside, manager, texts, asked)


def _trained(
    texts: Sequence[Instance], asked: argparse.Namespace
) -> tuple[ModelManager, dict[str, Any]]:
    """Return the trained manager and the record of its training."""
    git, started = git_state(code_root()), time.perf_counter()
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
        manager: The manager with this adapter.
        texts: Instances to draw demonstrations from, by name of the row.
        asked: Command-line arguments with `samples`, `seed` and `threads`.
    """
    git, started = git_state(code_root()), time.perf_counter()
    rows = []
    for number, (name, instances) in enumerate(texts.items(), start=asked.seed + 1):
        shown = demonstrations(instances, asked.samples, number)
        rows.append({"texts": name, **measure(manager, shown, number)})
    weights = (folder / "adapter_model.safetensors").read_bytes()
    write_measured(
        folder / MEASURED,
        rows,
        "python -m finemem_lib.training.text_warm_start --data FOLDER --measure "
        f"{asked.measure or asked.output} --seed {asked.seed} --samples {asked.samples} "
        f"--threads {asked.threads}",
        git,
        seed=asked.seed + 1,
        weights_sha256=hashlib.sha256(weights).hexdigest(),
        seconds=round(time.perf_counter() - started),
        hardware=f"{hardware()}, {asked.threads} threads",
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
        layers=TRAINED_LATER,
        command=record["command"],
        count=record["demonstrations"],
        passes="once" if record["passes"] == 1 else f"{record['passes']} times",
        batch=BATCH,
        seconds=record["seconds"],
        hardware=record["hardware"],
        sources=", ".join(SOURCES),
        left_out=" and ".join(LEFT_OUT),
        kept=KEPT,
        revised=REVISED,
        revisions=MOST_REVISIONS,
        retracted=RETRACTED,
        samples=rows[0]["completions"],
        rows="\n".join(_line(row) for row in rows),
    )


def _line(row: Mapping[str, Any]) -> str:
    """Return a row of the card's table."""
    cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in MEASURES]
    for place in (3, 4, 5):
        cells[place] += f" ({row[MEASURES[place] + '_of']})"
    return f"| {row['texts']} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
