"""A language model in this process."""

from __future__ import annotations

import dataclasses

import pytest

from finemem_lib.readers.local import LocalChat
from finemem_lib.readers.model_reader import ModelReader
from finemem_lib.util.provenance import workbench_root
from tests.helpers.chat_models import TASK, local, talks


def test_local_replies_do_not_depend_on_batch_or_order_and_sampling_is_seeded(tiny_model):
    import torch

    alone = LocalChat(local(tiny_model, batch_size=1)).ask(talks(5))
    together = LocalChat(local(tiny_model, batch_size=5))
    assert together.ask(talks(5)[::-1]) == alone[::-1]
    assert together.ask(talks(5)) == alone and together.usage.memo_hits == 5

    before = torch.random.get_rng_state()
    drawn = [
        LocalChat(local(tiny_model, temperature=1.0, seed=seed)).ask(talks(5)) for seed in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_local_reply_that_does_not_end_is_malformed(tiny_model):
    one = LocalChat(local(tiny_model))
    one._model.generation_config.eos_token_id = 2  # which these weights do not write
    assert one.ask(talks(1)) == [None]
    assert (one.usage.malformed, one.usage.tokens_out) == (2, 24)


def test_thinking_is_off_unless_asked_for(tiny_model):
    counted = []
    for arguments in ({"enable_thinking": False}, None):
        one = LocalChat(local(tiny_model, chat_template_kwargs=arguments))
        one.ask(talks(1))
        counted.append(one.usage.tokens_in)
    assert counted[0] - counted[1] == len("<think>\n\n</think>\n\n")


def test_log_probabilities_are_those_of_the_reply_alone_whatever_the_batch(tiny_model):
    import torch

    replies = ["Rome", "cats and dogs and ponies", "x"]
    alone = LocalChat(local(tiny_model, batch_size=1))
    found = alone.log_probabilities(talks(3), replies)
    together = LocalChat(local(tiny_model, batch_size=3)).log_probabilities(talks(3), replies)
    assert together == pytest.approx(found, rel=1e-4)
    for messages, reply, value in zip(talks(3), replies, found, strict=True):
        text = alone._tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=False, enable_thinking=False
        )
        prompt = alone._tokenizer.encode(text, add_special_tokens=False)
        written = alone._tokenizer.encode(reply, add_special_tokens=False)
        logits = alone._model(torch.tensor([[*prompt, *written]])).logits[0].log_softmax(-1)
        expected = [
            logits[len(prompt) - 1 + place, token].item() for place, token in enumerate(written)
        ]
        assert value == pytest.approx(sum(expected) / len(expected), rel=1e-4)


def test_a_local_reader_gives_the_probability_of_its_likeliest_accepted_answer(tiny_model):
    model = LocalChat(local(tiny_model))
    reader = ModelReader(model)
    weigh = reader.answer_log_probabilities
    each = weigh([TASK, TASK, TASK], [["Rome"], ["Oslo"], ["a long way from here"]])
    assert len(set(each)) == 3 and all(value < 0 for value in each)
    both = weigh([TASK, TASK], [["Oslo", "Rome"], ["a long way from here"]])
    assert both == pytest.approx([max(each[:2]), each[2]], rel=1e-4)
    other = dataclasses.replace(TASK, items=TASK.items[:1], written=(0,))
    assert weigh([other], [["Rome"]]) != pytest.approx(each[:1], rel=1e-4)
    assert ModelReader(model, cite=True).answer_log_probabilities is None


def test_a_model_without_a_chat_template_is_refused(tiny_model, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    AutoModelForCausalLM.from_pretrained(tiny_model).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no chat template.*instruction-tuned"):
        LocalChat(local(str(tmp_path)))


def test_a_model_that_was_not_fetched_is_refused_with_the_command_that_fetches_it():
    with pytest.raises(ValueError, match="finemem fetch no-such-model"):
        LocalChat(local("data/models/no-such-model"))


def test_a_local_model_is_found_from_the_repository_whatever_the_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    settings = local("data/tiny_manager")
    assert settings.source == str(workbench_root() / "data" / "tiny_manager")
    (tmp_path / "data" / "tiny_manager").mkdir(parents=True)
    assert settings.source == "data/tiny_manager"
    assert local("owner/name").source == "owner/name"
