"""The kit for a card's machine without network, and the run from it, on the CPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import time
import zipfile

import pytest
import torch
from packaging.requirements import Requirement

from finemem_lib.util.provenance import workbench_root
from tests.helpers.benchmarks import benchmark_module
from tests.helpers.patience import LAST_RESORT

torch.set_num_threads(1)
BENCHMARKS = workbench_root() / "benchmarks"


@pytest.fixture(scope="module")
def kit():
    return benchmark_module("gpu_kit")


@pytest.fixture(scope="module")
def runner():
    return benchmark_module("gpu_run")


def machine(kit, **parts):
    return kit.Machine("3.12", "13.0", *(parts.get(p, {}) for p in ("held", "left_out", "thinned")))


def write_wheel(path, files):
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


# ---- what the kit holds --------------------------------------------------------------------------


def test_what_the_machine_holds_goes_with_the_pins_that_unsloth_and_trl_come_in(kit):
    found, pins = kit.read_machine(), kit.pins(workbench_root() / "constraints.txt")
    assert all(len(reason.split()) > 1 for reason in found.left_out.values())
    assert {"unsloth", "unsloth-zoo", "trl", "bitsandbytes"} <= pins.keys()
    assert not {"unsloth", "trl"} & (found.held.keys() | found.left_out.keys())
    for by, needs in (
        ("the project", "torch<2.15,>=2.9"),
        ("unsloth", "transformers<=5.17.0,>=4.52.4"),
    ):
        assert kit.not_held(Requirement(needs), by, found) is None


def test_what_is_missing_travels_and_what_is_left_out_does_not(kit):
    small = machine(kit, held={"torch": "2.11.0", "tqdm": ""}, left_out={"vllm": "too large"})
    assert kit.not_held(Requirement("torch>=2.4"), "unsloth", small) is None
    assert kit.not_held(Requirement("tqdm>=99"), "unsloth", small) is None  # its version is unknown
    assert kit.not_held(Requirement("vllm"), "unsloth", small) is None
    assert kit.not_held(Requirement("Cut_Cross.Entropy"), "x", small) == "cut-cross-entropy"


def test_a_version_that_does_not_fit_what_the_machine_holds_is_refused(kit):
    small = machine(kit, held={"torch": "2.11.0"})
    with pytest.raises(kit.KitError, match=r"vllm needs torch==2.13.0, .* holds torch 2.11.0; pin"):
        kit.not_held(Requirement("torch==2.13.0"), "vllm", small)


def test_a_thinned_wheel_lacks_the_files_and_does_not_list_them(kit, tmp_path):
    wheel = tmp_path / "a-1-py3-none-any.whl"
    record = "a/x.py,sha256=q,1\na/big.so,sha256=r,9\na-1.dist-info/RECORD,,\n"
    write_wheel(wheel, {"a/x.py": "x", "a/big.so": "b" * 9, "a-1.dist-info/RECORD": record})
    kit.thin(wheel, ["*.so"])
    with zipfile.ZipFile(wheel) as archive:
        assert archive.namelist() == ["a/x.py", "a-1.dist-info/RECORD"]
        assert archive.read("a-1.dist-info/RECORD").decode() == record.replace(
            "a/big.so,sha256=r,9\n", ""
        )
    with pytest.raises(kit.KitError, match="holds nothing like"):
        kit.thin(wheel, ["studio/*"])


def test_another_model_than_the_one_that_is_known_is_not_packed(kit, tmp_path):
    write_wheel(tmp_path / "m.whl", {"m/other.gguf": "GGUF"})
    with pytest.raises(kit.KitError, match="sha256 .*, expected b179c952.* not packed"):
        kit.check_model(tmp_path / "m.whl")


@pytest.mark.parametrize(("size", "most", "count"), [(10, 4, 3), (8, 4, 2), (1, 60, 1)])
def test_pieces_are_few_of_equal_size_and_join_to_the_whole(kit, tmp_path, size, most, count):
    whole = tmp_path / "kit.tar"
    whole.write_bytes(os.urandom(size))
    pieces = kit.cut(whole, tmp_path, most)
    assert len(pieces) == count and all(path.stat().st_size <= most for path in pieces)
    joined = sorted(tmp_path.glob("kit.*.part"))
    assert b"".join(path.read_bytes() for path in joined) == whole.read_bytes()


def test_a_piece_fits_into_a_call_beside_the_repository(kit):
    assert 30_000_000 < kit.room_beside_repository() < kit.CALL_BYTES


# ---- the parts of a run --------------------------------------------------------------------------


def run_group(runner, parts, tmp_path, left=60):
    return runner.run_group(parts, left, tmp_path, tmp_path / "log.txt", os.environ)


def test_parts_end_each_in_its_own_way_and_all_are_collected(runner, tmp_path):
    collected = []

    def part(name, code, limit=50):
        return runner.Part(name, runner.python("-c", code), limit, lambda: collected.append(name))

    survivor = f"import subprocess, time; subprocess.Popen(['sh', '-c', 'sleep 9; touch {tmp_path}"
    found = run_group(
        runner,
        [
            part("good", "print('measured')"),
            part("bad", "raise ValueError('too dark')"),
            part("slow", survivor + "/survived']); time.sleep(60)", limit=3),
        ],
        tmp_path,
    )
    started = time.monotonic()
    assert [one["status"] for one in found] == ["ok", "failed", "stopped"]
    assert "exit code 1" in found[1]["reason"] and found[2]["reason"] == "its limit of 3 s"
    assert collected == ["good", "bad", "slow"]
    log = (tmp_path / "log.txt").read_text()
    assert "measured" in log and "ValueError: too dark" in log
    time.sleep(max(0, 7 - (time.monotonic() - started)))
    assert not (tmp_path / "survived").exists()


def test_nothing_is_started_when_no_time_is_left(runner, tmp_path):
    part = runner.Part("late", runner.python("-c", f"open('{tmp_path}/ran', 'w')"), 50)
    (found,) = run_group(runner, [part], tmp_path, left=2)
    assert found["reason"] == "no time is left" and not (tmp_path / "ran").exists()


def test_all_parts_come_in_the_order_of_their_value_and_leave_the_last_ones_time(runner, tmp_path):
    groups = runner.groups(tmp_path, tmp_path, small=False)
    names = [[part.name for part in group] for group in groups]
    assert [group[0] for group in names] == [
        "SmolLM2",
        "first update",
        "gpu.py, smollm2",
        "gpu.py, qwen3_4b",
        "real text",
    ]
    assert names[-1] == ["real text", "tiny manager's table"]
    assert runner.TOTAL <= 600 - 20  # a call ends at ten minutes
    from finemem_lib.experiments.design import load_design

    assert len(load_design(runner.DESIGN).cells) == 40
    cells = load_design(runner.REAL_TEXT).cells
    assert {(cell.instances_per_update, cell.num_generations) for cell in cells} == {(8, 8)}
    for regime, updates in zip(runner.REAL_TEXT_REGIMES, (10, 60), strict=True):
        its = [cell for cell in cells if cell.regime == regime]
        assert {cell.updates for cell in its} == {updates} and len(its) == 9
    command = groups[-1][0].command[-1]
    assert command.index("10 updates") < command.index("&&") < command.index("60 updates")


# ---- the shell script ----------------------------------------------------------------------------


@pytest.fixture
def empty_kit(kit, tmp_path):
    """Return a kit without wheels and without a model, in two pieces."""
    folder = tmp_path / "kit"
    folder.mkdir()
    for name in ("wheels", "model"):
        (tmp_path / "packed" / name).mkdir(parents=True)
    with tarfile.open(tmp_path / "kit.tar", "w") as tar:
        for name in ("wheels", "model"):
            tar.add(tmp_path / "packed" / name, name)
    pieces = kit.cut(tmp_path / "kit.tar", folder, 6000)
    assert len(pieces) == 2
    sums = "".join(f"{kit.sha256(piece)}  {piece.name}\n" for piece in pieces)
    (folder / "SHA256SUMS").write_text(sums)
    return folder


def gpu_run(*arguments):
    return subprocess.run(
        [str(BENCHMARKS / "gpu_run.sh"), *map(str, arguments)],
        env=os.environ | {"PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=5 * LAST_RESORT,
    )


def test_a_kit_that_lacks_a_piece_is_refused_with_its_name(empty_kit, tmp_path):
    (empty_kit / "kit.01.part").unlink()
    done = gpu_run(empty_kit, tmp_path / "out", "--small")
    assert done.returncode == 1 and "a piece of the kit is missing" in done.stderr
    assert "kit.01.part" in done.stderr
    assert not (tmp_path / "out" / "parts.jsonl").exists()


def test_results_are_not_mixed_with_others(empty_kit, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    done = gpu_run(empty_kit, tmp_path / "out", "--small")
    assert done.returncode == 1 and "is not empty" in done.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.long
def test_the_run_goes_through_on_the_cpu(empty_kit, tmp_path):
    out = tmp_path / "out"
    done = gpu_run(empty_kit, out, "--small")
    ended = [json.loads(line) for line in (out / "parts.jsonl").read_text().splitlines()]
    status = {one["part"]: one["status"] for one in ended}
    log = (out / "log.txt").read_text()
    assert status == {
        "SmolLM2": "ok",
        "first update": "ok",
        "gpu.py, smollm2": "ok",
        "tiny manager's table": "ok",
    }, log[-3000:]
    assert done.returncode == 0
    legs = json.loads((out / "first_update.json").read_text())["legs"]
    assert legs["plain"]["gradient_norm"] > 0 and legs["plain"]["trained_tensors"] == 28
    if importlib.util.find_spec("unsloth") is None:
        assert legs["unsloth"] == {"status": "left out", "reason": "Unsloth is not installed"}
    figures = json.loads((out / "gpu_smollm2.json").read_text())
    assert figures["checkpoint"] == "smollm2"
    assert figures["parts"]["transformers"]["measured_updates"] == 2
    (cell,) = (out / "table.jsonl").read_text().splitlines()
    assert json.loads(cell)["cell"]["variant"] == "outcome-only"


# ---- the first gradient --------------------------------------------------------------------------


@pytest.fixture(scope="module")
def first():
    return benchmark_module("gpu_first")


def save_leg(folder, leg, gradient, advantages=(1.0, -1.0), completions=((1,), (2,))):
    torch.save(
        {"gradient": gradient, "advantages": list(advantages), "completions": list(completions)},
        folder / f"{leg}.pt",
    )


def test_gradients_are_compared_over_all_weights_together(first, tmp_path):
    # (3, 4) against (3, 5): they differ by 1 of 5
    save_leg(tmp_path, "plain", {"a": torch.tensor([3.0]), "b": torch.tensor([[4.0]])})
    save_leg(tmp_path, "unsloth", {"b": torch.tensor([[5.0]]), "a": torch.tensor([3.0])})
    found = first.compared(tmp_path)
    assert found["relative_difference"] == pytest.approx(0.2)
    assert found["weights"] == 2 and found["relative_difference"] > found["tolerance"]


def test_gradients_of_other_rows_or_weights_are_not_compared(first, tmp_path):
    save_leg(tmp_path, "plain", {"a": torch.ones(1)})
    save_leg(tmp_path, "unsloth", {"b": torch.ones(1)})
    with pytest.raises(ValueError, match="2 weights have a gradient in one only, such as a"):
        first.compared(tmp_path)
    save_leg(tmp_path, "unsloth", {"a": torch.ones(1)}, advantages=(1.0, 1.0))
    with pytest.raises(ValueError, match="the advantages differ"):
        first.compared(tmp_path)
