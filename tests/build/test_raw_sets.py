"""Raw sets: the layouts that are read, and every broken row named with its place and field."""

from __future__ import annotations

import copy
import json

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from finemem_lib.build.raw_sets import READERS, Book, Character, Example, Fact, raw_units
from tests.helpers.paths import SHARED_DATA

SAMPLES = SHARED_DATA / "raw_samples"
needs_samples = pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/data is not there")

HOTPOT = {
    "question": "Where was the author of Omega born?",
    "answer": "Oslo",
    "context": {
        "title": ["Omega", "Ana", "Noise"],
        "sentences": [["Omega is by Ana."], ["Ana was born in", " Oslo."], ["Noise."]],
    },
    "supporting_facts": {"title": ["Omega", "Ana", "Ana"], "sent_id": [0, 0, 1]},
}
ROWS = {
    "squad": {"context": "Ana sails.", "question": "Who sails?", "answers": {"text": ["Ana"]}},
    "hotpotqa": HOTPOT,
    "pubmed-rct": {"text": "We did it .", "labels": "methods"},
    "nlu": {"scenario": "iot", "intent": "hue", "answer_normalised": "dim the light"},
    "clinc150": {"train": [["pay it", "pay"]], "test": [["pay", "pay"]], "oos_test": []},
    "banking77": {"text": "Where is\nmy card?", "category": "card_arrival"},
    "booksum": {
        "book_title": "Omega",
        "text": "Ana sails.",
        "summary": [
            {"source": "a", "text": None, "analysis": ""},
            {"source": "b", "text": "She sails."},
        ],
    },
    "perltqa": {
        "Ana": {
            "events": {"1_0": {"content": "C", "summary": "S", "Creation Time": "2020"}},
            "dialogues": {"1_0#2": {"events": "1_0", "contents": {"noon": ["Ana: Hi", "x: y: z"]}}},
        }
    },
}
PERLT_ASKED = {
    "Ana": {
        "profile": [{"Question": "How old?"}],
        "events": [
            {
                "1_0": [
                    {
                        "Question": "Who sails?",
                        "Memory Anchors": [
                            {"Leo": [0, 1]},
                            {"a very long anchor": [1, 2]},
                            {"a;b": [0, 1]},
                        ],
                    }
                ]
            },
        ],
        "dialogues": [
            {"1_0#2": [{"Question": "Who says hi?", "Memory Anchors": [{"Ana": [-1, -1]}]}]}
        ],
    }
}


def read(raw_set, row, asked=False):
    return list(READERS[raw_set](copy.deepcopy(row), asked))


@pytest.mark.parametrize(
    ("raw_set", "row", "units"),
    [
        ("squad", ROWS["squad"], [Fact("Who sails?", "Ana", ("Ana sails.",))]),
        (
            "squad",
            {
                "data": [
                    {
                        "title": "T",
                        "paragraphs": [
                            {
                                "context": "Ana sails.",
                                "qas": [
                                    {
                                        "question": "Who sails?",
                                        "answers": [{"text": "Ana", "answer_start": 0}],
                                    },
                                    {"question": "Who flies?", "answers": []},
                                ],
                            }
                        ],
                    }
                ]
            },
            [Fact("Who sails?", "Ana", ("Ana sails.",))],
        ),
        ("pubmed-rct", ROWS["pubmed-rct"], [Example("We did it .", "methods", True)]),
        (
            "pubmed-rct",
            {"text": "We did it .", "labels": 2},
            [Example("We did it .", "methods", True)],
        ),
        ("pubmed-rct", "METHODS\tWe did it .", [Example("We did it .", "methods", True)]),
        ("pubmed-rct", "###24293578", []),
        ("nlu", ROWS["nlu"], [Example("dim the light", "iot_hue", True)]),
        ("nlu", {**ROWS["nlu"], "answer_normalised": "null"}, []),
        (
            "nlu",
            {"test_data_annotation": [{"text": "dim it", "intent": "iot_hue"}]},
            [Example("dim it", "iot_hue", True)],
        ),
        ("trec_coarse", "HUM:ind Who sails ?", [Example("Who sails ?", "HUM", True)]),
        ("trec_fine", "HUM:ind Who sails ?", [Example("Who sails ?", "HUM:ind", True)]),
        (
            "clinc150",
            ROWS["clinc150"],
            [Example("pay it", "pay", True), Example("pay", "pay", False)],
        ),
        ("banking77", ROWS["banking77"], [Example("Where is my card?", "card_arrival", True)]),
        ("booksum", ROWS["booksum"], [Book("Omega", "Ana sails.", "She sails.")]),
        ("booksum", {**ROWS["booksum"], "summary": []}, []),
    ],
)
def test_layouts(raw_set, row, units):
    assert read(raw_set, row) == units


