"""Cells of an experiment and their results, made by hand."""

from __future__ import annotations

from typing import Any

import numpy as np

from finemem_lib.evaluation.operation_truth import OPERATION_TRUTHS
from finemem_lib.experiments.cells import Cell, CellResult, HeldOut

SCHEMES = ("outcome-only", "+CSR", "+EARA", "Fine-Mem")


def cell(variant="outcome-only", regime="pressure", seed=0, **settings) -> Cell:
    return Cell(variant=variant, regime=regime, seed=seed, **settings)


def result(
    of: Cell, accuracy=(0.5, 0.25), episodes=((0.25, 0.5),), updates=1, **fields: Any
) -> CellResult:
    """Return the result of a cell on two streams; `fields` replace those of the result."""
    columns = {
        "accuracy": list(accuracy),
        "memory_tokens": [30, 40],
        "memory_items": [8, 9],
        "valid_share": [1.0, 0.5],
        **{name: [6, 0] for name in OPERATION_TRUTHS},
    }
    test = HeldOut(chunks=6, temperature=1.0, columns=columns)
    curve = {
        "accuracy": [0.2 + 0.01 * update for update in range(updates)],
        "spread/chunk": [0.25] * updates,
        "credit_at_evidence/used": [None] * updates,
        "truth/INSERT duplicate": [0.25] * updates,
        "truth/UPDATE duplicate": [0.5] * updates,
        "frac_reward_zero_std": [0.0] * updates,
    }
    return CellResult(
        **{
            "cell": of,
            "key": "",
            "curve": curve,
            "episodes": [list(episode) for episode in episodes],
            "tests": {"sampled": test, "greedy": test},
            "seconds": {},
            "alignment": {"+CSR": [0.5, 0.25], "agreement/+CSR": [0.75]},
            **fields,
        }
    )


def grid(poison=""):
    """Four schemes in two regimes; +CSR gains, +EARA loses, Fine-Mem differs by chance alone."""
    rng = np.random.default_rng(0)
    made = []
    for regime in (f"{poison}pressure", "no pressure"):
        for seed in range(4):
            base = rng.uniform(0.2, 0.4, 2)
            for scheme, more in zip(SCHEMES, (0, 0.2, -0.2, rng.normal(0, 0.05, 2)), strict=True):
                made.append(
                    result(
                        cell(f"{poison}{scheme}", regime, seed, scheme=scheme),
                        (base + more).tolist(),
                        [(base + more / 2).tolist()] * 12,
                        updates=12,
                    )
                )
    return made
