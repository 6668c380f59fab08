"""The records that all parts of the library share, and their JSON form.

One `Trajectory` holds all that a reward, a credit rule or a figure needs, so each of them can be
recomputed from a saved file without a model. Steps count from 1 to T as in the paper; lists that
carry one entry per step are indexed by ``step - 1``. `None` means unassigned or unscorable and is
never the same as a measured 0.0.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

from finemem_lib.util.validation import parse_json, type_adapter

SCHEMA_VERSION = 1
Record = TypeVar("Record")
OperationKind = Literal["INSERT", "UPDATE", "DELETE", "SKIP"]
OPERATION_KINDS: tuple[OperationKind, ...] = ("INSERT", "UPDATE", "DELETE", "SKIP")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of history, read by the memory manager at one step.

    Attributes:
        text: What the manager reads.
        tokens: The length L(c_t), in the units of the trajectory's `tokenizer`.
        truncated_tokens: Tokens cut away when the data were loaded.
    """

    text: str
    tokens: int
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers; a prediction is right when it meets any of them.

    Attributes:
        question_id: Unique within its instance.
        text: What is asked.
        answers: Accepted answers; none where no answer is known.
        data_source: Selects the metric, see `scoring.SOURCES`.
        step: Step of the chunk that a chunk question was written from, `None` for a global one.
        evidence_steps: Steps whose chunks hold the answer, `None` where they are not known.
    """

    question_id: str
    text: str
    answers: tuple[str, ...]
    data_source: str
    step: int | None = None
    evidence_steps: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One input of the workbench.

    Attributes:
        instance_id: Unique among instances that are played together.
        data_source: Where it comes from.
        category: Its group in tables of results: "AR", "TTL" or "LRU" in Mem-alpha.
        chunks: In reading order.
        questions: Global questions, asked at the end.
        chunk_questions: One tuple per chunk, or `None` where there are none.
        metadata: Plain JSON, such as the planted facts.
    """

    instance_id: str
    data_source: str
    category: str
    chunks: tuple[Chunk, ...]
    questions: tuple[Question, ...]
    chunk_questions: tuple[tuple[Question, ...], ...] | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Operation:
    """One edit of the memory: INSERT needs content, UPDATE needs both, DELETE needs item_id."""

    kind: OperationKind
    content: str | None = None
    item_id: str | None = None


@dataclass(frozen=True, slots=True)
class InvalidOperation:
    """A piece of a completion (`raw`) that asks for an operation without being one, and why."""

    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class OperationOutcome:
    """What became of one emitted operation.

    Attributes:
        operation: `None` where the completion could not be parsed into one.
        applied: Whether the memory carried it out.
        reason: Why it was not applied; set exactly when `applied` is false.
        item_id: The item that was written or removed.
        raw: The text that could not be parsed.
    """

    operation: Operation | None
    applied: bool
    reason: str | None = None
    item_id: str | None = None
    raw: str | None = None


@dataclass(frozen=True, slots=True, order=True)
class Write:
    """One write of an item: the step, the operation, and its position among the step's outcomes."""

    step: int
    kind: OperationKind
    position: int


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """A memory item with its lineage: every write, oldest first. No id is used twice."""

    item_id: str
    content: str
    lineage: tuple[Write, ...]

    @property
    def created_step(self) -> int:
        """The step that created the item."""
        return self.lineage[0].step

    @property
    def last_step(self) -> int:
        """The step that last wrote the item."""
        return self.lineage[-1].step


