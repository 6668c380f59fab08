"""Predictions and self-checking exercises for notebooks 03, 08 and 10.

The solutions, and the wrong answers that a diagnosis recognises, are computed when an answer is
checked; none is stored. A diagnosis contains only the learner's own numbers, so that it does not
reveal the answer.
"""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from finemem_lib.advantages import EPSILON, group_relative
from finemem_lib.credit.counterfactual import evidence_leave_one_out, evidence_shapley
from finemem_lib.lesson.cases import as_text, duplicates, lucky_guess, toy
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import (
    RewardSettings,
    eara_rewards,
    evidence_contribution,
    outcome_reward,
)
from finemem_lib.trajectory import Trajectory

Answer = Sequence[float | None]

TOLERANCE = 0.005
"""Largest absolute error of a number in an answer."""

LESSON_BETA = 0.25
"""beta of the second exercise; it differs from the default, so that the learner must use it."""

LESSON_GROUP: tuple[tuple[float | None, ...], ...] = (
    (0.9, 0.2),
    (0.5, 0.2),
    (None, 0.2),
    (0.1, 0.2),
)
"""Rewards of the fourth exercise: four rollouts, two steps."""


@dataclass(frozen=True, slots=True)
class Revelation:
    """A value that is hidden until the learner has predicted it or opens it.

    Attributes:
        predicted: The learner's prediction, or `None`.
        actual: The value.
        because: Explanation of the value, in one sentence.
    """

    predicted: Any
    actual: Any
    because: str

    def __str__(self) -> str:
        said = "no prediction" if self.predicted is None else f"predicted {as_text(self.predicted)}"
        return f"{said}; it is {as_text(self.actual)}: {self.because}"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        summary = (
            "No prediction yet. Write yours above and run again, or open to see."
            if self.predicted is None
            else f"You predicted {as_text(self.predicted)}."
        )
        return (
            f"<details{'' if self.predicted is None else ' open'}>"
            f"<summary>{html.escape(summary)}</summary>"
            f"<p>It is <b>{html.escape(as_text(self.actual))}</b>: {html.escape(self.because)}</p>"
            "</details>"
        )


# Kept here, because in the notebook's cell they would reveal the answer.
REASONS = {
    "most evidence": "its item was retrieved for both questions.",
    "evidence": "q-1 pays 1/(2·2) to each of its two items, q-2 pays 0.5/(1·2) to its one.",
    "even part": "half of the outcome is split evenly, 0.5 · 0.75 / 4, deserved or not.",
    "largest term": "it pays {term:.2f} of {all:.2f} in all.",
    "dead group": "all earned the same, so nobody did better than the group: no gradient.",
    "sums": "they are off by up to {gap:.2f}; every step has a mean and a spread of its own.",
    "noise": "it was retrieved for a question that was answered, so it shares the score.",
    "duplicate": "either record can go without loss, so each is found useless. Shapley values pay "
    "{first:g} and {second:g}.",
    "update": "without step 2 the UPDATE of step 5 has no record to change, so both are needed, "
    "and each is paid the whole answer.",
    "distractor": "the rule shares among all that were retrieved, and noise was. Retrieval goes "
    "along with the answer; it need not cause it.",
    "stale": "one pays every step, one pays whatever was retrieved. Read alone, the record answers "
    "wrong.",
    "deletion": "without the deletion the answer is right; without the INSERT it is as wrong as "
    "before. The Owen values are {insert:g} and {delete:g}.",
    "slot price": "q-1 of rollout 1 is answered from a memory that lost nothing, so 1/2 was pushed "
    "out, and the rollouts have 3 + 2 INSERTs.",
    "inherited": "the step itself added {effect:g} to its outcome, and among the rollouts with the "
    "same memory its advantage is {within:+g}. The rest is what it inherited.",
}
"""Explanations of the values, by the name of the prediction."""


def reveal(name: str, predicted: Any, actual: Any, **numbers: float) -> Revelation:
    """Return a prediction with the value and its explanation, for display in a cell.

    Args:
        name: Key of the explanation in `REASONS`.
        predicted: The learner's prediction, or `None`.
        actual: The value.
        **numbers: Numbers for the placeholders of the explanation.

    Raises:
        KeyError: there is no prediction of this name, or a number is missing.

    >>> reveal("most evidence", 2, 3)
    predicted 2; it is 3: its item was retrieved for both questions.
    """
    return Revelation(predicted, actual, REASONS[name].format(**numbers))


