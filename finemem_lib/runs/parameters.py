"""The parameters of the notebooks: one model each, with names, types, bounds, help and defaults.

The parameters cell, the checks, the command line, the table of all parameters and a run's record
come from these models.
"""

from __future__ import annotations

import html
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.fields import FieldInfo

from finemem_lib.baselines.systems import SYSTEMS, played_by_a_model
from finemem_lib.data.planted import World
from finemem_lib.managers.layered_scripted import ALL_SCRIPTED
from finemem_lib.managers.loading import (
    LAYERED_MANAGERS,
    SHIPPED_MANAGERS,
    TINY_WORLDS,
    ChunkRule,
    Loader,
    MemoryRule,
    ModelSettings,
    OperationsAs,
    Precision,
    check_checkpoint,
)
from finemem_lib.managers.rollout import MemoryKind
from finemem_lib.retrievers.named import RetrieverName
from finemem_lib.training.schemes import SCHEMES
from finemem_lib.training.stops import REPORTERS, can_report
from finemem_lib.util.yaml_files import parse_yaml

MANAGERS = (*sorted(ALL_SCRIPTED), *SHIPPED_MANAGERS)
MAIN = "Main parameters"


@dataclass(frozen=True)
class Rule:
    """A condition on a value that type and bounds cannot express.

    Attributes:
        expected: A phrase that follows "expected" in the error message.
        accepts: Whether a value of the right type is allowed.
    """

    expected: str
    accepts: Callable[[Any], bool]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def _check(self, value: Any) -> Any:
        if not self.accepts(value):
            raise ValueError(self.expected)
        return value


@dataclass(frozen=True)
class Rare:
    """Marks a parameter that the parameters cell leaves out.

    Attributes:
        group: The heading above it in the table of all parameters.
    """

    group: str


class ParameterError(ValueError):
    """Parameters are refused.

    Attributes:
        problems: One sentence per problem.
    """

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = problems


Seed = Annotated[int, Field(ge=0, le=2**32 - 1, description="every random choice follows from it")]


class NotebookParameters(BaseModel):
    """The parameters of one notebook, checked; subclasses add fields to these two.

    A field marked with `Rare` does not stand in the parameters cell. It is set by papermill, by the
    command line, or by a line that a reader adds to that cell.
    """

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)

    run_id: Annotated[str, Field(description="folder under data/runs that the notebooks share")] = (
        "notebook"
    )
    seed: Seed = 0

    @model_validator(mode="after")
    def _check_contradictions(self) -> Self:
        if problems := self.contradictions():
            raise ValueError(*problems)
        return self

    def contradictions(self) -> list[str]:
        """Return one sentence per group of parameters that cannot hold together."""
        return []

    @classmethod
    def read(cls, values: Mapping[str, Any], *, texts: bool = False) -> Self:
        """Check values and return them as parameters.

        Args:
            values: Values by name; a parameter that is left out takes its default.
            texts: Whether a text may stand for a number, a switch or a list, as on the command
                line and in YAML, where 2e-5 is a text.

        Raises:
            ParameterError: values are refused; the message has one sentence per problem.

        >>> RewardsAndCredit.read({"beta": "0.25"}, texts=True).beta
        0.25
        >>> RewardsAndCredit.read({"beta": 2.0, "top_k": True})
        Traceback (most recent call last):
        ...
        finemem_lib.runs.parameters.ParameterError: beta is 2.0, expected a number from 0 to 1; \
top_k is True, expected a whole number from 1 to 1000
        """
        if texts:
            values = {name: cls._from_text(name, value) for name, value in values.items()}
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            raise ParameterError(cls._problems(error, values)) from None

    @classmethod
    def _from_text(cls, name: str, value: Any) -> Any:
        """Return the value that a text denotes in a field; the text itself if it denotes none."""
        field = cls.model_fields.get(name)
        if field is None or not isinstance(value, str):
            return value
        kind = _kind(field.annotation)
        try:
            if kind is list:
                return parse_yaml(value if value.lstrip().startswith("[") else f"[{value}]")
            return value if kind is str else TypeAdapter(kind).validate_strings(value)
        except ValueError:  # refused with the others
            return value

    @classmethod
    def _problems(cls, error: ValidationError, values: Mapping[str, Any]) -> list[str]:
        problems: dict[str, None] = {}
        for one in error.errors(include_url=False, include_input=False):
            name = str(one["loc"][0]) if one["loc"] else ""
            if not name:  # of `contradictions`
                problems |= dict.fromkeys(map(str, one["ctx"]["error"].args))
            elif name in cls.model_fields:
                wanted = expected(cls.model_fields[name])
                problems[f"{name} is {values[name]!r}, expected {wanted}"] = None
            else:
                have = ", ".join(sorted(set(cls.model_fields) - {"run_id"}))
                problems[f"unknown parameter {name}; there are: {have}"] = None
        return list(problems)

    @classmethod
    def main(cls) -> dict[str, FieldInfo]:
        """Return the fields that stand in the parameters cell."""
        return {name: field for name, field in cls.model_fields.items() if group_of(field) == MAIN}

    @classmethod
    def cell(cls) -> str:
        """Return the source of the parameters cell, one line per main parameter.

        >>> print(RulesDisagree.cell())
        run_id: str = "notebook"  # folder under data/runs that the notebooks share
        seed: int = 0  # every random choice follows from it
        beta: float = 1.0  # share of the outcome that follows the evidence
        top_k: int = 2  # items retrieved per question
        """
        return "\n".join(
            f"{name}: {_kind(field.annotation).__name__} = {_literal(field.get_default())}"
            f"  # {field.description}"
            for name, field in cls.main().items()
        )


