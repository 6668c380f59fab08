"""What another retriever changes: recall, answers, time, and the credit that evidence gives.

All retrievers search the same memories: a scripted manager reads the instances, whatever is
retrieved. Measures, each against `BASELINE` on the same questions:

- recall: what the k items say of the answer, by the metric of the question; where a label is asked
  for, whether an example with an accepted label is among them;
- accuracy: score of the extractive reader on the k items;
- evidence used: share of the retrieved items that the reader answered from, over the questions with
  a score above 0: the share of EARA's evidence that does not go to bystanders;
- credit agreement: Spearman correlation of the evidence per step with that of `BASELINE`, per
  trajectory;
- credit against truth: the same with `credit_truth.planted_credit`, where the steps that state the
  answers are known;
- query ms, update ms: CPU time of one search, and of one changed item, in an index of so many
  items; a text that is new to the encoder is encoded in it. Their interval is that of quartiles.
"""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from finemem_lib.data.sentences import labelled_examples
from finemem_lib.evaluation.credit_truth import planted_credit, rank_correlation
from finemem_lib.evaluation.intervals import clustered_mean, interval_text
from finemem_lib.managers.protocol import MemoryManager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import reading_task
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.named import RetrieverName
from finemem_lib.rewards import evidence_contribution
from finemem_lib.scoring import metric_for, score
from finemem_lib.trajectory import AnsweredQuestion, Instance, Question, Trajectory
from finemem_lib.util.files import written_beside

if TYPE_CHECKING:
    import pandas as pd

Measure = Literal[
    "recall",
    "accuracy",
    "evidence used",
    "credit agreement",
    "credit against truth",
    "query ms",
    "update ms",
]

BASELINE: RetrieverName = "bm25"
"""The retriever that all others are compared with."""

TOP_K = 3
"""Items that the evidence is taken from, the default of `RolloutSettings`."""

CORRELATION = (-1, 1)
"""Smallest and largest value of the two measures of credit."""

Values = dict[str, list[float | None]]
"""Values by instance, `None` where there is nothing to measure."""

Found = dict[tuple[Measure, RetrieverName, int], Values]
"""Values by measure, retriever and k."""


@dataclass(frozen=True, slots=True)
class Row:
    """One value with its interval, and its difference to `BASELINE` on the same questions.

    Attributes:
        measure: See above.
        file: Data file, "planted" for planted streams, "" where time is measured.
        manager: Who filled the memory; "" where time is measured.
        retriever: Name of the retriever.
        k: Items retrieved.
        items: Items in the memory, the mean over instances.
        value: The mean (the median of a time), between `low` and `high`.
        difference: To `BASELINE`, between `difference_low` and `difference_high`; `None` for itself
            and for times.
        counted: Questions, trajectories or repetitions behind the value.
        instances: Clusters behind the interval.
    """

    measure: Measure
    file: str
    manager: str
    retriever: RetrieverName
    k: int
    items: int
    value: float | None
    low: float | None
    high: float | None
    difference: float | None
    difference_low: float | None
    difference_high: float | None
    counted: int
    instances: int


def recall(question: Question, contents: Sequence[str]) -> float | None:
    r"""Return what items say of the answer, in [0, 1]; `None` where no metric can tell.

    Args:
        question: With its accepted answers.
        contents: Contents of the items.

    >>> question = Question("q", "Where does Mia live?", ("Rome",), "planted")
    >>> recall(question, ["Ana sails", "Mia lives in Rome"]), recall(question, ["Ana sails"])
    (1.0, 0.0)
    >>> asked = Question("q", "Sentence: good day", ("3",), "icl_nlu_8296shot_balance")
    >>> recall(asked, ["Sentence: bye\nLabel: 4", "Sentence: hello\nLabel: 3"])
    1.0
    """
    if metric_for(question.data_source) != "label_match":
        return score("\n".join(contents), question.answers, question.data_source)
    labels = [label for content in contents for _, label in labelled_examples(content)]
    scores = [
        score(rf"\boxed{{{label}}}", question.answers, question.data_source) for label in labels
    ]
    return max((one for one in scores if one is not None), default=0.0)


def compare(
    instances: Sequence[Instance],
    manager: MemoryManager,
    retrievers: Sequence[RetrieverName],
    recall_at: Sequence[int],
    accuracy_at: Sequence[int],
    dense_model: str = DENSE_MODEL,
    seed: int = 0,
) -> tuple[Found, int]:
    """Return every measure but time, and the mean number of items in the final memories.

    Args:
        instances: What the manager reads.
        manager: Fills the memories; it must not look at what is retrieved.
        retrievers: Names of the retrievers, `BASELINE` among them.
        recall_at: Numbers of items to measure the recall of.
        accuracy_at: Numbers of items to let the reader read.
        dense_model: Sentence encoder of those that need one.
        seed: Seed of the manager.
    """
    agent = reader_for(instances)
    found: defaultdict[tuple[Measure, RetrieverName, int], Values] = defaultdict(dict)
    credits: dict[tuple[RetrieverName, str], list[float | None]] = {}
    sizes = []
    for name in sorted(retrievers, key=lambda one: one != BASELINE):
        settings = RolloutSettings(
            num_generations=1,
            top_k=max(*recall_at, *accuracy_at, TOP_K),
            ask_chunk_questions=False,
            retriever=name,
            dense_model=dense_model,
        )
        for [one] in play(instances, manager, settings, agent, seed):
            items = {item.item_id: item for item in one.final_memory()}
            sizes.append(len(items))
            ranked = [[items[hit.item_id] for hit in a.retrieved] for a in one.questions]
            for k in recall_at:
                found["recall", name, k][one.instance_id] = [
                    recall(a.question, [item.content for item in hits[:k]])
                    for a, hits in zip(one.questions, ranked, strict=True)
                ]
            for k in sorted({*accuracy_at, TOP_K}):
                tasks = [
                    reading_task(a.question, hits[:k])
                    for a, hits in zip(one.questions, ranked, strict=True)
                ]
                read = [
                    dataclasses.replace(
                        a,
                        retrieved=a.retrieved[:k],
                        answer=reading.answer or "",
                        used=reading.used,
                        score=score(reading.answer, a.question.answers, a.question.data_source),
                    )
                    for a, reading in zip(one.questions, agent.read(tasks), strict=True)
                ]
                if k in accuracy_at:
                    found["accuracy", name, k][one.instance_id] = [a.score for a in read]
                if k == TOP_K:
                    _add_evidence(found, credits, name, one, read)
    return dict(found), round(sum(sizes) / len(sizes))


