"""A reasoning agent that answers questions with a language model."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from finemem_lib.data.sentences import retrieval_query
from finemem_lib.readers.chat import Chat, Messages
from finemem_lib.readers.local import LocalChat
from finemem_lib.readers.prompts import Prompted
from finemem_lib.reading import Reading, ReadingTask, ReasoningAgent

AnswerLogProbabilities = Callable[[Sequence[ReadingTask], Sequence[Sequence[str]]], list[float]]


@dataclass(frozen=True, slots=True)
class CitedAnswer:
    """A language model's answer with the items that it cites.

    Attributes:
        items: Numbers of the cited items; 1 is the first item of the prompt.
    """

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    answer: str
    items: list[int]


class ModelReader(Prompted, ReasoningAgent):
    """A reasoning agent that answers all tasks of a batch with a language model.

    It also verifies chunk questions. The prompt lists items in the order of their last writes,
    oldest first, if that is known, else best match first.

    Args:
        chat: The model to ask.
        cite: Whether the answer must cite the items it rests on; otherwise `Reading.used` is
            `None`. Citations of numbers without an item are ignored.

    An answer is `None` where the model twice refused or gave a malformed reply. `read` raises
    ModelError if a call to the model failed; the replies until then are in the memo.
    """

    def __init__(self, chat: Chat, cite: bool = False) -> None:
        super().__init__(chat, "read_citing" if cite else "read")
        self.cite = cite

    def query(self, question: str, data_source: str) -> str:
        return retrieval_query(question, data_source)

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        shown = [_in_order(task) for task in tasks]
        conversations = self._conversations(tasks)
        if not self.cite:
            return [Reading(reply, None) for reply in self.chat.ask(conversations)]
        replies = self.chat.ask(conversations, CitedAnswer)
        return [_cited(reply, items) for reply, items in zip(replies, shown, strict=True)]

    @property
    def answer_log_probabilities(self) -> AnswerLogProbabilities | None:
        """A function that returns, per task, the mean log-probability per token of the most
        probable accepted answer; `None` for a model on a server or a citing reader, which writes
        JSON."""
        chat = self.chat
        if self.cite or not isinstance(chat, LocalChat):
            return None

        def of_answers(
            tasks: Sequence[ReadingTask], accepted: Sequence[Sequence[str]]
        ) -> list[float]:
            pairs = [
                (conversation, answer)
                for conversation, answers in zip(self._conversations(tasks), accepted, strict=True)
                for answer in answers
            ]
            known = iter(chat.log_probabilities(*zip(*pairs, strict=True)) if pairs else ())
            return [max(itertools.islice(known, len(answers))) for answers in accepted]

        return of_answers

    def _conversations(self, tasks: Sequence[ReadingTask]) -> list[Messages]:
        return [
            self._prompt.messages(
                question=task.question,
                order="oldest first" if task.written else "best match first",
                items=_numbered([content for _, content in _in_order(task)]),
            )
            for task in tasks
        ]


def _in_order(task: ReadingTask) -> list[tuple[str, str]]:
    """Return the items of a task in the order of the prompt."""
    if not task.written:
        return list(task.items)
    places = sorted(range(len(task.items)), key=task.written.__getitem__)
    return [task.items[place] for place in places]


def _numbered(contents: Sequence[str]) -> str:
    return "\n\n".join(f"[{n}] {content}" for n, content in enumerate(contents, 1)) or "(none)"


def _cited(reply: CitedAnswer | None, items: Sequence[tuple[str, str]]) -> Reading:
    if reply is None:
        return Reading(None, None)
    cited = dict.fromkeys(number for number in reply.items if 1 <= number <= len(items))
    return Reading(reply.answer.strip(), tuple(items[number - 1][0] for number in cited))
