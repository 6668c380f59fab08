"""The memo of an agent, and the asking of questions on a memory."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given, strategies as st

from finemem_lib.data import planted
from finemem_lib.readers.extractive import ExtractiveReader
from finemem_lib.reading import Inquiry, MemoisedAgent, Reading, ReadingTask, answer_questions
from finemem_lib.trajectory import MemoryDelta, Operation, Question
from tests.helpers.reading import Recorder, remembered, task

# ---------------------------------------------------------------- memo


def test_equal_tasks_are_asked_once_within_and_across_batches() -> None:
    recorder = Recorder()
    agent = MemoisedAgent(recorder)
    first = agent.read([task("q", "a", "b"), task("q", "a", "b"), task("other", "a", "b")])
    again = agent.read([task("q", "a", "b")])
    assert (agent.calls_asked, agent.calls_made, len(recorder.seen)) == (4, 2, 2)
    assert first[0] == first[1] == again[0] != first[2]
    assert (agent.name, agent.settings) == ("recorder", "s")
    assert agent.query("q", "squad") == "q"


def test_used_comes_back_with_the_ids_of_the_task_at_hand() -> None:
    agent = MemoisedAgent(Recorder())
    agent.read([ReadingTask("q", "squad", (("1", "a"), ("2", "b")))])
    [reading] = agent.read([ReadingTask("q", "squad", (("17", "a"), ("4", "b")))])
    assert (reading.used, agent.calls_made) == (("4",), 1)
    [silent] = agent.read([ReadingTask("q", "squad", ())])
    assert silent.used is None


@pytest.mark.parametrize(
    "other",
    [
        task("q?", "a", "b"),
        task("q", "b", "a"),
        task("q", "a"),
        task("q", "a", "b", data_source="hotpotqa"),
        task("q", "a", "b", written=(1, 0)),
    ],
)
def test_what_could_change_the_answer_is_asked_again(other: ReadingTask) -> None:
    agent = MemoisedAgent(Recorder())
    agent.read([task("q", "a", "b"), other])
    assert agent.calls_made == 2


def test_changed_settings_are_asked_again() -> None:
    recorder = Recorder()
    agent = MemoisedAgent(recorder)
    agent.read([task("q", "a")])
    recorder.settings = "t"
    agent.read([task("q", "a")])
    assert agent.calls_made == 2


def test_an_agent_that_breaks_the_protocol_is_named() -> None:
    class Short(Recorder):
        def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
            return super().read(tasks)[1:]

    class Inventive(Recorder):
        def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
            return [Reading("x", ("99",)) for _ in tasks]

    with pytest.raises(ValueError, match="'recorder' returned 1 readings for 2 tasks"):
        MemoisedAgent(Short()).read([task("q", "a"), task("r", "a")])
    with pytest.raises(ValueError, match=r"used items \('99',\), expected ids of its task"):
        MemoisedAgent(Inventive()).read([task("q", "a")])


@given(st.lists(st.tuples(st.sampled_from("pq"), st.lists(st.sampled_from("ab"), max_size=3))))
def test_the_memo_changes_no_answer_of_a_pure_reader(batch: list[tuple[str, list[str]]]) -> None:
    tasks = [task(f"Who is {name}?", *(f"{c} met {name}." for c in found)) for name, found in batch]
    agent = MemoisedAgent(ExtractiveReader())
    assert agent.read(tasks) == ExtractiveReader().read(tasks)
    assert agent.calls_made == len(set(tasks)) and agent.calls_asked == len(tasks)


# ---------------------------------------------------------------- asking


def question(name: str, text: str, *answers: str, data_source: str = "planted") -> Question:
    return Question(name, text, answers, data_source)


def test_answered_questions_hold_retrieval_lineage_answer_and_score() -> None:
    memory, retriever = remembered([["Mia lives in Rome", "Leo owns cats"], ["Ana studies law"]])
    _, delta = memory.apply([Operation("UPDATE", "Mia moved to Oslo", "1")], 3)
    retriever.update(delta)
    asked = question("q-1", "Where does Mia live?", "Oslo")
    judged = question("q-2", "How does Mia feel?", "well", data_source="lme_train")
    [[answered, unscored]] = answer_questions(
        [Inquiry([asked, judged], memory, retriever, 3)], ExtractiveReader(planted.SYNONYMS), 3
    )
    assert answered.question is asked and answered.asked_step == 3
    assert [(hit.item_id, hit.steps) for hit in answered.retrieved] == [("1", (1, 3))]
    assert [(hit.item_id, hit.score) for hit in answered.retrieved] == (
        retriever.search("Where does Mia live? lives moved settled", 3)
    )
    assert (answered.answer, answered.used, answered.score) == ("Mia moved to Oslo", ("1",), 1.0)
    assert unscored.score is None


def test_all_inquiries_are_read_in_one_batch_in_order_without_the_answers() -> None:
    batches: list[list[ReadingTask]] = []

    class Batches(Recorder):
        def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
            batches.append(list(tasks))
            return super().read(tasks)

    memory, retriever = remembered([["Mia lives in Rome"], ["Leo owns cats"]])
    inquiries = [
        Inquiry([question("a", "Mia Rome?", "SECRET-1")], memory, retriever, 1),
        Inquiry([], memory, retriever, 1),
        Inquiry(
            [question("b", "Leo?", "SECRET-2"), question("c", "cats?", "SECRET-3")],
            memory,
            retriever,
            2,
        ),
    ]
    answered = answer_questions(inquiries, Batches(), 2)
    assert [[one.question.question_id for one in row] for row in answered] == [
        ["a"],
        [],
        ["b", "c"],
    ]
    assert [one.answer.split("?")[0] for row in answered for one in row] == [
        "Mia Rome",
        "Leo",
        "cats",
    ]
    assert len(batches) == 1 and "SECRET" not in repr(batches)


def test_nothing_to_ask_calls_no_agent() -> None:
    memory, retriever = remembered([])
    recorder = Recorder()
    assert answer_questions([Inquiry([], memory, retriever, 1)], recorder, 3) == [()]
    assert recorder.seen == []


def test_an_empty_memory_is_asked_and_scores_zero() -> None:
    memory, retriever = remembered([])
    [[answered]] = answer_questions(
        [Inquiry([question("a", "Where does Mia live?", "Rome")], memory, retriever, 0)],
        ExtractiveReader(planted.SYNONYMS),
        3,
    )
    assert (answered.retrieved, answered.answer, answered.used, answered.score) == ((), "", (), 0.0)


def test_a_retriever_that_missed_a_delta_is_reported() -> None:
    memory, retriever = remembered([["Mia lives in Rome"]])
    memory.apply([Operation("DELETE", item_id="1")], 2)
    with pytest.raises(ValueError, match="item '1'.*pass every memory delta"):
        answer_questions(
            [Inquiry([question("a", "Mia Rome?", "x")], memory, retriever, 2)], Recorder(), 3
        )
    retriever.update(MemoryDelta(removed=("1",)))
    answer_questions(
        [Inquiry([question("a", "Mia Rome?", "x")], memory, retriever, 2)], Recorder(), 3
    )
