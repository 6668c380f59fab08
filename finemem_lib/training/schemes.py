"""Reward schemes: which terms are added with which weight."""

from __future__ import annotations

from typing import Literal

from finemem_lib.rewards import RewardSettings

TERMS = ("outcome", "eara", "format", "chunk", "compression")
"""The reward functions that TRL logs, by their names in `StepReward`."""

RewardScheme = Literal["outcome-only", "+CSR", "+EARA", "Fine-Mem"]

SCHEMES: dict[str, tuple[str, ...]] = {
    "outcome-only": ("outcome", "format", "compression"),
    "+CSR": ("outcome", "format", "chunk", "compression"),
    "+EARA": ("eara", "format", "compression"),
    "Fine-Mem": ("eara", "format", "chunk", "compression"),
}
"""The terms that each reward scheme adds up; see `scheme_weights`."""


def scheme_weights(
    scheme: RewardScheme, settings: RewardSettings | None = None
) -> dict[str, float]:
    """Return the weight of every term of `TERMS` under a reward scheme; 0.0 leaves a term out.

    ``r_t = [outcome] + r_fmt(t) + [w1 r_chunk(t)] + w2 r_comp``: format and compression always
    count. The outcome is paid as ``r_global``, the same at every step ("outcome-only", "+CSR"), or
    as ``r_EARA(t)``, which sums to ``r_global`` over the steps ("+EARA", "Fine-Mem"). "+CSR" and
    "Fine-Mem" add the chunk-level step reward; "Fine-Mem" is the hybrid reward of the paper.

    Raises:
        ValueError: an unknown scheme.

    >>> scheme_weights("outcome-only")
    {'outcome': 1.0, 'eara': 0.0, 'format': 1.0, 'chunk': 0.0, 'compression': 0.05}
    """
    if scheme not in SCHEMES:
        raise ValueError(f"reward scheme is {scheme!r}, expected one of {', '.join(SCHEMES)}")
    weights = {"outcome": 1.0, **(settings or RewardSettings()).weights}
    return {term: weights[term] if term in SCHEMES[scheme] else 0.0 for term in TERMS}


def w1_at(update: int, w1: float, until: int | None) -> float:
    """Return w1 at an update (from 1): it falls linearly to 0 at update `until`, or stays.

    >>> [w1_at(update, 0.5, 3) for update in (1, 2, 3, 4)], w1_at(9, 0.5, None)
    ([0.5, 0.25, 0.0, 0.0], 0.5)
    """
    return w1 if until is None else w1 * max(0.0, (until - update) / (until - 1))
