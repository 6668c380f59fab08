"""Generate demonstrations on real text for imitation learning, with a random choice of sentences.

A demonstration consists of a memory, a piece of a text, and operations that quote the piece's
sentences. The sentences to keep are drawn at random: GRPO has to learn what is worth keeping. The
response to revisions is not random, and comes first. Real passages seldom revise themselves, so
revisions are constructed: a record states the same as a sentence of the piece with another value,
which updates it, or the piece retracts a record, which is deleted.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from finemem_lib.data.excerpts import pieces
from finemem_lib.data.sentences import units
from finemem_lib.managers.grammar import MOST_OPERATIONS, matching_sentences
from finemem_lib.managers.protocol import Observation
from finemem_lib.memory import FlatMemory
from finemem_lib.seeds import generator
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, MemoryItem, Operation

KEPT = 0.5
"""Share of the other sentences that a demonstration keeps; at 0.5 a policy's choices vary most."""

REVISED, RETRACTED = 0.6, 0.15
"""Shares of the demonstrations with revised records, and with a retracted record."""

MOST_REVISIONS = 3
"""Largest number of records that a piece revises; the number is drawn from 1 to it."""

MOST_RECORDS = 12
TAKEN_BACK = "It is no longer true that "
_VALUE = re.compile(r"(?<=\w )(?:\d[\d,.]*\d|\d|[A-Z][a-z]{2,})(?=\W|$)")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A step with its target completion.

    Attributes:
        observation: The manager's observation.
        completion: The target completion, with operations that quote sentences by number.
        revised: The revising sentence, by the id of each revised item.
        retracted: Id of the retracted item, or `None`.
    """

    observation: Observation
    completion: str
    revised: Mapping[str, str]
    retracted: str | None


def demonstrations(
    instances: Sequence[Instance],
    count: int,
    seed: int,
    *,
    chunk_tokens: int = 80,
    memory_tokens: int = 150,
) -> list[Demonstration]:
    """Return random demonstrations from texts; all data sources are equally likely.

    Args:
        instances: Instances whose chunks are the texts.
        count: Number of demonstrations.
        seed: Seed of all draws.
        chunk_tokens: Largest number of tokens of a piece, see `excerpts.pieces`.
        memory_tokens: Largest number of tokens of all records together.
    """
    rng = generator("text demonstrations", seed)
    texts: dict[str, list[list[str]]] = {}
    for instance in instances:
        cut = [piece for chunk in instance.chunks for piece in pieces(chunk.text, chunk_tokens)]
        if len(cut) > 1:
            texts.setdefault(instance.data_source, []).append(cut)
    sources = sorted(texts)
    return [
        _drawn(rng, rng.choice(texts[rng.choice(sources)]), instances[0], memory_tokens)
        for _ in range(count)
    ]


def _drawn(
    rng: random.Random, cut: Sequence[str], instance: Instance, memory_tokens: int
) -> Demonstration:
    piece = rng.randrange(len(cut))
    sentences = list(dict.fromkeys(units(cut[piece])))  # unique: the memory refuses duplicates
    others = [unit for place, text in enumerate(cut) if place != piece for unit in units(text)]
    others = [unit for unit in dict.fromkeys(others) if unit not in sentences]
    rng.shuffle(others)
    size, room = rng.randint(0, MOST_RECORDS), memory_tokens
    records = []
    for unit in others[:size]:
        room -= count_tokens(unit)
        if room < 0:
            break
        records.append(unit)
    draw = rng.random()
    number = rng.randint(1, MOST_REVISIONS) if draw < REVISED else 0
    earlier = _revisions(rng, sentences, others, number)
    for record in earlier.values():
        records.insert(rng.randint(0, len(records)), record)
    retracted = None
    if draw > 1 - RETRACTED:  # excludes revisions, because REVISED < 1 - RETRACTED
        found = [record for record in records if _matches(TAKEN_BACK + record, record)]
        retracted = rng.choice(found) if found else None
    if retracted is not None:
        sentences.insert(rng.randint(0, len(sentences)), TAKEN_BACK + " ".join(retracted.split()))
    memory = FlatMemory()
    memory.apply([Operation("INSERT", record) for record in records], 1)
    ids = {item.content: item.item_id for item in memory.items}
    text = "\n".join(sentences)
    observation = Observation(instance, memory.items, Chunk(text, count_tokens(text)), 2)
    aliases = {item.content: f"#{place}" for place, item in enumerate(memory.items)}
    edits, inserts = [], []
    for number, sentence in enumerate(units(text), start=1):
        if retracted is not None and sentence.startswith(TAKEN_BACK):
            edits.append(f'{{"op":"DELETE","id":"{aliases[retracted]}"}}')
        elif sentence in earlier:
            alias = aliases[earlier[sentence]]
            edits.append(f'{{"op":"UPDATE","id":"{alias}","quote":{number}}}')
        elif rng.random() < KEPT:
            inserts.append(f'{{"op":"INSERT","quote":{number}}}')
    written = [*edits, *inserts][:MOST_OPERATIONS]
    return Demonstration(
        observation,
        f"[{','.join(written)}]" if written else '[{"op":"SKIP"}]',
        {ids[record]: sentence for sentence, record in earlier.items()},
        None if retracted is None else ids[retracted],
    )


def _revisions(
    rng: random.Random, sentences: Sequence[str], others: Sequence[str], number: int
) -> dict[str, str]:
    """Return an earlier version, with another value, of at most `number` sentences, by sentence."""
    found: dict[str, str] = {}
    for sentence in rng.sample(sentences, len(sentences)):
        if len(found) == number:
            break
        places = list(_VALUE.finditer(sentence))
        if len(sentence.split()) < 5 or not places:
            continue
        place = rng.choice(places)
        if place[0][0].isdigit():
            value = "".join(
                str((int(mark) + rng.randint(1, 9)) % 10) if mark.isdigit() else mark
                for mark in place[0]
            )
        else:
            names = {name[0] for unit in others for name in _VALUE.finditer(unit)}
            names = {name for name in names if name[0].isalpha() and name not in sentence}
            if not names:
                continue
            value = rng.choice(sorted(names))
        record = sentence[: place.start()] + value + sentence[place.end() :]
        if _matches(sentence, record):
            found[sentence] = record
    return found


def _matches(sentence: str, record: str) -> bool:
    """Return whether the grammar lets a sentence revise or retract a record."""
    return bool(matching_sentences([sentence], [record])[0])


def memory_of(observation: Observation) -> FlatMemory:
    """Return a memory with the items of an observation, under the same ids.

    Args:
        observation: The observation of a demonstration.
    """
    memory = FlatMemory()
    items: tuple[MemoryItem, ...] = observation.items
    memory.apply([Operation("INSERT", item.content) for item in items], 1)
    return memory
