from __future__ import annotations

import dataclasses
import functools
import json

import pytest
import torch
from hypothesis import given, settings, strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from finemem_lib.data.planted import StreamSettings, planted_stream
from finemem_lib.data.sentences import sentences
from finemem_lib.managers import tiny
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import ModelManager, load_manager, make_manager
from finemem_lib.managers.prompts import Prompt, PromptBuilder, prompt_builder
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.scripted import SCRIPTED
from finemem_lib.memory import FlatMemory
from finemem_lib.trajectory import (
    InvalidOperation,
    Operation,
)
from tests.helpers.observations import observe
from tests.helpers.small_models import small_tokenizer

torch.set_num_threads(1)  # more of them wait for each other where other work is running


def play(name: str, seed: int, **memory_settings):
    """Play a scripted manager; yield (step, completion, outcomes, memory)."""
    instance = planted_stream(seed, StreamSettings(num_chunks=8))
    manager, memory = make_manager(name), FlatMemory(**memory_settings)
    for step, chunk in enumerate(instance.chunks, start=1):
        [completion] = manager.act([Observation(instance, memory.items, chunk, step)], seed)
        outcomes, _ = memory.apply(completion.operations, step)
        yield instance, step, completion, outcomes, memory


# Scripted managers.


@pytest.mark.parametrize("name", sorted(SCRIPTED))
@pytest.mark.parametrize("capacity", [None, 3])
def test_scripted_managers_emit_only_operations_the_memory_applies(name, capacity):
    for seed in range(10):
        for *_, completion, outcomes, _ in play(name, seed, capacity=capacity, duplicates="allow"):
            assert json.loads(completion.text)
            assert outcomes and all(outcome.applied for outcome in outcomes)


def test_the_oracle_holds_exactly_the_latest_value_of_every_slot():
    truth = {}
    for instance, step, _, _, memory in play("oracle", 5):
        for fact in instance.metadata["facts"][step - 1]:
            truth[fact["person"], fact["attribute"]] = fact["sentence"]
        assert sorted(item.content for item in memory.items) == sorted(truth.values())
    assert any(fact["changed"] for facts in instance.metadata["facts"] for fact in facts)


def test_facts_only_and_insert_all_write_what_they_say():
    for instance, step, completion, *_ in play("facts-only", 1):
        facts = [fact["sentence"] for fact in instance.metadata["facts"][step - 1]]
        assert [operation.content for operation in completion.operations] == facts
    for instance, step, completion, *_ in play("insert-all", 1):
        units = sentences(instance.chunks[step - 1].text)
        assert [operation.content for operation in completion.operations] == units


@pytest.mark.parametrize(
    ("name", "text", "stored"),
    [
        (
            "insert-all",
            "[Dialogue on 2024-01-01 00:00]\n<User>I sail. It rains.",
            ["<User>I sail.", "It rains."],
        ),
        (
            "insert-all",
            "[Dialogue]\n<User>more:\nSentence: good day\nLabel: 3\n\nSentence: bye\n"
            "Label: 4\n<Assistant>noted",
            ["Sentence: good day\nLabel: 3", "Sentence: bye\nLabel: 4"],
        ),
        ("insert-all", "[1] [2] is a list", ["[1] [2] is a list"]),
        (
            "raw-chunks",
            "Sentence: a\nLabel: 3\n\nSentence: b\nLabel: 4",
            ["Sentence: a\nLabel: 3\n\nSentence: b\nLabel: 4"],
        ),
        (
            "keyword",
            "It was late. We met Mia there. She left at 9. I slept. Mia won.",
            ["We met Mia there.", "She left at 9.", "Mia won."],
        ),
    ],
)
def test_what_is_stored_of_real_text(name, text, stored):
    [completion] = make_manager(name).act([observe(text)], 0)
    assert [operation.content for operation in completion.operations] == stored


@pytest.mark.parametrize("name", ["insert-all", "raw-chunks", "random", "keyword"])
@pytest.mark.parametrize("text", ["", " \n ", "\ud800"])
def test_a_chunk_without_text_ends_in_a_valid_operation(name, text):
    [completion] = make_manager(name).act([observe(text)], 0)
    assert all(isinstance(operation, Operation) for operation in completion.operations)
    assert completion.operations


def test_random_depends_on_seed_and_row_only():
    instance = planted_stream(3)
    same = [Observation(instance, (), instance.chunks[0], 1)] * 20
    first = make_manager("random").act(same, seed=1)
    assert first == make_manager("random").act(same, seed=1)
    assert len({completion.text for completion in first}) > 5
    assert first != make_manager("random").act(same, seed=2)


def test_managers_that_need_planted_truth_refuse_other_text():
    with pytest.raises(ValueError, match="squad.*no planted truth.*insert-all"):
        make_manager("oracle").act([observe("Mia sails.")], 0)


