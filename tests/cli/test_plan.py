"""`finemem plan`: real command lines on small data, what is printed and how it ends."""

from __future__ import annotations

import json
import re
from dataclasses import fields

import pytest

from finemem_lib.cli.main import main
from finemem_lib.cli.profiles import load_profile
from finemem_lib.managers.loading import ModelSettings
from finemem_lib.runs.parameters import GRPOTraining
from finemem_lib.training import estimates
from finemem_lib.util.provenance import workbench_root
from tests.helpers.small_models import save_model

PROFILES = sorted((workbench_root() / "notebooks" / "profiles").glob("*-*gb.yaml"))
PRICES = """reader: {model: m, base_url: "http://localhost:1/v1", price_in: 1.0, price_out: 2.0}"""


@pytest.fixture(autouse=True)
def no_runs(tmp_path, monkeypatch):
    monkeypatch.setenv("FINEMEM_RUNS_DIR", str(tmp_path / "runs"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))


@pytest.fixture
def data(tmp_path):
    rows = [
        {
            "instance_id": f"one-{number}",
            "data_source": "squad",
            "chunks": ["Mia moved to Rome in 1998. " * 100, "Ana sails on Friday. " * 50],
            "questions_and_answers": [{"question": "Where does Mia live?", "answer": "Rome"}] * 10,
        }
        for number in range(6)
    ]
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def plan(capsys, *arguments):
    code = main(["plan", *arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


def on_data(data, *settings, profile="qwen3-1.7b-16gb"):
    """Return the arguments of a plan on a data file, with settings NAME=VALUE."""
    given = [part for one in ("held_out=2", *settings) for part in ("--set", one)]
    return "--profile", profile, "--data", data, *given


def row(text, begins):
    """Return the columns of the line that begins so."""
    [line] = [line for line in text.splitlines() if line.startswith(begins)]
    return re.split(r"  +", line)


@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_the_full_size_profiles_fit_their_cards_on_chunks_of_full_length(path, capsys, tmp_path):
    rows = [
        {
            "instance_id": f"one-{number}",
            "data_source": "squad",
            "chunks": ["Mia moved to Rome in 1998, not Oslo. " * 400] * 12,
            "questions_and_answers": [{"question": "Where does Mia live?", "answer": "Rome"}],
        }
        for number in range(40)
    ]
    data = tmp_path / "long.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    code, said, _ = plan(capsys, "--profile", path.stem, "--data", str(data))
    profile = load_profile(path.parent, path.stem)
    assert code == 0, said
    card = estimates.CARDS[profile.card]
    assert f"of {card.gb:g} GB" in said and f"-{card.gb:g}gb" in path.stem
    longest = re.search(r"longest ([\d,]+)\), completions", said)[1]
    assert int(longest.replace(",", "")) == profile.parameters["max_prompt_tokens"]
    assert profile.parameters["checkpoint"] in estimates.SHAPES
    for name in ("weights", "adapter", "activations", "logits", "cache", "writing", "learning"):
        assert row(said, name)
    assert not (tmp_path / "runs").exists()


def test_a_plan_that_cannot_fit_fails_and_names_changes_that_work(capsys, data):
    common = (*on_data(data, profile="qwen3-4b-80gb"), "--card", "RTX 4080")
    code, said, _ = plan(capsys, *common)
    assert code == 1 and "does not fit" in said
    changes = said.split("each by itself: ")[1].splitlines()[0].split(", ")
    assert changes
    for change in changes:
        settings = [part for each in change.split() for part in ("--set", each)]
        code, said, _ = plan(capsys, *common, *settings)
        assert code == 0 and "\nfits: " in said, change


def test_calls_and_their_cost_by_hand(capsys, data, tmp_path):
    models = tmp_path / "models.yaml"
    models.write_text(PRICES, encoding="utf-8")
    code, said, _ = plan(
        capsys,
        *on_data(data, f"models={models}", "updates=10"),
        "--assume",
        "item_tokens=50",
        "--assume",
        "answer_tokens=10",
    )
    assert code == 0
    said, table = said.split("hours in all")
    # 8 rollouts of one instance: 2 chunks x 5 questions, and a fifth of 10 global ones.
    _, role, calls, tokens_in, tokens_out, cost = row(said, "04 per update")
    assert (role, calls, tokens_out) == ("reader m", str(8 * (2 * 5 + 2)), f"{960:,}")
    assert int(tokens_in.replace(",", "")) > 96 * 10 * 50
    assert row(said, "04 10 updates")[2] == "960"
    tokens = [int(each.replace(",", "")) for each in row(said, "04 10 updates")[3:5]]
    assert float(row(said, "04 10 updates")[5]) == pytest.approx(
        (tokens[0] + 2 * tokens[1]) / 1e6, abs=0.006
    )
    # Trained and not, two scripted managers; one instance is played three times more, twice.
    assert row(said, "04 tests before and after")[2] == str((4 * 2 + 6) * (2 * 5 + 10))
    assert row(said, "02 scripted managers")[2] == str(3 * 6 * (2 * 5 + 10))
    # Four managers, four systems and the trained one, each twice, and two controls.
    assert row(said, "06 benchmark")[2] == f"{(9 * 2 + 2) * 6 * 10:,}"
    parts = ("04 10 updates", "04 tests before and after", "02 scripted", "06 benchmark")
    for place in (2, 3, 4):
        numbers = [int(row(said, name)[place].replace(",", "")) for name in parts]
        whole = int(row(said, "in all")[place - 1].replace(",", ""))  # it names no role
        assert abs(sum(numbers) - whole) <= len(parts)
    assert "01 chunk questions" not in said  # no teacher is named, the rules cost nothing
    # Every call takes a second, 16 at a time; the rest of the hours is the manager's.
    hours = ("04 10 updates", "04 tests before and after", "02 scripted", "06 benchmark")
    assert float(row(table, "02 scripted")[1]) == round(3 * 6 * 20 / 16 / 3600, 1)
    each = [float(row(table, name)[-1]) for name in hours]
    assert float(row(table, "in all")[-1]) == pytest.approx(sum(each), abs=0.21)
    assert "not in these hours: loading" in table


WRITER = PRICES.replace("reader", "writer")


def test_the_writer_is_counted_by_hand(capsys, data, tmp_path):
    """Incident: with a writer alone, the plan said that no language model is asked."""
    models = tmp_path / "models.yaml"
    models.write_text(WRITER, encoding="utf-8")
    arguments = ["--profile", "real", "--data", data, "--set", f"models={models}"]
    given = ["systems=[mem1, mirix-proxy, rag-top2]", "baseline=mirix-proxy", "equal_budget=100"]
    arguments += [part for one in given for part in ("--set", one)]
    code, said, _ = plan(capsys, *arguments)
    assert code == 0 and "no language model" not in said
    _, role, calls, tokens_in, tokens_out, _ = row(said, "06 memories")
    # 6 instances of 2 chunks; two plays of both, and the shuffled memory of the baseline.
    assert (role, calls) == ("writer m", str(12 * (2 * 1 + 3 * 6)))
    # Chunks of 700 and 250 tokens; a state of 256 and then 100 tokens, and restated chunks.
    written = 6 * (2 * 256 + 2 * 100 + 3 * 6 * (700 + 250))
    assert int(tokens_out.replace(",", "")) == written
    assert int(tokens_in.replace(",", "")) > 6 * 20 * (700 + 250)


def test_the_plan_names_the_roles_that_it_does_not_count(capsys, data, tmp_path):
    models = tmp_path / "models.yaml"
    model = '{model: m, base_url: "http://localhost:1/v1"}'
    arguments = ["--profile", "real", "--data", data, "--set", f"models={models}"]
    arguments += ["--set", "systems=[rag-top2]"]
    models.write_text(f"writer: {model}", encoding="utf-8")
    _, said, _ = plan(capsys, *arguments)
    assert "no language model is asked" in said
    assert "named in models and not asked by these notebooks: writer m" in said
    models.write_text(f"judge: {model}", encoding="utf-8")
    _, said, _ = plan(capsys, *arguments)
    assert "not counted: judge m, asked where no rule scores" in said
    assert "no language model is asked" not in said


def test_hours_count_what_models_are_asked_and_the_trained_manager_on_every_instance(
    capsys, data, tmp_path
):
    models = tmp_path / "models.yaml"
    models.write_text(
        PRICES.replace("reader:", "teacher: &m") + "\nreader: *m\nverifier: *m\n", encoding="utf-8"
    )
    common = on_data(data, f"models={models}", "updates=1")

    def hours(name, *more):
        code, said, _ = plan(capsys, *common, *more)
        assert code == 0, said
        return float(row(said.split("hours in all")[1], name)[-1])

    slow = ("--assume", "reader_seconds=3600", "--assume", "reader_concurrency=1")
    assert hours("01 chunk questions", *slow) == 12
    assert hours("01 verified on the chunk alone", *slow) == 60
    assert hours("02 scripted managers", *slow) == 3 * 6 * 20
    # Six instances are one batch of 8, and three of 2.
    decoding = ("--assume", "step_seconds=3600", "--assume", "reader_seconds=0.001")
    assert (
        hours("06 benchmark", *decoding, "--set", "batch_size=2")
        == pytest.approx(3 * hours("06 benchmark", *decoding), rel=0.01)
        == pytest.approx(3 * 2 * 512, rel=0.01)
    )
    assert hours("in all", *decoding) > hours("06 benchmark", *decoding)


def test_notebooks_04_and_06_and_the_plan_sample_as_many_prompts_at_a_time(capsys, data, tmp_path):
    """The plan's number is the loaded manager's, and that of the manager it saves for 06."""
    from finemem_lib.managers import tiny
    from finemem_lib.managers.model import load_manager

    folder = save_model(tmp_path / "model", "qwen3")
    for given, rows in ((0, 8), (3, 3)):
        settings = f"checkpoint={folder}", f"batch_size={given}"
        _, said, _ = plan(capsys, *on_data(data, *settings))
        assert f"tests and 06: {rows} prompts at a time\n" in said
        manager = load_manager(folder, model=ModelSettings(batch_size=given or None, lora_rank=2))
        manager.save(tmp_path / f"saved-{given}")
        assert manager.batch_size == load_manager(tmp_path / f"saved-{given}").batch_size == rows
    assert load_manager("tiny").batch_size == tiny.BATCH_SIZE == 128


def test_vllm_is_said_not_to_sample_the_tests(capsys, data):
    arguments = on_data(data, profile="qwen3-4b-80gb")
    assert (
        "16 prompts at a time, sampled without vLLM, in memory beside its share"
        in plan(capsys, *arguments)[1]
    )
    assert "without vLLM" not in plan(capsys, *arguments, "--set", "fast_inference=false")[1]


def test_missing_data_is_all_that_is_said(capsys, tmp_path):
    code, said, error = plan(
        capsys, "--profile", "qwen3-1.7b-16gb", "--data", str(tmp_path / "gone.jsonl")
    )
    assert code == 2 and "does not exist" in error and not said
    (tmp_path / "bad.jsonl").write_text("no json", encoding="utf-8")
    code, said, error = plan(
        capsys, "--profile", "qwen3-1.7b-16gb", "--data", str(tmp_path / "bad.jsonl")
    )
    assert code == 2 and "bad.jsonl" in error and not said


def test_a_name_may_carry_its_revision(capsys, data):
    arguments = on_data(data)
    code, said, _ = plan(capsys, *arguments, "--set", "checkpoint=Qwen/Qwen3-1.7B@70d244c")
    assert code == 0 and "1,720,574,976 parameters (the sizes noted here)" in said


def test_tokens_and_sizes_are_the_checkpoints_own_where_it_is_at_hand(capsys, data, tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    arguments = on_data(data)
    _, noted, _ = plan(capsys, *arguments)
    assert "words and marks" in noted and "(the sizes noted here)" in noted
    _, own, _ = plan(capsys, *arguments, "--set", f"checkpoint={folder}")
    assert f"tokens are those of {folder}" in own and "(its config.json)" in own


def test_the_default_profile_asks_no_model_and_names_no_card(capsys):
    code, said, _ = plan(capsys)
    assert code == 0
    assert "no language model is asked" in said and "no card is named" in said
    assert "model tiny: 150,016 parameters" in said


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--assume", "speed=3"], "--assume 'speed=3': expected NAME=NUMBER with one of"),
        (["--assume", "answer_tokens=much"], "--assume 'answer_tokens=much'"),
        (["--assume", "traffic_share=2"], "expected at most 1"),
        (["--set", "held_out=6"], "held_out"),
        (["--set", "04.lora_rank=0", "--set", "04.lora_alpha=8"], "no adapter to scale"),
        (["--set", "lora_rank=0", "--set", "precision=4bit"], "nothing could be trained"),
        (["--set", "checkpoint=owner/unknown"], "sizes are not known here"),
        (["--set", "updates=-1"], "updates is -1"),
        (["--profile", "none"], "no profile 'none'"),
    ],
)
def test_what_cannot_be_planned_is_refused(capsys, data, arguments, reason):
    start = (
        [] if "--profile" in arguments else ["--profile", "qwen3-1.7b-16gb", "--set", "held_out=2"]
    )
    code, _, error = plan(capsys, *start, "--data", data, *arguments)
    assert code == 2 and reason in error


@pytest.mark.parametrize("config", ["[]", "5", "{", '{"model_type": []}', "[" * 10_000])
def test_a_checkpoint_whose_configuration_is_broken_is_refused(capsys, tmp_path, config):
    (tmp_path / "config.json").write_text(config)
    code, _, error = plan(capsys, "--set", f"04.checkpoint={tmp_path}")
    assert code == 2 and "its sizes are not known here" in error


def test_lengths_that_leave_no_room_are_refused(capsys, data, tmp_path):
    folder = save_model(tmp_path / "model", "qwen3")
    settings = f"checkpoint={folder}", "max_prompt_tokens=64"
    code, _, error = plan(capsys, *on_data(data, *settings))
    assert code == 2 and "max_prompt_tokens is 64, expected at least" in error


def test_model_settings_are_all_parameters_of_training():
    """A setting that could not be given would be planned wrongly."""
    settings = {field.name for field in fields(ModelSettings)}
    assert settings <= GRPOTraining.model_fields.keys()
    values = {name: 2 for name in settings if GRPOTraining.model_fields[name].annotation is int}
    given = GRPOTraining.read(values | {"gradient_checkpointing": True}).model_settings()
    assert all(getattr(given, name) == 2 for name in values) and given.gradient_checkpointing
