"""The chunk-question factory: what the teacher writes, what the audit says, yield on real text."""

from __future__ import annotations

import dataclasses
import random
import re
from collections import Counter

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.data.cloze import FACT_METRICS, FACT_SOURCE, ClozeTeacher
from finemem_lib.data.faults import wrong_questions
from finemem_lib.data.memalpha import load_instances
from finemem_lib.data.planted import ATTRIBUTES, SYNONYMS, StreamSettings, planted_stream
from finemem_lib.data.questions import (
    AuditRow,
    audit_counts,
    make_chunk_questions,
    sampled_questions,
    verified,
)
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import ExtractiveReader, reader_for
from finemem_lib.reading import Reading
from finemem_lib.scoring import metric_for, score
from finemem_lib.text import count_tokens, words
from finemem_lib.trajectory import Chunk, Instance, Question, from_json, to_json
from tests.helpers.paths import SHARED_DATA

DATA = SHARED_DATA
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="../shared/data is not there")


def instance_of(*texts, source="squad"):
    chunks = tuple(Chunk(text, count_tokens(text)) for text in texts)
    return Instance("one", source, "AR", chunks, (Question("q-1", "Who?", ("Ana",), source),))


def written(text, source="squad", seed=0, **settings):
    return ClozeTeacher(**settings).write(text, 1, source, random.Random(seed))


class ListTeacher:
    """Writes (question, answer) pairs it was given, the same for every chunk."""

    name = settings = "list"

    def __init__(self, *pairs):
        self.pairs = pairs
        self.prepared = []

    def prepare(self, chunk_texts):
        self.prepared.append(list(chunk_texts))

    def write(self, chunk_text, step, data_source, rng):
        return [
            Question(f"any-{number}", text, (answer,), data_source, step, (step,))
            for number, (text, answer) in enumerate(self.pairs)
        ]


class WordReader:
    """Returns the first item that holds the word asked for; knows "Paris" without reading."""

    name = "word"
    settings = "word"

    def __init__(self):
        self.batches = []

    def query(self, question, data_source):
        return question

    def read(self, tasks):
        self.batches.append(tasks)
        return [self._read(task) for task in tasks]

    def _read(self, task):
        if "France" in task.question:
            return Reading("Paris", ())
        asked = words(task.question)[-1]
        for item_id, content in task.items:
            if asked in words(content):
                return Reading(content, (item_id,))
        return Reading("", ())


def reasons(audit):
    return {row.question: row.reason for row in audit}


def test_every_rejection_has_its_reason():
    instance = instance_of(
        "Mia lives in Rome. Ana sails to Oslo. Paris is in France. Leo owns a cat."
    )
    teacher = ListTeacher(
        ("Rome is where who lives?", "Rome"),
        ("What holds lives?", "Rome"),
        ("what holds LIVES", "Rome"),
        ("What holds nothing?", "Oslo"),
        ("What is the capital of France?", "Paris"),
        ("What holds sails?", "Oslo"),
        ("What holds owns?", "cat"),
    )
    made, audit = make_chunk_questions(instance, teacher, WordReader(), k=2)
    assert reasons(audit) == {
        "Rome is where who lives?": "answer in question",
        "What holds lives?": None,
        "what holds LIVES": "duplicate",
        "What holds nothing?": "not answered from chunk",
        "What is the capital of France?": "answered without memory",
        "What holds sails?": None,
        "What holds owns?": "not needed",
    }
    assert [row.accepted for row in audit] == [row.reason is None for row in audit]
    [kept] = made.chunk_questions
    assert [(q.question_id, q.text, q.step, q.evidence_steps) for q in kept] == [
        ("chunk-1-1", "What holds lives?", 1, (1,)),
        ("chunk-1-2", "What holds sails?", 1, (1,)),
    ]
    assert made.questions == instance.questions and made.chunks == instance.chunks
    assert audit[1].reply == "Mia lives in Rome." and audit[-1].reply is None
    assert from_json(AuditRow, to_json(audit[0])) == audit[0]


