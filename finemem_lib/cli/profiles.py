"""What a run runs: a profile, the notebooks chosen, their parameters, and what they read.

All of it is found out before any kernel starts, from the notebooks' parameters cells and source.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import importlib.util
import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.managers import loading
from finemem_lib.managers.loading import ModelSettings, check_checkpoint, split_revision
from finemem_lib.readers.roles import check_roles
from finemem_lib.runs import artefacts
from finemem_lib.runs import run as run_module
from finemem_lib.runs.parameters import CHECKS, parameter_problems
from finemem_lib.util.console import UsageError
from finemem_lib.util.files import real_path
from finemem_lib.util.provenance import repository_root
from finemem_lib.util.validation import problems_in_words
from finemem_lib.util.yaml_files import parse_yaml, read_yaml

_SECRET = re.compile(r"(^|_)(key|token|secret|password|credentials?)$", re.IGNORECASE)


@dataclass(frozen=True)
class Profile:
    """A named set of parameters: which notebooks run, parameters for all of them that declare the
    name, parameters for single notebooks by number, parameters the user must give, and the graphics
    card it is made for, by its name in `planner.CARDS`."""

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
        folder: Where profiles with a name lie.
        name: That of ``<name>.yaml`` in the folder, or the path of any profile: what has a path
            separator or ends with ``.yaml`` or ``.yml``.

    Raises:
        UsageError: there is no such profile, or a key of it is unknown or has the wrong type.
    """
    from pydantic import BaseModel, ConfigDict, ValidationError

    class File(BaseModel):
        model_config = ConfigDict(extra="forbid", strict=True)
        description: str
        notebooks: list[str]
        parameters: dict[str, Any] = {}
        notebook_parameters: dict[str, dict[str, Any]] = {}
        requires: list[str] = []
        card: str = ""

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
        return Profile(name=name, **File.model_validate(read_yaml(path)).model_dump())
    except ValidationError as error:
        raise UsageError(f"profile {path} is not usable: {problems_in_words(error)}") from error
    except ValueError as error:
        raise UsageError(f"profile {error}") from error


def select_notebooks(folder: Path, selection: Sequence[str]) -> list[Path]:
    """Return the notebooks ``NN_*.ipynb`` of a folder that a selection names, in their order.

    A selection is numbers and ranges, as in ``01,03-05``.

    Raises:
        UsageError: a part is no number or range, or names no notebook.
    """
    found = {int(path.name[:2]): path for path in sorted(folder.glob("[0-9][0-9]_*.ipynb"))}
    chosen: set[int] = set()
    for part in ",".join(selection).split(","):
        match = re.fullmatch(r"\s*(\d{1,2})(?:-(\d{1,2}))?\s*", part)
        numbers = range(int(match[1]), int(match[2] or match[1]) + 1) if match else range(0)
        if not numbers or not {numbers[0], numbers[-1]} <= set(found):
            have = ", ".join(path.stem for path in found.values()) or "none"
            raise UsageError(
                f"notebooks {part!r}: expected numbers and ranges of notebooks as in 01,03-05; "
                f"{folder} has: {have}"
            )
        chosen.update(number for number in numbers if number in found)
    return [found[number] for number in sorted(chosen)]


