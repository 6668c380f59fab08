"""Memory managers that follow a script: baselines and references."""

from __future__ import annotations

import random
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from finemem_lib.data.sentences import units
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.operations import format_operations, parse_operations
from finemem_lib.seeds import generator
from finemem_lib.text import clean_text
from finemem_lib.trajectory import Chunk, Operation


class ScriptedManager(ABC):
    """A manager that follows a rule; SKIP is emitted where the rule has no operation.

    Rules emit edits before INSERTs, because an INSERT may evict the item that an edit names.

    Attributes:
        name: Its name on the command line and in records.
        settings: Recorded in its trajectories.
        memory: The kind of memory that it needs; `None` where any will do.
    """

    name: str
    memory: str | None = None
    settings: Mapping[str, Any] = {}

    @abstractmethod
    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        """Return the operations of one step.

        Args:
            observation: The step: chunk and memory.
            rng: Source of the rule's random choices.
        """

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return the rule's operations for every observation, as `MemoryManager.act`.

        Args:
            observations: Observations of this step, one per rollout.
            seed: Source of the rule's random choices.
        """
        completions = []
        for row, observation in enumerate(observations):
            rng = generator(self.name, seed, row)
            completions.append(self.completion(self.rule(observation, rng)))
        return completions

    def completion(self, operations: Sequence[Operation]) -> Completion:
        """Return operations as a completion in the manager's format, parsed like a model's.

        Args:
            operations: Operations of one step; without any, the completion is a SKIP.
        """
        text = format_operations(operations or [Operation("SKIP")])
        return Completion(text, parse_operations(text))


HEADER = re.compile(r"\A\s*\[[^\[\]\n]*\][ \t]*(?=\n)")
"""The first line in square brackets that dates a dialogue or a reading."""


def chunk_units(chunk: Chunk) -> list[str]:
    """Return the chunk's units without the bracketed line that dates a dialogue or a reading.

    Args:
        chunk: The chunk.
    """
    return units(HEADER.sub("", clean_text(chunk.text)))


def _inserts(contents: Sequence[str]) -> list[Operation]:
    return [Operation("INSERT", content) for content in contents]


class InsertAll(ScriptedManager):
    """Stores every unit of the chunk as an item of its own: labelled examples whole, or sentences.

    A first line in square brackets (date and speakers of the wrapper) is left out.
    """

    name = "insert-all"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        return _inserts(chunk_units(observation.chunk))


class InsertChunk(ScriptedManager):
    """Stores every chunk whole, as retrieval over raw chunks does."""

    name = "raw-chunks"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        text = clean_text(observation.chunk.text).strip()
        return _inserts([text] if text else [])


def _planted_facts(observation: Observation) -> list[list[dict[str, Any]]]:
    """Return the facts of every chunk up to this one."""
    facts = observation.instance.metadata.get("facts")
    if facts is None:
        raise ValueError(
            f"instance {observation.instance.instance_id!r} of "
            f"{observation.instance.data_source!r} has no planted truth, which the facts-only and "
            "oracle managers need; use insert-all or keyword here (on the command line: "
            "--profile real)"
        )
    known: list[list[dict[str, Any]]] = facts[: observation.step]
    return known


class FactsOnly(ScriptedManager):
    """Stores the planted fact sentences and nothing else; an old value stays beside the new one.

    Raises:
        ValueError: the instance is not a planted stream.
    """

    name = "facts-only"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        return _inserts([fact["sentence"] for fact in _planted_facts(observation)[-1]])


class Oracle(ScriptedManager):
    """Keeps one item per planted slot: a changed fact updates the item that held the old value.

    Raises:
        ValueError: the instance is not a planted stream.
    """

    name = "oracle"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        *earlier, new = _planted_facts(observation)
        held = {item.content: item.item_id for item in observation.items}
        slots = {
            (fact["person"], fact["attribute"]): held[fact["sentence"]]
            for facts in earlier
            for fact in facts
            if fact["sentence"] in held
        }
        updates, inserts = [], []
        for fact in new:
            item_id = slots.get((fact["person"], fact["attribute"]))
            if item_id is None:
                inserts.append(Operation("INSERT", fact["sentence"]))
            else:
                updates.append(Operation("UPDATE", fact["sentence"], item_id))
        return updates + inserts


class OracleReplace(Oracle):
    """As the oracle, but a changed fact deletes the old item and inserts a new one.

    Raises:
        ValueError: the instance is not a planted stream.
    """

    name = "oracle-replace"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        edits = super().rule(observation, rng)
        changed = [one for one in edits if one.kind == "UPDATE"]
        return [
            *(Operation("DELETE", item_id=one.item_id) for one in changed),
            *(Operation("INSERT", one.content) for one in edits),
        ]


class RandomManager(ScriptedManager):
    """Keeps each unit with probability 1/2; a kept unit overwrites a random item with probability
    1/6, and one random item is deleted with probability 1/10. Every operation is a valid one."""

    name = "random"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        free = [item.item_id for item in observation.items]
        rng.shuffle(free)
        edits = [Operation("DELETE", item_id=free.pop())] if free and rng.random() < 0.1 else []
        inserts = []
        stored = {item.content for item in observation.items}
        for content in dict.fromkeys(chunk_units(observation.chunk)):
            if content in stored or rng.random() < 0.5:
                continue
            if free and rng.random() < 1 / 6:
                edits.append(Operation("UPDATE", content, free.pop()))
            else:
                inserts.append(Operation("INSERT", content))
        return edits + inserts


class KeywordManager(ScriptedManager):
    """Stores the units that hold a number, a date or a name.

    A name is a word with a capital letter inside a unit; where it begins a unit, it counts when the
    chunk also shows it inside one.
    """

    name = "keyword"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        found = chunk_units(observation.chunk)
        words = [[word.strip(_PUNCTUATION) for word in unit.split()] for unit in found]
        names = {
            word
            for unit_words in words
            for word in unit_words[1:]
            if word[:1].isupper() and word.split("'")[0] != "I"
        }
        return _inserts(
            [
                unit
                for unit, unit_words in zip(found, words, strict=True)
                if not names.isdisjoint(unit_words) or any(letter.isdigit() for letter in unit)
            ]
        )


_PUNCTUATION = ".,;:!?()[]\"'“”‘’<>"

SCRIPTED: dict[str, type[ScriptedManager]] = {
    manager.name: manager
    for manager in (
        InsertAll,
        InsertChunk,
        FactsOnly,
        Oracle,
        OracleReplace,
        RandomManager,
        KeywordManager,
    )
}
