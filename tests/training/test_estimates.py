"""The plan's formulas against what torch, peft and transformers really hold."""

from __future__ import annotations

import dataclasses
import types

import pytest
import torch
from hypothesis import given, strategies as st
from transformers import AutoModelForCausalLM, DynamicCache, GPT2Config, LlamaConfig, Qwen3Config

from finemem_lib.managers.loading import TARGET_MODULES, ModelSettings
from finemem_lib.training import estimates
from finemem_lib.training.estimates import (
    CARDS,
    SHAPES,
    Assumptions,
    Calls,
    ModelShape,
    Stream,
    Training,
)

torch.set_num_threads(1)

ASSUMED = Assumptions()
UNSLOTH = ModelSettings("unsloth", "4bit", lora_rank=16, gradient_checkpointing=True)
TRAINING = Training(UNSLOTH, 100, 2, 8, 0.2, 10, 400, 4096, 512)
STREAMS = [Stream((1000,) * 10, 20), Stream((500,) * 20, 100)]
QWEN = SHAPES["Qwen/Qwen3-4B"]
NARROW = ModelShape(2000, 256, 768, 2, 8, 4, 48, qk_norm=True)


def config_of(shape, **changes):
    names = [field.name for field in dataclasses.fields(shape) if field.name != "qk_norm"]
    kind = Qwen3Config if shape.qk_norm else LlamaConfig
    return kind(**{name: getattr(shape, name) for name in names} | changes)


def adapted(model, rank):
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model, LoraConfig(task_type="CAUSAL_LM", r=rank, target_modules=list(TARGET_MODULES))
    )


@pytest.mark.parametrize("name", SHAPES)
def test_parameters_are_those_of_the_architecture(name):
    shape = SHAPES[name]
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape))
    assert ModelShape.of(model.config) == shape
    assert sum(value.numel() for value in model.parameters()) == shape.parameters
    linear = sum(
        value.numel()
        for key, value in model.named_parameters()
        if any(f".{part}." in key for part in TARGET_MODULES)
    )
    assert linear == shape.linear_parameters
    trained = [value.numel() for value in adapted(model, 16).parameters() if value.requires_grad]
    assert sum(trained) == shape.lora_parameters(16) == shape.lora_parameters(32) / 2


@pytest.mark.parametrize("tied", [True, False])
def test_untied_embeddings_count_twice(tied):
    shape = dataclasses.replace(NARROW, tie_word_embeddings=tied)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config_of(shape))
    assert sum(value.numel() for value in model.parameters()) == shape.parameters


def test_the_cache_is_a_real_ones(tmp_path):
    model = AutoModelForCausalLM.from_config(config_of(NARROW), dtype=torch.bfloat16)
    cache = DynamicCache(config=model.config)
    with torch.no_grad():
        model(torch.zeros(3, 7, dtype=torch.long), past_key_values=cache, use_cache=True)
    held = sum(
        part.numel() * part.element_size()
        for layer in cache.layers
        for part in (layer.keys, layer.values)
    )
    assert held == 3 * 7 * NARROW.cache_bytes


@pytest.mark.parametrize("qk_norm", [True, False])
def test_what_autograd_keeps_of_a_token_is_what_torch_saves(qk_norm):
    """Measured as the difference between three blocks and one, so that ends do not count."""
    shape, tokens = dataclasses.replace(NARROW, qk_norm=qk_norm), 2 * 128

    def saved(blocks):
        model = adapted(
            AutoModelForCausalLM.from_config(
                config_of(shape, num_hidden_layers=blocks), dtype=torch.bfloat16
            ),
            1,
        )
        own = {value.untyped_storage().data_ptr() for value in model.parameters()}
        held = {}

        def pack(value):
            storage = value.untyped_storage()
            if storage.data_ptr() not in own:
                held[storage.data_ptr()] = storage.nbytes()
            return value

        states = model.get_input_embeddings()(torch.zeros(2, 128, dtype=torch.long))
        with (
            torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value),
            torch.autocast("cpu", dtype=torch.bfloat16),
        ):
            model(inputs_embeds=states.detach().requires_grad_(), use_cache=False)
        return sum(held.values())

    measured = (saved(3) - saved(1)) / 2 / tokens
    assert shape.block_bytes == pytest.approx(measured, rel=0.03)


