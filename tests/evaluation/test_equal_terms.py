"""Systems on equal terms: rows per question, paired tests, controls, published tables, lengths."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math

import numpy as np
import pytest

from finemem_lib.baselines.systems import make_system
from finemem_lib.data.planted import planted_instances
from finemem_lib.data.worked_example import worked_example
from finemem_lib.evaluation.answers import answer_rows, writer_calls
from finemem_lib.evaluation.comparison import model_calls, play_systems
from finemem_lib.evaluation.controls import (
    NO_MEMORY,
    QUESTION,
    SHUFFLED,
    play_controls,
    shuffled,
)
from finemem_lib.evaluation.evaluate import evaluate
from finemem_lib.evaluation.intervals import holm
from finemem_lib.evaluation.paired_tests import paired_tests, sign_flip
from finemem_lib.evaluation.published import compare_with_published, published_tables
from finemem_lib.evaluation.rows import read_rows, write_rows
from finemem_lib.evaluation.stream_length import (
    LengthRow,
    head_lengths,
    head_of,
    planted_lengths,
)
from finemem_lib.evaluation.tables import BootstrapSettings, Estimate, benchmark_table
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.readers.extractive import reader_for
from finemem_lib.scoring import metric_for
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question, Trajectory
from tests.helpers.writers import ScriptedChat

STREAMS = planted_instances("held-out", 4, seed=0)
FEW = BootstrapSettings(num_resamples=100)


def played(scores: dict[str, list[float | None]], source: str = "squad") -> list[Trajectory]:
    """Trajectories with these scores of their questions, by instance."""
    asked = worked_example().questions[0]
    return [
        dataclasses.replace(
            worked_example(),
            instance_id=name,
            data_source=source,
            questions=tuple(
                dataclasses.replace(
                    asked,
                    question=dataclasses.replace(asked.question, question_id=f"q-{j}"),
                    score=score,
                )
                for j, score in enumerate(values)
            ),
        )
        for name, values in scores.items()
    ]


def test_a_row_per_question_says_what_was_read_and_where_it_failed():
    found = play_systems(["rag-top2", "memagent"], STREAMS, reader_for(STREAMS))
    rows = answer_rows({name: one.trajectories for name, one in found.items()})
    assert len(rows) == 2 * sum(len(one.questions) for one in STREAMS)
    for one in found.values():
        for trajectory in one.trajectories:
            held = {item.item_id: item.content for item in trajectory.final_memory()}
            for answered in trajectory.questions:
                [row] = [
                    row
                    for row in rows
                    if (row.method, row.instance_id, row.question_id)
                    == (one.name, trajectory.instance_id, answered.question.question_id)
                ]
                read = [held[name] for name in row.retrieved.split()]
                assert row.read_tokens == count_tokens(row.question) + sum(map(count_tokens, read))
                assert row.answer == answered.answer and row.score == answered.score
                assert (row.stage == "answered") == (row.score >= 0.5)
                assert row.gold in " ".join(answered.question.answers) and row.writer_calls == 0


def test_calls_are_those_of_the_language_model_that_wrote():
    one = dataclasses.replace(
        worked_example(), metadata={"manager_settings": {"calls_per_step": 6}}
    )
    assert writer_calls(one) == 24 and writer_calls(worked_example()) == 0
    assert model_calls("memagent", 3) == 3


def test_equal_budgets_hold_for_every_system_beside_their_own():
    names = ["long-context-tail", "memagent", "insert-all"]
    found = play_systems(names, STREAMS, reader_for(STREAMS), budgets=(None, 40))
    assert [*found] == [*names, *(f"{name}, 40 tokens" for name in names)]
    for one in found.values():
        largest = max(t.steps[-1].memory_tokens for t in one.trajectories)
        assert largest <= 40 if one.budget else largest > 40
        assert one.seconds > 0 and one.questions == sum(len(s.questions) for s in STREAMS)


def test_evaluate_knows_systems_with_their_own_retrieval():
    rows = evaluate(["rag-top2", "raw-chunks"], STREAMS, bootstrap=FEW)
    assert {row.method for row in rows} == {"rag-top2", "raw-chunks"}
    with pytest.raises(ValueError, match="'untrained' needs a language model"):
        evaluate(["insert-all", "untrained"], STREAMS)


def test_evaluate_takes_the_language_model_that_writes():
    """Incident: `evaluate` refused such systems and had no argument that takes a model."""
    chat = ScriptedChat(lambda said: '[{"op":"INSERT","content":"Mia lives in Rome."}]')
    names = ["untrained", "memagent"]
    rows = evaluate(names, STREAMS[:2], bootstrap=FEW, chat=chat)
    assert {row.method for row in rows} == {*names}
    assert len(chat.seen) == 2 * sum(len(one.chunks) for one in STREAMS[:2])


def test_signs_are_flipped_by_instance_and_agree_with_counting():
    totals = np.array([2.0, -1.0, 3.0, 0.5])
    signs = itertools.product((1, -1), repeat=4)
    hits = [abs(np.dot(sign, totals)) >= abs(totals.sum()) for sign in signs]
    assert sign_flip(totals, np.random.default_rng(0)) == np.mean(hits)
    many = np.full(30, 1.0)
    assert sign_flip(many, np.random.default_rng(0)) < 1e-3
    assert sign_flip(np.tile([1.0, -1.0], 10), np.random.default_rng(0)) == 1.0


def test_paired_tests_take_instances_as_units_and_correct_over_the_table():
    """Three instances cannot give p below 1/4, however many questions they have."""
    better = {f"i{n}": [1.0] * 20 for n in range(3)}
    worse = {f"i{n}": [0.0] * 20 for n in range(3)}
    methods = {"a": played(better), "b": played(worse), "c": played(worse)}
    rows = paired_tests(methods, "b")
    assert [(row.method, row.data_source, row.difference) for row in rows] == [
        ("a", "squad", 1.0),
        ("c", "squad", 0.0),
    ]
    assert rows[0].p == rows[0].least_p == 0.25 and rows[1].p == 1.0
    assert [row.p_holm for row in rows] == holm([0.25, 1.0])
    assert rows[0].instances == 3 and rows[0].questions == 60


def test_paired_tests_by_source_category_and_over_all():
    def two(score: float) -> list[Trajectory]:
        return played({"a": [score], "b": [score]}) + played({"c": [score]}, "hotpotqa")

    rows = paired_tests({"base": two(0.0), "new": two(1.0)}, "base")
    assert [(row.category, row.data_source) for row in rows] == [
        ("AR", "hotpotqa"),
        ("AR", "squad"),
        ("AR", "all"),
    ]
    assert rows[0].p is None and rows[0].p_holm is None
    assert rows[2].p == 0.25 and rows[2].p_holm == 0.75  # a test not made counts


def test_unscored_questions_are_left_out_of_a_test():
    rows = paired_tests(
        {
            "base": played({"a": [0.0, None], "b": [0.0]}),
            "new": played({"a": [1.0, 1.0], "b": [0.0]}),
        },
        "base",
    )
    assert rows[0].questions == 2 and rows[0].difference == 0.5
    with pytest.raises(ValueError, match="share no scored question"):
        paired_tests({"base": played({"a": [1.0]}), "new": played({"z": [1.0]})}, "base")
    with pytest.raises(ValueError, match="baseline 'x' is not among"):
        paired_tests({"base": played({"a": [1.0]})}, "x")


def test_controls_are_rows_that_know_nothing_of_the_memory():
    found = play_controls(STREAMS, make_system("insert-all"), reader_for(STREAMS))
    assert [*found] == [NO_MEMORY, QUESTION, SHUFFLED]
    scores = {
        name: [a.score for one in some for a in one.questions] for name, some in found.items()
    }
    assert set(scores[NO_MEMORY]) == set(scores[QUESTION]) == {0.0}
    real = play_systems(["insert-all"], STREAMS, reader_for(STREAMS))["insert-all"]
    kept = [a.score for one in real.trajectories for a in one.questions]
    assert np.mean(scores[SHUFFLED]) < np.mean(kept) / 2
    assert all(not one.final_memory() for one in found[NO_MEMORY])


def test_a_question_that_holds_its_answer_is_found_out():
    asked = Question("q-1", "Is Rome the capital, as Mia says?", ("Rome",), "squad")
    told = Instance("one", "squad", "AR", (Chunk("Mia sails.", 3),), (asked,))
    found = play_controls([told], make_system("insert-all"), reader_for([told]))
    assert [one.questions[0].score for one in found[QUESTION]] == [1.0]
    assert SHUFFLED not in found  # there is no other instance


def test_shuffling_stays_within_a_data_source_and_moves_everyone():
    others = [dataclasses.replace(one, data_source="squad") for one in STREAMS[:1]]
    moved = shuffled([*STREAMS, *others])
    assert [one.instance_id for one in moved] == [one.instance_id for one in STREAMS]
    for one, home in zip(moved, STREAMS, strict=True):
        assert one.chunks != home.chunks
        assert all(question.evidence_steps is None for question in one.questions)


def test_published_tables_hold_what_was_printed_and_say_where_averages_differ():
    tables = published_tables()
    assert len(tables) == 5
    for table in tables.values():
        assert table.source and table.caveat and table.rows
        for source in table.columns:
            assert not source or metric_for(source)
    differ = {
        (row.table, row.method)
        for table in tables.values()
        for row in table.rows
        if row.average_differs
    }
    assert differ == {
        ("memalpha", "MemAgent"),
        ("memalpha", "Mem-alpha"),
        ("memalpha", "Qwen3-4B, untrained"),
        ("memalpha_rewards", "0.0, 0.1"),
        ("memalpha_rewards", "0.05, 0.1"),
        ("memalpha_rewards", "0.2, 0.1"),
        ("memoryagentbench", "Long-Context"),
        ("memoryagentbench", "RAG-Top2"),
        ("memoryagentbench_rewards", "0.05, 0.0"),
        ("memoryagentbench_rewards", "0.2, 0.1"),
    }


def test_published_figures_stand_beside_ours_and_are_never_mixed():
    methods = {"rag-top2": played({"a": [0.5], "b": [0.5]})}
    rows = benchmark_table(methods, FEW)
    frame = compare_with_published(rows, "memalpha")
    line = frame.loc[("RAG-Top2", "rag-top2")]
    assert line["SQuAD", "published"] == "0.762"
    assert line["SQuAD", "ours"] == "0.500 [0.500, 0.500]"
    assert line["HotpotQA", "ours"] == "–"
    assert frame.loc[("Mem-alpha", "–")]["average as printed", "published"].startswith(
        "0.642 (mean"
    )
    assert ("average as printed", "ours") not in frame.columns
    with pytest.raises(ValueError, match="expected one of memalpha, "):
        compare_with_published(rows, "table 1")


@pytest.mark.parametrize("kind", ["planted", "head"])
def test_rows_of_lengths_survive_the_file(kind, tmp_path):
    if kind == "planted":
        rows = planted_lengths(["rag-top2", "mem1"], [2, 5], 2, (None, 30))
        assert [row.chunks for row in rows] == [2] * 4 + [5] * 4
    else:
        rows = head_lengths(["long-context-tail"], STREAMS[0], [0.4, 1.0])
        assert [row.chunks for row in rows] == [2, 6]
        assert rows[0].accuracy == 1.0 and rows[0].low is None
        assert rows[1].calls == len(STREAMS[0].questions)
    for row in rows:
        assert row.seconds_per_step > 0 and not math.isnan(row.memory_tokens)
        assert row.memory_tokens <= (row.budget or row.stream_tokens)
    write_rows(rows, tmp_path / "rows.jsonl")
    again = read_rows(tmp_path / "rows.jsonl", LengthRow)
    assert [row.method for row in again] == [row.method for row in rows]
    (tmp_path / "rows.jsonl").write_text(json.dumps({"stream": 1}) + "\n")
    with pytest.raises(ValueError, match="benchmarks/systems.py"):
        read_rows(tmp_path / "rows.jsonl", LengthRow)


def test_a_head_asks_only_what_it_can_answer():
    head = head_of(STREAMS[0], 2)
    assert len(head.chunks) == 2 and head.questions
    assert all(max(question.evidence_steps) <= 2 for question in head.questions)
    unknown = dataclasses.replace(
        STREAMS[0],
        questions=tuple(dataclasses.replace(q, evidence_steps=None) for q in STREAMS[0].questions),
    )
    text = " ".join(chunk.text for chunk in head.chunks)
    for question in head_of(unknown, 2).questions:
        assert any(answer in text for answer in question.answers)


def test_the_average_of_our_table_says_what_it_averages_over():
    rows = benchmark_table({"a": played({"a": [1.0], "b": [0.0]})}, FEW)
    assert all(isinstance(row, Estimate) and row.over for row in rows)
    assert RolloutSettings().retriever == "bm25"
