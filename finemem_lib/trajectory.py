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

Store = Literal["flat", "core", "semantic", "episodic"]
"""Where an item is kept: in the one store of a flat memory, or in a layer of a layered one."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """One piece of the input history, which the memory manager reads at one step.

    Attributes:
        tokens: The length L(c_t), in the units of the trajectory's `tokenizer`.
        truncated_tokens: Number of tokens cut away when the data were loaded.
    """

    text: str
    tokens: int
    truncated_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Question:
    """A question with its accepted answers; a prediction is right when it matches any of them.

    Attributes:
        question_id: Identifier, unique within its instance.
        text: The wording of the question.
        answers: Accepted answers; empty where no answer is known.
        data_source: Data source, which selects the metric, see `scoring.SOURCES`.
        step: The step whose chunk a chunk question asks about; `None` for a global question.
        evidence_steps: Steps whose chunks hold the answer; `None` where unknown.
    """

    question_id: str
    text: str
    answers: tuple[str, ...]
    data_source: str
    step: int | None = None
    evidence_steps: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True)
class Instance:
    """One input of the workbench: a stream of chunks with its questions.

    Attributes:
        instance_id: Unique among instances that are played together.
        data_source: Data source of the text and its questions.
        category: Its group in tables: "AR", "TTL" or "LRU" in Mem-alpha, "CR" for revised facts.
        chunks: The chunks in reading order.
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
    """One edit of the memory: INSERT needs content, UPDATE needs both, DELETE needs item_id.

    `store` names the layer of a layered memory; its core needs no item_id, there is only one.
    """

    kind: OperationKind
    content: str | None = None
    item_id: str | None = None
    store: Store | None = None


@dataclass(frozen=True, slots=True)
class InvalidOperation:
    """A piece of a completion (`raw`) that could not be parsed as an operation, and the reason."""

    reason: str
    raw: str


@dataclass(frozen=True, slots=True)
class OperationOutcome:
    """The outcome of one emitted operation.

    Attributes:
        operation: The operation, `None` where its text could not be parsed.
        applied: Whether the memory applied it.
        reason: Why it was not applied; set exactly when `applied` is false.
        item_id: Id of the item written or removed.
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
    """A memory item with its lineage: every write, oldest first. No id is used twice.

    An item never leaves the store that it was created in.
    """

    item_id: str
    content: str
    lineage: tuple[Write, ...]
    store: Store = "flat"

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
    """The change of the memory in one step.

    Attributes:
        written: Inserted and updated items in their new state.
        removed: Ids of deleted items.
        evicted: Ids of items evicted to make room for others.
    """

    written: tuple[MemoryItem, ...] = ()
    removed: tuple[str, ...] = ()
    evicted: tuple[str, ...] = ()

    def applied_to(self, items: Mapping[str, MemoryItem]) -> dict[str, MemoryItem]:
        """Return the items by id after this change; `items` stays unchanged."""
        after = dict(items)
        self._change(after)
        return after

    def _change(self, items: dict[str, MemoryItem]) -> None:
        for item_id in self.removed + self.evicted:
            items.pop(item_id, None)
        for item in self.written:
            items[item.item_id] = item


@dataclass(frozen=True, slots=True)
class Retrieved:
    """One retrieved item.

    Attributes:
        score: Score of the retriever; `None` for what is shown without a search (core memory).
        steps: Steps that wrote it, oldest first: ``steps[0]`` created it, ``steps[-1]`` wrote it
            last.
    """

    item_id: str
    score: float | None
    steps: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AnsweredQuestion:
    """A question with the retrieved items, the answer and its score.

    Attributes:
        asked_step: The step after which it was asked.
        retrieved: M_j, the retrieved items, best first.
        answer: Answer of the reasoning agent; "" where it gave none.
        used: Ids of the items that the agent reports as used; `None` where it reports none.
        score: Score in [0, 1]; `None` where the answer cannot be scored.
    """

    question: Question
    asked_step: int
    retrieved: tuple[Retrieved, ...]
    answer: str
    used: tuple[str, ...] | None
    score: float | None


@dataclass(frozen=True, slots=True)
class Step:
    """One step: the chunk, the manager's completion, and its effect on the memory.

    Attributes:
        step: Number of the step, from 1 to T.
        chunk: c_t, the chunk read.
        completion: Text that the manager emitted.
        outcomes: One outcome per emitted operation.
        delta: Net change of the memory.
        memory_tokens: L(M_t), the number of tokens in the memory after the step.
        chunk_questions: The chunk's questions, answered from M_t.
        prompt, prompt_ids, completion_ids, logprobs: Set only where a model wrote the completion.
        prompt_truncated_tokens: Number of model tokens cut from the chunk's end to fit the prompt.
        prompt_omitted_items: Number of oldest items left out of the prompt.
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
        instance_id, data_source, category: Copied from the instance.
        rollout: Index of the rollout within its group, from 0.
        steps: One step per chunk.
        questions: The global questions, answered from M_T.
        tokenizer: Name of the tokenizer of all token counts.
        seed: Seed of the manager's sampling.
        metadata: Settings of the rollout.
        schema_version: Version of this record's schema.
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
        """Return the memory M_t after `step` (0: the empty memory), in order of creation.

        Raises:
            ValueError: `step` is outside 0..T.
        """
        if not 0 <= step <= self.num_steps:
            raise ValueError(f"memory_at: step {step} is outside 0..{self.num_steps}")
        items: dict[str, MemoryItem] = {}
        for record in self.steps[:step]:
            record.delta._change(items)
        return tuple(sorted(items.values(), key=lambda item: creation_key(item)))

    def final_memory(self) -> tuple[MemoryItem, ...]:
        """Return M_T, the memory that the global questions were asked on."""
        return self.memory_at(self.num_steps)


def creation_key(item: MemoryItem) -> tuple[int, int]:
    """Return the key that sorts items in the order of their creation."""
    first = item.lineage[0]
    return first.step, first.position


def last_write_key(item: MemoryItem) -> tuple[int, int]:
    """Return the key that sorts items in the order of their last writes."""
    last = item.lineage[-1]
    return last.step, last.position


def to_json(record: Any) -> str:
    """Return the JSON text of a record of this module.

    Non-finite floats are written as JavaScript constants, so that `from_json` restores them;
    `metadata` is restored equal only if it is plain JSON (text keys, lists, no tuples).
    """
    return json.dumps(dataclasses.asdict(record), ensure_ascii=True, separators=(",", ":"))


def from_json(record_type: type[Record], text: str) -> Record:
    """Return the record that `to_json` wrote.

    Pydantic validates every field against its declared type: it converts the text "5" to the
    number 5 and ignores unknown fields.

    Args:
        record_type: Class of the record.
        text: JSON text from `to_json`.

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
    """Return records as JSON lines, each ending in a newline."""
    return "".join(to_json(record) + "\n" for record in records)


def read_jsonl(record_type: type[Record], text: str) -> list[Record]:
    """Return the records that `write_jsonl` wrote.

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
