"""Train a memory manager with GRPO: `train_manager` and its result."""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.data.faults import EvidenceFaults
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.managers.loading import ModelSettings, import_unsloth
from finemem_lib.managers.model import ModelManager, load_manager
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.readers.extractive import reader_for
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings
from finemem_lib.seeds import stable_seed
from finemem_lib.training.checkpoints import (
    checkpoint_to_resume,
    hold_settings,
    last_checkpoint,
    restore_reader,
    update_of,
)
from finemem_lib.training.config import grpo_config
from finemem_lib.training.record import StoredUpdates
from finemem_lib.training.schemes import RewardScheme
from finemem_lib.training.stops import check_reporter, is_out_of_memory, memory_advice
from finemem_lib.training.trl_adapter import Record, load_trainer_class
from finemem_lib.trajectory import Instance, Trajectory, write_jsonl


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """A training run: the manager as trained so far, one record per finished update (of a resumed
    run from its first), the trajectories of the updates that were to be kept (per update, instance
    and rollout), all updates as they are stored in `output_dir`, the last checkpoint, seconds, and
    whether an interrupt ended it early."""

    manager: ModelManager
    records: tuple[Record, ...]
    trajectories: dict[int, list[list[Trajectory]]]
    updates: StoredUpdates | None
    checkpoint: Path | None
    seconds: float
    interrupted: bool = False