@dataclass(frozen=True, slots=True)
class Verdict:
    """The result of a check.

    Attributes:
        right: Whether the answer is right; `None` without an answer.
        message: A sentence for the learner.
    """

    right: bool | None
    message: str

    def __str__(self) -> str:
        return self.message


@dataclass(frozen=True, slots=True)
class Exercise:
    """The solution of an exercise, with known wrong answers.

    Attributes:
        per: The unit of each number, such as "step".
        total: The required sum of the numbers, with its name; `None` if there is none.
        mistakes: Wrong answers, each with a description of the mistake.
        praise: The message for a right answer.
    """

    right: Answer
    per: str
    total: tuple[float, str] | None
    mistakes: tuple[tuple[Answer, str], ...]
    praise: str


def _measured(values: Answer) -> list[float]:
    """Return the values that are not `None`."""
    return [value for value in values if value is not None]


def _outcome(case: Trajectory) -> float:
    [outcome] = _measured([outcome_reward(case)])
    return outcome


def _undivided_evidence(case: Trajectory) -> Answer:
    """Return the evidence of every step if each retrieved item got the whole score."""
    return [
        math.fsum(
            (answered.score or 0.0) / len(case.questions)
            for answered in case.questions
            for item in answered.retrieved
            if item.steps[-1] == step
        )
        for step in range(1, case.num_steps + 1)
    ]


def _evidence() -> Exercise:
    case = toy()
    right = _measured(evidence_contribution(case))
    outcome, steps, n = _outcome(case), case.num_steps, len(case.questions)
    scored = sum(bool(answered.score) for answered in case.questions)

    def under(**choice: Any) -> Answer:
        return evidence_contribution(case, RewardSettings(**choice))

    all_right = replace(
        case, questions=tuple(replace(answered, score=1.0) for answered in case.questions)
    )
    return Exercise(
        right,
        "step",
        (outcome, "r_global"),
        (
            (
                under(credited="used"),
                "you share a question's score among the items the agent used; "
                "the rule shares it among all that were retrieved.",
            ),
            (
                under(attribution="creation"),
                "an updated item speaks for the step that created it "
                "in your answer; look up which of its writes phi(m) names.",
            ),
            (
                under(attribution="lineage"),
                "you divide an updated item's share among all its writes; phi(m) is one step.",
            ),
            (
                [n * part for part in right],
                "every question counts as if it were the only one; "
                "what else than |M_j| does the formula divide by?",
            ),
            (
                [n * part / scored for part in right],
                "n counts the questions that were scored, not only those that were answered right.",
            ),
            (
                _undivided_evidence(case),
                "every retrieved item gets the whole score of its question; share it among them.",
            ),
            (
                evidence_contribution(all_right),
                "you credit retrieval; a question pays out its "
                "score s_j, so look at the scores again.",
            ),
            (
                [outcome / steps] * steps,
                "that is the even split of the outcome; evidence goes to "
                "the steps that wrote what was retrieved.",
            ),
        ),
        "evidence pays the writer of every retrieved item, needed or not.",
    )


def _eara() -> Exercise:
    case, beta = toy(), LESSON_BETA
    evidence = _measured(evidence_contribution(case))
    outcome, steps = _outcome(case), case.num_steps

    def under(**choice: Any) -> Answer:
        return eara_rewards(case, RewardSettings(**{"beta": beta, **choice}))

    return Exercise(
        under(),
        "step",
        (outcome, "r_global"),
        (
            (under(beta=1 - beta), "beta and 1 - beta have changed places."),
            (
                under(beta=RewardSettings().beta),
                "you used the default of beta, not the one that is asked for.",
            ),
            (
                [(1 - beta) * outcome + beta * part for part in evidence],
                "every step gets the whole even part; it is divided by the number of steps T.",
            ),
            (evidence, "that is the evidence alone; mix it with the even split."),
            ([outcome / steps] * steps, "that is the even split alone; mix it with the evidence."),
            ([beta * part for part in evidence], "the even part is missing."),
            (
                [outcome / steps + part for part in evidence],
                "the two parts are added without their weights.",
            ),
            (
                under(credited="used"),
                "your evidence goes to the items the agent used; the rule "
                "takes all that were retrieved.",
            ),
            (
                under(attribution="creation"),
                "your evidence for an updated item goes to the step "
                "that created it; look up phi(m).",
            ),
        ),
        "the mix keeps the sum for every beta, because both parts have it.",
    )


