"""Rewards: the worked example, and what must hold for any trajectory and any setting."""

from __future__ import annotations

import dataclasses
import math

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.data.faults import EvidenceFaults, with_faults
from finemem_lib.data.worked_example import worked_example
from finemem_lib.rewards import (
    RewardSettings,
    chunk_rewards,
    compression_reward,
    eara_rewards,
    evidence_contribution,
    evidence_matrix,
    format_rewards,
    hybrid_reward,
    outcome_reward,
    weighted_sum,
)
from finemem_lib.trajectory import (
    Chunk,
    MemoryItem,
    Retrieved,
    Trajectory,
    Write,
    from_json,
    to_json,
)
from tests.helpers.trajectory_strategies import trajectories

reward_settings = st.builds(
    RewardSettings,
    beta=st.floats(0, 1),
    w1=st.floats(0, 2),
    w2=st.floats(0, 2),
    attribution=st.sampled_from(("last_write", "creation", "lineage")),
    credited=st.sampled_from(("retrieved", "used")),
    unretrieved=st.sampled_from(("spread", "drop")),
    empty_format=st.none() | st.floats(0, 1),
)
quick = settings(max_examples=40, deadline=None)


def with_questions(trajectory: Trajectory, questions) -> Trajectory:
    return dataclasses.replace(trajectory, questions=tuple(questions))


def rescored(trajectory: Trajectory, score: float | None) -> Trajectory:
    return with_questions(
        trajectory, [dataclasses.replace(q, score=score) for q in trajectory.questions]
    )


def same(first: list[float | None], second: list[float | None]) -> bool:
    return all(
        a is b is None or math.isclose(a, b, rel_tol=1e-12, abs_tol=1e-300)
        for a, b in zip(first, second, strict=True)
    )


def credited_items(question, reward_settings: RewardSettings) -> list[Retrieved]:
    if reward_settings.credited == "retrieved" or question.used is None:
        return list(question.retrieved)
    return [item for item in question.retrieved if item.item_id in question.used]


def test_worked_example() -> None:
    example = worked_example()
    assert example.num_steps == 4
    assert outcome_reward(example) == 0.75
    assert evidence_contribution(example) == [1 / (2 * 2), 0, 1 / (2 * 2) + 0.5 / (1 * 2), 0]
    assert eara_rewards(example) == [0.21875, 0.09375, 0.34375, 0.09375]
    assert sum(eara_rewards(example)) == 0.75
    # By hand: 9 memory tokens of 5 + 3 + 8 + 3 chunk tokens.
    assert compression_reward(example) == 1 - 9 / 19
    totals = [reward.total for reward in hybrid_reward(example)]
    compressed = 0.05 * (1 - 9 / 19)
    assert totals == pytest.approx(
        [
            0.21875 + 1.0 + 0.5 * 1.0 + compressed,
            0.09375 + 1.0 + compressed,
            0.34375 + 0.5 + 0.5 * 0.5 + compressed,
            0.09375 + 0.0 + 0.5 * 0.0 + compressed,
        ]
    )


def test_worked_example_is_a_consistent_record() -> None:
    example = worked_example()
    assert from_json(Trajectory, to_json(example)) == example
    for question in example.questions:
        for item in question.retrieved:
            (kept,) = [kept for kept in example.final_memory() if kept.item_id == item.item_id]
            assert item.steps == tuple(write.step for write in kept.lineage)


def test_attribution_of_an_updated_item() -> None:
    item = Retrieved("1", 1.0, (1, 3, 4))
    question = dataclasses.replace(
        worked_example().questions[0], retrieved=(item,), used=("1",), score=0.9
    )
    trajectory = with_questions(worked_example(), [question])
    assert evidence_contribution(trajectory) == [0, 0, 0, 0.9]
    creation = RewardSettings(attribution="creation")
    assert evidence_contribution(trajectory, creation) == [0.9, 0, 0, 0]
    lineage = RewardSettings(attribution="lineage")
    assert evidence_contribution(trajectory, lineage) == pytest.approx([0.3, 0, 0.3, 0.3])


