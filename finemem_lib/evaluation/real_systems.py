"""Accuracy, memory, failure stages and failure signs of systems by file of real text.

A part holds the results of one method on one file: scores and lengths, and no text of the file.
`system_rows` joins parts into rows by file, by category and overall. The accuracy of a row counts
each scored question once; its interval is over instances (`intervals.clustered_mean`). Every row
of a method has the paired test against the baseline with the same budget, corrected by Holm's
method over all rows of that budget.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from finemem_lib.evaluation import rows
from finemem_lib.evaluation.comparison import budget_name
from finemem_lib.evaluation.controls import CONTROLS
from finemem_lib.evaluation.failure_stages import STAGES, Stage, StageCount, failure_stages
from finemem_lib.evaluation.intervals import clustered_mean, interval_text
from finemem_lib.evaluation.layers import failure_signs
from finemem_lib.evaluation.paired_tests import Key, PairedTest, score_tests
from finemem_lib.evaluation.tables import ALL, CATEGORIES
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Trajectory

if TYPE_CHECKING:
    import pandas as pd

BASELINE = "rag-top2"
"""The system with which all others of the same budget are compared."""

SIGNS = (
    "layered",
    "empty_core",
    "same_timestamp",
    "episodic",
    "undated",
    "assistant_turns",
    "lost_turns",
    "calls",
    "malformed",
)
"""Counts of failure signs: fields of `layers.FailureSigns`, `malformed` summed over its reasons."""


@dataclass(frozen=True, slots=True)
class Part:
    """Results of one method on one file.

    Attributes:
        method: Name of the system or control.
        budget: Token limit of its memory; `None` for the limit in its own settings.
        file: Name of the file, without suffix.
        category: Category of its questions.
        scores: By instance id, the score of every question by its id, without unscored ones.
        unscored: Number of questions without a score.
        memory_tokens: Tokens of the final memory by instance id.
        stream_tokens: Tokens of the stream by instance id.
        read_tokens: Tokens of the retrieved items, over all questions.
        stages: Number of questions by failure stage.
        exact: Number of them whose stage rests on known evidence.
        signs: Counts of the failure signs `SIGNS`.
    """

    method: str
    budget: int | None
    file: str
    category: str
    scores: Mapping[str, Mapping[str, float]]
    unscored: int
    memory_tokens: Mapping[str, int]
    stream_tokens: Mapping[str, int]
    read_tokens: int
    stages: Mapping[str, int]
    exact: Mapping[str, int]
    signs: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class SystemRow:
    """One method on one file, on all files of a category, or on all files.

    Attributes:
        method: Name of the system or control.
        budget: Token limit of its memory; `None` for the limit in its own settings.
        category: Category of the questions; "all" over several.
        file: Name of the file; "all" over several.
        instances: Number of instances.
        questions: Number of scored questions; `unscored` is the number of the others.
        accuracy: Mean score of the questions; its interval over instances is `low` to `high`.
        memory_tokens: Mean length of the final memory.
        stream_tokens: Mean length of the streams.
        read_tokens: Mean tokens of the items retrieved for a question.
        stages: Number of questions by failure stage.
        exact: Number of them whose stage rests on known evidence.
        signs: Counts of the failure signs `SIGNS`.
        difference: Mean score less that of `BASELINE` with the same budget; `None` for the baseline
            and for controls.
        p: Two-sided p-value of the paired test, `least_p` the smallest that is possible, and
            `p_holm` the p-value corrected over all rows of the budget.
    """

    method: str
    budget: int | None
    category: str
    file: str
    instances: int
    questions: int
    unscored: int
    accuracy: float | None
    low: float | None
    high: float | None
    memory_tokens: float
    stream_tokens: float
    read_tokens: float
    stages: Mapping[str, int]
    exact: Mapping[str, int]
    signs: Mapping[str, int]
    difference: float | None = None
    p: float | None = None
    least_p: float | None = None
    p_holm: float | None = None

    @property
    def name(self) -> str:
        """Name of the method, with its budget if it has one."""
        return budget_name(self.method, self.budget)


def part_of(method: str, budget: int | None, file: str, trajectories: Sequence[Trajectory]) -> Part:
    """Return the results of one method on one file.

    Args:
        method: Name of the system or control.
        budget: Token limit of its memory, if it had one.
        file: Name of the file, without suffix.
        trajectories: One per instance of the file, at least one.
    """
    stages: Counter[str] = Counter()
    exact: Counter[str] = Counter()
    read = unscored = 0
    for one in trajectories:
        found = [stage for stage in failure_stages(one) if stage is not None]
        stages.update(stage.stage for stage in found)
        exact.update(stage.stage for stage in found if stage.exact)
        held = {item.item_id: count_tokens(item.content) for item in one.final_memory()}
        read += sum(held[hit.item_id] for asked in one.questions for hit in asked.retrieved)
        unscored += sum(asked.score is None for asked in one.questions)
    signs: Counter[str] = Counter()
    for row in failure_signs(trajectories):
        counts = {name: getattr(row, name) for name in SIGNS if name != "malformed"}
        signs.update(counts | {"malformed": sum(row.malformed.values())})
    return Part(
        method=method,
        budget=budget,
        file=file,
        category=trajectories[0].category,
        scores={
            one.instance_id: {
                asked.question.question_id: asked.score
                for asked in one.questions
                if asked.score is not None
            }
            for one in trajectories
        },
        unscored=unscored,
        memory_tokens={one.instance_id: one.steps[-1].memory_tokens for one in trajectories},
        stream_tokens={
            one.instance_id: sum(step.chunk.tokens for step in one.steps) for one in trajectories
        },
        read_tokens=read,
        stages={stage: stages[stage] for stage in STAGES},
        exact={stage: exact[stage] for stage in STAGES},
        signs={name: signs[name] for name in SIGNS},
    )


def system_rows(parts: Iterable[Part], seed: int = 0) -> list[SystemRow]:
    """Return rows by file, by category and overall, with the paired tests of every budget.

    Args:
        parts: Parts of any methods, budgets and files; `BASELINE` is among every budget's.
        seed: Seed of the tests.

    Raises:
        ValueError: a budget has no part of `BASELINE`.
    """
    groups: defaultdict[tuple[int | None, str, str, str], list[Part]] = defaultdict(list)
    parts = list(parts)
    several = {part.category for part in parts}
    for part in parts:
        places = [(part.category, part.file), (part.category, ALL)]
        if len(several) > 1:
            places.append((ALL, ALL))
        for place in places:
            groups[part.budget, part.method, *place].append(part)
    tests = _tests(parts, seed)
    return [
        _row(some, category, file, tests.get((budget, method, category, file)))
        for (budget, method, category, file), some in sorted(groups.items(), key=_order)
    ]


def _order(group: tuple[tuple[int | None, str, str, str], object]) -> tuple[object, ...]:
    (budget, method, category, file), _ = group
    place = CATEGORIES.index(category) if category in CATEGORIES else len(CATEGORIES)
    return budget or 0, method in CONTROLS, method, place, file == ALL, file


def _tests(parts: Sequence[Part], seed: int) -> dict[tuple[int | None, str, str, str], PairedTest]:
    """Return the tests by budget, method, category and file, corrected within a budget."""
    found = {}
    for budget in dict.fromkeys(part.budget for part in parts):
        scores: defaultdict[str, dict[Key, float]] = defaultdict(dict)
        for part in parts:
            if part.budget == budget and part.method not in CONTROLS:
                scores[part.method] |= {
                    (part.category, part.file, instance, question): score
                    for instance, asked in part.scores.items()
                    for question, score in asked.items()
                }
        for test in score_tests(scores, BASELINE, seed):
            found[budget, test.method, test.category, test.data_source] = test
    return found


def _row(parts: Sequence[Part], category: str, file: str, test: PairedTest | None) -> SystemRow:
    scores = {
        f"{part.file} {instance}": list(asked.values())
        for part in parts
        for instance, asked in part.scores.items()
    }
    questions = sum(map(len, scores.values()))
    unscored = sum(part.unscored for part in parts)
    memory = [tokens for part in parts for tokens in part.memory_tokens.values()]
    streams = [tokens for part in parts for tokens in part.stream_tokens.values()]
    return SystemRow(
        parts[0].method,
        parts[0].budget,
        category,
        file,
        len(scores),
        questions,
        unscored,
        *clustered_mean(scores, bounds=(0, 1)),
        memory_tokens=sum(memory) / len(memory),
        stream_tokens=sum(streams) / len(streams),
        read_tokens=sum(part.read_tokens for part in parts) / max(1, questions + unscored),
        stages={stage: sum(part.stages[stage] for part in parts) for stage in STAGES},
        exact={stage: sum(part.exact[stage] for part in parts) for stage in STAGES},
        signs={name: sum(part.signs[name] for part in parts) for name in SIGNS},
        difference=test.difference if test else None,
        p=test.p if test else None,
        least_p=test.least_p if test else None,
        p_holm=test.p_holm if test else None,
    )


def read_rows(path: Path) -> list[SystemRow]:
    """Read rows that `rows.write_rows` wrote.

    Args:
        path: The file.

    Raises:
        ValueError: the file is missing, or a line is not a row.
    """
    return rows.read_rows(
        path, SystemRow, "python benchmarks/real_systems.py DATA --output FILE.jsonl"
    )


def accuracy_frame(table: Iterable[SystemRow], by_file: bool = False) -> pd.DataFrame:
    """Return the accuracies with their intervals: a line per method, best first.

    A star marks a difference to `BASELINE` whose corrected p-value is below 0.05.

    Args:
        table: Rows of one budget.
        by_file: Whether columns are files; otherwise they are categories, with the memory length.
    """
    import pandas as pd

    lines: defaultdict[str, dict[str, str]] = defaultdict(dict)
    overall: dict[str, float] = {}
    for row in table:
        if row.category == ALL:
            overall[row.method] = row.accuracy or 0.0
        if (row.file != ALL) == by_file:
            text = interval_text(row.accuracy, row.low, row.high, ".2f")
            star = "*" * (row.p_holm is not None and row.p_holm < 0.05)
            lines[row.method][row.file if by_file else row.category] = text + star
        if row.category == ALL and not by_file:
            lines[row.method]["memory tokens"] = f"{row.memory_tokens:,.0f}"
    best = sorted(lines, key=lambda method: -overall.get(method, 0.0))
    return pd.DataFrame.from_dict({name: lines[name] for name in best}, orient="index").fillna("–")


def stage_rows(table: Iterable[SystemRow], category: str = ALL) -> list[StageCount]:
    """Return the failure stages of every method, for `failure_stages.stage_frame` and its figure.

    Args:
        table: Rows of one budget.
        category: Category of the questions; "all" for all.
    """
    kinds: Sequence[Stage] = list(STAGES)
    return [
        StageCount(row.method, stage, row.stages[stage], sum(row.stages.values()), row.exact[stage])
        for row in table
        if (row.category, row.file) == (category, ALL) and row.method not in CONTROLS
        for stage in kinds
    ]


def signs_frame(table: Iterable[SystemRow]) -> pd.DataFrame:
    """Return the failure signs of the methods with a layered memory: a line per method and file.

    Args:
        table: Rows of one budget.
    """
    import pandas as pd

    pairs = {
        "empty core": ("empty_core", "layered"),
        "same timestamp twice": ("same_timestamp", "layered"),
        "undated events": ("undated", "episodic"),
        "lost assistant turns": ("lost_turns", "assistant_turns"),
        "malformed calls": ("malformed", "calls"),
    }
    lines = [
        {"method": row.method, "file": row.file}
        | {
            name: f"{row.signs[count]} of {row.signs[total]}" if row.signs[total] else "–"
            for name, (count, total) in pairs.items()
        }
        for row in table
        if row.file != ALL and row.signs["layered"]
    ]
    return pd.DataFrame(lines, columns=["method", "file", *pairs]).set_index(["method", "file"])