def _conservation() -> Exercise:
    case, settings = lucky_guess(), RewardSettings(unretrieved="drop")
    outcome, n = _outcome(case), len(case.questions)
    paid = math.fsum(_measured(eara_rewards(case, settings)))
    lost = outcome - paid
    return Exercise(
        [lost],
        "question",
        None,
        (
            (
                [0.0],
                'with "spread" nothing is lost; with "drop" a question without a '
                "retrieved item pays no evidence.",
            ),
            ([paid], "that is what the steps still get; asked is what is missing."),
            (
                [1 / n],
                "only the evidence part of the reward can be lost; the even part is paid "
                "as before.",
            ),
            ([settings.beta], "the question is one of several; r_global is a mean over them."),
            (
                [1.0],
                "that is the score of the question; how much of r_global is it, and which "
                "part of that follows the evidence?",
            ),
            (
                [settings.beta * outcome],
                "that is the evidence part of all questions; only one of them has no item.",
            ),
            ([outcome], "that is r_global, all of it."),
        ),
        'a reward nobody gets; "spread" gives it to all steps instead.',
    )


def _advantages() -> Exercise:
    rewards = [row[0] for row in LESSON_GROUP]
    known = _measured(rewards)
    mean, std = statistics.fmean(known), statistics.stdev(known)

    def at_step_one(rows: Sequence[Answer], scale: Any = "group") -> Answer:
        return [row[0] for row in group_relative(rows, scale)]

    zeroed = [[0.0 if reward is None else reward] for reward in rewards]
    own = [
        None
        if row[0] is None
        else (row[0] - statistics.fmean(_measured(row)))
        / (statistics.stdev(_measured(row)) + EPSILON)
        for row in LESSON_GROUP
    ]

    def each(change: Callable[[float], float]) -> Answer:
        return [None if reward is None else change(reward) for reward in rewards]

    return Exercise(
        at_step_one(LESSON_GROUP),
        "rollout",
        (0.0, "0, as deviations from a mean do"),
        (
            (
                at_step_one(LESSON_GROUP, "none"),
                "the mean is taken off, but nothing is divided by the standard deviation.",
            ),
            (
                at_step_one(LESSON_GROUP, "batch"),
                "you divide by the standard deviation of all rewards; the group is one step.",
            ),
            (
                each(lambda reward: (reward - mean) / statistics.pstdev(known)),
                "you divide the "
                "squares by the number of rewards; the estimator here is the unbiased one.",
            ),
            (
                each(lambda reward: reward / std),
                "you divide by the standard deviation, but the mean is still in.",
            ),
            (rewards, "these are the rewards themselves."),
            (
                at_step_one(zeroed),
                "the unmeasured reward counts as a zero in your mean; None is not a number.",
            ),
            (
                [0.0 if value is None else value for value in at_step_one(LESSON_GROUP)],
                "a reward that was not measured has no advantage either, not even the average one.",
            ),
            (
                own,
                "you compare a rollout's steps with each other; the group is all rollouts at "
                "one step.",
            ),
        ),
        "and step 2, where all rollouts earned the same, gives no gradient at all.",
    )


def _contribution() -> Exercise:
    case = duplicates()
    agent = reader_for([case])
    right = _measured(evidence_leave_one_out(case, agent=agent))
    n = len(case.questions)
    holders = [
        sum(answered.question.answers[0] in item.content for answered in case.questions) / n
        for step in case.steps
        for item in step.delta.written
    ]
    used = evidence_contribution(case, RewardSettings(credited="used"))
    return Exercise(
        right,
        "step",
        None,
        (
            (
                evidence_contribution(case),
                "that is each record's share of the score; asked is what "
                "the score loses when the record is taken away.",
            ),
            (
                evidence_shapley(case, agent=agent),
                "that is the mean over all orders in which the "
                "records could come; take one away from all that were retrieved.",
            ),
            (
                used,
                "you credit the record that was used; without it the reader reads what is left, "
                "and may find the answer there.",
            ),
            ([n * part for part in right], "the question is one of two; divide by n."),
            (holders, "you took both copies away at once; take one and leave the other."),
        ),
        "a record that has a copy is not needed, though one of the two is; the numbers need not "
        "sum to r_global.",
    )


EXERCISES: dict[str, Callable[[], Exercise]] = {
    "evidence": _evidence,
    "eara": _eara,
    "conservation": _conservation,
    "advantages": _advantages,
    "contribution": _contribution,
}