@pytest.mark.parametrize(
    ("used", "expected"),
    [
        (("2",), [0, 0, 1, 0]),
        (("2", "unheard of"), [0, 0, 1, 0]),
        (None, [0.5, 0, 0.5, 0]),
        ((), [0.25, 0.25, 0.25, 0.25]),
        (("unheard of",), [0.25, 0.25, 0.25, 0.25]),
    ],
)
def test_credit_to_used_items_only(used: tuple[str, ...] | None, expected: list[float]) -> None:
    question = dataclasses.replace(worked_example().questions[0], used=used)
    trajectory = with_questions(worked_example(), [question])
    assert evidence_contribution(trajectory, RewardSettings(credited="used")) == expected
    assert evidence_contribution(trajectory) == [0.5, 0, 0.5, 0]


@given(trajectories(), reward_settings)
@settings(max_examples=150, deadline=None)
def test_eara_sums_to_the_outcome_reward(trajectory: Trajectory, chosen: RewardSettings) -> None:
    """Every combination with "spread" conserves; "drop" loses exactly beta s_j/n per question."""
    outcome = outcome_reward(trajectory)
    rewards = eara_rewards(trajectory, chosen)
    if outcome is None:
        assert rewards == [None] * trajectory.num_steps
        return
    lost = 0.0
    if chosen.unretrieved == "drop":
        scored = [q for q in trajectory.questions if q.score is not None]
        lost = sum(q.score for q in scored if not credited_items(q, chosen)) / len(scored)
    assert sum(rewards) == pytest.approx(outcome - chosen.beta * lost, abs=1e-12)
    assert all(0 <= reward <= 1 for reward in rewards)


@given(trajectories(), reward_settings)
@quick
def test_evidence_matrix_has_the_right_margins(
    trajectory: Trajectory, chosen: RewardSettings
) -> None:
    matrix = evidence_matrix(trajectory, chosen)
    evidence = evidence_contribution(trajectory, chosen)
    n = sum(q.score is not None for q in trajectory.questions)
    assert len(matrix) == trajectory.num_steps
    for row, contribution in zip(matrix, evidence, strict=True):
        assert len(row) == len(trajectory.questions)
        if n:
            assert sum(cell for cell in row if cell is not None) == pytest.approx(contribution)
    for number, question in enumerate(trajectory.questions):
        column = [row[number] for row in matrix]
        if question.score is None:
            assert column == [None] * trajectory.num_steps
        elif chosen.unretrieved == "drop" and not credited_items(question, chosen):
            assert sum(column) == 0
        else:
            assert sum(column) == pytest.approx(question.score / n)


@given(trajectories(), reward_settings, st.randoms(use_true_random=False))
@quick
def test_order_of_questions_and_items_changes_nothing(trajectory, chosen, random) -> None:
    shuffled = [
        dataclasses.replace(q, retrieved=tuple(random.sample(q.retrieved, len(q.retrieved))))
        for q in random.sample(trajectory.questions, len(trajectory.questions))
    ]
    assert outcome_reward(with_questions(trajectory, shuffled)) == outcome_reward(trajectory)
    changed = eara_rewards(with_questions(trajectory, shuffled), chosen)
    assert same(changed, eara_rewards(trajectory, chosen))


@given(trajectories(), reward_settings)
@quick
def test_a_step_that_wrote_no_retrieved_item_earns_no_evidence(trajectory, chosen) -> None:
    chosen = dataclasses.replace(chosen, unretrieved="drop")
    wrote = {step for q in trajectory.questions for item in q.retrieved for step in item.steps}
    for number, evidence in enumerate(evidence_contribution(trajectory, chosen), start=1):
        assert number in wrote or evidence in (0.0, None)


@given(trajectories(), reward_settings)
@quick
def test_beta_zero_broadcasts_and_beta_one_pays_evidence_alone(trajectory, chosen) -> None:
    outcome = outcome_reward(trajectory)
    T = trajectory.num_steps
    even = eara_rewards(trajectory, dataclasses.replace(chosen, beta=0))
    assert even == [None if outcome is None else pytest.approx(outcome / T)] * T
    paid = eara_rewards(trajectory, dataclasses.replace(chosen, beta=1))
    assert paid == evidence_contribution(trajectory, chosen)