def test_the_files_of_what_is_asked_give_what_is_not_shown():
    for raw_set in ("pubmed-rct", "nlu", "banking77"):
        assert not any(unit.shown for unit in read(raw_set, ROWS[raw_set], asked=True))


def test_hotpotqa_in_three_layouts_keeps_the_gold_texts():
    columns, facts = HOTPOT["context"], HOTPOT["supporting_facts"]
    pairs = list(zip(facts["title"], facts["sent_id"], strict=True))
    release = {
        **HOTPOT,
        "supporting_facts": pairs,
        "context": list(zip(columns["title"], columns["sentences"], strict=True)),
    }
    flat = {
        "question": HOTPOT["question"],
        "answer": "Oslo",
        "titles": columns["title"],
        "sentences": columns["sentences"],
        "sf": pairs,
    }
    expected = [
        Fact(
            HOTPOT["question"],
            "Oslo",
            ("Title: Omega\nOmega is by Ana.", "Title: Ana\nAna was born in Oslo."),
        )
    ]
    for row in (HOTPOT, json.loads(json.dumps(release)), flat):
        assert read("hotpotqa", row) == expected


def test_perltqa_joins_memory_and_questions(tmp_path):
    for name, value in (("memory", ROWS["perltqa"]), ("asked", [PERLT_ASKED])):
        (tmp_path / f"{name}.json").write_text(json.dumps(value))
    [unit], problems = raw_units("perltqa", [tmp_path / "memory.json"], [tmp_path / "asked.json"])
    assert problems == []
    assert unit == Character(
        "Ana",
        {
            "1_0": (
                "The following is the event happened about the user Ana on 2020:\n"
                "Summary: S\nContent: C\n"
                "\nThe following are the dialogues.\n\nDialogue happened at noon\n<Ana> Hi"
            )
        },
        (("1_0", "Who sails?", ("Leo",)), ("1_0", "Who says hi?", ("Ana",))),
    )


BROKEN = {
    "squad": [
        ({"context": 3}, "field context: expected a valid string, got int 3"),
        ({"context": "  "}, "field text: expected text"),
        ({"answers": {"text": "Ana"}}, "field answers.text"),
        ({"question": ""}, "field question"),
    ],
    "hotpotqa": [
        ({"context": None}, "field titles: expected"),
        ({"supporting_facts": None}, "field supporting_facts"),
        ({"supporting_facts": {"title": ["X"]}}, "at least one title of the context"),
        ({"context": {"title": ["Omega"], "sentences": []}}, "one list per title (1)"),
    ],
    "pubmed-rct": [({"labels": 7}, "background"), ({"text": None}, "field text")],
    "nlu": [({"intent": None}, "field intent")],
    "clinc150": [({"train": [["a"]]}, "field train[0]"), ({"test": 3}, "field test")],
    "banking77": [({"category": None}, "field category"), ({"text": " "}, "field text")],
    "booksum": [({"summary": "x"}, "field summary"), ({"text": ""}, "field text")],
}


@pytest.mark.parametrize(
    ("raw_set", "fields", "message"),
    [(raw_set, *case) for raw_set, cases in BROKEN.items() for case in cases],
)
def test_a_broken_row_is_named_and_can_be_left_out(tmp_path, raw_set, fields, message):
    path = tmp_path / "raw.jsonl"
    rows = [ROWS[raw_set], {**ROWS[raw_set], **fields}, ROWS[raw_set]]
    path.write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ValueError) as raised:
        raw_units(raw_set, [path])
    assert str(raised.value).startswith(f"{path}, line 2, field ")
    assert message in str(raised.value) and "on_error" in str(raised.value)
    units, problems = raw_units(raw_set, [path], on_error="skip")
    assert units == read(raw_set, ROWS[raw_set]) * 2
    [problem] = problems
    assert message in problem


def test_one_broken_character_costs_no_other(tmp_path):
    path = tmp_path / "memory.json"
    bad = {"Leo": {"events": {"2_0": {"content": "C", "summary": "S"}}}}
    path.write_text(json.dumps(ROWS["perltqa"] | bad))
    (tmp_path / "asked.json").write_text(json.dumps([PERLT_ASKED]))
    sources = [path], [tmp_path / "asked.json"]
    with pytest.raises(ValueError, match="character Leo, field Leo.events.2_0.Creation Time"):
        raw_units("perltqa", *sources)
    units, problems = raw_units("perltqa", *sources, on_error="skip")
    assert [unit.name for unit in units] == ["Ana"] and len(problems) == 1


