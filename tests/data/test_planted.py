"""The planted stream: its truth is true, and it repeats."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, strategies as st

from finemem_lib.data.planted import (
    ADVERBS,
    ATTRIBUTES,
    DATA_SOURCE,
    NAMES,
    OTHERS,
    PARAPHRASED_NOISE,
    SYNONYMS,
    TEMPLATES,
    VERBS,
    StreamSettings,
    planted_instances,
    planted_stream,
    verb_of,
)
from finemem_lib.data.sentences import sentences
from finemem_lib.scoring import metric_for, score
from finemem_lib.text import words
from finemem_lib.trajectory import Instance, from_json, to_json
from finemem_lib.util.provenance import workbench_root

SHAPES = st.builds(
    StreamSettings,
    num_chunks=st.integers(1, 30),
    people=st.integers(1, 8),
    max_facts=st.integers(1, 3),
    max_noise=st.integers(1, 6),
    change_rate=st.floats(0, 1),
    world=st.sampled_from(["plain", "paraphrased"]),
)
STREAMS = st.builds(planted_stream, st.integers(0, 10_000), SHAPES)


def writes(instance):
    """Read the facts back from the chunk texts alone: (step, person, attribute, value)."""
    attributes = {spec.cue: name for name, spec in ATTRIBUTES.items()}
    verbs = {
        verb: attributes[cue]
        for cue, verbs in VERBS[instance.data_source].items()
        for verb in verbs
    }
    for step, chunk in enumerate(instance.chunks, start=1):
        for sentence in sentences(chunk.text):
            said = sentence.rstrip(".").split()
            if not verbs.keys().isdisjoint(said):
                [name] = [verbs[word] for word in said if word in verbs]
                [person] = [word for word in said if word in NAMES]
                [value] = [word for word in said if word in ATTRIBUTES[name].values]
                yield step, person, name, value


def asked_slots(question):
    """Return what a question asks for: {(person, attribute): value}."""
    people = [word for word in words_of(question.text) if word in NAMES]
    [name] = [
        name
        for name, spec in ATTRIBUTES.items()
        if question.text
        in (
            spec.question.format(person=people[0]),
            spec.pair_question.format(person=" and ".join(people)),
        )
    ]
    [answer] = question.answers
    return {(person, name): value for person, value in zip(people, answer.split("; "), strict=True)}


def words_of(text):
    return text.rstrip("?").split()


@given(STREAMS)
def test_global_questions_ask_every_slot_for_its_last_write(instance):
    last = {(person, name): (value, step) for step, person, name, value in writes(instance)}
    asked = [(slots, q) for q in instance.questions for slots in [asked_slots(q)]]
    assert sorted(slot for slots, _ in asked for slot in slots) == sorted(last)
    for slots, question in asked:
        assert slots == {slot: last[slot][0] for slot in slots}
        assert question.evidence_steps == tuple(sorted({last[slot][1] for slot in slots}))
        assert question.step is None
    # Where people differ in an attribute, two who do are asked about together.
    for name in ATTRIBUTES:
        values = {value for slot, (value, _) in last.items() if slot[1] == name}
        pairs = [slots for slots, _ in asked if len(slots) == 2 and name in next(iter(slots))]
        assert all(len({*slots.values()}) == 2 for slots in pairs)
        assert len(pairs) == (len(values) > 1 and instance.data_source == "planted-paraphrased")


@given(STREAMS)
def test_chunk_questions_ask_the_facts_of_their_chunk(instance):
    by_step = {}
    for step, person, name, value in writes(instance):
        by_step.setdefault(step, {})[person, name] = value
    assert len(instance.chunk_questions) == len(instance.chunks)
    for step, questions in enumerate(instance.chunk_questions, start=1):
        asked = {slot: value for q in questions for slot, value in asked_slots(q).items()}
        assert len(asked) == len(questions)
        assert asked == by_step.get(step, {})
        assert all((q.step, q.evidence_steps) == (step, (step,)) for q in questions)
    ids = [q.question_id for qs in (*instance.chunk_questions, instance.questions) for q in qs]
    assert len(ids) == len(set(ids))


@given(STREAMS)
def test_recorded_facts_are_the_facts_in_the_text(instance):
    recorded = [
        (step, fact["person"], fact["attribute"], fact["value"])
        for step, facts in enumerate(instance.metadata["facts"], start=1)
        for fact in facts
    ]
    assert sorted(recorded) == sorted(writes(instance))
    state = {}
    for facts in instance.metadata["facts"]:
        for fact in facts:
            slot = fact["person"], fact["attribute"]
            assert fact["changed"] == (slot in state)
            assert state.get(slot) != fact["value"]
            state[slot] = fact["value"]
    for chunk, facts in zip(instance.chunks, instance.metadata["facts"], strict=True):
        said = [sentence.rstrip(".") for sentence in sentences(chunk.text)]
        assert {fact["sentence"] for fact in facts} < set(said)  # and some noise


@given(STREAMS)
def test_answers_score_and_do_not_leak(instance):
    assert metric_for(DATA_SOURCE) != "unscored"
    for question in instance.questions:
        evidence = " ".join(instance.chunks[step - 1].text for step in question.evidence_steps)
        assert score(evidence, question.answers, question.data_source) == 1.0
        for value in question.answers[0].split("; ")[1:]:  # half an answer is no answer
            assert score(value, question.answers, question.data_source) == 0.0
        assert score(question.text, question.answers, question.data_source) == 0.0


@given(st.integers(0, 1000), SHAPES)
def test_same_seed_same_instance(seed, shape):
    instance = planted_stream(seed, shape)
    assert planted_stream(seed, shape) == instance
    assert planted_stream(seed + 1, shape) != instance
    assert len(instance.chunks) == shape.num_chunks
    assert from_json(Instance, to_json(instance)) == instance


def test_same_instance_in_another_process():
    program = (
        "from finemem_lib.data.planted import planted_stream;"
        "from finemem_lib.trajectory import to_json;"
        "print(to_json(planted_stream(7)))"
    )
    other = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONHASHSEED": "123", "PATH": ""},
        cwd=workbench_root(),
    )
    assert other.stdout.strip() == to_json(planted_stream(7))


def test_change_rate_governs_changes():
    def changes(rate):
        shape = StreamSettings(num_chunks=40, people=8, change_rate=rate)
        facts = planted_stream(0, shape).metadata["facts"]
        return sum(fact["changed"] for step in facts[:8] for fact in step)

    assert changes(0.0) == 0 < changes(0.4) < changes(1.0)


def test_noise_and_facts_of_the_paraphrased_world_begin_alike_and_are_told_by_the_verb():
    """By first word alone facts are guessed no better than by always saying the same."""
    facts, noise = Counter(), Counter()
    shape = StreamSettings(num_chunks=12, world="paraphrased")
    for instance in planted_instances("train", 200, 5, shape):
        for chunk, told in zip(instance.chunks, instance.metadata["facts"], strict=True):
            stated = {fact["sentence"] for fact in told}
            for sentence in (one.rstrip(".") for one in sentences(chunk.text)):
                first = sentence.split()[0]
                kind = "name" if first in NAMES else first
                (facts if sentence in stated else noise)[kind] += 1
    assert facts.keys() == noise.keys() == {"name", *ADVERBS, *OTHERS}
    for kind in facts:
        assert facts[kind] / facts.total() == pytest.approx(noise[kind] / noise.total(), abs=0.02)
    verbs = {verb for cue in VERBS["planted-paraphrased"].values() for verb in cue}
    assert verbs.isdisjoint(map(verb_of, PARAPHRASED_NOISE))


def test_a_fact_of_the_paraphrased_world_has_several_word_orders():
    for templates in TEMPLATES["paraphrased"].values():
        orders = {tuple(re.findall(r"{(\w+)}", template)) for template in templates}
        assert orders == {
            ("person", "value"),
            ("adverb", "person", "value"),
            ("others", "person", "value"),
            ("adverb", "value", "person"),
        }


def test_synonyms_answer_the_questions():
    assert SYNONYMS == VERBS[DATA_SOURCE]
    for name, spec in ATTRIBUTES.items():
        assert spec.cue in words(spec.question) and spec.cue in words(spec.pair_question)
        assert {verb.split()[0] for verb in spec.verbs} == set(SYNONYMS[spec.cue])
        for source, templates in zip(VERBS, TEMPLATES.values(), strict=True):
            assert {verb_of(template) for template in templates[name]} == set(
                VERBS[source][spec.cue]
            )
    values = [value for spec in ATTRIBUTES.values() for value in spec.values]
    assert len(values) == len(set(values)) and not set(values) & set(NAMES)


@pytest.mark.parametrize(
    "wrong",
    [
        {"num_chunks": 0},
        {"people": 0},
        {"people": len(NAMES) + 1},
        {"max_facts": 4},
        {"max_noise": 0},
        {"change_rate": 1.5},
    ],
)
def test_settings_out_of_range(wrong):
    [name] = wrong
    with pytest.raises(ValueError, match=name):
        planted_stream(1, StreamSettings(**wrong))
