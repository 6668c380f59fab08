"""Planted streams: generated facts, changed facts, noise and questions with known ground truth.

Each chunk mixes fact sentences about people with noise sentences. A fact fills a slot (person,
attribute) or changes it; a question asks for the latest value of a slot, so the step that stated
that value is the true evidence of the answer. Sentences are short.

There are two worlds. In the plain world the first word of a sentence separates noise from facts,
because a small causal model selects a sentence to copy by its first word; every question asks for
one slot. In the paraphrased world facts and noise share first words and word orders, only the verb
separates them, and some questions ask for the slots of two people.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from finemem_lib.seeds import generator, stable_seed
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question

World = Literal["plain", "paraphrased"]

DATA_SOURCES: dict[World, str] = {"plain": "planted", "paraphrased": "planted-paraphrased"}
DATA_SOURCE = DATA_SOURCES["plain"]

NAMES = tuple(
    "Mia Ana Leo Ben Eva Ida Max Tom Zoe Kai Uma Raj Liv Sam Ada Gus Fay Hal Joy Ned Ola Pia Rex "
    "Sue".split()
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One kind of fact.

    Attributes:
        verbs: Verb phrases that state the fact.
        paraphrases: Templates that also state it in the paraphrased world, see `wording`.
        question: The question, with {person}.
        pair_question: The question about two people, with {person} for "Mia and Ana".
        cue: The verb of the questions, of which the verbs above are synonyms.
    """

    verbs: tuple[str, ...]
    paraphrases: tuple[str, ...]
    question: str
    pair_question: str
    cue: str
    values: tuple[str, ...]


ATTRIBUTES: dict[str, Attribute] = {
    "home": Attribute(
        verbs=("lives in", "moved to", "settled near"),
        paraphrases=(
            "{others} welcome {person} in {value}",
            "{adverb} {value} houses {person}",
        ),
        question="Where does {person} live?",
        pair_question="Where do {person} live?",
        cue="live",
        values=tuple(
            "Rome Oslo Lima Cairo Delhi Paris Quito Tokyo Perth Milan Dakar Turin Seoul Berlin "
            "Lagos Vienna".split()
        ),
    ),
    "study": Attribute(
        verbs=("studies", "researches", "lectures on"),
        paraphrases=(
            "{others} hear {person} on {value}",
            "{adverb} {value} occupies {person}",
        ),
        question="What does {person} study?",
        pair_question="What do {person} study?",
        cue="study",
        values=tuple(
            "physics law music botany history logic geology optics ethics poetry algebra anatomy "
            "ecology drama genetics rhetoric".split()
        ),
    ),
    "pet": Attribute(
        verbs=("owns", "adopted", "feeds"),
        paraphrases=(
            "{others} meet {person} with {value}",
            "{adverb} {value} obey {person}",
        ),
        question="Which pet does {person} keep?",
        pair_question="Which pets do {person} keep?",
        cue="keep",
        values=tuple(
            "cats dogs geese parrots rabbits ponies lizards hamsters turtles ferrets goats finches "
            "beetles llamas snails doves".split()
        ),
    ),
}

NOISE_ADVERBS = ("Yesterday", "Once", "Today", "Perhaps")
NOISE_VERBS = ("visited", "saw", "mentioned", "discussed", "painted", "dreamt about")
NOISE_SUBJECTS = ("Buses left for", "Trains passed", "Rumours reached", "Letters praised")

ADVERBS = ("Lately", "Finally", "Today", "Apparently")
OTHERS = ("Friends", "Students", "Neighbours")
PARAPHRASED_NOISE = (
    *(f"{{person}} {verb} {{value}}" for verb in NOISE_VERBS),
    "{others} told {person} about {value}",
    "{others} asked {person} about {value}",
    "{adverb} {value} bored {person}",
    "{adverb} {value} amused {person}",
)
"""Noise templates of the paraphrased world; each word order is as frequent as among the facts."""


def verb_of(template: str) -> str:
    """Return the verb of a template: the first word that is not a placeholder.

    Args:
        template: A sentence with placeholders in braces.

    >>> verb_of("{others} welcome {person} in {value}")
    'welcome'
    """
    return next(word for word in template.split() if not word.startswith("{"))


def with_adverbs(templates: Sequence[str]) -> tuple[str, ...]:
    """Return every template twice, the second time with {adverb} in front if it begins {person}.

    Args:
        templates: Sentences with placeholders in braces.

    >>> with_adverbs(["{person} owns {value}"])
    ('{person} owns {value}', '{adverb} {person} owns {value}')
    """
    return tuple(
        front + template
        for template in templates
        for front in ("", "{adverb} " if template.startswith("{person}") else "")
    )


_PLAIN = {
    name: tuple(f"{{person}} {verb} {{value}}" for verb in attribute.verbs)
    for name, attribute in ATTRIBUTES.items()
}

