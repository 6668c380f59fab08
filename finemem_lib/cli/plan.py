"""`finemem plan`: estimate the model calls, GPU memory and time of a run before it starts.

Parameters are resolved as in `finemem run`; the estimates are from `training.estimates`.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from finemem_lib.baselines.prompted import MAX_SHOWN_TOKENS
from finemem_lib.baselines.systems import SYSTEMS, make_system
from finemem_lib.cli.profiles import (
    add_arguments,
    check_reads,
    requested,
    resolve_parameters,
    typed_parameters,
)
from finemem_lib.data.memalpha import held_out_split, load_instances
from finemem_lib.data.planted import StreamSettings, planted_instances
from finemem_lib.managers import loading, tiny
from finemem_lib.managers.loading import (
    BATCH_SIZE,
    MAX_NEW_TOKENS,
    MAX_PROMPT_TOKENS,
    first_line,
    split_revision,
)
from finemem_lib.managers.prompts import (
    INSTRUCTION,
    CompactPromptBuilder,
    PromptBuilder,
    prompt_builder,
)
from finemem_lib.readers.prompts import load_prompt
from finemem_lib.readers.roles import load_roles
from finemem_lib.readers.settings import ChatSettings
from finemem_lib.runs import run as runs
from finemem_lib.runs.parameters import (
    BenchmarkEvaluation,
    GRPOTraining,
    MemoryAndRetrieval,
    NotebookParameters,
    QuestionGeneration,
)
from finemem_lib.text import count_tokens
from finemem_lib.training import estimates
from finemem_lib.training.schemes import scheme_of
from finemem_lib.trajectory import Instance
from finemem_lib.util.console import EXIT_CODES, UsageError, UsageErrors, plain, print_table

P = TypeVar("P", bound=NotebookParameters)


def add_command(commands: Any) -> None:
    """Add `finemem plan` to the command line."""
    plan = commands.add_parser("plan", help="estimate what a run takes, before anything starts")
    plan.set_defaults(command=_plan_command)
    add_arguments(plan)
    plan.add_argument(
        "--card",
        choices=[*estimates.CARDS],
        metavar="CARD",
        help=f"one of {', '.join(estimates.CARDS)} (default: the profile's)",
    )
    names = ", ".join(field.name for field in dataclasses.fields(estimates.Assumptions))
    plan.add_argument(
        "--assume",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help=f"another value of an assumption: {names}",
    )


def _plan_command(options: argparse.Namespace) -> int:
    """Print the estimates for a run."""
    profile, notebooks, given = requested(options)
    values = resolve_parameters(notebooks, profile, given, "plan", to_run=False)
    check_reads(notebooks, values, None)
    resolved = typed_parameters(notebooks, values)
    assumed = _assumptions(options.assume)
    card = estimates.CARDS.get(options.card or profile.card)
    if profile.card and card is None:
        raise UsageError(
            f"profile {profile.name}: card is {profile.card!r}, expected one of "
            f"{', '.join(estimates.CARDS)}; correct it, or give --card"
        )
    instances = _instances(resolved)
    training = _of(resolved, GRPOTraining)
    sizes = None if training is None else _shape(training.checkpoint)
    count, counted_by, prompts = _tokens(training)

    def as_streams(instances: Sequence[Instance]) -> list[estimates.Stream]:
        return [
            estimates.Stream(tuple(count(chunk.text) for chunk in one.chunks), len(one.questions))
            for one in instances
        ]

    streams = as_streams(instances)
    trained_on = (
        streams if training is None else as_streams(_training_instances(training, instances))
    )
    print(f"profile {profile.name}: {' '.join(profile.description.split())}\n")
    _print_parameters(resolved)
    chunks = [tokens for one in streams for tokens in one.chunks]
    print(
        f"\n{len(streams)} instances, {len(chunks)} chunks, {sum(chunks):,} tokens (longest "
        f"chunk {max(chunks):,}), {sum(one.questions for one in streams)} global questions; "
        f"tokens are {counted_by}\n"
    )
    calls = _print_calls(resolved, instances, streams, trained_on, assumed)
    code = EXIT_CODES["ok"]
    if training is not None and sizes is not None:
        benchmark = _of(resolved, BenchmarkEvaluation)
        played = len(streams) if benchmark and benchmark.trained else 0
        code = _print_training(training, sizes, trained_on, prompts, card, assumed, calls, played)
    print(
        "\nassumptions (--assume NAME=VALUE): "
        + ", ".join(f"{name}={value:g}" for name, value in dataclasses.asdict(assumed).items())
    )
    return code


def _of(resolved: Mapping[str, NotebookParameters], model: type[P]) -> P | None:
    """Return the parameters of the selected notebook with this model, `None` if there is none."""
    return next((one for one in resolved.values() if isinstance(one, model)), None)


def _stem_of(resolved: Mapping[str, NotebookParameters], parameters: NotebookParameters) -> str:
    return next(stem for stem, one in resolved.items() if one is parameters)


def _print_parameters(resolved: Mapping[str, NotebookParameters]) -> None:
    rows = [("notebook", "parameters")]
    for stem, values in resolved.items():
        each = values.model_dump(exclude={"run_id"}).items()
        rows.append((stem, plain(", ".join(f"{name} {value!r}" for name, value in each))))
    print_table(rows)


def _assumptions(given: Sequence[str]) -> estimates.Assumptions:
    found = {}
    for one in given:
        name, _, value = one.partition("=")
        try:
            found[name] = float(value)
            estimates.Assumptions(**{name: found[name]})
        except (TypeError, ValueError) as error:
            names = ", ".join(field.name for field in dataclasses.fields(estimates.Assumptions))
            raise UsageError(
                f"--assume {one!r}: expected NAME=NUMBER with one of {names} ({error})"
            ) from error
    return estimates.Assumptions(**found)


def _instances(resolved: Mapping[str, NotebookParameters]) -> list[Instance]:
    """Return the instances that notebook 01 would load, or planted ones as it would make them."""
    made_by = _of(resolved, QuestionGeneration)
    if made_by is None:
        training = _of(resolved, GRPOTraining)
        made_by = QuestionGeneration.read({"num_chunks": training.num_chunks} if training else {})
    found: list[Instance] = []
    for source in made_by.data:
        try:
            found += load_instances(
                runs.locate(source) or source,
                split=made_by.split,
                limit=made_by.max_instances,
                on_error=made_by.on_error,
                max_chunk_tokens=made_by.max_chunk_tokens,
            ).instances
        except (ValueError, ImportError, OSError) as error:
            raise UsageError(plain(str(error))) from error
    stream = StreamSettings(num_chunks=made_by.num_chunks, world=made_by.world)
    return found or planted_instances("held-out", made_by.max_instances, 0, stream)


def _training_instances(
    training: GRPOTraining, instances: Sequence[Instance]
) -> Sequence[Instance]:
    """Return the instances that notebook 04 trains on, or similar planted ones."""
    if training.train_on == "planted":
        stream = StreamSettings(num_chunks=training.num_chunks, world=training.world)
        return planted_instances("train", training.instances_per_update, 0, stream)
    with UsageErrors(ValueError):
        return held_out_split(instances, training.held_out, training.instances_per_update)[0]


def _tokens(
    training: GRPOTraining | None,
) -> tuple[Callable[[str], int], str, PromptBuilder | None]:
    """Return the token counter, its description, and the builder of prompts.

    The counter uses the tokenizer of the model if it can be loaded without network; otherwise it
    counts words and marks, and there is no builder.
    """
    if training is not None:
        from transformers import AutoTokenizer

        source, revision = _source(training.checkpoint)
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                source, revision=revision, local_files_only=True
            )
        except Exception:  # transformers raises errors of any type for a broken file
            tokenizer = None
        if tokenizer is not None:
            with UsageErrors(ValueError):
                builder = prompt_builder(tokenizer, training.model_settings())
            return (
                lambda text: len(tokenizer(text, add_special_tokens=False)["input_ids"]),
                f"those of {training.checkpoint}",
                builder,
            )
    return count_tokens, "words and marks; the model's own are usually more", None


class _CallTable:
    """A table of the calls of language models with their cost."""

    def __init__(self, resolved: Mapping[str, NotebookParameters]) -> None:
        self.rows = [
            (
                "calls of language models, at most",
                "role",
                "calls",
                "tokens in",
                "tokens out",
                "cost",
            )
        ]
        self.number: dict[str, float] = {}
        self._resolved = resolved
        self._total: list[tuple[estimates.Calls, float]] = []
        self._roles: dict[str, dict[str, ChatSettings]] = {}
        for stem, values in resolved.items():
            if path := runs.locate_models(getattr(values, "models", "")):
                self._roles[stem] = {role: one.chat for role, one in load_roles(path).items()}

    def add(
        self,
        asked_by: NotebookParameters,
        what: str,
        role: str,
        calls: estimates.Calls,
        *,
        counts: bool = True,
    ) -> None:
        """Add the calls of a role if a model of this notebook has the role."""
        chat = self._roles.get(_stem_of(self._resolved, asked_by), {}).get(role)
        if chat and calls.calls:
            cost = calls.cost(chat.price_in, chat.price_out)
            self.rows.append((what, f"{role} {plain(chat.model)}", *self._figures(calls, cost)))
            self.number[what] = calls.calls
            if counts:
                self._total.append((calls, cost))

    def finish(self) -> None:
        """Add the sums, print the table, and name the roles whose calls it does not count."""
        if self._total:
            calls, costs = zip(*self._total, strict=True)
            columns = zip(*map(dataclasses.astuple, calls), strict=True)
            all_calls = estimates.Calls(*map(sum, columns))
            self.rows.append(("in all", "", *self._figures(all_calls, sum(costs))))
        print_table(self.rows)
        counted = {role.partition(" ")[0] for _, role, *_ in self.rows[1:]}
        named = {
            role: chat.model
            for stem, roles in self._roles.items()
            for role, chat in roles.items()
            if role not in counted
        }
        judge = named.pop("judge", None)
        if judge:
            print(f"not counted: judge {plain(judge)}, asked where no rule scores an answer")
        if not counted and not judge:
            print(
                "no language model is asked: questions are made by rule, the reader is extractive"
            )
        if named:
            each = ", ".join(f"{role} {plain(model)}" for role, model in named.items())
            print(f"named in models and not asked by these notebooks: {each}")

    @staticmethod
    def _figures(calls: estimates.Calls, cost: float) -> tuple[str, str, str, str]:
        number, tokens_in, tokens_out = (f"{value:,.0f}" for value in dataclasses.astuple(calls))
        return number, tokens_in, tokens_out, f"{cost:,.2f}" if cost else "no price"


def _print_calls(
    resolved: Mapping[str, NotebookParameters],
    instances: Sequence[Instance],
    streams: Sequence[estimates.Stream],
    trained_on: Sequence[estimates.Stream],
    assumed: estimates.Assumptions,
) -> dict[str, float]:
    """Print the maximum number of language model calls, and return the calls by purpose.

    The actual number is smaller: a question with the same items as before is answered from the
    cache, and credit rules with further reader calls need them only for the failed questions.
    """
    table = _CallTable(resolved)
    asked = [count_tokens(question.text) for one in instances for question in one.questions]
    reads = _template("read") + sum(asked) / max(len(asked), 1)
    chunks = sum(len(one.chunks) for one in streams)
    global_questions = sum(one.questions for one in streams)
    questions = _of(resolved, QuestionGeneration)
    k = questions.questions_per_chunk if questions else 0

    def on_memory(top_k: int) -> estimates.Calls:
        return estimates.Calls(1, reads + top_k * assumed.item_tokens, assumed.answer_tokens)

    if questions and not questions.questions:
        tokens = sum(sum(one.chunks) for one in streams)
        teach = chunks * _template("teach") + tokens
        calls = estimates.Calls(chunks, teach, chunks * k * assumed.item_tokens)
        table.add(questions, "01 chunk questions", "teacher", calls)
        verify = k * (chunks * reads + tokens)
        calls = estimates.Calls(chunks * k, verify, chunks * k * assumed.answer_tokens)
        table.add(questions, "01 verified on the chunk alone", "verifier", calls)
    if scripted := _of(resolved, MemoryAndRetrieval):
        number = len(scripted.managers) * (chunks * k + global_questions)
        calls = on_memory(scripted.top_k).times(number)
        table.add(scripted, "02 scripted managers", "reader", calls)
    if training := _of(resolved, GRPOTraining):
        _add_training_calls(table, training, k, trained_on, on_memory(training.top_k))
    if benchmark := _of(resolved, BenchmarkEvaluation):
        everyone = len({*benchmark.managers, *benchmark.systems}) + benchmark.trained
        # Of the controls, the empty and the shuffled memory are read.
        plays = everyone * (1 + bool(benchmark.equal_budget)) + 2 * benchmark.controls
        calls = on_memory(benchmark.top_k).times(plays * global_questions)
        table.add(benchmark, "06 benchmark", "reader", calls)
        table.add(benchmark, "06 memories", "writer", _writing(benchmark, streams))
    table.finish()
    return table.number


def _writing(
    benchmark: BenchmarkEvaluation, streams: Sequence[estimates.Stream]
) -> estimates.Calls:
    """Return the calls that write the memories of notebook 06's systems, at most."""
    found = []
    for name in dict.fromkeys(benchmark.systems):
        if not SYSTEMS[name].calls:
            continue
        limits = [benchmark.token_budget]
        if benchmark.equal_budget:
            limits.append(benchmark.equal_budget)
        if benchmark.controls and name == benchmark.baseline:
            limits.append(benchmark.token_budget)  # the shuffled memory
        found += [_written(name, streams, limit) for limit in limits]
    columns = zip(*map(dataclasses.astuple, found), strict=True)
    return estimates.Calls(*map(sum, columns))


