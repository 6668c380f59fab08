"""Cut instances of long texts into short ones that a small model can read.

A stream of the public benchmarks has about ten chunks of about 1,000 tokens. An excerpt consists of
a few adjacent pieces of one instance, each of complete sentences, and the questions that those
pieces answer. Distractors, pieces of other texts without questions, may stand between them; then
only a part of the excerpt is worth storing.

Differs from the paper: the paper reads whole instances, in chunks of 2,048 tokens.
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
        chunk_tokens: Largest number of tokens of a piece, at least 1; a single sentence may be
            longer.
        chunks: T, the number of pieces of an excerpt, at least 1.
        distractors: Number of these pieces from other texts, at least 0 and less than `chunks`.
        min_questions: Smallest number of questions, at least 1; other excerpts are left out.

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
    """Return a text cut between sentences (or labelled examples), without its line with the date.

    Args:
        text: The text of a chunk.
        most_tokens: Largest number of tokens of a piece; a longer sentence forms its own piece.

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

    A question is kept if an accepted answer occurs in a piece of one of its evidence chunks (of any
    chunk if the evidence is unknown). A question for a label is kept if the label occurs.

    Args:
        instances: The long instances.
        settings: Shape of the excerpts.
        others: Instances that provide the distractors.
        seed: Seed of the choice of distractors and their positions.

    Returns:
        Instances with the id of the long instance and a number; their metadata name the long
        instance ("excerpt_of") and the steps of the distractors ("distractor_steps").

    Raises:
        ValueError: Distractors are requested and `others` have fewer pieces than an excerpt.
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
    """Return the first four fifths of the records, for training, and the last fifth, held out.

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
