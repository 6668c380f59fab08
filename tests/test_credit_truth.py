"""Credit rules against the truth: measures by hand, one table from seeds, its figures and rows."""

from __future__ import annotations

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_plots import strings

from finemem_lib import plots_credit
from finemem_lib.credit import RULES
from finemem_lib.credit_truth import (
    MEASURES,
    REGIMES,
    TRUTHS,
    VARIANTS,
    Row,
    Variant,
    at_true_steps,
    judge,
    noise_share,
    planted_credit,
    rank_correlation,
    read_table,
    sign_errors,
    truth_table,
    write_table,
)
from finemem_lib.evaluation import BootstrapSettings, clustered_mean
from finemem_lib.planted import SYNONYMS, StreamSettings, planted_stream
from finemem_lib.plot_frames import figure_table
from finemem_lib.policy import Oracle, RandomManager
from finemem_lib.reasoning import ExtractiveReader, reader_for
from finemem_lib.repro import repository_root
from finemem_lib.rewards import outcome_reward
from finemem_lib.rollout import RolloutSettings, play

COMMITTED = repository_root() / "data" / "experiments" / "credit_truth.jsonl"
BOOTSTRAP = BootstrapSettings(num_resamples=200)
SLICES = ("all", *(name for names in REGIMES.values() for name in names))


def agent() -> ExtractiveReader:
    return ExtractiveReader(synonyms=SYNONYMS)


@functools.cache
def groups():
    stream = StreamSettings(num_chunks=4, change_rate=0.4)
    instances = [planted_stream(seed, stream) for seed in (1, 2)]
    world = RolloutSettings(num_generations=2, capacity=6, duplicates="allow")
    return play(instances, RandomManager(), world, reader_for(instances), 0)


@functools.cache
def table() -> list[Row]:
    judged = [(*judge(group, agent), len(group)) for group in groups()]
    return truth_table(dict.fromkeys(SLICES, judged), BOOTSTRAP)


def cells(rows) -> dict[tuple[str, str, str], Row]:
    return {(row.rule, row.truth, row.measure): row for row in rows if row.slice == "all"}


credits = st.lists(st.none() | st.floats(-1, 1), min_size=3, max_size=6)


@settings(max_examples=30, deadline=None)
@given(credits, st.randoms())
def test_the_truth_itself_is_without_fault(truth, rng):
    known = [value for value in truth if value is not None]
    if len(set(round(value, 12) for value in known)) > 1:
        assert rank_correlation(truth, truth) == 1.0
        negative = [None if value is None else -value for value in truth]
        assert rank_correlation(negative, truth) == -1.0
    if any(round(value, 12) for value in known):
        assert sign_errors(truth, truth) == 0.0
        assert noise_share(truth, truth) in (0.0, None)
    one_hot = [0.0] * len(truth)
    one_hot[rng.randrange(len(truth))] = 1.0
    assert at_true_steps(one_hot, one_hot) == (1.0, 1.0)
    assert at_true_steps([1 - value for value in one_hot], one_hot) == (0.0, 0.0)


def test_rank_correlation_is_scipys():
    from scipy.stats import spearmanr

    credit, truth = [0.3, 0.3, 0.1, 0.9, -0.2], [0.0, 0.5, 0.5, 0.7, -1.0]
    expected = spearmanr(credit, truth).statistic
    assert rank_correlation(credit, truth) == pytest.approx(expected, abs=1e-11)


def test_sums_in_another_order_are_the_same_credit():
    assert rank_correlation([0.1 + 0.2, 0.3, 0.0], [0.0, 0.0, 1.0]) == pytest.approx(-1.0)
    assert at_true_steps([0.1 + 0.2, 0.3], [1.0, 0.0]) == (None, 0.0)
    assert sign_errors([1e-17, 1.0], [-1.0, 1.0]) == 0.0


def test_planted_credit_sums_to_the_outcome_and_needs_the_truth():
    for one in groups()[0]:
        assert sum(planted_credit(one)) == pytest.approx(outcome_reward(one))
    answered = one.questions[0]
    unknown = dataclasses.replace(
        answered, question=dataclasses.replace(answered.question, evidence_steps=None))
    with pytest.raises(ValueError, match="no evidence steps"):
        planted_credit(dataclasses.replace(one, questions=(unknown,)))


def test_every_rule_is_judged_by_every_measure():
    assert {variant.rule for variant in VARIANTS.values()} == set(RULES)
    found = cells(table())
    assert set(found) == {
        (rule, truth, measure) for rule in VARIANTS for truth in TRUTHS for measure in MEASURES
    }
    bounds = {"rank": -1, "rank_rollouts": -1}
    for (_, _, measure), row in found.items():
        if row.value is not None:
            assert bounds.get(measure, 0) <= row.value <= 1
            assert row.low is None or row.low <= row.value <= row.high
        assert row.counted + row.left_out == {"rank": 4, "sign": 4, "rank_rollouts": 8}.get(
            measure, sum(len(one.questions) for group in groups() for one in group))


