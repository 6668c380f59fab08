"""The cells of an experiment: each cell is one training run with its tests.

A cell holds all settings of one training run and its seed. Its key is a hash of the settings and of
the warm start's weights, without the names of variant and regime, so that designs share cells.
Equal seeds mean equal training streams and equal held-out streams, so cells can be compared in
pairs (see `tables`).
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from finemem_lib.credit.rules import RULES
from finemem_lib.data.cloze import ClozeTeacher
from finemem_lib.data.faults import EvidenceFaults, with_faults, wrong_questions
from finemem_lib.data.memalpha import load_instances
from finemem_lib.data.planted import (
    DATA_SOURCES,
    VERBS,
    StreamSettings,
    World,
    planted_instances,
)
from finemem_lib.data.planted_layers import LAYERS_SOURCE, LayerStream, layer_instances
from finemem_lib.data.questions import make_chunk_questions, verified
from finemem_lib.evaluation.diagnostics import (
    credit_at_evidence,
    gradient_alignment,
    term_spread,
)
from finemem_lib.evaluation.layers import utilisation
from finemem_lib.evaluation.noise_price import noise_price
from finemem_lib.evaluation.operation_truth import operation_truth
from finemem_lib.layers.memory import LAYERS
from finemem_lib.managers.layered_scripted import ALL_SCRIPTED
from finemem_lib.managers.loading import checkpoint_folder
from finemem_lib.managers.model import ModelManager, load_manager, make_manager
from finemem_lib.managers.protocol import MemoryManager
from finemem_lib.managers.rollout import MemoryKind, RolloutSettings, play
from finemem_lib.readers.extractive import ExtractiveReader, reader_for
from finemem_lib.readers.trainable import TrainableReader
from finemem_lib.reading import MemoisedAgent
from finemem_lib.retrievers.encoder import DENSE_MODEL
from finemem_lib.retrievers.named import WITH_ENCODER, RetrieverName
from finemem_lib.rewards import (
    Attribution,
    Credited,
    RewardSettings,
    Unretrieved,
    outcome_reward,
    weighted_sum,
)
from finemem_lib.seeds import generator, stable_seed
from finemem_lib.training.co_training import Learns
from finemem_lib.training.local_groups import LocalGroups
from finemem_lib.training.run import TrainingResult, torch_threads, train_manager
from finemem_lib.training.schemes import (
    PAPER_SCHEMES,
    RewardScheme,
    Scheme,
    advantages_of,
    scheme_of,
    scheme_weights,
    update_terms,
)
from finemem_lib.training.trl_adapter import MEASURED
from finemem_lib.trajectory import Instance, Trajectory
from finemem_lib.util.files import written_beside
from finemem_lib.util.provenance import code_root, git_state

KEY_VERSION = 2
"""Part of every key. Increment when the same settings would produce different results."""

TERM_KNOBS = {
    "chunk": ("w1", "w1_until", "wrong_questions", "verified", "acceptance"),
    "eara": ("beta", "attribution", "credited", "unretrieved", "evidence_drop", "evidence_swap"),
}
"""Settings that act only through one term of the reward; they do not affect schemes without it. The
settings of chunk questions also act through local groups with a chunk weight. `alignment_batches`
measures all schemes of the paper: with it, settings that differ from their default count."""

LATER_KNOBS = (
    "alignment_batches",
    "dense_model",
    "token_budget",
    "acceptance",
    "question_fraction",
    "reader",
    "learns",
    "world",
    "local_groups",
    "data",
    "memory",
    "streams",
    "test_plays",
)
"""Settings added after the first stored results: they enter a key only if they differ from their
default."""

WEIGHTS = ("*.safetensors", "*.bin")

TOKENIZER = (
    "config.json",
    "generation_config.json",
    "tokenizer*",
    "chat_template*",
    "vocab*",
    "merges*",
    "special_tokens*",
    "added_tokens*",
)

FIRST_TOKENIZER = "7a5aa0f1bf2d91cdcf7a1bf7572180827376c2c56af9da35cc95692446415653"
"""`files_hash` of the tokenizer and configuration of the first stored results, whose keys did not
include it; another hash enters the key."""

CURVES = (
    "reward",
    "reward_std",
    "rewards/outcome/mean",
    "rewards/eara/mean",
    "rewards/format/mean",
    "rewards/chunk/mean",
    "rewards/compression/mean",
    "accuracy",
    "operations/INSERT",
    "operations/UPDATE",
    "operations/DELETE",
    "operations/SKIP",
    "invalid_share",
    "memory_items",
    "memory_tokens",
    "entropy",
    "frac_reward_zero_std",
    "completions/mean_length",
    "grad_norm",
    "w1",
    "reader/picked",
    "reader/expected",
    "reader/best",
    "step_time",
    "seconds/generation",
    "seconds/environment",
    "seconds/credit",
)
"""The quantities of every update's record that a result stores, if measured."""

