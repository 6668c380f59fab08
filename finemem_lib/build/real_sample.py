"""Make the real sample in `data/real` and its card, as a seeded command.

    python -m finemem_lib.build.real_sample --data FOLDER --output data/real --seed 0

The sample consists of excerpts of SQuAD's passages with pieces of QMSum's meetings as distractors,
so that a stream mixes texts with and without questions. Training and held-out excerpts come from
different articles and meetings.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from finemem_lib.data.excerpts import ExcerptSettings, excerpts, without_last_fifth
from finemem_lib.data.memalpha import load_instances, save_instances
from finemem_lib.seeds import generator
from finemem_lib.trajectory import Instance
from finemem_lib.util.files import sha256

QUESTION_SET, DISTRACTOR_SET = "squad", "qmsum"
TRAIN, HELD_OUT = 120, 60
EXCERPTS = ExcerptSettings(chunk_tokens=80, chunks=5, distractors=3, min_questions=2)

CARD = """# Real sample: passages with meetings between them

{train} excerpts to train on (`train.parquet`) and {held_out} held out (`held_out.parquet`), in the
layout of Mem-alpha's instances. Each has {chunks} chunks of at most {chunk_tokens} tokens: {own}
neighbouring pieces of one Wikipedia article with the SQuAD questions that they answer, and
{distractors} pieces of meetings, about which nothing is asked, at places drawn at random. Articles
and meetings of the held-out excerpts occur in none to train on: they are the last fifth of each
file.

Made by `python -m finemem_lib.build.real_sample --data FOLDER --output data/real --seed {seed}`
(`finemem_lib.data.excerpts`) from these files:

| text | licence | sha256 of the file |
|---|---|---|
| passages and questions: SQuAD v1.1 (development set), from Wikipedia | CC BY-SA 4.0 | {asked} |
| meetings: QMSum | MIT | {between} |

Rajpurkar et al. (2016) made SQuAD, Zhong et al. (2021) QMSum. The excerpts are shared under
CC BY-SA 4.0. Changes: the passages are cut between sentences and stand in a dialogue of our own
wording.
"""


def real_sample(
    asked: Sequence[Instance], between: Sequence[Instance], seed: int
) -> tuple[list[Instance], list[Instance]]:
    """Return the training excerpts and the held-out excerpts.

    Args:
        asked: Instances with the passages and their questions.
        between: Instances that provide the distractors.
        seed: Seed of the draws.
    """
    found = []
    for long, others, count in zip(
        without_last_fifth(asked), without_last_fifth(between), (TRAIN, HELD_OUT), strict=True
    ):
        made = excerpts(long, EXCERPTS, others=others, seed=seed)
        generator("real sample", seed, count).shuffle(made)
        found.append(made[:count])
    return found[0], found[1]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the sample; see the module.

    Args:
        arguments: Command-line arguments; `None` for those of the process.
    """
    parser = argparse.ArgumentParser(description="Make the real sample and its card.")
    parser.add_argument("--data", type=Path, required=True, help="folder of the data files")
    parser.add_argument("--output", type=Path, required=True, help="folder to write into")
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args(arguments)
    files = [asked.data / f"{name}.jsonl" for name in (QUESTION_SET, DISTRACTOR_SET)]
    passages, meetings = (load_instances(file).instances for file in files)
    train, held_out = real_sample(passages, meetings, asked.seed)
    asked.output.mkdir(parents=True, exist_ok=True)
    save_instances(train, asked.output / "train.parquet")
    save_instances(held_out, asked.output / "held_out.parquet")
    hashes = [*map(sha256, files)]
    card = CARD.format(
        train=len(train),
        held_out=len(held_out),
        chunks=EXCERPTS.chunks,
        own=EXCERPTS.chunks - EXCERPTS.distractors,
        distractors=EXCERPTS.distractors,
        chunk_tokens=EXCERPTS.chunk_tokens,
        seed=asked.seed,
        asked=hashes[0],
        between=hashes[1],
    )
    (asked.output / "README.md").write_text(card, encoding="utf-8")


if __name__ == "__main__":
    main()