@pytest.mark.parametrize("line", ["no label here", "HUM: ", "hum:ind Who ?"])
def test_a_line_that_is_no_question_is_named(tmp_path, line):
    path = tmp_path / "train.label"
    path.write_text(f"HUM:ind Who sails ?\n{line}\n")
    with pytest.raises(ValueError, match="train.label, line 2, field"):
        raw_units("trec_fine", [path])


def test_tables_by_comma_semicolon_or_tab(tmp_path):
    rows = [["text", "category"], ["Where, now?", "a"], ["Here; yes", "b"]]
    for name, mark in (("a.csv", ","), ("b.csv", ";"), ("c.tsv", "\t")):
        lines = [mark.join(f'"{cell}"' for cell in row) for row in rows]
        (tmp_path / name).write_text("\n".join(lines))
        units, _ = raw_units("banking77", [tmp_path / name])
        assert [(unit.text, unit.label) for unit in units] == [
            ("Where, now?", "a"),
            ("Here; yes", "b"),
        ]


def test_files_that_are_not_there_or_empty(tmp_path):
    (tmp_path / "empty.csv").write_text("")
    for name, message in (
        ("none.csv", "no such file"),
        ("none.jsonl", "no such file"),
        ("empty.csv", "is empty"),
    ):
        with pytest.raises(ValueError, match=message):
            raw_units("banking77", [tmp_path / name])


@pytest.mark.parametrize("content", [b"\x00\xff\xfe\x01" * 50, b'"' * 200, b"a;b\n" * 3])
@pytest.mark.parametrize("suffix", [".csv", ".txt", ".json", ".jsonl", ".parquet"])
def test_junk_is_reported(tmp_path, content, suffix):
    path = tmp_path / f"junk{suffix}"
    path.write_bytes(content)
    for raw_set in READERS:
        try:
            units, problems = raw_units(raw_set, [path], on_error="skip")
        except ValueError as error:
            assert path.name in str(error)
        else:
            assert not units and (problems or suffix == ".csv")


VALUES = st.recursive(
    st.none() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=4,
)


def edited(value, path, replacement):
    if not path or not isinstance(value, (list, dict)) or not value:
        return replacement
    key, *rest = path
    if isinstance(value, list):
        key %= len(value)
        return [*value[:key], edited(value[key], rest, replacement), *value[key + 1 :]]
    name = sorted(value)[key % len(value)]
    return {**value, name: edited(value[name], rest, replacement)}


@settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.sampled_from(sorted(ROWS)), st.lists(st.integers(0, 9), max_size=5), VALUES, st.booleans()
)
def test_any_value_anywhere_is_read_or_reported(raw_set, path, replacement, asked):
    row = PERLT_ASKED if raw_set == "perltqa" and asked else ROWS[raw_set]
    try:
        read(raw_set, edited(row, path, replacement), asked)
    except ValueError as error:
        assert "field" in str(error)


@needs_samples
@pytest.mark.parametrize(
    ("raw_set", "name", "asked", "number"),
    [
        ("squad", "squad_v1.1_dev_3articles.json", False, 173),
        ("hotpotqa", "hotpotqa_distractor_5items.json", False, 5),
        ("perltqa", "perltmem_en_v2_excerpt.json", False, 1),
        ("pubmed-rct", "pubmed_rct_20k_train_head.txt", False, 12),
        ("nlu", "nlu_eval_cooking_recipe_anno_20180322130133731.json", False, 19),
        ("trec_coarse", "trec_train_5500_excerpt.label", False, 300),
        ("trec_fine", "trec_train_5500_excerpt.label", False, 300),
        ("clinc150", "clinc150_data_full_excerpt.json", False, 80),
        ("banking77", "banking77_train_excerpt.csv", False, 399),
        ("banking77", "banking77_test_excerpt.csv", True, 99),
    ],
)
def test_every_raw_sample_is_read_whole(raw_set, name, asked, number):
    units, problems = raw_units(
        raw_set, [] if asked else [SAMPLES / name], [SAMPLES / name] if asked else []
    )
    assert (len(units), problems) == (number, [])


@needs_samples
def test_the_question_sample_of_perltqa_is_read():
    """Memory and question sample are about different people, so here only the questions count."""
    [row] = json.loads((SAMPLES / "perltqa_en_v2_excerpt.json").read_text())
    [unit] = read("perltqa", row, asked=True)
    assert (unit.name, unit.chunks) == ("Zhang Xiaohong", {})
    assert unit.asked == (
        ("4_0_0", "Why does Zhang Xiaoming feel stressed?", ("Work", "family", "balance issue")),
    )
