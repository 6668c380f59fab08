"""One GRPO update of SmolLM2 on real text: ours against a plain loop with `generate`.

Ours is the training of notebook 04 with the shipped warm start: bf16 where the processor multiplies
it, the adapter of the upper layers, the layers below computed once, beginnings of prompts that the
rollouts share computed once, decoding constrained. The plain loop (`benchmarks/training.py`) trains
the same adapter with weights in fp32, one `generate` per step and one forward pass through all
layers. Its decoding is not constrained, so it writes longer completions; the card counts both. Both
take the same instances and alternate update by update with learning rate 0. One update is 32
completions: 8 rollouts of 4 chunks.

    python benchmarks/language_model.py [--repetitions N] [--threads N] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from training import PARTS, TOTALS, Alternating, plain_update

from finemem_lib.experiments.cells import real_instances
from finemem_lib.managers.model import load_manager, saved_settings
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.readers.extractive import reader_for
from finemem_lib.training.run import torch_threads, train_manager
from finemem_lib.util.console import positive, rows_file
from finemem_lib.util.provenance import git_state, workbench_root, write_measured

WARM_UP, COMPLETIONS = 1, 32


def measure(checkpoint: str, data: str, repetitions: int, threads: int) -> dict[str, Any]:
    """Return medians of the seconds of both and the medians of the ratios."""
    settings = RolloutSettings(num_generations=8, top_k=2, token_budget=150)
    updates = WARM_UP + repetitions
    instances = [
        dataclasses.replace(
            one, chunks=one.chunks[:4], chunk_questions=(one.chunk_questions or ())[:4]
        )
        for one in real_instances(data, "train")[:updates]
    ]
    with torch_threads(threads):
        as_saved = saved_settings(checkpoint)
        plain_manager = load_manager(checkpoint, model=as_saved)
        plain_manager.model.float()
        trained = [value for value in plain_manager.model.parameters() if value.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=0.0)

        def plainly(update: int) -> dict[str, float]:
            return plain_update(plain_manager, optimizer, [instances[update]], settings, update)

        alternating = Alternating(COMPLETIONS, plainly)
        train_manager(
            checkpoint,
            rollout=settings,
            instances=instances,
            agent=reader_for(instances),
            scheme="outcome-only",
            updates=updates,
            instances_per_update=1,
            learning_rate=0.0,
            on_update=alternating,
            threads=threads,
        )
    return {
        "completions": COMPLETIONS,
        "repetitions": repetitions,
        "threads": threads,
        **alternating.compared(WARM_UP),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", default="data/smollm2_manager")
    parser.add_argument("--data", default="data/real")
    parser.add_argument("--repetitions", type=positive, default=3)
    parser.add_argument("--threads", type=positive, default=2)
    parser.add_argument("--output", type=rows_file)
    asked = parser.parse_args()
    git = git_state(workbench_root())
    found = measure(asked.checkpoint, asked.data, asked.repetitions, asked.threads)
    for name in (*PARTS, *TOTALS):
        print(
            f"{name:12} ours {found['ours'][name]:7.1f} s   plain {found['plain'][name]:7.1f} s   "
            f"{found['speedup'][name]:5.2f} times faster"
        )
    if asked.output:
        rows = [
            {"part": name, **{who: found[who][name] for who in ("ours", "plain", "speedup")}}
            for name in (*PARTS, *TOTALS)
        ]
        write_measured(
            asked.output,
            rows,
            f"python benchmarks/language_model.py --checkpoint {asked.checkpoint} --data "
            f"{asked.data} --repetitions {asked.repetitions} --threads {asked.threads}",
            git,
            seed=0,
            **{name: found[name] for name in ("completions", "repetitions", "threads")},
            tokens={who: found[who]["tokens"] for who in ("ours", "plain")},
        )


if __name__ == "__main__":
    main()
