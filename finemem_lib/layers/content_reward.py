"""Mem-alpha's content reward r4: is what a call wrote of the kind that its store is for?

``r4(t)`` is the mean, over the calls of step t, of a verdict in {0, 1}. Only inserts and updates
are judged; a delete, a malformed call and an empty content count 0, and so does a step without a
call.

Differs from the paper (arXiv 2509.25911): its judge is Qwen3-32B. Here `rule_verdicts` judges by
the form of the text, without a model, and `readers.model_content_judge` asks a language model. A
verdict that a model does not give is `None` and leaves the mean, where the published code counts a
reply that cannot be parsed as 0. Calls that the memory refused are judged too, as there.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from finemem_lib.layers.memory import timestamp_of
from finemem_lib.text import words
from finemem_lib.trajectory import OperationOutcome, Store, Trajectory


@dataclass(frozen=True, slots=True)
class Written:
    """What a call wants to write: the text and the store it is for."""

    store: Store
    content: str


ContentJudge = Callable[[Sequence[Written]], Sequence[float | None]]
"""Returns a verdict in [0, 1] per text, `None` where there is none."""

_PLACEHOLDER = re.compile(r"(?:none|n/?a|null|empty|todo|tbd|unknown|\W|\.\.\.|<[^>]*>)*", re.I)
_VAGUE = frozenset("it this that these those he she they there".split())
LEAST_WORDS = 3
"""Fewer words state nothing about anybody."""


def rule_verdicts(written: Sequence[Written]) -> list[float]:
    """Judge texts by their form.

    A core is refused where it is a placeholder or speaks of the core memory itself. A semantic item
    must be a statement of at least 3 words that begins with no pronoun, asks nothing, and is no
    dated event. An episodic item must begin with a date and say at least 3 words more. An item of
    a flat store may be either.

    Args:
        written: Texts with their stores.

    Returns:
        1.0 or 0.0 per text.

    >>> rule_verdicts([
    ...     Written("episodic", "On 3 May 2024 Mia saw Rome"),
    ...     Written("episodic", "Mia saw Rome"),
    ...     Written("semantic", "Mia lives in Rome"),
    ...     Written("core", "The core memory is empty"),
    ... ])
    [1.0, 0.0, 1.0, 0.0]
    """
    return [float(_RULES[one.store](one.content)) for one in written]


def _is_core(content: str) -> bool:
    return "core memory" not in content.lower() and not _PLACEHOLDER.fullmatch(content.strip())


def _is_knowledge(content: str) -> bool:
    said = words(content)
    return (
        len(said) >= LEAST_WORDS
        and said[0] not in _VAGUE
        and not content.rstrip().endswith("?")
        and timestamp_of(content) is None
    )


def _is_event(content: str) -> bool:
    date = timestamp_of(content)
    return date is not None and len(words(content.partition(date)[2])) >= LEAST_WORDS


_RULES: dict[Store, Callable[[str], bool]] = {
    "core": _is_core,
    "semantic": _is_knowledge,
    "episodic": _is_event,
    "flat": lambda content: _is_knowledge(content) or _is_event(content),
}


def content_rewards(
    trajectories: Sequence[Trajectory], judge: ContentJudge = rule_verdicts
) -> list[list[float | None]]:
    """Return r4 of every step of every trajectory, in [0, 1].

    `None` where the step has calls that ask for a verdict and the judge gave none of them.

    Args:
        trajectories: What was played; all texts are judged in one batch.
        judge: Gives the verdicts.

    Raises:
        ValueError: the judge returned another number of verdicts than it was given texts.

    >>> from finemem_lib import worked_example
    >>> content_rewards([worked_example()])
    [[1.0, 0.0, 1.0, 0.0]]
    """
    called = [
        [[_written(one) for one in step.outcomes if _is_call(one)] for step in played.steps]
        for played in trajectories
    ]
    asked = [one for steps in called for step in steps for one in step if one is not None]
    verdicts = judge(asked)
    if len(verdicts) != len(asked):
        raise ValueError(
            f"content judge: got {len(verdicts)} verdicts for {len(asked)} texts, expected one each"
        )
    left = iter(verdicts)
    return [
        [_mean([0.0 if one is None else next(left) for one in step]) for step in steps]
        for steps in called
    ]


def _is_call(outcome: OperationOutcome) -> bool:
    return outcome.operation is None or outcome.operation.kind != "SKIP"


def _written(outcome: OperationOutcome) -> Written | None:
    """Return what a call is judged by; `None` for one that counts 0."""
    operation = outcome.operation
    if operation is None or operation.kind not in ("INSERT", "UPDATE"):
        return None
    content = operation.content or ""
    return Written(operation.store or "flat", content) if content.strip() else None


def _mean(verdicts: Sequence[float | None]) -> float | None:
    if not verdicts:
        return 0.0
    known = [one for one in verdicts if one is not None]
    return math.fsum(known) / len(known) if known else None
