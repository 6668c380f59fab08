"""Scripted managers of the layered memory, and flat counterparts that write the same notes.

A note-taking manager writes a running summary, dated events, and facts. `layered-...` writes them
to core, episodic and semantic memory; `flat-...` writes the same texts to the one store of a flat
memory. A comparison of the two therefore measures the effect of the stores, not of the notes.
"""

from __future__ import annotations

import dataclasses
import random
import re
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finemem_lib.data.sentences import units
from finemem_lib.layers.memory import LayerRules
from finemem_lib.layers.operations import format_calls, parse_calls
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.managers.scripted import (
    HEADER,
    SCRIPTED,
    InsertAll,
    RandomManager,
    ScriptedManager,
)
from finemem_lib.retrievers.layered import SEARCHED
from finemem_lib.text import clean_text, count_tokens
from finemem_lib.trajectory import Operation

SUMMARY = "So far: "
"""Beginning of a running summary."""


class LayeredManager(ScriptedManager):
    """Scripted manager that writes Mem-alpha's calls; it needs a layered memory."""

    memory = "layered"

    def completion(self, operations: Sequence[Operation]) -> Completion:
        """Return operations as a list of Mem-alpha's calls.

        Args:
            operations: Operations of one step.
        """
        text = format_calls(operations)
        return Completion(text, parse_calls(text))


class LayeredInsertAll(LayeredManager):
    """Manager that stores every unit of the chunk in semantic memory."""

    name = "layered-insert-all"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        found = InsertAll().rule(observation, rng)
        return [Operation("INSERT", one.content, store="semantic") for one in found]


class LayeredRandom(LayeredManager):
    """`RandomManager` for the layered memory; every operation is valid.

    An item is inserted into semantic or episodic memory at random; with probability 1/4 a random
    unit of the chunk replaces the core.
    """

    name = "layered-random"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        listed = tuple(one for one in observation.items if one.store != "core")
        stores = {one.item_id: one.store for one in listed}
        stored = {one.content for one in observation.items}
        edits = RandomManager().rule(dataclasses.replace(observation, items=listed), rng)
        operations = [
            dataclasses.replace(one, store=stores[one.item_id])
            if one.item_id
            else dataclasses.replace(one, store=rng.choice(SEARCHED))
            for one in edits
        ]
        units_of_chunk = [one.content for one in InsertAll().rule(observation, rng)]
        if units_of_chunk and rng.random() < 0.25:
            core = rng.choice(units_of_chunk)
            if core is not None and core not in stored:
                operations.append(Operation("UPDATE", core, store="core"))
        return operations


@dataclass(frozen=True, slots=True)
class Notes:
    """The notes of one step.

    Attributes:
        summary: The new running summary; `None` if it is unchanged.
        events: Event sentences with their date, to insert.
        facts: Fact sentences, to insert.
        changes: Pairs of an item id and the sentence that replaces the item's content.
    """

    summary: str | None = None
    events: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()
    changes: tuple[tuple[str, str], ...] = ()


class NoteTaker(ScriptedManager):
    """Scripted manager that takes notes; `_Layered` and `_Flat` define how they are stored."""

    @abstractmethod
    def notes(self, observation: Observation, summary: str) -> Notes:
        """Return the notes of one step.

        Args:
            observation: Chunk and memory of the step.
            summary: The running summary before the step, "" if there is none.
        """


class _Layered(NoteTaker, LayeredManager):
    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        core = next((one.content for one in observation.items if one.store == "core"), "")
        notes = self.notes(observation, core)
        operations = [
            Operation("UPDATE", content, item_id, "semantic") for item_id, content in notes.changes
        ]
        if notes.summary is not None:
            operations.append(Operation("UPDATE", notes.summary, store="core"))
        operations += [Operation("INSERT", one, store="episodic") for one in notes.events]
        return operations + [Operation("INSERT", one, store="semantic") for one in notes.facts]


class _Flat(NoteTaker):
    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        held = [one for one in observation.items if one.content.startswith(SUMMARY)]
        notes = self.notes(observation, held[0].content if held else "")
        operations = [Operation("UPDATE", content, item_id) for item_id, content in notes.changes]
        new = [*notes.events, *notes.facts]
        if notes.summary is not None and held:
            operations.append(Operation("UPDATE", notes.summary, held[0].item_id))
        elif notes.summary is not None:
            new.insert(0, notes.summary)
        return operations + [Operation("INSERT", one) for one in new]


_DATE_LINE = re.compile(
    r"\b(\d{4}[-/]\d{1,2}[-/]\d{1,2}(?: \d{1,2}:\d{2})?|\d{1,2} [A-Z][a-z]{2,8},? \d{4})"
)
_PAST = re.compile(r"\A[A-Z]\w* (?:\w+ed|went|met|saw|left|came|bought|sold|lost|found)\b")
_RUNNING = re.compile(r"\A(The [a-z]\w*) (?:[a-z]+ )+([A-Z]\w*)")
_NAMED = re.compile(r"\A[A-Z]\w* [a-z].*(?:[A-Z]\w*|\d)|\A[A-Z]\w* [a-z]\w* \w+")
_RUMOURS = re.compile(r"\A[A-Z][a-z]{3,}s ")


