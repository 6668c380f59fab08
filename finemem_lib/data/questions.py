"""Chunk questions: a teacher writes them about one chunk, a verifier must answer them from it.

Differs from the paper: in Fine-Mem (arXiv 2601.08435) GPT-4o-mini writes K = 5 questions per chunk
and Qwen3-32B must answer each from the chunk. `ClozeTeacher` needs no model: it blanks out a date,
number, name or last word of a sentence, or rephrases the sentence as a question. Any reasoning
agent can verify; it reads the retrieved pieces of the chunk, as it later reads memory items. Two
checks are added: a question must not contain its answer, and must not be answerable from an empty
memory. No candidate is dropped silently: each has an `AuditRow`.
"""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

from finemem_lib.data.sentences import STOPWORDS, units
from finemem_lib.memory import FlatMemory
from finemem_lib.reading import Inquiry, ReasoningAgent, answer_questions
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.scoring import normalise, score
from finemem_lib.seeds import generator
from finemem_lib.text import words
from finemem_lib.trajectory import Instance, Operation, Question

Reason = Literal[
    "unscorable",
    "answer in question",
    "duplicate",
    "not answered from chunk",
    "answered without memory",
    "verifier failed",
    "not needed",
]
"""Why a candidate was rejected; "not needed": not verified, because K others were accepted."""

VERIFIER_ITEMS = 12
"""Largest number of retrieved pieces of the chunk that the verifier reads."""

NEAR_DUPLICATE = 0.8
"""Smallest share of common content words of two duplicate questions with the same answer."""


class Teacher(Protocol):
    """A writer of candidate questions about one chunk."""

    @property
    def name(self) -> str:
        """Name of the teacher in tables and recipes."""

    @property
    def settings(self) -> str:
        """Text that identifies everything the questions depend on, except for the chunk."""

    def prepare(self, chunk_texts: Sequence[str]) -> None:
        """Receive the chunks of later `write` calls, so that all can be asked about in one batch.

        Args:
            chunk_texts: Texts of one instance, in order.
        """

    def write(
        self, chunk_text: str, step: int, data_source: str, rng: random.Random
    ) -> list[Question]:
        """Return candidate questions, preferred ones first.

        Args:
            chunk_text: The text of the chunk, the teacher's only input.
            step: The chunk's step, from 1; it becomes `step` and `evidence_steps`.
            data_source: The instance's data source; if its metric needs a judge, the questions have
                another data source.
            rng: Source of random choices.

        Raises:
            ValueError: the data source has no metric.
        """


@dataclass(frozen=True, slots=True)
class AuditRow:
    """The verdict on one candidate.

    Attributes:
        question, answer: The candidate; several accepted answers are joined by "; ".
        accepted: Whether the candidate became a chunk question.
        reason: Why it was rejected; `None` exactly when it was accepted.
        reply: The verifier's answer from the chunk; `None` if the verifier was not asked.
    """

    step: int
    question: str
    answer: str
    accepted: bool
    reason: Reason | None
    reply: str | None = None


