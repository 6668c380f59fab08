from __future__ import annotations

import pytest

from finemem_lib.data.own_texts import make_instance
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import chunk_rewards, outcome_reward

CHUNKS = ["Mia lives in Rome.", "Leo owns two cats."]
QUESTIONS = {"Where does Mia live?": "Rome", "Which animals does Leo own?": ("dogs", "cats")}


def test_own_texts_are_played_and_scored_like_any_instance() -> None:
    mine = make_instance(CHUNKS, QUESTIONS, [{"Where does Mia live?": "Oslo"}, {}])
    settings = RolloutSettings(num_generations=1)
    [[one]] = play([mine], make_manager("insert-all"), settings, reader_for([mine]), seed=0)
    assert [item.content for item in one.final_memory()] == CHUNKS
    assert outcome_reward(one) == 1.0 and chunk_rewards(one) == [0.0, None]


def test_questions_and_chunks_carry_what_the_library_needs() -> None:
    mine = make_instance(
        ["a\ud800b", *CHUNKS], QUESTIONS, [{}, {}, QUESTIONS], instance_id="x", data_source="squad"
    )
    assert mine.chunks[0].text == "a\ufffdb" and mine.chunks[1].tokens == 5
    everything = [*mine.questions, *mine.chunk_questions[2]]
    assert len({question.question_id for question in everything}) == 4
    assert {question.data_source for question in everything} == {"squad"}
    assert [question.step for question in everything] == [None, None, 3, 3]
    assert [question.answers for question in mine.questions] == [("Rome",), ("dogs", "cats")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], {}), "expected a list of at least one text"),
        (("Mia lives in Rome.", {}), "put a single text into a list"),
        ((CHUNKS, QUESTIONS, [{}]), "1 mappings of chunk questions for 2 chunks"),
    ],
)
def test_texts_that_make_no_instance_are_refused(arguments: tuple, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_instance(*arguments)


def test_a_data_source_without_a_metric_is_refused() -> None:
    with pytest.raises(ValueError, match="no metric for data source 'mine'"):
        make_instance(CHUNKS, QUESTIONS, data_source="mine")
