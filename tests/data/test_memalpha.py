"""Loading instances: both layouts, every kind of broken input, round trip, real files."""

from __future__ import annotations

import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from finemem_lib.data.leaks import leaks
from finemem_lib.data.memalpha import PROSE_TOKENS, load_instances, save_instances
from finemem_lib.data.planted import planted_stream
from finemem_lib.data.sentences import labelled_examples
from finemem_lib.scoring import metric_for, score
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question, from_json, to_json
from finemem_lib.util.validation import MAX_DEPTH
from tests.helpers.hub_server import hub
from tests.helpers.paths import SHARED_DATA
from tests.helpers.patience import LAST_RESORT

DATA = SHARED_DATA
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")

ROW = {
    "instance_id": "one",
    "data_source": "squad",
    "chunks": ["Mia lives in Rome.", "Ana sails."],
    "questions_and_answers": [{"question": "Where does Mia live?", "answer": "Rome"}],
}
BENCH_ROW = {
    "context": "good day\nlabel: 3\n\nbye\nlabel: 4",
    "questions": ["hello"],
    "answers": [["3"]],
    "metadata": {"source": "icl_nlu_8296shot_balance", "qa_pair_ids": ["no0"], "demo": None},
}


def changed(row=ROW, **fields):
    return {**copy.deepcopy(row), **fields}


def asked(**fields):
    return changed(questions_and_answers=[{**ROW["questions_and_answers"][0], **fields}])


def without(name):
    return {key: value for key, value in ROW.items() if key != name}


@pytest.fixture
def write(tmp_path):
    def _write(*rows, name="data.jsonl"):
        lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
        path = tmp_path / name
        path.write_bytes(b"\n".join(lines))
        return path

    return _write


def load_one(path, **settings):
    [instance] = load_instances(path, **settings).instances
    return instance


def test_json_line_becomes_instance(write):
    row = changed(
        questions_and_answers=[
            {"question": "Where?", "answer": ["Rome", "Roma"], "evidence_idx": 0, "qid": "x"},
            {"question": "Who?", "answer": "Ana", "answer_in_chunks": [1, 0]},
            {"question": "What?", "answer": "sails"},
        ],
        metadata={"titles": ["T"]},
        category="AR",
        prompt="Read.",
        license="none",
    )
    instance = load_one(write(row))
    assert instance.instance_id == "one" and instance.category == "AR"
    assert instance.chunks == (Chunk("Mia lives in Rome.", 5), Chunk("Ana sails.", 3))
    assert [q.answers for q in instance.questions] == [("Rome", "Roma"), ("Ana",), ("sails",)]
    assert [q.evidence_steps for q in instance.questions] == [(1,), (1, 2), None]
    assert {q.data_source for q in instance.questions} == {"squad"}
    assert len({q.question_id for q in instance.questions}) == 3
    assert instance.metadata == {"titles": ["T"], "text_source": "squad", "prompt": "Read."}
    assert from_json(Instance, to_json(instance)) == instance


def test_json_strings_in_columns_read_like_lists(write):
    packed = {
        name: json.dumps(value) if isinstance(value, list) else value for name, value in ROW.items()
    }
    packed["metadata"] = json.dumps({"sub_source": "squad"})
    instance = load_one(write(packed))
    assert instance.chunks == load_one(write(ROW)).chunks
    assert instance.metadata["sub_source"] == "squad"


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"data_source": "squad"}, "squad"),
        ({"data_source": "csabstruct", "format_as": "pubmed-rct"}, "pubmed-rct"),
        (
            {"data_source": "locomo", "format_as": "lme_train", "metric": "substring_em_norm"},
            "locomo",
        ),
        ({"data_source": "lme_train"}, "lme_train"),
        (
            {
                "data_source": "longmemeval_s",
                "format_as": "longmemeval_s*",
                "metric": "llm_judge_rubric",
            },
            "longmemeval_s*",
        ),
    ],
)
def test_data_source_selects_the_metric(write, fields, expected):
    instance = load_one(write(changed(**fields)))
    assert {instance.data_source, *(q.data_source for q in instance.questions)} == {expected}
    assert instance.metadata["text_source"] == fields["data_source"]


