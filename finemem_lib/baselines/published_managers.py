"""Published memory managers: their weights, output formats and steps.

- Memalpha-4B (arXiv 2509.25911): weights `YuWangX/Memalpha-4B`, a Qwen3-4B. It writes calls on
  three stores in the text format of Qwen-Agent: a line with the name of the tool after
  `✿FUNCTION✿:` and a JSON object after `✿ARGS✿:`.
- Memory-R2 (arXiv 2605.21768): weights `ahmedehabb/memory-r2-7b`, a Qwen2.5-7B trained on LoCoMo.
  It lists the facts of a session and then writes INSERT, UPDATE and DELETE for them as JSON.
- Memory-R1 (arXiv 2508.19828): writes the events of `memory_r1.parse_memory_r1`. No published
  weights are known.

Differs from the papers: the formats are those of the published code, the wording of the prompts is
this library's (`prompts/*.txt`). Mem-alpha's code repairs broken JSON; here the first whole object
counts and the rest of the call is ignored. Memory-R2 shows the items similar to each fact, here the
most recent ones are shown; its items have a field for the speaker, here a content begins with the
speaker. The weights were not available when this was written: read some completions before you
report results.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finemem_lib.baselines.memory_r1 import parse_memory_r1, read_events
from finemem_lib.baselines.prompted import (
    PromptedManager,
    recent_items,
    without_mark,
    write,
)
from finemem_lib.layers.operations import parse_calls
from finemem_lib.managers.protocol import Completion, MemoryManager, Observation
from finemem_lib.operations import NOT_JSON, RAW_LIMIT
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.trajectory import InvalidOperation, MemoryItem, Operation, OperationKind
from finemem_lib.util.validation import parse_json

MEMORY_R2: dict[str, OperationKind] = {
    "INSERT": "INSERT",
    "ADD": "INSERT",
    "UPDATE": "UPDATE",
    "DELETE": "DELETE",
    "NOOP": "SKIP",
    "NONE": "SKIP",
}
"""Operation of Memory-R2 -> operation of this library."""

SHOWN_OF_EACH = 5
"""Number of most recent items of each store that Memalpha-4B is shown."""

_CALL, _ARGUMENTS = "✿FUNCTION✿:", "✿ARGS✿:"
_AFTER_CALLS = re.compile(r"✿(?:RESULT|RETURN)✿.*", re.DOTALL)
_SPEAKER = re.compile(r"\A([A-Z][\w .'-]{0,40}): ")
_OBJECT = re.compile(r"\{.*\}", re.DOTALL)


def parse_memalpha(reply: str) -> tuple[Operation | InvalidOperation, ...]:
    """Return the operations of a Memalpha-4B reply.

    Calls in the text format of Qwen-Agent, up to the first result; a reply without such a call is
    read as `layers.operations.parse_calls` reads it.

    Args:
        reply: Reply of the manager, untrusted text.

    >>> reply = '''✿FUNCTION✿: new_memory_insert
    ... ✿ARGS✿: {"memory_type": "semantic_memory", "content": "Mia sails"}
    ... ✿RESULT✿: ok'''
    >>> [(one.kind, one.store, one.content) for one in parse_memalpha(reply)]
    [('INSERT', 'semantic', 'Mia sails')]
    """
    first, *calls = _AFTER_CALLS.sub("", reply).split(_CALL)
    if not calls:
        return parse_calls(first)
    return tuple(one for call in calls for one in _call(call))


def _call(text: str) -> tuple[Operation | InvalidOperation, ...]:
    name, _, arguments = text.partition(_ARGUMENTS)
    start = max(0, arguments.find("{"))
    try:
        found, _ = json.JSONDecoder(strict=False).raw_decode(arguments, start)
        return parse_calls(json.dumps({"name": name.strip(), "arguments": found}))
    except (ValueError, RecursionError):
        return (InvalidOperation(NOT_JSON, f"{_CALL}{text}".strip()[:RAW_LIMIT]),)


def parse_memory_r2(reply: str) -> tuple[Operation | InvalidOperation, ...]:
    """Return the operations of a Memory-R2 reply.

    Args:
        reply: Reply of the manager, untrusted text.

    >>> reply = '''{"operations": [{"operation": "INSERT", "speaker": "Mia", "content": "Sails"},
    ...            {"operation": "UPDATE", "memory_id": "3", "content": "Sails to Rome"}]}'''
    >>> [(one.kind, one.item_id, one.content) for one in parse_memory_r2(reply)]
    [('INSERT', None, 'Mia: Sails'), ('UPDATE', '3', 'Sails to Rome')]
    """
    return read_events(reply, MEMORY_R2)


class Memalpha:
    """Memalpha-4B: one call per chunk edits core, semantic and episodic memory.

    Args:
        chat: Client of its weights.
    """

    name = "memalpha-4b"
    memory = "layered"

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._prompt = load_prompt("memalpha")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that are recorded in the manager's trajectories."""
        return {
            "writer": self.chat.name,
            "prompt": self._prompt.identity,
            "calls_per_step": 1,
            "shown_of_each_store": SHOWN_OF_EACH,
        }

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return the operations of the calls for every observation.

        Args:
            observations: Observations of this step, one per rollout.
            seed: Not used: the model has its own seed.

        Raises:
            ModelError: a call to the model failed.
        """
        shown = [_stores(one.items) for one in observations]
        conversations = [
            self._prompt.messages(memory=memory, text=one.chunk.text)
            for one, (memory, _) in zip(observations, shown, strict=True)
        ]
        return [
            Completion(
                written.reply or "",
                tuple(map(without_mark, written.operations(parse_memalpha))),
                prompt=written.prompt,
                omitted_items=omitted,
            )
            for written, (_, omitted) in zip(write(self.chat, conversations), shown, strict=True)
        ]


def _stores(items: Sequence[MemoryItem]) -> tuple[str, int]:
    """Return the stores as text, with the most recent items of each, and the number of others."""
    core = next((item.content for item in items if item.store == "core"), "(empty)")
    lines, omitted = [f"<core_memory>\n{core}\n</core_memory>"], 0
    for store in ("semantic", "episodic"):
        held = [item for item in items if item.store == store]
        recent = held[-SHOWN_OF_EACH:]
        omitted += len(held) - len(recent)
        listed = "\n".join(f"[{item.item_id}] {item.content}" for item in recent) or "(empty)"
        lines.append(
            f"<{store}_memory> the {len(recent)} most recent of {len(held)} items\n{listed}\n"
            f"</{store}_memory>"
        )
    return "\n".join(lines), omitted


class MemoryR2:
    """Memory-R2: one call lists the facts of a chunk, a second one edits the memory by them.

    Args:
        chat: Client of its weights.
    """

    name = "memory-r2"

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._facts, self._edits = load_prompt("memory_r2_facts"), load_prompt("memory_r2")

    @property
    def settings(self) -> dict[str, Any]:
        """Settings that are recorded in the manager's trajectories."""
        return {
            "writer": self.chat.name,
            "prompts": [self._facts.identity, self._edits.identity],
            "calls_per_step": 2,
        }

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return the operations of the second call for every observation.

        Args:
            observations: Observations of this step, one per rollout.
            seed: Not used: the model has its own seed.

        Raises:
            ModelError: a call to the model failed.
        """
        listed = write(
            self.chat, [self._facts.messages(text=one.chunk.text) for one in observations]
        )
        shown = [recent_items(one.items) for one in observations]
        conversations = [
            self._edits.messages(facts=facts_of(facts.reply or ""), memory=_as_json(recent))
            for facts, (recent, _) in zip(listed, shown, strict=True)
        ]
        return [
            Completion(
                written.reply or "",
                tuple(_with_speaker(written.operations(parse_memory_r2), one.items)),
                prompt=written.prompt,
                omitted_items=omitted,
            )
            for one, written, (_, omitted) in zip(
                observations, write(self.chat, conversations), shown, strict=True
            )
        ]


def facts_of(reply: str) -> str:
    """Return the facts that a reply lists as JSON, ``{"facts": []}`` if it lists none.

    Args:
        reply: Reply of Memory-R2's first call, untrusted text.

    >>> facts_of('Here: {"facts": [{"speaker": "Mia", "fact": "Sails"}]}')
    '{"facts": [{"speaker": "Mia", "fact": "Sails"}]}'
    >>> facts_of("none")
    '{"facts": []}'
    """
    found = _OBJECT.search(reply)
    try:
        facts = parse_json(found[0]).get("facts") if found else []
    except (ValueError, AttributeError):
        facts = []
    kept = [one for one in facts if isinstance(one, Mapping)] if isinstance(facts, list) else []
    return json.dumps({"facts": kept}, ensure_ascii=False)


def _as_json(items: Sequence[MemoryItem]) -> str:
    """Return items in the fields of Memory-R2, the speaker apart from the content."""
    found = []
    for item in items:
        speaker = _SPEAKER.match(item.content)
        found.append(
            {
                "memory_id": item.item_id,
                "speaker": speaker[1] if speaker else "Unknown",
                "content": item.content[speaker.end() :] if speaker else item.content,
            }
        )
    return json.dumps(found, ensure_ascii=False, indent=1)


def _with_speaker(
    operations: Iterable[Operation | InvalidOperation], items: Sequence[MemoryItem]
) -> Iterable[Operation | InvalidOperation]:
    """Yield operations; an UPDATE without a speaker keeps the speaker of its item."""
    speakers = {item.item_id: _SPEAKER.match(item.content) for item in items}
    for operation in map(without_mark, operations):
        speaker = None
        if isinstance(operation, Operation) and operation.kind == "UPDATE":
            speaker = speakers.get(operation.item_id or "")
        if speaker and isinstance(operation, Operation) and operation.content:
            if not _SPEAKER.match(operation.content):
                said = f"{speaker[0]}{operation.content}"
                operation = Operation("UPDATE", said, operation.item_id)
        yield operation


@dataclass(frozen=True, slots=True)
class PublishedManager:
    """A memory manager whose output format was published.

    Attributes:
        make: Function from a client of its weights to the manager.
        model: Name of its weights on the Hugging Face hub; `None` if none are known.
        download: Size of the download of its weights.
    """

    make: Callable[[Chat], MemoryManager]
    model: str | None
    download: str


PUBLISHED: dict[str, PublishedManager] = {
    "memalpha-4b": PublishedManager(Memalpha, "YuWangX/Memalpha-4B", "about 8 GB in 16 bits"),
    "memory-r2": PublishedManager(MemoryR2, "ahmedehabb/memory-r2-7b", "about 15 GB in 16 bits"),
    "memory-r1": PublishedManager(
        lambda chat: PromptedManager(chat, "memory-r1", "memory_r1", parse_memory_r1),
        None,
        "nothing",
    ),
}
"""Published managers by name."""


def published_manager(name: str, chat: Chat) -> MemoryManager:
    """Return a published manager that runs on the given language model.

    Args:
        name: One of `PUBLISHED`.
        chat: Client of its weights, on a server or in this process.

    Raises:
        ValueError: there is no published manager of that name.
    """
    if name not in PUBLISHED:
        raise ValueError(f"published manager is {name!r}, expected one of {', '.join(PUBLISHED)}")
    return PUBLISHED[name].make(chat)
