"""The seeded command that makes the warm starts for streams that need structure.

    python -m finemem_lib.training.structured_warm_start --output DIR --seed 0
    python -m finemem_lib.training.structured_warm_start --output DIR --seed 0 --layers

Both begin with the warm start of the flat memory ("tiny") and teach it the words of
`data.planted_layers`, and two notes that copy no sentence: an event with its date, and the
caravan's running summary with a new place. Each note follows the sentence that it is drawn from,
which is answered with SKIP then: a causal model has read the sentence before it decides on a note.
With `--layers` the last updates teach Mem-alpha's calls, as `layered_warm_start`; without it they
repeat the operations of the flat memory. So the two have read the same number of demonstrations.

Which sentences are kept, in which form and in which store, is drawn at random: all kinds of
sentences are kept equally often, and what is worth keeping is left to GRPO.
"""

from __future__ import annotations

import random
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.planted import ATTRIBUTES, NAMES
from finemem_lib.data.planted_layers import PLACES, LayerStream, kind_of, layer_stream
from finemem_lib.managers import tiny
from finemem_lib.managers.model import ModelManager
from finemem_lib.managers.protocol import Observation
from finemem_lib.seeds import generator
from finemem_lib.training.layered_warm_start import OTHER_CORE, ROUTE_CORE, as_calls, widened
from finemem_lib.training.warm_start import (
    BATCH,
    POOL,
    Demonstration,
    Sentence,
    Shown,
    ShownPrompt,
    add_operation,
    demonstration,
    embed_unseen_names,
    evaluate,
    filled,
    fit,
    guide_copy,
    make_or_measure,
    measure,
    parser_of,
    sentences_of,
    show,
    slot_of,
    table_of_card,
)
from finemem_lib.trajectory import (
    Instance,
    MemoryItem,
    Operation,
    OperationKind,
    OperationOutcome,
    Store,
)

if TYPE_CHECKING:
    from transformers import Qwen3ForCausalLM

STEPS = 600
ENDING = 300
LEARNING_RATE = 2e-3
PLAIN = 0.3
"""Share of the demonstrations that show steps of the plain planted stream."""

KEPT, NOTED = 0.3, 0.5
"""Share of the sentences that are kept, and share of the kept events and stops kept in a note."""

KEPT_AT_FIRST, KEPT_FROM = 0.8, 0.6
"""Share that is kept before the share `KEPT_FROM` of the updates."""

GUIDED = 0.4
"""Share of the updates with guided attention."""

SUMMARISED = 0.6
"""Share of the memories that hold a running summary, once the caravan has moved."""

STEPS_OF_A_STREAM = 8
"""Demonstrations per stream on average, because drawing a stream takes longer than using it."""

ROUTE_SLOT = ("caravan", "route")
_FLAT = tiny.vocabulary(structured=True)
_CALLS = tiny.vocabulary(layers=True, structured=True)


def parsed(text: str) -> Sentence:
    """Return a sentence or a note of such a stream with the positions of its parts.

    Args:
        text: A sentence of a chunk without its full stop, a note, or a date line.

    >>> parsed("On 4 January 2024 Mia visited Fez").person
    4
    >>> parsed("Caravan route Oran Fez").slot
    ('caravan', 'route')
    """
    words = tuple(text.split())
    if words[0] in (tiny.DATE_LINE, tiny.ROUTE[0]):
        return Sentence(words, 0, 1, 2, ROUTE_SLOT if words[0] == tiny.ROUTE[0] else None)
    person = {tiny.DATED: 4, "The": 1}.get(words[0], 0)
    return Sentence(words, person, person + 1, len(words) - 1, slot_of(text))


def dated(sentence: str, date: str) -> str:
    """Return the note of an event.

    Args:
        sentence: Sentence of the event.
        date: Its day.

    >>> dated("Mia visited Fez", "4 January 2024")
    'On 4 January 2024 Mia visited Fez'
    """
    return f"{tiny.DATED} {date} {sentence}"


