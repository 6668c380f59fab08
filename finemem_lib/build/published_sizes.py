"""Compare sizes of data sets with the published sizes: instances, chunks, tokens, questions."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from finemem_lib.text import TOKENIZER, count_tokens
from finemem_lib.trajectory import Instance
from finemem_lib.util.yaml_files import parse_yaml


@dataclass(frozen=True, slots=True)
class Sizes:
    """Sizes of a data source.

    Attributes:
        chunks: Mean number of chunks per instance.
        tokens: Mean number of tokens per chunk, in `unit`.
        questions: Mean number of questions per instance.
        unit: Name of the tokenizer.
    """

    instances: int
    chunks: float
    tokens: float
    questions: float
    unit: str = "Qwen3"


@functools.cache
def published_sizes() -> Mapping[str, Mapping[str, Sizes]]:
    """Return the published sizes by data source and table, from `published_sizes.yaml`."""
    text = files("finemem_lib.build").joinpath("published_sizes.yaml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Sizes]] = defaultdict(dict)
    for table, rows in parse_yaml(text).items():
        for source, numbers in rows.items():
            found[source][table] = Sizes(*numbers)
    return dict(found)


def sizes(instances: Sequence[Instance]) -> dict[str, Sizes]:
    """Return the sizes by data source, in order of occurrence.

    Args:
        instances: Any instances.
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
            sum(map(count_tokens, texts)) / max(1, len(texts)),
            questions / len(group),
            TOKENIZER,
        )
    return found


def size_table(instances: Sequence[Instance]) -> list[dict[str, Any]]:
    """Return one record per data source, followed by its published sizes.

    Args:
        instances: Any instances.
    """
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
        for source, here in sizes(instances).items()
        for where, one in {"these instances": here, **published_sizes().get(source, {})}.items()
    ]


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return records as a Markdown table.

    Args:
        rows: At least one record; all records have the same keys.

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
