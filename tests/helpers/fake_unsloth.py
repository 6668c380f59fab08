"""A stand-in for unsloth.FastLanguageModel, which needs a card.

It accepts what the real calls accept (`unsloth_facts.json`, which a nightly test compares with the
installed Unsloth), writes the calls down, and loads through transformers and peft.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch

from finemem_lib.managers.loading import ModelSettings, load_model

FACTS = json.loads(Path(__file__).with_name("unsloth_facts.json").read_text(encoding="utf-8"))


class Recorder:
    """Writes calls down and loads a folder, whatever name it is given."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = folder
        self.calls: list[tuple[str, dict[str, Any]]] = []

    def from_pretrained(self, **arguments: Any) -> Any:
        self._note("from_pretrained", arguments)
        return load_model(self.folder, ModelSettings(), 0)

    def get_peft_model(self, model: Any, **arguments: Any) -> Any:
        self._note("get_peft_model", {"model": model, **arguments})
        return put_adapter_on(model, arguments)

    def _note(self, name: str, arguments: dict[str, Any]) -> None:
        unknown = {*arguments} - ({*FACTS[name]} - {"args", "kwargs"})
        assert not unknown, f"Unsloth {FACTS['unsloth']}'s {name} has no {', '.join(unknown)}"
        self.calls.append(
            (name, {name: value for name, value in arguments.items() if name != "model"})
        )


def put_adapter_on(model: Any, arguments: dict[str, Any]) -> Any:
    """Return the model with a new adapter on it."""
    from peft import LoraConfig, get_peft_model

    own = ("use_gradient_checkpointing", "random_state", "loftq_config")
    config = {name: value for name, value in arguments.items() if name not in own}
    with torch.random.fork_rng():
        torch.manual_seed(arguments["random_state"])
        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **config))


def install(monkeypatch: pytest.MonkeyPatch, folder: str | Path) -> Recorder:
    """Put the stand-in where `import unsloth` finds it, and return it."""
    recorder = Recorder(folder)
    module = types.ModuleType("unsloth")
    module.FastLanguageModel = recorder  # type: ignore[attr-defined]  # a module made by hand
    monkeypatch.setitem(sys.modules, "unsloth", module)
    cuda = torch.cuda.is_available
    # Only the question whether Unsloth can be imported is answered otherwise.
    monkeypatch.setattr(
        torch.cuda,
        "is_available",
        lambda: sys._getframe(1).f_code.co_name == "import_unsloth" or cuda(),
    )
    return recorder
