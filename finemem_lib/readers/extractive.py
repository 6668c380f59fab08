"""The extractive reader answers with spans of the retrieved text, without a language model.

Differs from the paper: Fine-Mem (arXiv 2601.08435) answers with Qwen3-32B. Readers share one
batched protocol (reading.ReasoningAgent), so `model_reader.ModelReader` can replace this one.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal, TypeVar

from finemem_lib.data.planted_layers import verbs_of
from finemem_lib.data.sentences import STOPWORDS, labelled_examples, retrieval_query, sentences
from finemem_lib.reading import MemoisedAgent, Reading, ReadingTask, ReasoningAgent
from finemem_lib.scoring import metric_for
from finemem_lib.text import words
from finemem_lib.trajectory import Instance, Trajectory

CONTEXT_WEIGHT = 0.4
"""Weight of a question word that occurs only in the previous sentence; else the weight is 1."""

TYPE_BONUS = 1.5
"""Factor for a sentence with a new span of the type asked for (a date for "when")."""

NEIGHBOURS = 5
"""Number of nearest labelled examples that vote."""

MAX_SENTENCE_WORDS = 60
"""Longer sentences are split into pieces of this many words, which bounds the answer's length."""

_PAIR = re.compile(r"\b([A-Z]\w*) and ([A-Z]\w*)\b")

_NAME = r"[A-Z][\w'’-]*(?:(?: (?:of|the|de|du|la|van|von|der))? [A-Z][\w'’-]*)*"

_MONTH = "(?:January|February|March|April|May|June|July|August|September|October|November|December)"

_NUMERAL = (
    "(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|fifteen|twenty|thirty|forty|"
    "fifty|sixty|seventy|eighty|ninety|hundred|thousand|million|billion|trillion|dozen|half|twice)"
)

_TYPES: tuple[tuple[re.Pattern[str], tuple[re.Pattern[str], ...]], ...] = (
    (
        re.compile(r"\bwhen\b|\b(?:what|which) (?:year|date|month|day|century|decade)\b"),
        (
            re.compile(
                rf"\b((?:\d{{1,2}} )?{_MONTH}(?: \d{{1,2}})?(?:,? \d{{4}})?|\d{{3,4}}s?|"
                r"\d{1,2}(?:st|nd|rd|th) century|(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day|"
                r"yesterday|today|tonight|last (?:night|week|month|year))\b"
            ),
        ),
    ),
    (
        re.compile(
            r"\bhow (?:many|much|old|long|far|tall|large|big|high)\b|"
            r"\b(?:what|which) (?:percentage|percent|number|amount|age)\b"
        ),
        (
            re.compile(
                r"([$£€]?\b\d(?:[\d,.]*\d)?%?(?:st|nd|rd|th)?"
                r"(?: (?:percent|hundred|thousand|million|billion|trillion))?|"
                rf"\b{_NUMERAL}(?:[ -]{_NUMERAL})*\b)",
                re.IGNORECASE,
            ),
        ),
    ),
    (re.compile(r"\bwho(?:m|se)?\b"), (re.compile(rf"\b({_NAME})"),)),
    (
        re.compile(
            r"\bwhere\b|\b(?:what|which) (?:city|country|state|town|place|region|river|continent)\b"
        ),
        (
            re.compile(rf"\b(?:in|at|near|to|from|into|of) (?:the )?({_NAME})"),
            re.compile(rf"\b({_NAME})"),
        ),
    ),
)
"""Types of questions: (pattern of the question, patterns of its answer); the first match counts."""

_Key = TypeVar("_Key")
_WORD = re.compile(r"\w+")
_SUFFIX = re.compile(r"(?<=\w{3})(?:ingly|edly|ing|ies|ied|es|ed|ly|s|e|y)$")
_SUMMARY_METRICS = ("keyword_hit", "rouge_l")

_Parsed = tuple[list[frozenset[str]], frozenset[int], frozenset[str], tuple[re.Pattern[str], ...]]
"""A parsed question: the terms of every content word, the indices of the words that an answer must
hold, the stemmed words of the query, and the patterns of an answer."""