def expected(field: FieldInfo) -> str:
    """Return what a parameter may be, as a phrase that follows "expected".

    Args:
        field: A field of a notebook's model.

    >>> expected(GRPOTraining.model_fields["question_fraction"])
    'a number above 0 and at most 1'
    """
    for rule in field.metadata:
        if isinstance(rule, Rule):
            return rule.expected
    if get_origin(field.annotation) is Literal:
        return f"one of {', '.join(get_args(field.annotation))}"
    kind = _kind(field.annotation)
    if kind not in (int, float):
        return {bool: "True or False", str: "a text", list: "a list of texts"}[kind]
    bounds = {
        name: getattr(each, name)
        for each in field.metadata
        for name in ("ge", "gt", "le")
        if hasattr(each, name)
    }
    number = "a whole number" if kind is int else "a number"
    if "gt" in bounds:
        return f"{number} above {bounds['gt']} and at most {bounds['le']}"
    return f"{number} from {bounds['ge']} to {bounds['le']}" if "ge" in bounds else number


def group_of(field: FieldInfo) -> str:
    """Return the heading of a parameter in the table of all parameters.

    Args:
        field: A field of a notebook's model.
    """
    return next((each.group for each in field.metadata if isinstance(each, Rare)), MAIN)


def _kind(annotation: Any) -> type:
    """Return bool, int, float, str or list."""
    if get_origin(annotation) is Literal:
        return str
    kind: type = get_origin(annotation) or annotation
    return kind


def _literal(value: Any) -> str:
    """Return a value as Python, texts in double quotes."""
    is_number = isinstance(value, (bool, int, float))
    return repr(value) if is_number else json.dumps(value, ensure_ascii=False)