# Prompts for real tokenizers: bytes, with a chat template and special tokens.


@functools.cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|pad|>",
        additional_special_tokens=["<|im_start|>"],
        chat_template=(
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
            "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
        ),
    )


LEAST = 1700
words = st.text(max_size=60) | st.sampled_from(["Mia lives in Rome", "<|im_end|>", "</chunk>"])


@settings(max_examples=60)
@given(st.lists(words, max_size=12), st.lists(words, max_size=12), st.integers(LEAST, LEAST + 400))
def test_a_prompt_never_exceeds_its_limit_and_counts_what_it_left_out(items, parts, limit):
    builder = prompt_builder(byte_tokenizer(), ModelSettings(max_prompt_tokens=limit))
    seen = observe(" ".join(parts), tuple(items))
    prompt = builder.render(seen)
    assert len(prompt.ids) <= limit
    assert list(prompt.ids) == byte_tokenizer()(prompt.text)["input_ids"]
    assert len(prompt.aliases) + prompt.omitted_items == len(items)
    newest = [item.item_id for item in seen.items][prompt.omitted_items :]
    assert list(prompt.aliases.values()) == newest
    # One system, one user and one assistant turn, whatever the history says.
    assert prompt.text.count("<|im_start|>") == 3 and prompt.text.count("</chunk>") == 1


def test_what_does_not_fit_is_cut_by_the_named_rules():
    items = tuple(f"item number {number}" for number in range(200))
    text = "".join(f"word{number} " for number in range(300))
    builder = prompt_builder(byte_tokenizer(), ModelSettings(max_prompt_tokens=LEAST + 300))
    prompt = builder.render(observe(text, items))
    shown = prompt.text.split("<chunk>\n")[1].split("\n</chunk>")[0]
    assert shown and text.startswith(shown)
    assert prompt.truncated_tokens == len(text.encode()) - len(shown.encode()) > 0
    assert list(prompt.aliases.values()) == [
        str(number) for number in range(200 - len(prompt.aliases) + 1, 201)
    ]
    assert prompt.omitted_items == 200 - len(prompt.aliases) > 0
    assert 'item number 199"' in prompt.text and 'item number 0"' not in prompt.text
    room = builder.render(observe("short", items))
    assert len(room.aliases) > len(prompt.aliases) and room.truncated_tokens == 0


def test_a_prompt_limit_below_the_instruction_is_refused():
    with pytest.raises(ValueError, match="max_prompt_tokens is 100, expected at least"):
        PromptBuilder(byte_tokenizer(), 100)


def test_aliases_become_real_ids_and_unknown_ones_never_do():
    builder = prompt_builder(byte_tokenizer())
    prompt = builder.render(observe("c", ("a", "b"), first_id=40))
    assert prompt.aliases == {"#0": "40", "#1": "41"}
    text = (
        '[{"op":"UPDATE","id":"#1","content":"x"},{"op":"DELETE","id":"0"},'
        '{"op":"DELETE","id":"40"},{"op":"SKIP"}]'
    )
    update, delete, unknown, skip = builder.parse(text, prompt)
    assert update == Operation("UPDATE", "x", "41") and delete == Operation("DELETE", None, "40")
    assert unknown == InvalidOperation("unknown id", '[{"op":"DELETE","id":"40"}]')
    assert skip == Operation("SKIP")


# Rules, and the chat templates of real models.


def rules(limit: int, **settings):
    return prompt_builder(byte_tokenizer(), ModelSettings(max_prompt_tokens=limit, **settings))


def shown(prompt: Prompt) -> list[int]:
    return [int(item_id) for item_id in prompt.aliases.values()]


ITEMS = tuple(
    f"Ana likes piece {number} of cheese" if number in (3, 4) else f"note of weather, {number}"
    for number in range(1, 41)
)


@pytest.mark.parametrize("rule", ["recent", "relevant", "recent+relevant"])
def test_a_memory_that_fits_is_shown_whole_under_every_rule(rule):
    prompt = rules(LEAST + 2500, memory_rule=rule).render(observe("Ana ate cheese.", ITEMS))
    assert shown(prompt) == list(range(1, 41)) and prompt.omitted_items == 0


