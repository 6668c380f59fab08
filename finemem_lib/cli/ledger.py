"""`finemem ledger`: check every measured figure stated in a text against the rows behind it.

``data/ledger.yaml`` lists the checked texts, the sources (rows with their cards) and, for every
figure, its text, its row and its format. No value is copied: `check` formats each figure from its
row and compares it with the text.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from finemem_lib.evaluation.credit_truth import Row
from finemem_lib.evaluation.rows import read_rows as read_measured
from finemem_lib.experiments.arena import arena
from finemem_lib.experiments.design import load_design
from finemem_lib.experiments.rows import read_card, read_rows
from finemem_lib.experiments.tables import table
from finemem_lib.util.console import UsageErrors, print_table
from finemem_lib.util.provenance import workbench_root
from finemem_lib.util.yaml_files import read_yaml

_COUNT = r"(?:\d+|one|two|three|four|five|six|seven|eight|nine|ten)"
MEASURED = re.compile(
    r"(?<![\w.,:/-])[-+]?(?:\d*\.\d+(?!\.?\w)(?:\s?%)?"
    r"|\d[\d,]*\s?(?:%|ms|s|seconds?|min|minutes?|h|hours?|kB|MB|GB|times)(?!\w)"
    rf"|\d{{1,3}}(?:,\d{{3}})+(?!\w)|{_COUNT} of (?:the )?{_COUNT}(?!\w))"
)
"""Numbers that look measured: with a decimal point, a thousands separator or a unit of measurement,
and counts such as "two of five", in digits or words."""


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Source(_Model):
    """Rows with measured values.

    Attributes:
        kind: "arena" (rows of experiment cells, compared), "experiment" (the same, every measure),
            "credit truth" (rows of judged credit rules) or "plain" (JSON lines of named values).
        rows: Path of the rows from the repository's root; their card is in the same folder.
        design: Path of the design of an arena or an experiment.
    """

    kind: Literal["arena", "experiment", "credit truth", "plain"]
    rows: str
    design: str | None = None


class Figure(_Model):
    """A measured figure in a text.

    Attributes:
        file: Path of the text from the repository's root.
        text: The figure with its surrounding words, literally.
        source: Name of its source.
        row: Fields that identify its row. The field "table" is "standings", "comparisons", "prices"
            or "cells" for an arena, otherwise "rows"; "card" is the card of the rows of any source.
        written: Format of the row's fields, such as ``"{value:.2f} [{low:.2f}]"``.
    """

    file: str
    text: str
    source: str
    row: dict[str, Any]
    written: str


class NotMeasured(_Model):
    """Numbers of a text that were not measured here: settings, versions, worked examples.

    Attributes:
        file: Path or glob of the texts.
        texts: The numbers, each with its surrounding words.
        why: What the numbers are; for published figures, the cited paper.
    """

    file: str
    texts: list[str]
    why: str


class Ledger(_Model):
    """The contents of ``data/ledger.yaml``.

    Attributes:
        watched: Globs of the texts in which every number that looks measured must be in the ledger.
        sources: Sources by name.
        figures: The measured figures.
        not_measured: The numbers that were not measured here.
    """

    watched: list[str]
    sources: dict[str, Source]
    figures: list[Figure]
    not_measured: list[NotMeasured] = []


class Origin(BaseModel):
    """The provenance of the rows of a source.

    Attributes:
        commits: Commits of the code that computed them.
        clean: Whether every row names a commit without local changes.
        seeds: Seeds of the rows.
        data_hash: SHA-256 of the file of rows.
        command: The command that computed them.
        hardware: The hardware on which it ran.
    """

    commits: list[str]
    clean: bool
    seeds: list[int]
    data_hash: str
    command: str
    hardware: str


def load_ledger(root: Path) -> Ledger:
    """Read the ledger of a checkout.

    Args:
        root: The repository's root.

    Raises:
        ValueError: The file is missing or not a ledger.
    """
    path = root / "data" / "ledger.yaml"
    try:
        return Ledger.model_validate(read_yaml(path))
    except ValueError as error:
        raise ValueError(
            f"{path} is not a ledger: {error}; see finemem_lib/cli/ledger.py"
        ) from error


def origin(source: Source, root: Path) -> Origin:
    """Return the provenance of the rows of a source.

    Args:
        source: The source.
        root: The repository's root.

    Raises:
        ValueError: Rows or card cannot be read.
    """
    path = root / source.rows
    card = read_card(path)
    made = {
        "data_hash": hashlib.sha256(path.read_bytes()).hexdigest(),
        "command": str(card.get("command", "")),
        "hardware": str(card.get("hardware", "")),
    }
    if source.kind in ("arena", "experiment"):
        results = read_rows(path)
        return Origin(
            commits=sorted({one.commit or "none" for one in results}),
            clean=all(one.commit and one.dirty is False for one in results),
            seeds=sorted({one.cell.seed for one in results}),
            **made,
        )
    git = card.get("git") or {}
    return Origin(
        commits=[str(git.get("commit"))],
        clean=bool(git.get("commit")) and git.get("dirty") is False,
        seeds=[int(card["seed"])] if "seed" in card else [],
        **made,
    )


def check(ledger: Ledger, root: Path) -> list[str]:
    """Return the errors of a ledger, an empty list if there are none.

    Args:
        ledger: The ledger.
        root: The repository's root.

    Raises:
        ValueError: Rows or a card cannot be read.
        OSError: Rows or a text cannot be read.
    """
    wrong = []
    for name, source in ledger.sources.items():
        if not (found := origin(source, root)).clean:
            wrong.append(f"source {name}: {source.rows} names no clean commit ({found.commits})")
        wrong += [
            f"source {name}: the card of {source.rows} names no {part}"
            for part in ("command", "hardware", "seeds")
            if not getattr(found, part)
        ]
    for figure in ledger.figures:
        where = f"{figure.file}: {figure.text!r}"
        if figure.source not in ledger.sources:
            wrong.append(f"{where} has source {figure.source!r}, which the ledger does not name")
            continue
        rows = [
            row
            for row in _rows(ledger.sources[figure.source], root)
            if all(row.get(name) == value for name, value in figure.row.items())
        ]
        if len(rows) != 1:
            wrong.append(
                f"{where}: {len(rows)} rows of {figure.source} match {figure.row}, expected 1"
            )
        elif literal := re.findall(r"\d[.,]\d+", re.sub(r"\{[^}]*\}", "", figure.written)):
            wrong.append(f"{where}: `written` contains {literal[0]}, expected a field of the row")
        elif (now := _written(figure, rows[0])) != figure.text:
            wrong.append(f"{where}, but {figure.source} gives {now!r}")
        if figure.text not in prose(root / figure.file):
            wrong.append(f"{where} is no longer in the text; remove it from the ledger")
    for one in ledger.not_measured:
        texts = [prose(path) for path in root.glob(one.file)]
        wrong += [
            f"{one.file}: {text!r} is no longer in the text; remove it from the ledger"
            for text in one.texts
            if not any(text in found for found in texts)
        ]
    for pattern in ledger.watched:
        paths = sorted(root.glob(pattern))
        if not paths:
            wrong.append(f"watched: no file matches {pattern!r}")
        wrong += [
            f"{path.relative_to(root)}: {number!r} in {around!r} is not in the ledger"
            for path in paths
            for number, around in _uncovered(ledger, str(path.relative_to(root)), root)
        ]
    return wrong


def prose(path: Path) -> str:
    """Return the prose of a Markdown file or of a notebook's Markdown cells, without code or links.

    Args:
        path: The file.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    text = re.sub(
        r"```.*?```|`[^`\n]*`|\$\$.*?\$\$|\$[^$\n]*\$|<!--.*?-->", " ", text, flags=re.DOTALL
    )
    return " ".join(re.sub(r"\]\([^)]*\)", "]", text).split())


