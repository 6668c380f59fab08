"""`finemem diff`: compare two runs in the terminal and on an offline page."""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from finemem_lib.cli.comparison import (
    Change,
    Comparison,
    Difference,
    Estimate,
    FigurePair,
    compare_runs,
    figure_pairs,
)
from finemem_lib.runs.run import format_metric, run_folder
from finemem_lib.util.console import EXIT_CODES, UsageErrors, plain, print_table
from finemem_lib.util.files import real_path, write_bytes

MACHINE = ("seconds_*",)
"""Metrics that depend on the machine: they are shown, but never fail a comparison."""

SHOWN_ESTIMATES = 12
"""Maximum rows of tables with intervals in the terminal; the page has all of them."""


def add_command(commands: Any) -> None:
    """Add `finemem diff` to the command line."""
    command = commands.add_parser(
        "diff",
        help="compare two runs",
        description="Compares parameters, versions, data, metrics, intervals, findings and "
        "figures of two runs, in the terminal and on a page in the folder of the second run. With "
        "--fail-over the exit code is 1 if a metric changed by more than this share or is missing "
        "in the second run, or if the runs have no metric in common.",
    )
    command.set_defaults(command=_diff_command, last_line=True)
    command.add_argument("first", metavar="A", help="a run, or the path of its folder")
    command.add_argument("second", metavar="B", help="the run to compare with it")
    command.add_argument(
        "--fail-over",
        type=share,
        metavar="5%",
        help="exit with 1 when a metric changes by more than this share of its value in A",
    )
    command.add_argument(
        "--ignore",
        action="append",
        metavar="PATTERN",
        help="metrics that --fail-over leaves out, as accuracy_* or 04_*.reward "
        f"(default: {', '.join(MACHINE)})",
    )
    command.add_argument(
        "--output", type=Path, metavar="FILE", help="the page (default: diff-A.html in B's folder)"
    )


def share(text: str) -> float:
    """Parse a share on the command line.

    Args:
        text: A percentage or a fraction, such as "5%" or "0.05".

    Raises:
        argparse.ArgumentTypeError: it is neither a percentage nor a fraction below 1.
    """
    if match := re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)(%?)", text):
        value = float(match[1]) / (100 if match[2] else 1)
        if match[2] or value < 1:
            return value
    raise argparse.ArgumentTypeError(f"{text!r:.40}, expected a share such as 5% or 0.05")


def _diff_command(options: argparse.Namespace) -> int:
    """Print the differences of two runs, write the page, and return the exit code."""
    first, second = (_folder(name) for name in (options.first, options.second))
    with UsageErrors(ValueError):
        compared = compare_runs(first, second)
    names = _run_names(first, second)
    _print_comparison(compared, names)
    limit, ignored = options.fail_over, options.ignore or MACHINE
    over = [] if limit is None else compared.over(limit, ignored)
    path = options.output or second / f"diff-{first.name}.html"
    try:
        write_bytes(path, _diff_page(compared, figure_pairs(first, second), names))
    except OSError as error:
        print(f"failed: {error.strerror or error}; give another --output", file=sys.stderr)
        return EXIT_CODES["failed"]
    print(f"page: {path}")
    for one in over:
        print(
            f"over {limit:.3g}: {one.where} {one.name}: {_value_text(one.before)} -> "
            f"{_value_text(one.after)} ({_relative_text(one)})",
            file=sys.stderr,
        )
    comparable = [one for one in compared.metrics if one.relative is not None]
    options.result = {
        "a": first.name,
        "b": second.name,
        "metrics": len(comparable),
        "changed": sum(bool(one.relative) for one in comparable),
        "over": len(over),
        "page": path,
    }
    if limit is not None and not comparable:
        print("no metric is in both runs, so none could be compared", file=sys.stderr)
        return EXIT_CODES["failed"]
    return EXIT_CODES["failed" if over else "ok"]


def _folder(run: str) -> Path:
    with UsageErrors(ValueError):
        return real_path(run) if os.sep in run else run_folder(run)


def _run_names(first: Path, second: Path) -> tuple[str, str]:
    """Return the names of two runs in tables: their ids, with A and B added if these are equal."""
    same = first.name == second.name
    return (f"{first.name} (A)", f"{second.name} (B)") if same else (first.name, second.name)


def _value_text(estimate: Estimate | None) -> str:
    """Format a value, with its interval if it has one."""
    if estimate is None:
        return "not run"
    text = format_metric(estimate.value)
    if estimate.low is None or estimate.high is None:
        return text
    return f"{text} [{format_metric(estimate.low)}, {format_metric(estimate.high)}]"