class ParameterTable:
    """All parameters of a notebook by group: a folded table in a browser, lines elsewhere."""

    def __init__(self, parameters: NotebookParameters) -> None:
        """Store the values to show.

        Args:
            parameters: Parameters of the notebook.
        """
        self._groups: dict[str, list[tuple[str, str, str, str]]] = {}
        for name, field in type(parameters).model_fields.items():
            value, default = (_literal(v) for v in (getattr(parameters, name), field.get_default()))
            row = (name, value, default, str(field.description))
            self._groups.setdefault(group_of(field), []).append(row)

    def __repr__(self) -> str:
        lines = []
        for group, rows in self._groups.items():
            lines.append(group)
            lines += [f"  {name} = {value}  # {text}" for name, value, _, text in rows]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        number = sum(map(len, self._groups.values()))
        rare = [rows for group, rows in self._groups.items() if group != MAIN]
        first = f"{rare[0][0][0]} = {rare[0][0][1]}" if rare else ""
        left_out = (
            f", with the {sum(map(len, rare))} that the parameters cell leaves out. To set one of "
            f"them, add a line to that cell, for example <code>{html.escape(first)}</code>"
            if rare
            else ""
        )
        parts = [
            f"<details><summary>All {number} parameters of this notebook{left_out}</summary>",
            "<table><thead><tr><th>parameter</th><th>value</th><th>default</th><th>meaning</th>"
            "</tr></thead>",
        ]
        for group, rows in self._groups.items():
            parts.append(
                f'<tbody><tr><th colspan="4" scope="rowgroup">{html.escape(group)}</th></tr>'
            )
            parts += [
                "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>"
                for row in rows
            ]
            parts.append("</tbody>")
        return "".join([*parts, "</table></details>"])


# ---- parameters that several notebooks share -----------------------------------------------------


def _help(text: str) -> Any:
    """Return the description of a parameter."""
    return Field(description=text)


def _within(least: float, most: float, text: str) -> Any:
    """Return the bounds of a number, both allowed, and its description."""
    return Field(ge=least, le=most, description=text)


Texts = list[str]
Models = Annotated[str, _help("file that names language models by role; empty for none")]
Capacity = Annotated[int, _within(0, 1_000_000, "most items the memory may hold; 0 for no limit")]
TokenBudget = Annotated[
    int, _within(0, 100_000_000, "most tokens the memory may hold; 0 for no limit")
]
Memory = Annotated[MemoryKind, _help("kind of the memory; or layered, Mem-alpha's")]
TopK = Annotated[int, _within(1, 1_000, "items retrieved per question")]
Retrieval = Annotated[RetrieverName, _help("how items are found; or dense, hybrid, graph, whole")]
Beta = Annotated[float, _within(0, 1, "share of the outcome that follows the evidence")]
PlantedWorld = Annotated[
    World, _help("wording of planted streams; or paraphrased, told by the verb alone")
]
NumChunks = Annotated[int, _within(1, 10_000, "chunks of a planted stream")]
Attribution = Annotated[
    Literal["last_write", "creation", "lineage"],
    _help("the step an item speaks for; or creation, lineage"),
]
Credited = Annotated[
    Literal["retrieved", "used"], _help("the items that share the credit; or used")
]
NumGenerations = Annotated[int, _within(2, 256, "G, rollouts of each instance")]
Updates = Annotated[int, _within(0, 100_000, "GRPO updates")]
PerUpdate = Annotated[int, _within(1, 1_000, "streams or instances per update")]
LearningRate = Annotated[float, _within(0, 1, "of Adam")]
KLCoef = Annotated[
    float, _within(0, 100, "pull back to the warm start, TRL's beta; the paper has none")
]
HeldOut = Annotated[
    int, _within(1, 100_000, "streams or instances the managers are tested on, never trained on")
]
Managers = Annotated[
    Texts,
    Rule(
        f"a list of one or more of {', '.join(sorted(MANAGERS))}",
        lambda names: bool(names) and {*names} <= {*MANAGERS},
    ),
]
Resamples = Annotated[int, _within(10, 1_000_000, "bootstrap resamples")]


def managers_without_layers(managers: list[str], memory: str) -> list[str]:
    """Return one sentence per manager that needs another kind of memory.

    Args:
        managers: Names of managers.
        memory: Kind of the memory that they are to play on.

    >>> managers_without_layers(["insert-all", "layered-notes"], "flat")
    ["manager 'layered-notes' needs a layered memory, and memory is 'flat'; expected ..."]
    """
    layered = {name for name, one in ALL_SCRIPTED.items() if one.memory == "layered"}
    return [
        f"manager {name!r} needs a layered memory, and memory is {memory!r}; "
        "expected memory layered"
        for name in managers
        if memory != "layered" and name in layered | {*LAYERED_MANAGERS}
    ]


