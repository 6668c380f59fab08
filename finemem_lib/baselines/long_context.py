"""Long-context baseline: the reader sees the stream read so far, cut to a window of tokens.

Each chunk is one item, and the reader sees all items (retriever "whole"). If the stream is longer
than the window, the text at its head or at its tail is cut.

Differs from the paper: Mem-alpha (arXiv 2509.25911) counts the window in the reader's tokens over
the whole prompt (32k in the text, the last 30,000 in the code), so that the instruction can be cut
too; here the window is counted in this library's tokens over the stream alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal, get_args

from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.scripted import ScriptedManager
from finemem_lib.text import clean_text, count_tokens, last_tokens, truncate_tokens
from finemem_lib.trajectory import MemoryItem, Operation

Keep = Literal["tail", "head"]

WINDOW = 30_000
"""Length of the window in Mem-alpha's code, in tokens."""


class LongContext(ScriptedManager):
    """Manager that stores every chunk whole and cuts the stream to a window.

    Args:
        window: Length of the window in tokens, at least 1.
        keep: "tail" keeps the newest text, "head" the oldest.

    Raises:
        ValueError: a setting is out of range.

    >>> from finemem_lib.trajectory import Chunk, Instance, MemoryItem, Write
    >>> held = (MemoryItem("1", "Mia lives in Rome", (Write(1, "INSERT", 0),)),)
    >>> seen = Observation(Instance("i", "own", "AR", (), ()), held, Chunk("Ana sails", 2), 2)
    >>> for one in LongContext(window=5).rule(seen, random.Random(0)):
    ...     print(one.kind, one.item_id, one.content)
    UPDATE 1 lives in Rome
    INSERT None Ana sails
    """

    def __init__(self, window: int = WINDOW, keep: Keep = "tail") -> None:
        if window < 1 or keep not in get_args(Keep):
            raise ValueError(
                f"LongContext: window is {window!r} and keep {keep!r}, expected at least 1 token "
                f"and one of {', '.join(get_args(Keep))}"
            )
        self.window = window
        self.keep = keep
        self.name = f"long-context-{keep}"
        self.settings = {"window": window, "keep": keep, "calls_per_step": 0}

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        text = clean_text(observation.chunk.text).strip()
        if self.keep == "tail":
            text = last_tokens(text, self.window)
            edits = _cut_heads(observation.items, self.window - count_tokens(text))
        else:
            held = sum(count_tokens(item.content) for item in observation.items)
            text, edits = truncate_tokens(text, self.window - held)[0], []
        return [*edits, *([Operation("INSERT", text)] if text else [])]


def _cut_heads(items: Sequence[MemoryItem], room: int) -> list[Operation]:
    """Return the operations that keep only the newest `room` tokens of the items."""
    edits = []
    for item in reversed(items):  # newest first
        tokens = count_tokens(item.content)
        if room <= 0:
            edits.append(Operation("DELETE", item_id=item.item_id))
        elif tokens > room:
            edits.append(Operation("UPDATE", last_tokens(item.content, room), item.item_id))
        room -= tokens
    return edits
