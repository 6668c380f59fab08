"""The tiny managers for streams that need structure: demonstrations, measures, shipped ones."""

from __future__ import annotations

import re

import pytest
import torch

from finemem_lib.data.planted import DATA_SOURCE, VERBS, planted_stream
from finemem_lib.data.planted_layers import kind_of, layer_stream
from finemem_lib.layers.memory import timestamp_of
from finemem_lib.layers.operations import parse_calls
from finemem_lib.managers import tiny
from finemem_lib.managers.loading import STRUCTURED_MANAGERS, checkpoint_folder
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.prompts import CompactPromptBuilder
from finemem_lib.managers.protocol import Observation
from finemem_lib.memory import FlatMemory
from finemem_lib.operations import parse_operations
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.reading import ReadingTask
from finemem_lib.scoring import score
from finemem_lib.seeds import generator
from finemem_lib.training import structured_warm_start, warm_start
from finemem_lib.training.layered_warm_start import as_calls
from finemem_lib.training.structured_warm_start import (
    StructuredSteps,
    dated,
    extended,
    memory_of,
    random_stream,
    rows_of,
    structured_demonstration,
)
from finemem_lib.training.warm_start import sentences_of
from finemem_lib.trajectory import InvalidOperation, Operation

torch.set_num_threads(1)
WORDS = tiny.vocabulary(structured=True)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tiny_tokenizer(structured=True)


def draws(progress: float, count: int = 60):
    rng = generator("structured test", progress)
    streams = [random_stream(rng) for _ in range(6)]
    return [structured_demonstration(rng, progress, rng.choice(streams)) for _ in range(count)]


def read(demo, tokenizer):
    """Return (memory {alias: content}, date, chunk sentences, operations) of a demonstration."""
    prompt = tokenizer.decode(demo.ids[: demo.prompt_length])
    memory, date, chunk = re.fullmatch(
        r"<bos> memory:(.*) chunk: \[Dialogue on ([^\]]*)\](.*)<operations>", prompt
    ).groups()
    records = {alias: content for content, alias in re.findall(r" ([^#]+) (#\d+)", memory)}
    text = tokenizer.decode(demo.ids[demo.prompt_length :], skip_special_tokens=True)
    return records, date, [part.strip() for part in chunk.split(".")[:-1]], parse_operations(text)


# The notes.


def test_the_reader_answers_every_question_from_the_facts_and_the_notes():
    reader = ExtractiveReader(synonyms=VERBS[DATA_SOURCE])
    for seed in range(6):
        stream = layer_stream(seed)
        summary, notes = "", []
        for chunk, date in zip(stream.chunks, stream.metadata["dates"], strict=True):
            for sentence in sentences_of(chunk):
                kind = kind_of(sentence)
                if kind == "stop":
                    summary = extended(summary, sentence.split()[-1])
                elif kind != "noise":
                    notes.append(dated(sentence, date) if kind == "event" else sentence)
        items = tuple((str(place), note) for place, note in enumerate([summary, *notes]))
        written = tuple(range(len(items)))
        for asked in stream.questions:
            task = ReadingTask(asked.text, asked.data_source, items, written)
            [reading] = reader.read([task])
            assert score(reading.answer, asked.answers, asked.data_source) == 1.0, asked


def test_an_event_without_its_date_does_not_answer_when():
    reader = ExtractiveReader(synonyms=VERBS[DATA_SOURCE])
    asked = ("When did Mia visit Fez?", "planted-layers")
    answers = []
    for note in ("Mia visited Fez", dated("Mia visited Fez", "4 January 2024")):
        [reading] = reader.read([ReadingTask(*asked, (("1", note),))])
        answers.append(score(reading.answer, ("4 January 2024",), asked[1]))
    assert answers == [0.0, 1.0]
    assert timestamp_of(dated("Mia visited Fez", "4 January 2024")) == "4 January 2024"


# Demonstrations.


def test_the_words_of_structure_follow_those_of_the_plain_world():
    plain = tiny.vocabulary()
    assert WORDS[: len(plain)] == plain
    calls = tiny.vocabulary(layers=True, structured=True)
    assert calls[: len(WORDS)] == WORDS and len(set(calls)) == len(calls)


