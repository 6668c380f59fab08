"""GRPO for memory managers with one reward per step, on TRL's `GRPOTrainer`.

TRL normalises rewards within every `num_generations` consecutive rows, so the order of rows makes
the group. All rollouts of an update are played in lockstep, one batched generation per step, and
flattened to rows ordered (instance, step, rollout): TRL's group is then the G completions of one
instance at one step. Every term of the reward is a TRL reward function with its weight. Sampling,
normalisation, loss, optimiser, logging and checkpoints are TRL's.

Differs from the paper: the reward schemes below name what the ablations leave out; the standard
deviation is TRL's (unbiased, eps 1e-4); nothing else.

Unsloth rewrites TRL's classes when it is imported, so the trainer is built in a function, after
that import. TRL is imported there too: importing this module loads neither.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from finemem_lib.data.faults import EvidenceFaults, with_faults
from finemem_lib.managers.loading import import_unsloth, no_progress_bars, single_precision
from finemem_lib.managers.prompts import PromptBuilder
from finemem_lib.managers.rollout import LockstepRollouts, RolloutSettings
from finemem_lib.managers.sampling import sample_completions
from finemem_lib.reading import ReasoningAgent
from finemem_lib.rewards import RewardSettings, hybrid_reward, outcome_reward, weighted_sum
from finemem_lib.seeds import stable_seed
from finemem_lib.training.checkpoints import save_reader
from finemem_lib.training.record import PlayedUpdate, update_file
from finemem_lib.training.schemes import SCHEMES, TERMS, RewardScheme, scheme_weights, w1_at
from finemem_lib.training.stops import Interrupts
from finemem_lib.trajectory import OPERATION_KINDS, Instance, Step, Trajectory

if TYPE_CHECKING:
    import torch
    from trl import GRPOConfig, GRPOTrainer

SAMPLING_DEFAULTS = {
    "top_p": 1.0,
    "top_k": 0,
    "min_p": None,
    "repetition_penalty": 1.0,
    "generation_kwargs": None,
    "cache_implementation": None,
    "use_transformers_continuous_batching": False,
}
"""TRL's own ways to sample, at which `sample_completions` samples the same; else TRL does."""

ROWS_OF_LIKE_LENGTH = 32
"""Rows that go through the model together; small, so that little of them is padding."""

Record = dict[str, Any]
"""What is logged of one update, by TRL's names: "step" (the update, from 1), "reward",
"rewards/<term>/mean", "frac_reward_zero_std" (share of groups without gradient), "entropy",
"completions/mean_length" (tokens), "step_time" (seconds) and others; and ours:
`trajectory_metrics`, "w1" (the weight of the chunk-level step reward), "advantages/mean_abs",
"advantages/max_abs", "seconds/generation" (sampling), "seconds/environment" (prompts, memory,
answers, rewards); the rest of "step_time" is learning."""


def load_trainer_class(unsloth: bool = False) -> type[GRPOTrainer]:
    """Return `StepGRPOTrainer`, a subclass of the GRPOTrainer that TRL (or Unsloth) offers now.

    With `unsloth`, Unsloth is imported first, as it must be; the model then has to come from its
    FastLanguageModel.

    Raises:
        RuntimeError: Unsloth was asked for and there is no CUDA device, or it is not installed.
    """
    if unsloth:
        import_unsloth()
    return _trainer_class(unsloth)


