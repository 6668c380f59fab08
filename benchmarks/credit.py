"""Credit rules against the truth of the planted stream: every rule on the same trajectories.

Worlds are all combinations of memory pressure (12 items, none), duplicates (refused, allowed) and
changed facts (none, 40 %); in each, three managers play the same instances in groups of rollouts:
one that keeps half of the sentences ("random"), one that keeps most and copies what it holds
("copying"), and the shipped tiny manager, sampled. The measures are those of
`finemem_lib.evaluation.credit_truth`, with intervals over instances; the instances of a rate of
change are played in all its worlds by all managers. Prints one table per truth; `--output` keeps
all rows as JSON lines, with a card next to them.

`--cost` measures leave-one-out instead: CPU seconds per update of 384 steps (8 streams x 8
rollouts, memory of 12 items), beside those of the plain way, which replays, indexes and asks every
memory by itself.

    python benchmarks/credit.py [--quick] [--instances N] [--seed N] [--output FILE.jsonl]
    python benchmarks/credit.py --cost [--quick]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import os
import platform
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from finemem_lib.credit.replay import recorded_memory, replay
from finemem_lib.credit.rules import credit_update
from finemem_lib.data.planted import SYNONYMS, StreamSettings, planted_instances
from finemem_lib.data.sentences import units
from finemem_lib.evaluation.credit_truth import (
    MEASURES,
    REGIMES,
    TRUTHS,
    VARIANTS,
    Row,
    judge,
    truth_table,
)
from finemem_lib.evaluation.rows import write_rows
from finemem_lib.managers.loading import SHIPPED_MANAGERS
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.protocol import MemoryManager, Observation
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import RandomManager, ScriptedManager
from finemem_lib.readers.extractive import ExtractiveReader, reader_for
from finemem_lib.reading import Inquiry, ReasoningAgent, answer_questions
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.rewards import outcome_reward
from finemem_lib.trajectory import Operation, Step, Trajectory
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import git_state, versions, workbench_root

GENERATIONS = 8
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
                judged, calls = judge(group, ExtractiveReader(synonyms=SYNONYMS))
                for name in ("all", change, pressure, copies, f"manager: {manager.name}"):
                    slices[name].append((judged, calls, len(group)))
        print(f"{done} of {len(worlds)} worlds judged", file=sys.stderr)
    return truth_table(slices)


def plain_leave_one_out(
    groups: Sequence[Sequence[Trajectory]], agent: ReasoningAgent, unit: str
) -> list[list[list[float]]]:
    """Return what leave-one-out pays per rollout and step, replaying every memory by itself."""

    def score_without(one: Trajectory, without: set) -> float:
        memory = replay(one, recorded_memory(one), one.num_steps, without=without)
        index = BM25Retriever.from_items(memory.items)
        inquiry = Inquiry([a.question for a in one.questions], memory, index, one.num_steps)
        (answers,) = answer_questions([inquiry], agent, one.metadata["rollout"]["top_k"])
        return statistics.fmean(a.score for a in answers if a.score is not None)

    def value(one: Trajectory, without: set) -> float:
        outcome = outcome_reward(one)
        return 0.0 if outcome is None else outcome - score_without(one, without)

    def paid(one: Trajectory, step: Step) -> float:
        if unit == "step":
            active = any(o.operation and o.operation.kind != "SKIP" for o in step.outcomes)
            return value(one, {step.step}) if active else 0.0
        return sum(
            value(one, {(step.step, place)})
            for place, done in enumerate(step.outcomes)
            if done.applied and done.operation and done.operation.kind != "SKIP"
        )

    return [[[paid(one, step) for step in one.steps] for one in group] for group in groups]


def show_cost(streams: int, repeats: int, seed: int) -> None:
    """Print the CPU seconds of leave-one-out and of the plain way, taken in turns."""
    drawn = planted_instances("train", streams, seed)
    settings = RolloutSettings(num_generations=GENERATIONS, capacity=12)
    managers = [RandomManager(), load_manager(workbench_root() / SHIPPED_MANAGERS["tiny"])]
    print("CPU seconds per update, medians")
    print(f"{'manager':14}{'unit':12}{'plain':>8}{'now':>8}{'ratio':>8}")
    for manager, unit in itertools.product(managers, ("step", "operation")):
        seconds: defaultdict[str, list[float]] = defaultdict(list)
        groups = [*play(drawn, manager, settings, reader_for(drawn), seed)]
        for _ in range(repeats):
            start = time.process_time()
            plain = plain_leave_one_out(groups, reader_for(drawn), unit)
            middle = time.process_time()
            now = credit_update(f"{unit}-loo", groups, agent=reader_for(drawn)).credit
            end = time.process_time()
            seconds["plain"].append(middle - start)
            seconds["now"].append(end - middle)
            seconds["ratio"].append((middle - start) / (end - middle))
            worst = max(
                abs(a - b)
                for group, other in zip(plain, now, strict=True)
                for one, two in zip(group, other, strict=True)
                for a, b in zip(one, two, strict=True)
            )
            if worst > 1e-12:  # the sums of operations are taken in another order
                raise SystemExit(f"the two differ by {worst}")
        middles = {name: statistics.median(some) for name, some in seconds.items()}
        print(
            f"{manager.name:14}{unit:12}{middles['plain']:8.3f}{middles['now']:8.3f}"
            f"{middles['ratio']:8.1f}"
        )


def show(rows: Sequence[Row], truth: str) -> None:
    cells = {
        (row.rule, row.measure): row for row in rows if row.slice == "all" and row.truth == truth
    }
    print(
        f"\nagainst the {truth} truth, all worlds: mean [95 % interval over "
        f"{clusters(rows)['all']} instances]; reader calls per trajectory beyond the outcome's, "
        "while playing and afterwards"
    )
    print(
        f"{'rule':28}{'playing':>9}{'after':>7}" + "".join(f"{measure:>21}" for measure in MEASURES)
    )
    for rule in VARIANTS:
        cost = cells[rule, MEASURES[0]]
        line = f"{rule:28}{cost.calls_played:9.1f}{cost.calls_made - cost.calls_played:7.1f}"
        for measure_name in MEASURES:
            row = cells[rule, measure_name]
            interval = "" if row.low is None else f" [{row.low:.2f}, {row.high:.2f}]"
            line += f"{'–' if row.value is None else f'{row.value:.2f}{interval}':>21}"
        print(line)


def clusters(rows: Sequence[Row]) -> dict[str, int]:
    """Return the number of instances judged in every slice, at most."""
    most: dict[str, int] = {}
    for row in rows:
        most[row.slice] = max(most.get(row.slice, 0), row.instances)
    return most


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="one instance, two rollouts, no model")
    parser.add_argument("--instances", type=int, default=20, help="streams per rate of change")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--output", type=Path, help="also write the rows as JSON lines, to a new file"
    )
    parser.add_argument("--cost", action="store_true", help="CPU seconds of leave-one-out instead")
    arguments = parser.parse_args()
    if arguments.cost:
        show_cost(*((1, 1) if arguments.quick else (8, 5)), arguments.seed)
        return
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    if arguments.instances < 2 and not arguments.quick:
        parser.error(f"--instances is {arguments.instances}, expected at least 2 for an interval")
    start, git = time.perf_counter(), git_state(workbench_root())
    instances, num_generations = (1, 2) if arguments.quick else (arguments.instances, GENERATIONS)
    managers: list[MemoryManager] = [RandomManager(), CopyingManager()]
    checkpoint = workbench_root() / SHIPPED_MANAGERS["tiny"]
    if not arguments.quick:
        managers.append(load_manager(checkpoint))
    rows = measure(instances, num_generations, arguments.seed, managers)
    for truth in TRUTHS:
        show(rows, truth)
    if arguments.output:
        write_rows(rows, arguments.output, lambda value: round(value, 4))
        weights = (checkpoint / "model.safetensors").read_bytes()
        write_json(
            arguments.output.with_suffix(".json"),
            {
                "command": " ".join(["python", "benchmarks/credit.py", *sys.argv[1:]]),
                "instances": instances,
                "num_generations": num_generations,
                "rollouts": len(CHANGES)
                * len(CAPACITIES)
                * len(DUPLICATES)
                * len(managers)
                * instances
                * num_generations,
                "clusters": clusters(rows),
                "interval": "95 %, Student's t over instances (evaluation.clustered_mean)",
                "seed": arguments.seed,
                "managers": [manager.name for manager in managers],
                "tiny_manager_sha256": hashlib.sha256(weights).hexdigest(),
                "seconds": round(time.perf_counter() - start),
                "hardware": f"{os.cpu_count()} CPU cores ({platform.machine()}), one process",
                "git": git,
                "versions": versions(),
            },
        )


if __name__ == "__main__":
    main()
