"""Loading a causal language model to be trained: transformers or Unsloth, whole or with LoRA.

A folder with ``adapter_config.json`` holds an adapter only; the model it was trained on is loaded
from where that file says, and the adapter put on it.

Unsloth rewrites transformers, peft and TRL when it is imported, so `import_unsloth` comes before
anything here touches them. Its two calls are told everything that decides what is loaded: its
defaults (4 bits, rank 16, seed 3407, another checkpoint than the one named) are not ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from finemem_lib.repro import repository_root

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

TINY_MANAGER = "data/tiny_manager"
"""Folder of the shipped warm start, relative to the repository root."""

MAX_PROMPT_TOKENS, MAX_NEW_TOKENS = 4096, 1024
"""Lengths of prompt and completion where the settings name none; the tiny manager has its own."""

TARGET_MODULES = (
    "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
)
"""Every linear layer of a Qwen3's or Llama's block gets an adapter."""

Loader = Literal["transformers", "unsloth"]
Precision = Literal["auto", "bf16", "4bit"]
MemoryRule = Literal["recent", "relevant", "recent+relevant"]
ChunkRule = Literal["head", "head+tail"]
OperationsAs = Literal["json", "tools"]


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """How a language model is loaded as memory manager, prompted and trained.

    `loader` and `precision` say by what and in which weights: "auto" as the checkpoint stores them,
    "bf16", or "4bit" (NF4, frozen, so that it is trained with an adapter only; needs CUDA).
    `lora_rank` 0 trains all weights, else an adapter of that rank on every linear layer, scaled by
    `lora_alpha` / rank (default 2 x rank). `gradient_checkpointing` computes activations again
    instead of keeping them. `fast_inference` samples with vLLM inside Unsloth, which then holds
    `gpu_memory_utilization` of the card.

    `max_prompt_tokens` and `max_new_tokens` are the model's own tokens (default 4096 and 1024, the
    tiny manager's own lengths). What a prompt cannot hold is chosen by `memory_rule` and
    `chunk_rule` (see `PromptBuilder`); operations are asked for as a JSON list or as the tool calls
    of the model's chat template.

    Raises:
        ValueError: a setting is out of range, or two of them contradict each other.

    >>> ModelSettings(lora_alpha=16)
    Traceback (most recent call last):
    ...
    ValueError: ModelSettings: lora_alpha is 16 and lora_rank is 0, so there is no adapter ...
    """

    loader: Loader = "transformers"
    precision: Precision = "auto"
    lora_rank: int = 0
    lora_alpha: int | None = None
    gradient_checkpointing: bool = False
    fast_inference: bool = False
    gpu_memory_utilization: float = 0.5
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    memory_rule: MemoryRule = "recent"
    chunk_rule: ChunkRule = "head"
    operations_as: OperationsAs = "json"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("loader", "precision", "memory_rule", "chunk_rule", "operations_as"):
            self._check(name, get_args(hints[name]), getattr(self, name) in get_args(hints[name]))
        for name, least in (("lora_rank", 0), ("lora_alpha", 1), ("max_prompt_tokens", 1),
                            ("max_new_tokens", 1)):
            value = getattr(self, name)
            default = name != "lora_rank" and value is None
            whole = type(value) is int and value >= least
            self._check(name, f"a whole number from {least}", default or whole)
        share = self.gpu_memory_utilization
        self._check("gpu_memory_utilization", "a number above 0 and below 1", 0 < share < 1)
        if self.lora_alpha is not None and not self.lora_rank:
            raise ValueError(
                f"ModelSettings: lora_alpha is {self.lora_alpha} and lora_rank is 0, so there is "
                "no adapter to scale; give a lora_rank, or leave lora_alpha out"
            )
        if self.fast_inference and self.loader != "unsloth":
            raise ValueError(
                f"ModelSettings: fast_inference needs loader 'unsloth', got {self.loader!r}; with "
                "the loader transformers leave it out"
            )

    def _check(self, name: str, expected: object, fits: bool) -> None:
        if not fits:
            said = " or ".join(map(repr, expected)) if isinstance(expected, tuple) else expected
            raise ValueError(f"ModelSettings: {name} is {getattr(self, name)!r}, expected {said}")

    def trainer_arguments(self) -> dict[str, Any]:
        """Return the fields of TRL's GRPOConfig that follow from how the model was loaded.

        Unsloth checkpoints gradients by itself, and its model must not be told to a second time.
        """
        import torch

        half = self.precision != "auto" or self.loader == "unsloth"
        return {
            "bf16": half and torch.cuda.is_available(),
            "gradient_checkpointing": self.gradient_checkpointing and self.loader != "unsloth",
            "use_vllm": self.fast_inference,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": self.gpu_memory_utilization,
        }


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Silence the bars of reading and writing weights: they are noise in a notebook."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()


def checkpoint_folder(path_or_name: str | Path) -> Path | None:
    """Return the folder that `load_model` loads from, `None` for a name on the hub."""
    source = TINY_MANAGER if path_or_name == "tiny" else path_or_name
    folders = (Path(source), repository_root() / source)
    return next((folder for folder in folders if folder.is_dir()), None)


def import_unsloth() -> Any:
    """Return the module unsloth, imported for the first time where it was not yet.

    Raises:
        RuntimeError: there is no CUDA device, or it is not installed.
    """
    import torch

    if not torch.cuda.is_available():
        raise RuntimeError(
            "Unsloth needs a CUDA device and there is none; train without it (loader transformers)"
        )
    try:
        import unsloth
    except ImportError as error:
        raise RuntimeError(
            f"Unsloth cannot be imported ({error}); install the gpu extra: pip install -e .[gpu]"
        ) from error
    return unsloth


def load_model(
    path_or_name: str | Path, settings: ModelSettings, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return model and tokenizer, on the GPU where there is one, with the adapter that the folder
    holds or the settings ask for; an adapter stays trainable. `seed` draws a new one's weights.

    Raises:
        ValueError: there is no such checkpoint, it cannot be loaded, or its adapter has another
            rank than the settings.
        RuntimeError: Unsloth, or 4 bits, was asked for and cannot be had here.
    """
    folder = checkpoint_folder(path_or_name)
    held = None if folder is None else _held_adapter(folder)
    if held is not None and settings.lora_rank not in (0, held["r"]):
        raise ValueError(
            f"load_manager: {str(path_or_name)!r} holds an adapter of rank {held['r']}, got "
            f"lora_rank {settings.lora_rank}; give its rank, or 0 to take it as it is"
        )
    load = _with_unsloth if settings.loader == "unsloth" else _with_transformers
    try:
        return load(str(folder or path_or_name), held, settings, seed)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"load_manager: {str(path_or_name)!r} could not be loaded as a causal language model "
            f"({str(error).splitlines()[0]}). Expected 'tiny', a folder with config.json, "
            "model.safetensors and tokenizer.json, one with an adapter, or a model's name on the "
            "hub while there is a network"
        ) from error


