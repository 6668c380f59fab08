"""Baseline systems by name, and the conditions under which each can be played.

A system is a manager with its own retrieval settings. Every manager known to `make_manager` is also
a system, with the retrieval settings of the run. A budget sets the same token limit for the memory
of every system; without a budget, the limit in each system's own settings applies.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from finemem_lib.baselines.a_mem import AMemProxy
from finemem_lib.baselines.long_context import WINDOW, Keep, LongContext
from finemem_lib.baselines.memory_r1 import MemoryR1Rules
from finemem_lib.baselines.mirix import MirixProxy
from finemem_lib.baselines.o_mem import OMemProxy
from finemem_lib.baselines.prompted import PromptedManager
from finemem_lib.baselines.published_managers import published_manager
from finemem_lib.baselines.text_memory import (
    MEM1,
    MEM_AGENT,
    MEM_AGENT_PRIVILEGED,
    OverwrittenText,
    TextMemorySettings,
)
from finemem_lib.layers.memory import PUBLISHED_RULES
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.protocol import MemoryManager
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.managers.scripted import InsertChunk
from finemem_lib.readers.chat import Chat
from finemem_lib.retrievers import encoder
from finemem_lib.retrievers.named import WITH_ENCODER

ALL_ITEMS = 1_000_000
"""`top_k` of systems that show their whole memory to the reader."""

Needs = Literal["nothing", "writer"]
Make = Callable[[Chat | None, int | None], MemoryManager]
"""Function from the writing model (`None` to write by rules) and the token budget to a manager."""


@dataclass(frozen=True, slots=True)
class System:
    """A baseline system.

    Attributes:
        make: Function that returns its manager.
        what: Short description.
        rollout: Fields of `RolloutSettings` that the system sets itself.
        needs: "writer" if it cannot be played without a language model in this role.
        privileged: Whether it sees information that other systems do not, such as the questions.
        proxy: Whether it only resembles the system that it is named after.
        calls: Number of language-model calls per chunk, if a model writes the memory.
    """

    make: Make
    what: str
    source: str
    rollout: Mapping[str, Any] = field(default_factory=dict)
    needs: Needs = "nothing"
    privileged: bool = False
    proxy: bool = False
    calls: int = 0

    @property
    def label(self) -> str:
        """Description, marks ("privileged", "proxy") and source, as shown in tables."""
        marks = [
            mark
            for mark, said in (
                ("privileged: sees the questions", self.privileged),
                ("proxy", self.proxy),
            )
            if said
        ]
        return f"{self.what} ({'; '.join([*marks, self.source])})"


_WHOLE = {"retriever": "whole", "top_k": ALL_ITEMS, "duplicates": "allow"}
_MEM_ALPHA = "arXiv 2509.25911"


def _long_context(keep: Keep) -> Make:
    return lambda chat, budget: LongContext(budget or WINDOW, keep)


def _text_memory(system: TextMemorySettings) -> Make:
    return lambda chat, budget: OverwrittenText(system, chat, budget)


class _RetrievedChunks(InsertChunk):
    """Manager that stores chunks whole, under the name of the system."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.settings = {"calls_per_step": 0}


def _raw_chunks(name: str) -> Make:
    return lambda chat, budget: _RetrievedChunks(name)


def _prompted(
    name: str, prompt: str | None = None, rules: Callable[[], MemoryManager] | None = None
) -> Make:
    """Return the maker of a manager that prompts a model, or else (`rules`) follows rules.

    Without a prompt it is the published manager of the name."""

    def make(chat: Chat | None, budget: int | None) -> MemoryManager:
        if chat is not None:
            if prompt is None:
                return published_manager(name, chat)
            return PromptedManager(chat, name, prompt)
        if rules is None:
            raise ValueError(_no_writer(name))
        return rules()

    return make


SYSTEMS: dict[str, System] = {
    "long-context-tail": System(
        _long_context("tail"), "the last tokens of the stream, no memory", _MEM_ALPHA, _WHOLE
    ),
    "long-context-head": System(
        _long_context("head"), "the first tokens of the stream, no memory", _MEM_ALPHA, _WHOLE
    ),
    "rag-top2": System(
        _raw_chunks("rag-top2"),
        "BM25 over raw chunks, the best 2",
        _MEM_ALPHA,
        {"retriever": "bm25", "top_k": 2},
    ),
    "rag-dense": System(
        _raw_chunks("rag-dense"),
        "embeddings over raw chunks, the best 2",
        "common practice",
        {"retriever": "dense", "top_k": 2},
    ),
    "rag-hybrid": System(
        _raw_chunks("rag-hybrid"),
        "BM25 and embeddings over raw chunks, the best 2",
        "common practice",
        {"retriever": "hybrid", "top_k": 2},
    ),
    "memagent": System(
        _text_memory(MEM_AGENT),
        "one text, rewritten at every chunk",
        "arXiv 2507.02259",
        _WHOLE,
        calls=1,
    ),
    "memagent-privileged": System(
        _text_memory(MEM_AGENT_PRIVILEGED),
        "one text, rewritten at every chunk",
        "arXiv 2507.02259",
        _WHOLE,
        privileged=True,
        calls=1,
    ),
    "mem1": System(
        _text_memory(MEM1),
        "one short running state",
        "arXiv 2506.15841",
        _WHOLE,
        calls=1,
    ),
    "memory-r1": System(
        _prompted("memory-r1", rules=MemoryR1Rules),
        "ADD, UPDATE, DELETE or NOOP per fact, untrained",
        "arXiv 2508.19828",
        calls=1,
    ),
    "memory-r2": System(
        _prompted("memory-r2"),
        "INSERT, UPDATE or DELETE per fact; its weights are ahmedehabb/memory-r2-7b",
        "arXiv 2605.21768",
        needs="writer",
        calls=2,
    ),
    "memalpha-4b": System(
        _prompted("memalpha-4b"),
        "core, semantic and episodic memory; its weights are YuWangX/Memalpha-4B",
        _MEM_ALPHA,
        {"memory": "layered", "layer_rules": PUBLISHED_RULES, "retriever": "bm25", "top_k": 20},
        needs="writer",
        calls=1,
    ),
    "untrained": System(
        _prompted("untrained", "manage"),
        "an untrained language model, prompted to edit the memory",
        "this library's prompt",
        needs="writer",
        calls=1,
    ),
    "mirix-proxy": System(
        lambda chat, budget: MirixProxy(chat),
        "six stores, each with its writer",
        "arXiv 2507.07957",
        proxy=True,
        calls=6,
    ),
    "a-mem-proxy": System(
        _prompted("a-mem-proxy", "a_mem", rules=AMemProxy),
        "linked notes that evolve",
        "arXiv 2502.12110",
        {"retriever": "graph"},
        proxy=True,
        calls=1,
    ),
    "o-mem-proxy": System(
        _prompted("o-mem-proxy", "o_mem", rules=OMemProxy),
        "personas, topics and a working queue",
        "arXiv 2511.13593",
        proxy=True,
        calls=1,
    ),
}
"""The systems by name, without the managers of `make_manager`."""


