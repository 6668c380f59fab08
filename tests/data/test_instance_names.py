from __future__ import annotations

import dataclasses

from finemem_lib.data.instance_names import instance_name
from finemem_lib.data.planted import NAMES, planted_instances
from tests.helpers.figure_samples import make_trajectory


def test_planted_streams_are_named_by_their_people() -> None:
    for number, instance in enumerate(planted_instances("held-out", 5, 0), 1):
        name = instance_name(instance, number)
        assert name.startswith(f"stream {number}: ")
        people = {word.strip(",") for word in name.split()} & {*NAMES}
        asked = " ".join(one.text for one in instance.questions)
        assert people and all(person in asked for person in people)
        assert instance.instance_id not in name and len(name) < 60


def test_a_trajectory_has_the_name_of_its_instance() -> None:
    trajectory = make_trajectory()
    assert instance_name(trajectory).startswith("stream: ")


def test_other_sources_are_named_by_their_first_question() -> None:
    [instance] = planted_instances("held-out", 1, 0)
    other = dataclasses.replace(instance, data_source="squad")
    assert instance_name(other, 2) == f"squad 2: {instance.questions[0].text}"
    silent = dataclasses.replace(other, questions=())
    assert instance_name(silent) == f"squad: {instance.instance_id}"
