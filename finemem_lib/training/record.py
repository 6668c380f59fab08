"""Record every update of a training run as one parquet file, written atomically.

A row is one step of one rollout: its prompt and completion, every term of the reward, the reward
and the advantage that entered the loss. The first row of a rollout holds the rest of its trajectory
as JSON, so that `read_update` returns the complete trajectories. Token ids have separate columns,
which parquet compresses well.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from finemem_lib.credit.rules import RULES
from finemem_lib.training.schemes import CONTENT, TERMS
from finemem_lib.trajectory import Trajectory, from_json, to_json
from finemem_lib.util.files import written_beside

_OWN_COLUMNS = ("prompt", "completion", "prompt_ids", "completion_ids", "logprobs")
"""Fields of a `Step` that are stored as columns instead of in the trajectory's JSON."""


@dataclasses.dataclass(frozen=True)
class PlayedUpdate:
    """The rollouts, rewards and advantages of an update, without the rows of local groups.

    Attributes:
        update: Number of the update, from 1.
        groups: Trajectories per instance and rollout.
        terms: Unweighted reward terms per row, by name; `None` where a term is unknown.
        rewards: Weighted sum of the terms per row; `None` where no term is known.
        advantages: Advantage in the loss per row; `None` where no term is known.
        operations: Per row and operation, the value added to the advantage of the operation's own
            tokens; `None` where the scheme credits no operations.
    """

    update: int
    groups: Sequence[Sequence[Trajectory]]
    terms: Sequence[Mapping[str, float | None]]
    rewards: Sequence[float | None]
    advantages: Sequence[float | None]
    operations: Sequence[Sequence[float]] | None = None

    def write(self, path: Path, **more: str | float) -> None:
        """Write the update as parquet, atomically.

        "update", "instance" (id), "group" (index in the update, from 0), "rollout" (from 0) and
        "step" (from 1) identify a row. Rows are ordered by group, step, rollout, as in TRL.

        Args:
            path: File to write.
            more: Further columns, each with one constant value.

        Raises:
            OSError: The file could not be written; an earlier file at `path` is unchanged.
        """
        import pyarrow
        import pyarrow.parquet

        rows = self._rows(more)
        table = pyarrow.Table.from_pylist(rows, _schema(rows[0] | more))
        with written_beside(path) as beside:
            pyarrow.parquet.write_table(table, beside, compression="zstd")

    def _rows(self, more: Mapping[str, str | float]) -> list[dict[str, Any]]:
        """Return the rows of the file, each with the further columns `more`."""
        places = [
            (group, one, step)
            for group, rollouts in enumerate(self.groups)
            for step in range(rollouts[0].num_steps)
            for one in rollouts
        ]
        return [
            {
                "update": self.update,
                "instance": one.instance_id,
                "group": group,
                "rollout": one.rollout,
                "step": step + 1,
                **{name: getattr(one.steps[step], name) for name in _OWN_COLUMNS},
                **terms,
                "reward": reward,
                "advantage": advantage,
                **({} if self.operations is None else {"operations": self.operations[row]}),
                **more,
                "trajectory": to_json(_bare(one)) if step == 0 else None,
            }
            for row, ((group, one, step), terms, reward, advantage) in enumerate(
                zip(places, self.terms, self.rewards, self.advantages, strict=True)
            )
        ]


def _schema(row: Mapping[str, Any]) -> Any:
    """Return the parquet schema of a file; columns without a fixed type are text or numbers."""
    import pyarrow

    fixed: dict[str, Any] = {
        **dict.fromkeys(("update", "group", "rollout", "step"), pyarrow.int32()),
        **dict.fromkeys(("instance", "prompt", "completion", "trajectory"), pyarrow.string()),
        **dict.fromkeys(("prompt_ids", "completion_ids"), pyarrow.list_(pyarrow.int32())),
        **dict.fromkeys(("logprobs", "operations"), pyarrow.list_(pyarrow.float64())),
    }

    def kind(name: str, value: object) -> Any:
        return fixed.get(name, pyarrow.string() if isinstance(value, str) else pyarrow.float64())

    return pyarrow.schema([(name, kind(name, value)) for name, value in row.items()])


