"""Create an instance from a researcher's own texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from finemem_lib.scoring import metric_for
from finemem_lib.text import clean_text, count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question


def make_instance(
    chunks: Sequence[str],
    questions: Mapping[str, str | Sequence[str]],
    chunk_questions: Sequence[Mapping[str, str | Sequence[str]]] | None = None,
    *,
    instance_id: str = "own",
    data_source: str = "own",
    category: str = "AR",
) -> Instance:
    """Return an instance made from plain texts.

    Args:
        chunks: The chunks in reading order, one per step; at least one.
        questions: The accepted answer or answers of every global question, asked at the end.
        chunk_questions: The same for the questions of each chunk, asked right after its step; one
            mapping per chunk.
        instance_id: Id of the instance, unique among the instances of a run.
        data_source: Data source, which selects the metric, see `scoring.SOURCES`; with "own" an
            answer is right if an accepted answer occurs in it.
        category: Group of the instance in result tables.

    Raises:
        ValueError: there are no chunks, `chunk_questions` has another length, or the data source
            has no metric.

    >>> instance = make_instance(["Mia lives in Rome."], {"Where does Mia live?": "Rome"})
    >>> instance.questions
    (Question(question_id='own-q1', text='Where does Mia live?', answers=('Rome',),
              data_source='own', step=None, evidence_steps=None),)
    """
    if isinstance(chunks, str) or not chunks:
        raise ValueError(
            f"make_instance: chunks is {chunks!r:.60}, expected a list of at least one text; "
            "put a single text into a list"
        )
    if chunk_questions is not None and len(chunk_questions) != len(chunks):
        raise ValueError(
            f"make_instance: {len(chunk_questions)} mappings of chunk questions for {len(chunks)} "
            "chunks, expected one per chunk; give {} for a chunk without questions"
        )
    metric_for(data_source)
    return Instance(
        instance_id,
        data_source,
        category,
        tuple(Chunk(text, count_tokens(text)) for text in map(clean_text, chunks)),
        _questions(f"{instance_id}-q", questions, data_source),
        None
        if chunk_questions is None
        else tuple(
            _questions(f"{instance_id}-{step}-q", texts, data_source, step)
            for step, texts in enumerate(chunk_questions, start=1)
        ),
    )


def _questions(
    prefix: str,
    answers_by_text: Mapping[str, str | Sequence[str]],
    data_source: str,
    step: int | None = None,
) -> tuple[Question, ...]:
    return tuple(
        Question(
            f"{prefix}{number}",
            clean_text(text),
            tuple(map(clean_text, [answers] if isinstance(answers, str) else answers)),
            data_source,
            step,
        )
        for number, (text, answers) in enumerate(answers_by_text.items(), start=1)
    )
