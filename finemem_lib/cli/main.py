"""The commands of `finemem` and their options.

Exit codes: 0 ok, 1 a notebook failed (or the report or a file of the run could not be written),
2 bad usage, found before any kernel starts, 3 timeout, 130 interrupted.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib import __version__
from finemem_lib.cli import (
    app,
    arena,
    clean,
    completion,
    copying,
    diff,
    export,
    fetch,
    init,
    ledger,
    listing,
    notebook_sweep,
    pictures,
    plan,
    prepare,
    rescore,
)
from finemem_lib.cli.examples import add_examples
from finemem_lib.cli.execute import Executor, execute_notebook
from finemem_lib.cli.manifest import read_manifest
from finemem_lib.cli.profiles import add_arguments
from finemem_lib.cli.run import resume_command, run_command, write_report
from finemem_lib.runs.run import RESUMABLE, run_folder
from finemem_lib.util.console import (
    BAD_USAGE,
    EXIT_CODES,
    UsageError,
    UsageErrors,
    check_output_folder,
    positive,
    print_table,
    result_line,
)
from finemem_lib.util.provenance import NoWorkbenchError

if TYPE_CHECKING:
    from finemem_lib.experiments.cells import Cell
    from finemem_lib.experiments.design import Design
    from finemem_lib.experiments.tables import ExperimentRow


def _report_command(options: argparse.Namespace) -> int:
    """Write the report of a run again and print its path."""
    if options.figures:
        check_output_folder(Path(options.figures), "--figures")
    with UsageErrors(ValueError):
        folder = run_folder(options.run)
        read_manifest(folder, settle=True)
        report = write_report(folder, options.figures)
    print(f"report: {report}")
    options.result = {"run": folder.name, "report": report}
    return EXIT_CODES["ok"]


def _sweep_command(options: argparse.Namespace) -> int:
    """Run the missing cells of an experiment, print their table, and return the exit code."""
    if notebook_sweep.is_notebook(options.design):
        return notebook_sweep.sweep_notebook(options)
    from finemem_lib.experiments import rows, sweep, tables as experiment_tables
    from finemem_lib.experiments.cells import run_cell
    from finemem_lib.experiments.design import load_design

    folder = Path(options.output)
    _check_design_options(options, folder)
    with UsageErrors(ValueError):
        design = load_design(Path(options.design))
    cells = _chosen_cells(options, design)
    if not options.collect:
        print(f"{design.description}\n{len({cell.key for cell in cells})} cells", flush=True)
    with notebook_sweep.step_log(folder) as log:
        _, failures = sweep.run_cells(
            cells,
            folder,
            jobs=options.jobs,
            scheduler=options.scheduler,
            run=functools.partial(run_cell, keep=options.managers),
            progress=lambda done, total, cell, end: log(done, total, f"{_label(cell)}: {end}"),
        )
    results = sweep.kept_results(design.cells, folder)  # also those of other regimes and seeds
    _print_effects(experiment_tables.table(results, design.baseline))
    path = folder / f"{Path(options.design).stem.removesuffix('.design')}.jsonl"
    command = f"finemem sweep {Path(options.design).name} --output FOLDER " + (
        "--scheduler ADDRESS" if options.scheduler else f"--jobs {options.jobs}"
    )
    rows.write_rows(results, path, rows.experiment_card(design, results, failures, command))
    print(f"rows: {path}")
    options.result = {"cells": len(results), "failures": len(failures), "rows": path}
    for failure in failures:
        print(f"failed: {_label(failure.cell)}: {failure.error}", file=sys.stderr)
    return EXIT_CODES["failed" if failures else "ok"]


def _check_design_options(options: argparse.Namespace, folder: Path) -> None:
    if options.grid or options.cell or options.set or options.data or options.reuse:
        raise UsageError(
            "--grid, --cell, --set, --data and --reuse are for notebooks; a design names its cells "
            "itself"
        )
    check_output_folder(folder)
    if options.managers is not None:
        check_output_folder(options.managers, "--managers")


def _chosen_cells(options: argparse.Namespace, design: Design) -> list[Cell]:
    """Return the cells of a design to run: those of the chosen regimes, variants and seeds."""
    for name, chosen, known in (
        ("regimes", options.regimes, design.regimes),
        ("variants", options.variants, design.variants),
    ):
        if unknown := {*(chosen or ())} - {*known}:
            raise UsageError(
                f"--{name} has {sorted(unknown)[0]!r}, expected some of {', '.join(known)}"
            )
    if options.collect:
        return []
    return [
        cell
        for cell in design.cells
        if (options.regimes is None or cell.regime in options.regimes)
        and (options.variants is None or cell.variant in options.variants)
        and (options.seeds is None or cell.seed in options.seeds)
    ]


def _print_effects(effects: Sequence[ExperimentRow]) -> None:
    from finemem_lib.experiments.tables import format_difference, format_interval

    print_table(
        [
            ("regime", "variant", "measure", "value", "difference", "seeds"),
            *(
                (
                    row.regime,
                    row.variant,
                    row.measure,
                    format_interval(row),
                    format_difference(row),
                    str(row.seeds),
                )
                for row in effects
            ),
        ]
    )


def _label(cell: Cell) -> str:
    return f"{cell.regime}, {cell.variant}, seed {cell.seed}"


def make_parser(execute: Executor = execute_notebook) -> argparse.ArgumentParser:
    """Return the parser of the command line.

    Args:
        execute: Executes one notebook of `finemem run` and `finemem resume`.
    """
    parser = argparse.ArgumentParser(
        prog="finemem",
        description="The Fine-Mem workbench: notebooks in order, one run folder.",
        epilog="exit codes: 0 ok, 1 failed, 2 bad usage, 3 timeout, 130 interrupted",
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(required=True)
    init.add_command(commands)
    _add_run(commands, execute)
    _add_resume(commands, execute)
    listing.add_command(commands)
    app.add_command(commands)
    clean.add_command(commands)
    diff.add_command(commands)
    export.add_command(commands)
    copying.add_command(commands)
    _add_sweep(commands)
    arena.add_command(commands)
    ledger.add_command(commands)
    prepare.add_commands(commands)
    fetch.add_command(commands)
    pictures.add_command(commands)
    plan.add_command(commands)
    rescore.add_commands(commands)
    report = commands.add_parser("report", help="make the report of a run again")
    report.set_defaults(command=_report_command, last_line=True)
    report.add_argument("run", metavar="RUN")
    _add_figures(report)
    completion.add_command(commands)
    add_examples(commands)
    return parser


def _add_run(commands: Any, execute: Executor) -> None:
    run = commands.add_parser("run", help="run notebooks and make the report")
    run.set_defaults(command=functools.partial(run_command, execute=execute))
    add_arguments(run)
    run.add_argument("--run-id", metavar="ID", help="name of the run (default: time and a number)")
    run.add_argument(
        "--reuse",
        metavar="RUN",
        help="take artefacts that the chosen notebooks do not write from this run",
    )
    run.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="time limit of the whole run"
    )
    _add_execution(run)


def _add_resume(commands: Any, execute: Executor) -> None:
    resume = commands.add_parser("resume", help="continue a run that was stopped or failed")
    resume.set_defaults(command=functools.partial(resume_command, execute=execute))
    resume.add_argument("run", metavar="RUN")
    resume.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"a parameter that a resumed run may change: {', '.join(sorted(RESUMABLE))}",
    )
    resume.add_argument(
        "--timeout", type=_seconds, metavar="SECONDS", help="time limit of the remaining notebooks"
    )
    _add_execution(resume)


def _add_execution(command: argparse.ArgumentParser) -> None:
    """Add the options that `finemem run` and `finemem resume` share."""
    command.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="largest number of notebooks that run in parallel, if none reads what another writes "
        "(default: the number of processors; 1 with a language model)",
    )
    _add_figures(command)
    command.add_argument(
        "--copy-to",
        type=copying.address,
        metavar="ADDRESS",
        help="copy notebooks, report and manifest to s3://BUCKET/PREFIX or gs://BUCKET/PREFIX",
    )


def _add_figures(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--figures",
        nargs="?",
        const="",
        metavar="FOLDER",
        help="export the figures that the notebooks saved (default: figures/RUN)",
    )


def _add_sweep(commands: Any) -> None:
    sweep = commands.add_parser(
        "sweep",
        help="run an experiment, or a notebook with many parameters, cell by cell, in parallel",
        description="A design trains managers. A notebook is run for every point of --grid and "
        "--cell and every seed, each time as a run of its own in FOLDER, after the notebooks that "
        "write what it reads.",
    )
    sweep.set_defaults(command=_sweep_command, last_line=True)
    sweep.add_argument(
        "design",
        metavar="DESIGN|NOTEBOOK",
        help="a file as in notebooks/designs, or a notebook: its path (.ipynb) or number",
    )
    notebook_sweep.add_arguments(sweep)
    sweep.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder with one file per finished cell; finished cells are not run again",
    )
    for option, text in (
        ("--regimes", "regime (may be given again); rows and table hold all that the folder has"),
        ("--variants", "variant (may be given again)"),
    ):
        help_text = f"only cells of this {text}"
        sweep.add_argument(option, action="append", metavar="NAME", help=help_text)
    sweep.add_argument(
        "--seeds",
        type=_whole_numbers,
        metavar="N[,N]",
        help="for a design, only these seeds; for a notebook, the seeds of every point",
    )
    sweep.add_argument(
        "--collect",
        action="store_true",
        help="run nothing; write the rows of the finished cells in the folder",
    )
    sweep.add_argument(
        "--jobs", type=positive, default=2, metavar="N", help="processes (default: 2)"
    )
    sweep.add_argument(
        "--managers",
        type=Path,
        metavar="FOLDER",
        help="folder to save the manager of every newly trained cell in, under the cell's key",
    )
    sweep.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="address of a Dask cluster that runs the cells (extra dask)",
    )


def _whole_numbers(text: str) -> list[int]:
    numbers = text.split(",")
    if not all(number.strip().isdecimal() for number in numbers):
        raise argparse.ArgumentTypeError(
            f"{text!r:.40}, expected whole numbers with commas between them, such as 20,21"
        )
    return [int(number) for number in numbers]


def _seconds(text: str) -> float:
    with contextlib.suppress(ValueError):
        seconds = float(text)
        if 0 < seconds < float("inf"):
            return seconds
    raise argparse.ArgumentTypeError(f"{text!r:.40}, expected a number of seconds above 0")


def main(arguments: Sequence[str] | None = None, execute: Executor = execute_notebook) -> int:
    """Carry out a command line and return its exit code.

    Args:
        arguments: The words after ``finemem``, by default those of this process.
        execute: Executes one notebook of `finemem run` and `finemem resume`.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    parser = make_parser(execute)
    completion.complete(parser)
    options = parser.parse_args(arguments)
    options.command_line, options.result = arguments, {}
    begun = time.monotonic()
    try:
        code = int(options.command(options))
    except (UsageError, NoWorkbenchError) as error:
        print(f"finemem: {error}", file=sys.stderr)
        return BAD_USAGE
    except OSError as error:
        print(f"failed: {error.strerror or error}", file=sys.stderr)
        code = EXIT_CODES["failed"]
    except KeyboardInterrupt:
        code = EXIT_CODES["interrupted"]
    if "last_line" in options:
        print(result_line(code, **options.result, seconds=f"{time.monotonic() - begun:.0f}"))
    return code
