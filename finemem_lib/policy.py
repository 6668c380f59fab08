"""Memory managers: scripted ones that need no model, and any causal language model behind a prompt.

All of them answer an `Observation` with the text of a JSON list that goes through the same parser,
so a scripted manager is judged by the same rules as a learned one.
"""

from __future__ import annotations

import dataclasses
import json
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from finemem_lib import tiny
from finemem_lib.files import write_json
from finemem_lib.manager_prompts import (
    INSTRUCTION,
    CompactPromptBuilder,
    Completion,
    Observation,
    Prompt,
    PromptBuilder,
    prompt_builder,
)
from finemem_lib.model_loading import (
    BATCH_SIZE,
    MAX_NEW_TOKENS,
    TINY_MANAGER,
    ModelSettings,
    checkpoint_folder,
    load_model,
    no_progress_bars,
)
from finemem_lib.operations import format_operations, parse_operations
from finemem_lib.repro import generator, stable_seed
from finemem_lib.sampling import generate_completions, sample_completions
from finemem_lib.text import clean_text, units
from finemem_lib.trajectory import Chunk, Operation

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = [
    "INSTRUCTION", "SCRIPTED", "TINY_MANAGER", "CompactPromptBuilder", "Completion", "FactsOnly",
    "InsertAll", "InsertChunk", "KeywordManager", "MemoryManager", "ModelManager", "ModelSettings",
    "Observation", "Oracle", "Prompt", "PromptBuilder", "RandomManager", "ScriptedManager",
    "checkpoint_folder", "load_manager", "make_manager", "no_progress_bars", "prompt_builder",
]


class MemoryManager(Protocol):
    """A policy: one completion per observation, the same ones for the same seed. `settings` are
    what a record of its trajectories says about it, beside its name."""

    @property
    def name(self) -> str: ...

    @property
    def settings(self) -> Mapping[str, Any]: ...

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]: ...


class ScriptedManager(ABC):
    """A manager that follows a rule; a rule that wants nothing done emits SKIP.

    Rules emit edits before INSERTs, because an INSERT may evict the item that an edit names.
    """

    name: str
    settings: Mapping[str, Any] = {}

    @abstractmethod
    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        """Return the operations of one step."""

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        completions = []
        for row, observation in enumerate(observations):
            rng = generator(self.name, seed, row)
            text = format_operations(self.rule(observation, rng) or [Operation("SKIP")])
            completions.append(Completion(text, parse_operations(text)))
        return completions


_HEADER = re.compile(r"\A\s*\[[^\[\]\n]*\][ \t]*(?=\n)")


def _units(chunk: Chunk) -> list[str]:
    """Return the chunk's units without the bracketed line that dates a dialogue or a reading."""
    return units(_HEADER.sub("", clean_text(chunk.text)))


def _inserts(contents: Sequence[str]) -> list[Operation]:
    return [Operation("INSERT", content) for content in contents]


class InsertAll(ScriptedManager):
    """Stores every unit of the chunk as an item of its own: labelled examples whole, or sentences.

    A first line in square brackets (date and speakers of the wrapper) is left out.
    """

    name = "insert-all"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        return _inserts(_units(observation.chunk))


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
    return facts[: observation.step]


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
            for facts in earlier for fact in facts if fact["sentence"] in held
        }
        updates, inserts = [], []
        for fact in new:
            item_id = slots.get((fact["person"], fact["attribute"]))
            if item_id is None:
                inserts.append(Operation("INSERT", fact["sentence"]))
            else:
                updates.append(Operation("UPDATE", fact["sentence"], item_id))
        return updates + inserts


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
        for content in dict.fromkeys(_units(observation.chunk)):
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
        found = _units(observation.chunk)
        words = [[word.strip(_PUNCTUATION) for word in unit.split()] for unit in found]
        names = {
            word for unit_words in words for word in unit_words[1:]
            if word[:1].isupper() and word.split("'")[0] != "I"
        }
        return _inserts([
            unit for unit, unit_words in zip(found, words, strict=True)
            if not names.isdisjoint(unit_words) or any(letter.isdigit() for letter in unit)
        ])


_PUNCTUATION = ".,;:!?()[]\"'“”‘’<>"
SCRIPTED: dict[str, type[ScriptedManager]] = {
    manager.name: manager
    for manager in (InsertAll, InsertChunk, FactsOnly, Oracle, RandomManager, KeywordManager)
}


# Language models.


SETTINGS_FILE = "manager_settings.json"
"""Beside a saved manager: how it was loaded and prompted, where that is not the default."""


