from __future__ import annotations

import json
import time

import jsonschema
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from finemem_lib.managers.schemas import OPERATION_SCHEMA
from finemem_lib.operations import (
    BAD_CONTENT,
    BAD_ID,
    MALFORMED,
    NO_OPERATIONS,
    NOT_JSON,
    RAW_LIMIT,
    TRUNCATED,
    UNKNOWN_OPERATION,
    format_operations,
    parse_operations,
)
from finemem_lib.trajectory import InvalidOperation, Operation

INSERT = Operation("INSERT", "Mia lives in Rome")
UPDATE = Operation("UPDATE", "Mia lives in Oslo", "3")
DELETE = Operation("DELETE", item_id="3")
SKIP = Operation("SKIP")
ALL = (INSERT, UPDATE, DELETE, SKIP)
LIST = format_operations(ALL)

CLEAN_TEXT = st.text()  # hypothesis leaves lone surrogates out of it
VALID = st.one_of(
    st.builds(Operation, st.just("INSERT"), CLEAN_TEXT),
    st.builds(Operation, st.just("UPDATE"), CLEAN_TEXT, CLEAN_TEXT),
    st.builds(Operation, st.just("DELETE"), st.none(), CLEAN_TEXT),
    st.just(SKIP),
)


def reasons(completion: str) -> list[str | None]:
    """One entry per piece: `None` where it is an operation, else the reason it is none."""
    return [getattr(piece, "reason", None) for piece in parse_operations(completion)]


@pytest.mark.parametrize(
    "completion",
    [
        LIST,
        json.dumps(json.loads(LIST), indent=2),
        f"```json\n{LIST}\n```",
        f"```\n{LIST}",
        f'I keep "two" facts [as asked] from {{the chunk}}:\n{LIST}\nDone.',
        f'He wrote 5" and {{}} and [3].\n\n{LIST}',
        f"<think>\nMaybe {format_operations([SKIP])}?\n</think>\n\n{LIST}",
        LIST.replace("},{", "}\n{").strip("[]"),
        LIST.replace("]", ",]"),
        f"[{LIST}]",
        LIST.replace('"3"', "3"),
        LIST.replace('"INSERT"', '"insert"'),
        LIST.replace('{"op":"SKIP"}', '{"why":"noise","op":"SKIP"}'),
        '[{"content":"Mia lives in Rome","op":"INSERT"},{"content":"Mia lives in Oslo","id":"3",'
        '"op":"UPDATE"},{"id":"3","op":"DELETE"},{"op":"SKIP","id":null}]',
    ],
)
def test_every_way_to_write_the_list_gives_the_same_operations(completion):
    assert parse_operations(completion) == ALL


