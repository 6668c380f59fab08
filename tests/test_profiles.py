"""What a run runs: selections, parameters and their order, what notebooks read."""

from __future__ import annotations

import re

import nbformat
import pytest
from small_notebooks import FIRST, PASS_ON, THIRD, make_notebooks, write_notebook

from finemem_lib import profiles, runs
from finemem_lib.console import UsageError
from finemem_lib.profiles import coerce
from finemem_lib.repro import repository_root

PROJECT = repository_root() / "notebooks"


@pytest.fixture
def notebooks(tmp_path):
    return make_notebooks(tmp_path / "notebooks", PASS_ON)


def resolve(folder, given=None, select="01,03", **profile):
    settings = {"name": "p", "description": "", "notebooks": ["01,03"], "parameters": {},
                "notebook_parameters": {}, "requires": []} | profile
    chosen = profiles.select_notebooks(folder, [select])
    return profiles.resolve_parameters(chosen, profiles.Profile(**settings), given or {}, "r")


def test_what_the_user_gives_wins_over_the_profile_and_that_over_the_notebook(notebooks):
    shared = {"parameters": {"seed": 3, "beta": 0.25}, "notebook_parameters": {"03": {"seed": 4}}}
    found = resolve(notebooks, **shared)
    assert (found[FIRST]["seed"], found[THIRD]["seed"], found[THIRD]["beta"]) == (3, 4, 0.25)
    found = resolve(notebooks, {"01.seed": "6", "seed": "5"}, **shared)
    assert (found[FIRST]["seed"], found[THIRD]["seed"]) == (6, 5)
    assert found[FIRST]["num_chunks"] == 4 and found[FIRST]["run_id"] == "r"


def test_a_profile_may_hold_parameters_of_notebooks_that_are_not_chosen(notebooks):
    assert resolve(notebooks, select="01", parameters={"beta": 0.1}).keys() == {FIRST}


@pytest.mark.parametrize("code, reads", [
    ('run.load("rewards")', {"rewards": set()}),
    ('x = make(run.load("rewards"), 1)', {"rewards": set()}),
    ('if source == "a":\n    run.load("rewards")\nelse:\n    run.load("evidence")',
     {"rewards": {"source"}}),
    ('if source != "a":\n    run.load("rewards")\nelif trained:\n    run.load("evidence")', {}),
    ('if trained:\n    run.load("rewards")', {}),
    ('if len(other) > 1:\n    run.load("rewards")', {"rewards": set()}),
    ('%matplotlib inline', {}), ("name = 'rewards'", {}),
])
def test_what_a_notebook_reads_is_seen_before_it_runs(tmp_path, code, reads):
    write_notebook(tmp_path, THIRD, "", [code])
    parameters = {"source": "a", "trained": False, "other": [1]}
    assert profiles._reads(tmp_path / f"{THIRD}.ipynb", parameters) == reads


def test_evidence_of_the_trained_manager_needs_notebook_04_before_it():
    """Incident: 05 of the default profile without 04 failed after its kernel had started."""
    profile = profiles.load_profile(PROJECT / "profiles", "default")
    chosen = profiles.select_notebooks(PROJECT, ["01-03", "05"])
    resolved = profiles.resolve_parameters(chosen, profile, {}, "r")
    with pytest.raises(UsageError, match=r"05_evidence_tracing reads trained_trajectories.*"
                       r"--notebooks 04,05.*set 05.source \(it is 'trained_trajectories'\)"):
        profiles.check_reads(chosen, resolved, None)
    given = {"05.source": "trajectories"}
    resolved = profiles.resolve_parameters(chosen, profile, given, "r")
    profiles.check_reads(chosen, resolved, None)


def test_a_parameter_that_looks_like_a_secret_is_refused(tmp_path):
    write_notebook(tmp_path, FIRST, 'api_key: str = ""  # k\nmax_chunk_tokens: int = 64  # t\n')
    with pytest.raises(UsageError, match="api_key looks like a secret") as caught:
        resolve(tmp_path, {"api_key": "hidden-value"}, select="01", notebooks=["01"])
    assert "hidden-value" not in str(caught.value) and "max_chunk_tokens" not in str(caught.value)


