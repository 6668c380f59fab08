from __future__ import annotations

import json

import pytest

from finemem_lib.data.worked_example import worked_example
from finemem_lib.layers.content_reward import Written, content_rewards, rule_verdicts
from finemem_lib.readers.model_judge import ModelContentJudge
from finemem_lib.readers.roles import Models
from tests.helpers.chat_models import chat, said
from tests.helpers.fault_server import FaultServer

pytest.importorskip("openai", reason="the server extra is not installed")


def test_a_model_judges_notes_by_their_store_and_equal_notes_once():
    asked = []

    def verdict(request):
        text = said(request)
        asked.append(text)
        note = text.rpartition("Note: ")[2]
        return json.dumps({"valid": "episodic" in text}) if note != "?" else "perhaps"

    notes = [
        Written("episodic", "On day 3 Mia saw Rome"),
        Written("semantic", "Mia saw Rome"),
        Written("episodic", "On day 3 Mia saw Rome"),
        Written("core", "?"),
    ]
    with FaultServer(verdict) as server:
        judge = ModelContentJudge(chat(server))
        assert judge(notes) == [1.0, 0.0, 1.0, None]
        assert len({*asked}) == 3
        # A flat memory's notes are judged as knowledge.
        assert content_rewards([worked_example()], judge) == [[0.0, 0.0, 0.0, 0.0]]
        assert "Store: semantic" in asked[-1]


def test_without_a_judge_the_rule_judges():
    assert Models().content_judge() is rule_verdicts
