"""Store chunk questions as parquet before training, resume an interrupted store, and load it.

A store is a folder with one part per text and recipe. The part's name is the hash of the chunks,
then the hash of the recipe (teacher, verifier, k and seed), so a part is never made twice and
questions about another text are never loaded. A part is written atomically and holds one row per
candidate with its verdict; an interruption loses only the current instance.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.data.questions import AuditRow, Teacher, make_chunk_questions
from finemem_lib.reading import ReasoningAgent
from finemem_lib.text import clean_text
from finemem_lib.trajectory import Instance, Question
from finemem_lib.util.files import exclusive_lock, written_beside

STORE_VERSION = 1
"""Part of every recipe: increment when the same settings would give other questions."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """Everything that the questions depend on, except for the text.

    Attributes:
        teacher, verifier: Names of teacher and verifier.
        teacher_settings, verifier_settings: Hashes of their settings.
        k: Largest number of questions per chunk.
        seed: Seed of the teacher's random choices.
        version: Version of the question generation, see `STORE_VERSION`.
    """

    teacher: str
    teacher_settings: str
    verifier: str
    verifier_settings: str
    k: int
    seed: int
    version: int = STORE_VERSION

    @property
    def key(self) -> str:
        """16 hexadecimal digits, the second half of a part's name."""
        return _hash(json.dumps(dataclasses.astuple(self)))


def recipe_of(teacher: Teacher, verifier: ReasoningAgent, k: int = 5, seed: int = 0) -> Recipe:
    """Return the recipe of a teacher and a verifier.

    Args:
        teacher, verifier: As for `make_chunk_questions`.
        k: Largest number of questions per chunk, at least 1.
        seed: Seed of the teacher's random choices.
    """
    return Recipe(
        teacher.name, _hash(teacher.settings), verifier.name, _hash(verifier.settings), k, seed
    )


def prepare_questions(
    instances: Sequence[Instance],
    folder: str | Path,
    teacher: Teacher,
    verifier: ReasoningAgent,
    k: int = 5,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Instance, ...]:
    """Make the chunk questions that are missing in a store, and return the instances with them.

    After an interruption, a second call continues where the first one stopped.

    Args:
        instances: The instances to make questions for.
        folder: The store; created if missing.
        teacher, verifier, k, seed: As for `make_chunk_questions`.
        progress: Called after each instance with the number done and the total.

    Raises:
        ValueError: `k` is less than 1, another process is writing to the store, the folder cannot
            be created, a part cannot be read, or a data source has no metric.
    """
    folder = Path(folder)
    recipe = recipe_of(teacher, verifier, k, seed)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{folder}: no folder for questions ({error.strerror}); give another path"
        ) from error
    busy = (
        f"{folder}: another process is making questions here; wait for it, or give another folder"
    )
    with exclusive_lock(folder / ".lock", busy):
        for done, instance in enumerate(instances, start=1):
            part = _part(folder, instance, recipe.key)
            if not part.exists():
                made, audit = make_chunk_questions(instance, teacher, verifier, k, seed)
                _write(part, made, audit, recipe)
            if progress is not None:
                progress(done, len(instances))
    return with_questions(instances, folder, recipe.key)


@dataclass(frozen=True, slots=True)
class StoredQuestions:
    """The stored questions of some instances.

    Attributes:
        instances: The instances with their questions.
        audits: The verdicts on all candidates, per instance.
    """

    instances: tuple[Instance, ...]
    audits: tuple[tuple[AuditRow, ...], ...]
    recipe: Recipe


def load_questions(
    instances: Sequence[Instance], source: str | Path, k: int | None = None
) -> StoredQuestions:
    """Return the stored questions for the text of some instances, all made by one recipe.

    Args:
        instances: The instances; the text of their chunks identifies their questions.
        source: The store's folder, or FOLDER@KEY with the key of a recipe; the key is needed only
            if the store holds several recipes.
        k: The required `k` of the recipe; `None`: any.

    Raises:
        ValueError: as `with_questions`; the instances have several recipes, or another `k`.
    """
    folder, key = split_source(source)
    read = [_read(_find(instance, folder, key)) for instance in instances]
    recipes = {
        Recipe(**{field.name: row[field.name] for field in dataclasses.fields(Recipe)})
        for rows in read
        for row in rows
    }
    if len(recipes) != 1:
        keys = ", ".join(sorted(recipe.key for recipe in recipes)) or "none"
        raise ValueError(
            f"{folder}: the questions of these instances are by {len(recipes)} recipes ({keys}), "
            "expected one; give FOLDER@KEY"
        )
    [recipe] = recipes
    if k not in (None, recipe.k):
        raise ValueError(
            f"{folder}: its questions were made with at most {recipe.k} per chunk, expected {k}; "
            f"set questions_per_chunk to {recipe.k}, or make others with --k {k}"
        )
    return StoredQuestions(tuple(map(_asked, instances, read)), tuple(map(audit_of, read)), recipe)


