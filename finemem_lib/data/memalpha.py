"""Load instances from files or the hub, in the layouts of Memalpha and MemoryAgentBench.

The fields of a row identify its layout. Memalpha (arXiv 2509.25911): `chunks`,
`questions_and_answers` and `data_source`, as lists or, as published, as JSON strings in the columns
of a parquet file. MemoryAgentBench (arXiv 2507.05257): `context`, `questions`, `answers` and
`metadata.source`; its long context is cut into chunks by the rules that Mem-alpha publishes.

Differs from the paper: chunk sizes are counted in this library's tokens (text.TOKENIZER), which are
longer than a language model's. The lead-in and reply that wrap a MemoryAgentBench chunk are fixed
sentences of this library, and each chunk is dated one day after the previous one. A summary row
keeps its reference summary as answer (source "infbench_reference"), because Mem-alpha scores it
with keywords that a language model wrote and that are not in the row.
"""

from __future__ import annotations

import ast
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path
from typing import Any, Literal

from finemem_lib.data.fact_consolidation import (
    FACTS_LEAD_IN,
    fact_line,
    numbered_facts,
    revisions_of,
)
from finemem_lib.data.sentences import sentences
from finemem_lib.scoring import metric_for
from finemem_lib.text import clean_text, count_tokens, truncate_tokens
from finemem_lib.trajectory import Chunk, Instance, Question
from finemem_lib.util.files import written_beside
from finemem_lib.util.validation import check_depth, parse_json, type_adapter

SUFFIXES = (".jsonl", ".json", ".parquet")
PROSE_TOKENS = 2048
EXAMPLE_TOKENS = 1024

SESSION_TOKENS = 1800
"""Chunk sizes of Mem-alpha's MemoryAgentBench, in tokens: the largest chunk of prose, the largest
chunk of labelled examples, and the size at which a chunk of chat sessions is closed."""

_CATEGORIES = {
    "TTL": ("pubmed-rct", "icl_", "recsys"),
    "LRU": ("booksum", "infbench", "detective_qa"),
    "CR": ("factconsolidation",),
}

_HUB_NAME = re.compile(r"([\w.-]+(?:/[\w.-]+)?)(?:@([\w./-]+))?")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_BENCH_EXAMPLE = re.compile(r"^(\S[^\n]*)\n+label:[ \t]*(\S+)", re.MULTILINE | re.IGNORECASE)
_REMEDY = 'correct it, or load with on_error="skip" to leave it out'


@dataclass(frozen=True, slots=True)
class Loaded:
    """The instances of a source.

    Attributes:
        instances: The instances, in the order of the source.
        problems: One message per row or text left out.
        commit: The commit of a data set on the hub; `None` for files.
    """

    instances: tuple[Instance, ...]
    problems: tuple[str, ...]
    commit: str | None = None


@dataclass(frozen=True, slots=True)
class _Asked:
    question: str
    answer: str | list[str]
    evidence_idx: int | list[int] | None = None
    answer_in_chunks: list[int] | None = None


@dataclass(frozen=True, slots=True)
class _MemalphaRow:
    chunks: list[str]
    questions_and_answers: list[_Asked]
    data_source: str
    format_as: str | None = None
    instance_id: int | str | None = None
    category: str | None = None
    prompt: str | None = None
    metric: str | None = None
    metadata: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class _BenchMetadata:
    source: str


@dataclass(frozen=True, slots=True)
class _BenchRow:
    context: str
    questions: list[str]
    answers: list[list[str]]
    metadata: _BenchMetadata


@dataclass(frozen=True, slots=True)
class _Turn:
    role: str
    content: str


