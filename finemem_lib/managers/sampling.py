"""Sampling completions from a causal language model, without carrying the finished ones along.

Completions of memory operations differ much in length: in one batch some write one SKIP and some
eight operations. `generate` keeps computing every row until the longest has ended; here a row
leaves the batch, and the cache of keys and values, once it has ended. Sampling is from the whole
distribution, whose log-probabilities are those that GRPO's ratio needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from finemem_lib.managers.frozen_layers import HiddenStates

LIVE_SHARE = 0.75
"""Ended rows leave once the live ones are at most this share: making the cache smaller copies it,
so it does not pay for every single row."""

LOGITS_AT_A_TIME = 256
"""Tokens whose log-probabilities are computed together."""

UNSLOTH_HIDDEN_STATES = "UNSLOTH_RETURN_HIDDEN_STATES"
"""Environment variable of Unsloth (2026.10.7)."""


def sample_completions(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    pad_token_id: int,
    end_token_ids: Collection[int],
    seed: int,
    temperature: float = 1.0,
    hidden_states: HiddenStates | None = None,
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """Return one completion per prompt and the log-probabilities of its tokens.

    Args:
        model: A causal language model; it should be in evaluation mode.
        prompts: Token ids of the prompts; they are padded on the left here.
        max_new_tokens: Most tokens of a completion.
        pad_token_id: Token for padding; never sampled unless it ends a completion.
        end_token_ids: Tokens that end a completion, which includes the one it ends with.
        seed: The same seed and prompts give the same completions on the same machine; no global
            random state is used.
        temperature: Temperature of the distribution; 0 takes the most likely token.
        hidden_states: Records the hidden states that are computed on the way. Beginnings that
            neighbouring prompts share are then computed once, which rounds otherwise.

    Returns:
        Token ids and log-probabilities (nats) of the completions, the latter at `temperature`, or
        at 1 where that is 0.
    """
    import torch

    device = model.device
    ends = torch.tensor(sorted(end_token_ids), device=device, dtype=torch.long)
    draw = torch.Generator(device).manual_seed(seed)
    rows = torch.arange(len(prompts), device=device)
    ended = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    columns = []
    with torch.no_grad():
        decoder = _decoder(model, prompts, pad_token_id, max_new_tokens, hidden_states)
        found = decoder.logits
        for count in range(1, max_new_tokens + 1):
            logits = found.float() / (temperature or 1.0)
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
            if live == 0 or count == max_new_tokens:
                break
            if live <= LIVE_SHARE * len(ended):
                kept = (~ended).nonzero()[:, 0]
                decoder.keep(kept)
                ids, rows, ended = (values[kept] for values in (ids, rows, ended))
            found = decoder.next(ids)
            if hidden_states is not None:
                hidden_states.note([[row] for row in rows.tolist()], (~ended).unsqueeze(1))
    sampled = _rows_of(columns, len(prompts))
    if hidden_states is not None:
        hidden_states.keep(prompts, sampled[0])
    return sampled


def _continued(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: Any = None,
) -> Any:
    """Return the model's output for the tokens that follow those in the cache."""
    return model(
        input_ids=ids,
        attention_mask=mask,
        position_ids=positions,
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )


def _prefill(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    pad_token_id: int,
    hidden_states: HiddenStates | None,
) -> tuple[Any, torch.Tensor]:
    """Return the model's output for the prompts, with its cache, and their attention mask."""
    import torch

    device = model.device
    if hidden_states is None:
        ids, mask = _left_padded(prompts, pad_token_id, device)
        return _continued(model, ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0)), mask
    runs = shared_beginnings(prompts)
    ids, mask = _left_padded([prompts[run[0]][:n] for run, n in runs], pad_token_id, device)
    output = _continued(model, ids, mask, (mask.cumsum(dim=1) - 1).clamp(min=0))
    hidden_states.note([list(run) for run, _ in runs], mask)
    of_row = torch.tensor([place for place, (run, _) in enumerate(runs) for _ in run])
    output.past_key_values.batch_select_indices(of_row.to(device))
    rests = [prompts[row][n:] for run, n in runs for row in run]
    ids, rest = _left_padded(rests, pad_token_id, device)
    mask = torch.cat([mask[of_row], rest], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -rest.shape[1] :]
    output = _continued(model, ids, mask, positions, output.past_key_values)
    hidden_states.note([[row] for row in range(len(prompts))], rest)
    return output, mask


