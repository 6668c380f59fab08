"""Proxy of A-Mem: linked notes with keywords; a new note also updates the note that it links to.

Without a language model, each sentence becomes a note with its names and rarest words as keywords.
It is linked to the newest note that shares at least two content words with it; this note then gets
the first keyword of the new note that it lacks. With a language model, `prompted.PromptedManager`
plays the system with the prompt "a_mem".

Differs from the paper: A-Mem (arXiv 2502.12110) lets a language model write notes, choose links and
update neighbours, and finds neighbours by embeddings. This proxy copies only the form of its
memory; results of the proxy are not results of A-Mem.
"""

from __future__ import annotations

import random
import re
from collections import Counter

from finemem_lib.data.sentences import STOPWORDS
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.scripted import ScriptedManager, chunk_units
from finemem_lib.retrievers.graph import names
from finemem_lib.text import words
from finemem_lib.trajectory import Operation

NUM_KEYWORDS = 3
"""Number of keywords of a new note."""

MIN_SHARED_WORDS = 2
"""Smallest number of content words that linked notes share."""

MAX_ADDED_KEYWORDS = 3
"""Largest number of keywords that a note gets from later notes."""


class AMemProxy(ScriptedManager):
    """Manager that writes linked notes by rules, see the module docstring."""

    name = "a-mem-proxy"
    settings = {"proxy": True, "writer": "by rule", "calls_per_step": 0}

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        notes = {item.item_id: item.content for item in observation.items}
        stated = {content.split(" | ")[0] for content in notes.values()}
        said = {item_id: _content_words(content) for item_id, content in notes.items()}
        df = Counter(word for content in said.values() for word in content)
        updates: dict[str, Operation] = {}
        inserts = []
        for sentence in dict.fromkeys(chunk_units(observation.chunk)):
            if sentence in stated:
                continue
            terms = _content_words(sentence)
            near = [name for name, other in said.items() if len(terms & other) >= MIN_SHARED_WORDS]
            keywords = sorted(terms, key=lambda word: (word not in names(sentence), df[word], word))
            note = (
                f"{sentence} | keywords: {', '.join(keywords[:NUM_KEYWORDS])}"
                if terms
                else sentence
            )
            if near:
                link = near[-1]
                note += f" | links: #{link}"
                evolved = _with_keyword(notes[link], keywords)
                if evolved != notes[link] and link not in updates:
                    updates[link] = Operation("UPDATE", evolved, link)
            inserts.append(Operation("INSERT", note))
        return [*updates.values(), *inserts]


def _content_words(text: str) -> frozenset[str]:
    return frozenset(words(text.split(" | ")[0])) - STOPWORDS


def _with_keyword(note: str, keywords: list[str]) -> str:
    """Return a note with the first of `keywords` that it lacks; a full note stays unchanged."""
    found = re.search(r" \| keywords: ([^|]+?)(?= \| |\Z)", note)
    if found is None:
        return note
    own = found[1].split(", ")
    new = next((word for word in keywords if word not in own), None)
    if new is None or len(own) >= NUM_KEYWORDS + MAX_ADDED_KEYWORDS:
        return note
    return note[: found.end()] + f", {new}" + note[found.end() :]
