"""Embed texts with a sentence encoder: the mean of its last hidden states, normalised to length 1.

Embeddings are cached in memory by the hash of the model and the text. New texts are encoded in
batches of similar length, because padding costs time. Padding changes each number of a vector by
less than `TOLERANCE`.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from finemem_lib.util.provenance import workbench_root

if TYPE_CHECKING:
    from numpy.typing import NDArray

DENSE_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
"""Default sentence encoder of dense retrieval."""

FETCHED = "data/models/minilm"
"""Folder of `finemem fetch minilm`, relative to the repository; preferred over the hub."""

TOLERANCE = 1e-6
"""Largest change of a number in a normalised vector by the other texts of its batch."""

BATCH = 8
"""Number of texts encoded together; on one thread larger batches take longer per text."""

MAX_CACHED = 1 << 16
"""Largest number of cached vectors, about 100 MB at 384 numbers each; the oldest are dropped."""

_CACHE: dict[tuple[str, str], NDArray[np.float32]] = {}


@dataclass(frozen=True, slots=True)
class SentenceEncoder:
    """A model that turns texts into vectors.

    Attributes:
        tokenizer: A transformers tokenizer.
        model: A transformers encoder, used with mean pooling.
        max_tokens: Largest number of tokens of a text; longer texts are truncated.
        model_hash: SHA-256 of weights, tokenizer and `max_tokens`.
    """

    tokenizer: Any
    model: Any
    max_tokens: int
    model_hash: str

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return one vector of length 1 per text, shape (texts, dimensions).

        Args:
            texts: At least one text, in any order.
        """
        import torch

        ids = self.tokenizer([*texts], truncation=True, max_length=self.max_tokens)["input_ids"]
        order = sorted(range(len(texts)), key=lambda place: len(ids[place]))
        vectors = []
        for start in range(0, len(order), BATCH):
            rows = [torch.tensor(ids[place]) for place in order[start : start + BATCH]]
            padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([[len(row)] for row in rows])
            mask = (torch.arange(padded.shape[1]) < lengths).long()
            with torch.inference_mode():
                hidden = self.model(input_ids=padded, attention_mask=mask).last_hidden_state
                mean = (hidden * mask[..., None]).sum(dim=1) / lengths
                vectors.append(torch.nn.functional.normalize(mean, dim=1).numpy())
        in_order = np.concatenate(vectors)
        embedded = np.empty_like(in_order)
        embedded[order] = in_order
        return embedded


@functools.cache
def load_encoder(model_name: str) -> SentenceEncoder:
    """Return a sentence encoder, in 32 bits on the CPU.

    Args:
        model_name: A folder or a name on the hub of a sentence-transformers model or any
            transformers encoder.

    Raises:
        ValueError: the model cannot be loaded, or does not use mean pooling.
    """
    import torch
    from transformers import AutoModel, AutoTokenizer

    fetched = workbench_root() / FETCHED
    source = str(fetched) if model_name == DENSE_MODEL and fetched.is_dir() else model_name
    try:
        tokenizer = AutoTokenizer.from_pretrained(source)
        model = AutoModel.from_pretrained(source, dtype=torch.float32, use_safetensors=True).eval()
    except (OSError, ValueError) as error:
        raise ValueError(
            f"dense retrieval: {model_name!r} could not be loaded ({str(error).splitlines()[0]}); "
            "expected a folder of an encoder, or its name on the hub while there is a network; "
            "get the default one with `finemem fetch minilm`, name another dense_model, or "
            "retrieve with bm25"
        ) from error
    pooling = _settings(source, "1_Pooling/config.json")
    if not pooling.get("pooling_mode_mean_tokens", pooling.get("pooling_mode", "mean") == "mean"):
        raise ValueError(
            f"dense retrieval: {model_name!r} pools otherwise than by the mean of its last hidden "
            "states, expected an encoder that does; name another dense_model"
        )
    limits = [
        _settings(source, "sentence_bert_config.json").get("max_seq_length"),
        getattr(model.config, "max_position_embeddings", None),
        tokenizer.model_max_length,
    ]
    max_tokens = min(limit for limit in limits if limit)
    digest = hashlib.sha256(f"{max_tokens} {tokenizer.backend_tokenizer.to_str()}".encode())
    for name, weights in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(weights.numpy().tobytes())
    return SentenceEncoder(tokenizer, model, max_tokens, digest.hexdigest())


def embeddings(model_name: str, texts: Sequence[str]) -> list[NDArray[np.float32]]:
    """Return the embedding of every text, shape (dimensions,), from the cache if possible.

    Args:
        model_name: As in `load_encoder`.
        texts: The texts to embed.
    """
    encoder = load_encoder(model_name)
    keys = [(encoder.model_hash, text) for text in texts]
    if new := [key for key in dict.fromkeys(keys) if key not in _CACHE]:
        _CACHE.update(zip(new, encoder.encode([text for _, text in new]), strict=True))
    found = [_CACHE[key] for key in keys]
    for key in [*_CACHE][: max(0, len(_CACHE) - MAX_CACHED)]:
        del _CACHE[key]
    return found


def _settings(source: str, name: str) -> dict[str, Any]:
    """Return a settings file of sentence-transformers as a dictionary, empty if it is missing."""
    from transformers.utils.hub import cached_file

    path = cached_file(
        source,
        name,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )
    return dict(json.loads(Path(path).read_text(encoding="utf-8"))) if path else {}
