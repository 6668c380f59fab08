"""Read the metadata of the notebooks, under the key ``finemem``.

Only these metadata define order, parameters, artefacts read and written, minutes and hardware; the
command line and the table in ``docs/notebooks.md`` read them. ``python -m
finemem_lib.runs.notebooks`` prints the table, or, with the path of a notebook, its parameters cell.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from finemem_lib.runs.artefacts import ARTEFACTS
from finemem_lib.runs.parameters import MODELS, NotebookParameters
from finemem_lib.util.provenance import workbench_root
from finemem_lib.util.validation import parse_json, problems_in_words

RUNNING = "FINEMEM_NOTEBOOK"
"""Environment variable in which the command line passes a kernel the path of its notebook."""


class Notebook(BaseModel):
    """The metadata of a notebook.

    Attributes:
        path: The notebook's file.
        name: Name of the notebook; its number is valid on the command line only if this is the
            file's stem.
        parameters: Model of the parameters: a name in `parameters.MODELS`, or ``FILE.py:CLASS`` for
            a file in the notebook's folder.
        order: Number on the command line and on the site; None for an extra notebook, which runs
            only when its stem is given.
        question: The question that the notebook answers.
        reads: Artefacts to load, each with the parameter values under which it is loaded; an empty
            mapping means always.
        writes: Artefacts to save.
        minutes: Approximate duration with default parameters, in minutes.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)

    path: Path
    name: str
    parameters: str
    order: int | None = Field(None, ge=1, le=99)
    title: str = ""
    question: str = ""
    reads: dict[str, dict[str, bool | int | float | str]] = {}
    writes: list[str] = []
    minutes: int = Field(0, ge=0)
    hardware: str = ""

    @property
    def stem(self) -> str:
        return self.path.stem

    def is_numbered(self, number: int) -> bool:
        """Return whether this notebook has a number on the command line.

        Args:
            number: The number, from 1.
        """
        return self.order == number and self.name == self.stem

    def answers_to(self, prefix: str) -> bool:
        """Return whether a parameter given as ``PREFIX.NAME`` applies to this notebook.

        Args:
            prefix: Two digits, a notebook's stem, or "" for every notebook.
        """
        number = re.fullmatch(r"[0-9]{1,2}", prefix)
        return prefix in ("", self.stem) or bool(number and self.is_numbered(int(prefix)))

    def reads_under(self, values: Mapping[str, Any]) -> dict[str, list[str]]:
        """Return the artefacts that the notebook loads with given parameters.

        Args:
            values: All parameters of the notebook by name.

        Returns:
            Artefacts by name, each with the parameters on which its loading depends.
        """
        return {
            artefact: sorted(conditions)
            for artefact, conditions in self.reads.items()
            if all(values.get(name) == value for name, value in conditions.items())
        }

    def model(self) -> type[NotebookParameters]:
        """Return the pydantic model of the notebook's parameters.

        Raises:
            ValueError: there is no such model, or its file cannot be imported.
        """
        file, colon, name = self.parameters.rpartition(":")
        found = _class_in(self.path.parent / file, name) if colon else MODELS.get(name)
        if isinstance(found, type) and issubclass(found, NotebookParameters):
            return found
        raise ValueError(
            f"notebook {self.path}: its metadata name the parameters {self.parameters!r}, expected "
            f"one of {', '.join(MODELS)}, or FILE.py:CLASS with a subclass of NotebookParameters "
            "in a file beside the notebook"
        )


def _class_in(path: Path, name: str) -> Any:
    """Return a class from a Python file, which is executed once, and again after a change."""
    return _load_class(path, name, path.stat().st_mtime_ns) if path.is_file() else None


@functools.cache
def _load_class(path: Path, name: str, modified: int) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        return None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # a file of the user's may raise anything
        raise ValueError(
            f"{path}: the parameters' model {name} cannot be imported "
            f"({type(error).__name__}: {error}); correct the file"
        ) from error
    return getattr(module, name, None)


