"""Write cloze questions about a text by rules, without a language model."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from finemem_lib.data.questions import Teacher
from finemem_lib.data.sentences import STOPWORDS, labelled_examples, sentences
from finemem_lib.scoring import metric_for
from finemem_lib.text import words
from finemem_lib.trajectory import Question

FACT_SOURCE = "squad"
"""Data source of fact questions where the text's own data source cannot score facts."""

FACT_METRICS = ("substring_match", "part_match", "word_match")
"""Metrics that can score facts; a question about a text with such a metric keeps its source."""

_HEADING_TAGS = frozenset({"title", "summary", "content", "sentence", "sample", "text", "note"})

_CONTEXT_WORDS = frozenset(
    "he she it they we i you this that these those his her their its my your our there here such "
    "then but and so or both another other also however yesterday today tomorrow now once uh um "
    "mm".split()
)

_DOUBT_WORDS = frozenset({"perhaps", "maybe", "possibly", "presumably"})
_AUXILIARIES = frozenset("is are was were can could will would may might must should".split())

_CLAUSE_WORDS = frozenset(
    "who whom whose which that when where while because although though if since until after "
    "before whether but".split()
)

_TAG = re.compile(
    r"<([^<>\n]{1,40})>[ \t]*|([A-Z][\w.'-]{0,20}(?: [A-Z][\w.'-]{0,20}){0,2}):[ \t]+"
)

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"

DATE = re.compile(
    rf"\b(?:{_MONTH}\s\d{{1,2}}(?:st|nd|rd|th)?(?:,\s\d{{4}})?|\d{{1,2}}\s{_MONTH}(?:\s\d{{4}})?|"
    rf"{_MONTH}\s\d{{4}})\b"
)

NUMBER = re.compile(
    r"[$£€]?(?<![\w./:-])\d(?:[\d,.]*\d)(?:%|\s(?:percent|million|billion)\b)?(?![\w/:-])|"
    r"\b(?:two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|thirty|fifty|hundred|"
    r"thousand)(?=\s[a-z]+s\b)"
)

_YEAR = re.compile(r"1\d{3}|20\d{2}")

_NAME = re.compile(
    r"\b[A-Z][\w’'-]*\w(?:\s(?:of\s(?:the\s)?|de\s|von\s|van\s|du\s)?[A-Z][\w’'-]*\w)*"
)

_LAST_WORD = re.compile(r"\b([^\W\d_]{3,})\W*$")
_SUBJECT_VERB = re.compile(r"\s(?:is|are|was|were|has|had|became|[a-z]{2,}ed)\s")

_INCOMPLETE = re.compile(r"[^.!…](?:[\"'”’)\]]*)$|\*\*|\(shares ")
"""Signs that a text is not a complete sentence: no final full stop, bold type, a caption."""

_PARTICIPLE = re.compile(
    r"(?:\w+ly |not |also |first |later )?(?:[a-z-]+ed|born|built|made|known|found|held|written|"
    r"given|taken|seen|shown|won|led|sent|sold|chosen|kept|left|lost|set|drawn|driven|grown|brought|bought|"
    r"taught|paid|done|been|be)\b"
)

_PREPOSITION = re.compile(r"(?:^|.* )(in|on|by|from|to|with|for|at|since|until) (?:the )?$", re.I)
_TAIL_END = re.compile(r"[,;:(—–]| and | but ")
_PHRASE_END = re.compile(r"$|[.,;:!]| (?:in|on|at|by|for|to|from|with|as|and|during|near)\b")
_TITLES = frozenset({"mr", "mrs", "ms", "dr", "prof", "sir", "lord", "lady", "st"})


@dataclass(frozen=True, slots=True)
class Statement:
    """A declarative sentence of a chunk.

    Attributes:
        speaker: Name of the speaker; "" in running text.
    """

    text: str
    speaker: str


