"""Memory managers: scripted ones without a model, and any causal language model with a prompt.

All managers answer an `Observation` with text that the same parser reads, so scripted and trained
managers are evaluated by the same rules.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.managers import tiny
from finemem_lib.managers.layered_scripted import ALL_SCRIPTED
from finemem_lib.managers.loading import (
    BATCH_SIZE,
    MAX_NEW_TOKENS,
    SHIPPED_MANAGERS,
    ModelSettings,
    checkpoint_folder,
    load_model,
    no_progress_bars,
)
from finemem_lib.managers.prompts import CompactPromptBuilder, PromptBuilder, prompt_builder
from finemem_lib.managers.protocol import Completion, MemoryManager, Observation
from finemem_lib.managers.sampling import (
    completion_logprobs,
    generate_completions,
    sample_completions,
    sample_constrained,
)
from finemem_lib.seeds import stable_seed
from finemem_lib.util.files import write_json
from finemem_lib.util.validation import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS_FILE = "manager_settings.json"
"""Name of the file with a saved manager's `ModelSettings`, written unless they are the defaults."""

Sample = Callable[..., tuple[list[tuple[int, ...]], Sequence[tuple[float, ...] | None]]]
"""A function with the arguments of `sample_completions`."""


class ModelManager:
    """A causal language model as memory manager: render, sample, decode, parse.

    Tokens are sampled from the whole distribution; the prompts of a batch are padded on the left,
    and the pad token is never sampled. Every completion has its prompt ids, its completion ids
    (with the end token, if sampled) and their log-probabilities at the temperature.

    Args:
        model: The language model.
        tokenizer: The model's tokenizer.
        builder: Renders the prompts and parses the completions.
        name: Name of the manager in records.
        temperature: Sampling temperature, at least 0; 0 is greedy.
        max_new_tokens: Largest number of tokens of a completion.
        batch_size: Largest number of prompts sampled at a time.
        sample: Function that samples the completions.
        loaded_as: Settings the model was loaded with; `save` writes them into the folder.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        builder: PromptBuilder,
        *,
        name: str,
        temperature: float = 1.0,
        max_new_tokens: int = MAX_NEW_TOKENS,
        batch_size: int = tiny.BATCH_SIZE,
        sample: Sample = sample_completions,
        loaded_as: ModelSettings | None = None,
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.builder = builder
        self.name = name
        self.temperature = temperature
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        self.sample = sample
        self.loaded_as = loaded_as

    @property
    def settings(self) -> dict[str, Any]:
        """Settings recorded in the manager's trajectories."""
        return {
            **self.builder.settings,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }

    @property
    def memory(self) -> str | None:
        """The kind of memory that its operations are for; `None` where any will do."""
        return self.builder.memory

    @property
    def commit(self) -> str | None:
        """The hub commit that the model was loaded from; `None` for a local folder."""
        return getattr(self.model.config, "_commit_hash", None)

    def save(self, folder: Path) -> None:
        """Write model, tokenizer and settings into a folder that `load_manager` can load.

        For a model with an adapter only the adapter is written; it names its base model.

        Args:
            folder: Folder to write into.
        """
        adapter = hasattr(self.model, "peft_config")
        # By default peft asks the hub whether the vocabulary was resized.
        own: dict[str, Any] = {"save_embedding_layers": False} if adapter else {}
        with no_progress_bars():
            self.model.save_pretrained(folder, **own)
        self.tokenizer.save_pretrained(folder)
        if self.loaded_as not in (None, ModelSettings()):
            write_json(folder / SETTINGS_FILE, dataclasses.asdict(self.loaded_as))

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return one completion per observation, reproducible for equal seed and observations.

        Args:
            observations: The observations at this step, one per rollout.
            seed: Seed of the sampling.

        Raises:
            ValueError: The tiny manager cannot read a chunk.
        """
        prompts = [self.builder.render(observation) for observation in observations]
        completions: list[Completion] = []
        training = self.model.training
        self.model.train(False)
        try:
            for start in range(0, len(prompts), self.batch_size):
                batch = prompts[start : start + self.batch_size]
                grammars = [prompt.grammar for prompt in batch if prompt.grammar is not None]
                sample = (
                    functools.partial(sample_constrained, grammars=grammars)
                    if grammars
                    else functools.partial(self.sample, end_token_ids=self.end_token_ids)
                )
                ids, logprobs = sample(
                    self.model,
                    [prompt.ids for prompt in batch],
                    max_new_tokens=self.max_new_tokens,
                    temperature=self.temperature,
                    pad_token_id=self.tokenizer.pad_token_id,
                    seed=stable_seed(seed, start),
                )
                completions += self.builder.complete(batch, ids, logprobs)
        finally:
            self.model.train(training)
        return completions

    def logprobs(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[tuple[float, ...] | None]:
        """Return the log-probabilities of the tokens of completions under this manager.

        Args:
            prompts: Token ids of the prompts.
            completions: Token ids of one completion per prompt, by this manager or another.

        Returns:
            One value per token, in nats, at the manager's temperature (at 1 if that is 0); `None`
            for a completion with a non-finite value, or that the manager's grammar does not allow.
        """
        pad, ends = self.tokenizer.pad_token_id, self.end_token_ids
        grammars = [self.builder.grammar(str(self.tokenizer.decode(list(ids)))) for ids in prompts]
        constrained = [grammar for grammar in grammars if grammar is not None]
        training = self.model.training
        self.model.train(False)
        try:
            return completion_logprobs(
                self.model,
                prompts,
                completions,
                never=() if pad in ends else (pad,),
                temperature=self.temperature,
                grammars=constrained or None,
            )
        finally:
            self.model.train(training)

    @property
    def end_token_ids(self) -> list[int]:
        """Ids of the tokens that end a completion."""
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]


def load_manager(
    path_or_name: str | Path = "tiny",
    *,
    model: ModelSettings | None = None,
    seed: int = 0,
    **settings: Any,
) -> ModelManager:
    """Load a causal language model as memory manager, on the GPU if there is one.

    For a folder with an adapter, the adapter's base model is loaded and the adapter added.

    With Unsloth, completions come from its own `generate`, because its KV cache has its own format,
    and their log-probabilities from a separate forward pass. This includes `fast_inference`: vLLM
    samples only the rollouts of training, and this manager's sampling, `batch_size` prompts at a
    time, needs memory in addition to vLLM's share. Without `model`, a saved manager is loaded
    without vLLM.

    Args:
        path_or_name: A folder (a relative one is also looked for in the repository), a name on the
            hub, which may carry its revision (NAME@COMMIT), or one of the warm starts that are
            shipped: "tiny" for the plain planted world, "tiny-layers" for that world on a layered
            memory, "tiny-structured" and "tiny-layers-structured" for streams that need structure
            too, "tiny-paraphrased" for the other world, "smollm2" for real text.
        model: How it is loaded and prompted; default: as the manager that `save` wrote there.
        seed: Seed of the weights of a new adapter.
        **settings: Further arguments of `ModelManager`, such as `temperature`.

    Raises:
        ValueError: there is no such checkpoint, it cannot be loaded, its stored settings cannot be
            read, or the settings do not fit it.
        RuntimeError: the settings request Unsloth or 4 bits, which are not available here.
        MemoryError: vLLM does not fit into the GPU memory.

    >>> load_manager("no/such/folder/here")
    Traceback (most recent call last):
    ...
    ValueError: load_manager: 'no/such/folder/here' could not be loaded ...
    """
    folder = checkpoint_folder(path_or_name)
    model = model or saved_settings(path_or_name)
    loaded, tokenizer = load_model(path_or_name, model, seed)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    builder = prompt_builder(tokenizer, model)
    compact = isinstance(builder, CompactPromptBuilder)
    own = {
        "sample": generate_completions if model.loader == "unsloth" else sample_completions,
        "batch_size": model.batch_size or (tiny.BATCH_SIZE if compact else BATCH_SIZE),
    }
    return ModelManager(
        loaded,
        tokenizer,
        builder,
        name=Path(folder or path_or_name).name,
        max_new_tokens=model.max_new_tokens or (tiny.MAX_NEW_TOKENS if compact else MAX_NEW_TOKENS),
        loaded_as=model,
        **(own | settings),
    )


def saved_settings(path_or_name: str | Path) -> ModelSettings:
    """Return the settings that a manager was saved with, or else the defaults.

    `fast_inference` is false in the result, because vLLM samples only the rollouts of training.

    Args:
        path_or_name: As for `load_manager`.

    Raises:
        ValueError: The settings in the folder cannot be read.
    """
    folder = checkpoint_folder(path_or_name)
    path = None if folder is None else folder / SETTINGS_FILE
    if path is None or not path.is_file():
        return ModelSettings()
    try:
        saved = parse_json(path.read_bytes())
        if not isinstance(saved, dict):
            raise ValueError(f"expected an object, got a {type(saved).__name__}")
        return ModelSettings(**saved | {"fast_inference": False})
    except (OSError, TypeError, ValueError) as error:
        raise ValueError(
            f"load_manager: {path} is not usable ({error}); expected the settings that "
            "ModelManager.save wrote; save the manager again, or correct the file, or delete it to "
            "load the manager with default settings"
        ) from None


def make_manager(name: str, **settings: Any) -> MemoryManager:
    """Return a scripted or shipped manager by name.

    Args:
        name: One of `ALL_SCRIPTED` or of `SHIPPED_MANAGERS`.
        **settings: As in `load_manager`; for the tiny ones only.

    Raises:
        ValueError: there is no manager of that name.

    >>> make_manager("insert-all").name
    'insert-all'
    >>> make_manager("insert-some")
    Traceback (most recent call last):
    ...
    ValueError: make_manager: 'insert-some' is not a manager; expected one of facts-only, ...
    """
    if name in ALL_SCRIPTED:
        return ALL_SCRIPTED[name]()
    if name in SHIPPED_MANAGERS:
        return load_manager(name, **settings)
    raise ValueError(
        f"make_manager: {name!r} is not a manager; expected one of "
        f"{', '.join(sorted([*ALL_SCRIPTED, *SHIPPED_MANAGERS]))} "
        "(other language models: load_manager)"
    )