def test_same_answer_in_almost_the_same_words_is_a_duplicate():
    instance = instance_of("The old red mill near Rome burns.")
    pairs = [
        ("Where near does the old red mill that burns stand?", "Rome"),
        ("Near where stands the old red mill; it burns, stand?", "Rome"),
        ("Near where does it stand, the burns mill?", "Rome"),
    ]
    _, audit = make_chunk_questions(instance, ListTeacher(*pairs), WordReader())
    assert [row.reason == "duplicate" for row in audit] == [False, True, False]


def test_unscorable_candidates_are_said():
    instance = instance_of("Mia lives in Rome.", source="longmemeval_s*")
    _, audit = make_chunk_questions(instance, ListTeacher(("holds lives", "Rome")), WordReader())
    assert reasons(audit) == {"holds lives": "unscorable"}


def test_the_verifier_sees_one_chunk_and_no_answer():
    reader = WordReader()
    instance = instance_of("Mia lives in Rome.", "Ana sails to Oslo.")
    teacher = ListTeacher(("What holds lives?", "Rome"), ("What holds sails?", "Oslo"))
    made, audit = make_chunk_questions(instance, teacher, reader)
    assert [[q.answers for q in kept] for kept in made.chunk_questions] == [
        [("Rome",)],
        [("Oslo",)],
    ]
    assert [(row.step, row.reason) for row in audit] == [
        (1, None),
        (1, "not answered from chunk"),
        (2, "not answered from chunk"),
        (2, None),
    ]
    on_chunk, on_nothing = reader.batches  # one batch for all chunks each
    assert len(on_chunk) == 4 and len(on_nothing) == 2
    assert all("Ana" not in content for task in on_chunk[:2] for _, content in task.items)
    assert all(not task.items for task in on_nothing)


def test_more_candidates_are_verified_only_where_needed():
    reader = WordReader()
    instance = instance_of("Mia lives in Rome.")
    good, bad = ("What holds lives?", "Rome"), [(f"Does {n} hold {n}?", "Oslo") for n in "xyz"]
    _, audit = make_chunk_questions(instance, ListTeacher(*bad, good), reader, k=2)
    assert [row.reason for row in audit] == ["not answered from chunk"] * 3 + [None]
    assert [len(batch) for batch in reader.batches] == [2, 2, 1]
    _, audit = make_chunk_questions(instance, ListTeacher(good, *bad), reader, k=1)
    assert [row.reason for row in audit] == [None] + ["not needed"] * 3


def test_audit_counts_name_chunks_without_candidates():
    instance = instance_of("Mia lives in Rome.", "???")
    made, audit = make_chunk_questions(instance, ClozeTeacher(), ExtractiveReader())
    first, second = audit_counts(audit, len(instance.chunks))
    assert first["accepted"] == len(made.chunk_questions[0]) > 0
    assert first["candidates"] == sum(row.step == 1 for row in audit)
    assert second == dict.fromkeys(second, 0) | {"step": 2}
    assert made.chunk_questions[1] == ()


def test_a_verifier_that_fails_is_no_verdict_on_the_question():
    class FailingReader(WordReader):
        def read(self, tasks):
            return [
                Reading(None, None) if "sails" in task.question else self._read(task)
                for task in tasks
            ]

    teacher = ListTeacher(("What holds sails?", "Oslo"), ("What holds lives?", "Rome"))
    instance = instance_of("Mia lives in Rome. Ana sails to Oslo.")
    _, audit = make_chunk_questions(instance, teacher, FailingReader())
    assert [row.reason for row in audit] == ["verifier failed", None]
    assert teacher.prepared == [[instance.chunks[0].text]]  # all chunks at once, before any


def test_k_out_of_range():
    with pytest.raises(ValueError, match="k is 0"):
        make_chunk_questions(instance_of("a"), ClozeTeacher(), WordReader(), k=0)
    with pytest.raises(ValueError, match="max_words is 0"):
        ClozeTeacher(max_words=0)


