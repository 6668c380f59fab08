"""GRPO with one reward per step; only this module overrides TRL's private methods.

TRL normalises rewards within every `num_generations` consecutive rows, so the order of rows defines
the groups. All rollouts of an update are played in lockstep, one batched generation per step, and
flattened to rows ordered by (instance, step, rollout): TRL's group is then the G completions of one
instance at one step. Every term of the reward is a TRL reward function with its weight. TRL
performs normalisation, loss, optimisation, logging and checkpoints.

Differs from the paper: `schemes` defines the ablations' reward terms; the standard deviation is
TRL's (unbiased, eps 1e-4); and the loss is TRL's default "dapo", which divides by the number of
completion tokens of the whole update, so that every token has the same weight, where the paper's
GRPO first averages over the tokens of each completion, so that every completion has the same weight
(`loss_type="grpo"`). See `grpo_config`.

Local groups (see `local_groups`) are further groups of G rows after those of the rollouts. Their
advantages are computed beforehand, so TRL normalises and logs only the rewards of the rollouts. Any
number of groups can be divided into an update's micro-batches, because their number divides G; but
"dapo" divides by the tokens of all rows, so with local groups each token of a rollout weighs less.

Unsloth patches TRL's classes when it is imported, so the trainer class is created in a function,
after that import. TRL is imported there, too, so importing this module loads neither. The overrides
were written for TRL `READ_FROM`; a test compares the signatures in `OVERRIDDEN` with the installed
TRL.
"""

from __future__ import annotations

import contextlib
import functools
import math
import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.faults import EvidenceFaults
from finemem_lib.layers.content_reward import ContentJudge, rule_verdicts
from finemem_lib.managers.frozen_layers import FrozenLayers, frozen_layers
from finemem_lib.managers.grammar import chosen_logprobs
from finemem_lib.managers.loading import (
    CONSTRAINED,
    import_unsloth,
    no_progress_bars,
    single_precision,
)
from finemem_lib.managers.operation_tokens import operation_of_tokens, token_texts
from finemem_lib.managers.prompts import Prompt, PromptBuilder
from finemem_lib.managers.rollout import RolloutSettings
from finemem_lib.managers.sampling import (
    completion_logprobs,
    finite_or_none,
    sample_completions,
    sample_constrained,
)
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings
from finemem_lib.seeds import stable_seed
from finemem_lib.training.checkpoints import save_reader
from finemem_lib.training.co_training import Learns, check_learns, learners, teach_reader
from finemem_lib.training.local_groups import LocalGroup, LocalGroups
from finemem_lib.training.record import PlayedUpdate, update_file
from finemem_lib.training.schemes import Scheme, scheme_of
from finemem_lib.training.stops import Interrupts
from finemem_lib.training.trainer import (
    Rollouts,
    Sampled,
    UpdatePlayer,
    as_columns,
    trajectory_metrics,
)
from finemem_lib.trajectory import Instance, Step, Trajectory

if TYPE_CHECKING:
    import torch
    from datasets import Dataset
    from trl.trainer.grpo_config import GRPOConfig

    from finemem_lib.managers.small_qwen3 import FewOperations
    from finemem_lib.training.second_process import SecondProcess

# `trainer_class` replaces this by TRL's GRPOTrainer, whose types are incomplete.
_GRPOTrainer: Any = object

READ_FROM = "1.14.2"
"""The version of TRL whose private methods are overridden here."""

OVERRIDDEN = {
    "_calculate_rewards": "(self, inputs, prompts, completions, completion_ids_list)",
    "_compute_loss": "(self, model, inputs)",
    "_generate_and_score_completions": "(self, inputs)",
    "_generate_single_turn": (
        "(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images)"
    ),
    "_get_per_token_logps_and_entropies": (
        "(self, model, args, batch_size, compute_aux_loss, kwargs)"
    ),
    "_load_from_checkpoint": "(self, resume_from_checkpoint, model)",
    "_save_checkpoint": "(self, model, trial)",
    "log": "(self, logs, start_time)",
    "training_step": "(self, model, inputs, num_items_in_batch)",
}
"""Methods of `GRPOTrainer` that are overridden or called here, with their signatures in TRL."""

SAMPLING_DEFAULTS = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "cache_implementation": None,
    "use_transformers_continuous_batching": False,
}
"""TRL's sampling defaults. `sample_completions` replaces TRL's sampling only with these values."""

ROWS_OF_LIKE_LENGTH = 32
"""Number of rows in one forward pass, small enough for little padding."""

NO_ADVANTAGE = 1e-9
"""Smaller advantages are rounding errors of groups with equal rewards."""

