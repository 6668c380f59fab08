from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from finemem_lib.memory import FlatMemory
from finemem_lib.trajectory import (
    OPERATION_KINDS,
    SCHEMA_VERSION,
    AnsweredQuestion,
    Chunk,
    Instance,
    InvalidOperation,
    MemoryDelta,
    MemoryItem,
    Operation,
    OperationOutcome,
    Question,
    Retrieved,
    Step,
    Trajectory,
    Write,
    from_json,
    read_jsonl,
    to_json,
    write_jsonl,
)
from tests.helpers.memory_strategies import MEMORY_SETTINGS, STEPS, played


def tuples(elements: st.SearchStrategy, min_size: int = 0) -> st.SearchStrategy:
    return st.lists(elements, min_size=min_size, max_size=2).map(tuple)


# Every code point, also the line separators that end a line for str.splitlines, lone surrogates
# and NUL; every float but NaN, which equals nothing.
TEXT = st.text(st.characters(), max_size=6)
FLOATS = st.floats(allow_nan=False)
COUNTS = st.integers(0, 2**63)
METADATA = st.dictionaries(
    TEXT,
    st.recursive(
        st.none() | st.booleans() | st.integers() | FLOATS | TEXT,
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(TEXT, inner, max_size=2),
        max_leaves=4,
    ),
    max_size=2,
)
KINDS = st.sampled_from(OPERATION_KINDS)
CHUNK = st.builds(Chunk, TEXT, COUNTS, COUNTS)
QUESTION = st.builds(
    Question,
    TEXT,
    TEXT,
    tuples(TEXT),
    TEXT,
    step=st.none() | COUNTS,
    evidence_steps=st.none() | tuples(COUNTS),
)
INSTANCE = st.builds(
    Instance,
    TEXT,
    TEXT,
    TEXT,
    tuples(CHUNK),
    tuples(QUESTION),
    chunk_questions=st.none() | tuples(tuples(QUESTION)),
    metadata=METADATA,
)
OPERATION = st.builds(Operation, KINDS, st.none() | TEXT, st.none() | TEXT)
OUTCOME = st.builds(
    OperationOutcome,
    st.none() | OPERATION,
    st.booleans(),
    *[st.none() | TEXT] * 3,
)
WRITE = st.builds(Write, COUNTS, KINDS, COUNTS)
ITEM = st.builds(MemoryItem, TEXT, TEXT, tuples(WRITE, min_size=1))
DELTA = st.builds(MemoryDelta, tuples(ITEM), tuples(TEXT), tuples(TEXT))
ANSWERED = st.builds(
    AnsweredQuestion,
    QUESTION,
    COUNTS,
    tuples(st.builds(Retrieved, TEXT, FLOATS, tuples(COUNTS))),
    TEXT,
    used=st.none() | tuples(TEXT),
    score=st.none() | FLOATS,
)
STEP = st.builds(
    Step,
    COUNTS,
    CHUNK,
    TEXT,
    tuples(OUTCOME),
    DELTA,
    COUNTS,
    tuples(ANSWERED),
    prompt=st.none() | TEXT,
    prompt_ids=st.none() | tuples(COUNTS),
    completion_ids=st.none() | tuples(COUNTS),
    logprobs=st.none() | tuples(FLOATS),
)
TRAJECTORY = st.builds(
    Trajectory,
    TEXT,
    TEXT,
    TEXT,
    TEXT,
    COUNTS,
    tuples(STEP),
    tuples(ANSWERED),
    TEXT,
    seed=st.none() | COUNTS,
    metadata=METADATA,
)
RECORDS = st.one_of(
    TRAJECTORY,
    INSTANCE,
    STEP,
    ANSWERED,
    DELTA,
    ITEM,
    OUTCOME,
    OPERATION,
    QUESTION,
    CHUNK,
    st.builds(InvalidOperation, TEXT, TEXT),
)


@given(RECORDS)
def test_every_record_equals_itself_after_a_round_trip(record):
    text = to_json(record)
    text.encode("ascii")
    again = from_json(type(record), text)
    assert again == record
    assert repr(again) == repr(record)  # also 0.0 against -0.0, and tuples against lists


@given(TRAJECTORY)
def test_a_trajectory_reads_itself_and_carries_the_schema_version(trajectory):
    assert from_json(Trajectory, to_json(trajectory)) == trajectory
    assert json.loads(to_json(trajectory))["schema_version"] == SCHEMA_VERSION


@given(st.lists(TRAJECTORY, max_size=3))
def test_json_lines_hold_one_record_each(trajectories):
    text = write_jsonl(trajectories)
    assert text.count("\n") == len(trajectories)
    assert read_jsonl(Trajectory, text) == trajectories


@given(STEPS, MEMORY_SETTINGS)
def test_the_memory_of_any_step_survives_the_round_trip(steps, settings):
    run = played(FlatMemory(**settings), steps)
    again = from_json(Trajectory, to_json(run.trajectory))
    assert again == run.trajectory
    assert [again.memory_at(step) for step in range(len(steps) + 1)] == run.states
    assert again.final_memory() == run.states[-1]


def test_memory_outside_the_trajectory_is_refused():
    trajectory = played(FlatMemory(), [[Operation("INSERT", "a")]]).trajectory
    for step in (-1, 2):
        with pytest.raises(ValueError, match=f"step {step} is outside 0..1"):
            trajectory.memory_at(step)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "7",
        "[" * 100_000,
        '{"text": ' + "[" * 900 + "]" * 900 + ', "tokens": 2}',
        '{"text": "a"}',
        '{"text": 1, "tokens": 2}',
        '{"text": "a", "tokens": "many"}',
        '{"text": "a", "tokens": 2, "schema_version": 999}',
        '{"text": "a", "tokens": ' + "9" * 5000 + "}",
    ],
)
def test_unreadable_records_raise_value_error(text):
    with pytest.raises(ValueError, match="Chunk"):
        from_json(Chunk, text)


def test_another_schema_version_names_both_versions():
    text = to_json(played(FlatMemory(), []).trajectory)
    newer = text.replace(f'"schema_version":{SCHEMA_VERSION}', '"schema_version":999')
    with pytest.raises(ValueError, match=f"schema version 999.*reads {SCHEMA_VERSION}"):
        from_json(Trajectory, newer)


def test_a_bad_line_is_named():
    lines = write_jsonl([Chunk("a", 1), Chunk("b", 2)]) + '\n{"text": "torn'
    with pytest.raises(ValueError, match="line 4: Chunk: expected JSON in UTF-8"):
        read_jsonl(Chunk, lines)
