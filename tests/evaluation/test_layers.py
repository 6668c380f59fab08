"""What the layers are used for, and the signs of failure, counted by hand."""

from __future__ import annotations

import dataclasses

from finemem_lib.data.worked_example import worked_example
from finemem_lib.evaluation.layers import (
    failure_signs,
    is_layered,
    lost_turns,
    signs_frame,
    use_frame,
    utilisation,
)
from finemem_lib.layers.memory import LayeredMemory
from finemem_lib.layers.operations import parse_calls
from finemem_lib.memory import FlatMemory
from finemem_lib.operations import BAD_STORE, NOT_JSON, UNKNOWN_OPERATION, parse_operations
from finemem_lib.trajectory import AnsweredQuestion, Chunk, Question, Retrieved
from tests.helpers.memory_strategies import played


def insert(store: str, content: str) -> str:
    return (
        f'{{"name":"memory_insert","arguments":{{"memory_type":"{store}","content":"{content}"}}}}'
    )


STEPS = [
    "[" + ",".join([insert("semantic", "Mia owns cats"), insert("notes", "lost")]) + "]",
    "["
    + ",".join(
        [
            insert("episodic", "On day 3 Mia saw Rome"),
            insert("episodic", "On day 3 Mia saw Oslo"),
            insert("episodic", "Mia left"),
        ]
    )
    + "]",
    '[{"name":"memory_delete","arguments":{"memory_type":"semantic","memory_id":"s1"}},'
    '{"name":"memory_delete","arguments":{"memory_type":"semantic","memory_id":"s9"}},'
    '{"name":"memory_rename","arguments":{"memory_type":"semantic"}}]',
]


def by_hand():
    one = played(LayeredMemory(), [[*parse_calls(said)] for said in STEPS]).trajectory
    question = Question("q", "Who saw Rome?", ("Mia",), "planted")
    found = (Retrieved("e2", 1.0, (2,)),)
    asked = AnsweredQuestion(question, 3, found, "Mia", None, 1.0)
    return dataclasses.replace(one, questions=(asked,))


def test_calls_tokens_and_what_was_never_retrieved_by_store():
    semantic, episodic = utilisation({"mine": [by_hand()]})
    assert (semantic.store, episodic.store) == ("semantic", "episodic")
    assert semantic.calls == {"INSERT": 1, "UPDATE": 0, "DELETE": 2} and semantic.refused == 1
    assert (semantic.written, semantic.retrieved, semantic.items, semantic.tokens) == (1, 0, 0, 0)
    assert semantic.never_retrieved == 1.0
    assert episodic.calls == {"INSERT": 3, "UPDATE": 0, "DELETE": 0} and episodic.refused == 0
    assert (episodic.items, episodic.tokens) == (3, 6 + 6 + 2)
    assert episodic.never_retrieved == 1 - 1 / 3
    frame = use_frame([semantic, episodic])
    assert frame.loc[("mine", "episodic"), "never retrieved"] == "67%"


def test_a_flat_memory_is_one_store():
    [row] = utilisation({"flat": [worked_example()]})
    assert row.store == "flat" and row.never_retrieved == 0.0
    nothing = played(LayeredMemory(), [[]]).trajectory
    assert utilisation({"nothing": [nothing]}) == []


def test_the_signs_of_failure():
    [signs] = failure_signs([by_hand()])
    assert (signs.trajectories, signs.layered, signs.empty_core) == (1, 1, 1)
    assert signs.same_timestamp == 1 and (signs.undated, signs.episodic) == (1, 3)
    assert signs.calls == 8
    assert signs.malformed == {BAD_STORE: 1, UNKNOWN_OPERATION: 1} or signs.malformed == {
        UNKNOWN_OPERATION: 1,
        BAD_STORE: 1,
    }
    assert signs.refused == {"unknown id": 1}
    frame = signs_frame({"mine": [by_hand()]})
    assert frame.loc[("mine", "planted"), "empty core"] == "1 of 1"
    assert frame.loc[("mine", "planted"), "lost assistant turns"] == "–"


def test_a_core_and_different_times_are_no_sign():
    said = [
        '[{"name":"memory_update","arguments":{"memory_type":"core","new_content":"Mia travels"}},'
        + insert("episodic", "On day 3 Mia saw Rome")
        + ","
        + insert("episodic", "On day 4 Mia saw Oslo")
        + "]"
    ]
    one = played(LayeredMemory(), [[*parse_calls(text)] for text in said]).trajectory
    [signs] = failure_signs([one])
    assert (signs.empty_core, signs.same_timestamp, signs.undated) == (0, 0, 0)


def test_sources_are_counted_apart_and_a_flat_memory_has_no_core_to_be_empty():
    flat = played(FlatMemory(), [[*parse_operations("[{'op': 'INSERT'}]")]]).trajectory
    flat = dataclasses.replace(flat, data_source="squad")
    one, two = failure_signs([by_hand(), flat])
    assert (one.data_source, two.data_source) == ("planted", "squad")
    assert (two.layered, two.empty_core) == (0, 0) and not is_layered(flat)
    assert sum(two.malformed.values()) == two.calls == 1 and NOT_JSON not in two.malformed


TURN = "The old mill near Porto grinds barley, wheat and rye every Sunday morning in June"


def test_a_turn_of_the_assistant_is_lost_unless_something_of_it_was_written():
    chunk = Chunk(f"<User>What about the mill?\n<Assistant>{TURN}\n<User>Thanks", 30)
    nothing = played(FlatMemory(), [[]]).trajectory.steps[0]
    assert lost_turns(dataclasses.replace(nothing, chunk=chunk)) == [True]
    said = parse_operations('[{"op":"INSERT","content":"The mill near Porto grinds rye"}]')
    wrote = played(FlatMemory(), [[*said]]).trajectory.steps[0]
    assert lost_turns(dataclasses.replace(wrote, chunk=chunk)) == [False]
    short = Chunk("<User>Hello\n<Assistant>I will remember that.", 9)
    assert lost_turns(dataclasses.replace(nothing, chunk=short)) == []
