"""Reward schemes as data: the reward terms and credit rules that pay a step, and their weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from finemem_lib.credit.rules import RULES, assign
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, hybrid_reward
from finemem_lib.trajectory import Trajectory

TERMS = ("outcome", "eara", "format", "chunk", "compression")
"""The reward terms that every run logs, by their names in `rewards.StepReward`."""

NAMED_WEIGHTS = ("w1", "w2")
"""Weights that a scheme may name instead of a number: fields of `RewardSettings`."""


@dataclass(frozen=True, slots=True)
class RewardScheme:
    """A reward scheme: ``r_t = sum of weight x term`` over the terms that are known at step t.

    A term is one of `TERMS` or the name of a credit rule (`credit.rules.RULES`), whose credit is
    then the term's value at each step. TRL standardises the sum over the rollouts of a step, so a
    rule that gives a "reward" fits as it is. The credit of a rule that gives an "advantage" is
    standardised a second time: its sign and order survive, its scale does not. A rule that reads
    again costs reader calls in every update (`Rule.cost`). "eara" is the reward term, which follows
    the run's `RewardSettings`; other credit rules have settings of their own.

    Attributes:
        name: What records and figures call the scheme.
        terms: Weight of every term: a number, or "w1" or "w2" for that field of `RewardSettings`,
            which may fall during training (see `w1_at`).
        rule_settings: Further arguments of a credit rule, by term.

    Raises:
        ValueError: A term or a named weight is unknown, or there is no term.

    >>> RewardScheme("used items", {"eara-used": 1.0, "format": 1.0, "compresion": "w2"})
    Traceback (most recent call last):
    ...
    ValueError: reward scheme 'used items': term is 'compresion', expected one of outcome, ...
    """

    name: str
    terms: Mapping[str, float | str]
    rule_settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = dict.fromkeys((*TERMS, *RULES))
        if not self.terms:
            raise ValueError(f"reward scheme {self.name!r} has no terms, expected at least one")
        for term, weight in self.terms.items():
            if term not in known:
                raise ValueError(
                    f"reward scheme {self.name!r}: term is {term!r}, expected one of "
                    + ", ".join(known)
                )
            if isinstance(weight, str) and weight not in NAMED_WEIGHTS:
                raise ValueError(
                    f"reward scheme {self.name!r}: the weight of {term!r} is {weight!r}, expected "
                    f"a number or one of {', '.join(NAMED_WEIGHTS)}"
                )
        if strange := {*self.rule_settings} - ({*self.terms} - {*TERMS}):
            raise ValueError(
                f"reward scheme {self.name!r}: rule_settings name {', '.join(sorted(strange))}, "
                "expected credit rules among its terms"
            )

    @property
    def rules(self) -> tuple[str, ...]:
        """The terms that are credit rules."""
        return tuple(term for term in self.terms if term not in TERMS)


Scheme = str | RewardScheme
"""A reward scheme, or the name of one of `SCHEMES`."""

_SHIPPED: dict[str, dict[str, float | str]] = {
    "outcome-only": {"outcome": 1.0, "format": 1.0, "compression": "w2"},
    "+CSR": {"outcome": 1.0, "format": 1.0, "chunk": "w1", "compression": "w2"},
    "+EARA": {"eara": 1.0, "format": 1.0, "compression": "w2"},
    "Fine-Mem": {"eara": 1.0, "format": 1.0, "chunk": "w1", "compression": "w2"},
}

SCHEMES = {name: RewardScheme(name, terms) for name, terms in _SHIPPED.items()}
"""The paper's scheme and its ablations.

