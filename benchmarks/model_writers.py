"""Systems whose memory SmolLM2-135M-Instruct writes, next to the same systems without a model.

The systems play the first excerpts of `data/real/held_out.parquet` with a memory of `BUDGET`
tokens, before the extractive reader. Rows hold scores and counts, and no text of the excerpts; see
`finemem_lib.evaluation.model_writers`. The files are written anew after every system, so that a run
that is stopped leaves those that are done.

    python benchmarks/model_writers.py [--quick] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from finemem_lib.baselines.systems import SYSTEMS as ALL_SYSTEMS
from finemem_lib.data.memalpha import load_instances
from finemem_lib.evaluation.comparison import play_systems
from finemem_lib.evaluation.model_writers import RULES, Play, WriterRow, writer_rows
from finemem_lib.evaluation.rows import write_rows
from finemem_lib.evaluation.tables import ALL, BootstrapSettings
from finemem_lib.readers.chat import Chat
from finemem_lib.readers.extractive import reader_for
from finemem_lib.readers.roles import Models, load_roles
from finemem_lib.trajectory import Instance
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import git_state, hardware, versions, workbench_root

DATA = "data/real/held_out.parquet"
INSTANCES = 8
BUDGET = 100
SYSTEMS = ("memagent", "mem1")
"""By default; about four CPU minutes each on one core. `POSSIBLE` names all."""

POSSIBLE = [name for name, one in ALL_SYSTEMS.items() if one.calls and one.needs != "writer"]
"""The systems that play with a writer and without one."""


def played(method: str, instances: Sequence[Instance], chat: Chat | None, seed: int) -> Play:
    """Return what a system did with a language model as its writer, or without one."""
    before = chat.usage.unanswered if chat else 0
    begun = time.process_time()
    [one] = play_systems(
        [method], instances, reader_for(instances), budgets=(BUDGET,), chat=chat, seed=seed
    ).values()
    seconds = time.process_time() - begun
    return Play(one.trajectories, seconds, chat.usage.unanswered - before if chat else 0)


def show(row: WriterRow) -> None:
    """Print the means of a system under one writer."""
    less = ""
    if row.difference is not None:
        less = f", {row.difference:+.3f} [{row.difference_low:+.3f}, {row.difference_high:+.3f}]"
    print(
        f"{row.method:12} {row.writer:8} {row.score:.3f} [{row.low:.3f}, {row.high:.3f}]{less}; "
        f"memory {row.memory_tokens:.0f} tokens, changed at {row.changed:.1f} of {row.steps:.0f} "
        f"steps, {row.refused:.1f} operations refused, {row.unanswered} calls unanswered, "
        f"{row.seconds:.1f} CPU seconds per instance",
        flush=True,
    )


def write_card(
    path: Path,
    models: Models,
    systems: Sequence[str],
    rows: Sequence[WriterRow],
    seed: int,
    git: Mapping[str, Any],
) -> None:
    """Write the card of the rows: how they were made, and from what."""
    bootstrap = BootstrapSettings(seed=seed)
    means = [row for row in rows if row.instance == ALL]
    data = (workbench_root() / DATA).read_bytes()
    write_json(
        path,
        {
            "command": " ".join(["python", "benchmarks/model_writers.py", *sys.argv[1:]]),
            "seed": seed,
            "systems": systems,
            "instances": means[0].instances,
            "budget": BUDGET,
            "reader": "extractive",
            "models": models.record(),
            "data_sha256": {DATA: hashlib.sha256(data).hexdigest()},
            "interval": f"95 %, percentile bootstrap over instances, {bootstrap.num_resamples} "
            "resamples (evaluation.tables); differences are paired by question",
            "cpu_seconds": round(sum(row.seconds * row.instances for row in means)),
            "hardware": f"{hardware()}, one thread",
            "git": git,
            "versions": versions(),
        },
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two instances")
    parser.add_argument(
        "--systems", nargs="+", default=SYSTEMS, choices=POSSIBLE, help="which systems play"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--models",
        type=Path,
        default=workbench_root() / "notebooks/models/smollm2-writer.yaml",
        help="file that names the role writer",
    )
    parser.add_argument("--output", type=Path, help="also write the rows, to a new file")
    options = parser.parse_args()
    if options.output and options.output.suffix != ".jsonl":
        parser.error(f"--output is {options.output}, expected a name that ends in .jsonl")
    for path in (options.output, options.output.with_suffix(".json")) if options.output else ():
        if path.exists():
            parser.error(f"{path} exists; name a new file or remove it")
    torch.set_num_threads(1)
    models = Models(load_roles(options.models))
    if (chat := models.writer()) is None:
        parser.error(f"{options.models} names no writer; give a file of models with that role")
    limit = 2 if options.quick else INSTANCES
    instances = load_instances(workbench_root() / DATA, limit=limit).instances
    rows: list[WriterRow] = []
    git = git_state(workbench_root())  # before the rows, which are new files of the checkout
    for number, method in enumerate(options.systems, 1):
        plays = {
            name: played(method, instances, writer, options.seed)
            for name, writer in ((RULES, None), (Path(chat.name).name, chat))
        }
        found = writer_rows(method, plays, BootstrapSettings(seed=options.seed))
        rows += found
        for row in found:
            if row.instance == ALL:
                show(row)
        if options.output:
            write_rows(rows, options.output)
            card = options.output.with_suffix(".json")
            write_card(card, models, options.systems[:number], rows, options.seed, git)


if __name__ == "__main__":
    main()