@pytest.mark.parametrize("progress", [0.1, 1.0])
def test_a_demonstration_is_the_prompt_of_a_step_and_text_of_the_tokenizer(tokenizer, progress):
    builder = CompactPromptBuilder(tokenizer, tiny.MAX_PROMPT_TOKENS)
    positional = 0
    for demo in draws(progress):
        assert tokenizer(tokenizer.decode(demo.ids))["input_ids"] == demo.ids
        assert demo.prompt_length <= tiny.MAX_PROMPT_TOKENS
        assert len(demo.ids) - demo.prompt_length <= tiny.MAX_NEW_TOKENS
        records, date, chunk, _ = read(demo, tokenizer)
        if list(records) != list(tiny.ALIASES[: len(records)]):
            continue
        positional += 1
        memory = FlatMemory()
        memory.apply([Operation("INSERT", content) for content in records.values()], 1)
        stream = planted_stream(0)
        text = f"[Dialogue on {date}]\n" + " ".join(f"{line}." for line in chunk)
        shown = stream.chunks[0].__class__(text=text, tokens=1)
        prompt = builder.render(Observation(stream, memory.items, shown, 2))
        assert list(prompt.ids) == demo.ids[: demo.prompt_length]
    assert positional > 10


def test_every_kind_is_kept_equally_often_and_every_note_is_right(tokenizer):
    kept = {kind: [] for kind in ("fact", "event", "stop", "noise")}
    notes = 0
    for demo in draws(1.0, 500):
        records, date, chunk, operations = read(demo, tokenizer)
        [summary] = [one for one in records.values() if one.startswith("Caravan")] or [""]
        written = {one.content: one for one in operations if one.kind in ("INSERT", "UPDATE")}
        for sentence in chunk:
            kind = kind_of(sentence)
            note = None
            if kind == "event":
                note = dated(sentence, date)
            elif kind == "stop":
                note = extended(summary, sentence.split()[-1])
            kept[kind].append(sentence in written or note in written)
            if note in written:
                notes += 1
                assert sentence not in written
                target = written[note].item_id
                expected = summary if kind == "stop" and summary else None
                assert (records[target] if target else None) == expected
    assert notes > 50
    shares = {kind: sum(hits) / len(hits) for kind, hits in kept.items()}
    assert max(shares.values()) - min(shares.values()) < 0.12, shares
    assert all(abs(share - structured_warm_start.KEPT) < 0.08 for share in shares.values())


def test_copying_heads_are_guided_to_the_token_that_follows():
    ends = {tiny.STOP, tiny.MEMORY, *tiny.ALIASES}
    guided = 0
    for demo in draws(0.1):
        for head, query, key in demo.guides:
            assert 0 <= key <= query
            if head in warm_start.COPY and WORDS[demo.ids[key]] not in ends:
                guided += 1
                assert demo.ids[query + 1] == demo.ids[key]
    assert guided > 100 and not draws(1.0, 1)[0].guides


def test_as_calls_a_summary_lies_in_the_core_or_elsewhere_and_is_extended_there():
    rng = generator("structured calls")
    tokenizer = tiny.tiny_tokenizer(layers=True, structured=True)
    stores = set()
    for demo in draws(1.0, 300):
        words = [WORDS[number] for number in demo.ids]
        made = as_calls(words, demo.prompt_length, rng, structured=True)
        shown = tokenizer.decode(made.ids[: made.prompt_length])
        said = tokenizer.decode(made.ids[made.prompt_length :], skip_special_tokens=True)
        for call in parse_calls(said):
            assert not isinstance(call, InvalidOperation)
            if call.content and call.content.startswith("Caravan") and call.kind == "UPDATE":
                stores.add(call.store)
                if call.store == "core":
                    assert not re.search(r"Caravan[^#]*#[se]", shown)
                else:
                    assert re.search(rf"Caravan[^#]* {call.item_id}\b", shown)
    assert stores == {"core", "semantic", "episodic"}


def test_a_memory_of_notes_has_at_most_one_summary_and_as_many_notes_as_asked():
    rng = generator("notes")
    stream = random_stream(rng)
    for _ in range(50):
        notes = memory_of(rng, stream, 12, 9, 9)
        assert len(notes) == len(set(notes)) == 9
        assert sum(note.startswith("Caravan") for note in notes) <= 1
    assert memory_of(rng, stream, 1, 9, 9) == []


# Measures.


