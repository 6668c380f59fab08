"""Read and write measured rows as JSON lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from finemem_lib.util.files import written_beside

if TYPE_CHECKING:
    from _typeshed import DataclassInstance

    R = TypeVar("R", bound=DataclassInstance)


def write_rows(rows: Iterable[DataclassInstance], path: Path) -> None:
    """Write rows as JSON lines with four significant digits; the file is replaced atomically.

    Args:
        rows: Dataclass instances whose fields are plain values.
        path: File to write or replace.
    """
    with written_beside(path) as beside:
        lines = (
            json.dumps(
                {
                    name: float(f"{value:.4g}") if isinstance(value, float) else value
                    for name, value in dataclasses.asdict(row).items()
                }
            )
            + "\n"
            for row in rows
        )
        beside.write_text("".join(lines), encoding="utf-8")


def read_rows(path: Path, kind: type[R], made_by: str) -> list[R]:
    """Read the rows that `write_rows` wrote.

    Args:
        path: The file.
        kind: Dataclass of the rows.
        made_by: Command that makes the file; the error message names it.

    Raises:
        ValueError: the file is missing, or a line is not a row of this dataclass.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [kind(**json.loads(line)) for line in lines]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold rows of {kind.__name__} ({error}); make them with `{made_by}`"
        ) from error
