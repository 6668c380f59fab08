"""The seeded command that makes the warm start of the tiny manager for a layered memory.

    python -m finemem_lib.training.layered_warm_start --output DIR --seed 0

It begins with the warm start of the flat memory ("tiny"), which copies sentences and finds records,
and teaches Mem-alpha's calls: the demonstrations of `warm_start`, with the store of each record and
of each new item drawn at random. GRPO has to learn which store an item belongs in.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.managers import tiny
from finemem_lib.managers.model import load_manager
from finemem_lib.seeds import generator
from finemem_lib.training.warm_start import (
    BATCH,
    demonstration,
    embed_unseen_names,
    fit,
    make_or_measure,
    measure,
    parser_of,
    table_of_card,
)

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

STEPS = 200
LEARNING_RATE = 1e-3
CORE = 0.15
"""Share of the new items that rewrite the core instead, and of memories that hold one."""

ROUTE_CORE, OTHER_CORE = 0.5, 0.05
"""The same shares of running summaries, and of other items, where streams need structure."""

_FLAT = tiny.vocabulary()
_IDS = {
    structured: {
        token: number
        for number, token in enumerate(tiny.vocabulary(layers=True, structured=structured))
    }
    for structured in (False, True)
}


@dataclasses.dataclass(frozen=True, slots=True)
class Calls:
    """Token ids of a prompt and its completion, and the length of the prompt."""

    ids: tuple[int, ...]
    prompt_length: int


def as_calls(
    tokens: Sequence[str], prompt_length: int, rng: random.Random, structured: bool = False
) -> Calls:
    """Return a demonstration for the flat memory as one for the layered memory.

    Args:
        tokens: The prompt and the list of operations, one token per word, alias or piece.
        prompt_length: Tokens of the prompt.
        rng: Draws the stores.
        structured: Whether the words may be those of streams that need structure; then a running
            summary lies in the core more often than other items.

    >>> tokens = ["Mia", "#3", tiny.FIRST_CONTENT, "Ana", tiny.UPDATE, "#3", tiny.CLOSE_ID, "]"]
    >>> made = as_calls(tokens, 2, random.Random(0))
    >>> words = tiny.vocabulary(layers=True)
    >>> "".join(words[number] for number in made.ids[3:])
    'Ana","memory_id":"#e3","memory_type":"episodic"},"name":"memory_update"}]'
    """
    stores: dict[str, str] = {}
    aliases = [token for token in tokens[:prompt_length] if token in tiny.ALIASES]
    core = _core_of(tokens[:prompt_length], aliases, rng, structured)
    for alias in aliases:
        stores[alias] = rng.choice(tiny.CALL_STORES)

    def shown(alias: str) -> str:
        return tiny.CORE_ALIAS if alias == core else f"#{stores[alias][0]}{alias[1:]}"

    made = [shown(token) if token in stores else token for token in tokens[:prompt_length]]
    length, rest = len(made), list(tokens[prompt_length:])
    share = OTHER_CORE if structured else CORE
    while rest:
        token = rest.pop(0)
        if token in (tiny.UPDATE, tiny.DELETE):
            alias, _ = rest.pop(0), rest.pop(0)
            made += _edit(token, alias, core, shown(alias), stores[alias])
        elif token == tiny.INSERT:
            listed = tiny.CALL_INSERT[rng.choice(tiny.CALL_STORES)]
            made.append(tiny.CALL_CORE if rng.random() < share else listed)
        else:
            made.append(_SAME.get(token, token))
            if structured and token in _SAME:
                share = ROUTE_CORE if rest[0] == tiny.ROUTE[0] else OTHER_CORE
    return Calls(tuple(_IDS[structured][token] for token in made), length)


def _core_of(
    prompt: Sequence[str], aliases: Sequence[str], rng: random.Random, structured: bool
) -> str | None:
    """Draw the alias of the item that is shown as the core; `None` for no core."""
    if structured and tiny.ROUTE[0] in prompt and rng.random() < ROUTE_CORE:
        rest = prompt[prompt.index(tiny.ROUTE[0]) :]
        return next(token for token in rest if token in tiny.ALIASES)
    share = OTHER_CORE if structured else CORE
    return rng.choice(aliases) if aliases and rng.random() < share else None


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
    """Draw demonstrations like those of the last updates of the flat warm start.

    Args:
        rng: Source of all draws.
        size: Number of demonstrations.
    """
    found = []
    for _ in range(size):
        demo = demonstration(rng, progress=1.0)
        tokens = [_FLAT[number] for number in demo.ids]
        found.append(as_calls(tokens, demo.prompt_length, rng))
    return found


def widened(
    seed: int,
    start: str | Qwen3ForCausalLM = "tiny",
    old: Sequence[str] = _FLAT,
    new: Sequence[str] = tuple(_IDS[False]),
    like: Callable[[str], Sequence[str]] | None = None,
    apart: float = 0.5,
) -> Qwen3ForCausalLM:
    """Return a warm start with embeddings for further tokens, by default for those of calls.

    The embedding of each new token is the mean of those that it is like, plus a small random
    vector, so that tokens of different stores differ.

    Args:
        seed: Seed of the random vectors.
        start: The warm start, or its name or folder.
        old: Its vocabulary.
        new: The vocabulary wanted, which begins with the old one.
        like: Returns the old tokens that a new one is like; default: those that calls stand for.
        apart: Size of the random vectors, relative to the spread of the old embeddings.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    flat: Any = load_manager(start).model if isinstance(start, str) else start
    known = flat.get_input_embeddings().weight.detach()
    config = tiny.tiny_config()
    config.vocab_size = len(new)
    model = Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]  # it has none
    tied = ("model.embed_tokens.weight", "lm_head.weight")
    kept = {name: value for name, value in flat.state_dict().items() if name not in tied}
    model.load_state_dict(kept, strict=False)
    chance = torch.Generator("cpu").manual_seed(seed)
    spread = float(known.std())
    with torch.no_grad():
        table: Any = model.get_input_embeddings().weight
        table[: len(old)] = known
        for number, token in enumerate(new[len(old) :], start=len(old)):
            mean = known[[old.index(one) for one in (like or _like)(token)]].mean(0)
            table[number] = mean + apart * spread * torch.randn(len(mean), generator=chance)
    model.generation_config.suppress_tokens = [model.config.pad_token_id]
    return model


