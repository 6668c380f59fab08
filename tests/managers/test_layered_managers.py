"""Managers of the layered memory: what they note, where it goes, and the prompt for a model."""

from __future__ import annotations

import dataclasses
import json

import pytest

from finemem_lib.credit.replay import Replayer
from finemem_lib.credit.rules import applicable, credit_update
from finemem_lib.data.planted import planted_instances
from finemem_lib.data.planted_layers import (
    LAYERS_SOURCE,
    SUMMARY_SOURCE,
    LayerStream,
    layer_instances,
    layer_stream,
)
from finemem_lib.evaluation.failure_stages import failure_stages
from finemem_lib.layers.memory import LayerRules
from finemem_lib.managers.layered_scripted import ALL_SCRIPTED, LAYERED, continued
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.prompts import LayeredPromptBuilder, prompt_builder
from finemem_lib.managers.protocol import Observation
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import SCRIPTED
from finemem_lib.memory import UNKNOWN_ID
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import eara_rewards, outcome_reward
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import (
    Chunk,
    InvalidOperation,
    MemoryItem,
    Operation,
    Trajectory,
    Write,
    from_json,
    to_json,
)
from tests.helpers.small_models import small_tokenizer

STREAMS = layer_instances("held-out", 3, seed=0, stream=LayerStream(num_chunks=8))


def plays(name, instances=STREAMS, **settings):
    memory = settings.pop("memory", "layered" if name.startswith("layered") else "flat")
    how = RolloutSettings(num_generations=1, memory=memory, **settings)
    found = play(instances, make_manager(name), how, reader_for(instances), seed=0)
    return [one for group in found for one in group]


def score_of(trajectories, kind):
    scores = [
        asked.score
        for one in trajectories
        for asked in one.questions
        if asked.question.question_id.startswith(kind)
    ]
    return sum(scores) / len(scores)


def test_the_stream_needs_structure():
    stored = plays("insert-all")
    assert score_of(stored, "event") == 0.0  # no sentence holds the date
    assert score_of(stored, "summary") < 0.8  # three sentences do not hold the route
    for name in ("layered-oracle", "flat-oracle"):
        noted = plays(name)
        assert score_of(noted, "event") == score_of(noted, "summary") == 1.0
        assert score_of(noted, "fact") > 0.9


def test_the_stream_is_what_its_metadata_says():
    instance = layer_stream(3, LayerStream(num_chunks=20))
    assert instance == layer_stream(3, LayerStream(num_chunks=20))
    route = [place for stops in instance.metadata["stops"] for place in stops]
    assert len({*route}) == len(route)
    [summary] = [q for q in instance.questions if q.data_source == SUMMARY_SOURCE]
    assert summary.answers == (", ".join(route),)
    for question in instance.questions:
        if question.question_id.startswith("event"):
            [step] = question.evidence_steps
            assert question.answers[0] in instance.chunks[step - 1].text.splitlines()[0]
    assert {q.data_source for q in instance.questions} == {LAYERS_SOURCE, SUMMARY_SOURCE}
    with pytest.raises(ValueError, match="stop_rate is 2"):
        LayerStream(stop_rate=2)


def test_notes_of_both_kinds_hold_the_same_texts():
    for notes in ("notes", "oracle"):
        flat, layered = plays(f"flat-{notes}"), plays(f"layered-{notes}")
        for one, two in zip(flat, layered, strict=True):
            assert {item.content for item in one.final_memory()} == {
                item.content for item in two.final_memory()
            }
            assert {item.store for item in two.final_memory()} == {"core", "semantic", "episodic"}


def test_every_operation_of_the_notes_is_valid_and_dated():
    for one in plays("layered-notes"):
        outcomes = [outcome for step in one.steps for outcome in step.outcomes]
        assert outcomes and all(outcome.applied for outcome in outcomes)
        for item in one.final_memory():
            if item.store == "episodic":
                assert item.content.startswith("On ")
        core = [item for item in one.final_memory() if item.store == "core"]
        assert len(core) == 1 and len(core[0].lineage) > 1


def test_a_full_summary_loses_its_oldest_names():
    summary = ""
    for number in range(300):
        summary = continued(summary, "The caravan", f"P{number}", limit=40)
        assert count_tokens(summary) <= 40
    assert "P299" in summary and "P0," not in summary


def test_the_names_of_all_scripted_managers_differ():
    assert {*ALL_SCRIPTED} == {*SCRIPTED} | {*LAYERED} and not {*SCRIPTED} & {*LAYERED}