class LoadsCheckpoint(NotebookParameters):
    """A notebook that loads a manager from the parameter `checkpoint`."""

    checkpoint: Annotated[
        str, _help("the warm start shipped with the project, a folder, or a name on the hub")
    ] = "tiny"

    def model_settings(self) -> ModelSettings:
        """Return how the manager is loaded, prompted and trained.

        Raises:
            ValueError: two settings contradict each other.
        """
        return ModelSettings()

    def contradictions(self) -> list[str]:
        try:
            check_checkpoint(self.checkpoint, self.model_settings())
        except ValueError as error:
            return [str(error)]
        world = getattr(self, "world", "plain")
        if TINY_WORLDS.get(self.checkpoint, world) != world:
            return [
                f"world is {world!r}, which checkpoint {self.checkpoint!r} does not read; expected "
                "checkpoint tiny for the plain world and tiny-paraphrased for the paraphrased one"
            ]
        return []


# ---- the notebooks -------------------------------------------------------------------------------


class QuestionGeneration(NotebookParameters):
    """Notebook 01: instances and their chunk questions."""

    data: Annotated[Texts, _help("files with real instances; empty for the planted stream")] = []
    split: Annotated[str, _help("split of a data set on the hub; a file has none")] = "test"
    on_error: Annotated[
        Literal["raise", "skip"], _help("a line that cannot be read stops the run; or skip")
    ] = "raise"
    max_instances: Annotated[int, _within(1, 100_000, "instances per file, or planted streams")] = 8
    num_chunks: NumChunks = 6
    world: PlantedWorld = "plain"
    streams: Annotated[
        Literal["planted", "planted-layers"],
        Rare("Planted streams"),
        _help("planted streams; or planted-layers, whose questions need structure"),
    ] = "planted"
    max_chunk_tokens: Annotated[
        int, _within(16, 1_000_000, "a longer chunk is cut after this many tokens")
    ] = 4096
    questions_per_chunk: Annotated[int, _within(0, 100, "K of the paper")] = 5
    models: Models = ""
    questions: Annotated[
        str, _help("folder of chunk questions made ahead; empty to make them here")
    ] = ""


class MemoryAndRetrieval(NotebookParameters):
    """Notebook 02: scripted managers on the instances."""

    managers: Annotated[Managers, _help("scripted managers to play")] = [
        "facts-only",
        "insert-all",
        "keyword",
        "random",
    ]
    memory: Memory = "flat"
    capacity: Capacity = 0
    token_budget: TokenBudget = 0
    top_k: TopK = 3
    retriever: Retrieval = "bm25"
    models: Models = ""

    def contradictions(self) -> list[str]:
        return managers_without_layers(self.managers, self.memory)


class RewardsAndCredit(NotebookParameters):
    """Notebook 03: rewards and advantages."""

    beta: Beta = 0.5
    w1: Annotated[float, _within(0, 100, "weight of the chunk-level step reward")] = 0.5
    w2: Annotated[float, _within(0, 100, "weight of the compression reward")] = 0.05
    attribution: Attribution = "last_write"
    credited: Credited = "retrieved"
    unretrieved: Annotated[
        Literal["spread", "drop"], _help("a question that found nothing; or drop")
    ] = "spread"
    scale_rewards: Annotated[
        Literal["group", "batch", "none"], _help("what the advantage is divided by; or batch, none")
    ] = "group"
    num_generations: NumGenerations = 8
    memory: Memory = "flat"
    top_k: TopK = 3


_TASK, _LOADING, _MEMORY, _PROMPTS, _RUN = map(
    Rare,
    (
        "Task and rewards",
        "Loading the manager",
        "Memory of the device",
        "Prompts and completions",
        "Checkpoints and reports",
    ),
)


