"""The seeded command that makes the warm start of the tiny manager for a layered memory.

    python -m finemem_lib.training.layered_warm_start --output DIR --seed 0

It begins with the warm start of the flat memory ("tiny"), which copies sentences and finds records,
and teaches Mem-alpha's calls: the demonstrations of `warm_start`, with the store of each record and
of each new item drawn at random. What belongs in which store is left to GRPO.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.planted import NAMES
from finemem_lib.managers import tiny
from finemem_lib.managers.model import load_manager
from finemem_lib.seeds import generator
from finemem_lib.training.warm_start import (
    BATCH,
    COUNTED,
    ID_WEIGHT,
    MEASURED,
    demonstration,
    embed_unseen_names,
    evaluate,
)
from finemem_lib.util.files import write_json, written_beside
from finemem_lib.util.provenance import code_root, git_state, hardware, versions, workbench_root

if TYPE_CHECKING:
    import torch
    from transformers import Qwen3ForCausalLM

STEPS = 200
LEARNING_RATE = 1e-3
CORE = 0.15
"""Share of the new items that rewrite the core instead, and of memories that hold one."""

_FLAT = tiny.vocabulary()
_TOKENS = tiny.vocabulary(layers=True)
_IDS = {token: number for number, token in enumerate(_TOKENS)}


@dataclasses.dataclass(frozen=True, slots=True)
class Calls:
    """Token ids of a prompt and its completion, and the length of the prompt."""

    ids: tuple[int, ...]
    prompt_length: int


def as_calls(tokens: Sequence[str], prompt_length: int, rng: random.Random) -> Calls:
    """Return a demonstration for the flat memory as one for the layered memory.

    Args:
        tokens: The prompt and the list of operations, one token per word, alias or piece.
        prompt_length: Tokens of the prompt.
        rng: Draws the stores.

    >>> tokens = ["Mia", "#3", tiny.FIRST_CONTENT, "Ana", tiny.UPDATE, "#3", tiny.CLOSE_ID, "]"]
    >>> made = as_calls(tokens, 2, random.Random(0))
    >>> "".join(_TOKENS[number] for number in made.ids[3:])
    'Ana","memory_id":"#e3","memory_type":"episodic"},"name":"memory_update"}]'
    """
    stores: dict[str, str] = {}
    aliases = [token for token in tokens[:prompt_length] if token in tiny.ALIASES]
    core = rng.choice(aliases) if aliases and rng.random() < CORE else None
    for alias in aliases:
        stores[alias] = rng.choice(tiny.CALL_STORES)

    def shown(alias: str) -> str:
        return tiny.CORE_ALIAS if alias == core else f"#{stores[alias][0]}{alias[1:]}"

    made = [shown(token) if token in stores else token for token in tokens[:prompt_length]]
    length, rest = len(made), list(tokens[prompt_length:])
    while rest:
        token = rest.pop(0)
        if token in (tiny.UPDATE, tiny.DELETE):
            alias, _ = rest.pop(0), rest.pop(0)
            made += _edit(token, alias, core, shown(alias), stores[alias])
        elif token == tiny.INSERT:
            listed = tiny.CALL_INSERT[rng.choice(tiny.CALL_STORES)]
            made.append(tiny.CALL_CORE if rng.random() < CORE else listed)
        else:
            made.append(_SAME.get(token, token))
    return Calls(tuple(_IDS[token] for token in made), length)


_SAME = {
    tiny.FIRST_CONTENT: tiny.FIRST_CALL,
    tiny.NEXT_CONTENT: tiny.NEXT_CALL,
    tiny.SKIP: tiny.CALL_SKIP,
}


def _edit(token: str, alias: str, core: str | None, shown: str, store: Any) -> list[str]:
    """Return the pieces of an UPDATE or DELETE; the core is rewritten and never deleted."""
    if token == tiny.UPDATE:
        if alias == core:
            return [tiny.CALL_CORE]
        return [tiny.CALL_ID, shown, tiny.CALL_UPDATED[store]]
    return [] if alias == core else [tiny.CALL_DELETE, shown, tiny.CALL_DELETED[store]]


def batch_of(rng: random.Random, size: int = BATCH) -> list[Calls]:
    """Draw demonstrations, as the flat warm start ended with.

    Args:
        rng: Source of all draws.
        size: How many.
    """
    found = []
    for _ in range(size):
        demo = demonstration(rng, progress=1.0)
        tokens = [_FLAT[number] for number in demo.ids]
        found.append(as_calls(tokens, demo.prompt_length, rng))
    return found


def widened(seed: int) -> Qwen3ForCausalLM:
    """Return the flat warm start with embeddings for the tokens of calls.

    The embedding of each new token is that of the flat token it stands for, plus a small random
    vector, so that tokens of different stores differ.

    Args:
        seed: Seed of the random vectors.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    flat: Any = load_manager("tiny").model
    old = flat.get_input_embeddings().weight.detach()
    config = tiny.tiny_config()
    config.vocab_size = len(_TOKENS)
    model = Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]  # it has none
    tied = ("model.embed_tokens.weight", "lm_head.weight")
    kept = {name: value for name, value in flat.state_dict().items() if name not in tied}
    model.load_state_dict(kept, strict=False)
    chance = torch.Generator("cpu").manual_seed(seed)
    spread = float(old.std())
    with torch.no_grad():
        table: Any = model.get_input_embeddings().weight
        table[: len(_FLAT)] = old
        for token in _TOKENS[len(_FLAT) :]:
            like = old[_FLAT.index(_like(token))]
            table[_IDS[token]] = like + 0.5 * spread * torch.randn(len(like), generator=chance)
    model.generation_config.suppress_tokens = [model.config.pad_token_id]
    return model