def test_flat_managers_play_in_layers_and_layered_ones_need_them():
    one = plays("insert-all", planted_instances("held-out", 1, seed=0), memory="layered")[0]
    assert {item.store for item in one.final_memory()} == {"semantic"}
    with pytest.raises(ValueError, match=r"needs a layered memory.*set memory='layered'"):
        plays("layered-notes", memory="flat")
    with pytest.raises(ValueError, match="no planted truth"):
        bare = dataclasses.replace(STREAMS[0], metadata={})
        make_manager("layered-oracle").act([Observation(bare, (), Chunk("a", 1), 1)], 0)


@pytest.mark.parametrize("budget", [None, 40])
def test_credit_stages_and_records_work_on_layers_unchanged(budget):
    group = [
        from_json(Trajectory, to_json(one))
        for one in plays("layered-notes", STREAMS[:1], token_budget=budget)
    ]
    [one] = group
    reader = reader_for([*STREAMS])
    assert Replayer(one, reader).memory(frozenset()).items == one.final_memory()
    assert sum(eara_rewards(one)) == pytest.approx(outcome_reward(one))
    assert all(asked.retrieved[0].item_id == "core" for asked in one.questions)
    assert all(asked.retrieved[0].score is None for asked in one.questions)
    stages = failure_stages(one)
    assert len(stages) == len(one.questions)
    given = ("agent", "group", "batch", "replay", "probes", "previous")
    rules = applicable([one], given)
    assert len(rules) > 20
    for name in rules:
        [[credit]] = credit_update(name, [[one]], agent=reader).credit
        assert len(credit) == one.num_steps, name


def test_leaving_out_the_last_rewrite_of_the_core_leaves_the_one_before():
    [one] = plays("layered-oracle", STREAMS[:1])
    core = one.final_memory()[[item.store for item in one.final_memory()].index("core")]
    last, before = core.lineage[-1], core.lineage[-2]
    left = Replayer(one, reader_for([*STREAMS])).memory(frozenset({last.step}))
    held = {item.item_id: item for item in left.items}
    assert held["core"].lineage == core.lineage[:-1]
    assert held["core"].last_step == before.step
    first = core.lineage[0].step
    without = Replayer(one, reader_for([*STREAMS])).memory(frozenset({first}))
    assert [item.content for item in without.items if item.store == "core"] == [core.content]


@pytest.fixture(scope="module")
def builder():
    return prompt_builder(small_tokenizer("qwen3"), ModelSettings(operations_as="calls"))


def item(item_id, content, store, step=1):
    return MemoryItem(item_id, content, (Write(step, "INSERT", 0),), store)


ITEMS = (
    item("4", "Mia owns cats", "semantic"),
    item("core", "Mia travels", "core"),
    item("9", "On day 3 Mia saw Rome", "episodic"),
)


def test_the_prompt_shows_the_core_first_and_each_item_with_its_store(builder):
    assert isinstance(builder, LayeredPromptBuilder) and builder.memory == "layered"
    prompt = builder.render(Observation(STREAMS[0], ITEMS, STREAMS[0].chunks[0], 2))
    shown = prompt.text[prompt.text.rindex("<memory>") :]
    assert shown.startswith(
        '<memory>\ncore "Mia travels"\nsemantic #0 "Mia owns cats"\n'
        'episodic #2 "On day 3 Mia saw Rome"\n</memory>'
    )
    assert f"at most {LayerRules().core_tokens} words" in prompt.text


def test_calls_name_items_by_what_the_prompt_shows(builder):
    prompt = builder.render(Observation(STREAMS[0], ITEMS, STREAMS[0].chunks[0], 2))
    calls = [
        {
            "name": "memory_update",
            "arguments": {"memory_type": "semantic", "memory_id": "#0", "new_content": "a"},
        },
        {"name": "memory_update", "arguments": {"memory_type": "core", "new_content": "b"}},
        {"name": "memory_delete", "arguments": {"memory_type": "episodic", "memory_id": "9"}},
    ]
    found = builder.parse(json.dumps(calls), prompt)
    assert found[:2] == (
        Operation("UPDATE", "a", "4", "semantic"),
        Operation("UPDATE", "b", None, "core"),
    )
    assert isinstance(found[2], InvalidOperation) and found[2].reason == UNKNOWN_ID


def test_the_core_is_left_out_last(builder):
    many = (*(item(str(n), f"fact number {n} " * 30, "semantic") for n in range(60)), ITEMS[1])
    prompt = builder.render(Observation(STREAMS[0], many, STREAMS[0].chunks[0], 2))
    assert prompt.omitted_items > 0 and 'core "Mia travels"' in prompt.text
    assert len(prompt.ids) <= builder.max_prompt_tokens
