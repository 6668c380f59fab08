"""The table of credit rules: what they cost, what they need, and that all of them run."""

from __future__ import annotations

import dataclasses

import pytest

from finemem_lib.credit import (
    counterfactual,
    rules,
)
from finemem_lib.credit.replay import Replayer
from finemem_lib.credit.rules import RULES, assign
from finemem_lib.data.planted import planted_stream
from finemem_lib.data.worked_example import worked_example
from finemem_lib.lesson.cases import disagreement
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.managers.scripted import RandomManager
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import MemoisedAgent, Reading, reading_task
from finemem_lib.trajectory import (
    MemoryDelta,
    Step,
    Trajectory,
    from_json,
    to_json,
)
from tests.helpers.credit_cases import (
    HOME,
    PLAYED_WITH,
    Echo,
    asked,
    group_of_two,
    insert,
    played_group,
    recorded_steps,
)


class Watch(MemoisedAgent):
    """Notes what it is asked; settings and answers are those of the agent below."""

    def __init__(self, agent) -> None:
        super().__init__(agent)
        self.asked = []

    def read(self, tasks):
        self.asked += [
            (task.question, tuple(content for _, content in task.items), task.written)
            for task in tasks
        ]
        return super().read(tasks)


AGENT_RULES = [name for name, rule in RULES.items() if "agent" in rule.arguments]


@pytest.mark.parametrize("name", AGENT_RULES)
def test_what_the_outcome_read_is_never_read_again(name):
    one, *_ = played_group()
    probes = {"probes": [answered.question for answered in one.questions]}
    extra = probes if "probes" in RULES[name].arguments else {}
    outcome = Watch(reader_for([planted_stream(5)]))
    held = {item.item_id: item for item in one.final_memory()}
    outcome.read(
        [
            reading_task(answered.question, [held[item.item_id] for item in answered.retrieved])
            for answered in one.questions
        ]
    )
    alone, below = Watch(reader_for([planted_stream(5)])), Watch(reader_for([planted_stream(5)]))
    RULES[name].function(one, agent=alone, **extra)
    counted = assign(name, one, agent=MemoisedAgent(below), **extra)
    played_ = rules.calls_while_playing(name, [one])[0]
    assert counted.calls_asked - played_ == len(alone.asked)
    assert counted.calls_made - counted.calls_played == len(below.asked)
    assert set(below.asked) == set(alone.asked) - set(outcome.asked)
    if "replay" in RULES[name].arguments and name != "potential":  # some step moved no evidence
        assert set(alone.asked) & set(outcome.asked)


def test_the_readings_of_the_page_on_disagreement_are_counted_beyond_the_outcome():
    one = disagreement()
    made = {
        name: assign(name, one, agent=reader_for([one])).calls_made
        for name in ("step-loo", "step-shapley", "owen")
    }
    assert made == {"step-loo": 11, "step-shapley": 21, "owen": 20}


def test_what_is_told_as_known_is_not_asked_and_never_overwrites():
    task = reading_task(HOME, [])
    agent = MemoisedAgent(Echo())
    agent.know([task], [Reading("oslo", ())])
    agent.know([task], [Reading("lima", ())])
    assert agent.read([task]) == [Reading("oslo", ())]
    assert (agent.calls_asked, agent.calls_made) == (1, 0)


def test_another_agents_answers_are_not_told_to_this_one():
    one, *_ = played_group()
    agent = MemoisedAgent(Echo())
    with pytest.raises(ValueError, match="answers by the agent"):
        assign("step-loo", one, agent=agent)
    assert agent.memo_to_json() == "[]"


