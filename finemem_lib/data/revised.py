"""Generated streams of facts that are revised; the questions ask for the last values.

They are planted streams (`planted`). Each slot (person, attribute) is set once and then revised a
given number of times, at random steps, each time to a value that it never had. There are three
kinds of questions about the values at the end:

- "single": the value of one slot;
- "pair": the values of one attribute of two people, both of which must be right;
- "chain": the home of the person who keeps a given pet, which only this person keeps (two hops).
  The extractive reader does not combine hops and guesses among the homes that it finds; a language
  model can answer these questions.

`metadata["revisions"]` has, for every question, its "kind", the number of "revisions" of its facts
(for a pair or a chain the sum), and the "former" values of the slots that it asks for. The streams
have the category "CR" of MemoryAgentBench's conflict resolution.

Differs from the paper: Mem-alpha (arXiv 2509.25911) leaves conflict resolution out because there is
no realistic data set, and asks for one; the sentences here are generated, as are those of
FactConsolidation.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from finemem_lib.data.planted import (
    ATTRIBUTES,
    DATA_SOURCE,
    NAMES,
    TEMPLATES,
    Fact,
    noise_sentence,
    wording,
)
from finemem_lib.seeds import generator
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question

Kind = Literal["single", "pair", "chain"]
KINDS: tuple[Kind, ...] = ("single", "pair", "chain")
Slot = tuple[str, str]

CATEGORY = "CR"


@dataclass(frozen=True, slots=True)
class RevisionSettings:
    """Settings of a stream of revised facts.

    Attributes:
        num_chunks: Number of chunks, more than `max_revisions`.
        people: Number of people, each with three slots.
        max_revisions: Largest number of revisions of a slot; 0, 1, ... and this number of revisions
            are equally frequent.
        noise: Number of noise sentences per chunk.
        pairs: Largest number of "pair" questions.
    """

    num_chunks: int = 12
    people: int = 5
    max_revisions: int = 4
    noise: int = 1
    pairs: int = 4


def revised_stream(seed: int, settings: RevisionSettings | None = None) -> Instance:
    """Generate one stream of revised facts.

    Args:
        seed: The same seed and settings give the same instance on every machine.
        settings: Settings of the stream; default: `RevisionSettings()`.

    Raises:
        ValueError: a setting is out of range.

    >>> one = revised_stream(seed=0)
    >>> len(one.chunks), sorted({told["kind"] for told in one.metadata["revisions"].values()})
    (12, ['chain', 'pair', 'single'])
    """
    settings = settings or RevisionSettings()
    _check(settings)
    rng = generator("revised", seed)
    people = rng.sample(NAMES, settings.people)
    told = _stated_facts(rng, settings, people)
    chunks, facts = [], []
    for step in range(1, settings.num_chunks + 1):
        here = [fact for fact, at in told if at == step]
        noise = [noise_sentence(rng, people, "plain") for _ in range(settings.noise)]
        lines = [fact.sentence for fact in here] + noise
        rng.shuffle(lines)
        text = " ".join(f"{line}." for line in lines)
        chunks.append(Chunk(text, count_tokens(text)))
        facts.append([dataclasses.asdict(fact) for fact in here])
    questions, revisions = _questions(rng, settings, told)
    return Instance(
        f"revised-{seed}",
        DATA_SOURCE,
        CATEGORY,
        tuple(chunks),
        tuple(questions),
        metadata={"seed": seed, "facts": facts, "revisions": revisions},
    )


def _stated_facts(
    rng: random.Random, settings: RevisionSettings, people: list[str]
) -> list[tuple[Fact, int]]:
    """Return every fact sentence with its step, in the order of the steps."""
    slots = [(person, attribute) for person in people for attribute in ATTRIBUTES]
    rng.shuffle(slots)
    told = []
    for place, (person, attribute) in enumerate(slots):
        times = place % (settings.max_revisions + 1) + 1
        steps = sorted(rng.sample(range(1, settings.num_chunks + 1), times))
        values = rng.sample(ATTRIBUTES[attribute].values, times)
        for number, (step, value) in enumerate(zip(steps, values, strict=True)):
            sentence = wording(rng, TEMPLATES["plain"][attribute], person, value)
            told.append((Fact(sentence, person, attribute, value, number > 0), step))
    return sorted(told, key=lambda one: one[1])


def _questions(
    rng: random.Random, settings: RevisionSettings, told: list[tuple[Fact, int]]
) -> tuple[list[Question], dict[str, dict[str, Any]]]:
    """Return the questions and, by question id, the entries of `metadata["revisions"]`."""
    last = {(fact.person, fact.attribute): (fact.value, step) for fact, step in told}
    times = {slot: -1 for slot in last}
    for fact, _ in told:
        times[fact.person, fact.attribute] += 1
    asked: list[tuple[Kind, str, list[Slot], str]] = [
        ("single", ATTRIBUTES[name].question.format(person=person), [(person, name)], "")
        for person, name in last
    ]
    asked += [
        ("pair", ATTRIBUTES[name].pair_question.format(person=f"{one} and {two}"), slots, "")
        for name, one, two in _pairs(rng, settings, last)
        for slots in [[(one, name), (two, name)]]
    ]
    kept = [value for (_, name), (value, _) in last.items() if name == "pet"]
    asked += [
        ("chain", f"Where does the person who keeps {value} live?", slots, last[slots[1]][0])
        for (person, name), (value, _) in last.items()
        if name == "pet" and kept.count(value) == 1
        for slots in [[(person, "pet"), (person, "home")]]
    ]
    questions: list[Question] = []
    revisions: dict[str, dict[str, Any]] = {}
    for number, (kind, text, slots, answer) in enumerate(asked, start=1):
        questions.append(
            Question(
                f"q-{number}",
                text,
                (answer or "; ".join(last[slot][0] for slot in slots),),
                DATA_SOURCE,
                evidence_steps=tuple(sorted({last[slot][1] for slot in slots})),
            )
        )
        answered = slots[1:] if kind == "chain" else slots
        revisions[f"q-{number}"] = {
            "kind": kind,
            "revisions": sum(times[one] for one in slots),
            "former": sorted(
                {
                    fact.value
                    for fact, _ in told
                    for slot in answered
                    if (fact.person, fact.attribute) == slot
                }
                - {last[slot][0] for slot in answered}
            ),
        }
    return questions, revisions


def _pairs(
    rng: random.Random, settings: RevisionSettings, last: Mapping[Slot, tuple[str, int]]
) -> list[tuple[str, str, str]]:
    """Draw triples (attribute, person, person) of two people with different values."""
    people = [*dict.fromkeys(person for person, _ in last)]
    possible = [
        (name, one, two)
        for name in ATTRIBUTES
        for place, one in enumerate(people)
        for two in people[place + 1 :]
        if last[one, name][0] != last[two, name][0]
    ]
    return rng.sample(possible, min(settings.pairs, len(possible)))


def _check(settings: RevisionSettings) -> None:
    limits = {
        "max_revisions": (0, 15),
        "num_chunks": (settings.max_revisions + 1, 100_000),
        "people": (2, len(NAMES)),
        "noise": (0, 20),
        "pairs": (0, 1000),
    }
    for name, (low, high) in limits.items():
        value = getattr(settings, name)
        if not low <= value <= high:
            raise ValueError(f"revised stream: {name} is {value!r}, expected {low} to {high}")
