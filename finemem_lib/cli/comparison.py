"""Compare two runs: settings, versions, data, metrics, findings and figures."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.cli.manifest import Manifest, read_manifest
from finemem_lib.cli.report import read_metrics
from finemem_lib.runs.artefacts import ARTEFACTS
from finemem_lib.runs.run import read_record

IDENTITY = (
    "design",
    "regime",
    "method",
    "variant",
    "category",
    "data_source",
    "measure",
    "average",
)
"""The columns that identify a row of a table with intervals."""

ROUNDING = 1e-9
"""Absolute and relative tolerance of equal numbers, for sums in another order."""

_ABSENT = "–"


@dataclass(frozen=True, slots=True)
class Difference:
    """A property in which two runs differ.

    Attributes:
        what: Name of the property.
        before: Value in the first run, "–" if it is missing there.
        after: Value in the second run, "–" if it is missing there.
    """

    what: str
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Estimate:
    """A measured value with the ends of its interval, `None` if it has no interval."""

    value: Any
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Change:
    """A metric, or a row of a table with intervals, in two runs.

    Attributes:
        where: Name of the notebook or artefact.
        name: Name of the metric, or the cells that identify the row.
        before: Value in the first run; `None` if the notebook or artefact is not part of it.
        after: Value in the second run; `None` likewise.
    """

    where: str
    name: str
    before: Estimate | None
    after: Estimate | None

    @property
    def difference(self) -> float | None:
        """The second value less the first (0 within `ROUNDING`), `None` unless both are numbers."""
        one, other = _number(self.before), _number(self.after)
        if one is None or other is None:
            return None
        equal = math.isclose(one, other, rel_tol=ROUNDING, abs_tol=ROUNDING)
        return 0.0 if equal else other - one

    @property
    def relative(self) -> float | None:
        """The difference relative to the first value; `None` if only one run has the metric.

        It is infinite if the first value is 0 and the second is not, if a text has changed, or if
        the second value is missing.
        """
        if self.before is None or self.after is None:
            return None
        if (difference := self.difference) is None:
            return 0.0 if self.before.value == self.after.value else math.inf
        if not difference:
            return 0.0
        first = _number(self.before)
        return difference / abs(first) if first else math.copysign(math.inf, difference)

    @property
    def overlap(self) -> bool | None:
        """Whether the two intervals overlap, `None` if there are not two intervals."""
        ends = [
            (one.low, one.high)
            for one in (self.before, self.after)
            if one is not None and one.low is not None and one.high is not None
        ]
        if len(ends) < 2:
            return None
        return max(low for low, _ in ends) <= min(high for _, high in ends)

    def exceeds(self, limit: float) -> bool:
        """Return whether the relative change of the value exceeds a limit.

        Args:
            limit: The limit, 0.05 for 5 %.
        """
        return self.relative is not None and abs(self.relative) > limit


@dataclass(frozen=True, slots=True)
class Comparison:
    """The comparison of two runs.

    Attributes:
        before: Manifest of the first run.
        after: Manifest of the second run.
        about: Differences in status, profile, commit, machine and notebooks.
        parameters: Differences in the parameters of notebooks that both runs have.
        versions: Differences in package versions.
        data: Differences in the hashes of inputs and artefacts.
        metrics: All metrics of both runs.
        estimates: All rows of tables with intervals of both runs.
        findings: The findings of both runs, paired by notebook and position.
    """

    before: Manifest
    after: Manifest
    about: list[Difference]
    parameters: list[Difference]
    versions: list[Difference]
    data: list[Difference]
    metrics: list[Change]
    estimates: list[Change]
    findings: list[Difference]

    def over(self, limit: float, ignored: Sequence[str] = ()) -> list[Change]:
        """Return the metrics whose relative change exceeds a limit.

        Args:
            limit: The limit, 0.05 for 5 %.
            ignored: Patterns of names to ignore, such as ``seconds_*`` or ``04_*.reward``.
        """
        return [
            one
            for one in self.metrics
            if one.exceeds(limit)
            and not any(
                fnmatch.fnmatchcase(name, pattern)
                for name in (one.name, f"{one.where}.{one.name}")
                for pattern in ignored
            )
        ]


def compare_runs(first: Path, second: Path) -> Comparison:
    """Compare two runs.

    Args:
        first: Folder of the first run.
        second: Folder of the second run.

    Raises:
        ValueError: a manifest or metrics cannot be read.
    """
    before, after = read_manifest(first), read_manifest(second)
    return Comparison(
        before=before,
        after=after,
        about=differences(_about(before), _about(after)),
        parameters=_parameters(before, after),
        versions=differences(before.versions, after.versions),
        data=differences(_data(before), _data(after)),
        metrics=_metrics(first, second, before, after),
        estimates=_estimates(first, second, before, after),
        findings=_findings(first, second, before, after),
    )


def differences(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Difference]:
    """Return the entries that differ between two mappings, in the order in which they first occur.

    Args:
        before: The first mapping.
        after: The second mapping.

    >>> differences({"a": 1, "b": 2}, {"b": 3, "a": 1, "c": None})
    [Difference(what='b', before='2', after='3'), Difference(what='c', before='–', after='None')]
    """
    return [
        Difference(name, *(str(one[name]) if name in one else _ABSENT for one in (before, after)))
        for name in dict.fromkeys([*before, *after])
        if (name in before, before.get(name)) != (name in after, after.get(name))
    ]


def _number(estimate: Estimate | None) -> float | None:
    value = estimate.value if estimate else None
    return float(value) if isinstance(value, int | float) else None


def _about(run: Manifest) -> dict[str, Any]:
    """Return the properties of a run to compare, without its name and times."""
    return {
        "status": run.status,
        "profile": run.profile,
        "seed": "by notebook" if run.seed is None else run.seed,
        "reuses": run.reuse or "nothing",
        "commit": run.git.get("commit"),
        "files differ from the commit": run.git.get("dirty"),
        "platform": run.platform,
        "processors": run.cpus,
        **{
            f"notebook {one.name}": f"{one.status}, cells {one.source_sha256[:12]}"
            for one in run.notebooks
        },
    }


def _parameters(before: Manifest, after: Manifest) -> list[Difference]:
    def of(run: Manifest, names: Iterable[str]) -> dict[str, Any]:
        return {
            f"{one.name}.{name}": value
            for one in run.notebooks
            if one.name in names
            for name, value in one.parameters.items()
            if name != "run_id"
        }

    both = {one.name for one in before.notebooks} & {one.name for one in after.notebooks}
    return differences(of(before, both), of(after, both))


def _data(run: Manifest) -> dict[str, Any]:
    """Return the hashes of the inputs and artefacts of a run, by name."""
    hashes = {name: digest or "on the hub" for name, digest in run.inputs.items()}
    hashes |= {f"artefact {name}": entry["sha256"] for name, entry in run.outputs.items()}
    return {name: digest[:12] for name, digest in hashes.items()}


def _metrics(first: Path, second: Path, before: Manifest, after: Manifest) -> list[Change]:
    """Return the metrics of both runs; a metric that a notebook did not record is `None`."""
    found = [_with_intervals(folder, read_metrics(folder)) for folder in (first, second)]
    takes_part = [{one.name for one in run.notebooks} for run in (before, after)]
    names = {name for one in found for name in one}
    return [
        Change(
            notebook,
            metric,
            *(
                metrics.get((notebook, metric), Estimate(None)) if notebook in there else None
                for metrics, there in zip(found, takes_part, strict=True)
            ),
        )
        for notebook, metric in sorted(names)
    ]


def _with_intervals(
    folder: Path, metrics: Mapping[str, Mapping[str, Any]]
) -> dict[tuple[str, str], Estimate]:
    """Return the metrics of a run by notebook and name, with the intervals that records hold."""
    return {
        (notebook, name): Estimate(value, *intervals.get(name, ()))
        for notebook, values in metrics.items()
        for intervals in [read_record(folder, notebook).get("intervals", {})]
        for name, value in values.items()
    }


def _estimates(first: Path, second: Path, before: Manifest, after: Manifest) -> list[Change]:
    found = [_tables(folder, run) for folder, run in ((first, before), (second, after))]
    return [
        Change(artefact, name, *(one.get((artefact, name)) for one in found))
        for artefact, name in dict.fromkeys(key for one in found for key in one)
    ]


def _tables(folder: Path, run: Manifest) -> dict[tuple[str, str], Estimate]:
    """Return the rows of a run's tables with intervals, by artefact and identity."""
    import pandas as pd

    rows: dict[tuple[str, str], Estimate] = {}
    for name in run.outputs:
        if name not in ARTEFACTS or ARTEFACTS[name].kind != "table":
            continue
        with contextlib.suppress(OSError, ValueError):  # missing or other columns: see the hash
            table = pd.read_parquet(folder / ARTEFACTS[name].file)
            if {"value", "low", "high"} <= {*table.columns}:
                rows |= _rows(name, table.to_dict("records"))
    return rows