def test_no_rule_asks_for_more_than_its_card_says():
    one, *_ = group = played_group()
    n, t = len(one.questions), one.num_steps
    k = one.metadata["rollout"]["top_k"]
    chunk = max(len(step.chunk_questions) for step in one.steps)
    probes = [answered.question for answered in one.questions]
    most = {
        "csr": chunk * t,
        "attributed-dense": chunk * t,
        "mt-grpo": chunk,
        "evidence-loo": n * k,
        "evidence-shapley": n * (2**k - 1),
        "step-loo": n * t,
        "operation-loo": n * sum(len(step.outcomes) for step in one.steps),
        "step-shapley": n * 16 * t,
        "owen": n * t**2,
        "potential": len(probes) * t,
        "two-sided-evidence": n * len(group),
        "slot-price": n * len(group),
        "operation-slot-price": n * len(group),
        "value-difference": n * t,
        "igpo": n * t,
        "delta-belief": n * t,
        "himpo": n * t,
        "csr-later": chunk * t,
    }
    for name, rule in RULES.items():
        there = {"agent": reader_for([planted_stream(5)]), "group": group, "probes": probes}
        needed = {need: there[need] for need in rule.arguments if need in there}
        assert assign(name, one, **needed).calls_asked <= most.get(name, 0), name


def test_chunk_questions_read_while_playing_are_the_cost_of_the_rules_that_read_them():
    one, *_ = group = played_group()
    sizes = [len(step.chunk_questions) for step in one.steps]
    counts = {
        name: assign(name, one, **({"group": group} if "group" in rule.arguments else {}), **extra)
        for name, rule, extra in (
            *((name, rule, {}) for name, rule in RULES.items() if "agent" not in rule.arguments),
        )
    }
    asked_ = {name: found.calls_asked for name, found in counts.items() if found.calls_asked}
    assert asked_ == {"csr": sum(sizes), "attributed-dense": sum(sizes), "mt-grpo": sizes[0]}
    for found in counts.values():
        assert found.calls_played == found.calls_made <= found.calls_asked
    assert assign("mt-grpo", one, group=group, turns="all").calls_asked == sum(sizes)


def flipped(one: Trajectory, step: Step, number: int) -> Trajectory:
    """Return the trajectory with the score of one chunk question of a step turned."""
    asked_ = list(step.chunk_questions)
    asked_[number] = dataclasses.replace(asked_[number], score=1 - asked_[number].score)
    return dataclasses.replace(
        one,
        steps=tuple(
            dataclasses.replace(step, chunk_questions=tuple(asked_))
            if other.step == step.step
            else other
            for other in one.steps
        ),
    )


@pytest.mark.parametrize(
    ("name", "extra"),
    [("csr", {}), ("mt-grpo", {}), ("mt-grpo", {"turns": "all"}), ("attributed-dense", {})],
)
def test_what_is_counted_is_what_moves_the_credit(name, extra):
    """A chunk question is a call of the rollout that was asked if, and only if, its answer can
    change that rollout's credit. Those of the other rollouts move it too, and are calls of theirs.
    """
    one, other, _ = group = played_group()

    def paid(*some: Trajectory) -> list[tuple[float | None, ...]]:
        together = {"group": some} if "group" in RULES[name].arguments else {}
        return assign(name, some[0], **together, **extra).credit

    def moves(asked_: Trajectory, step: Step) -> int:
        before = paid(*group)
        return sum(
            paid(*(flipped(asked_, step, number) if two is asked_ else two for two in group))
            != before
            for number in range(len(step.chunk_questions))
        )

    together = {"group": group} if "group" in RULES[name].arguments else {}
    # What a spoilt step answers is multiplied by 0, and was asked all the same.
    spoilt = [
        step
        for step in one.steps
        if name == "attributed-dense"
        and not (step.outcomes and all(outcome.applied for outcome in step.outcomes))
    ]
    wasted = sum(len(step.chunk_questions) for step in spoilt)
    moved = sum(moves(one, step) for step in one.steps)
    assert assign(name, one, **together, **extra).calls_asked == moved + wasted
    assert moved > 0
    assert bool(together) == any(moves(other, step) for step in other.steps)
    of_all = rules.calls_while_playing(name, group, **extra)[0]
    assert of_all == sum(rules.calls_while_playing(name, [two], **extra)[0] for two in group)


