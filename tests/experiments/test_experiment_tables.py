"""Tables, sentences and figures over the results of an experiment."""

from __future__ import annotations

import json

import numpy as np
import plotly.graph_objects as go
import pytest

from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.experiments import tables as experiment_tables
from finemem_lib.experiments.arena import arena
from finemem_lib.experiments.cells import HeldOut, run_cell
from finemem_lib.experiments.tables import (
    ACCURACIES,
    CHANGED_UPDATED,
    STALE_DELETED,
    diagnostic_measures,
    length_measure,
    length_measures,
    revision_measures,
    stream_rows,
    table,
)
from finemem_lib.figures import arena as arena_figures, experiments as experiment_figures, frames
from tests.helpers.experiment_samples import (
    SCHEMES,
    arena_design,
    arena_results,
    cell,
    grid,
    result,
)


def found(rows, variant, measure):
    (row,) = (row for row in rows if (row.variant, row.measure) == (variant, measure))
    return row


def test_the_table_averages_over_seeds_and_streams_and_pairs_both():
    rng = np.random.default_rng(0)
    base = {seed: rng.random(2) / 2 for seed in range(5)}
    results = [
        result(cell(name, seed=seed, scheme=name), (values + more).tolist(), [values.tolist()])
        for name, more in (("outcome-only", 0.0), ("+CSR", 0.25))
        for seed, values in base.items()
    ]
    rows = table(results)
    csr = found(rows, "+CSR", "accuracy, sampled")
    assert csr.value == pytest.approx(np.mean(list(base.values())) + 0.25)
    assert csr.low < csr.value < csr.high and csr.seeds == 5
    # what both share cancels out: the difference is the same on every draw
    assert (csr.difference, csr.difference_low, csr.difference_high) == pytest.approx((0.25,) * 3)
    curve = found(rows, "+CSR", "accuracy, area under curve")
    assert curve.value == pytest.approx(np.mean(list(base.values()))) and curve.difference == 0
    assert found(rows, "outcome-only", "accuracy, sampled").difference is None
    assert found(rows, "+CSR", "INSERTs per step").value == 2.0  # 4 kinds x 6 and 0, 6 chunks


def test_the_interval_covers_the_spread_between_seeds():
    """Streams that agree within a seed: the interval must come from the seeds."""
    results = [result(cell(seed=seed), (value, value)) for seed, value in enumerate((0.2, 0.6))]
    row = found(table(results), "outcome-only", "accuracy, sampled")
    assert (row.value, row.low, row.high) == pytest.approx((0.4, 0.2, 0.6))


@pytest.mark.parametrize(("seeds", "spread", "least"), [(5, 0.02, 0.91), (3, 0.05, 0.77)])
def test_the_interval_covers_the_truth_as_often_as_it_is_said_to(seeds, spread, least):
    """300 experiments of 64 streams (sd 0.15): 0.95 with 5 seeds that differ little, 0.83 with 3
    that differ much."""
    rng = np.random.default_rng(3)
    settings = BootstrapSettings(num_resamples=200)
    covered = 0
    for _ in range(300):
        values = rng.normal(0, spread, (seeds, 1)) + rng.normal(0, 0.15, (seeds, 64))
        _, low, high = experiment_tables.seed_interval(dict(enumerate(values.tolist())), settings)
        covered += low <= 0 <= high
    assert least <= covered / 300 <= 0.99


def test_only_seeds_that_both_have_are_compared():
    results = [result(cell(seed=seed)) for seed in (0, 1)]
    results += [result(cell("+CSR", seed=seed, scheme="+CSR"), (1.0, 0.75)) for seed in (1, 2)]
    row = found(table(results), "+CSR", "accuracy, sampled")
    assert row.seeds == 2 and row.difference == pytest.approx(0.5)


def test_what_has_no_pairs_has_no_difference():
    """A variant with more updates than the baseline was trained on more streams."""
    rows = table(
        [
            result(cell()),
            result(cell("longer", updates=61), episodes=((0.25, 0.5), (0.5, 0.75))),
        ]
    )
    longer = found(rows, "longer", "accuracy, area under curve")
    assert longer.value == 0.5 and longer.difference is None
    assert found(rows, "longer", "accuracy, sampled").difference == 0


@pytest.mark.parametrize(("seeds", "share"), [(2, 0.5), (3, 0.25)])
def test_few_seeds_leave_zero_out_as_often_as_they_agree_by_luck(seeds, share):
    """The interval of two or three values is their range: both or all lie on one side of zero."""
    rng = np.random.default_rng(0)
    clear = 0
    for _ in range(300):
        values = np.repeat(rng.normal(size=(seeds, 1)), 4, axis=1)
        _, low, high = experiment_tables.seed_interval(
            dict(enumerate(values.tolist())), BootstrapSettings(num_resamples=200)
        )
        clear += low > 0 or high < 0
    assert clear / 300 == pytest.approx(share, abs=0.08)


