"""Systems that methods are compared with: what each keeps, what it needs, and its labels."""

from __future__ import annotations

import dataclasses
import re

import pytest

from finemem_lib.baselines.long_context import LongContext
from finemem_lib.baselines.memory_r1 import MemoryR1Rules, parse_memory_r1
from finemem_lib.baselines.mirix import STORES, store_of
from finemem_lib.baselines.o_mem import QUEUE_SIZE, head_of
from finemem_lib.baselines.published_managers import (
    PUBLISHED,
    parse_memalpha,
    parse_memory_r2,
    published_manager,
)
from finemem_lib.baselines.systems import SYSTEMS, check_systems, make_system
from finemem_lib.baselines.text_memory import MEM1, MEM_AGENT, OverwrittenText, select_sentences
from finemem_lib.cli.profiles import load_profile
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.evaluation.answers import writer_calls
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.readers.roles import make_chat
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, InvalidOperation, Operation, Trajectory
from finemem_lib.util.yaml_files import read_yaml
from tests.helpers.chat_models import local, save_tiny_model
from tests.helpers.encoders import count_letters, fake_encoder
from tests.helpers.paths import ROOT
from tests.helpers.writers import ScriptedChat

STREAMS = planted_instances("held-out", 2, seed=0)
LONG = planted_instances("held-out", 1, seed=0, stream=StreamSettings(num_chunks=30))


def instance_of(*texts: str) -> Instance:
    """Return an instance with these chunks and no questions."""
    return Instance("by-hand", "own", "AR", tuple(Chunk(t, count_tokens(t)) for t in texts), ())


def played(name: str, instances=STREAMS, **settings) -> list[Trajectory]:
    """Let a system play and return its first rollouts."""
    player = make_system(name, **settings)
    return [
        group[0]
        for group in play(instances, player.manager, player.settings, reader_for(instances), 0)
    ]


def contents(trajectory: Trajectory) -> list[str]:
    return [item.content for item in trajectory.final_memory()]


@pytest.fixture
def letters(monkeypatch):
    return fake_encoder(monkeypatch, count_letters)


WITHOUT_MODEL = sorted(name for name, system in SYSTEMS.items() if system.needs == "nothing")


@pytest.mark.parametrize("name", WITHOUT_MODEL)
@pytest.mark.parametrize("budget", [None, 40])
def test_every_system_plays_without_a_model_and_keeps_to_its_budget(name, budget, letters):
    for one in played(name, LONG, budget=budget):
        assert all(outcome.applied for step in one.steps for outcome in step.outcomes)
        assert one.steps[-1].memory_tokens <= (budget or 10**9)
        assert name == "long-context-head" or any(answer.score for answer in one.questions)
        assert one.metadata["manager_settings"] == dict(
            make_system(name, budget=budget).manager.settings
        )


def test_a_whole_memory_is_shown_and_two_chunks_are_retrieved():
    [long, *_], [rag, *_] = played("long-context-tail"), played("rag-top2")
    assert all(len(one.retrieved) == len(long.steps) for one in long.questions)
    assert all(len(one.retrieved) <= 2 for one in rag.questions)
    assert any(len(one.retrieved) == 2 for one in rag.questions)


@pytest.mark.parametrize(
    ("keep", "expected"),
    [("tail", ["four five", "six seven"]), ("head", ["one two three", "four"])],
)
def test_the_window_is_cut_at_head_or_tail(keep, expected):
    [one] = play(
        [instance_of("one two three", "four five", "six seven")],
        LongContext(4, keep),
        RolloutSettings(num_generations=1),
        reader_for(STREAMS),
        0,
    )
    assert contents(one[0]) == expected


def test_the_tail_of_the_long_context_is_the_end_of_the_stream():
    [one] = played("long-context-tail", LONG, budget=25)
    text = " ".join(chunk.text for chunk in LONG[0].chunks)
    assert text.endswith(" ".join(contents(one)))
    assert one.steps[-1].memory_tokens == 25


def test_a_window_that_is_none_is_refused():
    with pytest.raises(ValueError, match="window is 0 and keep 'middle', expected at least 1"):
        LongContext(0, "middle")
    with pytest.raises(ValueError, match="mem1: tokens is 0, expected at least 1"):
        OverwrittenText(MEM1, tokens=0)