AllowedTokens = dict[tuple[int, ...], list[tuple[int, ...]]]
"""Allowed tokens at every position of a completion, by the token ids of prompt and completion."""

Record = dict[str, Any]
"""The logged quantities of one update. TRL's: "step" (number of the update, from 1), "reward",
"rewards/<term>/mean", "frac_reward_zero_std" (share of groups without gradient), "entropy",
"completions/mean_length" (tokens), "step_time" (seconds) and others. Ours: `trajectory_metrics`;
"w1" (weight of the chunk-level step reward); "advantages/mean_abs" and "advantages/max_abs" (over
tokens if operations are credited); "seconds/generation" (sampling); "seconds/environment" (prompts,
memory, answers, rewards), which includes "seconds/credit" (rewards and credit), and the rest of
"step_time" is learning; "credit/<rule>/..." (reader calls and measures of the scheme's credit
rules); and, with local groups, "credit/local/..." (`LocalUpdate.measures`)."""

MEASURED = "credit/"
"""Prefix of the names of quantities from credit rules."""


def load_trainer_class(unsloth: bool = False) -> type[StepGRPO]:
    """Return `StepGRPOTrainer`, the subclass of `StepGRPO` and TRL's (or Unsloth's) GRPOTrainer.

    Args:
        unsloth: Whether to import Unsloth first; the model must then come from its
            FastLanguageModel.

    Raises:
        RuntimeError: `unsloth` is set and there is no CUDA device or Unsloth is not installed.
    """
    if unsloth:
        import_unsloth()
    return trainer_class(unsloth)


@functools.cache
def trainer_class(unsloth: bool) -> type[StepGRPO]:
    """Return the trainer class for TRL's current GRPOTrainer, see `load_trainer_class`.

    Args:
        unsloth: Whether Unsloth was imported and has patched TRL's classes.
    """
    from trl import GRPOTrainer  # type: ignore[attr-defined]  # TRL exports its names lazily

    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is "experimental"
    # Unsloth has its own computation of log-probabilities, without padding.
    own = (StepGRPO,) if unsloth else (StepGRPO, TwoProcesses, LikeLengthRows)
    bases = (*own, GRPOTrainer)
    return type("StepGRPOTrainer", bases, {"unsloth": unsloth, "__doc__": StepGRPO.__doc__})


