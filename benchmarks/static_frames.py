"""The static form of explorers, timed in whichever version of the library is imported.

benchmarks/explore.py runs this file once with the library as it is and once as it was; both play
the same planted stream and draw the same states. A line of JSON per explorer gives the least
processor and wall time of the repeats in milliseconds, with the making of the explorer. Every
repeat has a trajectory of its own, for which nothing is remembered.

    PYTHONPATH=FOLDER python benchmarks/static_frames.py STEPS REPEATS STATES

STATES is JSON: the values with frames by explorer; where an explorer has none there, they are those
that the library chooses. They are printed with the times.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import time

from finemem_lib.data.planted import StreamSettings, planted_stream
from finemem_lib.explorers import Explorer, evidence_explorer, memory_player
from finemem_lib.managers.model import make_manager
from finemem_lib.managers.rollout import RolloutSettings, play
from finemem_lib.readers.extractive import reader_for
from finemem_lib.trajectory import Trajectory

STATIC = {"evidence": evidence_explorer, "memory player": memory_player}
"""The explorers whose static form is measured; both have one control."""


def played(steps: int) -> Trajectory:
    """Return a planted stream, played by the random manager."""
    instance = planted_stream(0, StreamSettings(num_chunks=steps))
    settings = RolloutSettings(num_generations=1)
    [[one]] = play([instance], make_manager("random"), settings, reader_for([instance]), 0)
    return one


def with_frames(explorer: Explorer, values: list[object]) -> Explorer:
    """Return an explorer whose control has these values only, each with a frame."""
    [control] = explorer.controls
    options = [option for option in control.options if option[1] in values]
    own = dataclasses.replace(control, options=options, static=len(options))
    return dataclasses.replace(explorer, controls=(own,))


def main() -> None:
    steps, repeats = int(sys.argv[1]), int(sys.argv[2])
    states = json.loads(sys.argv[3])
    one = played(steps)
    for name, make in STATIC.items():
        if name not in states:
            explorer = make(one)
            [control] = explorer.controls
            states[name] = [value for _, value in control.frames(explorer.settle({}))]
        spent = []
        for _ in range(repeats):
            fresh = dataclasses.replace(one)
            cpu, wall = time.process_time(), time.perf_counter()
            figures = with_frames(make(fresh), states[name]).static_figures()
            spent.append((time.process_time() - cpu, time.perf_counter() - wall))
        cpu, wall = min(spent)
        row = {"cpu_ms": 1000 * cpu, "wall_ms": 1000 * wall, "states": states[name]}
        print(
            json.dumps({"explorer": name, **row, "bytes": sum(len(f.to_json()) for f in figures)})
        )


if __name__ == "__main__":
    main()
