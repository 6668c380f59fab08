"""Evaluation tables: what each average is over, honest intervals, nothing unscored taken as 0."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.data.planted import StreamSettings, World, planted_stream
from finemem_lib.data.worked_example import worked_example
from finemem_lib.evaluation.operation_truth import OPERATION_TRUTHS, operation_truth
from finemem_lib.evaluation.tables import (
    BootstrapSettings,
    Estimate,
    benchmark_table,
    format_estimate,
    operations_table,
    paired_differences,
    summary,
    to_frame,
)
from finemem_lib.layers.memory import PUBLISHED_RULES
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import outcome_reward
from finemem_lib.trajectory import Chunk, Instance, InvalidOperation, Operation, Trajectory
from tests.helpers.streams_by_hand import CHANGE, DROP, WRITE, Scripted, stream_of, told
from tests.helpers.trajectory_strategies import trajectories

FEW = BootstrapSettings(num_resamples=200)


def played(
    instance_id: str,
    scores: list[float | None],
    *,
    source: str = "squad",
    category: str = "AR",
    memory_tokens: int = 10,
    chunk_tokens: int = 100,
) -> Trajectory:
    """A one-step trajectory with the given scores of its global questions."""
    example = worked_example()
    step = dataclasses.replace(
        example.steps[0], chunk=Chunk("text", chunk_tokens), memory_tokens=memory_tokens
    )
    asked = example.questions[0]
    questions = tuple(
        dataclasses.replace(
            asked, question=dataclasses.replace(asked.question, question_id=f"q-{j}"), score=score
        )
        for j, score in enumerate(scores)
    )
    return dataclasses.replace(
        example,
        instance_id=instance_id,
        data_source=source,
        category=category,
        steps=(step,),
        questions=questions,
    )


def random_instances(
    seed: int, count: int, source: str = "squad", category: str = "AR"
) -> list[Trajectory]:
    """Instances of unequal size whose difficulty differs."""
    rng = np.random.default_rng(seed)
    return [
        played(
            f"{source}-{number}",
            (rng.random(rng.integers(3, 12)) < rng.beta(4, 4)).astype(float).tolist(),
            source=source,
            category=category,
            memory_tokens=int(rng.integers(1, 90)),
        )
        for number in range(count)
    ]


def cell(rows: list[Estimate], **wanted: object) -> Estimate:
    found = [row for row in rows if all(getattr(row, k) == v for k, v in wanted.items())]
    assert len(found) == 1, (wanted, len(found))
    return found[0]


def test_pooled_and_macro_by_hand() -> None:
    runs = [
        played("1", [1, 1, 0, 0, 0, 0, 0, 0], memory_tokens=20),
        played("2", [1, None], memory_tokens=40),
        played("1", [1.0, 0.5], source="clinc150", category="TTL", memory_tokens=90),
    ]
    rows = benchmark_table({"mine": runs}, FEW)
    accuracy = {"measure": "accuracy", "method": "mine"}
    squad = cell(rows, data_source="squad", **accuracy)
    assert (squad.value, squad.counted, squad.left_out, squad.instances) == (3 / 9, 9, 1, 2)
    pooled = cell(rows, category="all", average="pooled", **accuracy)
    assert (pooled.value, pooled.over) == (4.5 / 11, "11 scored answers pooled")
    macro = cell(rows, category="all", average="macro", **accuracy)
    assert macro.value == pytest.approx((3 / 9 + 0.75) / 2)
    assert macro.over.startswith("mean over 2 data sources (squad, clinc150)")
    assert cell(rows, category="TTL", average="macro", **accuracy).value == 0.75
    tokens = cell(rows, measure="memory_tokens", category="all", average="pooled")
    assert tokens.value == 50
    share = cell(rows, measure="memory_share", category="all", average="macro")
    assert share.value == pytest.approx((0.3 + 0.9) / 2)


def test_categories_come_in_the_order_of_the_benchmark() -> None:
    runs = [
        played("1", [1.0], source=source, category=category)
        for source, category in (("x", "XX"), ("c", "LRU"), ("b", "AR"), ("a", "TTL"))
    ]
    rows = benchmark_table({"mine": runs}, FEW, measures=["accuracy"])
    assert [row.category for row in rows if row.average == "macro"] == [
        "AR",
        "TTL",
        "LRU",
        "XX",
        "all",
    ]


def test_unscored_questions_are_counted_and_never_zero() -> None:
    runs = [played("1", [1.0, None, None]), played("2", [None], source="locomo")]
    rows = benchmark_table({"mine": runs}, FEW, measures=["accuracy"])
    nothing = cell(rows, data_source="locomo")
    assert (nothing.value, nothing.low, nothing.counted, nothing.left_out) == (None, None, 0, 1)
    assert format_estimate(nothing) == "–"
    assert nothing.interval == "none: nothing was scored"
    macro = cell(rows, category="all", average="macro")
    assert (macro.value, macro.left_out) == (1.0, 3)
    assert macro.over.endswith("without locomo, where nothing was scored")
    assert summary(rows)[0]["unscored"] == "3"


def test_an_instance_without_questions_is_shown_as_not_scored() -> None:
    row = benchmark_table({"mine": [played("1", [])]}, FEW, ["accuracy"])[0]
    assert (row.value, row.counted, row.left_out, row.instances) == (None, 0, 0, 0)


def test_memory_share_of_empty_chunks_is_left_out() -> None:
    runs = [played("1", [1.0], chunk_tokens=0), played("2", [1.0])]
    row = cell(benchmark_table({"mine": runs}, FEW), measure="memory_share", data_source="squad")
    assert (row.value, row.counted, row.left_out) == (pytest.approx(0.1), 1, 1)


def test_one_instance_has_no_interval_over_instances_but_one_over_questions() -> None:
    methods = {"mine": [played("1", [1.0, 0.0] * 50)]}
    row = benchmark_table(methods, FEW, ["accuracy"])[0]
    assert (row.value, row.low, row.high) == (0.5, None, None)
    assert row.interval == "none: one instance is too few to resample (squad)"
    questions = BootstrapSettings(resample="question", num_resamples=1000)
    row = benchmark_table(methods, questions, ["accuracy"])[0]
    # The binomial standard error of 100 questions is 0.05.
    assert row.low == pytest.approx(0.4, abs=0.03)
    assert row.high == pytest.approx(0.6, abs=0.03)
    assert "over questions" in row.interval
    tokens = benchmark_table(methods, questions, ["memory_tokens"])[0]
    assert (tokens.low, tokens.interval[:17]) == (None, "none: one instanc")


def test_interval_equals_scipys_percentile_bootstrap() -> None:
    from scipy.stats import bootstrap

    runs = random_instances(1, 30)
    chosen = BootstrapSettings(num_resamples=4000)
    row = cell(benchmark_table({"mine": runs}, chosen, ["accuracy"]), data_source="squad")
    sums = np.array([sum(q.score for q in run.questions) for run in runs])
    sizes = np.array([len(run.questions) for run in runs])
    theirs = bootstrap(
        (sums, sizes),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        method="percentile",
        n_resamples=4000,
        rng=np.random.default_rng(5),
    ).confidence_interval
    assert row.value == sums.sum() / sizes.sum()
    assert row.low == pytest.approx(theirs.low, abs=0.01)
    assert row.high == pytest.approx(theirs.high, abs=0.01)


def test_interval_over_instances_covers_the_truth() -> None:
    """About 95 % of the intervals hold the mean of the population; questions alone do not."""
    hits = {"instance": 0, "question": 0}
    for seed in range(60):
        runs = random_instances(seed, 40)
        for resample in hits:
            chosen = BootstrapSettings(resample=resample, num_resamples=200)
            row = benchmark_table({"mine": runs}, chosen, ["accuracy"])[0]
            hits[resample] += row.low <= 0.5 <= row.high
    assert 52 <= hits["instance"] <= 60
    assert hits["question"] < hits["instance"]


def test_rollouts_of_an_instance_are_one_cluster() -> None:
    """Copies of a trajectory carry no new information and must not narrow the interval."""
    runs = random_instances(2, 12)
    once = benchmark_table({"mine": runs}, FEW)
    eight = benchmark_table({"mine": runs * 8}, FEW)
    for a, b in zip(once, eight, strict=True):
        assert (b.value, b.low, b.high) == pytest.approx((a.value, a.low, a.high))
        assert b.instances == a.instances
        assert b.counted == 8 * a.counted


def test_rows_depend_on_the_seed_alone() -> None:
    runs, others = random_instances(3, 10), random_instances(4, 10)
    rows = benchmark_table({"mine": runs}, FEW)
    assert benchmark_table({"mine": runs[::-1]}, FEW) == rows
    assert benchmark_table({"other": others, "mine": runs}, FEW)[-len(rows) :] == rows
    reseeded = benchmark_table({"mine": runs}, dataclasses.replace(FEW, seed=1))
    assert [row.value for row in reseeded] == [row.value for row in rows]
    assert [row.low for row in reseeded] != [row.low for row in rows]


def test_paired_difference_uses_what_both_share() -> None:
    """A method that is right 0.1 more often on every instance: the shared difficulty cancels."""
    base = [played(f"{n}", [n / 20, n / 20]) for n in range(18)]
    better = [played(f"{n}", [n / 20 + 0.1, n / 20 + 0.1]) for n in range(18)]
    rows = paired_differences({"base": base, "better": better}, "base", FEW)
    assert {row.method for row in rows} == {"better - base"}
    row = cell(rows, category="all", average="macro")
    assert row.value == pytest.approx(0.1)
    assert (row.low, row.high) == pytest.approx((0.1, 0.1))
    assert row.counted == 36
    wide = cell(benchmark_table({"base": base}, FEW), measure="accuracy", data_source="squad")
    assert wide.high - wide.low > 0.1
    memory = paired_differences({"base": base, "better": better}, "base", FEW, "memory_tokens")
    assert {row.value for row in memory} == {0}


def test_paired_difference_averages_rollouts_and_leaves_out_unpaired_questions() -> None:
    one = [played("1", [1.0, None, 0.0]), played("2", [1.0])]
    two = [played("1", [0.0, 1.0, None]), played("1", [1.0, 1.0, None]), played("2", [1.0])]
    row = cell(paired_differences({"one": one, "two": two}, "two", FEW), data_source="squad")
    # Pairs: q-0 of instance 1 (1.0 against the mean 0.5) and q-0 of instance 2 (1.0 against 1.0).
    assert (row.value, row.counted, row.left_out, row.instances) == (0.25, 2, 2, 2)
    assert row.over == "2 pairs of scored answers pooled"


def test_paired_difference_of_a_method_with_itself_is_nothing() -> None:
    runs = random_instances(5, 10) + random_instances(6, 10, "clinc150", "TTL")
    for row in paired_differences({"a": runs, "b": runs}, "a", FEW):
        assert (row.value, row.low, row.high) == (0, 0, 0)


def test_paired_difference_needs_the_same_instances() -> None:
    methods = {"a": random_instances(5, 10), "b": random_instances(5, 9)}
    with pytest.raises(ValueError, match=r"1 of 10 \(squad-9\) were played with one method only"):
        paired_differences(methods, "a")
    with pytest.raises(ValueError, match="baseline 'c' is not among the methods"):
        paired_differences(methods, "c")


def test_operations_of_the_worked_example() -> None:
    rows = {row.kind: row for row in operations_table({"by hand": [worked_example()] * 2})}
    assert list(rows) == ["INSERT", "UPDATE", "DELETE", "SKIP", "unparsed"]
    assert (rows["INSERT"].emitted, rows["INSERT"].applied, rows["INSERT"].per_step) == (4, 4, 0.5)
    assert (rows["UPDATE"].applied, rows["UPDATE"].invalid) == (0, 2)
    assert rows["UPDATE"].reasons == {"unknown id": 2}
    assert rows["DELETE"].emitted == rows["unparsed"].emitted == 0


@given(st.lists(trajectories(), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_tables_of_any_trajectories_add_up(runs: list[Trajectory]) -> None:
    chosen = BootstrapSettings(num_resamples=100)
    rows = benchmark_table({"any": runs}, chosen)
    asked = sum(len(run.questions) for run in runs)
    pooled = cell(rows, category="all", measure="accuracy", average="pooled")
    assert pooled.counted + pooled.left_out == asked
    scores = [q.score for run in runs for q in run.questions if q.score is not None]
    assert pooled.value == (pytest.approx(sum(scores) / len(scores)) if scores else None)
    for row in rows:
        assert (row.value is None) == (row.counted == 0)
        assert (row.low is None) == (row.high is None) == row.interval.startswith("none: ")
        for value in (row.value, row.low, row.high):
            assert value is None or math.isfinite(value)
        if row.low is not None:
            assert row.low <= row.high
    counts = operations_table({"any": runs})
    emitted = sum(len(step.outcomes) for run in runs for step in run.steps)
    assert sum(row.emitted for row in counts) == emitted
    assert all(row.applied + row.invalid == row.emitted for row in counts)
    assert all(sum(row.reasons.values()) == row.invalid for row in counts)


@given(trajectories())
@settings(max_examples=30, deadline=None)
def test_accuracy_of_one_trajectory_is_its_outcome_reward(run: Trajectory) -> None:
    value = benchmark_table({"any": [run]}, FEW, ["accuracy"])[0].value
    expected = outcome_reward(run)
    assert value == (None if expected is None else pytest.approx(expected))


def test_summary_and_frame_show_what_the_rows_hold() -> None:
    runs = random_instances(7, 8) + random_instances(8, 8, "clinc150", "TTL")
    rows = benchmark_table({"a": runs, "b": runs}, FEW)
    lines = summary(rows)
    assert [line["method"] for line in lines] == ["a", "b"]
    macro = cell(rows, method="a", category="all", measure="accuracy", average="macro")
    assert lines[0]["all accuracy"] == format_estimate(macro)
    assert format_estimate(macro) == f"{macro.value:.3f} [{macro.low:.3f}, {macro.high:.3f}]"
    assert set(lines[0]) == {
        "method",
        "AR accuracy",
        "TTL accuracy",
        "all accuracy",
        "unscored",
        "memory tokens",
        "memory share",
    }
    frame = to_frame(rows)
    assert len(frame) == len(rows)
    assert frame.loc[0, "over"] == rows[0].over
    assert len(to_frame(operations_table({"a": runs}))) == 5


def test_what_cannot_be_tabled_is_refused() -> None:
    with pytest.raises(ValueError, match="no trajectories for b"):
        benchmark_table({"a": random_instances(1, 2), "b": []})
    with pytest.raises(ValueError, match="no trajectories for any method"):
        operations_table({})
    other = [dataclasses.replace(run, tokenizer="Qwen3") for run in random_instances(1, 2)]
    with pytest.raises(ValueError, match=r"different tokenizers \(Qwen3, words\)"):
        benchmark_table({"a": random_instances(1, 2), "b": other})
    with pytest.raises(ValueError, match="resample is 'chunk'"):
        BootstrapSettings(resample="chunk")
    with pytest.raises(ValueError, match="level 1"):
        BootstrapSettings(level=1)


def truth_of(instance, *steps, **memory):
    settings = RolloutSettings(num_generations=1, **memory)
    ((one,),) = play([instance], Scripted(*steps), settings, reader_for([instance]), 0)
    counts = operation_truth(one, instance)
    assert tuple(counts) == OPERATION_TRUTHS
    return {name: count for name, count in counts.items() if count}


def test_operations_are_counted_against_the_truth_by_hand() -> None:
    instance = stream_of(
        ([told("Mia", "Rome"), told("Ben", "Oslo")], ["Once Mia saw Lima"]),
        ([told("Mia", "Cairo")], ["Today Ben saw Rome"]),
        ([told("Ben", "Paris"), told("Eva", "Delhi")], []),
        ([told("Mia", "Rome")], ["Trains passed Rome"]),
    )
    assert truth_of(
        instance,
        # 1: two facts and the noise are written; a miscopy; the fact again, refused
        (
            WRITE("Mia lives in Rome"),
            WRITE("Ben lives in Oslo."),
            WRITE("Once Mia saw Lima"),
            WRITE("Mia lives in Oslo"),
            WRITE("Mia lives in Rome"),
        ),
        # 2: the changed fact on its own record; noise over a live record (Ben's)
        (CHANGE("1", "Mia lives in Cairo"), CHANGE("2", "Today Ben saw Rome")),
        # 3: one fact over the noise, one over Mia's live record
        (CHANGE("3", "Ben lives in Paris"), CHANGE("1", "Eva lives in Delhi")),
        # 4: the miscopy and a live record go; an id that is not there; no JSON; the rest is left
        (DROP("4"), DROP("1"), DROP("77"), InvalidOperation("truncated", "{"), Operation("SKIP")),
    ) == {
        "INSERT fact": 2,
        "INSERT noise": 1,
        "INSERT inexact": 1,
        "INSERT duplicate": 1,
        "UPDATE right": 1,
        "UPDATE noise": 1,
        "UPDATE reuse": 1,
        "UPDATE wrong": 1,
        "DELETE noise": 1,
        "DELETE live": 1,
        "SKIP noise": 1,
        "SKIP fact": 1,
        "refused": 2,
    }


def test_a_record_is_stale_once_its_slot_has_a_newer_value() -> None:
    instance = stream_of(
        ([told("Mia", "Rome")], ["Once Mia saw Lima"]),
        ([told("Mia", "Cairo")], []),
        ([told("Mia", "Rome")], []),
    )
    assert truth_of(
        instance,
        (WRITE("Mia lives in Rome"),),
        (WRITE("Mia lives in Cairo"),),
        (DROP("1"), DROP("2")),  # Rome is true again: the first is live, the second stale
    ) == {"INSERT fact": 2, "DELETE live": 1, "DELETE stale": 1, "SKIP noise": 1, "SKIP fact": 1}


def test_what_capacity_pushed_out_is_no_duplicate_later() -> None:
    instance = stream_of(
        ([told("Mia", "Rome"), told("Ben", "Oslo")], []),
        ([told("Eva", "Lima")], []),
        ([told("Mia", "Rome")], []),
    )
    everything = [
        tuple(WRITE(f["sentence"]) for f in facts) for facts in instance.metadata["facts"]
    ]
    assert truth_of(instance, *everything, capacity=1) == {"INSERT fact": 4}
    assert truth_of(instance, *everything, duplicates="allow") == {
        "INSERT fact": 3,
        "INSERT duplicate": 1,
    }


@pytest.mark.parametrize(
    ("manager", "never"),
    [
        ("oracle", ("INSERT noise", "UPDATE wrong", "UPDATE reuse", "SKIP fact", "refused")),
        ("facts-only", ("INSERT noise", "UPDATE right", "SKIP fact", "refused")),
        (
            "insert-all",
            ("UPDATE right", "DELETE stale", "SKIP fact", "SKIP noise", "INSERT inexact"),
        ),
    ],
)
@pytest.mark.parametrize("world", ["plain", "paraphrased"])
def test_scripted_managers_are_counted_as_what_they_are(
    manager: str, never: tuple, world: World
) -> None:
    instances = [planted_stream(seed, StreamSettings(world=world)) for seed in range(10)]
    played = play(
        instances,
        make_manager(manager),
        RolloutSettings(num_generations=1, capacity=8),
        reader_for(instances),
        0,
    )
    for (one,), instance in zip(played, instances, strict=True):
        counts = operation_truth(one, instance)
        facts = sum(map(len, instance.metadata["facts"]))
        carried = ("INSERT fact", "INSERT duplicate", "UPDATE right", "UPDATE duplicate")
        assert not any(counts[name] for name in never)
        assert sum(counts[name] for name in carried) >= facts


def test_a_delete_of_nothing_that_is_accepted_is_counted_as_refused() -> None:
    instance = stream_of(([told("Mia", "Rome")], []), ([told("Ben", "Oslo")], []))
    counts = truth_of(
        instance,
        (WRITE("Mia lives in Rome"),),
        (DROP("9"), DROP("s1"), WRITE("Ben lives in Oslo")),
        memory="layered",
        layer_rules=PUBLISHED_RULES,
    )
    assert counts == {"INSERT fact": 2, "DELETE live": 1, "refused": 1}


def test_truth_is_refused_where_it_is_not_known() -> None:
    with pytest.raises(ValueError, match="worked-example.*expected the planted stream"):
        operation_truth(worked_example(), planted_stream(0))
    with pytest.raises(ValueError, match="without facts"):
        operation_truth(worked_example(), Instance("worked-example", "planted", "AR", (), ()))