def test_an_answer_from_an_item_that_was_cut_is_no_reading_of_the_others():
    """Incident: rules failed on trajectories whose evidence somebody had cut to fewer items."""
    one = worked_example()
    place, asked = next(
        (number, answered)
        for number, answered in enumerate(one.questions)
        if answered.used and answered.score is not None
    )
    kept = tuple(found for found in asked.retrieved if found.item_id not in asked.used)
    cut = dataclasses.replace(
        one,
        questions=(
            *one.questions[:place],
            dataclasses.replace(asked, retrieved=kept),
            *one.questions[place + 1 :],
        ),
    )
    (tasks, _), (fewer, _) = rules.outcome_readings(one), rules.outcome_readings(cut)
    assert len(fewer) == len(tasks) - 1
    assert assign("csr", cut).credit == assign("csr", one).credit


def test_equal_readings_while_playing_are_made_once():
    group = played_group()
    twin = dataclasses.replace(group[0], rollout=9)
    alone = rules.calls_while_playing("csr", group[:1])
    asked_, made = rules.calls_while_playing("csr", [group[0], twin])
    assert asked_ == 2 * alone[0] and made == alone[1]
    answered = [a for one in group for step in one.steps for a in step.chunk_questions]
    tasks, _ = map(list, zip(*map(rules.outcome_readings, group), strict=True))
    outcome = {
        (task.question, tuple(c for _, c in task.items), task.written)
        for some in tasks
        for task in some
    }
    seen = Watch(Echo())
    for one in group:
        held = {}
        for step in one.steps:
            held = step.delta.applied_to(held)
            seen.read(
                [
                    reading_task(a.question, [held[item.item_id] for item in a.retrieved])
                    for a in step.chunk_questions
                ]
            )
    assert len(seen.asked) == len(answered) and set(seen.asked) & outcome
    # One asked again at the end, on the same items, is the outcome's.
    made = rules.calls_while_playing("csr", group)[1]
    assert made == len(set(seen.asked) - outcome)
    torn = dataclasses.replace(
        group[0],
        steps=tuple(dataclasses.replace(step, delta=MemoryDelta()) for step in group[0].steps),
    )
    with pytest.raises(ValueError, match="cut or joined"):
        assign("csr", torn)


def test_what_a_given_replayer_asks_is_counted():
    one, *_ = played_group()
    agent = reader_for([planted_stream(5)]).agent
    expected = assign("step-loo", one, agent=agent)
    assert assign("step-loo", one, agent=agent, replay=Replayer(one, agent)) == expected
    memoised = MemoisedAgent(agent)
    replayer = Replayer(one, memoised)
    assert assign("step-loo", one, agent=memoised, replay=replayer) == expected
    assert assign("step-loo", one, agent=memoised, replay=replayer).calls_asked == 0  # it remembers


def test_every_rule_says_what_is_missing_and_what_to_do():
    good, bad = group_of_two()
    no_questions = dataclasses.replace(good, questions=())
    nameless = dataclasses.replace(
        good,
        questions=tuple(dataclasses.replace(answered, used=None) for answered in good.questions),
    )
    unchunked = dataclasses.replace(
        good, steps=tuple(dataclasses.replace(step, chunk_questions=()) for step in good.steps)
    )
    untold = dataclasses.replace(
        good,
        questions=tuple(
            dataclasses.replace(
                answered, question=dataclasses.replace(answered.question, evidence_steps=None)
            )
            for answered in good.questions
        ),
    )
    silent = dataclasses.replace(good, metadata={})
    changed = dataclasses.replace(good, metadata={"rollout": PLAYED_WITH | {"max_item_tokens": 1}})
    unknown = dataclasses.replace(good, metadata={"rollout": PLAYED_WITH | {"retriever": "sparse"}})
    agent = {"agent": Echo()}
    cases = [
        *(
            (
                name,
                no_questions,
                agent | {"group": [no_questions], "probes": [HOME]},
                "a global question",
            )
            for name in RULES
            if name not in ("csr", "csr-later")
        ),
        ("csr", unchunked, {}, "chunk questions"),
        ("csr-later", unchunked, agent, "chunk questions"),
        ("attributed-dense", unchunked, {"group": [unchunked]}, "chunk questions"),
        ("mt-grpo", unchunked, {"group": [unchunked]}, "chunk questions"),
        ("eara-used", nameless, {}, "name the items they used"),
        ("hindsight", untold, {"group": [untold]}, "evidence steps"),
        ("step-loo", silent, agent, "settings it was played with"),
        ("value-difference", silent, agent, "settings it was played with"),
        ("owen", changed, agent, "operations that lead to its final memory"),
        ("potential", unknown, agent | {"probes": [HOME]}, "retriever is 'sparse'"),
        ("potential", good, agent | {"probes": [asked("q", "who")]}, "probe question that can be"),
        ("step-shapley", good, {"agent": reader_for([])}, "answers by the agent"),
        ("evidence-loo", good, {"agent": reader_for([])}, "answers by the agent"),
        ("gigpo", good, {"group": [bad]}, "a group that holds its rollout"),
        ("gigpo", good, {"group": [good, dataclasses.replace(bad, instance_id="j")]}, "same inst"),
    ]
    for name, one, given_settings, words in cases:
        rule = RULES[name]
        allowed = {n: value for n, value in given_settings.items() if n in rule.arguments}
        with pytest.raises(ValueError, match=words):
            rule.function(one, **allowed)


