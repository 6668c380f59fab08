"""A small Qwen3 in few operations returns what transformers' model returns."""

from __future__ import annotations

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import Qwen3Config, Qwen3ForCausalLM

from finemem_lib.managers import small_qwen3, tiny
from finemem_lib.managers.sampling import sample_completions
from finemem_lib.managers.small_qwen3 import (
    FewOperations,
    FewOperationsDecoder,
    is_small_qwen3,
)

PAD, END = 0, 3
PROMPTS = [
    [2, 7, 9],
    [2, 11],
    [2, 7, 9, 12, 15, 11],
    [2] * 20,
    *([[2, 5, number] for number in range(6, 26)]),
]


def grouped_model(layers=3):
    """Random weights, two query heads for every key head, norms that are not one."""
    torch.manual_seed(4)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=40,
            hidden_size=24,
            intermediate_size=40,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=8,
            tie_word_embeddings=False,
            initializer_range=0.3,
        )
    )
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.uniform_(0.5, 1.5)
    return model.eval()


MODELS = {"tiny": lambda: tiny.tiny_model(seed=1).eval(), "grouped": grouped_model}


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]()


def padded(rows):
    width = max(map(len, rows))
    return (
        torch.tensor([[*row, *[PAD] * (width - len(row))] for row in rows]),
        torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    )


def test_logits_and_gradients_of_completions_are_the_models(model):
    starts, lengths = torch.tensor([3, 1, 6, 20]), torch.tensor([4, 9, 0, 2])
    rows = [
        [*prompt[:start], *range(5, 5 + length)]
        for prompt, start, length in zip(PROMPTS, starts, lengths, strict=False)
    ]
    ids, mask = padded(rows)
    found = FewOperations(model).completion_logits(ids, starts, lengths)
    output = model(input_ids=ids, attention_mask=mask).logits
    expected = torch.cat(
        [
            output[row, start - 1 : start - 1 + length]
            for row, (start, length) in enumerate(zip(starts, lengths, strict=True))
        ]
    )
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    weights = torch.randn(found.shape, generator=torch.Generator().manual_seed(0))
    gradients = [
        torch.autograd.grad((logits * weights).sum(), list(model.parameters()))
        for logits in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5 * float(other.abs().max()), rtol=1e-4)


def test_decoding_gives_the_logits_of_the_whole_text(model):
    """24 prompts, so that they are read in two parts; then three tokens, and rows that leave."""
    width = max(map(len, PROMPTS))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in PROMPTS])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in PROMPTS])
    texts, kept = [list(row) for row in PROMPTS], list(range(len(PROMPTS)))

    def expected():
        return torch.stack([model(torch.tensor([texts[row]])).logits[0, -1] for row in kept])

    with torch.no_grad():
        decoder = FewOperationsDecoder(model, ids, mask, 3)
        logits = decoder.logits
        for step in range(3):
            torch.testing.assert_close(logits, expected(), atol=1e-5, rtol=1e-5)
            if step == 1:
                decoder.keep(torch.arange(0, len(kept), 2))
                kept = kept[::2]
            tokens = [5 + (row + step) % 30 for row in kept]
            for row, token in zip(kept, tokens, strict=True):
                texts[row].append(token)
            logits = decoder.next(torch.tensor(tokens)[:, None])
        torch.testing.assert_close(logits, expected(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 1.7])
def test_the_same_seed_samples_what_the_models_own_pass_samples(model, temperature, monkeypatch):
    def sampled():
        return sample_completions(
            model,
            PROMPTS,
            max_new_tokens=12,
            pad_token_id=PAD,
            end_token_ids=[END],
            seed=5,
            temperature=temperature,
        )

    fast = sampled()
    assert sampled() == fast
    monkeypatch.setattr(small_qwen3, "is_small_qwen3", lambda model: False)
    slow = sampled()
    assert fast[0] == slow[0]
    for one, other in zip(fast[1], slow[1], strict=True):
        assert one == pytest.approx(other, abs=1e-4)


def changed(**config):
    model = grouped_model()
    vars(model.config).update(config)
    return model


@pytest.mark.parametrize(
    ("make", "small"),
    [
        (grouped_model, True),
        (lambda: grouped_model().double(), False),
        (lambda: grouped_model().to(torch.bfloat16), False),
        (lambda: changed(attention_dropout=0.1), False),
        (lambda: changed(hidden_act="gelu"), False),
        (lambda: changed(use_sliding_window=True), False),
        (lambda: get_peft_model(grouped_model(), LoraConfig(r=2)), False),
        (lambda: get_peft_model(grouped_model(), LoraConfig(r=2)).get_base_model(), False),
    ],
)
def test_what_it_does_not_compute_goes_through_the_model(make, small):
    assert is_small_qwen3(make()) is small


def test_a_large_model_goes_through_its_own_pass(monkeypatch):
    monkeypatch.setattr(small_qwen3, "MOST_PARAMETERS", 1000)
    assert not is_small_qwen3(grouped_model())
