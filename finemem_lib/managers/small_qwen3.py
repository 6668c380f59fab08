"""Qwen3's forward pass in few operations, for models as small as the tiny manager.

In such a model calling an operation costs more than its arithmetic. `FewOperations` reads the
weights of a transformers model and returns what that model returns, to rounding: products of the
same input are one product, queries and keys are normalised and rotated together, the last layer
computes the positions that are asked for and of the others keys and values only, and sampled tokens
are written into a buffer of keys and values, where transformers copies its cache for every token.

Imports torch and transformers, so it is imported where a model is at hand and not before.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import embedding, linear, rms_norm, scaled_dot_product_attention, silu
from transformers import Qwen3ForCausalLM

MOST_PARAMETERS = 5_000_000
"""In larger models arithmetic costs more than calls."""

ROWS_AT_A_TIME = 16
"""Rows that are read together: what a layer computes of them stays in a core's cache."""


def is_small_qwen3(model: Any) -> bool:
    """Return whether `FewOperations` computes what the model does.

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
    """Return what an adapter would wrap."""
    return [
        one
        for layer in layers
        for part in (layer.self_attn, layer.mlp)
        for name, one in part.named_children()
        if name.endswith("_proj")
    ]


@dataclass(frozen=True)
class _Layer:
    """Weights of a layer; of those that are joined, the gradient flows to the model's own.

    Attributes:
        projected: Queries, keys and values.
        normed: Norms of the query heads, then of the key heads, shape (heads, size of a head).
        gated: Gate, then up.
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
        model: A model of which `is_small_qwen3` holds. Its weights are read here: make another
            object after they changed.
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
        """Return the embedding of tokens.

        Args:
            ids: Shape (rows, length).
        """
        return embedding(ids, self.backbone.embed_tokens.weight)

    def rotation(self, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return cosines and sines of positions; the sign of the half that is turned is the sine's.

        Args:
            positions: Shape (rows, length).
        """
        cos, sin = self.backbone.rotary_emb(self.head, positions)
        sign = torch.ones(self.size)
        sign[: self.size // 2] = -1
        return cos.unsqueeze(2), (sin * sign).unsqueeze(2)

    def normalised(self, hidden: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """Return hidden states as a layer's attention takes them.

        Args:
            hidden: Shape (rows, length, width).
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
        """Return queries, keys and values of a layer, each (rows, heads, length, size of a head).

        Args:
            normalised: `normalised` states.
            layer: The layer.
            rotation: `rotation` of their positions.
            queries: Whether to return queries.
            others: Whether to return keys and values.
        """
        first, turned = 0 if queries else self.queries, self.queries + self.keys * others
        last = turned + self.keys * others
        weights = layer.projected[first * self.size : last * self.size]
        found = linear(normalised, weights).view(*normalised.shape[:-1], -1, self.size)
        both, rest = torch.split(found, [turned - first, last - turned], dim=2)
        both = rms_norm(both, (self.size,), None, self.eps) * layer.normed[first:turned]
        both = both * rotation[0] + both.roll(self.size // 2, -1) * rotation[1]
        parts = [*torch.split(both, [self.queries - first, turned - self.queries], dim=2), rest]
        return [part.transpose(1, 2) for part in parts if part.shape[2]]

    def mixed(self, hidden: torch.Tensor, attended: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """Return the hidden states behind a layer.

        Args:
            hidden: Those before it, shape (rows, length, width).
            attended: What its attention found for them, shape (rows, heads, length, size).
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
        """Return what queries find; `mask` is that of torch.

        Args:
            queries: Shape (rows, heads, length, size), as `heads` returns them.
            keys: As queries.
            values: As queries.
            mask: `attn_mask` or `is_causal`.
        """
        grouped = self.queries != self.keys
        return scaled_dot_product_attention(queries, keys, values, enable_gqa=grouped, **mask)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Return the logits of hidden states behind the last layer.

        Args:
            hidden: Shape (..., width).
        """
        normalised = rms_norm(hidden, (self.width,), self.backbone.norm.weight, self.eps)
        return linear(normalised, self.head)

    def completion_logits(
        self, ids: torch.Tensor, starts: torch.Tensor, lengths: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits that every completion token was drawn from, shape (tokens, vocabulary),
        row by row.

        Args:
            ids: Prompts and completions, padded on the right, shape (rows, length).
            starts: Tokens of every prompt, at least 1, shape (rows,).
            lengths: Tokens of every completion, shape (rows,).
        """
        hidden = self.embedded(ids)
        places = torch.arange(ids.shape[1])
        rotation = self.rotation(places[None])
        for layer in self.layers[:-1]:
            found = self.heads(self.normalised(hidden, layer), layer, rotation)
            hidden = self.mixed(hidden, self.attend(*found, is_causal=True), layer)
        last = self.layers[-1]
        steps = torch.arange(max(int(lengths.max()), 1))
        # A token is drawn behind the one before it; past a completion's end nothing is read.
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
    """Reads prompts and then token after token, with keys and values kept.

    Args:
        model: A model of which `is_small_qwen3` holds.
        ids: The prompts, padded on the left, shape (rows, length).
        mask: 1 where a prompt has a token, of the same shape.
        most: Most tokens that follow.

    Attributes:
        logits: Of the token behind every prompt, shape (rows, vocabulary).
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
        self.kept = [torch.zeros(shape) for _ in self.math.layers]
        self.logits = self._prompts(ids)

    def next(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the logits behind one more token of every row, shape (rows, vocabulary).

        Args:
            ids: The tokens, shape (rows, 1).
        """
        end = self.read + 1
        logits = self._read(ids, self.positions, slice(None), self.read, end, self.bias[..., :end])
        self.read, self.positions = end, self.positions + 1
        return logits

    def _prompts(self, ids: torch.Tensor) -> torch.Tensor:
        """Read the prompts, those of like length together."""
        end = ids.shape[1]
        logits = ids.new_empty(len(ids), len(self.math.head), dtype=torch.float32)
        for rows in torch.split(self.positions[:, 0].argsort(stable=True), ROWS_AT_A_TIME):
            start = end - int(self.positions[rows].max())
            places = torch.arange(end - start)
            seen = self.mask[rows, None, None, start:] & (places <= places[:, None])
            # What fills up a prompt sees itself, so that it holds numbers, which nothing reads.
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
        """Read tokens of some rows into the places from `start` to `end`."""
        math = self.math
        hidden, rotation = math.embedded(ids), math.rotation(positions)
        for layer, kept in zip(math.layers, self.kept, strict=True):
            queries, keys, values = math.heads(math.normalised(hidden, layer), layer, rotation)
            kept[0, rows, :, start:end], kept[1, rows, :, start:end] = keys, values
            if isinstance(rows, slice):
                keys, values = kept[0, :, :, :end], kept[1, :, :, :end]
            if layer is math.layers[-1]:
                hidden, queries, mask = hidden[:, -1:], queries[:, :, -1:], mask[:, :, -1:]
            attended = math.attend(queries, keys, values, attn_mask=mask)
            hidden = math.mixed(hidden, attended, layer)
        return math.logits(hidden[:, -1])

    def keep(self, rows: torch.Tensor) -> None:
        """Go on with some of the rows only.

        Args:
            rows: Their places, shape (rows,).
        """
        self.positions, self.bias = self.positions[rows], self.bias[rows]
        self.kept = [one[:, rows] for one in self.kept]
