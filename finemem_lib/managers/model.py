"""Memory managers: scripted ones that need no model, and any causal language model behind a prompt.

All of them answer an `Observation` with the text of a JSON list that goes through the same parser,
so a scripted manager is judged by the same rules as a learned one.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.managers import tiny
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
)
from finemem_lib.managers.scripted import SCRIPTED
from finemem_lib.seeds import stable_seed
from finemem_lib.util.files import write_json
from finemem_lib.util.validation import parse_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

SETTINGS_FILE = "manager_settings.json"
"""File in a saved manager's folder: how it was loaded and prompted, unless by default."""

Sample = Callable[..., tuple[list[tuple[int, ...]], Sequence[tuple[float, ...] | None]]]
"""A function with the arguments of `sample_completions`."""


class ModelManager:
    """A causal language model as memory manager: prompt, sample, decode, JSON or tool calls.

    Sampling is from the whole distribution; prompts of a batch are padded on the left, and the pad
    token is never sampled. Every completion carries its prompt ids, its completion ids (with the
    end token where there is one) and their log-probabilities at the temperature.

    Args:
        model: The language model.
        tokenizer: Its tokenizer.
        builder: Renders the prompts and reads the completions.
        name: Name in records.
        temperature: Of the sampling, at least 0; 0 is greedy.
        max_new_tokens: Most tokens of a completion.
        batch_size: Most prompts sampled at a time.
        sample: Samples the completions.
        loaded_as: How the model was loaded; `save` writes it into the folder.
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
        """Settings that are recorded in its trajectories."""
        return {
            **self.builder.settings,
            "max_new_tokens": self.max_new_tokens,
            "temperature": self.temperature,
        }

    @property
    def commit(self) -> str | None:
        """The commit of the hub that the model was loaded from, `None` for a folder's."""
        return getattr(self.model.config, "_commit_hash", None)

    def save(self, folder: Path) -> None:
        """Write model, tokenizer and settings, so that `load_manager` loads them again.

        Of a model with an adapter only the adapter is written, which names its checkpoint.

        Args:
            folder: Folder to write into.
        """
        adapter = hasattr(self.model, "peft_config")
        # Left to itself peft asks the hub whether the vocabulary was resized.
        own: dict[str, Any] = {"save_embedding_layers": False} if adapter else {}
        with no_progress_bars():
            self.model.save_pretrained(folder, **own)
        self.tokenizer.save_pretrained(folder)
        if self.loaded_as not in (None, ModelSettings()):
            write_json(folder / SETTINGS_FILE, dataclasses.asdict(self.loaded_as))

    def act(self, observations: Sequence[Observation], seed: int) -> list[Completion]:
        """Return one completion per observation; the same seed and batch give the same ones.

        Args:
            observations: What is seen at this step, one per rollout.
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
                ids, logprobs = self.sample(
                    self.model,
                    [prompt.ids for prompt in batch],
                    max_new_tokens=self.max_new_tokens,
                    temperature=self.temperature,
                    pad_token_id=self.tokenizer.pad_token_id,
                    end_token_ids=self.end_token_ids,
                    seed=stable_seed(seed, start),
                )
                completions += self.builder.complete(batch, ids, logprobs)
        finally:
            self.model.train(training)
        return completions

    def logprobs(
        self, prompts: Sequence[Sequence[int]], completions: Sequence[Sequence[int]]
    ) -> list[tuple[float, ...] | None]:
        """Return the log-probabilities that this manager gives to the tokens of completions.

        Args:
            prompts: Token ids of the prompts.
            completions: Token ids of one completion per prompt, by this manager or another.

        Returns:
            One value per token, in nats, at the manager's temperature (at 1 where that is 0);
            `None` for a completion with a value that is not finite.
        """
        pad, ends = self.tokenizer.pad_token_id, self.end_token_ids
        training = self.model.training
        self.model.train(False)
        try:
            return completion_logprobs(
                self.model,
                prompts,
                completions,
                never=() if pad in ends else (pad,),
                temperature=self.temperature,
            )
        finally:
            self.model.train(training)

    @property
    def end_token_ids(self) -> list[int]:
        """Tokens that end a completion."""
        ends = self.model.generation_config.eos_token_id
        return ends if isinstance(ends, list) else [] if ends is None else [ends]


def load_manager(
    path_or_name: str | Path = "tiny",
    *,
    model: ModelSettings | None = None,
    seed: int = 0,
    **settings: Any,
) -> ModelManager:
    """Load a causal language model as memory manager, on the GPU where there is one.

    A folder that holds an adapter is loaded as the model it was trained on with the adapter on it.

    Under Unsloth completions come from its own `generate`, because it keeps keys and values in a
    form of its own, and their log-probabilities from a forward pass. That holds with
    `fast_inference` too: vLLM samples the rollouts of training only, and what this manager samples
    takes memory in addition to vLLM's share, `batch_size` prompts at a time. Without `model`, a
    saved manager is loaded without vLLM.

    Args:
        path_or_name: A folder (a relative one is also looked for in the repository), a name on the
            hub, which may carry its revision (NAME@COMMIT), or one of the warm starts that are
            shipped: "tiny" for the plain planted world, "tiny-paraphrased" for the other, "smollm2"
            for real text.
        model: How it is loaded and prompted; default: as the manager that `save` wrote there.
        seed: Seed of the weights of a new adapter.
        **settings: As in `ModelManager`, such as `temperature`.

    Raises:
        ValueError: there is no such checkpoint, it cannot be loaded, its own settings cannot be
            read, or the settings do not fit it.
        RuntimeError: Unsloth, or 4 bits, was asked for and cannot be had here.
        MemoryError: vLLM has no room on the card.

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
    """Return how a manager was loaded when it was saved, the default where it was not saved here.

    vLLM samples rollouts of training only; a saved manager is loaded to be used.

    Args:
        path_or_name: As for `load_manager`.

    Raises:
        ValueError: The settings of the folder cannot be read.
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
    """Return the manager of that name: a scripted one, or a tiny one.

    Args:
        name: One of `SCRIPTED` or of `SHIPPED_MANAGERS`.
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
    if name in SCRIPTED:
        return SCRIPTED[name]()
    if name in SHIPPED_MANAGERS:
        return load_manager(name, **settings)
    raise ValueError(
        f"make_manager: {name!r} is not a manager; expected one of "
        f"{', '.join(sorted([*SCRIPTED, *SHIPPED_MANAGERS]))} (other language models: load_manager)"
    )
