"""Sentence encoders without a model, and a small real one with random weights."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from finemem_lib.retrievers import encoder

VOCABULARY = "[PAD] [UNK] [CLS] [SEP] [MASK] mia lives in rome ana sails leo owns cats".split()
_NUMBERS = itertools.count()


class FakeEncoder:
    """Embeds texts by a function, and remembers which texts it was given."""

    def __init__(self, encode_one: Callable[[str], np.ndarray]) -> None:
        self.encode_one = encode_one
        self.model_hash = f"fake {next(_NUMBERS)}"
        self.read: list[str] = []

    def encode(self, texts: list[str]) -> np.ndarray:
        self.read += texts
        return np.array([self.encode_one(text) for text in texts], dtype=np.float32)


def fake_encoder(
    monkeypatch: pytest.MonkeyPatch, encode_one: Callable[[str], np.ndarray]
) -> FakeEncoder:
    """Let every name of a model mean one fake encoder, and return it."""
    fake = FakeEncoder(encode_one)
    monkeypatch.setattr(encoder, "load_encoder", lambda model_name: fake)
    return fake


def count_letters(text: str) -> np.ndarray:
    """Return the counts of the letters a, i and s, at length 1."""
    vector = np.array([1e-3 + text.lower().count(letter) for letter in "ais"])
    return vector / np.linalg.norm(vector)


def save_small_encoder(folder: Path, **pooling: bool) -> Path:
    """Save a BERT with random weights in the layout of sentence-transformers; return its folder."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    folder.mkdir()
    (folder / "vocab.txt").write_text("\n".join(VOCABULARY))
    BertTokenizerFast(str(folder / "vocab.txt")).save_pretrained(folder)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        BertModel(
            BertConfig(
                vocab_size=len(VOCABULARY),
                hidden_size=32,
                num_hidden_layers=1,
                num_attention_heads=2,
                intermediate_size=32,
                max_position_embeddings=32,
            )
        ).save_pretrained(folder)
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 8}')
    (folder / "1_Pooling").mkdir()
    settings = {"pooling_mode_mean_tokens": True} | pooling
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(settings))
    return folder
