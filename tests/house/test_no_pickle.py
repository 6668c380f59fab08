"""No code of the repository reads pickle, because reading one can run code."""

from __future__ import annotations

import ast

import nbformat
import pytest
from transformers import AutoModelForCausalLM, Qwen3Config

from finemem_lib.managers.model import load_manager
from tests.helpers.paths import ROOT

READERS = {
    "pickle": {"load", "loads", "Unpickler"},
    "cPickle": {"load", "loads"},
    "cloudpickle": {"load", "loads"},
    "dill": {"load", "loads", "load_session"},
    "joblib": {"load", "Memory"},
    "shelve": {"open"},
    "marshal": {"load", "loads"},
    "pandas": {"read_pickle"},
    "torch": {"load"},
    "numpy": {"load"},
}
"""What reads pickle, by module; of torch and numpy unless an argument forbids it."""

ALIASES = {"pd": "pandas", "np": "numpy"}
MODELS = {"AutoModel", "AutoModelForCausalLM"}


def forbids(call: ast.Call, function: str) -> bool:
    """Return whether a call's arguments keep it from reading pickle."""
    given = {one.arg: getattr(one.value, "value", None) for one in call.keywords}
    if function == "torch.load":
        return given.get("weights_only") is True
    return function == "numpy.load" and given.get("allow_pickle", False) is False


def offences(source: str) -> list[str]:
    """Return what reads pickle in a source: calls, and imports of such functions."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.module in READERS:
            names = {alias.name for alias in node.names} & READERS[node.module]
            found += [f"{node.lineno}: from {node.module} import {name}" for name in sorted(names)]
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        owner, name = ast.unparse(node.func.value), node.func.attr
        module = ALIASES.get(owner, owner)
        if name in READERS.get(module, ()) and not forbids(node, f"{module}.{name}"):
            found.append(f"{node.lineno}: {module}.{name}")
        if name == "from_pretrained" and owner.rpartition(".")[2] in MODELS:
            # Positional keywords such as **place cannot be looked into.
            safe = any(
                one.arg is None or (one.arg == "use_safetensors" and one.value.value is True)
                for one in node.keywords
            )
            found += [] if safe else [f"{node.lineno}: {owner}.{name} without use_safetensors"]
    return found


def sources() -> list[tuple[str, str]]:
    """Return the name and the code of every script, module and notebook."""
    paths = [
        *ROOT.glob("*.py"),
        *(path for name in ("finemem_lib", "benchmarks", "release", "schedulers")
          for path in (ROOT / name).rglob("*.py")),
    ]  # fmt: skip
    found = [(str(path.relative_to(ROOT)), path.read_text(encoding="utf-8")) for path in paths]
    for path in (ROOT / "notebooks").glob("*.ipynb"):
        cells = nbformat.read(path, as_version=4).cells
        code = "\n".join(
            cell.source
            for cell in cells
            if cell.cell_type == "code" and not cell.source.startswith(("%", "!"))
        )
        found.append((path.name, code))
    return found


def test_nothing_reads_pickle():
    looked_at = sources()
    assert len(looked_at) > 200
    wrong = [f"{name}:{line}" for name, source in looked_at for line in offences(source)]
    assert not wrong


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("import pickle\npickle.load(file)", 1),
        ("from pickle import loads", 1),
        ("torch.load(path)", 1),
        ("torch.load(path, weights_only=False)", 1),
        ("torch.load(path, weights_only=True)", 0),
        ("np.load(path, allow_pickle=True)", 1),
        ("numpy.load(path)", 0),
        ("pd.read_pickle(path)", 1),
        ("joblib.load(path)\njoblib.Memory(folder)\njoblib.Parallel(2)", 2),
        ("AutoModel.from_pretrained(name)", 1),
        ("transformers.AutoModelForCausalLM.from_pretrained(name, use_safetensors=True)", 0),
        ("json.load(file)\nyaml.safe_load(file)", 0),
    ],
)
def test_the_search_finds_what_reads_pickle(source, count):
    assert len(offences(source)) == count


@pytest.mark.parametrize("adapter", [False, True])
def test_pickled_weights_of_a_manager_are_refused(adapter, tmp_path):
    """Incident: peft reads adapter_model.bin where there is no safetensors."""
    if adapter:
        (tmp_path / "adapter_config.json").write_text(
            '{"base_model_name_or_path": "tiny", "r": 4, "peft_type": "LORA"}'
        )
    else:
        Qwen3Config(num_hidden_layers=1).save_pretrained(tmp_path)
    (tmp_path / ("adapter_model.bin" if adapter else "pytorch_model.bin")).write_bytes(b"\x80")
    with pytest.raises(ValueError, match=r"holds pickled weights .*\.bin.*safetensors"):
        load_manager(tmp_path)


def test_transformers_refuses_pickled_weights_where_the_library_asks_it_to(tmp_path):
    """Readers and encoders load with use_safetensors, from a folder or a hub alike."""
    Qwen3Config(num_hidden_layers=1).save_pretrained(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80")
    with pytest.raises(OSError, match="safetensors"):
        AutoModelForCausalLM.from_pretrained(tmp_path, use_safetensors=True)
