"""The exercises of the lesson: right answers pass, wrong ones are named, no diagnosis tells."""

from __future__ import annotations

import dataclasses
import math
import re

import nbformat
import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from finemem_lib.credit.rules import RULES, assign, credit_update
from finemem_lib.lesson.cases import (
    disagreement,
    duplicates,
    insert,
    lucky_guess,
    play_script,
    pushed_out,
    story,
    toy,
)
from finemem_lib.lesson.exercises import (
    EXERCISES,
    LESSON_BETA,
    REASONS,
    TOLERANCE,
    Revelation,
    check_exercise,
    reveal,
)
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import (
    RewardSettings,
    eara_rewards,
    evidence_contribution,
    outcome_reward,
)
from tests.helpers.paths import ROOT

NOTEBOOKS = ROOT / "notebooks"

BY_HAND = {
    "evidence": [0, 1 / 4, 0, 1 / 8, 1 / 8],
    "eara": [0.75 / 10, 0.75 / 10 + 1 / 16, 0.75 / 10, 0.75 / 10 + 1 / 32, 0.75 / 10 + 1 / 32],
    "conservation": 0.5 / 4,
    "advantages": [1, 0, None, -1],
    "contribution": [0, 1 / 2, 0, 0],
}
"""Worked out on paper, to two digits or better."""


def numbers_in(text: str) -> set[float]:
    return {float(found) for found in re.findall(r"-?\d+(?:\.\d+)?", text)}


def code_cells(name: str) -> list[str]:
    (path,) = NOTEBOOKS.glob(f"{name}_*.ipynb")
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


def test_there_are_five_exercises_and_each_has_been_worked_by_hand():
    assert len(EXERCISES) == 5
    assert set(BY_HAND) == set(EXERCISES)
    assert LESSON_BETA == 0.25


@pytest.mark.parametrize("name", BY_HAND)
def test_the_answer_worked_by_hand_is_right(name):
    assert check_exercise(name, BY_HAND[name]).right is True


@pytest.mark.parametrize("name", BY_HAND)
def test_answers_may_be_tuples_and_arrays(name):
    if name in ("conservation", "advantages"):  # one number; holds None
        return
    assert check_exercise(name, tuple(BY_HAND[name])).right is True
    assert check_exercise(name, np.array(BY_HAND[name])).right is True


@pytest.mark.parametrize("name", BY_HAND)
def test_no_answer_is_neither_right_nor_wrong(name):
    verdict = check_exercise(name, None)
    assert (verdict.right, str(verdict)) == (None, "not answered yet")