@pytest.mark.parametrize(
    "names",
    [
        ("insert", "update", "delete", "skip"),
        ("memory_insert", "memory_update", "memory_delete", "memory_skip"),
        ("new_memory_insert", "memory.update", "Delete-Memory", "SKIP"),
    ],
)
@pytest.mark.parametrize("as_text", [False, True])
def test_tool_calls(names, as_text):
    arguments = [
        {"content": "Mia lives in Rome"},
        {"id": 3, "content": "Mia lives in Oslo"},
        {"id": "3"},
        {},
    ]
    blocks = [
        {"name": name, "arguments": json.dumps(values) if as_text else values}
        for name, values in zip(names, arguments, strict=True)
    ]
    text = "".join(f"<tool_call>\n{json.dumps(block)}\n</tool_call>\n" for block in blocks)
    assert parse_operations("I will edit the memory.\n" + text) == ALL
    # The last block of a truncated completion lacks its end.
    assert parse_operations(text[: -len("</tool_call>\n")]) == ALL
    # Llama names them parameters and puts no marks around.
    bare = [{"name": one["name"], "parameters": one["arguments"]} for one in blocks]
    assert parse_operations("; ".join(map(json.dumps, bare))) == ALL


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("", []),
        (" \n", []),
        ("[]", []),
        ("```json\n[ ]\n```", []),
        ("Nothing new here: []", []),
        ("Nothing new here.", [NO_OPERATIONS]),
        ("{}", [NO_OPERATIONS]),
        ('["SKIP"]', [NO_OPERATIONS]),
        ('["SKIP", []]', [NO_OPERATIONS]),
        ("SKIP", [NO_OPERATIONS]),
        ("[{'op': 'SKIP'}]", [NO_OPERATIONS]),
        ("__import__('os').abort()", [NO_OPERATIONS]),
        ('{"op":"MERGE"}', [UNKNOWN_OPERATION]),
        ('{"op":null}', [UNKNOWN_OPERATION]),
        ('{"content":"Mia"}', [UNKNOWN_OPERATION]),
        ('{"name":"memory_search","arguments":{"query":"Mia"}}', [UNKNOWN_OPERATION]),
        ('{"name":"insert_or_update","arguments":{"content":"Mia"}}', [UNKNOWN_OPERATION]),
        ('{"name":"insert","arguments":"content=Mia"}', [NOT_JSON]),
        ('{"name":"insert","arguments":"' + "[" * 5000 + '"}', [NOT_JSON]),
        ('{"name":"insert"}', [BAD_CONTENT]),
        ('{"op":"INSERT"}', [BAD_CONTENT]),
        ('{"op":"INSERT","content":7}', [BAD_CONTENT]),
        ('{"op":"INSERT","content":null}', [BAD_CONTENT]),
        ('{"op":"UPDATE","content":"Mia"}', [BAD_ID]),
        ('{"op":"DELETE","id":true}', [BAD_ID]),
        ('{"op":"DELETE","id":3.0}', [BAD_ID]),
        ('{"op":"DELETE","id":1e400}', [BAD_ID]),
        ('{"op":"DELETE","id":NaN}', [BAD_ID]),
        ('{"op":"DELETE","id":-Infinity}', [BAD_ID]),
        ('{"op":"DELETE","id":[3]}', [NOT_JSON]),
        ('{"op":"DELETE","id":03}', [NOT_JSON]),
        (r'{"op":"INSERT","content":"\q"}', [NOT_JSON]),
        ('[{"op":"SKIP"}, 5]', [None, NOT_JSON]),
        ('[null, {"op":"SKIP"}]', [NOT_JSON, None]),
        ('[{"op":"INSERT","content":"5" of pipe"},{"op":"SKIP"}]', [NOT_JSON, None]),
        ('[{"op":"INSERT","content":["a","b"]},{"op":"SKIP"}]', [NOT_JSON, None]),
        ('{"operations":[{"op":"SKIP"}]}', [NOT_JSON, None]),
        ("<tool_call>\ninsert Mia\n</tool_call>", [NOT_JSON]),
        ('<tool_call>{"name":"skip"}</tool_call><tool_call>oops</tool_call>', [None, NOT_JSON]),
        ('[{"op":"SKIP"}', [None]),
        ('[{"op":"SKIP"},', [None]),
        ('[{"op":"SKIP"},{', [None, TRUNCATED]),
        ('{"op":"SKIP"', [TRUNCATED]),
        ('<tool_call>{"name":"insert","arguments":{"content":"Mia', [TRUNCATED]),
        ('[{"op":"INSERT","content":"see [1] and', [TRUNCATED]),
    ],
)
def test_what_is_no_operation_has_a_reason(completion, expected):
    assert reasons(completion) == expected


PROSE = st.text(st.characters(exclude_characters="[]{}<>"), max_size=50)


@given(st.lists(VALID, max_size=6), PROSE)
def test_formatted_operations_come_back_also_after_prose(operations, prose):
    completion = format_operations(operations)
    jsonschema.validate(json.loads(completion), OPERATION_SCHEMA)
    assert parse_operations(completion) == tuple(operations)
    assert parse_operations(prose + completion) == tuple(operations)


@given(st.lists(VALID, min_size=1, max_size=4), st.data())
def test_a_truncated_list_keeps_its_whole_operations(operations, data):
    completion = format_operations(operations)
    cut = data.draw(st.integers(1, len(completion) - 1))
    ends = [len(format_operations(operations[: n + 1])) - 1 for n in range(len(operations))]
    whole = [end for end in ends if end <= cut]
    pieces = parse_operations(completion[:cut])
    kept = [piece for piece in pieces if isinstance(piece, Operation)]
    assert kept == operations[: len(whole)]
    left_over = completion[len(format_operations(operations[: len(whole)])) - 1 : cut].strip("[,")
    spoilt = [piece.reason for piece in pieces if isinstance(piece, InvalidOperation)]
    if left_over:
        assert spoilt == ([TRUNCATED] if whole or len(left_over) > 1 else [NO_OPERATIONS])
    elif kept:
        assert spoilt == []


def test_schema_refuses_what_the_parser_refuses():
    for wrong in ('[{"op":"INSERT"}]', '[{"op":"UPDATE","content":"x"}]', '[{"op":"MERGE"}]', "{}"):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(json.loads(wrong), OPERATION_SCHEMA)


def test_integer_ids_of_any_length_become_strings():
    digits = "9" * 10_000  # beyond the limit of int()
    assert parse_operations('{"op":"DELETE","id":' + digits + "}") == (
        Operation("DELETE", item_id=digits),
    )
    (operation,) = parse_operations('{"op":"DELETE","id":3}')
    assert type(operation.item_id) is str


