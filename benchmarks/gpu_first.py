"""What is tried first on a card: one update with Unsloth, and its gradient against TRL's own.

Three processes, because Unsloth rewrites TRL when it is imported: "update" loads the model with
Unsloth and a LoRA adapter as a run does, samples and learns once; "plain" and "unsloth" make one
update each on the same given completions with the same adapter weights, all in single precision,
and keep its gradient. Completions are given because two samplers need not agree on a token; rows,
advantages, loss and backward pass are `StepGRPOTrainer`'s.

    python benchmarks/gpu_first.py MODEL_FOLDER --output FILE [--small]

Without CUDA, "update" is left out, and "unsloth" takes a model that transformers loaded and
the trainer that Unsloth generates, where Unsloth is installed.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.gpu import SMALL, EveryOther, Figures, Setting, made_instances, setting_of
from finemem_lib.managers.prompts import PromptBuilder
from finemem_lib.trajectory import Operation
from finemem_lib.util.files import write_json
from finemem_lib.util.provenance import versions
from finemem_lib.util.validation import parse_json

TOLERANCE = 1e-3
"""Largest difference of the two gradients, as a share of TRL's norm. On the CPU it is 6e-7 (Unsloth
2026.10.7, torch 2.11, two layers); the kernels of a card sum in another order."""

LEGS = ("update", "plain", "unsloth")
LIMIT, SMALL_LIMIT = 140, 1200
"""Seconds that each of them may take, on a card and in a small run on a busy machine."""


class AnyText(PromptBuilder):
    """Reads whatever a completion says as the INSERT of it."""

    def parse(self, completion: str, prompt: Any) -> tuple[Operation, ...]:
        return (Operation("INSERT", completion[:100].strip() or "nothing"),)


def given_completions(tokenizer: Any, rows: int, step: int) -> list[list[int]]:
    """Return a completion for each row of a step, all different, of 6 tokens and more."""
    texts = [f"At step {step} writer {row} kept the fact {row * row}." for row in range(rows)]
    return [[*tokenizer(text).input_ids, tokenizer.eos_token_id] for text in texts]


def same_adapter(model: Any) -> list[str]:
    """Give every adapter weight a value that depends on its name only; return the names.

    Both factors differ from zero, so that both have a gradient.
    """
    named = sorted((name, one) for name, one in model.named_parameters() if one.requires_grad)
    for number, (_, weight) in enumerate(named):
        rng = torch.Generator().manual_seed(number)
        weight.data.copy_(0.02 * torch.randn(weight.shape, generator=rng))
    return [name for name, _ in named]


def settings_of(loader: str, setting: Setting) -> Any:
    from finemem_lib.managers.loading import ModelSettings

    return ModelSettings(
        loader=loader,  # type: ignore[arg-type]  # one of the two
        lora_rank=setting.lora_rank,
        gradient_checkpointing=loader == "unsloth",
        max_prompt_tokens=setting.max_prompt_tokens,
        max_new_tokens=setting.completion_tokens,
    )


def load(loader: str, single: bool, model: Path, setting: Setting) -> tuple[Any, Any]:
    """Return manager and trainer class; `single` keeps all weights in single precision."""
    from finemem_lib.managers.loading import import_unsloth
    from finemem_lib.managers.model import load_manager
    from finemem_lib.training.trl_adapter import trainer_class

    if loader == "unsloth" and torch.cuda.is_available():
        model_class = import_unsloth().FastLanguageModel
        given = model_class.from_pretrained
        if single:  # else Unsloth's dtype None is bf16, whatever the checkpoint holds
            model_class.from_pretrained = lambda **named: given(**named | {"dtype": torch.float32})
        manager = load_manager(model, model=settings_of(loader, setting))
    else:
        if loader == "unsloth":
            from tests.helpers.unsloth_process import import_unsloth as on_cpu

            on_cpu()
        manager = load_manager(model, model=settings_of("transformers", setting))
        kind = type(manager.model)
        # What FastLanguageModel would add.
        kind.for_training = lambda self, **settings: self.train()
        kind.for_inference = lambda self: self.eval()
    if single:
        manager.model.float()
        torch.set_float32_matmul_precision("highest")
        # No autocast in Unsloth's loss: its word for that is that all training is in bf16. Loading
        # sets the variable, making the trainer reads it.
        os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"
    return manager, trainer_class(loader == "unsloth")


def one_update(leg: str, model: Path, setting: Setting, folder: Path) -> Figures:
    """Make one update, save its gradient as LEG.pt, and return what it came to."""
    from transformers import TrainerCallback

    from finemem_lib.managers.rollout import RolloutSettings
    from finemem_lib.training.config import grpo_config

    loader, single = ("transformers" if leg == "plain" else "unsloth"), leg != "update"
    started = time.perf_counter()
    manager, base = load(loader, single, model, setting)
    loaded = time.perf_counter()
    gradient: dict[str, torch.Tensor] = {}
    record: Figures = {}

    class Capture(TrainerCallback):
        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            for name, weight in others["model"].named_parameters():
                if weight.requires_grad:
                    gradient[name] = weight.grad.float().cpu()

    class Watched(base):  # type: ignore[misc, valid-type]  # made at run time
        def _sample(self, prompts: Any, step: int) -> Any:
            if single:
                return given_completions(self.processing_class, len(prompts), step), None
            return super()._sample(prompts, step)

    if single:
        same_adapter(manager.model)
    arguments = settings_of(loader, setting).trainer_arguments(manager.model)
    trainer = Watched(
        manager.model,
        grpo_config(
            folder / leg,
            updates=1,
            instances_per_update=setting.instances_per_update,
            num_generations=setting.num_generations,
            max_completion_length=setting.completion_tokens,
            learning_rate=1e-5,
            seed=0,
            max_grad_norm=0.0,
            **arguments | ({"bf16": False} if single else {}),
        ),
        instances=made_instances(setting),
        builder=AnyText(manager.tokenizer, setting.max_prompt_tokens),
        agent=EveryOther(),
        rollout=RolloutSettings(num_generations=setting.num_generations),
        scheme="outcome-only",
        on_update=record.update,
        callbacks=[Capture()],
    )
    trainer.train()
    kinds = [part.__name__ for part in type(trainer).__mro__]
    if (loader == "unsloth") != ("UnslothGRPOTrainer" in kinds):
        raise RuntimeError(
            f"the trainer of {leg} descends from {', '.join(kinds)}, expected "
            f"{'' if loader == 'unsloth' else 'no '}UnslothGRPOTrainer among them; Unsloth must be "
            "imported before TRL, and only where it is asked for"
        )
    if not gradient or not all(torch.isfinite(one).all() for one in gradient.values()):
        raise FloatingPointError(
            f"the gradient of {leg} is {'not finite' if gradient else 'empty'}, expected a number "
            "for every adapter weight; run again with UNSLOTH_COMPILE_DISABLE=1 to rule its "
            "compiled kernels out"
        )
    torch.save(
        {
            "gradient": gradient,
            "advantages": trainer.played.advantages,
            "completions": [step.completion_ids for step in trainer.replayed],
        },
        folder / f"{leg}.pt",
    )
    return {
        "load_seconds": loaded - started,
        "update_seconds": time.perf_counter() - loaded,
        "device": str(next(manager.model.parameters()).device),
        "trained_tensors": len(gradient),
        "gradient_norm": float(torch.cat([one.flatten() for one in gradient.values()]).norm()),
        "loss": record.get("loss"),
        "reward": record["reward"],
    }


def compared(folder: Path) -> Figures:
    """Return how much the two gradients differ.

    Raises:
        ValueError: Their rows, advantages or weights differ, so that they cannot be compared.
    """
    plain, unsloth = (
        torch.load(folder / f"{leg}.pt", weights_only=True) for leg in ("plain", "unsloth")
    )
    pairs = zip(plain["advantages"], unsloth["advantages"], strict=True)
    for what, same in (
        ("completions", plain["completions"] == unsloth["completions"]),
        ("advantages", all(abs(one - other) < 1e-5 for one, other in pairs)),
    ):
        if not same:
            raise ValueError(f"the {what} differ, expected the same in both; see _sample here")
    names = [sorted(one["gradient"]) for one in (plain, unsloth)]
    if names[0] != names[1]:
        odd = sorted({*names[0]} ^ {*names[1]})
        raise ValueError(
            f"{len(odd)} weights have a gradient in one only, such as {odd[0]}, expected the same "
            "adapter; compare managers/loading.py with Unsloth's get_peft_model"
        )
    one, other = (
        torch.cat([run["gradient"][name].flatten().double() for name in names[0]])
        for run in (plain, unsloth)
    )
    return {
        "relative_difference": float((one - other).norm() / one.norm()),
        "cosine": float(torch.cosine_similarity(one, other, dim=0)),
        "tolerance": TOLERANCE,
        "weights": one.numel(),
    }


def run_leg(leg: str, model: Path, small: bool, folder: Path) -> Figures:
    """Run one of `LEGS` in a process of its own and return what it came to, or why it did not."""
    if leg != "plain" and importlib.util.find_spec("unsloth") is None:
        return {"status": "left out", "reason": "Unsloth is not installed"}
    if leg == "update" and not torch.cuda.is_available():
        return {"status": "left out", "reason": "Unsloth loads a model on a CUDA device only"}
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "UNSLOTH_DISABLE_STATISTICS": "1"}
    if leg == "unsloth":  # compiling would take longer than the update and is tried in "update"
        environment["UNSLOTH_COMPILE_DISABLE"] = "1"
    command = [sys.executable, str(Path(__file__).resolve()), str(model), "--leg", leg]
    command += ["--folder", str(folder), *(["--small"] if small else [])]
    started = time.perf_counter()
    limit, own = (SMALL_LIMIT if small else LIMIT), folder / f"{leg}.work"
    own.mkdir()  # Unsloth writes what it generates into the folder that it is started in
    try:
        done = subprocess.run(
            command, cwd=own, env=environment, capture_output=True, text=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return {"status": "stopped", "reason": f"its limit of {limit} s"}
    seconds = time.perf_counter() - started
    if done.returncode:
        said = [line for line in done.stderr.splitlines() if line.strip()]
        print(*said[-15:], sep="\n", file=sys.stderr)
        reason = said[-1] if said else f"exit code {done.returncode}"
        return {"status": "failed", "reason": reason, "seconds": seconds}
    found: Figures = parse_json((folder / f"{leg}.json").read_bytes())
    return {"status": "ok", **found, "seconds": seconds}


def main(given: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, metavar="MODEL_FOLDER")
    parser.add_argument("--output", type=Path, help="a JSON file, written again after each leg")
    parser.add_argument("--small", action="store_true", help="two rollouts of 40 words")
    parser.add_argument("--leg", choices=LEGS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args(given)
    model = arguments.model.resolve()
    setting = SMALL if arguments.small else setting_of(model)
    if arguments.leg:
        found = one_update(arguments.leg, model, setting, arguments.folder)
        write_json(arguments.folder / f"{arguments.leg}.json", found)
        return 0
    result: Figures = {"benchmark": "gpu_first", "versions": versions(), "legs": {}}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        with ThreadPoolExecutor() as pool:  # side by side: most of each is importing
            running = {
                pool.submit(run_leg, leg, model, arguments.small, folder): leg for leg in LEGS
            }
            for done in as_completed(running):
                result["legs"][running[done]] = done.result()
                if arguments.output:
                    write_json(arguments.output, result)
        if all((folder / f"{leg}.pt").is_file() for leg in ("plain", "unsloth")):
            result["gradient"] = compared(folder)
    if arguments.output:
        write_json(arguments.output, result)
    for leg, ended in sorted(result["legs"].items()):
        print(f"{leg}: {ended['status']} {ended.get('reason', '')}")
    failed = [leg for leg in LEGS if result["legs"][leg]["status"] in ("failed", "stopped")]
    if failed:
        return 1
    if "gradient" in result:
        differ = result["gradient"]["relative_difference"]
        print(f"gradients differ by {differ:.2g} of TRL's norm, at most {TOLERANCE} is expected")
        if not differ <= TOLERANCE:
            print(
                f"failed: Unsloth's first gradient differs from TRL's by {differ:.2g} of its norm, "
                f"expected at most {TOLERANCE}; train with loader transformers",
                file=sys.stderr,
            )
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
