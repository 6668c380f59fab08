"""Sample completions from a causal language model; finished completions leave the batch.

Completions of memory operations differ much in length: within one batch, one completion is a single
SKIP and another has eight operations. `generate` computes every row until the longest has ended;
here a finished row leaves the batch and the KV cache. Tokens are sampled from the whole
distribution, whose log-probabilities GRPO's ratio needs.
"""

from __future__ import annotations

import math
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

from finemem_lib.managers.grammar import QuoteGrammar, allowed_logprobs, chosen_logprobs
from finemem_lib.managers.loading import adapter_in_half_precision

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

    from finemem_lib.managers.frozen_layers import HiddenStates

LIVE_SHARE = 0.75
"""Finished rows are removed once at most this share of the rows is live. Removing copies the KV
cache, so it does not pay off for every single row."""

LOGITS_AT_A_TIME = 256
"""Number of tokens whose log-probabilities are computed together."""

UNSLOTH_HIDDEN_STATES = "UNSLOTH_RETURN_HIDDEN_STATES"
"""Environment variable of Unsloth (2026.10.7) that makes models return hidden states."""


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
        prompts: Token ids of the prompts, without padding.
        max_new_tokens: Largest number of tokens of a completion, at least 1.
        pad_token_id: Token for padding; never sampled unless it ends a completion.
        end_token_ids: Tokens that end a completion; the completion includes its end token.
        seed: Seed of the sampling; no global random state is used. Results are reproducible for
            equal prompts on one machine.
        temperature: Temperature of the distribution, at least 0; 0 is greedy.
        hidden_states: Records the hidden states, if given. Prefixes that adjacent prompts share
            are then computed once, which changes the rounding.

    Returns:
        Token ids and log-probabilities (nats) of the completions, at `temperature`, or at 1 if
        that is 0.
    """
    import torch

    draw = torch.Generator(model.device).manual_seed(seed)
    batch = _LiveRows(len(prompts), end_token_ids, model.device)
    with torch.no_grad(), adapter_in_half_precision(model):
        decoder = _decoder(model, prompts, pad_token_id, max_new_tokens, hidden_states)
        found = decoder.logits
        for count in range(1, max_new_tokens + 1):
            logits = found.float() / (temperature or 1.0)
            if pad_token_id not in end_token_ids:
                logits[:, pad_token_id] = -torch.inf
            logprobs = logits.log_softmax(dim=-1)
            ids = _next_tokens(logprobs, temperature, draw)
            live = batch.take(ids[:, 0], logprobs.gather(1, ids)[:, 0])
            if live == 0 or count == max_new_tokens:
                break
            if live <= LIVE_SHARE * len(ids):
                kept = batch.drop_ended()
                decoder.keep(kept)
                ids = ids[kept]
            found = decoder.next(ids)
            if hidden_states is not None:
                hidden_states.note(
                    [[row] for row in batch.rows.tolist()], (~batch.ended).unsqueeze(1)
                )
    sampled = batch.completions()
    if hidden_states is not None:
        hidden_states.keep(prompts, sampled[0])
    return sampled


class _LiveRows:
    """The rows of a batch that is being sampled, and the tokens sampled so far.

    Attributes:
        rows: Indices of the prompts whose rows are still in the batch.
        ended: Whether the completion of each of these rows has ended.
    """

    def __init__(self, count: int, end_token_ids: Collection[int], device: torch.device) -> None:
        import torch

        self.count = count
        self.ends = torch.tensor(sorted(end_token_ids), device=device, dtype=torch.long)
        self.rows = torch.arange(count, device=device)
        self.ended = torch.zeros(count, dtype=torch.bool, device=device)
        self.columns: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []

    def take(self, ids: torch.Tensor, logprobs: torch.Tensor) -> int:
        """Append one token per live row; return how many rows are live after it."""
        import torch

        live = ~self.ended
        self.columns.append((self.rows[live], ids[live], logprobs[live]))
        self.ended = self.ended | torch.isin(ids, self.ends)
        return len(self.ended) - int(self.ended.sum())

    def drop_ended(self) -> torch.Tensor:
        """Remove the rows that have ended, and return the places of the others."""
        kept = (~self.ended).nonzero()[:, 0]
        self.rows, self.ended = self.rows[kept], self.ended[kept]
        return kept

    def completions(self) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
        """Return tokens and log-probabilities of every prompt's completion."""
        tokens: list[list[int]] = [[] for _ in range(self.count)]
        values: list[list[float]] = [[] for _ in range(self.count)]
        for column in self.columns:
            for row, token, value in zip(*(part.tolist() for part in column), strict=True):
                tokens[row].append(token)
                values[row].append(value)
        return [tuple(row) for row in tokens], [tuple(row) for row in values]