@pytest.mark.parametrize(
    ("sentence", "question", "answer"),
    [
        (
            "The Cane Belt Railroad was chartered in Texas in 1898.",
            "In what year was the Cane Belt Railroad chartered in Texas?",
            "1898",
        ),
        (
            "In 1902, the Grand Hotel was sold to a bank.",
            "In what year was the Grand Hotel sold to a bank?",
            "1902",
        ),
        ("Cape Horn had been sighted in 1616.", "In what year had Cape Horn been sighted?", "1616"),
        (
            "The film Omega was released on 9 August 1999.",
            "On what date was the film Omega released?",
            "9 August 1999",
        ),
        (
            "The Vandals were led by Dennis Erickson.",
            "By whom or what were the Vandals led?",
            "Dennis Erickson",
        ),
        ("The capital of Peru is Lima.", "Who or what is the capital of Peru?", "Lima"),
        (
            "Geneva was the adopted home of Calvin.",
            "Who or what was the adopted home of Calvin?",
            "Geneva",
        ),
        ("Mia lives in Rome.", "Fill the blank: Mia lives in ____.", "Rome"),
        ("Ida studies law.", "Fill the blank: Ida studies ____.", "law"),
        (
            "The fleet of Otto counted 1,250 ships.",
            "Fill the blank: The fleet of Otto counted ____ ships.",
            "1,250",
        ),
        (
            "Anna, who was ill, moved in 1898.",
            "Fill the blank: Anna, who was ill, moved in ____.",
            "1898",
        ),
    ],
)
def test_question_forms(sentence, question, answer):
    assert (question, (answer,)) in [(q.text, q.answers) for q in written(sentence)]


@pytest.mark.parametrize(
    "sentence",
    [
        "Perhaps Mia lives in Rome.",
        "Does Mia live in Rome?",
        "Thanks, Mia!",
        "The film was released in 1999.",
        "He left.",
        "Rome",
        "...",
        "日本語の文です。",
    ],
)
def test_sentences_that_give_no_fact(sentence):
    assert written(sentence) == []


def test_sentences_that_lean_on_context_come_last():
    text = "He moved to Oslo with Ben in 1999. Yesterday Eva painted Delhi. Mia lives in Rome."
    for seed in range(5):
        first, *others = written(text, seed=seed)
        assert first.answers == ("Rome",) and others


def test_wrapper_around_prose_is_skipped():
    text = (
        "[Dialogue between User and Assistant on 2024-01-02 00:00]\n"
        "<User>Please keep these facts about Wonderland from Alice:\n"
        "Title: Cane Belt Railroad\nThe Cane Belt Railroad met Eagle Lake in 1898.\n"
        "<Assistant>Understood, I told Bob Builder about it."
    )
    asked = written(text)
    assert {q.answers[0] for q in asked} <= {"Cane Belt Railroad", "Eagle Lake", "1898"}
    assert not any(re.search("Alice|Bob|2024|said", q.text) for q in asked)


def test_book_wrapper_is_skipped():
    text = (
        "[Event happened on 2024-01-02 The user is reading a book]\n"
        "<User> The Captain of Sale was Willy Winkelmann.\n\n"
        "<System> Keep what Alice read on 2024-01-02."
    )
    asked = {q.answers[0]: q.text for q in written(text, "booksum")}
    assert asked["Willy Winkelmann"] == "Who or what was the Captain of Sale?"
    assert not any(re.search("said|Alice", question) for question in asked.values())


def test_dialogue_names_the_speaker():
    text = (
        "[Dialogue at timestamp 2023/05/08 (Mon) 13:56]\n"
        "<Caroline>Hey Mel! I went to the Boston marathon.\nI met Joan there.\n"
        "<Mel>Great to see that, Caroline!\nOur trip to Lake Como was long."
    )
    asked = {q.answers[0]: q.text for q in written(text, "locomo")}
    assert asked["Boston"] == ("Fill the blank in what Caroline said: I went to the ____ marathon.")
    assert "what Mel said" in asked["Lake Como"]
    assert not {"Mel", "Caroline"} & set(asked)


def test_whom_one_talks_to_is_no_fact():
    line = "[Dialogue at timestamp now]\n<Eva>The trip to Lake Como was long, Zed!"
    assert [q.answers[0] for q in written(line, "locomo")] == ["Lake Como"]