@pytest.fixture
def no_accelerator():
    """Forget the precision that accelerate holds for the whole process, and remember it after."""
    from accelerate.state import AcceleratorState

    before = dict(AcceleratorState._shared_state)
    AcceleratorState._reset_state()
    yield
    AcceleratorState._reset_state()
    AcceleratorState._shared_state.update(before)


def test_logits_are_kept_in_single_precision_as_torch_saves_them(no_accelerator):
    """By TRL's own function, on a model as the trainer prepares it for bf16."""
    from accelerate import Accelerator

    from finemem_lib.training.trl_adapter import load_trainer_class

    rows, completion = 2, 64
    shape = dataclasses.replace(NARROW, vocab_size=20_000)
    accelerator = Accelerator(mixed_precision="bf16", cpu=True)
    model = accelerator.prepare_model(
        adapted(AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16), 1)
    )
    trainer = object.__new__(load_trainer_class())
    vars(trainer).update(
        accelerator=accelerator,
        temperature=1.0,
        use_liger_kernel=False,
        model_kwarg_keys={"logits_to_keep"},
        _entropy_bonus_enabled=False,
        args=types.SimpleNamespace(report_to=[]),
    )
    own = {value.untyped_storage().data_ptr() for value in model.parameters()}
    held = {}

    def pack(value):
        storage = value.untyped_storage()
        if value.shape[-1:] == (shape.vocab_size,) and storage.data_ptr() not in own:
            held[storage.data_ptr()] = (storage.nbytes(), value)  # else its place is used again
        return value

    ids = torch.zeros(rows, 96, dtype=torch.long)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        trainer._get_per_token_logps_and_entropies(
            model, ids, torch.ones_like(ids), completion, compute_entropy=True
        )
    kept = sum(size for size, _ in held.values())
    training = dataclasses.replace(
        TRAINING, model=ModelSettings(precision="bf16", lora_rank=1), max_new_tokens=completion
    )
    most = estimates.Work(rows, 1, 1, 1, rows, 32, completion, rows)
    found = estimates.gpu_memory(shape, training, most, CARDS["RTX 4090"], ASSUMED)
    assert found.logits == pytest.approx(3 * kept, rel=0.03)


@pytest.mark.parametrize("qk_norm", [True, False])
def test_reading_a_prompt_takes_what_torch_allocates(qk_norm):
    """The difference between two lengths of prompt: weights and what is fixed do not count."""
    from torch.profiler import ProfilerActivity, profile

    shape = dataclasses.replace(NARROW, qk_norm=qk_norm, num_hidden_layers=2)
    model = AutoModelForCausalLM.from_config(config_of(shape), dtype=torch.bfloat16)

    def peak(tokens):
        states = torch.zeros(4, tokens, shape.hidden_size, dtype=torch.bfloat16)
        with (
            torch.no_grad(),
            profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled,
        ):
            model.model(inputs_embeds=states, use_cache=False)
        events = profiled.profiler.kineto_results.events()
        changes = [(one.start_ns(), one.nbytes()) for one in events if one.name() == "[memory]"]
        held = most = 0
        for _, size in sorted(changes):
            held += size
            most = max(most, held)
        return most

    measured = (peak(128) - peak(64)) / (4 * 64)
    assert shape.prefill_bytes == pytest.approx(measured, rel=0.2)


def test_another_family_has_no_plan():
    with pytest.raises(ValueError, match="family 'gpt2', expected qwen3 or llama"):
        ModelShape.of(GPT2Config())


def test_an_update_counted_by_hand():
    found = estimates.average_work([Stream((100, 200), 3)], TRAINING, Assumptions(memory_share=0.5))
    assert (found.rows, found.steps, found.sequences) == (32, 2, 16)
    # Two instances of 8 rollouts; prompts of 400 + 100 and 400 + 50 + 200.
    assert found.prompt_tokens == 16 * (500 + 650) and found.completion_tokens == 32 * 256
    assert (found.longest_rows, found.longest_prompt, found.longest_completion) == (2, 650, 512)


