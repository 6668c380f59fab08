"""A full-size memory manager on one GPU: Unsloth beside plain TRL with transformers.

Both train the same Qwen3-4B with random weights and a LoRA adapter through our `StepGRPOTrainer`,
on the same instances, each in a process of its own, because Unsloth rewrites TRL when it is
imported. Beside them stand the ceilings of this card, its bf16 matrix product and its copy, and
the tiny manager's warm start and GRPO on the GPU and on the CPU. Every part has a time limit and
writes its figures as it goes: a part that fails or is stopped leaves the others, and what it had
measured. The limits add up to less than nine minutes.

What is made up: the weights (an end token comes about once in as many tokens as the vocabulary
has, so completions run to their limit; tokens are counted, not assumed); the tokenizer (words of
chunks are single tokens); the operations (each completion's beginning is stored, so that the
prompts of a group differ from the second step on); the answers (every other rollout is right, so
that advantages are not zero). Nothing is downloaded.

"learning" is forward, backward and optimiser, all of an update that is not sampling or environment.
Its useful work is counted with a frozen model: 2 FLOP per weight and token forward and 2 back to
the activations, the head on completions only, attention 12 FLOP per layer, width and pair of
tokens; what gradient checkpointing computes again is not counted. The least that generation reads
is the weights, and the keys and values of all rows, once per token.

    python benchmarks/gpu.py [--plan] [--small] [--parts NAME ...] [--checkpoint FOLDER]
                             [--output FILE]

Without CUDA it says what it would run. `--small` runs every part that needs no CUDA on the CPU,
with a model of two narrow layers. `--checkpoint` trains a checkpoint of one's own, such as SmolLM2,
in place of the random Qwen3-4B. The output is written again after every part.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from finemem_lib.data.planted import planted_stream
from finemem_lib.managers.prompts import INSTRUCTION
from finemem_lib.seeds import generator
from finemem_lib.training.estimates import SHAPES, ModelShape
from finemem_lib.trajectory import Chunk, Instance, Operation, Question
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import versions

Figures = dict[str, Any]

GPU_PACKAGES = ("unsloth-zoo", "bitsandbytes", "xformers", "triton", "vllm")
"""What speed depends on beside the packages of every record."""

WORDS = tuple(a + b + c for a in "bdfglmnprst" for b in ("a", "e", "io", "u") for c in "bdkmnrstz")


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured; `tiny_*` are the tiny manager's updates."""

    model: ModelShape
    precision: str = "bf16"
    lora_rank: int = 16
    chunk_tokens: int = 1000
    completion_tokens: int = 256
    num_generations: int = 8
    instances_per_update: int = 1
    num_chunks: int = 2
    warm_up: int = 1
    updates: int = 3
    max_prompt_tokens: int = 4096
    matrix: int = 8192
    copied_bytes: int = 1 << 32
    tiny_warm_start: int = 100
    tiny_updates: int = 5
    tiny_instances: int = 8

    @property
    def rows(self) -> int:
        return self.instances_per_update * self.num_generations * self.num_chunks

    @property
    def bytes_per_weight(self) -> int:
        return 2 if self.precision == "bf16" else 4


FULL = Setting(SHAPES["Qwen/Qwen3-4B"])
SMALL = Setting(
    ModelShape(2000, 32, 64, 2, 4, 2, 8, qk_norm=True),
    precision="auto",
    lora_rank=4,
    chunk_tokens=40,
    completion_tokens=8,
    num_generations=2,
    instances_per_update=1,
    num_chunks=2,
    updates=2,
    max_prompt_tokens=1024,
    matrix=256,
    copied_bytes=1 << 20,
    tiny_warm_start=3,
    tiny_updates=1,
    tiny_instances=1,
)


