"""Reward schemes as data: the reward terms and credit rules that pay a step, and their weights."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from finemem_lib.advantages import EPSILON, ScaleRewards, group_relative
from finemem_lib.credit.group import CachedGroup, CachedUpdate
from finemem_lib.credit.needs import OperationCredit
from finemem_lib.credit.rules import RULES, credit_update
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

    Terms meet in one of two ways: as they are (the paper: summed, then standardised), or each
    standardised on its own before the sum (`normalised`: IGPO, GiGPO, GDPO), so that no term
    drowns another whatever their scales.

    Attributes:
        name: What records and figures call the scheme.
        terms: Weight of every term: a number, or "w1" or "w2" for that field of `RewardSettings`,
            which may fall during training (see `w1_at`).
        rule_settings: Further arguments of a credit rule, by term.
        normalised: Terms whose value is centred over the rollouts of a step, and divided by their
            standard deviation ("group"), by that of all steps of the update ("batch"), or not at
            all ("none"), before it is weighted.
        operations: Rules that credit operations, with weights. The credit of an operation, divided
            by the root mean square over all operations of the update and weighted, is added to the
            advantage of the operation's own tokens; all tokens of a completion share the rest.

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
    normalised: Mapping[str, ScaleRewards] = field(default_factory=dict)
    operations: Mapping[str, float] = field(default_factory=dict)

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
        crediting = [name for name, rule in RULES.items() if rule.unit == "operation"]
        if strange := {*self.operations} - {*crediting}:
            raise ValueError(
                f"reward scheme {self.name!r}: operations name {', '.join(sorted(strange))}, "
                f"expected rules that credit operations: {', '.join(crediting)}"
            )
        if strange := {*self.rule_settings} - {*self.rules}:
            raise ValueError(
                f"reward scheme {self.name!r}: rule_settings name {', '.join(sorted(strange))}, "
                "expected credit rules among its terms"
            )
        for term, scale in self.normalised.items():
            if term not in self.terms or scale not in get_args(ScaleRewards):
                raise ValueError(
                    f"reward scheme {self.name!r}: normalised has {term!r}: {scale!r}, expected "
                    f"one of its terms with one of {', '.join(get_args(ScaleRewards))}"
                )

    @property
    def rules(self) -> tuple[str, ...]:
        """The credit rules that are applied, as terms or to operations."""
        return tuple(dict.fromkeys((*(t for t in self.terms if t not in TERMS), *self.operations)))


Scheme = str | RewardScheme
"""A reward scheme, or the name of one of `SCHEMES`."""

_SHIPPED: dict[str, dict[str, float | str]] = {
    "outcome-only": {"outcome": 1.0, "format": 1.0, "compression": "w2"},
    "+CSR": {"outcome": 1.0, "format": 1.0, "chunk": "w1", "compression": "w2"},
    "+EARA": {"eara": 1.0, "format": 1.0, "compression": "w2"},
    "Fine-Mem": {"eara": 1.0, "format": 1.0, "chunk": "w1", "compression": "w2"},
}

PAPER_SCHEMES = {name: RewardScheme(name, terms) for name, terms in _SHIPPED.items()}
"""The paper's scheme and its ablations.

Format and compression always count. The outcome is paid as ``r_global``, the same at every step
("outcome-only", "+CSR"), or as ``r_EARA(t)``, which sums to ``r_global`` over the steps ("+EARA",
"Fine-Mem"). "+CSR" and "Fine-Mem" add the chunk-level step reward; "Fine-Mem" is the hybrid reward
of the paper.
"""

SCHEMES = {
    **PAPER_SCHEMES,
    "slot price": RewardScheme(
        "slot price",
        {"outcome": 1.0, "slot-price": 1.0, "format": 1.0, "compression": "w2"},
        {"slot-price": {"smoothing": 0.3}},
        normalised={"outcome": "group", "slot-price": "group"},
    ),
    "operation slot price": RewardScheme(
        "operation slot price",
        _SHIPPED["outcome-only"],
        {"operation-slot-price": {"per": "eviction", "smoothing": 0.3}},
        operations={"operation-slot-price": 1.0},
    ),
}
"""The schemes that can be named.

Those of the paper, and outcome-only with the price of a slot (`credit.lost_evidence`): paid to the
step, or to each operation on its own tokens.
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
        Weights by term: `TERMS`, then the credit rules among the scheme's terms.

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
    return {term: weights.get(term, 0.0) for term in dict.fromkeys((*TERMS, *scheme.terms))}


@dataclass(frozen=True, slots=True)
class UpdateTerms:
    """The reward terms of an update.

    Attributes:
        terms: Per group, rollout and step the unweighted terms by name (`TERMS`, then the scheme's
            rules), normalised where the scheme says so; `None` where a term is unknown. A step
            with no known term of the scheme has `None` for all terms.
        operations: Per group, rollout and step, what is added to the advantage of every outcome's
            tokens; `None` where the scheme credits no operations.
        measures: By ``<rule>/calls_asked``, ``<rule>/calls_made`` and ``<rule>/<measure>``, see
            `credit.rules.CreditedUpdate`.
    """

    terms: list[list[list[dict[str, float | None]]]]
    operations: list[list[list[list[float]]]] | None
    measures: dict[str, float]


