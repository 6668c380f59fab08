"""Excerpts of long instances: cuts, questions kept, distractors."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from finemem_lib.data.excerpts import ExcerptSettings, excerpts, pieces
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Question

SENTENCES = [f"The {word} stands in room {number}." for number, word in enumerate("abcdefgh")]


def long(name="long", sentences=SENTENCES, **question):
    texts = (" ".join(sentences[:4]), " ".join(sentences[4:]))
    asked = Question("q-1", "Where is g?", ("room 6",), "squad", **question)
    chunks = tuple(Chunk(f"[Dialogue on 2024-01-01]\n{text}", 20) for text in texts)
    return Instance(name, "squad", "AR", chunks, (asked,))


@given(st.lists(st.sampled_from(SENTENCES), min_size=1, max_size=12), st.integers(1, 40))
def test_pieces_hold_every_sentence_in_order_and_keep_to_the_limit(sentences, limit):
    found = pieces("\n".join(sentences), limit)
    assert "\n".join(found).split("\n") == sentences
    assert all(count_tokens(one) <= limit or "\n" not in one for one in found)


def test_excerpt_keeps_a_question_where_its_answer_stands_and_says_at_which_step():
    size = count_tokens(SENTENCES[0])
    shape = ExcerptSettings(chunk_tokens=2 * size, chunks=2)
    first, second = excerpts([long()], ExcerptSettings(2 * size, 2, min_questions=1)), None
    (second,) = first
    assert second.instance_id == "long-1"
    assert [chunk.text for chunk in second.chunks] == [
        "\n".join(SENTENCES[4:6]),
        "\n".join(SENTENCES[6:8]),
    ]
    assert second.questions[0].evidence_steps == (2,)
    assert excerpts([long(evidence_steps=(1,))], shape) == [], "the evidence is another chunk"


def test_an_answer_is_found_as_whole_words():
    elsewhere = [sentence.replace("room 6", "room 60") for sentence in SENTENCES]
    assert excerpts([long(sentences=elsewhere)], ExcerptSettings(1000, 2)) == []


def test_labelled_examples_are_asked_for_by_label():
    text = "Sentence: good day\nLabel: 3\n\nSentence: bye\nLabel: 4"
    questions = tuple(
        Question(name, "Sentence: hi\nWhat are the labels?", (name,), "icl_clinic150")
        for name in ("3", "5")
    )
    one = Instance("examples", "icl_clinic150", "TTL", (Chunk(text, 9),), questions)
    (found,) = excerpts([one], ExcerptSettings(chunks=1))
    assert [question.question_id for question in found.questions] == ["3"]


def test_distractors_stand_between_and_are_named():
    meeting = long("meeting", [f"Mister {number} agrees." for number in range(8)])
    shape = ExcerptSettings(chunk_tokens=1000, chunks=5, distractors=3)
    several = long("meeting 2", [f"Madam {number} agrees." for number in range(8)])
    (found,) = excerpts([long()], shape, others=[meeting, several, long("x", ["One."] * 8)], seed=1)
    named = found.metadata["distractor_steps"]
    own = [step for step in range(1, 6) if step not in named]
    assert len(named) == 3
    assert all("room" not in found.chunks[step - 1].text for step in named)
    assert [found.chunks[step - 1].text for step in own] == [
        "\n".join(SENTENCES[:4]),
        "\n".join(SENTENCES[4:]),
    ]
    assert found.questions[0].evidence_steps == (own[1],)
    assert excerpts(
        [long()], shape, others=[meeting, several, long("x", ["One."] * 8)], seed=1
    ) == [found]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunks": 0}, "chunks is 0, expected at least 1"),
        ({"chunks": 3, "distractors": 3}, "distractors is 3, expected at least 0 and less than"),
    ],
)
def test_settings_out_of_range_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExcerptSettings(**settings)


@pytest.mark.parametrize("sentences", [[], ["One."] * 8])
def test_distractors_from_too_little_text_are_refused(sentences):
    others = [long("short", sentences)] if sentences else []
    with pytest.raises(ValueError, match=r"have \d pieces, expected at least 5; name more data"):
        excerpts([long()], ExcerptSettings(chunks=5, distractors=3), others=others)
