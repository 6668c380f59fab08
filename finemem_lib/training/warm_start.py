"""Train and measure the tiny manager's warm start, as a seeded command.

    python -m finemem_lib.training.warm_start --output DIR --seed 0 --world plain
    python -m finemem_lib.training.warm_start --measure DIR --seed 0 --world plain

The second command measures an existing checkpoint again and rewrites its card.

Supervised demonstrations teach only three things: the JSON format, exact copying of a sentence of
the chunk, and addressing the record about the same person and attribute. The sentences to keep, and
the choice among suitable operations, are random: GRPO has to learn what is worth keeping. Finding
the record is learnt in minutes because the loss guides the attention of some heads in the first
quarter of the updates; the architecture is a plain Qwen3.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

from finemem_lib.data.planted import (
    ATTRIBUTES,
    NAMES,
    NOISE_ADVERBS,
    NOISE_SUBJECTS,
    NOISE_VERBS,
    PARAPHRASED_NOISE,
    TEMPLATES,
    StreamSettings,
    World,
    planted_stream,
    verb_of,
    with_adverbs,
    wording,
)
from finemem_lib.data.planted_layers import kind_of
from finemem_lib.data.sentences import units
from finemem_lib.layers.memory import LayeredMemory
from finemem_lib.managers import tiny
from finemem_lib.managers.model import ModelManager, load_manager
from finemem_lib.managers.protocol import Observation
from finemem_lib.memory import FlatMemory
from finemem_lib.seeds import generator
from finemem_lib.trajectory import (
    OPERATION_KINDS,
    Chunk,
    Operation,
    OperationKind,
    OperationOutcome,
    Store,
)
from finemem_lib.util.files import write_json, written_beside
from finemem_lib.util.provenance import code_root, git_state, hardware, versions, workbench_root

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, Qwen3ForCausalLM

STEPS = 5000
BATCH = 64
POOL = 16
LEARNING_RATE = 3e-3

GUIDED = 0.25
"""Share of the updates with guided attention: full weight for 3/5 of it, then decreasing to 0."""

KEPT_AT_FIRST, KEPT, KEPT_FROM = 0.8, 0.3, 0.75
"""Share of the sentences that a demonstration keeps before and after the share `KEPT_FROM` of the
updates."""

ID_WEIGHT = 4.0
"""Weight of an id in the loss: ids are rare, and a wrong id spoils a whole operation."""

UNSEEN_SPREAD = 1.2
"""Distance of an unseen name's embedding from the mean name, relative to the mean distance of the
seen names; above 1, because unseen names compete with trained ones."""

# Guided heads as (layer, head). In the first layer every token attends to the nearest person, verb
# and value and to the previous token. Together these identify the sentence of a token, so the last
# layer can find the id of the record about the same slot (or the `memory:` mark if there is no
# record) and the next token to copy. Two heads do each, because a value vector is half as wide as
# an embedding.
PERSON, VERB, VALUE, PREVIOUS = (0, 0), (0, 1), (0, 2), (0, 3)

RECORD, COPY = ((1, 0), (1, 3)), ((1, 1), (1, 2))
# The words of structured streams follow those of the plain world, whose ids stay as they are.
_IDS: dict[World, dict[str, int]] = {
    world: {
        token: number
        for number, token in enumerate(tiny.vocabulary(world, structured=world == "plain"))
    }
    for world in get_args(World)
}
_PAD = _IDS["plain"][tiny.PAD]  # specials come first in every vocabulary
_VERBS = {verb_of(template) for template in PARAPHRASED_NOISE} | {
    verb_of(template) for templates in TEMPLATES["paraphrased"].values() for template in templates
}


@dataclass(frozen=True, slots=True)
class Sentence:
    """A sentence as words, with the positions of its parts.

    Attributes:
        words: The words in order.
        person: Position of the person, or of the subject if there is no person.
        verb: Position of the verb's first word.
        value: Position of the value.
        slot: (person, attribute) of a fact, `None` for noise.
    """

    words: tuple[str, ...]
    person: int
    verb: int
    value: int
    slot: tuple[str, str] | None = None


class Demonstration:
    """Token ids of a prompt and its completion, with the targets of guided attention.

    `guides` holds (head, query position, key position); it is empty unless `guided`.
    """

    def __init__(self, guided: bool, world: World = "plain") -> None:
        self.guided = guided
        self.world: World = world
        self.ids: list[int] = []
        self.guides: list[tuple[tuple[int, int], int, int]] = []
        self.prompt_length = 0
        self._nearest: dict[tuple[int, int], int] = {}

    def add(self, token: str) -> int:
        """Append a token, guided to the nearest person, verb and value; return its position.

        Args:
            token: A word of the vocabulary.
        """
        position = len(self.ids)
        self.ids.append(_IDS[self.world][token])
        for head, place in self._nearest.items():
            self.guide(head, position, place)
        if position:
            self.guide(PREVIOUS, position, position - 1)
        return position

    def guide(self, head: tuple[int, int], query: int, key: int) -> None:
        """Add an attention target of a head, if the demonstration is guided.

        Args:
            head: (layer, head) of the attention.
            query: Position of the query.
            key: Position that the query should attend to.
        """
        if self.guided:
            self.guides.append((head, query, key))

    def add_sentence(self, sentence: Sentence) -> int:
        """Append the words of a sentence; return the position of the first word.

        Args:
            sentence: The sentence and its parts.
        """
        start = len(self.ids)
        parts = {sentence.person: PERSON, sentence.verb: VERB, sentence.value: VALUE}
        for offset, word in enumerate(sentence.words):
            if offset in parts:
                self._nearest[parts[offset]] = start + offset
            self.add(word)
        return start


def fact(rng: random.Random, slot: tuple[str, str], world: World) -> Sentence:
    """Return a sentence that states a random value of a slot.

    Args:
        rng: Source of the verb and the value.
        slot: (person, attribute).
        world: The world, which selects the templates.
    """
    person, attribute = slot
    spec = ATTRIBUTES[attribute]
    if world == "paraphrased":
        value = rng.choice(spec.values)
        return _parsed(
            wording(rng, TEMPLATES[world][attribute], person, value), person, value, slot
        )
    words = (person, *rng.choice(spec.verbs).split(), rng.choice(spec.values))
    return Sentence(words, 0, 1, len(words) - 1, slot)


def noise(rng: random.Random, people: list[str], world: World) -> Sentence:
    """Return a sentence that states no fact.

    Args:
        rng: Source of the words.
        people: Names that may occur in the sentence.
        world: The world, which selects the templates.
    """
    value = rng.choice(ATTRIBUTES[rng.choice(list(ATTRIBUTES))].values)
    if world == "paraphrased":
        person = rng.choice(people)
        return _parsed(wording(rng, with_adverbs(PARAPHRASED_NOISE), person, value), person, value)
    if rng.random() < 0.8:
        verb = rng.choice(NOISE_VERBS).split()
        words = (rng.choice(NOISE_ADVERBS), rng.choice(people), *verb, value)
        return Sentence(words, 1, 2, len(words) - 1)
    words = (*rng.choice(NOISE_SUBJECTS).split(), value)
    return Sentence(words, 0, 1, len(words) - 1)


def _parsed(text: str, person: str, value: str, slot: tuple[str, str] | None = None) -> Sentence:
    words = tuple(text.split())
    verb = next(place for place, word in enumerate(words) if word in _VERBS)
    return Sentence(words, words.index(person), verb, words.index(value), slot)


def demonstration(rng: random.Random, progress: float, world: World = "plain") -> Demonstration:
    """Return a random memory and chunk with a completion that keeps random sentences.

    With `progress` the largest memory grows from 4 to 24 records, several records may share a slot
    (then the latest one counts), and the share of kept sentences falls to its final level.

    Args:
        rng: Source of all draws.
        progress: Share of the training done, in [0, 1].
        world: The world, which selects the templates.
    """
    limit = 4 + round(8 * min(1.0, progress / GUIDED)) + round(12 * min(1.0, progress / 0.7))
    people = rng.sample(NAMES, rng.randint(2, 6))
    slots = [(person, attribute) for person in people for attribute in ATTRIBUTES]
    rng.shuffle(slots)
    noisy = rng.choice((0.0, 0.2, 0.5))
    repeated = rng.choice((0.0, 0.1, 0.3)) if progress > GUIDED / 2 else 0.0
    recorded = 0
    records: list[Sentence] = []
    for _ in range(rng.randint(0, limit)):
        draw = rng.random()
        if draw < noisy or (recorded == len(slots) and not repeated):
            records.append(noise(rng, people, world))
        elif recorded and (draw > 1 - repeated or recorded == len(slots)):
            records.append(fact(rng, slots[rng.randrange(recorded)], world))
        else:
            records.append(fact(rng, slots[recorded], world))
            recorded += 1
    rng.shuffle(records)

    known, new = slots[:recorded], slots[recorded:]
    rng.shuffle(known)
    chunk = [noise(rng, people, world) for _ in range(rng.randint(0, 3))]
    for _ in range(rng.randint(1, 3)):
        pool = known if known and (not new or rng.random() < 0.6) else new
        if pool:
            chunk.append(fact(rng, pool.pop(), world))
    rng.shuffle(chunk)
    # Beginning, memory and chunk marks, end; an alias or a full stop after every sentence.
    while 4 + sum(len(one.words) + 1 for one in records + chunk) > tiny.MAX_PROMPT_TOKENS:
        records.pop(0)
    aliases = list(tiny.ALIASES)
    if rng.random() < 0.5:
        rng.shuffle(aliases)
    demo = Demonstration(guided=progress < GUIDED, world=world)
    _render(demo, rng, records, aliases, chunk, KEPT if progress >= KEPT_FROM else KEPT_AT_FIRST)
    return demo


def _render(
    demo: Demonstration,
    rng: random.Random,
    records: list[Sentence],
    aliases: list[str],
    chunk: list[Sentence],
    kept: float,
) -> None:
    shown = show(demo, records, aliases, chunk)
    for number, (sentence, copied) in enumerate(zip(chunk, shown.starts, strict=True)):
        header = demo.add(tiny.NEXT_CONTENT if number else tiny.FIRST_CONTENT)
        demo.add_sentence(sentence)
        guide_copy(demo, header, range(copied, copied + len(sentence.words) + 1))
        record = shown.record(sentence)
        pieces, draw = [tiny.INSERT], rng.random()
        if rng.random() > kept:
            pieces = [tiny.SKIP]
        elif record != shown.nowhere and draw < 0.5:
            pieces = [tiny.UPDATE]
        elif record != shown.nowhere and draw < 0.7:
            pieces = [tiny.INSERT, tiny.DELETE]
        add_operation(demo, pieces, record)
    demo.add(tiny.CLOSE)
    demo.add(tiny.EOS)


@dataclass(frozen=True, slots=True)
class ShownPrompt:
    """Positions in the prompt of a demonstration.

    Attributes:
        nowhere: Position of the `memory:` mark, for sentences without a record.
        latest: Position of the alias of the latest record about a slot.
        starts: Position of the first word of every sentence of the chunk.
    """

    nowhere: int
    latest: Mapping[tuple[str, str], int]
    starts: Sequence[int]

    def record(self, sentence: Sentence) -> int:
        """Return the position of the alias of a sentence's record, or `nowhere`.

        Args:
            sentence: A sentence of the chunk.
        """
        return (
            self.nowhere if sentence.slot is None else self.latest.get(sentence.slot, self.nowhere)
        )


def show(
    demo: Demonstration,
    records: Sequence[Sentence],
    aliases: Sequence[str],
    chunk: Sequence[Sentence],
    opening: Sentence | None = None,
) -> ShownPrompt:
    """Add a prompt to an empty demonstration.

    Args:
        demo: The demonstration, changed in place.
        records: Contents of the memory.
        aliases: An alias per record, or more.
        chunk: Sentences of the chunk.
        opening: The chunk's date line without its last bracket, if it has one.
    """
    demo.add(tiny.BOS)
    nowhere = demo.add(tiny.MEMORY)
    latest: dict[tuple[str, str], int] = {}
    for sentence, alias in zip(records, aliases, strict=False):
        demo.add_sentence(sentence)
        position = demo.add(alias)
        if sentence.slot:
            latest[sentence.slot] = position
    demo.add(tiny.CHUNK)
    if opening is not None:
        demo.add_sentence(opening)
        demo.add(tiny.CLOSE)
    starts = []
    for sentence in chunk:
        starts.append(demo.add_sentence(sentence))
        demo.add(tiny.STOP)
    demo.add(tiny.OPERATIONS)
    demo.prompt_length = len(demo.ids)
    return ShownPrompt(nowhere, latest, starts)


def guide_copy(demo: Demonstration, start: int, copied: Iterable[int]) -> None:
    """Guide the copying heads from consecutive positions to those whose tokens follow.

    Args:
        demo: The demonstration, changed in place.
        start: Position of the first query.
        copied: A key per query.
    """
    for query, key in enumerate(copied, start=start):
        for head in COPY:
            demo.guide(head, query, key)


def add_operation(demo: Demonstration, pieces: Sequence[str], record: int) -> None:
    """Add the pieces after a content, and the alias of the record that the last one addresses.

    Args:
        demo: The demonstration, changed in place.
        pieces: Kinds of operations, UPDATE or DELETE only at the end.
        record: Position of the record's alias, or of the `memory:` mark.
    """
    for place in (len(demo.ids) - 1, *map(demo.add, pieces)):
        for head in RECORD:
            demo.guide(head, place, record)
    if pieces[-1] in (tiny.UPDATE, tiny.DELETE):
        demo.ids.append(demo.ids[record])
        demo.add(tiny.CLOSE_ID)


def batches(seed: int, steps: int, world: World = "plain") -> Iterator[list[Demonstration]]:
    """Yield `steps` batches of demonstrations, of similar length within a batch.

    Args:
        seed: Seed of all demonstrations.
        steps: Number of batches.
        world: The world, which selects the templates.
    """
    rng = generator("warm-start", seed)
    for pool_start in range(0, steps, POOL):
        pool = [demonstration(rng, pool_start / steps, world) for _ in range(POOL * BATCH)]
        pool.sort(key=lambda demo: len(demo.ids))
        parts = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        rng.shuffle(parts)
        yield from parts[: steps - pool_start]


class Shown(Protocol):
    """A demonstration: token ids of a prompt and its completion, and the prompt's length."""

    @property
    def ids(self) -> Sequence[int]: ...

    @property
    def prompt_length(self) -> int: ...


