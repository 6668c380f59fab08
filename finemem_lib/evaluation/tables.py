"""Tables over trajectories: accuracy, memory length and operations by method, with intervals.

The bootstrap resamples whole instances with all their rollouts, within each data source (stratum).
An interval therefore covers the variation between instances of the same data sources. An unscored
question is counted and shown, never scored as 0. Retrieval over raw chunks or over labelled
examples is a scripted manager that inserts each of them as one item, so every reward and figure
applies to it.

Differs from the paper: each average states what it averages over. "pooled" counts each scored
question once, whatever its source; "macro" is the mean of the pooled values of the data sources.
"""

from __future__ import annotations

import dataclasses
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np

from finemem_lib.evaluation.intervals import interval_text, percentile_ends
from finemem_lib.rewards import compression_reward
from finemem_lib.seeds import stable_seed
from finemem_lib.trajectory import OPERATION_KINDS, OperationOutcome, Trajectory

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import NDArray

Measure = Literal["accuracy", "memory_tokens", "memory_share"]
Average = Literal["pooled", "macro"]
Resample = Literal["instance", "question"]
ALL = "all"
CATEGORIES = ("AR", "TTL", "LRU", "CR")
UNPARSED = "unparsed"


@dataclass(frozen=True, slots=True)
class BootstrapSettings:
    """Settings of the percentile bootstrap.

    Attributes:
        resample: unit that is drawn with replacement within a data source. "instance" covers the
            variation between instances, "question" that between questions on the same instances,
            the only choice for a data source with one instance. Memory measures always resample
            instances.
        num_resamples: number of resamples, at least 100.
        level: coverage of the interval, between 0 and 1.

    Raises:
        ValueError: a value is out of range.
    """

    resample: Resample = "instance"
    num_resamples: int = 2000
    level: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        if self.resample not in get_args(Resample):
            raise ValueError(
                f"bootstrap: resample is {self.resample!r}, expected 'instance' or 'question'"
            )
        if self.num_resamples < 100 or not 0 < self.level < 1:
            raise ValueError(
                f"bootstrap: num_resamples is {self.num_resamples} and level {self.level}, "
                "expected at least 100 and a number between 0 and 1"
            )


@dataclass(frozen=True, slots=True)
class Estimate:
    """One cell of a table, its interval, and what it averages over.

    Attributes:
        method: name of the method; "A - B" for a difference.
        category: category of the data source; "all" over several.
        data_source: "all" over several.
        measure: accuracy and memory share are fractions, memory tokens are L(M_T).
        average: how questions and sources are weighted.
        value: the estimate; `None` if nothing could be measured.
        low: lower end of the interval, `None` if there are too few units to resample; so is `high`.
        counted: number of scored answers (for memory, trajectories; for a difference, pairs).
        left_out: number of those that could not be scored (or paired).
        over: what the value averages over, in words.
        interval: how the interval was computed, or why there is none.
    """

    method: str
    category: str
    data_source: str
    measure: Measure
    average: Average
    value: float | None
    low: float | None
    high: float | None
    instances: int
    counted: int
    left_out: int
    over: str
    interval: str


@dataclass(frozen=True, slots=True)
class OperationCount:
    """Numbers of emitted, applied and invalid operations of one kind by one method.

    Attributes:
        kind: one of `OPERATION_KINDS`, or "unparsed" for text that is no operation.
        per_step: emitted / steps.
        reasons: number of invalid operations by reason, most frequent first.
    """

    method: str
    kind: str
    emitted: int
    applied: int
    invalid: int
    per_step: float
    reasons: dict[str, int]


def benchmark_table(
    methods: Mapping[str, Sequence[Trajectory]],
    settings: BootstrapSettings | None = None,
    measures: Sequence[Measure] = get_args(Measure),
) -> list[Estimate]:
    """Return accuracy and memory of every method by data source, by category and overall.

    accuracy: mean score of the scored global questions. memory_tokens: mean L(M_T) over
    trajectories. memory_share: mean of L(M_T) / sum_t L(c_t), which is 1 - r_comp.

    Args:
        methods: trajectories of every method by its name.
        settings: settings of the bootstrap.
        measures: the measures to compute.

    Returns:
        Per method and measure, one row per data source, and two rows (macro, pooled) per category
        and overall.

    Raises:
        ValueError: a method has no trajectories, or lengths were counted by different tokenizers.
    """
    _check(methods)
    settings = settings or BootstrapSettings()
    return [
        row
        for method, trajectories in methods.items()
        for measure in measures
        for row in _rows(method, measure, _strata([trajectories], measure, settings), settings)
    ]


