"""The sources of `finemem app`: built-in examples and runs."""

from __future__ import annotations

import functools
import os
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.cli.app import WORKING_FOLDER
from finemem_lib.cli.listing import described_runs
from finemem_lib.cli.rescore import played, read_artefact
from finemem_lib.data.instance_names import instance_name
from finemem_lib.data.planted import planted_instances
from finemem_lib.data.worked_example import worked_example
from finemem_lib.explorers.laboratory import Group, Laboratory, Material, Say, Source
from finemem_lib.explorers.training import training_explorer
from finemem_lib.figures.display import display_bundle
from finemem_lib.lesson import cases
from finemem_lib.managers.model import load_manager, make_manager
from finemem_lib.managers.protocol import MemoryManager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.rewards import RewardSettings
from finemem_lib.runs.run import read_record, written_entry
from finemem_lib.training.record import StoredUpdates
from finemem_lib.trajectory import Trajectory

if TYPE_CHECKING:
    from finemem_lib.explorers.explorer import Explorer
    from finemem_lib.managers.model import ModelManager

STREAMS, ROLLOUTS = 3, 8
"""Planted streams of the examples, and the rollouts of each."""

TINY = "tiny"
"""The shipped language model of the examples (`loading.SHIPPED_MANAGERS`)."""

PLAYED_BY = {
    "trajectories": "scripted",
    "trained_trajectories": "trained",
    "benchmark_trajectories": "benchmark",
}
"""Prefix of the instances of an artefact in the menu."""


def open_laboratory() -> None:
    """Display the laboratory in a notebook, in the folder that `finemem app` was called in."""
    os.chdir(os.environ.get(WORKING_FOLDER, "."))
    display_bundle(Laboratory(find_sources()).widget, raw=False)


def find_sources() -> list[Source]:
    """Return the examples, then the runs, the newest first."""
    return [
        Source("example:planted", "example: planted streams", _planted),
        Source("example:tiny", "example: tiny language model", _tiny),
        Source("example:lesson", "example: cases of the lesson", _lesson),
        Source("example:by-hand", "example: four steps by hand", _by_hand),
        *(_source(run) for run in reversed(described_runs())),
    ]


def _source(run: dict[str, Any]) -> Source:
    """Return the source of a run that `finemem list` describes."""
    label = f"{run['run']}, {run['status']}"
    return Source(run["run"], label, functools.partial(_load_run, run))


def _planted(say: Say) -> Material:
    say(f"Playing {ROLLOUTS} rollouts of {STREAMS} planted streams")
    return Material(_play(make_manager("random")), reader_for)


def _tiny(say: Say) -> Material:
    say("Loading the tiny language model")
    manager = load_manager(TINY)
    say(f"The tiny language model writes {ROLLOUTS} rollouts of {STREAMS} planted streams")
    return Material(_play(manager), reader_for, lambda _: manager)


def _play(manager: MemoryManager) -> dict[str, Group]:
    """Return the rollouts of the example streams."""
    streams = planted_instances("held-out", STREAMS, seed=0)
    settings = RolloutSettings(num_generations=ROLLOUTS, top_k=3)
    groups = play(streams, manager, settings, reader_for(streams), seed=0)
    return {instance_name(group[0], n): group for n, group in enumerate(groups, start=1)}


def _lesson(say: Say) -> Material:
    groups = {
        "toy": [cases.toy()],
        "lucky guess": [cases.lucky_guess()],
        "duplicates": [cases.duplicates()],
        "pushed out": cases.pushed_out(),
        "disagreement": [cases.disagreement()],
    }
    return Material(groups, reader_for)


def _by_hand(say: Say) -> Material:
    return Material({"worked example": [worked_example()]})


def _load_run(run: dict[str, Any], say: Say) -> Material:
    """Return the contents of a run.

    Raises:
        ValueError: its manifest cannot be read.
        UsageError: an artefact cannot be read, or it has no trajectories.
    """
    if run["status"] == "unreadable":
        raise ValueError(run["error"])
    say(f"Reading run {run['run']}")
    folder = Path(run["folder"])
    groups = {
        f"{PLAYED_BY[artefact]} {name}": group
        for artefact, some in played(folder).items()
        for name, group in _by_instance(some).items()
    }
    if not written_entry(folder, "training_rollouts"):
        return Material(groups, reader_for)
    kept = read_artefact(folder, "training_rollouts")
    groups |= {
        f"update {update} {instance_name(group[0], place)}": group
        for update, some in kept.items()
        for place, group in enumerate(some, start=1)
    }

    @functools.cache
    def manager() -> ModelManager:
        say("Loading the trained manager")
        return load_manager(read_artefact(folder, "trained_manager"))

    return Material(
        groups, reader_for, lambda _: manager(), lambda _: _training(folder, kept, manager(), say)
    )


def _by_instance(trajectories: Iterable[Trajectory]) -> dict[str, Group]:
    """Return the trajectories of every instance by all managers, so that they can be compared.

    If several managers played an instance, an advantage compares them; training never has such
    groups.
    """
    groups: defaultdict[tuple[str, int], list[Trajectory]] = defaultdict(list)
    for one in trajectories:
        groups[one.instance_id, one.num_steps].append(one)
    return {instance_name(group[0], n): group for n, group in enumerate(groups.values(), start=1)}


def _training(
    folder: Path,
    kept: Mapping[int, Sequence[Sequence[Trajectory]]],
    manager: ModelManager,
    say: Say,
) -> Explorer:
    """Return the explorer of the training of a run, scored as notebook 04 scored it."""
    say("Reading the training")
    written = written_entry(folder, "training") or {}
    with_which = read_record(folder, written.get("notebook", ""))["parameters"]
    return training_explorer(
        read_artefact(folder, "training").to_dict("records"),
        kept,
        manager,
        with_which["scheme"],
        RewardSettings(beta=with_which["beta"]),
        stored=StoredUpdates(read_artefact(folder, "training_updates")),
        agent=reader_for(group[0] for some in kept.values() for group in some),
    )