def coerce(value: Any, annotation: str) -> Any:
    """Return a value in the type a parameters cell declares; text is read as that type.

    Raises:
        ValueError: the value does not fit, or the annotation is not bool, int, float, str or a
            list of these.

    >>> coerce("1e-5", "float"), coerce("007", "str"), coerce("true", "bool")
    (1e-05, '007', True)
    >>> coerce("0, 0.5", "list[float]"), coerce("a b", "list"), coerce(2, "float")
    ([0.0, 0.5], ['a b'], 2.0)
    """
    from pydantic import FiniteFloat, TypeAdapter

    if match := re.fullmatch(r"list(?:\[(\w+)\])?", annotation):
        if isinstance(value, str):
            value = parse_yaml(value if value.lstrip().startswith("[") else f"[{value}]")
        if not isinstance(value, list):
            raise ValueError("not a list")
        return [coerce(item, match[1]) for item in value] if match[1] else value
    kinds = {"bool": bool, "int": int, "float": FiniteFloat, "str": str}
    if annotation not in kinds:
        raise ValueError(f"declared as {annotation}, which cannot be given from outside")
    adapter = TypeAdapter(kinds[annotation])
    if isinstance(value, str):
        return adapter.validate_strings(value)
    return adapter.validate_python(value, strict=True)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say what a run runs."""
    parser.add_argument(
        "--profile", default="default", help="a profile: a name in notebooks/profiles, or a path"
    )
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="a parameter of every notebook that has it; NN.NAME for one notebook",
    )
    parser.add_argument(
        "--notebooks",
        action="append",
        metavar="01,03-05",
        help="which notebooks (default: the profile's)",
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
    """Return the profile, the notebooks and the parameters that these options ask for.

    Raises:
        UsageError: there is no such profile or notebook, or a setting has another form.
    """
    folder = real_path(options.notebooks_dir or repository_root() / "notebooks")
    profile = load_profile(folder / "profiles", options.profile)
    notebooks = select_notebooks(folder, options.notebooks or profile.notebooks)
    return profile, notebooks, _given(options.set, options.data)


def _given(settings: Sequence[str], data: Sequence[str] | None) -> dict[str, Any]:
    """Return the parameters of ``--set NAME=VALUE`` and ``--data PATH``, paths as absolute ones."""
    given: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not re.fullmatch(r"(\d\d\.)?[A-Za-z_]\w*", name):
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
    """Return every parameter of every notebook (by name): what the user gave, else the profile,
    else the notebook's own default. A name may carry a notebook's number, as in ``04.updates``.

    Raises:
        UsageError: a name is unknown, a value has the wrong type or is refused by its check, two
            contradict each other, or the file of models is not usable from here; where it is
            `to_run`, also what this machine cannot load.
    """
    declared = {path.stem: _declared(path) for path in notebooks}
    of_profile = select_notebooks(notebooks[0].parent, profile.notebooks)
    known = {path.stem: declared.get(path.stem) or _declared(path) for path in of_profile}
    for_one = {
        f"{number}.{name}": value
        for number, parameters in profile.notebook_parameters.items()
        for name, value in parameters.items()
    }
    problems, resolved = [], {}
    for stem, parameters in declared.items():
        values = {name: default for name, (_, default) in parameters.items()}
        for layer in (profile.parameters, for_one, given):  # later ones win, and NN.NAME over NAME
            for full_name in sorted(layer, key=lambda name: "." in name):
                number, _, name = full_name.rpartition(".")
                if name in parameters and number in ("", stem[:2]):
                    annotation = parameters[name][0]
                    try:
                        values[name] = coerce(layer[full_name], annotation)
                    except ValueError:
                        problems.append(
                            f"{stem}: {name} is {layer[full_name]!r}, expected {annotation}"
                        )
        problems += [
            f"{stem}: {name} looks like a secret, and parameters are stored; give it as an "
            "environment variable"
            for name in values
            if _SECRET.search(name)
        ]
        checked = {name: value for name, value in values.items() if name in CHECKS}
        problems += [f"{stem}: {problem}" for problem in parameter_problems(checked)]
        problems += unusable_sources(values)
        resolved[stem] = values | {"run_id": run_id}
    if not problems:  # else a value may not even have the type that the settings expect
        problems += contradictions(resolved)
    if to_run and not problems:
        problems += cannot_load(resolved, hub_offline(resolved.values()))
    problems += _unknown(given, declared, notebooks[0].parent)
    problems += _unknown([*profile.parameters, *for_one], known | declared, notebooks[0].parent)
    for name in profile.requires:
        if not any(values.get(name) for values in resolved.values()):
            option = "--data PATH" if name == "data" else f"--set {name}=VALUE"
            problems.append(f"profile {profile.name} needs {name}: give {option}")
    if problems:
        raise UsageError("\n  ".join(["parameters are refused:", *dict.fromkeys(problems)]))
    return resolved


def unusable_sources(values: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with the language models and the chunk questions that parameters name,
    a key that is not set included."""
    problems = []
    try:
        run_module.locate_questions(values.get("questions", ""))
    except ValueError as error:
        problems.append(str(error))
    try:
        if path := run_module.locate_models(values.get("models", "")):
            check_roles(path)
    except (ValueError, ImportError) as error:
        problems.append(str(error))
    return problems


