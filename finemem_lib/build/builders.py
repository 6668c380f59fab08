"""Build Memalpha instances from the public raw sets.

The builders turn units (raw_sets) into instances: texts with questions, characters with events,
labelled examples, books. Sizes and wrappers follow Mem-alpha (arXiv 2509.25911, appendix, tables 6
to 8, and its public preparation script).

Differs from the paper: a language model is used only if the caller passes one. `closed_book` drops
the questions that a model answers without any text; without it no question is dropped. PerLTQA
answers are the raw set's own anchors of at most three words that occur in the text and not in the
question, where Mem-alpha uses GPT-4.1 to shorten the answers and to check them against the text;
questions about relationships are left out, because the set does not say which event answers them.
BookSum's keywords are words of the summary that occur in the text, names first, where Mem-alpha
uses GPT-4.1. Chunk sizes are counted in this library's tokens. Lead-ins and replies of the wrappers
are sentences of this library. The examples to label are drawn for every instance, where the
published instances use the hundred examples of MemoryAgentBench.
"""

from __future__ import annotations

import random
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from finemem_lib.build.raw_sets import PUBMED_LABELS, Book, Character, Example, Fact, raw_units
from finemem_lib.data.memalpha import (
    PROSE_TOKENS,
    Loaded,
    book_page,
    book_question,
    dialogue,
    packed,
)
from finemem_lib.data.sentences import STOPWORDS, sentences
from finemem_lib.reading import ReadingTask, ReasoningAgent
from finemem_lib.scoring import normalise, score
from finemem_lib.seeds import generator
from finemem_lib.text import TOKENIZER, count_tokens, words
from finemem_lib.trajectory import Chunk, Instance, Question

LEAD_INS = (
    "Here is something I read, please keep it:",
    "Please remember the following:",
    "I want you to know about this:",
    "Keep these notes for me:",
    "This may be asked about later:",
)

EXAMPLE_LEAD_INS = (
    "Please study these examples and their labels:",
    "Here is another batch of labelled examples:",
    "More examples with their labels to learn from:",
    "These examples show how the labels are used:",
)

REPLIES = (
    "Understood, I have noted this.",
    "Thanks, I will remember it.",
    "I have stored this.",
    "All right, saved for later.",
)

MAX_KEYWORDS = 20
"""Largest number of keywords per summary; Mem-alpha does not publish its number."""


@dataclass(frozen=True, slots=True)
class FactRule:
    """Rule for sets of texts with questions: texts in reading order fill the chunks.

    Attributes:
        data_source: Data source of the instances and their questions.
        chunk_tokens: Smallest and largest size of a chunk; a chunk is closed before the text that
            would exceed a size drawn between them.
        num_chunks: Largest number of chunks of an instance.
        instance_tokens: Number of tokens at which an instance gets no further chunk; `None` for no
            limit.
        cut_texts: Whether a text longer than its chunk is cut at a sentence end; otherwise it forms
            its own chunk.
        answer_tokens: Largest number of tokens of an answer; an answer must occur in the chunks,
            unless it is yes or no.
        min_asked: Smallest number of questions of an instance before filtering.
        min_kept: Smallest number of questions of an instance after filtering.
        max_kept: Largest number of questions of an instance; of more, a sample is kept.
    """

    data_source: str
    chunk_tokens: tuple[int, int] = (100, 2048)
    num_chunks: int = 10
    instance_tokens: int | None = None
    cut_texts: bool = False
    answer_tokens: int = 4
    min_asked: int = 50
    min_kept: int = 30
    max_kept: int = 100


@dataclass(frozen=True, slots=True)
class CharacterRule:
    """Rule for characters: one event with its dialogues per chunk.

    Attributes:
        data_source: Data source of the instances and their questions.
        max_chunks: Largest number of chunks of an instance.
        min_kept: Smallest number of usable questions of an instance.
        max_kept: Largest number of questions of an instance; of more, a sample is kept.
    """

    data_source: str = "perltqa"
    max_chunks: int = 30
    min_kept: int = 20
    max_kept: int = 100


