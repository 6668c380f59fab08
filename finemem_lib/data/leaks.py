"""Detect leaked answers and overlap between training and test.

Run it on a data set before training on it; it reports leaks and removes nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from finemem_lib.data.cloze import statements
from finemem_lib.data.sentences import labelled_examples, retrieval_query
from finemem_lib.scoring import metric_for, normalise, score
from finemem_lib.text import words
from finemem_lib.trajectory import Instance, Question

LeakKind = Literal["answer in question", "asked example shown", "question in both", "text in both"]
"""A question that scores when it is repeated as the answer; a labelled example both shown and
asked; a question and its answers that are also in training; a chunk whose text is also in
training."""

MIN_SHARED_TEXT = 0.5
"""Smallest share of a chunk's pieces found in training for which the chunk is reported."""

MIN_PIECE_WORDS = 4
"""Smallest number of words of a compared piece; shorter ones ("He agreed.") occur in every text."""


@dataclass(frozen=True, slots=True)
class Leak:
    """One finding.

    Attributes:
        step: Step of the chunk or chunk question; `None` for a global question.
        text: The question, or the beginning of the chunk.
        share: Share of the chunk's pieces that are also in training; 1.0 for questions.
    """

    kind: LeakKind
    instance_id: str
    step: int | None
    text: str
    share: float = 1.0


def leaks(instances: Sequence[Instance], training: Sequence[Instance] = ()) -> tuple[Leak, ...]:
    """Return leaked answers and, with `training`, overlap with the training data.

    Global and chunk questions are checked. Texts are compared by their sentences or labelled
    examples, without wrappers.

    Args:
        instances: The data to check.
        training: The training data to compare with.

    Raises:
        ValueError: a data source has no metric.

    >>> from finemem_lib.trajectory import Chunk
    >>> asked = Question("q-1", "Which city is Rome?", ("Rome",), "squad")
    >>> leaks([Instance("one", "squad", "AR", (Chunk("Mia lives in Rome.", 5),), (asked,))])
    (Leak(kind='answer in question', instance_id='one', step=None, text='Which city is Rome?', ...
    """
    known = _TrainingText.of(training)
    return tuple(
        leak
        for instance in instances
        for leak in (*_leaked_answers(instance), *_overlap(instance, known))
    )


@dataclass(frozen=True, slots=True)
class _TrainingText:
    questions: frozenset[tuple[str, frozenset[str]]]
    pieces: frozenset[str]

    @classmethod
    def of(cls, training: Sequence[Instance]) -> _TrainingText:
        return cls(
            frozenset(_asked(question) for one in training for question in _questions(one)),
            frozenset(
                piece for one in training for chunk in one.chunks for piece in _pieces(chunk.text)
            ),
        )


def _leaked_answers(instance: Instance) -> Iterator[Leak]:
    shown = {
        normalise(text) for chunk in instance.chunks for text, _ in labelled_examples(chunk.text)
    }
    for question in _questions(instance):
        place = instance.instance_id, question.step, question.text
        if score(question.text, question.answers, question.data_source):
            yield Leak("answer in question", *place)
        # A chunk question may ask for an example of its own chunk.
        if (
            question.step is None
            and metric_for(question.data_source) == "label_match"
            and (normalise(retrieval_query(question.text, question.data_source)) in shown)
        ):
            yield Leak("asked example shown", *place)


def _overlap(instance: Instance, known: _TrainingText) -> Iterator[Leak]:
    for question in _questions(instance):
        if _asked(question) in known.questions:
            yield Leak("question in both", instance.instance_id, question.step, question.text)
    for step, chunk in enumerate(instance.chunks, start=1):
        pieces = _pieces(chunk.text)
        share = len(pieces & known.pieces) / max(1, len(pieces))
        if share >= MIN_SHARED_TEXT:
            yield Leak("text in both", instance.instance_id, step, chunk.text[:80], share)


def _questions(instance: Instance) -> list[Question]:
    by_chunk = instance.chunk_questions or ()
    return [*instance.questions, *(question for asked in by_chunk for question in asked)]


def _asked(question: Question) -> tuple[str, frozenset[str]]:
    return normalise(question.text), frozenset(map(normalise, question.answers))


def _pieces(text: str) -> frozenset[str]:
    examples = [example for example, _ in labelled_examples(text)]
    pieces = examples or [statement.text for statement in statements(text)]
    return frozenset(normalise(piece) for piece in pieces if len(words(piece)) >= MIN_PIECE_WORDS)