class Says:
    """Writes the note that is due, a wrong one, or the due one in the place of a fact."""

    def __init__(self, notes: str, layered: bool) -> None:
        self.notes = notes
        self.layered = layered

    def act(self, observations, seed):
        from finemem_lib.managers.protocol import Completion
        from finemem_lib.operations import format_operations

        found = []
        for one in observations:
            operations = [
                self.operation(one, sentence)
                for sentence in sentences_of(one.chunk)
                if kind_of(sentence) in ("event", "stop")
            ]
            found.append(Completion(format_operations(operations), tuple(operations)))
        return found

    def operation(self, one, sentence):
        wrong = self.notes == "wrong"
        date = one.instance.metadata["dates"][one.step - 1 - wrong]
        old = next((i for i in one.items if i.content.startswith("Caravan")), None)
        note = dated(sentence, date)
        if kind_of(sentence) == "stop":
            note = extended(old.content if old and not wrong else "", sentence.split()[-1])
        if self.notes == "overwriting":
            fact = next(i for i in one.items if kind_of(i.content) == "fact")
            return Operation("UPDATE", note, fact.item_id)
        if kind_of(sentence) == "stop" and not wrong:
            if (
                old.store == "core" if old else self.layered
            ):  # where a layered memory holds no summary, the first one makes the core
                return Operation("UPDATE", note, None, "core")
            if old:
                return Operation("UPDATE", note, old.item_id)
        return Operation("INSERT", note)


@pytest.mark.parametrize("stores", [(), tiny.CALL_STORES])
@pytest.mark.parametrize("wrong", [False, True])
def test_right_notes_are_counted_as_right_and_wrong_ones_as_wrong(wrong, stores):
    says = Says("wrong" if wrong else "right", bool(stores))
    figures = warm_start.evaluate(says, 40, 3, 6, stores=stores, steps=StructuredSteps())
    assert figures["right_date"] == figures["event_dated"] == float(not wrong)
    assert (figures["right_summary"] == 1.0) is not wrong
    assert (figures["stop_in_summary"] == 1.0) is not wrong
    assert (figures["update"] > 0) is not wrong  # old summaries are rewritten
    assert figures["fact_kept"] == figures["noise_kept"] == figures["event_kept"] == 0.0
    assert figures["exact_copy"] is None  # notes are no copies


@pytest.mark.parametrize("stores", [(), tiny.CALL_STORES])
def test_a_right_note_in_the_place_of_a_fact_is_wrong(stores):
    says = Says("overwriting", bool(stores))
    figures = warm_start.evaluate(says, 40, 3, 6, stores=stores, steps=StructuredSteps())
    assert figures["update"] > 40 and figures["insert"] == 0 and figures["executable"] == 1.0
    shares = ("right_date", "event_dated", "right_summary", "stop_in_summary")
    assert {share: figures[share] for share in shares} == dict.fromkeys(shares, 0.0)


# The command and the shipped checkpoints.


def test_a_few_updates_lower_the_loss_the_same_way_for_the_same_seed(monkeypatch):
    monkeypatch.setattr(structured_warm_start, "BATCH", 8)
    monkeypatch.setattr(structured_warm_start, "POOL", 2)
    monkeypatch.setattr(structured_warm_start, "ENDING", 2)
    begun, losses = structured_warm_start.begin(seed=1, steps=8, log_every=0)
    assert losses[-1] < losses[0]
    assert structured_warm_start.train(seed=1, steps=1, log_every=0)[1][0] == losses[0]
    for layers in (False, True):
        ended, more = structured_warm_start.end(begun, 1, layers, log_every=0)
        words = tiny.vocabulary(layers=layers, structured=True)
        assert len(more) == 2 and ended.config.vocab_size == len(words)


@pytest.mark.parametrize("name", STRUCTURED_MANAGERS)
def test_the_shipped_managers_read_both_kinds_of_streams_and_write_right_notes(name):
    manager = load_manager(name)
    layers = "layers" in name
    tokenizer = tiny.tiny_tokenizer(layers=layers, structured=True)
    assert manager.tokenizer.get_vocab() == tokenizer.get_vocab()
    assert (manager.memory == "layered") is layers
    assert (checkpoint_folder(name) / "model.safetensors").stat().st_size < 2e6
    rows = rows_of(manager, 64, 12345, layers)
    assert [row["streams"] for row in rows] == ["structured"] * 4 + ["plain"] * 2
    for row in rows:
        assert row["valid_json"] > 0.9 and row["executable"] > 0.9 and row["exact_copy"] > 0.9
    notes = [row for row in rows if row["streams"] == "structured"]
    for share in ("right_date", "right_summary"):  # of some twenty notes; the card counts more
        assert sum(row[share] for row in notes) / len(notes) > 0.65
