"""A proxy of O-Mem: a persona per person, topics, and a working queue of the latest sentences.

Without a language model a sentence waits in the working queue, the newest `QUEUE` of them; the one
that leaves it is merged into the persona of the first name in it, else into the topic of its
rarest word. With one, `prompted.PromptedManager` plays it with the prompt "o_mem".

Differs from the paper: O-Mem (arXiv 2511.13593) extracts topics, events and attributes with a
language model and retrieves from persona, working and episodic memory in parallel. This proxy has
the form of its memory on one flat store with one index, and its figures say nothing about O-Mem
itself.
"""

from __future__ import annotations

import random
import re

from finemem_lib.data.sentences import STOPWORDS
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.scripted import ScriptedManager, chunk_units
from finemem_lib.text import words
from finemem_lib.trajectory import MemoryItem, Operation

QUEUE = 20
"""Sentences of the working queue."""

MOST_SENTENCES = 12
"""Sentences of a persona or topic; the oldest goes first."""

_NAME = re.compile(r"\b[A-Z][a-z]+\b(?! [A-Z])|(?<= )[A-Z][a-z]+\b")
"""A capital at the beginning counts unless another one follows, as in "Yesterday Mia sailed"."""


class OMemProxy(ScriptedManager):
    """Personas, topics and a working queue by rule, see above."""

    name = "o-mem-proxy"
    settings = {"proxy": True, "writer": "by rule", "queue": QUEUE, "calls_per_step": 0}

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        waiting = [item for item in observation.items if head_of(item.content) is None]
        new = [*dict.fromkeys(chunk_units(observation.chunk))]
        stays = {item.content for item in waiting}
        new = [sentence for sentence in new if sentence not in stays]
        leaving = waiting[: max(0, len(waiting) + len(new) - QUEUE)]
        merged = _merged(observation.items, [item.content for item in leaving])
        return [
            *(Operation("DELETE", item_id=item.item_id) for item in leaving),
            *merged,
            *(Operation("INSERT", sentence) for sentence in new),
        ]


def head_of(content: str) -> str | None:
    """Return how a persona or topic begins, `None` for a sentence of the working queue.

    Args:
        content: Content of an item.

    >>> head_of("Persona of Mia: Mia sails."), head_of("Mia sails.")
    ('Persona of Mia: ', None)
    """
    found = re.match(r"(?:Persona of|Topic) [\w-]+: ", content)
    return found[0] if found else None


def _merged(items: tuple[MemoryItem, ...], sentences: list[str]) -> list[Operation]:
    """Return the edits that merge sentences into personas and topics."""
    held = {head: item for item in items if (head := head_of(item.content))}
    texts: dict[str, list[str]] = {}
    for sentence in sentences:
        head = _head(sentence)
        if head not in texts:
            old = held[head].content.removeprefix(head).split("\n") if head in held else []
            texts[head] = old
        texts[head] = [*texts[head], sentence][-MOST_SENTENCES:]
    return [
        Operation("UPDATE", head + "\n".join(text), held[head].item_id)
        if head in held
        else Operation("INSERT", head + "\n".join(text))
        for head, text in texts.items()
    ]


def _head(sentence: str) -> str:
    """Return the persona or topic that a sentence belongs to."""
    names = [name for name in _NAME.findall(sentence) if name.lower() not in STOPWORDS]
    if names:
        return f"Persona of {names[0]}: "
    content = sorted({*words(sentence)} - STOPWORDS, key=lambda word: (-len(word), word))
    return f"Topic {(content or ['other'])[0]}: "