def test_diagnostics_are_read_per_update():
    results = [result(cell(seed=seed), updates=3) for seed in (0, 1)]
    for one in results:
        one.curve["credit_at_evidence/retrieved, faulty evidence"] = [0.5] * 3
    rows = table(results, of=diagnostic_measures)
    found_values = {row.measure: row.value for row in rows}
    assert found_values["credit at the evidence step, retrieved items, faulty evidence"] == 0.5
    assert found_values["spread of chunk"] == 0.25
    assert found_values["duplicates per step"] == 0.75
    assert "credit at the evidence step, used items" not in found_values, "never measured"


@pytest.mark.parametrize(
    ("manager", "updated", "deleted"),
    [("oracle", 1.0, 0.0), ("oracle-replace", 0.0, 1.0), ("facts-only", 0.0, 0.0)],
)
def test_managers_by_planted_truth_revise_as_they_say(manager, updated, deleted):
    tested = run_cell(cell(checkpoint=manager, updates=0, held_out=4, num_chunks=8))
    measured = revision_measures(tested)
    assert measured[CHANGED_UPDATED] == [updated] * 4
    assert np.mean(measured[STALE_DELETED]) == deleted


def test_lengths_have_the_same_names_whatever_a_manager_was_trained_on():
    short, long = (
        run_cell(
            cell(
                checkpoint="facts-only",
                updates=0,
                held_out=2,
                test_streams=2,
                num_chunks=chunks,
                test_chunks=(3, 5),
                top_k=7,
            )
        )
        for chunks in (3, 5)
    )
    measured = length_measures(short)
    assert set(measured) == {length_measure(3), length_measure(5)}
    assert measured == length_measures(long), "equal streams, whichever length comes first"


def test_operations_that_were_not_judged_have_no_revisions():
    unjudged = result(cell())
    del unjudged.tests["sampled"].columns["UPDATE right"]
    assert revision_measures(unjudged) == {}


def test_the_alignment_of_a_cell_is_a_measure_of_its_batches():
    rows = table([result(cell())])
    assert found(rows, "outcome-only", "alignment, +CSR").value == 0.375
    assert found(rows, "outcome-only", "agreement, +CSR").value == 0.75


def test_raw_rows_hold_every_stream_of_every_test():
    rows = stream_rows([result(cell(seed=seed)) for seed in (0, 1)])
    assert len(rows) == 8  # 2 cells, 2 tests, 2 streams
    assert rows[1]["stream"] == 1 and rows[1]["accuracy"] == 0.25 and rows[1]["UPDATE wrong"] == 0


def robustness():
    """One variant over faults: half of what it gains is lost where half of the evidence is."""
    regimes = {
        "clean": {},
        "25 % dropped": {"evidence_drop": 0.25},
        "50 % dropped": {"evidence_drop": 0.5},
        "50 % wrong": {"wrong_questions": 0.5},
        "50 % wrong, verified": {"wrong_questions": 0.5, "verified": True},
        "top-k 1": {"top_k": 1},
    }
    return [
        result(
            cell(scheme, regime, seed, scheme=scheme, **knobs),
            [0.3 + 0.1 * seed + gain, 0.4 + gain],
            [[0.3, 0.4 + gain / 2]] * 12,
            updates=12,
        )
        for regime, knobs in regimes.items()
        for seed in range(3)
        for scheme, gain in (
            ("outcome-only", 0.0),
            ("Fine-Mem", 0.2 * (1 - knobs.get("evidence_drop", 0))),
        )
    ]


def test_a_line_of_doses_holds_the_regimes_that_differ_in_its_knob_only():
    results = robustness()
    figure = experiment_figures.dose_response(table(results), results)
    lines = {
        trace.name: (list(trace.x), list(trace.y)) for trace in figure.data if trace.showlegend
    }
    assert lines == {
        "wrong chunk questions": ([0, 0.5], [0.2, 0.2]),
        "wrong chunk questions, verified": ([0.5], [0.2]),
        "evidence dropped": ([0, 0.25, 0.5], [0.2, 0.15, 0.1]),
        "evidence swapped": ([0], [0.2]),
    }
    assert figure.layout.meta["caption"].startswith("Of 10 comparisons in the 2 primary measures")
    items = experiment_figures.dose_response(
        table(results), results, {"k": ("top_k", {})}, "Fewer items", "items"
    )
    assert list(items.data[0].x) == [1, 3]


# Figures.


def arena_of(results):
    """Return the arena of results whose cells differ in their scheme and seed only."""
    design = arena_design(
        baselines=[results[0].cell.variant],
        regimes={one.cell.regime: {} for one in results},
        variants={one.cell.variant: {"scheme": one.cell.scheme} for one in results},
        seeds=sorted({one.cell.seed for one in results}),
    )
    price = {"1": {"fact": (1.0, 0.1), "noise": (0.1, 0.05)}}
    priced = [
        one.model_copy(
            update={"price": price | {"14": {"fact": (1.0, 0.1), "noise": (-place / 9, 0.05)}}}
        )
        for place, one in enumerate(results)
    ]
    return arena(priced, design, BootstrapSettings(num_resamples=200))