@dataclass(frozen=True, slots=True)
class ExampleRule:
    """Rule for labelled examples: some are shown in chunks, unseen ones are asked.

    Attributes:
        data_source: Data source of the instances and their questions.
        chunk_tokens: Smallest and largest size of a chunk; a chunk is closed before the example
            that would exceed a size drawn between them.
        num_chunks: Number of chunks of an instance; `None`: as many as `shots` examples fill.
        shots: Number of examples of an instance, balanced over the labels; `None`: any number.
        text_only: Whether sizes count only the texts instead of the rendered examples.
        every_label: Whether one example of each label is appended to the first chunk.
        labels: Labels in the order of their numbers; `None`: numbered at random.
        num_instances: Number of instances, unless the caller gives a number.
        num_asked: Number of questions of an instance.
        shown_as: Template of an example, with {text} and {label}.
        asked_as: Template of a question, with {text}.
        before: Text at the beginning of every chunk.
    """

    data_source: str
    chunk_tokens: tuple[int, int]
    num_chunks: int | None = 10
    shots: int | None = None
    text_only: bool = False
    every_label: bool = False
    labels: tuple[str, ...] | None = None
    num_instances: int = 1
    num_asked: int = 100
    shown_as: str = "Sentence: {text}\nLabel: {label}"
    asked_as: str = "Sentence: {text}\nWhat are the labels for the above sentence?"
    before: str = ""


@dataclass(frozen=True, slots=True)
class BookRule:
    """Rule for books: sentences packed into chunks, dated 1 to 3 days apart.

    Attributes:
        data_source: Data source of the instances and their questions.
        min_chunks, max_chunks: Limits of the number of chunks; other texts are dropped.
    """

    data_source: str = "booksum"
    chunk_tokens: int = PROSE_TOKENS
    min_chunks: int = 5
    max_chunks: int = 20


Rule = FactRule | CharacterRule | ExampleRule | BookRule


@dataclass(frozen=True, slots=True)
class _Build:
    """The common arguments of all builders, and their messages."""

    raw_set: str
    seed: int
    closed_book: ReasoningAgent | None
    problems: list[str]

    def report(self, place: str, problem: str) -> None:
        self.problems.append(f"{self.raw_set}, {place}: {problem}")

    def rng(self, *parts: object) -> random.Random:
        return generator("builder", self.raw_set, self.seed, *parts)

    def instance(
        self,
        name: str,
        rule: Rule,
        category: str,
        texts: Sequence[str],
        asked: Sequence[tuple[str, str, tuple[int, ...] | None]],
        **metadata: Any,
    ) -> Instance:
        return Instance(
            f"{self.raw_set}-{name}",
            rule.data_source,
            category,
            tuple(Chunk(text, count_tokens(text)) for text in texts),
            tuple(
                Question(f"q-{number}", question, (answer,), rule.data_source, None, steps)
                for number, (question, answer, steps) in enumerate(asked, start=1)
            ),
            metadata={
                "text_source": self.raw_set,
                "chunked_in": TOKENIZER,
                "seed": self.seed,
                **metadata,
            },
        )

    def unknown(self, facts: Sequence[Fact], data_source: str) -> list[Fact]:
        """Return the facts that the closed-book reader cannot answer without text."""
        if self.closed_book is None:
            return list(facts)
        tasks = [ReadingTask(fact.question, data_source, ()) for fact in facts]
        return [
            fact
            for fact, reading in zip(facts, self.closed_book.read(tasks), strict=True)
            if not score(reading.answer, (fact.answer,), data_source)
        ]


@dataclass(slots=True)
class _Filling:
    """Chunks of given sizes, filled with texts; `steps` maps each text to its step."""

    sizes: Sequence[int]
    build: _Build
    cut_texts: bool
    chunks: list[list[str]] = field(default_factory=list)
    steps: dict[str, int] = field(default_factory=dict)
    left: int = 0

    def place(self, texts: Sequence[str]) -> bool:
        """Add new texts to the current chunk or the next ones, and return whether they fit.

        If a text does not fit into the remaining chunks, nothing is changed."""
        before = [list(chunk) for chunk in self.chunks], dict(self.steps), self.left
        for text in texts:
            if text not in self.steps and not self._place_one(text):
                self.chunks, self.steps, self.left = before
                return False
        return True

    def _place_one(self, text: str) -> bool:
        placed, tokens = text, count_tokens(text)
        if not self.chunks or tokens > self.left:
            if len(self.chunks) == len(self.sizes):
                return False
            self.left = self.sizes[len(self.chunks)]
            self.chunks.append([])
            if self.cut_texts:
                placed = _head(text, self.left)
        self.chunks[-1].append(placed)
        self.steps[text] = len(self.chunks)
        self.left -= tokens
        return True


