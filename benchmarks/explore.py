"""Explorers: what a moved control costs in the kernel, against the time it has.

Random trajectories of 200 steps and 100 global questions (--quick: 50 and 25), as in
benchmarks/rewards.py, 8 rollouts where an explorer compares some. Each row is one kind of move:

recompute  the numbers of the state alone: the evidence of a selection, rewards and advantages.
build      `Explorer.build`, which recomputes and draws every view.
live       a widget moved: build, and hand the figures to the front end.
choose     build, after the rule (or the reward scheme) was chosen for the first time.
slowest    build, after moving that control, of all, which took longest; each value is new.

The budget of 50 ms is for all but "live"; the ratio is processor time over budget. The static form
is measured on planted streams of 200 and 1,000 steps, next to the static form of the library
at the commit BEFORE, with the same states: the two alternate, each in a process of its own
(benchmarks/static_frames.py), and the ratio is that of their least processor times. Figures have
more views now than then. A stream of 20,000 steps, made by hand, is drawn by the present library
only, with the making of the explorer; "peak_mb" is most memory that Python held for it at once.

Medians in milliseconds of processor time ("cpu"), which other work on the machine changes little,
and of wall time, in one run. The time in which the browser draws is not included. The rules that
read again are measured on streams of 24 steps with 12 questions and 4 rollouts: choosing one asks
the reader, here the extractive one, once for every set of items or steps that the rule takes away,
so it takes as long as the reader. What was read is remembered, and other moves cost as much as with
any rule.

    python benchmarks/explore.py [--quick] [--short] [--before COMMIT] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import dataclasses
import io
import json
import os
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from rewards import BUDGET_MS, random_trajectory
from static_frames import STATIC

from finemem_lib.advantages import group_relative
from finemem_lib.credit.rules import RULES
from finemem_lib.data.planted import StreamSettings, planted_stream
from finemem_lib.explorers import (
    Explorer,
    Live,
    compare_rollouts,
    evidence_explorer,
    memory_player,
    what_if_explorer,
)
from finemem_lib.figures import evidence_parts
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, evidence_matrix, hybrid_reward
from finemem_lib.trajectory import Trajectory
from finemem_lib.util.console import rows_file
from finemem_lib.util.provenance import git_state, workbench_root, write_measured
from tests.helpers.figure_samples import long_trajectory

ROLLOUTS, ROLLOUTS_READ, STEPS_READ = 8, 4, 24

BEFORE = "39e4357"
"""The last commit before the static form was made faster."""

LONG = 20_000
"""Steps of the long stream."""


def medians_ms(move: Callable[[Any], object], states: Sequence[Any]) -> dict[str, float]:
    spent = []
    for state in states:
        wall, cpu = time.perf_counter(), time.process_time()
        move(state)
        spent.append((time.process_time() - cpu, time.perf_counter() - wall))
    cpu, wall = (1000 * statistics.median(column) for column in zip(*spent, strict=True))
    return {"cpu_ms": cpu, "wall_ms": wall, "of_budget": cpu / BUDGET_MS}


def random_group(steps: int, questions: int) -> list[Trajectory]:
    """Return rollouts of one instance whose questions name evidence steps."""
    group = []
    for rollout in range(ROLLOUTS):
        one = random_trajectory(steps, questions, rollout)
        asked = tuple(
            dataclasses.replace(
                answered,
                question=dataclasses.replace(
                    answered.question, evidence_steps=(1 + 7 * place % steps,)
                ),
            )
            for place, answered in enumerate(one.questions)
        )
        group.append(dataclasses.replace(one, rollout=rollout, questions=asked))
    return group


def moving(explorer: Explorer, fixed: dict[str, Any]) -> dict[str, Any]:
    """Return the move of one control that takes longest, each to at most six values."""
    explorer.build(**explorer.settle(fixed))
    rows = []
    for control in explorer.controls:
        if control.name in fixed:
            continue
        first = explorer.settle(fixed)
        values = [value for _, value in control.choices(first) if value != first[control.name]][:6]
        if values:
            rows.append(
                {"part": f"slowest: {control.name}"}
                | medians_ms(
                    lambda value, name=control.name: explorer.build(
                        **explorer.settle({**fixed, name: value})
                    ),
                    values,
                )
            )
    return max(rows, key=lambda row: row["cpu_ms"])


def by_choice(
    name: str, make: Callable[[], Explorer], control: str, options: Sequence[str], repeats: int
) -> list[dict[str, Any]]:
    """Return the cost of choosing each option in a new explorer, and of moving the rest then."""
    rows = []
    for option in options:
        explorers = [make() for _ in range(repeats)]
        for explorer in explorers:
            explorer.build(**explorer.settle({}))
        row = {"explorer": f"{name}, {option}"}
        if option != explorers[0].settle({})[control]:
            rows.append(
                row
                | {"part": "choose"}
                | medians_ms(
                    lambda explorer, option=option: explorer.build(
                        **explorer.settle({control: option})
                    ),
                    explorers,
                )
            )
        rows.append(row | moving(make(), {control: option}))
    return rows


def measure(steps: int, questions: int, repeats: int, short: bool) -> list[dict[str, Any]]:
    group = random_group(steps, questions)
    one = group[0]

    def select(_: Any) -> None:
        evidence_parts(one)
        evidence_matrix(one)

    def credit(beta: float) -> None:
        group_relative(
            [
                [reward.total for reward in hybrid_reward(rollout, RewardSettings(beta))]
                for rollout in group
            ]
        )

    cases: list[tuple[str, Callable[[], Explorer], str, list[Any], Callable[[Any], object]]] = [
        (
            "evidence",
            lambda: evidence_explorer(one),
            "selected",
            [f"question {number % questions + 1}" for number in range(repeats)],
            select,
        ),
        (
            "memory player",
            lambda: memory_player(one),
            "step",
            [number % steps + 1 for number in range(repeats)],
            lambda step: one.memory_at(step),
        ),
        (
            "what-if",
            lambda: what_if_explorer(group),
            "beta",
            [round(0.05 * number, 2) for number in range(1, 1 + repeats)],
            credit,
        ),
    ]
    rows = []
    for name, make, control, values, recompute in cases:
        explorer, live = make(), Live(make())
        explorer.build(**explorer.settle({}))
        states = [explorer.settle({control: value}) for value in values]
        for part, move, arguments in (
            ("recompute", recompute, values),
            ("build", lambda state, explorer=explorer: explorer.build(**state), states),
            ("live", lambda value, live=live, control=control: live.set(control, value), values),
        ):
            rows.append({"explorer": name, "part": part} | medians_ms(move, arguments))
        if live.error:
            raise RuntimeError(live.error)
    if short:
        return rows
    rules = [value for _, value in what_if_explorer(group).controls[2].choices({})]
    rows += by_choice("what-if", lambda: what_if_explorer(group), "rule", rules, 5)
    schemes = [value for _, value in compare_rollouts([group]).controls[0].choices({})]
    rows += by_choice("compare", lambda: compare_rollouts([group]), "scheme", schemes, 5)
    return rows


def measure_read() -> list[dict[str, Any]]:
    """Return the rows of the rules that read again, on a group that can be replayed."""
    instance = planted_stream(0, StreamSettings(num_chunks=STEPS_READ))
    agent: ReasoningAgent = reader_for([instance])
    [group] = play(
        [instance], make_manager("random"), RolloutSettings(num_generations=ROLLOUTS_READ), agent, 0
    )
    rules = [
        name
        for name, rule in RULES.items()
        if "agent" in rule.arguments and "probes" not in rule.arguments
    ]
    return by_choice("reads again", lambda: what_if_explorer(group, agent=agent), "rule", rules, 1)


def static_form(tree: Path, steps: int, states: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return what benchmarks/static_frames.py measures with the library in a folder."""
    worker = Path(__file__).with_name("static_frames.py")
    command = [sys.executable, str(worker), str(steps), "2", json.dumps(states)]
    environment = {**os.environ, "PYTHONPATH": str(tree)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"static frames with the library in {tree}: {done.stderr[-2000:]}")
    rows = map(json.loads, done.stdout.splitlines())
    return {row.pop("explorer"): row for row in rows}


