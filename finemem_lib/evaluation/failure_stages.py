"""Find the stage at which the answer to a question was lost between stream and reader.

For a correct answer, the evidence must be in a chunk, be written to an item, stay in the memory, be
retrieved, be used, and be read correctly. The stage of a failed question is the first of these
conditions that does not hold. A text contains an answer if the metric of the question's data source
scores the text at least `RIGHT_SCORE` (`retrievers.recall`); if the metric compares whole texts or
is a judge, the text must contain an accepted answer word for word.

If the question names its evidence steps and their chunks contain the answer, only items from these
chunks count as evidence: items that such a step wrote, or whose words all occur in these chunks. On
planted streams, the item must also name a person of the question. The stage is then exact, with one
exception: noise about the same person with the same value in the same chunk is mistaken for the
fact. If no evidence steps are known, any text that contains the answer counts.
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeVar

from finemem_lib.credit.replay import recorded_retriever
from finemem_lib.data.planted import VERBS
from finemem_lib.data.sentences import retrieval_query
from finemem_lib.evaluation.retrievers import recall
from finemem_lib.readers.extractive import reader_for
from finemem_lib.retrieval import Retriever
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.named import WITH_ENCODER
from finemem_lib.scoring import metric_for, substring_match
from finemem_lib.text import words
from finemem_lib.trajectory import AnsweredQuestion, MemoryDelta, Question, Trajectory

if TYPE_CHECKING:
    import pandas as pd

Stage = Literal["answered", "absent", "not written", "lost", "not retrieved", "not used", "misread"]

STAGES: dict[Stage, str] = {
    "answered": "answered",
    "absent": "never in the stream",
    "not written": "in a chunk, never written",
    "lost": "written and lost",
    "not retrieved": "in memory, not retrieved",
    "not used": "retrieved, not used",
    "misread": "used and misread",
}
"""The stages, in order from stream to reader, with their names in figures and tables."""

RIGHT_SCORE = 0.5
"""Smallest score of an answer that counts as right."""

_FOUND_IN_TEXT = ("substring_match", "part_match", "keyword_hit", "label_match", "word_match")
"""Metrics whose score never falls when text is added."""

Key = TypeVar("Key")


@dataclass(frozen=True, slots=True)
class FailureStage:
    """The stage at which the answer to one question was lost.

    Attributes:
        question: Position of the question in the trajectory, from 0.
        stage: A key of `STAGES`.
        step: The step that wrote the item; for "not written" the step whose chunk contains the
            answer, for "lost" the step that removed the item; `None` if there is no such step.
        item_id: Id of the item that contains the answer; `None` if there is no such item.
        rank: Rank of the item for this question, from 1; `None` if the item is not in the memory,
            the retriever does not return it, or the retriever cannot be loaded.
        reason: Explanation in words.
        exact: Whether the stage rests on known evidence steps, not on any text with the answer.
        content: Content of the item that contains the answer, if the question failed and there is
            such an item.
    """

    question: int
    stage: Stage
    step: int | None
    item_id: str | None
    rank: int | None
    reason: str
    exact: bool
    content: str | None = None


def failure_stages(trajectory: Trajectory) -> list[FailureStage | None]:
    """Return the failure stage of every global question.

    The rank of an item is computed with the recorded retriever and the query of the reader that
    answered. The retrievers "dense" and "hybrid" need their sentence encoder: if it cannot be
    loaded, the rank is `None` and the reason names the encoder. No stage depends on the rank.

    Args:
        trajectory: A played trajectory.

    Returns:
        One entry per question; `None` if the question has no score or no accepted answer.

    Raises:
        ValueError: the recorded retriever is unknown.

    >>> from finemem_lib.data.worked_example import worked_example
    >>> first, second = failure_stages(worked_example())
    >>> first.stage, first.item_id, first.rank, first.exact
    ('answered', '1', 1, False)
    """
    played = _Played(trajectory)
    return [
        _stage(played, place, answered)
        if answered.score is not None and answered.question.answers
        else None
        for place, answered in enumerate(trajectory.questions)
    ]


@dataclass(frozen=True, slots=True)
class StageCount:
    """Number of questions of a method at one stage.

    Attributes:
        stage: A key of `STAGES`.
        count: Number of questions at this stage.
        total: Number of questions with any stage.
        exact: Number of questions at this stage for which the stage is exact.
    """

    method: str
    stage: Stage
    count: int
    total: int
    exact: int

    @property
    def share(self) -> float | None:
        """`count` / `total`, in [0, 1]; `None` if no question has a stage."""
        return self.count / self.total if self.total else None


def stage_counts(methods: Mapping[str, Iterable[Trajectory]]) -> list[StageCount]:
    """Return the number of questions of every method at every stage.

    Args:
        methods: Trajectories of every method by its name.

    Returns:
        One row per method and stage, in the order of `STAGES`.

    Raises:
        ValueError: see `failure_stages`.
    """
    rows = []
    for method, trajectories in methods.items():
        found = [one for played in trajectories for one in failure_stages(played) if one]
        counts = Counter(one.stage for one in found)
        exact = Counter(one.stage for one in found if one.exact)
        rows += [
            StageCount(method, stage, counts[stage], len(found), exact[stage]) for stage in STAGES
        ]
    return rows


def stage_frame(rows: Iterable[StageCount]) -> pd.DataFrame:
    """Return a table of question counts and shares: one row per method, one column per stage.

    Args:
        rows: Rows of `stage_counts`.

    Returns:
        A pandas frame of text; "–" if no question of the method has a stage.
    """
    import pandas as pd

    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        cell = "–" if row.share is None else f"{row.count} ({row.share:.0%})"
        lines.setdefault(row.method, {})[STAGES[row.stage]] = cell
    return pd.DataFrame.from_dict(lines, orient="index")


class _Version(NamedTuple):
    """A content that an operation wrote to an item.

    `sources` are the steps that wrote the item up to this version, oldest first; `ended` is how and
    at which step the version left the memory, `None` if it is in the final memory; `words` are the
    words of the content.
    """

    item_id: str
    content: str
    sources: tuple[int, ...]
    ended: tuple[str, int] | None
    words: frozenset[str]


class _Played:
    """Data of one trajectory that all its questions use: chunk texts, versions, final memory."""

    def __init__(self, trajectory: Trajectory) -> None:
        self.trajectory = trajectory
        self.texts = [step.chunk.text for step in trajectory.steps]
        self.versions = _versions(trajectory)
        self.reader = reader_for([trajectory])
        recorded = trajectory.metadata.get("rollout", {})
        encoded = recorded.get("retriever") in WITH_ENCODER
        self.encoder = recorded.get("dense_model", DENSE_MODEL) if encoded else None
        self.stores = {item.item_id: item.store for item in trajectory.final_memory()}

    @functools.cached_property
    def index(self) -> Retriever | None:
        """The recorded retriever with the final memory; `None` if its encoder cannot be loaded."""
        try:
            retriever = recorded_retriever(self.trajectory)
        except ValueError:
            if self.encoder is None:
                raise
            return None
        retriever.update(MemoryDelta(written=self.trajectory.final_memory()))
        return retriever

    def rank(self, question: Question, item_id: str) -> tuple[int | None, str]:
        """Return the rank of an item within its store for a question, and a description of it.

        The rank is `None` if the retriever does not return the item or cannot be loaded.
        """
        if self.index is None:
            return None, f"its rank is not computed: it needs the encoder {self.encoder}"
        search = retrieval_query
        if self.trajectory.metadata.get("agent_settings") in (None, self.reader.settings):
            search = self.reader.query
        found = self.index.search(search(question.text, question.data_source), len(self.versions))
        rivals = [name for name, _ in found if self.stores[name] == self.stores[item_id]]
        rank = rivals.index(item_id) + 1 if item_id in rivals else None
        return rank, "the retriever does not find it" if rank is None else f"it ranks {rank}"


def _versions(trajectory: Trajectory) -> list[_Version]:
    """Return every content that was written, oldest first."""
    edits: dict[str, list[tuple[int, str]]] = {}  # item id -> its edits (step, kind)
    written: list[tuple[str, int, str]] = []  # item id, index in its edits, content
    for record in trajectory.steps:
        for outcome in record.outcomes:
            if not outcome.applied or outcome.operation is None or outcome.item_id is None:
                continue
            own = edits.setdefault(outcome.item_id, [])
            if outcome.operation.kind != "DELETE":
                written.append((outcome.item_id, len(own), outcome.operation.content or ""))
            own.append((record.step, outcome.operation.kind))
    evicted = {item_id: step.step for step in trajectory.steps for item_id in step.delta.evicted}
    there = {item.item_id for item in trajectory.final_memory()}
    versions = []
    for item_id, place, content in written:
        own = edits[item_id]
        ended = None
        if place + 1 < len(own):
            step, kind = own[place + 1]
            ended = ("deleted" if kind == "DELETE" else "overwritten"), step
        elif item_id not in there:
            ended = "evicted", evicted.get(item_id, own[place][0])
        sources = tuple(step for step, _ in own[: place + 1])
        said = frozenset(words(content))
        versions.append(_Version(item_id, content, sources, ended, said))
    return versions


@dataclass(frozen=True, slots=True)
class _Evidence:
    """Criteria by which a text counts as evidence of a question.

    Attributes:
        steps: Its evidence steps; empty if they are unknown.
        said: Words of the chunks of these steps (of all chunks if the steps are unknown).
        names: Names of the people in a planted question, in lower case; empty for other questions.
        parts: The question with each ";"-separated part of an answer as an accepted answer.
        literal: Whether these chunks contain the answer; if not, everything that the steps wrote is
            evidence.
    """

    question: Question
    steps: frozenset[int]
    said: frozenset[str]
    names: frozenset[str]
    parts: Question
    literal: bool

    def whole(self, contents: Iterable[str]) -> bool:
        """Return whether the texts together contain an answer."""
        texts = [*contents]
        return bool(texts) and (
            not self.literal or _answer_score(self.question, texts) >= RIGHT_SCORE
        )

    def part(self, text: str) -> bool:
        """Return whether a text contains an answer or one of its ";"-separated parts."""
        if self.names and self.names.isdisjoint(words(text)):
            return False
        return not self.literal or _answer_score(self.parts, [text]) > 0

    def carried_by(self, version: _Version) -> bool:
        """Return whether a version is evidence of the question."""
        if self.names and self.names.isdisjoint(version.words):
            return False  # `part` checks this too; checking early saves time on long streams
        return (
            not self.steps
            or not self.steps.isdisjoint(version.sources)
            or (self.literal and self.said.issuperset(version.words))
        ) and self.part(version.content)

    def decisive(self, have: Iterable[str], lacking: Sequence[tuple[Key, str]]) -> Key:
        """Return the key of the last text that, together with `have`, contains the answer.

        If there is none, return the last key of `lacking`.
        """
        texts = [*have]
        completing = [key for key, text in lacking if self.whole([*texts, text])]
        return completing[-1] if completing else lacking[-1][0]


def _answer_score(question: Question, texts: Sequence[str]) -> float:
    """Return the score of the answer contained in the texts, in [0, 1]."""
    if metric_for(question.data_source) in _FOUND_IN_TEXT:
        return recall(question, texts) or 0.0
    return substring_match("\n".join(texts), question.answers)


def _evidence(played: _Played, question: Question) -> _Evidence | None:
    """Return the evidence criteria of a question, `None` if no text contains an answer."""
    steps = frozenset(
        step for step in question.evidence_steps or () if 0 < step <= len(played.texts)
    )
    texts = [played.texts[step - 1] for step in sorted(steps)] or played.texts
    literal = bool(texts) and _answer_score(question, texts) >= RIGHT_SCORE
    if not literal and not steps:
        return None
    names = frozenset(
        word.lower()
        for word in question.text.split()[1:]
        if steps and question.data_source in VERBS and word[:1].isupper()
    )
    answers = tuple(part for answer in question.answers for part in answer.split(";"))
    parts = dataclasses.replace(question, answers=answers)
    said = frozenset(word for text in texts for word in words(text))
    return _Evidence(question, steps, said, names, parts, literal)


def _stage(played: _Played, place: int, answered: AnsweredQuestion) -> FailureStage:
    """Return the failure stage of one question."""
    evidence = _evidence(played, answered.question)
    exact = evidence is not None and bool(evidence.steps) and evidence.literal
    found = functools.partial(FailureStage, place, exact=exact)
    ranks = {item.item_id: n for n, item in enumerate(answered.retrieved, 1)}
    if (answered.score or 0.0) >= RIGHT_SCORE:
        return found("answered", *_answered_from(answered, ranks))
    if evidence is None:
        reason = "no chunk of the stream contains an accepted answer word for word"
        return found("absent", None, None, None, reason)
    written = [version for version in played.versions if evidence.carried_by(version)]
    if not evidence.whole(version.content for version in written):
        step = _unwritten_step(played, evidence, written)
        reason = f"the chunk of step {step} contains the answer, but no item with it was written"
        return found("not written", step, None, None, reason + _refused(played, step, evidence))
    held = [version for version in written if version.ended is None]
    if not evidence.whole(version.content for version in held):
        lost = evidence.decisive(
            (version.content for version in held),
            [(version, version.content) for version in written if version.ended],
        )
        how, step = lost.ended or ("", 0)
        reason = f"{_item(lost)}, written at step {lost.sources[-1]}, was {how} at step {step}"
        return found("lost", step, lost.item_id, None, reason, content=lost.content)
    return _stage_in_memory(played, answered, evidence, held, found)


def _stage_in_memory(
    played: _Played,
    answered: AnsweredQuestion,
    evidence: _Evidence,
    held: Sequence[_Version],
    found: Callable[..., FailureStage],
) -> FailureStage:
    """Return the stage of a failed question whose evidence is in the memory (`held`)."""
    ranks = {item.item_id: n for n, item in enumerate(answered.retrieved, 1)}
    retrieved = [version for version in held if version.item_id in ranks]
    if not evidence.whole(version.content for version in retrieved):
        missing = [(version, version.content) for version in held if version not in retrieved]
        one = evidence.decisive((version.content for version in retrieved), missing)
        rank, where = played.rank(answered.question, one.item_id)
        reason = f"{_item(one)} is in the memory; {where}, and {len(ranks)} items were retrieved"
        return found("not retrieved", *_place(one), rank, reason, content=one.content)
    taken = answered.used
    used = [version for version in retrieved if taken is None or version.item_id in taken]
    unused = [(version, version.content) for version in retrieved if version not in used]
    if not evidence.whole(version.content for version in used):
        one = evidence.decisive((version.content for version in used), unused)
        instead = ", ".join(f"#{item_id}" for item_id in taken or ()) or "no item"
        reason = f"{_item(one)} was retrieved, and the reader used {instead}"
        return found("not used", *_place(one), ranks[one.item_id], reason, content=one.content)
    one = min(used, key=lambda version: ranks[version.item_id])
    rank = ranks[one.item_id]
    if taken is None:
        reason = f"{_item(one)} was retrieved (rank {rank}); the reader does not say what it used"
        return found("misread", *_place(one), rank, reason, exact=False, content=one.content)
    reason = f"the reader used {_item(one)} (rank {rank}) and answered something else"
    return found("misread", *_place(one), rank, reason, content=one.content)


def _answered_from(
    answered: AnsweredQuestion, ranks: Mapping[str, int]
) -> tuple[int | None, str | None, int | None, str]:
    """Return step, item id, rank and reason of a question that was answered right."""
    ids = tuple(ranks) if answered.used is None else answered.used
    best = next((item for item in answered.retrieved if item.item_id in ids), None)
    if best is None:
        return None, None, None, "answered without an item"
    verb = "retrieved" if answered.used is None else "used"
    rank = ranks[best.item_id]
    reason = f"item #{best.item_id} was {verb} (rank {rank}), written at step {best.steps[-1]}"
    return best.steps[-1], best.item_id, rank, reason


def _unwritten_step(played: _Played, evidence: _Evidence, written: Sequence[_Version]) -> int:
    """Return the last step whose chunk contains the part of the answer that was never written."""
    steps = sorted(evidence.steps) or range(1, len(played.texts) + 1)
    told = [(step, played.texts[step - 1]) for step in steps]
    return evidence.decisive(
        (version.content for version in written),
        [(step, text) for step, text in told if evidence.part(text)] or told,
    )


def _refused(played: _Played, step: int, evidence: _Evidence) -> str:
    """Return a note that the memory refused to write the evidence at a step, "" if it did not."""
    for outcome in played.trajectory.steps[step - 1].outcomes:
        asked = outcome.operation
        if asked and not outcome.applied and asked.content and evidence.part(asked.content):
            return f"; the memory refused {asked.kind} ({outcome.reason})"
    return ""


def _place(version: _Version) -> tuple[int, str]:
    """Return the step that wrote a version, and the id of its item."""
    return version.sources[-1], version.item_id


def _item(version: _Version) -> str:
    return f"item #{version.item_id}"
