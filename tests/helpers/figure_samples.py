"""A trajectory, rewards and one figure of every kind, made by hand for the tests of the figures."""

from __future__ import annotations

import dataclasses
import re
from types import SimpleNamespace

import plotly.graph_objects as go

from finemem_lib import figures
from finemem_lib.data.planted import StreamSettings, planted_stream
from finemem_lib.evaluation.failure_stages import stage_counts
from finemem_lib.evaluation.retrievers import Row as RetrieverRow
from finemem_lib.evaluation.revisions import RevisionRow
from finemem_lib.evaluation.stream_length import LengthRow
from finemem_lib.evaluation.tables import ALL, Estimate
from finemem_lib.experiments.overfitting import TrainingEnd, overfitting_sign
from finemem_lib.rewards import RewardSettings, hybrid_reward
from finemem_lib.text import count_tokens, words
from finemem_lib.trajectory import (
    AnsweredQuestion,
    Chunk,
    InvalidOperation,
    MemoryDelta,
    MemoryItem,
    Operation,
    OperationOutcome,
    Question,
    Retrieved,
    Step,
    Trajectory,
    Write,
)


def make_trajectory(seed: int = 3, num_chunks: int = 6, poison: str = "") -> Trajectory:
    """Play a planted stream with a small memory of its own.

    `poison` is put in front of every text that a data set or a model could have written.
    """
    instance = planted_stream(seed, StreamSettings(num_chunks=num_chunks, people=3))
    items: dict[str, MemoryItem] = {}
    holders: dict[tuple[str, str], str] = {}
    steps = []
    born = 0
    for number, chunk in enumerate(instance.chunks, start=1):
        outcomes, written, removed, evicted = [], {}, [], []
        for position, fact in enumerate(instance.metadata["facts"][number - 1]):
            content = f"{poison}{fact['sentence']}."
            slot = fact["person"], fact["attribute"]
            old = items.get(holders.get(slot, ""))
            kind = "UPDATE" if old else "INSERT"
            if not old:
                born += 1
            item_id = old.item_id if old else str(born)
            lineage = (*(old.lineage if old else ()), Write(number, kind, position))
            holders[slot] = item_id
            items[item_id] = written[item_id] = MemoryItem(item_id, content, lineage)
            outcomes.append(
                OperationOutcome(
                    Operation(kind, content, item_id if old else None), True, item_id=item_id
                )
            )
        if number == 3:
            reason = f"{poison}unknown id"
            outcomes.append(OperationOutcome(Operation("DELETE", item_id="99"), False, reason))
            bad = InvalidOperation(f"{poison}no JSON", f"{poison}raw")
            outcomes.append(OperationOutcome(None, False, bad.reason, raw=bad.raw))
        if number == 4 and items:
            removed = [next(item for item in items if item not in written)]
            outcomes.append(
                OperationOutcome(Operation("DELETE", item_id=removed[0]), True, item_id=removed[0])
            )
            del items[removed[0]]
        if number == 5:
            outcomes.append(OperationOutcome(Operation("SKIP"), True))
            evicted = [item for item in items if item not in written][:1]
            items.pop(evicted[0])
        steps.append(
            Step(
                number,
                dataclasses.replace(chunk, text=f"{poison}{chunk.text}"),
                f"{poison}[]",
                tuple(outcomes),
                MemoryDelta(tuple(written.values()), tuple(removed), tuple(evicted)),
                sum(count_tokens(item.content) for item in items.values()),
                tuple(
                    ask(question, items, number, poison)
                    for question in instance.chunk_questions[number - 1]
                ),
            )
        )
    asked = [ask(question, items, num_chunks, poison) for question in instance.questions]
    asked[-1] = dataclasses.replace(asked[-1], retrieved=(), used=())
    asked[1] = dataclasses.replace(asked[1], score=0.5)
    if len(asked) > 3:
        asked[3] = dataclasses.replace(asked[3], score=None)
    return Trajectory(
        f"{poison}{instance.instance_id}",
        f"{poison}planted",
        "AR",
        f"{poison}hand-made",
        0,
        tuple(steps),
        tuple(asked),
        f"{poison}words",
        seed,
    )