def test_an_agent_that_fails_is_no_score_of_zero():
    class Failing(Echo):
        def read(self, tasks):
            return [Reading(None, ()) for _ in tasks]

    good, _ = group_of_two()
    for rule in ("evidence-loo", "step-loo", "owen", "value-difference"):
        with pytest.raises(ValueError, match="reasoning agent failed"):
            assign(rule, good, agent=Failing())
    with pytest.raises(ValueError, match="probe question that can be scored"):
        assign("potential", good, agent=Failing(), probes=[HOME])


def test_assign_refuses_what_it_cannot_do():
    with pytest.raises(ValueError, match="expected one of outcome-broadcast"):
        assign("scar", worked_example())
    with pytest.raises(ValueError, match="'gigpo' needs group"):
        assign("gigpo", worked_example())
    with pytest.raises(ValueError, match="permutations is 0"):
        one = recorded_steps([[insert(word)] for word in "abcde"], [asked("q", "a b c d e", "a")])
        counterfactual.step_shapley(one, agent=Echo(), permutations=0)


def test_unscorable_is_none_and_left_out():
    one = recorded_steps([[insert("mia lives rome")]], [HOME, asked("q-4", "oslo")])
    assert counterfactual.step_leave_one_out(one, agent=Echo()) == [1.0]
    nothing = dataclasses.replace(one, questions=one.questions[1:])
    settings_ = {"agent": Echo(), "group": [nothing], "probes": [HOME]}
    for name, rule in RULES.items():
        if "chunk questions" not in rule.records:
            needed = {n: settings_[n] for n in rule.arguments if n in settings_}
            assert rule.function(nothing, **needed) == [None], name


def test_every_rule_has_a_card():
    for name, rule in RULES.items():
        for text in (rule.formula, rule.source, rule.conserves, rule.cost):
            assert text, name


def test_all_rules_run_on_one_played_group_and_agree_with_assign():
    instance = planted_stream(5)
    agent = reader_for([instance])
    settings_ = RolloutSettings(num_generations=3, capacity=8, duplicates="allow")
    (group,) = play([instance], RandomManager(), settings_, agent, 1)
    probes = [question for asked_ in instance.chunk_questions for question in asked_]
    for name, rule in RULES.items():
        there = {"agent": agent, "group": group, "probes": probes}
        needed = {n: there[n] for n in rule.arguments if n in there}
        found = assign(name, group[0], **needed)
        assert list(found.credit) == rule.function(group[0], **needed)
        assert len(found.credit) == 6 and any(found.credit), name
        assert found.calls_made <= found.calls_asked
        read = from_json(Trajectory, to_json(group[0]))
        if "group" not in rule.arguments:
            assert tuple(rule.function(read, **needed)) == found.credit
