"""Explorers: what a moved control costs in the kernel, against the time it has.

A random trajectory of 200 steps and 100 global questions (--quick: 50 and 25), as in
benchmarks/rewards.py. "recompute" is the numbers of the state: the evidence of a selection, the
rewards and advantages of the rollouts for what-if. "build" is `Explorer.build`, which recomputes
and draws every view. "live" is a widget moved: build, and hand the figures to the front end. The
budget of 50 ms is for recompute and build; the ratio is processor time over budget. Each
measurement moves to another state, in one run; medians in milliseconds of processor time ("cpu"),
which other work on the machine changes little, and of wall time. The browser's own drawing is no
part of this.

    python benchmarks/explore.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rewards import BUDGET_MS, random_trajectory

from finemem_lib import explore
from finemem_lib.advantages import group_relative
from finemem_lib.explore import Explorer, Live
from finemem_lib.files import write_json
from finemem_lib.plots import evidence_parts
from finemem_lib.repro import versions
from finemem_lib.rewards import RewardSettings, evidence_matrix, hybrid_reward

ROLLOUTS = 4


def medians_ms(work: Callable[[Any], object], states: list[Any]) -> tuple[float, float]:
    work(states[0])
    spent = []
    for state in states[1:]:
        wall, cpu = time.perf_counter(), time.process_time()
        work(state)
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    return tuple(1000 * statistics.median(column) for column in zip(*spent, strict=True))


def measure(steps: int, questions: int, repeats: int) -> list[dict[str, Any]]:
    group = [dataclasses.replace(random_trajectory(steps, questions, rollout), rollout=rollout)
             for rollout in range(ROLLOUTS)]
    one = group[0]
    betas = [round(0.05 * number, 2) for number in range(repeats)]

    def settings(beta: float) -> RewardSettings:
        return RewardSettings(beta=beta % 1)

    def select(_: Any) -> None:
        evidence_parts(one)
        evidence_matrix(one)

    def credit(beta: float) -> None:
        group_relative([[reward.total for reward in hybrid_reward(rollout, settings(beta))]
                        for rollout in group])

    cases: list[tuple[str, Explorer, str, list[Any], Callable[[Any], object]]] = [
        ("evidence", explore.evidence(one), "selected",
         [f"question {number % questions + 1}" for number in range(repeats)], select),
        ("memory player", explore.memory_player(one), "step",
         [number % steps + 1 for number in range(repeats)], lambda step: one.memory_at(step)),
        ("what-if", explore.what_if(group), "beta", betas[:20], credit),
    ]
    rows = []
    for name, explorer, control, values, recompute in cases:
        states = [explorer.settle({control: value}) for value in values]
        live = Live(explorer)
        works = {
            "recompute": (recompute, values),
            "build": (lambda state, explorer=explorer: explorer.build(**state), states),
            "live": (lambda value, live=live, control=control: live.set(control, value), values),
        }
        if live.error:
            raise RuntimeError(live.error)
        for part, (work, arguments) in works.items():
            if name == "what-if" and part == "live":  # else the answer is remembered
                live = Live(explore.what_if(group))
                work = lambda value, live=live: live.set("beta", value)  # noqa: E731
            elif name == "what-if" and part == "build":
                explorer = explore.what_if(group)
                work = lambda state, explorer=explorer: explorer.build(**state)  # noqa: E731
            cpu, wall = medians_ms(work, arguments)
            rows.append({"explorer": name, "part": part, "cpu_ms": cpu, "wall_ms": wall,
                         "of_budget": cpu / BUDGET_MS})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller trajectory, fewer repeats")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON to a new file")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    steps, questions, repeats = (50, 25, 6) if arguments.quick else (200, 100, 16)
    rows = measure(steps, questions, repeats)
    print(f"{steps} steps, {questions} questions, what-if with {ROLLOUTS} rollouts; budget "
          f"{BUDGET_MS:g} ms")
    print(f"{'explorer':16}{'part':12}{'cpu ms':>9}{'wall ms':>9}{'of budget':>12}")
    for row in rows:
        print(f"{row['explorer']:16}{row['part']:12}{row['cpu_ms']:9.1f}{row['wall_ms']:9.1f}"
              f"{row['of_budget']:12.0%}")
    if arguments.output:
        record = {"benchmark": "explore", "versions": versions(), "cpus": os.cpu_count(),
                  "steps": steps, "questions": questions, "rows": rows}
        write_json(arguments.output, record)


if __name__ == "__main__":
    main()
