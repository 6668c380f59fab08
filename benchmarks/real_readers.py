"""SmolLM2 as reader, verifier and teacher of chunk questions, next to the model-free defaults.

The measures are those of `finemem_lib.evaluation.real_readers`. Reader: 40 questions each of SQuAD,
HotpotQA and LoCoMo, on the three sentences that retrieval finds. Verifier, teacher and CSR: the
first instances of `data/real/held_out.parquet`, two candidates per chunk; CSR on four rollouts of
the manager "random" (half of the sentences, edited at random), the same for every pair of teacher
and reader. About 450 replies of the model to 140,000 tokens of prompts, sized for 20 minutes of one
idle core at most.

What is measured is kept part by part in `--work`, every reply of the model too, and not measured
again at the same commit.

    python benchmarks/real_readers.py DATA [--quick] [--output FILE.jsonl]
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.data.memalpha import load_instances
from finemem_lib.data.questions import Teacher, sampled_questions
from finemem_lib.evaluation.real_readers import (
    Row,
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
from finemem_lib.readers.roles import Models, load_roles
from finemem_lib.trajectory import Instance, Question
from finemem_lib.util.files import write_json, written_beside
from finemem_lib.util.provenance import git_state, hardware, versions, workbench_root

FILES = {"squad.jsonl": 8, "hotpotqa.jsonl": 6, "locomo.jsonl": 5}
"""The data files and how many of their instances are read; they share `QUESTIONS`."""

QUESTIONS = 40
TOP_K = 3
REAL = "data/real/held_out.parquet"
INSTANCES = 6
CANDIDATES = 2
ROLLOUTS = RolloutSettings(num_generations=4, top_k=2)
MANAGER = "random"
RULES, MODEL = "rules", "smollm2"
"""Who plays a role: the extractive reader and the cloze teacher, or the language model."""


def read_instances(path: Path, number: int, questions: int, seed: int) -> list[Instance]:
    """Return the first instances of a file, with at most `questions` questions each."""
    return [
        sampled_questions(one, min(1.0, questions / len(one.questions)), seed)
        for one in load_instances(path, limit=number).instances
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("data", type=Path, help="folder with the data files")
    parser.add_argument("--quick", action="store_true", help="two questions, one instance each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--models", type=Path, default=workbench_root() / "notebooks/models/smollm2.yaml"
    )
    parser.add_argument("--work", type=Path, default=workbench_root() / "data/runs/real_readers")
    parser.add_argument("--output", type=Path, help="also write the rows, to a new file")
    arguments = parser.parse_args()
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    models = {RULES: Models(), MODEL: Models(load_roles(arguments.models, arguments.work))}
    git = git_state(workbench_root())
    made = [git, arguments.seed, arguments.quick, arguments.models.read_text(encoding="utf-8")]
    seconds = 0.0

    def part(name: str, measure: Callable[[], Any]) -> Any:
        """Return what was measured before with the same settings, or measure it."""
        nonlocal seconds
        path = arguments.work / f"{name}.json"
        kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        if kept.get("made") != made or git["dirty"] is not False:
            start = time.process_time()
            kept = {"made": made, "found": measure()}
            kept["seconds"] = round(time.process_time() - start)
            write_json(path, kept)
            print(f"{name}: {kept['seconds']} CPU seconds", file=sys.stderr, flush=True)
        seconds += kept["seconds"]
        return kept["found"]

    def scores(instances: list[Instance], who: str) -> Any:
        reader, manager = models[who].reader(instances), make_manager("insert-all")
        return accuracies(instances, manager, reader, TOP_K, arguments.seed)

    rows = []
    for file, number in FILES.items():
        number = 1 if arguments.quick else number
        most = 2 if arguments.quick else QUESTIONS // number
        instances = read_instances(arguments.data / file, number, most, arguments.seed)
        found = {
            who: part(
                f"accuracy-{file}-{who}",
                functools.partial(scores, instances, who),
            )
            for who in models
        }
        rows += [row_of("accuracy", file, who, values) for who, values in found.items()]
        rows.append(row_of("accuracy", file, MODEL, found[MODEL], RULES, found[RULES]))
    rows += rows_of_questions(models, part, 1 if arguments.quick else INSTANCES, arguments.seed)
    for row in rows:
        interval = "" if row.low is None else f" [{row.low:.3f}, {row.high:.3f}]"
        value = "–" if row.value is None else f"{row.value:.3f}{interval}"
        against = f" against {row.against}" if row.against else ""
        print(f"{row.measure:14} {row.file:28} {row.who}{against}: {value} ({row.counted})")
    if arguments.output:
        with written_beside(arguments.output) as beside:
            beside.write_text("".join(json.dumps(dataclasses.asdict(row)) + "\n" for row in rows))
        write_json(
            arguments.output.with_suffix(".json"),
            {
                "command": "python benchmarks/real_readers.py DATA --output "
                "data/experiments/real_readers.jsonl",
                "seed": arguments.seed,
                "questions_per_file": QUESTIONS,
                "instances": {**FILES, REAL: INSTANCES},
                "candidates_per_chunk": CANDIDATES,
                "rollouts": ROLLOUTS.num_generations,
                "data_sha256": {
                    str(name): hashlib.sha256(path.read_bytes()).hexdigest()
                    for name, path in (
                        *((file, arguments.data / file) for file in FILES),
                        (REAL, workbench_root() / REAL),
                    )
                },
                "models": models[MODEL].record(),
                "interval": "95 %, Student's t over instances (evaluation.clustered_mean)",
                "cpu_seconds": seconds,
                "hardware": f"{hardware()}, one thread",
                "git": git,
                "versions": versions(),
            },
        )


def rows_of_questions(
    models: dict[str, Models], part: Callable[[str, Callable[[], Any]], Any], number: int, seed: int
) -> list[Row]:
    """Return the rows on verifiers, teachers and the CSR of their questions."""
    instances = load_instances(workbench_root() / REAL, limit=number).instances
    teachers: dict[str, Callable[[], Teacher]] = {
        RULES: lambda: ClozeTeacher(max_candidates=CANDIDATES),
        MODEL: lambda: models[MODEL].teacher(CANDIDATES),
    }

    def asked(teacher: str, verifier: str) -> dict[str, Any]:
        made, audits = questioned(
            instances,
            teachers[teacher](),
            models[verifier].verifier(instances),
            CANDIDATES,
            seed,
        )
        return {
            "accepted": acceptances(audits),
            "questions": {
                one.instance_id: [
                    [dataclasses.asdict(each) for each in step]
                    for step in one.chunk_questions or ()
                ]
                for one in made
            },
        }

    rows = []
    found = {
        (teacher, verifier): part(
            f"questions-{teacher}-{verifier}",
            functools.partial(asked, teacher, verifier),
        )
        for teacher in teachers
        for verifier in models
    }
    for (teacher, verifier), one in found.items():
        rows.append(row_of("questions", REAL, teacher, one["accepted"], verifier))
        if verifier == MODEL:
            rules = found[teacher, RULES]["accepted"]
            same = same_verdicts(one["accepted"], rules)
            row = row_of("same verdict", REAL, f"{MODEL} on {teacher}", same, RULES)
            rows.append(row)
            chance = kappa(one["accepted"], rules)
            rows.append(
                dataclasses.replace(row, measure="kappa", value=chance, low=None, high=None)
            )

    def rewarded(teacher: str, reader: str) -> Any:
        made = with_questions(instances, found[teacher, RULES]["questions"])
        agent = models[reader].reader(instances)
        return step_rewards(made, make_manager(MANAGER), agent, ROLLOUTS, seed)

    rewards = {
        (teacher, reader): part(
            f"csr-{teacher}-{reader}",
            functools.partial(rewarded, teacher, reader),
        )
        for teacher in teachers
        for reader in models
    }
    first = (RULES, RULES)
    for pair, values in rewards.items():
        if pair != first:
            agreed = reward_agreement(values, rewards[first])
            rows.append(row_of("CSR agreement", REAL, ", ".join(pair), agreed, ", ".join(first)))
    return rows


def with_questions(
    instances: Sequence[Instance], questions: dict[str, list[list[dict[str, Any]]]]
) -> list[Instance]:
    """Return the instances with chunk questions as `rows_of_questions` keeps them."""
    return [
        dataclasses.replace(
            one,
            chunk_questions=tuple(
                tuple(_question(each) for each in step) for step in questions[one.instance_id]
            ),
        )
        for one in instances
    ]


def _question(kept: dict[str, Any]) -> Question:
    lists = {name: tuple(value) for name, value in kept.items() if isinstance(value, list)}
    return Question(**(kept | lists))


if __name__ == "__main__":
    main()