def test_sight_of_the_questions_keeps_what_they_ask_for():
    """The privileged variant beats the blind one where the memory is short; it is marked."""

    def accuracy(name):
        scores = [a.score for one in played(name, STREAMS, budget=30) for a in one.questions]
        return sum(scores) / len(scores)

    assert accuracy("memagent-privileged") > accuracy("memagent")
    assert [name for name, one in SYSTEMS.items() if one.privileged] == ["memagent-privileged"]
    assert "privileged: sees the questions" in SYSTEMS["memagent-privileged"].label
    [one, _] = played("memagent-privileged", STREAMS)
    assert one.metadata["manager_settings"]["privileged"] is True


def test_a_text_memory_is_one_item_with_a_write_per_change():
    [one] = played("memagent", LONG, budget=40)
    [item] = one.final_memory()
    assert item.created_step == 1 and len(item.lineage) > 10
    assert {write.kind for write in item.lineage[1:]} == {"UPDATE"}


def test_the_select_sentences_sentences_are_whole_and_fit():
    texts = [f"Mia saw {n} boats in harbour {n}." for n in range(9)]
    kept = select_sentences([*texts, texts[3]], 20)
    assert set(kept) <= set(texts) and sum(map(count_tokens, kept)) <= 20
    assert len(kept) == len(set(kept)) == 2
    assert select_sentences(texts, 3) == []


def test_a_model_writes_the_text_memory_and_a_useless_reply_keeps_it():
    chat = ScriptedChat(lambda said: "Mia sails in Rome now" if "one" in said else " ")
    [[one]] = play(
        [instance_of("one", "two")],
        OverwrittenText(MEM_AGENT, chat, tokens=3),
        RolloutSettings(num_generations=1),
        reader_for(STREAMS),
        0,
    )
    assert contents(one) == ["Mia sails in"]
    [first], [second] = (step.outcomes for step in one.steps)
    assert first.operation.kind == "INSERT" and second.reason == "no operations found"
    assert "Task: (not known yet)" in one.steps[0].prompt
    assert one.metadata["manager_settings"]["calls_per_step"] == 1


def test_mem1_keeps_the_old_state_where_a_reply_has_none():
    replies = iter(["I think. <state>Mia: Rome</state>", "no state here", "no state again"])
    chat = ScriptedChat(lambda said: next(replies))
    [[one]] = play(
        [instance_of("one", "two", "three")],
        OverwrittenText(MEM1, chat),
        RolloutSettings(num_generations=1),
        reader_for(STREAMS),
        0,
    )
    assert contents(one) == ["Mia: Rome"]
    assert [outcome.raw for step in one.steps[1:] for outcome in step.outcomes] == [
        "no state here",
        "no state again",
    ]


@pytest.mark.parametrize("name", sorted(name for name, one in SYSTEMS.items() if one.calls))
def test_a_writer_without_a_reply_is_no_writer_that_skips(name):
    """Incident: a model that was cut off at every step stood in the tables as one that skipped."""
    [one, _] = played(name, chat=ScriptedChat(lambda said: ""))
    assert contents(one) == []
    per_step = {"mirix-proxy": 6}.get(name, 1)
    for step in one.steps:
        assert [o.reason for o in step.outcomes] == ["no operations found"] * per_step


def test_what_needs_a_model_is_refused_before_the_run_with_a_remedy(monkeypatch):
    def missing(name: str) -> None:
        raise ValueError(f"dense retrieval: {name!r} could not be loaded")

    monkeypatch.setattr("finemem_lib.retrievers.encoder.load_encoder", missing)
    with pytest.raises(ValueError, match='"writer".*notebooks/models/server.yaml.*or leave'):
        make_system("untrained")
    with pytest.raises(ValueError) as caught:
        check_systems(["insert-all", "untrained", "memagent", "rag-dense"])
    assert str(caught.value).count("\n") == 1  # all problems at once
    assert "'untrained' needs" in str(caught.value) and "or leave rag-dense out" in str(
        caught.value
    )
    check_systems(["untrained"], ScriptedChat(str))


