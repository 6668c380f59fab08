"""Read the public raw sets from which the benchmarks are built, as units.

For each raw set, a record type defines the fields of a row and a reader turns rows into units:
facts with their texts (SQuAD, HotpotQA), characters with their events (PerLTQA), labelled examples
(PubMed-RCT, NLU, TREC, CLINC150, Banking77), books (BookSum). Unknown fields are ignored; an error
for a missing field names file, row and field.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import os
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finemem_lib.data.memalpha import broken, json_value, raw_rows, readable, validated
from finemem_lib.text import words

ANCHOR_WORDS = 3
"""Largest number of words of a PerLTQA anchor used as an answer (Mem-alpha: at most 3 words)."""


@dataclass(frozen=True, slots=True)
class Fact:
    """A question with the texts that contain its answer.

    Attributes:
        texts: All texts needed to answer the question, in reading order.
    """

    question: str
    answer: str
    texts: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Character:
    """A person of PerLTQA.

    Attributes:
        chunks: One chunk per event, with its dialogues, by event.
        asked: Event, question and possible short answers of every question.
    """

    name: str
    chunks: Mapping[str, str]
    asked: Sequence[tuple[str, str, tuple[str, ...]]]


@dataclass(frozen=True, slots=True)
class Example:
    """A text with its label.

    Attributes:
        text: The text, one line.
        shown: Whether the example belongs to the split that is shown; the others are asked. If all
            examples belong to it, an instance asks examples that it does not show.
    """

    text: str
    label: str
    shown: bool


@dataclass(frozen=True, slots=True)
class Book:
    """A text that is read over several days, and its summary.

    Attributes:
        summary: A summary by human writers.
    """

    title: str
    text: str
    summary: str


Unit = Fact | Character | Example | Book


def _fact(question: str, answer: str, texts: Sequence[str]) -> Fact:
    return Fact(
        _nonempty(question, "question"), answer, tuple(_nonempty(text, "text") for text in texts)
    )


def _example(text: str, label: str, asked: bool) -> Example:
    # A line break inside a text could imitate another example.
    return Example(" ".join(_nonempty(text, "text").split()), label, not asked)


def _nonempty(text: str, field: str) -> str:
    if not text.strip():
        raise broken(field, "text", text)
    return text.strip()


@dataclass(frozen=True, slots=True)
class _SquadAnswers:
    text: list[str]


@dataclass(frozen=True, slots=True)
class _SquadRow:
    context: str
    question: str
    answers: _SquadAnswers


@dataclass(frozen=True, slots=True)
class _SquadAnswer:
    text: str


@dataclass(frozen=True, slots=True)
class _SquadQuestion:
    question: str
    answers: list[_SquadAnswer]


@dataclass(frozen=True, slots=True)
class _SquadParagraph:
    context: str
    qas: list[_SquadQuestion]


@dataclass(frozen=True, slots=True)
class _SquadArticle:
    title: str
    paragraphs: list[_SquadParagraph]


@dataclass(frozen=True, slots=True)
class _SquadFile:
    data: list[_SquadArticle]


def _squad(row: Any, asked: bool) -> Iterator[Fact]:
    """Yield facts of SQuAD v1.1, from the release's file of articles or the hub's rows."""
    if isinstance(row, dict) and "data" in row:
        for article in validated(_SquadFile, row).data:
            for paragraph in article.paragraphs:
                for one in paragraph.qas:
                    if one.answers:
                        yield _fact(one.question, one.answers[0].text, (paragraph.context,))
        return
    one = validated(_SquadRow, row)
    if one.answers.text:
        yield _fact(one.question, one.answers.text[0], (one.context,))


@dataclass(frozen=True, slots=True)
class _HotpotRow:
    question: str
    answer: str
    titles: list[str]
    sentences: list[list[str]]
    gold: list[str]


def _hotpotqa(row: Any, asked: bool) -> Iterator[Fact]:
    """Yield the fact of a HotpotQA row, with only the texts that hold a supporting fact.

    The row may have the release's pairs, the hub's columns, or columns without nesting."""
    if not isinstance(row, dict):
        raise broken("(whole row)", "a JSON object", row)
    context, facts = row.get("context"), row.get("supporting_facts", row.get("sf"))
    if isinstance(context, dict):
        row = row | {"titles": context.get("title"), "sentences": context.get("sentences")}
    elif isinstance(context, list):
        pairs = validated(list[tuple[str, list[str]]], context, "context")
        row = row | {"titles": [one for one, _ in pairs], "sentences": [one for _, one in pairs]}
    if isinstance(facts, dict):
        row = row | {"gold": facts.get("title")}
    else:
        pairs = validated(list[tuple[str, int]], facts, "supporting_facts")
        row = row | {"gold": [title for title, _ in pairs]}
    one = validated(_HotpotRow, row)
    if len(one.titles) != len(one.sentences):
        raise broken("sentences", f"one list per title ({len(one.titles)})", len(one.sentences))
    texts = tuple(
        f"Title: {title}\n{''.join(parts).strip()}"
        for title, parts in zip(one.titles, one.sentences, strict=True)
        if title in one.gold
    )
    if not texts:
        raise broken("supporting_facts", "at least one title of the context", one.gold)
    yield _fact(one.question, one.answer, texts)


@dataclass(frozen=True, slots=True)
class _PerltEvent:
    content: str
    summary: str


@dataclass(frozen=True, slots=True)
class _PerltDialogue:
    events: str
    contents: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class _PerltMemory:
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    dialogues: dict[str, _PerltDialogue] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _PerltQuestions:
    events: list[dict[str, list[dict[str, Any]]]] = field(default_factory=list)
    dialogues: list[dict[str, list[dict[str, Any]]]] = field(default_factory=list)


def _perltqa(row: Any, asked: bool) -> Iterator[Character]:
    """Yield characters of PerLTQA, with chunks from the memory file or questions (`asked`).

    Both files are keyed by character; the questions are about events and their dialogues."""
    if asked:
        for name, one in validated(dict[str, _PerltQuestions], row).items():
            yield Character(
                name,
                {},
                tuple(
                    (re.sub(r"#.*", "", place), *_perlt_question(entry, f"{name}.{place}"))
                    for places in (*one.events, *one.dialogues)
                    for place, entries in places.items()
                    for entry in entries
                ),
            )
        return
    for name, one in validated(dict[str, _PerltMemory], row).items():
        talks = defaultdict(list)
        for talk in one.dialogues.values():
            talks[talk.events].append(talk.contents)
        yield Character(
            name,
            {
                event: _perlt_chunk(name, value, talks[event], f"{name}.events.{event}")
                for event, value in one.events.items()
            },
            (),
        )


def _perlt_question(entry: dict[str, Any], place: str) -> tuple[str, tuple[str, ...]]:
    question = validated(str, entry.get("Question"), f"{place}.Question")
    anchors = validated(
        list[dict[str, Any]], entry.get("Memory Anchors"), f"{place}.Memory Anchors"
    )
    names = dict.fromkeys(name for anchor in anchors for name in anchor)
    return question, tuple(
        name for name in names if ";" not in name and 1 <= len(words(name)) <= ANCHOR_WORDS
    )


def _perlt_chunk(
    name: str, value: dict[str, Any], talks: Sequence[dict[str, list[str]]], place: str
) -> str:
    event = validated(_PerltEvent, value, place)
    time = validated(str, value.get("Creation Time"), f"{place}.Creation Time")
    lines = [
        f"The following is the event happened about the user {name} on {time}:",
        f"Summary: {event.summary}",
        f"Content: {event.content}",
        "",
        "The following are the dialogues.",
    ]
    for talk in talks:
        for when, messages in talk.items():
            lines += ["", f"Dialogue happened at {when}"]
            for message in messages:
                speaker, *words_after = message.split(": ")
                if len(words_after) == 1:
                    lines.append(f"<{speaker}> {words_after[0]}")
    return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class _PubmedRow:
    text: str
    labels: str | int


PUBMED_LABELS = ("background", "conclusions", "methods", "objective", "results")


def _pubmed(row: Any, asked: bool) -> Iterator[Example]:
    """Yield examples of PubMed-RCT.

    A row is a line "LABEL<tab>sentence" as in the release, or has a label by name or, as on the
    hub, by its number in alphabetical order."""
    if isinstance(row, str):
        if not row.startswith("###"):
            label, tab, text = row.partition("\t")
            if not tab:
                raise broken("(whole row)", "LABEL<tab>sentence", row)
            yield from _pubmed({"labels": label, "text": text}, asked)
        return
    one = validated(_PubmedRow, row)
    label = str(one.labels).lower()
    if label.isdecimal() and int(label) < len(PUBMED_LABELS):
        label = PUBMED_LABELS[int(label)]
    if label not in PUBMED_LABELS:
        raise broken("labels", f"one of {', '.join(PUBMED_LABELS)}, or 0 to 4", one.labels)
    yield _example(one.text, label, asked)


@dataclass(frozen=True, slots=True)
class _NluText:
    text: str
    intent: str


@dataclass(frozen=True, slots=True)
class _NluFile:
    test_data_annotation: list[_NluText]


@dataclass(frozen=True, slots=True)
class _NluRow:
    scenario: str
    intent: str
    answer_normalised: str


def _nlu(row: Any, asked: bool) -> Iterator[Example]:
    """Yield examples of the NLU evaluation data.

    A row is a cross-validation file of one intent, or a line of the annotated table, whose label is
    "scenario_intent"."""
    if isinstance(row, dict) and "scenario" in row:
        one = validated(_NluRow, row)
        if one.answer_normalised.strip() and one.answer_normalised != "null":
            label = f"{one.scenario}_{one.intent}"
            yield _example(one.answer_normalised, label, asked)
        return
    for text in validated(_NluFile, row).test_data_annotation:
        yield _example(text.text, text.intent, asked)


def _trec(fine: bool) -> Callable[[Any, bool], Iterator[Example]]:
    """Return a reader of TREC question classification, with lines "COARSE:fine question"."""

    def read(row: Any, asked: bool) -> Iterator[Example]:
        label, space, text = validated(str, row).partition(" ")
        if not re.fullmatch(r"[A-Z]+:\w+", label):
            raise broken("(whole row)", "COARSE:fine and a question", row)
        yield _example(text, label if fine else label.split(":")[0], asked)

    return read


def _clinc150(row: Any, asked: bool) -> Iterator[Example]:
    """Yield examples of CLINC150's file: split "train" to show, split "test" to ask."""
    splits = validated(dict[str, list[tuple[str, str]]], row)
    for split in ("train", "test"):
        if split not in splits:
            raise ValueError(f"field {split}: expected pairs of text and intent, got no such field")
        for text, intent in splits[split]:
            yield _example(text, intent, split == "test")


