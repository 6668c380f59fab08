"""Who beats whom: hand-computed cases, coverage, corrections, and what is missing."""

from __future__ import annotations

import json
import math
import time

import numpy as np
import pytest
import yaml
from hypothesis import given, settings, strategies as st

from finemem_lib.cli import main
from finemem_lib.evaluation.intervals import holm
from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.experiments.arena import arena, arena_notes, arena_tables, leaders, limits
from finemem_lib.experiments.design import load_design
from finemem_lib.experiments.rows import write_rows
from finemem_lib.experiments.tables import hierarchical_draws
from finemem_lib.training.schemes import SCHEMES, SYSTEM_SCHEMES, scheme_of
from finemem_lib.util.provenance import workbench_root
from tests.helpers.experiment_samples import arena_design, arena_results, result

FEW = BootstrapSettings(num_resamples=400)
GREEDY = "accuracy, greedy"


def by_hand(accuracies, **fields):
    """Return a design of one regime and its results, from a variant's accuracies by seed."""
    seeds = sorted({seed for values in accuracies.values() for seed in values})
    design = arena_design(
        **{
            "baselines": ["outcome-only"],
            "regimes": {"short": {}},
            "variants": {name: {"scheme": name} for name in accuracies},
            "seeds": seeds,
            "primary": [GREEDY],
            **fields,
        }
    )
    return design, [
        result(of, accuracies[of.variant][of.seed])
        for of in design.cells
        if of.seed in accuracies[of.variant]
    ]


def pair(found, variant, other, measure=GREEDY, regime="short"):
    (one,) = (
        one
        for one in found.comparisons
        if {one.variant, one.other} == {variant, other}
        and (one.measure, one.regime) == (measure, regime)
    )
    return one.of(variant)


def test_means_ranks_and_differences_by_hand():
    design, results = by_hand(
        {
            "outcome-only": {1: (0.2, 0.4), 2: (0.4, 0.6)},
            "+CSR": {1: (0.3, 0.5), 2: (0.7, 0.9)},
            "Fine-Mem": {1: (0.2, 0.4), 2: (0.4, 0.6)},
        }
    )
    found = arena(results, design)
    assert [(one.variant, one.rank) for one in found.standings] == [
        ("+CSR", 1),
        ("outcome-only", 2),
        ("Fine-Mem", 2),
    ]
    assert [one.value for one in found.standings] == pytest.approx([0.6, 0.4, 0.4])
    csr = pair(found, "+CSR", "outcome-only")
    assert csr.difference == pytest.approx(0.2) and csr.seeds == (1, 2)
    # differences of 0.1 and 0.3: mean 0.2, standard error 0.1, t = 2 with one degree of freedom
    assert csr.p == pytest.approx(1 - 2 * math.atan(2) / math.pi, abs=0.01)
    assert (csr.low, csr.high) == pytest.approx((0.1, 0.3)), "with two seeds, their range"
    assert pair(found, "Fine-Mem", "outcome-only").p == 1
    flipped = pair(found, "outcome-only", "+CSR")
    assert (flipped.difference, flipped.low, flipped.high) == pytest.approx((-0.2, -0.3, -0.1))
    assert not csr.trusted and "* 2 seeds are too few" in " ".join(arena_notes(found))
    # Holm over three comparisons: the smallest p counts three times
    smallest = min(one.p for one in found.comparisons)
    assert min(one.corrected for one in found.comparisons) == pytest.approx(min(1, 3 * smallest))


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.01, None, 0.04]) == [pytest.approx(0.03), None, pytest.approx(0.08)]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), max_size=8))
def test_holm_lies_between_p_and_bonferroni_and_keeps_the_order(values):
    corrected = holm(values)
    pairs = list(zip(values, corrected, strict=True))
    assert all(p <= c <= min(1, p * len(values)) + 1e-12 for p, c in pairs)
    ordered = [c for _, c in sorted(pairs)]
    assert ordered == sorted(ordered)


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 4),
    st.integers(1, 5),
    st.integers(0, 99),
)
def test_draws_are_means_of_drawn_seeds_and_streams(n, k, seed):
    rows = np.random.default_rng(seed).normal(size=(2, n, k))
    draws = hierarchical_draws(rows, BootstrapSettings(num_resamples=100, seed=seed))
    assert draws.shape == (100, 2)
    assert (draws <= rows.max(axis=(1, 2)) + 1e-9).all()
    shifted = hierarchical_draws(rows + 1.0, BootstrapSettings(num_resamples=100, seed=seed))
    np.testing.assert_allclose(shifted, draws + 1.0)
    if n == k == 1:
        np.testing.assert_allclose(draws, np.broadcast_to(rows[:, 0, 0], (100, 2)))


