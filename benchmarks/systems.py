"""Systems against the length of the stream, and revised facts, without a language model.

Writes `stream_length.jsonl` and `revisions.jsonl` with a card each. Lengths: planted streams of
`LENGTHS` chunks, and with DATA growing heads of the longest file there. Revisions: see
`finemem_lib.evaluation.revisions`.

    python benchmarks/systems.py [--data FOLDER] [--quick] [--only NAME] --output FOLDER
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from finemem_lib.data.memalpha import load_instances
from finemem_lib.evaluation import revisions, stream_length
from finemem_lib.evaluation.rows import write_rows
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import git_state, hardware, versions, workbench_root

LENGTHS = (6, 24, 96, 240)
STREAMS = 8
BUDGET = 500
LONG = "long_hotpot_haystack_420k.jsonl"
SHARES = (0.05, 0.2, 1.0)
LONG_BUDGET = 20_000

PLANTED_SYSTEMS = (
    "long-context-tail",
    "rag-top2",
    "insert-all",
    "memory-r1",
    "memagent",
    "memagent-privileged",
    "mem1",
    "mirix-proxy",
    "a-mem-proxy",
    "o-mem-proxy",
)
LONG_SYSTEMS = ("long-context-tail", "rag-top2", "insert-all", "memagent", "mem1")


def card(kind: str, begun: float, **settings: Any) -> dict[str, Any]:
    """Return what a reader of rows must know of how they were made."""
    return {
        "kind": kind,
        "settings": settings,
        "git": git_state(workbench_root()),
        "hardware": hardware(),
        "versions": versions(),
        "cpu_seconds": round(time.process_time() - begun, 1),
    }


def lengths(output: Path, data: Path | None, quick: bool, seed: int) -> None:
    begun = time.process_time()
    chosen = LENGTHS[:2] if quick else LENGTHS
    count = 2 if quick else STREAMS
    rows = stream_length.planted_lengths(PLANTED_SYSTEMS, chosen, count, (None, BUDGET), seed)
    if data is not None:
        [instance] = load_instances(data / LONG).instances
        shares = SHARES[:1] if quick else SHARES
        rows += stream_length.head_lengths(
            LONG_SYSTEMS, instance, shares, (None, LONG_BUDGET), seed
        )
    write_rows(rows, output / "stream_length.jsonl")
    write_json(
        output / "stream_length.json",
        card(
            "stream length",
            begun,
            lengths=list(chosen),
            streams=count,
            budgets=[None, BUDGET],
            file=LONG if data else None,
            shares=list(SHARES),
            file_budgets=[None, LONG_BUDGET],
            seed=seed,
        ),
    )


def revised(output: Path, quick: bool, seed: int) -> None:
    begun = time.process_time()
    count = 2 if quick else revisions.STREAMS
    rows = revisions.revision_rows(revisions.MANAGERS, count, revisions.BUDGETS, seed)
    write_rows(rows, output / "revisions.jsonl")
    write_json(
        output / "revisions.json",
        card(
            "revisions",
            begun,
            streams=count,
            managers=list(revisions.MANAGERS),
            budgets=list(revisions.BUDGETS),
            seed=seed,
        ),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, metavar="FOLDER", help="folder with the long file")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", choices=("lengths", "revisions"))
    parser.add_argument("--quick", action="store_true", help="few streams, to try it out")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if options.only != "revisions":
        lengths(options.output, options.data, options.quick, options.seed)
    if options.only != "lengths":
        revised(options.output, options.quick, options.seed)


if __name__ == "__main__":
    main()
