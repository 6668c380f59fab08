"""Decoding that follows a JSON schema."""

from __future__ import annotations

from dataclasses import dataclass

import pytest

from finemem_lib.readers.constrained import JsonLimits
from finemem_lib.readers.local import LocalChat
from finemem_lib.readers.model_teacher import WrittenQuestions
from finemem_lib.readers.settings import ChatSettings, chat_settings
from tests.helpers.chat_models import local, talks

LIMITS = JsonLimits(items=2, characters=6)


@dataclass(frozen=True)
class Named:
    """A reply that must hold a text."""

    name: str


def test_a_model_that_writes_no_json_answers_in_the_form_asked_for(tiny_model):
    def asked(structure, **settings):
        one = LocalChat(local(tiny_model, max_tokens=400, **settings))
        one._model.generation_config.eos_token_id = 2  # which these weights seldom write
        return one.ask(talks(3), structure)

    assert asked(WrittenQuestions) == asked(Named) == [None] * 3
    assert all(len(one.questions) <= 2 for one in asked(WrittenQuestions, json_limits=LIMITS))
    longest = [
        max(len(one.name) for one in asked(Named, json_limits=JsonLimits(2, characters)))
        for characters in (6, 60)
    ]
    assert longest[0] <= 6 < longest[1] <= 60


def test_a_plain_answer_is_free(tiny_model):
    free, held = LocalChat(local(tiny_model)), LocalChat(local(tiny_model, json_limits=LIMITS))
    assert held.ask(talks(3)) == free.ask(talks(3))


def test_replies_with_and_without_limits_are_kept_apart(tiny_model):
    free, held = local(tiny_model), local(tiny_model, json_limits=LIMITS)
    assert free.identity != held.identity and "json_limits" not in free.identity


def test_limits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="items is 0, expected at least 1"):
        JsonLimits(items=0, characters=5)
    with pytest.raises(ValueError, match="json_limits.characters"):
        chat_settings({"model": "m", "kind": "local", "json_limits": {"items": 1}})
    with pytest.raises(ValueError, match="model on a server, which decodes by itself"):
        ChatSettings("m", base_url="http://127.0.0.1:1/v1", json_limits=LIMITS)