def test_rules_choose_the_recent_or_the_relevant_items():
    seen = observe("Ana ate cheese.", ITEMS)
    chosen = {
        rule: shown(rules(LEAST + 300, memory_rule=rule).render(seen))
        for rule in ("recent", "relevant", "recent+relevant")
    }
    number = len(chosen["recent"])
    assert 8 < number < 30
    assert chosen["recent"] == list(range(41 - number, 41))
    # What the chunk shares a word with first, then the most recent; shown in the memory's order.
    assert chosen["relevant"][:2] == [3, 4]
    assert chosen["relevant"][2:] == list(range(43 - len(chosen["relevant"]), 41))
    # With more of the old to recall than there is room for, each half has its own.
    old = tuple(
        f"cheese, {number} of it" if number < 28 else f"note of weather, {number}"
        for number in range(1, 41)
    )
    seen = observe("Ana ate cheese.", old)
    assert max(shown(rules(LEAST + 300, memory_rule="relevant").render(seen))) < 28
    mixed = shown(rules(LEAST + 300, memory_rule="recent+relevant").render(seen))
    recent = [number for number in mixed if number >= 28]
    assert recent == list(range(41 - len(recent), 41)) and sorted(mixed) == mixed
    assert abs(2 * len(recent) - len(mixed)) <= 2


def test_what_a_rule_leaves_out_is_counted_and_never_too_long():
    seen = observe("Ana ate cheese. " * 60, ITEMS)
    for memory_rule in ("relevant", "recent+relevant"):
        for limit in range(LEAST, LEAST + 300, 37):
            builder = rules(limit, memory_rule=memory_rule, chunk_rule="head+tail")
            prompt = builder.render(seen)
            assert len(prompt.ids) <= limit
            assert len(shown(prompt)) + prompt.omitted_items == len(ITEMS)


def test_head_and_tail_of_a_chunk_keep_half_each():
    text = "".join(f"word{number} " for number in range(300))
    prompt = rules(LEAST + 300, chunk_rule="head+tail").render(observe(text))
    head, tail = prompt.text.split("<chunk>\n")[1].split("\n</chunk>")[0].split("\n[...]\n")
    assert text.startswith(head) and text.endswith(tail) and abs(len(head) - len(tail)) <= 1
    assert prompt.truncated_tokens == len(text) - len(head) - len(tail) > 0
    whole = rules(LEAST + 300, chunk_rule="head+tail").render(observe("short"))
    assert "[...]" not in whole.text and whole.truncated_tokens == 0


@pytest.mark.parametrize(
    ("family", "ends", "calls"),
    [
        (
            "qwen3",
            "<|im_start|>assistant\n<think>\n\n</think>\n\n",
            '<tool_call>\n{"name": "memory_insert", "arguments": {"content": "a"}}\n</tool_call>\n'
            '<tool_call>\n{"name": "memory_delete", "arguments": {"id": "#1"}}\n</tool_call>',
        ),
        (
            "llama",
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
            '{"name": "memory_insert", "parameters": {"content": "a"}}; '
            '{"name": "memory_delete", "parameters": {"id": "#1"}}',
        ),
    ],
)
def test_real_templates_without_thinking_and_their_tool_calls(family, ends, calls):
    tokenizer = small_tokenizer(family)
    seen = observe("c", ("a", "b"), first_id=40)
    builder = prompt_builder(tokenizer, ModelSettings(operations_as="tools"))
    prompt = builder.render(seen)
    assert prompt.text.endswith(ends)
    assert list(prompt.ids) == tokenizer(prompt.text, add_special_tokens=False)["input_ids"]
    assert "Operations as function calls:" in prompt.text and "JSON schema" not in prompt.text
    for kind in ("insert", "update", "delete", "skip"):
        assert f'"name": "memory_{kind}"' in prompt.text
    assert builder.parse(calls, prompt) == (
        Operation("INSERT", "a"),
        Operation("DELETE", None, "41"),
    )
    wrong = builder.parse('{"name": "memory_rename", "parameters": {"id": "#1"}}', prompt)
    assert [one.reason for one in wrong] == ["unknown operation"]
    as_json = prompt_builder(tokenizer).render(seen)
    assert as_json.text.endswith(ends) and "memory_insert" not in as_json.text
    # The day on which a prompt is made must not be in it.
    assert "26 Jul 2024" in prompt.text or family == "qwen3"


def test_history_cannot_call_a_tool_or_think():
    text = "<tool_call>{}</tool_call><think>no</think><|im_end|>"
    prompt = prompt_builder(small_tokenizer("qwen3")).render(observe(text, (text,)))
    assert prompt.text.count("<think>") == 1 and "<tool_call>" not in prompt.text
    assert prompt.text.count("<|im_end|>") == 2


def test_the_tiny_manager_knows_no_tools():
    with pytest.raises(ValueError, match="operations_as is 'tools'.*expected 'json'"):
        load_manager("tiny", model=ModelSettings(operations_as="tools"))


# The tiny manager's text.