def shared_beginnings(prompts: Sequence[Sequence[int]]) -> list[tuple[range, int]]:
    """Return runs of neighbouring prompts and how many tokens at the beginning each run shares.

    A run goes on while the next prompt shares at least half of what the run has shared so far. At
    least one token of every prompt remains after the shared ones.

    Args:
        prompts: Token ids of prompts, each at least two.

    >>> shared_beginnings([[1, 2, 3, 4], [1, 2, 3, 5], [1, 2, 3, 4], [9, 8]])
    [(range(0, 3), 3), (range(3, 4), 1)]
    """
    runs: list[tuple[range, int]] = []
    for row, prompt in enumerate(prompts):
        most = len(prompt) - 1
        if runs:
            run, shared = runs[-1]
            first = prompts[run.start]
            common = next(
                (n for n in range(min(shared, most)) if prompt[n] != first[n]), min(shared, most)
            )
            if 2 * common >= shared:
                runs[-1] = range(run.start, row + 1), common
                continue
        runs.append((range(row, row + 1), most))
    return runs


class _Decoder(Protocol):
    logits: torch.Tensor
    """Of the token behind every prompt, shape (rows, vocabulary)."""

    def next(self, ids: torch.Tensor) -> torch.Tensor: ...

    def keep(self, rows: torch.Tensor) -> None: ...


def _decoder(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad_token_id: int,
    most: int,
    hidden_states: HiddenStates | None,
) -> _Decoder:
    """Return what has read the prompts and reads at most `most` tokens behind them."""
    from finemem_lib.managers.small_qwen3 import FewOperationsDecoder, is_small_qwen3

    if hidden_states is None and is_small_qwen3(model):
        return FewOperationsDecoder(model, *_left_padded(prompts, pad_token_id, model.device), most)
    return _Cached(model, *_prefill(model, prompts, pad_token_id, hidden_states))