def update_terms(
    groups: Sequence[Sequence[Trajectory]],
    scheme: Scheme,
    settings: RewardSettings | None = None,
    agent: ReasoningAgent | None = None,
    previous: Mapping[str, float] | None = None,
) -> UpdateTerms:
    """Return the value of every logged term at every step of an update's rollouts.

    Args:
        groups: Rollouts per instance, equally many of each; rules that compare rollouts see the
            group or the whole update.
        scheme: A reward scheme or the name of a shipped one.
        settings: Settings of the reward terms (default: the paper's).
        agent: The reasoning agent that answered, for rules that read again.
        previous: `UpdateTerms.measures` of the update before, for rules that smooth.

    Raises:
        ValueError: as `rewards.hybrid_reward`, or a trajectory lacks what a credit rule needs.
    """
    scheme = scheme_of(scheme)
    update = CachedUpdate(map(CachedGroup, groups))
    terms = [
        [
            [{term: getattr(reward, term) for term in TERMS} for reward in rewards]
            for rewards in (hybrid_reward(one, settings) for one in group)
        ]
        for group in update
    ]
    measures: dict[str, float] = {}
    credited_operations = {}
    for rule in scheme.rules:
        known = {
            name.removeprefix(f"{rule}/"): value
            for name, value in (previous or {}).items()
            if name.startswith(f"{rule}/")
        }
        found = credit_update(
            rule, update, agent=agent, previous=known or None, **scheme.rule_settings.get(rule, {})
        )
        if rule in scheme.terms:
            for of_group, credited in zip(terms, found.credit, strict=True):
                for row, credit in zip(of_group, credited, strict=True):
                    for step, value in zip(row, credit, strict=True):
                        step[rule] = value
        if rule in scheme.operations:
            credited_operations[rule] = [
                [credit.operations for credit in credited if isinstance(credit, OperationCredit)]
                for credited in found.credit
            ]
        calls = {"calls_asked": found.calls_asked, "calls_made": found.calls_made}
        measures |= {f"{rule}/{name}": v for name, v in (calls | {**found.measures}).items()}
    for of_group in terms:
        for row in of_group:
            for step in row:
                if all(step[term] is None for term in scheme.terms):
                    step.update(dict.fromkeys(step, None))
    for term, scale in scheme.normalised.items():
        _normalise(terms, term, scale)
    return UpdateTerms(terms, _on_operations(scheme, credited_operations), measures)


def _on_operations(
    scheme: RewardScheme, credited: Mapping[str, list[list[list[list[float | None]]]]]
) -> list[list[list[list[float]]]] | None:
    """Return the weighted, scaled credit of every operation, summed over the scheme's rules."""
    total: Any = None
    for rule, groups in credited.items():
        known = [v for g in groups for one in g for step in one for v in step if v is not None]
        size = math.sqrt(math.fsum(v * v for v in known) / max(len(known), 1)) + EPSILON
        weight = scheme.operations[rule] / size
        scaled = [
            [[[weight * (v or 0.0) for v in step] for step in one] for one in g] for g in groups
        ]
        total = scaled if total is None else _added(total, scaled)
    return total  # type: ignore[no-any-return]  # nested lists of equal shape


def _added(one: Any, other: Any) -> Any:
    """Return the sum of two nested lists of equal shape."""
    if isinstance(one, list):
        return [_added(a, b) for a, b in zip(one, other, strict=True)]
    return one + other


def _normalise(
    terms: Sequence[Sequence[Sequence[dict[str, float | None]]]], term: str, scale: ScaleRewards
) -> None:
    """Put a term's group-relative value in its place."""
    rollouts = [
        [step for row in rows for step in row] for rows in zip(*terms, strict=True)
    ]  # the steps of all groups side by side
    relative = group_relative([[step[term] for step in row] for row in rollouts], scale)
    for row, values in zip(rollouts, relative, strict=True):
        for step, value in zip(row, values, strict=True):
            step[term] = value


def reward_terms(
    group: Sequence[Trajectory],
    scheme: Scheme,
    settings: RewardSettings | None = None,
    agent: ReasoningAgent | None = None,
) -> list[list[dict[str, float | None]]]:
    """Return `update_terms` of one group: the terms by rollout and step.

    Args:
        group: Rollouts of one instance.
        scheme: A reward scheme or the name of a shipped one.
        settings: Settings of the reward terms (default: the paper's).
        agent: The reasoning agent that answered, for rules that read again.

    Raises:
        ValueError: as `update_terms`.
    """
    return update_terms([group], scheme, settings, agent).terms[0]


def scheme_record(scheme: Scheme) -> str | dict[str, Any]:
    """Return how a run's settings record a scheme: a shipped one by its name, others in full.

    Args:
        scheme: A reward scheme or the name of a shipped one.

    >>> scheme_record("Fine-Mem"), scheme_record(RewardScheme("used", {"eara-used": 1.0}))["terms"]
    ('Fine-Mem', {'eara-used': 1.0})
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