def test_transcripts_with_colons_name_the_speaker():
    text = "Project Manager: We meet Novartis on Monday.\nUser Interface: Yes.\n"
    assert all(
        "what Project Manager said" in q.text for q in written(text + text, "booksum")
    ) and written(text + text, "booksum")


def test_labelled_examples_are_asked_in_the_form_of_their_source():
    text = "Sentence: good day\nLabel: 3\n\nSample: bye\n\nLabels: 4"
    asked = {q.text: q.answers for q in written(text, "icl_nlu_8296shot_balance")}
    form = "Sentence: {}\nWhat are the labels for the above sentence?"
    assert asked == {form.format("good day"): ("3",), form.format("bye"): ("4",)}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hotpotqa", "hotpotqa"),
        ("planted", "planted"),
        ("locomo", "locomo"),
        ("booksum", FACT_SOURCE),
        ("lme_train", FACT_SOURCE),
        ("infbench_reference", FACT_SOURCE),
        ("icl_nlu_8296shot_balance", FACT_SOURCE),
    ],
)
def test_questions_can_be_scored_without_a_judge(source, expected):
    asked = written("Mia lives in Rome.", source)
    assert asked and {q.data_source for q in asked} == {expected}
    assert metric_for(expected) in FACT_METRICS


def test_candidates_are_bounded():
    text = " ".join(f"Mia met Otto{n} in {1900 + n}." for n in range(60))
    assert len(written(text, max_candidates=7)) == 7


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        st.text(st.characters(exclude_categories=["Cs"])),
        st.lists(
            st.sampled_from(
                "The Mia In in 1898 , . ! ? was were by ____ <Ana> [x] \n "
                '" ( Mr. and which Label: Oslo '
                "Sentence: 3 perhaps ' ** — it built lives".split(" ")
            ),
            max_size=40,
        ).map(" ".join),
    )
)
def test_any_text_gives_sound_candidates(text):
    for source in ("squad", "booksum", "pubmed-rct"):
        for question in ClozeTeacher().write(text, 4, source, random.Random(0)):
            [answer] = question.answers
            assert answer in text and answer.strip() and question.text.strip()
            assert (question.step, question.evidence_steps) == (4, (4,))
    made, audit = make_chunk_questions(instance_of(text), ClozeTeacher(), ExtractiveReader())
    assert len(made.chunk_questions) == 1 and len(made.chunk_questions[0]) <= 5
    for question in made.chunk_questions[0]:
        assert score(question.text, question.answers, question.data_source) == 0.0


def test_same_seed_same_questions():
    instance = planted_stream(3)
    first, audit = make_chunk_questions(instance, ClozeTeacher(), ExtractiveReader(), k=2, seed=5)
    again = make_chunk_questions(instance, ClozeTeacher(), ExtractiveReader(), k=2, seed=5)
    assert again == (first, audit)
    others = [
        make_chunk_questions(instance, ClozeTeacher(), ExtractiveReader(), k=2, seed=seed)[0]
        for seed in range(6, 9)
    ]
    assert any(other != first for other in others)


def made_from(instances, reader):
    return [make_chunk_questions(instance, ClozeTeacher(), reader) for instance in instances]


def mean_kept(made):
    counts = [len(kept) for instance, _ in made for kept in instance.chunk_questions]
    return sum(counts) / len(counts)


def test_planted_chunks_ask_for_their_facts():
    streams = [planted_stream(seed) for seed in range(20)]
    made = made_from(streams, ExtractiveReader(synonyms=SYNONYMS))
    assert mean_kept(made) >= 3
    asked = Counter()
    for instance, _ in made:
        for facts, kept in zip(instance.metadata["facts"], instance.chunk_questions, strict=True):
            for fact in facts:
                asked[
                    any(
                        set(words(fact["sentence"])) - set(words(question.text))
                        == set(words(question.answers[0]))
                        for question in kept
                    )
                ] += 1
    assert asked[True] / asked.total() > 0.9


