"""A manager and a reader that learn in one loop: who moves when, and how a run is resumed."""

from __future__ import annotations

import copy

import pytest
import torch

from finemem_lib.data.planted import SYNONYMS, planted_stream
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.readers.trainable import TrainableReader
from finemem_lib.reading import MemoisedAgent
from finemem_lib.rewards import outcome_reward
from finemem_lib.training import run as running
from finemem_lib.training.co_training import PHASE, lessons, teach_reader
from finemem_lib.training.run import train_manager
from tests.helpers.training_runs import G, manager

SETTINGS = RolloutSettings(num_generations=G)


@pytest.fixture
def random_weights(monkeypatch):
    """Let `train_manager` train the architecture with random weights, which stores sentences."""
    monkeypatch.setattr(running, "load_manager", lambda *arguments, **settings: manager())


def reader(**settings):
    return MemoisedAgent(TrainableReader(seed=1, synonyms=SYNONYMS, **settings))


def train(agent, updates, **settings):
    return train_manager(
        instances=[planted_stream(number) for number in range(2)],
        agent=agent,
        updates=updates,
        instances_per_update=2,
        rollout=SETTINGS,
        learning_rate=1e-3,
        keep_updates=range(1, updates + 1),
        threads=1,
        **settings,
    )


def moved(trained):
    before, after = manager().model.state_dict(), trained.manager.model.state_dict()
    return any(not torch.equal(weight.cpu(), after[name].cpu()) for name, weight in before.items())


@pytest.mark.parametrize(
    ("learns", "of_manager", "of_reader"),
    [("manager", True, False), ("reader", False, True), ("jointly", True, True)],
)
def test_only_the_learners_move(random_weights, learns, of_manager, of_reader):
    agent = reader()
    before = agent.settings
    trained = train(agent, 2, learns=learns)
    assert (moved(trained), agent.settings != before) == (of_manager, of_reader)
    answered_by = [
        trained.trajectories[update][0][0].metadata["agent_settings"] for update in (1, 2)
    ]
    assert answered_by[0] == before, "an update is answered by the reader as it began"
    assert (answered_by[1] != before) == of_reader


def test_learning_alternately_begins_with_the_manager(random_weights):
    agent = reader()
    before = agent.settings
    trained = train(agent, PHASE + 2, learns="alternately")
    answered_by = [
        trained.trajectories[update][0][0].metadata["agent_settings"]
        for update in range(1, PHASE + 3)
    ]
    assert answered_by[: PHASE + 1] == [before] * (PHASE + 1) and answered_by[-1] != before


def test_the_record_says_how_well_the_reader_picks(random_weights):
    trained = train(reader(), 1, learns="jointly")
    (record,) = trained.records
    assert 0 <= record["reader/picked"] <= record["reader/best"] <= 1
    assert 0 < record["reader/expected"] < record["reader/best"]


def test_a_resumed_run_goes_on_with_the_reader_of_its_checkpoint(random_weights, tmp_path):
    whole, first, second = reader(), reader(), reader()
    train(whole, 3, learns="jointly")
    train(first, 2, learns="jointly", output_dir=tmp_path, save_every=1)
    trained = train(second, 3, learns="jointly", output_dir=tmp_path, save_every=1, resume=True)
    assert second.settings == whole.settings != first.settings
    assert len(trained.records) == 3
    with pytest.raises(ValueError, match="with reader"):
        train(second, 4, learns="jointly", output_dir=tmp_path, resume=True)
    with pytest.raises(ValueError, match="with learns 'jointly', got None"):
        train(reader(), 4, output_dir=tmp_path, resume=True)


def test_lessons_are_the_global_questions_with_what_each_item_would_earn():
    instance = planted_stream(7)
    agent = reader(spread=0.0)
    (group,) = play(
        [instance], make_manager("insert-all"), RolloutSettings(num_generations=1), agent, 0
    )
    tasks, rewards = lessons(agent.agent, [group])
    answered = [one for one in group[0].questions if one.retrieved]
    assert [task.question for task in tasks] == [one.question.text for one in answered]
    picked = [row[0] for row in rewards]  # an untrained reader without spread picks the first
    assert picked == [one.score for one in answered]
    before = copy.deepcopy(agent.agent.weights)
    measured = teach_reader(agent, [group], learns=False)
    assert measured["reader/picked"] == pytest.approx(sum(picked) / len(picked))
    assert torch.equal(before, agent.agent.weights), "measured only"


def test_a_reader_learns_to_answer_what_was_stored():
    streams = [planted_stream(number) for number in range(8)]
    agent, store = reader(), make_manager("insert-all")
    settings = RolloutSettings(num_generations=1, top_k=6)

    def accuracy():
        groups = play(streams, store, settings, agent, 0)
        scores = [outcome_reward(one) for group in groups for one in group]
        return groups, sum(scores) / len(scores)

    groups, untrained = accuracy()
    for _ in range(30):
        teach_reader(agent, groups, learns=True)
    assert accuracy()[1] > 0.9 > 0.6 > untrained


def test_who_learns_is_checked_before_anything_is_played(random_weights):
    with pytest.raises(ValueError, match="'jointly' and the reader 'extractive' cannot learn"):
        train(ExtractiveReader(), 1, learns="jointly")
    with pytest.raises(ValueError, match="expected one of manager, reader, alternately, jointly"):
        train(reader(), 1, learns="both")
    assert teach_reader(ExtractiveReader(), [], learns=True) == {}