def setting_of(checkpoint: Path) -> Setting:
    """Return what is measured of a checkpoint: shorter chunks, because a real tokenizer cuts the
    made words into about three tokens each, and more instances, because the model is small.

    The configuration is read as JSON, because transformers must not be imported before Unsloth.
    """
    said = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    said.setdefault("head_dim", said["hidden_size"] // said["num_attention_heads"])
    shape = ModelShape.of(SimpleNamespace(**said))
    return Setting(shape, chunk_tokens=200, completion_tokens=128, instances_per_update=4)


# What is trained on.


def chunk_text(seed: int, number: int, tokens: int) -> str:
    """Return as many words; to the made tokenizer, nearly every one is a token."""
    rng = generator("chunk", seed, number)
    return " ".join(rng.choice(WORDS) for _ in range(tokens))


def made_instances(setting: Setting) -> list[Instance]:
    return [
        Instance(
            f"made-{seed}",
            "squad",
            "AR",
            tuple(
                Chunk(chunk_text(seed, number, setting.chunk_tokens), number)
                for number in range(setting.num_chunks)
            ),
            (Question(f"made-{seed}-q", "Is it so?", ("yes",), "squad"),),
        )
        for seed in range((setting.warm_up + setting.updates) * setting.instances_per_update)
    ]


class EveryOther:
    """A reasoning agent that is right about every other task of a batch, whatever it is shown."""

    name = settings = "every-other"

    def query(self, question: str, data_source: str) -> str:
        return question

    def read(self, tasks: Sequence[Any]) -> list[Any]:
        from finemem_lib.reading import Reading

        return [Reading("yes" if place % 2 else "no", None) for place in range(len(tasks))]


# The parts. Each runs in its own process and notes its figures whenever it has some.


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def median_seconds(work: Callable[[], object], repeats: int = 10, warm_up: int = 3) -> float:
    seconds = []
    for _ in range(warm_up + repeats):
        synchronize()
        started = time.perf_counter()
        work()
        synchronize()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds[warm_up:])


def card() -> Figures:
    if not torch.cuda.is_available():
        return {"name": "CPU", "threads": torch.get_num_threads()}
    found = torch.cuda.get_device_properties(0)
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "name": found.name,
        "memory_bytes": found.total_memory,
        "cuda": torch.version.cuda,
        "capability": f"{found.major}.{found.minor}",
        "multiprocessors": found.multi_processor_count,
        "driver": driver.stdout.strip() or None,
    }


