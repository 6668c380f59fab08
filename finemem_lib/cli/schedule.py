"""The order of a run's notebooks: their dependencies, and the notebook that starts next."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finemem_lib.managers.loading import TINY_WORLDS
from finemem_lib.runs.notebooks import Notebook


@dataclass(frozen=True, slots=True)
class Schedule:
    """The notebooks of a run with their dependencies.

    Attributes:
        names: Stems of the notebooks, in order.
        waits_for: By stem, the notebooks that must be done before it starts.
        minutes: By stem, the minutes of the longest chain of notebooks that begins with it.
    """

    names: tuple[str, ...]
    waits_for: Mapping[str, frozenset[str]]
    minutes: Mapping[str, int]

    @classmethod
    def of(
        cls, notebooks: Sequence[Notebook], parameters: Mapping[str, Mapping[str, Any]]
    ) -> Schedule:
        """Return the schedule for the metadata of the notebooks.

        A notebook without a number was added by a user and can read artefacts that its metadata do
        not state, so it waits for all notebooks before it.

        Args:
            notebooks: The notebooks of the run, in order.
            parameters: All parameters of each notebook, by stem.
        """
        names = tuple(notebook.stem for notebook in notebooks)
        waits_for: dict[str, frozenset[str]] = {}
        for position, notebook in enumerate(notebooks):
            before = notebooks[:position]
            reads = notebook.reads_under(parameters[notebook.stem])
            waits_for[notebook.stem] = frozenset(
                other.stem
                for other in before
                if notebook.order is None or any(name in reads for name in other.writes)
            )
        minutes: dict[str, int] = {}
        for notebook in reversed(notebooks):
            after = [minutes[name] for name in minutes if notebook.stem in waits_for[name]]
            minutes[notebook.stem] = notebook.minutes + max(after, default=0)
        return cls(names, waits_for, minutes)

    def next(self, done: Collection[str], running: Collection[str]) -> str | None:
        """Return the notebook to start now, `None` if none can start.

        Notebooks start in order, so that the first figures are ready early. If others are running
        and all of them belong to shorter chains, the notebook with the longest chain starts, which
        shortens the run.

        Args:
            done: Stems of the notebooks that are ok.
            running: Stems of the running notebooks.

        >>> chain = {"01": 2, "02": 1, "04": 4, "07": 3}
        >>> waits = {"01": frozenset(), "02": {"01"}, "04": frozenset(), "07": frozenset()}
        >>> schedule = Schedule(("01", "02", "04", "07"), waits, chain)
        >>> schedule.next(set(), set()), schedule.next(set(), {"01"}), schedule.next({"01"}, {"04"})
        ('01', '04', '02')
        """
        ready = [
            name
            for name in self.names
            if name not in done and name not in running and self.waits_for[name] <= {*done}
        ]
        if not ready:
            return None
        longest = max(ready, key=lambda name: self.minutes[name])
        under_way = max((self.minutes[name] for name in running), default=None)
        return ready[0] if under_way is None or under_way >= self.minutes[longest] else longest


def default_jobs(parameters: Mapping[str, Mapping[str, Any]]) -> int:
    """Return the default number of notebooks that run in parallel.

    Args:
        parameters: All parameters of each notebook of the run, by stem.

    Returns:
        The number of processors; 1 if a notebook loads or calls a language model, whose memory or
        card parallel notebooks would share.
    """
    large = any(
        values.get("models") or values.get("checkpoint", "tiny") not in TINY_WORLDS
        for values in parameters.values()
    )
    return 1 if large else len(os.sched_getaffinity(0))
