"""Local groups: what is shared, values and advantages by hand, and what enters the update."""

from __future__ import annotations

import dataclasses
from collections import Counter

import pytest

from finemem_lib.data.planted import SYNONYMS, StreamSettings
from finemem_lib.managers.protocol import Completion
from finemem_lib.managers.rollout import LockstepRollouts, RolloutSettings, play
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.reading import MemoisedAgent
from finemem_lib.rewards import chunk_rewards, outcome_reward
from finemem_lib.training import run as training_run
from finemem_lib.training.local_groups import LocalGroups, anchors, play_local_groups
from finemem_lib.training.run import train_manager
from finemem_lib.trajectory import Operation, Question
from tests.helpers.streams_by_hand import CHANGE, WRITE, Scripted, stream_of, told
from tests.helpers.training_runs import (
    G,
    assert_equal,
    manager,
    mixed_instances,
    rows_in_loss,
    run,
    same_records,
)

SKIP = Operation("SKIP")
ROME, OSLO = WRITE("Mia lives in Rome"), WRITE("Ana lives in Oslo")
SETTINGS = RolloutSettings(num_generations=2, top_k=2)


def asked(person, place):
    return Question(f"q-{person}", f"Where does {person} live?", (place,), "planted")


def two_facts():
    """Mia in chunk 1, Ana in chunk 2, asked about after each chunk and at the end."""
    stream = stream_of(([told("Mia", "Rome")], []), ([told("Ana", "Oslo")], []))
    mia, ana = asked("Mia", "Rome"), asked("Ana", "Oslo")
    return dataclasses.replace(stream, questions=(mia, ana), chunk_questions=((mia,), (ana,)))


def reader():
    return MemoisedAgent(ExtractiveReader(synonyms=SYNONYMS))


def branching(*first, later=()):
    """Act as the manager: the G branches of a group do what `first` says, and then `later`."""

    def act(observations, number):
        if number > 1:
            return [Completion("", tuple(later)) for _ in observations]
        return [Completion("", first[at % len(first)]) for at, _ in enumerate(observations)]

    return act


def local(rollout_steps, act, settings, rollout=SETTINGS, stream=None):
    stream = stream or two_facts()
    groups = play([stream], Scripted(*rollout_steps), rollout, reader(), seed=0)
    return play_local_groups(groups, [stream], settings, act, reader(), seed=0)


def test_values_and_advantages_by_hand():
    """The rollout stores both facts. Storing the fact or not: outcome 1 or 1/2, chunk 1 or 0.

    The values 1 + 1/2 and 1/2 lie 1/2 from their mean; their deviation is the root of 1/2.
    """
    found = local(
        ([ROME], [OSLO]),
        lambda observations, number: [
            Completion("", ((ROME, OSLO)[one.step - 1] if place % 2 == 0 else SKIP,))
            for place, one in enumerate(observations)
        ],
        LocalGroups(anchors=2, weight=3.0),
    )
    expected = 3.0 * 0.5 / (0.5**0.5 + 1e-4)
    assert [one.step for one in found.groups] == [1, 2]
    for group in found.groups:
        assert (group.outcomes, group.chunks, group.values) == ((1.0, 0.5), (1.0, 0.0), (1.5, 0.5))
        assert group.advantages == pytest.approx((expected, -expected))
    # 2 groups of 2 completions, each asked 2 questions at the end and 1 after its chunk; equal
    # memories are read once.
    assert found.completions == 4 and (found.calls_asked, found.calls_made) == (10, 7)


@pytest.mark.parametrize(
    ("outcome", "chunk", "values"), [(1.0, 0.0, (1.0, 0.5)), (0.0, 2.0, (2.0, 0.0))]
)
def test_the_value_may_be_the_outcome_or_the_chunk_alone(outcome, chunk, values):
    settings = LocalGroups(anchors=1, outcome_weight=outcome, chunk_weight=chunk)
    for step, operations in enumerate(([ROME], [OSLO]), start=1):
        found = local(([ROME], [OSLO]), branching(operations, (SKIP,)), settings)
        if found.groups[0].step == step:
            assert found.groups[0].values == values


