"""What a run runs: selections, parameters and their order, what notebooks read."""

from __future__ import annotations

import json

import pytest

from finemem_lib.cli import profiles
from finemem_lib.cli.main import main
from finemem_lib.util.console import UsageError
from finemem_lib.util.provenance import workbench_root
from tests.helpers.small_notebooks import FIRST, PASS_ON, THIRD, make_notebooks, write_notebook

PROJECT = workbench_root() / "notebooks"


@pytest.fixture
def notebooks(tmp_path):
    return make_notebooks(tmp_path / "notebooks", PASS_ON)


def resolve(folder, given=None, select="01,03", to_run=True, **profile):
    settings = {
        "name": "p",
        "description": "",
        "notebooks": ["01,03"],
        "parameters": {},
        "notebook_parameters": {},
        "requires": [],
    } | profile
    chosen = profiles.select_notebooks(folder, [select])
    return profiles.resolve_parameters(
        chosen, profiles.Profile(**settings), given or {}, "r", to_run=to_run
    )


def train(given, **options):
    """Resolve the parameters of the project's notebook 04."""
    return resolve(PROJECT, given, "04", notebooks=["04"], **options)


def test_what_the_user_gives_wins_over_the_profile_and_that_over_the_notebook(notebooks):
    shared = {"parameters": {"seed": 3, "beta": 0.25}, "notebook_parameters": {"03": {"seed": 4}}}
    found = resolve(notebooks, **shared)
    assert (found[FIRST]["seed"], found[THIRD]["seed"], found[THIRD]["beta"]) == (3, 4, 0.25)
    found = resolve(notebooks, {"01.seed": "6", "seed": "5"}, **shared)
    assert (found[FIRST]["seed"], found[THIRD]["seed"]) == (6, 5)
    assert found[FIRST]["num_chunks"] == 4 and found[FIRST]["run_id"] == "r"


def test_a_profile_may_hold_parameters_of_notebooks_that_are_not_chosen(notebooks):
    assert resolve(notebooks, select="01", parameters={"beta": 0.1}).keys() == {FIRST}


def test_systems_that_a_model_plays_need_a_writer_in_the_file_of_models(tmp_path):
    """Incident: a file with other roles passed, and notebook 06 failed after 01 to 05 had run."""
    path = tmp_path / "models.yaml"
    reader = "{kind: local, model: some/name}"
    path.write_text(f"reader: {reader}\n")
    given = {"models": str(path), "systems": ["memagent", "untrained", "memory-r2"]}
    with pytest.raises(UsageError, match="untrained, memory-r2, which .* names no writer") as said:
        resolve(PROJECT, given, "06", to_run=False)
    assert str(path) in str(said.value) and "memagent" not in str(said.value)
    assert resolve(PROJECT, given | {"systems": ["memagent"]}, "06", to_run=False)
    path.write_text(f"writer: {reader}\n")
    assert resolve(PROJECT, given, "06", to_run=False)


def test_evidence_of_the_trained_manager_needs_notebook_04_before_it():
    """Incident: 05 of a profile without 04 failed after its kernel had started."""
    profile = profiles.load_profile(PROJECT / "profiles", "default")
    chosen = profiles.select_notebooks(PROJECT, ["01-03", "05"])
    trained = {"05.source": "trained_trajectories"}
    resolved = profiles.resolve_parameters(chosen, profile, trained, "r")
    with pytest.raises(
        UsageError,
        match=r"05_evidence_tracing reads trained_trajectories.*"
        r"--notebooks 04,05.*set 05.source \(it is 'trained_trajectories'\)",
    ):
        profiles.check_reads(chosen, resolved, None)
    resolved = profiles.resolve_parameters(chosen, profile, {}, "r")
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


