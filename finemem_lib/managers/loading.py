"""Load a causal language model for training, with transformers or Unsloth, whole or with LoRA.

A folder with ``adapter_config.json`` holds only an adapter; its base model is loaded from the
source named in that file.

Unsloth patches transformers, peft and TRL when it is imported, so `import_unsloth` runs before they
are used. Both calls to Unsloth pass every argument that affects the loaded model, because its
defaults (4 bits, rank 16, seed 3407, another checkpoint than the named one) differ from ours.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_type_hints

from finemem_lib.util.provenance import FETCHED, workbench_root
from finemem_lib.util.validation import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from finemem_lib.data.planted import World

SHIPPED_MANAGERS = {
    "tiny": "data/tiny_manager",
    "tiny-paraphrased": "data/tiny_manager_paraphrased",
    "tiny-layers": "data/tiny_layers_manager",
    "tiny-structured": "data/tiny_structured_manager",
    "tiny-layers-structured": "data/tiny_layers_structured_manager",
    "smollm2": "data/smollm2_manager",
    "smollm2-trained": "data/smollm2_trained",
}
"""Folders of the shipped managers by name, relative to the repository root: warm starts, and an
adapter that GRPO trained. Those of SmolLM2 are adapters; its weights must be fetched once."""

TINY_WORLDS: dict[str, World] = {
    "tiny": "plain",
    "tiny-paraphrased": "paraphrased",
    "tiny-layers": "plain",
    "tiny-structured": "plain",
    "tiny-layers-structured": "plain",
}
"""The planted world that each tiny manager reads."""

LAYERED_MANAGERS = ("tiny-layers", "tiny-layers-structured")
"""The shipped managers whose operations are for a layered memory."""

STRUCTURED_MANAGERS = ("tiny-structured", "tiny-layers-structured")
"""Those that also read the streams of `data.planted_layers`."""

MAX_PROMPT_TOKENS, MAX_NEW_TOKENS, BATCH_SIZE = 4096, 1024, 8
"""Default lengths of prompt and completion, in tokens, and default batch size outside training; the
tiny manager has other defaults."""

TARGET_MODULES = (
    "q_proj",
    "k_proj",
    "v_proj",
    "o_proj",
    "gate_proj",
    "up_proj",
    "down_proj",
)
"""The linear layers of a Qwen3 or Llama block; each gets an adapter."""

Loader = Literal["transformers", "unsloth"]
Precision = Literal["auto", "bf16", "4bit"]
MemoryRule = Literal["recent", "relevant", "recent+relevant"]
ChunkRule = Literal["head", "head+tail"]
OperationsAs = Literal["json", "tools", "quotes", "constrained-quotes", "matched-quotes", "calls"]
CONSTRAINED = ("constrained-quotes", "matched-quotes")
"""Forms of operations whose decoding is constrained by a grammar."""


@dataclass(frozen=True, slots=True)
class ModelSettings:
    """Settings to load, prompt and train a language model as memory manager.

    Trained weights are always held in single precision, whatever `precision` is.

    Attributes:
        loader: "transformers" or "unsloth".
        precision: "auto", the checkpoint's precision, but single precision on a CPU without bf16
            products (Unsloth: bf16 on every GPU that supports it); "bf16"; or "4bit" (NF4, frozen,
            so that only an adapter can be trained; needs CUDA).
        lora_rank: Rank of the adapter on every linear layer, at least 0; 0 trains all weights.
        lora_alpha: Scale of the adapter, which is lora_alpha / lora_rank; default 2 x rank.
        lora_layers: Number of layers, counted from the top, that get an adapter or, if the
            checkpoint holds an adapter, continue training it; default all. The frozen layers below
            are then computed once per update, see `frozen_layers`.
        gradient_checkpointing: Compute activations again instead of keeping them.
        fast_inference: Sample the rollouts of training with vLLM inside Unsloth. Outside training,
            in tests and benchmarks, completions do not come from vLLM: the model's own `generate`
            samples them in the remaining GPU memory. It shares the weights with vLLM and applies
            the current adapter. A saved manager is loaded without vLLM.
        gpu_memory_utilization: vLLM's share of the GPU memory, above 0 and below 1.
        max_prompt_tokens: Longest prompt in the model's own tokens (default 4096; the tiny manager
            has another default).
        max_new_tokens: Longest completion (default 1024; the tiny manager has another default).
        batch_size: Prompts sampled at a time outside training (default 8; the tiny manager: 128).
        memory_rule: Which items a prompt shows when not all fit, see `PromptBuilder`.
        chunk_rule: Which part of a chunk it shows when it is too long, see `PromptBuilder`.
        operations_as: Operations are a JSON list ("json"), tool calls of the model's chat template
            ("tools"), or a JSON list whose contents are sentences of the chunk, quoted by their
            number ("quotes", not in the paper); of which "constrained-quotes" samples only what
            the memory can apply, and "matched-quotes" also addresses only records that a sentence
            of the chunk may revise, see `grammar`; or Mem-alpha's calls on a layered memory as a
            JSON list ("calls").

    Raises:
        ValueError: A setting is out of range, or two settings contradict each other.

    >>> ModelSettings(lora_alpha=16)
    Traceback (most recent call last):
    ...
    ValueError: ModelSettings: lora_alpha is 16 and lora_rank is 0, so there is no adapter ...
    """

    loader: Loader = "transformers"
    precision: Precision = "auto"
    lora_rank: int = 0
    lora_alpha: int | None = None
    lora_layers: int | None = None
    gradient_checkpointing: bool = False
    fast_inference: bool = False
    gpu_memory_utilization: float = 0.5
    max_prompt_tokens: int | None = None
    max_new_tokens: int | None = None
    batch_size: int | None = None
    memory_rule: MemoryRule = "recent"
    chunk_rule: ChunkRule = "head"
    operations_as: OperationsAs = "json"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for name in ("loader", "precision", "memory_rule", "chunk_rule", "operations_as"):
            self._check(name, get_args(hints[name]), getattr(self, name) in get_args(hints[name]))
        for name, least in (
            ("lora_rank", 0),
            ("lora_alpha", 1),
            ("lora_layers", 1),
            ("max_prompt_tokens", 1),
            ("max_new_tokens", 1),
            ("batch_size", 1),
        ):
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
        if self.operations_as in CONSTRAINED and self.loader == "unsloth":
            raise ValueError(
                f"ModelSettings: operations_as is {self.operations_as!r}, which needs this "
                "library's own sampling, and the loader 'unsloth' samples by itself; take "
                "'quotes', or the loader transformers"
            )
        if self.lora_layers is not None and (not self.lora_rank or self.loader == "unsloth"):
            raise ValueError(
                f"ModelSettings: lora_layers is {self.lora_layers}, expected a lora_rank with it "
                "and the loader transformers; give them, or leave lora_layers out"
            )
        if self.fast_inference and self.loader != "unsloth":
            raise ValueError(
                f"ModelSettings: fast_inference needs loader 'unsloth', got {self.loader!r}; with "
                "the loader transformers leave it out"
            )

    def _check(self, name: str, expected: object, fits: bool) -> None:
        if not fits:
            range_ = " or ".join(map(repr, expected)) if isinstance(expected, tuple) else expected
            raise ValueError(f"ModelSettings: {name} is {getattr(self, name)!r}, expected {range_}")

    def trainer_arguments(self, model: PreTrainedModel) -> dict[str, Any]:
        """Return the fields of TRL's GRPOConfig that depend on the loaded model.

        Unsloth implements gradient checkpointing itself, so TRL's must be off for its models.

        Args:
            model: The model loaded with these settings.
        """
        import torch

        stored = {value.dtype for value in model.parameters()}
        half = self.precision != "auto" or self.loader == "unsloth" or torch.bfloat16 in stored
        return {
            "bf16": half and torch.cuda.is_available(),
            "gradient_checkpointing": self.gradient_checkpointing and self.loader != "unsloth",
            "use_vllm": self.fast_inference,
            "vllm_mode": "colocate",
            "vllm_gpu_memory_utilization": self.gpu_memory_utilization,
        }


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Disable transformers' progress bars for reading and writing weights."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]  # it has no types


def checkpoint_folder(path_or_name: str | Path) -> Path | None:
    """Return the folder that `load_model` loads from, or `None` for a name on the hub.

    Args:
        path_or_name: One of `SHIPPED_MANAGERS`, a name on the hub, or a folder; a relative folder
            is also searched for in the repository.
    """
    source = SHIPPED_MANAGERS.get(str(path_or_name), path_or_name)
    folders = (Path(source), workbench_root() / source)
    return next((folder for folder in folders if folder.is_dir()), None)


def split_revision(name: str | Path) -> tuple[str, str | None]:
    """Return a name on the hub and its revision (a commit, a branch or a tag), if any.

    Args:
        name: NAME or NAME@REVISION.

    >>> split_revision("Qwen/Qwen3-4B@1cfa9a7"), split_revision("Qwen/Qwen3-4B")
    (('Qwen/Qwen3-4B', '1cfa9a7'), ('Qwen/Qwen3-4B', None))
    """
    name, _, revision = str(name).partition("@")
    return name, revision or None


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its type if the message is empty.

    Args:
        error: Any error.

    >>> first_line(ValueError("too dark\\nreally")), first_line(KeyError())
    ('too dark', 'KeyError')
    """
    return str(error).partition("\n")[0] or type(error).__name__


