"""Planted streams whose questions need a running summary, dated events and facts.

Every chunk is a dated dialogue. Only its first line contains the date, so a manager must store the
date together with an event. A chunk states facts that may change (as in the planted stream), one
event, sometimes the next stop of a caravan, and noise. The questions ask

- for the latest value of every slot (facts);
- when each person visited a place (dated events);
- which places the caravan has reached (a summary, which no single chunk contains).

The plain planted stream is the counterpart without this structure: each of its questions is
answered by one sentence of one chunk.
"""

from __future__ import annotations

import dataclasses
import datetime
import random
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from finemem_lib.data.planted import (
    ATTRIBUTES,
    DATA_SOURCE as PLAIN,
    NAMES,
    NOISE_SUBJECTS,
    VERBS,
    Fact,
    StreamSettings,
    draw_facts,
)
from finemem_lib.seeds import generator, stable_seed
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question

LAYERS_SOURCE = "planted-layers"
SUMMARY_SOURCE = "planted-layers-summary"
"""Data source of the summary questions, which are scored by the share of keywords."""

PLACES = tuple(
    "Accra Baku Bergen Bogota Cusco Dublin Fez Genoa Hanoi Izmir Jaffa Kabul Leon Malmo Nantes "
    "Oran Porto Riga Sofia Tunis Ulm Varna Wroclaw Yerevan Zadar Aleppo Bari Cadiz Delft Essen "
    "Faro Ghent Haifa Iasi Kiel Lyon Minsk Nice Odessa Pisa".split()
)
"""Places of events and caravan stops; no fact mentions one of them."""

STOP_VERBS = ("reached", "camped near", "went on to")
ROUTE_QUESTION = "Which places did the caravan reach?"


@dataclass(frozen=True, slots=True)
class LayerStream:
    """Settings of a planted stream with facts, events and a summary.

    Attributes:
        num_chunks: Number of chunks, at least 1.
        people: Number of people, at least 1.
        max_facts: Largest number of facts per chunk, 1 to 3; the number is drawn from 1 to this.
        max_noise: Largest number of noise sentences per chunk; the number is drawn from 1 to this.
        change_rate: Probability that a fact changes a slot that has a value.
        stop_rate: Probability that the caravan moves in a chunk, while there are new places.

    Raises:
        ValueError: a value is out of range.
    """

    num_chunks: int = 12
    people: int = 4
    max_facts: int = 2
    max_noise: int = 2
    change_rate: float = 0.4
    stop_rate: float = 0.7

    def __post_init__(self) -> None:
        for name, low, high in (
            ("num_chunks", 1, 100_000),
            ("people", 1, len(NAMES)),
            ("max_facts", 1, 3),
            ("max_noise", 1, 20),
            ("change_rate", 0, 1),
            ("stop_rate", 0, 1),
        ):
            if not low <= (value := getattr(self, name)) <= high:
                raise ValueError(f"layer stream: {name} is {value!r}, expected {low} to {high}")


@dataclass(frozen=True, slots=True)
class Event:
    """One visit of a person to a place.

    Attributes:
        sentence: Sentence of the chunk, without full stop and date.
        person, place: The visitor and the place.
        date: The day, as the chunk writes it.
    """

    sentence: str
    person: str
    place: str
    date: str


def kind_of(sentence: str) -> Literal["fact", "event", "stop", "noise"]:
    """Return what a sentence of such a stream states.

    Args:
        sentence: A sentence of a chunk, without its full stop.

    Returns:
        "fact", "event", "stop" (of the caravan) or "noise".

    >>> [kind_of(one) for one in ("Mia visited Fez", "The caravan reached Oran", "Mia owns cats")]
    ['event', 'stop', 'fact']
    """
    if sentence.startswith(NOISE_SUBJECTS):
        return "noise"
    if sentence.split()[-1] not in PLACES:  # no fact mentions one
        return "fact"
    return "stop" if sentence.startswith("The caravan ") else "event"


def verbs_of(data_source: str) -> dict[str, tuple[str, ...]] | None:
    """Return the verbs that answer a question, by cue, as in `planted.VERBS`.

    Args:
        data_source: Name of the data source.

    Returns:
        The verbs; `None` if the data source is not planted.
    """
    return VERBS.get(PLAIN if data_source == LAYERS_SOURCE else data_source)


