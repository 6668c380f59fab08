"""The models of parameters: bounds, texts, contradictions, the cell and the table."""

from __future__ import annotations

import ast

import pytest

from finemem_lib.runs import run as runs
from finemem_lib.runs.parameters import (
    MAIN,
    MODELS,
    GRPOTraining,
    ParameterError,
    ParameterTable,
    QuestionGeneration,
    expected,
    group_of,
)

FIRST = "01_question_generation"
ALL = [(model, name) for model in MODELS.values() for name in model.model_fields]


def refusal(model, values, **options):
    with pytest.raises(ParameterError) as caught:
        MODELS[model].read(values, **options)
    return caught.value.problems


def test_every_refused_parameter_is_named_at_once_with_what_was_expected(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    values = {"num_chunks": 3, "max_instances": 0, "on_error": "stop", "data": "file.jsonl"}
    with pytest.raises(ValueError) as caught:
        runs.start_run(FIRST, values)
    message = str(caught.value)
    for part in (
        f"{FIRST}: ",
        "max_instances is 0, expected a whole number from 1 to 100000",
        "on_error is 'stop', expected one of raise, skip",
        "data is 'file.jsonl', expected a list of texts",
        "--set",
    ):
        assert part in message
    assert "num_chunks" not in message
    assert not (tmp_path / "runs").exists()


def test_only_parameters_are_read_from_the_variables_but_all_that_papermill_injects(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    variables = {"num_chunks": 3, "other": 1, "In": ["", "# a cell\nother = 1\n"]}
    assert runs.start_run(FIRST, variables).parameters.num_chunks == 3
    injected = "# Parameters\nnum_chunks = 3\nother = [\n    1,\n]\n"
    with pytest.raises(ValueError, match="unknown parameter other; there are: data, max_chunk"):
        runs.start_run(FIRST, variables | {"In": ["", injected]})


@pytest.mark.parametrize(
    "model, name, value, wanted",
    [
        ("QuestionGeneration", "seed", True, "a whole number from 0 to 4294967295"),
        ("QuestionGeneration", "seed", 1.0, "a whole number"),
        ("QuestionGeneration", "seed", "1", "a whole number"),
        ("QuestionGeneration", "data", [1], "a list of texts"),
        ("RewardsAndCredit", "beta", float("nan"), "a number from 0 to 1"),
        ("RewardsAndCredit", "beta", None, "a number from 0 to 1"),
        ("GRPOTraining", "question_fraction", 0, "a number above 0 and at most 1"),
        ("GRPOTraining", "resume", 1, "True or False"),
        ("GRPOTraining", "checkpoint", 3, "a text"),
        ("GRPOTraining", "scheme", "best", "one of outcome-only, +CSR"),
        ("GRPOTraining", "report_to", "paper", "none, or one of "),
        ("MemoryAndRetrieval", "managers", [], "a list of one or more of "),
        ("MemoryAndRetrieval", "managers", [["a"], "b"], "a list of one or more of "),
        (
            "AblationsAndRobustness",
            "schemes",
            ["+CSR", "+CSR"],
            "a list of two or more different ones",
        ),
    ],
)
def test_values_that_do_not_fit_are_refused(model, name, value, wanted):
    (problem,) = refusal(model, {name: value})
    assert problem.startswith(f"{name} is {value!r}, expected {wanted}")


@pytest.mark.parametrize(
    "name, text, value",
    [
        ("learning_rate", "1e-5", 1e-5),
        ("updates", "12", 12),
        ("checkpoint", "007", "007"),
        ("resume", "true", True),
        ("updates", "1.5", None),
        ("learning_rate", "nan", None),
    ],
)
def test_a_text_stands_for_a_value_of_the_type(name, text, value):
    if value is None:
        assert refusal("GRPOTraining", {name: text}, texts=True)
    else:
        found = getattr(GRPOTraining.read({name: text}, texts=True), name)
        assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    "text, value",
    [
        ("a.jsonl", ["a.jsonl"]),
        ("", []),
        ("a, b", ["a", "b"]),
        ("[a b]", ["a b"]),
        ("[a", None),
        ("1", None),
        ("[" * 50 + "]" * 50, None),
    ],
)
def test_a_text_stands_for_a_list(text, value):
    if value is None:
        assert (
            "expected a list of texts"
            in refusal("QuestionGeneration", {"data": text}, texts=True)[0]
        )
    else:
        assert QuestionGeneration.read({"data": text}, texts=True).data == value


@pytest.mark.parametrize(
    "model, values, said",
    [
        ("GRPOTraining", {"lora_alpha": 16}, "lora_alpha is 16 and lora_rank is 0"),
        ("GRPOTraining", {"fast_inference": True}, "fast_inference needs loader 'unsloth'"),
        ("GRPOTraining", {"precision": "4bit"}, "precision 4bit"),
        ("GRPOTraining", {"micro_batches": 3}, "micro_batches is 3, expected a divisor of num_gen"),
        (
            "GRPOTraining",
            {"loader": "unsloth"},
            "Unsloth's loss takes one advantage per completion",
        ),
        ("GRPOTraining", {"world": "paraphrased"}, "which checkpoint 'tiny' does not read"),
        ("AblationsAndRobustness", {"checkpoint": "tiny-paraphrased"}, "world is 'plain', which"),
        ("BenchmarkEvaluation", {"baseline": "best"}, "baseline is 'best', expected one of raw-"),
    ],
)
def test_parameters_that_contradict_each_other_are_refused(model, values, said):
    (problem,) = refusal(model, values)
    assert said in problem


def test_all_contradictions_are_named_at_once():
    assert len(refusal("GRPOTraining", {"lora_alpha": 16, "micro_batches": 3})) == 2


@pytest.mark.parametrize("model, name", ALL, ids=lambda value: getattr(value, "__name__", value))
def test_every_parameter_has_help_and_a_bound_and_its_default_is_allowed(model, name):
    field = model.model_fields[name]
    assert field.description and "=" not in field.description and expected(field)
    assert getattr(model.read({name: field.get_default()}), name) == field.get_default()


@pytest.mark.parametrize("model", MODELS.values(), ids=lambda model: model.__name__)
def test_a_cell_has_at_most_twelve_lines_and_gives_the_defaults(model):
    cell = model.cell()
    assert len(cell.splitlines()) <= 12
    variables: dict[str, object] = {}
    exec(cell, variables)
    assert model.read({name: variables[name] for name in model.main()}) == model()
    assert all(isinstance(node, ast.AnnAssign) for node in ast.parse(cell).body)


def test_the_table_shows_every_parameter_once_and_escapes_it():
    table = ParameterTable(GRPOTraining.read({"checkpoint": "<b>&"}))
    page = table._repr_html_()
    assert "&lt;b&gt;&amp;" in page and "<b>" not in page
    assert page == ParameterTable(GRPOTraining.read({"checkpoint": "<b>&"}))._repr_html_()
    for name, field in GRPOTraining.model_fields.items():
        assert page.count(f"<td>{name}</td>") == 1
        assert group_of(field) in page
    assert repr(table).splitlines()[0] == MAIN