def _written(figure: Figure, row: Mapping[str, Any]) -> str:
    """Return the figure formatted from its row."""
    try:
        return figure.written.format(**row)
    except (KeyError, TypeError, ValueError):  # a field is missing or not measured
        return f"{figure.written} of {row}"


def _uncovered(ledger: Ledger, file: str, root: Path) -> Iterator[tuple[str, str]]:
    """Yield the numbers of a text that look measured and are not in the ledger."""
    text = prose(root / file)
    known = [(one.text, 1) for one in ledger.figures if one.file == file]  # one place per entry
    known += [
        (some, -1)
        for one in ledger.not_measured
        if PurePosixPath(file).match(one.file)
        for some in one.texts
    ]
    for words, times in sorted(known, key=lambda one: -len(one[0])):
        text = text.replace(words, " ", times)
    for found in MEASURED.finditer(text):
        yield found.group(), text[max(0, found.start() - 40) : found.end() + 20]


@functools.cache
def _rows(source: Source, root: Path) -> list[Mapping[str, Any]]:
    """Return the rows of a source's table as dictionaries."""
    path = root / source.rows
    tables: dict[str, Iterable[Mapping[str, Any]]] = {"card": [read_card(path)]}
    if source.kind == "plain":
        tables["rows"] = map(json.loads, path.read_text(encoding="utf-8").splitlines())
    elif source.kind == "credit truth":
        tables["rows"] = map(dataclasses.asdict, read_measured(path, Row))
    elif source.kind == "experiment":
        baseline = load_design(root / (source.design or "")).baseline
        tables["rows"] = map(dataclasses.asdict, table(read_rows(path), baseline))
    else:
        of = arena(read_rows(path), load_design(root / (source.design or "")))
        tables["standings"] = map(dataclasses.asdict, of.standings)
        tables["comparisons"] = map(dataclasses.asdict, of.comparisons)
        tables["prices"] = map(dataclasses.asdict, of.prices)
        planned = len(of.design.cells)
        tables["cells"] = [{"planned": planned, "trained": planned - len(of.missing)}]
    return [{"table": name, **row} for name, rows in tables.items() for row in rows]


