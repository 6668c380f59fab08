"""Memories that are one text, written over at every chunk: MemAgent and MEM1.

The memory is one item. At each step the manager reads it with the chunk and writes the next one,
which must fit a budget of tokens; the reader sees the whole text. With a language model the model
writes it. Without one it is written extractively: of the sentences (or labelled examples) of the
old text and the chunk those stay that say the most, until the budget is full. What a sentence says
is measured by the rarity of its words among the candidates,

    gain(s) = sum over the content words w of s of log(1 + N / df(w)), divided by sqrt(|s|)

and where the questions are known, only words of theirs count. Among equals the newer one stays.

Differs from the paper: MemAgent (arXiv 2507.02259) has a trained model of 14B parameters that reads
5,000 tokens at a time with the question before it, one pass per question; here one pass serves all
questions of an instance, and the variant that sees them is marked as privileged. MEM1 (arXiv
2506.15841) interleaves its state with reasoning and search; here the state is rewritten per chunk,
as Mem-alpha's comparison does. Both are prompted, not trained, and the prompts are this library's.
"""

from __future__ import annotations

import math
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from finemem_lib.baselines.prompted import Written, write
from finemem_lib.data.sentences import STOPWORDS, labelled_examples, units
from finemem_lib.managers.protocol import Completion, Observation
from finemem_lib.managers.scripted import ScriptedManager, chunk_units
from finemem_lib.operations import format_operations, parse_operations
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.text import clean_text, count_tokens, truncate_tokens, words
from finemem_lib.trajectory import Operation


@dataclass(frozen=True, slots=True)
class TextMemorySettings:
    """What tells one system with a text memory from another.

    Attributes:
        name: Name of the manager.
        prompt: Name of its prompt.
        tokens: Most tokens of the text; the memories published for it are about as long.
        sees_questions: Whether the manager knows the questions while it reads: a privilege.
    """

    name: str
    prompt: str
    tokens: int
    sees_questions: bool = False


MEM_AGENT = TextMemorySettings("memagent", "memagent", 1024)
MEM_AGENT_PRIVILEGED = TextMemorySettings("memagent-privileged", "memagent", 1024, True)
MEM1 = TextMemorySettings("mem1", "mem1", 256)

_STATE = re.compile(r"<state>(.*?)</state>", re.DOTALL)


class OverwrittenText(ScriptedManager):
    """One text that is written over at every chunk, see above.

    Args:
        system: Which system it follows.
        chat: The language model that writes; `None`: extractive.
        tokens: Most tokens of the text, at least 1; `None`: the system's own.

    Raises:
        ValueError: `tokens` is out of range.
    """

    def __init__(
        self, system: TextMemorySettings, chat: Chat | None = None, tokens: int | None = None
    ) -> None:
        self.system = system
        self.chat = chat
        self.tokens = system.tokens if tokens is None else tokens
        if self.tokens < 1:
            raise ValueError(
                f"{system.name}: tokens is {self.tokens}, expected at least 1 token of memory"
            )
        self.name = system.name
        self._prompt = load_prompt(system.prompt)
        self.settings = {
            "tokens": self.tokens,
            "privileged": system.sees_questions,
            "writer": chat.name if chat else "extractive",
            "calls_per_step": 1 if chat else 0,
            **({"prompt": self._prompt.identity} if chat else {}),
        }

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        asked = _questions(observation) if self.system.sees_questions else ()
        old = units(observation.items[0].content) if observation.items else []
        new = chunk_units(observation.chunk)
        kept = most_telling([*old, *new], self.tokens, asked)
        joint = "\n\n" if any(map(labelled_examples, kept)) else "\n"
        return _overwrite(observation, joint.join(kept))

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return the writes of one step, as `MemoryManager.act` says.

        Args:
            observations: What is seen at this step, one per rollout.
            seed: Is not used: a language model has its own.
        """
        if self.chat is None:
            return super().act(observations, seed)
        conversations = [
            self._prompt.messages(
                task="\n".join(_questions(one))
                if self.system.sees_questions
                else "(not known yet)",
                memory=one.items[0].content if one.items else "(none)",
                text=one.chunk.text,
                words=str(self.tokens * 3 // 4),
            )
            for one in observations
        ]
        return [
            self._completion(one, written)
            for one, written in zip(observations, write(self.chat, conversations), strict=True)
        ]

    def _completion(self, observation: Observation, written: Written) -> Completion:
        """Return the overwrite that a reply asks for; without a usable reply the memory stays."""
        text = written.reply or ""
        if self.system.prompt == "mem1":
            found = _STATE.search(text)
            text = found[1] if found else ""
        text = truncate_tokens(clean_text(text).strip(), self.tokens)[0]
        operations = format_operations(_overwrite(observation, text) or [Operation("SKIP")])
        return Completion(operations, parse_operations(operations), prompt=written.prompt)


def _questions(observation: Observation) -> tuple[str, ...]:
    return tuple(question.text for question in observation.instance.questions)


def _overwrite(observation: Observation, text: str) -> list[Operation]:
    if not text:
        return []
    if not observation.items:
        return [Operation("INSERT", text)]
    item = observation.items[0]
    return [] if text == item.content else [Operation("UPDATE", text, item.item_id)]


def most_telling(
    candidates: Iterable[str], budget: int, questions: Sequence[str] = ()
) -> list[str]:
    """Return the sentences that say the most and fit a budget together, in their order.

    A sentence that says nothing is left out; equal ones stay once, at their last place.

    Args:
        candidates: Sentences or labelled examples, oldest first.
        budget: Tokens of all that is returned.
        questions: Where they are known, only their words count.

    >>> texts = ["It was so.", "Mia lives in Rome.", "Ana saw Oslo.", "Mia saw Oslo."]
    >>> most_telling(texts, 10)
    ['Mia lives in Rome.', 'Ana saw Oslo.']
    >>> most_telling(texts, 5, ["Where is Ana?"])
    ['Ana saw Oslo.']
    """
    texts = [*reversed(dict.fromkeys(reversed([*candidates])))]
    said = [frozenset(words(text)) - STOPWORDS for text in texts]
    if questions:
        asked = frozenset(words(" ".join(questions)))
        said = [content & asked for content in said]
    df = Counter(word for content in said for word in content)

    def gain(place: int) -> float:
        weights = (math.log1p(len(texts) / df[word]) for word in said[place])
        return math.fsum(weights) / math.sqrt(len(words(texts[place])) or 1)

    kept = []
    for place in sorted(range(len(texts)), key=lambda one: (-gain(one), -one)):
        tokens = count_tokens(texts[place])
        if said[place] and tokens <= budget:
            kept.append(place)
            budget -= tokens
    return [texts[place] for place in sorted(kept)]
