"""Resolve a run's profile, notebooks, parameters and artefacts before any kernel starts."""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.util
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.baselines.systems import played_by_a_model
from finemem_lib.managers import loading
from finemem_lib.managers.loading import split_revision
from finemem_lib.readers.roles import check_roles, load_roles
from finemem_lib.retrievers.encoder import DENSE_MODEL, FETCHED as MINILM
from finemem_lib.retrievers.named import WITH_ENCODER
from finemem_lib.runs import run as runs
from finemem_lib.runs.artefacts import ARTEFACTS
from finemem_lib.runs.notebooks import (
    Notebook,
    notebooks_in,
    numbered,
    read_notebook,
    writers_of,
)
from finemem_lib.runs.parameters import LoadsCheckpoint, NotebookParameters, ParameterError
from finemem_lib.runs.profile_file import ProfileFile
from finemem_lib.util.console import UsageError, UsageErrors
from finemem_lib.util.files import real_path
from finemem_lib.util.provenance import FETCHED, workbench_root
from finemem_lib.util.validation import problems_in_words
from finemem_lib.util.yaml_files import read_yaml

_SECRET = re.compile(r"(^|_)(key|token|secret|password|credentials?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Profile:
    """A named set of parameters.

    Attributes:
        name: Name or path given by the user.
        description: Purpose of the profile.
        notebooks: A selection as for `select_notebooks`.
        parameters: Values for every notebook that has the parameter.
        notebook_parameters: Values for single notebooks, by number or stem.
        requires: Parameters that the user must give.
        card: The graphics card for which it is made, a name in `estimates.CARDS`; "" for none.
    """

    name: str
    description: str
    notebooks: list[str]
    parameters: dict[str, Any]
    notebook_parameters: dict[str, dict[str, Any]]
    requires: list[str]
    card: str = ""


def load_profile(folder: Path, name: str) -> Profile:
    """Read a profile.

    Args:
        folder: Folder of the named profiles.
        name: Name of ``<name>.yaml`` in the folder, or a path, which contains a path separator or
            ends with ``.yaml`` or ``.yml``.

    Raises:
        UsageError: there is no such profile, or a key of it is unknown or has the wrong type.
    """
    from pydantic import ValidationError

    if os.sep in name or name.endswith((".yaml", ".yml")):
        path = Path(os.path.expanduser(name))
    else:
        path = folder / f"{name}.yaml"
        known = sorted(path.stem for path in folder.glob("*.yaml"))
        if name not in known:
            have = ", ".join(known) or "none"
            raise UsageError(
                f"no profile {name!r} in {folder}; there are: {have}; give one of these names, or "
                "the path of a profile"
            )
    try:
        return Profile(name=name, **ProfileFile.model_validate(read_yaml(path)).model_dump())
    except ValidationError as error:
        raise UsageError(f"profile {path} is not usable: {problems_in_words(error)}") from error
    except ValueError as error:
        raise UsageError(f"profile {error}") from error


def select_notebooks(folder: Path, selection: Sequence[str]) -> list[Path]:
    """Return the selected notebooks of a folder, in the order of their file names.

    Args:
        folder: Folder of the notebooks.
        selection: Numbers, ranges and stems, as in ``01,03-05`` or ``04_short``. A number is the
            order in a notebook's metadata. An extra notebook whose file name begins with the same
            digits, or whose metadata were copied, is selected by its stem only.

    Raises:
        UsageError: a part has another form, or its notebook is missing or cannot be read.
    """
    with UsageErrors(ValueError):
        found = {one.order: one.path for one in numbered(folder)}
    chosen: set[Path] = set()
    for part in map(str.strip, ",".join(selection).split(",")):
        if (path := folder / f"{part}.ipynb").is_file():
            chosen.add(path)
            continue
        match = re.fullmatch(r"(\d{1,2})(?:-(\d{1,2}))?", part)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        _check_readable(folder, [number for number in numbers if number not in found])
        if not numbers or not {numbers[0], numbers[-1]} <= set(found):
            have = ", ".join(sorted(one.stem for one in notebooks_in(folder))) or "none"
            raise UsageError(
                f"notebooks {part!r}: expected numbers and ranges of notebooks as in 01,03-05, or "
                f"the name of one as in 04_short; {folder} has: {have}"
            )
        chosen.update(found[number] for number in numbers if number in found)
    return sorted(chosen)


def _check_readable(folder: Path, numbers: Iterable[int]) -> None:
    """Raise UsageError for numbers of unreadable notebooks, which a range would omit silently."""
    for path in (
        path for number in numbers for path in sorted(folder.glob(f"{number:02}_*.ipynb"))
    ):
        with UsageErrors(ValueError):
            read_notebook(path)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that select profile, notebooks and parameters.

    Args:
        parser: The parser of a command.
    """
    parser.add_argument(
        "--profile", default="default", help="a profile: a name in notebooks/profiles, or a path"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of every notebook that has it; NN.NAME or STEM.NAME for one notebook",
    )
    parser.add_argument(
        "--notebooks",
        action="append",
        metavar="01,03-05",
        help="numbers of notebooks, or the file name of an extra one (default: the profile's)",
    )
    parser.add_argument(
        "--data",
        nargs="+",
        action="extend",
        metavar="PATH",
        help="files of real instances, or data sets on the hub as owner/name",
    )
    parser.add_argument("--notebooks-dir", metavar="FOLDER", help="default: notebooks/")


def requested(options: argparse.Namespace) -> tuple[Profile, list[Path], dict[str, Any]]:
    """Return the profile, the notebooks and the parameters given by options.

    Args:
        options: The options of `add_arguments`.

    Raises:
        UsageError: there is no such profile or notebook, or a setting is not ``NAME=VALUE``.
    """
    folder = real_path(options.notebooks_dir or workbench_root() / "notebooks")
    profile = load_profile(folder / "profiles", options.profile)
    notebooks = select_notebooks(folder, options.notebooks or profile.notebooks)
    return profile, notebooks, parameters_given(options.set, options.data)


def parameters_given(settings: Sequence[str], data: Sequence[str] | None) -> dict[str, Any]:
    """Return the parameters given by options, with absolute paths.

    Args:
        settings: The settings of ``--set NAME=VALUE``.
        data: The paths of ``--data PATH``.

    Raises:
        UsageError: a setting is not ``NAME=VALUE``.
    """
    given: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not re.fullmatch(r"([\w-]+\.)?[A-Za-z_]\w*", name):
            raise UsageError(f"--set {setting!r}: expected NAME=VALUE or NN.NAME=VALUE")
        if name.rpartition(".")[2] == "run_id":
            raise UsageError("--set run_id: give --run-id ID")
        given[name] = value
    if data:
        given["data"] = [
            str(path) if (path := real_path(source)).exists() else source for source in data
        ]
    return given


def resolve_parameters(
    notebooks: Sequence[Path],
    profile: Profile,
    given: Mapping[str, Any],
    run_id: str,
    *,
    to_run: bool = True,
) -> dict[str, dict[str, Any]]:
    """Return every parameter of every notebook, by the notebook's stem.

    The user's value has precedence over the profile's, then the one in the parameters cell, then
    the model's default.

    Args:
        notebooks: The selected notebooks.
        profile: Values for all notebooks and for single ones.
        given: The user's values by name; a name can have the number or stem of a notebook as a
            prefix, as in ``04.updates``.
        run_id: The run's id, a parameter of every notebook.
        to_run: Whether to check also that this machine can load the models.

    Raises:
        UsageError: a name is unknown, a value is invalid, two values contradict each other, or the
            file of models is not usable here. The message names all problems.
    """
    with UsageErrors(ValueError):
        chosen = [read_notebook(path) for path in notebooks]
        models = {one.stem: one.model() for one in chosen}
    for_one = {
        f"{number}.{name}": value
        for number, parameters in profile.notebook_parameters.items()
        for name, value in parameters.items()
    }
    problems: list[str] = []
    resolved: dict[str, NotebookParameters] = {}
    for notebook in chosen:
        stem, model = notebook.stem, models[notebook.stem]
        values = _values(notebook, model, (profile.parameters, for_one, given))
        problems += _secrets(stem, model)
        try:
            resolved[stem] = model.read(values | {"run_id": run_id}, texts=True)
        except ParameterError as error:
            problems += [f"{stem}: {problem}" for problem in error.problems]
        else:
            problems += unusable_sources(resolved[stem].model_dump())
    if to_run and not problems:
        offline = hub_offline(one.model_dump() for one in resolved.values())
        problems += cannot_load(resolved, offline)
    folder = notebooks[0].parent
    problems += _unknown(given, chosen, folder)
    of_profile = [read_notebook(path) for path in select_notebooks(folder, profile.notebooks)]
    known = [*chosen, *(one for one in of_profile if one.stem not in models)]
    problems += _unknown([*profile.parameters, *for_one], known, folder)
    problems += _not_given(profile, resolved.values())
    if problems:
        raise UsageError("\n  ".join(["parameters are refused:", *dict.fromkeys(problems)]))
    return {stem: values.model_dump() for stem, values in resolved.items()}


def _values(
    notebook: Notebook, model: type[NotebookParameters], layers: Iterable[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return the values given to a notebook; later layers win, and NN.NAME wins over NAME."""
    values = _cell_values(notebook.path)
    for layer in layers:
        for full_name in sorted(layer, key=lambda name: "." in name):
            prefix, _, name = full_name.rpartition(".")
            if name in model.model_fields and notebook.answers_to(prefix):
                values[name] = layer[full_name]
    return values


def _secrets(stem: str, model: type[NotebookParameters]) -> list[str]:
    """Return a sentence for every parameter of a notebook whose name is that of a secret."""
    return [
        f"{stem}: {name} looks like a secret, and parameters are stored; give it as an "
        "environment variable"
        for name in model.model_fields
        if _SECRET.search(name)
    ]


def _not_given(profile: Profile, resolved: Iterable[NotebookParameters]) -> list[str]:
    """Return a sentence for every parameter that a profile requires and the user did not give."""
    values = list(resolved)
    return [
        f"profile {profile.name} needs {name}: give "
        + ("--data PATH" if name == "data" else f"--set {name}=VALUE")
        for name in profile.requires
        if not any(getattr(one, name, None) for one in values)
    ]


def typed_parameters(
    notebooks: Iterable[Path], values: Mapping[str, Mapping[str, Any]]
) -> dict[str, NotebookParameters]:
    """Return stored or resolved values as parameters, by the notebook's stem.

    Args:
        notebooks: Notebooks of a run.
        values: All parameters by stem; notebooks without values are omitted.

    Raises:
        ValueError: a notebook cannot be read, or its values are invalid.
    """
    typed = {}
    for path in notebooks:
        if path.stem in values:
            try:
                typed[path.stem] = read_notebook(path).model().read(values[path.stem])
            except ParameterError as error:
                raise ValueError(f"{path.stem}: {error}") from error
    return typed


def _cell_values(path: Path) -> dict[str, Any]:
    """Return the values in a notebook's parameters cell."""
    import papermill

    try:
        found = {
            name: ast.literal_eval(entry["default"])
            for name, entry in papermill.inspect_notebook(str(path)).items()
        }
    except Exception as error:  # nbformat, papermill and ast raise various errors
        raise UsageError(f"the parameters of {path} are not readable: {error}") from error
    if "run_id" not in found:
        raise UsageError(f"{path.name} has no parameter run_id in a cell tagged 'parameters'")
    return found


def unusable_sources(values: Mapping[str, Any]) -> list[str]:
    """Return why the language models or chunk questions in parameters cannot be used.

    Args:
        values: The parameters of a notebook by name.

    Returns:
        One sentence per problem, for example that the environment variable of a key is not set.
    """
    problems = []
    try:
        runs.locate_questions(values.get("questions", ""))
    except ValueError as error:
        problems.append(str(error))
    try:
        if path := runs.locate_models(values.get("models", "")):
            check_roles(path)
            problems += _without_writer(values.get("systems", ()), path)
    except (ValueError, ImportError) as error:
        problems.append(str(error))
    return problems


def _without_writer(systems: Sequence[str], models: Path) -> list[str]:
    """Return a sentence on the systems that need a writer if the file of models names none."""
    written = played_by_a_model(systems)
    if not written or "writer" in load_roles(models):
        return []
    return [
        f"systems has {', '.join(written)}, which a language model plays, and models {models} "
        "names no writer; expected the role writer in it, or other systems"
    ]


def cannot_load(parameters: Mapping[str, NotebookParameters], offline: bool) -> list[str]:
    """Return why managers or sentence encoders cannot be loaded on this machine.

    There may be no CUDA device, a package may be missing, or a checkpoint.

    Args:
        parameters: Those of the notebooks, by stem.
        offline: Whether a checkpoint on the hub must have been fetched already.
    """
    problems = []
    for stem, values in parameters.items():
        if problem := _missing_encoder(getattr(values, "retriever", "bm25"), offline):
            problems.append(f"{stem}: {problem}")
        if not isinstance(values, LoadsCheckpoint):
            continue
        model = values.model_settings()
        asked = {
            "loader 'unsloth'": "unsloth" if model.loader == "unsloth" else "",
            "precision '4bit'": "bitsandbytes" if model.precision == "4bit" else "",
            "fast_inference": "vllm" if model.fast_inference else "",
        }
        needed = {what: package for what, package in asked.items() if package}
        if needed and not _has_cuda():
            problems.append(
                f"{stem}: {' and '.join(needed)}: expected a CUDA device and there is none here; "
                "run it where there is one, or --set loader=transformers --set precision=auto "
                "--set fast_inference=false (`finemem plan` needs none)"
            )
        problems += [
            f"{stem}: {what} needs {package}, which is not installed; install it: pip install "
            + ("'vllm>=0.28,<=0.30'" if package == "vllm" else "-e .[gpu]")
            for what, package in needed.items()
            if importlib.util.find_spec(package) is None
        ]
        if problem := _missing_checkpoint(values.checkpoint, offline):
            problems.append(f"{stem}: {problem}")
    return problems


def _missing_encoder(retriever: str, offline: bool) -> str | None:
    """Return why the sentence encoder of a retriever cannot be found, `None` where it can."""
    from huggingface_hub import try_to_load_from_cache

    if retriever not in WITH_ENCODER or not offline or (workbench_root() / MINILM).is_dir():
        return None
    if isinstance(try_to_load_from_cache(DENSE_MODEL, "config.json"), str):
        return None
    return (
        f"retriever is {retriever!r}, whose sentence encoder is not there, expected the folder "
        f"{MINILM}; run `finemem fetch minilm` once, or take bm25 or graph"
    )


def _missing_checkpoint(
    checkpoint: str, offline: bool, seen: frozenset[Path] = frozenset()
) -> str | None:
    """Return why a checkpoint, or what an adapter was trained on, cannot be found.

    `seen` are the folders of adapters on the way to it.
    """
    from huggingface_hub import try_to_load_from_cache

    if folder := loading.checkpoint_folder(checkpoint):
        if held := loading.held_adapter(folder):
            if (place := real_path(folder)) in seen:
                return f"the adapter in {folder} names itself as the model it was trained on"
            of_commit = f"@{held['revision']}" if held.get("revision") else ""
            base = held["base_model_name_or_path"] + of_commit
            return _missing_checkpoint(base, offline, seen | {place})
        found, why = (folder / "config.json").is_file(), "this folder holds neither"
    else:
        name, revision = split_revision(checkpoint)
        try:
            config = try_to_load_from_cache(name, "config.json", revision=revision)
            found = (
                not offline
                or isinstance(config, str)
                and any(Path(config).parent.glob("*.safetensors"))
            )
            why = (
                "this is no folder and not in the hub's cache, and HF_HUB_OFFLINE is on, as it "
                f"is by default; fetch it (hf download {name}), or set HF_HUB_OFFLINE=0"
            )
        except ValueError:  # of huggingface_hub, which would quote its own rules
            found, why = False, "this is neither a folder nor such a name"
            if checkpoint.startswith(FETCHED):
                wanted = checkpoint.removeprefix(FETCHED)
                why = f"this folder is not there; run `finemem fetch {wanted}` once"
    return (
        None
        if found
        else (
            f"checkpoint is {checkpoint!r}, expected tiny, a folder with config.json or "
            f"adapter_config.json, or a model's name on the hub; {why}"
        )
    )


def hub_offline(parameters: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether the kernels of a run must not access the hub.

    They may if the data are on the hub. Otherwise HF_HUB_OFFLINE decides; by default they must not.

    Args:
        parameters: The parameters of every notebook of the run, by name.
    """
    from huggingface_hub.constants import ENV_VARS_TRUE_VALUES

    for source in {source for values in parameters for source in values.get("data", ())}:
        with contextlib.suppress(ValueError):  # missing files are reported elsewhere
            if runs.locate(source) is None:
                return False
    return os.environ.get("HF_HUB_OFFLINE", "1").upper() in ENV_VARS_TRUE_VALUES


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _unknown(names: Iterable[str], notebooks: Sequence[Notebook], folder: Path) -> list[str]:
    """Return a sentence for every parameter name that no notebook has."""
    problems = []
    for full_name in names:
        prefix, _, name = full_name.rpartition(".")
        fields = [one.model().model_fields for one in notebooks if one.answers_to(prefix)]
        if not fields:
            problems.append(
                f"{full_name}: notebook {prefix} is not chosen, only "
                f"{', '.join(_short_name(one) for one in notebooks)}; choose it with --notebooks, "
                "or leave the parameter out"
            )
        elif not any(name in each for each in fields):
            have = sorted({each for names in fields for each in names} - {"run_id"})
            owners = [] if prefix else _owners(name, folder)
            problems.append(
                f"unknown parameter {name}: it is one of {', '.join(owners)}, not of a notebook "
                "that is chosen; choose it with --notebooks, or leave it out"
                if owners
                else f"unknown parameter {full_name}; there are: {', '.join(have) or 'none'}"
            )
    return problems


def _short_name(notebook: Notebook) -> str:
    """Return the short name that selects a notebook: its number, or its stem."""
    order = notebook.order
    return f"{order:02}" if order and notebook.is_numbered(order) else notebook.stem


def _owners(name: str, folder: Path) -> list[str]:
    """Return the numbered notebooks of a folder that have a parameter.

    Extra notebooks are not included: their parameters may be in a file, which is not executed for a
    message.
    """
    found = []
    for one in notebooks_in(folder):
        if one.order is None or not one.is_numbered(one.order):
            continue
        with contextlib.suppress(ValueError):  # a notebook that is not selected need not be usable
            if name in one.model().model_fields:
                found.append(one.stem)
    return found


def check_reads(
    notebooks: Sequence[Path], resolved: Mapping[str, Mapping[str, Any]], reuse: str | None
) -> None:
    """Check that every artefact that a notebook reads is written before, with the same seed.

    Args:
        notebooks: The selected notebooks, in order.
        resolved: Their parameters, by stem.
        reuse: A run for artefacts that no selected notebook writes. They may have another seed,
            because the user selected the run.

    Raises:
        UsageError: an artefact would be missing, or made with another seed.
    """
    problems = []
    written: dict[str, Notebook] = {}
    for reader in map(read_notebook, notebooks):
        values = resolved[reader.stem]
        for name, because in sorted(reader.reads_under(values).items()):
            if name not in ARTEFACTS:
                problems.append(
                    f"{reader.stem} reads {name}, according to its metadata; there is no such "
                    f"artefact, expected one of {', '.join(ARTEFACTS)}"
                )
            elif writer := written.get(name):
                seeds = resolved[writer.stem]["seed"], values["seed"]
                if seeds[0] != seeds[1]:
                    problems.append(
                        f"{reader.stem} with seed {seeds[1]} reads {name}, which {writer.stem} "
                        f"writes with seed {seeds[0]}; give both the same seed, or take it from "
                        "another run with --reuse RUN"
                    )
            elif not (reuse and runs.written_entry(runs.run_folder(reuse), name)):
                problems.append(_missing_artefact(reader, name, because, values, reuse))
        written |= dict.fromkeys(reader.writes, reader)
    if problems:
        raise UsageError("\n  ".join(["artefacts would be missing:", *problems]))


def _missing_artefact(
    reader: Notebook,
    name: str,
    because: Sequence[str],
    values: Mapping[str, Any],
    reuse: str | None,
) -> str:
    """Return the message for a missing artefact: which notebook writes it, and the remedy."""
    number = _short_name(reader)
    other = "".join(
        f", or set {number}.{each} (it is {values[each]!r}) to something else" for each in because
    )
    writers = [one for one in writers_of(name, reader.path.parent) if one.stem != reader.stem]
    if not writers:
        return f"{reader.stem} reads {name}, which no notebook of its folder writes{other}"
    where = f" and run {reuse!r} does not hold" if reuse else ""
    return (
        f"{reader.stem} reads {name}, which {writers[0].stem} writes{where}: choose it too "
        f"(--notebooks {_short_name(writers[0])},{number}), or take it from a run that has it "
        f"(--reuse RUN; `finemem list` shows the runs){other}"
    )
