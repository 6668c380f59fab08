"""The order of a run's notebooks: which wait for which, and which one starts next."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finemem_lib.managers.loading import TINY_WORLDS
from finemem_lib.runs.notebooks import Notebook


@dataclass(frozen=True, slots=True)
class Schedule:
    """The notebooks of a run and what each needs of the others.

    Attributes:
        names: Their stems, in their order.
        waits_for: By stem, those that must be done before it starts.
        minutes: By stem, the minutes of the longest chain of notebooks that begins with it.
    """

    names: tuple[str, ...]
    waits_for: Mapping[str, frozenset[str]]
    minutes: Mapping[str, int]

    @classmethod
    def of(
        cls, notebooks: Sequence[Notebook], parameters: Mapping[str, Mapping[str, Any]]
    ) -> Schedule:
        """Return the schedule that the notebooks' metadata lead to.

        A notebook without a number is somebody's own, which may read what its metadata do not
        say: it waits for all that come before it.

        Args:
            notebooks: Those of the run, in their order.
            parameters: All parameters of each, by stem.
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
        """Return the notebook to start now, `None` while none may.

        Notebooks start in their order, so that the first figures come early; but where others run
        and all of them belong to shorter chains, the longest chain begins, which ends the run
        earlier.

        Args:
            done: Those that are ok.
            running: Those that have begun and not ended.

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
    """Return how many notebooks run side by side where nobody says it.

    Args:
        parameters: All parameters of each notebook of the run, by stem.

    Returns:
        The number of processors; 1 where a notebook loads or asks a language model, which would
        share its memory or its card.
    """
    large = any(
        values.get("models") or values.get("checkpoint", "tiny") not in TINY_WORLDS
        for values in parameters.values()
    )
    return 1 if large else len(os.sched_getaffinity(0))
