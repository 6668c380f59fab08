"""A language model as judge of what a memory manager writes (Mem-alpha's r4)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from finemem_lib.layers.content_reward import Written
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.prompts import Prompted


@dataclass(frozen=True, slots=True)
class Validity:
    """A judge's reply: whether a note suits its store."""

    __pydantic_config__: ClassVar[dict[str, str]] = {"extra": "forbid"}
    valid: bool


class ModelContentJudge(Prompted):
    """A language model that decides whether notes suit their stores.

    Args:
        chat: The model to ask.
    """

    def __init__(self, chat: Chat) -> None:
        super().__init__(chat, "judge_content")

    def __call__(self, written: Sequence[Written]) -> list[float | None]:
        """Judge notes; a note that occurs several times is asked once.

        Args:
            written: Texts with the stores they are for; those of a flat store count as semantic.

        Returns:
            1.0 or 0.0 per text, `None` where the model refused or was not understood.

        Raises:
            ModelError: the model could not be asked.
        """
        distinct = list(dict.fromkeys(written))
        replies = self.chat.ask(
            [
                self._prompt.messages(
                    store="semantic" if one.store == "flat" else one.store, note=one.content
                )
                for one in distinct
            ],
            Validity,
        )
        verdicts = {
            one: None if reply is None else float(reply.valid)
            for one, reply in zip(distinct, replies, strict=True)
        }
        return [verdicts[one] for one in written]