TEMPLATES: dict[World, dict[str, tuple[str, ...]]] = {
    "plain": _PLAIN,
    "paraphrased": {
        name: with_adverbs((*_PLAIN[name], *attribute.paraphrases))
        for name, attribute in ATTRIBUTES.items()
    },
}
"""Templates of the fact sentences, by world and attribute, see `wording`."""

VERBS: dict[str, dict[str, tuple[str, ...]]] = {
    DATA_SOURCES[world]: {
        ATTRIBUTES[name].cue: tuple(dict.fromkeys(map(verb_of, templates)))
        for name, templates in facts.items()
    }
    for world, facts in TEMPLATES.items()
}
"""The verbs that answer a question, by data source and cue; a reader may use them as synonyms."""

SYNONYMS = VERBS[DATA_SOURCE]
"""The verbs of the plain world, by cue."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Shape of a planted stream.

    Attributes:
        num_chunks: Number of chunks, at least 1.
        people: Number of people, at least 1; each has 3 slots, one per attribute.
        max_facts: Largest number of facts per chunk, 1 to 3; each chunk draws 1 to `max_facts`.
        max_noise: Largest number of noise sentences per chunk, 1 to 20; drawn likewise.
        change_rate: Probability, in [0, 1], that a fact changes a filled slot instead of filling a
            free one; without a free slot every fact changes one.
        names: Names to draw the people from.
        world: "plain" or "paraphrased", see the module's docstring.
    """

    num_chunks: int = 6
    people: int = 4
    max_facts: int = 3
    max_noise: int = 3
    change_rate: float = 0.4
    names: tuple[str, ...] = NAMES
    world: World = "plain"


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact sentence and the slot it sets.

    Attributes:
        sentence: The sentence, without full stop.
        person, attribute: The slot.
        value: The slot's new value.
        changed: Whether the slot already had a value.
    """

    sentence: str
    person: str
    attribute: str
    value: str
    changed: bool


def planted_stream(seed: int, settings: StreamSettings | None = None) -> Instance:
    """Return one generated instance.

    The chunk questions of step t ask for the facts of chunk t; the global questions ask once for
    the latest value of every filled slot. In the paraphrased world one question per attribute asks
    for the slots of two people with different values, if there are two, and the answer must contain
    both values. `metadata["facts"]` holds, per chunk, one record per fact sentence.

    Args:
        seed: Seed of all draws; the result does not depend on the machine.
        settings: Shape of the stream; `None`: the defaults.

    Raises:
        ValueError: a setting is out of range.

    >>> instance = planted_stream(seed=1)
    >>> len(instance.chunks), instance.questions[0].evidence_steps is not None
    (6, True)
    """
    settings = settings or StreamSettings()
    _check(settings)
    rng = generator("planted", seed)
    people = rng.sample(settings.names, settings.people)
    state: dict[tuple[str, str], tuple[str, int]] = {}
    chunks, chunk_questions, facts_by_chunk = [], [], []
    for step in range(1, settings.num_chunks + 1):
        facts = draw_facts(rng, settings, people, state, step)
        number = rng.randint(1, settings.max_noise)
        noise = [noise_sentence(rng, people, settings.world) for _ in range(number)]
        lines = [fact.sentence for fact in facts] + noise
        rng.shuffle(lines)
        text = " ".join(f"{line}." for line in lines)
        chunks.append(Chunk(text=text, tokens=count_tokens(text)))
        chunk_questions.append(_of_chunk(facts, settings.world, step))
        facts_by_chunk.append([dataclasses.asdict(fact) for fact in facts])
    asked = [(attribute, {person: held}) for (person, attribute), held in state.items()]
    if settings.world == "paraphrased":
        asked = _paired(rng, asked)
    questions = tuple(
        _question(f"q-{number}", attribute, held, settings.world)
        for number, (attribute, held) in enumerate(asked, start=1)
    )
    source = DATA_SOURCES[settings.world]
    return Instance(
        instance_id=f"{source}-{seed}",
        data_source=source,
        category="AR",
        chunks=tuple(chunks),
        questions=questions,
        chunk_questions=tuple(chunk_questions),
        metadata={"seed": seed, "facts": facts_by_chunk},
    )


def draw_facts(
    rng: random.Random,
    settings: StreamSettings,
    people: list[str],
    state: dict[tuple[str, str], tuple[str, int]],
    step: int,
) -> list[Fact]:
    """Draw the facts of one chunk (each slot at most once) and write them into `state`.

    Args:
        rng: Source of all draws.
        settings: Shape of the stream.
        people: People of the stream.
        state: Value of every filled slot with the step that stated it; changed in place.
        step: Number of the chunk, from 1.
    """
    facts: list[Fact] = []
    touched: set[tuple[str, str]] = set()
    for _ in range(rng.randint(1, settings.max_facts)):
        slots = [(person, attribute) for person in people for attribute in ATTRIBUTES]
        free = [slot for slot in slots if slot not in state]
        live = [slot for slot in slots if slot in state and slot not in touched]
        change = bool(live) and (not free or rng.random() < settings.change_rate)
        if not change and not free:
            break
        person, attribute = slot = rng.choice(live if change else free)
        old = state[slot][0] if change else None
        spec = ATTRIBUTES[attribute]
        value = rng.choice([value for value in spec.values if value != old])
        sentence = wording(rng, TEMPLATES[settings.world][attribute], person, value)
        facts.append(Fact(sentence, person, attribute, value, change))
        state[slot] = (value, step)
        touched.add(slot)
    return facts


def wording(rng: random.Random, templates: tuple[str, ...], person: str, value: str) -> str:
    """Return a random template with its placeholders filled; {others} and {adverb} are drawn.

    Args:
        rng: Source of all draws.
        templates: Sentences with {person} and {value}, and optionally {adverb} or {others}.
        person: The text for {person}.
        value: The text for {value}.

    >>> wording(random.Random(1), ("{others} hear {person} on {value}",), "Mia", "law")
    'Neighbours hear Mia on law'
    """
    template = rng.choice(templates)
    draws = {
        name: rng.choice(words)
        for name, words in (("adverb", ADVERBS), ("others", OTHERS))
        if f"{{{name}}}" in template
    }
    return template.format(person=person, value=value, **draws)


def noise_sentence(rng: random.Random, people: list[str], world: World) -> str:
    """Return a sentence that states no fact.

    Args:
        rng: Source of all draws.
        people: Names that may occur in the sentence.
        world: The world, which selects the templates.
    """
    value = rng.choice(ATTRIBUTES[rng.choice(list(ATTRIBUTES))].values)
    if world == "paraphrased":
        return wording(rng, with_adverbs(PARAPHRASED_NOISE), rng.choice(people), value)
    if rng.random() < 0.8:
        return f"{rng.choice(NOISE_ADVERBS)} {rng.choice(people)} {rng.choice(NOISE_VERBS)} {value}"
    return f"{rng.choice(NOISE_SUBJECTS)} {value}"


def _paired(
    rng: random.Random, asked: list[tuple[str, dict[str, tuple[str, int]]]]
) -> list[tuple[str, dict[str, tuple[str, int]]]]:
    """Merge, per attribute, the questions about two random people with different values, if any."""
    for attribute in ATTRIBUTES:
        places = [place for place, (name, _) in enumerate(asked) if name == attribute]
        value = {place: next(iter(asked[place][1].values()))[0] for place in places}
        differ = [
            two for two in itertools.combinations(places, 2) if len({*map(value.get, two)}) > 1
        ]
        if differ:
            first, second = rng.choice(differ)
            asked[first][1].update(asked.pop(second)[1])
    return asked


def _of_chunk(facts: Sequence[Fact], world: World, step: int) -> tuple[Question, ...]:
    return tuple(
        _question(
            f"chunk-{step}-{number}",
            fact.attribute,
            {fact.person: (fact.value, step)},
            world,
            step,
        )
        for number, fact in enumerate(facts, start=1)
    )


def _question(
    name: str,
    attribute: str,
    held: dict[str, tuple[str, int]],
    world: World,
    step: int | None = None,
) -> Question:
    """Return the question for an attribute of the people in `held`, which holds (value, step)."""
    spec = ATTRIBUTES[attribute]
    text = spec.question if len(held) == 1 else spec.pair_question
    return Question(
        question_id=name,
        text=text.format(person=" and ".join(held)),
        answers=("; ".join(value for value, _ in held.values()),),
        data_source=DATA_SOURCES[world],
        step=step,
        evidence_steps=tuple(sorted({stated for _, stated in held.values()})),
    )


def _check(settings: StreamSettings) -> None:
    limits = {
        "num_chunks": (1, 100_000),
        "people": (1, len(settings.names)),
        "max_facts": (1, 3),
        "max_noise": (1, 20),
        "change_rate": (0.0, 1.0),
    }
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f"planted stream: {name} is {value!r}, expected {low} to {high}")


def planted_instances(
    split: Literal["train", "held-out"],
    count: int,
    seed: int,
    stream: StreamSettings | None = None,
) -> list[Instance]:
    """Return planted streams with different seeds.

    Args:
        split: "train" or "held-out"; the two splits use different stream seeds.
        count: Number of streams.
        seed: Seed from which the stream seeds are derived.
        stream: Shape of the streams; `None`: the defaults.
    """
    return [planted_stream(stable_seed(seed, split, number), stream) for number in range(count)]