Format and compression always count. The outcome is paid as ``r_global``, the same at every step
("outcome-only", "+CSR"), or as ``r_EARA(t)``, which sums to ``r_global`` over the steps ("+EARA",
"Fine-Mem"). "+CSR" and "Fine-Mem" add the chunk-level step reward; "Fine-Mem" is the hybrid reward
of the paper.
"""


def scheme_of(scheme: Scheme) -> RewardScheme:
    """Return a scheme, looked up in `SCHEMES` where only its name is given.

    Args:
        scheme: A reward scheme or the name of a shipped one.

    Raises:
        ValueError: No shipped scheme has that name.
    """
    if isinstance(scheme, RewardScheme):
        return scheme
    if scheme not in SCHEMES:
        raise ValueError(f"reward scheme is {scheme!r}, expected one of {', '.join(SCHEMES)}")
    return SCHEMES[scheme]


def scheme_weights(scheme: Scheme, settings: RewardSettings | None = None) -> dict[str, float]:
    """Return the weight of every logged term; 0.0 leaves a term out of the reward.

    Args:
        scheme: A reward scheme or the name of a shipped one.
        settings: Values of the weights that the scheme names (default: the paper's).

    Returns:
        Weights by term: `TERMS`, then the credit rules of the scheme.

    Raises:
        ValueError: No shipped scheme has that name.

    >>> scheme_weights("outcome-only")
    {'outcome': 1.0, 'eara': 0.0, 'format': 1.0, 'chunk': 0.0, 'compression': 0.05}
    """
    scheme, settings = scheme_of(scheme), settings or RewardSettings()
    named = {"w1": settings.w1, "w2": settings.w2}
    weights = {
        term: named[weight] if isinstance(weight, str) else weight
        for term, weight in scheme.terms.items()
    }
    return {term: weights.get(term, 0.0) for term in (*TERMS, *scheme.rules)}


def reward_terms(
    group: Sequence[Trajectory],
    scheme: Scheme,
    settings: RewardSettings | None = None,
    agent: ReasoningAgent | None = None,
) -> list[list[dict[str, float | None]]]:
    """Return the value of every logged term at every step of a group's rollouts.

    Args:
        group: Rollouts of one instance; rules that compare rollouts are given all of them.
        scheme: A reward scheme or the name of a shipped one.
        settings: Settings of the reward terms (default: the paper's).
        agent: The reasoning agent that answered, for rules that read again.

    Returns:
        Per rollout and step the unweighted terms by name (`TERMS`, then the scheme's rules); `None`
        where a term is unknown. A step with no known term of the scheme has `None` for all terms.

    Raises:
        ValueError: As `rewards.hybrid_reward`, or a trajectory lacks what a credit rule needs.
    """
    scheme = scheme_of(scheme)
    rows = []
    for trajectory in group:
        credit = {
            rule: _credit(rule, trajectory, group, agent, scheme.rule_settings.get(rule, {}))
            for rule in scheme.rules
        }
        rows.append(
            [
                {term: getattr(reward, term) for term in TERMS}
                | {rule: values[place] for rule, values in credit.items()}
                for place, reward in enumerate(hybrid_reward(trajectory, settings))
            ]
        )
    return [
        [
            terms
            if any(terms[term] is not None for term in scheme.terms)
            else dict.fromkeys(terms, None)
            for terms in row
        ]
        for row in rows
    ]


def scheme_record(scheme: Scheme) -> str | dict[str, Any]:
    """Return how a run's settings record a scheme: a shipped one by its name, others in full.

    >>> scheme_record(RewardScheme("used", {"eara-used": 1.0}))
    {'name': 'used', 'terms': {'eara-used': 1.0}, 'rule_settings': {}}
    """
    scheme = scheme_of(scheme)
    shipped = SCHEMES.get(scheme.name) == scheme
    return scheme.name if shipped else dataclasses.asdict(scheme)


def w1_at(update: int, w1: float, until: int | None) -> float:
    """Return w1 at an update: it falls linearly to 0 at update `until`, or stays.

    Args:
        update: Number of the update, from 1.
        w1: Weight of the chunk-level step reward at the first update.
        until: Update (from 2) at which the weight reaches 0; `None` keeps it constant.

    >>> [w1_at(update, 0.5, 3) for update in (1, 2, 3, 4)], w1_at(9, 0.5, None)
    ([0.5, 0.25, 0.0, 0.0], 0.5)
    """
    return w1 if until is None else w1 * max(0.0, (until - update) / (until - 1))


def _credit(
    rule: str,
    trajectory: Trajectory,
    group: Sequence[Trajectory],
    agent: ReasoningAgent | None,
    settings: Mapping[str, Any],
) -> Sequence[float | None]:
    """Return a credit rule's value per step, giving the rule the group and agent that it needs."""
    offered = {"group": group, "agent": agent}
    needed = {name: offered[name] for name in RULES[rule].arguments if name in offered}
    return assign(rule, trajectory, **needed, **settings).credit
