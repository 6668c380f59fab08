"""Write and read the rows of an experiment and the card that records how they were made."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from finemem_lib.experiments.cells import KEY_VERSION, CellResult
from finemem_lib.experiments.design import Design
from finemem_lib.experiments.sweep import FailedCell
from finemem_lib.util.files import write_json, written_beside
from finemem_lib.util.provenance import git_state, hardware, repository_root, versions


def write_rows(results: Sequence[CellResult], path: Path, card: Mapping[str, Any]) -> None:
    """Write results as JSON lines, and their card next to them.

    Args:
        results: what to write. Settings stay exact, measured numbers get four significant digits
            (three in curves).
        path: the file ``<name>.jsonl``; the card becomes ``<name>.json``.
        card: what `experiment_card` returned.

    Raises:
        OSError: they could not be written; what was there before is unchanged.
    """
    with written_beside(path) as beside:
        beside.write_text("".join(f"{_line(result)}\n" for result in results), encoding="utf-8")
    write_json(path.with_suffix(".json"), dict(card))


def read_rows(path: Path) -> list[CellResult]:
    """Read what `write_rows` wrote.

    Args:
        path: The file of rows, JSON lines.

    Raises:
        ValueError: the file is missing, or a line of it is not the result of a cell.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        return [CellResult.model_validate_json(line) for line in lines]
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold the rows of an experiment ({error}); make them with "
            "`finemem sweep DESIGN --output FOLDER`, which writes them to FOLDER"
        ) from error


def read_card(path: Path) -> dict[str, Any]:
    """Read the card of the rows in `path`.

    Args:
        path: The file of rows; the card lies next to it.

    Raises:
        ValueError: it is missing or cannot be read.
    """
    card = path.with_suffix(".json")
    try:
        return dict(json.loads(card.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{card} is not the card of an experiment ({error}); `finemem sweep` writes it next "
            "to the rows"
        ) from error


def experiment_card(
    design: Design,
    results: Sequence[CellResult],
    failures: Sequence[FailedCell],
    command: str,
) -> dict[str, Any]:
    """Return how rows were made.

    Args:
        design: the experiment.
        results: its cells.
        failures: cells without a result.
        command: the command that made them, without names of this machine.

    Returns:
        Description and baseline, command and the commit it ran at, the number of cells trained at
        each commit ("made_by"), hardware in words, versions, and the seconds of all cells together
        (each on one thread).
    """
    cells = {result.key: result for result in results}
    return {
        "description": design.description,
        "baseline": design.baseline,
        "command": command,
        **git_state(repository_root()),
        "made_by": Counter(
            (one.commit or "no recorded commit") + (" and changes" if one.dirty else "")
            for one in cells.values()
        ),
        "hardware": f"{hardware()}, one thread per cell",
        "versions": versions(),
        "key_version": KEY_VERSION,
        "cells": len(cells),
        "failed": len(failures),
        "cell_seconds": round(
            sum(
                value
                for one in cells.values()
                for name, value in one.seconds.items()
                if not name.endswith("_cpu")
            )
        ),
    }


def _line(result: CellResult) -> str:
    fields = result.model_dump(mode="json")
    short = _short(fields, 4) | {"cell": fields["cell"], "curve": _short(fields["curve"], 3)}
    return json.dumps(short, separators=(",", ":"))


def _short(value: Any, digits: int) -> Any:
    """Return JSON with numbers of so many significant digits."""
    if isinstance(value, dict):
        return {name: _short(part, digits) for name, part in value.items()}
    if isinstance(value, list):
        return [_short(part, digits) for part in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(f"{value:.{digits}g}")
    return value
