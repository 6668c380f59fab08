"""What an advantage pays for facts and noise: by hand, and against a regression with dummies."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, strategies as st

from finemem_lib.evaluation.noise_price import noise_price
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from tests.helpers.streams_by_hand import CHANGE, WRITE, Scripted, stream_of, told

FACTS, NOISE = ["Mia lives in Rome", "Ben lives in Oslo"], ["Once Mia saw Lima", "Trains passed"]
CHUNK = ([told("Mia", "Rome"), told("Ben", "Oslo")], NOISE)
STREAMS = [stream_of(CHUNK, CHUNK, instance_id=f"stream {number}") for number in range(4)]
TRUTH = {stream.instance_id: stream for stream in STREAMS}
ONE_OF_EACH = [(0, 0), (1, 0), (0, 1), (1, 1)]


def stored(facts, noise):
    return tuple(map(WRITE, FACTS[:facts] + NOISE[:noise]))


def group(number, *rollouts):
    """Return the rollouts of a stream, each given by the operations of its steps."""
    return [
        play(
            [STREAMS[number]],
            Scripted(*rollout, *[()] * (2 - len(rollout))),
            RolloutSettings(num_generations=1),
            reader_for(STREAMS),
            0,
        )[0][0]
        for rollout in rollouts
    ]


def simple(number, counts=ONE_OF_EACH):
    """Return rollouts that store so many facts and noise sentences at their first step."""
    return group(number, *[[stored(*count)] for count in counts])


def test_slopes_by_hand():
    """Every fact earns 1, every noise sentence loses 0.5, and no stream departs from it."""
    advantages = [[1.0 * facts - 0.5 * noise, 0.0] for facts, noise in ONE_OF_EACH]
    found = noise_price([simple(0), simple(1)], [advantages] * 2, TRUTH)
    assert found["fact"] == pytest.approx((1.0, 0.0)) and found["noise"] == pytest.approx((-0.5, 0))


def test_the_error_by_hand_is_that_of_the_slopes_of_the_groups():
    """A fact earns 1 in one group and 3 in the other: mean 2, standard error sqrt(2) / sqrt(2)."""
    advantages = [[[slope * facts, 0.0] for facts, _ in ONE_OF_EACH] for slope in (1, 3)]
    found = noise_price([simple(0), simple(1)], advantages, TRUTH)
    assert found["fact"] == pytest.approx((2.0, 1.0)) and found["noise"] == pytest.approx((0, 0))


def test_the_mean_of_a_group_does_not_count():
    """Steps are compared within their group: another level of a step or stream changes nothing."""
    advantages = [
        [[level + facts, 7.0] for facts, _ in ONE_OF_EACH] for level in (0.0, 100.0, -50.0)
    ]
    found = noise_price([simple(number) for number in range(3)], advantages, TRUTH)
    assert found["fact"] == pytest.approx((1.0, 0.0), abs=1e-9)


def test_updates_store_too_and_duplicates_do_not():
    first = stored(1, 1)
    rollouts = [
        [first, (CHANGE("2", FACTS[1]),)],  # a fact over the noise
        [first, (CHANGE("1", NOISE[1]),)],  # noise over the fact
        [first, (WRITE(FACTS[0]), WRITE("Nobody said this"))],  # a duplicate and an invention
    ]
    advantages = [[5.0, 1.0], [5.0, -1.0], [5.0, 0.0]]
    found = noise_price([group(0, *rollouts)], [advantages], TRUTH)
    assert found == {"fact": (pytest.approx(1.0), None), "noise": (pytest.approx(-1.0), None)}


def test_a_step_without_advantage_is_left_out():
    advantages = [[[0.0, 0.0], [1.0, 0.0], [-0.5, 0.0], [None, None]]] * 2
    found = noise_price([simple(0), simple(1)], advantages, TRUTH)
    assert found["fact"][0] == pytest.approx(1.0) and found["noise"][0] == pytest.approx(-0.5)


def test_what_cannot_be_told_has_no_price():
    values = [[[0.0, 0.0], [1.0, 0.0]]]
    nothing = {"fact": (None, None), "noise": (None, None)}
    assert noise_price([simple(0, [(1, 1), (1, 1)])], values, TRUTH) == nothing
    assert noise_price([simple(0, [(0, 0), (1, 1)])], values, TRUTH) == nothing, "always together"
    assert noise_price([simple(0, [(0, 1), (1, 1)])], values, TRUTH) == {
        "fact": (pytest.approx(1.0), None),
        "noise": (None, None),
    }
    assert noise_price([], [], TRUTH) == nothing


def test_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"'stream 0' have shape \(4, 1\), expected \(4, 2\)"):
        noise_price([simple(0)], [[[0.0]] * 4], TRUTH)


PLAYED = [simple(number, itertools.product(range(3), range(3))) for number in range(4)]


@given(st.integers(0, 1000))
def test_slopes_are_those_of_a_regression_with_one_constant_per_group(seed):
    rng = np.random.default_rng(seed)
    counts = list(itertools.product(range(3), range(3)))
    values = rng.normal(size=(len(PLAYED), len(counts)))
    rows = [[*np.eye(4)[place], *count] for place in range(4) for count in counts]
    expected, *_ = np.linalg.lstsq(np.array(rows, float), values.ravel(), rcond=None)
    advantages = [[[value, 0.0] for value in row] for row in values.tolist()]
    found = noise_price(PLAYED, advantages, TRUTH)
    assert [found["fact"][0], found["noise"][0]] == pytest.approx(expected[-2:].tolist())
