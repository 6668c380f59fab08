"""Advantages: equal to what TRL's own statements compute, and clear about dead groups."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.advantages import dead_groups, group_relative

SCALES = ("group", "batch", "none")
rewards_or_none = st.none() | st.floats(-3, 3).map(lambda value: round(value, 6))
quick = settings(max_examples=80, deadline=None)


@st.composite
def groups(draw: st.DrawFn) -> list[list[float | None]]:
    """G x T rewards; a few values repeat, so that constant groups turn up."""
    width = draw(st.integers(1, 5))
    value = st.sampled_from((None, 0.1, 0.3, 0.75)) | rewards_or_none
    row = st.lists(value, min_size=width, max_size=width)
    return draw(st.lists(row, min_size=1, max_size=8))


@pytest.fixture(scope="module")
def trl_advantages():
    """TRL's own statements, cut out of its installed source and run on given rewards.

    The whole method needs a model and a trainer; from the mask of unscorable rows to the last
    `nan_to_num` it needs neither.
    """
    import torch

    package = Path(importlib.util.find_spec("trl").origin).parent / "trainer"
    trainer = ast.parse((package / "grpo_trainer.py").read_text(encoding="utf-8"))
    utils = ast.parse((package / "utils.py").read_text(encoding="utf-8"))
    function = next(
        node
        for node in ast.walk(trainer)
        if isinstance(node, ast.FunctionDef) and node.name == "_generate_and_score_completions"
    )
    sources = [ast.unparse(statement) for statement in function.body]
    start = next(i for i, text in enumerate(sources) if text.startswith("unscorable_mask = "))
    stop = next(i for i, text in enumerate(sources) if "nan_to_num(advantages" in text)
    statements = ast.Module(function.body[start : stop + 1], type_ignores=[])
    nanstd = next(
        node for node in utils.body if isinstance(node, ast.FunctionDef) and node.name == "nanstd"
    )
    namespace = {"torch": torch}
    exec(compile(ast.Module([nanstd], type_ignores=[]), "trl/utils.py", "exec"), namespace)
    code = compile(statements, "trl/grpo_trainer.py", "exec")

    def compute(rewards: list[list[float | None]], scale_rewards: str) -> np.ndarray:
        table = np.array(rewards, dtype=float)
        names = dict(
            namespace,
            self=SimpleNamespace(
                multi_objective_aggregation="sum_then_normalize",
                scale_rewards=scale_rewards,
                reward_weights=torch.ones(1, dtype=torch.float64),
            ),
            # TRL's groups are consecutive rows: step by step, its rollouts side by side.
            rewards_per_func=torch.tensor(table.T.reshape(-1, 1), dtype=torch.float64),
            num_generations=len(rewards),
            device="cpu",
        )
        # Bessel's correction is a quotient of integers, which torch computes in its default type.
        torch.set_default_dtype(torch.float64)
        try:
            exec(code, names)
        finally:
            torch.set_default_dtype(torch.float32)
        return names["advantages"].reshape(table.T.shape).T.numpy()

    return compute


@pytest.mark.parametrize("scale_rewards", SCALES)
@given(rewards=groups())
@quick
def test_equal_to_trl(trl_advantages, scale_rewards: str, rewards) -> None:
    ours = group_relative(rewards, scale_rewards)
    theirs = trl_advantages(rewards, scale_rewards)
    assert theirs.shape == (len(rewards), len(rewards[0]))
    for row, own, trl in zip(rewards, ours, theirs, strict=True):
        for reward, advantage, expected in zip(row, own, trl, strict=True):
            assert (advantage is None) == (reward is None)
            assert (advantage or 0.0) == pytest.approx(expected, abs=1e-9)


def test_equal_to_trl_on_a_full_batch(trl_advantages) -> None:
    table = np.random.default_rng(0).normal(size=(8, 200))
    for scale_rewards in SCALES:
        ours = group_relative(table.tolist(), scale_rewards)
        assert np.abs(np.array(ours) - trl_advantages(table, scale_rewards)).max() < 1e-10


def test_worked_group() -> None:
    """Mean 0.5, unbiased standard deviation 0.5."""
    assert group_relative([[0.0], [0.5], [1.0]]) == [
        [pytest.approx(-0.5 / 0.5001)],
        [0.0],
        [pytest.approx(0.5 / 0.5001)],
    ]


@given(groups(), st.sampled_from(SCALES), st.randoms(use_true_random=False))
@quick
def test_rollouts_may_come_in_any_order(rewards, scale_rewards: str, random) -> None:
    order = random.sample(range(len(rewards)), len(rewards))
    shuffled = group_relative([rewards[i] for i in order], scale_rewards)
    expected = group_relative(rewards, scale_rewards)
    for row, i in zip(shuffled, order, strict=True):
        assert row == pytest.approx(expected[i], abs=1e-9)


@given(groups(), st.sampled_from(("group", "none")))
@quick
def test_steps_are_normalised_on_their_own(rewards, scale_rewards: str) -> None:
    together = group_relative(rewards, scale_rewards)
    for step in range(len(rewards[0])):
        alone = group_relative([[row[step]] for row in rewards], scale_rewards)
        assert [row[0] for row in alone] == pytest.approx([row[step] for row in together])


@given(groups(), st.sampled_from(SCALES))
@quick
def test_advantages_of_a_step_sum_to_zero(rewards, scale_rewards: str) -> None:
    advantages = group_relative(rewards, scale_rewards)
    for column in zip(*advantages, strict=True):
        assert sum(value for value in column if value is not None) == pytest.approx(0, abs=1e-8)


@pytest.mark.parametrize("scale_rewards", SCALES)
def test_a_constant_group_is_dead_and_gets_exactly_zero(scale_rewards: str) -> None:
    rewards = [[0.1, 0.1, None, 1.0], [0.1, None, None, 0.0], [0.1, None, 0.7, 0.5]]
    assert dead_groups(rewards) == [True, True, True, False]
    advantages = group_relative(rewards, scale_rewards)
    assert [row[:3] for row in advantages] == [[0, 0, None], [0, None, None], [0, None, 0]]
    assert all(row[3] for row in advantages[:2])


@given(groups())
@quick
def test_dead_groups_are_those_without_a_gradient(rewards) -> None:
    advantages = group_relative(rewards, "none")
    for dead, column in zip(dead_groups(rewards), zip(*advantages, strict=True), strict=True):
        assert dead == all(value is None or abs(value) < 1e-8 for value in column)


def test_one_rollout_has_no_one_to_compare_with() -> None:
    assert group_relative([[0.4, None]]) == [[0.0, None]]
    assert dead_groups([[0.4, None]]) == [True, True]


def test_nothing_in_nothing_out() -> None:
    assert group_relative([]) == []
    assert group_relative([[], []]) == [[], []]
    assert dead_groups([[], []]) == []


def test_rollouts_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[1, 2\] steps"):
        group_relative([[1.0, 2.0], [1.0]])
    with pytest.raises(ValueError, match=r"\[0, 1\] steps"):
        dead_groups([[], [1.0]])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_reward_that_is_not_finite_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="rollout 1 at step 2"):
        group_relative([[0.0, 1.0], [0.0, value]])


def test_unknown_scale_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of group, batch, none"):
        group_relative([[1.0], [2.0]], "std")