class ClozeTeacher(Teacher):
    """A teacher that writes questions about one sentence each, by rules for English text.

    Labelled examples of sources scored by label are asked for in the form of their source. In other
    chunks a sentence gives up to two questions. The answer is a date, a number or a capitalised
    name; if a chunk has too few of them, also the subject or the last word of a sentence. If a rule
    can rephrase the sentence, the question is "In what year ...?", "By whom or what ...?", "Who or
    what ...?" and the like, otherwise "Fill the blank: ...", in dialogues with the speaker's name.
    Sentences that depend on their context (pronouns, "yesterday") rank low, hedged sentences
    ("perhaps") are left out; headers, lead-ins and acknowledgements of the published wrappers are
    skipped.

    If the instance's own metric cannot score facts, the questions have the data source
    `FACT_SOURCE`.

    Args:
        max_candidates: Largest number of questions per chunk, at least 1.
        max_words: Largest number of words of a sentence, at least 1; longer ones are left out.

    Raises:
        ValueError: a limit is less than 1.

    >>> text = "The Grand Hotel was opened in 1898. Perhaps it burnt."
    >>> for question in ClozeTeacher().write(text, 1, "booksum", random.Random(0)):
    ...     print(question.text, question.answers, question.data_source)
    In what year was the Grand Hotel opened? ('1898',) squad
    """

    name = "cloze"

    def __init__(self, max_candidates: int = 20, max_words: int = 60) -> None:
        for name, limit in (("max_candidates", max_candidates), ("max_words", max_words)):
            if limit < 1:
                raise ValueError(f"ClozeTeacher: {name} is {limit}, expected at least 1")
        self.max_candidates = max_candidates
        self.max_words = max_words

    @property
    def settings(self) -> str:
        """The settings that the questions depend on, besides the chunk, as JSON."""
        return json.dumps([self.name, self.max_candidates, self.max_words])

    def prepare(self, chunk_texts: Sequence[str]) -> None:
        pass  # `write` takes only milliseconds per chunk

    def write(
        self, chunk_text: str, step: int, data_source: str, rng: random.Random
    ) -> list[Question]:
        metric = metric_for(data_source)
        examples = labelled_examples(chunk_text) if metric == "label_match" else []
        if examples:
            rng.shuffle(examples)
            pairs = [
                (f"Sentence: {sentence}\nWhat are the labels for the above sentence?", label)
                for sentence, label in examples
            ]
        else:
            data_source = data_source if metric in FACT_METRICS else FACT_SOURCE
            pairs = self._facts(chunk_text, rng)
        return [
            Question(f"{self.name}-{step}-{number}", text, (answer,), data_source, step, (step,))
            for number, (text, answer) in enumerate(pairs[: self.max_candidates], start=1)
        ]

    def _facts(self, chunk_text: str, rng: random.Random) -> list[tuple[str, str]]:
        """Return (question, answer) pairs, best first.

        The sort keys are: type of answer, independence of context, first before second question of
        a sentence, rephrased before blanked, random."""
        stated = list(statements(chunk_text))
        speakers = set(words(" ".join({statement.speaker for statement in stated})))
        ranked = []
        for statement in stated:
            terms = words(statement.text)
            if not 3 <= len(terms) <= self.max_words or not _DOUBT_WORDS.isdisjoint(terms):
                continue
            leans = terms[0] in _CONTEXT_WORDS or bool(_INCOMPLETE.search(statement.text))
            asked = []
            for start, end, rank in _spans(statement):
                answer = statement.text[start:end]
                left = f"{statement.text[:start]} {statement.text[end:]}"
                known = not speakers.isdisjoint(words(answer))
                if known or not _stands_alone(left, statement.speaker):
                    continue
                turned = None if statement.speaker else _rephrased(statement.text, start, end)
                blank = _blank(statement, start, end)
                asked.append((rank, turned is None, rng.random(), turned or blank, answer))
            for turn, (rank, is_blank, chance, text, answer) in enumerate(sorted(asked)[:2]):
                ranked.append((rank, leans, turn, is_blank, chance, (text, answer)))
        return [pair for *_, pair in sorted(ranked)]


def statements(chunk_text: str) -> Iterator[Statement]:
    """Yield the declarative sentences of a chunk, without its wrapper.

    Args:
        chunk_text: Running text, or text in one of the published wrappers.

    >>> [one.text for one in statements("[Dialogue at noon]\\n<User>Note:\\nIt ran.")]
    ['It ran.']
    """
    lines = [line.strip() for line in chunk_text.split("\n") if line.strip()]
    tags = Counter(match[2] for line in lines if (match := _TAG.match(line)))
    wrapped = chunk_text.startswith("[Dialogue between ")
    book = chunk_text.startswith("[Event happened on ")
    speaker = ""
    for number, line in enumerate(lines, start=1):
        if line.startswith("[") and line.endswith("]"):
            continue
        match = _TAG.match(line)
        if match and (match[1] or tags[match[2]] > 1 or match[2].lower() in _HEADING_TAGS):
            name = (match[1] or match[2]).strip()
            line = line[match.end() :]
            lead_in_or_reply = wrapped and match[1] and (line.endswith(":") or number == len(lines))
            speaker = ""
            if lead_in_or_reply or name.lower() in ("system", "title"):
                continue
            if name in ("User", "Assistant"):
                speaker = "" if book else f"the {name.lower()}"
            elif name.lower() not in _HEADING_TAGS:
                speaker = name
        for sentence in sentences(line):
            if sentence[-1] not in "?:":
                yield Statement(sentence, speaker)


def _stands_alone(rest: str, speaker: str) -> bool:
    """Return whether a sentence without the answer still identifies its subject.

    It needs two content words if it has a name or a speaker ("Mia lives in"), else three ("the film
    opened" would fit every film)."""
    named = speaker or any(match[0].lower() not in STOPWORDS for match in _NAME.finditer(rest))
    return len(set(words(rest)) - STOPWORDS) >= (2 if named else 3)


