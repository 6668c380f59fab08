"""Demonstrations on real text, imitation of them, and what the card measures."""

from __future__ import annotations

import json
import re

import pytest
import torch

from finemem_lib.data.memalpha import load_instances
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.prompts import prompt_builder
from finemem_lib.managers.protocol import Completion
from finemem_lib.training.text_demonstrations import TAKEN_BACK, demonstrations, memory_of
from finemem_lib.training.text_warm_start import card, main, measure, train
from finemem_lib.util.provenance import workbench_root
from tests.helpers.small_models import save_model, small_tokenizer


@pytest.fixture(scope="module")
def texts():
    return load_instances(workbench_root() / "data" / "real" / "train.parquet").instances[:20]


@pytest.fixture(scope="module")
def shown(texts):
    return demonstrations(texts, 200, seed=0)


@pytest.fixture(scope="module")
def builder():
    settings = ModelSettings(operations_as="matched-quotes")
    return prompt_builder(small_tokenizer("llama"), settings)


class Obedient:
    """A manager that writes what the demonstrations say, or what `changed` makes of it."""

    def __init__(self, shown, builder, changed=lambda text: text):
        self.builder = builder
        self.completions = {id(one.observation): changed(one.completion) for one in shown}

    def act(self, observations, seed):
        found = []
        for one in observations:
            text = self.completions[id(one)]
            found.append(Completion(text, self.builder.parse(text, self.builder.render(one))))
        return found


def test_demonstrated_operations_all_apply_and_store_sentences_of_the_text(shown, builder):
    kinds = set()
    for one in shown:
        found = builder.parse(one.completion, builder.render(one.observation))
        outcomes, _ = memory_of(one.observation).apply(found, 2)
        assert all(outcome.applied for outcome in outcomes), one.completion
        kinds |= {outcome.operation.kind for outcome in outcomes}
    assert kinds == {"INSERT", "UPDATE", "DELETE", "SKIP"}


def test_revisions_differ_from_their_sentence_by_one_value(shown):
    revised = [one for one in shown if one.revised]
    assert len(revised) > 60
    pairs = [(one, *pair) for one in revised for pair in one.revised.items()]
    for one, item, sentence in pairs:
        record = next(held.content for held in one.observation.items if held.item_id == item)
        before, after = record.split(), sentence.split()
        assert record != sentence and len(before) == len(after)
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert sentence in one.observation.chunk.text


def test_what_is_taken_back_is_deleted(shown):
    taken = [one for one in shown if one.retracted]
    assert taken
    for one in taken:
        assert TAKEN_BACK in one.observation.chunk.text and '"DELETE"' in one.completion


def test_half_of_the_sentences_are_kept_and_every_revision(shown, builder):
    plain = [one for one in shown if not one.revised and not one.retracted]
    figures = measure(Obedient(plain, builder), plain, 0)
    assert figures["kept"] == pytest.approx(0.5, abs=0.08)
    assert figures["without_record"] is None and figures["outdated"] is None
    figures = measure(Obedient(shown, builder), shown, 0)
    for name in ("valid_json", "executable", "supported", "right_record"):
        assert figures[name] == 1.0
    assert figures["without_record"] == figures["outdated"] == 0.0 and figures["deleted"] == 1.0


def test_demonstrations_are_what_the_grammar_allows(shown, builder):
    for one in shown:
        completion = builder.render(one.observation).grammar.tokens(one.completion)
        assert builder.tokenizer.decode(completion, skip_special_tokens=True) == one.completion


def test_measure_counts_what_is_wrong(shown, builder):
    broken = measure(Obedient(shown, builder, lambda text: text[:-1]), shown, 0)
    assert broken["valid_json"] == 0.0
    elsewhere = measure(
        Obedient(shown, builder, lambda text: text.replace('"quote":', '"quote":9')), shown, 0
    )
    assert elsewhere["executable"] < 0.6
    first = measure(Obedient(shown, builder, lambda _: '[{"op":"DELETE","id":"#0"}]'), shown, 0)
    assert 0 < first["right_record"] < 1 and first["without_record"] > 0
    twice = measure(
        Obedient(shown, builder, lambda text: re.sub('"UPDATE","id":"#[0-9]+"', '"INSERT"', text)),
        shown,
        0,
    )
    retracted = sum(one.retracted is not None for one in shown)
    assert twice["outdated"] == 1 - retracted / twice["outdated_of"]


def test_same_seed_same_demonstrations(texts):
    assert demonstrations(texts, 5, 7) == demonstrations(texts, 5, 7)
    assert demonstrations(texts, 5, 7) != demonstrations(texts, 5, 8)


@pytest.mark.long
def test_imitation_lowers_the_loss_of_the_adapter_alone(tmp_path, shown):
    folder = save_model(tmp_path / "model", "llama", num_hidden_layers=3)
    settings = ModelSettings(lora_rank=4, operations_as="matched-quotes")
    manager = load_manager(folder, model=settings)
    frozen = {
        name: value.clone()
        for name, value in manager.model.named_parameters()
        if not value.requires_grad
    }
    losses = train(manager, shown[:24], 0, passes=6, learning_rate=2e-2)
    assert len(losses) == 18 and losses[-1] < losses[0] - 0.1
    for name, value in manager.model.named_parameters():
        if name in frozen:
            assert torch.equal(value, frozen[name])


def test_shipped_card_says_what_the_files_say():
    folder = workbench_root() / "data" / "smollm2_manager"
    assert (folder / "README.md").read_text(encoding="utf-8") == card(folder)


@pytest.mark.long
def test_command_writes_adapter_figures_and_card_and_keeps_what_is_there(tmp_path, monkeypatch):
    folder = save_model(tmp_path / "model", "llama", num_hidden_layers=9)
    sample = load_instances(workbench_root() / "data" / "real" / "train.parquet").instances
    rows = [
        json.dumps(
            {
                "instance_id": one.instance_id,
                "data_source": "squad",
                "chunks": [chunk.text for chunk in one.chunks],
                "questions_and_answers": [{"question": "Who?", "answer": "Mia"}],
            }
        )
        for one in sample[:5]
    ]
    monkeypatch.setattr("finemem_lib.training.text_warm_start.SOURCES", ("squad",))
    monkeypatch.setattr("finemem_lib.training.text_warm_start.LEFT_OUT", ("other",))
    for name in ("squad", "other"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    arguments = f"--data {tmp_path} --model {folder} --output {tmp_path / 'out'} --passes 1"
    arguments += " --demonstrations 30 --samples 4 --threads 1"
    main(arguments.split())
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "| held out |" in card and "| left out |" in card
    rows = (tmp_path / "out" / "measured.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(row)["texts"] for row in rows] == ["held out", "left out"]
    assert json.loads(rows[0])["completions"] == 4
    again = load_manager(tmp_path / "out")
    assert again.builder.operations_as == "matched-quotes" and again.batch_size == 32
    with pytest.raises(SystemExit):
        main(arguments.split())
    measuring = f"--data {tmp_path} --measure {tmp_path / 'out'} --samples 2 --threads 1"
    main(measuring.split())
    rows = (tmp_path / "out" / "measured.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(rows[0])["completions"] == 2
