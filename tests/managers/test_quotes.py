"""Operations that quote the sentences of the chunk by number."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.operation_tokens import operation_of_tokens
from finemem_lib.managers.prompts import QuotingPromptBuilder, prompt_builder, with_quotes
from finemem_lib.memory import FlatMemory
from finemem_lib.trajectory import Chunk, InvalidOperation, MemoryDelta, Operation, Step
from tests.helpers.observations import observe
from tests.helpers.small_models import small_tokenizer

TEXT = 'Mia "M" lives in Rome.\nLeo owns a cat.'


@pytest.fixture(scope="module")
def builder():
    return prompt_builder(small_tokenizer("qwen3"), ModelSettings(operations_as="quotes"))


def test_prompt_numbers_the_sentences_and_shows_them_before_the_memory(builder):
    prompt = builder.render(observe(TEXT, ("Ana sails.", "Leo owns\na dog.")))
    assert isinstance(builder, QuotingPromptBuilder)
    assert prompt.quotable == ('Mia "M" lives in Rome.', "Leo owns a cat.")
    shown = prompt.text[prompt.text.index("Text:") :]
    assert '[1] Mia "M" lives in Rome.\n[2] Leo owns a cat.\nMemory:\n#0 Ana sails.' in shown
    assert "#1 Leo owns a dog." in shown


def test_rollouts_of_one_chunk_share_the_prompt_up_to_the_memory(builder):
    one, other = (builder.render(observe(TEXT, (item,))).ids for item in ("Ana sails.", "Zoe."))
    shared = next(n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    assert "Memory:" in builder.tokenizer.decode(one[:shared])


def test_quotes_become_contents_and_ids_become_real(builder):
    prompt = builder.render(observe(TEXT, ("Leo owns a dog.",), first_id=7))
    found = builder.parse(
        '[{"op":"UPDATE","id":"#0","quote":2},{"op":"INSERT","quote":"1"}]', prompt
    )
    assert found == (
        Operation("UPDATE", "Leo owns a cat.", "7"),
        Operation("INSERT", 'Mia "M" lives in Rome.'),
    )


@pytest.mark.parametrize(
    "written", ['{"op":"INSERT","quote":3}', '{"op":"INSERT","content":"I made this up."}']
)
def test_what_is_no_sentence_of_the_text_is_not_stored(builder, written):
    (found,) = builder.parse(f"[{written}]", builder.render(observe(TEXT)))
    assert isinstance(found, InvalidOperation)
    outcomes, _ = FlatMemory().apply([found], 1)
    assert not outcomes[0].applied


@given(st.text(), st.lists(st.text(min_size=1), max_size=3))
def test_any_completion_is_read_without_an_error(completion, quotable):
    assert isinstance(with_quotes(completion, quotable), str)


def test_a_chunk_that_does_not_fit_is_cut_and_only_what_is_shown_can_be_quoted():
    tokenizer = small_tokenizer("qwen3")
    text = "\n".join(f"Sentence number {n} speaks of many things." for n in range(60))
    builder = prompt_builder(
        tokenizer, ModelSettings(operations_as="quotes", max_prompt_tokens=300)
    )
    prompt = builder.render(observe(text))
    assert len(prompt.ids) <= 300 and prompt.truncated_tokens > 0
    assert all(sentence in prompt.text for sentence in prompt.quotable)
    assert 0 < len(prompt.quotable) < 60


def test_tokens_of_a_quoting_operation_belong_to_it():
    made, kept = Operation("INSERT", "Leo owns a cat."), Operation("DELETE", None, "7")
    memory = FlatMemory()
    outcomes, delta = memory.apply([made], 1)
    step = Step(1, Chunk("", 0), "", (*outcomes, *memory.apply([kept], 2)[0]), MemoryDelta(), 0)
    texts = ['[{"op":"INSERT",', '"quote":', "2", "}", ',{"op":"DELETE","id":"#0"', "}", "]"]
    assert operation_of_tokens(step, texts) == [0, 0, 0, 0, 1, 1, None]


def test_a_deeply_nested_quote_belongs_to_no_operation():
    outcomes, _ = FlatMemory().apply([Operation("INSERT", "Leo owns a cat.")], 1)
    step = Step(1, Chunk("", 0), "", outcomes, MemoryDelta(), 0)
    nested = '{"op":"INSERT","id":' + "[" * 500 + "]" * 500 + "}"
    assert operation_of_tokens(step, [nested]) == [None]