@functools.cache
def _trainer_class(unsloth: bool) -> type[GRPOTrainer]:
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from transformers.trainer_callback import PrinterCallback
    from transformers.trainer_utils import rotate_checkpoints
    from trl import GRPOTrainer

    class WholeUpdates(TrainerCallback):
        """Lets an update happen whole or not at all: gradients that are not finite are refused
        before it, and an interrupt during it is held back until it is logged. `whole` says that
        none is being made, so that the weights are those of the last one that is counted."""

        def __init__(self, trainer: StepGRPOTrainer) -> None:
            self.trainer = trainer
            self.begun = False
            self.whole = True

        def on_train_begin(self, *arguments: Any, **settings: Any) -> None:
            self.begun = True

        def on_pre_optimizer_step(self, *arguments: Any, model: Any, **settings: Any) -> None:
            gradients = [one.grad for one in model.parameters() if one.grad is not None]
            scaled = self.trainer.accelerator.scaler is not None  # fp16 skips such updates itself
            if not scaled:
                self.trainer.check_finite("gradient", torch.nn.utils.get_total_norm(gradients))
            self.whole = False
            self.trainer.interrupts.hold()

        def on_step_end(self, args: Any, state: Any, control: Any, **settings: Any) -> None:
            if not control.should_log:
                self.end()

        def end(self) -> None:
            self.whole = True
            self.trainer.interrupts.release()

    class StepGRPOTrainer(GRPOTrainer):
        """GRPO whose groups are the rollouts of one instance at one step.

        Args, beside GRPOTrainer's own: `instances` in the order they are trained on; `builder`
        renders prompts and reads completions; `agent`, `rollout`, `rewards` and `scheme` say how
        they are answered, played and rewarded; `w1_until` and `evidence_faults` are
        `train_manager`'s; `keep_updates` are the updates (from 1) whose trajectories stay in
        `kept`; every finished update is written into the folder `updates_folder`, where there is
        one; `on_update` is told the record of every update; `manager_name` is written into the
        trajectories. One process only: a group must not be split.

        Raises:
            ValueError: fewer instances than one update takes, or `w1_until` is less than 2.
        """

        def __init__(
            self,
            model: torch.nn.Module,
            args: GRPOConfig,
            *,
            instances: Sequence[Instance],
            builder: PromptBuilder,
            agent: ReasoningAgent,
            rollout: RolloutSettings,
            scheme: RewardScheme = "Fine-Mem",
            rewards: RewardSettings | None = None,
            w1_until: int | None = None,
            evidence_faults: EvidenceFaults | None = None,
            keep_updates: Collection[int] = (),
            updates_folder: Path | None = None,
            on_update: Callable[[Record], None] | None = None,
            manager_name: str = "policy",
            **trainer_arguments: Any,
        ) -> None:
            needed = args.generation_batch_size // args.num_generations
            if len(instances) < needed:
                raise ValueError(
                    f"StepGRPOTrainer: got {len(instances)} instances, expected at least "
                    f"{needed}, the number of one update; add some or lower instances_per_update"
                )
            if w1_until is not None and w1_until < 2:
                raise ValueError(
                    f"StepGRPOTrainer: w1_until is {w1_until}, expected an update from 2 on, or "
                    "None; for no chunk-level step reward at all set w1 to 0"
                )
            self.instances = instances
            self.builder = builder
            self.agent = agent
            self.rollout = rollout
            self.scheme = scheme
            self.reward_settings = rewards or RewardSettings()
            self.w1_until = w1_until
            self.evidence_faults = evidence_faults
            self.keep_updates = frozenset(keep_updates)
            self.kept: dict[int, list[list[Trajectory]]] = {}
            self.updates_folder = updates_folder
            self.played: PlayedUpdate | None = None
            self.on_update = on_update
            self.manager_name = manager_name
            self.replayed: list[Step] = []
            self.interrupts = Interrupts()
            args.reward_weights = list(scheme_weights(scheme, self.reward_settings).values())
            plain = all(getattr(args, name) == value for name, value in SAMPLING_DEFAULTS.items())
            self.samples_itself = plain and not args.use_vllm and not unsloth
            pad = builder.tokenizer.pad_token_id
            # A sampled pad token would be masked out by Unsloth, which knows no other padding.
            if not self.samples_itself and pad != builder.tokenizer.eos_token_id:
                # vLLM's own parameters know no list of tokens that are never sampled.
                never = (
                    {"logit_bias": {pad: -100.0}} if args.use_vllm else {"suppress_tokens": [pad]}
                )
                args.generation_kwargs = never | (args.generation_kwargs or {})
            os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # rollout_func is "experimental"
            super().__init__(
                model=model,
                args=args,
                reward_funcs=[_column_reader(term) for term in TERMS],
                train_dataset=Dataset.from_dict(
                    {
                        "prompt": [instance.instance_id for instance in instances],
                        "instance": list(range(len(instances))),
                    }
                ),
                processing_class=builder.tokenizer,
                rollout_func=_replay,
                **trainer_arguments,
            )
            single_precision(self.model)  # before the optimizer is made of them
            self.remove_callback(PrinterCallback)
            self.whole_updates = WholeUpdates(self)
            self.add_callback(self.whole_updates)

        def _generate_and_score_completions(self, inputs: list[dict[str, Any]]) -> dict[str, Any]:
            """Play the instances of one update and let TRL score and normalise the rows."""
            started = time.perf_counter()
            training = self.model.training
            size = self.num_generations if training else self.num_generations_eval
            # An update depends on its number, not on what was drawn before: resuming is exact.
            torch.manual_seed(stable_seed(self.args.seed, "update", self.state.global_step))
            instances = [self.instances[row["instance"]] for row in inputs[::size]]
            groups, sampling_seconds = self._play(instances, size)
            self.model.train(training)
            self._anneal()
            rows = _rows(self._as_attributed(groups), self.scheme, self.reward_settings)
            self.replayed = [step for _, step in rows]
            output = super()._generate_and_score_completions([row for row, _ in rows])
            output["advantages"] = output["advantages"].float()

            update = self.state.global_step + 1
            if training and update in self.keep_updates:
                self.kept[update] = groups
            if training:
                self.played = self._as_played(update, groups, rows, output["advantages"].tolist())
            metrics = self._metrics["train" if training else "eval"]
            seconds = time.perf_counter() - started
            for name, value in (
                *trajectory_metrics([one for group in groups for one in group]).items(),
                ("w1", self.reward_weights[TERMS.index("chunk")].item()),
                ("advantages/mean_abs", output["advantages"].abs().mean().item()),
                ("advantages/max_abs", output["advantages"].abs().max().item()),
                ("seconds/generation", sampling_seconds),
                ("seconds/environment", seconds - sampling_seconds),
            ):
                metrics[name].append(value)
            return output

        def _as_played(
            self,
            update: int,
            groups: list[list[Trajectory]],
            rows: list[tuple[dict[str, Any], Step]],
            advantages: list[float],
        ) -> PlayedUpdate:
            weights = dict(zip(TERMS, self.reward_weights.tolist(), strict=True))
            terms = [{term: row[term] for term in TERMS} for row, _ in rows]
            rewards = [weighted_sum(of_row, weights) for of_row in terms]
            return PlayedUpdate(
                update,
                groups,
                terms,
                rewards,
                [
                    None if reward is None else advantage
                    for reward, advantage in zip(rewards, advantages, strict=True)
                ],
            )

        def _anneal(self) -> None:
            w1 = w1_at(self.state.global_step + 1, self.reward_settings.w1, self.w1_until)
            settings = dataclasses.replace(self.reward_settings, w1=w1)
            weights = scheme_weights(self.scheme, settings).values()
            self.reward_weights = torch.tensor(list(weights), dtype=torch.float32)

        def _as_attributed(self, groups: list[list[Trajectory]]) -> list[list[Trajectory]]:
            """Return the trajectories with the evidence that credit is attributed by."""
            if self.evidence_faults is None:
                return groups
            seed = stable_seed(self.args.seed, self.state.global_step)
            return [
                [with_faults(one, self.evidence_faults, seed) for one in group] for group in groups
            ]

        def _play(
            self, instances: Sequence[Instance], size: int
        ) -> tuple[list[list[Trajectory]], float]:
            """Return `size` rollouts of each instance, and the seconds spent in sampling."""
            rollouts = LockstepRollouts(
                instances,
                dataclasses.replace(self.rollout, num_generations=size),
                self.agent,
                self.manager_name,
                stable_seed(self.args.seed, self.state.global_step),
                self.builder.settings,
            )
            seconds = 0.0
            while observations := rollouts.observations():
                prompts = [self.builder.render(observation) for observation in observations]
                started = time.perf_counter()
                sampled = self._sample([prompt.ids for prompt in prompts], observations[0].step)
                seconds += time.perf_counter() - started
                rollouts.advance(self.builder.complete(prompts, *sampled))
            return rollouts.finish(), seconds

        def _sample(
            self, prompts: Sequence[tuple[int, ...]], step: int
        ) -> tuple[Sequence[Sequence[int]], Sequence[Sequence[float]] | None]:
            """Return the completions of one step and, where they are known, their log-probs."""
            if not self.samples_itself:
                # num_generations=1: a vLLM server would otherwise keep every G-th prompt only.
                return self._generate_single_turn(
                    [list(prompt) for prompt in prompts], None, {}, num_generations=1
                )
            model = self.accelerator.unwrap_model(self.model)
            model.eval()
            return sample_completions(
                model,
                prompts,
                max_new_tokens=self.max_completion_length,
                pad_token_id=self.builder.tokenizer.pad_token_id,
                end_token_ids=self.eos_token_ids,
                temperature=self.temperature,
                seed=stable_seed(self.args.seed, self.state.global_step, "sample", step),
            )

        def _get_per_token_logps_and_entropies(
            self,
            model: torch.nn.Module,
            input_ids: torch.Tensor,
            attention_mask: torch.Tensor,
            logits_to_keep: int,
            *arguments: Any,
            **settings: Any,
        ) -> tuple[torch.Tensor | None, ...]:
            """Return TRL's (rows, tokens) values, computed on rows of like length at a time.

            Prompts grow from step to step and completions differ much in length: most of a batch
            that holds all of them is padding.
            """
            compute = functools.partial(super()._get_per_token_logps_and_entropies, model)
            lengths = attention_mask.sum(dim=1)
            order = lengths.argsort(stable=True)
            ends = input_ids.shape[1] - logits_to_keep
            parts = []
            for rows in order.split(ROWS_OF_LIKE_LENGTH):
                used = attention_mask[rows].any(dim=0).nonzero()
                first, last = int(used.min()), max(int(used.max()) + 1, ends + 1)
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

        def _calculate_rewards(self, inputs: list[dict[str, Any]], *arguments: Any) -> torch.Tensor:
            """Return TRL's rewards (rows, terms) in double precision.

            In single precision, rewards that differ by rounding only would get advantages of up
            to 1e-3, because a group's standard deviation may be as small as TRL's eps of 1e-4.
            """
            single = super()._calculate_rewards(inputs, *arguments)
            return torch.tensor(
                [
                    [math.nan if row[term] is None else row[term] for term in TERMS]
                    for row in inputs
                ],
                dtype=torch.float64,
                device=single.device,
            )

        def training_step(self, *arguments: Any) -> torch.Tensor:
            loss = super().training_step(*arguments)
            self.check_finite("loss", loss)
            return loss

        def check_finite(self, name: str, value: torch.Tensor) -> None:
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
            super().log(logs, start_time)
            if self.updates_folder is not None and self.played is not None and "reward" in logs:
                self.played.write(update_file(self.updates_folder, self.played.update))
            self.whole_updates.end()
            if self.on_update is not None and "reward" in logs:
                self.on_update({**logs, "step": self.state.global_step})

        def _save_checkpoint(self, model: Any, trial: Any) -> None:
            """Write the checkpoint beside its place and rename it, so that none is ever half."""
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
            save_reader(self.agent, partial / name)
            (partial / name).rename(folder / name)
            shutil.rmtree(partial)
            rotate_checkpoints(output_dir=str(folder), save_total_limit=self.args.save_total_limit)

        def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
            """Load also the adapter that is trained: where TRL keeps a frozen copy of it ("ref",
            for the KL term) in a subfolder, transformers loads the subfolders only."""
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            adapted = self.model if model is None else model
            if "ref" in getattr(adapted, "peft_config", ()):
                adapted.load_adapter(
                    resume_from_checkpoint, adapted.active_adapters[0], is_trainable=True
                )

        def save_finished(self, stop: BaseException) -> None:
            """Write the checkpoint of the last finished update, if it is not there yet and what
            stopped the run left the weights whole. What keeps it from being written is noted on
            `stop`, which says more."""
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

    if unsloth:  # it computes log-probabilities its own way, without padding
        del StepGRPOTrainer._get_per_token_logps_and_entropies
    return StepGRPOTrainer