def split_source(source: str | Path) -> tuple[Path, str | None]:
    """Return the folder and, if given, the recipe's key of a source.

    Args:
        source: FOLDER or FOLDER@KEY.

    >>> split_source("no/such/folder@0123456789abcdef")
    (PosixPath('no/such/folder'), '0123456789abcdef')
    """
    folder, at, key = str(source).rpartition("@")
    return (Path(folder), key) if at and not Path(source).exists() else (Path(source), None)


def audit_of(rows: Sequence[Mapping[str, Any]]) -> tuple[AuditRow, ...]:
    """Return the audit recorded in rows of a store.

    Args:
        rows: Rows of one part.
    """
    return tuple(
        AuditRow(
            row["step"],
            row["question"],
            "; ".join(row["answers"]),
            row["accepted"],
            row["reason"],
            row["reply"],
        )
        for row in rows
    )


def with_questions(
    instances: Sequence[Instance], folder: str | Path, key: str | None = None
) -> tuple[Instance, ...]:
    """Return the instances with the accepted chunk questions that a store holds for their text.

    Args:
        instances: The instances; the text of their chunks identifies their questions.
        folder: The store.
        key: Key of a recipe; needed only if the store holds several recipes.

    Raises:
        ValueError: the store lacks the questions of a text, holds several recipes and no key was
            given, or a part cannot be read.
    """
    return tuple(
        _asked(instance, _read(_find(instance, Path(folder), key))) for instance in instances
    )


def stored_rows(folder: str | Path) -> list[dict[str, Any]]:
    """Return the audit of a whole store.

    Args:
        folder: The store.

    Returns:
        One record per candidate: its instance and step, question and answers, whether it was
        accepted, the reason if not, the verifier's reply, and the recipe.

    Raises:
        ValueError: a part cannot be read.
    """
    return [row for part in sorted(Path(folder).glob("*.parquet")) for row in _read(part)]


def _find(instance: Instance, folder: Path, key: str | None) -> Path:
    parts = sorted(folder.glob(_part(folder, instance, key or "*").name))
    if len(parts) > 1:
        keys = ", ".join(part.stem.split("-")[1] for part in parts)
        raise ValueError(
            f"{folder}: holds questions of instance {instance.instance_id!r} by {len(parts)} "
            f"recipes ({keys}), expected one; give the key of the one that is meant"
        )
    if not parts:
        raise ValueError(
            f"{folder}: holds no questions for the text of instance {instance.instance_id!r}"
            f"{f' by recipe {key}' if key else ''}, expected a part named "
            f"{_part(folder, instance, key or '*').name}; make them with prepare_questions, from "
            "chunks cut in the same way"
        )
    return parts[0]


def _asked(instance: Instance, rows: Sequence[Mapping[str, Any]]) -> Instance:
    questions: list[list[Question]] = [[] for _ in instance.chunks]
    for row in rows:
        if row["accepted"]:
            asked = questions[row["step"] - 1]
            asked.append(
                Question(
                    f"chunk-{row['step']}-{len(asked) + 1}",
                    row["question"],
                    tuple(row["answers"]),
                    row["data_source"],
                    row["step"],
                    (row["step"],),
                )
            )
    return dataclasses.replace(instance, chunk_questions=tuple(map(tuple, questions)))


def _write(part: Path, made: Instance, audit: Sequence[AuditRow], recipe: Recipe) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    accepted = [iter(asked) for asked in made.chunk_questions or ()]
    rows = []
    for row in audit:
        kept = next(accepted[row.step - 1]) if row.accepted else None
        rows.append(
            {
                "instance_id": made.instance_id,
                "step": row.step,
                "question": clean_text(row.question),
                "answers": [clean_text(one) for one in (kept.answers if kept else (row.answer,))],
                "data_source": kept.data_source if kept else None,
                "accepted": row.accepted,
                "reason": row.reason,
                "reply": None if row.reply is None else clean_text(row.reply),
                **dataclasses.asdict(recipe),
            }
        )
    whole, text = pa.int64(), pa.string()
    types = {
        "instance_id": text,
        "step": whole,
        "question": text,
        "answers": pa.list_(text),
        "data_source": text,
        "accepted": pa.bool_(),
        "reason": text,
        "reply": text,
    }
    for field in dataclasses.fields(Recipe):
        types[field.name] = whole if field.name in ("k", "seed", "version") else text
    schema = pa.schema(types)
    with written_beside(part) as beside:
        pq.write_table(pa.Table.from_pylist(rows, schema=schema), beside)


def _read(part: Path) -> list[dict[str, Any]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        rows: list[dict[str, Any]] = pq.read_table(part).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise ValueError(
            f"{part}: not readable as parquet ({error}); remove it and make the questions again"
        ) from error
    return rows


def _part(folder: Path, instance: Instance, key: str) -> Path:
    text = json.dumps([instance.data_source, *(chunk.text for chunk in instance.chunks)])
    return folder / f"{_hash(text)}-{key}.parquet"


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:16]