def read_json(path: Path) -> Any:
    """Return the content of a JSON file.

    Args:
        path: The file.

    Raises:
        ValueError: the file cannot be read, is not JSON or is nested too deeply.
    """
    try:
        return parse_json(path.read_bytes())
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check the path") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_notebook(path: Path) -> Notebook:
    """Return the metadata of a notebook.

    Args:
        path: An ``.ipynb`` file.

    Raises:
        ValueError: the file cannot be read, or its metadata are missing or not usable.
    """
    try:
        content = read_json(path)
    except ValueError as error:
        raise ValueError(f"notebook {error}") from None
    held = content.get("metadata") if isinstance(content, dict) else None
    said = held.get("finemem") if isinstance(held, dict) else None
    if not isinstance(said, dict):
        raise ValueError(
            f"notebook {path}: its metadata have no entry 'finemem', which names its parameters "
            "and artefacts; copy that of a notebook like it and change the name"
        )
    try:
        return Notebook.model_validate({**said, "path": path})
    except ValidationError as error:
        raise ValueError(
            f"notebook {path}: the entry 'finemem' of its metadata is not usable "
            f"({problems_in_words(error)}); "
            "correct it"
        ) from None


def notebooks_in(folder: Path) -> list[Notebook]:
    """Return the notebooks of a folder with valid metadata, in the order of their names.

    Args:
        folder: Folder with notebooks; subfolders are not searched.
    """
    found = []
    for path in sorted(folder.glob("*.ipynb")):
        try:
            found.append(read_notebook(path))
        except ValueError:  # a scratch notebook; choosing it raises the error
            continue
    return found


def numbered(folder: Path) -> list[Notebook]:
    """Return the notebooks of a folder that have a number, in the order of their numbers.

    Args:
        folder: Folder with notebooks.

    Raises:
        ValueError: two notebooks have the same number.
    """
    found: dict[int, Notebook] = {}
    for one in notebooks_in(folder):
        if one.order is None or not one.is_numbered(one.order):
            continue
        if one.order in found:
            raise ValueError(
                f"notebooks {found[one.order].stem} and {one.stem} in {folder} both have the order "
                f"{one.order} in their metadata; leave it out of the extra one"
            )
        found[one.order] = one
    return [found[order] for order in sorted(found)]


def writers_of(artefact: str, folder: Path) -> list[Notebook]:
    """Return the notebooks of a folder that save an artefact, numbered ones first.

    Args:
        artefact: Name of the artefact.
        folder: Folder with notebooks.
    """
    found = [one for one in notebooks_in(folder) if artefact in one.writes]
    return sorted(found, key=lambda one: (one.name != one.stem, one.order or 100, one.stem))


def find_notebook(name: str) -> Notebook:
    """Return the notebook of the current kernel.

    Args:
        name: Stem of the notebook's file; not used if the command line passes the path (`RUNNING`).

    Raises:
        ValueError: there is no such notebook in the working directory or in ``notebooks``.
    """
    if running := os.environ.get(RUNNING):
        return read_notebook(Path(running))
    places = [Path.cwd() / f"{name}.ipynb", workbench_root() / "notebooks" / f"{name}.ipynb"]
    for path in places:
        if path.is_file():
            return read_notebook(path)
    raise ValueError(
        f"no notebook {name}.ipynb in {' or '.join(str(path.parent) for path in places)}; give "
        "start_run the name of the notebook's own file"
    )


def notebook_table(folder: Path) -> str:
    """Return the table of docs/notebooks.md: the numbered notebooks of a folder, in Markdown.

    Args:
        folder: Folder with notebooks.
    """
    rows = [
        "| # | Notebook | Question | Reads | Writes | Minutes | Hardware |",
        "|---|---|---|---|---|---|---|",
    ]
    for one in numbered(folder):
        reads = ", ".join(
            f"`{artefact}`" + "".join(f" if {n} is {v}" for n, v in conditions.items())
            for artefact, conditions in sorted(
                one.reads.items(), key=lambda read: list(ARTEFACTS).index(read[0])
            )
        )
        writes = ", ".join(f"`{name}`" for name in one.writes)
        rows.append(
            f"| {one.order:02} | [{one.title}](../notebooks/{one.path.name}) | {one.question} | "
            f"{reads or 'nothing'} | {writes or 'nothing'} | {one.minutes} | {one.hardware} |"
        )
    return "\n".join(rows)


if __name__ == "__main__":
    if sys.argv[1:]:
        print(read_notebook(Path(sys.argv[1])).model().cell())
    else:
        print(notebook_table(workbench_root() / "notebooks"))