@needs_data
@pytest.mark.parametrize("answer", ["sentence", "span"])
def test_yield_on_squad(answer):
    loaded = load_instances(DATA / "squad.jsonl")
    made = made_from(loaded.instances, ExtractiveReader(answer=answer))
    assert mean_kept(made) >= 3
    for instance, audit in made:
        counts = audit_counts(audit, len(instance.chunks))
        assert [row["accepted"] for row in counts] == list(map(len, instance.chunk_questions))
        assert sum(row["candidates"] for row in counts) == len(audit)
        for chunk, kept in zip(instance.chunks, instance.chunk_questions, strict=True):
            assert all(question.answers[0] in chunk.text for question in kept)


@needs_data
@pytest.mark.parametrize("name", ["locomo", "squality", "qmsum", "clinc150", "csabstruct"])
def test_yield_on_other_text(name):
    loaded = load_instances(DATA / f"{name}.jsonl", limit=1)
    assert mean_kept(made_from(loaded.instances, ExtractiveReader())) >= 3


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 1), st.integers(0, 99))
def test_sampled_questions_are_a_share_in_order(number, share, seed):
    asked = tuple(Question(f"q-{n}", f"Who {n}?", ("Ana",), "squad") for n in range(number))
    instance = dataclasses.replace(instance_of("Ana sails."), questions=asked)
    sampled = sampled_questions(instance, share, seed)
    assert len(sampled.questions) == max(1, round(share * number))
    places = [asked.index(question) for question in sampled.questions]
    assert places == sorted(set(places))
    assert sampled == sampled_questions(instance, share, seed)
    assert dataclasses.replace(sampled, questions=asked) == instance


def test_another_seed_or_instance_is_asked_other_questions():
    streams = [planted_stream(seed, StreamSettings(num_chunks=12)) for seed in (1, 2)]
    asked = {
        tuple(q.question_id for q in sampled_questions(stream, 0.5, seed).questions)
        for stream in streams
        for seed in range(4)
    }
    assert len(asked) > 4


@pytest.mark.parametrize("share", [0, -0.5, 1.01, float("nan")])
def test_share_out_of_range(share):
    with pytest.raises(ValueError, match="share is .* expected more than 0 and at most 1"):
        sampled_questions(planted_stream(1), share, seed=0)


def test_all_rollouts_of_an_instance_are_asked_the_sampled_questions():
    streams = [planted_stream(seed, StreamSettings(num_chunks=8)) for seed in (1, 2)]
    settings_ = RolloutSettings(num_generations=3, question_fraction=0.2)
    played = play(streams, make_manager("insert-all"), settings_, reader_for(streams), seed=7)
    for stream, group in zip(streams, played, strict=True):
        expected = sampled_questions(stream, 0.2, seed=7).questions
        assert 0 < len(expected) < len(stream.questions)
        for one in group:
            assert tuple(answered.question for answered in one.questions) == expected


def chunk_questions_of(instance):
    return [question for asked in instance.chunk_questions for question in asked]