OF_EVIDENCE = (
    "spread/evidence",
    "spread/eara",
    "credit_at_evidence/retrieved",
    "credit_at_evidence/used",
)

"""Measures of a curve that depend on the evidence."""

REAL_TRUTHS = ("WRITE asked", "WRITE distractor")
"""Counts on real text: stored contents of pieces with questions, and of distractors."""

FAULTY = ", faulty evidence"
"""Suffix of the name of a measure of faulty evidence."""


class FrozenModel(BaseModel):
    """An immutable pydantic model that rejects unknown fields."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Cell(FrozenModel):
    """One training run and its tests: two names, every setting, and the seed.

    Fields that are not listed here are those of the same name in `RewardSettings`,
    `RolloutSettings` or `train_manager`.

    Attributes:
        variant: name of the training in the design; like `regime`, it does not affect the result.
        scheme: name of a reward scheme, or a scheme in full.
        w1_until: update at which w1 has fallen to 0; `None` keeps it constant.
        evidence_drop: share of evidence dropped while credit is assigned; `evidence_swap` is the
            share swapped.
        wrong_questions: share of chunk questions with a wrong answer.
        verified: whether a verifier removes wrong chunk questions before training.
        acceptance: threshold of the verifier, see `data.questions.verified`.
        question_fraction: share of the global questions asked in training; tests ask all.
        reader: the reader: the extractive one, or a trainable one with initial weights and the same
            retrieval queries.
        capacity: largest number of items in the memory; `None` for no limit.
        token_budget: largest number of tokens in the memory; `None` for no limit.
        memory: kind of the memory, see `RolloutSettings`.
        streams: "planted", or the streams of `data.planted_layers`, which need structure.
        world: world of the planted streams, see `StreamSettings`; `checkpoint` must read it.
        data: folder with ``train.parquet`` and ``held_out.parquet``, whose instances replace the
            planted streams; a relative path is searched in the working directory,
            then in the repository. Empty for none.
        dense_model: sentence encoder of dense retrieval.
        checkpoint: as for `load_manager`; with 0 updates also the name of a scripted manager.
        updates: GRPO updates; 0 tests the warm start.
        config: any other field of TRL's GRPOConfig.
        held_out: number of streams of `num_chunks` chunks that the manager is tested on.
        test_chunks: further lengths to test, each on `test_streams` streams.
        test_plays: sampled plays of every held-out stream, whose mean is its result; the greedy
            test plays it once.
        alignment_batches: batches, of the size of an update, that measure gradient alignment after
            training; 0 for none.

    Raises:
        ValueError: a field is unknown, or a value is out of range.
    """

    variant: str
    regime: str
    seed: int = Field(ge=0)
    checkpoint: str = "tiny"
    scheme: str | RewardScheme = "outcome-only"
    beta: float = Field(0.5, ge=0, le=1)
    w1: float = Field(0.5, ge=0)
    w2: float = Field(0.05, ge=0)
    w1_until: int | None = Field(None, ge=2)
    attribution: Attribution = "last_write"
    credited: Credited = "retrieved"
    unretrieved: Unretrieved = "spread"
    evidence_drop: float = Field(0.0, ge=0, le=1)
    evidence_swap: float = Field(0.0, ge=0, le=1)
    wrong_questions: float = Field(0.0, ge=0, le=1)
    verified: bool = False
    acceptance: float = Field(1.0, ge=0, le=1)
    question_fraction: float = Field(1.0, gt=0, le=1)
    reader: Literal["extractive", "trainable"] = "extractive"
    learns: Learns = "manager"
    local_groups: LocalGroups | None = None
    capacity: int | None = Field(None, ge=1)
    eviction: Literal["oldest", "first_created", "least_recent", "refuse"] = "oldest"
    token_budget: int | None = Field(None, ge=1)
    duplicates: Literal["refuse", "allow"] = "refuse"
    top_k: int = Field(3, ge=1)
    retriever: RetrieverName = "bm25"
    dense_model: str = DENSE_MODEL
    num_chunks: int = Field(6, ge=1)
    memory: MemoryKind = "flat"
    streams: Literal["planted", "planted-layers"] = "planted"
    world: World = "plain"
    data: str = ""
    updates: int = Field(60, ge=0)
    instances_per_update: int = Field(8, ge=1)
    num_generations: int = Field(8, ge=2)
    learning_rate: float = Field(7e-4, gt=0)
    scale_rewards: Literal["group", "batch", "none"] = "group"
    entropy_coef: float = Field(0.0, ge=0)
    config: dict[str, float | int | str | bool | None] = {}
    held_out: int = Field(64, ge=1)
    test_chunks: tuple[int, ...] = ()
    test_streams: int = Field(16, ge=1)
    test_plays: int = Field(1, ge=1)
    alignment_batches: int = Field(0, ge=0)

    @field_validator("scheme")
    @classmethod
    def _scheme_is_known(cls, scheme: Scheme) -> Scheme:
        scheme_of(scheme)
        return scheme

    @model_validator(mode="after")
    def _faults_are_possible(self) -> Self:
        EvidenceFaults(self.evidence_drop, self.evidence_swap)
        return self

    @model_validator(mode="after")
    def _learner_can_learn(self) -> Self:
        if self.learns != "manager" and self.reader != "trainable":
            raise ValueError(f"learns is {self.learns!r}, which needs reader: trainable")
        return self

    @property
    def key(self) -> str:
        """The key: 16 hexadecimal digits, equal for equal trainings.

        It hashes the settings that affect the scheme, the seed, and the files of the warm start
        and, if used, of the sentence encoder.
        """
        scheme = scheme_of(self.scheme)
        idle = {
            knob
            for term, knobs in TERM_KNOBS.items()
            if term not in scheme.terms and not scheme.rules  # a rule may depend on them
            for knob in knobs
        }
        if self.local_groups is not None and self.local_groups.chunk_weight:
            idle -= {"wrong_questions", "verified", "acceptance"}
        if self.alignment_batches:
            idle -= _unless_default(self, *idle).keys()
        idle |= set(LATER_KNOBS) - _unless_default(self, *LATER_KNOBS).keys()
        files = []
        if (tokenizer := files_hash(self.checkpoint, *TOKENIZER)) != FIRST_TOKENIZER:
            files.append(tokenizer)
        if self.retriever in WITH_ENCODER:
            files.append(files_hash(self.dense_model, *WEIGHTS, *TOKENIZER))
        else:
            idle.add("dense_model")
        knobs = self.model_dump(mode="json", exclude={"variant", "regime", "scheme"} | idle)
        knobs["scheme"] = {**dataclasses.asdict(scheme), "name": None}
        if scheme.advantage == "step":  # younger than kept results
            del knobs["scheme"]["advantage"]
        if self.data:
            files.append(files_hash(self.data, "*.parquet"))
        weights = files_hash(self.checkpoint, *WEIGHTS)
        text = json.dumps([KEY_VERSION, weights, knobs, *files], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    @property
    def stream(self) -> StreamSettings:
        """Settings of the planted streams to train on."""
        return StreamSettings(num_chunks=self.num_chunks, world=self.world)

    @property
    def rewards(self) -> RewardSettings:
        """Settings of the reward terms."""
        return RewardSettings(
            beta=self.beta,
            w1=self.w1,
            w2=self.w2,
            attribution=self.attribution,
            credited=self.credited,
            unretrieved=self.unretrieved,
        )

    def rollout(self, num_generations: int) -> RolloutSettings:
        """Return the settings of the rollouts.

        Args:
            num_generations: G, the number of rollouts per stream.
        """
        return RolloutSettings(
            num_generations=num_generations,
            top_k=self.top_k,
            capacity=self.capacity,
            eviction=self.eviction,
            duplicates=self.duplicates,
            **_unless_default(
                self, "retriever", "dense_model", "token_budget", "question_fraction", "memory"
            ),
        )

    def new_reader(self) -> MemoisedAgent:
        """Return the reader with its initial weights."""
        if self.reader == "extractive":
            return self.extractive_reader()
        return MemoisedAgent(TrainableReader(self.seed, synonyms=VERBS[DATA_SOURCES[self.world]]))

    def extractive_reader(self) -> MemoisedAgent:
        """Return the extractive reader, with the verbs of the planted world as synonyms."""
        if self.data:
            return MemoisedAgent(ExtractiveReader())
        return MemoisedAgent(ExtractiveReader(synonyms=VERBS[DATA_SOURCES[self.world]]))


class HeldOut(FrozenModel):
    """One test of a trained manager.

    Attributes:
        chunks: T of the streams.
        temperature: of sampling; 0 is greedy.
        columns: one value per stream, in their order: "accuracy" (r_global), "memory_tokens",
            "memory_items", "valid_share" (of the operations), and the counts of `operation_truth`;
            of a layered memory the tokens, calls and share never retrieved of each store; of
            streams that need structure the accuracy by kind of question.
    """

    chunks: int
    temperature: float
    columns: dict[str, list[float | None]]


class CellResult(FrozenModel):
    """The result of a cell.

    Attributes:
        cell: The cell.
        key: Key of the cell.
        curve: Measures of training, one value per update.
        episodes: Per update, the accuracy of every training stream (mean over its rollouts).
        tests: Tests named "sampled" and "greedy", with the length if it differs from training, and
            ", extractive reader" if that reader answered instead of the cell's own.
        seconds: Wall-clock seconds of "training" and "testing", and CPU seconds of training as
            "training_cpu", which do not depend on the load of the machine.
        price: By update ("1", "14" and the last) and "fact" or "noise", the advantage per stored
            sentence and its standard error (`evaluation.noise_price`).
        alignment: By scheme, the cosine of every batch, and as "agreement/<scheme>" the mean cosine
            between batches (see `gradient_alignment`).
        commit: Commit of the checkout when training began, `None` if not recorded.
        dirty: Whether files differed from that commit.
    """

    cell: Cell
    key: str
    curve: dict[str, list[float | None]]
    episodes: list[list[float | None]]
    tests: dict[str, HeldOut]
    seconds: dict[str, float]
    price: dict[str, dict[str, tuple[float | None, float | None]]] = {}
    alignment: dict[str, list[float]] = {}
    commit: str | None = None
    dirty: bool | None = None


@functools.cache
def files_hash(model: str, *patterns: str) -> str:
    """Return the hash of the content of a model's files, or of its name for a model on the hub.

    Args:
        model: Name or folder of a checkpoint.
        patterns: Glob patterns of the files to hash, in this order.
    """
    folder = checkpoint_folder(model)
    if folder is None:
        return hashlib.sha256(model.encode()).hexdigest()
    digest = hashlib.sha256()
    for pattern in patterns:
        for path in sorted(folder.glob(pattern)):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _unless_default(cell: Cell, *names: str) -> dict[str, Any]:
    fields = Cell.model_fields
    return {
        name: getattr(cell, name) for name in names if getattr(cell, name) != fields[name].default
    }


def run_cell(cell: Cell, keep: Path | None = None) -> CellResult:
    """Train one manager and test it on held-out streams, on one torch thread.

    Args:
        cell: The training and its tests.
        keep: Folder to save the trained manager into, under the cell's key, replacing an existing
            one; `None` does not save it.

    Raises:
        ValueError: as `train_manager`.
    """
    code: dict[str, Any] = {**git_state(code_root())}
    with torch_threads(1):
        started, cpu = time.perf_counter(), time.process_time()
        instances = _training_streams(cell)
        agent = cell.new_reader()
        manager: MemoryManager
        if cell.updates:
            trained = _train(cell, instances, agent)
            training, training_cpu = time.perf_counter() - started, time.process_time() - cpu
            curve, episodes = _curve(cell, trained, instances), _episodes(trained)
            price = _price(cell, trained, instances, agent)
            manager = trained.manager
            if keep is not None:
                with written_beside(keep / cell.key) as beside:
                    trained.manager.save(beside)
        else:
            training, training_cpu, price = 0.0, 0.0, {}
            curve, episodes, manager = {}, [], _untrained(cell)
        readers = {"": agent}
        if cell.reader != "extractive":
            readers[", extractive reader"] = cell.extractive_reader()
        tests = {
            name + (f" T={chunks}" if chunks != cell.num_chunks else "") + reader: _test(
                cell, manager, readers[reader], chunks, temperature
            )
            for chunks in dict.fromkeys((cell.num_chunks, *cell.test_chunks))
            for reader in readers
            for name, temperature in (("sampled", 1.0), ("greedy", 0.0))
        }
        alignment = {}
        if cell.alignment_batches and isinstance(manager, ModelManager):
            alignment = _alignment(cell, manager)
        seconds = {
            "training": training,
            "testing": time.perf_counter() - started - training,
            "training_cpu": training_cpu,
        }
    return CellResult(
        cell=cell,
        key=cell.key,
        curve=curve,
        episodes=episodes,
        tests=tests,
        seconds={name: round(value, 1) for name, value in seconds.items()},
        price=price,
        alignment=alignment,
        **code,
    )


def _untrained(cell: Cell) -> MemoryManager:
    """Return the warm start, or the scripted manager that `checkpoint` names."""
    if cell.checkpoint in ALL_SCRIPTED:
        return make_manager(cell.checkpoint)
    return load_manager(cell.checkpoint)


def real_instances(data: str, split: Literal["train", "held_out"]) -> list[Instance]:
    """Return the instances of one split of a folder of real text, with cloze chunk questions.

    Args:
        data: Folder, as in `Cell.data`.
        split: Name of the file, "train" or "held_out".

    Raises:
        ValueError: there is no such folder, or the file cannot be read.
    """
    folder = checkpoint_folder(data)
    if folder is None:
        raise ValueError(
            f"data is {data!r}, which is not a folder here, expected one with train.parquet and "
            "held_out.parquet; see data/real"
        )
    teacher, verifier = ClozeTeacher(), ExtractiveReader()
    return [
        make_chunk_questions(one, teacher, verifier)[0]
        for one in load_instances(folder / f"{split}.parquet").instances
    ]


def _training_streams(cell: Cell) -> list[Instance]:
    number = cell.updates * cell.instances_per_update
    if cell.data:
        instances = real_instances(cell.data, "train")
        generator("training order", cell.seed).shuffle(instances)
        return instances[: max(number, 1)]
    instances = cell_streams(cell, "train", number, cell.num_chunks, cell.seed)
    if cell.wrong_questions:
        instances = [wrong_questions(one, cell.wrong_questions, cell.seed) for one in instances]
    if cell.verified:
        verifier = reader_for(instances)
        instances = [verified(one, verifier, cell.acceptance, cell.seed) for one in instances]
    return instances


def cell_streams(
    cell: Cell, split: Literal["train", "held-out"], number: int, chunks: int, seed: int
) -> list[Instance]:
    """Return planted streams of a cell.

    Args:
        cell: Names the world and the shape of the streams.
        split: Streams to train on, or those that managers are tested on.
        number: Number of streams, at least 1.
        chunks: Chunks of each stream.
        seed: Seed of the streams; tests use that of the cell.
    """
    if cell.streams == LAYERS_SOURCE:
        return layer_instances(split, number, seed, LayerStream(num_chunks=chunks))
    shape = dataclasses.replace(cell.stream, num_chunks=chunks)
    return planted_instances(split, number, seed, shape)


def _train(cell: Cell, instances: Sequence[Instance], agent: MemoisedAgent) -> TrainingResult:
    config: dict[str, Any] = {**cell.config}
    more = _unless_default(cell, "w1_until", "entropy_coef", "scale_rewards", "local_groups")
    if cell.evidence_drop or cell.evidence_swap:
        more["evidence_faults"] = EvidenceFaults(cell.evidence_drop, cell.evidence_swap)
    trained = train_manager(
        cell.checkpoint,
        scheme=cell.scheme,
        rewards=cell.rewards,
        rollout=cell.rollout(cell.num_generations),
        instances=instances,
        agent=agent,
        learns=cell.learns,
        updates=cell.updates,
        instances_per_update=cell.instances_per_update,
        learning_rate=cell.learning_rate,
        seed=cell.seed,
        keep_updates=range(1, cell.updates + 1),
        threads=1,
        processes=1,  # cells run side by side
        **more,
        **config,
    )
    if trained.interrupted:  # an incomplete training is not a result
        raise KeyboardInterrupt
    return trained


def _curve(
    cell: Cell, trained: TrainingResult, instances: Sequence[Instance]
) -> dict[str, list[float | None]]:
    """Return the measures of every update.

    These are quantities of the training records, "reader_calls" (without those of the outcome), and
    comparisons of the rollouts with the ground truth: "truth/<operation>" per step, "spread/<term>"
    and "credit_at_evidence/<credited>". With evidence faults, the measures of `OF_EVIDENCE` occur
    twice: for the true evidence and, with the suffix `FAULTY`, for the faulty evidence that credit
    was based on.
    """
    by_id = {instance.instance_id: instance for instance in instances}
    curve: defaultdict[str, list[float | None]] = defaultdict(list)
    for record in trained.records:
        for name in trained.records[0]:
            if name in CURVES or name.startswith(MEASURED):
                curve[name].append(_rounded(record.get(name)))
        groups = trained.trajectories[int(record["step"])]
        flat = [one for group in groups for one in group]
        curve["reader_calls"].append(_reader_calls(cell.scheme, record, flat))
        truth: Counter[str] = Counter()
        for one in flat:
            truth.update(_truth(one, by_id[one.instance_id]))
        steps = sum(one.num_steps for one in flat)
        for name, count in truth.items():
            curve[f"truth/{name}"].append(_rounded(count / steps))
        measured = _credit(cell, groups)
        if cell.evidence_drop or cell.evidence_swap:
            faults = EvidenceFaults(cell.evidence_drop, cell.evidence_swap)
            seed = stable_seed(cell.seed, int(record["step"]) - 1)  # as in the trainer
            faulty = [[with_faults(one, faults, seed) for one in group] for group in groups]
            attributed = _credit(cell, faulty)
            measured |= {f"{name}{FAULTY}": attributed[name] for name in OF_EVIDENCE}
        for name, value in measured.items():
            curve[name].append(_rounded(value))
    return dict(curve)


def _price(
    cell: Cell, trained: TrainingResult, instances: Sequence[Instance], agent: MemoisedAgent
) -> dict[str, dict[str, tuple[float | None, float | None]]]:
    """Return the advantage of the cell's scheme per stored fact and noise sentence.

    The result is empty if a rule needs a reader that was trained since, if operations or local
    groups are credited in addition to steps, or if notes may be worth storing that copy nothing.
    """
    scheme = scheme_of(cell.scheme)
    more = scheme.operations or cell.local_groups is not None or cell.streams == LAYERS_SOURCE
    if more or cell.data or (cell.learns != "manager" and scheme.rules):
        return {}
    by_id = {instance.instance_id: instance for instance in instances}
    weights = scheme_weights(cell.scheme, cell.rewards)
    found = {}
    for number in sorted({1, min(14, cell.updates), cell.updates}):
        groups = trained.trajectories[number]
        terms = update_terms(groups, cell.scheme, cell.rewards, agent).terms
        rewards = [[[weighted_sum(step, weights) for step in row] for row in of] for of in terms]
        advantages = advantages_of(cell.scheme, rewards, cell.scale_rewards)
        found[str(number)] = {
            name: (_rounded(slope), _rounded(error))
            for name, (slope, error) in noise_price(groups, advantages, by_id).items()
        }
    return found


def _reader_calls(
    scheme: Scheme, record: Mapping[str, Any], trajectories: Iterable[Trajectory]
) -> int:
    """Return the number of readings requested for an update's credit, without the outcome's."""
    scheme = scheme_of(scheme)
    calls = sum(int(record[f"{MEASURED}{rule}/calls_asked"]) for rule in scheme.rules)
    calls += int(record.get(f"{MEASURED}local/calls_asked", 0))
    if "chunk" in scheme.terms or any("chunk questions" in RULES[r].records for r in scheme.rules):
        calls += sum(len(step.chunk_questions) for one in trajectories for step in one.steps)
    return calls


def _credit(cell: Cell, groups: Sequence[Sequence[Trajectory]]) -> dict[str, float | None]:
    found = {f"spread/{term}": spread for term, spread in term_spread(groups, cell.rewards).items()}
    for credited in ("retrieved", "used"):
        settings = RewardSettings(attribution=cell.attribution, credited=credited)
        found[f"credit_at_evidence/{credited}"] = credit_at_evidence(
            [one for group in groups for one in group], settings
        )
    return found


def _episodes(trained: TrainingResult) -> list[list[float | None]]:
    return [
        [_mean(outcome_reward(one) for one in group) for group in trained.trajectories[number]]
        for number in sorted(trained.trajectories)
    ]


def _test(
    cell: Cell, manager: MemoryManager, agent: MemoisedAgent, chunks: int, temperature: float
) -> HeldOut:
    number = cell.held_out if chunks == cell.num_chunks else cell.test_streams
    if cell.data:
        streams = real_instances(cell.data, "held_out")[:number]
    else:
        streams = cell_streams(cell, "held-out", number, chunks, cell.seed)
    sampled = manager if isinstance(manager, ModelManager) else None
    plays = cell.test_plays if temperature else 1
    before = None if sampled is None else sampled.temperature
    try:
        if sampled is not None:
            sampled.temperature = temperature
        played = play(
            streams,
            manager,
            dataclasses.replace(cell.rollout(plays), question_fraction=1.0),
            agent,
            stable_seed(cell.seed, "test", chunks),
        )
    finally:
        if sampled is not None and before is not None:
            sampled.temperature = before
    columns: defaultdict[str, list[float | None]] = defaultdict(list)
    for group, stream in zip(played, streams, strict=True):
        found = [_measured(cell, one, stream) for one in group]
        for name in found[0]:
            values = [one[name] for one in found]
            columns[name].append(values[0] if plays == 1 else _mean(values))
    return HeldOut(chunks=chunks, temperature=temperature, columns=columns)


def _measured(cell: Cell, one: Trajectory, stream: Instance) -> dict[str, float | None]:
    """Return what a test measures of one play of a stream."""
    outcomes = [outcome for step in one.steps for outcome in step.outcomes]
    return {
        "accuracy": _rounded(outcome_reward(one)),
        "memory_tokens": one.steps[-1].memory_tokens,
        "memory_items": len(one.final_memory()),
        "valid_share": _mean(outcome.applied for outcome in outcomes),
        **_truth(one, stream),
        **{name: _rounded(value) for name, value in _layers(cell, one).items()},
    }


def _truth(one: Trajectory, instance: Instance) -> dict[str, int]:
    """Return the counts of `operation_truth`; of real text what was stored of which pieces."""
    if instance.data_source == LAYERS_SOURCE:  # whose notes are no sentences of the stream
        return {}
    planted = "facts" in instance.metadata
    return operation_truth(one, instance) if planted else stored_pieces(one, instance)


def _layers(cell: Cell, one: Trajectory) -> dict[str, float | None]:
    """Return what the stores hold and, where streams need structure, the accuracy by kind."""
    found: dict[str, float | None] = {}
    if cell.memory == "layered":
        used = {row.store: row for row in utilisation({"": [one]})}
        for store in LAYERS:
            row = used.get(store)
            found[f"{store} tokens"] = row.tokens if row else 0.0
            found[f"{store} calls"] = sum(row.calls.values()) if row else 0
            found[f"{store} never retrieved"] = row.never_retrieved if row else None
    if cell.streams == LAYERS_SOURCE:
        for kind in ("fact", "event", "summary"):
            found[f"accuracy, {kind}"] = _mean(
                asked.score
                for asked in one.questions
                if asked.question.question_id.startswith(kind)
            )
    return found


def stored_pieces(one: Trajectory, instance: Instance) -> dict[str, int]:
    """Return the numbers of stored contents of pieces with questions and of distractors.

    Args:
        one: A trajectory on real text.
        instance: The instance of the trajectory.
    """
    distractors = set(instance.metadata.get("distractor_steps", ()))
    counts = dict.fromkeys(REAL_TRUTHS, 0)
    for step in one.steps:
        name = REAL_TRUTHS[step.step in distractors]
        counts[name] += sum(
            outcome.applied and outcome.operation is not None and bool(outcome.operation.content)
            for outcome in step.outcomes
        )
    return counts


def _alignment(cell: Cell, manager: ModelManager) -> dict[str, list[float]]:
    """Return the gradient alignment of the paper's schemes on held-out streams."""
    size = cell.instances_per_update
    seed = stable_seed(cell.seed, "alignment")
    streams = cell_streams(cell, "held-out", cell.alignment_batches * size, cell.num_chunks, seed)
    schemes: dict[str, tuple[Scheme, RewardSettings]] = {
        scheme: (scheme, cell.rewards) for scheme in PAPER_SCHEMES
    }
    used = dataclasses.replace(cell.rewards, credited="used")
    schemes |= {f"{scheme}, used items": (scheme, used) for scheme in ("+EARA", "Fine-Mem")}
    found = gradient_alignment(
        manager,
        [streams[start : start + size] for start in range(0, len(streams), size)],
        reader_for(streams),
        cell.rollout(cell.num_generations),
        schemes,
        cell.seed,
    )
    return {
        **{one.scheme: [round(value, 5) for value in one.cosines] for one in found},
        **{f"agreement/{one.scheme}": [round(one.agreement, 5)] for one in found},
    }


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return _rounded(sum(known) / len(known)) if known else None


def _rounded(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(value, 5)
