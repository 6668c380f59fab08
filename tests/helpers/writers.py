"""A language model that writes what a test says, through the chat of the library."""

from __future__ import annotations

from collections.abc import Callable

from finemem_lib.readers.chat import Chat
from finemem_lib.readers.memo import Reply
from finemem_lib.readers.settings import ChatSettings


class ScriptedChat(Chat):
    """A chat whose replies are a function of the last message."""

    def __init__(self, reply: Callable[[str], str]) -> None:
        super().__init__(ChatSettings("scripted", kind="local"))
        self.reply = reply
        self.seen: list[str] = []

    def _complete(self, calls, arrived) -> None:
        for call in calls:
            self.seen.append(call.messages[-1]["content"])
            arrived(call, Reply(self.reply(self.seen[-1]), tokens_in=1, tokens_out=1))
