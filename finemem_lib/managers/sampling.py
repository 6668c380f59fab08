"""Sampling completions from a causal language model, without carrying the finished ones along.

Completions of memory operations differ much in length: in one batch some write one SKIP and some
eight operations. `generate` keeps computing every row until the longest has ended; here a row
leaves the batch, and the cache of keys and values, once it has ended. Sampling is from the whole
distribution, whose log-probabilities are those that GRPO's ratio needs.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LIVE_SHARE = 0.75
"""Ended rows leave once the live ones are at most this share: making the cache smaller copies it,
so it does not pay for every single row."""


def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    pad_token_id: int,
    end_token_ids: Collection[int],
    seed: int,
    temperature: float = 1.0,
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """Return the token ids of one completion per prompt, with their log-probabilities in nats.

    `prompts` are token ids, padded on the left here. A completion ends with one of
    `end_token_ids`, which it includes, or at `max_new_tokens`; the pad token is never sampled
    unless it is one of them. Log-probabilities are at `temperature`, or at 1 where that is 0
    (greedy). The model should be in evaluation mode. The same seed and prompts give the same
    completions on the same machine; no global random state is used.
    """
    import torch

    device = model.device
    width = max(map(len, prompts))
    ids = torch.tensor(
        [[pad_token_id] * (width - len(row)) + list(row) for row in prompts], device=device
    )
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=device
    )
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    ends = torch.tensor(sorted(end_token_ids), device=device, dtype=ids.dtype)
    draw = torch.Generator(device).manual_seed(seed)
    rows = torch.arange(len(prompts), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    cache = None
    columns = []
    with torch.no_grad():
        for _ in range(max_new_tokens):
            output = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
            cache = output.past_key_values
            logits = output.logits[:, -1].float() / (temperature or 1.0)
            if pad_token_id not in end_token_ids:
                logits[:, pad_token_id] = -torch.inf
            logprobs = logits.log_softmax(dim=-1)
            if temperature > 0:
                ids = torch.multinomial(logprobs.exp(), 1, generator=draw)
            else:
                ids = logprobs.argmax(dim=-1, keepdim=True)
            columns.append((rows[~ended], ids[~ended, 0], logprobs.gather(1, ids)[~ended, 0]))
            ended = ended | torch.isin(ids[:, 0], ends)
            live = len(ended) - int(ended.sum())
            if live == 0:
                break
            positions = positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
            if live <= LIVE_SHARE * len(ended):
                kept = (~ended).nonzero()[:, 0]
                cache.batch_select_indices(kept)
                ids, mask, positions, rows, ended = (
                    values[kept] for values in (ids, mask, positions, rows, ended)
                )
    tokens: list[list[int]] = [[] for _ in prompts]
    values: list[list[float]] = [[] for _ in prompts]
    for column in columns:
        for row, token, value in zip(*(part.tolist() for part in column), strict=True):
            tokens[row].append(token)
            values[row].append(value)
    return [tuple(row) for row in tokens], [tuple(row) for row in values]


def generate_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    pad_token_id: int,
    end_token_ids: Collection[int],
    seed: int,
    temperature: float = 1.0,
) -> tuple[list[tuple[int, ...]], None]:
    """Return completions as `sample_completions` does, from the model's own `generate`, without
    their log-probabilities: those would take the logits of every token in memory at once."""
    import torch

    width = max(map(len, prompts))
    ids = torch.tensor(
        [[pad_token_id] * (width - len(row)) + list(row) for row in prompts], device=model.device
    )
    mask = torch.tensor(
        [[0] * (width - len(row)) + [1] * len(row) for row in prompts], device=model.device
    )
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        made = model.generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token_id,
            eos_token_id=sorted(end_token_ids) or None,
            suppress_tokens=None if pad_token_id in end_token_ids else [pad_token_id],
            **(how if temperature > 0 else {"do_sample": False}),
        )
    completions = []
    for row in made[:, width:].tolist():
        end = next((place for place, one in enumerate(row, 1) if one in end_token_ids), len(row))
        completions.append(tuple(row[:end]))
    return completions, None