class StepGRPO(_GRPOTrainer):  # type: ignore[misc]  # see _GRPOTrainer
    """GRPO whose groups are the rollouts of one instance at one step.

    It supports one process only, because a group must not be split.

    Args:
        model: The policy.
        args: TRL's configuration, from `grpo_config`.
        instances: Instances in the order of training.
        builder: Renders prompts and parses completions.
        agent: The reasoning agent.
        rollout: Settings of the rollouts.
        scheme: Reward scheme, or the name of a shipped scheme.
        rewards: Settings of the reward terms; default: the paper's.
        w1_until: Update at which the weight w1 has fallen to 0; `None` keeps w1 constant.
        evidence_faults: Faults in the evidence used for credit; scores do not change.
        keep_updates: Numbers (from 1) of the updates whose trajectories are stored in `kept`.
        updates_folder: Folder for the files of finished updates; `None` for none.
        on_update: Called with the record of every update.
        manager_name: Name of the manager in the trajectories.
        learns: Which model is trained, see `co_training.Learns`.
        local_groups: Local groups that are played in addition to the rollouts; `None` for none.
        content_judge: Judge of the written contents, used if the scheme has the content reward.
        trainer_arguments: Further arguments of TRL's GRPOTrainer.

    Raises:
        ValueError: There are fewer instances than one update needs, `w1_until` is less than 2, the
            scheme is unknown, the reader must be trained and is not trainable, or local groups are
            combined with Unsloth or `log_completions`.
    """

    unsloth = False

    processes = 1
    """Number of processes that compute the gradient, 1 or 2; see `TwoProcesses`."""

    second: SecondProcess | None = None
    played: PlayedUpdate | None = None
    taught = 0
    rewarded = 0

    def __init__(
        self,
        model: torch.nn.Module,
        args: GRPOConfig,
        *,
        instances: Sequence[Instance],
        builder: PromptBuilder,
        agent: ReasoningAgent,
        rollout: RolloutSettings,
        scheme: Scheme = "Fine-Mem",
        rewards: RewardSettings | None = None,
        w1_until: int | None = None,
        evidence_faults: EvidenceFaults | None = None,
        keep_updates: Collection[int] = (),
        updates_folder: Path | None = None,
        on_update: Callable[[Record], None] | None = None,
        manager_name: str = "policy",
        learns: Learns = "manager",
        local_groups: LocalGroups | None = None,
        content_judge: ContentJudge = rule_verdicts,
        **trainer_arguments: Any,
    ) -> None:
        self._check(args, instances, scheme, local_groups)
        self.allowed: AllowedTokens = {}
        check_learns(learns, agent)
        self.learns = learns
        self.player = UpdatePlayer(
            builder,
            agent,
            rollout,
            scheme,
            rewards or RewardSettings(),
            w1_until,
            evidence_faults,
            manager_name,
            args.seed,
            local_groups,
            content_judge,
        )
        self.instances = instances
        self.keep_updates = frozenset(keep_updates)
        self.kept: dict[int, list[list[Trajectory]]] = {}
        self.updates_folder = updates_folder
        self.on_update = on_update
        self.replayed: list[Step] = []
        self.interrupts = Interrupts()
        args.reward_weights = list(self.player.weights(0).values())
        self.samples_itself = self._prepare_sampling(args, builder)
        super().__init__(
            model=model,
            args=args,
            reward_funcs=[_column_reader(term) for term in self.player.terms],
            train_dataset=_dataset(instances),
            processing_class=builder.tokenizer,
            rollout_func=_replay,
            **trainer_arguments,
        )
        self._prepare_training()

    def _prepare_training(self) -> None:
        """Set the precision of the model, print no log, and make updates atomic."""
        from transformers.trainer_callback import PrinterCallback

        from finemem_lib.training.callbacks import WholeUpdates

        single_precision(self.model)  # before the optimizer is created
        self.frozen = frozen_layers(self.model) if self.samples_itself else None
        self.remove_callback(PrinterCallback)
        self.whole_updates = WholeUpdates(self)
        self.add_callback(self.whole_updates)

    def _check(
        self,
        args: GRPOConfig,
        instances: Sequence[Instance],
        scheme: Scheme,
        local_groups: LocalGroups | None,
    ) -> None:
        """Raise an error for incompatible arguments, before anything is loaded."""
        if self.unsloth and scheme_of(scheme).operations:
            raise ValueError(
                "StepGRPOTrainer: the scheme credits operations, but Unsloth's loss takes one "
                "advantage per completion; credit steps, or load the model without Unsloth"
            )
        if self.unsloth and local_groups is not None:
            raise ValueError(
                "StepGRPOTrainer: local_groups needs TRL's own trainer, which Unsloth rewrites; "
                "load the model without Unsloth, or set local_groups to None"
            )
        if args.log_completions and local_groups is not None:
            raise ValueError(
                "StepGRPOTrainer: log_completions is set, but local groups have no rewards in "
                "TRL's table of completions; leave it out, or set local_groups to None"
            )
        needed = (args.generation_batch_size or 1) // (args.num_generations or 1)
        if len(instances) < needed:
            raise ValueError(
                f"StepGRPOTrainer: got {len(instances)} instances, expected at least "
                f"{needed}, the number of one update; add some or lower instances_per_update"
            )

    @property
    def manager_learns(self) -> bool:
        """Whether the manager is trained in the current update."""
        return learners(self.learns, self.state.global_step + 1)[0]

    def _prepare_sampling(self, args: Any, builder: PromptBuilder) -> bool:
        """Return whether `sample_completions` samples; if TRL samples, forbid the pad token.

        Unsloth would mask a sampled pad token as padding.
        """
        plain = all(getattr(args, name) == value for name, value in SAMPLING_DEFAULTS.items())
        if plain and not args.use_vllm and not self.unsloth:
            return True
        if builder.operations_as in CONSTRAINED:
            raise ValueError(
                f"StepGRPOTrainer: operations_as is {builder.operations_as!r}, which needs this "
                "library's own sampling, and the settings let TRL or vLLM sample; take 'quotes', "
                "or leave those settings out"
            )
        pad, given = builder.tokenizer.pad_token_id, dict(args.generation_kwargs or {})
        if pad == builder.tokenizer.eos_token_id:
            return False
        if args.use_vllm:
            # vLLM's SamplingParams has no list of forbidden tokens; -100 is its lowest bias.
            given["logit_bias"] = {**(given.get("logit_bias") or {}), pad: -100.0}
        else:
            given["suppress_tokens"] = [*(given.get("suppress_tokens") or []), pad]
        args.generation_kwargs = given
        return False

    def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
        """Play the rollouts of one update, and let TRL score and normalise the rows."""
        import torch

        started = time.perf_counter()
        training, done = self.model.training, self.state.global_step
        size = self.num_generations if training else self.num_generations_eval
        # Seed by the number of the update, not by earlier draws, so that resuming is exact.
        torch.manual_seed(stable_seed(self.args.seed, "update", done))
        instances = [self.instances[row["instance"]] for row in inputs[::size]]
        self.allowed.clear()
        if self.frozen is not None:
            self.frozen.states.kept.clear()
        rollouts = self.player.play(
            instances, size, done, self._sample, self._last_measures(), local=training
        )
        self.model.train(training)
        self.reward_weights = torch.tensor(
            list(self.player.weights(done).values()), dtype=torch.float32
        )
        local = rollouts.local.groups
        steps = [step for group in local for step in group.steps]
        self.replayed = [*(step for _, step in rollouts.rows), *steps]
        self.rewarded = len(rollouts.rows)
        rows = as_columns([*rollouts.rows, *(({}, step) for step in steps)])
        with contextlib.nullcontext() if self.log_completions else no_texts(self.processing_class):
            output: dict[str, Any] = super()._generate_and_score_completions(rows)
        output["advantages"] = advantages = output["advantages"].float()
        if scheme_of(self.player.scheme).advantage == "instance":
            own = self.player.instance_advantages(rollouts, done, self.args.scale_rewards)
            output["advantages"] = advantages = torch.tensor(own).to(advantages)
        paid = advantages
        if rollouts.operations is not None:
            of_tokens = self._of_tokens(rollouts.operations, output["completion_ids"].shape[1])
            output["advantages"] = advantages.unsqueeze(1) + of_tokens.to(advantages.device)
            paid = output["advantages"][output["completion_mask"][: self.rewarded].bool()]
        if local:
            output["advantages"] = _with_local(output["advantages"], local)
        if training:
            self._keep(done + 1, rollouts, advantages)
        self._note_metrics(rollouts, paid, training, started)
        return output

    def _of_tokens(self, operations: Sequence[Sequence[float]], length: int) -> torch.Tensor:
        """Return the operations' additions to their tokens' advantages, shape (rows, length)."""
        import torch

        added = torch.zeros(len(operations), length)
        for row, (step, values) in enumerate(
            zip(self.replayed[: self.rewarded], operations, strict=True)
        ):
            texts = token_texts(tuple(step.completion_ids or ()), self.processing_class)
            for token, place in enumerate(operation_of_tokens(step, texts)):
                if place is not None:
                    added[row, token] = values[place]
        return added

    def _last_measures(self) -> dict[str, float] | None:
        """Return the rules' measures of the previous update, from the log, also after a resume."""
        updates: list[Record] = [entry for entry in self.state.log_history if "reward" in entry]
        measures = {
            name.removeprefix(MEASURED): value
            for name, value in (updates[-1] if updates else {}).items()
            if name.startswith(MEASURED)
        }
        return measures or None

    def _keep(self, update: int, rollouts: Rollouts, advantages: torch.Tensor) -> None:
        """Store the update's record until it is written, and its trajectories if requested."""
        if update in self.keep_updates:
            self.kept[update] = rollouts.groups
        self.played = self.player.record(
            update, rollouts, self.reward_weights.tolist(), advantages.tolist()
        )

    def _note_metrics(
        self, rollouts: Rollouts, advantages: torch.Tensor, training: bool, started: float
    ) -> None:
        """Add our metrics of the update to TRL's log."""
        metrics = self._metrics["train" if training else "eval"]
        seconds = time.perf_counter() - started
        for name, value in (
            *trajectory_metrics([one for group in rollouts.groups for one in group]).items(),
            ("w1", self.reward_weights[self.player.terms.index("chunk")].item()),
            ("advantages/mean_abs", advantages.abs().mean().item()),
            ("advantages/max_abs", advantages.abs().max().item()),
            ("seconds/generation", rollouts.sampling_seconds),
            ("seconds/environment", seconds - rollouts.sampling_seconds),
            ("seconds/credit", rollouts.credit_seconds),
            *((MEASURED + name, value) for name, value in rollouts.measures.items()),
        ):
            metrics[name].append(value)

    def _sample(self, prompts: Sequence[Prompt], step: int) -> Sampled:
        """Return the completions of one step and their log-probabilities.

        TRL's `generate` returns no log-probabilities; they are computed for `keep_updates` only.
        """
        model = self.accelerator.unwrap_model(self.model)
        if self.samples_itself:
            model.eval()
            states = None if self.frozen is None else self.frozen.states
            grammars = [prompt.grammar for prompt in prompts if prompt.grammar is not None]
            sample = (
                functools.partial(sample_constrained, grammars=grammars)
                if grammars
                else functools.partial(sample_completions, end_token_ids=self.eos_token_ids)
            )
            with states or contextlib.nullcontext():
                sampled = sample(
                    model,
                    [prompt.ids for prompt in prompts],
                    max_new_tokens=self.max_completion_length,
                    pad_token_id=self.processing_class.pad_token_id,
                    temperature=self.temperature,
                    seed=stable_seed(self.args.seed, self.state.global_step, "sample", step),
                    hidden_states=states,
                )
            for prompt, completion, grammar in zip(prompts, sampled[0], grammars, strict=False):
                self.allowed[(*prompt.ids, *completion)] = grammar.choices(completion)
            return sampled
        # num_generations=1, because a vLLM server would otherwise use only every G-th prompt.
        completions, logprobs = self._generate_single_turn(
            [list(prompt.ids) for prompt in prompts], None, {}, num_generations=1
        )
        if logprobs is not None:
            return completions, [finite_or_none(row) for row in logprobs]
        if self.state.global_step + 1 not in self.keep_updates:
            return completions, None  # saves a forward pass: only kept updates need them
        model.eval()
        pad, end = self.processing_class.pad_token_id, self.processing_class.eos_token_id
        return completions, completion_logprobs(
            model,
            [prompt.ids for prompt in prompts],
            completions,
            never=() if pad == end else (pad,),
            temperature=self.temperature,
        )

    def _calculate_rewards(self, inputs: list[dict[str, Any]], *arguments: Any) -> torch.Tensor:
        """Return the rewards of the rollouts' rows in double precision, shape (rows, terms).

        In single precision, rewards that differ only by rounding would get advantages of up to
        1e-3, because a group's standard deviation may be as small as TRL's eps of 1e-4.
        """
        import torch

        inputs = inputs[: self.rewarded]
        of_rows = [column[: self.rewarded] for column in arguments]
        single = super()._calculate_rewards(inputs, *of_rows)
        return torch.tensor(
            [
                [math.nan if row[term] is None else row[term] for term in self.player.terms]
                for row in inputs
            ],
            dtype=torch.float64,
            device=single.device,
        )

    def training_step(self, *arguments: Any) -> torch.Tensor:
        """Return TRL's loss of one micro-batch; raise an error if it is not finite.

        Args:
            arguments: TRL's arguments.
        """
        loss: torch.Tensor = super().training_step(*arguments)
        self.check_finite("loss", loss)
        return loss

    def check_finite(self, name: str, value: torch.Tensor) -> None:
        """Raise an error if a loss or gradient norm is not finite, after writing the batch.

        Args:
            name: Name of the value in the error: "loss" or "gradient".
            value: The loss or the norm, shape ().

        Raises:
            FloatingPointError: The value is not finite.
        """
        import torch

        if torch.isfinite(value):
            return
        saved = "; give an output_dir to have its batch written there"
        if self.updates_folder is not None and self.played is not None:
            path = Path(self.args.output_dir, f"nonfinite-{self.state.global_step + 1}.parquet")
            self.played.write(path, quantity=name, value=value.item())
            saved = f"; its batch is in {path}"
        raise FloatingPointError(
            f"train_manager: the {name} of update {self.state.global_step + 1} is "
            f"{value.item()}, expected a finite number{saved}. The weights are still those of "
            f"the update before. Lower learning_rate ({self.args.learning_rate:g}) or "
            f"max_grad_norm ({self.args.max_grad_norm:g}), or train with bf16=False, and "
            "start again from the last checkpoint"
        )

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log an update, write it and report it; then raise a deferred interrupt, if any.

        The reader is trained here, after all questions of the update were answered.

        Args:
            logs: Quantities of the update by name.
            start_time: Start of training, from which TRL computes tokens per second.
        """
        if self.played is not None and self.taught < self.state.global_step == self.played.update:
            self.taught = self.state.global_step
            logs |= teach_reader(
                self.player.agent, self.played.groups, learners(self.learns, self.taught)[1]
            )
        super().log(logs, start_time)
        if self.updates_folder is not None and self.played is not None and "reward" in logs:
            self.played.write(update_file(self.updates_folder, self.played.update))
        self.whole_updates.end()
        if self.on_update is not None and "reward" in logs:
            self.on_update({**logs, "step": self.state.global_step})

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Write the checkpoint into a temporary folder and rename it, so that it is atomic."""
        from transformers.trainer_utils import rotate_checkpoints

        folder = Path(self.args.output_dir)
        partial = folder / ".partial"
        shutil.rmtree(partial, ignore_errors=True)
        self.args.output_dir = str(partial)
        try:
            with no_progress_bars():
                super()._save_checkpoint(model, trial)
        finally:
            self.args.output_dir = str(folder)
        name = f"checkpoint-{self.state.global_step}"
        save_reader(self.player.agent, partial / name)
        (partial / name).rename(folder / name)
        shutil.rmtree(partial)
        rotate_checkpoints(output_dir=str(folder), save_total_limit=self.args.save_total_limit)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Load a checkpoint, including the trained adapter.

        If TRL stores a frozen copy of the adapter ("ref", for the KL term) in a subfolder,
        transformers loads only the subfolders."""
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        adapted = self.model if model is None else model
        if "ref" in getattr(adapted, "peft_config", ()):
            adapted.load_adapter(
                resume_from_checkpoint, adapted.active_adapters[0], is_trainable=True
            )

    def save_finished(self, stop: BaseException) -> None:
        """Write the checkpoint of the last finished update after training stopped.

        Nothing is written if the checkpoint exists, or if training stopped within an update, whose
        weights may be inconsistent.

        Args:
            stop: The error that ended training; if writing fails, the reason is added as a note.
        """
        update = self.state.global_step
        held = Path(self.args.output_dir, f"checkpoint-{update}").exists()
        if not update or held or not self.whole_updates.whole:
            return
        self.interrupts.hold()
        try:
            self._save_checkpoint(self.model, trial=None)
        except Exception as error:
            stop.add_note(f"The checkpoint of update {update} could not be written: {error}")
        finally:
            self.interrupts.restore()


class TwoProcesses(_GRPOTrainer):  # type: ignore[misc]  # see _GRPOTrainer
    """A trainer that shares an update's micro-batches with a second process.

    It shares those of a model that `LikeLengthRows` computes in few operations. Gradients are added
    in the order of the micro-batches, so the result is bit for bit that of one process."""

    processes: int
    second: SecondProcess | None
    own = 0
    """Number of micro-batches of the current update that this process computes, the first ones."""

    others: list[tuple[torch.Tensor, torch.Tensor, dict[str, list[float]]]]
    """Losses, gradients and metrics from the second process that are not used yet."""

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Return TRL's loss of a micro-batch, with its gradient if the second process has it."""
        place = self._step % self.args.steps_per_generation
        if place == 0:
            self.own = self._share(model)
        loss: torch.Tensor
        if place < self.own or self.second is None or not model.training:
            loss = super()._compute_loss(model, inputs)
            return loss
        from finemem_lib.training.second_process import GivenGradient

        if place == self.own:
            self.others = self.second.answer()
        value, gradient, metrics = self.others.pop(0)
        for name, values in metrics.items():
            self._metrics["train"][name] += values
        given: Any = GivenGradient.apply
        loss = given(value, gradient, *self._learning())
        return loss

    def _share(self, model: torch.nn.Module) -> int:
        """Let the second process begin; return the number of micro-batches left to this one."""
        parts: int = self.args.steps_per_generation
        whole = parts == self.current_gradient_accumulation_steps
        if self.processes == 1 or not (model.training and whole and self._few_operations(model)):
            return parts
        from torch.nn.utils import parameters_to_vector

        from finemem_lib.training.second_process import SecondProcess

        if self.second is None:
            self.second = SecondProcess(self._gradients)
        own = parts - parts // 2
        self.second.ask(
            parameters_to_vector(self._learning()).detach(), self._buffered_inputs[own:]
        )
        return own

    def _gradients(self, weights: torch.Tensor, batches: Sequence[dict[str, Any]]) -> list[Any]:
        """Return loss, gradient and metrics of every batch, in the second process."""
        from torch.nn.utils import parameters_to_vector, vector_to_parameters

        learning, found = self._learning(), []
        vector_to_parameters(weights, learning)
        for inputs in batches:
            self._metrics["train"].clear()
            self.model.zero_grad()
            loss = super()._compute_loss(self.model, inputs)
            self.accelerator.backward(loss)
            gradients = [weight.grad for weight in learning if weight.grad is not None]
            gradient = parameters_to_vector(gradients)
            found.append((loss.detach(), gradient, dict(self._metrics["train"])))
        return found

    def _learning(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]


