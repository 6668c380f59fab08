"""The tiny memory manager: vocabulary, tokenizer, chat template and architecture.

A Qwen3 of about 0.15 million parameters reads and writes one world of the planted stream through
the same code path as a Qwen3-4B: chat template, token ids, sampling, decoding, JSON. The tokenizer
makes this affordable: it has one token per word of that world, per alias (#0..#31) and per fixed
piece of the JSON list. The warm start treats the sentences of a chunk in turn and writes the
content first, then the kind of operation, then the alias,
``{"content":"...","op":"UPDATE","id":"#3"}``: a causal model has then read the sentence before it
decides on the operation (including SKIP) and the record.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from finemem_lib.data.planted import (
    ADVERBS,
    ATTRIBUTES,
    NAMES,
    NOISE_ADVERBS,
    NOISE_SUBJECTS,
    NOISE_VERBS,
    OTHERS,
    PARAPHRASED_NOISE,
    TEMPLATES,
    World,
)
from finemem_lib.data.planted_layers import PLACES, STOP_VERBS
from finemem_lib.trajectory import Store

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

PAD, UNKNOWN, BOS, EOS, OPERATIONS = "<pad>", "<unk>", "<bos>", "<eos>", "<operations>"
MEMORY, CHUNK, STOP = "memory:", "chunk:", "."
ALIASES = tuple(f"#{number}" for number in range(32))
FIRST_CONTENT, NEXT_CONTENT = '[{"content":"', ',{"content":"'
INSERT, SKIP = '","op":"INSERT"}', '","op":"SKIP"}'
UPDATE, DELETE = '","op":"UPDATE","id":"', ',{"op":"DELETE","id":"'
CLOSE_ID, CLOSE = '"}', "]"
CALL_STORES: tuple[Store, ...] = ("semantic", "episodic")
PIECES = (FIRST_CONTENT, NEXT_CONTENT, INSERT, SKIP, UPDATE, DELETE, CLOSE_ID, CLOSE)

_FILED = {store: f'","memory_type":"{store}"}},"name":"memory_' for store in CALL_STORES}
FIRST_CALL, NEXT_CALL = '[{"arguments":{"content":"', ',{"arguments":{"content":"'
CALL_INSERT = {store: _FILED[store] + 'insert"}' for store in CALL_STORES}
CALL_UPDATED = {store: _FILED[store] + 'update"}' for store in CALL_STORES}
CALL_DELETED = {store: _FILED[store] + 'delete"}' for store in CALL_STORES}
CALL_SKIP, CALL_CORE = '"},"name":"memory_skip"}', '","memory_type":"core"},"name":"memory_update"}'
CALL_ID, CALL_DELETE = '","memory_id":"', ',{"arguments":{"memory_id":"'
CALL_PIECES = (
    FIRST_CALL,
    NEXT_CALL,
    *CALL_INSERT.values(),
    *CALL_UPDATED.values(),
    *CALL_DELETED.values(),
    CALL_SKIP,
    CALL_CORE,
    CALL_ID,
    CALL_DELETE,
)
"""The fixed pieces of a list of Mem-alpha's calls, the content first and the store last."""

CORE_ALIAS = "#c"
CALL_ALIASES = (
    *(f"#{store[0]}{number}" for store in CALL_STORES for number in range(32)),
    CORE_ALIAS,
)
"""Aliases of the items of a layered memory; the letter names the store."""

DATE_LINE, DATED, ROUTE = "[Dialogue", "On", ("Caravan", "route")
"""First words of a chunk's date line, of a dated event and of the caravan's running summary."""

MONTHS = tuple(
    "January February March April May June July August September October November December".split()
)
DATE_WORDS = (*(str(day) for day in range(1, 32)), *MONTHS, "2024")
STRUCTURED_WORDS = (DATE_LINE, "on", DATED, *DATE_WORDS, "The", "caravan", *ROUTE, *PLACES)
"""What streams that need structure say besides the words of the plain world."""

UNSEEN_NAMES = tuple("Abe Bea Cal Dot Eli Flo Gil Hua".split())
"""Names in the vocabulary that the warm start never shows, to test generalisation of copying."""

MAX_RECORDS = 24
"""Largest number of records in a prompt, also in the warm start."""

UNKNOWN_SHARE = 0.2
"""Largest share of unknown words in a chunk that the tiny manager accepts."""

MAX_PROMPT_TOKENS = 176
MAX_NEW_TOKENS = 80
BATCH_SIZE = 128
_SPACE = "\u2581"