def import_unsloth() -> Any:
    """Import Unsloth and return the module.

    Raises:
        RuntimeError: There is no CUDA device, or Unsloth is not installed.
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
    """Return model and tokenizer, on the GPU if there is one.

    If the folder holds an adapter or the settings request one, the model has a trainable adapter.
    An adapter records the commit of its base model and is not loaded on another commit.

    Args:
        path_or_name: One of `SHIPPED_MANAGERS`, a folder, or a name on the hub, with or without a
            revision ("owner/name@COMMIT").
        settings: Settings of the model.
        seed: Seed of the weights of a new adapter.

    Raises:
        ValueError: There is no such checkpoint, it cannot be loaded, it does not fit the settings
            (`check_checkpoint`), or its adapter was trained on another commit.
        RuntimeError: The settings request Unsloth or 4 bits, which are not available here.
        MemoryError: vLLM does not fit into the GPU memory.
    """
    check_checkpoint(path_or_name, settings)
    folder = checkpoint_folder(path_or_name)
    source, revision = (str(folder), None) if folder else split_revision(path_or_name)
    held = None if folder is None else held_adapter(folder)
    base = str(path_or_name) if held is None else held["base_model_name_or_path"]
    _check_folders(path_or_name, base, settings)
    load = _with_unsloth if settings.loader == "unsloth" else _with_transformers
    try:
        model, tokenizer = load(source, revision, held, settings, seed)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        if settings.fast_inference and any(sign in str(error) for sign in VLLM_HAS_NO_ROOM):
            raise _vllm_out_of_memory(error, settings) from error
        if isinstance(error, RuntimeError):
            raise
        raise ValueError(
            f"load_manager: {str(path_or_name)!r} could not be loaded as a causal language model "
            f"({first_line(error)}). Expected 'tiny', a folder with config.json, "
            "model.safetensors and tokenizer.json, one with an adapter, or a model's name on the "
            "hub, alone or as NAME@REVISION, while there is a network"
        ) from error
    commit = getattr(model.config, "_commit_hash", None)
    if held:
        _check_commit(path_or_name, held, commit)
    elif commit and settings.lora_rank:
        adapters: Any = model.peft_config
        adapters["default"].revision = commit
    return model, tokenizer


def _check_folders(path_or_name: str | Path, base: str, settings: ModelSettings) -> None:
    """Raise an error if the folder of a checkpoint or of its base model cannot be used.

    Raises:
        ValueError: Weights are pickled; or the base model must be fetched first; or it has fewer
            positions than the settings ask of Unsloth.
    """
    folder, base_folder = checkpoint_folder(path_or_name), checkpoint_folder(base)
    for place in (folder, base_folder):
        if place is not None:
            _refuse_pickle(place)
    if base.startswith(FETCHED) and base_folder is None:
        raise ValueError(
            f"load_manager: {str(path_or_name)!r} needs the model in {base}, which is not there; "
            f"run `finemem fetch {base.removeprefix(FETCHED)}` once"
        )
    if settings.loader == "unsloth" and base_folder is not None:
        _check_length(base_folder, settings)


def _vllm_out_of_memory(error: BaseException, settings: ModelSettings) -> MemoryError:
    """Return the error to raise where vLLM does not fit into the GPU memory."""
    return MemoryError(
        f"load_manager: vLLM is out of memory ({first_line(error)}). Its share of the GPU memory, "
        f"weights included, is gpu_memory_utilization, {settings.gpu_memory_utilization:g}: lower "
        "it where less is free, or end other programs on the GPU; raise it where vLLM's cache has "
        "no room, or lower max_prompt_tokens; or set fast_inference to false"
    )


def _check_commit(path_or_name: str | Path, held: dict[str, Any], commit: str | None) -> None:
    """Raise an error if an adapter was trained on another commit than the loaded one.

    Raises:
        ValueError: The commits differ.
    """
    if held.get("revision") and commit not in (None, held["revision"]):
        raise ValueError(
            f"load_manager: the adapter in {str(path_or_name)!r} was trained on "
            f"{held['base_model_name_or_path']}@{held['revision']}, and commit {commit} was "
            "loaded: vLLM inside Unsloth loads the default branch; take fast_inference false"
        )


def _refuse_pickle(folder: Path) -> None:
    """Raise an error if a checkpoint's weights are pickled: reading them could run code."""
    pickled = sorted(folder.glob("*.bin"))
    if pickled and not any(folder.glob("*.safetensors")):
        raise ValueError(
            f"load_manager: {folder} holds pickled weights ({pickled[0].name}), expected "
            "safetensors, because reading a pickle can run code; save the model again with "
            "save_pretrained of transformers or peft, which writes safetensors"
        )