def long_trajectory(num_steps: int, num_questions: int = 12) -> Trajectory:
    """Return a trajectory that inserts at every step, and sometimes updates or deletes.

    Made without a manager, a memory and a reader, so that 20,000 steps take a second. Its questions
    ask about steps all over it; each is answered from its own item.
    """
    items: dict[str, MemoryItem] = {}
    steps = []
    for number in range(1, num_steps + 1):
        operations = [Operation("INSERT", f"Person{number} lives in City{number}.", str(number))]
        if number % 3 == 0:
            operations.append(Operation("UPDATE", f"Person moved at {number}.", str(number - 1)))
        if number % 7 == 0:
            operations.append(Operation("DELETE", item_id=str(number - 3)))
        written, removed, outcomes = {}, [], []
        for position, operation in enumerate(operations):
            item_id = operation.item_id or ""
            old = items.pop(item_id, None)
            outcomes.append(OperationOutcome(operation, True, item_id=item_id))
            if operation.content is None:
                removed.append(item_id)
                continue
            lineage = (*(old.lineage if old else ()), Write(number, operation.kind, position))
            items[item_id] = written[item_id] = MemoryItem(item_id, operation.content, lineage)
        chunk = Chunk(f"Person{number} lives in City{number}.", 5)
        delta = MemoryDelta(tuple(written.values()), tuple(removed))
        steps.append(Step(number, chunk, "[]", tuple(outcomes), delta, 5 * len(items)))
    asked = [
        item
        for item in items.values()
        if len(item.lineage) == 1 and item.content.startswith(f"Person{item.created_step}")
    ]
    questions = tuple(
        AnsweredQuestion(
            Question(
                f"q{place}",
                f"Where does Person{item.item_id} live?",
                (f"City{item.item_id}",),
                "planted",
                evidence_steps=(item.created_step,),
            ),
            num_steps,
            (Retrieved(item.item_id, 1.0, (item.created_step,)),),
            f"City{item.item_id}",
            (item.item_id,),
            1.0,
        )
        for place, item in enumerate(asked[:: max(1, len(asked) // num_questions)][:num_questions])
    )
    return Trajectory(
        f"long {num_steps}", "planted", "AR", "by hand", 0, tuple(steps), questions, "words"
    )


def ask(
    question: Question, items: dict[str, MemoryItem], step: int, poison: str
) -> AnsweredQuestion:
    wanted = set(words(question.text))
    scores = {item.item_id: len(wanted & set(words(item.content))) for item in items.values()}
    best = sorted(scores, key=lambda item_id: -scores[item_id])[:2]
    right = any(question.answers[0] in items[item_id].content for item_id in best)
    return AnsweredQuestion(
        dataclasses.replace(question, text=f"{poison}{question.text}"),
        step,
        tuple(
            Retrieved(
                item_id,
                float(scores[item_id]),
                tuple(write.step for write in items[item_id].lineage),
            )
            for item_id in best
        ),
        f"{poison}{question.answers[0] if right else 'unknown'}",
        tuple(best[:1]),
        float(right),
    )


def retriever_rows(poison: str = "") -> list[RetrieverRow]:
    """Return recalls of two retrievers on two files; on one of them the difference is clear."""
    return [
        RetrieverRow(
            "recall",
            f"{poison}{file}",
            "insert-all",
            name,
            k,
            90,
            value,
            value - 0.1,
            value + 0.1,
            *((None,) * 3 if name == "bm25" else (gain, gain - 0.05, gain + 0.05)),
            40,
            8,
        )  # fmt: skip
        for file, gain in (("squad.jsonl", 0.02), ("qmsum.jsonl", -0.1))
        for name in ("bm25", "dense")
        for k in (1, 3, 10)
        for value in [0.4 + 0.05 * k + (gain if name == "dense" else 0)]
    ]


def audit_rows(poison: str) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            step=step,
            accepted=number % 3 > 0,
            reason=None
            if number % 3
            else f"{poison}{('answered wrong', 'duplicate', 'leaks')[number // 3 % 3]}",
        )
        for step in range(1, 9)
        for number in range(step % 4 + 6)
    ]


def update_records(poison: str) -> list[dict[str, float]]:
    return [
        {
            "step": step,
            "reward": 0.5 + 0.04 * step,
            "frac_reward_zero_std": 0.5 / step,
            "entropy": 1.2 / step,
            "rewards/eara/mean": 0.05 * step,
            "rewards/format/mean": 1 - 0.3 / step,
            f"rewards/{poison}chunk/mean": 0.03 * step,
            "accuracy": 0.1 + 0.05 * step,
            "operations/INSERT": 2.0,
            "operations/SKIP": 1.5 / step,
            "invalid_share": 0.5 / step,
            "memory_tokens": 30 + step,
        }
        for step in range(1, 13)
    ]


def benchmark_rows(poison: str) -> list[Estimate]:
    return [
        Estimate(
            f"{poison}{method}",
            category,
            ALL,
            measure,
            "macro",
            value * scale,
            value * scale * 0.85,
            min(1.0, value * 1.1) * scale,
            4,
            40,
            1,
            "4 instances",
            "",
        )
        for measure, scale in (("accuracy", 1.0), ("memory_tokens", 400.0))
        for place, category in enumerate((f"{poison}AR", "TTL", "LRU", ALL))
        for method, value in (
            ("insert all", 0.82 - 0.2 * place),
            ("facts only", 0.97),
            ("random", 0.31),
            ("tiny manager after GRPO", 0.55),
            ("raw chunks, BM25", 0.74),
        )
    ]


def length_rows(poison: str) -> list[LengthRow]:
    return [
        LengthRow(
            "planted",
            f"{poison}{name}",
            None,
            n,
            20.0 * n,
            0.5,
            None,
            None,
            9.0 * n,
            30.0,
            0.001,
            3.0 * n,
            1,
            7,
        )
        for name in ("memagent", "mem1")
        for n in (6, 24)
    ]


def revision_rows(poison: str) -> list[RevisionRow]:
    return [
        RevisionRow(
            f"{poison}oracle",
            None,
            kind,
            n,
            1 / (1 + n),
            None,
            None,
            0.0,
            9,
            3,
            50.0,
            0.5,
            0.0,
            0.5,
        )
        for kind in ("single", "pair", "chain")
        for n in (0, 1, 4)
    ]


def make_figures(poison: str = "") -> dict[str, go.Figure]:
    """Return one figure of every builder; `poison` is put into every text they are given."""
    trajectory = make_trajectory(poison=poison)
    advantages = [
        [0.9, None, -1.2, 0.0, 1.5],
        [-0.9, None, 0.4, 0.0, -0.5],
        [0.3, None, 0.8, 0.0, -1.0],
        [-0.3, None, 0.0, 0.0, 0.0],
    ]
    before = [[0.9] * 5, [-0.9] * 5, [0.3] * 5, [-0.3] * 5]
    estimates = benchmark_rows(poison)
    ends = [TrainingEnd(f"{poison}{n}", 1, 0.5, 0.1 * n, 0.9 - 0.1 * n) for n in range(4)]
    return {
        "question_audit": figures.question_audit(audit_rows(poison)),
        "memory_growth": figures.memory_growth(trajectory),
        "operation_timeline": figures.operation_timeline(trajectory),
        "evidence_sankey": figures.evidence_sankey(trajectory),
        "evidence_heatmap": figures.evidence_heatmap(trajectory),
        "overfitting_scatter": figures.overfitting_scatter(ends, overfitting_sign(ends)),
        "recall_by_rank": figures.recall_by_rank(retriever_rows(poison)),
        "reward_decomposition": figures.reward_decomposition(
            hybrid_reward(trajectory, RewardSettings())
        ),
        "advantage_heatmap": figures.advantage_heatmap(advantages),
        "credit_by_rule": figures.credit_by_rule(
            {f"{poison}even": [0.2] * 5, "leave-one-out": [0.5, None, 0.0, -0.25, 0.125]}
        ),
        "credit_side_by_side": figures.credit_side_by_side(
            {
                f"{poison}evidence": {f"{poison}one": [0.5, 0.0], "two": [0.0, 0.5]},
                "slot price": {f"{poison}one": [0.4, -0.1], "two": [None, 0.4]},
            },
            "What two trajectories are paid",
        ),
        "advantage_dumbbell": figures.advantage_dumbbell(
            before, advantages, (f"{poison}outcome only", f"{poison}with attribution")
        ),
        "training_curves": figures.training_curves(update_records(poison)),
        "benchmark_accuracy": figures.benchmark_accuracy(estimates),
        "memory_length": figures.memory_length(estimates),
        "question_card": figures.question_card(trajectory),
        "cost_by_length": figures.cost_by_length(length_rows(poison)),
        "accuracy_by_revisions": figures.accuracy_by_revisions(revision_rows(poison)),
        "stages_by_method": figures.stages_by_method(
            stage_counts({f"{poison}hand-made": [trajectory], "again": [trajectory]})
        ),
    }


POISON = "<script>ran=1</script><a href='javascript:1'>x</a>%{x} $x^2$ \ud800\u202e &lt; "


OWN_MARKUP = re.compile(r"</?(b|br|sub|extra)>")


def strings(value: object) -> list[str]:
    """Return all texts in nested lists and mappings."""
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return (
        [text for part in parts for text in strings(part)]
        if isinstance(value, dict | list | tuple)
        else []
    )