def measure_static(steps: int, repeats: int, before: str) -> list[dict[str, Any]]:
    """Return the rows of the static form of explorers of a planted stream, now and before."""
    root = workbench_root()
    archive = subprocess.run(
        ["git", "archive", before, "finemem_lib"], cwd=root, capture_output=True, check=True
    )
    spent: dict[str, list[dict[str, Any]]] = {name: [] for name in STATIC}
    spent_before: dict[str, list[dict[str, Any]]] = {name: [] for name in STATIC}
    states: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
            files.extractall(folder, filter="data")
        for _ in range(repeats):
            for tree, kept in ((root, spent), (Path(folder), spent_before)):
                for name, row in static_form(tree, steps, states).items():
                    kept[name].append(row)
                    states[name] = row["states"]
    rows = []
    for name in STATIC:
        now, then = (
            min(kept[name], key=lambda row: row["cpu_ms"]) for kept in (spent, spent_before)
        )
        for part, row in (("static", now), (f"static at {before}", then)):
            rows.append(
                {"explorer": f"{name}, {steps} steps", "part": part}
                | {"cpu_ms": row["cpu_ms"], "wall_ms": row["wall_ms"]}
                | {"frames": len(states[name]), "bytes": row["bytes"]}
                | {"of_before": row["cpu_ms"] / then["cpu_ms"]}
            )
    return rows


