"""Which language models are reader, verifier, teacher and judge: a YAML file, a mapping per role.

A role that the file leaves out is played without a model: reader and verifier are extractive, the
teacher blanks out words, nobody judges. Roles with equal settings share a client.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.data.questions import Teacher
from finemem_lib.readers.chat import Chat, ChatSettings, chat_settings, check_usable
from finemem_lib.readers.extractive import reader_for
from finemem_lib.readers.language_models import (
    ModelJudge,
    ModelReader,
    ModelTeacher,
    judged,
    reader_settings,
)
from finemem_lib.readers.local import LocalChat
from finemem_lib.readers.server import ChatClient
from finemem_lib.reading import MemoisedAgent
from finemem_lib.trajectory import Instance, Trajectory
from finemem_lib.util.yaml_files import read_yaml


def make_chat(settings: ChatSettings) -> Chat:
    """Return the client that settings describe.

    Raises:
        ValueError, ImportError, OSError: as `ChatClient` and `LocalChat`.
    """
    return ChatClient(settings) if settings.kind == "server" else LocalChat(settings)


ROLES = ("reader", "verifier", "teacher", "judge")

REPLIES = "replies.sqlite"
"""Memo of the language models in a folder of questions or of a run, unless settings name one."""

_EXPECTED = (
    f"expected one or more of the mappings {', '.join(ROLES)}, each with the settings of a "
    "language model (kind, model, base_url, key_env and so on)"
)


@dataclass(frozen=True, slots=True)
class ModelRole:
    """The language model of a role; `cite` as in `ModelReader`, for the reader only."""

    chat: ChatSettings
    cite: bool = False


def load_roles(path: Path, folder: Path | None = None) -> dict[str, ModelRole]:
    """Read which language models to ask; their memo is in `folder` unless they name one.

    Raises:
        ValueError: the file or a setting in it is not usable. The message shows no value, because
            one of them may be a key.
    """
    try:
        content = read_yaml(path)
    except ValueError as error:
        raise ValueError(f"models {error}; {_EXPECTED}") from None
    if not isinstance(content, dict) or not content or set(content) - set(ROLES):
        got = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"models {path}: got {got or 'nothing'}, {_EXPECTED}; correct it")
    memo = {"memo": str(folder / REPLIES)} if folder else {}
    found = {}
    for role, given in content.items():
        if not isinstance(given, dict):
            raise ValueError(
                f"models {path}: {role} is a {type(given).__name__}, {_EXPECTED}; correct it"
            )
        try:
            found[role] = (
                ModelRole(*reader_settings(memo | given))
                if role == "reader"
                else ModelRole(chat_settings(memo | given))
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"models {path}: {role}: {error}") from error
    return found


def check_roles(path: Path) -> None:
    """Refuse a file of models that could not be asked from here, before anything is.

    Raises:
        ValueError: the file or a setting is not usable, or the variable of a key is not set.
        ImportError: a package is missing.
    """
    for role, one in load_roles(path).items():
        try:
            check_usable(one.chat)
        except ValueError as error:
            raise ValueError(f"models {path}: {role}: {error}") from error


class Models:
    """The language models of some roles, made when they are first needed; `asked` is called after
    each batch that one was asked, also one that failed."""

    def __init__(self, roles: Mapping[str, ModelRole] | None = None) -> None:
        self.roles = dict(roles or {})
        self._chats: dict[str, Chat] = {}
        self._played: dict[str, Any] = {}
        self.asked: Callable[[], None] = lambda: None

    def reader(self, instances: Iterable[Instance]) -> MemoisedAgent:
        """Return the reasoning agent that answers questions on the memory, memoised.

        Raises:
            ValueError, ImportError, OSError: as `make_chat`; so do the other roles.
        """
        return self._agent("reader", instances)

    def verifier(self, instances: Iterable[Instance]) -> MemoisedAgent:
        """Return the reasoning agent that verifies chunk questions, memoised."""
        return self._agent("verifier", instances)

    def teacher(self, number: int = 5) -> Teacher:
        """Return what writes `number` candidate questions per chunk; without a model, as many as
        its rules find."""
        if "teacher" not in self.roles:
            return ClozeTeacher()
        return self._plays("teacher", ModelTeacher(self._chat("teacher"), number))

    def judged(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Return the trajectories, with the judge's scores where only a judge can score.

        Raises:
            ModelError: the judge could not be asked.
        """
        if "judge" not in self.roles:
            return list(trajectories)
        return judged(trajectories, self._plays("judge", ModelJudge(self._chat("judge"))))

    def record(self) -> list[dict[str, Any]]:
        """Return one entry per language model that was put to use: which and where, under `roles`
        what each role's replies depend on (settings, prompts by version and hash), and its
        `client.Usage`."""
        return [
            {
                "model": chat.name,
                "kind": chat.settings.kind,
                "base_url": chat.settings.base_url,
                "roles": {
                    role: self._played[role]
                    for role, one in self._chats.items()
                    if one is chat and role in self._played
                },
                "usage": dataclasses.asdict(chat.usage),
            }
            for chat in dict.fromkeys(self._chats.values())
        ]

    def close(self) -> None:
        """Close the memos; every reply is in them already."""
        for chat in dict.fromkeys(self._chats.values()):
            chat.memo.close()

    def _agent(self, role: str, instances: Iterable[Instance]) -> MemoisedAgent:
        if role not in self.roles:
            return reader_for(instances)
        agent = ModelReader(self._chat(role), self.roles[role].cite)
        return MemoisedAgent(self._plays(role, agent))

    def _chat(self, role: str) -> Chat:
        if role not in self._chats:
            settings = self.roles[role].chat
            same = (chat for chat in self._chats.values() if chat.settings == settings)
            self._chats[role] = next(same, None) or make_chat(settings)
            self._chats[role].asked = lambda: self.asked()
        return self._chats[role]

    def _plays(self, role: str, agent: Any) -> Any:
        self._played[role] = json.loads(agent.settings)
        return agent


def usage_line(entry: Mapping[str, Any]) -> str:
    """Say in one line what a language model of `Models.record` was asked.

    >>> usage_line({"model": "m", "roles": {"reader": {}}, "usage": {"calls": 3, "tokens_in": 40}})
    'asked m as reader: calls 3, tokens in 40'
    """
    used = (f"{name.replace('_', ' ')} {round(value, 6)}" for name, value in entry["usage"].items())
    return f"asked {entry['model']} as {' and '.join(entry['roles'])}: {', '.join(used)}"
