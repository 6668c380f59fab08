"""Cut instances of long texts into short ones that a small model can read.

The chunks of the public benchmarks are about 1,000 tokens long, and a stream has ten of them. An
excerpt is a few neighbouring pieces of one instance, each of whole sentences, with the questions
that those pieces answer. Pieces of other texts may stand between them, about which nothing is
asked: what is worth remembering is then a part of what is read.

Differs from the paper: there whole instances are read, in chunks of 2,048 tokens.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from finemem_lib.data.sentences import labelled_examples, units
from finemem_lib.scoring import metric_for
from finemem_lib.seeds import generator
from finemem_lib.text import clean_text, count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question

Record = TypeVar("Record")

HEADER = re.compile(r"\A\s*\[[^\[\]\n]*\][ \t]*(?=\n)")
"""The bracketed first line that dates a dialogue or a reading."""

_WORD = re.compile(r"[^\W_]+")


@dataclass(frozen=True, slots=True)
class ExcerptSettings:
    """The shape of excerpts.

    Attributes:
        chunk_tokens: Most tokens of a piece, unless one sentence is longer, at least 1.
        chunks: T, pieces of an excerpt, at least 1.
        distractors: How many of them come from other texts, at least 0 and less than `chunks`.
        min_questions: Excerpts with fewer questions are left out, at least 1.

    Raises:
        ValueError: A setting is out of range.
    """

    chunk_tokens: int = 120
    chunks: int = 6
    distractors: int = 0
    min_questions: int = 1

    def __post_init__(self) -> None:
        for name in ("chunk_tokens", "chunks", "min_questions"):
            if getattr(self, name) < 1:
                raise ValueError(f"excerpts: {name} is {getattr(self, name)}, expected at least 1")
        if not 0 <= self.distractors < self.chunks:
            raise ValueError(
                f"excerpts: distractors is {self.distractors}, expected at least 0 and less than "
                f"chunks ({self.chunks})"
            )


def pieces(text: str, most_tokens: int) -> list[str]:
    """Return a text cut between sentences (or labelled examples), without its dating line.

    Args:
        text: The text of a chunk.
        most_tokens: Most tokens of a piece; a longer sentence is a piece of its own.

    >>> pieces("[Dialogue on 2024-01-01]\\nAna sails. Leo paints. Mia sings.", 6)
    ['Ana sails.\\nLeo paints.', 'Mia sings.']
    """
    found: list[str] = []
    size = 0
    for unit in units(HEADER.sub("", clean_text(text))):
        tokens = count_tokens(unit)
        if found and size + tokens <= most_tokens:
            found[-1] += f"\n{unit}"
            size += tokens
        else:
            found.append(unit)
            size = tokens
    return found


def excerpts(
    instances: Sequence[Instance],
    settings: ExcerptSettings | None = None,
    *,
    others: Sequence[Instance] = (),
    seed: int = 0,
) -> list[Instance]:
    """Return short instances, in the order of the long ones, with the questions they answer.

    A question is kept where an accepted answer stands in a piece of a chunk that is evidence for
    it (of any chunk, where the evidence is not known); of labelled examples, where the label is
    shown.

    Args:
        instances: The long instances.
        settings: Shape of the excerpts.
        others: Instances whose pieces are the distractors.
        seed: Draws the distractors and their places.

    Returns:
        Instances whose ids are those of the long ones with a number; their metadata name the
        long instance ("excerpt_of") and the steps of the distractors ("distractor_steps").

    Raises:
        ValueError: Distractors are asked for and `others` have fewer pieces than an excerpt.
    """
    settings = settings or ExcerptSettings()
    pool = [
        piece
        for one in others
        for chunk in one.chunks
        for piece in pieces(chunk.text, settings.chunk_tokens)
    ]
    if settings.distractors and len(pool) < settings.chunks:
        raise ValueError(
            f"excerpts: the texts to take distractors from have {len(pool)} pieces, expected at "
            f"least {settings.chunks}; name more data, or set distractors to 0"
        )
    return [
        excerpt
        for instance in instances
        for excerpt in _of_instance(instance, settings, pool, seed)
    ]


def without_last_fifth(records: Sequence[Record]) -> tuple[list[Record], list[Record]]:
    """Return the records without their last fifth, to train on, and that fifth, held out.

    Args:
        records: Instances of one file, at least two.

    >>> without_last_fifth(range(6))
    ([0, 1, 2, 3], [4, 5])
    """
    count = max(1, math.ceil(len(records) / 5))
    return list(records[:-count]), list(records[-count:])


def _of_instance(
    instance: Instance, settings: ExcerptSettings, pool: Sequence[str], seed: int
) -> Iterator[Instance]:
    cut = [
        (step, piece)
        for step, chunk in enumerate(instance.chunks, start=1)
        for piece in pieces(chunk.text, settings.chunk_tokens)
    ]
    own = settings.chunks - settings.distractors
    for number, start in enumerate(range(0, len(cut) - own + 1, own)):
        rng = generator("excerpts", seed, instance.instance_id, number)
        steps = sorted(rng.sample(range(settings.chunks), own))
        texts = rng.sample(pool, settings.chunks) if settings.distractors else [""] * own
        for step, (_, piece) in zip(steps, cut[start : start + own], strict=True):
            texts[step] = piece
        source_steps = dict(zip(steps, (step for step, _ in cut[start : start + own]), strict=True))
        questions = _answered(instance.questions, texts, source_steps)
        if len(questions) < settings.min_questions:
            continue
        metadata: dict[str, Any] = {
            "excerpt_of": instance.instance_id,
            "distractor_steps": [n + 1 for n in range(settings.chunks) if n not in source_steps],
        }
        yield replace(
            instance,
            instance_id=f"{instance.instance_id}-{number}",
            chunks=tuple(Chunk(text, count_tokens(text)) for text in texts),
            questions=questions,
            chunk_questions=None,
            metadata=metadata,
        )


def _answered(
    questions: Sequence[Question], texts: Sequence[str], source_steps: dict[int, int]
) -> tuple[Question, ...]:
    """Return the questions that the texts answer, with the steps that hold the answer."""
    found = []
    for question in questions:
        known = question.evidence_steps
        steps = tuple(
            step + 1
            for step, source in source_steps.items()
            if (known is None or source in known) and _holds(texts[step], question)
        )
        if steps:
            found.append(replace(question, evidence_steps=steps))
    return tuple(found)


def _holds(text: str, question: Question) -> bool:
    if metric_for(question.data_source) == "label_match":
        shown = {label for _, label in labelled_examples(text)}
        return not shown.isdisjoint(question.answers)
    spoken = _normalised(text)
    return any(_normalised(answer) in spoken for answer in question.answers if answer.strip())


def _normalised(text: str) -> str:
    """Return the words of a text with a space around each."""
    return f" {' '.join(_WORD.findall(text.casefold()))} "
