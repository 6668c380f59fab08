"""Estimate a training run's parameters, tokens, GPU memory and hours, by formulas only.

Sizes that follow from the architecture (parameters, adapter, KV cache) are exact. The others are
estimates: the tensors that autograd stores are counted, and times come from a roofline model, the
larger of arithmetic and memory traffic, with the efficiencies in `Assumptions`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from finemem_lib.managers.loading import BATCH_SIZE, ModelSettings

NF4_BYTES = 0.516
"""Bytes per weight in NF4 with double quantisation: 4 bits, and 0.127 bits for its block's scale
(Dettmers et al., 2023)."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """The sizes of a decoder of the Qwen3 or Llama family, named as in its config.json.

    Attributes:
        vocab_size: Number of tokens in the vocabulary.
        hidden_size: Width of a hidden state.
        intermediate_size: Width of the hidden layer of an MLP.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Number of query heads per block.
        num_key_value_heads: Number of key and value heads per block.
        head_dim: Width of a head.
        tie_word_embeddings: Whether the head shares the embedding's weights.
        qk_norm: Whether queries and keys of every head are normalised, as in Qwen3.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    tie_word_embeddings: bool = True
    qk_norm: bool = False

    @classmethod
    def of(cls, config: Any) -> ModelShape:
        """Return the sizes in a transformers configuration.

        Args:
            config: A transformers configuration object.

        Raises:
            ValueError: the model is of another family.
        """
        if config.model_type not in ("qwen3", "llama"):
            raise ValueError(
                f"the model is of the family {config.model_type!r}, expected qwen3 or llama; other "
                "families have no plan"
            )
        names = [field.name for field in dataclasses.fields(cls) if field.name != "qk_norm"]
        return cls(
            **{name: getattr(config, name) for name in names}, qk_norm=config.model_type == "qwen3"
        )

    @property
    def linear_layers(self) -> tuple[tuple[int, int], ...]:
        """Return (inputs, outputs) of the linear layers of one block: q, k, v, o, gate, up, down.

        These are the layers that get an adapter (`managers.loading.TARGET_MODULES`).
        """
        heads = self.num_attention_heads * self.head_dim
        groups = self.num_key_value_heads * self.head_dim
        hidden, inner = self.hidden_size, self.intermediate_size
        return (
            (hidden, heads),
            (hidden, groups),
            (hidden, groups),
            (heads, hidden),
            (hidden, inner),
            (hidden, inner),
            (inner, hidden),
        )

    @property
    def linear_parameters(self) -> int:
        """Return the number of parameters in the blocks' linear layers, which NF4 quantises."""
        per_block = sum(inputs * outputs for inputs, outputs in self.linear_layers)
        return self.num_hidden_layers * per_block

    @property
    def parameters(self) -> int:
        """Return the number of all parameters; tied embeddings count once.

        >>> f"{SHAPES['Qwen/Qwen3-4B'].parameters:,}"
        '4,022,468,096'
        """
        tables = 1 if self.tie_word_embeddings else 2
        norms = 2 * self.hidden_size + self.qk_norm * 2 * self.head_dim
        return (
            tables * self.vocab_size * self.hidden_size
            + self.linear_parameters
            + self.num_hidden_layers * norms
            + self.hidden_size
        )

    def lora_parameters(self, rank: int, layers: int | None = None) -> int:
        """Return the number of adapter parameters: rank x (inputs + outputs) per linear layer.

        Args:
            rank: Rank of the adapter.
            layers: Number of blocks with the adapter; `None` for all.

        >>> f"{SHAPES['Qwen/Qwen3-4B'].lora_parameters(16):,}"
        '33,030,144'
        """
        return (layers or self.num_hidden_layers) * rank * sum(map(sum, self.linear_layers))

    @property
    def cache_bytes(self) -> int:
        """Return the bytes of the KV cache per token, at 2 bytes per number.

        >>> SHAPES["Qwen/Qwen3-4B"].cache_bytes
        147456
        """
        return 2 * 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    @property
    def block_bytes(self) -> int:
        """Return the bytes that autograd stores per token and block, at 2 bytes per number.

        The count is for frozen linear layers with adapters under bf16 autocast: the inputs of the
        two norms in single precision; the normalised and the scaled state of both, and the block's
        attention output; rotated queries and keys, values, and the heads' outputs twice (and
        queries and keys in single precision if they are normalised); in the gated layer, gate, up,
        the activation and their product. Tensors that grow with the rank are left out.
        """
        heads = self.num_attention_heads * self.head_dim
        groups = self.num_key_value_heads * self.head_dim
        return 2 * (
            9 * self.hidden_size
            + 3 * heads
            + 2 * groups
            + 4 * self.intermediate_size
            + self.qk_norm * 2 * (heads + groups)
        )

    @property
    def prefill_bytes(self) -> int:
        """Return the peak bytes of activations per prompt token in prefill without gradients.

        At 2 bytes per number, without the KV cache: the state, also normalised, and in the gated
        layer the activation, up and their product."""
        return 2 * (2 * self.hidden_size + 3 * self.intermediate_size)


