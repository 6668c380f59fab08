"""Leave-one-out, Shapley and Owen values as weighted sums of marginal contributions."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

EXACT_PLAYERS = 4
"""Shapley values of at most this many items or steps are exact, of more they are sampled."""

Player = TypeVar("Player", bound=Hashable)


class Marginal(NamedTuple, Generic[Player]):
    """``weight (v(others and player) - v(others))`` goes to the player.

    Attributes:
        player: The item or step that is paid.
        weight: Share of this marginal in the player's value, in (0, 1].
        others: The players that are present without it.
    """

    player: Player
    weight: float
    others: frozenset[Player]


def leave_one_out(players: Sequence[Player]) -> list[Marginal[Player]]:
    """Return, per player, its contribution to all others together.

    Args:
        players: Those who may take part, each once.
    """
    return [Marginal(one, 1.0, frozenset(players) - {one}) for one in players]


def shapley(
    players: Sequence[Player], permutations: int, rng: random.Random
) -> list[Marginal[Player]]:
    """Return the marginals that the Shapley values sum up.

    Args:
        players: At most `EXACT_PLAYERS` get all marginals, weighted |S|! (N-|S|-1)! / N!.
        permutations: Random orders that marginals of more players are taken from, at least 1.
        rng: Draws the orders.

    Raises:
        ValueError: `permutations` is less than 1 and needed.
    """
    n = len(players)
    if n <= EXACT_PLAYERS:
        return [
            Marginal(one, 1 / (n * math.comb(n - 1, size)), frozenset(others))
            for one in players
            for size in range(n)
            for others in itertools.combinations([p for p in players if p != one], size)
        ]
    if permutations < 1:
        raise ValueError(f"Shapley values: permutations is {permutations}, expected at least 1")
    orders = [rng.sample(players, n) for _ in range(permutations)]
    return [
        Marginal(order[place], 1 / permutations, frozenset(order[:place]))
        for order in orders
        for place in range(n)
    ]


def owen(players: Sequence[Player]) -> list[Marginal[Player]]:
    """Return the marginals of the Owen values for nested halves: at every level the other half is
    all there or all absent, each with weight 1/2.

    Args:
        players: In order; each half of them forms a union.
    """

    def split(
        part: Sequence[Player], others: frozenset[Player], weight: float
    ) -> list[Marginal[Player]]:
        if len(part) <= 1:
            return [Marginal(one, weight, others) for one in part]
        halves = part[: len(part) // 2], part[len(part) // 2 :]
        nobody: frozenset[Player] = frozenset()
        return [
            marginal
            for half, other in (halves, halves[::-1])
            for present in (nobody, frozenset(other))
            for marginal in split(half, others | present, weight / 2)
        ]

    return split(players, frozenset(), 1.0)


def player_values(
    marginals: Iterable[Marginal[Player]], value: Callable[[frozenset[Player]], float]
) -> dict[Player, float]:
    """Return the weighted sum of every player's marginals.

    Args:
        marginals: What to sum up.
        value: v(S) of a set of players, asked for the sets of `coalitions` only.
    """
    parts: defaultdict[Player, list[float]] = defaultdict(list)
    for player, weight, others in marginals:
        parts[player].append(weight * (value(others | {player}) - value(others)))
    return {player: math.fsum(terms) for player, terms in parts.items()}


def coalitions(marginals: Iterable[Marginal[Player]]) -> dict[frozenset[Player], None]:
    """Return the sets of players whose value the marginals need, each once.

    Args:
        marginals: Differences between the values of two sets of players.
    """
    return dict.fromkeys(
        wanted for one in marginals for wanted in (one.others, one.others | {one.player})
    )