def paired_differences(
    methods: Mapping[str, Sequence[Trajectory]],
    baseline: str,
    settings: BootstrapSettings | None = None,
    measure: Measure = "accuracy",
) -> list[Estimate]:
    """Return the differences between every method and the baseline as rows of `benchmark_table`.

    Only questions (for memory, instances) with a value under both methods count. Both methods are
    resampled together, so the difficulty of an instance cancels out.

    Args:
        methods: trajectories of every method by its name.
        baseline: name of the method to subtract.
        settings: settings of the bootstrap.
        measure: the measure to compare.

    Raises:
        ValueError: the baseline is unknown, or the methods were played on different instances.
    """
    _check(methods)
    if baseline not in methods:
        raise ValueError(
            f"baseline {baseline!r} is not among the methods, expected one of {', '.join(methods)}"
        )
    settings = settings or BootstrapSettings()
    rows: list[Estimate] = []
    for method, trajectories in methods.items():
        if method == baseline:
            continue
        _check_same_instances(method, trajectories, baseline, methods[baseline])
        strata = _strata([trajectories, methods[baseline]], measure, settings)
        rows += _rows(f"{method} - {baseline}", measure, strata, settings)
    return rows


def operations_table(methods: Mapping[str, Sequence[Trajectory]]) -> list[OperationCount]:
    """Return the numbers of emitted, applied and invalid operations by method and kind.

    Args:
        methods: trajectories of every method by its name.

    Raises:
        ValueError: a method has no trajectories, or lengths were counted by different tokenizers.
    """
    _check(methods)
    rows = []
    for method, trajectories in methods.items():
        steps = [step for trajectory in trajectories for step in trajectory.steps]
        emitted: defaultdict[str, list[OperationOutcome]] = defaultdict(list)
        for step in steps:
            for outcome in step.outcomes:
                emitted[outcome.operation.kind if outcome.operation else UNPARSED].append(outcome)
        for kind in (*OPERATION_KINDS, UNPARSED):
            refused = [o.reason or "no reason given" for o in emitted[kind] if not o.applied]
            rows.append(
                OperationCount(
                    method=method,
                    kind=kind,
                    emitted=len(emitted[kind]),
                    applied=len(emitted[kind]) - len(refused),
                    invalid=len(refused),
                    per_step=len(emitted[kind]) / max(len(steps), 1),
                    reasons=dict(Counter(refused).most_common()),
                )
            )
    return rows


def summary(rows: Iterable[Estimate]) -> list[dict[str, str]]:
    """Return one table row of text per method.

    Args:
        rows: rows of `benchmark_table`.

    Returns:
        Per method, text by column: accuracy by category and overall (macro means over data
        sources), memory, and the number of unscored questions.
    """
    lines: dict[str, dict[str, str]] = {}
    for row in rows:
        line = lines.setdefault(row.method, {"method": row.method})
        if row.average != "macro":
            continue
        if row.measure == "accuracy":
            line[f"{row.category} accuracy"] = format_estimate(row)
            if row.category == ALL:
                line["unscored"] = str(row.left_out)
        elif row.category == ALL:
            line[row.measure.replace("_", " ")] = format_estimate(row)
    return list(lines.values())


def format_estimate(row: Estimate) -> str:
    """Return an estimate with its interval as text, "–" if nothing could be measured.

    Args:
        row: the estimate.
    """
    if row.value is None:
        return "–"
    digits = ",.0f" if row.measure == "memory_tokens" else ".3f"
    return interval_text(row.value, row.low, row.high, digits)


def to_frame(rows: Iterable[Any]) -> pd.DataFrame:
    """Return table rows (dataclasses) as a pandas frame, one column per field.

    Args:
        rows: dataclasses of one type, any number.
    """
    import pandas as pd

    return pd.DataFrame([dataclasses.asdict(row) for row in rows])


