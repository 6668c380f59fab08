"""Train a memory manager with GRPO: `train_manager`, the training run and its result."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finemem_lib.data.faults import EvidenceFaults
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.layers.content_reward import ContentJudge, rule_verdicts
from finemem_lib.managers.loading import ModelSettings, import_unsloth
from finemem_lib.managers.model import ModelManager, load_manager, saved_settings
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
from finemem_lib.training.co_training import Learns
from finemem_lib.training.config import grpo_config
from finemem_lib.training.local_groups import LocalGroups
from finemem_lib.training.record import StoredUpdates
from finemem_lib.training.schemes import Scheme, scheme_record
from finemem_lib.training.stops import check_reporter, is_out_of_memory, memory_advice
from finemem_lib.training.trl_adapter import Record, StepGRPO, load_trainer_class
from finemem_lib.trajectory import Instance, Trajectory, write_jsonl
from finemem_lib.util.provenance import cpu_threads


@dataclass(frozen=True, slots=True)
class TrainingResult:
    """The result of a training run.

    Attributes:
        manager: The trained manager.
        records: One record per finished update, including those before a resume.
        trajectories: Trajectories of the updates in `keep_updates`, by update, per instance and
            rollout.
        updates: All updates stored in `output_dir`; `None` without `output_dir`.
        checkpoint: The last checkpoint; `None` without `output_dir`.
        seconds: Duration of this call in seconds.
        interrupted: Whether an interrupt ended the run early.
    """

    manager: ModelManager
    records: tuple[Record, ...]
    trajectories: dict[int, Sequence[Sequence[Trajectory]]]
    updates: StoredUpdates | None
    checkpoint: Path | None
    seconds: float
    interrupted: bool = False


@dataclass(kw_only=True)
class TrainingRun:
    """One run of `train_manager`; the attributes are the arguments of that function.

    Attributes:
        config: Further fields of TRL's GRPOConfig.
    """

    checkpoint: str | Path
    model: ModelSettings
    manager: ModelManager | None
    scheme: Scheme
    rewards: RewardSettings
    rollout: RolloutSettings
    stream: StreamSettings | None
    instances: Sequence[Instance] | None
    agent: ReasoningAgent | None
    learns: Learns
    local_groups: LocalGroups | None
    content_judge: ContentJudge | None
    updates: int
    instances_per_update: int
    learning_rate: float
    seed: int
    w1_until: int | None
    evidence_faults: EvidenceFaults | None
    keep_updates: Collection[int]
    on_update: Callable[[Record], None] | None
    output_dir: Path | None
    save_every: int
    resume: bool
    threads: int
    processes: int | None
    config: Mapping[str, Any]

    def train(self) -> TrainingResult:
        """Train, or resume, and return the result; see `train_manager`."""
        started = time.perf_counter()
        check_reporter(self.config.get("report_to", "none"))
        if self.model.loader == "unsloth":
            import_unsloth()  # must precede every import of transformers
        last = checkpoint_to_resume(self.output_dir, self.resume)
        if self.output_dir is not None:
            hold_settings(self.output_dir, self.resume, self._settings())
        manager = self.manager or load_manager(self.checkpoint, model=self.model, seed=self.seed)
        stored = self._stored(last)
        with tempfile.TemporaryDirectory() as scratch, torch_threads(self.threads), old_objects():
            trainer = self._trainer(manager, stored, last, self.output_dir or Path(scratch))
            interrupted = self._run(trainer, last)
        manager.model.zero_grad()
        manager.model.train(False)
        return TrainingResult(
            manager=manager,
            records=tuple(entry for entry in trainer.state.log_history if "reward" in entry),
            trajectories=self._kept(trainer, stored),
            updates=stored,
            checkpoint=last_checkpoint(self.output_dir),
            seconds=time.perf_counter() - started,
            interrupted=interrupted,
        )

    def _settings(self) -> dict[str, Any]:
        """Return the settings that must not change when the run is resumed."""
        faults, stream = self.evidence_faults, self.stream
        return {
            "checkpoint": str(self.checkpoint),
            "model": dataclasses.asdict(self.model),
            "scheme": scheme_record(self.scheme),
            "seed": self.seed,
            "rewards": dataclasses.asdict(self.rewards),
            "w1_until": self.w1_until,
            "rollout": dataclasses.asdict(self.rollout),
            "learning_rate": self.learning_rate,
            "stream": stream and dataclasses.asdict(stream),
            "instances": self.instances and stable_seed(write_jsonl(self.instances)),
            "reader": self.agent and self.agent.settings,
            "learns": None if self.learns == "manager" else self.learns,  # as in older runs
            "local_groups": self.local_groups and dataclasses.asdict(self.local_groups),
            "evidence_faults": faults and dataclasses.asdict(faults),
            "instances_per_update": self.instances_per_update,
            **{name: value for name, value in self.config.items() if name != "report_to"},
        }

    def _stored(self, last: Path | None) -> StoredUpdates | None:
        """Return the stored updates, after removing those later than the checkpoint `last`."""
        if self.output_dir is None:
            return None
        stored = StoredUpdates(self.output_dir / "updates")
        stored.drop_after(update_of(last))
        return stored

    def _trainer(
        self, manager: ModelManager, stored: StoredUpdates | None, last: Path | None, folder: Path
    ) -> StepGRPO:
        """Return TRL's trainer with the instances and the reader of the run."""
        instances = self.instances
        if instances is None:
            number = self.updates * self.instances_per_update
            instances = planted_instances("train", number, self.seed, self.stream)
        agent = self.agent or reader_for(instances)
        if last is not None:
            restore_reader(agent, last)
        trainer = load_trainer_class(unsloth=self.model.loader == "unsloth")(
            manager.model,
            grpo_config(**self._trainer_arguments(manager, folder)),
            instances=instances,
            builder=manager.builder,
            agent=agent,
            rollout=self.rollout,
            scheme=self.scheme,
            rewards=self.rewards,
            w1_until=self.w1_until,
            evidence_faults=self.evidence_faults,
            keep_updates=self.keep_updates,
            updates_folder=None if stored is None else stored.folder,
            on_update=self.on_update,
            manager_name=manager.name,
            learns=self.learns,
            local_groups=self.local_groups,
            content_judge=self.content_judge or rule_verdicts,
        )
        trainer.processes = self._processes()
        return trainer

    def _processes(self) -> int:
        """Return the number of processes for the gradient."""
        from finemem_lib.training.second_process import second_process_helps

        if self.processes not in (None, 1, 2):
            raise ValueError(
                f"train_manager: processes is {self.processes}, expected 1, 2 or None; leave it "
                "out to use a second one where it helps"
            )
        return 2 if self.processes != 1 and second_process_helps() else 1

    def _trainer_arguments(self, manager: ModelManager, folder: Path) -> dict[str, Any]:
        """Return the arguments of `grpo_config`; values in `config` take precedence."""
        saving: dict[str, Any] = {
            "save_strategy": "steps",
            "save_steps": self.save_every,
            "save_total_limit": 2,
        }
        return {
            "output_dir": folder,
            "updates": self.updates,
            "instances_per_update": self.instances_per_update,
            "num_generations": self.rollout.num_generations,
            "max_completion_length": manager.max_new_tokens,
            "learning_rate": self.learning_rate,
            "seed": self.seed,
            **({} if self.output_dir is None else saving),
            **self.model.trainer_arguments(manager.model),
            **self.config,
        }

    def _run(self, trainer: StepGRPO, last: Path | None) -> bool:
        """Train until the end, an interrupt or an error; return whether it was interrupted."""
        try:
            trainer.train(resume_from_checkpoint=None if last is None else str(last))
        except (KeyboardInterrupt, Exception) as stop:
            begun = trainer.whole_updates.begun
            if begun and self.output_dir is not None:
                trainer.save_finished(stop)
            if is_out_of_memory(stop):
                advice = memory_advice(
                    trainer.args,
                    trainer.player.builder,
                    self.model,
                    last_checkpoint(self.output_dir),
                )
                raise MemoryError(
                    f"train_manager: update {trainer.state.global_step + 1} ran {advice}"
                ) from stop
            if begun and isinstance(stop, KeyboardInterrupt):
                return True
            raise
        finally:
            trainer.interrupts.restore()
            if trainer.second is not None:
                trainer.second.close()
        return False

    def _kept(
        self, trainer: StepGRPO, stored: StoredUpdates | None
    ) -> dict[int, Sequence[Sequence[Trajectory]]]:
        """Return the kept trajectories; those before a resume are read from the stored updates."""
        kept: dict[int, Sequence[Sequence[Trajectory]]] = {}
        for update in sorted(self.keep_updates):
            if update > trainer.state.global_step:
                continue
            if update in trainer.kept:
                kept[update] = trainer.kept[update]
            elif stored is not None and update in stored:
                kept[update] = stored[update]
        return kept


