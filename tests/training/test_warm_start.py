from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch

from finemem_lib.data.planted import ATTRIBUTES, NAMES, World
from finemem_lib.data.sentences import units
from finemem_lib.managers import tiny
from finemem_lib.managers.loading import (
    LAYERED_MANAGERS,
    STRUCTURED_MANAGERS,
    TINY_WORLDS,
    ModelSettings,
    checkpoint_folder,
)
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.prompts import CompactPromptBuilder
from finemem_lib.operations import parse_operations
from finemem_lib.seeds import generator
from finemem_lib.training import warm_start
from finemem_lib.training.warm_start import (
    demonstration,
    evaluate,
    held_out_observation,
    slot_of,
)
from tests.helpers.observations import observe

torch.set_num_threads(1)  # more of them wait for each other where other work is running


FLAT = [name for name in TINY_WORLDS if name not in {*LAYERED_MANAGERS, *STRUCTURED_MANAGERS}]
both_worlds = pytest.mark.parametrize("world", [TINY_WORLDS[name] for name in FLAT])


def draws(progress: float, count: int = 200, world: World = "plain"):
    rng = generator("test", progress)
    return [demonstration(rng, progress, world) for _ in range(count)]


# Demonstrations.


@both_worlds
@pytest.mark.parametrize("progress", [0.0, 0.5, 0.99])
def test_a_demonstration_is_what_the_tokenizer_makes_of_its_own_text(progress, world):
    tokenizer = tiny.tiny_tokenizer(world)
    for demo in draws(progress, world=world):
        assert tokenizer(tokenizer.decode(demo.ids))["input_ids"] == demo.ids
        prompt, completion = demo.ids[: demo.prompt_length], demo.ids[demo.prompt_length :]
        assert len(prompt) <= tiny.MAX_PROMPT_TOKENS
        assert len(completion) <= tiny.MAX_NEW_TOKENS


def read(demo):
    """Return (memory {alias: content}, chunk sentences, operations) of a demonstration."""
    tokenizer = tiny.tiny_tokenizer(demo.world)
    prompt = tokenizer.decode(demo.ids[: demo.prompt_length])
    memory, chunk = re.fullmatch(r"<bos> memory:(.*) chunk:(.*)<operations>", prompt).groups()
    records = {alias: content for content, alias in re.findall(r" ([^#]+) (#\d+)", memory)}
    text = tokenizer.decode(demo.ids[demo.prompt_length :], skip_special_tokens=True)
    return records, [part.strip() for part in chunk.split(".")[:-1]], text


@both_worlds
def test_demonstrations_copy_in_turn_and_address_only_records_of_the_slot(world):
    edits = 0
    for demo in draws(0.9, 400, world):
        records, chunk, text = read(demo)
        assert re.findall(r'"content":"([^"]*)"', text) == chunk
        about = None
        for operation in parse_operations(text):
            about = slot_of(operation.content) if operation.content else about
            if operation.item_id is not None:
                edits += 1
                assert slot_of(records[operation.item_id]) == about is not None
    assert edits > 50


@both_worlds
def test_a_demonstrated_prompt_is_the_prompt_the_builder_renders(world):
    tokenizer = tiny.tiny_tokenizer(world)
    builder = CompactPromptBuilder(tokenizer, tiny.MAX_PROMPT_TOKENS)
    positional = 0
    for demo in draws(0.3, 60, world):
        records, chunk, _ = read(demo)
        if list(records) != list(tiny.ALIASES[: len(records)]):
            continue
        positional += 1
        prompt = builder.render(
            observe(" ".join(f"{line}." for line in chunk), tuple(records.values()))
        )
        assert list(prompt.ids) == demo.ids[: demo.prompt_length]
    assert positional > 10


@both_worlds
def test_guided_heads_look_back_at_the_part_of_the_sentence_they_are_named_after(world):
    tokens = tiny.vocabulary(world)
    values = {value for spec in ATTRIBUTES.values() for value in spec.values}
    for demo in draws(0.1, 50, world):
        for head, query, key in demo.guides:
            assert 0 <= key <= query
            if head == warm_start.VALUE:
                assert tokens[demo.ids[key]] in values
            if head == warm_start.PERSON and world == "paraphrased":
                assert tokens[demo.ids[key]] in NAMES
            if head in warm_start.COPY and tokens[demo.ids[key]] != tiny.STOP:
                assert demo.ids[query + 1] == demo.ids[key]
            if head in warm_start.RECORD:
                assert tokens[demo.ids[key]] in (tiny.MEMORY, *tiny.ALIASES)
    assert not draws(0.5, 1)[0].guides


def test_guidance_loss_is_zero_exactly_when_all_attention_is_where_it_should_be():
    [demo] = draws(0.0, 1)
    length = len(demo.ids)
    attentions = tuple(torch.zeros(1, 4, length, length) for _ in range(2))
    for (layer, head), query, key in demo.guides:
        attentions[layer][0, head, query, key] = 1.0
    assert warm_start.guidance_loss(attentions, [demo]).item() == pytest.approx(0.0)
    halved = tuple(attention / 2 for attention in attentions)
    heads = len({head for head, _, _ in demo.guides})
    expected = heads * torch.tensor(2.0).log().item()
    assert warm_start.guidance_loss(halved, [demo]).item() == pytest.approx(expected)


@both_worlds
def test_held_out_steps_have_the_records_asked_for_and_something_to_look_up(world):
    rng = generator("held out")
    drawn = [held_out_observation(rng, 6, tiny.UNSEEN_NAMES, world) for _ in range(60)]
    found = [observation for observation in drawn if observation is not None]
    assert found
    for observation in found:
        slots = [slot_of(item.content) for item in observation.items]
        sentences = [unit.rstrip(".") for unit in units(observation.chunk.text)]
        assert len(slots) == 6
        assert set(slots) & {slot_of(sentence) for sentence in sentences} - {None}
        assert {slot[0] for slot in slots if slot} <= set(tiny.UNSEEN_NAMES)


