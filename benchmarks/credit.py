"""Credit rules against the truth of the planted stream: every rule on the same trajectories.

Worlds are all combinations of memory pressure (12 items, none), duplicates (refused, allowed) and
changed facts (none, 40 %); in each, three managers play the same instances in groups of rollouts:
one that keeps half of the sentences ("random"), one that keeps most and copies what it holds
("copying"), and the shipped tiny manager, sampled. The measures are those of
`finemem_lib.credit_truth`. Prints one table per truth; `--output` keeps all rows as JSON lines,
with a card beside them.

    python benchmarks/credit.py [--quick] [--instances N] [--seed N] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import platform
import random
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from finemem_lib.credit_truth import (
    MEASURES,
    REGIMES,
    TRUTHS,
    VARIANTS,
    Row,
    judge,
    truth_table,
    write_table,
)
from finemem_lib.evaluation import BootstrapSettings
from finemem_lib.files import write_json
from finemem_lib.planted import SYNONYMS, StreamSettings
from finemem_lib.policy import (
    TINY_MANAGER,
    MemoryManager,
    Observation,
    RandomManager,
    ScriptedManager,
    load_manager,
)
from finemem_lib.reasoning import ExtractiveReader, reader_for
from finemem_lib.repro import git_state, repository_root, versions
from finemem_lib.rollout import RolloutSettings, play
from finemem_lib.text import units
from finemem_lib.training import planted_instances
from finemem_lib.trajectory import Operation

CAPACITIES = dict(zip(REGIMES["memory"], (None, 12), strict=True))
DUPLICATES = dict(zip(REGIMES["duplicates"], ("refuse", "allow"), strict=True))
CHANGES = dict(zip(REGIMES["facts"], (0.0, 0.4), strict=True))


class CopyingManager(ScriptedManager):
    """Keeps four of five sentences, and at every other step stores an item again that it has."""

    name = "copying"

    def rule(self, observation: Observation, rng: random.Random) -> list[Operation]:
        kept = [unit for unit in units(observation.chunk.text) if rng.random() < 0.8]
        if observation.items and rng.random() < 0.5:
            kept.append(rng.choice(observation.items).content)
        return [Operation("INSERT", content) for content in kept]


def measure(
    instances: int, num_generations: int, seed: int, managers: Sequence[MemoryManager]
) -> list[Row]:
    slices: defaultdict[str, list] = defaultdict(list)
    worlds = list(itertools.product(CHANGES.items(), CAPACITIES.items(), DUPLICATES.items()))
    for done, ((change, rate), (pressure, capacity), (copies, duplicates)) in enumerate(worlds, 1):
        # Streams of their own for every rate of change, so that a name means one instance.
        drawn = planted_instances(
            "held-out", instances, seed + round(10 * rate), StreamSettings(change_rate=rate)
        )
        settings = RolloutSettings(
            num_generations=num_generations, capacity=capacity, duplicates=duplicates
        )
        for manager in managers:
            for group in play(drawn, manager, settings, reader_for(drawn), seed):
                judged, calls = judge(group, lambda: ExtractiveReader(synonyms=SYNONYMS))
                for name in ("all", change, pressure, copies, f"manager: {manager.name}"):
                    slices[name].append((judged, calls, len(group)))
        print(f"{done} of {len(worlds)} worlds judged", file=sys.stderr)
    return truth_table(slices, BootstrapSettings(seed=seed))


def show(rows: Sequence[Row], truth: str) -> None:
    print(f"\nagainst the {truth} truth, all worlds: mean [95 % interval]")
    print(f"{'rule':28}{'calls':>7}" + "".join(f"{measure:>21}" for measure in MEASURES))
    cells = {(row.rule, row.measure): row for row in rows
             if row.slice == "all" and row.truth == truth}
    for rule in VARIANTS:
        line = f"{rule:28}{cells[rule, MEASURES[0]].calls_made:7.1f}"
        for measure_name in MEASURES:
            row = cells[rule, measure_name]
            interval = "" if row.low is None else f" [{row.low:.2f}, {row.high:.2f}]"
            line += f"{'–' if row.value is None else f'{row.value:.2f}{interval}':>21}"
        print(line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one instance, two rollouts, no model")
    parser.add_argument("--instances", type=int, default=8, help="streams per rate of change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="also write the rows, as JSON lines, anew")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    if arguments.instances < 2 and not arguments.quick:
        parser.error(f"--instances is {arguments.instances}, expected at least 2 for an interval")
    start = time.perf_counter()
    managers: list[MemoryManager] = [RandomManager(), CopyingManager()]
    checkpoint = repository_root() / TINY_MANAGER
    if arguments.quick:
        rows = measure(1, 2, arguments.seed, managers)
    else:
        managers.append(load_manager(checkpoint))
        rows = measure(arguments.instances, 8, arguments.seed, managers)
    for truth in TRUTHS:
        show(rows, truth)
    if arguments.output:
        write_table(rows, arguments.output)
        weights = (checkpoint / "model.safetensors").read_bytes()
        write_json(arguments.output.with_suffix(".json"), {
            "command": " ".join(["python", "benchmarks/credit.py", *sys.argv[1:]]),
            "instances": arguments.instances,
            "num_generations": 8,
            "seed": arguments.seed,
            "managers": [manager.name for manager in managers],
            "tiny_manager_sha256": hashlib.sha256(weights).hexdigest(),
            "seconds": round(time.perf_counter() - start),
            "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), one process",
            "git": git_state(repository_root()),
            "versions": versions(),
        })


if __name__ == "__main__":
    main()