def lengths_of(results):
    """The arena of the results, with a test on longer streams, in accuracy by length."""
    longer = {
        "sampled T=24": HeldOut(chunks=24, temperature=1.0, columns={"accuracy": [0.25, 0.125]})
    }
    tested = [one.model_copy(update={"tests": one.tests | longer}) for one in results]
    design = arena_of(results).design
    named = design.model_copy(update={"primary": [length_measure(6), length_measure(24)]})
    return arena(tested, named, BootstrapSettings(num_resamples=200), length_measures)


def figures(results) -> dict[str, go.Figure]:
    rows = table(results, results[0].cell.variant)
    of = arena_of(results)
    return {
        "arena": arena_figures.arena_standings(of),
        "price": arena_figures.noise_price_and_end(of, "accuracy, greedy"),
        "accuracy": experiment_figures.measure_intervals(
            rows, ACCURACIES[2:], "Accuracy at the end", "accuracy (mean score)"
        ),
        "differences": experiment_figures.measure_intervals(
            rows, ["accuracy, sampled"], "Differences", "difference in accuracy", True
        ),
        "curves": experiment_figures.learning_curves(results),
        "edits": experiment_figures.edit_bars(results),
        "lengths": experiment_figures.accuracy_by_test_length(lengths_of(results), (6, 24)),
        "doses": experiment_figures.dose_response(
            rows, results, {f"{results[0].cell.variant}, wrong": ("wrong_questions", {})}
        ),
    }


POISON = "<script>ran=1</script>%{x} $x^2$ \u202e "
FIGURES, AGAIN, POISONED = figures(grid()), figures(grid()), figures(grid(POISON))


def strings(value):
    if isinstance(value, str):
        return [value]
    parts = value.values() if isinstance(value, dict) else value
    return (
        [text for part in parts for text in strings(part)] if isinstance(value, dict | list) else []
    )


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_says_what_it_shows_and_has_a_table(name):
    spec = json.loads(FIGURES[name].to_json())
    layout = spec["layout"]
    assert layout["title"]["text"] and layout["meta"]["caption"].endswith(".")
    assert layout["meta"]["alt"].endswith(".")
    assert any(character.isdigit() for character in layout["meta"]["caption"])
    rows = frames.figure_table(FIGURES[name])
    assert rows and not {"x", "y"} & {key for row in rows for key in row}  # all axes have titles
    assert FIGURES[name].to_json() == AGAIN[name].to_json()
    assert len(FIGURES[name].to_json()) < 14_000


@pytest.mark.parametrize("name", FIGURES)
def test_names_from_a_design_are_shown_literally(name):
    spec = json.loads(POISONED[name].to_json())
    del spec["layout"]["meta"]
    for text in strings(spec):
        bare = text.replace("<br>", "").replace("<extra></extra>", "")
        assert "<" not in bare and "$" not in bare and "\u202e" not in bare
    templates = [trace.get("hovertemplate") or "" for trace in spec["data"]]
    assert not any("script" in template for template in templates)


def test_many_regimes_become_lines_instead_of_panels():
    results = [
        result(cell(scheme, regime, scheme=scheme))
        for scheme in SCHEMES[:2]
        for regime in ("clean", "10 %", "25 %", "50 %")
    ]
    figure = figures(results)["differences"]
    assert [line for line in figure.layout.yaxis.ticktext] == ["clean", "10 %", "25 %", "50 %"]
    assert figure.layout.annotations[0].text == "+CSR" and len(figure.data) == 1


def test_curves_average_blocks_of_updates_over_seeds():
    curve = FIGURES["curves"].data[0]
    assert list(curve.x) == [5, 10, 12] and list(curve.y) == pytest.approx([0.22, 0.27, 0.305])


def test_edits_add_up_what_the_truth_counted():
    first = FIGURES["edits"].data[0]
    assert set(first.x) == {0.5}  # 6 and 0 facts on two streams of six chunks


def test_the_arena_draws_the_best_rule_on_top_and_the_beaten_open():
    design = arena_design()
    of = arena(
        arena_results(design, {"+CSR": 0.2, "Fine-Mem": -0.1}),
        design,
        BootstrapSettings(num_resamples=200),
    )
    figure = arena_figures.arena_standings(of)
    assert list(figure.layout.yaxis.ticktext) == ["+CSR", "outcome-only", "Fine-Mem"]
    first = figure.data[0]
    assert list(first.marker.symbol) == ["circle", "circle-open", "circle-open"]
    assert "36 of 36 cells" in figure.layout.meta["caption"]
    price = arena_figures.noise_price_and_end(of, "accuracy, greedy")
    by_rule = {trace.name: trace.x[0] for trace in price.data if trace.showlegend}
    assert by_rule == {"outcome-only": 0.01, "Fine-Mem": 0.11, "+CSR": -0.19}
    caption = price.layout.meta["caption"]
    assert "Price at update 14" in caption and "short -1.00 (3 rules)" in caption


def test_the_arena_draws_nothing_where_there_are_no_rows_yet():
    of = arena([], arena_design(), BootstrapSettings(num_resamples=200))
    assert "0 of 36 cells" in arena_figures.arena_standings(of).layout.meta["caption"]
    nothing = arena_figures.noise_price_and_end(of, "accuracy, greedy")
    assert nothing.layout.meta["caption"].startswith("Price at update –")