SHARES = st.sampled_from((0.0, 0.1, 0.25, 0.5, 1.0)) | st.floats(0, 1)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), SHARES, SHARES, st.integers(0, 99))
def test_wrong_questions_are_the_share_asked_for_and_truly_wrong(stream, share, other, seed):
    instance = planted_stream(stream, StreamSettings(num_chunks=3))
    share, more = sorted((share, other))
    right = chunk_questions_of(instance)
    wrong, more_wrong = (
        chunk_questions_of(wrong_questions(instance, one, seed)) for one in (share, more)
    )
    changed = [place for place, question in enumerate(wrong) if question != right[place]]
    assert len(changed) == round(share * len(right))
    for place in changed:
        truth, one = right[place], wrong[place]
        [attribute] = [a for a in ATTRIBUTES.values() if truth.answers[0] in a.values]
        assert one.answers[0] in attribute.values
        assert score(truth.answers[0], one.answers, one.data_source) == 0
        assert one == dataclasses.replace(truth, answers=one.answers, evidence_steps=None)
        assert more_wrong[place] == one  # a greater share keeps what is wrong
    corrupted = wrong_questions(instance, share, seed)
    assert corrupted.questions == instance.questions
    assert from_json(Instance, to_json(corrupted)) == corrupted


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), SHARES)
def test_the_verifier_drops_the_wrong_questions_and_no_other(stream, share):
    instance = planted_stream(stream, StreamSettings(num_chunks=3))
    reader = ExtractiveReader(synonyms=SYNONYMS)
    assert verified(instance, reader) == instance
    wrong = wrong_questions(instance, share, seed=1)
    assert [set(asked) for asked in verified(wrong, reader).chunk_questions] == [
        {*asked} & {*others}
        for asked, others in zip(instance.chunk_questions, wrong.chunk_questions, strict=True)
    ]


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), SHARES, SHARES)
def test_a_lenient_verifier_keeps_more_up_to_all(stream, one, other):
    reader = ExtractiveReader(synonyms=SYNONYMS)
    wrong = wrong_questions(planted_stream(stream), 0.5, seed=1)
    assert verified(wrong, reader, threshold=0.0) == wrong
    lenient, strict = (
        {q for asked in verified(wrong, reader, threshold, seed=2).chunk_questions for q in asked}
        for threshold in sorted((one, other))
    )
    right = {question for asked in verified(wrong, reader).chunk_questions for question in asked}
    assert right <= strict <= lenient


def test_the_threshold_is_the_share_of_unanswered_questions_that_are_dropped():
    reader = ExtractiveReader(synonyms=SYNONYMS)
    streams = [wrong_questions(planted_stream(number), 1.0, seed=1) for number in range(60)]
    kept = asked = 0
    for stream in streams:
        asked += sum(map(len, stream.chunk_questions))
        kept += sum(map(len, verified(stream, reader, 0.75).chunk_questions))
    assert kept / asked == pytest.approx(0.25, abs=0.06), "three standard errors"
    with pytest.raises(ValueError, match="threshold is 1.5, expected a number from 0 to 1"):
        verified(streams[0], reader, 1.5)


def test_the_verifier_reads_nothing_but_the_chunk():
    """Both chunks hold the answer to the first question, neither that to the second."""
    instance = dataclasses.replace(
        instance_of("Mia lives in Rome.", "Ana sails. Mia lives in Rome."),
        chunk_questions=(
            (
                Question("a", "Where does Mia live?", ("Rome",), "squad", 1),
                Question("b", "Who sails?", ("Ana",), "squad", 1),
            ),
            (Question("c", "Who sails?", ("Ana",), "squad", 2),),
        ),
    )
    kept = verified(instance, ExtractiveReader(synonyms=SYNONYMS))
    assert [[q.question_id for q in asked] for asked in kept.chunk_questions] == [["a"], ["c"]]
    bare = instance_of("Mia lives in Rome.")
    assert verified(bare, ExtractiveReader()) is bare
    assert wrong_questions(bare, 1.0, seed=0) is bare


def test_wrong_answers_elsewhere_have_the_form_of_the_right_one():
    answers = ("May 1, 1990", "12", "Rome", "cats", "June 3, 2001", "700", "Oslo", "dogs")
    instance = dataclasses.replace(
        instance_of("One chunk."),
        questions=(),
        chunk_questions=(
            tuple(
                Question(f"chunk-1-{n}", f"Question {n}?", (answer,), "squad", 1, (1,))
                for n, answer in enumerate(answers)
            ),
        ),
    )
    for seed in range(5):
        wrong = wrong_questions(instance, 1.0, seed)
        found = tuple(question.answers[0] for question in chunk_questions_of(wrong))
        assert found == answers[4:] + answers[:4]  # the only other one of its form


def test_wrong_questions_say_what_they_need():
    instance = planted_stream(1)
    with pytest.raises(ValueError, match="share is 1.5, expected a number from 0 to 1"):
        wrong_questions(instance, 1.5, seed=0)
    alone = dataclasses.replace(
        instance_of("Ana sails."),
        chunk_questions=((Question("c", "Who sails?", ("Ana",), "squad", 1),),),
    )
    with pytest.raises(ValueError, match="at least two different answers"):
        wrong_questions(alone, 1.0, seed=0)
