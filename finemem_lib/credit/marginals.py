"""Leave-one-out, Shapley and Owen values as weighted sums of marginal contributions."""

from __future__ import annotations

import itertools
import math
import random
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Generic, NamedTuple, TypeVar

MAX_EXACT_PLAYERS = 4
"""Largest number of players (items or steps) with exact Shapley values; more are sampled."""

Player = TypeVar("Player", bound=Hashable)


class Marginal(NamedTuple, Generic[Player]):
    """A marginal contribution: ``weight (v(others and player) - v(others))`` goes to the player.

    Attributes:
        player: The item or step to credit.
        weight: Weight of this marginal in the player's value, in (0, 1].
        others: The players that are present before `player` joins.
    """

    player: Player
    weight: float
    others: frozenset[Player]


def leave_one_out(players: Sequence[Player]) -> list[Marginal[Player]]:
    """Return each player's marginal contribution to the set of all other players.

    Args:
        players: All players, each once.
    """
    return [Marginal(one, 1.0, frozenset(players) - {one}) for one in players]


def shapley(
    players: Sequence[Player], permutations: int, rng: random.Random
) -> list[Marginal[Player]]:
    """Return the marginals whose weighted sums are the Shapley values.

    Args:
        players: All players. Up to `MAX_EXACT_PLAYERS` of them give all marginals, weighted
            `|S|! (N-|S|-1)! / N!`.
        permutations: Number of random orders, at least 1, from which the marginals of more players
            are sampled.
        rng: Draws the orders.

    Raises:
        ValueError: `permutations` is needed and less than 1.
    """
    n = len(players)
    if n <= MAX_EXACT_PLAYERS:
        return [
            Marginal(one, 1 / (n * math.comb(n - 1, size)), frozenset(others))
            for one in players
            for size in range(n)
            for others in itertools.combinations([p for p in players if p != one], size)
        ]
    if permutations < 1:
        raise ValueError(f"Shapley values: permutations is {permutations}, expected at least 1")
    return _along([rng.sample(players, n) for _ in range(permutations)])


def _along(orders: Sequence[Sequence[Player]]) -> list[Marginal[Player]]:
    """Return each player's marginal contribution to its predecessors in each order.

    All orders have the same weight."""
    return [
        Marginal(order[place], 1 / len(orders), frozenset(order[:place]))
        for order in orders
        for place in range(len(order))
    ]


def sampled_owen(
    players: Sequence[Player], permutations: int, rng: random.Random
) -> list[Marginal[Player]]:
    """Return marginals from random orders that keep nested halves together.

    Their values are unbiased estimates of the values of `owen`.

    Args:
        players: All players in order; each half forms a union, and so on within it.
        permutations: Number of random orders, at least 1.
        rng: Draws the orders.
    """

    def order(part: Sequence[Player]) -> list[Player]:
        if len(part) <= 1:
            return [*part]
        halves = [order(part[: len(part) // 2]), order(part[len(part) // 2 :])]
        rng.shuffle(halves)
        return halves[0] + halves[1]

    return _along([order(players) for _ in range(permutations)])


def owen(players: Sequence[Player]) -> list[Marginal[Player]]:
    """Return the marginals of the Owen values for nested halves.

    At every level the other half is wholly present or wholly absent, each with weight 1/2.

    Args:
        players: All players in order; each half forms a union, and so on within it.
    """

    def split(
        part: Sequence[Player], others: frozenset[Player], weight: float
    ) -> list[Marginal[Player]]:
        if len(part) <= 1:
            return [Marginal(one, weight, others) for one in part]
        halves = part[: len(part) // 2], part[len(part) // 2 :]
        absent: frozenset[Player] = frozenset()
        return [
            marginal
            for half, other in (halves, halves[::-1])
            for present in (absent, frozenset(other))
            for marginal in split(half, others | present, weight / 2)
        ]

    return split(players, frozenset(), 1.0)


def player_values(
    marginals: Iterable[Marginal[Player]], value: Callable[[frozenset[Player]], float]
) -> dict[Player, float]:
    """Return the weighted sum of every player's marginals.

    Args:
        marginals: The marginals to sum.
        value: v(S) of a set of players, called only for the sets that `coalitions` returns.
    """
    parts: defaultdict[Player, list[float]] = defaultdict(list)
    for player, weight, others in marginals:
        parts[player].append(weight * (value(others | {player}) - value(others)))
    return {player: math.fsum(terms) for player, terms in parts.items()}


def coalitions(marginals: Iterable[Marginal[Player]]) -> dict[frozenset[Player], None]:
    """Return the sets of players whose values the marginals need, each once.

    Args:
        marginals: Marginal contributions.
    """
    return dict.fromkeys(
        wanted for one in marginals for wanted in (one.others, one.others | {one.player})
    )
