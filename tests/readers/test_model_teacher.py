"""A language model as teacher and as verifier of chunk questions."""

from __future__ import annotations

import dataclasses
import random
import re

import pytest

from finemem_lib.data.planted import planted_stream
from finemem_lib.data.questions import make_chunk_questions
from finemem_lib.readers.model_reader import ModelReader
from finemem_lib.readers.model_teacher import ModelTeacher
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.trajectory import Chunk
from tests.helpers.chat_models import chat, said, teach
from tests.helpers.fault_server import FaultServer

pytest.importorskip("openai", reason="the server extra is not installed")


def test_a_teacher_writes_from_the_chunk_alone_and_asks_for_many_chunks_at_once():
    with FaultServer(teach, gate=3) as server:
        teacher = ModelTeacher(chat(server), number=2)
        texts = ["Mia lives in Rome. Leo likes tea. Ana sails boats.", "Leo moved to Oslo.", "..."]
        teacher.prepare(texts)
        assert server.most_under_way == 3
        written = teacher.write(texts[0], 4, "booksum", random.Random(0))
        assert len(server.requests) == 3
        assert [(one.text, one.answers) for one in written] == [
            ("Mia lives in what?", ("Rome",)),
            ("Leo likes what?", ("tea",)),
        ]
        assert {(one.data_source, one.step, one.evidence_steps) for one in written} == {
            ("squad", 4, (4,))
        }
        assert teacher.write(texts[2], 1, "squad", random.Random(0)) == []
        assert all(
            request["messages"][0] == {"role": "system", "content": load_prompt("teach").system}
            for request in server.requests
        )


def test_teacher_and_verifier_make_chunk_questions():
    def answer(request):
        if said(request).startswith("Write"):
            return teach(request)
        [name] = re.findall(r"Question: (\w+)", said(request))
        found = re.findall(rf"\b{name} [\w ]* (\w+)\.", said(request))
        return found[0] if found else "unknown"

    instance = dataclasses.replace(planted_stream(seed=1), data_source="squad")
    instance = dataclasses.replace(
        instance, chunks=(Chunk("Mia lives in Rome. Leo likes tea.", 8),), chunk_questions=None
    )
    with FaultServer(answer) as server:
        made, audit = make_chunk_questions(
            instance, ModelTeacher(chat(server)), ModelReader(chat(server)), k=5
        )
        assert [one.answers for one in made.chunk_questions[0]] == [("Rome",), ("tea",)]
        assert [row.reply for row in audit] == ["Rome", "tea"]