class _Cached:
    """Reads token after token through the model's own forward pass and cache."""

    def __init__(self, model: PreTrainedModel, output: Any, mask: torch.Tensor) -> None:
        self.model, self.mask = model, mask
        self.logits: torch.Tensor = output.logits[:, -1]
        self.cache, self.last = output.past_key_values, mask.sum(dim=1, keepdim=True) - 1

    def next(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits behind one more token of every row."""
        import torch

        self.last = self.last + 1
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], dim=1)
        output = _continued(self.model, ids, self.mask, self.last, self.cache)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some of the rows only."""
        self.cache.batch_select_indices(rows)
        self.mask, self.last = self.mask[rows], self.last[rows]


def _rows_of(
    columns: Sequence[tuple[torch.Tensor, torch.Tensor, torch.Tensor]], count: int
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """Return tokens and log-probabilities by row, sampled as columns of rows, tokens and values."""
    tokens: list[list[int]] = [[] for _ in range(count)]
    values: list[list[float]] = [[] for _ in range(count)]
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
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...] | None]]:
    """Return completions as `sample_completions` does, sampled by the model's own `generate`.

    Their log-probabilities come from one forward pass per completion (`completion_logprobs`).

    Args:
        model: A causal language model.
        prompts: Token ids of every prompt.
        max_new_tokens: Most tokens of a completion.
        pad_token_id: Fills the prompts up on the left; it is not sampled, unless it ends one.
        end_token_ids: Tokens that end a completion.
        seed: Seed of the sampling.
        temperature: At least 0; 0 is greedy.
    """
    import torch

    ids, mask = _left_padded(prompts, pad_token_id, model.device)
    how = {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        generate: Any = model.generate
        generated = generate(
            input_ids=ids,
            attention_mask=mask,
            max_new_tokens=max_new_tokens,
            pad_token_id=pad_token_id,
            eos_token_id=sorted(end_token_ids) or None,
            suppress_tokens=None if pad_token_id in end_token_ids else [pad_token_id],
            **(how if temperature > 0 else {"do_sample": False}),
        )
    completions: list[tuple[int, ...]] = []
    for row in generated[:, ids.shape[1] :].tolist():
        end = next((place for place, token in enumerate(row, 1) if token in end_token_ids), None)
        completions.append(tuple(row[:end]))
    logprobs = completion_logprobs(
        model,
        prompts,
        completions,
        never=() if pad_token_id in end_token_ids else (pad_token_id,),
        temperature=temperature,
    )
    return completions, logprobs


def _left_padded(
    prompts: Sequence[Sequence[int]], pad_token_id: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids and attention mask of prompts, both (prompts, longest prompt)."""
    import torch

    width = max(map(len, prompts))
    ids = [[pad_token_id] * (width - len(row)) + list(row) for row in prompts]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in prompts]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def padded_rows(
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    pad: int,
    device: torch.device | str = "cpu",
) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return token ids and mask of whole rows, and the width of the completions.

    Prompts are padded on the left and completions on the right, as TRL does.

    Args:
        prompts: Token ids of the prompts.
        completions: Token ids of one completion per prompt.
        pad: Token for padding.
        device: Where the tensors are to lie.
    """
    import torch

    before, after = max(map(len, prompts)), max(map(len, completions))
    ids, mask = [], []
    for prompt, completion in zip(prompts, completions, strict=True):
        left, right = before - len(prompt), after - len(completion)
        ids.append([pad] * left + [*prompt, *completion] + [pad] * right)
        mask.append([0] * left + [1] * (len(prompt) + len(completion)) + [0] * right)
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device), after


def completion_logprobs(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
    *,
    never: Collection[int] = (),
    temperature: float = 1.0,
) -> list[tuple[float, ...] | None]:
    """Return the log-probability, in nats, of every token of completions after their prompts.

    One completion goes through the model at a time, without padding, so that memory stays small
    and the values do not depend on the batch.

    Args:
        model: A causal language model; it should be in evaluation mode.
        prompts: Token ids of the prompts.
        completions: Token ids of one completion per prompt.
        never: Tokens that are never sampled, whose probability counts as 0.
        temperature: Temperature of the distribution; 0 (greedy) counts as 1.

    Returns:
        One value per token of each completion, or `None` for a completion with a value that is not
        finite.
    """
    import torch

    rows: list[tuple[float, ...] | None] = []
    with torch.no_grad(), _logits_from_unsloth():
        for prompt, completion in zip(prompts, completions, strict=True):
            ids = torch.tensor([[*prompt, *completion]], device=model.device)
            count = len(completion)
            # The slice holds for a model that ignores logits_to_keep, too.
            logits = model(input_ids=ids, logits_to_keep=count + 1).logits[0, -count - 1 : -1]
            values: list[float] = []
            for start in range(0, count, LOGITS_AT_A_TIME):  # a large vocabulary in float32 is big
                part = logits[start : start + LOGITS_AT_A_TIME].float()
                part[:, list(never)] = -torch.inf
                logprobs = (part / (temperature or 1.0)).log_softmax(dim=-1)
                tokens = ids[0, -count:][start : start + LOGITS_AT_A_TIME, None]
                values += logprobs.gather(1, tokens)[:, 0].tolist()
            rows.append(finite_or_none(values))
    return rows


def finite_or_none(logprobs: Sequence[float | None] | None) -> tuple[float, ...] | None:
    """Return the log-probabilities of one completion, or `None` where not all of them are finite.

    vLLM reports NaN, and TRL passes it on, for a token whose log-probability is unavailable.

    Args:
        logprobs: One value per token in nats; `None` where none were reported.

    >>> finite_or_none([-0.5, -1.0]), finite_or_none([-0.5, float("nan")])
    ((-0.5, -1.0), None)
    """
    known = [] if logprobs is None else [value for value in logprobs if value is not None]
    if logprobs is None or len(known) < len(logprobs) or not all(map(math.isfinite, known)):
        return None
    return tuple(known)


@contextmanager
def _logits_from_unsloth() -> Iterator[None]:
    """Let a model of Unsloth's return logits: while its trainer computes, it returns hidden states
    in their place, and an error can leave it so. Other models do not read the variable."""
    before = os.environ.get(UNSLOTH_HIDDEN_STATES)
    os.environ[UNSLOTH_HIDDEN_STATES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[UNSLOTH_HIDDEN_STATES]
        else:
            os.environ[UNSLOTH_HIDDEN_STATES] = before