WRONG = [
    ("evidence", [0, 0.25, 0, 0.125], "expected 5"),
    ("evidence", 0.25, "expected a list"),
    ("evidence", [0, "a quarter", 0, 0.125, 0.125], "is no number"),
    ("evidence", [0, float("nan"), 0, 0.125, 0.125], "is no number"),
    ("evidence", [0, True, 0, 0.125, 0.125], "is no number"),
    ("evidence", [0, 0.25, None, 0.125, 0.125], "None stands where"),
    ("evidence", [0, 0.25, 0, 0.25, 0], "items the agent used"),
    ("evidence", [0.125, 0.25, 0, 0, 0.125], "created it"),
    ("evidence", [0.0625, 0.25, 0, 0.0625, 0.125], "all its writes"),
    ("evidence", [0, 1, 0, 0.5, 0.5], "only one"),
    ("evidence", [0, 0.5, 0, 0.25, 0.25], "answered right"),
    ("evidence", [0, 0.25, 0, 0.25, 0.25], "share it among them"),
    ("evidence", [0, 0.625, 0, 0.25, 0.125], "you credit retrieval"),
    ("evidence", [0.1] * 5, "even split"),
    ("evidence", [0, -0.25, 0, -0.125, -0.125], "sign"),
    ("evidence", [0, 0.75, 0, 0.375, 0.375], "right proportion"),
    ("evidence", [0.125, 0.25, 0, 0.125, 0], "not all of them at the right step"),
    ("evidence", [-0.956, 1.434, -0.956, 0.239, 0.239], "standardised"),
    ("evidence", [0.2, 0.2, 0.1, 0.1, 0.1], "sum to 0.7 instead of r_global"),
    ("evidence", [0.2, 0.1, 0.1, 0.1, 0.0], "the sum is right"),
    ("evidence", [0.4, 0.2, -0.1, 0, 0], "negative"),
    ("eara", [0.025, 0.2125, 0.025, 0.11875, 0.11875], "changed places"),
    ("eara", [0.05, 0.175, 0.05, 0.1125, 0.1125], "default of beta"),
    ("eara", [0.375, 0.4375, 0.375, 0.40625, 0.40625], "number of steps T"),
    ("eara", [0, 0.25, 0, 0.125, 0.125], "evidence alone"),
    ("eara", [0.1] * 5, "even split alone"),
    ("eara", [0, 0.0625, 0, 0.03125, 0.03125], "even part is missing"),
    ("eara", [0.1, 0.35, 0.1, 0.225, 0.225], "without their weights"),
    ("eara", [0.075, 0.1375, 0.075, 0.1375, 0.075], "used"),
    ("conservation", [], "0 numbers, expected one number."),
    ("conservation", 0, '"spread"'),
    ("conservation", 0.625, "still get"),
    ("conservation", 0.25, "evidence part"),
    ("conservation", 0.5, "one of several"),
    ("conservation", 0.375, "all questions"),
    ("conservation", -0.125, "sign"),
    ("conservation", 0.06, "work it out again"),
    ("advantages", [0.4, 0, None, -0.4], "nothing is divided"),
    ("advantages", [1.2247, 0, None, -1.2247], "unbiased"),
    ("advantages", [2.25, 1.25, None, 0.25], "mean is still in"),
    ("advantages", [0.9, 0.5, None, 0.1], "rewards themselves"),
    ("advantages", [1.276, 0.304, -0.911, -0.669], "None is not a number"),
    ("advantages", [1, 0, 0, -1], "has no advantage"),
    ("advantages", [-1, 0, None, 1], "sign"),
    ("advantages", [0.707, 0.707, None, -0.707], "each other"),
    ("advantages", [1.5, 0.5, None, 0.5], "sum to 2.5 instead of 0"),
    ("contribution", [0.25] * 4, "share"),
    ("contribution", [0.25, 0.5, 0.25, 0], "all orders"),
    ("contribution", [0, 0.5, 0.5, 0], "used"),
    ("contribution", [0, 1, 0, 0], "one of two"),
    ("contribution", [0.5, 0.5, 0.5, 0], "both"),
    ("contribution", [0, -0.5, 0, 0], "sign"),
]


@pytest.mark.parametrize(("name", "answer", "expected"), WRONG)
def test_a_typical_wrong_answer_gets_its_diagnosis(name, answer, expected):
    verdict = check_exercise(name, answer)
    assert verdict.right is False
    assert expected in verdict.message


def flat(answer) -> list[float]:
    answer = answer if isinstance(answer, list | tuple) else [answer]
    return [float(value) for value in answer if isinstance(value, int | float)]


def own_numbers(name, answer) -> set[float]:
    """What a diagnosis may repeat: length and sum of the answer, the length asked for, and the
    numbers of the exercise's own words."""
    values = [value for value in flat(answer) if math.isfinite(value)]
    length = len(answer) if isinstance(answer, list) else 1
    right = EXERCISES[name]().right
    return {length, len(right), float(f"{round(math.fsum(values), 4) + 0.0:g}"), *ALLOWED[name]}


ALLOWED = {
    "evidence": set(),
    "eara": {1.0},
    "conservation": set(),
    "contribution": set(),
    "advantages": {0.0, 1.0},
}
"""Numbers that are no part of an answer: "1 - beta", "mean 0", and what advantages sum to."""


@pytest.mark.parametrize(("name", "answer", "expected"), WRONG)
def test_no_diagnosis_of_a_typical_wrong_answer_tells_a_number_of_the_right_one(
    name, answer, expected
):
    message = check_exercise(name, answer).message
    told = numbers_in(message.replace("mean 0 and standard deviation 1", "")) - own_numbers(
        name, answer
    )
    assert not told


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_no_diagnosis_of_any_answer_tells_a_number_of_the_right_one(data):
    name = data.draw(st.sampled_from(sorted(EXERCISES)))
    value = st.one_of(
        st.none(), st.sampled_from([0.0, 0.125, 0.25, 0.5, 1.0, -1.0]), st.floats(-3, 3)
    )
    answer = data.draw(st.lists(value, min_size=0, max_size=6))
    verdict = check_exercise(name, answer)
    if not verdict.right:
        message = verdict.message.replace("mean 0 and standard deviation 1", "")
        assert not numbers_in(message) - own_numbers(name, answer)


