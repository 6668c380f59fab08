"""Where an answer was lost: every stage planted by hand, and what must hold on planted streams."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.evaluation.failure_stages import (
    STAGES,
    FailureStage,
    failure_stages,
    stage_counts,
)
from finemem_lib.figures import figure_table, question_card
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import Reading, ReadingTask
from finemem_lib.retrievers.named import WITH_ENCODER
from finemem_lib.text import count_tokens
from finemem_lib.trajectory import Chunk, Instance, Operation, Question, Trajectory
from tests.helpers.streams_by_hand import Scripted

FACT = "Mia moved to Oslo"
HOME = Question("q", "Where does Mia live?", ("Oslo",), "planted", evidence_steps=(2,))
CHUNKS = ("Mia lives in Rome. It rained.", f"Leo saw Oslo. {FACT}.", "Ana sails. Buses left.")


class Reader:
    """Answers every question in the same way."""

    name = settings = "by hand"

    def __init__(self, answer: Callable[[ReadingTask], Reading]) -> None:
        self.answer = answer

    def query(self, question: str, data_source: str) -> str:
        return question

    def read(self, tasks: Sequence[ReadingTask]) -> list[Reading]:
        return [self.answer(task) for task in tasks]


def wrong(task: ReadingTask) -> Reading:
    """Use everything and answer something else."""
    return Reading("Lima", tuple(item_id for item_id, _ in task.items))


def insert(*contents: str) -> list[Operation]:
    return [Operation("INSERT", content) for content in contents]


def played(
    *emitted: list[Operation],
    question: Question = HOME,
    answer: Callable[[ReadingTask], Reading] = wrong,
    **settings: Any,
) -> Trajectory:
    chunks = tuple(Chunk(text, count_tokens(text)) for text in CHUNKS)
    instance = Instance("by-hand", "planted", "AR", chunks, (question,))
    manager = Scripted(*emitted, *[[]] * (len(chunks) - len(emitted)))
    how = RolloutSettings(num_generations=1, **settings)
    return play([instance], manager, how, Reader(answer), 0)[0][0]


def stage(trajectory: Trajectory) -> FailureStage:
    [found] = failure_stages(trajectory)
    assert found is not None
    return found


UNKNOWN = dataclasses.replace(HOME, evidence_steps=None)


CHANGE = [Operation("UPDATE", "Ana sails", "1")]
DROP = [Operation("DELETE", item_id="1")]
ROME, NOISE, LATER = insert("Mia lives in Rome"), insert("Leo saw Oslo"), insert("Ana sails")
RIGHT: dict[str, Any] = {"answer": lambda task: Reading("Oslo", ("1",))}
OTHER: dict[str, Any] = {"answer": lambda task: Reading("Lima", ("2",))}
NOWHERE: dict[str, Any] = {"question": dataclasses.replace(UNKNOWN, answers=("Quito",))}

PLANTED: list[tuple[tuple[Any, ...], list[list[Operation]], dict[str, Any]]] = [
    (("answered", 2, "1", 1), [[], insert(FACT)], RIGHT),
    (("absent", None, None, None), [ROME], NOWHERE),
    (("not written", 2, None, None), [ROME, NOISE], {}),
    (("lost", 3, "1", None), [[], insert(FACT), CHANGE], {}),
    (("lost", 3, "1", None), [[], insert(FACT), DROP], {}),
    (("lost", 3, "1", None), [[], insert(FACT), LATER], {"capacity": 1}),
    (("lost", 2, "1", None), [[], insert(FACT, "Leo saw Oslo")], {"capacity": 1}),
    (("not retrieved", 2, "2", 2), [insert("Where does Mia live"), insert(FACT)], {"top_k": 1}),
    (("not retrieved", 2, "1", None), [[], insert("It is Oslo")], {"question": UNKNOWN}),
    (("not used", 2, "1", 1), [[], insert(FACT, "Leo saw Mia")], OTHER),
    (("misread", 2, "1", 1), [[], insert(FACT)], {}),
]
"""Stage, step, item and rank; what is emitted per step; how it is asked and played."""


@pytest.mark.parametrize(("expected", "emitted", "how"), PLANTED)
def test_every_stage_is_found_where_it_is_planted(expected, emitted, how) -> None:
    one = stage(played(*emitted, **how))
    assert (one.stage, one.step, one.item_id, one.rank) == expected
    if one.step:
        assert f"step {one.step}" in one.reason or f"#{one.item_id}" in one.reason


def test_every_stage_is_planted() -> None:
    assert {expected[0] for expected, _, _ in PLANTED} == set(STAGES)


def test_the_reason_tells_how_an_item_was_lost() -> None:
    ways = {
        "overwritten": played([], insert(FACT), [Operation("UPDATE", "Ana sails", "1")]),
        "deleted": played([], insert(FACT), [Operation("DELETE", item_id="1")]),
        "evicted": played([], insert(FACT), insert("Ana sails"), capacity=1),
    }
    for how, trajectory in ways.items():
        assert stage(trajectory).reason == f"item #1, written at step 2, was {how} at step 3"
        assert stage(trajectory).content == FACT


def without_encoder(trajectory: Trajectory, kind: str, folder: Path) -> Trajectory:
    """Return a trajectory as if dense retrieval had played it with an encoder that is not here."""
    rollout = trajectory.metadata["rollout"] | {"retriever": kind, "dense_model": str(folder)}
    return dataclasses.replace(trajectory, metadata=trajectory.metadata | {"rollout": rollout})


@pytest.mark.parametrize("kind", WITH_ENCODER)
def test_without_the_encoder_everything_but_the_rank_is_known(kind: str, tmp_path: Path) -> None:
    """Incident: the stages of a whole trajectory were refused, and with them its figures."""
    folder = tmp_path / "encoder"
    missed = played(insert("Where does Mia live"), insert(FACT), top_k=1)
    one = stage(without_encoder(missed, kind, folder))
    assert dataclasses.replace(one, reason="") == dataclasses.replace(
        stage(missed), rank=None, reason=""
    )
    assert f"its rank is not computed: it needs the encoder {folder}" in one.reason
    card = question_card(without_encoder(missed, kind, folder), "question 1")
    notes = {row["entry"]: row["note"] for row in figure_table(card) if row["series"] == "text"}
    assert "not computed: it needs the encoder" in notes["failure stage"]
    assert notes["missed"].startswith(f"#{one.item_id} {FACT}")


def test_known_evidence_is_exact_and_words_of_the_answer_are_not() -> None:
    """Leo's visit to Oslo holds the answer's word, and only the fact is evidence."""
    noise = insert("Leo saw Oslo")
    assert stage(played([], noise)).exact and stage(played([], noise)).stage == "not written"
    by_words = stage(played([], noise, question=UNKNOWN, top_k=3))
    assert not by_words.exact and by_words.stage == "not retrieved"


def test_a_refused_write_is_named() -> None:
    full = played(insert("Mia lives in Rome"), insert(FACT), capacity=1, eviction="refuse")
    assert stage(full).stage == "not written"
    assert stage(full).reason.endswith("the memory refused INSERT (over capacity)")


def test_what_an_evidence_chunk_says_counts_whoever_wrote_it() -> None:
    """A step that repeats the fact later than the chunk that states it keeps it in the memory."""
    later = played([], [], insert(FACT))
    assert stage(later).stage == "misread" and stage(later).exact


def test_both_halves_of_an_answer_are_needed() -> None:
    question = Question(
        "q", "Where do Mia and Ana live?", ("Oslo; Rome",), "planted", evidence_steps=(1, 2)
    )
    half = played([], insert(FACT), question=question)
    assert (stage(half).stage, stage(half).step) == ("not written", 1)
    both = played(insert("Mia lives in Rome"), insert(FACT), question=question)
    assert stage(both).stage == "misread"
    lost = played(
        insert("Mia lives in Rome"),
        insert(FACT),
        [Operation("DELETE", item_id="1")],
        question=question,
    )
    assert (stage(lost).stage, stage(lost).item_id, stage(lost).step) == ("lost", "1", 3)


def test_a_reader_that_does_not_say_what_it_used_is_not_exact() -> None:
    one = stage(played([], insert(FACT), answer=lambda task: Reading("Lima", None)))
    assert one.stage == "misread" and not one.exact and "does not say" in one.reason


def test_what_cannot_be_scored_has_no_stage() -> None:
    failed = played([], insert(FACT), answer=lambda task: Reading(None, None))
    assert failure_stages(failed) == [None]
    unknown = dataclasses.replace(HOME, answers=())
    assert failure_stages(played([], insert(FACT), question=unknown)) == [None]
    assert [row.total for row in stage_counts({"m": [failed]})] == [0] * len(STAGES)
    assert {row.share for row in stage_counts({"m": [failed]})} == {None}


@pytest.mark.parametrize("manager", ["facts-only", "random", "oracle", "raw-chunks"])
@pytest.mark.parametrize("world", ["plain", "paraphrased"])
def test_stages_on_planted_streams(manager: str, world: str) -> None:
    """A manager that stores every fact without a limit loses nothing before retrieval; an item that
    was not retrieved ranks below those that were."""
    instances = planted_instances("held-out", 4, 0, StreamSettings(world=world))
    settings = RolloutSettings(num_generations=1, top_k=1)
    runs = [
        group[0]
        for group in play(instances, make_manager(manager), settings, reader_for(instances), 0)
    ]
    found = [one for run in runs for one in failure_stages(run)]
    assert all(one.exact for one in found)
    rows = stage_counts({manager: runs})
    assert {row.stage: row.count for row in rows if row.count} == Counter(o.stage for o in found)
    assert sum(row.count for row in rows) == rows[0].total == len(found)
    for run in runs:
        for one, answered in zip(failure_stages(run), run.questions, strict=True):
            assert (one.stage == "answered") == (answered.score >= 0.5)
            if one.stage == "not retrieved" and one.rank:
                assert one.rank > len(answered.retrieved)
    if manager != "random":
        stages = {one.stage for one in found}
        assert stages <= {"answered", "not retrieved", "not used", "misread"}