def test_a_stream_without_a_score_is_left_out_for_all():
    rows = np.random.default_rng(0).normal(size=(2, 2, 9))
    rows[0, 0, 3] = np.nan
    without = rows.copy()
    without[1, 0, 3] = 1e9
    one, other = (hierarchical_draws(part, BootstrapSettings()) for part in (rows, without))
    np.testing.assert_array_equal(one, other)
    assert np.isfinite(one).all()


@pytest.mark.parametrize(("spread", "least"), [(0.1, 0.92), (0.0, 0.94)])
def test_intervals_of_six_seeds_cover_the_truth(spread, least):
    """300 comparisons whose true difference is zero; 0.95 is asked for. Differences of streams
    (sd 0.15) weigh little in the first case, where 0.96 are covered, and are all in the second,
    where all are."""
    rng = np.random.default_rng(5)
    covered, small = [], []
    names = ["outcome-only", *(f"v{number}" for number in range(300))]
    values = {
        name: {
            seed: (rng.normal(0, spread * (name != "outcome-only")) + rng.normal(0, 0.15, 16))
            * (name != "outcome-only")
            for seed in range(6)
        }
        for name in names
    }
    design, results = by_hand(values, variants={name: {} for name in names}, pairs="baselines")
    found = arena(results, design, BootstrapSettings(num_resamples=2000))
    for name in names[1:]:
        one = pair(found, name, "outcome-only")
        covered.append(one.low <= 0 <= one.high)
        small.append(one.p < 0.05)
    assert least <= np.mean(covered) <= 1.0 and np.mean(small) <= 0.08


def test_the_correction_holds_in_a_family_without_differences():
    """40 arenas in which all rules are equal, 21 comparisons each: hardly any names a winner."""
    wrong = 0
    for seed in range(40):
        names = [f"v{number}" for number in range(7)]
        design = arena_design(
            baselines=["v0"],
            variants={name: {} for name in names},
            regimes={"short": {}},
            primary=[GREEDY],
        )
        found = arena(arena_results(design, {}, seed), design, FEW)
        assert len(found.comparisons) == 21
        wrong += any(one.beaten_by for one in found.standings)
    assert wrong <= 5


def test_a_rule_that_gains_beats_the_others_and_one_that_loses_is_beaten():
    design = arena_design()
    found = arena(arena_results(design, {"+CSR": 0.2, "Fine-Mem": -0.1}), design, FEW)
    status = {one.variant: (one.status, one.trusted) for one in found.verdicts}
    assert status == {
        "outcome-only": ("not beaten", True),
        "+CSR": ("not beaten", True),
        "Fine-Mem": ("beaten", True),
    }
    last = found.standings[2]
    assert (last.variant, last.beaten_by) == ("Fine-Mem", ("+CSR", "outcome-only"))
    assert (found.standings[0].reader_calls, found.standings[1].reader_calls) == (120, 0)
    assert found.standings[1].cpu_seconds == 8.0
    verdict = next(one for one in found.verdicts if one.variant == "Fine-Mem")
    assert {(one.regime, one.other) for one in verdict.below} == {
        ("short", "outcome-only"),
        ("long", "outcome-only"),
    }
    assert len(verdict.below) == 4, "two measures in two regimes"


def test_what_all_share_cancels_out():
    """A stream that is harder for all rules by the same amount changes no comparison."""
    values = {name: {s: [0.1 * s, 0.5, 0.3] for s in range(6)} for name in ("outcome-only", "+CSR")}
    values["+CSR"] = {s: [v + 0.01 * s for v in row] for s, row in values["+CSR"].items()}
    harder = {
        name: {s: [v + 0.1 * s * place for place, v in enumerate(row)] for s, row in by.items()}
        for name, by in values.items()
    }
    (design, first), (_, second) = by_hand(values), by_hand(harder)
    one, other = arena(first, design, FEW), arena(second, design, FEW)
    for a, b in zip(one.comparisons, other.comparisons, strict=True):
        assert (a.difference, a.low, a.high, a.p) == pytest.approx(
            (b.difference, b.low, b.high, b.p)
        )


