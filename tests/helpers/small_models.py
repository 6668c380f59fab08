"""Random-weight checkpoints of the real architectures: their configuration, chat template and
special tokens as they are, two narrow layers, and a byte-level BPE tokenizer trained here."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from finemem_lib.data.planted import planted_stream
from finemem_lib.managers.loading import no_progress_bars
from finemem_lib.managers.prompts import INSTRUCTION

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerFast

FamilyName = Literal["qwen3", "llama"]

NARROW = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 8192,
}
"""The sizes of a small model; all else is the family's."""


@dataclass(frozen=True, slots=True)
class Family:
    """A template of TRL's `chat_templates`, the special tokens, and those in the tokenizer's roles;
    `marks` are single tokens that decoding keeps, as the checkpoints' tokenizers do."""

    template: str
    special: tuple[str, ...]
    roles: dict[str, str]
    marks: tuple[str, ...] = ()


FAMILIES: dict[FamilyName, Family] = {
    "qwen3": Family(
        "qwen3.jinja",
        ("<|endoftext|>", "<|im_start|>", "<|im_end|>"),
        {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>"},
        ("<think>", "</think>", "<tool_call>", "</tool_call>"),
    ),
    "llama": Family(
        "llama3_2.jinja",
        (
            "<|begin_of_text|>",
            "<|end_of_text|>",
            "<|start_header_id|>",
            "<|end_header_id|>",
            "<|eot_id|>",
            "<|python_tag|>",
            "<|finetune_right_pad_id|>",
        ),
        {
            "bos_token": "<|begin_of_text|>",
            "eos_token": "<|eot_id|>",
            "pad_token": "<|finetune_right_pad_id|>",
        },
    ),
}


def chat_template(family: FamilyName) -> str:
    """Return the family's own chat template, of which TRL holds a copy."""
    import trl

    folder = Path(trl.__file__).parent / "chat_templates"
    return (folder / FAMILIES[family].template).read_text(encoding="utf-8")


def small_tokenizer(
    family: FamilyName, texts: Iterable[str] = (), *, learnt: int = 2000, fill_to: int = 0
) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer trained on the instruction, a stream, and `texts`.

    It learns at most `learnt` tokens. `fill_to` adds words that no text is cut into, up to that
    many tokens in all: every token of a model with so large a vocabulary can then be read.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    its = FAMILIES[family]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    stream = [chunk.text for chunk in planted_stream(0).chunks]
    tokenizer.train_from_iterator(
        [INSTRUCTION, *stream, *texts],
        trainers.BpeTrainer(
            vocab_size=learnt,
            special_tokens=list(its.special),
            show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        ),
    )
    if fill_to:
        parts = json.loads(tokenizer.to_str())
        words = range(tokenizer.get_vocab_size(), fill_to - len(its.marks))
        parts["model"]["vocab"] |= {f"\u0120word{number}": number for number in words}
        tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in its.marks])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        **its.roles,
        chat_template=chat_template(family),
        clean_up_tokenization_spaces=False,
    )


def small_config(family: FamilyName, tokenizer: Any, **changes: Any) -> PretrainedConfig:
    """Return the family's configuration at `NARROW` sizes for a tokenizer, with `changes`."""
    from transformers import LlamaConfig, Qwen3Config

    values: dict[str, Any] = {
        **NARROW,
        "vocab_size": len(tokenizer),
        "tie_word_embeddings": True,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "bos_token_id": tokenizer.bos_token_id,
    }
    return (Qwen3Config if family == "qwen3" else LlamaConfig)(**(values | changes))


def save_model(
    folder: Path,
    family: FamilyName = "qwen3",
    *,
    seed: int = 0,
    device: str = "cpu",
    dtype: str = "float32",
    texts: Iterable[str] = (),
    vocab_size: int = 0,
    **changes: Any,
) -> Path:
    """Write a checkpoint with random weights, as a hub's snapshot is laid out; return its folder.

    `texts` go to the tokenizer and `changes` to the configuration; `vocab_size` is that of both,
    without it what the tokenizer learnt.
    """
    import torch
    from transformers import AutoModelForCausalLM

    tokenizer = small_tokenizer(family, texts, fill_to=vocab_size)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            small_config(family, tokenizer, **changes), dtype=getattr(torch, dtype)
        )
    with no_progress_bars():
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def adapted(manager: Any) -> Any:
    """Return a manager whose new adapter, which changes nothing yet, has random weights."""
    import torch

    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(1)
        for name, value in manager.model.named_parameters():
            if "lora_B" in name:
                value.normal_(0, 0.3)
    return manager