def _head(text: str, limit: int) -> str:
    """Return the first sentences of a text that fit into `limit` tokens, at least one."""
    end = size = 0
    for sentence in sentences(text):
        size += count_tokens(sentence)
        if end and size > limit:
            break
        end = text.index(sentence, end) + len(sentence)
    return text[:end]


def _from_facts(
    facts: Sequence[Fact], rule: FactRule, build: _Build, number: int | None
) -> Iterator[Instance]:
    start = made = 0
    while start < len(facts) and made != number:
        rng = build.rng(start)
        filling = _Filling(_drawn_sizes(rule, rng), build, rule.cut_texts)
        end = start
        while end < len(facts) and filling.place(facts[end].texts):
            end += 1
        end = max(end, start + 1)  # skip a fact that fits into no chunk
        texts = ["\n\n".join(chunk) for chunk in filling.chunks]
        whole = "\n".join(texts)
        kept = [
            fact
            for fact in facts[start:end]
            if count_tokens(fact.answer) <= rule.answer_tokens
            and (
                fact.answer.lower() in ("yes", "no")
                or score(whole, (fact.answer,), rule.data_source)
            )
        ]
        if end - start >= rule.min_asked and len(kept) >= rule.min_kept:
            kept = build.unknown(kept, rule.data_source)
        if end - start < rule.min_asked or len(kept) < rule.min_kept:
            build.report(
                f"questions {start + 1} to {end}",
                f"{end - start} on {len(texts)} chunks, {len(kept)} of them usable, expected at "
                f"least {rule.min_asked} and {rule.min_kept}; left out",
            )
        else:
            made += 1
            yield build.instance(
                str(start + 1),
                rule,
                "AR",
                _wrapped(texts, LEAD_INS, rng),
                [
                    (
                        fact.question,
                        fact.answer,
                        tuple(sorted({filling.steps[text] for text in fact.texts})),
                    )
                    for fact in _sampled(kept, rule.max_kept, rng)
                ],
            )
        start = end


def _drawn_sizes(rule: FactRule, rng: random.Random) -> list[int]:
    sizes: list[int] = []
    while len(sizes) < rule.num_chunks and (
        rule.instance_tokens is None or sum(sizes) < rule.instance_tokens
    ):
        sizes.append(rng.randint(*rule.chunk_tokens))
    return sizes


def _from_characters(
    characters: Sequence[Character], rule: CharacterRule, build: _Build, number: int | None
) -> Iterator[Instance]:
    made = 0
    for one in characters:
        if made == number:
            return
        events = dict(list(one.chunks.items())[: rule.max_chunks])
        steps = {event: step for step, event in enumerate(events, start=1)}
        whole = "\n".join(events.values())
        asked = []
        for event, question, anchors in one.asked:
            parts = [
                part
                for part in anchors
                if score(whole, (part,), rule.data_source)
                and not score(question, (part,), rule.data_source)
            ]
            if event in steps and parts:
                asked.append((question, "; ".join(parts), (steps[event],)))
        if len(asked) < rule.min_kept:
            build.report(
                f"character {one.name}",
                f"{len(asked)} of {len(one.asked)} questions usable on {len(events)} events, "
                f"expected at least {rule.min_kept}; left out",
            )
            continue
        made += 1
        yield build.instance(
            one.name,
            rule,
            "AR",
            list(events.values()),
            _sampled(asked, rule.max_kept, build.rng(one.name)),
        )


