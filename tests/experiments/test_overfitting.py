"""High global with low chunk accuracy: what counts, by hand, and that it is found and not found."""

from __future__ import annotations

import numpy as np
import pytest

from finemem_lib import figures
from finemem_lib.evaluation.tables import BootstrapSettings
from finemem_lib.experiments.overfitting import (
    TrainingEnd,
    overfitting_sign,
    sign_text,
    training_ends,
)
from tests.helpers.experiment_samples import cell, result

FEW = BootstrapSettings(num_resamples=300)


def trained(key, of=None, **curves):
    one = result(of or cell(capacity=12), (0.25, 0.75), key=key)
    return one.model_copy(
        update={
            "curve": {
                "rewards/outcome/mean": [0.0, 0.0, 0.4, 0.6],
                "rewards/chunk/mean": [0.0, 0.1, None, 0.3],
                **curves,
            }
        }
    )


def test_ends_average_the_last_updates_and_count_each_training_once():
    (end,) = training_ends([trained("a"), trained("a")], updates=2)
    assert (end.outcome, end.chunk, end.held_out) == pytest.approx((0.5, 0.3, 0.5))


@pytest.mark.parametrize(
    "left_out",
    [
        trained("a", cell(capacity=None)),
        trained("a", cell(capacity=12, scheme="Fine-Mem", wrong_questions=0.5)),
        trained("a", **{"rewards/chunk/mean": [None] * 4}),
        result(cell(capacity=12)).model_copy(update={"curve": {}}),
    ],
)
def test_what_cannot_show_the_sign_is_left_out(left_out):
    assert training_ends([left_out]) == []


def made(effect, seeds=(1, 2, 3), number=40):
    """Trainings whose held-out accuracy rises with the global one and, by `effect`, with chunk."""
    rng = np.random.default_rng(5)
    ends = []
    for seed in seeds:
        for place in range(number):
            outcome, chunk, noise = rng.normal(size=3)
            held_out = outcome + effect * chunk + 0.3 * noise + seed
            ends.append(TrainingEnd(f"v{place}", seed, outcome, outcome + chunk, held_out))
    return ends


def test_a_sign_that_is_there_is_found():
    sign = overfitting_sign(made(1.0), FEW)
    assert sign.value > 0.7 and sign.low > 0 and (sign.trainings, sign.seeds) == (120, (1, 2, 3))
    assert "low chunk accuracy went with low held-out accuracy" in sign_text(sign)
    assert "seeds 1-3" in sign_text(sign)


def test_the_global_accuracy_alone_makes_no_sign():
    """Chunk and held-out accuracy both rise with the global one, and not with each other."""
    sign = overfitting_sign(made(0.0), FEW)
    assert abs(sign.value) < 0.2 and sign.low < 0 < sign.high
    assert sign_text(sign).endswith("not decided.")


def test_by_hand_four_trainings_of_equal_global_accuracy():
    ends = [TrainingEnd(str(n), 1, 0.5, 0.1 * n, 0.9 - 0.1 * n) for n in range(4)]
    sign = overfitting_sign(ends, FEW)
    assert sign.value == pytest.approx(-1)
    assert sign_text(sign).endswith("high held-out accuracy, on one seed.")


@pytest.mark.parametrize("ends", [[], made(1.0, (1,), 3), [TrainingEnd("a", 1, 0.5, 0.5, 0.5)] * 9])
def test_too_few_or_equal_trainings_say_nothing(ends):
    sign = overfitting_sign(ends, FEW)
    assert sign.value is None and "to say anything" in sign_text(sign)
    figure = figures.overfitting_scatter(ends, sign)
    assert "to say anything" in figure.layout.meta["caption"]
