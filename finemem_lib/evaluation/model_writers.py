"""Compare memories that a language model wrote with those that the same system writes without one.

A system plays the same instances twice, before the same reader and with the same token budget: once
with a language model as its writer, once without. Rows hold scores and counts, no text. The
difference is paired by question; its interval resamples whole instances.

Differs from the papers of the systems, which report their trained or prompted model only.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from finemem_lib.evaluation.answers import writer_calls
from finemem_lib.evaluation.rows import MeasuredRow
from finemem_lib.evaluation.tables import (
    ALL,
    BootstrapSettings,
    Estimate,
    benchmark_table,
    paired_differences,
)
from finemem_lib.trajectory import MemoryDelta, Trajectory

RULES = "rules"
"""The writer of a system that is played without a language model."""


@dataclass(frozen=True, slots=True)
class WriterRow(MeasuredRow):
    """One question under one writer, or the means over all of them (`instance` is "all").

    Attributes:
        method: Name of the system.
        writer: Name of the language model, or `RULES`.
        instance: Id of the instance.
        question: Id of the question; "all" for the means, which count every question once.
        score: Score of the answer, in [0, 1].
        memory_tokens: Length of the final memory.
        calls: Language-model calls that wrote the memory of an instance, without repetitions.
        seconds: CPU seconds of the system per instance; all instances are played together.
        changed: Steps of an instance that changed its memory, of `steps`.
        refused: Operations of an instance that were not applied.
        low: Lower end of the interval of a mean score; `None` for a question. So is `high`.
        difference: Mean score less that of the same system by `RULES`; `None` for questions and
            for `RULES`. Its interval is `difference_low` to `difference_high`.
        unanswered: Requests to the model without a usable reply; `None` for a question.
    """

    made_by: ClassVar[str] = "python benchmarks/model_writers.py --output FILE.jsonl"

    method: str
    writer: str
    instance: str
    question: str
    score: float | None
    memory_tokens: float
    calls: float
    seconds: float
    changed: float
    refused: float
    steps: float
    questions: int = 1
    instances: int = 1
    low: float | None = None
    high: float | None = None
    difference: float | None = None
    difference_low: float | None = None
    difference_high: float | None = None
    unanswered: int | None = None


@dataclass(frozen=True, slots=True)
class Play:
    """What one system did with one writer.

    Attributes:
        trajectories: One per instance, at least one.
        seconds: CPU seconds of all of them together.
        unanswered: Requests to the model without a usable reply.
    """

    trajectories: Sequence[Trajectory]
    seconds: float
    unanswered: int = 0


def writer_rows(
    method: str, plays: Mapping[str, Play], bootstrap: BootstrapSettings | None = None
) -> list[WriterRow]:
    """Return the rows of one system: per writer its means, and then one row per question.

    Args:
        method: Name of the system.
        plays: By writer; with `RULES` among them, the others have differences to it.
        bootstrap: Settings of the intervals.

    Raises:
        ValueError: there is no play, or the writers did not play the same instances.

    >>> from finemem_lib.data.worked_example import worked_example
    >>> mean, first, _ = writer_rows("by hand", {RULES: Play([worked_example()], 2.0)})
    >>> mean.score, mean.changed, first.question, first.score
    (0.75, 2.0, 'q-1', 1.0)
    """
    methods = {writer: one.trajectories for writer, one in plays.items()}
    means = _overall(benchmark_table(methods, bootstrap, ["accuracy"]))
    less = _overall(paired_differences(methods, RULES, bootstrap)) if RULES in plays else {}
    rows = []
    for writer, play in plays.items():
        asked = _questions(method, writer, play)
        mean, difference = means[writer], less.get(f"{writer} - {RULES}")
        rows += [_mean(asked, play, mean, difference), *asked]
    return rows


def _overall(estimates: Sequence[Estimate]) -> dict[str, Estimate]:
    """Return the estimates over all data that count every question once, by method."""
    return {one.method: one for one in estimates if (one.category, one.average) == (ALL, "pooled")}


def _questions(method: str, writer: str, play: Play) -> list[WriterRow]:
    seconds = play.seconds / len(play.trajectories)
    return [
        WriterRow(
            method,
            writer,
            one.instance_id,
            answered.question.question_id,
            answered.score,
            one.steps[-1].memory_tokens,
            writer_calls(one),
            seconds,
            sum(step.delta != MemoryDelta() for step in one.steps),
            sum(not outcome.applied for step in one.steps for outcome in step.outcomes),
            one.num_steps,
        )
        for one in play.trajectories
        for answered in one.questions
    ]


def _mean(
    asked: Sequence[WriterRow], play: Play, mean: Estimate, difference: Estimate | None
) -> WriterRow:
    each = {row.instance: row for row in asked}.values()

    def average(name: str) -> float:
        total: float = sum(getattr(row, name) for row in each)
        return total / len(each)

    return WriterRow(
        asked[0].method,
        asked[0].writer,
        ALL,
        ALL,
        mean.value,
        memory_tokens=average("memory_tokens"),
        calls=average("calls"),
        seconds=average("seconds"),
        changed=average("changed"),
        refused=average("refused"),
        steps=average("steps"),
        questions=mean.counted,
        instances=len(each),
        low=mean.low,
        high=mean.high,
        difference=difference.value if difference else None,
        difference_low=difference.low if difference else None,
        difference_high=difference.high if difference else None,
        unanswered=play.unanswered,
    )