def test_what_must_hold_in_any_table():
    found = cells(table())
    # Step leave-one-out is the causal truth; a broadcast ranks no step and credits none.
    assert found["step-loo", "causal", "rank"].value == 1.0
    assert found["step-loo", "causal", "noise"].value == 0.0
    for rule in ("outcome-broadcast", "uniform-split"):
        assert found[rule, "planted", "rank"].value == 0.0
        assert found[rule, "planted", "recall"].value == 0.0
        assert found[rule, "planted", "precision"].value is None
        assert found[rule, "planted", "noise"].value == pytest.approx(0.75)  # 3 of 4 steps
    for rule, row in ((rule, found[rule, "causal", "rank"]) for rule in VARIANTS):
        needs_reader = "agent" in RULES[VARIANTS[rule].rule].needs
        assert (row.calls_asked > 0) == needs_reader
        assert row.calls_made <= row.calls_asked
    assert found["eara", "causal", "rank"].difference is None
    shapley, eara = (found[rule, "planted", "noise"] for rule in ("evidence-shapley", "eara"))
    assert shapley.difference < 0
    if shapley.counted == eara.counted:
        assert shapley.difference == pytest.approx(shapley.value - eara.value)


def test_an_oracle_leaves_evidence_shapley_without_fault():
    instances = [planted_stream(seed, StreamSettings(num_chunks=4)) for seed in (3, 4)]
    played = play(instances, Oracle(), RolloutSettings(num_generations=1), reader_for(instances), 0)
    variants = {name: VARIANTS[name] for name in ("eara", "evidence-shapley")}
    judged = [(*judge(group, agent, variants), 1) for group in played]
    found = cells(truth_table({"all": judged}, BOOTSTRAP))
    row = {measure: found["evidence-shapley", "planted", measure].value for measure in MEASURES}
    assert row == {"rank": 1.0, "rank_rollouts": None, "precision": 1.0, "recall": 1.0,
                   "noise": 0.0, "sign": 0.0}
    assert found["eara", "planted", "noise"].value > 0.4


def test_the_same_seed_makes_the_same_table():
    variants = {"step-shapley": VARIANTS["step-shapley"], "eara": Variant("eara")}
    first, second = (
        truth_table({"all": [(*judge(groups()[0], agent, variants), 2)]}, BOOTSTRAP)
        for _ in range(2)
    )
    assert first == second
    assert all(row.low is None for row in first)  # one instance is too few for an interval


def test_clustered_mean_counts_values_and_draws_clusters():
    samples = {"a": [1.0] * 9, "b": [0.0, None]}
    value, low, high = clustered_mean(samples)
    assert (value, low, high) == (0.9, 0.0, 1.0)
    assert clustered_mean({"a": [None]}) == (None, None, None)
    assert clustered_mean({"a": [0.5, 1.0]}) == (0.75, None, None)
    many = {str(n): [n % 2] for n in range(100)}
    value, low, high = clustered_mean(many)
    assert value == 0.5 and 0.39 < low < 0.42 and 0.58 < high < 0.61  # +- 1.96 / 20
    better = {name: [value + 0.25] for name, (value,) in many.items()}
    assert clustered_mean(better, many) == pytest.approx((0.25, 0.25, 0.25))


# ---- figures and rows ----------------------------------------------------------------------------

FIGURES = {
    "by regime": plots_credit.credit_by_regime, "per call": plots_credit.credit_per_call,
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", FIGURES)
def test_figures_say_what_they_show_and_have_a_table(name, measure):
    figure = FIGURES[name](table(), "causal", measure)
    assert figure.to_json() == FIGURES[name](table(), "causal", measure).to_json()
    layout = json.loads(figure.to_json())["layout"]
    assert layout["title"]["text"] and layout["meta"]["alt"].endswith(".")
    assert any(letter.isdigit() for letter in layout["meta"]["caption"])
    judged = {row.rule for row in table() if row.truth == "causal" and row.measure == measure
              and row.value is not None}
    rows = figure_table(figure)
    assert len(rows) == len(judged) * (6 if name == "by regime" else 1)
    assert all("reader calls" in row["note"] for row in rows)
    assert len(figure.to_json()) < 40_000


def test_figures_keep_markup_out_and_stand_an_empty_table():
    poison = "<script>x</script>%{y} $a$"
    rows = [dataclasses.replace(row, rule=poison) for row in table() if row.rule == "eara"]
    for build in FIGURES.values():
        figure = build(rows, "planted", "rank")
        assert not [text for text in strings(json.loads(figure.to_json())["data"])
                    if "<script" in text or "$" in text]
        assert "0 rules" in build([], "planted", "rank").layout.meta["caption"]


def test_rows_come_back_and_a_wrong_file_says_what_to_do(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    write_table(table(), path)
    again = read_table(path)
    assert [(row.rule, row.measure, row.counted) for row in again] == [
        (row.rule, row.measure, row.counted) for row in table()]
    assert cells(again)["step-loo", "causal", "rank"].value == 1.0
    path.write_text('{"rule": 1}\n')
    for wrong in (path, tmp_path / "none.jsonl"):
        with pytest.raises(ValueError, match="benchmarks/credit.py"):
            read_table(wrong)


def test_the_committed_table_is_whole_and_says_how_it_was_made():
    rows, card = read_table(COMMITTED), json.loads(COMMITTED.with_suffix(".json").read_text())
    assert {row.slice for row in rows} == set(SLICES) | {
        f"manager: {name}" for name in card["managers"]}
    assert set(cells(rows)) == {
        (rule, truth, measure) for rule in VARIANTS for truth in TRUTHS for measure in MEASURES
    }
    assert cells(rows)["step-loo", "causal", "rank"].value == 1.0
    assert card["command"].startswith("python benchmarks/credit.py")
    assert card["versions"]["numpy"] and card["hardware"] and card["seconds"] > 0


def test_the_command_says_what_it_can_do():
    script = repository_root() / "benchmarks" / "credit.py"
    done = subprocess.run(
        [sys.executable, script, "--instances", "1"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and "expected at least 2" in done.stderr
