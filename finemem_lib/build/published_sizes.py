"""Sizes of data sets beside the published ones: instances, chunks, tokens and questions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from finemem_lib.text import TOKENIZER, count_tokens
from finemem_lib.trajectory import Instance


@dataclass(frozen=True, slots=True)
class Sizes:
    """How many instances, and means: chunks and questions per instance, tokens per chunk."""

    instances: int
    chunks: float
    tokens: float
    questions: float
    unit: str = "Qwen3"


_TABLE_7_TRAIN = "arXiv 2509.25911, table 7, train"
_TABLE_7_VALIDATION = "arXiv 2509.25911, table 7, validation"
_TABLE_8 = "arXiv 2509.25911, table 8"

PUBLISHED: dict[str, dict[str, Sizes]] = {
    "squad": {
        _TABLE_7_TRAIN: Sizes(100, 9.9, 1084.1, 94.8),
        _TABLE_7_VALIDATION: Sizes(30, 10.0, 1057.0, 96.8),
    },
    "hotpotqa": {
        _TABLE_7_TRAIN: Sizes(100, 9.7, 1005.4, 16.7),
        _TABLE_7_VALIDATION: Sizes(219, 9.2, 1051.6, 17.0),
    },
    "perltqa": {
        _TABLE_7_TRAIN: Sizes(27, 23.3, 517.1, 100.0),
        _TABLE_7_VALIDATION: Sizes(4, 23.0, 567.8, 100.0),
    },
    "lme_train": {_TABLE_7_TRAIN: Sizes(50, 15.4, 1527.7, 4.0)},
    "pubmed-rct": {
        _TABLE_7_TRAIN: Sizes(90, 10.0, 1676.1, 100.0),
        _TABLE_7_VALIDATION: Sizes(10, 10.0, 1673.3, 100.0),
    },
    "booksum": {
        _TABLE_7_TRAIN: Sizes(100, 7.8, 1909.7, 1.0),
        _TABLE_7_VALIDATION: Sizes(155, 8.1, 1914.3, 1.0),
    },
    "icl_nlu_8296shot_balance": {
        _TABLE_7_TRAIN: Sizes(49, 10.0, 610.9, 100.0),
        _TABLE_7_VALIDATION: Sizes(20, 10.0, 606.2, 100.0),
        _TABLE_8: Sizes(1, 115, 1166.7, 100),
    },
    "icl_trec_coarse_6600shot_balance": {
        _TABLE_7_TRAIN: Sizes(51, 10.0, 390.1, 100.0),
        _TABLE_7_VALIDATION: Sizes(20, 10.0, 390.2, 100.0),
        _TABLE_8: Sizes(1, 111, 1114.6, 100),
    },
    "icl_trec_fine_6400shot_balance": {_TABLE_8: Sizes(1, 108, 1163.3, 100)},
    "icl_clinic150_7050shot_balance": {_TABLE_8: Sizes(1, 38, 3440.5, 100)},
    "icl_banking77_5900shot_balance": {_TABLE_8: Sizes(1, 111, 1150.3, 100)},
    "ruler_qa1_197K": {_TABLE_8: Sizes(1, 103, 2103.9, 100)},
    "ruler_qa2_421K": {_TABLE_8: Sizes(1, 219, 2163.5, 100)},
    "longmemeval_s*": {_TABLE_8: Sizes(5, 218.6, 1591.4, 60)},
    "infbench_sum_eng_shots2": {_TABLE_8: Sizes(100, 88.9, 2034.1, 1)},
}
"""Published sizes by data source and table; table 7 is Memalpha, table 8 MemoryAgentBench."""


def sizes(
    instances: Sequence[Instance],
    count: Callable[[str], int] = count_tokens,
    unit: str = TOKENIZER,
) -> dict[str, Sizes]:
    """Return the sizes of instances by data source, in the order the sources come.

    `count` counts the tokens of a chunk, `unit` is its name.
    """
    groups: dict[str, list[Instance]] = defaultdict(list)
    for instance in instances:
        groups[instance.data_source].append(instance)
    found = {}
    for source, group in groups.items():
        texts = [chunk.text for instance in group for chunk in instance.chunks]
        questions = sum(len(instance.questions) for instance in group)
        found[source] = Sizes(
            len(group),
            len(texts) / len(group),
            sum(map(count, texts)) / max(1, len(texts)),
            questions / len(group),
            unit,
        )
    return found


def size_table(
    instances: Sequence[Instance],
    count: Callable[[str], int] = count_tokens,
    unit: str = TOKENIZER,
) -> list[dict[str, Any]]:
    """Return one record per data source of the instances, each followed by those published."""
    return [
        {
            "data source": source,
            "counted in": where,
            "instances": one.instances,
            "chunks per instance": round(one.chunks, 1),
            "tokens per chunk": round(one.tokens, 1),
            "tokens per instance": round(one.chunks * one.tokens),
            "questions per instance": round(one.questions, 1),
            "unit": one.unit,
        }
        for source, here in sizes(instances, count, unit).items()
        for where, one in {"these instances": here, **PUBLISHED.get(source, {})}.items()
    ]


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return records with the same keys as a Markdown table.

    >>> print(as_markdown([{"data source": "squad", "instances": 30}]))
    | data source | instances |
    |---|---|
    | squad | 30 |
    """
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([*row.values()] for row in rows)]
    texts = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(
        "|" + "|".join(line) + "|" if number == 1 else f"| {' | '.join(line)} |"
        for number, line in enumerate(texts)
    )
