"""Examples for every command, shown by `--help`."""

from __future__ import annotations

import argparse

EXAMPLES = {
    "init": ["finemem init my-workbench"],
    "run": [
        "finemem run --set updates=20 --notebooks 04,05",
        "finemem run --profile real --data data/real/train.parquet",
        "finemem run --copy-to s3://results/nightly",
    ],
    "resume": ["finemem resume 20260101-020000-1a2b --timeout 3600"],
    "list": ["finemem list", "finemem list --json"],
    "app": ["finemem app", "finemem app 20260101-020000-1a2b --projector"],
    "clean": ["finemem clean --keep 10 --dry-run", "finemem clean --keep 10"],
    "diff": [
        "finemem diff 20260101-020000-1a2b 20260102-020000-3c4d",
        "finemem diff baseline tonight --fail-over 5% --ignore 'seconds_*'",
    ],
    "copy": ["finemem copy 20260101-020000-1a2b s3://results/nightly"],
    "export": [
        "finemem export 20260101-020000-1a2b --to inspect",
        "finemem export 20260101-020000-1a2b --to trackio --python viewer/bin/python",
    ],
    "sweep": [
        "finemem sweep 03 --grid beta=0.25,0.5 --seeds 0,1,2 --output sweeps/beta",
        "finemem sweep notebooks/designs/schemes.yaml --output sweeps/schemes --jobs 2",
    ],
    "arena": ["finemem arena", "finemem arena --rows sweeps/arena/arena.jsonl --json"],
    "ledger": ["finemem ledger --check"],
    "questions": [
        "finemem questions --data data/real/train.parquet --output sweeps/questions --k 5"
    ],
    "build": ["finemem build squad train-v1.1.json --output squad.parquet"],
    "fetch": ["finemem fetch smollm2"],
    "pictures": ["finemem pictures notebooks/01_question_generation.ipynb"],
    "plan": [
        "finemem plan --profile qwen3-4b-24gb --data data/real/train.parquet --card 'RTX 4090'"
    ],
    "report": ["finemem report 20260101-020000-1a2b --figures"],
    "rescore": ["finemem rescore 20260101-020000-1a2b --judge notebooks/models/smollm2.yaml"],
    "recredit": ["finemem recredit 20260101-020000-1a2b --rule eara --rule step-loo"],
    "completion": ['eval "$(finemem completion bash)"'],
}
"""Command lines by the name of their command."""


class ExampleFormatter(argparse.HelpFormatter):
    """Keeps the line breaks of texts that begin with "example", and wraps all others."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        if text.startswith("example"):
            return "\n".join(f"{indent}{line}" for line in text.splitlines())
        return super()._fill_text(text, width, indent)


def add_examples(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Append the examples to the help of every command.

    Args:
        commands: The subparsers of `finemem`.
    """
    for name, command in commands.choices.items():
        lines = EXAMPLES[name]
        title = "example:" if len(lines) == 1 else "examples:"
        command.epilog = "\n  ".join([title, *lines])
        command.formatter_class = ExampleFormatter