def test_micro_batches_hold_the_longest_instances_of_an_update():
    found = estimates.average_work([*STREAMS, Stream((100,) * 5, 1)], TRAINING, ASSUMED)
    assert found.longest_rows == 30
    assert estimates.average_work(STREAMS, TRAINING, ASSUMED).rows == 16 * 15


@given(
    st.integers(1, 6),
    st.sampled_from([8, 16, 32]),
    st.sampled_from([2048, 4096]),
    st.booleans(),
    st.booleans(),
)
def test_memory_falls_with_every_change_that_is_offered(instances, rank, prompt, fast, four):
    model = ModelSettings(
        "unsloth", "4bit" if four else "bf16", lora_rank=rank, fast_inference=fast
    )
    training = dataclasses.replace(
        TRAINING, model=model, instances_per_update=instances, max_prompt_tokens=prompt
    )

    def peak(one):
        most = estimates.average_work(STREAMS, one, ASSUMED)
        return estimates.gpu_memory(QWEN, one, most, CARDS["A100 80GB"], ASSUMED).peak

    for name, changed in estimates.changes(training):
        assert peak(changed) <= peak(training) + 1, name


def memory(settings, card="RTX 4090", **changes):
    training = dataclasses.replace(TRAINING, model=settings, **changes)
    most = estimates.average_work(STREAMS, training, ASSUMED)
    return estimates.gpu_memory(QWEN, training, most, CARDS[card], ASSUMED), most


def test_parts_of_the_memory_by_hand():
    found, _ = memory(ModelSettings(precision="bf16", lora_rank=16))
    adapter = QWEN.lora_parameters(16)
    assert found.weights == 2 * QWEN.parameters
    assert (found.adapter, found.gradients, found.optimizer) == (
        4 * adapter,
        4 * adapter,
        8 * adapter,
    )
    whole, _ = memory(ModelSettings(precision="bf16"))
    assert whole.adapter == 0 and whole.gradients == 4 * QWEN.parameters
    assert whole.optimizer == 8 * QWEN.parameters
    assert whole.weights == 4 * QWEN.parameters + 2 * QWEN.linear_parameters
    four, _ = memory(UNSLOTH)
    assert four.weights == pytest.approx(
        2 * (QWEN.parameters - QWEN.linear_parameters) + 0.516 * QWEN.linear_parameters
    )


def test_vllm_takes_its_share_of_the_card_and_no_less_than_a_rollout():
    fast = dataclasses.replace(UNSLOTH, precision="bf16", fast_inference=True)
    found, most = memory(fast)
    assert found.weights + found.cache == 0.5 * 24e9
    small = dataclasses.replace(fast, gpu_memory_utilization=0.34)
    found, most = memory(small)
    assert 0 < found.cache < QWEN.cache_bytes * (most.longest_prompt + most.longest_completion)
    card = dataclasses.replace(CARDS["RTX 4090"], gb=1e6)
    assert not estimates.fits(found, QWEN, most, card)


@pytest.mark.parametrize("fast", [False, True])
def test_tests_count_and_fewer_prompts_at_a_time_make_them_fit(fast):
    """Incident: 128 prompts at a time were sampled in tests, and only the rollouts were planned."""
    model = dataclasses.replace(UNSLOTH, fast_inference=fast, gpu_memory_utilization=0.2)
    card = CARDS["RTX 4090"]
    training = dataclasses.replace(
        TRAINING, model=model, instances_per_update=1, tested=64, batch_size=64
    )
    most = estimates.average_work(STREAMS, training, ASSUMED)

    def of(one):
        return estimates.gpu_memory(QWEN, one, most, card, ASSUMED)

    longest = most.longest_prompt + most.longest_completion
    assert of(training).tests == 64 * (
        QWEN.cache_bytes * longest + QWEN.prefill_bytes * most.longest_prompt
    )
    few = dataclasses.replace(training, tested=2)
    assert of(few).tests == of(training).tests / 32  # no more than there are
    assert not estimates.fits(of(training), QWEN, most, card)
    assert estimates.fits(of(few), QWEN, most, card)
    [said] = [
        name
        for name in estimates.what_would_fit(QWEN, STREAMS, training, card, ASSUMED)
        if name.startswith("batch_size")
    ]
    fitting = dataclasses.replace(training, batch_size=int(said.partition("=")[2]))
    assert estimates.fits(of(fitting), QWEN, most, card)