def _add_evidence(
    found: defaultdict[tuple[Measure, RetrieverName, int], Values],
    credits: dict[tuple[RetrieverName, str], list[float | None]],
    name: RetrieverName,
    one: Trajectory,
    read: Sequence[AnsweredQuestion],
) -> None:
    """Add what the answers of a trajectory say of its evidence."""
    at_k = dataclasses.replace(one, questions=tuple(read))
    credit = credits[name, one.instance_id] = evidence_contribution(at_k)
    found["evidence used", name, TOP_K][one.instance_id] = [
        len(a.used) / len(a.retrieved) if a.score and a.used is not None and a.retrieved else None
        for a in read
    ]
    found["credit agreement", name, TOP_K][one.instance_id] = [
        rank_correlation(credit, credits[BASELINE, one.instance_id])
    ]
    if all(a.question.evidence_steps for a in read):
        found["credit against truth", name, TOP_K][one.instance_id] = [
            rank_correlation(credit, planted_credit(at_k))
        ]


def rows_of(found: Found, file: str, manager: str, items: int) -> list[Row]:
    """Return the rows of what `compare` found, with intervals over instances.

    Args:
        found: Values by measure, retriever and k.
        file: Data file.
        manager: Name of the manager.
        items: Mean number of items.
    """
    rows = []
    for (measure, retriever, k), values in found.items():
        baseline = found[measure, BASELINE, k]
        difference = (
            clustered_mean(values, baseline) if values is not baseline else (None, None, None)
        )
        known = {name: some for name, some in values.items() if set(some) != {None}}
        rows.append(
            Row(
                measure,
                file,
                manager,
                retriever,
                k,
                items,
                *clustered_mean(
                    values, bounds=CORRELATION if measure.startswith("credit") else (0, 1)
                ),
                *difference,
                sum(value is not None for some in values.values() for value in some),
                len(known),
            )
        )
    return rows


def cost_table(rows: Iterable[Row], manager: str = "insert-all") -> pd.DataFrame:
    """Return times and the measures of evidence, a column per retriever, a line per measure.

    What has fewer than two instances to measure is left out.

    Args:
        rows: The rows, of any measures and files.
        manager: Who filled the memories.
    """
    import pandas as pd

    lines: defaultdict[str, dict[str, str]] = defaultdict(dict)
    rows = [*rows]
    for row in rows:
        if row.measure.endswith(" ms"):
            line = f"{row.measure}, {row.items:,} items"
            lines[line][row.retriever] = f"{row.value:.2f}"
        elif row.manager == manager and row.measure in _ORDER and row.low is not None:
            file = row.file.removesuffix(".jsonl")
            text = interval_text(row.value, row.low, row.high, ".2f")
            lines[f"{row.measure}, {file}"][row.retriever] = text
    order = sorted(lines, key=lambda line: _ORDER.index(line.partition(",")[0]))
    table = pd.DataFrame.from_dict({line: lines[line] for line in order}, orient="index")
    return table.reindex(columns=[*dict.fromkeys(row.retriever for row in rows)]).fillna("–")


_ORDER = (
    "query ms",
    "update ms",
    "evidence used",
    "credit agreement",
    "credit against truth",
)


def write_table(rows: Iterable[Row], path: Path) -> None:
    """Write rows as JSON lines with four significant digits, whole or not at all.

    Args:
        rows: The rows, one per line.
        path: File to write or replace.

    Raises:
        OSError: they could not be written; what was there before is unchanged.
    """

    def short(row: Row) -> Mapping[str, object]:
        return {
            name: float(f"{value:.4g}") if isinstance(value, float) else value
            for name, value in dataclasses.asdict(row).items()
            if value is not None
        }

    with written_beside(path) as beside:
        lines = (json.dumps(short(row), separators=(",", ":")) + "\n" for row in rows)
        beside.write_text("".join(lines), encoding="utf-8")


def read_table(path: Path) -> list[Row]:
    """Read back what `write_table` wrote.

    Args:
        path: The file.

    Raises:
        ValueError: the file is missing, or a line of it is not a row.
    """
    optional = ("value", "low", "high", "difference", "difference_low", "difference_high")
    try:
        return [
            Row(**dict.fromkeys(optional) | json.loads(line))
            for line in path.read_text(encoding="utf-8").splitlines()
        ]
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(
            f"{path} does not hold rows of retrievers ({error}); make them with "
            "`python benchmarks/retrievers.py DATA --output FILE.jsonl`"
        ) from error
