"""Every baseline and scripted manager on files of real text, with the extractive reader.

Of each file at most `INSTANCES` instances are read, and of each at most `QUESTIONS` questions are
asked, drawn by the seed. The systems keep their own limits, and then all have a memory of `BUDGET`
tokens. A question is answered from at most 7 items: 7 of a flat memory, or the core and 3 of each
other store; a published system keeps its own retrieval. Rows hold scores, lengths and counts, and
no text of the files; see `finemem_lib.evaluation.real_systems`. Dense and hybrid retrieval are
compared in `benchmarks/retrievers.py`.

A finished part is kept in `--work` and not played again at the same commit, with the same settings.

    python benchmarks/real_systems.py DATA [--quick] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from finemem_lib.baselines.systems import make_system
from finemem_lib.data.memalpha import load_instances
from finemem_lib.data.questions import sampled_questions
from finemem_lib.evaluation.comparison import play_systems
from finemem_lib.evaluation.controls import play_controls
from finemem_lib.evaluation.real_systems import (
    BASELINE,
    Part,
    SystemRow,
    accuracy_frame,
    part_of,
    system_rows,
)
from finemem_lib.evaluation.rows import write_rows
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.readers.extractive import reader_for
from finemem_lib.trajectory import Instance
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import git_state, hardware, versions, workbench_root

FILES = (
    "squad",
    "hotpotqa",
    "locomo",
    "clinc150",
    "banking77",
    "nlu",
    "trec_coarse",
    "trec_fine",
    "csabstruct",
    "squality",
    "qmsum",
)
INSTANCES, QUESTIONS = 6, 10
BUDGET = 2000

FLAT = (
    "long-context-tail",
    "long-context-head",
    "rag-top2",
    "memagent",
    "memagent-privileged",
    "mem1",
    "memory-r1",
    "mirix-proxy",
    "a-mem-proxy",
    "o-mem-proxy",
    "raw-chunks",
    "insert-all",
    "keyword",
    "random",
    "flat-notes",
)
LAYERED = ("layered-notes", "layered-insert-all", "layered-random")


def instances_of(data: Path, file: str, quick: bool, seed: int) -> list[Instance]:
    """Return the first instances of a file, with at most `QUESTIONS` questions each."""
    loaded = load_instances(data / f"{file}.jsonl", limit=2 if quick else INSTANCES).instances
    return [
        sampled_questions(one, min(1.0, QUESTIONS / len(one.questions)), seed) for one in loaded
    ]


def settings_of(method: str) -> RolloutSettings:
    """Return the rollout settings: 7 items of a flat memory, 3 of each store of a layered one."""
    layered = method in LAYERED
    return RolloutSettings(
        num_generations=1,
        ask_chunk_questions=False,
        top_k=3 if layered else 7,
        memory="layered" if layered else "flat",
    )


def played(
    file: str, instances: Sequence[Instance], method: str, budget: int | None, seed: int
) -> list[Part]:
    """Return the part of one method, or of the controls."""
    agent = reader_for(instances)
    if method == "controls":
        stand_in = make_system(BASELINE, settings_of(BASELINE), budget=budget)
        found = play_controls(instances, stand_in, agent, seed)
        return [part_of(name, budget, file, some) for name, some in found.items()]
    [one] = play_systems(
        [method],
        instances,
        agent,
        rollout=settings_of(method),
        budgets=(budget,),
        seed=seed,
    ).values()
    return [part_of(method, budget, file, one.trajectories)]


def kept(path: Path, made: Any, play: Callable[[], list[Part]]) -> tuple[list[Part], float]:
    """Return parts and their CPU seconds: those in `path` if they are as `made`, or played now."""
    found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if found.get("made") != made:
        begun = time.process_time()
        parts = [dataclasses.asdict(part) for part in play()]
        seconds = round(time.process_time() - begun, 1)
        found = {"made": made, "parts": parts, "seconds": seconds}
        write_json(path, found)
        print(f"{path.stem}: {seconds} CPU seconds", file=sys.stderr, flush=True)
    return [Part(**part) for part in found["parts"]], found["seconds"]


def show(rows: Sequence[SystemRow]) -> None:
    for budget in dict.fromkeys(row.budget for row in rows):
        print(f"\nmemory: {'own limits' if budget is None else f'{budget:,} tokens'}")
        print(accuracy_frame([row for row in rows if row.budget == budget]).to_string())


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data files")
    parser.add_argument("--quick", action="store_true", help="two instances per file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=workbench_root() / "data/runs/real_systems")
    parser.add_argument(
        "--output", type=Path, help="also write the rows as JSON lines, to a new file"
    )
    options = parser.parse_args()
    if options.output and options.output.exists():
        parser.error(f"{options.output} exists; name a new file or remove it")
    options.work.mkdir(parents=True, exist_ok=True)
    git, parts, seconds, hashes = git_state(workbench_root()), [], 0.0, {}
    for file in FILES:
        text = (options.data / f"{file}.jsonl").read_bytes()
        hashes[file] = hashlib.sha256(text).hexdigest()
        made = [git, options.seed, options.quick, hashes[file]]
        instances = instances_of(options.data, file, options.quick, options.seed)
        for budget in (None, BUDGET):
            for method in (*FLAT, *LAYERED, "controls"):
                some, spent = kept(
                    options.work / f"{file}-{method}-{budget or 'own'}.json",
                    made,
                    lambda file=file, instances=instances, method=method, budget=budget: played(
                        file, instances, method, budget, options.seed
                    ),
                )
                parts += some
                seconds += spent
    rows = system_rows(parts, options.seed)
    show(rows)
    if options.output:
        write_rows(rows, options.output)
        write_json(
            options.output.with_suffix(".json"),
            {
                "command": "python benchmarks/real_systems.py DATA --output "
                "data/experiments/real_systems.jsonl",
                "seed": options.seed,
                "instances_per_file": INSTANCES,
                "questions_per_instance": QUESTIONS,
                "budgets": [None, BUDGET],
                "reader": "extractive",
                "data_sha256": hashes,
                "interval": "95 %, Student's t over instances (evaluation.clustered_mean)",
                "test": f"paired sign flips of instances against {BASELINE}, Holm's correction "
                "over all rows of a budget",
                "cpu_seconds": round(seconds),
                "hardware": f"{hardware()}, one thread",
                "git": git,
                "versions": versions(),
            },
        )


if __name__ == "__main__":
    main()
