"""Proxy of MIRIX: six stores, each with its own writer, in one flat memory.

The content of an item begins with the name of its store, as in "[episodic] ". With a language
model, every chunk is processed by six prompts, one per store, and each edits only the items of its
store. Without one, a rule assigns each sentence to one store.

Differs from the paper: MIRIX (arXiv 2507.07957) is a system of agents with typed records, a meta
manager, screenshots and its own database, and it retrieves per store. This proxy copies only its
six stores; results of the proxy are not results of MIRIX.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

from finemem_lib.baselines.prompted import Written, shown_items, without_mark, write
from finemem_lib.data.sentences import labelled_examples
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.managers.scripted import ScriptedManager, chunk_units
from finemem_lib.memory import UNKNOWN_ID
from finemem_lib.operations import parse_operations
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.trajectory import InvalidOperation, Operation

STORES = {
    "core": "who the user is and what they prefer, short and lasting",
    "episodic": "events with their time: what happened, when, who took part",
    "semantic": "facts and definitions about people, places and things",
    "procedural": "how something is done: steps, instructions, recipes",
    "resource": "documents and labelled examples the user works with, word for word",
    "vault": "literal values to be kept exactly: numbers, addresses, codes, contacts",
}
"""The six stores and their contents, as the prompt describes them."""

_RULES = (
    ("core", re.compile(r"\b(?:I|my|me|I'm|I've|user)\b.*\b(?:am|like|prefer|love|hate|name)\b")),
    ("vault", re.compile(r"\S@\S|https?://|\d{4,}|\b\d+[-.]\d+[-.]\d+\b")),
    (
        "episodic",
        re.compile(
            r"\b(?:yesterday|today|tomorrow|last|ago|once|lately|finally|\d{4}-\d\d-\d\d|\d{4}|"
            r"(?:mon|tues|wednes|thurs|fri|satur|sun)day)\b",
            re.IGNORECASE,
        ),
    ),
    (
        "procedural",
        re.compile(r"^(?:first|then|next|finally|to \w+,|how to|step)\b", re.IGNORECASE),
    ),
)
"""A sentence belongs to the first store whose pattern it matches, otherwise to "semantic"."""


def store_of(sentence: str) -> str:
    r"""Return the store that the rules assign to a sentence.

    Args:
        sentence: A sentence or a labelled example.

    >>> [store_of(text) for text in ("Mia lives in Rome.", "Yesterday Mia sailed.")]
    ['semantic', 'episodic']
    >>> store_of("Sentence: good day\nLabel: 3"), store_of("Write to mia@example.org")
    ('resource', 'vault')
    """
    if labelled_examples(sentence):
        return "resource"
    return next((store for store, pattern in _RULES if pattern.search(sentence)), "semantic")


class MirixProxy(ScriptedManager):
    """Manager that keeps six stores in a flat memory, see the module docstring.

    Args:
        chat: The language model that writes all six stores; `None` to write by rules.
    """

    name = "mirix-proxy"

    def __init__(self, chat: Chat | None = None) -> None:
        self.chat = chat
        self._prompt = load_prompt("mirix")
        self.settings = {
            "proxy": True,
            "writer": chat.name if chat else "by rule",
            "calls_per_step": len(STORES) if chat else 0,
            **({"prompt": self._prompt.identity} if chat else {}),
        }

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        held = {item.content for item in observation.items}
        marked = (f"[{store_of(one)}] {one}" for one in chunk_units(observation.chunk))
        return [Operation("INSERT", text) for text in dict.fromkeys(marked) if text not in held]

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        if self.chat is None:
            return super().act(observations, seed)
        asked = [(one, store) for one in observations for store in STORES]
        conversations = [self._messages(one, store) for one, store in asked]
        written = write(self.chat, conversations)
        size = len(STORES)
        completions = []
        for place, one in enumerate(observations):
            part = written[place * size : (place + 1) * size]
            operations = [
                operation
                for store, reply in zip(STORES, part, strict=True)
                for operation in _of_store(one, store, reply)
            ]
            completions.append(
                Completion(
                    "\n".join(f"[{s}] {w.reply or ''}" for s, w in zip(STORES, part, strict=True)),
                    tuple(operations),
                    prompt="\n\n".join(one.prompt for one in part),
                )
            )
        return completions

    def _messages(self, observation: Observation, store: str) -> Any:
        own = [item for item in observation.items if item.content.startswith(f"[{store}]")]
        return self._prompt.messages(
            store=store,
            holds=STORES[store],
            memory=shown_items(own)[0],
            text=observation.chunk.text,
        )


def _of_store(
    observation: Observation, store: str, written: Written
) -> list[Operation | InvalidOperation]:
    """Return the operations of one writer; operations on items of other stores become invalid."""
    mark = f"[{store}] "
    own = {item.item_id for item in observation.items if item.content.startswith(mark)}
    found: list[Operation | InvalidOperation] = []
    for operation in map(without_mark, written.operations(parse_operations)):
        if isinstance(operation, Operation) and operation.kind != "SKIP":
            if operation.kind != "INSERT" and operation.item_id not in own:
                operation = InvalidOperation(UNKNOWN_ID, f"{store}: {operation}")
            elif operation.content is not None:
                text = operation.content.removeprefix(mark)
                operation = Operation(operation.kind, mark + text, operation.item_id)
        found.append(operation)
    return found