@pytest.mark.parametrize(
    ("source", "category"),
    [
        ("squad", "AR"),
        ("icl_nlu_8296shot_balance", "TTL"),
        ("pubmed-rct", "TTL"),
        ("booksum", "LRU"),
        ("factconsolidation_sh_6k", "CR"),
    ],
)
def test_category_follows_from_the_source(write, source, category):
    assert load_one(write(changed(data_source=source))).category == category


DEEP = ("[" * 100_000).encode()
BROKEN = {
    "not JSON": (b'{"chunks": [', "(whole row)", "JSON"),
    "not UTF-8": (b'{"chunks": "\xff"}', "(whole row)", "UTF-8"),
    "too deep": (DEEP, "(whole row)", "at most 100 lists and objects"),
    "a list": ([1], "(whole row)", "a JSON object"),
    "no chunks field": (without("chunks"), "chunks", "no such field"),
    "no questions field": (without("questions_and_answers"), "questions_and_answers", "no such"),
    "no source": (without("data_source"), "data_source", "no such field"),
    "zero chunks": (changed(chunks=[]), "chunks", "at least one"),
    "chunks a number": (changed(chunks=3), "chunks", "valid list"),
    "chunks broken JSON": (changed(chunks="[1"), "chunks", "JSON"),
    "chunk a number": (changed(chunks=["a", 3]), "chunks[1]", "valid string, got int 3"),
    "empty chunk": (changed(chunks=["a", " \n"]), "chunks[1]", "text"),
    "zero questions": (changed(questions_and_answers=[]), "questions_and_answers", "at least one"),
    "question missing": (
        changed(questions_and_answers=[{"answer": "a"}]),
        "questions_and_answers[0].question",
        "no such field",
    ),
    "question empty": (asked(question=""), "questions_and_answers[0]", "a question"),
    "answer a number": (
        asked(answer=3),
        "questions_and_answers[0].answer",
        "valid string or a valid list",
    ),
    "answer list of numbers": (
        asked(answer=["a", 3]),
        "questions_and_answers[0].answer",
        "valid string",
    ),
    "answer empty": (asked(answer=""), "questions_and_answers[0]", "an answer"),
    "no answers": (asked(answer=[]), "questions_and_answers[0]", "an answer"),
    "evidence beyond": (
        asked(evidence_idx=2),
        "questions_and_answers[0].evidence_idx",
        "from 0 to 1, got int 2",
    ),
    "evidence negative": (
        asked(answer_in_chunks=[-1]),
        "questions_and_answers[0].answer_in_chunks",
        "from 0 to 1",
    ),
    "evidence text": (
        asked(evidence_idx="x"),
        "questions_and_answers[0].evidence_idx",
        "valid integer",
    ),
    "unknown source": (changed(data_source="nonsense"), "data_source", "nonsense"),
    "unknown format": (changed(format_as="nonsense"), "format_as", "nonsense"),
    "metadata a list": (changed(metadata=[1]), "metadata", "valid dictionary"),
    "id a list": (changed(instance_id=[1]), "instance_id", "valid integer or a valid string"),
    "same id again": (changed(), "instance_id", "line 1"),
    "bench context missing": (changed(BENCH_ROW, context=None), "context", "valid string"),
    "bench context empty": (changed(BENCH_ROW, context=" "), "context", "label"),
    "bench prose empty": (
        changed(BENCH_ROW, context=" ", metadata={"source": "ruler_qa1_197K"}),
        "context",
        "at least one",
    ),
    "bench sessions": (
        changed(BENCH_ROW, metadata={"source": "longmemeval_s*"}),
        "context",
        "alternates",
    ),
    "bench session turn": (
        changed(
            BENCH_ROW, context="['now', [{'role': 'user'}]]", metadata={"source": "longmemeval_s*"}
        ),
        "context[0].content",
        "no such field",
    ),
    "bench lengths": (changed(BENCH_ROW, answers=[]), "answers", "one list per question"),
    "bench answers flat": (changed(BENCH_ROW, answers=["3"]), "answers[0]", "valid list"),
    "bench no source": (changed(BENCH_ROW, metadata={}), "metadata.source", "no such field"),
    "bench zero questions": (
        changed(BENCH_ROW, questions=[], answers=[]),
        "questions",
        "at least one",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_line_is_named_and_does_not_stop_the_others(write, case):
    broken, field, expected = BROKEN[case]
    path = write(ROW, b"", broken, changed(instance_id="two"))
    with pytest.raises(ValueError) as raised:
        load_instances(path)
    message = str(raised.value)
    assert f"{path}, line 3, field {field}: " in message and expected in message
    assert "on_error" in message
    loaded = load_instances(path, on_error="skip")
    assert [instance.instance_id for instance in loaded.instances] == ["one", "two"]
    [problem] = loaded.problems
    assert f"line 3, field {field}: " in problem


def _edited(value, path, replacement):
    if not path:
        return replacement
    key, *rest = path
    if isinstance(value, list) and value:
        key %= len(value)
        return [*value[:key], _edited(value[key], rest, replacement), *value[key + 1 :]]
    if isinstance(value, dict) and value:
        name = sorted(value)[key % len(value)]
        return {**value, name: _edited(value[name], rest, replacement)}
    return replacement


JSON_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=5,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    row=st.sampled_from(
        [
            ROW,
            BENCH_ROW,
            changed(BENCH_ROW, metadata={"source": "eventqa_full"}),
            changed(metadata={"a": [1]}, format_as="booksum"),
        ]
    ),
    path=st.lists(st.integers(0, 9), min_size=1, max_size=4),
    replacement=JSON_VALUES,
)
def test_any_value_anywhere_is_read_or_reported(tmp_path, row, path, replacement):
    file = tmp_path / "fuzz.jsonl"
    good = changed(instance_id="good row")
    file.write_text("\n".join(map(json.dumps, [good, _edited(row, path, replacement)])))
    loaded = load_instances(file, on_error="skip")
    assert loaded.instances[0].instance_id == "good row"
    assert len(loaded.instances) + len(loaded.problems) == 2
    for instance in loaded.instances:
        to_json(instance).encode()
        assert all(chunk.text.encode() for chunk in instance.chunks)
        assert all(answer.encode() is not None for q in instance.questions for answer in q.answers)


@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])
@pytest.mark.parametrize("content", [b"", b"\x00\x01\xff\xfe" * 300, b"PAR1 junk PAR1"])
def test_empty_and_junk_files(tmp_path, name, content):
    path = tmp_path / name
    path.write_bytes(content)
    for on_error in ("raise", "skip"):
        with pytest.raises(ValueError, match="data.json|data.parquet"):
            load_instances(path, on_error=on_error)


