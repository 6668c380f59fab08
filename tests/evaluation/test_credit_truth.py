"""Credit rules against the truth: measures by hand, one table from seeds, its figures and rows."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit.counterfactual import owen_values, potential_shaping, step_leave_one_out
from finemem_lib.credit.rules import RULES, outcome_readings
from finemem_lib.data.planted import SYNONYMS, StreamSettings, planted_stream
from finemem_lib.evaluation.credit_truth import (
    MEASURES,
    PRIVILEGED,
    REGIMES,
    TRUTHS,
    VARIANTS,
    Row,
    Variant,
    at_true_steps,
    judge,
    measures_frame,
    noise_share,
    planted_credit,
    rank_correlation,
    sign_errors,
    truth_table,
)
from finemem_lib.evaluation.intervals import clustered_mean
from finemem_lib.evaluation.rows import read_rows, write_rows
from finemem_lib.figures import credit_rules
from finemem_lib.figures.frames import figure_table
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import Oracle, RandomManager
from finemem_lib.readers.extractive import ExtractiveReader, reader_for
from finemem_lib.rewards import outcome_reward
from finemem_lib.util.provenance import workbench_root
from tests.helpers.figure_samples import strings
from tests.helpers.patience import LAST_RESORT

COMMITTED = workbench_root() / "data" / "experiments" / "credit_truth.jsonl"
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
    judged = [(*judge(group, agent()), len(group)) for group in groups()]
    return truth_table(dict.fromkeys(SLICES, judged))


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


def test_a_step_that_gets_less_than_nothing_is_not_credited():
    # The first gets more than the mean, and still loses.
    assert at_true_steps([-0.1, -0.5, -0.9], [1.0, 0.0, 0.0]) == (None, 0.0)
    assert at_true_steps([0.1, -0.5, -0.9], [1.0, 0.0, 0.0]) == (1.0, 1.0)
    assert at_true_steps([0.0, -1.0, -1.0], [1.0, 0.0, 0.0]) == (None, 0.0)
    # A positive part below an even share is no credit either.
    assert at_true_steps([0.1, 0.9, 0.2], [1.0, 0.0, 0.0]) == (0.0, 0.0)


def test_planted_credit_sums_to_the_outcome_and_needs_the_truth():
    for one in groups()[0]:
        assert sum(planted_credit(one)) == pytest.approx(outcome_reward(one))
    answered = one.questions[0]
    unknown = dataclasses.replace(
        answered, question=dataclasses.replace(answered.question, evidence_steps=None)
    )
    with pytest.raises(ValueError, match="no evidence steps"):
        planted_credit(dataclasses.replace(one, questions=(unknown,)))


def test_an_answer_that_needs_two_facts_is_earned_by_both_steps():
    """The oracle's memory holds one item per slot, and both are needed: the planted truth, the
    items' Shapley values and the split among used items agree. What a step causes is the whole
    answer, for each of the two."""
    instances = [planted_stream(seed, StreamSettings(world="paraphrased")) for seed in range(4)]
    reader = reader_for(instances)
    shape = RolloutSettings(num_generations=1, top_k=4)
    pairs = 0
    for (one,) in play(instances, Oracle(), shape, reader, 0):
        for answered in one.questions:
            steps = answered.question.evidence_steps
            if len(steps) == 2 and answered.score == 1.0:
                pairs += 1
                alone = dataclasses.replace(one, questions=(answered,))
                halves = [0.5 if step.step in steps else 0.0 for step in one.steps]
                assert planted_credit(alone) == halves
                assert RULES["evidence-shapley"].function(alone, agent=reader) == halves
                assert RULES["eara-used"].function(alone, beta=1.0) == halves
                caused = step_leave_one_out(alone, agent=reader, orphaned="insert")
                assert caused == [2 * half for half in halves]
    assert pairs > 4


def test_an_answer_told_twice_is_earned_by_halves():
    one = groups()[0][0]
    twice = tuple(
        dataclasses.replace(
            answered,
            score=1.0,
            question=dataclasses.replace(answered.question, evidence_steps=(1, 3)),
        )
        for answered in one.questions
    )
    assert planted_credit(dataclasses.replace(one, questions=twice)) == pytest.approx(
        [0.5, 0.0, 0.5, 0.0]
    )


def test_the_probes_on_the_way_are_those_that_the_variant_names():
    (one, *_), _ = groups()
    agent_ = reader_for([planted_stream(1)])
    chunk = [answered.question for step in one.steps for answered in step.chunk_questions]
    final = [answered.question for answered in one.questions]
    paid = {}
    for kind, probes in (("chunk", chunk), ("final", final)):
        name = f"potential, {kind} questions"
        judged, _ = judge([one], agent_, {name: VARIANTS[name]})
        (rank,) = (
            each.value for each in judged if (each.truth, each.measure) == ("planted", "rank")
        )
        credit = potential_shaping(one, agent=agent_, probes=probes)
        paid[kind] = rank
        assert rank == rank_correlation(credit, planted_credit(one))
    assert paid["chunk"] != paid["final"]  # else it would not matter which


class Noting(ExtractiveReader):
    """Notes what it reads."""

    def __init__(self) -> None:
        super().__init__(synonyms=SYNONYMS)
        self.read_ = []

    def read(self, tasks):
        self.read_ += [
            (task.question, tuple(content for _, content in task.items), task.written)
            for task in tasks
        ]
        return super().read(tasks)


def test_what_the_outcome_of_the_group_read_is_counted_for_no_rule():
    group = groups()[0]
    outcome = {
        (task.question, tuple(content for _, content in task.items), task.written)
        for one in group
        for task in outcome_readings(one)[0]
    }
    assert len(outcome) > len(group[0].questions)
    reader = Noting()
    _, calls = judge(group, reader, {name: VARIANTS[name] for name in ("step-loo", "owen")})
    assert not set(reader.read_) & outcome
    for name, function in (("step-loo", step_leave_one_out), ("owen", owen_values)):
        alone = Noting()
        for one in group:
            function(one, agent=alone)
        assert calls[name].asked == len(alone.read_)
        assert calls[name].made == len(set(alone.read_) - outcome) < len(set(alone.read_))


def test_every_rule_is_judged_by_every_measure():
    assert {variant.rule for variant in VARIANTS.values()} == set(RULES)
    found = cells(table())
    assert set(found) == set(itertools.product(VARIANTS, TRUTHS, MEASURES))
    bounds = {"rank": -1, "rank_rollouts": -1}
    for (_, _, measure), row in found.items():
        if row.value is not None:
            assert bounds.get(measure, 0) <= row.value <= 1
            assert row.low is None or row.low <= row.value <= row.high
        assert row.counted + row.left_out == {"rank": 4, "sign": 4, "rank_rollouts": 8}.get(
            measure, sum(len(one.questions) for group in groups() for one in group)
        )


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
        judged = RULES[VARIANTS[rule].rule]
        if VARIANTS[rule].rule != "csr-later":  # here the outcome asks most of what it asks
            assert (row.calls_made > row.calls_played) == ("agent" in judged.arguments)
            assert (row.calls_played > 0) == ("chunk questions" in judged.records)
        assert row.calls_made <= row.calls_asked
    asked = [len(step.chunk_questions) for group in groups() for one in group for step in one.steps]
    assert found["csr", "causal", "rank"].calls_asked == sum(asked) / 4
    assert found["mt-grpo", "causal", "rank"].calls_asked == sum(asked[::4]) / 4
    assert found["eara", "causal", "rank"].difference is None
    shapley, eara = (found[rule, "planted", "noise"] for rule in ("evidence-shapley", "eara"))
    assert shapley.difference < 0
    if shapley.counted == eara.counted:
        assert shapley.difference == pytest.approx(shapley.value - eara.value)


def test_an_oracle_leaves_evidence_shapley_without_fault():
    instances = [planted_stream(seed, StreamSettings(num_chunks=4)) for seed in (3, 4)]
    played = play(instances, Oracle(), RolloutSettings(num_generations=1), reader_for(instances), 0)
    variants = {name: VARIANTS[name] for name in ("eara", "evidence-shapley")}
    judged = [(*judge(group, agent(), variants), 1) for group in played]
    found = cells(truth_table({"all": judged}))
    row = {measure: found["evidence-shapley", "planted", measure].value for measure in MEASURES}
    assert row == {
        "rank": 1.0,
        "rank_rollouts": None,
        "precision": 1.0,
        "recall": 1.0,
        "noise": 0.0,
        "sign": 0.0,
    }
    assert found["eara", "planted", "noise"].value > 0.4


def test_the_same_seed_makes_the_same_table():
    variants = {"step-shapley": VARIANTS["step-shapley"], "eara": Variant("eara")}
    first, second = (
        truth_table({"all": [(*judge(groups()[0], agent(), variants), 2)]}) for _ in range(2)
    )
    assert first == second
    assert all(row.low is None for row in first)  # one instance is too few for an interval


def test_clustered_mean_counts_values_and_spreads_over_clusters():
    from scipy.stats import t, ttest_1samp

    samples = {"a": [1.0] * 9, "b": [0.0, None]}
    value, low, high = clustered_mean(samples)
    # Deviations of the cluster sums from 0.9 per value: 9 - 8.1 and 0 - 0.9.
    half = t.ppf(0.975, 1) * (2 / 1 * 2 * 0.9**2) ** 0.5 / 10
    assert (value, low, high) == pytest.approx((0.9, 0.9 - half, 0.9 + half))
    assert clustered_mean({"a": [None]}) == (None, None, None)
    assert clustered_mean({"a": [0.5, 1.0]}) == (0.75, None, None)
    many = {str(n): [n % 2 + n / 50] for n in range(20)}
    value, low, high = clustered_mean(many)
    expected = ttest_1samp([one for (one,) in many.values()], 0).confidence_interval(0.95)
    assert (low, high) == pytest.approx((expected.low, expected.high))
    better = {name: [value + 0.25] for name, (value,) in many.items()}
    assert clustered_mean(better, many) == pytest.approx((0.25, 0.25, 0.25))


def test_intervals_over_few_clusters_hold_what_they_say():
    rng = np.random.default_rng(0)
    sizes, held = rng.integers(5, 15, 8), 0
    for _ in range(1000):
        centres = rng.normal(size=8)
        _, low, high = clustered_mean(
            {
                str(n): rng.normal(centre, 1.0, size)
                for n, (centre, size) in enumerate(zip(centres, sizes, strict=True))
            }
        )
        held += low <= 0 <= high
    assert 0.93 <= held / 1000 <= 0.97


# ---- figures and rows ----------------------------------------------------------------------------

FIGURES = {
    "by regime": credit_rules.credit_by_regime,
    "per call": credit_rules.credit_per_call,
    "differences": credit_rules.differences_by_regime,
    "all measures": lambda rows, truth, measure: credit_rules.credit_measures(rows),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("name", FIGURES)
def test_figures_say_what_they_show_and_have_a_table(name, measure):
    figure = FIGURES[name](table(), "causal", measure)
    assert figure.to_json() == FIGURES[name](table(), "causal", measure).to_json()
    layout = json.loads(figure.to_json())["layout"]
    assert layout["title"]["text"] and layout["meta"]["alt"].endswith(".")
    assert any(letter.isdigit() for letter in layout["meta"]["caption"])
    judged = {
        row.rule
        for row in table()
        if row.truth == "causal"
        and row.measure == measure
        and (row.difference if name == "differences" else row.value) is not None
    }
    rows = figure_table(figure)
    if name == "all measures":
        assert len(rows) == sum(row.slice == "all" and row.value is not None for row in table())
        assert len(figure.to_json()) < 60_000
        return
    assert len(rows) == len(judged) * (2 if name == "per call" else 6)  # one per panel or slice
    assert {row["credit rule"] for row in rows} == judged  # the rules, not where they are drawn
    assert all("reader calls" in row["note"] for row in rows)
    assert len(figure.to_json()) < 40_000


def test_what_a_reader_call_buys_is_drawn_on_a_line_per_rule():
    figure = credit_rules.credit_per_call(table(), "causal", "rank")
    rows = figure_table(figure)
    found = cells(table())
    calls, values = (
        {row["credit rule"]: float(row[axis]) for row in rows if axis in row}
        for axis in ("reader calls (log)", "rank correlation over steps")
    )
    assert calls == {
        rule: pytest.approx(found[rule, "causal", "rank"].calls_made, rel=1e-3) for rule in VARIANTS
    }
    assert values == {
        rule: pytest.approx(found[rule, "causal", "rank"].value, abs=1e-3) for rule in VARIANTS
    }
    # No two points of a panel share a line, and the cheapest is on top.
    for column in ("x", "x2"):
        lines = [y for trace in figure.data if (trace.xaxis or "x") == column for y in trace.y]
        assert sorted(lines) == list(range(len(VARIANTS)))
    names = figure.layout.yaxis.ticktext
    assert [calls[rule] for rule in names] == sorted(calls.values())
    hollow = {
        names[y]
        for trace in figure.data
        for y, symbol in zip(trace.y, trace.marker.symbol, strict=True)
        if symbol.endswith("-open")
    }
    assert hollow == set(PRIVILEGED["causal"])


def test_all_measures_are_drawn_as_measured_against_both_truths():
    figure = credit_rules.credit_measures(table())
    found = cells(table())
    names = figure.layout.yaxis.ticktext
    drawn = {}
    for trace in figure.data:
        measure = next(
            m for m, name in credit_rules.MEASURE_NAMES.items() if name == trace.meta["panel"]
        )
        for x, place in zip(trace.x, trace.meta["y"], strict=True):
            rule = names[place].rpartition(" (")[0]
            drawn[rule, trace.name.partition(" ")[0], measure] = x
    assert drawn == {
        key: pytest.approx(row.value, abs=1e-3)
        for key, row in found.items()
        if row.value is not None
    }
    for name in names:
        rule, _, calls = name.rpartition(" (")
        assert calls == f"{found[rule, 'causal', 'rank'].calls_made:.1f})"


@pytest.mark.parametrize("truth", TRUTHS)
def test_the_frame_of_measures_holds_what_was_measured(truth):
    frame = measures_frame(table(), truth)
    found = cells(table())
    assert set(frame.index) == set(VARIANTS) and list(frame["calls"].astype(float)) == sorted(
        frame["calls"].astype(float)
    )
    for rule in VARIANTS:
        for measure in MEASURES:
            row = found[rule, truth, measure]
            expected = "–" if row.value is None else f"{row.value:.2f}"
            assert frame.loc[rule, measure].startswith(expected)
            assert ("[" in frame.loc[rule, measure]) == (row.low is not None)
    rank = found["owen", truth, "rank"]
    assert float(frame.loc["owen", "rank per call"]) == pytest.approx(
        rank.difference / rank.calls_made, abs=5e-4
    )
    assert frame.loc["eara", "rank per call"] == frame.loc["gigpo", "rank per call"] == "–"


def test_differences_are_drawn_with_their_intervals():
    figure = credit_rules.differences_by_regime(table(), "causal", "noise")
    found = cells(table())
    trace = figure.data[0]
    ticks = dict(zip(figure.layout.yaxis.tickvals, figure.layout.yaxis.ticktext, strict=True))
    drawn = {
        ticks[round(y)]: (x - less, x, x + more)
        for x, y, less, more in zip(
            trace.x, trace.y, trace.error_x.arrayminus, trace.error_x.array, strict=True
        )
    }
    assert "eara" not in drawn and set(drawn) | {"eara"} >= {"csr", "evidence-shapley", "owen"}
    for rule, ends in drawn.items():
        row = found[rule, "causal", "noise"]
        assert ends == pytest.approx(
            (row.difference_low, row.difference, row.difference_high), abs=2e-3
        )


def test_the_caption_names_what_is_better_in_every_slice():
    base = dict(
        truth="causal",
        measure="noise",
        value=0.2,
        low=0.1,
        high=0.3,
        counted=9,
        left_out=0,
        instances=9,
        calls_asked=0.0,
        calls_made=0.0,
        calls_played=0.0,
    )
    gaps = {
        "less noise": (-0.2, -0.3, -0.1),
        "more noise": (0.2, 0.1, 0.3),
        "unsure": (-0.2, -0.5, 0.1),
    }
    rows = [
        Row(
            slice=name,
            rule=rule,
            **base,
            **dict(zip(("difference", "difference_low", "difference_high"), gap, strict=True)),
        )
        for name in SLICES
        for rule, gap in gaps.items()
    ]
    caption = credit_rules.differences_by_regime(rows, "causal", "noise").layout.meta["caption"]
    assert "Of 3 variants" in caption and "better: less noise. Worse: more noise." in caption
    assert "over 9 instances" in caption
    rows[-1] = dataclasses.replace(rows[-1], rule="less noise", difference_high=0.0)
    rows.remove(next(row for row in rows if row.slice == SLICES[-1] and row.rule == "less noise"))
    caption = credit_rules.differences_by_regime(rows, "causal", "noise").layout.meta["caption"]
    assert "better: none. Worse: more noise." in caption


def test_figures_keep_markup_out_and_stand_an_empty_table():
    poison = "<script>x</script>%{y} $a$"
    rows = [dataclasses.replace(row, rule=poison) for row in table() if row.rule == "csr"]
    for build in FIGURES.values():
        figure = build(rows, "planted", "rank")
        assert not [
            text
            for text in strings(json.loads(figure.to_json())["data"])
            if "<script" in text or "$" in text
        ]
        assert "0 variants" in build([], "planted", "rank").layout.meta["caption"]


def test_rows_come_back_and_a_wrong_file_says_what_to_do(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    write_rows(table(), path)
    again = read_rows(path, Row)
    assert [(row.rule, row.measure, row.counted) for row in again] == [
        (row.rule, row.measure, row.counted) for row in table()
    ]
    assert cells(again)["step-loo", "causal", "rank"].value == 1.0
    path.write_text('{"rule": 1}\n')
    for wrong in (path, tmp_path / "none.jsonl"):
        with pytest.raises(ValueError, match="benchmarks/credit.py"):
            read_rows(wrong, Row)


def test_the_committed_table_is_whole_and_says_how_it_was_made():
    rows, card = read_rows(COMMITTED, Row), json.loads(COMMITTED.with_suffix(".json").read_text())
    assert {row.slice for row in rows} == set(SLICES) | {
        f"manager: {name}" for name in card["managers"]
    }
    variants = {row.rule for row in rows}
    assert variants <= set(VARIANTS)
    assert set(cells(rows)) == set(itertools.product(variants, TRUTHS, MEASURES))
    assert cells(rows)["step-loo", "causal", "rank"].value == 1.0
    per_call = credit_rules.credit_per_call(rows, "causal")
    for figure in (credit_rules.credit_measures(rows), per_call):
        assert not any("…" in name for name in figure.layout.yaxis.ticktext)
    assert card["command"].startswith("python benchmarks/credit.py")
    assert not card["git"]["dirty"], "make the table from a clean commit"
    assert card["versions"]["numpy"] and card["hardware"] and card["seconds"] > 0


def test_the_command_says_what_it_can_do():
    script = workbench_root() / "benchmarks" / "credit.py"
    done = subprocess.run(
        [sys.executable, script, "--instances", "1"],
        capture_output=True,
        text=True,
        timeout=LAST_RESORT,
    )
    assert done.returncode == 2 and "expected at least 2" in done.stderr