@dataclass(frozen=True, slots=True)
class MemoryDelta:
    """How one step changed the memory.

    Attributes:
        written: New and updated items in their new state.
        removed: Ids of deleted items.
        evicted: Ids of items that had to make room for others.
    """

    written: tuple[MemoryItem, ...] = ()
    removed: tuple[str, ...] = ()
    evicted: tuple[str, ...] = ()

    def applied_to(self, items: Mapping[str, MemoryItem]) -> dict[str, MemoryItem]:
        """Return the memory after this change; the input is left alone."""
        after = dict(items)
        for item_id in self.removed + self.evicted:
            after.pop(item_id, None)
        for item in self.written:
            after[item.item_id] = item
        return after


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One retrieved item.

    Attributes:
        item_id: Its id in the memory.
        score: Score of the retriever.
        steps: Steps that wrote it, oldest first: ``steps[0]`` created it, ``steps[-1]`` wrote it
            last.
    """

    item_id: str
    score: float
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question, and how it was answered.

    Attributes:
        question: What was asked.
        asked_step: It was asked on the memory after this step.
        retrieved: M_j, best first.
        answer: Of the reasoning agent; "" where it gave none.
        used: Ids that the agent says it answered from, `None` where it does not say.
        score: In [0, 1], `None` where it cannot be scored.
    """

    question: Question
    asked_step: int
    retrieved: tuple[Retrieved, ...]
    answer: str
    used: tuple[str, ...] | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the chunk, what the manager emitted, and what it did to the memory.

    Attributes:
        step: From 1 to T.
        chunk: c_t.
        completion: Text that the manager emitted.
        outcomes: One per emitted operation.
        delta: Net change of the memory.
        memory_tokens: L(M_t).
        chunk_questions: Asked on M_t.
        prompt, prompt_ids, completion_ids, logprobs: Set only where a model wrote the completion.
        prompt_truncated_tokens: Model tokens of the chunk's end that the prompt could not hold.
        prompt_omitted_items: Oldest items that the prompt did not show.
    """

    step: int
    chunk: Chunk
    completion: str
    outcomes: tuple[OperationOutcome, ...]
    delta: MemoryDelta
    memory_tokens: int
    chunk_questions: tuple[AnsweredQuestion, ...] = ()
    prompt: str | None = None
    prompt_ids: tuple[int, ...] | None = None
    completion_ids: tuple[int, ...] | None = None
    logprobs: tuple[float, ...] | None = None
    prompt_truncated_tokens: int = 0
    prompt_omitted_items: int = 0


@dataclass(frozen=True, slots=True)
class Trajectory:
    """One pass of a memory manager over all chunks of an instance, with every answer and score.

    Attributes:
        instance_id, data_source, category: Those of the instance.
        manager: Name of the memory manager.
        rollout: Number of the rollout within its group, from 0.
        steps: One per chunk.
        questions: The global questions, asked on M_T.
        tokenizer: Unit of all token counts.
        seed: Seed of the manager's sampling.
        metadata: How it was played.
        schema_version: Of this record.
    """

    instance_id: str
    data_source: str
    category: str
    manager: str
    rollout: int
    steps: tuple[Step, ...]
    questions: tuple[AnsweredQuestion, ...]
    tokenizer: str
    seed: int | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    @property
    def num_steps(self) -> int:
        """T, the number of steps."""
        return len(self.steps)

    def memory_at(self, step: int) -> tuple[MemoryItem, ...]:
        """Rebuild the memory M_t after `step` (0 is the empty start), in order of creation.

        Raises:
            ValueError: `step` is outside 0..T.
        """
        if not 0 <= step <= self.num_steps:
            raise ValueError(f"memory_at: step {step} is outside 0..{self.num_steps}")
        items: dict[str, MemoryItem] = {}
        for record in self.steps[:step]:
            items = record.delta.applied_to(items)
        return tuple(sorted(items.values(), key=lambda item: creation_key(item)))

    def final_memory(self) -> tuple[MemoryItem, ...]:
        """Rebuild M_T, the memory that the global questions were asked on."""
        return self.memory_at(self.num_steps)


def creation_key(item: MemoryItem) -> tuple[int, int]:
    """Return the key that sorts items in the order of their creation."""
    first = item.lineage[0]
    return first.step, first.position


def to_json(record: Any) -> str:
    """Return the JSON text of a record of this module.

    Non-finite floats are written as JavaScript constants, so that they survive the round trip;
    `metadata` must be plain JSON (text keys, lists, no tuples) to come back equal.
    """
    return json.dumps(dataclasses.asdict(record), ensure_ascii=True, separators=(",", ":"))


def from_json(record_type: type[Record], text: str) -> Record:
    """Read back what `to_json` wrote.

    Every field must fit its declared type, as pydantic judges it: the text "5" passes for the
    number 5, unknown fields are ignored.

    Args:
        record_type: Class of the record.
        text: What `to_json` returned.

    Raises:
        ValueError: the text is not JSON, has another schema version, or a field does not fit.
    """
    try:
        data = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{record_type.__name__}: {error}") from error
    if not isinstance(data, dict):
        raise ValueError(
            f"{record_type.__name__}: got a JSON {type(data).__name__}, expected an object; "
            "is this another artefact?"
        )
    version = data.get("schema_version", SCHEMA_VERSION)
    if version != SCHEMA_VERSION:
        raise ValueError(
            f"{record_type.__name__}: schema version {version!r}, this version of the library "
            f"reads {SCHEMA_VERSION}; write the artefact again with the notebook that made it"
        )
    record: Record = type_adapter(record_type).validate_python(data)
    return record


def write_jsonl(records: Iterable[Any]) -> str:
    """Return records as JSON lines, one per line, each with a trailing newline."""
    return "".join(to_json(record) + "\n" for record in records)


def read_jsonl(record_type: type[Record], text: str) -> list[Record]:
    """Read back what `write_jsonl` wrote.

    Args:
        record_type: Class of the records, such as `Trajectory`.
        text: One JSON record per line; blank lines are skipped.

    Raises:
        ValueError: a line cannot be read; the message carries its number.
    """
    records = []
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            try:
                records.append(from_json(record_type, line))
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error
    return records
