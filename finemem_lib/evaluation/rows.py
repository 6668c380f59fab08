"""Read and write measured rows as JSON lines."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from finemem_lib.util.files import written_beside
from finemem_lib.util.validation import type_adapter


class MeasuredRow:
    """Base class of dataclasses of measured, plain values."""

    __slots__ = ()
    made_by: ClassVar[str]
    """Command that makes the rows."""


Row = TypeVar("Row", bound=MeasuredRow)


def four_digits(value: float) -> float:
    """Return a number with four significant digits.

    Args:
        value: Any number.
    """
    return float(f"{value:.4g}")


def write_rows(
    rows: Iterable[MeasuredRow], path: Path, rounded: Callable[[float], float] = four_digits
) -> None:
    """Write rows as JSON lines; the file is replaced atomically.

    Args:
        rows: The rows.
        path: File to write or replace.
        rounded: Rounds the numbers.

    Raises:
        OSError: the file could not be written; an earlier version is unchanged.
    """

    def line(row: Any) -> str:
        values = dataclasses.asdict(row).items()
        short = {name: rounded(one) if isinstance(one, float) else one for name, one in values}
        return f"{json.dumps(short)}\n"

    with written_beside(path) as beside:
        beside.write_text("".join(map(line, rows)), encoding="utf-8")


def read_rows(path: Path, kind: type[Row]) -> list[Row]:
    """Read the rows that `write_rows` wrote.

    Args:
        path: The file; a missing value is `None`.
        kind: Dataclass of the rows.

    Raises:
        ValueError: the file is missing, or a line is not a row of this dataclass.
    """
    record: Any = kind
    absent = dict.fromkeys(field.name for field in dataclasses.fields(record))
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        rows: list[Row] = type_adapter(list[record]).validate_python(
            [absent | json.loads(line) for line in lines]
        )
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold rows of {kind.__name__} ({error}); make them with "
            f"`{kind.made_by}`"
        ) from error
    return rows
