"""The extractive reader: questions, labelled examples, summaries, the planted stream."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.data import planted
from finemem_lib.data.sentences import units
from finemem_lib.readers.extractive import MAX_SENTENCE_WORDS, ExtractiveReader
from finemem_lib.reading import Inquiry, Reading, ReadingTask, answer_questions
from finemem_lib.scoring import score
from finemem_lib.trajectory import Instance
from tests.helpers.reading import remembered, task

TTL = "icl_nlu_8296shot_balance"
LABEL_QUESTION = "Sentence: {}\nWhat are the labels for the above sentence?"


def example(sentence: str, label: int | str) -> str:
    return f"Sentence: {sentence}\nLabel: {label}"


def read(reader: ExtractiveReader, one: ReadingTask) -> Reading:
    [reading] = reader.read([one])
    return reading


# ---------------------------------------------------------------- questions


PARAGRAPH = (
    "The college opened in 1857. It was founded by Anna Moran, a printer. "
    "Its library in Galway holds 40,000 books. The printers of Oslo came later."
)


@pytest.mark.parametrize(
    ("question", "sentence", "span"),
    [
        ("When did the college open?", "The college opened in 1857.", "1857"),
        ("Who founded it?", "It was founded by Anna Moran, a printer.", "Anna Moran"),
        (
            "How many books does the library hold?",
            "Its library in Galway holds 40,000 books.",
            "40,000",
        ),
        ("Where is its library?", "Its library in Galway holds 40,000 books.", "Galway"),
        ("In which city is the library?", "Its library in Galway holds 40,000 books.", "Galway"),
    ],
)
def test_sentence_and_typed_span(question: str, sentence: str, span: str) -> None:
    one = task(question, "Nothing of the kind.", PARAGRAPH)
    assert read(ExtractiveReader(), one) == Reading(sentence, ("i1",))
    assert read(ExtractiveReader(answer="span"), one) == Reading(span, ("i1",))


def test_a_span_without_a_type_is_what_the_question_does_not_say() -> None:
    reader = ExtractiveReader(planted.SYNONYMS, answer="span")
    one = task("What does Mia study?", "Mia lectures on law", data_source="planted")
    assert read(reader, one).answer == "law"
    long = "The treaty that the kings of the north signed ended a war of many years."
    assert read(reader, task("What ended the war?", long)).answer == long


def test_the_sentence_before_gives_context() -> None:
    contents = ("Robots fear water. It was built by Ada Oduya.", "Huts were built by Bo Li.")
    reading = read(ExtractiveReader(), task("Who built the robot?", *contents))
    assert reading == Reading("It was built by Ada Oduya.", ("i0",))


def test_a_span_of_the_type_asked_for_is_favoured() -> None:
    content = "The college will open in 1857. The college will open again."
    assert read(ExtractiveReader(), task("When will the college open?", content)).answer == (
        "The college will open in 1857."
    )
    assert read(ExtractiveReader(), task("Will the college open?", content)).answer == (
        "The college will open again."
    )


def test_among_equals_the_newest_wins_and_without_ages_the_first() -> None:
    contents = ("Mia lives in Rome", "Mia moved to Oslo", "Mia settled near Lima")
    reader = ExtractiveReader(planted.SYNONYMS)

    def answer(written: tuple[int, ...]) -> str:
        question = "Where does Mia live?"
        return read(
            reader, task(question, *contents, data_source="planted", written=written)
        ).answer

    assert answer((0, 2, 1)) == "Mia moved to Oslo"
    assert answer((2, 1, 0)) == "Mia lives in Rome"
    assert answer(()) == "Mia lives in Rome"


def test_text_appended_to_an_item_is_newer() -> None:
    one = task(
        "Where does Mia live?", "Mia lives in Rome. Mia moved to Oslo.", data_source="planted"
    )
    assert read(ExtractiveReader(planted.SYNONYMS), one).answer == "Mia moved to Oslo."


@pytest.mark.parametrize(
    "content",
    [
        "Yesterday Mia visited Rome.",  # the person without the verb
        "Leo lives in Rome.",  # the verb without the person
        "Mia saw Oslo. Leo lives in Rome.",  # both, but in two sentences
        "Mia owns cats.",  # another verb of the stream
        "",
    ],
)
def test_abstains_where_person_and_verb_do_not_meet(content: str) -> None:
    one = task("Where does Mia live?", content, data_source="planted")
    assert read(ExtractiveReader(planted.SYNONYMS), one) == Reading("", ())


def test_a_cue_is_not_confused_with_a_name_of_the_same_stem() -> None:
    reader = ExtractiveReader(planted.SYNONYMS)
    for content in ("Once Liv painted Rome.", "Joy lives in Berlin."):
        one = task("Where does Liv live?", content, data_source="planted")
        assert read(reader, one) == Reading("", ())


@pytest.mark.parametrize("items", [(), ("Buses left for Rome.",)])
def test_abstains_without_any_support(items: tuple[str, ...]) -> None:
    assert read(ExtractiveReader(), task("Who won the cup?", *items)) == Reading("", ())


def test_min_support_decides_when_little_of_the_question_is_covered() -> None:
    one = task("Who painted the ceiling of the northern chapel?", "The chapel is old.", "Hens.")
    assert read(ExtractiveReader(min_support=0.5), one).answer == ""
    assert read(ExtractiveReader(min_support=0.0), one).answer == "The chapel is old."


def test_an_answer_is_never_longer_than_a_piece() -> None:
    endless = "Mia lives in " + "Rome Oslo Lima " * 500
    reading = read(ExtractiveReader(), task("Where does Mia live?", endless))
    assert 0 < len(reading.answer.split()) <= MAX_SENTENCE_WORDS


@pytest.mark.parametrize(
    "setting", [{"answer": "word"}, {"min_support": 1.5}, {"summary_words": 0}]
)
def test_settings_out_of_range_are_refused(setting: dict) -> None:
    with pytest.raises(ValueError, match=f"ExtractiveReader: {next(iter(setting))} is .* expected"):
        ExtractiveReader(**setting)


def test_settings_identify_the_reader() -> None:
    readers = [
        ExtractiveReader(),
        ExtractiveReader(answer="span"),
        ExtractiveReader(min_support=0.1),
        ExtractiveReader(summary_words=5),
        ExtractiveReader({"live": ["moved"]}),
    ]
    assert len({reader.settings for reader in readers}) == len(readers)
    assert ExtractiveReader().settings == ExtractiveReader().settings


def test_a_task_has_no_place_for_the_accepted_answers() -> None:
    names = [field.name for field in dataclasses.fields(ReadingTask)]
    assert names == ["question", "data_source", "items", "written"]


# ---------------------------------------------------------------- labelled examples


def test_query_keeps_what_retrieval_should_match() -> None:
    reader = ExtractiveReader(planted.SYNONYMS)
    assert reader.query(LABEL_QUESTION.format("book a flight"), TTL) == "book a flight"
    medical = (
        "Sentence: We measured weight .\n\nWhat are the labels for the above medical "
        "abstract sentence?"
    )
    assert reader.query(medical, "pubmed-rct") == "We measured weight ."
    assert reader.query("book a flight", TTL) == "book a flight"
    assert reader.query("Where does Mia live?", "planted") == (
        "Where does Mia live? lives moved settled"
    )
    assert ExtractiveReader().query("Where is it?", "squad") == "Where is it?"


def test_label_of_the_nearest_example() -> None:
    reading = read(
        ExtractiveReader(),
        task(
            LABEL_QUESTION.format("book a cheap flight"),
            example("order a pizza", 4) + "\n\n" + example("book me a flight", 7),
            example("what is the weather", 1),
            data_source=TTL,
        ),
    )
    assert reading == Reading(r"\boxed{7}", ("i0",))


def test_agreeing_examples_outvote_a_nearer_one() -> None:
    one = task(
        LABEL_QUESTION.format("turn the hall light off"),
        example("turn the hall light blue", 1),
        example("switch the hall light off", 2),
        example("hall light off please", 2),
        example("sing a song", 3),
        data_source=TTL,
    )
    assert read(ExtractiveReader(), one) == Reading(r"\boxed{2}", ("i1", "i2"))


def test_retrieval_order_counts_in_the_vote() -> None:
    """The retriever weighed the words over the whole memory, the reader sees a few items."""
    contents = (example("turn off the lamp", 1), example("turn off the light now", 2))
    question = LABEL_QUESTION.format("turn off the light")

    def label(*ordered: str) -> str:
        return read(ExtractiveReader(), task(question, *ordered, data_source=TTL)).answer

    assert label(*contents) == r"\boxed{1}"
    assert label(*reversed(contents)) == r"\boxed{2}"
    assert label("\n\n".join(contents)) == r"\boxed{2}"


def test_abstains_without_labelled_examples() -> None:
    one = task(LABEL_QUESTION.format("book a flight"), "Flights are label 7.", data_source=TTL)
    assert read(ExtractiveReader(), one) == Reading("", ())


# ---------------------------------------------------------------- summaries


def test_summary_shares_the_budget_and_follows_the_reading_order() -> None:
    reader = ExtractiveReader(summary_words=7)
    one = task(
        "Summarize the book",
        "a1 a2 a3 a4 a5",
        "b1",
        "c1 c2 c3 c4 c5",
        data_source="booksum",
        written=(2, 0, 1),
    )
    assert read(reader, one) == Reading("b1\nc1 c2 c3\na1 a2 a3", ("i1", "i2", "i0"))


def test_summary_keeps_everything_that_fits() -> None:
    one = task("Summarize", "a b c", "d", data_source="infbench_sum_eng_shots2")
    assert read(ExtractiveReader(summary_words=4), one).answer == "a b c\nd"
    assert read(ExtractiveReader(), task("Summarize", data_source="booksum")) == Reading("", ())


# ---------------------------------------------------------------- any input


@settings(max_examples=200)
@given(
    st.lists(
        st.text() | st.sampled_from([PARAGRAPH, example("a b", 1), "Mia lives in Rome"]), max_size=4
    ),
    st.text() | st.just("Where does Mia live?"),
    st.sampled_from(["squad", TTL, "booksum", "planted", "lme_train"]),
    st.sampled_from(["sentence", "span"]),
)
def test_any_text_gives_a_reading_taken_from_the_items(
    contents: list[str], question: str, data_source: str, answer: str
) -> None:
    one = task(question, *contents, data_source=data_source)
    reading = read(ExtractiveReader(planted.SYNONYMS, answer=answer), one)
    assert set(reading.used) <= {item_id for item_id, _ in one.items}
    assert (reading.answer == "") <= (reading.used == ())
    used = " ".join(content for item_id, content in one.items if item_id in reading.used)
    if data_source != TTL:
        assert set(reading.answer.split()) <= set(used.split()) or answer == "span"
        assert "".join(reading.answer.split()) in "".join(used.split()) or len(reading.used) > 1


# ---------------------------------------------------------------- the planted stream


def kept(instance: Instance, what: str) -> list[list[str]]:
    if what == "facts":
        return [[fact["sentence"] for fact in facts] for facts in instance.metadata["facts"]]
    return [units(chunk.text) for chunk in instance.chunks]


@functools.cache
def stream_inquiries(what: str, world: planted.World = "plain") -> list[Inquiry]:
    shape = planted.StreamSettings(world=world)
    instances = [planted.planted_stream(seed, shape) for seed in range(200)]
    return [
        Inquiry(instance.questions, *remembered(kept(instance, what)), len(instance.chunks))
        for instance in instances
    ]


@pytest.mark.parametrize("answer", ["sentence", "span"])
@pytest.mark.parametrize("what", ["facts", "everything"])
@pytest.mark.parametrize("top_k", [3, 6])
def test_the_planted_stream_is_answered_from_what_retrieval_finds(
    what: str, top_k: int, answer: str
) -> None:
    """Old values of changed facts stay in memory, so this holds only if the newest wins."""
    reader = ExtractiveReader(planted.SYNONYMS, answer=answer)
    by_stream = answer_questions(stream_inquiries(what), reader, top_k)
    answered = list(itertools.chain.from_iterable(by_stream))
    assert sum(one.score for one in answered) / len(answered) >= (0.985 if top_k == 3 else 1.0)
    for one in answered:
        step = one.question.evidence_steps[0]
        assert one.score == 1.0 or step not in [
            hit.steps[-1] for hit in one.retrieved if hit.item_id in one.used
        ]
        if answer == "span" and one.score:
            assert one.answer == one.question.answers[0]


@pytest.mark.parametrize(("top_k", "least"), [(3, 0.85), (6, 0.99)])
def test_the_paraphrased_stream_is_answered_two_facts_at_a_time(top_k: int, least: float) -> None:
    reader = ExtractiveReader(planted.VERBS["planted-paraphrased"])
    by_stream = answer_questions(stream_inquiries("everything", "paraphrased"), reader, top_k)
    answered = list(itertools.chain.from_iterable(by_stream))
    mean = sum(one.score for one in answered) / len(answered)
    assert mean >= least, mean
    pairs = [one for one in answered if ";" in one.question.answers[0]]
    assert len(pairs) > 0.3 * len(answered)
    assert all(len(one.used) == 2 for one in pairs if one.score)


def test_a_question_about_two_people_is_answered_for_each_by_itself() -> None:
    reader = ExtractiveReader(planted.VERBS["planted-paraphrased"])
    question = "Where do Mia and Ana live?"
    said = ["Mia visited Oslo", "Lately Rome houses Mia", "Friends welcome Ana in Lima"]
    reading = read(reader, task(question, *said, data_source="planted-paraphrased"))
    assert reading == Reading("Lately Rome houses Mia; Friends welcome Ana in Lima", ("i1", "i2"))
    reading = read(reader, task(question, *said[:2], data_source="planted-paraphrased"))
    assert reading == Reading("Lately Rome houses Mia", ("i1",))
    assert score(reading.answer, ["Rome; Lima"], "planted-paraphrased") == 0.0
    nothing = task(question, said[0], data_source="planted-paraphrased")
    assert read(reader, nothing) == Reading("", ())


@pytest.mark.parametrize("world", ["plain", "paraphrased"])
def test_a_memory_without_the_facts_earns_almost_nothing(world: planted.World) -> None:
    """Noise sentences name people and values, so a reader that guessed would score here."""
    for seed in range(50):
        instance = planted.planted_stream(seed, planted.StreamSettings(world=world))
        noise = [
            [
                line
                for line in units(chunk.text)
                if line.rstrip(".") not in [fact["sentence"] for fact in facts]
            ]
            for chunk, facts in zip(instance.chunks, instance.metadata["facts"], strict=True)
        ]
        memory, retriever = remembered(noise)
        [answered] = answer_questions(
            [Inquiry(instance.questions, memory, retriever, 6)],
            ExtractiveReader(planted.VERBS[instance.data_source]),
            3,
        )
        assert [one.answer for one in answered] == [""] * len(answered)