def trajectory_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return averages over trajectories: "accuracy" (mean r_global, absent where nothing could be
    scored), "operations/<kind>" (emitted per step, what could not be parsed left out),
    "invalid_share" (of what was emitted), "prompt/truncated_tokens" and "prompt/omitted_items" (per
    step, what the prompt could not hold), "memory_items" and "memory_tokens" (of M_T)."""
    scores = [score for one in trajectories if (score := outcome_reward(one)) is not None]
    steps = [step for one in trajectories for step in one.steps]
    outcomes = [outcome for step in steps for outcome in step.outcomes]
    kinds = Counter(outcome.operation.kind for outcome in outcomes if outcome.operation)
    invalid = sum(not outcome.applied for outcome in outcomes)
    return {
        **({"accuracy": sum(scores) / len(scores)} if scores else {}),
        **{f"operations/{kind}": kinds[kind] / len(steps) for kind in OPERATION_KINDS},
        "invalid_share": invalid / max(len(outcomes), 1),
        "prompt/truncated_tokens": _mean(step.prompt_truncated_tokens for step in steps),
        "prompt/omitted_items": _mean(step.prompt_omitted_items for step in steps),
        "memory_items": _mean(len(one.final_memory()) for one in trajectories),
        "memory_tokens": _mean(one.steps[-1].memory_tokens for one in trajectories),
    }


def _column_reader(term: str) -> Callable[..., list[float | None]]:
    """Return TRL's reward function for one term: rewards are known when a row is made."""

    def reward(**columns: Any) -> list[float | None]:
        return columns[term]

    reward.__name__ = term
    return reward