@dataclass(frozen=True, slots=True)
class _BankingRow:
    text: str
    category: str


def _banking77(row: Any, asked: bool) -> Iterator[Example]:
    """Yield the example of a Banking77 row with text and category."""
    one = validated(_BankingRow, row)
    yield _example(one.text, one.category, asked)


@dataclass(frozen=True, slots=True)
class _Summary:
    text: str | None = None


@dataclass(frozen=True, slots=True)
class _BookRow:
    book_title: str
    text: str
    summary: list[_Summary]


def _booksum(row: Any, asked: bool) -> Iterator[Book]:
    """Yield the chapter of a row of cleaned BookSum, with its first non-empty summary."""
    one = validated(_BookRow, row)
    summaries = [summary.text for summary in one.summary if summary.text]
    if summaries:
        yield Book(one.book_title, _nonempty(one.text, "text"), summaries[0])


READERS: dict[str, Callable[[Any, bool], Iterator[Unit]]] = {
    "squad": _squad,
    "hotpotqa": _hotpotqa,
    "perltqa": _perltqa,
    "pubmed-rct": _pubmed,
    "nlu": _nlu,
    "trec_coarse": _trec(fine=False),
    "trec_fine": _trec(fine=True),
    "clinc150": _clinc150,
    "banking77": _banking77,
    "booksum": _booksum,
}
"""Readers of the raw sets by name: (row, whether it is from the files of questions) -> units."""


