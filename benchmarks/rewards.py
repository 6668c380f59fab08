"""Rewards and credit: what a slider recomputes, against the time it has.

A random trajectory of 200 steps and 100 global questions (--quick: 50 and 25), five operations and
five chunk questions per step, three retrieved items per question with up to four writes each. Each
part is timed alone; `hybrid_reward` holds the others, so "one recompute" is hybrid_reward plus the
evidence matrix of the heatmap, and "group of 8" is hybrid_reward of eight rollouts plus
group_relative. The ratio is the time over the budget of 50 ms. Beside them, the time to read the
same trajectory from its JSON, which a slider does not pay. Model time is no part of this. Figures
are medians in milliseconds of wall time.

    python benchmarks/rewards.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from finemem_lib.advantages import group_relative
from finemem_lib.rewards import (
    RewardSettings,
    eara_rewards,
    evidence_contribution,
    evidence_matrix,
    hybrid_reward,
)
from finemem_lib.seeds import stable_seed
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Chunk,
    MemoryDelta,
    MemoryItem,
    Operation,
    OperationOutcome,
    Question,
    Retrieved,
    Step,
    Trajectory,
    Write,
    from_json,
    to_json,
)
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import versions

BUDGET_MS = 50.0
ROLLOUTS = 8
PER_STEP = 5
TOP_K = 3


def random_trajectory(steps: int, questions: int, rollout: int) -> Trajectory:
    """Return a trajectory whose items are inserted and updated at random."""
    rng = np.random.default_rng(stable_seed("rewards benchmark", rollout))
    items: list[MemoryItem] = []

    def write(step: int, position: int) -> MemoryItem:
        content = f"item of step {step}, number {position}"
        if items and rng.random() < 0.3:
            number = int(rng.integers(len(items)))
            lineage = (*items[number].lineage[-3:], Write(step, "UPDATE", position))
            items[number] = MemoryItem(items[number].item_id, content, lineage)
            return items[number]
        items.append(MemoryItem(str(len(items)), content, (Write(step, "INSERT", position),)))
        return items[-1]

    def asked(name: str, step: int, chunk_step: int | None) -> AnsweredQuestion:
        found = [items[n] for n in rng.choice(len(items), TOP_K, replace=False)]
        retrieved = tuple(
            Retrieved(item.item_id, 1.0, tuple(w.step for w in item.lineage)) for item in found
        )
        question = Question(name, f"question {name}?", ("answer",), "planted", chunk_step)
        score = None if rng.random() < 0.05 else float(rng.random())
        return AnsweredQuestion(question, step, retrieved, "answer", (found[0].item_id,), score)

    records = []
    for step in range(1, steps + 1):
        written = {}
        outcomes = []
        for position in range(PER_STEP):
            item = write(step, position)
            written[item.item_id] = item
            applied = bool(rng.random() < 0.9)
            reason = None if applied else "unknown id"
            operation = Operation("INSERT", item.content)
            outcomes.append(OperationOutcome(operation, applied, reason, item.item_id))
        records.append(
            Step(
                step=step,
                chunk=Chunk("a chunk", 200),
                completion="[]",
                outcomes=tuple(outcomes),
                delta=MemoryDelta(tuple(written.values())),
                memory_tokens=7 * len(items),
                chunk_questions=tuple(asked(f"c-{step}-{k}", step, step) for k in range(PER_STEP)),
            )
        )
    final = tuple(asked(f"q-{j}", steps, None) for j in range(questions))
    return Trajectory("random", "planted", "AR", "random", rollout, tuple(records), final, "words")


def median_ms(work: Callable[[], object], repeats: int) -> float:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def measure(steps: int, questions: int, repeats: int) -> dict[str, Any]:
    group = [random_trajectory(steps, questions, rollout) for rollout in range(ROLLOUTS)]
    one = group[0]
    settings = RewardSettings(attribution="lineage", credited="retrieved")
    text = to_json(one)
    from_json(Trajectory, text)  # builds the reader of records once, outside the timing

    def recompute() -> None:
        hybrid_reward(one, settings)
        evidence_matrix(one, settings)

    def whole_group() -> None:
        group_relative(
            [[reward.total for reward in hybrid_reward(rollout, settings)] for rollout in group]
        )

    rewards = [[reward.total for reward in hybrid_reward(rollout)] for rollout in group]
    parts: dict[str, Callable[[], object]] = {
        "evidence_contribution": lambda: evidence_contribution(one, settings),
        "eara_rewards": lambda: eara_rewards(one, settings),
        "evidence_matrix": lambda: evidence_matrix(one, settings),
        "hybrid_reward": lambda: hybrid_reward(one, settings),
        "one recompute": recompute,
        "group_relative": lambda: group_relative(rewards),
        "group of 8": whole_group,
        "(read JSON)": lambda: from_json(Trajectory, text),
    }
    times = {name: median_ms(work, repeats) for name, work in parts.items()}
    return {
        "steps": steps,
        "questions": questions,
        "rollouts": ROLLOUTS,
        "budget_ms": BUDGET_MS,
        "ms": times,
        "share_of_budget": {name: value / BUDGET_MS for name, value in times.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a smaller trajectory, fewer repeats")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON to a new file")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    result = measure(*((50, 25, 5) if arguments.quick else (200, 100, 31)))
    print(f"{result['steps']} steps, {result['questions']} questions, budget {BUDGET_MS:g} ms")
    print(f"{'part':24}{'ms':>9}{'of budget':>12}")
    for name, value in result["ms"].items():
        print(f"{name:24}{value:9.2f}{result['share_of_budget'][name]:12.1%}")
    if arguments.output:
        record = {"benchmark": "rewards", "versions": versions(), "cpus": os.cpu_count(), **result}
        write_json(arguments.output, record)


if __name__ == "__main__":
    main()