def test_the_order_of_the_rows_changes_nothing():
    design = arena_design(seeds=[20, 21])
    results = arena_results(design, {"+CSR": 0.1})
    one = arena(results, design, FEW)
    other = arena(results[::-1], design, FEW)
    assert (one.standings, one.comparisons) == (other.standings, other.comparisons)


def test_missing_cells_are_named_and_leave_the_verdict_open():
    design = arena_design()
    results = [
        one
        for one in arena_results(design, {"+CSR": 0.2})
        if one.cell.regime == "short" and (one.cell.variant, one.cell.seed) != ("+CSR", 22)
    ]
    strange = results[0].model_copy(
        update={"cell": results[0].cell.model_copy(update={"updates": 1})}
    )
    found = arena([*results, strange], design, FEW)
    notes = " ".join(arena_notes(found))
    assert "17 of 36 cells have a row" in notes and "short, +CSR: seeds 22" in notes
    assert "long, Fine-Mem: seeds 20-25" in notes and "1 rows are of no cell" in notes
    csr = pair(found, "+CSR", "outcome-only")
    assert csr.seeds == (20, 21, 23, 24, 25) and csr.difference == pytest.approx(0.2, abs=0.03)
    assert not csr.trusted, "five seeds"
    assert {one.status for one in found.verdicts} == {"open"}
    verdict = next(one for one in found.verdicts if one.variant == "+CSR")
    assert len(verdict.above) == 4 and len(verdict.missing) == 8, "five of six seeds are too few"
    missing = pair(found, "+CSR", "outcome-only", regime="long")
    assert (missing.difference, missing.p, missing.corrected) == (None, None, None)
    # what is missing counts in the family: 12 comparisons, not the six that could be made
    best = min(one.p for one in found.comparisons if one.p is not None and one.measure == GREEDY)
    least = min(one.corrected for one in found.comparisons if one.corrected is not None)
    assert least <= 6 * best + 1e-12 and len(found.comparisons) == 12


def test_nothing_at_all_is_said_to_be_missing():
    design = arena_design()
    found = arena([], design, FEW)
    assert found.standings == () and {one.status for one in found.verdicts} == {"open"}
    assert arena_notes(found)[0].startswith("0 of 36 cells have a row; missing: short, outcome-")
    assert len(arena_tables(found)[GREEDY]) == 1


def test_one_seed_has_an_interval_over_streams_and_no_p():
    design = arena_design(seeds=[20], regimes={"short": {}})
    found = arena(arena_results(design, {"+CSR": 0.2}), design, FEW)
    csr = pair(found, "+CSR", "outcome-only")
    assert csr.p is None and csr.low < csr.difference < csr.high and not csr.trusted
    assert "beaten*" in {row[1] for row in arena_tables(found)["verdict"]}


def test_only_pairs_with_a_baseline_are_compared_where_the_design_says_so():
    design = arena_design(
        variants={name: {"scheme": name} for name in ("outcome-only", "Fine-Mem", "+CSR", "+EARA")},
        pairs="baselines",
        family=["measure", "regime"],
    )
    found = arena(arena_results(design, {}), design, FEW)
    here = [one for one in found.comparisons if (one.measure, one.regime) == (GREEDY, "long")]
    assert {(one.variant, one.other) for one in here} == {
        ("+CSR", "outcome-only"),
        ("+EARA", "outcome-only"),
        ("Fine-Mem", "outcome-only"),
        ("+CSR", "Fine-Mem"),
        ("+EARA", "Fine-Mem"),
    }
    smallest = min(here, key=lambda one: one.p)
    assert smallest.corrected == pytest.approx(min(1, 5 * smallest.p))


def test_twelve_rules_in_four_regimes_take_seconds():
    names = [f"v{number}" for number in range(12)]
    design = arena_design(
        baselines=names[:2],
        variants={name: {} for name in names},
        regimes={f"r{number}": {} for number in range(4)},
        primary=[GREEDY],
    )
    results = arena_results(design, {}, streams=64)
    started = time.process_time()
    assert len(arena(results, design).comparisons) == 4 * 66
    assert time.process_time() - started < 4  # 0.8 s measured