VLLM_HAS_NO_ROOM = (
    "Free memory on device",
    "No available memory for the cache blocks",
    "larger than the available KV cache memory",
)
"""Parts of vLLM's error messages if the GPU memory or its share is too small."""


def check_checkpoint(path_or_name: str | Path, settings: ModelSettings) -> None:
    """Check that a checkpoint fits the settings, without loading it.

    Args:
        path_or_name: As for `load_model`.
        settings: Settings of the model.

    Raises:
        ValueError: Its adapter has another rank; or the settings freeze the weights and there is
            no adapter to train; or vLLM would load another revision.

    >>> check_checkpoint("owner/name", ModelSettings(precision="4bit"))
    Traceback (most recent call last):
    ...
    ValueError: load_manager: precision 4bit keeps the weights frozen, and ...
    """
    folder = checkpoint_folder(path_or_name)
    held = None if folder is None else held_adapter(folder)
    if held is not None and settings.lora_rank not in (0, held["r"]):
        raise ValueError(
            f"load_manager: {str(path_or_name)!r} holds an adapter of rank {held['r']}, got "
            f"lora_rank {settings.lora_rank}; give its rank, or 0 for the rank of the adapter"
        )
    for asked, why in (
        (settings.precision == "4bit", "precision 4bit keeps the weights frozen"),
        (
            settings.fast_inference,
            "fast_inference keeps the weights frozen, because vLLM uses them",
        ),
    ):
        if asked and held is None and not settings.lora_rank:
            raise ValueError(
                f"load_manager: {why}, and lora_rank is 0, so that nothing could be trained; give "
                "a lora_rank, or leave that setting out"
            )
    if settings.fast_inference and folder is None and split_revision(path_or_name)[1]:
        raise ValueError(
            f"load_manager: {str(path_or_name)!r} names a revision, and vLLM inside Unsloth loads "
            "the default branch; download the revision and give its folder, or take "
            "fast_inference false"
        )