SHAPES: dict[str, ModelShape] = {
    "Qwen/Qwen3-4B": ModelShape(151_936, 2560, 9728, 36, 32, 8, 128, qk_norm=True),
    "Qwen/Qwen3-1.7B": ModelShape(151_936, 2048, 6144, 28, 16, 8, 128, qk_norm=True),
    "meta-llama/Llama-3.2-3B-Instruct": ModelShape(128_256, 3072, 8192, 28, 24, 8, 128),
}
"""Sizes of checkpoints on the hub, from their config.json, by name."""


@dataclass(frozen=True, slots=True)
class Card:
    """A GPU.

    Attributes:
        name: Product name.
        gb: Memory in GB (1e9 bytes).
        tflops: Dense bf16 arithmetic in TFLOP/s.
        gb_per_s: Memory bandwidth in GB/s.
    """

    name: str
    gb: float
    tflops: float
    gb_per_s: float


CARDS: dict[str, Card] = {
    card.name: card
    for card in (
        Card("RTX 4080", 16, 97.5, 716.8),
        Card("RTX 4090", 24, 165.2, 1008),
        Card("A100 80GB", 80, 312, 2039),
        Card("H100 80GB", 80, 989.4, 3350),
    )
}
"""Figures from the makers' data sheets: tensor cores, bf16 without sparsity, sums in fp32."""


@dataclass(frozen=True, slots=True)
class Assumptions:
    """Quantities that are unknown before the run; the plan prints each, and the user may set it.

    Attributes:
        completion_tokens: Mean number of tokens of a completion (at most max_new_tokens).
        memory_share: Tokens of the memory per token of history read so far, in (0, 1].
        item_tokens: Tokens of an item in a reader's prompt.
        answer_tokens: Tokens of a reader's reply.
        reader_seconds: Seconds per call of the reader.
        reader_concurrency: Number of concurrent calls of the reader.
        arithmetic_share: Achieved share of the GPU's bf16 speed, in (0, 1].
        traffic_share: Achieved share of the GPU's memory bandwidth, in (0, 1].
        step_seconds: Smallest duration of one decoding step, in seconds (kernel launches).
        fast_step_seconds: The same with vLLM, which captures the kernels as graphs.
        runtime_gb: GB for the CUDA context, allocator fragmentation and compiled kernels.

    Raises:
        ValueError: A value is not above 0, or a share is above 1.
    """

    completion_tokens: float = 256
    memory_share: float = 0.25
    item_tokens: float = 40
    answer_tokens: float = 16
    reader_seconds: float = 1.0
    reader_concurrency: float = 16
    arithmetic_share: float = 0.35
    traffic_share: float = 0.6
    step_seconds: float = 0.03
    fast_step_seconds: float = 0.005
    runtime_gb: float = 1.5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if not 0 < value < float("inf"):
                raise ValueError(f"assumption {field.name} is {value}, expected more than 0")
        for name in ("arithmetic_share", "traffic_share", "memory_share"):
            if getattr(self, name) > 1:
                raise ValueError(f"assumption {name} is {getattr(self, name)}, expected at most 1")


@dataclass(frozen=True, slots=True)
class Stream:
    """The sizes of an instance, for a plan.

    Attributes:
        chunks: Number of tokens of every chunk.
        questions: Number of global questions.
    """

    chunks: tuple[int, ...]
    questions: int


