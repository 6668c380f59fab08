"""Revised facts: generated streams, and FactConsolidation's rows."""

from __future__ import annotations

import json
from collections import Counter

import pytest

from finemem_lib.data.fact_consolidation import numbered_facts, revisions_of, versions
from finemem_lib.data.memalpha import load_instances
from finemem_lib.data.revised import KINDS, RevisionSettings, revised_stream
from finemem_lib.data.sentences import units
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.trajectory import Instance, from_json, to_json

CONTEXT = (
    "Here is a list of facts:\n"
    "0. The capital of Freedonia is Glip.\n"
    "1. Mia Holt plays the position of goalkeeper.\n"
    "2. The capital of Freedonia is Glop.\n"
    "3. The author of Nightfall is Ana Roy.\n"
    "4. The capital of Freedonia is Glup.\n"
)


def row(source: str, questions: list[str], answers: list[list[str]]) -> dict:
    return {
        "context": CONTEXT,
        "questions": questions,
        "answers": answers,
        "metadata": {"source": source},
    }


@pytest.mark.parametrize("seed", range(5))
def test_every_question_asks_for_the_last_value_and_knows_its_revisions(seed):
    one = revised_stream(seed)
    told = [(step, fact) for step, facts in enumerate(one.metadata["facts"], 1) for fact in facts]
    values = {}
    for step, fact in told:
        assert f"{fact['sentence']}." in one.chunks[step - 1].text
        slot = fact["person"], fact["attribute"]
        assert fact["changed"] == (slot in values)
        values.setdefault(slot, []).append(fact["value"])
    assert all(len(v) == len({*v}) for v in values.values())
    counts = Counter(len(v) - 1 for v in values.values())
    assert counts == {revisions: 3 for revisions in range(5)}  # 15 slots, 0 to 4 times each
    for question in one.questions:
        about = one.metadata["revisions"][question.question_id]
        assert about["kind"] in KINDS and len(about["former"]) <= about["revisions"]
        if about["kind"] == "single":
            [slot] = [
                slot
                for slot, v in values.items()
                if slot[0] in question.text and v[-1] == question.answers[0]
            ]
            assert about["revisions"] == len(values[slot]) - 1
            assert about["former"] == sorted(values[slot][:-1])
            [step] = question.evidence_steps
            assert any(f["value"] == question.answers[0] for f in one.metadata["facts"][step - 1])
    assert from_json(Instance, to_json(one)) == one


def test_a_stream_is_the_same_for_the_same_seed_and_refuses_what_cannot_be():
    assert revised_stream(3) == revised_stream(3) != revised_stream(4)
    with pytest.raises(ValueError, match="num_chunks is 4, expected 5 to"):
        revised_stream(0, RevisionSettings(num_chunks=4))
    with pytest.raises(ValueError, match="people is 1, expected 2 to"):
        revised_stream(0, RevisionSettings(people=1))


@pytest.mark.parametrize("name", ["oracle", "oracle-replace"])
def test_update_and_delete_with_insert_end_with_the_same_contents(name):
    one = revised_stream(1)
    settings = RolloutSettings(num_generations=1)
    [[played]] = play([one], make_manager(name), settings, reader_for([one]), 0)
    last = {(f["person"], f["attribute"]): f["sentence"] for s in one.metadata["facts"] for f in s}
    assert {item.content for item in played.final_memory()} == {*last.values()}
    kinds = Counter(o.operation.kind for step in played.steps for o in step.outcomes)
    assert ("UPDATE" in kinds) == (name == "oracle") and ("DELETE" in kinds) != ("UPDATE" in kinds)
    assert all(o.applied for step in played.steps for o in step.outcomes)


def test_rows_of_fact_consolidation_become_instances_of_conflict_resolution(tmp_path):
    path = tmp_path / "rows.jsonl"
    asked = ["What is the capital of Freedonia?", "Who is the author of Nightfall?", "Who sails?"]
    answers = [["Glup"], ["Ana Roy"], ["Mia"]]
    rows = [
        row("factconsolidation_sh_6k", asked, answers),
        row("factconsolidation_mh_6k", asked[:1], answers[:1]),
    ]
    path.write_text("".join(json.dumps(one) + "\n" for one in rows), encoding="utf-8")
    single, multi = load_instances(path).instances
    assert single.category == multi.category == "CR"
    assert "Fact 4: The capital of Freedonia is Glup." in units(single.chunks[0].text)
    told = single.metadata["revisions"]
    assert [told[f"q-{n}"]["revisions"] for n in (1, 2, 3)] == [2, 0, None]
    assert told["q-1"]["former"] == ["Glip", "Glop"]
    assert multi.metadata["revisions"] == {
        "q-1": {"kind": "chain", "revisions": None, "former": []}
    }
    [[played], _] = play(
        [single, multi],
        make_manager("insert-all"),
        RolloutSettings(num_generations=1),
        reader_for([single]),
        0,
    )
    assert played.questions[1].score == 1.0


def test_a_list_without_numbers_is_refused_with_its_field(tmp_path):
    path = tmp_path / "rows.jsonl"
    broken = row("factconsolidation_sh_6k", ["Who?"], [["Mia"]]) | {"context": "Mia sails."}
    path.write_text(json.dumps(broken) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match='line 1, field context: expected lines "0. a fact"'):
        load_instances(path)


def test_later_facts_are_newer_whatever_their_place():
    facts = [(7, "X is married to B."), (3, "X is married to A."), (9, "X is married to A.")]
    assert versions(facts) == {"x is married to": ["A", "B", "A"]}
    assert numbered_facts("  3) One is a.\n12. Two is b.") == [(3, "One is a."), (12, "Two is b.")]
    told = revisions_of(facts, "factconsolidation_sh_6k", ["Whom is X married to?"], [["A"]])
    assert told["q-1"] == {"kind": "single", "revisions": 2, "former": ["B"]}
