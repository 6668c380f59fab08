"""Reward schemes as data: the reward terms and credit rules that pay a step, and their weights.

"Mem-alpha" (arXiv 2509.25911) pays ``r1 + r2(t) + 0.05 r3 + 0.1 r4(t)``: the outcome, the share of
calls that succeeded, compression, and content (`layers.content_reward`). Differs from the paper:
r1 takes the scores as they are, like the published code, where the paper writes an indicator; 0.1
is the code's gamma, also of the paper's tables, where its text says 1; a step that could not be
judged has no r4. Its advantage is that of the whole instance (`advantages.instance_relative`).
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, get_args

from finemem_lib.advantages import (
    EPSILON,
    Group,
    ScaleRewards,
    group_relative,
    instance_relative,
)
from finemem_lib.credit.group import CachedGroup, CachedUpdate
from finemem_lib.credit.needs import OperationCredit
from finemem_lib.credit.rules import RULES, CreditedUpdate, credit_update
from finemem_lib.layers.content_reward import ContentJudge, content_rewards, rule_verdicts
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, hybrid_reward
from finemem_lib.trajectory import Trajectory

TERMS = ("outcome", "eara", "format", "chunk", "compression")
"""The reward terms that every run logs, named as in `rewards.StepReward`."""

CONTENT = "content"
"""The term r4 of Mem-alpha, which is measured only where a scheme pays it."""

NAMED_WEIGHTS = ("w1", "w2")
"""Fields of `RewardSettings` that a scheme may name as a weight instead of a number."""


@dataclass(frozen=True, slots=True)
class RewardScheme:
    """A reward scheme: ``r_t = sum of weight x term`` over the terms that are known at step t.

    A term is one of `TERMS`, `CONTENT`, or the name of a credit rule (`credit.rules.RULES`), whose
    credit is then the term's value at each step. TRL standardises the sum over the rollouts of a
    step, so a rule that gives a "reward" fits as it is. The credit of a rule that gives an
    "advantage" is standardised a second time: its sign and order survive, its scale does not. A
    rule that reads again costs reader calls in every update (`Rule.cost`). "eara" is the reward
    term, which follows the run's `RewardSettings`; other credit rules have settings of their own.

    Terms are either summed and then standardised (the paper), or each standardised before the sum
    (`normalised`: IGPO, GiGPO, GDPO), so that no term dominates because of its scale.

    Attributes:
        name: Name of the scheme in records and figures.
        terms: Weight of every term: a number, or "w1" or "w2" for that field of `RewardSettings`;
            w1 may fall during training (see `w1_at`).
        rule_settings: Further arguments of a credit rule, by term.
        normalised: Terms to centre over the rollouts of a step before weighting, each with its
            scaling: division by the standard deviation of the step's group ("group"), by that of
            all steps of the update ("batch"), or none ("none").
        operations: Rules that credit operations, with weights. The credit of an operation, divided
            by the root mean square over all operations of the update and weighted, is added to the
            advantage of the operation's own tokens; all tokens of a completion share the rest.
        advantage: What a step is compared with: the same step of the other rollouts ("step"), or
            all steps of all rollouts of the instance ("instance", Mem-alpha).

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
    advantage: Group = "step"

    def __post_init__(self) -> None:
        if self.advantage not in get_args(Group):
            raise ValueError(
                f"reward scheme {self.name!r}: advantage is {self.advantage!r}, expected one of "
                + ", ".join(get_args(Group))
            )
        known = dict.fromkeys((*TERMS, CONTENT, *RULES))
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
        among = (term for term in self.terms if term not in (*TERMS, CONTENT))
        return tuple(dict.fromkeys((*among, *self.operations)))


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

Each includes format and compression. The outcome enters as ``r_global``, the same at every step
("outcome-only", "+CSR"), or as ``r_EARA(t)``, which sums to ``r_global`` over the steps ("+EARA",
"Fine-Mem"). "+CSR" and "Fine-Mem" add the chunk-level step reward; "Fine-Mem" is the hybrid reward
of the paper.
"""

_MEM_ALPHA: dict[str, Group] = {"Mem-alpha": "instance", "Mem-alpha per step": "step"}

SYSTEM_SCHEMES = {
    "Memory-R1": RewardScheme("Memory-R1", {"outcome": 1.0}),
    **{
        name: RewardScheme(
            name,
            {"outcome": 1.0, "format": 1.0, "compression": "w2", CONTENT: 0.1},
            advantage=advantage,
        )
        for name, advantage in _MEM_ALPHA.items()
    },
}
"""Schemes of published systems, to compare with.