def _like(token: str) -> tuple[str, ...]:
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
    return (same.get(token) or f"#{token[2:]}",)


def train(seed: int, steps: int, log_every: int = 50) -> tuple[Qwen3ForCausalLM, list[float]]:
    """Train the widened model; return it with the completion loss of every update.

    Args:
        seed: Seed of the new embeddings and the demonstrations.
        steps: Number of updates.
        log_every: Updates between printed lines; 0 prints none.
    """
    model, rng = widened(seed), generator("layered warm start", seed)
    losses = fit(
        model,
        (batch_of(rng) for _ in range(steps)),
        steps,
        learning_rate=LEARNING_RATE,
        rate=lambda step: min((step + 1) / 20, 1.0, max(0.02, 1.2 * (1 - step / steps))),
        aliases=[_IDS[False][alias] for alias in tiny.CALL_ALIASES],
        log_every=log_every,
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
        seed: Seed of the training; seed + 1 draws the measured steps.
        steps: Number of updates of the training.
        samples: Number of completions per row.
        final: Final path of the folder, if it will be renamed.

    Raises:
        ValueError: The folder holds no checkpoint.
        OSError: The folder cannot be written to.
    """
    flags = f"--seed {seed} --steps {steps}"
    manager, rows = measure(
        folder,
        "layered_warm_start",
        flags,
        samples,
        seed + 1,
        final=final,
        stores=tiny.CALL_STORES,
    )
    card = CARD.format(
        parameters=manager.model.num_parameters(),
        flags=flags,
        steps=steps,
        batch=BATCH,
        core=CORE,
        samples=samples,
        **table_of_card(rows),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def main(arguments: list[str] | None = None) -> None:
    """Train, save and measure; the folder is written atomically.

    Args:
        arguments: The words after the command, by default those of this process.
    """
    make_or_measure(
        parser_of("layered_warm_start", __doc__, STEPS),
        arguments,
        lambda given: (train(given.seed, given.steps)[0], tiny.tiny_tokenizer(layers=True)),
        lambda given, folder, final: write_card(
            folder, given.seed, given.steps, given.samples, final
        ),
    )


if __name__ == "__main__":
    main()