def drawn(probabilities: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """Return what `torch.multinomial` draws, one index per row, in half its time on a CPU.

    `multinomial` returns the index with the largest quotient of probability and an exponential
    variable. It computes the exponentials one by one; here they come from the same uniform
    variables, in double precision as there, in vector operations.

    Args:
        probabilities: Probabilities, shape (rows, vocabulary).
        draw: The generator, on the same device.

    Raises:
        ValueError: A probability is not a number.
    """
    import torch

    if probabilities.device.type != "cpu":
        return torch.multinomial(probabilities, 1, generator=draw)
    uniform = torch.rand(probabilities.shape, generator=draw, dtype=torch.float64)
    exponential = uniform.neg_().log1p_().neg_().to(probabilities.dtype)
    largest, places = (probabilities / exponential).max(dim=-1, keepdim=True)
    if largest.isnan().any():
        raise ValueError(
            "sample_completions: a probability is not a number, expected finite logits; the "
            "weights have diverged: go back to an earlier checkpoint and lower learning_rate"
        )
    return places


def _next_tokens(logprobs: torch.Tensor, temperature: float, draw: torch.Generator) -> torch.Tensor:
    """Return the index of one token per row, shape (rows, 1): drawn, or at 0 the likeliest."""
    if temperature > 0:
        return drawn(logprobs.exp(), draw)
    return logprobs.argmax(dim=-1, keepdim=True)


def sample_constrained(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    grammars: Sequence[QuoteGrammar],
    *,
    max_new_tokens: int,
    pad_token_id: int,
    seed: int,
    temperature: float = 1.0,
    hidden_states: HiddenStates | None = None,
) -> tuple[list[tuple[int, ...]], list[tuple[float, ...]]]:
    """Return one completion per prompt, as `sample_completions`, constrained by a grammar.

    Forced tokens are not sampled; the model reads them together with the sampled token before them.

    Args:
        model: A causal language model; it should be in evaluation mode.
        prompts: Token ids of the prompts.
        grammars: One grammar per prompt.
        max_new_tokens: Largest number of tokens of a completion; a longer one is truncated.
        pad_token_id: Token for padding.
        seed: As for `sample_completions`.
        temperature: Temperature of the distribution, at least 0; 0 is greedy.
        hidden_states: As for `sample_completions`.

    Returns:
        Token ids and log-probabilities (nats) of the completions under the constrained
        distribution.
    """
    import torch

    draw = torch.Generator(model.device).manual_seed(seed)
    written = [_Written(grammar, max_new_tokens) for grammar in grammars]
    rows = list(range(len(prompts)))
    with torch.no_grad(), adapter_in_half_precision(model):
        begun = [[*ids, *one.tokens] for ids, one in zip(prompts, written, strict=True)]
        decoder = _Cached(model, *_prefill(model, begun, pad_token_id, hidden_states))
        found = decoder.logits
        while going := [place for place, row in enumerate(rows) if written[row].allowed]:
            extended = [written[rows[place]] for place in going]
            read: list[list[int]] = [[] for _ in rows]
            for place, added in zip(
                going, _extend(extended, found[going], temperature, draw), strict=True
            ):
                read[place] = added
            going = [place for place in going if written[rows[place]].allowed]
            if not going:
                break
            if len(going) <= LIVE_SHARE * len(rows):
                decoder.keep(torch.tensor(going, device=model.device))
                rows, read = [rows[place] for place in going], [read[place] for place in going]
            tokens, mask = _left_padded(read, pad_token_id, model.device)
            found = decoder.next(tokens, mask)
            if hidden_states is not None:
                hidden_states.note([[row] for row in rows], mask)
    completions = [tuple(one.tokens) for one in written]
    if hidden_states is not None:
        hidden_states.keep(prompts, completions)
    return completions, [tuple(one.logprobs) for one in written]


class _Written:
    """A partly written constrained completion; forced tokens are appended immediately."""

    def __init__(self, grammar: QuoteGrammar, most: int) -> None:
        self.walk, self.most = grammar.walk(), most
        self.tokens = self.walk.forced()[:most]
        self.logprobs = [0.0] * len(self.tokens)

    @property
    def allowed(self) -> tuple[int, ...]:
        """The allowed next tokens; empty at the end."""
        return self.walk.allowed if len(self.tokens) < self.most else ()

    def take(self, token: int, logprob: float) -> list[int]:
        """Append a token and the forced tokens after it, and return them."""
        self.walk.take(token)
        added = [token, *self.walk.forced()][: self.most - len(self.tokens)]
        self.tokens += added
        self.logprobs += [logprob, *[0.0] * (len(added) - 1)]
        return added


def _extend(
    completions: Sequence[_Written],
    logits: torch.Tensor,
    temperature: float,
    draw: torch.Generator,
) -> list[list[int]]:
    """Sample one allowed token per completion, and append it and the forced tokens after it.

    Returns:
        The appended tokens of every completion.
    """
    allowed = [one.allowed for one in completions]
    ids, logprobs = allowed_logprobs(logits, allowed, temperature or 1.0)
    chosen = _next_tokens(logprobs, temperature, draw)
    sampled = (values.gather(1, chosen)[:, 0].tolist() for values in (ids, logprobs))
    return [
        one.take(int(token), value) for one, token, value in zip(completions, *sampled, strict=True)
    ]


def _continued(
    model: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    positions: torch.Tensor,
    cache: Any = None,
) -> Any:
    """Return the model's output for tokens that follow those in the KV cache."""
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
    """Return the model's output for the prompts, with the KV cache, and their attention mask."""
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
    """Return runs of adjacent prompts and the length of the prefix that each run shares.

    The next prompt joins a run if it shares at least half of the run's prefix so far. The prefix
    is shorter than every prompt of its run.

    Args:
        prompts: Token ids of the prompts, at least two tokens each.

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
    """Logits of the token after every prompt, shape (rows, vocabulary)."""

    def next(self, ids: torch.Tensor) -> torch.Tensor: ...

    def keep(self, rows: torch.Tensor) -> None: ...


def _decoder(
    model: Any,
    prompts: Sequence[Sequence[int]],
    pad_token_id: int,
    most: int,
    hidden_states: HiddenStates | None,
) -> _Decoder:
    """Return a decoder after prefill that can read at most `most` further tokens."""
    from finemem_lib.managers.small_qwen3 import FewOperationsDecoder, is_small_qwen3

    if hidden_states is None and is_small_qwen3(model):
        return FewOperationsDecoder(model, *_left_padded(prompts, pad_token_id, model.device), most)
    return _Cached(model, *_prefill(model, prompts, pad_token_id, hidden_states))


class _Cached:
    """A decoder that uses the model's own forward pass and KV cache."""

    def __init__(self, model: PreTrainedModel, output: Any, mask: torch.Tensor) -> None:
        self.model, self.mask = model, mask
        self.logits: torch.Tensor = output.logits[:, -1]
        self.cache, self.last = output.past_key_values, mask.sum(dim=1, keepdim=True) - 1

    def next(self, ids: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the logits after further tokens of every row, left-padded if there are several."""
        import torch

        mask = torch.ones_like(ids) if mask is None else mask
        positions = (self.last + mask.cumsum(dim=1)).clamp(min=0)
        self.last = positions[:, -1:]
        self.mask = torch.cat([self.mask, mask], dim=1)
        output = _continued(self.model, ids, self.mask, positions, self.cache)
        logits: torch.Tensor = output.logits[:, -1]
        return logits

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with only some of the rows."""
        self.cache.batch_select_indices(rows)
        self.mask, self.last = self.mask[rows], self.last[rows]


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
        prompts: Token ids of the prompts, without padding.
        max_new_tokens: Largest number of tokens of a completion, at least 1.
        pad_token_id: Token for padding; never sampled unless it ends a completion.
        end_token_ids: Tokens that end a completion.
        seed: Seed of the sampling.
        temperature: Temperature of the distribution, at least 0; 0 is greedy.
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
        device: Device of the tensors.
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
    grammars: Sequence[QuoteGrammar] | None = None,
) -> list[tuple[float, ...] | None]:
    """Return the log-probabilities, in nats, of the tokens of completions given their prompts.

    The model reads one completion at a time, without padding, so that it needs little memory and
    the values do not depend on the batch.

    Args:
        model: A causal language model; it should be in evaluation mode.
        prompts: Token ids of the prompts.
        completions: Token ids of one completion per prompt.
        never: Tokens that are never sampled; their probability is set to 0.
        temperature: Temperature of the distribution; 0 (greedy) counts as 1.
        grammars: One grammar per prompt; `None`: unconstrained.

    Returns:
        One value per token of each completion, or `None` for a completion with a non-finite value,
        or that its grammar does not allow.
    """
    import torch

    rows: list[tuple[float, ...] | None] = []
    with torch.no_grad(), _logits_from_unsloth(), adapter_in_half_precision(model):
        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            try:
                allowed = None if grammars is None else grammars[row].choices(completion)
            except ValueError:
                rows.append(None)
                continue
            ids = torch.tensor([[*prompt, *completion]], device=model.device)
            count = len(completion)
            # The slice also works for a model that ignores logits_to_keep.
            logits = model(input_ids=ids, logits_to_keep=count + 1).logits[0, -count - 1 : -1]
            if allowed is not None:
                found, _ = chosen_logprobs(logits, allowed, completion, temperature or 1.0)
                rows.append(finite_or_none(found.tolist()))
                continue
            values: list[float] = []
            for start in range(0, count, LOGITS_AT_A_TIME):  # float32 logits need much memory
                part = logits[start : start + LOGITS_AT_A_TIME].float()
                part[:, list(never)] = -torch.inf
                logprobs = (part / (temperature or 1.0)).log_softmax(dim=-1)
                tokens = ids[0, -count:][start : start + LOGITS_AT_A_TIME, None]
                values += logprobs.gather(1, tokens)[:, 0].tolist()
            rows.append(finite_or_none(values))
    return rows


def finite_or_none(logprobs: Sequence[float | None] | None) -> tuple[float, ...] | None:
    """Return the log-probabilities of one completion, or `None` unless all of them are finite.

    vLLM reports NaN, and TRL passes it on, for a token whose log-probability is unavailable.

    Args:
        logprobs: One value per token, in nats; `None` if the sampler reported none.

    >>> finite_or_none([-0.5, -1.0]), finite_or_none([-0.5, float("nan")])
    ((-0.5, -1.0), None)
    """
    known = [] if logprobs is None else [value for value in logprobs if value is not None]
    if logprobs is None or len(known) < len(logprobs) or not all(map(math.isfinite, known)):
        return None
    return tuple(known)


@contextmanager
def _logits_from_unsloth() -> Iterator[None]:
    """Make a model of Unsloth return logits.

    During training such a model returns hidden states instead, and an error can leave it in that
    mode. Other models do not read the variable."""
    before = os.environ.get(UNSLOTH_HIDDEN_STATES)
    os.environ[UNSLOTH_HIDDEN_STATES] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[UNSLOTH_HIDDEN_STATES]
        else:
            os.environ[UNSLOTH_HIDDEN_STATES] = before