def update_file(folder: Path, update: int) -> Path:
    """Return the file of an update in the folder of a run's updates.

    Args:
        folder: Folder of the run's updates.
        update: Number of the update, from 1.

    >>> update_file(Path("updates"), 12).as_posix()
    'updates/000012.parquet'
    """
    return folder / f"{update:06}.parquet"


def read_update(folder: Path, update: int) -> PlayedUpdate:
    """Return a stored update.

    Args:
        folder: Folder of a run's updates.
        update: Number of the update, from 1.

    Raises:
        ValueError: The folder holds no such update, or its file cannot be read.
    """
    import pyarrow
    import pyarrow.parquet

    path = update_file(folder, update)
    if not path.is_file():
        have = [*StoredUpdates(folder)]
        span = f"{have[0]} to {have[-1]}" if have else "none"
        raise ValueError(f"read_update: no update {update} in {folder}, which holds {span}")
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        terms = [name for name in rows[0] if name in (*TERMS, CONTENT, *RULES)]
        steps: dict[tuple[int, int], list[dict[str, Any]]] = {}
        for row in rows:
            steps.setdefault((row["group"], row["rollout"]), []).append(row)
        groups: dict[int, list[Trajectory]] = {}
        for (group, _), of_one in sorted(steps.items()):
            groups.setdefault(group, []).append(_whole(of_one))
        return PlayedUpdate(
            update,
            list(groups.values()),
            [{name: row[name] for name in terms} for row in rows],
            [row["reward"] for row in rows],
            [row["advantage"] for row in rows],
            [row["operations"] for row in rows] if "operations" in rows[0] else None,
        )
    except (pyarrow.ArrowException, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"read_update: {path} cannot be read ({error}); expected a file that training wrote, "
            "train the update again"
        ) from error


class StoredUpdates(Mapping[int, Sequence[Sequence[Trajectory]]]):
    """A mapping from update number to trajectories that reads each file on access.

    Args:
        folder: Folder of a run's updates.

    Raises:
        KeyError: There is no such update.
        ValueError: The file cannot be read; see `read_update`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy_to(self, folder: Path) -> None:
        """Copy the files of all updates into a folder.

        Args:
            folder: An existing folder, such as the artefact "training_updates".
        """
        for number in self:
            shutil.copy2(update_file(self.folder, number), folder)

    def drop_after(self, update: int) -> None:
        """Remove the updates after `update`, which a stopped run wrote after its checkpoint.

        Args:
            update: Number of the last update to keep; 0 keeps none.
        """
        for number in self:
            if number > update:
                update_file(self.folder, number).unlink()

    def played(self, update: int) -> PlayedUpdate:
        """Return a stored update with rewards and advantages, see `read_update`.

        Args:
            update: Number of the update, from 1.
        """
        return read_update(self.folder, update)

    def __getitem__(self, update: int) -> Sequence[Sequence[Trajectory]]:
        if update not in self:
            raise KeyError(update)
        return self.played(update).groups

    def __contains__(self, update: object) -> bool:
        return isinstance(update, int) and update_file(self.folder, update).is_file()

    def __iter__(self) -> Iterator[int]:
        files = self.folder.glob("[0-9]*.parquet")
        return iter(sorted(int(path.stem) for path in files))

    def __len__(self) -> int:
        return len([*iter(self)])


def _bare(one: Trajectory) -> Trajectory:
    empty: dict[str, Any] = dict.fromkeys(_OWN_COLUMNS) | {"completion": ""}
    steps = tuple(dataclasses.replace(step, **empty) for step in one.steps)
    return dataclasses.replace(one, steps=steps)


def _whole(rows: Sequence[Mapping[str, Any]]) -> Trajectory:
    bare = from_json(Trajectory, rows[0]["trajectory"])
    steps = []
    for step, row in zip(bare.steps, rows, strict=True):
        own: dict[str, Any] = {
            name: tuple(row[name]) if isinstance(row[name], list) else row[name]
            for name in _OWN_COLUMNS
        }
        steps.append(dataclasses.replace(step, **own))
    return dataclasses.replace(bare, steps=tuple(steps))