Memory-R1 (arXiv 2508.19828) pays the score of the answers to every step and nothing else: neither
format nor compression. Its operations are `baselines.memory_r1`'s; a manager of this library is
trained here, so the scheme is compared. Mem-alpha (arXiv 2509.25911) compares steps over the whole
instance, as in its paper, or per step.
"""

SCHEMES = {
    **PAPER_SCHEMES,
    **SYSTEM_SCHEMES,
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
"""The shipped schemes by name.

Those of the paper and of published systems, and outcome-only with the price of a slot
(`credit.lost_evidence`), paid to the step or to each operation on its own tokens.
"""


def scheme_of(scheme: Scheme) -> RewardScheme:
    """Return a scheme; a name is looked up in `SCHEMES`.

    Args:
        scheme: A reward scheme or the name of a shipped scheme.

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
        scheme: A reward scheme or the name of a shipped scheme.
        settings: Values of the named weights; default: the paper's.

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


Terms = dict[str, float | None]
"""The unweighted reward terms of one step by name; `None` where a term is unknown."""


@dataclass(frozen=True, slots=True)
class UpdateTerms:
    """The reward terms of an update.

    Attributes:
        terms: Per group, rollout and step, the unweighted terms by name (`TERMS`, then the scheme's
            rules), normalised as the scheme requires; `None` where a term is unknown. A step
            without a known term of the scheme has `None` for all terms.
        operations: Per group, rollout and step, the value added to the advantage of every outcome's
            tokens; `None` where the scheme credits no operations.
        measures: Reader calls and measures of the rules, named ``<rule>/calls_asked``,
            ``<rule>/calls_made`` and ``<rule>/<measure>``, see `credit.rules.CreditedUpdate`.
    """

    terms: list[list[list[Terms]]]
    operations: list[list[list[list[float]]]] | None
    measures: dict[str, float]


def update_terms(
    groups: Sequence[Sequence[Trajectory]],
    scheme: Scheme,
    settings: RewardSettings | None = None,
    agent: ReasoningAgent | None = None,
    previous: Mapping[str, float] | None = None,
    content_judge: ContentJudge = rule_verdicts,
) -> UpdateTerms:
    """Return the value of every logged term at every step of an update's rollouts.

    Args:
        groups: Rollouts per instance, the same number of each.
        scheme: A reward scheme or the name of a shipped scheme.
        settings: Settings of the reward terms; default: the paper's.
        agent: The reasoning agent that answered, for rules that read again.
        previous: `UpdateTerms.measures` of the update before, for rules that smooth.
        content_judge: Judge of the written contents, used if the scheme has the content reward.

    Raises:
        ValueError: as `rewards.hybrid_reward`, or a trajectory lacks what a credit rule needs.
    """
    scheme = scheme_of(scheme)
    update = CachedUpdate(map(CachedGroup, groups))
    terms = [[_logged_terms(one, settings) for one in group] for group in update]
    rollouts = [rollout for group in terms for rollout in group]
    if CONTENT in scheme.terms:
        played = [one for group in update for one in group]
        _set_term(rollouts, CONTENT, content_rewards(played, content_judge))
    measures: dict[str, float] = {}
    credited_operations = {}
    for rule in scheme.rules:
        found = credit_update(
            rule,
            update,
            agent=agent,
            previous=_measures_of(rule, previous or {}) or None,
            **scheme.rule_settings.get(rule, {}),
        )
        if rule in scheme.terms:
            _set_term(rollouts, rule, itertools.chain(*found.credit))
        if rule in scheme.operations:
            credited_operations[rule] = _operation_credit(found)
        calls = {"calls_asked": found.calls_asked, "calls_made": found.calls_made}
        measures |= {f"{rule}/{name}": v for name, v in (calls | {**found.measures}).items()}
    for step in itertools.chain(*rollouts):
        if all(step[term] is None for term in scheme.terms):
            step.update(dict.fromkeys(step, None))
    for term, scale in scheme.normalised.items():
        _normalise(terms, term, scale)
    return UpdateTerms(terms, _on_operations(scheme, credited_operations), measures)


def _logged_terms(rollout: Trajectory, settings: RewardSettings | None) -> list[Terms]:
    """Return `TERMS` at every step of a rollout."""
    rewards = hybrid_reward(rollout, settings)
    return [{term: getattr(reward, term) for term in TERMS} for reward in rewards]