def _written(name: str, streams: Sequence[estimates.Stream], limit: int) -> estimates.Calls:
    """Return the calls that write the memories of a system, of at most `limit` tokens (0: its own).

    A text is written anew at every chunk, and operations restate at most the chunk.
    """
    system = SYSTEMS[name]
    rewrites = system.rollout.get("retriever") == "whole"
    own = make_system(name).manager.settings["tokens"] if rewrites else MAX_SHOWN_TOKENS
    shown = limit or own
    # The longest of the writers' prompts.
    prompt = max(_template("memalpha"), _template("manage") + count_tokens(INSTRUCTION))
    calls = tokens_in = tokens_out = 0
    for stream in streams:
        read = 0
        for chunk in stream.chunks:
            tokens_in += prompt + min(read, shown) + chunk
            read += chunk
            tokens_out += min(read, shown) if rewrites else chunk
            calls += 1
    return estimates.Calls(calls, tokens_in, tokens_out).times(system.calls)


def _add_training_calls(
    table: _CallTable,
    training: GRPOTraining,
    k: int,
    trained_on: Sequence[estimates.Stream],
    answer: estimates.Calls,
) -> None:
    """Add the calls of notebook 04; `answer` is one call, `k` the questions of a chunk."""
    per_chunk = 0 if training.train_on == "planted" else k  # planted streams have none
    of_chunks = per_chunk * sum(len(one.chunks) for one in trained_on)
    sampled, of_all = (
        of_chunks + sum(estimates.asked_globally(one.questions, share) for one in trained_on)
        for share in (training.question_fraction, 1.0)
    )
    rollouts = training.instances_per_update * training.num_generations
    # Credit rules repeat at most all global questions; the price of a slot only the failed ones.
    again = sampled - of_chunks if scheme_of(training.scheme).rules else 0
    update = answer.times(rollouts * (sampled + again) / len(trained_on))
    table.add(training, "04 per update", "reader", update, counts=False)
    whole = update.times(training.updates)
    table.add(training, f"04 {training.updates} updates", "reader", whole)
    # The manager before and after training, each 3 more times on one instance, and two scripted.
    played = 2 * training.held_out + 6 + 2 * training.held_out
    tests = answer.times(played * of_all / len(trained_on))
    table.add(training, "04 tests before and after", "reader", tests)


