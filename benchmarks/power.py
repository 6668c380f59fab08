"""What the experiment on real text can show, estimated from the warm start before any training.

Plays the warm start on excerpts of the training file, G rollouts each, and prints

- the standard deviation of the outcome within groups, and the share of groups without any;
- what one more stored sentence of an asked and of another piece is worth (least squares within
  groups) and how many rollouts it takes until that shows at 5 % with 80 % power;
- the difference between two managers that the held-out test shows with 80 % power, if they differ
  from play to play as the warm start does.

    python benchmarks/power.py [--checkpoint FOLDER] [--excerpts N] [--rollouts G]
        [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from finemem_lib.experiments.cells import REAL_TRUTHS, real_instances, stored_pieces
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import outcome_reward
from finemem_lib.training.run import torch_threads
from finemem_lib.util.console import positive, rows_file
from finemem_lib.util.provenance import git_state, workbench_root, write_measured

TWO_SIDED = 1.96 + 0.84
"""Standard errors that an effect must be away from zero, for 5 % and a power of 80 %."""

HELD_OUT = 60
"""Excerpts of the held-out file."""


def spread(outcomes: np.ndarray) -> dict[str, float]:
    """Return the spread of outcomes within groups.

    Args:
        outcomes: Of shape (groups, rollouts).
    """
    within = outcomes.std(axis=1, ddof=1)
    return {
        "mean": float(outcomes.mean()),
        "sd_within": float(np.sqrt((within**2).mean())),
        "dead_groups": float((within == 0).mean()),
    }


def worth(outcomes: np.ndarray, stored: np.ndarray) -> list[dict[str, float | None]]:
    """Return per kind of stored sentence the slope of the outcome and the rollouts that show it.

    Args:
        outcomes: Of shape (groups, rollouts).
        stored: Sentences stored, of shape (groups, rollouts, kinds).
    """
    y = (outcomes - outcomes.mean(axis=1, keepdims=True)).ravel()
    x = (stored - stored.mean(axis=1, keepdims=True)).reshape(len(y), -1)
    inverse = np.linalg.pinv(x.T @ x)
    slopes = inverse @ x.T @ y
    free = len(y) - len(outcomes) - x.shape[1]
    residual = float(((y - x @ slopes) ** 2).sum() / max(free, 1))
    found: list[dict[str, float | None]] = []
    for slope, variance in zip(slopes, np.diag(inverse), strict=True):
        error = float(np.sqrt(residual * variance))
        shown = None if not slope else len(y) * (TWO_SIDED * error / float(slope)) ** 2
        found.append(
            {"slope": float(slope), "error": error, "rollouts": None if shown is None else shown}
        )
    return found


def detectable(sd_within: float, excerpts: int, plays: int) -> float:
    """Return the least difference in accuracy that the paired test of two managers shows.

    Args:
        sd_within: Standard deviation of the outcome of one excerpt, between plays.
        excerpts: Excerpts that both managers play.
        plays: Plays of each, by seeds or repetitions.
    """
    return TWO_SIDED * sd_within * float(np.sqrt(2 / (excerpts * plays)))


def measure(checkpoint: str, data: str, excerpts: int, rollouts: int, seed: int) -> dict[str, Any]:
    """Play the warm start and return the estimates.

    Args:
        checkpoint: The warm start.
        data: Folder of real text.
        excerpts: Number of training excerpts.
        rollouts: G.
        seed: Of the sampling.
    """
    instances = real_instances(data, "train")[:excerpts]
    settings = RolloutSettings(num_generations=rollouts, top_k=2, token_budget=150)
    manager, agent = load_manager(checkpoint), reader_for(instances)
    groups = play(instances, manager, settings, agent, seed)
    scores: Sequence[Sequence[float | None]] = [list(map(outcome_reward, one)) for one in groups]
    outcomes = np.array(scores, dtype=float)
    stored = np.array(
        [
            [list(stored_pieces(one, instance).values()) for one in group]
            for group, instance in zip(groups, instances, strict=True)
        ],
        dtype=float,
    )
    found = spread(outcomes)
    return {
        "excerpts": excerpts,
        "rollouts": rollouts,
        "completions": int(outcomes.size) * len(instances[0].chunks),
        **found,
        "worth": dict(zip(REAL_TRUTHS, worth(outcomes, stored), strict=True)),
        "detectable": {
            f"{plays} plays": detectable(found["sd_within"], HELD_OUT, plays) for plays in (1, 2, 4)
        },
    }


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--checkpoint", default="data/smollm2_manager")
    parser.add_argument("--data", default="data/real")
    parser.add_argument("--excerpts", type=positive, default=16)
    parser.add_argument("--rollouts", type=positive, default=8)
    parser.add_argument("--seed", type=int, default=50)
    parser.add_argument("--output", type=rows_file)
    asked = parser.parse_args(arguments)
    if asked.rollouts == 1:
        parser.error("--rollouts is 1, expected 2 or more; one rollout has no spread")
    git, started = git_state(workbench_root()), time.perf_counter()
    with torch_threads(1):
        found = measure(asked.checkpoint, asked.data, asked.excerpts, asked.rollouts, asked.seed)
    print(
        f"outcome {found['mean']:.3f}, within groups +- {found['sd_within']:.3f}, "
        f"{found['dead_groups']:.0%} of the groups without any spread"
    )
    for kind, one in found["worth"].items():
        shown = "never" if one["rollouts"] is None else f"after {one['rollouts']:.0f} rollouts"
        print(f"{kind}: {one['slope']:+.4f} +- {one['error']:.4f} per sentence, shows {shown}")
    for plays, least in found["detectable"].items():
        print(f"held-out test of {HELD_OUT} excerpts, {plays}: shows a difference of {least:.3f}")
    if asked.output:
        write_measured(
            asked.output,
            [found],
            f"python benchmarks/power.py --checkpoint {asked.checkpoint} --excerpts "
            f"{asked.excerpts} --rollouts {asked.rollouts} --seed {asked.seed}",
            git,
            seed=asked.seed,
            seconds=round(time.perf_counter() - started),
        )


if __name__ == "__main__":
    main()
