"""`finemem completion`: shell completion of commands, options, runs, profiles and parameters."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from finemem_lib.runs.notebooks import notebooks_in
from finemem_lib.runs.run import runs_folder
from finemem_lib.util.console import EXIT_CODES, UsageError
from finemem_lib.util.provenance import workbench_root

SHELLS = ("bash", "zsh", "fish")


def add_command(commands: Any) -> None:
    """Add `finemem completion` to the command line."""
    command = commands.add_parser(
        "completion",
        help="print the lines that make a shell complete finemem",
        description="Completes commands, options, runs, profiles, numbers of notebooks and "
        "parameters. Put the example's line into the start file of your shell.",
    )
    command.set_defaults(command=_completion_command)
    command.add_argument("shell", choices=SHELLS)


def _completion_command(options: argparse.Namespace) -> int:
    """Print the completion code for a shell."""
    try:
        from argcomplete.shell_integration import shellcode
    except ModuleNotFoundError as error:
        raise UsageError(
            "completion needs argcomplete, which is not installed; run `make setup`, or pip "
            "install argcomplete"
        ) from error
    print(shellcode(["finemem"], shell=options.shell))
    return EXIT_CODES["ok"]


def complete(parser: argparse.ArgumentParser) -> None:
    """If the shell asks for completions, print them and end the process.

    Args:
        parser: The command line.
    """
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        _add_completers(parser)
        argcomplete.autocomplete(parser)


def _add_completers(parser: argparse.ArgumentParser) -> None:
    """Give arguments their sources of completions; argcomplete itself completes files."""
    sources: dict[str, Callable[[], list[str]]] = {
        "run": run_ids,
        "reuse": run_ids,
        "first": run_ids,
        "second": run_ids,
        "profile": profiles,
        "set": parameters,
        "notebooks": numbers,
    }
    for command in _subparsers(parser):
        for action in command._actions:  # argparse has no public attribute for them
            if action.dest in sources and (action.option_strings or action.dest != "notebooks"):
                action.completer = _completer(sources[action.dest])  # type: ignore[attr-defined]


def _completer(words: Callable[[], list[str]]) -> Callable[..., list[str]]:
    """Return a function that argcomplete can call, with the signature that it expects."""
    return lambda **_: words()


def _subparsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            yield from action.choices.values()


def run_ids() -> list[str]:
    """Return the names of all runs."""
    return sorted(path.parent.name for path in runs_folder().glob("[!.]*/manifest.json"))


def profiles() -> list[str]:
    """Return the names of the profiles."""
    return sorted(path.stem for path in _notebooks().glob("profiles/*.yaml"))


def numbers() -> list[str]:
    """Return the numbers of the notebooks."""
    return [f"{one.order:02}" for one in notebooks_in(_notebooks()) if one.order]


def parameters() -> list[str]:
    """Return the names of all parameters with "=", with and without the number of a notebook."""
    words: set[str] = set()
    for one in notebooks_in(_notebooks()):
        names = [f"{name}=" for name in one.model().model_fields if name != "run_id"]
        words.update(names)
        words.update(f"{one.order:02}.{name}" for name in names if one.order)
    return sorted(words)


def _notebooks() -> Path:
    return workbench_root() / "notebooks"
