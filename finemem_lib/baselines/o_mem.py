"""Proxy of O-Mem: one persona per person, topics, and a working queue of the latest sentences.

Without a language model, the newest `QUEUE_SIZE` sentences are in the working queue. A sentence
that leaves the queue is merged into the persona of the first name in it or, without a name, into
the topic of its longest content word. With a language model, `prompted.PromptedManager` plays the
system with the prompt "o_mem".

Differs from the paper: O-Mem (arXiv 2511.13593) extracts topics, events and attributes with a
language model and retrieves from persona, working and episodic memory in parallel. This proxy
copies only the form of its memory, in one flat store with one index; results of the proxy are not
results of O-Mem.
"""

from __future__ import annotations

import random
import re

from finemem_lib.data.sentences import STOPWORDS
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.scripted import ScriptedManager, chunk_units
from finemem_lib.text import words
from finemem_lib.trajectory import MemoryItem, Operation

QUEUE_SIZE = 20
"""Largest number of sentences in the working queue."""

MAX_SENTENCES = 12
"""Largest number of sentences of a persona or topic; the oldest sentences are dropped."""

_NAME = re.compile(r"\b[A-Z][a-z]+\b(?! [A-Z])|(?<= )[A-Z][a-z]+\b")
"""A capitalised word is a name, but not at the beginning of a sentence if another capitalised word
follows, as in "Yesterday Mia sailed"."""


class OMemProxy(ScriptedManager):
    """Manager that keeps personas, topics and a working queue, see the module docstring."""

    name = "o-mem-proxy"
    settings = {"proxy": True, "writer": "by rule", "queue": QUEUE_SIZE, "calls_per_step": 0}

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        waiting = [item for item in observation.items if head_of(item.content) is None]
        new = [*dict.fromkeys(chunk_units(observation.chunk))]
        stays = {item.content for item in waiting}
        new = [sentence for sentence in new if sentence not in stays]
        leaving = waiting[: max(0, len(waiting) + len(new) - QUEUE_SIZE)]
        merged = _merged(observation.items, [item.content for item in leaving])
        return [
            *(Operation("DELETE", item_id=item.item_id) for item in leaving),
            *merged,
            *(Operation("INSERT", sentence) for sentence in new),
        ]


def head_of(content: str) -> str | None:
    """Return the heading of a persona or topic, `None` for a sentence of the working queue.

    Args:
        content: Content of an item.

    >>> head_of("Persona of Mia: Mia sails."), head_of("Mia sails.")
    ('Persona of Mia: ', None)
    """
    found = re.match(r"(?:Persona of|Topic) [\w-]+: ", content)
    return found[0] if found else None


def _merged(items: tuple[MemoryItem, ...], sentences: list[str]) -> list[Operation]:
    """Return the operations that merge sentences into personas and topics."""
    held = {head: item for item in items if (head := head_of(item.content))}
    texts: dict[str, list[str]] = {}
    for sentence in sentences:
        head = _head(sentence)
        if head not in texts:
            old = held[head].content.removeprefix(head).split("\n") if head in held else []
            texts[head] = old
        texts[head] = [*texts[head], sentence][-MAX_SENTENCES:]
    return [
        Operation("UPDATE", head + "\n".join(text), held[head].item_id)
        if head in held
        else Operation("INSERT", head + "\n".join(text))
        for head, text in texts.items()
    ]


def _head(sentence: str) -> str:
    """Return the heading of the persona or topic that a sentence belongs to."""
    names = [name for name in _NAME.findall(sentence) if name.lower() not in STOPWORDS]
    if names:
        return f"Persona of {names[0]}: "
    content = sorted({*words(sentence)} - STOPWORDS, key=lambda word: (-len(word), word))
    return f"Topic {(content or ['other'])[0]}: "
