"""One check per notebook parameter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

from finemem_lib.managers.loading import ChunkRule, Loader, MemoryRule, OperationsAs, Precision
from finemem_lib.managers.scripted import SCRIPTED
from finemem_lib.training.schemes import SCHEMES
from finemem_lib.training.stops import REPORTERS, can_report


@dataclass(frozen=True, slots=True)
class Check:
    """What a parameter may be: a phrase that follows "expected", and the test."""

    expected: str
    accepts: Callable[[Any], bool]


def whole(low: int, high: int) -> Check:
    """Accept whole numbers from `low` to `high`.

    >>> whole(1, 9).accepts(9), whole(1, 9).accepts(0), whole(0, 1).accepts(True)
    (True, False, False)
    """
    return Check(
        f"a whole number from {low} to {high}",
        lambda value: type(value) is int and low <= value <= high,
    )


def real(low: float, high: float) -> Check:
    """Accept numbers from `low` to `high`; NaN is in no range.

    >>> real(0, 1).accepts(0.5), real(0, 1).accepts(1), real(0, 1).accepts(float("nan"))
    (True, True, False)
    """
    return Check(
        f"a number from {low} to {high}",
        lambda value: type(value) in (int, float) and low <= value <= high,
    )


def one_of(*choices: str) -> Check:
    """Accept one of the given texts.

    >>> one_of("group", "batch").accepts("batch"), one_of("group").accepts("Group")
    (True, False)
    """
    return Check(f"one of {', '.join(choices)}", lambda value: value in choices)


SWITCH = Check("True or False", lambda value: type(value) is bool)
TEXT = Check("a text", lambda value: type(value) is str)

TEXTS = Check(
    "a list of texts", lambda value: type(value) is list and all(type(v) is str for v in value)
)

CHECKS: dict[str, Check] = {
    "seed": whole(0, 2**32 - 1),
    "data": TEXTS,
    "models": TEXT,
    "questions": TEXT,
    "max_instances": whole(1, 100_000),
    "num_chunks": whole(1, 10_000),
    "max_chunk_tokens": whole(16, 1_000_000),
    "questions_per_chunk": whole(0, 100),
    "managers": Check(
        f"a list of one or more of {', '.join(sorted([*SCRIPTED, 'tiny']))}",
        lambda value: type(value) is list and bool(value) and {*value} <= {*SCRIPTED, "tiny"},
    ),
    "on_error": one_of("raise", "skip"),
    "split": TEXT,
    "capacity": whole(0, 1_000_000),
    "top_k": whole(1, 1_000),
    "beta": real(0, 1),
    "w1": real(0, 100),
    "w2": real(0, 100),
    "attribution": one_of("last_write", "creation", "lineage"),
    "credited": one_of("retrieved", "used"),
    "unretrieved": one_of("spread", "drop"),
    "scale_rewards": one_of("group", "batch", "none"),
    "num_generations": whole(2, 256),
    "checkpoint": TEXT,
    "loader": one_of(*get_args(Loader)),
    "precision": one_of(*get_args(Precision)),
    "max_prompt_tokens": whole(0, 1_000_000),
    "max_new_tokens": whole(0, 1_000_000),
    "batch_size": whole(0, 4_096),
    "memory_rule": one_of(*get_args(MemoryRule)),
    "chunk_rule": one_of(*get_args(ChunkRule)),
    "operations_as": one_of(*get_args(OperationsAs)),
    "scheme": one_of(*SCHEMES),
    "schemes": Check(
        f"a list of two or more different ones of {', '.join(SCHEMES)}",
        lambda value: (
            type(value) is list
            and all(type(one) is str for one in value)
            and len(value) == len({*value}) > 1
            and {*value} <= {*SCHEMES}
        ),
    ),
    "num_seeds": whole(1, 1_000),
    "jobs": whole(1, 1_024),
    "experiments": TEXT,
    "updates": whole(0, 100_000),
    "instances_per_update": whole(1, 1_000),
    "learning_rate": real(0, 1),
    "entropy_coef": real(0, 1),
    "kl_coef": real(0, 100),
    "train_on": one_of("planted", "instances"),
    "question_fraction": Check(
        "a number above 0 and at most 1", lambda value: real(0, 1).accepts(value) and value > 0
    ),
    "lora_rank": whole(0, 1_024),
    "lora_alpha": whole(0, 4_096),
    "gradient_checkpointing": SWITCH,
    "micro_batches": whole(0, 4_096),
    "fast_inference": SWITCH,
    "gpu_memory_utilization": real(0.05, 0.95),
    "save_every": whole(1, 100_000),
    "report_to": Check(
        f"none, or one of {', '.join(REPORTERS)} with its package installed by pip",
        lambda value: type(value) is str and can_report(value),
    ),
    "resume": SWITCH,
    "held_out": whole(1, 100_000),
    "source": one_of("trajectories", "trained_trajectories"),
    "index": whole(0, 1_000_000),
    "max_questions": whole(1, 1_000),
    "baseline": TEXT,
    "trained": SWITCH,
    "resamples": whole(10, 1_000_000),
}
"""One check per parameter name, whichever notebook has it; the command line applies the same."""


def parameter_problems(
    parameters: Mapping[str, Any], checks: Mapping[str, Check] = CHECKS
) -> list[str]:
    """Return one sentence per parameter that its check refuses.

    >>> parameter_problems({"beta": 2.0, "top_k": 3})
    ['beta is 2.0, expected a number from 0 to 1']
    """
    problems = []
    for name, value in parameters.items():
        if name not in checks:
            problems.append(f"{name} has no check; add a line for it to CHECKS in runs.py")
        elif not _accepted(checks[name], value):
            problems.append(f"{name} is {value!r}, expected {checks[name].expected}")
    return problems


def _accepted(check: Check, value: Any) -> bool:
    try:
        return check.accepts(value)
    except TypeError:  # a list within a list has no hash, and is no name
        return False