def _check_length(folder: Path, settings: ModelSettings) -> None:
    """Raise an error for lengths at which Unsloth would rescale the rotary embedding.

    Raises:
        ValueError: Prompt and completion together have more tokens than the model has positions.
    """
    asked = (settings.max_prompt_tokens or MAX_PROMPT_TOKENS) + (
        settings.max_new_tokens or MAX_NEW_TOKENS
    )
    try:
        said = parse_json((folder / "config.json").read_bytes())
    except (OSError, ValueError):
        return  # loading raises a better error
    positions = said.get("max_position_embeddings") if isinstance(said, dict) else None
    if type(positions) is int and asked > positions:
        raise ValueError(
            f"load_manager: max_prompt_tokens and max_new_tokens add up to {asked}, expected at "
            f"most the {positions} positions of {str(folder)!r}: Unsloth would scale its rotary "
            "embedding without a warning; lower one of them, or load with transformers"
        )


def single_precision(model: PreTrainedModel) -> None:
    """Convert the trained weights to single precision.

    In bf16, rounding removes an Adam step smaller than about 1/512 of a weight, and thus most of
    the training; and TRL casts adapters on a 4-bit model to bf16.

    Args:
        model: The model, changed in place.
    """
    import torch

    for value in model.parameters():
        if value.requires_grad and value.dtype in (torch.bfloat16, torch.float16):
            value.data = value.data.float()


