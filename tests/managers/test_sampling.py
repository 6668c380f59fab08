import pytest
import torch

from finemem_lib.data.planted import planted_stream
from finemem_lib.managers import sampling
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.sampling import sample_completions


@pytest.fixture(scope="module")
def manager():
    manager = load_manager("tiny")
    manager.model.eval()
    return manager


@pytest.fixture(scope="module")
def prompts(manager):
    """Prompts of different lengths, whose completions differ in length too."""
    return [
        manager.builder.render(Observation(stream, (), chunk, 1)).ids
        for stream in map(planted_stream, range(6))
        for chunk in stream.chunks[:3]
    ]


def sample(manager, prompts, **settings):
    return sample_completions(
        manager.model,
        prompts,
        **{
            "max_new_tokens": 80,
            "pad_token_id": manager.tokenizer.pad_token_id,
            "end_token_ids": [manager.model.generation_config.eos_token_id],
            "seed": 0,
            **settings,
        },
    )


def test_greedy_completions_are_those_of_generate(manager, prompts):
    batch = manager.tokenizer.pad(
        {"input_ids": list(map(list, prompts))}, padding_side="left", return_tensors="pt"
    )
    with torch.no_grad():
        expected = manager.model.generate(**batch, max_new_tokens=80, do_sample=False)
    pad = manager.tokenizer.pad_token_id
    expected = [
        tuple(token for token in row if token != pad)
        for row in expected[:, batch["input_ids"].shape[1] :].tolist()
    ]
    completions, _ = sample(manager, prompts, temperature=0.0)
    assert completions == expected
    assert len(set(map(len, completions))) > 1


def test_a_row_that_leaves_the_batch_changes_no_other(manager, prompts, monkeypatch):
    completions, logprobs = sample(manager, prompts, temperature=0.0)
    monkeypatch.setattr(sampling, "LIVE_SHARE", 0.0)
    kept, kept_logprobs = sample(manager, prompts, temperature=0.0)
    assert completions == kept
    for row, kept_row in zip(logprobs, kept_logprobs, strict=True):
        assert row == pytest.approx(kept_row, abs=1e-4)


def test_frequencies_and_logprobs_are_those_of_the_model(manager, prompts):
    temperature, rows = 2.0, 4000
    ids = torch.tensor([prompts[0]])
    with torch.no_grad():
        logits = manager.model(input_ids=ids).logits[0, -1] / temperature
    logits[manager.tokenizer.pad_token_id] = -torch.inf
    wanted = logits.softmax(-1)
    completions, logprobs = sample(
        manager, [prompts[0]] * rows, max_new_tokens=1, temperature=temperature
    )
    counts = (
        torch.bincount(torch.tensor([row[0] for row in completions]), minlength=len(wanted)) / rows
    )
    assert (counts - wanted).abs().max() < 4 * (0.25 / rows) ** 0.5
    for tokens, values in zip(completions[:50], logprobs[:50], strict=True):
        assert values[0] == pytest.approx(wanted[tokens[0]].log().item(), abs=1e-4)


def test_a_probability_that_is_no_number_is_said():
    with pytest.raises(ValueError, match="not a number, expected finite logits; .* checkpoint"):
        sampling.drawn(torch.tensor([[0.5, 0.5], [0.5, float("nan")]]), torch.Generator())


def test_drawn_are_those_of_multinomial():
    probabilities = torch.rand(500, 300, generator=torch.Generator().manual_seed(1)).softmax(-1)
    probabilities[:, 7] = 0.0
    draws = [torch.Generator().manual_seed(2) for _ in range(2)]
    for _ in range(3):
        expected = torch.multinomial(probabilities, 1, generator=draws[0])
        assert torch.equal(sampling.drawn(probabilities, draws[1]), expected)


def test_length_is_bounded_and_the_end_token_is_kept(manager, prompts):
    end = manager.model.generation_config.eos_token_id
    completions, logprobs = sample(manager, prompts, max_new_tokens=12)
    for tokens, values in zip(completions, logprobs, strict=True):
        assert 1 <= len(tokens) == len(values) <= 12
        assert end not in tokens[:-1]
        assert len(tokens) == 12 or tokens[-1] == end


def test_the_seed_decides_and_the_global_state_does_not(manager, prompts):
    torch.manual_seed(1)
    first = sample(manager, prompts)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert sample(manager, prompts) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert sample(manager, prompts, seed=1) != first


def test_without_end_tokens_every_completion_has_full_length(manager, prompts):
    completions, _ = sample(manager, prompts[:2], end_token_ids=[], max_new_tokens=5)
    assert [len(row) for row in completions] == [5, 5]