# The command.


def test_twenty_updates_lower_the_loss_the_same_way_for_the_same_seed(monkeypatch):
    monkeypatch.setattr(warm_start, "BATCH", 16)
    _, losses = warm_start.train(seed=1, steps=20, log_every=0)
    assert max(losses[-3:]) < min(losses[:3]) - 0.4
    assert warm_start.train(seed=1, steps=3, log_every=0)[1][0] == losses[0]
    assert warm_start.train(seed=2, steps=1, log_every=0)[1][0] != losses[0]


def test_the_command_writes_a_folder_that_loads_and_never_overwrites_one(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(warm_start, "BATCH", 4)
    output = tmp_path / "made" / "here"
    warm_start.main(["--output", str(output), "--steps", "2", "--samples", "2"])
    names = {path.name for path in output.iterdir()}
    assert names == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "chat_template.jinja",
        "README.md",
        "measured.jsonl",
        "measured.json",
    }
    assert [path.name for path in output.parent.iterdir()] == ["here"]
    assert "--steps 2`" in (output / "README.md").read_text()
    manager = load_manager(output, model=ModelSettings(max_new_tokens=4))
    [completion] = manager.act([observe("Mia lives in Rome.")], seed=0)
    assert len(completion.completion_ids) <= 4
    with pytest.raises(SystemExit):
        warm_start.main(["--output", str(output)])
    assert "exists; name a new folder" in capsys.readouterr().err


def test_measuring_a_checkpoint_again_writes_rows_that_the_card_quotes(tmp_path, capsys):
    folder = tmp_path / "tiny"
    shutil.copytree(
        checkpoint_folder("tiny"), folder, ignore=shutil.ignore_patterns("*.md", "measured*")
    )
    warm_start.main(["--measure", str(folder), "--samples", "3"])
    rows = [json.loads(line) for line in (folder / "measured.jsonl").read_text().splitlines()]
    assert [(row["names"], row["records"], row["completions"]) for row in rows] == [
        *(("seen", records, 3) for records in (3, 6, 10, 16)),
        *(("never seen", records, 3) for records in (3, 10)),
    ]
    card, made = (
        (folder / "README.md").read_text(),
        json.loads((folder / "measured.json").read_text()),
    )
    assert f"| never seen | 10 | {rows[-1]['valid_json']:.3f} |" in card
    assert {"commit", "dirty"} == set(made["git"]) and made["hardware"] and made["seed"] == 1
    assert made["command"].endswith("--measure tiny --seed 0 --samples 3")
    with pytest.raises(SystemExit):
        warm_start.main(["--measure", str(tmp_path)])
    assert "holds no checkpoint" in capsys.readouterr().err


def test_only_never_seen_names_get_new_embeddings_and_none_is_taken_for_another():
    model = tiny.tiny_model(seed=3)
    before = model.get_input_embeddings().weight.detach().clone()
    warm_start.embed_unseen_names(model, seed=3)
    after = model.get_input_embeddings().weight.detach()
    changed = [tiny.vocabulary()[row] for row in (before != after).any(1).nonzero().flatten()]
    assert changed == list(tiny.UNSEEN_NAMES)
    names = [tiny.vocabulary().index(name) for name in (*NAMES, *tiny.UNSEEN_NAMES)]
    apart = after[names] - before[names[: len(NAMES)]].mean(0)
    assert (apart @ apart.T).argmax(1).tolist() == list(range(len(names)))


# The shipped checkpoint.


def card_rows(shipped: Path) -> dict[tuple[str, int], dict[str, float | None]]:
    lines = (shipped / "README.md").read_text().splitlines()
    table = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("|")
    ]
    header, _, *rows = table
    return {
        (row[0], int(row[1])): {
            name: None if cell == "-" else float(cell.split()[0])
            for name, cell in zip(header[2:], row[2:], strict=True)
        }
        for row in rows
    }


@pytest.mark.parametrize("name", TINY_WORLDS)
def test_the_shipped_checkpoints_are_small_and_of_a_plain_architecture(name):
    tokenizer = tiny.tiny_tokenizer(
        TINY_WORLDS[name], name in LAYERED_MANAGERS, name in STRUCTURED_MANAGERS
    )
    manager = load_manager(name)
    assert (checkpoint_folder(name) / "model.safetensors").stat().st_size < 2e6
    assert manager.model.config.model_type == "qwen3"
    assert manager.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert manager.tokenizer.chat_template == tokenizer.chat_template
    assert manager.tokenizer.pad_token_id != manager.tokenizer.eos_token_id
    assert isinstance(manager.builder, CompactPromptBuilder)


@pytest.mark.parametrize("records", [3, 6, 10, 16])
@pytest.mark.parametrize("name", FLAT)
def test_the_card_states_what_the_shipped_checkpoint_does(name, records):
    card = card_rows(checkpoint_folder(name))["seen", records]
    figures = evaluate(
        load_manager(name), samples=96, seed=12345, records=records, world=TINY_WORLDS[name]
    )
    for name, stated in card.items():
        measured = figures[name.replace(" ", "_")]
        assert measured is not None and abs(measured - stated) < 0.12, name
    assert card["valid json"] >= 0.995 and card["executable"] >= 0.98
    assert card["exact copy"] >= 0.97 and card["right record"] >= 0.98
    assert card["without record"] <= 0.1