@dataclass(slots=True)
class _Stratum:
    """Sums per cluster in one data source, for M methods (two for a difference).

    `numerators` and `denominators` have shape (M, clusters); `draws` holds the bootstrap resamples.
    """

    category: str
    data_source: str
    numerators: NDArray[np.float64]
    denominators: NDArray[np.float64]
    instances: int
    counted: int
    left_out: int
    draws: NDArray[np.float64] | None = None

    @property
    def clusters(self) -> int:
        return int(self.numerators.shape[1])


def _observations(
    trajectory: Trajectory, measure: Measure
) -> Iterator[tuple[str | None, float | None]]:
    """Yield (question id or None, value or None) for every value of a measure in a trajectory."""
    if measure == "accuracy":
        for answered in trajectory.questions:
            yield answered.question.question_id, answered.score
    elif measure == "memory_tokens":
        yield None, trajectory.steps[-1].memory_tokens if trajectory.steps else 0
    else:
        compression = compression_reward(trajectory)
        yield None, None if compression is None else 1 - compression


def _strata(
    runs: Sequence[Sequence[Trajectory]], measure: Measure, settings: BootstrapSettings
) -> list[_Stratum]:
    """Return the sums per cluster of every data source.

    For a difference, a question (or instance) is one pair: its rollouts are averaged first, and it
    is left out unless it has a value under both methods.
    """
    seen: defaultdict[tuple[str, str], dict[tuple[str, str | None], NDArray[np.float64]]]
    seen = defaultdict(dict)
    unscored: Counter[tuple[str, str]] = Counter()
    for number, trajectories in enumerate(runs):
        for trajectory in trajectories:
            stratum = trajectory.category, trajectory.data_source
            units = seen[stratum]
            for question_id, value in _observations(trajectory, measure):
                unit = trajectory.instance_id, question_id
                sums = units.setdefault(unit, np.zeros((2, len(runs))))
                if value is None:
                    unscored[stratum] += 1
                else:
                    sums[:, number] += value, 1
    strata = []
    for stratum in sorted(seen, key=lambda key: (_category_order(key[0]), key[1])):
        scored = {unit: sums for unit, sums in seen[stratum].items() if sums[1].all()}
        if len(runs) > 1:
            scored = {unit: sums / sums[1] for unit, sums in scored.items()}
        clusters: dict[Any, NDArray[np.float64]] = {}
        for unit in sorted(scored, key=str):
            cluster = unit if settings.resample == "question" else unit[0]
            clusters[cluster] = clusters.get(cluster, 0) + scored[unit]
        table = np.array(list(clusters.values())).reshape(len(clusters), 2, len(runs))
        strata.append(
            _Stratum(
                *stratum,
                numerators=table[:, 0].T,
                denominators=table[:, 1].T,
                instances=len({instance for instance, _ in scored}),
                counted=int(table[:, 1, 0].sum()),
                left_out=unscored[stratum] if len(runs) == 1 else len(seen[stratum]) - len(scored),
            )
        )
    return strata


def _rows(
    method: str, measure: Measure, strata: list[_Stratum], settings: BootstrapSettings
) -> Iterator[Estimate]:
    for stratum in strata:
        if stratum.clusters > 1:
            stratum.draws = _draw(stratum, settings)
        place = (method, stratum.category, stratum.data_source, measure)
        yield _estimate(place, "pooled", [stratum], settings)
    categories = sorted({stratum.category for stratum in strata}, key=_category_order)
    for category in (*categories, ALL):
        members = [stratum for stratum in strata if category in (ALL, stratum.category)]
        for average in get_args(Average):
            yield _estimate((method, category, ALL, measure), average, members, settings)


def _draw(stratum: _Stratum, settings: BootstrapSettings) -> NDArray[np.float64]:
    """Return resampled sums, shape (num_resamples, 2, M): numerators, then denominators.

    The draws depend on the stratum, not on the method, so methods share their random numbers.
    """
    seed = stable_seed(settings.seed, "bootstrap", stratum.category, stratum.data_source)
    rng = np.random.default_rng(seed)
    sums = np.stack([stratum.numerators, stratum.denominators])
    size = stratum.clusters
    return np.array(
        [
            sums[:, :, rng.integers(size, size=size)].sum(axis=2)
            for _ in range(settings.num_resamples)
        ]
    )


