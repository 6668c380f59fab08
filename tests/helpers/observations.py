"""Observations of a chunk and a memory, written by hand."""

from __future__ import annotations

from finemem_lib.managers.protocol import Observation
from finemem_lib.trajectory import Chunk, Instance, MemoryItem, Write


def observe(text: str, items: tuple[str, ...] = (), first_id: int = 1) -> Observation:
    """Return a first step with this chunk and these items, numbered from `first_id`."""
    chunk = Chunk(text, 1)
    instance = Instance("i", "squad", "AR", (chunk,), ())
    held = tuple(
        MemoryItem(str(number), content, (Write(1, "INSERT", number),))
        for number, content in enumerate(items, start=first_id)
    )
    return Observation(instance, held, chunk, 1)