def extended(summary: str, place: str) -> str:
    """Return the running summary with a place, the newest first.

    Args:
        summary: The summary so far, "" if there is none.
        place: The place that the caravan reached.

    >>> extended(extended("", "Fez"), "Oran")
    'Caravan route Oran Fez'
    """
    return " ".join([*tiny.ROUTE, place, *summary.split()[len(tiny.ROUTE) :]])


def memory_of(
    rng: random.Random, stream: Instance, step: int, most: int, least: int = 0
) -> list[str]:
    """Return random notes of the chunks before a step, at most one of them a running summary.

    Args:
        rng: Source of all draws.
        stream: A stream of `data.planted_layers`.
        step: Number of the step, from 1.
        most: Largest number of notes.
        least: Smallest number of notes, if the chunks give so many.
    """
    stops: list[str] = []
    notes: list[str] = []
    summary, summarised = "", rng.random() < SUMMARISED
    until = rng.randint(1, max(step - 1, 1))
    for before in range(step - 1):
        for sentence in sentences_of(stream.chunks[before]):
            kind = kind_of(sentence)
            if kind == "stop" and summarised and before < until and rng.random() < 0.8:
                stops.append(sentence.split()[-1])
            elif kind == "event" and rng.random() < 0.5:
                notes.append(dated(sentence, stream.metadata["dates"][before]))
            else:
                notes.append(sentence)
    for place in stops:
        summary = extended(summary, place)
    notes = list(dict.fromkeys(notes))
    most = min(len(notes), most - bool(summary))
    number = rng.randint(max(0, min(most, least - bool(summary))), most)
    kept = [notes[place] for place in sorted(rng.sample(range(len(notes)), number))]
    if summary:
        kept.insert(rng.randint(0, len(kept)), summary)
    return kept


def random_stream(rng: random.Random) -> Instance:
    """Return a stream that needs structure, of 12 chunks about 2 to 6 people.

    Args:
        rng: Source of the draws.
    """
    return layer_stream(rng.getrandbits(40), LayerStream(people=rng.randint(2, 6)))


def structured_demonstration(
    rng: random.Random, progress: float, stream: Instance
) -> Demonstration:
    """Return a step of a stream that needs structure, with a completion that keeps at random.

    Args:
        rng: Source of all draws.
        progress: Share of the training done, in [0, 1].
        stream: A stream of `random_stream`.
    """
    step = rng.randint(1, len(stream.chunks))
    most = 6 + round((tiny.MAX_RECORDS - 6) * min(1.0, progress / KEPT_FROM))
    records = [parsed(note) for note in memory_of(rng, stream, step, most)]
    chunk = [parsed(sentence) for sentence in sentences_of(stream.chunks[step - 1])]
    date = parsed(f"{tiny.DATE_LINE} on {stream.metadata['dates'][step - 1]}")
    # Marks as in `demonstration`, and the date line with its bracket.
    fixed = 4 + len(date.words) + 1
    while fixed + sum(len(one.words) + 1 for one in records + chunk) > tiny.MAX_PROMPT_TOKENS:
        records.pop(0)
    aliases = list(tiny.ALIASES)
    if rng.random() < 0.5:
        rng.shuffle(aliases)
    demo = Demonstration(guided=progress < GUIDED)
    shown = show(demo, records, aliases, chunk, date)
    share = KEPT if progress >= KEPT_FROM else KEPT_AT_FIRST
    for sentence, start in zip(chunk, shown.starts, strict=True):
        _answer(demo, rng, sentence, start, shown, share)
    demo.add(tiny.CLOSE)
    demo.add(tiny.EOS)
    return demo