def load_instances(
    source: str | Path,
    *,
    split: str = "test",
    data_source: str | None = None,
    limit: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    max_chunk_tokens: int | None = None,
) -> Loaded:
    """Load instances from a local file or, if there is no such file, from the hub by name.

    The instance's data source, which selects the metric, is the row's `format_as` if present; the
    row's `data_source` is then recorded in `metadata["text_source"]`. If `format_as` needs a judge
    but the row names a metric without a judge, the data source is the row's `data_source`.

    Args:
        source: A file of JSON lines, of one JSON value (a row or a list of rows) or of parquet,
            identified by its suffix; or a hub name, with or without a revision
            ("owner/name@COMMIT"): a branch, a tag or, to pin the data, a full commit.
        split: Split of a data set on the hub.
        data_source: Data source of the instances to keep; `None`: all.
        limit: Largest number of instances, at least 1; `None`: all.
        on_error: Whether a broken row raises or is skipped with a message.
        max_chunk_tokens: Largest number of tokens of a chunk, at least 1; `None`: no limit. A
            longer chunk is truncated at its end (text.truncate_tokens), as recorded in
            `Chunk.truncated_tokens` and `metadata["truncated"]`.

    Raises:
        ValueError: the source cannot be read or holds no instance, the hub is unreachable and the
            cached copy has another commit than the requested one, or (unless `on_error` is
            "skip") a row is broken; the message names file, line and field.
    """
    for name, number in (("limit", limit), ("max_chunk_tokens", max_chunk_tokens)):
        if number is not None and number < 1:
            raise ValueError(f"load_instances: {name} is {number!r}, expected 1 or more, or None")
    if on_error not in ("raise", "skip"):
        raise ValueError(f'load_instances: on_error is {on_error!r}, expected "raise" or "skip"')
    instances: list[Instance] = []
    problems: list[str] = []
    other_sources: set[str] = set()
    rows, commit = raw_rows(source, split)
    for loaded in _parsed(rows, max_chunk_tokens):
        if isinstance(loaded, ValueError):
            if on_error == "raise":
                raise ValueError(f"{loaded}; {_REMEDY}") from loaded
            problems.append(str(loaded))
        elif data_source not in (None, loaded.data_source):
            other_sources.add(loaded.data_source)
        else:
            instances.append(loaded)
            if len(instances) == limit:
                break
    if not instances:
        only = f" of data source {data_source!r}, only {sorted(other_sources)}"
        found = only if other_sources else f"; rows skipped: {len(problems)}"
        raise ValueError("; ".join([f"{source}: no instance{found}", *problems[:3]]))
    return Loaded(tuple(instances), tuple(problems), commit)


def _parsed(
    rows: Iterable[tuple[str, Any]], max_chunk_tokens: int | None
) -> Iterator[Instance | ValueError]:
    """Yield, for every row, its instance or an error that names the row and the broken field."""
    places: dict[str, str] = {}  # instance id -> its row
    for number, (where, raw) in enumerate(rows):
        try:
            instance = _instance(raw, number, max_chunk_tokens)
            if instance.instance_id in places:
                raise broken(
                    "instance_id",
                    f"an id that no other row has ({places[instance.instance_id]} has this)",
                    instance.instance_id,
                )
        except ValueError as error:
            yield ValueError(f"{where}, {error}")
            continue
        places[instance.instance_id] = where
        yield instance