def _template(name: str) -> int:
    prompt = load_prompt(name)
    return count_tokens(prompt.system) + count_tokens(prompt.user)


def _print_training(
    values: GRPOTraining,
    sizes: tuple[estimates.ModelShape, str],
    streams: Sequence[estimates.Stream],
    prompts: PromptBuilder | None,
    card: estimates.Card | None,
    assumed: estimates.Assumptions,
    calls: Mapping[str, float],
    played: int,
) -> int:
    """Print the model, an update, the memory of the card by part, the hours; return the exit code.

    `played` is the number of instances on which notebook 06 runs the trained manager.
    """
    shape, found = sizes
    training = _planned_training(values, prompts, played)
    mean = estimates.average_work(streams, training, assumed)
    rank, layers = training.model.lora_rank, training.model.lora_layers
    adapter = shape.lora_parameters(rank, layers) if rank else shape.parameters
    print(
        f"\nmodel {plain(values.checkpoint)}: {shape.parameters:,} parameters ({found}), "
        f"{adapter:,} trained"
    )
    print(
        f"an update: {training.instances_per_update} instances x {training.num_generations} "
        f"rollouts, {mean.rows:,.0f} prompts of {mean.prompt_tokens / mean.rows:,.0f} tokens "
        f"(longest {mean.longest_prompt:,}), completions of "
        f"{mean.completion_tokens / mean.rows:,.0f} (at most {training.max_new_tokens:,}); "
        f"micro-batches of up to {mean.longest_rows} rows"
    )
    vllm = ", sampled without vLLM, in memory beside its share"
    print(
        f"tests{' and 06' if played else ''}: {training.batch_size} prompts at a time"
        + (vllm if training.model.fast_inference else "")
    )
    if card is None:
        print("no card is named, so neither its memory nor hours are estimated: give --card")
        return EXIT_CODES["ok"]
    memory = estimates.gpu_memory(shape, training, mean, card, assumed)
    _print_memory(memory, card)
    _print_hours(shape, training, streams, mean, card, assumed, calls, values.held_out, played)
    if estimates.fits(memory, shape, mean, card):
        print(f"\nfits: {memory.peak / 1e9:.1f} of {card.gb:g} GB")
        return EXIT_CODES["ok"]
    changes = estimates.what_would_fit(shape, streams, training, card, assumed)
    print(
        f"\ndoes not fit: {memory.peak / 1e9:.1f} of {card.gb:g} GB. "
        + (
            f"Changes that make it fit, each by itself: {', '.join(changes)}"
            if changes
            else "No change of the parameters makes it fit; take a larger card"
        )
    )
    return EXIT_CODES["failed"]