@pytest.mark.parametrize("name", SYSTEMS)
def test_records_carry_the_name_of_the_system(name, letters):
    """Two systems with one manager would be taken for two rollouts of it."""
    assert make_system(name, chat=ScriptedChat(str)).manager.name == name


def test_an_unknown_system_is_refused_by_name():
    with pytest.raises(ValueError, match="'mirix' is not a manager"):
        make_system("mirix")


def test_the_untrained_manager_edits_by_marks():
    def reply(said: str) -> str:
        if "Mia moved" not in said:
            return '[{"op":"INSERT","content":"Mia lives in Rome"}]'
        mark = re.search(r"(#\d+) Mia lives", said)[1]
        return f'[{{"op":"UPDATE","id":"{mark}","content":"Mia lives in Oslo"}}]'

    player = make_system("untrained", chat=ScriptedChat(reply))
    [[one]] = play(
        [instance_of("Mia lives in Rome.", "Mia moved to Oslo.")],
        player.manager,
        player.settings,
        reader_for(STREAMS),
        0,
    )
    assert contents(one) == ["Mia lives in Oslo"]
    assert one.steps[1].prompt and one.manager == "untrained"


def test_memory_r1_reads_the_events_of_its_format():
    reply = (
        'Sure: {"memory": [{"id": "7", "event": "update", "text": "Mia sails"}, "no",'
        ' {"event": "ADD", "text": "Leo sings"}, {"event": "ADD"}, {"event": "DELETE", "id": 3},'
        ' {"event": "NONE"}, {"event": "NOOP", "id": "1", "text": "x"}]}'
    )
    found = parse_memory_r1(reply)
    assert [one for one in found if isinstance(one, Operation)] == [
        Operation("UPDATE", "Mia sails", "7"),
        Operation("INSERT", "Leo sings"),
        Operation("DELETE", item_id="3"),
        Operation("SKIP"),
        Operation("SKIP"),
    ]
    assert [one.reason for one in found if isinstance(one, InvalidOperation)] == [
        "not a JSON object",
        "content missing or not a string",
    ]
    assert parse_memory_r1("") == () and parse_memory_r1("hm")[0].reason == "no operations found"
    assert parse_memory_r1('{"memory": [')[0].reason == "no operations found"
    assert parse_memory_r1("[1, }]")[0].reason == "not a JSON object"
    assert parse_memory_r1('{"memory": 3}')[0].reason == "no operations found"


def test_memory_r1_rules_choose_among_four_events():
    [[one]] = play(
        [
            instance_of(
                "Mia lives in Rome. Ana owns cats.",
                "Mia lives in Oslo. Ana owns cats. Leo studies law.",
                "Leo no longer studies law.",
            )
        ],
        MemoryR1Rules(),
        RolloutSettings(num_generations=1),
        reader_for(STREAMS),
        0,
    )
    kinds = [[o.operation.kind for o in step.outcomes] for step in one.steps]
    assert kinds == [["INSERT", "INSERT"], ["UPDATE", "INSERT"], ["DELETE"]]
    assert contents(one) == ["Mia lives in Oslo.", "Ana owns cats."]


def test_proxies_say_so_in_name_and_label():
    proxies = {name for name, one in SYSTEMS.items() if one.proxy}
    assert proxies == {"mirix-proxy", "a-mem-proxy", "o-mem-proxy"}
    assert all("(proxy; arXiv" in SYSTEMS[name].label for name in proxies)
    for name in proxies:
        manager = make_system(name).manager
        assert manager.name == name and manager.settings["proxy"] is True


def test_the_six_stores_keep_to_themselves():
    assert {
        store_of(t)
        for t in (
            "I am a sailor and I like tea.",
            "Call 030-555-1234.",
            "Last week Mia sailed.",
            "First, boil the water.",
            "Oslo is a city.",
            "Sentence: hi\nLabel: 2",
        )
    } == set(STORES)

    def reply(said: str) -> str:
        store = re.search(r"Your store: (\w+)\.", said)[1]
        if said.endswith("Text:\none"):
            return f'[{{"op":"INSERT","content":"of {store}"}}]' if store != "core" else "[]"
        return '[{"op":"DELETE","id":"#1"}]'

    chat = ScriptedChat(reply)
    player = make_system("mirix-proxy", chat=chat)
    [[one]] = play(
        [instance_of("one", "two")], player.manager, player.settings, reader_for(STREAMS), 0
    )
    assert contents(one) == [f"[{s}] of {s}" for s in STORES if s not in ("core", "episodic")]
    reasons = [outcome.reason for outcome in one.steps[1].outcomes]
    assert reasons.count("unknown id") == 5 and reasons.count(None) == 1
    assert player.manager.settings["calls_per_step"] == len(STORES) == 6