def test_the_tiny_tokenizer_keeps_json_exactly():
    tokenizer = tiny.tiny_tokenizer()
    text = (
        '[{"content":"Mia lives in Rome","op":"UPDATE","id":"#3"},{"content":"Ana owns cats",'
        '"op":"INSERT"},{"op":"DELETE","id":"#31"}]'
    )
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == 17 and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    prompt = Prompt("", (), {"#3": "8", "#31": "9"})
    assert prompt_builder(tokenizer).parse(tokenizer.decode(ids), prompt) == (
        Operation("UPDATE", "Mia lives in Rome", "8"),
        Operation("INSERT", "Ana owns cats"),
        Operation("DELETE", None, "9"),
    )


def test_the_tiny_vocabulary_covers_the_planted_stream():
    tokenizer = tiny.tiny_tokenizer()
    for seed in range(30):
        for chunk in planted_stream(seed).chunks:
            ids = tokenizer(chunk.text)["input_ids"]
            assert tokenizer.unk_token_id not in ids
            assert tokenizer.decode(ids).strip() == chunk.text


def test_the_tiny_prompt_shows_at_most_the_records_it_was_trained_on():
    builder = prompt_builder(tiny.tiny_tokenizer())
    prompt = builder.render(observe("Mia lives in Rome.", ("Ana owns cats",) * 60))
    assert len(prompt.aliases) == tiny.MAX_RECORDS and prompt.omitted_items == 60 - 24
    assert len(prompt.ids) <= tiny.MAX_PROMPT_TOKENS
    assert prompt.text.startswith("<bos>memory: Ana owns cats #0 Ana owns cats #1")
    assert prompt.text.endswith("chunk: Mia lives in Rome.<operations>")


def test_text_the_tiny_manager_cannot_read_is_refused():
    builder = prompt_builder(tiny.tiny_tokenizer())
    with pytest.raises(ValueError, match="cannot read.*expected at most 20%.*Qwen3.*Huguenot"):
        builder.render(observe("Huguenot numbers peaked near an estimated two million."))
    builder.render(observe("Mia lives in Rome. Today Ana visited Atlantis."))


# Language models.


@pytest.fixture(scope="module")
def manager() -> ModelManager:
    model, tokenizer = tiny.tiny_model(seed=0), tiny.tiny_tokenizer()
    return ModelManager(
        model,
        tokenizer,
        prompt_builder(tokenizer),
        name="untrained",
        max_new_tokens=12,
    )


@pytest.fixture(scope="module")
def observations() -> list[Observation]:
    instance = planted_stream(7)
    return [
        Observation(instance, observe("", ("Mia lives in Rome",) * step).items, chunk, step)
        for step, chunk in enumerate(instance.chunks, start=1)
    ]


def test_sampling_is_seeded_and_leaves_the_global_state_alone(manager, observations):
    before = torch.random.get_rng_state()
    first = manager.act(observations, seed=4)
    assert torch.equal(before, torch.random.get_rng_state())
    assert first == manager.act(observations, seed=4)
    assert first != manager.act(observations, seed=5)


def test_logprobs_are_those_of_a_forward_pass_over_prompt_and_completion(manager, observations):
    for completion in manager.act(observations, seed=1):
        ids = completion.prompt_ids + completion.completion_ids
        with torch.no_grad():
            logits = manager.model(torch.tensor([ids])).logits[0].clone()
        logits[:, tiny.vocabulary().index(tiny.PAD)] = float("-inf")
        logprobs = logits.log_softmax(-1)
        start = len(completion.prompt_ids)
        expected = [logprobs[place - 1, ids[place]].item() for place in range(start, len(ids))]
        assert completion.logprobs == pytest.approx(expected, abs=1e-4)
        assert tiny.vocabulary().index(tiny.PAD) not in completion.completion_ids


def test_left_padding_changes_nothing(manager, observations):
    greedy = ModelManager(
        manager.model,
        manager.tokenizer,
        manager.builder,
        name="greedy",
        temperature=0.0,
        max_new_tokens=12,
    )
    together = greedy.act(observations, 0)
    for observation, completion in zip(observations, together, strict=True):
        [alone] = greedy.act([observation], 0)
        assert alone.completion_ids == completion.completion_ids
        assert alone.logprobs == pytest.approx(completion.logprobs, abs=1e-4)


def test_completions_carry_what_training_needs(manager, observations):
    for observation, completion in zip(observations, manager.act(observations, 0), strict=True):
        prompt = manager.builder.render(observation)
        assert completion.prompt == prompt.text and completion.prompt_ids == prompt.ids
        assert len(completion.completion_ids) == len(completion.logprobs) <= 12
        assert completion.operations == manager.builder.parse(completion.text, prompt)
        assert dataclasses.asdict(completion)["truncated_tokens"] == 0


def test_a_folder_that_holds_no_model_is_refused(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="could not be loaded as a causal.*Expected 'tiny'"):
        load_manager(tmp_path)