def _answer(
    demo: Demonstration,
    rng: random.Random,
    sentence: Sentence,
    start: int,
    shown: ShownPrompt,
    share: float,
) -> None:
    """Add the copy of a sentence with its operation and, for an event or a stop, maybe a note."""
    header = _header(demo, shown)
    demo.add_sentence(sentence)
    guide_copy(demo, header, range(start, start + len(sentence.words) + 1))
    kind, record = kind_of(" ".join(sentence.words)), shown.record(sentence)
    kept, draw = rng.random() < share, rng.random()
    noted = kept and kind in ("event", "stop") and draw < NOTED
    pieces = [tiny.INSERT]
    if noted or not kept:
        pieces = [tiny.SKIP]
    elif record != shown.nowhere and draw < 0.5:
        pieces = [tiny.UPDATE]
    elif record != shown.nowhere and draw < 0.7:
        pieces = [tiny.INSERT, tiny.DELETE]
    add_operation(demo, pieces, record)
    if noted:
        (_dated if kind == "event" else _extended)(demo, sentence, header + 1, shown)


def _header(demo: Demonstration, shown: ShownPrompt) -> int:
    opened = len(demo.ids) > demo.prompt_length
    return demo.add(tiny.NEXT_CONTENT if opened else tiny.FIRST_CONTENT)


def _dated(demo: Demonstration, sentence: Sentence, copied: int, shown: ShownPrompt) -> None:
    """Add the event at `copied` once more, with the date of the date line."""
    first = shown.starts[0] - 4  # day, month, year and bracket stand before the first sentence
    date = " ".join(_FLAT[number] for number in demo.ids[first : first + 3])
    header = _header(demo, shown)
    demo.add_sentence(parsed(dated(" ".join(sentence.words), date)))
    guide_copy(demo, header + 1, (*range(first, first + 3), *range(copied, copied + 3)))
    add_operation(demo, [tiny.INSERT], shown.nowhere)


def _extended(demo: Demonstration, sentence: Sentence, copied: int, shown: ShownPrompt) -> None:
    """Add the running summary with the place of the stop at `copied`."""
    record = shown.latest.get(ROUTE_SLOT, shown.nowhere)
    begins = record
    while record != shown.nowhere and _FLAT[demo.ids[begins]] != tiny.ROUTE[0]:
        begins -= 1
    summary = " ".join(_FLAT[number] for number in demo.ids[begins:record])
    header = _header(demo, shown)
    demo.add_sentence(parsed(extended(summary, sentence.words[-1])))
    old = range(begins + len(tiny.ROUTE), record + 1) if summary else (shown.nowhere,)
    guide_copy(demo, header + 2, (copied + len(sentence.words) - 1, *old))
    add_operation(demo, [tiny.UPDATE if summary else tiny.INSERT], record)