@pytest.mark.parametrize(
    "given, said",
    [
        ({"lora_alpha": "16"}, "lora_alpha is 16 and lora_rank is 0"),
        ({"micro_batches": "3"}, "micro_batches is 3, expected a divisor of num_generations .8."),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_the_plan_too(given, said):
    for to_run in (True, False):
        with pytest.raises(UsageError, match=f"04_grpo_training: .*{said}"):
            train(given, to_run=to_run)


FULL = {
    "loader": "unsloth",
    "scheme": "Fine-Mem",
    "precision": "4bit",
    "lora_rank": "16",
    "fast_inference": "true",
}


def test_without_a_gpu_or_its_packages_nothing_starts_and_the_plan_is_made(monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UsageError) as caught:
        train(FULL)
    for said in (
        "loader 'unsloth' and precision '4bit' and fast_inference: expected a CUDA device",
        "loader 'unsloth' needs unsloth, which",
        "'4bit' needs bitsandbytes, which",
        "fast_inference needs vllm, which is not installed; install it: pip install 'vllm",
        "--set loader=transformers",
    ):
        assert said in str(caught.value)
    assert train(FULL, to_run=False)["04_grpo_training"]["loader"] == "unsloth"
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: object())
    assert train(FULL)["04_grpo_training"]["precision"] == "4bit"


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """Put a model into a cache of the hub of its own; return the folder of its commit."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    model, commit = tmp_path / "hub" / "models--owner--name", "a" * 40
    (model / "refs").mkdir(parents=True)
    (model / "refs" / "main").write_text(commit)
    held = model / "snapshots" / commit
    held.mkdir(parents=True)
    (held / "config.json").write_text("{}")
    (held / "model.safetensors").touch()
    return held


def test_a_checkpoint_that_is_nowhere_is_refused_before_anything_runs(hub_cache, monkeypatch):
    commit = hub_cache.name
    for there in ("tiny", "owner/name", f"owner/name@{commit}"):
        train({"checkpoint": there})
    away = [
        ("owner/other", r"hf download owner/other\), or set HF_HUB_OFFLINE=0"),
        (f"owner/name@{'b' * 40}", "not in the hub's cache"),
        ("no/such/folder", "neither a folder nor such a name"),
        ("data/models/never-fetched", "run `finemem fetch never-fetched` once"),
    ]
    for name, said in away:
        with pytest.raises(UsageError, match=f"checkpoint is '{name}', expected tiny, .*{said}"):
            train({"checkpoint": name})
        train({"checkpoint": name}, to_run=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    train({"checkpoint": "owner/other"})  # it will be fetched
    with pytest.raises(UsageError, match="neither a folder nor such a name"):
        train({"checkpoint": "no/such/folder"})
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (hub_cache / "model.safetensors").unlink()  # as after looking at its sizes only
    with pytest.raises(UsageError, match="not in the hub's cache"):
        train({"checkpoint": "owner/name"})


def test_a_retriever_whose_encoder_is_nowhere_is_refused_before_anything_runs(
    hub_cache, monkeypatch, tmp_path
):
    monkeypatch.setattr(profiles, "workbench_root", lambda: tmp_path)
    train({"retriever": "graph"})
    with pytest.raises(UsageError, match="retriever is 'hybrid'.*run `finemem fetch minilm` once"):
        train({"retriever": "hybrid"})
    (tmp_path / "data/models/minilm").mkdir(parents=True)
    train({"retriever": "hybrid"})


def test_a_folder_without_a_model_and_an_adapter_without_its_base_are_refused(tmp_path, hub_cache):
    folder = tmp_path / "adapter"
    folder.mkdir()
    with pytest.raises(UsageError, match="this folder holds neither"):
        train({"checkpoint": str(folder)})
    adapter = folder / "adapter_config.json"
    adapter.write_text('{"base_model_name_or_path": "owner/other", "r": 8}')
    with pytest.raises(UsageError, match="checkpoint is 'owner/other'"):
        train({"checkpoint": str(folder)})
    adapter.write_text('{"base_model_name_or_path": "owner/name", "r": 8, "revision": "v2"}')
    with pytest.raises(UsageError, match="checkpoint is 'owner/name@v2'"):
        train({"checkpoint": str(folder)})
    adapter.write_text('{"base_model_name_or_path": "owner/name", "r": 8, "revision": null}')
    train({"checkpoint": str(folder)})
    with pytest.raises(UsageError, match="adapter of rank 8, got lora_rank 4"):
        train({"checkpoint": str(folder), "lora_rank": "4"})


@pytest.mark.parametrize(
    "content, said",
    [
        ("{", "adapter_config.json cannot be read"),
        ("[" * 10_000, "adapter_config.json cannot be read"),
        ("[]", "expected the configuration of a LoRA adapter"),
        ('{"base_model_name_or_path": null, "r": 8}', "expected the configuration of a LoRA"),
        ('{"base_model_name_or_path": "owner/name"}', "expected the configuration of a LoRA"),
        ('{"base_model_name_or_path": "HERE", "r": 8}', "names itself as the model"),
    ],
)
def test_a_broken_adapter_is_refused_in_a_sentence(tmp_path, content, said):
    text = content.replace("HERE", str(tmp_path))
    (tmp_path / "adapter_config.json").write_text(text)
    with pytest.raises(UsageError, match=said):
        train({"checkpoint": str(tmp_path)})


def test_a_run_starts_and_goes_on_only_with_its_checkpoint_and_says_its_commit(
    tmp_path, hub_cache, monkeypatch, capsys
):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    folder = make_notebooks(
        tmp_path / "notebooks",
        {
            FIRST: (
                "checkpoint: str = ''  # c\n",
                [
                    "from types import SimpleNamespace\n"
                    f"run.loaded(SimpleNamespace(commit='{hub_cache.name}'))",
                    "1 / 0",
                ],
            )
        },
    )
    start = ["run", "--notebooks-dir", str(folder), "--run-id", "r", "--set"]
    assert main([*start, "checkpoint=owner/other"]) == 2
    assert "hf download owner/other" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
    assert main([*start, "checkpoint=owner/name"]) == 1
    manifest = json.loads((tmp_path / "runs" / "r" / "manifest.json").read_text())
    assert manifest["inputs"] == {"owner/name": hub_cache.name}
    (hub_cache / "config.json").unlink()
    capsys.readouterr()
    assert main(["resume", "r"]) == 2
    assert "checkpoint is 'owner/name'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "variable, data, offline",
    [
        (None, [], True),
        ("1", [], True),
        ("0", [], False),
        ("", [], False),
        ("on", [], True),
        (None, ["owner/name"], False),
        ("1", ["owner/name"], False),
        (None, ["pyproject.toml"], True),
        (None, ["no/such/file.jsonl"], True),
    ],
)
def test_kernels_reach_the_hub_where_data_comes_from_it_or_the_user_says_so(
    monkeypatch, variable, data, offline
):
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    if variable is not None:
        monkeypatch.setenv("HF_HUB_OFFLINE", variable)
    assert profiles.hub_offline([{"seed": 0}, {"data": data}]) is offline


def test_a_parameter_of_a_notebook_that_is_not_chosen_is_said_to_be_one(notebooks):
    with pytest.raises(
        UsageError,
        match="unknown parameter beta: it is one of "
        "03_rewards_and_credit, not of a notebook that is chosen; choose it with",
    ):
        resolve(notebooks, {"beta": "0.5"}, select="01")
    with pytest.raises(UsageError, match="unknown parameter betta; there are: data, num_chunks"):
        resolve(notebooks, {"betta": "0.5"}, select="01")


def test_the_parameters_of_an_extra_notebook_are_read_once_and_not_for_a_message(tmp_path):
    write_notebook(tmp_path, FIRST, "num_chunks: int = 4  # c\n")
    write_notebook(tmp_path, "09_extra", "depth: int = 1  # d\n", order=None)
    log = tmp_path / "executed"
    for file in tmp_path.glob("*.py"):
        file.write_text(file.read_text() + f"open({str(log)!r}, 'a').write({file.stem!r} + ' ')\n")
    with pytest.raises(UsageError, match="unknown parameter depth; there are: num_chunks, seed"):
        resolve(tmp_path, {"depth": "2"}, select="01", notebooks=["01"])
    assert "09_extra" not in log.read_text()
    for _ in range(2):
        resolve(tmp_path, {"depth": "2"}, select="09_extra", notebooks=["01"])
    assert log.read_text().split().count("parameters_09_extra") == 1


DEEP = "[" * 100_000 + "]" * 100_000
SAYS = {"name": FIRST, "order": 1, "parameters": "QuestionGeneration"}


def bare_notebook(**metadata):
    return json.dumps(
        {"cells": [], "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    ).replace('"DEEP"', DEEP)


@pytest.mark.parametrize(
    "content, reason",
    [
        ("{", "expected JSON"),
        (DEEP, "within each other"),
        ("[]", "its metadata have no entry 'finemem'"),
        (bare_notebook(), "its metadata have no entry 'finemem'"),
        (bare_notebook(finemem="x"), "its metadata have no entry 'finemem'"),
        (bare_notebook(finemem=SAYS, other="DEEP"), "within each other"),
        (bare_notebook(finemem={"name": FIRST}), "is not usable .parameters: Field required"),
        (bare_notebook(finemem=SAYS | {"order": "1"}), "order: Input should be a valid integer"),
        (bare_notebook(finemem=SAYS | {"parameters": "Best"}), "name the parameters 'Best', expec"),
        (bare_notebook(finemem=SAYS | {"parameters": "no.py:Best"}), "FILE.py:CLASS"),
        (bare_notebook(finemem=SAYS), "has no parameter run_id|are not readable"),
    ],
)
def test_a_notebook_that_cannot_be_parameterised_is_refused(tmp_path, content, reason):
    (tmp_path / f"{FIRST}.ipynb").write_text(content)
    with pytest.raises(UsageError, match=reason):
        resolve(tmp_path, select=FIRST, notebooks=[FIRST])


def test_a_value_in_the_parameters_cell_wins_over_the_default(tmp_path):
    write_notebook(tmp_path, THIRD, "beta: float = 0.5  # b\ncapacity: int = 0  # c\n")
    path = tmp_path / f"{THIRD}.ipynb"
    path.write_text(path.read_text().replace("beta: float = 0.5", "beta: float = 0.125"))
    assert resolve(tmp_path, select="03", notebooks=["03"])[THIRD]["beta"] == 0.125
    path.write_text(path.read_text().replace("beta: float", "betta: float"))
    with pytest.raises(UsageError, match=f"{THIRD}: unknown parameter betta; there are: beta"):
        resolve(tmp_path, select="03", notebooks=["03"])


@pytest.mark.parametrize(
    "selection, expected",
    [
        (["1"], ["01_a"]),
        (["01,03-05"], ["01_a", "03_c", "05_e"]),
        (["05", "01"], ["01_a", "05_e"]),
        (["01-05,03"], ["01_a", "03_c", "05_e"]),
        ([" 01 , 03 "], ["01_a", "03_c"]),
        (["03_short"], ["03_short"]),
        (["03_copy,1"], ["01_a", "03_copy"]),
        (["03_c,3"], ["03_c"]),
    ],
)
def test_selections_name_notebooks_in_their_order(tmp_path, selection, expected):
    """Incident: 04_short.ipynb ran in place of 04_grpo_training.ipynb."""
    for stem in ("05_e", "01_a", "03_c"):
        write_notebook(tmp_path, stem)
    write_notebook(tmp_path, "03_short", order=None)
    write_notebook(tmp_path, "03_copy", name="03_c")
    (tmp_path / "03_c.txt").touch()
    (tmp_path / "scratch.ipynb").touch()
    found = profiles.select_notebooks(tmp_path, selection)
    assert [path.stem for path in found] == expected


@pytest.mark.parametrize("selection", ["03", "01-05"])
def test_a_numbered_notebook_that_cannot_be_read_is_refused_not_left_out(tmp_path, selection):
    for stem in ("01_a", "03_c", "05_e"):
        write_notebook(tmp_path, stem)
    (tmp_path / "03_c.ipynb").write_text('{"cells": [')
    with pytest.raises(UsageError, match="03_c.ipynb: expected JSON"):
        profiles.select_notebooks(tmp_path, [selection])


@pytest.mark.parametrize("source", ["import nosuchmodule", "x = (", "1 / 0"])
def test_a_model_whose_file_cannot_be_imported_is_refused(tmp_path, source):
    write_notebook(tmp_path, "01_a")
    (tmp_path / "parameters_01_a.py").write_text(source)
    with pytest.raises(UsageError, match="parameters_01_a.py: .* cannot be imported .*; correct"):
        resolve(tmp_path, select="01")


@pytest.mark.parametrize("prefix", ["²", "1" * 5000])
def test_a_prefix_that_is_no_number_of_a_notebook_names_none(tmp_path, prefix):
    folder = make_notebooks(tmp_path, PASS_ON)
    with pytest.raises(UsageError, match=f"notebook {prefix} is not chosen"):
        resolve(folder, {f"{prefix}.beta": "1"})


def test_two_notebooks_with_the_same_number_are_refused(tmp_path):
    for stem in ("03_c", "03_short"):
        write_notebook(tmp_path, stem)
    with pytest.raises(UsageError, match="03_c and 03_short .* both have the order 3"):
        profiles.select_notebooks(tmp_path, ["03"])


def test_an_extra_notebook_has_its_own_artefacts_and_parameters(tmp_path):
    folder = make_notebooks(tmp_path, PASS_ON)
    cells = ['run.save("question_audit", [])', 'run.load("instances")']
    write_notebook(folder, "01_short", "num_chunks: int = 2  # c\n", cells, order=None)
    found = resolve(folder, {"01.num_chunks": "3", "01_short.num_chunks": "1"}, "01,01_short")
    assert (found[FIRST]["num_chunks"], found["01_short"]["num_chunks"]) == (3, 1)
    chosen = profiles.select_notebooks(folder, ["01_short", "03"])
    values = resolve(folder, select="01_short,03")
    with pytest.raises(UsageError, match="01_short reads instances, which no notebook of its fold"):
        profiles.check_reads(chosen, values, None)
    write_notebook(folder, "01_short", "num_chunks: int = 2  # c\n", cells[:1], order=None)
    profiles.check_reads(chosen, values, None)


def test_a_copy_that_carries_the_metadata_keeps_its_own_record(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    folder = make_notebooks(tmp_path / "notebooks", PASS_ON)
    copy = folder / "01_copy.ipynb"
    copy.write_text((folder / f"{FIRST}.ipynb").read_text())
    start = ["run", "--notebooks-dir", str(folder), "--run-id"]
    assert main([*start, "copied", "--notebooks", "01_copy", "--notebooks", "03"]) == 0
    records = tmp_path / "runs" / "copied" / "records"
    assert {path.stem for path in records.iterdir()} == {"01_copy", THIRD}
    assert main([*start, "shipped", "--notebooks", "01"]) == 0
    assert [path.stem for path in (tmp_path / "runs/shipped/records").iterdir()] == [FIRST]


def test_notebooks_that_hand_over_have_the_same_seed(notebooks):
    chosen = profiles.select_notebooks(notebooks, ["01,03"])
    with pytest.raises(
        UsageError,
        match=f"{THIRD} with seed 0 reads question_audit, which {FIRST} writes with seed 6",
    ):
        profiles.check_reads(chosen, resolve(notebooks, {"01.seed": "6"}), None)


@pytest.mark.parametrize("path", sorted((PROJECT / "profiles").glob("*.yaml")), ids=str)
def test_the_profiles_of_the_project_fit_its_notebooks(path):
    profile = profiles.load_profile(path.parent, path.stem)
    chosen = profiles.select_notebooks(PROJECT, profile.notebooks)
    given = {name: "pyproject.toml" for name in profile.requires}
    resolved = profiles.resolve_parameters(chosen, profile, given, "r", to_run=False)
    assert resolved.keys() == {notebook.stem for notebook in chosen}
    profiles.check_reads(chosen, resolved, None)
