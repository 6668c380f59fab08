"""Compare retrievers by recall, accuracy, evidence credit and time.

All retrievers search the same memories, which a scripted manager writes independently of retrieval.
Measures, each compared with `BASELINE` on the same questions:

- recall: score of the answer contained in the k retrieved items, by the metric of the question; for
  label questions, whether an example with an accepted label is among the items;
- accuracy: score of the extractive reader on the k items;
- evidence used: share of the retrieved items that the reader used, over the questions with a score
  above 0; EARA credits all retrieved items, so this is the share of its evidence that was used;
- credit agreement: Spearman correlation, per trajectory, of the evidence credit per step with that
  under `BASELINE`;
- credit against truth: the same correlation with `credit_truth.planted_credit`, if the steps that
  state the answers are known;
- query ms, update ms: CPU time of one search and of updating one item in an index of the given
  number of items, including the encoding of new texts; median with quartiles as the interval.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from finemem_lib.data.sentences import labelled_examples
from finemem_lib.evaluation.credit_truth import planted_credit, rank_correlation
from finemem_lib.evaluation.intervals import clustered_mean, interval_text
from finemem_lib.evaluation.rows import MeasuredRow
from finemem_lib.managers.protocol import MemoryManager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import ReasoningAgent, reading_task
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.named import RetrieverName
from finemem_lib.rewards import evidence_contribution
from finemem_lib.scoring import metric_for, score
from finemem_lib.trajectory import AnsweredQuestion, Instance, MemoryItem, Question, Trajectory

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
"""The retriever with which all others are compared."""

TOP_K = 3
"""Number of retrieved items for the measures of evidence, the default of `RolloutSettings`."""

CORRELATION = (-1, 1)
"""Smallest and largest value of the two credit measures."""

Values = dict[str, list[float | None]]
"""Values by instance id; `None` if undefined."""

Found = dict[tuple[Measure, RetrieverName, int], Values]
"""Values by measure, retriever and k."""


@dataclass(frozen=True, slots=True)
class Row(MeasuredRow):
    """One value with its interval, and its difference to `BASELINE` on the same questions.

    Attributes:
        measure: Name of the measure, see the module docstring.
        file: Data file; "planted" for planted streams, "" for times.
        manager: Manager that wrote the memory; "" for times.
        k: Number of retrieved items.
        items: Number of items in the memory, the mean over instances.
        value: Mean (median for times), with its interval from `low` to `high`.
        difference: Mean difference to `BASELINE`, with its interval from `difference_low` to
            `difference_high`; `None` for `BASELINE` and for times.
        counted: Number of questions, trajectories or repetitions in the value.
        instances: Number of instances in the value, the clusters of the interval.
    """

    made_by: ClassVar[str] = "python benchmarks/retrievers.py DATA --output FILE.jsonl"

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
    r"""Return the score of the answer contained in items, in [0, 1]; `None` if no metric applies.

    Args:
        question: The question with its accepted answers.
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
    """Return every measure except time, and the mean number of items in the final memories.

    Args:
        instances: Instances that the manager plays.
        manager: Memory manager whose operations do not depend on retrieval.
        retrievers: Names of the retrievers, including `BASELINE`.
        recall_at: Values of k for the recall.
        accuracy_at: Values of k for the accuracy.
        dense_model: Sentence encoder of the retrievers that need one.
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
                read = _read(one.questions, ranked, k, agent)
                if k in accuracy_at:
                    found["accuracy", name, k][one.instance_id] = [a.score for a in read]
                if k == TOP_K:
                    _add_evidence(found, credits, name, one, read)
    return dict(found), round(sum(sizes) / len(sizes))


def _read(
    questions: Sequence[AnsweredQuestion],
    ranked: Sequence[Sequence[MemoryItem]],
    k: int,
    agent: ReasoningAgent,
) -> list[AnsweredQuestion]:
    """Return the questions answered from their first k retrieved items (`ranked`)."""
    tasks = [reading_task(a.question, hits[:k]) for a, hits in zip(questions, ranked, strict=True)]
    return [
        dataclasses.replace(
            a,
            retrieved=a.retrieved[:k],
            answer=reading.answer or "",
            used=reading.used,
            score=score(reading.answer, a.question.answers, a.question.data_source),
        )
        for a, reading in zip(questions, agent.read(tasks), strict=True)
    ]


def _add_evidence(
    found: defaultdict[tuple[Measure, RetrieverName, int], Values],
    credits: dict[tuple[RetrieverName, str], list[float | None]],
    name: RetrieverName,
    one: Trajectory,
    read: Sequence[AnsweredQuestion],
) -> None:
    """Add the evidence measures of one trajectory to `found`, and its credit to `credits`."""
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
    """Return rows for the values that `compare` returned, with intervals over instances.

    Args:
        found: Values by measure, retriever and k.
        file: Data file.
        manager: Name of the manager.
        items: Mean number of items in the final memories.
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


def cost_table(rows: Iterable[Row]) -> pd.DataFrame:
    """Return a table of times and evidence measures: a row per measure, a column per retriever.

    Measures with fewer than two instances are left out.

    Args:
        rows: Rows of any measures and files; of the evidence those of "insert-all" are shown.
    """
    import pandas as pd

    lines: defaultdict[str, dict[str, str]] = defaultdict(dict)
    rows = [*rows]
    for row in rows:
        if row.measure.endswith(" ms"):
            line = f"{row.measure}, {row.items:,} items"
            lines[line][row.retriever] = f"{row.value:.2f}"
        elif row.manager == "insert-all" and row.measure in _ORDER and row.low is not None:
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
