"""The planted stream: its truth is true, and it repeats."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given, strategies as st

from finemem_lib.data.planted import (
    ATTRIBUTES,
    DATA_SOURCE,
    NAMES,
    SYNONYMS,
    StreamSettings,
    planted_stream,
)
from finemem_lib.data.sentences import sentences
from finemem_lib.scoring import metric_for, score
from finemem_lib.text import words
from finemem_lib.trajectory import Instance, from_json, to_json
from finemem_lib.util.provenance import repository_root

SHAPES = st.builds(
    StreamSettings,
    num_chunks=st.integers(1, 30),
    people=st.integers(1, 8),
    max_facts=st.integers(1, 3),
    max_noise=st.integers(1, 6),
    change_rate=st.floats(0, 1),
)
STREAMS = st.builds(planted_stream, st.integers(0, 10_000), SHAPES)


def writes(instance):
    """Read the facts back from the chunk texts alone: (step, person, attribute, value)."""
    verbs = {verb: name for name, spec in ATTRIBUTES.items() for verb in spec.verbs}
    for step, chunk in enumerate(instance.chunks, start=1):
        for sentence in sentences(chunk.text):
            person, *middle, value = sentence.rstrip(".").split()
            if person in NAMES and " ".join(middle) in verbs:
                yield step, person, verbs[" ".join(middle)], value


def asked_slot(question):
    [slot] = [
        (person, name)
        for name, spec in ATTRIBUTES.items()
        for person in NAMES
        if spec.question.format(person=person) == question.text
    ]
    return slot


@given(STREAMS)
def test_global_questions_ask_every_slot_for_its_last_write(instance):
    last = {(person, name): (value, step) for step, person, name, value in writes(instance)}
    asked = {asked_slot(q): (q.answers, q.evidence_steps) for q in instance.questions}
    assert asked == {slot: ((value,), (step,)) for slot, (value, step) in last.items()}
    assert len(asked) == len(instance.questions)
    assert all(question.step is None for question in instance.questions)


@given(STREAMS)
def test_chunk_questions_ask_the_facts_of_their_chunk(instance):
    by_step = {}
    for step, person, name, value in writes(instance):
        by_step.setdefault(step, {})[person, name] = value
    assert len(instance.chunk_questions) == len(instance.chunks)
    for step, questions in enumerate(instance.chunk_questions, start=1):
        asked = {asked_slot(q): q.answers[0] for q in questions}
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
        [step] = question.evidence_steps
        chunk = instance.chunks[step - 1].text
        assert score(chunk, question.answers, question.data_source) == 1.0
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
        cwd=repository_root(),
    )
    assert other.stdout.strip() == to_json(planted_stream(7))


def test_change_rate_governs_changes():
    def changes(rate):
        shape = StreamSettings(num_chunks=40, people=8, change_rate=rate)
        facts = planted_stream(0, shape).metadata["facts"]
        return sum(fact["changed"] for step in facts[:8] for fact in step)

    assert changes(0.0) == 0 < changes(0.4) < changes(1.0)


def test_synonyms_answer_the_questions():
    for spec in ATTRIBUTES.values():
        assert spec.cue in words(spec.question)
        assert {verb.split()[0] for verb in spec.verbs} == set(SYNONYMS[spec.cue])
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