def _replay(prompts: Sequence[str], trainer: Any) -> dict[str, Any]:
    """TRL's rollout_func: hand over what was sampled while playing, row by row."""
    steps = trainer.replayed
    recorded = steps[0].logprobs is not None
    return {
        "prompt_ids": [list(step.prompt_ids) for step in steps],
        "completion_ids": [list(step.completion_ids) for step in steps],
        "logprobs": [list(step.logprobs) for step in steps] if recorded else None,
    }


def _rows(
    groups: Sequence[Sequence[Trajectory]], scheme: RewardScheme, settings: RewardSettings
) -> list[tuple[dict[str, Any], Step]]:
    """Return TRL's row and its step for every step of every rollout, ordered (instance, step,
    rollout). A row none of whose terms in the scheme is known is unscorable: all None."""
    rows = []
    for group in groups:
        rewards = [hybrid_reward(trajectory, settings) for trajectory in group]
        for place in range(group[0].num_steps):
            for trajectory, step_rewards in zip(group, rewards, strict=True):
                reward, step = step_rewards[place], trajectory.steps[place]
                known = any(getattr(reward, term) is not None for term in SCHEMES[scheme])
                terms = {term: getattr(reward, term) if known else None for term in TERMS}
                rows.append(({"prompt": step.prompt, **terms}, step))
    return rows


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values)