class GRPOTraining(LoadsCheckpoint):
    """Notebook 04: GRPO training of a memory manager."""

    train_on: Annotated[
        Literal["planted", "instances"], _help("planted streams, or the instances of notebook 01")
    ] = "planted"
    scheme: Annotated[
        str,
        Rule(f"one of {', '.join(SCHEMES)}", lambda name: name in SCHEMES),
        _help("reward scheme; Fine-Mem is the paper's"),
    ] = "operation slot price"
    updates: Updates = 32
    instances_per_update: PerUpdate = 8
    num_generations: NumGenerations = 8
    learning_rate: LearningRate = 0.0015
    kl_coef: KLCoef = 0.02
    capacity: Capacity = 12
    held_out: HeldOut = 64

    entropy_coef: Annotated[
        float, _TASK, _within(0, 1, "weight of the entropy bonus, TRL's; the paper has none")
    ] = 0.0
    beta: Annotated[Beta, _TASK] = 0.5
    num_chunks: Annotated[NumChunks, _TASK] = 6
    world: Annotated[PlantedWorld, _TASK] = "plain"
    memory: Annotated[Memory, _TASK] = "flat"
    token_budget: Annotated[TokenBudget, _TASK] = 0
    top_k: Annotated[TopK, _TASK] = 3
    retriever: Annotated[Retrieval, _TASK] = "bm25"
    question_fraction: Annotated[
        float,
        _TASK,
        Field(gt=0, le=1, description="share of the global questions asked while training"),
    ] = 1.0
    models: Annotated[Models, _TASK] = ""

    loader: Annotated[
        Loader, _LOADING, _help("what loads the manager; or unsloth, on a CUDA device")
    ] = "transformers"
    precision: Annotated[Precision, _LOADING, _help("of the weights; or bf16, 4bit")] = "auto"
    lora_rank: Annotated[
        int, _LOADING, _within(0, 1_024, "rank of the adapter that is trained; 0 for all weights")
    ] = 0
    lora_alpha: Annotated[
        int, _LOADING, _within(0, 4_096, "scale of the adapter; 0 for twice the rank")
    ] = 0
    lora_layers: Annotated[
        int, _LOADING, _within(0, 1_000, "layers, from the top, with a trained adapter; 0 for all")
    ] = 0

    micro_batches: Annotated[
        int, _MEMORY, _within(0, 4_096, "parts of an update's backward pass; 0 for num_generations")
    ] = 0
    gradient_checkpointing: Annotated[
        bool, _MEMORY, _help("compute activations again instead of keeping them")
    ] = False
    fast_inference: Annotated[bool, _MEMORY, _help("sample with vLLM inside Unsloth")] = False
    gpu_memory_utilization: Annotated[
        float, _MEMORY, _within(0.05, 0.95, "vLLM's share of the device")
    ] = 0.5
    batch_size: Annotated[
        int,
        _MEMORY,
        _within(0, 4_096, "prompts sampled at a time in tests; 0 for the model's default"),
    ] = 0

    max_prompt_tokens: Annotated[
        int, _PROMPTS, _within(0, 1_000_000, "longest prompt; 0 for the model's default")
    ] = 0
    max_new_tokens: Annotated[
        int, _PROMPTS, _within(0, 1_000_000, "longest completion; 0 for the model's default")
    ] = 0
    memory_rule: Annotated[
        MemoryRule, _PROMPTS, _help("items shown when not all fit; or relevant, recent+relevant")
    ] = "recent"
    chunk_rule: Annotated[
        ChunkRule, _PROMPTS, _help("part of a chunk shown when it is too long; or head+tail")
    ] = "head"
    operations_as: Annotated[
        OperationsAs,
        _PROMPTS,
        _help("form of operations; or tools, [constrained-|matched-]quotes, calls of layers"),
    ] = "json"

    save_every: Annotated[int, _RUN, _within(1, 100_000, "updates between checkpoints")] = 10
    report_to: Annotated[
        str,
        _RUN,
        Rule(
            f"none, or one of {', '.join(REPORTERS)} with its package installed by pip", can_report
        ),
        _help("where curves are sent; or tensorboard, trackio, wandb"),
    ] = "none"
    resume: Annotated[bool, _RUN, _help("go on from the checkpoint of a run that was stopped")] = (
        False
    )

    def model_settings(self) -> ModelSettings:
        return ModelSettings(
            loader=self.loader,
            precision=self.precision,
            lora_rank=self.lora_rank,
            lora_alpha=self.lora_alpha or None,
            lora_layers=self.lora_layers or None,
            gradient_checkpointing=self.gradient_checkpointing,
            fast_inference=self.fast_inference,
            gpu_memory_utilization=self.gpu_memory_utilization,
            max_prompt_tokens=self.max_prompt_tokens or None,
            max_new_tokens=self.max_new_tokens or None,
            batch_size=self.batch_size or None,
            memory_rule=self.memory_rule,
            chunk_rule=self.chunk_rule,
            operations_as=self.operations_as,
        )

    def contradictions(self) -> list[str]:
        problems = super().contradictions()
        problems += managers_without_layers([self.checkpoint], self.memory)
        if self.micro_batches and self.num_generations % self.micro_batches:
            problems.append(
                f"micro_batches is {self.micro_batches}, expected a divisor of num_generations "
                f"({self.num_generations}), or 0 for that number"
            )
        if self.operations_as == "calls" and self.memory != "layered":
            problems.append(
                "operations_as is 'calls', which name the stores of a layered memory, and memory "
                "is 'flat'; expected memory layered, or another form of operations"
            )
        if self.loader == "unsloth" and SCHEMES[self.scheme].operations:
            of_steps = ", ".join(name for name, one in SCHEMES.items() if not one.operations)
            problems.append(
                f"scheme is {self.scheme!r}, which credits operations; Unsloth's loss takes one "
                f"advantage per completion; expected one of {of_steps}, or loader transformers"
            )
        return problems


