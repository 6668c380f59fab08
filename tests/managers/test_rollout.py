"""Lockstep rollouts: order, batching, what is asked when, and reproducibility."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from finemem_lib.credit.replay import replay
from finemem_lib.data.planted import SYNONYMS, StreamSettings, planted_stream
from finemem_lib.managers.protocol import Completion
from finemem_lib.managers.rollout import LockstepRollouts, RolloutSettings, play
from finemem_lib.managers.scripted import FactsOnly, InsertAll, RandomManager
from finemem_lib.operations import parse_operations
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.rewards import format_rewards, hybrid_reward, outcome_reward
from finemem_lib.trajectory import Trajectory, from_json, to_json
from tests.helpers.encoders import fake_encoder
from tests.helpers.paths import SHARED_DATA

HAYSTACK = SHARED_DATA / "long_hotpot_haystack_420k.jsonl"


class CountingReader(ExtractiveReader):
    """The reader of the planted stream, noting how many tasks each call brought."""

    def __init__(self):
        super().__init__(synonyms=SYNONYMS)
        self.calls = []

    def read(self, tasks):
        self.calls.append(len(tasks))
        return super().read(tasks)


class Recording:
    """A manager that notes what it was shown and passes it on."""

    def __init__(self, manager):
        self.manager = manager
        self.name, self.settings = manager.name, manager.settings
        self.seen = []

    def act(self, observations, seed):
        self.seen.append((seed, list(observations)))
        return self.manager.act(observations, seed)


class Saying:
    """A manager that always says the same."""

    name = "saying"
    settings = {}

    def __init__(self, text):
        self.text = text

    def act(self, observations, seed):
        return [Completion(self.text, parse_operations(self.text)) for _ in observations]


def streams(*lengths):
    return [
        planted_stream(number, StreamSettings(num_chunks=length))
        for number, length in enumerate(lengths)
    ]


def reader():
    return ExtractiveReader(synonyms=SYNONYMS)


def test_one_batch_per_step_ordered_by_instance_and_rollout():
    instances = streams(2, 4, 3)
    manager, agent = Recording(InsertAll()), CountingReader()
    groups = play(instances, manager, RolloutSettings(num_generations=2), agent, seed=5)

    shown = [
        [(int(o.instance.instance_id.removeprefix("planted-")), o.step) for o in observations]
        for _, observations in manager.seen
    ]
    assert shown == [
        [(0, 1), (0, 1), (1, 1), (1, 1), (2, 1), (2, 1)],
        [(0, 2), (0, 2), (1, 2), (1, 2), (2, 2), (2, 2)],
        [(1, 3), (1, 3), (2, 3), (2, 3)],
        [(1, 4), (1, 4)],
    ]
    assert len({seed for seed, _ in manager.seen}) == 4
    assert [len(group) for group in groups] == [2, 2, 2]
    assert [[one.rollout for one in group] for group in groups] == [[0, 1]] * 3
    assert [[one.num_steps for one in group] for group in groups] == [[2, 2], [4, 4], [3, 3]]
    for first, second in groups:  # the manager is deterministic, and so are the answers
        assert first.steps == second.steps and first.questions == second.questions
        assert all(answered.retrieved for answered in second.questions)
    asked_per_step = [
        2 * sum(len(one.chunk_questions[t]) for one in instances if t < len(one.chunks))
        for t in range(4)
    ]
    assert agent.calls == [*asked_per_step, 2 * sum(len(one.questions) for one in instances)]


def test_each_rollout_sees_its_own_memory_before_the_step():
    manager = Recording(RandomManager())
    [group] = play(streams(5), manager, RolloutSettings(num_generations=3), reader(), seed=1)
    for step, (_, observations) in enumerate(manager.seen, start=1):
        for one, observation in zip(group, observations, strict=True):
            assert observation.items == one.memory_at(step - 1)
    assert len({one.final_memory() for one in group}) > 1


def test_chunk_questions_are_asked_on_the_memory_of_their_step_and_global_ones_at_the_end():
    [instance] = streams(6)
    [[one]] = play([instance], FactsOnly(), RolloutSettings(num_generations=1), reader(), seed=0)
    for step, questions in zip(one.steps, instance.chunk_questions, strict=True):
        assert tuple(answered.question for answered in step.chunk_questions) == questions
        held = {item.item_id for item in one.memory_at(step.step)}
        for answered in step.chunk_questions:
            assert answered.asked_step == step.step
            assert {item.item_id for item in answered.retrieved} <= held
            assert answered.score == 1.0  # the facts of chunk t are in M_t
    assert tuple(answered.question for answered in one.questions) == instance.questions
    assert {answered.asked_step for answered in one.questions} == {6}
    assert outcome_reward(one) > 0.8


def test_settings_reach_memory_retrieval_and_metadata():
    settings = RolloutSettings(num_generations=1, top_k=1, capacity=3, ask_chunk_questions=False)
    [[one]] = play(streams(5), InsertAll(), settings, reader(), seed=0)
    assert len(one.final_memory()) == 3
    assert all(len(answered.retrieved) <= 1 for answered in one.questions)
    assert all(step.chunk_questions == () for step in one.steps)
    assert one.metadata["rollout"] == dataclasses.asdict(settings)
    assert one.metadata["agent"] == "extractive" and one.manager == "insert-all"
    assert one.seed == 0


def test_what_chunk_questions_retrieve_stays_longer_where_eviction_is_by_use():
    settings = RolloutSettings(num_generations=1, top_k=2, capacity=6, eviction="least_recent")
    [[one]] = play(streams(12), InsertAll(), settings, reader(), seed=0)
    last_retrieved: dict[str, float] = {}
    spared = 0
    for step in one.steps:
        before = sorted(
            one.memory_at(step.step - 1),
            key=lambda item: max(item.last_step, last_retrieved.get(item.item_id, 0)),
        )
        gone = step.delta.evicted
        assert [item.item_id for item in before[: len(gone)]] == list(gone)
        by_write = sorted(before, key=lambda item: item.lineage[-1])
        spared += {item.item_id for item in by_write[: len(gone)]} != set(gone)
        for answered in step.chunk_questions:
            for found in answered.retrieved:
                last_retrieved[found.item_id] = step.step + 0.5  # after the step's operations
    assert spared


def test_a_token_budget_holds_at_every_step_and_is_recorded():
    settings = RolloutSettings(num_generations=1, token_budget=20)
    [[one]] = play(streams(8), InsertAll(), settings, reader(), seed=0)
    assert 15 < one.steps[-1].memory_tokens <= 20
    assert max(step.memory_tokens for step in one.steps) <= 20
    assert one.metadata["rollout"]["token_budget"] == 20


def test_settings_saved_before_there_was_a_retriever_or_token_budget_are_still_read():
    saved = {
        "num_generations": 2,
        "top_k": 3,
        "capacity": None,
        "eviction": "oldest",
        "duplicates": "refuse",
        "max_item_tokens": None,
        "question_fraction": 1.0,
        "ask_chunk_questions": True,
    }
    assert RolloutSettings(**saved) == RolloutSettings(num_generations=2)


def test_the_retriever_that_is_chosen_finds_the_items(monkeypatch):
    """The encoder sees only how long a text is, so that dense retrieval is told by its items."""

    def encode(text):
        angle = len(text) / 50
        return np.array([np.cos(angle), np.sin(angle)])

    fake_encoder(monkeypatch, encode)
    settings = RolloutSettings(
        num_generations=1, top_k=2, retriever="dense", dense_model="by length"
    )
    [[one]] = play(streams(4), InsertAll(), settings, reader(), seed=0)
    assert one.metadata["rollout"]["dense_model"] == "by length"
    lengths = {item.item_id: len(item.content) for item in one.final_memory()}
    for answered in one.questions:
        question = answered.question
        asked = len(reader().query(question.text, question.data_source))
        nearest = sorted(abs(length - asked) for length in lengths.values())[:2]
        found = [abs(lengths[item.item_id] - asked) for item in answered.retrieved]
        assert found == nearest


@pytest.mark.parametrize("manager", [InsertAll(), RandomManager()], ids=lambda m: m.name)
def test_trajectories_survive_json_and_their_memory_can_be_replayed(manager):
    settings = RolloutSettings(num_generations=2, capacity=4)
    for one in play(streams(6), manager, settings, reader(), seed=3)[0]:
        again = from_json(Trajectory, to_json(one))
        assert again == one
        memory = replay(again, settings.new_memory(), 6)
        assert memory.items == one.final_memory()
        assert memory.tokens == one.steps[-1].memory_tokens


def test_the_seed_decides_everything():
    def played(seed):
        settings = RolloutSettings(num_generations=3, question_fraction=0.5)
        return play(streams(4, 5), RandomManager(), settings, reader(), seed)

    assert played(7) == played(7)
    assert played(7) != played(8)


def test_a_sample_of_the_questions_is_the_same_for_all_rollouts_of_an_instance():
    instances = streams(6, 6)
    settings = RolloutSettings(num_generations=3, question_fraction=0.4)
    groups = play(instances, InsertAll(), settings, reader(), seed=2)
    for instance, group in zip(instances, groups, strict=True):
        samples = {tuple(a.question.question_id for a in one.questions) for one in group}
        [sample] = samples
        assert len(sample) == round(0.4 * len(instance.questions))
        order = [question.question_id for question in instance.questions]
        assert list(sample) == sorted(sample, key=order.index)
    tiny = RolloutSettings(num_generations=1, question_fraction=0.001)
    drawn = {
        play(instances[:1], InsertAll(), tiny, reader(), seed)[0][0].questions[0].question
        for seed in range(12)
    }
    assert len(drawn) > 1


@pytest.mark.parametrize("text", ["", "I have nothing to say."])
def test_a_manager_that_emits_nothing_is_played_to_the_end(text):
    [[one]] = play(streams(3), Saying(text), RolloutSettings(num_generations=1), reader(), seed=0)
    assert one.final_memory() == () and one.num_steps == 3
    assert format_rewards(one) == [0.0] * 3
    assert outcome_reward(one) == 0.0
    assert all(reward.total is not None for reward in hybrid_reward(one))


def test_what_utf8_cannot_carry_is_cleaned_before_it_is_recorded():
    text = '[{"op":"INSERT","content":"Mia \ud800 lives in Rome"}]'
    [[one]] = play(streams(1), Saying(text), RolloutSettings(num_generations=1), reader(), seed=0)
    to_json(one).encode()
    assert "\ufffd" in one.steps[0].completion
    assert one.final_memory()[0].content.encode()


def test_what_the_prompt_cut_from_a_chunk_is_counted():
    class Cut(Saying):
        def act(self, observations, seed):
            return [
                dataclasses.replace(completion, truncated_tokens=4)
                for completion in super().act(observations, seed)
            ]

    [[one]] = play(streams(2), Cut("[]"), RolloutSettings(num_generations=1), reader(), seed=0)
    assert [step.prompt_truncated_tokens for step in one.steps] == [4, 4]


def test_instances_without_questions_are_played():
    bare = dataclasses.replace(streams(3)[0], questions=(), chunk_questions=None)
    [[one]] = play([bare], InsertAll(), RolloutSettings(num_generations=1), reader(), seed=0)
    assert one.questions == () and outcome_reward(one) is None
    assert play([], InsertAll(), RolloutSettings(), reader(), seed=0) == []


def test_progress_counts_chunks():
    told = []
    play(
        streams(2, 3),
        InsertAll(),
        RolloutSettings(num_generations=2),
        reader(),
        seed=0,
        progress=lambda done, total: told.append((done, total)),
    )
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_misuse_says_what_to_do():
    instances = streams(2)
    rollouts = LockstepRollouts(instances, RolloutSettings(), reader(), "manager", seed=0)
    with pytest.raises(ValueError, match="got 0 completions for 8 observations"):
        rollouts.advance([])
    with pytest.raises(ValueError, match="8 of 8 have not ended"):
        rollouts.finish()
    with pytest.raises(ValueError, match="'planted-0' occurs twice"):
        play(instances * 2, InsertAll(), RolloutSettings(), reader(), seed=0)
    empty = dataclasses.replace(instances[0], chunks=())
    with pytest.raises(ValueError, match="has no chunks"):
        play([empty], InsertAll(), RolloutSettings(), reader(), seed=0)


@pytest.mark.parametrize(
    "settings",
    [
        {"num_generations": 0},
        {"top_k": 0},
        {"question_fraction": 0.0},
        {"question_fraction": 1.5},
        {"capacity": 0},
        {"token_budget": 0},
        {"eviction": "newest"},
        {"retriever": "bm"},
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_at_once(settings):
    with pytest.raises(ValueError, match=next(iter(settings))):
        RolloutSettings(**settings)