def check_exercise(name: str, answer: Any) -> Verdict:
    """Return whether an answer is right and, if not, the most likely mistake.

    Args:
        name: Key of the exercise in `EXERCISES`.
        answer: A list of numbers (`None` where nothing can be measured), or a single number if the
            exercise asks for one; each may differ by 0.005. `None`: no answer yet.

    Raises:
        ValueError: there is no exercise of this name.

    >>> print(check_exercise("evidence", None))
    not answered yet
    >>> print(check_exercise("evidence", [0.5, 0.5]))
    Not yet: 2 numbers, expected 5, one per step.
    """
    if name not in EXERCISES:
        raise ValueError(f"no exercise is called {name!r}; there are {', '.join(EXERCISES)}")
    if answer is None:
        return Verdict(None, "not answered yet")
    exercise = EXERCISES[name]()
    numbers, problem = _numbers(answer, exercise)
    problem = problem or _diagnosis(numbers, exercise)
    return (
        Verdict(False, f"Not yet: {problem}")
        if problem
        else Verdict(True, f"Right: {exercise.praise}")
    )


def _numbers(answer: Any, exercise: Exercise) -> tuple[list[float | None], str | None]:
    """Return the answer as a list of numbers, and a message if that is not possible."""
    answer = answer.tolist() if hasattr(answer, "tolist") else answer
    expected = len(exercise.right)
    if expected == 1 and not isinstance(answer, list | tuple):
        answer = [answer]
    if not isinstance(answer, list | tuple):
        kind = type(answer).__name__
        return [], f"that is a {kind}, expected a list, one number per {exercise.per}."
    if len(answer) != expected:
        wanted = "one number" if expected == 1 else f"{expected}, one per {exercise.per}"
        return [], f"{len(answer)} numbers, expected {wanted}."
    for value in answer:
        if isinstance(value, bool) or not (value is None or _is_number(value)):
            return [], f"{str(value)[:20]!r} is no number; write None where nothing is measured."
    return [None if value is None else float(value) for value in answer], None


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, str | bytes) and math.isfinite(value)
    except (TypeError, OverflowError):
        return False


def _diagnosis(answer: Answer, exercise: Exercise) -> str | None:
    """Return the most specific description of an answer's mistake, or `None` if it is right."""
    right = exercise.right
    if _same(answer, right):
        return None
    for wrong, mistake in exercise.mistakes:
        if _same(answer, wrong):
            return mistake
    if [value is None for value in answer] != [value is None for value in right]:
        return (
            "None stands where nothing could be measured, and only there; look at what could "
            "be measured."
        )
    ours, exact = _measured(answer), _measured(right)
    if _same([-value for value in ours], exact):
        return "the sign is the wrong way round."
    if len(ours) > 1:
        if _is_standardised(ours) and not _is_standardised(exact):
            return (
                "these numbers have mean 0 and standard deviation 1: you standardised them, "
                "which only advantages are."
            )
        size = math.fsum(map(abs, ours)) / (math.fsum(map(abs, exact)) or 1)
        if size and _same([value / size for value in ours], exact):
            return (
                "the numbers stand in the right proportion to each other, but have the wrong "
                "size; check what you divide by."
            )
        if _same(sorted(ours), sorted(exact)):
            return f"the right numbers, but not all of them at the right {exercise.per}."
    if min(ours) < -TOLERANCE and min(exact) >= 0:
        return "a number is negative, but nothing here is paid for doing harm."
    if exercise.total is not None:
        total, name = exercise.total
        if abs(math.fsum(ours) - total) > TOLERANCE * len(ours):
            return f"your numbers sum to {as_text(math.fsum(ours))} instead of {name}."
        return f"the sum is right, but not yet what each {exercise.per} gets of it."
    return f"work it out again, one {exercise.per} after the other."


def _same(one: Answer, other: Answer) -> bool:
    return len(one) == len(other) and all(
        # The margin accepts 0.125 rounded up or down.
        a is b if a is None or b is None else abs(a - b) <= TOLERANCE + 1e-9
        for a, b in zip(one, other, strict=True)
    )


def _is_standardised(values: Sequence[float]) -> bool:
    near = 0.05
    return abs(statistics.fmean(values)) < near and (
        abs(statistics.stdev(values) - 1) < near or abs(statistics.pstdev(values) - 1) < near
    )