def save_instances(instances: Iterable[Instance], path: str | Path) -> Path:
    """Write instances as parquet in Memalpha's columns, for `load_instances`; return the path.

    As published, `instance_id` is the row number; id and category of the instance are written into
    `metadata`. Chunk questions are not part of the layout and are left out.

    Args:
        instances: The instances to write.
        path: The file to write; it must not exist.

    Raises:
        FileExistsError: `path` exists; nothing is overwritten.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path} exists and is kept; give another path or remove it first")
    rows = [_published_row(number, instance) for number, instance in enumerate(instances)]
    text = pa.large_string()
    schema = pa.schema(
        {
            "instance_id": pa.int64(),
            "prompt": text,
            "chunks": text,
            "questions_and_answers": text,
            "data_source": text,
            "metadata": text,
            "num_chunks": pa.int64(),
            "num_questions": pa.int64(),
        }
    )
    with written_beside(path) as beside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), beside)
    return path


def _published_row(number: int, instance: Instance) -> dict[str, Any]:
    metadata = dict(instance.metadata)
    prompt = metadata.pop("prompt", "")
    metadata |= {"instance_id": instance.instance_id, "category": instance.category}
    asked = []
    for question in instance.questions:
        entry: dict[str, Any] = {"question": question.text, "answer": list(question.answers)}
        if len(question.answers) == 1:
            entry["answer"] = question.answers[0]
        if question.evidence_steps:
            entry["evidence_idx"] = [step - 1 for step in question.evidence_steps]
        asked.append(entry)
    return {
        "instance_id": number,
        "prompt": prompt,
        "chunks": json.dumps([chunk.text for chunk in instance.chunks]),
        "questions_and_answers": json.dumps(asked),
        "data_source": instance.data_source,
        "metadata": json.dumps(metadata),
        "num_chunks": len(instance.chunks),
        "num_questions": len(asked),
    }


def raw_rows(
    source: str | Path, split: str = "train"
) -> tuple[Iterator[tuple[str, Any]], str | None]:
    """Return the rows of a file or of a data set on the hub.

    Args:
        source: As for `load_instances`.
        split: Split of a data set on the hub.

    Returns:
        Pairs of a row's location, for messages, and the row; and the commit on the hub, or `None`.
        A row of JSON lines is returned as bytes, see `json_value`.

    Raises:
        ValueError: the source does not exist or cannot be read.
    """
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        files = sorted(entry.name for entry in path.iterdir() if entry.suffix in SUFFIXES)
        raise ValueError(
            f"{source} is a folder, expected a file; give one of its files: "
            f"{', '.join(files[:20]) or 'it has none of ' + ', '.join(SUFFIXES)}"
        )
    if not path.exists():
        hub = _HUB_NAME.fullmatch(str(source))
        if path.suffix in SUFFIXES or not hub:
            raise ValueError(
                f"{source}: no such file, expected a {', '.join(SUFFIXES)} file or a hub name "
                "like owner/name; check the path"
            )
        return _hub_rows(hub[1], split, hub[2])
    readers = {".jsonl": _json_lines, ".json": _json_rows, ".parquet": _parquet_rows}
    if path.suffix not in readers:
        raise ValueError(
            f"{source}: suffix {path.suffix!r}, expected {', '.join(SUFFIXES)}; rename the file "
            "after its format"
        )
    return readable(path, readers[path.suffix]), None


def readable(
    path: Path, reader: Callable[[Path], Iterator[tuple[str, Any]]]
) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a file.

    Args:
        path: The file.
        reader: Yields pairs of a row's location, for messages, and the row.

    Raises:
        ValueError: the file is empty or cannot be read.
    """
    try:
        if path.stat().st_size == 0:
            raise ValueError(f"{path} is empty, expected at least one row; fetch the file again")
        yield from reader(path)
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error}), expected a readable {path.suffix} file; check its "
            "permissions or fetch it again"
        ) from error