def make_chunk_questions(
    instance: Instance, teacher: Teacher, verifier: ReasoningAgent, k: int = 5, seed: int = 0
) -> tuple[Instance, tuple[AuditRow, ...]]:
    """Return the instance with at most `k` verified questions per chunk, and the audit.

    Candidates are verified in the teacher's order, in rounds of one batch for all chunks, until
    every chunk has `k` questions or no candidate is left.

    Args:
        instance: The instance; its own chunk questions are replaced.
        teacher: Writes the candidates.
        verifier: Must answer a question from its chunk, and must fail from an empty memory.
        k: Largest number of questions per chunk, at least 1.
        seed: Seed of the teacher's random choices.

    Returns:
        The instance, and one row per candidate, ordered by step, then in the teacher's order.

    Raises:
        ValueError: `k` is less than 1, or a data source has no metric.
    """
    if k < 1:
        raise ValueError(f"make_chunk_questions: k is {k}, expected at least 1")
    drafts: list[list[_Candidate]] = []
    teacher.prepare([chunk.text for chunk in instance.chunks])
    for step, chunk in enumerate(instance.chunks, start=1):
        rng = generator("chunk questions", seed, instance.instance_id, step)
        written = teacher.write(chunk.text, step, instance.data_source, rng)
        drafts.append(_screened(written))
    memories = _chunk_memories(instance)
    nothing = [_memory_of([])] * len(drafts)
    while any(batches := [_next(candidates, k) for candidates in drafts]):
        _ask(batches, memories, verifier, 1.0, "not answered from chunk")
        _ask(batches, nothing, verifier, 0.0, "answered without memory")
        for candidate in _open(batches):
            candidate.accepted = True
    for candidate in _open(drafts):
        candidate.reason = "not needed"
    chunk_questions = tuple(
        tuple(
            dataclasses.replace(candidate.question, question_id=f"chunk-{step}-{number}")
            for number, candidate in enumerate(
                (candidate for candidate in candidates if candidate.accepted), start=1
            )
        )
        for step, candidates in enumerate(drafts, start=1)
    )
    audit = tuple(
        candidate.audit_row(step)
        for step, candidates in enumerate(drafts, start=1)
        for candidate in candidates
    )
    return dataclasses.replace(instance, chunk_questions=chunk_questions), audit


def verified(
    instance: Instance, verifier: ReasoningAgent, threshold: float = 1.0, seed: int = 0
) -> Instance:
    """Return the instance with only the chunk questions that the verifier answers from their chunk.

    This applies the check of `make_chunk_questions` to existing questions. A threshold below 1
    simulates an overconfident verifier: each unanswered question gets a confidence drawn uniformly
    from [0, 1) and is kept if the confidence reaches the threshold.

    Args:
        instance: The instance; returned unchanged if it has no chunk questions.
        verifier: Must answer each question from its chunk.
        threshold: Smallest confidence, in [0, 1], for which an unanswered question is kept: 1 keeps
            none of them, 0 keeps all.
        seed: Seed of the draws; with equal seeds a lower threshold keeps a superset.

    Raises:
        ValueError: `threshold` is outside [0, 1].
    """
    if not 0 <= threshold <= 1:
        raise ValueError(f"verified: threshold is {threshold}, expected a number from 0 to 1")
    if instance.chunk_questions is None:
        return instance
    drafts = [[_Candidate(question) for question in asked] for asked in instance.chunk_questions]
    _ask(drafts, _chunk_memories(instance), verifier, 1.0, "not answered from chunk")
    rng = generator("verifier", seed, instance.instance_id)
    kept = [
        tuple(
            candidate.question
            for candidate, confidence in [(each, rng.random()) for each in candidates]
            if candidate.reason is None or confidence >= threshold
        )
        for candidates in drafts
    ]
    return dataclasses.replace(instance, chunk_questions=tuple(kept))


