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
from typing import Any, Literal

from finemem_lib.util.validation import parse_json, type_adapter

SCHEMA_VERSION = 1
OperationKind = Literal["INSERT", "UPDATE", "DELETE", "SKIP"]
OPERATION_KINDS: tuple[OperationKind, ...] = ("INSERT", "UPDATE", "DELETE", "SKIP")


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of history, read by the memory manager at one step.

    `tokens` is the length L(c_t) in the units of the trajectory's `tokenizer`; `truncated_tokens`
    counts what a named rule cut away because the prompt could not hold the whole chunk.
    """

    text: str
    tokens: int
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers; a prediction is right when it meets any of them.

    `data_source` selects the metric. `step` is the step of the chunk that a chunk question was
    written from and `None` for a global question. `evidence_steps` are the steps known to have
    carried the answer, `None` where nobody knows.
    """

    question_id: str
    text: str
    answers: tuple[str, ...]
    data_source: str
    step: int | None = None
    evidence_steps: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One input of the workbench: chunks in reading order, the global questions asked at the end,
    and, where there are any, the chunk questions of each step (one tuple per chunk)."""

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
    """A piece of a completion that asked for something but is no operation, and why."""

    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class OperationOutcome:
    """What became of one emitted operation.

    `operation` is `None` when the completion could not be parsed into one. `item_id` names the
    item that was written or removed. `reason` is set exactly when `applied` is false.
    """

    operation: Operation | None
    applied: bool
    reason: str | None = None
    item_id: str | None = None
    raw: str | None = None


@dataclass(frozen=True, slots=True)
class Write:
    """One write of an item: the step, the operation, and its position among the step's outcomes."""

    step: int
    kind: OperationKind
    position: int


@dataclass(frozen=True, slots=True)
class MemoryItem:
    """A memory item with its lineage: every write, oldest first."""

    item_id: str
    content: str
    lineage: tuple[Write, ...]

    @property
    def created_step(self) -> int:
        return self.lineage[0].step

    @property
    def last_step(self) -> int:
        return self.lineage[-1].step


@dataclass(frozen=True, slots=True)
class MemoryDelta:
    """How one step changed the memory: `written` holds new and updated items in their new state,
    `removed` the ids that were deleted, `evicted` the ids that capacity pushed out."""

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
    """One retrieved item, best first: id, retrieval score, and the steps that wrote it (oldest
    first, so ``steps[0]`` created it and ``steps[-1]`` last wrote it)."""

    item_id: str
    score: float
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question asked on the memory after `asked_step`.

    `used` lists the ids the reasoning agent says it answered from (`None`: it does not say).
    `score` lies in [0, 1]; `None` means it cannot be scored.
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

    `prompt_ids`, `completion_ids` and `logprobs` are there only when a model wrote the completion.
    `memory_tokens` is L(M_t). `prompt_truncated_tokens` counts the end of the chunk that the prompt
    could not hold, in the model's tokens, and `prompt_omitted_items` the oldest items not shown.
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
    """One pass of a memory manager over all chunks of an instance, with every answer and score."""

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

    def to_json(self) -> str:
        return to_json(self)

    @classmethod
    def from_json(cls, text: str) -> Trajectory:
        return from_json(cls, text)


def creation_key(item: MemoryItem) -> tuple[int, int]:
    """Sort key that puts items in the order they were created."""
    first = item.lineage[0]
    return first.step, first.position


def to_json(record: Any) -> str:
    """Return the JSON text of a record of this module.

    Non-finite floats are written as JavaScript constants, so that they survive the round trip;
    `metadata` must be plain JSON (text keys, lists, no tuples) to come back equal.
    """
    return json.dumps(dataclasses.asdict(record), ensure_ascii=True, separators=(",", ":"))


def from_json(record_type: type, text: str) -> Any:
    """Read back what `to_json` wrote; every field must fit its declared type.

    The fit is pydantic's: the text "5" passes for the number 5, unknown fields are ignored.

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
    return type_adapter(record_type).validate_python(data)


def write_jsonl(records: Iterable[Any]) -> str:
    """Return records as JSON lines, one per line, each with a trailing newline."""
    return "".join(to_json(record) + "\n" for record in records)


def read_jsonl(record_type: type, text: str) -> list[Any]:
    """Read back what `write_jsonl` wrote.

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