def model_settings(values: Mapping[str, Any]) -> ModelSettings:
    """Return how a notebook with these parameters loads its manager; there 0 stands for `None`.

    Raises:
        ValueError: a setting is out of range, or two contradict each other.
    """
    return ModelSettings(
        **{
            one.name: (values[one.name] or None) if one.default is None else values[one.name]
            for one in dataclasses.fields(ModelSettings)
            if one.name in values
        }
    )


def contradictions(resolved: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return which notebooks' parameters cannot all hold together."""
    problems = []
    for stem, values in resolved.items():
        try:
            settings = model_settings(values)
            if "checkpoint" in values:
                check_checkpoint(values["checkpoint"], settings)
        except ValueError as error:
            problems.append(f"{stem}: {error}")
        parts, size = values.get("micro_batches", 0), values.get("num_generations", 0)
        if parts and size % parts:
            problems.append(
                f"{stem}: micro_batches is {parts}, expected a divisor of "
                f"num_generations ({size}), or 0 for that number"
            )
    return problems


def cannot_load(resolved: Mapping[str, Mapping[str, Any]], offline: bool) -> list[str]:
    """Return why the managers of these notebooks cannot be loaded on this machine: there is no CUDA
    device, a package is missing, or a checkpoint that is not fetched where the hub is `offline`."""
    problems = []
    for stem, values in resolved.items():
        if "checkpoint" not in values:
            continue
        model = model_settings(values)
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
        if problem := _missing_checkpoint(values["checkpoint"], offline):
            problems.append(f"{stem}: {problem}")
    return problems


def _missing_checkpoint(checkpoint: str, offline: bool) -> str | None:
    """Return why a checkpoint, or what an adapter was trained on, cannot be found."""
    from huggingface_hub import try_to_load_from_cache

    if folder := loading.checkpoint_folder(checkpoint):
        adapter = folder / "adapter_config.json"
        if adapter.is_file():
            held = json.loads(adapter.read_text(encoding="utf-8"))
            of_commit = f"@{held['revision']}" if held.get("revision") else ""
            return _missing_checkpoint(held["base_model_name_or_path"] + of_commit, offline)
        found, why = (folder / "config.json").is_file(), "this folder holds neither"
    else:
        name, revision = split_revision(checkpoint)
        try:
            config = try_to_load_from_cache(name, "config.json", revision=revision)
            found = (
                not offline
                or isinstance(config, str)
                and any(
                    file.suffix in (".safetensors", ".bin")
                    for file in Path(config).parent.iterdir()
                )
            )
            why = (
                "this is no folder and not in the hub's cache, and HF_HUB_OFFLINE is on, as it "
                f"is by default; fetch it (hf download {name}), or set HF_HUB_OFFLINE=0"
            )
        except ValueError:  # of huggingface_hub, which would quote its own rules
            found, why = False, "this is neither a folder nor such a name"
    return (
        None
        if found
        else (
            f"checkpoint is {checkpoint!r}, expected tiny, a folder with config.json or "
            f"adapter_config.json, or a model's name on the hub; {why}"
        )
    )


def hub_offline(parameters: Iterable[Mapping[str, Any]]) -> bool:
    """Return whether a run's kernels may not reach the hub, from the parameters of all its
    notebooks: never where data comes from it, else as HF_HUB_OFFLINE says, else they may not."""
    from huggingface_hub.constants import ENV_VARS_TRUE_VALUES

    for source in {source for values in parameters for source in values.get("data", ())}:
        with contextlib.suppress(ValueError):  # no such file, which is said elsewhere
            if run_module.locate(source) is None:
                return False
    return os.environ.get("HF_HUB_OFFLINE", "1").upper() in ENV_VARS_TRUE_VALUES


def _has_cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def _declared(path: Path) -> dict[str, tuple[str, Any]]:
    """Return annotation and default of every parameter in a notebook's parameters cell."""
    import papermill

    try:
        found = {
            name: (entry["inferred_type_name"], ast.literal_eval(entry["default"]))
            for name, entry in papermill.inspect_notebook(str(path)).items()
        }
    except Exception as error:  # nbformat, json, papermill and ast each raise their own
        raise UsageError(f"the parameters of {path} are not readable: {error}") from error
    if "run_id" not in found:
        raise UsageError(f"{path.name} has no parameter run_id in a cell tagged 'parameters'")
    return found


def _unknown(
    names: Iterable[str], declared: Mapping[str, Mapping[str, Any]], folder: Path
) -> list[str]:
    problems = []
    for full_name in names:
        number, _, name = full_name.rpartition(".")
        places = [parameters for stem, parameters in declared.items() if number in ("", stem[:2])]
        if not places:
            problems.append(
                f"{full_name}: notebook {number} is not chosen, only "
                f"{', '.join(stem[:2] for stem in declared)}; choose it with --notebooks, or leave "
                "the parameter out"
            )
        elif not any(name in parameters for parameters in places):
            have = sorted({each for parameters in places for each in parameters} - {"run_id"})
            owners = () if number else _who_declares(name, folder, but=declared)
            problems.append(
                f"unknown parameter {name}: it is one of {', '.join(owners)}, not of a notebook "
                "that is chosen; choose it with --notebooks, or leave it out"
                if owners
                else f"unknown parameter {full_name}; there are: {', '.join(have) or 'none'}"
            )
    return problems


def _who_declares(name: str, folder: Path, but: Iterable[str]) -> list[str]:
    """Return the notebooks of a folder that have a parameter, leaving some out."""
    found = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        with contextlib.suppress(UsageError):  # one that is not chosen need not be readable
            if path.stem not in but and name in _declared(path):
                found.append(path.stem)
    return found


def check_reads(
    notebooks: Sequence[Path], resolved: Mapping[str, Mapping[str, Any]], reuse: str | None
) -> None:
    """Check that what every notebook will load is written before it, or lies in the run `reuse`.

    Raises:
        UsageError: an artefact would be missing.
    """
    problems = []
    for place, path in enumerate(notebooks):
        before = {one.stem for one in notebooks[:place]}
        for name, because in sorted(_reads(path, resolved[path.stem]).items()):
            artefact = artefacts.ARTEFACTS.get(name)
            if artefact is None or artefact.notebook in before:
                continue  # a name that nobody writes is the notebook's mistake; it says so itself
            if reuse and run_module.written_entry(run_module.run_folder(reuse), name):
                continue
            number, writer = path.stem[:2], artefact.notebook[:2]
            other = "".join(
                f", or set {number}.{each} (it is {resolved[path.stem][each]!r}) to something else"
                for each in sorted(because)
            )
            where = f" and run {reuse!r} does not hold" if reuse else ""
            problems.append(
                f"{path.stem} reads {name}, which {artefact.notebook} writes{where}: choose it too "
                f"(--notebooks {writer},{number}), or take it from a run that has it (--reuse RUN; "
                f"`finemem list` shows the runs){other}"
            )
    if problems:
        raise UsageError("\n  ".join(["artefacts would be missing:", *problems]))


def _reads(path: Path, parameters: Mapping[str, Any]) -> dict[str, set[str]]:
    """Return the artefacts that a notebook's cells load by name, each with the parameters that an
    `if` around it asks for. Branches that these parameters rule out are left out."""
    found: dict[str, set[str]] = {}

    def look(nodes: Iterable[ast.AST], because: frozenset[str]) -> None:
        for node in nodes:
            match node:
                case ast.If(test=test, body=body, orelse=orelse):
                    asked = {each.id for each in ast.walk(test) if isinstance(each, ast.Name)}
                    if (answer := _answer(test, parameters)) is None:
                        look([test, *body, *orelse], because)
                    else:
                        look(body if answer else orelse, because | asked)
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="run"), attr="load"),
                    args=[ast.Constant(value=str(name))],
                ):
                    found.setdefault(name, set()).update(because)
                case _:
                    look(ast.iter_child_nodes(node), because)

    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            with contextlib.suppress(SyntaxError):  # a cell with IPython's own syntax
                look(ast.parse("".join(cell["source"])).body, frozenset())
    return found


def _answer(test: ast.expr, parameters: Mapping[str, Any]) -> bool | None:
    """Return what a test that is a parameter, or compares one with a value, comes to under these
    parameters, `None` for any other test."""
    match test:
        case ast.Name(id=name) if name in parameters:
            return bool(parameters[name])
        case ast.Compare(
            left=ast.Name(id=name),
            ops=[ast.Eq() | ast.NotEq() as equal],
            comparators=[ast.Constant(value=value)],
        ) if name in parameters:
            return (parameters[name] == value) == isinstance(equal, ast.Eq)
    return None