class LikeLengthRows(_GRPOTrainer):  # type: ignore[misc]  # see _GRPOTrainer
    """A trainer that computes log-probabilities on rows of similar length, to avoid padding.

    Rows without an advantage have no gradient and are computed without a graph."""

    idle: torch.Tensor | None = None
    """Mask of the rows without gradient in the current loss; `None` outside of a loss."""

    def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, Any]) -> torch.Tensor:
        """Return TRL's loss, after marking the rows without gradient.

        Rows without an advantage have a gradient only through the KL term and the entropy bonus."""
        if not self.beta and not self._entropy_bonus_enabled:
            advantages = inputs["advantages"].abs()
            self.idle = advantages.reshape(len(advantages), -1).amax(dim=1) < NO_ADVANTAGE
            self.idle[:1] = False  # the loss needs at least one row with a graph
        try:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
        finally:
            self.idle = None
        return loss

    def _get_per_token_logps_and_entropies(
        self,
        model: torch.nn.Module,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        logits_to_keep: int,
        *arguments: Any,
        **settings: Any,
    ) -> tuple[torch.Tensor | None, ...]:
        """Return TRL's (rows, tokens) values, computed on batches of rows of similar length.

        Prompts grow from step to step and completions differ much in length, so most of a single
        batch of all rows would be padding.
        """
        import torch

        number, compute = self._computing(model)
        lengths, ends = attention_mask.sum(dim=1), input_ids.shape[1] - logits_to_keep
        idle = torch.zeros_like(lengths) if self.idle is None else self.idle.to(lengths)
        order = (idle * (lengths.max() + 1) + lengths).argsort(stable=True)  # idle rows last
        live = len(order) - int(idle.sum())
        graded, parts = torch.is_grad_enabled(), []
        for rows in (*torch.split(order[:live], number), *torch.split(order[live:], number)):
            if not len(rows):
                continue
            used = attention_mask[rows].any(dim=0).nonzero()
            first, last = int(used.min()), max(int(used.max()) + 1, ends + 1)
            with torch.set_grad_enabled(graded and not idle[rows[0]]):
                values = compute(
                    input_ids[rows, first:last],
                    attention_mask[rows, first:last],
                    last - ends,
                    *arguments,
                    **settings,
                )
            missing = input_ids.shape[1] - last
            parts.append(
                [
                    None if value is None else torch.nn.functional.pad(value, (0, missing))
                    for value in values[:2]
                ]
            )
        back = order.argsort()
        logps, entropies = (
            None if column[0] is None else torch.cat(column)[back]
            for column in zip(*parts, strict=True)
        )
        return logps, entropies, None

    def _few_operations(self, model: Any) -> bool:
        """Return whether `FewOperations` computes the log-probabilities."""
        from finemem_lib.managers.small_qwen3 import is_small_qwen3

        own_way = self._entropy_bonus_enabled or getattr(model, "is_gradient_checkpointing", False)
        wrapped = getattr(self, "frozen", None) or getattr(self, "allowed", None)
        return not (own_way or wrapped) and is_small_qwen3(model)

    def _computing(self, model: Any) -> tuple[int, Callable[..., Any]]:
        """Return the number of rows per batch, and the function that computes a batch."""
        from finemem_lib.managers.small_qwen3 import ROWS_AT_A_TIME, FewOperations

        # A model with frozen lower layers is called through `FrozenLayers`.
        called = getattr(self, "frozen", None) or model
        if allowed := getattr(self, "allowed", None):
            return ROWS_OF_LIKE_LENGTH, functools.partial(
                constrained_logps, called, allowed, self.temperature
            )
        if self._few_operations(model):
            small = FewOperations(model)
            return ROWS_AT_A_TIME, functools.partial(few_operations_logps, small, self.temperature)
        own = super()._get_per_token_logps_and_entropies
        return ROWS_OF_LIKE_LENGTH, functools.partial(own, called)