@pytest.mark.parametrize("name", sorted(EXERCISES))
def test_every_mistake_that_is_recognised_differs_from_the_solution_and_from_the_others(name):
    exercise = EXERCISES[name]()
    everything = [exercise.right, *(wrong for wrong, _ in exercise.mistakes)]
    for place, one in enumerate(everything):
        for other in everything[:place]:
            assert any(
                (a is None) != (b is None) or (a is not None and abs(a - b) > 2 * TOLERANCE)
                for a, b in zip(one, other, strict=True)
            ), (one, other)


def test_an_unknown_exercise_is_refused_by_name():
    with pytest.raises(ValueError, match="there are evidence, eara"):
        check_exercise("eera", [0.0])


def test_the_notebook_has_every_exercise_once_and_leaves_it_unanswered():
    cells = [
        source
        for source in code_cells("03")
        if "check_exercise(" in source and "import" not in source
    ]
    assert all(source.startswith("answer = None  # your answer") for source in cells)
    names = [name for source in cells for name in re.findall(r'check_exercise\("(\w+)"', source)]
    assert names == list(EXERCISES)


@pytest.mark.parametrize("notebook", ["03", "08"])
def test_predictions_are_left_open_and_revealed_in_the_same_cell(notebook):
    cells = [source for source in code_cells(notebook) if "predicted" in source]
    assert len(cells) >= 4
    assert all(source.startswith("predicted = None  # ") for source in cells)
    names = [re.findall(r'reveal\("([\w ]+)", predicted,', source) for source in cells]
    assert all(len(found) == 1 and found[0] in REASONS for found in names)
    said = "\n".join(code_cells(notebook))
    assert not [reason for reason in REASONS.values() if reason[:25] in said]


def test_a_revelation_is_folded_until_there_is_a_prediction():
    folded = Revelation(None, 0.25, "because <b>")
    assert folded._repr_html_().startswith("<details><summary>No prediction yet")
    assert "&lt;b&gt;" in folded._repr_html_()
    assert str(folded) == "no prediction; it is 0.25: because <b>"
    opened = Revelation([1, 2], [1 / 3, None], "x")._repr_html_()
    assert opened.startswith("<details open><summary>You predicted [1, 2].")
    assert "[0.3333, None]" in opened
    assert "<script>" not in Revelation("<script>", "<script>", "x")._repr_html_()


def test_a_reason_is_filled_with_the_numbers_at_hand():
    assert "2.50 of 5.00" in str(reveal("largest term", None, "format", term=2.5, all=5))
    with pytest.raises(KeyError):
        reveal("largest term", None, "format")


def test_the_toys_are_what_their_pages_say():
    assert outcome_reward(toy()) == 0.5
    assert sum(evidence_contribution(toy())) == 0.5
    guessed = lucky_guess().questions[2]
    assert (guessed.retrieved, guessed.score) == ((), 1.0)
    contents = [item.content for item in duplicates().final_memory()]
    assert contents[0] == "Mia lives in Rome." and contents[2] == "Mia settled near Rome."


def test_the_disagreement_has_a_duplicate_an_update_a_stale_record_a_distractor_and_a_loss():
    home, pet, study, lost = disagreement().questions
    assert [item.steps for item in home.retrieved] == [(4,), (1,)] and home.used == ("4",)
    assert [item.steps for item in pet.retrieved] == [(2, 5), (7,)] and pet.used == ("2",)
    assert [item.steps for item in study.retrieved] == [(6,), (3,)] and study.used == ("5",)
    assert (lost.score, lost.used) == (0.0, ())
    assert "7" not in {item.item_id for item in disagreement().final_memory()}


def test_the_price_of_a_slot_is_what_the_page_says():
    """By hand: one of two questions is lost in one rollout, and the rollouts have 3 + 2 INSERTs."""
    stores, skips = group = pushed_out()
    assert [step.delta.evicted for step in stores.steps] == [(), (), ("1",), ()]
    assert "step 3  pushes item 1 out" in story(stores) and "pushes" not in story(skips)
    expected = {
        "two-sided-evidence": [[0, -1 / 4, 1 / 4, 0], [1 / 2, 0, 1 / 2, 0]],
        "slot-price": [[-1 / 10, -1 / 10, 4 / 10, 0], [4 / 10, 0, 4 / 10, 0]],
        "step-loo": [[0, -1 / 2, 0, 0], [1 / 2, 0, 1 / 2, 0]],
    }
    for rule, credit in expected.items():
        [found] = credit_update(rule, [group], agent=reader_for(group)).credit
        assert [pytest.approx(one) for one in credit] == found


