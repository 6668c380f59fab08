"""`finemem arena`: print which credit rule is clearly beaten in which regime."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from finemem_lib.util.console import EXIT_CODES, UsageErrors, plain, positive, print_table
from finemem_lib.util.provenance import workbench_root

DESIGN = "arena.design.yaml"


def add_command(commands: Any) -> None:
    """Add `finemem arena` to the command line."""
    arena = commands.add_parser("arena", help="compare the rules of credit that were trained")
    arena.set_defaults(command=_arena_command)
    arena.add_argument(
        "--rows",
        nargs="+",
        type=Path,
        metavar="FILE",
        help="rows of `finemem sweep` (default: data/experiments/arena*.jsonl)",
    )
    arena.add_argument(
        "--design",
        type=Path,
        metavar="FILE",
        help=f"design of the arena (default: data/experiments/{DESIGN})",
    )
    arena.add_argument(
        "--resamples", type=positive, metavar="N", help="draws of the bootstrap (default: 10,000)"
    )
    arena.add_argument("--json", action="store_true", help="print JSON instead of tables")


def _arena_command(options: argparse.Namespace) -> int:
    """Print the tables of the arena."""
    from finemem_lib.evaluation.tables import BootstrapSettings
    from finemem_lib.experiments.arena import (
        RESAMPLES,
        arena,
        arena_json,
        arena_notes,
        arena_tables,
    )
    from finemem_lib.experiments.design import load_design
    from finemem_lib.experiments.rows import read_rows

    folder = workbench_root() / "data" / "experiments"
    files = options.rows or sorted(folder.glob("arena*.jsonl"))
    with UsageErrors(ValueError):
        found = arena(
            [row for file in files for row in read_rows(file)],
            load_design(options.design or folder / DESIGN),
            BootstrapSettings(num_resamples=options.resamples or RESAMPLES),
        )
    if options.json:
        print(json.dumps(arena_json(found)))
        return EXIT_CODES["ok"]
    print(found.design.description)
    for title, rows in arena_tables(found).items():
        print(f"\n{title}")
        print_table(rows)
    print("", *map(plain, arena_notes(found)), sep="\n")
    return EXIT_CODES["ok"]