def _spans(statement: Statement) -> list[tuple[int, int, int]]:
    """Return possible answers as disjoint (start, end, rank).

    Rank 0 is a date, number or name, 1 the subject, 2 the last word."""
    sentence = statement.text
    spoken = bool(statement.speaker) or sentence[0] in "\"“‘'"
    found: list[tuple[int, int, int]] = []

    def add(start: int, end: int, rank: int) -> None:
        if all(end <= other[0] or start >= other[1] for other in found):
            found.append((start, end, rank))

    for pattern in (DATE, NUMBER):
        for match in pattern.finditer(sentence):
            add(*match.span(), 0)
    for match in _NAME.finditer(sentence):
        name = re.sub(r"[’']s$", "", match[0])
        first = words(name)[0]
        if first in STOPWORDS or first in _CONTEXT_WORDS or name.lower() in _TITLES:
            continue
        before = sentence[: match.start()].rstrip()
        called = spoken and before.endswith(",") and sentence[match.end() :][:1] in ",.!?"
        if called:  # "Thanks, Mel!" names the listener
            continue
        if before and (before[-1].isalnum() or before[-1] in ",(’'"):
            add(match.start(), match.start() + len(name), 0)
        elif not before and _SUBJECT_VERB.match(sentence, match.end()):
            add(match.start(), match.start() + len(name), 1)
    last = _LAST_WORD.search(sentence)
    if last and last[1].islower() and last[1] not in STOPWORDS:
        add(*last.span(1), 2)
    return found


def _blank(statement: Statement, start: int, end: int) -> str:
    place = f" in what {statement.speaker} said" if statement.speaker else ""
    return f"Fill the blank{place}: {statement.text[:start]}____{statement.text[end:]}"


def _rephrased(sentence: str, start: int, end: int) -> str | None:
    """Return the sentence rephrased as a question for the span, or `None`.

    The supported patterns are: ANSWER VERB ...; SUBJECT AUXILIARY ... PREPOSITION ANSWER ...; In
    YEAR, SUBJECT AUXILIARY ...; SUBJECT is ANSWER.
    """
    before, answer, after = sentence[:start], sentence[start:end], sentence[end:]
    if not before:
        return f"Who or what{after.rstrip(' .!;:')}?" if _SUBJECT_VERB.match(after) else None
    preposition = _PREPOSITION.match(before)
    asked = _question_words(answer, preposition[1].lower()) if preposition else None
    if preposition and before.lower() == f"{preposition[1].lower()} ":
        clause, tail = after.removeprefix(",").strip(), ""
        clause = clause[: m.start()] if (m := _TAIL_END.search(clause)) else clause
    elif preposition:
        clause, tail = before[: preposition.start(1)], after
    else:
        clause, tail = before, after
    if preposition and not _PHRASE_END.match(after):
        return None
    tail = tail[: m.start()] if (m := _TAIL_END.search(tail)) else tail
    parts = clause.rstrip(" .!").split()
    verb = next((place for place, part in enumerate(parts) if _is_auxiliary(parts, place)), 0)
    if (
        not 1 <= verb <= 8
        or re.search(r"[,;:()\"“”*]", clause)
        or len(_AUXILIARIES.intersection(parts)) > 1
        or not _CLAUSE_WORDS.isdisjoint(words(f"{clause} {tail}"))
        or parts[0].lower() in (_CONTEXT_WORDS | STOPWORDS) - {"the", "a", "an"}
    ):
        return None
    if parts[0] in ("The", "A", "An"):
        parts[0] = parts[0].lower()
    subject, rest = " ".join(parts[:verb]), " ".join(parts[verb + 1 :])
    tail = tail.rstrip(" .!")
    if asked and _PARTICIPLE.match(rest) and " and " not in f" {rest} ":
        return f"{asked} {parts[verb]} {subject} {rest}{tail}?".replace(" ?", "?")
    if not preposition and not rest and not tail and parts[verb] in ("is", "was", "are", "were"):
        return f"Who or what {parts[verb]} {subject}?"
    return None


def _is_auxiliary(parts: Sequence[str], place: int) -> bool:
    perfect = parts[place] in ("has", "have", "had") and place + 1 < len(parts)
    return parts[place] in _AUXILIARIES or perfect and parts[place + 1] == "been"


def _question_words(answer: str, preposition: str) -> str | None:
    """Return the question words for "PREPOSITION answer", or `None` if no rule applies."""
    if _YEAR.fullmatch(answer):
        return f"{preposition.capitalize()} what year" if preposition != "at" else None
    if DATE.fullmatch(answer):
        return {"on": "On what date", "in": "When"}.get(preposition)
    if answer[0].isupper() and preposition in ("by", "from", "to", "with", "for"):
        return f"{preposition.capitalize()} whom or what"
    return None
