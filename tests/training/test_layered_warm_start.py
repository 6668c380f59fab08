"""The tiny manager for layers: its demonstrations, its prompt, and what the shipped one can do."""

from __future__ import annotations

import pytest

from finemem_lib.data.planted import planted_stream
from finemem_lib.layers.operations import parse_calls
from finemem_lib.managers import tiny
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.prompts import CompactLayeredPromptBuilder
from finemem_lib.managers.protocol import Observation
from finemem_lib.operations import parse_operations
from finemem_lib.seeds import generator
from finemem_lib.training.layered_warm_start import as_calls
from finemem_lib.training.warm_start import demonstration, evaluate
from finemem_lib.trajectory import InvalidOperation, MemoryItem, Write


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tiny_tokenizer(layers=True)


def test_a_demonstration_of_calls_does_what_the_flat_one_does(tokenizer):
    words, rng = tiny.vocabulary(), generator("test", 0)
    flat_tokenizer = tiny.tiny_tokenizer()
    core = 0
    for _ in range(200):
        demo = demonstration(rng, progress=1.0)
        flat = parse_operations(
            flat_tokenizer.decode(demo.ids[demo.prompt_length :], skip_special_tokens=True)
        )
        made = as_calls([words[number] for number in demo.ids], demo.prompt_length, rng)
        calls = parse_calls(
            tokenizer.decode(made.ids[made.prompt_length :], skip_special_tokens=True)
        )
        assert not any(isinstance(one, InvalidOperation) for one in calls)
        core += sum(one.store == "core" for one in calls)
        contents = [one.content for one in flat if one.content is not None]
        assert [one.content for one in calls if one.content is not None] == contents
        shown = tokenizer.decode(made.ids[: made.prompt_length])
        for one in calls:
            if one.item_id is not None:
                assert f" {one.item_id}" in shown and one.item_id[1] == one.store[0]
    assert core > 0


def test_the_prompt_names_the_store_in_the_alias(tokenizer):
    builder = CompactLayeredPromptBuilder(tokenizer, tiny.MAX_PROMPT_TOKENS)
    items = tuple(
        MemoryItem(item_id, content, (Write(1, "INSERT", 0),), store)
        for item_id, content, store in (
            ("s4", "Mia owns cats", "semantic"),
            ("core", "Leo studies law", "core"),
            ("e9", "Ana lives in Rome", "episodic"),
        )
    )
    stream = planted_stream(0)
    prompt = builder.render(Observation(stream, items, stream.chunks[0], 2))
    assert "Mia owns cats #s0 Leo studies law #c Ana lives in Rome #e2" in prompt.text
    assert prompt.ids.count(tokenizer.unk_token_id) == 0
    said = (
        f"{tiny.FIRST_CALL}Mia owns dogs{tiny.CALL_ID}#s0{tiny.CALL_UPDATED['semantic']}"
        f"{tiny.NEXT_CALL}Ana sails{tiny.CALL_CORE}{tiny.CLOSE}"
    )
    update, core = builder.parse(said, prompt)
    assert (update.kind, update.item_id, update.store) == ("UPDATE", "s4", "semantic")
    assert (core.kind, core.content, core.store) == ("UPDATE", "Ana sails", "core")


@pytest.mark.parametrize("records", [3, 10])
def test_the_shipped_warm_start_can_do_what_its_card_says(records):
    manager = load_manager("tiny-layers")
    assert manager.memory == "layered"
    found = evaluate(manager, samples=64, seed=12345, records=records, stores=tiny.CALL_STORES)
    assert found["valid_json"] > 0.9 and found["executable"] > 0.9
    assert found["exact_copy"] > 0.9 and found["right_record"] > 0.8
    assert 0.1 < found["fact_kept"] < 0.6  # no sense yet for what is worth keeping
    assert abs(found["fact_kept"] - found["noise_kept"]) < 0.25
