"""One GRPO update: ours against a plain loop with transformers' `generate`.

Both start from the shipped warm start, play the same planted streams in the same lockstep rollouts,
and take the same loss, gradient clipping and AdamW; the learning rate is 0, so that both sample
from the same policy in every repetition. The plain loop is written by hand in this file: one
`generate` per step over all rollouts, one padded batch per instance for the log-probabilities. The
two alternate update by update in one process. Figures are medians of wall seconds over the
repetitions, and the ratio is the median of the ratios of neighbouring updates, so that other work
on the machine, which slows both, does not decide it; CPU seconds, of all threads and processes,
stand beside them. "learning" is forward, backward, optimiser and all that is not sampling or
environment; "environment" is prompts, memory, answers and rewards.

    python benchmarks/training.py [--quick] [--threads N] [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from finemem_lib.advantages import group_relative
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.managers.model import ModelManager, load_manager
from finemem_lib.managers.prompts import Prompt
from finemem_lib.managers.rollout import LockstepRollouts, RolloutSettings
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import RewardSettings, hybrid_reward
from finemem_lib.training.run import train_manager
from finemem_lib.trajectory import Instance, Trajectory
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import versions

PARTS = ("generation", "environment", "learning")
TOTALS = ("total", "CPU")
WARM_UP = 2


def generate(manager: ModelManager, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Return the completion ids of every prompt, cut after the end token."""
    model, tokenizer = manager.model, manager.tokenizer
    batch = tokenizer.pad(
        {"input_ids": [list(prompt.ids) for prompt in prompts]},
        padding_side="left",
        return_tensors="pt",
    )
    model.eval()
    with torch.no_grad():
        sequences = model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=manager.max_new_tokens,
            suppress_tokens=[tokenizer.pad_token_id],
        )
    end = model.config.eos_token_id
    rows = sequences[:, batch["input_ids"].shape[1] :].tolist()
    return [row[: row.index(end) + 1] if end in row else row for row in rows]


def cpu_seconds() -> float:
    """Return the CPU seconds of this process and of its second one, while that runs."""
    children = (child.cpu_times() for child in psutil.Process().children())
    return time.process_time() + sum(times.user + times.system for times in children)


def sampled_tokens(groups: Sequence[Sequence[Trajectory]]) -> int:
    return sum(len(step.completion_ids) for group in groups for one in group for step in one.steps)


def backward(
    model: torch.nn.Module,
    pad: int,
    groups: Sequence[Sequence[Trajectory]],
    rewards: RewardSettings,
) -> None:
    """Add the gradient of the update's loss, one padded batch per instance."""
    tokens = sampled_tokens(groups)
    model.train()
    for group in groups:
        totals = [[reward.total for reward in hybrid_reward(one, rewards)] for one in group]
        advantages = torch.tensor(
            [advantage or 0.0 for row in group_relative(totals) for advantage in row]
        )
        steps = [step for one in group for step in one.steps]
        before = max(len(step.prompt_ids) for step in steps)
        after = max(len(step.completion_ids) for step in steps)
        ids = torch.full((len(steps), before + after), pad)
        mask = torch.zeros_like(ids)
        for row, step in enumerate(steps):
            first, last = before - len(step.prompt_ids), before + len(step.completion_ids)
            ids[row, first:last] = torch.tensor(step.prompt_ids + step.completion_ids)
            mask[row, first:last] = 1
        logits = model(input_ids=ids, attention_mask=mask, logits_to_keep=after + 1).logits[:, :-1]
        logps = logits.log_softmax(-1).gather(-1, ids[:, before:, None])[..., 0]
        ratio = (logps - logps.detach()).exp()
        gain = torch.min(ratio * advantages[:, None], ratio.clamp(0.8, 1.2) * advantages[:, None])
        (-(gain * mask[:, before:]).sum() / tokens).backward()


def plain_update(
    manager: ModelManager,
    optimizer: torch.optim.Optimizer,
    instances: Sequence[Instance],
    settings: RolloutSettings,
    seed: int,
) -> dict[str, float]:
    """Play, reward and learn once by hand; return the seconds of every part and the tokens."""
    started, processed = time.perf_counter(), cpu_seconds()
    rollouts = LockstepRollouts(instances, settings, reader_for(instances), "plain", seed)
    generation = 0.0
    while observations := rollouts.observations():
        prompts = [manager.builder.render(observation) for observation in observations]
        before = time.perf_counter()
        completion_ids = generate(manager, prompts)
        generation += time.perf_counter() - before
        rollouts.advance(manager.builder.complete(prompts, completion_ids, None))
    groups = rollouts.finish()
    played = time.perf_counter()
    optimizer.zero_grad()
    backward(manager.model, manager.tokenizer.pad_token_id, groups, RewardSettings())
    torch.nn.utils.clip_grad_norm_(manager.model.parameters(), 1.0)
    optimizer.step()
    ended = time.perf_counter()
    return {
        "generation": generation,
        "environment": played - started - generation,
        "learning": ended - played,
        "total": ended - started,
        "CPU": cpu_seconds() - processed,
        "tokens": sampled_tokens(groups),
    }