def test_lone_surrogates_are_replaced():
    (operation,) = parse_operations(r'{"op":"UPDATE","id":"\udc00","content":"a\ud800b"}')
    assert operation == Operation("UPDATE", "a\ufffdb", "\ufffd")
    (invalid,) = parse_operations("prose \ud800")
    assert invalid.raw == "prose \ufffd"


def test_line_breaks_inside_strings_are_kept():
    assert parse_operations('{"op":"INSERT","content":"Text: hi\nLabel: 3"}') == (
        Operation("INSERT", "Text: hi\nLabel: 3"),
    )


def test_offending_text_is_kept_short():
    (invalid,) = parse_operations("x" * 100_000)
    assert len(invalid.raw) == RAW_LIMIT and invalid.raw.startswith("xxx")


def test_deep_nesting_is_malformed_whatever_the_stack():
    for pattern in ('{"a":', '{"a":[', "[", "{", '{"name":"insert","arguments":{"a":'):
        assert set(reasons(pattern * 100_000)) <= set(MALFORMED)


REPEATED = [
    "[",
    "{",
    '"',
    "\\",
    ' "',
    '{"',
    '{ "',
    "[ ",
    '{"a":',
    '{"a":{',
    '{"a":{"a":1},',
    '\\"',
    '{"\\',
    '{"k":"{",',
    '":{",',
    "<tool_call>",
    "<tool_call>x",
    "<think>",
    '{"op":"SKIP"},',
    '{"x":[',
    "]",
    '{"op":"DELETE","id":',
    '"a":"a",',
    "9",
    "\ud800",
    '"a":{},',
    "\\\\",
    " ",
    "\n",
    "`",
    "</tool_call>",
]
OPENINGS = [
    "",
    '{"op":"INSERT","content":"',
    '[{"op":"SKIP"},',
    '{"name":"insert","arguments":{',
    '{"a":',
    '{"content":"x","arguments":{"content":"',
]


def cpu_seconds(completion: str) -> float:
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        parse_operations(completion)
        best = min(best, time.process_time() - start)
    return best


@pytest.mark.nightly  # it compares times
@pytest.mark.parametrize("opening", OPENINGS)
def test_work_grows_linearly(opening):
    """16 times the text takes about 16 times as long; quadratic work would take 256 times."""
    for pattern in REPEATED:
        small, large = (opening + pattern * (size // len(pattern)) for size in (4_000, 64_000))
        if cpu_seconds(large) > 64 * cpu_seconds(small):  # a busy machine gets a second chance
            assert cpu_seconds(large) <= 64 * cpu_seconds(small), (opening, pattern)


FRAGMENTS = st.sampled_from(
    [
        *REPEATED,
        *OPENINGS,
        LIST,
        "}",
        ",",
        ":",
        '"op"',
        '"INSERT"',
        "NaN",
        "-Infinity",
        "1e999",
        "9" * 5000,
        "[" * 2000,
        '{"a":' * 2000,
        r"\ud800",
        "null",
        "```json\n",
        "</think>",
        "'",
    ]
)
HOSTILE = st.one_of(
    st.text(st.characters(), max_size=200),  # every code point, lone surrogates included
    st.lists(st.one_of(FRAGMENTS, st.text(max_size=5)), max_size=30).map("".join),
    st.recursive(
        st.none()
        | st.booleans()
        | st.floats()
        | st.integers()
        | st.text(st.characters())
        | st.sampled_from(["INSERT", "UPDATE", "DELETE", "SKIP"]),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["op", "id", "content", "name", "arguments"]) | st.text(max_size=3),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    ).map(json.dumps),
)


def check_any_input(completion: str) -> None:
    pieces = parse_operations(completion)
    assert pieces or not completion.strip() or "[" in completion or "<think>" in completion
    for piece in pieces:
        if isinstance(piece, InvalidOperation):
            assert piece.reason in MALFORMED and len(piece.raw) <= RAW_LIMIT
            piece.raw.encode("utf-8")
        else:
            (again,) = parse_operations(format_operations([piece]))
            assert again == piece
            format_operations([piece]).encode("utf-8")


@settings(max_examples=500)
@given(HOSTILE)
def test_fuzz(completion):
    check_any_input(completion)


@pytest.mark.nightly
@settings(max_examples=20_000, deadline=None, suppress_health_check=list(HealthCheck))
@given(HOSTILE)
def test_fuzz_many(completion):
    check_any_input(completion)


@pytest.mark.nightly
@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(HOSTILE.filter(bool), st.sampled_from(OPENINGS), st.integers(1, 2_000_000))
def test_fuzz_megabytes(completion, opening, length):
    check_any_input(opening + completion * max(1, length // len(completion)))
