"""Rows of systems on files: joined from parts, tested within a budget, without any text."""

from __future__ import annotations

import dataclasses
import json
from functools import cache

import pytest

from finemem_lib.baselines.systems import make_system
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.data.planted_layers import LayerStream, layer_instances
from finemem_lib.evaluation.comparison import play_systems
from finemem_lib.evaluation.controls import NO_MEMORY, play_controls
from finemem_lib.evaluation.intervals import holm
from finemem_lib.evaluation.real_systems import (
    BASELINE,
    SystemRow,
    accuracy_frame,
    part_of,
    signs_frame,
    stage_rows,
    system_rows,
)
from finemem_lib.evaluation.rows import read_rows, write_rows
from finemem_lib.figures import stages_by_method
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.readers.extractive import reader_for

SHORT = planted_instances("held-out", 4, 0, StreamSettings(num_chunks=4))
DATED = [
    dataclasses.replace(one, category="LRU")
    for one in layer_instances("held-out", 4, 0, LayerStream(num_chunks=4))
]
LAYERED = RolloutSettings(num_generations=1, memory="layered", ask_chunk_questions=False)


@cache
def parts():
    found = []
    for file, instances in (("short", SHORT), ("dated", DATED)):
        agent = reader_for(instances)
        played = {
            **play_systems([BASELINE, "mem1"], instances, agent, budgets=(None, 20)),
            **play_systems(["layered-notes"], instances, agent, rollout=LAYERED),
        }
        found += [
            part_of(one.system, one.budget, file, one.trajectories) for one in played.values()
        ]
        controls = play_controls(instances, make_system(BASELINE), agent)
        found.append(part_of(NO_MEMORY, None, file, controls[NO_MEMORY]))
    return tuple(found)


@cache
def table():
    return tuple(system_rows(parts()))


def row_of(method, file, category="all", budget=None):
    [row] = [
        row
        for row in table()
        if (row.method, row.file, row.category, row.budget) == (method, file, category, budget)
    ]
    return row


def test_a_row_counts_each_question_of_its_files_once():
    files = [row_of("mem1", "short", "AR"), row_of("mem1", "dated", "LRU")]
    overall = row_of("mem1", "all")
    assert overall.questions == sum(row.questions for row in files)
    assert overall.accuracy == pytest.approx(
        sum(row.accuracy * row.questions for row in files) / overall.questions
    )
    assert overall.instances == 8 and overall.low < overall.accuracy < overall.high
    for row in table():
        assert sum(row.stages.values()) == row.questions
        assert row.accuracy == pytest.approx(
            row.stages["answered"] / row.questions, abs=0.5 if row.file != "short" else 1e-9
        )


def test_tests_are_paired_within_a_budget_and_corrected_over_its_rows():
    mean = {file: row_of(BASELINE, file, of).accuracy for file, of in (("short", "AR"),)}
    under = row_of("mem1", "short", "AR")
    assert under.difference == pytest.approx(under.accuracy - mean["short"])
    assert row_of(BASELINE, "all").difference is None and row_of(NO_MEMORY, "all").p is None
    assert row_of("mem1", "all", budget=20).difference is not None
    for budget in (None, 20):
        tested = [row for row in table() if row.budget == budget and row.p is not None]
        assert sorted(row.p_holm for row in tested) == sorted(holm([row.p for row in tested]))


def test_a_budget_bounds_every_memory():
    assert row_of("mem1", "all", budget=20).memory_tokens <= 20
    assert row_of("mem1", "all", budget=20).name == "mem1, 20 tokens"


def test_rows_survive_the_file_and_hold_no_text(tmp_path):
    write_rows(table(), path := tmp_path / "rows.jsonl")
    read = read_rows(path, SystemRow)
    assert [row.name for row in read] == [row.name for row in table()]
    assert read[0].stages == table()[0].stages
    text = path.read_text() + json.dumps([dataclasses.asdict(part) for part in parts()])
    for instance in (*SHORT, *DATED):
        assert not any(chunk.text in text for chunk in instance.chunks)
        assert not any(question.text in text for question in instance.questions)


def test_frames_show_methods_best_first_and_signs_of_layers():
    own = [row for row in table() if row.budget is None]
    by_category = accuracy_frame(own)
    assert set(by_category.columns) == {"AR", "LRU", "all", "memory tokens"}
    assert by_category.index[-1] == NO_MEMORY, "which answers nothing"
    assert set(accuracy_frame(own, by_file=True).columns) == {"short", "dated"}
    assert {row.method for row in stage_rows(own)} == {BASELINE, "mem1", "layered-notes"}
    signs = signs_frame(own)
    assert list(signs.index) == [("layered-notes", "short"), ("layered-notes", "dated")]
    assert signs.loc[("layered-notes", "short"), "empty core"] == "4 of 4", "nothing to sum up"
    assert signs.loc[("layered-notes", "dated"), "empty core"] != "4 of 4"


def test_without_rows_tables_are_empty_and_the_figure_has_no_bars():
    assert accuracy_frame([]).empty and accuracy_frame([], by_file=True).empty
    assert signs_frame([]).empty and stage_rows([]) == []
    assert not any(trace.x for trace in stages_by_method([]).data)


def test_parts_without_the_baseline_are_refused():
    with pytest.raises(ValueError, match=BASELINE):
        system_rows(part for part in parts() if part.method != BASELINE)
