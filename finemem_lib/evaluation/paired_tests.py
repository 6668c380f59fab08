"""Paired sign-flip tests between methods, with p-values corrected over the whole table.

Both methods answered the same questions. The statistic is the mean difference in score. Under the
null hypothesis the two methods are exchangeable within an instance, so the sign of every instance's
summed difference is random. Instances, not questions, are the units, because the questions of one
instance share its memory. With at most `MAX_EXACT_INSTANCES` instances all sign combinations are
enumerated. P-values are corrected by Holm's method over all rows that are returned together.

Differs from the paper, which reports means without tests.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from finemem_lib.evaluation.intervals import holm
from finemem_lib.evaluation.tables import ALL
from finemem_lib.seeds import stable_seed
from finemem_lib.trajectory import Trajectory

if TYPE_CHECKING:
    from numpy.typing import NDArray

MAX_EXACT_INSTANCES = 14
"""Largest number of instances for which all sign combinations are enumerated."""

NUM_DRAWS = 20_000
"""Number of random sign combinations for more than `MAX_EXACT_INSTANCES` instances."""


Key = tuple[str, str, str, str]
"""Category, data source, instance id and question id."""


@dataclass(frozen=True, slots=True)
class PairedTest:
    """Test of one method against a baseline.

    Attributes:
        method, baseline: Names of the two methods.
        category: Category of the questions; "all" over several.
        data_source: Data source of the questions; "all" over several.
        difference: Mean score of the method minus that of the baseline over the questions.
        questions: Number of questions with a score under both methods.
        instances: Number of instances, the units of the test.
        p: Two-sided p-value; `None` if there is only one instance.
        least_p: Smallest p-value that this number of instances can give.
        p_holm: `p` corrected over all rows of the table.
    """

    method: str
    baseline: str
    category: str
    data_source: str
    difference: float
    questions: int
    instances: int
    p: float | None
    least_p: float | None
    p_holm: float | None = None


def paired_tests(
    methods: Mapping[str, Sequence[Trajectory]], baseline: str, seed: int = 0
) -> list[PairedTest]:
    """Test every method against the baseline on the scores of its trajectories, see `score_tests`.

    Args:
        methods: Trajectories of every method by its name, played on the same instances.
        baseline: Name of the method with which the others are compared.
        seed: Seed of the random signs.

    Raises:
        ValueError: the baseline is unknown, or a method shares no scored question with it.
    """
    return score_tests({name: _scores(of) for name, of in methods.items()}, baseline, seed)


def score_tests(
    scores: Mapping[str, Mapping[Key, float]], baseline: str, seed: int = 0
) -> list[PairedTest]:
    """Test every method against the baseline, by data source, by category and overall.

    A row with the same questions as an earlier one is left out: that of a category with one data
    source, and that of "all" with one category.

    Args:
        scores: Scores of the questions of every method by its name.
        baseline: Name of the method with which the others are compared.
        seed: Seed of the random signs.

    Raises:
        ValueError: the baseline is unknown, or a method shares no scored question with it.
    """
    if baseline not in scores:
        raise ValueError(
            f"baseline {baseline!r} is not among the methods, expected one of {', '.join(scores)}"
        )
    rows: list[PairedTest] = []
    for method in scores:
        if method == baseline:
            continue
        shared = scores[method].keys() & scores[baseline].keys()
        if not shared:
            raise ValueError(
                f"{method} and {baseline} share no scored question, expected methods that played "
                "the same instances; play both on the same data"
            )
        parts: defaultdict[tuple[str, str], dict[Key, float]] = defaultdict(dict)
        for key in sorted(shared):
            difference = scores[method][key] - scores[baseline][key]
            category, source, *_ = key
            for part in ((category, source), (category, ALL), (ALL, ALL)):
                parts[part][key] = difference
        seen: set[frozenset[Key]] = set()
        for (category, source), differences in sorted(parts.items(), key=_order):
            if (keys := frozenset(differences)) not in seen:
                seen.add(keys)
                rows.append(_test(method, baseline, category, source, differences, seed))
    corrected = holm([row.p for row in rows])
    return [replace(row, p_holm=p) for row, p in zip(rows, corrected, strict=True)]


def _scores(trajectories: Sequence[Trajectory]) -> dict[Key, float]:
    """Return the score of every question, averaged over rollouts, without unscored questions."""
    found: defaultdict[Key, list[float]] = defaultdict(list)
    for one in trajectories:
        for answered in one.questions:
            if answered.score is not None:
                key = (
                    one.category,
                    one.data_source,
                    one.instance_id,
                    answered.question.question_id,
                )
                found[key].append(answered.score)
    return {key: sum(values) / len(values) for key, values in found.items()}


def _order(part: tuple[tuple[str, str], object]) -> tuple[bool, str, bool, str]:
    (category, source), _ = part
    return category == ALL, category, source == ALL, source


def _test(
    method: str,
    baseline: str,
    category: str,
    source: str,
    differences: Mapping[Key, float],
    seed: int,
) -> PairedTest:
    sums: defaultdict[tuple[str, str, str], float] = defaultdict(float)
    for key, difference in differences.items():
        sums[key[:3]] += difference
    totals = np.array([sums[key] for key in sorted(sums)])
    rng = np.random.default_rng(stable_seed(seed, "paired", method, baseline, category, source))
    return PairedTest(
        method,
        baseline,
        category,
        source,
        difference=float(totals.sum()) / len(differences),
        questions=len(differences),
        instances=len(totals),
        p=sign_flip(totals, rng) if len(totals) > 1 else None,
        least_p=max(2.0 ** (1 - len(totals)), 1 / (NUM_DRAWS + 1)) if len(totals) > 1 else None,
    )


def sign_flip(totals: NDArray[np.float64], rng: np.random.Generator) -> float:
    """Return the two-sided p-value of a sum under random signs of its terms.

    With more than `MAX_EXACT_INSTANCES` terms, signs are drawn at random and p is (1 + hits) / (1 +
    draws).

    Args:
        totals: The terms, shape (instances,).
        rng: Generator of the random signs.

    >>> sign_flip(np.array([1.0, 1.0, 1.0]), np.random.default_rng(0))
    0.25
    """
    count = len(totals)
    reached = abs(float(totals.sum())) - 1e-9
    if count <= MAX_EXACT_INSTANCES:
        bits = np.arange(2**count)[:, None] >> np.arange(count) & 1
        return float(np.mean(np.abs((1 - 2 * bits) @ totals) >= reached))
    signs = 1 - 2 * rng.integers(0, 2, size=(NUM_DRAWS, count))
    hits = int(np.sum(np.abs(signs @ totals) >= reached))
    return (1 + hits) / (1 + NUM_DRAWS)
