"""Generated streams whose truth is known: facts, changed facts, noise and questions.

Each chunk mixes fact sentences about people with noise sentences. A fact fills a slot (person,
attribute) or changes it; a question asks for the latest value of a slot, so the step that wrote
that value is the step that truly earned the answer. Sentences are short, and noise can be told
from fact by its first word, because a causal copier of a few layers chooses a sentence by that
word.
"""

from __future__ import annotations

import dataclasses
import random
from dataclasses import dataclass
from typing import Literal

from finemem_lib.seeds import generator, stable_seed
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question

DATA_SOURCE = "planted"

NAMES = tuple(
    "Mia Ana Leo Ben Eva Ida Max Tom Zoe Kai Uma Raj Liv Sam Ada Gus Fay Hal Joy Ned Ola Pia Rex "
    "Sue".split()
)


@dataclass(frozen=True, slots=True)
class Attribute:
    """One kind of fact.

    Attributes:
        verbs: Verb phrases that state it.
        question: What asks for it, with {person}.
        cue: The word of the question that the verbs are synonyms of.
        values: The values it can take.
    """

    verbs: tuple[str, ...]
    question: str
    cue: str
    values: tuple[str, ...]


ATTRIBUTES: dict[str, Attribute] = {
    "home": Attribute(
        verbs=("lives in", "moved to", "settled near"),
        question="Where does {person} live?",
        cue="live",
        values=tuple(
            "Rome Oslo Lima Cairo Delhi Paris Quito Tokyo Perth Milan Dakar Turin Seoul Berlin "
            "Lagos Vienna".split()
        ),
    ),
    "study": Attribute(
        verbs=("studies", "researches", "lectures on"),
        question="What does {person} study?",
        cue="study",
        values=tuple(
            "physics law music botany history logic geology optics ethics poetry algebra anatomy "
            "ecology drama genetics rhetoric".split()
        ),
    ),
    "pet": Attribute(
        verbs=("owns", "adopted", "feeds"),
        question="Which pet does {person} keep?",
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

SYNONYMS: dict[str, tuple[str, ...]] = {
    attribute.cue: tuple(verb.split()[0] for verb in attribute.verbs)
    for attribute in ATTRIBUTES.values()
}
"""The verbs that answer each question: what a reader of this stream may know about English."""


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """Shape of a planted stream.

    Attributes:
        num_chunks: Chunks, at least 1.
        people: People, at least 1; with 3 attributes each they bound the number of slots.
        max_facts: Facts per chunk, drawn from 1 to this (at most 3).
        max_noise: Noise sentences per chunk, drawn from 1 to this (at most 20).
        change_rate: Probability that a fact changes a filled slot instead of filling a new one
            (always when none is free).
        names: Names that the people are drawn from.
    """

    num_chunks: int = 6
    people: int = 4
    max_facts: int = 3
    max_noise: int = 3
    change_rate: float = 0.4
    names: tuple[str, ...] = NAMES


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact sentence and the slot it sets.

    Attributes:
        sentence: The sentence, without full stop.
        person, attribute: The slot.
        value: What the slot holds from now on.
        changed: Whether the slot had another value before.
    """

    sentence: str
    person: str
    attribute: str
    value: str
    changed: bool


def planted_stream(seed: int, settings: StreamSettings | None = None) -> Instance:
    """Generate one instance of the stream.

    The chunk questions of step t ask for the facts of chunk t; the global questions ask for the
    latest value of every slot ever filled. `metadata["facts"]` holds, per chunk, one record per
    fact sentence.

    Args:
        seed: The same seed and settings give the same instance on every machine.
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
        facts = _facts(rng, settings, people, state, step)
        noise = [_noise(rng, people) for _ in range(rng.randint(1, settings.max_noise))]
        lines = [fact.sentence for fact in facts] + noise
        rng.shuffle(lines)
        text = " ".join(f"{line}." for line in lines)
        chunks.append(Chunk(text=text, tokens=count_tokens(text)))
        chunk_questions.append(
            tuple(
                _question(
                    f"chunk-{step}-{number}", fact.person, fact.attribute, fact.value, step, step
                )
                for number, fact in enumerate(facts, start=1)
            )
        )
        facts_by_chunk.append([dataclasses.asdict(fact) for fact in facts])
    questions = tuple(
        _question(f"q-{number}", person, attribute, value, step, None)
        for number, ((person, attribute), (value, step)) in enumerate(state.items(), start=1)
    )
    return Instance(
        instance_id=f"planted-{seed}",
        data_source=DATA_SOURCE,
        category="AR",
        chunks=tuple(chunks),
        questions=questions,
        chunk_questions=tuple(chunk_questions),
        metadata={"seed": seed, "facts": facts_by_chunk},
    )


def _facts(
    rng: random.Random,
    settings: StreamSettings,
    people: list[str],
    state: dict[tuple[str, str], tuple[str, int]],
    step: int,
) -> list[Fact]:
    """Draw the facts of one chunk (each slot at most once) and write them into `state`."""
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
        sentence = f"{person} {rng.choice(spec.verbs)} {value}"
        facts.append(Fact(sentence, person, attribute, value, change))
        state[slot] = (value, step)
        touched.add(slot)
    return facts


def _noise(rng: random.Random, people: list[str]) -> str:
    value = rng.choice(ATTRIBUTES[rng.choice(list(ATTRIBUTES))].values)
    if rng.random() < 0.8:
        return f"{rng.choice(NOISE_ADVERBS)} {rng.choice(people)} {rng.choice(NOISE_VERBS)} {value}"
    return f"{rng.choice(NOISE_SUBJECTS)} {value}"


def _question(
    name: str, person: str, attribute: str, value: str, evidence: int, step: int | None
) -> Question:
    return Question(
        question_id=name,
        text=ATTRIBUTES[attribute].question.format(person=person),
        answers=(value,),
        data_source=DATA_SOURCE,
        step=step,
        evidence_steps=(evidence,),
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
        split: Which of the two sets of seeds; they share none.
        count: Number of streams.
        seed: Seed of the set.
        stream: Shape of the streams; `None`: the defaults.
    """
    return [planted_stream(stable_seed(seed, split, number), stream) for number in range(count)]