def nested(depth):
    return "[" * depth + "]" * depth


@pytest.mark.parametrize("depth", [MAX_DEPTH, 900, 5_000])
@pytest.mark.parametrize("as_text", [False, True], ids=["a value", "a text"])
@pytest.mark.parametrize("name", ["data.jsonl", "data.json", "data.parquet"])
def test_metadata_nested_too_deep_is_refused(tmp_path, name, as_text, depth):
    deep = f'{{"deep": {nested(depth)}}}'
    path = tmp_path / name
    if path.suffix == ".parquet":
        columns = {field: [json.dumps(ROW[field])] for field in ("chunks", "questions_and_answers")}
        pq.write_table(pa.table(columns | {"data_source": ["squad"], "metadata": [deep]}), path)
    else:
        row = json.dumps(changed(metadata=0))
        path.write_text(row.replace(": 0", f": {json.dumps(deep) if as_text else deep}"))
    for on_error in ("raise", "skip"):
        with pytest.raises(
            ValueError, match=rf"{name}.*field .*at most {MAX_DEPTH} lists.*flatten"
        ):
            load_instances(path, on_error=on_error)


def test_metadata_within_the_limit_travels(write, tmp_path):
    value = json.loads(nested(MAX_DEPTH - 2))
    for metadata in ({"deep": value}, json.dumps({"deep": value})):
        instance = load_one(write(changed(metadata=metadata)))
        assert instance.metadata["deep"] == value
        assert from_json(Instance, to_json(instance)) == instance
    assert load_one(save_instances([instance], tmp_path / "saved.parquet")) == instance


