"""Memories that consist of one text, which is rewritten at every chunk: MemAgent and MEM1.

The memory is one item. At each step the manager reads it together with the chunk and writes its
replacement, which must fit a token budget; the reader sees the whole text. With a language model,
the model writes the text. Without one, the text is extractive: of the N sentences (or labelled
examples) of the old text and the chunk, those with the highest gain are kept until the budget is
full. The gain of a sentence s measures how rare its words are among the candidates,

    gain(s) = sum over the content words w of s of log(1 + N / df(w)), divided by sqrt(|s|)

If the questions are known, only words of the questions count. In a tie the newer sentence is kept.

Differs from the paper: MemAgent (arXiv 2507.02259) has a trained model of 14B parameters that reads
the question and then 5,000 tokens at a time, in one pass per question; here one pass serves all
questions of an instance, and the variant that sees them is marked as privileged. MEM1 (arXiv
2506.15841) interleaves its state with reasoning and search; here the state is rewritten per chunk,
as in Mem-alpha's comparison. Both are prompted, not trained, with this library's prompts.
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
from finemem_lib.operations import NO_OPERATIONS, format_operations, parse_operations, refused
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.text import clean_text, count_tokens, truncate_tokens, words
from finemem_lib.trajectory import Operation


@dataclass(frozen=True, slots=True)
class TextMemorySettings:
    """Settings of a system with a text memory.

    Attributes:
        prompt: Name of its prompt file in `prompts/`, without suffix.
        tokens: Largest number of tokens of the text, close to the published memory length.
        sees_questions: Whether the manager sees the questions while it reads the stream, which is
            privileged information.
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
    """Manager whose memory is one text that is rewritten at every chunk, see the module docstring.

    Args:
        system: Settings of the system.
        chat: Language model that writes the text; `None` for extractive text.
        tokens: Largest number of tokens of the text, at least 1; `None` for the number in `system`.

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
        kept = select_sentences([*old, *new], self.tokens, asked)
        joint = "\n\n" if any(map(labelled_examples, kept)) else "\n"
        return _overwrite(observation, joint.join(kept))

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
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
        """Return the rewrite in a reply; an unusable reply leaves the memory and is malformed."""
        reply = text = written.reply or ""
        if self.system.prompt == "mem1":
            found = _STATE.search(text)
            text = found[1] if found else ""
        text = truncate_tokens(clean_text(text).strip(), self.tokens)[0]
        if not text:
            return Completion(reply, (refused(NO_OPERATIONS, reply),), prompt=written.prompt)
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


def select_sentences(
    candidates: Iterable[str], budget: int, questions: Sequence[str] = ()
) -> list[str]:
    """Return the sentences with the highest gain that fit a token budget together, in their order.

    A sentence with gain 0 is left out; equal sentences are kept once, at their last position.

    Args:
        candidates: Sentences or labelled examples, oldest first.
        budget: Largest total number of tokens of the returned sentences.
        questions: Questions, if they are known; then only their words count for the gain.

    >>> texts = ["It was so.", "Mia lives in Rome.", "Ana saw Oslo.", "Mia saw Oslo."]
    >>> select_sentences(texts, 10)
    ['Mia lives in Rome.', 'Ana saw Oslo.']
    >>> select_sentences(texts, 5, ["Where is Ana?"])
    ['Ana saw Oslo.']
    """
    texts = [*reversed(dict.fromkeys(reversed([*candidates])))]
    contents = [frozenset(words(text)) - STOPWORDS for text in texts]
    if questions:
        asked = frozenset(words(" ".join(questions)))
        contents = [content & asked for content in contents]
    df = Counter(word for content in contents for word in content)

    def gain(place: int) -> float:
        weights = (math.log1p(len(texts) / df[word]) for word in contents[place])
        return math.fsum(weights) / math.sqrt(len(words(texts[place])) or 1)

    kept = []
    for place in sorted(range(len(texts)), key=lambda one: (-gain(one), -one)):
        tokens = count_tokens(texts[place])
        if contents[place] and tokens <= budget:
            kept.append(place)
            budget -= tokens
    return [texts[place] for place in sorted(kept)]
