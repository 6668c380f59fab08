"""Every public function and method says in its docstring what its parameters are."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.helpers.paths import ROOT

FOLDER = ROOT / "finemem_lib"

METRICS = "a metric; `scoring.METRICS` describes what all of them take"
CORE = "the core may hold 2,400 lines; its first sentence names the parameter"
COMMAND = "adds a command to the subparsers that `cli.main.make_parser` gives to all of them"
EXEMPT = {
    "memory.py FlatMemory.get": CORE,
    "operations.py format_operations": CORE,
    "reading.py ReasoningAgent.read": CORE,
    "reading.py MemoisedAgent.read": CORE,
    "reading.py MemoisedAgent.memo_from_json": CORE,
    "retrieval.py Retriever.update": CORE,
    "retrieval.py BM25Retriever.scores": CORE,
    "rewards.py outcome_reward": CORE,
    "rewards.py chunk_rewards": CORE,
    "rewards.py compression_reward": CORE,
    "scoring.py normalise": CORE,
    "scoring.py exact_match": METRICS,
    "scoring.py substring_match": METRICS,
    "scoring.py part_match": METRICS,
    "scoring.py keyword_hit": METRICS,
    "scoring.py label_match": METRICS,
    "scoring.py word_match": METRICS,
    "scoring.py f1": METRICS,
    "scoring.py rouge_l": METRICS,
    "scoring.py unscored": METRICS,
    "scoring.py metric_for": CORE,
    "scoring.py boxed": CORE,
    "seeds.py stable_seed": CORE,
    "seeds.py generator": CORE,
    "text.py clean_text": CORE,
    "text.py words": CORE,
    "text.py count_tokens": CORE,
    "trajectory.py MemoryDelta.applied_to": CORE,
    "trajectory.py Trajectory.memory_at": CORE,
    "trajectory.py creation_key": CORE,
    "trajectory.py last_write_key": CORE,
    "trajectory.py to_json": CORE,
    "trajectory.py write_jsonl": CORE,
    **{
        f"cli/{module}.py add_command": COMMAND
        for module in (
            "app arena clean completion copying diff export fetch init ledger listing pictures plan"
        ).split()
    },
    "cli/prepare.py add_commands": COMMAND,
    "cli/rescore.py add_commands": COMMAND,
}
"""File and name of the functions without "Args:", with the reason."""

Function = ast.FunctionDef | ast.AsyncFunctionDef


def public_functions() -> Iterator[tuple[str, Function]]:
    """Yield the public functions and methods with a parameter, and the file and name of each.

    A method without a docstring whose class has a base has that of the method it overrides, and
    that of an overloaded function stands at its definition.
    """
    for path in sorted(FOLDER.rglob("*.py")):
        file = path.relative_to(FOLDER).as_posix()
        for name, function, bases in _functions(ast.parse(path.read_text(encoding="utf-8"))):
            overloaded = any(ast.unparse(each) == "overload" for each in function.decorator_list)
            inherited = bases and not ast.get_docstring(function)
            if _parameters(function) and not overloaded and not inherited:
                yield f"{file} {name}", function


def _functions(node: ast.Module | ast.ClassDef) -> Iterator[tuple[str, Function, bool]]:
    for each in node.body:
        if getattr(each, "name", "_").startswith("_"):
            continue
        if isinstance(each, ast.ClassDef):
            bases = [ast.unparse(base) for base in each.bases]
            documented = bool(set(bases) - {"ABC", "Protocol", "NamedTuple"})
            for name, function, inner in _functions(each):
                yield f"{each.name}.{name}", function, inner or documented
        elif isinstance(each, Function):
            yield each.name, each, False


def _parameters(function: Function) -> list[str]:
    given = function.args
    named = [each.arg for each in (*given.posonlyargs, *given.args, *given.kwonlyargs)]
    rest = [each.arg for each in (given.vararg, given.kwarg) if each]
    return [name for name in (*named, *rest) if name not in ("self", "cls")]


def test_every_public_function_describes_its_parameters() -> None:
    silent = {
        name
        for name, function in public_functions()
        if "Args:" not in (ast.get_docstring(function) or "")
    }
    assert sorted(silent - set(EXEMPT)) == []
    assert sorted(set(EXEMPT) - silent) == [], "these have Args: now, or are gone; take them out"


def test_the_described_parameters_are_those_of_the_function() -> None:
    wrong = {}
    for name, function in public_functions():
        described = ast.get_docstring(function) or ""
        if "Args:\n" not in described:
            continue
        block = described.split("Args:\n", 1)[1].split("\n\n", 1)[0]
        entries = [line for line in block.splitlines() if line[:4] == "    " and line[4] != " "]
        names = {part.strip(" *") for line in entries for part in line.split(":")[0].split(",")}
        if different := names ^ set(_parameters(function)):
            wrong[name] = different
    assert wrong == {}
