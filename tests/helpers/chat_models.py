"""Language models for tests of readers: behind a server with faults, and tiny in process."""

from __future__ import annotations

import json
import re

from finemem_lib.readers.roles import Models, reader_role
from finemem_lib.readers.server import ChatClient
from finemem_lib.readers.settings import ChatSettings
from finemem_lib.reading import ReadingTask

CHAT_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n"
    "{% endif %}{% endif %}"
)

ITEMS = (("a1", "Mia lives in Oslo."), ("b2", "Mia moved to Rome."))
TASK = ReadingTask("Where does Mia live?", "squad", ITEMS, (1, 0))


def reader_of(options):
    return Models({"reader": reader_role(options)}).reader([])


def chat(server, **settings):
    return ChatClient(ChatSettings("m", base_url=server.base_url, backoff=0.01, **settings))


def said(request):
    return request["messages"][-1]["content"]


def teach(request):
    """Write the sentences of the chunk as questions with their last word as answer."""
    text = said(request).split(":\n\n")[1]
    pairs = re.findall(r"(\w[\w ]*) (\w+)\.", text)
    return json.dumps({"questions": [{"question": f"{a} what?", "answer": b} for a, b in pairs]})


def local(model, **settings):
    return ChatSettings(model, kind="local", **{"temperature": 0.0, "max_tokens": 12, **settings})


def talks(number):
    return [[{"role": "user", "content": f"question {n} {'and ' * n}"}] for n in range(number)]


def save_tiny_model(folder, family="qwen3"):
    """Save a model of two layers with random weights, and a byte tokenizer that chats like Qwen3.

    Its architecture is that of the family "qwen3", or "qwen2" (which Qwen2.5 has, too).
    """
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: n for n, token in enumerate([*special, *alphabet])}
    inner = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=special,
        chat_template=CHAT_TEMPLATE,
    )
    # Random weights repeat one token; a wide start gives texts that differ between prompts.
    torch.manual_seed(0)
    heads = {"head_dim": 8} if family == "qwen3" else {}
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            family,
            vocab_size=len(vocabulary),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.5,
            max_position_embeddings=8192,
            eos_token_id=2,
            pad_token_id=0,
            bos_token_id=None,
            **heads,
        )
    )
    # A reply that does not end is no answer: every third token ends one.
    model.generation_config.eos_token_id = [2, *range(3, len(vocabulary), 3)]
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
