from __future__ import annotations

import json

import pytest
from hypothesis import given, strategies as st

from finemem_lib.layers.operations import format_calls, parse_calls
from finemem_lib.operations import (
    BAD_CONTENT,
    BAD_ID,
    BAD_STORE,
    MALFORMED,
    NO_OPERATIONS,
    NOT_JSON,
    TRUNCATED,
    UNKNOWN_OPERATION,
)
from finemem_lib.trajectory import InvalidOperation, Operation

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
LISTS = st.sampled_from(["semantic", "episodic"])
CALLABLE = st.one_of(
    st.builds(Operation, st.just("INSERT"), TEXTS, st.none(), LISTS),
    st.builds(Operation, st.just("UPDATE"), TEXTS, TEXTS, LISTS),
    st.builds(Operation, st.just("DELETE"), st.none(), TEXTS, LISTS),
    st.builds(Operation, st.just("UPDATE"), TEXTS, st.none(), st.just("core")),
    st.builds(Operation, st.just("DELETE"), st.none(), st.none(), st.just("core")),
)


@given(st.lists(CALLABLE, max_size=5))
def test_calls_are_read_back_as_they_were_written(operations):
    assert parse_calls(format_calls(operations)) == tuple(operations)


@given(st.text(max_size=200))
def test_no_text_breaks_the_parser(text):
    for found in parse_calls(text):
        assert isinstance(found, Operation) or found.reason in MALFORMED


def call(name: str, arguments: str) -> str:
    return f'[{{"name":"{name}","arguments":{arguments}}}]'


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("Nothing to store.", NO_OPERATIONS),
        (call("memory_insert", '{"content":"a"}'), BAD_STORE),
        (call("memory_insert", '{"memory_type":"core memory","content":"a"}'), BAD_STORE),
        (call("memory_insert", '{"memory_type":"semantic"}'), BAD_CONTENT),
        (call("memory_update", '{"memory_type":"semantic","new_content":"a"}'), BAD_ID),
        (call("memory_merge", '{"memory_type":"semantic"}'), UNKNOWN_OPERATION),
        (call("memory_insert", '{"memory_type":"semantic","content":"a')[:-2], TRUNCATED),
        (call("memory_insert", '"memory_type"'), NOT_JSON),
    ],
)
def test_each_kind_of_malformed_call_has_its_reason(completion: str, reason: str):
    (found,) = parse_calls(completion)
    assert isinstance(found, InvalidOperation) and found.reason == reason


def test_the_published_names_are_read():
    completion = json.dumps(
        [
            {
                "name": "new_memory_insert",
                "arguments": {"memory_type": "Semantic_Memory", "content": "a"},
            },
            {
                "name": "memory_update",
                "arguments": {"memory_type": "core_memory", "new_content": "b"},
            },
            {
                "name": "memory_delete",
                "arguments": {"memory_type": "episodic_memory", "memory_id": 7},
            },
        ]
    )
    assert parse_calls(completion) == (
        Operation("INSERT", "a", None, "semantic"),
        Operation("UPDATE", "b", None, "core"),
        Operation("DELETE", None, "7", "episodic"),
    )


def test_broken_calls_are_not_repaired_and_spoil_no_other():
    whole = format_calls([Operation("INSERT", "a", None, "semantic")])[1:-1]
    broken = "{'name': 'memory_insert'}"
    found = parse_calls(f"[{broken}, {whole}]")
    assert Operation("INSERT", "a", None, "semantic") in found
    assert parse_calls(f"```json\n[{whole}]\n```") == (Operation("INSERT", "a", None, "semantic"),)


def test_a_step_without_operations_is_an_empty_list():
    assert parse_calls("[]") == () == parse_calls(format_calls([Operation("SKIP")]))


def test_an_operation_without_a_store_is_no_call():
    with pytest.raises(ValueError, match="expected core, semantic or episodic"):
        format_calls([Operation("INSERT", "a")])
