from __future__ import annotations

import pytest

from finemem_lib.data.planted import planted_instances
from finemem_lib.evaluation.evaluate import evaluate
from finemem_lib.evaluation.tables import BootstrapSettings, benchmark_table, paired_differences
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for

STREAMS = planted_instances("held-out", 3, seed=0)
BOOTSTRAP = BootstrapSettings(num_resamples=100)


def test_the_table_is_that_of_the_trajectories_played_by_hand() -> None:
    settings = RolloutSettings(num_generations=2, capacity=6)
    played = {
        name: [
            one
            for group in play(STREAMS, make_manager(name), settings, reader_for(STREAMS), seed=1)
            for one in group
        ]
        for name in ("random", "insert-all")
    }
    rows = evaluate(list(played), STREAMS, rollout=settings, bootstrap=BOOTSTRAP, seed=1)
    assert rows == benchmark_table(played, BOOTSTRAP)
    compared = evaluate(
        list(played), STREAMS, rollout=settings, bootstrap=BOOTSTRAP, seed=1, baseline="random"
    )
    assert compared == rows + paired_differences(played, "random", BOOTSTRAP)


def test_managers_keep_the_names_they_are_given() -> None:
    rows = evaluate({"mine": make_manager("insert-all")}, STREAMS, bootstrap=BOOTSTRAP)
    assert {row.method for row in rows} == {"mine"}


@pytest.mark.parametrize(
    ("managers", "instances", "message"),
    [
        ("insert-all", STREAMS, "expected a list of names"),
        ([], STREAMS, "expected a list of names"),
        (["insert-all"], [], "0 instances"),
        (["insert-some"], STREAMS, "'insert-some' is not a manager"),
    ],
)
def test_what_cannot_be_compared_is_refused(managers, instances, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        evaluate(managers, instances)


def test_an_unknown_baseline_is_refused_before_anything_is_played() -> None:
    with pytest.raises(ValueError, match="baseline is 'oracle', expected one of random"):
        evaluate(["random"], STREAMS, baseline="oracle")