def test_models_and_questions_that_cannot_be_used_are_refused_once(tmp_path, monkeypatch):
    for stem in (FIRST, THIRD):
        write_notebook(tmp_path, stem, 'models: str = ""  # m\nquestions: str = ""  # q\n')
    path = tmp_path / "models.yaml"
    given = {"models": str(path), "questions": "no/such"}
    with pytest.raises(UsageError, match=r"models\.yaml: cannot be read") as caught:
        resolve(tmp_path, given)
    assert str(caught.value).count("cannot be read") == 1
    assert str(caught.value).count("no/such: is no folder") == 1
    path.write_text("reader: {model: m, base_url: 'http://h/v1', key_env: TEST_MODEL_KEY}")
    monkeypatch.delenv("TEST_MODEL_KEY", raising=False)
    with pytest.raises(UsageError, match="reader: the environment variable TEST_MODEL_KEY is not"):
        resolve(tmp_path, {"models": str(path)})
    monkeypatch.setenv("TEST_MODEL_KEY", "hidden-value")
    found = resolve(tmp_path, {"models": str(path), "questions": str(tmp_path)})
    assert found[FIRST]["models"] == str(path) and "hidden-value" not in str(found)


@pytest.mark.parametrize("content, reason", [
    ("{", "are not readable"), (None, "has no parameter run_id"),
])
def test_a_notebook_that_cannot_be_parameterised_is_refused(tmp_path, content, reason):
    if content is None:
        content = nbformat.writes(nbformat.v4.new_notebook(metadata={
            "kernelspec": {"name": "python3", "language": "python", "display_name": "x"}}))
    (tmp_path / f"{FIRST}.ipynb").write_text(content)
    with pytest.raises(UsageError, match=reason):
        resolve(tmp_path, select="01", notebooks=["01"])


@pytest.mark.parametrize("selection, expected", [
    (["1"], [1]), (["01,03-05"], [1, 3, 5]), (["05", "01"], [1, 5]), (["01-05,03"], [1, 3, 5]),
    ([" 01 , 03 "], [1, 3]),
])
def test_selections_name_notebooks_in_their_order(tmp_path, selection, expected):
    for name in ("05_e.ipynb", "01_a.ipynb", "03_c.ipynb", "scratch.ipynb", "03_c.txt"):
        (tmp_path / name).touch()
    found = profiles.select_notebooks(tmp_path, selection)
    assert [int(path.name[:2]) for path in found] == expected


@pytest.mark.parametrize("value, annotation", [
    (True, "int"), (1, "bool"), (1.5, "int"), ("1.5", "int"), (3, "str"), ("x", "float"),
    (float("nan"), "float"), ("nan", "float"), ("1,x", "list[int]"), (3, "list"), (None, "int"),
    ("{a: b", "list"), ("x", "None"), ("x", "dict[str, int]"), ("[1, 2", "list[int]"),
])
def test_values_that_do_not_fit_the_annotation_are_refused(value, annotation):
    with pytest.raises(ValueError):
        coerce(value, annotation)


@pytest.mark.parametrize("value, annotation, expected", [
    ("12", "str", "12"), ("1e-5", "float", 1e-5), (1, "float", 1.0), ("false", "bool", False),
    (["a"], "list[str]", ["a"]), ("[0.5, 1]", "list[float]", [0.5, 1.0]), ("", "list", []),
    (["1e-5"], "list[float]", [1e-5]), ("a.jsonl", "list[str]", ["a.jsonl"]),
])
def test_values_take_the_type_of_the_annotation(value, annotation, expected):
    found = coerce(value, annotation)
    assert found == expected and type(found) is type(expected)


@pytest.mark.parametrize("path", sorted((PROJECT / "profiles").glob("*.yaml")), ids=str)
def test_the_profiles_of_the_project_fit_its_notebooks(path):
    profile = profiles.load_profile(path.parent, path.stem)
    chosen = profiles.select_notebooks(PROJECT, profile.notebooks)
    given = {name: "pyproject.toml" for name in profile.requires}
    resolved = profiles.resolve_parameters(chosen, profile, given, "r")
    assert resolved.keys() == {notebook.stem for notebook in chosen}
    profiles.check_reads(chosen, resolved, None)


def test_every_parameter_of_the_project_has_its_check_and_every_check_its_parameter():
    declared = [set(profiles._declared(path)) for path in PROJECT.glob("[0-9][0-9]_*.ipynb")]
    assert set.union(*declared) - {"run_id"} == set(runs.CHECKS)


def test_the_registry_names_the_notebook_that_saves_each_artefact():
    saved = {}
    for path in PROJECT.glob("[0-9][0-9]_*.ipynb"):
        for cell in nbformat.read(path, as_version=4).cells:
            names = re.findall(r"run\.save\(\s*\"(\w+)\"", cell.source)
            saved |= dict.fromkeys(names, path.stem)
    assert saved == {name: artefact.notebook for name, artefact in runs.ARTEFACTS.items()}