@given(trajectories(), reward_settings)
@quick
def test_an_unscorable_question_is_as_if_it_had_not_been_asked(trajectory, chosen) -> None:
    scored = with_questions(trajectory, [q for q in trajectory.questions if q.score is not None])
    assert hybrid_reward(scored, chosen) == hybrid_reward(trajectory, chosen)


@given(trajectories(), reward_settings)
@quick
def test_doubling_every_question_changes_nothing(trajectory, chosen) -> None:
    twice = with_questions(trajectory, trajectory.questions * 2)
    assert same(eara_rewards(twice, chosen), eara_rewards(trajectory, chosen))


def test_unknown_terms_are_left_out_of_a_weighted_sum_and_never_count_as_zero() -> None:
    terms = {"eara": 0.25, "chunk": None, "format": 1.0}
    assert weighted_sum(terms, {"eara": 2.0, "chunk": 1.0, "format": 0.5}) == 1.0
    assert weighted_sum(terms) == 1.25
    assert weighted_sum({"chunk": None}) is None and weighted_sum({}) is None


@given(trajectories(), reward_settings)
@quick
def test_hybrid_is_the_weighted_sum_of_its_measured_components(trajectory, chosen) -> None:
    rewards = hybrid_reward(trajectory, chosen)
    assert [reward.step for reward in rewards] == list(range(1, trajectory.num_steps + 1))
    assert [reward.evidence for reward in rewards] == evidence_contribution(trajectory, chosen)
    assert [reward.eara for reward in rewards] == eara_rewards(trajectory, chosen)
    assert [reward.format for reward in rewards] == format_rewards(trajectory, chosen)
    assert [reward.chunk for reward in rewards] == chunk_rewards(trajectory)
    for reward in rewards:
        assert reward.outcome == outcome_reward(trajectory)
        assert reward.compression == compression_reward(trajectory)
        assert reward.weights == {
            "eara": 1,
            "format": 1,
            "chunk": chosen.w1,
            "compression": chosen.w2,
        }
        terms = [term for term in reward.weighted.values() if term is not None]
        assert reward.total == (pytest.approx(math.fsum(terms)) if terms else None)
        values = dataclasses.asdict(reward)
        del values["weights"]
        assert all(value is None or math.isfinite(value) for value in values.values())


@given(trajectories())
@quick
def test_no_scorable_question_leaves_outcome_and_evidence_unassigned(trajectory) -> None:
    unscored = rescored(trajectory, None)
    nothing = [None] * trajectory.num_steps
    assert outcome_reward(unscored) is None
    assert evidence_contribution(unscored) == eara_rewards(unscored) == nothing
    measured = [reward.total for reward in hybrid_reward(unscored)]
    assert all(total is not None for total in measured)
    assert [reward.total for reward in hybrid_reward(rescored(trajectory, 0.0))] == (
        pytest.approx(measured)
    )


def test_an_unscorable_question_leaves_n() -> None:
    """With q2 unscorable, q1 is the only question and its two items share the whole reward."""
    first, second = worked_example().questions
    trajectory = with_questions(worked_example(), [first, dataclasses.replace(second, score=None)])
    assert outcome_reward(trajectory) == 1.0
    assert evidence_contribution(trajectory) == [0.5, 0, 0.5, 0]
    assert evidence_matrix(trajectory) == [[0.5, None], [0, None], [0.5, None], [0, None]]


def test_a_measured_zero_is_not_unassigned() -> None:
    wrong = rescored(worked_example(), 0.0)
    assert outcome_reward(wrong) == 0.0
    assert eara_rewards(wrong) == [0.0] * 4
    assert evidence_matrix(wrong) == [[0.0, 0.0]] * 4