@pytest.mark.parametrize("top_k", [1, 2])
def test_four_slots_show_what_the_page_says(top_k):
    """Three steps did harm; two-sided evidence charges these, the slot price every INSERT."""
    tight = disagreement(top_k, capacity=4)
    assert [step.step for step in tight.steps if step.delta.evicted] == [6, 7, 8]
    found = {
        rule: credit_update(rule, [[tight]], agent=reader_for([tight]))
        for rule in ("step-loo", "two-sided-evidence", "slot-price")
    }
    harmed = {
        rule: [step for step, value in enumerate(one.credit[0][0], start=1) if value < 0]
        for rule, one in found.items()
    }
    assert harmed["slot-price"] == [1, 2, 3, 4, 7, 8]
    assert harmed["two-sided-evidence"] == [7, 8, 9]
    assert harmed["step-loo"] == ([7, 8, 9] if top_k == 2 else [7, 8])
    assert found["slot-price"].measures["price"] == pytest.approx(1 / 28)


def test_the_instructor_is_told_of_harm_what_holds():
    """Incident: "only rules that replay steps can be negative" holds on this page, not at large."""
    here = disagreement()
    misled = play_script(
        "misled",
        [insert("Leo studies optics."), insert("Leo studies law.")],
        [("Leo", "study", "optics", 1)],
        2,
    )
    harm = {}
    for name, one in (("here", here), ("misled", misled)):
        reader, probes = reader_for([one]), [answered.question for answered in one.questions]
        offered = {"agent": reader, "group": [one], "probes": probes}
        harm[name] = {
            rule
            for rule, what in RULES.items()
            if "chunk questions" not in what.records
            and min(
                assign(
                    rule, one, **{key: offered[key] for key in offered if key in what.arguments}
                ).credit
            )
            < 0
        }
    assert harm["here"] and all(
        "replay" in RULES[rule].arguments
        or RULES[rule].function.__module__.endswith("lost_evidence")
        for rule in harm["here"]
    )
    assert {"evidence-loo", "evidence-shapley"} <= harm["misled"]
    note = (NOTEBOOKS / "INSTRUCTOR.md").read_text()
    assert "here only rules that replay steps or ask what was lost are negative" in note


def test_the_lesson_moves_the_rollouts_it_has_shown_with_the_rules_it_has_taught():
    """Incident: four of the eight rollouts made other advantages, and leave-one-out was missing."""
    [cell] = [source for source in code_cells("03") if "explorers.what_if_explorer(" in source]
    assert re.search(
        r"what_if_explorer\(group, settings, p\.scale_rewards,\s+agent=reader_for\(", cell
    )


def test_the_cell_on_conservation_shows_a_gap_but_not_the_answer_of_the_exercise(capsys):
    """Incident: it printed 0.000000 for both switches, so that there was nothing to see."""
    [cell] = [source for source in code_cells("03") if source.startswith("sums, lucky")]
    exec(
        cell,
        {
            "lucky_guess": lucky_guess,
            "replace": dataclasses.replace,
            "settings": RewardSettings(),
            "trajectories": [toy()],
            "eara_rewards": eara_rewards,
            "outcome_reward": outcome_reward,
        },
    )
    spread, drop, found = capsys.readouterr().out.splitlines()
    assert spread.endswith("lucky guess: none") and drop.endswith("lucky guess: a gap")
    assert BY_HAND["conservation"] not in numbers_in(spread + drop + found)


def test_a_story_names_every_operation_and_question():
    text = story(disagreement())
    assert "step 5  UPDATE item 2: Ben adopted dogs." in text
    assert "step 9  DELETE item 7" in text
    assert len(re.findall(r"^q-\d", text, re.MULTILINE)) == 4


@pytest.mark.parametrize("eighth", [0.12, 0.13])
def test_both_ways_of_rounding_an_eighth_are_right(eighth):
    exact = evidence_contribution(toy())
    assert 0.125 in exact
    rounded = [eighth if value == 0.125 else round(value, 2) for value in exact]
    assert check_exercise("evidence", rounded).right
