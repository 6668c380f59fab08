"""Trajectories of a few operations for tests of credit rules, and readers that need no model."""

from __future__ import annotations

import dataclasses
import math

from hypothesis import strategies as st

from finemem_lib.data.planted import planted_stream
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import RandomManager
from finemem_lib.memory import FlatMemory
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import Inquiry, Reading, answer_questions, reading_task
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.scoring import score
from finemem_lib.trajectory import AnsweredQuestion, Operation, Question, Trajectory
from tests.helpers.memory_strategies import MEMORY_SETTINGS, STEPS, played

PLAYED_WITH = {
    "capacity": None,
    "eviction": "oldest",
    "max_item_tokens": None,
    "duplicates": "allow",
    "top_k": 2,
}


class Echo:
    """Answers with everything it was given, newest last, so a score can be read off by eye."""

    name = settings = "echo"

    def query(self, question: str, data_source: str) -> str:
        return question

    def read(self, tasks):
        return [
            Reading(" ".join(content for _, content in task.items), tuple(i for i, _ in task.items))
            for task in tasks
        ]


class Guess(Echo):
    """Echoes, but has a guess where it was given nothing, which is right for some questions."""

    name = settings = "guess"

    def read(self, tasks):
        return [
            reading if reading.used else dataclasses.replace(reading, answer="rome")
            for reading in super().read(tasks)
        ]


def asked(name: str, text: str, *answers: str, evidence: int = 1) -> Question:
    return Question(name, text, answers, "planted", evidence_steps=(evidence,))


def recorded_steps(
    steps: list[list[Operation]],
    questions: list[Question],
    settings: dict | None = None,
    rollout: int = 0,
    chunk_scores: list[float | None] | None = None,
    agent: Echo | None = None,
) -> Trajectory:
    """Apply operations and ask the questions at the end, with the echo agent or another."""
    agent = agent or Echo()
    settings = PLAYED_WITH | (settings or {})
    top_k = settings["top_k"]
    memory = FlatMemory(**{name: value for name, value in settings.items() if name != "top_k"})
    one = played(memory, steps).trajectory
    index = BM25Retriever.from_items(memory.items)
    inquiry = Inquiry(questions, memory, index, len(steps))
    (answers,) = answer_questions([inquiry], agent, top_k)
    done = [
        dataclasses.replace(
            step,
            chunk_questions=()
            if value is None
            else (
                AnsweredQuestion(asked(f"c-{step.step}", "?", "a"), step.step, (), "", None, value),
            ),
        )
        for step, value in zip(one.steps, chunk_scores or [None] * len(steps), strict=True)
    ]
    return dataclasses.replace(
        one,
        steps=tuple(done),
        questions=answers,
        rollout=rollout,
        metadata={"rollout": settings, "agent_settings": agent.settings},
    )


def insert(content: str) -> Operation:
    return Operation("INSERT", content)


HOME = asked("q-1", "mia lives where", "rome")
PETS = asked("q-2", "ana keeps which pets", "cats and dogs", evidence=2)


def known(values) -> list[float]:
    return [value for value in values if value is not None]


questions = st.lists(
    st.sampled_from(
        [
            asked("q-1", "mia lives", "rome"),
            asked("q-2", "ana sails", "ana", "oslo"),
            asked("q-3", "cats in the", "cats"),
            asked("q-4", "oslo"),  # nobody can score the last
        ]
    ),
    min_size=1,
    max_size=4,
    unique=True,
)


@st.composite
def groups(draw: st.DrawFn, size: int = 1, agent: Echo | None = None) -> list[Trajectory]:
    """Rollouts of one instance, of random operations."""
    settings = draw(MEMORY_SETTINGS) | {"top_k": draw(st.integers(1, 6))}
    rows = draw(st.lists(STEPS.filter(bool), min_size=size, max_size=size))
    length = min(map(len, rows))
    scores = st.lists(st.sampled_from([1.0, 0.5, 0.0, None]), min_size=length, max_size=length)
    here = draw(questions)
    return [
        recorded_steps(row[:length], here, settings, rollout, [1.0, *draw(scores)[1:]], agent)
        for rollout, row in enumerate(rows)
    ]


single = st.sampled_from([Echo(), Guess()]).flatmap(
    lambda agent: st.tuples(groups(agent=agent).map(lambda group: group[0]), st.just(agent))
)
"""A trajectory and the agent that answered it; one of them scores even on an empty memory."""


def from_nothing(agent: Echo, asked_: list[Question]) -> float:
    """Return the mean score of the questions that can be scored, read from no item."""
    readings = agent.read([reading_task(question, []) for question in asked_])
    scores = known(
        score(reading.answer, question.answers, question.data_source)
        for question, reading in zip(asked_, readings, strict=True)
    )
    return math.fsum(scores) / len(scores) if scores else 0.0


def group_of_two() -> list[Trajectory]:
    good = recorded_steps(
        [[insert("mia lives rome")], [Operation("SKIP")]], [HOME], chunk_scores=[1.0, 0.0]
    )
    bad = recorded_steps(
        [[insert("buses")], [Operation("SKIP")]], [HOME], rollout=1, chunk_scores=[0.0, 0.0]
    )
    return [good, bad]


def played_group() -> list[Trajectory]:
    instance = planted_stream(5)
    settings = RolloutSettings(num_generations=3, capacity=8)
    return play([instance], RandomManager(), settings, reader_for([instance]), 1)[0]
