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
from finemem_lib.util.provenance import code_root, git_state, hardware, versions


def write_rows(results: Sequence[CellResult], path: Path, card: Mapping[str, Any]) -> None:
    """Write results as JSON lines, and their card next to them.

    Args:
        results: The results. Settings are written exactly, measured numbers with four significant
            digits (three in curves).
        path: The file ``<name>.jsonl``; the card is written to ``<name>.json``.
        card: Result of `experiment_card`.

    Raises:
        OSError: a file could not be written; an earlier version of it is unchanged.
    """
    with written_beside(path) as beside:
        beside.write_text("".join(f"{_line(result)}\n" for result in results), encoding="utf-8")
    write_json(path.with_suffix(".json"), dict(card))


def read_rows(path: Path) -> list[CellResult]:
    """Return the results that `write_rows` wrote.

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
    """Return the card of a file of rows.

    Args:
        path: The file of rows; its card is next to it.

    Raises:
        ValueError: the card is missing or cannot be read.
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
    """Return the card of an experiment, which records how its rows were made.

    Args:
        design: The design of the experiment.
        results: The results of its cells.
        failures: Cells without a result.
        command: The command that made them, without names of this machine.

    Returns:
        Description and baseline, command and its commit, the number of cells trained at each commit
        ("made_by"), hardware in words, versions, and the total seconds of all cells (each on one
        thread).
    """
    cells = {result.key: result for result in results}
    return {
        "description": design.description,
        "baseline": design.baseline,
        "command": command,
        **git_state(code_root()),
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
    """Return a JSON value with floats rounded to `digits` significant digits."""
    if isinstance(value, dict):
        return {name: _short(part, digits) for name, part in value.items()}
    if isinstance(value, list):
        return [_short(part, digits) for part in value]
    if isinstance(value, float):
        return int(value) if value.is_integer() else float(f"{value:.{digits}g}")
    return value