def _from_examples(
    examples: Sequence[Example], rule: ExampleRule, build: _Build, number: int | None
) -> Iterator[Instance]:
    names = list(rule.labels or sorted({one.label for one in examples}))
    if not rule.labels:
        build.rng("labels").shuffle(names)
    labels = {name: str(number) for number, name in enumerate(names)}
    pool = [one for one in examples if one.shown]
    unseen = [one for one in examples if not one.shown]

    def rendered(one: Example) -> str:
        return rule.shown_as.format(text=one.text, label=labels[one.label])

    for place in range(rule.num_instances if number is None else number):
        rng = build.rng(place)
        drawn = _drawn(pool, rng)
        chunks, shown = _filled(
            drawn if rule.shots is None else _balanced(pool, rule.shots, rng),
            rendered,
            rule,
            build,
            rng,
        )
        if not chunks or rule.num_chunks not in (None, len(chunks)):
            build.report(
                f"instance {place + 1} and all after it",
                f"{len(pool)} examples fill {len(chunks)} chunks, expected "
                f"{rule.num_chunks or 'one'}; left out",
            )
            return
        if rule.shots is not None and len(shown) < rule.shots:
            build.report(
                f"instance {place + 1}", f"shows {len(shown)} examples, expected {rule.shots}"
            )
        if rule.every_label:
            each_label = {one.label: one for one in _drawn(pool, rng)}.values()
            shown += each_label
            chunks[0] += map(rendered, each_label)
        asked = _unshown(_drawn(unseen, rng) if unseen else drawn, shown, rule.num_asked)
        if len(asked) < rule.num_asked:
            build.report(
                f"instance {place + 1} and all after it",
                f"{len(asked)} examples are left to ask, expected {rule.num_asked}; left out",
            )
            return
        yield build.instance(
            str(place + 1),
            rule,
            "TTL",
            _wrapped([rule.before + "\n\n".join(chunk) for chunk in chunks], EXAMPLE_LEAD_INS, rng),
            [(rule.asked_as.format(text=one.text), labels[one.label], None) for one in asked],
            label_map=labels,
        )


def _unshown(examples: Iterable[Example], shown: Sequence[Example], number: int) -> list[Example]:
    """Return the first `number` examples whose text was not shown and whose label was."""
    texts, labels = {normalise(one.text) for one in shown}, {one.label for one in shown}
    found: list[Example] = []
    for one in examples:
        if len(found) == number:
            break
        if normalise(one.text) not in texts and one.label in labels:
            texts.add(normalise(one.text))
            found.append(one)
    return found


def _filled(
    examples: Iterable[Example],
    rendered: Callable[[Example], str],
    rule: ExampleRule,
    build: _Build,
    rng: random.Random,
) -> tuple[list[list[str]], list[Example]]:
    """Return rendered examples by chunk, and the examples.

    With a fixed number of chunks, an incomplete last chunk is dropped."""
    chunks: list[list[str]] = []
    shown: list[Example] = []
    left = 0
    for one in examples:
        tokens = count_tokens(one.text if rule.text_only else rendered(one))
        if not chunks or tokens > left:
            if len(chunks) == rule.num_chunks:
                return chunks, shown
            chunks.append([])
            left = rng.randint(*rule.chunk_tokens)
        chunks[-1].append(rendered(one))
        shown.append(one)
        left -= tokens
    return (chunks if rule.num_chunks is None else chunks[:-1]), shown


def _drawn(pool: Sequence[Example], rng: random.Random) -> Iterator[Example]:
    """Yield the pool in random order, shuffling lazily."""
    moved: dict[int, int] = {}
    for last in range(len(pool) - 1, -1, -1):
        place = rng.randint(0, last)
        yield pool[moved.get(place, place)]
        moved[place] = moved.get(last, last)


def _balanced(pool: Sequence[Example], shots: int, rng: random.Random) -> list[Example]:
    """Return `shots` examples in random order, balanced over the labels as far as possible."""
    by_label = defaultdict(list)
    for one in _drawn(pool, rng):
        by_label[one.label].append(one)
    by_turn = sorted(
        ((turn, label) for label, ones in by_label.items() for turn in range(len(ones)))
    )
    chosen = [by_label[label][turn] for turn, label in by_turn[:shots]]
    rng.shuffle(chosen)
    return chosen


