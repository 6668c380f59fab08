"""Leaks: each kind is found where it is and nowhere else."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.build.builders import LEAD_INS, REPLIES
from finemem_lib.data.leaks import leaks
from finemem_lib.data.memalpha import dialogue
from finemem_lib.data.planted import planted_stream
from finemem_lib.trajectory import Chunk, Instance, Question

ASKED = "Sentence: {}\nWhat are the labels for the above sentence?"


def instance_of(*texts, name="one", source="squad", asked=()):
    questions = tuple(
        Question(f"q-{number}", text, (answer,), source)
        for number, (text, answer) in enumerate(asked)
    )
    chunks = tuple(Chunk(text, len(text.split())) for text in texts)
    return Instance(name, source, "AR", chunks, questions)


def kinds(found):
    return [(leak.kind, leak.instance_id, leak.step) for leak in found]


def test_an_answer_in_its_question():
    instance = instance_of("Ana sails.", asked=[("Who is Ana?", "Ana"), ("Who sails?", "Ana")])
    chunk_question = Question("c", "Does Oslo sail?", ("Oslo",), "squad", 1, (1,))
    instance = dataclasses.replace(instance, chunk_questions=((chunk_question,),))
    found = leaks([instance])
    assert kinds(found) == [("answer in question", "one", None), ("answer in question", "one", 1)]
    assert found[0].text == "Who is Ana?"


def test_an_asked_example_that_is_shown():
    shown = "Sentence: good day\nLabel: 3\n\nSentence: good bye\nLabel: 4"
    instance = instance_of(
        shown,
        source="icl_nlu_8296shot_balance",
        asked=[(ASKED.format("good day"), "3"), (ASKED.format("hello"), "3")],
    )
    assert kinds(leaks([instance])) == [("asked example shown", "one", None)]
    from_chunk = dataclasses.replace(instance.questions[0], step=1)
    instance = dataclasses.replace(instance, questions=(), chunk_questions=((from_chunk,),))
    assert leaks([instance]) == ()


def test_a_question_of_training():
    training = instance_of("Something else.", name="train", asked=[("Who  sails?", "ana")])
    test = instance_of("Ana sails.", asked=[("who sails", "Ana"), ("Who sails?", "Leo")])
    assert kinds(leaks([test], [training])) == [("question in both", "one", None)]


PIECES = [f"The {word} ship left the {word} harbour." for word in ("red", "old", "big", "low")]


@pytest.mark.parametrize(("common", "share"), [(0, None), (1, None), (2, 0.5), (4, 1.0)])
def test_text_of_training_under_another_wrapper(common, share):
    training = instance_of(dialogue(3, LEAD_INS[0], " ".join(PIECES), REPLIES[0]), name="train")
    fresh = [f"The {word} train left the {word} station." for word in ("red", "old", "big", "low")]
    text = " ".join(PIECES[:common] + fresh[common:])
    test = instance_of("Ana sails.", dialogue(0, LEAD_INS[0], text, REPLIES[0]))
    found = leaks([test], [training])
    assert kinds(found) == ([("text in both", "one", 2)] if share else [])
    assert [leak.share for leak in found] == ([share] if share else [])


def test_examples_of_training_count_whatever_their_label():
    shown = "Sentence: good day to you\nLabel: 3\n\nSentence: so good bye then\nLabel: 4"
    training = instance_of(shown, name="train", source="icl_x")
    test = instance_of(shown.replace("Label: 3", "Label: 7"), source="icl_x")
    assert kinds(leaks([test], [training])) == [("text in both", "one", 1)]


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 10**6))
def test_an_instance_leaks_all_of_itself(one, other):
    stream = planted_stream(one)
    found = leaks([stream], [stream])
    in_both = [leak for leak in found if leak.kind == "question in both"]
    chunk_questions = sum(map(len, stream.chunk_questions))
    assert len(in_both) == len(stream.questions) + chunk_questions
    assert {leak.share for leak in found if leak.kind == "text in both"} == {1.0}
    assert not [leak for leak in leaks([stream]) if leak.kind != "answer in question"]
    assert all(0.5 <= leak.share <= 1 for leak in leaks([stream], [planted_stream(other)]))
