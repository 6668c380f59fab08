"""Language models in the roles of reader, verifier, teacher and judge, chosen in a YAML file.

A role that the file leaves out needs no model: reader and verifier are extractive, the teacher
blanks out words, and answers without a metric stay unscored. Roles with equal settings share a
client.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.data.questions import Teacher
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.extractive import reader_for
from finemem_lib.readers.local import LocalChat
from finemem_lib.readers.model_judge import ModelJudge, judged
from finemem_lib.readers.model_reader import ModelReader
from finemem_lib.readers.model_teacher import ModelTeacher
from finemem_lib.readers.server import ChatClient
from finemem_lib.readers.settings import ChatSettings, chat_settings, check_usable
from finemem_lib.reading import MemoisedAgent
from finemem_lib.trajectory import Instance, Trajectory
from finemem_lib.util.yaml_files import read_yaml


def make_chat(settings: ChatSettings) -> Chat:
    """Return the client of a language model.

    Args:
        settings: Which model is asked, and how.

    Raises:
        ValueError, ImportError, OSError: as `ChatClient` and `LocalChat`.
    """
    return ChatClient(settings) if settings.kind == "server" else LocalChat(settings)


ROLES = ("reader", "verifier", "teacher", "judge")

REPLIES = "replies.sqlite"
"""Memo of the language models in a folder of questions or of a run, unless settings name one."""

_Agent = TypeVar("_Agent", ModelReader, ModelTeacher, ModelJudge)

_EXPECTED = (
    f"expected one or more of the mappings {', '.join(ROLES)}, each with the settings of a "
    "language model (kind, model, base_url, key_env and so on)"
)


@dataclass(frozen=True, slots=True)
class ModelRole:
    """The language model of a role.

    Attributes:
        chat: Which model is asked, and how.
        cite: Whether answers name the items they rest on (reader only).
    """

    chat: ChatSettings
    cite: bool = False


def reader_role(options: Mapping[str, Any]) -> ModelRole:
    """Return the reader that a mapping describes.

    Args:
        options: Names and values of `ChatSettings`, and `cite`.

    Raises:
        ValueError: a setting is unknown, missing or out of range.
    """
    options = dict(options)
    cite = options.pop("cite", False)
    if not isinstance(cite, bool):
        raise ValueError(
            f"reader settings: cite is a {type(cite).__name__}, expected true or false"
        )
    return ModelRole(chat_settings(options), cite)


def load_roles(path: Path, folder: Path | None = None) -> dict[str, ModelRole]:
    """Read which language models to ask.

    Args:
        path: A YAML file with a mapping of `ChatSettings` per role.
        folder: Where models that name no memo keep theirs; `None` keeps it in this process.

    Returns:
        The roles of the file, by name.

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
                reader_role(memo | given)
                if role == "reader"
                else ModelRole(chat_settings(memo | given))
            )
        except (ValueError, TypeError) as error:
            raise ValueError(f"models {path}: {role}: {error}") from error
    return found


def check_roles(path: Path) -> None:
    """Refuse a file of models that could not be asked from this process, before any is asked.

    Args:
        path: A YAML file as `load_roles` reads it.

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
    """The language models of the roles, loaded when they are first needed.

    Args:
        roles: Settings by role; a role that is missing is played without a model.

    Attributes:
        roles: The same.
        after_batch: Called after each batch of questions to a model, also one that failed.
    """

    def __init__(self, roles: Mapping[str, ModelRole] | None = None) -> None:
        self.roles = dict(roles or {})
        self._chats: dict[str, Chat] = {}
        self._played: dict[str, Any] = {}
        self.after_batch: Callable[[], None] = lambda: None

    def reader(self, instances: Iterable[Instance]) -> MemoisedAgent:
        """Return the reasoning agent that answers questions on the memory, memoised.

        Args:
            instances: What is to be read; without a model their words choose the reader.

        Raises:
            ValueError, ImportError, OSError: as `make_chat`; so do the other roles.
        """
        return self._agent("reader", instances)

    def verifier(self, instances: Iterable[Instance]) -> MemoisedAgent:
        """Return the reasoning agent that verifies chunk questions, memoised.

        Args:
            instances: As for `reader`.
        """
        return self._agent("verifier", instances)

    def teacher(self, number: int = 5) -> Teacher:
        """Return the teacher of chunk questions.

        Args:
            number: Candidates per chunk; without a model there are as many as the rules find.
        """
        if "teacher" not in self.roles:
            return ClozeTeacher()
        return self._plays("teacher", ModelTeacher(self._chat("teacher"), number))

    def judged(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Return the trajectories, with the judge's scores where only a judge can score.

        Args:
            trajectories: What was played; returned as it is where no judge is chosen.

        Raises:
            ModelError: the judge could not be asked.
        """
        if "judge" not in self.roles:
            return list(trajectories)
        return judged(trajectories, self._plays("judge", ModelJudge(self._chat("judge"))))

    def record(self) -> list[dict[str, Any]]:
        """Return one entry per language model that was used.

        An entry holds name, kind and address, under `roles` what the replies of each role depend
        on (settings, prompts by version and hash), and `Usage`.
        """
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
            self._chats[role].after_batch = lambda: self.after_batch()
        return self._chats[role]

    def _plays(self, role: str, agent: _Agent) -> _Agent:
        self._played[role] = json.loads(agent.settings)
        return agent


def usage_line(entry: Mapping[str, Any]) -> str:
    """Return in one line how much a language model was asked.

    Args:
        entry: An entry of `Models.record`.

    >>> usage_line({"model": "m", "roles": {"reader": {}}, "usage": {"calls": 3, "tokens_in": 40}})
    'asked m as reader: calls 3, tokens in 40'
    """
    used = (f"{name.replace('_', ' ')} {round(value, 6)}" for name, value in entry["usage"].items())
    return f"asked {entry['model']} as {' and '.join(entry['roles'])}: {', '.join(used)}"