def test_prices_are_means_over_seeds_with_their_error():
    """Half of the seeds pay 0 and half 0.02 per noise sentence more than the negative gain."""
    found = arena(arena_results(design := arena_design(), {"+CSR": 0.2}), design, FEW)
    (price,) = (
        one for one in found.prices if (one.regime, one.variant, one.update) == ("long", "+CSR", 14)
    )
    error = np.std([0, 0.02] * 3, ddof=1) / math.sqrt(6)
    assert (price.noise, price.noise_error) == pytest.approx((-0.19, error))
    assert (price.fact, price.fact_error, price.seeds) == (1, 0, tuple(range(20, 26)))
    assert [one.update for one in found.prices[:3]] == [1, 14, 32]


def test_limits_name_the_best_rule_of_every_regime_and_its_edits():
    design = arena_design()
    results = arena_results(design, {"+CSR": 0.2})
    same, short, long = limits(arena(results, design, FEW), results)
    assert (
        same == "+CSR has the greatest mean in every regime, each rule over the seeds that it has."
    )
    mean = np.mean(
        [
            one.tests["greedy"].columns["accuracy"]
            for one in results
            if (one.cell.variant, one.cell.regime) == ("+CSR", "short")
        ]
    )
    assert short.startswith(f"short: accuracy, greedy, no rule's mean is above {mean:.3f} (+CSR, ")
    # five kinds of right edits and nine of wrong ones, one each on a stream of six chunks
    assert f"makes {9 / 6:.2f} wrong edits per step and {5 / 6:.2f} right ones" in short
    assert "seeds 20-25" in long and f"{5 / 24:.2f} right ones" in long
    assert limits(arena([], design, FEW), []) == []


def test_leaders_are_the_baselines_and_the_best_others():
    names = ("outcome-only", "Fine-Mem", "+CSR", "+EARA")
    design = arena_design(variants={name: {"scheme": name} for name in names})
    found = arena(arena_results(design, {"+CSR": 0.2, "+EARA": 0.1, "Fine-Mem": -0.1}), design, FEW)
    assert leaders(found, "short", 1) == ["+CSR", "outcome-only", "Fine-Mem"]


# The command.


@pytest.fixture
def files(tmp_path):
    design = arena_design()
    plan, rows = tmp_path / "arena.design.yaml", tmp_path / "arena.jsonl"
    plan.write_text(yaml.safe_dump(design.model_dump(mode="json", exclude_none=True)))
    results = arena_results(design, {"+CSR": 0.2, "Fine-Mem": -0.1})
    write_rows(
        [one for one in results if (one.cell.regime, one.cell.seed) != ("long", 25)], rows, {}
    )
    return ["arena", "--design", str(plan), "--resamples", "400", "--rows", str(rows)]


def test_the_command_prints_tables_verdicts_and_what_is_missing(files, capsys):
    assert main.main(files) == 0
    out = capsys.readouterr().out
    assert "Three rules side by side" in out and "33 of 36 cells have a row" in out
    lines = [line.split() for line in out.splitlines()]
    first = next(line for line in lines if line[:2] == ["short", "+CSR"])
    assert first[2] == "1" and first[-1] == "–" and "20-25" in first
    assert any(line[:2] == ["long", "+CSR"] and "20-24" in line for line in lines)
    assert any(line[:2] == ["Fine-Mem", "beaten"] for line in lines)
    assert any(line[:2] == ["+CSR", "open"] for line in lines)
    assert "* 5 seeds are too few" in out


def test_the_command_prints_json(files, capsys):
    assert main.main([*files, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["cells"]["planned"] == 36 and len(found["cells"]["missing"]) == 3
    assert {one["variant"]: one["status"] for one in found["verdicts"]}["Fine-Mem"] == "beaten"
    assert found["design"]["baselines"] == ["outcome-only", "Fine-Mem"]


def test_the_command_refuses_what_it_cannot_read(files, tmp_path, capsys):
    assert main.main(["arena", "--design", str(tmp_path / "none.yaml")]) == 2
    assert main.main([*files, str(tmp_path / "none.jsonl")]) == 2
    assert main.main([*files[:3], "--resamples", "3"]) == 2
    errors = capsys.readouterr().err
    assert "none.yaml" in errors and "none.jsonl" in errors and "at least 100" in errors


def test_the_schemes_that_can_be_named_are_those_of_the_arena() -> None:
    """Notebook 04 offers them by what the arena found of them."""
    design = load_design(workbench_root() / "data" / "experiments" / "arena.design.yaml")
    trained = {cell.variant: scheme_of(cell.scheme) for cell in design.cells}
    offered = {name: SCHEMES[name] for name in SCHEMES.keys() - SYSTEM_SCHEMES.keys()}
    assert {name: trained[name] for name in offered} == offered