@dataclass(frozen=True, slots=True)
class Player:
    """A system with its manager and rollout settings."""

    name: str
    manager: MemoryManager
    settings: RolloutSettings


def make_system(
    name: str,
    rollout: RolloutSettings | None = None,
    *,
    chat: Chat | None = None,
    budget: int | None = None,
    manager: MemoryManager | None = None,
) -> Player:
    """Return a system with its manager and rollout settings.

    Args:
        name: One of `SYSTEMS`, or a manager known to `make_manager`.
        rollout: Rollout settings; the system overrides those that it sets itself. Default: one
            rollout without chunk questions.
        chat: Language model that writes the memory; `None` to write by rules.
        budget: Token limit of the memory; `None` for the limit in `rollout` or, if there is none,
            in the system's own settings.
        manager: An existing manager, such as a trained one; `name` is then its label.

    Raises:
        ValueError: there is no system of this name, or it cannot be played with these arguments;
            the message states the remedy.

    >>> player = make_system("long-context-tail", budget=500)
    >>> player.manager.settings["window"], player.settings.token_budget, player.settings.retriever
    (500, 500, 'whole')
    """
    rollout = rollout or RolloutSettings(num_generations=1, ask_chunk_questions=False)
    budget = budget or rollout.token_budget
    settings = dataclasses.replace(rollout, token_budget=budget)
    if manager is not None or name not in SYSTEMS:
        return Player(name, manager or make_manager(name), settings)
    if problem := unavailable(name, chat, settings):
        raise ValueError(problem)
    system = SYSTEMS[name]
    settings = dataclasses.replace(settings, **system.rollout)
    return Player(name, system.make(chat, budget), settings)


def unavailable(name: str, chat: Chat | None, rollout: RolloutSettings) -> str | None:
    """Return why a system cannot be played, with the remedy; `None` if it can be played.

    Args:
        name: Name of a system; names that are not in `SYSTEMS` are not checked here.
        chat: Language model that writes memories, if there is one.
        rollout: Rollout settings, which name the sentence encoder.
    """
    system = SYSTEMS.get(name)
    if system is None:
        return None
    if system.needs == "writer" and chat is None:
        return _no_writer(name)
    if system.rollout.get("retriever") in WITH_ENCODER:
        try:
            encoder.load_encoder(rollout.dense_model)
        except ValueError as error:
            return f"system {name!r}: {error}; or leave {name} out"
    return None


def check_systems(
    names: Iterable[str], chat: Chat | None = None, rollout: RolloutSettings | None = None
) -> None:
    """Check that all systems can be played; raise one error that names every one that cannot.

    Args:
        names: Names of systems or managers.
        chat: Language model that writes memories, if there is one.
        rollout: Rollout settings, which name the sentence encoder.

    Raises:
        ValueError: one or more systems cannot be played.

    >>> check_systems(["memagent", "untrained"])
    Traceback (most recent call last):
    ...
    ValueError: system 'untrained' needs a language model in the role "writer" ...
    """
    rollout = rollout or RolloutSettings(num_generations=1)
    problems = [found for name in names if (found := unavailable(name, chat, rollout))]
    if problems:
        raise ValueError("\n".join(problems))


def played_by_a_model(names: Iterable[str]) -> list[str]:
    """Return the systems that cannot play without a language model; unknown names are left out.

    Args:
        names: Names of systems.

    >>> played_by_a_model(["memagent", "memory-r2", "removed"])
    ['memory-r2']
    """
    return [name for name in names if name in SYSTEMS and SYSTEMS[name].needs == "writer"]


def _no_writer(name: str) -> str:
    return (
        f'system {name!r} needs a language model in the role "writer" and none is named: name one '
        "in the file of the parameter models (notebooks/models/server.yaml shows how) or pass one "
        f"as chat, or leave {name} out; managers that need no model are insert-all, keyword and "
        "the tiny ones"
    )