def test_columns_nested_too_deep_for_parquet_are_refused(tmp_path):
    kind, value = pa.int64(), 1
    for _ in range(150):
        kind, value = pa.list_(kind), [value]
    path = tmp_path / "deep.parquet"
    pq.write_table(pa.table({"chunks": pa.array([value], kind)}), path)
    with pytest.raises(ValueError, match="deep.parquet: cannot be read .*nested.*fetch it again"):
        load_instances(path)


@pytest.mark.parametrize("depth", [500, 50_000])
def test_sessions_nested_too_deep_are_refused(write, depth):
    row = changed(BENCH_ROW, context=nested(depth), metadata={"source": "longmemeval_s*"})
    with pytest.raises(ValueError, match="line 1, field context: expected the Python literal"):
        load_instances(write(row))


def test_loops_of_links_are_refused(tmp_path):
    for name in ("loop", "loop.jsonl"):
        (tmp_path / name).symlink_to(tmp_path / name)
    (tmp_path / "self").symlink_to(tmp_path)
    for place in ("loop.jsonl", "loop/data.jsonl"):
        with pytest.raises(ValueError, match="no such file.*check the path"):
            load_instances(tmp_path / place)
    with pytest.raises(ValueError, match="self is a folder.*loop.jsonl"):
        load_instances(tmp_path / "self")


def test_blank_lines_only(write):
    with pytest.raises(ValueError, match="no instance"):
        load_instances(write(b"\n", b"\n"))


def test_truncated_parquet(tmp_path):
    whole = save_instances([planted_stream(1)], tmp_path / "whole.parquet").read_bytes()
    path = tmp_path / "cut.parquet"
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cut.parquet"):
        load_instances(path)


def test_parquet_without_the_columns(tmp_path):
    path = tmp_path / "other.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(ValueError, match=r"row 1, field chunks: .* no such field"):
        load_instances(path)


def test_places_that_are_no_files(tmp_path):
    (tmp_path / "a.jsonl").write_text("{}")
    (tmp_path / "b.txt").write_text("{}")
    with pytest.raises(ValueError, match="is a folder.*a.jsonl"):
        load_instances(tmp_path)
    with pytest.raises(ValueError, match="no such file"):
        load_instances(tmp_path / "missing.jsonl")
    with pytest.raises(ValueError, match="suffix '.txt'"):
        load_instances(tmp_path / "b.txt")


@pytest.mark.parametrize(
    "settings", [{"limit": 0}, {"max_chunk_tokens": 0}, {"on_error": "ignore"}]
)
def test_settings_out_of_range(write, settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        load_instances(write(ROW), **settings)


def test_limit_stops_before_later_lines_are_read(write):
    path = write(ROW, changed(instance_id="two"), b"junk")
    assert len(load_instances(path, limit=2).instances) == 2


def test_data_source_keeps_only_its_instances(write):
    path = write(ROW, changed(instance_id="two", data_source="booksum"))
    assert load_one(path, data_source="booksum").instance_id == "two"
    with pytest.raises(ValueError, match=r"'perltqa', only \['booksum', 'squad'\]"):
        load_instances(path, data_source="perltqa")


def test_long_chunks_are_cut_and_counted(write):
    instance = load_one(write(ROW), max_chunk_tokens=3)
    assert instance.chunks == (Chunk("Mia lives in", 3, truncated_tokens=2), Chunk("Ana sails.", 3))
    assert instance.metadata["truncated"] == {
        "rule": "head",
        "max_chunk_tokens": 3,
        "chunks": 1,
        "tokens": 2,
    }


def test_lone_surrogates_are_replaced(write):
    instance = load_one(write(changed(chunks=["a\ud800b"], metadata={"n\ud800": ["\udfff"]})))
    assert instance.chunks[0].text == "a\ufffdb"
    assert instance.metadata["n\ufffd"] == ["\ufffd"]


def test_json_file_holds_one_row_or_a_list(write):
    assert load_one(write(ROW, name="one.json")).instance_id == "one"
    both = json.dumps([ROW, changed(instance_id="two")], indent=1).encode()
    assert len(load_instances(write(both, name="two.json")).instances) == 2


TEXT = st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip)