def _held_adapter(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of the adapter that a folder holds, `None` where it holds none."""
    path = folder / "adapter_config.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def _with_transformers(
    source: str, held: dict[str, Any] | None, settings: ModelSettings, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(source)
    base = held["base_model_name_or_path"] if held else source
    with no_progress_bars():
        model = AutoModelForCausalLM.from_pretrained(
            str(checkpoint_folder(base) or base), **_weights(settings.precision)
        )
    if settings.precision != "4bit":  # which transformers has put where it belongs
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    if held:
        from peft import PeftModel

        model = PeftModel.from_pretrained(model, source, is_trainable=True)
    elif settings.lora_rank:
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **_lora(settings)))
    return model, tokenizer


def _weights(precision: Precision) -> dict[str, Any]:
    """Return `from_pretrained`'s arguments for a precision."""
    import torch

    if precision != "4bit":
        return {"dtype": "auto" if precision == "auto" else torch.bfloat16}
    if not torch.cuda.is_available():
        raise RuntimeError(
            "precision 4bit needs a CUDA device and there is none; use bf16 or auto"
        )
    from transformers import BitsAndBytesConfig

    try:
        quantization = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    except ImportError as error:
        raise RuntimeError(
            f"precision 4bit needs bitsandbytes ({error}); install the gpu extra: "
            "pip install -e .[gpu]"
        ) from error
    return {"dtype": torch.bfloat16, "quantization_config": quantization, "device_map": {"": 0}}


def _lora(settings: ModelSettings) -> dict[str, Any]:
    """Return what peft and Unsloth are both told of a new adapter."""
    return {
        "r": settings.lora_rank, "lora_alpha": settings.lora_alpha or 2 * settings.lora_rank,
        "target_modules": list(TARGET_MODULES), "lora_dropout": 0.0, "bias": "none",
        "use_rslora": False, "init_lora_weights": True,
    }


def _with_unsloth(
    source: str, held: dict[str, Any] | None, settings: ModelSettings, seed: int
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    unsloth = import_unsloth()
    import torch

    rank = held["r"] if held else settings.lora_rank
    four_bits = settings.precision == "4bit"
    checkpointing = "unsloth" if settings.gradient_checkpointing else False
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=source,
        use_exact_model_name=True,  # else another checkpoint than the one named is fetched
        max_seq_length=(settings.max_prompt_tokens or MAX_PROMPT_TOKENS)
        + (settings.max_new_tokens or MAX_NEW_TOKENS),
        dtype=None if settings.precision == "auto" else torch.bfloat16,
        load_in_4bit=four_bits,
        load_in_8bit=False,
        load_in_16bit=not four_bits and rank > 0,
        full_finetuning=not four_bits and rank == 0 and not settings.fast_inference,
        use_gradient_checkpointing=checkpointing,
        fast_inference=settings.fast_inference,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        float8_kv_cache=False,
        max_lora_rank=rank or 64,  # vLLM's room for one; without an adapter it holds none
        random_state=seed,
    )
    if not held and settings.lora_rank:
        model = unsloth.FastLanguageModel.get_peft_model(
            model, **_lora(settings), use_gradient_checkpointing=checkpointing, random_state=seed,
            loftq_config={},
        )
    return model, tokenizer