def measure_ceilings(setting: Setting, folder: Path, note: Callable[[Figures], None]) -> None:
    """Measure the bf16 matrix product of random data, and a copy (bytes read and written)."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    size = setting.matrix
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    result = torch.empty_like(left)
    product = median_seconds(lambda: torch.matmul(left, right, out=result))
    source = torch.ones(setting.copied_bytes, device=device, dtype=torch.uint8)
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source))
    note(
        {
            "card": card(),
            "flop_per_second": 2 * size**3 / product,
            "copy_bytes_per_second": 2 * setting.copied_bytes / copy,
        }
    )


def model_folder(folder: Path) -> Path:
    return folder / "model"


def qwen3_tokenizer(vocabulary: int) -> Any:
    """Return a byte-level BPE tokenizer with Qwen3's special tokens and chat template.

    It learns at most 2,000 tokens; words that no text is cut into fill it up to `vocabulary`, so
    that every token of the model can be read.
    """
    import trl
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    marks = ("<think>", "</think>", "<tool_call>", "</tool_call>")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    stream = [chunk.text for chunk in planted_stream(0).chunks]
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator([INSTRUCTION, *stream, *[" ".join(WORDS)] * 2], trainer)
    parts = json.loads(tokenizer.to_str())
    fillers = range(tokenizer.get_vocab_size(), vocabulary - len(marks))
    parts["model"]["vocab"] |= {f"\u0120word{number}": number for number in fillers}
    tokenizer = Tokenizer.from_str(json.dumps(parts))
    tokenizer.add_tokens([AddedToken(mark, normalized=False, special=False) for mark in marks])
    template = Path(trl.__file__).parent / "chat_templates" / "qwen3.jinja"
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        chat_template=template.read_text(encoding="utf-8"),
        clean_up_tokenization_spaces=False,
    )


def write_model(setting: Setting, folder: Path, note: Callable[[Figures], None]) -> None:
    """Write the checkpoint with random weights that both trainers load."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    started = time.perf_counter()
    tokenizer = qwen3_tokenizer(setting.model.vocab_size)
    sizes = dataclasses.asdict(setting.model)
    del sizes["qk_norm"]  # of every Qwen3
    config = Qwen3Config(
        **sizes | {"vocab_size": len(tokenizer)},
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        dtype = torch.bfloat16 if setting.precision == "bf16" else torch.float32
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.save_pretrained(model_folder(folder))
    tokenizer.save_pretrained(model_folder(folder))
    written = sum(path.stat().st_size for path in model_folder(folder).iterdir())
    note({"bytes": written, "write_seconds": time.perf_counter() - started})


def peak_bytes() -> Figures:
    """Return the most memory held since the last reset; on the CPU, of the process's life."""
    if torch.cuda.is_available():
        return {
            "peak_bytes": torch.cuda.max_memory_reserved(),
            "peak_bytes_in_use": torch.cuda.max_memory_allocated(),
        }
    import resource

    return {"peak_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


def train(loader: str, setting: Setting, folder: Path, note: Callable[[Figures], None]) -> None:
    """Train with one loader and note medians over the updates after the warm-up."""
    from finemem_lib.managers.loading import ModelSettings
    from finemem_lib.managers.model import load_manager
    from finemem_lib.managers.prompts import PromptBuilder
    from finemem_lib.managers.rollout import RolloutSettings
    from finemem_lib.training.config import grpo_config
    from finemem_lib.training.trl_adapter import load_trainer_class

    class Notes(PromptBuilder):
        """Stores how each completion begins, which random weights never write as JSON, and counts
        the tokens of all rows."""

        rows = tokens = sampled = 0

        def complete(self, prompts: Any, completion_ids: Any, logprobs: Any) -> list[Any]:
            self.rows += len(prompts)
            self.sampled += (sampled := sum(map(len, completion_ids)))
            self.tokens += sampled + sum(len(prompt.ids) for prompt in prompts)
            return super().complete(prompts, completion_ids, logprobs)

        def parse(self, completion: str, prompt: Any) -> tuple[Operation, ...]:
            return (Operation("INSERT", completion[:100].strip() or "nothing"),)

    settings = ModelSettings(
        loader=loader,
        precision=setting.precision,
        lora_rank=setting.lora_rank,
        gradient_checkpointing=True,
        max_prompt_tokens=setting.max_prompt_tokens,
        max_new_tokens=setting.completion_tokens,
    )
    loading = time.perf_counter()
    manager = load_manager(model_folder(folder), model=settings)
    trainable = sum(one.numel() for one in manager.model.parameters() if one.requires_grad)
    found: Figures = {
        "load_seconds": time.perf_counter() - loading,
        "trainable_parameters": trainable,
        "warm_up_seconds": [],
        "updates": [],
    }
    note(found)
    builder = Notes(manager.tokenizer, setting.max_prompt_tokens)
    started = time.perf_counter()

    def update(record: Figures) -> None:
        nonlocal started
        synchronize()
        total = time.perf_counter() - started
        if len(found["warm_up_seconds"]) < setting.warm_up:
            found["warm_up_seconds"].append(total)
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
        else:
            parts = {part: record[f"seconds/{part}"] for part in ("generation", "environment")}
            found["updates"].append(
                {
                    **parts,
                    "learning": total - sum(parts.values()),
                    "total": total,
                    "rows": builder.rows,
                    "tokens": builder.tokens,
                    "sampled_tokens": builder.sampled,
                    "mean_abs_advantage": record["advantages/mean_abs"],
                }
            )
            found.update(peak_bytes())
            note(found)
        builder.rows = builder.tokens = builder.sampled = 0
        started = time.perf_counter()

    trainer_class = load_trainer_class(unsloth=loader == "unsloth")
    trainer = trainer_class(
        manager.model,
        grpo_config(
            folder / loader,
            updates=setting.warm_up + setting.updates,
            instances_per_update=setting.instances_per_update,
            num_generations=setting.num_generations,
            max_completion_length=setting.completion_tokens,
            learning_rate=1e-5,
            seed=0,
            **settings.trainer_arguments(manager.model),
        ),
        instances=made_instances(setting),
        builder=builder,
        agent=EveryOther(),
        rollout=RolloutSettings(num_generations=setting.num_generations),
        scheme="outcome-only",
        on_update=update,
    )
    started = time.perf_counter()
    trainer.train()


def run_tiny(setting: Setting, folder: Path, note: Callable[[Figures], None]) -> None:
    """Time an update of the tiny manager's warm start and one of its GRPO, on the GPU if any."""
    from finemem_lib.training import warm_start
    from finemem_lib.training.run import train_manager

    found: Figures = {}
    with torch.device("cuda") if torch.cuda.is_available() else contextlib.nullcontext():
        for steps in (3, setting.tiny_warm_start):  # the first one warms up
            started = time.perf_counter()
            warm_start.train(seed=0, steps=steps, log_every=0)
            synchronize()
            found["warm_start_update_seconds"] = (time.perf_counter() - started) / steps
    note(found)
    ends: list[float] = []
    train_manager(
        "tiny",
        updates=1 + setting.tiny_updates,
        instances_per_update=setting.tiny_instances,
        on_update=lambda record: (synchronize(), ends.append(time.perf_counter())),
    )
    gaps = [after - before for before, after in zip(ends, ends[1:], strict=False)]
    note({**found, "grpo_update_seconds": statistics.median(gaps)})


@dataclass(frozen=True, slots=True)
class Part:
    """A part, the seconds it may take, and whether it needs CUDA or must not see it."""

    run: Callable[[Setting, Path, Callable[[Figures], None]], None]
    limit: int
    cuda: bool | None = None


PARTS = {
    "ceilings": Part(measure_ceilings, 25),
    "model": Part(write_model, 45),
    "transformers": Part(lambda *given: train("transformers", *given), 160),
    "unsloth": Part(lambda *given: train("unsloth", *given), 190, cuda=True),
    "tiny on GPU": Part(run_tiny, 40, cuda=True),
    "tiny on CPU": Part(run_tiny, 50, cuda=False),
}
TRAINED = ("transformers", "unsloth")


def run_part(name: str, small: bool, folder: Path, checkpoint: Path | None = None) -> Figures:
    """Run a part in a process of its own; return its figures, how it ended and how long it took."""
    part = PARTS[name]
    if part.cuda and not torch.cuda.is_available():
        return {"status": "left out", "reason": "needs a CUDA device and there is none"}
    if name in TRAINED and not model_folder(folder).is_dir():
        return {"status": "left out", "reason": "there is no model to load"}
    figures, log = folder / f"{name}.json", folder / f"{name}.log"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    if part.cuda is False:
        environment["CUDA_VISIBLE_DEVICES"] = ""
    started = time.perf_counter()
    with log.open("w") as output:
        child = subprocess.Popen(
            [
                sys.executable,
                __file__,
                "--part",
                name,
                "--folder",
                str(folder),
                *(["--small"] if small else []),
                *(["--checkpoint", str(checkpoint)] if checkpoint else []),
            ],
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            cwd=folder,
            start_new_session=True,
        )
        try:
            code = child.wait(part.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
                child.wait()
    found: Figures = json.loads(figures.read_text()) if figures.is_file() else {}
    found["seconds"] = time.perf_counter() - started
    if code == 0:
        return {"status": "ok", **found}
    said = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    print(*said[-15:], sep="\n", file=sys.stderr)
    if code is None:
        return {"status": "stopped", "reason": f"its limit of {part.limit} s", **found}
    return {"status": "failed", "reason": said[-1] if said else f"exit code {code}", **found}


# What it comes to.


def learning_flop(shape: ModelShape, rows: int, tokens: float, sampled: float) -> float:
    """Return the useful FLOP of one update's forward and backward pass, see the module.

    >>> shape = ModelShape(5, 1, 3, 1, 2, 1, 1)  # 5 in the head, 15 in linear layers
    >>> learning_flop(shape, rows=1, tokens=4, sampled=2)  # 4 * (15*4 + 5*2) + 12 * 2 * 4**2/2
    472.0
    """
    head = shape.vocab_size * shape.hidden_size
    pairs = tokens**2 / rows / 2
    width = shape.num_attention_heads * shape.head_dim
    return (
        4 * (shape.linear_parameters * tokens + head * sampled)
        + 12 * shape.num_hidden_layers * width * pairs
    )


def generation_bytes(setting: Setting, tokens: float, sampled: float) -> float:
    """Return the least bytes that one update's generation reads: for every token of a completion
    the weights once, and the keys and values of every row, half of its completion long.

    >>> shape = ModelShape(5, 1, 3, 1, 2, 1, 1)  # 23 parameters, 2 keys and values per token
    >>> setting = Setting(shape, num_generations=2, instances_per_update=1, num_chunks=1)
    >>> generation_bytes(setting, tokens=20, sampled=8)  # 4 passes, 2 bytes: 23, 2 rows of 8 * 2
    440.0
    """
    at_once = setting.instances_per_update * setting.num_generations
    length, completion = tokens / setting.rows, sampled / setting.rows
    cached = at_once * (length - completion / 2) * setting.model.cache_bytes / 2
    passes = setting.num_chunks * completion
    return passes * setting.bytes_per_weight * (setting.model.parameters + cached)


def rates(part: Figures, setting: Setting, ceilings: Figures) -> Figures:
    """Return the rates of a trained part, medians over its updates; empty without one.

    Tokens per second of generation are sampled ones; of learning, those of prompts and completions.
    """
    updates = part.get("updates")
    if not updates:
        return {}
    names = ("generation", "environment", "learning", "total", "tokens", "sampled_tokens")
    middle = {name: statistics.median(one[name] for one in updates) for name in names}
    found = {
        "generation_tokens_per_second": middle["sampled_tokens"] / middle["generation"],
        "learning_tokens_per_second": middle["tokens"] / middle["learning"],
        **{f"{name}_seconds": middle[name] for name in names[:4]},
        "measured_updates": len(updates),
    }
    if "flop_per_second" in ceilings:
        flop = learning_flop(
            setting.model, setting.rows, middle["tokens"], middle["sampled_tokens"]
        )
        read = generation_bytes(setting, middle["tokens"], middle["sampled_tokens"])
        found |= {
            "learning_share_of_matmul": flop / middle["learning"] / ceilings["flop_per_second"],
            "generation_share_of_copy": read
            / middle["generation"]
            / ceilings["copy_bytes_per_second"],
        }
    return found


def compared(parts: dict[str, Figures]) -> Figures:
    """Return how many times faster and smaller Unsloth is, where both were measured."""
    plain, unsloth = (parts.get(name, {}) for name in TRAINED)
    if "total_seconds" not in plain or "total_seconds" not in unsloth:
        return {}
    return {
        "update_times_faster": plain["total_seconds"] / unsloth["total_seconds"],
        "peak_bytes_share": unsloth["peak_bytes"] / plain["peak_bytes"],
    }


def print_plan(setting: Setting, names: Sequence[str], checkpoint: Path | None = None) -> None:
    model = setting.model
    size = setting.chunk_tokens + setting.completion_tokens
    print(
        f"model: {checkpoint.name if checkpoint else 'Qwen3 with random weights'}, "
        f"{model.num_hidden_layers} layers, {model.parameters:,} parameters "
        f"({setting.precision}); LoRA of rank {setting.lora_rank}: "
        f"{model.lora_parameters(setting.lora_rank):,} parameters\n"
        f"update: {setting.instances_per_update} instances x {setting.num_generations} rollouts x "
        f"{setting.num_chunks} chunks = {setting.rows} rows of {setting.chunk_tokens:,} + "
        f"{setting.completion_tokens} tokens beside the instruction and the memory: at least "
        f"{setting.rows * size:,} tokens, {setting.rows * setting.completion_tokens:,} of them "
        f"sampled, {setting.instances_per_update * setting.num_generations} rows at a time\n"
        f"updates: {setting.warm_up} to warm up and {setting.updates} measured, with each of "
        "transformers and Unsloth\n"
        f"ceilings: a bf16 product of {setting.matrix} x {setting.matrix} matrices, a copy of "
        f"{setting.copied_bytes:,} bytes\n"
        f"tiny manager: {setting.tiny_warm_start} updates of its warm start, "
        f"{setting.tiny_updates} of GRPO, on the GPU and on the CPU\n"
        "limits: "
        + ", ".join(f"{name} {PARTS[name].limit} s" for name in names)
        + f"; {sum(PARTS[name].limit for name in names)} s in all"
    )


def print_figures(result: Figures) -> None:
    parts = result["parts"]
    for name, part in parts.items():
        ended = part["status"] + (f" ({part['reason']})" if "reason" in part else "")
        print(f"{name:14}{part.get('seconds', 0):7.1f} s  {ended}")
    if "card" in (ceilings := parts.get("ceilings", {})):
        print(
            f"{ceilings['card']['name']}: {ceilings['flop_per_second'] / 1e12:.3g} TFLOP/s bf16, "
            f"{ceilings['copy_bytes_per_second'] / 1e9:.4g} GB/s copied"
        )
    trained = [name for name in TRAINED if "total_seconds" in parts.get(name, {})]
    rows = (
        ("generated tokens/s", "generation_tokens_per_second", 1, ".0f"),
        ("  of copy ceiling", "generation_share_of_copy", 1, ".1%"),
        ("learnt tokens/s", "learning_tokens_per_second", 1, ".0f"),
        ("  of matmul ceiling", "learning_share_of_matmul", 1, ".1%"),
        ("update s", "total_seconds", 1, ".2f"),
        ("  generation s", "generation_seconds", 1, ".2f"),
        ("  environment s", "environment_seconds", 1, ".2f"),
        ("  learning s", "learning_seconds", 1, ".2f"),
        ("peak GiB held", "peak_bytes", 1 / 2**30, ".2f"),
        ("peak GiB in use", "peak_bytes_in_use", 1 / 2**30, ".2f"),
        ("updates measured", "measured_updates", 1, "d"),
    )
    if trained:
        print(f"\n{'':22}" + "".join(f"{name:>14}" for name in trained))
    for title, key, factor, form in rows:
        values = [parts[name].get(key) for name in trained]
        if any(value is not None for value in values):
            print(
                f"{title:22}"
                + "".join(
                    f"{'–' if value is None else format(value * factor, form):>14}"
                    for value in values
                )
            )
    if result["compared"]:
        print(
            f"Unsloth: {result['compared']['update_times_faster']:.2f} times as many updates per "
            f"second, {result['compared']['peak_bytes_share']:.2f} of the memory"
        )
    for name in ("tiny on GPU", "tiny on CPU"):
        if "warm_start_update_seconds" in parts.get(name, {}):
            grpo = parts[name].get("grpo_update_seconds")
            print(
                f"{name}: warm start {1000 * parts[name]['warm_start_update_seconds']:.1f} ms per "
                f"update, GRPO {'–' if grpo is None else f'{grpo:.2f} s'} per update"
            )


def run_inside(name: str, setting: Setting, folder: Path) -> None:
    """Run a part in this process, its figures going to a file that is never half-written."""
    PARTS[name].run(setting, folder, lambda found: write_json(folder / f"{name}.json", found))


def main(given: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--plan", action="store_true", help="say what would be run, and stop")
    parser.add_argument("--small", action="store_true", help="a two-layer model, on the CPU")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=PARTS,
        metavar="NAME",
        default=list(PARTS),
        help="only these of: " + ", ".join(PARTS),
    )
    parser.add_argument(
        "--checkpoint", type=Path, metavar="FOLDER", help="train this model, with real weights"
    )
    parser.add_argument("--output", type=Path, help="also write the figures as JSON to a new file")
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    if arguments.output and arguments.output.exists():
        parser.error(f"{arguments.output} exists; name a new file or remove it")
    checkpoint = arguments.checkpoint and arguments.checkpoint.resolve()
    if checkpoint and not (checkpoint / "config.json").is_file():
        parser.error(f"{arguments.checkpoint} holds no config.json; name a checkpoint's folder")
    setting = SMALL if arguments.small else setting_of(checkpoint) if checkpoint else FULL
    if arguments.small:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.part:
        run_inside(arguments.part, setting, arguments.folder)
        return
    names = [
        name for name in PARTS if name in arguments.parts and not (checkpoint and name == "model")
    ]
    if not arguments.small and not torch.cuda.is_available() and not arguments.plan:
        print("There is no CUDA device here; on one, this would run:")
        arguments.plan = True
    print_plan(setting, names, checkpoint)
    if arguments.plan:
        return
    started = time.perf_counter()
    result: Figures = {
        "benchmark": "gpu",
        "versions": versions() | versions(GPU_PACKAGES),
        "cpus": os.cpu_count(),
        "checkpoint": checkpoint and checkpoint.name,
        "setting": dataclasses.asdict(setting),
        "parts": (parts := {}),
    }
    # Ended from outside, it ends the part under way, which has a process group of its own.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(f"ended after {', '.join(parts)}"))
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        if checkpoint:
            model_folder(folder).symlink_to(checkpoint)
        for name in names:
            print(f"running {name} ...", flush=True)
            parts[name] = run_part(name, arguments.small, folder, checkpoint)
            if name in TRAINED:
                parts[name] |= rates(parts[name], setting, parts.get("ceilings", {}))
            result["compared"] = compared(parts)
            result["seconds"] = time.perf_counter() - started
            if arguments.output:
                write_json(arguments.output, result)
    print_figures(result)
    print(f"{result['seconds']:.0f} s in all")
    if any(part["status"] in ("failed", "stopped") for part in parts.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