def test_notes_evolve_with_their_neighbours():
    [[one]] = play(
        [instance_of("Mia owns cats.", "Mia feeds cats.", "Mia feeds cats.")],
        make_system("a-mem-proxy").manager,
        RolloutSettings(num_generations=1),
        reader_for(STREAMS),
        0,
    )
    assert contents(one) == [
        "Mia owns cats. | keywords: cats, mia, owns, feeds",
        "Mia feeds cats. | keywords: feeds, cats, mia | links: #1",
    ]


def test_the_queue_empties_into_personas_and_topics():
    [one] = played("o-mem-proxy", LONG)
    held = contents(one)
    heads = [head for text in held if (head := head_of(text))]
    assert len(heads) == len({*heads}) > 0
    assert sum(head_of(text) is None for text in held) <= QUEUE_SIZE
    assert any(head.startswith("Persona of ") for head in heads)


def test_a_trained_manager_takes_the_settings_of_the_run():
    rollout = RolloutSettings(num_generations=1, top_k=5)
    player = make_system("trained", rollout, manager=MemoryR1Rules(), budget=33)
    assert player.settings == dataclasses.replace(rollout, token_budget=33)
    assert player.name == "trained"


def test_memory_r2_reads_the_operations_of_its_format():
    reply = (
        '```json\n[{"operation": "insert", "content": "Mia sails"},'
        ' {"op": "UPDATE", "memory_id": "#1", "text": "Mia sings"},'
        ' {"operation": "DELETE"}, {"operation": "MERGE", "id": "1"}]\n```'
    )
    assert [getattr(one, "reason", one) for one in parse_memory_r2(reply)] == [
        Operation("INSERT", "Mia sails"),
        Operation("UPDATE", "Mia sings", "#1"),
        "id missing or not a string",
        "unknown operation",
    ]
    assert parse_memory_r2('{"operations": []}') == ()
    with pytest.raises(ValueError, match="expected one of memalpha-4b, memory-r2"):
        published_manager("memory-r3", ScriptedChat(lambda said: reply))


FACTS = '{"facts": [{"speaker": "Mia", "dia_id": "D1:2", "fact": "Sails"}]}'


def r2(said: str) -> str:
    """Reply as Memory-R2's published prompts ask for: facts, then operations on them."""
    if not said.startswith("New retrieved facts"):
        return FACTS
    assert FACTS in said
    if '"memory_id"' not in said:
        return (
            '{"operations": [{"operation": "INSERT", "speaker": "Mia", "content": "Sails",'
            ' "dia_id": "D1:2"}]}'
        )
    assert '"speaker": "Mia"' in said and '"content": "Sails"' in said
    return '{"operations": [{"operation": "UPDATE", "memory_id": "1", "content": "Sails to Rome"}]}'


def test_memory_r2_lists_facts_first_and_an_update_keeps_the_speaker():
    chat = ScriptedChat(r2)
    player = make_system("memory-r2", chat=chat)
    [[one]] = play(
        [instance_of("one", "two")], player.manager, player.settings, reader_for(STREAMS), 0
    )
    assert contents(one) == ["Mia: Sails to Rome"]
    assert len(chat.seen) == 4 and writer_calls(one) == 4


# Written by hand in the form of a public run log of Memalpha-4B: after the arguments of a call the
# model may go on with fields that belong to no tool, and a text with a quotation mark breaks JSON.
MEMALPHA = """✿FUNCTION✿: memory_update
✿ARGS✿: {"memory_type": "core_memory", "new_content": "The user talks about work."}
✿FUNCTION✿: new_memory_insert
✿ARGS✿: {"memory_type": "episodic_memory", "content": "At 2023-05-08, Ana said 'hi'"}, "place": "x"}
✿FUNCTION✿: new_memory_insert
✿ARGS✿: {"memory_type": "semantic_memory", "content": "Ana "sails"."}
✿FUNCTION✿: memory_delete
✿ARGS✿: {"memory_type": "semantic_memory", "memory_id": "9f3a"}
✿FUNCTION✿: search_memory
✿ARGS✿: {"memory_type": "semantic_memory", "query": "Ana"}
✿RESULT✿: ok
✿FUNCTION✿: new_memory_insert
✿ARGS✿: {"memory_type": "semantic_memory", "content": "after the result"}"""


