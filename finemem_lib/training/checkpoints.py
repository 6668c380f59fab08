"""Checkpoints of a training run: finding the newest, holding a run to its settings, going on.

A checkpoint ``checkpoint-<update>`` is TRL's: weights or adapter, optimizer, scheduler, random
states, and the number of the update, from which its instances and seeds follow. What the reader
answered is kept where asking again could answer otherwise: replies of a language model lie in the
memo file of its client, which needs no copy; a memo that only the process holds is written into the
checkpoint; the extractive reader answers the same again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.reading import MemoisedAgent, ReasoningAgent
from finemem_lib.util.files import write_json

READER_MEMO = "reader_memo.json"

MEMORY_ONLY = ("batch_size", "gradient_checkpointing", "gpu_memory_utilization", "micro_batches")
"""Settings that change how much memory is taken, and what is trained by rounding only."""


def last_checkpoint(folder: str | Path | None) -> Path | None:
    """Return the newest checkpoint in a folder, `None` where there is none."""
    from transformers.trainer_utils import get_last_checkpoint

    found = get_last_checkpoint(str(folder)) if folder and Path(folder).is_dir() else None
    return None if found is None else Path(found)


def update_of(checkpoint: Path | None) -> int:
    """Return the number of the update after which a checkpoint was written, 0 for none.

    >>> update_of(Path("run/checkpoint-20")), update_of(None)
    (20, 0)
    """
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def checkpoint_to_resume(folder: str | Path | None, resume: bool) -> Path | None:
    """Return the checkpoint that a run goes on from, `None` for a new run.

    Raises:
        ValueError: there is none to resume from.
        FileExistsError: there is one, and a new run would write over it.
    """
    found = last_checkpoint(folder)
    if resume and found is None:
        raise ValueError(
            f"train_manager: there is no checkpoint in {str(folder)!r} to resume from; "
            "leave resume out to start anew"
        )
    if found is not None and not resume:
        raise FileExistsError(
            f"train_manager: {str(folder)!r} already holds {found.name}; "
            "resume it or give another output_dir"
        )
    return found


def hold_settings(folder: Path, resume: bool, settings: Mapping[str, Any]) -> None:
    """Write the settings of a run beside its checkpoints, or, resuming, compare them; those of
    `MEMORY_ONLY` may differ.

    Raises:
        ValueError: the run was trained with other settings, or nothing says with which.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings, default=str))
    if resume:
        try:
            before = _deciding(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(
                f"train_manager: {path} is not readable ({error}), so nothing says how the run "
                "was trained; put the file back, or start anew in another output_dir"
            ) from error
        settings = _deciding(settings)
        for name in sorted({*before, *settings}):
            if before.get(name) != settings.get(name):
                raise ValueError(
                    f"train_manager: the run in {str(folder)!r} was trained with {name} "
                    f"{before.get(name)!r}, got {settings.get(name)!r}; resume it with the same "
                    "settings, or train its checkpoint in another output_dir"
                )
    else:
        folder.mkdir(parents=True, exist_ok=True)
        write_json(path, settings)


def _deciding(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings that decide the result, also within those of the model."""
    return {
        name: _deciding(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in MEMORY_ONLY
    }


def save_reader(agent: ReasoningAgent, checkpoint: Path) -> None:
    """Write the reader's memo into a checkpoint where only this process holds it."""
    if _holds_memo(agent):
        (checkpoint / READER_MEMO).write_text(agent.memo_to_json(), encoding="utf-8")


def restore_reader(agent: ReasoningAgent, checkpoint: Path) -> None:
    """Give the reader what it knew when the checkpoint was written.

    Raises:
        ValueError: the memo cannot be read.
    """
    path = checkpoint / READER_MEMO
    if _holds_memo(agent) and path.is_file():
        agent.memo_from_json(path.read_text(encoding="utf-8"))


def _holds_memo(agent: ReasoningAgent) -> bool:
    if not isinstance(agent, MemoisedAgent) or isinstance(agent.agent, ExtractiveReader):
        return False
    memo = getattr(getattr(agent.agent, "chat", None), "memo", None)
    return memo is None or memo.path is None