class HeuristicNotes(NoteTaker):
    """Note-taker that classifies sentences by their form, without the planted truth.

    The date is that of the chunk's first line. A sentence "The <noun> ... <Name>" extends the
    running summary. A sentence that begins with a name and a verb in the past tense is a dated
    event. Other sentences that begin with a name are facts; one that has the first two words of a
    stored fact replaces it. Sentences that begin with a plural noun are left out.
    """

    settings: Mapping[str, Any] = {"core_tokens": LayerRules().core_tokens}

    def notes(self, observation: Observation, summary: str) -> Notes:
        text = clean_text(observation.chunk.text)
        dated = _DATE_LINE.search(text.split("\n", 1)[0])
        held = {
            _opening(item.content): item.item_id
            for item in observation.items
            if item.store in ("semantic", "flat")
        }
        running, events, facts, changes = summary, [], [], []
        for unit in units(HEADER.sub("", text)):
            sentence = unit.rstrip(".")
            if _RUMOURS.match(sentence):
                continue
            if found := _RUNNING.match(sentence):
                running = continued(running, found[1], found[2])
            elif dated and _PAST.match(sentence):
                events.append(f"On {dated[1]}: {sentence}")
            elif _NAMED.match(sentence):
                item_id = held.get(_opening(sentence))
                if item_id is None:
                    facts.append(sentence)
                else:
                    changes.append((item_id, sentence))
        changed = running if running != summary else None
        return Notes(changed, tuple(events), tuple(facts), tuple(dict(changes).items()))


def _opening(sentence: str) -> tuple[str, ...]:
    return tuple(sentence.split()[:2])


def continued(summary: str, subject: str, name: str, limit: int = 512) -> str:
    """Return a running summary with a name added to a subject; a full summary drops old names.

    Args:
        summary: The summary so far, "" if there is none.
        subject: Subject to which the name is added.
        name: Name to add.
        limit: Largest number of tokens; the subject with the most names loses its oldest first.

    >>> continued(continued("", "The caravan", "Fez"), "The caravan", "Oran")
    'So far: The caravan: Fez, Oran.'
    >>> continued("So far: The caravan: Fez.", "The court", "Riga")
    'So far: The caravan: Fez. The court: Riga.'
    """
    said: dict[str, list[str]] = {}
    for part in summary.removeprefix(SUMMARY).rstrip(".").split(". "):
        who, colon, what = part.partition(": ")
        if colon:
            said[who] = what.split(", ")
    names = said.setdefault(subject, [])
    if name not in names:
        names.append(name)
    while True:
        text = SUMMARY + " ".join(f"{who}: {', '.join(what)}." for who, what in said.items())
        longest = max(said.values(), key=len)
        if count_tokens(text) <= limit or len(longest) == 1:
            return text
        longest.pop(0)


class OracleNotes(NoteTaker):
    """Note-taker that notes exactly the planted facts, events and stops: an upper bound.

    Raises:
        ValueError: the instance is not a planted stream.
    """

    def notes(self, observation: Observation, summary: str) -> Notes:
        planted = observation.instance.metadata
        if "facts" not in planted:
            raise ValueError(
                f"instance {observation.instance.instance_id!r} of "
                f"{observation.instance.data_source!r} has no planted truth, which {self.name} "
                "needs; use layered-notes, flat-notes or an insert-all manager here"
            )
        step = observation.step
        held = {item.content: item.item_id for item in observation.items}
        slots = {
            (fact["person"], fact["attribute"]): held[fact["sentence"]]
            for facts in planted["facts"][: step - 1]
            for fact in facts
            if fact["sentence"] in held
        }
        facts, changes = [], []
        for fact in planted["facts"][step - 1]:
            item_id = slots.get((fact["person"], fact["attribute"]))
            if item_id is None:
                facts.append(fact["sentence"])
            else:
                changes.append((item_id, fact["sentence"]))
        running = summary
        for place in planted.get("stops", [[]] * step)[step - 1]:
            running = continued(running, "The caravan", place)
        events = tuple(
            f"On {event['date']}: {event['sentence']}"
            for event in planted.get("events", [[]] * step)[step - 1]
        )
        changed = running if running != summary else None
        return Notes(changed, events, tuple(facts), tuple(changes))


class LayeredNotes(_Layered, HeuristicNotes):
    """`HeuristicNotes` in a layered memory."""

    name = "layered-notes"


class FlatNotes(_Flat, HeuristicNotes):
    """`HeuristicNotes` in a flat memory."""

    name = "flat-notes"


class LayeredOracle(_Layered, OracleNotes):
    """`OracleNotes` in a layered memory."""

    name = "layered-oracle"


class FlatOracle(_Flat, OracleNotes):
    """`OracleNotes` in a flat memory."""

    name = "flat-oracle"


LAYERED: dict[str, type[ScriptedManager]] = {
    manager.name: manager
    for manager in (
        LayeredInsertAll,
        LayeredRandom,
        LayeredNotes,
        FlatNotes,
        LayeredOracle,
        FlatOracle,
    )
}
"""The managers of this file by name."""

ALL_SCRIPTED: dict[str, type[ScriptedManager]] = {**SCRIPTED, **LAYERED}
"""All scripted managers by name."""