class Alternating:
    """Called with the record of every update of ours: notes its times, then makes a plain one.

    Args:
        rows: Completions of an update.
        plainly: Makes the plain update of a number, from 0, and returns its times.
    """

    def __init__(self, rows: int, plainly: Callable[[int], dict[str, float]]) -> None:
        self.rows, self.plainly = rows, plainly
        self.ours: list[dict[str, float]] = []
        self.plain: list[dict[str, float]] = []
        self.started, self.processed = time.perf_counter(), cpu_seconds()

    def __call__(self, record: dict[str, Any]) -> None:
        """Note our update, everything between two calls of this, then make a plain one."""
        total = time.perf_counter() - self.started
        parts = {part: record[f"seconds/{part}"] for part in PARTS[:2]}
        self.ours.append(
            {
                **parts,
                "learning": total - sum(parts.values()),
                "total": total,
                "CPU": cpu_seconds() - self.processed,
                "tokens": record["completions/mean_length"] * self.rows,
            }
        )
        torch.manual_seed(len(self.plain))
        self.plain.append(self.plainly(len(self.plain)))
        self.started, self.processed = time.perf_counter(), cpu_seconds()

    def compared(self, warm_up: int) -> dict[str, dict[str, float]]:
        """Return medians of both and of their ratios, without the first updates."""
        ours, plain = self.ours[warm_up:], self.plain[warm_up:]
        names = (*PARTS, *TOTALS, "tokens")
        return {
            "ours": {name: statistics.median(one[name] for one in ours) for name in names},
            "plain": {name: statistics.median(one[name] for one in plain) for name in names},
            "speedup": {
                name: statistics.median(
                    theirs[name] / mine[name] for mine, theirs in zip(ours, plain, strict=True)
                )
                for name in (*PARTS, *TOTALS)
            },
        }


def measure(
    repetitions: int, instances_per_update: int, num_generations: int, num_chunks: int
) -> dict[str, Any]:
    settings = RolloutSettings(num_generations=num_generations)
    updates = WARM_UP + repetitions
    instances = planted_instances(
        "train", updates * instances_per_update, 0, StreamSettings(num_chunks=num_chunks)
    )
    manager = load_manager("tiny")
    optimizer = torch.optim.AdamW(
        manager.model.parameters(), lr=0.0, betas=(0.9, 0.95), weight_decay=0.0
    )
    rows = instances_per_update * num_generations * num_chunks

    def plainly(update: int) -> dict[str, float]:
        played = instances[update * instances_per_update : (update + 1) * instances_per_update]
        return plain_update(manager, optimizer, played, settings, update)

    alternating = Alternating(rows, plainly)
    train_manager(
        "tiny",
        rollout=settings,
        instances=instances,
        updates=updates,
        instances_per_update=instances_per_update,
        learning_rate=0.0,
        on_update=alternating,
    )
    return {
        "repetitions": repetitions,
        "instances_per_update": instances_per_update,
        "num_generations": num_generations,
        "num_chunks": num_chunks,
        **alternating.compared(WARM_UP),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="small updates, few repetitions")
    parser.add_argument("--threads", type=int, help="threads of torch (default: its own choice)")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON to a new file")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    result = measure(*((2, 2, 2, 2) if arguments.quick else (8, 8, 8, 6)))
    print(
        f"{result['instances_per_update']} instances x {result['num_generations']} rollouts x "
        f"{result['num_chunks']} steps, {result['repetitions']} updates of each, "
        f"{torch.get_num_threads()} threads"
    )
    print(f"{'seconds':16}{'ours':>9}{'plain':>9}{'times':>8}")
    for name in (*PARTS, *TOTALS):
        print(
            f"{name:16}{result['ours'][name]:9.3f}{result['plain'][name]:9.3f}"
            f"{result['speedup'][name]:8.2f}"
        )
    print(f"{'tokens sampled':16}{result['ours']['tokens']:9.0f}{result['plain']['tokens']:9.0f}")
    if arguments.output:
        write_json(
            arguments.output,
            {
                "benchmark": "training",
                "versions": versions(),
                "cpus": os.cpu_count(),
                "threads": torch.get_num_threads(),
                **result,
            },
        )


if __name__ == "__main__":
    main()
