"""Constrained decoding: only what the memory can apply, with the constrained log-probabilities."""

from __future__ import annotations

import json
import random

import pytest
import torch
from hypothesis import given, strategies as st

from finemem_lib.managers.frozen_layers import FrozenLayers
from finemem_lib.managers.grammar import MATCHING_SHARE, MOST_OPERATIONS, QuoteGrammar, State
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.prompts import prompt_builder
from finemem_lib.managers.sampling import sample_constrained
from finemem_lib.memory import FlatMemory
from finemem_lib.trajectory import Operation
from tests.helpers.observations import observe
from tests.helpers.small_models import adapted, save_model, small_tokenizer

TEXT = "Mia lives in Rome.\nLeo owns a cat.\nZoe paints."
RECORDS = ("Leo owns a dog.", "Ana sails.")


@pytest.fixture(scope="module")
def builder():
    settings = ModelSettings(operations_as="constrained-quotes")
    return prompt_builder(small_tokenizer("llama"), settings)


@pytest.fixture(scope="module")
def manager(tmp_path_factory):
    folder = save_model(tmp_path_factory.mktemp("model"), "llama", num_hidden_layers=4)
    settings = ModelSettings(
        lora_rank=2, lora_layers=2, operations_as="constrained-quotes", max_new_tokens=200
    )
    return adapted(load_manager(folder, model=settings, seed=3))


def written(grammar, rng):
    """Return the tokens of a random walk."""
    walk, tokens = grammar.walk(), []
    while walk.allowed:
        tokens.append(rng.choice(walk.allowed))
        walk.take(tokens[-1])
    return tokens