def test_equal_completions_are_a_dead_group():
    found = local(([ROME], [OSLO]), branching((SKIP,)), LocalGroups())
    assert found.groups[0].advantages == (0.0, 0.0)
    assert found.measures["local/dead_share"] == 1.0


def test_all_completions_start_from_the_memory_of_one_rollout():
    """The rollouts store different facts; what the branches see is one of those memories."""
    stream, seen = two_facts(), []
    rollouts = LockstepRollouts([stream], SETTINGS, reader(), "by hand", 0)
    for first, second in (((ROME,), (WRITE("Eve lives in Bern"),)), ((OSLO,), (OSLO,))):
        rollouts.advance([Completion("", first), Completion("", second)])
    [group] = rollouts.finish()

    def act(observations, number):
        seen.extend(observations)
        return [Completion("", (SKIP,)) for _ in observations]

    update = play_local_groups([group], [stream], LocalGroups(2), act, reader(), seed=0)
    assert [one.step for one in seen] == [1, 1, 2, 2]
    for observation, found in zip(seen[::2], update.groups, strict=True):
        assert observation.items == group[found.rollout].memory_at(found.step - 1)
    assert seen[0] == seen[1] and seen[2] == seen[3]


def test_a_later_operation_never_hits_an_item_that_a_branch_wrote():
    """The rollout updates what its step 1 wrote; a branch that wrote another item keeps it."""
    stream = two_facts()
    found = local(
        ([WRITE("Eve lives in Rome")], [CHANGE("1", "Eve lives in Bern")]),
        branching((ROME,), (SKIP,)),
        LocalGroups(anchors=2, chunk_weight=0.0),
        stream=stream,
    )
    [first] = [one for one in found.groups if one.step == 1]
    # Rome stays, because the update finds no item of its own; had it hit Rome, nothing were known.
    assert first.outcomes == (0.5, 0.0)


def test_a_fact_that_the_rollout_updates_later_is_worth_storing():
    """Incident: the branch's item had another id, so the rollout's UPDATE missed it."""
    found = local(
        ([WRITE("Mia lives in Oslo")], [CHANGE("1", "Mia lives in Rome")]),
        branching((WRITE("Mia lives in Oslo"),), (SKIP,)),
        LocalGroups(anchors=2, chunk_weight=0.0),
    )
    [first] = [one for one in found.groups if one.step == 1]
    assert first.outcomes == (0.5, 0.0)


def test_the_policy_continues_by_itself_where_that_is_asked_for():
    """The rollout stores nothing later; the policy does, so Ana is known in every branch."""
    act = branching((ROME,), (SKIP,), later=(OSLO,))
    of_step = {}
    for name in ("replay", "policy"):
        settings = LocalGroups(anchors=2, continuation=name)
        found = local(([ROME], [SKIP]), act, settings)
        of_step[name] = {one.step: one for one in found.groups}
        assert found.completions == {"replay": 4, "policy": 6}[name]
    assert of_step["replay"][1].outcomes == (0.5, 0.0)
    assert of_step["policy"][1].outcomes == (1.0, 0.5)
    assert of_step["policy"][2] == of_step["replay"][2]


@pytest.mark.parametrize("eviction", ["oldest", "least_recent"])
def test_the_completion_of_the_rollout_itself_is_worth_what_the_rollout_got(eviction):
    rollout = RolloutSettings(num_generations=2, top_k=2, capacity=1, eviction=eviction)
    stream = two_facts()
    [group] = play([stream], Scripted([ROME], [OSLO]), rollout, reader(), seed=0)
    found = local(
        ([ROME], [OSLO]),
        lambda seen, number: [Completion("", ((ROME, OSLO)[one.step - 1],)) for one in seen],
        LocalGroups(anchors=2),
        rollout,
    )
    for one in found.groups:
        assert set(one.outcomes) == {outcome_reward(group[0])} == {0.5}
        assert set(one.chunks) == {chunk_rewards(group[0])[one.step - 1]}