def test_memalpha_reads_calls_in_the_text_format_of_its_agent():
    assert [getattr(one, "reason", one) for one in parse_memalpha(MEMALPHA)] == [
        Operation("UPDATE", "The user talks about work.", store="core"),
        Operation("INSERT", "At 2023-05-08, Ana said 'hi'", store="episodic"),
        "not a JSON object",
        Operation("DELETE", None, "9f3a", "semantic"),
        "unknown operation",
    ]
    assert parse_memalpha("") == () and parse_memalpha("[]") == ()
    assert parse_memalpha("✿FUNCTION✿: memory_update")[0].reason == "not a JSON object"
    deep = "✿FUNCTION✿: memory_update\n✿ARGS✿: " + '{"a":' * 100_000
    assert parse_memalpha(deep)[0].reason == "not a JSON object"


def test_memalpha_plays_three_stores_by_the_published_rules():
    chat = ScriptedChat(lambda said: MEMALPHA)
    player = make_system("memalpha-4b", chat=chat)
    assert (player.settings.memory, player.settings.top_k) == ("layered", 20)
    [[one]] = play(
        [instance_of("one", "two")], player.manager, player.settings, reader_for(STREAMS), 0
    )
    assert contents(one) == ["The user talks about work.", "At 2023-05-08, Ana said 'hi'"]
    said = [[outcome.applied for outcome in step.outcomes] for step in one.steps]
    assert said[0] == [True, True, False, True, False], "a DELETE of nothing succeeds, as published"
    assert "The user talks about work." in chat.seen[1] and "1 most recent of 1" in chat.seen[1]


def test_memalpha_is_shown_the_most_recent_items_of_each_store():
    insert = '✿FUNCTION✿: new_memory_insert\n✿ARGS✿: {"memory_type": "semantic_memory",'
    chat = ScriptedChat(lambda said: f'{insert} "content": "fact {len(chat.seen)}"}}')
    player = make_system("memalpha-4b", chat=chat)
    play([instance_of(*"abcdefg")], player.manager, player.settings, reader_for(STREAMS), 0)
    shown = chat.seen[-1]
    assert "fact 1" not in shown and "fact 2" in shown and "fact 6" in shown
    assert "the 5 most recent of 6 items" in shown


@pytest.mark.parametrize(
    ("name", "family"), [("memalpha-4b", "qwen3"), ("memory-r2", "qwen2"), ("memory-r1", "qwen3")]
)
def test_a_random_model_of_the_architecture_plays_a_published_manager(name, family, tmp_path):
    """The loading and the path of a model in this process; what it writes is noise."""
    save_tiny_model(tmp_path, family)
    chat = make_chat(local(str(tmp_path)))
    player = make_system(name, chat=chat)
    [[one]] = play(
        [instance_of("Mia sails.")], player.manager, player.settings, reader_for(STREAMS), 0
    )
    assert chat.usage.calls >= 1 and one.num_steps == 1
    assert not any(outcome.applied for outcome in one.steps[0].outcomes)


@pytest.mark.parametrize(
    ("name", "profile"), [("memalpha-4b", "memalpha-4b"), ("memory-r2", "memory-r2-7b")]
)
def test_a_profile_of_published_weights_says_what_it_downloads(name, profile):
    published = PUBLISHED[name]
    assert published.model in SYSTEMS[name].label
    loaded = load_profile(ROOT / "notebooks/profiles", profile)
    assert f"{published.model}" in loaded.description
    assert published.download in loaded.description
    assert name in loaded.notebook_parameters["06"]["systems"]
    roles = read_yaml(ROOT / loaded.parameters["models"])
    assert roles["writer"]["model"] == published.model and "reader" not in roles