_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] == 'assistant' %}"
    + OPERATIONS
    + "{{ message['content'] }}"
    + EOS
    + "{% else %}"
    + BOS
    + "{{ message['content'] }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}" + OPERATIONS + "{% endif %}"
)


def vocabulary(
    world: World = "plain", layers: bool = False, structured: bool = False
) -> tuple[str, ...]:
    """Return every token in the order of its id: specials, JSON pieces, marks, aliases, words.

    Args:
        world: one world of the planted stream.
        layers: whether the tokens of calls on a layered memory follow, last.
        structured: whether the words of `data.planted_layers` follow.
    """
    spoken = [*NAMES, *UNSEEN_NAMES]
    if world == "plain":
        spoken += [*NOISE_ADVERBS, *NOISE_VERBS, *NOISE_SUBJECTS]
    else:
        spoken += [*ADVERBS, *OTHERS, *PARAPHRASED_NOISE]
    for name, attribute in ATTRIBUTES.items():
        spoken += [*TEMPLATES[world][name], *attribute.values]
    if structured:
        spoken += [*STRUCTURED_WORDS, *STOP_VERBS]
    words = dict.fromkeys(
        word for phrase in spoken for word in phrase.split() if not word.startswith("{")
    )
    calls = (*CALL_PIECES, *CALL_ALIASES) if layers else ()
    special = (PAD, UNKNOWN, BOS, EOS, OPERATIONS)
    return (*special, *PIECES, STOP, MEMORY, CHUNK, *ALIASES, *words, *calls)


def tiny_tokenizer(
    world: World = "plain", layers: bool = False, structured: bool = False
) -> PreTrainedTokenizerFast:
    """Return the word-level tokenizer of one world of the planted stream.

    A word outside the vocabulary becomes `<unk>`; decoding restores the text with one space between
    words and none inside the JSON.

    Args:
        world: one world of the planted stream.
        layers: whether it also has the tokens of calls on a layered memory.
        structured: whether it also reads the streams of `data.planted_layers`.
    """
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = (PAD, UNKNOWN, BOS, EOS, OPERATIONS)
    unspaced = (*special, *PIECES, STOP, *(CALL_PIECES if layers else ()))
    ids = {
        token if token in unspaced else _SPACE + token: number
        for number, token in enumerate(vocabulary(world, layers, structured))
    }
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.WhitespaceSplit(),
            pre_tokenizers.Metaspace(replacement=_SPACE, prepend_scheme="always", split=False),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Fuse(),
            decoders.Replace(f':"{_SPACE}', ':"'),
            decoders.Replace(_SPACE, " "),
        ]
    )
    tokenizer.add_tokens(
        [AddedToken(token, normalized=False, special=token in special) for token in unspaced]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # it has no types
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        bos_token=BOS,
        eos_token=EOS,
        chat_template=_CHAT_TEMPLATE,
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=MAX_PROMPT_TOKENS + MAX_NEW_TOKENS,
        prompt_layout="compact-layers" if layers else "compact",
    )


def tiny_config(world: World = "plain") -> Qwen3Config:
    """Return the configuration of a Qwen3 with two layers.

    Rotary base, initializer range and head size are chosen for lookup: a head must distinguish two
    records by content from the first updates on.

    Args:
        world: World of the planted stream, which determines the vocabulary.
    """
    from transformers import Qwen3Config

    tokens = vocabulary(world)
    return Qwen3Config(
        vocab_size=len(tokens),
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        head_dim=32,
        max_position_embeddings=512,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        initializer_range=0.05,
        tie_word_embeddings=True,
        pad_token_id=tokens.index(PAD),
        bos_token_id=tokens.index(BOS),
        eos_token_id=tokens.index(EOS),
    )


def tiny_model(seed: int, world: World = "plain") -> Qwen3ForCausalLM:
    """Return the model of `tiny_config` with random weights.

    Args:
        seed: Seed of the weights.
        world: As for `tiny_config`.
    """
    import torch
    from transformers import Qwen3ForCausalLM

    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        model = Qwen3ForCausalLM(tiny_config(world))  # type: ignore[no-untyped-call]  # it has none
        for layer in model.model.layers:
            layer.self_attn.q_norm.weight.mul_(1.5)
            layer.self_attn.k_norm.weight.mul_(1.5)
    model.generation_config.suppress_tokens = [model.config.pad_token_id]
    return model