def sampled_questions(instance: Instance, share: float, seed: int) -> Instance:
    """Return the instance with a random share of its global questions, in their order.

    Fine-Mem trains on 20 % (arXiv 2601.08435).

    Args:
        instance: The instance whose global questions are sampled.
        share: Share of questions to keep, in (0, 1]; the number is rounded and at least one.
        seed: Seed of the draw; use one seed for all rollouts of a group, so that their rewards are
            comparable.

    Raises:
        ValueError: `share` is outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(
            f"sampled_questions: share is {share!r}, expected more than 0 and at most 1"
        )
    questions = instance.questions
    if share == 1 or not questions:
        return instance
    number = max(1, round(share * len(questions)))
    rng = generator(seed, "questions", instance.instance_id)
    places = sorted(rng.sample(range(len(questions)), number))
    return dataclasses.replace(instance, questions=tuple(questions[place] for place in places))


def audit_counts(audit: Sequence[AuditRow], num_steps: int) -> list[dict[str, int]]:
    """Return one record per step: candidates, accepted, and the count of every reason.

    Args:
        audit: The verdicts.
        num_steps: Number of records, for the steps 1 to `num_steps`.

    >>> rows = [AuditRow(1, "Q?", "A", True, None), AuditRow(1, "Q?", "A", False, "duplicate")]
    >>> audit_counts(rows, num_steps=2)[0]["duplicate"], audit_counts(rows, 2)[1]["candidates"]
    (1, 0)
    """
    counts = Counter((row.step, row.reason) for row in audit)
    return [
        {
            "step": step,
            "candidates": sum(counts[step, reason] for reason in (None, *get_args(Reason))),
            "accepted": counts[step, None],
            **{reason: counts[step, reason] for reason in get_args(Reason)},
        }
        for step in range(1, num_steps + 1)
    ]


@dataclass(slots=True)
class _Candidate:
    question: Question
    accepted: bool = False
    reason: Reason | None = None
    reply: str | None = None

    def audit_row(self, step: int) -> AuditRow:
        asked, answer = self.question.text, "; ".join(self.question.answers)
        return AuditRow(step, asked, answer, self.accepted, self.reason, self.reply)


def _open(lists: Sequence[Sequence[_Candidate]]) -> list[_Candidate]:
    return [
        one for candidates in lists for one in candidates if not one.accepted and one.reason is None
    ]


def _next(candidates: Sequence[_Candidate], k: int) -> list[_Candidate]:
    """Return the next undecided candidates, as many as the chunk still needs questions."""
    return _open([candidates])[: k - sum(candidate.accepted for candidate in candidates)]


def _chunk_memories(instance: Instance) -> list[tuple[FlatMemory, BM25Retriever]]:
    return [_memory_of(units(chunk.text)) for chunk in instance.chunks]


def _memory_of(contents: Sequence[str]) -> tuple[FlatMemory, BM25Retriever]:
    memory, retriever = FlatMemory(), BM25Retriever()
    _, delta = memory.apply([Operation("INSERT", content) for content in contents], step=1)
    retriever.update(delta)
    return memory, retriever


def _ask(
    batches: Sequence[Sequence[_Candidate]],
    memories: Sequence[tuple[FlatMemory, BM25Retriever]],
    verifier: ReasoningAgent,
    wanted: float,
    otherwise: Reason,
) -> None:
    """Ask the open candidates of every chunk on its memory, in one batch.

    Reject those whose score is not `wanted` (1.0: correct, 0.0: wrong), with the reason `otherwise`
    or, if the verifier failed (`None`), "verifier failed"."""
    asked = [_open([batch]) for batch in batches]
    answers = answer_questions(
        [
            Inquiry([candidate.question for candidate in batch], memory, retriever, step)
            for step, (batch, (memory, retriever)) in enumerate(
                zip(asked, memories, strict=True), start=1
            )
        ],
        verifier,
        VERIFIER_ITEMS,
    )
    for batch, answered in zip(asked, answers, strict=True):
        for candidate, one in zip(batch, answered, strict=True):
            if wanted:
                candidate.reply = one.answer
            if one.score != wanted:
                candidate.reason = "verifier failed" if one.score is None else otherwise


def _screened(written: Sequence[Question]) -> list[_Candidate]:
    """Return the candidates, with those rejected that need no verifier.

    A question contains its answer if repeating the question as the reply would score.
    """
    candidates: list[_Candidate] = []
    kept: list[tuple[frozenset[str], frozenset[str]]] = []
    for question in written:
        candidate = _Candidate(question)
        candidates.append(candidate)
        parroted = score(question.text, question.answers, question.data_source)
        answers = frozenset(map(normalise, question.answers))
        content = frozenset(words(question.text)) - STOPWORDS
        if parroted is None:
            candidate.reason = "unscorable"
        elif parroted:
            candidate.reason = "answer in question"
        elif any(
            content == other
            or answers == their_answers
            and len(content & other) >= NEAR_DUPLICATE * len(content | other)
            for other, their_answers in kept
        ):
            candidate.reason = "duplicate"
        else:
            kept.append((content, answers))
    return candidates
