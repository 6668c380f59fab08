"""The cells of a sweep over the parameters of a notebook: points of a grid or list, and seeds."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.cli.manifest import data_hash, data_sources, source_hash
from finemem_lib.cli.profiles import Profile, check_reads, resolve_parameters
from finemem_lib.runs import run as runs
from finemem_lib.runs.notebooks import read_notebook, writers_of
from finemem_lib.util.console import UsageError

Point = tuple[tuple[str, str], ...]
"""Names and values of the parameters of one point, in the form of ``--set``."""


@dataclass(frozen=True, slots=True)
class SweepCell:
    """One run of a sweep.

    Attributes:
        key: The run id, which depends on the parameters, the notebooks and the data.
        point: The parameters that the sweep sets, without the seed.
        seed: The seed, `None` for that of the notebook or the profile.
        notebooks: Stems of the notebooks of the run: those that write the artefacts that the swept
            notebook reads, then the swept notebook.
    """

    key: str
    point: Point
    seed: int | None
    notebooks: tuple[str, ...]

    @property
    def name(self) -> str:
        """The point as text."""
        return ", ".join(f"{name}={value}" for name, value in self.point) or "as it is"

    @property
    def settings(self) -> list[str]:
        """The options of `finemem run` that set the parameters of this cell."""
        values = [*self.point, *([] if self.seed is None else [("seed", str(self.seed))])]
        return [word for name, value in values for word in ("--set", f"{name}={value}")]


def grid_points(grid: Sequence[str], listed: Sequence[Sequence[str]]) -> list[Point]:
    """Return the points given by options, without duplicates.

    Args:
        grid: One ``NAME=V1,V2`` per axis; values in brackets are a JSON list.
        listed: Single points, each as a list of ``NAME=VALUE``; every one is combined with the
            whole grid.

    Raises:
        UsageError: a text has another form, or a name occurs twice.

    >>> grid_points(["beta=0,0.5"], [["k=1"], ["k=2"]])[1]
    (('k', '1'), ('beta', '0.5'))
    >>> grid_points(['managers=[["random"],["insert-all"]]'], [])[0]
    (('managers', '["random"]'),)
    """
    axes = [[(name, value) for value in _values(text)] for name, text in map(_pair, grid)]
    starts = [tuple(map(_pair, one)) for one in listed] or [()]
    points = [(*start, *chosen) for start in starts for chosen in itertools.product(*axes)]
    for point in points:
        names = [name for name, _ in point]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise UsageError(f"{twice} is given twice; name each parameter in one place")
        if "seed" in names:
            raise UsageError(
                "seeds cannot be an axis of the grid, because results are averaged over them; give "
                "--seeds 0,1"
            )
    return list(dict.fromkeys(points))


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not value or not re.fullmatch(r"([\w-]+\.)?[A-Za-z_]\w*", name):
        raise UsageError(f"{text!r}: expected NAME=VALUE, of a grid NAME=V1,V2")
    return name, value


def _values(text: str) -> list[str]:
    if not text.startswith("["):
        return [one.strip() for one in text.split(",")]
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UsageError(
            f"{text!r}: begins with a bracket and is not JSON ({error}); expected a list of values "
            'such as [0.1,0.5], or [["random"],["insert-all"]] for a parameter that is a list'
        ) from error
    return [one if isinstance(one, str) else json.dumps(one) for one in found]


def sweep_cells(
    notebook: Path,
    profile: Profile,
    given: Mapping[str, Any],
    points: Sequence[Point],
    seeds: Sequence[int],
    reuse: str | None,
) -> list[SweepCell]:
    """Return the cells of a sweep after a check of their parameters and artefacts.

    Args:
        notebook: The swept notebook.
        profile: Parameters for all cells.
        given: Further parameters for all cells, from ``--set`` and ``--data``.
        points: The parameters of the points.
        seeds: The seeds of every point; empty for that of the notebook.
        reuse: A run whose artefacts the cells use instead of making them.

    Raises:
        UsageError: a parameter is invalid, or no notebook writes an artefact that the swept one
            reads.
    """
    cells = []
    each: Sequence[int | None] = seeds or [None]
    for point in points:
        for seed in each:
            wanted = {**given, **dict(point), **({} if seed is None else {"seed": str(seed)})}
            notebooks, resolved = _with_writers(notebook, profile, wanted, reuse)
            check_reads(notebooks, resolved, reuse)
            key = _key(notebook, point, seed, notebooks, resolved, reuse)
            cells.append(SweepCell(key, point, seed, tuple(path.stem for path in notebooks)))
    return list({cell.key: cell for cell in cells}.values())


def _with_writers(
    notebook: Path, profile: Profile, given: Mapping[str, Any], reuse: str | None
) -> tuple[list[Path], dict[str, dict[str, Any]]]:
    """Return the notebook, after those that write its artefacts, and the parameters of all."""
    chosen = [notebook]
    undemanding = dataclasses.replace(profile, requires=[])  # checked last, like unknown names
    while True:
        own = {name: value for name, value in given.items() if _has(chosen, name)}
        resolved = resolve_parameters(chosen, undemanding, own, "sweep", to_run=False)
        written = {name for path in chosen for name in read_notebook(path).writes}
        missing = [
            name
            for path in chosen
            for name in read_notebook(path).reads_under(resolved[path.stem])
            if name not in written
            and not (reuse and runs.written_entry(runs.run_folder(reuse), name))
        ]
        writers = [writers_of(name, notebook.parent) for name in missing]
        more = {found[0].path for found in writers if found} - {*chosen}
        if not more:
            break
        chosen = sorted({*chosen, *more})
    return chosen, resolve_parameters(chosen, profile, given, "sweep")


def _has(notebooks: Sequence[Path], full_name: str) -> bool:
    prefix, _, name = full_name.rpartition(".")
    return any(
        one.answers_to(prefix) and name in one.model().model_fields
        for one in map(read_notebook, notebooks)
    )


def _key(
    notebook: Path,
    point: Point,
    seed: int | None,
    notebooks: Sequence[Path],
    resolved: Mapping[str, Mapping[str, Any]],
    reuse: str | None,
) -> str:
    parameters = {
        stem: {name: value for name, value in values.items() if name != "run_id"}
        for stem, values in resolved.items()
    }
    content = {
        "notebooks": {path.stem: source_hash(path) for path in notebooks},
        "parameters": parameters,
        "inputs": {source: data_hash(source) for source in data_sources(resolved.values())},
        "reuse": reuse,
    }
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]
    words = [notebook.stem[:2], *(f"{name}-{value}" for name, value in point)]
    words += [] if seed is None else [f"seed-{seed}"]
    slug = re.sub(r"[^A-Za-z0-9.]+", "-", "-".join(words)).strip("-.")[:60]
    return f"{slug}-{digest}"
