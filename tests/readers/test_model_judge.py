"""A language model as judge of what has no metric."""

from __future__ import annotations

import dataclasses
import json

import pytest

from finemem_lib.readers.model_judge import ModelJudge, judged
from finemem_lib.trajectory import AnsweredQuestion, Chunk, MemoryDelta, Question, Step, Trajectory
from tests.helpers.chat_models import chat, said
from tests.helpers.fault_server import FaultServer

pytest.importorskip("openai", reason="the server extra is not installed")


def trajectory(*questions, steps=()):
    return Trajectory("i", "lme_train", "AR", "m", 0, tuple(steps), tuple(questions), "words")


def answered(answer, source="lme_train", score=None, answers=("Rome",)):
    question = Question(f"q-{answer}", "Where?", answers, source)
    return AnsweredQuestion(question, 1, (), answer, None, score)


def test_a_judge_scores_what_has_no_metric_and_nothing_else():
    def verdict(request):
        reply = said(request).rpartition("Reply: ")[2]
        return json.dumps({"verdict": reply == "in Rome"}) if reply != "?" else "yes"

    step = Step(1, Chunk("c", 1), "", (), MemoryDelta(), 0, (answered("in Rome"),))
    before = trajectory(
        answered("in Rome"),
        answered("Oslo"),
        answered("?"),
        answered(""),
        answered("in Rome", answers=()),
        answered("Oslo", "squad", 0.25),
        steps=[step],
    )
    with FaultServer(verdict) as server:
        (after,) = judged([before], ModelJudge(chat(server)))
        assert [one.score for one in after.questions] == [1.0, 0.0, None, None, None, 0.25]
        assert after.steps[0].chunk_questions[0].score == 1.0
        assert dataclasses.replace(after, questions=before.questions, steps=before.steps) == before
