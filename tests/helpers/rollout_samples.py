"""Rollouts of one instance, made by hand for the tests of figures and explorers of training."""

from __future__ import annotations

import dataclasses

from finemem_lib import figures
from finemem_lib.figures import style
from finemem_lib.trajectory import Operation, OperationOutcome, Trajectory
from tests.helpers.figure_samples import make_trajectory

SKIP = OperationOutcome(Operation("SKIP"), True)


def rollouts(poison: str = "", number: int = 3) -> list[Trajectory]:
    """Rollouts of one instance that part at step 2, and are paid differently there."""
    one = with_tokens(make_trajectory(poison=poison))
    found = [one]
    for rollout in range(1, number):
        steps = list(one.steps)
        asked = tuple(dataclasses.replace(a, score=float(rollout % 2)) for a in one.questions)
        steps[1] = dataclasses.replace(steps[1], outcomes=(SKIP,) * rollout, chunk_questions=())
        found.append(dataclasses.replace(one, rollout=rollout, steps=tuple(steps), questions=asked))
    return found


def with_tokens(trajectory: Trajectory) -> Trajectory:
    return dataclasses.replace(
        trajectory,
        steps=tuple(
            dataclasses.replace(
                step,
                prompt_ids=(1,),
                completion_ids=tuple(range(5)),
                logprobs=(-0.1, -2.0, 0.0, -0.5, -1e-6),
            )
            for step in trajectory.steps
        ),
    )


class Spelling:
    """A tokenizer whose token i is spelled by `texts[i]`."""

    def __init__(self, *texts: str) -> None:
        self.texts = texts

    def decode(self, ids: list[int]) -> str:
        return "".join(self.texts[i] for i in ids)


PLAIN = Spelling("[", '{"op"', "SKIP", "}", "]")


def make_training_figures(poison: str = "") -> dict:
    group = rollouts(poison)
    groups = figures.rollout_groups([group, group])
    texts = [f"{poison}{word}" for word in ("a", "b", "", "d")]
    return {
        "gradient_map": figures.gradient_map(groups),
        "rollout_compare": figures.rollout_compare(groups[0]),
        "rollout_diff": figures.rollout_diff(groups[0], 0, 1),
        "group_completions": figures.group_completions(
            groups[0], 2, [texts] * 3, [[0.5, -1.0, None, 0.0]] * 3, ["eara", "format"]
        ),
        "step_story": figures.step_story(group[0], 2, group[1].questions),
        "seen_by_group": figures.seen_by_group(group, 2),
        "text_rows": figures.text_rows(
            [("chunk", [style.label(f"{poison}a")])], "Texts", "1 text.", "A text."
        ),
        "step_terms": figures.step_terms(groups[0], 1),
        "episode_before_after": figures.episode_before_after(group[:2], group[1:]),
        "completion_grid": figures.completion_grid(texts, [0.5, -1.0, None, 0.0], "advantage A"),
    }