def measure_long(steps: int) -> list[dict[str, Any]]:
    """Return the rows of the static form of a long stream."""
    rows = []
    for name, make in STATIC.items():
        one = long_trajectory(steps)
        row = medians_ms(lambda one, make=make: make(one).static_figures(), [one])
        one = long_trajectory(steps)
        tracemalloc.start()
        figures = make(one).static_figures()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        rows.append(
            {"explorer": f"{name}, {steps} steps", "part": "static"}
            | {key: row[key] for key in ("cpu_ms", "wall_ms")}
            | {"frames": max(len(one.to_dict()["frames"]) for one in figures)}
            | {"bytes": sum(len(one.to_json()) for one in figures), "peak_mb": peak / 1e6}
        )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller trajectory, fewer repeats")
    parser.add_argument("--short", action="store_true", help="without the single rules and schemes")
    parser.add_argument("--output", type=rows_file, help="also write the rows and their card")
    parser.add_argument("--before", default=BEFORE, help="commit of the static form to compare")
    asked = parser.parse_args(arguments)
    git, started = git_state(workbench_root()), time.perf_counter()
    steps, questions, repeats = (50, 25, 6) if asked.quick else (200, 100, 16)
    print(
        f'{steps} steps, {questions} questions, {ROLLOUTS} rollouts; those of "reads again": '
        f"{STEPS_READ} steps, {ROLLOUTS_READ} rollouts; budget {BUDGET_MS:g} ms"
    )
    rows = measure(steps, questions, repeats, asked.short)
    rows += measure_read()
    for length in (20,) if asked.quick else (200, 1000):
        rows += measure_static(length, 1 if asked.quick else 3, asked.before)
    rows += measure_long(LONG // 10 if asked.quick else LONG)
    print(f"{'explorer':32}{'part':24}{'cpu ms':>9}{'wall ms':>9}  ratio")
    for row in rows:
        ratio = f"{row['of_before']:.2f} of before" if "of_before" in row else ""
        ratio = ratio or (f"{row['peak_mb']:.0f} MB" if "peak_mb" in row else "")
        print(
            f"{row['explorer']:32}{row['part']:24}{row['cpu_ms']:9.1f}{row['wall_ms']:9.1f}  "
            f"{ratio or format(row['of_budget'], '.0%') + ' of budget'}"
        )
    if asked.output:
        write_measured(
            asked.output,
            rows,
            f"python benchmarks/explore.py{' --quick' * asked.quick}{' --short' * asked.short}",
            git,
            before=asked.before,
            load=os.getloadavg()[0],
            steps=steps,
            questions=questions,
            seconds=round(time.perf_counter() - started),
        )


if __name__ == "__main__":
    main()
