"""Language models as reader, verifier, teacher, judge and writer, chosen in a YAML file.

A role that the file leaves out needs no model: reader and verifier are extractive, the teacher
blanks out words, answers without a metric stay unscored, and baselines whose memory a writer would
write are extractive or refused. Roles with equal settings share a client.
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
from finemem_lib.layers.content_reward import ContentJudge, rule_verdicts
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.extractive import reader_for
from finemem_lib.readers.local import LocalChat
from finemem_lib.readers.model_judge import ModelContentJudge, ModelJudge, judged
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
        settings: The model and its sampling settings.

    Raises:
        ValueError, ImportError, OSError: as `ChatClient` and `LocalChat`.
    """
    return ChatClient(settings) if settings.kind == "server" else LocalChat(settings)


ROLES = ("reader", "verifier", "teacher", "judge", "writer")

REPLIES = "replies.sqlite"
"""File name of the models' memo in a folder of questions or of a run; settings may name another."""

_Agent = TypeVar("_Agent", ModelReader, ModelTeacher, ModelJudge, ModelContentJudge)

_EXPECTED = (
    f"expected one or more of the mappings {', '.join(ROLES)}, each with the settings of a "
    "language model (kind, model, base_url, key_env and so on)"
)


@dataclass(frozen=True, slots=True)
class ModelRole:
    """The language model of a role.

    Attributes:
        chat: The model and its sampling settings.
        cite: Whether answers must cite the items they rest on (reader only).
    """

    chat: ChatSettings
    cite: bool = False


def reader_role(options: Mapping[str, Any]) -> ModelRole:
    """Return the settings of the reader from a mapping.

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
    """Return the settings of the language models by role, read from a YAML file.

    Args:
        path: A YAML file with a mapping of `ChatSettings` per role.
        folder: Folder of the memo for models that name none; `None` keeps replies in memory.

    Raises:
        ValueError: the file or a setting in it is not usable. The message shows no value, because
            a value may be a key.
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
    """Raise an error if a model in the file cannot be used here, before any call.

    Args:
        path: A YAML file as for `load_roles`.

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
    """The language models of the roles, loaded on first use.

    Args:
        roles: Settings by role; a missing role uses no model.

    Attributes:
        after_batch: Called after each batch of questions to a model, also after a failed one.
    """

    def __init__(self, roles: Mapping[str, ModelRole] | None = None) -> None:
        self.roles = dict(roles or {})
        self._chats: dict[str, Chat] = {}
        self._played: dict[str, Any] = {}
        self.after_batch: Callable[[], None] = lambda: None

    def reader(self, instances: Iterable[Instance]) -> MemoisedAgent:
        """Return the reasoning agent that answers questions on the memory, memoised.

        Args:
            instances: The instances to read; without a model, their data sources select the reader.

        Raises:
            ValueError, ImportError, OSError: as `make_chat`; likewise for the other roles.
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
            number: Number of candidates per chunk, at least 1; not used without a model.
        """
        if "teacher" not in self.roles:
            return ClozeTeacher()
        return self._plays("teacher", ModelTeacher(self._chat("teacher"), number))

    def judged(self, trajectories: Sequence[Trajectory]) -> list[Trajectory]:
        """Return the trajectories with the judge's scores where the data source has no metric.

        Args:
            trajectories: The rollouts; returned unchanged if there is no judge.

        Raises:
            ModelError: a call to the judge failed.
        """
        judge = self.judge()
        return list(trajectories) if judge is None else judged(trajectories, judge)

    def writer(self) -> Chat | None:
        """Return the language model that writes the memory of baselines, `None` without one."""
        if "writer" not in self.roles:
            return None
        chat = self._chat("writer")
        self._played["writer"] = {"chat": json.loads(chat.settings.identity)}
        return chat

    def judge(self) -> ModelJudge | None:
        """Return the judge, `None` without a model in that role."""
        if "judge" not in self.roles:
            return None
        return self._plays("judge", ModelJudge(self._chat("judge")))

    def content_judge(self) -> ContentJudge:
        """Return the judge of a manager's notes: the model with the role judge, else a rule."""
        if "judge" not in self.roles:
            return rule_verdicts
        return self._plays("judge", ModelContentJudge(self._chat("judge")))

    def record(self) -> list[dict[str, Any]]:
        """Return one entry per language model used.

        An entry holds name, kind, address, the settings and prompt versions of each role under
        `roles`, and `Usage`.
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
        """Close the memos; all replies are already stored."""
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
    """Return the usage of a language model as one line of text.

    Args:
        entry: An entry of `Models.record`.

    >>> usage_line({"model": "m", "roles": {"reader": {}}, "usage": {"calls": 3, "tokens_in": 40}})
    'asked m as reader: calls 3, tokens in 40'
    """
    used = (f"{name.replace('_', ' ')} {round(value, 6)}" for name, value in entry["usage"].items())
    return f"asked {entry['model']} as {' and '.join(entry['roles'])}: {', '.join(used)}"