def _relative_text(change: Change) -> str:
    """Format the relative change of a metric."""
    if (relative := change.relative) is None:
        return ""
    if change.difference is None:
        return "other" if relative else ""
    return "from 0" if math.isinf(relative) else f"{relative:+.1%}"


def _print_comparison(compared: Comparison, names: tuple[str, str]) -> None:
    """Print the differences, and the number of equal entries."""
    for title, found in (
        ("runs", compared.about),
        ("parameters", compared.parameters),
        ("versions", compared.versions),
        ("data and artefacts, by hash", compared.data),
    ):
        if found:
            print(f"\n{title}")
            print_table([("what", *names), *((one.what, one.before, one.after) for one in found)])
        else:
            print(f"\n{title}: the same")
    changed = [one for one in compared.metrics if one.relative != 0]
    print(f"\nmetrics: {len(changed)} of {len(compared.metrics)} differ")
    print_table(
        [("notebook", "metric", *names, "change", "relative", "intervals"), *map(_row, changed)]
    )
    differing = sorted(
        (one for one in compared.estimates if one.relative != 0),
        key=lambda one: (one.overlap is not False, -abs(one.relative or 0)),
    )
    apart = sum(one.overlap is False for one in differing)
    if compared.estimates:
        print(
            f"\nestimates with intervals: {len(differing)} of {len(compared.estimates)} differ, of "
            f"{apart} the intervals do not overlap"
        )
    print_table(
        [
            ("artefact", "estimate", *names, "change", "relative", "intervals"),
            *map(_row, differing[:SHOWN_ESTIMATES]),
        ]
    )
    if len(differing) > SHOWN_ESTIMATES:
        print(f"and {len(differing) - SHOWN_ESTIMATES} more, which the page shows")
    other = [one for one in compared.findings if one.before != one.after]
    print(f"\nfindings: {len(other)} of {len(compared.findings)} differ")
    for one in other:
        print(plain(one.what))
        for name, text in zip(names, (one.before, one.after), strict=True):
            print(f"  {name}: {plain(text)}")


def _row(change: Change) -> tuple[str, ...]:
    difference = change.difference
    return (
        change.where,
        change.name,
        _value_text(change.before),
        _value_text(change.after),
        "" if difference is None else f"{difference:+.4g}",
        _relative_text(change),
        _overlap_text(change),
    )


def _overlap_text(change: Change) -> str:
    """Return a text that states whether the intervals of an estimate overlap."""
    return {None: "", True: "overlap", False: "apart"}[change.overlap]


def _diff_page(compared: Comparison, pairs: Sequence[FigurePair], names: tuple[str, str]) -> bytes:
    """Return the page of two runs, which works offline."""
    from finemem_lib.cli.page import PageFigures, figure_title, render

    figures = PageFigures()
    shown = []
    for number, pair in enumerate(pairs, start=1):
        same = pair.before == pair.after
        specs = [pair.before] if same else [pair.before, pair.after]
        shown.append(
            {
                "name": pair.name,
                "title": figure_title(pair.before or pair.after or {}),
                "same": same,
                "drawn": [
                    spec and _drawn(figures, spec, f"figure-{number}-{side}")
                    for side, spec in zip("ab", specs, strict=False)
                ],
            }
        )
    return render(
        "diff.html.j2",
        figures,
        compared=compared,
        names=names,
        pairs=shown,
        tables={
            "Runs": _cells(compared.about, names),
            "Parameters": _cells(compared.parameters, names),
            "Versions": _cells(compared.versions, names),
            "Data and artefacts": _cells(compared.data, names),
        },
        metric_rows=[_change_cells(one, names) for one in compared.metrics],
        estimate_rows=[_change_cells(one, names) for one in compared.estimates],
    )


def _drawn(figures: Any, spec: dict[str, Any], figure_id: str) -> Any:
    from markupsafe import Markup

    return Markup(figures.draw(spec, figure_id, {}))


def _cells(found: Iterable[Difference], names: tuple[str, str]) -> list[dict[str, str]]:
    return [{"what": one.what, names[0]: one.before, names[1]: one.after} for one in found]


def _change_cells(change: Change, names: tuple[str, str]) -> dict[str, str]:
    columns = ("where", "what", *names, "change", "relative", "intervals")
    return dict(zip(columns, _row(change), strict=True))