def _from_books(
    books: Sequence[Book], rule: BookRule, build: _Build, number: int | None
) -> Iterator[Instance]:
    made = 0
    for place, book in enumerate(books, start=1):
        if made == number:
            return
        texts = packed(sentences(book.text), rule.chunk_tokens, " ")
        found = keywords(book.summary, book.text)
        if not rule.min_chunks <= len(texts) <= rule.max_chunks or not found:
            build.report(
                f"text {place} ({book.title:.40})",
                f"{len(texts)} chunks and {len(found)} keywords, expected {rule.min_chunks} to "
                f"{rule.max_chunks} and at least 1; left out",
            )
            continue
        rng = build.rng(place)
        days = [0]
        for _ in texts[1:]:
            days.append(days[-1] + rng.randint(1, 3))
        made += 1
        yield build.instance(
            str(place),
            rule,
            "LRU",
            list(map(book_page, days, texts)),
            [(book_question(days[-1]), ", ".join(found), None)],
            title=book.title,
            summary=book.summary,
        )


def keywords(summary: str, text: str) -> list[str]:
    """Return words of a summary that occur in the text: names first, then the most frequent words.

    Args:
        summary: The summary.
        text: The text.

    >>> keywords("Captain Ahab hunts a whale. The whale wins.", "the whale and Captain Ahab")
    ['Captain', 'Ahab', 'whale']
    """
    known = set(words(text))
    found = re.findall(r"[^\W\d_]{4,}", summary)
    counts = Counter(word.lower() for word in found)
    lower = {word for word in found if word.islower()}
    first = {word.lower(): (place, word) for place, word in reversed(list(enumerate(found)))}
    ranked = sorted(
        (word in lower, -counts[word], place, spelled)
        for word, (place, spelled) in first.items()
        if word in known and word not in STOPWORDS
    )
    return [spelled for *_, spelled in ranked[:MAX_KEYWORDS]]


def _wrapped(texts: Iterable[str], lead_ins: Sequence[str], rng: random.Random) -> list[str]:
    return [
        dialogue(day, rng.choice(lead_ins), text, rng.choice(REPLIES))
        for day, text in enumerate(texts)
    ]


def _sampled(items: Sequence[Any], limit: int, rng: random.Random) -> list[Any]:
    """Return a random sample of at most `limit` items, in their order."""
    places = range(len(items))
    return [items[one] for one in sorted(rng.sample(places, min(limit, len(items))))]


def _short_chunks(data_source: str, num_instances: int) -> ExampleRule:
    """Return the rule of Memalpha's intents and question types."""
    return ExampleRule(
        data_source, (200, 200), text_only=True, every_label=True, num_instances=num_instances
    )


def _all_shots(data_source: str, shots: int) -> ExampleRule:
    """Return the rule of MemoryAgentBench, with all shots in one instance."""
    return ExampleRule(data_source, (1024, 1024), num_chunks=None, shots=shots)


RULES: dict[str, Rule] = {
    "squad": FactRule("squad"),
    "hotpotqa": FactRule(
        "hotpotqa",
        num_chunks=20,
        instance_tokens=10_000,
        cut_texts=True,
        min_asked=30,
        min_kept=10,
    ),
    "perltqa": CharacterRule(),
    "pubmed-rct": ExampleRule(
        "pubmed-rct",
        (1024, 2048),
        num_instances=100,
        labels=PUBMED_LABELS,
        shown_as="Sample: {text}\n\nLabels: {label}",
        before="\n",
        asked_as="Sentence: {text}\n\nWhat are the labels for the above medical abstract sentence?",
    ),
    "nlu": _short_chunks("icl_nlu_8296shot_balance", num_instances=69),
    "trec_coarse": _short_chunks("icl_trec_coarse_6600shot_balance", num_instances=71),
    "trec_fine": _all_shots("icl_trec_fine_6400shot_balance", shots=6400),
    "clinc150": _all_shots("icl_clinic150_7050shot_balance", shots=7050),
    "banking77": _all_shots("icl_banking77_5900shot_balance", shots=5900),
    "booksum": BookRule(),
}
"""The rules by raw set that give the published sizes; change a rule with `dataclasses.replace`.
SQuAD, HotpotQA, PerLTQA, PubMed-RCT, NLU, TREC coarse and BookSum follow Memalpha; TREC fine,
CLINC150 and Banking77 follow MemoryAgentBench, with all shots in one instance."""