@st.composite
def instances(draw):
    texts = draw(st.lists(TEXT, min_size=1, max_size=4))
    source = draw(st.sampled_from(["squad", "booksum", "pubmed-rct"]))
    steps = st.lists(st.integers(1, len(texts)), min_size=1, unique=True).map(sorted).map(tuple)
    questions = [
        Question(
            f"q-{number}",
            draw(TEXT),
            tuple(draw(st.lists(TEXT, min_size=1, max_size=3))),
            source,
            evidence_steps=draw(st.none() | steps),
        )
        for number in range(1, draw(st.integers(1, 4)) + 1)
    ]
    return Instance(
        draw(TEXT),
        source,
        draw(st.sampled_from(["AR", "TTL"])),
        tuple(Chunk(text, count_tokens(text)) for text in texts),
        tuple(questions),
        metadata={"text_source": draw(TEXT), "n": draw(st.integers())},
    )


@settings(max_examples=40, deadline=None)
@given(st.lists(instances(), min_size=1, max_size=3, unique_by=lambda one: one.instance_id))
def test_saved_parquet_reads_back_equal(tmp_path_factory, written):
    path = save_instances(written, tmp_path_factory.mktemp("saved") / "set.parquet")
    assert load_instances(path).instances == tuple(written)


def test_saved_parquet_has_the_published_columns(tmp_path):
    path = save_instances([planted_stream(1)], tmp_path / "set.parquet")
    [row] = pq.read_table(path).to_pylist()
    assert list(row) == [
        "instance_id",
        "prompt",
        "chunks",
        "questions_and_answers",
        "data_source",
        "metadata",
        "num_chunks",
        "num_questions",
    ]
    assert row["instance_id"] == 0 and row["num_chunks"] == len(json.loads(row["chunks"]))
    assert {"question", "answer"} <= set(json.loads(row["questions_and_answers"])[0])
    assert list(tmp_path.iterdir()) == [path]


def test_saving_never_overwrites_and_leaves_no_part(tmp_path, monkeypatch):
    path = tmp_path / "set.parquet"
    path.write_text("mine")
    with pytest.raises(FileExistsError, match="set.parquet"):
        save_instances([planted_stream(1)], path)
    assert path.read_text() == "mine"

    def full_disk(table, part):
        Path(part).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pq, "write_table", full_disk)
    with pytest.raises(OSError, match="No space"):
        save_instances([planted_stream(1)], tmp_path / "other.parquet")
    assert list(tmp_path.iterdir()) == [path]


def test_benchmark_examples_are_rendered_and_packed(write):
    context = "\n\n".join(f"text number {n} of many\nlabel: {n % 7}" for n in range(400))
    instance = load_one(write(changed(BENCH_ROW, context=context)))
    shown = [labelled_examples(chunk.text) for chunk in instance.chunks]
    assert len(shown) > 1
    assert sum(shown, []) == [(f"text number {n} of many", str(n % 7)) for n in range(400)]
    assert instance.chunks[1].text.startswith("[Dialogue between User and Assistant on 2024-01-02")
    assert instance.questions[0].text == "hello" and instance.category == "TTL"


def test_benchmark_prose_is_packed_by_sentences(write):
    written = [f"Sentence number {n} has a few words." for n in range(1000)]
    row = changed(BENCH_ROW, context=" ".join(written), metadata={"source": "ruler_qa1_197K"})
    instance = load_one(write(row))
    bodies = [chunk.text.split("\n", 2)[2].rsplit("\n", 1)[0] for chunk in instance.chunks]
    assert " ".join(bodies) == " ".join(written)
    assert max(map(count_tokens, bodies)) <= PROSE_TOKENS
    assert min(map(count_tokens, bodies[:-1])) > PROSE_TOKENS - 10


def test_benchmark_summary_asks_for_the_dates(write):
    row = changed(
        BENCH_ROW,
        context="A cook grows algae. " * 1000,
        answers=[["A cook and algae."]],
        metadata={"source": "infbench_sum_eng_shots2"},
    )
    instance = load_one(write(row))
    last = instance.chunks[-1].text.splitlines()[0].split()[3]
    assert instance.questions[0].text.endswith(f"from 2024-01-01 to {last}")
    assert metric_for(instance.data_source) == "rouge_l"


