"""Commands that make data: chunk questions before training, and instances from public raw sets.

Options are checked before the first model call. An interrupted command keeps its questions, and the
same command continues from them.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from finemem_lib.build.builders import RULES, build_instances
from finemem_lib.build.published_sizes import as_markdown, size_table
from finemem_lib.data.leaks import Leak, leaks
from finemem_lib.data.memalpha import load_instances, save_instances
from finemem_lib.data.question_store import (
    Recipe,
    audit_of,
    prepare_questions,
    recipe_of,
    stored_rows,
)
from finemem_lib.data.questions import audit_counts
from finemem_lib.readers.chat import ModelError
from finemem_lib.readers.roles import Models, load_roles
from finemem_lib.trajectory import Instance
from finemem_lib.util.console import (
    EXIT_CODES,
    StepLog,
    UsageError,
    check_output_folder,
    interruptible,
    plain,
    positive,
    print_table,
)

SHOWN_LEAKS = 3
SHOWN_PROBLEMS = 20
SHOWN_LETTERS = 80


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finemem questions` and `finemem build` to the command line."""
    _add_questions(commands)
    _add_build(commands)


def _add_questions(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    questions = commands.add_parser("questions", help="make chunk questions ahead of training")
    questions.set_defaults(command=_questions_command, last_line=True)
    questions.add_argument(
        "--data",
        nargs="+",
        action="extend",
        required=True,
        metavar="PATH",
        help="files of instances, or data sets on the hub as owner/name or owner/name@COMMIT",
    )
    questions.add_argument(
        "--split", default="test", help="split of data sets on the hub (default: test)"
    )
    questions.add_argument(
        "--output",
        required=True,
        metavar="FOLDER",
        help="folder of the questions; questions that it holds are not made again",
    )
    questions.add_argument(
        "--k",
        type=positive,
        default=5,
        metavar="N",
        help="largest number of questions per chunk (default: 5)",
    )
    questions.add_argument("--seed", type=int, default=0, metavar="N")
    questions.add_argument(
        "--max-chunk-tokens",
        type=positive,
        default=4096,
        metavar="N",
        help="a longer chunk is cut, as notebook 01 cuts it (default: 4096)",
    )
    questions.add_argument(
        "--models",
        metavar="FILE",
        help="YAML with the settings of the language models to ask as teacher "
        "and verifier (default: no model)",
    )
    questions.add_argument(
        "--training",
        nargs="+",
        action="extend",
        default=[],
        metavar="PATH",
        help="training instances, to report texts and questions that both sets "
        "contain; of a hub data set the split train",
    )
    _add_on_error(questions)


def _add_build(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    build = commands.add_parser("build", help="make instances from a public raw set")
    build.set_defaults(command=_build_command, last_line=True)
    build.add_argument("raw_set", metavar="SET", help=", ".join(RULES))
    build.add_argument("files", nargs="+", metavar="FILE", help="files of the raw set")
    build.add_argument(
        "--asked",
        nargs="+",
        action="extend",
        default=[],
        metavar="FILE",
        help="files of the questions, if they are separate: PerLTQA's questions, a test half",
    )
    build.add_argument("--output", required=True, metavar="X.parquet", help="new file to write")
    build.add_argument(
        "--instances", type=positive, metavar="N", help="largest number of instances"
    )
    build.add_argument("--seed", type=int, default=0, metavar="N")
    _add_on_error(build)


def _add_on_error(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip"),
        default="raise",
        help="what to do with a broken row (default: raise)",
    )


def _questions_command(options: argparse.Namespace) -> int:
    """Make the missing chunk questions of a folder, print their audit, and return the exit code."""
    folder = Path(options.output)
    check_output_folder(folder)
    try:
        models = Models(load_roles(Path(options.models), folder) if options.models else None)
        instances = _loaded(options.data, options.split, options.on_error, options.max_chunk_tokens)
        training = _loaded(options.training, "train", options.on_error)
        teacher, verifier = models.teacher(options.k), models.verifier(instances)
    except (ValueError, ImportError, OSError) as error:
        raise UsageError(plain(str(error))) from error
    recipe = recipe_of(teacher, verifier, options.k, options.seed)
    chunks = sum(len(instance.chunks) for instance in instances)
    print(
        f"{len(instances)} instances, {chunks} chunks; teacher {teacher.name}, verifier "
        f"{verifier.name}",
        flush=True,
    )
    finished = 0

    def say(done: int, total: int) -> None:
        nonlocal finished
        finished = done
        log(done, total, plain(instances[done - 1].instance_id)[:SHOWN_LETTERS])

    try:
        with interruptible(once=False), StepLog() as log:
            asked = prepare_questions(
                instances, folder, teacher, verifier, options.k, options.seed, progress=say
            )
        _print_audit(asked, folder, recipe)
        _print_leaks(leaks(asked, training), len(training))
    except ValueError as error:
        raise UsageError(plain(str(error))) from error
    except (ModelError, OSError, KeyboardInterrupt) as error:
        interrupted = isinstance(error, KeyboardInterrupt)
        print(
            "interrupted" if interrupted else f"failed: {plain(str(error))}",
            f"; {finished} of {len(instances)} instances are done and kept in {folder}, the same "
            "command goes on from them",
            sep="",
            file=sys.stderr,
        )
        if interrupted:
            raise
        return EXIT_CODES["failed"]
    finally:
        _print_usage(models)
        models.close()
    return EXIT_CODES["ok"]


def _build_command(options: argparse.Namespace) -> int:
    """Make instances from a raw set, and compare them with published sizes."""
    path = Path(options.output)
    if path.suffix != ".parquet":
        raise UsageError(
            f"--output {path}: suffix {path.suffix!r}, expected .parquet; rename the file"
        )
    if path.exists():
        raise UsageError(
            f"--output {path} exists and is kept; give another path or remove it first"
        )
    check_output_folder(path.parent)
    try:
        built = build_instances(
            options.raw_set,
            options.files,
            options.asked,
            num_instances=options.instances,
            seed=options.seed,
            on_error=options.on_error,
        )
    except ValueError as error:
        raise UsageError(plain(str(error))) from error
    _print_problems(built.problems)
    with interruptible():
        save_instances(built.instances, path)
    print(as_markdown(size_table(built.instances)))
    print(f"written: {path}")
    return EXIT_CODES["ok"]


def _loaded(
    sources: Sequence[str], split: str, on_error: Any, max_chunk_tokens: int | None = None
) -> list[Instance]:
    instances: list[Instance] = []
    for source in sources:
        loaded = load_instances(
            source, split=split, on_error=on_error, max_chunk_tokens=max_chunk_tokens
        )
        instances += loaded.instances
        _print_problems(loaded.problems)
        if loaded.commit:
            print(f"{source}: commit {loaded.commit}")
    return instances


def _print_problems(problems: Sequence[str]) -> None:
    for problem in problems[:SHOWN_PROBLEMS]:
        print(plain(problem), file=sys.stderr)
    if len(problems) > SHOWN_PROBLEMS:
        print(f"and {len(problems) - SHOWN_PROBLEMS} more like these", file=sys.stderr)


def _print_audit(instances: Sequence[Instance], folder: Path, recipe: Recipe) -> None:
    asked = [questions for instance in instances for questions in instance.chunk_questions or ()]
    print(f"{sum(map(len, asked))} questions on {len(asked)} chunks, recipe {recipe.key}")
    named = dataclasses.asdict(recipe)
    audit = audit_of([row for row in stored_rows(folder) if named.items() <= row.items()])
    total: Counter[str] = Counter()
    for counts in audit_counts(audit, max((row.step for row in audit), default=0)):
        total.update(counts)
    del total["step"]
    print_table(
        [
            (f"all of this recipe in {folder}", "number"),
            *((what, str(number)) for what, number in total.items()),
        ]
    )


def _print_leaks(found: Sequence[Leak], num_training: int) -> None:
    compared = f"with {num_training} of training" if num_training else "no training to compare"
    counts = Counter(leak.kind for leak in found)
    summary = ", ".join(f"{number} {kind}" for kind, number in counts.items())
    print(f"leaks ({compared}): {summary or 'none'}")
    print_table(
        [
            ("leak, for example", "instance", "step", "share", "text"),
            *(
                (
                    kind,
                    plain(leak.instance_id)[:SHOWN_LETTERS],
                    str(leak.step or ""),
                    f"{leak.share:.2f}",
                    plain(leak.text)[:SHOWN_LETTERS],
                )
                for kind in counts
                for leak in [leak for leak in found if leak.kind == kind][:SHOWN_LEAKS]
            ),
        ]
    )


def _print_usage(models: Models) -> None:
    rows = [
        {"asked as": " and ".join(entry["roles"]), "model": entry["model"]}
        | {name.replace("_", " "): str(round(value, 6)) for name, value in entry["usage"].items()}
        for entry in models.record()
    ]
    if rows:
        print_table([list(rows[0]), *(list(row.values()) for row in rows)])
