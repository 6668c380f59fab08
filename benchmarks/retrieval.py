"""Retrieval while the memory streams by: our index against rebuilding rank-bm25's.

Per step five items change (one INSERT, one DELETE, three UPDATEs) and five questions are asked.
Ours updates its index once and searches five times. The rebuild makes rank-bm25's index anew for
every question, from the contents, as a server does that keeps no index; a second rebuild is handed
the items already cut into words, so it pays for the index alone. All three run side by side on the
same memory states, and their scores are compared. Words follow Zipf's law, so common words sit in
most of the items. Figures are medians over the steps, in milliseconds of CPU time: all three run in
one thread, and a busy machine must not decide the ratio.

    python benchmarks/retrieval.py [--quick] [--output FILE]
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from rank_bm25 import BM25Okapi

from finemem_lib.memory import FlatMemory
from finemem_lib.retrieval import BM25Retriever
from finemem_lib.seeds import stable_seed
from finemem_lib.text import words
from finemem_lib.trajectory import MemoryItem, Operation
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import versions

QUESTIONS = 5
TOP_K = 3
ITEM_WORDS = (10, 30)
QUESTION_WORDS = (6, 14)
VOCABULARY = 20_000


class Stream:
    """Items and questions of random words whose frequencies follow Zipf's law."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(stable_seed("retrieval benchmark", seed))
        weights = 1.0 / np.arange(1, VOCABULARY + 1)
        self.cumulative = np.cumsum(weights / weights.sum())

    def text(self, length: tuple[int, int]) -> str:
        draws = self.rng.random(self.rng.integers(*length, endpoint=True))
        return " ".join(f"w{rank}" for rank in np.searchsorted(self.cumulative, draws))

    def operations(self, items: tuple[MemoryItem, ...]) -> list[Operation]:
        chosen = [items[n].item_id for n in self.rng.choice(len(items), 4, replace=False)]
        return [
            Operation("INSERT", self.text(ITEM_WORDS)),
            Operation("DELETE", item_id=chosen[0]),
            *(Operation("UPDATE", self.text(ITEM_WORDS), item_id) for item_id in chosen[1:]),
        ]


def milliseconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return 1000 * (time.process_time() - start)


def measure(size: int, steps: int, rebuilt_steps: int, seed: int = 0) -> dict[str, Any]:
    """Return the medians for one memory size; the rebuilds run on the first `rebuilt_steps`."""
    stream = Stream(seed)
    memory = FlatMemory(duplicates="allow")
    fill = [Operation("INSERT", stream.text(ITEM_WORDS)) for _ in range(size)]
    retriever = BM25Retriever()
    retriever.update(memory.apply(fill, 1)[1])
    times: dict[str, list[float]] = {"ours": [], "rebuild": [], "rebuild_cut": []}
    difference = 0.0
    for step in range(2, steps + 2):
        _, delta = memory.apply(stream.operations(memory.items), step)
        questions = [stream.text(QUESTION_WORDS) for _ in range(QUESTIONS)]

        def ours(delta=delta, questions=questions) -> None:
            retriever.update(delta)
            for question in questions:
                retriever.search(question, TOP_K)

        times["ours"].append(milliseconds(ours))
        if step > rebuilt_steps + 1:
            continue
        contents = [item.content for item in memory.items]
        ids = [item.item_id for item in memory.items]
        cut = [words(content) for content in contents]

        def rebuild(contents=contents, questions=questions) -> None:
            for question in questions:
                index = BM25Okapi([words(content) for content in contents])
                index.get_top_n(words(question), contents, TOP_K)

        def rebuild_cut(cut=cut, contents=contents, questions=questions) -> None:
            for question in questions:
                BM25Okapi(cut).get_top_n(words(question), contents, TOP_K)

        times["rebuild"].append(milliseconds(rebuild))
        times["rebuild_cut"].append(milliseconds(rebuild_cut))
        reference = BM25Okapi(cut)
        for question in questions:
            scores = retriever.scores(question)
            mine = np.array([scores.get(item_id, 0.0) for item_id in ids])
            theirs = reference.get_scores(words(question))
            difference = max(difference, float(np.abs(mine - theirs).max()))
    median = {name: statistics.median(values) for name, values in times.items()}
    return {
        "items": size,
        "steps": steps,
        "rebuilt_steps": rebuilt_steps,
        "ours_ms": median["ours"],
        "rebuild_ms": median["rebuild"],
        "rebuild_cut_ms": median["rebuild_cut"],
        "speedup": median["rebuild"] / median["ours"],
        "speedup_over_cut": median["rebuild_cut"] / median["ours"],
        "largest_score_difference": difference,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="two sizes, few steps")
    parser.add_argument("--output", type=Path, help="also write the figures as JSON to a new file")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    sizes = (100, 500) if arguments.quick else (100, 200, 500, 1000, 2000, 5000)
    steps, rebuilt_steps = (20, 3) if arguments.quick else (200, 5)

    print("CPU milliseconds per step (5 items change, 5 questions)")
    print(" items     ours    rebuild   times  rebuild, cut   times")
    rows = []
    for size in sizes:
        row = measure(size, steps, rebuilt_steps)
        rows.append(row)
        print(
            f"{size:>6} {row['ours_ms']:>8.3f} {row['rebuild_ms']:>10.2f} {row['speedup']:>7.1f} "
            f"{row['rebuild_cut_ms']:>13.2f} {row['speedup_over_cut']:>7.1f}",
            flush=True,
        )
    by_size = {row["items"]: row for row in rows}
    result: dict[str, Any] = {"rows": rows, "versions": versions()}
    if 5000 in by_size:
        growth = by_size[5000]["ours_ms"] / by_size[500]["ours_ms"]
        result |= {"speedup_at_1000": by_size[1000]["speedup"], "growth_500_to_5000": growth}
        print(
            f"faster than the rebuild at 1,000 items: {by_size[1000]['speedup']:.1f} times "
            "(wanted: at least 20)"
        )
        print(f"a step at 5,000 items takes {growth:.2f} times one at 500 (wanted: at most 4)")
    if arguments.output:
        write_json(arguments.output, result)


if __name__ == "__main__":
    main()