def build_instances(
    raw_set: str,
    sources: Sequence[str | Path],
    asked: Sequence[str | Path] = (),
    *,
    rule: Rule | None = None,
    num_instances: int | None = None,
    seed: int = 0,
    closed_book: ReasoningAgent | None = None,
    on_error: Literal["raise", "skip"] = "raise",
) -> Loaded:
    """Return Memalpha instances built from a public raw set.

    Args:
        raw_set: A name in `RULES`.
        sources: Files of the set (JSON, JSON lines, parquet, CSV, or lines of text) or hub names.
        asked: Separate files of questions, if the set has them: PerLTQA's questions, the test split
            of a labelled set. Without them, the questions use examples that the instance does not
            show.
        rule: Sizes and wrappers; `None`: the rule of the set.
        num_instances: Largest number of instances, at least 1; `None`: as many as the texts or the
            rule give.
        seed: Seed of sizes, samples and labels.
        closed_book: A reader; questions that it answers without any text are dropped. `None` drops
            none.
        on_error: Whether a broken row raises or is skipped with a message.

    Returns:
        The instances; `problems` states why rows or incomplete instances were left out.

    Raises:
        ValueError: the name is unknown, a file is missing or cannot be read, nothing could be
            built, or (unless `on_error` is "skip") a row is broken; the message names file, row and
            field.
    """
    rule = _checked_rule(raw_set, rule)
    _check_files(raw_set, rule, sources, asked)
    _check_limits(num_instances, on_error)
    units, problems = raw_units(raw_set, sources, asked, on_error)
    build = _Build(raw_set, seed, closed_book, problems)
    builder: Any = {
        FactRule: _from_facts,
        CharacterRule: _from_characters,
        ExampleRule: _from_examples,
        BookRule: _from_books,
    }[type(rule)]
    instances = tuple(builder(units, rule, build, num_instances))
    if not instances:
        nothing = (
            f"build_instances: no instance of {raw_set} from {len(units)} units of "
            f"{', '.join(map(str, sources))}, give more of the set or a rule that asks for less"
        )
        raise ValueError("; ".join([nothing, *problems[:3]]))
    return Loaded(instances, tuple(problems))


def _checked_rule(raw_set: str, rule: Rule | None) -> Rule:
    if raw_set not in RULES:
        raise ValueError(
            f"build_instances: raw set {raw_set!r}, expected one of {', '.join(RULES)}"
        )
    if rule is None:
        return RULES[raw_set]
    if type(rule) is not type(RULES[raw_set]):
        raise ValueError(
            f"build_instances: rule of {raw_set} is a {type(rule).__name__}, expected a "
            f"{type(RULES[raw_set]).__name__}; change the rule of the set with dataclasses.replace"
        )
    return rule


def _check_limits(num_instances: int | None, on_error: str) -> None:
    if num_instances is not None and num_instances < 1:
        raise ValueError(
            f"build_instances: num_instances is {num_instances!r}, expected 1 or more, or None"
        )
    if on_error not in ("raise", "skip"):
        raise ValueError(f'build_instances: on_error is {on_error!r}, expected "raise" or "skip"')


def _check_files(
    raw_set: str, rule: Rule, sources: Sequence[str | Path], asked: Sequence[str | Path]
) -> None:
    needs, takes = isinstance(rule, CharacterRule), isinstance(rule, (CharacterRule, ExampleRule))
    if not sources or needs > bool(asked) or bool(asked) > takes:
        raise ValueError(
            f"build_instances: got {len(sources)} sources and {len(asked)} files in `asked`; "
            f"{raw_set} needs at least one source and "
            + ("at least one" if needs else "may have some" if takes else "no")
            + " file in `asked`"
        )
