"""`finemem rescore` and `finemem recredit`: score and credit a finished run again without rollouts.

Both read the trajectories saved by the notebooks of the run, and write a new folder in the run;
nothing is replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.runs.artefacts import ARTEFACTS, READERS
from finemem_lib.runs.run import run_folder, written_entry
from finemem_lib.trajectory import Trajectory, read_jsonl, write_jsonl
from finemem_lib.util.console import EXIT_CODES, UsageError, UsageErrors, print_table
from finemem_lib.util.files import sha256, write_json, written_beside
from finemem_lib.util.provenance import code_root, git_state, versions

if TYPE_CHECKING:
    from finemem_lib.evaluation.rescoring import ScoreChange
    from finemem_lib.readers.roles import Models

PLAYED = tuple(name for name, one in ARTEFACTS.items() if one.kind == "trajectories")
"""The artefacts that contain trajectories."""

Found = dict[str, list[Trajectory]]


def add_commands(commands: Any) -> None:
    """Add `finemem rescore` and `finemem recredit` to the command line."""
    rescore = commands.add_parser("rescore", help="score the answers of a finished run again")
    rescore.set_defaults(command=_rescore_command, last_line=True)
    rescore.add_argument(
        "--judge",
        type=Path,
        metavar="FILE",
        help="YAML file whose role judge scores what no metric can (default: metrics only)",
    )
    rescore.add_argument(
        "--every", action="store_true", help="the judge scores all answers, also those of metrics"
    )
    recredit = commands.add_parser("recredit", help="credit the steps of a finished run again")
    recredit.set_defaults(command=_recredit_command, last_line=True)
    recredit.add_argument(
        "--rule",
        action="append",
        required=True,
        metavar="NAME",
        help="a credit rule, such as eara or step-loo (may be given again)",
    )
    recredit.add_argument(
        "--models",
        type=Path,
        metavar="FILE",
        help="YAML file with the reader that answered, for rules that read again (default: the "
        "extractive reader)",
    )
    recredit.add_argument(
        "--scores", metavar="NAME", help="credit by the scores that `finemem rescore` kept as NAME"
    )
    for command in (rescore, recredit):
        add_run_and_artefact(command)
        command.add_argument(
            "--name",
            metavar="NAME",
            help="name of the folder of results (default: from the options)",
        )


def add_run_and_artefact(command: argparse.ArgumentParser) -> None:
    """Add the arguments that select the trajectories of a run.

    Args:
        command: The parser of a command.
    """
    command.add_argument("run", metavar="RUN")
    command.add_argument(
        "--artefact",
        action="append",
        choices=PLAYED,
        metavar="NAME",
        help=f"only this one of {', '.join(PLAYED)} (default: all that the run has)",
    )


def _rescore_command(options: argparse.Namespace) -> int:
    """Score the answers of a run again and print what changed."""
    from finemem_lib.evaluation.rescoring import rescored, score_changes
    from finemem_lib.readers.chat import ModelError

    folder = existing_run(options.run)
    if options.every and options.judge is None:
        raise UsageError("--every is for a judge; name its file with --judge")
    name = options.name or (options.judge.stem if options.judge else "metrics")
    target = new_results(folder, "rescored", name)
    found = played(folder, options.artefact)
    models = _models(options.judge, "judge", folder) if options.judge else None
    judge = models.judge() if models else None
    try:
        after = {one: rescored(some, judge, options.every) for one, some in found.items()}
    except ModelError as error:
        raise UsageError(
            f"the judge could not be asked ({error}); what it answered is kept, and the same "
            "command goes on from it"
        ) from error
    finally:
        if models:
            models.close()
    changes = {one: score_changes(found[one], after[one]) for one in found}
    card = results_card(options, folder, found) | {
        "judge": json.loads(judge.settings) if judge else None,
        "changes": {one: [asdict(row) for row in some] for one, some in changes.items()},
    }
    _write(
        target,
        {f"{one}.jsonl": write_jsonl(some) for one, some in after.items()},
        card,
    )
    _print_changes(changes)
    print(f"scores: {target}")
    return EXIT_CODES["ok"]


def _print_changes(changes: Mapping[str, Sequence[ScoreChange]]) -> None:
    """Print the scores before and after, by artefact, manager and data source."""
    print_table(
        [
            (
                "artefact",
                "manager",
                "data source",
                "questions",
                "before",
                "after",
                "changed",
                "unscored",
            ),
            *(
                (
                    one,
                    row.manager,
                    row.data_source,
                    str(row.questions),
                    _number(row.before),
                    _number(row.after),
                    str(row.changed),
                    f"{row.unscored_before} -> {row.unscored_after}",
                )
                for one, some in changes.items()
                for row in some
            ),
        ]
    )


def _recredit_command(options: argparse.Namespace) -> int:
    """Credit the steps of a run again and print what each rule gave and cost."""
    from finemem_lib.credit.rules import RULES
    from finemem_lib.evaluation.rescoring import credit_summary, recredited
    from finemem_lib.readers.extractive import reader_for

    folder = existing_run(options.run)
    if unknown := [rule for rule in options.rule if rule not in RULES]:
        raise UsageError(f"--rule is {unknown[0]!r}, expected one of {', '.join(RULES)}")
    rules = list(dict.fromkeys(options.rule))
    scores = [options.scores] if options.scores else []
    target = new_results(folder, "recredited", options.name or "+".join([*rules, *scores]))
    found = played(folder, options.artefact, options.scores)
    models = _models(options.models, "reader", folder) if options.models else None
    rows, table = [], []
    for artefact, some in found.items():
        agent = models.reader([]) if models else reader_for(some)
        for rule in rules:
            try:
                done = recredited(some, rule, agent)
            except ValueError as error:
                raise UsageError(
                    f"--rule {rule}: {artefact} of run {folder.name}: {error}; choose another rule "
                    "or artefact, or name the reader that answered with --models"
                ) from error
            rows += [{"artefact": artefact, **asdict(row)} for row in done.rows]
            table += [
                (
                    artefact,
                    rule,
                    name,
                    str(steps),
                    str(missing),
                    _number(mean),
                    f"{done.calls_made} of {done.calls_asked}",
                )
                for name, (steps, missing, mean) in credit_summary(done.rows).items()
            ]
    if models:
        models.close()
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    card = results_card(options, folder, found) | {"rules": rules, "scores": options.scores}
    _write(target, {"credit.jsonl": lines}, card)
    header = ("artefact", "rule", "manager", "steps", "without", "mean credit", "calls made")
    print_table([header, *table])
    print(f"credit: {target}")
    return EXIT_CODES["ok"]


def existing_run(name: str) -> Path:
    """Return the folder of a run.

    Args:
        name: The run's id.

    Raises:
        UsageError: there is no such run.
    """
    with UsageErrors(ValueError):
        folder = run_folder(name)
    if not folder.is_dir():
        raise UsageError(
            f"there is no run {name!r} in {folder.parent}; `finemem list` shows the existing runs"
        )
    return folder


def played(folder: Path, chosen: Sequence[str] | None = None, scores: str | None = None) -> Found:
    """Return the trajectories of a run by artefact, as played or as scored again.

    Args:
        folder: Folder of the run.
        chosen: Names of artefacts, `None` for all that the run has.
        scores: Name of the scores that `finemem rescore` kept.

    Raises:
        UsageError: the run lacks them, or they cannot be read.
    """
    if scores is not None and not (folder / "rescored" / scores).is_dir():
        there = sorted(path.name for path in (folder / "rescored").glob("[!.]*/"))
        raise UsageError(
            f"--scores is {scores!r}, which run {folder.name} does not have (it has "
            f"{', '.join(there) or 'none'}); make them with `finemem rescore {folder.name}`"
        )
    found: Found = {}
    for name in chosen or PLAYED:
        entry = written_entry(folder, name)
        again = folder / "rescored" / str(scores) / f"{name}.jsonl"
        if entry is None or (scores is not None and not again.is_file()):
            if chosen:
                raise UsageError(
                    f"run {folder.name} has no {name}; leave --artefact out to take what it has, "
                    "or run the notebook that writes it"
                )
            continue
        found[name] = read_artefact(folder, name, again if scores is not None else None)
    if not found:
        raise UsageError(
            f"run {folder.name} has no trajectories ({', '.join(PLAYED)}); run notebook 02 or 06 "
            "in it first"
        )
    return found


def read_artefact(folder: Path, name: str, scored: Path | None = None) -> Any:
    """Return an artefact of a run.

    Args:
        folder: Folder of the run.
        name: Name of the artefact.
        scored: File of the trajectories with other scores; `None` for the artefact's own file.

    Raises:
        UsageError: the run lacks it, or it cannot be read.
    """
    if (entry := written_entry(folder, name)) is None:
        raise UsageError(
            f"run {folder.name} has no {name}; run the notebook that writes it in it first"
        )
    artefact = ARTEFACTS[name]
    try:
        if scored is not None:
            return read_jsonl(Trajectory, scored.read_text(encoding="utf-8"))
        return READERS[artefact.kind](folder / artefact.file)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{name} of run {folder.name} cannot be read ({error}); run notebook "
            f"{entry['notebook']} again"
        ) from error


def _models(path: Path, role: str, folder: Path) -> Models:
    """Return the language models in a file, which must contain the given role."""
    from finemem_lib.readers.roles import Models, check_roles, load_roles

    with UsageErrors(ValueError, ImportError):
        check_roles(path)
        roles = load_roles(path, folder)
    if role not in roles:
        raise UsageError(
            f"{path} names no {role}; add the role {role} with a model that can be asked "
            "(notebooks/models/server.yaml shows how)"
        )
    return Models(roles)


def new_results(folder: Path, kind: str, name: str) -> Path:
    """Return the path of a new folder of results.

    Args:
        folder: Folder of the run.
        kind: Name of the parent folder.
        name: Name of the new folder.

    Raises:
        UsageError: the folder exists, or the name cannot be that of a folder.
    """
    if not name or "/" in name or name.startswith("."):
        raise UsageError(
            f"--name is {name!r}, expected a folder name without / that does not begin with ."
        )
    target = folder / kind / name
    if target.exists():
        raise UsageError(f"{target} exists and is kept; give another --name, or remove it")
    return target


def results_card(options: argparse.Namespace, folder: Path, found: Found) -> dict[str, Any]:
    """Return the card of results: command, run, inputs, commit and versions.

    Args:
        options: The command line.
        folder: Folder of the run.
        found: The trajectories that were read.
    """
    return {
        "command": ["finemem", *getattr(options, "command_line", [])],
        "run": folder.name,
        "read": {name: sha256(folder / ARTEFACTS[name].file) for name in found},
        "git": git_state(code_root()),
        "versions": versions(),
    }


def _write(target: Path, texts: dict[str, str], card: dict[str, Any]) -> None:
    """Write the results and their card to a new folder, atomically."""
    with written_beside(target) as beside:
        beside.mkdir()
        for name, text in texts.items():
            (beside / name).write_text(text, encoding="utf-8")
        write_json(beside / "how.json", card)


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.4f}"