def test_tests_are_played_without_vllm_in_as_many_batches_as_it_takes():
    fast = dataclasses.replace(TRAINING, model=dataclasses.replace(UNSLOTH, fast_inference=True))
    card = CARDS["A100 80GB"]
    stream = [Stream((1000,) * 10, 20)]

    def seconds(training, instances):
        return estimates.playing_seconds(QWEN, stream, training, card, ASSUMED, instances)

    assert seconds(fast, 8) > 10 * 512 * ASSUMED.step_seconds
    assert seconds(fast, 8) == seconds(dataclasses.replace(TRAINING, model=UNSLOTH), 8)
    assert seconds(fast, 24) == pytest.approx(3 * seconds(fast, 8))
    assert seconds(fast, 17) == pytest.approx(seconds(fast, 24))  # the last batch is not full


def test_what_would_fit_fits_and_the_step_before_it_does_not():
    training = dataclasses.replace(TRAINING, instances_per_update=4)
    card = CARDS["RTX 4090"]

    def fits(one):
        most = estimates.average_work(STREAMS, one, ASSUMED)
        return estimates.fits(
            estimates.gpu_memory(QWEN, one, most, card, ASSUMED), QWEN, most, card
        )

    assert not fits(training)
    offered = dict(estimates.changes(training))
    said = estimates.what_would_fit(QWEN, STREAMS, training, card, ASSUMED)
    named = [name for name in said if not name.startswith("checkpoint=")]
    assert named and all(fits(offered[name]) for name in named)
    order = list(offered)
    for name in named:
        milder = [
            one
            for one in order[: order.index(name)]
            if one.partition("=")[0] == name.partition("=")[0]
        ]
        assert not any(fits(offered[one]) for one in milder)


def test_where_no_single_change_helps_several_are_named():
    training = dataclasses.replace(
        TRAINING, model=ModelSettings(precision="bf16"), instances_per_update=4
    )
    card = CARDS["RTX 4090"]
    [said] = estimates.what_would_fit(QWEN, STREAMS, training, card, ASSUMED)
    assert {"instances_per_update=1", "gradient_checkpointing=true", "lora_rank=16"} <= {
        *said.split()
    }
    tiny_card = dataclasses.replace(card, gb=1.0)
    assert estimates.what_would_fit(QWEN, STREAMS, training, tiny_card, ASSUMED) == []


def test_times_by_hand():
    mean = estimates.average_work([Stream((100, 200), 3)], TRAINING, ASSUMED)
    card = dataclasses.replace(CARDS["RTX 4090"], tflops=100.0, gb_per_s=1000.0)
    assumed = Assumptions(arithmetic_share=0.5, traffic_share=0.5)
    found = estimates.update_seconds(QWEN, TRAINING, mean, card, assumed, 32)
    per_token = 2 * QWEN.parameters / 50e12
    assert found.reading == pytest.approx(per_token * mean.prompt_tokens)
    both = mean.prompt_tokens + mean.completion_tokens
    assert found.learning == pytest.approx(3 * per_token * both)  # forward, backward, once more
    assert found.writing == pytest.approx(2 * 512 * assumed.step_seconds)  # kernels decide here
    assert found.answering == 2.0
    assert found.total == pytest.approx(
        found.reading + found.learning + found.writing + found.answering
    )


def test_calls_add_up():
    assert Calls(1, 2, 3).times(2) == Calls(2, 4, 6)
    assert estimates.asked_globally(100, 0.2) == 20


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("completion_tokens", 0),
        ("traffic_share", 1.5),
        ("step_seconds", float("nan")),
        ("runtime_gb", float("inf")),
    ],
)
def test_assumptions_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"assumption {name} is"):
        Assumptions(**{name: value})