def test_anchors_are_different_steps_and_follow_the_seed():
    [group] = play([two_facts()], Scripted([ROME], [OSLO]), SETTINGS, reader(), seed=0)
    assert [step for _, step in anchors(group, 9, 1)] == [1, 2]
    assert anchors(group, 1, 1) == anchors(group, 1, 1)
    drawn = Counter(anchors(group, 1, seed)[0] for seed in range(40))
    assert set(drawn) == {(rollout, step) for rollout in (0, 1) for step in (1, 2)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"anchors": 0},
        {"continuation": "both"},
        {"outcome_weight": 0.0, "chunk_weight": 0.0},
        {"outcome_weight": -1.0},
        {"weight": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="local groups: "):
        LocalGroups(**wrong)


@pytest.mark.parametrize("micro_batches", [G, 2])
def test_local_groups_are_further_rows_and_change_nothing_of_the_others(tmp_path, micro_batches):
    settings = LocalGroups(anchors=2, weight=0.5)
    plain, more = (
        run(
            tmp_path / str(number),
            mixed_instances(),
            capacity=3,
            local_groups=given,
            micro_batches=micro_batches,
        )
        for number, given in enumerate((None, settings))
    )
    assert plain.trainer.kept == more.trainer.kept
    [record], [other] = (
        [entry for entry in done.trainer.state.log_history if "reward" in entry]
        for done in (plain, more)
    )
    for name in ("reward", "reward_std", "frac_reward_zero_std", "rewards/chunk/mean", "accuracy"):
        assert record[name] == other[name]
    assert not any("local" in name for name in record)
    assert other["credit/local/groups"] == 8  # four instances, two steps each at least
    assert other["credit/local/completions"] == 8 * G
    assert 0 < other["credit/local/calls_made"] <= other["credit/local/calls_asked"]

    before, after = Counter(rows_in_loss(plain.inputs)), Counter(rows_in_loss(more.inputs))
    assert not before - after  # every row of the rollouts, with its advantage
    extra = [*(after - before).elements()]
    assert len(extra) == 8 * G
    prompts = Counter(prompt for prompt, _, _ in extra)
    played = {
        step.prompt_ids for group in more.trainer.kept[1] for one in group for step in one.steps
    }
    assert set(prompts) <= played and all(count % G == 0 for count in prompts.values())
    assert sum(value for _, _, value in extra) == pytest.approx(0.0, abs=1e-5)
    assert max(abs(value) for _, _, value in extra) > 0.1
    assert any((plain.gradient[name] != more.gradient[name]).any() for name in plain.gradient)


def test_evaluation_plays_no_local_groups(tmp_path):
    done = run(tmp_path, mixed_instances()[:2], local_groups=LocalGroups())
    metrics = done.trainer.evaluate(done.trainer.train_dataset)
    assert 0 <= metrics["eval_accuracy"] <= 1 and not any("local" in name for name in metrics)


def test_a_table_of_completions_is_refused(tmp_path):
    with pytest.raises(ValueError, match="log_completions is set"):
        run(tmp_path, mixed_instances(), local_groups=LocalGroups(), log_completions=True)


@pytest.mark.long
def test_a_resumed_run_plays_the_local_groups_of_an_uninterrupted_one(tmp_path, monkeypatch):
    monkeypatch.setattr(training_run, "load_manager", lambda checkpoint, **settings: manager())

    def trained(updates=3, local_groups=LocalGroups(continuation="policy"), **settings):  # noqa: B008
        return train_manager(
            "random weights",
            updates=updates,
            instances_per_update=2,
            seed=5,
            rollout=RolloutSettings(num_generations=G, capacity=4),
            stream=StreamSettings(num_chunks=3),
            local_groups=local_groups,
            save_every=1,
            **settings,
        )

    class Killed(BaseException):
        pass

    def killed_at_second(record):
        if record["step"] == 2:
            raise Killed

    whole = trained()
    with pytest.raises(Killed):
        trained(output_dir=tmp_path, on_update=killed_at_second)
    with pytest.raises(ValueError, match="was trained with local_groups"):
        trained(output_dir=tmp_path, resume=True, local_groups=None)
    resumed = trained(output_dir=tmp_path, resume=True)
    assert same_records(whole.records, resumed.records)
    assert whole.records[-1]["credit/local/completions"] >= 2 * G
    assert_equal(resumed.manager.model.state_dict(), whole.manager.model.state_dict())
