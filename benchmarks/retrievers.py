"""BM25, dense, hybrid and graph retrieval on six files: recall, answers, evidence and time.

The measures are those of `finemem_lib.evaluation.retrievers`, with intervals over instances. Four
scripted managers fill the memories: every sentence ("insert-all"), every chunk ("raw-chunks"), the
sentences with a name or number ("keyword"), and half of the sentences, edited at random ("random").
All instances of a file are read, of SQuAD's the first eight; of each at most 20 questions are
asked, drawn by the seed. A planted stream with known truth is measured, too.

Times are CPU milliseconds on one thread, medians of `REPEATS`, in an index of SQuAD's and
HotpotQA's sentences; every question and every changed text is new, so that the encoder reads it.

What is measured is kept part by part in `--work` and not measured again at the same commit, with
the same settings. The sentence encoder is read from `data/models/minilm` unless `--model` names
another folder.

    python benchmarks/retrievers.py DATA [--quick] [--model FOLDER] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from finemem_lib.data.memalpha import load_instances
from finemem_lib.data.planted import planted_instances
from finemem_lib.data.questions import sampled_questions
from finemem_lib.data.sentences import units
from finemem_lib.evaluation.retrievers import Found, Row, compare, rows_of
from finemem_lib.evaluation.rows import write_rows
from finemem_lib.managers.model import make_manager
from finemem_lib.retrievers.encoder import DENSE_MODEL, load_encoder
from finemem_lib.retrievers.named import RETRIEVERS, RetrieverName, make_retriever
from finemem_lib.trajectory import Instance, MemoryDelta, MemoryItem, Write
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import git_state, hardware, versions, workbench_root

FILES = {
    "squad.jsonl": 8,
    "hotpotqa.jsonl": None,
    "locomo.jsonl": None,
    "clinc150.jsonl": None,
    "squality.jsonl": None,
    "qmsum.jsonl": None,
}
"""The data files and how many of their instances are read; `None`: all."""

NEW_TEXTS = "long_longmemeval_s_115k.jsonl"
"""Its sentences are those that change while time is measured."""

PLANTED = "planted"
PLANTED_STREAMS = 16
QUESTIONS = 20
MANAGERS = ("insert-all", "raw-chunks", "keyword", "random")
SIZES = (100, 500, 1000, 5000)
REPEATS = 20
TIMED_K = 3


def instances_of(data: Path, file: str, limit: int | None, seed: int) -> list[Instance]:
    """Return the instances of a file, or planted streams, with at most `QUESTIONS` questions."""
    if file == PLANTED:
        return list(planted_instances("held-out", limit or PLANTED_STREAMS, seed))
    loaded = load_instances(data / file, limit=limit).instances
    return [
        sampled_questions(one, min(1.0, QUESTIONS / len(one.questions)), seed) for one in loaded
    ]


def measured(instances: Sequence[Instance], manager: str, model: str, seed: int) -> dict[str, Any]:
    """Return what `compare` finds, as JSON; all ranks only where every sentence is an item."""
    ranks = range(1, 11) if manager == "insert-all" else [3]
    found, items = compare(
        instances, make_manager(manager), RETRIEVERS, ranks, [3, 10], model, seed
    )
    return {"items": items, "found": [[*key, values] for key, values in found.items()]}


def rows_from(part: dict[str, Any], file: str, manager: str) -> list[Row]:
    found: Found = {(measure, name, k): values for measure, name, k, values in part["found"]}
    return rows_of(found, file, manager, part["items"])


def timed(
    name: RetrieverName,
    contents: Sequence[str],
    questions: Iterator[str],
    new: Iterator[str],
    model: str,
) -> list[list[Any]]:
    """Return (measure, retriever, items, milliseconds) of searches and of changed items."""
    retriever = make_retriever(name, model)
    items = [
        MemoryItem(str(number), content, (Write(number, "INSERT", 0),))
        for number, content in enumerate(contents, start=1)
    ]
    retriever.update(MemoryDelta(written=tuple(items)))
    times: dict[str, list[float]] = {"query ms": [], "update ms": []}
    for repeat in range(REPEATS):
        question, content = next(questions), next(new)
        old = items[repeat * len(items) // REPEATS]
        write = Write(len(items) + 1 + repeat, "UPDATE", 0)
        delta = MemoryDelta(written=(MemoryItem(old.item_id, content, (*old.lineage, write)),))
        start = time.process_time()
        retriever.update(delta)
        middle = time.process_time()
        retriever.search(question, TIMED_K)
        end = time.process_time()
        times["update ms"].append(1000 * (middle - start))
        times["query ms"].append(1000 * (end - middle))
    return [[measure, name, len(items), some] for measure, some in times.items()]


def measured_times(data: Path, sizes: Sequence[int], model: str, seed: int) -> dict[str, Any]:
    rng = random.Random(seed)

    def texts(instances: Sequence[Instance]) -> list[str]:
        found = [unit for one in instances for chunk in one.chunks for unit in units(chunk.text)]
        distinct = list(dict.fromkeys(found))
        rng.shuffle(distinct)
        return distinct

    squad, hotpot, others = (
        load_instances(data / file).instances
        for file in ("squad.jsonl", "hotpotqa.jsonl", NEW_TEXTS)
    )
    # Questions of instances that the other measures leave out, so that none is known.
    asked = [question.text for one in squad[FILES["squad.jsonl"] :] for question in one.questions]
    rng.shuffle(asked)
    questions, new, contents = iter(asked), iter(texts(others)), texts([*squad, *hotpot])
    runs = itertools.product(sizes, RETRIEVERS)
    found = [timed(name, contents[:size], questions, new, model) for size, name in runs]
    return {"times": [one for some in found for one in some]}


def time_rows(part: dict[str, Any]) -> list[Row]:
    rows = []
    for measure, name, items, times in part["times"]:
        low, value, high = statistics.quantiles(times, n=4)
        difference = (None, None, None)
        rows.append(
            Row(measure, "", "", name, TIMED_K, items, value, low, high, *difference, len(times), 1)
        )
    return rows


def show(rows: Sequence[Row]) -> None:
    for row in rows:
        interval = "" if row.low is None else f" [{row.low:.3g}, {row.high:.3g}]"
        value = "–" if row.value is None else f"{row.value:.3g}{interval}"
        if row.measure.endswith("ms") or row.k in (3, 10):
            print(
                f"{row.measure:22}{row.file:16}{row.manager:12}{row.retriever:8}k {row.k:<4}"
                f"{row.items:>6} items  {value}"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data files")
    parser.add_argument("--quick", action="store_true", help="one manager, two instances per file")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", default=DENSE_MODEL, help="the sentence encoder's folder")
    parser.add_argument("--work", type=Path, default=workbench_root() / "data/runs/retrievers")
    parser.add_argument(
        "--output", type=Path, help="also write the rows as JSON lines, to a new file"
    )
    arguments = parser.parse_args()
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    torch.set_num_threads(1)
    files = {file: 2 for file in FILES} if arguments.quick else FILES
    managers = MANAGERS[:1] if arguments.quick else MANAGERS
    sizes = SIZES[:1] if arguments.quick else SIZES
    hashes = {
        file: hashlib.sha256((arguments.data / file).read_bytes()).hexdigest()
        for file in (*files, NEW_TEXTS)
    }
    git = git_state(workbench_root())
    made = [git, arguments.seed, arguments.quick, load_encoder(arguments.model).model_hash, hashes]
    rows, seconds = [], 0.0

    def part(name: str, measure: Any) -> dict[str, Any]:
        """Return what was measured before with the same settings, or measure it."""
        nonlocal seconds
        path = arguments.work / f"{name}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if kept.get("made") != made or git["dirty"] is not False:
            start = time.process_time()
            kept = {"made": made, **measure(), "seconds": round(time.process_time() - start)}
            write_json(path, kept)
            print(f"{name}: {kept['seconds']} CPU seconds", file=sys.stderr, flush=True)
        seconds += kept["seconds"]
        return kept

    for file, limit in [*files.items(), (PLANTED, 2 if arguments.quick else None)]:
        instances = instances_of(arguments.data, file, limit, arguments.seed)
        for manager in managers:
            found = part(
                f"{file}-{manager}",
                lambda instances=instances, manager=manager: measured(
                    instances, manager, arguments.model, arguments.seed
                ),
            )
            rows += rows_from(found, file, manager)
    rows += time_rows(
        part(
            "times", lambda: measured_times(arguments.data, sizes, arguments.model, arguments.seed)
        )
    )
    show(rows)
    if arguments.output:
        write_rows(rows, arguments.output)
        write_json(
            arguments.output.with_suffix(".json"),
            {
                "command": "python benchmarks/retrievers.py DATA --output "
                "data/experiments/retrievers.jsonl",
                "seed": arguments.seed,
                "questions_per_instance": QUESTIONS,
                "instances": {file: limit or "all" for file, limit in files.items()},
                "planted_streams": PLANTED_STREAMS,
                "data_sha256": hashes,
                "encoder_hash": made[3],
                "interval": "95 %, Student's t over instances (evaluation.clustered_mean); of "
                "times the quartiles",
                "cpu_seconds": seconds,
                "hardware": f"{hardware()}, one thread",
                "git": git,
                "versions": versions(),
            },
        )


if __name__ == "__main__":
    main()