def _ledger_command(options: argparse.Namespace) -> int:
    """List the figures, or check them, and return the exit code (1: errors were found)."""
    with UsageErrors(OSError, ValueError):
        root = workbench_root()
        ledger = load_ledger(root)
        wrong = check(ledger, root) if options.check else []
        origins = {name: origin(source, root) for name, source in ledger.sources.items()}
    if options.json:
        figures = [
            one.model_dump() | {"origin": origins[one.source].model_dump()}
            for one in ledger.figures
        ]
        print(json.dumps({"figures": figures, "wrong": wrong}, ensure_ascii=False, indent=1))
        return int(bool(wrong))
    print_table(
        [
            ("text", "figure", "source"),
            *((one.file, one.text, one.source) for one in ledger.figures),
        ]
    )
    print()
    print_table(
        [
            ("source", "rows", "SHA-256", "commit", "seeds", "command", "hardware"),
            *(
                (
                    name,
                    ledger.sources[name].rows,
                    made.data_hash[:12],
                    ", ".join(commit[:7] for commit in made.commits),
                    " ".join(map(str, made.seeds)),
                    made.command,
                    made.hardware,
                )
                for name, made in origins.items()
            ),
        ]
    )
    for line in wrong:
        print(line)
    if options.check:
        print(f"{len(ledger.figures)} figures, {len(wrong)} wrong")
    return int(bool(wrong))


def add_command(commands: Any) -> None:
    """Add ``finemem ledger`` to the command line."""
    parser = commands.add_parser(
        "ledger", help="list every measured figure that the texts state, with its origin"
    )
    parser.set_defaults(command=_ledger_command)
    parser.add_argument(
        "--check", action="store_true", help="exit with 1 where a figure is not what its rows say"
    )
    parser.add_argument("--json", action="store_true", help="for programs")