def constrained_logps(
    model: Callable[..., Any],
    allowed: AllowedTokens,
    temperature: float,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    logits_to_keep: int,
    *arguments: Any,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """Return log-probabilities and entropies under the constrained distribution.

    Replaces TRL's `_get_per_token_logps_and_entropies`; both have shape (rows, completion
    positions) and are 0 at forced tokens and padding.

    Args:
        model: Returns an object with `logits`.
        allowed: The allowed tokens of each row, see `AllowedTokens`.
        temperature: Temperature of the distribution, above 0.
        input_ids: Prompts, padded on the left, then completions, padded on the right.
        attention_mask: 1 for tokens and 0 for padding.
        logits_to_keep: Number of completion positions.
        arguments: Further arguments of TRL, not used.
        settings: Further arguments of TRL, not used.
    """
    import torch

    said = attention_mask[:, -logits_to_keep:].bool()
    choices = [
        one
        for ids, mask in zip(input_ids, attention_mask.bool(), strict=True)
        for one in allowed[tuple(ids[mask].tolist())]
    ]
    open_ = torch.tensor([len(one) > 1 for one in choices], device=said.device)
    places = torch.zeros_like(said).masked_scatter(said, open_)
    if isinstance(model, FrozenLayers):
        before = torch.nn.functional.pad(places, (input_ids.shape[1] - logits_to_keep - 1, 1))
        logits = model.logits_at(input_ids, attention_mask, before)
    else:
        output = model(
            input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep + 1
        )
        logits = output.logits[:, :-1][:, -logits_to_keep:][places]
    logps, entropies = chosen_logprobs(
        logits,
        [one for one in choices if len(one) > 1],
        input_ids[:, -logits_to_keep:][places].tolist(),
        temperature,
    )
    empty = torch.zeros(said.shape, device=said.device)
    return empty.masked_scatter(places, logps), empty.masked_scatter(places, entropies), None


def few_operations_logps(
    math: FewOperations,
    temperature: float,
    input_ids: torch.Tensor,
    attention_mask: torch.Tensor,
    logits_to_keep: int,
    *arguments: Any,
    **settings: Any,
) -> tuple[torch.Tensor, torch.Tensor, None]:
    """Return log-probabilities and entropies of the completions' tokens, for a small model.

    Replaces TRL's `_get_per_token_logps_and_entropies`; both have shape (rows, completion
    positions) and are 0 at padding.

    Args:
        math: The model.
        temperature: Temperature of the distribution, above 0.
        input_ids: Prompts, padded on the left, then completions, padded on the right.
        attention_mask: 1 for tokens and 0 for padding.
        logits_to_keep: Number of completion positions.
        arguments: Further arguments of TRL, not used.
        settings: Further arguments of TRL, not used.
    """
    import torch

    ends = input_ids.shape[1] - logits_to_keep
    said = attention_mask[:, ends:].bool()
    skipped = attention_mask.argmax(dim=1)
    places = torch.arange(int(attention_mask.sum(dim=1).max())) + skipped[:, None]
    ids = input_ids.gather(1, places.clamp(max=input_ids.shape[1] - 1))
    logits = math.completion_logits(ids, ends - skipped, said.sum(dim=1)) / temperature
    every = logits.log_softmax(dim=-1)
    logps = every.gather(1, input_ids[:, ends:][said][:, None])[:, 0]
    entropies = -(every.detach().exp() * every.detach()).sum(dim=-1)
    empty = torch.zeros(said.shape)
    return empty.masked_scatter(said, logps), empty.masked_scatter(said, entropies), None


@contextlib.contextmanager
def no_texts(tokenizer: Any) -> Iterator[None]:
    """Let `batch_decode` return empty texts within the block.

    TRL decodes each row three times, for its table of completions and for rewards by text.

    Args:
        tokenizer: The tokenizer.
    """
    tokenizer.batch_decode = lambda rows, **settings: [""] * len(rows)
    try:
        yield
    finally:
        del tokenizer.batch_decode


def _with_local(advantages: torch.Tensor, local: Sequence[LocalGroup]) -> torch.Tensor:
    """Return advantages per row (or row and token), with those of local groups appended."""
    import torch

    found = torch.tensor([value for group in local for value in group.advantages])
    found = found.to(advantages).reshape(-1, *[1] * (advantages.dim() - 1))
    return torch.cat([advantages, found.expand(-1, *advantages.shape[1:])])


def _dataset(instances: Sequence[Instance]) -> Dataset:
    """Return TRL's dataset, whose rows name the instances."""
    from datasets import Dataset

    ids = [instance.instance_id for instance in instances]
    return Dataset.from_dict({"prompt": ids, "instance": list(range(len(instances)))})


def _column_reader(term: str) -> Callable[..., list[float | None]]:
    """Return a TRL reward function for one term, which returns the term's column."""

    def reward(**columns: Any) -> list[float | None]:
        values: list[float | None] = columns[term]
        return values

    reward.__name__ = term
    return reward


def _replay(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
    """Return the sampled prompts and completions row by row, as TRL's rollout_func.

    Unknown log-probabilities are returned as NaN, for which TRL uses a ratio of 1 between the
    policy and the sampler.
    """
    steps: list[Step] = trainer.replayed
    logprobs = None
    compared = trainer.off_policy_mask_threshold is not None  # with those of the policy
    if trainer.use_vllm or (trainer.samples_itself and compared):
        logprobs = [
            list(step.logprobs or [math.nan] * len(step.completion_ids or ())) for step in steps
        ]
    return {
        "prompt_ids": [list(step.prompt_ids or ()) for step in steps],
        "completion_ids": [list(step.completion_ids or ()) for step in steps],
        "logprobs": logprobs,
    }