def layer_stream(seed: int, settings: LayerStream | None = None) -> Instance:
    """Generate one stream.

    `metadata` holds, with one entry per chunk, "facts" (fields of `planted.Fact`), "events" (fields
    of `Event`), "stops" (places that the caravan reached) and "dates".

    Args:
        seed: The same seed and settings give the same instance on every machine.
        settings: Settings of the stream; default: `LayerStream()`.

    >>> instance = layer_stream(seed=1)
    >>> instance.chunks[0].text.splitlines()[0]
    '[Dialogue on 4 January 2024]'
    >>> sorted({question.data_source for question in instance.questions})
    ['planted-layers', 'planted-layers-summary']
    """
    settings = settings or LayerStream()
    rng = generator("planted-layers", seed)
    people = rng.sample(NAMES, settings.people)
    shape = StreamSettings(
        people=settings.people, max_facts=settings.max_facts, change_rate=settings.change_rate
    )
    state: dict[tuple[str, str], tuple[str, int]] = {}
    told: dict[tuple[str, str], tuple[str, int]] = {}  # (person, place) -> (date, step)
    route: list[tuple[str, int]] = []
    chunks, chunk_questions = [], []
    kept: dict[str, list[object]] = {"facts": [], "events": [], "stops": [], "dates": []}
    day = datetime.date(2024, 1, 1)
    for step in range(1, settings.num_chunks + 1):
        day += datetime.timedelta(days=rng.randint(1, 3))
        date = f"{day.day} {day:%B} {day.year}"
        facts = draw_facts(rng, shape, people, state, step)
        event = _event(rng, people, date, told)
        stops = _stop(rng, settings.stop_rate, route, step)
        lines = [fact.sentence for fact in facts]
        if event is not None:
            told[event.person, event.place] = date, step
            lines.append(event.sentence)
        lines += [f"The caravan {rng.choice(STOP_VERBS)} {place}" for place in stops]
        lines += _noise(rng, rng.randint(1, settings.max_noise))
        rng.shuffle(lines)
        text = "\n".join([f"[Dialogue on {date}]", " ".join(f"{line}." for line in lines)])
        chunks.append(Chunk(text=text, tokens=count_tokens(text)))
        chunk_questions.append(_of_chunk(facts, event, step))
        kept["facts"].append([dataclasses.asdict(fact) for fact in facts])
        kept["events"].append([] if event is None else [dataclasses.asdict(event)])
        kept["stops"].append(stops)
        kept["dates"].append(date)
    return Instance(
        instance_id=f"{LAYERS_SOURCE}-{seed}",
        data_source=LAYERS_SOURCE,
        category="AR",
        chunks=tuple(chunks),
        questions=_global(state, told, route),
        chunk_questions=tuple(chunk_questions),
        metadata={"seed": seed, **kept},
    )


def _event(
    rng: random.Random, people: Sequence[str], date: str, told: Collection[tuple[str, str]]
) -> Event | None:
    """Draw a visit that no chunk has stated yet; `None` if there is none left."""
    free = [(who, where) for who in people for where in PLACES if (who, where) not in told]
    if not free:
        return None
    person, place = rng.choice(free)
    return Event(f"{person} visited {place}", person, place, date)


def _stop(rng: random.Random, rate: float, route: list[tuple[str, int]], step: int) -> list[str]:
    """Return the caravan's next stop in a list and append it to `route`; return [] if it stays."""
    reached = {place for place, _ in route}
    free = [place for place in PLACES if place not in reached]
    if not free or rng.random() >= rate:
        return []
    route.append((rng.choice(free), step))
    return [route[-1][0]]


def _noise(rng: random.Random, number: int) -> list[str]:
    values = [value for spec in ATTRIBUTES.values() for value in spec.values]
    return [f"{rng.choice(NOISE_SUBJECTS)} {rng.choice(values)}" for _ in range(number)]


def _slot_question(
    name: str, slot: tuple[str, str], value: str, told: int, step: int | None
) -> Question:
    person, attribute = slot
    text = ATTRIBUTES[attribute].question.format(person=person)
    return Question(name, text, (value,), LAYERS_SOURCE, step, (told,))


def _event_question(
    name: str, who: str, where: str, date: str, told: int, step: int | None
) -> Question:
    text = f"When did {who} visit {where}?"
    return Question(name, text, (date,), LAYERS_SOURCE, step, (told,))


def _of_chunk(facts: Sequence[Fact], event: Event | None, step: int) -> tuple[Question, ...]:
    asked = [
        _slot_question(f"chunk-{step}-{number}", (one.person, one.attribute), one.value, step, step)
        for number, one in enumerate(facts, start=1)
    ]
    if event is not None:
        name = f"chunk-{step}-event"
        asked.append(_event_question(name, event.person, event.place, event.date, step, step))
    return tuple(asked)


def _global(
    state: dict[tuple[str, str], tuple[str, int]],
    told: dict[tuple[str, str], tuple[str, int]],
    route: Sequence[tuple[str, int]],
) -> tuple[Question, ...]:
    asked = [
        _slot_question(f"fact-{number}", slot, value, step, None)
        for number, (slot, (value, step)) in enumerate(state.items(), start=1)
    ]
    asked += [
        _event_question(f"event-{number}", who, where, date, step, None)
        for number, ((who, where), (date, step)) in enumerate(told.items(), start=1)
    ]
    if route:
        answer = ", ".join(place for place, _ in route)
        steps = tuple(step for _, step in route)
        asked.append(Question("summary", ROUTE_QUESTION, (answer,), SUMMARY_SOURCE, None, steps))
    return tuple(asked)


def layer_instances(
    split: Literal["train", "held-out"], count: int, seed: int, stream: LayerStream | None = None
) -> list[Instance]:
    """Return streams with different seeds.

    Args:
        split: Set of seeds; the seeds of the two sets differ.
        count: Number of streams.
        seed: Seed of the set.
        stream: Settings of the streams; default: `LayerStream()`.
    """
    return [
        layer_stream(stable_seed(seed, LAYERS_SOURCE, split, number), stream)
        for number in range(count)
    ]