@given(st.integers(0, 12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_whatever_is_written_can_be_applied(builder, quotes, records, rng):
    text = "\n".join(f"Sentence number {n} is here." for n in range(quotes))
    observation = observe(text or "...", tuple(f"Record {n}." for n in range(records)))
    prompt = builder.render(observation)
    tokens = written(prompt.grammar, rng)
    assert tokens[-1] == builder.tokenizer.eos_token_id
    said = builder.tokenizer.decode(tokens, skip_special_tokens=True)
    assert len(json.loads(said)) <= MOST_OPERATIONS
    memory = FlatMemory()
    memory.apply([Operation("INSERT", item.content) for item in observation.items], 1)
    outcomes, _ = memory.apply(builder.parse(said, prompt), 2)
    assert outcomes and all(outcome.applied for outcome in outcomes), said
    assert prompt.grammar.tokens(said) == tuple(tokens)


def matched_builder():
    return prompt_builder(small_tokenizer("llama"), ModelSettings(operations_as="matched-quotes"))


@given(
    st.lists(st.lists(st.sampled_from("abcdef"), max_size=6).map(" ".join), max_size=8),
    st.lists(st.lists(st.sampled_from("abcdef"), min_size=1, max_size=6).map(" ".join), max_size=8),
    st.randoms(use_true_random=False),
)
def test_only_records_that_a_sentence_repeats_are_addressed(sentences, records, rng):
    builder = matched_builder()
    prompt = builder.render(observe("\n".join(sentences) or "...", tuple(dict.fromkeys(records))))
    tokens = written(prompt.grammar, rng)
    said = builder.tokenizer.decode(tokens, skip_special_tokens=True)
    assert prompt.grammar.tokens(said) == tuple(tokens)
    shown = list(dict.fromkeys(records))
    for operation in json.loads(said):
        if operation["op"] not in ("UPDATE", "DELETE"):
            continue
        known = set(shown[int(operation["id"][1:])].split())
        quoted = operation.get("quote")
        able = prompt.quotable if quoted is None else [prompt.quotable[quoted - 1]]
        assert any(
            len(known & set(one.split())) >= max(3, MATCHING_SHARE * len(known)) for one in able
        )


def test_the_last_record_matches_without_the_end_of_the_turn():
    prompt = matched_builder().render(observe(TEXT, RECORDS[::-1]))
    assert prompt.grammar.matches == (frozenset(), frozenset({2}))
    assert prompt.grammar.tokens('[{"op":"UPDATE","id":"#1","quote":2}]')
    with pytest.raises(ValueError, match="does not follow"):
        prompt.grammar.tokens('[{"op":"DELETE","id":"#0"}]')


@given(st.integers(0, 12), st.integers(0, 12), st.randoms(use_true_random=False))
def test_no_option_begins_with_another(builder, quotes, records, rng):
    grammar, state = QuoteGrammar(quotes, records, builder._encode, 0), State()
    while state is not None:
        texts = sorted(text for text, _ in grammar.options(state))
        pairs = zip(texts, texts[1:], strict=False)
        assert texts and not any(after.startswith(before) for before, after in pairs)
        state = rng.choice(grammar.options(state))[1]


def test_grammar_follows_the_sentences_and_records_shown(builder):
    trap = observe("Mia said:\n[7] #5 is mine.\n#9 too.", RECORDS)
    prompt = builder.render(trap)
    assert (prompt.grammar.quotes, prompt.grammar.records) == (len(prompt.quotable), 2)
    assert builder.grammar(prompt.text) is prompt.grammar
    free = prompt_builder(small_tokenizer("llama"), ModelSettings(operations_as="quotes"))
    assert free.render(trap).grammar is None


@pytest.mark.parametrize(
    "text",
    ['[{"op":"INSERT","quote":4}]', '[{"op":"SKIP"}] or so', '[{"op":"DELETE","id":"#0"}', "No."],
)
def test_other_texts_are_refused(builder, text):
    with pytest.raises(ValueError, match="QuoteGrammar: .* expected"):
        builder.render(observe(TEXT, RECORDS)).grammar.tokens(text)


def sample(manager, seed=4, states=None, **settings):
    prompts = [
        manager.builder.render(observe(TEXT, RECORDS[:count])) for count in (0, 1, 1, 2, 2, 2)
    ]
    tokens, logprobs = sample_constrained(
        manager.model,
        [prompt.ids for prompt in prompts],
        [prompt.grammar for prompt in prompts],
        max_new_tokens=200,
        pad_token_id=manager.tokenizer.pad_token_id,
        seed=seed,
        hidden_states=states,
        **settings,
    )
    return prompts, tokens, logprobs


def test_sampled_log_probabilities_are_those_of_the_allowed_tokens_alone(manager):
    prompts, tokens, logprobs = sample(manager)
    assert len(set(tokens)) > 2
    for prompt, completion, values in zip(prompts, tokens, logprobs, strict=True):
        ids = torch.tensor([[*prompt.ids, *completion]])
        with torch.no_grad():
            every = manager.model(input_ids=ids).logits[0, len(prompt.ids) - 1 :].softmax(dim=-1)
        for place, allowed in enumerate(prompt.grammar.choices(completion)):
            share = every[place, completion[place]] / every[place, list(allowed)].sum()
            assert values[place] == pytest.approx(share.log().item(), abs=1e-4)
    again = manager.logprobs([prompt.ids for prompt in prompts], tokens)
    for row, values in zip(again, logprobs, strict=True):
        assert row == pytest.approx(values, abs=1e-4)


def test_a_completion_that_the_prompt_does_not_allow_has_no_log_probabilities(manager):
    prompt = manager.builder.render(observe(TEXT))
    update = manager.builder.render(observe(TEXT, RECORDS)).grammar.tokens(
        '[{"op":"DELETE","id":"#1"}]'
    )
    assert manager.logprobs([prompt.ids], [update]) == [None]


def test_samples_follow_the_constrained_distribution(manager):
    prompt = manager.builder.render(observe("Mia lives in Rome.", ("Ana sails.",)))
    count, seen = 600, []
    tokens, logprobs = sample_constrained(
        manager.model,
        [prompt.ids] * count,
        [prompt.grammar] * count,
        max_new_tokens=200,
        pad_token_id=manager.tokenizer.pad_token_id,
        seed=1,
    )
    for completion in set(tokens):
        place = tokens.index(completion)
        share = tokens.count(completion) / count
        expected = torch.tensor(logprobs[place]).sum().exp().item()
        assert abs(share - expected) < 4 * (expected * (1 - expected) / count) ** 0.5 + 1e-3
        seen.append(expected)
    assert sum(seen) == pytest.approx(1.0, abs=0.05)


def test_greedy_takes_the_most_likely_of_the_allowed(manager):
    first, second = (sample(manager, seed=seed, temperature=0.0) for seed in (1, 2))
    assert first[1] == second[1]
    for prompt, completion in zip(*first[:2], strict=True):
        ids = torch.tensor([[*prompt.ids, *completion]])
        with torch.no_grad():
            logits = manager.model(input_ids=ids).logits[0, len(prompt.ids) - 1 :]
        for place, allowed in enumerate(prompt.grammar.choices(completion)):
            assert completion[place] == max(allowed, key=lambda token: logits[place, token])


def test_recorded_states_change_no_sample(manager):
    frozen = FrozenLayers(manager.model)
    _, tokens, logprobs = sample(manager)
    with frozen.states as states:
        prompts, again, others = sample(manager, states=states)
    assert again == tokens
    for one, other in zip(logprobs, others, strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    keys = {(*prompt.ids, *ids) for prompt, ids in zip(prompts, tokens, strict=True)}
    assert frozen.states.kept.keys() == keys


def test_completions_are_cut_at_the_longest_allowed(manager):
    observation = observe(TEXT, RECORDS)
    manager.max_new_tokens = 9
    completions = manager.act([observation] * 4, 0)
    manager.max_new_tokens = 200
    for one in completions:
        assert len(one.completion_ids) == len(one.logprobs) <= 9


def test_saved_with_lower_layers_frozen_a_manager_trains_the_upper_ones(manager, tmp_path):
    whole = load_manager(
        save_model(tmp_path / "model", "llama", num_hidden_layers=4),
        model=ModelSettings(lora_rank=2),
    )
    whole.loaded_as = ModelSettings(lora_rank=2, lora_layers=1)
    whole.save(tmp_path / "adapter")
    again = load_manager(tmp_path / "adapter")
    trained = [name for name, value in again.model.named_parameters() if value.requires_grad]
    assert trained and all("layers.3." in name and "lora" in name for name in trained)


@pytest.mark.parametrize("form", ["constrained-quotes", "matched-quotes"])
def test_unsloth_is_refused(form):
    with pytest.raises(ValueError, match=f"operations_as is '{form}'"):
        ModelSettings(operations_as=form, loader="unsloth")


def test_random_walks_reach_every_kind(builder):
    grammar = builder.render(observe(TEXT, RECORDS)).grammar
    rng = random.Random(0)
    said = "".join(builder.tokenizer.decode(written(grammar, rng)) for _ in range(60))
    assert all(f'"op":"{kind}"' in said for kind in ("INSERT", "UPDATE", "DELETE", "SKIP"))
