"""Which tokens spell which operation, on what the tiny manager wrote and on broken completions."""

from __future__ import annotations

import pytest

from finemem_lib.data.planted import planted_instances
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.operation_tokens import operation_of_tokens, token_texts
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.memory import FlatMemory
from finemem_lib.operations import parse_operations
from finemem_lib.readers.extractive import reader_for
from finemem_lib.trajectory import Chunk, Operation, Step


def step_of(completion: str) -> Step:
    outcomes, delta = FlatMemory().apply(parse_operations(completion), 1)
    return Step(1, Chunk("", 0), completion, outcomes, delta, 0)


def test_every_operation_of_the_tiny_manager_is_spelt_by_its_tokens():
    manager = load_manager("tiny")
    streams = planted_instances("train", 2, 5)
    groups = play(streams, manager, RolloutSettings(num_generations=4), reader_for(streams), 0)
    seen = 0
    for step in (step for group in groups for one in group for step in one.steps):
        texts = token_texts(step.completion_ids, manager.builder.tokenizer)
        places = operation_of_tokens(step, texts)
        assert len(places) == len(step.completion_ids)
        for place, outcome in enumerate(step.outcomes):
            if outcome.operation is None:
                continue
            spelt = "".join(t for t, own in zip(texts, places, strict=True) if own == place)
            [found] = parse_operations(spelt)
            assert isinstance(found, Operation) and found.kind == outcome.operation.kind
            assert (found.content or "").split() == (outcome.operation.content or "").split()
            seen += 1
    assert seen > 50


@pytest.mark.parametrize(
    ("completion", "places"),
    [
        ('{"op":"SKIP"}', {0}),
        ('[{"op":"INSERT","content":"a"},{"op":"INSERT","content":"cut o', {0, None}),
        ('[{"op":"EAT"},{"op":"INSERT","content":"a {b} \\" c"}]', {1, None}),
        ('<think>{"op":"SKIP"}</think>{"op":"DELETE","id":"1"}', {0}),
        ("{" * 3000, {None}),
        ("nothing", {None}),
    ],
)
def test_pieces_that_are_no_operation_belong_to_none(completion, places):
    step = step_of(completion)
    found = operation_of_tokens(step, list(completion))
    assert {*found} == places
