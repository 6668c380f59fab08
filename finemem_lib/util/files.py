"""Write files and folders atomically."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def real_path(path: str | Path) -> Path:
    """Return an absolute path without symbolic links, also if links form a cycle.

    Args:
        path: A path, which may begin with ``~`` and need not exist.
    """
    return Path(os.path.realpath(os.path.expanduser(path)))


@contextmanager
def exclusive_lock(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a file lock within the block; the system also releases it when the process is killed.

    Args:
        lock: The lock file; created if missing, and not removed.
        refusal: Message of the error if another process holds the lock.

    Raises:
        ValueError: another process holds the lock; the message is `refusal`.
    """
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        yield


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """Yield a temporary path next to `target` to write to, then rename it to `target`.

    Args:
        target: The file or folder to replace; missing parent folders are created.

    Raises:
        OSError: the target could not be written; an earlier version is unchanged.
    """
    beside = target.with_name(f"{target.name}.tmp")
    former = target.with_name(f"{target.name}.former")
    try:
        if former.exists():  # a process was killed between the renames below
            if target.exists():
                discard(former)
            else:
                os.rename(former, target)
        discard(beside)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        for path in (*beside.rglob("*"), beside) if beside.is_dir() else (beside,):
            _sync(path)
        if beside.is_dir() and target.exists():  # a folder cannot be renamed onto another
            os.rename(target, former)
            try:
                os.rename(beside, target)
            except OSError:
                os.rename(former, target)
                raise
            discard(former)
        else:
            os.replace(beside, target)
        _sync(target.parent)
    except BaseException as error:
        discard(beside)
        if not isinstance(error, OSError) or error.errno is None:
            raise
        raise OSError(
            error.errno,
            f"{target} could not be written ({error.strerror}); what was there before is "
            "unchanged. Make room or allow writing there, or choose another folder (runs: "
            "FINEMEM_RUNS_DIR)",
        ) from error


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def discard(path: Path) -> None:
    """Remove a file or a folder, if it exists.

    Args:
        path: The file or folder; parts of a folder that cannot be removed are kept silently.
    """
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, or of a folder's file names and contents, in hexadecimal.

    Args:
        path: A file or a folder.
    """
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file())
        listing = [f"{file.relative_to(path).as_posix()} {sha256(file)}" for file in files]
        return hashlib.sha256("\n".join(listing).encode()).hexdigest()
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, atomically.

    Args:
        path: The file to write or replace.
        value: A JSON value.

    Raises:
        ValueError: the value contains NaN or an infinity.
        OSError: the file could not be written; an earlier version is unchanged.
    """
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False) + "\n").encode())


def write_bytes(path: Path, content: bytes) -> Path:
    """Write a file atomically and return its path.

    Args:
        path: The file to write or replace.
        content: Content of the file.

    Raises:
        OSError: the file could not be written; an earlier version is unchanged.
    """
    with written_beside(path) as beside:
        beside.write_bytes(content)
    return path