def _json_lines(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if line.strip():
                yield f"{path}, line {number}", line


def _json_rows(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        value = json_value(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path}, {error}; for one row a line, name it .jsonl") from error
    for number, row in enumerate(value if isinstance(value, list) else [value], start=1):
        yield f"{path}, row {number}", row


def _parquet_rows(path: Path) -> Iterator[tuple[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        for batch in pq.ParquetFile(path).iter_batches(batch_size=8):
            for row in batch.to_pylist():
                number += 1
                yield f"{path}, row {number}", row
    except pa.ArrowException as error:
        raise ValueError(
            f"{path}: not readable as parquet after row {number} ({error}); fetch it again"
        ) from error


def _hub_rows(
    name: str, split: str, revision: str | None
) -> tuple[Iterator[tuple[str, Any]], str | None]:
    import datasets

    try:
        builder = datasets.load_dataset_builder(name, revision=revision)
        builder.download_and_prepare()
        table = builder.as_dataset(split=split)
    except Exception as error:  # The hub's client raises errors of many libraries.
        raise ValueError(
            f"{name}: no such file here, and the hub gave no data set of this name with split "
            f"{split!r} and revision {revision!r} ({type(error).__name__}: {error}); check name, "
            "split, revision and network, or download one of its files and give the path"
        ) from error
    # If the hub is unreachable, the client returns its cached copy, whatever its revision.
    if revision and _COMMIT.fullmatch(revision) and builder.hash != revision:
        raise ValueError(
            f"{name}: the hub is out of reach and the copy that its client takes is of commit "
            f"{builder.hash}, expected {revision}; go online, or ask for that commit"
        )
    rows = ((f"{name} ({split}), row {number}", row) for number, row in enumerate(table, start=1))
    return rows, builder.hash


def _instance(raw: Any, number: int, max_chunk_tokens: int | None) -> Instance:
    row = json_value(raw)
    if not isinstance(row, dict):
        raise broken("(whole row)", "a JSON object", row)
    for name in ("chunks", "questions_and_answers", "metadata"):
        if isinstance(row.get(name), str):
            row[name] = json_value(row[name], name)
    if "context" in row:
        return _from_bench(validated(_BenchRow, row), number, max_chunk_tokens)
    return _from_memalpha(validated(_MemalphaRow, row), number, max_chunk_tokens)


def _from_memalpha(row: _MemalphaRow, number: int, max_chunk_tokens: int | None) -> Instance:
    source = row.format_as or row.data_source
    field = "format_as" if row.format_as else "data_source"
    if _metric(source, field) == "unscored" and "judge" not in (row.metric or "judge"):
        source, field = row.data_source, "data_source"
        _metric(source, field)
    metadata = dict(row.metadata or {})
    metadata.setdefault("text_source", row.data_source)
    if row.prompt:
        metadata["prompt"] = row.prompt
    instance_id = row.instance_id if row.instance_id is not None else f"{source}-{number}"
    # The published id is a row number; an id that `save_instances` wrote into metadata replaces it.
    instance_id = str(metadata.pop("instance_id", instance_id))
    category = row.category or str(metadata.pop("category", _category(source)))
    questions = [
        Question(
            question_id=f"q-{position}",
            text=asked.question,
            answers=(asked.answer,) if isinstance(asked.answer, str) else tuple(asked.answer),
            data_source=source,
            evidence_steps=_evidence_steps(
                asked, f"questions_and_answers[{position - 1}]", len(row.chunks)
            ),
        )
        for position, asked in enumerate(row.questions_and_answers, start=1)
    ]
    fields = ("chunks", "questions_and_answers")
    return _checked(
        instance_id, source, category, row.chunks, questions, metadata, max_chunk_tokens, fields
    )


def _from_bench(row: _BenchRow, number: int, max_chunk_tokens: int | None) -> Instance:
    source, wordings = row.metadata.source, row.questions
    _metric(source, "metadata.source")
    if len(row.answers) != len(wordings):
        raise broken("answers", f"one list per question ({len(wordings)})", len(row.answers))
    metadata: dict[str, Any] = {"text_source": source}
    if source.startswith("longmemeval"):
        texts = _session_chunks(row.context)
    elif source.startswith("icl_"):
        texts = _dialogues("Examples with their labels:", _example_chunks(row.context))
    elif source.startswith("factconsolidation"):
        facts = numbered_facts(row.context)
        texts = _dialogues(FACTS_LEAD_IN, packed(map(fact_line, facts), PROSE_TOKENS, "\n"))
        metadata["revisions"] = revisions_of(facts, source, wordings, row.answers)
    else:
        texts = packed(sentences(row.context), PROSE_TOKENS, " ")
        if source.startswith("infbench_sum"):
            source = "infbench_reference"
            wordings = [book_question(len(texts) - 1)] * len(wordings)
            texts = [book_page(day, text) for day, text in enumerate(texts)]
        else:
            texts = _dialogues("Here is something to keep for later:", texts)
    questions = [
        Question(f"q-{position}", wording, tuple(answers), source)
        for position, (wording, answers) in enumerate(
            zip(wordings, row.answers, strict=True), start=1
        )
    ]
    return _checked(
        f"{row.metadata.source}-{number}",
        source,
        _category(source),
        texts,
        questions,
        metadata,
        max_chunk_tokens,
        ("context", "questions"),
    )


def _checked(
    instance_id: str,
    source: str,
    category: str,
    texts: Sequence[str],
    questions: Sequence[Question],
    metadata: dict[str, Any],
    max_chunk_tokens: int | None,
    fields: tuple[str, str],
) -> Instance:
    """Return the instance; raise an error if it lacks chunks, questions, answers or a text.

    `fields` are the row's names for chunks and questions."""
    of_chunks, of_questions = fields
    for field, values in ((of_chunks, texts), (of_questions, questions)):
        if not values:
            raise broken(field, "at least one", [])
    for position, text in enumerate(texts):
        if not text.strip():
            raise broken(f"{of_chunks}[{position}]", "text", text)
    for position, question in enumerate(questions):
        if not question.text.strip():
            raise broken(f"{of_questions}[{position}]", "a question", question.text)
        if not any(answer.strip() for answer in question.answers):
            raise broken(f"{of_questions}[{position}]", "an answer", list(question.answers))
    chunks = tuple(_chunk(text, max_chunk_tokens) for text in texts)
    cut = [chunk.truncated_tokens for chunk in chunks if chunk.truncated_tokens]
    if cut:
        metadata["truncated"] = {
            "rule": "head",
            "max_chunk_tokens": max_chunk_tokens,
            "chunks": len(cut),
            "tokens": sum(cut),
        }
    return Instance(instance_id, source, category, chunks, tuple(questions), metadata=metadata)


def _chunk(text: str, max_chunk_tokens: int | None) -> Chunk:
    cut = 0
    if max_chunk_tokens is not None:
        text, cut = truncate_tokens(text, max_chunk_tokens)
    return Chunk(text, count_tokens(text), cut)


def _evidence_steps(asked: _Asked, field: str, num_chunks: int) -> tuple[int, ...] | None:
    name = "answer_in_chunks" if asked.evidence_idx is None else "evidence_idx"
    given = getattr(asked, name)
    indices = [given] if isinstance(given, int) else given or []
    for index in indices:
        if not 0 <= index < num_chunks:
            raise broken(f"{field}.{name}", f"a chunk index from 0 to {num_chunks - 1}", index)
    return tuple(sorted({index + 1 for index in indices})) or None


def _category(source: str) -> str:
    for category, names in _CATEGORIES.items():
        if source.startswith(names):
            return category
    return "AR"


def _metric(source: str, field: str) -> str:
    try:
        return metric_for(source)
    except ValueError as error:
        raise ValueError(f"field {field}: {error}") from error


def packed(
    pieces: Iterable[str],
    limit: int,
    joint: str,
    enough: int | None = None,
) -> list[str]:
    """Join pieces in order into texts.

    Args:
        pieces: The pieces; a piece longer than `limit` forms its own text.
        limit: Largest number of tokens of a text, without the separators.
        joint: Separator between two pieces.
        enough: Number of tokens at which a text is closed early; `None`: never.

    >>> packed(["one two.", "three.", "four."], limit=5, joint=" ")
    ['one two. three.', 'four.']
    """
    texts: list[list[str]] = []
    size = 0
    for piece in pieces:
        tokens = count_tokens(piece)
        if not texts or size + tokens > limit or (enough is not None and size >= enough):
            texts.append([])
            size = 0
        texts[-1].append(piece)
        size += tokens
    return [joint.join(text) for text in texts]


def _example_chunks(context: str) -> list[str]:
    examples = [
        f"Sentence: {match[1].strip()}\nLabel: {match[2]}"
        for match in _BENCH_EXAMPLE.finditer(context)
    ]
    if not examples:
        raise broken("context", '"text", "label: n" on lines of their own', context)
    return packed(examples, EXAMPLE_TOKENS, "\n\n")


def _session_chunks(context: str) -> list[str]:
    expected = "the Python literal of a list that alternates time and session"
    try:
        timeline = ast.literal_eval(context)
        check_depth(timeline)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise broken("context", expected, context) from error
    if not isinstance(timeline, (list, tuple)) or len(timeline) % 2:
        raise broken("context", expected, timeline)
    timeline = _cleaned(list(timeline))
    segments = []
    for time, session in zip(timeline[::2], timeline[1::2], strict=True):
        turns = [
            f"<{turn.role.capitalize()}>{turn.content}"
            for turn in validated(list[_Turn], session, "context")
        ]
        header = f"[Dialogue at timestamp {str(time).removeprefix('Chat Time: ')}]"
        segments += [f"{header}\n{text}" for text in packed(turns, PROSE_TOKENS, "\n")]
    return packed(segments, PROSE_TOKENS, "\n\n", enough=SESSION_TOKENS)


def _dialogues(lead_in: str, texts: Sequence[str]) -> list[str]:
    return [
        dialogue(day, lead_in, text, "Understood, I keep this.") for day, text in enumerate(texts)
    ]


def dialogue(day: int, lead_in: str, text: str, reply: str) -> str:
    """Return a chunk in which the user gives the assistant a text to remember.

    Args:
        day: Days after 2024-01-01, at least 0.
        lead_in: The user's words before the text.
        text: The text.
        reply: The assistant's words after the text.
    """
    return (
        f"[Dialogue between User and Assistant on {_date(day)} 00:00]\n"
        f"<User>{lead_in}\n{text}\n<Assistant>{reply}"
    )


def book_page(day: int, text: str) -> str:
    """Return a chunk in which the user continues reading a book.

    Args:
        day: Days after 2024-01-01, at least 0.
        text: The text of the pages.
    """
    return (
        f"[Event happened on {_date(day)} The user is reading a book]\n<User> {text}\n\n"
        f"<System> Remember what was read on {_date(day)}, the details and the story so far."
    )


def book_question(last_day: int) -> str:
    """Return the request to summarise a book that was read from 2024-01-01 on.

    Args:
        last_day: Days from 2024-01-01 to the last page, at least 0.

    >>> book_question(2)
    'Summarize the content of the book I read from 2024-01-01 to 2024-01-03'
    """
    return f"Summarize the content of the book I read from {_date(0)} to {_date(last_day)}"


def _date(day: int) -> str:
    return (date(2024, 1, 1) + timedelta(days=day)).isoformat()


def json_value(raw: Any, field: str = "(whole row)") -> Any:
    """Return a JSON value in which every string can be encoded as UTF-8.

    Args:
        raw: JSON as text or bytes, or a parsed value.
        field: Name of the field, for messages.

    Raises:
        ValueError: `raw` is not JSON in UTF-8, or is nested too deeply.
    """
    try:
        if isinstance(raw, (bytes, str)):
            raw = parse_json(raw)
        else:
            check_depth(raw)
    except ValueError as error:
        raise ValueError(f"field {field}: {error}") from error
    return _cleaned(raw)


def _cleaned(value: Any) -> Any:
    """Replace lone surrogates in every string of a JSON value."""
    if isinstance(value, str):
        return clean_text(value)
    if isinstance(value, list):
        return [_cleaned(entry) for entry in value]
    if isinstance(value, dict):
        return {clean_text(str(name)): _cleaned(entry) for name, entry in value.items()}
    return value


def validated(record_type: Any, value: Any, field: str = "") -> Any:
    """Return a value as a record.

    Args:
        record_type: The type that pydantic validates against.
        value: The value.
        field: Name of the field, for messages; "": the whole row.

    Raises:
        ValueError: the value does not fit; the message names the field, its value and the type.
    """
    from pydantic import ValidationError

    try:
        return type_adapter(record_type).validate_python(value)
    except ValidationError as error:
        first, *others = error.errors(include_url=False)
        place = _place(field, first["loc"])
        # Each member of a union gives a separate error at the same location.
        same = [first] + [other for other in others if _place(field, other["loc"]) == place]
        expected = " or ".join(entry["msg"].removeprefix("Input should be ") for entry in same)
        if first["type"] == "missing":
            raise ValueError(f"field {place}: expected a value, got no such field") from error
        raise broken(place, expected, first["input"]) from error


def _place(field: str, location: tuple[int | str, ...]) -> str:
    """Return a pydantic location as a path, without the names of union members."""
    for part in location:
        if isinstance(part, int):
            field += f"[{part}]"
        elif part not in ("str", "int") and "[" not in part:
            field += f".{part}" if field else part
    return field or "(whole row)"


def broken(field: str, expected: str, got: Any) -> ValueError:
    """Return the error for a field with an unexpected value.

    Args:
        field: Path of the field.
        expected: The expected value, in words.
        got: The value of the field.
    """
    shown = f"{got!r:.60}"
    return ValueError(f"field {field}: expected {expected}, got {type(got).__name__} {shown}")


def held_out_split(
    instances: Sequence[Instance], held_out: int, instances_per_update: int
) -> tuple[list[Instance], list[Instance]]:
    """Return the training instances and the test instances of all `instances`.

    Args:
        instances: All instances.
        held_out: Number of test instances, taken from the end, at least 0.
        instances_per_update: Smallest number of training instances.

    Raises:
        ValueError: too few training instances remain.
    """
    left = len(instances) - held_out
    if left < instances_per_update:
        raise ValueError(
            f"held_out_split: {len(instances)} instances, {held_out} of them held out, leave "
            f"{max(left, 0)} to train on, expected at least {instances_per_update}, the number of "
            "one update; add data, or lower held_out or instances_per_update"
        )
    return list(instances[:left]), list(instances[left:])