def test_benchmark_sessions_keep_time_and_speaker(write):
    timeline = []
    for day in range(1, 10):
        turns = [
            {"role": "user", "content": f"It's day {day}. " + "word " * 600, "has_answer": False},
            {"role": "assistant", "content": 'Noted, "thanks".'},
        ]
        timeline += [f"Chat Time: 2023/05/0{day} (Sat) 02:21", turns]
    row = changed(BENCH_ROW, context=repr(timeline), metadata={"source": "longmemeval_s*"})
    chunks = load_one(write(row)).chunks
    assert len(chunks) == 3
    assert all(chunk.tokens <= PROSE_TOKENS + 50 for chunk in chunks)
    assert chunks[0].text.startswith("[Dialogue at timestamp 2023/05/01 (Sat) 02:21]\n<User>It's")
    assert sum(chunk.text.count('<Assistant>Noted, "thanks".') for chunk in chunks) == 9


def test_benchmark_sessions_fill_a_chunk_to_its_size(write):
    def session(size):
        return [{"role": "user", "content": "word " * size}]

    timeline = sum((["Chat Time: now", session(size)] for size in (900, 910, 50, 60)), [])
    row = changed(BENCH_ROW, context=repr(timeline), metadata={"source": "longmemeval_s*"})
    chunks = load_one(write(row)).chunks
    assert [chunk.text.count("<User>") for chunk in chunks] == [2, 2]


HUB_SCRIPT = """
import json, sys
import datasets, huggingface_hub
from finemem_lib.data.memalpha import load_instances
for line in sys.stdin:
    source, split, offline = json.loads(line)
    datasets.config.HF_HUB_OFFLINE = huggingface_hub.constants.HF_HUB_OFFLINE = offline
    try:
        loaded = load_instances(source, split=split)
        told = [loaded.instances[0].chunks[0].text, loaded.commit]
    except ValueError as error:
        told = [str(error), None]
    print(json.dumps(told), flush=True)
"""
OLD, NEW, NONE = "a" * 40, "b" * 40, "c" * 40


def hub_files(text):
    """Return a commit in the published layout: two splits in parquet, named by the card."""
    files = {
        "README.md": (
            "---\nconfigs:\n- config_name: default\n  data_files:\n"
            + "".join(
                f"  - split: {name}\n    path: {name}.parquet\n" for name in ("train", "test")
            )
            + "---\n"
        ).encode()
    }
    for split in ("train", "test"):
        row = {
            "instance_id": 0,
            "data_source": "squad",
            "chunks": json.dumps([f"{text} {split}"]),
            "questions_and_answers": json.dumps(ROW["questions_and_answers"]),
        }
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist([row]), buffer)
        files[f"{split}.parquet"] = buffer.getvalue()
    return files


def test_hub_by_revision_and_what_is_pinned_stays_pinned(tmp_path):
    """Without the hub its client takes the newest copy it has, whichever revision was asked for;
    a pinned commit must not be answered with another one."""
    repositories = {"owner/Some-Set": {OLD: hub_files("old"), NEW: hub_files("new")}}
    asked = [
        ("owner/Some-Set", "test", False),
        ("owner/Some-Set@v1", "train", False),
        (f"owner/Some-Set@{OLD}", "test", False),
        (f"owner/Some-Set@{NONE}", "test", False),
        ("owner/Nothing", "test", False),
        ("owner/Some-Set", "validation", False),
        ("owner/Some-Set", "test", True),
        (f"owner/Some-Set@{OLD}", "test", True),
        (f"owner/Some-Set@{NEW}", "test", True),
    ]
    with hub(repositories, branches={"main": NEW, "v1": OLD}) as address:
        done = subprocess.run(
            [sys.executable, "-c", HUB_SCRIPT],
            timeout=LAST_RESORT,
            capture_output=True,
            text=True,
            input="".join(json.dumps(line) + "\n" for line in asked),
            check=True,
            env=os.environ | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path)},
        )
    told = [json.loads(line) for line in done.stdout.splitlines()]
    assert told[:3] == [["new test", NEW], ["old train", OLD], ["old test", OLD]]
    for (message, _), part in zip(told[3:6], (NONE, "owner/Nothing", "'validation'"), strict=True):
        assert part in message and "the hub gave no data set" in message
    newest, *pinned = told[6:]
    assert newest in (["new test", NEW], ["old test", OLD])
    for one, right in zip(pinned, (["old test", OLD], ["new test", NEW]), strict=True):
        assert one == right or "is out of reach and the copy" in one[0]
    assert sum(commit is None for _, commit in pinned) == 1


