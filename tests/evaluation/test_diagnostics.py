"""What the diagnostics measure, by hand and against a plain loop."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from finemem_lib.data.planted import SYNONYMS, StreamSettings, planted_instances
from finemem_lib.data.worked_example import worked_example
from finemem_lib.evaluation.diagnostics import (
    REFERENCE,
    credit_at_evidence,
    gradient_alignment,
    policy_gradients,
    term_spread,
)
from finemem_lib.managers.model import load_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import ExtractiveReader, reader_for
from finemem_lib.rewards import RewardSettings

torch.set_num_threads(1)

EXAMPLE = worked_example()
ROLLOUT = RolloutSettings(num_generations=3, capacity=4)


def scored(*scores):
    return dataclasses.replace(
        EXAMPLE,
        questions=tuple(
            dataclasses.replace(answered, score=score)
            for answered, score in zip(EXAMPLE.questions, scores, strict=True)
        ),
    )


def test_spread_is_the_standard_deviation_within_groups():
    """Two groups of two: outcomes 1 and 0 (variance 1/2), and twice the same (variance 0)."""
    groups = [[scored(1.0, 1.0), scored(0.0, 0.0)], [EXAMPLE, EXAMPLE]]
    spread = term_spread(groups)
    assert spread["outcome"] == pytest.approx((0.5 / 2) ** 0.5)
    assert spread["format"] == spread["chunk"] == spread["compression"] == 0
    assert spread["eara"] < spread["outcome"]


def test_spread_of_a_term_that_nobody_measured_is_none():
    assert term_spread([[scored(None, None)] * 2])["outcome"] is None


@pytest.mark.parametrize(
    ("evidence", "share"),
    [
        (((1,), (3,)), 2 / 3),
        (((3,), (3,)), 2 / 3),
        (((1,), (1,)), 1 / 3),
        (((2,), None), 0.0),
    ],
)
def test_credit_at_the_evidence_step_of_the_worked_example(evidence, share):
    """q-1 earns 0.25 at step 1 and 0.25 at step 3, q-2 0.25 at step 3."""
    known = dataclasses.replace(
        EXAMPLE,
        questions=tuple(
            dataclasses.replace(
                answered, question=dataclasses.replace(answered.question, evidence_steps=steps)
            )
            for answered, steps in zip(EXAMPLE.questions, evidence, strict=True)
        ),
    )
    assert credit_at_evidence([known]) == pytest.approx(share)


def test_credit_that_nobody_earned_has_no_share():
    assert credit_at_evidence([scored(0.0, 0.0)]) is None
    assert credit_at_evidence([EXAMPLE]) is None, "its evidence steps are not known"


@pytest.fixture(scope="module")
def manager():
    return load_manager("tiny")


@pytest.fixture(scope="module")
def streams():
    return planted_instances("held-out", 4, 0, StreamSettings(num_chunks=2))


def test_the_gradient_is_that_of_a_plain_loop(manager, streams):
    groups = play(streams[:2], manager, ROLLOUT, reader_for(streams), 0)
    steps = [step for group in groups for one in group for step in one.steps]
    ids = [(step.prompt_ids, step.completion_ids) for step in steps]
    values = np.random.default_rng(0).normal(size=len(steps)).tolist()
    model = manager.model
    loss = 0.0
    for step, value in zip(steps, values, strict=True):
        row = torch.tensor([[*step.prompt_ids, *step.completion_ids]])
        logprobs = model(input_ids=row).logits[0, :-1].log_softmax(-1)
        for place in range(len(step.prompt_ids), row.shape[1]):
            loss = loss + value * logprobs[place - 1, row[0, place]]
    tokens = sum(len(step.completion_ids) for step in steps)
    expected = torch.autograd.grad(loss / tokens, list(model.parameters()))
    expected = torch.cat([part.flatten() for part in expected]).numpy()
    found = policy_gradients(model, ids, {"a": values, "b": [0.0] * len(steps)})
    np.testing.assert_allclose(found["a"], expected, atol=1e-5 * np.abs(expected).max())
    assert not found["b"].any()
    assert all(weight.grad is None for weight in model.parameters())


def test_every_scheme_is_compared_on_the_same_rollouts(manager, streams):
    plain = RewardSettings(w1=0.0, w2=0.0)
    schemes = {"outcome": ("outcome-only", plain), "csr": ("+CSR", RewardSettings(w1=5.0))}
    found = gradient_alignment(
        manager, [streams[:2], streams[2:]], reader_for(streams), ROLLOUT, schemes, seed=0
    )
    assert [one.scheme for one in found] == [REFERENCE, "outcome", "csr"]
    assert all(len(one.cosines) == 2 for one in found)
    assert all(-1 <= value <= 1 for one in found for value in (*one.cosines, one.agreement))
    reference, outcome, csr = found
    assert reference.cosines[0] == pytest.approx(reference.agreement)
    assert outcome.cosines != csr.cosines


def test_one_batch_cannot_be_compared(manager, streams):
    agent = ExtractiveReader(synonyms=SYNONYMS)
    with pytest.raises(ValueError, match="got 1 batches, expected at least 2"):
        gradient_alignment(manager, [streams], agent, ROLLOUT, {}, seed=0)