@contextmanager
def adapter_in_half_precision(model: Any) -> Iterator[None]:
    """Compute the adapter of a bf16 model in bf16 on a CPU; its stored weights are unchanged.

    Casting the adapter's input to single precision would take a third of the time of a pass.

    Args:
        model: A causal language model, alone or with adapters.
    """
    import torch

    held = hasattr(model, "peft_config") and model.device.type == "cpu"
    if not held or model.get_input_embeddings().weight.dtype != torch.bfloat16:
        yield
        return
    from peft.helpers import disable_input_dtype_casting

    with disable_input_dtype_casting(model), torch.autocast("cpu", torch.bfloat16):
        yield


def held_adapter(folder: Path) -> dict[str, Any] | None:
    """Return the configuration of the adapter in a folder, or `None` if there is no adapter.

    Args:
        folder: Folder of a checkpoint.

    Raises:
        ValueError: The configuration cannot be read, or is not of a LoRA adapter.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        return None
    try:
        held = parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise ValueError(
            f"load_manager: {path} cannot be read ({error}); save the adapter again"
        ) from error
    if (
        not isinstance(held, dict)
        or not isinstance(held.get("base_model_name_or_path"), str)
        or type(held.get("r")) is not int
    ):
        raise ValueError(
            f"load_manager: {path} lacks base_model_name_or_path, a text, or r, a whole number; "
            "expected the configuration of a LoRA adapter, as peft writes it"
        )
    return held


def _with_transformers(
    source: str,
    revision: str | None,
    held: dict[str, Any] | None,
    settings: ModelSettings,
    seed: int,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    base, base_revision = _base(source, revision, held)
    # An adapter stored without a tokenizer uses the tokenizer of its base model.
    spare = held is not None and not Path(source, "tokenizer_config.json").is_file()
    tokenizer = AutoTokenizer.from_pretrained(
        base if spare else source, revision=base_revision if spare else revision
    )
    revision = base_revision
    with no_progress_bars():
        model: Any = AutoModelForCausalLM.from_pretrained(
            base, revision=revision, use_safetensors=True, **_weights(settings.precision)
        )
    if settings.precision != "4bit":  # transformers has already placed a 4-bit model
        model = model.to("cuda" if torch.cuda.is_available() else "cpu")
    _read_head_as_one_matrix(model)
    if held:
        from peft import PeftModel

        layers = upper_layers(model.config.num_hidden_layers, settings.lora_layers)
        model = PeftModel.from_pretrained(model, source, is_trainable=True)
        if layers is not None:
            _freeze_below(model, layers[0])
    elif settings.lora_rank:
        from peft import LoraConfig, get_peft_model

        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = upper_layers(model.config.num_hidden_layers, settings.lora_layers)
            adapter = LoraConfig(
                task_type="CAUSAL_LM", layers_to_transform=layers, **_lora(settings)
            )
            model = get_peft_model(model, adapter)
    return model, tokenizer


def _read_head_as_one_matrix(model: Any) -> None:
    """Make the input of the head contiguous.

    Torch would multiply a slice, such as the last token of every row, as a batch, with a copy of
    the whole head for every row."""
    head = model.get_output_embeddings()
    if head is not None:
        head.register_forward_pre_hook(lambda module, states: (states[0].contiguous(),))


def upper_layers(layers: int, count: int | None) -> list[int] | None:
    """Return the indices of the layers that get an adapter; `None` for all.

    Args:
        layers: Number of layers of the model.
        count: Number of layers from the top; `None` for all.

    Raises:
        ValueError: The model has fewer layers.

    >>> upper_layers(30, 2), upper_layers(30, None)
    ([28, 29], None)
    """
    if count is None:
        return None
    if count > layers:
        raise ValueError(f"lora_layers is {count}, expected at most the model's {layers} layers")
    return list(range(layers - count, layers))


def _freeze_below(model: PreTrainedModel, layer: int) -> None:
    """Freeze the adapter in the layers below `layer`, and cast it to the model's precision."""
    for name, value in model.named_parameters():
        if value.requires_grad and layer_of(name) < layer:
            value.requires_grad = False
            value.data = value.data.to(model.dtype)


