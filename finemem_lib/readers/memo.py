"""A cache of language model replies in SQLite, so that no reply is paid for twice."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sqlite3
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Reply:
    """A reply of a language model, before parsing.

    Attributes:
        text: Text of the model, including its reasoning.
        refused: Whether the model or a filter refused.
        tokens_in, tokens_out: Tokens of prompt and reply; `None` where the server reports none.
        cut: Whether the reply was cut off at max_tokens.
    """

    text: str
    refused: bool = False
    tokens_in: int | None = None
    tokens_out: int | None = None
    cut: bool = False


LONGEST_WAIT = 60.0
"""Seconds to wait for other processes that use the file."""


class Memo:
    """A cache of replies on disk by key and round; several processes may share the file.

    Args:
        path: The file, created if missing; `None` keeps the replies in memory.

    Raises:
        ValueError: the file exists and is not a memo.
    """

    def __init__(self, path: str | Path | None) -> None:
        self.path = path
        self._connection: sqlite3.Connection | None = None
        _ = self._file  # raises now if the file cannot be used

    @property
    def _file(self) -> sqlite3.Connection:
        """The connection, reopened after `close`, because a notebook's cells run in any order."""
        if self._connection is None:
            self._connection = self._opened()
        return self._connection

    def _opened(self) -> sqlite3.Connection:
        if self.path is not None:
            Path(self.path).parent.mkdir(parents=True, exist_ok=True)
        try:
            # Autocommit: a reply is on disk when `put` returns. Replies arrive in another thread.
            file = sqlite3.connect(
                self.path or ":memory:",
                timeout=LONGEST_WAIT,
                isolation_level=None,
                check_same_thread=False,
            )
            _use_write_ahead_log(file)
            file.execute(
                "CREATE TABLE IF NOT EXISTS replies (key TEXT, round INTEGER, reply TEXT NOT NULL, "
                "PRIMARY KEY (key, round)) WITHOUT ROWID"
            )
        except sqlite3.DatabaseError as error:
            raise ValueError(
                f"memo {self.path}: {error}; expected a memo of earlier replies or no file yet, "
                "choose another path"
            ) from error
        return file

    def get(self, key: str, round_: int) -> Reply | None:
        """Return a stored reply, or `None`.

        Args:
            key: Hash of everything that the reply depends on.
            round_: 1, or 2 after a refused or malformed first reply.
        """
        found = self._file.execute(
            "SELECT reply FROM replies WHERE key = ? AND round = ?", (key, round_)
        ).fetchone()
        return Reply(**json.loads(found[0])) if found else None

    def put(self, key: str, round_: int, reply: Reply) -> None:
        """Store a reply, unless another process has already stored one.

        Args:
            key, round_: As for `get`.
            reply: The reply to store.
        """
        self._file.execute(
            "INSERT OR IGNORE INTO replies VALUES (?, ?, ?)",
            (key, round_, json.dumps(dataclasses.asdict(reply))),
        )

    def copy_to(self, path: str | Path) -> None:
        """Write all replies to a new file; other processes may add replies meanwhile.

        Args:
            path: The new file.
        """
        with contextlib.closing(sqlite3.connect(path)) as copy:
            self._file.backup(copy)

    def close(self) -> None:
        """Close the file; `get` and `put` open it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _use_write_ahead_log(file: sqlite3.Connection) -> None:
    """Switch a file to the write-ahead log; SQLite does not wait here for other processes."""
    ends = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            file.execute("PRAGMA journal_mode=WAL")
            return
        except sqlite3.OperationalError as error:
            if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > ends:
                raise
            time.sleep(0.02)
