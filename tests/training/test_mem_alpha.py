"""Mem-alpha's rewards and its advantage over the whole instance."""

from __future__ import annotations

import dataclasses
import math

import pytest

from finemem_lib.advantages import group_relative, instance_relative
from finemem_lib.data.planted import planted_instances
from finemem_lib.layers.content_reward import Written, content_rewards, rule_verdicts
from finemem_lib.layers.memory import LayeredMemory
from finemem_lib.layers.operations import parse_calls
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.prompts import prompt_builder
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.rewards import weighted_sum
from finemem_lib.training.record import read_update
from finemem_lib.training.run import train_manager
from finemem_lib.training.schemes import (
    SCHEMES,
    RewardScheme,
    reward_terms,
    scheme_of,
    scheme_weights,
)
from finemem_lib.training.trainer import UpdatePlayer
from tests.helpers.memory_strategies import played
from tests.helpers.small_models import small_tokenizer
from tests.helpers.training_runs import LIMIT, SentencePicker, manager

CALLS = [
    '[{"name":"memory_update","arguments":{"memory_type":"core","new_content":"Mia travels"}},'
    '{"name":"memory_insert","arguments":{"memory_type":"episodic",'
    '"content":"On day 3 Mia saw Rome"}}]',
    '[{"name":"memory_insert","arguments":{"memory_type":"episodic","content":"Mia saw Rome"}},'
    '{"name":"memory_insert","arguments":{"memory_type":"semantic","content":"Mia owns a cat"}},'
    '{"name":"memory_insert","arguments":{"memory_type":"notes","content":"Mia owns a cat"}},'
    '{"name":"memory_delete","arguments":{"memory_type":"semantic","memory_id":"77"}}]',
    "[]",
]


def by_hand():
    trajectory = played(LayeredMemory(), [[*parse_calls(one)] for one in CALLS]).trajectory
    return trajectory


def test_the_content_of_calls_is_their_mean_verdict_and_other_calls_count_nothing():
    # Step 2: an event without its time, a fact, a malformed call and a delete. Step 3: no call.
    assert content_rewards([by_hand()]) == [[1.0, 0.25, 0.0]]


def test_a_judge_without_a_verdict_leaves_the_mean():
    asked: list[Written] = []

    def judge(written):
        asked.extend(written)
        return [None if one.store == "episodic" else 1.0 for one in written]

    # Step 2 keeps the fact (1), the malformed call (0) and the delete (0).
    assert content_rewards([by_hand()], judge) == [[1.0, pytest.approx(1 / 3), 0.0]]
    assert [one.store for one in asked] == ["core", "episodic", "episodic", "semantic"]
    with pytest.raises(ValueError, match="expected one each"):
        content_rewards([by_hand()], lambda written: [])


@pytest.mark.parametrize(
    ("store", "content", "verdict"),
    [
        ("core", "N/A", 0.0),
        ("core", "Update the core memory with facts", 0.0),
        ("core", "Mia is a pilot", 1.0),
        ("semantic", "She owns a cat", 0.0),
        ("semantic", "Who owns the cat?", 0.0),
        ("semantic", "On day 3 Mia saw Rome", 0.0),
        ("semantic", "Too short", 0.0),
        ("episodic", "On day 3", 0.0),
        ("episodic", "2024-05-03 14:00 Mia sold her boat", 1.0),
        ("flat", "On day 3 Mia saw Rome", 1.0),
    ],
)
def test_the_rule_judges_by_form(store, content, verdict):
    assert rule_verdicts([Written(store, content)]) == [verdict]


def test_the_scheme_has_the_published_weights_and_terms():
    weights = scheme_weights("Mem-alpha")
    assert {name: weight for name, weight in weights.items() if weight} == {
        "outcome": 1.0,
        "format": 1.0,
        "compression": 0.05,
        "content": 0.1,
    }
    assert SCHEMES["Mem-alpha"].advantage == "instance" and not SCHEMES["Mem-alpha"].rules
    [terms] = reward_terms([by_hand()], "Mem-alpha")
    assert [step["format"] for step in terms] == [1.0, 0.5, 0.0]
    assert [step["content"] for step in terms] == [1.0, 0.25, 0.0]
    assert "content" not in reward_terms([by_hand()], "outcome-only")[0][0]
    with pytest.raises(ValueError, match="advantage is 'stream', expected one of step, instance"):
        RewardScheme("mine", {"outcome": 1.0}, advantage="stream")


def test_an_instance_is_one_group():
    rewards = [[1.0, 0.0, None], [2.0, 1.0, 0.0]]
    known = [1.0, 0.0, 2.0, 1.0, 0.0]
    mean = sum(known) / 5
    std = math.sqrt(sum((value - mean) ** 2 for value in known) / 4)
    expected = [
        [None if r is None else pytest.approx((r - mean) / (std + 1e-4)) for r in row]
        for row in rewards
    ]
    assert instance_relative(rewards) == expected
    assert instance_relative(rewards) != group_relative(rewards)
    with pytest.raises(ValueError, match="the same number"):
        instance_relative([[1.0], [1.0, 0.0]])


def test_training_pays_the_whole_instance_and_plays_in_layers(tmp_path):
    instances = planted_instances("train", 2, seed=0)
    train_manager(
        manager=manager(SentencePicker),
        scheme="Mem-alpha",
        rollout=RolloutSettings(num_generations=4, memory="layered", ask_chunk_questions=False),
        instances=instances,
        updates=1,
        instances_per_update=2,
        learning_rate=1e-3,
        output_dir=tmp_path,
        threads=1,
        max_completion_length=LIMIT,
    )
    update = read_update(tmp_path / "updates", 1)
    weights = scheme_weights("Mem-alpha")
    start = 0
    for group in update.groups:
        assert all(one.metadata["rollout"]["memory"] == "layered" for one in group)
        stores = {item.store for one in group for item in one.final_memory()}
        assert stores == {"semantic"}  # a flat manager's INSERTs go there
        size = len(group) * group[0].num_steps
        rows = update.terms[start : start + size]
        rewards = [[weighted_sum({n: row[n] for n in weights}, weights)] for row in rows]
        expected = [value for (value,) in instance_relative(rewards)]
        assert update.advantages[start : start + size] == pytest.approx(expected, abs=1e-6)
        start += size
    assert start == len(update.terms) and any(update.advantages)


def test_a_manager_of_layers_is_refused_before_it_plays_on_a_flat_memory():
    builder = prompt_builder(small_tokenizer("qwen3"), ModelSettings(operations_as="calls"))
    player = UpdatePlayer(
        builder, None, RolloutSettings(memory="layered"), "Mem-alpha", None, None, None, "m", 0
    )
    assert scheme_of(player.scheme).name == "Mem-alpha"
    with pytest.raises(ValueError, match="needs a layered memory"):
        dataclasses.replace(player, rollout=RolloutSettings())