def layer_of(name: str) -> int:
    """Return the index of the layer of a parameter, from 0; 0 for embeddings and head.

    Args:
        name: Name of the parameter.

    >>> layer_of("base_model.model.model.layers.29.mlp.up_proj.weight"), layer_of("lm_head.weight")
    (29, 0)
    """
    parts = name.split(".")
    return int(parts[parts.index("layers") + 1]) if "layers" in parts else 0


def cpu_multiplies_bf16() -> bool:
    """Return whether this CPU has instructions for bf16 products.

    Without them (most laptops) torch computes bf16 products about nine times more slowly than
    products in single precision.
    """
    import torch

    return any(has is True for name, has in torch.cpu.get_capabilities().items() if "bf16" in name)


def _weights(precision: Precision) -> dict[str, Any]:
    """Return `from_pretrained`'s arguments for a precision."""
    import torch

    if precision == "bf16":
        return {"dtype": torch.bfloat16}
    if precision == "auto":
        stored = torch.cuda.is_available() or cpu_multiplies_bf16()
        return {"dtype": "auto" if stored else torch.float32}
    if not torch.cuda.is_available():
        raise RuntimeError("precision 4bit needs a CUDA device and there is none; use bf16 or auto")
    from transformers import BitsAndBytesConfig

    try:
        quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]  # it has no types
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
        )
    except ImportError as error:
        raise RuntimeError(
            f"precision 4bit needs bitsandbytes ({error}); install the gpu extra: "
            "pip install -e .[gpu]"
        ) from error
    return {"dtype": torch.bfloat16, "quantization_config": quantization, "device_map": {"": 0}}


def _lora(settings: ModelSettings) -> dict[str, Any]:
    """Return the arguments of a new adapter that peft and Unsloth have in common."""
    return {
        "r": settings.lora_rank,
        "lora_alpha": settings.lora_alpha or 2 * settings.lora_rank,
        "target_modules": list(TARGET_MODULES),
        "lora_dropout": 0.0,
        "bias": "none",
        "use_rslora": False,
        "init_lora_weights": True,
    }


def _with_unsloth(
    source: str,
    revision: str | None,
    held: dict[str, Any] | None,
    settings: ModelSettings,
    seed: int,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model with Unsloth and add a new adapter or the stored one.

    Unsloth's own loader of adapters ignores the revision of their base model.
    """
    unsloth = import_unsloth()
    import torch

    base, revision = _base(source, revision, held)
    rank = held["r"] if held else settings.lora_rank
    four_bits = settings.precision == "4bit"
    checkpointing = "unsloth" if settings.gradient_checkpointing else False
    model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
        model_name=base,
        revision=revision,
        use_exact_model_name=True,  # else Unsloth loads another checkpoint than the named one
        max_seq_length=(settings.max_prompt_tokens or MAX_PROMPT_TOKENS)
        + (settings.max_new_tokens or MAX_NEW_TOKENS),
        dtype=None if settings.precision == "auto" else torch.bfloat16,
        load_in_4bit=four_bits,
        load_in_8bit=False,
        load_in_16bit=not four_bits and rank > 0,
        full_finetuning=rank == 0,
        float32_mixed_precision=True,  # else all weights would be trained in bf16
        use_gradient_checkpointing=checkpointing,
        fast_inference=settings.fast_inference,
        gpu_memory_utilization=settings.gpu_memory_utilization,
        float8_kv_cache=False,
        max_lora_rank=rank or 64,  # largest rank that vLLM reserves memory for
        random_state=seed,
    )
    if rank:
        new = _lora(settings)
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            **{name: held.get(name, value) for name, value in new.items()} if held else new,
            use_gradient_checkpointing=checkpointing,
            random_state=seed,
            loftq_config={},
        )
    if held:
        from peft.utils import load_peft_weights, set_peft_model_state_dict
        from transformers import AutoTokenizer

        set_peft_model_state_dict(model, load_peft_weights(source, device="cpu"))
        tokenizer = AutoTokenizer.from_pretrained(source)
    return model, tokenizer


def _base(source: str, revision: str | None, held: dict[str, Any] | None) -> tuple[str, str | None]:
    """Return the base model to load and its revision; an adapter's configuration names both."""
    if held is None:
        return source, revision
    base = held["base_model_name_or_path"]
    return str(checkpoint_folder(base) or base), held.get("revision")