@dataclass(frozen=True, slots=True)
class Training:
    """The parameters of notebook 04 that a plan depends on.

    Attributes:
        model: Settings of the model.
        updates: Number of updates.
        instances_per_update: Number of instances per update.
        num_generations: G, the number of rollouts per instance.
        question_fraction: Share of the global questions asked, in (0, 1].
        top_k: Largest number of items retrieved per question.
        instruction_tokens: Number of tokens of a prompt without memory and chunk.
        max_prompt_tokens: Largest number of tokens of a prompt.
        max_new_tokens: Largest number of tokens of a completion.
        batch_size: Number of prompts sampled at a time outside training.
        tested: Largest number of instances played at once outside training.
    """

    model: ModelSettings
    updates: int
    instances_per_update: int
    num_generations: int
    question_fraction: float
    top_k: int
    instruction_tokens: int
    max_prompt_tokens: int
    max_new_tokens: int
    batch_size: int = BATCH_SIZE
    tested: int = 0


def prompt_lengths(stream: Stream, training: Training, assumed: Assumptions) -> list[int]:
    """Return the number of prompt tokens at every step, at most `max_prompt_tokens`.

    A prompt holds the instruction, the memory so far and the chunk.

    Args:
        stream: The instance.
        training: Parameters of the training.
        assumed: Measured or assumed shares and sizes.

    >>> small = Training(ModelSettings(), 1, 1, 8, 1.0, 3, 400, 1000, 128)
    >>> prompt_lengths(Stream((200, 200, 2000), 5), small, Assumptions(memory_share=0.5))
    [600, 700, 1000]
    """
    lengths, read = [], 0
    for chunk in stream.chunks:
        full = training.instruction_tokens + assumed.memory_share * read + chunk
        lengths.append(min(training.max_prompt_tokens, round(full)))
        read += chunk
    return lengths


@dataclass(frozen=True, slots=True)
class Work:
    """The work of an average update, and the sizes of the longest possible update.

    Attributes:
        rows: Mean number of prompts with their completions.
        prompt_tokens: Mean number of prompt tokens, over all rows together.
        completion_tokens: Mean number of completion tokens, over all rows together.
        steps: Mean number of steps of the update's longest instance, one generation each.
        longest_rows: Number of rows of the longest possible micro-batch.
        longest_prompt: Number of tokens of the longest prompt.
        longest_completion: Number of tokens of the longest completion.
        sequences: Number of rollouts played at a time.
    """

    rows: float
    prompt_tokens: float
    completion_tokens: float
    steps: float
    longest_rows: int
    longest_prompt: int
    longest_completion: int
    sequences: int


def average_work(streams: Sequence[Stream], training: Training, assumed: Assumptions) -> Work:
    """Return the work of an update over these instances.

    An update has num_generations micro-batches, as in `grpo_config`, so a micro-batch has as many
    rows as the update's instances have steps.

    Args:
        streams: The instances, at least one.
        training: Parameters of the training.
        assumed: Measured or assumed shares and sizes.
    """
    lengths = [prompt_lengths(stream, training, assumed) for stream in streams]
    taken = training.instances_per_update
    group = taken * training.num_generations
    steps = [len(stream.chunks) for stream in streams]
    mean_steps = sum(steps) / len(steps)
    completion = min(assumed.completion_tokens, training.max_new_tokens)
    longest = sorted(steps, reverse=True)[:taken]
    return Work(
        rows=group * mean_steps,
        prompt_tokens=group * sum(map(sum, lengths)) / len(streams),
        completion_tokens=group * mean_steps * completion,
        steps=_mean_of_largest(steps, taken),
        longest_rows=sum(longest),
        longest_prompt=max(map(max, lengths)),
        longest_completion=training.max_new_tokens,
        sequences=group,
    )


