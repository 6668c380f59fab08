"""What training writes of every update, and what is read back from it."""

from __future__ import annotations

import dataclasses
import math

import pandas as pd
import pytest

from finemem_lib.advantages import group_relative
from finemem_lib.data.memalpha import held_out_split
from finemem_lib.data.planted import planted_instances
from finemem_lib.data.worked_example import worked_example
from finemem_lib.rewards import RewardSettings, hybrid_reward
from finemem_lib.training.record import PlayedUpdate, StoredUpdates, read_update, update_file
from finemem_lib.training.schemes import SCHEMES, TERMS, scheme_weights
from tests.helpers.training_runs import mixed_instances, run

pytestmark = pytest.mark.usefixtures("frozen_imports")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    done = run(
        folder,
        mixed_instances(),
        updates=2,
        rewards=RewardSettings(empty_format=None),
        scheme="outcome-only",
        updates_folder=folder / "updates",
    )
    return done, StoredUpdates(folder / "updates")


def test_an_update_is_read_back_as_it_was_played(written):
    done, stored = written
    assert [*stored] == [1, 2] and len(stored) == 2 and 3 not in stored and "1" not in stored
    for update, groups in done.trainer.kept.items():
        assert stored[update] == groups
    with pytest.raises(KeyError):
        stored[3]
    with pytest.raises(ValueError, match="no update 7 in .*updates, which holds 1 to 2"):
        read_update(stored.folder, 7)


def test_a_row_holds_the_terms_the_reward_and_the_advantage_of_a_step(written):
    """Against rewards and advantages computed anew from the trajectories."""
    done, stored = written
    table = pd.read_parquet(update_file(stored.folder, 2))
    settings = RewardSettings(empty_format=None)
    weights, known = scheme_weights("outcome-only", settings), 0
    for number, group in enumerate(done.trainer.kept[2]):
        rewards = [hybrid_reward(one, settings) for one in group]
        totals = [
            [
                math.fsum(
                    weights[term] * value
                    for term in TERMS
                    if (value := getattr(step, term)) is not None
                )
                if any(getattr(step, term) is not None for term in SCHEMES["outcome-only"].terms)
                else None
                for step in steps
            ]
            for steps in rewards
        ]
        advantages = group_relative(totals)
        for one, steps, total, advantage in zip(group, rewards, totals, advantages, strict=True):
            rows = table[(table["group"] == number) & (table["rollout"] == one.rollout)]
            assert rows["step"].tolist() == [*range(1, one.num_steps + 1)]
            assert set(rows["instance"]) == {one.instance_id} and set(rows["update"]) == {2}
            for place, row in enumerate(rows.to_dict("records")):
                assert row["completion"] == one.steps[place].completion
                assert row["prompt"] == one.steps[place].prompt
                if total[place] is None:
                    assert math.isnan(row["reward"]) and math.isnan(row["advantage"])
                    continue
                known += 1
                assert row["reward"] == pytest.approx(total[place], abs=1e-6)
                assert row["advantage"] == pytest.approx(advantage[place], abs=1e-6)
                for term in TERMS:
                    value = getattr(steps[place], term)
                    assert value is None or row[term] == value
    assert 0 < known < len(table)  # the instance without a measurable term is there


def test_updates_that_were_lost_are_dropped_and_copies_are_whole(written, tmp_path):
    _, stored = written
    stored.copy_to(tmp_path)
    copies = StoredUpdates(tmp_path)
    assert copies[2] == stored[2]
    (tmp_path / "000003.parquet.tmp").touch()  # what a kill leaves
    copies.drop_after(1)
    assert [*copies] == [1]


def test_what_is_no_update_is_refused_with_its_name(tmp_path):
    (tmp_path / "000004.parquet").write_bytes(b"PAR1")
    with pytest.raises(ValueError, match="000004.parquet cannot be read"):
        StoredUpdates(tmp_path)[4]


def test_scripted_steps_without_tokens_and_columns_of_one_value(tmp_path):
    one = worked_example()
    other = dataclasses.replace(one, rollout=1)
    rows = 2 * one.num_steps
    played = PlayedUpdate(
        9,
        [[one, other]],
        [{"outcome": None}] * rows,
        [None] * rows,
        [None] * rows,
        [(0.25,)] * rows,
    )
    played.write(update_file(tmp_path, 9), quantity="loss", value=math.nan)
    table = pd.read_parquet(update_file(tmp_path, 9))
    assert set(table["quantity"]) == {"loss"} and table["value"].isna().all()
    assert table["outcome"].isna().all() and table["reward"].isna().all()
    assert table["operations"].map(list).tolist() == [[0.25]] * rows
    found = read_update(tmp_path, 9)
    assert dataclasses.replace(found, operations=None) == dataclasses.replace(
        played, operations=None
    )
    assert [*map(tuple, found.operations)] == played.operations


def test_the_last_instances_are_held_out():
    instances = planted_instances("train", 5, 0)
    assert held_out_split(instances, 2, 3) == (instances[:3], instances[3:])
    with pytest.raises(ValueError, match="5 instances, 2 of them held out, leave 3 .* at least 4"):
        held_out_split(instances, 2, 4)
