"""Leave-one-out, Shapley and Owen values as weighted sums over sets of players."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

EXACT_PLAYERS = 4
"""Shapley values of at most this many items or steps are exact, of more they are sampled."""

Player = TypeVar("Player", bound=Hashable)


class _Marginal(NamedTuple):
    """``weight (v(others and player) - v(others))`` goes to the player."""

    player: Any
    weight: float
    others: frozenset


def _leave_one_out(players: Sequence[Player]) -> list[_Marginal]:
    return [_Marginal(one, 1.0, frozenset(players) - {one}) for one in players]


def _shapley(players: Sequence[Player], permutations: int, rng: random.Random) -> list[_Marginal]:
    """Return all marginals of a few players, weighted |S|! (N-|S|-1)! / N!, or sampled ones."""
    n = len(players)
    if n <= EXACT_PLAYERS:
        return [
            _Marginal(one, 1 / (n * math.comb(n - 1, size)), frozenset(others))
            for one in players
            for size in range(n)
            for others in itertools.combinations([p for p in players if p != one], size)
        ]
    if permutations < 1:
        raise ValueError(f"Shapley values: permutations is {permutations}, expected at least 1")
    orders = [rng.sample(players, n) for _ in range(permutations)]
    return [
        _Marginal(order[place], 1 / permutations, frozenset(order[:place]))
        for order in orders
        for place in range(n)
    ]


def _owen(players: Sequence[Player]) -> list[_Marginal]:
    """Return the marginals of the Owen values for nested halves: at every level the other half is
    all there or all absent, each with weight 1/2."""

    def split(part: Sequence[Player], others: frozenset, weight: float) -> list[_Marginal]:
        if len(part) <= 1:
            return [_Marginal(one, weight, others) for one in part]
        halves = part[: len(part) // 2], part[len(part) // 2 :]
        return [
            marginal
            for half, other in (halves, halves[::-1])
            for beside in (frozenset(), frozenset(other))
            for marginal in split(half, others | beside, weight / 2)
        ]

    return split(players, frozenset(), 1.0)


def _sums(marginals: Iterable[_Marginal], value: Callable[[frozenset], float]) -> dict[Any, float]:
    parts: defaultdict[Any, list[float]] = defaultdict(list)
    for player, weight, others in marginals:
        parts[player].append(weight * (value(others | {player}) - value(others)))
    return {player: math.fsum(terms) for player, terms in parts.items()}


def _sets(marginals: Iterable[_Marginal]) -> dict[frozenset, None]:
    """Return the sets whose value the marginals need, each once."""
    return dict.fromkeys(
        wanted for one in marginals for wanted in (one.others, one.others | {one.player})
    )