def _mean_of_largest(values: Sequence[int], taken: int) -> float:
    """Return the mean of the largest of `taken` values drawn with replacement.

    >>> _mean_of_largest([1, 2], 1), _mean_of_largest([1, 2], 2)
    (1.5, 1.75)
    """
    ordered, total = sorted(values), len(values)
    return sum(
        value * (((place + 1) / total) ** taken - (place / total) ** taken)
        for place, value in enumerate(ordered)
    )


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """Estimated bytes of GPU memory by part.

    Generation, learning and tests alternate, so `peak` counts the largest of them. vLLM reserves
    its KV cache permanently, also during tests, which it does not sample.

    Attributes:
        weights: Weights of the model, frozen or trained.
        adapter: Weights of the LoRA adapter.
        gradients: Gradients of the trained weights.
        optimizer: Adam's two moments.
        activations: Activations stored for the backward pass.
        logits: Logits of the completion tokens and their gradients.
        cache: KV cache of the rollouts.
        prefill: Activations of prefill.
        tests: KV cache and prefill of sampling outside training.
        runtime: CUDA and its libraries.
        cache_stays: Whether vLLM reserves the cache permanently.
    """

    weights: float
    adapter: float
    gradients: float
    optimizer: float
    activations: float
    logits: float
    cache: float
    prefill: float
    tests: float
    runtime: float
    cache_stays: bool

    @property
    def peak(self) -> float:
        held = self.weights + self.adapter + self.gradients + self.optimizer + self.runtime
        learning = self.activations + self.logits
        if self.cache_stays:
            return held + self.cache + max(learning, self.tests)
        return held + max(learning, self.cache + self.prefill, self.tests)


def gpu_memory(
    shape: ModelShape, training: Training, most: Work, card: Card, assumed: Assumptions
) -> GpuMemory:
    """Return the GPU memory that the largest update needs.

    weights: 2 bytes each, or `NF4_BYTES` for the blocks' linear layers in 4 bits; without an
    adapter 4 bytes, and 2 for the copy of those layers that autocast keeps.
    adapter, gradients, optimizer: per trained weight 4 bytes, 4 bytes, and two moments of 4 bytes.
    activations: `block_bytes` per token of a micro-batch and block; with gradient checkpointing one
    hidden state of 2 bytes per number and block (which Unsloth moves to CPU memory), and the
    activations of one block.
    logits: per completion token of a micro-batch, in single precision: the logits, their gradient,
    and its copy on the way to the head; Unsloth computes them row by row.
    cache: KV cache of all rollouts at their largest; with vLLM its share of the GPU memory minus
    the weights.
    prefill: `prefill_bytes` of all rollouts' prompts; with vLLM this is part of its share.
    tests: KV cache and prefill of one batch outside training, which vLLM never samples. Sampling
    from weights in single precision needs twice as much.

    Args:
        shape: Sizes of the model.
        training: Parameters of the training.
        most: The largest update.
        card: The GPU.
        assumed: Measured or assumed shares and sizes.
    """
    model, unsloth = training.model, training.model.loader == "unsloth"
    weights = _weight_bytes(shape, model)
    trained = shape.parameters
    if model.lora_rank:
        trained = shape.lora_parameters(model.lora_rank, model.lora_layers)
    tokens = most.longest_rows * (most.longest_prompt + most.longest_completion)
    scored = most.longest_completion * shape.vocab_size
    wide = 1 if model.lora_rank else 2
    one_cache = wide * shape.cache_bytes * (most.longest_prompt + most.longest_completion)
    one_prefill = wide * shape.prefill_bytes * most.longest_prompt
    cache: float = most.sequences * one_cache
    prefill: float = most.sequences * one_prefill
    if model.fast_inference:
        prefill = 0.0
        cache = max(0.0, model.gpu_memory_utilization * card.gb * 1e9 - weights)
    return GpuMemory(
        weights=weights + (0 if model.lora_rank else 2 * shape.linear_parameters),
        adapter=4 * trained if model.lora_rank else 0,
        gradients=4 * trained,
        optimizer=2 * 4 * trained,
        activations=_activation_bytes(shape, model) * tokens,
        logits=3 * 4 * scored * (1 if unsloth else most.longest_rows),
        cache=cache,
        prefill=prefill,
        tests=min(training.batch_size, training.tested) * (one_cache + one_prefill),
        runtime=assumed.runtime_gb * 1e9,
        cache_stays=model.fast_inference,
    )


def _weight_bytes(shape: ModelShape, model: ModelSettings) -> float:
    if not model.lora_rank:
        return 4 * shape.parameters
    quantised = shape.linear_parameters if model.precision == "4bit" else 0
    return 2 * (shape.parameters - quantised) + NF4_BYTES * quantised


