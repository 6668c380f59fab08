"""The trainable reader: what it picks, that it learns, and that its answers are never mixed up."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given, settings, strategies as st

from finemem_lib.data.planted import SYNONYMS
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.readers.trainable import TrainableReader, trainable_reader
from finemem_lib.reading import MemoisedAgent, Reading, ReadingTask
from tests.helpers.reading import task

RIGHT, WRONG = "Mia moved to Rome.", "Mia owns cats."
HOME = task("Where does Mia live?", WRONG, RIGHT, data_source="planted")


def test_the_score_is_the_sum_of_the_weights_of_its_features():
    """By hand: one bucket, so every pair has the weight w, and the question has two content words,
    "mia" and "live": three pairs with each of an item's words."""
    reader = TrainableReader(buckets=1, spread=0.0)
    with torch.no_grad():
        reader.weights.copy_(torch.tensor([[0.01], [1.0], [10.0], [100.0]]))
    asked = task(
        "Where does Mia live?", "Mia lives here", "Leo sings", data_source="planted", written=(0, 1)
    )
    first, second = reader.scores([asked])[0].tolist()
    assert first == pytest.approx(3 * 3 * 0.01 + 0.5 * 1 + 1 * 10 + 0 * 100)
    assert second == pytest.approx(2 * 3 * 0.01 + 0.0 * 1 + 0 * 10 + 1 * 100)


def test_it_answers_as_the_extractive_reader_from_the_item_it_picks():
    reader = TrainableReader(spread=0.0)
    assert reader.read([HOME]) == [Reading(WRONG, ("i0",))], "equals: the better ranked"
    reader.learn([HOME], [[0.0, 1.0]])
    alone = ReadingTask(HOME.question, HOME.data_source, HOME.items[1:])
    assert reader.read([HOME]) == ExtractiveReader().read([alone]) == [Reading(RIGHT, ("i1",))]
    assert reader.read([dataclasses.replace(HOME, items=())]) == [Reading("", ())]


def test_it_learns_which_verb_answers_which_question_for_people_it_never_read_of():
    questions = {"live": "Where does {} live?", "keep": "Which pet does {} keep?"}
    facts = {"live": "{} moved to Rome.", "keep": "{} adopted cats."}

    def asked(name, cue):
        right, wrong = facts[cue], facts["keep" if cue == "live" else "live"]
        contents = (wrong.format(name), right.format(name))
        return task(questions[cue].format(name), *contents, data_source="planted")

    reader = TrainableReader(seed=1)
    lessons = [asked(name, cue) for name in ("Mia", "Leo", "Ana") for cue in questions]
    for _ in range(20):
        reader.learn(lessons, [[0.0, 1.0]] * len(lessons))
    readings = reader.read([asked("Zoe", cue) for cue in questions])
    assert [reading.used for reading in readings] == [("i1",)] * 2


def test_a_gradient_step_is_that_of_the_expected_score():
    """Adam's first step has the length of the learning rate in every weight with a gradient, and
    the direction of p (r - E r) here: two items, r = (0, 1), so d E / d s = p0 p1 (-1, 1)."""
    reader = TrainableReader(buckets=1, spread=0.0, learning_rate=0.5)
    reader.learn([HOME], [[0.0, 1.0]])
    pair, overlap, rank, recency = reader.weights[:, 0].tolist()
    assert pair == pytest.approx(0.5), "the right item has four words, the wrong one three"
    assert rank == pytest.approx(-0.5), "the right item is ranked second"
    assert (overlap, recency) == (0.0, 0.0), "both items have the same"


def test_lessons_without_a_choice_teach_nothing():
    reader = TrainableReader()
    before = reader.settings
    reader.learn([HOME, HOME], [[0.0, 0.0], [1.0, 1.0]])
    reader.learn([dataclasses.replace(HOME, items=())], [[]])
    assert reader.settings == before
    with pytest.raises(ValueError, match="got 1 rewards for 2 items"):
        reader.learn([HOME], [[1.0]])


def test_answers_of_a_reader_that_has_learned_since_are_not_used_again():
    agent = MemoisedAgent(TrainableReader(spread=0.0))
    before = agent.settings
    assert [agent.read([HOME])[0].used for _ in range(2)] == [("i0",)] * 2
    assert (agent.calls_asked, agent.calls_made) == (2, 1)
    agent.agent.learn([HOME], [[0.0, 1.0]])
    assert agent.settings != before
    assert agent.read([HOME])[0].used == ("i1",)
    assert agent.calls_made == 2


def test_seeds_decide_the_reader():
    assert TrainableReader(seed=1).settings == TrainableReader(seed=1).settings
    assert TrainableReader(seed=1).settings != TrainableReader(seed=2).settings


@settings(max_examples=25)
@given(
    st.lists(
        st.lists(st.sampled_from(["Mia moved to Rome.", "Leo owns cats.", "", "Once it rained."])),
        max_size=4,
    )
)
def test_a_task_is_read_the_same_alone_and_in_a_batch(contents):
    reader = TrainableReader(seed=3)
    tasks = [task("Where does Mia live?", *some, data_source="planted") for some in contents]
    assert reader.read(tasks) == [reader.read([one])[0] for one in tasks]


def test_a_reader_is_written_and_goes_on_as_it_would_have(tmp_path):
    reader, other = TrainableReader(seed=1), TrainableReader(seed=2)
    reader.learn([HOME], [[0.0, 1.0]])
    reader.save(tmp_path / "reader.pt")
    other.load(tmp_path / "reader.pt")
    assert other.settings == reader.settings
    for one in (reader, other):
        one.learn([HOME], [[1.0, 0.0]])
    assert other.settings == reader.settings, "the optimizer's state is that of before, too"
    with pytest.raises(ValueError, match="the weights of a reader with 8 buckets"):
        TrainableReader(buckets=8).load(tmp_path / "reader.pt")


def test_it_searches_with_the_words_it_is_given():
    reader = TrainableReader(synonyms=SYNONYMS)
    assert reader.query(HOME.question, "planted") == "Where does Mia live? lives moved settled"
    assert "lives" in reader.settings


def test_a_reader_that_can_learn_is_found_and_no_other():
    reader = TrainableReader()
    assert trainable_reader(MemoisedAgent(reader)) is trainable_reader(reader) is reader
    assert trainable_reader(ExtractiveReader()) is trainable_reader(None) is None


@pytest.mark.parametrize(
    "wrong", [{"buckets": 0}, {"spread": -1.0}, {"steps": 0}, {"learning_rate": 0.0}]
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        TrainableReader(**wrong)