def _set_term(
    rows: Sequence[Sequence[Terms]], term: str, values: Iterable[Sequence[float | None]]
) -> None:
    """Set a term at every step of every row, in place."""
    for row, of_row in zip(rows, values, strict=True):
        for step, value in zip(row, of_row, strict=True):
            step[term] = value


def _measures_of(rule: str, measures: Mapping[str, float]) -> dict[str, float]:
    """Return the measures of one rule, without the rule's name before them."""
    prefix = f"{rule}/"
    return {
        name.removeprefix(prefix): value
        for name, value in measures.items()
        if name.startswith(prefix)
    }


def _operation_credit(found: CreditedUpdate) -> list[list[list[list[float | None]]]]:
    """Return the credit of every operation, per group, rollout and step."""
    return [
        [credit.operations for credit in credited if isinstance(credit, OperationCredit)]
        for credited in found.credit
    ]


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


def _normalise(terms: Sequence[Sequence[Sequence[Terms]]], term: str, scale: ScaleRewards) -> None:
    """Replace a term's values by their group-relative values, in place."""
    rollouts = [
        [step for row in rows for step in row] for rows in zip(*terms, strict=True)
    ]  # columns: the steps of all groups
    relative = group_relative([[step[term] for step in row] for row in rollouts], scale)
    _set_term(rollouts, term, relative)


def reward_terms(
    group: Sequence[Trajectory],
    scheme: Scheme,
    settings: RewardSettings | None = None,
    agent: ReasoningAgent | None = None,
) -> list[list[Terms]]:
    """Return the reward terms of one group by rollout and step, see `update_terms`.

    Args:
        group: Rollouts of one instance.
        scheme: A reward scheme or the name of a shipped scheme.
        settings: Settings of the reward terms; default: the paper's.
        agent: The reasoning agent that answered, for rules that read again.

    Raises:
        ValueError: as `update_terms`.
    """
    return update_terms([group], scheme, settings, agent).terms[0]


Rewards = Sequence[Sequence[Sequence[float | None]]]
"""Rewards by group, rollout and step."""


def advantages_of(
    scheme: Scheme, rewards: Rewards, scale_rewards: ScaleRewards = "group"
) -> list[list[list[float | None]]]:
    """Return the advantages of an update's steps, compared as the scheme says.

    Args:
        scheme: A reward scheme or the name of a shipped one.
        rewards: Reward of every step.
        scale_rewards: As in `advantages.group_relative`; for "batch" the groups are one batch.

    Raises:
        ValueError: As `advantages.group_relative`.

    >>> advantages_of("Mem-alpha", [[[1.0, 0.0], [1.0, 0.0]]], "none")
    [[[0.5, -0.5], [0.5, -0.5]]]
    >>> advantages_of("Fine-Mem", [[[1.0, 0.0], [1.0, 0.0]]], "none")
    [[[0.0, 0.0], [0.0, 0.0]]]
    """
    if scheme_of(scheme).advantage == "instance":
        return [instance_relative(group, scale_rewards) for group in rewards]
    together = [[*itertools.chain(*rows)] for rows in zip(*rewards, strict=True)]
    flat = [iter(row) for row in group_relative(together, scale_rewards)]
    return [
        [[next(values) for _ in row] for values, row in zip(flat, group, strict=True)]
        for group in rewards
    ]


def scheme_record(scheme: Scheme) -> str | dict[str, Any]:
    """Return a scheme for a run's recorded settings: a shipped scheme by name, others in full.

    Args:
        scheme: A reward scheme or the name of a shipped scheme.

    >>> scheme_record("Fine-Mem"), scheme_record(RewardScheme("used", {"eara-used": 1.0}))["terms"]
    ('Fine-Mem', {'eara-used': 1.0})
    """
    scheme = scheme_of(scheme)
    shipped = SCHEMES.get(scheme.name) == scheme
    return scheme.name if shipped else dataclasses.asdict(scheme)


def w1_at(update: int, w1: float, until: int | None) -> float:
    """Return w1 at an update: it falls linearly to 0 at update `until`, or is constant.

    Args:
        update: Number of the update, from 1.
        w1: Weight of the chunk-level step reward at the first update.
        until: Update (from 2) at which the weight reaches 0; `None` keeps it constant.

    >>> [w1_at(update, 0.5, 3) for update in (1, 2, 3, 4)], w1_at(9, 0.5, None)
    ([0.5, 0.25, 0.0, 0.0], 0.5)
    """
    return w1 if until is None else w1 * max(0.0, (until - update) / (until - 1))
