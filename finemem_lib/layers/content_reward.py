"""Mem-alpha's content reward r4: the share of calls whose content fits their store.

``r4(t)`` is the mean of a verdict in {0, 1} over the calls of step t. Only inserts and updates are
judged; a delete, a malformed call and an empty content count as 0. A step without calls has r4 = 0.

Differs from the paper (arXiv 2509.25911): its judge is Qwen3-32B. Here `rule_verdicts` judges by
the form of the text, without a model, and `readers.model_judge` uses a language model. A
missing verdict of a model is `None` and is left out of the mean; the published code counts a reply
that cannot be parsed as 0. As in the published code, calls that the memory refused are judged too.
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
    """The content that a call writes, and its store."""

    store: Store
    content: str


ContentJudge = Callable[[Sequence[Written]], Sequence[float | None]]
"""Function that returns one verdict in [0, 1] per text, `None` for a missing verdict."""

_PLACEHOLDER = re.compile(r"(?:none|n/?a|null|empty|todo|tbd|unknown|\W|\.\.\.|<[^>]*>)*", re.I)
_VAGUE = frozenset("it this that these those he she they there".split())
MIN_WORDS = 3
"""Smallest number of words of a statement."""


def rule_verdicts(written: Sequence[Written]) -> list[float]:
    """Return a verdict per text by its form, without a model.

    A core fits unless it is a placeholder or mentions the core memory itself. A semantic item fits
    if it has at least `MIN_WORDS` words, does not begin with a pronoun, is not a question, and
    does not begin with a date. An episodic item fits if it begins with a date that at least
    `MIN_WORDS` words follow. An item of a flat memory fits if it could be either of the two.

    Args:
        written: Texts with their stores.

    Returns:
        Per text 1.0 if it fits its store, else 0.0.

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
        len(said) >= MIN_WORDS
        and said[0] not in _VAGUE
        and not content.rstrip().endswith("?")
        and timestamp_of(content) is None
    )


def _is_event(content: str) -> bool:
    date = timestamp_of(content)
    return date is not None and len(words(content.partition(date)[2])) >= MIN_WORDS


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

    A step is `None` if the verdicts of all its calls are missing.

    Args:
        trajectories: Played trajectories; all texts are judged in one batch.
        judge: Function that returns the verdicts.

    Raises:
        ValueError: the number of verdicts differs from the number of texts.

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
    """Return the content and store of a call to judge; `None` for a call that counts as 0."""
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