def test_step_that_emits_nothing_gets_the_named_format_reward() -> None:
    assert format_rewards(worked_example())[3] == 0.0
    assert format_rewards(worked_example(), RewardSettings(empty_format=1.0))[3] == 1.0
    silent = RewardSettings(empty_format=None)
    assert format_rewards(worked_example(), silent)[3] is None
    assert hybrid_reward(worked_example(), silent)[3].weighted["format"] is None


def test_total_is_none_when_no_term_is_measured() -> None:
    step = dataclasses.replace(
        worked_example().steps[3], step=1, chunk=Chunk("", 0), chunk_questions=()
    )
    bare = dataclasses.replace(worked_example(), steps=(step,), questions=())
    (reward,) = hybrid_reward(bare, RewardSettings(empty_format=None))
    assert reward.total is None


def test_trajectory_without_steps_has_no_step_rewards() -> None:
    empty = dataclasses.replace(worked_example(), steps=(), questions=())
    assert hybrid_reward(empty) == ()
    assert compression_reward(empty) is None


def test_compression_is_negative_when_memory_outgrows_the_chunks() -> None:
    last = dataclasses.replace(worked_example().steps[3], memory_tokens=38)
    longer = dataclasses.replace(worked_example(), steps=(*worked_example().steps[:3], last))
    assert compression_reward(longer) == -1.0


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"beta": 1.5}, "beta is 1.5, expected a number from 0 to 1"),
        ({"beta": math.nan}, "beta is nan"),
        ({"beta": "0.5"}, "beta is '0.5'"),
        ({"beta": None}, "beta is None"),
        ({"w1": -0.1}, "w1 is -0.1, expected a finite number of at least 0"),
        ({"w2": math.inf}, "w2 is inf"),
        ({"attribution": "last"}, "expected one of last_write, creation, lineage"),
        ({"credited": "all"}, "expected one of retrieved, used"),
        ({"unretrieved": None}, "expected one of spread, drop"),
        ({"empty_format": -1.0}, "empty_format is -1.0"),
    ],
)
def test_settings_out_of_range_are_refused(wrong: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        RewardSettings(**wrong)


@pytest.mark.parametrize("score", [math.nan, 1.1, -0.5, math.inf])
def test_a_score_no_metric_may_return_is_refused(score: float) -> None:
    with pytest.raises(ValueError, match=r"question 'q-1': score is .* expected a number in"):
        hybrid_reward(rescored(worked_example(), score))


@pytest.mark.parametrize("steps", [(5,), (0,), ()])
def test_an_item_written_outside_the_trajectory_is_refused(steps: tuple[int, ...]) -> None:
    question = dataclasses.replace(
        worked_example().questions[0], retrieved=(Retrieved("1", 1.0, steps),)
    )
    with pytest.raises(ValueError, match=r"item '1' was written at steps .* within 1\.\.4"):
        evidence_contribution(with_questions(worked_example(), [question]))


@given(trajectories())
@quick
def test_strategy_makes_consistent_trajectories(trajectory: Trajectory) -> None:
    """The properties above are worth what the strategy is worth."""
    for step in trajectory.steps:
        memory = {item.item_id: item for item in trajectory.memory_at(step.step)}
        for question in step.chunk_questions:
            for item in question.retrieved:
                assert item.steps == tuple(w.step for w in memory[item.item_id].lineage)
    for item in trajectory.final_memory():
        assert isinstance(item, MemoryItem) and isinstance(item.lineage[0], Write)


faults = st.builds(
    lambda drop, swap: EvidenceFaults(drop, swap * (1 - drop)), st.floats(0, 1), st.floats(0, 1)
)


@quick
@given(trajectories(), faults, st.integers(0, 2**32), reward_settings)
def test_faults_change_nothing_but_what_evidence_attributes(trajectory, faults, seed, settings):
    faulty = with_faults(trajectory, faults, seed)
    assert faulty == with_faults(trajectory, faults, seed)
    unmoved = [dataclasses.replace(q, retrieved=(), used=None) for q in trajectory.questions]
    assert [dataclasses.replace(q, retrieved=(), used=None) for q in faulty.questions] == unmoved
    assert with_questions(faulty, trajectory.questions) == trajectory
    for reward, other in zip(
        hybrid_reward(trajectory, settings), hybrid_reward(faulty, settings), strict=True
    ):
        for name in ("outcome", "format", "chunk", "compression"):
            assert getattr(reward, name) == getattr(other, name)
    if settings.unretrieved == "spread" and outcome_reward(trajectory) is not None:
        total = math.fsum(evidence_contribution(faulty, settings))
        assert total == pytest.approx(outcome_reward(trajectory), abs=1e-9)


@quick
@given(trajectories(), faults, st.integers(0, 2**32))
def test_faulty_evidence_is_of_the_final_memory_and_listed_once(trajectory, faults, seed):
    memory = {item.item_id: item for item in trajectory.final_memory()}
    faulty = with_faults(trajectory, faults, seed)
    for before, after in zip(trajectory.questions, faulty.questions, strict=True):
        ids = [item.item_id for item in after.retrieved]
        assert len(set(ids)) == len(ids) <= len(before.retrieved)
        for item in after.retrieved:
            assert item.steps == tuple(write.step for write in memory[item.item_id].lineage)
        if faults.drop == 0:
            assert len(ids) == len(before.retrieved)
            assert [i.score for i in after.retrieved] == [i.score for i in before.retrieved]


@quick
@given(trajectories(), st.integers(0, 2**32))
def test_faults_at_their_extremes(trajectory, seed):
    assert with_faults(trajectory, EvidenceFaults(), seed) == trajectory
    dropped = with_faults(trajectory, EvidenceFaults(drop=1.0), seed)
    assert not any(question.retrieved for question in dropped.questions)
    swapped = with_faults(trajectory, EvidenceFaults(swap=1.0), seed)
    for before, after in zip(trajectory.questions, swapped.questions, strict=True):
        others = len(trajectory.final_memory()) - len(before.retrieved)
        kept = {i.item_id for i in before.retrieved} & {i.item_id for i in after.retrieved}
        assert len(kept) == max(0, len(before.retrieved) - others)


def test_faults_come_at_their_rate_and_differ_between_rollouts():
    example = worked_example()
    filler = tuple(
        MemoryItem(str(number), "x", (Write(2, "INSERT", number),)) for number in range(3, 40)
    )
    steps = list(example.steps)
    steps[1] = dataclasses.replace(
        steps[1], delta=dataclasses.replace(steps[1].delta, written=filler)
    )
    long = dataclasses.replace(example, steps=tuple(steps), questions=example.questions[:1] * 1000)
    faulty = with_faults(long, EvidenceFaults(drop=0.2, swap=0.3), seed=1)
    left = [item.item_id for question in faulty.questions for item in question.retrieved]
    assert len(left) / 2000 == pytest.approx(0.8, abs=0.03)
    assert sum(item_id in "12" for item_id in left) / 2000 == pytest.approx(0.5, abs=0.03)
    assert len(set(left)) == 39  # every other item is drawn
    other = dataclasses.replace(long, rollout=1)
    assert (
        with_faults(other, EvidenceFaults(drop=0.5), 1).questions
        != with_faults(long, EvidenceFaults(drop=0.5), 1).questions
    )


def test_a_swapped_item_is_used_where_the_first_one_was():
    """Each question lists one of the two items, so the swap is sure: q-2 moves from step 3 to 1."""
    example = worked_example()
    one = dataclasses.replace(example.questions[1], used=("2",))
    faulty = with_faults(with_questions(example, [one]), EvidenceFaults(swap=1.0), seed=4)
    assert faulty.questions[0].used == ("1",)
    used = RewardSettings(credited="used")
    assert evidence_contribution(faulty, used) == [0.5, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "values",
    [
        {"drop": -0.1},
        {"swap": 1.1},
        {"drop": 0.6, "swap": 0.6},
        {"drop": math.nan},
    ],
)
def test_faults_out_of_range_are_refused(values):
    with pytest.raises(ValueError, match="expected a number from 0 to 1"):
        EvidenceFaults(**values)