def train_manager(
    checkpoint: str | Path = "tiny",
    *,
    model: ModelSettings | None = None,
    manager: ModelManager | None = None,
    scheme: RewardScheme = "Fine-Mem",
    rewards: RewardSettings | None = None,
    rollout: RolloutSettings | None = None,
    stream: StreamSettings | None = None,
    instances: Sequence[Instance] | None = None,
    agent: ReasoningAgent | None = None,
    updates: int = 60,
    instances_per_update: int = 8,
    learning_rate: float = 7e-4,
    seed: int = 0,
    w1_until: int | None = None,
    evidence_faults: EvidenceFaults | None = None,
    keep_updates: Collection[int] = (),
    on_update: Callable[[Record], None] | None = None,
    output_dir: str | Path | None = None,
    save_every: int = 20,
    resume: bool = False,
    **config: Any,
) -> TrainingResult:
    """Train a memory manager with GRPO and return it with the curves.

    `checkpoint` and `model` are what `load_manager` takes; a `manager` that they were loaded into
    already is trained itself, not a second copy of it. Without `instances` and `agent`, every
    update plays new planted streams of shape `stream`, answered by the extractive reader that knows
    the stream's verbs; `instances` are taken in order, again from the first when they run out.
    With `output_dir`, a checkpoint is written every `save_every` updates and at the end, and
    `resume` goes on from the newest, also after a kill: the next update is then the one an
    uninterrupted run would have made, but for what `checkpoints.MEMORY_ONLY` may round otherwise,
    and for completions that vLLM samples (`model.fast_inference`), whose own random state nothing
    here seeds or saves. Every update is written to ``updates`` there, see `training_record`.
    `config` are `grpo_config`'s arguments, among them `report_to` ("none", "tensorboard",
    "trackio" or "wandb").

    `w1_until` makes w1 fall linearly from its value to 0 at that update. `evidence_faults` falsify
    the evidence that credit is attributed by, never a score; kept trajectories are free of them.

    An interrupt (KeyboardInterrupt, JupyterLab's stop button) ends training after the last finished
    update, and the result so far comes back with `interrupted` set. Before the first update begins
    it is raised as ever. Where there is an `output_dir`, the checkpoint of the last finished update
    is written after an interrupt and before any error is raised, but for an error amid the
    optimizer's step, which may have spoilt the weights.

    Raises:
        ValueError: a setting is out of range, or `resume` finds no checkpoint, or one that was
            trained with other settings or on other instances.
        FileExistsError: `output_dir` has checkpoints and `resume` is false.
        FloatingPointError: a loss or gradient is not finite; its batch is written into
            ``nonfinite-<update>.parquet``.
        MemoryError: out of memory; the message names the settings to change.
        ModuleNotFoundError: the package that `report_to` asks for is not installed.
    """
    started = time.perf_counter()
    rollout, model = rollout or RolloutSettings(), model or ModelSettings()
    check_reporter(config.get("report_to", "none"))
    if model.loader == "unsloth":
        import_unsloth()  # before anything that follows imports transformers
    last = checkpoint_to_resume(output_dir, resume)
    stored = None if output_dir is None else StoredUpdates(Path(output_dir, "updates"))
    if output_dir is not None:
        hold_settings(
            Path(output_dir),
            resume,
            {
                "checkpoint": str(checkpoint),
                "model": dataclasses.asdict(model),
                "scheme": scheme,
                "seed": seed,
                "rewards": dataclasses.asdict(rewards or RewardSettings()),
                "w1_until": w1_until,
                "rollout": dataclasses.asdict(rollout),
                "learning_rate": learning_rate,
                "stream": stream and dataclasses.asdict(stream),
                "instances": instances and stable_seed(write_jsonl(instances)),
                "reader": agent and agent.settings,
                "evidence_faults": evidence_faults and dataclasses.asdict(evidence_faults),
                "instances_per_update": instances_per_update,
                **{name: value for name, value in config.items() if name != "report_to"},
            },
        )
    manager = manager or load_manager(checkpoint, model=model, seed=seed)
    if instances is None:
        instances = planted_instances("train", updates * instances_per_update, seed, stream)
    agent = agent or reader_for(instances)
    if last is not None:
        restore_reader(agent, last)
    if stored is not None:
        stored.drop_after(update_of(last))
    with tempfile.TemporaryDirectory() as scratch:
        saving = (
            {}
            if output_dir is None
            else {
                "save_strategy": "steps",
                "save_steps": save_every,
                "save_total_limit": 2,
            }
        )
        arguments = grpo_config(
            **{
                "output_dir": output_dir or scratch,
                "updates": updates,
                "instances_per_update": instances_per_update,
                "num_generations": rollout.num_generations,
                "max_completion_length": manager.max_new_tokens,
                "learning_rate": learning_rate,
                "seed": seed,
                **saving,
                **model.trainer_arguments(manager.model),
                **config,
            }
        )
        trainer = load_trainer_class(unsloth=model.loader == "unsloth")(
            manager.model,
            arguments,
            instances=instances,
            builder=manager.builder,
            agent=agent,
            rollout=rollout,
            scheme=scheme,
            rewards=rewards,
            w1_until=w1_until,
            evidence_faults=evidence_faults,
            keep_updates=keep_updates,
            updates_folder=None if stored is None else stored.folder,
            on_update=on_update,
            manager_name=manager.name,
        )
        interrupted = False
        try:
            trainer.train(resume_from_checkpoint=last and str(last))
        except (KeyboardInterrupt, Exception) as stop:
            begun = trainer.whole_updates.begun
            if begun and output_dir is not None:
                trainer.save_finished(stop)
            if is_out_of_memory(stop):
                held = last_checkpoint(output_dir)
                advice = memory_advice(arguments, manager.builder, model, held)
                raise MemoryError(
                    f"train_manager: update {trainer.state.global_step + 1} ran {advice}"
                ) from stop
            interrupted = begun and isinstance(stop, KeyboardInterrupt)
            if not interrupted:
                raise
        finally:
            trainer.interrupts.restore()
    manager.model.zero_grad()
    manager.model.eval()
    return TrainingResult(
        manager=manager,
        records=tuple(entry for entry in trainer.state.log_history if "reward" in entry),
        trajectories={  # those of before a stop were written then
            update: trainer.kept[update] if update in trainer.kept else stored[update]
            for update in sorted(keep_updates)
            if update <= trainer.state.global_step
            and (update in trainer.kept or update in (stored or ()))
        },
        updates=stored,
        checkpoint=last_checkpoint(output_dir),
        seconds=time.perf_counter() - started,
        interrupted=interrupted,
    )