def _estimate(
    place: tuple[str, str, str, Measure],
    average: Average,
    members: list[_Stratum],
    settings: BootstrapSettings,
) -> Estimate:
    method, category, data_source, measure = place
    measured = [stratum for stratum in members if stratum.clusters]
    single = [stratum.data_source for stratum in measured if stratum.draws is None]
    draws = [stratum.draws for stratum in measured if stratum.draws is not None]
    value = low = high = None
    if measured:
        exact = [np.stack([s.numerators.sum(axis=1), s.denominators.sum(axis=1)]) for s in measured]
        value = float(_average(np.stack(exact), average))
    if not measured:
        interval = "none: nothing was scored"
    elif single:
        unit = _unit(settings, measure)
        interval = f"none: one {unit} is too few to resample ({', '.join(single)})"
    else:
        low, high = map(
            float, percentile_ends(_average(np.stack(draws, axis=1), average), settings.level)
        )
        interval = (
            f"{100 * settings.level:g} % percentile bootstrap over {_unit(settings, measure)}s "
            f"within data sources, {settings.num_resamples} resamples, seed {settings.seed}"
        )
    instances = sum(stratum.instances for stratum in members)
    counted = sum(stratum.counted for stratum in members)
    left_out = sum(stratum.left_out for stratum in members)
    return Estimate(
        method,
        category,
        data_source,
        measure,
        average,
        value,
        low,
        high,
        instances,
        counted,
        left_out,
        _over(measure, average, members, counted),
        interval,
    )


def _average(sums: NDArray[np.float64], average: Average) -> NDArray[np.float64]:
    """Average sums of shape (..., strata, 2, M); with two methods return their difference."""
    if average == "pooled":
        sums = sums.sum(axis=-3, keepdims=True)
    values: NDArray[np.float64] = (sums[..., 0, :] / sums[..., 1, :]).mean(axis=-2)
    return values[..., 0] - values[..., 1] if values.shape[-1] == 2 else values[..., 0]


def _over(measure: Measure, average: Average, members: list[_Stratum], counted: int) -> str:
    what = "scored answers" if measure == "accuracy" else "trajectories"
    if members[0].numerators.shape[0] == 2:
        what = f"pairs of {what}"
    if average == "pooled":
        return f"{counted} {what} pooled"
    names = [stratum.data_source for stratum in members if stratum.clusters]
    missing = [stratum.data_source for stratum in members if not stratum.clusters]
    text = f"mean over {len(names)} data sources ({', '.join(names)}), each pooled over its {what}"
    return f"{text}; without {', '.join(missing)}, where nothing was scored" if missing else text


def _unit(settings: BootstrapSettings, measure: Measure) -> str:
    return settings.resample if measure == "accuracy" else "instance"


def _category_order(category: str) -> tuple[int, str]:
    known = CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES)
    return known, category


def _check(methods: Mapping[str, Sequence[Trajectory]]) -> None:
    empty = [method for method, trajectories in methods.items() if not trajectories]
    if empty or not methods:
        raise ValueError(
            f"no trajectories for {', '.join(empty) or 'any method'}, expected at least one per "
            "method; play the instances first"
        )
    tokenizers = {t.tokenizer for trajectories in methods.values() for t in trajectories}
    if len(tokenizers) > 1:
        raise ValueError(
            f"lengths were counted by different tokenizers ({', '.join(sorted(tokenizers))}), "
            "expected one for all methods of a table; play them with the same one"
        )


def _check_same_instances(
    method: str, trajectories: Sequence[Trajectory], baseline: str, others: Sequence[Trajectory]
) -> None:
    first, second = (
        {(t.category, t.data_source, t.instance_id) for t in group}
        for group in (trajectories, others)
    )
    if first != second:
        only = sorted(instance for _, _, instance in first ^ second)
        raise ValueError(
            f"{method} and {baseline} were played on different instances: {len(only)} of "
            f"{len(first | second)} ({', '.join(only[:3])}) were played with one method only; a "
            "paired difference needs both methods on every instance"
        )