def _activation_bytes(shape: ModelShape, model: ModelSettings) -> float:
    """Return the activations that the GPU keeps for the backward pass of one token."""
    if not model.gradient_checkpointing:
        return shape.num_hidden_layers * shape.block_bytes
    hidden_states = 2 * shape.hidden_size * shape.num_hidden_layers
    return shape.block_bytes + (0 if model.loader == "unsloth" else hidden_states)


def fits(memory: GpuMemory, shape: ModelShape, most: Work, card: Card) -> bool:
    """Return whether all parts fit into GPU memory, and the longest rollout into vLLM's cache.

    Args:
        memory: The estimate of `gpu_memory`.
        shape: Sizes of the model.
        most: The largest update.
        card: The GPU.
    """
    longest = shape.cache_bytes * (most.longest_prompt + most.longest_completion)
    room = not memory.cache_stays or memory.cache >= longest
    return room and memory.peak <= card.gb * 1e9


def what_would_fit(
    shape: ModelShape,
    streams: Sequence[Stream],
    training: Training,
    card: Card,
    assumed: Assumptions,
) -> list[str]:
    """Return changes of parameters with which the plan fits, as texts.

    Each text is the smallest sufficient change of one kind. If no single change suffices, one text
    names several changes that suffice together; if nothing helps, the list is empty.

    Args:
        shape: Sizes of the model.
        streams: The instances.
        training: Parameters that do not fit.
        card: The GPU.
        assumed: Measured or assumed shares and sizes.
    """

    def ok(one: Training, its: ModelShape = shape) -> bool:
        most = average_work(streams, one, assumed)
        return fits(gpu_memory(its, one, most, card, assumed), its, most, card)

    kinds: dict[str, list[tuple[str, Training]]] = {}
    for name, changed in changes(training):
        kinds.setdefault(_kind(name), []).append((name, changed))
    mildest = [next((name for name, one in of_kind if ok(one)), None) for of_kind in kinds.values()]
    smaller = [
        name
        for name, its in SHAPES.items()
        if its.parameters < shape.parameters and ok(training, its)
    ]
    if found := [name for name in mildest if name] + [f"checkpoint={name}" for name in smaller]:
        return found
    combined: list[str] = []
    one, seen = training, set()
    while left := [each for each in changes(one) if _kind(each[0]) not in seen]:
        kind = _kind(left[0][0])
        seen.add(kind)
        name, one = [each for each in left if _kind(each[0]) == kind][-1]
        combined.append(name)
        if ok(one):
            return [" ".join(combined)]
    return []


def _kind(change: str) -> str:
    return change.partition("=")[0]


@dataclass(frozen=True, slots=True)
class UpdateSeconds:
    """Estimated seconds of one update by part.

    Attributes:
        reading: Prefill of the prompts.
        writing: Decoding of the completions.
        learning: Forward and backward passes.
        answering: Calls of the reader.
    """

    reading: float
    writing: float
    learning: float
    answering: float

    @property
    def total(self) -> float:
        return self.reading + self.writing + self.learning + self.answering


def update_seconds(
    shape: ModelShape,
    training: Training,
    mean: Work,
    card: Card,
    assumed: Assumptions,
    reader_calls: float,
) -> UpdateSeconds:
    """Return the estimated duration of an average update.

    reading: prefill of the prompts, 2 operations per parameter and token.
    writing: each token of a step's longest completion (taken as max_new_tokens, because one of many
    rollouts comes near it) reads the weights and the KV cache from GPU memory once.
    learning: forward and backward over prompts and completions: 2 operations each per parameter and
    token, 2 more for the weights' own gradients without an adapter, 2 more for recomputed
    activations.
    answering: the reader's calls, `reader_concurrency` at a time; 0 calls take no time.

    Args:
        shape: Sizes of the model.
        training: Parameters of the training.
        mean: The average update.
        card: The GPU.
        assumed: Measured or assumed shares and speeds.
        reader_calls: Calls of a model reader per update.
    """
    model = training.model
    per_token = 2 * shape.parameters
    speed = assumed.arithmetic_share * card.tflops * 1e12
    traffic = assumed.traffic_share * card.gb_per_s * 1e9
    passes = 2 + (not model.lora_rank) + model.gradient_checkpointing
    weights = _weight_bytes(shape, model)
    context = mean.prompt_tokens / mean.rows + mean.completion_tokens / mean.rows / 2
    cache = shape.cache_bytes * context * mean.rows / max(mean.steps, 1)
    launched = assumed.fast_step_seconds if model.fast_inference else assumed.step_seconds
    per_step = max(
        launched, (weights + cache) / traffic, per_token * mean.rows / max(mean.steps, 1) / speed
    )
    return UpdateSeconds(
        reading=per_token * mean.prompt_tokens / speed,
        writing=mean.steps * training.max_new_tokens * per_step,
        learning=passes * per_token * (mean.prompt_tokens + mean.completion_tokens) / speed,
        answering=reader_calls * assumed.reader_seconds / assumed.reader_concurrency,
    )