@pytest.mark.parametrize("name", ["owner/name@", "owner/name@a b", "a/b/c", "owner/name.jsonl"])
def test_what_is_no_hub_name(name):
    with pytest.raises(ValueError, match="no such file, expected a .* or a hub name"):
        load_instances(name)


def test_hub_without_network_says_what_to_do(monkeypatch):
    import datasets

    def unreachable(*args, **kwargs):
        raise ConnectionError("Couldn't reach the Hub")

    monkeypatch.setattr(datasets, "load_dataset_builder", unreachable)
    with pytest.raises(ValueError, match="owner/name.*'test'.*Couldn't reach.*give the path"):
        load_instances("owner/name")


@needs_data
@pytest.mark.parametrize("path", sorted(DATA.glob("*.jsonl")), ids=lambda path: path.stem)
def test_every_shared_file_is_read_whole(path):
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    loaded = load_instances(path)
    assert not loaded.problems
    for row, instance in zip(rows, loaded.instances, strict=True):
        assert [chunk.text for chunk in instance.chunks] == row["chunks"]
        assert len(instance.questions) == row["num_questions"]
        assert instance.category == row["category"]
        assert (metric_for(instance.data_source) == "unscored") == (
            row["metric"] == "llm_judge_rubric"
        )


@needs_data
def test_shared_evidence_holds_the_answer():
    for instance in load_instances(DATA / "squad.jsonl").instances:
        for question in instance.questions:
            [step] = question.evidence_steps
            assert score(instance.chunks[step - 1].text, question.answers, "squad") == 1.0


@needs_data
def test_published_columns_and_benchmark_row():
    loaded = load_instances(DATA / "memalpha_columns_sample.parquet")
    assert len(loaded.instances) == 12 and not loaded.problems
    assert loaded.instances[5].data_source == "icl_nlu_8296shot_balance"
    instance = load_one(DATA / "raw_samples" / "memoryagentbench_row_layout_clinc150.json")
    assert sum(len(labelled_examples(chunk.text)) for chunk in instance.chunks) == 60
    assert [question.answers for question in instance.questions][:2] == [("100",), ("49",)]


@needs_data
def test_the_real_memalpha_excerpt():
    """One chunk and seven questions of the published test row 0, in the shape of a row."""
    path = DATA / "raw_samples" / "memalpha_real_pubmed_rct_test0_excerpt.json"
    raw = json.loads(path.read_text())
    instance = load_one(path)
    assert (instance.data_source, instance.category) == ("pubmed-rct", "TTL")
    assert [chunk.text for chunk in instance.chunks] == raw["chunks"]
    assert [(q.text, q.answers) for q in instance.questions] == [
        (entry["question"], (entry["answer"],)) for entry in raw["questions_and_answers"]
    ]
    shown = labelled_examples(instance.chunks[0].text)
    assert len(shown) == raw["chunks"][0].count("Sample: ") and {
        label for _, label in shown
    } <= set("01234")
    assert leaks([instance]) == ()


@needs_data
def test_the_benchmark_row_layout_keeps_every_example_and_answer():
    path = DATA / "raw_samples" / "memoryagentbench_row_layout_clinc150.json"
    raw = json.loads(path.read_text())
    instance = load_one(path)
    assert instance.data_source == raw["metadata"]["source"]
    assert [q.text for q in instance.questions] == raw["questions"]
    assert sum(len(labelled_examples(chunk.text)) for chunk in instance.chunks) == raw[
        "context"
    ].count("label:")
