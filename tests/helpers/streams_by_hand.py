"""Planted streams and the operations on them, written by hand."""

from __future__ import annotations

from finemem_lib.managers.protocol import Completion
from finemem_lib.trajectory import Chunk, Instance, Operation


class Scripted:
    """A manager that emits the given operations, step by step."""

    name = "scripted"
    settings = {}

    def __init__(self, *steps):
        self.steps = steps

    def act(self, observations, seed):
        return [Completion("", self.steps[one.step - 1]) for one in observations]


def told(person, value, attribute="home"):
    return {
        "sentence": f"{person} lives in {value}",
        "person": person,
        "attribute": attribute,
        "value": value,
        "changed": False,
    }


def stream_of(*chunks, instance_id="by-hand"):
    """Return an instance whose chunks are given as (facts, noise sentences)."""
    texts = [
        " ".join(f"{line}." for line in [*(f["sentence"] for f in facts), *noise])
        for facts, noise in chunks
    ]
    return Instance(
        instance_id,
        "planted",
        "AR",
        tuple(Chunk(text, len(text.split())) for text in texts),
        (),
        metadata={"facts": [facts for facts, _ in chunks]},
    )


WRITE, CHANGE, DROP = (
    lambda content: Operation("INSERT", content),
    lambda item, content: Operation("UPDATE", content, item),
    lambda item: Operation("DELETE", item_id=item),
)