def _planned_training(
    values: GRPOTraining, prompts: PromptBuilder | None, played: int
) -> estimates.Training:
    """Return the sizes of the training, with the model's defaults for parameters that are 0."""
    model = values.model_settings()
    compact = isinstance(prompts, CompactPromptBuilder)
    return estimates.Training(
        model=model,
        updates=values.updates,
        instances_per_update=values.instances_per_update,
        num_generations=values.num_generations,
        question_fraction=values.question_fraction,
        top_k=values.top_k,
        instruction_tokens=prompts.instruction_tokens if prompts else count_tokens(INSTRUCTION),
        max_prompt_tokens=model.max_prompt_tokens
        or (tiny.MAX_PROMPT_TOKENS if compact else MAX_PROMPT_TOKENS),
        max_new_tokens=model.max_new_tokens or (tiny.MAX_NEW_TOKENS if compact else MAX_NEW_TOKENS),
        batch_size=model.batch_size or (tiny.BATCH_SIZE if compact else BATCH_SIZE),
        tested=max(values.held_out, played),
    )


def _print_memory(memory: estimates.GpuMemory, card: estimates.Card) -> None:
    parts = {
        name.removesuffix("_"): value
        for name, value in dataclasses.asdict(memory).items()
        if name != "cache_stays"
    }
    rows = [("memory of the card, estimated", "GB")]
    rows += [(name, f"{value / 1e9:.1f}") for name, value in parts.items()]
    rows += [("peak", f"{memory.peak / 1e9:.1f}"), (f"{card.name} has", f"{card.gb:.1f}")]
    print()
    print_table(rows)


