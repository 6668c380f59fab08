"""Published result tables, shown next to values measured with this library.

The figures are copied as printed (`published.yaml`), with source and caveats. They are never
averaged with, subtracted from or ranked among measured values, because readers, samples and scorers
differ.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from finemem_lib.evaluation.tables import ALL, Estimate, format_estimate
from finemem_lib.util.yaml_files import parse_yaml

if TYPE_CHECKING:
    import pandas as pd

ROUNDING_TOLERANCE = 0.002
"""Largest distance of a printed average from the mean of its columns that counts as rounding."""


@dataclass(frozen=True, slots=True)
class PublishedRow:
    """One method of a published table.

    Attributes:
        method: Name of the method, as printed.
        ours: The corresponding system of this library; `None` if there is none.
        performance: Performance by data source.
        memory: Memory length in thousands of tokens, by data source.
        average: Average performance, as printed.
    """

    table: str
    method: str
    ours: str | None
    performance: dict[str, float]
    memory: dict[str, float]
    average: float

    @property
    def mean(self) -> float:
        """The mean of the printed columns."""
        return math.fsum(self.performance.values()) / len(self.performance)

    @property
    def average_differs(self) -> bool:
        """Whether the printed average is not the mean of the printed columns."""
        return abs(self.mean - self.average) > ROUNDING_TOLERANCE


@dataclass(frozen=True, slots=True)
class PublishedTable:
    """A published table.

    Attributes:
        key: Key in `published.yaml`.
        source: Publication and number of the table.
        caveat: Limits of a comparison with other figures.
        columns: Printed heading by data source.
    """

    key: str
    title: str
    source: str
    caveat: str
    columns: dict[str, str]
    rows: tuple[PublishedRow, ...]


def published_tables() -> dict[str, PublishedTable]:
    """Return every published table by its key.

    >>> tables = published_tables()
    >>> row = next(one for one in tables["memalpha"].rows if one.method == "Mem-alpha")
    >>> row.performance["squad"], row.average, round(row.mean, 3), row.average_differs
    (0.786, 0.642, 0.619, True)
    """
    text = files("finemem_lib").joinpath("evaluation", "published.yaml").read_text("utf-8")
    content: dict[str, Any] = parse_yaml(text)
    return {key: _table(key, one) for key, one in content.items()}


def _table(key: str, content: dict[str, Any]) -> PublishedTable:
    sources = [*content["columns"].values()]
    rows = tuple(
        PublishedRow(
            key,
            str(method),
            one.get("ours"),
            dict(zip(sources, one["performance"], strict=True)),
            dict(zip(sources, one["memory"], strict=True)),
            one["average"],
        )
        for method, one in content["methods"].items()
    )
    columns = {source: heading for heading, source in content["columns"].items()}
    title, source, caveat = (content[name].strip() for name in ("title", "source", "caveat"))
    return PublishedTable(key, title, source, caveat, columns, rows)


def compare_with_published(rows: Iterable[Estimate], table: str = "memalpha") -> pd.DataFrame:
    """Return a published table with measured values in separate columns.

    Args:
        rows: Rows of `tables.benchmark_table`.
        table: Key of the published table.

    Returns:
        A pandas frame with one row per published method. Each data source has the columns
        "published" and "ours"; "ours" is "–" if no system of this library corresponds to the
        method, or if the system was not measured on this source.

    Raises:
        ValueError: there is no such table.
    """
    import pandas as pd

    tables = published_tables()
    if table not in tables:
        raise ValueError(f"published table is {table!r}, expected one of {', '.join(tables)}")
    measured = {
        (row.method, row.data_source): format_estimate(row)
        for row in rows
        if row.measure == "accuracy" and row.data_source != ALL
    }
    lines = {}
    for one in tables[table].rows:
        line: dict[tuple[str, str], str] = {}
        for source, heading in tables[table].columns.items():
            line[heading, "published"] = f"{one.performance[source]:.3f}"
            line[heading, "ours"] = measured.get((one.ours or "", source), "–")
        mark = f" (mean of its columns {one.mean:.3f})" if one.average_differs else ""
        line["average as printed", "published"] = f"{one.average:.3f}{mark}"
        lines[one.method, one.ours or "–"] = line
    frame = pd.DataFrame.from_dict(lines, orient="index")
    frame.index = pd.MultiIndex.from_tuples([*lines], names=["published method", "system here"])
    frame.columns = pd.MultiIndex.from_tuples([*frame.columns])
    return frame