class EvidenceTracing(NotebookParameters):
    """Notebook 05: from an answer back to the step that wrote its evidence."""

    source: Annotated[
        Literal["trajectories", "trained_trajectories"],
        _help("whose trajectories; or trained_trajectories"),
    ] = "trajectories"
    index: Annotated[int, _within(0, 1_000_000, "which of them to look at")] = 0
    attribution: Attribution = "last_write"
    credited: Credited = "retrieved"
    max_questions: Annotated[int, _within(1, 1_000, "questions drawn in the Sankey diagram")] = 10
    models: Models = ""


_DETAILS = Rare("Details")


class BenchmarkEvaluation(NotebookParameters):
    """Notebook 06: managers compared."""

    managers: Annotated[Managers, _help("who is compared")] = [
        "raw-chunks",
        "insert-all",
        "facts-only",
        "random",
        "tiny",
    ]
    systems: Annotated[
        Texts,
        Rule(
            f"a list of some of {', '.join(SYSTEMS)}, or an empty one",
            lambda names: {*names} <= {*SYSTEMS},
        ),
        _help("published systems"),
    ] = ["long-context-tail", "rag-top2", "memagent", "memory-r1"]
    baseline: Annotated[str, _help("whom the others are compared with")] = "raw-chunks"
    equal_budget: Annotated[
        int,
        _within(0, 100_000_000, "tokens that every memory may hold in the second table; 0: none"),
    ] = 60
    controls: Annotated[bool, _help("also what is answered without the memory"), _DETAILS] = True
    trained: Annotated[bool, _help("also the manager that notebook 04 trained")] = True
    memory: Annotated[Memory, _DETAILS] = "flat"
    capacity: Capacity = 0
    token_budget: TokenBudget = 0
    top_k: TopK = 3
    retriever: Annotated[Retrieval, _DETAILS] = "bm25"
    resamples: Resamples = 1000
    models: Models = ""

    def contradictions(self) -> list[str]:
        problems = managers_without_layers(self.managers, self.memory)
        names = [*self.managers, *self.systems]
        if self.baseline not in names:
            problems.append(f"baseline is {self.baseline!r}, expected one of {', '.join(names)}")
        written = played_by_a_model(self.systems)
        if written and not self.models:
            problems.append(
                f"systems has {', '.join(written)}, which a language model plays and models names "
                "none; expected a file with the role writer in models, or other systems"
            )
        return problems