def playing_seconds(
    shape: ModelShape,
    streams: Sequence[Stream],
    training: Training,
    card: Card,
    assumed: Assumptions,
    instances: int,
) -> float:
    """Return the estimated seconds for the manager to play instances once, without vLLM.

    The reader's calls are not included; `batch_size` instances are played at a time.

    Args:
        shape: Sizes of the model.
        streams: Instances with typical sizes.
        training: Parameters of the training.
        card: The GPU.
        assumed: Measured or assumed shares and speeds.
        instances: Number of instances to play, at least 1.
    """
    rows = min(training.batch_size, instances)
    one = dataclasses.replace(
        _with_model(training, fast_inference=False), instances_per_update=rows, num_generations=1
    )
    found = update_seconds(shape, one, average_work(streams, one, assumed), card, assumed, 0)
    return math.ceil(instances / rows) * (found.reading + found.writing)


@dataclass(frozen=True, slots=True)
class Calls:
    """Calls of a language model and their tokens.

    Attributes:
        calls: Number of calls.
        tokens_in: Tokens sent.
        tokens_out: Tokens received.
    """

    calls: float = 0
    tokens_in: float = 0
    tokens_out: float = 0

    def times(self, number: float) -> Calls:
        """Return calls and tokens multiplied by a number.

        Args:
            number: The factor, at least 0.
        """
        return Calls(self.calls * number, self.tokens_in * number, self.tokens_out * number)

    def cost(self, price_in: float, price_out: float) -> float:
        """Return the price of these calls.

        Args:
            price_in: Price of a million tokens sent.
            price_out: Price of a million tokens received.

        >>> Calls(10, 2_000_000, 500_000).cost(0.15, 0.6)
        0.6
        """
        return (self.tokens_in * price_in + self.tokens_out * price_out) / 1e6


def asked_globally(questions: int, fraction: float) -> int:
    """Return the number of global questions asked per rollout (`questions.sampled_questions`).

    Args:
        questions: Number of global questions of the instance.
        fraction: Share that is asked, in (0, 1].

    >>> asked_globally(12, 0.2), asked_globally(2, 0.2), asked_globally(0, 0.2)
    (2, 1, 0)
    """
    return max(1, round(fraction * questions)) if questions else 0


def changes(training: Training) -> Iterator[tuple[str, Training]]:
    """Yield single changes that make a run smaller, each with its name, smallest first per kind.

    Args:
        training: Parameters of the training.
    """
    model = training.model
    for number in range(training.instances_per_update - 1, 0, -1):
        yield (
            f"instances_per_update={number}",
            dataclasses.replace(training, instances_per_update=number),
        )
    if not model.gradient_checkpointing:
        yield "gradient_checkpointing=true", _with_model(training, gradient_checkpointing=True)
    if not model.lora_rank:
        yield "lora_rank=16", _with_model(training, lora_rank=16)
    elif model.precision != "4bit":
        yield "precision=4bit", _with_model(training, precision="4bit")
    if model.fast_inference:
        yield "fast_inference=false", _with_model(training, fast_inference=False)
    for name, least in (
        ("batch_size", 1),
        ("max_prompt_tokens", training.instruction_tokens + 256),
        ("max_new_tokens", 128),
        ("num_generations", 2),
    ):
        value = getattr(training, name) // 2
        while value >= least:
            yield f"{name}={value}", dataclasses.replace(training, **{name: value})
            value //= 2


def _with_model(training: Training, **settings: Any) -> Training:
    return dataclasses.replace(training, model=dataclasses.replace(training.model, **settings))
