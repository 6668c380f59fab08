"""A language model as reader: its answers, what it cites, what it is shown, and its settings."""

from __future__ import annotations

import json
import re

import pytest

from finemem_lib.data.planted import planted_stream
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.memory import FlatMemory
from finemem_lib.readers.model_judge import ModelJudge
from finemem_lib.readers.model_reader import ModelReader
from finemem_lib.readers.model_teacher import ModelTeacher
from finemem_lib.reading import Inquiry, Reading, ReadingTask, answer_questions
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.trajectory import Operation, Question
from tests.helpers.chat_models import TASK, chat, reader_of, said
from tests.helpers.fault_server import FaultServer, completion

pytest.importorskip("openai", reason="the server extra is not installed")


def reads(text, used=None):
    """Return an answer function for a reader that says a text, citing items where asked."""
    return text if used is None else json.dumps({"answer": text, "items": used})


@pytest.mark.parametrize(
    ("reply", "reading"),
    [
        (reads("Rome"), Reading("Rome", None)),
        (completion(None, refusal="no"), Reading(None, None)),
    ],
)
def test_a_reader_answers_or_says_that_it_failed(reply, reading):
    with FaultServer(lambda _: reply) as server:
        assert ModelReader(chat(server)).read([TASK]) == [reading]


@pytest.mark.parametrize(
    ("reply", "reading"),
    [
        (reads("Rome", [1]), Reading("Rome", ("b2",))),  # b2 was written first and so shown first
        (reads("Rome", [2, 1, 2]), Reading("Rome", ("a1", "b2"))),
        (reads("Rome", [0, 3, -1]), Reading("Rome", ())),
        (reads("", []), Reading("", ())),
        (reads("Rome"), Reading(None, None)),
        ('{"answer": null, "items": []}', Reading(None, None)),
    ],
)
def test_a_citing_reader_names_items_of_its_task(reply, reading):
    with FaultServer(lambda _: reply) as server:
        assert ModelReader(chat(server), cite=True).read([TASK]) == [reading]


def test_the_reader_is_shown_the_items_in_the_order_of_their_writes():
    with FaultServer() as server:
        reader = ModelReader(chat(server, concurrency=1))
        unknown = ReadingTask("Who? $items", "squad", (("x", "Costs $5 and $question."),))
        reader.read([TASK, unknown, ReadingTask("Who?", "squad", ())])
        first, second, third = map(said, server.requests)
        assert re.search(r"oldest first.*\[1\] Mia moved.*\[2\] Mia lives", first, re.DOTALL)
        assert "best match first" in second and "[1] Costs $5 and $question." in second
        assert "Who? $items" in second
        assert "(none)" in third


def test_a_failed_answer_is_not_scored_and_a_wrong_one_is_zero():
    memory, retriever = FlatMemory(), BM25Retriever()
    retriever.update(memory.apply([Operation("INSERT", "Mia lives in Rome.")], 1)[1])
    questions = [Question("q", "Where does Mia live?", ("Rome",), "squad")]
    for reply, score in ((completion(None, refusal="no"), None), ("Oslo", 0.0), ("Rome", 1.0)):
        with FaultServer(lambda _, reply=reply: reply) as server:
            ((one,),) = answer_questions(
                [Inquiry(questions, memory, retriever, 1)], ModelReader(chat(server)), 3
            )
            assert one.score == score and isinstance(one.answer, str)


def test_settings_tell_model_sampling_and_prompt_apart_and_not_the_address():
    with FaultServer() as server:
        reader = ModelReader(chat(server))
        others = [
            ModelReader(chat(server), cite=True),
            ModelReader(chat(server, temperature=0.5)),
            ModelTeacher(chat(server)),
            ModelTeacher(chat(server), number=4),
            ModelJudge(chat(server)),
        ]
        assert len({reader.settings, *(one.settings for one in others)}) == 6
        assert re.search(r'"read v1 [0-9a-f]{12}"', reader.settings)
        assert str(server.server_port) not in reader.settings


def test_a_rollout_is_the_same_with_faults_and_when_it_is_played_again(tmp_path):
    """The reader answers with the last word of the first item; 30 % of the calls fail."""

    def last_word(request):
        return re.search(r"\[1\] .*?(\w+)\.|\(none\)", said(request))[1] or "unknown"

    instance = planted_stream(seed=2)
    played = []
    for share in (0.0, 0.3):
        with FaultServer(last_word, ["drop", "error", "truncate", "garbage"], share) as server:
            settings = {
                "kind": "server",
                "model": "m",
                "base_url": server.base_url,
                "backoff": 0.01,
                "memo": str(tmp_path / f"{share}.sqlite"),
            }
            for _ in range(2):
                played.append(
                    play(
                        [instance],
                        make_manager("insert-all"),
                        RolloutSettings(num_generations=2),
                        reader_of(settings),
                        seed=0,
                    )
                )
            assert set(server.paid.values()) == {1}
    assert played[0] == played[1] == played[2] == played[3]
    assert '"read v1' in played[0][0][0].metadata["agent_settings"]