def _rows(artefact: str, table: Sequence[Mapping[Any, Any]]) -> dict[tuple[str, str], Estimate]:
    """Return rows by artefact and identity, without those whose identity is not unique."""
    named = [
        (", ".join(one[key] for key in IDENTITY if isinstance(one.get(key), str)), one)
        for one in table
    ]
    counts = Counter(name for name, _ in named)
    return {
        (artefact, name): Estimate(*(_finite(one[key]) for key in ("value", "low", "high")))
        for name, one in named
        if name and counts[name] == 1
    }


def _finite(value: Any) -> float | None:
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _findings(first: Path, second: Path, before: Manifest, after: Manifest) -> list[Difference]:
    def texts(folder: Path, notebook: str) -> list[str]:
        return [one["text"] for one in read_record(folder, notebook).get("findings", ())]

    names = dict.fromkeys(one.name for run in (before, after) for one in run.notebooks)
    found = []
    for name in names:
        mine, others = texts(first, name), texts(second, name)
        for place in range(max(len(mine), len(others))):
            pair = (one[place] if place < len(one) else _ABSENT for one in (mine, others))
            found.append(Difference(name, *pair))
    return found


@dataclass(frozen=True, slots=True)
class FigurePair:
    """A figure saved by at least one of two runs.

    Attributes:
        name: Name of its file without suffix.
        before: Its plotly JSON in the first run, `None` if it is missing there.
        after: Its plotly JSON in the second run, `None` if it is missing there.
    """

    name: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


def figure_pairs(first: Path, second: Path) -> list[FigurePair]:
    """Return the figures saved by two runs, sorted by name.

    Args:
        first: Folder of the first run.
        second: Folder of the second run.
    """
    names = {path.stem for one in (first, second) for path in (one / "figures").glob("*.json")}
    return [
        FigurePair(name, *(_figure(one, name) for one in (first, second))) for name in sorted(names)
    ]


def _figure(folder: Path, name: str) -> dict[str, Any] | None:
    with contextlib.suppress(OSError, ValueError):
        spec = json.loads((folder / "figures" / f"{name}.json").read_bytes())
        return spec if isinstance(spec, dict) else None
    return None
