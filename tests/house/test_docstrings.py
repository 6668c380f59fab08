"""Every public function and method says in its docstring what its parameters are."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.helpers.paths import ROOT

FOLDER = ROOT / "finemem_lib"

METRICS = "a metric; `scoring.METRICS` describes what all of them take"
CORE = "the core may hold 2,400 lines; its first sentence names the parameter"
TO_WRITE = "still to be written; no function is added here"
EXEMPT = {
    "credit/group.py states_seen": TO_WRITE,
    "credit/marginals.py leave_one_out": TO_WRITE,
    "credit/marginals.py owen": TO_WRITE,
    "credit/marginals.py coalitions": TO_WRITE,
    "credit/needs.py need_questions": TO_WRITE,
    "credit/needs.py mean_of_known": TO_WRITE,
    "credit/recorded.py outcome_broadcast": TO_WRITE,
    "credit/recorded.py uniform_split": TO_WRITE,
    "credit/recorded.py chunk_step_reward": TO_WRITE,
    "credit/replay.py Replayer.through": TO_WRITE,
    "credit/rules.py outcome_readings": TO_WRITE,
    "data/planted.py verb_of": TO_WRITE,
    "data/planted.py with_adverbs": TO_WRITE,
    "experiments/arena.py seeds_text": TO_WRITE,
    "experiments/cells.py Cell.rollout": TO_WRITE,
    "experiments/rows.py read_rows": TO_WRITE,
    "experiments/rows.py read_card": TO_WRITE,
    "experiments/tables.py measures": TO_WRITE,
    "experiments/tables.py diagnostic_measures": TO_WRITE,
    "experiments/tables.py stream_rows": TO_WRITE,
    "experiments/tables.py format_interval": TO_WRITE,
    "experiments/tables.py format_difference": TO_WRITE,
    "experiments/tables.py excludes_zero": TO_WRITE,
    "experiments/tables.py regimes_and_variants": TO_WRITE,
    "experiments/tables.py compared": TO_WRITE,
    "lesson/cases.py insert": TO_WRITE,
    "memory.py FlatMemory.get": CORE,
    "operations.py format_operations": CORE,
    "reading.py ReasoningAgent.read": CORE,
    "reading.py MemoisedAgent.query": CORE,
    "reading.py MemoisedAgent.read": CORE,
    "reading.py MemoisedAgent.memo_from_json": CORE,
    "retrieval.py Retriever.update": CORE,
    "retrieval.py BM25Retriever.update": CORE,
    "retrieval.py BM25Retriever.scores": CORE,
    "retrieval.py DenseRetriever.update": CORE,
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
    "training/checkpoints.py last_checkpoint": TO_WRITE,
    "training/checkpoints.py update_of": TO_WRITE,
    "training/estimates.py ModelShape.of": TO_WRITE,
    "training/estimates.py ModelShape.lora_parameters": TO_WRITE,
    "training/estimates.py Calls.times": TO_WRITE,
    "training/estimates.py changes": TO_WRITE,
    "training/record.py StoredUpdates.copy_to": TO_WRITE,
    "training/record.py StoredUpdates.drop_after": TO_WRITE,
    "training/run.py torch_threads": TO_WRITE,
    "training/schemes.py scheme_record": TO_WRITE,
    "training/stops.py is_out_of_memory": TO_WRITE,
    "training/stops.py can_report": TO_WRITE,
    "training/trainer.py UpdatePlayer.weights": TO_WRITE,
    "training/trainer.py as_columns": TO_WRITE,
    "training/trl_adapter.py trainer_class": TO_WRITE,
    "training/trl_adapter.py StepGRPO.training_step": TO_WRITE,
    "training/warm_start.py Demonstration.add": TO_WRITE,
    "training/warm_start.py Demonstration.add_sentence": TO_WRITE,
    "training/warm_start.py slot_of": TO_WRITE,
    "training/warm_start.py main": TO_WRITE,
    "trajectory.py MemoryDelta.applied_to": CORE,
    "trajectory.py Trajectory.memory_at": CORE,
    "trajectory.py creation_key": CORE,
    "trajectory.py to_json": CORE,
    "trajectory.py write_jsonl": CORE,
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