class ModelManager:
    """A causal language model as memory manager: prompt, sample, decode, JSON or tool calls.

    Sampling is from the whole distribution at `temperature` (0: greedy), in batches of at most
    `batch_size` prompts padded on the left; the pad token is never sampled. Every completion
    carries its prompt ids, its completion ids (with the end token where there is one) and, unless
    `sample` is `generate_completions`, their log-probabilities at that temperature.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        builder: PromptBuilder,
        *,
        name: str,
        temperature: float = 1.0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = tiny.BATCH_SIZE,
        sample: Callable[..., tuple] = sample_completions,
        loaded_as: ModelSettings | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.builder = builder
        self.name = name
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.sample = sample
        self.loaded_as = loaded_as

    @property
    def settings(self) -> dict[str, Any]:
        return {**self.builder.settings, "max_new_tokens": self.max_new_tokens,
                "temperature": self.temperature}

    @property
    def commit(self) -> str | None:
        """The commit of the hub that the model was loaded from, `None` for a folder's."""
        return getattr(self.model.config, "_commit_hash", None)

    def save(self, folder: Path) -> None:
        """Write model and tokenizer where `load_manager` finds them again, with the settings it was
        loaded with; of a model with an adapter the adapter only, which names its checkpoint."""
        adapter = hasattr(self.model, "peft_config")
        # Left to itself peft asks the hub whether the vocabulary was resized.
        own = {"save_embedding_layers": False} if adapter else {}
        with no_progress_bars():
            self.model.save_pretrained(folder, **own)
        self.tokenizer.save_pretrained(folder)
        if self.loaded_as not in (None, ModelSettings()):
            write_json(folder / SETTINGS_FILE, dataclasses.asdict(self.loaded_as))

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return one completion per observation; the same seed and batch give the same ones.

        Raises:
            ValueError: the tiny manager cannot read a chunk.
        """
        prompts = [self.builder.render(observation) for observation in observations]
        completions: list[Completion] = []
        training = self.model.training
        self.model.eval()
        try:
            for start in range(0, len(prompts), self.batch_size):
                batch = prompts[start : start + self.batch_size]
                ids, logprobs = self.sample(
                    self.model, [prompt.ids for prompt in batch],
                    max_new_tokens=self.max_new_tokens, temperature=self.temperature,
                    pad_token_id=self.tokenizer.pad_token_id, end_token_ids=self._end_token_ids(),
                    seed=stable_seed(seed, start),
                )
                completions += self.builder.complete(batch, ids, logprobs)
        finally:
            self.model.train(training)
        return completions

    def _end_token_ids(self) -> list[int]:
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]


def load_manager(
    path_or_name: str | Path = "tiny",
    *,
    model: ModelSettings | None = None,
    seed: int = 0,
    **settings: Any,
) -> ModelManager:
    """Load a causal language model as memory manager, on the GPU where there is one.

    `path_or_name` is a folder (a relative one is also looked for in the repository), a name on the
    hub, which may carry its revision (NAME@COMMIT), or "tiny" for the shipped warm start. `model`
    says how it is loaded and prompted (default: as the manager that `save` wrote into the folder);
    `seed` draws the weights of a new adapter; `settings` go to `ModelManager`. A folder that holds
    an adapter is loaded as the model it was trained on with the adapter on it.

    Under Unsloth completions come from its own `generate`, without log-probabilities: it keeps keys
    and values in a form of its own. That holds with `fast_inference` too: only the rollouts of
    training are sampled by vLLM, which otherwise would not know the adapter of the moment, and what
    this manager samples takes memory beside vLLM's share, `batch_size` prompts at a time.

    Raises:
        ValueError: there is no such checkpoint, it cannot be loaded, or the settings do not fit it.
        RuntimeError: Unsloth, or 4 bits, was asked for and cannot be had here.
        MemoryError: vLLM has no room on the card.

    >>> load_manager("no/such/folder/here")
    Traceback (most recent call last):
    ...
    ValueError: load_manager: 'no/such/folder/here' could not be loaded ...
    """
    folder = checkpoint_folder(path_or_name)
    if model is None and folder is not None and (folder / SETTINGS_FILE).is_file():
        model = ModelSettings(**json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8")))
    model = model or ModelSettings()
    loaded, tokenizer = load_model(path_or_name, model, seed)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    builder = prompt_builder(tokenizer, model)
    compact = isinstance(builder, CompactPromptBuilder)
    own = {
        "sample": generate_completions if model.loader == "unsloth" else sample_completions,
        "batch_size": model.batch_size or (tiny.BATCH_SIZE if compact else BATCH_SIZE),
    }
    return ModelManager(
        loaded, tokenizer, builder, name=Path(folder or path_or_name).name,
        max_new_tokens=model.max_new_tokens or (tiny.MAX_NEW_TOKENS if compact else MAX_NEW_TOKENS),
        loaded_as=model, **(own | settings),
    )


def make_manager(name: str, **settings: Any) -> MemoryManager:
    """Return the manager of that name: a scripted one, or "tiny" with `load_manager`'s settings.

    Raises:
        ValueError: there is no manager of that name.

    >>> make_manager("insert-all").name
    'insert-all'
    >>> make_manager("insert-some")
    Traceback (most recent call last):
    ...
    ValueError: make_manager: 'insert-some' is not a manager; expected one of facts-only, ...
    """
    if name in SCRIPTED:
        return SCRIPTED[name]()
    if name == "tiny":
        return load_manager(name, **settings)
    raise ValueError(
        f"make_manager: {name!r} is not a manager; expected one of "
        f"{', '.join(sorted([*SCRIPTED, 'tiny']))} (any other language model: load_manager)"
    )