def train_manager(
    checkpoint: str | Path = "tiny",
    *,
    model: ModelSettings | None = None,
    manager: ModelManager | None = None,
    scheme: Scheme = "Fine-Mem",
    rewards: RewardSettings | None = None,
    rollout: RolloutSettings | None = None,
    stream: StreamSettings | None = None,
    instances: Sequence[Instance] | None = None,
    agent: ReasoningAgent | None = None,
    learns: Learns = "manager",
    local_groups: LocalGroups | None = None,
    content_judge: ContentJudge | None = None,
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
    threads: int | None = None,
    processes: int | None = None,
    **config: Any,
) -> TrainingResult:
    """Train a memory manager with GRPO and return it with the training records.

    With `output_dir`, a checkpoint is written every `save_every` updates and at the end, every
    update is written to its folder ``updates`` (see `training.record`), and `resume` continues from
    the latest checkpoint, also after the process was killed. A resumed run plays the same updates
    as an uninterrupted run, except for rounding that depends on `checkpoints.MEMORY_ONLY` and
    `threads`, and for completions sampled by vLLM (`model.fast_inference`), whose random state is
    neither seeded nor saved.

    An interrupt (KeyboardInterrupt, JupyterLab's stop button) ends training after the last finished
    update and returns the result so far with `interrupted` set; before the first update begins it
    is raised as usual. With `output_dir`, the checkpoint of the last finished update is written
    after an interrupt and before any error is raised, except for an error during the optimizer's
    step, which may have corrupted the weights.

    Args:
        checkpoint: What `load_manager` loads: "tiny", a folder, or a name on the hub.
        model: Settings to load and prompt it (default: the saved settings).
        manager: The manager, if it is loaded already; this object is trained, not a copy of it.
        scheme: Reward scheme, or the name of a shipped one (`schemes.SCHEMES`).
        rewards: Settings of the reward terms (default: the paper's).
        rollout: Settings of the rollouts, G per instance.
        stream: Shape of the planted streams to train on if `instances` is not given.
        instances: Instances to train on, in order; after the last one, the first one follows again.
        agent: Reasoning agent that answers the questions (default: `extractive.reader_for`).
        learns: Which model is trained: "manager", or with a `TrainableReader` as agent also
            "reader", "alternately" or "jointly". To resume such a run, pass a reader with the
            initial weights.
        local_groups: Groups of completions of one step from one shared memory, which are trained on
            in addition to the rollouts (LoGo-GRPO); `None` for none.
        content_judge: Judge of the written contents, used if the scheme has the content reward
            (default: a rule).
        updates: Total number of GRPO updates.
        instances_per_update: Number of instances per update.
        learning_rate: Learning rate of Adam.
        seed: Seed of all random choices.
        w1_until: Update at which w1 has fallen linearly to 0; `None` keeps it constant.
        evidence_faults: Faults in the evidence used for credit; scores and kept trajectories do not
            change.
        keep_updates: Updates (from 1) whose trajectories the result contains.
        on_update: Called with the record of every update.
        output_dir: Folder of checkpoints and updates; `None` stores nothing on disk.
        save_every: Number of updates between checkpoints.
        resume: Whether to continue the run in `output_dir`.
        threads: Number of CPU threads of torch during training; default: OMP_NUM_THREADS, or 1.
        processes: Number of processes that compute the gradient of a model as small as the tiny
            manager, 1 or 2, with equal results; default: 2 on Linux, with one thread and two cores.
            More threads pay off for models larger than the tiny manager without a GPU.
        config: Further arguments of `grpo_config`, among them `report_to` ("none", "tensorboard",
            "trackio" or "wandb") and `loss_type`.

    Raises:
        ValueError: A setting is out of range, or `resume` is set and there is no checkpoint, or
            the run had other settings or instances.
        FileExistsError: `output_dir` has checkpoints and `resume` is false.
        FloatingPointError: A loss or gradient is not finite; its batch is written into
            ``nonfinite-<update>.parquet``.
        MemoryError: Out of memory; the message names the settings to change.
        ModuleNotFoundError: The package that `report_to` needs is not installed.
    """
    return TrainingRun(
        checkpoint=checkpoint,
        model=model or saved_settings(checkpoint),
        manager=manager,
        scheme=scheme,
        rewards=rewards or RewardSettings(),
        rollout=rollout or RolloutSettings(),
        stream=stream,
        instances=instances,
        agent=agent,
        learns=learns,
        local_groups=local_groups,
        content_judge=content_judge,
        updates=updates,
        instances_per_update=instances_per_update,
        learning_rate=learning_rate,
        seed=seed,
        w1_until=w1_until,
        evidence_faults=evidence_faults,
        keep_updates=keep_updates,
        on_update=on_update,
        output_dir=None if output_dir is None else Path(output_dir),
        save_every=save_every,
        resume=resume,
        threads=(cpu_threads() or 1) if threads is None else threads,
        processes=processes,
        config=config,
    ).train()


@contextlib.contextmanager
def old_objects() -> Iterator[None]:
    """Exempt the objects that exist from garbage collection within the block.

    Most of them belong to imported modules, and scanning them costs a short update much time."""
    if gc.get_freeze_count():  # they are exempt already, and `unfreeze` would end that
        yield
        return
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextlib.contextmanager
def torch_threads(number: int) -> Iterator[None]:
    """Set the number of torch's CPU threads within the block.

    Args:
        number: Number of threads, at least 1.

    Raises:
        ValueError: The number is less than 1.
    """
    if number < 1:
        raise ValueError(f"train_manager: threads is {number}, expected a whole number from 1")
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
