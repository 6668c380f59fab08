"""Compute the frozen lower layers of a model only once, for both sampling and training.

With adapters in the upper layers only, the hidden states that enter the lowest adapted layer do
not change during training. Sampling computes and records them; training reuses them and runs only
the upper layers, forward and backward.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from types import SimpleNamespace, TracebackType
from typing import TYPE_CHECKING, Any

from finemem_lib.managers.loading import adapter_in_half_precision, layer_of

if TYPE_CHECKING:
    import torch


class HiddenStates(AbstractContextManager["HiddenStates"]):
    """Hidden states at the input of a layer, recorded while completions are sampled.

    Use it as a context manager during sampling, and call `note` after every forward pass.

    Args:
        layer: The layer whose input is recorded.
    """

    def __init__(self, layer: torch.nn.Module) -> None:
        self.layer = layer
        self.kept: dict[tuple[int, ...], torch.Tensor] = {}
        self._parts: dict[int, list[torch.Tensor]] = {}
        self._seen: torch.Tensor | None = None
        self._hook: Any = None

    def __enter__(self) -> HiddenStates:
        def see(module: torch.nn.Module, arguments: tuple[Any, ...]) -> None:
            self._seen = arguments[0]

        self._hook = self.layer.register_forward_pre_hook(see)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._hook.remove()
        self._parts, self._seen = {}, None

    def note(self, rows: Sequence[Sequence[int]], mask: torch.Tensor) -> None:
        """Record the states of the last forward pass.

        Args:
            rows: Per row of the pass, the numbers of the prompts that share it.
            mask: 1 for tokens and 0 for padding, shape (rows of the pass, tokens of the pass).
        """
        assert self._seen is not None
        for place, counted in enumerate(rows):
            states = self._seen[place][mask[place].bool()]
            for row in counted:
                self._parts.setdefault(row, []).append(states)

    def keep(self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]) -> None:
        """Store the recorded states by the token ids of prompt and completion.

        The model never reads the last sampled token, so a row has one state fewer than tokens.

        Args:
            prompts: Token ids of the prompts.
            completions: Token ids of one completion per prompt.
        """
        import torch

        for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
            key = (*prompt, *completion)
            self.kept[key] = torch.cat(self._parts[row])[: len(key) - 1]
        self._parts = {}


class FrozenLayers:
    """A wrapper of a model with frozen lower layers that reuses their recorded output.

    Calls return the model's logits, with gradients from the lowest trained layer up. If `states`
    holds the hidden states of all rows, the lower layers are skipped.

    Args:
        model: A causal language model of transformers, alone or with adapters.

    Raises:
        ValueError: The model has no decoder with layers, or its lowest layer is trained.
    """

    def __init__(self, model: torch.nn.Module) -> None:
        whole: Any = model
        causal = whole.get_base_model() if hasattr(whole, "get_base_model") else whole
        decoder = getattr(causal, "model", None)
        self.model, self.first = model, first_trained_layer(model)
        if decoder is None or not self.first:
            raise ValueError(
                f"FrozenLayers: the lowest trained layer is {self.first}, expected adapters in "
                "upper layers only (lora_layers) and everything else frozen"
            )
        self.head: Callable[[torch.Tensor], torch.Tensor] = causal.get_output_embeddings()
        self.states = HiddenStates(decoder.layers[self.first])
        self._lower = _with_layers(decoder, slice(self.first))
        self._lower.norm = _identity()
        self._upper = _with_layers(decoder, slice(self.first, None))

    def hidden(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the output of the lower layers, shape (rows, tokens, width), without gradient.

        Args:
            input_ids: Token ids, shape (rows, tokens).
            attention_mask: 1 for tokens and 0 for padding on either side, of the same shape.
        """
        import torch

        rows = [ids[mask.bool()] for ids, mask in zip(input_ids, attention_mask, strict=True)]
        known = [self.states.kept.get(tuple(row.tolist())) for row in rows]
        if any(states is None for states in known):
            with torch.no_grad(), adapter_in_half_precision(self.model):
                output: torch.Tensor = self._lower(
                    input_ids=input_ids, attention_mask=attention_mask, use_cache=False
                ).last_hidden_state
            return output
        width = known[0].shape[-1]  # type: ignore[union-attr]  # none is None here
        found = known[0].new_zeros(*input_ids.shape, width)  # type: ignore[union-attr]
        for row, states in enumerate(known):
            places = attention_mask[row].nonzero()[:, 0][: len(states)]  # type: ignore[arg-type]
            found[row, places] = states  # type: ignore[assignment]
        return found

    def logits(
        self, hidden: torch.Tensor, attention_mask: torch.Tensor, keep: int = 0
    ) -> torch.Tensor:
        """Return the logits of the last tokens, shape (rows, `keep`, vocabulary).

        Args:
            hidden: The result of `hidden`, shape (rows, tokens, width).
            attention_mask: 1 for tokens and 0 for padding, shape (rows, tokens).
            keep: Number of last tokens; 0 for all.
        """
        output = self._output(hidden, attention_mask)
        # Flatten: torch would multiply a slice as a batch, with a copy of the head for every row.
        kept = output[:, -keep:]
        return self.head(kept.reshape(-1, kept.shape[-1])).view(*kept.shape[:2], -1)

    def logits_at(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, places: torch.Tensor
    ) -> torch.Tensor:
        """Return the logits at selected positions, shape (selected positions, vocabulary).

        Args:
            input_ids: Token ids, shape (rows, tokens).
            attention_mask: 1 for tokens and 0 for padding, of the same shape.
            places: Boolean mask of the selected positions, of the same shape.
        """
        output = self._output(self.hidden(input_ids, attention_mask), attention_mask)
        return self.head(output[places])

    def _output(self, hidden: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return the output of the upper layers."""
        with adapter_in_half_precision(self.model):
            output: torch.Tensor = self._upper(
                inputs_embeds=hidden, attention_mask=attention_mask, use_cache=False
            ).last_hidden_state
        return output.to(hidden.dtype)

    def __call__(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, **settings: Any
    ) -> SimpleNamespace:
        """Return an object with `logits`, as a transformers model does.

        Args:
            input_ids: Token ids, shape (rows, tokens).
            attention_mask: 1 for tokens and 0 for padding, of the same shape.
            settings: Further arguments; only `logits_to_keep` is used.
        """
        hidden = self.hidden(input_ids, attention_mask)
        keep = settings.get("logits_to_keep", 0)
        return SimpleNamespace(logits=self.logits(hidden, attention_mask, keep))


def frozen_layers(model: torch.nn.Module) -> FrozenLayers | None:
    """Return `FrozenLayers` of a model; `None` if its lowest layer is trained, or no layer is.

    Args:
        model: A causal language model, alone or with adapters.
    """
    return FrozenLayers(model) if first_trained_layer(model) else None


def first_trained_layer(model: torch.nn.Module) -> int | None:
    """Return the index of the lowest layer with trained weights, from 0; `None` if there is none.

    Embeddings count as layer 0, because training them needs a gradient through all layers.

    Args:
        model: A causal language model, alone or with adapters.
    """
    trained = (name for name, value in model.named_parameters() if value.requires_grad)
    return min(map(layer_of, trained), default=None)


def _with_layers(decoder: Any, which: slice) -> Any:
    """Return a decoder that shares the modules of another but has only some of its layers."""
    import torch

    part = copy.copy(decoder)
    part._modules = dict(decoder._modules)
    part.layers = torch.nn.ModuleList(list(decoder.layers)[which])
    return part


def _identity() -> torch.nn.Module:
    import torch

    return torch.nn.Identity()
