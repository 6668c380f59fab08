"""Writing files and folders whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


def real_path(path: str | Path) -> Path:
    """Return an absolute path without links, also where links lead in a circle.

    Args:
        path: May begin with ``~``, or name nothing that exists.
    """
    return Path(os.path.realpath(os.path.expanduser(path)))


@contextmanager
def exclusive_lock(lock: Path, refusal: str) -> Iterator[None]:
    """Hold a lock file, which the system releases when the process ends, however it ends.

    Args:
        lock: The file; it is created where it is missing, and stays.
        refusal: The sentence for a user whose command comes second.

    Raises:
        ValueError: another process holds it; the text is `refusal`.
    """
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ValueError(refusal) from error
        yield


@contextmanager
def written_beside(target: Path) -> Iterator[Path]:
    """Give a path beside `target` to write a file or a folder to, then put it in target's place.

    Args:
        target: The file or folder to replace; parents that are missing are made.

    Raises:
        OSError: it could not be written; target is as it was before.
    """
    beside = target.with_name(f"{target.name}.tmp")
    former = target.with_name(f"{target.name}.former")
    try:
        if former.exists():  # a process was killed between the two renames below
            if target.exists():
                discard(former)
            else:
                os.rename(former, target)
        discard(beside)
        target.parent.mkdir(parents=True, exist_ok=True)
        yield beside
        for path in (*beside.rglob("*"), beside) if beside.is_dir() else (beside,):
            _sync(path)
        if beside.is_dir() and target.exists():  # a folder cannot be renamed over another
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
    """Remove a file or a folder where there is one.

    Args:
        path: What to remove; of a folder, whatever cannot be removed stays.
    """
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, whole or not at all.

    Args:
        path: The file to write or replace.
        value: Anything JSON can hold.

    Raises:
        ValueError: the value holds NaN or an infinity.
        OSError: it could not be written; what was there before is unchanged.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with written_beside(path) as beside:
        beside.write_text(text, encoding="utf-8")