def batches(
    rng: random.Random, steps: int, layers: bool, least: float = 0.0
) -> Iterator[list[Shown]]:
    """Yield `steps` batches of demonstrations, of similar length within a batch.

    Args:
        rng: Source of all draws.
        steps: Number of batches.
        layers: Whether they show Mem-alpha's calls.
        least: Smallest progress of a demonstration, in [0, 1].
    """
    for begun in range(0, steps, POOL):
        progress = max(least, begun / steps)
        pool: list[Shown] = []
        streams = [random_stream(rng) for _ in range(POOL * BATCH // STEPS_OF_A_STREAM)]
        for _ in range(POOL * BATCH):
            if rng.random() < PLAIN:
                demo = demonstration(rng, 1.0)
            else:
                demo = structured_demonstration(rng, progress, rng.choice(streams))
            tokens = [_FLAT[number] for number in demo.ids]
            pool.append(as_calls(tokens, demo.prompt_length, rng, True) if layers else demo)
        pool.sort(key=lambda demo: len(demo.ids))
        parts = [pool[start : start + BATCH] for start in range(0, len(pool), BATCH)]
        rng.shuffle(parts)
        yield from parts[: steps - begun]


def _like(token: str) -> Sequence[str]:
    """Return the words of the plain world that a new word is used like."""
    values = [value for attribute in ATTRIBUTES.values() for value in attribute.values]
    if token in PLACES:
        return ATTRIBUTES["home"].values
    if token in tiny.DATE_WORDS:
        return values
    if token in ("camped", "went", tiny.ROUTE[1]):
        return ("reached", "visited", "moved")
    if token in (tiny.DATED, "The"):
        return ("Yesterday", "Once", "Today", "Perhaps")
    return NAMES  # "[Dialogue", "caravan" and "Caravan", of which a sentence speaks


def train(
    seed: int, steps: int, layers: bool = False, log_every: int = 50
) -> tuple[Qwen3ForCausalLM, list[float]]:
    """Train a warm start in two parts; return it with the completion loss of every update.

    Args:
        seed: Seed of the new embeddings and the demonstrations.
        steps: Number of updates of the first part; `ENDING` follow.
        layers: Whether it writes calls on a layered memory.
        log_every: Updates between printed lines; 0 prints none.
    """
    begun, losses = begin(seed, steps, log_every)
    ended, more = end(begun, seed, layers, log_every)
    return ended, losses + more


def begin(seed: int, steps: int, log_every: int = 50) -> tuple[Qwen3ForCausalLM, list[float]]:
    """Teach the flat warm start the new words and notes, the same for both memories.

    Args:
        seed: Seed of the new embeddings and the demonstrations.
        steps: Number of updates.
        log_every: Updates between printed lines; 0 prints none.
    """
    model = widened(seed, "tiny", tiny.vocabulary(), _FLAT, _like, 1.0)
    model.set_attn_implementation("eager")
    losses = fit(
        model,
        batches(generator("structured warm start", seed, False), steps, layers=False),
        steps,
        learning_rate=LEARNING_RATE,
        rate=_rate(steps),
        aliases=[_FLAT.index(alias) for alias in tiny.ALIASES],
        guided=lambda step: min(1.0, max(0.0, (GUIDED - step / steps) / 0.2)),
        log_every=log_every,
    )
    embed_unseen_names(model, seed)
    return model, losses


def end(
    begun: Qwen3ForCausalLM, seed: int, layers: bool, log_every: int = 50
) -> tuple[Qwen3ForCausalLM, list[float]]:
    """Train a model of `begin` for `ENDING` updates on what its memory asks for.

    Args:
        begun: The model.
        seed: Seed of the new embeddings and the demonstrations.
        layers: Whether it shall write calls on a layered memory.
        log_every: Updates between printed lines; 0 prints none.
    """
    tokens = _CALLS if layers else _FLAT
    model = widened(seed, begun, _FLAT, tokens)
    losses = fit(
        model,
        batches(generator("structured warm start, end", seed, layers), ENDING, layers, 1.0),
        ENDING,
        learning_rate=LEARNING_RATE / 2,
        rate=_rate(ENDING),
        aliases=[tokens.index(alias) for alias in (tiny.CALL_ALIASES if layers else tiny.ALIASES)],
        log_every=log_every,
    )
    embed_unseen_names(model, seed)  # the flat tokens have the ids that they have there
    return model, losses


def _rate(steps: int) -> Callable[[int], float]:
    """Return the share of the learning rate by update: it rises, stays, and falls to almost 0."""
    return lambda step: min((step + 1) / 20, 1.0, max(0.02, 1.2 * (1 - step / steps)))


class StructuredSteps:
    """Held-out steps of streams that need structure, for `warm_start.evaluate`.

    `event_kept` and `stop_kept` are the shares of the sentences that were copied, `event_dated` and
    `stop_in_summary` the shares that a right note keeps; `right_date` and `right_summary` are
    shares of the notes. A dated note is right if it is inserted, and wrong in an update, even one
    of an empty core. A summary is right if it holds the place before those of the old summary and
    takes its place; where there is no old one, it is inserted or becomes the core.
    """

    more: tuple[str, ...] = (
        "event_kept",
        "event_dated",
        "stop_kept",
        "stop_in_summary",
        "right_date",
        "right_summary",
    )

    def draw(
        self, rng: random.Random, records: int, stores: tuple[Store, ...]
    ) -> Observation | None:
        """Return a step with `records` notes in memory; `None` if the draw does not give one.

        Args:
            rng: Source of all draws.
            records: Items in the memory.
            stores: Stores that the items lie in, in turn; half of the summaries lie in the core.
        """
        stream = random_stream(rng)
        step = rng.randint(2, len(stream.chunks))
        notes = memory_of(rng, stream, step, records, records)
        told = {slot_of(sentence) for sentence in sentences_of(stream.chunks[step - 1])} - {None}
        if len(notes) != records or told.isdisjoint(map(slot_of, notes)):
            return None
        core = rng.random() < ROUTE_CORE
        places = [
            "core" if core and _is_summary(note) else stores[number % len(stores)]
            for number, note in enumerate(notes if stores else ())
        ]
        return Observation(stream, filled(notes, places).items, stream.chunks[step - 1], step)

    def count(
        self,
        observation: Observation,
        outcomes: Sequence[OperationOutcome],
        tally: dict[str, list[bool]],
        kinds: dict[OperationKind, int],
    ) -> list[OperationOutcome]:
        """Count the notes, and return the outcomes of the other operations.

        Args:
            observation: A step of `draw`.
            outcomes: Outcomes of a completion's operations.
            tally: Hits by share, extended in place.
            kinds: Operations by kind, changed in place.
        """
        sentences = sentences_of(observation.chunk)
        date = observation.instance.metadata["dates"][observation.step - 1]
        old = next((item for item in observation.items if _is_summary(item.content)), None)
        due = {
            dated(sentence, date)
            if kind_of(sentence) == "event"
            else extended(old.content if old else "", sentence.split()[-1]): sentence
            for sentence in sentences
            if kind_of(sentence) in ("event", "stop")
        }
        others, kept = [], set()
        for outcome in outcomes:
            operation = outcome.operation
            content = operation.content if operation else None
            if operation is None or not content or not _is_note(content):
                others.append(outcome)
                continue
            kinds[operation.kind] += 1
            right = content in due and _in_its_place(operation, old)
            tally["right_summary" if _is_summary(content) else "right_date"].append(right)
            kept |= {due[content]} if right and outcome.applied else set()
        for sentence in due.values():
            name = "event_dated" if kind_of(sentence) == "event" else "stop_in_summary"
            tally[name].append(sentence in kept)
        return others


def _in_its_place(operation: Operation, old: MemoryItem | None) -> bool:
    """Return whether a note is written where `StructuredSteps` takes it for right.

    Args:
        operation: The write, whose content is a dated note or a summary.
        old: The summary that the memory holds; `None` if there is none, and then no core either.

    Returns:
        Whether a dated note is inserted, and a summary takes the place of the old one or, without
        one, is inserted or made the core.
    """
    if not _is_summary(operation.content or ""):
        return operation.kind == "INSERT"
    if old is None:
        return operation.kind == "INSERT" or operation.store == "core"
    target = operation.item_id or operation.store  # a call names no id of the core
    return operation.kind == "UPDATE" and target == old.item_id


def _is_summary(content: str) -> bool:
    return content.startswith(tiny.ROUTE[0])


def _is_note(content: str) -> bool:
    return content.split()[0] in (tiny.DATED, tiny.ROUTE[0])


def rows_of(manager: ModelManager, samples: int, seed: int, layers: bool) -> list[dict[str, Any]]:
    """Return the rows of the card: streams that need structure, and plain ones.

    Args:
        manager: The manager to measure.
        samples: Number of completions per row.
        seed: Seed of the steps and the sampling.
        layers: Whether it writes calls on a layered memory.
    """
    stores = tiny.CALL_STORES if layers else ()
    found: list[dict[str, Any]] = []
    for streams, steps in (("structured", StructuredSteps()), ("plain", None)):
        for records in (3, 6, 10, 16) if steps else (3, 10):
            row = evaluate(manager, samples, seed, records, stores=stores, steps=steps)
            found.append({"streams": streams, **row})
    return found


CARD = """---
license: apache-2.0
library_name: transformers
pipeline_tag: text-generation
---
# Tiny memory manager for streams that need structure{title}: warm start

A Qwen3 of {parameters:,} parameters that reads the streams of `data.planted_layers` (facts, dated
events, a caravan's route) and the plain planted stream, and writes {writes}.
Besides copies of sentences it writes two notes, each after the sentence it is drawn from: an event
with its date ("On 4 January 2024 Mia visited Fez"), and the running summary with a new place
("Caravan route Oran Fez", the newest first), which takes the place of the old summary. It has
**no** sense for what is worth keeping{where}: its demonstrations keep every kind of sentence
equally often, and an event or a stop as a copy or as a note. Choosing is left to GRPO. Sample from
it; greedy decoding skips everything.

Made by `python -m finemem_lib.training.structured_warm_start --output DIR {flags}` from the warm
start `tiny`:
{steps} updates of {batch} demonstrations for a flat memory, then {ending} for {memory}, {plain:.0%}
of them of the plain stream. {kept:.0%} of the sentences are kept ({kept_at_first:.0%} in the first
{kept_from:.0%} of the first updates, for more practice), {noted:.0%} of the kept events and stops
in a note{core}. Of the events that it keeps, the trained manager notes far fewer with their
date than the demonstrations do: it copies most ("event kept" and "event dated" below).

## Measured

Sampled at temperature 1 on held-out steps by `warm_start.evaluate` (`measured.jsonl`, made as
`measured.json` says), {samples} completions per row, with the given number of notes in the memory;
the card of the flat warm start explains the first columns. Event and stop kept: shares of the
sentences that were copied. Event dated, stop in summary: shares that a right note keeps. Right
date: of the dated notes, those with a sentence and its date that are inserted; an update with
one{even} counts as wrong. Right summary: of the summaries, those that hold the new place and all
old ones and take the place of the old summary, or are inserted{first} where there is none.

| streams | records | {columns} |
|---|---|{rule}|
{rows}
"""


def write_card(given: Namespace, folder: Path, final: Path | None = None) -> str:
    """Measure the checkpoint in `folder`, write rows and card there, and return the card.

    Args:
        given: Options of the command: seed, steps, samples and layers.
        folder: Folder of the checkpoint.
        final: Where the folder will lie, if it is still to be renamed.

    Raises:
        ValueError: The folder holds no checkpoint.
        OSError: It cannot be written to.
    """
    flags = f"--seed {given.seed}" + (" --layers" if given.layers else "")
    flags += "" if given.steps == STEPS else f" --steps {given.steps}"
    manager, rows = measure(
        folder,
        "structured_warm_start",
        flags,
        given.samples,
        given.seed + 1,
        final=final,
        rows_of=lambda manager: rows_of(manager, given.samples, given.seed + 1, given.layers),
    )
    card = CARD.format(
        title=" in a layered memory" if given.layers else "",
        writes="Mem-alpha's calls on a layered memory" if given.layers else "a flat memory",
        where=" and in which store" if given.layers else "",
        even=", even of an empty core," if given.layers else "",
        first=" or made the core" if given.layers else "",
        core=(
            f";\n{ROUTE_CORE:.0%} of the summaries and {OTHER_CORE:.0%} of the other new items go "
            "to the core, the rest to semantic or episodic memory"
            if given.layers
            else ""
        ),
        parameters=manager.model.num_parameters(),
        flags=flags,
        memory="a layered one" if given.layers else "the same",
        ending=ENDING,
        kept_at_first=KEPT_AT_FIRST,
        kept_from=KEPT_FROM,
        steps=given.steps,
        batch=BATCH,
        plain=PLAIN,
        kept=KEPT,
        noted=NOTED,
        samples=given.samples,
        **table_of_card(rows, "streams", StructuredSteps.more),
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    return card


def main(arguments: list[str] | None = None) -> None:
    """Train, save, measure; the folder appears whole or not at all.

    Args:
        arguments: The words after the command, by default those of this process.
    """
    parser = parser_of("structured_warm_start", __doc__, STEPS)
    parser.add_argument("--layers", action="store_true", help="write calls on a layered memory")
    make_or_measure(
        parser,
        arguments,
        lambda given: (
            train(given.seed, given.steps, given.layers)[0],
            tiny.tiny_tokenizer(layers=given.layers, structured=True),
        ),
        write_card,
    )


if __name__ == "__main__":
    main()
