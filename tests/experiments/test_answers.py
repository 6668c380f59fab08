"""Answers from comparisons: verdicts by hand, what is missing, and rows that the figures draw."""

from __future__ import annotations

import pytest

from finemem_lib import figures
from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.experiments.answers import (
    VERDICTS,
    answer_table,
    answers,
    as_doses,
    asked,
    comparison_rows,
    coverage,
    rows_or_none,
    trainings_text,
    verdict,
)
from finemem_lib.experiments.arena import Comparison, arena
from finemem_lib.experiments.design import load_design
from finemem_lib.util.provenance import workbench_root
from tests.helpers.experiment_samples import arena_design, arena_results, question_results

FEW = BootstrapSettings(num_resamples=400)
DESIGNS = workbench_root() / "notebooks" / "designs"


def compared(difference=0.2, low=0.1, high=0.3, seeds=(1, 2), p=0.01, **fields):
    return Comparison(
        **{
            "regime": "q",
            "measure": "m",
            "variant": "a",
            "other": "b",
            "seeds": seeds,
            "difference": difference,
            "low": low,
            "high": high,
            "p": p,
            "corrected": p,
            **fields,
        }
    )


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (compared(), "above"),
        (compared(-0.2, -0.3, -0.1), "below"),
        (compared(p=0.2), "above before Holm's correction only"),
        (compared(-0.2, -0.3, -0.1, p=0.06), "below before Holm's correction only"),
        (compared(seeds=(1,), p=None), "above on one seed"),
        (compared(-0.2, -0.3, -0.1, (1,), None), "below on one seed"),
        (compared(low=-0.1), "not decided"),
        (compared(low=0.0), "not decided"),
        (compared(low=-0.1, seeds=(1,), p=None), "not decided"),
        (Comparison("q", "m", "a", "b"), "no rows yet"),
    ],
)
def test_verdicts_by_hand(one, expected):
    assert verdict(one) == expected
    assert expected in VERDICTS


def test_a_sentence_names_difference_interval_seeds_and_p():
    said = answers(
        [
            compared(variant="up"),
            compared(-0.2, -0.3, -0.1, (40,), None, variant="down"),
            compared(low=-0.1, seeds=(40, 41, 42), p=0.4, variant="flat"),
            Comparison("q", "m", "never", "b"),
            Comparison("q", "m", "neither, nor this", "b"),
            Comparison("q", "m", "a", "other"),
        ]
    )
    assert said == [
        "m, to b: above: up (+0.200 [+0.100, +0.300], seeds 1-2, p 0.01); below on one seed: down "
        "(-0.200 [-0.300, -0.100], seed 40); not decided: flat (+0.200 [-0.100, +0.300], seeds "
        "40-42, p 0.4); no rows yet: never · neither, nor this.",
        "m, to other: no rows yet.",
    ]


def test_rows_of_a_table_say_what_the_sentences_say():
    header, first, last = answer_table([compared(), Comparison("q", "m", "c", "b")])
    assert dict(zip(header, first, strict=True)) == {
        "measure": "m",
        "variant": "a",
        "to": "b",
        "difference": "+0.200 [+0.100, +0.300]",
        "seeds": "1-2",
        "p, corrected": "0.01",
        "verdict": "above",
    }
    assert last[3:] == ("–", "–", "–", "no rows yet")


@pytest.fixture(scope="module")
def judged():
    design = arena_design()
    results = [
        one
        for one in arena_results(design, {"+CSR": 0.2})
        if one.cell.regime == "short" and (one.cell.variant, one.cell.seed) != ("+CSR", 22)
    ]
    return arena(results, design, FEW)


def test_asked_selects_a_regime_and_both_sides(judged):
    assert {one.variant for one in asked(judged, "short")} == {"+CSR", "Fine-Mem"}
    (first, second) = asked(judged, "short", ["Fine-Mem"], ["+CSR"])
    assert (first.variant, first.other) == ("+CSR", "Fine-Mem")
    assert {first.measure, second.measure} == set(judged.design.primary)


def test_coverage_names_cells_seeds_and_gaps(judged):
    assert coverage(judged)[1:] == [
        ("short", "17", "18", "20-21, 23-25", "+CSR: 22"),
        ("long", "0", "18", "–", "all"),
    ]
    assert trainings_text(judged) == "17 of 36 trainings have a row (seeds 20-25)."


def test_nothing_at_all_is_no_rows_yet(tmp_path):
    empty = arena(rows_or_none(tmp_path / "absent.jsonl"), arena_design(), FEW)
    assert trainings_text(empty) == "0 of 36 trainings have a row."
    assert all("no rows yet" in said and "(" not in said for said in answers(empty.comparisons))
    assert comparison_rows(empty.comparisons, empty) == []
    figure = figures.dose_response(*as_doses([], [], "short", "Fine-Mem"))
    for empty_figure in (figure, figures.measure_intervals([], ["accuracy"], "Title", "unit")):
        assert not empty_figure.data and empty_figure.layout.xaxis.visible is False
        assert empty_figure.layout.annotations[0].text == "no rows yet"


def test_rows_hold_the_intervals_of_the_comparisons(judged):
    picked = asked(judged, "short", ["outcome-only"])
    rows = comparison_rows(picked, judged)
    for one, row in zip(picked, rows, strict=True):
        assert (row.difference, row.difference_low, row.difference_high, row.seeds) == (
            one.difference,
            one.low,
            one.high,
            len(one.seeds),
        )
        standing = next(
            s
            for s in judged.standings
            if (s.regime, s.variant, s.measure) == (row.regime, row.variant, row.measure)
        )
        assert (row.value, row.low, row.high) == (standing.value, standing.low, standing.high)


@pytest.mark.parametrize(
    ("question", "kinds", "doses"),
    [
        (
            "teacher noise",
            {"wrong": ("acceptance", {"wrong_questions": 0.5, "verified": True})},
            {"wrong": [0.0, 0.25, 0.5, 0.75, 1.0]},
        ),
        (
            "retrieval failure",
            {"dropped": ("evidence_drop", {}), "swapped": ("evidence_swap", {})},
            {"dropped": [0.25, 0.5], "swapped": [0.25, 0.5]},
        ),
        ("chunk weight", {"w1": ("w1", {})}, {"w1": [0.25, 1.0]}),
        ("memory growth", {"w2": ("w2", {})}, {"w2": [0.1, 0.2, 0.4]}),
    ],
)
def test_the_doses_of_the_design_are_drawn_as_one_line(question, kinds, doses):
    """The designs that stand in the repository, with results made by hand."""
    design = load_design(DESIGNS / "paper_questions.yaml")
    design = design.model_copy(update={"regimes": {question: design.regimes[question]}})
    results = question_results(design, {})
    of = arena(results, design, FEW)
    found = comparison_rows(asked(of, question, ["Fine-Mem"]), of)
    figure = figures.dose_response(*as_doses(found, results, question, "Fine-Mem"), kinds)
    drawn = {trace.name: list(trace.x) for trace in figure.data}
    assert drawn == doses
    assert len(figure.data) == 2 * len(doses), "the end and the first updates"