def raw_units(
    raw_set: str,
    sources: Sequence[str | Path],
    asked: Sequence[str | Path] = (),
    on_error: Literal["raise", "skip"] = "raise",
) -> tuple[list[Any], list[str]]:
    """Read the files of a raw set.

    Args:
        raw_set: A name in `READERS`.
        sources: Files, or hub names, of the texts or examples to show.
        asked: Files, or hub names, of the questions or examples to ask.
        on_error: Whether a broken row raises or is skipped with a message.

    Returns:
        The units, those of `asked` last, and a message per skipped row. A character includes its
        questions from the question file.

    Raises:
        ValueError: a file is missing or cannot be read, or (unless `on_error` is "skip") a row is
            broken; the message names file, row and field.
    """
    units: list[Any] = []
    problems: list[str] = []
    characters = raw_set == "perltqa"
    for half, files in ((False, sources), (True, asked)):
        for source in files:
            for where, row in _by_character(_rows(source)) if characters else _rows(source):
                try:
                    row = json_value(row) if isinstance(row, bytes) else row
                    units += list(READERS[raw_set](row, half))
                except ValueError as error:
                    if on_error == "raise":
                        raise ValueError(
                            f"{where}, {error}; check that this is a file of {raw_set} and "
                            'correct the row, or build with on_error="skip" to leave it out'
                        ) from error
                    problems.append(f"{where}, {error}")
    return (_joined(units) if characters else units), problems


