"""Conflict resolution: rows by number of revisions, and what managers do about them."""

from __future__ import annotations

import pytest

from finemem_lib.data.revised import RevisionSettings
from finemem_lib.evaluation.revisions import (
    ALL_REVISIONS,
    RevisionRow,
    revision_rows,
    revisions_frame,
)
from finemem_lib.evaluation.rows import read_rows, write_rows


@pytest.fixture(scope="module")
def rows():
    return revision_rows(["oracle", "oracle-replace", "facts-only", "random"], 6, (None, 40))


def of(rows, manager, kind="single", revisions=ALL_REVISIONS, budget=None):
    [row] = [
        row
        for row in rows
        if (row.manager, row.kind, row.revisions, row.budget) == (manager, kind, revisions, budget)
    ]
    return row


def test_whoever_keeps_one_item_per_fact_answers_all_revisions(rows):
    for manager in ("oracle", "oracle-replace"):
        for revisions in range(5):
            row = of(rows, manager, revisions=revisions)
            assert row.accuracy == 1.0 and row.stale == 0 and row.questions == 6 * 3


def test_the_operations_tell_update_from_replacing_and_appending(rows):
    update, replace, append = (
        of(rows, name) for name in ("oracle", "oracle-replace", "facts-only")
    )
    assert update.updates > 0.5 and update.deletes == 0
    assert replace.updates == 0 and 0 < replace.deletes < replace.inserts
    assert append.inserts == 1 and append.memory_tokens > 2 * update.memory_tokens
    assert update.memory_tokens == pytest.approx(replace.memory_tokens, rel=0.05)


def test_a_budget_costs_the_manager_that_appends(rows):
    free, tight = of(rows, "facts-only"), of(rows, "facts-only", budget=40)
    assert tight.accuracy < free.accuracy and tight.method == "facts-only, 40 tokens"


def test_stale_answers_name_a_former_value(rows):
    row = of(rows, "random")
    assert 0 < row.stale <= 1 - row.accuracy


def test_rows_survive_the_file_and_make_a_table(rows, tmp_path):
    write_rows(rows, tmp_path / "rows.jsonl")
    frame = revisions_frame(read_rows(tmp_path / "rows.jsonl", RevisionRow))
    assert "revised 4×" in frame.columns and frame.loc["oracle"]["stale"] == "0%"
    with pytest.raises(ValueError, match="benchmarks/systems.py"):
        read_rows(tmp_path / "none.jsonl", RevisionRow)


def test_streams_may_have_another_shape():
    rows = revision_rows(["oracle"], 2, settings=RevisionSettings(3, people=2, max_revisions=2))
    assert {row.revisions for row in rows if row.kind == "single"} == {-1, 0, 1, 2}