class ExtractiveReader(ReasoningAgent):
    r"""A reader whose answers are parts of the retrieved text.

    The metric of the data source selects the method:

    - labelled examples (sources scored by label): the `NEIGHBOURS` retrieved examples most similar
      to the question vote, weighted by similarity over the square root of their item's rank; the
      answer is ``\boxed{label}``. With one retrieved example this is 1-NN.
    - summaries (sources scored by keywords or ROUGE): the retrieved text in the order of writing;
      the items share the word budget evenly.
    - questions: the sentence of the retrieved items with the largest share of the question's
      words, each weighted by its rarity among the sentences. Words of the previous sentence count
      `CONTEXT_WEIGHT`; a span of the type asked for counts as a bonus. Among equals the item
      written last wins (unknown: the one retrieved first), then the later sentence.

    If no sentence has enough support, the reader abstains: answer "", used (). The time is linear
    in the words of the items.

    Args:
        synonyms: Words that may answer a question word. They are added to the query. A question
            with such a word is answered only from a sentence that holds every name of the question
            and, unstemmed, the word or a synonym. A question about two people ("Where do Mia and
            Ana live?") is answered for each separately.
        answer: "sentence" returns the sentence; "span" returns the date, number or name in it
            nearest to the question's words, or else its new words if they are few, or else the
            sentence. The substring metrics never penalise a long answer, so sentences score higher
            and are less precise: report the length of answers with the score.
        min_support: Share of the weighted question words, in [0, 1], that a sentence must reach,
            unless the question has a word with synonyms.
        summary_words: Largest number of words of a summary, at least 1.

    Raises:
        ValueError: a setting is out of range. `query` and `read` raise it if a data source has no
            metric.

    >>> reader = ExtractiveReader(synonyms={"live": ("moved",)}, answer="span")
    >>> items = (("1", "Mia moved to Rome."), ("2", "Leo visited Oslo."))
    >>> reader.read([ReadingTask("Where does Mia live?", "planted", items)])
    [Reading(answer='Rome', used=('1',))]
    >>> reader.read([ReadingTask("Where does Leo live?", "planted", items)])
    [Reading(answer='', used=())]
    """

    name = "extractive"

    def __init__(
        self,
        synonyms: Mapping[str, Sequence[str]] | None = None,
        answer: Literal["sentence", "span"] = "sentence",
        min_support: float = 0.2,
        summary_words: int = 1000,
    ) -> None:
        if answer not in ("sentence", "span"):
            raise ValueError(f"ExtractiveReader: answer is {answer!r}, expected sentence or span")
        if not 0 <= min_support <= 1:
            raise ValueError(f"ExtractiveReader: min_support is {min_support}, expected 0 to 1")
        if summary_words < 1:
            raise ValueError(f"ExtractiveReader: summary_words is {summary_words}, expected >= 1")
        self.answer = answer
        self.min_support = min_support
        self.summary_words = summary_words
        self.synonyms = {
            cue.lower(): tuple(words(" ".join(others))) for cue, others in (synonyms or {}).items()
        }
        self._parsed_questions: dict[tuple[str, str], _Parsed] = {}

    @functools.cached_property  # part of the key of every memoised task
    def settings(self) -> str:
        """The settings that the answers depend on, besides the task, as JSON."""
        return json.dumps(
            [self.name, self.answer, self.min_support, self.summary_words, self.synonyms]
        )

    def query(self, question: str, data_source: str) -> str:
        r"""Return the retrieval query for a question.

        Args:
            question: Text of the question.
            data_source: Data source, which selects the metric.

        Returns:
            The sentence to label for sources scored by label, else the question followed by the
            synonyms of its words.

        >>> reader = ExtractiveReader(synonyms={"live": ("moved",)})
        >>> reader.query("Where does Mia live?", "planted")
        'Where does Mia live? moved'
        >>> text = "Sentence: good day\nWhat are the labels for the above sentence?"
        >>> reader.query(text, "icl_nlu_8296shot_balance")
        'good day'
        """
        if metric_for(data_source) == "label_match":
            return retrieval_query(question, data_source)
        others = (self.synonyms.get(word, ()) for word in dict.fromkeys(words(question)))
        return " ".join([question, *itertools.chain.from_iterable(others)])

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        return [self._read(task) for task in tasks]

    def _read(self, task: ReadingTask) -> Reading:
        metric = metric_for(task.data_source)
        if metric == "label_match":
            return self._classify(task)
        if metric in _SUMMARY_METRICS:
            return self._summarise(task)
        pair = _PAIR.search(task.question)
        if pair is None or self.synonyms.keys().isdisjoint(words(task.question)):
            return self._extract(task)
        start, end = pair.span()
        readings = [
            self._extract(
                dataclasses.replace(
                    task, question=f"{task.question[:start]}{name}{task.question[end:]}"
                )
            )
            for name in pair.groups()
        ]
        used = itertools.chain.from_iterable(reading.used or () for reading in readings)
        return Reading(
            "; ".join(reading.answer.rstrip(".") for reading in readings if reading.answer),
            tuple(dict.fromkeys(used)),
        )

    def _classify(self, task: ReadingTask) -> Reading:
        """Return the label with the most votes of the nearest labelled examples."""
        asked = set(words(self.query(task.question, task.data_source)))
        examples = [
            (rank, item_id, label, terms)
            for rank, (item_id, content) in enumerate(task.items, start=1)
            for terms, label in _examples(content)
        ]
        weight = _rarity(len(examples), Counter(word for *_, terms in examples for word in terms))
        voters = sorted(
            (
                (
                    math.fsum(map(weight, asked & terms))
                    / math.sqrt(rank * math.fsum(map(weight, terms)) or 1),
                    -rank,
                    item_id,
                    label,
                )
                for rank, item_id, label, terms in examples
            ),
            key=lambda voter: voter[:2],
            reverse=True,
        )[:NEIGHBOURS]
        votes: dict[str, float] = defaultdict(float)
        for likeness, _, _, label in voters:
            votes[label] += likeness
        if not votes:
            return Reading("", ())
        winner = max(votes, key=votes.__getitem__)
        used = dict.fromkeys(item_id for _, _, item_id, label in voters if label == winner)
        return Reading(rf"\boxed{{{winner}}}", tuple(used))

    def _summarise(self, task: ReadingTask) -> Reading:
        """Return the beginning of every item, with an even share of the word budget for each."""
        texts = [content.split() for _, content in task.items]
        left = self.summary_words
        shares = [0] * len(texts)
        by_length = sorted(range(len(texts)), key=lambda place: len(texts[place]))
        for done, place in enumerate(by_length):
            shares[place] = min(len(texts[place]), left // (len(texts) - done))
            left -= shares[place]
        order = sorted(
            (place for place, share in enumerate(shares) if share), key=_ranks(task).__getitem__
        )
        return Reading(
            "\n".join(" ".join(texts[place][: shares[place]]) for place in order),
            tuple(task.items[place][0] for place in order),
        )

    def _extract(self, task: ReadingTask) -> Reading:
        """Return the sentence with the most support, or the answer span in it."""
        concepts, required, asked, patterns = self._parsed(task.question, task.data_source)
        candidates: list[tuple[int, int, int, str, list[int], list[int]]] = []
        for place, ((_, content), rank) in enumerate(zip(task.items, _ranks(task), strict=True)):
            before: list[int] = []
            for number, (sentence, terms) in enumerate(_sentences(content)):
                covered = [c for c, concept in enumerate(concepts) if not concept.isdisjoint(terms)]
                candidates.append((rank, -place, number, sentence, covered, before))
                before = covered
        weight = _rarity(len(candidates), Counter(found for c in candidates for found in c[4]))
        total = sum(map(weight, range(len(concepts)))) or 1.0
        best: tuple[tuple[float, int, int, int], str] | None = None
        for rank, place, number, sentence, covered, before in candidates:
            support = sum(map(weight, covered))
            support += CONTEXT_WEIGHT * sum(weight(c) for c in before if c not in covered)
            support /= total
            if required:
                if not required <= set(covered):
                    continue
            elif not covered or support < self.min_support:
                continue
            # Finding spans is slow, so it is done only where the bonus could decide.
            if (best is None or support * TYPE_BONUS >= best[0][0]) and any(
                _new_spans(pattern, sentence, asked) for pattern in patterns
            ):
                support *= TYPE_BONUS
            key = (support, rank, place, number)
            if best is None or key > best[0]:
                best = key, sentence
        if best is None:
            return Reading("", ())
        (_, _, place, _), sentence = best
        answer = _span(patterns, sentence, asked) if self.answer == "span" else sentence
        return Reading(answer, (task.items[-place][0],))

    def _parsed(self, question: str, data_source: str) -> _Parsed:
        """Return the parsed question, cached because it is read with many sets of items."""
        if (question, data_source) not in self._parsed_questions:
            self._parsed_questions[question, data_source] = (
                *self._concepts(question),
                frozenset(map(_stem, words(self.query(question, data_source)))),
                _answer_patterns(question),
            )
        return self._parsed_questions[question, data_source]

    def _concepts(self, question: str) -> tuple[list[frozenset[str]], frozenset[int]]:
        """Return the terms of each content word of the question, and the indices of required words.

        If the question has a word with synonyms, that word and all names are required; otherwise no
        word is."""
        asked = dict.fromkeys(_WORD.findall(question))
        has_cue = any(word.lower() in self.synonyms for word in asked)
        concepts: list[frozenset[str]] = []
        required = set()
        for word in asked:
            lowered = word.lower()
            if lowered in self.synonyms:
                concept = {lowered, *self.synonyms[lowered]}
            elif lowered in STOPWORDS:
                continue
            elif has_cue and word[0].isupper():
                concept = {word}
            else:
                concepts.append(frozenset({_stem(lowered)}))
                continue
            # Required words are not stemmed: the stem of "lives" is "liv", which matches Liv.
            required.add(len(concepts))
            concepts.append(frozenset(concept))
        return concepts, frozenset(required)


def reader_for(instances: Iterable[Instance | Trajectory]) -> MemoisedAgent:
    """Return the extractive reader, memoised.

    Args:
        instances: The instances to read. If all are planted streams of one world, the reader gets
            the verbs of that world as synonyms.

    >>> from finemem_lib.data.planted import planted_stream
    >>> reader_for([planted_stream(seed=1)]).query("Where does Mia live?", "planted")
    'Where does Mia live? lives moved settled'
    """
    sources = {instance.data_source for instance in instances}
    known = verbs_of(sources.pop()) if len(sources) == 1 else None
    return MemoisedAgent(ExtractiveReader(synonyms=known))


def _rarity(candidates: int, df: Mapping[_Key, int]) -> Callable[[_Key], float]:
    """Return the weight log(1 + N / df) of a word or concept in df of N candidates; df 0 counts as
    0.5."""
    return lambda key: math.log1p(candidates / (df.get(key) or 0.5))


@functools.lru_cache(maxsize=1024)
def _sentences(content: str) -> tuple[tuple[str, frozenset[str]], ...]:
    """Return the sentences with their terms: words unchanged, in lower case, and stemmed."""
    return tuple(
        (piece, frozenset({*_WORD.findall(piece), *words(piece), *map(_stem, words(piece))}))
        for sentence in sentences(content)
        for piece in _pieces(sentence)
    )


def _pieces(sentence: str) -> Iterator[str]:
    parts = sentence.split()
    if len(parts) <= MAX_SENTENCE_WORDS:
        yield sentence
        return
    for start in range(0, len(parts), MAX_SENTENCE_WORDS):
        yield " ".join(parts[start : start + MAX_SENTENCE_WORDS])


@functools.lru_cache(maxsize=1024)
def _examples(content: str) -> tuple[tuple[frozenset[str], str], ...]:
    return tuple((frozenset(words(text)), label) for text, label in labelled_examples(content))


@functools.lru_cache(maxsize=65536)
def _stem(word: str) -> str:
    return _SUFFIX.sub("", word)


def _ranks(task: ReadingTask) -> tuple[int, ...]:
    return task.written or (0,) * len(task.items)


def _answer_patterns(question: str) -> tuple[re.Pattern[str], ...]:
    lowered = question.lower()
    return next((spans for asked, spans in _TYPES if asked.search(lowered)), ())


def _new_spans(
    pattern: re.Pattern[str], sentence: str, asked: frozenset[str]
) -> list[re.Match[str]]:
    """Return the matches of a pattern that share no content word with the question."""
    found = []
    for match in pattern.finditer(sentence):
        content = [word for word in words(match[1]) if word not in STOPWORDS]
        if content and asked.isdisjoint(map(_stem, content)):
            found.append(match)
    return found


def _span(patterns: Sequence[re.Pattern[str]], sentence: str, asked: frozenset[str]) -> str:
    """Return the span of the type asked for nearest to the question's words.

    Without a type, return the new words if they are few and adjacent, else the sentence."""
    found = [(match, _stem(match[0].lower()) in asked) for match in _WORD.finditer(sentence)]
    shared = [match.start() for match, is_asked in found if is_asked]

    def distance(match: re.Match[str]) -> int:
        return sum(sorted(abs(start - match.start(1)) for start in shared)[:3])

    for pattern in patterns:
        if spans := _new_spans(pattern, sentence, asked):
            return min(spans, key=distance)[1]
    new = [m for m, is_asked in found if not is_asked and m[0].lower() not in STOPWORDS]
    if patterns or not new:
        return sentence
    rest = sentence[new[0].start() : new[-1].end()]
    return rest if len(words(rest)) == len(new) <= 4 else sentence