def _by_character(rows: Iterator[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """Yield one row per character; the files hold all characters in one object."""
    for where, row in rows:
        if isinstance(row, dict):
            for name, value in row.items():
                yield f"{where}, character {name}", {name: value}
        else:
            yield where, row


def _joined(units: Sequence[Character]) -> list[Character]:
    """Return the characters with chunks, each with the questions for its name."""
    asked: dict[str, list[tuple[str, str, tuple[str, ...]]]] = defaultdict(list)
    for unit in units:
        asked[unit.name] += unit.asked
    return [
        dataclasses.replace(unit, asked=tuple(asked[unit.name])) for unit in units if unit.chunks
    ]


def _rows(source: str | Path) -> Iterator[tuple[str, Any]]:
    path = Path(os.path.expanduser(source))
    if path.suffix in _READERS:
        if not path.is_file():
            raise ValueError(f"{source}: no such file; check the path")
        yield from readable(path, _READERS[path.suffix])
    else:
        yield from raw_rows(source)[0]


def _decoded_text(path: Path) -> str:
    """Return a file's text, in UTF-8 or else in Latin-1, as in the older sets."""
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        return content.decode("latin-1")


def _text_lines(path: Path) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(_decoded_text(path).split("\n"), start=1):
        if line.strip():
            yield f"{path}, line {number}", line.strip()


def _table_rows(path: Path) -> Iterator[tuple[str, Any]]:
    text = _decoded_text(path)
    header = text.partition("\n")[0]
    rows = csv.DictReader(
        io.StringIO(text, newline=""),
        delimiter=max(",;\t", key=header.count),
    )
    try:
        for row in rows:
            row.pop(None, None)  # fields beyond the header's
            yield f"{path}, line {rows.line_num}", row
    except csv.Error as error:
        raise ValueError(f"{path}, line {rows.line_num}: not readable as CSV ({error})") from error


_READERS = {".txt": _text_lines, ".label": _text_lines, ".csv": _table_rows, ".tsv": _table_rows}
