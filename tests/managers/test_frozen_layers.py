"""Frozen lower layers computed once give the plain path's logits, gradients and samples."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, strategies as st

from finemem_lib.managers.frozen_layers import FrozenLayers, first_trained_layer, frozen_layers
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.sampling import padded_rows, sample_completions, shared_beginnings
from tests.helpers.small_models import adapted, save_model

LIMIT = 8
PROMPTS = [[5, 6, 7, 8, 9, row] for row in range(30, 33)] + [[40, 41, 42, 43]] * 2 + [[50, 51]]


@pytest.fixture(scope="module", params=["qwen3", "llama"])
def folder(request, tmp_path_factory):
    return save_model(tmp_path_factory.mktemp("model"), request.param, num_hidden_layers=4)


@pytest.fixture
def manager(folder):
    settings = ModelSettings(lora_rank=2, lora_layers=2)
    return adapted(load_manager(folder, model=settings, seed=3))


def sample(manager, hidden_states=None):
    return sample_completions(
        manager.model,
        PROMPTS,
        max_new_tokens=LIMIT,
        pad_token_id=manager.tokenizer.pad_token_id,
        end_token_ids=[60, 61, 62, 63, *manager.end_token_ids],
        seed=4,
        hidden_states=hidden_states,
    )


def gradient(manager, called, rows):
    ids, mask, keep = padded_rows(PROMPTS, rows, pad=manager.tokenizer.pad_token_id)
    manager.model.zero_grad()
    logits = called(input_ids=ids, attention_mask=mask, logits_to_keep=keep + 1).logits[:, :-1]
    logprobs = logits.log_softmax(-1).gather(2, ids[:, -keep:, None])[..., 0] * mask[:, -keep:]
    logprobs.sum().backward()
    return logprobs.detach(), {
        name: value.grad.clone()
        for name, value in manager.model.named_parameters()
        if value.grad is not None
    }


def test_adapter_is_on_the_upper_layers_only(manager):
    assert first_trained_layer(manager.model) == 2
    trained = [name for name, value in manager.model.named_parameters() if value.requires_grad]
    assert {name.split("layers.")[1][0] for name in trained} == {"2", "3"}
    assert all("lora" in name for name in trained)


def test_recorded_states_give_the_plain_models_loss_and_gradient(manager):
    frozen = FrozenLayers(manager.model)
    with frozen.states as states:
        completions, _ = sample(manager, states)
    rows = {(*one, *other) for one, other in zip(PROMPTS, completions, strict=True)}
    assert frozen.states.kept.keys() == rows
    entered = []
    hook = frozen._lower.layers[0].register_forward_hook(lambda *_: entered.append(1))
    values, found = gradient(manager, frozen, completions)
    hook.remove()
    assert not entered, "the lower layers are not computed again"
    plain, expected = gradient(manager, manager.model, completions)
    torch.testing.assert_close(values, plain, rtol=1e-4, atol=1e-5)
    assert found.keys() == expected.keys() and found
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_unknown_rows_are_computed(manager):
    frozen = FrozenLayers(manager.model)
    completions = [[11, 12]] * len(PROMPTS)
    values, _ = gradient(manager, frozen, completions)
    plain, _ = gradient(manager, manager.model, completions)
    torch.testing.assert_close(values, plain, rtol=1e-4, atol=1e-5)


def test_shared_beginnings_change_no_sample(manager):
    frozen = FrozenLayers(manager.model)
    tokens, logprobs = sample(manager)
    with frozen.states as states:
        shared_tokens, shared_logprobs = sample(manager, states)
    assert shared_tokens == tokens
    for one, other in zip(logprobs, shared_logprobs, strict=True):
        assert one == pytest.approx(other, abs=1e-4)


@given(st.lists(st.lists(st.integers(0, 2), min_size=2, max_size=9), min_size=1, max_size=8))
def test_runs_cover_all_prompts_share_what_they_say_and_leave_a_token(prompts):
    runs = shared_beginnings(prompts)
    assert [row for run, _ in runs for row in run] == list(range(len(prompts)))
    for run, count in runs:
        assert len({tuple(prompts[row][:count]) for row in run}) == 1
        assert all(len(prompts[row]) > count for row in run)


def test_a_model_trained_as_a_whole_has_no_frozen_layers(folder):
    whole = load_manager(folder).model
    assert frozen_layers(whole) is None
    with pytest.raises(ValueError, match="the lowest trained layer is 0"):
        FrozenLayers(whole)


def test_more_layers_than_the_model_has_are_refused(folder):
    with pytest.raises(ValueError, match="lora_layers is 9, expected at most the model's 4"):
        load_manager(folder, model=ModelSettings(lora_rank=2, lora_layers=9))


@pytest.mark.parametrize(
    "settings", [{"lora_layers": 2}, {"lora_layers": 2, "lora_rank": 2, "loader": "unsloth"}]
)
def test_lora_layers_need_an_adapter_and_transformers(settings):
    with pytest.raises(ValueError, match="lora_layers is 2, expected a lora_rank"):
        ModelSettings(**settings)


def test_an_adapter_whose_model_is_still_to_be_fetched_says_how(manager, tmp_path):
    manager.model.peft_config["default"].base_model_name_or_path = "data/models/never-fetched"
    manager.save(tmp_path)
    for asked in (tmp_path, "data/models/never-fetched"):
        with pytest.raises(ValueError, match="run `finemem fetch never-fetched` once"):
            load_manager(asked)
