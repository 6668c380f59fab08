"""A language model's roles next to the rules: accuracy, verdicts, and the CSR they lead to."""

from __future__ import annotations

import dataclasses

import pytest

from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.data.planted import planted_instances
from finemem_lib.evaluation.real_readers import (
    acceptances,
    accuracies,
    kappa,
    questioned,
    reward_agreement,
    row_of,
    same_verdicts,
    step_rewards,
)
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import Reading

STREAMS = list(planted_instances("held-out", 2, 0))


class Silent:
    """A reader that never knows the answer."""

    name, settings = "silent", "silent"

    def query(self, question, data_source):
        return question

    def read(self, tasks):
        return [Reading("unknown", ()) for _ in tasks]


def test_accuracy_is_that_of_the_reader_and_a_difference_is_paired():
    manager = make_manager("insert-all")
    rules = accuracies(STREAMS, manager, reader_for(STREAMS), 3, 0)
    silent = accuracies(STREAMS, manager, Silent(), 3, 0)
    assert set(rules) == {one.instance_id for one in STREAMS}
    assert sum(map(sum, silent.values())) == 0 < sum(map(sum, rules.values()))
    row = row_of("accuracy", "planted", "silent", silent, "rules", rules)
    alone = row_of("accuracy", "planted", "rules", rules)
    assert row.value == pytest.approx(-alone.value)
    assert row.counted == sum(len(one.questions) for one in STREAMS) and row.instances == 2


def test_every_candidate_gets_a_verdict_and_a_verifier_that_knows_nothing_accepts_none():
    teacher = ClozeTeacher(max_candidates=2)
    instances, audits = questioned(STREAMS, teacher, reader_for(STREAMS), 2, 0)
    assert not [row for rows in audits.values() for row in rows if row.reason == "not needed"]
    kept = sum(len(step) for one in instances for step in one.chunk_questions)
    rules = acceptances(audits)
    assert kept == sum(map(sum, rules.values())) > 0
    silent = acceptances(questioned(STREAMS, teacher, Silent(), 2, 0)[1])
    assert sum(map(sum, silent.values())) == 0
    same = same_verdicts(silent, rules)
    assert sum(map(sum, same.values())) == sum(map(len, rules.values())) - kept
    assert kappa(silent, rules) == 0.0 and kappa(silent, silent) is None


def test_verdicts_on_other_candidates_are_not_compared():
    with pytest.raises(ValueError):
        same_verdicts({"a": [1.0]}, {"a": [1.0, 0.0]})


def test_the_same_operations_are_rewarded_whoever_reads_and_agreement_is_per_step():
    teacher = ClozeTeacher(max_candidates=2)
    instances, _ = questioned(STREAMS, teacher, reader_for(STREAMS), 2, 0)
    settings = RolloutSettings(num_generations=4, top_k=2)
    manager = make_manager("random")
    rules = step_rewards(instances, manager, reader_for(STREAMS), settings, 0)
    silent = step_rewards(instances, manager, Silent(), settings, 0)
    for one in instances:
        assert [len(rollout) for rollout in rules[one.instance_id]] == [len(one.chunks)] * 4
    known = [value for steps in reward_agreement(rules, rules).values() for value in steps if value]
    assert known and set(known) == {1.0}, "a reward agrees with itself wherever rollouts differ"
    constant = reward_agreement(silent, rules)
    assert {value for steps in constant.values() for value in steps} <= {0.0, None}
    assert dataclasses.asdict(row_of("CSR agreement", "planted", "silent", constant))["value"] == 0


def test_step_rewards_are_ranked_between_rollouts_not_between_steps():
    one = {"a": [[0.0, 0.9], [0.1, 0.8], [0.2, 0.7]]}
    turned = {"a": [[0.5, 0.1], [0.6, 0.2], [0.7, 0.3]]}
    assert reward_agreement(one, turned) == {"a": [1.0, -1.0]}