class AblationsAndRobustness(LoadsCheckpoint):
    """Notebook 07: reward schemes trained side by side."""

    schemes: Annotated[
        Texts,
        Rule(
            f"a list of two or more different ones of {', '.join(SCHEMES)}",
            lambda names: len(names) == len({*names}) > 1 and {*names} <= {*SCHEMES},
        ),
        _help("reward schemes trained here; the first is the baseline"),
    ] = ["outcome-only", "+CSR"]
    num_seeds: Annotated[
        int, _within(1, 1_000, "training runs of each, at seed, seed + 1, ...")
    ] = 2
    updates: Updates = 12
    instances_per_update: PerUpdate = 8
    num_generations: NumGenerations = 8
    learning_rate: LearningRate = 0.0015
    held_out: HeldOut = 32
    capacity: Capacity = 12
    jobs: Annotated[int, _within(1, 1_024, "training runs at a time")] = 2

    kl_coef: Annotated[KLCoef, _DETAILS] = 0.02
    world: Annotated[PlantedWorld, _DETAILS] = "plain"
    token_budget: Annotated[TokenBudget, _DETAILS] = 0
    top_k: Annotated[TopK, _DETAILS] = 3
    resamples: Annotated[Resamples, _DETAILS] = 1000
    experiments: Annotated[str, _DETAILS, _help("folder with the rows of the full experiments")] = (
        "data/experiments"
    )


class RulesDisagree(NotebookParameters):
    """Notebook 08: rules of credit compared on one trajectory."""

    beta: Beta = 1.0
    top_k: TopK = 2


class PerStepGRPO(NotebookParameters):
    """Notebook 09: every computation of one update of GRPO."""

    seed: Seed = 30  # here completions differ in length, and every rule pays other steps
    num_chunks: NumChunks = 3
    num_generations: NumGenerations = 4
    capacity: Capacity = 3
    top_k: TopK = 3
    learning_rate: LearningRate = 0.0015
    kl_coef: KLCoef = 0.02


class StateMismatch(NotebookParameters):
    """Notebook 10: comparisons of rollouts whose memories differ."""

    share: Annotated[float, _within(0, 1, "share of the questions about step 1, by hand")] = 0.5
    streams: Annotated[int, _within(1, 10_000, "planted streams that are played and measured")] = 12
    num_chunks: NumChunks = 6
    num_generations: NumGenerations = 8
    capacity: Capacity = 0
    top_k: TopK = 3
    resamples: Resamples = 1000


class PaperQuestions(NotebookParameters):
    """Notebook 11: open questions of the paper, answered from the rows of experiments."""

    wrong_share: Annotated[float, _within(0, 1, "share of wrong chunk questions, by hand")] = 0.5
    acceptance: Annotated[float, _within(0, 1, "threshold of the verifier, by hand")] = 0.5
    experiments: Annotated[str, _help("folder with the rows of the experiments")] = (
        "data/experiments"
    )
    resamples: Resamples = 10_000


class MemAlpha(NotebookParameters):
    """Notebook 12: Mem-alpha's memory and reward, and changed facts."""

    top_k: Annotated[
        int, _within(1, 1_000, "items retrieved from each searched layer, by hand")
    ] = 1
    experiments: Annotated[str, _help("folder with the rows of the experiments")] = (
        "data/experiments"
    )
    resamples: Resamples = 2000


MODELS: dict[str, type[NotebookParameters]] = {
    model.__name__: model
    for model in (
        QuestionGeneration,
        MemoryAndRetrieval,
        RewardsAndCredit,
        GRPOTraining,
        EvidenceTracing,
        BenchmarkEvaluation,
        AblationsAndRobustness,
        RulesDisagree,
        PerStepGRPO,
        StateMismatch,
        PaperQuestions,
        MemAlpha,
    )
}
"""The models by name, as the metadata of notebooks name them."""