def _like(token: str) -> str:
    """Return the flat token that a token of calls stands for."""
    same = {
        tiny.FIRST_CALL: tiny.FIRST_CONTENT,
        tiny.NEXT_CALL: tiny.NEXT_CONTENT,
        tiny.CALL_SKIP: tiny.SKIP,
        tiny.CALL_CORE: tiny.INSERT,
        tiny.CALL_ID: tiny.UPDATE,
        tiny.CALL_DELETE: tiny.DELETE,
        tiny.CORE_ALIAS: "#0",
        **dict.fromkeys(tiny.CALL_INSERT.values(), tiny.INSERT),
        **dict.fromkeys(tiny.CALL_UPDATED.values(), tiny.CLOSE_ID),
        **dict.fromkeys(tiny.CALL_DELETED.values(), tiny.CLOSE_ID),
    }
    return same.get(token) or f"#{token[2:]}"


def _collate(batch: Sequence[Calls]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded ids and labels (-100 outside the completion), both (batch, length)."""
    import torch

    longest = max(len(one.ids) for one in batch)
    ids = torch.full((len(batch), longest), _IDS[tiny.PAD])
    labels = torch.full_like(ids, -100)
    for row, one in enumerate(batch):
        ids[row, : len(one.ids)] = torch.tensor(one.ids)
        labels[row, one.prompt_length : len(one.ids)] = ids[row, one.prompt_length : len(one.ids)]
    return ids, labels


def train(seed: int, steps: int, log_every: int = 50) -> tuple[Qwen3ForCausalLM, list[float]]:
    """Train the widened model; return it with the completion loss of every update.

    Args:
        seed: Seed of the new embeddings and the demonstrations.
        steps: Number of updates.
        log_every: Updates between printed lines; 0 prints none.
    """
    import torch
    from torch.nn.functional import cross_entropy

    model = widened(seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min((step + 1) / 20, 1.0, max(0.02, 1.2 * (1 - step / steps)))
    )
    weights = torch.ones(len(_TOKENS))
    weights[[_IDS[alias] for alias in tiny.CALL_ALIASES]] = ID_WEIGHT
    rng = generator("layered warm start", seed)
    losses, started = [], time.perf_counter()
    for step in range(steps):
        ids, labels = _collate(batch_of(rng))
        out = model.model(
            input_ids=ids, attention_mask=(ids != _IDS[tiny.PAD]).long(), use_cache=False
        )
        asked = labels[:, 1:] != -100
        logits, targets = model.lm_head(out.last_hidden_state[:, :-1][asked]), labels[:, 1:][asked]
        loss = cross_entropy(logits, targets, weight=weights)
        losses.append(loss.item())
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if log_every and (step + 1) % log_every == 0:
            print(
                f"update {step + 1}/{steps}: loss {sum(losses[-log_every:]) / log_every:.4f}, "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
    embed_unseen_names(model, seed)  # the flat tokens have the ids that they have there
    return model, losses


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# Tiny memory manager for layers: warm start

The tiny manager for a layered memory (`LayeredMemory`): a Qwen3 of {parameters:,} parameters that
answers with Mem-alpha's calls on core, semantic and episodic memory. It reads the plain world of
the planted stream. Which store an item goes to was drawn at random: filing, like keeping, is left
to GRPO. Sample from it; greedy decoding skips everything.

Made by `python -m finemem_lib.training.layered_warm_start --output DIR {flags}` from the warm start
of the flat memory: {steps} updates of {batch} demonstrations. An alias names the store by its
letter. {core:.0%} of the new items rewrite the core.

## Measured

Sampled at temperature 1 on held-out steps, {samples} completions per row, by
`warm_start.evaluate`, whose columns the card of the flat warm start explains; the items lie in
semantic and episodic memory in turn, and rewrites of the core count among neither updates nor
records. `measured.json` says how the rows of `measured.jsonl` were made.

| names | records | {columns} |
|---|---|{rule}|
{rows}
"""


def write_card(folder: Path, seed: int, steps: int, samples: int, final: Path | None = None) -> str:
    """Measure the checkpoint in `folder`, write rows and card there, and return the card.

    Args:
        folder: Folder of the checkpoint.
        seed: Seed of the training; the next one draws the steps that are measured.
        steps: Updates that it was trained for.
        samples: Completions measured per row.
        final: Where the folder will lie, if it is still to be renamed.

    Raises:
        ValueError: The folder holds no checkpoint.
        OSError: It cannot be written to.
    """
    started = time.perf_counter()
    git = git_state(code_root())
    manager = load_manager(folder)
    rows: list[dict[str, Any]] = [
        {
            "names": title,
            **evaluate(manager, samples, seed + 1, records, names, stores=tiny.CALL_STORES),
        }
        for title, names, sizes in (
            ("seen", NAMES, (3, 6, 10, 16)),
            ("never seen", tiny.UNSEEN_NAMES, (3, 10)),
        )
        for records in sizes
    ]
    root, whole = workbench_root(), (final or folder).resolve()
    place = whole.relative_to(root) if whole.is_relative_to(root) else whole.name
    flags = f"--seed {seed} --steps {steps}"
    with written_beside(folder / MEASURED) as beside:
        beside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    weights = (folder / "model.safetensors").read_bytes()
    write_json(
        (folder / MEASURED).with_suffix(".json"),
        {
            "command": "python -m finemem_lib.training.layered_warm_start --measure "
            f"{place} {flags} --samples {samples}",
            "seed": seed + 1,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "seconds": round(time.perf_counter() - started),
            "hardware": f"{hardware()}, one process",
            "git": git,
            "versions": versions(),
        },
    )
    card = CARD.format(
        parameters=manager.model.num_parameters(),
        flags=flags,
        steps=steps,
        batch=BATCH,
        core=CORE,
        samples=samples,
        columns=" | ".join(name.replace("_", " ") for name in COUNTED),
        rule="|".join("---" for _ in COUNTED),
        rows="\n".join(_line(row) for row in rows),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def _line(row: dict[str, Any]) -> str:
    """Return a row of the card's table."""
    cells = ["-" if row[name] is None else f"{row[name]:.3f}" for name in COUNTED]
    cells[3] += f" ({row['edits_with_record']})"
    return f"| {row['names']} | {row['records']} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> None:
    """Train, save, measure; the folder appears whole or not at all.

    Args:
        arguments: The words after the command, by default those of this process.
    """
    from transformers.utils import logging

    parser = argparse.ArgumentParser(
        prog="python -m finemem_lib.training.layered_warm_start",
        description=__doc__.partition("\n")[0],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="folder to make")
    what.add_argument("--measure", type=Path, help="folder that --output made, to measure again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=STEPS, help="updates (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="completions per row of the card")
    given = parser.parse_args(arguments)
    if given.output and given.output.exists():
        parser.error(f"--output {given.output} exists; name a new folder, or remove this one first")
    if given.measure and not (given.measure / "model.safetensors").is_file():
        parser.error(f"--measure {given.measure} holds no checkpoint; make one with --output")
    if min(given.steps, given.samples) < 1:
        parser.error("--steps and --samples: expected at least 1")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    if given.measure:
        print(write_card(given.measure, given.seed, given.steps, given.samples))
        return
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.output.parent, suffix=".tmp") as beside:
        folder = Path(beside) / given.output.name
        model, _ = train(given.seed, given.steps)
        model.save_pretrained(folder)
        tiny.tiny_tokenizer(layers=True).save_pretrained(folder)
        card = write_card(folder, given.seed, given.steps, given.samples, final=given.output)
        folder.rename(given.output)
    print(card)


if __name__ == "__main__":
    main()