def _print_hours(
    shape: estimates.ModelShape,
    training: estimates.Training,
    streams: Sequence[estimates.Stream],
    mean: estimates.Work,
    card: estimates.Card,
    assumed: estimates.Assumptions,
    calls: Mapping[str, float],
    held_out: int,
    played: int,
) -> None:
    """Print the time of an update by part, and the hours of the whole run."""
    seconds = estimates.update_seconds(
        shape, training, mean, card, assumed, calls.get("04 per update", 0)
    )
    # In addition to the updates: the time of the manager, and the calls of language models.
    others = {what: 0.0 for what in calls if what[:2] in ("01", "02")}
    for what, times, number in (
        ("04 tests before and after", 2, held_out),
        ("06 benchmark", 1, played),
    ):
        if number:
            others[what] = times * estimates.playing_seconds(
                shape, streams, training, card, assumed, number
            )
    others |= {
        what: others.get(what, 0) + number * assumed.reader_seconds / assumed.reader_concurrency
        for what, number in calls.items()
        if not what.startswith("04") or what in others
    }
    total = training.updates * seconds.total + sum(others.values())
    per_update = {
        **dataclasses.asdict(seconds),
        f"04 {training.updates} updates": seconds.total,
    }
    rows = [("time, estimated with the most calls", "seconds per update", "hours in all")]
    rows += [
        (name, f"{value:.1f}", f"{value * training.updates / 3600:.1f}")
        for name, value in per_update.items()
    ]
    rows += [(what, "", f"{value / 3600:.1f}") for what, value in others.items()]
    print()
    print_table([*rows, ("in all", "", f"{total / 3600:.1f}")])
    print("not in these hours: loading and saving, retrieval, and answers by rule")


def _shape(checkpoint: str) -> tuple[estimates.ModelShape, str]:
    from transformers import AutoConfig

    source, revision = _source(checkpoint)
    try:
        config = AutoConfig.from_pretrained(source, revision=revision, local_files_only=True)
        return estimates.ModelShape.of(config), "its config.json"
    except Exception as error:  # transformers raises errors of any type for a broken file
        last = source.rpartition("/")[2]  # copies by other owners have the same sizes
        known = next(
            (its for name, its in estimates.SHAPES.items() if name.endswith(f"/{last}")), None
        )
        if known is None or loading.checkpoint_folder(checkpoint):
            raise UsageError(
                f"checkpoint {checkpoint!r}: its sizes are not known here "
                f"({first_line(error)}); give a folder, download it, or take one of "
                f"{', '.join(estimates.SHAPES)}"
            ) from error
        return known, "the sizes noted here"


def _source(checkpoint: str) -> tuple[str, str | None]:
    """Return the source of a checkpoint: a folder, or a name on the hub and its revision."""
    folder = loading.checkpoint_folder(checkpoint)
    return (str(folder), None) if folder else split_revision(checkpoint)