def collated(batch: Sequence[Shown]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded ids and labels (-100 outside the completion), both (batch, length).

    Args:
        batch: The demonstrations.
    """
    import torch

    longest = max(len(demo.ids) for demo in batch)
    ids = torch.full((len(batch), longest), _PAD)
    labels = torch.full_like(ids, -100)
    for row, demo in enumerate(batch):
        ids[row, : len(demo.ids)] = torch.tensor(demo.ids)
        labels[row, demo.prompt_length : len(demo.ids)] = ids[
            row, demo.prompt_length : len(demo.ids)
        ]
    return ids, labels


def guidance_loss(
    attentions: tuple[torch.Tensor, ...], batch: Sequence[Demonstration]
) -> torch.Tensor:
    """Return the sum, over the guided heads, of the mean -log attention to the target positions.

    Args:
        attentions: One tensor per layer, shape (batch, heads, length, length).
        batch: The demonstrations, in the order of the rows.
    """
    import torch

    places: dict[tuple[int, int], list[tuple[int, int, int]]] = {}
    for row, demo in enumerate(batch):
        for guided, query, key in demo.guides:
            places.setdefault(guided, []).append((row, query, key))
    total = torch.zeros(())
    for (layer, head), where in places.items():
        rows, query, key = torch.tensor(where).T
        total = total - attentions[layer][rows, head, query, key].clamp_min(1e-6).log().mean()
    return total


def train(
    seed: int, steps: int, log_every: int = 200, world: World = "plain"
) -> tuple[Qwen3ForCausalLM, list[float]]:
    """Train the tiny model from scratch; return it with the completion loss of every update.

    Args:
        seed: Seed of the weights and the demonstrations.
        steps: Number of updates.
        log_every: Number of updates between printed lines; 0 prints none.
        world: The world of the demonstrations.
    """
    model = tiny.tiny_model(seed, world)
    model.set_attn_implementation("eager")
    losses = fit(
        model,
        batches(seed, steps, world),
        steps,
        learning_rate=LEARNING_RATE,
        rate=lambda step: min(
            (step + 1) / 50, 1.0, max(0.02, 1 - (step / steps - 0.4) / 0.6 * 0.98)
        ),
        aliases=[_IDS[world][alias] for alias in tiny.ALIASES],
        guided=lambda step: min(1.0, max(0.0, (GUIDED - step / steps) / (0.4 * GUIDED))),
        log_every=log_every,
    )
    embed_unseen_names(model, seed, world)
    return model, losses


def fit(
    model: Qwen3ForCausalLM,
    batches: Iterable[Sequence[Any]],
    steps: int,
    *,
    learning_rate: float,
    rate: Callable[[int], float],
    aliases: Sequence[int],
    guided: Callable[[int], float] = lambda step: 0.0,
    log_every: int,
) -> list[float]:
    """Train a model on demonstrations; return the completion loss of every update.

    Args:
        model: The model, changed in place.
        batches: A batch of demonstrations per update; see `Shown`.
        steps: Number of updates.
        learning_rate: Largest learning rate.
        rate: Share of the learning rate at an update, from 0.
        aliases: Ids of the tokens that weigh `ID_WEIGHT` in the loss.
        guided: Weight of `guidance_loss` at an update; once 0, it must stay 0.
        log_every: Number of updates between printed lines; 0 prints none.
    """
    import torch

    optimiser = torch.optim.AdamW(
        model.parameters(), lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, rate)
    weights = torch.ones(model.config.vocab_size)
    weights[aliases] = ID_WEIGHT
    losses, started = [], time.perf_counter()
    for step, batch in enumerate(batches):
        weight = guided(step)
        if weight == 0 and model.config._attn_implementation == "eager":
            model.set_attn_implementation("sdpa")
        loss, attentions = _completion_loss(model, batch, weights, weight > 0)
        losses.append(loss.item())
        guidance = guidance_loss(attentions, batch) if weight else 0.0
        optimiser.zero_grad()
        torch.autograd.backward(loss + weight * guidance)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        if log_every and (step + 1) % log_every == 0:
            print(
                f"update {step + 1}/{steps}: loss {sum(losses[-log_every:]) / log_every:.4f}, "
                f"{time.perf_counter() - started:.0f} s",
                flush=True,
            )
    return losses


def _completion_loss(
    model: Qwen3ForCausalLM, batch: Sequence[Shown], weights: torch.Tensor, attentions: bool
) -> tuple[torch.Tensor, Any]:
    """Return the loss of the completions' tokens, and the attentions if they are asked for."""
    from torch.nn.functional import cross_entropy

    ids, labels = collated(batch)
    out = model.model(
        input_ids=ids,
        attention_mask=(ids != _PAD).long(),
        use_cache=False,
        output_attentions=attentions,
    )
    asked = labels[:, 1:] != -100
    logits, targets = model.lm_head(out.last_hidden_state[:, :-1][asked]), labels[:, 1:][asked]
    return cross_entropy(logits, targets, weight=weights), out.attentions


def embed_unseen_names(model: Qwen3ForCausalLM, seed: int, world: World = "plain") -> None:
    """Replace the embeddings of the unseen names, as for tokens added to a vocabulary.

    Each new embedding is drawn from the normal distribution of the trained names' embeddings: of
    many draws, the one least similar to all other names. Training only pushed unseen names away.

    Args:
        model: The model, changed in place.
        seed: Seed of the draws.
        world: The world of the model.
    """
    import torch
    from torch.nn.functional import normalize

    ids = _IDS[world]

    with torch.no_grad():
        table: Any = model.get_input_embeddings().weight
        names = table[[ids[name] for name in NAMES]]
        apart = names - names.mean(0)
        chance = torch.Generator("cpu").manual_seed(seed)
        draws = torch.randn(4096, len(NAMES), generator=chance, device="cpu").to(apart.device)
        draws, taken = normalize(draws @ apart, dim=1), normalize(apart, dim=1)
        for name in tiny.UNSEEN_NAMES:
            direction = draws[(draws @ taken.T).amax(1).argmin()]
            taken = torch.cat([taken, direction[None]])
            table[ids[name]] = names.mean(0) + UNSEEN_SPREAD * apart.norm(dim=1).mean() * direction


_PERSONS = {*NAMES, *tiny.UNSEEN_NAMES}
_ATTRIBUTE_OF = {
    verb_of(template): name
    for facts in TEMPLATES.values()
    for name, templates in facts.items()
    for template in templates
}


def slot_of(content: str) -> tuple[str, str] | None:
    """Return the slot (person, attribute) of a fact sentence, or `None` for other sentences.

    Args:
        content: A sentence of the stream.

    >>> slot_of("Today dogs obey Mia"), slot_of("Once Mia saw Rome")
    (('Mia', 'pet'), None)
    """
    words = content.split()
    persons = [word for word in words if word in _PERSONS]
    attributes = [_ATTRIBUTE_OF[word] for word in words if word in _ATTRIBUTE_OF]
    if len(persons) != 1 or len(attributes) != 1:
        return None
    known = not {*words}.isdisjoint(ATTRIBUTES[attributes[0]].values)
    return (persons[0], attributes[0]) if known else None


def filled(contents: Sequence[str], stores: Sequence[Store]) -> FlatMemory:
    """Return a memory with these contents, layered where there are stores to put them in turn.

    Args:
        contents: Contents of the items, in the order of their writing.
        stores: Stores of a layered memory; none for a flat memory.
    """
    memory = LayeredMemory() if stores else FlatMemory()
    memory.apply(
        [
            Operation("UPDATE" if store == "core" else "INSERT", content, None, store)
            for content, store in zip(contents, itertools.cycle(stores or (None,)), strict=False)
        ],
        1,
    )
    return memory


def held_out_observation(
    rng: random.Random,
    records: int,
    names: tuple[str, ...],
    world: World = "plain",
    stores: tuple[Store, ...] = (),
) -> Observation | None:
    """Return a step of a planted stream with `records` of its earlier sentences in memory.

    The records may be stale or noise, and at least one is about a slot in the chunk; the result is
    `None` if the draw does not fulfil this.

    Args:
        rng: Source of all draws.
        records: Number of sentences in the memory.
        names: Persons of the stream.
        world: How the stream is worded.
        stores: As in `evaluate`.
    """
    stream = planted_stream(
        rng.getrandbits(40),
        StreamSettings(
            num_chunks=12,
            people=rng.randint(2, 6),
            names=names,
            world=world,
        ),
    )
    step = rng.randint(2, 12)
    past = list(
        dict.fromkeys(
            unit.rstrip(".") for chunk in stream.chunks[: step - 1] for unit in units(chunk.text)
        )
    )
    if len(past) < records:
        return None
    kept = [past[place] for place in sorted(rng.sample(range(len(past)), records))]
    spoken_of = {slot_of(unit.rstrip(".")) for unit in units(stream.chunks[step - 1].text)} - {None}
    if spoken_of.isdisjoint(map(slot_of, kept)):
        return None
    memory = filled(kept, stores)
    return Observation(stream, memory.items, stream.chunks[step - 1], step)


class StepsToMeasure(Protocol):
    """Other steps than those of a planted stream, for `evaluate`."""

    more: tuple[str, ...]
    """The shares that `count` measures besides `COUNTED`."""

    def draw(
        self, rng: random.Random, records: int, stores: tuple[Store, ...]
    ) -> Observation | None:
        """Return a step with `records` items in memory; `None` if the draw does not give one.

        Args:
            rng: Source of all draws.
            records: Items in the memory.
            stores: As in `evaluate`.
        """

    def count(
        self,
        observation: Observation,
        outcomes: Sequence[OperationOutcome],
        tally: dict[str, list[bool]],
        kinds: dict[OperationKind, int],
    ) -> list[OperationOutcome]:
        """Count what is no copy of a sentence, and return the other outcomes.

        Args:
            observation: The step.
            outcomes: Outcomes of a completion's operations.
            tally: Hits by share, extended in place.
            kinds: Operations by kind, changed in place.
        """


def evaluate(
    manager: ModelManager,
    samples: int,
    seed: int,
    records: int,
    names: tuple[str, ...] = NAMES,
    world: World = "plain",
    stores: tuple[Store, ...] = (),
    steps: StepsToMeasure | None = None,
) -> dict[str, float | int | None]:
    """Sample completions on held-out steps and return the measures of the model card.

    The shares are of the completions (`valid_json`), of the emitted operations (`executable`), of
    the contents (`exact_copy`), of the UPDATEs and DELETEs whose sentence has a record
    (`right_record`; the sentence of a DELETE is the one inserted just before it), and of all
    UPDATEs and DELETEs (`without_record`); `None` where the denominator is 0.

    Args:
        manager: The manager to measure.
        samples: Number of completions, at least 1.
        seed: Seed of the sampling and the steps.
        records: Items in the memory of every step.
        names: Persons of the streams.
        world: How the streams are worded.
        stores: Stores that the items of a layered memory lie in, in turn; none for a flat memory.
        steps: How the steps are drawn and judged, in place of held-out planted steps.
    """
    rng = generator("warm-start card", seed, records)
    draw: Callable[[], Observation | None] = partial(
        held_out_observation, rng, records, names, world, stores
    )
    if steps is not None:
        draw = partial(steps.draw, rng, records, stores)
    observations: list[Observation] = []
    while len(observations) < samples:
        observations += filter(None, [draw()])
    tally: dict[str, list[bool]] = {name: [] for name in (*COUNTED, *(steps.more if steps else ()))}
    kinds = dict.fromkeys(OPERATION_KINDS, 0)
    completions = manager.act(observations, seed)
    for observation, completion in zip(observations, completions, strict=True):
        tally["valid_json"].append(_is_json_list(completion.text))
        items = observation.items
        memory = filled(
            [item.content for item in items], [item.store for item in items] if stores else []
        )
        outcomes, _ = memory.apply(completion.operations, 2)
        tally["executable"] += [outcome.applied for outcome in outcomes]
        copies = steps.count(observation, outcomes, tally, kinds) if steps else outcomes
        _count_operations(observation, copies, tally, kinds)
    figures: dict[str, float | int | None] = {
        name: sum(hits) / len(hits) if hits else None for name, hits in tally.items()
    }
    return {
        "records": records,
        "completions": samples,
        **figures,
        "edits_with_record": len(tally["right_record"]),
        **{kind.lower(): count for kind, count in kinds.items()},
    }


COUNTED = (
    "valid_json",
    "executable",
    "exact_copy",
    "right_record",
    "without_record",
    "fact_kept",
    "noise_kept",
)
"""The shares that `evaluate` returns, in the order of the card."""


def _is_json_list(text: str) -> bool:
    try:
        return isinstance(json.loads(text), list)
    except ValueError:
        return False


def _count_operations(
    observation: Observation,
    outcomes: Sequence[OperationOutcome],
    tally: dict[str, list[bool]],
    kinds: dict[OperationKind, int],
) -> None:
    """Count the outcomes of one completion's operations in `tally` and `kinds`."""
    sentences = sentences_of(observation.chunk)
    slots = {item.item_id: slot_of(item.content) for item in observation.items}
    about, written = None, set()
    for outcome in outcomes:
        operation = outcome.operation
        if operation is None:
            about = None
            continue
        kinds[operation.kind] += 1
        if operation.content is not None:
            tally["exact_copy"].append(operation.content in sentences)
            about = slot_of(operation.content)
            written.add(operation.content)
        if operation.kind in ("UPDATE", "DELETE") and operation.store != "core":
            has_record = about is not None and about in slots.values()
            tally["without_record"].append(not has_record)
            if has_record:
                tally["right_record"].append(slots.get(operation.item_id or "") == about)
    structured = "event_kept" in tally
    for sentence in sentences:
        plain = "fact" if slot_of(sentence) else "noise"
        tally[f"{kind_of(sentence) if structured else plain}_kept"].append(sentence in written)


def sentences_of(chunk: Chunk) -> list[str]:
    """Return the sentences of a chunk without their full stops and without a date line.

    Args:
        chunk: A chunk of a planted stream.
    """
    found = [unit.rstrip(".") for unit in units(chunk.text)]
    return [sentence for sentence in found if not sentence.startswith(tiny.DATE_LINE)]


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# Tiny memory manager: warm start

A Qwen3 of {parameters:,} parameters ({megabytes:.2f} MB) with a word-level tokenizer of its own, to
start GRPO on the {world} world of the planted stream from. It writes valid operations, copies
sentences and finds the record about the same person and attribute. It has **no** sense for what is
worth keeping: it was shown random choices, and choosing is left to GRPO. Greedy decoding therefore
skips everything; sample from it.

Made by `python -m finemem_lib.training.warm_start --output DIR {flags}`:
{steps} updates
of {batch} demonstrations.

**Data.** Demonstrations drawn by `warm_start.demonstration`, none stored: memories of 0 to
{max_records} records (facts about 2 to 6 of {names} people, repeated slots, up to half noise),
chunks of 1 to 6 sentences. The sentences are taken in turn; {kept:.0%} are kept
({kept_at_first:.0%} in the first {kept_from:.0%} of the updates, for more practice), the others
answered with SKIP. A kept fact whose slot has a record updates the latest one (50 %), is inserted
and the record deleted (20 %), or is only inserted (30 %). In the first {guided:.0%} of the updates
the attention of all eight heads is guided.

**Text it can read.** The {world} world of the planted stream. A chunk with more than {unknown:.0%}
unknown words is refused.

## Measured

Sampled at temperature 1 on held-out steps of the planted stream by `warm_start.evaluate`
(`measured.jsonl`, made as `measured.json` says), with the given number of records in the memory
(stale values and noise among them, at least one about a slot that the chunk speaks of), {samples}
completions per row. Valid JSON: share of the completions. Executable: share of the operations that
the memory applies. Exact copy: share of the written contents that are sentences of the chunk. Right
record: of the UPDATEs and DELETEs whose sentence has a record (their number in brackets). Without
record: share of all UPDATEs and DELETEs whose sentence has none. Fact and noise kept: shares of the
chunks' sentences that were written. The last rows use {unseen} names that no demonstration ever
showed; their embeddings are drawn from the normal distribution that the embeddings of the {names}
seen names span, apart from those.

| names | records | {columns} |
|---|---|{rule}|
{rows}
"""

MEASURED = "measured.jsonl"
"""File in the checkpoint's folder with the rows of the card's figures."""


def write_card(
    folder: Path,
    seed: int,
    steps: int,
    samples: int,
    world: World = "plain",
    final: Path | None = None,
) -> str:
    """Measure the checkpoint in `folder`, write rows and card there, and return the card.

    Args:
        folder: Folder of the checkpoint.
        seed: Seed of the training; seed + 1 draws the measured steps.
        steps: Number of updates of the training.
        samples: Number of completions per row.
        world: World of the checkpoint.
        final: Final path of the folder, if it will be renamed.

    Raises:
        ValueError: The folder holds no checkpoint.
        OSError: The folder cannot be written to.
    """
    flags = f"--seed {seed}" + ("" if world == "plain" else f" --world {world}")
    flags += "" if steps == STEPS else f" --steps {steps}"
    manager, rows = measure(
        folder, "warm_start", flags, samples, seed + 1, final=final, worded=world
    )
    card = CARD.format(
        parameters=manager.model.num_parameters(),
        steps=steps,
        megabytes=(folder / "model.safetensors").stat().st_size / 1e6,
        world=world,
        flags=flags,
        samples=samples,
        **table_of_card(rows),
        **_settings_of_card(),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def measure(
    folder: Path,
    module: str,
    flags: str,
    samples: int,
    seed: int,
    *,
    final: Path | None = None,
    worded: World = "plain",
    stores: tuple[Store, ...] = (),
    rows_of: Callable[[ModelManager], list[dict[str, Any]]] | None = None,
) -> tuple[ModelManager, list[dict[str, Any]]]:
    """Measure a checkpoint, and write the rows and how they were made into its folder.

    Args:
        folder: Folder of the checkpoint.
        module: Module of `finemem_lib.training` that measures it.
        flags: Options of that command, without the folder and the samples.
        samples: Number of completions per row.
        seed: Seed of the measured steps.
        final: Final path of the folder, if it will be renamed.
        worded: World of the checkpoint.
        stores: As for `evaluate`.
        rows_of: Measures the manager in place of the default.

    Returns:
        The manager, and its rows: by default one for seen and unseen names per number of records.
    """
    git, started = git_state(code_root()), time.perf_counter()
    manager = load_manager(folder)
    if rows_of is None:
        rows_of = partial(_rows, samples=samples, seed=seed, worded=worded, stores=stores)
    rows = rows_of(manager)
    root, whole = workbench_root(), (final or folder).resolve()
    shown = whole.relative_to(root) if whole.is_relative_to(root) else whole.name
    with written_beside(folder / MEASURED) as beside:
        beside.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")
    weights = (folder / "model.safetensors").read_bytes()
    write_json(
        (folder / MEASURED).with_suffix(".json"),
        {
            "command": f"python -m finemem_lib.training.{module} --measure {shown} {flags} "
            f"--samples {samples}",
            "seed": seed,
            "weights_sha256": hashlib.sha256(weights).hexdigest(),
            "seconds": round(time.perf_counter() - started),
            "hardware": f"{hardware()}, one process",
            "git": git,
            "versions": versions(),
        },
    )
    return manager, rows


def _rows(
    manager: ModelManager, samples: int, seed: int, worded: World, stores: tuple[Store, ...]
) -> list[dict[str, Any]]:
    """Return a row for seen and unseen names per number of records."""
    return [
        {"names": title, **evaluate(manager, samples, seed, records, names, worded, stores)}
        for title, names, sizes in (
            ("seen", NAMES, (3, 6, 10, 16)),
            ("never seen", tiny.UNSEEN_NAMES, (3, 10)),
        )
        for records in sizes
    ]


def table_of_card(
    rows: Sequence[Mapping[str, Any]], first: str = "names", more: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return the parts of the card's table: "columns", "rule" and "rows".

    Args:
        rows: The rows of `measure`.
        first: Name of what the first column of a row holds.
        more: Shares besides `COUNTED`.
    """
    columns = (*COUNTED, *more)
    return {
        "columns": " | ".join(name.replace("_", " ") for name in columns),
        "rule": "|".join("---" for _ in columns),
        "rows": "\n".join(_line(row, first, columns) for row in rows),
    }


def _settings_of_card() -> dict[str, Any]:
    """Return the values in the card that are the same for every warm start."""
    return {
        "batch": BATCH,
        "max_records": tiny.MAX_RECORDS,
        "names": len(NAMES),
        "kept": KEPT,
        "kept_at_first": KEPT_AT_FIRST,
        "kept_from": KEPT_FROM,
        "guided": GUIDED,
        "unknown": tiny.UNKNOWN_SHARE,
        "unseen": len(tiny.UNSEEN_NAMES),
    }


def _line(row: Mapping[str, Any], first: str, columns: tuple[str, ...]) -> str:
    """Return a row of the card's table."""
    cells = ["-" if row.get(name) is None else f"{row[name]:.3f}" for name in columns]
    cells[3] += f" ({row['edits_with_record']})"
    return f"| {row[first]} | {row['records']} | {' | '.join(cells)} |"


def main(arguments: list[str] | None = None) -> None:
    """Train, save and measure a warm start, or measure an existing one; the folder is atomic.

    Args:
        arguments: Command-line arguments; `None` for those of the process.
    """
    parser = parser_of("warm_start", __doc__, STEPS)
    parser.add_argument("--world", choices=get_args(World), default="plain", help="what it reads")
    make_or_measure(
        parser,
        arguments,
        lambda given: (
            train(given.seed, given.steps, world=given.world)[0],
            tiny.tiny_tokenizer(given.world),
        ),
        lambda given, folder, final: write_card(
            folder, given.seed, given.steps, given.samples, given.world, final
        ),
    )


def parser_of(module: str, text: str | None, steps: int) -> argparse.ArgumentParser:
    """Return the parser of a command that makes a warm start, or measures one.

    Args:
        module: Module of `finemem_lib.training` with the command.
        text: Its docstring.
        steps: Default number of updates.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m finemem_lib.training.{module}",
        description=(text or "").partition("\n")[0],
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--output", type=Path, help="folder to make")
    what.add_argument("--measure", type=Path, help="folder that --output made, to measure again")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=steps, help="updates (default: %(default)s)")
    parser.add_argument("--samples", type=int, default=1000, help="completions per row of the card")
    return parser


def make_or_measure(
    parser: argparse.ArgumentParser,
    arguments: list[str] | None,
    make: Callable[[argparse.Namespace], tuple[PreTrainedModel, PreTrainedTokenizerBase]],
    card: Callable[[argparse.Namespace, Path, Path | None], str],
) -> None:
    """Run the command of `parser_of`; its folder is written atomically.

    Args:
        parser: Reads the arguments.
        arguments: The words after the command; `None` for those of the process.
        make: Returns the trained model and its tokenizer.
        card: Measures the checkpoint of a folder, which may be renamed, and returns its card.
    """
    from transformers.utils import logging

    given = parser.parse_args(arguments)
    if given.output and given.output.exists():
        parser.error(f"--output {given.output} exists; name a new folder, or remove this one first")
    if given.measure and not (given.measure / "model.safetensors").is_file():
        parser.error(f"--measure {given.measure} holds no checkpoint; make one with --output")
    if min(given.steps, given.samples) < 1:
        parser.error("--steps and --samples: expected at least 1")
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    if given.measure:
        print(card(given, given.measure, None))
        return
    given.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=given.output.parent, suffix=".tmp") as beside:
        folder = Path(beside) / given.output.name
        for part in make(given):
            part.save_pretrained(folder)
        text = card(given, folder, given.output)
        folder.rename(given.output)
    print(text)


if __name__ == "__main__":
    main()
