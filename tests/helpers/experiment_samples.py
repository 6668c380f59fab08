"""Cells of an experiment and their results, made by hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from finemem_lib.evaluation.operation_truth import OPERATION_TRUTHS
from finemem_lib.experiments.cells import Cell, CellResult, HeldOut
from finemem_lib.experiments.design import Design

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


def arena_design(**fields: Any) -> Design:
    """Return a design of three variants in two regimes, two of them baselines, six seeds."""
    return Design(
        **{
            "description": "Three rules side by side",
            "baselines": ["outcome-only", "Fine-Mem"],
            "regimes": {"short": {"capacity": 12}, "long": {"num_chunks": 24}},
            "variants": {name: {"scheme": name} for name in ("outcome-only", "Fine-Mem", "+CSR")},
            "seeds": list(range(20, 26)),
            "primary": ["accuracy, greedy", "accuracy, first 10 updates"],
            **fields,
        }
    )


def arena_results(design: Design, gains: Mapping[str, float], seed: int = 0, streams: int = 16):
    """Return a result for every cell: a level of the seed and streams that all variants share, a
    variant's gain, and noise of its own."""
    shared = {at: np.random.default_rng([seed, at]).uniform(0.3, 0.5, streams) for at in range(99)}
    made = []
    for place, of in enumerate(design.cells):
        rng = np.random.default_rng([seed, 7, place])
        own = rng.normal(0, 0.01) + rng.normal(0, 0.03, streams)
        accuracy = (shared[of.seed] + gains.get(of.variant, 0.0) + own).tolist()
        columns = {
            "accuracy": accuracy,
            "memory_tokens": [30] * streams,
            "memory_items": [8] * streams,
            "valid_share": [1.0] * streams,
            **{name: [1] * streams for name in OPERATION_TRUTHS},
        }
        test = HeldOut(chunks=of.num_chunks, temperature=1.0, columns=columns)
        made.append(
            result(
                of,
                episodes=[accuracy[:8]] * 12,
                updates=12,
                tests={"sampled": test, "greedy": test},
                seconds={"training": 9.0, "testing": 1.0, "training_cpu": 8.0 + place % 3},
                price={
                    update: {
                        "fact": (1.0, 0.1),
                        "noise": (0.02 * (of.seed % 2) - gains.get(of.variant, 0.0), 0.05),
                    }
                    for update in ("1", "14", "32")
                },
            )
        )
        made[-1].curve["reader_calls"] = [10.0 * (of.scheme != "outcome-only")] * 12
    return made


def question_results(design: Design, gains: Mapping[str, float], seed: int = 0, streams: int = 16):
    """Return a result for every cell as `arena_results` does, with keys and with the curves that
    the page of open questions reads."""
    made = []
    for place, one in enumerate(arena_results(design, gains, seed, streams)):
        rng = np.random.default_rng([seed, 11, place])
        curves = {
            name: rng.uniform(0.4, 0.6, 12).round(3).tolist()
            for name in ("rewards/outcome/mean", "rewards/chunk/mean", "credit_at_evidence/used")
        } | {"memory_tokens": rng.uniform(30, 90, 12).round(1).tolist()}
        found = one.model_copy(update={"key": one.cell.key, "curve": {**one.curve, **curves}})
        if not one.cell.updates:
            found = found.model_copy(update={"curve": {}, "episodes": []})
        made.append(found)
    return made
