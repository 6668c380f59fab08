"""Find the latest checkpoint of a training run, verify its settings, resume.

A checkpoint ``checkpoint-<update>`` is written by TRL: weights or adapter, optimizer, scheduler,
random states, and the number of the update, which determines its instances and seeds. The reader's
answers are stored if asking again could give other answers. Replies of a language model are in the
memo file of its client and need no copy; a memo in memory is written into the checkpoint. The
extractive reader is deterministic; a trainable reader is deterministic given its weights, which are
written into the checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.readers.trainable import TrainableReader, trainable_reader
from finemem_lib.reading import MemoisedAgent, ReasoningAgent
from finemem_lib.util.files import write_json

READER_MEMO = "reader_memo.json"
READER_WEIGHTS = "reader_weights.pt"

MEMORY_ONLY = ("batch_size", "gradient_checkpointing", "gpu_memory_utilization", "micro_batches")
"""Settings that change the memory use of a run, and its result only by rounding."""


def last_checkpoint(folder: str | Path | None) -> Path | None:
    """Return the latest checkpoint in a folder, or `None`.

    Args:
        folder: Folder of a run's checkpoints; `None` for a run without checkpoints.
    """
    from transformers.trainer_utils import get_last_checkpoint

    if not folder or not Path(folder).is_dir():
        return None
    found = get_last_checkpoint(str(folder))  # type: ignore[no-untyped-call]  # it has no types
    return None if found is None else Path(found)


def update_of(checkpoint: Path | None) -> int:
    """Return the number of the update after which a checkpoint was written, or 0.

    Args:
        checkpoint: A folder whose name ends with the number; `None` for no checkpoint.

    >>> update_of(Path("run/checkpoint-20")), update_of(None)
    (20, 0)
    """
    return 0 if checkpoint is None else int(checkpoint.name.rpartition("-")[2])


def checkpoint_to_resume(folder: str | Path | None, resume: bool) -> Path | None:
    """Return the checkpoint that a run continues from, or `None` for a new run.

    Args:
        folder: Folder of the checkpoints; `None` for a run without checkpoints.
        resume: Whether to resume the run.

    Raises:
        ValueError: There is no checkpoint to resume from.
        FileExistsError: There is a checkpoint, and a new run would overwrite it.
    """
    found = last_checkpoint(folder)
    if resume and found is None:
        raise ValueError(
            f"train_manager: there is no checkpoint in {str(folder)!r} to resume from; "
            "leave resume out to start a new run"
        )
    if found is not None and not resume:
        raise FileExistsError(
            f"train_manager: {str(folder)!r} already holds {found.name}; "
            "resume it or give another output_dir"
        )
    return found


def hold_settings(folder: Path, resume: bool, settings: Mapping[str, Any]) -> None:
    """Write the settings of a new run next to its checkpoints, or check those of a resumed run.

    Args:
        folder: Folder of the checkpoints.
        resume: Whether the run is resumed.
        settings: The run's settings by name; those in `MEMORY_ONLY` may differ.

    Raises:
        ValueError: The run was trained with other settings, or its settings cannot be read.
    """
    path = folder / "settings.json"
    settings = json.loads(json.dumps(settings, default=str))
    if resume:
        try:
            before = _without_memory_only(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, AttributeError) as error:
            raise ValueError(
                f"train_manager: {path} is not readable ({error}), so the settings of the run are "
                "unknown; put the file back, or start a new run in another output_dir"
            ) from error
        settings = _without_memory_only(settings)
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


def _without_memory_only(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings without those in `MEMORY_ONLY`, also in nested settings."""
    return {
        name: _without_memory_only(value) if isinstance(value, Mapping) else value
        for name, value in settings.items()
        if name not in MEMORY_ONLY
    }


def save_reader(agent: ReasoningAgent, checkpoint: Path) -> None:
    """Write the weights of a trainable reader, or a memo in memory, into a checkpoint.

    Args:
        agent: The reader; for a reader without either, nothing is written.
        checkpoint: Folder of the checkpoint.
    """
    if (reader := trainable_reader(agent)) is not None:
        reader.save(checkpoint / READER_WEIGHTS)
    if (memoised := _memoised(agent)) is not None:
        (checkpoint / READER_MEMO).write_text(memoised.memo_to_json(), encoding="utf-8")


def restore_reader(agent: ReasoningAgent, checkpoint: Path) -> None:
    """Load the reader's weights or memo from a checkpoint.

    Args:
        agent: The reader, changed in place.
        checkpoint: Folder of the checkpoint.

    Raises:
        ValueError: Weights or memo cannot be read.
    """
    if (reader := trainable_reader(agent)) is not None:
        reader.load(checkpoint / READER_WEIGHTS)
    path = checkpoint / READER_MEMO
    if (memoised := _memoised(agent)) is not None and path.is_file():
        memoised.memo_from_json(path.read_text(encoding="utf-8"))


def _memoised(agent: ReasoningAgent) -> MemoisedAgent | None:
    """Return the reader if its memo is only in memory and cannot be recomputed; else `None`."""
    if not isinstance(agent, MemoisedAgent) or isinstance(
        agent.agent, ExtractiveReader | TrainableReader
    ):
        return None
    memo = getattr(getattr(agent.agent, "chat", None), "memo", None)
    return agent if memo is None or memo.path is None else None
