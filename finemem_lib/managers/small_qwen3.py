"""Qwen3's forward pass in few operations, for models as small as the tiny manager.

In such a model the overhead of calling an operation exceeds its arithmetic. `FewOperations` uses
the weights of a transformers model and returns the same logits up to rounding. Products with the
same input are joined, queries and keys are normalised and rotated together, the last layer computes
only keys and values except at the requested positions, and the keys and values of sampled tokens
are written into a preallocated buffer, where transformers copies its cache for every token.

The module imports torch and transformers; import it only after a model is loaded.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu
from transformers import Qwen3ForCausalLM

MOST_PARAMETERS = 5_000_000
"""Largest supported model: in larger ones arithmetic takes longer than the calls."""

ROWS_AT_A_TIME = 16
"""Number of rows read together, small enough for a layer's results to stay in a core's cache."""


def is_small_qwen3(model: Any) -> bool:
    """Return whether `FewOperations` supports the model.

    Args:
        model: A causal language model.
    """
    if type(model) is not Qwen3ForCausalLM:
        return False
    config: Any = model.config
    layers = model.model.layers
    return (
        model.device.type == "cpu"
        and model.dtype == torch.float32
        and model.num_parameters() <= MOST_PARAMETERS
        and config.rope_parameters["rope_type"] == "default"
        and config.hidden_act == "silu"
        and not (config.attention_bias or config.attention_dropout or config.use_sliding_window)
        and all(type(one) is torch.nn.Linear for one in _projections(layers))
    )


def _projections(layers: Any) -> list[Any]:
    """Return the linear layers, which an adapter would wrap."""
    return [
        one
        for layer in layers
        for part in (layer.self_attn, layer.mlp)
        for name, one in part.named_children()
        if name.endswith("_proj")
    ]


@dataclass(frozen=True)
class _Layer:
    """Weights of a layer; gradients of joined weights flow to the model's own weights.

    Attributes:
        before: Norm before attention.
        projected: Projections of queries, keys and values, joined.
        normed: Norms of the query heads, then of the key heads, shape (heads, head size).
        out: Output projection of attention.
        after: Norm after attention.
        gated: Gate and up projections, joined.
        down: Down projection.
    """

    before: torch.Tensor
    projected: torch.Tensor
    normed: torch.Tensor
    out: torch.Tensor
    after: torch.Tensor
    gated: torch.Tensor
    down: torch.Tensor


class FewOperations:
    """The forward pass of a small Qwen3.

    Args:
        model: A model for which `is_small_qwen3` is true. Its weights are copied: create another
            object after they change.
    """

    def __init__(self, model: Qwen3ForCausalLM) -> None:
        config: Any = model.config
        self.backbone, self.head = model.model, model.lm_head.weight
        self.queries, self.keys = config.num_attention_heads, config.num_key_value_heads
        self.size, self.width, self.eps = config.head_dim, config.hidden_size, config.rms_norm_eps
        self.layers = [self._layer(layer) for layer in model.model.layers]

    def _layer(self, layer: Any) -> _Layer:
        own, mlp = layer.self_attn, layer.mlp
        return _Layer(
            before=layer.input_layernorm.weight,
            projected=torch.cat([own.q_proj.weight, own.k_proj.weight, own.v_proj.weight]),
            normed=torch.cat(
                [
                    own.q_norm.weight.expand(self.queries, -1),
                    own.k_norm.weight.expand(self.keys, -1),
                ]
            ),
            out=own.o_proj.weight,
            after=layer.post_attention_layernorm.weight,
            gated=torch.cat([mlp.gate_proj.weight, mlp.up_proj.weight]),
            down=mlp.down_proj.weight,
        )

    def embedded(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the embeddings of tokens, shape (rows, length, width).

        Args:
            ids: Token ids, shape (rows, length).
        """
        return embedding(ids, self.backbone.embed_tokens.weight)

    def rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of the rotary embedding.

        The sines of the first half are negated, so that `heads` needs no separate sign.

        Args:
            positions: Positions of the tokens, shape (rows, length).
        """
        cos, sin = self.backbone.rotary_emb(self.head, positions)
        sign = torch.ones(self.size)
        sign[: self.size // 2] = -1
        return cos.unsqueeze(2), (sin * sign).unsqueeze(2)

    def normalised(self, hidden: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """Return hidden states after a layer's first norm, the input of its attention.

        Args:
            hidden: Hidden states, shape (rows, length, width).
            layer: The layer.
        """
        return rms_norm(hidden, (self.width,), layer.before, self.eps)

    def heads(
        self,
        normalised: torch.Tensor,
        layer: _Layer,
        rotation: tuple[torch.Tensor, torch.Tensor],
        queries: bool = True,
        others: bool = True,
    ) -> list[torch.Tensor]:
        """Return queries, keys and values of a layer, each (rows, heads, length, head size).

        Args:
            normalised: Result of `normalised`, shape (rows, length, width).
            layer: The layer.
            rotation: Result of `rotation` for the positions.
            queries: Whether to return queries.
            others: Whether to return keys and values.
        """
        first, turned = 0 if queries else self.queries, self.queries + self.keys * others
        last = turned + self.keys * others
        weights = layer.projected[first * self.size : last * self.size]
        found = linear(normalised, weights).view(*normalised.shape[:-1], -1, self.size)
        rotated, rest = torch.split(found, [turned - first, last - turned], dim=2)
        rotated = rms_norm(rotated, (self.size,), None, self.eps) * layer.normed[first:turned]
        rotated = rotated * rotation[0] + rotated.roll(self.size // 2, -1) * rotation[1]
        parts = [*torch.split(rotated, [self.queries - first, turned - self.queries], dim=2), rest]
        return [part.transpose(1, 2) for part in parts if part.shape[2]]

    def mixed(self, hidden: torch.Tensor, attended: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """Return the hidden states after a layer.

        Args:
            hidden: Hidden states before the layer, shape (rows, length, width).
            attended: Output of the layer's attention, shape (rows, heads, length, head size).
            layer: The layer.
        """
        hidden = hidden + linear(attended.transpose(1, 2).flatten(2), layer.out)
        gate, up = linear(
            rms_norm(hidden, (self.width,), layer.after, self.eps), layer.gated
        ).chunk(2, dim=-1)
        return hidden + linear(silu(gate) * up, layer.down)

    def attend(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, **mask: Any
    ) -> torch.Tensor:
        """Return the output of attention, shape (rows, heads, length, head size).

        Args:
            queries: Queries from `heads`, shape (rows, heads, length, head size).
            keys: Keys from `heads`.
            values: Values from `heads`.
            mask: `attn_mask` or `is_causal` of torch's `scaled_dot_product_attention`.
        """
        grouped = self.queries != self.keys
        return scaled_dot_product_attention(queries, keys, values, enable_gqa=grouped, **mask)

    def attend_last(
        self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        """Return the output of attention at one position, as `attend`, in half its time.

        Args:
            queries: Queries of the position, shape (rows, heads, 1, head size).
            keys: Keys up to the position, shape (rows, key heads, length, head size).
            values: Their values.
            bias: Added to the scores, shape (rows, 1, 1, length).
        """
        grouped = queries.view(len(queries), self.keys, -1, self.size) * self.size**-0.5
        scores = torch.matmul(grouped, keys.transpose(2, 3)) + bias
        return torch.matmul(scores.softmax(dim=-1), values).view_as(queries)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states after the last layer.

        Args:
            hidden: Hidden states, shape (..., width).
        """
        normalised = rms_norm(hidden, (self.width,), self.backbone.norm.weight, self.eps)
        return linear(normalised, self.head)

    def completion_logits(
        self, ids: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits of every completion token, row by row, shape (tokens, vocabulary).

        Args:
            ids: Prompts and completions, padded on the right, shape (rows, length).
            starts: Number of tokens of every prompt, at least 1, shape (rows,).
            lengths: Number of tokens of every completion, shape (rows,).
        """
        hidden = self.embedded(ids)
        places = torch.arange(ids.shape[1])
        rotation = self.rotation(places[None])
        for layer in self.layers[:-1]:
            found = self.heads(self.normalised(hidden, layer), layer, rotation)
            hidden = self.mixed(hidden, self.attend(*found, is_causal=True), layer)
        last = self.layers[-1]
        steps = torch.arange(max(int(lengths.max()), 1))
        # The logits of a token are at the previous position; clamp positions past the end.
        asked = (starts[:, None] - 1 + steps).clamp(max=ids.shape[1] - 1)
        normalised = self.normalised(hidden, last)
        keys, values = self.heads(normalised, last, rotation, queries=False)
        rows = torch.arange(len(ids))[:, None]
        cos, sin = (table[0, asked] for table in rotation)
        [queries] = self.heads(normalised[rows, asked], last, (cos, sin), others=False)
        attended = self.attend(
            queries, keys, values, attn_mask=(places <= asked[..., None])[:, None]
        )
        hidden = self.mixed(hidden[rows, asked], attended, last)
        return self.logits(hidden[steps < lengths[:, None]])


class FewOperationsDecoder:
    """A decoder with a preallocated KV cache: prefill, then one token at a time.

    Args:
        model: A model for which `is_small_qwen3` is true.
        ids: The prompts, padded on the left, shape (rows, length).
        mask: 1 for tokens and 0 for padding, of the same shape.
        most: Largest number of further tokens.

    Attributes:
        logits: Logits of the token after every prompt, shape (rows, vocabulary).
    """

    def __init__(
        self, model: Qwen3ForCausalLM, ids: torch.Tensor, mask: torch.Tensor, most: int
    ) -> None:
        self.math = FewOperations(model)
        rows, self.read = mask.shape
        self.mask = mask.bool()
        self.positions = mask.sum(dim=1, keepdim=True)  # of the next token
        self.bias = torch.zeros(rows, 1, 1, self.read + most)
        self.bias[:, 0, 0, : self.read].masked_fill_(~self.mask, -torch.inf)
        shape = (2, rows, self.math.keys, self.read + most, self.math.size)
        cos, sin = self.math.rotation(torch.arange(self.read + most)[None])
        self.cos, self.sin = cos[0], sin[0]  # by position
        self.kept = [torch.empty(shape) for _ in self.math.layers]
        for one in self.kept:
            one[:, :, :, : self.read] = 0  # padding must be finite
        self.logits = self._prompts(ids)

    def next(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits after one more token of every row, shape (rows, vocabulary).

        Args:
            ids: The tokens, shape (rows, 1).
        """
        end = self.read + 1
        logits = self._read(ids, self.positions, slice(None), self.read, end, self.bias[..., :end])
        self.read, self.positions = end, self.positions + 1
        return logits

    def _prompts(self, ids: torch.Tensor) -> torch.Tensor:
        """Prefill the prompts in batches of similar length and return their last logits."""
        end = ids.shape[1]
        logits = ids.new_empty(len(ids), len(self.math.head), dtype=torch.float32)
        for rows in torch.split(self.positions[:, 0].argsort(stable=True), ROWS_AT_A_TIME):
            start = end - int(self.positions[rows].max())
            places = torch.arange(end - start)
            seen = self.mask[rows, None, None, start:] & (places <= places[:, None])
            # Padding attends to itself, so that its states are finite; nothing reads them.
            seen |= torch.eye(end - start, dtype=torch.bool)
            positions = (places + start - end + self.positions[rows]).clamp(min=0)
            logits[rows] = self._read(ids[rows, start:], positions, rows, start, end, seen)
        return logits

    def _read(
        self,
        ids: torch.Tensor,
        positions: torch.Tensor,
        rows: torch.Tensor | slice,
        start: int,
        end: int,
        mask: torch.Tensor,
    ) -> torch.Tensor:
        """Read tokens of some rows into positions `start` to `end`; return the last logits."""
        math = self.math
        hidden, rotation = math.embedded(ids), (self.cos[positions], self.sin[positions])
        for layer, kept in zip(math.layers, self.kept, strict=True):
            queries, keys, values = math.heads(math.normalised(hidden, layer), layer, rotation)
            kept[0, rows, :, start:end], kept[1, rows, :, start:end] = keys, values
            if layer is math.layers[-1]:
                hidden, queries, mask = hidden[:, -1:], queries[:, :, -1:], mask[:, :, -1:]
            if isinstance(rows, slice):
                attended = math.attend_last(queries, kept[0, :, :, :end], kept[1, :, :, :end], mask)
            else:
                attended = math.attend(queries, keys, values, attn_mask=mask)
            hidden = math.mixed(hidden, attended, layer)
        return math.logits(hidden[:, -1])

    def keep(self, rows: torch.Tensor) -> None:
        """Continue with only some of the rows.

        Args:
            rows: Indices of these rows, shape (rows,).
        """
        self.positions, self.bias = self.positions[rows], self.bias[rows]
        self.kept = [one.index_select(1, rows) for one in self.kept]
