"""Scripted demonstrations on real text: what a manager without any sense for worth writes.

A demonstration shows a memory, a piece of a text, and operations that quote the piece's sentences.
Which sentences are kept is drawn at random: what is worth keeping is left to GRPO. What is not
random is how a text that revises itself is answered. Real passages seldom do, so revisions are
constructed: a record says the same as a sentence of the piece, with another value; or the piece
takes a record back.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from finemem_lib.data.excerpts import pieces
from finemem_lib.data.sentences import units
from finemem_lib.managers.protocol import Observation
from finemem_lib.memory import FlatMemory
from finemem_lib.seeds import generator
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, MemoryItem, Operation

KEPT = 0.5
"""Share of the sentences that a demonstration keeps: at it, choices of a policy vary most."""

REVISED, RETRACTED = 0.6, 0.15
"""Shares of the demonstrations in which a sentence revises a record, and takes a record back."""

UPDATED = 0.75
"""Share of the kept revisions that update the record; the others delete it and insert."""

MOST_RECORDS = 12
TAKEN_BACK = "It is no longer true that "
_VALUE = re.compile(r"(?<=\w )(?:\d[\d,.]*\d|\d|[A-Z][a-z]{2,})(?=\W|$)")


@dataclass(frozen=True, slots=True)
class Demonstration:
    """A step and what is to be written at it.

    Attributes:
        observation: What the manager sees.
        completion: The operations as the manager writes them, quoting sentences by number.
        revised: Item id and sentence of the revision, `None` where there is none.
        retracted: Item id that the piece takes back, `None` where there is none.
    """

    observation: Observation
    completion: str
    revised: tuple[str, str] | None
    retracted: str | None


def demonstrations(
    instances: Sequence[Instance],
    count: int,
    seed: int,
    *,
    chunk_tokens: int = 80,
    memory_tokens: int = 150,
) -> list[Demonstration]:
    """Draw demonstrations from texts; every data source is drawn equally often.

    Args:
        instances: Instances whose chunks are the texts.
        count: Number of demonstrations.
        seed: Seed of all draws.
        chunk_tokens: Most tokens of a piece, see `excerpts.pieces`.
        memory_tokens: Most tokens of the records together.
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
    sentences = list(dict.fromkeys(units(cut[piece])))  # the memory refuses what it holds
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
    revised: tuple[str, str] | None = None
    draw = rng.random()
    if draw < REVISED:
        revised = _revision(rng, sentences, others)
        if revised is not None:
            records.insert(rng.randint(0, len(records)), revised[0])
    retracted = None
    if records and draw > 1 - RETRACTED:
        retracted = rng.choice(records)
        sentences.insert(rng.randint(0, len(sentences)), TAKEN_BACK + " ".join(retracted.split()))
    memory = FlatMemory()
    memory.apply([Operation("INSERT", record) for record in records], 1)
    ids = {item.content: item.item_id for item in memory.items}
    text = "\n".join(sentences)
    observation = Observation(instance, memory.items, Chunk(text, count_tokens(text)), 2)
    aliases = {item.content: f"#{place}" for place, item in enumerate(memory.items)}
    written = []
    for number, sentence in enumerate(units(text), start=1):
        quote = f'"quote":{number}}}'
        if retracted is not None and sentence.startswith(TAKEN_BACK):
            written.append(f'{{"op":"DELETE","id":"{aliases[retracted]}"}}')
        elif rng.random() > KEPT:
            continue
        elif revised is not None and sentence == revised[1]:
            alias = aliases[revised[0]]
            if rng.random() < UPDATED:
                written.append(f'{{"op":"UPDATE","id":"{alias}",{quote}')
            else:
                written.append(f'{{"op":"DELETE","id":"{alias}"}}')
                written.append(f'{{"op":"INSERT",{quote}')
        else:
            written.append(f'{{"op":"INSERT",{quote}')
    return Demonstration(
        observation,
        f"[{','.join(written)}]" if written else '[{"op":"SKIP"}]',
        revised and (ids[revised[0]], revised[1]),
        None if retracted is None else ids[retracted],
    )


def _revision(
    rng: random.Random, sentences: Sequence[str], others: Sequence[str]
) -> tuple[str, str] | None:
    """Return an earlier form of one of the sentences, with another value, and the sentence."""
    for sentence in rng.sample(sentences, len(sentences)):
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
        return sentence[: place.start()] + value + sentence[place.end() :], sentence
    return None


def memory_of(observation: Observation) -> FlatMemory:
    """Return a memory that holds the items of an observation, under the same ids.

    Args:
        observation: A demonstration's observation.
    """
    memory = FlatMemory()
    items: tuple[MemoryItem, ...] = observation.items
    memory.apply([Operation("INSERT", item.content) for item in items], 1)
    return memory
